//! What is weaker after a change of several resources: compares the state before with the state
//! after it.
//!
//! Each changed resource is compared with its predecessor, both with the settings that they have by
//! reference, and then the entries of both states (`entries`): which other site or route decides
//! about requests that a protected one decided. Invariant: if `admission::admit`,
//! `destination::find` or an allow-list denies a client before the change, and the client is
//! allowed or its request matches nothing after it, there is a weakening. An allow-list trusts the
//! names that the client policy of the site verified; whose names these are is not compared.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use super::entries::{EntryLoss, IndexEntry, LOSSES_MAX, compare};
use super::route_entries::route_entries;
use super::routing::{self, OPENS, has_allow_list};
use super::site_entries::site_entries;
use super::stream_entries::{self, StreamEntry, stream_entries};
use super::{RULE_GONE, Weakening, Weakenings, ssl, upstream};
use crate::destination::resolve_upstream;
use crate::id::{Id, Key, Kind};
use crate::resource::{GlobalRule, Resource, Route, Service, StreamRoute, Upstream, UpstreamRef, references};
use crate::snapshot::{Delta, Snapshot, Versioned};

/// The weakenings of a change.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChangeWeakenings {
    /// Each with the resource of the delta that causes it.
    pub found: Vec<(Key, Weakening)>,
    /// Resources outside the delta that protect what its resources did before: without one of them
    /// there may be further weakenings.
    pub relied_on: BTreeSet<Key>,
}

/// Finds the weakenings of a change. The states need only have what can matter: for a changed ssl
/// those that share a name with it, for other kinds all routes and stream routes, and what these
/// and the changed resources refer to.
pub fn weakenings_of_change(before: &Snapshot, delta: &Delta) -> ChangeWeakenings {
    let after = &before.apply(delta);
    let upserts = delta.upserts.iter().map(|versioned| versioned.resource.key());
    let changed: Vec<Key> = upserts.chain(delta.removals.iter().cloned()).collect();
    let change = Change { before, after, keys: changed.iter().collect() };
    let mut all = ChangeWeakenings::default();
    for key in &changed {
        let mut weakenings = Weakenings::default();
        change.compare(key, &mut weakenings);
        all.relied_on.extend(change.new_hops(key));
        all.found.extend(weakenings.0.into_iter().map(|weakening| (key.clone(), weakening)));
    }
    let changes = |kinds: &[Kind]| changed.iter().any(|key| kinds.contains(&key.kind));
    if changes(&[Kind::Ssl]) {
        change.compare_sites(&mut all);
    }
    if changes(&[Kind::Service, Kind::PluginConfig, Kind::Route]) {
        change.compare_routes(&mut all);
    }
    if changes(&[Kind::Service, Kind::StreamRoute]) {
        change.compare_stream_routes(&mut all);
    }
    if changes(&[Kind::GlobalRule]) {
        let denying = after.blocking_global_rule().map(|id| Key::new(Kind::GlobalRule, id.clone()));
        all.relied_on.extend(denying);
    }
    all.relied_on.retain(|key| !change.keys.contains(key));
    all
}

impl ChangeWeakenings {
    /// Adds the keepers that are other resources than what they protect.
    fn rely_on(&mut self, kind: Kind, keepers: &BTreeSet<(&Id, &Id)>) {
        let others = keepers.iter().filter(|(protected, keeper)| protected != keeper);
        self.relied_on.extend(others.map(|(_, keeper)| Key::new(kind, (*keeper).clone())));
    }
}

struct Change<'a> {
    before: &'a Snapshot,
    after: &'a Snapshot,
    keys: HashSet<&'a Key>,
}

