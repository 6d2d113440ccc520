//! References between upstreams, services and routes: case W and contract 2.6, 2.7.

use http::Method;
use serde_json::{Value, json};

use crate::world::World;

fn upstream() -> Value {
    json!({"nodes": {"127.0.0.1:1980": 1}, "type": "roundrobin"})
}

fn with_tls(tls: Value) -> Value {
    json!({"nodes": {"127.0.0.1:1983": 1}, "scheme": "https", "tls": tls})
}

#[tokio::test]
async fn w1_to_w3_client_certificates_by_id() {
    let world = World::start().await;
    let pair = world.pair("test.com");
    let (cert, key) = (pair.certificate_pem.clone(), pair.key_pem.to_string());
    let both = with_tls(json!({"client_cert_id": 1, "client_cert": cert, "client_key": key}));
    let response = world.put("/upstreams/1", both).await;
    assert_eq!(response.status, 400);
    let message = response.json()["error_msg"].as_str().unwrap().to_owned();
    assert!(message.starts_with("invalid configuration: property \"tls\" validation failed: failed to validate dependent schema for"), "{message}");
    let by_id = |id: Value| with_tls(json!({"client_cert_id": id}));
    world
        .put("/upstreams/1", by_id(json!(9_999_999)))
        .await
        .assert_error("failed to fetch ssl info by ssl id [9999999], response code: 404");
    world.put("/ssls/1", json!({"cert": cert, "key": key, "sni": "test.com"})).await.ok();
    let wrong = "failed to fetch ssl info by ssl id [1], wrong ssl type";
    world.put("/upstreams/1", by_id(json!("1"))).await.assert_error(wrong);
    world.put("/routes/1", json!({"uri": "/", "upstream": by_id(json!(1))})).await.assert_error(wrong);
    world.put("/ssls/1", json!({"type": "client", "cert": cert, "key": key})).await.ok();
    world.put("/upstreams/1", by_id(json!("1"))).await.ok();
    // The removal is permitted (contract 2.3).
    world.delete("/ssls/1").await.ok();
}

#[tokio::test]
async fn w4_to_w7_ids_and_nodes() {
    let world = World::start().await;
    let with_id = |id: Value| {
        let mut document = upstream();
        document["id"] = id;
        document
    };
    world.post("/upstreams", with_id(json!(1))).await.assert_error("wrong upstream id, do not need it");
    world.post("/upstreams/1", upstream()).await.assert_error("wrong upstream id, do not need it");
    world.put("/upstreams/2", with_id(json!(3))).await.assert_error("wrong upstream id");
    world.call(Method::PUT, "/upstreams/1", "").await.assert_error("missing configurations");
    world.put("/upstreams", upstream()).await.assert_error("missing upstream id");
    assert_eq!(world.put("/upstreams", with_id(json!(7))).await.ok().json()["key"], "/apisix/upstreams/7");
    let bare = world.put("/upstreams/1", json!({"nodes": [{"host": "::1", "port": 80, "weight": 1}]})).await;
    assert_eq!(bare.status, 400);
    let message = bare.json()["error_msg"].as_str().unwrap().to_owned();
    assert!(message.contains("IPv6 address must be enclosed with '[' and ']'"), "{message}");
}

#[tokio::test]
async fn references_must_exist() {
    let world = World::start().await;
    world
        .put("/routes/1", json!({"uri": "/", "upstream_id": "x"}))
        .await
        .assert_error("failed to fetch upstream info by upstream id [x], response code: 404");
    world
        .put("/routes/1", json!({"uri": "/", "service_id": 5}))
        .await
        .assert_error("failed to fetch service info by service id [5], response code: 404");
    world
        .put("/services/1", json!({"upstream_id": 1}))
        .await
        .assert_error("failed to fetch upstream info by upstream id [1], response code: 404");
    assert!(world.store.load().await.unwrap().items.is_empty());
}

#[tokio::test]
async fn referenced_documents_cannot_be_removed() {
    let world = World::start().await;
    world.put("/upstreams/1", upstream()).await.ok();
    world.put("/services/1", json!({"upstream_id": 1})).await.ok();
    world.put("/routes/r", json!({"uri": "/a", "upstream_id": "1"})).await.ok();
    world.put("/routes/s", json!({"uri": "/b", "service_id": 1})).await.ok();
    world
        .delete("/upstreams/1")
        .await
        .assert_error("can not delete this upstream, route [r] is still using it now");
    world.delete("/routes/r").await.ok();
    world
        .delete("/upstreams/1")
        .await
        .assert_error("can not delete this upstream, service [1] is still using it now");
    world
        .delete("/services/1")
        .await
        .assert_error("can not delete this service directly, route [s] is still using it now");
    world
        .delete("/services/1?force=false")
        .await
        .assert_error("can not delete this service directly, route [s] is still using it now");
    world.delete("/services/1?force=true").await.ok();
    world.delete("/upstreams/1").await.ok();
    world.delete("/upstreams").await.assert_error("missing upstream id");
}

#[tokio::test]
async fn a_plugin_is_in_one_global_rule() {
    let world = World::start().await;
    let rule = |name: &str| json!({"plugins": {name: {}}});
    world.put("/global_rules/1", rule("prometheus")).await.ok();
    world.put("/global_rules/1", rule("prometheus")).await.ok();
    let conflict = "plugin 'prometheus' already exists in global rule with id '1'";
    world.put("/global_rules/2", rule("prometheus")).await.assert_error(conflict);
    world.delete("/global_rules/1").await.ok();
    world.put("/global_rules/2", rule("prometheus")).await.ok();
}
