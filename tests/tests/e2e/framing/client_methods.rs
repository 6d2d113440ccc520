//! Requests that no gateway forwards: tunnels, traces, targets that are no path, and unsupported
//! upgrades.

use e2e::client::{Http, full};
use e2e::frames::{self, DATA, END_HEADERS, END_STREAM, FrameConnection, HEADERS, frame};
use e2e::tools::curl;
use e2e::world::World;
use http::{Method, StatusCode};
use serde_json::json;

use super::client::{answers, statuses};

#[tokio::test]
async fn tunnels_and_traces_are_405() {
    let (world, upstream) = World::open(json!({})).await;
    for line in [
        "CONNECT app.test:443",
        "CONNECT /path",
        "CONNECT http://app.test/",
        "CONNECT *",
        "TRACE /",
        "TRACE http://app.test/",
        "TRACE *",
    ] {
        for version in ["1.1", "1.0"] {
            // Data that is sent through the denied tunnel is not a request.
            let request = format!(
                "{line} HTTP/{version}\r\nHost: app.test\r\n\r\nGET / HTTP/1.1\r\nHost: app.test\r\n\r\n"
            );
            for answered in answers(&world, request.as_bytes()).await {
                let first = answered.get(9..12);
                assert_eq!(first, Some("405"), "{line}: {answered}");
                assert_eq!(answered.matches("HTTP/1.").count(), 1, "{line}: {answered}");
            }
        }
    }
    for method in [Method::CONNECT, Method::TRACE] {
        let mut session = world.client("app.test").http(Http::Two).connect().await.unwrap();
        let mut request = session.request(method.clone(), "/", full(""));
        if method == Method::CONNECT {
            *request.uri_mut() = "app.test:443".parse().unwrap();
        }
        let reply = session.fetch(request).await.unwrap();
        assert_eq!(reply.status, StatusCode::METHOD_NOT_ALLOWED, "{method}");
    }
    assert_eq!(upstream.requests(), 0);
}

#[tokio::test]
async fn a_target_that_is_no_path_is_400() {
    let (world, upstream) = World::open(json!({})).await;
    for line in [
        "GET *",
        "OPTIONS *",
        "PUT *",
        "GET app.test",
        "GET app.test:80",
        "GET path",
        "GET ?query",
        "GET /path#fragment",
        "GET /path?query#fragment",
        "GET /#",
        "GET #",
        "GET http://app.test/path#fragment",
        "OPTIONS http://app.test#*",
    ] {
        let request = format!("{line} HTTP/1.1\r\nHost: app.test\r\n\r\n");
        for answered in answers(&world, request.as_bytes()).await {
            assert_eq!(statuses(&answered), ["400"], "{line}: {answered}");
        }
    }
    assert_eq!(upstream.requests(), 0);
    for line in ["GET http://app.test", "OPTIONS http://app.test", "OPTIONS /", "GET /?*", "GET /a*b"] {
        let request = format!("{line} HTTP/1.1\r\nHost: app.test\r\nConnection: close\r\n\r\n");
        for answered in answers(&world, request.as_bytes()).await {
            assert_eq!(statuses(&answered), ["200"], "{line}: {answered}");
        }
    }
}

/// The header blocks of all responses to this header block, until the gateway closes the connection
/// for a broken frame.
async fn blocks(world: &e2e::world::World, block: Vec<u8>) -> Vec<Vec<u8>> {
    let mut wire = FrameConnection::connect(&world.client("app.test")).await;
    let mut bytes = frame(HEADERS, END_HEADERS | END_STREAM, 1, &block);
    bytes.extend(frame(DATA, 0, 0, &[]));
    wire.send(&bytes).await;
    wire.ended().await.blocks
}

#[tokio::test]
async fn http_2_forwards_no_other_target_either() {
    let (world, upstream) = World::open(json!({})).await;
    for path in ["*", "path", "http://app.test/"] {
        let blocks = blocks(&world, frames::request_block("GET", "app.test", path)).await;
        // Status 400 is entry 12 of the static table; a stream may be reset instead.
        assert!(blocks.iter().all(|block| block[0] == 0x8c), "{path}: {blocks:?}");
    }
    // Extended CONNECT (RFC 8441), which is disabled.
    let mut websocket = frames::request_block("GET", "app.test", "/");
    websocket.extend([0x00, 9]);
    websocket.extend(b":protocol");
    websocket.push(9);
    websocket.extend(b"websocket");
    assert!(blocks(&world, websocket).await.is_empty());
    assert_eq!(upstream.requests(), 0);
}

#[tokio::test]
async fn an_unsupported_upgrade_is_426() {
    let (world, upstream) = World::open(json!({})).await;
    for fields in [
        "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZQ==",
        "upgrade: WebSocket\r\nconnection: keep-alive, upgrade",
        "Upgrade: h2c, websocket\r\nConnection: Upgrade",
        "Upgrade: h2c\r\nUpgrade: websocket\r\nConnection: Upgrade",
        "Upgrade: foo/2\r\nConnection: Upgrade",
    ] {
        // The connection serves the next request.
        let next = "GET /next HTTP/1.1\r\nHost: app.test\r\nConnection: close\r\n\r\n";
        let request = format!("GET / HTTP/1.1\r\nHost: app.test\r\n{fields}\r\n\r\n{next}");
        for answered in answers(&world, request.as_bytes()).await {
            assert_eq!(statuses(&answered), ["426", "200"], "{fields}: {answered}");
            let head = answered.split("\r\n\r\n").next().unwrap().to_ascii_lowercase();
            assert!(head.contains("\r\nupgrade: http/1.1"), "{head}");
            assert!(head.contains("\r\nconnection: upgrade"), "{head}");
        }
    }
    assert_eq!(upstream.requests(), 10);
}

#[tokio::test]
async fn an_optional_upgrade_is_ignored() {
    let (world, upstream) = World::open(json!({})).await;
    let url = format!("http://{}/", world.http());
    let reply = curl(world.folder(), &["--http2", "-H", "Host: app.test", &url]).await;
    assert!(reply.body.contains("\"uri\""), "{reply:?}");
    for upgrade in ["h2c", "TLS/1.2", "TLS/1.0, h2c"] {
        let request = format!(
            "GET / HTTP/1.1\r\nHost: app.test\r\nUpgrade: {upgrade}\r\nConnection: Upgrade, close\r\n\r\n"
        );
        for answered in answers(&world, request.as_bytes()).await {
            assert_eq!(statuses(&answered), ["200"], "{upgrade}: {answered}");
            assert!(!answered.to_ascii_lowercase().contains("\"upgrade\""), "{answered}");
        }
    }
    assert_eq!(upstream.requests(), 7);
}
