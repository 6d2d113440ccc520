//! A site without a client policy that is deleted, disabled or renamed: its connections finish
//! their requests, get a GOAWAY, and serve nothing new. With a client policy they end at
//! once (`live_connections`).

use std::sync::Arc;
use std::time::{Duration, Instant};

use e2e::client::{Http, bounded, full};
use e2e::documents::{protected, site, weighted};
use e2e::frames::{self, END_HEADERS, END_STREAM, FrameConnection, HEADERS};
use e2e::tools::curl;
use e2e::upstream::tcp::{Script, TcpUpstream};
use e2e::upstream::{FIRST_HALF, SECOND_HALF, Upstream, pattern, sha256};
use e2e::world::World;
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use rustls::AlertDescription;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::stream::{streaming, to};

const DRAINED: &str = "they finish their requests in flight";
/// The size of a long download; its client reads none of it before the site is gone.
const DOWNLOAD: usize = 50_000_000;

struct Stage {
    world: World,
    upstream: Upstream,
}

impl Stage {
    async fn new(settings: Value) -> Self {
        let world = World::builder().settings(settings).start().await;
        let upstream = Upstream::plain("plain").await;
        let stage = Self { world, upstream };
        let all = json!({"uri": "/*", "upstream": {"nodes": weighted(&[stage.upstream.address()])}});
        stage.world.apply(&[("ssls/app", stage.world.open_site()), ("routes/all", all)]).await;
        stage
    }

    /// Removes the name from its site, and waits until the node serves that.
    async fn take_away(&self, how: &str) {
        let mut document = self.world.open_site();
        match how {
            "delete" => {
                let revision = self.world.admin().delete("ssls/app").await;
                return self.world.wait_acknowledged(revision).await;
            }
            "disable" => document["status"] = json!(0),
            "rename" => document["snis"] = json!(["elsewhere.test"]),
            other => panic!("{other}"),
        }
        self.world.apply(&[("ssls/app", document)]).await;
    }

    /// The same, and waits until the one connection has got it.
    async fn take_away_and_tell(&self, how: &str) {
        let mark = self.world.node_log().mark();
        self.take_away(how).await;
        self.world.node_log().line_after(mark, &[DRAINED, "connections=1"]).await;
    }

    async fn refused(&self) {
        assert_eq!(self.world.client("app.test").expect_alert().await, AlertDescription::UnrecognisedName);
    }
}

#[tokio::test]
async fn a_long_download_outlives_its_site() {
    for (how, http) in
        [("delete", Http::One), ("delete", Http::Two), ("disable", Http::One), ("rename", Http::Two)]
    {
        let stage = Stage::new(json!({})).await;
        let mut session = stage.world.client("app.test").http(http).connect().await.unwrap();
        let path = format!("/sized?bytes={DOWNLOAD}");
        let answer = session.send(session.request(Method::GET, &path, full(""))).await.unwrap();
        stage.take_away_and_tell(how).await;
        stage.refused().await;
        let body = bounded("the download", answer.into_body().collect()).await;
        let body = body.unwrap_or_else(|problem| panic!("{how} {http:?}: {problem}")).to_bytes();
        assert_eq!((body.len(), sha256(&body)), (DOWNLOAD, sha256(&pattern(DOWNLOAD))), "{how} {http:?}");
        session.ended().await;
    }
}

#[tokio::test]
async fn curl_gets_its_whole_response() {
    for (protocol, path) in [("--http1.1", "/halves"), ("--http2", "/halves"), ("--http1.1", "/hold")] {
        let stage = Stage::new(json!({})).await;
        let port = stage.world.https().port();
        let (resolve, url) = (format!("app.test:{port}:127.0.0.1"), format!("https://app.test:{port}{path}"));
        let folder = stage.world.folder().to_owned();
        let downloading = tokio::spawn(async move {
            curl(&folder, &[protocol, "-i", "--cacert", "server-ca.crt", "--resolve", &resolve, &url]).await
        });
        stage.upstream.arrived(1).await;
        stage.take_away_and_tell("delete").await;
        stage.upstream.open_gate();
        let curled = downloading.await.unwrap();
        assert_eq!((curled.exit, curled.status), (0, 200), "{protocol}: {curled:?}");
        if path == "/halves" {
            assert!(curled.body.ends_with(&format!("{FIRST_HALF}{SECOND_HALF}")), "{protocol}: {curled:?}");
        } else {
            assert!(curled.body.to_lowercase().contains("\r\nconnection: close\r\n"), "{curled:?}");
        }
    }
}

