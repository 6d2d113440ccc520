//! HTTP/2 clients that open no window: after `send_timeout` their upstream connections are
//! released, streams are reset, and connections that are not read are closed. Requests that wait
//! for the upstream are not affected.

use std::future::poll_fn;
use std::time::{Duration, Instant};

use e2e::client::{HttpClient, bounded};
use e2e::frames::{
    self, ACK, DATA, END_HEADERS, END_STREAM, FrameConnection, HEADERS, RST_STREAM, SETTINGS, frame, get,
    window_settings, window_update,
};
use e2e::resources::memory_peak;
use e2e::upstream::framed::{FrameStep, FramedUpstream};
use e2e::upstream::raw::{RawResponse, RawUpstream};
use e2e::upstream::{SECOND_HALF, Upstream};
use e2e::world::World;
use nix::sys::signal::Signal;
use serde_json::json;
use tokio::net::TcpStream;

/// An earlier end is not caused by `send_timeout`.
const NOT_BEFORE: Duration = Duration::from_millis(900);
/// `send_timeout`, two ticks of the timer, and a margin for a busy machine.
const NOT_AFTER: Duration = Duration::from_secs(15);
/// `ENHANCE_YOUR_CALM`
const CALM: u32 = 11;
/// `CANCEL`
const CANCEL: u32 = 8;
/// More than the gateway buffers of a response that its client does not read; not more, because
/// upstreams write as much as their sockets accept.
const LARGE: &str = "/sized?bytes=300000";
/// The largest window (RFC 9113 section 6.9.1).
const ALL: u32 = (1 << 31) - 1;

struct Target {
    world: World,
    upstream: Upstream,
    client: HttpClient,
}

impl Target {
    async fn start() -> Self {
        let settings = json!({"nginx_config": {"http": {"send_timeout": "1s"}}});
        let (world, upstream) = World::open(settings).await;
        let client = world.client("app.test");
        Self { world, upstream, client }
    }

    /// A client that only stalls: while it is served, the timers of the others run, too.
    async fn one_stall(&self) {
        let mut wire = FrameConnection::with_window(&self.client, 0).await;
        assert!(wire.send(&get(1, "app.test", LARGE)).await);
        wire.until("the connection that stalls ends", |heard| heard.over).await;
    }

    async fn metric(&self, line: &str) -> u64 {
        let text = self.world.status("/metrics").await.text();
        let value = text.lines().find_map(|found| found.strip_prefix(line)?.trim().parse().ok());
        value.unwrap_or_else(|| panic!("{line} in {text}"))
    }
}

fn requests(path: &str, streams: u32) -> Vec<u8> {
    (0..streams).flat_map(|stream| get(1 + 2 * stream, "app.test", path)).collect()
}

#[tokio::test]
async fn stalled_clients_release_the_upstream() {
    const STREAMS: u32 = 60;
    let target = Target::start().await;
    let started = Instant::now();
    let mut wires = Vec::new();
    for _ in 0..3 {
        let mut wire = FrameConnection::with_window(&target.client, 0).await;
        assert!(wire.send(&requests(LARGE, STREAMS)).await);
        wires.push(wire);
    }
    target.upstream.arrived(180).await;
    let asked = Instant::now();
    target.upstream.open_at_most(0).await;
    assert!(started.elapsed() >= NOT_BEFORE && asked.elapsed() < NOT_AFTER, "{:?}", started.elapsed());
    for wire in wires {
        let heard = wire.ended().await;
        assert_eq!(heard.goaway, Some(CALM), "{heard:?}");
        assert!(heard.whole.is_empty() && heard.data == 0, "{heard:?}");
    }
    let refused = target.metric("countersign_errors_total{reason=\"send_timeout\"}").await;
    assert!((3..=180).contains(&refused), "{refused}");
    target.world.node_log().line_with(&["the client read nothing of a response"]).await;
}

#[tokio::test]
async fn only_the_stalled_stream_is_reset() {
    let target = Target::start().await;
    let mut wire = FrameConnection::with_window(&target.client, 0).await;
    assert!(wire.send(&get(1, "app.test", LARGE)).await);
    assert!(wire.send(&[get(3, "app.test", "/halves"), window_update(3, 1000)].concat()).await);
    let heard = wire.until("a stream is reset", |heard| heard.resets > 0).await;
    assert_eq!(heard.reset, [(1, CANCEL)]);
    assert_eq!(heard.goaway, None);
    // The other request waits for its upstream without a limit and gets the rest.
    target.one_stall().await;
    target.upstream.open_gate();
    let heard = wire.until("the other answer comes to its end", |heard| heard.whole.contains(&3)).await;
    assert!(heard.data > SECOND_HALF.len() && heard.goaway.is_none() && heard.resets == 1, "{heard:?}");
}

