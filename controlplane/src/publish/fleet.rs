//! The connected data planes and the revisions they serve: one entry for each, written by its
//! session, read by `GET /apisix/admin/dataplanes`.
//!
//! Acknowledgements and rejections are all that flows back over the push; they end here. Bounded: a
//! node that disconnects is kept for an hour, and at most a thousand of them.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use data_encoding::HEXUPPER;
use model::Snapshot;
use mtls::days_left;
use prometheus_client::registry::Registry;
use rustls_pki_types::UnixTime;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::metrics::{FleetMetrics, FleetSummary, NodeState};

const DISCONNECTED_TTL: Duration = Duration::from_secs(3600);
const DISCONNECTED_MAX: usize = 1000;
/// Errors kept of one rejected delta: a broken CA in ten thousand ssls is one problem.
const ERRORS_MAX: usize = 20;

/// All data planes that are connected, or were within the last hour.
pub struct Fleet {
    latest: watch::Receiver<Arc<Snapshot>>,
    nodes: Mutex<HashMap<NodeKey, NodeEntry>>,
    /// Counts changes, so that waiters need not poll.
    changes: watch::Sender<u64>,
    metrics: FleetMetrics,
}

/// A node is identified by its name and one process's life: nodes that share a certificate stay
/// apart.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct NodeKey {
    name: String,
    instance: String,
}

struct NodeEntry {
    /// The session that may write here; a replaced session may not.
    session: u64,
    address: SocketAddr,
    version: String,
    certificate: Option<NodeCertificate>,
    disconnected_at: Option<Instant>,
    draining: bool,
    acknowledged: u64,
    /// The rollback epoch of the acknowledged revision.
    rollback_epoch: u64,
    acknowledged_at: Option<u64>,
    /// When the oldest change was sent that it has not acknowledged.
    sent_at: Option<Instant>,
    last_nack: Option<NackView>,
    held: Option<HoldView>,
}

/// The response of `GET /apisix/admin/dataplanes`.
#[derive(Debug, Clone, Serialize)]
pub struct FleetView {
    /// Sorted by name, then instance.
    pub list: Vec<NodeView>,
    pub total: usize,
    pub revision: u64,
}

#[derive(Debug, Clone, Serialize)]
pub struct NodeView {
    /// Stable over restarts; the node's certificate carries it.
    pub name: String,
    /// One process's life.
    pub instance: String,
    pub address: String,
    pub version: String,
    pub certificate: Option<NodeCertificate>,
    pub connected: bool,
    /// Whether its process has had a stop signal and is draining.
    pub draining: bool,
    /// The revision that it acknowledged last; 0: none of this store.
    pub acknowledged: u64,
    pub acknowledged_at: Option<u64>,
    /// Revisions behind the newest; `null` for a disconnected node, which another control plane may
    /// serve.
    pub lag: Option<u64>,
    /// The last change that it rejected, until it acknowledges a newer one.
    pub last_nack: Option<NackView>,
    /// Set while it serves another store's state and holds.
    pub held: Option<HoldView>,
}

/// A connected node, as reported to the other control planes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ConnectedNode {
    pub name: String,
    /// One process's life.
    pub instance: String,
    /// The acknowledged revision; `None`: none of this rollback epoch.
    pub acknowledged: Option<u64>,
}

/// A node's certificate, in the terms of the deny-list.
#[derive(Debug, Clone, Serialize)]
pub struct NodeCertificate {
    /// Upper-case hexadecimal.
    pub serial: String,
    /// SHA-256 of the SubjectPublicKeyInfo, upper-case hexadecimal.
    pub spki_sha256: String,
    /// Unix seconds of the earliest notAfter of its path, when its session ends.
    pub not_after: u64,
    /// Whole days until then; negative after it.
    pub days_left: i64,
}

impl NodeCertificate {
    /// For a verified leaf whose path expires at `expires`.
    pub(super) fn new(leaf: &pki::Certificate, expires: UnixTime) -> Self {
        Self {
            serial: leaf.serial_hex(),
            spki_sha256: HEXUPPER.encode(leaf.spki_sha256()),
            not_after: expires.as_secs(),
            days_left: days_left(expires.as_secs(), UnixTime::now()),
        }
    }

