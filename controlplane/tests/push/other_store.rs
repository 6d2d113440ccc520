//! A node with one store's state connects to a control plane over another store, which lacks most
//! of it.

use std::sync::Arc;
use std::time::Duration;

use model::Kind;
use pki::ca::Authority;
use proto::push::{Chunk, Hold, Loss, ResourceVersion, from_node, to_node};
use serde_json::{Value, json};

use super::scripted::{ScriptedNode, scripted_control};
use super::world::{World, eventually, key};

fn route(uri: &str) -> Value {
    json!({"uri": uri, "upstream": {"type": "roundrobin", "nodes": {"10.0.0.1:80": 1}}})
}

/// A stopped node that has served two routes, with its last-good file and a ring of ticket secrets.
async fn stopped_node() -> World {
    let world = World { ticket_lifetime: Some(Duration::from_secs(3600)), ..World::new() };
    world.put(Kind::Route, "1", route("/one")).await;
    let revision = world.put(Kind::Route, "2", route("/two")).await;
    let control = world.control().await;
    let node = world.node(control.address());
    control.wait_acknowledged(revision).await;
    node.eventually("a ring", || (node.status.applied_ticket_rings() > 0).then_some(())).await;
    node.stop().await;
    control.stop().await;
    world
}

/// Another world with the same CA, so that the node may connect.
fn world_with_same_ca(world: &World) -> World {
    let mut other = World { ticket_lifetime: world.ticket_lifetime, ..World::new() };
    other.ca = Authority::from_pem(&world.ca.certificate_pem(), &world.ca.key_pem()).unwrap();
    for name in ["ca.crt", "control.crt", "control.key"] {
        std::fs::copy(world.path(name), other.path(name)).unwrap();
    }
    other
}

#[tokio::test]
async fn a_held_node_keeps_everything_until_the_store_is_accepted() {
    let world = stopped_node().await;
    let other = world_with_same_ca(&world);
    let file = world.path("kept/last_good.snapshot");
    let before = std::fs::read(&file).unwrap();
    let control = other.control().await;
    let node = world.node(control.address());
    let held = node.eventually("the hold", || node.status.held_store()).await;
    assert_eq!((held.losses.routes.lost, held.offered.as_str()), (2, other.store.identity()));
    let rings = Arc::clone(&node.secrets.load());
    assert!(!node.status.is_current() && node.status.is_ready() && node.status.applied_ticket_rings() == 0);
    assert_eq!(node.snapshot().len(Kind::Route), 2);
    let fleet = &control.publish.fleet;
    let shown = eventually("the view", fleet.changes(), || fleet.view().list[0].held.clone()).await;
    assert_eq!((shown.routes.gone, shown.store.as_str()), (2, world.store.identity()));
    assert!(std::fs::read(&file).unwrap() == before);

    // A single new route does not end the hold.
    let revision = other.put(Kind::Route, "x", route("/two")).await;
    let one_left = || node.status.held_store().filter(|held| held.losses.routes.lost == 1);
    node.eventually("the next hold", one_left).await;
    assert_eq!(node.snapshot().len(Kind::Route), 2);

    control.publish.acceptance.accept().await.unwrap();
    control.wait_acknowledged(revision).await;
    assert_eq!((node.snapshot().len(Kind::Route), node.snapshot().revision()), (1, revision));
    assert!(node.status.held_store().is_none() && node.status.is_current());
    assert!(!Arc::ptr_eq(&rings, &node.secrets.load()), "the ring of the accepted store came with it");
    node.stop().await;
    control.stop().await;
}

#[tokio::test]
async fn a_hold_ends_when_the_store_has_everything() {
    let world = stopped_node().await;
    let other = world_with_same_ca(&world);
    let control = other.control().await;
    let node = world.node(control.address());
    node.eventually("the hold", || node.status.held_store()).await;
    other.put(Kind::Route, "a", route("/one")).await;
    let revision = other.put(Kind::Route, "b", route("/two")).await;
    control.wait_acknowledged(revision).await;
    assert!(node.status.held_store().is_none());
    node.stop().await;
    control.stop().await;
}