#[tokio::test]
async fn a_byte_of_window_now_and_then_is_a_stall() {
    let target = Target::start().await;
    let mut wire = FrameConnection::with_window(&target.client, 0).await;
    assert!(wire.send(&[get(1, "app.test", LARGE), window_settings(1)].concat()).await);
    let started = Instant::now();
    let byte = |_| [window_update(1, 1), window_update(0, 1)].concat();
    let heard = wire.drip("a client that takes single bytes is cut off", byte, |heard| heard.over).await;
    assert!(started.elapsed() < NOT_AFTER, "{:?}", started.elapsed());
    assert!((1..1024).contains(&heard.data), "{heard:?}");
    target.upstream.open_at_most(0).await;
}

#[tokio::test]
async fn the_connection_window_counts_too() {
    let target = Target::start().await;
    let mut wire = FrameConnection::with_window(&target.client, ALL).await;
    assert!(wire.send(&requests(LARGE, 3)).await);
    let heard = wire.until("the connection ends", |heard| heard.over).await;
    assert_eq!((heard.data, heard.goaway), (65_535, Some(CALM)), "{heard:?}");
    target.upstream.open_at_most(0).await;
}

#[tokio::test]
async fn a_slow_window_carries_a_complete_response() {
    let target = Target::start().await;
    let mut wire = FrameConnection::with_window(&target.client, 0).await;
    assert!(wire.send(&requests("/sized?bytes=20000", 2)).await);
    let more = |_| [window_update(1, 1024), window_update(3, 1024)].concat();
    let heard = wire.drip("both answers come", more, |heard| heard.whole.len() == 2 || heard.over).await;
    assert_eq!((heard.data, heard.resets, heard.goaway), (40_000, 0, None), "{heard:?}");
}

#[tokio::test]
async fn responses_without_a_body_need_no_window() {
    let target = Target::start().await;
    let mut wire = FrameConnection::with_window(&target.client, 0).await;
    let head = frames::request_block("GET", "app.test", "/status?code=204");
    assert!(wire.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &head)).await);
    wire.until("204 needs no window", |heard| heard.whole == [1]).await;
    target.one_stall().await;
    assert!(wire.send(&get(3, "app.test", "/status?code=304")).await);
    let heard = wire.until("304 needs no window", |heard| heard.whole == [1, 3]).await;
    assert_eq!((heard.resets, heard.goaway), (0, None));
}

#[tokio::test]
async fn a_request_waiting_for_the_upstream_is_not_ended() {
    let target = Target::start().await;
    // Also without a window, because there is no data to send.
    let mut wire = FrameConnection::with_window(&target.client, 0).await;
    assert!(wire.send(&get(1, "app.test", "/hold")).await);
    target.upstream.arrived(1).await;
    target.one_stall().await;
    target.one_stall().await;
    target.upstream.open_gate();
    wire.until("the held answer's head", |heard| heard.answers == 1).await;
    assert!(wire.send(&window_update(1, 1000)).await);
    wire.until("the held answer", |heard| heard.whole == [1]).await;
}

#[tokio::test]
async fn a_drain_does_not_wait_for_stalled_streams() {
    let mut target = Target::start().await;
    let mut wire = FrameConnection::with_window(&target.client, 0).await;
    assert!(wire.send(&requests(LARGE, 5)).await);
    target.upstream.arrived(5).await;
    let started = Instant::now();
    let mut node = target.world.take_node();
    node.signal(Signal::SIGTERM);
    assert!(node.ended().await.success());
    assert!(started.elapsed() < NOT_AFTER, "{:?}", started.elapsed());
}

/// Serves `/stalled` by an upstream that takes nothing of a body.
async fn stalled_uploads() -> (Target, FramedUpstream) {
    let stalled = FramedUpstream::start(vec![FrameStep::Send(window_settings(0))]).await;
    let target = Target::start().await;
    let upstream = json!({"scheme": "grpc", "nodes": {stalled.address().to_string(): 1}});
    target
        .world
        .apply(&[("routes/stalled", json!({"host": "app.test", "uri": "/stalled", "upstream": upstream}))])
        .await;
    (target, stalled)
}

