//! Decodes resources from protobuf and checks the invariants of documents again.
//!
//! No unknown value is dropped: without an unknown method, version or address a resource would
//! allow more.

use std::sync::Arc;
use std::time::Duration;

use pki::{Certificate, ClientAuth, ClientAuthInput, KeyFormat, PrivateKey, TrustAnchors};
use prost::bytes::Bytes;
use proto::push;
use proto::push::blocked::What;
use serde_json::Value;

use crate::client_identity::ClientIdentity;
use crate::expression::Vars;
use crate::id::{Id, Key, Kind};
use crate::pattern::NamePattern;
use crate::problem::Problem;
use crate::proxy_rewrite::ProxyRewrite;
use crate::resource::{
    Blocked, CacheSlot, GlobalRule, KeepalivePool, KeyPair, MethodSet, Node, PassHost, PluginConfig,
    Resource, Route, RouteMethod, Scheme, Service, Ssl, StreamRoute, Timeouts, TlsVersion, Upstream,
    UpstreamIdentity, UpstreamRef, UpstreamTls,
};
use crate::server_identity::ServerIdentity;
use crate::uri::UriPattern;

/// Decodes a resource.
///
/// # Errors
///
/// The problem, with the key if it could be decoded. Fields are named as in documents.
pub(crate) fn resource_from_wire(resource: push::Resource) -> Result<Resource, (Option<Key>, Problem)> {
    let id = Id::parse(&resource.id).map_err(|problem| (None, problem))?;
    let (what, blocked) = resource.kind.map_or((None, None), split_blocked);
    let Some(what) = what else {
        let problem = Problem::new("", "a resource of a kind this program does not know");
        return Err((
            None,
            problem.with_hint("is the control plane of a newer version than the data plane?"),
        ));
    };
    let kind = match &what {
        What::Ssl(_) => Kind::Ssl,
        What::Upstream(_) => Kind::Upstream,
        What::Service(_) => Kind::Service,
        What::PluginConfig(_) => Kind::PluginConfig,
        What::Route(_) => Kind::Route,
        What::StreamRoute(_) => Kind::StreamRoute,
        What::GlobalRule(_) => Kind::GlobalRule,
    };
    let key = Key::new(kind, id.clone());
    let read = match what {
        What::Ssl(ssl) => ssl_from_wire(id, &ssl, blocked).map(|ssl| Resource::Ssl(Arc::new(ssl))),
        What::Upstream(upstream) => upstream_from_wire(Some(id), upstream)
            .map(|upstream| Resource::Upstream(Arc::new(Upstream { blocked, ..upstream }))),
        What::Service(service) => service_from_wire(id, service)
            .map(|service| Resource::Service(Arc::new(Service { blocked, ..service }))),
        What::PluginConfig(config) => rewrite(&config.proxy_rewrite).map(|proxy_rewrite| {
            Resource::PluginConfig(Arc::new(PluginConfig { id, proxy_rewrite, blocked }))
        }),
        What::Route(route) => {
            route_from_wire(id, route, blocked).map(|route| Resource::Route(Arc::new(route)))
        }
        What::StreamRoute(route) => stream_route_from_wire(id, route)
            .map(|route| Resource::StreamRoute(Arc::new(StreamRoute { blocked, ..route }))),
        What::GlobalRule(rule) => rewrite(&rule.proxy_rewrite)
            .map(|proxy_rewrite| Resource::GlobalRule(Arc::new(GlobalRule { id, proxy_rewrite, blocked }))),
    };
    read.map_err(|problem| (Some(key), problem))
}

/// Separates a resource from the message that marks it as blocked, or as unknown to older programs.
fn split_blocked(kind: push::resource::Kind) -> (Option<What>, Option<Blocked>) {
    use push::resource::Kind as Wire;
    let what = match kind {
        Wire::Blocked(push::Blocked { why, what }) => return (what, Some(Blocked::new(&why))),
        Wire::Newer(push::Newer { what }) => return (what.map(unwrap_newer), None),
        Wire::Ssl(ssl) => What::Ssl(ssl),
        Wire::Upstream(upstream) => What::Upstream(upstream),
        Wire::Service(service) => What::Service(service),
        Wire::PluginConfig(config) => What::PluginConfig(config),
        Wire::Route(route) => What::Route(route),
        Wire::StreamRoute(route) => What::StreamRoute(route),
        Wire::GlobalRule(rule) => What::GlobalRule(rule),
    };
    (Some(what), None)
}

fn unwrap_newer(what: push::newer::What) -> What {
    use push::newer::What as Newer;
    match what {
        Newer::Upstream(upstream) => What::Upstream(upstream),
        Newer::Service(service) => What::Service(service),
        Newer::Route(route) => What::Route(route),
        Newer::StreamRoute(route) => What::StreamRoute(route),
    }
}

