//! Both ends of the push in one process: the real publisher over the real embedded store, the real
//! push client, real mutual TLS.

// Helpers beside the tests may panic as the tests do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod admitted;
mod adopted;
mod metrics;
mod moves;
mod observed_store;
mod older_nodes;
mod other_store;
mod renewal;
mod scripted;
mod set_back;
mod tickets;
mod world;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use controlplane::testing::publish::{self, PublishConfig};
use dataplane::testing::lifecycle::ShutdownStage;
use dataplane::testing::push_client::SnapshotSource;
use model::{HostName, Kind};
use pki::ca::{Authority, AuthoritySpec, LeafSpec};
use serde_json::json;
use tokio::sync::watch;
use world::{ControlPlane, PATIENCE, Relay, World, eventually, node, port, ssl, upstream, upstream_port};

#[tokio::test]
async fn first_sync_then_each_change_then_a_removal() {
    let world = World::new();
    let sites = Authority::root(&AuthoritySpec::new("Sites")).unwrap();
    world.put(Kind::Ssl, "1", ssl(&sites, "one.test")).await;
    let revision = world.put(Kind::Upstream, "u", upstream(1)).await;
    let control = world.control().await;
    let node = world.node(control.address());
    control.wait_acknowledged(revision).await;
    assert_eq!(node.status.source(), SnapshotSource::ControlPlane);
    assert!(node.snapshot().site(&HostName::from_sni("one.test").unwrap()).is_some());
    assert_eq!(node.snapshot().revision(), revision);

    let revision = world.put(Kind::Ssl, "2", ssl(&sites, "two.test")).await;
    control.wait_acknowledged(revision).await;
    assert!(node.snapshot().site(&HostName::from_sni("two.test").unwrap()).is_some());
    let revision = world.delete(Kind::Ssl, "1").await;
    control.wait_acknowledged(revision).await;
    assert!(node.snapshot().site(&HostName::from_sni("one.test").unwrap()).is_none());

    let view = control.publish.fleet.view();
    let row = &view.list[0];
    assert_eq!(
        (row.name.as_str(), row.connected, row.acknowledged, row.lag),
        ("node-1", true, revision, Some(0))
    );
    node.stop().await;
    let fleet = &control.publish.fleet;
    let gone = || (!fleet.view().list[0].connected).then_some(());
    eventually("the node's leaving", fleet.changes(), gone).await;
    control.stop().await;
}

#[tokio::test]
async fn an_empty_store_makes_a_node_ready() {
    let world = World::new();
    let control = world.control().await;
    let node = world.node(control.address());
    control.wait_acknowledged(0).await;
    assert!(node.status.is_ready() && node.snapshot().is_empty());
    node.stop().await;
    control.stop().await;
}

#[tokio::test]
async fn a_reconnect_sends_only_the_difference() {
    let world = World::new();
    let revision = world.put_upstreams(1500).await;
    let control = world.control().await;
    let relay = Relay::to(control.address()).await;
    let node = world.node(relay.address);
    control.wait_acknowledged(revision).await;
    let first = relay.to_node.load(Ordering::Relaxed);
    assert!(first > 60_000, "{first} bytes");

    relay.cut();
    let revision = world.put(Kind::Upstream, "7", upstream(70)).await;
    control.wait_acknowledged(revision).await;
    let again = relay.to_node.load(Ordering::Relaxed) - first;
    assert!(again < 10_000, "{again} bytes for one change after {first} for all");
    assert_eq!(node.snapshot().len(Kind::Upstream), 1500);

    // The same after a restart of the node: the last-good file has the resources with their
    // versions, and the store they are from.
    let before = relay.to_node.load(Ordering::Relaxed);
    node.stop().await;
    let node = world.node(relay.address);
    assert_eq!((node.status.source(), node.snapshot().revision()), (SnapshotSource::LastGood, revision));
    let revision = world.put(Kind::Upstream, "8", upstream(80)).await;
    node.eventually("the new revision", || (node.snapshot().revision() == revision).then_some(())).await;
    let again = relay.to_node.load(Ordering::Relaxed) - before;
    assert!(again < 10_000, "{again} bytes after a restart");
    node.stop().await;
    control.stop().await;
}

#[tokio::test]
async fn a_node_serves_its_last_good_snapshot_without_a_control_plane() {
    let world = World::new();
    let sites = Authority::root(&AuthoritySpec::new("Sites")).unwrap();
    let revision = world.put(Kind::Ssl, "1", ssl(&sites, "one.test")).await;
    let control = world.control().await;
    let address = control.address();
    let node = world.node(address);
    control.wait_acknowledged(revision).await;
    node.stop().await;
    control.stop().await;

    let file = world.path("kept/last_good.snapshot");
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let node = world.node(address);
    assert!(node.snapshot().site(&HostName::from_sni("one.test").unwrap()).is_some());
    assert!(node.status.is_ready());
    node.wait_for_problem("nothing listens there").await;
    node.stop().await;
}

