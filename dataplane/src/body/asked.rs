//! A request's body as its client sends it, over either HTTP; it tells the activity when all of it
//! has come.
//!
//! Invariant: a body that its client cut off is an error, never an end: RST_STREAM of any code
//! included.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::RecvStream;
use http::{HeaderMap, header};
use hyper::body::{Body, Frame, Incoming, SizeHint};

use crate::http::keep_alive::KeepAliveState;

/// A request's body.
pub struct IncomingBody {
    body: BodySource,
    number: u64,
    activity: Rc<KeepAliveState>,
}

/// Whence it comes.
pub(crate) enum BodySource {
    /// HTTP/1, from hyper.
    Http1(Incoming),
    /// HTTP/2.
    Http2(Http2Body),
}

/// The client broke off.
#[derive(Debug, thiserror::Error)]
pub enum IncomingBodyError {
    /// HTTP/1.
    #[error(transparent)]
    Http1(#[from] hyper::Error),
    /// HTTP/2.
    #[error(transparent)]
    Http2(#[from] h2::Error),
}

/// The body of an HTTP/2 request. `h2` holds it to its `Content-Length` (RFC 9113 section 8.1.1).
pub(crate) struct Http2Body {
    stream: RecvStream,
    /// How many bytes are still to come, where the head said so.
    remaining: Option<u64>,
}

impl Http2Body {
    pub(crate) fn new(headers: &HeaderMap, stream: RecvStream) -> Self {
        let length =
            headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        let left = length.or_else(|| stream.is_end_stream().then_some(0));
        Self { stream, remaining: left }
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        match ready!(self.stream.poll_data(cx)) {
            Some(Ok(data)) => {
                if let Err(error) = self.stream.flow_control().release_capacity(data.len()) {
                    return Poll::Ready(Some(Err(error)));
                }
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
}

impl IncomingBody {
    /// The body of the connection's request `number`.
    pub(crate) fn new(body: BodySource, number: u64, activity: Rc<KeepAliveState>) -> Self {
        Self { body, number, activity }
    }
}

impl BodySource {
    /// Whether nothing is to come.
    pub(crate) fn is_end_stream(&self) -> bool {
        match self {
            Self::Http1(body) => body.is_end_stream(),
            Self::Http2(body) => body.stream.is_end_stream(),
        }
    }

    /// How much is to come.
    pub(crate) fn size_hint(&self) -> SizeHint {
        match self {
            Self::Http1(body) => body.size_hint(),
            Self::Http2(body) => body.remaining.map_or_else(SizeHint::default, SizeHint::with_exact),
        }
    }
}

impl Body for IncomingBody {
    type Data = Bytes;
    type Error = IncomingBodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, IncomingBodyError>>> {
        let frame = match &mut self.body {
            BodySource::Http1(body) => Pin::new(body).poll_frame(cx).map_err(IncomingBodyError::from),
            BodySource::Http2(body) => body.poll_frame(cx).map_err(IncomingBodyError::from),
        };
        // Nothing follows trailers, and a reader that drops them does not ask again.
        let all = match &frame {
            Poll::Ready(None) => true,
            Poll::Ready(Some(Ok(frame))) if frame.is_trailers() => true,
            _ => self.body.is_end_stream(),
        };
        if all {
            self.activity.finish_body(self.number);
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

impl Drop for IncomingBody {
    fn drop(&mut self) {
        self.activity.abandon_body(self.number);
    }
}
