//! Counters, one set a worker so that no two cores write the same cache line, summed when they are
//! read.
//!
//! The text format is prometheus-client's; this file only says what is counted. Labels come from
//! closed lists.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pki::VerifyReason;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use crate::reason::Reason;
use crate::tls::handshake_state::TicketRejection;

/// A number only its own worker writes. The alignment keeps it off its neighbours' cache lines
/// where it matters: a worker's counters are one allocation of their own.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub fn inc(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// So many more.
    pub fn inc_by(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// One less (for gauges).
    pub fn dec(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    /// Sets it.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// What it is now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// One worker's numbers.
#[derive(Debug)]
pub struct Counters {
    /// Connections accepted.
    pub connections: Counter,
    /// Connections open now.
    pub connections_active: Counter,
    /// 1 while the worker is full and accepts no connection.
    pub workers_full: Counter,
    /// Accepts that failed for want of descriptors or memory, for example.
    pub accept_errors: Counter,
    /// TLS handshakes that came to their end.
    pub handshakes: Counter,
    /// Those of them that resumed a session.
    pub handshakes_resumed: Counter,
    /// Tickets that did not, by why.
    pub tickets_rejected: [Counter; TicketRejection::ALL.len()],
    /// Streams that reached an upstream.
    pub tcp_connections: Counter,
    /// Their bytes from clients to upstreams.
    pub tcp_bytes_to_upstream: Counter,
    /// Their bytes back.
    pub tcp_bytes_to_client: Counter,
    /// Requests answered, by status class (1xx .. 5xx).
    pub responses: [Counter; 5],
    /// Refusals and failures, by reason.
    pub errors: Box<[Counter]>,
    /// Client certificates refused, by rule; each is also one of `reasons`.
    pub certificate_rejections: Box<[Counter]>,
    /// Idle upstream connections.
    pub upstream_idle: Counter,
    /// Upstream connections that serve a request.
    pub upstream_active: Counter,
    /// Verified-chain cache.
    pub verify_cache_hits: Counter,
    /// Verified-chain cache.
    pub verify_cache_misses: Counter,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            connections: Counter::default(),
            connections_active: Counter::default(),
            workers_full: Counter::default(),
            accept_errors: Counter::default(),
            handshakes: Counter::default(),
            handshakes_resumed: Counter::default(),
            tickets_rejected: Default::default(),
            tcp_connections: Counter::default(),
            tcp_bytes_to_upstream: Counter::default(),
            tcp_bytes_to_client: Counter::default(),
            responses: Default::default(),
            errors: Reason::ALL.iter().map(|_| Counter::default()).collect(),
            certificate_rejections: VerifyReason::ALL.iter().map(|_| Counter::default()).collect(),
            upstream_idle: Counter::default(),
            upstream_active: Counter::default(),
            verify_cache_hits: Counter::default(),
            verify_cache_misses: Counter::default(),
        }
    }
}

impl Counters {
    /// Counts an answer.
    pub fn record_response(&self, status: http::StatusCode) {
        let class = usize::from(status.as_u16() / 100).saturating_sub(1);
        if let Some(count) = self.responses.get(class) {
            count.inc();
        }
    }

    /// Counts a handshake that came to its end.
    pub fn record_handshake(&self, resumed: bool) {
        self.handshakes.inc();
        if resumed {
            self.handshakes_resumed.inc();
        }
    }

    /// Counts tickets that were offered to a handshake in vain.
    pub fn record_rejected_tickets(&self, refused: &[TicketRejection]) {
        for refusal in refused {
            if let Some(count) = self.tickets_rejected.get(refusal.index()) {
                count.inc();
            }
        }
    }

    /// Counts a refusal or a failure.
    pub fn record_error(&self, reason: Reason) {
        if let Some(count) = self.errors.get(reason.index()) {
            count.inc();
        }
    }

    /// Counts the rule by which a client's certificate was refused.
    pub fn record_certificate_rejection(&self, rule: VerifyReason) {
        if let Some(count) = self.certificate_rejections.get(rule.index()) {
            count.inc();
        }
    }
}

/// Everything `/metrics` shows.
pub struct Metrics {
    workers: Vec<Arc<Counters>>,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").field("workers", &self.workers.len()).finish_non_exhaustive()
    }
}

impl Metrics {
    /// Sums over these workers.
    pub fn new(workers: Vec<Arc<Counters>>) -> Self {
        Self { workers }
    }

    /// Shows them in `/metrics`.
    pub fn register(self: &Arc<Self>, registry: &mut Registry) {
        registry.register_collector(Box::new(MetricsCollector(Arc::clone(self))));
    }

    fn sum(&self, of: impl Fn(&Counters) -> &Counter) -> u64 {
        self.workers.iter().map(|counters| of(counters).get()).sum()
    }
}

#[derive(Debug)]
struct MetricsCollector(Arc<Metrics>);

