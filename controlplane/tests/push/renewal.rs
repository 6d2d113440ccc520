//! Certificate renewals by replaced files alone: no restart, no call, and no signal where a
//! certificate expires anyway.

use std::time::SystemTime;

use controlplane::testing::publish::NodeView;
use pki::ca::{Authority, AuthoritySpec, LeafSpec};

use crate::world::{ControlPlane, World, eventually};

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

fn node_spec(name: &str) -> LeafSpec {
    LeafSpec::client(name).dns(name)
}

/// Waits until the node is as `wanted`.
async fn seen(
    control: &ControlPlane,
    name: &str,
    what: &str,
    wanted: impl Fn(&NodeView) -> bool,
) -> NodeView {
    let fleet = &control.publish.fleet;
    let look = || fleet.view().list.into_iter().find(|node| node.name == name && wanted(node));
    eventually(&format!("{name}: {what}"), fleet.changes(), look).await
}

async fn connected(control: &ControlPlane, name: &str) -> NodeView {
    seen(control, name, "connected", |node| node.connected).await
}

fn serial(node: &NodeView) -> String {
    node.certificate.as_ref().unwrap().serial.clone()
}

/// Replaces the node's pair; returns its serial number.
fn renew(world: &World, ca: &Authority, file: &str, spec: &LeafSpec) -> String {
    let issued = ca.issue(spec).unwrap();
    world.write(&format!("{file}.crt"), &issued.chain_pem);
    world.write(&format!("{file}.key"), &issued.key_pem);
    issued.certificate.serial_hex()
}

/// Reloads the push's files, as a connection or SIGHUP does.
async fn reload(control: &ControlPlane) {
    control.publish.files.force_next_read();
    control.publish.files.refresh().await.unwrap();
}

#[tokio::test]
async fn short_lived_certificates_of_both_ends_are_renewed() {
    let world = World::new();
    let ends = now() + 4;
    let short = |spec: LeafSpec| spec.between(crate::at(now() - 60), crate::at(ends));
    renew(&world, &world.ca, "node-1", &short(node_spec("node-1")));
    renew(&world, &world.ca, "control", &short(LeafSpec::server("controlplane")));
    let control = world.control().await;
    let node = world.node(control.address());
    let before = connected(&control, "node-1").await;
    assert!(
        before.certificate.as_ref().unwrap().not_after == ends && before.certificate.unwrap().days_left == 0
    );

    let renewed = renew(&world, &world.ca, "node-1", &node_spec("node-1"));
    renew(&world, &world.ca, "control", &LeafSpec::server("controlplane"));
    let after = seen(&control, "node-1", "renewed", |node| node.connected && serial(node) == renewed).await;
    assert!(after.certificate.unwrap().not_after > ends);
    let revision = world.put_upstreams(2).await;
    control.wait_acknowledged(revision).await;
    assert!(now() >= ends, "the former certificates ended first");
    node.stop().await;
    control.stop().await;
}

#[tokio::test]
async fn a_ca_is_rotated_with_an_overlap() {
    let world = World::new();
    let control = world.control().await;
    let (rotating, staying) = (world.node(control.address()), world.second(control.address()));
    connected(&control, "node-1").await;
    let staying_at = connected(&control, "node-2").await.address;
    let next = Authority::root(&AuthoritySpec::new("Next push CA")).unwrap();

    // Both sides trust both CAs, then get certificates of the next one.
    let both = format!("{}{}", world.ca.certificate_pem(), next.certificate_pem());
    world.write("ca.crt", &both);
    let of_next = renew(&world, &next, "node-1", &node_spec("node-1"));
    renew(&world, &next, "control", &LeafSpec::server("controlplane"));
    rotating.reload();
    let moved = seen(&control, "node-1", "renewed", |node| node.connected && serial(node) == of_next).await;
    let untouched = connected(&control, "node-2").await;
    assert_eq!(untouched.address, staying_at, "a renewed push certificate and an added CA end no stream");

    // The former CA is removed: its node is disconnected, the other one keeps its stream.
    world.write("ca.crt", &next.certificate_pem());
    reload(&control).await;
    seen(&control, "node-2", "gone", |node| !node.connected).await;
    staying.wait_for_problem("rejects our certificate").await;
    let revision = world.put_upstreams(2).await;
    control.wait_acknowledged(revision).await;
    assert_eq!(connected(&control, "node-1").await.address, moved.address);

    // With a certificate of the next CA the node reconnects by itself.
    renew(&world, &next, "node-2", &node_spec("node-2"));
    connected(&control, "node-2").await;
    for node in [rotating, staying] {
        node.stop().await;
    }
    control.stop().await;
}

#[tokio::test]
async fn a_node_reconnects_after_a_ca_change() {
    let world = World::new();
    let control = world.control().await;
    let address = control.address();
    let node = world.node(address);
    connected(&control, "node-1").await;
    control.stop().await;

    let next = Authority::root(&AuthoritySpec::new("Next push CA")).unwrap();
    world.write("ca.crt", &next.certificate_pem());
    renew(&world, &next, "control", &LeafSpec::server("controlplane"));
    renew(&world, &next, "node-1", &node_spec("node-1"));
    let control = world.control_with(conf::PushSettings { listen: address, ..world.push_settings() }).await;
    let revision = world.put_upstreams(2).await;
    control.wait_acknowledged(revision).await;
    node.stop().await;
    control.stop().await;
}

/// A valid pair that the control plane rejects: a wrong file, or a CA that it does not have yet.
#[tokio::test]
async fn a_node_with_a_rejected_renewal_uses_its_former_pair() {
    let world = World::new();
    let control = world.control().await;
    let node = world.node(control.address());
    let before = connected(&control, "node-1").await;
    let other_ca = Authority::root(&AuthoritySpec::new("Other CA")).unwrap();
    let renewed = renew(&world, &other_ca, "node-1", &node_spec("node-1"));
    node.reload();
    let back =
        seen(&control, "node-1", "back", |node| node.connected && node.address != before.address).await;
    assert_eq!(serial(&back), serial(&before));
    node.stop().await;
    control.stop().await;

    // A control plane that has the CA gets the new certificate.
    world.write("ca.crt", &format!("{}{}", world.ca.certificate_pem(), other_ca.certificate_pem()));
    let control = world.control().await;
    let node = world.node(control.address());
    seen(&control, "node-1", "renewed", |node| node.connected && serial(node) == renewed).await;
    node.stop().await;
    control.stop().await;
}
