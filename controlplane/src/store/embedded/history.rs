//! The recent changes, kept in memory for watches.
//!
//! Bounded in events and in bytes. The history need not survive a restart: the watchers live in
//! this process and load everything at its start; data planes resume by comparing versions.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::store::{Event, WatchError};

/// How much history watches can read.
#[derive(Clone, Copy, Debug)]
pub(super) struct HistoryLimits {
    pub events: usize,
    pub bytes: usize,
}

impl Default for HistoryLimits {
    fn default() -> Self {
        Self { events: 4096, bytes: 64 << 20 }
    }
}

/// Oldest first.
pub(super) struct History {
    /// Changes up to and including this revision are gone.
    compacted: u64,
    head: u64,
    events: VecDeque<(Arc<Event>, usize)>,
    bytes: usize,
    limits: HistoryLimits,
}

impl History {
    /// An empty history that starts at `head`.
    pub(super) fn new(head: u64, kept: HistoryLimits) -> Self {
        Self { compacted: head, head, events: VecDeque::new(), bytes: 0, limits: kept }
    }

    /// Drops all events: the reopened file is at `head`.
    pub(super) fn reset(&mut self, head: u64) {
        *self = Self::new(head, self.limits);
    }

    /// Adds a change; `size` is the bytes of its document.
    pub(super) fn push(&mut self, event: Event, size: usize) {
        self.head = event.revision;
        self.bytes += size;
        self.events.push_back((Arc::new(event), size));
        while self.events.len() > self.limits.events || self.bytes > self.limits.bytes {
            let Some((event, size)) = self.events.pop_front() else { break };
            self.bytes -= size;
            self.compacted = event.revision;
        }
    }

    /// Moves the head without a change (an id was reserved).
    pub(super) fn advance(&mut self, revision: u64) {
        self.head = self.head.max(revision);
    }

    /// All events after a revision. A revision from the future belongs to another store, or to this
    /// one before a restore.
    pub(super) fn events_after(&self, after: u64) -> Result<Vec<Arc<Event>>, WatchError> {
        if after < self.compacted || after > self.head {
            return Err(WatchError::Compacted { oldest: self.compacted });
        }
        let first = self.events.partition_point(|(event, _)| event.revision <= after);
        Ok(self.events.iter().skip(first).map(|(event, _)| Arc::clone(event)).collect())
    }
}
