//! Metrics: one set of counters a worker, summed when `/metrics` is read.
//!
//! `counter` and `histogram` are what is counted with, `series` has the metrics of single routes
//! and sites, and `collector` encodes all. Invariants: only its own worker writes a counter, so
//! that no two cores write one cache line; labels come from closed lists, and a series is exported
//! under its own label or not at all.

mod collector;
pub mod counter;
pub mod histogram;
pub mod series;

use std::sync::Arc;
use std::time::Duration;

use model::Snapshot;
use pki::VerifyReason;
use prometheus_client::registry::Registry;

use self::collector::MetricsCollector;
pub(crate) use self::collector::{encode_counter, encode_family, encode_histogram};
use self::counter::{CodeCounters, Counter, Gauge};
use self::histogram::{Histogram, HistogramTotals};
use self::series::SeriesTable;
use super::TicketRejection;
use crate::lifecycle::handles::SnapshotHandle;
use crate::reason::Reason;

/// The metrics of one worker.
#[derive(Debug, Default)]
#[repr(align(128))] // so that its lines belong to one core
pub struct Counters {
    /// The number of the worker, which has its parts of series by it.
    worker: usize,
    /// Accepted client connections.
    pub connections: Counter,
    pub connections_active: Gauge,
    /// 1 while the worker is at its connection limit and accepts none.
    pub workers_full: Gauge,
    pub accept_errors: Counter,
    /// PROXY protocol headers from peers in `real_ip_from`.
    proxy_headers_trusted: Counter,
    /// PROXY protocol headers from other peers, whose addresses are ignored.
    proxy_headers_ignored: Counter,
    /// Full TLS handshakes.
    pub handshakes_full: Counter,
    /// Handshakes that resumed a session.
    pub handshakes_resumed: Counter,
    /// By [`TicketRejection`].
    tickets_rejected: [Counter; TicketRejection::ALL.len()],
    /// TCP connections that reached an upstream.
    pub tcp_connections: Counter,
    pub tcp_bytes_to_upstream: Counter,
    pub tcp_bytes_to_client: Counter,
    /// WebSockets that were opened, over HTTP/1 and HTTP/2.
    pub websockets: Counter,
    pub websockets_active: Gauge,
    pub websocket_bytes_to_upstream: Counter,
    pub websocket_bytes_to_client: Counter,
    /// By status class, 1xx to 5xx.
    responses: [Counter; 5],
    /// Requests that have ended, by status code.
    pub requests: CodeCounters,
    pub requests_active: Gauge,
    pub request_duration: Histogram,
    /// Bytes of heads and bodies of requests.
    pub http_received_bytes: Counter,
    /// Bytes of heads and bodies of responses.
    pub http_sent_bytes: Counter,
    /// By resumption.
    handshake_duration: [Histogram; 2],
    errors: ByReason,
    /// Each of them also counts in `errors`.
    certificate_rejections: ByVerifyReason,
    /// TLS handshakes with upstreams: verified in full and resumed, unverified in full and resumed.
    upstream_handshakes: [Counter; 4],
    pub upstream_idle: Gauge,
    pub upstream_active: Gauge,
    /// Requests that wait for a connection to their node.
    pub upstream_queued: Gauge,
    /// New connections to nodes, by whether TLS is part of them.
    upstream_connect_duration: [Histogram; 2],
    /// From the start of an attempt to the head of the node's response.
    pub upstream_first_byte_duration: Histogram,
    /// Attempts after the first of a request or TCP connection.
    pub upstream_retries: Counter,
    /// Requests that found an open connection.
    pub upstream_pool_hits: Counter,
    /// Requests that had a connection opened.
    pub upstream_pool_misses: Counter,
    /// Waits for a connection, because the node had as many as it may have.
    pub upstream_queue_duration: Histogram,
    /// CPU time of the worker's thread, in nanoseconds.
    pub cpu_nanos: Counter,
    pub verify_cache_hits: Counter,
    pub verify_cache_misses: Counter,
}

