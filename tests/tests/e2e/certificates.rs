//! The programs reload their own certificates from renewed files, and all interfaces show when they
//! expire.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use e2e::tools::s_client;
use e2e::world::World;
use pki::Certificate;
use pki::ca::LeafSpec;
use serde_json::{Value, json};

/// The certificate on a new connection, as openssl prints it.
async fn shown(address: SocketAddr, folder: &Path) -> Certificate {
    let mut child = s_client(address, folder, &["-showcerts"]);
    drop(child.stdin.take());
    let output = child.wait_with_output().await.unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (begin, end) = ("-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----");
    let from = text.find(begin).unwrap_or_else(|| panic!("no certificate: {text}"));
    let to = from + text[from..].find(end).unwrap() + end.len();
    pki::certificates_from_pem(&text[from..to]).unwrap().remove(0)
}

/// Sends SIGHUP like an operator or a package's `ExecReload`.
fn hup(process: u32) {
    let sent = Command::new("kill").args(["-HUP", &process.to_string()]).status().unwrap();
    assert!(sent.success());
}

/// Issues a certificate of the world's server authority that expires in so many days, into the
/// files of this name.
fn write_ending(
    world: &World,
    name: &str,
    authority: &e2e::credentials::Authority,
    spec: LeafSpec,
    days: u32,
) {
    // A minute ago, so that a whole day less is left.
    let from = Duration::from_secs(pki::UnixTime::now().as_secs() - 60);
    let spec = spec.valid(pki::UnixTime::since_unix_epoch(from), days);
    world.write_credential(name, &authority.issue(&spec));
}

fn json_of(reply: e2e::client::Reply) -> Value {
    serde_json::from_str(&reply.text()).unwrap()
}

#[tokio::test]
async fn renewed_certificates_are_used_without_a_restart() {
    let world = World::start().await;
    let (admin, push, folder) = (world.admin_address(), world.push_address(), world.folder());
    let before = (shown(admin, folder).await, shown(push, folder).await);
    let credentials = &world.credentials;
    world.write_credential("admin", &credentials.servers.server(&["admin.test"]));
    world.write_credential("push-server", &credentials.push.server(&["controlplane"]));
    let after = (shown(admin, folder).await, shown(push, folder).await);
    assert!(before.0 != after.0 && before.1 != after.1);
    for (name, leaf) in [("admin", &after.0), ("push", &after.1)] {
        let serial = format!("serial=\"{}\"", leaf.serial_hex());
        world.control_log().line_with(&["INFO", "the renewed certificate is in use", name, &serial]).await;
    }
    let folder_of = |name: &str| world.folder().join(name);
    // An incomplete pair, a wrong name and a FIFO change nothing.
    std::fs::write(folder_of("admin.crt"), "-----BEGIN CERTIFICATE-----\nMIIB").unwrap();
    world.write_credential("push-server", &credentials.push.server(&["elsewhere"]));
    assert!(shown(admin, folder).await == after.0 && shown(push, folder).await == after.1);
    world.control_log().line_with(&["WARN", "admin.crt", "stays in use"]).await;
    world.control_log().line_with(&["WARN", "push-server.crt", "does not carry the name"]).await;
    std::fs::remove_file(folder_of("admin.key")).unwrap();
    assert!(Command::new("mkfifo").arg(folder_of("admin.key")).status().unwrap().success());
    assert!(shown(admin, folder).await == after.0);
}

#[tokio::test]
async fn sighup_reloads_both_programs_and_expiry_is_reported() {
    let world = World::start().await;
    world.wait_acknowledged(0).await;
    let before = world.admin().get("dataplanes").await.body["list"][0]["certificate"]["serial"].clone();
    let credentials = &world.credentials;
    write_ending(&world, "node-1", &credentials.push, LeafSpec::client("node-1").dns("node-1"), 10);
    write_ending(&world, "admin", &credentials.servers, LeafSpec::server("admin.test"), 20);
    hup(world.node_id());
    hup(world.control_process(0).id());
    world.node_log().line_with(&["the renewed certificate is in use", "certificate=\"node\""]).await;
    world.node_log().line_with(&["certificate files were read again"]).await;
    world.control_log().line_with(&["certificate files were read again", "admin", "push"]).await;
    world.node_log().lines_with(&["connected", "control_plane="], 2).await;

    let node = &world.admin().get("dataplanes").await.body["list"][0];
    assert_ne!(node["certificate"]["serial"], before);
    assert_eq!(node["certificate"]["days_left"], json!(9));
    let status = json_of(world.status("/status").await);
    let own = &status["certificates"][0];
    assert_eq!((&own["name"], &own["certificate"]["days_left"]), (&json!("node"), &json!(9)), "{status}");
    assert_eq!(status["last_error"], Value::Null);
    let status = json_of(world.control_status("/status").await);
    assert_eq!(status["certificates"][0]["certificate"]["days_left"], json!(19), "{status}");
    let not_after = node["certificate"]["not_after"].as_u64().unwrap();
    let metric = "countersign_certificate_not_after_timestamp_seconds";
    assert_eq!(world.metric(&format!("{metric}{{certificate=\"node\"}}")).await, not_after);
    let text = world.control_status("/metrics").await.text();
    for name in ["admin", "push"] {
        assert!(text.contains(&format!("{metric}{{certificate=\"{name}\"}} ")), "{text}");
    }

    let lint = world.admin().get("lint").await.body;
    let fields: Vec<_> = lint["list"].as_array().unwrap().iter().map(|one| one["field"].clone()).collect();
    assert!(
        fields.contains(&json!("deployment.admin.admin_api_mtls.admin_ssl_cert"))
            && fields.contains(&json!("dataplanes/node-1")),
        "{lint}"
    );
}

#[tokio::test]
async fn a_broken_push_connection_is_repaired_by_files_alone() {
    let mut world = World::start().await;
    world.stop_control().await;
    let untrusted = world.credentials.untrusted.server(&["controlplane"]);
    world.write_credential("push-server", &untrusted);
    world.start_control().await;
    world.node_log().line_with(&["WARN", "its certificate is not from the CA"]).await;
    let status = json_of(world.status("/status").await);
    assert_eq!(status["control_plane_connected"], json!(false), "{status}");
    assert!(status["last_error"].as_str().unwrap().contains("countersign.node.ca"), "{status}");

    world.write_credential("push-server", &world.credentials.push_server);
    let revision =
        world.admin().put("upstreams/1", &json!({"type": "roundrobin", "nodes": {"127.0.0.1:1": 1}})).await;
    world.wait_acknowledged(revision).await;
    let status = json_of(world.status("/status").await);
    assert_eq!((&status["control_plane_connected"], &status["last_error"]), (&json!(true), &Value::Null));
}
