//! The state of a connection between and during requests: the requests in flight, what hyper may
//! read next, and when the connection is idle.
//!
//! `TrackedIo`, `IncomingBody` and [`TrackedResponseBody`] report what passes. From that follow the
//! phases of the connection's timeouts, the limit on hyper's next read ([`ReadLimit`]) and the
//! moment at which an HTTP/1 connection may hibernate ([`HibernateTimer`]).
//!
//! Invariants: an HTTP/1 connection is idle only between two messages: the last response is
//! flushed, the last request is read to its end, and no byte of the next one is read. hyper gets
//! the head of a request only while its buffer holds nothing of an earlier one, except after a
//! chunked body, whose end only hyper knows.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::Response;
use hyper::body::{Body, Frame, SizeHint};

use super::head::HeadError;
use super::http2::frames::FrameScanner;
use super::interim::{self, InterimResponses};
use super::server::{HttpProtocol, HttpServer};
use crate::io::coarse_timer::CoarseTimer;
use crate::io::timeouts::{Phase, TimeoutHandle};

/// The state of one connection.
pub(super) struct KeepAliveState {
    server: Rc<HttpServer>,
    timeouts: TimeoutHandle,
    protocol: HttpProtocol,
    in_flight: Cell<usize>,
    /// Requests so far; the number of the last one.
    requests: Cell<u64>,
    /// The request whose body is not read to its end. HTTP/1 only: its requests come one by one.
    unread_body: Cell<Option<u64>>,
    /// Bytes were read since the last request began that may belong to the next head.
    head_started: Cell<bool>,
    /// Of HTTP/2: the frames of data that were small.
    small_frames: Cell<u32>,
    /// Written data may not be flushed.
    unflushed: Cell<bool>,
    /// Bytes of the request's body that hyper has not read. HTTP/1 only, like all that follows.
    body_remaining: Cell<u64>,
    /// hyper has a whole head that has not become a request yet.
    head_complete: Cell<bool>,
    /// A chunked body was read: what hyper has read after it is known only from its remaining
    /// buffer.
    chunked_body: Cell<bool>,
    /// A chunked body will not be read to its end.
    body_abandoned: Cell<bool>,
    /// Why the next head is rejected.
    head_error: Cell<Option<HeadError>>,
    /// The response to a rejected request closes the connection.
    closing: Cell<bool>,
    write_closed: Cell<bool>,
    /// The head begins with our header names ([`super::header_case`]).
    case_prefix: Cell<bool>,
    /// Waits until hyper may read more.
    read_waker: Cell<Option<Waker>>,
    /// The channel of the last request, for the next one.
    interim: Cell<Option<InterimResponses>>,
    /// Encoded interim responses that precede whatever hyper writes next.
    interim_bytes: RefCell<Vec<u8>>,
}

/// What hyper or `h2` may read next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReadLimit {
    /// Everything: HTTP/2.
    Unlimited,
    /// A head, or the rest of one.
    Head,
    /// Up to this many bytes of a body.
    Body(u64),
    /// Nothing but EOF: the request in flight comes first.
    EofOnly,
    /// EOF, whatever the client sends.
    Eof,
}

/// A request in flight, until its response body has ended.
pub(super) struct InFlightGuard(Rc<KeepAliveState>);

impl KeepAliveState {
    pub(super) fn new(server: Rc<HttpServer>, timeouts: TimeoutHandle, protocol: HttpProtocol) -> Rc<Self> {
        Rc::new(Self {
            server,
            timeouts,
            protocol,
            in_flight: Cell::new(0),
            requests: Cell::new(0),
            unread_body: Cell::new(None),
            head_started: Cell::new(false),
            small_frames: Cell::new(0),
            unflushed: Cell::new(false),
            body_remaining: Cell::new(0),
            head_complete: Cell::new(false),
            chunked_body: Cell::new(false),
            body_abandoned: Cell::new(false),
            head_error: Cell::new(None),
            closing: Cell::new(false),
            write_closed: Cell::new(false),
            case_prefix: Cell::new(false),
            read_waker: Cell::new(None),
            interim: Cell::new(None),
            interim_bytes: RefCell::default(),
        })
    }

    pub(super) fn server(&self) -> &HttpServer {
        &self.server
    }

    pub(super) fn timeouts(&self) -> &TimeoutHandle {
        &self.timeouts
    }

