//! Duration histograms of the Admin API, by operation.

use std::sync::LazyLock;
use std::time::Instant;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(super) enum Operation {
    Page,
    /// The wait for a permit to read a whole kind.
    FullReadQueue,
    /// Reading a whole kind and serializing the response.
    FullRead,
    /// A change, from its body to its commit.
    Change,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    work: Operation,
}

/// Buckets from a millisecond to half a minute.
static DURATION: LazyLock<Family<Labels, Histogram>> =
    LazyLock::new(|| Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.001, 2.0, 16))));

pub(super) fn observe_duration(work: Operation, begun: Instant) {
    DURATION.get_or_create(&Labels { work }).observe(begun.elapsed().as_secs_f64());
}

pub(crate) fn register(registry: &mut Registry) {
    registry.register(
        "admin_work_seconds",
        "Seconds that the Admin API takes, by the work",
        DURATION.clone(),
    );
}
