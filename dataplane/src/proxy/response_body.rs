//! The body of a response: an upstream's, streamed, a page of our own, or a tunnel instead of one.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use hyper::body::{Body, Frame, SizeHint};

use super::connection::tunnel::WebSocketTunnel;
use super::request_limit::RequestPermit;
use super::worker::Worker;
use crate::io::connection_info::ConnectionInfo;
use crate::observability::{HasReason, log};
use crate::upstream::response_body::{UpstreamBodyError, UpstreamResponseBody};

/// The body of a response.
pub(super) enum ResponseBody {
    /// A page of our own; `None` once it is read.
    Full(Option<Bytes>),
    Upstream {
        body: UpstreamResponseBody,
        observer: ResponseObserver,
        /// The request is in flight until the body has ended.
        _permit: Option<RequestPermit>,
    },
    /// No body: the response opens a tunnel. `None` once the server has taken it.
    Tunnel(Option<Box<WebSocketTunnel>>),
}

/// Counts and logs a response that breaks off.
pub(super) struct ResponseObserver {
    pub(super) worker: Rc<Worker>,
    pub(super) info: Rc<ConnectionInfo>,
}

impl ResponseObserver {
    fn record(&self, error: &UpstreamBodyError) {
        if error.is_upstreams() {
            self.worker.counters.record_error(error.reason());
            log::response_broken(&self.info, error);
        }
    }
}

impl ResponseBody {
    pub(super) fn full(bytes: Bytes) -> Self {
        Self::Full(if bytes.is_empty() { None } else { Some(bytes) })
    }
}

/// Makes body and `Content-Length` fit the method that the client sent: HEAD gets no body and the
/// length that GET would have had; elsewhere there is no length without a body (RFC 9110 sections
/// 8.6 and 9.3.2). hyper does the first for HTTP/1 alone, and a route may forward another method
/// than the client's.
pub(super) fn adjust_to_method(is_head: bool, response: &mut Response<ResponseBody>) {
    if response.body().is_end_stream() {
        if !is_head && response.status() != StatusCode::NOT_MODIFIED {
            let length = response.headers().get(header::CONTENT_LENGTH);
            if length.is_some_and(|length| length.as_bytes() != b"0") {
                response.headers_mut().remove(header::CONTENT_LENGTH);
            }
        }
    } else if is_head {
        if let Some(length) = response.body().size_hint().exact() {
            response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        }
        *response.body_mut() = ResponseBody::Full(None);
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = UpstreamBodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UpstreamBodyError>>> {
        match &mut *self {
            Self::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Tunnel(_) => Poll::Ready(None),
            Self::Upstream { body, observer, .. } => {
                let polled = Pin::new(body).poll_frame(cx);
                if let Poll::Ready(Some(Err(error))) = &polled {
                    observer.record(error);
                }
                polled
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Full(bytes) => bytes.is_none(),
            Self::Tunnel(_) => true,
            Self::Upstream { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Tunnel(_) => SizeHint::with_exact(0),
            Self::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Upstream { body, .. } => body.size_hint(),
        }
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
        let mut response = Response::new(ResponseBody::full(Bytes::from_static(body.as_bytes())));
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        if let Some(length) = length {
            response.headers_mut().insert(header::CONTENT_LENGTH, length.parse().unwrap());
        }
        adjust_to_method(is_head, &mut response);
        let length = response.headers().get(header::CONTENT_LENGTH);
        (length.map(|length| length.to_str().unwrap().to_owned()), !response.body().is_end_stream())
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
