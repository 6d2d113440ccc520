//! Upstreams that fail at every point of an exchange over HTTP/1, in clear text and within TLS: the
//! client gets a status or a broken answer, the log one line, and others notice nothing. [`frames`]
//! has those of HTTP/2.

mod drained;
mod frames;
mod identities;
mod kept;
mod small_frames;

use std::time::{Duration, Instant};

use e2e::client::{Http, HttpConnection, full};
use e2e::resources::memory_peak;
use e2e::upstream::faulty::{Fault, FaultPoint, FaultyUpstream};
use e2e::upstream::{Upstream, pattern_body, sha256};
use e2e::world::World;
use futures_util::future::join_all;
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use rustls::version::{TLS12, TLS13};
use serde_json::{Value, json};

use Fault::{Close, Reset, Speak, Stall};
use FaultPoint::{Accepted, FirstBytes, HalfBody, HalfHead, Handshake, Head};

/// What a client gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Status(u16),
    /// The head of a 200, and less than its body.
    Broken,
    /// [`Self::Broken`], or 502: a reset discards a head that was not read yet.
    BrokenOrUnread,
}

impl Outcome {
    fn is_met_by(self, found: Self) -> bool {
        self == found || (self == BrokenOrUnread && matches!(found, Broken | Status(502)))
    }
}

use Outcome::{Broken, BrokenOrUnread, Status};

const POINTS: [FaultPoint; 6] = [Accepted, FirstBytes, Handshake, Head, HalfHead, HalfBody];

fn expected(point: FaultPoint, fault: Fault) -> Outcome {
    match (point, fault) {
        (HalfBody, Reset) => BrokenOrUnread,
        (HalfBody, _) => Broken,
        (_, Stall) => Status(504),
        _ => Status(502),
    }
}

/// Serves each of these nodes at `/<index>`, without retries and with short time-outs.
async fn world_to(scheme: &str, nodes: &[&FaultyUpstream]) -> World {
    let world = World::builder().settings(json!({"countersign": {"workers": 1}})).start().await;
    let documents: Vec<(String, Value)> = nodes
        .iter()
        .enumerate()
        .map(|(index, node)| {
            let upstream = json!({
                "scheme": scheme,
                "nodes": {node.address().to_string(): 1},
                "retries": 0,
                "timeout": {"connect": 1, "send": 1, "read": 1},
            });
            (format!("routes/{index}"), json!({"uri": format!("/{index}"), "upstream": upstream}))
        })
        .collect();
    let borrowed: Vec<_> = documents.iter().map(|(path, json)| (path.as_str(), json.clone())).collect();
    world.apply(&borrowed).await;
    world
}

/// One request on a connection of its own.
async fn outcome(world: &World, method: Method, path: &str) -> Outcome {
    let mut session = world.plain("app.test").await;
    let request = session.request(method, path, full("body"));
    let response = session.send(request).await.unwrap_or_else(|error| panic!("{path}: {error}"));
    let status = response.status();
    match e2e::client::bounded("the end of an answer", response.into_body().collect()).await {
        Ok(_) => Status(status.as_u16()),
        Err(_) => Broken,
    }
}

/// Asserts the outcome of each node, with all of them at once, and that each failure is one line of
/// the log with one of these reasons.
async fn all_fail(scheme: &str, nodes: &[(FaultyUpstream, Outcome)]) {
    let upstreams: Vec<_> = nodes.iter().map(|(node, _)| node).collect();
    let world = world_to(scheme, &upstreams).await;
    let good = Upstream::plain("good").await;
    let fine = json!({"uri": "/good", "upstream": {"nodes": {good.address().to_string(): 1}}});
    world.apply(&[("routes/good", fine)]).await;
    let mark = world.node_log().mark();
    let paths: Vec<String> = (0..nodes.len()).map(|index| format!("/{index}")).collect();
    let asked = join_all(paths.iter().map(|path| outcome(&world, Method::POST, path)));
    let others = async {
        // The only worker serves others meanwhile.
        let started = Instant::now();
        let mut session = world.plain("app.test").await;
        while started.elapsed() < Duration::from_millis(500) {
            assert_eq!(session.get("/good").await.unwrap().status, StatusCode::OK);
        }
    };
    let (found, ()) = tokio::join!(asked, others);
    let wrong: Vec<_> = nodes
        .iter()
        .zip(&found)
        .enumerate()
        .filter(|(_, ((_, wanted), found))| !wanted.is_met_by(**found))
        .map(|(index, ((_, wanted), found))| format!("/{index}: {found:?} for {wanted:?}"))
        .collect();
    assert!(wrong.is_empty(), "{scheme}: {wrong:?}");
    let named = |index: usize| match found[index] {
        // The line has no route, but its own words.
        Broken => "broke off".to_owned(),
        _ => format!("route={index} "),
    };
    let broken = found.iter().filter(|outcome| **outcome == Broken).count();
    for (index, (node, _)) in nodes.iter().enumerate() {
        let lines = if found[index] == Broken { broken } else { 1 };
        world.node_log().lines_after(mark, &[&named(index)], lines).await;
        assert!(node.heads() <= 1, "/{index}: a POST was sent twice");
    }
    let text = world.node_log().text();
    let lines: Vec<_> = text[mark..].lines().filter(|line| line.contains("reason=")).collect();
    assert_eq!(lines.len(), nodes.len(), "{lines:#?}");
}

