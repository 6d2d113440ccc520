//! Request -> route, as APISIX's `radixtree_host_uri` router finds it (contract 7.1).
//!
//! Host patterns first: the exact host, then wildcards by longest suffix at any depth, then `*`,
//! then the routes without hosts; each with its whole tree of paths before the next. Within a tree:
//! exact path, then longest prefix; within a path: priority, longer pattern, order of keys. A
//! candidate that does not take the method or the address, or whose `vars` do not hold, passes the
//! request on to the next.

use std::net::IpAddr;
use std::sync::Arc;

use crate::host_index::{Bucket, HostIndex};
use crate::host_name::HostName;
use crate::path_tree::{Candidate, PathTree};
use crate::pattern::HostPattern;
use crate::resource::Route;
use crate::variable::Variables;

/// What decides about the route of a request. Host and path are normalised by the caller, once.
#[derive(Debug, Clone, Copy)]
pub struct RouteQuery<'a> {
    /// The request's host; `None` when it has none (HTTP/1.0).
    pub host: Option<&'a HostName>,
    /// Decoded path without query, dot segments resolved, slashes merged.
    pub path: &'a str,
    /// As on the request line.
    pub method: &'a str,
    /// The client's address.
    pub remote: IpAddr,
    /// What the routes' `vars` are asked about; only routes that have some ask.
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
        // An IPv4 client of a dual-stack socket is an IPv4 client.
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

    /// `hosts` are those it was inserted with.
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
