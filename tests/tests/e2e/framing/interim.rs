//! Interim responses, and expectations: what an upstream sends before its final response reaches
//! the client at once, and a client that waits for 100 waits for the upstream's.

use std::time::{Duration, Instant};

use bytes::Bytes;
use e2e::client::bounded;
use e2e::raw;
use e2e::scripted::{ScriptedGateway, read_until};
use http::{Request, Response, StatusCode};
use tokio::io::AsyncWriteExt;

/// The final response of every test.
const WHOLE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwhole";
const HINTS: &[u8] = b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\nX-Hop: 1\r\n\
                       Connection: close, X-Hop\r\nContent-Length: 500\r\n\r\n";
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
const EXPECTING: &str =
    "POST /up HTTP/1.1\r\nHost: app.test\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n";

fn get() -> Request<()> {
    Request::get("https://app.test/").body(()).unwrap()
}

fn expecting() -> Request<()> {
    let request = Request::post("https://app.test/up").header("expect", "100-continue");
    request.header("content-length", "5").body(()).unwrap()
}

async fn informational(response: &mut h2::client::ResponseFuture) -> Response<()> {
    let next = std::future::poll_fn(|cx| response.poll_informational(cx));
    bounded("an interim response", next).await.expect("not the final response").unwrap()
}

#[tokio::test]
async fn early_hints_arrive_before_the_response() {
    let gateway = ScriptedGateway::start().await;
    let mut client = raw::send(gateway.world.http(), b"GET / HTTP/1.1\r\nHost: app.test\r\n\r\n").await;
    let (mut upstream, _) = gateway.request().await;
    for _ in 0..2 {
        upstream.write_all(HINTS).await.unwrap();
        let hints = read_until(&mut client, "\r\n\r\n").await;
        assert_eq!(hints, "HTTP/1.1 103 Early Hints\r\nlink: </style.css>; rel=preload\r\n\r\n");
    }
    // Those that come together with the final response precede it.
    upstream.write_all(&[CONTINUE, HINTS, b"HTTP/1.1 199 \r\n\r\n", WHOLE].concat()).await.unwrap();
    let rest = read_until(&mut client, "whole").await;
    let statuses: Vec<_> = rest.lines().filter_map(|line| line.strip_prefix("HTTP/1.1 ")).collect();
    assert_eq!(statuses, ["103 Early Hints", "199 ", "200 OK"], "{rest}");
}

