//! Framing of responses from raw upstreams: forwarded or rejected, and whether the connection is
//! reused.

use e2e::client::{Http, HttpConnection, Reply, full};
use e2e::documents::route;
use e2e::raw;
use e2e::upstream::raw::{AfterResponse, RawRequest, RawResponse, RawUpstream};
use e2e::world::World;
use http::{Method, StatusCode};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Both protocols of a client.
const BOTH: [Http; 2] = [Http::One, Http::Two];
/// A valid response.
const WHOLE: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwhole";

async fn world_to(upstream: &RawUpstream) -> World {
    let settings = json!({"countersign": {"workers": 1}});
    World::builder().settings(settings).open(upstream.address()).start().await
}

/// An upstream that answers `/<index>` with the response of that index, and other paths with a
/// valid one.
async fn answering(answers: &[&str]) -> RawUpstream {
    let answers: Vec<String> = answers.iter().map(|answer| (*answer).to_owned()).collect();
    RawUpstream::plain(move |request| {
        let index: Option<usize> = request.target().trim_start_matches('/').parse().ok();
        RawResponse::keep(index.map_or(WHOLE, |index| answers[index].as_str()))
    })
    .await
}

async fn session(world: &World, http: Http) -> HttpConnection {
    world.client("app.test").http(http).connect().await.unwrap()
}

