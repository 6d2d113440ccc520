//! gRPC over HTTP/2: which requests are calls, how long they may take, and the responses of the
//! gateway's own to them ("gRPC over HTTP2" and "HTTP to gRPC Status Code Mapping" of the gRPC
//! project).
//!
//! Invariant: a call that the gateway ends gets a status as trailers, never a page, and no word
//! about the reason beside the status (invariant 10).

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version, header};

use crate::observability::HasReason;
use crate::reason::Reason;

const CONTENT_TYPE: &str = "application/grpc";
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// The digits that a `grpc-timeout` may have.
const TIMEOUT_DIGITS: usize = 8;

/// The status of a response as metrics count it, where the client gets 200 and trailers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CountedStatus(pub StatusCode);

/// `grpc-timeout` is not at most eight digits and a unit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("grpc-timeout is {0:?}; it has to be one to eight digits and one of H, M, S, m, u, n")]
pub(crate) struct TimeoutError(String);

impl HasReason for TimeoutError {
    fn reason(&self) -> Reason {
        Reason::BadRequest
    }
}

/// Whether a request is a gRPC call.
pub(crate) fn is_call<B>(request: &Request<B>) -> bool {
    request.version() == Version::HTTP_2
        && *request.method() == Method::POST
        && is_grpc_type(request.headers())
}

/// Whether a message has a content type of gRPC. gRPC-Web is another protocol.
pub(crate) fn is_grpc_type(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return false };
    match value.as_bytes().split_at_checked(CONTENT_TYPE.len()) {
        Some((start, rest)) => {
            start.eq_ignore_ascii_case(CONTENT_TYPE.as_bytes())
                && matches!(rest.first(), None | Some(b'+' | b';'))
        }
        None => false,
    }
}

/// How long a call may take; `None`: the client does not say.
///
/// # Errors
/// [`TimeoutError`].
pub(crate) fn timeout(headers: &HeaderMap) -> Result<Option<Duration>, TimeoutError> {
    let Some(value) = headers.get(GRPC_TIMEOUT) else { return Ok(None) };
    let parsed = value.to_str().ok().and_then(parse_timeout);
    parsed.map(Some).ok_or_else(|| TimeoutError(String::from_utf8_lossy(value.as_bytes()).into_owned()))
}

fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    // `parse` would accept a sign.
    if digits.len() > TIMEOUT_DIGITS || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

/// The response to a call that ended for `reason`: trailers only.
pub(crate) fn error_response(reason: Reason) -> Response<Bytes> {
    let status = reason.status().unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = Response::new(Bytes::new());
    response.extensions_mut().insert(CountedStatus(status));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
    headers.extend(status_trailers(reason));
    response
}

/// The trailers of a response that ends for `reason`.
pub(crate) fn status_trailers(reason: Reason) -> HeaderMap {
    let status = reason.status().unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let words = status.canonical_reason().unwrap_or("Error");
    let mut trailers = HeaderMap::with_capacity(2);
    trailers.insert(GRPC_STATUS, HeaderValue::from(grpc_status(reason, status)));
    // ASCII without a percent sign, so there is nothing to encode.
    if let Ok(message) = HeaderValue::from_str(&format!("{} {words}", status.as_u16())) {
        trailers.insert(GRPC_MESSAGE, message);
    }
    trailers
}

/// The code of gRPC's mapping.
fn grpc_status(reason: Reason, status: StatusCode) -> u16 {
    const UNKNOWN: u16 = 2;
    const DEADLINE_EXCEEDED: u16 = 4;
    const PERMISSION_DENIED: u16 = 7;
    const UNIMPLEMENTED: u16 = 12;
    const INTERNAL: u16 = 13;
    const UNAVAILABLE: u16 = 14;
    const UNAUTHENTICATED: u16 = 16;
    match status {
        _ if reason == Reason::DeadlineExceeded => DEADLINE_EXCEEDED,
        StatusCode::BAD_REQUEST => INTERNAL,
        StatusCode::UNAUTHORIZED => UNAUTHENTICATED,
        StatusCode::FORBIDDEN => PERMISSION_DENIED,
        StatusCode::NOT_FOUND => UNIMPLEMENTED,
        StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => UNAVAILABLE,
        _ => UNKNOWN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_posts_of_grpc_over_http_2() {
        let request = |version, method: &str, content_type: &str| {
            let request = Request::builder().version(version).method(method);
            request.header("content-type", content_type).body(()).unwrap()
        };
        for good in ["application/grpc", "application/grpc+proto", "Application/gRPC;x=y"] {
            assert!(is_call(&request(Version::HTTP_2, "POST", good)), "{good}");
        }
        for bad in ["application/grpc-web", "application/grpc-web+proto", "application/grp", "text/plain"] {
            assert!(!is_call(&request(Version::HTTP_2, "POST", bad)), "{bad}");
        }
        assert!(!is_call(&request(Version::HTTP_11, "POST", "application/grpc")));
        assert!(!is_call(&request(Version::HTTP_2, "GET", "application/grpc")));
    }

    #[test]
    fn a_timeout_is_digits_and_a_unit() {
        let parsed = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(GRPC_TIMEOUT, text.parse().unwrap());
            timeout(&headers)
        };
        for (text, expected) in [
            ("1H", Duration::from_secs(3600)),
            ("2M", Duration::from_secs(120)),
            ("003S", Duration::from_secs(3)),
            ("99999999m", Duration::from_millis(99_999_999)),
            ("5u", Duration::from_micros(5)),
            ("0n", Duration::ZERO),
        ] {
            assert_eq!(parsed(text), Ok(Some(expected)), "{text}");
        }
        for text in ["", "S", "1", "1s", "+1S", "-1S", "1.5S", "123456789S", " 1S", "1 S", "1SS", "\u{e9}"] {
            assert!(parsed(text).is_err(), "{text:?}");
        }
        assert_eq!(timeout(&HeaderMap::new()), Ok(None));
    }

    #[test]
    fn an_error_is_trailers_only_and_shows_no_reason() {
        for reason in Reason::ALL.iter().filter(|reason| reason.status().is_some()) {
            let response = error_response(*reason);
            assert_eq!((response.status(), response.body().len()), (StatusCode::OK, 0));
            assert_eq!(response.extensions().get().copied(), reason.status().map(CountedStatus));
            assert_eq!(response.headers()[header::CONTENT_TYPE], "application/grpc");
            let message = response.headers()[GRPC_MESSAGE].to_str().unwrap();
            assert!(!message.contains(reason.label()) && !message.contains('%'), "{message}");
        }
        for (reason, code) in [
            (Reason::BadRequest, "13"),
            (Reason::NotAllowed, "7"),
            (Reason::NoRoute, "12"),
            (Reason::Misdirected, "2"),
            (Reason::UpstreamClosed, "14"),
            (Reason::UpstreamReadTimeout, "14"),
            (Reason::DeadlineExceeded, "4"),
        ] {
            assert_eq!(error_response(reason).headers()[GRPC_STATUS], code, "{reason:?}");
        }
    }
}
