//! Counts the sites, routes and stream routes that a change of the whole configuration takes away.
//!
//! Resources are compared by the traffic they match (names, hosts, paths), never by id: two stores
//! may use one id for different things, and a copy may have other ids. Invariants: a disabled,
//! blocked or dangling resource is not served, before or after; a site whose clients are verified
//! less strictly is lost, and so is a route that matches fewer requests.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;

use ipnet::IpNet;

use crate::client_identity::ClientIdentity;
use crate::id::{Id, Kind};
use crate::pattern::{HostPattern, NamePattern, SniPattern};
use crate::resource::{Resource, Route, Ssl, StreamRoute, Upstream, UpstreamRef};
use crate::snapshot::Snapshot;
use crate::uri::UriPattern;
use crate::weakening;

/// The loss of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Loss {
    /// How many are served now and would not be.
    pub lost: usize,
    /// How many are served now.
    pub total: usize,
}

impl Loss {
    /// More than half are lost.
    pub fn is_majority(self) -> bool {
        self.lost > self.total - self.lost.min(self.total)
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.lost, self.total)
    }
}

/// The losses of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Losses {
    /// Enabled ssls of `type: server`.
    pub sites: Loss,
    /// Enabled routes.
    pub routes: Loss,
    /// Stream routes.
    pub stream_routes: Loss,
}

impl Losses {
    /// More than half of one kind are lost.
    pub fn any_majority(&self) -> bool {
        self.sites.is_majority() || self.routes.is_majority() || self.stream_routes.is_majority()
    }

    /// Whether nothing is lost.
    pub fn is_none(&self) -> bool {
        [self.sites, self.routes, self.stream_routes].iter().all(|loss| loss.lost == 0)
    }
}

impl fmt::Display for Losses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} sites, {} routes", self.sites, self.routes)?;
        if self.stream_routes.total > 0 {
            write!(f, ", {} stream routes", self.stream_routes)
        } else {
            Ok(())
        }
    }
}

impl Snapshot {
    /// Compares this snapshot with `next`. The cost is the size of both, times the methods and
    /// addresses of routes with the same host, path and predicate.
    pub fn losses(&self, next: &Snapshot) -> Losses {
        Losses {
            sites: loss(sites(self), sites(next), |ssl| ssl.names.iter().collect(), site_is_covered_by),
            routes: loss(routes(self), routes(next), |served| served.keys(), ServedRoute::is_covered_by),
            stream_routes: loss(stream_routes(self), stream_routes(next), stream_route_keys, |_, _| true),
        }
    }
}

/// An item is lost if one of its keys leads to no item of `next` that covers it.
fn loss<T: Copy, P: Hash + Eq>(
    now: impl Iterator<Item = T>,
    next: impl Iterator<Item = T>,
    places: impl Fn(T) -> Vec<P>,
    stays: impl Fn(T, T) -> bool,
) -> Loss {
    let mut next_by_key: HashMap<P, Vec<T>> = HashMap::new();
    for item in next {
        places(item).into_iter().for_each(|key| next_by_key.entry(key).or_default().push(item));
    }
    let mut loss = Loss::default();
    for item in now {
        let stays =
            |key| next_by_key.get(&key).is_some_and(|next| next.iter().any(|next| stays(item, *next)));
        loss.total += 1;
        loss.lost += usize::from(!places(item).into_iter().all(stays));
    }
    loss
}

/// A site with a client policy covers one without, not the reverse.
fn site_is_covered_by(now: &Ssl, next: &Ssl) -> bool {
    match (&now.client, &next.client) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(now), Some(next)) => weakening::policy_can_replace(now, next),
    }
}

fn sites(snapshot: &Snapshot) -> impl Iterator<Item = &Ssl> {
    snapshot.resources_of(Kind::Ssl).values().filter_map(|versioned| match &versioned.resource {
        Resource::Ssl(ssl) if !ssl.client_side && ssl.enabled && ssl.blocked.is_none() => Some(&**ssl),
        _ => None,
    })
}

/// A route with the settings of its service.
#[derive(Clone, Copy)]
struct ServedRoute<'a> {
    route: &'a Route,
    hosts: &'a [HostPattern],
    identity: Option<&'a ClientIdentity>,
}

/// Host, path and predicate.
type RouteKey<'a> = (&'a HostPattern, &'a UriPattern, String);

