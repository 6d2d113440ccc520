//! A data plane that starts without a control plane serves its last-good snapshot.
//!
//! The file is verified as a whole first: a damaged one is rejected.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hkdf;
use e2e::documents::route;
use e2e::upstream::Upstream;
use e2e::world::World;
use http::StatusCode;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use serde_json::json;

async fn served_world() -> (World, Upstream, u64) {
    let (world, upstream) = (World::start().await, Upstream::plain("plain").await);
    let revision = world.serve(world.protected_site(), &upstream).await;
    world.wait_persisted(revision).await;
    (world, upstream, revision)
}

#[tokio::test]
async fn a_restarted_node_serves_its_last_good_snapshot() {
    let (mut world, _upstream, revision) = served_world().await;
    world.kill_control().await;
    world.kill_node().await;
    world.start_node().await;
    assert_eq!(world.node_ready()["revision"], json!(revision));
    let reply = world.verified_client("app.test").get("/").await.unwrap();
    assert_eq!(reply.status, StatusCode::OK);
    world.client("app.test").expect_alert().await;
    assert_eq!(world.status("/status/ready").await.status, StatusCode::OK);

    // When the control plane is back, the node follows it again.
    world.start_control().await;
    let upstream = Upstream::plain("moved").await;
    world.apply(&[("routes/app", route("app.test", "/*", &[upstream.address()]))]).await;
    assert_eq!(world.verified_client("app.test").get("/").await.unwrap().json()["upstream"], "moved");
}

#[tokio::test]
async fn a_persisted_change_survives_a_kill_of_both_planes() {
    let (mut world, upstream, _) = served_world().await;
    for change in 0..5 {
        let uri = format!("/change-{change}");
        let revision = world.apply(&[("routes/app", route("app.test", &uri, &[upstream.address()]))]).await;
        world.wait_persisted(revision).await;
        world.kill_node().await;
        world.kill_control().await;
        world.start_node().await;
        let reply = world.verified_client("app.test").get(&uri).await.unwrap();
        assert_eq!(reply.status, StatusCode::OK, "{uri}: {}", reply.text());
        world.start_control().await;
    }
}

#[tokio::test]
async fn a_damaged_snapshot_is_rejected_and_replaced() {
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
        world.verified_client("app.test").expect_alert().await;
        world.start_control().await;
        world.wait_acknowledged(revision).await;
        assert_eq!(
            world.verified_client("app.test").get("/").await.unwrap().status,
            StatusCode::OK,
            "{what}"
        );
        world.stop_node().await;
        world.node_log().lines_with(&["WARN", "node-1.snapshot"], number + 1).await;
    }
}

/// The key of the last-good file is in a file of its own: the node's certificate and key may be
/// replaced while the control plane is down.
#[tokio::test]
async fn a_replaced_node_key_keeps_the_snapshot() {
    let (mut world, _upstream, revision) = served_world().await;
    world.stop_node().await;
    world.stop_control().await;
    let key = world.folder().join("node-1.snapshot.key");
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    world.write_credential("node-1", &world.credentials.node("node-1"));
    world.start_node().await;
    assert_eq!(world.node_ready()["revision"], json!(revision));
    assert_eq!(world.verified_client("app.test").get("/").await.unwrap().status, StatusCode::OK);

    // Without its key the snapshot is not read; the next one has a new key.
    world.stop_node().await;
    fs::remove_file(&key).unwrap();
    world.start_node().await;
    assert_eq!(world.node_ready()["revision"], json!(0));
    world.node_log().line_with(&["WARN", "cannot be opened without its key", "node-1.snapshot.key"]).await;
    world.start_control().await;
    world.wait_acknowledged(revision).await;
    world.stop_node().await;
    world.stop_control().await;
    world.start_node().await;
    assert_eq!(world.node_ready()["revision"], json!(revision));
}

