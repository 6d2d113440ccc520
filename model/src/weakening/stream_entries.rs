//! Stream routes as entries, in the order of `stream_index`.

use std::borrow::Cow;
use std::cmp::{Ordering, Reverse};

use super::entries::IndexEntry;
use super::routing::{addresses_overlap, covers_host, within};
use crate::host_index::search_rank;
use crate::id::{Id, Kind};
use crate::pattern::SniPattern;
use crate::resource::{Resource, StreamRoute};
use crate::snapshot::Snapshot;

/// A name of a stream route, which denies connections only if it or its service is blocked.
pub(super) struct StreamEntry<'a> {
    /// `None`: every name, and connections without one, behind all routes with a name.
    sni: Option<&'a SniPattern>,
    route: &'a StreamRoute,
    is_blocked: bool,
}

pub(super) fn stream_entries(snapshot: &Snapshot) -> Vec<StreamEntry<'_>> {
    let mut entries = Vec::new();
    for versioned in snapshot.resources_of(Kind::StreamRoute).values() {
        let Resource::StreamRoute(route) = &versioned.resource else { continue };
        let is_blocked = is_blocked(snapshot, route);
        let names = route.snis.iter().map(Some).chain(route.snis.is_empty().then_some(None));
        entries.extend(names.map(|sni| StreamEntry { sni, route, is_blocked }));
    }
    entries
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
        let rank = |entry: &Self| entry.sni.map_or((u8::MAX, Reverse(0)), search_rank);
        rank(self).cmp(&rank(other)).then_with(|| self.id().cmp(other.id()))
    }

    fn overlaps(&self, other: &Self) -> bool {
        let (route, its) = (self.route, other.route);
        self.sni.zip(other.sni).is_none_or(|(sni, its)| sni.overlaps(its))
            && addresses_overlap(route.remote_addr.as_slice(), its.remote_addr.as_slice())
            && addresses_overlap(route.server_addr.as_slice(), its.server_addr.as_slice())
            && route.server_port.zip(its.server_port).is_none_or(|(port, its)| port == its)
    }

    fn covers(&self, other: &Self) -> bool {
        let (route, its) = (self.route, other.route);
        let covers_names = match (self.sni, other.sni) {
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