impl<'a> ServedRoute<'a> {
    fn keys(self) -> Vec<RouteKey<'a>> {
        const EVERY: &[HostPattern] = &[NamePattern::Any];
        let hosts = if self.hosts.is_empty() { EVERY } else { self.hosts };
        let vars = self.route.vars.source().to_string();
        let uris = &self.route.uris;
        let of_host = |host| uris.iter().map(move |uri| (host, uri)).collect::<Vec<_>>();
        hosts.iter().flat_map(of_host).map(|(host, uri)| (host, uri, vars.clone())).collect()
    }

    /// Whether `next`, under the same key, matches at least the same requests and allows some of
    /// the listed clients.
    fn is_covered_by(self, next: Self) -> bool {
        next.route.methods.is_superset(self.route.methods)
            && weakening::addresses_within(&self.route.remote_addrs, &next.route.remote_addrs)
            && match (listed(self.identity), listed(next.identity)) {
                (None, _) => true,
                (Some(_), None) => false,
                (Some(now), Some(next)) => now == next || now.shares_clients(next),
            }
    }
}

/// The block, if it has an allow-list.
fn listed(block: Option<&ClientIdentity>) -> Option<&ClientIdentity> {
    block.filter(|block| block.has_allow_list())
}

fn routes(snapshot: &Snapshot) -> impl Iterator<Item = ServedRoute<'_>> {
    // A blocked global rule denies every request.
    let any = snapshot.blocking_global_rule().is_none();
    let served = move |route: &Route| {
        let is_usable = || has_usable_upstream(snapshot, route.upstream.as_ref(), route.service.as_ref());
        any && route.enabled
            && !snapshot.is_blocked(route)
            && has_plugin_config(snapshot, route)
            && is_usable()
    };
    snapshot.routes().filter(move |route| served(route)).map(|route| ServedRoute {
        route,
        hosts: snapshot.hosts(route),
        identity: snapshot.client_identity(route),
    })
}

/// Whether the plugin config that the route names exists.
fn has_plugin_config(snapshot: &Snapshot, route: &Route) -> bool {
    route.plugin_config.as_ref().is_none_or(|id| snapshot.plugin_config(id).is_some())
}

/// Whether the upstream exists, is not blocked, and has a node in rotation.
fn has_usable_upstream(snapshot: &Snapshot, own: Option<&UpstreamRef>, service: Option<&Id>) -> bool {
    let of_service = || snapshot.service(service?)?.upstream.as_ref();
    match own.or_else(of_service) {
        Some(UpstreamRef::Inline(upstream)) => has_usable_node(upstream),
        Some(UpstreamRef::Id(id)) => snapshot.upstream(id).is_some_and(|upstream| has_usable_node(upstream)),
        None => false,
    }
}

/// A single node is used whatever its weight (contract 8).
fn has_usable_node(upstream: &Upstream) -> bool {
    let has_node = || upstream.nodes.len() == 1 || upstream.nodes.iter().any(|node| node.weight > 0);
    upstream.blocked.is_none() && has_node()
}

fn stream_routes(snapshot: &Snapshot) -> impl Iterator<Item = &StreamRoute> {
    snapshot.resources_of(Kind::StreamRoute).values().filter_map(|versioned| match &versioned.resource {
        Resource::StreamRoute(route)
            if route.blocked.is_none()
                && has_usable_upstream(snapshot, route.upstream.as_ref(), route.service.as_ref()) =>
        {
            Some(&**route)
        }
        _ => None,
    })
}

type StreamRouteKey<'a> = (Option<&'a SniPattern>, Option<IpNet>, Option<IpNet>, Option<u16>);

