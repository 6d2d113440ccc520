//! The host name of a node: in the `Host` header, and as server name in TLS. Contract section 6.2.
//!
//! Requests and TCP connections share the rule; `authority` is the request's or the client's SNI.

use std::borrow::Cow;
use std::net::IpAddr;

use model::{Node, PassHost, Upstream};
use rustls::pki_types::ServerName;

/// The `Host` header for the upstream.
pub fn upstream_host<'a>(upstream: &'a Upstream, authority: Option<&'a str>, node: &'a Node) -> Cow<'a, str> {
    match upstream.pass_host {
        PassHost::Rewrite => Cow::Borrowed(upstream.upstream_host.as_deref().unwrap_or_default()),
        PassHost::Pass => authority.map_or_else(|| node_host(upstream, node), Cow::Borrowed),
        PassHost::Node => node_host(upstream, node),
    }
}

fn node_host<'a>(upstream: &Upstream, node: &'a Node) -> Cow<'a, str> {
    match node.port {
        Some(port) if Some(port) != upstream.scheme.default_port() => {
            Cow::Owned(format!("{}:{port}", node.host))
        }
        _ => Cow::Borrowed(&node.host),
    }
}

/// The server name in TLS, which is verified where upstreams are: the host without its port. An
/// address is no server name (RFC 6066 section 3).
pub(crate) fn server_name(host: &str, ip: IpAddr) -> ServerName<'static> {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if !name.ends_with(':') && port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.trim_start_matches('[').trim_end_matches([']', '.']);
    ServerName::try_from(name.to_owned()).unwrap_or_else(|_| ServerName::IpAddress(ip.into()))
}

#[cfg(test)]
mod tests {
    use model::CacheSlot;
    use model::{Scheme, UpstreamTls};

    use super::*;

    fn host(scheme: Scheme, pass_host: PassHost, authority: Option<&str>) -> String {
        let upstream = Upstream {
            id: None,
            scheme,
            nodes: vec![Node { host: "node.example".into(), port: Some(443), weight: 1, priority: 0 }],
            retries: None,
            retry_timeout: None,
            timeout: None,
            pass_host,
            upstream_host: Some("up.example:8443".into()),
            keepalive: None,
            tls: UpstreamTls::default(),
            http2: false,
            cache: CacheSlot::new(),
            blocked: None,
        };
        upstream_host(&upstream, authority, &upstream.nodes[0]).into_owned()
    }

    #[test]
    fn pass_host_decides_the_host() {
        let client = Some("app.example");
        assert_eq!(host(Scheme::Https, PassHost::Pass, client), "app.example");
        assert_eq!(host(Scheme::Https, PassHost::Pass, None), "node.example");
        assert_eq!(host(Scheme::Http, PassHost::Node, client), "node.example:443");
        assert_eq!(host(Scheme::Https, PassHost::Node, client), "node.example");
        assert_eq!(host(Scheme::Grpc, PassHost::Node, client), "node.example:443");
        assert_eq!(host(Scheme::Grpcs, PassHost::Node, client), "node.example");
        assert_eq!(host(Scheme::Tls, PassHost::Node, client), "node.example:443", "TCP has no default port");
        assert_eq!(host(Scheme::Tls, PassHost::Rewrite, client), "up.example:8443");
    }

    #[test]
    fn a_server_name_has_no_port_and_is_no_address() {
        let ip = IpAddr::from([192, 0, 2, 1]);
        let name = |host: &str| server_name(host, ip).to_str().into_owned();
        assert_eq!(name("up.example:8443"), "up.example");
        assert_eq!(name("up.example."), "up.example");
        assert_eq!(name("apisix_backend"), "apisix_backend");
        assert!(matches!(server_name("[::1]:443", ip), ServerName::IpAddress(_)));
        assert!(matches!(server_name("not a name", ip), ServerName::IpAddress(_)));
    }
}
