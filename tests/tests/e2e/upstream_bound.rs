//! The bound on connections to a node: a burst waits for the connections that there are, in order
//! and not for ever.

use e2e::client::{HttpConnection, bounded, full};
use e2e::upstream::Upstream;
use e2e::world::World;
use futures_util::future::join_all;
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::net::TcpStream;

const QUEUED: &str = "countersign_upstream_requests_queued";

/// One worker with this bound, and one client that may use all of it.
async fn bounded_world(bound: u32) -> World {
    let limits = json!({"upstream_connections_per_node": bound, "requests_per_client": 0});
    let settings = json!({"countersign": {"workers": 1, "limits": limits}});
    World::builder().settings(settings).start().await
}

async fn route(world: &World, upstream: Value) {
    world.apply(&[("routes/all", json!({"uri": "/*", "upstream": upstream}))]).await;
}

async fn queued_is(world: &World, wanted: u64) {
    bounded("requests wait", async { while world.metric(QUEUED).await != wanted {} }).await;
}

#[tokio::test]
async fn a_burst_opens_no_more_connections_than_the_bound() {
    const CONNECTIONS: u64 = 100;
    const STREAMS: u64 = 100;
    const BOUND: u64 = 5;
    let upstream = Upstream::plain("five").await;
    let world = bounded_world(5).await;
    // None ends for having served many.
    let keepalive = json!({"size": BOUND, "idle_timeout": 60, "requests": CONNECTIONS * STREAMS + 1});
    let nodes = json!({upstream.address().to_string(): 1});
    route(&world, json!({"nodes": nodes, "keepalive_pool": keepalive})).await;
    let mut requests = Vec::new();
    for _ in 0..CONNECTIONS {
        let tcp = TcpStream::connect(world.http()).await.unwrap();
        let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(tcp));
        let (sender, connection) = handshake.await.unwrap();
        tokio::spawn(connection);
        for _ in 0..STREAMS {
            let mut sender = sender.clone();
            requests.push(tokio::spawn(async move {
                let request = Request::get("http://app.test/hold").body(full("")).unwrap();
                let response = sender.send_request(request).await.unwrap();
                (response.status(), response.into_body().collect().await.is_ok())
            }));
        }
    }
    upstream.arrived(BOUND).await;
    queued_is(&world, CONNECTIONS * STREAMS - BOUND).await;
    assert_eq!((upstream.connections(), upstream.requests()), (BOUND, BOUND));
    upstream.open_gate();
    for answer in bounded("all are served", join_all(requests)).await {
        assert_eq!(answer.unwrap(), (StatusCode::OK, true));
    }
    assert_eq!((upstream.connections(), upstream.requests()), (BOUND, CONNECTIONS * STREAMS));
    queued_is(&world, 0).await;
}

#[tokio::test]
async fn a_request_does_not_wait_for_ever() {
    let upstream = Upstream::plain("busy").await;
    let world = bounded_world(1).await;
    let timeout = json!({"connect": 1, "send": 60, "read": 60});
    route(&world, json!({"nodes": {upstream.address().to_string(): 1}, "timeout": timeout})).await;
    let mut first = world.plain("app.test").await;
    let held = tokio::spawn(async move { first.get("/hold").await });
    upstream.arrived(1).await;
    let mut second = world.plain("app.test").await;
    assert_eq!(second.get("/").await.unwrap().status, StatusCode::SERVICE_UNAVAILABLE);
    let expected = ["upstream_limit", "1 connections are open", "upstream_connections_per_node"];
    world.node_log().line_with(&expected).await;
    let lines = world.node_log().text().lines().filter(|line| line.contains("upstream_limit")).count();
    assert_eq!((lines, upstream.requests()), (1, 1));
    // Its place in the queue is free again.
    let third = tokio::spawn(async move { second.get("/").await });
    queued_is(&world, 1).await;
    upstream.open_gate();
    assert_eq!(held.await.unwrap().unwrap().status, StatusCode::OK);
    assert_eq!(third.await.unwrap().unwrap().status, StatusCode::OK);
    assert_eq!(upstream.connections(), 1, "the same connection");
}

#[tokio::test]
async fn identities_in_one_queue_share_no_connection() {
    const REQUESTS: u64 = 40;
    let world = bounded_world(2).await;
    let authority = &world.credentials.upstreams;
    let strict = Upstream::demanding("strict", &authority.server(&["up.test"]), authority).await;
    let mut documents = Vec::new();
    for name in ["blue", "green"] {
        let issued = authority.client(name);
        let identity = json!({"type": "client", "cert": issued.certificate_pem, "key": issued.key_pem});
        let upstream = json!({
            "scheme": "https", "nodes": {strict.address().to_string(): 1}, "tls": {"client_cert_id": name},
        });
        documents.push((format!("ssls/{name}"), identity));
        documents
            .push((format!("routes/{name}"), json!({"uri": format!("/{name}/*"), "upstream": upstream})));
    }
    let documents: Vec<_> = documents.iter().map(|(path, document)| (&**path, document.clone())).collect();
    world.apply(&documents).await;
    let mut clients = Vec::new();
    for name in ["blue", "green"] {
        for _ in 0..4 {
            let mut session: HttpConnection = world.plain("app.test").await;
            clients.push(tokio::spawn(async move {
                for _ in 0..REQUESTS / 4 {
                    let request = session.request(Method::GET, &format!("/{name}/report"), full(""));
                    let reply = session.fetch(request).await.unwrap();
                    assert_eq!(reply.json()["client_subject"], format!("CN={name}"));
                }
            }));
        }
    }
    for client in bounded("all are served", join_all(clients)).await {
        client.unwrap();
    }
    assert_eq!(strict.requests(), 2 * REQUESTS);
    assert!(strict.open() <= 2, "{}", strict.open());
}
