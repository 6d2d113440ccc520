//! A data plane that starts while no control plane answers serves its last good snapshot, and only that.
//!
//! What it keeps on disk is checked whole before it is served: a damaged file is refused, never half read.

use std::fs;

use e2e::documents::route;
use e2e::upstream::Upstream;
use e2e::world::World;
use http::StatusCode;
use serde_json::json;

async fn served_world() -> (World, Upstream, u64) {
    let world = World::start().await;
    let upstream = Upstream::plain("plain").await;
    let revision = world
        .apply(&[
            ("ssls/app", world.protected_site()),
            ("routes/app", route("app.test", "/*", &[upstream.address()])),
        ])
        .await;
    world.saved(revision).await;
    (world, upstream, revision)
}

#[tokio::test]
async fn a_node_restarted_without_its_control_plane_serves_and_still_verifies() {
    let (mut world, _upstream, revision) = served_world().await;
    world.kill_control().await;
    world.kill_node().await;
    world.start_node().await;
    assert_eq!(world.node_ready()["revision"], json!(revision));
    let reply = world.good_caller("app.test").get("/").await.unwrap();
    assert_eq!(reply.status, StatusCode::OK);
    world.caller("app.test").refusal().await;
    assert_eq!(world.status("/status/ready").await.status, StatusCode::OK);

    // When the control plane is back the node follows it again.
    world.start_control().await;
    let upstream = Upstream::plain("moved").await;
    world.apply(&[("routes/app", route("app.test", "/*", &[upstream.address()]))]).await;
    assert_eq!(world.good_caller("app.test").get("/").await.unwrap().json()["upstream"], "moved");
}

#[tokio::test]
async fn a_change_survives_the_kill_of_both_once_it_is_on_disk() {
    let (mut world, upstream, _) = served_world().await;
    for change in 0..5 {
        let uri = format!("/change-{change}");
        let revision = world.apply(&[("routes/app", route("app.test", &uri, &[upstream.address()]))]).await;
        world.saved(revision).await;
        world.kill_node().await;
        world.kill_control().await;
        world.start_node().await;
        let reply = world.good_caller("app.test").get(&uri).await.unwrap();
        assert_eq!(reply.status, StatusCode::OK, "{uri}: {}", reply.text());
        world.start_control().await;
    }
}

#[tokio::test]
async fn a_damaged_snapshot_is_refused_and_replaced() {
    let (mut world, _upstream, revision) = served_world().await;
    world.stop_node().await;
    let path = world.last_good("node-1");
    let whole = fs::read(&path).unwrap();
    let damages = [
        ("one bit", {
            let mut bytes = whole.clone();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            bytes
        }),
        ("cut short", whole[..whole.len() / 2].to_vec()),
        ("empty", Vec::new()),
        ("something else", b"not a snapshot at all".to_vec()),
    ];
    for (number, (what, damaged)) in damages.into_iter().enumerate() {
        world.stop_control().await;
        fs::write(&path, damaged).unwrap();
        world.start_node().await;
        assert_eq!(world.node_ready()["revision"], json!(0), "{what}");
        assert_eq!(world.status("/status/ready").await.status, StatusCode::SERVICE_UNAVAILABLE, "{what}");
        world.good_caller("app.test").refusal().await;
        world.start_control().await;
        world.settled(revision).await;
        assert_eq!(world.good_caller("app.test").get("/").await.unwrap().status, StatusCode::OK, "{what}");
        world.stop_node().await;
        world.node_log().lines_with(&["WARN", "node-1.snapshot"], number + 1).await;
    }
}

#[tokio::test]
async fn a_snapshot_is_read_only_with_the_nodes_own_key() {
    let (mut world, _upstream, _) = served_world().await;
    world.stop_node().await;
    world.stop_control().await;
    world.write_credential("node-1", &world.credentials.node("node-1"));
    world.start_node().await;
    assert_eq!(world.node_ready()["revision"], json!(0));
}

#[tokio::test]
async fn a_node_without_anything_is_not_ready_and_serves_nothing() {
    let world = World::builder().without_control().start().await;
    assert_eq!(world.status("/status").await.status, StatusCode::OK);
    assert_eq!(world.status("/status/ready").await.status, StatusCode::SERVICE_UNAVAILABLE);
    world.good_caller("app.test").refusal().await;
    let reply = world.plain("app.test").await.get("/").await.unwrap();
    assert!(reply.status == StatusCode::NOT_FOUND || reply.status == StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn a_control_plane_with_an_older_store_is_followed_too() {
    let (mut world, upstream, _) = served_world().await;
    world.stop_control().await;
    let backup = fs::read(world.store()).unwrap();
    world.start_control().await;
    world.apply(&[("routes/more", route("app.test", "/more", &[upstream.address()]))]).await;
    world.stop_control().await;
    // Restored from a backup: revisions go back, and the route that came later is gone again.
    fs::write(world.store(), backup).unwrap();
    world.start_control().await;
    let revision = world.admin().get("dataplanes").await.body["revision"].as_u64().unwrap();
    world.settled(revision).await;
    let reply = world.good_caller("app.test").get("/more").await.unwrap();
    assert_eq!(reply.json()["uri"], "/more", "the catch-all route serves it");
    let revision = world.admin().delete("routes/app").await;
    world.settled(revision).await;
    assert_eq!(world.good_caller("app.test").get("/more").await.unwrap().status, StatusCode::NOT_FOUND);
}
