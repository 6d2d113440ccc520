//! The HTTP session of one client connection, driven by this worker: hyper's server for HTTP/1,
//! `http2` for HTTP/2.
//!
//! Stands between the stream (plain or TLS) and the walk of each request. Ends gracefully when the
//! worker drains. An HTTP/1 connection on which nothing has been under way for a while rests:
//! hyper, whose buffers take some 20 KiB, is there from the first byte of a request until [`Pause`]
//! is over after the last one of an answer.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::rt::{Read, Write};
use hyper::server::conn::http1;
use hyper::service::{HttpService, service_fn};

use super::keep_alive::{HibernateTimer, KeepAliveState, TrackedResponseBody};
use super::tracked_io::TrackedIo;
use super::{error_page, header_case, http2};
use crate::body::asked::BodySource;
use crate::io::buffered::BufferedSocket;
use crate::io::chunk_read::ChunkRead;
use crate::lifecycle::drain::DrainGuard;
use crate::proxy::connection;
use crate::proxy::connection::Connection;
use crate::runtime;

/// After the answer to a refused request, what the client still sends is read for so long and so
/// far, as nginx does: a socket closed with unread bytes is reset, and the client may never see the
/// answer.
const LINGER: Duration = Duration::from_secs(5);
const LINGER_BYTES: usize = 16 * 1024 * 1024;

/// Which HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HttpProtocol {
    /// HTTP/1.0 and 1.1.
    H1,
    /// HTTP/2.
    H2,
}

impl HttpProtocol {
    /// What ALPN chose.
    pub(crate) fn from_alpn(alpn: Option<&[u8]>) -> Self {
        if alpn == Some(b"h2") { Self::H2 } else { Self::H1 }
    }
}

/// Tells HTTP/2 by prior knowledge from HTTP/1 on a plain connection; waits for the first bytes.
///
/// # Errors
/// As the read; an end is an error too, since nothing is left to serve.
pub(crate) async fn detect_protocol(pump: &mut BufferedSocket, http2: bool) -> io::Result<HttpProtocol> {
    poll_fn(|cx| match pump.poll_fill_buf(cx) {
        Poll::Pending => Poll::Pending,
        Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
        Poll::Ready(Ok([])) => Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
        Poll::Ready(Ok(first)) => {
            // No method starts with "PRI "; the preface comes in one piece from every client there is.
            Poll::Ready(Ok(if http2 && first.starts_with(b"PRI ") {
                HttpProtocol::H2
            } else {
                HttpProtocol::H1
            }))
        }
    })
    .await
}

/// Serves all requests of a connection.
pub(crate) async fn serve_connection<I>(
    io: I,
    protocol: HttpProtocol,
    connection: Rc<Connection>,
    running: &DrainGuard,
) where
    I: Read + Write + ChunkRead + Unpin + 'static,
{
    let rules = &connection.worker().shared.config;
    let (limits, preserve_case) = (rules.head_limits, rules.preserve_header_case);
    let activity = KeepAliveState::new(Rc::clone(&connection), protocol);
    let io = TrackedIo::new(io, Rc::clone(&activity), limits, preserve_case);
    if protocol == HttpProtocol::H2 {
        return http2::serve_http2(io, &connection, &activity, running).await;
    }
    let serving = Rc::clone(&activity);
    let service = service_fn(move |request: Request<Incoming>| {
        let connection = Rc::clone(&connection);
        let (mut head, body) = request.into_parts();
        if serving.take_case_prefix() {
            header_case::strip(&mut head.headers);
        }
        let (body, busy) = serving.begin_request(BodySource::Http1(body));
        // Boxed: hyper keeps room for the future as long as the session lives, and part of that time
        // nothing is asked.
        Box::pin(async move {
            let mut response = connection::handle_request(&connection, Request::from_parts(head, body)).await;
            if error_page::closes_connection(&response) {
                busy.close();
            }
            if protocol == HttpProtocol::H1 && connection.worker().lame_duck.get() {
                error_page::set_connection_close(&mut response);
            }
            Ok::<Response<TrackedResponseBody>, Infallible>(
                response.map(|body| TrackedResponseBody::new(body, busy)),
            )
        })
    });
    let mut builder = http1::Builder::new();
    builder
        .header_read_timeout(None)
        .max_buf_size(limits.buffer_size())
        .max_headers(limits.max_fields() + header_case::FIELDS);
    builder.preserve_header_case(preserve_case).title_case_headers(preserve_case);
    serve_http1(io, service, &builder, &activity, running).await;
}

