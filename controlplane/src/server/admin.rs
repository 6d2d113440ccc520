//! Wires the Admin API: its listeners, access control and limits, from the settings.
//!
//! Owns which setting becomes what; `admin` knows no settings.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use conf::{ADMIN_LISTEN, Settings};
use model::RealIp;
use pki::Keyring;
use socket2::{Domain, Socket, Type};
use tokio::net::TcpListener;

use super::in_use_retry::InUseRetry;
use super::{STOP_MAX, StartupError};
use crate::admin::access::{Access, ApiKey};
use crate::admin::addresses::AllowedAddresses;
use crate::admin::admin_key;
use crate::admin::reply::ResponseHeaders;
use crate::admin::tls::ListenerTls;
use crate::admin::{AdminApi, BoundListener, Limits};
use crate::change::ChangePipeline;
use crate::current_snapshot::{CurrentSnapshot, ListenerSettings};
use crate::listener_errors::ListenError;
use crate::publish::Publisher;
use crate::store::Store;

/// Connections that wait to be accepted, as tokio has it.
const BACKLOG: i32 = 1024;

/// Wires the Admin API.
pub(super) async fn admin_api(
    settings: &Settings,
    listeners: ListenerSettings,
    store: Arc<dyn Store>,
    keyring: Arc<Keyring>,
    publish: &Publisher,
) -> Result<AdminApi, StartupError> {
    let shared = store.reports().is_some().then(|| Arc::clone(&store));
    Ok(AdminApi {
        changes: ChangePipeline::new(Arc::clone(&store), Arc::clone(&keyring))
            .with_protected_client_auth(settings.deployment.admin.protect_client_auth),
        store,
        access: admin_access(settings, shared.as_deref()).await?,
        fleet: publish.reports.clone(),
        denied: Arc::clone(&publish.denied),
        acceptance: Arc::clone(&publish.acceptance),
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

/// Binds the Admin API's addresses.
pub(super) async fn bind_listeners(
    settings: &Settings,
    tls: &ListenerTls,
    in_use_retry: &mut InUseRetry,
) -> Result<Vec<BoundListener>, StartupError> {
    let conf::RealIpSettings { header, from, recursive } = &settings.real_ip;
    let listeners = &settings.deployment.admin.listeners;
    let mut bound = Vec::with_capacity(listeners.len());
    for listener in listeners {
        let address = listener.address;
        let has_twin = listeners.iter().any(|other| is_ipv4_twin(address, other.address));
        let bind = || async move {
            bind(address, has_twin).map_err(|error| ListenError::new(ADMIN_LISTEN, address, error).into())
        };
        let real_ip = RealIp::new(header, from, *recursive);
        bound.push(BoundListener {
            listener: in_use_retry.run(StartupError::is_in_use, bind).await?,
            tls: tls.of_listener(listener),
            allowed: AllowedAddresses::new(listener.allow.clone(), real_ip),
        });
    }
    Ok(bound)
}

/// Whether `other` takes the IPv4 connections that an IPv6 wildcard address would take, too.
fn is_ipv4_twin(address: SocketAddr, other: SocketAddr) -> bool {
    address.is_ipv6() && other.is_ipv4() && address.port() == other.port() && address.port() != 0
}

fn bind(address: SocketAddr, ipv6_only: bool) -> io::Result<TcpListener> {
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
async fn admin_access(settings: &Settings, store: Option<&dyn Store>) -> Result<Access, StartupError> {
    let admin = &settings.deployment.admin;
    if !admin.key_required {
        tracing::warn!(
            "Warning! Admin key is bypassed! If you are deploying APISIX in a production environment, please enable \
             `admin_key_required` and set a secure admin key!"
        );
        return Ok(Access::new(None));
    }
    let keys = admin_key::resolve_keys(&admin.keys, admin_key_folder(settings), store).await?;
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
