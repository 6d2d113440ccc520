//! The control plane's end of the push: from the store's changes to every data plane.
//!
//! Follows `store` in the path of a change: `store_watcher` (store -> compiled resources -> the
//! current snapshot; `findings`: problems of stored documents) -> `session` (one task for each
//! node: first what it lacks, then each change) -> `fleet` (which node serves which revision, for
//! the Admin API). `listener` is the TLS listener (`permit_stream`: a connection and its place
//! under the limit), `peer` the verified node at the other end; `rejection` records that a node
//! rejects or holds a change; `tickets` rotates the ring of ticket secrets, which `session` sends,
//! too; `reports` has the fleets of the other control planes; `refresh` has `store_watcher` reload
//! the store for a session; `deny_list` has the node certificates that must not connect;
//! `store_state` tells sessions whether the store is readable; `store_acceptance`, whether nodes
//! replace another store's state by this one's. Invariant: our own writes, other control planes'
//! writes and the state at start-up take the same path.

pub(crate) mod deny_list;
mod findings;
pub(crate) mod fleet;
mod listener;
mod peer;
mod permit_stream;
pub(crate) mod refresh;
mod rejection;
pub(crate) mod reports;
mod session;
pub(crate) mod store_acceptance;
mod store_state;
pub mod store_watcher;
mod tickets;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use deny_list::DeniedNodes;
pub(crate) use findings::StoredFindings;
pub use fleet::Fleet;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use listener::PUSH_KEY;
pub use listener::PushTls;
use model::Snapshot;
use mtls::{FileError, Reloader};
use reports::FleetWideView;
pub(crate) use reports::Reports;
use serde_json::Value;
pub use store_acceptance::StoreAcceptance;
use store_state::StoreStateWatcher;
use telemetry::{Heartbeats, Readiness};
use tokio::sync::watch as channel;
use tokio::task::JoinHandle;

use crate::inventory;
use crate::listener_errors::ListenError;
use crate::store::{Store, StoreError};

/// The input of [`start`].
#[derive(Clone)]
pub struct PublishConfig {
    pub store: Arc<dyn Store>,
    /// Decrypts the private keys in stored documents.
    pub keyring: Arc<pki::Keyring>,
    /// The setting with the keyring, for messages.
    pub keyring_setting: &'static str,
    /// Start although the keyring does not decrypt most of the stored keys
    /// (`--accept-unreadable-keys`).
    pub accept_unreadable_keys: bool,
    pub settings: conf::PushSettings,
    /// `countersign.node.server_name`: the name that data planes require of the push certificate.
    pub server_name: String,
    /// The lifetime of session tickets; `None`: no session is resumed.
    pub ticket_lifetime: Option<Duration>,
    /// Connections at a time; more wait in the accept queue.
    pub connections_max: usize,
    pub version: &'static str,
    /// Heartbeats of the publisher's loops.
    pub heartbeats: Arc<Heartbeats>,
    /// Turns true, or closes, on shutdown.
    pub shutdown: channel::Receiver<bool>,
}

impl From<FileError> for PublishError {
    fn from(error: FileError) -> Self {
        if error.missing { Self::Missing(error) } else { Self::Unusable(error) }
    }
}

pub struct Publisher {
    /// The nodes that are connected here.
    pub fleet: Arc<Fleet>,
    /// The nodes of all control planes over the store.
    pub reports: Arc<Reports>,
    /// The current snapshot; changes with every commit.
    pub latest: channel::Receiver<Arc<Snapshot>>,
    /// Since when the store is unreadable; `None`: it is readable.
    pub unreadable_since: channel::Receiver<Option<Instant>>,
    /// Nodes are disconnected when the store is unreadable for so long.
    pub stale_after: Duration,
    pub findings: Arc<StoredFindings>,
    pub denied: Arc<DeniedNodes>,
    pub acceptance: Arc<StoreAcceptance>,
    /// The push listener's address, with the port that the kernel picked.
    pub push_addr: SocketAddr,
    pub files: Reloader<PushTls>,
    /// Ends after shutdown, when every session has ended.
    pub done: JoinHandle<()>,
}

