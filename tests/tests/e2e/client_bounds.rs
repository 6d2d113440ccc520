//! Limits of one client: a client that does not read its socket loses its upstream connections
//! after `send_timeout` and costs bounded memory until then, and no client has more than
//! `requests_per_client` concurrent requests.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use e2e::client::{Http, bounded};
use e2e::documents::route;
use e2e::frames::{
    self, END_HEADERS, END_STREAM, FrameConnection, HEADERS, PING, PREFACE, frame, get, window_settings,
};
use e2e::resources::memory_peak;
use e2e::world::World;
use e2e::{raw, world};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::timeout;

/// Larger than all buffers on the way.
const LARGE: &str = "/sized?bytes=100000000";
/// Bounds the growth of the gateway's peak memory by a client that does not read, in bytes.
const MEMORY: u64 = 24 << 20;
/// The bytes that a slow client reads between two pauses: the kernel rarely reports less than a
/// third of its buffer.
const LITTLE: usize = 1 << 20;
/// Bounds how long a client that does not read is served.
const NOT_AFTER: Duration = Duration::from_secs(15);

fn impatient() -> Value {
    json!({"nginx_config": {"http": {"send_timeout": "1s"}}})
}

#[tokio::test]
async fn a_client_that_does_not_read_is_disconnected() {
    let (world, upstream) = World::open(impatient()).await;
    let one = format!("GET {LARGE} HTTP/1.1\r\nHost: app.test\r\n\r\n").into_bytes();
    let two = [PREFACE, &window_settings((1 << 31) - 1), &frames::window_update(0, 1 << 30)].concat();
    let two = [two, get(1, "app.test", LARGE), get(3, "app.test", LARGE)].concat();
    for (what, http, bytes, requests) in [
        ("HTTP/1", Http::One, one.clone(), 1),
        ("HTTP/1, pipelined", Http::One, one.repeat(50), 1),
        ("HTTP/2", Http::Two, two, 2),
    ] {
        let asked = upstream.requests();
        let client = world.client("app.test").http(http);
        let mut tls = client.handshake_with(Arc::new(client.config())).await.unwrap();
        tls.write_all(&bytes).await.unwrap();
        tls.flush().await.unwrap();
        upstream.arrived(asked + requests).await;
        let started = Instant::now();
        upstream.open_at_most(0).await;
        assert!(started.elapsed() < NOT_AFTER, "{what}: {:?}", started.elapsed());
        // The kernel delivers what it had accepted, then the end.
        raw::until_closed(&mut tls).await;
        assert_eq!(upstream.requests(), asked + requests, "{what}: nothing of the rest was asked for");
    }
    world.node_log().line_with(&["send_timeout"]).await;
}

#[tokio::test]
async fn a_slow_reader_is_served() {
    // Each pause is shorter than the limit, their sum longer.
    let settings = json!({"nginx_config": {"http": {"send_timeout": "4s"}}});
    let (world, upstream) = World::open(settings).await;
    let client = world.client("app.test").http(Http::One);
    let mut tls = client.handshake().await.unwrap();
    let request = "GET /sized?bytes=30000000 HTTP/1.1\r\nHost: app.test\r\nConnection: close\r\n\r\n";
    tls.write_all(request.as_bytes()).await.unwrap();
    let (mut read, mut buffer) = (0, vec![0; 1 << 20]);
    let mut silent = TcpStream::connect(upstream.address()).await.unwrap();
    loop {
        // The upstream sends nothing during this pause.
        assert!(timeout(Duration::from_millis(200), silent.read(&mut [0])).await.is_err());
        let mut n = 0;
        while n < LITTLE {
            match bounded("more of the answer", tls.read(&mut buffer)).await.unwrap() {
                0 => return assert!(read + n > 30_000_000, "{}", read + n),
                more => n += more,
            }
        }
        read += n;
    }
}