#[tokio::test]
async fn a_damaged_last_good_file_is_a_warning_and_replaced() {
    let world = World::new();
    let revision = world.put_upstreams(3).await;
    let control = world.control().await;
    let node = world.node(control.address());
    control.wait_acknowledged(revision).await;
    node.stop().await;
    let file = world.path("kept/last_good.snapshot");
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, bytes).unwrap();

    let node = world.node("127.0.0.1:1".parse().unwrap());
    assert!(node.snapshot().is_empty() && !node.status.is_ready());
    node.stop().await;
    let node = world.node(control.address());
    node.eventually("the first sync", || (node.snapshot().len(Kind::Upstream) == 3).then_some(())).await;
    node.stop().await;
    let node = world.node("127.0.0.1:1".parse().unwrap());
    assert_eq!(node.snapshot().len(Kind::Upstream), 3);
    node.stop().await;
    control.stop().await;
}

#[tokio::test]
async fn a_node_fails_over_to_the_next_control_plane() {
    let world = World::new();
    let revision = world.put_upstreams(3).await;
    let (first, second) = (world.control().await, world.control().await);
    let mut settings = world.node_settings(first.address());
    settings.control_planes =
        vec!["127.0.0.1:1".into(), first.address().to_string(), second.address().to_string()];
    let node = node(settings).unwrap();
    first.wait_acknowledged(revision).await;
    assert_eq!(*node.status.control_plane().unwrap(), first.address().to_string());
    first.stop().await;
    second.wait_acknowledged(revision).await;
    let revision = world.put(Kind::Upstream, "9", upstream(9)).await;
    second.wait_acknowledged(revision).await;
    assert_eq!(node.snapshot().len(Kind::Upstream), 4);
    node.stop().await;
    second.stop().await;
}

#[tokio::test]
async fn many_nodes_are_served_at_once() {
    let world = World::new();
    let names: Vec<String> = (0..16).map(|nth| format!("edge-{nth}")).collect();
    let spec = names.iter().fold(LeafSpec::client("edges"), |spec, name| spec.dns(name.as_str()));
    world.credential("edges", &world.ca, &spec);
    let revision = world.put_upstreams(50).await;
    let control = world.control().await;
    let nodes: Vec<_> = names
        .iter()
        .map(|name| {
            let mut settings = world.node_settings(control.address());
            settings.name.clone_from(name);
            settings.cert = world.path("edges.crt");
            settings.key = world.path("edges.key");
            settings.last_good = world.path(&format!("{name}/last_good"));
            node(settings).unwrap()
        })
        .collect();
    let fleet = &control.publish.fleet;
    let all = || (fleet.view().list.iter().filter(|node| node.connected).count() == 16).then_some(());
    eventually("sixteen nodes", fleet.changes(), all).await;
    control.wait_acknowledged(revision).await;
    let revision = world.delete(Kind::Upstream, "7").await;
    control.wait_acknowledged(revision).await;
    for node in nodes {
        assert_eq!(node.snapshot().len(Kind::Upstream), 49);
        node.stop().await;
    }
    control.stop().await;
}

#[tokio::test]
async fn another_store_replaces_the_state() {
    let (one, mut other) = (World::new(), World::new());
    other.put(Kind::Upstream, "x", upstream(1)).await;
    one.put_upstreams(5).await;
    let revision = one.put(Kind::Upstream, "x", upstream(2)).await;
    let control = one.control().await;
    let node = one.node(control.address());
    control.wait_acknowledged(revision).await;
    node.stop().await;
    control.stop().await;

    other.ca = Authority::from_pem(&one.ca.certificate_pem(), &one.ca.key_pem()).unwrap();
    for name in ["ca.crt", "control.crt", "control.key"] {
        std::fs::copy(one.path(name), other.path(name)).unwrap();
    }
    let control = other.control().await;
    let node = one.node(control.address());
    control.wait_acknowledged(1).await;
    let snapshot = node.snapshot();
    assert_eq!((snapshot.len(Kind::Upstream), snapshot.revision()), (1, 1));
    assert_eq!(port(&snapshot, "x"), Some(upstream_port(1)));
    node.stop().await;
    control.stop().await;
}

