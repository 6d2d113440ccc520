//! The slots of a node: a handshake takes one like any request, and a tunnel keeps it where the
//! upstream has a maximum of its own.

use e2e::client::bounded;
use e2e::scripted::ScriptedGateway;
use h2::client::ResponseFuture;
use http::StatusCode;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::{connect, switching};

const QUEUED: &str = "countersign_upstream_requests_queued";

/// One worker, two connections to a node by default, and a WebSocket route with these members more.
async fn gateway(upstream: Value) -> ScriptedGateway {
    let limits = json!({"upstream_connections_per_node": 2, "requests_per_client": 0});
    let settings = json!({"countersign": {"workers": 1, "limits": limits}});
    let gateway = ScriptedGateway::with(settings).await;
    gateway.world.apply(&[("ssls/app", gateway.world.open_site())]).await;
    gateway.route(json!({"enable_websocket": true, "upstream": upstream})).await;
    gateway
}

async fn queued_is(gateway: &ScriptedGateway, wanted: u64) {
    bounded("handshakes wait", async { while gateway.world.metric(QUEUED).await != wanted {} }).await;
}

async fn status(response: &mut ResponseFuture) -> StatusCode {
    bounded("the response", response).await.unwrap().status()
}

/// Accepts the handshake on this connection.
async fn accept((mut upstream, head): (TcpStream, String)) -> TcpStream {
    upstream.write_all(switching(&head).as_bytes()).await.unwrap();
    upstream
}

#[tokio::test]
async fn handshakes_of_one_client_take_slots() {
    let gateway = gateway(json!({})).await;
    let mut connection = gateway.http2().await;
    let streams = (0..8).map(|_| connection.send_request(connect("websocket"), false).unwrap());
    let mut streams: Vec<_> = streams.collect();
    let (first, second) = (gateway.request().await, gateway.request().await);
    queued_is(&gateway, 6).await;
    assert!(gateway.is_quiet(), "two connections, and no third");
    // One is refused, and its connection ends with the response.
    let (mut refusing, _) = first;
    refusing.write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n").await.unwrap();
    let third = gateway.request().await;
    queued_is(&gateway, 5).await;
    assert!(gateway.is_quiet());
    // A tunnel leaves its slot to the next handshake, and to requests.
    let mut tunnels = vec![accept(second).await, accept(third).await];
    for _ in 0..5 {
        tunnels.push(accept(gateway.request().await).await);
    }
    let mut statuses = Vec::new();
    for (response, _) in &mut streams {
        statuses.push(status(response).await);
    }
    statuses.sort();
    assert_eq!(statuses, [[StatusCode::OK; 7].as_slice(), &[StatusCode::FORBIDDEN]].concat());
    let mut session = gateway.world.plain("app.test").await;
    let served = tokio::spawn(async move { session.get("/").await.unwrap().status });
    let (mut upstream, _) = gateway.request().await;
    upstream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
    assert_eq!(served.await.unwrap(), StatusCode::OK);
}

#[tokio::test]
async fn a_maximum_of_the_upstream_counts_tunnels() {
    let with = |connect: f64| {
        let timeout = json!({"connect": connect, "send": 60, "read": 60});
        json!({"keepalive_pool": {"max_connections": 1}, "timeout": timeout})
    };
    let gateway = gateway(with(0.5)).await;
    let mut connection = gateway.http2().await;
    let mut open = || connection.send_request(connect("websocket"), false).unwrap();
    let (mut first, first_tunnel) = open();
    let _upstream = accept(gateway.request().await).await;
    assert_eq!(status(&mut first).await, StatusCode::OK);
    let (mut second, _tunnel) = open();
    assert_eq!(status(&mut second).await, StatusCode::SERVICE_UNAVAILABLE);
    gateway.world.node_log().line_with(&["upstream_limit", "1 connections are open"]).await;
    assert!(gateway.is_quiet());
    gateway.route(json!({"enable_websocket": true, "upstream": with(60.0)})).await;
    let (mut third, _tunnel) = open();
    queued_is(&gateway, 1).await;
    assert!(gateway.is_quiet());
    drop((first, first_tunnel));
    let _upstream = accept(gateway.request().await).await;
    assert_eq!(status(&mut third).await, StatusCode::OK);
}
