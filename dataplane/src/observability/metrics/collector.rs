//! Encodes the metrics of all workers for `/metrics`, on the thread of the status listener.
//!
//! Invariant: each name is encoded once, with its help and type, and no worker waits for a scrape.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use pki::VerifyReason;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

use super::Metrics;
use super::histogram::HistogramTotals;
use super::series::{NodeLabel, OTHER, RouteTotals, SiteTotals};
use crate::observability::TicketRejection;
use crate::reason::Reason;

/// The name and help of a metric of routes, and its value.
type RouteMetric<T> = (&'static str, &'static str, fn(&RouteTotals) -> T);
/// The label of a handshake's result, and the number of those.
type SiteResult = (&'static str, fn(&SiteTotals) -> u64);

#[derive(Debug)]
pub(super) struct MetricsCollector(pub(super) Arc<Metrics>);

impl Collector for MetricsCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let out = &mut encoder;
        self.encode_connections(out)?;
        self.encode_tls(out)?;
        self.encode_websockets(out)?;
        self.encode_requests(out)?;
        self.encode_upstream(out)?;
        self.encode_workers(out)?;
        let series = self.0.series();
        encode_routes(out, &series.routes())?;
        encode_sites(out, &series.sites())
    }
}

impl MetricsCollector {
    fn encode_connections(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
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

    fn encode_tls(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let metrics = &self.0;
        let handshakes = [
            ([("resumed", "false")], metrics.sum(|c| &c.handshakes_full)),
            ([("resumed", "true")], metrics.sum(|c| &c.handshakes_resumed)),
        ];
        encode_family(out, "tls_handshakes", "TLS handshakes completed, by resumption", handshakes)?;
        let durations = ["false", "true"].into_iter().enumerate().map(|(index, resumed)| {
            let mut totals = HistogramTotals::default();
            let all = metrics.workers.iter().filter_map(|c| c.handshake_duration.get(index));
            all.for_each(|histogram| totals.add(histogram));
            ([("resumed", resumed)], totals)
        });
        let help = "Time from a connection's accept to the end of its TLS handshake, by resumption";
        encode_histograms(out, "tls_handshake_duration_seconds", help, durations)?;
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
            let count = metrics.sum_at(|c| &c.certificate_rejections.0, reason.index());
            ([("reason", reason.as_str())], count)
        });
        encode_family(out, "client_certificate_rejections", "Client certificates rejected", certificates)
    }

    fn encode_websockets(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
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

    fn encode_requests(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let metrics = &self.0;
        let classes = ["1xx", "2xx", "3xx", "4xx", "5xx"].into_iter().enumerate();
        let responses =
            classes.map(|(index, class)| ([("code_class", class)], metrics.sum_at(|c| &c.responses, index)));
        encode_family(out, "http_responses", "HTTP responses sent, by class of the status code", responses)?;
        let mut codes = BTreeMap::<_, u64>::new();
        for (code, count) in metrics.workers.iter().flat_map(|counters| counters.requests.counts()) {
            *codes.entry(code).or_default() += count;
        }
        let requests = codes.into_iter().map(|(code, count)| ([("code", code_label(code))], count));
        let help =
            "HTTP requests that have ended, by status code; 499: the client went away before the response";
        encode_family(out, "http_requests", help, requests)?;
        let help = "HTTP requests in flight: from their head to the end of the response";
        encode_gauge(out, "http_requests_active", help, metrics.sum_gauge(|c| &c.requests_active))?;
        let help = "Time from the head of an HTTP request to the end of its response";
        let durations = metrics.sum_histogram(|c| &c.request_duration);
        encode_histogram(out, "http_request_duration_seconds", help, &durations)?;
        let help = "Bytes of HTTP requests, with their heads, before TLS";
        encode_counter(out, "http_received_bytes", help, metrics.sum(|c| &c.http_received_bytes))?;
        let help = "Bytes of HTTP responses, with their heads, before TLS";
        encode_counter(out, "http_sent_bytes", help, metrics.sum(|c| &c.http_sent_bytes))?;
        let errors = Reason::ALL.iter().map(|reason| {
            let count = metrics.sum_at(|c| &c.errors.0, reason.index());
            ([("reason", reason.label())], count)
        });
        encode_family(out, "errors", "Connections and requests rejected, denied or failed", errors)
    }

    fn encode_upstream(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let metrics = &self.0;
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
        let help = "Waits of requests whose node had as many connections as it may have";
        let waits = metrics.sum_histogram(|c| &c.upstream_queue_duration);
        encode_histogram(out, "upstream_queue_duration_seconds", help, &waits)?;
        let help = "Time to connect to a node: TCP, and TLS where it has that";
        let connects = ["false", "true"].into_iter().enumerate().map(|(index, tls)| {
            let mut totals = HistogramTotals::default();
            let all = metrics.workers.iter().filter_map(|c| c.upstream_connect_duration.get(index));
            all.for_each(|histogram| totals.add(histogram));
            ([("tls", tls)], totals)
        });
        encode_histograms(out, "upstream_connect_duration_seconds", help, connects)?;
        let help = "Time from the start of an attempt at a node to the head of its response";
        let first_bytes = metrics.sum_histogram(|c| &c.upstream_first_byte_duration);
        encode_histogram(out, "upstream_first_byte_duration_seconds", help, &first_bytes)?;
        let help = "Attempts at nodes after the first of a request or TCP connection";
        encode_counter(out, "upstream_retries", help, metrics.sum(|c| &c.upstream_retries))?;
        let help = "Requests sent on an open connection of the pools";
        encode_counter(out, "upstream_pool_hits", help, metrics.sum(|c| &c.upstream_pool_hits))?;
        let help = "Requests for which a connection was opened";
        encode_counter(out, "upstream_pool_misses", help, metrics.sum(|c| &c.upstream_pool_misses))
    }

    fn encode_workers(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "CPU time of each worker's thread; its rate is the busy share of the worker";
        let mut family = out.encode_descriptor("worker_cpu_seconds", help, None, MetricType::Counter)?;
        for (number, counters) in self.0.workers.iter().enumerate() {
            let seconds = counters.cpu_nanos.get() as f64 / 1e9;
            ConstCounter::new(seconds).encode(family.encode_family(&[("worker", number)])?)?;
        }
        Ok(())
    }
}