/// Rests until something comes, has hyper serve it, and rests again.
async fn serve_http1<I, S>(
    mut io: TrackedIo<I>,
    mut service: S,
    builder: &http1::Builder,
    activity: &KeepAliveState,
    running: &DrainGuard,
) where
    I: Read + Write + ChunkRead + Unpin + 'static,
    S: HttpService<Incoming, ResBody = TrackedResponseBody, Error = Infallible>,
{
    loop {
        // A connection that has just been accepted gets its first answer, however near the end of a
        // drain.
        let before = activity.requests();
        match hibernate(&mut io, running, before > 0).await {
            Ok(Wakeup::Readable) => {}
            Ok(Wakeup::Closed) => return goodbye(&mut io).await,
            Err(_gone) => return,
        }
        let mut session = Box::new(builder.serve_connection(io, service));
        let finish = http1::Connection::graceful_shutdown;
        let mut pause = HibernateTimer::of(activity);
        // hyper, told to finish before it has a request, drops the bytes that are there already.
        let may_finish = || activity.requests() > before;
        let until =
            drive_session(running, Pin::new(&mut *session), may_finish, finish, |cx| pause.is_over(cx)).await;
        let parts = session.into_parts();
        if let SessionState::Ended(ended) = until {
            return finish_session(parts.io, activity, ended).await;
        }
        (io, service) = (parts.io, parts.service);
        io.reset(parts.read_buf);
        if let Some(error) = activity.head_error() {
            return send_error(io, &connection::reject_head(activity.connection(), error)).await;
        }
    }
}

/// The end of a connection whose session is over.
async fn finish_session<I: ChunkRead + Write + Unpin>(
    mut io: TrackedIo<I>,
    activity: &KeepAliveState,
    ended: hyper::Result<()>,
) {
    let refused = match &ended {
        Ok(()) => activity.is_closing(),
        // hyper has answered it.
        Err(error) if error.is_parse() => {
            connection::record_parse_error(activity.connection(), error);
            true
        }
        // The client left with no request unanswered, and perhaps half of one begun: it gets its goodbye,
        // which hyper leaves out.
        Err(error) if error.is_incomplete_message() && !activity.has_in_flight() => false,
        Err(_) => return,
    };
    // hyper leaves it out also where a request asked for an upgrade that it did not get.
    if !activity.is_write_closed() {
        goodbye(&mut io).await;
    }
    if refused {
        linger(io).await;
    }
}

/// Answers a head that hyper has not seen all of, and ends the connection.
async fn send_error<I: ChunkRead + Write + Unpin>(mut io: TrackedIo<I>, answer: &[u8]) {
    let mut sent = 0;
    while let Some(rest) = answer.get(sent..).filter(|rest| !rest.is_empty()) {
        match poll_fn(|cx| Pin::new(&mut io).poll_write(cx, rest)).await {
            Ok(n) if n > 0 => sent += n,
            _ => return,
        }
    }
    goodbye(&mut io).await;
    linger(io).await;
}

/// Reads the client out.
async fn linger<I: ChunkRead + Write + Unpin>(mut io: TrackedIo<I>) {
    let _gave_up = runtime::timeout(LINGER, io.discard(LINGER_BYTES)).await;
}

/// Ends our direction, as the protocol wants it.
async fn goodbye<I: Write + Unpin>(io: &mut I) {
    let _ended = poll_fn(|cx| Pin::new(&mut *io).poll_shutdown(cx)).await;
}

/// How a rest ended.
enum Wakeup {
    /// There is something to read.
    Readable,
    /// The client has left, or the worker drains: nothing more is to be served.
    Closed,
}

/// `served`: whether the connection has had an answer, and may be ended.
async fn hibernate<I: ChunkRead + Write + Unpin>(
    io: &mut TrackedIo<I>,
    running: &DrainGuard,
    served: bool,
) -> io::Result<Wakeup> {
    poll_fn(|cx| {
        // Bytes that are there first: they may be a request that crossed the stop.
        let heard = io.poll_readable(cx);
        if heard.is_pending() && served && running.poll_draining(cx).is_ready() {
            return Poll::Ready(Ok(Wakeup::Closed));
        }
        heard.map_ok(|heard| if heard { Wakeup::Readable } else { Wakeup::Closed })
    })
    .await
}

/// How far a session got.
enum SessionState {
    /// It is over.
    Ended(hyper::Result<()>),
    /// It need not go on before something is heard.
    Idle,
}

/// Polls the session to its end, or until it is `at_rest`; once the drain begins and it
/// `may_finish`, it is told to finish what runs, and then it ends.
async fn drive_session<S>(
    running: &DrainGuard,
    mut session: Pin<&mut S>,
    may_finish: impl Fn() -> bool,
    finish: impl Fn(Pin<&mut S>),
    mut at_rest: impl FnMut(&Context<'_>) -> bool,
) -> SessionState
where
    S: Future<Output = hyper::Result<()>>,
{
    let mut told = false;
    poll_fn(|cx| {
        if !told && running.poll_draining(cx).is_ready() && may_finish() {
            told = true;
            finish(session.as_mut());
        }
        match session.as_mut().poll(cx) {
            Poll::Ready(ended) => Poll::Ready(SessionState::Ended(ended)),
            Poll::Pending if !told && at_rest(cx) => Poll::Ready(SessionState::Idle),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}
