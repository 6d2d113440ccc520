//! Rules that a `%2F` passes by while `match_uri_encoded_slash` is on: `/admin%2Fx` is no path of `/admin/*`, so a broader route takes
//! it, and an upstream that decodes it serves `/admin/x`.

use std::collections::HashMap;
use std::sync::Arc;

use crate::lint::{Finding, Notes, Severity};
use crate::name::Name;
use crate::pattern::HostPattern;
use crate::raw_path::{overlap, refuses_by};
use crate::resource::{Resource, Route, Ssl};
use crate::snapshot::Snapshot;
use crate::uri::UriPattern;

const HINT: &str =
    "switch apisix.match_uri_encoded_slash off, or make sure that the upstream does not read %2F as /";

/// Enabled routes with a wildcard in a uri, by their hosts.
#[derive(Default)]
struct Broader<'a> {
    all: Vec<&'a Arc<Route>>,
    exact: HashMap<&'a Name, Vec<&'a Arc<Route>>>,
    /// Those with other hosts than exact ones.
    wide: Vec<&'a Arc<Route>>,
}

/// Findings about guarded routes beside broader ones, then about sites with skip rules.
pub(super) fn passed_by(snapshot: &Snapshot) -> Vec<Finding> {
    let broader = Broader::of(snapshot);
    let mut found = Vec::new();
    for route in snapshot.routes().filter(|route| route.enabled && route.blocked.is_none()) {
        if let Some((member, other)) = broader.than(snapshot, route) {
            let mut notes = Notes::about(Resource::Route(Arc::clone(route)).key());
            let what = format!("a path with %2F for a / goes to route {}, which has no such rule", other.id);
            notes.add(Severity::Warning, member, what, HINT);
            found.extend(notes.found);
        }
    }
    for held in snapshot.resources() {
        if let Resource::Ssl(ssl) = &held.resource
            && skips(ssl)
            && broader.all.iter().any(|route| overlap(snapshot.hosts(route), &ssl.names))
        {
            let mut notes = Notes::about(held.resource.key());
            let what = "a path with %2F may fit a pattern that the path with / does not fit".to_owned();
            notes.add(Severity::Warning, "client.skip_mtls_uri_regex", what, HINT);
            found.extend(notes.found);
        }
    }
    found
}

fn skips(ssl: &Ssl) -> bool {
    ssl.enabled
        && !ssl.client_side
        && ssl.blocked.is_none()
        && ssl.client.as_deref().is_some_and(|policy| !policy.requires_client_cert())
}

impl<'a> Broader<'a> {
    fn of(snapshot: &'a Snapshot) -> Broader<'a> {
        let mut made = Broader::default();
        let serves = |route: &&Arc<Route>| route.enabled && !snapshot.is_blocked(route);
        for route in
            snapshot.routes().filter(serves).filter(|route| !route.uris.iter().all(UriPattern::is_exact))
        {
            let hosts = snapshot.hosts(route);
            names(hosts).for_each(|name| made.exact.entry(name).or_default().push(route));
            if !all_exact(hosts) {
                made.wide.push(route);
            }
            made.all.push(route);
        }
        made
    }

    /// A route of the same hosts that takes such paths and does not refuse everybody whom this one refuses; with the member that does.
    fn than(&self, snapshot: &Snapshot, route: &Route) -> Option<(&'static str, &'a Route)> {
        let hosts = snapshot.hosts(route);
        let differs = |other: &'a Arc<Route>| {
            if other.id == route.id || !takes_encoded(other, route) || !overlap(hosts, snapshot.hosts(other))
            {
                return None;
            }
            let member = refuses_by(snapshot, route, other)?;
            let alike = route.vars == other.vars
                && route.remote_addrs == other.remote_addrs
                && snapshot.client_identity(route) == snapshot.client_identity(other)
                && route.methods.contain(other.methods);
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

fn names(hosts: &[HostPattern]) -> impl Iterator<Item = &Name> {
    hosts.iter().filter_map(|host| match host {
        HostPattern::Exact(name) => Some(name),
        _ => None,
    })
}

fn all_exact(hosts: &[HostPattern]) -> bool {
    !hosts.is_empty() && names(hosts).count() == hosts.len()
}

/// Whether a path of `route` with `%2F` for one of its slashes may fit `broader`, which begins before that slash.
fn takes_encoded(broader: &Route, route: &Route) -> bool {
    broader.uris.iter().filter(|uri| !uri.is_exact()).any(|wide| {
        let rest = |uri: &UriPattern| uri.as_str().strip_prefix(wide.prefix()).map(|rest| rest.contains('/'));
        route.uris.iter().any(|uri| uri != wide && rest(uri) == Some(true))
    })
}
