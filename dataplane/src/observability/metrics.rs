//! Metrics: one set of counters a worker, summed when `/metrics` is read.
//!
//! Invariants: only its own worker writes a counter, so that no two cores write one cache line;
//! labels come from closed lists, and a series is exported under its own label or not at all.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pki::VerifyReason;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use super::TicketRejection;
use crate::reason::Reason;

/// A monotonic counter of one worker.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn inc(&self) {
        self.inc_by(1);
    }

    pub fn inc_by(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Takes over a total that is counted elsewhere.
    pub fn set(&self, total: u64) {
        self.0.store(total, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A gauge of one worker.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// Adds one until the guard is dropped.
    pub fn track(&self) -> GaugeGuard<'_> {
        self.0.fetch_add(1, Ordering::Relaxed);
        GaugeGuard(self)
    }

    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// One tracked item of a [`Gauge`].
#[must_use = "dropping the guard ends the tracking"]
#[derive(Debug)]
pub struct GaugeGuard<'a>(&'a Gauge);

impl Drop for GaugeGuard<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The metrics of one worker.
#[derive(Debug)]
pub struct Counters {
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
    /// By [`Reason`].
    errors: Box<[Counter]>,
    /// By [`VerifyReason`]; each of them also counts in `errors`.
    certificate_rejections: Box<[Counter]>,
    /// TLS handshakes with upstreams: verified in full and resumed, unverified in full and resumed.
    upstream_handshakes: [Counter; 4],
    pub upstream_idle: Gauge,
    pub upstream_active: Gauge,
    /// Requests that wait for a connection to their node.
    pub upstream_queued: Gauge,
    pub verify_cache_hits: Counter,
    pub verify_cache_misses: Counter,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            connections: Counter::default(),
            connections_active: Gauge::default(),
            workers_full: Gauge::default(),
            accept_errors: Counter::default(),
            proxy_headers_trusted: Counter::default(),
            proxy_headers_ignored: Counter::default(),
            handshakes_full: Counter::default(),
            handshakes_resumed: Counter::default(),
            tickets_rejected: Default::default(),
            tcp_connections: Counter::default(),
            tcp_bytes_to_upstream: Counter::default(),
            tcp_bytes_to_client: Counter::default(),
            websockets: Counter::default(),
            websockets_active: Gauge::default(),
            websocket_bytes_to_upstream: Counter::default(),
            websocket_bytes_to_client: Counter::default(),
            responses: Default::default(),
            errors: Reason::ALL.iter().map(|_| Counter::default()).collect(),
            certificate_rejections: VerifyReason::ALL.iter().map(|_| Counter::default()).collect(),
            upstream_handshakes: Default::default(),
            upstream_idle: Gauge::default(),
            upstream_active: Gauge::default(),
            upstream_queued: Gauge::default(),
            verify_cache_hits: Counter::default(),
            verify_cache_misses: Counter::default(),
        }
    }
}

impl Counters {
    pub fn record_response(&self, status: http::StatusCode) {
        inc_at(&self.responses, usize::from(status.as_u16() / 100).saturating_sub(1));
    }

    pub fn record_handshake(&self, resumed: bool) {
        if resumed { &self.handshakes_resumed } else { &self.handshakes_full }.inc();
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
        inc_at(&self.errors, reason.index());
    }

    pub fn record_certificate_rejection(&self, reason: VerifyReason) {
        inc_at(&self.certificate_rejections, reason.index());
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
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").field("workers", &self.workers.len()).finish_non_exhaustive()
    }
}

impl Metrics {
    pub fn new(workers: Vec<Arc<Counters>>) -> Self {
        Self { workers }
    }

    /// Adds them to the registry that `/metrics` encodes.
    pub fn register(self: &Arc<Self>, registry: &mut Registry) {
        registry.register_collector(Box::new(MetricsCollector(Arc::clone(self))));
    }

    /// The open connections of clients.
    pub fn open_connections(&self) -> u64 {
        self.sum_gauge(|counters| &counters.connections_active)
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
}

#[derive(Debug)]
struct MetricsCollector(Arc<Metrics>);

impl Collector for MetricsCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let out = &mut encoder;
        self.encode_connections(out)?;
        self.encode_tls(out)?;
        self.encode_websockets(out)?;
        self.encode_requests(out)
    }
}

impl MetricsCollector {
    fn encode_connections(&self, out: &mut DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let metrics = &self.0;
        let help = "Client connections accepted";
        encode_counter(out, "client_connections", help, metrics.sum(|c| &c.connections))?;
        let help = "Client connections open";
        encode_gauge(out, "client_connections_active", help, metrics.sum_gauge(|c| &c.connections_active))?;
        let help = "Workers that are at their limit of client connections and accept none";
        encode_gauge(out, "workers_full", help, metrics.sum_gauge(|c| &c.workers_full))?;
        let help = "Failed accepts: no descriptor or memory left, for example";
        encode_counter(out, "accept_errors", help, metrics.sum(|c| &c.accept_errors))?;
        let headers = [
            ([("trusted", "true")], metrics.sum(|c| &c.proxy_headers_trusted)),
            ([("trusted", "false")], metrics.sum(|c| &c.proxy_headers_ignored)),
        ];
        let help = "PROXY protocol headers read, by whether the peer is in real_ip_from";
        encode_family(out, "proxy_protocol_headers", help, headers)?;
        let help = "TCP connections that reached an upstream";
        encode_counter(out, "tcp_connections", help, metrics.sum(|c| &c.tcp_connections))?;
        let bytes = [
            ([("direction", "to_upstream")], metrics.sum(|c| &c.tcp_bytes_to_upstream)),
            ([("direction", "to_client")], metrics.sum(|c| &c.tcp_bytes_to_client)),
        ];
        encode_family(out, "tcp_bytes", "Bytes of TCP connections, by direction", bytes)
    }

