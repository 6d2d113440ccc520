//! The body of a response on an HTTP/2 stream.
//!
//! Invariant: the window of the node opens as the client takes what came, so that at most one frame
//! is held beyond what fits in the stream's window; dropping the body resets an unfinished stream;
//! a response whose status allows no body has none, whatever the node sends.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, RecvStream};
use http::response::Parts;
use http::{StatusCode, header};
use hyper::body::{Frame, SizeHint};

use crate::http::grpc;
use crate::http::http2::intake::{Intake, SharedIntake};
use crate::http::http2::sender::ResetCode;

/// The node or `h2` ended the stream before its end.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub(crate) struct BrokenStream {
    pub error: h2::Error,
    /// It had the response to a gRPC call.
    is_grpc: bool,
}

impl ResetCode for BrokenStream {
    /// A code is about one connection, so its client gets the gateway's. Those that gRPC reads as
    /// the status of a call pass, where a status of another meaning would come of it. Only to gRPC:
    /// other clients may take CANCEL for the end of a body.
    fn reset_code(&self) -> Reason {
        let sent =
            self.error.reason().filter(|_| self.is_grpc && self.error.is_reset() && self.error.is_remote());
        match sent {
            Some(passed @ (Reason::CANCEL | Reason::ENHANCE_YOUR_CALM)) => passed,
            _ => Reason::INTERNAL_ERROR,
        }
    }
}

/// A response's body.
pub(crate) struct Http2ResponseBody {
    /// `None`: the status allows no body.
    intake: Option<SharedIntake>,
    /// The bytes of the last frame, for which the window is still closed.
    held: usize,
    is_grpc: bool,
    /// Bytes still to come, if the head has a length.
    remaining: Option<u64>,
}

impl Http2ResponseBody {
    /// `head`: of the response.
    pub(crate) fn new(head: &Parts, stream: RecvStream) -> Self {
        let length = head.headers.get(header::CONTENT_LENGTH);
        let remaining = length.and_then(|length| length.to_str().ok()?.parse().ok());
        let has_body = !matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let is_grpc = grpc::is_grpc_type(&head.headers);
        Self { intake: has_body.then(|| Intake::new(stream)), held: 0, is_grpc, remaining }
    }

    /// What the node sends; `None`: nothing that is read.
    pub(crate) fn intake(&self) -> Option<&SharedIntake> {
        self.intake.as_ref()
    }

    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenStream>>> {
        let is_grpc = self.is_grpc;
        self.poll_stream(cx).map_err(|error| BrokenStream { error, is_grpc })
    }

    fn poll_stream(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        let Some(intake) = &self.intake else { return Poll::Ready(None) };
        let mut intake = intake.borrow_mut();
        let held = std::mem::take(&mut self.held);
        if held > 0 {
            intake.release(held)?;
        }
        match ready!(intake.poll_data(cx)) {
            Some(Ok(data)) => {
                self.held = data.len();
                self.remaining = self.remaining.map(|left| left.saturating_sub(data.len() as u64));
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            Some(Err(error)) => Poll::Ready(Some(Err(error))),
            None => {
                let trailers = ready!(intake.poll_trailers(cx));
                Poll::Ready(trailers.map(|trailers| trailers.map(Frame::trailers)).transpose())
            }
        }
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        self.intake.as_ref().is_none_or(|intake| intake.borrow().is_end_stream())
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        match self.remaining {
            _ if self.is_end_stream() => SizeHint::with_exact(0),
            Some(left) => SizeHint::with_exact(left),
            None => SizeHint::default(),
        }
    }
}
