//! Metrics of the Admin API: requests by resource, method and status, and the duration of requests
//! and operations.
//!
//! Invariant: labels come from closed lists, whatever a client sends.

use std::fmt::Write as _;
use std::sync::LazyLock;
use std::time::Instant;

use http::request::Parts;
use http::{Method, StatusCode};
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use super::path;

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

/// A resource or method that is not in the list.
const OTHER: &str = "other";

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    resource: &'static str,
    method: &'static str,
    code: u16,
}

static REQUESTS: LazyLock<Family<RequestLabels, Counter>> = LazyLock::new(Family::default);

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResourceLabels {
    resource: &'static str,
}

/// Buckets from a millisecond to 16 seconds.
static REQUEST_DURATION: LazyLock<Family<ResourceLabels, Histogram>> =
    LazyLock::new(|| Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.001, 4.0, 8))));

/// Counts a request that has its response.
pub(super) fn record_request(head: &Parts, status: StatusCode, started: Instant) {
    let resource = path::known_name(head.uri.path()).unwrap_or(OTHER);
    let labels = RequestLabels { resource, method: method_label(&head.method), code: status.as_u16() };
    REQUESTS.get_or_create(&labels).inc();
    let duration = started.elapsed().as_secs_f64();
    REQUEST_DURATION.get_or_create(&ResourceLabels { resource }).observe(duration);
}

fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::PUT => "PUT",
        Method::POST => "POST",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => OTHER,
    }
}

pub(crate) fn register(registry: &mut Registry) {
    let help = "Requests of the Admin API, by the first segment of the path below /apisix/admin";
    registry.register("admin_requests", help, REQUESTS.clone());
    let help = "Duration of the Admin API's requests, from the head to the response";
    registry.register("admin_request_duration_seconds", help, REQUEST_DURATION.clone());
    registry.register(
        "admin_operation_duration_seconds",
        "Duration of the Admin API's operations",
        DURATION.clone(),
    );
}
