//! Plugins, plugin configs and global rules (contract 2.6, 2.7, 7.3).

use serde_json::{Value, json};

use crate::world::World;

const WARNING: &str = "x-countersign-warning";

fn route(more: Value) -> Value {
    let mut route = json!({"uri": "/a", "upstream": {"nodes": {"127.0.0.1:1980": 1}}});
    route.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    route
}

#[tokio::test]
async fn what_an_apisix_has_is_written_back_with_a_warning() {
    let world = World::start().await;
    let plugins = json!({
        "prometheus": {"prefer_name": true},
        "http-logger": {"uri": "http://127.0.0.1/log", "auth_header": "Basic x"},
        "proxy-rewrite": {"uri": "/b", "_meta": {"disable": true}},
        "zipkin": {"endpoint": "http://127.0.0.1", "sample_ratio": 1, "_meta": {"disable": true}}
    });
    let expected = [
        "plugins.prometheus: stored, and has no effect here",
        "plugins.http-logger: stored, and has no effect here",
    ];
    for (path, document) in [
        ("/routes/1", route(json!({"plugins": plugins}))),
        ("/services/1", json!({"plugins": plugins})),
        ("/plugin_configs/1", json!({"plugins": plugins})),
        ("/global_rules/1", json!({"plugins": plugins})),
    ] {
        let response = world.put(path, document).await.ok();
        let warnings: Vec<_> =
            response.headers.get_all(WARNING).iter().map(|value| value.to_str().unwrap()).collect();
        assert_eq!(warnings.join("; "), expected.join("; "), "{path}");
        let stored = world.get(path).await.ok().json()["value"].clone();
        assert_eq!(stored["plugins"], plugins, "{path}");
        world.put(path, stored.clone()).await.ok();
    }
    let lint = world.get("/lint").await.ok().json();
    let errors = lint["list"].as_array().unwrap().iter().filter(|finding| finding["severity"] == "error");
    assert_eq!(errors.count(), 0, "{lint}");
}

#[tokio::test]
async fn a_plugin_config_in_use_cannot_be_removed() {
    let world = World::start().await;
    let named = route(json!({"plugin_config_id": 1}));
    world
        .put("/routes/1", named.clone())
        .await
        .assert_error("failed to fetch plugin config info by plugin config id [1], response code: 404");
    let config = json!({"plugins": {"proxy-rewrite": {"uri": "/b"}}, "desc": "shared", "labels": {"a": "b"}});
    assert_eq!(world.put("/plugin_configs/1", config.clone()).await.status, 201);
    assert_eq!(world.put("/plugin_configs/1", config).await.status, 200);
    world.put("/routes/1", named).await.ok();
    world
        .delete("/plugin_configs/1")
        .await
        .assert_error("can not delete this plugin config, route [1] is still using it now");
    let changed = json!({"plugins": {"proxy-rewrite": {"uri": "/c"}}});
    let patched = world.patch("/plugin_configs/1", changed).await.ok().json();
    assert_eq!(patched["value"]["plugins"]["proxy-rewrite"]["uri"], "/c");
    world.delete("/plugin_configs/1?force=true").await.ok();
    let lint = world.get("/lint").await.ok().json().to_string();
    assert!(lint.contains("failed to fetch plugin config info by plugin config id [1]"), "{lint}");
    world.delete("/routes/1").await.ok();
}

#[tokio::test]
async fn explain_names_a_missing_plugin_config() {
    let world = World::start().await;
    let pair = world.pair("a.test");
    let site = json!({"cert": pair.certificate_pem, "key": &*pair.key_pem, "snis": ["a.test"]});
    world.put("/ssls/1", site).await.ok();
    world.put("/plugin_configs/p", json!({"plugins": {}})).await.ok();
    world.put("/routes/1", route(json!({"plugin_config_id": "p"}))).await.ok();
    let question = json!({"sni": "a.test", "host": "a.test", "uri": "/a"});
    let outcome = async || world.post("/explain", question.clone()).await.ok().json()["outcome"].clone();
    let served = outcome().await;
    assert_eq!(
        (&served["result"], &served["to"]["plugin_config"]),
        (&json!("forwarded"), &json!("p")),
        "{served}"
    );
    world.delete("/plugin_configs/p?force=true").await.ok();
    let denied = outcome().await;
    assert_eq!((&denied["reason"], &denied["status"]), (&json!("no_plugin_config"), &json!(503)), "{denied}");
    assert_eq!(denied["message"], "route 1 names plugin config p, which does not exist");
}

/// A raw path must not bypass a rule, whichever document asks for it.
#[tokio::test]
async fn a_plugin_config_with_raw_paths_is_checked() {
    let world = World::start().await;
    let raw = json!({"plugins": {"proxy-rewrite": {"use_real_request_uri_unsafe": true}}});
    let guarded = json!({"client_identity": {"allow": [{"dns": "a.example"}]}, "uri": "/guarded"});
    world.put("/routes/guarded", route(guarded)).await.ok();
    world.put("/plugin_configs/raw", raw.clone()).await.ok();
    let field = "plugins.proxy-rewrite.use_real_request_uri_unsafe";
    let named = route(json!({"plugin_config_id": "raw"}));
    let refused = world.put("/routes/1", named.clone()).await;
    assert_eq!((refused.status.as_u16(), &refused.json()["field"]), (400, &json!(field)));
    world.put("/plugin_configs/raw", json!({"plugins": {}})).await.ok();
    world.put("/routes/1", named).await.ok();
    let refused = world.put("/plugin_configs/raw", raw).await;
    assert_eq!((refused.status.as_u16(), &refused.json()["field"]), (400, &json!(field)));
}
