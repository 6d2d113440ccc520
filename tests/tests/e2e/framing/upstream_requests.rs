//! Requests as a raw upstream receives them: framed by the gateway, for every method and both
//! client protocols.

use bytes::Bytes;
use e2e::client::{Body, Http, HttpConnection, bounded, full};
use e2e::documents::weighted;
use e2e::frames::{DATA, END_HEADERS, END_STREAM, FrameConnection, HEADERS, frame};
use e2e::raw;
use e2e::upstream::Upstream;
use e2e::upstream::raw::{AfterResponse, RawRequest, RawResponse, RawUpstream};
use e2e::world::World;
use futures_util::stream;
use http::{Method, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use serde_json::{Value, json};
use tokio::sync::mpsc;

const METHODS: [&str; 7] = ["GET", "HEAD", "DELETE", "OPTIONS", "POST", "PUT", "PROPFIND"];
const HELLO_IN_CHUNKS: &str = "5\r\nhello\r\n0\r\n\r\n";

/// A valid response to `method`.
fn ok(request: &RawRequest) -> RawResponse {
    let body = if request.method() == "HEAD" { "" } else { "ok" };
    RawResponse::keep(format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{body}"))
}

async fn world_to(upstream: &RawUpstream) -> World {
    let settings = json!({"countersign": {"workers": 1}});
    World::builder().settings(settings).open(upstream.address()).start().await
}

/// Sends these bytes in clear text and returns the whole response.
async fn exchange(world: &World, bytes: &str) -> String {
    let mut stream = raw::send(world.http(), bytes.as_bytes()).await;
    String::from_utf8_lossy(&raw::until_closed(&mut stream).await).into_owned()
}

/// The framing fields of a request: `Transfer-Encoding`, then `Content-Length`.
fn framing(request: &RawRequest) -> (Vec<&str>, Vec<&str>) {
    (request.values("transfer-encoding"), request.values("content-length"))
}

/// A body of these frames without a known length.
fn streamed(frames: Vec<Frame<Bytes>>) -> Body {
    BodyExt::boxed(StreamBody::new(stream::iter(frames.into_iter().map(Ok))))
}

#[tokio::test]
async fn a_body_of_http_1_arrives_with_every_method() {
    let mut upstream = RawUpstream::plain(ok).await;
    let world = world_to(&upstream).await;
    for method in METHODS {
        let head = format!("{method} /x HTTP/1.1\r\nHost: app.test\r\nConnection: close\r\n");
        let nothing: [&str; 0] = [];
        for (sent, coding, length, body) in [
            ("Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", "chunked", "", HELLO_IN_CHUNKS),
            ("Transfer-Encoding: Chunked\r\n\r\n0\r\n\r\n", "chunked", "", "0\r\n\r\n"),
            ("Content-Length: 5\r\n\r\nhello", "", "5", "hello"),
            ("Content-Length: 0\r\n\r\n", "", "0", ""),
            ("\r\n", "", "", ""),
        ] {
            let answered = exchange(&world, &format!("{head}{sent}")).await;
            assert!(answered.starts_with("HTTP/1.1 200"), "{method} {sent:?}: {answered}");
            let seen = upstream.request().await;
            let expected = [coding, length].map(|value| if value.is_empty() { vec![] } else { vec![value] });
            assert_eq!(framing(&seen), (expected[0].clone(), expected[1].clone()), "{method} {sent:?}");
            assert_eq!((seen.body.as_str(), seen.version()), (body, "HTTP/1.1"), "{method} {sent:?}");
            assert_eq!(seen.values("connection"), nothing, "{method}");
        }
    }
}

#[tokio::test]
async fn announced_trailers_arrive() {
    let settings = json!({"countersign": {"workers": 1}});
    let world = World::builder().settings(settings).start().await;
    let upstream = Upstream::plain("trailers").await;
    let nodes = json!({upstream.address().to_string(): 1});
    let to = |scheme: &str, uri: &str| json!({"uri": uri, "upstream": {"scheme": scheme, "nodes": nodes, "pass_host": "pass"}});
    let mut rewritten = to("http", "/rewritten");
    rewritten["plugins"] = json!({"proxy-rewrite": {"headers": {"remove": ["x-sum"]}}});
    world
        .apply(&[
            ("ssls/app", world.open_site()),
            ("routes/h1", to("http", "/h1")),
            ("routes/h2", to("grpc", "/h2")),
            ("routes/rewritten", rewritten),
        ])
        .await;
    let trailers =
        [("x-sum", "1"), ("x-other", "2"), ("x-real-ip", "192.0.2.9"), ("x-ssl-client-verify", "SUCCESS")];
    let passed = json!({"x-sum": "1"});
    for http in [Http::One, Http::Two] {
        let mut session = world.client("app.test").http(http).connect().await.unwrap();
        for (path, announced, expected) in [
            ("/h1", "x-sum, x-real-ip, x-ssl-client-verify", &passed),
            ("/h2", "x-sum, x-real-ip, x-ssl-client-verify", &passed),
            ("/h1", "", &Value::Null),
            ("/h2", "", &Value::Null),
            ("/rewritten", "x-sum", &Value::Null),
        ] {
            let fields = trailers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
            let frames = vec![Frame::data("hello".into()), Frame::trailers(fields.collect())];
            let mut request = session.request(Method::POST, path, streamed(frames));
            if !announced.is_empty() {
                request.headers_mut().insert("trailer", announced.parse().unwrap());
            }
            let report = session.fetch(request).await.unwrap().json();
            assert_eq!(&report["trailers"], expected, "{http:?} {path} {announced}: {report}");
            let announced = expected.as_object().map(|_| "x-sum");
            assert_eq!(report["headers"]["trailer"].as_str(), announced, "{http:?} {path}");
        }
    }
}

/// A header block for any method: `:method` and `:path` as literals, `:scheme https`.
fn block(method: &str, fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = vec![0x87];
    let pseudo = [(0x02, method), (0x01, "app.test"), (0x04, "/x")];
    for (index, value) in pseudo {
        block.extend([index, u8::try_from(value.len()).unwrap()]);
        block.extend(value.bytes());
    }
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).unwrap());
            block.extend(text.bytes());
        }
    }
    block
}

