//! APISIX's metrics (contract 10.6), under APISIX's names, so that its dashboards fill.
//!
//! The figures are those of `/metrics`. APISIX's counters have no `_total` in their names, which
//! OpenMetrics demands, so the text is in Prometheus' older format. Invariant: a series is written
//! under APISIX's labels, in their order, and only where there is a figure for it.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use http::{Method, StatusCode};
use model::{Route, Snapshot};
use telemetry::status::{PageFuture, PageReply, PageRequest, Pages, reply};

use crate::observability::metrics::Metrics;
use crate::observability::metrics::histogram::HistogramTotals;
use crate::observability::metrics::series::{NodeLabel, OTHER, RouteTotals};
use crate::push_client::SyncStatus;

/// The exposition format of Prometheus.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
/// APISIX's smallest bound; ours begin below it.
const FIRST_BOUND: Duration = Duration::from_millis(1);
/// The value of APISIX's `request_type` for a request that goes to no language model.
const REQUEST_TYPE: &str = "traditional_http";

/// The exporter.
pub(super) struct ApisixMetrics {
    /// The path of the metrics.
    pub(super) uri: String,
    /// What the names begin with.
    pub(super) prefix: String,
    pub(super) metrics: Arc<Metrics>,
    pub(super) sync: Arc<SyncStatus>,
}

impl Pages for ApisixMetrics {
    fn reply(&self, request: PageRequest) -> PageFuture {
        Box::pin(std::future::ready(self.respond(&request.head.method, request.head.uri.path())))
    }
}

impl ApisixMetrics {
    fn respond(&self, method: &Method, path: &str) -> PageReply {
        let plain = "text/plain";
        if path != self.uri {
            return reply(StatusCode::NOT_FOUND, plain, format!("try {}\n", self.uri));
        }
        if !matches!(*method, Method::GET | Method::HEAD) {
            return reply(StatusCode::METHOD_NOT_ALLOWED, plain, String::new());
        }
        match self.text() {
            Ok(text) => reply(StatusCode::OK, TEXT, text),
            Err(fmt::Error) => reply(StatusCode::INTERNAL_SERVER_ERROR, plain, String::new()),
        }
    }

    fn text(&self) -> Result<String, fmt::Error> {
        let mut out = Exposition { prefix: &self.prefix, text: String::new() };
        self.write_node(&mut out)?;
        let snapshot = self.metrics.snapshot();
        let routes = self.metrics.series().routes();
        let routes: Vec<_> =
            routes.iter().map(|(id, totals)| (RouteLabels::new(id, &snapshot), totals)).collect();
        write_status(&mut out, &routes)?;
        write_latency(&mut out, &routes)?;
        write_bandwidth(&mut out, &routes)?;
        Ok(out.text)
    }

    fn write_node(&self, out: &mut Exposition<'_>) -> fmt::Result {
        let metrics = &self.metrics;
        let (active, busy) = (metrics.open_connections(), metrics.active_requests());
        let accepted = metrics.accepted_connections();
        out.family("nginx_http_current_connections", "gauge", "Number of HTTP connections")?;
        let states = [
            ("accepted", accepted),
            ("active", active),
            ("handled", accepted),
            ("waiting", active.saturating_sub(busy)),
            ("writing", busy),
        ];
        for (state, value) in states {
            out.sample("nginx_http_current_connections", &[("state", state)], value)?;
        }
        out.family("http_requests_total", "gauge", "The total number of client requests")?;
        out.sample("http_requests_total", &[], metrics.ended_requests() + busy)?;
        out.family("etcd_reachable", "gauge", "Whether a control plane is connected, 0 if none is")?;
        out.sample("etcd_reachable", &[], u64::from(self.sync.is_connected()))?;
        out.family("etcd_modify_indexes", "gauge", "The revision of the snapshot that is served")?;
        for key in ["max_modify_index", "x_etcd_index"] {
            out.sample("etcd_modify_indexes", &[("key", key)], self.sync.revision())?;
        }
        out.family("node_info", "gauge", "Info of this node")?;
        let hostname = conf::host_name().unwrap_or_default();
        let labels = [("hostname", hostname.as_str()), ("version", env!("CARGO_PKG_VERSION"))];
        out.sample("node_info", &labels, 1_u8)
    }
}

