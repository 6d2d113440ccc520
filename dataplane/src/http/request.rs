//! What a request asks for, taken out of hyper's types: the lines that name the host, and the path.
//!
//! Stands right behind the HTTP parser: [`check`] refuses what no gateway may forward, and brings
//! what HTTP/2 splits together. What host and path mean is [`model::Target`]'s, for every later
//! decision.

use http::request::Parts;
use http::uri::Authority;
use http::{HeaderMap, HeaderValue, Method, Uri, Version, header};
use model::{PathOptions, RequestTarget, RequestTargetError};

use super::head::{HeadError, HeadLimits};
use crate::reason::Reason;

/// What an `Upgrade` may offer without meaning that the request makes no sense otherwise: the
/// server may stay with HTTP/1.1 (RFC 9110 section 7.8). curl and Java offer the first by default,
/// Apache's HttpClient the second.
const IGNORED_UPGRADES: [&str; 2] = ["h2c", "tls"];

/// The largest length that nginx takes, of requests and answers. Bytes. A larger one is negative to
/// an upstream that reads 64 bits with a sign, and what follows would be a request that was never
/// judged.
pub const CONTENT_LENGTH_MAX: u64 = i64::MAX.unsigned_abs();

/// A request that is not forwarded, whoever asks and wherever it leads.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Over the limits of a head.
    #[error(transparent)]
    Head(#[from] HeadError),
    /// RFC 9110 sections 9.3.6 and 9.3.8: the one asks for a tunnel, the other would show what the
    /// gateway adds.
    #[error("the method {0} is not forwarded")]
    Method(Method),
    /// `*`, or an authority without a path.
    #[error("the request target {0:?} is not a path")]
    NotAPath(String),
    /// Above [`CONTENT_LENGTH_MAX`].
    #[error("Content-Length is {0}, more than {CONTENT_LENGTH_MAX}")]
    ContentLengthTooLarge(u64),
    /// RFC 9112 section 6.1: a coding that is not understood is 501.
    #[error("the transfer coding {0:?} is not supported, only chunked")]
    UnsupportedCoding(HeaderValue),
    /// More than one field would be applied one after the other: `chunked` twice.
    #[error("more than one Transfer-Encoding")]
    RepeatedTransferEncoding,
    /// It can only go on in that protocol.
    #[error("an upgrade to {0:?} is not enabled")]
    Upgrade(HeaderValue),
}

impl RequestError {
    /// For the log, the metric and the status.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Head(error) => error.reason(),
            Self::Method(_) => Reason::MethodNotAllowed,
            Self::NotAPath(_) | Self::RepeatedTransferEncoding | Self::ContentLengthTooLarge(_) => {
                Reason::BadRequest
            }
            Self::UnsupportedCoding(_) => Reason::TransferCoding,
            Self::Upgrade(_) => Reason::UpgradeNotSupported,
        }
    }
}

/// Checks what can be said of a request before anything is decided about it. `length` is that of
/// its body, if it is known. The `cookie` fields of HTTP/2 are one afterwards.
///
/// # Errors
/// [`RequestError`]; the request is answered with its reason's status.
pub fn check(parts: &mut Parts, length: Option<u64>, limits: HeadLimits) -> Result<(), RequestError> {
    if let Some(length) = length.filter(|length| *length > CONTENT_LENGTH_MAX) {
        return Err(RequestError::ContentLengthTooLarge(length));
    }
    if matches!(parts.method, Method::CONNECT | Method::TRACE) {
        return Err(RequestError::Method(parts.method.clone()));
    }
    if !parts.uri.path().starts_with('/') {
        return Err(RequestError::NotAPath(parts.uri.to_string()));
    }
    if parts.version == Version::HTTP_2 {
        join_cookies(&mut parts.headers);
        return Ok(limits.check_request(&parts.method, &parts.uri, &parts.headers)?);
    }
    let headers = &parts.headers;
    // Most requests have neither: looking through the few fields there are costs less than asking for
    // both.
    let rare = |name: &http::HeaderName| {
        name.as_str().starts_with(['t', 'u'])
            && (name == header::TRANSFER_ENCODING || name == header::UPGRADE)
    };
    if !headers.keys().any(rare) {
        return Ok(());
    }
    if let Some(coding) = headers.get(header::TRANSFER_ENCODING) {
        if headers.get_all(header::TRANSFER_ENCODING).iter().count() > 1 {
            return Err(RequestError::RepeatedTransferEncoding);
        }
        if !coding.as_bytes().eq_ignore_ascii_case(b"chunked") {
            return Err(RequestError::UnsupportedCoding(coding.clone()));
        }
    }
    // HTTP/1.0 knows no upgrade.
    if parts.version == Version::HTTP_11 {
        let upgrades = headers.get_all(header::UPGRADE).iter();
        if let Some(wanted) = upgrades.into_iter().find(|value| !is_ignored(value)) {
            return Err(RequestError::Upgrade(wanted.clone()));
        }
    }
    Ok(())
}