#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    #[error("{0}; `controlplane pki init` makes this file")]
    Missing(FileError),
    #[error("{0}")]
    Unusable(FileError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error("cannot load the store: {0}")]
    Store(#[from] StoreError),
    /// The keyring does not decrypt most of the stored keys.
    #[error("{0}")]
    Contents(#[from] inventory::KeyringMismatch),
    #[error("cannot load the deny-list of data planes: {0}")]
    Denied(#[from] deny_list::DenyListError),
}

/// What the Admin API shows of the data planes.
pub trait FleetStatus: Send + Sync + 'static {
    /// `{"list": [...], "total": n, "revision": N}`, and the other control planes where the store
    /// is shared.
    fn view(&self) -> BoxFuture<'_, Value>;

    /// Waits until every connected node of all control planes, and at least one, has acknowledged
    /// `revision`. Returns the view at that moment.
    ///
    /// # Errors
    /// The view, when `timeout` has passed.
    fn wait_acknowledged(&self, revision: u64, timeout: Duration) -> BoxFuture<'_, Result<Value, Value>>;

    /// Names of nodes that hold another store's state, each with what this store's state would
    /// remove.
    fn held_nodes(&self) -> Vec<(String, String)> {
        Vec::new()
    }
}

impl FleetStatus for Reports {
    fn view(&self) -> BoxFuture<'_, Value> {
        async { to_json(&self.view().await) }.boxed()
    }

    fn wait_acknowledged(&self, revision: u64, timeout: Duration) -> BoxFuture<'_, Result<Value, Value>> {
        async move {
            let reached = self.wait_acknowledged(revision, timeout).await;
            reached.map(|view| to_json(&view)).map_err(|view| to_json(&view))
        }
        .boxed()
    }

    fn held_nodes(&self) -> Vec<(String, String)> {
        let nodes = self.own().list.into_iter();
        nodes.filter_map(|node| Some((node.name, node.held?.to_string()))).collect()
    }
}

fn to_json(view: &FleetWideView) -> Value {
    serde_json::to_value(view).unwrap_or_default()
}

/// Loads the store, opens the push listener and serves until shutdown. Returns when the listener is
/// open and `latest` has the store's present state.
///
/// # Errors
/// [`PublishError`]; nothing is left running then.
pub async fn start(config: PublishConfig) -> Result<Publisher, PublishError> {
    let PublishConfig { store, keyring, settings, heartbeats, shutdown, .. } = config;
    let files = listener::load_files(&settings, config.server_name)?;
    let listener = listener::bind(settings.listen)?;
    let push_addr =
        listener.local_addr().map_err(|error| ListenError::new(PUSH_KEY, settings.listen, error))?;

    let denied = DeniedNodes::load(Arc::clone(&store)).await?;
    denied.spawn_refresh(shutdown.clone());
    let acceptance = StoreAcceptance::start(Arc::clone(&store), shutdown.clone()).await;
    let watcher = store_watcher::start(
        Arc::clone(&store),
        Arc::clone(&keyring),
        config.keyring_setting,
        config.accept_unreadable_keys,
        heartbeats.add("watch", Readiness::Required),
        shutdown.clone(),
    )
    .await?;
    // After the check of the stored keys: ring secrets that this keyring does not decrypt are
    // replaced.
    let tickets =
        tickets::start(&store, &keyring, config.keyring_setting, config.ticket_lifetime, shutdown.clone())
            .await;
    let fleet = Arc::new(Fleet::new(watcher.latest.clone()));
    let state = session::PushState {
        store: store.identity().to_owned(),
        version: config.version,
        files: files.clone(),
        allowed_names: settings.allowed_names.clone(),
        denied: denied.list(),
        acceptance: Arc::clone(&acceptance),
        latest: watcher.latest.clone(),
        refresh_handle: watcher.refresh_handle,
        store_state: StoreStateWatcher::new(watcher.store_stale, watcher.unreadable_since.clone()),
        tickets,
        fleet: Arc::clone(&fleet),
        shutdown: shutdown.clone(),
    };
    let stale_after = store_watcher::stale_after(&*store);
    let control_plane = reports::ControlPlaneIdentity::of(push_addr, config.version);
    let reports = Arc::new(Reports::new(Arc::clone(&fleet), store, control_plane, shutdown.clone()));
    tokio::spawn(Arc::clone(&reports).run(shutdown.clone()));
    let serving = listener::serve(
        listener,
        files.clone(),
        config.connections_max,
        session::service(state),
        heartbeats.add("push", Readiness::Required),
        shutdown,
    );
    let done = tokio::spawn(serve_until_stopped(serving, Arc::clone(&reports), watcher.task));
    Ok(Publisher {
        fleet,
        reports,
        latest: watcher.latest,
        unreadable_since: watcher.unreadable_since,
        stale_after,
        findings: watcher.findings,
        denied,
        acceptance,
        push_addr,
        files,
        done,
    })
}

/// Serves until shutdown, then withdraws our report and releases the store.
async fn serve_until_stopped(
    serving: impl Future<Output = Result<(), tonic::transport::Error>>,
    reports: Arc<Reports>,
    watcher_task: JoinHandle<()>,
) {
    if let Err(error) = serving.await {
        tracing::error!(%error, "the push listener ended");
    }
    reports.withdraw().await;
    watcher_task.abort();
}

/// The machine's name, by which operators tell control planes apart.
pub(crate) fn machine_name() -> String {
    conf::host_name().unwrap_or_else(|| "a machine without a name".to_owned())
}
