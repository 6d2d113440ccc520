//! A control plane with another store: a missing file, or a wrong line in the settings. Its nodes
//! keep their snapshot and report it, and take the other store over when an operator accepts it or
//! when nothing would be lost.

use std::fs;

use e2e::documents::route;
use e2e::process::{ExitOutput, run_to_end};
use e2e::upstream::Upstream;
use e2e::world::World;
use http::{Method, StatusCode};
use serde_json::{Value, json};

/// A node that serves `/*` and `/more` of app.test and has both in its last-good file.
async fn served() -> (World, Upstream) {
    served_by(World::start().await).await
}

async fn served_by(world: World) -> (World, Upstream) {
    let upstream = Upstream::plain("plain").await;
    let revision = world
        .apply(&[
            ("ssls/app", world.protected_site()),
            ("routes/app", route("app.test", "/*", &[upstream.address()])),
            ("routes/more", route("app.test", "/more", &[upstream.address()])),
        ])
        .await;
    world.wait_persisted(revision).await;
    (world, upstream)
}

/// Removes the store's file before the next start of the control plane; gives the former file.
async fn lose_the_store(world: &mut World) -> std::path::PathBuf {
    world.stop_control().await;
    let aside = world.folder().join("aside.redb");
    fs::rename(world.store(), &aside).unwrap();
    world.start_control().await;
    aside
}

async fn held(world: &World) {
    world.node_log().line_with(&["the control plane has another store", "1 of 1 sites, 2 of 2 routes"]).await;
    world.control_log().line_with(&["a data plane serves the state of another store"]).await;
}

async fn assert_served(world: &World) {
    let reply = world.verified_client("app.test").get("/").await.unwrap();
    assert_eq!(reply.status, StatusCode::OK);
    world.client("app.test").expect_alert().await;
}

async fn accept(world: &World) -> Value {
    let answer = world.admin().call(Method::POST, "dataplanes/accept_store", None).await.unwrap();
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.reply.text());
    answer.body
}

#[tokio::test]
async fn a_missing_store_file_is_not_taken_over() {
    let (mut world, _upstream) = served().await;
    let before = fs::read(world.last_good("node-1")).unwrap();
    let aside = lose_the_store(&mut world).await;
    held(&world).await;
    assert_served(&world).await;
    assert_eq!(world.metric("countersign_store_held").await, 1);
    let status = world.status("/status").await.json();
    assert_eq!(status["held_store"]["sites"], json!({"gone": 1, "total": 1}), "{status}");
    assert_eq!(world.status("/status/ready").await.status, StatusCode::OK);

    let node = world.admin().get("dataplanes").await.body["list"][0].clone();
    assert_eq!((&node["held"]["routes"]["gone"], &node["connected"]), (&json!(2), &json!(true)), "{node}");
    let lint = world.admin().get("lint").await.body;
    let finding = lint["list"].as_array().unwrap().iter().find(|found| found["field"] == "dataplanes/node-1");
    assert_eq!(finding.unwrap()["severity"], "error", "{lint}");

    // Also over restarts of both, from the last-good file.
    world.kill_node().await;
    world.start_node().await;
    world.node_log().lines_with(&["the control plane has another store"], 2).await;
    assert_served(&world).await;
    assert!(fs::read(world.last_good("node-1")).unwrap() == before, "nothing was written over it");

    // The former file is back.
    world.stop_control().await;
    fs::rename(aside, world.store()).unwrap();
    world.start_control().await;
    let upstream = Upstream::plain("moved").await;
    world.apply(&[("routes/app", route("app.test", "/*", &[upstream.address()]))]).await;
    assert_eq!(world.verified_client("app.test").get("/").await.unwrap().json()["upstream"], "moved");
    assert_eq!(world.metric("countersign_store_held").await, 0);
    assert_eq!(world.status("/status").await.json()["held_store"], Value::Null);
}