fn ssl_from_wire(id: Id, ssl: &push::Ssl, blocked: Option<Blocked>) -> Result<Ssl, Problem> {
    let mut pairs = Vec::with_capacity(ssl.pairs.len());
    for (index, pair) in (1..).zip(&ssl.pairs) {
        pairs.push(pair_from_wire(pair).map_err(|problem| problem.within(&format!("pairs[{index}]")))?);
    }
    // Every field by name, so that a new one is not forgotten on the wire.
    let decoded = Ssl {
        id,
        client_side: ssl.client_side,
        names: names("snis", &ssl.names)?,
        pairs,
        client: ssl.client.as_ref().map(client_from_wire).transpose()?.map(Arc::new),
        versions: versions(&ssl.versions)?,
        enabled: !ssl.disabled,
        cache: CacheSlot::new(),
        blocked,
    };
    if decoded.pairs.is_empty() && decoded.blocked.is_none() {
        return Err(Problem::new("cert", "an ssl without a certificate"));
    }
    if decoded.names.is_empty() && !decoded.client_side {
        return Err(Problem::new("snis", "an ssl of type server without a name"));
    }
    Ok(decoded)
}

fn versions(versions: &[i32]) -> Result<Option<Vec<TlsVersion>>, Problem> {
    let read = versions.iter().map(|version| match push::TlsVersion::try_from(*version) {
        // The control plane may have an engine that this program lacks.
        Ok(push::TlsVersion::TlsVersion11) => crate::document::require_supported_version(TlsVersion::V11),
        Ok(push::TlsVersion::TlsVersion12) => Ok(TlsVersion::V12),
        Ok(push::TlsVersion::TlsVersion13) => Ok(TlsVersion::V13),
        // An empty list would mean the versions of the listener.
        Ok(push::TlsVersion::Unspecified) | Err(_) => {
            Err(Problem::new("ssl_protocols", format!("TLS version {version} is unknown")))
        }
    });
    let read: Vec<TlsVersion> = read.collect::<Result<_, _>>()?;
    Ok(if read.is_empty() { None } else { Some(read) })
}

fn pair_from_wire(pair: &push::KeyPair) -> Result<KeyPair, Problem> {
    let format = match push::KeyFormat::try_from(pair.format) {
        Ok(push::KeyFormat::Pkcs8) => KeyFormat::Pkcs8,
        Ok(push::KeyFormat::Pkcs1) => KeyFormat::Pkcs1,
        Ok(push::KeyFormat::Sec1) => KeyFormat::Sec1,
        Ok(push::KeyFormat::Unspecified) | Err(_) => {
            return Err(Problem::new("key", format!("key format {} is unknown", pair.format)));
        }
    };
    let chain = certificates("cert", &pair.chain)?;
    let key =
        PrivateKey::from_der(format, &pair.key).map_err(|error| Problem::new("key", error.to_string()))?;
    match chain.first() {
        None => return Err(Problem::new("cert", "a private key without a certificate")),
        Some(leaf) => key.matches(leaf).map_err(|error| Problem::new("key", error.to_string()))?,
    }
    Ok(KeyPair { chain, key: Arc::new(key) })
}

fn client_from_wire(client: &push::ClientAuth) -> Result<ClientAuth, Problem> {
    ClientAuth::new(ClientAuthInput {
        anchors: certificates("client.ca", &client.anchors)?,
        depth: client.depth,
        skip_uri_patterns: client.skip_uri_patterns.clone(),
        crls: client.crls.iter().map(|crl| crl.to_vec().into()).collect(),
        crl_prefer: client.crl_prefer,
    })
    .map_err(|error| Problem::new("client", error.to_string()))
}

