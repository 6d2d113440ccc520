//! Error pages, and the 404 of a request without a route: contract sections 7.1 and 10.5.
//!
//! Invariant: a page shows its status and nothing else (invariant 10 of docs/ARCHITECTURE.md).
//! Programs that parse the pages find the lines of APISIX's; only the name in the last one is ours.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};

use crate::reason::Reason;

/// The `Server` header with `apisix.enable_server_tokens`.
pub(crate) const SERVER_WITH_VERSION: HeaderValue =
    HeaderValue::from_static(concat!("Countersign/", env!("CARGO_PKG_VERSION")));
/// The `Server` header without.
pub(crate) const SERVER: HeaderValue = HeaderValue::from_static("Countersign");
const HTML: HeaderValue = HeaderValue::from_static("text/html; charset=utf-8");
const CLOSE: HeaderValue = HeaderValue::from_static("close");

/// The protocol for a client that requests another one (RFC 9110 section 15.5.22).
const UPGRADE_TO: HeaderValue = HeaderValue::from_static("HTTP/1.1");

/// The response to a request that ended for `reason`.
pub(crate) fn error_response(reason: Reason) -> Response<Bytes> {
    if reason == Reason::NoRoute {
        return no_route_response();
    }
    let (status, page) = page(reason);
    let mut response = Response::new(page);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HTML);
    // nginx closes the connection after a 400: what follows may not be a request.
    if matches!(
        status,
        StatusCode::BAD_REQUEST
            | StatusCode::METHOD_NOT_ALLOWED
            | StatusCode::REQUEST_TIMEOUT
            | StatusCode::PAYLOAD_TOO_LARGE
            | StatusCode::URI_TOO_LONG
            | StatusCode::NOT_IMPLEMENTED
    ) {
        headers.insert(header::CONNECTION, CLOSE);
    }
    if status == StatusCode::UPGRADE_REQUIRED {
        headers.insert(header::UPGRADE, UPGRADE_TO);
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    }
    response
}

/// Whether a response rejects its request and closes the connection.
pub(super) fn closes_connection<B>(response: &Response<B>) -> bool {
    let status = response.status();
    (status.is_client_error() || status == StatusCode::NOT_IMPLEMENTED)
        && response.headers().get(header::CONNECTION) == Some(&CLOSE)
}

/// Makes a response close its HTTP/1 connection, unless it has a `Connection` header.
pub(crate) fn set_connection_close<B>(response: &mut Response<B>) {
    response.headers_mut().entry(header::CONNECTION).or_insert(CLOSE);
}

/// The same response as bytes, where no HTTP server can send it: to a head that was rejected, and
/// to plain HTTP on a TLS port. `server`: the `Server` header.
pub(crate) fn raw_error_response(reason: Reason, server: &HeaderValue) -> Vec<u8> {
    let (status, body) = page(reason);
    let mut response = format!("HTTP/1.1 {}\r\nServer: ", title(status)).into_bytes();
    response.extend_from_slice(server.as_bytes());
    response.extend_from_slice(b"\r\nContent-Type: ");
    response.extend_from_slice(HTML.as_bytes());
    let length = body.len();
    response
        .extend_from_slice(format!("\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n").as_bytes());
    response.extend_from_slice(&body);
    response
}

/// The error page of a reason, with its status.
fn page(reason: Reason) -> (StatusCode, Bytes) {
    let status = reason.status().unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    // nginx's pages for these have a line besides the status.
    let detail = match reason {
        Reason::PlainHttp => Some("The plain HTTP request was sent to HTTPS port"),
        Reason::HeadTooLarge => Some("Request Header Or Cookie Too Large"),
        _ => None,
    };
    (status, html(status, detail))
}

fn title(status: StatusCode) -> String {
    format!("{} {}", status.as_u16(), status.canonical_reason().unwrap_or("Error"))
}

fn html(status: StatusCode, detail: Option<&str>) -> Bytes {
    let heading = title(status);
    let (title, line) = match detail {
        Some(detail) => (format!("{} {detail}", status.as_u16()), format!("<center>{detail}</center>\r\n")),
        None => (heading.clone(), String::new()),
    };
    Bytes::from(format!(
        "<html>\r\n<head><title>{title}</title></head>\r\n<body>\r\n<center><h1>{heading}</h1></center>\r\n\
         {line}<hr><center>countersign</center>\r\n</body>\r\n</html>\r\n"
    ))
}

fn no_route_response() -> Response<Bytes> {
    let mut response = Response::new(Bytes::from_static(b"{\"error_msg\":\"404 Route Not Found\"}\n"));
    *response.status_mut() = StatusCode::NOT_FOUND;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_pages_show_the_status_and_not_the_reason() {
        for reason in Reason::ALL.iter().filter(|reason| reason.status().is_some()) {
            let response = error_response(*reason);
            assert_eq!(Some(response.status()), reason.status());
            let raw = String::from_utf8(raw_error_response(*reason, &SERVER)).unwrap();
            assert!(raw.starts_with(&format!("HTTP/1.1 {} ", response.status().as_u16())), "{raw}");
            assert!(!raw.contains(reason.label()));
        }
    }

    #[test]
    fn a_head_that_is_too_large_gets_nginx_s_page() {
        let raw = String::from_utf8(raw_error_response(Reason::HeadTooLarge, &SERVER)).unwrap();
        let (head, page) = raw.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{head}");
        assert!(head.contains(&format!("\r\nContent-Length: {}\r\n", page.len())), "{head}");
        assert!(page.contains("<title>400 Request Header Or Cookie Too Large</title>"), "{page}");
        assert!(page.contains("<h1>400 Bad Request</h1>"), "{page}");
        assert!(page.contains("<center>Request Header Or Cookie Too Large</center>"), "{page}");
        for reason in [Reason::HeadTooLarge, Reason::UriTooLong] {
            assert!(closes_connection(&error_response(reason)));
        }
    }

    #[test]
    fn a_rejected_upgrade_names_the_protocol_that_is_served() {
        let response = error_response(Reason::UpgradeNotSupported);
        assert_eq!(response.headers()[header::UPGRADE], "HTTP/1.1");
        assert_eq!(response.headers()[header::CONNECTION], "upgrade");
        assert!(!closes_connection(&response));
    }
}
