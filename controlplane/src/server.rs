//! Starts and stops the control plane: wires the stages and prints `ready`. What a stage does is in
//! the stage.
//!
//! Order: everything that can fail is checked before anything listens, so a control plane that
//! prints `ready` has a store, a key and its certificates. On a stop signal the Admin API finishes
//! open requests, then the push ends, then the store closes.

mod admin;
mod descriptors;
mod in_use_retry;
mod reload;
pub(crate) mod status;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use admin::AdminParts;
pub(crate) use admin::admin_key_folder;
use conf::{ConfigProvider, Settings};
use in_use_retry::InUseRetry;
use mtls::CertificateMonitor;
use pki::Keyring;
use process::signals::Signals;
use serde_json::{Value, json};
use telemetry::status::StatusServer;
use telemetry::{Heartbeats, ServiceManager};
use tokio::sync::watch;

use crate::admin::key_file::AdminKeyError;
use crate::admin::tls::{ListenerTls, TlsError};
use crate::admin::{AdminApi, AdminServer};
use crate::listener_errors::ListenError;
use crate::publish::{self, PublishConfig, PublishError};
use crate::store::etcd::dial::ClientTls;
use crate::store::etcd::probe;
use crate::store::{EmbeddedStore, EtcdStore, Store, StoreError, backup_socket};

/// The longest shutdown, whatever `worker_shutdown_timeout` says: Admin API requests are short.
const STOP_MAX: Duration = Duration::from_secs(10);

/// The effect of `apisix.enable_admin: false` and of the role data_plane.
pub(crate) const ADMIN_DISABLED: &str = "false, or the role is data_plane: no Admin API is opened";