impl Collector for MetricsCollector {
    fn encode(&self, mut out: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let metrics = &self.0;
        let counter = |out: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64| {
            let metric = ConstCounter::new(value);
            metric.encode(out.encode_descriptor(name, help, None::<&Unit>, metric.metric_type())?)
        };
        let gauge = |out: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64| {
            let metric = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            metric.encode(out.encode_descriptor(name, help, None::<&Unit>, metric.metric_type())?)
        };
        counter(&mut out, "connections", "Client connections accepted", metrics.sum(|c| &c.connections))?;
        gauge(
            &mut out,
            "connections_open",
            "Client connections open",
            metrics.sum(|c| &c.connections_active),
        )?;
        let full = "Workers that are at their limit of client connections and accept none";
        gauge(&mut out, "workers_full", full, metrics.sum(|c| &c.workers_full))?;
        let help = "Accepts that failed, for want of descriptors or memory for example";
        counter(&mut out, "accept_errors", help, metrics.sum(|c| &c.accept_errors))?;
        counter(&mut out, "handshakes", "TLS handshakes done", metrics.sum(|c| &c.handshakes))?;
        counter(
            &mut out,
            "handshakes_resumed",
            "TLS handshakes that resumed a session",
            metrics.sum(|c| &c.handshakes_resumed),
        )?;
        counter(
            &mut out,
            "streams",
            "Streams that reached an upstream",
            metrics.sum(|c| &c.tcp_connections),
        )?;
        gauge(&mut out, "upstream_idle", "Idle upstream connections", metrics.sum(|c| &c.upstream_idle))?;
        let help = "Upstream connections that serve a request";
        gauge(&mut out, "upstream_active", help, metrics.sum(|c| &c.upstream_active))?;
        counter(
            &mut out,
            "verified_hits",
            "Client chains found verified",
            metrics.sum(|c| &c.verify_cache_hits),
        )?;
        counter(
            &mut out,
            "verified_misses",
            "Client chains verified anew",
            metrics.sum(|c| &c.verify_cache_misses),
        )?;
        self.encode_labelled(&mut out)
    }
}

impl MetricsCollector {
    fn encode_labelled(&self, out: &mut DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        use prometheus_client::metrics::MetricType;
        let mut answers = out.encode_descriptor(
            "answers",
            "Requests answered, by status class",
            None,
            MetricType::Counter,
        )?;
        for (class, name) in ["1xx", "2xx", "3xx", "4xx", "5xx"].into_iter().enumerate() {
            let value = self.0.sum(|c| c.responses.get(class).unwrap_or(&c.connections));
            ConstCounter::new(value).encode(answers.encode_family(&[("class", name)])?)?;
        }
        let mut tickets = out.encode_descriptor(
            "tickets_refused",
            "Session tickets that led to a full handshake, by why",
            None,
            MetricType::Counter,
        )?;
        for refusal in TicketRejection::ALL {
            let value = self.0.sum(|c| c.tickets_rejected.get(refusal.index()).unwrap_or(&c.connections));
            ConstCounter::new(value).encode(tickets.encode_family(&[("why", refusal.label())])?)?;
        }
        let help = "Bytes of streams, by where they go";
        let mut streamed = out.encode_descriptor("stream_bytes", help, None, MetricType::Counter)?;
        for (to, value) in [
            ("upstream", self.0.sum(|c| &c.tcp_bytes_to_upstream)),
            ("client", self.0.sum(|c| &c.tcp_bytes_to_client)),
        ] {
            ConstCounter::new(value).encode(streamed.encode_family(&[("to", to)])?)?;
        }
        let mut ended = out.encode_descriptor(
            "refused",
            "Connections and requests refused or failed, by reason",
            None,
            MetricType::Counter,
        )?;
        for reason in Reason::ALL {
            let value = self.0.sum(|c| c.errors.get(reason.index()).unwrap_or(&c.connections));
            ConstCounter::new(value).encode(ended.encode_family(&[("reason", reason.label())])?)?;
        }
        let mut certificates = out.encode_descriptor(
            "client_certificates_refused",
            "Client certificates refused, by the rule they break",
            None,
            MetricType::Counter,
        )?;
        for rule in VerifyReason::ALL {
            let value = self.0.sum(|c| c.certificate_rejections.get(rule.index()).unwrap_or(&c.connections));
            ConstCounter::new(value).encode(certificates.encode_family(&[("rule", rule.as_str())])?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_sums_workers_and_names_every_reason() {
        let (a, b) = (Arc::new(Counters::default()), Arc::new(Counters::default()));
        a.record_error(Reason::NoSite);
        b.record_error(Reason::NoSite);
        b.record_response(http::StatusCode::OK);
        b.record_certificate_rejection(VerifyReason::DepthExceeded);
        let mut registry = Registry::with_prefix("countersign");
        Arc::new(Metrics::new(vec![a, b])).register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        assert!(text.contains("countersign_refused_total{reason=\"no_site\"} 2"), "{text}");
        assert!(text.contains("countersign_answers_total{class=\"2xx\"} 1"), "{text}");
        for refusal in TicketRejection::ALL {
            let line = format!("countersign_tickets_refused_total{{why=\"{}\"}} 0", refusal.label());
            assert!(text.contains(&line), "{text}");
        }
        assert!(text.contains("countersign_stream_bytes_total{to=\"client\"} 0"), "{text}");
        for reason in Reason::ALL {
            assert!(text.contains(&format!("reason=\"{}\"", reason.label())));
        }
        assert!(text.contains("countersign_client_certificates_refused_total{rule=\"depth\"} 1"), "{text}");
        for (index, rule) in VerifyReason::ALL.into_iter().enumerate() {
            assert_eq!(rule.index(), index);
            assert!(text.contains(&format!("rule=\"{rule}\"")));
        }
    }
}