#[tokio::test]
async fn an_upload_outlives_its_site() {
    for how in ["delete", "rename"] {
        let stage = Stage::new(json!({})).await;
        let mut stream = stage.world.client("app.test").handshake().await.unwrap();
        let head = "POST /sink HTTP/1.1\r\nHost: app.test\r\nContent-Length: 12\r\n\r\nbefore";
        stream.write_all(head.as_bytes()).await.unwrap();
        stage.upstream.arrived(1).await;
        stage.take_away_and_tell(how).await;
        stream.write_all(b"after.").await.unwrap();
        let mut answer = String::new();
        bounded("the answer and the end", stream.read_to_string(&mut answer)).await.expect("a quiet end");
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{how}: {answer}");
        assert!(
            answer.contains("\"bytes\":12") && answer.contains(&sha256(b"beforeafter.")),
            "{how}: {answer}"
        );
        assert!(answer.to_lowercase().contains("\r\nconnection: close\r\n"), "{how}: {answer}");
    }
}

#[tokio::test]
async fn http_1_closes_with_its_next_response() {
    for how in ["delete", "disable", "rename"] {
        let stage = Stage::new(json!({})).await;
        let mut session = stage.world.client("app.test").connect().await.unwrap();
        assert_eq!(session.get("/before").await.unwrap().status, StatusCode::OK);
        let waiting = tokio::spawn(async move {
            let reply = session.get("/hold").await;
            (reply, session)
        });
        stage.upstream.arrived(2).await;
        stage.take_away_and_tell(how).await;
        stage.upstream.open_gate();
        let (reply, mut session) = waiting.await.unwrap();
        let reply = reply.unwrap_or_else(|error| panic!("{how}: {error}"));
        assert_eq!(
            (reply.status, reply.headers["connection"].as_bytes()),
            (StatusCode::OK, &b"close"[..]),
            "{how}"
        );
        session.ended().await;
    }
}

#[tokio::test]
async fn http_2_gets_goaway_and_serves_nothing_new() {
    let stage = Stage::new(json!({})).await;
    let mut wire = FrameConnection::connect(&stage.world.client("app.test")).await;
    let get = |stream: u32, path: &str| {
        let block = frames::request_block("GET", "app.test", path);
        frames::frame(HEADERS, END_STREAM | END_HEADERS, stream, &block)
    };
    assert!(wire.send(&[get(1, "/hold"), get(3, "/halves")].concat()).await);
    stage.upstream.arrived(2).await;
    stage.take_away_and_tell("delete").await;
    // Whether this one is denied or gets no response depends on how much the client has read.
    assert!(wire.send(&get(5, "/new")).await);
    stage.upstream.open_gate();
    let heard = wire.ended().await;
    assert_eq!((heard.goaway, heard.resets), (Some(0), 0), "{heard:?}");
    assert!(heard.answers == 2 || heard.answers == 3, "{heard:?}");
    assert_eq!(stage.upstream.requests(), 2, "nothing new is forwarded");
}

#[tokio::test]
async fn idle_connections_are_closed_gracefully() {
    let stage = Stage::new(json!({})).await;
    let client = stage.world.client("app.test");
    let mut kept = client.handshake().await.unwrap();
    kept.write_all(b"GET / HTTP/1.1\r\nHost: app.test\r\n\r\n").await.unwrap();
    assert!(bounded("an answer", kept.read(&mut [0; 4096])).await.unwrap() > 0);
    let mut wire = FrameConnection::connect(&client).await;
    assert!(wire.send(&frames::frame(frames::SETTINGS, 1, 0, &[])).await);
    stage.take_away("delete").await;
    // Without close_notify this is an error.
    bounded("the end", kept.read_to_end(&mut Vec::new())).await.expect("a quiet end");
    let heard = wire.ended().await;
    assert_eq!((heard.goaway, heard.answers), (Some(0), 0));
}

