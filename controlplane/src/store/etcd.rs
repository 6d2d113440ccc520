//! The store in an etcd cluster: the documents and keys that an APISIX has there (contract 9).
//!
//! `dial` makes one verified connection and names the step that fails. `probe` checks each endpoint
//! at start. `connection` keeps one endpoint connected and fails over to the next. `read`, `write`
//! and `watch` implement the store; `layout` encodes keys and values; `cache` answers read requests
//! while the cluster is unreachable, and has the documents for the first plan of a write.
//!
//! Invariant: reads are linearizable, and a write is acknowledged when a majority has it on disk.

mod cache;
mod compare;
mod connection;
pub(crate) mod dial;
mod layout;
mod metrics;
pub(crate) mod probe;
mod read;
mod reports;
mod txn;
mod watch;
mod write;

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cache::DocumentCache;
use connection::{ConnectionManager, EtcdConnection};
use etcd_client::{Compare, CompareOp, Error, KvClient, Txn, TxnOp};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use layout::Layout;
use metrics::{EndpointStates, EtcdMetrics};
use model::{Key, Kind};
use prometheus_client::registry::Registry;
use telemetry::Heartbeat;
use tonic::Code;
use write::Fence;
use zeroize::Zeroizing;

use super::metrics::StoreGauge;
use super::{
    Batch, CachedDocuments, CommitResult, DocumentList, EventStream, InternalEntry, InternalKey, Page,
    RecentDocuments, ReportEntries, Store, StoreError, StoredDocument, UnknownKeys,
};

/// The delay before a call with a transient error is repeated.
const RETRY_DELAY: Duration = Duration::from_millis(50);

/// A store in etcd. Needs a tokio runtime.
pub(crate) struct EtcdStore {
    identity: String,
    /// The random part of the identity, stored in the cluster: a cluster that lost its data has
    /// another one, although its cluster id is the same. `None`: absent, and this user may not
    /// write.
    store_id: Option<String>,
    cluster: Arc<Cluster>,
}

/// State shared by calls and watches.
struct Cluster {
    layout: Layout,
    connections: ConnectionManager,
    cache: DocumentCache,
    fence: Fence,
    own_report: reports::OwnReport,
    watch_timeout: Duration,
    resync_delay: Duration,
    metrics: EtcdMetrics,
}

impl EtcdStore {
    /// Connects to the first endpoint that answers. Writes nothing.
    ///
    /// # Errors
    /// When the configuration is invalid, or no endpoint answers; the message has the cause per
    /// endpoint.
    pub(crate) async fn open(settings: &conf::Settings) -> Result<Self, StoreError> {
        let etcd = &settings.deployment.etcd;
        let invalid = |error: dial::DialError| StoreError::Unavailable { what: error.to_string() };
        let layout = Layout::new(&etcd.prefix);
        let connection_settings = connection::ConnectionSettings {
            endpoints: dial::Endpoint::from_config(etcd).map_err(invalid)?,
            tls: dial::ClientTls::of(settings),
            user: etcd.user.clone().zip(etcd.password.clone()),
            timeout: etcd.timeout,
            cooldown: etcd.health_check_timeout,
        };
        let connections = ConnectionManager::open(connection_settings, layout.clone()).await?;
        let (watch_timeout, resync_delay) = (etcd.watch_timeout, etcd.resync_delay);
        let (cache, fence) = (DocumentCache::default(), Fence::default());
        let own_report = reports::OwnReport::default();
        let cluster = Arc::new(Cluster {
            layout,
            connections,
            cache,
            fence,
            own_report,
            watch_timeout,
            resync_delay,
            metrics: EtcdMetrics::default(),
        });
        let id = cluster.cluster_id().await?;
        let (store_id, _) = cluster.read_store_id().await?;
        // Revisions count within one cluster, and keys within one prefix.
        let identity = format!("etcd-{id:016x}{}", etcd.prefix.trim_end_matches('/'));
        Ok(Self { identity, store_id: None, cluster }.with_store_id(store_id))
    }

    fn with_store_id(mut self, store_id: Option<String>) -> Self {
        if let Some(store_id) = &store_id {
            self.identity.push('~');
            self.identity.push_str(store_id);
        }
        Self { store_id, ..self }
    }
}

impl EtcdStore {
    pub(crate) fn files(&self) -> &mtls::Reloader<dial::LoadedTls> {
        self.cluster.connections.files()
    }

