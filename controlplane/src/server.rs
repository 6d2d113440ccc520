//! Boot: puts the stages together, says `ready`, and takes them apart again. Wiring only; what a
//! stage does is in the stage.
//!
//! Order: everything that can be refused is judged before anything listens, so a control plane that
//! says `ready` has a store, a key and its certificates. On a stop signal the Admin API finishes
//! what runs, then the push ends, then the store.

mod descriptors;
mod in_use_retry;
pub(crate) mod status;

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use conf::{ConfigProvider, Settings};
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, TryFutureExt};
use model::RealIp;
use pem_files::CertificateMonitor;
use pki::Keyring;
use process::signals::Signals;
use serde_json::Value;
use telemetry::Heartbeats;
use telemetry::status::StatusServer;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::admin::access::{Access, ApiKey};
use crate::admin::admin_key::{self, AdminKeyError};
use crate::admin::nodes::FleetStatus;
use crate::admin::reply::ResponseHeaders;
use crate::admin::tls::{ReloadingTls, TlsError};
use crate::admin::{AdminApi, AdminServer, Limits};
use crate::change::ChangePipeline;
use crate::current_snapshot::{CurrentSnapshot, ListenerSettings};
use crate::publish::reports::FleetWideView;
use crate::publish::{self, PublishConfig, PublishError, Reports};
use crate::server::in_use_retry::InUseRetry;
use crate::store::etcd::dial::ClientTls;
use crate::store::etcd::probe;
use crate::store::{EmbeddedStore, EtcdStore, Store, StoreError, backup_socket};

/// The longest a stop may take once it is asked for, whatever `worker_shutdown_timeout` says: Admin
/// calls are short.
const STOP_MAX: Duration = Duration::from_secs(10);

/// What `apisix.enable_admin: false` leads to, and the role data_plane.
pub(crate) const ADMIN_DISABLED: &str = "false, or the role is data_plane: no Admin API is opened";

