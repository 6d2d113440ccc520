//! Answers of our own: error pages and the 404 of no route, in the form of contract sections 7.1 and 10.5.
//!
//! A page says its status and nothing else (invariant 10). Products that parse the pages find the same lines as
//! in APISIX's; only the name at the foot is ours.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use hyper::body::Body as _;

use super::body::Body;
use crate::outcome::Reason;

/// What the `Server` header says when tokens are shown (`apisix.enable_server_tokens`).
pub const SERVER_WITH_VERSION: HeaderValue =
    HeaderValue::from_static(concat!("Countersign/", env!("CARGO_PKG_VERSION")));
/// What it says when they are not.
pub const SERVER: HeaderValue = HeaderValue::from_static("Countersign");

/// The answer to a request that ended with `reason`.
pub fn refusal(reason: Reason) -> Response<Body> {
    if reason == Reason::NoRoute {
        return no_route();
    }
    let status = reason.status().unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = page(status);
    // nginx ends the connection after a 400: what follows on it cannot be trusted to be a request.
    if matches!(status, StatusCode::BAD_REQUEST | StatusCode::REQUEST_TIMEOUT | StatusCode::PAYLOAD_TOO_LARGE)
    {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// An error page with this status.
pub fn page(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::full(html(status)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    response
}

fn html(status: StatusCode) -> Bytes {
    let title = format!("{} {}", status.as_u16(), status.canonical_reason().unwrap_or("Error"));
    Bytes::from(format!(
        "<html>\r\n<head><title>{title}</title></head>\r\n<body>\r\n<center><h1>{title}</h1></center>\r\n\
         <hr><center>countersign</center>\r\n</body>\r\n</html>\r\n"
    ))
}

fn no_route() -> Response<Body> {
    let mut response =
        Response::new(Body::full(Bytes::from_static(b"{\"error_msg\":\"404 Route Not Found\"}\n")));
    *response.status_mut() = StatusCode::NOT_FOUND;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// The answer to HEAD: the fields of the answer to GET, and no content (RFC 9110 9.3.2). hyper leaves it out in HTTP/1 only.
pub fn without_content(response: Response<Body>) -> Response<Body> {
    let (mut parts, body) = response.into_parts();
    if let Some(length) = body.size_hint().exact() {
        parts.headers.insert(header::CONTENT_LENGTH, length.into());
    }
    Response::from_parts(parts, Body::full(Bytes::new()))
}

/// The bytes that answer plain HTTP on a TLS port, before there is a session.
pub fn plain_http_on_tls_port() -> Vec<u8> {
    let body = "<html>\r\n<head><title>400 The plain HTTP request was sent to HTTPS port</title></head>\r\n<body>\r\n\
        <center><h1>400 Bad Request</h1></center>\r\n\
        <center>The plain HTTP request was sent to HTTPS port</center>\r\n\
        <hr><center>countersign</center>\r\n</body>\r\n</html>\r\n";
    format!(
        "HTTP/1.1 400 Bad Request\r\nServer: Countersign\r\nContent-Type: text/html; charset=utf-8\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_with_a_status_has_an_answer_that_does_not_name_it() {
        for reason in Reason::ALL.iter().filter(|r| r.status().is_some()) {
            let response = refusal(*reason);
            assert_eq!(Some(response.status()), reason.status());
            let text = String::from_utf8(html(response.status()).to_vec()).unwrap();
            assert!(!text.contains(reason.label()));
        }
    }
}
