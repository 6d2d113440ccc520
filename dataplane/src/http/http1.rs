//! HTTP/1 on one client connection, on hyper's server.
//!
//! hyper's buffers take some 20 KiB. They exist from the first byte of a request until the
//! connection has been idle for `idle_release_timeout` ([`HibernateTimer`]); an idle connection
//! hibernates without them, and the next byte starts hyper again.

use std::cell::Cell;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Version};
use hyper::body::{Body, Incoming};
use hyper::rt::{Read, Write};
use hyper::server::conn::http1::{Builder, Connection};
use hyper::service::{HttpService, service_fn};

use super::RequestHandler;
use super::incoming_body::{BodySource, IncomingBody};
use super::keep_alive::{HibernateTimer, InFlightGuard, KeepAliveState, TrackedResponseBody};
use super::server::HttpSettings;
use super::tracked_io::TrackedIo;
use super::{error_page, header_case, interim};
use crate::io::chunk_read::ChunkRead;
use crate::io::linger::{self, LingerLimits};
use crate::io::timeouts::Phase;
use crate::lifecycle::drain::DrainGuard;

/// The tunnel of a request that has switched protocols. The request stays in flight, so that hyper
/// reads nothing of the new protocol.
type SwitchedRequest<H> = Cell<Option<(<H as RequestHandler>::Tunnel, InFlightGuard)>>;

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
    let HttpSettings { head_limits, preserve_header_case, .. } = state.server().settings.get();
    let mut builder = Builder::new();
    builder
        .header_read_timeout(None)
        .max_buf_size(head_limits.buffer_size())
        .max_headers(head_limits.max_fields() + header_case::FIELDS)
        .preserve_header_case(preserve_header_case)
        .title_case_headers(preserve_header_case);
    let switched = Rc::<SwitchedRequest<H>>::default();
    let (requests, requested, switching) = (Rc::clone(state), Rc::clone(&handler), Rc::clone(&switched));
    let service = service_fn(move |request: Request<Incoming>| {
        let (state, handler, switching) =
            (Rc::clone(&requests), Rc::clone(&requested), Rc::clone(&switching));
        let (mut head, body) = request.into_parts();
        if state.take_case_prefix() {
            header_case::strip(&mut head.headers);
        }
        // HTTP/1.0 has no interim responses.
        let interim = (head.version == Version::HTTP_11).then(|| state.interim_responses());
        let (body, in_flight) = IncomingBody::begin_request(BodySource::Http1(body), interim.clone(), &state);
        // Boxed: hyper reserves space for the future for as long as the connection is open.
        Box::pin(async move {
            let handling = pin!(handler.handle(Request::from_parts(head, body)));
            let send = |response| state.queue_interim(&response);
            let mut response = interim::handle_and_send(handling, interim.as_ref(), send).await;
            if error_page::closes_connection(&response) {
                in_flight.close_connection();
            }
            if state.server().lame_duck.get() {
                error_page::set_connection_close(&mut response);
            }
            let mut in_flight = Some(in_flight);
            if let Some((tunnel, _no_body)) = handler.take_tunnel(&mut response) {
                switching.set(in_flight.take().map(|in_flight| (tunnel, in_flight)));
            }
            Ok::<_, Infallible>(response.map(|body| TrackedResponseBody::new(body, in_flight)))
        })
    });
    serve_and_hibernate(io, service, &builder, state, &*handler, &switched, drain).await;
}

/// Hibernates until the client sends something, serves with hyper until the connection is idle, and
/// hibernates again.
async fn serve_and_hibernate<I, S, H>(
    mut io: TrackedIo<I>,
    mut service: S,
    builder: &Builder,
    state: &KeepAliveState,
    handler: &H,
    switched: &SwitchedRequest<H>,
    drain: &DrainGuard,
) where
    I: Read + Write + ChunkRead + Unpin + 'static,
    S: HttpService<Incoming, ResBody = TrackedResponseBody<H::Body>, Error = Infallible>,
    H: RequestHandler,
{
    loop {
        // A connection that has just been accepted gets its first response, however late in a
        // drain.
        let served = state.requests();
        match hibernate(&mut io, drain, served > 0).await {
            Ok(Wakeup::Readable) => {}
            Ok(Wakeup::Close) => return drop(linger::shutdown(&mut io).await),
            Err(_connection_lost) => return,
        }
        let mut connection = Box::new(builder.serve_connection(io, service));
        let mut timer = HibernateTimer::new(state);
        // hyper drops a half-read head when a graceful shutdown comes before the request.
        let may_drain = || state.requests() > served;
        let driven = drive(drain, Pin::new(&mut *connection), may_drain, |cx| timer.is_over(cx)).await;
        let parts = connection.into_parts();
        let unused = parts.read_buf;
        if let ServeState::Done(result) = driven {
            // By our own mark: hyper leaves a connection to the next protocol after every request
            // for an upgrade, whatever the response was.
            return match (result, switched.take()) {
                (Ok(()), Some(switched)) => relay(parts.io, unused, state, handler, switched).await,
                (result, _) => finish(parts.io, state, handler, result).await,
            };
        }
        (io, service) = (parts.io, parts.service);
        io.reset(unused);
        if let Some(error) = state.head_error() {
            return send_error(io, &handler.reject_head(error)).await;
        }
    }
}

