//! What the agent knows of itself, for `/status`, `/metrics` and the log: what is served and how
//! old it is, who serves it, what is held. Written by the agent, read by anybody; reading takes no
//! lock.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwapOption;
use model::Losses;
use tokio::sync::watch;

/// Where the snapshot in the cell came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum SnapshotSource {
    /// There is none.
    None = 0,
    /// The file of the process before.
    LastGood = 1,
    /// A control plane, in this process's life.
    ControlPlane = 2,
}

impl SnapshotSource {
    /// `none`, `last_good`, `control_plane`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::LastGood => "last_good",
            Self::ControlPlane => "control_plane",
        }
    }
}

/// The state of another store than the one whose state is served, which is not taken over because
/// it would take most of that away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldStore {
    /// The store whose state is served.
    pub serves: String,
    /// The store that the control plane has.
    pub offered: String,
    /// What its state would take away.
    pub losses: Losses,
}

/// When a control plane last confirmed what is held.
#[derive(Debug, Clone, Copy)]
struct Confirmation {
    wall: SystemTime,
    /// The age that was known at the moment `since`.
    age: Duration,
    since: Instant,
}

impl HeldStore {
    /// As `/status` shows it.
    pub fn to_json(&self) -> serde_json::Value {
        let loss = |loss: model::Loss| serde_json::json!({"gone": loss.lost, "total": loss.total});
        let Losses { sites, routes, stream_routes } = self.losses;
        serde_json::json!({
            "serves": self.serves, "offered": self.offered,
            "sites": loss(sites), "routes": loss(routes), "stream_routes": loss(stream_routes),
        })
    }
}

impl Confirmation {
    /// A clock that is set back makes nothing younger, and one that jumps ahead (a suspended
    /// machine) makes it older.
    fn age(&self) -> Duration {
        let by_wall = SystemTime::now().duration_since(self.wall).unwrap_or_default();
        by_wall.max(self.age.saturating_add(self.since.elapsed()))
    }
}

/// The agent's state, as of now.
#[derive(Default)]
pub struct SyncStatus {
    connected: AtomicBool,
    revision: AtomicU64,
    source: AtomicU8,
    applied: AtomicU64,
    rejected: AtomicU64,
    rings: AtomicU64,
    problem: ArcSwapOption<String>,
    control_plane: ArcSwapOption<String>,
    /// What is held is what a connected control plane has.
    current: AtomicBool,
    confirmed: ArcSwapOption<Confirmation>,
    expired: AtomicBool,
    waiting: AtomicBool,
    held: ArcSwapOption<HeldStore>,
    changes: watch::Sender<u64>,
}

