//! The body of an answer: an upstream's, streamed, or a page of our own.
//!
//! Nothing here collects a body: frames pass from one side to the other as they come.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};

use crate::upstream::answer_body::{AnswerBody, AnswerError};

/// The body of an answer.
pub enum Body {
    /// A page of our own; `None` once it has been read.
    Full(Option<Bytes>),
    /// An upstream's answer, on its way.
    Upstream(AnswerBody),
}

impl Body {
    /// A body that is wholly there.
    pub fn full(bytes: Bytes) -> Self {
        Self::Full(if bytes.is_empty() { None } else { Some(bytes) })
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = AnswerError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, AnswerError>>> {
        match &mut *self {
            Self::Full(bytes) => Poll::Ready(bytes.take().map(|b| Ok(Frame::data(b)))),
            Self::Upstream(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Full(bytes) => bytes.is_none(),
            Self::Upstream(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Self::Upstream(body) => body.size_hint(),
        }
    }
}
