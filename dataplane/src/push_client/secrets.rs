//! Where the ticket secrets stand: the agent stores, the tickets of every site load.
//!
//! Beside `cell`, and as there a load takes no lock and never waits for the agent.

use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use model::TicketRing;

/// The place. One per process.
#[derive(Default)]
pub struct TicketRingHandle(ArcSwap<TicketRing>);

impl TicketRingHandle {
    /// The newest ring; the same `Arc` until it is replaced.
    pub fn load(&self) -> Guard<Arc<TicketRing>> {
        self.0.load()
    }

    /// Replaces the ring.
    pub fn store(&self, ring: Arc<TicketRing>) {
        self.0.store(ring);
    }
}