impl Change<'_> {
    /// Compares a resource with its predecessor. Names, hosts and paths are compared as entries.
    fn compare(&self, key: &Key, found: &mut Weakenings) {
        let [old, new] = [self.before, self.after].map(|state| state.get(key).map(|found| &found.resource));
        match (old, new) {
            (Some(Resource::Ssl(old)), Some(Resource::Ssl(new))) => ssl::settings(old, new, found),
            (Some(Resource::Upstream(old)), Some(Resource::Upstream(new))) => upstream("", old, new, found),
            (Some(Resource::Service(old)), Some(Resource::Service(new))) => self.services(old, new, found),
            (Some(Resource::PluginConfig(old)), Some(Resource::PluginConfig(new))) => {
                routing::plugin_configs(old, new, found);
            }
            (Some(Resource::Route(old)), Some(Resource::Route(new))) => self.routes(old, new, found),
            (Some(Resource::StreamRoute(old)), Some(Resource::StreamRoute(new))) => {
                self.stream_routes(old, new, found);
            }
            (Some(Resource::GlobalRule(old)), new) => {
                let stays = new.is_some_and(|new| new.blocked().is_some());
                self.global_rule(old, stays, found);
            }
            (Some(old), None) => self.removal(key, old, found),
            _ => {}
        }
    }

    fn services(&self, old: &Service, new: &Service, found: &mut Weakenings) {
        if new.blocked.is_some() {
            return;
        }
        let [was, is] = [(self.before, old), (self.after, new)]
            .map(|(state, service)| resolve_upstream(state, service.upstream.as_ref(), None).ok());
        upstreams(was, is, found);
        routing::raw_paths(old.proxy_rewrite.as_deref(), new.proxy_rewrite.as_deref(), found);
        let (was, is) = (old.client_identity.as_deref(), new.client_identity.as_deref());
        routing::allow_lists(was, is, found);
        let opens = old.blocked.is_some() && !has_allow_list(was) && !has_allow_list(is);
        found.add_if(opens, "client_identity", OPENS);
    }

    fn routes(&self, old: &Route, new: &Route, found: &mut Weakenings) {
        if self.after.is_blocked(new) {
            return;
        }
        let [was, is] = [(self.before, old), (self.after, new)].map(|(state, route)| {
            resolve_upstream(state, route.upstream.as_ref(), route.service.as_ref()).ok()
        });
        upstreams(was, is, found);
        routing::raw_paths(self.before.proxy_rewrite(old), self.after.proxy_rewrite(new), found);
        routing::requests(old, new, found);
        let (was, is) = (self.before.client_identity(old), self.after.client_identity(new));
        routing::allow_lists(was, is, found);
        let opens = self.before.is_blocked(old) && !has_allow_list(was) && !has_allow_list(is);
        found.add_if(opens, "client_identity", OPENS);
    }

    fn stream_routes(&self, old: &StreamRoute, new: &StreamRoute, found: &mut Weakenings) {
        if stream_entries::is_blocked(self.after, new) {
            return;
        }
        let [was, is] = [(self.before, old), (self.after, new)].map(|(state, route)| {
            resolve_upstream(state, route.upstream.as_ref(), route.service.as_ref()).ok()
        });
        upstreams(was, is, found);
        routing::connections(old, new, found);
        let opens = stream_entries::is_blocked(self.before, old);
        found.add_if(opens, "sni", "connections are served that were closed, because it was unsupported");
    }

    fn global_rule(&self, old: &GlobalRule, stays: bool, found: &mut Weakenings) {
        let opens = old.blocked.is_some() && !stays && self.after.blocking_global_rule().is_none();
        found.add_if(opens, "plugins", RULE_GONE);
    }

    /// A resource that others still refer to (`force`): the next one with its id may protect less.
    fn removal(&self, key: &Key, old: &Resource, found: &mut Weakenings) {
        let field = match old {
            Resource::Upstream(old) if old.scheme.is_encrypted() => "scheme",
            Resource::Service(old) if routing::service_restricts_clients(old) => "client_identity",
            Resource::Service(_) if encrypted_hop(self.before, key).is_some() => "upstream",
            Resource::PluginConfig(old) if old.blocked.is_some() => "plugins",
            _ => return,
        };
        let refers = |other: &Versioned| references(&other.resource).iter().any(|found| found.key == *key);
        found.add_if(self.after.resources().any(refers), field, STILL_USED);
    }

    fn compare_sites(&self, all: &mut ChangeWeakenings) {
        let (before, after) = (site_entries(self.before), site_entries(self.after));
        let written = self.written(Kind::Ssl);
        let compared = compare(&before, &after, &written, &written);
        all.rely_on(Kind::Ssl, &compared.keepers);
        for loss in &compared.losses {
            let Some(cause) = self.cause(Kind::Ssl, loss) else { continue };
            let name = loss.protected.name;
            let what = match loss.taker {
                Some(taker) => format!(
                    "clients of \"{name}\" may get to \"{}\" of ssl {}, which requires less of them",
                    taker.name,
                    taker.id()
                ),
                None => format!("\"{name}\" is given up: no other ssl requires as much of its clients"),
            };
            all.found.push((cause, Weakening::new("snis", what)));
        }
        self.note_end(compared.is_complete, all);
    }

    fn compare_routes(&self, all: &mut ChangeWeakenings) {
        let (before, after) = (route_entries(self.before), route_entries(self.after));
        let routes = [self.before, self.after].into_iter().flat_map(Snapshot::routes);
        let touched = routes.map(|route| &route.id).filter(|id| self.touches(Kind::Route, id)).collect();
        let compared = compare(&before, &after, &touched, &self.written(Kind::Route));
        all.rely_on(Kind::Route, &compared.keepers);
        all.relied_on.extend(self.new_sources(Kind::Route, &compared.keepers));
        for loss in &compared.losses {
            let Some(cause) = self.cause(Kind::Route, loss) else { continue };
            let (place, owner) = (loss.protected.place(), loss.protected.id());
            let what = match loss.taker {
                Some(taker) => format!(
                    "requests for {place}, which route {owner} restricts to some clients, may go to \
                     route {}, which allows others",
                    taker.id()
                ),
                None => format!("requests for {place} lose the restriction of route {owner} to some clients"),
            };
            all.found.push((cause, Weakening::new("uris", what)));
        }
        self.note_end(compared.is_complete, all);
    }

    fn compare_stream_routes(&self, all: &mut ChangeWeakenings) {
        let (before, after) = (stream_entries(self.before), stream_entries(self.after));
        let ids = before.iter().chain(&after).map(StreamEntry::id);
        let touched = ids.filter(|id| self.touches(Kind::StreamRoute, id)).collect();
        let compared = compare(&before, &after, &touched, &self.written(Kind::StreamRoute));
        all.rely_on(Kind::StreamRoute, &compared.keepers);
        all.relied_on.extend(self.new_sources(Kind::StreamRoute, &compared.keepers));
        for loss in &compared.losses {
            let Some(cause) = self.cause(Kind::StreamRoute, loss) else { continue };
            let owner = loss.protected.id();
            let what = format!(
                "connections that were closed, because stream route {owner} is blocked, may match another"
            );
            all.found.push((cause, Weakening::new("sni", what)));
        }
        self.note_end(compared.is_complete, all);
    }

    /// The services and plugin configs by which keepers protect, and by which what they keep was
    /// not protected before.
    fn new_sources(&self, kind: Kind, keepers: &BTreeSet<(&Id, &Id)>) -> BTreeSet<Key> {
        let sources = |state, id: &Id| protection_sources(state, &Key::new(kind, id.clone()));
        let new = |(protected, keeper): &(&Id, &Id)| {
            let known = sources(self.before, protected);
            sources(self.after, keeper)
                .into_iter()
                .filter(move |key| !known.contains(key))
                .collect::<Vec<_>>()
        };
        keepers.iter().flat_map(new).collect()
    }

    /// The service and upstream by which a changed resource reaches an encrypted upstream, if it
    /// reached one before in another way.
    fn new_hops(&self, key: &Key) -> Vec<Key> {
        let [was, is] = [self.before, self.after].map(|state| encrypted_hop(state, key));
        let Some((was, is)) = was.zip(is) else { return Vec::new() };
        is.into_iter().filter(|key| !was.contains(key)).collect()
    }

    /// The changed resources of a kind.
    fn written(&self, kind: Kind) -> HashSet<&Id> {
        self.keys.iter().filter(|key| key.kind == kind).map(|key| &key.id).collect()
    }

    /// Whether the route or stream route, or what it refers to, changes.
    fn touches(&self, kind: Kind, id: &Id) -> bool {
        let key = Key::new(kind, id.clone());
        self.keys.contains(&key) || self.changed_reference(&key).is_some()
    }

    /// A service or plugin config of the resource that changes.
    fn changed_reference(&self, key: &Key) -> Option<Key> {
        let states = [self.after, self.before].into_iter().filter_map(|state| state.get(key));
        let mut references = states.flat_map(|found| references(&found.resource));
        let protects = |kind| [Kind::Service, Kind::PluginConfig].contains(&kind);
        references
            .find(|reference| protects(reference.key.kind) && self.keys.contains(&reference.key))
            .map(|reference| reference.key)
    }

    /// Says that a comparison ended before it was complete. That is a weakening by itself: nothing
    /// shows that the rest is none, also where no changed resource causes what was found.
    fn note_end(&self, is_complete: bool, all: &mut ChangeWeakenings) {
        if is_complete {
            return;
        }
        let last = all.found.last().map(|(key, last)| (key.clone(), last.field.clone()));
        let any = || self.keys.iter().min_by_key(|key| &key.id).map(|key| ((**key).clone(), String::new()));
        if let Some((key, field)) = last.or_else(any) {
            let more = format!("the comparison ended with {LOSSES_MAX} of these: there may be more");
            all.found.push((key, Weakening::new(field, more)));
        }
    }

    /// The changed resource that causes a loss: the taker, or else the protected one, or else what
    /// one of them refers to.
    fn cause<C: IndexEntry>(&self, kind: Kind, loss: &EntryLoss<'_, C>) -> Option<Key> {
        let entries = || loss.taker.into_iter().chain([loss.protected]);
        let keys = || entries().map(|entry| Key::new(kind, entry.id().clone()));
        let own = keys().find(|key| self.keys.contains(key));
        own.or_else(|| keys().find_map(|key| self.changed_reference(&key)))
    }
}

