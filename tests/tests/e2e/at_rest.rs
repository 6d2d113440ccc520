//! A hibernated HTTP/1 connection keeps no state of the HTTP session: wherever a pause falls, the
//! connection continues, and no bytes of one request are taken for another.

use std::time::{Duration, Instant};

use e2e::client::bounded;
use e2e::upstream::Upstream;
use e2e::world::World;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// `/app/*` has a route; other requests are answered before their body is read. Connections
/// hibernate after `idle_release_timeout` seconds.
pub(super) async fn world_with(upstream: &Upstream, idle_release_timeout: f64) -> World {
    let settings = json!({"countersign": {"limits": {"idle_release_timeout": idle_release_timeout}}});
    let builder = World::builder().settings(settings).protected(upstream.address());
    builder.path("/app/*").start().await
}

/// A client that keeps bytes after a response for the next one.
pub(super) struct Client<S> {
    pub(super) io: S,
    read: Vec<u8>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    pub(super) fn new(io: S) -> Self {
        Self { io, read: Vec::new() }
    }

    pub(super) async fn say(&mut self, text: &str) {
        self.io.write_all(text.as_bytes()).await.unwrap();
        self.io.flush().await.unwrap();
    }

    /// Status and body of the next response.
    async fn answer(&mut self) -> (u16, String) {
        bounded("an answer", async {
            loop {
                if let Some((answer, length)) = whole(&self.read) {
                    self.read.drain(..length);
                    return answer;
                }
                let mut piece = [0; 4096];
                let n = self.io.read(&mut piece).await.unwrap();
                assert!(
                    n > 0,
                    "the connection ended in the middle of {:?}",
                    String::from_utf8_lossy(&self.read)
                );
                self.read.extend_from_slice(&piece[..n]);
            }
        })
        .await
    }

    pub(super) async fn ask(&mut self, request: &str, path: &str) {
        self.say(request).await;
        self.hears(path).await;
    }

    /// Asserts that the next response is the one to `path`.
    pub(super) async fn hears(&mut self, path: &str) {
        let (status, body) = self.answer().await;
        assert!(status == 200 && body.contains(&format!("\"uri\":\"{path}\"")), "{path}: {status} {body}");
    }
}

/// A complete response and its length on the wire.
fn whole(read: &[u8]) -> Option<((u16, String), usize)> {
    let text = std::str::from_utf8(read).unwrap();
    let (head, rest) = text.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let length = head
        .lines()
        .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse::<usize>().ok())
        .unwrap_or_else(|| panic!("an answer without a length: {head}"));
    let body = rest.get(..length)?;
    Some(((status, body.to_owned()), head.len() + 4 + length))
}

pub(super) fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: app.test\r\n\r\n")
}