/// Seals a last-good file with the node's push key, as older versions did, and removes the key of
/// its own.
fn in_the_old_format(world: &World) {
    let (path, key) = (world.last_good("node-1"), world.folder().join("node-1.snapshot.key"));
    let file = fs::read(&path).unwrap();
    let (header, sealed) = file.split_at(MAGIC + 2 + SALT + NONCE_LEN);
    assert_eq!(header[MAGIC..MAGIC + 2], [2, 0]);
    let (salt, nonce) = header[MAGIC + 2..].split_at(SALT);
    let nonce = || Nonce::try_assume_unique_for_key(nonce).unwrap();
    let mut body = sealed.to_vec();
    let new = derived(&fs::read(&key).unwrap(), salt, b"countersign last good snapshot v2");
    let length = new.open_in_place(nonce(), Aad::from(header), &mut body).unwrap().len();
    body.truncate(length);
    let node = fs::read_to_string(world.folder().join("node-1.key")).unwrap();
    let node = PrivateKeyDer::from_pem_slice(node.as_bytes()).unwrap();
    let mut header = header.to_vec();
    header[MAGIC] = 1;
    let old = derived(node.secret_der(), salt, b"countersign last good snapshot v1");
    old.seal_in_place_append_tag(nonce(), Aad::from(&header), &mut body).unwrap();
    fs::write(&path, [header, body].concat()).unwrap();
    fs::remove_file(key).unwrap();
}

/// Bytes of the header of a last-good file.
const MAGIC: usize = 8;
const SALT: usize = 32;

fn derived(secret: &[u8], salt: &[u8], info: &[u8]) -> LessSafeKey {
    let extracted = hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(secret);
    LessSafeKey::new(UnboundKey::from(extracted.expand(&[info], &AES_256_GCM).unwrap()))
}

#[tokio::test]
async fn a_snapshot_in_the_old_format_is_read_once_more() {
    let (mut world, _upstream, revision) = served_world().await;
    world.stop_node().await;
    world.stop_control().await;
    in_the_old_format(&world);
    let mark = world.node_log().mark();
    world.start_node().await;
    assert_eq!(world.node_ready()["revision"], json!(revision));
    world.node_log().line_after(mark, &["the last good snapshot is on disk"]).await;
    world.stop_node().await;
    world.write_credential("node-1", &world.credentials.node("node-1"));
    world.start_node().await;
    assert_eq!(world.node_ready()["revision"], json!(revision), "it was written anew, with a key of its own");
    assert_eq!(world.verified_client("app.test").get("/").await.unwrap().status, StatusCode::OK);
}

#[tokio::test]
async fn a_snapshot_in_a_read_only_folder_is_served() {
    let (mut world, upstream, _) = served_world().await;
    world.stop_node().await;
    // Nothing can be written beside it: a folder with a file in it has the name of the temporary
    // file.
    fs::create_dir_all(world.folder().join("node-1.snapshot.tmp/in the way")).unwrap();
    world.start_node().await;
    let revision = world.apply(&[("routes/new", route("app.test", "/new", &[upstream.address()]))]).await;
    assert_eq!(world.verified_client("app.test").get("/new").await.unwrap().status, StatusCode::OK);
    world.node_log().line_with(&["ERROR", "countersign.node.last_good: cannot write"]).await;
    fs::remove_dir_all(world.folder().join("node-1.snapshot.tmp")).unwrap();
    world.wait_persisted(revision).await;
}

/// A client that was revoked while the node was down is not served by the former snapshot.
#[tokio::test]
async fn a_start_can_wait_for_a_control_plane() {
    let world = World::builder().settings(json!({"countersign": {"node": {"wait_for_control_plane": 60}}}));
    let mut world = world.start().await;
    let upstream = Upstream::plain("plain").await;
    let app = route("app.test", "/*", &[upstream.address()]);
    let revision = world.apply(&[("ssls/app", world.protected_site()), ("routes/app", app)]).await;
    world.wait_persisted(revision).await;
    world.stop_node().await;
    let mut revoked = world.protected_site();
    revoked["client"]["crl"] = json!([world.credentials.clients.crl(&[&world.credentials.client])]);
    world.admin().put("ssls/app", &revoked).await;
    world.start_node().await;
    world.verified_client("app.test").expect_alert().await;
}

