//! The whole configuration at once: `PUT configs`, as ADC's standalone backend sends it.

use http::Method;
use serde_json::{Value, json};

use crate::world::{Response, World};

async fn put(world: &World, digest: &str, body: Value) -> Response {
    world.call_with(("x-digest", digest), Method::PUT, "/configs", body.to_string()).await
}

fn upstream(port: u16) -> Value {
    json!({"nodes": {format!("127.0.0.1:{port}"): 1}})
}

#[tokio::test]
async fn a_configuration_replaces_what_is_stored() {
    let world = World::start().await;
    let pair = world.pair("a.test");
    world.put("/routes/gone", json!({"uri": "/gone", "upstream": upstream(1)})).await.ok();
    world.put("/upstreams/kept", upstream(1)).await.ok();
    let kept = world.get("/upstreams/kept").await.json()["modifiedIndex"].clone();
    let body = json!({
        "ssls": [{"id": "1", "sni": "a.test", "cert": pair.certificate_pem, "key": &*pair.key_pem}],
        "upstreams": [{"id": "kept", "nodes": {"127.0.0.1:1": 1}}, {"id": 7, "nodes": {}, "modifiedIndex": 3}],
        "routes": [{"id": "new", "uri": "/new", "upstream_id": "7"}],
    });
    let made = put(&world, "one", body.clone()).await;
    assert_eq!((made.status.as_u16(), made.header("x-digest")), (202, Some("one")), "{made:?}");
    assert_eq!(world.get("/routes/gone").await.status, 404);
    let revision = world.get("/routes/new").await.ok().json()["modifiedIndex"].clone();
    assert_eq!(world.get("/upstreams/7").await.ok().json()["modifiedIndex"], revision, "one commit");
    assert_eq!(world.get("/upstreams/kept").await.json()["modifiedIndex"], kept, "unchanged");
    // The same digest changes nothing; another one of the same documents writes none of them.
    assert_eq!(put(&world, "one", json!({})).await.status, 204);
    assert_eq!(put(&world, "two", body).await.status, 202);
    assert_eq!(world.get("/ssls/1").await.json()["modifiedIndex"], revision);
    assert_eq!(world.get("/configs").await.ok().header("x-digest"), Some("two"));
    assert_eq!(world.call(Method::HEAD, "/configs", "").await.header("x-digest"), Some("two"));
    // What GET answers can be sent back: the private keys, which it does not show, are kept.
    let shown = world.get("/configs").await.json();
    assert_eq!(put(&world, "three", shown).await.status, 202);
    assert_eq!(world.get("/ssls/1").await.json()["modifiedIndex"], revision);
    put(&world, "two", world.get("/configs").await.json()).await;
    // A digest says nothing any more once a document has changed.
    world.delete("/routes/new").await.ok();
    assert_ne!(world.get("/configs").await.ok().header("x-digest"), Some("two"));
}

#[tokio::test]
async fn an_invalid_configuration_changes_nothing() {
    let world = World::start().await;
    world.put("/upstreams/1", upstream(1)).await.ok();
    let version = world.get("/configs").await.json()["upstreams_conf_version"].as_u64().unwrap();
    let good = json!({"id": "2", "nodes": {}});
    let bad = json!({"id": "1", "uri": "/", "upstream_id": "missing"});
    for (body, message) in [
        (json!({"upstreams": [good, good]}), "found duplicate id 2 in upstreams"),
        (json!({"upstreams": [good], "routes": [{"id": "1", "uri": 1}]}), "invalid configuration: "),
        (json!({"upstreams": [good], "consumers": [{"username": "a"}]}), "this gateway has no consumers"),
        (json!({"upstreams": [good], "routes": [bad]}), "operation 2: failed to fetch upstream info"),
        (json!({"upstreams": [{"nodes": {}}]}), "missing upstream id"),
        (json!([]), "invalid request body: expected an object, got table"),
        (
            json!({"upstreams": [], "upstreams_conf_version": version - 1}),
            "upstreams_conf_version must be greater than or equal to",
        ),
    ] {
        let refused = put(&world, "x", body).await;
        let text = refused.json()["error_msg"].as_str().unwrap().to_owned();
        assert!(refused.status == 400 && text.starts_with(message), "{message}: {refused:?}");
    }
    world.put("/configs", json!({})).await.assert_error("missing digest header");
    let stored = world.get("/upstreams").await.json();
    assert_eq!(
        (stored["total"].as_u64(), stored["list"][0]["key"].as_str()),
        (Some(1), Some("/apisix/upstreams/1"))
    );
    // A section whose version is the stored one is left as it is.
    let same = json!({"upstreams_conf_version": version, "routes": []});
    assert_eq!(put(&world, "x", same).await.status, 202);
    assert_eq!(world.get("/upstreams").await.json()["total"], 1);
    // The client's own versions count while nobody else writes.
    let upstreams = |version: u64| json!({"upstreams": [], "upstreams_conf_version": version});
    assert_eq!(put(&world, "y", upstreams(1000)).await.status, 202);
    assert_eq!(world.get("/configs").await.json()["upstreams_conf_version"], 1000);
    put(&world, "z", upstreams(999))
        .await
        .assert_error("upstreams_conf_version must be greater than or equal to (1000)");
    world.put("/upstreams/1", upstream(1)).await.ok();
    assert_eq!(put(&world, "z", upstreams(999)).await.status, 202);
}

#[tokio::test]
async fn an_extension_field_is_kept_until_null_removes_it() {
    let world = World::start().await;
    let identity = json!({"allow": [{"dns": "alice"}]});
    let route = |members: Value| {
        let mut route = json!({"id": "1", "uri": "/", "upstream": upstream(1)});
        route.as_object_mut().unwrap().extend(members.as_object().unwrap().clone());
        json!({"routes": [route]})
    };
    put(&world, "one", route(json!({"client_identity": identity}))).await.ok();
    let stored = world.get("/routes/1").await.ok().json();
    // A client that does not know it changes nothing.
    put(&world, "two", route(json!({}))).await.ok();
    assert_eq!(world.get("/routes/1").await.json(), stored);
    let removed = put(&world, "three", route(json!({"client_identity": null}))).await.ok();
    assert!(
        removed.header("x-countersign-warning").unwrap().contains("client_identity: removed"),
        "{removed:?}"
    );
    let open = world.get("/routes/1").await.ok().json();
    assert_eq!(open["value"].get("client_identity"), None);
    put(&world, "four", route(json!({"client_identity": null}))).await.ok();
    assert_eq!(world.get("/routes/1").await.json(), open, "nothing is left to remove");
}

#[tokio::test]
async fn a_dry_run_names_the_changes() {
    let world = World::start().await;
    world.put("/upstreams/1", upstream(1)).await.ok();
    let body = json!({"upstreams": [{"id": "2", "nodes": {}}]}).to_string();
    let shown = world.call_with(("x-digest", "x"), Method::PUT, "/configs?dry_run=true", body).await;
    let shown = shown.json();
    assert_eq!(shown["changes"], json!(["PUT upstreams/2", "DELETE upstreams/1"]), "{shown}");
    assert_eq!(world.get("/upstreams/1").await.status, 200);
}