/// Why the control plane did not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartupError {
    /// The store cannot be used.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// Too few of etcd's endpoints will do.
    #[error("{0}")]
    Etcd(#[from] probe::startup::StartError),
    /// There is no usable admin key.
    #[error("{0}")]
    AdminKey(#[from] AdminKeyError),
    /// The Admin API's certificates cannot be used.
    #[error("{0}")]
    Tls(#[from] TlsError),
    /// The keyring cannot be used.
    #[error("apisix.data_encryption.keyring: {0}")]
    Keyring(#[from] pki::KeyringError),
    /// The keyring's file cannot be used.
    #[error("{0}")]
    KeyringFile(#[from] conf::KeyringFileError),
    /// Files are not there.
    #[error("{0}")]
    Missing(#[from] conf::MissingFiles),
    /// HTTPS without a certificate.
    #[error(
        "missing ssl cert for https admin: set deployment.admin.admin_api_mtls.admin_ssl_cert and admin_ssl_cert_key, or https_admin: false"
    )]
    NoCertificate,
    /// The configuration asks for something this program does not do.
    #[error("{0}")]
    Unsupported(&'static str),
    /// The push cannot start.
    #[error("{0}")]
    Publish(#[from] PublishError),
    /// An address cannot be listened on.
    #[error("{0}")]
    Listen(String),
    /// Another process listens on an address.
    #[error("{0}")]
    AddressInUse(String),
    /// The operating system refused something else.
    #[error("the control plane cannot start: {0}")]
    System(#[from] io::Error),
}

impl StartupError {
    /// Why an address of ours cannot be listened on.
    pub(crate) fn listen(key: &str, address: SocketAddr, error: &io::Error) -> Self {
        let problem = describe_listen_error(key, address, error);
        match error.kind() {
            io::ErrorKind::AddrInUse => Self::AddressInUse(problem),
            _ => Self::Listen(problem),
        }
    }

    /// Whether another process has the address or the store: one that stops gives it up.
    fn is_in_use(&self) -> bool {
        match self {
            Self::AddressInUse(_) | Self::Store(StoreError::Locked { .. }) => true,
            Self::Publish(PublishError::Listen { source, .. }) => source.kind() == io::ErrorKind::AddrInUse,
            _ => false,
        }
    }
}

/// What the command line adds to the settings of one start.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct StartOptions {
    /// Start although the keyring does not open most of the private keys in the store; data planes
    /// refuse the sites and upstreams with these keys.
    #[arg(long)]
    accept_unreadable_keys: bool,
}

/// Runs until a stop signal. One that comes during the start ends the start.
///
/// # Errors
/// When it cannot start; nothing listens then.
pub(crate) async fn run(
    settings: Settings,
    start_as: StartOptions,
    signals: &Signals,
) -> Result<(), StartupError> {
    let mut asked = signals.stop();
    let delay = settings.countersign.drain_delay;
    let started = tokio::select! {
        started = start(settings, start_as, signals) => started?,
        () = wait_for_stop(&mut asked) => return Ok(()),
    };
    wait_for_stop(&mut asked).await;
    let RunningServer { stop, serving, publish, status } = started;
    if !delay.is_zero() {
        tracing::info!(seconds = delay.as_secs_f64(), "accepting connections until drain_delay has passed");
        tokio::time::sleep(delay).await;
    }
    // Of the ports the first one that a successor binds.
    if let Some(status) = status {
        tokio::task::spawn_blocking(move || status.close()).await.map_err(io::Error::other)?;
    }
    stop.send_replace(true);
    if let Some(serving) = serving
        && let Err(error) = serving.await
    {
        tracing::error!(%error, "the Admin API did not end in order");
    }
    if tokio::time::timeout(STOP_MAX, publish.done).await.is_err() {
        tracing::warn!("stopped before every data plane's stream ended");
    }
    Ok(())
}

/// Ends when a stop signal has come.
async fn wait_for_stop(asked: &mut watch::Receiver<bool>) {
    // An error: the thread that sends has ended, and with it all signals.
    let _stopping = asked.wait_for(|stop| *stop).await.is_ok();
}

/// A control plane that serves.
struct RunningServer {
    /// Stops it.
    stop: watch::Sender<bool>,
    /// The Admin API, where one is served.
    serving: Option<JoinHandle<()>>,
    publish: publish::Publisher,
    /// Answers until the listeners close.
    status: Option<StatusServer>,
}

async fn start(
    settings: Settings,
    start_as: StartOptions,
    signals: &Signals,
) -> Result<RunningServer, StartupError> {
    for warning in &settings.warnings {
        tracing::warn!("{warning}");
    }
    let share = descriptors::connection_limits()?;
    settings.check_control_plane_files()?;
    let tls = admin_tls(&settings)?;
    let keyring = Arc::new(keyring(&settings)?);
    let mut predecessor = InUseRetry::new(settings.countersign.drain_delay.saturating_add(STOP_MAX));
    let bind = || std::future::ready(status::bind(&settings));
    let status = predecessor.run(StartupError::is_in_use, bind).await?;
    let mut certificates = CertificateMonitor::default();
    if let Some(tls) = &tls {
        certificates.add(&tls.files);
    }
    let store = open_store(&settings, &mut certificates, &mut predecessor).await?;
    let heartbeats = Arc::<Heartbeats>::default();
    store.heartbeat().into_iter().for_each(|heartbeat| heartbeats.register(heartbeat));
    let (stop, stopped) = watch::channel(false);

    let push = PublishConfig {
        store: Arc::clone(&store),
        keyring: Arc::clone(&keyring),
        accept_unreadable_keys: start_as.accept_unreadable_keys,
        settings: settings.countersign.push.clone(),
        server_name: settings.countersign.node.server_name.clone(),
        ticket_lifetime: settings.apisix.ssl.session_tickets.then_some(settings.countersign.ticket_lifetime),
        connections_max: share.push,
        version: env!("CARGO_PKG_VERSION"),
        heartbeats: Arc::clone(&heartbeats),
        shutdown: stopped.clone(),
    };
    let start_push = || publish::start(push.clone()).err_into::<StartupError>();
    let publish = predecessor.run(StartupError::is_in_use, start_push).await?;
    certificates.add(&publish.files);
    let server = match settings.deployment.admin.enabled {
        true => {
            let listeners = ListenerSettings {
                certificates: certificates.clone(),
                ..ListenerSettings::from_settings(&settings)
            };
            let admin = admin_api(&settings, listeners, store.clone(), keyring, &publish).await?;
            let listener = bind_admin_listener(&settings, &mut predecessor).await?;
            Some(AdminServer::new(listener, tls, admin, admin_limits(&settings, share.admin), &heartbeats))
        }
        false => None,
    };
    let admin = server.as_ref().map(AdminServer::address).transpose()?;
    let status =
        status.map(|listener| status::serve(listener, &heartbeats, &publish, &certificates, signals.clone()));
    let status = status.transpose()?;
    match admin {
        Some(address) => {
            tracing::info!(%address, store = store.identity(), "the control plane is ready");
        }
        None => tracing::info!(
            store = store.identity(),
            "the control plane is ready; apisix.enable_admin: {ADMIN_DISABLED}"
        ),
    }
    print_ready(admin, publish.push_addr, status.as_ref().map(StatusServer::address));
    let serving = server.map(|server| tokio::spawn(server.run(stopped)));
    tokio::spawn(certificates.run(signals.reload()));
    Ok(RunningServer { stop, serving, publish, status })
}

/// What the Admin API answers from.
async fn admin_api(
    settings: &Settings,
    listeners: ListenerSettings,
    store: Arc<dyn Store>,
    keyring: Arc<Keyring>,
    publish: &publish::Publisher,
) -> Result<AdminApi, StartupError> {
    let shared = store.reports().is_some().then(|| Arc::clone(&store));
    Ok(AdminApi {
        changes: ChangePipeline::new(Arc::clone(&store), Arc::clone(&keyring)),
        store,
        access: admin_access(settings, shared.as_deref()).await?,
        fleet: Arc::new(Pushed(Arc::clone(&publish.reports))),
        denied: Arc::clone(&publish.denied),
        acceptance: Arc::clone(&publish.accepted),
        current: CurrentSnapshot::new(publish.latest.clone(), Arc::clone(&publish.findings), listeners),
        keyring,
        headers: ResponseHeaders {
            server_tokens: settings.apisix.server_tokens,
            cors: settings.deployment.admin.cors,
        },
        body_timeout: settings.http.client_body_timeout,
        stream_routes_enabled: settings.apisix.proxy_mode.streams(),
    })
}

/// Where the Admin API listens.
async fn bind_admin_listener(
    settings: &Settings,
    predecessor: &mut InUseRetry,
) -> Result<TcpListener, StartupError> {
    let address = settings.deployment.admin.listen;
    let bind = || {
        let failed = |error| StartupError::listen("deployment.admin.admin_listen", address, &error);
        TcpListener::bind(address).map_err(failed)
    };
    predecessor.run(StartupError::is_in_use, bind).await
}

/// The one line on stdout that says where everything listens; a listener that is switched off is
/// left out.
fn print_ready(admin: Option<SocketAddr>, push: SocketAddr, status: Option<SocketAddr>) {
    let listeners = [("admin", admin), ("push", Some(push)), ("status", status)];
    let addresses =
        listeners.into_iter().filter_map(|(name, at)| Some((name.to_owned(), at?.to_string().into())));
    telemetry::stdout::write_ready_line(&Value::Object(addresses.collect()));
}

/// What the configuration asks for in TLS on the Admin API.
pub(crate) fn admin_tls(settings: &Settings) -> Result<Option<ReloadingTls>, StartupError> {
    let admin = &settings.deployment.admin;
    if !admin.enabled {
        return Ok(None);
    }
    if !admin.v3 {
        return Err(StartupError::Unsupported(
            "deployment.admin.admin_api_version: only v3 is supported: remove the key, or write v3",
        ));
    }
    if !admin.https {
        if admin.tls.as_ref().is_some_and(|tls| tls.ca.is_some()) {
            tracing::warn!(
                "admin_api_mtls is set but https_admin is false: the Admin API asks for NO client certificate"
            );
        }
        return Ok(None);
    }
    let files = admin.tls.as_ref().ok_or(StartupError::NoCertificate)?;
    let ssl = &settings.apisix.ssl;
    Ok(Some(ReloadingTls::load(files, &ssl.protocols, ssl.ciphers.as_ref())?))
}

/// What seals and opens the private keys in the store.
pub(crate) fn keyring(settings: &Settings) -> Result<Keyring, StartupError> {
    Ok(Keyring::new(settings.keyring()?)?)
}

/// The store that the configuration names. Adds the certificate files it is reached with.
async fn open_store(
    settings: &Settings,
    certificates: &mut CertificateMonitor,
    predecessor: &mut InUseRetry,
) -> Result<Arc<dyn Store>, StartupError> {
    match settings.deployment.provider {
        ConfigProvider::Etcd => {
            let security = ClientTls::of(settings);
            probe::startup::probe_all(&settings.deployment.etcd, &security).await?;
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
            let store = Arc::new(predecessor.run(StartupError::is_in_use, open).await?);
            backup_socket::serve(&store, &path);
            Ok(store)
        }
    }
}

/// Where the admin keys that were made are kept.
pub(crate) fn admin_key_folder(settings: &Settings) -> &Path {
    settings.countersign.store.path.parent().unwrap_or(Path::new("."))
}

/// `store`: where control planes that share it agree on a key.
async fn admin_access(settings: &Settings, store: Option<&dyn Store>) -> Result<Access, StartupError> {
    let admin = &settings.deployment.admin;
    let conf::RealIpSettings { header, from, recursive } = &settings.real_ip;
    let real_ip = RealIp::new(header, from, *recursive);
    let allow = admin.allow.clone();
    if !admin.key_required {
        tracing::warn!(
            "Warning! Admin key is bypassed! If you are deploying APISIX in a production environment, please enable \
             `admin_key_required` and set a secure admin key!"
        );
        return Ok(Access::new(allow, None).with_real_ip(real_ip));
    }
    let keys =
        admin_key::resolve_keys(&admin.keys, &settings.path, admin_key_folder(settings), store).await?;
    for ready in &keys {
        if let Some(path) = &ready.created {
            // For the person who starts it, once, whatever the log's level.
            telemetry::log::write_unfiltered(&format_args!(
                "admin key for {:?}: {}   (made now, kept in {})",
                ready.name,
                *ready.key,
                path.display()
            ));
        }
    }
    let entries: Vec<_> =
        keys.iter().map(|ready| ApiKey { name: &ready.name, key: &ready.key, role: ready.role }).collect();
    let access = Access::new(allow, Some(&entries)).with_real_ip(real_ip);
    let shared = keys.iter().filter_map(|ready| Some((ready, ready.shared_digest?)));
    Ok(shared.fold(access, |access, (ready, digest)| access.with_key_digest(&ready.name, digest, ready.role)))
}

fn admin_limits(settings: &Settings, connections: usize) -> Limits {
    Limits {
        connections_max: connections,
        handshake_timeout: settings.countersign.limits.handshake_timeout,
        header_timeout: settings.http.client_header_timeout,
        header_bytes_max: settings.countersign.limits.header_bytes.max(8192),
        send_timeout: settings.http.send_timeout,
        shutdown_timeout: settings.http.worker_shutdown_timeout.min(STOP_MAX),
    }
}

/// Why an address cannot be listened on, for a person.
pub(crate) fn describe_listen_error(key: &str, address: SocketAddr, error: &io::Error) -> String {
    let hint = match error.kind() {
        io::ErrorKind::AddrInUse => ": another program listens there; stop it, or choose another port",
        io::ErrorKind::PermissionDenied => ": ports below 1024 need root or CAP_NET_BIND_SERVICE",
        io::ErrorKind::AddrNotAvailable => ": this machine has no such address",
        _ => "",
    };
    format!("{key}: cannot listen on {address}: {error}{hint}")
}

/// What the push knows about data planes, as the Admin API shows it.
struct Pushed(Arc<Reports>);

impl FleetStatus for Pushed {
    fn view(&self) -> BoxFuture<'_, Value> {
        async { shown(&self.0.view().await) }.boxed()
    }

    fn wait_acknowledged(&self, revision: u64, patience: Duration) -> BoxFuture<'_, Result<Value, Value>> {
        async move {
            let reached = self.0.wait_acknowledged(revision, patience).await;
            reached.map(|view| shown(&view)).map_err(|view| shown(&view))
        }
        .boxed()
    }

    fn held_nodes(&self) -> Vec<(String, String)> {
        self.0.own().list.into_iter().filter_map(|node| Some((node.name, node.held?.to_string()))).collect()
    }
}

fn shown(view: &FleetWideView) -> Value {
    serde_json::to_value(view).unwrap_or_default()
}
