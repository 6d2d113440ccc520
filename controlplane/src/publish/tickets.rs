//! Rotates the ring of ticket secrets and publishes each change to the sessions.
//!
//! The ring is an internal entry of the store, so it survives restarts, and all control planes over
//! one store have the same: each checks it periodically, and the first one to find a rotation due
//! writes it by compare-and-swap. A new secret is pushed long before it seals. Invariant: a ring
//! that cannot be read or written stays as it is.

mod ring;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use model::TicketRing;
use pki::Keyring;
use ring::RotationSchedule;
use tokio::sync::watch;

use super::CurrentSettings;
use crate::store::{InternalKey, Store, StoreError};

/// The longest time between two checks.
const CHECK_INTERVAL_MAX: Duration = Duration::from_secs(60);
/// Compare-and-swap attempts; another control plane that wins has made the same rotation.
const CAS_ATTEMPTS: usize = 4;

/// The ring; `None` until the store has been read: data planes keep theirs until then.
pub(super) type SharedRing = Option<Arc<TicketRing>>;

/// Reads or creates the ring, then rotates it until shutdown. Without a lifetime the ring is empty
/// and the store is not read.
pub(super) async fn start(
    store: &Arc<dyn Store>,
    settings: CurrentSettings,
    keyring_setting: &'static str,
    mut shutdown: watch::Receiver<bool>,
) -> watch::Receiver<SharedRing> {
    let (ring, receiver) = watch::channel(None);
    let mut keeper = RingRotator { store: Arc::clone(store), settings, keyring_setting, ring };
    keeper.rotate_if_due().await;
    tokio::spawn(async move {
        tokio::select! {
            () = keeper.run() => {}
            _ = shutdown.wait_for(|stop| *stop) => {}
        }
    });
    receiver
}

/// The next ring; never returns for a session without tickets, or when no rotator runs.
pub(super) async fn next(tickets: Option<&mut watch::Receiver<SharedRing>>) -> Arc<TicketRing> {
    if let Some(tickets) = tickets {
        while tickets.changed().await.is_ok() {
            if let Some(ring) = &*tickets.borrow_and_update() {
                return Arc::clone(ring);
            }
        }
    }
    std::future::pending().await
}

/// Checks that the keyring decrypts the stored ring.
///
/// # Errors
/// Why it does not. A store that cannot be read is one reason.
pub(super) async fn check_keyring(store: &dyn Store, keyring: &Keyring) -> Result<(), String> {
    let entry = store.internal_entry(InternalKey::TicketSecrets).await.map_err(|error| error.to_string())?;
    entry.map_or(Ok(()), |entry| ring::open_ring(&entry.text, keyring).map(drop))
}

struct RingRotator {
    store: Arc<dyn Store>,
    settings: CurrentSettings,
    keyring_setting: &'static str,
    ring: watch::Sender<SharedRing>,
}

impl RingRotator {
    async fn run(&mut self) {
        loop {
            let interval = self.schedule().map_or(CHECK_INTERVAL_MAX, RotationSchedule::check_interval);
            tokio::select! {
                () = tokio::time::sleep(interval.min(CHECK_INTERVAL_MAX)) => {}
                Ok(()) = self.settings.changed() => {}
            }
            self.rotate_if_due().await;
        }
    }

    fn schedule(&self) -> Option<RotationSchedule> {
        self.settings.borrow().ticket_lifetime.map(RotationSchedule::new)
    }

    async fn rotate_if_due(&mut self) {
        let Some(schedule) = self.schedule() else {
            self.ring.send_if_modified(|ring| {
                let is_empty = ring.as_ref().is_some_and(|ring| ring.secrets.is_empty());
                *ring = Some(Arc::default());
                !is_empty
            });
            return;
        };
        match self.refresh(schedule).await {
            Ok(Some(ring)) => drop(self.ring.send_replace(Some(Arc::new(ring)))),
            // The store was handed over: its new owner rotates.
            Ok(None) | Err(StoreError::Closed { .. }) => {}
            Err(error) => {
                tracing::warn!(%error, "the ring of ticket secrets cannot be rotated; data planes keep theirs");
            }
        }
    }

    /// The ring that is due now; `None` when it is the present one.
    async fn refresh(&self, schedule: RotationSchedule) -> Result<Option<TicketRing>, StoreError> {
        for _ in 0..CAS_ATTEMPTS {
            let entry = self.store.internal_entry(InternalKey::TicketSecrets).await?;
            let (version, stored) = match &entry {
                None => (0, TicketRing::default()),
                Some(entry) => (entry.version, self.open_or_default(&entry.text)),
            };
            let Some(rotated) = schedule.rotated(&stored, now()) else {
                let stored = schedule.with_lifetime(stored);
                let is_current = self.ring.borrow().as_ref().is_some_and(|ring| {
                    ring.lifetime == stored.lifetime && ring::same_secrets(&stored, ring)
                });
                return Ok((!is_current).then_some(stored));
            };
            let text = ring::seal_ring(&rotated, &self.keyring());
            match self.store.swap_internal_entry(InternalKey::TicketSecrets, version, text).await {
                Ok(_) => {
                    tracing::info!(secrets = rotated.secrets.len(), "the ring of ticket secrets was rotated");
                    return Ok(Some(rotated));
                }
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    fn keyring(&self) -> Arc<Keyring> {
        Arc::clone(&self.settings.borrow().keyring)
    }

    /// An unreadable ring counts as none: the only loss is that sessions do not resume.
    fn open_or_default(&self, text: &str) -> TicketRing {
        ring::open_ring(text, &self.keyring()).unwrap_or_else(|problem| {
            tracing::warn!(
                "the stored ticket secrets cannot be read ({problem}) and are replaced; their sessions need a full handshake. Was an entry removed from {}?",
                self.keyring_setting
            );
            TicketRing::default()
        })
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests;
