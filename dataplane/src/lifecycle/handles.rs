//! Handles on the snapshot and the ticket ring, which the push client replaces while every worker
//! reads them.
//!
//! Invariant: a load takes no lock and never waits for the push client. There is one handle of each
//! kind a process.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::{ArcSwap, Guard};
use model::{Snapshot, TicketRing};

/// The newest snapshot.
pub struct SnapshotHandle {
    snapshot: ArcSwap<Snapshot>,
    generation: AtomicU64,
}

impl SnapshotHandle {
    pub fn new(snapshot: Arc<Snapshot>) -> Self {
        Self { snapshot: ArcSwap::new(snapshot), generation: AtomicU64::new(0) }
    }

    /// The guard is cheap and meant for one lookup; clone the `Arc` to keep it over an await.
    pub fn load(&self) -> Guard<Arc<Snapshot>> {
        self.snapshot.load()
    }

    /// Only the push client replaces the snapshot.
    pub fn store(&self, snapshot: Arc<Snapshot>) {
        self.snapshot.store(snapshot);
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// Grows with every store, so that a worker detects a new snapshot with one atomic read.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }
}

/// The newest secrets that session tickets are sealed and opened with.
#[derive(Default)]
pub struct TicketRingHandle(ArcSwap<TicketRing>);

impl TicketRingHandle {
    /// Gives the same `Arc` until the ring is replaced.
    pub fn load(&self) -> Guard<Arc<TicketRing>> {
        self.0.load()
    }

    pub fn store(&self, ring: Arc<TicketRing>) {
        self.0.store(ring);
    }
}
