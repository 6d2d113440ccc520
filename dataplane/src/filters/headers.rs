//! The headers a request is forwarded with, and an answer is given back with. Contract 10.3 and
//! 10.4.
//!
//! Order matters and is fixed here: hop-by-hop headers go first (so that a `Connection: x-real-ip`
//! cannot remove what we set), then every claim from outside that may not pass, in every spelling
//! (`claims`, invariant 6), then ours are set. RFC 9110 section 7.6.1.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::untrusted_headers;
pub use super::untrusted_headers::PeerTrust;
pub(super) use super::untrusted_headers::is_same_name;

/// Headers that speak of one connection, not of the message.
static HOP_BY_HOP: [HeaderName; 10] = [
    header::CONNECTION,
    // The gateway answers it itself, with 100 (RFC 9110 section 10.1.1).
    header::EXPECT,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// What the forwarded headers say of a connection: made once for all its requests.
#[derive(Debug, Clone)]
pub struct ConnectionHeaders {
    /// Who dialled us.
    ip: HeaderValue,
    /// `https` or `http`.
    scheme: HeaderValue,
    /// The port we were reached on.
    port: u16,
}

impl ConnectionHeaders {
    /// A connection from `peer` to our `port`, within TLS or not.
    pub fn new(peer: SocketAddr, port: u16, tls: bool) -> Self {
        let scheme = HeaderValue::from_static(if tls { "https" } else { "http" });
        Self { ip: address_value(peer.ip()), scheme, port }
    }
}

fn address_value(ip: IpAddr) -> HeaderValue {
    // An address is always a value; were it none, the header from outside must not stand in its place.
    HeaderValue::try_from(ip.to_canonical().to_string()).unwrap_or(HeaderValue::from_static("unknown"))
}

/// What the forwarded headers are made from.
#[derive(Debug, Clone, Copy)]
pub struct ForwardedContext<'a> {
    /// Its connection.
    pub connection: &'a ConnectionHeaders,
    /// The client's address, where `real_ip` found another than the connection's.
    pub real_ip: Option<IpAddr>,
    /// Whether `apisix.trusted_addresses` is set: then `X-Forwarded-For` is kept from a trusted
    /// peer only.
    pub has_trusted_addresses: bool,
    /// Whom the connection's peer is trusted to speak for.
    pub trust: PeerTrust,
    /// `real_ip_header`, where `real_ip_from` lists somebody.
    pub real_ip_header: Option<&'a HeaderName>,
    /// The request's authority as the client wrote it.
    pub authority: Option<&'a str>,
}

/// How many headers [`to_upstream`] may add.
const ADDED_MAX: usize = 5;

pub(super) const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
pub(super) const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");

/// Turns a client's request headers into those the upstream gets (all but `Host`).
pub fn prepare_request(headers: &mut HeaderMap, from: &ForwardedContext<'_>) {
    strip_hop_by_hop(headers);
    untrusted_headers::remove_untrusted(headers, from.trust, from.real_ip_header);
    set_forwarded(headers, from);
}

/// Removes from an answer what speaks of the upstream's connection.
pub fn prepare_response(headers: &mut HeaderMap) {
    strip_hop_by_hop(headers);
}

fn strip_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(header::CONNECTION) {
        let listed: Vec<HeaderName> = headers
            .get_all(header::CONNECTION)
            .iter()
            // As bytes: one that is no text must not hide the names beside it.
            .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
            .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
            .collect();
        for name in listed {
            // Framing and routing are not the client's to remove.
            if name != header::HOST && name != header::CONTENT_LENGTH {
                headers.remove(name);
            }
        }
    }
    // Most messages carry none: looking through the few there are costs less than asking for each of
    // the ten.
    if headers.keys().any(is_hop_by_hop) {
        for name in &HOP_BY_HOP {
            headers.remove(name);
        }
    }
}