fn upstream_from_wire(id: Option<Id>, upstream: push::Upstream) -> Result<Upstream, Problem> {
    let pass_host = match push::PassHost::try_from(upstream.pass_host) {
        Ok(push::PassHost::Pass) => PassHost::Pass,
        Ok(push::PassHost::Node) => PassHost::Node,
        Ok(push::PassHost::Rewrite) => PassHost::Rewrite,
        Err(_) => return Err(Problem::new("pass_host", format!("{} is unknown", upstream.pass_host))),
    };
    // A wrong scheme could send in clear what was to be encrypted.
    let scheme = match push::Scheme::try_from(upstream.scheme) {
        Ok(push::Scheme::Http) => Scheme::Http,
        Ok(push::Scheme::Https) => Scheme::Https,
        Ok(push::Scheme::Grpc) => Scheme::Grpc,
        Ok(push::Scheme::Grpcs) => Scheme::Grpcs,
        Ok(push::Scheme::Tcp) => Scheme::Tcp,
        Ok(push::Scheme::Tls) => Scheme::Tls,
        Err(_) => return Err(Problem::new("scheme", format!("{} is unknown", upstream.scheme))),
    };
    let upstream_host = Some(upstream.upstream_host).filter(|host| !host.is_empty());
    if pass_host == PassHost::Rewrite && upstream_host.is_none() {
        return Err(Problem::new("upstream_host", "pass_host is rewrite, but there is no upstream_host"));
    }
    Ok(Upstream {
        id,
        scheme,
        nodes: upstream.nodes.into_iter().map(node_from_wire).collect::<Result<_, _>>()?,
        retries: upstream.retries,
        retry_timeout: Some(Duration::from_millis(upstream.retry_timeout_ms))
            .filter(|bound| !bound.is_zero()),
        timeout: upstream.timeout.as_ref().map(timeout_from_wire).transpose()?,
        pass_host,
        upstream_host,
        keepalive: upstream.keepalive_pool.map(|pool| KeepalivePool {
            size: pool.size,
            idle_timeout: Duration::from_millis(pool.idle_timeout_ms),
            requests: pool.requests,
            max_connections: Some(pool.max_connections).filter(|most| *most != 0),
        }),
        tls: tls_from_wire(&upstream.tls.unwrap_or_default())?,
        http2: upstream.http2,
        cache: CacheSlot::new(),
        blocked: None,
    })
}

fn tls_from_wire(tls: &push::UpstreamTls) -> Result<UpstreamTls, Problem> {
    let identity = match (&tls.identity, tls.identity_ssl_id.as_str()) {
        (None, "") => None,
        (Some(pair), "") => {
            Some(UpstreamIdentity::Inline(pair_from_wire(pair).map_err(|problem| problem.within("tls"))?))
        }
        (None, id) => Some(UpstreamIdentity::Ssl(id_of("tls.client_cert_id", id)?)),
        (Some(_), _) => return Err(Problem::new("tls", "both an identity and the id of one")),
    };
    let field = "tls.ca_certs";
    let anchors = match certificates(field, &tls.ca_certs)? {
        none if none.is_empty() => None,
        some => Some(TrustAnchors::new(some).map_err(|error| Problem::new(field, error.to_string()))?),
    };
    let verify_identity = json("tls.verify_identity", &tls.verify_identity, ServerIdentity::compile);
    Ok(UpstreamTls {
        identity,
        verify: tls.verify,
        anchors: anchors.map(Arc::new),
        verify_identity: verify_identity?.map(Arc::new),
    })
}

fn node_from_wire(node: push::Node) -> Result<Node, Problem> {
    let port = u16::try_from(node.port)
        .map_err(|_| Problem::new("nodes", format!("port {} of {} is none", node.port, node.host)))?;
    if node.host.is_empty() {
        return Err(Problem::new("nodes", "a node without a host"));
    }
    let port = Some(port).filter(|port| *port != 0);
    Ok(Node { host: node.host, port, weight: node.weight, priority: node.priority })
}

fn service_from_wire(id: Id, service: push::Service) -> Result<Service, Problem> {
    Ok(Service {
        id,
        hosts: names("hosts", &service.hosts)?,
        upstream: service.upstream.map(upstream_ref_from_wire).transpose()?,
        client_identity: json("client_identity", &service.client_identity, ClientIdentity::compile)?
            .map(Arc::new),
        proxy_rewrite: rewrite(&service.proxy_rewrite)?,
        enable_websocket: service.enable_websocket,
        blocked: None,
    })
}

fn rewrite(text: &str) -> Result<Option<Arc<ProxyRewrite>>, Problem> {
    Ok(json("proxy_rewrite", text, ProxyRewrite::compile)?.map(Arc::new))
}

/// Parses a block that is sent as JSON; an empty text is none.
fn json<T>(
    field: &str,
    text: &str,
    compile: impl FnOnce(&Value) -> Result<T, Problem>,
) -> Result<Option<T>, Problem> {
    if text.is_empty() {
        return Ok(None);
    }
    let value: Value = serde_json::from_str(text)
        .map_err(|error| Problem::new(field, format!("{field} is not JSON: {error}")))?;
    compile(&value).map(Some)
}

