//! The keeper of the ring of ticket secrets: makes it, has it grow and shrink with time, and tells
//! the streams of each change.
//!
//! The ring is a private entry of the store, so a restart goes on with it, and of several control
//! planes over one store all have the same: each looks every so often, and who finds that time has
//! come writes by compare-and-swap. Nothing hurries: a new secret is pushed long before it seals.
//! Invariant: what cannot be read or written leaves the ring as it was.

mod ring;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use model::TicketRing;
use pki::Keyring;
use ring::RotationSchedule;
use tokio::sync::watch;

use crate::store::{InternalKey, Store, StoreError};

/// The longest pause between two looks.
const CHECK_INTERVAL_MAX: Duration = Duration::from_secs(60);
/// Rounds of losing the race against other control planes, which then have done what was to be
/// done.
const CAS_ATTEMPTS: usize = 4;

/// The ring; `None` until the store has been read: data planes then go on with the one they have.
pub(super) type SharedRing = Option<Arc<TicketRing>>;

/// Reads or makes the ring, then keeps it until shutdown. Without a lifetime the ring is empty, and
/// the store is not asked.
pub(super) async fn start(
    store: &Arc<dyn Store>,
    keyring: &Arc<Keyring>,
    lifetime: Option<Duration>,
    mut shutdown: watch::Receiver<bool>,
) -> watch::Receiver<SharedRing> {
    let (ring, receiver) = watch::channel(None);
    let Some(lifetime) = lifetime else {
        ring.send_replace(Some(Arc::default()));
        return receiver;
    };
    let period = RotationSchedule::new(lifetime);
    let keeper =
        RingRotator { store: Arc::clone(store), keyring: Arc::clone(keyring), schedule: period, ring };
    keeper.rotate_if_due().await;
    tokio::spawn(async move {
        tokio::select! {
            () = keeper.run() => {}
            _ = shutdown.wait_for(|stop| *stop) => {}
        }
    });
    receiver
}

/// The next ring; never ends for a stream that wants none, or when nobody keeps it.
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

struct RingRotator {
    store: Arc<dyn Store>,
    keyring: Arc<Keyring>,
    schedule: RotationSchedule,
    ring: watch::Sender<SharedRing>,
}

impl RingRotator {
    async fn run(&self) {
        loop {
            tokio::time::sleep(self.schedule.check_interval().min(CHECK_INTERVAL_MAX)).await;
            self.rotate_if_due().await;
        }
    }

    async fn rotate_if_due(&self) {
        match self.refresh().await {
            Ok(Some(ring)) => drop(self.ring.send_replace(Some(Arc::new(ring)))),
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(%error, "the ticket secrets cannot be kept; data planes go on with those they have");
            }
        }
    }

    /// The ring as it is to be now; `None` when that is the one we have.
    async fn refresh(&self) -> Result<Option<TicketRing>, StoreError> {
        for _ in 0..CAS_ATTEMPTS {
            let entry = self.store.internal_entry(InternalKey::TicketSecrets).await?;
            let (version, stored) = match &entry {
                None => (0, TicketRing::default()),
                Some(entry) => (entry.version, self.open_or_default(&entry.text)),
            };
            let Some(turned) = self.schedule.rotated(&stored, now()) else {
                let same = self.ring.borrow().as_ref().is_some_and(|ring| ring::same_secrets(&stored, ring));
                return Ok((!same).then(|| self.schedule.with_lifetime(stored)));
            };
            let text = ring::seal_ring(&turned, &self.keyring);
            match self.store.swap_internal_entry(InternalKey::TicketSecrets, version, text).await {
                Ok(_) => {
                    tracing::info!(secrets = turned.secrets.len(), "the ring of ticket secrets has turned");
                    return Ok(Some(turned));
                }
                Err(StoreError::Conflict) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// A ring that cannot be opened is as good as none: what is lost is that sessions resume.
    fn open_or_default(&self, text: &str) -> TicketRing {
        ring::open_ring(text, &self.keyring).unwrap_or_else(|problem| {
            tracing::warn!(
                "the stored ticket secrets cannot be read ({problem}) and are replaced; sessions made with them shake hands in \
                 full. Was an entry taken out of apisix.data_encryption.keyring?"
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
