//! The status listener (`apisix.status`): the fields that the data plane adds to `/status`, and
//! when it is ready (contract section 10.1). The same for the service manager.
//!
//! Its port is bound before all others and released when they are, so that a successor can start
//! while this process drains.

use std::sync::Arc;

use conf::Settings;
use mtls::CertificateMonitor;
use serde_json::Value;
use telemetry::reloads::ReloadMetrics;
use telemetry::status::{StatusListener, StatusServer};
use telemetry::{Heartbeats, ServiceState, StatusPage};

use crate::lifecycle::{ShutdownStage, ShutdownWatch};
use crate::observability::metrics::Metrics;
use crate::proxy::listener::{self, BindError, BindRetry};
use crate::push_client::{SyncMetrics, SyncStatus};

/// `None`: the settings have no status listener.
///
/// # Errors
/// When the address cannot be bound.
pub(crate) fn bind(settings: &Settings, retry: &BindRetry) -> Result<Option<StatusListener>, BindError> {
    let Some(addr) = settings.apisix.status else { return Ok(None) };
    let key = "apisix.status";
    let socket = listener::bind_exclusive(key, addr, retry)?;
    StatusListener::from_std(socket).map(Some).map_err(|error| BindError { key, addr, error, stopped: false })
}

/// Starts to serve requests.
///
/// # Errors
/// When the system gives no thread.
pub(crate) fn serve(
    listener: StatusListener,
    heartbeats: Arc<Heartbeats>,
    sync: Arc<SyncStatus>,
    metrics: Arc<Metrics>,
    certificates: &CertificateMonitor,
    shutdown: ShutdownWatch,
) -> std::io::Result<StatusServer> {
    let mut status = StatusPage::new(heartbeats);
    metrics.register(status.registry());
    status.registry().register_collector(Box::new(SyncMetrics(Arc::clone(&sync))));
    status.registry().register_collector(Box::new(ReloadMetrics));
    status.registry().register_collector(Box::new(certificates.clone()));
    let mut show = |key, value: fn(&SyncStatus) -> Value| {
        let sync = Arc::clone(&sync);
        status.add_field(key, move || value(&sync));
    };
    show("revision", |sync| sync.revision().into());
    show("source", |sync| sync.source().as_str().into());
    show("control_plane_connected", |sync| sync.is_connected().into());
    show("control_plane", |sync| serde_json::json!(sync.control_plane().as_deref()));
    show("last_error", |sync| serde_json::json!(sync.last_error().as_deref()));
    show("snapshot_age_seconds", |sync| sync.age().map(|age| age.as_secs()).into());
    show("held_store", |sync| sync.held_store().map(|held| held.to_json()).into());
    let certificates = certificates.clone();
    status.add_field("certificates", move || serde_json::json!(certificates.endpoints()));
    status.add_readiness_check(move || match shutdown.stage() {
        ShutdownStage::Serving => Ok(()),
        ShutdownStage::LameDuck | ShutdownStage::Draining => Err("this data plane is draining".to_owned()),
    });
    status.add_readiness_check(move || sync.readiness().map_err(str::to_owned));
    listener.serve(status)
}

/// What the service manager shows: the revision, where it comes from, and open connections.
pub(crate) fn service_state(
    sync: &Arc<SyncStatus>,
    metrics: &Arc<Metrics>,
) -> impl Fn() -> ServiceState + Send + 'static {
    let (sync, metrics) = (Arc::clone(sync), Arc::clone(metrics));
    move || describe(&sync, &metrics)
}

fn describe(sync: &SyncStatus, metrics: &Metrics) -> ServiceState {
    let readiness = sync.readiness();
    let last_error = sync.last_error();
    let status = match readiness {
        Err(why) => match last_error.as_deref() {
            Some(error) => format!("not ready: {why}: {error}"),
            None => format!("not ready: {why}"),
        },
        Ok(()) => {
            let from = match (sync.is_connected(), sync.control_plane()) {
                (true, Some(address)) => format!("from {address}"),
                _ => "no control plane is connected".to_owned(),
            };
            format!("revision {}, {from}; open connections: {}", sync.revision(), metrics.open_connections())
        }
    };
    ServiceState { ready: readiness.is_ok(), status }
}
