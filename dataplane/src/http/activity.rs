//! What goes on on one client connection: the requests being served, and whether anything is under way at all.
//!
//! [`super::observed`] reports what passes between the stream and hyper. The watchdog's phases follow from it, and so does the
//! moment at which a connection may rest ([`Pause`]), which is when nothing of hyper's needs to be kept, and what hyper may read
//! next ([`Activity::next`]).
//! Invariants: a connection is quiet only between two messages: all of the last answer has gone out, all of the last request
//! has come in, and not a byte of the next one. hyper gets a request's head only when nothing of an earlier request is in its
//! buffer, except behind a body in chunks, whose end only hyper knows.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};

use super::frames::Frames;
use super::head::HeadError;
use super::session::Protocol;
use crate::body::asked::{Asked, Source};
use crate::body::response::Body;
use crate::io::coarse_timer::CoarseTimer;
use crate::io::timeouts::Phase;
use crate::proxy::connection::Connection;
use crate::upstream::answer_body::AnswerError;

/// How many requests are being served, which is what the watchdog's phases follow from.
pub(crate) struct Activity {
    connection: Rc<Connection>,
    protocol: Protocol,
    active: Cell<usize>,
    /// How many requests have come; the last of them bears this number.
    requests: Cell<u64>,
    /// The request whose body has not been read to its end. HTTP/1 only, where requests come one by one.
    unread: Cell<Option<u64>>,
    /// Bytes have come since the last request began which may be a part of the next.
    begun: Cell<bool>,
    /// What was said may not have gone out.
    unsent: Cell<bool>,
    /// How much of the request's body hyper has not read. HTTP/1 only, like all that follows.
    left: Cell<u64>,
    /// hyper has a whole head that has not become a request yet.
    handed: Cell<bool>,
    /// A body in chunks has come: what hyper read behind it is known once hyper is taken apart.
    untracked: Cell<bool>,
    /// A body in chunks will not be read to its end.
    abandoned: Cell<bool>,
    /// Why no further head is read.
    refused: Cell<Option<HeadError>>,
    /// An answer that refuses its request ends the connection.
    closing: Cell<bool>,
    /// Our direction has ended.
    shut: Cell<bool>,
    /// The head begins with our names.
    spelt: Cell<bool>,
    /// Who waits for bytes that are there, but not for hyper yet.
    held: Cell<Option<Waker>>,
}

/// What hyper may read now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
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
pub(crate) struct Busy(Rc<Activity>);

impl Activity {
    pub(crate) fn new(connection: Rc<Connection>, protocol: Protocol) -> Rc<Self> {
        Rc::new(Self {
            connection,
            protocol,
            active: Cell::new(0),
            requests: Cell::new(0),
            unread: Cell::new(None),
            begun: Cell::new(false),
            unsent: Cell::new(false),
            left: Cell::new(0),
            handed: Cell::new(false),
            untracked: Cell::new(false),
            abandoned: Cell::new(false),
            refused: Cell::new(None),
            closing: Cell::new(false),
            shut: Cell::new(false),
            spelt: Cell::new(false),
            held: Cell::new(None),
        })
    }

    /// The connection.
    pub(crate) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// A request with this body has come.
    pub(crate) fn begin(self: &Rc<Self>, body: Source) -> (Asked, Busy) {
        let number = self.requests.get().wrapping_add(1);
        self.requests.set(number);
        self.active.set(self.active.get() + 1);
        self.unread.set((!body.is_end_stream()).then_some(number));
        self.begun.set(false);
        self.handed.set(false);
        if self.protocol == Protocol::H1 {
            match body.size_hint().exact() {
                Some(length) => self.left.set(length),
                None => self.untracked.set(true),
            }
        }
        self.connection.watched.enter_phase(Phase::Busy);
        (Asked::new(body, number, Rc::clone(self)), Busy(Rc::clone(self)))
    }

    /// All of the body of request `number` has come.
    pub(crate) fn has_come(&self, number: u64) {
        // What nobody wanted is still read out while the next request may have begun: it says
        // nothing about that one's body.
        if self.unread.get() == Some(number) {
            self.unread.set(None);
            self.release();
        }
    }

    /// The body of request `number` will not be read on.
    pub(crate) fn abandon(&self, number: u64) {
        // Where the next message would begin is not known then.
        if self.untracked.get() && self.unread.get() == Some(number) {
            self.abandoned.set(true);
            self.release();
        }
    }

    /// How many requests are being served.
    pub(crate) fn serving(&self) -> usize {
        self.active.get()
    }

    /// How many requests have come.
    pub(crate) fn requests(&self) -> u64 {
        self.requests.get()
    }

    /// Whether a request is being served.
    pub(crate) fn is_serving(&self) -> bool {
        self.active.get() > 0
    }

    /// Whether this is the pause between two requests, so that an HTTP/1 session begun anew would go on where this one is.
    fn is_quiet(&self) -> bool {
        !self.is_serving() && self.unread.get().is_none() && !self.begun.get() && !self.unsent.get()
    }

