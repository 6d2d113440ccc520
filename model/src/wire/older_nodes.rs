//! Deltas for data planes of older releases.
//!
//! A field or kind that a node does not know is lost on it. Where the node would then serve with
//! less protection than the documents ask for, it gets a blocked resource instead. Invariant: a
//! connection or request that a blocked resource would have decided is not decided by another one
//! in its place.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use crate::id::Kind;
use crate::pattern::SniPattern;
use crate::resource::{
    Blocked, GlobalRule, Resource, Route, Scheme, Service, StreamRoute, Upstream, UpstreamTls,
};
use crate::snapshot::{Delta, Snapshot, Versioned};

/// The delta for a node that does not know plugin configs and plugins of global rules (its `Hello`
/// lacks `plugins`): it gets no plugin config, and the routes that name one, and the global rules
/// with a plugin, are blocked. Those have another version than the real resource, so that the node
/// gets that one once it has been upgraded.
pub fn without_plugins(mut delta: Delta) -> Delta {
    delta.upserts.retain(|versioned| versioned.resource.kind() != Kind::PluginConfig);
    delta.removals.retain(|key| key.kind != Kind::PluginConfig);
    for versioned in &mut delta.upserts {
        if let Some(resource) = block_unknown(&versioned.resource) {
            *versioned = Versioned { version: !versioned.version, resource };
        }
    }
    delta
}

/// The blocked resource in place of one that such a node does not know completely.
fn block_unknown(resource: &Resource) -> Option<Resource> {
    match resource {
        Resource::Route(route) => {
            let blocked = because(&format!("the plugin config {}", route.plugin_config.as_ref()?));
            let (upstream, timeout, client_identity, proxy_rewrite, plugin_config) = Default::default();
            let matchers = (**route).clone();
            let route = Route {
                upstream,
                timeout,
                client_identity,
                proxy_rewrite,
                plugin_config,
                blocked,
                ..matchers
            };
            Some(Resource::Route(Arc::new(route)))
        }
        Resource::GlobalRule(rule) if rule.proxy_rewrite.is_some() => {
            let blocked = because("a proxy-rewrite in a global rule");
            let rule = GlobalRule { id: rule.id.clone(), proxy_rewrite: None, blocked };
            Some(Resource::GlobalRule(Arc::new(rule)))
        }
        _ => None,
    }
}

/// The delta to `target` for a node that does not know [`push::Newer`](proto::push::Newer) (its
/// `Hello` lacks `upstreams`): resources that need it are blocked, in another version, as in
/// [`without_plugins`]. So are the stream routes to which the names of a route with several `snis`
/// would go there. Which these are depends on all stream routes, so each change of one sends all.
pub fn without_upstreams(mut delta: Delta, target: &Snapshot) -> Delta {
    let is_stream_route = |kind: Kind| kind == Kind::StreamRoute;
    let changes = delta.upserts.iter().any(|versioned| is_stream_route(versioned.resource.kind()));
    if changes || delta.removals.iter().any(|key| is_stream_route(key.kind)) {
        delta.upserts.retain(|versioned| !is_stream_route(versioned.resource.kind()));
        let place = delta.upserts.partition_point(|versioned| versioned.resource.kind() < Kind::StreamRoute);
        let all = target.resources_of(Kind::StreamRoute).values().cloned();
        delta.upserts.splice(place..place, all);
    }
    let several = SeveralNames::of(target);
    for versioned in &mut delta.upserts {
        if versioned.resource.blocked().is_some() {
            continue;
        }
        let blocked = match (unknown_feature(&versioned.resource), &versioned.resource) {
            (Some(feature), _) => because(feature),
            (None, Resource::StreamRoute(route)) if several.as_ref().is_some_and(|all| all.go_to(route)) => {
                because("the place of a stream route with several snis")
            }
            _ => continue,
        };
        if let Some(resource) = block_newer(&versioned.resource, blocked) {
            *versioned = Versioned { version: !versioned.version, resource };
        }
    }
    delta
}

/// The names of the stream routes with several. To an older node such a route has none, and is
/// searched last.
struct SeveralNames {
    /// Backwards, so that the names with a common end are next to each other.
    reversed: BTreeSet<Vec<u8>>,
    /// The ports that the routes match; `None`: any.
    ports: Option<HashSet<u16>>,
}

impl SeveralNames {
    /// `None` if the snapshot has no such route.
    fn of(snapshot: &Snapshot) -> Option<SeveralNames> {
        let routes = snapshot.resources_of(Kind::StreamRoute).values();
        let routes = routes.filter_map(|versioned| match &versioned.resource {
            Resource::StreamRoute(route) if route.snis.len() > 1 => Some(route),
            _ => None,
        });
        let mut found = SeveralNames { reversed: BTreeSet::new(), ports: Some(HashSet::new()) };
        for route in routes {
            found.reversed.extend(route.snis.iter().map(reversed));
            found.ports = found.ports.zip(route.server_port).map(|(mut ports, port)| {
                ports.insert(port);
                ports
            });
        }
        (!found.reversed.is_empty()).then_some(found)
    }

