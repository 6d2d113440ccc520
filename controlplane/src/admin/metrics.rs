//! Duration histograms of the Admin API, by operation.

use std::fmt::Write as _;
use std::sync::LazyLock;
use std::time::Instant;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// A timed operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum TimedOperation {
    /// Reading and serializing one page of a list.
    Page,
    /// The wait for a permit to read a whole kind.
    FullReadQueue,
    /// Reading a whole kind and serializing the response.
    FullRead,
    /// A change, from its body to its commit.
    Change,
}

impl EncodeLabelValue for TimedOperation {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        encoder.write_str(match self {
            Self::Page => "page",
            Self::FullReadQueue => "full_read_queue",
            Self::FullRead => "full_read",
            Self::Change => "change",
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    operation: TimedOperation,
}

/// Buckets from a millisecond to half a minute.
static DURATION: LazyLock<Family<Labels, Histogram>> =
    LazyLock::new(|| Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.001, 2.0, 16))));

pub(super) fn observe_duration(operation: TimedOperation, started: Instant) {
    DURATION.get_or_create(&Labels { operation }).observe(started.elapsed().as_secs_f64());
}

pub(crate) fn register(registry: &mut Registry) {
    registry.register(
        "admin_operation_duration_seconds",
        "Duration of the Admin API's operations",
        DURATION.clone(),
    );
}
