//! All resources at one revision, with the lookups of the hot path: [`Snapshot::site`],
//! [`Snapshot::find_route`] and [`Snapshot::find_stream_route`].
//!
//! Snapshots are immutable and share structure: [`Snapshot::apply`] copies only what a delta
//! touches, so a change costs its size. Invariant: the indexes are a function of the resources
//! alone, whatever deltas led to them. Lookups do not allocate.

mod delta;

use std::sync::Arc;

pub use delta::{Delta, Versioned};
use imbl::{OrdMap, OrdSet};

use crate::client_identity::ClientIdentity;
use crate::host_name::HostName;
use crate::id::{Id, Key, Kind};
use crate::pattern::HostPattern;
use crate::proxy_rewrite::ProxyRewrite;
use crate::resource::{
    CacheSlot, GlobalRule, PluginConfig, Resource, Route, Service, Ssl, StreamRoute, Upstream,
};
use crate::route_index::{RouteIndex, RouteQuery};
use crate::sni_index::{SiteLookup, SniIndex};
use crate::stream_index::{StreamIndex, StreamQuery};

/// All resources at one revision. A clone is cheap and shares everything.
#[derive(Clone)]
pub struct Snapshot {
    revision: u64,
    /// Counts the decreases of the revision.
    rollback_epoch: u64,
    ssls: OrdMap<Id, Versioned>,
    upstreams: OrdMap<Id, Versioned>,
    services: OrdMap<Id, Versioned>,
    plugin_configs: OrdMap<Id, Versioned>,
    routes: OrdMap<Id, Versioned>,
    stream_routes: OrdMap<Id, Versioned>,
    global_rules: OrdMap<Id, Versioned>,
    /// Ids of the blocked global rules.
    blocked_global_rules: OrdSet<Id>,
    /// Ids of the global rules with a `proxy-rewrite`.
    rewriting_global_rules: OrdSet<Id>,
    sni_index: SniIndex,
    /// Counts the changes of ssls.
    site_generation: u64,
    route_index: RouteIndex,
    stream_index: StreamIndex,
    /// Valid for this revision only.
    cache: CacheSlot,
    /// The routes that refer to a service, whether it exists or not: they may use its hosts.
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
            plugin_configs: OrdMap::new(),
            routes: OrdMap::new(),
            stream_routes: OrdMap::new(),
            global_rules: OrdMap::new(),
            blocked_global_rules: OrdSet::new(),
            rewriting_global_rules: OrdSet::new(),
            sni_index: SniIndex::new(),
            site_generation: 0,
            route_index: RouteIndex::new(),
            stream_index: StreamIndex::new(),
            cache: CacheSlot::new(),
            routes_by_service: OrdMap::new(),
        }
    }

    /// Builds a snapshot. The last of several resources with the same key counts.
    pub fn from_resources(revision: u64, resources: impl IntoIterator<Item = Versioned>) -> Snapshot {
        let mut snapshot = Snapshot { revision, ..Snapshot::empty() };
        resources.into_iter().for_each(|resource| snapshot.insert(resource));
        snapshot
    }

    /// The store's revision; 0 is none.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Grows along a line of deltas whenever the store was restored from a backup: revisions are
    /// comparable only within one epoch.
    pub fn rollback_epoch(&self) -> u64 {
        self.rollback_epoch
    }

    /// The site of an SNI or Host: the exact name, then the longest wildcard (one label), then `*`,
    /// among enabled ssls of `type: server`.
    pub fn site(&self, name: &HostName) -> Option<&Arc<Ssl>> {
        self.lookup_site(name).ssl()
    }

    /// As [`Snapshot::site`], with the pattern that matched.
    pub fn lookup_site(&self, name: &HostName) -> SiteLookup<'_> {
        self.sni_index.find(name)
    }

    /// Whether a site has a client policy, or is blocked.
    pub(crate) fn has_protected_site(&self) -> bool {
        self.sni_index.has_protected()
    }

    /// Grows along a line of deltas whenever [`Snapshot::site`] may return another result, so that
    /// a change of a route does not revalidate connections.
    pub fn site_generation(&self) -> u64 {
        self.site_generation
    }

    /// The route of a request.
    pub fn find_route(&self, query: &RouteQuery<'_>) -> Option<&Arc<Route>> {
        self.route_index.find(query)
    }

    /// The stream route of a TCP connection.
    pub fn find_stream_route(&self, query: &StreamQuery<'_>) -> Option<&Arc<StreamRoute>> {
        self.stream_index.find(query)
    }

    /// The blocked global rule with the lowest id, which denies every request.
    pub fn blocking_global_rule(&self) -> Option<&Id> {
        self.blocked_global_rules.get_min()
    }

    /// The `proxy-rewrite` of the global rules. As in APISIX, none runs if several have one.
    pub fn global_rewrite(&self) -> Option<&ProxyRewrite> {
        let only = self.rewriting_global_rules.get_min().filter(|_| self.rewriting_global_rules.len() == 1);
        match &self.global_rules.get(only?)?.resource {
            Resource::GlobalRule(rule) => rule.proxy_rewrite.as_deref(),
            _ => None,
        }
    }

    /// The global rules with a `proxy-rewrite`, by id.
    pub(crate) fn rewriting_global_rules(&self) -> &OrdSet<Id> {
        &self.rewriting_global_rules
    }

    /// The ssl with this id, enabled or not, of either type.
    pub fn ssl(&self, id: &Id) -> Option<&Arc<Ssl>> {
        match self.ssls.get(id).map(|versioned| &versioned.resource) {
            Some(Resource::Ssl(ssl)) => Some(ssl),
            _ => None,
        }
    }

    /// The upstream with this id.
    pub fn upstream(&self, id: &Id) -> Option<&Arc<Upstream>> {
        match self.upstreams.get(id).map(|versioned| &versioned.resource) {
            Some(Resource::Upstream(upstream)) => Some(upstream),
            _ => None,
        }
    }

    /// The service with this id.
    pub fn service(&self, id: &Id) -> Option<&Arc<Service>> {
        match self.services.get(id).map(|versioned| &versioned.resource) {
            Some(Resource::Service(service)) => Some(service),
            _ => None,
        }
    }

    /// The plugin config with this id.
    pub fn plugin_config(&self, id: &Id) -> Option<&Arc<PluginConfig>> {
        match self.plugin_configs.get(id).map(|versioned| &versioned.resource) {
            Some(Resource::PluginConfig(config)) => Some(config),
            _ => None,
        }
    }

    /// The route with this id, enabled or not.
    pub fn route(&self, id: &Id) -> Option<&Arc<Route>> {
        match self.routes.get(id).map(|versioned| &versioned.resource) {
            Some(Resource::Route(route)) => Some(route),
            _ => None,
        }
    }

    /// The effective hosts of a route: its own, or else its service's; empty is every host.
    pub fn hosts<'a>(&'a self, route: &'a Route) -> &'a [HostPattern] {
        effective_hosts(route, &self.services)
    }

    /// The effective `client_identity` block of a route: its own, or else its service's.
    pub fn client_identity<'a>(&'a self, route: &'a Route) -> Option<&'a ClientIdentity> {
        let service = route.service.as_ref().and_then(|id| self.service(id));
        route
            .client_identity
            .as_deref()
            .or_else(|| service.and_then(|service| service.client_identity.as_deref()))
    }

    /// The effective `proxy-rewrite` of a route: its own, or else its plugin config's, or else its
    /// service's (contract 7.3).
    pub fn proxy_rewrite<'a>(&'a self, route: &'a Route) -> Option<&'a ProxyRewrite> {
        let config = || self.plugin_config(route.plugin_config.as_ref()?)?.proxy_rewrite.as_deref();
        let service = || self.service(route.service.as_ref()?)?.proxy_rewrite.as_deref();
        route.proxy_rewrite.as_deref().or_else(config).or_else(service)
    }

    /// Whether a route forwards WebSocket upgrades: as it says, or else as its service does
    /// (contract 7.3).
    pub fn enable_websocket(&self, route: &Route) -> bool {
        let service = || self.service(route.service.as_ref()?).map(|service| service.enable_websocket);
        route.enable_websocket.or_else(service).unwrap_or(false)
    }

    /// Whether the route, its plugin config or its service is blocked.
    pub(crate) fn is_blocked(&self, route: &Route) -> bool {
        let config = || self.plugin_config(route.plugin_config.as_ref()?)?.blocked.as_ref();
        let service = || self.service(route.service.as_ref()?)?.blocked.as_ref();
        route.blocked.as_ref().or_else(config).or_else(service).is_some()
    }

    /// Every route, enabled or not.
    pub(crate) fn routes(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.routes.values().filter_map(|versioned| match &versioned.resource {
            Resource::Route(route) => Some(route),
            _ => None,
        })
    }

    /// A value that is derived from this snapshot.
    pub(crate) fn cache(&self) -> &CacheSlot {
        &self.cache
    }

    /// The resource with this key.
    pub fn get(&self, key: &Key) -> Option<&Versioned> {
        self.resources_of(key.kind).get(&key.id)
    }

    /// The version of the resource with this key ([`Versioned::version`]).
    pub fn version(&self, key: &Key) -> Option<u64> {
        self.get(key).map(|versioned| versioned.version)
    }

    /// The keys and versions of all resources, in the order of keys.
    pub fn versions(&self) -> impl Iterator<Item = (Key, u64)> {
        self.resources().map(|versioned| (versioned.resource.key(), versioned.version))
    }

    /// Every resource, in the order of keys.
    pub fn resources(&self) -> impl Iterator<Item = &Versioned> {
        Kind::ALL.into_iter().flat_map(|kind| self.resources_of(kind).values())
    }

    /// The resources of a kind, in the order of their ids.
    pub fn resources_of_kind(&self, kind: Kind) -> impl Iterator<Item = &Resource> {
        self.resources_of(kind).values().map(|versioned| &versioned.resource)
    }

    /// The number of resources of a kind.
    pub fn len(&self, kind: Kind) -> usize {
        self.resources_of(kind).len()
    }

    /// Whether there is no resource.
    pub fn is_empty(&self) -> bool {
        Kind::ALL.into_iter().all(|kind| self.resources_of(kind).is_empty())
    }

    /// Applies a delta that starts from this revision (`delta.from == self.revision()`, which the
    /// caller checks). The cost is the size of the delta.
    #[must_use]
    pub fn apply(&self, delta: &Delta) -> Snapshot {
        let mut next = Snapshot { revision: delta.to, cache: CacheSlot::new(), ..self.clone() };
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
            Kind::PluginConfig => &self.plugin_configs,
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
            Kind::PluginConfig => &mut self.plugin_configs,
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

    /// Replaces a resource in the indexes.
    fn reindex(&mut self, old: Option<&Resource>, new: Option<&Resource>) {
        match old {
            Some(Resource::Ssl(ssl)) => self.sni_index.remove(ssl),
            Some(Resource::Route(route)) => self.unindex_route(route),
            Some(Resource::StreamRoute(route)) => self.stream_index.remove(route),
            Some(Resource::GlobalRule(rule)) => {
                self.blocked_global_rules.remove(&rule.id);
                self.rewriting_global_rules.remove(&rule.id);
            }
            Some(Resource::Service(_) | Resource::Upstream(_) | Resource::PluginConfig(_)) | None => {}
        }
        match new {
            Some(Resource::Ssl(ssl)) => self.sni_index.insert(ssl),
            Some(Resource::Route(route)) => self.index_route(route),
            Some(Resource::StreamRoute(route)) => self.stream_index.insert(route),
            Some(Resource::GlobalRule(rule)) => self.index_global_rule(rule),
            Some(Resource::Service(_) | Resource::Upstream(_) | Resource::PluginConfig(_)) | None => {}
        }
        if matches!(old.or(new), Some(Resource::Ssl(_))) {
            self.site_generation += 1;
        }
        if let Some(Resource::Service(service)) = old.or(new) {
            self.reindex_service_routes(&service.id, hosts_of(old), hosts_of(new));
        }
    }

    fn index_global_rule(&mut self, rule: &GlobalRule) {
        if rule.blocked.is_some() {
            self.blocked_global_rules.insert(rule.id.clone());
        }
        if rule.proxy_rewrite.is_some() {
            self.rewriting_global_rules.insert(rule.id.clone());
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

    /// Moves the routes that use the hosts of a service whose hosts changed.
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

/// The hosts of the route, or else of its service. A missing service is ignored here (contract 7.1)
/// and reported when a request reaches it.
fn effective_hosts<'a>(route: &'a Route, services: &'a OrdMap<Id, Versioned>) -> &'a [HostPattern] {
    if !route.hosts.is_empty() {
        return &route.hosts;
    }
    hosts_of(route.service.as_ref().and_then(|id| services.get(id)).map(|versioned| &versioned.resource))
}

fn hosts_of(service: Option<&Resource>) -> &[HostPattern] {
    match service {
        Some(Resource::Service(service)) => &service.hosts,
        _ => &[],
    }
}

/// Indexes follow from the resources and are not compared.
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
        let mut debug = f.debug_struct("Snapshot");
        debug.field("revision", &self.revision);
        for kind in Kind::ALL {
            debug.field(kind.plural(), &self.len(kind));
        }
        debug.finish()
    }
}

#[cfg(test)]
mod tests;
