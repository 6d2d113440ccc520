//! Wires the Admin API: its listeners, access control and limits, from the settings.
//!
//! Owns which setting becomes what; `admin` knows no settings.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use conf::{ADMIN_LISTEN, AdminListener, Settings};
use model::RealIp;
use mtls::CertificateMonitor;
use pki::Keyring;
use socket2::{Domain, Socket, Type};
use tokio::net::TcpListener;

use super::in_use_retry::InUseRetry;
use super::sockets::InheritedSockets;
use super::{STOP_MAX, StartupError};
use crate::admin::access::{Access, ApiKey};
use crate::admin::addresses::AllowedAddresses;
use crate::admin::admin_key;
use crate::admin::key_file::MissingKey;
use crate::admin::reply::ResponseHeaders;
use crate::admin::tls::ListenerTls;
use crate::admin::{AdminApi, BoundListener, Limits, ListenerSocket, ListenerUpdate};
use crate::change::ChangePipeline;
use crate::current_snapshot::{CurrentSnapshot, ListenerSettings};
use crate::listener_errors::ListenError;
use crate::publish::{DeniedNodes, FleetStatus, Publisher, StoreAcceptance};
use crate::store::Store;

/// Connections that wait to be accepted, as tokio has it.
const BACKLOG: i32 = 1024;

/// What the Admin API has besides its settings. It outlives them: turns of writers, counts.
pub(super) struct AdminParts {
    store: Arc<dyn Store>,
    changes: ChangePipeline,
    fleet: Arc<dyn FleetStatus>,
    denied: Arc<DeniedNodes>,
    acceptance: Arc<StoreAcceptance>,
    current: CurrentSnapshot,
    missing_key: MissingKey,
}

impl AdminParts {
    pub(super) fn new(store: &Arc<dyn Store>, publish: &Publisher) -> Self {
        let (latest, findings) = (publish.latest.clone(), Arc::clone(&publish.findings));
        Self {
            store: Arc::clone(store),
            // Its keyring comes with the settings.
            changes: ChangePipeline::new(Arc::clone(store), Arc::new(Keyring::empty())),
            fleet: publish.reports.clone(),
            denied: Arc::clone(&publish.denied),
            acceptance: Arc::clone(&publish.acceptance),
            current: CurrentSnapshot::new(latest, findings, ListenerSettings::default()),
            missing_key: MissingKey::Create,
        }
    }

    /// Those of a running one, for a reload.
    pub(super) fn of(api: &AdminApi) -> Self {
        Self {
            store: Arc::clone(&api.store),
            changes: api.changes.clone(),
            fleet: Arc::clone(&api.fleet),
            denied: Arc::clone(&api.denied),
            acceptance: Arc::clone(&api.acceptance),
            current: api.current.with_listeners(ListenerSettings::default()),
            missing_key: MissingKey::Refuse,
        }
    }

    /// The Admin API with these settings. A disabled one accepts no key.
    ///
    /// # Errors
    /// When there is no usable admin key.
    pub(super) async fn api(
        self,
        settings: &Settings,
        certificates: &CertificateMonitor,
        keyring: Arc<Keyring>,
    ) -> Result<AdminApi, StartupError> {
        let Self { store, changes, fleet, denied, acceptance, current, missing_key } = self;
        let shared = store.reports().is_some().then(|| Arc::clone(&store));
        let access = match settings.deployment.admin.enabled {
            true => admin_access(settings, shared.as_deref(), missing_key).await?,
            false => Access::new(Some(&[])),
        };
        let listeners = ListenerSettings {
            certificates: certificates.clone(),
            ..ListenerSettings::from_settings(settings)
        };
        Ok(AdminApi {
            changes: changes
                .with_keyring(Arc::clone(&keyring))
                .with_protected_client_auth(settings.deployment.admin.protect_client_auth),
            store,
            access,
            fleet,
            denied,
            acceptance,
            current: current.with_listeners(listeners),
            keyring,
            headers: ResponseHeaders {
                server_tokens: settings.apisix.server_tokens,
                cors: settings.deployment.admin.cors,
            },
            body_timeout: settings.http.client_body_timeout,
            stream_routes_enabled: settings.apisix.proxy_mode.streams(),
        })
    }
}

/// The configured listeners; none when the Admin API is disabled.
pub(super) fn configured(settings: &Settings) -> &[AdminListener] {
    let admin = &settings.deployment.admin;
    if admin.enabled { &admin.listeners } else { &[] }
}

/// Binds the Admin API's addresses.
pub(super) async fn bind_listeners(
    settings: &Settings,
    tls: &ListenerTls,
    sockets: &mut InheritedSockets,
    in_use_retry: &mut InUseRetry,
) -> Result<Vec<BoundListener>, StartupError> {
    let listeners = configured(settings);
    let mut bound = Vec::with_capacity(listeners.len());
    for listener in listeners {
        let bind = || std::future::ready(bind(listener, listeners).map_err(StartupError::from));
        let listener_socket = match sockets.take(ADMIN_LISTEN, listener.address) {
            Some(socket) => TcpListener::from_std(socket)?,
            None => in_use_retry.run(StartupError::is_in_use, bind).await?,
        };
        bound.push(BoundListener {
            listener: listener_socket,
            tls: tls.of_listener(listener),
            allowed: allowed(settings, listener),
        });
    }
    Ok(bound)
}