async fn ask(session: &mut HttpConnection, method: &str, path: &str) -> Reply {
    let method = Method::from_bytes(method.as_bytes()).unwrap();
    let request = session.request(method, path, full(""));
    session.fetch(request).await.unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Asserts that each response to each method becomes 502 over both protocols, and that its
/// connection is not reused.
async fn refused(methods: &[&str], answers: &[&str]) {
    let mut upstream = answering(answers).await;
    let world = world_to(&upstream).await;
    for http in BOTH {
        let mut session = session(&world, http).await;
        for (index, answer) in answers.iter().enumerate() {
            for method in methods {
                let reply = ask(&mut session, method, &format!("/{index}")).await;
                assert_eq!(reply.status, StatusCode::BAD_GATEWAY, "{http:?} {method}: {answer:?}");
                let last = upstream.waiting().last().unwrap().connection;
                assert_eq!(ask(&mut session, "GET", "/next").await.text(), "whole");
                let next = upstream.request().await.connection;
                assert!(next > last, "{http:?} {method}: used again after {answer:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_length_beside_chunked_is_rejected() {
    const CHUNKS: &str = "\r\n\r\n5\r\nhello\r\n5\r\nworld\r\n0\r\n\r\n";
    let answers = [
        format!("HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked{CHUNKS}"),
        format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 10{CHUNKS}"),
        format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 0{CHUNKS}"),
        format!("HTTP/1.1 500 Oops\r\nTransfer-Encoding: chunked\r\nContent-Length: x{CHUNKS}"),
    ];
    refused(&["GET", "POST"], &answers.each_ref().map(String::as_str)).await;
    let heads = answers.map(|answer| answer.split_once("\r\n\r\n").unwrap().0.to_owned() + "\r\n\r\n");
    refused(&["HEAD"], &heads.each_ref().map(String::as_str)).await;
}

#[tokio::test]
async fn lengths_that_are_not_one_number_are_rejected() {
    refused(
        &["GET", "HEAD"],
        &[
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nContent-Length: 5,\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nContent-Length: 0x5\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nContent-Length: 5 5\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nContent-Length: 5.0\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nContent-Length: \u{663}\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551616\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551615\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nContent-Length : 5\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nContent-Length:\r\n 5\r\n\r\nhello",
            "HTTP/1.1 304 Not Modified\r\nContent-Length: 5, 5\r\n\r\n",
            "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\nContent-Length: 5\r\n\r\n",
        ],
    )
    .await;
}

#[tokio::test]
async fn codings_other_than_one_chunked_are_rejected() {
    const CHUNKS: &str = "\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    let fields = [
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: cow, chunked",
        "Transfer-Encoding: chunked, chunked",
        "Transfer-Encoding: chunked, gzip",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: gzip",
        "Transfer-Encoding: gzip",
        "Transfer-Encoding: identity",
        "Transfer-Encoding: chunked;q=1",
        "Transfer-Encoding: chunked,",
        "Transfer-Encoding: , chunked",
        "Transfer-Encoding: \"chunked\"",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding:",
        "Transfer-Encoding: \u{b}chunked",
        "Transfer-Encoding : chunked",
        "Transfer-Encoding:\r\n chunked",
    ];
    let mut answers = fields.map(|field| format!("HTTP/1.1 200 OK\r\n{field}{CHUNKS}")).to_vec();
    answers.push(format!("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked{CHUNKS}"));
    answers.push("HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: gzip, chunked\r\n\r\n".to_owned());
    refused(&["GET", "POST"], &answers.iter().map(String::as_str).collect::<Vec<_>>()).await;
}

#[tokio::test]
async fn non_final_responses_are_rejected() {
    refused(
        &["GET"],
        &[
            "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
            "HTTP/1.1 101 Switching Protocols\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 103 Early Hints\r\nContent-Length: 5\r\n\r\nhelloHTTP/1.1 200 OK\r\n\r\n",
            "HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.2 200 OK\r\nContent-Length: 0\r\n\r\n",
            "ICY 200 OK\r\nContent-Length: 0\r\n\r\n",
            "hello, this is HTTP/0.9\r\n\r\n",
        ],
    )
    .await;
}

#[tokio::test]
async fn chunked_is_case_insensitive() {
    let fields = ["chunked", "CHUNKED", "Chunked", "  chunked  ", "\tchunked"];
    let answers = fields.map(|value| {
        format!(
            "HTTP/1.1 200 OK\r\nTrailer: X-T\r\nTransfer-Encoding: {value}\r\n\r\n\
             5;name=\"value\"\r\nhello\r\n00005\r\nworld\r\n0\r\nX-T: trailer\r\nConnection: close\r\n\r\n"
        )
    });
    let mut upstream = answering(&answers.each_ref().map(String::as_str)).await;
    let world = world_to(&upstream).await;
    for http in BOTH {
        let mut session = session(&world, http).await;
        for (index, answer) in answers.iter().enumerate() {
            let request = session.request(Method::GET, &format!("/{index}"), full(""));
            let response = session.send(request).await.unwrap();
            let (head, body) = response.into_parts();
            let body = http_body_util::BodyExt::collect(body).await.unwrap();
            // Over HTTP/1 this client has not said that it takes them; those of a head are dropped.
            let trailers = body.trailers().map(|trailers| format!("{trailers:?}"));
            let expected = (http == Http::Two).then(|| r#"{"x-t": "trailer"}"#.to_owned());
            assert_eq!(trailers, expected, "{http:?} {answer:?}");
            assert_eq!(body.to_bytes(), "helloworld", "{http:?} {answer:?}");
            assert!(!head.headers.contains_key("trailer"), "{http:?} {answer:?}");
        }
    }
    let connections: Vec<_> = upstream.waiting().iter().map(|request| request.connection).collect();
    assert_eq!(connections, [1; 10], "one connection is used again and again");
}

/// Over HTTP/1 trailers go to a client that takes them, if the head announces them.
#[tokio::test]
async fn trailers_reach_a_client_that_takes_them() {
    let answer = "HTTP/1.1 200 OK\r\nTrailer: X-T, Content-Type\r\nTransfer-Encoding: chunked\r\n\r\n\
                  5\r\nhello\r\n0\r\nX-T: end\r\nX-Other: 1\r\nContent-Type: text/html\r\n\r\n";
    let upstream = answering(&[answer]).await;
    let world = world_to(&upstream).await;
    for (fields, takes) in
        [("TE: trailers\r\nConnection: TE, close\r\n", true), ("Connection: close\r\n", false)]
    {
        let request = format!("GET /0 HTTP/1.1\r\nHost: app.test\r\n{fields}\r\n");
        let mut client = raw::send(world.http(), request.as_bytes()).await;
        let all = String::from_utf8(raw::until_closed(&mut client).await).unwrap();
        let (head, body) = all.split_once("\r\n\r\n").unwrap();
        assert_eq!(head.contains("\r\ntrailer: x-t\r\n"), takes, "{head}");
        let expected = if takes { "5\r\nhello\r\n0\r\nx-t: end\r\n\r\n" } else { "5\r\nhello\r\n0\r\n\r\n" };
        assert_eq!(body, expected);
    }
}

#[tokio::test]
async fn responses_without_a_body_end_with_their_head() {
    let answers = [
        "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n",
        "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
        "HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 204 \r\n\r\n",
    ];
    let mut upstream = answering(&answers).await;
    let world = world_to(&upstream).await;
    for http in BOTH {
        let mut session = session(&world, http).await;
        for (index, answer) in answers.iter().enumerate() {
            let reply = ask(&mut session, "GET", &format!("/{index}")).await;
            assert!(answer.contains(&format!(" {} ", reply.status.as_u16())), "{http:?} {answer:?}");
            assert!(reply.body.is_empty(), "{http:?} {answer:?}");
            let length = reply.headers.get("content-length").map(|value| value.to_str().unwrap());
            // RFC 9110 section 8.6: not allowed in a 204; in a 304 it is the length of the 200.
            let allowed: &[Option<&str>] = match reply.status.as_u16() {
                204 => &[None],
                304 => &[None, Some("5")],
                _ => &[Some("0")],
            };
            assert!(allowed.contains(&length), "{http:?} {answer:?}: {length:?}");
            assert!(!reply.headers.contains_key("link"), "{http:?} {answer:?}");
        }
        let head = ask(&mut session, "HEAD", "/3").await;
        assert_eq!((head.status, head.body.len()), (StatusCode::NOT_MODIFIED, 0), "{http:?}");
    }
    let connections: Vec<_> = upstream.waiting().iter().map(|request| request.connection).collect();
    assert_eq!(connections, [1; 16], "one connection is used again and again");
}

#[tokio::test]
async fn a_head_response_keeps_its_length_and_has_no_body() {
    let answers = [
        "HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    ];
    let mut upstream = answering(&answers).await;
    let world = world_to(&upstream).await;
    for http in BOTH {
        let mut session = session(&world, http).await;
        for (path, length) in [("/0", Some("500")), ("/1", None)] {
            let reply = ask(&mut session, "HEAD", path).await;
            let declared = reply.headers.get("content-length").map(|value| value.to_str().unwrap());
            assert_eq!((declared, reply.body.len()), (length, 0), "{http:?} {path}");
        }
    }
    let connections: Vec<_> = upstream.waiting().iter().map(|request| request.connection).collect();
    assert_eq!(connections, [1; 4]);
}

#[tokio::test]
async fn bytes_after_a_response_never_answer_another_request() {
    let evil = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
    let answers = [
        format!("{WHOLE}{evil}"),
        format!("HTTP/1.1 204 No Content\r\nContent-Length: {}\r\n\r\n{evil}", evil.len()),
        format!("HTTP/1.1 304 Not Modified\r\nContent-Length: {}\r\n\r\n{evil}", evil.len()),
        format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{evil}"),
        format!("{WHOLE}\r\n\r\n"),
    ];
    let mut upstream = answering(&answers.each_ref().map(String::as_str)).await;
    let world = world_to(&upstream).await;
    for http in BOTH {
        let mut session = session(&world, http).await;
        for (index, answer) in answers.iter().enumerate() {
            ask(&mut session, "GET", &format!("/{index}")).await;
            let last = upstream.request().await.connection;
            assert_eq!(ask(&mut session, "GET", "/next").await.text(), "whole", "{http:?} {answer:?}");
            let next = upstream.request().await.connection;
            assert!(next > last, "{http:?}: used again after {answer:?}");
        }
    }
}

/// What a plain HTTP/1 client reads until `end`.
async fn read_until(stream: &mut tokio::net::TcpStream, end: &str) -> String {
    let mut read = Vec::new();
    e2e::client::bounded(end, async {
        while !String::from_utf8_lossy(&read).contains(end) {
            assert!(stream.read_buf(&mut read).await.unwrap() > 0, "{}", String::from_utf8_lossy(&read));
        }
    })
    .await;
    String::from_utf8_lossy(&read).into_owned()
}

#[tokio::test]
async fn an_http_1_0_upstream_keeps_the_client_connection() {
    let answers = [
        "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nwhole",
        "HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nwhole",
    ];
    let upstream = RawUpstream::plain(move |request| match request.target() {
        "/1.0/kept" => RawResponse::keep(answers[0]),
        "/1.0/length" => RawResponse::keep(answers[1]),
        _ => RawResponse::keep("HTTP/1.0 200 OK\r\n\r\nwhole").then(AfterResponse::Fin),
    });
    let upstream = upstream.await;
    let world = world_to(&upstream).await;
    let mut stream = raw::send(world.http(), b"").await;
    for path in ["/1.0/kept", "/1.0/length", "/1.0/close", "/1.0/kept"] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: app.test\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let end = if path == "/1.0/close" { "0\r\n\r\n" } else { "whole" };
        let answer = read_until(&mut stream, end).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{path}: {answer}");
        assert!(!answer.to_lowercase().contains("connection:"), "{path}: {answer}");
    }
    let mut session = session(&world, Http::Two).await;
    for path in ["/1.0/kept", "/1.0/length", "/1.0/close"] {
        assert_eq!(ask(&mut session, "GET", path).await.text(), "whole", "{path}");
    }
}

#[tokio::test]
async fn an_http_1_0_client_gets_an_http_1_0_response() {
    let upstream = answering(&[]).await;
    let world = world_to(&upstream).await;
    let mut kept =
        raw::send(world.http(), b"GET / HTTP/1.0\r\nHost: app.test\r\nConnection: keep-alive\r\n\r\n").await;
    let answer = read_until(&mut kept, "whole").await;
    assert!(answer.to_lowercase().contains("connection: keep-alive\r\n"), "{answer}");
    let mut closed = raw::send(world.http(), b"GET / HTTP/1.0\r\nHost: app.test\r\n\r\n").await;
    let answer = String::from_utf8(raw::until_closed(&mut closed).await).unwrap();
    assert!(answer.ends_with("whole") && !answer.contains("chunked"), "{answer}");
}

#[tokio::test]
async fn hop_by_hop_response_fields_are_not_forwarded() {
    let answer = "HTTP/1.1 200 OK\r\nConnection: close, X-Private\r\nX-Private: 1\r\nKeep-Alive: timeout=5\r\n\
                  Proxy-Connection: keep-alive\r\nProxy-Authenticate: Basic\r\nUpgrade: h2c\r\nTE: trailers\r\n\
                  Trailer: X-T\r\nX-Own: kept\r\nContent-Length: 5\r\n\r\nwhole";
    let upstream = answering(&[answer]).await;
    let world = world_to(&upstream).await;
    for http in BOTH {
        let mut session = session(&world, http).await;
        let reply = ask(&mut session, "GET", "/0").await;
        assert_eq!((reply.text().as_str(), &reply.headers["x-own"]), ("whole", &"kept".parse().unwrap()));
        for name in [
            "connection",
            "x-private",
            "keep-alive",
            "proxy-connection",
            "proxy-authenticate",
            "upgrade",
            "te",
            "trailer",
        ] {
            assert!(!reply.headers.contains_key(name), "{http:?} {name}: {:?}", reply.headers);
        }
        assert_eq!(ask(&mut session, "GET", "/").await.status, StatusCode::OK, "{http:?}: the client stays");
    }
}

/// The response has framing of its own, so the end of the connection does not matter.
const LENGTH: &str = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf of it";

/// Answers `/cut/...` without a length and ends without close_notify; `/end/...` with it.
fn close_delimited(request: &RawRequest) -> RawResponse {
    let answer = RawResponse::keep("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nhalf of it");
    match request.target() {
        target if target.starts_with("/cut") => answer.then(AfterResponse::Fin),
        target if target.starts_with("/reset") => answer.then(AfterResponse::Reset),
        target if target.starts_with("/end") => answer.then(AfterResponse::CloseNotify),
        target if target.starts_with("/length") => RawResponse::keep(LENGTH).then(AfterResponse::Fin),
        _ => RawResponse::keep(WHOLE),
    }
}

#[tokio::test]
async fn a_response_truncated_in_tls_is_incomplete() {
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let world = World::builder().settings(json!({"countersign": {"workers": 1}})).start().await;
        let credential = world.credentials.upstreams.server(&["up.test"]);
        let upstream = RawUpstream::tls(&credential, &[version], close_delimited).await;
        let mut route = route("app.test", "/*", &[upstream.address()]);
        route["upstream"]["scheme"] = json!("https");
        world.apply(&[("ssls/app", world.open_site()), ("routes/app", route)]).await;
        // On a new connection, and on one that has moved to the own record layer.
        for before in [0, 6] {
            for (path, whole) in [("/cut", false), ("/reset", false), ("/end", true), ("/length", true)] {
                for http in BOTH {
                    let mut session = session(&world, http).await;
                    for _ in 0..before {
                        assert_eq!(ask(&mut session, "GET", "/").await.text(), "whole");
                    }
                    let request = session.request(Method::GET, path, full(""));
                    let reply = session.fetch(request).await;
                    let read = reply.ok().map(|reply| (reply.status.as_u16(), reply.text()));
                    match read {
                        Some((200, text)) if whole => assert_eq!(text, "half of it"),
                        Some((502, _)) | None if !whole => {}
                        read => panic!("{version:?} {http:?} {path} after {before}: {read:?}"),
                    }
                }
                let request = format!("GET {path} HTTP/1.0\r\nHost: app.test\r\n\r\n");
                let mut tls = world.client("app.test").handshake().await.unwrap();
                tls.write_all(request.as_bytes()).await.unwrap();
                let mut read = Vec::new();
                let ended = e2e::client::bounded("the answer's end", tls.read_to_end(&mut read)).await;
                let refused = read.starts_with(b"HTTP/1.0 502");
                assert!(refused || ended.is_ok() == whole, "{version:?} HTTP/1.0 {path}: {ended:?}");
            }
        }
    }
}

#[tokio::test]
async fn in_clear_text_fin_ends_a_response_and_reset_breaks_it() {
    let upstream = RawUpstream::plain(close_delimited).await;
    let world = world_to(&upstream).await;
    for http in BOTH {
        let mut session = session(&world, http).await;
        assert_eq!(ask(&mut session, "GET", "/cut").await.text(), "half of it", "{http:?}");
        let request = session.request(Method::GET, "/reset", full(""));
        let read = session.fetch(request).await.ok().map(|reply| reply.status.as_u16());
        assert!(matches!(read, None | Some(502)), "{http:?}: {read:?}");
    }
    // RFC 9112 section 8: FIN truncates a response with a length or chunks, too.
    let request = b"GET /reset HTTP/1.1\r\nHost: app.test\r\nConnection: close\r\n\r\n";
    let mut stream = raw::send(world.http(), request).await;
    let read = String::from_utf8(raw::until_closed(&mut stream).await).unwrap();
    assert!(!read.ends_with("0\r\n\r\n") || read.starts_with("HTTP/1.1 502"), "{read}");
}

#[tokio::test]
async fn a_response_shorter_than_its_framing_is_incomplete() {
    let answers = [
        "HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhalf of it",
        "HTTP/1.0 200 OK\r\nContent-Length: 50\r\n\r\nhalf of it",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-T: 1\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n50\r\nhello",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloXX0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\nhello\n0\n\n",
        "HTTP/1.1 200 OK\r\nContent-Len",
    ];
    let upstream = RawUpstream::plain(move |request| {
        let index: usize = request.target().trim_start_matches('/').parse().unwrap();
        RawResponse::keep(answers[index]).then(AfterResponse::Fin)
    });
    let upstream = upstream.await;
    let world = world_to(&upstream).await;
    for http in BOTH {
        for (index, answer) in answers.iter().enumerate() {
            let mut session = session(&world, http).await;
            let request = session.request(Method::GET, &format!("/{index}"), full(""));
            let read = session.fetch(request).await.ok().map(|reply| reply.status.as_u16());
            assert!(matches!(read, None | Some(502)), "{http:?} {answer:?}: {read:?}");
        }
    }
}
