//! Reads the matchers of an unsupported document, so that the blocked resource takes at least the
//! traffic of the real one.
//!
//! A narrowing field that cannot be read or evaluated (`vars`, an address, an unknown method) does
//! not narrow the blocked resource. A name that no client can request matches nothing in either.
//! When no matcher is readable, there is no blocked resource: it would have to match everything.

use std::sync::Arc;

use ipnet::IpNet;
use serde_json::Value;

use crate::document::fields::{enabled, flag, id as id_of, string, strings};
use crate::id::{Id, Key, Kind};
use crate::network;
use crate::pattern::NamePattern;
use crate::resource::{
    Blocked, CacheSlot, GlobalRule, MethodSet, PassHost, PluginConfig, Resource, Route, RouteMethod, Scheme,
    Service, Ssl, StreamRoute, Upstream, UpstreamTls,
};
use crate::uri::UriPattern;

/// Builds the blocked resource; `None` when its traffic cannot be determined.
pub(super) fn blocked_resource(key: &Key, document: &Value, why: Blocked) -> Option<Resource> {
    let (id, blocked) = (key.id.clone(), Some(why));
    Some(match key.kind {
        Kind::Ssl => Resource::Ssl(Arc::new(ssl(id, document, blocked)?)),
        Kind::Upstream => Resource::Upstream(Arc::new(upstream(id, blocked))),
        Kind::Service => {
            // A blocked service also blocks its routes, which match by their own hosts.
            let hosts = names(document, "", "hosts").unwrap_or_default();
            let (upstream, client_identity, proxy_rewrite, enable_websocket) = Default::default();
            let service =
                Service { id, hosts, upstream, client_identity, proxy_rewrite, enable_websocket, blocked };
            Resource::Service(Arc::new(service))
        }
        Kind::PluginConfig => {
            Resource::PluginConfig(Arc::new(PluginConfig { id, proxy_rewrite: None, blocked }))
        }
        Kind::Route => Resource::Route(Arc::new(route(id, document, blocked)?)),
        Kind::StreamRoute => Resource::StreamRoute(Arc::new(stream_route(id, document, blocked)?)),
        Kind::GlobalRule => Resource::GlobalRule(Arc::new(GlobalRule { id, proxy_rewrite: None, blocked })),
    })
}

fn ssl(id: Id, document: &Value, blocked: Option<Blocked>) -> Option<Ssl> {
    let client_side = string(document, "type") == Some("client");
    let names = if client_side { Vec::new() } else { names(document, "sni", "snis")? };
    if names.is_empty() && !client_side {
        return None;
    }
    Some(Ssl { client_side, names, enabled: enabled(document), blocked, ..Ssl::new(id) })
}

fn upstream(id: Id, blocked: Option<Blocked>) -> Upstream {
    let (nodes, retries, retry_timeout, timeout, upstream_host, keepalive) = Default::default();
    Upstream {
        id: Some(id),
        scheme: Scheme::Http,
        nodes,
        retries,
        retry_timeout,
        timeout,
        pass_host: PassHost::Pass,
        upstream_host,
        keepalive,
        tls: UpstreamTls::default(),
        http2: false,
        cache: CacheSlot::new(),
        blocked,
    }
}

fn route(id: Id, document: &Value, blocked: Option<Blocked>) -> Option<Route> {
    let uris = uris(document);
    if uris.is_empty() {
        return None;
    }
    let (upstream, timeout, vars, client_identity, proxy_rewrite, enable_websocket) = Default::default();
    Some(Route {
        id,
        uris,
        hosts: names(document, "host", "hosts")?,
        methods: methods(document),
        remote_addrs: remote_addrs(document),
        priority: priority(document),
        enabled: enabled(document),
        upstream,
        service: id_of(document, "service_id").ok().flatten(),
        plugin_config: None,
        timeout,
        vars,
        client_identity,
        proxy_rewrite,
        enable_websocket,
        blocked,
    })
}

fn stream_route(id: Id, document: &Value, blocked: Option<Blocked>) -> Option<StreamRoute> {
    if !document.is_object() {
        return None;
    }
    // A bare `*` in `snis` is no restriction.
    let all = strings(document, "snis").contains(&"*");
    let address = |field| string(document, field).and_then(|text| network::parse(text).ok());
    let port = document.get("server_port").and_then(Value::as_u64);
    Some(StreamRoute {
        id,
        snis: if all { Vec::new() } else { names(document, "sni", "snis")? },
        tls_passthrough: flag(document, "tls_passthrough") == Some(true),
        remote_addr: address("remote_addr"),
        server_addr: address("server_addr"),
        server_port: port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0),
        upstream: None,
        service: id_of(document, "service_id").ok().flatten(),
        blocked,
    })
}

/// A member that is neither absent nor `null`; the empty name selects none.
fn non_null<'a>(document: &'a Value, name: &str) -> Option<&'a Value> {
    document.get(name).filter(|value| !value.is_null() && !name.is_empty())
}

/// The values of `one` and of the array `many`, valid or not.
fn one_or_many<'a>(document: &'a Value, one: &str, many: &str) -> Vec<&'a Value> {
    let one = non_null(document, one);
    match non_null(document, many) {
        Some(Value::Array(items)) => one.into_iter().chain(items).collect(),
        other => one.into_iter().chain(other).collect(),
    }
}

/// Names of sites or hosts; `None` when the document lists names and none of them is valid.
fn names(document: &Value, one: &str, many: &str) -> Option<Vec<NamePattern>> {
    let written = one_or_many(document, one, many);
    let mut names = Vec::new();
    for text in written.iter().filter_map(|value| value.as_str()) {
        // Ports are never compared, so the name matches on every port.
        let name = match text.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
            _ => text,
        };
        if let Ok(name) = NamePattern::parse(name)
            && !names.contains(&name)
        {
            names.push(name);
        }
    }
    (!names.is_empty() || written.is_empty()).then_some(names)
}

fn uris(document: &Value) -> Vec<UriPattern> {
    let mut uris = Vec::new();
    for text in one_or_many(document, "uri", "uris").into_iter().filter_map(Value::as_str) {
        let uri = UriPattern::parse_widened(text);
        if !text.is_empty() && !uris.contains(&uri) {
            uris.push(uri);
        }
    }
    uris
}

/// All methods, if one of the list is unknown.
fn methods(document: &Value) -> MethodSet {
    let known: Option<Vec<RouteMethod>> = one_or_many(document, "", "methods")
        .into_iter()
        .map(|value| RouteMethod::parse(value.as_str()?))
        .collect();
    known.unwrap_or_default().into_iter().collect()
}

/// All addresses, if one of the list is unreadable.
fn remote_addrs(document: &Value) -> Vec<IpNet> {
    let written = one_or_many(document, "remote_addr", "remote_addrs").into_iter();
    let read: Option<Vec<IpNet>> = written.map(|value| network::parse(value.as_str()?).ok()).collect();
    read.unwrap_or_default()
}

/// The highest priority, if it is unreadable.
fn priority(document: &Value) -> i32 {
    match non_null(document, "priority").map(Value::as_f64) {
        None => 0,
        Some(None) => i32::MAX,
        // The conversion saturates and keeps the order.
        Some(Some(number)) => number as i32,
    }
}
