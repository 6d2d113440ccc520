//! `controlplane doctor`: a correct configuration, a running control plane, misconfigurations, and
//! etcd.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;

use e2e::etcd::{Access, Authorities, Etcd};
use e2e::ports::Reservation;
use serde_json::{Value, json};

use crate::site::{Site, program, run};

/// The report, after a check of the exit code.
struct Examined(Value);

impl Examined {
    fn of(config: &Path) -> Self {
        let ran = run(&["doctor", "--json"], config);
        let stdout = String::from_utf8_lossy(&ran.stdout).into_owned();
        let report: Value = serde_json::from_str(&stdout).unwrap_or_else(|_| panic!("{stdout} {ran:?}"));
        assert_eq!(ran.status.code(), Some(i32::from(report["failed"] != 0)), "{stdout}");
        Self(report)
    }

    /// Asserts a row with this state and all of `words`.
    #[track_caller]
    fn has(&self, subject: &str, status: &str, words: &[&str]) -> &Self {
        let fits = |check: &&Value| {
            let text = format!("{} -> {}", check["observed"], check["fix"]);
            check["subject"] == subject
                && check["status"] == status
                && words.iter().all(|word| text.contains(word))
        };
        let checks = self.0["checks"].as_array().unwrap();
        assert!(
            checks.iter().any(|check| fits(&check)),
            "no check {subject:?} {status} {words:?} in {:#}",
            self.0
        );
        self
    }

    #[track_caller]
    fn failed(&self, number: u64) -> &Self {
        assert_eq!(self.0["failed"], number, "{:#}", self.0);
        self
    }
}

#[test]
fn a_correct_configuration_passes() {
    let site = Site::new();
    let config = site.config();
    let examined = Examined::of(&config);
    examined.failed(0).has("deployment.admin.admin_api_mtls.admin_ssl_cert", "ok", &["CN=", "valid until"]);
    examined.has("countersign.push.cert", "ok", &["key and chain fit", "CN=Countersign Push CA"]);
    examined.has("countersign.push.cert", "ok", &["data planes accept it"]);
    examined.has("countersign.push.ca", "ok", &["1 certificate(s)"]);
    examined.has(
        "deployment.admin.admin_api_mtls.admin_ssl_cert",
        "ok",
        &["its names are", "localhost", "127.0.0.1"],
    );
    examined.has("countersign.store.path", "warn", &["there is no file", "store.redb", "an empty store"]);
    examined.has("countersign.push.listen", "ok", &["is free"]);
    assert!(!site.path("data").exists(), "it makes nothing");

    let table = run(&["doctor"], &config);
    let text = String::from_utf8_lossy(&table.stdout).into_owned();
    assert!(table.status.success() && text.contains(": 0 failed, "), "{text}");
    // The machine may lack these, and the first start creates the store.
    let expected = ["limit of open files", "io_uring", "the start makes an empty store"];
    let warned = text.lines().filter(|line| line.starts_with("warn "));
    let others: Vec<_> = warned.filter(|line| !expected.iter().any(|what| line.contains(what))).collect();
    assert!(others.is_empty(), "{text}");
    assert!(text.lines().next().unwrap().starts_with("ok      configuration "), "{text}");
}