#[tokio::test]
async fn early_hints_arrive_over_http_2() {
    let gateway = ScriptedGateway::start().await;
    let mut sender = gateway.http2().await;
    let (mut response, _) = sender.send_request(get(), true).unwrap();
    let (mut upstream, _) = gateway.request().await;
    upstream.write_all(HINTS).await.unwrap();
    let hints = informational(&mut response).await;
    assert_eq!(hints.status(), StatusCode::EARLY_HINTS);
    let fields: Vec<_> = hints.headers().iter().collect();
    assert_eq!(fields, [(&http::header::LINK, &"</style.css>; rel=preload".parse().unwrap())]);
    upstream.write_all(WHOLE).await.unwrap();
    assert_eq!(response.await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn http_1_0_gets_no_interim_response() {
    let gateway = ScriptedGateway::start().await;
    let mut client = raw::send(gateway.world.http(), b"GET / HTTP/1.0\r\nHost: app.test\r\n\r\n").await;
    let (mut upstream, _) = gateway.request().await;
    upstream.write_all(&[HINTS, WHOLE].concat()).await.unwrap();
    let answered = String::from_utf8(raw::until_closed(&mut client).await).unwrap();
    assert!(answered.starts_with("HTTP/1.0 200 OK\r\n") && answered.ends_with("whole"), "{answered}");
}

#[tokio::test]
async fn a_flood_of_interim_responses_is_cut() {
    let gateway = ScriptedGateway::start().await;
    let mut client = raw::send(gateway.world.http(), b"GET / HTTP/1.1\r\nHost: app.test\r\n\r\n").await;
    let (mut upstream, _) = gateway.request().await;
    upstream.write_all(&[HINTS.repeat(16), WHOLE.to_vec()].concat()).await.unwrap();
    let answered = read_until(&mut client, "whole").await;
    assert_eq!(answered.matches("103 Early Hints").count(), 8);
    // The connection goes on.
    client.write_all(b"GET / HTTP/1.1\r\nHost: app.test\r\n\r\n").await.unwrap();
    assert!(read_until(&mut upstream, "\r\n\r\n").await.starts_with("GET / "));
    upstream.write_all(&[HINTS.repeat(17), WHOLE.to_vec()].concat()).await.unwrap();
    let answered = read_until(&mut client, "</html>\r\n").await;
    assert!(answered.contains("HTTP/1.1 502 Bad Gateway\r\n"), "{answered}");
    raw::until_closed(&mut upstream).await;
    gateway.world.node_log().line_with(&["upstream_invalid", "more than 16 interim responses"]).await;
}

#[tokio::test]
async fn a_body_waits_for_the_upstreams_100() {
    let gateway = ScriptedGateway::start().await;
    let mut client = raw::send(gateway.world.http(), EXPECTING.as_bytes()).await;
    let (mut upstream, head) = gateway.request().await;
    assert!(head.contains("\r\nexpect: 100-continue\r\n"), "{head}");
    upstream.write_all(&[HINTS, CONTINUE].concat()).await.unwrap();
    assert!(read_until(&mut client, "\r\n\r\n").await.starts_with("HTTP/1.1 103 "));
    assert_eq!(read_until(&mut client, "\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
    client.write_all(b"hello").await.unwrap();
    assert_eq!(read_until(&mut upstream, "hello").await, "hello");
    upstream.write_all(WHOLE).await.unwrap();
    assert!(read_until(&mut client, "whole").await.starts_with("HTTP/1.1 200 OK\r\n"));
}

#[tokio::test]
async fn a_body_of_http_2_waits_for_the_upstreams_100() {
    let gateway = ScriptedGateway::start().await;
    let mut sender = gateway.http2().await;
    let (mut response, mut body) = sender.send_request(expecting(), false).unwrap();
    let (mut upstream, head) = gateway.request().await;
    assert!(head.contains("\r\nexpect: 100-continue\r\n"), "{head}");
    upstream.write_all(CONTINUE).await.unwrap();
    assert_eq!(informational(&mut response).await.status(), StatusCode::CONTINUE);
    body.send_data(Bytes::from_static(b"hello"), true).unwrap();
    assert_eq!(read_until(&mut upstream, "hello").await, "hello");
    upstream.write_all(WHOLE).await.unwrap();
    assert_eq!(response.await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn a_rejected_body_is_never_sent() {
    const REJECTION: &[u8] = b"HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n";
    let gateway = ScriptedGateway::start().await;
    let mut client = raw::send(gateway.world.http(), EXPECTING.as_bytes()).await;
    let (mut upstream, _) = gateway.request().await;
    upstream.write_all(REJECTION).await.unwrap();
    let answered = read_until(&mut client, "\r\n\r\n").await;
    assert!(answered.starts_with("HTTP/1.1 417 "), "{answered}");
    // Where the next request would begin is unknown to both.
    assert!(raw::until_closed(&mut client).await.is_empty());
    assert!(raw::until_closed(&mut upstream).await.is_empty(), "nothing of a body");

    let mut sender = gateway.http2().await;
    let (response, body) = sender.send_request(expecting(), false).unwrap();
    let (mut upstream, _) = gateway.request().await;
    upstream.write_all(REJECTION).await.unwrap();
    let response = bounded("the final response", response).await.unwrap();
    assert_eq!(response.status(), StatusCode::EXPECTATION_FAILED);
    assert!(raw::until_closed(&mut upstream).await.is_empty(), "nothing of a body");
    drop(body);
}

#[tokio::test]
async fn an_upstream_without_100_gets_the_body_late() {
    let gateway = ScriptedGateway::start().await;
    let mut client = raw::send(gateway.world.http(), EXPECTING.as_bytes()).await;
    let started = Instant::now();
    let (mut upstream, _) = gateway.request().await;
    assert_eq!(read_until(&mut client, "\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
    // The head may have arrived before the clock started.
    assert!(started.elapsed() > Duration::from_millis(500), "{:?}", started.elapsed());
    client.write_all(b"hello").await.unwrap();
    assert_eq!(read_until(&mut upstream, "hello").await, "hello");
    upstream.write_all(WHOLE).await.unwrap();
    assert!(read_until(&mut client, "whole").await.starts_with("HTTP/1.1 200 OK\r\n"));
}

#[tokio::test]
async fn an_expectation_without_a_body_is_dropped() {
    let gateway = ScriptedGateway::start().await;
    for (version, fields) in [
        ("1.1", "Expect: 100-continue\r\n"),
        ("1.1", "Expect: 100-continue\r\nContent-Length: 0\r\n"),
        ("1.1", "Expect: 200-ok\r\nContent-Length: 5\r\n"),
        ("1.0", "Expect: 100-continue\r\nContent-Length: 5\r\n"),
    ] {
        let request = format!("POST / HTTP/{version}\r\nHost: app.test\r\n{fields}\r\nhello");
        let _client = raw::send(gateway.world.http(), request.as_bytes()).await;
        let (_, head) = gateway.request().await;
        assert!(!head.contains("expect"), "{head}");
    }
}
