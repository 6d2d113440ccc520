//! Route selection, through the Admin API and over HTTP: host, path, method, priority, services and
//! references.

use e2e::client::full;
use e2e::upstream::Upstream;
use e2e::world::World;
use http::{Method, StatusCode};
use serde_json::{Value, json};

fn to(upstream: &Upstream) -> Value {
    json!({"nodes": {upstream.address().to_string(): 1}})
}

async fn answered_by(world: &World, host: &str, method: Method, path: &str) -> String {
    let mut session = world.plain(host).await;
    let request = session.request(method, path, full(""));
    let reply = session.fetch(request).await.unwrap();
    match reply.status {
        StatusCode::OK => reply.json()["upstream"].as_str().unwrap().to_owned(),
        status => status.as_u16().to_string(),
    }
}

#[tokio::test]
async fn exact_before_prefix_longest_prefix_first_then_priority() {
    let world = World::start().await;
    let (a, b, c) = (Upstream::plain("a").await, Upstream::plain("b").await, Upstream::plain("c").await);
    world
        .apply(&[
            ("routes/all", json!({"uri": "/*", "priority": 100, "upstream": to(&a)})),
            ("routes/api", json!({"uri": "/api/*", "upstream": to(&b)})),
            ("routes/exact", json!({"uri": "/api/one", "priority": -1, "upstream": to(&c)})),
            ("routes/low", json!({"uri": "/same", "upstream": to(&a)})),
            ("routes/high", json!({"uri": "/same", "priority": 1, "upstream": to(&b)})),
            ("routes/post", json!({"uri": "/method", "methods": ["POST"], "upstream": to(&c)})),
            ("routes/off", json!({"uri": "/off", "status": 0, "upstream": to(&c)})),
        ])
        .await;
    for (method, path, expected) in [
        (Method::GET, "/api/one", "c"),
        (Method::GET, "/api/two", "b"),
        (Method::GET, "/elsewhere", "a"),
        (Method::GET, "/same", "b"),
        (Method::POST, "/method", "c"),
        (Method::GET, "/method", "a"),
        (Method::GET, "/off", "a"),
        // The path is normalised once, for every decision.
        (Method::GET, "/elsewhere/../api/./one", "c"),
        (Method::GET, "/api//one", "c"),
        (Method::GET, "/%61pi/one", "c"),
    ] {
        assert_eq!(answered_by(&world, "app.test", method.clone(), path).await, expected, "{method} {path}");
    }
}

#[tokio::test]
async fn hosts_are_compared_before_paths() {
    let world = World::start().await;
    let (a, b, c) = (Upstream::plain("a").await, Upstream::plain("b").await, Upstream::plain("c").await);
    world
        .apply(&[
            ("routes/exact", json!({"uri": "/*", "host": "one.app.test", "upstream": to(&a)})),
            ("routes/wild", json!({"uri": "/*", "hosts": ["*.app.test"], "upstream": to(&b)})),
            ("routes/any", json!({"uri": "/only/any", "upstream": to(&c)})),
        ])
        .await;
    for (host, path, expected) in [
        ("one.app.test", "/x", "a"),
        ("ONE.app.test:8080", "/x", "a"),
        ("two.app.test", "/x", "b"),
        ("deep.two.app.test", "/x", "b"),
        ("app.test", "/x", "404"),
        ("elsewhere.test", "/only/any", "c"),
    ] {
        assert_eq!(answered_by(&world, host, Method::GET, path).await, expected, "{host}{path}");
    }
}

#[tokio::test]
async fn referenced_services_and_upstreams_cannot_be_removed() {
    let world = World::start().await;
    let (a, b) = (Upstream::plain("a").await, Upstream::plain("b").await);
    world
        .apply(&[
            ("upstreams/shared", to(&a)),
            ("services/site", json!({"hosts": ["svc.test"], "upstream_id": "shared"})),
            ("routes/through", json!({"uri": "/through", "service_id": "site"})),
            ("routes/own", json!({"uri": "/own", "service_id": "site", "upstream": to(&b)})),
        ])
        .await;
    assert_eq!(answered_by(&world, "svc.test", Method::GET, "/through").await, "a");
    assert_eq!(answered_by(&world, "svc.test", Method::GET, "/own").await, "b");
    assert_eq!(answered_by(&world, "other.test", Method::GET, "/through").await, "404");

    let admin = world.admin();
    let refused = admin.call(Method::DELETE, "upstreams/shared", None).await.unwrap();
    assert_eq!(refused.status, StatusCode::BAD_REQUEST);
    assert_eq!(
        refused.body["error_msg"],
        "can not delete this upstream, service [site] is still using it now"
    );
    let dangling = json!({"uri": "/x", "upstream_id": "nowhere"});
    let refused = admin.call(Method::PUT, "routes/dangling", Some(&dangling)).await.unwrap();
    assert_eq!(refused.status, StatusCode::BAD_REQUEST);
    assert_eq!(
        refused.body["error_msg"],
        "failed to fetch upstream info by upstream id [nowhere], response code: 404"
    );
    // One change of the shared upstream moves every route.
    world.apply(&[("upstreams/shared", to(&b))]).await;
    assert_eq!(answered_by(&world, "svc.test", Method::GET, "/through").await, "b");
}
