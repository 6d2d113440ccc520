//! Deltas for data planes of older releases.
//!
//! A field or kind that a node does not know is lost on it. Where the node would then serve with
//! less protection than the documents ask for, it gets a blocked resource instead.

use std::sync::Arc;

use crate::id::Kind;
use crate::resource::{Blocked, Resource, Route};
use crate::snapshot::{Delta, Versioned};

/// The delta for a node that does not know plugin configs (its `Hello` lacks `plugin_configs`): it
/// gets none, and the routes that name one are blocked. Those have another version than the real
/// route, so that the node gets that one once it has been upgraded.
pub fn without_plugin_configs(mut delta: Delta) -> Delta {
    delta.upserts.retain(|versioned| versioned.resource.kind() != Kind::PluginConfig);
    delta.removals.retain(|key| key.kind != Kind::PluginConfig);
    for versioned in &mut delta.upserts {
        if let Resource::Route(route) = &versioned.resource
            && let Some(config) = &route.plugin_config
        {
            let why = format!(
                "it has the plugin config {config}, which this release of the data plane does not know: upgrade it"
            );
            let blocked = Resource::Route(Arc::new(block(route, &why)));
            *versioned = Versioned { version: !versioned.version, resource: blocked };
        }
    }
    delta
}

/// The route with its matchers alone.
fn block(route: &Route, why: &str) -> Route {
    let (upstream, timeout, client_identity, proxy_rewrite, plugin_config) = Default::default();
    let blocked = Some(Blocked::new(why));
    Route { upstream, timeout, client_identity, proxy_rewrite, plugin_config, blocked, ..route.clone() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::samples::some_snapshot;
    use crate::snapshot::Snapshot;

    proptest! {
        #[test]
        fn an_older_node_serves_no_route_with_a_plugin_config(
            old in some_snapshot(), new in some_snapshot(),
        ) {
            let real = Snapshot::empty().apply(&old.diff(&new));
            let node = Snapshot::empty().apply(&without_plugin_configs(old.diff(&new)));
            prop_assert_eq!(node.len(Kind::PluginConfig), 0);
            for route in node.routes() {
                let (own, key) = (real.route(&route.id).unwrap(), Resource::Route(Arc::clone(route)).key());
                let unknown = own.plugin_config.is_some();
                prop_assert!(route.plugin_config.is_none() && (!unknown || route.blocked.is_some()));
                prop_assert_eq!(&route.uris, &own.uris);
                prop_assert_eq!(node.hosts(route), real.hosts(own));
                prop_assert_eq!(node.version(&key) != real.version(&key), unknown);
            }
            prop_assert_eq!(node.routes().count(), real.routes().count());
            let plugin_configs = real.len(Kind::PluginConfig);
            prop_assert_eq!(node.resources().count() + plugin_configs, real.resources().count());
        }
    }
}
