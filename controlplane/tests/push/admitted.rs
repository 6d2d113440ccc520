//! How long a node stays connected: until its certificate expires or is denied.

use std::sync::Arc;
use std::time::SystemTime;

use controlplane::testing::publish::DeniedNode;
use pki::ca::LeafSpec;

use crate::world::{ControlPlane, World, eventually};

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

async fn disconnected(control: &ControlPlane, name: &str) {
    let fleet = &control.publish.fleet;
    let gone = || {
        let view = fleet.view();
        view.list.iter().any(|node| node.name == name && !node.connected).then_some(())
    };
    eventually(&format!("the end of {name}'s stream"), fleet.changes(), gone).await;
}

async fn connected(control: &ControlPlane, name: &str) {
    let fleet = &control.publish.fleet;
    let there = || {
        let view = fleet.view();
        view.list.iter().any(|node| node.name == name && node.connected).then_some(())
    };
    eventually(&format!("{name}'s stream"), fleet.changes(), there).await;
}

#[tokio::test]
async fn a_session_ends_when_the_nodes_certificate_expires() {
    let world = World::new();
    let revision = world.put_upstreams(3).await;
    let control = world.control().await;
    let lasting = world.second(control.address());
    let ends = now() + 3;
    let spec = LeafSpec::client("node-1").dns("node-1").between(crate::at(now() - 60), crate::at(ends));
    world.credential("node-1", &world.ca, &spec);
    let ending = world.node(control.address());
    connected(&control, "node-1").await;
    connected(&control, "node-2").await;
    control.wait_acknowledged(revision).await;

    disconnected(&control, "node-1").await;
    assert!(now() >= ends, "not before its time");
    ending.wait_for_problem("it rejects our certificate").await;
    assert_eq!(ending.snapshot().revision(), revision, "it serves what it has");
    let view = control.publish.fleet.view();
    let other = view.list.iter().find(|node| node.name == "node-2").unwrap();
    assert!(other.connected && other.certificate.as_ref().unwrap().not_after > ends);
    for node in [ending, lasting] {
        node.stop().await;
    }
    control.stop().await;
}

#[tokio::test]
async fn a_session_ends_when_the_push_certificate_expires() {
    let world = World::new();
    let revision = world.put_upstreams(3).await;
    let ends = now() + 3;
    let spec = LeafSpec::server("controlplane").between(crate::at(now() - 60), crate::at(ends));
    world.credential("control", &world.ca, &spec);
    let control = world.control().await;
    let node = world.node(control.address());
    control.wait_acknowledged(revision).await;
    disconnected(&control, "node-1").await;
    assert!(now() >= ends, "not before its time");
    node.wait_for_problem("its certificate is not valid now").await;
    assert_eq!(node.snapshot().revision(), revision, "it serves what it has");
    node.stop().await;
    control.stop().await;
}

#[tokio::test]
async fn a_denied_node_is_disconnected() {
    let world = World::new();
    let revision = world.put_upstreams(3).await;
    let control = world.control().await;
    // A second control plane, which reads the change of the list from the store.
    let elsewhere = world.control_over(Arc::clone(&world.store)).await;
    let (one, two) = (world.node(control.address()), world.second(elsewhere.address()));
    control.wait_acknowledged(revision).await;
    elsewhere.wait_acknowledged(revision).await;

    let certificate = |control: &ControlPlane| {
        control.publish.fleet.view().list.into_iter().find_map(|node| node.certificate).unwrap()
    };
    let by_serial = DeniedNode { serial: Some(certificate(&control).serial), ..DeniedNode::default() };
    control.publish.denied.put("one", by_serial).await.unwrap();
    disconnected(&control, "node-1").await;
    one.wait_for_problem("is on the deny-list of data planes (denied_nodes/one").await;

    let spki = Some(certificate(&elsewhere).spki_sha256);
    let by_key = DeniedNode { spki_sha256: spki, ..DeniedNode::default() };
    control.publish.denied.put("two", by_key).await.unwrap();
    disconnected(&elsewhere, "node-2").await;
    two.wait_for_problem("is on the deny-list of data planes (denied_nodes/two").await;
    let newer = world.put_upstreams(1).await;
    control.wait_for_revision(newer).await;
    assert_eq!(one.snapshot().revision(), revision, "it gets no change any more");

    control.publish.denied.remove("one").await.unwrap();
    connected(&control, "node-1").await;
    control.wait_acknowledged(newer).await;
    for node in [one, two] {
        node.stop().await;
    }
    control.stop().await;
    elsewhere.stop().await;
}
