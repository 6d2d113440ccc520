//! Weakenings of routes, services and stream routes: clients that they allow, and requests that
//! they match.
//!
//! A route with an allow-list also protects by matching: requests that it no longer matches may
//! reach a broader route.

use std::collections::HashSet;

use ipnet::IpNet;
use serde_json::Value;

use super::{RULE_GONE, Weakenings, inline};
use crate::client_identity::ClientIdentity;
use crate::expression::Vars;
use crate::pattern::HostPattern;
use crate::proxy_rewrite::ProxyRewrite;
use crate::resource::{PluginConfig, Route, Service, StreamRoute};

const ELSEWHERE: &str = "requests that it matched may go to a route without its allow-list";

pub(super) const OPENS: &str = "opens without an allow-list; before, it was unsupported and blocked";

pub(super) fn services(old: &Service, new: &Service, found: &mut Weakenings) {
    if service_restricts_clients(old) {
        hosts(&old.hosts, &new.hosts, found);
    }
    if new.blocked.is_some() {
        return;
    }
    inline(old.upstream.as_ref(), new.upstream.as_ref(), found);
    raw_paths(old.proxy_rewrite.as_deref(), new.proxy_rewrite.as_deref(), found);
    let (before, now) = (old.client_identity.as_deref(), new.client_identity.as_deref());
    allow_lists(before, now, found);
    found.add_if(
        old.blocked.is_some() && !has_allow_list(before) && !has_allow_list(now),
        "client_identity",
        OPENS,
    );
}

pub(super) fn service_removal(old: &Service, found: &mut Weakenings) {
    found.add_if(service_restricts_clients(old), "client_identity", ELSEWHERE);
}

pub(super) fn plugin_configs(old: &PluginConfig, new: &PluginConfig, found: &mut Weakenings) {
    if new.blocked.is_some() {
        return;
    }
    found.add_if(old.blocked.is_some(), "plugins", RULE_GONE);
    raw_paths(old.proxy_rewrite.as_deref(), new.proxy_rewrite.as_deref(), found);
}

pub(super) fn routes(old: &Route, new: &Route, found: &mut Weakenings) {
    if route_restricts_clients(old) {
        compare_matchers(old, new, found);
    }
    if new.blocked.is_some() {
        return;
    }
    inline(old.upstream.as_ref(), new.upstream.as_ref(), found);
    raw_paths(old.proxy_rewrite.as_deref(), new.proxy_rewrite.as_deref(), found);
    requests(old, new, found);
    plugin_config(old, new, found);
    let (before, now) = (old.client_identity.as_deref(), new.client_identity.as_deref());
    allow_lists(before, now, found);
    if old.blocked.is_some() && before.is_none() {
        found.add_if(!has_allow_list(now), "client_identity", OPENS);
    } else if old.service.is_some() && before.is_none() {
        // Whom the service's allow-list denies, the route's own may allow.
        found.add_if(
            now.is_some(),
            "client_identity",
            "replaces the service's block, which may have an allow-list",
        );
        let moves = now.is_none() && new.service != old.service;
        found.add_if(
            moves,
            "service_id",
            "the allow-list of the previous service, if it has one, does not apply any more",
        );
    }
}

/// Requests that a route takes and did not take before.
pub(super) fn requests(old: &Route, new: &Route, found: &mut Weakenings) {
    addresses("remote_addrs", &old.remote_addrs, &new.remote_addrs, found);
    if !conditions(&new.vars).is_superset(&conditions(&old.vars)) {
        found.add("vars", "requests are taken that did not fulfil the predicate before");
    }
}

/// A previous plugin config may be blocked, and the route with it.
fn plugin_config(old: &Route, new: &Route, found: &mut Weakenings) {
    let moves = old.plugin_config.is_some() && new.plugin_config != old.plugin_config;
    let what = "requests may be served that the previous plugin config denied, if it is unsupported";
    found.add_if(moves, "plugin_config_id", what);
}

pub(super) fn route_removal(old: &Route, found: &mut Weakenings) {
    found.add_if(route_restricts_clients(old), "uris", ELSEWHERE);
}

pub(super) fn has_allow_list(block: Option<&ClientIdentity>) -> bool {
    block.is_some_and(ClientIdentity::has_allow_list)
}

/// Whether the route denies requests that it matches.
fn route_restricts_clients(route: &Route) -> bool {
    route.enabled && (has_allow_list(route.client_identity.as_deref()) || route.blocked.is_some())
}

pub(super) fn service_restricts_clients(service: &Service) -> bool {
    has_allow_list(service.client_identity.as_deref()) || service.blocked.is_some()
}

/// Clients that the new allow-list allows and the old one denies.
pub(super) fn allow_lists(
    old: Option<&ClientIdentity>,
    new: Option<&ClientIdentity>,
    found: &mut Weakenings,
) {
    let Some(old) = old.filter(|old| old.has_allow_list()) else { return };
    match new.filter(|new| new.has_allow_list()) {
        None => found.add("client_identity.allow", "the allow-list is gone: other clients may be allowed"),
        Some(new) => {
            for index in new.entries_not_covered_by(old) {
                let field = format!("client_identity.allow[{index}]");
                found.add(field, "allows clients that were denied before");
            }
        }
    }
}

