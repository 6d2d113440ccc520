//! The `controlplane` program as an operator uses it: start, stop, and the messages about mistakes.

#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used)]

mod admin_apply;
mod admin_cli;
mod doctor;
mod listeners;
mod metrics;
mod output;
mod reload;
mod site;
mod upgrade;

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::sys::signal::Signal;
use serde_json::json;
use site::{PlainConnection, Site, program, run};

/// The start and `check` must both fail with 1 and this message.
#[track_caller]
fn refused(config: &Path, expected: &[&str]) {
    let started = run(&[], config);
    let stderr = String::from_utf8_lossy(&started.stderr).into_owned();
    assert_eq!((started.status.code(), started.stdout.len()), (Some(1), 0), "{stderr}");
    let checked = run(&["check"], config);
    assert_eq!(checked.status.code(), Some(1));
    let message =
        String::from_utf8_lossy(&checked.stdout).into_owned() + &String::from_utf8_lossy(&checked.stderr);
    for expected in expected {
        assert!(stderr.contains(expected), "{expected:?} is not in: {stderr}");
        assert!(message.contains(expected), "{expected:?} is not in: {message}");
    }
}

#[test]
fn start_prints_the_addresses_and_stop_is_graceful() {
    let site = Site::new();
    let checked = run(&["check"], &site.config());
    assert!(checked.status.success(), "{checked:?}");
    assert!(!site.path("data").exists(), "a check makes nothing");
    let running = site.start();
    for listener in ["admin", "push"] {
        let address: std::net::SocketAddr = running.ready[listener].as_str().unwrap().parse().unwrap();
        assert_ne!(address.port(), 0);
    }
    let (code, stderr) = running.stop();
    assert_eq!(code, Some(0), "{stderr}");
    // The key is printed once, at the start that creates it.
    let key = fs::read_to_string(site.path("data/admin.key")).unwrap();
    assert_eq!(stderr.matches(key.trim()).count(), 1, "{stderr}");
    assert_eq!(fs::metadata(site.path("data/admin.key")).unwrap().permissions().mode() & 0o777, 0o600);
    let (code, stderr) = site.start().stop();
    assert_eq!((code, stderr.contains(key.trim())), (Some(0), false), "{stderr}");
    assert_eq!(fs::read_to_string(site.path("data/admin.key")).unwrap(), key);
}

#[test]
fn a_second_control_plane_does_not_start() {
    let site = Site::new();
    let running = site.start();
    let second = run(&[], &site.config());
    let stderr = String::from_utf8_lossy(&second.stderr).into_owned();
    assert_eq!((second.status.code(), second.stdout.len()), (Some(1), 0), "{stderr}");
    for expected in ["store.redb", "in use by another process", "countersign.store.path"] {
        assert!(stderr.contains(expected), "{expected:?} is not in: {stderr}");
    }
    let checked = run(&["check"], &site.config());
    assert!(checked.status.success(), "it finds its own process: {checked:?}");
    assert_eq!(running.stop().0, Some(0));
}

#[test]
fn a_successor_waits_for_a_stopping_process() {
    let mut site = Site::new();
    site.settings["countersign"]["drain_delay"] = json!(1);
    let first = site.start();
    // The same ports and the same store.
    let port = |name: &str| -> std::net::SocketAddr { first.ready[name].as_str().unwrap().parse().unwrap() };
    site.settings["deployment"]["admin"]["admin_listen"]["port"] = port("admin").port().into();
    site.settings["countersign"]["push"]["listen"] = port("push").to_string().into();
    site.settings["countersign"]["control_plane"]["status"] = port("status").to_string().into();
    first.signal(Signal::SIGTERM);
    let second = site.start();
    assert_eq!(first.ended().0, Some(0));
    let (code, stderr) = second.stop();
    assert_eq!(code, Some(0), "{stderr}");
    assert_eq!(stderr.matches("waiting for a stopping control plane").count(), 1, "{stderr}");
}

