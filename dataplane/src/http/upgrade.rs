//! The opening handshake of a WebSocket: over HTTP/1 (RFC 6455 section 4), over HTTP/2 (RFC 8441
//! section 5), and towards upstreams, where it is always HTTP/1.
//!
//! [`request::check`](super::request::check) recognises a handshake, which from then on is a GET
//! without a body. Invariant: only a 101 that answers this very handshake opens a tunnel. What
//! passes through it is not read.

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, Version, header};

/// The protocol's name in `Upgrade` and `:protocol`.
const WEBSOCKET: &str = "websocket";
/// RFC 6455 section 1.3.
const ACCEPT_SUFFIX: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// RFC 6455 section 4.1.
const VERSION: HeaderValue = HeaderValue::from_static("13");

/// A handshake of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WebSocketHandshake {
    /// GET with `Upgrade`, answered with 101.
    Http1,
    /// An extended CONNECT, answered with 200.
    Http2,
}

/// The upstream's 101 opens no WebSocket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SwitchError {
    #[error("the response does not switch to the WebSocket protocol")]
    Protocol,
    /// The upstream has not read this handshake.
    #[error("Sec-WebSocket-Accept does not belong to the key of the request")]
    Accept,
}

/// Whether an `Upgrade` or `:protocol` names the WebSocket protocol, and no other.
pub(super) fn is_websocket(protocol: &[u8]) -> bool {
    protocol.trim_ascii().eq_ignore_ascii_case(WEBSOCKET.as_bytes())
}

/// Whether `Connection` lists `upgrade` (RFC 9110 section 7.8).
pub(super) fn is_upgrade_listed(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .any(|name| name.trim_ascii().eq_ignore_ascii_case(b"upgrade"))
}

impl WebSocketHandshake {
    /// Makes the end-to-end fields of the client's handshake those of the upstream's. HTTP/2 has no
    /// key: the connection's framing shows that the server has read the request.
    pub(crate) fn set_request_fields(self, headers: &mut HeaderMap) {
        set_connection_fields(headers);
        if self == Self::Http2 {
            let key: [u8; 16] = rand::random();
            // Base64 is always a valid value; without a key the upstream rejects the handshake.
            if let Ok(key) = HeaderValue::try_from(BASE64.encode(key)) {
                headers.insert(header::SEC_WEBSOCKET_KEY, key);
            }
            headers.insert(header::SEC_WEBSOCKET_VERSION, VERSION);
        }
    }

    /// Makes the upstream's 101, without its hop-by-hop fields, the response to the client.
    pub(crate) fn set_response_head<B>(self, response: &mut Response<B>) {
        // RFC 9110 section 8.6: no 101 has one.
        response.headers_mut().remove(header::CONTENT_LENGTH);
        match self {
            Self::Http1 => set_connection_fields(response.headers_mut()),
            Self::Http2 => {
                *response.status_mut() = StatusCode::OK;
                response.headers_mut().remove(header::SEC_WEBSOCKET_ACCEPT);
            }
        }
    }
}

fn set_connection_fields(headers: &mut HeaderMap) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static(WEBSOCKET));
}

/// Checks an upstream's 101. `key`: `Sec-WebSocket-Key` of the request; without one nothing shows
/// that the upstream has read the handshake.
///
/// # Errors
/// [`SwitchError`]: there is no tunnel.
pub(crate) fn check_switch<B>(key: Option<&HeaderValue>, response: &Response<B>) -> Result<(), SwitchError> {
    let headers = response.headers();
    let one = |name: HeaderName| {
        let mut values = headers.get_all(name).iter();
        values.next().filter(|_| values.next().is_none())
    };
    let protocol = one(header::UPGRADE).filter(|protocol| is_websocket(protocol.as_bytes()));
    if protocol.is_none() || response.version() != Version::HTTP_11 || !is_upgrade_listed(headers) {
        return Err(SwitchError::Protocol);
    }
    let expected = accept_of(key.ok_or(SwitchError::Accept)?);
    let accept = one(header::SEC_WEBSOCKET_ACCEPT).ok_or(SwitchError::Accept)?;
    if accept.as_bytes() == expected.as_bytes() { Ok(()) } else { Err(SwitchError::Accept) }
}