fn encode_routes(out: &mut DescriptorEncoder<'_>, routes: &[(String, RouteTotals)]) -> fmt::Result {
    let requests = routes.iter().flat_map(|(route, totals)| {
        let labels = |code| [("route", route.clone()), ("code", code_label(code))];
        totals.by_code().into_iter().map(move |(code, count)| (labels(code), count))
    });
    encode_family(
        out,
        "route_requests",
        "HTTP requests of a route that have ended, by status code",
        requests,
    )?;
    let errors = routes.iter().flat_map(|(route, totals)| {
        let labels = move |reason: Reason| [("route", route.as_str()), ("reason", reason.label())];
        totals.errors.iter().map(move |(reason, count)| (labels(*reason), *count))
    });
    encode_family(out, "route_errors", "HTTP requests of a route that were denied or failed", errors)?;
    let failed = routes.iter().flat_map(|(route, totals)| {
        let labels = |node: NodeLabel| [("route", route.clone()), ("node", node.to_string())];
        totals.failed_attempts.iter().map(move |(node, count)| (labels(*node), *count))
    });
    let help = "Attempts for HTTP requests of a route that failed at a node, also where another node served the request";
    encode_family(out, "route_failed_attempts", help, failed)?;
    let counters: [RouteMetric<u64>; 2] = [
        ("route_received_bytes", "Bytes of the HTTP requests of a route", |totals| totals.received_bytes),
        ("route_sent_bytes", "Bytes of the HTTP responses of a route", |totals| totals.sent_bytes),
    ];
    for (name, help, value) in counters {
        let series = routes.iter().map(|(route, totals)| ([("route", route.as_str())], value(totals)));
        encode_family(out, name, help, series)?;
    }
    let histograms: [RouteMetric<HistogramTotals>; 2] = [
        (
            "route_request_duration_seconds",
            "Time from the head of an HTTP request of a route to the end of its response",
            |totals| totals.request_duration.clone(),
        ),
        (
            "route_upstream_duration_seconds",
            "Time that the nodes of a route took for an HTTP request",
            |totals| totals.upstream_duration.clone(),
        ),
    ];
    for (name, help, value) in histograms {
        let series = routes.iter().map(|(route, totals)| ([("route", route.as_str())], value(totals)));
        encode_histograms(out, name, help, series)?;
    }
    Ok(())
}

fn encode_sites(out: &mut DescriptorEncoder<'_>, sites: &[(String, SiteTotals)]) -> fmt::Result {
    let results: [SiteResult; 3] = [
        ("full", |totals| totals.handshakes_full),
        ("resumed", |totals| totals.handshakes_resumed),
        ("rejected", |totals| totals.handshakes_rejected),
    ];
    let handshakes = sites.iter().flat_map(|(site, totals)| {
        results
            .iter()
            .map(move |(result, count)| ([("site", site.as_str()), ("result", *result)], count(totals)))
    });
    encode_family(out, "site_tls_handshakes", "TLS handshakes of a site, by result", handshakes)?;
    let requests = sites.iter().map(|(site, totals)| ([("site", site.as_str())], totals.requests));
    encode_family(out, "site_requests", "HTTP requests on the connections of a site", requests)
}

/// The label of a status code; `None`: of those beyond 599.
fn code_label(code: Option<u16>) -> String {
    code.map_or_else(|| OTHER.to_owned(), |code| code.to_string())
}

/// Encodes a counter without labels.
pub(crate) fn encode_counter(
    out: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    value: u64,
) -> fmt::Result {
    let metric = ConstCounter::new(value);
    metric.encode(out.encode_descriptor(name, help, None::<&Unit>, metric.metric_type())?)
}

fn encode_gauge(out: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    let metric = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
    metric.encode(out.encode_descriptor(name, help, None::<&Unit>, metric.metric_type())?)
}

/// Encodes a counter with one series for each label value.
pub(crate) fn encode_family<L: EncodeLabelSet>(
    out: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    series: impl IntoIterator<Item = (L, u64)>,
) -> fmt::Result {
    let mut family = out.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (labels, value) in series {
        ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

/// Encodes a histogram without labels.
pub(crate) fn encode_histogram(
    out: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    totals: &HistogramTotals,
) -> fmt::Result {
    totals.encode(out.encode_descriptor(name, help, None, MetricType::Histogram)?)
}

/// Encodes a histogram with one series for each label value.
fn encode_histograms<L: EncodeLabelSet>(
    out: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    series: impl IntoIterator<Item = (L, HistogramTotals)>,
) -> fmt::Result {
    let mut family = out.encode_descriptor(name, help, None, MetricType::Histogram)?;
    for (labels, totals) in series {
        totals.encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}