    fn as_of_now(&self) -> Self {
        Self { days_left: days_left(self.not_after, UnixTime::now()), ..self.clone() }
    }
}

/// A rejected change.
#[derive(Debug, Clone, Serialize)]
pub struct NackView {
    /// The revision that the change leads to.
    pub revision: u64,
    /// The first twenty errors.
    pub errors: Vec<ResourceErrorView>,
}

/// An invalid resource of a rejected change.
#[derive(Debug, Clone, Serialize)]
pub struct ResourceErrorView {
    /// `ssls/1`; empty when the node does not know.
    pub resource: String,
    /// Dotted path inside it; empty for the whole.
    pub field: String,
    pub problem: String,
}

/// The state that a node holds, and what this store's state would remove.
#[derive(Debug, Clone, Serialize)]
pub struct HoldView {
    /// The store whose state the node serves.
    pub store: String,
    pub revision: u64,
    /// Sites that this store lacks.
    pub sites: LossView,
    pub routes: LossView,
    pub stream_routes: LossView,
}

/// The loss of one kind of resource.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct LossView {
    pub gone: u64,
    pub total: u64,
}

impl fmt::Display for LossView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.gone, self.total)
    }
}

impl fmt::Display for HoldView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { store, revision, sites, routes, stream_routes } = self;
        write!(
            f,
            "it serves revision {revision} of the store {store}, of which this store lacks {sites} sites, {routes} routes and \
             {stream_routes} stream routes"
        )
    }
}

/// The node of a new session.
pub(super) struct NodeInfo {
    pub name: String,
    pub instance: String,
    pub version: String,
    pub address: SocketAddr,
    pub certificate: Option<NodeCertificate>,
}

/// One session's access to its node's entry; dropping it marks the node as disconnected.
pub(super) struct NodeRegistration {
    fleet: Arc<Fleet>,
    key: NodeKey,
    session: u64,
}

impl Fleet {
    pub(super) fn new(latest: watch::Receiver<Arc<Snapshot>>) -> Self {
        let changes = watch::Sender::new(0);
        Self { latest, nodes: Mutex::default(), changes, metrics: FleetMetrics::default() }
    }

    pub fn view(&self) -> FleetView {
        let revision = self.latest.borrow().revision();
        let mut list: Vec<NodeView> =
            self.lock().iter().map(|(key, entry)| entry.view(key, revision)).collect();
        list.sort_by(|one, other| (&one.name, &one.instance).cmp(&(&other.name, &other.instance)));
        FleetView { total: list.len(), list, revision }
    }

    /// The newest revision of the store that is known here.
    pub(super) fn revision(&self) -> u64 {
        self.latest.borrow().revision()
    }

    /// How many nodes are connected.
    pub fn connected_count(&self) -> usize {
        self.lock().values().filter(|entry| entry.disconnected_at.is_none()).count()
    }

    /// Adds the fleet's metrics.
    pub fn register_metrics(self: &Arc<Self>, registry: &mut Registry) {
        let fleet = Arc::clone(self);
        self.metrics.register(registry, move || fleet.summary());
    }

    /// What the metrics show of the nodes.
    fn summary(&self) -> FleetSummary {
        let latest = Arc::clone(&self.latest.borrow());
        let (epoch, newest) = (latest.rollback_epoch(), latest.revision());
        let mut summary = FleetSummary::default();
        for (key, entry) in self.lock().iter() {
            let acknowledged = entry.acknowledged_revision(epoch);
            let state = entry.state(acknowledged == Some(newest));
            summary.count(state);
            if matches!(state, NodeState::Disconnected | NodeState::Draining) {
                continue;
            }
            let revisions = acknowledged.map_or(0, |acknowledged| newest.saturating_sub(acknowledged));
            let age = entry.sent_at.map_or(Duration::ZERO, |sent| sent.elapsed());
            summary.add_lag(revisions, age);
            if let Some(certificate) = &entry.certificate {
                summary.add_certificate(&key.name, certificate.not_after);
            }
        }
        summary
    }

