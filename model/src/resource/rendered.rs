//! A resource as a document, for operators: what a data plane received, without secrets.
//!
//! Invariant: no private key is rendered, and no value that may be one; nor the value of a header
//! field that carries credentials.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::{
    KeepalivePool, Node, PassHost, Resource, Route, Service, Ssl, StreamRoute, Timeouts, Upstream,
    UpstreamIdentity, UpstreamRef, UpstreamTls,
};
use crate::client_identity::ClientIdentity;
use crate::proxy_rewrite::ProxyRewrite;
use crate::redact::redact;
use crate::server_identity::ServerIdentity;

/// In place of a value that is not shown.
const NOT_SHOWN: &str = "(not shown)";

/// Parts of the names of header fields whose values are credentials.
const SECRET_NAMES: [&str; 8] =
    ["auth", "cookie", "token", "secret", "password", "api-key", "apikey", "credential"];

impl Resource {
    /// The members of the document that have an effect, with APISIX's names. An ssl and the TLS of
    /// an upstream are rendered without certificates and keys.
    pub fn to_document(&self) -> Value {
        let mut members = match self {
            Resource::Ssl(ssl) => ssl_members(ssl),
            Resource::Upstream(upstream) => upstream_members(upstream),
            Resource::Service(service) => service_members(service),
            Resource::Route(route) => route_members(route),
            Resource::StreamRoute(route) => stream_route_members(route),
            Resource::PluginConfig(config) => plugins(config.proxy_rewrite.as_deref()),
            Resource::GlobalRule(rule) => plugins(rule.proxy_rewrite.as_deref()),
        };
        members.insert("id".to_owned(), self.id().to_string().into());
        if let Some(blocked) = self.blocked() {
            members.insert("blocked".to_owned(), blocked.reason().into());
        }
        let mut document = Value::Object(members);
        redact_texts(&mut document);
        document
    }
}

/// The members whose values are not `null`.
fn members<const N: usize>(members: [(&str, Value); N]) -> Map<String, Value> {
    let given = members.into_iter().filter(|(_, value)| !value.is_null());
    given.map(|(name, value)| (name.to_owned(), value)).collect()
}

/// `null` for an empty list.
fn texts<T: ToString>(items: impl IntoIterator<Item = T>) -> Value {
    let texts: Vec<Value> = items.into_iter().map(|item| item.to_string().into()).collect();
    if texts.is_empty() { Value::Null } else { texts.into() }
}

fn optional<T: ToString>(value: Option<T>) -> Value {
    value.map_or(Value::Null, |value| value.to_string().into())
}

fn seconds(time: Duration) -> Value {
    match u64::try_from(time.as_millis()) {
        Ok(milliseconds) if milliseconds.is_multiple_of(1000) => (milliseconds / 1000).into(),
        _ => time.as_secs_f64().into(),
    }
}

fn timeout(timeouts: Option<&Timeouts>) -> Value {
    timeouts.map_or(Value::Null, |Timeouts { connect, send, read }| {
        json!({"connect": seconds(*connect), "send": seconds(*send), "read": seconds(*read)})
    })
}

fn flag(is_set: bool) -> Value {
    if is_set { true.into() } else { Value::Null }
}

fn status(enabled: bool) -> Value {
    u8::from(enabled).into()
}

fn ssl_members(ssl: &Ssl) -> Map<String, Value> {
    let Ssl { id: _, client_side, names, pairs: _, client, versions, enabled, cache: _, blocked: _ } = ssl;
    let versions = versions.iter().flatten().map(|version| version.as_str());
    let client = client
        .as_deref()
        .map(|client| json!({"depth": client.depth(), "skip_mtls_uri_regex": client.skip_patterns()}));
    members([
        ("type", if *client_side { "client" } else { "server" }.into()),
        ("snis", texts(names)),
        ("client", client.unwrap_or_default()),
        ("ssl_protocols", texts(versions)),
        ("status", status(*enabled)),
    ])
}