#[tokio::test]
async fn a_body_of_http_2_arrives_with_every_method() {
    let mut upstream = RawUpstream::plain(ok).await;
    let world = world_to(&upstream).await;
    for method in METHODS {
        let mut wire = FrameConnection::connect(&world.client("app.test")).await;
        let length = [("content-length", "5")];
        let hello = frame(DATA, END_STREAM, 0, b"hello");
        let empty = frame(DATA, END_STREAM, 0, b"");
        let trailers = frame(HEADERS, END_STREAM | END_HEADERS, 0, b"\x00\x03x-t\x01v");
        let open = frame(DATA, 0, 0, b"hello");
        let cases: [(&[_], Vec<Vec<u8>>, _, _, _); 6] = [
            (&[], vec![], vec![], vec![], ""),
            (&[], vec![hello.clone()], vec!["chunked"], vec![], HELLO_IN_CHUNKS),
            (&[], vec![open.clone(), empty.clone()], vec!["chunked"], vec![], HELLO_IN_CHUNKS),
            (&[], vec![open.clone(), trailers.clone()], vec!["chunked"], vec![], HELLO_IN_CHUNKS),
            (&length, vec![hello], vec![], vec!["5"], "hello"),
            (&length, vec![open, trailers], vec![], vec!["5"], "hello"),
        ];
        for (index, (fields, mut frames, coding, length, body)) in cases.into_iter().enumerate() {
            let stream = 2 * u32::try_from(index).unwrap() + 1;
            let end = if frames.is_empty() { END_STREAM } else { 0 };
            frames.insert(0, frame(HEADERS, END_HEADERS | end, 0, &block(method, fields)));
            for frame in &mut frames {
                frame[5..9].copy_from_slice(&stream.to_be_bytes());
            }
            assert!(wire.send(&frames.concat()).await);
            let seen = upstream.request().await;
            assert_eq!((seen.method(), seen.version()), (method, "HTTP/1.1"));
            assert_eq!(framing(&seen), (coding, length), "{method} {index}");
            assert_eq!(seen.body, body, "{method} {index}");
            assert!(!seen.head.contains("x-t"), "{method} {index}");
        }
    }
}

