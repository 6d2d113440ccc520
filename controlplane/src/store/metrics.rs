//! Metrics that every kind of store has.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;

/// A gauge that a closure reads.
pub(super) struct StoreGauge<F> {
    name: &'static str,
    help: &'static str,
    value: F,
}

impl<F: Fn() -> u64> StoreGauge<F> {
    pub(super) fn new(name: &'static str, help: &'static str, value: F) -> Self {
        Self { name, help, value }
    }

    /// `countersign_store_revision`.
    pub(super) fn revision(value: F) -> Self {
        Self::new(
            "store_revision",
            "Newest revision of the store that is known here; of etcd, writes of every key count",
            value,
        )
    }
}

impl<F> fmt::Debug for StoreGauge<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreGauge").field("name", &self.name).finish_non_exhaustive()
    }
}

impl<F: Fn() -> u64 + Send + Sync + 'static> Collector for StoreGauge<F> {
    fn encode(&self, mut out: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let value = i64::try_from((self.value)()).unwrap_or(i64::MAX);
        ConstGauge::new(value).encode(out.encode_descriptor(self.name, self.help, None, MetricType::Gauge)?)
    }
}
