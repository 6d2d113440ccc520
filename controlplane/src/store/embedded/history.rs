//! The recent past: the last changes, kept in memory for watchers.
//!
//! Bounded in changes and in bytes. It need not survive a restart, because whoever watches lives in
//! this process and loads everything at its start; data planes resume by comparing what they hold,
//! not by reading the past.

use std::collections::VecDeque;
use std::sync::Arc;

use super::HistoryLimits;
use crate::store::{Event, WatchError};

/// The last changes, oldest first.
pub(super) struct History {
    /// Changes up to and including this revision are forgotten.
    compacted: u64,
    /// The store's revision.
    head: u64,
    events: VecDeque<(Arc<Event>, usize)>,
    bytes: usize,
    limits: HistoryLimits,
}

impl History {
    /// Knows nothing that happened up to `head`.
    pub(super) fn new(head: u64, kept: HistoryLimits) -> Self {
        Self { compacted: head, head, events: VecDeque::new(), bytes: 0, limits: kept }
    }

    /// Forgets everything: the file was opened again and stands at `head`.
    pub(super) fn reset(&mut self, head: u64) {
        *self = Self::new(head, self.limits);
    }

    /// Adds a change; `size` is that of its document in bytes.
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

    /// Moves the head on without a change (an id was reserved).
    pub(super) fn advance(&mut self, revision: u64) {
        self.head = self.head.max(revision);
    }

    /// Every change after `after`. An `after` from the future is of another store, or of this one
    /// before it was restored.
    pub(super) fn events_after(&self, after: u64) -> Result<Vec<Arc<Event>>, WatchError> {
        if after < self.compacted || after > self.head {
            return Err(WatchError::Compacted { oldest: self.compacted });
        }
        let first = self.events.partition_point(|(event, _)| event.revision <= after);
        Ok(self.events.iter().skip(first).map(|(event, _)| Arc::clone(event)).collect())
    }
}
