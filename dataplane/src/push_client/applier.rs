//! Applies the messages of a session: chunks -> delta -> snapshot -> workers, and ticket rings.
//! After the start only this module and `expiry` replace the snapshot of the workers.
//!
//! Invariants: a delta is applied whole or not at all. An invalid one changes nothing, and the
//! versions that follow the next Hello are read from the snapshot itself, so an invalid resource
//! never counts as received. Another store's state is not applied while it would remove most of the
//! snapshot, until an operator accepts that store.

use std::sync::Arc;
use std::time::{Duration, Instant};

use model::wire::{DeltaAssembler, ResourceError};
use model::{Delta, Losses, Snapshot, TicketRing};
use proto::push::{self, Ack, Chunk, Hold, Nack, ResourceVersion, StoreState, Welcome, from_node};
use tokio::sync::watch;

use super::expiry;
use super::last_good::{PendingSave, SavedState, unix_seconds};
use super::sync_status::{HeldStore, SnapshotSource, SyncStatus};
use crate::lifecycle::handles::{SnapshotHandle, TicketRingHandle};
use crate::upstream::client_tls::ClientTlsConfigs;

/// The state of this node, and where its changes go.
pub(super) struct NodeState {
    pub snapshot_handle: Arc<SnapshotHandle>,
    /// The workers have the same one, unless it is too old to be served.
    pub snapshot: Arc<Snapshot>,
    /// What the workers derived from upstreams of the snapshot.
    pub upstream_tls: Arc<ClientTlsConfigs>,
    /// `None`: this node does not resume sessions.
    pub ring_handle: Option<Arc<TicketRingHandle>>,
    pub status: Arc<SyncStatus>,
    /// The store that the revision of the snapshot belongs to; `None`: there is no snapshot yet.
    pub store: Option<String>,
    /// The ring behind `ring_handle`, for the disk.
    pub tickets: Option<Arc<TicketRing>>,
    pub pending_save: watch::Sender<PendingSave>,
    /// Other stores whose state was held instead of applied, also by the process before, the newest
    /// last. Each leaves the list when its state is applied.
    pub held_stores: watch::Sender<Vec<String>>,
    /// `--accept-new-store`: the next state of another store is applied, whatever it removes.
    pub accept_new_store: bool,
    /// A snapshot that no control plane has confirmed for longer is not served. Zero: any is.
    pub max_age: Duration,
}

impl NodeState {
    /// Starts from the content of the last-good file. Without `served` the workers do not get the
    /// snapshot, but a session resumes from it.
    pub(crate) fn restore(&mut self, saved: &SavedState, served: bool) {
        if served {
            self.snapshot_handle.store(Arc::clone(&saved.snapshot));
        }
        if let (Some(handle), Some(ring)) = (&self.ring_handle, &saved.tickets) {
            handle.store(Arc::clone(ring));
            self.tickets = Some(Arc::clone(ring));
        }
        self.snapshot = Arc::clone(&saved.snapshot);
        self.store = Some(saved.store.clone());
    }
}

pub(super) struct Applier {
    node: NodeState,
    inbound: Inbound,
}

const HELD_STORES_MAX: usize = 16;

/// The state of the session's control plane, as far as it has been received.
struct Inbound {
    store: String,
    assembler: DeltaAssembler,
    /// The revision that the next delta must start from.
    next_from: u64,
    /// Of the delta under way; kept until its last chunk, so that one Nack has them all.
    errors: Vec<ResourceError>,
    /// The ring of another store, which is applied together with its state.
    tickets: Option<Arc<TicketRing>>,
    supports_hold: bool,
    /// An operator accepted the store.
    store_accepted: bool,
    /// The node's snapshot is the last state of this session.
    applied: bool,
    /// The control plane cannot read its store now.
    store_outage: Option<StoreOutage>,
}

impl Inbound {
    fn new(store: String, next_from: u64, supports_hold: bool) -> Self {
        Self {
            store,
            assembler: DeltaAssembler::new(next_from),
            next_from,
            errors: Vec::new(),
            tickets: None,
            supports_hold,
            store_accepted: false,
            applied: false,
            store_outage: None,
        }
    }
}

/// The control plane last read its store `age` before the moment `since`.
#[derive(Clone, Copy)]
struct StoreOutage {
    age: Duration,
    since: Instant,
}

impl StoreOutage {
    fn from_state(state: StoreState) -> Option<Self> {
        let age = Duration::from_secs(state.unreadable_seconds?);
        Some(Self { age, since: Instant::now() })
    }

