//! The control plane's end of the push: from the store's changes to every data plane.
//!
//! Stands after `store` in the walk of a change: `watch` (store -> checked resources -> `Latest`;
//! `adopted`: what another program wrote) -> `stream` (one task a node: what it lacks, then each
//! change) -> `fleet` (who holds what, for the Admin API; `hold`: what a node did not take over).
//! `listen` is the TLS listener, `peer` who is at the other end; `tickets` keeps the ring of ticket
//! secrets, which `stream` sends beside; `reports` is who holds what at the other control planes;
//! `nudge` is how a stream has `watch` read the store anew; `denied` is the list of node
//! certificates that may not connect; `store_state`, whether the store can be read; `accepted`,
//! whether nodes take this store's state over for another one's. Invariant: our own writes, other
//! control planes' writes and the state found at start take the same path.

pub(crate) mod deny_list;
mod findings;
pub(crate) mod fleet;
mod hold;
mod listener;
mod peer;
mod permit_stream;
pub(crate) mod refresh;
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
pub(crate) use findings::Findings;
pub use fleet::Fleet;
pub use listener::PushTls;
use model::Snapshot;
use mtls::{FileError, Reloader};
pub(crate) use reports::Reports;
pub use store_acceptance::StoreAcceptance;
use store_state::StoreStateWatcher;
use telemetry::{Heartbeats, Readiness};
use tokio::sync::watch as channel;
use tokio::task::JoinHandle;

use crate::inventory;
use crate::store::{Store, StoreError};

/// What `start` needs.
#[derive(Clone)]
pub struct PublishConfig {
    /// Where the documents are.
    pub store: Arc<dyn Store>,
    /// Opens the private keys in stored documents.
    pub keyring: Arc<pki::Keyring>,
    /// Starts although the keyring does not open most of the stored keys
    /// (`--accept-unreadable-keys`).
    pub accept_unreadable_keys: bool,
    /// `countersign.push`
    pub settings: conf::PushSettings,
    /// `countersign.node.server_name`: data planes demand it of the push certificate.
    pub server_name: String,
    /// How long a session ticket may live; `None`: no session is resumed anywhere.
    pub ticket_lifetime: Option<Duration>,
    /// Connections at a time; more wait to be accepted.
    pub connections_max: usize,
    /// The program's version, told to the nodes.
    pub version: &'static str,
    /// Where the loops of the publisher show that they run.
    pub heartbeats: Arc<Heartbeats>,
    /// Turns true, or closes, when the process stops.
    pub shutdown: channel::Receiver<bool>,
}

impl From<FileError> for PublishError {
    fn from(error: FileError) -> Self {
        if error.missing { Self::Missing(error) } else { Self::Unusable(error) }
    }
}

/// A running publisher.
pub struct Publisher {
    /// Who holds what, of the nodes that are served here.
    pub fleet: Arc<Fleet>,
    /// The same of all control planes over the store.
    pub reports: Arc<Reports>,
    /// The newest state; changes with every commit.
    pub latest: channel::Receiver<Arc<Snapshot>>,
    /// Since when the store cannot be read; `None`: it can.
    pub unread_since: channel::Receiver<Option<Instant>>,
    /// Nodes are let go when the store cannot be read for so long.
    pub stale_after: Duration,
    /// What is to be said about the stored documents.
    pub findings: Arc<Findings>,
    /// Which nodes may not connect.
    pub denied: Arc<DeniedNodes>,
    /// Whether nodes that serve another store's state take this one's over.
    pub accepted: Arc<StoreAcceptance>,
    /// Where data planes dial, with the port the kernel picked.
    pub push_addr: SocketAddr,
    /// The certificate files of the push listener.
    pub files: Reloader<PushTls>,
    /// Ends after shutdown, when every stream is closed.
    pub done: JoinHandle<()>,
}

