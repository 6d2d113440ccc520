//! The headers a request is forwarded with, and an answer is given back with. Contract 10.3 and 10.4.
//!
//! Order matters and is fixed here: hop-by-hop headers go first (so that a `Connection: x-real-ip` cannot remove
//! what we set), then every client-identity header from outside goes, in every spelling (invariant 6), then ours
//! are set. RFC 9110 section 7.6.1.

use std::net::SocketAddr;

use http::{HeaderMap, HeaderName, HeaderValue, header};

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

/// What names start with that tell an upstream who the client is: the forms of RFC 9440, Envoy, nginx, Traefik and the large clouds. From
/// outside they are lies by definition: only a gateway that verified a certificate may set them. Compared by [`same`].
const IDENTITY: [&str; 11] = [
    "client-cert",
    "ssl-client-",
    "x-amzn-mtls-",
    "x-arm-clientcert",
    "x-client-cert",
    "x-client-dn",
    "x-client-verify",
    "x-forwarded-client-cert",
    "x-forwarded-tls-client-",
    "x-ssl-",
    "x-tls-client-",
];

/// What the forwarded headers say of a connection: made once for all its requests.
#[derive(Debug, Clone)]
pub struct Via {
    /// Who dialled us.
    ip: HeaderValue,
    /// `https` or `http`.
    scheme: HeaderValue,
    /// The port we were reached on.
    port: u16,
}

impl Via {
    /// A connection from `peer` to our `port`, within TLS or not.
    pub fn new(peer: SocketAddr, port: u16, tls: bool) -> Self {
        // An address is always a value; were it none, the header from outside must not stand in its place.
        let ip = HeaderValue::try_from(peer.ip().to_canonical().to_string());
        let ip = ip.unwrap_or(HeaderValue::from_static("unknown"));
        Self { ip, scheme: HeaderValue::from_static(if tls { "https" } else { "http" }), port }
    }
}

/// What the forwarded headers are made from.
#[derive(Debug, Clone, Copy)]
pub struct Forwarded<'a> {
    /// Its connection.
    pub via: &'a Via,
    /// The peer is one of `apisix.trusted_addresses` and keeps the forwarded headers it sent.
    pub trusted: Option<bool>,
    /// The request's authority as the client wrote it.
    pub authority: Option<&'a str>,
}

/// How many headers [`to_upstream`] may add.
const ADDED_MAX: usize = 5;

const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");

/// Turns a client's request headers into those the upstream gets (all but `Host`).
pub fn to_upstream(headers: &mut HeaderMap, from: &Forwarded<'_>) {
    strip_hop_by_hop(headers);
    scrub_identity(headers);
    set_forwarded(headers, from);
}

/// Removes from an answer what speaks of the upstream's connection.
pub fn to_client(headers: &mut HeaderMap) {
    strip_hop_by_hop(headers);
}

fn strip_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(header::CONNECTION) {
        let listed: Vec<HeaderName> = headers
            .get_all(header::CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|name| name.trim().parse().ok())
            .collect();
        for name in listed {
            // Framing and routing are not the client's to remove.
            if name != header::HOST && name != header::CONTENT_LENGTH {
                headers.remove(name);
            }
        }
    }
    // Most messages carry none: looking through the few there are costs less than asking for each of the ten.
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

/// Removes every header from outside that claims a client identity.
pub fn scrub_identity(headers: &mut HeaderMap) {
    // Most requests carry none: look before collecting.
    if !headers.keys().any(is_identity) {
        return;
    }
    let claimed: Vec<HeaderName> = headers.keys().filter(|name| is_identity(name)).cloned().collect();
    for name in claimed {
        headers.remove(name);
    }
}

fn is_identity(name: &HeaderName) -> bool {
    let name = name.as_str();
    // Cheap filter: all the names start with one of these letters.
    if !name.starts_with(['c', 's', 'x']) {
        return false;
    }
    IDENTITY.iter().any(|prefix| name.get(..prefix.len()).is_some_and(|head| same(head, prefix)))
}