/// Whether all the protocols in this list may be left aside.
fn is_ignored(upgrade: &HeaderValue) -> bool {
    upgrade.to_str().is_ok_and(|list| {
        list.split(',').map(str::trim).filter(|protocol| !protocol.is_empty()).all(|protocol| {
            let name = protocol.split('/').next().unwrap_or_default();
            IGNORED_UPGRADES.iter().any(|ignored| name.eq_ignore_ascii_case(ignored))
        })
    })
}

/// Several `cookie` fields become one, in their order (RFC 9113 section 8.2.3: before anything that
/// is not HTTP/2 sees them).
fn join_cookies(headers: &mut HeaderMap) {
    let mut crumbs = headers.get_all(header::COOKIE).iter();
    let Some(first) = crumbs.next() else { return };
    let Some(second) = crumbs.next() else { return };
    let mut joined = first.as_bytes().to_vec();
    for crumb in std::iter::once(second).chain(crumbs) {
        joined.extend_from_slice(b"; ");
        joined.extend_from_slice(crumb.as_bytes());
    }
    // Parts of legal values make one; were it none, no part may pass for the whole.
    match HeaderValue::from_bytes(&joined) {
        Ok(cookie) => headers.insert(header::COOKIE, cookie),
        Err(_) => headers.remove(header::COOKIE),
    };
}

