//! Framing of requests from raw clients: served, or rejected before an upstream sees them.

use e2e::client::{Http, bounded, full};
use e2e::documents::route;
use e2e::raw;
use e2e::world::World;
use http::{HeaderValue, Method};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// All that is answered to these bytes until the gateway closes, over plain HTTP and within TLS.
pub(super) async fn answers(world: &World, bytes: &[u8]) -> [String; 2] {
    let mut plain = raw::send(world.http(), bytes).await;
    let plain = raw::until_closed(&mut plain).await;
    let mut tls = world.client("app.test").http(Http::One).handshake().await.unwrap();
    // The gateway may have rejected the request before it read everything.
    let _ = tls.write_all(bytes).await;
    let _ = tls.flush().await;
    let tls = raw::until_closed(&mut tls).await;
    [plain, tls].map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// The status lines of the responses.
pub(super) fn statuses(answered: &str) -> Vec<&str> {
    answered.lines().filter_map(|line| line.strip_prefix("HTTP/1.1 ")).map(|rest| &rest[..3]).collect()
}

/// The first response on a connection that stays open.
async fn answer(stream: &mut TcpStream) -> String {
    let mut heard = Vec::new();
    bounded("an answer", async {
        loop {
            heard.push(stream.read_u8().await.expect("the connection stays open"));
            let text = String::from_utf8_lossy(&heard);
            let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
            if head.starts_with("HTTP/1.1 100") {
                return text.into_owned();
            }
            let length = head.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
            });
            if body.len() >= length.expect("a length") {
                return text.into_owned();
            }
        }
    })
    .await
}

#[tokio::test]
async fn both_lengths_are_400_and_the_end() {
    let (world, upstream) = World::open(json!({})).await;
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: app.test\r\n\r\n";
    for fields in [
        "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 6\r\n",
        "transfer-encoding: chunked\r\nCONTENT-LENGTH: 6\r\n",
        "Content-Length: 0\r\nX: y\r\nTransfer-Encoding: chunked\r\nContent-Length: 0\r\n",
        "Content-Length:\r\nTransfer-Encoding: chunked\r\n",
        "Content-Length: 6\nTransfer-Encoding: chunked\n",
        "Transfer-Encoding: gzip\r\nContent-Length: 6\r\n",
        "Transfer-Encoding:\r\nContent-Length: 6\r\n",
    ] {
        let request = format!("POST /first HTTP/1.1\r\nHost: app.test\r\n{fields}\r\n0\r\n\r\n{smuggled}");
        for answered in answers(&world, request.as_bytes()).await {
            assert_eq!(statuses(&answered), ["400"], "{fields:?}: {answered}");
            assert!(answered.contains("<h1>400 Bad Request</h1>"), "{answered}");
        }
    }
    assert_eq!(upstream.requests(), 0);
}

#[tokio::test]
async fn both_lengths_are_found_on_a_kept_connection() {
    let (world, upstream) = World::open(json!({})).await;
    let both = "POST /b HTTP/1.1\r\nHost: app.test\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    let host = "HTTP/1.1\r\nHost: app.test\r\n";
    for (what, first) in [
        ("no body", format!("GET /a {host}\r\n")),
        ("a length", format!("POST /a {host}Content-Length: 3\r\n\r\nabc")),
        ("chunks", format!("POST /a {host}Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")),
        ("chunks and trailers", format!("POST /a {host}Transfer-Encoding: chunked\r\n\r\n0\r\nX: y\r\n\r\n")),
    ] {
        // First sequentially, then with half of the head sent along with the first request.
        for half in [0, 60] {
            let before = upstream.requests();
            let mut stream = raw::send(world.http(), format!("{first}{}", &both[..half]).as_bytes()).await;
            for _ in 0..2 {
                let answered = answer(&mut stream).await;
                assert_eq!(statuses(&answered), ["200"], "{what}, {half}: {answered}");
                if half > 0 {
                    break;
                }
                stream.write_all(first.as_bytes()).await.unwrap();
            }
            if half == 0 {
                answer(&mut stream).await;
            }
            stream.write_all(&both.as_bytes()[half..]).await.unwrap();
            let answered = String::from_utf8_lossy(&raw::until_closed(&mut stream).await).into_owned();
            assert_eq!(statuses(&answered), ["400"], "{what}, {half}: {answered}");
            assert_eq!(upstream.requests() - before, if half > 0 { 1 } else { 3 }, "{what}, {half}");
        }
    }
}