    /// The connected nodes, those with the oldest revision first: at most `most`, and their total
    /// number. Acknowledgements from before the store was set back do not count.
    pub(super) fn connected(&self, most: usize) -> (Vec<ConnectedNode>, usize) {
        let rollback_epoch = self.latest.borrow().rollback_epoch();
        let nodes = self.lock();
        let mut connected: Vec<_> = nodes
            .iter()
            .filter(|(_, entry)| entry.disconnected_at.is_none())
            .map(|(key, entry)| (entry.acknowledged_revision(rollback_epoch), key))
            .collect();
        connected
            .sort_by(|(one, a), (other, b)| (one, &a.name, &a.instance).cmp(&(other, &b.name, &b.instance)));
        let total = connected.len();
        let oldest = connected.into_iter().take(most).map(|(acknowledged, key)| ConnectedNode {
            name: key.name.clone(),
            instance: key.instance.clone(),
            acknowledged,
        });
        (oldest.collect(), total)
    }

    /// The names of the connected nodes, in order: at most `most`, and whether there are more.
    pub(super) fn connected_names(&self, most: usize) -> (BTreeSet<String>, bool) {
        let nodes = self.lock();
        let connected = nodes.iter().filter(|(_, entry)| entry.disconnected_at.is_none());
        let mut names: BTreeSet<String> = connected.map(|(key, _)| key.name.clone()).collect();
        drop(nodes);
        let more = names.len() > most;
        while names.len() > most {
            names.pop_last();
        }
        (names, more)
    }

    /// Changes whenever a node connects, disconnects, acknowledges or rejects.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Waits until every connected node, and at least one, has acknowledged `revision`.
    ///
    /// # Errors
    /// The view, when `timeout` has passed.
    pub async fn wait_acknowledged(&self, revision: u64, timeout: Duration) -> Result<FleetView, FleetView> {
        let mut changes = self.changes.subscribe();
        let reached = async {
            loop {
                changes.borrow_and_update();
                if let Some(view) = self.view_if_reached(revision) {
                    return view;
                }
                if changes.changed().await.is_err() {
                    // Unreachable, because `self` owns the sender; waiting is right in either case.
                    std::future::pending::<()>().await;
                }
            }
        };
        tokio::time::timeout(timeout, reached).await.map_err(|_| self.view())
    }

    fn view_if_reached(&self, revision: u64) -> Option<FleetView> {
        let rollback_epoch = self.latest.borrow().rollback_epoch();
        let reached = |entry: &NodeEntry| {
            entry.acknowledged_revision(rollback_epoch).is_some_and(|reached| reached >= revision)
        };
        let nodes = self.lock();
        let mut connected = nodes.values().filter(|entry| entry.disconnected_at.is_none()).peekable();
        let all = connected.peek().is_some() && connected.all(reached);
        drop(nodes);
        all.then(|| self.view())
    }

    /// Registers a node whose session is authorized.
    pub(super) fn register(self: &Arc<Self>, node: NodeInfo) -> NodeRegistration {
        let key = NodeKey { name: node.name, instance: node.instance };
        let mut nodes = self.lock();
        evict(&mut nodes, &key);
        let session = nodes.get(&key).map_or(0, |entry| entry.session + 1);
        let entry = NodeEntry {
            session,
            address: node.address,
            version: node.version,
            certificate: node.certificate,
            disconnected_at: None,
            draining: false,
            acknowledged: 0,
            rollback_epoch: 0,
            acknowledged_at: None,
            sent_at: None,
            last_nack: None,
            held: None,
        };
        nodes.insert(key.clone(), entry);
        drop(nodes);
        self.changed();
        NodeRegistration { fleet: Arc::clone(self), key, session }
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// A panic cannot leave an entry half written, so a poisoned lock is still consistent.
    fn lock(&self) -> MutexGuard<'_, HashMap<NodeKey, NodeEntry>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl NodeRegistration {
    /// A change is on its way to the node.
    pub(super) fn record_sent(&self) {
        self.change(|entry| _ = entry.sent_at.get_or_insert_with(Instant::now));
    }

    /// The node serves this snapshot now.
    pub(super) fn record_ack(&self, snapshot: &Snapshot) {
        self.update(|entry| {
            entry.sent_at = None;
            entry.acknowledged = snapshot.revision();
            entry.rollback_epoch = snapshot.rollback_epoch();
            entry.acknowledged_at =
                SystemTime::now().duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs());
            entry.last_nack = None;
            entry.held = None;
        });
    }