#[test]
fn configuration_errors_name_the_setting() {
    let site = Site::new();
    let tls = "/deployment/admin/admin_api_mtls";
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    fs::write(site.path("empty.crt"), "").unwrap();
    for (pointer, value, expected) in [
        (format!("{tls}/admin_ssl_ca_cert"), json!("nowhere.crt"), ["admin_ssl_ca_cert", "nowhere.crt"]),
        (format!("{tls}/admin_ssl_ca_cert"), json!("empty.crt"), ["admin_ssl_ca_cert", "empty.crt"]),
        (format!("{tls}/admin_ssl_cert"), json!("nowhere.crt"), ["admin_ssl_cert", "nowhere.crt"]),
        (
            format!("{tls}/admin_ssl_cert_key"),
            json!("pki/node.key"),
            ["does not belong", "It must be the key of"],
        ),
        ("/deployment/admin/admin_key".to_owned(), json!([]), ["admin_key", "admin_key_required"]),
        (
            "/deployment/admin/admin_listen/port".to_owned(),
            json!(port),
            ["admin_listen", "another program listens there"],
        ),
        (
            "/countersign/push/listen".to_owned(),
            json!(format!("127.0.0.1:{port}")),
            ["countersign.push.listen", "127.0.0.1"],
        ),
        ("/countersign/store/path".to_owned(), json!("empty.crt"), ["empty.crt", "damaged"]),
    ] {
        refused(&site.with(&pointer, value), &expected);
    }
}

#[test]
fn a_missing_configuration_or_bad_flag_is_an_error() {
    let nowhere = run(&[], Path::new("/nowhere/config.yaml"));
    assert_eq!(nowhere.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&nowhere.stderr).contains("/nowhere/config.yaml"));
    let odd = program().arg("--nonsense").output().unwrap();
    assert_eq!(odd.status.code(), Some(2));
    let help = program().arg("--help").output().unwrap();
    assert!(help.status.success() && String::from_utf8_lossy(&help.stdout).contains("Examples:"));
    let version = program().arg("--version").output().unwrap();
    assert!(String::from_utf8_lossy(&version.stdout).contains(env!("CARGO_PKG_VERSION")));
}

#[test]
fn check_finds_a_push_certificate_for_another_name() {
    let mut site = Site::new();
    site.settings["countersign"]["node"] = json!({"server_name": "somewhere.else"});
    let checked = run(&["check"], &site.config());
    let message = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert_eq!(checked.status.code(), Some(1), "{message}");
    assert!(
        message.contains("somewhere.else") && message.contains("countersign.node.server_name"),
        "{message}"
    );
}

/// PUTs over one keep-alive connection until it breaks; sends the number of each acknowledged one.
fn write_until_killed(address: std::net::SocketAddr, acknowledged: &std::sync::mpsc::Sender<u64>) {
    let mut connection = PlainConnection::open(address).unwrap();
    for n in 0u64.. {
        let body = json!({"nodes": {"127.0.0.1:1980": n}});
        let Ok(answer) = connection.call("PUT", &format!("upstreams/{n}"), "known", Some(&body)) else {
            return;
        };
        assert_eq!(answer.status, 201, "{answer:?}");
        acknowledged.send(n).unwrap();
    }
}

#[test]
fn acknowledged_writes_survive_sigkill() {
    let mut site = Site::new();
    let admin = &mut site.settings["deployment"]["admin"];
    admin["https_admin"] = json!(false);
    admin["admin_key"] = json!([{"name": "admin", "key": "known", "role": "admin"}]);
    let mut running = site.start();
    let address = running.ready["admin"].as_str().unwrap().parse().unwrap();
    let (sender, acknowledged) = std::sync::mpsc::channel();
    let writer = std::thread::spawn(move || write_until_killed(address, &sender));
    // Killed during the writes that follow the fifth.
    let mut known: Vec<u64> = acknowledged.iter().take(5).collect();
    running.child.kill().unwrap();
    writer.join().unwrap();
    known.extend(acknowledged.iter());
    drop(running);

    let store = controlplane::testing::store::EmbeddedStore::open(&site.path("data/store.redb")).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let items = runtime.block_on(controlplane::testing::store::Store::load(&store)).unwrap().items;
    assert!(known.len() >= 5 && items.len() >= known.len());
    for n in known {
        let found = items.iter().find(|item| item.key.id.as_str() == n.to_string());
        let found = found.unwrap_or_else(|| panic!("{n} was acknowledged and is lost"));
        assert_eq!(found.document["nodes"], json!({"127.0.0.1:1980": n}));
    }
    // At most one write more: the one whose response was in flight.
    assert!(items.iter().all(|item| item.document["nodes"].is_object()));
}