/// Why the push cannot start.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// A PEM file is not there.
    #[error("{0}; `controlplane pki init` makes this file")]
    Missing(FileError),
    /// A PEM file does not hold what it should, or cannot be read.
    #[error("{0}")]
    Unusable(FileError),
    /// The listener cannot be opened.
    #[error("countersign.push.listen: cannot listen on {address}: {source}{hint}")]
    Listen {
        /// The configured address.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
        /// What to do; empty or starts with a semicolon.
        hint: &'static str,
    },
    /// The store cannot be read.
    #[error("cannot load the store: {0}")]
    Store(#[from] StoreError),
    /// The keyring does not open most of the stored keys.
    #[error("{0}")]
    Contents(#[from] inventory::KeyringMismatch),
    /// The deny-list of data planes cannot be read.
    #[error("cannot load the deny-list of data planes: {0}")]
    Denied(#[from] deny_list::DenyListError),
}

/// Loads the store, opens the push listener and serves until shutdown. Answers when the listener is
/// open and the store's present state is in `latest`.
///
/// # Errors
/// `PublishError`: nothing is left running then.
pub async fn start(input: PublishConfig) -> Result<Publisher, PublishError> {
    let PublishConfig {
        store,
        keyring,
        accept_unreadable_keys,
        settings,
        server_name,
        ticket_lifetime,
        connections_max,
        version,
        heartbeats,
        shutdown,
    } = input;
    let files = listener::load_files(&settings, server_name)?;
    let listener = listener::bind(settings.listen)?;
    let push_addr = listener.local_addr().map_err(|source| PublishError::Listen {
        address: settings.listen,
        source,
        hint: "",
    })?;

    let cut_off_after = store_watcher::stale_after(&*store);
    let identity = store.identity().to_owned();
    let denied = DeniedNodes::load(Arc::clone(&store)).await?;
    denied.spawn_refresh(shutdown.clone());
    let accepted = StoreAcceptance::start(Arc::clone(&store), shutdown.clone()).await;
    let heartbeat = heartbeats.add("watch", Readiness::Required);
    let (watched, opening) = (Arc::clone(&store), Arc::clone(&keyring));
    let store_watcher::WatcherHandle {
        latest,
        findings,
        refresh_handle: nudge,
        store_stale: cut_off,
        unread_since: unread,
        task: watching,
    } = store_watcher::start(watched, opening, accept_unreadable_keys, heartbeat, shutdown.clone()).await?;
    // After the stored keys are judged: secrets that this keyring does not open are replaced.
    let tickets = tickets::start(&store, &keyring, ticket_lifetime, shutdown.clone()).await;
    let fleet = Arc::new(Fleet::new(latest.clone()));
    let us = reports::ControlPlaneIdentity::of(push_addr, version);
    let reports = Arc::new(Reports::new(Arc::clone(&fleet), store, us, shutdown.clone()));
    tokio::spawn(Arc::clone(&reports).run(shutdown.clone()));
    let desk = session::PushState {
        store: identity,
        version,
        files: files.clone(),
        allowed_names: settings.allowed_names.clone(),
        denied: denied.list(),
        accepted: Arc::clone(&accepted),
        latest: latest.clone(),
        refresh_handle: nudge,
        reading: StoreStateWatcher::new(cut_off, unread.clone()),
        tickets,
        fleet: Arc::clone(&fleet),
        shutdown: shutdown.clone(),
    };
    let heartbeat = heartbeats.add("push", Readiness::Required);
    let serving = listener::serve(
        listener,
        files.clone(),
        connections_max,
        session::service(desk),
        heartbeat,
        shutdown,
    );
    let done = tokio::spawn(serve_until_stopped(serving, Arc::clone(&reports), watching));
    Ok(Publisher {
        fleet,
        reports,
        latest,
        unread_since: unread,
        stale_after: cut_off_after,
        findings,
        denied,
        accepted,
        push_addr,
        files,
        done,
    })
}

/// Serves to the end, then withdraws our report and lets go of the store.
async fn serve_until_stopped(
    serving: impl Future<Output = Result<(), tonic::transport::Error>>,
    reports: Arc<Reports>,
    watching: JoinHandle<()>,
) {
    if let Err(error) = serving.await {
        tracing::error!(%error, "the push listener ended");
    }
    reports.withdraw().await;
    watching.abort();
}

/// The machine's name, for people: which of several control planes it was.
pub(crate) fn machine_name() -> String {
    conf::host_name().unwrap_or_else(|| "a machine without a name".to_owned())
}