/// The data plane's checks: before both programs run, while they run, and with misconfigurations.
#[tokio::test]
async fn the_data_plane_is_examined() {
    let mut site = Site::new();
    let push = Reservation::any();
    site.settings["countersign"]["push"]["listen"] = json!(push.address().to_string());
    site.settings["countersign"]["node"] = json!({
        "name": "dataplane", "control_planes": [push.address().to_string()], "last_good": "data/last_good",
    });
    let ports = ["node_listen", "ssl", "status"].map(|_| Reservation::any());
    let at = |nth: usize| json!({"ip": "127.0.0.1", "port": ports[nth].address().port()});
    site.settings["apisix"]["node_listen"] = json!([at(0)]);
    site.settings["apisix"]["ssl"] = json!({"listen": [at(1)]});
    site.settings["apisix"]["status"] = at(2);
    let config = site.config();
    let before = Examined::of(&config);
    before.failed(0).has("countersign.node.cert", "ok", &["key and chain fit"]);
    before.has("countersign.node.cert", "ok", &["control planes accept it"]);
    before.has("countersign.node.name", "ok", &["dataplane"]);
    before.has("countersign.node.control_planes", "unknown", &["cannot be reached"]);
    before.has("countersign.node.last_good", "ok", &["is not there yet"]);
    for listener in ["apisix.node_listen", "apisix.ssl.listen", "apisix.status"] {
        before.has(listener, "ok", &["is free"]);
    }

    let running = site.start();
    let log = e2e::process::Log::default();
    let node = e2e::process::Launch::new("dataplane", &config).start(&log).await;
    log.line_with(&["the last good snapshot is on disk"]).await;
    let examined = Examined::of(&config);
    examined.failed(0).has("countersign.node.control_planes", "ok", &["accepts this node"]);
    examined.has("countersign.node.last_good", "ok", &["bytes, written", "ago"]);
    for listener in ["apisix.node_listen", "apisix.ssl.listen", "apisix.status"] {
        examined.has(listener, "ok", &["a data plane responds at apisix.status"]);
    }

    misconfigured_nodes_are_reported(&site, &push.address().to_string());
    assert!(node.stop().await.success());
    let _held = TcpListener::bind::<SocketAddr>(ports[1].address()).unwrap();
    let examined = Examined::of(&site.config());
    examined.failed(1).has("apisix.ssl.listen", "fail", &["another program listens there"]);
    assert_eq!(running.stop().0, Some(0));
}

/// A node's certificate, name, key and control plane that do not match.
fn misconfigured_nodes_are_reported(site: &Site, push: &str) {
    let issue = |arguments: &[&str], ca: &str| {
        let (ca, out) = (site.path(ca), site.path("odd"));
        let mut issue = program();
        let issued = issue.args(["pki", "issue", "--force", "--ca"]).arg(ca).arg("--out").arg(out);
        let issued = issued.args(arguments).output();
        assert!(issued.unwrap().status.success());
    };
    let odd = json!({
        "name": "dataplane", "control_planes": [push], "last_good": "data/last_good",
        "cert": "odd.crt", "key": "odd.key",
    });
    for (arguments, ca, what, words) in [
        (
            &["node", "elsewhere"][..],
            "pki/push-ca",
            "countersign.node.name",
            ["not among the names", "elsewhere"],
        ),
        (
            &["server", "dataplane"],
            "pki/push-ca",
            "countersign.node.cert",
            ["is not for TLS clients", "issue it anew"],
        ),
        (&["node", "dataplane"], "pki/admin-ca", "countersign.node.control_planes", ["TLS: ", "push.ca"]),
    ] {
        issue(arguments, ca);
        Examined::of(&site.with("/countersign/node", odd.clone())).has(what, "fail", &words);
    }
    fs::write(site.path("odd.key"), "").unwrap();
    Examined::of(&site.with("/countersign/node", odd)).has("countersign.node.key", "fail", &["odd.key"]);
    let wrong_name = json!({
        "name": "dataplane", "control_planes": [push], "server_name": "somebody",
    });
    let examined = Examined::of(&site.with("/countersign/node", wrong_name));
    examined.has("countersign.node.control_planes", "fail", &["TLS: "]);
    let nothing = json!({"cert": "no.crt", "key": "no.key", "ca": "no-ca.crt", "name": "x"});
    let examined = Examined::of(&site.with("/countersign/node", nothing));
    examined.failed(0).has("countersign.node", "unknown", &["none of its files is on this machine"]);
}

#[test]
fn an_unreadable_configuration_is_the_only_row() {
    let nowhere = Examined::of(Path::new("/nowhere/config.yaml"));
    nowhere.failed(1).has("configuration", "fail", &["/nowhere/config.yaml"]);
    let help = program().args(["doctor", "--help"]).output().unwrap();
    assert!(help.status.success() && String::from_utf8_lossy(&help.stdout).contains("Examples:"));
}

