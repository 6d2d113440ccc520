//! Backup and restore of the embedded store with the real programs: their output, and that data
//! planes follow.

use std::path::Path;

use e2e::process::program;
use e2e::upstream::Upstream;
use e2e::world::World;
use http::StatusCode;
use serde_json::{Value, json};
use tokio::process::Command;

fn route(upstream: &Upstream, path: &str) -> Value {
    json!({"uri": path, "upstream": {"type": "roundrobin", "nodes": {upstream.address().to_string(): 1}}})
}

async fn status_of(world: &World, path: &str) -> StatusCode {
    world.plain("app.test").await.get(path).await.unwrap().status
}

/// The output, and whether the program succeeded.
async fn controlplane(world: &World, arguments: &[&str]) -> (bool, String) {
    let output = Command::new(program("controlplane"))
        .args(arguments)
        .args([Path::new("-c"), &world.folder().join("control.yaml")])
        .current_dir(world.folder())
        .output()
        .await
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

#[tokio::test]
async fn the_fleet_follows_a_restored_backup() {
    let mut world = World::start().await;
    let upstream = Upstream::plain("one").await;
    let admin = world.admin();
    world.apply(&[("routes/a", route(&upstream, "/a")), ("routes/b", route(&upstream, "/b"))]).await;
    let (fine, text) = controlplane(&world, &["backup", "--to", "saved.redb"]).await;
    assert!(fine && text.contains("2 documents") && text.contains("verified"), "{text}");
    let (fine, text) = controlplane(&world, &["backup", "--to", "saved.redb"]).await;
    assert!(!fine && text.contains("--overwrite"), "{text}");

    admin.delete("routes/a").await;
    let newest = world.apply(&[("routes/c", route(&upstream, "/c"))]).await;
    let (fine, text) = controlplane(&world, &["restore", "--from", "saved.redb"]).await;
    assert!(!fine && text.contains("in use by another process"), "{text}");
    assert_eq!(status_of(&world, "/c").await, StatusCode::OK);

    world.stop_control().await;
    let (fine, text) = controlplane(&world, &["restore", "--from", "saved.redb"]).await;
    assert!(fine && text.contains("2 documents"), "{text}");
    world.start_control().await;
    let restored = world.admin().get("routes").await.body;
    assert_eq!(restored["total"], 2);
    let revision = world.admin().get("dataplanes").await.body["revision"].as_u64().unwrap();
    assert!(revision < newest);
    world.wait_acknowledged(revision).await;
    for (path, status) in [("/a", StatusCode::OK), ("/b", StatusCode::OK), ("/c", StatusCode::NOT_FOUND)] {
        assert_eq!(status_of(&world, path).await, status, "{path}");
    }
    // The store continues from there.
    world.apply(&[("routes/d", route(&upstream, "/d"))]).await;
    assert_eq!(status_of(&world, "/d").await, StatusCode::OK);
}
