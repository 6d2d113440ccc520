//! The metrics of the fleet: each state and lag of a node as it happens.

use std::time::Duration;

use model::Kind;
use prometheus_client::registry::Registry;
use proto::push::{Draining, Hold, Nack, ResourceError, from_node};

use super::scripted::ScriptedNode;
use super::world::{ControlPlane, World, eventually, key, upstream};

/// The values of the fleet's metrics.
struct Scraper(Registry);

impl Scraper {
    fn of(control: &ControlPlane) -> Self {
        let mut registry = Registry::with_prefix("countersign");
        control.publish.fleet.register_metrics(&mut registry);
        Self(registry)
    }

    fn value(&self, series: &str) -> f64 {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.0).unwrap();
        let samples = text.lines().filter_map(|line| line.rsplit_once(' '));
        let mut found = samples.filter(|(name, _)| *name == format!("countersign_{series}"));
        found.next().unwrap_or_else(|| panic!("no {series}: {text}")).1.parse().unwrap()
    }

    /// The states that have nodes.
    fn states(&self) -> Vec<&'static str> {
        let states = ["current", "behind", "rejecting", "holding", "draining", "disconnected"];
        let has_nodes = |state: &&str| self.value(&format!("data_planes{{state=\"{state}\"}}")) > 0.0;
        states.into_iter().filter(has_nodes).collect()
    }

    async fn reach(&self, control: &ControlPlane, state: &str) {
        let reached = || (self.states() == [state]).then_some(());
        eventually(state, control.publish.fleet.changes(), reached).await;
    }
}

#[tokio::test]
async fn a_node_counts_in_the_state_it_is_in() {
    let world = World::new();
    let first = world.put_upstreams(2).await;
    let control = world.control().await;
    let metrics = Scraper::of(&control);
    assert_eq!(metrics.states(), [""; 0]);
    let mut node = ScriptedNode::connect(&world, &control).await;
    node.send_hello().await;
    node.chunk().await;
    metrics.reach(&control, "behind").await;

    let rejections = |kind: &str| metrics.value(&format!("snapshot_rejections_total{{resource=\"{kind}\"}}"));
    assert!(rejections("upstreams") + rejections("other") < 1.0);
    let error = ResourceError {
        key: Some(model::wire::key_to_wire(&key(Kind::Upstream, "0"))),
        field: "nodes".into(),
        problem: "not liked".into(),
    };
    node.send(from_node::Message::Nack(Nack { revision: first, errors: vec![error] })).await;
    metrics.reach(&control, "rejecting").await;
    assert!((rejections("upstreams") - 1.0).abs() < f64::EPSILON && rejections("other") < 1.0);

    let second = world.put(Kind::Upstream, "9", upstream(9)).await;
    node.chunk().await;
    node.acknowledge(second).await;
    metrics.reach(&control, "current").await;
    assert!(metrics.value("push_lag_revisions") + metrics.value("push_lag_seconds") < f64::EPSILON);

    let begun = std::time::Instant::now();
    let third = world.put(Kind::Upstream, "9", upstream(10)).await;
    node.chunk().await;
    assert_eq!(metrics.states(), ["behind"]);
    assert!((metrics.value("push_lag_revisions") - 1.0).abs() < f64::EPSILON);
    let lag = metrics.value("push_lag_seconds");
    assert!(
        lag > 0.0 && lag <= begun.elapsed().as_secs_f64() + Duration::from_secs(1).as_secs_f64(),
        "{lag}"
    );
    let hold = Hold { revision: third, store: "another".into(), kept: 7, ..Hold::default() };
    node.send(from_node::Message::Hold(hold)).await;
    metrics.reach(&control, "holding").await;
    assert!((metrics.value("snapshot_holds_total") - 1.0).abs() < f64::EPSILON);
    node.send(from_node::Message::Draining(Draining {})).await;
    metrics.reach(&control, "draining").await;
    assert!(metrics.value("push_lag_seconds") < f64::EPSILON, "a node that stops lags no more");
    drop(node);
    metrics.reach(&control, "disconnected").await;
    control.stop().await;
}

#[tokio::test]
async fn the_certificate_of_a_connected_node_has_its_end() {
    let world = World::new();
    let control = world.control().await;
    let metrics = Scraper::of(&control);
    let node = world.node(control.address());
    control.wait_acknowledged(0).await;
    let shown = metrics.value("data_plane_certificate_not_after_timestamp_seconds{node=\"node-1\"}");
    let view = control.publish.fleet.view();
    let not_after = view.list[0].certificate.as_ref().unwrap().not_after;
    assert!((shown - not_after as f64).abs() < f64::EPSILON, "{shown} {not_after}");
    node.stop().await;
    control.stop().await;
}
