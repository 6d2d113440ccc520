//! The reports of the control planes that share this cluster:
//! `{prefix}/countersign/control_planes/{process}`.
//!
//! Each entry has a lease of its process and expires when the process has died or no longer reaches
//! the cluster. The first write grants the lease; later writes keep it alive. The names of the
//! process's nodes are below `control_plane_nodes/` and expire after an hour, because a control
//! plane that no longer reaches the cluster may still serve them. Writes have no precondition,
//! since no other process writes the same key.

use std::collections::BTreeMap;
use std::time::Duration;

use etcd_client::{Error, GetOptions, KvClient, PutOptions};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::Mutex;

use super::Cluster;
use crate::store::{ReportEntries, ReportEntry, StoreError};

/// A control plane that cannot reach the cluster disconnects its nodes after two backoffs of
/// `resync_delay` (`publish::store_watcher`), and detects the failure within this time. Its entry
/// lives as long as it may serve nodes.
const DETECTION_TIME: Duration = Duration::from_secs(20);
/// The limit of one read; no fleet has more control planes.
const ENTRIES_MAX: i64 = 1000;

/// The names outlive the last write, because a control plane that no longer reaches the cluster may
/// still serve these nodes.
const NODES_TTL: Duration = Duration::from_secs(3600);

pub(super) struct OwnReport {
    process: String,
    leases: Mutex<Leases>,
}

/// The leases of the entries, once granted. A lease may have expired.
#[derive(Default)]
struct Leases {
    report: Option<i64>,
    nodes: Option<i64>,
    /// The names that were written with the lease `nodes`.
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
                let connection = self.connections.current().await?;
                let mut leases = connection.client.lease_client();
                let response = self.with_timeout(leases.revoke(lease)).await?;
                response.map_err(|error| self.unavailable(&connection, &error))?;
            }
            Ok(())
        }
        .boxed()
    }

    fn others(&self) -> BoxFuture<'_, Result<Vec<ReportEntry>, StoreError>> {
        async {
            // In this order, an entry that expires in between still has its nodes, and a withdrawn
            // one has neither.
            let values = self.entries(self.layout.reports_prefix()).await?;
            let nodes = self.entries(self.layout.reported_nodes_prefix()).await?;
            let mut entries: BTreeMap<String, ReportEntry> = BTreeMap::new();
            let entry = |process: &String| ReportEntry { process: process.clone(), text: None, nodes: None };
            for (process, text) in values {
                entries.entry(process.clone()).or_insert_with(|| entry(&process)).text = Some(text);
            }
            for (process, nodes) in nodes {
                entries.entry(process.clone()).or_insert_with(|| entry(&process)).nodes = Some(nodes);
            }
            entries.remove(&self.own_report.process);
            Ok(entries.into_values().collect())
        }
        .boxed()
    }
}

impl Cluster {
    /// The last segment and the value of the entries below `prefix`.
    async fn entries(&self, prefix: String) -> Result<Vec<(String, String)>, StoreError> {
        let response = self.call(|mut kv: KvClient| {
            let options = GetOptions::new().with_prefix().with_limit(ENTRIES_MAX);
            let prefix = prefix.clone();
            async move { kv.get(prefix, Some(options)).await }
        });
        let values = response.await?.take_kvs().into_iter().map(|kv| {
            let name = String::from_utf8_lossy(kv.key()).into_owned();
            let name = name.strip_prefix(&prefix).unwrap_or_default().to_owned();
            (name, String::from_utf8_lossy(kv.value()).into_owned())
        });
        Ok(values.collect())
    }

    async fn write_report(&self, text: String, nodes: String) -> Result<(), StoreError> {
        let mut leases = self.own_report.leases.lock().await;
        let (id, _) = self.keep_alive_or_grant(leases.report, self.ttl()).await?;
        leases.report = Some(id);
        self.put_with_lease(id, self.layout.reports_prefix(), text).await?;
        let (id, is_new) = self.keep_alive_or_grant(leases.nodes, NODES_TTL).await?;
        leases.nodes = Some(id);
        if is_new || leases.written.as_ref() != Some(&nodes) {
            // Unknown until the write is acknowledged.
            leases.written = None;
            self.put_with_lease(id, self.layout.reported_nodes_prefix(), nodes.clone()).await?;
            leases.written = Some(nodes);
        }
        Ok(())
    }

    /// Keeps the lease alive, or grants a new one if it is gone. The flag says whether the lease is
    /// new.
    async fn keep_alive_or_grant(
        &self,
        lease: Option<i64>,
        length: Duration,
    ) -> Result<(i64, bool), StoreError> {
        let connection = self.connections.current().await?;
        let mut leases = connection.client.lease_client();
        let renewed = match lease {
            Some(id) => self.with_timeout(leases.keep_alive(id)).await?.ok().map(|_| id),
            None => None,
        };
        match renewed {
            Some(id) => Ok((id, false)),
            None => Ok((self.grant_lease(&connection, length.as_secs()).await?, true)),
        }
    }

    /// Writes this process's entry below `prefix`.
    async fn put_with_lease(&self, lease: i64, prefix: String, text: String) -> Result<(), StoreError> {
        let name = format!("{prefix}{}", self.own_report.process);
        let response = self.call_raw(|mut kv: KvClient| {
            let (name, text) = (name.clone(), text.clone());
            async move { kv.put(name, text, Some(PutOptions::new().with_lease(lease))).await }
        });
        response.await?.map(drop).map_err(|(connection, error)| self.unavailable(&connection, &error))
    }

    pub(super) async fn with_timeout<T>(
        &self,
        call: impl Future<Output = Result<T, Error>>,
    ) -> Result<Result<T, Error>, StoreError> {
        let timed_out = |_| StoreError::Unavailable { what: "no response in time".to_owned() };
        tokio::time::timeout(self.connections.timeout(), call).await.map_err(timed_out)
    }
}
