//! Chunks -> delta -> snapshot -> cell: the only writer of the cell after start.
//!
//! Invariant: a delta is taken as a whole or not at all. A refused one changes nothing, and since what we say we hold is read
//! from the snapshot itself, a refused resource can never count as held.

use std::sync::Arc;

use model::Snapshot;
use model::wire::{DeltaAssembler, Refusal};
use proto::push::{Ack, Chunk, HeldResource, Nack, Welcome, from_node};
use tokio::sync::watch;

use super::cell::Cell;
use super::saver::{Newest, ToSave};
use super::status::{AgentStatus, Source};

pub(super) struct Intake {
    cell: Arc<Cell>,
    status: Arc<AgentStatus>,
    /// Whose revisions the snapshot in the cell has; `None`: it is the empty one of the start.
    store: Option<String>,
    newest: watch::Sender<Newest>,
    coming: Coming,
}

/// What this stream has brought so far.
struct Coming {
    store: String,
    assembler: DeltaAssembler,
    /// Where the next delta must start.
    at: u64,
    /// Of the delta that is coming in; kept until its last chunk, so that the answer is one.
    refusals: Vec<Refusal>,
}

impl Coming {
    fn new(store: String, at: u64) -> Self {
        Self { store, assembler: DeltaAssembler::new(at), at, refusals: Vec::new() }
    }
}

/// What a chunk leads to.
pub(super) enum Taken {
    /// More chunks must come.
    Partly,
    /// The delta is in; this is the answer.
    Whole { answer: from_node::Message, applied: bool },
    /// The delta does not start from what we hold: the two ends disagree, and only a new stream helps.
    Astray { from: u64, held: u64 },
}

impl Intake {
    pub fn new(
        cell: Arc<Cell>,
        status: Arc<AgentStatus>,
        store: Option<String>,
        newest: watch::Sender<Newest>,
    ) -> Self {
        Self { cell, status, store, newest, coming: Coming::new(String::new(), 0) }
    }

    pub fn status(&self) -> &AgentStatus {
        &self.status
    }

    /// Whose revisions we hold, up to which, and which.
    pub fn held(&self) -> (String, u64, Vec<HeldResource>) {
        let snapshot = self.snapshot();
        let held = snapshot
            .held()
            .map(|(key, revision)| HeldResource { key: Some(model::wire::key_to_wire(&key)), revision })
            .collect();
        (self.store.clone().unwrap_or_default(), snapshot.revision(), held)
    }

    /// A new stream begins: what an earlier one left half is forgotten. Revisions of another store, or of this one
    /// before it was set back, say nothing: both ends then count from 0.
    pub fn welcome(&mut self, welcome: Welcome) {
        let held = self.snapshot().revision();
        let same = self.store.as_ref() == Some(&welcome.store) && held <= welcome.revision;
        self.coming = Coming::new(welcome.store, if same { held } else { 0 });
    }

    pub fn take(&mut self, chunk: Chunk) -> Taken {
        let (from, to, last) = (chunk.from, chunk.to, chunk.last);
        if from != self.coming.at {
            return Taken::Astray { from, held: self.coming.at };
        }
        match self.coming.assembler.push(chunk) {
            Err(refusals) => self.coming.refusals.extend(refusals),
            Ok(Some(delta)) if self.coming.refusals.is_empty() => {
                self.swap(Arc::new(self.snapshot().apply(&delta)));
                self.coming.assembler.moved_to(to);
                self.coming.at = to;
                return Taken::Whole { answer: from_node::Message::Ack(Ack { revision: to }), applied: true };
            }
            Ok(_) => {}
        }
        if !last {
            return Taken::Partly;
        }
        let refusals = std::mem::take(&mut self.coming.refusals);
        for refusal in refusals.iter().take(3) {
            tracing::error!(
                revision = to,
                resource = refusal.key.as_ref().map(ToString::to_string).unwrap_or_default(),
                field = refusal.problem.field,
                problem = %refusal.problem,
                "refused a change; serving what was there before"
            );
        }
        self.status.nacked();
        let refusals = refusals.iter().map(Refusal::to_wire).collect();
        Taken::Whole { answer: from_node::Message::Nack(Nack { revision: to, refusals }), applied: false }
    }

    fn swap(&mut self, snapshot: Arc<Snapshot>) {
        let revision = snapshot.revision();
        self.store = Some(self.coming.store.clone());
        self.cell.store(Arc::clone(&snapshot));
        self.status.serves(revision, Source::ControlPlane);
        tracing::debug!(revision, "serving a new snapshot");
        self.newest.send_replace(Some(Arc::new(ToSave { store: self.coming.store.clone(), snapshot })));
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.cell.load())
    }
}