/// A counter for each [`Reason`].
#[derive(Debug)]
struct ByReason(Box<[Counter]>);

impl Default for ByReason {
    fn default() -> Self {
        Self(Reason::ALL.iter().map(|_| Counter::default()).collect())
    }
}

/// A counter for each [`VerifyReason`].
#[derive(Debug)]
struct ByVerifyReason(Box<[Counter]>);

impl Default for ByVerifyReason {
    fn default() -> Self {
        Self(VerifyReason::ALL.iter().map(|_| Counter::default()).collect())
    }
}

impl Counters {
    /// The metrics of the worker with this number.
    pub fn of_worker(worker: usize) -> Self {
        Self { worker, ..Self::default() }
    }

    /// The number of the worker.
    pub fn worker(&self) -> usize {
        self.worker
    }

    pub fn record_response(&self, status: http::StatusCode) {
        inc_at(&self.responses, usize::from(status.as_u16() / 100).saturating_sub(1));
    }

    pub fn record_handshake(&self, resumed: bool) {
        if resumed { &self.handshakes_resumed } else { &self.handshakes_full }.inc();
    }

    /// Counts how long a completed handshake took.
    pub fn record_handshake_duration(&self, resumed: bool, duration: Duration) {
        let [full, of_resumed] = &self.handshake_duration;
        if resumed { of_resumed } else { full }.observe(duration);
    }

    /// Counts how long a new connection to a node took, with its handshake where it has TLS.
    pub fn record_upstream_connect(&self, is_encrypted: bool, duration: Duration) {
        let [plain, encrypted] = &self.upstream_connect_duration;
        if is_encrypted { encrypted } else { plain }.observe(duration);
    }

    /// Counts a handshake with an upstream.
    pub fn record_upstream_handshake(&self, verified: bool, resumed: bool) {
        inc_at(&self.upstream_handshakes, usize::from(!verified) * 2 + usize::from(resumed));
    }

    /// Counts a PROXY protocol header.
    pub fn record_proxy_header(&self, is_trusted: bool) {
        if is_trusted { &self.proxy_headers_trusted } else { &self.proxy_headers_ignored }.inc();
    }

    pub fn record_rejected_tickets(&self, rejections: &[TicketRejection]) {
        for rejection in rejections {
            inc_at(&self.tickets_rejected, rejection.index());
        }
    }

    /// Counts a connection or request that ended for `reason`.
    pub fn record_error(&self, reason: Reason) {
        inc_at(&self.errors.0, reason.index());
    }

    pub fn record_certificate_rejection(&self, reason: VerifyReason) {
        inc_at(&self.certificate_rejections.0, reason.index());
    }
}

fn inc_at(counters: &[Counter], index: usize) {
    if let Some(counter) = counters.get(index) {
        counter.inc();
    }
}

/// The metrics of all workers.
pub struct Metrics {
    workers: Vec<Arc<Counters>>,
    series: Arc<SeriesTable>,
    snapshot: Arc<SnapshotHandle>,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").field("workers", &self.workers.len()).finish_non_exhaustive()
    }
}

impl Metrics {
    pub fn new(workers: Vec<Arc<Counters>>, series: Arc<SeriesTable>, snapshot: Arc<SnapshotHandle>) -> Self {
        Self { workers, series, snapshot }
    }

