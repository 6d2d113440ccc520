//! Cases S, and what sections 6 and 8 of the contract say of upstreams beside the numbered cases:
//! retries, time-outs, pools, and the authority of calls (`t/cli/test_upstream_mtls.sh`,
//! `t/node/upstream-retries.t`, `timeout-upstream.t`, `grpc-proxy.t`).

use std::time::{Duration, Instant};

use e2e::client::full;
use e2e::fixtures::FIXTURES;
use e2e::ports::Reservation;
use e2e::upstream::Upstream;
use e2e::world::World;
use futures_util::future::join_all;
use http::{Method, StatusCode};
use serde_json::{Value, json};

async fn get(world: &World, path: &str) -> e2e::client::Reply {
    world.plain("app.test").await.get(path).await.unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[tokio::test]
async fn case_s01_s03_proxy_ssl_verify() {
    let made = &*FIXTURES;
    let trusting = |file: &str| json!({"apisix": {"ssl": {"ssl_trusted_certificate": file}}});
    let snippet = json!({"nginx_config": {"http_server_configuration_snippet": "proxy_ssl_verify on;"}});
    let builder = World::builder().settings(snippet).settings(trusting("apisix.crt"));
    let builder = builder.file("apisix.crt", &made.apisix.certificate_pem);
    let mut world = builder.file("test2.crt", &made.test2.certificate_pem).start().await;
    let node = Upstream::tls("1983", &made.apisix).await;
    let tls = json!({"client_cert": made.apisix.certificate_pem, "client_key": made.apisix.key_pem});
    let upstream = json!({
        "scheme": "https", "pass_host": "rewrite", "upstream_host": "test.com", "tls": tls,
        "nodes": {node.address().to_string(): 1},
    });
    world.apply(&[("routes/1", json!({"uri": "/hello", "upstream": upstream}))]).await;
    for (file, status) in [("apisix.crt", 200), ("test2.crt", 502), ("apisix.crt", 200)] {
        world.change_settings(trusting(file));
        world.stop_node().await;
        world.start_node().await;
        assert_eq!(get(&world, "/hello").await.status.as_u16(), status, "{file}");
    }
    world.node_log().line_with(&["upstream_tls", "no trusted CA issued"]).await;
}

#[tokio::test]
async fn each_node_is_tried_once_and_as_often_as_retries_say() {
    let world = World::start().await;
    let gone: Vec<_> = (0..3).map(|_| Reservation::any()).collect();
    for (nodes, retries, tried) in [
        (3, None, "502, 502, 502"),
        (3, Some(1), "502, 502"),
        (3, Some(0), "502"),
        (2, Some(3), "502, 502"),
        // There is no other.
        (1, Some(2), "502, 502, 502"),
    ] {
        let nodes = gone[..nodes].iter().map(|node| (node.address().to_string(), json!(1)));
        let mut upstream = json!({"nodes": Value::Object(nodes.collect())});
        if let Some(retries) = retries {
            upstream["retries"] = json!(retries);
        }
        world.apply(&[("routes/1", json!({"uri": "/*", "upstream": upstream}))]).await;
        let reply = get(&world, "/").await;
        assert_eq!(reply.status, StatusCode::BAD_GATEWAY);
        assert_eq!(reply.headers["x-apisix-upstream-status"], tried, "{upstream}");
    }
}

#[tokio::test]
async fn retry_timeout_ends_the_retries() {
    let world = World::start().await;
    let silent = [Upstream::plain("1").await, Upstream::plain("2").await, Upstream::plain("3").await];
    let nodes = silent.iter().map(|node| (node.address().to_string(), json!(100)));
    let upstream = json!({
        "nodes": Value::Object(nodes.collect()), "retries": 10, "retry_timeout": 3,
        "timeout": {"connect": 60, "send": 60, "read": 2},
    });
    world.apply(&[("routes/1", json!({"uri": "/*", "upstream": upstream}))]).await;
    assert_eq!(get(&world, "/hold").await.status, StatusCode::BAD_GATEWAY);
    world.node_log().line_with(&["retry_timeout", "proxy retry timeout, retry count: 1"]).await;
    assert_eq!(silent.iter().map(Upstream::requests).sum::<u64>(), 2);
}

#[tokio::test]
async fn the_time_outs_of_a_route_come_first() {
    let world = World::start().await;
    let node = Upstream::plain("1").await;
    let timeout = |read: f64| json!({"connect": 6, "send": 6, "read": read});
    let upstream =
        |read: f64| json!({"nodes": {node.address().to_string(): 1}, "retries": 0, "timeout": timeout(read)});
    let of_route = json!({"uri": "/route/*", "timeout": timeout(0.3), "upstream": upstream(600.0)});
    world
        .apply(&[
            ("routes/route", of_route),
            ("routes/upstream", json!({"uri": "/upstream/*", "upstream": upstream(0.3)})),
            ("services/1", json!({"upstream": upstream(0.3)})),
            ("routes/service", json!({"uri": "/service/*", "service_id": "1"})),
        ])
        .await;
    for path in ["/route/hold", "/upstream/hold", "/service/hold"] {
        assert_eq!(get(&world, path).await.status, StatusCode::GATEWAY_TIMEOUT, "{path}");
    }
}

#[tokio::test]
async fn the_authority_of_a_call_is_its_upstreams_host() {
    let world = World::start().await;
    let node = Upstream::plain("grpc").await;
    let own = node.address().to_string();
    for (pass_host, authority) in [("pass", "app.test"), ("node", &own), ("rewrite", "grpc.test")] {
        let mut upstream = json!({"scheme": "grpc", "nodes": {&own: 1}, "pass_host": pass_host});
        if pass_host == "rewrite" {
            upstream["upstream_host"] = json!("grpc.test");
        }
        world.apply(&[("routes/1", json!({"uri": "/*", "upstream": upstream}))]).await;
        let report = get(&world, "/echo.Echo/Unary").await.json();
        assert_eq!(report["uri"], format!("http://{authority}/echo.Echo/Unary"));
    }
}

#[tokio::test]
async fn a_name_that_does_not_resolve_is_skipped() {
    let world = World::start().await;
    let node = Upstream::plain("1").await;
    let port = node.address().port();
    let nodes = |more: &[&str]| {
        let names = ["nowhere.invalid"].iter().chain(more);
        Value::Object(names.map(|name| (format!("{name}:{port}"), json!(1))).collect())
    };
    let route = |uri: &str, nodes: Value| json!({"uri": uri, "upstream": {"nodes": nodes}});
    world
        .apply(&[
            ("routes/both", route("/both", nodes(&["localhost"]))),
            ("routes/none", route("/none", nodes(&[]))),
        ])
        .await;
    for _ in 0..4 {
        assert_eq!(get(&world, "/both").await.status, StatusCode::OK);
    }
    assert_eq!(get(&world, "/none").await.status, StatusCode::SERVICE_UNAVAILABLE);
    world.node_log().line_with(&["upstream_name", "nowhere.invalid"]).await;
}

#[tokio::test]
async fn a_rejected_server_leads_to_the_next_node() {
    let world = World::start().await;
    let (good, bad) = (&world.credentials.upstreams, &world.credentials.untrusted);
    let good = Upstream::tls("good", &good.server(&["up.test"])).await;
    let bad = Upstream::tls("bad", &bad.server(&["up.test"])).await;
    let upstream = json!({
        "scheme": "https", "pass_host": "rewrite", "upstream_host": "up.test",
        "nodes": {good.address().to_string(): 1, bad.address().to_string(): 1},
        "tls": {"verify": true, "ca_certs": [world.credentials.upstreams.certificate_pem()]},
    });
    world.apply(&[("routes/1", json!({"uri": "/*", "upstream": upstream}))]).await;
    let mut session = world.plain("app.test").await;
    for _ in 0..4 {
        // A POST, too: nothing of it was sent.
        let request = session.request(Method::POST, "/sink", full("body"));
        assert_eq!(session.fetch(request).await.unwrap().json()["bytes"], 4);
    }
    assert_eq!((good.requests(), bad.requests()), (4, 0));
}

#[tokio::test]
async fn the_chain_in_client_cert_is_sent() {
    let world = World::start().await;
    let authority = &world.credentials.upstreams;
    let strict = Upstream::demanding("strict", &authority.server(&["up.test"]), authority).await;
    let issued = authority.intermediate("Below").client("gateway.test");
    for scheme in ["https", "grpcs"] {
        let tls = json!({"client_cert": issued.certificate_pem, "client_key": issued.key_pem});
        let upstream = json!({"scheme": scheme, "nodes": {strict.address().to_string(): 1}, "tls": tls});
        world.apply(&[("routes/1", json!({"uri": "/*", "upstream": upstream}))]).await;
        assert_eq!(get(&world, "/").await.json()["client_subject"], "CN=gateway.test", "{scheme}");
    }
}

#[tokio::test]
async fn a_pool_keeps_as_many_for_as_long_as_it_says() {
    let world = World::builder().settings(json!({"countersign": {"workers": 1}})).start().await;
    for scheme in ["http", "grpc"] {
        let node = Upstream::plain("pooled").await;
        let keepalive = json!({"size": 2, "idle_timeout": 1, "requests": 100});
        let nodes = json!({node.address().to_string(): 1});
        let upstream = json!({"scheme": scheme, "nodes": nodes, "keepalive_pool": keepalive});
        world.apply(&[("routes/1", json!({"uri": "/*", "upstream": upstream}))]).await;
        let mut held = Vec::new();
        for _ in 0..5 {
            let mut session = world.plain("app.test").await;
            held.push(tokio::spawn(async move { session.get("/hold").await.unwrap().status }));
        }
        node.arrived(5).await;
        let connections = if scheme == "http" { 5 } else { 1 };
        assert_eq!(node.open(), connections, "{scheme}");
        node.open_gate();
        for status in join_all(held).await {
            assert_eq!(status.unwrap(), StatusCode::OK);
        }
        let ended = Instant::now();
        node.open_at_most(2).await;
        let reply = get(&world, "/").await.json();
        assert!(reply["connection"].as_u64().is_some_and(|number| number <= connections), "{reply}");
        node.open_at_most(0).await;
        assert!(ended.elapsed() >= Duration::from_secs(1), "{scheme}: {:?}", ended.elapsed());
    }
}
