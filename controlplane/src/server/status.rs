//! The status listener of the control plane (`countersign.control_plane.status`): what it shows
//! beside heartbeats and the log.
//!
//! It runs on a thread of its own (`telemetry::status`), so it responds while every runtime thread
//! hangs.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use conf::Settings;
use model::Snapshot;
use mtls::{
    CertificateMonitor, ConfiguredFile, FileError, MutualTlsFiles, SnapshotExpiry, StatusAccessRules,
};
use process::signals::Signals;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use telemetry::reloads::ReloadMetrics;
use telemetry::status::{self, StatusAccessHandle, StatusEndpoint, StatusListener, StatusServer};
use telemetry::{Heartbeats, ServiceState, StatusPage};
use tokio::sync::watch;

use crate::admin::metrics;
use crate::listener_errors::{ErrorReason, ListenError};
use crate::publish::Publisher;

/// The setting.
pub(crate) const STATUS_KEY: &str = conf::CONTROL_PLANE_STATUS;

/// The access rules of the settings, with their certificate files.
///
/// # Errors
/// Names the file and the problem.
pub(super) fn access_rules(settings: &Settings) -> Result<StatusAccessRules, FileError> {
    let status = &settings.countersign.status;
    let tls = status.tls.as_ref().map(|tls| MutualTlsFiles {
        cert: ConfiguredFile::new(conf::STATUS_CERT, &tls.cert),
        key: ConfiguredFile::new(conf::STATUS_KEY, &tls.key),
        ca: ConfiguredFile::new(conf::STATUS_CA, &tls.ca),
    });
    StatusAccessRules::load(status.allow.clone(), tls)
}

/// Certificates of one use in resources that have a series: those that end soonest.
const STORED_SERIES_MAX: usize = 1000;

/// Binds the configured address.
///
/// # Errors
/// When the address cannot be bound.
pub(crate) fn bind(address: SocketAddr) -> Result<StatusListener, ListenError> {
    status::bind(address).map_err(|error| ListenError::new(STATUS_KEY, address, error))
}

/// Starts to serve, where there is a listener.
///
/// # Errors
/// When the system cannot start a thread.
pub(crate) fn serve(
    listener: Option<StatusListener>,
    access: &StatusAccessHandle,
    (heartbeats, publish, certificates): (&Arc<Heartbeats>, &Publisher, &CertificateMonitor),
    signals: Signals,
) -> std::io::Result<Option<StatusServer>> {
    let Some(listener) = listener else { return Ok(None) };
    let mut status = StatusPage::new(Arc::clone(heartbeats));
    status.add_build_info(env!("CARGO_PKG_VERSION"), process::COMMIT);
    let latest = publish.latest.clone();
    status.add_field("revision", move || latest.borrow().revision().into());
    status.add_readiness_check(move || match signals.is_stopping() {
        true => Err("this control plane is draining".to_owned()),
        false => Ok(()),
    });
    let (unreadable, limit) = (publish.unreadable_since.clone(), publish.stale_after);
    status.add_readiness_check(move || match *unreadable.borrow() {
        Some(since) if since.elapsed() >= limit => Err(describe_unreadable(since)),
        _ => Ok(()),
    });
    status.registry().register_collector(Box::new(StoreReadable(publish.unreadable_since.clone())));
    let unreadable = publish.unreadable_since.clone();
    status.add_field("store_unreadable_seconds", move || {
        unreadable.borrow().map(|since| since.elapsed().as_secs()).into()
    });
    status.registry().register_collector(Box::new(SnapshotRevision(publish.latest.clone())));
    status.registry().register_collector(Box::new(ErrorCounters));
    status.registry().register_collector(Box::new(ReloadMetrics));
    let monitor = certificates.clone();
    status.add_field("errors", || ErrorReason::ALL.iter().filter_map(|reason| reason.view()).collect());
    status.add_field("certificates", move || serde_json::json!(monitor.endpoints()));
    status.registry().register_collector(Box::new(certificates.clone()));
    let latest = publish.latest.clone();
    let stored = SnapshotExpiry::new("stored", move || Arc::clone(&latest.borrow()), || STORED_SERIES_MAX);
    status.registry().register_collector(Box::new(stored));
    publish.fleet.register_metrics(status.registry());
    publish.reports.register(status.registry());
    metrics::register(status.registry());
    status::serve(vec![StatusEndpoint { listener, pages: Arc::new(status) }], access).map(Some)
}

/// What the service manager shows: the revision and the connected data planes.
pub(super) fn service_state(publish: &Publisher) -> impl Fn() -> ServiceState + Send + 'static {
    let (latest, fleet) = (publish.latest.clone(), Arc::clone(&publish.fleet));
    let unreadable = publish.unreadable_since.clone();
    move || {
        let (revision, nodes) = (latest.borrow().revision(), fleet.connected_count());
        let unreadable = *unreadable.borrow();
        let served = format!("revision {revision}; connected data planes: {nodes}");
        let status = match unreadable {
            Some(since) => format!("{served}; {}", describe_unreadable(since)),
            None => served,
        };
        ServiceState { ready: true, status }
    }
}

fn describe_unreadable(since: Instant) -> String {
    let seconds = since.elapsed().as_secs();
    format!("the store cannot be read for {seconds} s: data planes are served the state that was read before")
}

/// `countersign_errors_total`.
#[derive(Debug)]
struct ErrorCounters;

impl Collector for ErrorCounters {
    fn encode(&self, mut out: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let help = "Connections and requests that failed at a listener, and failed accepts";
        let mut errors = out.encode_descriptor("errors", help, None, MetricType::Counter)?;
        for reason in ErrorReason::ALL {
            ConstCounter::new(reason.count()).encode(errors.encode_family(&[("reason", reason.label())])?)?;
        }
        Ok(())
    }
}

/// `countersign_store_unreadable_seconds`.
#[derive(Debug)]
struct StoreReadable(watch::Receiver<Option<Instant>>);

impl Collector for StoreReadable {
    fn encode(&self, mut out: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let seconds = self.0.borrow().map_or(0.0, |since| since.elapsed().as_secs_f64());
        let help = "Seconds since the store could be read or watched last; 0 while it can";
        let name = "store_unreadable_seconds";
        ConstGauge::new(seconds).encode(out.encode_descriptor(name, help, None, MetricType::Gauge)?)
    }
}

/// `countersign_snapshot_revision`.
#[derive(Debug)]
struct SnapshotRevision(watch::Receiver<Arc<Snapshot>>);

impl Collector for SnapshotRevision {
    fn encode(&self, mut out: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let revision = i64::try_from(self.0.borrow().revision()).unwrap_or(i64::MAX);
        let help = "Revision of the snapshot that is sent to data planes";
        ConstGauge::new(revision).encode(out.encode_descriptor(
            "snapshot_revision",
            help,
            None,
            MetricType::Gauge,
        )?)
    }
}