/// Relays a connection that has switched protocols. `unused`: what hyper has read behind the
/// request.
async fn relay<I, H>(
    mut io: TrackedIo<I>,
    unused: Bytes,
    state: &KeepAliveState,
    handler: &H,
    (tunnel, in_flight): (H::Tunnel, InFlightGuard),
) where
    I: ChunkRead + Write + Unpin,
    H: RequestHandler,
{
    io.reset(unused);
    drop(in_flight);
    state.timeouts().enter_phase(Phase::Relay);
    Box::pin(handler.relay(io, tunnel)).await;
}

/// Closes a connection that hyper has finished with.
async fn finish<I, H>(mut io: TrackedIo<I>, state: &KeepAliveState, handler: &H, result: hyper::Result<()>)
where
    I: ChunkRead + Write + Unpin,
    H: RequestHandler,
{
    let is_rejected = match &result {
        Ok(()) => state.is_closing(),
        // hyper has sent the response.
        Err(error) if error.is_parse() => {
            handler.record_parse_error(error);
            true
        }
        // The client closed without a request in flight, perhaps within a head. hyper leaves out
        // the shutdown of our direction.
        Err(error) if error.is_incomplete_message() && !state.has_in_flight() => false,
        Err(_) => return,
    };
    // hyper leaves it out, too, after a request for an upgrade that it did not get.
    if !state.is_write_closed() {
        drop(linger::shutdown(&mut io).await);
    }
    // The client may still be sending: without this, closing would reset the connection and lose
    // the response.
    if is_rejected {
        linger::discard(&mut io, LingerLimits::REQUEST).await;
    }
}

/// Responds to a head that was rejected before hyper had all of it, and closes the connection.
async fn send_error<I: ChunkRead + Write + Unpin>(mut io: TrackedIo<I>, response: &[u8]) {
    let mut sent = 0;
    while let Some(rest) = response.get(sent..).filter(|rest| !rest.is_empty()) {
        match poll_fn(|cx| Pin::new(&mut io).poll_write(cx, rest)).await {
            Ok(n) if n > 0 => sent += n,
            _ => return,
        }
    }
    drop(linger::shutdown(&mut io).await);
    linger::discard(&mut io, LingerLimits::REQUEST).await;
}

/// Why a hibernating connection wakes up.
enum Wakeup {
    /// The client has sent something.
    Readable,
    /// The client has closed, or the connection drains.
    Close,
}

/// `may_close`: whether the connection has had a response, so that a drain may close it.
async fn hibernate<I: ChunkRead + Write + Unpin>(
    io: &mut TrackedIo<I>,
    drain: &DrainGuard,
    may_close: bool,
) -> io::Result<Wakeup> {
    poll_fn(|cx| {
        // Data first: it may be a request that the client sent before it saw the drain.
        let readable = io.poll_readable(cx);
        if readable.is_pending() && may_close && drain.poll_stopping(cx).is_ready() {
            return Poll::Ready(Ok(Wakeup::Close));
        }
        readable.map_ok(|readable| if readable { Wakeup::Readable } else { Wakeup::Close })
    })
    .await
}

/// How hyper's connection left [`drive`].
enum ServeState {
    Done(hyper::Result<()>),
    /// The connection may hibernate.
    Idle,
}

/// Drives hyper's connection to its end, or until `is_idle`. Once the drain has begun and
/// `may_drain`, hyper shuts down gracefully, and its connection comes to its end.
async fn drive<I, S>(
    drain: &DrainGuard,
    mut connection: Pin<&mut Connection<I, S>>,
    may_drain: impl Fn() -> bool,
    mut is_idle: impl FnMut(&Context<'_>) -> bool,
) -> ServeState
where
    I: Read + Write + Unpin + 'static,
    S: HttpService<Incoming>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    S::ResBody: Body + 'static,
    <S::ResBody as Body>::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let mut draining = false;
    poll_fn(|cx| {
        if !draining && drain.poll_stopping(cx).is_ready() && may_drain() {
            draining = true;
            connection.as_mut().graceful_shutdown();
        }
        match connection.as_mut().poll(cx) {
            Poll::Ready(result) => Poll::Ready(ServeState::Done(result)),
            Poll::Pending if !draining && is_idle(cx) => Poll::Ready(ServeState::Idle),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}