#[tokio::test]
async fn the_wait_for_a_control_plane_is_bounded() {
    let (mut world, _upstream, revision) = served_world().await;
    world.stop_node().await;
    world.stop_control().await;
    world.change_settings(json!({"countersign": {"node": {"wait_for_control_plane": 0.5}}}));
    world.start_node().await;
    world.node_log().line_with(&["WARN", "countersign.node.wait_for_control_plane"]).await;
    assert_eq!(world.node_ready()["revision"], json!(revision));
    assert_eq!(world.status("/status/ready").await.status, StatusCode::OK);
    assert_eq!(world.verified_client("app.test").get("/").await.unwrap().status, StatusCode::OK);
}

/// Running, and over a restart, until a control plane is back.
#[tokio::test]
async fn a_snapshot_over_its_age_limit_is_not_served() {
    let (mut world, _upstream, revision) = served_world().await;
    world.stop_node().await;
    world.change_settings(json!({"countersign": {"node": {"last_good_max_age": 2}}}));
    world.start_node().await;
    world.wait_acknowledged(revision).await;
    assert_eq!(world.metric("countersign_snapshot_age_seconds").await, 0);
    let mut kept = world.verified_client("app.test").connect().await.unwrap();
    assert_eq!(kept.get("/").await.unwrap().status, StatusCode::OK);

    // The start itself may take longer than the limit, and then has such a line of its own.
    let mark = world.node_log().mark();
    world.stop_control().await;
    world.node_log().lines_after(mark, &["ERROR", "countersign.node.last_good_max_age"], 1).await;
    assert_eq!(world.status("/status/ready").await.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(world.metric("countersign_snapshot_age_seconds").await >= 2);
    world.verified_client("app.test").expect_alert().await;
    let answer = kept.get("/").await;
    assert!(answer.is_err() || answer.unwrap().status != StatusCode::OK, "a kept connection is refused, too");

    world.kill_node().await;
    world.start_node().await;
    world.node_log().line_with(&["ERROR", "the last good snapshot is not served"]).await;
    assert_eq!(world.status("/status/ready").await.status, StatusCode::SERVICE_UNAVAILABLE);
    world.verified_client("app.test").expect_alert().await;

    world.start_control().await;
    world.wait_acknowledged(revision).await;
    assert_eq!(world.verified_client("app.test").get("/").await.unwrap().status, StatusCode::OK);
    assert_eq!(world.status("/status/ready").await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_node_without_a_snapshot_is_not_ready() {
    let world = World::builder().without_control().start().await;
    assert_eq!(world.status("/status").await.status, StatusCode::OK);
    assert_eq!(world.status("/status/ready").await.status, StatusCode::SERVICE_UNAVAILABLE);
    world.verified_client("app.test").expect_alert().await;
    let reply = world.plain("app.test").await.get("/").await.unwrap();
    assert!(reply.status == StatusCode::NOT_FOUND || reply.status == StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn a_restored_older_store_is_followed() {
    let (mut world, upstream, _) = served_world().await;
    world.stop_control().await;
    let backup = fs::read(world.store()).unwrap();
    world.start_control().await;
    world.apply(&[("routes/more", route("app.test", "/more", &[upstream.address()]))]).await;
    world.stop_control().await;
    // Restored from a backup: revisions go back, and the later route is gone.
    fs::write(world.store(), backup).unwrap();
    world.start_control().await;
    let revision = world.admin().get("dataplanes").await.body["revision"].as_u64().unwrap();
    world.wait_acknowledged(revision).await;
    let reply = world.verified_client("app.test").get("/more").await.unwrap();
    assert_eq!(reply.json()["uri"], "/more", "the catch-all route serves it");
    let revision = world.admin().delete("routes/app").await;
    world.wait_acknowledged(revision).await;
    assert_eq!(world.verified_client("app.test").get("/more").await.unwrap().status, StatusCode::NOT_FOUND);
}
