//! The body of a response on an HTTP/2 stream.
//!
//! Invariant: the window of the node opens as the client takes what came, so that at most one frame
//! is held beyond what fits in the stream's window; dropping the body resets an unfinished stream;
//! a response whose status allows no body has none, whatever the node sends.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::RecvStream;
use http::response::Parts;
use http::{StatusCode, header};
use hyper::body::{Frame, SizeHint};

/// A response's body.
pub(crate) struct Http2ResponseBody {
    /// `None`: the status allows no body.
    stream: Option<RecvStream>,
    /// The bytes of the last frame, for which the window is still closed.
    held: usize,
    /// Bytes still to come, if the head has a length.
    remaining: Option<u64>,
}

impl Http2ResponseBody {
    /// `head`: of the response.
    pub(crate) fn new(head: &Parts, stream: RecvStream) -> Self {
        let length = head.headers.get(header::CONTENT_LENGTH);
        let remaining = length.and_then(|length| length.to_str().ok()?.parse().ok());
        let has_body = !matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        Self { stream: has_body.then_some(stream), held: 0, remaining }
    }

    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        let Some(stream) = &mut self.stream else { return Poll::Ready(None) };
        let held = std::mem::take(&mut self.held);
        if held > 0 {
            stream.flow_control().release_capacity(held)?;
        }
        match ready!(stream.poll_data(cx)) {
            Some(Ok(data)) => {
                self.held = data.len();
                self.remaining = self.remaining.map(|left| left.saturating_sub(data.len() as u64));
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            Some(Err(error)) => Poll::Ready(Some(Err(error))),
            None => {
                let trailers = ready!(stream.poll_trailers(cx));
                Poll::Ready(trailers.map(|trailers| trailers.map(Frame::trailers)).transpose())
            }
        }
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        self.stream.as_ref().is_none_or(RecvStream::is_end_stream)
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        match self.remaining {
            _ if self.is_end_stream() => SizeHint::with_exact(0),
            Some(left) => SizeHint::with_exact(left),
            None => SizeHint::default(),
        }
    }
}