#[tokio::test]
async fn faults_in_clear_text_are_502_or_504() {
    let mut nodes = Vec::new();
    for point in POINTS {
        for fault in [Close, Reset, Stall] {
            nodes.push((FaultyUpstream::plain(point, fault).await, expected(point, fault)));
        }
    }
    for garbage in [
        "SSH-2.0-OpenSSH_9.2\r\n",
        "\x16\x03\x01\0\x05hello",
        "\0\0\0\x12\x04\0\0\0\0\0\0",
        "HTTP/0.9\r\n\r\n",
    ] {
        nodes.push((FaultyUpstream::plain(Head, Speak(garbage)).await, Status(502)));
    }
    all_fail("http", &nodes).await;
}

#[tokio::test]
async fn faults_within_tls_are_502_or_504() {
    let credential = e2e::credentials::Authority::root("Faulty CA").server(&["faulty.test"]);
    for version in [&TLS12, &TLS13] {
        let mut nodes = Vec::new();
        for point in POINTS {
            for fault in [Close, Reset, Stall] {
                let node = FaultyUpstream::tls(&credential, &[version], point, fault).await;
                nodes.push((node, expected(point, fault)));
            }
        }
        // In clear text before the handshake, instead of it, and within the connection.
        for (point, bytes) in [
            (Accepted, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
            (FirstBytes, "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"),
            (FirstBytes, "\x15\x03\x03\0\x02\x02\x28"),
            (Handshake, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
            (Head, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
        ] {
            let node = FaultyUpstream::tls(&credential, &[version], point, Speak(bytes)).await;
            nodes.push((node, Status(502)));
        }
        all_fail("https", &nodes).await;
    }
}

#[tokio::test]
async fn faults_before_http_2_within_tls_are_502_or_504() {
    let credential = e2e::credentials::Authority::root("Faulty CA").server(&["faulty.test"]);
    let mut nodes = Vec::new();
    for version in [&TLS12, &TLS13] {
        for point in [Accepted, FirstBytes, Handshake] {
            for fault in [Close, Reset, Stall, Speak("\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\0\x64")] {
                let node = FaultyUpstream::tls(&credential, &[version], point, fault).await;
                nodes.push((node, if fault == Stall { Status(504) } else { Status(502) }));
            }
        }
    }
    all_fail("grpcs", &nodes).await;
}

/// Bytes of a large body.
const LARGE: usize = 200_000_000;
/// What the data plane may take beside it, in bytes.
const MEMORY: u64 = 40 << 20;

/// The SHA-256 and the length of a body that is read piece by piece.
async fn digest(mut body: hyper::body::Incoming) -> (String, usize) {
    let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    let mut bytes = 0;
    while let Some(frame) = e2e::client::bounded("a piece of the body", body.frame()).await {
        if let Ok(data) = frame.unwrap().into_data() {
            context.update(&data);
            bytes += data.len();
        }
    }
    (data_encoding::HEXLOWER.encode(context.finish().as_ref()), bytes)
}

#[tokio::test]
async fn bodies_of_200_megabytes_are_never_in_memory() {
    let (world, _upstream) = World::open(json!({"countersign": {"workers": 1}})).await;
    let mut session: HttpConnection = world.client("app.test").http(Http::One).connect().await.unwrap();
    session.get("/").await.unwrap();
    let before = memory_peak(world.node_id());
    let request = session.request(Method::GET, &format!("/sized?bytes={LARGE}"), full(""));
    let down = session.send(request).await.unwrap();
    let (sum, bytes) = digest(down.into_body()).await;
    assert_eq!(bytes, LARGE);
    let request = session.request(Method::POST, "/sink", pattern_body(LARGE));
    let up = session.fetch(request).await.unwrap().json();
    assert_eq!(up, json!({"bytes": LARGE, "sha256": sum}));
    let grown = memory_peak(world.node_id()) - before;
    assert!(grown < MEMORY, "the data plane grew by {grown} bytes");
    assert_ne!(sum, sha256(b""));
}
