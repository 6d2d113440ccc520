//! The listeners for operators: status (`apisix.status`), the control API and APISIX's Prometheus
//! metrics; the fields that the data plane adds to `/status`, and when it is ready (contract
//! section 10.1). The same for the service manager.
//!
//! `ports` are the listeners, `workers` asks the workers, `control` is the control API, and
//! `prometheus` has APISIX's metrics.

mod control;
pub(crate) mod ports;
mod prometheus;
mod workers;

use std::sync::Arc;

use conf::PrometheusSettings;
use mtls::{CertificateMonitor, SnapshotExpiry};
use prometheus_client::metrics::info::Info;
use serde_json::Value;
use telemetry::reloads::ReloadMetrics;
use telemetry::{Heartbeats, ServiceState, StatusPage};

use self::control::ControlApi;
use self::prometheus::ApisixMetrics;
pub(crate) use self::workers::WorkerQuestions;
use crate::lifecycle::handles::{SnapshotHandle, TicketRingHandle};
use crate::lifecycle::{ShutdownStage, ShutdownWatch};
use crate::observability::metrics::Metrics;
use crate::observability::traces::{TraceCounters, TraceMetrics};
use crate::observability::upgrades::{UpgradeMetrics, Upgrades};
use crate::push_client::{SyncMetrics, SyncStatus};

/// What the pages show.
pub(crate) struct StatusContent<'a> {
    pub(crate) heartbeats: Arc<Heartbeats>,
    pub(crate) sync: Arc<SyncStatus>,
    pub(crate) metrics: Arc<Metrics>,
    /// Of the workers.
    pub(crate) driver: &'static str,
    pub(crate) certificates: &'a CertificateMonitor,
    pub(crate) upgrades: &'a Arc<Upgrades>,
    pub(crate) traces: &'a Arc<TraceCounters>,
    pub(crate) shutdown: ShutdownWatch,
    pub(crate) snapshot: Arc<SnapshotHandle>,
    pub(crate) ticket_ring: Option<Arc<TicketRingHandle>>,
    pub(crate) workers: WorkerQuestions,
}

impl StatusContent<'_> {
    fn control_api(&self) -> ControlApi {
        ControlApi {
            snapshot: Arc::clone(&self.snapshot),
            ticket_ring: self.ticket_ring.clone(),
            workers: self.workers.clone(),
        }
    }

    fn apisix_metrics(&self, settings: &PrometheusSettings) -> ApisixMetrics {
        ApisixMetrics {
            uri: settings.uri.clone(),
            prefix: settings.prefix.clone(),
            metrics: Arc::clone(&self.metrics),
            sync: Arc::clone(&self.sync),
        }
    }

    /// `/status`, `/status/ready` and `/metrics`.
    fn status_page(&self) -> StatusPage {
        let Self { heartbeats, sync, metrics, driver, certificates, upgrades, traces, .. } = self;
        let (sync, shutdown) = (Arc::clone(sync), self.shutdown.clone());
        let mut status = StatusPage::new(Arc::clone(heartbeats));
        status.add_build_info(env!("CARGO_PKG_VERSION"), process::COMMIT);
        let help = "The kernel interface of the workers' I/O: io_uring, or epoll";
        status.registry().register("runtime", help, Info::new(vec![("driver", *driver)]));
        metrics.register(status.registry());
        let (of, max) = (Arc::clone(metrics), Arc::clone(metrics));
        let expiry = SnapshotExpiry::new("served", move || of.snapshot(), move || max.series_max());
        status.registry().register_collector(Box::new(expiry));
        status.registry().register_collector(Box::new(SyncMetrics(Arc::clone(&sync))));
        status.registry().register_collector(Box::new(ReloadMetrics));
        status.registry().register_collector(Box::new((*certificates).clone()));
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
        status.registry().register_collector(Box::new(UpgradeMetrics(Arc::clone(upgrades))));
        status.registry().register_collector(Box::new(TraceMetrics(Arc::clone(traces))));
        let generations = Arc::clone(upgrades);
        status.add_field("generation", move || generations.generations.number().into());
        let generations = Arc::clone(upgrades);
        status.add_field("draining_processes", move || generations.draining().into());
        let certificates: CertificateMonitor = (*certificates).clone();
        status.add_field("certificates", move || serde_json::json!(certificates.endpoints()));
        status.add_readiness_check(move || match shutdown.stage() {
            // On a connection from before a hand-over: the successor serves this address.
            ShutdownStage::Serving | ShutdownStage::HandedOver => Ok(()),
            ShutdownStage::LameDuck | ShutdownStage::Draining => {
                Err("this data plane is draining".to_owned())
            }
        });
        status.add_readiness_check(move || sync.readiness().map_err(str::to_owned));
        status
    }
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