    /// Begins a request with a body of this length (`None`: unknown). Returns the request's number.
    pub(super) fn begin_request(self: &Rc<Self>, body_length: Option<u64>) -> (u64, InFlightGuard) {
        let number = self.requests.get().wrapping_add(1);
        self.requests.set(number);
        self.in_flight.set(self.in_flight.get() + 1);
        self.unread_body.set((body_length != Some(0)).then_some(number));
        self.head_started.set(false);
        self.head_complete.set(false);
        if self.protocol == HttpProtocol::H1 {
            match body_length {
                Some(length) => self.body_remaining.set(length),
                None => self.chunked_body.set(true),
            }
        }
        self.timeouts.enter_phase(Phase::Busy);
        (number, InFlightGuard(Rc::clone(self)))
    }

    /// The channel for the interim responses of the next request.
    pub(super) fn interim_responses(&self) -> InterimResponses {
        let bytes_max = self.server.settings.get().head_limits.head;
        if self.protocol == HttpProtocol::H2 {
            return InterimResponses::new(bytes_max);
        }
        let interim = match self.interim.take() {
            Some(last) => last.renew(bytes_max),
            None => InterimResponses::new(bytes_max),
        };
        self.interim.set(Some(interim.clone()));
        interim
    }

    /// Has an interim response sent. It is dropped while the client has not taken what precedes it:
    /// it is of no use late, and must not pile up.
    pub(super) fn queue_interim(&self, response: &Response<()>) {
        if !self.unflushed.get() {
            interim::encode(response, &mut self.interim_bytes.borrow_mut());
        }
    }

    /// Interim responses that are not written yet.
    pub(super) fn interim_bytes(&self) -> &RefCell<Vec<u8>> {
        &self.interim_bytes
    }

    /// The body of request `number` is read to its end.
    pub(super) fn finish_body(&self, number: u64) {
        // A discarded body may end after the next request has begun, and says nothing about that
        // one's.
        if self.unread_body.get() == Some(number) {
            self.unread_body.set(None);
            self.wake_read();
        }
    }

    /// The body of request `number` will not be read further.
    pub(super) fn abandon_body(&self, number: u64) {
        // Where the next message begins after a chunked body is unknown then.
        if self.chunked_body.get() && self.unread_body.get() == Some(number) {
            self.body_abandoned.set(true);
            self.wake_read();
        }
    }

