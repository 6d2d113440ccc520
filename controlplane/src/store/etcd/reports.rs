//! The entries in which the control planes over this cluster say who they serve: `{prefix}/countersign/control_planes/{process}`.
//!
//! Each hangs on a lease of its own process, so it goes when that process has died or no longer reaches the cluster. The lease is granted
//! with the first write and kept alive by each later one. Written without a guard, since nobody else writes the same name.

use std::time::Duration;

use etcd_client::{Error, GetOptions, KvClient, PutOptions};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::Mutex;

use super::Cluster;
use crate::store::{ReportEntries, StoreError};

/// A control plane that does not reach the cluster sends its nodes on after two pauses of `resync_delay` (`publish::watch`), and
/// notices within this time. Its entry stays until then: as long as it may serve nodes, they are counted.
const NOTICE: Duration = Duration::from_secs(20);
/// Entries that are read: more control planes than any fleet has.
const ENTRIES_MAX: i64 = 1000;

/// This process's entry.
pub(super) struct Own {
    process: String,
    /// The lease it hangs on, once one was granted. It may have ended since.
    lease: Mutex<Option<i64>>,
}

impl Default for Own {
    fn default() -> Self {
        Self { process: format!("{:016x}", rand::random::<u64>()), lease: Mutex::default() }
    }
}

impl ReportEntries for Cluster {
    fn time_to_live(&self) -> Duration {
        self.resync_delay * 2 + NOTICE
    }

    fn write(&self, text: String) -> BoxFuture<'_, Result<(), StoreError>> {
        self.write_report(text).boxed()
    }

    fn withdraw(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        async {
            let Some(lease) = self.own_report.lease.lock().await.take() else { return Ok(()) };
            let connected = self.link.connected().await?;
            let mut leases = connected.client.lease_client();
            let revoked = self.in_time(leases.revoke(lease)).await?;
            revoked.map(drop).map_err(|error| self.unavailable(&connected, &error))
        }
        .boxed()
    }

    fn others(&self) -> BoxFuture<'_, Result<Vec<(String, String)>, StoreError>> {
        async {
            let prefix = self.layout.reports();
            let found = self.ask(|mut kv: KvClient| {
                let options = GetOptions::new().with_prefix().with_limit(ENTRIES_MAX);
                let prefix = prefix.clone();
                async move { kv.get(prefix, Some(options)).await }
            });
            let texts = found.await?.take_kvs().into_iter().map(|kv| {
                let name = String::from_utf8_lossy(kv.key()).into_owned();
                let name = name.strip_prefix(&prefix).unwrap_or_default().to_owned();
                (name, String::from_utf8_lossy(kv.value()).into_owned())
            });
            Ok(texts.filter(|(process, _)| *process != self.own_report.process).collect())
        }
        .boxed()
    }
}

impl Cluster {
    async fn write_report(&self, text: String) -> Result<(), StoreError> {
        let mut lease = self.own_report.lease.lock().await;
        let connected = self.link.connected().await?;
        let mut leases = connected.client.lease_client();
        let kept = match *lease {
            Some(id) => self.in_time(leases.keep_alive(id)).await?.ok().map(|_| id),
            None => None,
        };
        let id = match kept {
            Some(id) => id,
            // The first one, or the one before is gone.
            None => *lease.insert(self.lease(&connected, self.time_to_live().as_secs()).await?),
        };
        let name = format!("{}{}", self.layout.reports(), self.own_report.process);
        let written = self.ask_raw(|mut kv: KvClient| {
            let (name, text) = (name.clone(), text.clone());
            async move { kv.put(name, text, Some(PutOptions::new().with_lease(id))).await }
        });
        written.await?.map(drop).map_err(|(connected, error)| self.unavailable(&connected, &error))
    }

    async fn in_time<T>(
        &self,
        call: impl Future<Output = Result<T, Error>>,
    ) -> Result<Result<T, Error>, StoreError> {
        let late = |_| StoreError::Unavailable { what: "no answer in time".to_owned() };
        tokio::time::timeout(self.link.timeout(), call).await.map_err(late)
    }
}
