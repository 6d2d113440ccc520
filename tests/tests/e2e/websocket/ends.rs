//! How WebSockets end: by a side that breaks off, by the policy of the site, by time-outs, and by a
//! drain.

use std::time::{Duration, Instant};

use e2e::client::{Http, bounded};
use e2e::raw;
use e2e::scripted::{ScriptedGateway, read_until};
use h2::Reason;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{at_end, enabled, open, open_http2, plain, tls};

/// Closes a connection by RST.
fn reset(stream: TcpStream) {
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);
}

/// Reads until the connection is cut, and no `close_notify` says that it ended.
async fn assert_cut(stream: &mut tokio_rustls::client::TlsStream<TcpStream>) {
    let error = bounded("the end", stream.read_u8()).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof, "{error}");
    assert!(error.to_string().contains("close_notify"), "{error}");
}

async fn assert_closed(mut upstream: TcpStream) {
    assert!(raw::until_closed(&mut upstream).await.is_empty());
}

async fn log_line(gateway: &ScriptedGateway, mark: usize, reason: &str) {
    let words = ["WebSocket ended", reason, "route=\"app\""];
    gateway.world.node_log().line_after(mark, &words).await;
}

#[tokio::test]
async fn a_client_that_breaks_off_ends_the_upstreams_side() {
    let gateway = enabled().await;
    let mut client = plain(&gateway).await;
    let upstream = open(&gateway, &mut client).await;
    reset(client);
    assert_closed(upstream).await;
    let (mut stream, upstream) = open_http2(&gateway, &gateway.world.client("app.test")).await;
    stream.send.send_reset(Reason::CANCEL);
    assert_closed(upstream).await;
    let (stream, upstream) = open_http2(&gateway, &gateway.world.client("app.test")).await;
    drop(stream);
    assert_closed(upstream).await;
}

#[tokio::test]
async fn an_upstream_that_breaks_off_cuts_the_client() {
    let gateway = enabled().await;
    let client = gateway.world.client("app.test");
    let mark = gateway.world.node_log().mark();
    let mut session = tls(&client).await;
    let mut upstream = open(&gateway, &mut session).await;
    upstream.write_all(b"half").await.unwrap();
    read_until(&mut session, "half").await;
    reset(upstream);
    assert_cut(&mut session).await;
    log_line(&gateway, mark, "upstream_closed").await;
    let (mut stream, upstream) = open_http2(&gateway, &client).await;
    reset(upstream);
    assert_eq!(stream.ended().await, Err(Some(Reason::CANCEL)));
    assert_eq!(gateway.world.metric("countersign_errors_total{reason=\"upstream_closed\"}").await, 2);
}

/// A gateway that demands client certificates.
async fn protected(settings: Value) -> ScriptedGateway {
    let gateway = ScriptedGateway::with(settings).await;
    gateway.world.apply(&[("ssls/app", gateway.world.protected_site())]).await;
    gateway.route(json!({"enable_websocket": true})).await;
    gateway
}

#[tokio::test]
async fn a_revoked_client_is_cut_within_a_second() {
    let gateway = protected(json!({})).await;
    let client = gateway.world.verified_client("app.test");
    let mut session = tls(&client).await;
    let upstream = open(&gateway, &mut session).await;
    let (mut stream, second) = open_http2(&gateway, &client).await;
    let mut site = gateway.world.protected_site();
    let revoked = gateway.world.credentials.clients.crl(&[&gateway.world.credentials.client]);
    site["client"]["crl"] = json!([revoked]);
    gateway.world.apply(&[("ssls/app", site)]).await;
    let applied = Instant::now();
    assert_cut(&mut session).await;
    assert!(stream.ended().await.is_err());
    assert_closed(upstream).await;
    assert_closed(second).await;
    assert!(applied.elapsed() < Duration::from_secs(1), "it took {:?}", applied.elapsed());
}

