//! `controlplane copy` between the embedded store, a cluster and an APISIX file, with the real
//! program and a real etcd.

use e2e::documents::route;
use e2e::etcd::Etcd;
use e2e::process::{ExitOutput, run_to_end};
use e2e::upstream::Upstream;
use e2e::world::World;
use http::StatusCode;
use serde_json::{Value, json};

/// Runs it with the control plane's settings.
async fn copy(world: &World, from: &str, to: &str) -> ExitOutput {
    let config = world.write_config("copy");
    let line = ["-c", config.to_str().unwrap(), "copy", "--from", from, "--to", to];
    run_to_end("controlplane", &line, world.folder()).await
}

fn report(ended: &ExitOutput) -> &str {
    assert!(ended.status.success(), "{ended:?}");
    &ended.stdout
}

#[tokio::test]
async fn an_embedded_store_moves_to_a_cluster_under_load() {
    let etcd = Etcd::plain().await;
    let mut world = World::start().await;
    let upstream = Upstream::plain("plain").await;
    let app = route("app.test", "/*", &[upstream.address()]);
    world.apply(&[("ssls/app", world.protected_site()), ("routes/app", app.clone())]).await;
    world.stop_control().await;

    world.change_settings(etcd.access().settings());
    let there = copy(&world, "embedded", "etcd").await;
    assert!(
        report(&there).contains("2 are new, 0 differ") && report(&there).contains("verified: 2 documents")
    );
    let mut keys = etcd.keys().await;
    let ssl = keys.get("/apisix/ssls/app").await.unwrap().json();
    assert!(!ssl["key"].as_str().unwrap().starts_with("---"), "sealed keys stay sealed");
    assert_eq!(keys.get("/apisix/routes/app").await.unwrap().json()["uri"], app["uri"]);
    let revision = keys.revision().await;
    assert!(report(&copy(&world, "embedded", "etcd").await).contains("0 are new, 0 differ, 2 are the same"));
    assert_eq!(keys.revision().await, revision, "run again, it writes nothing");

    // The node served all the while, and follows the control plane that has moved.
    assert_eq!(world.verified_client("app.test").get("/").await.unwrap().status, StatusCode::OK);
    world.start_control().await;
    world.wait_acknowledged(revision).await;
    assert_eq!(world.verified_client("app.test").get("/").await.unwrap().status, StatusCode::OK);
    world.client("app.test").expect_alert().await;
    let moved = Upstream::plain("moved").await;
    world.apply(&[("routes/app", route("app.test", "/*", &[moved.address()]))]).await;
    assert_eq!(world.verified_client("app.test").get("/").await.unwrap().json()["upstream"], "moved");
    let refused = copy(&world, "embedded", "etcd").await;
    assert!(!refused.status.success());
    assert!(refused.stdout.contains("conflict: routes/app differs"), "{refused:?}");
}

#[tokio::test]
async fn an_apisix_cluster_is_copied() {
    let etcd = Etcd::plain().await;
    let world = World::builder().without_control().nodes(&[]).etcd(&etcd).start().await;
    let mut keys = etcd.keys().await;
    // Documents of an APISIX: an unsupported plugin, another kind, invalid JSON; and more than one
    // page.
    let plugin = json!({"id": "7", "uri": "/x", "plugins": {"limit-count": {"count": 2}}});
    keys.put("/apisix/routes/7", plugin.to_string()).await;
    keys.put("/apisix/routes/8", "init_dir").await;
    keys.put("/apisix/consumers/jack", r#"{"username":"jack"}"#).await;
    for nth in 0..1200 {
        let upstream = json!({"id": nth.to_string(), "type": "roundrobin", "nodes": {"127.0.0.1:1": 1}});
        keys.put(&format!("/apisix/upstreams/{nth}"), upstream.to_string()).await;
    }
    let out = copy(&world, "etcd", "yaml:rules.yaml").await;
    let out = report(&out);
    for part in [
        "warning: consumers (1 of them) cannot be copied",
        "warning: routes/8 is left out: it is no JSON object",
        "1201 are new",
        "verified: 1201 documents",
    ] {
        assert!(out.contains(part), "{part}: {out}");
    }
    let back = copy(&world, "yaml:rules.yaml", "embedded:other.redb").await;
    assert_eq!(report(&back).lines().last(), out.lines().last(), "the same digest");
    // From there to a second prefix of the same cluster, invisible under the first.
    let mut settings: Value = etcd.access().settings();
    settings["deployment"]["etcd"]["prefix"] = json!("/other");
    world.write("other.yaml", &settings.to_string());
    let there = copy(&world, "embedded:other.redb", "etcd:other.yaml").await;
    assert_eq!(report(&there).lines().last(), out.lines().last());
    assert_eq!(keys.get("/other/routes/7").await.unwrap().json(), plugin);
    let same = copy(&world, "etcd:other.yaml", "etcd:other.yaml").await;
    assert!(same.stderr.contains("are the same location"), "{same:?}");
}
