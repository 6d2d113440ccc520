//! Limits on clients, and responses to garbage.

use std::time::{Duration, Instant};

use http::Method;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

use crate::world::{KEY, World, exchange, request};

async fn read_all(mut stream: impl tokio::io::AsyncRead + Unpin) -> String {
    let mut response = Vec::new();
    // A reset also ends the connection.
    let _ = stream.read_to_end(&mut response).await;
    String::from_utf8_lossy(&response).into_owned()
}

#[tokio::test]
async fn bodies_are_bounded() {
    let world = World::start().await;
    const MAX: usize = 1_572_864;
    let padded = |size: usize| {
        let empty = json!({"desc": ""}).to_string().len();
        json!({"desc": "x".repeat(size - empty)}).to_string()
    };
    let fits = world.call(Method::PUT, "/services/1", padded(MAX)).await;
    fits.assert_error("invalid configuration: property \"desc\" validation failed: string too long, expected at most 256, got 1572853");
    let message = format!(
        "invalid request body: request size {} is greater than the maximum size {MAX} allowed",
        MAX + 1
    );
    world.call(Method::PUT, "/services/1", padded(MAX + 1)).await.assert_error(&message);
}

#[tokio::test]
async fn a_body_that_is_not_json_is_rejected() {
    let world = World::start().await;
    for garbage in ["{", "nonsense", "{\"a\":1}}", "\u{0}", "[[[[", "{\"a\":}"] {
        let response = world.call(Method::PUT, "/services/1", garbage).await;
        assert_eq!(response.status, 400);
        let body = response.json();
        assert!(body["error_msg"].as_str().unwrap().starts_with("invalid request body: "), "{body}");
        // Difference from contract 2.2: a body may hold a private key, so no response repeats one.
        assert_eq!(body.get("req_body"), None);
    }
    // The parser rejects nesting that would overflow a stack.
    let deep = "[".repeat(100_000);
    assert_eq!(world.call(Method::PUT, "/services/1", deep).await.status, 400);
    assert!(world.store.load().await.unwrap().items.is_empty());
    world.get("/services").await.ok();
}

#[tokio::test]
async fn garbage_instead_of_http_closes_the_connection() {
    let world = World::start().await;
    for garbage in
        ["\r\n\r\nnonsense\r\n\r\n", "GET\r\n\r\n", "GET / HTTP/9.9\r\n\r\n", "GET /\u{1} HTTP/1.1\r\n\r\n"]
    {
        let mut stream = world.connect(Some(&world.identity)).await.unwrap();
        stream.write_all(garbage.as_bytes()).await.unwrap();
        let response = read_all(stream).await;
        assert!(response.is_empty() || response.starts_with("HTTP/1.1 400"), "{garbage:?}: {response}");
    }
    let mut stream = world.connect(Some(&world.identity)).await.unwrap();
    let head =
        format!("GET /apisix/admin/routes HTTP/1.1\r\nHost: x\r\nX-Long: {}\r\n\r\n", "x".repeat(100_000));
    stream.write_all(head.as_bytes()).await.unwrap();
    assert!(read_all(stream).await.starts_with("HTTP/1.1 431"));
}

const SHORT: Duration = Duration::from_millis(100);

#[tokio::test]
async fn a_silent_handshake_times_out() {
    let mut builder = World::builder();
    builder.limits.handshake_timeout = SHORT;
    let world = builder.start().await;
    assert_eq!(read_all(TcpStream::connect(world.address).await.unwrap()).await, "");
}

#[tokio::test]
async fn an_unfinished_head_times_out() {
    let mut builder = World::builder();
    builder.limits.header_timeout = SHORT;
    let world = builder.start().await;
    let mut half = world.connect(Some(&world.identity)).await.unwrap();
    half.write_all(b"GET /apisix/admin/routes HTTP/1.1\r\nHos").await.unwrap();
    assert!(!read_all(half).await.contains("200 OK"));
}

#[tokio::test]
async fn a_body_that_does_not_arrive_times_out() {
    let mut builder = World::builder();
    builder.body_timeout = SHORT;
    let world = builder.start().await;
    let mut bodyless = world.connect(Some(&world.identity)).await.unwrap();
    let head = format!(
        "PUT /apisix/admin/services/1 HTTP/1.1\r\nHost: x\r\nX-API-KEY: {KEY}\r\nContent-Length: 10\r\n\r\n{{"
    );
    bodyless.write_all(head.as_bytes()).await.unwrap();
    assert!(read_all(bodyless).await.starts_with("HTTP/1.1 408"));
    assert!(world.store.load().await.unwrap().items.is_empty());
}

