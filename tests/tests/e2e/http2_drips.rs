//! HTTP/2 clients that hold a connection with little traffic: slow heads and bodies, an incomplete
//! preface, PINGs. Only requests extend a connection's life. The limit under test is one second,
//! all others are longer than the test.

use std::time::{Duration, Instant};

use e2e::client::HttpClient;
use e2e::frames::{
    self, CONTINUATION, DATA, END_STREAM, FrameConnection, HEADERS, PING, PREFACE, SETTINGS, frame, get,
    window_update,
};
use e2e::upstream::Upstream;
use e2e::world::World;
use serde_json::{Value, json};

/// An earlier end is not caused by the limit.
const NOT_BEFORE: Duration = Duration::from_millis(900);
/// The limit, two ticks of the timer, and a margin for a busy machine.
const NOT_AFTER: Duration = Duration::from_secs(15);

struct Target {
    world: World,
    upstream: Upstream,
    client: HttpClient,
}

/// One limit of a second, the others of an hour.
async fn target(limit: &str) -> Target {
    let mut limits = json!({
        "client_header_timeout": "1h",
        "client_body_timeout": "1h",
        "keepalive_timeout": "1h",
        "send_timeout": "1h",
    });
    limits[limit] = Value::from("1s");
    let (world, upstream) = World::open(json!({"nginx_config": {"http": limits}})).await;
    let client = world.client("app.test");
    Target { world, upstream, client }
}

fn in_time(started: Instant, what: &str) {
    let took = started.elapsed();
    assert!(took >= NOT_BEFORE && took < NOT_AFTER, "{what}: {took:?}");
}

/// Frames that belong to no request.
fn chatter(round: u32) -> Vec<u8> {
    match round % 4 {
        0 => frame(PING, 0, 0, &[0; 8]),
        1 => window_update(0, 1),
        2 => frame(SETTINGS, 0, 0, &[]),
        // PRIORITY of an unknown stream.
        _ => frame(2, 0, 99, &[0, 0, 0, 0, 1]),
    }
}

#[tokio::test]
async fn a_slow_head_is_ended_beside_a_served_request() {
    let target = target("client_header_timeout").await;
    let block = frames::request_block("GET", "app.test", "/never");
    let first = frame(HEADERS, END_STREAM, 3, &block[..4]);
    let drips: [(&str, Vec<u8>); 3] = [
        ("an empty frame", frame(CONTINUATION, 0, 3, &[])),
        ("a literal field of one letter", frame(CONTINUATION, 0, 3, b"\x00\x01a\x01b")),
        ("nothing", Vec::new()),
    ];
    for (what, drip) in drips {
        for busy in [false, true] {
            let mut wire = FrameConnection::connect(&target.client).await;
            if busy {
                let asked = target.upstream.requests();
                assert!(wire.send(&get(1, "app.test", "/hold")).await);
                target.upstream.arrived(asked + 1).await;
            }
            let started = Instant::now();
            assert!(wire.send(&first).await);
            let heard = wire.drip(what, |_| drip.clone(), |heard| heard.over).await;
            in_time(started, what);
            assert_eq!(heard.answers, 0, "{what}");
        }
    }
    target.world.node_log().line_with(&["head_timeout"]).await;
}

#[tokio::test]
async fn heads_in_pieces_are_accepted_in_time() {
    let target = target("client_header_timeout").await;
    let mut wire = FrameConnection::connect(&target.client).await;
    // At each moment some head is incomplete, and none for long.
    let piece = |round: u32| {
        let block = frames::request_block("GET", "app.test", "/piece");
        let begun = |stream| frame(HEADERS, END_STREAM, stream, &block[..4]);
        let ended = |stream| frame(CONTINUATION, frames::END_HEADERS, stream, &block[4..]);
        if round == 0 { begun(1) } else { [ended(2 * round - 1), begun(2 * round + 1)].concat() }
    };
    let heard = wire.drip("answers", piece, |heard| heard.over || heard.whole.len() >= 30).await;
    assert!(!heard.over, "{heard:?}");
}

#[tokio::test]
async fn a_slow_or_lone_preface_is_ended() {
    let target = target("client_header_timeout").await;
    for (what, first, drip) in [
        ("a preface byte by byte", &PREFACE[..1], true),
        ("half a preface", &PREFACE[..10], false),
        ("a preface without SETTINGS", PREFACE, false),
    ] {
        let started = Instant::now();
        let mut wire = FrameConnection::begin(&target.client, first).await;
        let byte = |round: u32| {
            let next = PREFACE.get(1 + round as usize..).and_then(|rest| rest.first());
            next.filter(|_| drip).map(|byte| vec![*byte]).unwrap_or_default()
        };
        wire.drip(what, byte, |heard| heard.over).await;
        in_time(started, what);
    }
}

#[tokio::test]
async fn only_a_request_extends_an_idle_connection() {
    let target = target("keepalive_timeout").await;
    let mut wire = FrameConnection::connect(&target.client).await;
    assert!(wire.send(&get(1, "app.test", "/")).await);
    wire.until("an answer", |heard| heard.whole == [1]).await;
    let started = Instant::now();
    let heard = wire.drip("the idle connection ends", chatter, |heard| heard.over).await;
    in_time(started, "chatter");
    assert_eq!(heard.goaway, Some(0), "it gets GOAWAY: {heard:?}");
    // A connection without any request ends, too, and so does one with occasional requests, but not
    // earlier.
    let started = Instant::now();
    let mut wire = FrameConnection::connect(&target.client).await;
    wire.drip("the idle connection ends", chatter, |heard| heard.over).await;
    in_time(started, "chatter from the start");
    let mut wire = FrameConnection::connect(&target.client).await;
    let request = |round| get(1 + 2 * round, "app.test", "/");
    let heard = wire.drip("answers", request, |heard| heard.over || heard.whole.len() >= 20).await;
    assert!(!heard.over, "{heard:?}");
}

#[tokio::test]
async fn a_missing_body_is_not_extended() {
    let target = target("client_body_timeout").await;
    let empty = |_| frame(DATA, 0, 1, &[]);
    let padded = |_| frame(DATA, 8, 1, &[3, 0, 0, 0]);
    let window = |_| window_update(1, 1);
    type Drip<'a> = &'a dyn Fn(u32) -> Vec<u8>;
    let drips: [(&str, Drip<'_>); 5] = [
        ("nothing", &|_| Vec::new()),
        ("other frames", &chatter),
        ("window updates of the stream", &window),
        ("empty DATA", &empty),
        ("DATA that is all padding", &padded),
    ];
    for (what, drip) in drips {
        let mut wire = FrameConnection::connect(&target.client).await;
        let begun = [frames::post(1, "app.test", "/sink"), frame(DATA, 0, 1, b"begun")].concat();
        let started = Instant::now();
        assert!(wire.send(&begun).await);
        let heard = wire.drip(what, drip, |heard| heard.answers > 0 || heard.over).await;
        in_time(started, what);
        assert!(heard.answers == 1 && !heard.over, "{what}: {heard:?}");
        target.upstream.open_at_most(0).await;
    }
}
