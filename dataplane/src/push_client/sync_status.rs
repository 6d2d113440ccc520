//! The status of the push client for `/status`, `/metrics` and the log: the snapshot and its age,
//! the control plane, a held store. The push client writes it; reading takes no lock.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwapOption;
use model::Losses;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;
use tokio::sync::watch;

use super::last_good::unix_seconds;
use crate::observability::metrics::counter::Counter;
use crate::observability::metrics::histogram::Histogram;
use crate::observability::metrics::{encode_counter, encode_family, encode_histogram};

/// The origin of the snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum SnapshotSource {
    /// There is no snapshot yet.
    None = 0,
    LastGood = 1,
    ControlPlane = 2,
}

impl SnapshotSource {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::LastGood => "last_good",
            Self::ControlPlane => "control_plane",
        }
    }
}

/// Another store whose state is not applied, since it would remove most of the snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldStore {
    /// The store whose state is served.
    pub current: String,
    /// The store of the control plane.
    pub offered: String,
    /// Of the offered state.
    pub losses: Losses,
}

/// When a control plane last confirmed the snapshot.
#[derive(Debug, Clone, Copy)]
struct Confirmation {
    wall: SystemTime,
    /// The age of the confirmation at the moment `since`.
    age: Duration,
    since: Instant,
}

impl HeldStore {
    /// As `/status` shows it.
    pub fn to_json(&self) -> serde_json::Value {
        let loss = |loss: model::Loss| serde_json::json!({"gone": loss.lost, "total": loss.total});
        let Losses { sites, routes, stream_routes } = self.losses;
        serde_json::json!({
            "current": self.current, "offered": self.offered,
            "sites": loss(sites), "routes": loss(routes), "stream_routes": loss(stream_routes),
        })
    }
}

impl Confirmation {
    /// A clock that is set back does not lower the age, and one that jumps ahead (a suspended
    /// machine) raises it.
    fn age(&self) -> Duration {
        let by_wall = SystemTime::now().duration_since(self.wall).unwrap_or_default();
        by_wall.max(self.age.saturating_add(self.since.elapsed()))
    }
}

#[derive(Default)]
pub struct SyncStatus {
    connected: AtomicBool,
    revision: AtomicU64,
    source: AtomicU8,
    applied: AtomicU64,
    rejected: AtomicU64,
    rings: AtomicU64,
    apply_duration: Histogram,
    /// Of the last-good file; 0: there is none.
    saved_revision: AtomicU64,
    /// When this process last saved it, in seconds since 1970; 0: not yet.
    saved_at: AtomicU64,
    save_failures: Counter,
    last_error: ArcSwapOption<String>,
    control_plane: ArcSwapOption<String>,
    /// A connected control plane has exactly this snapshot.
    current: AtomicBool,
    confirmed: ArcSwapOption<Confirmation>,
    expired: AtomicBool,
    waiting: AtomicBool,
    held: ArcSwapOption<HeldStore>,
    changes: watch::Sender<u64>,
}

