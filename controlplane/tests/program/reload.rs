//! SIGHUP: the settings and the files they name are read again, and apply to open connections, too.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::listeners::curl;
use crate::site::{PlainConnection, Running, Site};

const PLAIN: &str = "/deployment/admin/admin_listen";

/// A site with these listeners and the key `first`.
fn site(listeners: Value) -> Site {
    let mut site = Site::new();
    let admin = &mut site.settings["deployment"]["admin"];
    admin["admin_listen"] = listeners;
    admin["admin_key"] = json!([{"name": "one", "key": "first", "role": "admin"}]);
    site
}

fn plain() -> Value {
    json!({"ip": "127.0.0.1", "port": 0, "https_admin": false})
}

fn https() -> Value {
    json!({"ip": "127.0.0.1", "port": 0})
}

fn metrics(site: &Site, running: &Running) -> String {
    let status = running.ready["status"].as_str().unwrap();
    curl(site, &[&format!("http://{status}/metrics")]).1
}

/// Sends SIGHUP and waits for the `nth` reload with this result.
#[track_caller]
fn reload(site: &Site, running: &Running, result: &str, nth: usize) {
    running.signal(Signal::SIGHUP);
    let wanted = format!("countersign_reloads_total{{result=\"{result}\"}} {nth}\n");
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !metrics(site, running).contains(&wanted) {
        assert!(std::time::Instant::now() < deadline, "{wanted} {}", metrics(site, running));
    }
}

#[test]
fn keys_and_addresses_apply_to_kept_connections() {
    let mut site = site(json!([plain(), https()]));
    let running = site.start();
    let mut kept = PlainConnection::open(running.admin()[0]).unwrap();
    let mut status = |key: &str| kept.call("GET", "routes", key, None).unwrap().status;
    assert_eq!((status("first"), status("key-of-the-other")), (200, 401));
    site.settings["deployment"]["admin"]["admin_key"] = json!([
        {"name": "one", "key": "first", "role": "viewer"},
        {"name": "two", "key": "key-of-the-other", "role": "admin"},
    ]);
    site.config();
    reload(&site, &running, "applied", 1);
    assert_eq!((status("first"), status("key-of-the-other")), (200, 200));
    let put = json!({"nodes": {}});
    let mut write = |key: &str| kept.call("PUT", "upstreams/1", key, Some(&put)).unwrap();
    assert_eq!((write("first").status, write("key-of-the-other").status), (401, 201));
    // A reload makes no key, and takes the one that is put there.
    site.settings["deployment"]["admin"]["admin_key"] = json!([{"name": "new", "key": "", "role": "admin"}]);
    site.config();
    reload(&site, &running, "failed", 1);
    assert_eq!(write("key-of-the-other").status, 200);
    let key_file = site.path("data/new.key");
    fs::write(&key_file, "a-key-that-was-put-there\n").unwrap();
    fs::set_permissions(&key_file, fs::Permissions::from_mode(0o600)).unwrap();
    reload(&site, &running, "applied", 2);
    let key = "a-key-that-was-put-there";
    assert_eq!((write("key-of-the-other").status, write(key).status), (401, 200));

    site.settings["deployment"]["admin"]["allow_admin"] = json!(["192.0.2.0/24"]);
    site.settings["apisix"]["enable_server_tokens"] = json!(false);
    site.config();
    reload(&site, &running, "applied", 3);
    let denied = write(key);
    assert!(denied.status == 403 && denied.closes, "{denied:?}");
    let (code, stderr) = running.stop();
    assert_eq!(code, Some(0), "{stderr}");
    assert!(!stderr.contains("key-of-the-other") && !stderr.contains(key), "{stderr}");
}

#[test]
fn listeners_vanish_and_appear() {
    let mut site = site(json!([plain(), plain(), https()]));
    let running = site.start();
    let [kept, vanishing, https] = running.admin()[..] else { panic!("three listeners") };
    let open = |address| PlainConnection::open(address).unwrap();
    let (mut first, mut second) = (open(kept), open(vanishing));
    let status =
        |on: &mut PlainConnection| on.call("GET", "routes", "first", None).map(|answer| answer.status);
    assert_eq!((status(&mut first).unwrap(), status(&mut second).unwrap()), (200, 200));
    // The second one closes, the third is plain HTTP now, and there is a new one.
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let new = json!({"ip": "127.0.0.1", "port": free.port(), "https_admin": false});
    site.settings.pointer_mut(PLAIN).unwrap().as_array_mut().unwrap()[1] = new;
    site.config();
    reload(&site, &running, "applied", 1);
    assert_eq!(status(&mut first).unwrap(), 200);
    assert!(status(&mut second).is_err() && PlainConnection::open(vanishing).is_err());
    assert_eq!(status(&mut open(free)).unwrap(), 200);
    let (status_code, _) = curl(&site, &["-k", &format!("https://{https}/apisix/admin/routes")]);
    assert_eq!(status_code, 400, "it wants a certificate");
    let text = metrics(&site, &running);
    for name in ["admin", "admin-2", "admin-3"] {
        assert_eq!(text.matches(&format!("heartbeat_age_seconds{{task=\"{name}\"}}")).count(), 1, "{text}");
    }
    // The Admin API is switched off, and on again.
    for (enabled, nth) in [(false, 2), (true, 3)] {
        site.settings["apisix"]["enable_admin"] = json!(enabled);
        site.config();
        reload(&site, &running, "applied", nth);
        assert_eq!(PlainConnection::open(free).is_ok(), enabled);
    }
    assert_eq!(status(&mut open(free)).unwrap(), 200);
    // HTTPS in place of plain HTTP on the same address: the kept connection must not go on.
    let mut third = open(free);
    assert_eq!(status(&mut third).unwrap(), 200);
    let https = json!({"ip": "127.0.0.1", "port": free.port()});
    site.settings.pointer_mut(PLAIN).unwrap().as_array_mut().unwrap()[1] = https;
    site.config();
    reload(&site, &running, "applied", 4);
    assert!(status(&mut third).is_err());
    let (status_code, page) = curl(&site, &[&format!("http://{free}/apisix/admin/routes")]);
    assert!(status_code == 400 && page.contains("plain HTTP"), "{status_code} {page}");
    assert_eq!(running.stop().0, Some(0));
}