    /// Whether one of the names may go to this route.
    fn go_to(&self, route: &StreamRoute) -> bool {
        let is_apart = |ports: &HashSet<u16>| route.server_port.is_some_and(|port| !ports.contains(&port));
        let matches = |sni: &SniPattern| {
            let end = reversed(sni);
            match sni {
                SniPattern::Exact(_) => self.reversed.contains(&end),
                SniPattern::Suffix(_) => {
                    self.reversed.range(end.clone()..).next().is_some_and(|name| name.starts_with(&end))
                }
                SniPattern::Any => true,
            }
        };
        !self.ports.as_ref().is_some_and(is_apart)
            && (route.snis.is_empty() || route.snis.iter().any(matches))
    }
}

/// The bytes of a name or suffix backwards.
fn reversed(sni: &SniPattern) -> Vec<u8> {
    match sni {
        SniPattern::Exact(name) | SniPattern::Suffix(name) => name.as_bytes().iter().rev().copied().collect(),
        SniPattern::Any => Vec::new(),
    }
}

/// What a resource has that a program without [`push::Newer`](proto::push::Newer) would ignore, or
/// reject together with all else.
pub(super) fn unknown_feature(resource: &Resource) -> Option<&'static str> {
    if let Resource::StreamRoute(route) = resource {
        if route.tls_passthrough {
            return Some("tls_passthrough");
        }
        if route.snis.len() > 1 {
            return Some("snis");
        }
    }
    let upstream = resource.own_upstream()?;
    if upstream.scheme.is_grpc() {
        Some("a gRPC upstream")
    } else if upstream.tls.anchors.is_some() {
        Some("an upstream with tls.ca_certs")
    } else if upstream.tls.verify_identity.is_some() {
        Some("an upstream with tls.verify_identity")
    } else {
        None
    }
}

/// The blocked resource in place of one with an unknown feature: its matchers, and nothing else of
/// what such a node does not know. A stream route with several names gets none.
fn block_newer(resource: &Resource, blocked: Option<Blocked>) -> Option<Resource> {
    let upstream = None;
    Some(match resource {
        Resource::Upstream(own) => {
            let (scheme, tls) = (Scheme::Http, UpstreamTls::default());
            Resource::Upstream(Arc::new(Upstream { scheme, tls, blocked, ..(**own).clone() }))
        }
        Resource::Service(own) => {
            Resource::Service(Arc::new(Service { upstream, blocked, ..(**own).clone() }))
        }
        Resource::Route(own) => Resource::Route(Arc::new(Route { upstream, blocked, ..(**own).clone() })),
        Resource::StreamRoute(own) => {
            let mut snis = own.snis.clone();
            if snis.len() > 1 {
                snis.clear();
            }
            let tls_passthrough = false;
            let own = (**own).clone();
            Resource::StreamRoute(Arc::new(StreamRoute { snis, tls_passthrough, upstream, blocked, ..own }))
        }
        Resource::Ssl(_) | Resource::PluginConfig(_) | Resource::GlobalRule(_) => return None,
    })
}

