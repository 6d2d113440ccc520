//! Resources that consist of plugins: plugin configs, which routes name, and global rules, which
//! apply to every request.

use std::sync::Arc;

use super::Blocked;
use crate::id::Id;
use crate::proxy_rewrite::ProxyRewrite;

/// Plugins that several routes share (contract 7.3).
#[derive(Debug, Clone, PartialEq)]
pub struct PluginConfig {
    /// The id.
    pub id: Id,
    /// The plugin of routes without it; it replaces the one of their service.
    pub proxy_rewrite: Option<Arc<ProxyRewrite>>,
    /// Set if the resource is blocked, and with it the routes that name it.
    pub blocked: Option<Blocked>,
}

/// Plugins of every request.
#[derive(Debug, Clone, PartialEq)]
pub struct GlobalRule {
    /// The id.
    pub id: Id,
    /// Runs before the plugin of the route ([`Snapshot::global_rewrite`]).
    ///
    /// [`Snapshot::global_rewrite`]: crate::Snapshot::global_rewrite
    pub proxy_rewrite: Option<Arc<ProxyRewrite>>,
    /// Set if the rule is blocked, and with it every request.
    pub blocked: Option<Blocked>,
}
