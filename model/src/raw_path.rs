//! Decides where a raw path may be forwarded (`proxy-rewrite.use_real_request_uri_unsafe`) in place
//! of the normalized one.
//!
//! An upstream may parse a raw path differently, so no rule on paths may restrict a resource of
//! that upstream. [`conflicts`] lists such rules for a route: the control plane rejects and lints
//! routes by it, and the data plane ([`check_request`]) rejects requests of such routes whose raw
//! path differs from the normalized one. Decision 29.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use pki::ClientAuth;

use crate::admission::ClientVerification;
use crate::client_identity::ClientIdentity;
use crate::destination::{Destination, resolve_upstream};
use crate::id::{Id, Kind};
use crate::pattern::NamePattern;
use crate::problem::Problem;
use crate::proxy_rewrite::ProxyRewrite;
use crate::reason::Reason;
use crate::resource::{Node, Resource, Route, Upstream};
use crate::snapshot::Snapshot;
use crate::uri::UriPattern;

/// A rule that a raw path might bypass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Conflict {
    /// `client.skip_mtls_uri_regex` of the site, with the ssl if it is known.
    SkipRules(Option<Id>),
    /// Another route, and the member by which it treats some request differently.
    OtherRoute(Id, &'static str),
    /// `vars` of the route itself, which read the path.
    OwnVars,
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Conflict::SkipRules(None) => f.write_str("the skip rules of the site"),
            Conflict::SkipRules(Some(id)) => write!(f, "the skip rules of ssl {id}"),
            Conflict::OtherRoute(id, member) => write!(f, "the {member} of route {id}"),
            Conflict::OwnVars => f.write_str("the route's own vars, which ask about the path"),
        }
    }
}

impl std::error::Error for Conflict {}

/// Caches the first conflict of each raw route for the life of a snapshot: finding it visits all
/// routes, and clients choose how often it is needed.
#[derive(Default)]
struct ConflictCache(Mutex<HashMap<Id, Option<Conflict>>>);

impl ConflictCache {
    fn first_conflict(&self, snapshot: &Snapshot, route: &Route) -> Option<Conflict> {
        let cached = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(conflict) = cached().get(&route.id) {
            return conflict.clone();
        }
        let conflict = conflicts(snapshot, route).next();
        cached().insert(route.id.clone(), conflict.clone());
        conflict
    }
}

/// Whether this request may be forwarded with a raw path that differs from the normalized one.
/// `policy` is that of the connection's own site, whose skip rules may have exempted the client
/// even if the host has no site.
///
/// # Errors
///
/// The rule that the path might bypass.
pub fn check_request(
    snapshot: &Snapshot,
    destination: &Destination<'_>,
    policy: Option<&ClientAuth>,
    client: &ClientVerification,
) -> Result<(), Conflict> {
    if client.identity().is_none() && policy.is_some_and(|policy| !policy.requires_client_cert()) {
        return Err(Conflict::SkipRules(None));
    }
    let Ok(cache) =
        snapshot.cache().get_or_try_init::<_, Infallible>(|| Ok(Arc::new(ConflictCache::default())));
    cache.first_conflict(snapshot, destination.route).map_or(Ok(()), Err)
}

/// Whether the route, or else its plugin config or service, asks for raw paths.
pub(crate) fn is_enabled(snapshot: &Snapshot, route: &Route) -> bool {
    snapshot.proxy_rewrite(route).is_some_and(ProxyRewrite::uses_raw_path)
}

/// Checks a route, plugin config or service that asks for raw paths for the Admin API; the snapshot
/// contains it already.
///
/// # Errors
///
/// A rule that could be bypassed.
pub fn check_resource(snapshot: &Snapshot, resource: &Resource) -> Result<(), Problem> {
    let routes: Vec<&Route> = match resource {
        Resource::Route(route) => vec![route],
        Resource::Service(service) => users(snapshot, |route| route.service.as_ref() == Some(&service.id)),
        Resource::PluginConfig(config) => {
            users(snapshot, |route| route.plugin_config.as_ref() == Some(&config.id))
        }
        _ => Vec::new(),
    };
    let conflict = |route: &&Route| {
        let enabled = is_enabled(snapshot, route);
        enabled.then(|| conflicts(snapshot, route)).and_then(|mut conflicts| conflicts.next())
    };
    match routes.iter().find_map(conflict) {
        Some(conflict) => Err(Problem::new(FIELD, describe(&conflict)).with_hint(HINT)),
        None => Ok(()),
    }
}

fn users(snapshot: &Snapshot, uses: impl Fn(&Route) -> bool) -> Vec<&Route> {
    snapshot.routes().map(|route| &**route).filter(|route| uses(route)).collect()
}

/// The field of a document.
pub(crate) const FIELD: &str = "plugins.proxy-rewrite.use_real_request_uri_unsafe";
/// The hint for every conflict.
pub(crate) const HINT: &str = "leave it out, or use a host and nodes that the other has no part in";

/// Describes a conflict.
pub(crate) fn describe(conflict: &Conflict) -> String {
    format!("a path that is forwarded as the client wrote it could walk round {conflict}")
}