    /// Creates the directories that an APISIX expects, and the store's identity, if they are
    /// absent. A user without write permission gets a warning only: reads still work.
    ///
    /// # Errors
    /// When no endpoint answers.
    pub(crate) async fn initialize(self) -> Result<Self, StoreError> {
        let Cluster { layout, connections, .. } = &*self.cluster;
        for directory in layout::DIRECTORIES {
            let name = layout.directory_key(directory);
            let created = self.cluster.call_raw(|mut kv: KvClient| {
                let absent = Compare::version(name.as_str(), CompareOp::Equal, 0);
                let put = TxnOp::put(name.as_str(), layout::PLACEHOLDER, None);
                let txn = Txn::new().when([absent]).and_then([put]);
                async move { kv.txn(txn).await }
            });
            if let Err((connection, error)) = created.await? {
                let problem = connections.describe_error(&connection, &error);
                tracing::warn!(problem, "etcd permits no writes; existing documents are served");
                return Ok(self);
            }
        }
        if self.store_id.is_some() {
            return Ok(self);
        }
        let (_, version) = self.cluster.read_store_id().await?;
        let new_id = format!("{:032x}", rand::random::<u128>());
        if let Err(error) = self.cluster.write_store_id(&new_id, version).await {
            tracing::warn!(%error, "the store's identity cannot be written");
        }
        // Of several control planes that start together, one has written it.
        let (store_id, _) = self.cluster.read_store_id().await?;
        Ok(self.with_store_id(store_id))
    }

    /// Fails when the loaded store is not the store of the start: the cluster lost its data, or was
    /// replaced. Writes the identity again if it was removed from a store whose revision went on.
    async fn verify_identity(&self, last_revision: u64, loaded: &DocumentList) -> Result<(), StoreError> {
        let Some(store_id) = &self.store_id else { return Ok(()) };
        let (stored_id, version) = self.cluster.read_store_id().await?;
        if stored_id.as_ref() == Some(store_id) {
            return Ok(());
        }
        if stored_id.is_none() && loaded.revision >= last_revision {
            tracing::warn!("the store's identity was removed from etcd; it is written again");
            return self.cluster.write_store_id(store_id, version).await;
        }
        Err(StoreError::Unavailable {
            what: format!(
                "what etcd has below {} is not the store of the start (revision {} after {last_revision}, identity {}): it lost its data, or is \
                 another cluster. Restore a backup of it, or restart the control plane to serve what is there",
                self.prefix(),
                loaded.revision,
                stored_id.as_deref().unwrap_or("none"),
            ),
        })
    }
}

impl Cluster {
    /// The random part of the identity and the version of its entry; `None` for an absent or
    /// invalid entry.
    async fn read_store_id(&self) -> Result<(Option<String>, u64), StoreError> {
        let Some(entry) = self.internal_entry(InternalKey::Identity).await? else { return Ok((None, 0)) };
        let text = entry.text.trim();
        let is_valid = (1..=64).contains(&text.len()) && text.chars().all(|c| c.is_ascii_alphanumeric());
        Ok((is_valid.then(|| text.to_owned()), entry.version))
    }

