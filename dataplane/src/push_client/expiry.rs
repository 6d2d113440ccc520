//! Takes what is held out of service when no control plane has confirmed it for
//! `countersign.node.last_good_max_age`.
//!
//! The cell gets the empty snapshot: handshakes are refused, and connections whose site is gone are
//! ended as by any change. What is held stays held, so that a control plane which comes back sends
//! the difference, and `intake` puts it into the cell again.

use std::sync::Arc;
use std::time::Duration;

use model::Snapshot;

use super::handles::SnapshotHandle;
use super::sync_status::SyncStatus;

/// The longest pause between two looks at the clock, which may be set.
const CHECK_INTERVAL_MAX: Duration = Duration::from_secs(10);

pub(super) struct Expiry {
    pub cell: Arc<SnapshotHandle>,
    pub status: Arc<SyncStatus>,
    /// Zero: whatever its age, it is served.
    pub max_age: Duration,
}

impl Expiry {
    /// Whether something of that age is not served any more.
    pub(super) fn is_expired(max_age: Duration, age: Duration) -> bool {
        !max_age.is_zero() && age > max_age
    }

    /// Never ends by itself.
    pub(super) async fn run(self) {
        if self.max_age.is_zero() {
            return std::future::pending().await;
        }
        loop {
            tokio::time::sleep(self.check()).await;
        }
    }

    /// When to look again.
    fn check(&self) -> Duration {
        let Some(age) = self.status.age() else { return CHECK_INTERVAL_MAX };
        if !Self::is_expired(self.max_age, age) {
            return (self.max_age - age + Duration::from_millis(1)).min(CHECK_INTERVAL_MAX);
        }
        if !self.status.is_expired() {
            tracing::error!(
                age_seconds = age.as_secs(),
                "no control plane has confirmed what is served for longer than countersign.node.last_good_max_age ({} s): \
                 connections and requests are refused until one does",
                self.max_age.as_secs_f64()
            );
            self.cell.store(Arc::new(Snapshot::empty()));
            self.status.set_expired();
        }
        CHECK_INTERVAL_MAX
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::push_client::SnapshotSource;

    fn expiry(max_age: u64, age: u64) -> Expiry {
        let cell = Arc::new(SnapshotHandle::new(Arc::new(Snapshot::from_resources(7, []))));
        let status = Arc::new(SyncStatus::default());
        status.set_snapshot(7, SnapshotSource::LastGood);
        status.set_confirmation(SystemTime::now(), Duration::from_secs(age));
        Expiry { cell, status, max_age: Duration::from_secs(max_age) }
    }

    #[test]
    fn what_is_too_old_is_taken_out_of_service_until_it_is_confirmed() {
        let expiry = expiry(60, 61);
        assert!(expiry.status.is_ready());
        expiry.check();
        assert!(!expiry.status.is_ready() && expiry.status.is_expired());
        assert_eq!(expiry.cell.load().revision(), 0);
        expiry.status.confirm();
        assert!(expiry.status.is_ready());
        expiry.check();
        assert!(!expiry.status.is_expired());
    }

    #[test]
    fn what_is_young_or_current_is_served() {
        let young = expiry(60, 50);
        assert!(young.check() <= CHECK_INTERVAL_MAX);
        assert_eq!(young.cell.load().revision(), 7);
        let current = expiry(60, 61);
        current.status.confirm();
        current.check();
        assert_eq!(current.cell.load().revision(), 7);
    }

    #[test]
    fn a_clock_that_was_set_back_makes_nothing_younger() {
        let expiry = expiry(60, 0);
        let tomorrow = SystemTime::now() + Duration::from_secs(86_400);
        expiry.status.set_confirmation(tomorrow, Duration::from_secs(61));
        expiry.check();
        assert!(expiry.status.is_expired());
    }
}
