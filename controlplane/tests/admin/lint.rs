//! `GET lint`: findings of `model::lint` and of the control plane.

use controlplane::testing::store::{Mutation, Precondition};
use model::{Id, Key, Kind};
use serde_json::{Value, json};

use crate::world::World;

async fn lint(world: &World) -> Value {
    world.get("/lint").await.ok().json()
}

#[tokio::test]
async fn findings_have_resource_field_and_hint() {
    let world = World::builder();
    let world = crate::world::Builder { plain: Some("0.0.0.0:9080".parse().unwrap()), ..world }.start().await;
    assert_eq!(lint(&world).await, json!({"list": [], "total": 0, "revision": 0}));
    let pair = world.pair("a.test");
    let client = json!({"ca": world.clients.certificate_pem(), "skip_mtls_uri_regex": ["/open"]});
    let site =
        json!({"cert": pair.certificate_pem, "key": &*pair.key_pem, "sni": "a.test", "client": client});
    world.put("/ssls/1", site).await.ok();
    let route = json!({"uri": "/*", "host": "a.test", "upstream": {"type": "roundrobin", "nodes": {"127.0.0.1:1": 1}}});
    world.put("/routes/1", route).await.ok();
    let report = lint(&world).await;
    let findings: Vec<_> = report["list"]
        .as_array()
        .unwrap()
        .iter()
        .map(|finding| {
            assert!(finding["message"].is_string() && finding["hint"].is_string(), "{finding}");
            [&finding["severity"], &finding["resource"], &finding["field"]]
                .map(|text| text.as_str().unwrap().to_owned())
        })
        .collect();
    let expected = [["warning", "ssls/1", "client.skip_mtls_uri_regex[1]"], ["warning", "routes/1", "hosts"]];
    assert_eq!(findings, expected.map(|entry| entry.map(str::to_owned)), "{report}");
    assert_eq!((&report["total"], &report["revision"]), (&json!(2), &json!(2)));
}

/// What cannot be meant is said to the one who writes it, and nothing less than that.
#[tokio::test]
async fn an_error_of_lint_is_a_warning_of_the_write() {
    let world = World::start().await;
    let upstream =
        |scheme: &str| json!({"scheme": scheme, "nodes": {"127.0.0.1:1": 1}, "tls": {"verify": true}});
    let clear = world.put("/upstreams/1", upstream("grpc")).await.ok();
    let warning = clear.header("x-countersign-warning").unwrap();
    assert!(warning.contains("tls") && warning.contains("set scheme to grpcs"), "{warning}");
    let encrypted = world.put("/upstreams/2", upstream("https")).await.ok();
    assert_eq!(encrypted.header("x-countersign-warning"), None);
}

/// As in APISIX an ssl can be removed at any time.
#[tokio::test]
async fn a_removed_client_certificate_is_missed() {
    let world = World::start().await;
    let pair = world.pair("gateway.test");
    let ssl = json!({"type": "client", "cert": pair.certificate_pem, "key": &*pair.key_pem});
    let upstream = json!({"scheme": "https", "nodes": {"127.0.0.1:1": 1}, "tls": {"client_cert_id": "used"}});
    for id in ["used", "unused"] {
        world.put(&format!("/ssls/{id}"), ssl.clone()).await.ok();
    }
    world.put("/routes/1", json!({"uri": "/", "upstream": upstream})).await.ok();
    let removed = world.delete("/ssls/used").await.ok();
    let warning = removed.header("x-countersign-warning").unwrap();
    assert!(warning.contains("routes/1 names it in tls.client_cert_id"), "{warning}");
    assert_eq!(world.delete("/ssls/unused").await.ok().header("x-countersign-warning"), None);
}

#[tokio::test]
async fn an_invalid_stored_document_is_a_finding() {
    let world = World::start().await;
    let key = |id: &str| Key::new(Kind::Upstream, Id::parse(id).unwrap());
    world.put("/upstreams/old", json!({"nodes": {"127.0.0.1:1": 1}})).await.ok();
    // Writes into the store as another program does.
    for id in ["old", "new"] {
        let document = json!({"id": id, "nodes": "nobody"});
        let (key, precondition) = (key(id), Precondition::Unconditional);
        let write = Mutation::Put { key, document, precondition, ttl: None };
        world.store.commit(write.into()).await.unwrap();
    }
    // A write after which the snapshot has those before it.
    world.put("/upstreams/later", json!({"nodes": {"127.0.0.1:1": 1}})).await.ok();
    let report = lint(&world).await;
    let resource_of = |index: usize, text: &str| {
        let finding = &report["list"][index];
        assert_eq!(finding["severity"], "error");
        assert!(finding["message"].as_str().unwrap().contains(text), "{report}");
        finding["resource"].as_str().unwrap().to_owned()
    };
    assert_eq!(resource_of(0, "requests to it get a 503"), "upstreams/new");
    assert_eq!(resource_of(1, "the data planes keep its predecessor"), "upstreams/old");
    assert_eq!(report["total"], 2);
}