/// The labels of a route's series.
struct RouteLabels<'a> {
    route: &'a str,
    service: String,
    /// Of a route with one uri and one host: a series has all requests of its route.
    matched_uri: String,
    matched_host: String,
}

impl<'a> RouteLabels<'a> {
    fn new(id: &'a str, snapshot: &Snapshot) -> Self {
        let route = model::Id::parse(id).ok().and_then(|id| snapshot.route(&id));
        let only = |texts: Vec<String>| match &texts[..] {
            [one] => one.clone(),
            _ => String::new(),
        };
        let uris = |route: &Arc<Route>| only(route.uris.iter().map(ToString::to_string).collect());
        let hosts =
            |route: &Arc<Route>| only(snapshot.hosts(route).iter().map(ToString::to_string).collect());
        let service = |route: &Arc<Route>| Some(route.service.as_ref()?.to_string());
        Self {
            route: id,
            service: route.and_then(service).unwrap_or_default(),
            matched_uri: route.map(uris).unwrap_or_default(),
            matched_host: route.map(hosts).unwrap_or_default(),
        }
    }

    /// The labels of `http_latency` and `bandwidth`.
    fn of_type<'b>(&'b self, kind: &'b str) -> [(&'static str, &'b str); 8] {
        [
            ("type", kind),
            ("route", self.route),
            ("service", &self.service),
            ("consumer", ""),
            ("node", ""),
            ("request_type", REQUEST_TYPE),
            ("request_llm_model", ""),
            ("llm_model", ""),
        ]
    }
}

type Routes<'a> = [(RouteLabels<'a>, &'a RouteTotals)];

fn write_status(out: &mut Exposition<'_>, routes: &Routes<'_>) -> fmt::Result {
    out.family("http_status", "counter", "HTTP status codes per service in APISIX")?;
    for (labels, totals) in routes {
        // APISIX's label is the address without the port.
        let mut by_address: BTreeMap<(String, String), u64> = BTreeMap::new();
        for ((node, code), count) in &totals.codes {
            let node = match node {
                Some(NodeLabel::Addr(addr)) => addr.ip().to_string(),
                Some(NodeLabel::Other) => OTHER.to_owned(),
                None => String::new(),
            };
            let code = code.map_or_else(|| OTHER.to_owned(), |code| code.to_string());
            *by_address.entry((code, node)).or_default() += count;
        }
        for ((code, node), count) in by_address {
            let all = [
                ("code", code.as_str()),
                ("route", labels.route),
                ("matched_uri", &labels.matched_uri),
                ("matched_host", &labels.matched_host),
                ("service", &labels.service),
                ("consumer", ""),
                ("node", &node),
                ("request_type", REQUEST_TYPE),
                ("request_llm_model", ""),
                ("llm_model", ""),
                ("response_source", ""),
            ];
            out.sample("http_status", &all, count)?;
        }
    }
    Ok(())
}

fn write_latency(out: &mut Exposition<'_>, routes: &Routes<'_>) -> fmt::Result {
    let help = "HTTP request latency in milliseconds per service in APISIX";
    out.family("http_latency", "histogram", help)?;
    for (labels, totals) in routes {
        let histograms = [
            ("request", &totals.request_duration),
            ("upstream", &totals.upstream_duration),
            ("apisix", &totals.gateway_duration),
        ];
        for (kind, histogram) in histograms.into_iter().filter(|(_, histogram)| histogram.count() > 0) {
            out.histogram("http_latency", &labels.of_type(kind), histogram)?;
        }
    }
    Ok(())
}

