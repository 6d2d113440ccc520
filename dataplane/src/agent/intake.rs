//! Chunks -> delta -> snapshot -> cell: the only writer of the cell after start; and of the ticket secrets, which come as they are.
//!
//! Invariant: a delta is taken as a whole or not at all. A refused one changes nothing, and since what we say we hold is read
//! from the snapshot itself, a refused resource can never count as held.

use std::sync::Arc;

use model::wire::{DeltaAssembler, Refusal};
use model::{Delta, Snapshot, TicketRing};
use proto::push::{self, Ack, Chunk, HeldResource, Nack, Welcome, from_node};
use tokio::sync::watch;

use super::cell::Cell;
use super::saver::{Newest, ToSave};
use super::secrets::Secrets;
use super::status::{AgentStatus, Source};

/// What is held, and where it goes.
pub(super) struct Held {
    pub cell: Arc<Cell>,
    /// `None`: sessions are not resumed here.
    pub secrets: Option<Arc<Secrets>>,
    pub status: Arc<AgentStatus>,
    /// Whose revisions the snapshot in the cell has; `None`: it is the empty one of the start.
    pub store: Option<String>,
    /// The ring in `secrets`, for the disk.
    pub tickets: Option<Arc<TicketRing>>,
    pub newest: watch::Sender<Newest>,
}

pub(super) struct Intake {
    held: Held,
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
    Whole(from_node::Message),
    /// The delta does not start from what we hold: the two ends disagree, and only a new stream helps.
    Astray { from: u64, held: u64 },
}

impl Intake {
    pub fn new(held: Held) -> Self {
        Self { held, coming: Coming::new(String::new(), 0) }
    }

    pub fn status(&self) -> &AgentStatus {
        &self.held.status
    }

    /// Takes over ticket secrets: at once, and onto the disk, so that a restarted process resumes what this one began. A
    /// ring that is none must not be in the way of changes: those held stay.
    pub fn tickets(&mut self, ring: &push::TicketRing) {
        // Sent without having been asked for: not ours to keep.
        let Some(secrets) = &self.held.secrets else { return };
        let ring = match model::wire::tickets_from_wire(ring) {
            Ok(ring) => Arc::new(ring),
            Err(problem) => {
                tracing::error!(field = problem.field, %problem, "refused new ticket secrets; going on with those held");
                return;
            }
        };
        tracing::info!(secrets = ring.secrets.len(), "took over new ticket secrets");
        secrets.store(Arc::clone(&ring));
        self.held.tickets = Some(ring);
        self.held.status.took_ring();
        // Before the first snapshot there is nothing to save: it will take the ring along.
        if let Some(store) = &self.held.store {
            self.save(store.clone(), self.snapshot());
        }
    }

    /// Whose revisions we hold, up to which, and which.
    pub fn held(&self) -> (String, u64, Vec<HeldResource>) {
        let snapshot = self.snapshot();
        let held = snapshot
            .held()
            .map(|(key, revision)| HeldResource { key: Some(model::wire::key_to_wire(&key)), revision })
            .collect();
        (self.held.store.clone().unwrap_or_default(), snapshot.revision(), held)
    }

    /// A new stream begins: what an earlier one left half is forgotten.
    pub fn welcome(&mut self, welcome: Welcome) {
        let (store, held) = (self.held.store.as_deref().unwrap_or_default(), self.snapshot().revision());
        let at = model::wire::first_delta_from((store, held), (&welcome.store, welcome.revision));
        self.coming = Coming::new(welcome.store, at);
    }

    pub fn take(&mut self, chunk: Chunk) -> Taken {
        let (from, to, last) = (chunk.from, chunk.to, chunk.last);
        if from != self.coming.at {
            return Taken::Astray { from, held: self.coming.at };
        }
        match self.coming.assembler.push(chunk) {
            Err(refusals) => self.coming.refusals.extend(refusals),
            Ok(Some(delta)) if self.coming.refusals.is_empty() => {
                self.swap(&delta);
                self.coming.assembler.moved_to(to);
                self.coming.at = to;
                return Taken::Whole(from_node::Message::Ack(Ack { revision: to }));
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
        self.held.status.nacked();
        let refusals = refusals.iter().map(Refusal::to_wire).collect();
        Taken::Whole(from_node::Message::Nack(Nack { revision: to, refusals }))
    }

    fn swap(&mut self, delta: &Delta) {
        let snapshot = Arc::new(self.snapshot().apply(delta));
        let revision = snapshot.revision();
        self.held.store = Some(self.coming.store.clone());
        self.held.cell.store(Arc::clone(&snapshot));
        self.held.status.serves(revision, Source::ControlPlane);
        let (changed, removed) = (delta.upserts.len(), delta.removals.len());
        tracing::debug!(revision, changed, removed, "serving a new snapshot");
        self.save(self.coming.store.clone(), snapshot);
    }

    fn save(&self, store: String, snapshot: Arc<Snapshot>) {
        let tickets = self.held.tickets.clone();
        self.held.newest.send_replace(Some(Arc::new(ToSave { store, snapshot, tickets })));
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.held.cell.load())
    }
}
