//! Stream routes as entries, in the order of `stream_index`.

use std::borrow::Cow;
use std::cmp::{Ordering, Reverse};

use super::entries::IndexEntry;
use super::routing::{addresses_overlap, covers_host, within};
use crate::host_index::search_rank;
use crate::id::{Id, Kind};
use crate::resource::{Resource, StreamRoute};
use crate::snapshot::Snapshot;

/// A stream route, which denies connections only if it or its service is blocked.
pub(super) struct StreamEntry<'a> {
    route: &'a StreamRoute,
    is_blocked: bool,
}

pub(super) fn stream_entries(snapshot: &Snapshot) -> Vec<StreamEntry<'_>> {
    let routes = snapshot.resources_of(Kind::StreamRoute).values();
    let entry = |route| StreamEntry { route, is_blocked: is_blocked(snapshot, route) };
    routes
        .filter_map(|versioned| match &versioned.resource {
            Resource::StreamRoute(route) => Some(entry(route)),
            _ => None,
        })
        .collect()
}

/// Whether the stream route or its service is blocked.
pub(super) fn is_blocked(snapshot: &Snapshot, route: &StreamRoute) -> bool {
    let service = || snapshot.service(route.service.as_ref()?)?.blocked.as_ref();
    route.blocked.as_ref().or_else(service).is_some()
}

impl IndexEntry for StreamEntry<'_> {
    fn id(&self) -> &Id {
        &self.route.id
    }

    fn stems(&self) -> [Cow<'_, [u8]>; 2] {
        [self.sni.map(SniPattern::stem).unwrap_or_default().into(), Cow::default()]
    }

    fn search_order(&self, other: &Self) -> Ordering {
        let rank = |entry: &Self| entry.route.sni.as_ref().map_or((u8::MAX, Reverse(0)), search_rank);
        rank(self).cmp(&rank(other)).then_with(|| self.id().cmp(other.id()))
    }

    fn overlaps(&self, other: &Self) -> bool {
        let (route, its) = (self.route, other.route);
        route.sni.as_ref().zip(its.sni.as_ref()).is_none_or(|(sni, its)| sni.overlaps(its))
            && addresses_overlap(route.remote_addr.as_slice(), its.remote_addr.as_slice())
            && addresses_overlap(route.server_addr.as_slice(), its.server_addr.as_slice())
            && route.server_port.zip(its.server_port).is_none_or(|(port, its)| port == its)
    }

    fn covers(&self, other: &Self) -> bool {
        let (route, its) = (self.route, other.route);
        let covers_names = match (&route.sni, &its.sni) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(sni), Some(its)) => covers_host(sni, its),
        };
        covers_names
            && within(its.remote_addr.as_slice(), route.remote_addr.as_slice())
            && within(its.server_addr.as_slice(), route.server_addr.as_slice())
            && route.server_port.is_none_or(|port| its.server_port == Some(port))
    }

    fn protects(&self) -> bool {
        self.is_blocked
    }

    fn weakens(&self, protected: &Self) -> bool {
        self.id() != protected.id() && !self.is_blocked
    }
}
