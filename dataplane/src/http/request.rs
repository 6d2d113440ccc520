//! Checks a request head right after the HTTP parser, and takes host and path out of it.
//!
//! [`check`] rejects what no gateway may forward, and joins what HTTP/2 splits. [`parse_target`]
//! gives the [`RequestTarget`] by which all later decisions are made.

use http::request::Parts;
use http::uri::Authority;
use http::{HeaderMap, HeaderValue, Method, Uri, Version, header};
use model::{PathOptions, RequestTarget, RequestTargetError};

use super::head::{HeadError, HeadLimits};
use super::upgrade::{self, WebSocketHandshake};
use crate::observability::HasReason;
use crate::reason::Reason;

/// Protocols of an `Upgrade` that a server may ignore, staying with HTTP/1.1 (RFC 9110 section
/// 7.8). curl and Java offer the first by default, Apache's HttpClient the second.
const IGNORED_UPGRADES: [&str; 2] = ["h2c", "tls"];

/// The largest `Content-Length` that nginx accepts, in requests and responses. A larger one is
/// negative to an upstream that reads 64 bits with a sign, which would take the body for an
/// unchecked request.
pub(crate) const CONTENT_LENGTH_MAX: u64 = i64::MAX.unsigned_abs();

/// A request that is never forwarded.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    #[error(transparent)]
    Head(#[from] HeadError),
    /// CONNECT requests a tunnel, TRACE would return the headers that we add (RFC 9110 sections
    /// 9.3.6 and 9.3.8).
    #[error("the method {0} is not forwarded")]
    Method(Method),
    /// `*`, or an authority without a path.
    #[error("the request target {0:?} is not a path")]
    NotAPath(String),
    #[error("Content-Length is {0}, more than {CONTENT_LENGTH_MAX}")]
    ContentLengthTooLarge(u64),
    /// RFC 9112 section 6.1: 501.
    #[error("the transfer coding {0:?} is not supported, only chunked")]
    UnsupportedCoding(HeaderValue),
    /// The codings would be applied one after the other: `chunked` twice.
    #[error("more than one Transfer-Encoding")]
    RepeatedTransferEncoding,
    #[error("an upgrade to {0:?} is not enabled")]
    Upgrade(HeaderValue),
    /// The body would be the first bytes of the tunnel to one reader, and not to the next.
    #[error("a request for another protocol has a body")]
    UpgradeWithBody,
    /// An extended CONNECT (RFC 8441): 501, as RFC 9220 section 3 has it.
    #[error("the protocol {0:?} is not enabled")]
    Protocol(String),
}

impl HasReason for RequestError {
    fn reason(&self) -> Reason {
        match self {
            Self::Head(error) => error.reason(),
            Self::Method(_) => Reason::MethodNotAllowed,
            Self::NotAPath(_)
            | Self::RepeatedTransferEncoding
            | Self::ContentLengthTooLarge(_)
            | Self::UpgradeWithBody => Reason::BadRequest,
            Self::UnsupportedCoding(_) => Reason::TransferCoding,
            Self::Upgrade(_) => Reason::UpgradeNotSupported,
            Self::Protocol(_) => Reason::ProtocolNotSupported,
        }
    }
}

impl HasReason for RequestTargetError {
    fn reason(&self) -> Reason {
        Reason::BadRequest
    }
}

