//! What `/metrics` shows of the spans that are sent to a collector.

use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;

use super::metrics::counter::Counter;
use super::metrics::{encode_counter, encode_family};

/// The counters of spans, each written by one thread.
#[derive(Debug, Default)]
pub(crate) struct TraceCounters {
    /// Of each worker: spans that found its queue full.
    queue_full: Vec<Arc<Counter>>,
    /// Spans that the collector has taken.
    pub(crate) exported: Counter,
    /// Exports that failed, with those that were tried again.
    pub(crate) export_failures: Counter,
    /// Spans that the collector did not take in time.
    pub(crate) undelivered: Counter,
    /// Spans that the collector rejected.
    pub(crate) rejected: Counter,
}

impl TraceCounters {
    /// `queue_full`: one counter of each worker.
    pub(crate) fn new(queue_full: Vec<Arc<Counter>>) -> Arc<Self> {
        Arc::new(Self { queue_full, ..Self::default() })
    }
}

#[derive(Debug)]
pub(crate) struct TraceMetrics(pub(crate) Arc<TraceCounters>);

impl Collector for TraceMetrics {
    fn encode(&self, mut out: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let counters = &self.0;
        let out = &mut out;
        encode_counter(
            out,
            "trace_spans_exported",
            "Spans that the collector took",
            counters.exported.get(),
        )?;
        let help = "Exports of spans that failed, with those that were tried again";
        encode_counter(out, "trace_export_failures", help, counters.export_failures.get())?;
        let dropped = [
            ([("reason", "queue_full")], counters.queue_full.iter().map(|counter| counter.get()).sum()),
            ([("reason", "undelivered")], counters.undelivered.get()),
            ([("reason", "rejected")], counters.rejected.get()),
        ];
        let help =
            "Spans dropped: the queue was full, the collector did not take them in time, or rejected them";
        encode_family(out, "trace_spans_dropped", help, dropped)
    }
}