#[tokio::test]
async fn an_empty_body_of_http_2_that_ends_late_is_a_body() {
    let mut upstream = RawUpstream::plain(ok).await;
    let world = world_to(&upstream).await;
    let mut wire = FrameConnection::connect(&world.client("app.test")).await;
    assert!(wire.send(&frame(HEADERS, END_HEADERS, 1, &block("GET", &[]))).await);
    assert!(wire.send(&frame(DATA, END_STREAM, 1, b"")).await);
    let seen = upstream.request().await;
    let framed = framing(&seen);
    // Depends on whether the body had ended when the request was forwarded; both forms are the same
    // request.
    assert!(framed == (vec![], vec![]) || framed == (vec!["chunked"], vec![]), "{seen:?}");
    assert!(["", "0\r\n\r\n"].contains(&seen.body.as_str()), "{seen:?}");
}

#[tokio::test]
async fn hop_by_hop_request_fields_are_not_forwarded() {
    let mut upstream = RawUpstream::plain(ok).await;
    let world = world_to(&upstream).await;
    let head = "POST /x HTTP/1.1\r\nHost: app.test\r\nConnection: close, X-Private\r\nX-Private: 1\r\n\
                Keep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\nProxy-Authorization: Basic eA==\r\n\
                TE: trailers, gzip\r\nTrailer: X-Real-IP\r\nExpect: 200-ok\r\nX-Own: kept\r\n\
                Transfer_Encoding: gzip\r\nTransfer.Encoding: gzip\r\nContent_Length: 3\r\n\
                Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-Real-IP: 1\r\n\r\n";
    let answered = exchange(&world, head).await;
    assert!(answered.contains("HTTP/1.1 200"), "{answered}");
    let seen = upstream.request().await;
    let lower = seen.head.to_lowercase();
    for name in [
        "connection:",
        "x-private:",
        "keep-alive:",
        "proxy-",
        "te:",
        "trailer:",
        "expect:",
        "transfer_encoding",
        "transfer.encoding",
        "content_length",
    ] {
        assert!(!lower.contains(&format!("\n{name}")), "{name}: {}", seen.head);
    }
    assert_eq!((seen.values("x-own"), seen.body.as_str()), (vec!["kept"], HELLO_IN_CHUNKS));
}

#[tokio::test]
async fn an_http_1_0_connection_is_not_reused() {
    let mut upstream = RawUpstream::plain(|request| match request.target() {
        "/1.0" => {
            RawResponse::keep("HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok")
        }
        "/1.0/204" => RawResponse::keep("HTTP/1.0 204 No Content\r\nConnection: keep-alive\r\n\r\n"),
        _ => ok(request),
    })
    .await;
    let world = world_to(&upstream).await;
    for http in [Http::One, Http::Two] {
        for first in ["/1.0", "/1.0/204"] {
            let mut session = world.client("app.test").http(http).connect().await.unwrap();
            assert!(session.get(first).await.unwrap().status.is_success());
            let before = upstream.request().await.connection;
            let body = streamed(vec![Frame::data(Bytes::from_static(b"hello"))]);
            let request = session.request(Method::POST, "/post", body);
            assert_eq!(session.fetch(request).await.unwrap().status, StatusCode::OK);
            let post = upstream.request().await;
            assert_eq!((post.version(), post.body.as_str()), ("HTTP/1.1", HELLO_IN_CHUNKS), "{post:?}");
            assert!(post.connection > before, "{http:?} {first}: {post:?}");
        }
    }
}

