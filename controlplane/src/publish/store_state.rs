//! Whether the store can be read, as the streams of the nodes follow it.
//!
//! Invariant: a node that understands `StoreState` hears of each change once, and of a store that
//! can be read again only after what was read.

use std::time::{Duration, Instant};

use proto::push::StoreState;
use tokio::sync::watch;
use tonic::Status;

/// One stream's view of the store.
#[derive(Clone)]
pub(super) struct StoreStateWatcher {
    /// The store could not be read for so long that nodes are better served elsewhere.
    cut_off: watch::Receiver<bool>,
    /// Since when the store cannot be read.
    unread_since: watch::Receiver<Option<Instant>>,
    /// The node understands `StoreState`.
    node_supports: bool,
}

impl StoreStateWatcher {
    pub(super) fn new(cut_off: watch::Receiver<bool>, unread: watch::Receiver<Option<Instant>>) -> Self {
        Self { cut_off, unread_since: unread, node_supports: false }
    }

    /// For a stream that begins now. A node that comes while we are cut off has nowhere else to go,
    /// and stays.
    pub(super) fn for_session(&self, understood: bool) -> Self {
        let mut reading = Self { node_supports: understood, ..self.clone() };
        reading.cut_off.mark_unchanged();
        reading
    }

    /// As of now.
    pub(super) fn state(&mut self) -> StoreState {
        let unread = *self.unread_since.borrow_and_update();
        StoreState { unread_seconds: unread.map(|since| whole_seconds(since.elapsed())) }
    }

    /// Waits for another state.
    ///
    /// # Errors
    /// When the node is to try another control plane.
    pub(super) async fn changed(&mut self) -> Result<(), Status> {
        let Self { cut_off, unread_since: unread, node_supports: understood } = self;
        tokio::select! {
            () = wait_until_true(cut_off) => {
                Err(Status::unavailable("the store cannot be read from here: try another control plane"))
            }
            Ok(()) = unread.changed(), if *understood => Ok(()),
        }
    }

    /// [`Self::changed`] tells of this state once more.
    pub(super) fn mark_changed(&mut self) {
        self.unread_since.mark_changed();
    }
}

/// Rounded up: nothing is told to be younger than it is.
fn whole_seconds(age: Duration) -> u64 {
    age.as_secs() + u64::from(age.subsec_nanos() > 0)
}

/// Ends when it turns true; one that is true already must turn false before.
async fn wait_until_true(cut_off: &mut watch::Receiver<bool>) {
    while cut_off.changed().await.is_ok() {
        if *cut_off.borrow_and_update() {
            return;
        }
    }
    std::future::pending().await
}