#[tokio::test]
async fn both_lengths_are_found_behind_a_request_in_progress() {
    let (world, upstream) = World::open(json!({})).await;
    let both = "POST /b HTTP/1.1\r\nHost: app.test\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    let host = "HTTP/1.1\r\nHost: app.test\r\n";
    for first in [format!("GET /a {host}\r\n"), format!("POST /a {host}Content-Length: 3\r\n\r\nabc")] {
        let before = upstream.requests();
        for answered in answers(&world, format!("{first}{first}{both}{first}").as_bytes()).await {
            assert_eq!(statuses(&answered), ["200", "200", "400"], "{first:?}: {answered}");
        }
        assert_eq!(upstream.requests() - before, 4);
    }
}

#[tokio::test]
async fn a_head_in_pieces_is_the_same_head() {
    let (world, upstream) = World::open(json!({})).await;
    let both = b"POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    let good =
        b"\r\n\r\nPOST / HTTP/1.1\nHost: app.test\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc";
    for (bytes, status) in [(&both[..], "400"), (&good[..], "200")] {
        let mut stream = raw::send(world.http(), &[]).await;
        for byte in bytes {
            // Single bytes with TCP_NODELAY; the last ones may arrive after the request was
            // rejected.
            let _ = stream.write_all(&[*byte]).await;
            tokio::task::yield_now().await;
        }
        let answered = String::from_utf8_lossy(&raw::until_closed(&mut stream).await).into_owned();
        assert_eq!(statuses(&answered), [status], "{answered}");
    }
    assert_eq!(upstream.requests(), 1);
}

#[tokio::test]
async fn only_the_chunked_coding_is_supported() {
    let (world, upstream) = World::open(json!({})).await;
    for (fields, status) in [
        ("Transfer-Encoding: gzip, chunked", "501"),
        ("Transfer-Encoding: cow, chunked", "501"),
        ("Transfer-Encoding: chunked, chunked", "501"),
        ("Transfer-Encoding: identity, chunked", "501"),
        ("Transfer-Encoding: , chunked", "501"),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", "400"),
        ("Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked", "400"),
        ("Transfer-Encoding: chunked, gzip", "400"),
        ("Transfer-Encoding: gzip", "400"),
        ("Transfer-Encoding: xchunked", "400"),
        ("Transfer-Encoding:", "400"),
        ("Transfer-Encoding : chunked", "400"),
        ("Transfer-Encoding: \x0bchunked", "400"),
        ("Transfer-Encoding:\r\n chunked", "400"),
        ("X: y\r\n Transfer-Encoding: chunked", "400"),
    ] {
        let request = format!("POST / HTTP/1.1\r\nHost: app.test\r\n{fields}\r\n\r\n3\r\nabc\r\n0\r\n\r\n");
        for answered in answers(&world, request.as_bytes()).await {
            assert_eq!(statuses(&answered), [status], "{fields:?}: {answered}");
        }
    }
    let old = "POST / HTTP/1.0\r\nHost: app.test\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    for answered in answers(&world, old.as_bytes()).await {
        assert_eq!(statuses(&answered), ["400"], "{answered}");
    }
    assert_eq!(upstream.requests(), 0);
    let good = "POST / HTTP/1.1\r\nHost: app.test\r\nConnection: close\r\nTransfer-Encoding: Chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    for answered in answers(&world, good.as_bytes()).await {
        assert_eq!(statuses(&answered), ["200"], "{answered}");
    }
}

#[tokio::test]
async fn a_length_is_one_number() {
    let (world, upstream) = World::open(json!({})).await;
    for value in [
        "5, 5",
        "+5",
        "-5",
        "0x5",
        "5 5",
        "",
        "99999999999999999999",
        "5\r\nContent-Length: 6",
        "5\r\nContent-Length: 5",
    ] {
        let request = format!("POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: {value}\r\n\r\nabcde");
        for answered in answers(&world, request.as_bytes()).await {
            assert_eq!(statuses(&answered), ["400"], "{value:?}: {answered}");
        }
    }
    assert_eq!(upstream.requests(), 0);
}

#[tokio::test]
async fn both_lengths_in_one_read_are_chunked_and_the_end() {
    let (world, upstream) = World::open(json!({})).await;
    let host = "HTTP/1.1\r\nHost: app.test\r\n";
    let chunks = "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    let smuggled = format!("GET /smuggled {host}\r\n");
    let requests = format!("POST /a {host}{chunks}POST /b {host}Content-Length: 3\r\n{chunks}{smuggled}");
    for answered in answers(&world, requests.as_bytes()).await {
        assert_eq!(statuses(&answered)[..1], ["200"], "{answered}");
        assert!(!answered.contains("/smuggled"), "{answered}");
        // If both arrived in one read, the second request is served by its chunks alone; otherwise
        // it is rejected.
        assert!(!answered.contains("\"content-length\""), "{answered}");
    }
    assert!(upstream.requests() <= 4);
}

