//! Chunks -> delta -> snapshot -> cell, and the ticket secrets, which come as they are. After start
//! only this and `expiry` write the cell.
//!
//! Invariants: a delta is taken as a whole or not at all. A refused one changes nothing, and since
//! what we say we hold is read from the snapshot itself, a refused resource can never count as
//! held. What another store has replaces nothing while it would take most of it away, until an
//! operator accepts that store.

use std::sync::Arc;
use std::time::{Duration, Instant};

use model::wire::{DeltaAssembler, ResourceError};
use model::{Delta, Losses, Snapshot, TicketRing};
use proto::push::{self, Ack, Chunk, HeldResource, Hold, Nack, StoreState, Welcome, from_node};
use tokio::sync::watch;

use super::expiry::Expiry;
use super::handles::SnapshotHandle;
use super::last_good::unix_seconds;
use super::saver::{PendingSave, SavedState};
use super::secrets::TicketRingHandle;
use super::sync_status::{HeldStore, SnapshotSource, SyncStatus};

/// What is held, and where it goes.
pub(super) struct NodeState {
    pub cell: Arc<SnapshotHandle>,
    /// What is in the cell, unless it is too old to be served.
    pub snapshot: Arc<Snapshot>,
    /// `None`: sessions are not resumed here.
    pub secrets: Option<Arc<TicketRingHandle>>,
    pub status: Arc<SyncStatus>,
    /// Whose revisions the snapshot in the cell has; `None`: it is the empty one of the start.
    pub store: Option<String>,
    /// The ring in `secrets`, for the disk.
    pub tickets: Option<Arc<TicketRing>>,
    pub newest: watch::Sender<PendingSave>,
    /// Other stores whose state was held, also by the process before, the last one last: each is
    /// taken over when it takes nothing away, or is accepted.
    pub held_stores: watch::Sender<Vec<String>>,
    /// The next state of another store is taken over, whatever it takes away
    /// (`--accept-new-store`).
    pub accept_new_store: bool,
    /// What no control plane has confirmed for longer is not served. Zero: whatever its age.
    pub max_age: Duration,
}

pub(super) struct Applier {
    node: NodeState,
    inbound: Inbound,
}

/// Of the stores that were held so many are remembered.
const HELD_STORES_MAX: usize = 16;

/// What this stream has brought so far.
struct Inbound {
    store: String,
    assembler: DeltaAssembler,
    /// Where the next delta must start.
    next_from: u64,
    /// Of the delta that is coming in; kept until its last chunk, so that the answer is one.
    errors: Vec<ResourceError>,
    /// Ticket secrets of another store, which are taken over with its state.
    tickets: Option<Arc<TicketRing>>,
    /// The control plane understands `Hold`.
    supports_hold: bool,
    /// An operator accepted the store.
    store_accepted: bool,
    /// What is held is the last state that this stream brought.
    applied: bool,
    /// When the control plane last read its store, which it cannot do now.
    store_outage: Option<StoreOutage>,
}

impl Inbound {
    fn new(store: String, at: u64, understands_hold: bool) -> Self {
        let assembler = DeltaAssembler::new(at);
        let (refusals, tickets, accepted) = (Vec::new(), None, false);
        let (taken, unread) = (false, None);
        Self {
            store,
            assembler,
            next_from: at,
            errors: refusals,
            tickets,
            supports_hold: understands_hold,
            store_accepted: accepted,
            applied: taken,
            store_outage: unread,
        }
    }
}

/// A control plane's last reading of its store.
#[derive(Clone, Copy)]
struct StoreOutage {
    /// How long ago it was at the moment `since`.
    age: Duration,
    since: Instant,
}

impl StoreOutage {
    fn of(state: StoreState) -> Option<Self> {
        let age = Duration::from_secs(state.unread_seconds?);
        Some(Self { age, since: Instant::now() })
    }

    fn age(self) -> Duration {
        self.age.saturating_add(self.since.elapsed())
    }
}

/// What a chunk leads to.
pub(super) enum ChunkOutcome {
    /// More chunks must come.
    Incomplete,
    /// The delta is in; this is the answer.
    Complete(from_node::Message),
    /// The delta is in, comes from another store, and is not taken over; this is the answer.
    Held(from_node::Message),
    /// The delta does not start from what we hold: the two ends disagree, and only a new stream
    /// helps.
    RevisionMismatch { from: u64, held: u64 },
}

