//! Deltas for data planes of older releases.
//!
//! A field or kind that a node does not know is lost on it. Where the node would then serve with
//! less protection than the documents ask for, it gets a blocked resource instead.

use std::sync::Arc;

use crate::id::Kind;
use crate::resource::{
    Blocked, GlobalRule, Resource, Route, Scheme, Service, StreamRoute, Upstream, UpstreamTls,
};
use crate::snapshot::{Delta, Versioned};

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

/// The delta for a node that does not know [`push::Newer`](proto::push::Newer) (its `Hello` lacks
/// `upstreams`): resources that need it are blocked, in another version, as in [`without_plugins`].
pub fn without_upstreams(mut delta: Delta) -> Delta {
    for versioned in &mut delta.upserts {
        if versioned.resource.blocked().is_none()
            && let Some(feature) = unknown_feature(&versioned.resource)
            && let Some(resource) = block_newer(&versioned.resource, because(feature))
        {
            *versioned = Versioned { version: !versioned.version, resource };
        }
    }
    delta
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
/// what such a node does not know. A stream route with several names matches every
/// name that no other route has: broader routes come before it there.
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
    use crate::samples::some_snapshot;
    use crate::snapshot::Snapshot;

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

    proptest! {
        #[test]
        fn an_older_node_serves_no_newer_resource(old in some_snapshot(), new in some_snapshot()) {
            let delta = old.diff(&new);
            let real = Snapshot::empty().apply(&delta);
            let node = Snapshot::empty().apply(&without_upstreams(delta));
            for own in real.resources() {
                let key = own.resource.key();
                let sent = node.get(&key).unwrap();
                let unknown = own.resource.blocked().is_none() && unknown_feature(&own.resource).is_some();
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
    }
}