/// Reads the target of a request: host of `:authority`, the absolute form or `Host`, and path.
///
/// # Errors
/// [`TargetError`]; the request is answered 400.
pub fn parse_target(
    version: Version,
    uri: &Uri,
    headers: &HeaderMap,
    paths: PathOptions,
) -> Result<RequestTarget, RequestTargetError> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = match hosts.next() {
        Some(value) => Some(value.to_str().map_err(|_| RequestTargetError::InvalidHost)?),
        None => None,
    };
    if hosts.next().is_some() {
        return Err(RequestTargetError::ConflictingHosts);
    }
    let line = uri.authority().map(Authority::as_str);
    if line.is_none() && host.is_none() && version > Version::HTTP_10 {
        return Err(RequestTargetError::NoHost);
    }
    // The one control character that the `http` crate lets into a query, which is forwarded as it is.
    if uri.query().is_some_and(|query| query.as_bytes().contains(&0x7f)) {
        return Err(RequestTargetError::InvalidByte);
    }
    RequestTarget::new(line, host, uri.path(), paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(uri: &str, host: &[&str]) -> Result<RequestTarget, RequestTargetError> {
        let mut headers = HeaderMap::new();
        for value in host {
            headers.append(header::HOST, value.parse().unwrap());
        }
        parse_target(Version::HTTP_11, &uri.parse().unwrap(), &headers, PathOptions::default())
    }

    #[test]
    fn every_spelling_of_a_host_becomes_one() {
        let name = read("/", &["example.com"]).unwrap().host;
        assert!(name.is_some());
        for (uri, host) in [
            ("/", &["EXAMPLE.com"][..]),
            ("/", &["example.com."]),
            ("/", &["example.com:8443"]),
            ("https://Example.com/", &[]),
            ("https://example.com:443/", &["example.com:443"]),
        ] {
            assert_eq!(read(uri, host).unwrap().host, name, "{uri} {host:?}");
        }
    }

    #[test]
    fn only_http_1_0_may_name_no_host() {
        let (uri, headers) = (Uri::from_static("/"), HeaderMap::new());
        let read = |version| parse_target(version, &uri, &headers, PathOptions::default());
        assert_eq!(read(Version::HTTP_11), Err(RequestTargetError::NoHost));
        assert_eq!(read(Version::HTTP_2), Err(RequestTargetError::NoHost));
        assert_eq!(read(Version::HTTP_10).unwrap().host, None);
    }

    #[test]
    fn a_query_has_no_control_characters() {
        let read = |uri: &[u8]| {
            let uri = Uri::from_maybe_shared(bytes::Bytes::copy_from_slice(uri)).ok()?;
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, "a.com".parse().unwrap());
            parse_target(Version::HTTP_11, &uri, &headers, PathOptions::default()).ok()
        };
        for byte in (0..0x20).chain([0x7f]) {
            assert_eq!(read(&[b"/x?a", &[byte][..], b"b"].concat()), None, "{byte:#x}");
        }
        assert!(read(b"/x?a=\\&%00").is_some(), "a query is not judged");
    }

    fn checked(line: &str, fields: &[(&str, &str)]) -> Result<Parts, RequestError> {
        let mut words = line.split(' ');
        let mut request = http::Request::builder().method(words.next().unwrap()).uri(words.next().unwrap());
        request = request.version(match words.next() {
            Some("1.0") => Version::HTTP_10,
            Some("2") => Version::HTTP_2,
            _ => Version::HTTP_11,
        });
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let mut parts = request.body(()).unwrap().into_parts().0;
        check(&mut parts, None, HeadLimits { line: 64, head: 256 })?;
        Ok(parts)
    }

    fn reason(line: &str, fields: &[(&str, &str)]) -> Option<Reason> {
        checked(line, fields).err().map(|error| error.reason())
    }

    #[test]
    fn a_length_that_is_negative_elsewhere_is_refused() {
        let length = |length| {
            let mut parts = http::Request::post("/").body(()).unwrap().into_parts().0;
            check(&mut parts, Some(length), HeadLimits { line: 64, head: 256 })
        };
        assert_eq!(length(CONTENT_LENGTH_MAX), Ok(()));
        for above in [CONTENT_LENGTH_MAX + 1, u64::MAX - 2] {
            assert_eq!(length(above), Err(RequestError::ContentLengthTooLarge(above)));
        }
    }

    #[test]
    fn only_one_plain_chunked_is_a_coding() {
        let coding = |value| reason("POST /", &[("transfer-encoding", value)]);
        assert_eq!(coding("chunked"), None);
        assert_eq!(coding("CHUNKED"), None);
        for value in ["gzip, chunked", "cow, chunked", "chunked, chunked", "chunked;q=1", "", "xchunked"] {
            assert_eq!(coding(value), Some(Reason::TransferCoding), "{value:?}");
        }
        let twice = [("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")];
        assert_eq!(reason("POST /", &twice), Some(Reason::BadRequest));
    }

    #[test]
    fn an_upgrade_that_may_not_be_left_aside_is_refused() {
        let upgrade = |line, value| reason(line, &[("upgrade", value)]);
        for ignored in ["h2c", "H2C", "TLS/1.2", "TLS/1.0, h2c", "h2c,", ""] {
            assert_eq!(upgrade("GET /", ignored), None, "{ignored:?}");
        }
        for wanted in ["websocket", "WebSocket", "h2c, websocket", "websocket/13", "foo", "h2c2"] {
            assert_eq!(upgrade("GET /", wanted), Some(Reason::UpgradeNotSupported), "{wanted:?}");
        }
        assert_eq!(upgrade("GET / 1.0", "websocket"), None);
        let twice = [("upgrade", "h2c"), ("upgrade", "websocket")];
        assert_eq!(reason("GET /", &twice), Some(Reason::UpgradeNotSupported));
    }

    #[test]
    fn methods_and_forms_that_no_gateway_forwards_are_refused() {
        for line in ["CONNECT a.com:443", "CONNECT / 1.0", "TRACE /", "TRACE / 2", "TRACE http://a.com/"] {
            assert_eq!(reason(line, &[]), Some(Reason::MethodNotAllowed), "{line}");
        }
        for line in ["GET *", "OPTIONS *", "OPTIONS * 2", "GET a.com:80", "PUT * 1.0"] {
            assert_eq!(reason(line, &[]), Some(Reason::BadRequest), "{line}");
        }
        for line in ["GET /", "OPTIONS /", "GET http://a.com", "GET http://a.com?x", "PURGE /*", "trace /"] {
            assert_eq!(reason(line, &[]), None, "{line}");
        }
    }

    #[test]
    fn cookies_of_http_2_become_one_in_their_order() {
        let crumbs = [("cookie", "a=1"), ("x", "y"), ("cookie", "b=2"), ("cookie", "c=3; d=4")];
        let headers = checked("GET / 2", &crumbs).unwrap().headers;
        let cookies: Vec<_> = headers.get_all("cookie").iter().collect();
        assert_eq!(cookies, ["a=1; b=2; c=3; d=4"]);
        let one = checked("GET / 2", &[("cookie", "a=1")]).unwrap().headers;
        assert_eq!(one["cookie"], "a=1");
        assert!(checked("GET / 2", &[]).unwrap().headers.is_empty());
        let apart = checked("GET /", &crumbs).unwrap().headers;
        assert_eq!(apart.get_all("cookie").iter().count(), 3, "HTTP/1 has one field, and no rule for more");
    }

    #[test]
    fn an_http_2_head_meets_the_limits_with_its_cookie_whole() {
        let long = "x".repeat(100);
        assert_eq!(reason(&format!("GET /{long} 2"), &[]), Some(Reason::UriTooLong));
        assert_eq!(reason("GET / 2", &[("a", &long)]), Some(Reason::HeadTooLarge));
        let half = "x".repeat(40);
        let crumbs = [("cookie", &*half), ("cookie", &*half)];
        assert_eq!(reason("GET / 2", &crumbs), Some(Reason::HeadTooLarge));
    }

    #[test]
    fn two_hosts_are_refused() {
        assert_eq!(read("/", &["a.com", "a.com"]), Err(RequestTargetError::ConflictingHosts));
        assert_eq!(read("http://a.com/", &["b.com"]), Err(RequestTargetError::ConflictingHosts));
        assert_eq!(read("/", &["u@a.com"]), Err(RequestTargetError::InvalidHost));
        assert_eq!(read("/", &[""]), Err(RequestTargetError::InvalidHost));
    }
}