/// One for each name.
fn stream_route_keys(route: &StreamRoute) -> Vec<StreamRouteKey<'_>> {
    let key = |sni| (sni, route.remote_addr, route.server_addr, route.server_port);
    if route.snis.is_empty() {
        return vec![key(None)];
    }
    route.snis.iter().map(|sni| key(Some(sni))).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::samples::{AUTHORITY, id};
    use crate::snapshot::Versioned;

    fn loss(gone: usize, total: usize) -> Loss {
        Loss { lost: gone, total }
    }

    fn resource(kind: Kind, name: &str, document: &serde_json::Value) -> Versioned {
        let resource = crate::compile(kind, &id(name), document, &pki::Keyring::empty()).unwrap();
        Versioned { version: 1, resource }
    }

    fn site(name: &str, sni: &str, status: u8) -> Versioned {
        let pair = AUTHORITY.issue(&pki::ca::LeafSpec::server(sni)).unwrap();
        let document = json!({
            "cert": pair.certificate_pem, "key": &*pair.key_pem, "snis": [sni], "status": status,
        });
        resource(Kind::Ssl, name, &document)
    }

    fn route(name: &str, uri: &str) -> Versioned {
        let document = json!({"uri": uri, "upstream": {"nodes": {"10.0.0.1:80": 1}}});
        resource(Kind::Route, name, &document)
    }

    fn stream_route(name: &str, port: u16) -> Versioned {
        let document = json!({"server_port": port, "upstream": {"nodes": {"10.0.0.1:80": 1}}});
        resource(Kind::StreamRoute, name, &document)
    }

    fn snapshot(resources: Vec<Versioned>) -> Snapshot {
        Snapshot::from_resources(1, resources)
    }

    #[test]
    fn more_than_half_is_a_majority() {
        for (gone, total, most) in [(0, 0, false), (1, 1, true), (1, 2, false), (2, 3, true), (5, 10, false)]
        {
            assert_eq!(loss(gone, total).is_majority(), most, "{gone} of {total}");
        }
    }

    #[test]
    fn losses_compare_matchers_and_not_ids() {
        let now = snapshot(vec![
            site("1", "a.test", 1),
            site("2", "b.test", 1),
            route("1", "/a"),
            route("2", "/b"),
        ]);
        let renamed = snapshot(vec![
            site("x", "a.test", 1),
            site("y", "b.test", 1),
            route("x", "/a"),
            route("y", "/b"),
        ]);
        assert!(now.losses(&renamed).is_none());
        let others = snapshot(vec![
            site("1", "c.test", 1),
            site("2", "d.test", 1),
            route("1", "/c"),
            route("2", "/b"),
        ]);
        let losses = now.losses(&others);
        assert_eq!((losses.sites, losses.routes), (loss(2, 2), loss(1, 2)));
        assert!(losses.any_majority() && losses.to_string() == "2 of 2 sites, 1 of 2 routes", "{losses}");
    }

    #[test]
    fn disabled_and_dangling_resources_are_lost() {
        let by_id =
            |name: &str, uri: &str| resource(Kind::Route, name, &json!({"uri": uri, "upstream_id": "u"}));
        let upstream = resource(Kind::Upstream, "u", &json!({"nodes": {"10.0.0.1:80": 1}}));
        let now = snapshot(vec![site("1", "a.test", 1), by_id("1", "/a"), upstream]);
        let next = snapshot(vec![site("1", "a.test", 0), by_id("1", "/a")]);
        let losses = now.losses(&next);
        assert_eq!((losses.sites, losses.routes), (loss(1, 1), loss(1, 1)));
        assert_eq!(next.losses(&Snapshot::empty()), Losses::default(), "what was not served is no loss");
        let disabled = json!({"uri": "/a", "status": 0, "upstream": {"nodes": {"10.0.0.1:80": 1}}});
        let off = snapshot(vec![resource(Kind::Route, "1", &disabled)]);
        assert_eq!(now.losses(&off).routes, loss(1, 1));
    }

    #[test]
    fn a_site_that_no_longer_verifies_clients_is_lost() {
        let pair = AUTHORITY.issue(&pki::ca::LeafSpec::server("a.test")).unwrap();
        let open = json!({"cert": pair.certificate_pem, "key": &*pair.key_pem, "snis": ["a.test"]});
        let mut verifying = open.clone();
        verifying["client"] = json!({"ca": AUTHORITY.certificate_pem()});
        let [open, verifying] =
            [open, verifying].map(|document| snapshot(vec![resource(Kind::Ssl, "1", &document)]));
        assert_eq!(verifying.losses(&open).sites, loss(1, 1));
        assert!(open.losses(&verifying).is_none() && verifying.losses(&verifying).is_none());
    }

    /// A site that verifies clients by these authorities, with these members of `client`.
    fn verifying(authorities: &[&pki::ca::Authority], members: &serde_json::Value) -> Snapshot {
        let pair = AUTHORITY.issue(&pki::ca::LeafSpec::server("a.test")).unwrap();
        let bundle: String = authorities.iter().map(|authority| authority.certificate_pem()).collect();
        let mut client = members.clone();
        client["ca"] = json!(bundle);
        let document = json!({
            "cert": pair.certificate_pem, "key": &*pair.key_pem, "snis": ["a.test"], "client": client,
        });
        snapshot(vec![resource(Kind::Ssl, "1", &document)])
    }

    #[test]
    fn a_site_that_verifies_other_clients_is_lost() {
        use pki::ca::{Authority, AuthoritySpec};
        let other = Authority::root(&AuthoritySpec::new("another authority")).unwrap();
        let none = json!({});
        let now = verifying(&[&AUTHORITY], &none);
        let gone = |next: &Snapshot| now.losses(next).sites.lost;
        assert_eq!(gone(&verifying(&[&other], &none)), 1, "its clients are refused, another's are let in");
        assert_eq!(gone(&verifying(&[&AUTHORITY, &other], &none)), 0, "a rotation");
        assert_eq!(verifying(&[&AUTHORITY, &other], &none).losses(&now).sites.lost, 0, "and its end");
        assert_eq!(gone(&verifying(&[&AUTHORITY], &json!({"depth": 5}))), 1);
        assert_eq!(gone(&verifying(&[&AUTHORITY], &json!({"skip_mtls_uri_regex": ["/.*"]}))), 1);
        let deep = verifying(&[&AUTHORITY], &json!({"depth": 5}));
        assert!(deep.losses(&deep).is_none() && deep.losses(&now).is_none());
    }

    #[test]
    fn a_narrowed_route_is_lost() {
        let with = |members: &[(&str, serde_json::Value)]| {
            let mut document = json!({"uri": "/a", "upstream": {"nodes": {"10.0.0.1:80": 1}}});
            members.iter().for_each(|(name, value)| document[*name] = value.clone());
            snapshot(vec![resource(Kind::Route, "1", &document)])
        };
        let nodes = |nodes: serde_json::Value| ("upstream", json!({"nodes": nodes}));
        let now = with(&[]);
        for narrowed in [
            ("methods", json!(["TRACE"])),
            ("remote_addrs", json!(["192.0.2.1/32"])),
            ("vars", json!([["arg_x", "==", "y"]])),
            nodes(json!({"10.0.0.1:80": 0, "10.0.0.2:80": 0})),
        ] {
            let next = with(std::slice::from_ref(&narrowed));
            assert_eq!(now.losses(&next).routes.lost, 1, "{narrowed:?}");
            assert!(next.losses(&next).is_none(), "{narrowed:?}");
        }
        assert!(now.losses(&with(&[nodes(json!({"10.0.0.9:80": 0}))])).is_none(), "the only node is asked");
        let get = [("methods", json!(["GET"])), ("remote_addrs", json!(["10.1.0.0/16"]))];
        let wider = [("methods", json!(["GET", "POST"])), ("remote_addrs", json!(["10.0.0.0/8"]))];
        assert!(with(&get).losses(&with(&wider)).is_none() && with(&get).losses(&now).is_none());
        assert_eq!(with(&wider).losses(&with(&get)).routes.lost, 1);
    }

    #[test]
    fn stream_routes_count_alone() {
        let now = snapshot(vec![stream_route("1", 1), stream_route("2", 2)]);
        assert!(now.losses(&snapshot(vec![])).any_majority());
        assert!(!now.losses(&snapshot(vec![stream_route("9", 2)])).any_majority());
    }

    proptest! {
        #[test]
        fn a_state_loses_nothing_to_itself_and_all_to_empty(
            sites in prop::collection::vec(0_u8..6, 0..4),
            uris in prop::collection::vec(0_u8..6, 0..4),
        ) {
            let route = |uri: &u8| route(&uri.to_string(), &format!("/{uri}"));
            let stream = |port: &u8| stream_route(&port.to_string(), u16::from(*port) + 1);
            let now = snapshot(uris.iter().map(route).chain(sites.iter().map(stream)).collect());
            prop_assert!(now.losses(&now).is_none());
            let losses = now.losses(&Snapshot::empty());
            prop_assert_eq!(losses.routes, loss(now.len(Kind::Route), now.len(Kind::Route)));
            prop_assert_eq!(losses.is_none(), now.is_empty());
        }
    }
}
