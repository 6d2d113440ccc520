//! Starts and stops the control plane: wires the stages and prints `ready`. What a stage does is in
//! the stage.
//!
//! Order: everything that can fail is checked before anything listens, so a control plane that
//! prints `ready` has a store, a key and its certificates. On a stop signal the Admin API finishes
//! open requests, then the push ends, then the store closes.

mod admin;
mod descriptors;
mod events;
mod in_use_retry;
mod reload;
mod sockets;
pub(crate) mod status;
mod succession;
mod upgrade;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use admin::AdminParts;
pub(crate) use admin::admin_key_folder;
use conf::{ConfigProvider, Settings};
pub(crate) use events::TARGET;
use events::{ControlEvent, Events};
use in_use_retry::InUseRetry;
use mtls::{CertificateMonitor, FileError, StatusAccessRules};
use pki::Keyring;
use process::handover::{HandoverError, OfferedSuccession, Program};
use process::signals::Signals;
use process::socket_activation::{ActivationError, UnknownSocket};
use serde_json::{Value, json};
use sockets::InheritedSockets;
use succession::Origin;
use telemetry::log::LogFileError;
use telemetry::status::{StatusAccessHandle, StatusListener, StatusServer};
use telemetry::{Heartbeats, ServiceManager};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use upgrade::{EmbeddedOwner, Lineage};

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
    /// The certificates of the status listener.
    #[error("{0}")]
    StatusFile(#[from] FileError),
    #[error("apisix.data_encryption.keyring: {0}")]
    Keyring(#[from] pki::KeyringError),
    #[error("{0}")]
    KeyringFile(#[from] conf::KeyringFileError),
    #[error("{0}")]
    Missing(#[from] conf::MissingFiles),
    #[error("{0}")]
    Publish(#[from] PublishError),
    #[error("{0}")]
    Handover(#[from] HandoverError),
    #[error("{0}")]
    Activation(#[from] ActivationError),
    #[error("{0}")]
    UnknownSocket(#[from] UnknownSocket),
    #[error("{0}")]
    Listen(#[from] ListenError),
    #[error("nginx_config.error_log: {0}")]
    Log(#[from] LogFileError),
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

/// Runs until a stop signal, or until a successor has taken over. A signal during the start ends
/// the start.
///
/// # Errors
/// When it cannot start; nothing listens then, or the predecessor goes on.
pub(crate) async fn run(
    settings: Settings,
    options: StartOptions,
    signals: &Signals,
    (program, offer): (Program, Option<OfferedSuccession>),
) -> Result<(), StartupError> {
    let mut stop_signal = signals.stop();
    let service = ServiceManager::from_env();
    let mut origin = Origin::new(offer)?;
    let lineage = Lineage { program, generations: origin.generations.clone() };
    let mut events = Events::new(signals);
    let started = tokio::select! {
        started = start(settings, options, signals, &service, &mut origin, &mut events) => started?,
        () = wait_for_stop(&mut stop_signal) => return Ok(()),
    };
    // Sockets of listeners that the settings no longer have close with the predecessor.
    drop(origin);
    let mut running = started;
    loop {
        match events.next().await {
            ControlEvent::Stop => break,
            ControlEvent::Reload(reply) => {
                service.reloading();
                let result = tokio::select! {
                    () = wait_for_stop(&mut stop_signal) => break,
                    result = running.reload() => result,
                };
                service.reloaded();
                reply.send(result);
            }
            ControlEvent::Upgrade(reply) => match running.upgrade(&lineage, signals).await {
                Ok(successor) => {
                    reply.send(Ok(format!(
                        "the control plane is process {} now; process {} ends",
                        successor.pid(),
                        std::process::id()
                    )));
                    return running.drain_after_handover(successor, service).await;
                }
                Err(error) => {
                    tracing::error!("upgrade: this process serves on as before: {error}");
                    reply.send(Err(format!("{error}; the control plane serves as before, in this process")));
                    events.upgrade_ended();
                }
            },
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
    /// Has the certificate files read again.
    reload_certificates: watch::Sender<u64>,
    /// Those of the store's clients alone.
    store_certificates: CertificateMonitor,
    /// Serves until the other listeners close.
    status: Option<StatusServer>,
    /// Who may reach it.
    status_access: StatusAccessHandle,
    /// Duplicates of the listening sockets, for a successor.
    push_socket: std::net::TcpListener,
    status_socket: Option<std::net::TcpListener>,
    /// `None` with etcd.
    embedded: Option<EmbeddedOwner>,
}

impl RunningServer {
    /// Reports that the control plane serves, and begins to watch over it. The service manager
    /// hears of a successor when it has been `released`: the predecessor has named it by then.
    fn announce(
        &self,
        heartbeats: Arc<Heartbeats>,
        service: &ServiceManager,
        released: Option<JoinHandle<()>>,
    ) {
        let addresses = self.admin.addresses();
        let status = self.status_socket.as_ref().and_then(|socket| socket.local_addr().ok());
        print_ready(self.api.store.identity(), &addresses, self.publish.push_addr, status);
        let (service, state) = (service.clone(), status::service_state(&self.publish));
        tokio::spawn(async move {
            if let Some(released) = released {
                // It does not panic, and is not aborted.
                let _has_ended = released.await.is_ok();
            }
            service.watch(heartbeats, state);
        });
        tokio::spawn(self.certificates.clone().run(self.reload_certificates.subscribe()));
    }

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
        let Self { stop, admin, api, publish, status, push_socket, status_socket, embedded, .. } = self;
        // The last duplicate closes a socket.
        drop((push_socket, status_socket));
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
        drop(embedded);
        Ok(())
    }
}

async fn start(
    settings: Settings,
    options: StartOptions,
    signals: &Signals,
    service: &ServiceManager,
    origin: &mut Origin,
    events: &mut Events,
) -> Result<RunningServer, StartupError> {
    let connections = descriptors::connection_limits()?;
    let (tls, keyring) = check_files(&settings)?;
    let status_rules = status::access_rules(&settings)?;
    let mut in_use_retry = InUseRetry::new(settings.countersign.drain_delay.saturating_add(STOP_MAX));
    let status = bind_status(&settings, &mut origin.sockets, &mut in_use_retry).await?;
    let status_socket = status.as_ref().map(StatusListener::try_clone).transpose()?;
    let permitted = origin.wait_permitted(signals).await?;
    let mut store_certificates = CertificateMonitor::default();
    let (store, embedded) = open_store(&settings, &mut store_certificates, &mut in_use_retry).await?;
    let heartbeats = Arc::<Heartbeats>::default();
    store.heartbeat().into_iter().for_each(|heartbeat| heartbeats.register(heartbeat));
    let (stop, stopped) = watch::channel(false);

    let push_socket = bind_push(&settings, &mut origin.sockets, &mut in_use_retry).await?;
    let publish = publish::start(PublishConfig {
        store: Arc::clone(&store),
        keyring: Arc::clone(&keyring),
        keyring_setting: settings.keyring_setting(),
        accept_unreadable_keys: options.accept_unreadable_keys,
        settings: settings.countersign.push.clone(),
        listener: Some(push_socket.try_clone()?),
        generations: origin.generations.clone(),
        server_name: settings.countersign.node.server_name.clone(),
        ticket_lifetime: ticket_lifetime(&settings),
        connections_max: connections.push,
        version: env!("CARGO_PKG_VERSION"),
        heartbeats: Arc::clone(&heartbeats),
        shutdown: stopped.clone(),
    })
    .await?;
    let certificates = all_certificates(&tls, &store_certificates, &publish, &status_rules);
    let parts = AdminParts::new(&store, &publish);
    let api = Arc::new(parts.api(&settings, &certificates, keyring).await?);
    let bound = admin::bind_listeners(&settings, &tls, &mut origin.sockets, &mut in_use_retry).await?;
    origin.ensure_no_socket_is_left()?;
    let limits = admin::admin_limits(&settings, connections.admin);
    let status_access = StatusAccessHandle::new(status_rules.access);
    let shown = (&heartbeats, &publish, &certificates);
    let status = status::serve(status, &status_access, shown, signals.clone())?;
    let admin = AdminServer::start(bound, &api, limits, &heartbeats)?;
    let released = succession::report_serving(permitted, signals).await?;
    events.listen(&settings, origin.predecessor);
    let running = RunningServer {
        settings,
        options,
        stop,
        admin,
        api,
        admin_connections: connections.admin,
        publish,
        certificates,
        reload_certificates: watch::Sender::new(0),
        store_certificates,
        status,
        status_access,
        push_socket,
        status_socket,
        embedded,
    };
    running.announce(heartbeats, service, released);
    Ok(running)
}

/// Reads what the settings name, before anything listens.
fn check_files(settings: &Settings) -> Result<(ListenerTls, Arc<Keyring>), StartupError> {
    for warning in &settings.warnings {
        tracing::warn!("{warning}");
    }
    settings.check_control_plane_files()?;
    Ok((ListenerTls::from_settings(settings)?, Arc::new(keyring(settings)?)))
}

async fn bind_status(
    settings: &Settings,
    sockets: &mut InheritedSockets,
    in_use_retry: &mut InUseRetry,
) -> Result<Option<StatusListener>, StartupError> {
    let Some(address) = settings.countersign.control_plane.status else { return Ok(None) };
    if let Some(socket) = sockets.take(status::STATUS_KEY, address) {
        return Ok(Some(StatusListener::from_std(socket)?));
    }
    let bind = || std::future::ready(status::bind(address).map_err(StartupError::from));
    in_use_retry.run(StartupError::is_in_use, bind).await.map(Some)
}

async fn bind_push(
    settings: &Settings,
    sockets: &mut InheritedSockets,
    in_use_retry: &mut InUseRetry,
) -> Result<std::net::TcpListener, StartupError> {
    let address = settings.countersign.push.listen;
    if let Some(socket) = sockets.take(publish::PUSH_KEY, address) {
        return Ok(socket);
    }
    let bind = || std::future::ready(publish::bind(address).map_err(StartupError::from));
    in_use_retry.run(StartupError::is_in_use, bind).await
}

fn all_certificates(
    tls: &ListenerTls,
    store: &CertificateMonitor,
    publish: &publish::Publisher,
    status: &StatusAccessRules,
) -> CertificateMonitor {
    let mut all = CertificateMonitor::default();
    tls.iter().for_each(|tls| all.add(&tls.files));
    all.add_all(store);
    all.add(&publish.files);
    status.files.iter().for_each(|files| all.add(files));
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
) -> Result<(Arc<dyn Store>, Option<EmbeddedOwner>), StartupError> {
    match settings.deployment.provider {
        ConfigProvider::Etcd => {
            let client_tls = ClientTls::of(settings);
            probe::startup::probe_all(&settings.deployment.etcd, &client_tls).await?;
            let store = EtcdStore::open(settings).await?.initialize().await?;
            certificates.add(store.files());
            Ok((Arc::new(store), None))
        }
        ConfigProvider::Embedded => {
            let path = settings.countersign.store.path.clone();
            let open = || async {
                let path = path.clone();
                let opened = tokio::task::spawn_blocking(move || EmbeddedStore::open(&path)).await;
                Ok::<_, StartupError>(opened.map_err(io::Error::other)??)
            };
            let store = Arc::new(in_use_retry.run(StartupError::is_in_use, open).await?);
            let backups = Some(backup_socket::serve(&store, &path));
            Ok((Arc::clone(&store) as Arc<dyn Store>, Some(EmbeddedOwner { store, path, backups })))
        }
    }
}
