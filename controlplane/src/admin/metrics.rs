//! How long the Admin API takes for its work, for `/metrics`: what an administrator waits for is
//! told apart by what had to be done.

use std::sync::LazyLock;
use std::time::Instant;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// What had to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(super) enum Operation {
    /// One page of a list.
    Page,
    /// A whole kind, or everything: waiting for a place.
    FullReadQueue,
    /// The same: reading and answering.
    FullRead,
    /// A change, from its body to its commit.
    Change,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    work: Operation,
}

/// From a millisecond to half a minute.
static DURATION: LazyLock<Family<Labels, Histogram>> =
    LazyLock::new(|| Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.001, 2.0, 16))));

/// Work was done that began then.
pub(super) fn observe_duration(work: Operation, begun: Instant) {
    DURATION.get_or_create(&Labels { work }).observe(begun.elapsed().as_secs_f64());
}

/// Puts the measures into `/metrics`.
pub(crate) fn register(registry: &mut Registry) {
    registry.register(
        "admin_work_seconds",
        "Seconds that the Admin API takes, by the work",
        DURATION.clone(),
    );
}
