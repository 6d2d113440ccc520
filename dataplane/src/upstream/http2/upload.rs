//! The body of a request on its way to an HTTP/2 upstream, in a task of its own: a client that does
//! not read its response must not stop its own upload.
//!
//! Invariants: a body that its client breaks off ends with RST_STREAM, never with END_STREAM; the
//! body is dropped with the exchange, and what the client still sends is discarded by the body's
//! own rule. The start of a body is kept until the response comes, so that a small one can be sent
//! again where the node says that it has not processed the request.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, SendStream};
use hyper::body::{Body, Frame, SizeHint};

use crate::http::http2::sender::{BodySender, ResetCode, SendPacing};
use crate::http::incoming_body::IncomingBody;
use crate::io::flag::Flag;
use crate::runtime;
use crate::upstream::request_body::{ClientBody, RequestBody, RequestBodyError};

/// The frame size that every server accepts.
const FRAME_SIZE: usize = 16 * 1024;
/// The longest start of a body that is kept, in bytes: a larger body is sent once.
const KEPT_MAX: usize = 16 * 1024;

/// An upload; dropping it ends it.
pub(crate) struct Upload<B: ClientBody = IncomingBody> {
    body: SharedBody<B>,
    stop: Rc<Flag>,
}

impl<B: ClientBody> Upload<B> {
    /// Sends `body` into `stream`.
    pub(crate) fn start(stream: SendStream<Bytes>, body: RequestBody<B>) -> Self {
        let body = SharedBody(Rc::new(RefCell::new(Some(Sending { body, read: Some(Vec::new()) }))));
        let stop = Rc::<Flag>::default();
        let stopped = Rc::clone(&stop);
        let mut sender = BodySender::new(stream, body.clone(), UploadPacing);
        runtime::spawn(poll_fn(move |cx| match stopped.poll(cx) {
            Poll::Ready(()) => Poll::Ready(()),
            Poll::Pending => sender.poll(cx),
        }));
        Self { body, stop }
    }

    /// The node has responded: the request is not sent again.
    pub(crate) fn forget_start(&self) {
        if let Some(sending) = &mut *self.body.0.borrow_mut() {
            sending.read = None;
        }
    }

    /// Takes the body back, to send all of it again. `None`: too much of it has been read.
    pub(crate) fn take_back(&self) -> Option<RequestBody<B>> {
        let Sending { mut body, read } =
            self.body.0.borrow_mut().take_if(|sending| sending.read.is_some())?;
        body.rewind(Bytes::from(read?));
        Some(body)
    }
}

impl<B: ClientBody> Drop for Upload<B> {
    fn drop(&mut self) {
        self.body.drop_body();
        self.stop.raise();
    }
}

impl ResetCode for RequestBodyError {
    /// As a client that no longer wants its response (RFC 9113 section 7).
    fn reset_code(&self) -> Reason {
        Reason::CANCEL
    }
}

struct UploadPacing;

impl SendPacing for UploadPacing {
    fn frame_size(&self) -> usize {
        FRAME_SIZE
    }

    /// The exchange has the timeouts of the upstream.
    fn poll_blocked(&mut self, _cx: &Context<'_>) -> Poll<()> {
        Poll::Pending
    }

    fn record_sent(&mut self, _bytes: usize, _whole_piece: bool) -> bool {
        true
    }
}

/// A body, and what has been read of it.
struct Sending<B: ClientBody> {
    body: RequestBody<B>,
    /// `None`: more than is kept, or no longer needed.
    read: Option<Vec<u8>>,
}

impl<B: ClientBody> Sending<B> {
    fn keep(&mut self, data: &[u8]) {
        match &mut self.read {
            Some(read) if read.len() + data.len() <= KEPT_MAX => read.extend_from_slice(data),
            read => *read = None,
        }
    }
}

/// A body that the exchange may take away.
struct SharedBody<B: ClientBody>(Rc<RefCell<Option<Sending<B>>>>);

impl<B: ClientBody> Clone for SharedBody<B> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<B: ClientBody> SharedBody<B> {
    fn drop_body(&self) {
        // The borrow ends before the drop, which may start a task.
        let body = self.0.borrow_mut().take();
        drop(body);
    }
}

impl<B: ClientBody> Body for SharedBody<B> {
    type Data = Bytes;
    type Error = RequestBodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
        let mut sending = self.0.borrow_mut();
        // Taken away: the flag ends the task.
        let Some(sending) = sending.as_mut() else { return Poll::Pending };
        let frame = ready!(Pin::new(&mut sending.body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) if let Some(data) = frame.data_ref() => sending.keep(data),
            // Trailers are not kept.
            Some(Ok(_)) => sending.read = None,
            _ => {}
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.0.borrow().as_ref().is_some_and(|sending| sending.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.0.borrow().as_ref().map(|sending| sending.body.size_hint()).unwrap_or_default()
    }
}