/// RFC 6455 section 4.2.2.
fn accept_of(key: &HeaderValue) -> String {
    let input = [key.as_bytes(), ACCEPT_SUFFIX].concat();
    BASE64.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, &input))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of RFC 6455 section 1.3.
    const KEY: HeaderValue = HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ==");
    const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

    fn switching(fields: &[(&'static str, &'static str)]) -> Response<()> {
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        for (name, value) in fields {
            response.headers_mut().append(*name, HeaderValue::from_static(value));
        }
        response
    }

    const CONNECTION: (&str, &str) = ("connection", "keep-alive, Upgrade");
    const UPGRADE: (&str, &str) = ("upgrade", "WebSocket");

    #[test]
    fn only_an_answer_to_this_handshake_switches() {
        let accept = ("sec-websocket-accept", ACCEPT);
        let check = |fields: &[_]| check_switch(Some(&KEY), &switching(fields));
        assert_eq!(check(&[CONNECTION, UPGRADE, accept]), Ok(()));
        for fields in [
            &[CONNECTION, accept][..],
            &[UPGRADE, accept],
            &[CONNECTION, ("upgrade", "h2c"), accept],
            &[CONNECTION, ("upgrade", "websocket, h2c"), accept],
            &[CONNECTION, UPGRADE, UPGRADE, accept],
        ] {
            assert_eq!(check(fields), Err(SwitchError::Protocol), "{fields:?}");
        }
        for accepts in [&[][..], &[("sec-websocket-accept", "AAAA")], &[accept, accept]] {
            assert_eq!(check(&[&[CONNECTION, UPGRADE], accepts].concat()), Err(SwitchError::Accept));
        }
        for fields in [&[CONNECTION, UPGRADE][..], &[CONNECTION, UPGRADE, accept]] {
            assert_eq!(check_switch(None, &switching(fields)), Err(SwitchError::Accept), "no key");
        }
        let mut old = switching(&[CONNECTION, UPGRADE, accept]);
        *old.version_mut() = Version::HTTP_10;
        assert_eq!(check_switch(Some(&KEY), &old), Err(SwitchError::Protocol));
    }

    #[test]
    fn a_handshake_of_http_2_becomes_one_of_http_1() {
        let mut headers = HeaderMap::new();
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static("chat"));
        headers.insert(header::SEC_WEBSOCKET_KEY, KEY);
        WebSocketHandshake::Http2.set_request_fields(&mut headers);
        let key = &headers[header::SEC_WEBSOCKET_KEY];
        assert_eq!(BASE64.decode(key).unwrap().len(), 16);
        assert_ne!(key, KEY);
        assert_eq!(headers[header::SEC_WEBSOCKET_VERSION], "13");
        assert_eq!(
            (&headers["connection"], &headers["upgrade"]),
            (&"Upgrade".parse().unwrap(), &"websocket".parse().unwrap())
        );
        let mut response = switching(&[("sec-websocket-accept", ACCEPT), ("sec-websocket-protocol", "chat")]);
        WebSocketHandshake::Http2.set_response_head(&mut response);
        assert_eq!((response.status(), response.headers().len()), (StatusCode::OK, 1));
        assert_eq!(response.headers()["sec-websocket-protocol"], "chat");
    }

    #[test]
    fn a_handshake_of_http_1_keeps_its_key() {
        let mut headers = HeaderMap::new();
        headers.insert(header::SEC_WEBSOCKET_KEY, KEY);
        WebSocketHandshake::Http1.set_request_fields(&mut headers);
        assert_eq!((&headers[header::SEC_WEBSOCKET_KEY], headers.len()), (&KEY, 3));
        let mut response = switching(&[("sec-websocket-accept", ACCEPT), ("content-length", "5")]);
        WebSocketHandshake::Http1.set_response_head(&mut response);
        assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
        let mut names: Vec<_> = response.headers().keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["connection", "sec-websocket-accept", "upgrade"]);
    }
}