#[tokio::test]
async fn wrong_certificates_are_rejected_with_a_reason() {
    let world = World::new();
    let control = world.control().await;
    let foreign = Authority::root(&AuthoritySpec::new("Foreign CA")).unwrap();
    world.write("foreign.crt", &foreign.certificate_pem());
    world.credential("foreign-node", &foreign, &LeafSpec::client("node-1").dns("node-1"));
    world.credential("expired", &world.ca, &LeafSpec::client("node-1").dns("node-1").between(at(1), at(2)));

    let mut settings = world.node_settings(control.address());
    settings.ca = world.path("foreign.crt");
    let distrusting = node(settings).unwrap();
    distrusting.wait_for_problem("is not from the CA in").await;
    distrusting.stop().await;

    let mut settings = world.node_settings(control.address());
    settings.server_name = "elsewhere.example".into();
    let misled = node(settings).unwrap();
    misled.wait_for_problem("does not carry the name \"elsewhere.example\"").await;
    misled.stop().await;

    for credential in ["foreign-node", "expired"] {
        let mut settings = world.node_settings(control.address());
        settings.cert = world.path(&format!("{credential}.crt"));
        settings.key = world.path(&format!("{credential}.key"));
        let refused = node(settings).unwrap();
        refused.wait_for_problem("it rejects our certificate").await;
        assert!(!refused.status.is_connected());
        refused.stop().await;
    }
    assert_eq!(control.publish.fleet.view().total, 0, "none of them got in");
    control.stop().await;
}

fn at(seconds: u64) -> rustls_pki_types::UnixTime {
    rustls_pki_types::UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}

#[tokio::test]
async fn a_node_cannot_use_another_name() {
    let world = World::new();
    let control = world.control().await;
    let mut settings = world.node_settings(control.address());
    settings.name = "node-2".into();
    let liar = node(settings).unwrap();
    liar.wait_for_problem("calls itself \"node-2\"").await;
    liar.stop().await;
    control.stop().await;

    let mut settings = world.push_settings();
    settings.allowed_names = vec!["fleet.example".into()];
    let control = world.control_with(settings).await;
    let outsider = world.node(control.address());
    outsider.wait_for_problem("allowed_names").await;
    outsider.stop().await;
    world.credential("node-1", &world.ca, &LeafSpec::client("node-1").dns("node-1").dns("fleet.example"));
    let member = world.node(control.address());
    control.wait_acknowledged(0).await;
    member.stop().await;
    control.stop().await;
}

#[tokio::test]
async fn mismatched_files_are_errors_at_start() {
    let world = World::new();
    world.credential("other", &world.ca, &LeafSpec::client("other"));
    let address = "127.0.0.1:1".parse().unwrap();
    let mut settings = world.node_settings(address);
    settings.key = world.path("other.key");
    let error = node(settings).err().unwrap().to_string();
    assert!(error.contains("countersign.node.key") && error.contains("does not belong"), "{error}");

    let mut settings = world.node_settings(address);
    settings.cert = world.path("nowhere.crt");
    let error = node(settings).err().unwrap().to_string();
    assert!(error.contains("countersign.node.cert") && error.contains("nowhere.crt"), "{error}");

    let mut settings = world.push_settings();
    settings.ca = world.path("control.key");
    let (_stop, shutdown) = watch::channel(false);
    let (store, keyring) = (Arc::clone(&world.store), Arc::new(pki::Keyring::empty()));
    let input = PublishConfig {
        store,
        keyring,
        keyring_setting: "countersign.keyring_file",
        accept_unreadable_keys: false,
        settings,
        listener: None,
        generations: process::handover::Generations::first(),
        server_name: "controlplane".into(),
        ticket_lifetime: None,
        version: "test",
        connections_max: 1000,
        heartbeats: Arc::default(),
        shutdown,
    };
    let error = publish::start(input).await.err().unwrap().to_string();
    assert!(error.contains("countersign.push.ca") && error.contains("no certificate"), "{error}");
}

#[tokio::test]
async fn an_invalid_stored_document_keeps_the_former_resource() {
    let world = World::new();
    world.put(Kind::Upstream, "u", upstream(1)).await;
    let control = world.control().await;
    let node = world.node(control.address());
    let broken = world.put(Kind::Upstream, "u", json!({"nodes": "nonsense"})).await;
    control.wait_acknowledged(broken).await;
    assert_eq!(port(&node.snapshot(), "u"), Some(upstream_port(1)));
    let mended = world.put(Kind::Upstream, "u", upstream(2)).await;
    control.wait_acknowledged(mended).await;
    assert_eq!(port(&node.snapshot(), "u"), Some(upstream_port(2)));
    node.stop().await;
    control.stop().await;
}

#[tokio::test]
async fn a_draining_node_still_gets_changes() {
    let world = World::new();
    let control = world.control().await;
    let node = world.node(control.address());
    control.wait_acknowledged(0).await;
    let mut changes = control.publish.fleet.changes();
    let draining = |control: &ControlPlane| control.publish.fleet.view().list[0].draining;
    assert!(!draining(&control));
    node.stage.send_replace(ShutdownStage::LameDuck);
    while !draining(&control) {
        tokio::time::timeout(PATIENCE, changes.changed()).await.expect("it drains").unwrap();
    }
    let revision = world.put_upstreams(2).await;
    control.wait_acknowledged(revision).await;
    assert!(draining(&control), "while it still serves");
    node.stop().await;
    while draining(&control) {
        tokio::time::timeout(PATIENCE, changes.changed()).await.expect("it is gone").unwrap();
    }
    control.stop().await;
}
