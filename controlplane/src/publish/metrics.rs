//! Metrics of the push: the nodes by state, their lag, their certificates, and the changes that
//! they do not apply.
//!
//! Invariant: the number of series is bounded, however many nodes connect.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::time::Duration;

use model::Kind;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

/// Node certificates with a series: those that end soonest.
const CERTIFICATES_MAX: usize = 1000;
/// The label of a rejection that names no resource of a known kind.
const OTHER: &str = "other";

macro_rules! node_states {
    ($( $(#[doc = $doc:literal])+ $variant:ident => $label:literal; )+) => {
        /// The state of a node; each node is in one.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub(super) enum NodeState { $( $(#[doc = $doc])+ $variant, )+ }

        impl NodeState {
            const ALL: &'static [(Self, &'static str)] = &[ $( (Self::$variant, $label), )+ ];
        }
    };
}

node_states! {
    /// It has acknowledged the newest revision.
    Current => "current";
    /// It has not, or not yet.
    Behind => "behind";
    /// It rejected the last change.
    Rejecting => "rejecting";
    /// It holds another store's state.
    Holding => "holding";
    /// It is stopping.
    Draining => "draining";
    /// It disconnected within the last hour.
    Disconnected => "disconnected";
}

/// What a scrape shows of the nodes.
#[derive(Debug, Default)]
pub(super) struct FleetSummary {
    states: BTreeMap<NodeState, i64>,
    /// The largest lag of a node.
    revisions: u64,
    age: Duration,
    /// By end and name.
    certificates: BTreeSet<(u64, String)>,
}

impl FleetSummary {
    pub(super) fn count(&mut self, state: NodeState) {
        *self.states.entry(state).or_default() += 1;
    }

    pub(super) fn add_lag(&mut self, revisions: u64, age: Duration) {
        self.revisions = self.revisions.max(revisions);
        self.age = self.age.max(age);
    }

    pub(super) fn add_certificate(&mut self, node: &str, not_after: u64) {
        self.certificates.insert((not_after, node.to_owned()));
        if self.certificates.len() > CERTIFICATES_MAX {
            self.certificates.pop_last();
        }
    }
}

/// What counts while sessions run.
#[derive(Debug)]
pub(super) struct FleetMetrics {
    rejections: Family<[(&'static str, &'static str); 1], Counter>,
    holds: Counter,
}

impl Default for FleetMetrics {
    fn default() -> Self {
        let metrics = Self { rejections: Family::default(), holds: Counter::default() };
        // An increase is seen only of a series that was there before.
        for resource in Kind::ALL.map(Kind::plural).into_iter().chain([OTHER]) {
            drop(metrics.rejections.get_or_create(&[("resource", resource)]));
        }
        metrics
    }
}

impl FleetMetrics {
    /// `resource`: the first one that the node names, such as `ssls/1`.
    pub(super) fn count_rejection(&self, resource: Option<&str>) {
        let kind = resource.and_then(|resource| Kind::from_plural(resource.split('/').next()?));
        self.rejections.get_or_create(&[("resource", kind.map_or(OTHER, Kind::plural))]).inc();
    }

    pub(super) fn count_hold(&self) {
        self.holds.inc();
    }

    /// Adds the metrics; `summary` has what they show of the nodes.
    pub(super) fn register(
        &self,
        registry: &mut Registry,
        summary: impl Fn() -> FleetSummary + Send + Sync + 'static,
    ) {
        let help = "Changes that a data plane rejected, by the kind of the first resource that it named";
        registry.register("snapshot_rejections", help, self.rejections.clone());
        let help = "Snapshots that a data plane holds, because they would replace another store's state";
        registry.register("snapshot_holds", help, self.holds.clone());
        registry.register_collector(Box::new(FleetCollector(Box::new(summary))));
    }
}

struct FleetCollector(Box<dyn Fn() -> FleetSummary + Send + Sync>);

impl fmt::Debug for FleetCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FleetCollector").finish_non_exhaustive()
    }
}

impl Collector for FleetCollector {
    fn encode(&self, mut out: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let summary = (self.0)();
        let help = "Data planes that are connected here, or were within the last hour, by state";
        let mut states = out.encode_descriptor("data_planes", help, None, MetricType::Gauge)?;
        for (state, label) in NodeState::ALL {
            let nodes = summary.states.get(state).copied().unwrap_or_default();
            ConstGauge::new(nodes).encode(states.encode_family(&[("state", *label)])?)?;
        }
        let help = "Revisions between the newest snapshot and the oldest that a connected data plane has acknowledged";
        let revisions = out.encode_descriptor("push_lag_revisions", help, None, MetricType::Gauge)?;
        ConstGauge::new(i64::try_from(summary.revisions).unwrap_or(i64::MAX)).encode(revisions)?;
        let help =
            "Seconds since the oldest change was sent that a connected data plane has not acknowledged";
        let age = out.encode_descriptor("push_lag_seconds", help, None, MetricType::Gauge)?;
        ConstGauge::new(summary.age.as_secs_f64()).encode(age)?;
        let help = "End of the certificate of a connected data plane, in seconds since the Unix epoch; those that end soonest";
        let name = "data_plane_certificate_not_after_timestamp_seconds";
        let mut ends = out.encode_descriptor(name, help, None, MetricType::Gauge)?;
        // Instances of one name: the first to end is shown.
        let mut shown = HashSet::new();
        for (not_after, node) in &summary.certificates {
            if shown.insert(node) {
                let end = i64::try_from(*not_after).unwrap_or(i64::MAX);
                ConstGauge::new(end).encode(ends.encode_family(&[("node", node.as_str())])?)?;
            }
        }
        Ok(())
    }
}