    fn encode_tls(&self, out: &mut DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let metrics = &self.0;
        let handshakes = [
            ([("resumed", "false")], metrics.sum(|c| &c.handshakes_full)),
            ([("resumed", "true")], metrics.sum(|c| &c.handshakes_resumed)),
        ];
        encode_family(out, "tls_handshakes", "TLS handshakes completed, by resumption", handshakes)?;
        let tickets = TicketRejection::ALL.map(|rejection| {
            let count = metrics.sum_at(|c| &c.tickets_rejected, rejection.index());
            ([("reason", rejection.label())], count)
        });
        let help = "Session tickets rejected, which led to a full handshake";
        encode_family(out, "tls_tickets_rejected", help, tickets)?;
        let help = "Client chains found in the cache of verified chains";
        encode_counter(out, "verify_cache_hits", help, metrics.sum(|c| &c.verify_cache_hits))?;
        let help = "Client chains verified in full";
        encode_counter(out, "verify_cache_misses", help, metrics.sum(|c| &c.verify_cache_misses))?;
        let certificates = VerifyReason::ALL.iter().map(|reason| {
            let count = metrics.sum_at(|c| &c.certificate_rejections, reason.index());
            ([("reason", reason.as_str())], count)
        });
        encode_family(out, "client_certificate_rejections", "Client certificates rejected", certificates)
    }

    fn encode_websockets(&self, out: &mut DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let metrics = &self.0;
        encode_counter(out, "websockets", "WebSockets opened", metrics.sum(|c| &c.websockets))?;
        let help = "WebSockets open";
        encode_gauge(out, "websockets_active", help, metrics.sum_gauge(|c| &c.websockets_active))?;
        let bytes = [
            ([("direction", "to_upstream")], metrics.sum(|c| &c.websocket_bytes_to_upstream)),
            ([("direction", "to_client")], metrics.sum(|c| &c.websocket_bytes_to_client)),
        ];
        encode_family(out, "websocket_bytes", "Bytes of WebSockets, by direction", bytes)
    }

    fn encode_requests(&self, out: &mut DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let metrics = &self.0;
        let classes = ["1xx", "2xx", "3xx", "4xx", "5xx"].into_iter().enumerate();
        let responses =
            classes.map(|(index, class)| ([("code_class", class)], metrics.sum_at(|c| &c.responses, index)));
        encode_family(out, "http_responses", "HTTP responses sent, by class of the status code", responses)?;
        let kinds = [("true", "false"), ("true", "true"), ("false", "false"), ("false", "true")];
        let handshakes = kinds.into_iter().enumerate().map(|(index, (verified, resumed))| {
            let count = metrics.sum_at(|c| &c.upstream_handshakes, index);
            ([("verified", verified), ("resumed", resumed)], count)
        });
        let help = "TLS handshakes with upstreams, by verification of the server and resumption";
        encode_family(out, "upstream_tls_handshakes", help, handshakes)?;
        let help = "Upstream connections that are idle in the pools";
        encode_gauge(out, "upstream_connections_idle", help, metrics.sum_gauge(|c| &c.upstream_idle))?;
        let help = "Upstream connections that serve a request";
        encode_gauge(out, "upstream_connections_active", help, metrics.sum_gauge(|c| &c.upstream_active))?;
        let help = "Requests that wait because their node has as many connections as it may have";
        encode_gauge(out, "upstream_requests_queued", help, metrics.sum_gauge(|c| &c.upstream_queued))?;
        let errors = Reason::ALL.iter().map(|reason| {
            let count = metrics.sum_at(|c| &c.errors, reason.index());
            ([("reason", reason.label())], count)
        });
        encode_family(out, "errors", "Connections and requests rejected, denied or failed", errors)
    }
}

fn encode_counter(
    out: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    value: u64,
) -> Result<(), std::fmt::Error> {
    let metric = ConstCounter::new(value);
    metric.encode(out.encode_descriptor(name, help, None::<&Unit>, metric.metric_type())?)
}

fn encode_gauge(
    out: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    value: u64,
) -> Result<(), std::fmt::Error> {
    let metric = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
    metric.encode(out.encode_descriptor(name, help, None::<&Unit>, metric.metric_type())?)
}

/// Encodes a counter with one series for each label value.
pub(crate) fn encode_family<L: EncodeLabelSet>(
    out: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    series: impl IntoIterator<Item = (L, u64)>,
) -> Result<(), std::fmt::Error> {
    let mut family = out.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (labels, value) in series {
        ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(workers: Vec<Arc<Counters>>) -> String {
        let mut registry = Registry::with_prefix("countersign");
        Arc::new(Metrics::new(workers)).register(&mut registry);
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

    #[test]
    fn a_gauge_counts_until_its_guard_is_dropped() {
        let gauge = Gauge::default();
        let guards = [gauge.track(), gauge.track()];
        assert_eq!(gauge.get(), 2);
        drop(guards);
        assert_eq!(gauge.get(), 0);
    }
}