fn upstream_members(upstream: &Upstream) -> Map<String, Value> {
    let Upstream {
        id: _,
        scheme,
        nodes,
        retries,
        retry_timeout,
        timeout: timeouts,
        pass_host,
        upstream_host,
        keepalive,
        tls,
        http2,
        cache: _,
        blocked: _,
    } = upstream;
    let pass_host = match pass_host {
        PassHost::Pass => "pass",
        PassHost::Node => "node",
        PassHost::Rewrite => "rewrite",
    };
    members([
        ("type", "roundrobin".into()),
        ("scheme", scheme.as_str().into()),
        ("nodes", nodes.iter().map(node).collect()),
        ("retries", json!(retries)),
        ("retry_timeout", retry_timeout.map_or(Value::Null, seconds)),
        ("timeout", timeout(timeouts.as_ref())),
        ("pass_host", pass_host.into()),
        ("upstream_host", json!(upstream_host)),
        ("keepalive_pool", keepalive.as_ref().map_or(Value::Null, keepalive_pool)),
        ("tls", upstream_tls(tls)),
        ("http2", flag(*http2)),
    ])
}

fn node(node: &Node) -> Value {
    let Node { host, port, weight, priority } = node;
    let shown = [
        ("host", host.as_str().into()),
        ("port", json!(port)),
        ("weight", (*weight).into()),
        ("priority", (*priority).into()),
    ];
    Value::Object(members(shown))
}

fn keepalive_pool(pool: &KeepalivePool) -> Value {
    let KeepalivePool { size, idle_timeout, requests, max_connections } = pool;
    Value::Object(members([
        ("size", (*size).into()),
        ("idle_timeout", seconds(*idle_timeout)),
        ("requests", (*requests).into()),
        ("max_connections", json!(max_connections)),
    ]))
}

fn upstream_tls(tls: &UpstreamTls) -> Value {
    let UpstreamTls { identity, verify, anchors, verify_identity } = tls;
    let (own, ssl) = match identity {
        Some(UpstreamIdentity::Inline(pair)) => (pair.leaf().map(pki::Certificate::subject), None),
        Some(UpstreamIdentity::Ssl(id)) => (None, Some(id)),
        None => (None, None),
    };
    let anchors = anchors.as_deref().map(|anchors| anchors.certificates().iter().map(|ca| ca.subject()));
    let shown = members([
        ("client_cert_subject", json!(own)),
        ("client_cert_id", optional(ssl)),
        ("verify", json!(verify)),
        ("ca_subjects", anchors.map_or(Value::Null, texts)),
        (
            "verify_identity",
            verify_identity.as_deref().map(ServerIdentity::source).cloned().unwrap_or_default(),
        ),
    ]);
    if shown.is_empty() { Value::Null } else { Value::Object(shown) }
}

/// `upstream` and `upstream_id`.
fn upstream_ref(upstream: Option<&UpstreamRef>) -> (Value, Value) {
    match upstream {
        Some(UpstreamRef::Inline(upstream)) => (Value::Object(upstream_members(upstream)), Value::Null),
        Some(UpstreamRef::Id(id)) => (Value::Null, id.to_string().into()),
        None => (Value::Null, Value::Null),
    }
}

fn service_members(service: &Service) -> Map<String, Value> {
    let Service { id: _, hosts, upstream, client_identity, proxy_rewrite, enable_websocket, blocked: _ } =
        service;
    let (upstream, upstream_id) = upstream_ref(upstream.as_ref());
    let mut shown = members([
        ("hosts", texts(hosts)),
        ("upstream", upstream),
        ("upstream_id", upstream_id),
        ("client_identity", identity(client_identity.as_deref())),
        ("enable_websocket", flag(*enable_websocket)),
    ]);
    shown.extend(plugins(proxy_rewrite.as_deref()));
    shown
}

