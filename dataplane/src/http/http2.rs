//! The HTTP/2 session of one client connection, on the `h2` crate itself: hyper shows nothing of a
//! stream that its client does not read ([decision
//! 37](../../../docs/decisions/0037-http2-on-h2.md)).
//!
//! A task for each stream, from the request to the last byte of the answer that the client's window
//! takes; `answer` sends it. Invariants: a stream that takes nothing for `send_timeout` is reset,
//! and what it held of the upstream is gone with its task; a connection of which no stream takes
//! anything ends. `h2` counts a stream among [`STREAMS_MAX`] until its answer has left for the
//! socket, and this and [`SEND_BUFFER`] bound what waits for a client that does not read.

mod response;

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::server::{self, SendResponse};
use h2::{Reason, RecvStream};
use http::Request;
use hyper::rt::{Read, Write};
use hyper_util::rt::TokioIo;

use super::head;
use super::keep_alive::{InFlightGuard, KeepAliveState};
use super::tracked_io::TrackedIo;
use crate::body::asked::{BodySource, Http2Body, IncomingBody};
use crate::io::chunk_read::ChunkRead;
use crate::io::coarse_timer::CoarseTimer;
use crate::io::flag::Flag;
use crate::io::timeouts::Phase;
use crate::lifecycle::drain::DrainGuard;
use crate::proxy::connection;
use crate::proxy::connection::Connection;
use crate::runtime;

/// Streams of one connection.
const STREAMS_MAX: u32 = 128;
/// Streams that a client opens and resets before they were served: more is an attack
/// (CVE-2023-44487).
const PENDING_RESETS_MAX: usize = 20;
/// Streams we had to reset for the client's faults (CVE-2025-8671).
const LOCAL_RESETS_MAX: usize = 256;
/// Receive windows: what a client may have under way. Bytes.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Answer bytes that wait for the socket, for one stream. Bytes.
const SEND_BUFFER: usize = 32 * 1024;
/// On a stop, and when its site is gone, a client has so long to answer the PING behind the GOAWAY,
/// as `h2` wants it before it takes no more streams, and to ask for what it wanted. Then streams
/// are refused, and a connection that serves none ends.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// RFC 9113 section 6.5.2 counts a header list's fields with 32 bytes each beside their own: so
/// many times the limit of a head hold every usual one, and a list above that is refused by the
/// HTTP/2 session itself (431).
const HEADER_LIST_FACTOR: usize = 4;

/// What the tasks of one connection's streams share.
struct Streams {
    connection: Rc<Connection>,
    activity: Rc<KeepAliveState>,
    /// Streams whose client gives no window for what is there.
    blocked: Cell<usize>,
    /// When a stream was last given some, in ticks of the worker's alarms.
    last_progress: Cell<u32>,
    /// No stream was given any for `send_timeout`: the session ends.
    stalled: Flag,
}