    /// The node rejected the change to `revision`.
    pub(super) fn record_nack(&self, revision: u64, mut errors: Vec<ResourceErrorView>) {
        self.fleet.metrics.count_rejection(errors.first().map(|error| error.resource.as_str()));
        errors.truncate(ERRORS_MAX);
        self.update(|entry| entry.last_nack = Some(NackView { revision, errors }));
    }

    pub(super) fn record_draining(&self) {
        self.update(|entry| entry.draining = true);
    }

    /// The node holds another store's state.
    pub(super) fn record_hold(&self, hold: HoldView) {
        self.fleet.metrics.count_hold();
        self.update(|entry| entry.held = Some(hold));
    }

    fn update(&self, change: impl FnOnce(&mut NodeEntry)) {
        self.change(change);
        self.fleet.changed();
    }

    /// Changes what no waiter waits for.
    fn change(&self, change: impl FnOnce(&mut NodeEntry)) {
        if let Some(entry) = self.fleet.lock().get_mut(&self.key)
            && entry.session == self.session
        {
            change(entry);
        }
    }
}

impl Drop for NodeRegistration {
    fn drop(&mut self) {
        self.update(|entry| entry.disconnected_at = Some(Instant::now()));
    }
}

impl NodeEntry {
    /// The acknowledged revision of this rollback epoch. An empty store has revision 0, which
    /// differs from no acknowledgement, and a revision from before the store was set back does not
    /// count.
    fn acknowledged_revision(&self, rollback_epoch: u64) -> Option<u64> {
        (self.acknowledged_at.is_some() && self.rollback_epoch == rollback_epoch).then_some(self.acknowledged)
    }

    /// The first of the states that applies.
    fn state(&self, has_newest: bool) -> NodeState {
        if self.disconnected_at.is_some() {
            NodeState::Disconnected
        } else if self.draining {
            NodeState::Draining
        } else if self.held.is_some() {
            NodeState::Holding
        } else if self.last_nack.is_some() {
            NodeState::Rejecting
        } else if has_newest {
            NodeState::Current
        } else {
            NodeState::Behind
        }
    }

    fn view(&self, key: &NodeKey, newest: u64) -> NodeView {
        NodeView {
            name: key.name.clone(),
            instance: key.instance.clone(),
            address: self.address.to_string(),
            version: self.version.clone(),
            certificate: self.certificate.as_ref().map(NodeCertificate::as_of_now),
            connected: self.disconnected_at.is_none(),
            draining: self.draining && self.disconnected_at.is_none(),
            acknowledged: self.acknowledged,
            acknowledged_at: self.acknowledged_at,
            lag: self.disconnected_at.is_none().then(|| newest.abs_diff(self.acknowledged)),
            last_nack: self.last_nack.clone(),
            held: self.held.clone(),
        }
    }
}