fn route_members(route: &Route) -> Map<String, Value> {
    let Route {
        id: _,
        uris,
        hosts,
        methods,
        remote_addrs,
        priority,
        enabled,
        upstream,
        service,
        plugin_config,
        timeout: timeouts,
        vars,
        client_identity,
        proxy_rewrite,
        enable_websocket,
        blocked: _,
    } = route;
    let (upstream, upstream_id) = upstream_ref(upstream.as_ref());
    let vars = if vars.is_empty() { Value::Null } else { vars.source().clone() };
    let mut shown = members([
        ("uris", texts(uris)),
        ("hosts", texts(hosts)),
        ("methods", texts(methods.iter().map(|method| method.as_str()))),
        ("remote_addrs", texts(remote_addrs)),
        ("priority", (*priority).into()),
        ("status", status(*enabled)),
        ("upstream", upstream),
        ("upstream_id", upstream_id),
        ("service_id", optional(service.as_ref())),
        ("plugin_config_id", optional(plugin_config.as_ref())),
        ("timeout", timeout(timeouts.as_ref())),
        ("vars", vars),
        ("client_identity", identity(client_identity.as_deref())),
        ("enable_websocket", json!(enable_websocket)),
    ]);
    shown.extend(plugins(proxy_rewrite.as_deref()));
    shown
}

fn stream_route_members(route: &StreamRoute) -> Map<String, Value> {
    let StreamRoute {
        id: _,
        snis,
        tls_passthrough,
        remote_addr,
        server_addr,
        server_port,
        upstream,
        service,
        blocked: _,
    } = route;
    let (upstream, upstream_id) = upstream_ref(upstream.as_ref());
    members([
        ("snis", texts(snis)),
        ("tls_passthrough", flag(*tls_passthrough)),
        ("remote_addr", optional(*remote_addr)),
        ("server_addr", optional(*server_addr)),
        ("server_port", json!(server_port)),
        ("upstream", upstream),
        ("upstream_id", upstream_id),
        ("service_id", optional(service.as_ref())),
    ])
}

fn identity(identity: Option<&ClientIdentity>) -> Value {
    identity.map(ClientIdentity::source).cloned().unwrap_or_default()
}

/// `plugins`, where there is one.
fn plugins(proxy_rewrite: Option<&ProxyRewrite>) -> Map<String, Value> {
    let Some(rewrite) = proxy_rewrite else { return Map::new() };
    let mut rewrite = rewrite.source().clone();
    if let Some(headers) = rewrite.get_mut("headers") {
        hide_credentials(headers);
    }
    members([("plugins", json!({"proxy-rewrite": rewrite}))])
}