    fn age(self) -> Duration {
        self.age.saturating_add(self.since.elapsed())
    }
}

pub(super) enum ChunkOutcome {
    /// More chunks must follow.
    Incomplete,
    /// The delta is complete; this is the Ack or Nack.
    Complete(from_node::Message),
    /// The delta is complete, comes from another store and is not applied; this is the answer.
    Held(from_node::Message),
    /// The delta does not start from the revision of this node, and only a new session can mend
    /// that.
    RevisionMismatch { from: u64, current: u64 },
}

impl Applier {
    pub(crate) fn new(node: NodeState) -> Self {
        Self { node, inbound: Inbound::new(String::new(), 0, false) }
    }

    pub(crate) fn status(&self) -> &SyncStatus {
        &self.node.status
    }

    /// The store, the revision and the version of each resource of this node.
    pub(crate) fn resource_versions(&self) -> (String, u64, Vec<ResourceVersion>) {
        let snapshot = &self.node.snapshot;
        let versions = snapshot
            .versions()
            .map(|(key, version)| ResourceVersion { key: Some(model::wire::key_to_wire(&key)), version })
            .collect();
        (self.node.store.clone().unwrap_or_default(), snapshot.revision(), versions)
    }

    /// A new session begins: an incomplete delta of an earlier one is discarded.
    pub(crate) fn on_welcome(&mut self, welcome: Welcome) {
        let store = self.node.store.as_deref().unwrap_or_default();
        let current = (store, self.node.snapshot.revision());
        let from = model::wire::first_delta_base(current, (&welcome.store, welcome.revision));
        self.inbound = Inbound::new(welcome.store, from, welcome.hold);
        self.inbound.store_outage = welcome.store_state.and_then(StoreOutage::from_state);
        self.log_store_outage();
    }

    /// The control plane can read its store again, or no longer.
    pub(crate) fn on_store_state(&mut self, state: StoreState) {
        let before = std::mem::replace(&mut self.inbound.store_outage, StoreOutage::from_state(state));
        self.log_store_outage();
        if before.is_some() && self.inbound.store_outage.is_none() {
            tracing::info!("the control plane can read its store again");
        }
        if self.inbound.applied {
            self.publish(true);
        }
    }

    fn log_store_outage(&self) {
        if let Some(outage) = self.inbound.store_outage {
            tracing::warn!(
                last_read_seconds = outage.age().as_secs(),
                "the control plane cannot read its store: the snapshot counts as confirmed at its last reading"
            );
        }
    }

    /// An operator accepted the store of this session: its state is applied, whatever it removes.
    pub(crate) fn on_accept_store(&mut self) {
        self.inbound.store_accepted = true;
    }

    /// Applies a ticket ring at once and saves it, so that a restarted process resumes the sessions
    /// of this one. An invalid ring is ignored and the current one kept, since it must not block
    /// changes of the snapshot.
    pub(crate) fn on_tickets(&mut self, ring: &push::TicketRing) {
        // A node that does not resume sessions keeps no secrets, even if they are sent.
        if self.node.ring_handle.is_none() {
            return;
        }
        let ring = match model::wire::tickets_from_wire(ring) {
            Ok(ring) => Arc::new(ring),
            Err(problem) => {
                tracing::error!(field = problem.field, %problem, "invalid ticket secrets; going on with the current ones");
                return;
            }
        };
        if self.is_other_store() {
            self.inbound.tickets = Some(ring);
            return;
        }
        tracing::info!(secrets = ring.secrets.len(), "applied new ticket secrets");
        self.apply_ring(ring);
        // Without a snapshot there is nothing to save yet; the first save has the ring, too.
        if let Some(store) = &self.node.store {
            self.queue_save(store.clone());
        }
    }

    fn apply_ring(&mut self, ring: Arc<TicketRing>) {
        let Some(handle) = &self.node.ring_handle else { return };
        handle.store(Arc::clone(&ring));
        self.node.tickets = Some(ring);
        self.node.status.count_ticket_ring();
    }