fn compare_matchers(old: &Route, new: &Route, found: &mut Weakenings) {
    found.add_if(!new.enabled, "status", ELSEWHERE);
    if !new.enabled {
        return;
    }
    let gone = old.uris.iter().any(|before| !new.uris.iter().any(|now| now.covers(before)));
    found.add_if(gone, "uris", ELSEWHERE);
    hosts(&old.hosts, &new.hosts, found);
    found.add_if(!new.methods.is_superset(old.methods), "methods", ELSEWHERE);
    found.add_if(!within(&old.remote_addrs, &new.remote_addrs), "remote_addrs", ELSEWHERE);
    found.add_if(new.priority < old.priority, "priority", ELSEWHERE);
    let narrower = conditions(&new.vars).iter().any(|condition| !conditions(&old.vars).contains(condition));
    found.add_if(narrower, "vars", ELSEWHERE);
}

pub(super) fn stream_route_removal(old: &StreamRoute, found: &mut Weakenings) {
    let what = "connections that were closed, because it was unsupported, may match another route";
    found.add_if(old.blocked.is_some(), "sni", what);
}

pub(super) fn stream_routes(old: &StreamRoute, new: &StreamRoute, found: &mut Weakenings) {
    if new.blocked.is_some() {
        return;
    }
    inline(old.upstream.as_ref(), new.upstream.as_ref(), found);
    connections(old, new, found);
}

/// Connections that a stream route takes and did not take before.
pub(super) fn connections(old: &StreamRoute, new: &StreamRoute, found: &mut Weakenings) {
    let nets = |route: &StreamRoute| route.remote_addr.into_iter().collect::<Vec<_>>();
    addresses("remote_addr", &nets(old), &nets(new), found);
    let local = |route: &StreamRoute| route.server_addr.into_iter().collect::<Vec<_>>();
    addresses("server_addr", &local(old), &local(new), found);
    let other_port = old.server_port.is_some() && new.server_port != old.server_port;
    found.add_if(other_port, "server_port", "takes connections of listeners that it did not before");
    let known = |now| old.snis.iter().any(|before| covers_host(before, now));
    let wider = !old.snis.is_empty() && (new.snis.is_empty() || !new.snis.iter().all(known));
    found.add_if(wider, "sni", "takes connections for other names, or without TLS");
    let passes = new.tls_passthrough && !old.tls_passthrough;
    found.add_if(passes, "tls_passthrough", "TLS is passed on: no client certificate is verified here");
}

/// Whether raw paths are forwarded now.
pub(super) fn raw_paths(old: Option<&ProxyRewrite>, new: Option<&ProxyRewrite>, found: &mut Weakenings) {
    let raw = |block: Option<&ProxyRewrite>| block.is_some_and(ProxyRewrite::uses_raw_path);
    let field = "plugins.proxy-rewrite.use_real_request_uri_unsafe";
    found.add_if(raw(new) && !raw(old), field, "the upstream gets paths as the client wrote them");
}

/// An empty list is every address.
fn addresses(field: &str, old: &[IpNet], new: &[IpNet], found: &mut Weakenings) {
    found.add_if(!within(new, old), field, "takes requests from addresses that it did not before");
}

/// Whether `outer` contains every address of `inner`; an empty list contains all.
pub(super) fn within(inner: &[IpNet], outer: &[IpNet]) -> bool {
    let covered = |net: &IpNet| outer.iter().any(|wide| wide.contains(net));
    outer.is_empty() || (!inner.is_empty() && inner.iter().all(covered))
}

/// Whether some address may be in both; an empty list is every address.
pub(super) fn addresses_overlap(some: &[IpNet], others: &[IpNet]) -> bool {
    let meets = |one: &IpNet| others.iter().any(|other| one.contains(other) || other.contains(one));
    some.is_empty() || others.is_empty() || some.iter().any(meets)
}

fn hosts(old: &[HostPattern], new: &[HostPattern], found: &mut Weakenings) {
    let every = [HostPattern::Any];
    let all = |hosts: &[HostPattern]| if hosts.is_empty() { every.to_vec() } else { hosts.to_vec() };
    let (old, new) = (all(old), all(new));
    let gone = old.iter().any(|before| !new.iter().any(|now| covers_host(now, before)));
    found.add_if(gone, "hosts", ELSEWHERE);
}

/// Whether `now` matches every host that `before` matches; a wildcard of a host covers any number
/// of labels.
pub(super) fn covers_host(now: &HostPattern, before: &HostPattern) -> bool {
    match before {
        HostPattern::Any => *now == HostPattern::Any,
        HostPattern::Exact(name) | HostPattern::Suffix(name) => match now {
            HostPattern::Exact(_) => now == before,
            wider => wider.matches(name),
        },
    }
}

/// The conditions that must all hold. A predicate of another form is one condition.
pub(super) fn conditions(vars: &Vars) -> HashSet<String> {
    match vars.source().as_array() {
        Some(items) if items.iter().all(Value::is_array) => items.iter().map(ToString::to_string).collect(),
        _ => HashSet::from([vars.source().to_string()]),
    }
}
