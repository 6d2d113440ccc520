//! TCP connection -> stream route, as APISIX's stream router finds it (contract 7.4).
//!
//! The name that was asked for in TLS first: the exact name, then wildcards by longest suffix at
//! any depth, then `*`, then the routes without a name. Within each, in the order of keys, the
//! first whose addresses and port fit; where none fits, the next. A connection without a name (not
//! TLS, as a rule) meets the routes without a name only.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use imbl::OrdMap;

use crate::host_index::{Bucket, HostIndex};
use crate::host_name::HostName;
use crate::id::Id;
use crate::resource::StreamRoute;

/// What decides about the route of a TCP connection.
#[derive(Debug, Clone, Copy)]
pub struct StreamQuery<'a> {
    /// The name the site was chosen by; `None` on a listener without TLS.
    pub sni: Option<&'a HostName>,
    /// The client's address.
    pub remote: IpAddr,
    /// The address and port that it reached.
    pub server: SocketAddr,
}

/// The routes of one name: a persistent map, because all routes of a listener may be nameless.
type StreamRoutes = OrdMap<Id, Arc<StreamRoute>>;

impl Bucket for StreamRoutes {
    fn is_empty(&self) -> bool {
        OrdMap::is_empty(self)
    }
}

#[derive(Clone)]
pub(crate) struct StreamIndex {
    names: HostIndex<StreamRoutes>,
    nameless: StreamRoutes,
}

impl StreamIndex {
    pub(crate) fn new() -> StreamIndex {
        StreamIndex { names: HostIndex::new(), nameless: StreamRoutes::default() }
    }

    pub(crate) fn find(&self, query: &StreamQuery<'_>) -> Option<&Arc<StreamRoute>> {
        // An IPv4 client of a dual-stack socket is an IPv4 client.
        let (remote, server) = (query.remote.to_canonical(), query.server.ip().to_canonical());
        let named = query.sni.into_iter().flat_map(|sni| {
            let wild = self.names.suffixes(sni).map(|(_, candidates)| candidates);
            self.names.exact(sni).into_iter().chain(wild).chain([self.names.any()])
        });
        named
            .chain([&self.nameless])
            .flat_map(OrdMap::values)
            .find(|route| accepts(route, remote, server, query.server.port()))
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.names.is_empty() && self.nameless.is_empty()
    }

    pub(crate) fn insert(&mut self, route: &Arc<StreamRoute>) {
        self.update(route, |candidates| {
            candidates.insert(route.id.clone(), Arc::clone(route));
        });
    }

    pub(crate) fn remove(&mut self, route: &StreamRoute) {
        self.update(route, |candidates| {
            candidates.remove(&route.id);
        });
    }

    fn update(&mut self, route: &StreamRoute, change: impl FnOnce(&mut StreamRoutes)) {
        match &route.sni {
            Some(sni) => self.names.update(sni, change),
            None => change(&mut self.nameless),
        }
    }
}

fn accepts(route: &StreamRoute, remote: IpAddr, server: IpAddr, port: u16) -> bool {
    route.remote_addr.is_none_or(|network| network.contains(&remote))
        && route.server_addr.is_none_or(|network| network.contains(&server))
        && route.server_port.is_none_or(|wanted| wanted == port)
}
