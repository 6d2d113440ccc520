//! Who reaches the listeners for operators where their addresses are not loopback ones: networks of
//! an allow-list, and clients with a certificate. The client is curl.

use std::net::SocketAddr;

use e2e::process::run_to_end;
use e2e::tools::{CurlOutput, curl};
use e2e::world::World;
use http::StatusCode;
use serde_json::json;

/// A request from an address of this machine.
async fn from(world: &World, source: &str, address: SocketAddr, path: &str) -> CurlOutput {
    let url = format!("http://127.0.0.1:{}{path}", address.port());
    curl(world.folder(), &["--interface", source, &url]).await
}

#[tokio::test]
async fn an_allow_list_denies_other_addresses() {
    let mut world = World::builder()
        .settings(json!({
            "apisix": {"status": {"ip": "0.0.0.0"}},
            "countersign": {"status": {"allow": ["127.0.0.1/32"]}},
        }))
        .start()
        .await;
    let status = world.node_address(0, "status");
    let control = world.node_address(0, "control");
    for (address, path) in [(status, "/metrics"), (control, "/v1/routes")] {
        assert_eq!(from(&world, "127.0.0.1", address, path).await.status, 200, "{path}");
        let denied = from(&world, "127.0.0.2", address, path).await;
        assert_eq!(denied.status, 403, "{denied:?}");
        assert_eq!(denied.body, "this address may not connect: see countersign.status.allow\n");
    }
    assert_eq!(world.metric("countersign_status_rejections_total{reason=\"address\"}").await, 2);
    let of_control = SocketAddr::new(status.ip(), world.control_status_address().port());
    assert_eq!(from(&world, "127.0.0.2", of_control, "/metrics").await.status, 403);
    assert_eq!(from(&world, "127.0.0.1", of_control, "/status/ready").await.status, 200);

    // A reload replaces the list, in both programs.
    world.change_settings(json!({"countersign": {"status": {"allow": ["127.0.0.2"]}}}));
    let config = world.write_config("node-1");
    let reloaded = run_to_end("dataplane", &["reload", "-c", config.to_str().unwrap()], world.folder()).await;
    assert!(reloaded.stdout.contains("countersign.status.allow"), "{reloaded:?}");
    assert_eq!(from(&world, "127.0.0.2", status, "/status").await.status, 200);
    assert_eq!(from(&world, "127.0.0.1", status, "/status").await.status, 403);
    let reloaded = world.reload_control_at(0).await;
    assert!(reloaded.status.success(), "{reloaded:?}");
    assert_eq!(from(&world, "127.0.0.2", of_control, "/status").await.status, 200);
    assert_eq!(from(&world, "127.0.0.1", of_control, "/status").await.status, 403);
}

#[tokio::test]
async fn denied_clients_keep_no_permitted_one_out() {
    let world = World::builder()
        .settings(json!({
            "apisix": {"status": {"ip": "0.0.0.0"}},
            "countersign": {"status": {"allow": ["127.0.0.1/32"]}},
        }))
        .start()
        .await;
    let port = world.node_address(0, "status").port();
    let mut silent = Vec::new();
    for _ in 0..64 {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        silent.push(socket.connect(SocketAddr::from(([127, 0, 0, 1], port))).await.unwrap());
    }
    assert_eq!(world.status("/status").await.status, StatusCode::OK);
    drop(silent);
}

#[tokio::test]
async fn mutual_tls_takes_certificates_of_its_ca_only() {
    let files = json!({"cert": "admin.crt", "key": "admin.key", "ca": "client-ca.crt"});
    let settings = json!({
        "apisix": {"status": {"ip": "0.0.0.0"}},
        "countersign": {"status": {"tls": files}},
    });
    let world = World::builder().settings(settings).start().await;
    world.write_credential("stranger", &world.credentials.push.client("stranger"));
    for (address, path) in [
        (world.node_address(0, "status"), "/metrics"),
        (world.node_address(0, "control"), "/v1/certificates"),
        (world.control_status_address(), "/status"),
    ] {
        let port = address.port();
        let (url, resolve) =
            (format!("https://admin.test:{port}{path}"), format!("admin.test:{port}:127.0.0.1"));
        let call = async |more: &[&str]| {
            let server = ["--cacert", "server-ca.crt", "--resolve", resolve.as_str()];
            let arguments: Vec<&str> = server.iter().chain(more).copied().chain([url.as_str()]).collect();
            curl(world.folder(), &arguments).await
        };
        let good = call(&["--cert", "administrator.crt", "--key", "administrator.key"]).await;
        assert_eq!(good.status, 200, "{good:?}");
        for bad in [&[][..], &["--cert", "stranger.crt", "--key", "stranger.key"]] {
            let refused = call(bad).await;
            assert!(refused.status == 0 && [35, 55, 56].contains(&refused.exit), "{refused:?}");
        }
        let plain = curl(world.folder(), &[&format!("http://127.0.0.1:{port}{path}")]).await;
        assert_eq!(plain.status, 400, "{plain:?}");
        assert!(plain.body.contains("countersign.status.tls"), "{plain:?}");
    }
}

#[tokio::test]
async fn an_open_address_fails_the_start() {
    let world = World::builder().without_control().nodes(&[]).start().await;
    let listeners = [
        ("dataplane", "apisix.status", json!({"apisix": {"status": {"ip": "0.0.0.0", "port": 0}}})),
        ("dataplane", "apisix.control", json!({"apisix": {"control": {"ip": "0.0.0.0", "port": 0}}})),
        (
            "dataplane",
            "plugin_attr.prometheus.export_addr",
            json!({"plugin_attr": {"prometheus": {"export_addr": {"ip": "0.0.0.0", "port": 0}}}}),
        ),
        (
            "controlplane",
            "countersign.control_plane.status",
            json!({"countersign": {"control_plane": {"status": "0.0.0.0:0"}}}),
        ),
    ];
    for (program, key, settings) in listeners {
        let config = world.write("open.yaml", &settings.to_string());
        let ended = run_to_end(program, &["-c", config.to_str().unwrap()], world.folder()).await;
        let problem = format!("{ended:?}");
        assert!(!ended.status.success(), "{problem}");
        for words in [key, "countersign.status.allow", "countersign.status.tls", "127.0.0.1"] {
            assert!(problem.contains(words), "{words}: {problem}");
        }
    }
}