#[tokio::test]
async fn uploads_that_stall_hold_no_other() {
    // Streams that together fill the windows of 16 MiB.
    const STREAMS: u32 = 64;
    let (target, stalled) = stalled_uploads().await;
    let before = memory_peak(target.world.node_id());
    let mut wire = FrameConnection::connect(&target.client).await;
    // Until then the windows are those of RFC 9113.
    let acknowledgement = frame(SETTINGS, ACK, 0, &[]);
    assert!(wire.send(&[acknowledgement, get(1, "app.test", "/")].concat()).await);
    wire.until("an answer", |heard| heard.whole == [1]).await;
    for number in 1..=STREAMS {
        let stream = 1 + 2 * number;
        let piece = frame(DATA, 0, stream, &[b'x'; 16_384]).repeat(16);
        assert!(wire.send(&[frames::post(stream, "app.test", "/stalled"), piece].concat()).await);
    }
    stalled.arrived(STREAMS as usize).await;
    let stream = 3 + 2 * STREAMS;
    let body = [frame(DATA, 0, stream, &[b'x'; 16_384]), frame(DATA, END_STREAM, stream, b"end")].concat();
    assert!(wire.send(&[frames::post(stream, "app.test", "/sink"), body].concat()).await);
    let heard = wire.until("the other upload is answered", |heard| heard.whole.contains(&stream)).await;
    assert_eq!((heard.goaway, heard.resets), (None, 0), "{heard:?}");
    let grown = memory_peak(target.world.node_id()) - before;
    // Twice the windows, as `h2` keeps what it has read.
    assert!(grown < 48 << 20, "the data plane grew by {grown} bytes");
}

#[tokio::test]
async fn small_frames_of_a_stalled_upload_hold_little() {
    const ROUNDS: usize = 4000;
    const PIECE: usize = 10_000;
    let (target, stalled) = stalled_uploads().await;
    let tcp = TcpStream::connect(target.world.http()).await.unwrap();
    let (client, connection) = h2::client::handshake(tcp).await.unwrap();
    let connection = tokio::spawn(connection);
    let mut client = client.ready().await.unwrap();
    let mut post = |path: &str| {
        let request = http::Request::post(format!("http://app.test{path}")).body(()).unwrap();
        client.send_request(request, false).unwrap()
    };
    let ((_waits, mut slow), (answer, mut fast)) = (post("/stalled"), post("/sink"));
    stalled.arrived(1).await;
    let before = memory_peak(target.world.node_id());
    let send = async {
        for _ in 0..ROUNDS {
            fast.reserve_capacity(PIECE);
            while fast.capacity() < PIECE {
                poll_fn(|cx| fast.poll_capacity(cx)).await.unwrap().unwrap();
            }
            fast.send_data(vec![b'x'; PIECE].into(), false).unwrap();
            slow.send_data("x".into(), false).unwrap();
        }
        fast.send_data("end".into(), true).unwrap();
    };
    bounded("the upload", send).await;
    bounded("the answer", answer).await.unwrap();
    let grown = memory_peak(target.world.node_id()) - before;
    assert!(grown < 16 << 20, "the data plane grew by {grown} bytes");
    connection.abort();
}

/// hyper reads `CANCEL` and `NO_ERROR` as the end of a body.
#[tokio::test]
async fn a_cancelled_request_body_is_incomplete() {
    let mut upstream =
        RawUpstream::plain(|_| RawResponse::keep("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")).await;
    let world = World::builder().open(upstream.address()).start().await;
    let mut wire = FrameConnection::connect(&world.client("app.test")).await;
    for (round, code) in [0_u32, CANCEL, 2].into_iter().enumerate() {
        let stream = 1 + 4 * u32::try_from(round).unwrap();
        let half = [frames::post(stream, "app.test", "/half"), frame(DATA, 0, stream, b"half")].concat();
        assert!(wire.send(&half).await);
        assert!(wire.send(&frame(RST_STREAM, 0, stream, &code.to_be_bytes())).await);
        let whole =
            [frames::post(stream + 2, "app.test", "/whole"), frame(DATA, END_STREAM, stream + 2, b"whole")];
        assert!(wire.send(&whole.concat()).await);
        assert_eq!(upstream.request().await.target(), "/whole", "code {code}");
        wire.until("the answer", |heard| heard.whole.contains(&(stream + 2))).await;
    }
    assert!(upstream.waiting().is_empty());
}