/// All rules that raw paths of this route could bypass: skip rules on its hosts, its own `vars` on
/// the path, and each enabled route with the same host or node that treats some request
/// differently.
pub fn conflicts<'a>(snapshot: &'a Snapshot, route: &'a Route) -> impl Iterator<Item = Conflict> + 'a {
    let hosts = snapshot.hosts(route);
    let sites = snapshot.resources_of(Kind::Ssl).values().filter_map(|versioned| match &versioned.resource {
        Resource::Ssl(ssl) if ssl.enabled && !ssl.client_side => Some(ssl),
        _ => None,
    });
    let skipping = sites.filter(move |ssl| {
        hosts_overlap(hosts, &ssl.names)
            && ssl.client.as_deref().is_some_and(|policy| !policy.requires_client_cert())
    });
    let skipping = skipping.map(|ssl| Conflict::SkipRules(Some(ssl.id.clone())));
    let own = route.vars.uses_path().then_some(Conflict::OwnVars);
    let siblings = snapshot.routes().filter(|sibling| sibling.enabled && sibling.id != route.id);
    let siblings = siblings.filter_map(move |sibling| {
        let member = conflicting_member(snapshot, route, sibling)?;
        Some(Conflict::OtherRoute(sibling.id.clone(), member))
    });
    skipping.chain(own).chain(siblings)
}

/// The member by which `sibling` may treat a request differently from the raw route, if they share
/// hosts or nodes. Precedence (priority, length) does not matter, because a different parse of the
/// path can lead to either.
fn conflicting_member(snapshot: &Snapshot, raw: &Route, sibling: &Route) -> Option<&'static str> {
    let of_host = hosts_overlap(snapshot.hosts(raw), snapshot.hosts(sibling));
    let inside = || {
        let within = |uri: &UriPattern| {
            raw.uris.iter().any(|wide| wide != uri && uri.prefix().starts_with(wide.prefix()))
        };
        of_host && sibling.uris.iter().any(within)
    };
    let guard = restricting_member(snapshot, sibling, raw);
    if guard.is_none() && !inside() {
        return None;
    }
    let raw_to = resolve_upstream(snapshot, raw.upstream.as_ref(), raw.service.as_ref()).ok();
    let sibling_to = resolve_upstream(snapshot, sibling.upstream.as_ref(), sibling.service.as_ref()).ok();
    if guard.is_some() {
        let shared = || raw_to.zip(sibling_to).is_some_and(|(one, other)| may_share_node(one, other));
        return guard.filter(|_| of_host || shared());
    }
    // The raw route has a plugin of its own, which decides about the path before the global rules'.
    let rewrite = snapshot.proxy_rewrite(sibling).or(snapshot.global_rewrite());
    if rewrite.is_some() && rewrite != snapshot.proxy_rewrite(raw) {
        return Some("proxy-rewrite");
    }
    let same = raw_to.is_none_or(|raw| sibling_to.is_some_and(|sibling| reaches_all_nodes(sibling, raw)));
    (!same).then_some("upstream")
}

/// The member by which `route`, apart from its path, denies or skips a request that `other` might
/// match and allow.
pub(crate) fn restricting_member(snapshot: &Snapshot, route: &Route, other: &Route) -> Option<&'static str> {
    let upstream = resolve_upstream(snapshot, route.upstream.as_ref(), route.service.as_ref());
    if snapshot.is_blocked(route) || upstream.is_err_and(|reason| reason == Reason::BlockedUpstream) {
        Some("block")
    } else if snapshot.client_identity(route).is_some_and(ClientIdentity::has_allow_list) {
        Some("client_identity.allow")
    } else if !route.vars.is_empty() {
        Some("vars")
    } else if !route.remote_addrs.is_empty() {
        Some("remote_addrs")
    } else if !route.methods.is_superset(other.methods) {
        Some("methods")
    } else {
        None
    }
}

/// Whether some name matches both lists; an empty list matches every name.
pub(crate) fn hosts_overlap(some: &[NamePattern], others: &[NamePattern]) -> bool {
    some.is_empty()
        || others.is_empty()
        || some.iter().any(|one| others.iter().any(|other| one.overlaps(other)))
}

/// Whether the upstreams may share a server, which need not distinguish hosts.
fn may_share_node(one: &Upstream, other: &Upstream) -> bool {
    let shared = |node: &Node| {
        let port = port_of(one, node);
        other.nodes.iter().any(|its| port_of(other, its) == port && may_be_one_server(&node.host, &its.host))
    };
    one.nodes.iter().any(shared)
}

/// A host name may resolve to any address.
fn may_be_one_server(one: &str, other: &str) -> bool {
    match (address(one), address(other)) {
        // Connections to 0.0.0.0 and :: reach this host, like those to 127.0.0.0/8 and ::1.
        (Some(one), Some(other)) => one == other || (is_local(one) && is_local(other)),
        _ => true,
    }
}

fn is_local(address: IpAddr) -> bool {
    address.is_loopback() || address.is_unspecified()
}

fn address(host: &str) -> Option<IpAddr> {
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    bare.parse::<IpAddr>().ok().map(|address| address.to_canonical())
}

fn port_of(upstream: &Upstream, node: &Node) -> Option<u16> {
    node.port.or(upstream.scheme.default_port())
}

/// Whether this upstream certainly has every node of `raw` and contacts it in the same way.
fn reaches_all_nodes(upstream: &Upstream, raw: &Upstream) -> bool {
    let same = |node: &Node| {
        upstream.nodes.iter().any(|its| {
            its.host.eq_ignore_ascii_case(&node.host) && port_of(upstream, its) == port_of(raw, node)
        })
    };
    let alike = |upstream: &Upstream| (upstream.scheme, upstream.pass_host, upstream.upstream_host.clone());
    alike(upstream) == alike(raw) && raw.nodes.iter().all(same)
}

#[cfg(test)]
mod tests;