fn is_hop_by_hop(name: &HeaderName) -> bool {
    // Cheap filter: all the names start with one of these letters.
    name.as_str().starts_with(['c', 'e', 'k', 'p', 't', 'u']) && HOP_BY_HOP.contains(name)
}

fn set_forwarded(headers: &mut HeaderMap, from: &ForwardedContext<'_>) {
    let found = from.real_ip.map(address_value);
    let ip = found.as_ref().unwrap_or(&from.connection.ip);
    headers.reserve(ADDED_MAX);
    let forwarded_for = match headers.get(&X_FORWARDED_FOR) {
        // Without `trusted_addresses` the list is appended to; with it, only a trusted peer's is.
        Some(_) if from.trust.forwarded || !from.has_trusted_addresses => {
            let mut list: Vec<u8> = Vec::new();
            for value in headers.get_all(&X_FORWARDED_FOR) {
                list.extend_from_slice(value.as_bytes());
                list.extend_from_slice(b", ");
            }
            list.extend_from_slice(ip.as_bytes());
            HeaderValue::from_bytes(&list).unwrap_or_else(|_| ip.clone())
        }
        _ => ip.clone(),
    };
    headers.insert(X_FORWARDED_FOR, forwarded_for);
    headers.insert(X_REAL_IP, ip.clone());
    if !from.trust.forwarded {
        headers.remove(header::FORWARDED);
    }
    // A trusted peer keeps what it sent, each header on its own; an empty one counts as not sent, as in
    // APISIX.
    let kept = |headers: &HeaderMap, name| {
        from.trust.forwarded && headers.get_all(name).iter().any(|value: &HeaderValue| !value.is_empty())
    };
    if !kept(headers, X_FORWARDED_PROTO) {
        headers.insert(X_FORWARDED_PROTO, from.connection.scheme.clone());
    }
    if !kept(headers, X_FORWARDED_HOST) {
        match from.authority.and_then(|authority| authority_value(headers, authority)) {
            Some(value) => headers.insert(X_FORWARDED_HOST, value),
            None => headers.remove(X_FORWARDED_HOST),
        };
    }
    if !kept(headers, X_FORWARDED_PORT) {
        let port = from.authority.and_then(port_of).unwrap_or(from.connection.port);
        headers.insert(X_FORWARDED_PORT, HeaderValue::from(port));
    }
}

/// The list in `X-Forwarded-For` as the client sent it: without its own address, which
/// [`to_upstream`] has put at the end and beside it into `X-Real-IP`. `None`: it sent none, or none
/// that may pass.
pub(super) fn client_forwarded_for(headers: &HeaderMap) -> Option<&[u8]> {
    let own = headers.get(&X_REAL_IP)?;
    let list = headers.get(&X_FORWARDED_FOR)?;
    list.as_bytes().strip_suffix(own.as_bytes())?.strip_suffix(b", ")
}

/// The authority as a value: nearly always the one that stands in `Host` already, which is shared
/// then.
fn authority_value(headers: &HeaderMap, authority: &str) -> Option<HeaderValue> {
    match headers.get(header::HOST) {
        Some(host) if host.as_bytes() == authority.as_bytes() => Some(host.clone()),
        _ => HeaderValue::from_str(authority).ok(),
    }
}

