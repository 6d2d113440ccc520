//! What the Admin API shows of data planes; `publish` implements it.

use std::time::Duration;

use futures_util::future::BoxFuture;
use serde_json::Value;

/// The state of the data planes.
pub trait FleetStatus: Send + Sync + 'static {
    /// `{"list": [...], "total": n, "revision": N}`, and the other control planes where the store
    /// is shared.
    fn view(&self) -> BoxFuture<'_, Value>;

    /// Waits until every connected node of all control planes, and at least one, has acknowledged
    /// `revision`. Returns the view at that moment.
    ///
    /// # Errors
    /// The view, when `patience` has passed.
    fn wait_acknowledged(&self, revision: u64, patience: Duration) -> BoxFuture<'_, Result<Value, Value>>;

    /// Names of nodes that hold another store's state, each with what this store's state would
    /// remove.
    fn held_nodes(&self) -> Vec<(String, String)> {
        Vec::new()
    }
}