/// Evicts nodes that disconnected long ago, earlier lives of the same node, and the oldest beyond
/// the bound.
fn evict(nodes: &mut HashMap<NodeKey, NodeEntry>, joining: &NodeKey) {
    nodes.retain(|key, entry| match entry.disconnected_at {
        None => true,
        Some(since) => since.elapsed() < DISCONNECTED_TTL && key.name != joining.name,
    });
    let mut gone: Vec<(Instant, NodeKey)> = nodes
        .iter()
        .filter_map(|(key, entry)| entry.disconnected_at.map(|since| (since, key.clone())))
        .collect();
    if gone.len() > DISCONNECTED_MAX {
        gone.sort_by_key(|(since, _)| *since);
        let surplus = gone.len() - DISCONNECTED_MAX;
        for (_, key) in gone.into_iter().take(surplus) {
            nodes.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use model::Delta;

    use super::*;

    fn fleet() -> Arc<Fleet> {
        let (_, latest) = watch::channel(Arc::new(Snapshot::empty()));
        Arc::new(Fleet::new(latest))
    }

    fn at(revision: u64) -> Snapshot {
        Snapshot::from_resources(revision, [])
    }

    fn joining(name: &str, instance: &str) -> NodeInfo {
        NodeInfo {
            name: name.into(),
            instance: instance.into(),
            version: "0".into(),
            address: ([127, 0, 0, 1], 1).into(),
            certificate: None,
        }
    }

    #[test]
    fn a_disconnected_node_is_kept_until_it_reconnects() {
        let fleet = fleet();
        drop(fleet.register(joining("a", "1")));
        let gone = &fleet.view().list[0];
        assert_eq!((gone.connected, gone.lag), (false, None), "another control plane may serve it");
        let _second = fleet.register(joining("a", "2"));
        let view = fleet.view();
        assert_eq!((view.total, view.list[0].instance.as_str(), view.list[0].connected), (1, "2", true));
    }

    #[test]
    fn a_node_drains_until_it_disconnects() {
        let fleet = fleet();
        let node = fleet.register(joining("a", "1"));
        assert!(!fleet.view().list[0].draining);
        node.record_draining();
        assert!(fleet.view().list[0].draining);
        drop(node);
        assert!(!fleet.view().list[0].draining);
    }

    #[test]
    fn a_replaced_session_cannot_write() {
        let fleet = fleet();
        let old = fleet.register(joining("a", "1"));
        let new = fleet.register(joining("a", "1"));
        new.record_ack(&at(7));
        old.record_ack(&at(3));
        drop(old);
        let node = fleet.view().list[0].clone();
        assert_eq!((node.acknowledged, node.connected), (7, true));
    }

    #[tokio::test]
    async fn a_wait_ends_with_the_last_acknowledgement() {
        let fleet = fleet();
        let alone = fleet.wait_acknowledged(1, Duration::ZERO).await;
        assert!(alone.is_err(), "no node at all is not everybody");
        let timeout = Duration::from_secs(20);
        let (a, b) = (fleet.register(joining("a", "1")), fleet.register(joining("b", "1")));
        assert!(fleet.wait_acknowledged(0, Duration::ZERO).await.is_err(), "no node has acknowledged yet");
        a.record_ack(&at(2));
        let waiting = tokio::spawn({
            let fleet = Arc::clone(&fleet);
            async move { fleet.wait_acknowledged(2, timeout).await }
        });
        b.record_nack(
            2,
            vec![ResourceErrorView { resource: "ssls/1".into(), field: "cert".into(), problem: "x".into() }],
        );
        b.record_ack(&at(2));
        let view = waiting.await.unwrap().unwrap();
        assert!(view.list.iter().all(|node| node.acknowledged == 2 && node.last_nack.is_none()));
    }
    #[tokio::test]
    async fn an_acknowledgement_before_a_rollback_does_not_count() {
        let (sender, latest) = watch::channel(Arc::new(at(9)));
        let fleet = Arc::new(Fleet::new(latest));
        let node = fleet.register(joining("a", "1"));
        node.record_ack(&at(9));
        assert!(fleet.wait_acknowledged(5, Duration::ZERO).await.is_ok());
        let set_back = Arc::new(at(9).apply(&Delta { from: 9, to: 4, ..Delta::default() }));
        sender.send_replace(Arc::clone(&set_back));
        let view = fleet.wait_acknowledged(4, Duration::ZERO).await.unwrap_err();
        assert_eq!((view.revision, view.list[0].lag), (4, Some(5)));
        node.record_ack(&set_back);
        assert!(fleet.wait_acknowledged(4, Duration::ZERO).await.is_ok());
    }
}
