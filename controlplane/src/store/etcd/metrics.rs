//! Metrics of an etcd cluster: how long requests and commits take, and the state of each endpoint.
//!
//! Invariant: endpoints are the configured ones, each with one state.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Instant;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use super::connection::EndpointState;

/// The durations of a cluster's answers.
#[derive(Debug, Default)]
pub(super) struct EtcdMetrics {
    /// Single requests, each try of its own.
    pub(super) requests: DurationHistogram,
    /// Commits of a batch, with everything that they read and repeat.
    pub(super) commits: DurationHistogram,
}

/// A histogram from a millisecond to 16 seconds.
#[derive(Debug)]
pub(super) struct DurationHistogram(Histogram);

impl Default for DurationHistogram {
    fn default() -> Self {
        Self(Histogram::new(exponential_buckets(0.001, 2.0, 15)))
    }
}

impl DurationHistogram {
    /// Adds the time since `started`.
    pub(super) fn observe(&self, started: Instant) {
        self.0.observe(started.elapsed().as_secs_f64());
    }
}

impl EtcdMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        let help = "Seconds until etcd answered a request, with an error or without";
        registry.register("etcd_request_duration_seconds", help, self.requests.0.clone());
        let help = "Seconds that a commit to etcd took";
        registry.register("etcd_commit_duration_seconds", help, self.commits.0.clone());
    }
}

/// `countersign_etcd_endpoint_state`.
pub(super) struct EndpointStates(pub(super) Box<dyn Fn() -> BTreeMap<String, EndpointState> + Send + Sync>);

impl fmt::Debug for EndpointStates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EndpointStates").finish_non_exhaustive()
    }
}

impl Collector for EndpointStates {
    fn encode(&self, mut out: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let help = "State of an etcd endpoint: 1 for the one that it is in";
        let mut states = out.encode_descriptor("etcd_endpoint_state", help, None, MetricType::Gauge)?;
        let labels = [
            (EndpointState::Connected, "connected"),
            (EndpointState::Failed, "failed"),
            (EndpointState::Unused, "unused"),
        ];
        for (endpoint, current) in (self.0)() {
            for (state, label) in labels {
                let labels = [("endpoint", endpoint.as_str()), ("state", label)];
                ConstGauge::new(i64::from(state == current)).encode(states.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}
