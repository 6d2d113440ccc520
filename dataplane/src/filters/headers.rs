//! The headers of a forwarded request and of its response. Contract 10.3 and 10.4.
//!
//! The order matters: hop-by-hop headers are removed first (so that a `Connection: x-real-ip`
//! removes none that we set), then the untrusted headers in every spelling
//! ([`super::untrusted_headers`], invariant 6), and then ours are set. RFC 9110 section 7.6.1.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::untrusted_headers;
pub use super::untrusted_headers::PeerTrust;
pub(crate) use super::untrusted_headers::is_same_name;
use crate::http::hop_by_hop::{TrailerFields, remove_hop_by_hop};
use crate::http::trailers;

/// A connection's part of the forwarded headers, made once for all its requests.
#[derive(Debug, Clone)]
pub struct ConnectionHeaders {
    /// The peer's address.
    ip: HeaderValue,
    /// `https` or `http`.
    scheme: HeaderValue,
    /// The port that the client connected to.
    port: u16,
}

impl ConnectionHeaders {
    /// Of a connection from `peer` to our `port`.
    pub fn new(peer: SocketAddr, port: u16, is_tls: bool) -> Self {
        let scheme = HeaderValue::from_static(if is_tls { "https" } else { "http" });
        Self { ip: address_value(peer.ip()), scheme, port }
    }
}

fn address_value(ip: IpAddr) -> HeaderValue {
    // An address is always a valid value; if not, the client's header must not remain.
    HeaderValue::try_from(ip.to_canonical().to_string()).unwrap_or(HeaderValue::from_static("unknown"))
}

/// The input of a request's forwarded headers.
#[derive(Debug, Clone, Copy)]
pub struct ForwardedContext<'a> {
    pub connection: &'a ConnectionHeaders,
    /// The client's address, if a proxy names it.
    pub real_ip: Option<IpAddr>,
    /// Whether `apisix.trusted_addresses` is set: then only a trusted peer's `X-Forwarded-For` is
    /// kept.
    pub has_trusted_addresses: bool,
    /// The trust in the connection's peer.
    pub trust: PeerTrust,
    /// `real_ip_header`, if `real_ip_from` is set.
    pub real_ip_header: Option<&'a HeaderName>,
    /// The request's authority as the client wrote it.
    pub authority: Option<&'a str>,
}

/// The most headers that [`prepare_request`] adds.
const ADDED_MAX: usize = 5;

pub(super) const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
pub(super) const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");

/// Makes the headers of a client's request those of the forwarded one (all but `Host`). Gives
/// whether the client takes trailers.
pub fn prepare_request(headers: &mut HeaderMap, context: &ForwardedContext<'_>) -> bool {
    let TrailerFields { announced, accepted } = remove_hop_by_hop(headers);
    untrusted_headers::remove_untrusted(headers, context.trust, context.real_ip_header);
    set_forwarded(headers, context);
    if !announced.is_empty() {
        set_request_trailer(headers, announced, context.real_ip_header);
    }
    accepted
}

/// Announces the trailers that may pass. Nothing checks them when they come: none has a name that
/// an upstream trusts, or that is in the head, under any spelling.
fn set_request_trailer(
    headers: &mut HeaderMap,
    announced: Vec<HeaderName>,
    real_ip_header: Option<&HeaderName>,
) {
    let is_in_head = |name: &HeaderName| headers.keys().any(|own| is_same_name(own.as_str(), name.as_str()));
    let passes = |name: &&HeaderName| {
        !trailers::is_head_only(name)
            && !untrusted_headers::is_claimed(name, real_ip_header)
            && !is_in_head(name)
    };
    let names: Vec<&HeaderName> = announced.iter().filter(passes).collect();
    set_trailer(headers, &names);
}

fn set_trailer(headers: &mut HeaderMap, names: &[&HeaderName]) {
    let list = names.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", ");
    if let (false, Ok(list)) = (names.is_empty(), HeaderValue::from_str(&list)) {
        headers.insert(header::TRAILER, list);
    }
}

/// Removes the headers of the upstream connection from a response. `takes_trailers`: over HTTP/1
/// its client gets those that the head announces, and no others: so hyper has it.
pub(crate) fn prepare_response(headers: &mut HeaderMap, takes_trailers: bool) {
    let TrailerFields { announced, .. } = remove_hop_by_hop(headers);
    if takes_trailers && !announced.is_empty() {
        let names: Vec<&HeaderName> = announced.iter().filter(|name| !trailers::is_head_only(name)).collect();
        set_trailer(headers, &names);
    }
}