/// Sends `first`, and more of the body only on demand.
async fn half_sent(
    session: &mut HttpConnection,
    first: &'static str,
) -> (mpsc::Sender<&'static str>, http::Response<hyper::body::Incoming>) {
    let (pieces, stream) = mpsc::channel::<&'static str>(1);
    let stream = futures_util::stream::unfold(stream, |mut stream| async move {
        stream.recv().await.map(|piece| (Ok(Frame::data(Bytes::from_static(piece.as_bytes()))), stream))
    });
    pieces.send(first).await.unwrap();
    let request = session.request(Method::POST, "/early", BodyExt::boxed(StreamBody::new(stream)));
    (pieces, session.send(request).await.unwrap())
}

#[tokio::test]
async fn a_connection_with_an_early_response_is_not_reused() {
    for then in [AfterResponse::Keep, AfterResponse::Fin, AfterResponse::Reset] {
        let mut upstream = RawUpstream::plain(move |request| match request.target() {
            "/early" => {
                RawResponse::keep("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno").early().then(then)
            }
            _ => ok(request),
        })
        .await;
        let world = world_to(&upstream).await;
        for http in [Http::One, Http::Two] {
            let mut session = world.client("app.test").http(http).connect().await.unwrap();
            let (pieces, answer) = half_sent(&mut session, "half of it").await;
            let status = answer.status();
            // RST may overtake the response.
            assert!(
                status == StatusCode::FORBIDDEN || then == AfterResponse::Reset,
                "{http:?} {then:?}: {status}"
            );
            let early = upstream.request().await.connection;
            let body = bounded("the answer", answer.into_body().collect()).await;
            assert!(body.is_ok() || then == AfterResponse::Reset, "{http:?} {then:?}");
            drop(pieces);
            let mut other = world.client("app.test").http(http).connect().await.unwrap();
            assert_eq!(other.get("/next").await.unwrap().status, StatusCode::OK);
            let next = upstream.request().await;
            assert!(next.connection > early, "{http:?} {then:?}: {next:?}");
        }
    }
}

#[tokio::test]
async fn a_request_with_a_sent_body_is_never_retried() {
    let broken = |request: &RawRequest| match request.target() {
        "/fin" => RawResponse::keep("").then(AfterResponse::Fin),
        "/reset" => RawResponse::keep("").then(AfterResponse::Reset),
        "/early/fin" => RawResponse::keep("").early().then(AfterResponse::Fin),
        "/early/reset" => RawResponse::keep("").early().then(AfterResponse::Reset),
        "/garbage" => {
            RawResponse::keep("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx")
        }
        _ => ok(request),
    };
    let (mut one, mut two) = (RawUpstream::plain(broken).await, RawUpstream::plain(broken).await);
    let world = World::builder().settings(json!({"countersign": {"workers": 1}})).start().await;
    let upstream = json!({"nodes": weighted(&[one.address(), two.address()])});
    world.apply(&[("routes/all", json!({"uri": "/*", "upstream": upstream}))]).await;
    for method in ["GET", "PUT", "POST"] {
        for path in ["/fin", "/reset", "/early/fin", "/early/reset", "/garbage"] {
            // On a new connection and on a reused one.
            for warm in [false, true] {
                let mut session = world.plain("app.test").await;
                if warm {
                    for _ in 0..2 {
                        assert_eq!(session.get("/").await.unwrap().status, StatusCode::OK);
                    }
                }
                for node in [&mut one, &mut two] {
                    node.waiting();
                }
                let method = Method::from_bytes(method.as_bytes()).unwrap();
                let request = session.request(method.clone(), path, full("body"));
                let reply = session.fetch(request).await.unwrap();
                assert_eq!(reply.status, StatusCode::BAD_GATEWAY, "{method} {path}");
                let seen = one.waiting().len() + two.waiting().len();
                assert_eq!(seen, 1, "{method} {path} warm: {warm}");
            }
        }
    }
}
