//! Slow and silent clients time out at every stage of a connection, and do not delay others.
//!
//! The timeouts under test are one second, and each test waits for the gateway to act.

use std::time::{Duration, Instant};

use e2e::client::{Http, bounded};
use e2e::raw;
use e2e::upstream::Upstream;
use e2e::world::World;
use http::StatusCode;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

/// An earlier cut was not the timeout's.
const NOT_BEFORE: Duration = Duration::from_millis(700);

async fn impatient_world(upstream: &Upstream) -> World {
    let settings = json!({
        "nginx_config": {"http": {
            "client_header_timeout": "1s",
            "client_body_timeout": "1s",
            "keepalive_timeout": "1s",
        }},
        "countersign": {"limits": {"handshake_timeout": 1}},
    });
    World::builder().settings(settings).open(upstream.address()).start().await
}

#[tokio::test]
async fn an_unfinished_handshake_times_out() {
    let upstream = Upstream::plain("plain").await;
    let world = impatient_world(&upstream).await;
    let client = world.client("app.test");
    let hello = raw::client_hello(client.config(), client.server_name());
    for (what, bytes) in [("nothing", &hello[..0]), ("half a ClientHello", &hello[..hello.len() / 2])] {
        let started = Instant::now();
        let mut stream = raw::send(world.https(), bytes).await;
        raw::until_closed(&mut stream).await;
        assert!(started.elapsed() >= NOT_BEFORE, "{what}: cut after {:?}", started.elapsed());
    }
    // A whole ClientHello, then silence: the server's flight comes, then the end.
    let mut stream = raw::send(world.https(), &hello).await;
    let answered = raw::until_closed(&mut stream).await;
    assert!(answered.len() > 100, "the server answered the ClientHello: {} bytes", answered.len());
}

#[tokio::test]
async fn a_trickled_handshake_times_out() {
    let upstream = Upstream::plain("plain").await;
    let world = impatient_world(&upstream).await;
    let client = world.client("app.test");
    let hello = raw::client_hello(client.config(), client.server_name());
    let mut stream = raw::send(world.https(), &[]).await;
    let started = Instant::now();
    let mut sent = 0;
    for byte in &hello {
        // One byte at each pause: the timeout is that of the handshake, not of the pause.
        if timeout(Duration::from_millis(100), stream.read(&mut [0; 64])).await.is_ok() {
            break;
        }
        if stream.write_all(&[*byte]).await.is_err() {
            break;
        }
        sent += 1;
        assert!(started.elapsed() < e2e::process::EVENT_TIMEOUT, "{sent} bytes were taken");
    }
    assert!(sent < hello.len(), "all {sent} bytes were taken");
}

#[tokio::test]
async fn half_a_request_head_times_out() {
    let upstream = Upstream::plain("plain").await;
    let world = impatient_world(&upstream).await;
    let half = b"GET / HTTP/1.1\r\nHost: app.test\r\nX-Never";
    let started = Instant::now();
    let mut plain = raw::send(world.http(), half).await;
    let answered = raw::until_closed(&mut plain).await;
    assert!(started.elapsed() >= NOT_BEFORE, "cut after {:?}", started.elapsed());
    assert!(
        answered.is_empty() || answered.starts_with(b"HTTP/1.1 408"),
        "{}",
        String::from_utf8_lossy(&answered)
    );

    let mut tls = world.client("app.test").handshake().await.unwrap();
    tls.write_all(half).await.unwrap();
    let answered = raw::until_closed(&mut tls).await;
    assert!(
        answered.is_empty() || answered.starts_with(b"HTTP/1.1 408"),
        "{}",
        String::from_utf8_lossy(&answered)
    );
    assert_eq!(upstream.requests(), 0);
}

#[tokio::test]
async fn a_connection_without_a_request_times_out() {
    let upstream = Upstream::plain("plain").await;
    let world = impatient_world(&upstream).await;
    let mut plain = raw::send(world.http(), b"").await;
    raw::until_closed(&mut plain).await;
    let mut tls = world.client("app.test").handshake().await.unwrap();
    raw::until_closed(&mut tls).await;
    let mut two = world.client("app.test").http(Http::Two).handshake().await.unwrap();
    raw::until_closed(&mut two).await;
}

#[tokio::test]
async fn an_idle_keep_alive_connection_times_out() {
    let upstream = Upstream::plain("plain").await;
    let world = impatient_world(&upstream).await;
    let mut tls = world.client("app.test").handshake().await.unwrap();
    let started = Instant::now();
    tls.write_all(b"GET / HTTP/1.1\r\nHost: app.test\r\n\r\n").await.unwrap();
    let answered = raw::until_closed(&mut tls).await;
    assert!(answered.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answered));
    assert!(started.elapsed() >= NOT_BEFORE, "closed after {:?}", started.elapsed());
}

#[tokio::test]
async fn half_a_body_times_out() {
    let upstream = Upstream::plain("plain").await;
    let world = impatient_world(&upstream).await;
    let mut tls = world.client("app.test").handshake().await.unwrap();
    tls.write_all(b"POST /sink HTTP/1.1\r\nHost: app.test\r\nContent-Length: 100\r\n\r\nonly this")
        .await
        .unwrap();
    let answered = raw::until_closed(&mut tls).await;
    assert!(!answered.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answered));
}

#[tokio::test]
async fn silent_clients_do_not_delay_others() {
    let (world, _upstream) = World::open(json!({})).await;
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(raw::send(world.https(), b"\x16\x03\x01").await);
    }
    let reply = bounded("a good client's answer", world.client("app.test").get("/")).await.unwrap();
    assert_eq!(reply.status, StatusCode::OK);
    drop(silent);
}