#[test]
fn a_reload_that_fails_changes_nothing() {
    let mut site = site(json!([plain(), https()]));
    let running = site.start();
    let mut kept = PlainConnection::open(running.admin()[0]).unwrap();
    let pair = |name: &str| fs::read_to_string(site.path(name)).unwrap();
    let ssl = json!({
        "cert": pair("pki/push-server.crt"), "key": pair("pki/push-server.key"), "snis": ["a.test"],
    });
    assert_eq!(kept.call("PUT", "ssls/1", "first", Some(&ssl)).unwrap().status, 201);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let busy = json!([plain(), https(), {"ip": "127.0.0.1", "port": taken.local_addr().unwrap().port()}]);
    let mut nth = 0;
    let mut check = |site: &Site, expected: &str| {
        nth += 1;
        reload(site, &running, "failed", nth);
        assert_eq!(kept.call("GET", "routes", "first", None).unwrap().status, 200, "{expected}");
        assert!(metrics(site, &running).contains("countersign_reload_success 0\n"));
    };
    // The key changes with each of them, and must not.
    site.settings["deployment"]["admin"]["admin_key"][0]["key"] = json!("another");
    for (pointer, value) in [
        ("/apisix", json!({"enable_admn": true})),
        ("/apisix/data_encryption/keyring", json!(["another-key-16by"])),
        (PLAIN, busy),
        ("/deployment/admin/admin_api_mtls/admin_ssl_ca_cert", json!("nowhere.crt")),
    ] {
        site.with(pointer, value);
        check(&site, pointer);
    }
    fs::write(site.path("config.yaml"), "deployment: [").unwrap();
    check(&site, "syntax");
    fs::remove_file(site.path("config.yaml")).unwrap();
    check(&site, "no file");
    site.config();
    reload(&site, &running, "applied", 1);
    assert!(metrics(&site, &running).contains("countersign_reload_success 1\n"));
    assert_eq!(kept.call("GET", "routes", "another", None).unwrap().status, 200);
    let (code, stderr) = running.stop();
    let lines: Vec<_> = stderr.lines().filter(|line| line.contains("settings were not reloaded")).collect();
    assert_eq!((code, lines.len()), (Some(0), 6), "{stderr}");
    for (line, expected) in lines.iter().zip([
        "enable_admn",
        "1 of 1 private keys in the store",
        "another program listens there",
        "nowhere.crt",
        "config.yaml",
        "config.yaml",
    ]) {
        assert!(line.contains(expected), "{expected}: {line}");
    }
}

#[test]
fn a_new_keyring_entry_encrypts_and_old_keys_open() {
    let mut site = site(json!([plain(), https()]));
    let running = site.start();
    let mut kept = PlainConnection::open(running.admin()[0]).unwrap();
    let pair = |name: &str| fs::read_to_string(site.path(name)).unwrap();
    let ssl =
        json!({"cert": pair("pki/push-server.crt"), "key": pair("pki/push-server.key"), "snis": ["a.test"]});
    let mut put = |id: &str| {
        let answer = kept.call("PUT", &format!("ssls/{id}"), "first", Some(&ssl)).unwrap();
        assert!(answer.status < 300, "{answer:?}");
        serde_json::from_str::<Value>(&answer.body).unwrap()["value"]["key"].as_str().unwrap().to_owned()
    };
    let old = put("1");
    site.settings["apisix"]["data_encryption"]["keyring"] = json!(["a-newer-test-key", "a-key-of-a-test-"]);
    site.settings["countersign"]["push"]["listen"] = json!("127.0.0.1:1");
    site.config();
    reload(&site, &running, "applied", 1);
    let new = put("2");
    let ring = |entry: &str| pki::Keyring::new(vec![entry.to_owned()]).unwrap();
    let (old_ring, new_ring) = (ring("a-key-of-a-test-"), ring("a-newer-test-key"));
    assert!(old_ring.open(&old).is_ok() && new_ring.open(&old).is_err());
    assert!(old_ring.open(&new).is_err() && new_ring.open(&new).is_ok());
    let (code, stderr) = running.stop();
    let fixed = "(`controlplane upgrade`), and are as before: countersign.push.listen";
    assert!(code == Some(0) && stderr.contains(fixed), "{stderr}");
}