#[tokio::test]
async fn losing_half_passes_and_losing_more_is_held() {
    for (kept, passes) in [(vec!["/one"], true), (vec![], false)] {
        let world = stopped_node().await;
        let other = world_with_same_ca(&world);
        let mut revision = 0;
        for uri in &kept {
            revision = other.put(Kind::Route, "kept", route(uri)).await;
        }
        let control = other.control().await;
        let node = world.node(control.address());
        if passes {
            control.wait_acknowledged(revision).await;
        } else {
            node.eventually("the hold", || node.status.held_store()).await;
        }
        assert_eq!(node.status.held_store().is_none(), passes, "{kept:?}");
        node.stop().await;
        control.stop().await;
    }
}

#[tokio::test]
async fn deleting_most_within_one_store_is_not_held() {
    let world = stopped_node().await;
    let control = world.control().await;
    let node = world.node(control.address());
    world.delete(Kind::Route, "1").await;
    let revision = world.delete(Kind::Route, "2").await;
    control.wait_acknowledged(revision).await;
    assert_eq!(node.snapshot().len(Kind::Route), 0);
    node.stop().await;
    control.stop().await;
}

/// A control plane of a version without `Hold`.
#[tokio::test]
async fn an_older_control_plane_gets_a_nack() {
    let world = stopped_node().await;
    let removals = ["1", "2"].map(|id| model::wire::key_to_wire(&key(Kind::Route, id))).to_vec();
    let chunk = Chunk { from: 0, to: 9, removals, last: true, ..Chunk::default() };
    let mut scripted = scripted_control(&world, vec![chunk], false).await;
    let node = world.node(scripted.address);
    let nack = loop {
        match scripted.next_message().await {
            from_node::Message::Hello(_) | from_node::Message::InitialVersions(_) => {}
            from_node::Message::Nack(nack) => break nack,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((nack.revision, nack.errors[0].field.as_str()), (9, "store"));
    assert!(nack.errors[0].problem.contains("--accept-new-store"), "{nack:?}");
    assert_eq!(node.snapshot().len(Kind::Route), 2);
    node.stop().await;
}

/// The node's text is shown without control characters.
#[tokio::test]
async fn an_acceptance_ends_a_hold_with_the_state() {
    let world = World::new();
    let revision = world.put(Kind::Route, "1", route("/one")).await;
    let control = world.control().await;
    let mut node = ScriptedNode::connect(&world, &control).await;
    let resource =
        ResourceVersion { key: Some(model::wire::key_to_wire(&key(Kind::Route, "9"))), version: 3 };
    node.send_hello_with("elsewhere", 5, vec![resource]).await;
    assert!(node.welcome().await.hold);
    assert_eq!(node.chunk().await.removals.len(), 1);
    let loss = Some(Loss { gone: 1, total: 1 });
    let store = "else\u{1b}[2Jwhere".to_owned();
    let hold = Hold { revision, store, kept: 5, routes: loss, ..Hold::default() };
    node.send(from_node::Message::Hold(hold)).await;
    let fleet = &control.publish.fleet;
    let held = eventually("the hold", fleet.changes(), || fleet.view().list[0].held.clone()).await;
    assert_eq!((held.store.as_str(), held.revision, held.routes.gone), ("else[2Jwhere", 5, 1));
    control.publish.acceptance.accept().await.unwrap();
    assert!(matches!(node.receive().await, Some(to_node::Message::AcceptStore(_))));
    let again = node.chunk().await;
    assert_eq!((again.from, again.to, again.removals.len()), (0, revision, 1));
    node.acknowledge(revision).await;
    control.wait_acknowledged(revision).await;
    control.stop().await;
}