fn route_from_wire(id: Id, route: push::Route, blocked: Option<Blocked>) -> Result<Route, Problem> {
    // A dropped matcher would widen the route.
    let uris: Vec<UriPattern> = match blocked {
        Some(_) => route.uris.iter().map(|text| UriPattern::parse_widened(text)).collect(),
        None => listed("uris", &route.uris, UriPattern::parse)?,
    };
    if uris.is_empty() {
        return Err(Problem::new("uris", "a route without a uri"));
    }
    let methods: Vec<RouteMethod> = listed("methods", &route.methods, |text| {
        RouteMethod::parse(text).ok_or_else(|| Problem::new("", format!("method \"{text}\" is unknown")))
    })?;
    let remote_addrs = listed("remote_addrs", &route.remote_addrs, |text| {
        text.parse().map_err(|_| Problem::new("", format!("\"{text}\" is not an IP network")))
    })?;
    let service = Some(route.service_id.as_str()).filter(|id| !id.is_empty());
    let config = Some(route.plugin_config_id.as_str()).filter(|id| !id.is_empty());
    Ok(Route {
        id,
        uris,
        hosts: names("hosts", &route.hosts)?,
        methods: methods.into_iter().collect::<MethodSet>(),
        remote_addrs,
        priority: route.priority,
        enabled: !route.disabled,
        upstream: route.upstream.map(upstream_ref_from_wire).transpose()?,
        service: service.map(|id| id_of("service_id", id)).transpose()?,
        plugin_config: config.map(|id| id_of("plugin_config_id", id)).transpose()?,
        timeout: route.timeout.as_ref().map(timeout_from_wire).transpose()?,
        vars: json("vars", &route.vars, Vars::compile)?.unwrap_or_default(),
        client_identity: json("client_identity", &route.client_identity, ClientIdentity::compile)?
            .map(Arc::new),
        proxy_rewrite: rewrite(&route.proxy_rewrite)?,
        enable_websocket: route.enable_websocket,
        blocked,
    })
}

fn stream_route_from_wire(id: Id, route: push::StreamRoute) -> Result<StreamRoute, Problem> {
    fn given(text: &str) -> Option<&str> {
        Some(text).filter(|text| !text.is_empty())
    }
    let network = |field: &str, text: &str| {
        let read = given(text).map(|text| {
            text.parse().map_err(|_| Problem::new(field, format!("\"{text}\" is not an IP network")))
        });
        read.transpose()
    };
    let snis = match (given(&route.sni), route.snis.as_slice()) {
        (Some(sni), []) => vec![NamePattern::parse(sni).map_err(|problem| problem.within("sni"))?],
        (Some(_), _) => return Err(Problem::new("sni", "both a name and a list of names")),
        (None, snis) => names("snis", snis)?,
    };
    let port = u16::try_from(route.server_port)
        .map_err(|_| Problem::new("server_port", format!("{} is no port", route.server_port)))?;
    Ok(StreamRoute {
        id,
        snis,
        tls_passthrough: route.tls_passthrough,
        remote_addr: network("remote_addr", &route.remote_addr)?,
        server_addr: network("server_addr", &route.server_addr)?,
        server_port: Some(port).filter(|port| *port != 0),
        upstream: route.upstream.map(upstream_ref_from_wire).transpose()?,
        service: given(&route.service_id).map(|id| id_of("service_id", id)).transpose()?,
        blocked: None,
    })
}

fn upstream_ref_from_wire(upstream: push::UpstreamRef) -> Result<UpstreamRef, Problem> {
    use push::upstream_ref::Ref;
    match upstream.r#ref {
        Some(Ref::Id(id)) => Ok(UpstreamRef::Id(id_of("upstream_id", &id)?)),
        Some(Ref::Inline(upstream)) => {
            let upstream =
                upstream_from_wire(None, upstream).map_err(|problem| problem.within("upstream"))?;
            Ok(UpstreamRef::Inline(Arc::new(upstream)))
        }
        None => Err(Problem::new("upstream", "neither an upstream nor the id of one")),
    }
}

fn timeout_from_wire(timeout: &push::Timeout) -> Result<Timeouts, Problem> {
    let [connect, send, read] = [timeout.connect_ms, timeout.send_ms, timeout.read_ms];
    if [connect, send, read].contains(&0) {
        return Err(Problem::new("timeout", "a timeout of zero"));
    }
    let [connect, send, read] = [connect, send, read].map(Duration::from_millis);
    Ok(Timeouts { connect, send, read })
}

fn certificates(field: &str, ders: &[Bytes]) -> Result<Vec<Certificate>, Problem> {
    let mut read = Vec::with_capacity(ders.len());
    for der in ders {
        read.push(Certificate::from_der(der).map_err(|error| Problem::new(field, error.to_string()))?);
    }
    Ok(read)
}

fn names(field: &str, texts: &[String]) -> Result<Vec<NamePattern>, Problem> {
    listed(field, texts, NamePattern::parse)
}

fn listed<T>(
    field: &str,
    texts: &[String],
    read: impl Fn(&str) -> Result<T, Problem>,
) -> Result<Vec<T>, Problem> {
    // Exact capacity: collecting would leave unused room in up to a million resources.
    let mut read_all = Vec::with_capacity(texts.len());
    for (index, text) in (1..).zip(texts) {
        read_all.push(read(text).map_err(|problem| problem.within(&format!("{field}[{index}]")))?);
    }
    Ok(read_all)
}

fn id_of(field: &str, text: &str) -> Result<Id, Problem> {
    Id::parse(text).map_err(|problem| Problem { field: field.to_owned(), ..problem })
}