fn set_forwarded(headers: &mut HeaderMap, context: &ForwardedContext<'_>) {
    let real_ip = context.real_ip.map(address_value);
    let ip = real_ip.as_ref().unwrap_or(&context.connection.ip);
    headers.reserve(ADDED_MAX);
    let forwarded_for = match headers.get(&X_FORWARDED_FOR) {
        // Without `trusted_addresses` our address is appended to every list; with it, to a trusted
        // peer's.
        Some(_) if context.trust.forwarded || !context.has_trusted_addresses => {
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
    if !context.trust.forwarded {
        headers.remove(header::FORWARDED);
    }
    // Each header of a trusted peer is kept on its own; an empty one counts as absent, as in
    // APISIX.
    let is_kept = |headers: &HeaderMap, name| {
        context.trust.forwarded && headers.get_all(name).iter().any(|value: &HeaderValue| !value.is_empty())
    };
    if !is_kept(headers, X_FORWARDED_PROTO) {
        headers.insert(X_FORWARDED_PROTO, context.connection.scheme.clone());
    }
    if !is_kept(headers, X_FORWARDED_HOST) {
        match context.authority.and_then(|authority| authority_value(headers, authority)) {
            Some(value) => headers.insert(X_FORWARDED_HOST, value),
            None => headers.remove(X_FORWARDED_HOST),
        };
    }
    if !is_kept(headers, X_FORWARDED_PORT) {
        let port = context.authority.and_then(port_of).unwrap_or(context.connection.port);
        headers.insert(X_FORWARDED_PORT, HeaderValue::from(port));
    }
}

/// `X-Forwarded-For` as the client sent it: without the client's own address, which
/// [`prepare_request`] has appended and set as `X-Real-IP`. `None`: the client sent none that
/// passes.
pub(super) fn client_forwarded_for(headers: &HeaderMap) -> Option<&[u8]> {
    let own = headers.get(&X_REAL_IP)?;
    let list = headers.get(&X_FORWARDED_FOR)?;
    list.as_bytes().strip_suffix(own.as_bytes())?.strip_suffix(b", ")
}

/// The authority as a value. Nearly always it is that of `Host`, which is shared then.
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

    fn header_map(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
        }
        headers
    }

    fn connection() -> ConnectionHeaders {
        ConnectionHeaders::new("192.0.2.7:1234".parse().unwrap(), 9443, true)
    }

    /// `None`: `trusted_addresses` is not set.
    fn context(connection: &ConnectionHeaders, trusted: Option<bool>) -> ForwardedContext<'_> {
        let trust = PeerTrust { forwarded: trusted == Some(true), address: false };
        let authority = Some("a.example:8443");
        ForwardedContext {
            connection,
            real_ip: None,
            has_trusted_addresses: trusted.is_some(),
            trust,
            real_ip_header: None,
            authority,
        }
    }

    #[test]
    fn only_checked_names_are_announced() {
        let sent = "X-Sum, client-cert, X_Forwarded-For, x-real-ip, X-Own, http_x-ssl-client-verify, \
                    content-length, If-Match, x.own, Grpc-Status";
        let mut headers = header_map(&[("trailer", sent), ("x-own", "1"), ("te", "trailers")]);
        prepare_request(&mut headers, &context(&connection(), None));
        assert_eq!(headers[header::TRAILER], "x-sum, grpc-status");
        let mut headers = header_map(&[("trailer", "x-real-ip")]);
        prepare_request(&mut headers, &context(&connection(), None));
        assert!(!headers.contains_key(header::TRAILER));
    }

    #[test]
    fn spoofed_identity_is_removed_in_every_spelling() {
        for trusted in [None, Some(false), Some(true)] {
            let mut headers = header_map(&[
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
            prepare_request(&mut headers, &context(&connection(), trusted));
            let ours = |name: &&str| !matches!(*name, "x-real-ip") && !name.starts_with("x-forwarded-");
            let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).filter(ours).collect();
            left.sort_unstable();
            assert_eq!(left, ["cookie", "x-api-key"]);
        }
    }

    #[test]
    fn other_spellings_of_our_headers_are_removed() {
        for trusted in [None, Some(false), Some(true)] {
            let mut headers = header_map(&[
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
            prepare_request(&mut headers, &context(&connection(), trusted));
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
            // A trusted peer may send `X-Forwarded`, as an address; no other spelling of
            // `Forwarded` is one.
            let left: Vec<_> =
                left.into_iter().filter(|name| trusted != Some(true) || *name != "x_forwarded").collect();
            assert_eq!(left, ours, "{trusted:?}");
            assert_eq!(headers["x-forwarded-for"], "192.0.2.7");
            assert_eq!(headers["x-forwarded-proto"], "https");
        }
    }

    #[test]
    fn each_header_of_a_trusted_peer_is_kept_on_its_own() {
        let ours = [
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "a.example:8443"),
            ("x-forwarded-port", "8443"),
        ];
        for (sent, _) in ours {
            for value in ["theirs", ""] {
                let mut headers = header_map(&[(sent, value)]);
                prepare_request(&mut headers, &context(&connection(), Some(true)));
                for (name, own) in ours {
                    let wanted = if name == sent && !value.is_empty() { value } else { own };
                    assert_eq!(headers[name], wanted, "{sent}: {value}");
                    assert_eq!(headers.get_all(name).iter().count(), 1, "{name}");
                }
            }
        }
        let mut headers = header_map(&[
            ("Forwarded", "for=x"),
            ("Connection", "x-forwarded-proto"),
            ("X-Forwarded-Proto", "http"),
        ]);
        prepare_request(&mut headers, &context(&connection(), Some(true)));
        assert_eq!(
            (&headers["forwarded"], &headers["x-forwarded-proto"]),
            (&"for=x".parse().unwrap(), &"https".parse().unwrap())
        );
    }

    #[test]
    fn the_client_that_a_proxy_names_is_forwarded() {
        let connection = connection();
        let client = Some("2001:db8::7".parse().unwrap());
        for (trusted, list) in [
            (None, "1.1.1.1, 2001:db8::7"),
            (Some(false), "2001:db8::7"),
            (Some(true), "1.1.1.1, 2001:db8::7"),
        ] {
            let mut headers = header_map(&[("X-Forwarded-For", "1.1.1.1"), ("X-Real-IP", "2001:db8::7")]);
            prepare_request(
                &mut headers,
                &ForwardedContext { real_ip: client, ..context(&connection, trusted) },
            );
            assert_eq!(headers["x-real-ip"], "2001:db8::7");
            assert_eq!(headers["x-forwarded-for"], list);
        }
    }

    #[test]
    fn a_connection_header_cannot_remove_our_headers() {
        let mut headers = header_map(&[
            ("Connection", "x-real-ip, X-Forwarded-For, keep-alive, host"),
            ("Host", "a.example"),
            ("X-Real-IP", "10.0.0.1"),
            ("X-Forwarded-For", "10.0.0.1"),
            ("TE", "trailers"),
        ]);
        headers.append("connection", HeaderValue::from_bytes(b"x-hop, \xff,\tx-hop2").unwrap());
        headers.extend(header_map(&[("X-Hop", "1"), ("X-Hop2", "1")]));
        prepare_request(&mut headers, &context(&connection(), None));
        assert!(!headers.contains_key("x-hop") && !headers.contains_key("x-hop2"));
        assert_eq!(headers["x-real-ip"], "192.0.2.7");
        assert_eq!(headers["x-forwarded-for"], "192.0.2.7");
        assert_eq!(headers["host"], "a.example");
        assert!(!headers.contains_key("te") && !headers.contains_key("connection"));
    }

    #[test]
    fn forwarded_headers_depend_on_trusted_addresses() {
        let sent = [
            ("X-Forwarded-For", "10.0.0.1"),
            ("X-Forwarded-Proto", "gopher"),
            ("X-Forwarded-Port", "1"),
            ("Forwarded", "for=x"),
        ];
        let mut open = header_map(&sent);
        prepare_request(&mut open, &context(&connection(), None));
        assert_eq!(open["x-forwarded-for"], "10.0.0.1, 192.0.2.7");
        assert_eq!(open["x-forwarded-proto"], "https");
        assert_eq!(open["x-forwarded-host"], "a.example:8443");
        assert_eq!(open["x-forwarded-port"], "8443");
        assert!(!open.contains_key("forwarded"));

        let mut untrusted = header_map(&sent);
        prepare_request(&mut untrusted, &context(&connection(), Some(false)));
        assert_eq!(untrusted["x-forwarded-for"], "192.0.2.7");

        let mut trusted = header_map(&sent);
        prepare_request(&mut trusted, &context(&connection(), Some(true)));
        assert_eq!(trusted["x-forwarded-proto"], "gopher");
        assert_eq!(trusted["x-forwarded-for"], "10.0.0.1, 192.0.2.7");
    }
}