    /// What hyper may read now.
    pub(crate) fn next(&self) -> Next {
        if self.protocol == Protocol::H2 {
            Next::Frames
        } else if self.abandoned.get() {
            Next::Nothing
        } else if self.handed.get() || self.refused.get().is_some() {
            Next::End
        } else if self.untracked.get() {
            if self.unread.get().is_some() { Next::Body(u64::MAX) } else { Next::End }
        } else if self.left.get() > 0 {
            Next::Body(self.left.get())
        } else if self.is_serving() {
            Next::End
        } else {
            Next::Head
        }
    }

    /// hyper has read so much of the body.
    pub(crate) fn took(&self, bytes: usize) {
        self.left.set(self.left.get().saturating_sub(bytes as u64));
    }

    /// hyper has got the last byte of a head.
    pub(crate) fn hand(&self) {
        self.handed.set(true);
    }

    /// The next head is refused before hyper has seen all of it.
    pub(crate) fn refuse(&self, error: HeadError) {
        self.refused.set(Some(error));
    }

    /// Why the next head is refused, once all earlier answers have gone out.
    pub(crate) fn refused(&self) -> Option<HeadError> {
        self.refused.get().filter(|_| !self.unsent.get())
    }

    /// Whether an answer was given that refuses its request and ends the connection.
    pub(crate) fn is_closing(&self) -> bool {
        self.closing.get()
    }

    /// Wakes the session when hyper may read more.
    pub(crate) fn hold(&self, cx: &Context<'_>) {
        self.held.set(Some(cx.waker().clone()));
    }

    fn release(&self) {
        if let Some(waker) = self.held.take() {
            waker.wake();
        }
    }

    /// The head that is being read begins with our names ([`super::spelling`]).
    pub(crate) fn spell(&self) {
        self.spelt.set(true);
    }

    /// Whether the request that has come does.
    pub(crate) fn takes_spelling(&self) -> bool {
        self.spelt.take()
    }

    /// Whether hyper has ended our direction itself.
    pub(crate) fn is_shut(&self) -> bool {
        self.shut.get()
    }

    /// hyper ends our direction.
    pub(crate) fn shut(&self) {
        self.shut.set(true);
    }

    /// What was said may not have gone out.
    pub(crate) fn set_unsent(&self, unsent: bool) {
        self.unsent.set(unsent);
    }

    /// Whether hyper has to be taken apart before it may read the next head.
    fn is_over(&self) -> bool {
        let read = self.unread.get().is_none() && !self.handed.get();
        self.untracked.get() && read && !self.is_serving() && !self.unsent.get()
    }

    /// hyper was taken apart; nothing of a request is left in it.
    pub(crate) fn settle(&self) {
        self.untracked.set(false);
        self.handed.set(false);
        self.left.set(0);
    }

    /// Something of HTTP/1 came from the client.
    pub(crate) fn heard(&self) {
        if self.is_serving() {
            return;
        }
        self.begun.set(true);
        let watched = &self.connection.watched;
        // The first byte of a head starts its clock; more of them do not.
        if watched.phase() == Phase::Idle {
            watched.enter_phase(Phase::Head);
        }
    }

    /// Frames came from the client. Only a request ends the pause between two requests, so that no
    /// other frame prolongs it.
    pub(crate) fn framed(&self, frames: &Frames) {
        let watched = &self.connection.watched;
        watched.set_pending_head(frames.open_block());
        if frames.has_begun() && watched.phase() == Phase::Head {
            watched.enter_phase(Phase::Idle);
        }
    }
}

/// The time for which a connection must be quiet before it rests: taking hyper apart after each request would cost more than
/// it is worth where the next one comes soon. A client has to show first that it comes back, though: after its first request a
/// connection rests at once.
pub(crate) struct Pause<'a> {
    activity: &'a Activity,
    alarm: Option<CoarseTimer>,
}

impl<'a> Pause<'a> {
    pub(crate) fn of(activity: &'a Activity) -> Self {
        Self { activity, alarm: None }
    }

    /// Whether the connection has been quiet for as long as it must; if not, the task is woken when that may be so. The alarm is
    /// left alone while requests come and go, and set anew when it rings too early.
    pub(crate) fn is_over(&mut self, cx: &Context<'_>) -> bool {
        if self.activity.is_over() || self.activity.refused().is_some() {
            return true;
        }
        if !self.activity.is_quiet() {
            return false;
        }
        let connection = &self.activity.connection;
        let worker = connection.worker();
        let after = worker.shared.rules.rest_after;
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

impl Busy {
    /// The answer ends the connection, and what the client still sends does not matter.
    pub(crate) fn close(&self) {
        self.0.closing.set(true);
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let left = self.0.active.get().saturating_sub(1);
        self.0.active.set(left);
        if left == 0 {
            self.0.connection.watched.enter_phase(Phase::Idle);
            self.0.release();
        }
    }
}

/// An answer's body with the mark that its request is still being served.
pub(crate) struct Served {
    body: Body,
    _busy: Busy,
}

impl Served {
    pub(crate) fn new(body: Body, busy: Busy) -> Self {
        Self { body, _busy: busy }
    }
}

impl HttpBody for Served {
    type Data = Bytes;
    type Error = AnswerError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, AnswerError>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
