//! Documents of another program that cannot be honoured: `explain` reports the result, `lint` the
//! reason, and the Admin API still rejects such documents.

use controlplane::testing::store::{Mutation, Precondition};
use model::{Id, Key, Kind};
use serde_json::{Value, json};

use crate::world::World;

/// Writes into the store as another program does.
pub(crate) async fn stored(world: &World, kind: Kind, id: &str, document: Value) {
    let key = Key::new(kind, Id::parse(id).unwrap());
    let write = Mutation::Put { key, document, precondition: Precondition::Unconditional, ttl: None };
    world.store.commit(write.into()).await.unwrap();
}

/// Makes a write, after which the snapshot has everything before it.
async fn write_marker(world: &World) {
    world.put("/upstreams/later", upstream()).await.ok();
}

fn upstream() -> Value {
    json!({"type": "roundrobin", "nodes": {"127.0.0.1:1": 1}})
}

async fn outcome(world: &World, question: Value) -> Value {
    world.post("/explain", question).await.ok().json()["outcome"].clone()
}

/// One route for every path, and one blocked resource of each kind.
async fn blocked_world() -> World {
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
        (Kind::Upstream, "u", json!({"nodes": {"127.0.0.1:1": 1}, "scheme": "kafka"})),
        (Kind::Route, "u", json!({"uri": "/u", "upstream_id": "u"})),
    ] {
        stored(&world, kind, id, document).await;
    }
    write_marker(&world).await;
    world
}

#[track_caller]
fn assert_reason(explained: &Value, reason: &str, (member, value): (&str, Value)) {
    assert_eq!((&explained["reason"], &explained[member]), (&json!(reason), &value), "{explained}");
}

#[tokio::test]
async fn explain_and_lint_report_blocked_resources() {
    let world = blocked_world().await;
    let outcome_of = async |uri: &str, host: &str| {
        outcome(&world, json!({"sni": "open.test", "host": host, "uri": uri})).await
    };
    assert_eq!(outcome_of("/", "open.test").await["result"], "forwarded");
    for (uri, reason, named) in [
        ("/r", "blocked_route", "route r"),
        ("/s", "blocked_service", "service s"),
        ("/u", "blocked_upstream", "upstream u"),
    ] {
        let explained = outcome_of(uri, "open.test").await;
        assert_reason(&explained, reason, ("status", json!(503)));
        let message = explained["message"].as_str().unwrap();
        assert!(message.starts_with(named) && explained["fix"].is_string(), "{explained}");
    }
    assert_reason(&outcome_of("/", "shut.test").await, "blocked_site", ("status", json!(503)));
    let explained = outcome(&world, json!({"sni": "shut.test"})).await;
    assert_reason(&explained, "blocked_site", ("alert", json!("unrecognized_name")));
    let message = explained["message"].as_str().unwrap();
    assert!(message.contains("failed to decrypt previous encrypted key"), "{explained}");

    stored(&world, Kind::GlobalRule, "g", json!({"plugins": {"prometheus": {}, "ip-restriction": {}}})).await;
    write_marker(&world).await;
    assert_reason(&outcome_of("/", "open.test").await, "blocked_global_rule", ("status", json!(503)));
    let report = world.get("/lint").await.ok().json();
    let assert_finding = |severity: &str, resource: &str, field: &str| {
        let fits = |report: &&Value| {
            report["severity"] == severity && report["resource"] == resource && report["field"] == field
        };
        let count = report["list"].as_array().unwrap().iter().filter(fits).count();
        assert_eq!(count, 1, "{severity} {resource} {field}: {report}");
    };
    assert_finding("error", "ssls/shut", "key");
    assert_finding("error", "routes/r", "plugins.jwt-auth");
    assert_finding("error", "services/s", "plugins.jwt-auth");
    assert_finding("error", "upstreams/u", "scheme");
    assert_finding("error", "global_rules/g", "plugins.ip-restriction");
    assert_finding("notice", "global_rules/g", "plugins.prometheus");
    let errors =
        report["list"].as_array().unwrap().iter().filter(|report| report["severity"] == "error").count();
    assert_eq!(errors, 5, "{report}");

    // A valid document replaces the blocked one, and its findings are gone.
    world.put("/routes/r", json!({"uri": "/r", "upstream": upstream()})).await.ok();
    let gone = Key::new(Kind::GlobalRule, Id::parse("g").unwrap());
    let removal = Mutation::Delete { key: gone, precondition: Precondition::Unconditional };
    world.store.commit(removal.into()).await.unwrap();
    write_marker(&world).await;
    assert_eq!(outcome_of("/r", "open.test").await["result"], "forwarded");
    let report = world.get("/lint").await.ok().json().to_string();
    assert!(!report.contains("global_rules") && !report.contains("routes/r"), "{report}");
}

#[tokio::test]
async fn the_admin_api_rejects_what_would_block() {
    let world = World::start().await;
    let plugins = |plugins: Value| json!({"plugins": plugins});
    let with_uri = |plugins: Value| json!({"uri": "/r", "upstream": upstream(), "plugins": plugins});
    let unknown = json!({"jwt-auth": {"_meta": {"disable": true}}});
    for (path, document, message) in [
        ("/routes/r", with_uri(unknown.clone()), "unknown plugin [jwt-auth]"),
        ("/plugin_configs/r", plugins(unknown.clone()), "unknown plugin [jwt-auth]"),
        ("/global_rules/r", plugins(unknown), "unknown plugin [jwt-auth]"),
        (
            "/global_rules/r",
            plugins(json!({"proxy-rewrite": {"use_real_request_uri_unsafe": true}})),
            "invalid configuration: \"plugins.proxy-rewrite.use_real_request_uri_unsafe\" is not supported by this gateway",
        ),
    ] {
        let response = world.put(path, document).await;
        assert_eq!(
            (response.status, &response.json()["error_msg"]),
            (400.try_into().unwrap(), &json!(message))
        );
        assert_eq!(world.get(path).await.status, 404);
    }
}