    /// The number of requests in flight.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.get()
    }

    pub(super) fn has_in_flight(&self) -> bool {
        self.in_flight.get() > 0
    }

    /// The number of requests so far.
    pub(super) fn requests(&self) -> u64 {
        self.requests.get()
    }

    /// Whether the connection is between two requests, so that a new hyper connection would
    /// continue where this one is.
    fn is_idle(&self) -> bool {
        !self.has_in_flight()
            && self.unread_body.get().is_none()
            && !self.head_started.get()
            && !self.unflushed.get()
    }

    pub(super) fn read_limit(&self) -> ReadLimit {
        if self.protocol == HttpProtocol::H2 {
            ReadLimit::Unlimited
        } else if self.body_abandoned.get() {
            ReadLimit::Eof
        } else if self.head_complete.get() || self.head_error.get().is_some() {
            ReadLimit::EofOnly
        } else if self.chunked_body.get() {
            if self.unread_body.get().is_some() { ReadLimit::Body(u64::MAX) } else { ReadLimit::EofOnly }
        } else if self.body_remaining.get() > 0 {
            ReadLimit::Body(self.body_remaining.get())
        } else if self.has_in_flight() {
            ReadLimit::EofOnly
        } else {
            ReadLimit::Head
        }
    }

    /// hyper has read `bytes` of the body.
    pub(super) fn consume_body(&self, bytes: usize) {
        self.body_remaining.set(self.body_remaining.get().saturating_sub(bytes as u64));
    }

    /// hyper has read the last byte of a head.
    pub(super) fn complete_head(&self) {
        self.head_complete.set(true);
    }

    /// Rejects the next head before hyper has read all of it.
    pub(super) fn reject_head(&self, error: HeadError) {
        self.head_error.set(Some(error));
    }

    /// Why the next head is rejected, once all earlier responses are flushed.
    pub(super) fn head_error(&self) -> Option<HeadError> {
        self.head_error.get().filter(|_| !self.unflushed.get())
    }

    /// Whether a response rejects its request and closes the connection.
    pub(super) fn is_closing(&self) -> bool {
        self.closing.get()
    }

    /// Wakes the task when hyper may read more.
    pub(super) fn set_read_waker(&self, cx: &Context<'_>) {
        self.read_waker.set(Some(cx.waker().clone()));
    }

    fn wake_read(&self) {
        if let Some(waker) = self.read_waker.take() {
            waker.wake();
        }
    }

    /// The head that is being read begins with our header names ([`super::header_case`]).
    pub(super) fn set_case_prefix(&self) {
        self.case_prefix.set(true);
    }

    /// Whether the head of the request that has begun does.
    pub(super) fn take_case_prefix(&self) -> bool {
        self.case_prefix.take()
    }

    pub(super) fn is_write_closed(&self) -> bool {
        self.write_closed.get()
    }

    /// hyper shuts down our direction.
    pub(super) fn close_write(&self) {
        self.write_closed.set(true);
    }

    pub(super) fn set_unflushed(&self, unflushed: bool) {
        self.unflushed.set(unflushed);
    }

    /// Whether the next head needs a new hyper connection: what this one has read after a chunked
    /// body must be taken out of it first.
    fn needs_new_connection(&self) -> bool {
        let is_read = self.unread_body.get().is_none() && !self.head_complete.get();
        self.chunked_body.get() && is_read && !self.has_in_flight() && !self.unflushed.get()
    }

    /// The hyper connection was taken apart; nothing of a request is left in it.
    pub(super) fn reset(&self) {
        self.chunked_body.set(false);
        self.head_complete.set(false);
        self.body_remaining.set(0);
        self.interim.set(None);
    }

    /// Bytes of HTTP/1 were read from the client.
    pub(super) fn on_read(&self) {
        if self.has_in_flight() {
            return;
        }
        self.head_started.set(true);
        // The first byte of a head starts its timeout; later bytes do not restart it.
        if self.timeouts.phase() == Phase::Idle {
            self.timeouts.enter_phase(Phase::Head);
        }
    }

    /// The small frames of data of an HTTP/2 connection so far.
    pub(super) fn small_frames(&self) -> u32 {
        self.small_frames.get()
    }

    /// Frames of HTTP/2 were read from the client. Only a request ends the idle phase, so that
    /// other frames do not prolong it.
    pub(super) fn on_frames(&self, frames: &FrameScanner) {
        self.small_frames.set(frames.small_frames());
        self.timeouts.set_pending_head(frames.open_header_block());
        if frames.has_begun() && self.timeouts.phase() == Phase::Head {
            self.timeouts.enter_phase(Phase::Idle);
        }
    }
}

/// The time for which a connection must be idle before it hibernates: a new hyper connection for
/// each request would cost more than it saves where the next one comes soon. A client must show
/// first that it sends another one: after its first request a connection hibernates at once.
pub(super) struct HibernateTimer<'a> {
    state: &'a KeepAliveState,
    timer: Option<CoarseTimer>,
}

impl<'a> HibernateTimer<'a> {
    pub(super) fn new(state: &'a KeepAliveState) -> Self {
        Self { state, timer: None }
    }

    /// Whether the connection may hibernate now; if not, the task is woken when that may have
    /// changed. Requests do not reset the timer: it is reset when it fires too early.
    pub(super) fn is_over(&mut self, cx: &Context<'_>) -> bool {
        let state = self.state;
        if state.needs_new_connection() || state.head_error().is_some() {
            return true;
        }
        if !state.is_idle() {
            return false;
        }
        let timeout = state.server.settings.get().idle_release_timeout;
        if timeout.is_zero() || state.requests.get() <= 1 {
            return true;
        }
        let timer = self.timer.get_or_insert_with(|| state.server.timers.after(timeout));
        loop {
            if timer.poll(cx).is_pending() {
                return false;
            }
            if state.timeouts.phase_has_lasted(timeout) {
                return true;
            }
            timer.reset(timeout);
        }
    }
}

impl InFlightGuard {
    /// The response closes the connection, and what the client still sends is discarded.
    pub(super) fn close_connection(&self) {
        self.0.closing.set(true);
    }
}

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        let state = &self.0;
        let left = state.in_flight.get().saturating_sub(1);
        state.in_flight.set(left);
        if left == 0 {
            state.timeouts.enter_phase(Phase::Idle);
            state.wake_read();
        }
    }
}

/// A response body that keeps its request in flight.
pub(super) struct TrackedResponseBody<B> {
    body: B,
    /// `None`: a tunnel has it.
    _in_flight: Option<InFlightGuard>,
}

impl<B> TrackedResponseBody<B> {
    pub(super) fn new(body: B, in_flight: Option<InFlightGuard>) -> Self {
        Self { body, _in_flight: in_flight }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for TrackedResponseBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
