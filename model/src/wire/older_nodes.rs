//! Deltas for data planes of older releases.
//!
//! A field or kind that a node does not know is lost on it. Where the node would then serve with
//! less protection than the documents ask for, it gets a blocked resource instead.

use std::sync::Arc;

use crate::id::Kind;
use crate::resource::{Blocked, GlobalRule, Resource, Route};
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
}
