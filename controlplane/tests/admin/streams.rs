//! Stream routes: the switch, the methods, the references, and the encryption of inline keys
//! (contract 2.2, 2.6, 2.7, 3.5).

use http::Method;
use serde_json::{Value, json};

use crate::world::World;

const OFF: &str = "stream mode is disabled, can not add stream routes";

async fn streaming() -> World {
    let mut builder = World::builder();
    builder.streams = true;
    builder.start().await
}

fn upstream() -> Value {
    json!({"nodes": {"127.0.0.1:1995": 1}})
}

#[tokio::test]
async fn without_stream_mode_every_method_fails() {
    let world = World::start().await;
    world.get("/stream_routes").await.assert_error(OFF);
    world.get("/stream_routes/1").await.assert_error(OFF);
    world.put("/stream_routes/1", json!({"upstream": upstream()})).await.assert_error(OFF);
    world.post("/stream_routes", json!({"upstream": upstream()})).await.assert_error(OFF);
    world.call(Method::PATCH, "/stream_routes/1", "{}").await.assert_error(OFF);
    world.delete("/stream_routes/1").await.assert_error(OFF);
    // The schema does not depend on the configuration.
    assert_eq!(world.get("/schema/stream_route").await.ok().json()["type"], "object");
}

#[tokio::test]
async fn stream_routes_cannot_be_patched() {
    let world = streaming().await;
    let document = json!({"sni": "a.test.com", "remote_addr": "127.0.0.1", "upstream": upstream()});
    let created = world.put("/stream_routes/1", document).await;
    assert_eq!(created.status, 201);
    assert_eq!(created.json()["key"], "/apisix/stream_routes/1");
    assert_eq!(created.json()["value"]["sni"], "a.test.com");
    assert_eq!(world.post("/stream_routes", json!({"upstream": upstream()})).await.status, 201);
    assert_eq!(world.get("/stream_routes").await.ok().json()["total"], 2);
    let patched = world.call(Method::PATCH, "/stream_routes/1", "{}").await;
    assert_eq!(patched.status, 405);
    assert_eq!(patched.json()["error_msg"], "not supported `PATCH` method for stream route");
    assert_eq!(patched.header("x-api-version"), Some("v3"));
    world.call(Method::PUT, "/stream_routes", "{}").await.assert_error("missing stream route id");
    world
        .put("/stream_routes/2", json!({"remote_addr": "300.0.0.0/8"}))
        .await
        .assert_error("invalid remote_addr: 300.0.0.0/8");
    assert_eq!(world.delete("/stream_routes/1").await.ok().json()["deleted"], "1");
    assert_eq!(world.get("/stream_routes/1").await.status, 404);
}

#[tokio::test]
async fn references_of_a_stream_route_must_exist_and_stay() {
    let world = streaming().await;
    world
        .put("/stream_routes/1", json!({"upstream_id": 9}))
        .await
        .assert_error("failed to fetch upstream info by upstream id [9], response code: 404");
    world
        .put("/stream_routes/1", json!({"service_id": "s"}))
        .await
        .assert_error("failed to fetch service info by service id [s], response code: 404");
    world.put("/upstreams/1", json!({"nodes": {"127.0.0.1:1995": 1}, "scheme": "tcp"})).await.ok();
    world.put("/services/s", json!({"upstream_id": 1})).await.ok();
    world.put("/stream_routes/1", json!({"upstream_id": "1"})).await.ok();
    world.put("/stream_routes/2", json!({"service_id": "s"})).await.ok();
    world
        .delete("/services/s")
        .await
        .assert_error("can not delete this service directly, stream_route [2] is still using it now");
    world.delete("/stream_routes/2").await.ok();
    world.delete("/services/s").await.ok();
    world
        .delete("/upstreams/1")
        .await
        .assert_error("can not delete this upstream, stream_route [1] is still using it now");
    assert_eq!(world.get("/stream_routes?filter=upstream_id%3D1").await.ok().json()["total"], 1);
    assert_eq!(world.get("/stream_routes?filter=upstream_id%3D2").await.ok().json()["total"], 0);
    world.delete("/stream_routes/1").await.ok();
    world.delete("/upstreams/1").await.ok();
}

#[tokio::test]
async fn an_http_route_rejects_a_tcp_upstream() {
    let world = streaming().await;
    world.put("/upstreams/1", json!({"nodes": {"127.0.0.1:1995": 1}, "scheme": "tls"})).await.ok();
    world
        .put("/routes/1", json!({"uri": "/", "upstream_id": 1}))
        .await
        .assert_error("failed to fetch upstream info by upstream id [1], scheme tls takes no HTTP requests");
    let inline = json!({"uri": "/", "upstream": {"nodes": {"127.0.0.1:1995": 1}, "scheme": "tcp"}});
    world
        .put("/routes/1", inline)
        .await
        .assert_error("invalid configuration: scheme tcp takes no HTTP requests");
}

/// `t/admin/stream-routes.t` TEST 18.
#[tokio::test]
async fn the_key_of_an_inline_upstream_is_encrypted() {
    let world = streaming().await;
    let pair = world.pair("test.com");
    let clear = pair.key_pem.to_string();
    let mut inline = upstream();
    inline["scheme"] = json!("tls");
    inline["tls"] = json!({"client_cert": pair.certificate_pem, "client_key": clear});
    world.put("/stream_routes/1", json!({"upstream": inline})).await.ok();
    let kept = world.get("/stream_routes/1").await.ok().json();
    let key = kept["value"]["upstream"]["tls"]["client_key"].as_str().unwrap();
    assert!(!key.starts_with("---") && key != clear, "{key}");
    assert_eq!(world.keyring.open(key).unwrap().as_str(), clear);
}