/// The listeners after a reload: an address that `former` has, too, keeps its socket. `bound`: the
/// addresses of the former ones, with the ports that the kernel picked.
///
/// # Errors
/// When a new address cannot be bound.
pub(super) fn updated_listeners(
    (former, bound): (&Settings, &[SocketAddr]),
    settings: &Settings,
    tls: &ListenerTls,
) -> Result<Vec<ListenerUpdate>, ListenError> {
    let listeners = configured(settings);
    let kept = kept_listeners(configured(former), bound, listeners);
    let update = |(listener, kept): (&AdminListener, Option<usize>)| {
        let socket = match kept {
            Some(index) => ListenerSocket::Running(index),
            None => ListenerSocket::Bound(bind(listener, listeners)?),
        };
        Ok(ListenerUpdate { socket, tls: tls.of_listener(listener), allowed: allowed(settings, listener) })
    };
    listeners.iter().zip(kept).map(update).collect()
}

/// For each listener the index of a former one with its address: that at the same place of the list
/// first, since several may have port 0.
fn kept_listeners(
    former: &[AdminListener],
    bound: &[SocketAddr],
    listeners: &[AdminListener],
) -> Vec<Option<usize>> {
    let addresses = former.iter().zip(bound);
    let mut left: Vec<_> = addresses.map(|(listener, bound)| Some([listener.address, *bound])).collect();
    let mut take = |index: usize, listener: &AdminListener| {
        let addresses = left.get_mut(index)?;
        addresses.take_if(|addresses| addresses.contains(&listener.address))?;
        Some(index)
    };
    let mut kept: Vec<_> =
        listeners.iter().enumerate().map(|(index, listener)| take(index, listener)).collect();
    for (listener, kept) in listeners.iter().zip(&mut kept) {
        *kept = kept.or_else(|| (0..former.len()).find_map(|index| take(index, listener)));
    }
    kept
}

fn allowed(settings: &Settings, listener: &AdminListener) -> AllowedAddresses {
    let conf::RealIpSettings { header, from, recursive } = &settings.real_ip;
    AllowedAddresses::new(listener.allow.clone(), RealIp::new(header, from, *recursive))
}

/// Whether `other` takes the IPv4 connections that an IPv6 wildcard address would take, too.
fn is_ipv4_twin(address: SocketAddr, other: SocketAddr) -> bool {
    address.is_ipv6() && other.is_ipv4() && address.port() == other.port() && address.port() != 0
}

fn bind(listener: &AdminListener, all: &[AdminListener]) -> Result<TcpListener, ListenError> {
    let address = listener.address;
    let has_twin = all.iter().any(|other| is_ipv4_twin(address, other.address));
    bind_address(address, has_twin).map_err(|error| ListenError::new(ADMIN_LISTEN, address, error))
}

fn bind_address(address: SocketAddr, ipv6_only: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    if ipv6_only {
        socket.set_only_v6(true)?;
    }
    // As std and tokio do: a restart must not wait for connections in TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// The folder of generated admin keys.
pub(crate) fn admin_key_folder(settings: &Settings) -> &Path {
    settings.countersign.store.path.parent().unwrap_or(Path::new("."))
}

/// `store`: where control planes that share it agree on a key.
async fn admin_access(
    settings: &Settings,
    store: Option<&dyn Store>,
    missing: MissingKey,
) -> Result<Access, StartupError> {
    let admin = &settings.deployment.admin;
    if !admin.key_required {
        tracing::warn!(
            "Warning! Admin key is bypassed! If you are deploying APISIX in a production environment, please enable \
             `admin_key_required` and set a secure admin key!"
        );
        return Ok(Access::new(None));
    }
    let keys = admin_key::resolve_keys(&admin.keys, admin_key_folder(settings), store, missing).await?;
    for key in &keys {
        if let Some(path) = &key.created {
            // Printed once for the operator, whatever the log level.
            telemetry::log::write_unfiltered(&format_args!(
                "admin key for {:?}: {}   (made now, kept in {})",
                key.name,
                *key.key,
                path.display()
            ));
        }
    }
    let entries: Vec<_> =
        keys.iter().map(|key| ApiKey { name: &key.name, key: &key.key, role: key.role }).collect();
    let access = Access::new(Some(&entries))
        .with_client_roles(admin.client_roles.clone())
        .with_wrong_keys_per_minute(settings.countersign.admin.wrong_keys_per_minute);
    let digests = keys.iter().filter_map(|key| Some((key, key.digest?)));
    Ok(digests.fold(access, |access, (key, digest)| access.with_key_digest(&key.name, digest, key.role)))
}

/// The limits of the Admin API's clients.
pub(super) fn admin_limits(settings: &Settings, connections_max: usize) -> Limits {
    Limits {
        connections_max,
        handshake_timeout: settings.countersign.limits.handshake_timeout,
        header_timeout: settings.http.client_header_timeout,
        header_bytes_max: settings.countersign.limits.header_bytes.max(8192),
        send_timeout: settings.http.send_timeout,
        shutdown_timeout: settings.http.worker_shutdown_timeout.min(STOP_MAX),
    }
}
