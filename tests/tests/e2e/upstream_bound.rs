//! The bound on connections to a node: a burst waits for the connections that there are, in order
//! and not for ever.

use e2e::client::{Http, HttpConnection, bounded, full};
use e2e::scripted::{ScriptedGateway, read_until};
use e2e::upstream::Upstream;
use e2e::upstream::tcp::{Script, TcpUpstream};
use e2e::world::World;
use futures_util::future::join_all;
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
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
    burst("http", 5, 1).await;
}

/// The same over HTTP/2: the streams of those connections are full.
#[tokio::test]
async fn a_burst_opens_no_more_streams_than_there_are() {
    burst("grpc", 5, 100).await;
}

/// 10,000 requests at once, over at most so many connections with so many requests at a time.
async fn burst(scheme: &str, bound: u32, streams: u64) {
    const CONNECTIONS: u64 = 100;
    const STREAMS: u64 = 100;
    let (world, bound) = (bounded_world(bound).await, u64::from(bound));
    let upstream = Upstream::plain("five").await;
    let at_a_time = bound * streams;
    // None ends for having served many.
    let keepalive = json!({"size": bound, "idle_timeout": 60, "requests": CONNECTIONS * STREAMS + 1});
    let nodes = json!({upstream.address().to_string(): 1});
    route(&world, json!({"scheme": scheme, "nodes": nodes, "keepalive_pool": keepalive})).await;
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
    upstream.arrived(at_a_time).await;
    queued_is(&world, CONNECTIONS * STREAMS - at_a_time).await;
    assert_eq!((upstream.connections(), upstream.requests()), (bound, at_a_time));
    upstream.open_gate();
    for answer in bounded("all are served", join_all(requests)).await {
        assert_eq!(answer.unwrap(), (StatusCode::OK, true));
    }
    assert_eq!((upstream.connections(), upstream.requests()), (bound, CONNECTIONS * STREAMS));
    queued_is(&world, 0).await;
}

#[tokio::test]
async fn requests_are_served_in_the_order_of_their_arrival() {
    const REQUESTS: u64 = 12;
    let limits = json!({"upstream_connections_per_node": 1, "requests_per_client": 0});
    let settings = json!({"countersign": {"workers": 1, "limits": limits}});
    let gateway = ScriptedGateway::with(settings).await;
    gateway.world.apply(&[("ssls/app", gateway.world.open_site())]).await;
    gateway.route(json!({})).await;
    let client = gateway.world.client("app.test");
    let (mut sessions, mut served, mut first) = (Vec::new(), Vec::new(), None);
    for number in 0..REQUESTS {
        // Of clients of either protocol.
        let http = if number % 2 == 0 { Http::One } else { Http::Two };
        let mut session = client.clone().http(http).connect().await.unwrap();
        let path = format!("/{number}");
        let (sent, answered) = tokio::sync::oneshot::channel();
        sessions.push(tokio::spawn(async move {
            let status = session.get(&path).await.unwrap().status;
            sent.send(status).unwrap();
            session
        }));
        served.push(answered);
        if number == 0 {
            first = Some(gateway.request().await);
        }
        queued_is(&gateway.world, number).await;
    }
    let (mut upstream, mut head) = first.unwrap();
    for (number, answered) in served.into_iter().enumerate() {
        assert!(head.starts_with(&format!("GET /{number} ")), "{number}: {head}");
        upstream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        assert_eq!(bounded("the response", answered).await.unwrap(), StatusCode::OK);
        if number as u64 + 1 < REQUESTS {
            head = read_until(&mut upstream, "\r\n\r\n").await;
        }
    }
    assert!(gateway.is_quiet(), "one connection");
}

/// An idle HTTP/2 connection is closed for a request of another identity, as one of HTTP/1.
#[tokio::test]
async fn a_maximum_of_the_upstream_makes_room_for_others() {
    let world = bounded_world(0).await;
    let authority = &world.credentials.upstreams;
    for http2 in [false, true] {
        let strict = Upstream::demanding("strict", &authority.server(&["up.test"]), authority).await;
        for name in ["blue", "green"] {
            let issued = authority.client(name);
            let tls = json!({"client_cert": issued.certificate_pem, "client_key": issued.key_pem});
            let upstream = json!({
                "scheme": "https", "http2": http2, "nodes": {strict.address().to_string(): 1}, "tls": tls,
                "keepalive_pool": {"max_connections": 1},
            });
            let route = json!({"uri": format!("/{name}"), "upstream": upstream});
            world.apply(&[(&format!("routes/{name}"), route)]).await;
        }
        let mut session = world.plain("app.test").await;
        for name in ["blue", "green", "blue", "blue"] {
            let reply = session.get(&format!("/{name}")).await.unwrap();
            assert_eq!(reply.json()["client_subject"], format!("CN={name}"), "{http2}");
            strict.open_at_most(1).await;
        }
        assert_eq!(strict.connections(), 3, "{http2}");
    }
}

#[tokio::test]
async fn streams_count_under_a_maximum_of_their_upstream() {
    let settings = json!({
        "apisix": {"proxy_mode": "http&stream", "stream_proxy": {"tcp": [{"addr": "127.0.0.1:0", "tls": false}]}},
        "countersign": {"workers": 1, "limits": {"upstream_connections_per_node": 1}},
    });
    let world = World::builder().settings(settings).start().await;
    let node = TcpUpstream::plain("echo", Script::Echo).await;
    let route = |connect: f64, keepalive: Value| {
        let timeout = json!({"connect": connect, "send": 60, "read": 60});
        let nodes = json!({node.address().to_string(): 1});
        json!({"upstream": {"nodes": nodes, "timeout": timeout, "keepalive_pool": keepalive}})
    };
    let echoes = async |stream: &mut TcpStream| {
        stream.write_all(b"x").await.unwrap();
        bounded("the echo", stream.read_u8()).await
    };
    // The bound of requests is none of streams.
    world.apply(&[("stream_routes/1", route(60.0, json!({"size": 1})))]).await;
    let mut open = Vec::new();
    for _ in 0..3 {
        let mut stream = TcpStream::connect(world.stream(0)).await.unwrap();
        assert_eq!(echoes(&mut stream).await.unwrap(), b'x');
        open.push(stream);
    }
    world.apply(&[("stream_routes/1", route(1.0, json!({"max_connections": 2})))]).await;
    for _ in 0..2 {
        let mut stream = TcpStream::connect(world.stream(0)).await.unwrap();
        assert_eq!(echoes(&mut stream).await.unwrap(), b'x');
        open.push(stream);
    }
    let mut denied = TcpStream::connect(world.stream(0)).await.unwrap();
    assert!(echoes(&mut denied).await.is_err());
    world.node_log().line_with(&["upstream_limit", "2 connections are open", "route=\"1\""]).await;
    assert_eq!(node.connections(), 5);
    world.apply(&[("stream_routes/1", route(60.0, json!({"max_connections": 2})))]).await;
    let mut waiting = TcpStream::connect(world.stream(0)).await.unwrap();
    waiting.write_all(b"x").await.unwrap();
    queued_is(&world, 1).await;
    assert_eq!(node.connections(), 5);
    open.pop().unwrap().shutdown().await.unwrap();
    assert_eq!(bounded("the echo", waiting.read_u8()).await.unwrap(), b'x');
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
