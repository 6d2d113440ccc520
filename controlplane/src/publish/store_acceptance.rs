//! Until when data planes may replace another store's state by this store's, although it removes
//! most of what they serve.
//!
//! A data plane holds what another store has ([`super::session`]) until an operator accepts the
//! store. The end of the acceptance is an internal entry of the store, which every control plane
//! over it reads within [`REFRESH_INTERVAL`]. Invariant: accepting one store accepts no other, and
//! the acceptance expires, so that a later mistake is held again.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use zeroize::Zeroizing;

use crate::store::{InternalKey, Store, StoreError};

/// Long enough for nodes that reconnect later.
const DURATION: Duration = Duration::from_secs(3600);
/// The longest delay until an acceptance made through another control plane takes effect here.
const REFRESH_INTERVAL: Duration = Duration::from_secs(1);
/// Compare-and-swap attempts against other writers.
const CAS_ATTEMPTS: usize = 8;

/// The acceptance in force, and how to make one.
pub struct StoreAcceptance {
    store: Arc<dyn Store>,
    /// Unix seconds; 0: never accepted.
    until: watch::Sender<u64>,
}

impl StoreAcceptance {
    /// Reads the acceptance from the store every [`REFRESH_INTERVAL`] until shutdown.
    pub async fn start(store: Arc<dyn Store>, mut shutdown: watch::Receiver<bool>) -> Arc<Self> {
        let acceptance = Arc::new(Self { store, until: watch::Sender::new(0) });
        acceptance.refresh().await;
        let refreshed = Arc::clone(&acceptance);
        tokio::spawn(async move {
            let refreshing = async {
                loop {
                    tokio::time::sleep(REFRESH_INTERVAL).await;
                    refreshed.refresh().await;
                }
            };
            tokio::select! {
                () = refreshing => {}
                _ = shutdown.wait_for(|stop| *stop) => {}
            }
        });
        acceptance
    }

    /// Accepts the store for [`DURATION`]. Returns the end of the acceptance in unix seconds.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn accept(&self) -> Result<u64, StoreError> {
        let until = now() + DURATION.as_secs();
        for _ in 0..CAS_ATTEMPTS {
            let version =
                self.store.internal_entry(InternalKey::AcceptedStore).await?.map_or(0, |entry| entry.version);
            let text = Zeroizing::new(until.to_string());
            match self.store.swap_internal_entry(InternalKey::AcceptedStore, version, text).await {
                Ok(_) => {
                    self.until.send_replace(until);
                    return Ok(until);
                }
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Err(StoreError::Conflict { key: None })
    }

    /// For a session whose node holds another state.
    pub(super) fn subscribe(&self) -> AcceptanceWatcher {
        AcceptanceWatcher { until: self.until.subscribe(), notified: false }
    }

    /// A read error changes nothing: nodes go on holding, and the Admin API shows them.
    async fn refresh(&self) {
        let entry = match self.store.internal_entry(InternalKey::AcceptedStore).await {
            Ok(entry) => entry,
            Err(error) => return tracing::debug!(%error, "whether the store is accepted cannot be read"),
        };
        let until = entry.and_then(|entry| entry.text.trim().parse().ok()).unwrap_or_default();
        self.until.send_if_modified(|present| std::mem::replace(present, until) != until);
    }
}

/// One session's view of the acceptance.
pub(super) struct AcceptanceWatcher {
    until: watch::Receiver<u64>,
    /// The node of this session was notified.
    notified: bool,
}

impl AcceptanceWatcher {
    /// Returns once for each acceptance; at once while one is in force.
    pub(super) async fn accepted(&mut self) {
        while self.notified || *self.until.borrow_and_update() <= now() {
            if self.until.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
        self.notified = true;
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::store::EmbeddedStore;

    fn open(folder: &tempfile::TempDir) -> Arc<dyn Store> {
        Arc::new(EmbeddedStore::open(&folder.path().join("store.redb")).unwrap())
    }

    #[tokio::test]
    async fn an_acceptance_reaches_all_control_planes_and_expires() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(&folder);
        let (_stop, shutdown) = watch::channel(false);
        let one = StoreAcceptance::start(Arc::clone(&store), shutdown.clone()).await;
        let other = StoreAcceptance::start(Arc::clone(&store), shutdown.clone()).await;
        let mut watcher = other.subscribe();
        assert!(watcher.accepted().now_or_never().is_none(), "the store is not accepted");
        let until = one.accept().await.unwrap();
        assert!(until > now() && until <= now() + DURATION.as_secs());
        watcher.accepted().await;
        assert!(watcher.accepted().now_or_never().is_none(), "a node is notified once");
        one.accept().await.unwrap();
        let restarted = StoreAcceptance::start(Arc::clone(&store), shutdown.clone()).await;
        restarted.subscribe().accepted().await;

        let version = store.internal_entry(InternalKey::AcceptedStore).await.unwrap().unwrap().version;
        for over in ["1", "nonsense", ""] {
            let version = store
                .internal_entry(InternalKey::AcceptedStore)
                .await
                .unwrap()
                .map_or(version, |entry| entry.version);
            let text = Zeroizing::new(over.to_owned());
            store.swap_internal_entry(InternalKey::AcceptedStore, version, text).await.unwrap();
            restarted.refresh().await;
            assert!(restarted.subscribe().accepted().now_or_never().is_none(), "{over:?}");
        }
    }
}
