//! Selects the route of a request, and its service, plugins, upstream and timeouts. Contract
//! sections 7.1 and 7.3.
//!
//! The data plane forwards by [`find`] and the explain API reports it.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::client_identity::ClientIdentity;
use crate::id::Id;
use crate::proxy_rewrite::ProxyRewrite;
use crate::reason::Reason;
use crate::request_target::RequestTarget;
use crate::resource::{Route, Timeouts, Upstream, UpstreamRef};
use crate::route_index::RouteQuery;
use crate::snapshot::Snapshot;
use crate::variable::Variables;

/// nginx's defaults, used when neither the route nor the upstream sets timeouts.
const DEFAULT_TIMEOUTS: Timeouts = Timeouts {
    connect: Duration::from_secs(60),
    send: Duration::from_secs(60),
    read: Duration::from_secs(60),
};

/// The route of a request with its effective settings, borrowed from the snapshot.
#[derive(Debug, Clone, Copy)]
pub struct Destination<'a> {
    /// The matching route.
    pub route: &'a Arc<Route>,
    /// The upstream of the route, or else of its service.
    pub upstream: &'a Upstream,
    /// The timeouts of the route, or else of the upstream, or else 60 seconds each.
    pub timeouts: Timeouts,
    /// The block of the route, or else of its service.
    pub client_identity: Option<&'a ClientIdentity>,
    /// The plugin of the route, or else of its plugin config, or else of its service.
    pub proxy_rewrite: Option<&'a ProxyRewrite>,
    /// The plugin of the global rules. It runs first: method, host and headers that the route's
    /// plugin does not set are its own. The path comes from it only if the route has no such
    /// plugin, because that one starts from the path of the request (contract 10.7).
    pub global_rewrite: Option<&'a ProxyRewrite>,
    /// Whether WebSocket upgrades are forwarded.
    pub enable_websocket: bool,
}

/// Finds the destination of a request.
///
/// # Errors
///
/// `NoRoute`, or the reason why the matching route leads nowhere.
pub fn find<'a>(
    snapshot: &'a Snapshot,
    target: &RequestTarget,
    method: &str,
    remote: IpAddr,
    variables: &dyn Variables,
) -> Result<Destination<'a>, Reason> {
    if snapshot.blocking_global_rule().is_some() {
        return Err(Reason::BlockedGlobalRule);
    }
    let query = RouteQuery { host: target.host.as_ref(), path: &target.path, method, remote, variables };
    let route = snapshot.find_route(&query).ok_or(Reason::NoRoute)?;
    if route.blocked.is_some() {
        return Err(Reason::BlockedRoute);
    }
    // Its plugins would be skipped.
    if let Some(id) = &route.plugin_config {
        let config = snapshot.plugin_config(id).ok_or(Reason::NoPluginConfig)?;
        if config.blocked.is_some() {
            return Err(Reason::BlockedPluginConfig);
        }
    }
    let upstream = resolve_upstream(snapshot, route.upstream.as_ref(), route.service.as_ref())?;
    let timeouts = route.timeout.or(upstream.timeout).unwrap_or(DEFAULT_TIMEOUTS);
    Ok(Destination {
        route,
        upstream,
        timeouts,
        client_identity: snapshot.client_identity(route),
        proxy_rewrite: snapshot.proxy_rewrite(route),
        global_rewrite: snapshot.global_rewrite(),
        enable_websocket: snapshot.enable_websocket(route),
    })
}