fn port_of(authority: &str) -> Option<u16> {
    let (host, port) = authority.rsplit_once(':')?;
    // `[::1]` has colons but no port.
    if host.starts_with('[') && !host.ends_with(']') { None } else { port.parse().ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
        }
        headers
    }

    fn via() -> ConnectionHeaders {
        ConnectionHeaders::new("192.0.2.7:1234".parse().unwrap(), 9443, true)
    }

    /// `None`: `trusted_addresses` is not set.
    fn forwarded(via: &ConnectionHeaders, trusted: Option<bool>) -> ForwardedContext<'_> {
        let trust = PeerTrust { forwarded: trusted == Some(true), address: false };
        let authority = Some("a.example:8443");
        ForwardedContext {
            connection: via,
            real_ip: None,
            has_trusted_addresses: trusted.is_some(),
            trust,
            real_ip_header: None,
            authority,
        }
    }

    #[test]
    fn identity_from_outside_goes_in_every_spelling() {
        for trusted in [None, Some(false), Some(true)] {
            let mut headers = map(&[
                ("X-SSL-Client-S-DN", "CN=root"),
                ("x_ssl_client_verify", "SUCCESS"),
                ("client_cert", ":AAAA:"),
                ("x_forwarded-client_cert", "By=x"),
                ("Client-Cert-Chain", "a"),
                ("Client-Cert-Chain", "b"),
                ("x~ssl!client+s|dn", "CN=root"),
                ("Remote-User", "root"),
                ("X-Api-Key", "stays"),
                ("Cookie", "stays"),
            ]);
            prepare_request(&mut headers, &forwarded(&via(), trusted));
            let ours = |name: &&str| !matches!(*name, "x-real-ip") && !name.starts_with("x-forwarded-");
            let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).filter(ours).collect();
            left.sort_unstable();
            assert_eq!(left, ["cookie", "x-api-key"]);
        }
    }

    #[test]
    fn no_other_spelling_of_what_we_set_stands_beside_it() {
        for trusted in [None, Some(false), Some(true)] {
            let mut headers = map(&[
                ("X_Forwarded_For", "6.6.6.6"),
                ("X-Forwarded_For", "6.6.6.6"),
                ("X-Real_IP", "6.6.6.6"),
                ("X.Real.IP", "6.6.6.6"),
                ("X_Forwarded_Proto", "forged"),
                ("X-Forwarded.Host", "forged"),
                ("X_Forwarded-Port", "forged"),
                ("X_Forwarded", "for=6.6.6.6"),
                ("Content_Length", "6"),
                ("Transfer_Encoding", "chunked"),
                ("Content-Length", "5"),
            ]);
            prepare_request(&mut headers, &forwarded(&via(), trusted));
            let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
            left.sort_unstable();
            let ours = [
                "content-length",
                "x-forwarded-for",
                "x-forwarded-host",
                "x-forwarded-port",
                "x-forwarded-proto",
                "x-real-ip",
            ];
            // A trusted peer may send `X-Forwarded`, as an address; no other spelling of `Forwarded` is one.
            let left: Vec<_> =
                left.into_iter().filter(|name| trusted != Some(true) || *name != "x_forwarded").collect();
            assert_eq!(left, ours, "{trusted:?}");
            assert_eq!(headers["x-forwarded-for"], "192.0.2.7");
            assert_eq!(headers["x-forwarded-proto"], "https");
        }
    }

    #[test]
    fn a_trusted_peer_keeps_each_header_on_its_own() {
        let ours = [
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "a.example:8443"),
            ("x-forwarded-port", "8443"),
        ];
        for (sent, _) in ours {
            for value in ["theirs", ""] {
                let mut headers = map(&[(sent, value)]);
                prepare_request(&mut headers, &forwarded(&via(), Some(true)));
                for (name, own) in ours {
                    let wanted = if name == sent && !value.is_empty() { value } else { own };
                    assert_eq!(headers[name], wanted, "{sent}: {value}");
                    assert_eq!(headers.get_all(name).iter().count(), 1, "{name}");
                }
            }
        }
        let mut headers = map(&[
            ("Forwarded", "for=x"),
            ("Connection", "x-forwarded-proto"),
            ("X-Forwarded-Proto", "http"),
        ]);
        prepare_request(&mut headers, &forwarded(&via(), Some(true)));
        assert_eq!(
            (&headers["forwarded"], &headers["x-forwarded-proto"]),
            (&"for=x".parse().unwrap(), &"https".parse().unwrap())
        );
    }

    #[test]
    fn the_client_that_a_proxy_named_is_forwarded() {
        let via = via();
        let client = Some("2001:db8::7".parse().unwrap());
        for (trusted, list) in [
            (None, "1.1.1.1, 2001:db8::7"),
            (Some(false), "2001:db8::7"),
            (Some(true), "1.1.1.1, 2001:db8::7"),
        ] {
            let mut headers = map(&[("X-Forwarded-For", "1.1.1.1"), ("X-Real-IP", "2001:db8::7")]);
            prepare_request(&mut headers, &ForwardedContext { real_ip: client, ..forwarded(&via, trusted) });
            assert_eq!(headers["x-real-ip"], "2001:db8::7");
            assert_eq!(headers["x-forwarded-for"], list);
        }
    }

    #[test]
    fn connection_lists_cannot_remove_what_we_set() {
        let mut headers = map(&[
            ("Connection", "x-real-ip, X-Forwarded-For, keep-alive, host"),
            ("Host", "a.example"),
            ("X-Real-IP", "10.0.0.1"),
            ("X-Forwarded-For", "10.0.0.1"),
            ("TE", "trailers"),
        ]);
        headers.append("connection", HeaderValue::from_bytes(b"x-hop, \xff,\tx-hop2").unwrap());
        headers.extend(map(&[("X-Hop", "1"), ("X-Hop2", "1")]));
        prepare_request(&mut headers, &forwarded(&via(), None));
        assert!(!headers.contains_key("x-hop") && !headers.contains_key("x-hop2"));
        assert_eq!(headers["x-real-ip"], "192.0.2.7");
        assert_eq!(headers["x-forwarded-for"], "192.0.2.7");
        assert_eq!(headers["host"], "a.example");
        assert!(!headers.contains_key("te") && !headers.contains_key("connection"));
    }

    #[test]
    fn a_list_with_a_byte_that_is_no_text_is_read() {
        for list in [&b"\xff, x-secret"[..], b"x-secret , \xff", b"close,\tX-Secret"] {
            let mut headers = map(&[("x-secret", "1"), ("cookie", "stays")]);
            headers.insert("connection", HeaderValue::from_bytes(list).unwrap());
            prepare_response(&mut headers);
            assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["cookie"], "{list:?}");
        }
    }

    #[test]
    fn each_header_of_one_connection_goes_even_when_it_comes_alone() {
        for name in &HOP_BY_HOP {
            let mut headers = map(&[(name.as_str(), "x"), ("cookie", "stays"), ("user-agent", "stays")]);
            prepare_response(&mut headers);
            assert!(!headers.contains_key(name), "{name}");
            assert_eq!(headers.len(), 2, "{name}");
        }
    }

    #[test]
    fn forwarded_headers_follow_the_contract() {
        let sent = [
            ("X-Forwarded-For", "10.0.0.1"),
            ("X-Forwarded-Proto", "gopher"),
            ("X-Forwarded-Port", "1"),
            ("Forwarded", "for=x"),
        ];
        let mut open = map(&sent);
        prepare_request(&mut open, &forwarded(&via(), None));
        assert_eq!(open["x-forwarded-for"], "10.0.0.1, 192.0.2.7");
        assert_eq!(open["x-forwarded-proto"], "https");
        assert_eq!(open["x-forwarded-host"], "a.example:8443");
        assert_eq!(open["x-forwarded-port"], "8443");
        assert!(!open.contains_key("forwarded"));

        let mut untrusted = map(&sent);
        prepare_request(&mut untrusted, &forwarded(&via(), Some(false)));
        assert_eq!(untrusted["x-forwarded-for"], "192.0.2.7");

        let mut trusted = map(&sent);
        prepare_request(&mut trusted, &forwarded(&via(), Some(true)));
        assert_eq!(trusted["x-forwarded-proto"], "gopher");
        assert_eq!(trusted["x-forwarded-for"], "10.0.0.1, 192.0.2.7");
    }
}