#[tokio::test]
async fn connections_beyond_the_limit_are_queued() {
    let mut builder = World::builder();
    builder.limits.connections_max = 1;
    let world = builder.start().await;
    let first = world.connect(Some(&world.identity)).await.unwrap();
    let waiting = world.get("/routes");
    tokio::pin!(waiting);
    assert!(futures_util::FutureExt::now_or_never(&mut waiting).is_none());
    drop(first);
    waiting.await.ok();
}

#[tokio::test]
async fn a_full_listener_takes_no_connection_of_another() {
    let mut builder = World::builder();
    (builder.plain_listener, builder.limits.connections_max) = (true, 2);
    let world = builder.start().await;
    let served = world.connect(None).await.unwrap();
    let queued = TcpStream::connect(world.address).await.unwrap();
    let plain = TcpStream::connect(world.plain_address.unwrap()).await.unwrap();
    exchange(plain, request(Method::GET, "/routes", Some(KEY), "".into())).await.ok();
    drop((served, queued));
}

#[tokio::test]
async fn a_shutdown_lets_the_open_request_finish() {
    let world = World::start().await;
    let mut stream = world.connect(Some(&world.identity)).await.unwrap();
    let body = json!({"hosts": ["a.test"]}).to_string();
    let head = format!(
        "PUT /apisix/admin/services/1 HTTP/1.1\r\nHost: x\r\nX-API-KEY: {KEY}\r\nContent-Length: {}\r\nExpect: 100-continue\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    // The server sends 100 Continue, so the request is in the handler.
    let mut interim = [0; 25];
    stream.read_exact(&mut interim).await.unwrap();
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    let idle = world.connect(Some(&world.identity)).await.unwrap();
    world.stop.send_replace(true);
    assert_eq!(read_all(idle).await, "");
    stream.write_all(body.as_bytes()).await.unwrap();
    let response = read_all(stream).await;
    assert!(response.starts_with("HTTP/1.1 201 Created"), "{response}");
    world.task.await.unwrap();
    assert!(TcpStream::connect(world.address).await.is_err(), "nothing listens any more");
}

#[tokio::test]
async fn keep_alive_serves_many_requests() {
    let world = World::start().await;
    let stream = world.connect(Some(&world.identity)).await.unwrap();
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    tokio::spawn(connection);
    for _ in 0..3 {
        let response =
            sender.send_request(request(Method::GET, "/routes", Some(KEY), "".into())).await.unwrap();
        assert_eq!(response.status(), 200);
        http_body_util::BodyExt::collect(response.into_body()).await.unwrap();
    }
}

/// One read returns a whole small response; an empty read is the end.
async fn ask(stream: &mut TlsStream<TcpStream>, path: &str, key: &str) -> String {
    let head = format!("GET {path} HTTP/1.1\r\nHost: x\r\nX-API-KEY: {key}\r\n\r\n");
    let mut response = [0; 4096];
    if stream.write_all(head.as_bytes()).await.is_err() {
        return String::new();
    }
    let read = stream.read(&mut response).await.unwrap_or(0);
    String::from_utf8_lossy(&response[..read]).into_owned()
}

#[tokio::test]
async fn a_connection_that_is_never_authorized_is_closed() {
    let mut builder = World::builder();
    builder.limits.header_timeout = Duration::from_secs(1);
    let world = builder.start().await;
    // The certificate is valid, but without the key it authorizes nothing.
    let mut unauthorized = world.connect(Some(&world.identity)).await.unwrap();
    let mut known = world.connect(Some(&world.identity)).await.unwrap();
    assert!(ask(&mut known, "/apisix/admin/routes", KEY).await.starts_with("HTTP/1.1 200"));
    let begun = Instant::now();
    while !ask(&mut unauthorized, "/apisix/admin/routes", "guessed").await.is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(10), "it is still answered");
        // Only an authorized connection stays open.
        assert!(ask(&mut known, "/", "").await.starts_with("HTTP/1.1 404"));
    }
    assert!(ask(&mut known, "/apisix/admin/routes", KEY).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn denied_addresses_have_a_limit_of_their_own() {
    let mut builder = World::builder();
    builder.allow = Some(vec!["10.0.0.0/8".parse().unwrap()]);
    builder.limits.connections_max = 4;
    let world = builder.start().await;
    let mut first = world.connect(Some(&world.identity)).await.unwrap();
    // Beyond a quarter of the permits the connection is closed without a response.
    let second = TcpStream::connect(world.address).await.unwrap();
    assert_eq!(timeout(Duration::from_secs(5), read_all(second)).await.unwrap(), "");
    let response = ask(&mut first, "/", KEY).await;
    assert!(response.starts_with("HTTP/1.1 403") && response.contains("connection: close"), "{response}");
    assert_eq!(timeout(Duration::from_secs(5), read_all(first)).await.unwrap(), "");
}
