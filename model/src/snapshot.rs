//! All resources at one revision, with the lookups of the hot path: [`Snapshot::site`],
//! [`Snapshot::find_route`] and [`Snapshot::find_stream_route`].
//!
//! Immutable and structurally shared: [`Snapshot::apply`] copies what a delta touches and shares
//! the rest, so the cost of a change is the size of the change. The indexes are a function of the
//! resources alone: whichever way a snapshot came about, equal resources answer equally. Lookups
//! allocate nothing.

use std::sync::Arc;

use imbl::{OrdMap, OrdSet};

use crate::client_identity::ClientIdentity;
use crate::delta::{Delta, Versioned};
use crate::host_name::HostName;
use crate::id::{Id, Key, Kind};
use crate::pattern::HostPattern;
use crate::raw_path::ConflictCache;
use crate::resource::{Resource, Route, Service, Ssl, StreamRoute, Upstream};
use crate::route_index::{RouteIndex, RouteQuery};
use crate::sni_index::{SiteLookup, SniIndex};
use crate::stream_index::{StreamIndex, StreamQuery};

/// All resources at one revision. A clone is cheap and shares everything.
#[derive(Clone)]
pub struct Snapshot {
    revision: u64,
    /// How many times the revision went down on the way here.
    rollback_epoch: u64,
    ssls: OrdMap<Id, Versioned>,
    upstreams: OrdMap<Id, Versioned>,
    services: OrdMap<Id, Versioned>,
    routes: OrdMap<Id, Versioned>,
    stream_routes: OrdMap<Id, Versioned>,
    global_rules: OrdMap<Id, Versioned>,
    /// Those of them that are blocked.
    blocked_global_rules: OrdSet<Id>,
    sni_index: SniIndex,
    /// How many times an ssl was put or taken on the way here.
    site_generation: u64,
    route_index: RouteIndex,
    stream_index: StreamIndex,
    /// Of this revision; no other's count.
    raw_path_conflicts: ConflictCache,
    /// Service -> the routes that name it, whether it exists or not: its hosts are theirs.
    routes_by_service: OrdMap<Id, OrdSet<Id>>,
}

impl Snapshot {
    /// No resource, revision 0.
    pub fn empty() -> Snapshot {
        Snapshot {
            revision: 0,
            rollback_epoch: 0,
            ssls: OrdMap::new(),
            upstreams: OrdMap::new(),
            services: OrdMap::new(),
            routes: OrdMap::new(),
            stream_routes: OrdMap::new(),
            global_rules: OrdMap::new(),
            blocked_global_rules: OrdSet::new(),
            sni_index: SniIndex::new(),
            site_generation: 0,
            route_index: RouteIndex::new(),
            stream_index: StreamIndex::new(),
            raw_path_conflicts: ConflictCache::default(),
            routes_by_service: OrdMap::new(),
        }
    }

    /// These resources at that revision. Of several under one key the last counts.
    pub fn from_resources(revision: u64, resources: impl IntoIterator<Item = Versioned>) -> Snapshot {
        let mut made = Snapshot { revision, ..Snapshot::empty() };
        resources.into_iter().for_each(|resource| made.insert(resource));
        made
    }

    /// The store's revision this is the state of; 0 for none.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Grows whenever the store was set back, along a line of applied deltas: only revisions under
    /// equal numbers are older or newer than one another.
    pub fn rollback_epoch(&self) -> u64 {
        self.rollback_epoch
    }

    /// The site that answers to a name: SNI -> site and Host -> site are this one function. Only
    /// enabled ssls of `type: server`; exact name, then longest wildcard (one label), then `*`.
    pub fn site(&self, name: &HostName) -> Option<&Arc<Ssl>> {
        self.lookup_site(name).ssl()
    }

