//! Hostile clients: the gateway rejects them with bounded work and memory and continues to serve
//! others.

use e2e::client::{Http, HttpClient, Tls, full};
use e2e::raw::{self, Split};
use e2e::world::World;
use http::{Method, StatusCode};
use rustls::ClientConfig;
use serde_json::json;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

async fn still_serves(world: &World) {
    let reply = world.client("app.test").get("/still").await.unwrap();
    assert_eq!(reply.status, StatusCode::OK);
}

#[tokio::test]
async fn garbage_on_the_tls_port_ends_the_connection() {
    let (world, _upstream) = World::open(json!({})).await;
    let mut too_long = vec![0x16, 0x03, 0x01, 0xff, 0xff];
    too_long.extend(vec![0; 0xffff]);
    let mut endless = vec![0x16, 0x03, 0x01, 0x40, 0x00, 0x01, 0xff, 0xff, 0xff];
    endless.extend(vec![0; 0x4000 - 4]);
    let endless = endless.repeat(20);
    for (what, bytes) in [
        ("zeros", vec![0; 512]),
        ("ones", vec![0xff; 512]),
        ("text", b"SSH-2.0-OpenSSH_9.2\r\n".repeat(20)),
        ("an alert first", vec![0x15, 0x03, 0x03, 0x00, 0x02, 0x02, 0x28]),
        ("application data first", [&[0x17, 0x03, 0x03, 0x00, 0x20][..], &[7; 0x20]].concat()),
        ("empty records", [0x16, 0x03, 0x01, 0x00, 0x00].repeat(100)),
        ("a record over the limit", too_long),
        ("a ClientHello that never ends", endless),
        ("SSLv2", vec![0x80, 0x2e, 0x01, 0x00, 0x02, 0x00, 0x15, 0x00, 0x00, 0x00, 0x10, 0x01, 0x00, 0x80]),
    ] {
        let mut stream = raw::send(world.https(), &bytes).await;
        // Some of these are prefixes of valid input: closing the write side tells that nothing
        // follows.
        let _ = stream.shutdown().await;
        let answered = raw::until_closed(&mut stream).await;
        let alert_or_page =
            answered.is_empty() || answered[0] == 0x15 || answered.starts_with(b"HTTP/1.1 400");
        assert!(alert_or_page, "{what}: {answered:?}");
    }
    still_serves(&world).await;
}

#[tokio::test]
async fn plain_http_on_the_tls_port_gets_a_400() {
    let (world, upstream) = World::open(json!({})).await;
    let mut stream = raw::send(world.https(), b"GET / HTTP/1.1\r\nHost: app.test\r\n\r\n").await;
    let answered = String::from_utf8_lossy(&raw::until_closed(&mut stream).await).into_owned();
    assert!(answered.starts_with("HTTP/1.1 400"), "{answered}");
    assert!(answered.contains("The plain HTTP request was sent to HTTPS port"), "{answered}");
    assert_eq!(upstream.requests(), 0);
    still_serves(&world).await;
}

/// A configuration with a short ClientHello, so that there are few positions to split it at.
fn short_hello(client: &HttpClient) -> ClientConfig {
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.kx_groups = vec![rustls::crypto::aws_lc_rs::kx_group::X25519];
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(client.root_store())
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config
}

async fn request_over(stream: Split<TcpStream>, client: &HttpClient, config: Arc<ClientConfig>) -> Vec<u8> {
    let mut tls = TlsConnector::from(config).connect(client.server_name(), stream).await.unwrap();
    tls.write_all(b"GET / HTTP/1.1\r\nHost: app.test\r\nConnection: close\r\n\r\n").await.unwrap();
    raw::until_closed(&mut tls).await
}

#[tokio::test]
async fn a_client_hello_split_at_every_byte_is_parsed() {
    let (world, _upstream) = World::open(json!({})).await;
    let client = world.client("app.test");
    let config = short_hello(&client);
    let length = raw::client_hello(config.clone(), client.server_name()).len();
    let config = Arc::new(config);
    for at in 1..length {
        let tcp = raw::send(world.https(), &[]).await;
        let answered = request_over(Split::after(tcp, at), &client, Arc::clone(&config)).await;
        assert!(answered.starts_with(b"HTTP/1.1 200"), "split after {at} of {length} bytes");
    }
    let tcp = raw::send(world.https(), &[]).await;
    let answered = request_over(Split::each_byte(tcp, length), &client, config).await;
    assert!(answered.starts_with(b"HTTP/1.1 200"), "byte by byte");
}

#[tokio::test]
async fn oversized_heads_are_rejected() {
    let (world, upstream) = World::open(json!({})).await;
    let long = "x".repeat(300 * 1024);
    for http in [Http::One, Http::Two] {
        let mut session = world.client("app.test").http(http).connect().await.unwrap();
        let mut request = session.request(Method::GET, "/", full(""));
        request.headers_mut().insert("x-long", long.parse().unwrap());
        // A status, or the end of the connection (HTTP/2 may reset the stream), but never the
        // upstream's response.
        if let Ok(reply) = session.fetch(request).await {
            assert!(reply.status.is_client_error(), "{http:?}: {}", reply.status);
        }
    }
    let mut many = b"GET / HTTP/1.1\r\nHost: app.test\r\n".to_vec();
    for number in 0..5000 {
        many.extend(format!("X-{number}: y\r\n").bytes());
    }
    many.extend(b"\r\n");
    let mut stream = raw::send(world.http(), &many).await;
    let answered = raw::until_closed(&mut stream).await;
    assert!(
        answered.is_empty() || answered.starts_with(b"HTTP/1.1 4"),
        "{}",
        String::from_utf8_lossy(&answered)
    );
    assert_eq!(upstream.requests(), 0);
    still_serves(&world).await;
}

