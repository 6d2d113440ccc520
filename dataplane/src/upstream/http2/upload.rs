//! The body of a request on its way to an HTTP/2 upstream, in a task of its own: a client that does
//! not read its response must not stop its own upload.
//!
//! Invariants: a body that its client breaks off ends with RST_STREAM, never with END_STREAM; the
//! body is dropped when either side ends the exchange, and what the client still sends is discarded
//! by the body's own rule.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use h2::{Reason, SendStream};
use hyper::body::{Body, Frame, SizeHint};

use crate::http::http2::sender::{BodySender, SendPacing};
use crate::http::incoming_body::IncomingBody;
use crate::io::flag::Flag;
use crate::runtime;
use crate::upstream::request_body::{ClientBody, RequestBody, RequestBodyError};

/// The frame size that every server accepts.
const FRAME_SIZE: usize = 16 * 1024;

/// An upload; dropping it ends it.
pub(crate) struct Upload<B: ClientBody = IncomingBody> {
    body: SharedBody<B>,
    stop: Rc<Flag>,
}

impl<B: ClientBody> Upload<B> {
    /// Sends `body` into `stream`.
    pub(crate) fn start(stream: SendStream<Bytes>, body: RequestBody<B>) -> Self {
        let body = SharedBody(Rc::new(RefCell::new(Some(body))));
        let stop = Rc::<Flag>::default();
        let (sent, stopped) = (body.clone(), Rc::clone(&stop));
        let mut sender = BodySender::new(stream, body.clone(), UploadPacing);
        runtime::spawn(async move {
            poll_fn(|cx| match stopped.poll(cx) {
                Poll::Ready(()) => Poll::Ready(()),
                Poll::Pending => sender.poll(cx),
            })
            .await;
            sent.drop_body();
        });
        Self { body, stop }
    }

    /// Takes a body back of which nothing has been read, to send it again.
    pub(crate) fn take_untouched(&self) -> Option<RequestBody<B>> {
        self.body.0.borrow_mut().take_if(|body| body.is_untouched())
    }
}

impl<B: ClientBody> Drop for Upload<B> {
    fn drop(&mut self) {
        self.body.drop_body();
        self.stop.raise();
    }
}

struct UploadPacing;

impl SendPacing for UploadPacing {
    const TRUNCATED: Reason = Reason::CANCEL;

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

/// A body that the exchange may take away.
struct SharedBody<B: ClientBody>(Rc<RefCell<Option<RequestBody<B>>>>);

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
        match self.0.borrow_mut().as_mut() {
            Some(body) => Pin::new(body).poll_frame(cx),
            // Taken away: the flag ends the task.
            None => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.borrow().as_ref().is_some_and(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.0.borrow().as_ref().map(Body::size_hint).unwrap_or_default()
    }
}
