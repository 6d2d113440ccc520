//! Responses: their few shapes, and the headers that all of them carry (contract 2.1, 10.5).
//!
//! JSON ends with a newline. HTML pages have CRLF lines, as nginx writes them. This file decides
//! nothing.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, SERVER};
use http::{Response, StatusCode};
use http_body_util::Full;
use model::{Problem, redact};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::change::ChangeNotes;

/// A response of the Admin API.
pub(crate) type Reply = Response<Full<Bytes>>;

/// The revision of the commit that a write made.
pub(crate) const REVISION: HeaderName = HeaderName::from_static("x-countersign-revision");
/// Seconds since the store was last reachable, on a response from the cache.
pub(crate) const STALE: HeaderName = HeaderName::from_static("x-countersign-stale");
/// The extension fields that a write does not mention and the document keeps, separated by commas.
pub(crate) const KEPT: HeaderName = HeaderName::from_static("x-countersign-kept");
/// One header for each way in which a write weakens the protection, and for each unknown argument.
/// The log has the rest of the former.
pub(crate) const WARNING: HeaderName = HeaderName::from_static("x-countersign-warning");
/// Warnings of one response, and bytes of each.
const WARNINGS_MAX: (usize, usize) = (16, 512);
const API_VERSION: HeaderName = HeaderName::from_static("x-api-version");

/// The configured headers of every response.
#[derive(Clone, Copy, Debug)]
pub struct ResponseHeaders {
    /// `apisix.enable_server_tokens`: `Server` has the version.
    pub server_tokens: bool,
    /// `deployment.admin.enable_admin_cors`
    pub cors: bool,
}

/// JSON and a newline. Serializing thousands of documents takes a while.
pub(crate) fn json(status: StatusCode, value: &impl Serialize) -> Reply {
    match serde_json::to_vec(value) {
        Ok(mut text) => {
            text.push(b'\n');
            build(status, "application/json", text)
        }
        Err(error) => {
            tracing::error!(%error, "a response cannot be serialized as JSON");
            empty(StatusCode::INTERNAL_SERVER_ERROR)
        }
    }
}

/// A JSON text.
pub(crate) fn json_text(status: StatusCode, text: Bytes) -> Reply {
    build(status, "application/json", text)
}

/// `{"error_msg": ...}`, with a `hint` of ours where there is one. A private key in the message is
/// redacted.
pub(crate) fn error(status: StatusCode, message: &str, hint: Option<&str>) -> Reply {
    let message = redact(message);
    match hint {
        Some(hint) => json(status, &json!({"error_msg": message, "hint": hint})),
        None => json(status, &json!({"error_msg": message})),
    }
}

/// 400 for an invalid document or question: the error, its field, and a hint.
pub(crate) fn problem(problem: &Problem) -> Reply {
    json(StatusCode::BAD_REQUEST, &problem_members(problem))
}

/// The members of [`problem`].
pub(crate) fn problem_members(problem: &Problem) -> Map<String, Value> {
    let (field, message, hint) = problem.redacted();
    let field = Some(field).filter(|field| !field.is_empty());
    let members = [("error_msg", Some(message)), ("field", field), ("hint", hint)];
    members.into_iter().filter_map(|(name, text)| Some((name.to_owned(), text?.into()))).collect()
}

/// 304 without a body, with the headers of `reply`.
pub(crate) fn not_modified(reply: Reply) -> Reply {
    let (mut head, _) = reply.into_parts();
    head.status = StatusCode::NOT_MODIFIED;
    head.headers.remove(CONTENT_TYPE);
    Response::from_parts(head, Full::default())
}

/// 404 for a key that does not exist.
pub(crate) fn key_not_found() -> Reply {
    json(StatusCode::NOT_FOUND, &json!({"message": "Key not found"}))
}

/// A JSON content type without a body.
pub(crate) fn empty(status: StatusCode) -> Reply {
    build(status, "application/json", String::new())
}

pub(crate) fn text(status: StatusCode, text: &str) -> Reply {
    build(status, "text/plain", text.to_owned())
}

/// The HTML page of a status. The connection stays open unless the status ends it.
pub(crate) fn status_page(status: StatusCode) -> Reply {
    let title = status.to_string();
    build(status, "text/html; charset=utf-8", html(&title, &title, None))
}