    /// Writes the entry if it still has this version (0: absent); another control plane may be
    /// faster.
    async fn write_store_id(&self, text: &str, version: u64) -> Result<(), StoreError> {
        match self.swap_internal_entry(InternalKey::Identity, version, text).await {
            Ok(_) | Err(StoreError::Conflict { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The store's revision at the last health check.
    fn known_revision(&self) -> u64 {
        layout::from_etcd_revision(self.connections.revision())
    }

    fn is_reachable(&self) -> bool {
        self.connections.unreachable_for().is_none()
    }

    async fn cluster_id(&self) -> Result<u64, StoreError> {
        let fence = self.layout.fence_key();
        let response = self.call(|mut kv: KvClient| {
            let fence = fence.clone();
            async move { kv.get(fence, None).await }
        });
        Ok(response.await?.header().map_or(0, etcd_client::ResponseHeader::cluster_id))
    }

    /// Makes an idempotent call, repeated on any endpoint until the time-out of a call.
    async fn call<T, F, C>(&self, call: C) -> Result<T, StoreError>
    where
        C: Fn(KvClient) -> F,
        F: Future<Output = Result<T, Error>>,
    {
        let response = self.call_raw(call).await?;
        response.map_err(|(connection, error)| self.unavailable(&connection, &error))
    }

    /// Maps an error response of etcd to the store's error.
    fn unavailable(&self, connection: &EtcdConnection, error: &Error) -> StoreError {
        StoreError::Unavailable { what: self.connections.describe_error(connection, error) }
    }

    /// As [`Self::call`], with etcd's own error response.
    async fn call_raw<T, F, C>(&self, call: C) -> Result<Result<T, (EtcdConnection, Error)>, StoreError>
    where
        C: Fn(KvClient) -> F,
        F: Future<Output = Result<T, Error>>,
    {
        let deadline = tokio::time::Instant::now() + self.connections.timeout();
        loop {
            let connection = self.connections.current().await?;
            let sent = Instant::now();
            let error = tokio::select! {
                response = call(connection.kv()).inspect(|_| self.metrics.requests.observe(sent)) => match response {
                    Ok(value) => return Ok(Ok(value)),
                    Err(error) if !is_transient(&error) => return Ok(Err((connection, error))),
                    Err(error) => Some(error),
                },
                () = self.connections.wait_lost(&connection) => None,
                () = tokio::time::sleep_until(deadline) => None,
            };
            if tokio::time::Instant::now() >= deadline {
                let what = error.map_or_else(
                    || "no response in time".to_owned(),
                    |e| self.connections.describe_error(&connection, &e),
                );
                return Err(StoreError::Unavailable { what });
            }
            // `current` waits after a lost connection. An endpoint that answers health checks but
            // not this call must not be called in a tight loop.
            if error.is_some() {
                tokio::time::sleep(RETRY_DELAY).await;
            }
            self.connections.check_health(&connection).await;
        }
    }
}

/// Whether a retry, now or on another endpoint, may succeed.
fn is_transient(error: &Error) -> bool {
    match error {
        Error::GRpcStatus(status) => matches!(
            status.code(),
            Code::Unavailable
                | Code::Unknown
                | Code::DeadlineExceeded
                | Code::Cancelled
                | Code::Aborted
                | Code::Internal
        ),
        Error::TransportError(_) | Error::IoError(_) => true,
        _ => false,
    }
}

impl Store for EtcdStore {
    fn identity(&self) -> &str {
        &self.identity
    }

    fn heartbeat(&self) -> Option<Arc<Heartbeat>> {
        Some(Arc::clone(self.cluster.connections.heartbeat()))
    }

    fn register_metrics(&self, registry: &mut Registry) {
        let cluster = Arc::downgrade(&self.cluster);
        let revision = move || cluster.upgrade().map_or(0, |cluster| cluster.known_revision());
        registry.register_collector(Box::new(StoreGauge::revision(revision)));
        let cluster = Arc::downgrade(&self.cluster);
        let reachable = move || cluster.upgrade().map_or(0, |cluster| cluster.is_reachable().into());
        let help = "Whether an etcd endpoint answers health checks";
        registry.register_collector(Box::new(StoreGauge::new("etcd_reachable", help, reachable)));
        let cluster = Arc::downgrade(&self.cluster);
        let endpoints =
            move || cluster.upgrade().map(|cluster| cluster.connections.endpoints()).unwrap_or_default();
        registry.register_collector(Box::new(EndpointStates(Box::new(endpoints))));
        self.cluster.metrics.register(registry);
    }

    fn load(&self) -> BoxFuture<'_, Result<DocumentList, StoreError>> {
        async {
            let start = self.cluster.cache.start_load(self.cluster.connections.epoch());
            let loaded = self.cluster.load_documents(&Kind::ALL).await?;
            self.verify_identity(start.revision, &loaded).await?;
            self.cluster.cache.replace(&loaded, &start);
            Ok(loaded)
        }
        .boxed()
    }

    fn list(&self, kind: Kind) -> BoxFuture<'_, Result<DocumentList, StoreError>> {
        async move { self.cluster.load_documents(&[kind]).await }.boxed()
    }

    fn page(&self, kind: Kind, first: usize, size: usize) -> BoxFuture<'_, Result<Page, StoreError>> {
        self.cluster.page(kind, first, size).boxed()
    }

    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<StoredDocument>, StoreError>> {
        self.cluster.get(key).boxed()
    }

    fn commit(&self, batch: Batch) -> BoxFuture<'_, Result<CommitResult, StoreError>> {
        self.cluster.commit(batch).boxed()
    }

    fn reserve_id(&self) -> BoxFuture<'_, Result<u64, StoreError>> {
        self.cluster.reserve_id().boxed()
    }

    fn internal_entry(&self, key: InternalKey) -> BoxFuture<'_, Result<Option<InternalEntry>, StoreError>> {
        self.cluster.internal_entry(key).boxed()
    }

    fn swap_internal_entry(
        &self,
        key: InternalKey,
        expect: u64,
        text: Zeroizing<String>,
    ) -> BoxFuture<'_, Result<u64, StoreError>> {
        async move { self.cluster.swap_internal_entry(key, expect, &text).await }.boxed()
    }

    fn expiries(&self) -> BoxFuture<'_, Result<BTreeMap<Key, Instant>, StoreError>> {
        self.cluster.expiries().boxed()
    }

    fn reports(&self) -> Option<&dyn ReportEntries> {
        Some(&*self.cluster)
    }

    fn watch(&self, after: u64) -> EventStream {
        watch::events(Arc::downgrade(&self.cluster), after)
    }

    fn resync_delay(&self) -> Duration {
        self.cluster.resync_delay
    }

    fn wait_available(&self) -> BoxFuture<'_, ()> {
        async {
            if self.cluster.connections.unreachable_for().is_none()
                || self.cluster.connections.wait_connected().await.is_none()
            {
                std::future::pending::<()>().await;
            }
        }
        .boxed()
    }

    fn prefix(&self) -> &str {
        self.cluster.layout.root().trim_end_matches('/')
    }

    fn unknown_keys(&self) -> BoxFuture<'_, Result<Vec<UnknownKeys>, StoreError>> {
        self.cluster.unknown_keys().boxed()
    }

    fn recent(&self) -> Option<RecentDocuments> {
        self.cluster.cache.of_epoch(self.cluster.connections.epoch()?)
    }

    fn cached(&self, kind: Option<Kind>) -> Option<CachedDocuments> {
        let age = self.cluster.connections.unreachable_for()?;
        Some(CachedDocuments { age, documents: self.cluster.cache.documents(kind)? })
    }
}

#[cfg(test)]
pub(crate) mod tests;