#[tokio::test]
async fn ambiguous_requests_reach_no_upstream_twice() {
    let (world, upstream) = World::open(json!({})).await;
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: app.test\r\n\r\n";
    for (what, head) in [
        (
            "both lengths",
            format!("Content-Length: {}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", smuggled.len() + 5),
        ),
        ("two lengths", format!("Content-Length: 0\r\nContent-Length: {}\r\n\r\n", smuggled.len())),
        ("chunked twice", "Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n".to_owned()),
        ("not chunked last", "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n".to_owned()),
        ("a signed length", format!("Content-Length: +{}\r\n\r\n", smuggled.len())),
        ("a folded header", "Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n".to_owned()),
        ("blank before the colon", "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n".to_owned()),
    ] {
        let before = upstream.requests();
        let bytes =
            format!("POST /first HTTP/1.1\r\nHost: app.test\r\nConnection: close\r\n{head}{smuggled}");
        let mut stream = raw::send(world.http(), bytes.as_bytes()).await;
        let answered = String::from_utf8_lossy(&raw::until_closed(&mut stream).await).into_owned();
        assert_eq!(answered.matches("HTTP/1.1 ").count(), 1, "{what}: {answered}");
        assert!(!answered.contains("/smuggled"), "{what}: {answered}");
        assert!(upstream.requests() - before <= 1, "{what}");
    }
    still_serves(&world).await;
}

#[tokio::test]
async fn malformed_requests_get_400() {
    let (world, upstream) = World::open(json!({})).await;
    for (what, bytes) in [
        ("no host", &b"GET / HTTP/1.1\r\n\r\n"[..]),
        ("two hosts", b"GET / HTTP/1.1\r\nHost: app.test\r\nHost: other.test\r\n\r\n"),
        ("a zero byte in a header", b"GET / HTTP/1.1\r\nHost: app.test\r\nX: a\0b\r\n\r\n"),
        ("no version", b"GET /\r\nHost: app.test\r\n\r\n"),
        ("a path that leaves the root", b"GET /../../etc/passwd HTTP/1.1\r\nHost: app.test\r\n\r\n"),
        ("half an escape", b"GET /%zz HTTP/1.1\r\nHost: app.test\r\n\r\n"),
        ("an escaped zero", b"GET /a%00b HTTP/1.1\r\nHost: app.test\r\n\r\n"),
    ] {
        let mut stream = raw::send(world.http(), bytes).await;
        let answered = String::from_utf8_lossy(&raw::until_closed(&mut stream).await).into_owned();
        assert!(answered.starts_with("HTTP/1.1 400") || answered.is_empty(), "{what}: {answered}");
    }
    assert_eq!(upstream.requests(), 0);
    still_serves(&world).await;
}

#[tokio::test]
async fn an_unparsable_head_is_logged_and_counted() {
    let (world, upstream) = World::open(json!({})).await;
    let heads: [&[u8]; 6] = [
        b"GET /?a=\"b\" HTTP/1.1\r\nHost: app.test\r\n\r\n",
        b"GET /a<b HTTP/1.1\r\nHost: app.test\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: app.test\r\n\r\n",
        b"GET /\r\nHost: app.test\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: app.test\r\nX y: z\r\n\r\n",
        b"G(T / HTTP/1.1\r\nHost: app.test\r\n\r\n",
    ];
    for head in heads {
        let mut stream = raw::send(world.http(), head).await;
        let answered = String::from_utf8_lossy(&raw::until_closed(&mut stream).await).into_owned();
        assert!(answered.starts_with("HTTP/1.1 400"), "{answered}");
    }
    assert_eq!(world.metric("countersign_errors_total{reason=\"bad_request\"}").await, 6);
    world.node_log().line_with(&["request rejected", "bad_request"]).await;
    assert_eq!(upstream.requests(), 0);
    still_serves(&world).await;
}

#[tokio::test]
async fn a_damaged_tls_record_ends_the_connection() {
    let (world, upstream) = World::open(json!({})).await;
    for tls in [Tls::V12, Tls::V13] {
        let stream = world.client("app.test").tls(tls).handshake().await.unwrap();
        let (mut tcp, _) = stream.into_inner();
        tcp.write_all(&[0x17, 0x03, 0x03, 0x00, 0x30]).await.unwrap();
        tcp.write_all(&[0x5a; 0x30]).await.unwrap();
        raw::until_closed(&mut tcp).await;
    }
    assert_eq!(upstream.requests(), 0);
    still_serves(&world).await;
}

#[tokio::test]
async fn aborted_handshakes_leak_nothing() {
    let (world, _upstream) = World::open(json!({})).await;
    let client = world.client("app.test");
    let hello = raw::client_hello(client.config(), client.server_name());
    for at in (0..hello.len()).step_by(97) {
        drop(raw::send(world.https(), &hello[..at]).await);
    }
    for _ in 0..20 {
        let mut stream = raw::send(world.https(), &hello).await;
        // Closes without a message while the server's flight is on its way.
        let _ = stream.read(&mut [0; 16]).await;
    }
    still_serves(&world).await;
}
