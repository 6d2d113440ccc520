//! The real programs obey restrictive settings of APISIX, and its own example starts both.

use std::process::Command;

use e2e::documents::route;
use e2e::etcd::Etcd;
use e2e::process::{Launch, Log, run_to_end};
use e2e::upstream::Upstream;
use e2e::world::World;
use http::StatusCode;
use serde_json::json;

#[tokio::test]
async fn a_disabled_admin_api_does_not_listen() {
    let mut world = World::start().await;
    let upstream = Upstream::plain("up").await;
    world
        .apply(&[
            ("ssls/open", world.open_site()),
            ("routes/all", route("app.test", "/*", &[upstream.address()])),
        ])
        .await;
    let admin = world.admin_address();
    world.stop_control().await;
    let connections = world.node_log().mark();

    world.change_settings(json!({"apisix": {"enable_admin": false}}));
    let config = world.write_config("control");
    let checked =
        run_to_end("controlplane", &["check", "-c", config.to_str().unwrap()], world.folder()).await;
    assert!(checked.status.success(), "{checked:?}");
    assert!(
        format!("{}{}", checked.stdout, checked.stderr).contains("no Admin API is opened"),
        "{checked:?}"
    );

    let log = Log::default();
    let control = Launch::new("controlplane", &config).start(&log).await;
    assert!(
        control.ready().get("admin").is_none() && control.ready()["push"].is_string(),
        "{}",
        control.ready()
    );
    log.line_with(&["apisix.enable_admin", "no Admin API is opened"]).await;
    assert!(tokio::net::TcpStream::connect(admin).await.is_err(), "a program listens at {admin}");
    // The data plane has its control plane again, and serves.
    world.node_log().line_after(connections, &["connected"]).await;
    assert_eq!(world.client("app.test").get("/").await.unwrap().status, StatusCode::OK);
    assert!(control.stop().await.success());
}

/// Whether the handshake of `openssl s_client` succeeds, and its suite.
async fn suite(address: std::net::SocketAddr, arguments: &[&str]) -> Option<String> {
    let folder = std::env::temp_dir();
    let arguments = [&["-servername", "app.test"], arguments].concat();
    let mut child = e2e::tools::s_client(address, &folder, &arguments);
    drop(child.stdin.take());
    let output = child.wait_with_output().await.unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let found =
        printed.lines().find_map(|line| line.split_once("Cipher is ").map(|(_, suite)| suite.to_owned()));
    found.filter(|suite| suite != "(NONE)")
}

#[tokio::test]
async fn the_cipher_suite_list_applies_everywhere() {
    let list = "ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305:ECDHE-ECDSA-AES256-GCM-SHA384:\
                ECDHE-RSA-AES256-GCM-SHA384:DHE-RSA-AES128-GCM-SHA256";
    let world = World::builder().settings(json!({"apisix": {"ssl": {"ssl_ciphers": list}}})).start().await;
    world.apply(&[("ssls/open", world.open_site())]).await;
    world.control_log().line_with(&["ssl_ciphers", "DHE-RSA-AES128-GCM-SHA256 cannot be served"]).await;
    for address in [world.https(), world.admin_address()] {
        let kind =
            if suite(address, &["-tls1_2", "-cipher", "aRSA"]).await.is_some() { "RSA" } else { "ECDSA" };
        let offered = |suites: &str| {
            suites.split(' ').map(|suite| format!("ECDHE-{kind}-{suite}")).collect::<Vec<_>>().join(":")
        };
        let refused = offered("AES128-GCM-SHA256 AES128-SHA256");
        assert_eq!(suite(address, &["-tls1_2", "-cipher", &refused]).await, None, "{address}");
        // The server's order decides.
        let both = offered("AES128-GCM-SHA256 AES256-GCM-SHA384 CHACHA20-POLY1305");
        let chosen = suite(address, &["-tls1_2", "-cipher", &both]).await;
        assert_eq!(chosen, Some(offered("CHACHA20-POLY1305")), "{address}");
        let of_tls13 = suite(address, &["-tls1_3", "-ciphersuites", "TLS_AES_128_GCM_SHA256"]).await;
        assert_eq!(of_tls13.as_deref(), Some("TLS_AES_128_GCM_SHA256"), "{address}");
    }
}

#[tokio::test]
async fn a_bundle_with_trust_settings_is_rejected() {
    let world = World::builder().nodes(&[]).start().await;
    let bundle = world.folder().join("client-ca.crt");
    for arguments in [["-addreject", "clientAuth"], ["-addtrust", "serverAuth"]] {
        let written =
            Command::new("openssl").args(["x509", "-trustout", "-in"]).arg(&bundle).args(arguments).output();
        let trusted = String::from_utf8(written.unwrap().stdout).unwrap();
        assert!(trusted.contains("-----BEGIN TRUSTED CERTIFICATE-----"), "{trusted}");
        let mut site = world.protected_site();
        site["client"]["ca"] = json!(trusted);
        let refused = world.admin().call(http::Method::PUT, "ssls/1", Some(&site)).await.unwrap();
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{refused:?}");
        assert!(refused.body.to_string().contains("trust settings"), "{refused:?}");
    }
}

/// APISIX's `conf/config.yaml.example` as a whole: its keys and values, on other ports, with files
/// for our own keys.
#[tokio::test]
async fn apisix_s_example_starts_both_planes() {
    let etcd = Etcd::plain().await;
    let world = World::builder().without_control().nodes(&[]).start().await;
    world.write_credential("node-1", &world.credentials.node("node-1"));
    let copy =
        std::env::var_os("COUNTERSIGN_APISIX_EXAMPLE").map(|path| std::fs::read_to_string(path).unwrap());
    let example =
        copy.unwrap_or_else(|| include_str!("../../../conf/src/tests/apisix_example.yaml").to_owned());
    let example = example.replace("http://127.0.0.1:2379", &etcd.url());
    // Its folder has `logs`; the harness reads standard error.
    let example = example.replace("error_log: logs/error.log", "error_log: stderr");
    let example = ["9080", "9443", "9180", "9091"].iter().fold(example, |text, port| text.replace(port, "0"));
    let config = |name: &str, push: &str| {
        let ours = json!({
            "control_plane": {"status": "127.0.0.1:0"},
            "push": {"listen": "127.0.0.1:0", "cert": "push-server.crt", "key": "push-server.key", "ca": "push-ca.crt"},
            // The generated admin key is written beside the store, under names that the world uses,
            // too.
            "store": {"path": "data/store.redb"},
            "node": {
                "name": "node-1", "control_planes": [push], "server_name": "controlplane", "cert": "node-1.crt",
                "key": "node-1.key", "ca": "push-ca.crt", "last_good": "last_good.snapshot",
            },
        });
        world.write(name, &format!("{example}\ncountersign: {ours}\n"))
    };
    for folder in ["data", "logs"] {
        std::fs::create_dir(world.folder().join(folder)).unwrap();
    }
    let first = config("control.yaml", "127.0.0.1:1");
    let checked = run_to_end("controlplane", &["check", "-c", first.to_str().unwrap()], world.folder()).await;
    assert!(checked.status.success(), "{checked:?}");
    let (control_log, node_log) = (Log::default(), Log::default());
    let control = Launch::new("controlplane", &first).start(&control_log).await;
    assert!(control.ready()["admin"].is_string(), "{}", control.ready());
    let second = config("node.yaml", control.ready()["push"].as_str().unwrap());
    let node = Launch::new("dataplane", &second).start(&node_log).await;
    node_log.line_with(&["connected"]).await;
    assert!(node.stop().await.success());
    assert!(control.stop().await.success());
}
