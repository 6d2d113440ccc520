//! Takes the snapshot out of service when no control plane has confirmed it for
//! `countersign.node.last_good_max_age`.
//!
//! The workers get the empty snapshot: handshakes are rejected, and connections whose site is gone
//! end as after any change. The applier keeps the expired snapshot, so a control plane that comes
//! back sends only the difference, and the applier publishes the result.

use std::sync::Arc;
use std::time::Duration;

use model::Snapshot;

use super::sync_status::SyncStatus;
use crate::lifecycle::handles::SnapshotHandle;

/// The clock may be set at any time, so the age is checked at least this often.
const CHECK_INTERVAL_MAX: Duration = Duration::from_secs(10);

pub(super) struct Expiry {
    pub snapshot: Arc<SnapshotHandle>,
    pub status: Arc<SyncStatus>,
    /// Zero: a snapshot of any age is served.
    pub max_age: Duration,
}

/// Whether a snapshot of this age is too old to be served.
pub(super) fn is_expired(max_age: Duration, age: Duration) -> bool {
    !max_age.is_zero() && age > max_age
}

impl Expiry {
    /// Never ends by itself.
    pub(crate) async fn run(self) {
        if self.max_age.is_zero() {
            return std::future::pending().await;
        }
        loop {
            tokio::time::sleep(self.check()).await;
        }
    }

    /// Gives the time until the next check.
    fn check(&self) -> Duration {
        let Some(age) = self.status.age() else { return CHECK_INTERVAL_MAX };
        if !is_expired(self.max_age, age) {
            return (self.max_age - age + Duration::from_millis(1)).min(CHECK_INTERVAL_MAX);
        }
        if !self.status.is_expired() {
            tracing::error!(
                age_seconds = age.as_secs(),
                "no control plane has confirmed the snapshot for longer than countersign.node.last_good_max_age ({} s): \
                 connections and requests are denied until one does",
                self.max_age.as_secs_f64()
            );
            self.snapshot.store(Arc::new(Snapshot::empty()));
            self.status.set_expired();
        }
        CHECK_INTERVAL_MAX
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::super::SnapshotSource;
    use super::*;

    fn expiry(max_age: u64, age: u64) -> Expiry {
        let snapshot = Arc::new(SnapshotHandle::new(Arc::new(Snapshot::from_resources(7, []))));
        let status = Arc::new(SyncStatus::default());
        status.set_snapshot(7, SnapshotSource::LastGood);
        status.set_confirmation(SystemTime::now(), Duration::from_secs(age));
        Expiry { snapshot, status, max_age: Duration::from_secs(max_age) }
    }

    #[test]
    fn an_expired_snapshot_is_not_served_until_confirmed() {
        let expiry = expiry(60, 61);
        assert!(expiry.status.is_ready());
        expiry.check();
        assert!(!expiry.status.is_ready() && expiry.status.is_expired());
        assert_eq!(expiry.snapshot.load().revision(), 0);
        expiry.status.confirm();
        assert!(expiry.status.is_ready());
        expiry.check();
        assert!(!expiry.status.is_expired());
    }

    #[test]
    fn a_young_or_current_snapshot_is_served() {
        let young = expiry(60, 50);
        assert!(young.check() <= CHECK_INTERVAL_MAX);
        assert_eq!(young.snapshot.load().revision(), 7);
        let current = expiry(60, 61);
        current.status.confirm();
        current.check();
        assert_eq!(current.snapshot.load().revision(), 7);
    }

    #[test]
    fn a_clock_set_back_does_not_lower_the_age() {
        let expiry = expiry(60, 0);
        let tomorrow = SystemTime::now() + Duration::from_secs(86_400);
        expiry.status.set_confirmation(tomorrow, Duration::from_secs(61));
        expiry.check();
        assert!(expiry.status.is_expired());
    }
}
