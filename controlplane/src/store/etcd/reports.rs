//! The entries in which the control planes over this cluster say who they serve:
//! `{prefix}/countersign/control_planes/{process}`.
//!
//! Each hangs on a lease of its own process, so it goes when that process has died or no longer
//! reaches the cluster. The lease is granted with the first write and kept alive by each later one.
//! The names of its nodes lie beside, below `control_plane_nodes/`, for an hour: a control plane
//! that no longer reaches the cluster may serve them on. Written without a guard, since nobody else
//! writes the same name.

use std::collections::BTreeMap;
use std::time::Duration;

use etcd_client::{Error, GetOptions, KvClient, PutOptions};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::Mutex;

use super::Cluster;
use crate::store::{ReportEntries, ReportEntry, StoreError};

/// A control plane that does not reach the cluster sends its nodes on after two pauses of
/// `resync_delay` (`publish::watch`), and notices within this time. Its entry stays until then: as
/// long as it may serve nodes, they are counted.
const DETECTION_TIME: Duration = Duration::from_secs(20);
/// Entries that are read: more control planes than any fleet has.
const ENTRIES_MAX: i64 = 1000;

/// How long the names of the nodes outlive the last write: a control plane that no longer reaches
/// the cluster may serve them on.
const NODES_TTL: Duration = Duration::from_secs(3600);

/// This process's entries.
pub(super) struct OwnReport {
    process: String,
    leases: Mutex<Leases>,
}

/// What the entries hang on, once it was granted. It may have ended since.
#[derive(Default)]
struct Leases {
    report: Option<i64>,
    nodes: Option<i64>,
    /// The names that were written under the lease `nodes`.
    written: Option<String>,
}

impl Default for OwnReport {
    fn default() -> Self {
        Self { process: format!("{:016x}", rand::random::<u64>()), leases: Mutex::default() }
    }
}

impl ReportEntries for Cluster {
    fn ttl(&self) -> Duration {
        self.resync_delay * 2 + DETECTION_TIME
    }

    fn write(&self, text: String, nodes: String) -> BoxFuture<'_, Result<(), StoreError>> {
        self.write_report(text, nodes).boxed()
    }

    fn withdraw(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        async {
            let Leases { report, nodes, .. } = std::mem::take(&mut *self.own_report.leases.lock().await);
            for lease in [report, nodes].into_iter().flatten() {
                let connected = self.connections.current().await?;
                let mut leases = connected.client.lease_client();
                let revoked = self.with_timeout(leases.revoke(lease)).await?;
                revoked.map_err(|error| self.unavailable(&connected, &error))?;
            }
            Ok(())
        }
        .boxed()
    }

    fn others(&self) -> BoxFuture<'_, Result<Vec<ReportEntry>, StoreError>> {
        async {
            // In this order: one that ends in between counts as heard of, and one that is withdrawn
            // leaves neither.
            let texts = self.entries(self.layout.reports_prefix()).await?;
            let nodes = self.entries(self.layout.reported_nodes_prefix()).await?;
            let mut found: BTreeMap<String, ReportEntry> = BTreeMap::new();
            let entry = |process: &String| ReportEntry { process: process.clone(), text: None, nodes: None };
            for (process, text) in texts {
                found.entry(process.clone()).or_insert_with(|| entry(&process)).text = Some(text);
            }
            for (process, nodes) in nodes {
                found.entry(process.clone()).or_insert_with(|| entry(&process)).nodes = Some(nodes);
            }
            found.remove(&self.own_report.process);
            Ok(found.into_values().collect())
        }
        .boxed()
    }
}

impl Cluster {
    /// Last segment and value of the entries below `prefix`.
    async fn entries(&self, prefix: String) -> Result<Vec<(String, String)>, StoreError> {
        let found = self.call(|mut kv: KvClient| {
            let options = GetOptions::new().with_prefix().with_limit(ENTRIES_MAX);
            let prefix = prefix.clone();
            async move { kv.get(prefix, Some(options)).await }
        });
        let texts = found.await?.take_kvs().into_iter().map(|kv| {
            let name = String::from_utf8_lossy(kv.key()).into_owned();
            let name = name.strip_prefix(&prefix).unwrap_or_default().to_owned();
            (name, String::from_utf8_lossy(kv.value()).into_owned())
        });
        Ok(texts.collect())
    }

    async fn write_report(&self, text: String, nodes: String) -> Result<(), StoreError> {
        let mut leases = self.own_report.leases.lock().await;
        let (id, _) = self.keep_alive_or_grant(leases.report, self.ttl()).await?;
        leases.report = Some(id);
        self.put_with_lease(id, self.layout.reports_prefix(), text).await?;
        let (id, is_new) = self.keep_alive_or_grant(leases.nodes, NODES_TTL).await?;
        leases.nodes = Some(id);
        if is_new || leases.written.as_ref() != Some(&nodes) {
            // Not known until it is answered.
            leases.written = None;
            self.put_with_lease(id, self.layout.reported_nodes_prefix(), nodes.clone()).await?;
            leases.written = Some(nodes);
        }
        Ok(())
    }

    /// A lease of that length: this one, kept alive, or a new one where it is gone. Says whether it
    /// is new.
    async fn keep_alive_or_grant(
        &self,
        lease: Option<i64>,
        length: Duration,
    ) -> Result<(i64, bool), StoreError> {
        let connected = self.connections.current().await?;
        let mut leases = connected.client.lease_client();
        let kept = match lease {
            Some(id) => self.with_timeout(leases.keep_alive(id)).await?.ok().map(|_| id),
            None => None,
        };
        match kept {
            Some(id) => Ok((id, false)),
            None => Ok((self.grant_lease(&connected, length.as_secs()).await?, true)),
        }
    }

    /// Writes this process's entry below `prefix`.
    async fn put_with_lease(&self, lease: i64, prefix: String, text: String) -> Result<(), StoreError> {
        let name = format!("{prefix}{}", self.own_report.process);
        let written = self.call_raw(|mut kv: KvClient| {
            let (name, text) = (name.clone(), text.clone());
            async move { kv.put(name, text, Some(PutOptions::new().with_lease(lease))).await }
        });
        written.await?.map(drop).map_err(|(connected, error)| self.unavailable(&connected, &error))
    }

    async fn with_timeout<T>(
        &self,
        call: impl Future<Output = Result<T, Error>>,
    ) -> Result<Result<T, Error>, StoreError> {
        let late = |_| StoreError::Unavailable { what: "no answer in time".to_owned() };
        tokio::time::timeout(self.connections.timeout(), call).await.map_err(late)
    }
}