/// The 400 page with a reason, after which the connection closes.
pub(crate) fn closing_error_page(why: &str) -> Reply {
    let status = StatusCode::BAD_REQUEST.to_string();
    let body = html(&format!("400 {why}"), &status, Some(why));
    with_close(build(StatusCode::BAD_REQUEST, "text/html; charset=utf-8", body))
}

/// Closes the connection after the response.
pub(crate) fn with_close(mut reply: Reply) -> Reply {
    reply.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    reply
}

fn html(title: &str, heading: &str, why: Option<&str>) -> String {
    let why = why.map(|why| format!("<center>{why}</center>\r\n")).unwrap_or_default();
    format!(
        "<html>\r\n<head><title>{title}</title></head>\r\n<body>\r\n<center><h1>{heading}</h1></center>\r\n{why}\
         <hr><center>countersign</center>\r\n</body>\r\n</html>\r\n"
    )
}

fn build(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(Full::new(body.into()));
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    reply
}

/// The response to OPTIONS, on every path.
pub(crate) fn options() -> Reply {
    let mut reply = text(StatusCode::OK, "");
    let headers = reply.headers_mut();
    for (name, value) in [
        ("access-control-allow-methods", "POST, GET, PUT, OPTIONS, DELETE, PATCH"),
        ("access-control-allow-headers", "*"),
        ("access-control-max-age", "3600"),
    ] {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    reply
}

/// Adds the API version that shapes a resource's response.
pub(crate) fn with_api_version(mut reply: Reply) -> Reply {
    reply.headers_mut().insert(API_VERSION, HeaderValue::from_static("v3"));
    reply
}

pub(crate) fn with_revision(mut reply: Reply, revision: u64) -> Reply {
    reply.headers_mut().insert(REVISION, HeaderValue::from(revision));
    reply
}

/// Marks a response from the cache with its age.
pub(crate) fn with_age(mut reply: Reply, age: Duration) -> Reply {
    reply.headers_mut().insert(STALE, HeaderValue::from(age.as_secs()));
    reply
}

/// Adds the fields that a write kept and the warnings about it.
pub(crate) fn with_notes(mut reply: Reply, notes: &ChangeNotes) -> Reply {
    let kept = (!notes.kept.is_empty()).then(|| notes.kept.join(", "));
    if let Some(kept) = kept.as_deref().and_then(header_text) {
        reply.headers_mut().append(KEPT, kept);
    }
    with_warnings(reply, &notes.warnings)
}

/// Adds a header for each warning.
pub(crate) fn with_warnings(mut reply: Reply, warnings: &[String]) -> Reply {
    for warning in warnings.iter().take(WARNINGS_MAX.0).filter_map(|warning| header_text(warning)) {
        reply.headers_mut().append(WARNING, warning);
    }
    reply
}

fn header_text(text: &str) -> Option<HeaderValue> {
    let ascii = |c: char| if matches!(c, ' '..='~') { c } else { '?' };
    let text: String = text.chars().take(WARNINGS_MAX.1).map(ascii).collect();
    HeaderValue::from_str(&text).ok()
}

/// Adds the headers of every response.
pub(crate) fn with_common_headers(mut reply: Reply, style: ResponseHeaders) -> Reply {
    let headers = reply.headers_mut();
    let server =
        if style.server_tokens { concat!("Countersign/", env!("CARGO_PKG_VERSION")) } else { "Countersign" };
    headers.insert(SERVER, HeaderValue::from_static(server));
    if style.cors {
        for (name, value) in [
            ("access-control-allow-origin", "*"),
            ("access-control-allow-credentials", "true"),
            ("access-control-expose-headers", "*"),
            ("access-control-max-age", "3600"),
        ] {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
    }
    reply
}

/// A complete HTTP response for a client that speaks plain HTTP to the TLS port.
pub(crate) fn plain_http_response() -> String {
    let status = StatusCode::BAD_REQUEST.to_string();
    let why = "The plain HTTP request was sent to HTTPS port";
    let body = html(&format!("400 {why}"), &status, Some(why));
    format!(
        "HTTP/1.1 {status}\r\nServer: Countersign\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}
