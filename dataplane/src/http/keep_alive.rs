//! What goes on on one client connection: the requests being served, and whether anything is under
//! way at all.
//!
//! [`super::observed`] reports what passes between the stream and hyper. The watchdog's phases
//! follow from it, and so does the moment at which a connection may rest ([`Pause`]), which is when
//! nothing of hyper's needs to be kept, and what hyper may read next ([`Activity::next`]).
//! Invariants: a connection is quiet only between two messages: all of the last answer has gone
//! out, all of the last request has come in, and not a byte of the next one. hyper gets a request's
//! head only when nothing of an earlier request is in its buffer, except behind a body in chunks,
//! whose end only hyper knows.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};

use super::head::HeadError;
use super::http2_frames::FrameScanner;
use super::server::HttpProtocol;
use crate::body::asked::{BodySource, IncomingBody};
use crate::body::response::ResponseBody;
use crate::io::coarse_timer::CoarseTimer;
use crate::io::timeouts::Phase;
use crate::proxy::connection::Connection;
use crate::upstream::response_body::UpstreamBodyError;

/// How many requests are being served, which is what the watchdog's phases follow from.
pub(crate) struct KeepAliveState {
    connection: Rc<Connection>,
    protocol: HttpProtocol,
    in_flight: Cell<usize>,
    /// How many requests have come; the last of them bears this number.
    requests: Cell<u64>,
    /// The request whose body has not been read to its end. HTTP/1 only, where requests come one by
    /// one.
    unread_body: Cell<Option<u64>>,
    /// Bytes have come since the last request began which may be a part of the next.
    head_started: Cell<bool>,
    /// What was said may not have gone out.
    unflushed: Cell<bool>,
    /// How much of the request's body hyper has not read. HTTP/1 only, like all that follows.
    body_remaining: Cell<u64>,
    /// hyper has a whole head that has not become a request yet.
    head_complete: Cell<bool>,
    /// A body in chunks has come: what hyper read behind it is known once hyper is taken apart.
    chunked_body: Cell<bool>,
    /// A body in chunks will not be read to its end.
    body_abandoned: Cell<bool>,
    /// Why no further head is read.
    head_error: Cell<Option<HeadError>>,
    /// An answer that refuses its request ends the connection.
    closing: Cell<bool>,
    /// Our direction has ended.
    write_closed: Cell<bool>,
    /// The head begins with our names.
    case_prefix: Cell<bool>,
    /// Who waits for bytes that are there, but not for hyper yet.
    read_waker: Cell<Option<Waker>>,
}

/// What hyper may read now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReadLimit {
    /// HTTP/2: everything.
    Frames,
    /// A head, or more of it.
    Head,
    /// At most so many bytes of a body.
    Body(u64),
    /// Only the end of the connection: the request in flight comes first.
    End,
    /// The end, whatever there is.
    Nothing,
}

/// One request being served, until its answer's body has ended.
pub(crate) struct InFlightGuard(Rc<KeepAliveState>);

impl KeepAliveState {
    pub(crate) fn new(connection: Rc<Connection>, protocol: HttpProtocol) -> Rc<Self> {
        Rc::new(Self {
            connection,
            protocol,
            in_flight: Cell::new(0),
            requests: Cell::new(0),
            unread_body: Cell::new(None),
            head_started: Cell::new(false),
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
        })
    }

    /// The connection.
    pub(crate) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// A request with this body has come.
    pub(crate) fn begin_request(self: &Rc<Self>, body: BodySource) -> (IncomingBody, InFlightGuard) {
        let number = self.requests.get().wrapping_add(1);
        self.requests.set(number);
        self.in_flight.set(self.in_flight.get() + 1);
        self.unread_body.set((!body.is_end_stream()).then_some(number));
        self.head_started.set(false);
        self.head_complete.set(false);
        if self.protocol == HttpProtocol::H1 {
            match body.size_hint().exact() {
                Some(length) => self.body_remaining.set(length),
                None => self.chunked_body.set(true),
            }
        }
        self.connection.watched.enter_phase(Phase::Busy);
        (IncomingBody::new(body, number, Rc::clone(self)), InFlightGuard(Rc::clone(self)))
    }

