//! HTTP/2 servers of others behind the gateway, under mutual TLS and selected by ALPN: nginx and
//! Node.

use std::net::SocketAddr;

use e2e::client::{Http, HttpConnection, Reply, full};
use e2e::peers::Peer;
use e2e::upstream::{Upstream, pattern, pattern_body, sha256};
use e2e::world::World;
use futures_util::future::join_all;
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use serde_json::json;

/// Bytes of a large body.
const LARGE: usize = 20_000_000;

/// A world with a certificate for the server.
async fn world() -> World {
    let settings = json!({"countersign": {"workers": 1, "limits": {"requests_per_client": 0}}});
    let world = World::builder().settings(settings).start().await;
    world.write_credential("server", &world.credentials.upstreams.server(&["up.test"]));
    world.apply(&[("ssls/app", world.open_site())]).await;
    world
}

/// Routes all to a server that demands the gateway's certificate.
async fn route(world: &World, address: SocketAddr) {
    let issued = world.credentials.upstreams.client("gateway.test");
    let upstream = json!({
        "scheme": "https",
        "http2": true,
        "nodes": {address.to_string(): 1},
        "tls": {"client_cert": issued.certificate_pem, "client_key": issued.key_pem},
    });
    world.apply(&[("routes/all", json!({"uri": "/*", "upstream": upstream}))]).await;
}

async fn session(world: &World, http: Http) -> HttpConnection {
    world.client("app.test").http(http).connect().await.unwrap()
}

async fn post(session: &mut HttpConnection, path: &str, body: e2e::client::Body) -> Reply {
    let request = session.request(Method::POST, path, body);
    session.fetch(request).await.unwrap()
}

/// nginx before an upstream, whose connections end after ten requests.
async fn nginx(world: &World, upstream: &Upstream) -> Option<Peer> {
    let (folder, to) = (world.folder().display().to_string(), upstream.address());
    let server = |at: &[SocketAddr]| {
        format!(
            "server {{ listen {} ssl http2; keepalive_requests 10; client_max_body_size 0;\n\
             ssl_certificate {folder}/server.crt; ssl_certificate_key {folder}/server.key;\n\
             ssl_client_certificate {folder}/upstream-ca.crt; ssl_verify_client on;\n\
             location = /who {{ return 200 \"$server_protocol $ssl_client_s_dn\"; }}\n\
             location / {{ proxy_pass http://{to}; proxy_http_version 1.1;\n\
             proxy_buffering off; proxy_request_buffering off; }} }}",
            at[0]
        )
    };
    Peer::nginx(world.folder(), 1, server).await
}

#[tokio::test]
async fn nginx_serves_over_http_2() {
    let world = world().await;
    let upstream = Upstream::plain("behind").await;
    let Some(nginx) = nginx(&world, &upstream).await else { return };
    route(&world, nginx.address()).await;
    for http in [Http::One, Http::Two] {
        let mut session = session(&world, http).await;
        assert_eq!(session.get("/who").await.unwrap().text(), "HTTP/2.0 CN=gateway.test");
        assert_eq!(post(&mut session, "/sink", full("body")).await.json()["bytes"], 4);
        let up = post(&mut session, "/sink", pattern_body(LARGE)).await.json();
        let sum = sha256(&pattern(LARGE));
        assert_eq!(up, json!({"bytes": LARGE, "sha256": sum}), "{http:?}");
        let down = session.get(&format!("/sized?bytes={LARGE}")).await.unwrap();
        assert_eq!(sha256(&down.body), sum, "{http:?}");
    }
}

/// nginx says GOAWAY with the last stream that it serves, and drops what has come behind it.
#[tokio::test]
async fn no_request_is_lost_when_nginx_drains() {
    const CLIENTS: usize = 10;
    const REQUESTS: usize = 50;
    let world = world().await;
    let upstream = Upstream::plain("behind").await;
    let Some(nginx) = nginx(&world, &upstream).await else { return };
    route(&world, nginx.address()).await;
    let client = async || {
        let mut session = session(&world, Http::One).await;
        for number in 0..REQUESTS {
            let reply = match number % 2 {
                0 => session.get("/get").await.unwrap(),
                _ => post(&mut session, "/sink", full("body")).await,
            };
            assert_eq!(reply.status, StatusCode::OK, "{number}: {}", reply.text());
        }
    };
    join_all((0..CLIENTS).map(|_| client())).await;
    assert_eq!(upstream.requests(), (CLIENTS * REQUESTS) as u64, "each arrives once");
}

#[tokio::test]
async fn node_serves_over_http_2() {
    let world = world().await;
    let Some(node) = Peer::node(world.folder(), "http2_server.cjs", &["server", "upstream-ca"]).await else {
        return;
    };
    route(&world, node.address()).await;
    for http in [Http::One, Http::Two] {
        let mut session = session(&world, http).await;
        let seen = session.get("/who?x=1").await.unwrap().json();
        assert_eq!((&seen["version"], &seen["client"]), (&json!("2.0"), &json!("gateway.test")), "{seen}");
        assert_eq!((&seen["path"], &seen["fields"][":authority"]), (&json!("/who?x=1"), &json!("app.test")));
        assert_eq!(post(&mut session, "/echo", full("body")).await.text(), "body");
        let both = post(&mut session, "/echo", pattern_body(LARGE)).await;
        assert_eq!(sha256(&both.body), sha256(&pattern(LARGE)), "{http:?}");
        // Each connection drains with its answer.
        for _ in 0..20 {
            assert_eq!(session.get("/goaway").await.unwrap().status, StatusCode::OK);
        }
        let request = session.request(Method::GET, "/reset", full(""));
        let broken = match session.send(request).await {
            Ok(response) => response.into_body().collect().await.is_err(),
            Err(_) => true,
        };
        assert!(broken, "{http:?}");
    }
    let mut session = session(&world, Http::Two).await;
    let request = session.request(Method::POST, "/echo", full("body"));
    let body = session.send(request).await.unwrap().into_body().collect().await.unwrap();
    assert_eq!(body.trailers().unwrap()["x-trailer"], "the end");
}
