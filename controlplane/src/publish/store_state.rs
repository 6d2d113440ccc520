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
    cut_off: watch::Receiver<bool>,
    /// Since when the store is unreadable.
    unread_since: watch::Receiver<Option<Instant>>,
    /// The node supports `StoreState`.
    node_supports: bool,
}

impl StoreStateWatcher {
    pub(super) fn new(cut_off: watch::Receiver<bool>, unread: watch::Receiver<Option<Instant>>) -> Self {
        Self { cut_off, unread_since: unread, node_supports: false }
    }

    /// For a session that begins now. A node that connects while the store is stale stays, because
    /// it found no better control plane.
    pub(super) fn for_session(&self, understood: bool) -> Self {
        let mut reading = Self { node_supports: understood, ..self.clone() };
        reading.cut_off.mark_unchanged();
        reading
    }

    pub(super) fn state(&mut self) -> StoreState {
        let unread = *self.unread_since.borrow_and_update();
        StoreState { unread_seconds: unread.map(|since| whole_seconds(since.elapsed())) }
    }

    /// Waits for a change.
    ///
    /// # Errors
    /// When the node must try another control plane.
    pub(super) async fn changed(&mut self) -> Result<(), Status> {
        let Self { cut_off, unread_since: unread, node_supports: understood } = self;
        tokio::select! {
            () = wait_until_true(cut_off) => {
                Err(Status::unavailable("the store cannot be read from here: try another control plane"))
            }
            Ok(()) = unread.changed(), if *understood => Ok(()),
        }
    }

    /// Makes [`Self::changed`] return once more for this state.
    pub(super) fn mark_changed(&mut self) {
        self.unread_since.mark_changed();
    }
}

/// Rounds up: no age is reported too small.
fn whole_seconds(age: Duration) -> u64 {
    age.as_secs() + u64::from(age.subsec_nanos() > 0)
}

/// Returns when the value turns true; a value that is true already must turn false before.
async fn wait_until_true(cut_off: &mut watch::Receiver<bool>) {
    while cut_off.changed().await.is_ok() {
        if *cut_off.borrow_and_update() {
            return;
        }
    }
    std::future::pending().await
}
