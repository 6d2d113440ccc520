//! Finds the stream route of a TCP connection like APISIX's stream router (contract 7.4).
//!
//! The SNI comes first: its exact name, then wildcards by longest suffix at any depth, then `*`,
//! then routes without a name. Each group is searched in the order of keys for a route whose
//! addresses and port match. A connection without SNI (usually without TLS) matches routes without
//! a name only.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use imbl::OrdMap;

use crate::host_index::{Bucket, HostIndex};
use crate::host_name::HostName;
use crate::id::Id;
use crate::resource::StreamRoute;

/// The inputs of stream route matching.
#[derive(Debug, Clone, Copy)]
pub struct StreamQuery<'a> {
    /// The SNI; `None` on a listener without TLS.
    pub sni: Option<&'a HostName>,
    /// The client's address.
    pub remote: IpAddr,
    /// The local address and port of the connection.
    pub server: SocketAddr,
}

/// The routes of one name. A persistent map, because a listener may have many routes without a
/// name.
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
        // A dual-stack socket reports an IPv4 client by its mapped address.
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

    fn update(&mut self, route: &StreamRoute, change: impl Fn(&mut StreamRoutes)) {
        if route.snis.is_empty() {
            change(&mut self.nameless);
        }
        for sni in &route.snis {
            self.names.update(sni, &change);
        }
    }
}

fn accepts(route: &StreamRoute, remote: IpAddr, server: IpAddr, port: u16) -> bool {
    route.remote_addr.is_none_or(|network| network.contains(&remote))
        && route.server_addr.is_none_or(|network| network.contains(&server))
        && route.server_port.is_none_or(|wanted| wanted == port)
}