/// Why the control plane does not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartupError {
    #[error("{0}")]
    Store(#[from] StoreError),
    /// Too few etcd endpoints pass their probes.
    #[error("{0}")]
    Etcd(#[from] probe::startup::StartError),
    #[error("{0}")]
    AdminKey(#[from] AdminKeyError),
    #[error("{0}")]
    Tls(#[from] TlsError),
    #[error("apisix.data_encryption.keyring: {0}")]
    Keyring(#[from] pki::KeyringError),
    #[error("{0}")]
    KeyringFile(#[from] conf::KeyringFileError),
    #[error("{0}")]
    Missing(#[from] conf::MissingFiles),
    #[error("{0}")]
    Publish(#[from] PublishError),
    #[error("{0}")]
    Listen(#[from] ListenError),
    #[error("the control plane cannot start: {0}")]
    System(#[from] io::Error),
}

impl StartupError {
    /// Whether another process holds the address or the store: one that is stopping releases it.
    fn is_in_use(&self) -> bool {
        match self {
            Self::Store(StoreError::Locked { .. }) => true,
            Self::Listen(error) | Self::Publish(PublishError::Listen(error)) => error.is_in_use(),
            _ => false,
        }
    }
}

/// Options of the command line for one start.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct StartOptions {
    /// Start although the keyring does not decrypt most of the private keys in the store; data
    /// planes reject the sites and upstreams with these keys.
    #[arg(long)]
    accept_unreadable_keys: bool,
}

/// Runs until a stop signal. A signal during the start ends the start.
///
/// # Errors
/// When it cannot start; nothing listens then.
pub(crate) async fn run(
    settings: Settings,
    options: StartOptions,
    signals: &Signals,
) -> Result<(), StartupError> {
    let mut stop_signal = signals.stop();
    let mut reload_signal = signals.reload();
    let service = ServiceManager::from_env();
    let mut running = tokio::select! {
        started = start(settings, options, signals, &service) => started?,
        () = wait_for_stop(&mut stop_signal) => return Ok(()),
    };
    loop {
        tokio::select! {
            () = wait_for_stop(&mut stop_signal) => break,
            Ok(()) = reload_signal.changed() => {}
        }
        service.reloading();
        tokio::select! {
            () = wait_for_stop(&mut stop_signal) => break,
            _logged = running.reload() => service.reloaded(),
        }
    }
    service.stopping();
    running.stop().await?;
    tokio::task::spawn_blocking(move || service.flush()).await.map_err(io::Error::other)?;
    Ok(())
}

/// Ends when a stop signal has arrived.
async fn wait_for_stop(stop_signal: &mut watch::Receiver<bool>) {
    // An error means that the sender's thread has ended, and all signals with it.
    drop(stop_signal.wait_for(|stop| *stop).await);
}

/// A running control plane.
struct RunningServer {
    /// Those in force.
    settings: Settings,
    options: StartOptions,
    /// Ends the push.
    stop: watch::Sender<bool>,
    admin: AdminServer,
    api: Arc<AdminApi>,
    /// The most connections to the Admin API.
    admin_connections: usize,
    publish: publish::Publisher,
    certificates: CertificateMonitor,
    /// Those of the store's clients alone.
    store_certificates: CertificateMonitor,
    /// Serves until the other listeners close.
    status: Option<StatusServer>,
}

impl RunningServer {
    /// Drains and closes everything.
    async fn stop(self) -> Result<(), StartupError> {
        let delay = self.settings.countersign.drain_delay;
        if !delay.is_zero() {
            tracing::info!(
                seconds = delay.as_secs_f64(),
                "accepting connections until drain_delay has passed"
            );
            tokio::time::sleep(delay).await;
        }
        let Self { stop, admin, api, publish, status, .. } = self;
        // A successor binds the status port first.
        if let Some(status) = status {
            tokio::task::spawn_blocking(move || status.close()).await.map_err(io::Error::other)?;
        }
        stop.send_replace(true);
        admin.close().await;
        drop(api);
        if tokio::time::timeout(STOP_MAX, publish.done).await.is_err() {
            tracing::warn!("stopped before every data plane's stream ended");
        }
        Ok(())
    }
}

async fn start(
    settings: Settings,
    options: StartOptions,
    signals: &Signals,
    service: &ServiceManager,
) -> Result<RunningServer, StartupError> {
    for warning in &settings.warnings {
        tracing::warn!("{warning}");
    }
    let connections = descriptors::connection_limits()?;
    settings.check_control_plane_files()?;
    let tls = ListenerTls::from_settings(&settings)?;
    let keyring = Arc::new(keyring(&settings)?);
    let mut in_use_retry = InUseRetry::new(settings.countersign.drain_delay.saturating_add(STOP_MAX));
    let bind = || std::future::ready(status::bind(&settings).map_err(StartupError::from));
    let status = in_use_retry.run(StartupError::is_in_use, bind).await?;
    let mut store_certificates = CertificateMonitor::default();
    let store = open_store(&settings, &mut store_certificates, &mut in_use_retry).await?;
    let heartbeats = Arc::<Heartbeats>::default();
    store.heartbeat().into_iter().for_each(|heartbeat| heartbeats.register(heartbeat));
    let (stop, stopped) = watch::channel(false);

    let bind =
        || std::future::ready(publish::bind(settings.countersign.push.listen).map_err(StartupError::from));
    let listener = in_use_retry.run(StartupError::is_in_use, bind).await?;
    let publish = publish::start(PublishConfig {
        store: Arc::clone(&store),
        keyring: Arc::clone(&keyring),
        keyring_setting: settings.keyring_setting(),
        accept_unreadable_keys: options.accept_unreadable_keys,
        settings: settings.countersign.push.clone(),
        listener: Some(listener),
        server_name: settings.countersign.node.server_name.clone(),
        ticket_lifetime: ticket_lifetime(&settings),
        connections_max: connections.push,
        version: env!("CARGO_PKG_VERSION"),
        heartbeats: Arc::clone(&heartbeats),
        shutdown: stopped.clone(),
    })
    .await?;
    let certificates = all_certificates(&tls, &store_certificates, &publish);
    let parts = AdminParts::new(&store, &publish);
    let api = Arc::new(parts.api(&settings, &certificates, keyring).await?);
    let bound = admin::bind_listeners(&settings, &tls, &mut in_use_retry).await?;
    let limits = admin::admin_limits(&settings, connections.admin);
    let status =
        status.map(|listener| status::serve(listener, &heartbeats, &publish, &certificates, signals.clone()));
    let status = status.transpose()?;
    let admin = AdminServer::start(bound, &api, limits, &heartbeats)?;
    let status_address = status.as_ref().map(StatusServer::address);
    print_ready(store.identity(), &admin.addresses(), publish.push_addr, status_address);
    service.watch(heartbeats, status::service_state(&publish));
    tokio::spawn(certificates.clone().run(signals.reload()));
    Ok(RunningServer {
        settings,
        options,
        stop,
        admin,
        api,
        admin_connections: connections.admin,
        publish,
        certificates,
        store_certificates,
        status,
    })
}

fn all_certificates(
    tls: &ListenerTls,
    store: &CertificateMonitor,
    publish: &publish::Publisher,
) -> CertificateMonitor {
    let mut all = CertificateMonitor::default();
    tls.iter().for_each(|tls| all.add(&tls.files));
    all.add_all(store);
    all.add(&publish.files);
    all
}

/// `None`: no session is resumed.
fn ticket_lifetime(settings: &Settings) -> Option<Duration> {
    settings.apisix.ssl.session_tickets.then_some(settings.countersign.ticket_lifetime)
}

/// Logs that the control plane is ready, and prints the one line on stdout that has every
/// listener's address; disabled listeners are left out. `admin` is the first of `admin_listeners`.
fn print_ready(store: &str, admin: &[SocketAddr], push: SocketAddr, status: Option<SocketAddr>) {
    let admin: Vec<_> = admin.iter().map(SocketAddr::to_string).collect();
    match admin.first() {
        Some(_) => tracing::info!(address = admin.join(", "), store, "the control plane is ready"),
        None => tracing::info!(store, "the control plane is ready; apisix.enable_admin: {ADMIN_DISABLED}"),
    }
    let first = admin.first().map(|address| Value::from(address.as_str()));
    let listeners = [
        ("admin", first),
        ("admin_listeners", Some(admin.into()).filter(|listeners: &Value| *listeners != json!([]))),
        ("push", Some(push.to_string().into())),
        ("status", status.map(|address| address.to_string().into())),
    ];
    let addresses = listeners.into_iter().filter_map(|(name, at)| Some((name.to_owned(), at?)));
    telemetry::stdout::write_ready_line(&Value::Object(addresses.collect()));
}

/// The keyring that encrypts the private keys in the store.
pub(crate) fn keyring(settings: &Settings) -> Result<Keyring, StartupError> {
    Ok(Keyring::new(settings.keyring()?)?)
}

/// Opens the configured store and registers its certificate files.
async fn open_store(
    settings: &Settings,
    certificates: &mut CertificateMonitor,
    in_use_retry: &mut InUseRetry,
) -> Result<Arc<dyn Store>, StartupError> {
    match settings.deployment.provider {
        ConfigProvider::Etcd => {
            let client_tls = ClientTls::of(settings);
            probe::startup::probe_all(&settings.deployment.etcd, &client_tls).await?;
            let store = EtcdStore::open(settings).await?.initialize().await?;
            certificates.add(store.files());
            Ok(Arc::new(store))
        }
        ConfigProvider::Embedded => {
            let path = settings.countersign.store.path.clone();
            let open = || async {
                let path = path.clone();
                let opened = tokio::task::spawn_blocking(move || EmbeddedStore::open(&path)).await;
                Ok::<_, StartupError>(opened.map_err(io::Error::other)??)
            };
            let store = Arc::new(in_use_retry.run(StartupError::is_in_use, open).await?);
            backup_socket::serve(&store, &path);
            Ok(store)
        }
    }
}
