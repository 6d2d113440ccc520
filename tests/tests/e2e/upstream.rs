//! The gateway's upstream side: node selection, request headers, and responses to failures.

use std::time::{Duration, Instant};

use e2e::client::{Http, HttpConnection, full};
use e2e::ports::{BlackHole, Reservation};
use e2e::upstream::Upstream;
use e2e::world::World;
use http::{Method, StatusCode};
use serde_json::{Value, json};

/// A world with one route for everything, to this inline upstream.
async fn world_to(upstream: Value) -> World {
    let world = World::builder().settings(json!({"countersign": {"workers": 1}})).start().await;
    world.apply(&[("routes/all", json!({"uri": "/*", "upstream": upstream}))]).await;
    world
}

async fn get(session: &mut HttpConnection, path: &str) -> e2e::client::Reply {
    session.get(path).await.unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[tokio::test]
async fn weights_are_kept_exactly_and_zero_means_never() {
    let (heavy, light, never) =
        (Upstream::plain("heavy").await, Upstream::plain("light").await, Upstream::plain("never").await);
    let nodes = json!({
        heavy.address().to_string(): 3, light.address().to_string(): 1, never.address().to_string(): 0,
    });
    let world = world_to(json!({"nodes": nodes})).await;
    let mut session = world.plain("app.test").await;
    for _ in 0..40 {
        assert_eq!(get(&mut session, "/").await.status, StatusCode::OK);
    }
    assert_eq!((heavy.requests(), light.requests(), never.requests()), (30, 10, 0));
}

#[tokio::test]
async fn a_refusing_node_is_skipped() {
    let gone = Reservation::any();
    let good = Upstream::plain("good").await;
    let world =
        world_to(json!({"nodes": {gone.address().to_string(): 1, good.address().to_string(): 1}})).await;
    let mut session = world.plain("app.test").await;
    for _ in 0..10 {
        assert_eq!(get(&mut session, "/").await.json()["upstream"], "good");
    }
    // Nothing of the POST was sent to the node that refused the connection, so the next one may get
    // it.
    let request = session.request(Method::POST, "/sink", full("body"));
    assert_eq!(session.fetch(request).await.unwrap().json()["bytes"], 4);
}

#[tokio::test]
async fn only_refusing_nodes_lead_to_502() {
    let (one, two) = (Reservation::any(), Reservation::any());
    let world =
        world_to(json!({"nodes": {one.address().to_string(): 1, two.address().to_string(): 1}})).await;
    let reply = get(&mut world.plain("app.test").await, "/").await;
    assert_eq!(reply.status, StatusCode::BAD_GATEWAY);
    assert!(reply.text().contains("<title>502 Bad Gateway</title>"), "{}", reply.text());
    assert_eq!(reply.headers["content-type"], "text/html; charset=utf-8");
}

#[tokio::test]
async fn an_unreachable_node_times_out() {
    let hole = BlackHole::open();
    let timeout = json!({"connect": 1, "send": 30, "read": 30});
    let world =
        world_to(json!({"nodes": {hole.address().to_string(): 1}, "timeout": timeout, "retries": 0})).await;
    let started = Instant::now();
    let reply = get(&mut world.plain("app.test").await, "/").await;
    assert_eq!(reply.status, StatusCode::GATEWAY_TIMEOUT);
    assert!((Duration::from_millis(900)..Duration::from_secs(20)).contains(&started.elapsed()));
}

#[tokio::test]
async fn a_silent_node_is_504_and_a_post_is_not_retried() {
    let (one, two) = (Upstream::plain("one").await, Upstream::plain("two").await);
    let nodes = json!({one.address().to_string(): 1, two.address().to_string(): 1});
    let timeout = json!({"connect": 30, "send": 30, "read": 0.5});
    let world = world_to(json!({"nodes": nodes, "timeout": timeout})).await;
    let mut session = world.plain("app.test").await;
    let request = session.request(Method::POST, "/hold", full("once"));
    assert_eq!(session.fetch(request).await.unwrap().status, StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(one.requests() + two.requests(), 1, "a POST that was sent is not repeated");
    assert_eq!(get(&mut world.plain("app.test").await, "/hold").await.status, StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(one.requests() + two.requests(), 3, "a GET is tried on both nodes");
}

#[tokio::test]
async fn a_route_without_a_usable_node_is_503() {
    let world = world_to(json!({"nodes": []})).await;
    let reply = get(&mut world.plain("app.test").await, "/").await;
    assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE, "{}", reply.text());
}

#[tokio::test]
async fn closed_upstream_connections_are_replaced() {
    let mut node = Upstream::plain("node").await;
    let address = node.address();
    let world = world_to(json!({"nodes": {address.to_string(): 1}})).await;
    let mut session = world.plain("app.test").await;
    for _ in 0..5 {
        assert_eq!(get(&mut session, "/").await.json()["connection"], 1, "one connection is used again");
    }
    for _ in 0..5 {
        node.stop().await;
        node = Upstream::plain_at("node", address).await;
        let request = session.request(Method::POST, "/sink", full("body"));
        let reply = session.fetch(request).await.unwrap();
        assert_eq!(reply.status, StatusCode::OK, "a kept connection that died is not the client's problem");
    }
}

#[tokio::test]
async fn pooled_connections_keep_their_identity_and_name() {
    let world = World::builder().settings(json!({"countersign": {"workers": 1}})).start().await;
    let authority = &world.credentials.upstreams;
    let strict = Upstream::demanding("strict", &authority.server(&["up.test", "two.test"]), authority).await;
    let (alice, bob) = (authority.client("alice"), authority.client("bob"));
    let upstream = |identity: &e2e::credentials::Credential, name: &str| {
        json!({
            "scheme": "https", "nodes": {strict.address().to_string(): 1},
            "pass_host": "rewrite", "upstream_host": name,
            "keepalive_pool": {"size": 4, "idle_timeout": 60, "requests": 1000},
            "tls": {"client_cert": identity.certificate_pem, "client_key": identity.key_pem},
        })
    };
    world
        .apply(&[
            ("routes/alice", json!({"uri": "/alice", "upstream": upstream(&alice, "up.test")})),
            ("routes/bob", json!({"uri": "/bob", "upstream": upstream(&bob, "up.test")})),
            ("routes/named", json!({"uri": "/named", "upstream": upstream(&alice, "two.test")})),
        ])
        .await;
    let mut session = world.plain("app.test").await;
    let mut connections = std::collections::HashMap::<String, Vec<Value>>::new();
    for _ in 0..4 {
        for (path, subject, sni) in [
            ("/alice", "CN=alice", "up.test"),
            ("/bob", "CN=bob", "up.test"),
            ("/named", "CN=alice", "two.test"),
        ] {
            let seen = get(&mut session, path).await.json();
            assert_eq!((&seen["client_subject"], &seen["sni"]), (&json!(subject), &json!(sni)), "{path}");
            connections.entry(path.to_owned()).or_default().push(seen["connection"].clone());
        }
    }
    assert_eq!(strict.connections(), 3, "one each, kept: {connections:?}");

    // A changed certificate of the same upstream is used from the next request on.
    let carol = authority.client("carol");
    world.apply(&[("routes/alice", json!({"uri": "/alice", "upstream": upstream(&carol, "up.test")}))]).await;
    assert_eq!(get(&mut session, "/alice").await.json()["client_subject"], "CN=carol");
}

#[tokio::test]
async fn a_node_is_verified_when_configured() {
    let settings = json!({"apisix": {"ssl": {"ssl_trusted_certificate": "upstream-ca.crt"}}});
    let world = World::builder().settings(settings).start().await;
    let trusted = Upstream::tls("trusted", &world.credentials.upstreams.server(&["up.test"])).await;
    let untrusted = Upstream::tls("untrusted", &world.credentials.untrusted.server(&["up.test"])).await;
    let upstream = |node: &Upstream, name: &str, verify: bool| {
        json!({
            "scheme": "https", "nodes": {node.address().to_string(): 1}, "pass_host": "rewrite",
            "upstream_host": name, "tls": {"verify": verify},
        })
    };
    world
        .apply(&[
            ("routes/good", json!({"uri": "/good", "upstream": upstream(&trusted, "up.test", true)})),
            ("routes/named", json!({"uri": "/named", "upstream": upstream(&trusted, "other.test", true)})),
            (
                "routes/untrusted",
                json!({"uri": "/untrusted", "upstream": upstream(&untrusted, "up.test", true)}),
            ),
            (
                "routes/unasked",
                json!({"uri": "/unasked", "upstream": upstream(&untrusted, "up.test", false)}),
            ),
        ])
        .await;
    let mut session = world.plain("app.test").await;
    for (path, status) in [("/good", 200), ("/named", 502), ("/untrusted", 502), ("/unasked", 200)] {
        assert_eq!(get(&mut session, path).await.status.as_u16(), status, "{path}");
    }
}

#[tokio::test]
async fn a_changed_client_certificate_is_used_at_once() {
    let world = World::builder().settings(json!({"countersign": {"workers": 1}})).start().await;
    let authority = &world.credentials.upstreams;
    let strict = Upstream::demanding("strict", &authority.server(&["up.test"]), authority).await;
    let identity = |name: &str| {
        let issued = authority.client(name);
        json!({"type": "client", "cert": issued.certificate_pem, "key": issued.key_pem})
    };
    let upstream = json!({
        "scheme": "https", "nodes": {strict.address().to_string(): 1}, "tls": {"client_cert_id": "gateway"},
    });
    world
        .apply(&[
            ("ssls/gateway", identity("old")),
            ("routes/all", json!({"uri": "/*", "upstream": upstream})),
        ])
        .await;
    let mut session = world.plain("app.test").await;
    assert_eq!(get(&mut session, "/").await.json()["client_subject"], "CN=old");
    world.apply(&[("ssls/gateway", identity("new"))]).await;
    assert_eq!(get(&mut session, "/").await.json()["client_subject"], "CN=new");
    let revision = world.admin().delete("ssls/gateway").await;
    world.wait_acknowledged(revision).await;
    assert_eq!(get(&mut session, "/").await.status, StatusCode::BAD_GATEWAY, "the certificate is gone");
}

#[tokio::test]
async fn the_upstream_gets_forwarding_headers() {
    let (world, _upstream) = World::protected(json!({})).await;
    for http in [Http::One, Http::Two] {
        let mut session = world.verified_client("app.test").http(http).connect().await.unwrap();
        let mut request = session.request(Method::GET, "/a%20b?q=1", full(""));
        let headers = request.headers_mut();
        for (name, value) in [
            ("x-forwarded-for", "192.0.2.7"),
            ("forwarded", "for=192.0.2.8"),
            ("x-own", "kept"),
            ("te", "trailers"),
            ("proxy-authorization", "Basic c2VjcmV0"),
        ] {
            headers.insert(name, value.parse().unwrap());
        }
        let reply = session.fetch(request).await.unwrap();
        let (status, seen) = (reply.status, reply.json());
        assert_eq!(status, StatusCode::OK);
        let headers = &seen["headers"];
        assert_eq!(seen["uri"], "/a%20b?q=1", "{http:?}");
        assert_eq!(headers["host"], "app.test", "{seen}");
        assert_eq!(headers["x-real-ip"], "127.0.0.1", "{seen}");
        assert_eq!(headers["x-forwarded-for"], "192.0.2.7, 127.0.0.1", "{seen}");
        assert_eq!(headers["x-forwarded-proto"], "https", "{seen}");
        assert_eq!(headers["x-forwarded-host"], "app.test", "{seen}");
        assert_eq!(headers["x-own"], "kept", "{seen}");
        assert_eq!(headers["forwarded"], Value::Null, "{seen}");
        assert_eq!(headers["te"], Value::Null, "{seen}");
        assert!(
            reply.headers["server"].to_str().unwrap().starts_with("APISIX")
                || reply.headers.contains_key("server")
        );
    }
}

#[tokio::test]
async fn identity_headers_of_clients_are_removed() {
    let upstream = Upstream::plain("plain").await;
    let world = world_to(json!({"nodes": {upstream.address().to_string(): 1}})).await;
    let mut session = world.plain("app.test").await;
    let claims = [
        "x-ssl-client-s-dn",
        "X-SSL-Client-Verify",
        "x_ssl_client_cert",
        "ssl-client-cert",
        "x-forwarded-client-cert",
        "client-cert",
        "Client_Cert_Chain",
        "x-client-cert",
    ];
    let mut request = session.request(Method::GET, "/", full(""));
    for claim in claims {
        let name = http::HeaderName::from_bytes(claim.as_bytes()).unwrap();
        request.headers_mut().insert(name, "CN=admin".parse().unwrap());
    }
    let seen = session.fetch(request).await.unwrap().json();
    assert!(!seen.to_string().contains("CN=admin"), "{seen}");
}

#[tokio::test]
async fn headers_named_by_connection_are_not_forwarded() {
    let upstream = Upstream::plain("plain").await;
    let world = world_to(json!({"nodes": {upstream.address().to_string(): 1}})).await;
    let mut session = world.plain("app.test").await;
    let mut request = session.request(Method::GET, "/", full(""));
    request.headers_mut().insert("connection", "keep-alive, x-private".parse().unwrap());
    request.headers_mut().insert("x-private", "between us".parse().unwrap());
    request.headers_mut().insert("keep-alive", "timeout=5".parse().unwrap());
    let seen = session.fetch(request).await.unwrap().json();
    assert_eq!(
        (&seen["headers"]["x-private"], &seen["headers"]["keep-alive"]),
        (&Value::Null, &Value::Null),
        "{seen}"
    );
}

#[tokio::test]
async fn the_upstreams_own_status_is_passed_on() {
    let upstream = Upstream::plain("plain").await;
    let world = world_to(json!({"nodes": {upstream.address().to_string(): 1}})).await;
    let mut session = world.plain("app.test").await;
    for code in [200, 201, 301, 404, 418, 500, 503] {
        let reply = get(&mut session, &format!("/status?code={code}")).await;
        assert_eq!(reply.status.as_u16(), code);
        assert_eq!(reply.json()["upstream"], "plain");
    }
}
