//! Rules that `%2F` bypasses under `match_uri_encoded_slash`: `/admin%2Fx` does not match
//! `/admin/*`, so a broader route takes it, and an upstream that decodes it serves `/admin/x`.

use std::collections::HashMap;
use std::sync::Arc;

use crate::host_name::HostName;
use crate::lint::{Finding, Findings, Severity};
use crate::pattern::HostPattern;
use crate::raw_path::{hosts_overlap, restricting_member};
use crate::resource::{Resource, Route, Ssl};
use crate::snapshot::Snapshot;
use crate::uri::UriPattern;

const HINT: &str =
    "switch apisix.match_uri_encoded_slash off, or make sure that the upstream does not read %2F as /";

/// Enabled routes with a wildcard uri, by host.
#[derive(Default)]
struct BroaderRoutes<'a> {
    all: Vec<&'a Arc<Route>>,
    exact: HashMap<&'a HostName, Vec<&'a Arc<Route>>>,
    /// Routes that also have hosts other than exact ones.
    wide: Vec<&'a Arc<Route>>,
}

/// Findings about restricted routes with broader ones beside them, then about sites with skip
/// rules.
pub(super) fn lint_encoded_slash(snapshot: &Snapshot) -> Vec<Finding> {
    let broader = BroaderRoutes::of(snapshot);
    let mut found = Vec::new();
    for route in snapshot.routes().filter(|route| route.enabled && route.blocked.is_none()) {
        if let Some((member, other)) = broader.find_for(snapshot, route) {
            let mut notes = Findings::for_resource(Resource::Route(Arc::clone(route)).key());
            let what = format!("a path with %2F for a / goes to route {}, which has no such rule", other.id);
            notes.add(Severity::Warning, member, what, HINT);
            found.extend(notes.findings);
        }
    }
    for versioned in snapshot.resources() {
        if let Resource::Ssl(ssl) = &versioned.resource
            && has_skip_rules(ssl)
            && broader.all.iter().any(|route| hosts_overlap(snapshot.hosts(route), &ssl.names))
        {
            let mut notes = Findings::for_resource(versioned.resource.key());
            let what = "a path with %2F may fit a pattern that the path with / does not fit".to_owned();
            notes.add(Severity::Warning, "client.skip_mtls_uri_regex", what, HINT);
            found.extend(notes.findings);
        }
    }
    found
}

fn has_skip_rules(ssl: &Ssl) -> bool {
    ssl.enabled
        && !ssl.client_side
        && ssl.blocked.is_none()
        && ssl.client.as_deref().is_some_and(|policy| !policy.requires_client_cert())
}

impl<'a> BroaderRoutes<'a> {
    fn of(snapshot: &'a Snapshot) -> BroaderRoutes<'a> {
        let mut routes = BroaderRoutes::default();
        let serves = |route: &&Arc<Route>| route.enabled && !snapshot.is_blocked(route);
        for route in
            snapshot.routes().filter(serves).filter(|route| !route.uris.iter().all(UriPattern::is_exact))
        {
            let hosts = snapshot.hosts(route);
            names(hosts).for_each(|name| routes.exact.entry(name).or_default().push(route));
            if !all_exact(hosts) {
                routes.wide.push(route);
            }
            routes.all.push(route);
        }
        routes
    }

    /// A route of the same hosts that takes such paths and lacks a restriction of this one, with
    /// the member of the restriction.
    fn find_for(&self, snapshot: &Snapshot, route: &Route) -> Option<(&'static str, &'a Route)> {
        let hosts = snapshot.hosts(route);
        let differs = |other: &'a Arc<Route>| {
            if other.id == route.id
                || !matches_encoded(other, route)
                || !hosts_overlap(hosts, snapshot.hosts(other))
            {
                return None;
            }
            let member = restricting_member(snapshot, route, other)?;
            let alike = route.vars == other.vars
                && route.remote_addrs == other.remote_addrs
                && snapshot.client_identity(route) == snapshot.client_identity(other)
                && route.methods.is_superset(other.methods);
            (!alike).then_some((member, &**other))
        };
        if all_exact(hosts) {
            let named = names(hosts).filter_map(|name| self.exact.get(name)).flatten();
            named.chain(&self.wide).copied().find_map(differs)
        } else {
            self.all.iter().copied().find_map(differs)
        }
    }
}

fn names(hosts: &[HostPattern]) -> impl Iterator<Item = &HostName> {
    hosts.iter().filter_map(|host| match host {
        HostPattern::Exact(name) => Some(name),
        _ => None,
    })
}

fn all_exact(hosts: &[HostPattern]) -> bool {
    !hosts.is_empty() && names(hosts).count() == hosts.len()
}

/// Whether a path of `route` with `%2F` for one of its slashes may match `broader`, whose prefix
/// ends before that slash.
fn matches_encoded(broader: &Route, route: &Route) -> bool {
    broader.uris.iter().filter(|uri| !uri.is_exact()).any(|wide| {
        let rest = |uri: &UriPattern| uri.as_str().strip_prefix(wide.prefix()).map(|rest| rest.contains('/'));
        route.uris.iter().any(|uri| uri != wide && rest(uri) == Some(true))
    })
}
