//! The hosts and paths of routes as entries, in the order of `route_index` and `path_tree`.

use std::borrow::Cow;
use std::cmp::{Ordering, Reverse};

use super::entries::IndexEntry;
use super::routing::{addresses_overlap, conditions, covers_host, within};
use crate::client_identity::ClientIdentity;
use crate::host_index::search_rank;
use crate::id::Id;
use crate::path_tree::Candidate;
use crate::pattern::HostPattern;
use crate::resource::Route;
use crate::snapshot::Snapshot;

/// A host and path of an enabled route, with what its service and plugin config add.
pub(super) struct RouteEntry<'a> {
    /// `None`: every host, behind all routes with one.
    host: Option<&'a HostPattern>,
    candidate: Candidate,
    allow: Option<&'a ClientIdentity>,
    is_blocked: bool,
}

pub(super) fn route_entries(snapshot: &Snapshot) -> Vec<RouteEntry<'_>> {
    let mut entries = Vec::new();
    for route in snapshot.routes().filter(|route| route.enabled) {
        let hosts = snapshot.hosts(route);
        let hosts = hosts.iter().map(Some).chain(hosts.is_empty().then_some(None));
        let allow = snapshot.client_identity(route).filter(|block| block.has_allow_list());
        let is_blocked = snapshot.is_blocked(route);
        for host in hosts {
            entries.extend(route.uris.iter().map(|uri| {
                let candidate = Candidate { route: route.clone(), uri: uri.clone() };
                RouteEntry { host, candidate, allow, is_blocked }
            }));
        }
    }
    entries
}

impl RouteEntry<'_> {
    fn route(&self) -> &Route {
        &self.candidate.route
    }

    fn host_rank(&self) -> (u8, Reverse<usize>) {
        self.host.map_or((u8::MAX, Reverse(0)), search_rank)
    }

    /// Host and path as in the documents.
    pub(super) fn place(&self) -> String {
        let uri = self.candidate.uri.as_str();
        self.host.map_or_else(|| uri.to_owned(), |host| format!("{host}{uri}"))
    }
}

impl IndexEntry for RouteEntry<'_> {
    fn id(&self) -> &Id {
        &self.route().id
    }

    fn stems(&self) -> [Cow<'_, [u8]>; 2] {
        let host = self.host.map(HostPattern::stem).unwrap_or_default();
        [host.into(), self.candidate.uri.prefix().as_bytes().into()]
    }

    fn search_order(&self, other: &Self) -> Ordering {
        let by_path = || self.candidate.search_rank().cmp(&other.candidate.search_rank());
        self.host_rank().cmp(&other.host_rank()).then_with(by_path)
    }

    fn overlaps(&self, other: &Self) -> bool {
        let (route, its) = (self.route(), other.route());
        self.host.zip(other.host).is_none_or(|(host, its)| host.overlaps(its))
            && self.candidate.uri.overlaps(&other.candidate.uri)
            && route.methods.overlaps(its.methods)
            && addresses_overlap(&route.remote_addrs, &its.remote_addrs)
            && !route.vars.excludes(&its.vars)
    }

    fn covers(&self, other: &Self) -> bool {
        let (route, its) = (self.route(), other.route());
        let covers_hosts = match (self.host, other.host) {
            (None, _) => true,
            // A request of HTTP/1.0 may have no host.
            (Some(_), None) => false,
            (Some(host), Some(its)) => covers_host(host, its),
        };
        covers_hosts
            && self.candidate.uri.covers(&other.candidate.uri)
            && route.methods.is_superset(its.methods)
            && within(&its.remote_addrs, &route.remote_addrs)
            && (route.vars.is_empty() || conditions(&route.vars).is_subset(&conditions(&its.vars)))
    }

    fn protects(&self) -> bool {
        self.is_blocked || self.allow.is_some()
    }

    fn weakens(&self, protected: &Self) -> bool {
        if self.id() == protected.id() || self.is_blocked {
            return false;
        }
        match (self.allow, protected.allow) {
            (None, _) => true,
            // What the blocked route would allow is unknown.
            (Some(_), None) => false,
            (Some(list), Some(before)) => !list.is_covered_by(before),
        }
    }
}
