//! Where the newest snapshot stands: the agent stores, every worker loads.
//!
//! Invariant: a load takes no lock and never waits for the agent; the generation grows with every
//! store, so a worker can tell with one atomic read whether anything changed since it last looked.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::{ArcSwap, Guard};
use model::Snapshot;

/// The place. One per process.
pub struct SnapshotHandle {
    snapshot: ArcSwap<Snapshot>,
    generation: AtomicU64,
}

impl SnapshotHandle {
    /// A cell that holds this snapshot.
    pub fn new(snapshot: Arc<Snapshot>) -> Self {
        Self { snapshot: ArcSwap::new(snapshot), generation: AtomicU64::new(0) }
    }

    /// The newest snapshot; cheap, for one lookup. Clone the `Arc` to keep it over an await.
    pub fn load(&self) -> Guard<Arc<Snapshot>> {
        self.snapshot.load()
    }

    /// Replaces the snapshot. Only the agent does this.
    pub fn store(&self, snapshot: Arc<Snapshot>) {
        self.snapshot.store(snapshot);
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// Grows with every `store`.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }
}
