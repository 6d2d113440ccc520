//! The control plane's end of the push: from the store's changes to every data plane.
//!
//! Follows `store` in the path of a change: `store_watcher` (store -> compiled resources -> the
//! current snapshot; `findings`: problems of stored documents) -> `session` (one task for each
//! node: first what it lacks, then each change) -> `fleet` (which node serves which revision, for
//! the Admin API). `listener` is the TLS listener (`permit_stream`: a connection and its place
//! under the limit), `peer` the verified node at the other end; `rejection` records that a node
//! rejects or holds a change; `metrics` has what is counted of the nodes; `tickets` rotates the
//! ring of ticket secrets, which `session` sends, too; `reports` has the fleets of the other
//! control planes; `refresh` has `store_watcher` reload the store for a session; `deny_list` has
//! the node certificates that must not connect;
//! `store_state` tells sessions whether the store is readable; `store_acceptance`, whether nodes
//! replace another store's state by this one's. Invariant: our own writes, other control planes'
//! writes and the state at start-up take the same path.

pub(crate) mod deny_list;
mod findings;
pub(crate) mod fleet;
mod listener;
mod metrics;
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
pub use listener::PushTls;
pub(crate) use listener::{PUSH_KEY, bind};
use model::Snapshot;
use mtls::{FileError, Reloader};
use process::handover::Generations;
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
    /// The bound listener; `None`: `settings.listen` is bound.
    pub listener: Option<std::net::TcpListener>,
    /// `countersign.node.server_name`: the name that data planes require of the push certificate.
    pub server_name: String,
    /// The lifetime of session tickets; `None`: no session is resumed.
    pub ticket_lifetime: Option<Duration>,
    /// Connections at a time; more wait in the accept queue.
    pub connections_max: usize,
    pub version: &'static str,
    /// The predecessors of this process, which may still serve nodes.
    pub generations: Generations,
    /// Heartbeats of the publisher's loops.
    pub heartbeats: Arc<Heartbeats>,
    /// Turns true, or closes, on shutdown.
    pub shutdown: channel::Receiver<bool>,
}

impl PublishConfig {
    fn live_settings(&self) -> LiveSettings {
        LiveSettings {
            keyring: Arc::clone(&self.keyring),
            allowed_names: self.settings.allowed_names.clone().into(),
            ticket_lifetime: self.ticket_lifetime,
        }
    }
}

impl From<FileError> for PublishError {
    fn from(error: FileError) -> Self {
        if error.missing { Self::Missing(error) } else { Self::Unusable(error) }
    }
}

/// The settings that may change while the publisher runs.
#[derive(Clone)]
pub struct LiveSettings {
    pub keyring: Arc<pki::Keyring>,
    /// `countersign.push.allowed_names`
    pub allowed_names: Arc<[String]>,
    /// As [`PublishConfig::ticket_lifetime`].
    pub ticket_lifetime: Option<Duration>,
}

/// Follows the settings.
pub(crate) type CurrentSettings = channel::Receiver<LiveSettings>;

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
    /// Changes the settings.
    pub(crate) settings: channel::Sender<LiveSettings>,
    /// False while the queue of the listener is a successor's.
    pub(crate) accepting: channel::Sender<bool>,
    /// Reloads the store.
    pub(crate) refresh_handle: refresh::RefreshHandle,
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
    /// A reload with another keyring.
    #[error(
        "{setting}: the stored secrets of session tickets cannot be opened with it ({problem}): put the entry that sealed them back \
         behind the first one, until they have rotated (half of countersign.ticket_lifetime)"
    )]
    TicketSecrets { setting: &'static str, problem: String },
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
pub async fn start(mut config: PublishConfig) -> Result<Publisher, PublishError> {
    let files = listener::load_files(&config.settings, config.server_name.clone())?;
    let (listener, push_addr) = listener::open(config.listener.take(), config.settings.listen)?;
    let (live, current) = channel::channel(config.live_settings());
    let PublishConfig { store, heartbeats, shutdown, .. } = config;
    let denied = DeniedNodes::load(Arc::clone(&store)).await?;
    denied.spawn_refresh(shutdown.clone());
    let acceptance = StoreAcceptance::start(Arc::clone(&store), shutdown.clone()).await;
    let watcher = store_watcher::start(
        Arc::clone(&store),
        current.clone(),
        config.keyring_setting,
        config.accept_unreadable_keys,
        heartbeats.add("watch", Readiness::Required),
        shutdown.clone(),
    )
    .await?;
    // After the check of the stored keys: ring secrets that this keyring does not decrypt are
    // replaced.
    let tickets = tickets::start(&store, current.clone(), config.keyring_setting, shutdown.clone()).await;
    let fleet = Arc::new(Fleet::new(watcher.latest.clone()));
    let state = session::PushState {
        store: store.identity().to_owned(),
        version: config.version,
        files: files.clone(),
        settings: current,
        denied: denied.list(),
        acceptance: Arc::clone(&acceptance),
        latest: watcher.latest.clone(),
        refresh_handle: watcher.refresh_handle.clone(),
        store_state: StoreStateWatcher::new(watcher.store_stale, watcher.unreadable_since.clone()),
        tickets,
        fleet: Arc::clone(&fleet),
        shutdown: shutdown.clone(),
    };
    let stale_after = store_watcher::stale_after(&*store);
    let control_plane = reports::ControlPlaneIdentity::of(push_addr, config.version, config.generations);
    let reports = Arc::new(Reports::new(Arc::clone(&fleet), store, control_plane, shutdown.clone()));
    tokio::spawn(Arc::clone(&reports).run(shutdown.clone()));
    let (accepting, may_accept) = channel::channel(true);
    let serving = listener::serve(
        (listener, may_accept),
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
        settings: live,
        accepting,
        refresh_handle: watcher.refresh_handle,
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

impl Publisher {
    /// Checks that a keyring decrypts what is stored: private keys, and the secrets of session
    /// tickets.
    ///
    /// # Errors
    /// When it does not, or when the store cannot be read.
    pub(crate) async fn check_keyring(
        store: &Arc<dyn Store>,
        keyring: &Arc<pki::Keyring>,
        keyring_setting: &'static str,
        accept_unreadable_keys: bool,
    ) -> Result<(), PublishError> {
        let loaded = Arc::new(store.load().await?);
        store_watcher::check_keyring(&loaded, keyring, keyring_setting, accept_unreadable_keys).await?;
        let opened = tickets::check_keyring(&**store, keyring).await;
        opened.map_err(|problem| PublishError::TicketSecrets { setting: keyring_setting, problem })
    }

    /// Applies changed settings.
    pub(crate) async fn update(&self, settings: LiveSettings) {
        let former = self.settings.send_replace(settings.clone());
        if !Arc::ptr_eq(&former.keyring, &settings.keyring)
            && let Err(error) = self.refresh_handle.refresh().await
        {
            // What could not be decrypted is tried again with the next load.
            tracing::warn!(%error, "the stored documents could not be read with the new keyring");
        }
    }
}

/// The machine's name, by which operators tell control planes apart.
pub(crate) fn machine_name() -> String {
    conf::host_name().unwrap_or_else(|| "a machine without a name".to_owned())
}