#[test]
fn a_used_port_is_fine_when_held_by_this_control_plane() {
    let mut site = Site::new();
    let (admin, push, status) = (Reservation::any(), Reservation::any(), Reservation::any());
    site.settings["deployment"]["admin"]["admin_listen"]["port"] = json!(admin.address().port());
    site.settings["countersign"]["push"]["listen"] = json!(push.address().to_string());
    site.settings["countersign"]["control_plane"]["status"] = json!(status.address().to_string());
    let running = site.start();
    let ours = ["a control plane with this configuration's certificate listens"];
    let examined = Examined::of(&site.config());
    examined.failed(0).has("deployment.admin.admin_listen", "ok", &ours);
    examined.has("countersign.push.listen", "ok", &ours);
    examined.has("countersign.control_plane.status", "ok", &["in use by the control plane that runs"]);
    examined.has("countersign.store.path", "ok", &["in use by the control plane that runs"]);

    // Its certificate is renewed in the file; the next connection gets the new one.
    let ca = site.path("pki/push-ca");
    let out = site.path("pki/push-server");
    let renew = ["pki", "issue", "server", "controlplane", "--force", "--ca"];
    assert!(program().args(renew).arg(ca).arg("--out").arg(out).status().unwrap().success());
    let examined = Examined::of(&site.config());
    examined.failed(0).has("countersign.push.listen", "ok", &ours);
    assert_eq!(running.stop().0, Some(0));

    let _held: TcpListener = TcpListener::bind::<SocketAddr>(push.address()).unwrap();
    let examined = Examined::of(&site.config());
    examined.failed(1).has("countersign.push.listen", "fail", &["another program listens there"]);
}

#[test]
fn every_listener_of_the_admin_api_is_examined() {
    let mut site = Site::new();
    let (mutual, plain) = (Reservation::any(), Reservation::any());
    site.settings["deployment"]["admin"]["admin_listen"] = json!([
        {"ip": "127.0.0.1", "port": plain.address().port(), "https_admin": false},
        {"ip": "127.0.0.1", "port": mutual.address().port()},
    ]);
    let rows = |examined: &Examined, mutual_text: &str, plain_text: &str| {
        for (address, text) in [(mutual.address(), mutual_text), (plain.address(), plain_text)] {
            examined.has("deployment.admin.admin_listen", "ok", &[&address.to_string(), text]);
        }
    };
    let examined = Examined::of(&site.config());
    let text = format!("plain HTTP on {}", plain.address());
    examined.has("deployment.admin.https_admin", "ok", &[&text]);
    rows(&examined, "is free", "is free");
    let running = site.start();
    let ours = "a control plane with this configuration's certificate listens";
    rows(&Examined::of(&site.config()), ours, "is in use by the control plane that runs");
    assert_eq!(running.stop().0, Some(0));
}

#[test]
fn unusable_push_certificates_are_found() {
    let site = Site::new();
    let issue = |arguments: &[&str], out: &str| {
        let issued =
            program().args(["pki", "issue"]).args(arguments).arg("--out").arg(site.path(out)).output();
        assert!(issued.unwrap().status.success());
    };
    let ca = site.path("pki/push-ca");
    let ca = ca.to_str().unwrap();
    issue(&["client", "controlplane", "--ca", ca], "client");
    issue(&["server", "elsewhere", "--ca", ca], "elsewhere");
    issue(&["server", "controlplane", "--ca", ca], "fine");
    let other = fs::read_to_string(site.path("pki/admin-ca.crt")).unwrap();
    let fine = fs::read_to_string(site.path("fine.crt")).unwrap();
    fs::write(site.path("odd.crt"), fine + &other).unwrap();
    fs::copy(site.path("fine.key"), site.path("odd.key")).unwrap();

    for (name, words) in [
        ("client", ["is not for TLS servers", "issue it anew"]),
        ("elsewhere", ["elsewhere", "countersign.node.server_name"]),
        ("odd", ["certificate 1 (`CN=controlplane`) is issued by `", "each followed by its issuer"]),
    ] {
        let push = json!({
            "listen": "127.0.0.1:0",
            "cert": format!("{name}.crt"), "key": format!("{name}.key"), "ca": "elsewhere.crt",
        });
        let examined = Examined::of(&site.with("/countersign/push", push));
        examined.failed(1).has("countersign.push.cert", "fail", &words);
        examined.has("countersign.push.ca", "warn", &["`CN=elsewhere` is no CA"]);
    }
}

