//! Plugin configs and global rules as clients see them (contract 7.3).

use e2e::client::HttpConnection;
use e2e::documents::weighted;
use e2e::upstream::Upstream;
use e2e::world::World;
use http::StatusCode;
use serde_json::{Value, json};

/// The header that the plugin of `name` sets.
fn rewrite(name: &str) -> Value {
    json!({"proxy-rewrite": {"headers": {"X-From": name}}})
}

/// Sends a request; returns the status, or the header that the upstream received.
async fn from(session: &mut HttpConnection, path: &str) -> Value {
    let reply = session.get(path).await.unwrap_or_else(|error| panic!("{path}: {error}"));
    match reply.status {
        StatusCode::OK => reply.json()["headers"]["x-from"].clone(),
        status => status.as_u16().into(),
    }
}

#[tokio::test]
async fn a_route_gets_the_plugins_of_its_plugin_config() {
    let world = World::start().await;
    let upstream = Upstream::plain("a").await;
    let to = json!({"nodes": weighted(&[upstream.address()])});
    let route = |uri: &str, more: Value| {
        let mut route = json!({"uri": uri, "service_id": "s", "plugin_config_id": "p"});
        route.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        (format!("routes/{}", &uri[1..]), route)
    };
    let off = json!({"plugins": {"proxy-rewrite": {"_meta": {"disable": true}}}});
    let routes = [
        route("/config", json!({})),
        route("/own", json!({"plugins": rewrite("route")})),
        route("/off", off),
        route("/empty", json!({"plugin_config_id": "empty"})),
    ];
    let mut documents = vec![
        ("services/s", json!({"upstream": to, "plugins": rewrite("service")})),
        ("plugin_configs/p", json!({"plugins": rewrite("config")})),
        ("plugin_configs/empty", json!({"plugins": {"prometheus": {}}})),
        ("global_rules/g", json!({"plugins": {"prometheus": {}}})),
    ];
    documents.extend(routes.iter().map(|(path, route)| (path.as_str(), route.clone())));
    world.apply(&documents).await;
    let mut session = world.plain("app.test").await;
    for (path, expected) in [
        ("/config", json!("config")),
        ("/own", json!("route")),
        ("/off", Value::Null),
        ("/empty", json!("service")),
        ("/nowhere", json!(404)),
    ] {
        assert_eq!(from(&mut session, path).await, expected, "{path}");
    }
    // A change of the plugin config alone reaches its routes.
    world.apply(&[("plugin_configs/p", json!({"plugins": rewrite("changed")}))]).await;
    assert_eq!(from(&mut session, "/config").await, "changed");
    assert_eq!(from(&mut session, "/own").await, "route");
}

/// The plugin of a global rule runs first, on every route (contract 10.7). A request that matches
/// no route stays one.
#[tokio::test]
async fn a_global_rule_rewrites_before_the_route() {
    let world = World::start().await;
    let upstream = Upstream::plain("a").await;
    let to = json!({"nodes": weighted(&[upstream.address()])});
    let global = json!({
        "uri": "/global", "method": "PUT", "host": "global.test",
        "headers": {"set": {"X-Global": "global", "X-From": "global"}, "remove": ["X-Client"]}
    });
    let own = json!({"headers": {"set": {"X-From": "route", "X-Seen": "$http_x_global"}}});
    let rewritten = json!({"uri": "/own", "upstream": to, "plugins": {"proxy-rewrite": own}});
    world
        .apply(&[
            ("routes/plain", json!({"uri": "/plain", "upstream": to})),
            ("routes/own", rewritten),
            ("global_rules/g", json!({"plugins": {"proxy-rewrite": global}})),
        ])
        .await;
    let mut session = world.plain("app.test").await;
    let mut received = async |path: &str| {
        let mut request = session.request(http::Method::GET, path, e2e::client::full(""));
        request.headers_mut().insert("x-client", "1".parse().unwrap());
        session.fetch(request).await.unwrap()
    };
    let plain = received("/plain?a=1").await.json();
    assert_eq!((&plain["method"], &plain["uri"]), (&json!("PUT"), &json!("/global?a=1")), "{plain}");
    let headers = &plain["headers"];
    assert_eq!((&headers["x-from"], &headers["host"]), (&json!("global"), &json!("global.test")), "{plain}");
    assert!(headers["x-client"].is_null(), "{plain}");
    // The route's plugin starts from the path of the request, and sees the headers.
    let own = received("/own?a=1").await.json();
    assert_eq!((&own["method"], &own["uri"]), (&json!("PUT"), &json!("/own?a=1")), "{own}");
    let headers = &own["headers"];
    assert_eq!((&headers["x-from"], &headers["x-seen"]), (&json!("route"), &json!("global")), "{own}");
    assert_eq!(headers["host"], "global.test");
    assert_eq!(received("/global").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_route_without_its_plugin_config_is_unavailable() {
    let mut world = World::start().await;
    let upstream = Upstream::plain("a").await;
    let to = json!({"nodes": weighted(&[upstream.address()])});
    let named = json!({"uri": "/named", "upstream": to, "plugin_config_id": "p"});
    world.apply(&[("plugin_configs/p", json!({"plugins": rewrite("config")})), ("routes/1", named)]).await;
    let revision = world.admin().delete("plugin_configs/p?force=true").await;
    world.wait_acknowledged(revision).await;
    let mut session = world.plain("app.test").await;
    assert_eq!(from(&mut session, "/named").await, 503);
    assert!(world.metric("countersign_errors_total{reason=\"no_plugin_config\"}").await >= 1);
    let revision = world.apply(&[("plugin_configs/p", json!({"plugins": rewrite("again")}))]).await;
    assert_eq!(from(&mut session, "/named").await, "again");
    assert_eq!(upstream.requests(), 1);

    // The node keeps it in its file.
    world.wait_persisted(revision).await;
    drop(session);
    world.kill_control().await;
    world.kill_node().await;
    world.start_node().await;
    let mut session = world.plain("app.test").await;
    assert_eq!(from(&mut session, "/named").await, "again");
    world.start_control().await;
    world.wait_acknowledged(revision).await;
}