#[tokio::test]
async fn a_request_after_the_site_is_gone_reaches_no_upstream() {
    for _ in 0..10 {
        let stage = Stage::new(json!({})).await;
        let mut kept = stage.world.client("app.test").handshake().await.unwrap();
        stage.take_away("delete").await;
        // The connection may have been closed meanwhile.
        let _ = kept.write_all(b"GET /after HTTP/1.1\r\nHost: app.test\r\n\r\n").await;
        let answer = String::from_utf8(e2e::raw::until_closed(&mut kept).await).unwrap().to_lowercase();
        let misdirected = answer.starts_with("http/1.1 421 ") && answer.contains("\r\nconnection: close\r\n");
        assert!(answer.is_empty() || misdirected, "{answer}");
        assert_eq!(stage.upstream.requests(), 0);
    }
}

#[tokio::test]
async fn endless_requests_end_at_worker_shutdown_timeout() {
    let stage = Stage::new(json!({"nginx_config": {"worker_shutdown_timeout": "1s"}})).await;
    for http in [Http::One, Http::Two] {
        stage.world.apply(&[("ssls/app", stage.world.open_site())]).await;
        let mut session = stage.world.client("app.test").http(http).connect().await.unwrap();
        let before = stage.upstream.requests();
        let waiting = tokio::spawn(async move { session.get("/halves").await });
        stage.upstream.arrived(before + 1).await;
        let begun = Instant::now();
        let mark = stage.world.node_log().mark();
        stage.take_away_and_tell("delete").await;
        let answer = bounded("the end of what never ends", waiting).await.unwrap();
        assert!(answer.is_err(), "{answer:?}");
        assert!(begun.elapsed() >= Duration::from_millis(900), "{:?}", begun.elapsed());
        stage.world.node_log().line_after(mark, &["connection closed", "no_site", "app.test"]).await;
    }
}

#[tokio::test]
async fn a_policy_that_returns_with_the_name_ends_draining_requests() {
    let stage = Stage::new(json!({})).await;
    let mut session = stage.world.client("app.test").connect().await.unwrap();
    let waiting = tokio::spawn(async move { session.get("/halves").await });
    stage.upstream.arrived(1).await;
    stage.take_away_and_tell("delete").await;
    let mark = stage.world.node_log().mark();
    stage.world.apply(&[("ssls/other", stage.world.protected_site())]).await;
    stage.world.node_log().line_after(mark, &["connection closed", "policy_changed", "app.test"]).await;
    assert!(bounded("its end", waiting).await.unwrap().is_err());
}

/// A policy that was removed before the site: its clients get no grace.
#[tokio::test]
async fn a_former_policy_ends_the_connection() {
    let stage = Stage::new(json!({})).await;
    stage.world.apply(&[("ssls/app", stage.world.protected_site())]).await;
    let mut session = stage.world.verified_client("app.test").connect().await.unwrap();
    let waiting = tokio::spawn(async move { session.get("/halves").await });
    stage.upstream.arrived(1).await;
    stage.world.apply(&[("ssls/app", stage.world.open_site())]).await;
    let mark = stage.world.node_log().mark();
    stage.take_away("delete").await;
    stage.world.node_log().line_after(mark, &["connection closed", "no_site", "app.test"]).await;
    assert!(bounded("its end", waiting).await.unwrap().is_err());
}

