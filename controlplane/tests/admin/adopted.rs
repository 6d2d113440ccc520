//! Documents of another program that cannot be honoured: `explain` reports the result, `lint` the
//! reason, and the Admin API still rejects such documents.

use controlplane::testing::store::{Mutation, Precondition};
use http::Method;
use model::{Id, Key, Kind};
use serde_json::{Value, json};

use crate::world::World;

/// Writes into the store as another program does.
async fn stored(world: &World, kind: Kind, id: &str, document: Value) {
    let key = Key::new(kind, Id::parse(id).unwrap());
    world
        .store
        .commit(Mutation::Put { key, document, precondition: Precondition::Unconditional, ttl: None })
        .await
        .unwrap();
}

/// Makes a write, after which the snapshot has everything before it.
async fn seen(world: &World) {
    world.put("/upstreams/later", upstream()).await.ok();
}

fn upstream() -> Value {
    json!({"type": "roundrobin", "nodes": {"127.0.0.1:1": 1}})
}

async fn outcome(world: &World, question: Value) -> Value {
    world.post("/explain", question).await.ok().json()["outcome"].clone()
}

/// One route for every path, and one blocked resource of each kind.
async fn stage() -> World {
    let world = World::start().await;
    let site = |name: &str| {
        let pair = world.pair(name);
        json!({"cert": pair.certificate_pem, "key": &*pair.key_pem, "snis": [name]})
    };
    world.put("/ssls/open", site("open.test")).await.ok();
    let mut shut = site("shut.test");
    shut["key"] = "!".repeat(100).into();
    stored(&world, Kind::Ssl, "shut", shut).await;
    let auth = json!({"jwt-auth": {}});
    for (kind, id, document) in [
        (Kind::Route, "all", json!({"uri": "/*", "upstream": upstream()})),
        (Kind::Route, "r", json!({"uri": "/r", "upstream": upstream(), "plugins": auth})),
        (Kind::Service, "s", json!({"plugins": auth})),
        (Kind::Route, "s", json!({"uri": "/s", "upstream": upstream(), "service_id": "s"})),
        (Kind::Upstream, "u", json!({"nodes": {"127.0.0.1:1": 1}, "scheme": "grpcs"})),
        (Kind::Route, "u", json!({"uri": "/u", "upstream_id": "u"})),
    ] {
        stored(&world, kind, id, document).await;
    }
    seen(&world).await;
    world
}

#[tokio::test]
async fn explain_and_lint_report_blocked_resources() {
    let world = stage().await;
    let ended = async |uri: &str, host: &str| {
        outcome(&world, json!({"sni": "open.test", "host": host, "uri": uri})).await
    };
    assert_eq!(ended("/", "open.test").await["result"], "forwarded");
    for (uri, reason, named) in [
        ("/r", "blocked_route", "route r"),
        ("/s", "blocked_service", "service s"),
        ("/u", "blocked_upstream", "upstream u"),
    ] {
        let told = ended(uri, "open.test").await;
        assert_eq!((&told["reason"], &told["status"]), (&json!(reason), &json!(503)), "{told}");
        assert!(told["message"].as_str().unwrap().starts_with(named) && told["fix"].is_string(), "{told}");
    }
    let told = ended("/", "shut.test").await;
    assert_eq!((&told["reason"], &told["status"]), (&json!("blocked_site"), &json!(503)), "{told}");
    let told = outcome(&world, json!({"sni": "shut.test"})).await;
    assert_eq!(
        (&told["reason"], &told["alert"]),
        (&json!("blocked_site"), &json!("unrecognized_name")),
        "{told}"
    );
    assert!(told["message"].as_str().unwrap().contains("failed to decrypt previous encrypted key"), "{told}");

    stored(&world, Kind::GlobalRule, "g", json!({"plugins": {"prometheus": {}, "ip-restriction": {}}})).await;
    seen(&world).await;
    let told = ended("/", "open.test").await;
    assert_eq!((&told["reason"], &told["status"]), (&json!("blocked_global_rule"), &json!(503)), "{told}");
    let found = world.get("/lint").await.ok().json();
    let told = |severity: &str, resource: &str, field: &str| {
        let fits = |found: &&Value| {
            found["severity"] == severity && found["resource"] == resource && found["field"] == field
        };
        let count = found["list"].as_array().unwrap().iter().filter(fits).count();
        assert_eq!(count, 1, "{severity} {resource} {field}: {found}");
    };
    told("error", "ssls/shut", "key");
    told("error", "routes/r", "plugins.jwt-auth");
    told("error", "services/s", "plugins.jwt-auth");
    told("error", "upstreams/u", "scheme");
    told("error", "global_rules/g", "plugins.ip-restriction");
    told("warning", "global_rules/g", "plugins.prometheus");
    let errors =
        found["list"].as_array().unwrap().iter().filter(|found| found["severity"] == "error").count();
    assert_eq!(errors, 5, "{found}");

    // A valid document replaces the blocked one, and its findings are gone.
    world.put("/routes/r", json!({"uri": "/r", "upstream": upstream()})).await.ok();
    let gone = Key::new(Kind::GlobalRule, Id::parse("g").unwrap());
    world
        .store
        .commit(Mutation::Delete { key: gone, precondition: Precondition::Unconditional })
        .await
        .unwrap();
    seen(&world).await;
    assert_eq!(ended("/r", "open.test").await["result"], "forwarded");
    let found = world.get("/lint").await.ok().json().to_string();
    assert!(!found.contains("global_rules") && !found.contains("routes/r"), "{found}");
}

#[tokio::test]
async fn the_admin_api_rejects_plugins_and_global_rules() {
    let world = World::start().await;
    for plugin in ["prometheus", "jwt-auth"] {
        let document =
            json!({"uri": "/r", "upstream": upstream(), "plugins": {plugin: {"_meta": {"disable": true}}}});
        assert_eq!(world.put("/routes/r", document).await.status, 400);
    }
    for method in [Method::GET, Method::PUT, Method::DELETE] {
        let answer = world.call(method, "/global_rules/1", "{\"plugins\":{}}").await;
        assert_eq!(answer.status, 404);
        assert_eq!(answer.json()["error_msg"], "Unsupported resource type: global_rules");
    }
    assert_eq!(world.get("/schema/global_rule").await.status, 400);
    assert_eq!(world.post("/schema/validate/global_rules", json!({"plugins": {}})).await.status, 400);
}
