//! What the workers share: their settings within the limit on descriptors, and the state around
//! them.

use std::sync::Arc;
use std::thread;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use conf::Settings;

use crate::config::{self, SettingsError};
use crate::lifecycle::handles::{SnapshotHandle, TicketRingHandle};
use crate::observability::metrics::series::SeriesTable;
use crate::proxy::worker::{SharedState, WorkerConfig};
use crate::reporting::trace::queue::TraceQueues;
use crate::runtime::descriptors::{self, ConnectionLimits};
use crate::tls::site_config::{self, SiteConfigFactory};
use crate::upstream::client_tls::ClientTlsConfigs;
use crate::upstream::resolver::Resolver;

/// The limits on a worker's connections; logs a warning where they are lower than configured.
pub(super) fn connection_limits(
    settings: &Settings,
    limit: usize,
    workers: usize,
    listeners: usize,
) -> anyhow::Result<ConnectionLimits> {
    let configured = settings.countersign.limits.connections_per_worker;
    let (limits, warning) = descriptors::connection_limits(limit, workers, listeners, configured)?;
    if let Some(warning) = warning {
        tracing::warn!("{warning}");
    }
    Ok(limits)
}

/// `countersign.workers`; 0 is one a core.
pub(super) fn worker_count(settings: &Settings) -> usize {
    match settings.countersign.workers {
        0 => thread::available_parallelism().map_or(1, usize::from),
        workers => workers,
    }
}

/// The settings of the workers within the limit on descriptors.
pub(super) fn worker_config(
    settings: &Settings,
    limits: ConnectionLimits,
) -> Result<WorkerConfig, SettingsError> {
    let configured = settings.countersign.limits.requests_per_client;
    let requests_per_client = limits.requests_per_client(configured);
    if requests_per_client < configured {
        tracing::warn!(
            "each worker may have {} connections to upstreams: one client may have {requests_per_client} concurrent requests on \
             it, not the {configured} of countersign.limits.requests_per_client. Raise the limit on open descriptors (ulimit -Hn, \
             LimitNOFILE), or lower that key",
            limits.upstreams
        );
    }
    Ok(WorkerConfig { connection_limits: limits, requests_per_client, ..config::worker_config(settings)? })
}

/// The state that all workers of this process share.
pub(super) fn shared_state(
    settings: &Settings,
    limits: ConnectionLimits,
    snapshot: &Arc<SnapshotHandle>,
    (ticket_ring, trace_queues): (Option<&Arc<TicketRingHandle>>, TraceQueues),
) -> anyhow::Result<Arc<SharedState>> {
    let mut config = worker_config(settings, limits)?;
    config::open_access_logs(settings, &mut config.access_logs)?;
    let provider = Arc::new(site_config::crypto_provider());
    let records = config::record_layer(settings);
    let trust = config::upstream_trust(settings)?;
    let upstream_tls = ClientTlsConfigs::new(Arc::clone(&provider), trust, records);
    let versions = config::tls_versions(settings)?;
    Ok(Arc::new(SharedState {
        snapshot: Arc::clone(snapshot),
        sites: SiteConfigFactory::new(provider, &versions, config.http2, ticket_ring.cloned(), records)
            .with_ciphers(settings.apisix.ssl.ciphers.clone()),
        upstream_tls: Arc::new(upstream_tls),
        resolver: Resolver::start().context("cannot start the resolver's threads")?,
        trace_queues,
        series: Arc::new(SeriesTable::new(settings.countersign.metrics)),
        config: ArcSwap::from_pointee(config),
    }))
}
