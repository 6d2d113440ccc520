//! The case of header names between HTTP/1 and HTTP/1, with the setting that preserves it.

use std::net::SocketAddr;

use e2e::client::{Http, bounded};
use e2e::documents::route;
use e2e::raw;
use e2e::world::World;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::client::statuses;

const ANSWER: &str = "HTTP/1.1 200 OK\r\nX-WeIrD: a\r\nx-weird: b\r\nETag: c\r\nConnection: X-Gone\r\nX-Gone: d\r\n\
                      Content-length: 3\r\n\r\nok\n";

/// A raw upstream that returns the heads it reads and answers each request but the first `silent`
/// ones, whose connections it closes.
async fn upstream(silent: usize) -> (SocketAddr, UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (heads, seen) = unbounded_channel();
    tokio::spawn(async move {
        let mut served = 0;
        while let Ok((mut stream, _)) = listener.accept().await {
            while let Some(head) = head(&mut stream).await {
                if head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
                    let _ = stream.read_exact(&mut [0; 5]).await;
                }
                let _ = heads.send(head);
                served += 1;
                if served <= silent || stream.write_all(ANSWER.as_bytes()).await.is_err() {
                    break;
                }
            }
        }
    });
    (address, seen)
}

async fn head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    Some(String::from_utf8(head).unwrap())
}

async fn world_to(upstream: SocketAddr, preserve: bool) -> World {
    let settings = json!({"countersign": {"preserve_header_case": preserve, "workers": 1}});
    World::builder().settings(settings).open(upstream).start().await
}

/// The names of a head's fields.
fn names(head: &str) -> Vec<&str> {
    head.lines().skip(1).filter_map(|line| line.split_once(':')).map(|(name, _)| name).collect()
}

const REQUEST: &str = "GET / HTTP/1.1\r\nHost: app.test\r\nSOAPAction: a\r\nx-lower: b\r\nX-DUP: c\r\nx-dup: d\r\n\
                       x-real-ip: 6.6.6.6\r\nX-FORWARDED-FOR: 6.6.6.6\r\nX-SSL-Client-Verify: SUCCESS\r\n\
                       Connection: close, X-Gone\r\nX-Gone: e\r\n\r\n";

async fn exchange(world: &World, seen: &mut UnboundedReceiver<String>) -> (String, String) {
    let mut stream = raw::send(world.http(), REQUEST.as_bytes()).await;
    let answered = String::from_utf8_lossy(&raw::until_closed(&mut stream).await).into_owned();
    assert_eq!(statuses(&answered), ["200"], "{answered}");
    (bounded("a request", seen.recv()).await.unwrap(), answered)
}

/// The expected form of REQUEST.
fn is_as_written(head: &str) {
    let names = names(head);
    for name in [
        "Host",
        "SOAPAction",
        "x-lower",
        "X-DUP",
        "x-dup",
        "X-Real-IP",
        "X-Forwarded-For",
        "X-Forwarded-Proto",
    ] {
        assert_eq!(names.iter().filter(|found| **found == name).count(), 1, "{name}: {head}");
    }
    let order = |name| names.iter().position(|found| *found == name);
    assert!(order("X-DUP") < order("x-dup"), "{head}");
    for gone in ["x-gone", "connection", "x-ssl-client-verify", "x-ssl-client-s-dn", "client-cert"] {
        assert!(!names.iter().any(|found| found.eq_ignore_ascii_case(gone)), "{gone}: {head}");
    }
    assert!(head.contains("\r\nX-Real-IP: 127.0.0.1\r\n"), "{head}");
    assert!(head.contains("\r\nX-Forwarded-For: 6.6.6.6, 127.0.0.1\r\n"), "{head}");
}

#[tokio::test]
async fn names_keep_their_case_both_ways() {
    let (address, mut seen) = upstream(0).await;
    let world = world_to(address, true).await;
    let (head, answered) = exchange(&world, &mut seen).await;
    is_as_written(&head);
    for name in ["X-WeIrD", "x-weird", "ETag", "Content-length", "Server", "Date"] {
        assert_eq!(names(&answered).iter().filter(|found| **found == name).count(), 1, "{name}: {answered}");
    }
    assert!(!answered.to_ascii_lowercase().contains("x-gone"), "{answered}");
}