#[tokio::test]
async fn another_store_is_accepted_through_the_admin_api() {
    let (mut world, upstream) = served().await;
    lose_the_store(&mut world).await;
    held(&world).await;
    // Documents added meanwhile are not taken in part.
    world.admin().put("routes/app", &route("app.test", "/*", &[upstream.address()])).await;
    world.admin().put("ssls/app", &world.protected_site()).await;
    world.node_log().line_with(&["the control plane has another store", "0 of 1 sites, 1 of 2 routes"]).await;
    assert_eq!(world.verified_client("app.test").get("/more").await.unwrap().status, StatusCode::OK);

    let viewer = world.admin().key(Some(e2e::admin::VIEWER_KEY));
    let refused = viewer.call(Method::POST, "dataplanes/accept_store", None).await.unwrap();
    assert_eq!(refused.status, StatusCode::UNAUTHORIZED);
    let accepted = accept(&world).await;
    assert_eq!(accepted["held"], json!(["node-1"]), "{accepted}");
    let revision = world.admin().get("dataplanes").await.body["revision"].as_u64().unwrap();
    world.wait_acknowledged(revision).await;
    assert_eq!(world.admin().get("dataplanes").await.body["list"][0]["held"], Value::Null);
    assert_served(&world).await;

    // Only this store was accepted.
    lose_the_store(&mut world).await;
    world.node_log().line_with(&["the control plane has another store", "1 of 1 sites, 1 of 1 routes"]).await;
    assert_served(&world).await;
}

#[tokio::test]
async fn a_node_can_be_started_to_accept_another_store_once() {
    let (mut world, _upstream) = served().await;
    lose_the_store(&mut world).await;
    held(&world).await;
    world.stop_node().await;
    world.start_node_with(&["--accept-new-store"]).await;
    world.node_log().line_with(&["--accept-new-store", "is applied"]).await;
    world.wait_acknowledged(0).await;
    world.verified_client("app.test").expect_alert().await;
    let previous = world.folder().join("node-1.snapshot.previous");
    world.wait_persisted_after(0, 0..=0).await;
    assert!(previous.exists(), "the generation before is kept");

    // Back to the former store, while the control plane is down.
    world.stop_control().await;
    world.stop_node().await;
    fs::copy(previous, world.last_good("node-1")).unwrap();
    world.start_node().await;
    assert_served(&world).await;
}

#[tokio::test]
async fn another_store_with_the_same_documents_is_taken_over() {
    let (mut world, _upstream) = served().await;
    world.stop_control().await;
    let config = world.write_config("copy");
    let line = ["-c", config.to_str().unwrap(), "copy", "--from", "embedded", "--to", "embedded:new.redb"];
    let copied = run_to_end("controlplane", &line, world.folder()).await;
    assert!(copied.status.success(), "{copied:?}");
    world.change_settings(json!({"countersign": {"store": {"path": "new.redb"}}}));
    world.start_control().await;
    let upstream = Upstream::plain("moved").await;
    world.apply(&[("routes/app", route("app.test", "/*", &[upstream.address()]))]).await;
    assert_eq!(world.verified_client("app.test").get("/").await.unwrap().json()["upstream"], "moved");
    assert_eq!(world.metric("countersign_store_held").await, 0);
}

/// Equal ids prove nothing: another environment has a route 1, too.
#[tokio::test]
async fn equal_ids_of_another_environment_are_held() {
    let (mut world, upstream) = served().await;
    world.stop_control().await;
    fs::rename(world.store(), world.folder().join("aside.redb")).unwrap();
    world.take_node().kill_9().await;
    world.start_control().await;
    let admin = world.admin();
    admin.put("ssls/app", &e2e::documents::site(&world.credentials.site, "other.test")).await;
    for (id, uri) in [("app", "/*"), ("more", "/more")] {
        admin.put(&format!("routes/{id}"), &route("other.test", uri, &[upstream.address()])).await;
    }
    world.start_node().await;
    held(&world).await;
    assert_served(&world).await;
}