impl Applier {
    pub(super) fn new(held: NodeState) -> Self {
        Self { node: held, inbound: Inbound::new(String::new(), 0, false) }
    }

    pub(super) fn status(&self) -> &SyncStatus {
        &self.node.status
    }

    /// Takes over ticket secrets: at once, and onto the disk, so that a restarted process resumes
    /// what this one began. A ring that is none must not be in the way of changes: those held
    /// stay.
    pub(super) fn on_tickets(&mut self, ring: &push::TicketRing) {
        // Sent without having been asked for: not ours to keep.
        let Some(secrets) = &self.node.secrets else { return };
        let ring = match model::wire::tickets_from_wire(ring) {
            Ok(ring) => Arc::new(ring),
            Err(problem) => {
                tracing::error!(field = problem.field, %problem, "refused new ticket secrets; going on with those held");
                return;
            }
        };
        if self.is_other_store() {
            self.inbound.tickets = Some(ring);
            return;
        }
        tracing::info!(secrets = ring.secrets.len(), "took over new ticket secrets");
        secrets.store(Arc::clone(&ring));
        self.node.tickets = Some(ring);
        self.node.status.count_ticket_ring();
        // Before the first snapshot there is nothing to save: it will take the ring along.
        if let Some(store) = &self.node.store {
            self.queue_save(store.clone());
        }
    }

    /// What comes is another store's than what is held.
    fn is_other_store(&self) -> bool {
        self.node.store.as_ref().is_some_and(|store| *store != self.inbound.store)
    }

    /// Whose revisions we hold, up to which, and which.
    pub(super) fn held_resources(&self) -> (String, u64, Vec<HeldResource>) {
        let snapshot = &self.node.snapshot;
        let held = snapshot
            .versions()
            .map(|(key, version)| HeldResource { key: Some(model::wire::key_to_wire(&key)), version })
            .collect();
        (self.node.store.clone().unwrap_or_default(), snapshot.revision(), held)
    }

    /// A new stream begins: what an earlier one left half is forgotten.
    pub(super) fn on_welcome(&mut self, welcome: Welcome) {
        let store = self.node.store.as_deref().unwrap_or_default();
        let held = (store, self.node.snapshot.revision());
        let at = model::wire::first_delta_base(held, (&welcome.store, welcome.revision));
        self.inbound = Inbound::new(welcome.store, at, welcome.hold);
        self.inbound.store_outage = welcome.store_state.and_then(StoreOutage::of);
        self.log_store_outage();
    }

    /// The control plane can read its store again, or cannot any more.
    pub(super) fn on_store_state(&mut self, state: StoreState) {
        let before = std::mem::replace(&mut self.inbound.store_outage, StoreOutage::of(state));
        self.log_store_outage();
        if before.is_some() && self.inbound.store_outage.is_none() {
            tracing::info!("the control plane can read its store again");
        }
        if self.inbound.applied {
            self.publish(true);
        }
    }

    fn log_store_outage(&self) {
        if let Some(unread) = self.inbound.store_outage {
            tracing::warn!(
                unread_seconds = unread.age().as_secs(),
                "the control plane cannot read its store: what is served counts as confirmed at its last reading"
            );
        }
    }

    /// Serves what is held, which is what the control plane has: as current where that one can read
    /// its store, and else as long as its last reading is not too long ago.
    fn publish(&self, same_store: bool) {
        let NodeState { cell, status, snapshot, max_age, .. } = &self.node;
        let Some(unread) = self.inbound.store_outage else {
            cell.store(Arc::clone(snapshot));
            status.confirm();
            return;
        };
        status.confirm_as_of(unread.age(), same_store);
        // `Expiry` looks at the clock; it must not find that something expired is served.
        if status.age().is_some_and(|age| Expiry::is_expired(*max_age, age)) {
            cell.store(Arc::new(Snapshot::empty()));
            status.set_expired();
        } else {
            cell.store(Arc::clone(snapshot));
            status.clear_expired();
        }
    }

    /// An operator accepted the store of this stream: its state is taken over, whatever it takes
    /// away.
    pub(super) fn on_accept_store(&mut self) {
        self.inbound.store_accepted = true;
    }

