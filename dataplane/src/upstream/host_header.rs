//! What a node is called: the host it is told, and the name asked for and verified in TLS. Contract
//! section 6.2.
//!
//! One answer for the HTTP exchange and for streams, where `authority` is the name that the client
//! asked for in TLS.

use std::borrow::Cow;
use std::net::IpAddr;

use model::resource::{Node, PassHost, Upstream};
use rustls::pki_types::ServerName;

/// The `Host` the upstream sees.
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

/// The name asked for and, where upstreams are verified, checked: the host without its port; an
/// address asks for none (RFC 6066 section 3).
pub fn server_name(host: &str, ip: IpAddr) -> ServerName<'static> {
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
    use model::resource::{Scheme, UpstreamTls};

    use super::*;

    fn called(scheme: Scheme, pass_host: PassHost, authority: Option<&str>) -> String {
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
            tls: UpstreamTls { identity: None, verify: false },
            cache: CacheSlot::new(),
            blocked: None,
        };
        upstream_host(&upstream, authority, &upstream.nodes[0]).into_owned()
    }

    #[test]
    fn a_node_is_called_as_pass_host_says() {
        let client = Some("app.example");
        assert_eq!(called(Scheme::Https, PassHost::Pass, client), "app.example");
        assert_eq!(called(Scheme::Https, PassHost::Pass, None), "node.example");
        assert_eq!(called(Scheme::Http, PassHost::Node, client), "node.example:443");
        assert_eq!(
            called(Scheme::Tls, PassHost::Node, client),
            "node.example:443",
            "streams have no usual port"
        );
        assert_eq!(called(Scheme::Tls, PassHost::Rewrite, client), "up.example:8443");
    }

    #[test]
    fn the_name_asked_for_has_no_port_and_an_address_asks_for_none() {
        let ip = IpAddr::from([192, 0, 2, 1]);
        let asked = |host: &str| server_name(host, ip).to_str().into_owned();
        assert_eq!(asked("up.example:8443"), "up.example");
        assert_eq!(asked("up.example."), "up.example");
        assert_eq!(asked("apisix_backend"), "apisix_backend");
        assert!(matches!(server_name("[::1]:443", ip), ServerName::IpAddress(_)));
        assert!(matches!(server_name("not a name", ip), ServerName::IpAddress(_)));
    }
}