#[tokio::test]
async fn frames_of_a_client_that_does_not_read_use_no_memory() {
    let settings = json!({"nginx_config": {"http": {"send_timeout": "3s"}}});
    let (world, upstream) = World::open(settings).await;
    let before = memory_peak(world.node_id());
    let windows = [&window_settings((1 << 31) - 1)[..], &frames::window_update(0, 1 << 30)].concat();
    let requests = |round: u32| -> Vec<u8> {
        (100 * round..100 * (round + 1))
            .flat_map(|n| get(3 + 2 * n, "app.test", "/fields?fields=60&bytes=500"))
            .collect()
    };
    let pings = |_| frame(PING, 0, 0, &[7; 8]).repeat(500);
    let settings = |_| window_settings((1 << 31) - 1).repeat(500);
    type Flood<'a> = &'a dyn Fn(u32) -> Vec<u8>;
    let floods: [(&str, Flood<'_>); 3] =
        [("requests", &requests), ("PINGs", &pings), ("SETTINGS", &settings)];
    for (what, flood) in floods {
        let client = world.client("app.test").http(Http::Two);
        let mut tls = client.handshake_with(Arc::new(client.config())).await.unwrap();
        tls.write_all(&[PREFACE, &windows, &get(1, "app.test", LARGE)].concat()).await.unwrap();
        let started = Instant::now();
        // Never read. The end is a write error, or a byte that is not accepted before the gateway
        // closes.
        for round in 0.. {
            let bytes = flood(round);
            let sent = timeout(NOT_AFTER, async {
                tls.write_all(&bytes).await?;
                tls.flush().await
            });
            if !matches!(sent.await, Ok(Ok(()))) {
                break;
            }
            assert!(started.elapsed() < NOT_AFTER, "{what}: still taken in round {round}");
        }
        upstream.open_at_most(10_000).await;
        let grown = memory_peak(world.node_id()).saturating_sub(before);
        assert!(grown < MEMORY, "{what}: {grown} bytes more than before");
    }
    assert_eq!(world.client("app.test").get("/after").await.unwrap().status, 200);
}

const LIMIT: u64 = 5;

/// One worker, so that it counts all requests together.
fn limited() -> Value {
    json!({"countersign": {"workers": 1, "limits": {"requests_per_client": LIMIT}}})
}

async fn dial(from: [u8; 4], to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((from, 0).into()).unwrap();
    socket.connect(to).await.unwrap()
}

/// Sends a request that the upstream holds, with this header line.
async fn hold(world: &world::World, from: [u8; 4], line: &str) -> TcpStream {
    let mut stream = dial(from, world.http()).await;
    let request = format!("GET /hold HTTP/1.1\r\nHost: app.test\r\n{line}Connection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

async fn answer(mut stream: TcpStream) -> String {
    String::from_utf8_lossy(&raw::until_closed(&mut stream).await).into_owned()
}

#[tokio::test]
async fn concurrent_requests_of_a_client_are_limited() {
    let (world, upstream) = World::open(limited()).await;
    let mut held = Vec::new();
    for count in 1..=LIMIT {
        held.push(hold(&world, [127, 0, 0, 1], "").await);
        upstream.arrived(count).await;
    }
    let refused = answer(hold(&world, [127, 0, 0, 1], "").await).await;
    assert!(refused.starts_with("HTTP/1.1 503 "), "{refused}");
    // The client's claim about its address does not count.
    let claimed =
        hold(&world, [127, 0, 0, 1], "X-Real-IP: 192.0.2.1\r\nX-Forwarded-For: 192.0.2.1\r\n").await;
    assert!(answer(claimed).await.starts_with("HTTP/1.1 503 "));
    let other = hold(&world, [127, 0, 0, 2], "").await;
    upstream.arrived(LIMIT + 1).await;
    world.node_log().line_with(&["too_many_requests", "countersign.limits.requests_per_client"]).await;
    let metrics = world.status("/metrics").await.text();
    assert!(metrics.contains("countersign_errors_total{reason=\"too_many_requests\"} 2"), "{metrics}");
    // A finished request makes room.
    drop(held.pop());
    upstream.open_at_most(LIMIT).await;
    let next = hold(&world, [127, 0, 0, 1], "").await;
    upstream.arrived(LIMIT + 2).await;
    upstream.open_gate();
    for stream in held.into_iter().chain([other, next]) {
        assert!(answer(stream).await.starts_with("HTTP/1.1 200 "));
    }
}

#[tokio::test]
async fn each_http2_stream_counts_as_a_request() {
    let (world, upstream) = World::open(limited()).await;
    let mut wire = FrameConnection::connect(&world.client("app.test")).await;
    let block = frames::request_block("GET", "app.test", "/hold");
    let hold = |number: u32| frame(HEADERS, END_HEADERS | END_STREAM, 1 + 2 * number, &block);
    assert!(wire.send(&(0..20).flat_map(hold).collect::<Vec<_>>()).await);
    upstream.arrived(LIMIT).await;
    wire.until("the others are refused", |heard| heard.whole.len() == 15).await;
    upstream.open_gate();
    wire.until("those under way are answered", |heard| heard.whole.len() == 20).await;
    assert_eq!(upstream.requests(), LIMIT);
}

#[tokio::test]
async fn a_proxys_clients_are_limited_separately() {
    let mut settings = limited();
    settings["nginx_config"] = json!({"http": {"real_ip_from": ["127.0.0.1"]}});
    settings["apisix"] = json!({"trusted_addresses": ["127.0.0.3"]});
    let (world, upstream) = World::open(settings).await;
    let mut held = Vec::new();
    let mut count = 0;
    let named = "X-Real-IP: 192.0.2.1\r\n";
    for _ in 0..LIMIT {
        held.push(hold(&world, [127, 0, 0, 1], named).await);
        count += 1;
        upstream.arrived(count).await;
    }
    assert!(answer(hold(&world, [127, 0, 0, 1], named).await).await.starts_with("HTTP/1.1 503 "));
    for (from, line) in
        [([127, 0, 0, 1], "X-Real-IP: 192.0.2.2\r\n"), ([127, 0, 0, 1], ""), ([127, 0, 0, 3], "")]
    {
        for _ in 0..if line.is_empty() { LIMIT + 1 } else { LIMIT } {
            held.push(hold(&world, from, line).await);
            count += 1;
            upstream.arrived(count).await;
        }
    }
    upstream.open_gate();
    for stream in held {
        assert!(answer(stream).await.starts_with("HTTP/1.1 200 "));
    }
}

/// Answers the next request before its body, keeps the connection and reads to the end.
async fn answers_early(listener: &TcpListener, answer: &[u8]) {
    let (mut connection, _) = listener.accept().await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(connection.read_u8().await.unwrap());
    }
    connection.write_all(answer).await.unwrap();
    raw::until_closed(&mut connection).await;
}

#[tokio::test]
async fn an_early_response_ends_the_upstream_connection() {
    let world = World::builder().settings(limited()).start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    world
        .apply(&[("ssls/app", world.open_site()), ("routes/app", route("app.test", "/*", &[address]))])
        .await;
    for answer in [
        "HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\n\r\nno",
    ] {
        // Neither client sends a byte of its body, and both connections stay open.
        let mut wire = FrameConnection::connect(&world.client("app.test")).await;
        assert!(wire.send(&frames::post(1, "app.test", "/")).await);
        let ended = answers_early(&listener, answer.as_bytes());
        bounded("the connection for HTTP/2 ends", ended).await;
        wire.until("the answer is whole", |heard| heard.whole.len() == 1).await;
        let mut one = TcpStream::connect(world.http()).await.unwrap();
        one.write_all(b"POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 1000\r\n\r\n").await.unwrap();
        bounded("the connection for HTTP/1 ends", answers_early(&listener, answer.as_bytes())).await;
        let mut status = [0; 12];
        one.read_exact(&mut status).await.unwrap();
        assert_eq!(status, answer.as_bytes()[..12]);
    }
    assert_eq!(world.metric("countersign_upstream_connections_active ").await, 0);
}