    /// All of the body of request `number` has come.
    pub(crate) fn finish_body(&self, number: u64) {
        // What nobody wanted is still read out while the next request may have begun: it says
        // nothing about that one's body.
        if self.unread_body.get() == Some(number) {
            self.unread_body.set(None);
            self.wake_read();
        }
    }

    /// The body of request `number` will not be read on.
    pub(crate) fn abandon_body(&self, number: u64) {
        // Where the next message would begin is not known then.
        if self.chunked_body.get() && self.unread_body.get() == Some(number) {
            self.body_abandoned.set(true);
            self.wake_read();
        }
    }

    /// How many requests are being served.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.get()
    }

    /// How many requests have come.
    pub(crate) fn requests(&self) -> u64 {
        self.requests.get()
    }

    /// Whether a request is being served.
    pub(crate) fn has_in_flight(&self) -> bool {
        self.in_flight.get() > 0
    }

    /// Whether this is the pause between two requests, so that an HTTP/1 session begun anew would
    /// go on where this one is.
    fn is_idle(&self) -> bool {
        !self.has_in_flight()
            && self.unread_body.get().is_none()
            && !self.head_started.get()
            && !self.unflushed.get()
    }

    /// What hyper may read now.
    pub(crate) fn read_limit(&self) -> ReadLimit {
        if self.protocol == HttpProtocol::H2 {
            ReadLimit::Frames
        } else if self.body_abandoned.get() {
            ReadLimit::Nothing
        } else if self.head_complete.get() || self.head_error.get().is_some() {
            ReadLimit::End
        } else if self.chunked_body.get() {
            if self.unread_body.get().is_some() { ReadLimit::Body(u64::MAX) } else { ReadLimit::End }
        } else if self.body_remaining.get() > 0 {
            ReadLimit::Body(self.body_remaining.get())
        } else if self.has_in_flight() {
            ReadLimit::End
        } else {
            ReadLimit::Head
        }
    }

    /// hyper has read so much of the body.
    pub(crate) fn consume_body(&self, bytes: usize) {
        self.body_remaining.set(self.body_remaining.get().saturating_sub(bytes as u64));
    }

    /// hyper has got the last byte of a head.
    pub(crate) fn complete_head(&self) {
        self.head_complete.set(true);
    }

    /// The next head is refused before hyper has seen all of it.
    pub(crate) fn reject_head(&self, error: HeadError) {
        self.head_error.set(Some(error));
    }

    /// Why the next head is refused, once all earlier answers have gone out.
    pub(crate) fn head_error(&self) -> Option<HeadError> {
        self.head_error.get().filter(|_| !self.unflushed.get())
    }

    /// Whether an answer was given that refuses its request and ends the connection.
    pub(crate) fn is_closing(&self) -> bool {
        self.closing.get()
    }

    /// Wakes the session when hyper may read more.
    pub(crate) fn set_read_waker(&self, cx: &Context<'_>) {
        self.read_waker.set(Some(cx.waker().clone()));
    }

    fn wake_read(&self) {
        if let Some(waker) = self.read_waker.take() {
            waker.wake();
        }
    }

    /// The head that is being read begins with our names ([`super::spelling`]).
    pub(crate) fn set_case_prefix(&self) {
        self.case_prefix.set(true);
    }

    /// Whether the request that has come does.
    pub(crate) fn take_case_prefix(&self) -> bool {
        self.case_prefix.take()
    }

    /// Whether hyper has ended our direction itself.
    pub(crate) fn is_write_closed(&self) -> bool {
        self.write_closed.get()
    }

    /// hyper ends our direction.
    pub(crate) fn close_write(&self) {
        self.write_closed.set(true);
    }

    /// What was said may not have gone out.
    pub(crate) fn set_unsent(&self, unsent: bool) {
        self.unflushed.set(unsent);
    }

    /// Whether hyper has to be taken apart before it may read the next head.
    fn needs_new_session(&self) -> bool {
        let read = self.unread_body.get().is_none() && !self.head_complete.get();
        self.chunked_body.get() && read && !self.has_in_flight() && !self.unflushed.get()
    }

    /// hyper was taken apart; nothing of a request is left in it.
    pub(crate) fn reset(&self) {
        self.chunked_body.set(false);
        self.head_complete.set(false);
        self.body_remaining.set(0);
    }

    /// Something of HTTP/1 came from the client.
    pub(crate) fn on_read(&self) {
        if self.has_in_flight() {
            return;
        }
        self.head_started.set(true);
        let watched = &self.connection.watched;
        // The first byte of a head starts its clock; more of them do not.
        if watched.phase() == Phase::Idle {
            watched.enter_phase(Phase::Head);
        }
    }

    /// Frames came from the client. Only a request ends the pause between two requests, so that no
    /// other frame prolongs it.
    pub(crate) fn on_frames(&self, frames: &FrameScanner) {
        let watched = &self.connection.watched;
        watched.set_pending_head(frames.open_header_block());
        if frames.has_begun() && watched.phase() == Phase::Head {
            watched.enter_phase(Phase::Idle);
        }
    }
}