    pub(crate) fn on_chunk(&mut self, chunk: Chunk) -> ChunkOutcome {
        let (from, to, last) = (chunk.from, chunk.to, chunk.last);
        if from != self.inbound.next_from {
            return ChunkOutcome::RevisionMismatch { from, current: self.inbound.next_from };
        }
        match self.inbound.assembler.push(chunk) {
            Err(errors) => self.inbound.errors.extend(errors),
            Ok(Some(delta)) if self.inbound.errors.is_empty() => {
                let started = Instant::now();
                let next = Arc::new(self.node.snapshot.apply(&delta));
                if let Some(losses) = self.excessive_losses(&next) {
                    return ChunkOutcome::Held(self.hold_other_store(to, losses));
                }
                self.replace_snapshot(&delta, next);
                self.node.status.record_apply(started.elapsed());
                self.inbound.assembler.set_revision(to);
                self.inbound.next_from = to;
                return ChunkOutcome::Complete(from_node::Message::Ack(Ack { revision: to }));
            }
            Ok(_) => {}
        }
        if !last {
            return ChunkOutcome::Incomplete;
        }
        let errors = std::mem::take(&mut self.inbound.errors);
        for error in errors.iter().take(3) {
            tracing::error!(
                revision = to,
                resource = error.key.as_ref().map(ToString::to_string).unwrap_or_default(),
                field = error.problem.field,
                problem = %error.problem,
                "rejected a change; serving the snapshot before it"
            );
        }
        self.inbound.applied = false;
        self.node.status.count_rejected_change();
        let errors = errors.iter().map(ResourceError::to_wire).collect();
        ChunkOutcome::Complete(from_node::Message::Nack(Nack { revision: to, errors }))
    }

    /// Whether the session's control plane has another store than the snapshot is from.
    fn is_other_store(&self) -> bool {
        self.node.store.as_ref().is_some_and(|store| *store != self.inbound.store)
    }

    /// The losses that keep another store's state from being applied. The state of a store that was
    /// held before must cause none, since the store may still be filling up.
    fn excessive_losses(&mut self, next: &Snapshot) -> Option<Losses> {
        if !self.is_other_store() || self.inbound.store_accepted {
            return None;
        }
        let losses = self.node.snapshot.losses(next);
        let was_held = self.node.held_stores.borrow().contains(&self.inbound.store);
        let excessive = if was_held { !losses.is_none() } else { losses.any_majority() };
        if excessive && std::mem::take(&mut self.node.accept_new_store) {
            let store = &self.inbound.store;
            tracing::warn!(store, %losses, "the state of another store is applied (--accept-new-store)");
            return None;
        }
        excessive.then_some(losses)
    }

    /// Keeps the snapshot and gives the answer that reports it.
    fn hold_other_store(&mut self, revision: u64, losses: Losses) -> from_node::Message {
        let current = self.node.store.clone().unwrap_or_default();
        let held = HeldStore { current: current.clone(), offered: self.inbound.store.clone(), losses };
        if self.node.status.held_store().as_deref() != Some(&held) {
            tracing::error!(
                current_store = current,
                offered_store = held.offered,
                revision,
                "the control plane has another store, which would remove {losses}: nothing of it is applied, the snapshot from \
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
                "another store, which would remove {losses}; restart the node with --accept-new-store"
            );
            let errors = vec![push::ResourceError { key: None, field: "store".to_owned(), problem }];
            return from_node::Message::Nack(Nack { revision, errors });
        }
        from_node::Message::Hold(Hold {
            revision,
            store: current,
            kept: self.node.snapshot.revision(),
            sites: loss(losses.sites),
            routes: loss(losses.routes),
            stream_routes: loss(losses.stream_routes),
        })
    }

    fn replace_snapshot(&mut self, delta: &Delta, snapshot: Arc<Snapshot>) {
        let revision = snapshot.revision();
        let other_store = self.is_other_store();
        let other_ring = if other_store { self.inbound.tickets.take() } else { None };
        let store = self.inbound.store.clone();
        self.node.held_stores.send_if_modified(|stores| {
            let before = stores.len();
            stores.retain(|held| *held != store);
            stores.len() != before
        });
        self.node.store = Some(store.clone());
        let before = std::mem::replace(&mut self.node.snapshot, snapshot);
        self.inbound.applied = true;
        self.publish(!other_store);
        self.node.upstream_tls.on_snapshot_change(&before, delta, &self.node.snapshot);
        self.node.status.set_snapshot(revision, SnapshotSource::ControlPlane);
        if let Some(ring) = other_ring {
            self.apply_ring(ring);
        }
        let (changed, removed) = (delta.upserts.len(), delta.removals.len());
        tracing::debug!(revision, changed, removed, "serving a new snapshot");
        self.queue_save(store);
    }