pub(super) fn post(path: &str, body: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: app.test\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

async fn walk(mut client: Client<impl AsyncRead + AsyncWrite + Unpin>) {
    client.ask(&get("/app/1"), "/app/1").await;
    client.ask(&post("/app/2", "a body"), "/app/2").await;
    let chunked = "POST /app/3 HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding: chunked\r\n\r\n";
    client.ask(&format!("{chunked}6\r\na body\r\n0\r\n\r\n"), "/app/3").await;
    client.ask(&get("/app/4"), "/app/4").await;

    // The end of a body arrives after a pause.
    client.say(&chunked.replace("/3", "/5")).await;
    for piece in ["6\r\na bo", "dy\r\n0", "\r\n\r"] {
        client.say(piece).await;
        tokio::task::yield_now().await;
    }
    client.ask("\n", "/app/5").await;

    // Several requests at once, the last one split at every position.
    let last = get("/app/last");
    for cut in 1..last.len() {
        let (before, after) = last.split_at(cut);
        client.say(&format!("{}{}{before}", get("/app/a"), post("/app/b", "a body"))).await;
        client.hears("/app/a").await;
        client.hears("/app/b").await;
        client.ask(after, "/app/last").await;
    }

    // More requests than hyper parses at once.
    client.say(&get("/app/many").repeat(50)).await;
    for _ in 0..50 {
        client.hears("/app/many").await;
    }
    client.ask(&get("/app/after"), "/app/after").await;
}

#[tokio::test]
async fn requests_survive_a_pause_at_any_byte() {
    let upstream = Upstream::plain("plain").await;
    let world = world_with(&upstream, 0.0).await;
    walk(Client::new(world.verified_client("app.test").handshake().await.unwrap())).await;
}

#[tokio::test]
async fn pauses_shorter_than_the_timeout_do_not_hibernate() {
    let upstream = Upstream::plain("plain").await;
    let world = world_with(&upstream, 3600.0).await;
    walk(Client::new(world.verified_client("app.test").handshake().await.unwrap())).await;
}

/// Sends requests around the moment of hibernation, some just before and some just after. Requests
/// on another connection serve as the clock.
#[tokio::test]
async fn a_request_may_arrive_during_hibernation() {
    let upstream = Upstream::plain("plain").await;
    let world = world_with(&upstream, 0.1).await;
    let mut clients = Vec::new();
    for _ in 0..8 {
        clients.push(Client::new(world.verified_client("app.test").handshake().await.unwrap()));
    }
    let mut busy = Client::new(world.verified_client("app.test").handshake().await.unwrap());
    for pause in (180..420).step_by(20).map(Duration::from_millis) {
        for client in &mut clients {
            // Two requests, so that the connection hibernates after the pause and not at once.
            client.ask(&get("/app/first"), "/app/first").await;
            client.ask(&get("/app/second"), "/app/second").await;
        }
        let begun = Instant::now();
        while begun.elapsed() < pause {
            busy.ask(&get("/app/busy"), "/app/busy").await;
        }
    }
}

#[tokio::test]
async fn an_unread_body_is_never_parsed_as_a_request() {
    let upstream = Upstream::plain("plain").await;
    let world = world_with(&upstream, 0.0).await;
    let hidden = get("/app/hidden").repeat(400);
    let chunked = format!("{:x}\r\n{hidden}\r\n0\r\n\r\n", hidden.len());
    let heads = [
        (
            format!("POST /refused HTTP/1.1\r\nHost: app.test\r\nContent-Length: {}\r\n\r\n", hidden.len()),
            hidden,
        ),
        (
            "POST /refused HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned(),
            chunked,
        ),
    ];
    let mut asked = 0;
    for (head, body) in &heads {
        for cut in [0, 1, body.len() / 2, body.len() - 1, body.len()] {
            let mut client = Client::new(world.verified_client("app.test").handshake().await.unwrap());
            // The response comes before (a part of) the body; the rest must still be body.
            client.say(&format!("{head}{}", &body[..cut])).await;
            assert_eq!(client.answer().await.0, 404, "cut after {cut}");
            client.say(&body[cut..]).await;
            client.ask(&post("/app/next", "a body"), "/app/next").await;
            client.ask(&get("/app/next"), "/app/next").await;
            asked += 2;
            assert_eq!(upstream.requests(), asked, "cut after {cut}: only what was asked for came through");
        }
    }
}

#[tokio::test]
async fn either_side_may_close_a_hibernated_connection() {
    let upstream = Upstream::plain("plain").await;
    let world = world_with(&upstream, 0.0).await;
    let mut client = Client::new(world.verified_client("app.test").handshake().await.unwrap());
    client.ask(&get("/app/first"), "/app/first").await;
    client.io.shutdown().await.unwrap();
    assert_eq!(bounded("the reply to a close_notify", client.io.read(&mut [0; 16])).await.unwrap(), 0);

    // An end without close_notify would be an error here.
    let mut left = Client::new(world.verified_client("app.test").handshake().await.unwrap());
    let leaving = get("/app/last").replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n");
    left.ask(&leaving, "/app/last").await;
    assert_eq!(bounded("our close_notify", left.io.read(&mut [0; 16])).await.unwrap(), 0);
}