fn because(what: &str) -> Option<Blocked> {
    Some(Blocked::new(&format!(
        "it has {what}, which this release of the data plane does not know: upgrade it"
    )))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::host_name::HostName;
    use crate::id::Key;
    use crate::samples::{patterns, some_snapshot};
    use crate::stream_index::StreamQuery;

    proptest! {
        #[test]
        fn an_older_node_serves_nothing_without_its_plugins(old in some_snapshot(), new in some_snapshot()) {
            let delta = old.diff(&new);
            let real = Snapshot::empty().apply(&delta);
            let node = Snapshot::empty().apply(&without_plugins(delta));
            for own in real.resources() {
                let key = own.resource.key();
                let unknown = match &own.resource {
                    Resource::PluginConfig(_) => {
                        prop_assert!(node.get(&key).is_none());
                        continue;
                    }
                    Resource::Route(route) => route.plugin_config.is_some(),
                    Resource::GlobalRule(rule) => rule.proxy_rewrite.is_some(),
                    _ => false,
                };
                let sent = node.get(&key).unwrap();
                prop_assert_eq!(sent == own, !unknown, "{}", key);
                prop_assert_eq!(sent.version != own.version, unknown);
                prop_assert!(!unknown || sent.resource.blocked().is_some());
                if let (Resource::Route(sent), Resource::Route(own)) = (&sent.resource, &own.resource) {
                    prop_assert!(sent.plugin_config.is_none() && sent.uris == own.uris);
                    prop_assert_eq!(node.hosts(sent), real.hosts(own));
                }
            }
            prop_assert!(node.resources().all(|sent| real.get(&sent.resource.key()).is_some()));
        }
    }

    /// What a node without `Newer` reads: several names are none.
    fn read_by_older(snapshot: &Snapshot) -> Snapshot {
        let read = snapshot.resources().map(|versioned| match &versioned.resource {
            Resource::StreamRoute(route) if route.snis.len() > 1 => {
                let nameless = StreamRoute { snis: Vec::new(), ..(**route).clone() };
                Versioned { version: versioned.version, resource: Resource::StreamRoute(Arc::new(nameless)) }
            }
            _ => versioned.clone(),
        });
        Snapshot::from_resources(snapshot.revision(), read)
    }

    fn query<'a>(sni: Option<&'a HostName>, port: u16, remote: &str) -> StreamQuery<'a> {
        StreamQuery { sni, remote: remote.parse().unwrap(), server: ([192, 0, 2, 80], port).into() }
    }

    proptest! {
        #[test]
        fn an_older_node_serves_no_newer_resource(old in some_snapshot(), new in some_snapshot()) {
            let delta = old.diff(&new);
            let real = Snapshot::empty().apply(&delta);
            let node = Snapshot::empty().apply(&without_upstreams(delta, &real));
            for own in real.resources() {
                let key = own.resource.key();
                let sent = node.get(&key).unwrap();
                let displaced = |resource: &Resource| match resource {
                    Resource::StreamRoute(route) => SeveralNames::of(&real).is_some_and(|all| all.go_to(route)),
                    _ => false,
                };
                let unknown = own.resource.blocked().is_none()
                    && (unknown_feature(&own.resource).is_some() || displaced(&own.resource));
                prop_assert_eq!(sent == own, !unknown, "{}", key);
                prop_assert_eq!(sent.version != own.version, unknown);
                prop_assert!(!unknown || sent.resource.blocked().is_some());
                // What such a node reads is what is sent: nothing is wrapped in Newer, or ignored.
                let wire = proto::push::Resource::from(&sent.resource);
                let newer = matches!(wire.kind, Some(proto::push::resource::Kind::Newer(_)));
                prop_assert!(!newer && (sent.resource.blocked().is_some() || !unknown));
                if let (Resource::StreamRoute(sent), Resource::StreamRoute(own)) = (&sent.resource, &own.resource)
                    && unknown
                {
                    prop_assert!(sent.snis == own.snis || sent.snis.is_empty() && own.snis.len() > 1);
                }
            }
            prop_assert_eq!(node.resources().count(), real.resources().count());
        }

        /// An older node selects the same stream route, or denies the connection.
        #[test]
        fn an_older_node_moves_no_connection(
            old in some_snapshot(), new in some_snapshot(), port in 9100..9102_u16, local in any::<bool>(),
        ) {
            let sent = without_upstreams(Snapshot::empty().diff(&old), &old);
            let node = Snapshot::empty().apply(&sent).apply(&without_upstreams(old.diff(&new), &new));
            prop_assert!(node.resources().eq(
                Snapshot::empty().apply(&without_upstreams(Snapshot::empty().diff(&new), &new)).resources()
            ));
            let node = read_by_older(&node);
            let names = ["a.com", "b.a.com", "c.b.a.com", "x.com", "xa.com", "y.org"];
            let names = names.map(|name| HostName::from_sni(name).unwrap());
            let remote = if local { "127.0.0.1" } else { "192.0.2.1" };
            for sni in names.iter().map(Some).chain([None]) {
                let query = query(sni, port, remote);
                let Some(found) = node.find_stream_route(&query) else { continue };
                let real = new.find_stream_route(&query).map(|route| &route.id);
                prop_assert!(found.blocked.is_some() || Some(&found.id) == real, "{:?} {:?}", sni, found.id);
            }
        }
    }

    #[test]
    fn names_of_several_block_what_would_take_them() {
        let route = |own: &str, snis: &[&str], server_port| {
            let (remote_addr, server_addr, upstream, service, blocked) = Default::default();
            let (id, snis) = (crate::samples::id(own), patterns(snis));
            let tls_passthrough = false;
            let route = StreamRoute {
                id,
                snis,
                tls_passthrough,
                remote_addr,
                server_addr,
                server_port,
                upstream,
                service,
                blocked,
            };
            Versioned { version: 1, resource: Resource::StreamRoute(Arc::new(route)) }
        };
        let blocked = |several: Option<u16>, without: bool| -> Vec<String> {
            let others = [
                route("any", &["*"], None),
                route("exact", &["db1.x.com"], None),
                route("narrow", &["a.db1.x.com"], None),
                route("other", &["*.y.com"], None),
                route("nameless", &[], Some(9100)),
                route("suffix", &["*.com"], None),
            ];
            let several = route("several", &["db1.x.com", "*.db2.x.com"], several);
            let all = others.into_iter().chain((!without).then_some(several));
            let target = Snapshot::from_resources(1, all);
            // Any change of a stream route sends all.
            let delta = Delta {
                to: 1,
                removals: vec![Key::new(Kind::StreamRoute, crate::samples::id("gone"))],
                ..Delta::default()
            };
            let sent = without_upstreams(delta, &target);
            assert_eq!(sent.upserts.len(), target.len(Kind::StreamRoute));
            let blocked = sent.upserts.iter().filter(|sent| sent.resource.blocked().is_some());
            blocked.map(|sent| sent.resource.id().to_string()).collect()
        };
        assert_eq!(blocked(None, false), ["any", "exact", "nameless", "several", "suffix"]);
        assert_eq!(blocked(Some(9101), false), ["any", "exact", "several", "suffix"]);
        assert_eq!(blocked(None, true), [""; 0]);
    }
}
