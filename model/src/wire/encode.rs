//! Encodes resources as protobuf. Every resource has an encoding.
//!
//! A blocked resource is wrapped in a message of its own, and so is one with what older programs
//! would ignore, so that a program which does not know that message rejects it.

use std::time::Duration;

use ipnet::IpNet;
use prost::bytes::Bytes;
use proto::push;
use serde_json::Value;

use super::older_nodes;
use crate::client_identity::ClientIdentity;
use crate::proxy_rewrite::ProxyRewrite;
use crate::resource::{
    Blocked, KeyPair, PassHost, Resource, Route, Scheme, Service, Ssl, StreamRoute, Timeouts, TlsVersion,
    Upstream, UpstreamIdentity, UpstreamRef, UpstreamTls,
};
use crate::server_identity::ServerIdentity;

impl From<&Resource> for push::Resource {
    fn from(resource: &Resource) -> push::Resource {
        use push::resource::Kind;
        let kind = match resource {
            Resource::Ssl(ssl) => Kind::Ssl(ssl_to_wire(ssl)),
            Resource::Upstream(upstream) => Kind::Upstream(upstream_to_wire(upstream)),
            Resource::Service(service) => Kind::Service(service_to_wire(service)),
            Resource::PluginConfig(config) => Kind::PluginConfig(push::PluginConfig {
                proxy_rewrite: json(config.proxy_rewrite.as_deref().map(ProxyRewrite::source)),
            }),
            Resource::Route(route) => Kind::Route(route_to_wire(route)),
            Resource::StreamRoute(route) => Kind::StreamRoute(stream_route_to_wire(route)),
            Resource::GlobalRule(rule) => Kind::GlobalRule(push::GlobalRule {
                proxy_rewrite: json(rule.proxy_rewrite.as_deref().map(ProxyRewrite::source)),
            }),
        };
        let kind = match resource.blocked() {
            Some(blocked) => as_blocked(kind, blocked),
            None if older_nodes::unknown_feature(resource).is_some() => as_newer(kind),
            None => kind,
        };
        push::Resource { id: resource.id().to_string(), kind: Some(kind) }
    }
}

fn as_blocked(kind: push::resource::Kind, blocked: &Blocked) -> push::resource::Kind {
    use push::blocked::What;
    use push::resource::Kind;
    let what = match kind {
        Kind::Ssl(ssl) => What::Ssl(ssl),
        Kind::Upstream(upstream) => What::Upstream(upstream),
        Kind::Service(service) => What::Service(service),
        Kind::PluginConfig(config) => What::PluginConfig(config),
        Kind::Route(route) => What::Route(route),
        Kind::StreamRoute(route) => What::StreamRoute(route),
        Kind::GlobalRule(rule) => What::GlobalRule(rule),
        wrapped @ (Kind::Blocked(_) | Kind::Newer(_)) => return wrapped,
    };
    Kind::Blocked(push::Blocked { why: blocked.reason().to_owned(), what: Some(what) })
}

fn as_newer(kind: push::resource::Kind) -> push::resource::Kind {
    use push::newer::What;
    use push::resource::Kind;
    let what = match kind {
        Kind::Upstream(upstream) => What::Upstream(upstream),
        Kind::Service(service) => What::Service(service),
        Kind::Route(route) => What::Route(route),
        Kind::StreamRoute(route) => What::StreamRoute(route),
        other => return other,
    };
    Kind::Newer(push::Newer { what: Some(what) })
}

fn ssl_to_wire(ssl: &Ssl) -> push::Ssl {
    let version = |version: &TlsVersion| match version {
        TlsVersion::V11 => push::TlsVersion::TlsVersion11.into(),
        TlsVersion::V12 => push::TlsVersion::TlsVersion12.into(),
        TlsVersion::V13 => push::TlsVersion::TlsVersion13.into(),
    };
    push::Ssl {
        client_side: ssl.client_side,
        names: texts(&ssl.names),
        pairs: ssl.pairs.iter().map(pair_to_wire).collect(),
        client: ssl.client.as_deref().map(client_to_wire),
        versions: ssl.versions.iter().flatten().map(version).collect(),
        disabled: !ssl.enabled,
    }
}

fn pair_to_wire(pair: &KeyPair) -> push::KeyPair {
    let format = match pair.key.format() {
        pki::KeyFormat::Pkcs8 => push::KeyFormat::Pkcs8,
        pki::KeyFormat::Pkcs1 => push::KeyFormat::Pkcs1,
        pki::KeyFormat::Sec1 => push::KeyFormat::Sec1,
    };
    push::KeyPair {
        chain: ders(&pair.chain),
        key: Bytes::copy_from_slice(pair.key.der().secret_der()),
        format: format.into(),
    }
}

fn client_to_wire(client: &pki::ClientAuth) -> push::ClientAuth {
    push::ClientAuth {
        anchors: ders(client.anchors().certificates()),
        depth: client.depth(),
        skip_uri_patterns: client.skip_patterns().to_vec(),
        crls: client.crls().iter().map(|crl| Bytes::copy_from_slice(crl.der())).collect(),
        crl_prefer: client.crl_prefer(),
    }
}