    /// Gives the workers the snapshot, which is the one of the control plane. It is current where
    /// the control plane can read its store, else it is as old as the last reading of the store,
    /// and may be too old to be served.
    fn publish(&self, same_store: bool) {
        let NodeState { snapshot_handle, status, snapshot, max_age, .. } = &self.node;
        let Some(outage) = self.inbound.store_outage else {
            snapshot_handle.store(Arc::clone(snapshot));
            status.confirm();
            return;
        };
        status.confirm_as_of(outage.age(), same_store);
        // Decided here, too, so that an expired snapshot is not served until the next check of
        // `Expiry`.
        if status.age().is_some_and(|age| expiry::is_expired(*max_age, age)) {
            snapshot_handle.store(Arc::new(Snapshot::empty()));
            status.set_expired();
        } else {
            snapshot_handle.store(Arc::clone(snapshot));
            status.clear_expired();
        }
    }

    fn queue_save(&self, store: String) {
        let state = SavedState {
            store,
            snapshot: Arc::clone(&self.node.snapshot),
            tickets: self.node.tickets.clone(),
            confirmed_at: self.node.status.confirmed_at().map_or(0, unix_seconds),
        };
        self.node.pending_save.send_replace(Some(Arc::new(state)));
    }
}

#[cfg(test)]
mod tests {
    use model::{Id, Kind, Versioned};
    use serde_json::json;

    use super::*;
    use crate::tls::record::RecordLayerKind;
    use crate::tls::site_config;
    use crate::upstream::client_tls::TrustDefaults;

    fn routes(revision: u64, count: u64) -> Snapshot {
        let route = |number: u64| {
            let document = json!({
                "uri": format!("/{number}"), "upstream": {"type": "roundrobin", "nodes": {"10.0.0.1:80": 1}},
            });
            let id = Id::parse(&number.to_string()).unwrap();
            let resource = model::compile(Kind::Route, &id, &document, &pki::Keyring::empty()).unwrap();
            Versioned { version: 1, resource }
        };
        Snapshot::from_resources(revision, (0..count).map(route))
    }

    /// A new process that serves four routes of the store `own`.
    fn applier(held_stores: Vec<String>) -> Applier {
        Applier::new(NodeState {
            snapshot_handle: Arc::new(SnapshotHandle::new(Arc::default())),
            snapshot: Arc::new(routes(9, 4)),
            upstream_tls: Arc::new(ClientTlsConfigs::new(
                Arc::new(site_config::crypto_provider()),
                TrustDefaults::default(),
                RecordLayerKind::Rustls,
            )),
            ring_handle: None,
            status: Arc::default(),
            store: Some("own".to_owned()),
            tickets: None,
            pending_save: watch::channel(None).0,
            held_stores: watch::channel(held_stores).0,
            max_age: Duration::ZERO,
            accept_new_store: false,
        })
    }

    /// Begins a session of the store and sends the whole state. Gives whether it was applied.
    fn offer(applier: &mut Applier, store: &str, state: &Snapshot) -> bool {
        let welcome =
            Welcome { store: store.to_owned(), revision: state.revision(), hold: true, ..Welcome::default() };
        applier.on_welcome(welcome);
        let (from, to) = (applier.inbound.next_from, state.revision());
        let gone =
            applier.node.snapshot.versions().map(|(key, _)| key).filter(|key| state.get(key).is_none());
        let upserts = state.resources().cloned().collect();
        let delta = Delta { from, to, upserts, removals: gone.collect() };
        for chunk in model::wire::chunks(&delta, 1 << 20) {
            match applier.on_chunk(chunk) {
                ChunkOutcome::Incomplete => {}
                ChunkOutcome::Complete(answer) => return matches!(answer, from_node::Message::Ack(_)),
                ChunkOutcome::Held(_) => return false,
                ChunkOutcome::RevisionMismatch { from, current } => panic!("{from} and not {current}"),
            }
        }
        panic!("no last chunk")
    }

    #[test]
    fn a_store_that_was_held_must_remove_nothing() {
        let mut first = applier(Vec::new());
        assert!(!offer(&mut first, "other", &Snapshot::from_resources(3, [])));
        assert!(!offer(&mut first, "third", &Snapshot::from_resources(3, [])));
        // Neither the own store, nor a third one, nor a new process clears the list.
        assert!(offer(&mut first, "own", &routes(10, 4)));
        assert!(!offer(&mut first, "other", &routes(5, 2)), "a half is not applied");
        let held = first.node.held_stores.borrow().clone();
        assert_eq!(held, ["other", "third"]);
        let mut second = applier(held);
        assert!(!offer(&mut second, "other", &routes(5, 2)));
        assert!(offer(&mut second, "other", &routes(6, 4)));
        assert_eq!(*second.node.held_stores.borrow(), ["third"]);
        let mut fresh = applier(Vec::new());
        assert!(offer(&mut fresh, "other", &routes(5, 2)), "a store that was never held");
    }
}