impl SyncStatus {
    /// Whether a session with a control plane is open.
    pub fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Acquire)
    }

    /// The revision of the snapshot; 0: there is none.
    pub fn revision(&self) -> u64 {
        self.revision.load(Ordering::Acquire)
    }

    pub fn source(&self) -> SnapshotSource {
        match self.source.load(Ordering::Acquire) {
            1 => SnapshotSource::LastGood,
            2 => SnapshotSource::ControlPlane,
            _ => SnapshotSource::None,
        }
    }

    /// Whether there is a snapshot to serve, possibly an empty one, and connections are accepted.
    pub fn is_ready(&self) -> bool {
        self.readiness().is_ok()
    }

    /// # Errors
    /// Why the data plane is not ready, for `/status/ready`.
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

    /// Whether a connected control plane has exactly this snapshot.
    pub fn is_current(&self) -> bool {
        self.current.load(Ordering::Acquire)
    }

    /// The time since a control plane last confirmed the snapshot: zero while one does. `None`:
    /// there is no snapshot.
    pub fn age(&self) -> Option<Duration> {
        if self.is_current() {
            return Some(Duration::ZERO);
        }
        self.confirmed.load().as_deref().map(Confirmation::age)
    }

    /// When a control plane last confirmed the snapshot: now while one does.
    pub fn confirmed_at(&self) -> Option<SystemTime> {
        if self.is_current() {
            return Some(SystemTime::now());
        }
        self.confirmed.load().as_deref().map(|confirmed| confirmed.wall)
    }

    /// Whether the snapshot is older than `countersign.node.last_good_max_age`, and not served.
    pub fn is_expired(&self) -> bool {
        self.expired.load(Ordering::Acquire)
    }

    pub fn held_store(&self) -> Option<Arc<HeldStore>> {
        self.held.load_full()
    }

    /// While `true`, the data plane is not ready.
    pub fn set_waiting(&self, waiting: bool) {
        self.waiting.store(waiting, Ordering::Release);
        self.notify();
    }

    /// Changes applied since the start.
    pub fn applied_changes(&self) -> u64 {
        self.applied.load(Ordering::Relaxed)
    }

    /// Changes answered with a Nack since the start.
    pub fn rejected_changes(&self) -> u64 {
        self.rejected.load(Ordering::Relaxed)
    }

    /// Ticket rings applied since the start.
    pub fn applied_ticket_rings(&self) -> u64 {
        self.rings.load(Ordering::Acquire)
    }

    /// The newest failure, until a session succeeds.
    pub fn last_error(&self) -> Option<Arc<String>> {
        self.last_error.load_full()
    }

    /// The control plane (`host:port`) of the open session, or of the last one.
    pub fn control_plane(&self) -> Option<Arc<String>> {
        self.control_plane.load_full()
    }

    /// Counts every change of this status, for waiting without polling; not for the hot path.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn notify(&self) {
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
    }

    pub(super) fn set_connected(&self, control_plane: &str) {
        self.control_plane.store(Some(Arc::new(control_plane.to_owned())));
        self.last_error.store(None);
        self.connected.store(true, Ordering::Release);
        self.notify();
    }

    pub(super) fn set_disconnected(&self) {
        self.connected.store(false, Ordering::Release);
        self.clear_current();
        self.notify();
    }

    /// A connected control plane has exactly the snapshot that is served.
    pub(super) fn confirm(&self) {
        self.current.store(true, Ordering::Release);
        self.expired.store(false, Ordering::Release);
        self.held.store(None);
        self.notify();
    }

    /// A connected control plane last read this snapshot from its store `age` ago, and cannot read
    /// the store now. `same_store`: an earlier confirmation of this store counts for the snapshot,
    /// too, which is as new or newer.
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

    pub(super) fn clear_expired(&self) {
        self.expired.store(false, Ordering::Release);
        self.notify();
    }

    /// `age` is known apart from `confirmed_at`, because the clock may have been set since.
    pub(super) fn set_confirmation(&self, confirmed_at: SystemTime, age: Duration) {
        let confirmed = Confirmation { wall: confirmed_at, age, since: Instant::now() };
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

    /// A change has been given to the workers, in so much time.
    pub(super) fn record_apply(&self, duration: Duration) {
        self.apply_duration.observe(duration);
    }

    /// The last-good file has the snapshot of this revision, since `saved_at` where this process
    /// has written it.
    pub(super) fn set_last_good(&self, revision: u64, saved_at: Option<SystemTime>) {
        self.saved_revision.store(revision, Ordering::Relaxed);
        if let Some(at) = saved_at {
            self.saved_at.store(unix_seconds(at), Ordering::Relaxed);
        }
    }

    /// Failed writes of the last-good file since the start.
    pub(super) fn save_failures(&self) -> u64 {
        self.save_failures.get()
    }

    pub(super) fn count_save_failure(&self) {
        self.save_failures.inc();
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

    pub(super) fn set_last_error(&self, error: String) {
        self.last_error.store(Some(Arc::new(error)));
        self.notify();
    }
}

/// The metrics of the push client.
pub(crate) struct SyncMetrics(pub Arc<SyncStatus>);

impl std::fmt::Debug for SyncMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("SyncMetrics").finish_non_exhaustive()
    }
}

impl Collector for SyncMetrics {
    fn encode(&self, mut out: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let status = &self.0;
        let mut gauge = |name: &str, help: &str, value: u64| {
            let metric = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            metric.encode(out.encode_descriptor(name, help, None::<&Unit>, metric.metric_type())?)
        };
        gauge("snapshot_revision", "Revision of the snapshot served", status.revision())?;
        let connected = u64::from(status.is_connected());
        gauge("control_plane_connected", "Whether a control plane is connected", connected)?;
        // Absent without a snapshot.
        if let Some(age) = status.age() {
            let help = "Seconds since a control plane last confirmed the snapshot; 0 while one does";
            gauge("snapshot_age_seconds", help, age.as_secs())?;
        }
        if let Some(at) = status.confirmed_at() {
            let help =
                "When a control plane last confirmed the snapshot, in seconds since 1970; now while one does";
            gauge("snapshot_confirmed_timestamp_seconds", help, unix_seconds(at))?;
        }
        let help = "Revision of the snapshot in the last-good file; 0: there is none";
        gauge("last_good_revision", help, status.saved_revision.load(Ordering::Relaxed))?;
        let help =
            "When this process last wrote the last-good file, in seconds since 1970; 0 before the first time";
        gauge("last_good_saved_timestamp_seconds", help, status.saved_at.load(Ordering::Relaxed))?;
        let help = "Whether the control plane has another store, which would remove most and is not applied";
        gauge("store_held", help, u64::from(status.held_store().is_some()))?;
        let help = "Rings of ticket secrets received from the control plane";
        encode_counter(&mut out, "ticket_key_rotations", help, status.applied_ticket_rings())?;
        let help = "Failed writes of the last-good file";
        encode_counter(&mut out, "last_good_save_failures", help, status.save_failures())?;
        let help = "Changes of the snapshot from the control plane, by result";
        let changes = [
            ([("result", "applied")], status.applied_changes()),
            ([("result", "rejected")], status.rejected_changes()),
        ];
        encode_family(&mut out, "snapshot_changes", help, changes)?;
        let help = "Time from a complete change until the workers can take the new snapshot";
        encode_histogram(&mut out, "snapshot_apply_duration_seconds", help, &status.apply_duration.totals())
    }
}
