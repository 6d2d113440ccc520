//! Answers of our own: error pages and the 404 of no route, in the form of contract sections 7.1
//! and 10.5.
//!
//! A page says its status and nothing else (invariant 10). Products that parse the pages find the
//! same lines as in APISIX's; only the name at the foot is ours.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};

use crate::body::response::ResponseBody;
use crate::reason::Reason;

/// What the `Server` header says when tokens are shown (`apisix.enable_server_tokens`).
pub(crate) const SERVER_WITH_VERSION: HeaderValue =
    HeaderValue::from_static(concat!("Countersign/", env!("CARGO_PKG_VERSION")));
/// What it says when they are not.
pub(crate) const SERVER: HeaderValue = HeaderValue::from_static("Countersign");
const HTML: HeaderValue = HeaderValue::from_static("text/html; charset=utf-8");
const CLOSE: HeaderValue = HeaderValue::from_static("close");

/// What a client that asked for another protocol can go on with (RFC 9110 section 15.5.22).
const UPGRADE_TO: HeaderValue = HeaderValue::from_static("HTTP/1.1");

/// The answer to a request that ended with `reason`.
pub(crate) fn error_response(reason: Reason) -> Response<ResponseBody> {
    if reason == Reason::NoRoute {
        return no_route_response();
    }
    let (status, bytes) = page(reason);
    let mut response = Response::new(ResponseBody::full(bytes));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HTML);
    // nginx ends the connection after a 400: what follows on it cannot be trusted to be a request.
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

/// Whether this answer refuses its request and ends the connection.
pub(crate) fn closes_connection(response: &Response<ResponseBody>) -> bool {
    let status = response.status();
    (status.is_client_error() || status == StatusCode::NOT_IMPLEMENTED)
        && response.headers().get(header::CONNECTION) == Some(&CLOSE)
}

/// Has an answer end its HTTP/1 connection, unless it says something else of it.
pub(crate) fn set_connection_close<B>(response: &mut Response<B>) {
    response.headers_mut().entry(header::CONNECTION).or_insert(CLOSE);
}

/// The same answer as bytes, where there is no session to give it: the head was refused before it
/// was a request, or there is plain HTTP on a TLS port. `server`: what the `Server` header says.
pub(crate) fn raw_error_response(reason: Reason, server: &HeaderValue) -> Vec<u8> {
    let (status, body) = page(reason);
    let mut answer = format!("HTTP/1.1 {}\r\nServer: ", title(status)).into_bytes();
    answer.extend_from_slice(server.as_bytes());
    answer.extend_from_slice(b"\r\nContent-Type: ");
    answer.extend_from_slice(HTML.as_bytes());
    let length = body.len();
    answer.extend_from_slice(format!("\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n").as_bytes());
    answer.extend_from_slice(&body);
    answer
}

/// The error page of a reason, with its status.
fn page(reason: Reason) -> (StatusCode, Bytes) {
    let status = reason.status().unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    // Where nginx knows more than the status, the page says it.
    let more = match reason {
        Reason::PlainHttp => Some("The plain HTTP request was sent to HTTPS port"),
        Reason::HeadTooLarge => Some("Request Header Or Cookie Too Large"),
        _ => None,
    };
    (status, html(status, more))
}

fn title(status: StatusCode) -> String {
    format!("{} {}", status.as_u16(), status.canonical_reason().unwrap_or("Error"))
}

fn html(status: StatusCode, more: Option<&str>) -> Bytes {
    let heading = title(status);
    let (title, line) = match more {
        Some(more) => (format!("{} {more}", status.as_u16()), format!("<center>{more}</center>\r\n")),
        None => (heading.clone(), String::new()),
    };
    Bytes::from(format!(
        "<html>\r\n<head><title>{title}</title></head>\r\n<body>\r\n<center><h1>{heading}</h1></center>\r\n\
         {line}<hr><center>countersign</center>\r\n</body>\r\n</html>\r\n"
    ))
}

fn no_route_response() -> Response<ResponseBody> {
    let mut response =
        Response::new(ResponseBody::full(Bytes::from_static(b"{\"error_msg\":\"404 Route Not Found\"}\n")));
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
    fn every_reason_with_a_status_has_an_answer_that_does_not_name_it() {
        for reason in Reason::ALL.iter().filter(|r| r.status().is_some()) {
            let response = error_response(*reason);
            assert_eq!(Some(response.status()), reason.status());
            let raw = String::from_utf8(raw_error_response(*reason, &SERVER)).unwrap();
            assert!(raw.starts_with(&format!("HTTP/1.1 {} ", response.status().as_u16())), "{raw}");
            assert!(!raw.contains(reason.label()));
        }
    }

    #[test]
    fn a_head_that_is_too_large_has_nginx_s_page() {
        let raw = String::from_utf8(raw_error_response(Reason::HeadTooLarge, &SERVER)).unwrap();
        let (head, page) = raw.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{head}");
        assert!(head.contains(&format!("\r\nContent-Length: {}\r\n", page.len())), "{head}");
        assert!(page.contains("<title>400 Request Header Or Cookie Too Large</title>"), "{page}");
        assert!(page.contains("<h1>400 Bad Request</h1>"), "{page}");
        assert!(page.contains("<center>Request Header Or Cookie Too Large</center>"), "{page}");
        assert!(
            closes_connection(&error_response(Reason::HeadTooLarge))
                && closes_connection(&error_response(Reason::UriTooLong))
        );
    }

    #[test]
    fn a_refused_upgrade_names_what_to_go_on_with() {
        let response = error_response(Reason::UpgradeNotSupported);
        assert_eq!(response.headers()[header::UPGRADE], "HTTP/1.1");
        assert_eq!(response.headers()[header::CONNECTION], "upgrade");
        assert!(!closes_connection(&response));
    }
}
