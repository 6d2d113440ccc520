//! What the Admin API wants to know about data planes; answered by whoever pushes to them.

use std::time::Duration;

use futures_util::future::BoxFuture;
use serde_json::Value;

/// Knows the data planes.
pub trait FleetStatus: Send + Sync + 'static {
    /// `{"list": [...], "total": n, "revision": N}`, and the other control planes where there can
    /// be others.
    fn view(&self) -> BoxFuture<'_, Value>;

    /// Waits until every connected node of all control planes, and at least one, has acknowledged
    /// `revision`; either way the view at that moment.
    ///
    /// # Errors
    /// The view, when it took longer than `patience`.
    fn wait_acknowledged(&self, revision: u64, patience: Duration) -> BoxFuture<'_, Result<Value, Value>>;

    /// Nodes that serve another store's state and do not take ours over: their names, and what ours
    /// would take away.
    fn held_nodes(&self) -> Vec<(String, String)> {
        Vec::new()
    }
}
