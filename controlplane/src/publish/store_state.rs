//! Whether the store is readable, as the sessions follow it.
//!
//! Invariant: a node that supports `StoreState` is sent each change once, and learns that the store
//! is readable again only after the state that was read.

use std::time::{Duration, Instant};

use proto::push::StoreState;
use tokio::sync::watch;
use tonic::Status;

/// One session's view of the store.
#[derive(Clone)]
pub(super) struct StoreStateWatcher {
    /// The store is unreadable for so long that other control planes serve nodes better.
    store_stale: watch::Receiver<bool>,
    /// Since when the store is unreadable.
    unreadable_since: watch::Receiver<Option<Instant>>,
    /// The node supports `StoreState`.
    node_supports: bool,
}

impl StoreStateWatcher {
    pub(super) fn new(
        store_stale: watch::Receiver<bool>,
        unreadable_since: watch::Receiver<Option<Instant>>,
    ) -> Self {
        Self { store_stale, unreadable_since, node_supports: false }
    }

    /// For a session that begins now. A node that connects while the store is stale stays, because
    /// it found no better control plane.
    pub(super) fn for_session(&self, node_supports: bool) -> Self {
        let mut watcher = Self { node_supports, ..self.clone() };
        watcher.store_stale.mark_unchanged();
        watcher
    }

    pub(super) fn state(&mut self) -> StoreState {
        let since = *self.unreadable_since.borrow_and_update();
        StoreState { unreadable_seconds: since.map(|since| whole_seconds(since.elapsed())) }
    }

    /// Waits for a change.
    ///
    /// # Errors
    /// When the node must try another control plane.
    pub(super) async fn changed(&mut self) -> Result<(), Status> {
        let Self { store_stale, unreadable_since, node_supports } = self;
        tokio::select! {
            () = wait_until_true(store_stale) => {
                Err(Status::unavailable("the store cannot be read from here: try another control plane"))
            }
            Ok(()) = unreadable_since.changed(), if *node_supports => Ok(()),
        }
    }

    /// Makes [`Self::changed`] return once more for this state.
    pub(super) fn mark_changed(&mut self) {
        self.unreadable_since.mark_changed();
    }
}

/// Rounds up: no age is reported too small.
fn whole_seconds(age: Duration) -> u64 {
    age.as_secs() + u64::from(age.subsec_nanos() > 0)
}

/// Returns when the value turns true; a value that is true already must turn false before.
async fn wait_until_true(store_stale: &mut watch::Receiver<bool>) {
    while store_stale.changed().await.is_ok() {
        if *store_stale.borrow_and_update() {
            return;
        }
    }
    std::future::pending().await
}