/// The time for which a connection must be quiet before it rests: taking hyper apart after each
/// request would cost more than it is worth where the next one comes soon. A client has to show
/// first that it comes back, though: after its first request a connection rests at once.
pub(crate) struct HibernateTimer<'a> {
    activity: &'a KeepAliveState,
    alarm: Option<CoarseTimer>,
}

impl<'a> HibernateTimer<'a> {
    pub(crate) fn of(activity: &'a KeepAliveState) -> Self {
        Self { activity, alarm: None }
    }

    /// Whether the connection has been quiet for as long as it must; if not, the task is woken when
    /// that may be so. The alarm is left alone while requests come and go, and set anew when it
    /// rings too early.
    pub(crate) fn is_over(&mut self, cx: &Context<'_>) -> bool {
        if self.activity.needs_new_session() || self.activity.head_error().is_some() {
            return true;
        }
        if !self.activity.is_idle() {
            return false;
        }
        let connection = &self.activity.connection;
        let worker = connection.worker();
        let after = worker.shared.config.idle_release_timeout;
        if after.is_zero() || self.activity.requests.get() <= 1 {
            return true;
        }
        let alarm = self.alarm.get_or_insert_with(|| worker.watchdog.timers().after(after));
        loop {
            if alarm.poll(cx).is_pending() {
                return false;
            }
            if connection.watched.phase_has_lasted(after) {
                return true;
            }
            alarm.reset(after);
        }
    }
}

impl InFlightGuard {
    /// The answer ends the connection, and what the client still sends does not matter.
    pub(crate) fn close(&self) {
        self.0.closing.set(true);
    }
}

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        let left = self.0.in_flight.get().saturating_sub(1);
        self.0.in_flight.set(left);
        if left == 0 {
            self.0.connection.watched.enter_phase(Phase::Idle);
            self.0.wake_read();
        }
    }
}

/// An answer's body with the mark that its request is still being served.
pub(crate) struct TrackedResponseBody {
    body: ResponseBody,
    _busy: InFlightGuard,
}

impl TrackedResponseBody {
    pub(crate) fn new(body: ResponseBody, busy: InFlightGuard) -> Self {
        Self { body, _busy: busy }
    }
}

impl HttpBody for TrackedResponseBody {
    type Data = Bytes;
    type Error = UpstreamBodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UpstreamBodyError>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
