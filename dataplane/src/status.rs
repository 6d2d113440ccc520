//! The status listener (`apisix.status`): what the data plane shows beside heartbeats and the log,
//! and when it is ready. Contract section 10.1.
//!
//! Its port is bound before all others and given up when they are, so that a successor can start
//! while this process drains.

use std::sync::Arc;

use conf::Settings;
use pem_files::CertificateMonitor;
use telemetry::status::{StatusListener, StatusServer};
use telemetry::{Heartbeats, StatusPage};

use crate::lifecycle::shutdown::{ShutdownStage, ShutdownWatch};
use crate::observability::metrics::Metrics;
use crate::proxy::listener;
use crate::proxy::listener::{BindError, BindRetry};
use crate::push_client::SyncStatus;

/// Listens where the settings say, if they do.
///
/// # Errors
/// When the address cannot be listened on.
pub(crate) fn bind(settings: &Settings, patience: &BindRetry) -> Result<Option<StatusListener>, BindError> {
    let Some(addr) = settings.apisix.status else { return Ok(None) };
    let key = "apisix.status";
    let socket = listener::bind_exclusive(key, addr, patience)?;
    StatusListener::from_std(socket).map(Some).map_err(|error| BindError { key, addr, error, stopped: false })
}

/// Answers from now on.
///
/// # Errors
/// When the system gives no thread.
pub(crate) fn serve(
    listener: StatusListener,
    heartbeats: Arc<Heartbeats>,
    agent: Arc<SyncStatus>,
    metrics: Arc<Metrics>,
    certificates: &CertificateMonitor,
    stages: ShutdownWatch,
) -> std::io::Result<StatusServer> {
    let mut status = StatusPage::new(heartbeats);
    metrics.register(status.registry());
    let shown = Arc::clone(&agent);
    status.add_field("revision", move || shown.revision().into());
    let shown = Arc::clone(&agent);
    status.add_field("source", move || shown.source().as_str().into());
    let shown = Arc::clone(&agent);
    status.add_field("control_plane_connected", move || shown.is_connected().into());
    status.add_readiness_check(move || match stages.stage() {
        ShutdownStage::Serving => Ok(()),
        ShutdownStage::LameDuck | ShutdownStage::Draining => Err("this data plane is draining".to_owned()),
    });
    let shown = Arc::clone(&agent);
    status.add_field("control_plane", move || serde_json::json!(shown.control_plane().as_deref()));
    let shown = Arc::clone(&agent);
    status.add_field("problem", move || serde_json::json!(shown.last_problem().as_deref()));
    let shown = certificates.clone();
    status.add_field("certificates", move || serde_json::json!(shown.endpoints()));
    status.registry().register_collector(Box::new(certificates.clone()));
    let shown = Arc::clone(&agent);
    status.add_field("snapshot_age_seconds", move || shown.age().map(|age| age.as_secs()).into());
    let shown = Arc::clone(&agent);
    status.add_field("held", move || shown.held_store().map(|held| held.to_json()).into());
    status.add_readiness_check(move || agent.readiness().map_err(str::to_owned));
    listener.serve(status)
}