#[tokio::test]
async fn a_request_that_is_sent_again_keeps_its_case() {
    let (address, mut seen) = upstream(0).await;
    let (silent, mut first) = upstream(1).await;
    let world = world_to(address, true).await;
    let two = route("app.test", "/*", &[silent, address]);
    world.apply(&[("routes/app", two)]).await;
    let mut heads = Vec::new();
    // One of two requests goes first to the node that closes the connection.
    for _ in 0..2 {
        let mut stream = raw::send(world.http(), REQUEST.as_bytes()).await;
        let answered = String::from_utf8_lossy(&raw::until_closed(&mut stream).await).into_owned();
        assert_eq!(statuses(&answered), ["200"], "{answered}");
    }
    while let Ok(head) = first.try_recv() {
        heads.push(head);
    }
    let refused = heads.len();
    while let Ok(head) = seen.try_recv() {
        heads.push(head);
    }
    assert!(refused >= 1 && heads.len() == 3, "one of two requests was sent twice: {heads:?}");
    heads.iter().for_each(|head| is_as_written(head));
}

#[tokio::test]
async fn http_2_names_are_capitalized_for_http_1() {
    let (address, mut seen) = upstream(0).await;
    let world = world_to(address, true).await;
    let reply = world.client("app.test").http(Http::Two).get("/").await.unwrap();
    assert_eq!(reply.headers["x-weird"], "a");
    let head = bounded("a request", seen.recv()).await.unwrap();
    for name in ["Host", "X-Forwarded-For", "X-Real-Ip"] {
        assert!(names(&head).contains(&name), "{name}: {head}");
    }
}

#[tokio::test]
async fn without_the_setting_names_are_lower_case() {
    let (address, mut seen) = upstream(0).await;
    let world = world_to(address, false).await;
    let (head, answered) = exchange(&world, &mut seen).await;
    for head in [&head, &answered] {
        assert!(names(head).iter().all(|name| !name.bytes().any(|byte| byte.is_ascii_uppercase())), "{head}");
    }
}

#[tokio::test]
async fn a_head_in_pieces_keeps_its_case() {
    let (address, mut seen) = upstream(0).await;
    let world = world_to(address, true).await;
    let mut stream = raw::send(world.http(), b"\r\n").await;
    for byte in REQUEST.bytes() {
        stream.write_all(&[byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    let answered = raw::until_closed(&mut stream).await;
    assert_eq!(statuses(&String::from_utf8_lossy(&answered)), ["200"]);
    is_as_written(&bounded("a request", seen.recv()).await.unwrap());
    // And pipelined.
    let two = format!("{}{REQUEST}", REQUEST.replace("close, ", ""));
    let mut stream = raw::send(world.http(), two.as_bytes()).await;
    let answered = raw::until_closed(&mut stream).await;
    assert_eq!(statuses(&String::from_utf8_lossy(&answered)), ["200", "200"]);
    for _ in 0..2 {
        is_as_written(&bounded("a request", seen.recv()).await.unwrap());
    }
}

#[tokio::test]
async fn a_head_behind_chunks_loses_no_field() {
    let (address, mut seen) = upstream(0).await;
    let world = world_to(address, true).await;
    let chunks = "POST / HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    let mut stream = raw::send(world.http(), format!("{chunks}{REQUEST}").as_bytes()).await;
    let answered = raw::until_closed(&mut stream).await;
    assert_eq!(statuses(&String::from_utf8_lossy(&answered)), ["200", "200"]);
    let heads = [seen.recv().await.unwrap(), seen.recv().await.unwrap()];
    let second = heads[1].to_ascii_lowercase();
    assert!(second.contains("\r\nx-forwarded-for: 6.6.6.6, 127.0.0.1\r\n"), "{heads:?}");
    assert!(!second.contains("x-ssl-client"), "{heads:?}");
}
