//! The ring of ticket secrets: which node gets it, when, and that it is on disk.

use std::sync::Arc;
use std::time::Duration;

use model::{Kind, TicketRing};
use proto::push::{Ack, Hello, InitialVersions, from_node, to_node};

use super::scripted::ScriptedNode;
use super::world::{Node, World, upstream};

fn world(lifetime: u64) -> World {
    World { ticket_lifetime: Some(Duration::from_secs(lifetime)), ..World::new() }
}

fn secrets(ring: &TicketRing) -> Vec<[u8; 32]> {
    ring.secrets.iter().map(|secret| *secret.expose()).collect()
}

async fn ring(node: &Node, rings: u64) -> Arc<TicketRing> {
    node.eventually("a ring", || (node.status.applied_ticket_rings() >= rings).then_some(())).await;
    Arc::clone(&node.secrets.load())
}

#[tokio::test]
async fn every_node_gets_the_same_ring_and_stores_it() {
    let world = world(3600);
    let revision = world.put(Kind::Upstream, "u", upstream(1)).await;
    let control = world.control().await;
    let one = world.node(control.address());
    let mut settings = world.node_settings(control.address());
    settings.last_good = world.path("kept/other.snapshot");
    let other = super::node(settings).unwrap();
    control.wait_acknowledged(revision).await;
    let held = ring(&one, 1).await;
    assert_eq!((held.secrets.len(), held.lifetime), (2, 3600));
    let others = ring(&other, 1).await;
    assert_eq!(secrets(&held), secrets(&others));
    one.stop().await;
    other.stop().await;
    control.stop().await;
    // No listener is there now.
    let again = world.node(([127, 0, 0, 1], 1).into());
    assert_eq!(secrets(&again.secrets.load()), secrets(&held));
    again.stop().await;
}

#[tokio::test]
async fn a_ring_rotates_under_open_sessions() {
    let world = world(2);
    let control = world.control().await;
    let node = world.node(control.address());
    let first = ring(&node, 1).await;
    for nth in 2..5 {
        let turned = ring(&node, nth).await;
        assert_ne!(secrets(&turned), secrets(&first));
        assert!(turned.secrets.len() >= 2);
        let revision = world.put(Kind::Upstream, "u", upstream(nth as usize)).await;
        control.wait_acknowledged(revision).await;
    }
    assert_eq!(node.status.rejected_changes(), 0);
    node.stop().await;
    control.stop().await;
}

#[tokio::test]
async fn a_node_without_resumption_gets_no_secret() {
    let world = world(2);
    let control = world.control().await;
    let mut node = ScriptedNode::connect(&world, &control).await;
    node.send_hello().await;
    let empty = node.chunk().await;
    node.send(from_node::Message::Ack(Ack { revision: empty.to })).await;
    // Another node gets the rotated ring; this one gets only the next change.
    let other = world.node(control.address());
    ring(&other, 3).await;
    let revision = world.put(Kind::Upstream, "u", upstream(1)).await;
    assert_eq!(node.chunk().await.to, revision);
    other.stop().await;
    control.stop().await;
}

#[tokio::test]
async fn without_tickets_the_node_gets_an_empty_ring() {
    let world = World::new();
    let control = world.control().await;
    let mut node = ScriptedNode::connect(&world, &control).await;
    let hello = Hello { node: "node-1".into(), instance: "x".into(), tickets: true, ..Hello::default() };
    node.send(from_node::Message::Hello(hello)).await;
    node.send(from_node::Message::InitialVersions(InitialVersions { resources: Vec::new(), last: true }))
        .await;
    let Some(to_node::Message::Welcome(_)) = node.receive().await else { panic!("no Welcome") };
    let Some(to_node::Message::Tickets(ring)) = node.receive().await else { panic!("no ring") };
    assert!(ring.secrets.is_empty());
    control.stop().await;
}