    /// The snapshot that is served.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshot.load())
    }

    /// The most routes, or sites, with series of their own.
    pub fn series_max(&self) -> usize {
        self.series.max()
    }

    /// The metrics of the routes and sites in the current snapshot.
    pub fn series(&self) -> &SeriesTable {
        self.series.retain(&self.snapshot.load());
        &self.series
    }

    /// Adds them to the registry that `/metrics` encodes.
    pub fn register(self: &Arc<Self>, registry: &mut Registry) {
        registry.register_collector(Box::new(MetricsCollector(Arc::clone(self))));
    }

    /// The open connections of clients.
    pub fn open_connections(&self) -> u64 {
        self.sum_gauge(|counters| &counters.connections_active)
    }

    /// The connections that clients have opened.
    pub fn accepted_connections(&self) -> u64 {
        self.sum(|counters| &counters.connections)
    }

    /// The requests that have not ended yet.
    pub fn active_requests(&self) -> u64 {
        self.sum_gauge(|counters| &counters.requests_active)
    }

    /// The requests that have ended.
    pub fn ended_requests(&self) -> u64 {
        self.workers.iter().flat_map(|counters| counters.requests.counts()).map(|(_, count)| count).sum()
    }

    fn sum(&self, counter: impl Fn(&Counters) -> &Counter) -> u64 {
        self.workers.iter().map(|counters| counter(counters).get()).sum()
    }

    fn sum_gauge(&self, gauge: impl Fn(&Counters) -> &Gauge) -> u64 {
        self.workers.iter().map(|counters| gauge(counters).get()).sum()
    }

    /// Sums the counter at `index` of a family.
    fn sum_at(&self, family: impl Fn(&Counters) -> &[Counter], index: usize) -> u64 {
        self.workers.iter().filter_map(|counters| family(counters).get(index)).map(Counter::get).sum()
    }

    fn sum_histogram(&self, histogram: impl Fn(&Counters) -> &Histogram) -> HistogramTotals {
        let mut totals = HistogramTotals::default();
        self.workers.iter().for_each(|counters| totals.add(histogram(counters)));
        totals
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(workers: Vec<Arc<Counters>>) -> String {
        let mut registry = Registry::with_prefix("countersign");
        let series = Arc::new(SeriesTable::new(conf::MetricsSettings::default()));
        let snapshot = Arc::new(SnapshotHandle::new(Arc::default()));
        Arc::new(Metrics::new(workers, series, snapshot)).register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text
    }

    #[test]
    fn metrics_sum_workers_and_export_every_label() {
        let (a, b) = (Arc::new(Counters::default()), Arc::new(Counters::default()));
        a.record_error(Reason::NoSite);
        b.record_error(Reason::NoSite);
        b.record_response(http::StatusCode::OK);
        b.record_upstream_handshake(false, true);
        b.record_handshake(true);
        b.record_rejected_tickets(&[TicketRejection::Expired]);
        b.record_certificate_rejection(VerifyReason::ALL[1]);
        let text = encoded(vec![a, b]);
        for line in [
            "countersign_errors_total{reason=\"no_site\"} 2",
            "countersign_http_responses_total{code_class=\"2xx\"} 1",
            "countersign_http_responses_total{code_class=\"1xx\"} 0",
            "countersign_tls_handshakes_total{resumed=\"true\"} 1",
            "countersign_tls_handshakes_total{resumed=\"false\"} 0",
            "countersign_tls_tickets_rejected_total{reason=\"expired\"} 1",
            "countersign_tls_tickets_rejected_total{reason=\"unknown_key\"} 0",
            "countersign_tcp_bytes_total{direction=\"to_client\"} 0",
            "countersign_websockets_active 0",
            "countersign_websocket_bytes_total{direction=\"to_upstream\"} 0",
            "countersign_client_connections_active 0",
            "countersign_upstream_tls_handshakes_total{verified=\"true\",resumed=\"true\"} 0",
            "countersign_upstream_tls_handshakes_total{verified=\"false\",resumed=\"true\"} 1",
            "countersign_proxy_protocol_headers_total{trusted=\"true\"} 0",
        ] {
            assert!(text.lines().any(|exported| exported == line), "{line}\n{text}");
        }
        for reason in Reason::ALL {
            assert!(text.contains(&format!("countersign_errors_total{{reason=\"{}\"}}", reason.label())));
        }
        for (index, reason) in VerifyReason::ALL.into_iter().enumerate() {
            assert_eq!(reason.index(), index);
            let count = u64::from(index == 1);
            let line =
                format!("countersign_client_certificate_rejections_total{{reason=\"{reason}\"}} {count}");
            assert!(text.contains(&line), "{line}\n{text}");
        }
    }
}