/// The services and plugin configs that make a route or stream route deny clients.
fn protection_sources(state: &Snapshot, key: &Key) -> Vec<Key> {
    let Some(stored) = state.get(key) else { return Vec::new() };
    let (service, config, has_own) = match &stored.resource {
        Resource::Route(route) => (&route.service, &route.plugin_config, route.client_identity.is_some()),
        Resource::StreamRoute(route) => (&route.service, &None, true),
        _ => return Vec::new(),
    };
    let protects = |service: &&Arc<Service>| {
        service.blocked.is_some() || (!has_own && has_allow_list(service.client_identity.as_deref()))
    };
    let service = service.as_ref().and_then(|id| state.service(id)).filter(protects);
    let config = config.as_ref().map(|id| Key::new(Kind::PluginConfig, id.clone()));
    let is_blocked = |key: &Key| state.get(key).is_some_and(|stored| stored.resource.blocked().is_some());
    let service = service.map(|service| Key::new(Kind::Service, service.id.clone()));
    service.into_iter().chain(config.filter(is_blocked)).collect()
}

/// The service and upstream to which a resource refers on its way to an encrypted upstream; `None`:
/// it reaches none.
fn encrypted_hop(state: &Snapshot, key: &Key) -> Option<Vec<Key>> {
    let (own, service) = match &state.get(key)?.resource {
        Resource::Route(route) => (route.upstream.as_ref(), route.service.as_ref()),
        Resource::StreamRoute(route) => (route.upstream.as_ref(), route.service.as_ref()),
        Resource::Service(service) => (service.upstream.as_ref(), None),
        _ => return None,
    };
    resolve_upstream(state, own, service).ok().filter(|upstream| upstream.scheme.is_encrypted())?;
    let by_service = service.filter(|_| own.is_none());
    let reference = own.or_else(|| state.service(by_service?)?.upstream.as_ref());
    let upstream = match reference {
        Some(UpstreamRef::Id(id)) => Some(Key::new(Kind::Upstream, id.clone())),
        _ => None,
    };
    let service = by_service.map(|id| Key::new(Kind::Service, id.clone()));
    Some(service.into_iter().chain(upstream).collect())
}

const STILL_USED: &str = "other objects still refer to it, and the next one with this id may protect less";

/// Compares upstreams as they are reached, whether by reference or inline. Without one requests
/// fail, and then the next write could add any.
fn upstreams(old: Option<&Upstream>, new: Option<&Upstream>, found: &mut Weakenings) {
    match (old, new) {
        (Some(old), Some(new)) => upstream("upstream.", old, new, found),
        (Some(old), None) => found.add_if(old.scheme.is_encrypted(), "upstream", HOP_GONE),
        (None, _) => {}
    }
}

const HOP_GONE: &str = "requests reach no upstream any more, and the next one may be reached in clear";

#[cfg(test)]
mod tests;
