//! HTTP/2 floods: a client that causes much work with few bytes is disconnected after a bounded
//! number of frames, with bounded memory and CPU time, and few of its requests reach the upstream;
//! other clients are served.

use serde_json::json;
use std::time::Duration;

use e2e::client::{Http, HttpClient};
use e2e::frames::{
    self, CONTINUATION, DATA, END_HEADERS, END_STREAM, FrameConnection, HEADERS, RST_STREAM, ReceivedFrames,
    WINDOW_UPDATE, frame,
};
use e2e::resources::{cpu_time, memory_peak};
use e2e::upstream::Upstream;
use e2e::world::World;
use http::StatusCode;

/// More rounds than any of these attacks may complete.
const ROUNDS: u32 = 20_000;
/// Bounds the growth of the gateway's peak memory.
const MEMORY: u64 = 24 << 20;
/// Bounds the CPU time of the unoptimized gateway.
const CPU: Duration = Duration::from_secs(3);
/// `ENHANCE_YOUR_CALM`
const CALM: u32 = 11;

struct Target {
    world: World,
    upstream: Upstream,
    client: HttpClient,
    memory: u64,
    cpu: Duration,
}

impl Target {
    async fn start() -> Self {
        let (world, upstream) = World::open(json!({})).await;
        let client = world.client("app.test").http(Http::Two);
        assert_eq!(client.get("/before").await.unwrap().status, StatusCode::OK);
        let (memory, cpu) = (memory_peak(world.node_id()), cpu_time(world.node_id()));
        Self { world, upstream, client, memory, cpu }
    }

    /// Sends rounds of frames until the server closes; returns their number and the server's last
    /// words.
    async fn attack(&self, round: impl Fn(u32) -> Vec<u8>) -> (u32, ReceivedFrames) {
        let mut wire = FrameConnection::connect(&self.client).await;
        let mut sent = 0;
        while sent < ROUNDS && wire.send(&round(sent)).await {
            sent += 1;
        }
        assert!(sent < ROUNDS, "the server took all {ROUNDS} rounds");
        (sent, wire.ended().await)
    }

    /// Asserts that the gateway is healthy and that few requests reached the upstream.
    async fn is_well(&self, what: &str, requests: u64) {
        let asked = self.upstream.requests();
        assert!(asked <= requests, "{what}: {asked} requests reached the upstream");
        let reply = self.client.get("/after").await.unwrap();
        assert_eq!(reply.status, StatusCode::OK, "{what}");
        let grown = memory_peak(self.world.node_id()).saturating_sub(self.memory);
        assert!(grown < MEMORY, "{what}: {grown} bytes more than before");
        let spent = cpu_time(self.world.node_id()).saturating_sub(self.cpu);
        assert!(spent < CPU, "{what}: {spent:?} of CPU time");
    }
}

fn stream(round: u32) -> u32 {
    1 + 2 * round
}

fn request(round: u32, flags: u8) -> Vec<u8> {
    let method = if flags & END_STREAM == 0 { "POST" } else { "GET" };
    let block = frames::request_block(method, "app.test", "/flood");
    frame(HEADERS, END_HEADERS | flags, stream(round), &block)
}

/// CVE-2023-44487: requests that are reset at once.
#[tokio::test]
async fn rapid_resets_end_the_connection() {
    let target = Target::start().await;
    let (_sent, heard) = target
        .attack(|round| {
            // Many in one write: most are reset before they are processed.
            let one = |number| {
                let reset = frame(RST_STREAM, 0, stream(number), &8_u32.to_be_bytes());
                [request(number, END_STREAM), reset].concat()
            };
            (100 * round..100 * (round + 1)).flat_map(one).collect()
        })
        .await;
    assert_eq!(heard.goaway, Some(CALM), "{heard:?}");
    target.is_well("rapid reset", 2000).await;
}

/// CVE-2024-27316 and similar: a header block without an end.
#[tokio::test]
async fn endless_continuations_end_the_connection() {
    let target = Target::start().await;
    // A literal header without indexing: name and value of 100 bytes each.
    let header: Vec<u8> = [&[0x00, 100][..], &[b'n'; 100], &[100], &[b'v'; 100]].concat();
    let full = header.repeat(80);
    for (what, payload) in [("full frames", full), ("small frames", header), ("empty frames", Vec::new())] {
        let mut wire = FrameConnection::connect(&target.client).await;
        let start = frames::request_block("GET", "app.test", "/flood");
        assert!(wire.send(&frame(HEADERS, END_STREAM, 1, &start)).await);
        let piece = frame(CONTINUATION, 0, 1, &payload).repeat(if payload.len() < 1000 { 50 } else { 1 });
        let mut sent = 0;
        while sent < ROUNDS && wire.send(&piece).await {
            sent += 1;
        }
        assert!(sent < ROUNDS, "{what}: the server took all {ROUNDS}");
        let heard = wire.ended().await;
        assert!(heard.goaway.is_some_and(|code| code != 0), "{what}: {heard:?}");
        assert_eq!(heard.answers, 0, "{what}");
    }
    target.is_well("continuations", 1).await;
}

/// CVE-2025-8671, "MadeYouReset": frames that make the server reset the stream, which no longer
/// counts as open while its request is still processed.
#[tokio::test]
async fn requests_that_make_the_server_reset_end_the_connection() {
    let no_increment = |round| frame(WINDOW_UPDATE, 0, stream(round), &0_u32.to_be_bytes());
    let overflow = |round| frame(WINDOW_UPDATE, 0, stream(round), &0x7fff_ffff_u32.to_be_bytes());
    let after_the_end = |round| frame(DATA, END_STREAM, stream(round), b"x");
    type Provoke<'a> = &'a dyn Fn(u32) -> Vec<u8>;
    let provocations: [(&str, u8, Provoke<'_>); 3] = [
        ("a window update of nothing", 0, &no_increment),
        ("a window beyond the limit", 0, &overflow),
        ("data after the end", END_STREAM, &after_the_end),
    ];
    for (what, flags, provoke) in provocations {
        let target = Target::start().await;
        let (sent, heard) = target.attack(|round| [request(round, flags), provoke(round)].concat()).await;
        assert!(heard.goaway.is_some_and(|code| code != 0), "{what}: {heard:?} after {sent}");
        assert!(heard.resets <= 300, "{what}: {heard:?}");
        target.is_well(what, 600).await;
    }
}
