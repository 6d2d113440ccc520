//! The body of a response on an HTTP/2 stream.
//!
//! Invariant: the window of the node opens as the client takes what came, so that at most one frame
//! is held beyond what fits in the stream's window; dropping the body resets an unfinished stream.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::RecvStream;
use http::{HeaderMap, header};
use hyper::body::{Frame, SizeHint};

/// A response's body.
pub(crate) struct Http2ResponseBody {
    stream: RecvStream,
    /// The bytes of the last frame, for which the window is still closed.
    held: usize,
    /// Bytes still to come, if the head has a length.
    remaining: Option<u64>,
}

impl Http2ResponseBody {
    /// `headers`: of the response.
    pub(crate) fn new(headers: &HeaderMap, stream: RecvStream) -> Self {
        let length =
            headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        Self { stream, held: 0, remaining: length }
    }

    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        let held = std::mem::take(&mut self.held);
        if held > 0 {
            self.stream.flow_control().release_capacity(held)?;
        }
        match ready!(self.stream.poll_data(cx)) {
            Some(Ok(data)) => {
                self.held = data.len();
                self.remaining = self.remaining.map(|left| left.saturating_sub(data.len() as u64));
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            Some(Err(error)) => Poll::Ready(Some(Err(error))),
            None => {
                let trailers = ready!(self.stream.poll_trailers(cx));
                Poll::Ready(trailers.map(|trailers| trailers.map(Frame::trailers)).transpose())
            }
        }
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        match self.remaining {
            _ if self.is_end_stream() => SizeHint::with_exact(0),
            Some(left) => SizeHint::with_exact(left),
            None => SizeHint::default(),
        }
    }
}
