//! The status listener of the control plane (`countersign.control_plane.status`): what it shows
//! beside heartbeats and the log.
//!
//! It runs on a thread of its own (`telemetry::status`), so it responds while every runtime thread
//! hangs.

use std::sync::Arc;
use std::time::Instant;

use conf::Settings;
use model::Snapshot;
use pem_files::CertificateMonitor;
use process::signals::Signals;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use telemetry::status::{self, StatusListener, StatusServer};
use telemetry::{Heartbeats, StatusPage};
use tokio::sync::watch;

use crate::admin::metrics;
use crate::listener_errors::{ErrorReason, ListenError};
use crate::publish::Publisher;

/// The setting.
pub(crate) const STATUS_KEY: &str = "countersign.control_plane.status";

/// Binds the configured address, if there is one.
///
/// # Errors
/// When the address cannot be bound.
pub(crate) fn bind(settings: &Settings) -> Result<Option<StatusListener>, ListenError> {
    let Some(address) = settings.countersign.control_plane.status else { return Ok(None) };
    let bound = status::bind(address);
    bound.map(Some).map_err(|error| ListenError::new(STATUS_KEY, address, error))
}

/// Starts to serve.
///
/// # Errors
/// When the system cannot start a thread.
pub(crate) fn serve(
    listener: StatusListener,
    heartbeats: &Arc<Heartbeats>,
    publish: &Publisher,
    certificates: &CertificateMonitor,
    signals: Signals,
) -> std::io::Result<StatusServer> {
    let mut status = StatusPage::new(Arc::clone(heartbeats));
    let latest = publish.latest.clone();
    status.add_field("revision", move || latest.borrow().revision().into());
    status.add_readiness_check(move || match signals.is_stopping() {
        true => Err("this control plane is draining".to_owned()),
        false => Ok(()),
    });
    let (unread, patience) = (publish.unread_since.clone(), publish.stale_after);
    status.add_readiness_check(move || match *unread.borrow() {
        Some(since) if since.elapsed() >= patience => Err(unread_since(since)),
        _ => Ok(()),
    });
    let unread = publish.unread_since.clone();
    status.add_field("store_unread_seconds", move || {
        unread.borrow().map(|since| since.elapsed().as_secs()).into()
    });
    status.registry().register_collector(Box::new(SnapshotRevision(publish.latest.clone())));
    status.registry().register_collector(Box::new(ErrorCounters));
    let shown = certificates.clone();
    status.add_field("certificates", move || serde_json::json!(shown.endpoints()));
    status.registry().register_collector(Box::new(certificates.clone()));
    publish.reports.register(status.registry());
    metrics::register(status.registry());
    listener.serve(status)
}

fn unread_since(since: Instant) -> String {
    let seconds = since.elapsed().as_secs();
    format!("the store cannot be read for {seconds} s: data planes are served what was read before")
}

/// `countersign_errors_total`.
#[derive(Debug)]
struct ErrorCounters;

impl Collector for ErrorCounters {
    fn encode(&self, mut out: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let help = "Connections and requests refused, and accepts that failed";
        let mut refused = out.encode_descriptor("refused", help, None, MetricType::Counter)?;
        for refusal in ErrorReason::ALL {
            ConstCounter::new(refusal.count())
                .encode(refused.encode_family(&[("reason", refusal.label())])?)?;
        }
        Ok(())
    }
}

/// `countersign_snapshot_revision`.
#[derive(Debug)]
struct SnapshotRevision(watch::Receiver<Arc<Snapshot>>);

impl Collector for SnapshotRevision {
    fn encode(&self, mut out: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let revision = i64::try_from(self.0.borrow().revision()).unwrap_or(i64::MAX);
        let help = "Revision of the snapshot that data planes are sent";
        ConstGauge::new(revision).encode(out.encode_descriptor(
            "snapshot_revision",
            help,
            None,
            MetricType::Gauge,
        )?)
    }
}
