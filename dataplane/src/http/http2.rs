//! HTTP/2 on one client connection, on the `h2` crate itself: hyper does not show a stream that its
//! client does not read ([decision 37](../../../docs/decisions/0037-http2-on-h2.md)).
//!
//! One task a stream, from the request to the last byte of the response that the client's window
//! covers ([`response`]). Invariants: a stream whose client reads nothing for `send_timeout` is
//! reset, and its upstream connection is released with its task; a connection closes when none of
//! its clients' streams is read. `h2` counts a stream among [`STREAMS_MAX`] until its response is
//! written to the socket, so that limit and [`SEND_BUFFER`] bound what is buffered for a client
//! that does not read.

pub(crate) mod frames;
pub(crate) mod intake;
mod response;
pub(crate) mod sender;
mod tunnel;

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::server::{self, SendResponse};
use h2::{Reason, RecvStream};
use http::{Request, Response};
use hyper::rt::{Read, Write};
use hyper_util::rt::TokioIo;

use self::intake::Intakes;
use self::tunnel::Http2Tunnel;
use super::RequestHandler;
use super::head::HeadLimits;
use super::incoming_body::{BodySource, Http2Body, IncomingBody};
use super::interim::InterimResponses;
use super::keep_alive::{InFlightGuard, KeepAliveState};
use super::tracked_io::TrackedIo;
use crate::io::chunk_read::ChunkRead;
use crate::io::coarse_timer::CoarseTimer;
use crate::io::flag::Flag;
use crate::io::timeouts::Phase;
use crate::lifecycle::drain::DrainGuard;
use crate::runtime;

/// Streams of one connection.
const STREAMS_MAX: u32 = 128;
/// Streams that a client may open and reset before they are served: more is an attack
/// (CVE-2023-44487).
const PENDING_RESETS_MAX: usize = 20;
/// Streams that we may have to reset because of the client's errors (CVE-2025-8671).
const LOCAL_RESETS_MAX: usize = 256;
/// What a client may send on one stream before the upstream has taken it, in bytes.
const STREAM_WINDOW: u32 = 256 * 1024;
/// Of all streams together: with a smaller window, uploads whose upstream reads nothing would stop
/// all others on the connection.
const CONNECTION_WINDOW: u32 = STREAMS_MAX * STREAM_WINDOW;
/// Response data of one stream that waits for the socket, in bytes.
const SEND_BUFFER: usize = 32 * 1024;
/// When the connection drains, a client has this long to answer the PING that follows the GOAWAY,
/// as `h2` demands before it takes no more streams, and to send its last requests. Then streams are
/// refused, and a connection without one closes.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// RFC 9113 section 6.5.2 adds 32 bytes to each field of a header list: this many times the limit
/// of a head holds every usual list, and `h2` itself rejects a longer one (431).
const HEADER_LIST_FACTOR: usize = 4;

/// The streams of one connection.
struct Streams<H> {
    handler: Rc<H>,
    state: Rc<KeepAliveState>,
    /// The bodies of requests.
    intakes: Intakes,
    /// Streams with data and without a window to send it.
    blocked: Cell<usize>,
    /// When a stream's client last opened a window, in ticks of the worker's timers.
    last_progress: Cell<u32>,
    /// No stream made progress for `send_timeout`: the connection closes.
    stalled: Flag,
}

/// Serves all requests of a connection.
pub(super) async fn serve<I, H>(
    io: TrackedIo<I>,
    state: &Rc<KeepAliveState>,
    handler: Rc<H>,
    drain: &DrainGuard,
) where
    I: Read + Write + ChunkRead + Unpin + 'static,
    H: RequestHandler,
{
    let server = state.server();
    let mut builder = server::Builder::new();
    builder
        .max_concurrent_streams(STREAMS_MAX)
        .max_pending_accept_reset_streams(PENDING_RESETS_MAX)
        .max_local_error_reset_streams(Some(LOCAL_RESETS_MAX))
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(SEND_BUFFER)
        .max_header_list_size(max_header_list_size(server.settings.get().head_limits))
        .enable_connect_protocol();
    // A client without a preface has sent no request: a drain waits no longer than
    // `client_header_timeout` for it.
    let Ok(mut connection) = builder.handshake::<_, Bytes>(TokioIo::new(io)).await else { return };
    let streams = Rc::new(Streams {
        handler,
        state: Rc::clone(state),
        intakes: Intakes::default(),
        blocked: Cell::new(0),
        last_progress: Cell::new(server.timers.current_tick()),
        stalled: Flag::default(),
    });
    let mut idle = IdleTimer { state, timeout: server.settings.get().keepalive_timeout, timer: None };
    let mut drain_timer: Option<CoarseTimer> = None;
    let (mut draining, mut closing) = (false, false);
    poll_fn(|cx| {
        if !draining && drain.poll_draining(cx).is_ready() {
            draining = true;
            connection.graceful_shutdown();
            idle.start_drain();
            drain_timer = Some(server.timers.after(DRAIN_TIMEOUT));
        }
        let refuses_streams = drain_timer.as_mut().is_some_and(|timer| timer.poll(cx).is_ready());
        if !closing && streams.stalled.poll(cx).is_ready() {
            closing = true;
            connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
        }
        loop {
            match connection.poll_accept(cx) {
                Poll::Ready(Some(Ok((_request, mut respond)))) if refuses_streams => {
                    respond.send_reset(Reason::REFUSED_STREAM);
                }
                Poll::Ready(Some(Ok((request, respond)))) => streams.start(request, respond),
                Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(()),
                Poll::Pending if !closing && idle.is_over(cx) => {
                    closing = true;
                    connection.abrupt_shutdown(Reason::NO_ERROR);
                }
                Poll::Pending => {
                    streams.intakes.compact(state.small_frames());
                    return Poll::Pending;
                }
            }
        }
    })
    .await;
}