    /// As [`Snapshot::site`], with how it was found or why not.
    pub fn lookup_site(&self, name: &HostName) -> SiteLookup<'_> {
        self.sni_index.find(name)
    }

    /// Grows whenever [`Snapshot::site`] may answer otherwise than before, along a line of applied
    /// deltas: equal numbers on one line mean equal answers, so that nobody has to look through
    /// his connections for a change of a route.
    pub fn site_generation(&self) -> u64 {
        self.site_generation
    }

    /// The route that takes a request.
    pub fn find_route(&self, query: &RouteQuery<'_>) -> Option<&Arc<Route>> {
        self.route_index.find(query)
    }

    /// The stream route that takes a TCP connection.
    pub fn find_stream_route(&self, query: &StreamQuery<'_>) -> Option<&Arc<StreamRoute>> {
        self.stream_index.find(query)
    }

    /// The global rule because of which no request is served: the blocked one with the lowest id.
    pub fn blocking_global_rule(&self) -> Option<&Id> {
        self.blocked_global_rules.get_min()
    }

    /// The ssl with this id, enabled or not, of either type.
    pub fn ssl(&self, id: &Id) -> Option<&Arc<Ssl>> {
        match self.ssls.get(id).map(|held| &held.resource) {
            Some(Resource::Ssl(ssl)) => Some(ssl),
            _ => None,
        }
    }

    /// The upstream with this id.
    pub fn upstream(&self, id: &Id) -> Option<&Arc<Upstream>> {
        match self.upstreams.get(id).map(|held| &held.resource) {
            Some(Resource::Upstream(upstream)) => Some(upstream),
            _ => None,
        }
    }

    /// The service with this id.
    pub fn service(&self, id: &Id) -> Option<&Arc<Service>> {
        match self.services.get(id).map(|held| &held.resource) {
            Some(Resource::Service(service)) => Some(service),
            _ => None,
        }
    }

    /// The route with this id, enabled or not.
    pub fn route(&self, id: &Id) -> Option<&Arc<Route>> {
        match self.routes.get(id).map(|held| &held.resource) {
            Some(Resource::Route(route)) => Some(route),
            _ => None,
        }
    }

    /// The hosts a route is found under: its own, else its service's; none: every host.
    pub fn hosts<'a>(&'a self, route: &'a Route) -> &'a [HostPattern] {
        effective_hosts(route, &self.services)
    }

    /// The `client_identity` block that holds for a route: its own, else its service's.
    pub fn client_identity<'a>(&'a self, route: &'a Route) -> Option<&'a ClientIdentity> {
        let service = route.service.as_ref().and_then(|id| self.service(id));
        route
            .client_identity
            .as_deref()
            .or_else(|| service.and_then(|service| service.client_identity.as_deref()))
    }

    /// Whether a route answers nobody: it is blocked, or its service is.
    pub fn is_blocked(&self, route: &Route) -> bool {
        let service = route.service.as_ref().and_then(|id| self.service(id));
        route.blocked.is_some() || service.is_some_and(|service| service.blocked.is_some())
    }

    /// Every route, enabled or not.
    pub(crate) fn routes(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.routes.values().filter_map(|held| match &held.resource {
            Resource::Route(route) => Some(route),
            _ => None,
        })
    }

    pub(crate) fn raw_path_conflicts(&self) -> &ConflictCache {
        &self.raw_path_conflicts
    }

    /// The resource under a key.
    pub fn get(&self, key: &Key) -> Option<&Versioned> {
        self.resources_of(key.kind).get(&key.id)
    }

    /// The version of the resource under a key; no revision of the store's
    /// ([`Versioned::revision`]).
    pub fn version(&self, key: &Key) -> Option<u64> {
        self.get(key).map(|held| held.version)
    }

    /// Every key with its resource's version, in the order of keys.
    pub fn versions(&self) -> impl Iterator<Item = (Key, u64)> {
        self.resources().map(|held| (held.resource.key(), held.version))
    }

    /// Every resource, in the order of keys.
    pub fn resources(&self) -> impl Iterator<Item = &Versioned> {
        Kind::ALL.into_iter().flat_map(|kind| self.resources_of(kind).values())
    }

    /// How many resources of a kind there are.
    pub fn len(&self, kind: Kind) -> usize {
        self.resources_of(kind).len()
    }

    /// Whether there is no resource at all.
    pub fn is_empty(&self) -> bool {
        Kind::ALL.into_iter().all(|kind| self.resources_of(kind).is_empty())
    }

    /// The state after a delta. The caller has made sure that the delta starts from here
    /// (`delta.from == self.revision()`); the cost is the size of the delta.
    #[must_use]
    pub fn apply(&self, delta: &Delta) -> Snapshot {
        let mut next =
            Snapshot { revision: delta.to, raw_path_conflicts: ConflictCache::default(), ..self.clone() };
        next.rollback_epoch += u64::from(delta.to < self.revision);
        delta.removals.iter().for_each(|key| next.remove(key));
        delta.upserts.iter().for_each(|resource| next.insert(resource.clone()));
        next
    }

    pub(crate) fn resources_of(&self, kind: Kind) -> &OrdMap<Id, Versioned> {
        match kind {
            Kind::Ssl => &self.ssls,
            Kind::Upstream => &self.upstreams,
            Kind::Service => &self.services,
            Kind::Route => &self.routes,
            Kind::StreamRoute => &self.stream_routes,
            Kind::GlobalRule => &self.global_rules,
        }
    }

    fn resources_of_mut(&mut self, kind: Kind) -> &mut OrdMap<Id, Versioned> {
        match kind {
            Kind::Ssl => &mut self.ssls,
            Kind::Upstream => &mut self.upstreams,
            Kind::Service => &mut self.services,
            Kind::Route => &mut self.routes,
            Kind::StreamRoute => &mut self.stream_routes,
            Kind::GlobalRule => &mut self.global_rules,
        }
    }

    fn insert(&mut self, versioned: Versioned) {
        let resource = versioned.resource.clone();
        let old = self.resources_of_mut(resource.kind()).insert(resource.id().clone(), versioned);
        self.reindex(old.as_ref().map(|old| &old.resource), Some(&resource));
    }

    fn remove(&mut self, key: &Key) {
        let old = self.resources_of_mut(key.kind).remove(&key.id);
        self.reindex(old.as_ref().map(|old| &old.resource), None);
    }

    /// Takes an old version out of the indexes and puts the new one in.
    fn reindex(&mut self, old: Option<&Resource>, new: Option<&Resource>) {
        match old {
            Some(Resource::Ssl(ssl)) => self.sni_index.remove(ssl),
            Some(Resource::Route(route)) => self.unindex_route(route),
            Some(Resource::StreamRoute(route)) => self.stream_index.remove(route),
            Some(Resource::GlobalRule(rule)) => drop(self.blocked_global_rules.remove(&rule.id)),
            Some(Resource::Service(_) | Resource::Upstream(_)) | None => {}
        }
        match new {
            Some(Resource::Ssl(ssl)) => self.sni_index.insert(ssl),
            Some(Resource::Route(route)) => self.index_route(route),
            Some(Resource::StreamRoute(route)) => self.stream_index.insert(route),
            Some(Resource::GlobalRule(rule)) if rule.blocked.is_some() => {
                self.blocked_global_rules.insert(rule.id.clone());
            }
            Some(Resource::GlobalRule(_)) => {}
            Some(Resource::Service(_) | Resource::Upstream(_)) | None => {}
        }
        if matches!(old.or(new), Some(Resource::Ssl(_))) {
            self.site_generation += 1;
        }
        if let Some(Resource::Service(service)) = old.or(new) {
            self.reindex_service_routes(&service.id, hosts_of(old), hosts_of(new));
        }
    }

    fn index_route(&mut self, route: &Arc<Route>) {
        if let Some(service) = &route.service {
            self.routes_by_service.entry(service.clone()).or_default().insert(route.id.clone());
        }
        self.route_index.insert(route, effective_hosts(route, &self.services));
    }

    fn unindex_route(&mut self, route: &Route) {
        self.route_index.remove(route, effective_hosts(route, &self.services));
        let Some(service) = &route.service else { return };
        if let Some(followers) = self.routes_by_service.get_mut(service) {
            followers.remove(&route.id);
            if followers.is_empty() {
                self.routes_by_service.remove(service);
            }
        }
    }

    /// A service's hosts changed: its routes without own hosts change their place.
    fn reindex_service_routes(&mut self, service: &Id, from: &[HostPattern], to: &[HostPattern]) {
        if from == to {
            return;
        }
        for id in self.routes_by_service.get(service).into_iter().flatten() {
            if let Some(Versioned { resource: Resource::Route(route), .. }) = self.routes.get(id)
                && route.hosts.is_empty()
            {
                self.route_index.remove(route, from);
                self.route_index.insert(route, to);
            }
        }
    }
}

/// The hosts a route is found under: its own, else its service's. A missing service is ignored here
/// (contract 7.1); that it is missing shows when the request gets there.
fn effective_hosts<'a>(route: &'a Route, services: &'a OrdMap<Id, Versioned>) -> &'a [HostPattern] {
    if !route.hosts.is_empty() {
        return &route.hosts;
    }
    hosts_of(route.service.as_ref().and_then(|id| services.get(id)).map(|held| &held.resource))
}

fn hosts_of(service: Option<&Resource>) -> &[HostPattern] {
    match service {
        Some(Resource::Service(service)) => &service.hosts,
        _ => &[],
    }
}

/// Equal revision and equal resources; the indexes follow from these.
impl PartialEq for Snapshot {
    fn eq(&self, other: &Snapshot) -> bool {
        self.revision == other.revision
            && Kind::ALL.into_iter().all(|kind| self.resources_of(kind) == other.resources_of(kind))
    }
}

impl Default for Snapshot {
    fn default() -> Snapshot {
        Snapshot::empty()
    }
}

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("Snapshot");
        shown.field("revision", &self.revision);
        for kind in Kind::ALL {
            shown.field(kind.plural(), &self.len(kind));
        }
        shown.finish()
    }
}

#[cfg(test)]
mod tests;
