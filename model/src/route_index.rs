//! Finds the route of a request like APISIX's `radixtree_host_uri` router (contract 7.1).
//!
//! Host patterns come first: the exact host, then wildcards by longest suffix at any depth, then
//! `*`, then routes without hosts; each searches its whole path tree. Within a tree, the exact path
//! comes before the longest prefix; within a path, order is by priority, longer uri, key. A
//! candidate that does not match the method, the address or its `vars` passes the request on to the
//! next.

use std::net::IpAddr;
use std::sync::Arc;

use crate::host_index::{Bucket, HostIndex};
use crate::host_name::HostName;
use crate::path_tree::{Candidate, PathTree};
use crate::pattern::HostPattern;
use crate::resource::Route;
use crate::variable::Variables;

/// The inputs of route matching. The caller normalizes host and path, once.
#[derive(Debug, Clone, Copy)]
pub struct RouteQuery<'a> {
    /// The host; `None` if an HTTP/1.0 request has none.
    pub host: Option<&'a HostName>,
    /// The normalized path without the query.
    pub path: &'a str,
    /// As on the request line.
    pub method: &'a str,
    /// The client's address.
    pub remote: IpAddr,
    /// Evaluated only by routes with `vars`.
    pub variables: &'a dyn Variables,
}

impl Bucket for PathTree {
    fn is_empty(&self) -> bool {
        PathTree::is_empty(self)
    }
}

#[derive(Clone)]
pub(crate) struct RouteIndex {
    hosts: HostIndex<PathTree>,
    hostless: PathTree,
}

impl RouteIndex {
    pub(crate) fn new() -> RouteIndex {
        RouteIndex { hosts: HostIndex::new(), hostless: PathTree::default() }
    }

    pub(crate) fn find(&self, query: &RouteQuery<'_>) -> Option<&Arc<Route>> {
        // A dual-stack socket reports an IPv4 client by its mapped address.
        let remote = query.remote.to_canonical();
        let trees = query.host.into_iter().flat_map(|host| {
            let wild = self.hosts.suffixes(host).map(|(_, paths)| paths);
            self.hosts.exact(host).into_iter().chain(wild)
        });
        let last = query.host.map(|_| self.hosts.any()).into_iter().chain([&self.hostless]);
        trees
            .chain(last)
            .find_map(|paths| paths.find(query.path, |candidate| accepts(candidate, query, remote)))
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.hosts.is_empty() && self.hostless.is_empty()
    }

    /// `hosts` are the route's own, or its service's.
    pub(crate) fn insert(&mut self, route: &Arc<Route>, hosts: &[HostPattern]) {
        self.update(route, hosts, |paths| paths.insert(route));
    }

    /// `hosts` are those of the insertion.
    pub(crate) fn remove(&mut self, route: &Route, hosts: &[HostPattern]) {
        self.update(route, hosts, |paths| paths.remove(route));
    }

    fn update(&mut self, route: &Route, hosts: &[HostPattern], change: impl Fn(&mut PathTree)) {
        if !route.enabled {
            return;
        }
        if hosts.is_empty() {
            change(&mut self.hostless);
        }
        for host in hosts {
            self.hosts.update(host, &change);
        }
    }
}

fn accepts(candidate: &Candidate, query: &RouteQuery<'_>, remote: IpAddr) -> bool {
    let route = &candidate.route;
    candidate.uri.matches(query.path)
        && route.methods.allows(query.method)
        && (route.remote_addrs.is_empty()
            || route.remote_addrs.iter().any(|network| network.contains(&remote)))
        && route.vars.matches(query.variables)
}