/// Checks a request head. `length`: of its body, if known. Joins the `cookie` fields of HTTP/2, and
/// makes an extended CONNECT the GET that it stands for. Returns the handshake that the request is,
/// which the route has to allow ([`refused`]).
///
/// # Errors
/// [`RequestError`].
pub(crate) fn check(
    parts: &mut Parts,
    length: Option<u64>,
    limits: HeadLimits,
) -> Result<Option<WebSocketHandshake>, RequestError> {
    if let Some(length) = length.filter(|length| *length > CONTENT_LENGTH_MAX) {
        return Err(RequestError::ContentLengthTooLarge(length));
    }
    let extended_connect = take_extended_connect(parts, length)?;
    if matches!(parts.method, Method::CONNECT | Method::TRACE) {
        return Err(RequestError::Method(parts.method.clone()));
    }
    if !parts.uri.path().starts_with('/') {
        return Err(RequestError::NotAPath(parts.uri.to_string()));
    }
    if parts.version == Version::HTTP_2 {
        join_cookies(&mut parts.headers);
        limits.check_request(&parts.method, &parts.uri, &parts.headers)?;
        return Ok(extended_connect);
    }
    let headers = &parts.headers;
    // Most requests have neither: one pass over their few fields costs less than two look-ups.
    let is_checked = |name: &http::HeaderName| {
        name.as_str().starts_with(['t', 'u'])
            && (name == header::TRANSFER_ENCODING || name == header::UPGRADE)
    };
    if !headers.keys().any(is_checked) {
        return Ok(None);
    }
    if let Some(coding) = headers.get(header::TRANSFER_ENCODING) {
        if headers.get_all(header::TRANSFER_ENCODING).iter().count() > 1 {
            return Err(RequestError::RepeatedTransferEncoding);
        }
        if !coding.as_bytes().eq_ignore_ascii_case(b"chunked") {
            return Err(RequestError::UnsupportedCoding(coding.clone()));
        }
    }
    // HTTP/1.0 has no upgrade.
    if parts.version != Version::HTTP_11 {
        return Ok(None);
    }
    let Some(protocol) = headers.get_all(header::UPGRADE).iter().find(|value| !is_ignored_upgrade(value))
    else {
        return Ok(None);
    };
    let is_handshake = parts.method == Method::GET
        && upgrade::is_websocket(protocol.as_bytes())
        && upgrade::is_upgrade_listed(headers)
        && headers.get_all(header::UPGRADE).iter().count() == 1;
    match length {
        _ if !is_handshake => Err(RequestError::Upgrade(protocol.clone())),
        Some(0) => Ok(Some(WebSocketHandshake::Http1)),
        _ => Err(RequestError::UpgradeWithBody),
    }
}

/// Makes an extended CONNECT of HTTP/2 (RFC 8441 section 4) a GET: routes and upstreams know no
/// other WebSocket.
fn take_extended_connect(
    parts: &mut Parts,
    length: Option<u64>,
) -> Result<Option<WebSocketHandshake>, RequestError> {
    if parts.method != Method::CONNECT {
        return Ok(None);
    }
    let Some(protocol) = parts.extensions.remove::<h2::ext::Protocol>() else { return Ok(None) };
    if !upgrade::is_websocket(protocol.as_str().as_bytes()) {
        return Err(RequestError::Protocol(protocol.as_str().to_owned()));
    }
    // Its DATA is the tunnel: it has no length, and does not end with its head.
    if length.is_some() {
        return Err(RequestError::UpgradeWithBody);
    }
    parts.method = Method::GET;
    Ok(Some(WebSocketHandshake::Http2))
}

/// The error of a handshake that its route does not allow.
pub(crate) fn refused(handshake: WebSocketHandshake) -> RequestError {
    match handshake {
        WebSocketHandshake::Http1 => RequestError::Upgrade(HeaderValue::from_static("websocket")),
        WebSocketHandshake::Http2 => RequestError::Protocol("websocket".to_owned()),
    }
}

/// Whether all protocols of an `Upgrade` may be ignored.
fn is_ignored_upgrade(upgrade: &HeaderValue) -> bool {
    upgrade.to_str().is_ok_and(|list| {
        list.split(',').map(str::trim).filter(|protocol| !protocol.is_empty()).all(|protocol| {
            let name = protocol.split('/').next().unwrap_or_default();
            IGNORED_UPGRADES.iter().any(|ignored| name.eq_ignore_ascii_case(ignored))
        })
    })
}