/// Whether an upstream may take one name for the other. CGI and its heirs (WSGI, PHP, Rack) turn `-` into `_`, and some
/// of them everything that is no letter or digit; so all of that is one here. Header names are in lower case already.
pub(crate) fn same(name: &str, other: &str) -> bool {
    let folded = |byte: u8| if byte.is_ascii_alphanumeric() { byte } else { b'-' };
    name.len() == other.len() && name.bytes().zip(other.bytes()).all(|(a, b)| folded(a) == folded(b))
}

fn set_forwarded(headers: &mut HeaderMap, from: &Forwarded<'_>) {
    let ip = &from.via.ip;
    headers.reserve(ADDED_MAX);
    let trusted = from.trusted.unwrap_or(false);
    let forwarded_for = match headers.get(&X_FORWARDED_FOR) {
        // Without `trusted_addresses` the list is appended to; with it, only a trusted peer's is.
        Some(_) if trusted || from.trusted.is_none() => {
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
    if trusted {
        return;
    }
    headers.remove(header::FORWARDED);
    headers.insert(X_FORWARDED_PROTO, from.via.scheme.clone());
    match from.authority.and_then(|authority| authority_value(headers, authority)) {
        Some(value) => headers.insert(X_FORWARDED_HOST, value),
        None => headers.remove(X_FORWARDED_HOST),
    };
    let port = from.authority.and_then(port_of).unwrap_or(from.via.port);
    headers.insert(X_FORWARDED_PORT, HeaderValue::from(port));
}

/// The authority as a value: nearly always the one that stands in `Host` already, which is shared then.
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

    fn via() -> Via {
        Via::new("192.0.2.7:1234".parse().unwrap(), 9443, true)
    }

    fn forwarded(via: &Via, trusted: Option<bool>) -> Forwarded<'_> {
        Forwarded { via, trusted, authority: Some("a.example:8443") }
    }

    #[test]
    fn identity_from_outside_goes_in_every_spelling() {
        let mut headers = map(&[
            ("X-SSL-Client-S-DN", "CN=root"),
            ("x_ssl_client_verify", "SUCCESS"),
            ("Client-Cert", ":AAAA:"),
            ("client_cert", ":AAAA:"),
            ("X-Forwarded-Client-Cert", "By=x"),
            ("x_forwarded-client_cert", "By=x"),
            ("Client-Cert-Chain", "a"),
            ("Client-Cert-Chain", "b"),
            ("X.SSL-Client_Verify", "SUCCESS"),
            ("x~ssl!client+s|dn", "CN=root"),
            ("SSL_CLIENT_VERIFY", "SUCCESS"),
            ("X-Forwarded-Tls-Client-Cert-Info", "Subject=x"),
            ("X-Api-Key", "stays"),
            ("Cookie", "stays"),
        ]);
        scrub_identity(&mut headers);
        let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["cookie", "x-api-key"]);
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
        to_upstream(&mut headers, &forwarded(&via(), None));
        assert_eq!(headers["x-real-ip"], "192.0.2.7");
        assert_eq!(headers["x-forwarded-for"], "192.0.2.7");
        assert_eq!(headers["host"], "a.example");
        assert!(!headers.contains_key("te") && !headers.contains_key("connection"));
    }

    #[test]
    fn each_header_of_one_connection_goes_even_when_it_comes_alone() {
        for name in &HOP_BY_HOP {
            let mut headers = map(&[(name.as_str(), "x"), ("cookie", "stays"), ("user-agent", "stays")]);
            to_client(&mut headers);
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
        to_upstream(&mut open, &forwarded(&via(), None));
        assert_eq!(open["x-forwarded-for"], "10.0.0.1, 192.0.2.7");
        assert_eq!(open["x-forwarded-proto"], "https");
        assert_eq!(open["x-forwarded-host"], "a.example:8443");
        assert_eq!(open["x-forwarded-port"], "8443");
        assert!(!open.contains_key("forwarded"));

        let mut untrusted = map(&sent);
        to_upstream(&mut untrusted, &forwarded(&via(), Some(false)));
        assert_eq!(untrusted["x-forwarded-for"], "192.0.2.7");

        let mut trusted = map(&sent);
        to_upstream(&mut trusted, &forwarded(&via(), Some(true)));
        assert_eq!(trusted["x-forwarded-proto"], "gopher");
        assert_eq!(trusted["x-forwarded-for"], "10.0.0.1, 192.0.2.7");
    }
}