/// Resolves the upstream of a route or stream route: its own, or else its service's.
///
/// # Errors
///
/// A resource is missing or blocked.
pub fn resolve_upstream<'a>(
    snapshot: &'a Snapshot,
    own: Option<&'a UpstreamRef>,
    service: Option<&Id>,
) -> Result<&'a Upstream, Reason> {
    let service = match service {
        Some(id) => Some(snapshot.service(id).ok_or(Reason::NoService)?),
        None => None,
    };
    // A blocked service also blocks routes with an upstream of their own, because its plugins would
    // be skipped.
    if service.is_some_and(|service| service.blocked.is_some()) {
        return Err(Reason::BlockedService);
    }
    let reference =
        own.or_else(|| service.and_then(|service| service.upstream.as_ref())).ok_or(Reason::NoUpstream)?;
    let upstream: &Upstream = match reference {
        UpstreamRef::Inline(upstream) => upstream,
        UpstreamRef::Id(id) => snapshot.upstream(id).ok_or(Reason::UpstreamMissing)?,
    };
    if upstream.blocked.is_some() { Err(Reason::BlockedUpstream) } else { Ok(upstream) }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use pki::Keyring;
    use proptest::prelude::*;
    use rustls_pki_types::UnixTime;
    use serde_json::{Map, Value, json};

    use super::*;
    use crate::id::Kind;
    use crate::lint::{LintSettings, Severity};
    use crate::request_target::PathOptions;
    use crate::resource::{Blocked, PluginConfig, Resource};
    use crate::samples::id;
    use crate::snapshot::Versioned;
    use crate::variable::NoVariables;

    fn compiled(kind: Kind, document: &Value) -> Resource {
        crate::compile(kind, &id("1"), document, &Keyring::empty()).unwrap()
    }

    fn snapshot(resources: impl IntoIterator<Item = Resource>) -> Snapshot {
        let versioned = |resource| Versioned { version: 1, resource };
        Snapshot::from_resources(1, resources.into_iter().map(versioned))
    }

    fn route() -> Value {
        json!({"uri": "/a", "upstream": {"nodes": {"127.0.0.1:1": 1}}, "plugin_config_id": "1"})
    }

    fn found(snapshot: &Snapshot) -> Result<Destination<'_>, Reason> {
        let target = RequestTarget::new(None, Some("a.com"), "/a", PathOptions::default()).unwrap();
        find(snapshot, &target, "GET", [127, 0, 0, 1].into(), &NoVariables)
    }

    #[test]
    fn a_route_without_its_plugin_config_is_denied() {
        let (route, rule) = (compiled(Kind::Route, &route()), json!({"plugins": {}}));
        let missing = snapshot([route.clone()]);
        assert_eq!(found(&missing).unwrap_err(), Reason::NoPluginConfig);
        assert!(found(&snapshot([route.clone(), compiled(Kind::PluginConfig, &rule)])).is_ok());
        let blocked = Some(Blocked::new("it has a plugin"));
        let blocked = PluginConfig { id: id("1"), proxy_rewrite: None, blocked };
        let blocked = snapshot([route, Resource::PluginConfig(Arc::new(blocked))]);
        assert_eq!(found(&blocked).unwrap_err(), Reason::BlockedPluginConfig);
        for unserved in [&missing, &blocked] {
            let served = snapshot([compiled(
                Kind::Route,
                &json!({
                    "uri": "/a", "upstream": {"nodes": {"127.0.0.1:1": 1}},
                }),
            )]);
            assert_eq!(served.losses(unserved).routes.lost, 1);
        }
    }

    #[test]
    fn one_global_rule_rewrites() {
        let rule = |own: &str, document: Value| {
            crate::compile(Kind::GlobalRule, &id(own), &document, &Keyring::empty()).unwrap()
        };
        let rewrite = |uri: &str| json!({"plugins": {"proxy-rewrite": {"uri": uri}}});
        let plain = compiled(Kind::Route, &json!({"uri": "/a", "upstream": {"nodes": {"127.0.0.1:1": 1}}}));
        let observer = rule("0", json!({"plugins": {"prometheus": {}}}));
        let one = snapshot([plain.clone(), observer, rule("1", rewrite("/b"))]);
        assert_eq!(found(&one).unwrap().global_rewrite.unwrap().source(), &json!({"uri": "/b"}));
        assert!(found(&one).unwrap().proxy_rewrite.is_none());
        assert!(
            crate::lint::lint_snapshot(&one, UnixTime::now(), LintSettings::default())
                .iter()
                .all(|found| found.severity > Severity::Error)
        );
        let two = snapshot([plain, rule("1", rewrite("/b")), rule("2", rewrite("/c"))]);
        assert!(found(&two).unwrap().global_rewrite.is_none());
        let findings = crate::lint::lint_snapshot(&two, UnixTime::now(), LintSettings::default());
        let twice = findings.iter().filter(|found| found.field == "plugins.proxy-rewrite");
        assert_eq!(twice.map(|found| found.severity).collect::<Vec<_>>(), [Severity::Error; 2]);
        let key = crate::id::Key::new(Kind::GlobalRule, id("2"));
        let delta = crate::Delta { from: 1, to: 2, upserts: vec![], removals: vec![key] };
        assert!(two.apply(&delta).global_rewrite().is_some());
    }

    fn some_plugins() -> impl Strategy<Value = Map<String, Value>> {
        let rewrite = prop::sample::select(vec!["/b", "/c", "/d"]).prop_map(|uri| json!({"uri": uri}));
        prop::option::of(rewrite).prop_map(|rewrite| {
            rewrite.into_iter().map(|rewrite| ("proxy-rewrite".to_owned(), rewrite)).collect()
        })
    }

    proptest! {
        /// Contract 7.3, as APISIX merges documents.
        #[test]
        fn plugins_are_merged_as_documents_are(
            own in some_plugins(), config in some_plugins(), service in some_plugins(),
            uses_config in any::<bool>(), uses_service in any::<bool>(),
        ) {
            let mut merged = own.clone();
            if uses_config {
                config.clone().into_iter().for_each(|(name, value)| {
                    merged.entry(name).or_insert(value);
                });
            }
            if uses_service {
                merged = service.clone().into_iter().chain(merged).collect();
            }
            let mut document = route();
            let members = document.as_object_mut().unwrap();
            members.insert("plugins".to_owned(), own.into());
            if !uses_config {
                members.remove("plugin_config_id");
            }
            if uses_service {
                members.insert("service_id".to_owned(), 1.into());
            }
            let snapshot = snapshot([
                compiled(Kind::Route, &document),
                compiled(Kind::PluginConfig, &json!({"plugins": config})),
                compiled(Kind::Service, &json!({"plugins": service})),
            ]);
            let effective = found(&snapshot).unwrap().proxy_rewrite.map(ProxyRewrite::source);
            prop_assert_eq!(effective, merged.get("proxy-rewrite"));
        }
    }
}
