//! The body of an answer: an upstream's, streamed, or a page of our own.
//!
//! Nothing here collects a body: frames pass from one side to the other as they come.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use hyper::body::{Body as HttpBody, Frame, SizeHint};

use crate::proxy::connection::request_limit::RequestPermit;
use crate::upstream::response_body::{UpstreamBodyError, UpstreamResponseBody};

/// The body of an answer.
#[expect(clippy::large_enum_variant, reason = "nearly every body is an upstream's")]
pub enum ResponseBody {
    /// A page of our own; `None` once it has been read.
    Full(Option<Bytes>),
    /// An upstream's answer, on its way.
    Upstream {
        /// The answer's.
        body: UpstreamResponseBody,
        /// It counts among its client's until it is over.
        _permit: Option<RequestPermit>,
    },
}

impl ResponseBody {
    /// A body that is wholly there.
    pub fn full(bytes: Bytes) -> Self {
        Self::Full(if bytes.is_empty() { None } else { Some(bytes) })
    }
}

/// Makes the length and the body of an answer those of the method that the client sent: to HEAD no
/// body, and the length that GET would have had; elsewhere no length of a body that is not there
/// (RFC 9110 sections 8.6 and 9.3.2). hyper does the first for HTTP/1 alone, and a route may send
/// another method on than it was asked for.
pub(crate) fn adjust_to_method(head: bool, answer: &mut Response<ResponseBody>) {
    if answer.body().is_end_stream() {
        if !head && answer.status() != StatusCode::NOT_MODIFIED {
            let length = answer.headers().get(header::CONTENT_LENGTH);
            if length.is_some_and(|length| length.as_bytes() != b"0") {
                answer.headers_mut().remove(header::CONTENT_LENGTH);
            }
        }
    } else if head {
        if let Some(length) = answer.body().size_hint().exact() {
            answer.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        }
        *answer.body_mut() = ResponseBody::Full(None);
    }
}

impl HttpBody for ResponseBody {
    type Data = Bytes;
    type Error = UpstreamBodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UpstreamBodyError>>> {
        match &mut *self {
            Self::Full(bytes) => Poll::Ready(bytes.take().map(|b| Ok(Frame::data(b)))),
            Self::Upstream { body, .. } => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Full(bytes) => bytes.is_none(),
            Self::Upstream { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Self::Upstream { body, .. } => body.size_hint(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(head: bool, status: u16, length: Option<&str>, body: &'static str) -> (Option<String>, bool) {
        let mut answer = Response::new(ResponseBody::full(Bytes::from_static(body.as_bytes())));
        *answer.status_mut() = StatusCode::from_u16(status).unwrap();
        if let Some(length) = length {
            answer.headers_mut().insert(header::CONTENT_LENGTH, length.parse().unwrap());
        }
        adjust_to_method(head, &mut answer);
        let length = answer.headers().get(header::CONTENT_LENGTH);
        (length.map(|length| length.to_str().unwrap().to_owned()), !answer.body().is_end_stream())
    }

    #[test]
    fn length_and_body_are_those_of_the_method_that_was_sent() {
        let length = |length: &str| Some(length.to_owned());
        for (head, status, given, body, expected) in [
            (false, 200, Some("4"), "page", (length("4"), true)),
            (false, 502, None, "page", (None, true)),
            (true, 502, None, "page", (length("4"), false)),
            (true, 200, Some("4"), "page", (length("4"), false)),
            (true, 200, Some("500"), "", (length("500"), false)),
            (true, 200, None, "", (None, false)),
            (false, 200, Some("500"), "", (None, false)),
            (false, 200, Some("0"), "", (length("0"), false)),
            (false, 304, Some("500"), "", (length("500"), false)),
        ] {
            assert_eq!(answered(head, status, given, body), expected, "{head} {status} {given:?} {body:?}");
        }
    }
}