    pub(super) fn on_chunk(&mut self, chunk: Chunk) -> ChunkOutcome {
        let (from, to, last) = (chunk.from, chunk.to, chunk.last);
        if from != self.inbound.next_from {
            return ChunkOutcome::RevisionMismatch { from, held: self.inbound.next_from };
        }
        match self.inbound.assembler.push(chunk) {
            Err(refusals) => self.inbound.errors.extend(refusals),
            Ok(Some(delta)) if self.inbound.errors.is_empty() => {
                let next = Arc::new(self.node.snapshot.apply(&delta));
                if let Some(losses) = self.excessive_losses(&next) {
                    return ChunkOutcome::Held(self.hold_other_store(to, losses));
                }
                self.replace_snapshot(&delta, next);
                self.inbound.assembler.set_revision(to);
                self.inbound.next_from = to;
                return ChunkOutcome::Complete(from_node::Message::Ack(Ack { revision: to }));
            }
            Ok(_) => {}
        }
        if !last {
            return ChunkOutcome::Incomplete;
        }
        let refusals = std::mem::take(&mut self.inbound.errors);
        for refusal in refusals.iter().take(3) {
            tracing::error!(
                revision = to,
                resource = refusal.key.as_ref().map(ToString::to_string).unwrap_or_default(),
                field = refusal.problem.field,
                problem = %refusal.problem,
                "refused a change; serving what was there before"
            );
        }
        self.inbound.applied = false;
        self.node.status.count_rejected_change();
        let refusals = refusals.iter().map(ResourceError::to_wire).collect();
        ChunkOutcome::Complete(from_node::Message::Nack(Nack { revision: to, refusals }))
    }

    /// What the state of another store would take away, if that keeps it from being taken over. A
    /// store that was held once must take nothing away: it may be one that is being filled.
    fn excessive_losses(&mut self, next: &Snapshot) -> Option<Losses> {
        if !self.is_other_store() || self.inbound.store_accepted {
            return None;
        }
        let losses = self.node.snapshot.losses(next);
        let was_held = self.node.held_stores.borrow().contains(&self.inbound.store);
        let holds = if was_held { !losses.is_none() } else { losses.any_majority() };
        if holds && std::mem::take(&mut self.node.accept_new_store) {
            let store = &self.inbound.store;
            tracing::warn!(store, %losses, "the state of another store is taken over (--accept-new-store)");
            return None;
        }
        holds.then_some(losses)
    }

    /// Keeps what is held, and gives the answer that says so.
    fn hold_other_store(&mut self, revision: u64, losses: Losses) -> from_node::Message {
        let serves = self.node.store.clone().unwrap_or_default();
        let held = HeldStore { serves: serves.clone(), offered: self.inbound.store.clone(), losses };
        if self.node.status.held_store().as_deref() != Some(&held) {
            tracing::error!(
                serves,
                offered = held.offered,
                revision,
                "the control plane has another store, which would take away {losses}: nothing of it is taken over, the state of \
                 before is served. If the control plane's settings are wrong (countersign.store.path, deployment.etcd.prefix, \
                 deployment.etcd.host), mend them and restart it. If the new store is meant, accept it: POST \
                 /apisix/admin/dataplanes/accept_store, or restart this node with --accept-new-store"
            );
        }
        self.inbound.applied = false;
        self.node.held_stores.send_if_modified(|stores| {
            if stores.contains(&held.offered) {
                return false;
            }
            stores.push(held.offered.clone());
            stores.drain(..stores.len().saturating_sub(HELD_STORES_MAX));
            true
        });
        self.node.status.set_held_store(held);
        let loss = |loss: model::Loss| Some(push::Loss { gone: loss.lost as u64, total: loss.total as u64 });
        if !self.inbound.supports_hold {
            let problem = format!(
                "another store, which would take away {losses}; restart the node with --accept-new-store"
            );
            let refusals = vec![push::Refusal { key: None, field: "store".to_owned(), problem }];
            return from_node::Message::Nack(Nack { revision, refusals });
        }
        from_node::Message::Hold(Hold {
            revision,
            store: serves,
            kept: self.node.snapshot.revision(),
            sites: loss(losses.sites),
            routes: loss(losses.routes),
            stream_routes: loss(losses.stream_routes),
        })
    }

