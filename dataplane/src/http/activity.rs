//! What goes on on one client connection: the requests being served, and whether anything is under way at all.
//!
//! Stands between the stream and hyper, and sees all that passes. The watchdog's phases follow from it, and so does the
//! moment at which a connection may rest ([`Pause`]), which is when nothing of hyper's needs to be kept.
//! Invariant: a connection is quiet only between two messages: all of the last answer has gone out, all of the last request
//! has come in, and not a byte of the next one.

use std::{
    cell::Cell,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use bytes::{Buf, Bytes};
use hyper::{
    body::{Body as HttpBody, Frame, Incoming, SizeHint},
    rt::{Read, ReadBufCursor, Write},
};

use super::{body::Body, session::Protocol};
use crate::{
    connection::Connection,
    net::{
        alarm::Alarm,
        lend::{Chunk, Lend},
        watchdog::Phase,
    },
    upstream::answer_body::AnswerError,
};

/// How many requests are being served, which is what the watchdog's phases follow from.
pub(super) struct Activity {
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
}

/// One request being served, until its answer's body has ended.
pub(super) struct Busy(Rc<Activity>);

impl Activity {
    pub(super) fn new(connection: Rc<Connection>, protocol: Protocol) -> Rc<Self> {
        Rc::new(Self {
            connection,
            protocol,
            active: Cell::new(0),
            requests: Cell::new(0),
            unread: Cell::new(None),
            begun: Cell::new(false),
            unsent: Cell::new(false),
        })
    }

    /// A request with this body has come.
    pub(super) fn begin(self: &Rc<Self>, body: Incoming) -> (Asked, Busy) {
        let number = self.requests.get().wrapping_add(1);
        self.requests.set(number);
        self.active.set(self.active.get() + 1);
        self.unread.set((!body.is_end_stream()).then_some(number));
        self.begun.set(false);
        self.connection.watched.enter(Phase::Busy);
        (Asked { body, number, activity: Rc::clone(self) }, Busy(Rc::clone(self)))
    }

    /// Whether a request is being served.
    pub(super) fn is_serving(&self) -> bool {
        self.active.get() > 0
    }

    /// Whether this is the pause between two requests, so that an HTTP/1 session begun anew would go on where this one is.
    fn is_quiet(&self) -> bool {
        !self.is_serving() && self.unread.get().is_none() && !self.begun.get() && !self.unsent.get()
    }

    /// Something came from the client.
    fn heard(&self) {
        if self.is_serving() {
            return;
        }
        self.begun.set(true);
        let watched = &self.connection.watched;
        match self.protocol {
            // The first byte of a head starts its clock; more of them do not.
            Protocol::H1 if watched.phase() == Phase::Idle => watched.enter(Phase::Head),
            Protocol::H1 => {}
            Protocol::H2 => watched.enter(Phase::Idle),
        }
    }
}

/// The time for which a connection must be quiet before it rests: taking hyper apart after each request would cost more than
/// it is worth where the next one comes soon. A client has to show first that it comes back, though: after its first request a
/// connection rests at once.
pub(super) struct Pause<'a> {
    activity: &'a Activity,
    alarm: Option<Alarm>,
}

impl<'a> Pause<'a> {
    pub(super) fn of(activity: &'a Activity) -> Self {
        Self { activity, alarm: None }
    }

    /// Whether the connection has been quiet for as long as it must; if not, the task is woken when that may be so. The alarm is
    /// left alone while requests come and go, and set anew when it rings too early.
    pub(super) fn is_over(&mut self, cx: &Context<'_>) -> bool {
        if !self.activity.is_quiet() {
            return false;
        }
        let connection = &self.activity.connection;
        let worker = connection.worker();
        let after = worker.shared.rules.rest_after;
        if after.is_zero() || self.activity.requests.get() <= 1 {
            return true;
        }
        let alarm = self.alarm.get_or_insert_with(|| worker.watchdog.alarms().after(after));
        loop {
            if alarm.poll(cx).is_pending() {
                return false;
            }
            if connection.watched.has_lasted(after) {
                return true;
            }
            alarm.reset(after);
        }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let left = self.0.active.get().saturating_sub(1);
        self.0.active.set(left);
        if left == 0 {
            self.0.connection.watched.enter(Phase::Idle);
        }
    }
}

/// A stream that tells the activity what passes.
pub(super) struct Observed<I> {
    io: I,
    /// Came before the rest, and is read first.
    left_over: Bytes,
    activity: Rc<Activity>,
}

impl<I: Lend + Write + Unpin> Observed<I> {
    pub(super) fn new(io: I, activity: Rc<Activity>) -> Self {
        Self { io, left_over: Bytes::new(), activity }
    }

    /// Takes back what a reader took and did not use, and keeps nothing that is not needed for it.
    pub(super) fn settle(&mut self, unused: Bytes) {
        // Without a byte in it, it would still hold the whole buffer it was cut from.
        self.left_over = if unused.is_empty() { Bytes::new() } else { unused };
        self.io.settle();
    }

    /// Waits until there is something to read, and says whether there is or the client has left. What waits to be sent is sent
    /// meanwhile. Holds no buffer but that of the read in flight.
    ///
    /// # Errors
    /// As the read or the write.
    pub(super) fn poll_heard(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        if self.left_over.has_remaining() {
            return Poll::Ready(Ok(true));
        }
        match self.io.poll_chunk(cx) {
            Poll::Ready(Ok(Chunk::Data(_))) => Poll::Ready(Ok(true)),
            // Nothing was cut off between two requests.
            Poll::Ready(Ok(Chunk::End | Chunk::Cut)) => Poll::Ready(Ok(false)),
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => match Pin::new(&mut self.io).poll_flush(cx) {
                Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
            },
        }
    }
}

impl<I: Read + Unpin> Read for Observed<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let read = if self.left_over.has_remaining() {
            let n = self.left_over.len().min(buf.remaining());
            buf.put_slice(&self.left_over.split_to(n));
            Poll::Ready(Ok(()))
        } else {
            Pin::new(&mut self.io).poll_read(cx, buf)
        };
        if read.is_ready() {
            self.activity.heard();
        }
        read
    }
}

impl<I: Write + Unpin> Write for Observed<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.activity.unsent.set(true);
        Pin::new(&mut self.io).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.io).poll_flush(cx);
        self.activity.unsent.set(!matches!(flushed, Poll::Ready(Ok(()))));
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.activity.unsent.set(true);
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.activity.unsent.set(true);
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }
}

/// A request's body that tells the activity when all of it has come.
pub struct Asked {
    body: Incoming,
    number: u64,
    activity: Rc<Activity>,
}

impl HttpBody for Asked {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        let all = matches!(frame, Poll::Ready(None)) || self.body.is_end_stream();
        // What nobody wanted is still read out while the next request may have begun: it says nothing about that one's body.
        if all && self.activity.unread.get() == Some(self.number) {
            self.activity.unread.set(None);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// An answer's body with the mark that its request is still being served.
pub(super) struct Served {
    body: Body,
    _busy: Busy,
}

impl Served {
    pub(super) fn new(body: Body, busy: Busy) -> Self {
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