#[tokio::test]
async fn a_name_that_stays_served_keeps_its_connections() {
    let stage = Stage::new(json!({})).await;
    let (credentials, world) = (&stage.world.credentials, &stage.world);
    let mut open = Vec::new();
    for http in [Http::One, Http::Two] {
        let mut session = world.client("app.test").http(http).connect().await.unwrap();
        let answer = session.send(session.request(Method::GET, "/halves", full(""))).await.unwrap();
        open.push((session, answer));
    }
    // Another certificate, other versions, a wildcard site that takes the name over, and the route
    // gone.
    let mut changed = site(&credentials.servers.server(&["app.test"]), "app.test");
    changed["ssl_protocols"] = json!(["TLSv1.2"]);
    let wildcard = site(&credentials.site, "*.test");
    world.apply(&[("ssls/app", changed), ("ssls/wild", wildcard)]).await;
    stage.take_away("delete").await;
    let revision = world.admin().delete("routes/all").await;
    world.wait_acknowledged(revision).await;
    stage.upstream.open_gate();
    for (mut session, answer) in open {
        let body = bounded("the answer", answer.into_body().collect()).await.unwrap().to_bytes();
        assert_eq!(body, format!("{FIRST_HALF}{SECOND_HALF}"));
        let after = session.get("/after").await.expect("the connection goes on");
        assert_eq!(after.status, StatusCode::NOT_FOUND);
    }
}

#[tokio::test]
async fn an_h2_connection_survives_the_loss_of_another_site() {
    let stage = Stage::new(json!({})).await;
    let other = site(&stage.world.credentials.servers.server(&["other.test"]), "other.test");
    stage.world.apply(&[("ssls/other", other)]).await;
    let mut session = stage.world.client("app.test").http(Http::Two).connect().await.unwrap();
    let mut request = session.request(Method::GET, "/halves", full(""));
    *request.uri_mut() = "https://other.test/halves".parse().unwrap();
    let answer = session.send(request).await.unwrap();
    let revision = stage.world.admin().delete("ssls/other").await;
    stage.world.wait_acknowledged(revision).await;
    stage.upstream.open_gate();
    let body = bounded("the answer", answer.into_body().collect()).await.unwrap().to_bytes();
    assert_eq!(body, format!("{FIRST_HALF}{SECOND_HALF}"));
    assert_eq!(session.get("/after").await.unwrap().status, StatusCode::OK);
}

#[tokio::test]
async fn a_stream_ends_at_the_same_timeout() {
    for (deadline, cut) in [("240s", false), ("1s", true)] {
        let mut settings = streaming();
        settings["nginx_config"] = json!({"worker_shutdown_timeout": deadline});
        let stage = Stage::new(settings).await;
        let upstream = TcpUpstream::plain("one", Script::Echo).await;
        let route = json!({"upstream": to(&[upstream.address()])});
        stage.world.apply(&[("stream_routes/1", route)]).await;
        let client = stage.world.tcp_client("app.test");
        let mut stream = client.handshake_with(Arc::new(client.config())).await.unwrap();
        stream.write_all(b"before").await.unwrap();
        let mut read = [0; 6];
        bounded("an echo", stream.read_exact(&mut read)).await.unwrap();
        let mark = stage.world.node_log().mark();
        stage.take_away_and_tell("delete").await;
        assert_eq!(client.expect_alert().await, AlertDescription::UnrecognisedName);
        if cut {
            stage.world.node_log().line_after(mark, &["connection closed", "no_site", "app.test"]).await;
            e2e::raw::until_closed(&mut stream).await;
        } else {
            stream.write_all(b"after.").await.unwrap();
            bounded("an echo", stream.read_exact(&mut read)).await.unwrap();
            assert_eq!(&read, b"after.");
        }
    }
}

#[tokio::test]
async fn the_timeout_does_not_apply_to_remaining_sites() {
    let stage = Stage::new(json!({"nginx_config": {"worker_shutdown_timeout": "1s"}})).await;
    let other = protected(
        site(&stage.world.credentials.servers.server(&["other.test"]), "other.test"),
        &stage.world.credentials.clients,
    );
    stage.world.apply(&[("ssls/other", other)]).await;
    let mut bystander = stage.world.verified_client("other.test").connect().await.unwrap();
    assert_eq!(bystander.get("/before").await.unwrap().status, StatusCode::OK);
    let mut session = stage.world.client("app.test").connect().await.unwrap();
    let waiting = tokio::spawn(async move { session.get("/halves").await });
    stage.upstream.arrived(2).await;
    stage.take_away_and_tell("delete").await;
    assert!(bounded("the cut", waiting).await.unwrap().is_err());
    assert_eq!(bystander.get("/after").await.unwrap().status, StatusCode::OK);
}