/// Whether the client waits for 100 before it sends the body (RFC 9110 section 10.1.1).
pub(crate) fn expects_continue(headers: &HeaderMap) -> bool {
    let mut expectations = headers.get_all(header::EXPECT).iter();
    expectations.any(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

/// Joins several `cookie` fields in their order (RFC 9113 section 8.2.3: before they leave HTTP/2).
fn join_cookies(headers: &mut HeaderMap) {
    let mut crumbs = headers.get_all(header::COOKIE).iter();
    let Some(first) = crumbs.next() else { return };
    let Some(second) = crumbs.next() else { return };
    let mut joined = first.as_bytes().to_vec();
    for crumb in std::iter::once(second).chain(crumbs) {
        joined.extend_from_slice(b"; ");
        joined.extend_from_slice(crumb.as_bytes());
    }
    // Valid parts make a valid value; if not, no part must pass for the whole.
    match HeaderValue::from_bytes(&joined) {
        Ok(cookie) => headers.insert(header::COOKIE, cookie),
        Err(_) => headers.remove(header::COOKIE),
    };
}

/// Parses the target of a request: the host of `:authority`, the absolute form or `Host`, and the
/// path.
///
/// # Errors
/// [`RequestTargetError`].
pub fn parse_target(
    version: Version,
    uri: &Uri,
    headers: &HeaderMap,
    path_options: PathOptions,
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
    // The one control character that the `http` crate accepts in a query, which is forwarded as it
    // is.
    if uri.query().is_some_and(|query| query.as_bytes().contains(&0x7f)) {
        return Err(RequestTargetError::InvalidByte);
    }
    RequestTarget::new(line, host, uri.path(), path_options)
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
    fn every_spelling_of_a_host_is_normalized() {
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
    fn only_http_1_0_may_have_no_host() {
        let (uri, headers) = (Uri::from_static("/"), HeaderMap::new());
        let read = |version| parse_target(version, &uri, &headers, PathOptions::default());
        assert_eq!(read(Version::HTTP_11), Err(RequestTargetError::NoHost));
        assert_eq!(read(Version::HTTP_2), Err(RequestTargetError::NoHost));
        assert_eq!(read(Version::HTTP_10).unwrap().host, None);
    }

    #[test]
    fn control_characters_in_a_query_are_rejected() {
        let read = |uri: &[u8]| {
            let uri = Uri::from_maybe_shared(bytes::Bytes::copy_from_slice(uri)).ok()?;
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, "a.com".parse().unwrap());
            parse_target(Version::HTTP_11, &uri, &headers, PathOptions::default()).ok()
        };
        for byte in (0..0x20).chain([0x7f]) {
            assert_eq!(read(&[b"/x?a", &[byte][..], b"b"].concat()), None, "{byte:#x}");
        }
        assert!(read(b"/x?a=\\&%00").is_some(), "a query is not decoded");
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
    fn a_length_above_63_bits_is_rejected() {
        let length = |length| {
            let mut parts = http::Request::post("/").body(()).unwrap().into_parts().0;
            check(&mut parts, Some(length), HeadLimits { line: 64, head: 256 })
        };
        assert_eq!(length(CONTENT_LENGTH_MAX), Ok(None));
        for above in [CONTENT_LENGTH_MAX + 1, u64::MAX - 2] {
            assert_eq!(length(above), Err(RequestError::ContentLengthTooLarge(above)));
        }
    }

    #[test]
    fn only_chunked_is_a_supported_coding() {
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
    fn an_upgrade_that_cannot_be_ignored_is_rejected() {
        let upgrade = |line, value| reason(line, &[("upgrade", value)]);
        for ignored in ["h2c", "H2C", "TLS/1.2", "TLS/1.0, h2c", "h2c,", ""] {
            assert_eq!(upgrade("GET /", ignored), None, "{ignored:?}");
        }
        for protocol in ["websocket", "WebSocket", "h2c, websocket", "websocket/13", "foo", "h2c2"] {
            assert_eq!(upgrade("GET /", protocol), Some(Reason::UpgradeNotSupported), "{protocol:?}");
        }
        assert_eq!(upgrade("GET / 1.0", "websocket"), None);
        let twice = [("upgrade", "h2c"), ("upgrade", "websocket")];
        assert_eq!(reason("GET /", &twice), Some(Reason::UpgradeNotSupported));
    }

    /// The handshake that the request is.
    fn handshake(
        line: &str,
        fields: &[(&str, &str)],
        protocol: Option<&'static str>,
        length: Option<u64>,
    ) -> Result<Option<WebSocketHandshake>, Reason> {
        let mut request = http::Request::builder().uri("http://a.com/chat");
        let (method, version) = line.split_once(' ').unwrap();
        let version = if version == "2" { Version::HTTP_2 } else { Version::HTTP_11 };
        request = request.method(method).version(version);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        if let Some(protocol) = protocol {
            request = request.extension(h2::ext::Protocol::from_static(protocol));
        }
        let mut parts = request.body(()).unwrap().into_parts().0;
        let checked = check(&mut parts, length, HeadLimits { line: 64, head: 256 });
        if checked.as_ref().is_ok_and(Option::is_some) {
            assert_eq!(parts.method, Method::GET);
        }
        checked.map_err(|error| error.reason())
    }

    #[test]
    fn only_a_get_without_a_body_opens_a_web_socket() {
        let fields = [("upgrade", "websocket"), ("connection", "keep-alive, Upgrade")];
        let opened = Ok(Some(WebSocketHandshake::Http1));
        assert_eq!(handshake("GET 1.1", &fields, None, Some(0)), opened);
        let capital = [("upgrade", "WebSocket"), ("connection", "upgrade")];
        assert_eq!(handshake("GET 1.1", &capital, None, Some(0)), opened);
        for length in [Some(5), None] {
            assert_eq!(handshake("GET 1.1", &fields, None, length), Err(Reason::BadRequest));
        }
        let refused = Err(Reason::UpgradeNotSupported);
        assert_eq!(handshake("POST 1.1", &fields, None, Some(0)), refused);
        assert_eq!(handshake("GET 1.1", &fields[..1], None, Some(0)), refused, "no Connection");
        let twice = [fields[0], fields[0], fields[1]];
        assert_eq!(handshake("GET 1.1", &twice, None, Some(0)), refused);
        let other = [("upgrade", "websocket, h2c"), fields[1]];
        assert_eq!(handshake("GET 1.1", &other, None, Some(0)), refused);
        assert_eq!(handshake("GET 2", &fields, None, Some(0)), Ok(None), "fields are no handshake");
    }

    #[test]
    fn an_extended_connect_opens_a_web_socket() {
        let connect = |protocol, length| handshake("CONNECT 2", &[], protocol, length);
        assert_eq!(connect(Some("websocket"), None), Ok(Some(WebSocketHandshake::Http2)));
        assert_eq!(connect(None, None), Err(Reason::MethodNotAllowed));
        for length in [0, 5] {
            assert_eq!(connect(Some("websocket"), Some(length)), Err(Reason::BadRequest));
        }
        for protocol in ["connect-udp", "websocket/13", ""] {
            assert_eq!(connect(Some(protocol), None), Err(Reason::ProtocolNotSupported), "{protocol:?}");
        }
        assert_eq!(handshake("GET 2", &[], Some("websocket"), None), Ok(None));
    }

    #[test]
    fn connect_trace_and_targets_without_a_path_are_rejected() {
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
    fn cookie_fields_of_http_2_are_joined_in_order() {
        let crumbs = [("cookie", "a=1"), ("x", "y"), ("cookie", "b=2"), ("cookie", "c=3; d=4")];
        let headers = checked("GET / 2", &crumbs).unwrap().headers;
        let cookies: Vec<_> = headers.get_all("cookie").iter().collect();
        assert_eq!(cookies, ["a=1; b=2; c=3; d=4"]);
        let one = checked("GET / 2", &[("cookie", "a=1")]).unwrap().headers;
        assert_eq!(one["cookie"], "a=1");
        assert!(checked("GET / 2", &[]).unwrap().headers.is_empty());
        let separate = checked("GET /", &crumbs).unwrap().headers;
        assert_eq!(separate.get_all("cookie").iter().count(), 3, "fields of HTTP/1 are not joined");
    }

    #[test]
    fn limits_apply_to_the_joined_cookie_of_http_2() {
        let long = "x".repeat(100);
        assert_eq!(reason(&format!("GET /{long} 2"), &[]), Some(Reason::UriTooLong));
        assert_eq!(reason("GET / 2", &[("a", &long)]), Some(Reason::HeadTooLarge));
        let half = "x".repeat(40);
        let crumbs = [("cookie", &*half), ("cookie", &*half)];
        assert_eq!(reason("GET / 2", &crumbs), Some(Reason::HeadTooLarge));
    }

    #[test]
    fn conflicting_hosts_are_rejected() {
        assert_eq!(read("/", &["a.com", "a.com"]), Err(RequestTargetError::ConflictingHosts));
        assert_eq!(read("http://a.com/", &["b.com"]), Err(RequestTargetError::ConflictingHosts));
        assert_eq!(read("/", &["u@a.com"]), Err(RequestTargetError::InvalidHost));
        assert_eq!(read("/", &[""]), Err(RequestTargetError::InvalidHost));
    }
}