#[tokio::test]
async fn a_held_node_moves_to_a_control_plane_with_its_store() {
    let mut world = World::builder().control_planes(2).without_control().nodes(&[]).start().await;
    world.start_control_at(1).await;
    world.add_node("node-1").await;
    let upstream = Upstream::plain("plain").await;
    let admin = world.admin_of(1);
    admin.put("ssls/app", &world.protected_site()).await;
    let revision = admin.put("routes/app", &route("app.test", "/*", &[upstream.address()])).await;
    world.wait_acknowledged_at(1, revision).await;
    // The first control plane of the list has a store of its own; the node meets it when its own
    // one restarts.
    world.change_settings(json!({"countersign": {"store": {"path": "wrong.redb"}}}));
    world.start_control_at(0).await;
    world.change_settings(json!({"countersign": {"store": {"path": "store.redb"}}}));
    world.stop_control_at(1).await;
    world.node_log().line_with(&["the control plane has another store"]).await;
    world.start_control_at(1).await;
    let moved = Upstream::plain("moved").await;
    let revision = world.admin_of(1).put("routes/app", &route("app.test", "/*", &[moved.address()])).await;
    world.wait_acknowledged_at(1, revision).await;
    assert_eq!(world.verified_client("app.test").get("/").await.unwrap().json()["upstream"], "moved");
}

async fn check(world: &World) -> ExitOutput {
    let config = world.write_config("check");
    run_to_end("controlplane", &["-c", config.to_str().unwrap(), "check"], world.folder()).await
}

#[tokio::test]
async fn a_keyring_that_opens_nothing_is_an_error() {
    let (mut world, _upstream) = served().await;
    world.stop_control().await;
    let fine = check(&world).await;
    assert!(fine.stdout.contains("is fine") && !fine.stdout.contains("warning: stored"), "{fine:?}");
    world.change_settings(json!({"apisix": {"data_encryption": {"keyring": ["0123456789abcdef"]}}}));
    let ended = check(&world).await;
    assert_eq!(ended.status.code(), Some(1));
    for part in ["1 of 1 private keys", "apisix.data_encryption.keyring", "ssls/app"] {
        assert!(ended.stdout.contains(part), "{part}: {ended:?}");
    }
    let config = world.write_config("control");
    let started = run_to_end("controlplane", &["-c", config.to_str().unwrap()], world.folder()).await;
    assert_eq!(started.status.code(), Some(1), "{started:?}");
    assert!(started.stderr.contains("1 of 1 private keys"), "{started:?}");
    assert_served(&world).await;

    // Where some keys open: a warning with numbers, and the rest is served.
    world.change_settings(
        json!({"apisix": {"data_encryption": {"keyring": ["0123456789abcdef", "qeddd145sfvddff3"]}}}),
    );
    world.start_control().await;
    let other = world.credentials.servers.server(&["other.test"]);
    world.admin().put("ssls/other", &e2e::documents::site(&other, "other.test")).await;
    world.stop_control().await;
    world.change_settings(json!({"apisix": {"data_encryption": {"keyring": ["qeddd145sfvddff3"]}}}));
    let partly = check(&world).await;
    assert!(partly.status.success() && partly.stdout.contains("1 of 2 private keys"), "{partly:?}");
    world.start_control().await;
    world.control_log().line_with(&["WARN", "1 of 2 private keys"]).await;
}

#[tokio::test]
async fn check_and_doctor_count_documents() {
    let (mut world, _upstream) = served().await;
    world.stop_control().await;
    let config = world.write_config("check");
    let doctor = ["-c", config.to_str().unwrap(), "doctor"];
    let ended = run_to_end("controlplane", &doctor, world.folder()).await;
    assert!(ended.stdout.contains("the store holds 1 ssls, 2 routes (identity "), "{ended:?}");

    world.change_settings(json!({"countersign": {"store": {"path": "missing.redb"}}}));
    let missing = check(&world).await;
    assert!(missing.status.success() && missing.stdout.contains("there is no file"), "{missing:?}");
    assert!(missing.stdout.contains("missing.redb") && !world.folder().join("missing.redb").exists());
    world.start_control().await;
    world.stop_control().await;
    let empty = check(&world).await;
    assert!(empty.status.success() && empty.stdout.contains("the store is empty (identity "), "{empty:?}");
}
