//! The body of a response: an upstream's, streamed, a page of our own, or a tunnel instead of one.
//!
//! Invariant: the request ends with its response's body, which holds it.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use hyper::body::{Body, Frame, SizeHint};

use super::connection::active_request::ActiveRequest;
use super::connection::tunnel::WebSocketTunnel;
use crate::upstream::response_body::{UpstreamBodyError, UpstreamResponseBody};

/// The body of a response.
pub(super) struct ResponseBody {
    content: ResponseContent,
    /// The request, which is in flight until the body is dropped.
    request: Option<Box<ActiveRequest>>,
}

/// What is sent.
pub(super) enum ResponseContent {
    /// A page of our own; `None` once it is read.
    Full(Option<Bytes>),
    Upstream(UpstreamResponseBody),
    /// No body: the response opens a tunnel. `None` once the server has taken it.
    Tunnel(Option<Box<WebSocketTunnel>>),
}

impl ResponseBody {
    /// The body of a request's response.
    pub(super) fn new(content: ResponseContent, request: Box<ActiveRequest>) -> Self {
        Self { content, request: Some(request) }
    }

    /// Takes the tunnel that the response opens, with its request.
    pub(super) fn take_tunnel(&mut self) -> Option<(Box<WebSocketTunnel>, Option<Box<ActiveRequest>>)> {
        let ResponseContent::Tunnel(tunnel) = &mut self.content else { return None };
        tunnel.take().map(|tunnel| (tunnel, self.request.take()))
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        if let Some(request) = &mut self.request {
            request.record.is_complete = self.content.is_ended();
        }
    }
}

impl ResponseContent {
    pub(super) fn full(bytes: Bytes) -> Self {
        Self::Full(if bytes.is_empty() { None } else { Some(bytes) })
    }

    /// Whether all of it has been read.
    pub(super) fn is_ended(&self) -> bool {
        match self {
            Self::Full(bytes) => bytes.is_none(),
            Self::Tunnel(_) => true,
            Self::Upstream(body) => body.is_end_stream(),
        }
    }

    fn length(&self) -> SizeHint {
        match self {
            Self::Tunnel(_) => SizeHint::with_exact(0),
            Self::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Upstream(body) => body.size_hint(),
        }
    }
}

/// Makes body and `Content-Length` fit the method that the client sent: HEAD gets no body and the
/// length that GET would have had; elsewhere there is no length without a body (RFC 9110 sections
/// 8.6 and 9.3.2). hyper does the first for HTTP/1 alone, and a route may forward another method
/// than the client's.
pub(super) fn adjust_to_method(is_head: bool, response: &mut Response<ResponseContent>) {
    if response.body().is_ended() {
        if !is_head && response.status() != StatusCode::NOT_MODIFIED {
            let length = response.headers().get(header::CONTENT_LENGTH);
            if length.is_some_and(|length| length.as_bytes() != b"0") {
                response.headers_mut().remove(header::CONTENT_LENGTH);
            }
        }
    } else if is_head {
        if let Some(length) = response.body().length().exact() {
            response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        }
        *response.body_mut() = ResponseContent::Full(None);
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = UpstreamBodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UpstreamBodyError>>> {
        let this = &mut *self;
        let polled = match &mut this.content {
            ResponseContent::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            ResponseContent::Tunnel(_) => Poll::Ready(None),
            ResponseContent::Upstream(body) => Pin::new(body).poll_frame(cx),
        };
        if let (Poll::Ready(Some(frame)), Some(request)) = (&polled, &mut this.request) {
            match frame {
                Ok(frame) => request.record_sent(frame.data_ref().map_or(0, Bytes::len)),
                Err(error) => request.record_broken(error),
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.content.is_ended()
    }

    fn size_hint(&self) -> SizeHint {
        self.content.length()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adjusted(
        is_head: bool,
        status: u16,
        length: Option<&str>,
        body: &'static str,
    ) -> (Option<String>, bool) {
        let mut response = Response::new(ResponseContent::full(Bytes::from_static(body.as_bytes())));
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        if let Some(length) = length {
            response.headers_mut().insert(header::CONTENT_LENGTH, length.parse().unwrap());
        }
        adjust_to_method(is_head, &mut response);
        let length = response.headers().get(header::CONTENT_LENGTH);
        (length.map(|length| length.to_str().unwrap().to_owned()), !response.body().is_ended())
    }

    #[test]
    fn length_and_body_fit_the_method() {
        let length = |length: &str| Some(length.to_owned());
        for (is_head, status, given, body, expected) in [
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
            let result = adjusted(is_head, status, given, body);
            assert_eq!(result, expected, "{is_head} {status} {given:?} {body:?}");
        }
    }
}