/// The configuration for an etcd, with its certificate files.
fn with_etcd(site: &Site, access: &Access) -> std::path::PathBuf {
    let mut settings = site.settings.clone();
    e2e::settings::merge(&mut settings, access.settings());
    let absolute = |name: &str| json!(site.path(name));
    if let Some(authority) = &access.authority_pem {
        fs::write(site.path("etcd-ca.crt"), authority).unwrap();
        settings["apisix"]["ssl"]["ssl_trusted_certificate"] = absolute("etcd-ca.crt");
    }
    if let Some(client) = &access.client {
        fs::write(site.path("etcd-client.crt"), &client.certificate_pem).unwrap();
        fs::write(site.path("etcd-client.key"), &client.key_pem).unwrap();
        settings["deployment"]["etcd"]["tls"] =
            json!({"cert": absolute("etcd-client.crt"), "key": absolute("etcd-client.key")});
    }
    let path = site.path("config.yaml");
    fs::write(&path, settings.to_string()).unwrap();
    path
}

#[tokio::test]
async fn etcd_is_probed_with_the_control_planes_settings() {
    let (site, authorities) = (Site::new(), Authorities::generate());
    let etcd = Etcd::mutual(&authorities).await;
    let mut keys = etcd.keys().await;
    keys.put("/apisix/routes/1", "{}").await;
    let before = keys.revision().await;
    let what = format!("etcd {}", etcd.url());

    let examined = Examined::of(&with_etcd(&site, &etcd.access()));
    examined.failed(0).has(&what, "ok", &["the leader", "revision"]);
    examined.has(&what, "ok", &["may read and write below /apisix/, where 1 key(s) are"]);
    examined.has(&format!("clock of {}", etcd.url()), "ok", &["the same as this machine's"]);
    examined.has("deployment.etcd.tls.cert", "ok", &["CN=countersign", "valid until"]);
    examined.has("apisix.ssl.ssl_trusted_certificate", "ok", &["CN=Test etcd CA"]);
    assert_eq!(keys.revision().await, before, "nothing is changed");

    let nobody = Access { client: None, ..etcd.access() };
    let examined = Examined::of(&with_etcd(&site, &nobody));
    examined.failed(2).has(&what, "fail", &["TLS: bad certificate", "deployment.etcd.tls.cert"]);
    examined.has("deployment.etcd.host", "fail", &["0 of 1 endpoints respond"]);
    // `check` makes no connection and finds nothing.
    assert!(run(&["check"], &site.path("config.yaml")).status.success());
}

#[test]
fn etcd_configuration_errors_fail_start_and_check() {
    let mut site = Site::new();
    site.settings["deployment"]["role_traditional"] = json!({"config_provider": "etcd"});
    let pair = |key: &str| json!({"cert": site.path("pki/node.crt"), "key": site.path(key)});
    let https = "https://127.0.0.1:1";
    for (etcd, words) in [
        (
            json!({"host": ["http://under_score:2379"]}),
            ["deployment.etcd.host", "expected http:// or https://"],
        ),
        (
            json!({"host": [https], "tls": pair("pki/admin-ca.key")}),
            ["deployment.etcd.tls.key", "It must be the key of"],
        ),
        (json!({"host": [https], "tls": pair("nowhere.key")}), ["deployment.etcd.tls.key", "Check the path"]),
    ] {
        let mut settings = site.settings.clone();
        settings["deployment"]["etcd"] = etcd;
        fs::write(site.path("config.yaml"), settings.to_string()).unwrap();
        crate::refused(&site.path("config.yaml"), &words);
    }
}

#[tokio::test]
async fn an_etcd_user_without_write_permission_is_found() {
    let site = Site::new();
    let etcd = Etcd::plain().await;
    for command in [
        &["user", "add", "root:words"][..],
        &["user", "grant-role", "root", "root"],
        &["user", "add", "reader:words"],
        &["role", "add", "reads"],
        &["role", "grant-permission", "--prefix=true", "reads", "read", "/apisix/"],
        &["user", "grant-role", "reader", "reads"],
        &["auth", "enable"],
    ] {
        etcd.ctl(command).await;
    }
    let login = |user: &str| Access { user: Some((user.to_owned(), "words".to_owned())), ..etcd.access() };
    let what = format!("etcd {}", etcd.url());
    let examined = Examined::of(&with_etcd(&site, &login("reader")));
    examined.failed(1).has(&what, "fail", &["403", "may not write below /apisix/", "grant-permission"]);
    Examined::of(&with_etcd(&site, &login("root"))).failed(0);
    Examined::of(&with_etcd(&site, &login("nobody"))).has(&what, "fail", &["invalid user ID or password"]);
}