/// Serves all requests of a connection.
pub(super) async fn serve_http2<I>(
    io: TrackedIo<I>,
    connection: &Rc<Connection>,
    activity: &Rc<KeepAliveState>,
    running: &DrainGuard,
) where
    I: Read + Write + ChunkRead + Unpin + 'static,
{
    let limits = connection.worker().shared.config.head_limits;
    let mut builder = server::Builder::new();
    builder
        .max_concurrent_streams(STREAMS_MAX)
        .max_pending_accept_reset_streams(PENDING_RESETS_MAX)
        .max_local_error_reset_streams(Some(LOCAL_RESETS_MAX))
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(SEND_BUFFER)
        .max_header_list_size(max_header_list_size(limits));
    // A client that has not said its preface has sent no request: a drain waits for it no longer
    // than `client_header_timeout`.
    let Ok(mut session) = builder.handshake::<_, Bytes>(TokioIo::new(io)).await else { return };
    let streams = Rc::new(Streams {
        connection: Rc::clone(connection),
        activity: Rc::clone(activity),
        blocked: Cell::new(0),
        last_progress: Cell::new(connection.worker().watchdog.timers().current_tick()),
        stalled: Flag::default(),
    });
    let limit = connection.worker().shared.config.client_timeouts.idle;
    let mut idle = KeepAliveTimer { connection, activity, limit, alarm: None };
    let mut refusing: Option<CoarseTimer> = None;
    let (mut told, mut ending) = (false, false);
    poll_fn(|cx| {
        if !told && running.poll_draining(cx).is_ready() {
            told = true;
            session.graceful_shutdown();
            idle.start_drain();
            refusing = Some(connection.worker().watchdog.timers().after(DRAIN_TIMEOUT));
        }
        let refuses = refusing.as_mut().is_some_and(|alarm| alarm.poll(cx).is_ready());
        if !ending && streams.stalled.poll(cx).is_ready() {
            ending = true;
            session.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
        }
        loop {
            match session.poll_accept(cx) {
                Poll::Ready(Some(Ok((_request, mut respond)))) if refuses => {
                    respond.send_reset(Reason::REFUSED_STREAM);
                }
                Poll::Ready(Some(Ok((request, respond)))) => streams.start(request, respond),
                Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(()),
                Poll::Pending if !ending && idle.is_over(cx) => {
                    ending = true;
                    session.abrupt_shutdown(Reason::NO_ERROR);
                }
                Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await;
}

/// SETTINGS_MAX_HEADER_LIST_SIZE, in bytes.
fn max_header_list_size(limits: head::HeadLimits) -> u32 {
    u32::try_from(limits.head.saturating_mul(HEADER_LIST_FACTOR)).unwrap_or(u32::MAX)
}

impl Streams {
    /// Serves a request beside the others.
    fn start(self: &Rc<Self>, request: Request<RecvStream>, respond: SendResponse<Bytes>) {
        let (head, body) = request.into_parts();
        let (body, busy) =
            self.activity.begin_request(BodySource::Http2(Http2Body::new(&head.headers, body)));
        runtime::spawn(Rc::clone(self).serve(Request::from_parts(head, body), respond, busy));
    }

    /// Serves a request until the client has its answer, resets the stream, or takes nothing of it.
    async fn serve(
        self: Rc<Self>,
        request: Request<IncomingBody>,
        mut respond: SendResponse<Bytes>,
        busy: InFlightGuard,
    ) {
        // Boxed: large, and gone when the answer's body begins.
        let mut answer = Box::pin(connection::handle_request(&self.connection, request));
        let answered = poll_fn(|cx| match answer.as_mut().poll(cx) {
            Poll::Ready(answered) => Poll::Ready(Some(answered)),
            Poll::Pending => respond.poll_reset(cx).map(|_reset| None),
        });
        let answered = answered.await;
        drop(answer);
        if let Some(answered) = answered {
            response::send(answered, respond, &self).await;
        }
        drop(busy);
    }

    /// How long a client may take nothing.
    fn send_timeout(&self) -> Duration {
        self.connection.worker().shared.config.client_timeouts.send
    }

    /// One stream has taken nothing for `send_timeout`. The connection ends when the others take
    /// nothing either.
    fn record_stalled(&self) {
        connection::record_send_timeout(&self.connection);
        let alarms = self.connection.worker().watchdog.timers();
        let all_wait = self.blocked.get() >= self.activity.in_flight();
        if all_wait && alarms.has_elapsed(self.last_progress.get(), self.send_timeout()) {
            self.stalled.raise();
        }
    }
}

/// The pause between two requests, which ends the connection at `keepalive_timeout` with a GOAWAY.
/// The watchdog hangs up a tick later, should the client not read that.
struct KeepAliveTimer<'a> {
    connection: &'a Connection,
    activity: &'a KeepAliveState,
    limit: Duration,
    alarm: Option<CoarseTimer>,
}

impl KeepAliveTimer<'_> {
    /// The connection is to finish: from now on the pause may last for [`FINISH`] at the most.
    fn start_drain(&mut self) {
        self.limit = self.limit.min(DRAIN_TIMEOUT);
        self.alarm = Some(self.connection.worker().watchdog.timers().after(self.limit));
    }

    /// Whether it has lasted too long; if not, the task is woken when that may be so.
    fn is_over(&mut self, cx: &Context<'_>) -> bool {
        let watched = &self.connection.watched;
        if self.activity.in_flight() > 0 || watched.phase() != Phase::Idle {
            return false;
        }
        let (limit, worker) = (self.limit, self.connection.worker());
        let alarm = self.alarm.get_or_insert_with(|| worker.watchdog.timers().after(limit));
        loop {
            if alarm.poll(cx).is_pending() {
                return false;
            }
            // The end of the last answer may still be on its way: `send_timeout` sees to that.
            if watched.phase_has_lasted(limit) && !watched.is_writing() {
                return true;
            }
            alarm.reset(limit);
        }
    }
}