/// SETTINGS_MAX_HEADER_LIST_SIZE, in bytes.
pub(crate) fn max_header_list_size(limits: HeadLimits) -> u32 {
    u32::try_from(limits.head.saturating_mul(HEADER_LIST_FACTOR)).unwrap_or(u32::MAX)
}

impl<H: RequestHandler> Streams<H> {
    /// Serves a request in a task of its own.
    fn start(self: &Rc<Self>, request: Request<RecvStream>, respond: SendResponse<Bytes>) {
        let (head, body) = request.into_parts();
        let body = Http2Body::new(&head.headers, body);
        if !body.is_end_stream() {
            self.intakes.add(body.intake());
        }
        let source = BodySource::Http2(body);
        let interim = self.state.interim_responses();
        let (body, in_flight) = IncomingBody::begin_request(source, Some(interim.clone()), &self.state);
        let request = Request::from_parts(head, body);
        runtime::spawn(Rc::clone(self).serve(request, interim, respond, in_flight));
    }

    /// Serves a request until the client has the response, resets the stream, or stalls.
    async fn serve(
        self: Rc<Self>,
        request: Request<IncomingBody>,
        interim: InterimResponses,
        mut respond: SendResponse<Bytes>,
        in_flight: InFlightGuard,
    ) {
        // Boxed: it is large, and dropped before the response's body begins.
        let mut handling = Box::pin(self.handler.handle(request));
        let response = poll_fn(|cx| {
            let handled = handling.as_mut().poll(cx);
            if handled.is_pending() && respond.poll_reset(cx).is_ready() {
                return Poll::Ready(None);
            }
            // After the handler: what came with the final response is sent before it.
            while let Some(response) = interim.next(cx) {
                let _ended_meanwhile = respond.send_informational(response);
            }
            handled.map(Some)
        });
        let response = response.await;
        drop((handling, interim));
        if let Some(mut response) = response {
            match self.handler.take_tunnel(&mut response) {
                Some((tunnel, Some(body))) => self.relay(response, respond, body, tunnel).await,
                // Without a body there is nothing to relay, and no such response.
                Some((_, None)) | None => response::send(response, respond, &self).await,
            }
        }
        drop(in_flight);
    }

    /// Relays a stream that has become a tunnel. Its time-outs are the relay's.
    async fn relay(
        &self,
        response: Response<H::Body>,
        mut respond: SendResponse<Bytes>,
        body: IncomingBody,
        tunnel: H::Tunnel,
    ) {
        let Ok(stream) = respond.send_response(response.map(|_empty| ()), false) else { return };
        self.handler.relay(Http2Tunnel::new(body, stream), tunnel).await;
    }

    fn send_timeout(&self) -> Duration {
        self.state.server().settings.get().send_timeout
    }

    /// A timer that fires after `send_timeout`.
    fn send_timer(&self) -> CoarseTimer {
        self.state.server().timers.after(self.send_timeout())
    }

    fn record_progress(&self) {
        self.last_progress.set(self.state.server().timers.current_tick());
    }

    /// A stream made no progress for `send_timeout`. The connection closes if the others made none
    /// either.
    fn record_stalled(&self) {
        self.handler.record_send_timeout();
        let all_blocked = self.blocked.get() >= self.state.in_flight();
        let timers = &self.state.server().timers;
        if all_blocked && timers.has_elapsed(self.last_progress.get(), self.send_timeout()) {
            self.stalled.raise();
        }
    }
}

/// Closes an idle connection at `keepalive_timeout` with a GOAWAY. The connection's timeouts shut
/// the socket down a tick later if the client does not read it.
struct IdleTimer<'a> {
    state: &'a KeepAliveState,
    timeout: Duration,
    timer: Option<CoarseTimer>,
}

impl IdleTimer<'_> {
    /// The connection drains: from now on it may be idle for [`DRAIN_TIMEOUT`] at most.
    fn start_drain(&mut self) {
        self.timeout = self.timeout.min(DRAIN_TIMEOUT);
        self.timer = Some(self.state.server().timers.after(self.timeout));
    }

    /// Whether the connection was idle for too long; if not, the task is woken when that may have
    /// changed.
    fn is_over(&mut self, cx: &Context<'_>) -> bool {
        let timeouts = self.state.timeouts();
        if self.state.has_in_flight() || timeouts.phase() != Phase::Idle {
            return false;
        }
        let (timeout, timers) = (self.timeout, &self.state.server().timers);
        let timer = self.timer.get_or_insert_with(|| timers.after(timeout));
        loop {
            if timer.poll(cx).is_pending() {
                return false;
            }
            // The end of the last response may not be written yet: `send_timeout` covers that.
            if timeouts.phase_has_lasted(timeout) && !timeouts.is_writing() {
                return true;
            }
            timer.reset(timeout);
        }
    }
}
