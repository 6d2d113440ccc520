//! Compiles the upstream document (contract 3.2), alone or inside a route, service or stream route.
//!
//! The scheme decides whether an upstream takes HTTP requests or TCP; a reference to
//! it is checked for that.

use pki::Keyring;
use serde_json::Value;

use super::fields::{flag, id, seconds, signed, string, timeouts, unsigned};
use super::{unsupported, upstream_tls};
use crate::host_name::HostName;
use crate::id::Id;
use crate::problem::{Problem, ProblemKind};
use crate::resource::{CacheSlot, KeepalivePool, Node, PassHost, Scheme, Upstream, UpstreamRef};

/// Checks follow the order of contract 3.2; unsupported fields come last.
pub(super) fn compile(own: Option<&Id>, document: &Value, keyring: &Keyring) -> Result<Upstream, Problem> {
    let nodes = nodes(document)?;
    let pass_host = match string(document, "pass_host") {
        Some("node") => PassHost::Node,
        Some("rewrite") => PassHost::Rewrite,
        _ => PassHost::Pass,
    };
    let upstream_host = string(document, "upstream_host").filter(|host| !host.is_empty());
    if pass_host == PassHost::Rewrite && upstream_host.is_none() {
        let message = "`upstream_host` can't be empty when `pass_host` is `rewrite`";
        return Err(Problem::new("upstream_host", message));
    }
    if let Some(host) = upstream_host.filter(|host| HostName::from_host(host).is_none()) {
        let message = format!("invalid configuration: upstream_host \"{host}\" is not a host name");
        return Err(
            Problem::new("upstream_host", message).with_hint("expected a name, with a port if needed")
        );
    }
    let tls = upstream_tls::compile(document, keyring)?;
    check_hash(document)?;
    let (scheme, http2) = (scheme(document)?, http2(document)?);
    forbid_unsupported(document)?;
    let upstream = Upstream {
        id: own.cloned(),
        scheme,
        nodes,
        retries: unsigned(document, "retries")?,
        retry_timeout: seconds(document, "retry_timeout")?.filter(|bound| !bound.is_zero()),
        timeout: timeouts(document)?,
        pass_host,
        upstream_host: upstream_host.map(str::to_owned),
        keepalive: keepalive(document)?,
        tls,
        http2,
        cache: CacheSlot::new(),
        blocked: None,
    };
    if !upstream.scheme.is_http() {
        require_node_ports(&upstream)?;
    }
    Ok(upstream)
}

fn scheme(document: &Value) -> Result<Scheme, Problem> {
    let Some(text) = string(document, "scheme") else { return Ok(Scheme::Http) };
    Scheme::parse(text).ok_or_else(|| {
        let hint =
            format!("found {text}; expected http, https, grpc or grpcs, or tcp or tls for stream_routes");
        unsupported("scheme", &hint)
    })
}

/// Without TLS there is no ALPN, and a gRPC upstream has HTTP/2 anyway.
fn http2(document: &Value) -> Result<bool, Problem> {
    let http2 = flag(document, "http2") == Some(true);
    if http2 && string(document, "scheme") != Some("https") {
        return Err(Problem::new("http2", "invalid configuration: http2 is for the scheme https alone")
            .with_hint("set scheme to https, or remove http2"));
    }
    Ok(http2)
}

/// A TCP upstream needs a port at every node.
pub(super) fn require_node_ports(upstream: &Upstream) -> Result<(), Problem> {
    match upstream.nodes.iter().find(|node| node.port.is_none()) {
        None => Ok(()),
        Some(node) => {
            let message = format!("invalid configuration: node \"{}\" has no port", node.host);
            Err(Problem::new("nodes", message).with_hint("for streams no port is the usual one: write it"))
        }
    }
}

/// The upstream of a route or service. `upstream_id` wins over `upstream` (contract 7.3), which is
/// checked in any case.
pub(super) fn upstream_ref(document: &Value, keyring: &Keyring) -> Result<Option<UpstreamRef>, Problem> {
    let inline = document.get("upstream").map(|upstream| compile(None, upstream, keyring)).transpose();
    let inline = inline.map_err(|problem| problem.within("upstream"))?;
    let named = id(document, "upstream_id")?.map(UpstreamRef::Id);
    Ok(named.or_else(|| inline.map(|upstream| UpstreamRef::Inline(upstream.into()))))
}

