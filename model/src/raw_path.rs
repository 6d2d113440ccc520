//! Where a path may be forwarded as the client wrote it (`proxy-rewrite.use_real_request_uri_unsafe`), and not as it was judged.
//!
//! An upstream may read a raw path in its own way, so no rule that judges paths may stand between the client and anything
//! that the upstream has. The data plane asks [`judge`] about each request whose raw path is another one than the judged
//! path, the control plane explains by it, and refuses and lists such routes by [`conflicts`]. Decision 29.

use std::fmt;

use pki::ClientAuth;

use crate::admission::Client;
use crate::destination::{Destination, upstream_of};
use crate::id::Id;
use crate::name::Name;
use crate::pattern::NamePattern;
use crate::problem::Problem;
use crate::proxy_rewrite::ProxyRewrite;
use crate::resource::{Resource, Route, Upstream};
use crate::snapshot::Snapshot;

/// The rule that a raw path might walk round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Conflict {
    /// `client.skip_mtls_uri_regex` of the site; its ssl where it is known.
    SkipRules(Option<Id>),
    /// The allow-list of this route (or of its service), or that this route is blocked.
    Sibling(Id),
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Conflict::SkipRules(None) => f.write_str("the skip rules of the site"),
            Conflict::SkipRules(Some(id)) => write!(f, "the skip rules of ssl {id}"),
            Conflict::Sibling(id) => write!(f, "what route {id} lets through"),
        }
    }
}

impl std::error::Error for Conflict {}

/// Whether this request may be forwarded with a path that is not the judged one. `policy` is the one of the connection's
/// own site.
///
/// # Errors
/// The rule that stands in the way.
pub fn judge(
    snapshot: &Snapshot,
    found: &Destination<'_>,
    host: Option<&Name>,
    policy: Option<&ClientAuth>,
    client: &Client,
) -> Result<(), Conflict> {
    let identity = client.identity();
    if identity.is_none() && policy.is_some_and(|policy| !policy.insists()) {
        return Err(Conflict::SkipRules(None));
    }
    let of_host = |hosts: &[NamePattern]| match host {
        Some(host) => hosts.is_empty() || hosts.iter().any(|pattern| pattern.matches(host)),
        None => hosts.is_empty() || hosts.contains(&NamePattern::Any),
    };
    let refuses = |route: &Route| {
        let block = snapshot.client_identity(route);
        snapshot.is_blocked(route) || block.is_some_and(|block| !block.allows(identity))
    };
    let mut siblings = snapshot.guarded().filter(|route| route.id != found.route.id && refuses(route));
    let near = |route: &Route| of_host(snapshot.hosts(route)) || shares_node(snapshot, route, found.upstream);
    match siblings.find(|route| near(route)) {
        Some(route) => Err(Conflict::Sibling(route.id.clone())),
        None => Ok(()),
    }
}

/// Whether a route asks for raw paths, itself or by its service.
pub fn is_enabled(snapshot: &Snapshot, route: &Route) -> bool {
    let service = route.service.as_ref().and_then(|id| snapshot.service(id));
    let of_service = || service.and_then(|service| service.proxy_rewrite.as_deref());
    route.proxy_rewrite.as_deref().or_else(of_service).is_some_and(ProxyRewrite::real_uri)
}

/// The Admin API's verdict on a route or service that asks for raw paths; the snapshot has it already.
///
/// # Errors
/// A rule that could be walked round.
pub fn check(snapshot: &Snapshot, resource: &Resource) -> Result<(), Problem> {
    let routes: Vec<&Route> = match resource {
        Resource::Route(route) => vec![route],
        Resource::Service(service) => {
            let all = snapshot.resources().filter_map(|held| match &held.resource {
                Resource::Route(route) if route.service.as_ref() == Some(&service.id) => Some(&**route),
                _ => None,
            });
            all.collect()
        }
        _ => Vec::new(),
    };
    let conflict = |route: &&Route| {
        let asked = is_enabled(snapshot, route);
        asked.then(|| conflicts(snapshot, route)).and_then(|found| found.into_iter().next())
    };
    match routes.iter().find_map(conflict) {
        Some(conflict) => Err(Problem::new(FIELD, what(&conflict)).with_hint(HINT)),
        None => Ok(()),
    }
}

/// The member of a document.
pub(crate) const FIELD: &str = "plugins.proxy-rewrite.use_real_request_uri_unsafe";
/// What to do.
pub(crate) const HINT: &str = "leave it out, or use a host and nodes that the other has no part in";

/// A conflict in a sentence.
pub(crate) fn what(conflict: &Conflict) -> String {
    format!("a path that is forwarded as the client wrote it could walk round {conflict}")
}

/// What would refuse clients of this route whose paths are not canonical.
pub fn conflicts(snapshot: &Snapshot, route: &Route) -> Vec<Conflict> {
    let hosts = snapshot.hosts(route);
    let near = |names: &[NamePattern]| {
        hosts.is_empty()
            || names.is_empty()
            || hosts.iter().any(|host| names.iter().any(|name| host.overlaps(name)))
    };
    let sites = snapshot.resources().filter_map(|held| match &held.resource {
        Resource::Ssl(ssl) if ssl.enabled && !ssl.client_side && near(&ssl.names) => Some(ssl),
        _ => None,
    });
    let skipping = sites.filter(|ssl| ssl.client.as_deref().is_some_and(|policy| !policy.insists()));
    let upstream = upstream_of(snapshot, route.upstream.as_ref(), route.service.as_ref()).ok();
    let siblings = snapshot.guarded().filter(|sibling| {
        sibling.id != route.id
            && (near(snapshot.hosts(sibling))
                || upstream.is_some_and(|upstream| shares_node(snapshot, sibling, upstream)))
    });
    let skipping = skipping.map(|ssl| Conflict::SkipRules(Some(ssl.id.clone())));
    skipping.chain(siblings.map(|sibling| Conflict::Sibling(sibling.id.clone()))).collect()
}

/// Another host's route may lead to the same server, which need not tell hosts apart.
fn shares_node(snapshot: &Snapshot, route: &Route, upstream: &Upstream) -> bool {
    let other = upstream_of(snapshot, route.upstream.as_ref(), route.service.as_ref());
    other.is_ok_and(|other| {
        let same =
            |host: &str, port| upstream.nodes.iter().any(|node| node.host == host && node.port == port);
        other.nodes.iter().any(|node| same(&node.host, node.port))
    })
}

#[cfg(test)]
mod tests;
