//! Wires the Admin API: its address, TLS, access control and limits, from the settings.
//!
//! Owns which setting becomes what; `admin` knows no settings.

use std::path::Path;
use std::sync::Arc;

use conf::Settings;
use model::RealIp;
use pki::Keyring;
use tokio::net::TcpListener;

use super::in_use_retry::InUseRetry;
use super::{STOP_MAX, StartupError};
use crate::admin::access::{Access, ApiKey};
use crate::admin::admin_key;
use crate::admin::reply::ResponseHeaders;
use crate::admin::{AdminApi, Limits};
use crate::change::ChangePipeline;
use crate::current_snapshot::{CurrentSnapshot, ListenerSettings};
use crate::listener_errors::ListenError;
use crate::publish::Publisher;
use crate::store::Store;

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
        changes: ChangePipeline::new(Arc::clone(&store), Arc::clone(&keyring)),
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

/// Binds the Admin API's address.
pub(super) async fn bind_admin_listener(
    settings: &Settings,
    in_use_retry: &mut InUseRetry,
) -> Result<TcpListener, StartupError> {
    let address = settings.deployment.admin.listen;
    let bind = || async move {
        let bound = TcpListener::bind(address).await;
        bound.map_err(|error| ListenError::new("deployment.admin.admin_listen", address, error).into())
    };
    in_use_retry.run(StartupError::is_in_use, bind).await
}

/// The folder of generated admin keys.
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
    let access = Access::new(allow, Some(&entries)).with_real_ip(real_ip);
    let shared = keys.iter().filter_map(|key| Some((key, key.shared_digest?)));
    Ok(shared.fold(access, |access, (key, digest)| access.with_key_digest(&key.name, digest, key.role)))
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