    fn replace_snapshot(&mut self, delta: &Delta, snapshot: Arc<Snapshot>) {
        let revision = snapshot.revision();
        let foreign = self.is_other_store();
        let foreign_tickets = if foreign { self.inbound.tickets.take() } else { None };
        self.node.store = Some(self.inbound.store.clone());
        let taken = &self.inbound.store;
        self.node.held_stores.send_if_modified(|stores| {
            let before = stores.len();
            stores.retain(|store| store != taken);
            stores.len() != before
        });
        self.node.snapshot = snapshot;
        self.inbound.applied = true;
        self.publish(!foreign);
        self.node.status.set_snapshot(revision, SnapshotSource::ControlPlane);
        if let (Some(secrets), Some(ring)) = (&self.node.secrets, foreign_tickets) {
            secrets.store(Arc::clone(&ring));
            self.node.tickets = Some(ring);
            self.node.status.count_ticket_ring();
        }
        let (changed, removed) = (delta.upserts.len(), delta.removals.len());
        tracing::debug!(revision, changed, removed, "serving a new snapshot");
        self.queue_save(self.inbound.store.clone());
    }

    fn queue_save(&self, store: String) {
        let (snapshot, tickets) = (Arc::clone(&self.node.snapshot), self.node.tickets.clone());
        let confirmed = self.node.status.confirmed_at().map_or(0, unix_seconds);
        self.node.newest.send_replace(Some(Arc::new(SavedState { store, snapshot, tickets, confirmed })));
    }
}

#[cfg(test)]
mod tests {
    use model::{Id, Kind, Versioned};
    use serde_json::json;

    use super::*;

    fn routes(revision: u64, count: u64) -> Snapshot {
        let route = |nth: u64| {
            let document = json!({
                "uri": format!("/{nth}"), "upstream": {"type": "roundrobin", "nodes": {"10.0.0.1:80": 1}},
            });
            let id = Id::parse(&nth.to_string()).unwrap();
            let resource = model::compile(Kind::Route, &id, &document, &pki::Keyring::empty()).unwrap();
            Versioned { version: 1, resource }
        };
        Snapshot::from_resources(revision, (0..count).map(route))
    }

    /// A new process that serves four routes of the store `own`.
    fn intake(held_stores: Vec<String>) -> Applier {
        Applier::new(NodeState {
            cell: Arc::new(SnapshotHandle::new(Arc::default())),
            snapshot: Arc::new(routes(9, 4)),
            secrets: None,
            status: Arc::default(),
            store: Some("own".to_owned()),
            tickets: None,
            newest: watch::channel(None).0,
            held_stores: watch::channel(held_stores).0,
            max_age: Duration::ZERO,
            accept_new_store: false,
        })
    }

    /// A stream of the store begins and brings the whole of a state. Whether it is taken over.
    fn offer(intake: &mut Applier, store: &str, state: &Snapshot) -> bool {
        let welcome =
            Welcome { store: store.to_owned(), revision: state.revision(), hold: true, ..Welcome::default() };
        intake.on_welcome(welcome);
        let (from, to) = (intake.inbound.next_from, state.revision());
        let gone = intake.node.snapshot.versions().map(|(key, _)| key).filter(|key| state.get(key).is_none());
        let upserts = state.resources().cloned().collect();
        let delta = Delta { from, to, upserts, removals: gone.collect() };
        for chunk in model::wire::chunks(&delta, 1 << 20) {
            match intake.on_chunk(chunk) {
                ChunkOutcome::Incomplete => {}
                ChunkOutcome::Complete(answer) => return matches!(answer, from_node::Message::Ack(_)),
                ChunkOutcome::Held(_) => return false,
                ChunkOutcome::RevisionMismatch { from, held } => panic!("{from} and not {held}"),
            }
        }
        panic!("no last chunk")
    }

    #[test]
    fn a_store_that_was_held_must_take_nothing_away() {
        let mut first = intake(Vec::new());
        assert!(!offer(&mut first, "other", &Snapshot::from_resources(3, [])));
        assert!(!offer(&mut first, "third", &Snapshot::from_resources(3, [])));
        // Neither the right store, nor a third one, nor a new process makes it forget.
        assert!(offer(&mut first, "own", &routes(10, 4)));
        assert!(!offer(&mut first, "other", &routes(5, 2)), "half is not taken over");
        let noted = first.node.held_stores.borrow().clone();
        assert_eq!(noted, ["other", "third"]);
        let mut second = intake(noted);
        assert!(!offer(&mut second, "other", &routes(5, 2)));
        assert!(offer(&mut second, "other", &routes(6, 4)));
        assert_eq!(*second.node.held_stores.borrow(), ["third"]);
        let mut fresh = intake(Vec::new());
        assert!(offer(&mut fresh, "other", &routes(5, 2)), "one that was never held");
    }
}