fn upstream_to_wire(upstream: &Upstream) -> push::Upstream {
    let pass_host = match upstream.pass_host {
        PassHost::Pass => push::PassHost::Pass,
        PassHost::Node => push::PassHost::Node,
        PassHost::Rewrite => push::PassHost::Rewrite,
    };
    let scheme = match upstream.scheme {
        Scheme::Http => push::Scheme::Http,
        Scheme::Https => push::Scheme::Https,
        Scheme::Grpc => push::Scheme::Grpc,
        Scheme::Grpcs => push::Scheme::Grpcs,
        Scheme::Tcp => push::Scheme::Tcp,
        Scheme::Tls => push::Scheme::Tls,
    };
    push::Upstream {
        scheme: scheme.into(),
        nodes: upstream
            .nodes
            .iter()
            .map(|node| push::Node {
                host: node.host.clone(),
                port: node.port.unwrap_or_default().into(),
                weight: node.weight,
                priority: node.priority,
            })
            .collect(),
        retries: upstream.retries,
        retry_timeout_ms: upstream.retry_timeout.map(milliseconds).unwrap_or_default(),
        timeout: upstream.timeout.as_ref().map(timeout_to_wire),
        pass_host: pass_host.into(),
        upstream_host: upstream.upstream_host.clone().unwrap_or_default(),
        keepalive_pool: upstream.keepalive.map(|pool| push::KeepalivePool {
            size: pool.size,
            idle_timeout_ms: milliseconds(pool.idle_timeout),
            requests: pool.requests,
            max_connections: pool.max_connections.unwrap_or_default(),
        }),
        tls: Some(tls_to_wire(&upstream.tls)),
        http2: upstream.http2,
    }
}

fn tls_to_wire(tls: &UpstreamTls) -> push::UpstreamTls {
    let (identity, identity_ssl_id) = match &tls.identity {
        Some(UpstreamIdentity::Inline(pair)) => (Some(pair_to_wire(pair)), String::new()),
        Some(UpstreamIdentity::Ssl(id)) => (None, id.to_string()),
        None => (None, String::new()),
    };
    push::UpstreamTls {
        identity,
        identity_ssl_id,
        verify: tls.verify,
        ca_certs: tls.anchors.as_ref().map(|anchors| ders(anchors.certificates())).unwrap_or_default(),
        verify_identity: json(tls.verify_identity.as_deref().map(ServerIdentity::source)),
    }
}

fn service_to_wire(service: &Service) -> push::Service {
    push::Service {
        hosts: texts(&service.hosts),
        upstream: service.upstream.as_ref().map(upstream_ref_to_wire),
        client_identity: json(service.client_identity.as_deref().map(ClientIdentity::source)),
        proxy_rewrite: json(service.proxy_rewrite.as_deref().map(ProxyRewrite::source)),
        enable_websocket: service.enable_websocket,
    }
}

fn route_to_wire(route: &Route) -> push::Route {
    push::Route {
        uris: texts(&route.uris),
        hosts: texts(&route.hosts),
        methods: route.methods.iter().map(|method| method.as_str().to_owned()).collect(),
        remote_addrs: texts(&route.remote_addrs),
        priority: route.priority,
        disabled: !route.enabled,
        upstream: route.upstream.as_ref().map(upstream_ref_to_wire),
        service_id: route.service.as_ref().map(ToString::to_string).unwrap_or_default(),
        timeout: route.timeout.as_ref().map(timeout_to_wire),
        vars: json((!route.vars.is_empty()).then(|| route.vars.source())),
        client_identity: json(route.client_identity.as_deref().map(ClientIdentity::source)),
        proxy_rewrite: json(route.proxy_rewrite.as_deref().map(ProxyRewrite::source)),
        plugin_config_id: route.plugin_config.as_ref().map(ToString::to_string).unwrap_or_default(),
        enable_websocket: route.enable_websocket,
    }
}

fn stream_route_to_wire(route: &StreamRoute) -> push::StreamRoute {
    let text = |network: Option<IpNet>| network.map(|network| network.to_string()).unwrap_or_default();
    let (sni, snis) = match route.snis.as_slice() {
        [only] => (only.to_string(), Vec::new()),
        several => (String::new(), texts(several)),
    };
    push::StreamRoute {
        sni,
        remote_addr: text(route.remote_addr),
        server_addr: text(route.server_addr),
        server_port: route.server_port.unwrap_or_default().into(),
        upstream: route.upstream.as_ref().map(upstream_ref_to_wire),
        service_id: route.service.as_ref().map(ToString::to_string).unwrap_or_default(),
        snis,
        tls_passthrough: route.tls_passthrough,
    }
}

fn json(block: Option<&Value>) -> String {
    block.map(Value::to_string).unwrap_or_default()
}

fn upstream_ref_to_wire(upstream: &UpstreamRef) -> push::UpstreamRef {
    use push::upstream_ref::Ref;
    push::UpstreamRef {
        r#ref: Some(match upstream {
            UpstreamRef::Id(id) => Ref::Id(id.to_string()),
            UpstreamRef::Inline(upstream) => Ref::Inline(upstream_to_wire(upstream)),
        }),
    }
}

fn timeout_to_wire(timeouts: &Timeouts) -> push::Timeout {
    push::Timeout {
        connect_ms: milliseconds(timeouts.connect),
        send_ms: milliseconds(timeouts.send),
        read_ms: milliseconds(timeouts.read),
    }
}

/// Times of resources are whole milliseconds.
fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn texts<T: ToString>(items: &[T]) -> Vec<String> {
    items.iter().map(T::to_string).collect()
}

fn ders(certificates: &[pki::Certificate]) -> Vec<Bytes> {
    certificates.iter().map(|certificate| Bytes::copy_from_slice(certificate.der())).collect()
}