#[tokio::test]
async fn an_unread_body_does_not_hide_the_next_head() {
    let (world, upstream) = World::open(json!({})).await;
    let other = "HTTP/1.1\r\nHost: app.test:99\r\n";
    world.apply(&[("routes/app", route("app.test", "/wanted", &[upstream.address()]))]).await;
    let both = "POST /b HTTP/1.1\r\nHost: app.test\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    let data = "x".repeat(100_000);
    for first in [
        format!("POST /a {other}Content-Length: 100000\r\n\r\n{data}"),
        format!("POST /a {other}Transfer-Encoding: chunked\r\n\r\n186a0\r\n{data}\r\n0\r\n\r\n"),
        format!("POST /a {other}Expect: 100-continue\r\nContent-Length: 100000\r\n\r\n{data}"),
    ] {
        let mut stream = raw::send(world.http(), first.as_bytes()).await;
        let mut answered = answer(&mut stream).await;
        if answered.contains(" 100 ") {
            answered = answer(&mut stream).await;
        }
        assert_eq!(statuses(&answered), ["404"], "{answered}");
        // The connection may end after a response that did not wait for the body; if it stays open,
        // heads are still checked.
        let _ = stream.write_all(both.as_bytes()).await;
        let answered = String::from_utf8_lossy(&raw::until_closed(&mut stream).await).into_owned();
        // Read together with the end of the chunks, it is served by its own chunks and ends the
        // connection.
        let behind_chunks = first.contains("chunked")
            && statuses(&answered) == ["404"]
            && answered.to_ascii_lowercase().contains("\r\nconnection: close");
        assert!(behind_chunks || statuses(&answered) == ["400"] || answered.is_empty(), "{answered}");
    }
    assert_eq!(upstream.requests(), 0);
}

#[tokio::test]
async fn pipelined_requests_are_all_answered() {
    let (world, upstream) = World::open(json!({})).await;
    let host = "HTTP/1.1\r\nHost: app.test\r\n";
    let kinds = [
        format!("GET /a {host}\r\n"),
        format!("POST /b {host}Content-Length: 3\r\n\r\nabc"),
        format!("POST /c {host}Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
        format!("HEAD /d {host}\r\n\r\n"),
    ];
    let mut all: String = (0..24).map(|number| kinds[number % 4].as_str()).collect();
    all.push_str(&format!("GET /last {host}Connection: close\r\n\r\n"));
    for answered in answers(&world, all.as_bytes()).await {
        assert_eq!(statuses(&answered), ["200"; 25], "{answered}");
    }
    assert_eq!(upstream.requests(), 50);
}

#[tokio::test]
async fn a_rejected_head_is_answered_after_earlier_requests() {
    let (world, _upstream) = World::open(json!({})).await;
    let mut requests = "GET /a HTTP/1.1\r\nHost: app.test\r\n\r\n".repeat(3);
    requests.push_str(&format!("GET /{} HTTP/1.1\r\nHost: app.test\r\n\r\n", "x".repeat(9000)));
    // Much more than the socket buffers hold follows: the response must not be lost with it.
    requests.push_str(&"x".repeat(1 << 20));
    for answered in answers(&world, requests.as_bytes()).await {
        assert_eq!(statuses(&answered), ["200", "200", "200", "414"], "{answered}");
        assert!(answered.trim_end().ends_with("</html>"), "{answered}");
    }
}

#[tokio::test]
async fn cookies_of_http_2_arrive_as_one() {
    let (world, _upstream) = World::open(json!({})).await;
    let mut session = world.client("app.test").http(Http::Two).connect().await.unwrap();
    let mut request = session.request(Method::GET, "/", full(""));
    for crumb in ["a=1", "b=2; c=3", "d=4"] {
        request.headers_mut().append("cookie", HeaderValue::from_static(crumb));
    }
    let seen = session.fetch(request).await.unwrap().json();
    assert_eq!(seen["headers"]["cookie"], "a=1; b=2; c=3; d=4", "{seen}");
}

#[tokio::test]
async fn a_route_sees_each_cookie_of_http_2() {
    let (world, upstream) = World::open(json!({})).await;
    let mut chosen = route("app.test", "/chosen", &[upstream.address()]);
    chosen["vars"] = serde_json::json!([["cookie_d", "==", "4"], ["http_cookie", "==", "a=1; d=4"]]);
    let fallback = route("app.test", "/*", &["127.0.0.1:1".parse().unwrap()]);
    world.apply(&[("routes/chosen", chosen), ("routes/app", fallback)]).await;
    let mut session = world.client("app.test").http(Http::Two).connect().await.unwrap();
    let mut request = session.request(Method::GET, "/chosen", full(""));
    request.headers_mut().append("cookie", HeaderValue::from_static("a=1"));
    request.headers_mut().append("cookie", HeaderValue::from_static("d=4"));
    assert_eq!(session.fetch(request).await.unwrap().status, 200);
}