fn nodes(document: &Value) -> Result<Vec<Node>, Problem> {
    match document.get("nodes") {
        Some(Value::Object(weights)) => weights
            .iter()
            .map(|(address, weight)| {
                node(address, None, weight_of(weight, address)?, 0, &format!("nodes.{address}"))
            })
            .collect(),
        Some(Value::Array(items)) => (1..)
            .zip(items)
            .map(|(index, item)| {
                let field = format!("nodes[{index}]");
                let inside = |problem: Problem| problem.within(&field);
                let port = unsigned(item, "port").map_err(inside)?.and_then(|port| u16::try_from(port).ok());
                let weight = unsigned(item, "weight").map_err(inside)?.unwrap_or_default();
                let priority = signed(item, "priority").map_err(inside)?.unwrap_or_default();
                node(string(item, "host").unwrap_or_default(), port, weight, priority, &field)
            })
            .collect(),
        _ => Ok(Vec::new()),
    }
}

/// `address` is `host` or `host:port` in both forms of nodes: APISIX passes a node's host to nginx,
/// whose ngx_parse_url prefers a port inside it to `port`. A host that passes APISIX's schema and
/// that no request can reach is unusable, not invalid.
fn node(
    address: &str,
    beside: Option<u16>,
    weight: u32,
    priority: i32,
    field: &str,
) -> Result<Node, Problem> {
    let (host, inside) = address_of(address, field)?;
    if !host.starts_with('[') && host.contains(':') {
        let message = "invalid configuration: IPv6 address must be enclosed with '[' and ']'";
        return Err(Problem::new(field, message));
    }
    if HostName::from_host(host).is_none() || host.starts_with('[') && !is_ipv6_literal(host) {
        let message = format!("invalid configuration: node \"{address}\" is not a host name or address");
        return Err(Problem::new(field, message).with_kind(ProblemKind::Unusable));
    }
    Ok(Node { host: host.to_owned(), port: inside.or(beside), weight, priority })
}

fn is_ipv6_literal(host: &str) -> bool {
    let address = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    address.is_some_and(|address| address.parse::<std::net::Ipv6Addr>().is_ok())
}

/// Splits `host:port` or `host`.
fn address_of<'a>(address: &'a str, field: &str) -> Result<(&'a str, Option<u16>), Problem> {
    let end = if address.starts_with('[') { address.find(']').map_or(0, |end| end + 1) } else { 0 };
    let (head, tail) = address.split_at(end);
    // Several colons outside of brackets are a bare IPv6 address, which `node` rejects.
    let Some((rest, port)) = tail.split_once(':').filter(|(_, port)| !port.contains(':')) else {
        return Ok((address, None));
    };
    let host = address.get(..head.len() + rest.len()).unwrap_or(address);
    match port.parse::<u16>() {
        Ok(number) if number > 0 && port.bytes().all(|b| b.is_ascii_digit()) => Ok((host, Some(number))),
        _ => Err(Problem::new(field, format!("invalid port {port}")).with_kind(ProblemKind::Unusable)),
    }
}

fn weight_of(weight: &Value, address: &str) -> Result<u32, Problem> {
    let number = weight.as_f64().unwrap_or_default();
    if (0.0..=f64::from(u32::MAX)).contains(&number) {
        return Ok(number as u32);
    }
    let message = format!("invalid configuration: the weight of {address} is too large: {number}");
    Err(Problem::new(format!("nodes.{address}"), message))
}

fn keepalive(document: &Value) -> Result<Option<KeepalivePool>, Problem> {
    let Some(pool) = document.get("keepalive_pool") else { return Ok(None) };
    let inside = |problem: Problem| problem.within("keepalive_pool");
    let default = KeepalivePool::default();
    Ok(Some(KeepalivePool {
        size: unsigned(pool, "size").map_err(inside)?.unwrap_or(default.size),
        idle_timeout: seconds(pool, "idle_timeout").map_err(inside)?.unwrap_or(default.idle_timeout),
        requests: unsigned(pool, "requests").map_err(inside)?.unwrap_or(default.requests),
        max_connections: unsigned(pool, "max_connections").map_err(inside)?,
    }))
}

/// APISIX's checks of `chash`, which come before the problem that it is unsupported.
fn check_hash(document: &Value) -> Result<(), Problem> {
    if string(document, "type") != Some("chash") {
        return Ok(());
    }
    let on = string(document, "hash_on").unwrap_or("vars");
    if !matches!(on, "consumer" | "vars_combinations") && string(document, "key").is_none() {
        return Err(Problem::new("key", "missing key"));
    }
    Ok(())
}

fn forbid_unsupported(document: &Value) -> Result<(), Problem> {
    match string(document, "type") {
        None | Some("roundrobin") => {}
        Some(_) => return Err(unsupported("type", "the only balancer is roundrobin")),
    }
    // APISIX ignores discovery arguments without a `discovery_type`, and its dashboard sends empty
    // ones.
    for field in ["service_name", "discovery_type"] {
        if document.get(field).is_some() {
            return Err(unsupported(field, "list the servers in nodes"));
        }
    }
    if document.get("checks").is_some() {
        return Err(unsupported("checks", "remove it: a failing node is retried on the next one"));
    }
    Ok(())
}