/// Replaces the values of header fields that carry credentials, at any depth.
fn hide_credentials(headers: &mut Value) {
    match headers {
        Value::Object(fields) => {
            for (name, value) in fields {
                let name = name.to_ascii_lowercase().replace('_', "-");
                if !value.is_object() && SECRET_NAMES.iter().any(|part| name.contains(part)) {
                    *value = NOT_SHOWN.into();
                } else {
                    hide_credentials(value);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(hide_credentials),
        _ => {}
    }
}

/// Cuts out of all texts what may be a private key.
fn redact_texts(value: &mut Value) {
    match value {
        Value::String(text) => {
            if let std::borrow::Cow::Owned(redacted) = redact(text) {
                *text = redacted;
            }
        }
        Value::Array(items) => items.iter_mut().for_each(redact_texts),
        Value::Object(members) => members.values_mut().for_each(redact_texts),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::document::compile;
    use crate::id::{Id, Kind};
    use crate::samples;

    fn compiled(kind: Kind, document: &Value) -> Resource {
        let keyring = pki::Keyring::new(vec!["a-key-of-a-test-".to_owned()]).unwrap();
        compile(kind, &Id::parse("1").unwrap(), document, &keyring).unwrap()
    }

    /// What is rendered is a document of the same resource.
    #[track_caller]
    fn assert_round_trip(kind: Kind, document: Value) {
        let resource = compiled(kind, &document);
        let rendered = resource.to_document();
        assert_eq!(compiled(kind, &rendered), resource, "{rendered:#}");
    }

    #[test]
    fn rendered_documents_compile_to_the_same_resource() {
        let upstream = json!({
            "nodes": [{"host": "a.example", "port": 443, "weight": 2, "priority": 1}, {"host": "[::1]", "port": 1, "weight": 0}],
            "scheme": "https", "type": "roundrobin", "retries": 2, "retry_timeout": 1.5, "pass_host": "rewrite",
            "timeout": {"connect": 0.5, "send": 6, "read": 7}, "upstream_host": "b.example", "tls": {"verify": true},
            "keepalive_pool": {"size": 3, "idle_timeout": 4, "requests": 5},
        });
        assert_round_trip(Kind::Upstream, upstream.clone());
        assert_round_trip(
            Kind::Route,
            json!({
                "uris": ["/a", "/b/*"], "hosts": ["*.example.org"], "methods": ["GET", "PUT"], "priority": 7, "status": 0,
                "remote_addrs": ["10.0.0.0/8"], "vars": [["arg_a", "==", "b"]], "upstream": upstream, "enable_websocket": true,
                "timeout": {"connect": 1, "send": 2, "read": 3},
                "plugins": {"proxy-rewrite": {"uri": "/c", "headers": {"set": {"x-a": "b"}}}},
            }),
        );
        assert_round_trip(Kind::Route, json!({"uri": "/", "upstream_id": "2", "service_id": "3"}));
        assert_round_trip(Kind::Service, json!({"hosts": ["a.example"], "upstream_id": "2"}));
        let node = json!({"type": "roundrobin", "scheme": "tcp", "nodes": {"127.0.0.1:1": 1}});
        let stream =
            json!({"sni": "a.example", "server_port": 9100, "remote_addr": "10.0.0.1", "upstream": node});
        assert_round_trip(Kind::StreamRoute, stream);
    }

    #[test]
    fn no_document_has_a_secret() {
        let pair = samples::PAIRS[0].clone();
        let key = pair.key.to_pem();
        let der = pair.key.der().secret_der().to_vec();
        let id = Id::parse("1").unwrap();
        let mut upstream = match compiled(Kind::Upstream, &json!({"nodes": {"a.example:1": 1}})) {
            Resource::Upstream(upstream) => (*upstream).clone(),
            other => panic!("{other:?}"),
        };
        upstream.tls.identity = Some(UpstreamIdentity::Inline(pair.clone()));
        let ssl = Ssl { pairs: vec![pair], ..Ssl::new(id) };
        let headers = json!({
            "set": {"Authorization": "Bearer s3cret", "X_Api_Key": "s3cret", "x-plain": "shown"},
            "add": {"cookie": ["s3cret"]},
        });
        let rewrite =
            json!({"uri": "/", "upstream_id": "1", "plugins": {"proxy-rewrite": {"headers": headers}}});
        let misplaced = json!({"uri": "/", "upstream_id": "1", "vars": [["arg_a", "==", key.as_str()]]});
        let all = [
            Resource::Upstream(Arc::new(upstream)),
            Resource::Ssl(Arc::new(ssl)),
            compiled(Kind::Route, &rewrite),
            compiled(Kind::Route, &misplaced),
        ];
        let text = all.map(|resource| resource.to_document().to_string()).join("\n");
        assert!(text.contains("shown") && text.contains(NOT_SHOWN), "{text}");
        let base64 = data_encoding::BASE64.encode(&der);
        for secret in ["s3cret", "PRIVATE KEY-----\\n", base64.get(..40).unwrap()] {
            assert!(!text.contains(secret), "{secret}: {text}");
        }
    }
}