fn write_bandwidth(out: &mut Exposition<'_>, routes: &Routes<'_>) -> fmt::Result {
    out.family("bandwidth", "counter", "Total bandwidth in bytes consumed per service in APISIX")?;
    for (labels, totals) in routes {
        out.sample("bandwidth", &labels.of_type("ingress"), totals.received_bytes)?;
        out.sample("bandwidth", &labels.of_type("egress"), totals.sent_bytes)?;
    }
    Ok(())
}

/// The text of the metrics.
struct Exposition<'a> {
    prefix: &'a str,
    text: String,
}

impl Exposition<'_> {
    fn family(&mut self, name: &str, kind: &str, help: &str) -> fmt::Result {
        let prefix = self.prefix;
        writeln!(self.text, "# HELP {prefix}{name} {help}\n# TYPE {prefix}{name} {kind}")
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl fmt::Display) -> fmt::Result {
        write!(self.text, "{}{name}", self.prefix)?;
        for (index, (label, value)) in labels.iter().enumerate() {
            let before = if index == 0 { '{' } else { ',' };
            write!(self.text, "{before}{label}=\"")?;
            for character in value.chars() {
                match character {
                    '\\' => self.text.push_str("\\\\"),
                    '"' => self.text.push_str("\\\""),
                    '\n' => self.text.push_str("\\n"),
                    other => self.text.push(other),
                }
            }
            self.text.push('"');
        }
        let after = if labels.is_empty() { "" } else { "}" };
        writeln!(self.text, "{after} {value}")
    }

    /// In milliseconds, with APISIX's bounds.
    fn histogram(&mut self, name: &str, labels: &[(&str, &str)], totals: &HistogramTotals) -> fmt::Result {
        let mut below = 0;
        for (bound, count) in totals.buckets() {
            below += count;
            if bound < FIRST_BOUND {
                continue;
            }
            let le = match bound {
                Duration::MAX => "+Inf".to_owned(),
                bound => bound.as_millis().to_string(),
            };
            let with_bound: Vec<_> = labels.iter().copied().chain([("le", le.as_str())]).collect();
            self.sample(&format!("{name}_bucket"), &with_bound, below)?;
        }
        self.sample(&format!("{name}_sum"), labels, totals.sum().as_secs_f64() * 1000.0)?;
        self.sample(&format!("{name}_count"), labels, totals.count())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observability::metrics::histogram::Histogram;

    #[test]
    fn label_values_are_escaped() {
        let mut out = Exposition { prefix: "a_", text: String::new() };
        out.sample("b", &[("c", "x\"y\\z\n"), ("d", "")], 7).unwrap();
        out.sample("e", &[], 1).unwrap();
        assert_eq!(out.text, "a_b{c=\"x\\\"y\\\\z\\n\",d=\"\"} 7\na_e 1\n");
    }

    #[test]
    fn latencies_have_the_bounds_of_apisix() {
        let histogram = Histogram::default();
        for micros in [50, 700, 3_000, 90_000_000] {
            histogram.observe(Duration::from_micros(micros));
        }
        let mut out = Exposition { prefix: "", text: String::new() };
        out.histogram("l", &[("type", "request")], &histogram.totals()).unwrap();
        let bounds: Vec<&str> =
            out.text.lines().filter_map(|line| line.split_once("le=\"")?.1.split('"').next()).collect();
        let apisix = "1 2 5 10 20 50 100 200 500 1000 2000 5000 10000 30000 60000 +Inf";
        assert_eq!(bounds.join(" "), apisix);
        for line in [
            "l_bucket{type=\"request\",le=\"1\"} 2",
            "l_bucket{type=\"request\",le=\"5\"} 3",
            "l_bucket{type=\"request\",le=\"60000\"} 3",
            "l_bucket{type=\"request\",le=\"+Inf\"} 4",
            "l_count{type=\"request\"} 4",
            "l_sum{type=\"request\"} 90003.75",
        ] {
            assert!(out.text.lines().any(|found| found == line), "{line}\n{}", out.text);
        }
    }
}