#[tokio::test]
async fn an_idle_web_socket_ends_after_timeout_read() {
    let gateway = ScriptedGateway::start().await;
    let timeout = json!({"connect": 6, "send": 6, "read": 0.5});
    gateway.route(json!({"enable_websocket": true, "timeout": timeout})).await;
    let mark = gateway.world.node_log().mark();
    let client = gateway.world.client("app.test");
    let mut session = tls(&client).await;
    let upstream = open(&gateway, &mut session).await;
    let opened = Instant::now();
    assert_cut(&mut session).await;
    assert!(opened.elapsed() > Duration::from_millis(400), "{:?}", opened.elapsed());
    assert_closed(upstream).await;
    log_line(&gateway, mark, "tcp_timeout").await;
    let (mut stream, upstream) = open_http2(&gateway, &client).await;
    assert_eq!(stream.ended().await, Err(Some(Reason::CANCEL)));
    assert_closed(upstream).await;
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_cut_after_timeout_send() {
    let gateway = ScriptedGateway::start().await;
    let timeout = json!({"connect": 6, "send": 0.5, "read": 60});
    gateway.route(json!({"enable_websocket": true, "timeout": timeout})).await;
    let (mut stream, mut upstream) = open_http2(&gateway, &gateway.world.client("app.test")).await;
    // More than all windows and sockets hold. The gateway ends it.
    let flood = async { while upstream.write_all(&[7; 64 * 1024]).await.is_ok() {} };
    bounded("the flood ends", flood).await;
    let received = async {
        loop {
            match stream.receive.data().await {
                Some(Ok(_)) => {}
                ended => return ended,
            }
        }
    };
    let ended = bounded("the end of the tunnel", received).await;
    assert_eq!(ended.unwrap().unwrap_err().reason(), Some(Reason::CANCEL));
    assert_eq!(gateway.world.metric("countersign_errors_total{reason=\"tcp_timeout\"}").await, 1);
}

#[tokio::test]
async fn a_drain_ends_an_idle_web_socket_only() {
    let settings = json!({
        "countersign": {"drain_idle_timeout": 1},
        "nginx_config": {"worker_shutdown_timeout": "3600s"},
    });
    let mut gateway = protected(settings).await;
    let client = gateway.world.verified_client("app.test");
    let mut idle = tls(&client).await;
    let idle_upstream = open(&gateway, &mut idle).await;
    let mut busy = tls(&client).await;
    let mut busy_upstream = open(&gateway, &mut busy).await;
    let (mut stream, mut stream_upstream) = open_http2(&gateway, &client).await;
    let mut node = gateway.world.take_node();
    node.signal(Signal::SIGTERM);
    gateway.world.node_log().line_with(&["the listeners close"]).await;
    let ended = tokio::spawn(async move { assert_cut(&mut idle).await });
    let both = async {
        while !ended.is_finished() {
            assert_passes(&mut busy, &mut busy_upstream).await;
            stream_upstream.write_all(b"tick").await.unwrap();
            assert_eq!(stream.read(4).await, b"tick");
        }
        ended.await.unwrap();
    };
    bounded("the idle WebSocket is ended", both).await;
    assert_closed(idle_upstream).await;
    // Those in use went on, until they ended themselves.
    assert_passes(&mut busy, &mut busy_upstream).await;
    busy.shutdown().await.unwrap();
    at_end(&mut busy_upstream).await;
    drop((busy_upstream, stream_upstream));
    assert_eq!(stream.ended().await, Ok(()));
    drop(stream);
    assert!(bounded("the node ends", node.ended()).await.success());
}

/// Bytes pass both ways.
async fn assert_passes(client: &mut tokio_rustls::client::TlsStream<TcpStream>, upstream: &mut TcpStream) {
    client.write_all(b"ping").await.unwrap();
    client.flush().await.unwrap();
    read_until(upstream, "ping").await;
    upstream.write_all(b"pong").await.unwrap();
    read_until(client, "pong").await;
}

#[tokio::test]
async fn a_web_socket_counts_among_the_requests_of_its_client() {
    let gateway =
        ScriptedGateway::with(json!({"countersign": {"workers": 1, "limits": {"requests_per_client": 1}}}))
            .await;
    gateway.world.apply(&[("ssls/app", gateway.world.open_site())]).await;
    gateway.route(json!({"enable_websocket": true})).await;
    let client = gateway.world.client("app.test");
    let (stream, upstream) = open_http2(&gateway, &client).await;
    let refused = client.clone().http(Http::One).get("/").await.unwrap();
    assert_eq!(refused.status, 503);
    drop(stream);
    assert_closed(upstream).await;
    let mut session = tls(&client).await;
    open(&gateway, &mut session).await;
}