impl SyncStatus {
    /// Whether a control plane has welcomed us and its stream is open.
    pub fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Acquire)
    }

    /// The revision in the cell; 0: none.
    pub fn revision(&self) -> u64 {
        self.revision.load(Ordering::Acquire)
    }

    /// Where it came from.
    pub fn source(&self) -> SnapshotSource {
        match self.source.load(Ordering::Acquire) {
            1 => SnapshotSource::LastGood,
            2 => SnapshotSource::ControlPlane,
            _ => SnapshotSource::None,
        }
    }

    /// Whether there is a snapshot to serve, possibly an empty one of a control plane that has
    /// nothing yet, and connections are accepted.
    pub fn is_ready(&self) -> bool {
        self.readiness().is_ok()
    }

    /// Why it is not ready, for a person.
    ///
    /// # Errors
    /// The reason.
    pub fn readiness(&self) -> Result<(), &'static str> {
        if self.source() == SnapshotSource::None {
            Err("this data plane has not received configuration")
        } else if self.is_expired() {
            Err(
                "no control plane has confirmed what this data plane serves for countersign.node.last_good_max_age",
            )
        } else if self.waiting.load(Ordering::Acquire) {
            Err("this data plane waits for a control plane (countersign.node.wait_for_control_plane)")
        } else {
            Ok(())
        }
    }

    /// Whether what is held is what a connected control plane has.
    pub fn is_current(&self) -> bool {
        self.current.load(Ordering::Acquire)
    }

    /// How long ago a control plane last confirmed what is held: zero while one does. `None`:
    /// nothing is held.
    pub fn age(&self) -> Option<Duration> {
        if self.is_current() {
            return Some(Duration::ZERO);
        }
        self.confirmed.load().as_deref().map(Confirmation::age)
    }

    /// When a control plane last confirmed what is held: now while one does.
    pub fn confirmed_at(&self) -> Option<SystemTime> {
        if self.is_current() {
            return Some(SystemTime::now());
        }
        self.confirmed.load().as_deref().map(|confirmed| confirmed.wall)
    }

    /// Whether what is held is older than `countersign.node.last_good_max_age`, and not served.
    pub fn is_expired(&self) -> bool {
        self.expired.load(Ordering::Acquire)
    }

    /// The other store whose state is not taken over.
    pub fn held_store(&self) -> Option<Arc<HeldStore>> {
        self.held.load_full()
    }

    /// Until `false` is set, [`Self::ready`] answers no.
    pub fn set_waiting(&self, waiting: bool) {
        self.waiting.store(waiting, Ordering::Release);
        self.notify();
    }

    /// Changes taken over since the start.
    pub fn applied_changes(&self) -> u64 {
        self.applied.load(Ordering::Relaxed)
    }

    /// Changes refused since the start.
    pub fn rejected_changes(&self) -> u64 {
        self.rejected.load(Ordering::Relaxed)
    }

    /// Rings of ticket secrets taken over since the start.
    pub fn applied_ticket_rings(&self) -> u64 {
        self.rings.load(Ordering::Acquire)
    }

    /// What last went wrong, while it is not mended.
    pub fn last_problem(&self) -> Option<Arc<String>> {
        self.problem.load_full()
    }

    /// The control plane (`host:port`) of the open stream, or of the last one.
    pub fn control_plane(&self) -> Option<Arc<String>> {
        self.control_plane.load_full()
    }

    /// Says that something of the above changed. For waiting without polling; not for the hot path.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn notify(&self) {
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
    }

    pub(super) fn set_connected(&self, control_plane: &str) {
        self.control_plane.store(Some(Arc::new(control_plane.to_owned())));
        self.problem.store(None);
        self.connected.store(true, Ordering::Release);
        self.notify();
    }

    pub(super) fn set_disconnected(&self) {
        self.connected.store(false, Ordering::Release);
        self.clear_current();
        self.notify();
    }

    /// A connected control plane has what is held, which is served.
    pub(super) fn confirm(&self) {
        self.current.store(true, Ordering::Release);
        self.expired.store(false, Ordering::Release);
        self.held.store(None);
        self.notify();
    }

    /// A connected control plane had what is held so long ago, and cannot read its store since.
    /// `same_store`: what was known of the state before counts for this one, which is as new or
    /// newer.
    pub(super) fn confirm_as_of(&self, age: Duration, same_store: bool) {
        let was_current = self.current.swap(false, Ordering::AcqRel);
        let known = self.confirmed.load().as_deref().map(Confirmation::age);
        if was_current || !same_store || known.is_none_or(|known| age < known) {
            let at = SystemTime::now().checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH);
            self.set_confirmation(at, age);
        }
        self.held.store(None);
        self.notify();
    }

    /// What is held is served again.
    pub(super) fn clear_expired(&self) {
        self.expired.store(false, Ordering::Release);
        self.notify();
    }

    /// What was read from the disk is so old. `confirmed` is when a control plane last confirmed
    /// it.
    pub(super) fn set_confirmation(&self, confirmed: SystemTime, age: Duration) {
        let confirmed = Confirmation { wall: confirmed, age, since: Instant::now() };
        self.confirmed.store(Some(Arc::new(confirmed)));
    }

    pub(super) fn set_expired(&self) {
        self.expired.store(true, Ordering::Release);
        self.notify();
    }

    pub(super) fn set_held_store(&self, held: HeldStore) {
        self.clear_current();
        self.held.store(Some(Arc::new(held)));
        self.notify();
    }

    fn clear_current(&self) {
        if self.current.swap(false, Ordering::AcqRel) {
            self.set_confirmation(SystemTime::now(), Duration::ZERO);
        }
    }

    pub(super) fn set_snapshot(&self, revision: u64, source: SnapshotSource) {
        self.revision.store(revision, Ordering::Release);
        self.source.store(source as u8, Ordering::Release);
        if source == SnapshotSource::ControlPlane {
            self.applied.fetch_add(1, Ordering::Relaxed);
        }
        self.notify();
    }

    pub(super) fn count_ticket_ring(&self) {
        self.rings.fetch_add(1, Ordering::AcqRel);
        self.notify();
    }

    pub(super) fn count_rejected_change(&self) {
        self.rejected.fetch_add(1, Ordering::Relaxed);
        self.clear_current();
        self.notify();
    }

    pub(super) fn set_problem(&self, problem: Option<String>) {
        self.problem.store(problem.map(Arc::new));
        self.notify();
    }
}
