//! Metrics of the embedded store, for `/metrics`.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// Clones share their counters.
#[derive(Clone)]
pub(super) struct Metrics {
    /// One transaction with its fsync.
    pub(super) commit_seconds: Histogram,
    pub(super) documents_read: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        // From a millisecond to half a minute.
        Self {
            commit_seconds: Histogram::new(exponential_buckets(0.001, 2.0, 16)),
            documents_read: Counter::default(),
        }
    }
}

impl Metrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        let help = "Seconds that a transaction of the embedded store takes until it is on disk";
        registry.register("store_commit_seconds", help, self.commit_seconds.clone());
        let help = "Documents that were read from the embedded store and parsed";
        registry.register("store_documents_read", help, self.documents_read.clone());
    }
}
