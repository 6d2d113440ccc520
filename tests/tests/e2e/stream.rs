//! TCP proxying: which clients are accepted, both directions to their ends, and what happens when a
//! client, the upstream or the gateway goes away.

use std::sync::Arc;
use std::time::Duration;

use e2e::client::{HttpClient, Tls, bounded};
use e2e::credentials::Credential;
use e2e::documents::{protected, site as site_of, weighted};
use e2e::ports::Reservation;
use e2e::raw;
use e2e::resources::memory_peak;
use e2e::upstream::tcp::{Script, TcpUpstream, digest_of};
use e2e::upstream::{pattern, sha256};
use e2e::world::World;
use http::StatusCode;
use nix::sys::signal::Signal;
use rustls::AlertDescription;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

const MIB: usize = 1 << 20;

/// Two stream listeners: the first with TLS, the second without.
pub(crate) fn streaming() -> Value {
    streaming_with(json!({}))
}

/// The same, with more of `apisix`.
pub(crate) fn streaming_with(more: Value) -> Value {
    let mut apisix = json!({
        "proxy_mode": "http&stream",
        "stream_proxy": {"tcp": [{"addr": "127.0.0.1:0", "tls": true}, "127.0.0.1:0"]},
    });
    e2e::settings::merge(&mut apisix, more);
    json!({"apisix": apisix})
}

pub(crate) fn to(nodes: &[std::net::SocketAddr]) -> Value {
    json!({"nodes": weighted(nodes)})
}

/// The response of [`Script::Greet`].
pub(crate) fn hello(name: &str) -> String {
    format!("hello from {name}\n")
}

/// Sends bytes and reads until the other side ends.
pub(crate) async fn reply(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> String {
    // The gateway may have closed already; only the response counts.
    let _ = stream.write_all(b"mmm").await;
    String::from_utf8(raw::until_closed(stream).await).unwrap()
}

/// The response to a client of the TLS listener with this name.
pub(crate) async fn ask(world: &World, sni: &str) -> String {
    let mut stream = world.tcp_client(sni).handshake().await.unwrap_or_else(|error| panic!("{error}"));
    reply(&mut stream).await
}

/// The response to a client of the listener without TLS.
pub(crate) async fn ask_plain(world: &World) -> String {
    reply(&mut TcpStream::connect(world.stream(1)).await.unwrap()).await
}

/// A name without a site.
pub(crate) async fn rejected(world: &World, sni: &str) {
    assert_eq!(world.tcp_client(sni).expect_alert().await, AlertDescription::UnrecognisedName);
}

/// A world with the site `app.test` and one route for all, to an upstream with this script.
async fn world_to(script: Script) -> (World, TcpUpstream) {
    let world = World::builder().settings(streaming()).start().await;
    let upstream = TcpUpstream::plain("one", script).await;
    let route = json!({"upstream": to(&[upstream.address()])});
    world.apply(&[("ssls/app", world.open_site()), ("stream_routes/1", route)]).await;
    (world, upstream)
}

async fn metric(world: &World, name: &str) -> u64 {
    let text = world.status("/metrics").await.text();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{name} is not in {text}")).parse().unwrap()
}

// === accepted clients ===

#[tokio::test]
async fn a_rejected_client_reaches_no_upstream() {
    let (world, upstream) = world_to(Script::Greet).await;
    world.apply(&[("ssls/app", world.protected_site())]).await;
    for tls in [Tls::V12, Tls::V13] {
        let client = world.tcp_client("app.test").tls(tls);
        let rejection = client.expect_alert().await;
        let none = [AlertDescription::CertificateRequired, AlertDescription::HandshakeFailure];
        assert!(none.contains(&rejection), "{rejection:?}");
        for wrong in [
            world.credentials.untrusted.client("good-client"),
            world.credentials.clients.expired_client("good-client"),
            world.credentials.clients.server(&["app.test"]),
        ] {
            client.clone().identity(&wrong).expect_alert().await;
        }
        assert_eq!(upstream.connections(), 0);
    }
    world.node_log().lines_with(&["handshake rejected", "no_certificate", "sni=\"app.test\""], 2).await;
    world
        .node_log()
        .lines_with(&["handshake rejected", "bad_certificate", "verify_reason=\"expired\""], 2)
        .await;
    let mut good =
        world.tcp_client("app.test").identity(&world.credentials.client).handshake().await.unwrap();
    assert_eq!(reply(&mut good).await, hello("one"));
    assert_eq!(upstream.connections(), 1);
}

/// Skip rules are for requests: sessions made under them must not count on a stream listener.
#[tokio::test]
async fn a_site_with_skip_rules_requires_certificates_for_streams() {
    let tickets = streaming_with(json!({"ssl": {"ssl_session_tickets": true}}));
    let world = World::builder().settings(tickets).start().await;
    let upstream = TcpUpstream::plain("one", Script::Greet).await;
    let mut site = world.protected_site();
    site["client"]["skip_mtls_uri_regex"] = json!(["^/"]);
    let route = json!({"upstream": to(&[upstream.address()])});
    world.apply(&[("ssls/app", site), ("stream_routes/1", route)]).await;
    let untrusted = world.credentials.untrusted.client("x");
    for tls in [Tls::V12, Tls::V13] {
        for identity in [None, Some(&untrusted)] {
            let with = |client: HttpClient| {
                let client = client.tls(tls);
                identity.map_or(client.clone(), |identity| client.identity(identity))
            };
            let config = Arc::new(with(world.client("app.test")).config());
            // The HTTPS side accepts it twice: the client has all the tickets that it issues.
            for _ in 0..2 {
                let mut open =
                    with(world.client("app.test")).handshake_with(Arc::clone(&config)).await.unwrap();
                open.write_all(b"GET / HTTP/1.1\r\nHost: app.test\r\nConnection: close\r\n\r\n")
                    .await
                    .unwrap();
                let answer = String::from_utf8(raw::until_closed(&mut open).await).unwrap();
                assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
            }
            let stream = with(world.tcp_client("app.test")).handshake_with(Arc::clone(&config)).await;
            if let Ok(mut stream) = stream {
                assert_eq!(
                    reply(&mut stream).await,
                    "",
                    "in TLS 1.3 the rejection comes after the client's handshake"
                );
            }
            assert_eq!(upstream.connections(), 0, "{tls:?} {}", identity.is_some());
        }
    }
    let mut good =
        world.tcp_client("app.test").identity(&world.credentials.client).handshake().await.unwrap();
    assert_eq!(reply(&mut good).await, hello("one"));
}

#[tokio::test]
async fn a_stream_without_a_route_is_closed_with_a_reason() {
    let world = World::builder().settings(streaming()).start().await;
    world.apply(&[("ssls/app", world.open_site()), ("stream_routes/1", json!({"sni": "other.test"}))]).await;
    assert_eq!(ask(&world, "app.test").await, "");
    assert_eq!(ask_plain(&world).await, "");
    let log = world.node_log();
    log.line_with(&["no_stream_route", "sni=\"app.test\"", "peer=127.0.0.1"]).await;
    world.apply(&[("stream_routes/1", json!({}))]).await;
    assert_eq!(ask(&world, "app.test").await, "");
    log.line_with(&["no_upstream", "route=\"1\""]).await;
    assert_eq!(metric(&world, "countersign_errors_total{reason=\"no_stream_route\"}").await, 2);
}

#[tokio::test]
async fn garbage_on_the_stream_ports_ends_the_connection() {
    let (world, upstream) = world_to(Script::Greet).await;
    for (what, bytes) in [
        ("zeros", vec![0; 512]),
        ("plain HTTP", b"GET / HTTP/1.1\r\nHost: app.test\r\n\r\n".to_vec()),
        ("an alert first", vec![0x15, 0x03, 0x03, 0x00, 0x02, 0x02, 0x28]),
        ("empty records", [0x16, 0x03, 0x01, 0x00, 0x00].repeat(100)),
        ("half a record", vec![0x16, 0x03, 0x01, 0x40]),
        ("nothing", vec![]),
    ] {
        let mut stream = raw::send(world.stream(0), &bytes).await;
        let _ = stream.shutdown().await;
        let answered = raw::until_closed(&mut stream).await;
        assert!(answered.is_empty() || answered[0] == 0x15, "{what}: {answered:?}");
    }
    assert_eq!(upstream.connections(), 0);
    // Without TLS any bytes are a stream.
    let mut stream = raw::send(world.stream(1), &[0; 512]).await;
    assert_eq!(raw::until_closed(&mut stream).await, hello("one").as_bytes());
    drop(stream);
    assert_eq!(upstream.ended(0).await.bytes, 512);
    assert_eq!(ask(&world, "app.test").await, hello("one"));
}

#[tokio::test]
async fn a_stream_ends_when_its_client_is_revoked() {
    let (world, _upstream) = world_to(Script::Echo).await;
    let mut site = world.protected_site();
    site["client"]["skip_mtls_uri_regex"] = json!(["^/"]);
    let elsewhere = world.credentials.servers.server(&["other.example"]);
    let other = protected(site_of(&elsewhere, "other.example"), &world.credentials.clients);
    world.apply(&[("ssls/app", site.clone()), ("ssls/other", other)]).await;
    let connected = async |sni| {
        let client = world.tcp_client(sni).identity(&world.credentials.client);
        let mut stream = client.handshake().await.unwrap();
        stream.write_all(b"first").await.unwrap();
        stream.read_exact(&mut [0; 5]).await.unwrap();
        stream
    };
    let (mut gone, mut stays) = (connected("app.test").await, connected("other.example").await);
    site["client"]["ca"] = json!(world.credentials.untrusted.certificate_pem());
    world.apply(&[("ssls/app", site)]).await;
    assert_eq!(raw::until_closed(&mut gone).await, b"");
    world.node_log().line_with(&["connection closed", "policy_changed", "sni=\"app.test\""]).await;
    stays.write_all(b"after").await.unwrap();
    let mut heard = [0; 5];
    stays.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"after");
}

// === both directions, to their ends ===

/// The client ends its direction before it gets the response.
async fn reply_to_the_end(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), bytes: &[u8]) -> String {
    stream.write_all(bytes).await.unwrap();
    stream.shutdown().await.unwrap();
    String::from_utf8(raw::until_closed(stream).await).unwrap()
}

#[tokio::test]
async fn a_half_closed_client_gets_its_response() {
    let (world, plain) = world_to(Script::Digest).await;
    let certificate = world.credentials.upstreams.server(&["up.test"]);
    let tls = TcpUpstream::tls("tls", Script::Digest, &certificate).await;
    let words = pattern(300_000);
    let expected = digest_of(&words);
    for upstream in [&plain, &tls] {
        let mut entry = to(&[upstream.address()]);
        entry["scheme"] = json!(if upstream.address() == tls.address() { "tls" } else { "tcp" });
        world.apply(&[("stream_routes/1", json!({"upstream": entry}))]).await;
        for version in [Tls::V12, Tls::V13] {
            let mut stream = world.tcp_client("app.test").tls(version).handshake().await.unwrap();
            // A TLS 1.2 client may not read after its close_notify; rustls' does.
            assert_eq!(reply_to_the_end(&mut stream, &words).await, expected, "{version:?}");
        }
        let mut stream = TcpStream::connect(world.stream(1)).await.unwrap();
        assert_eq!(reply_to_the_end(&mut stream, &words).await, expected);
        assert_eq!(upstream.ended(2).await.ended, Some(true), "the end was complete, not cut");
    }
}

#[tokio::test]
async fn a_half_closed_upstream_gets_the_rest() {
    let (world, upstream) = world_to(Script::Pour(200_000)).await;
    let words = pattern(100_000);
    let mut within = world.tcp_client("app.test").handshake().await.unwrap();
    let mut plain = TcpStream::connect(world.stream(1)).await.unwrap();
    assert_eq!(sha256(&raw::until_closed(&mut within).await), sha256(&pattern(200_000)));
    assert_eq!(sha256(&raw::until_closed(&mut plain).await), sha256(&pattern(200_000)));
    within.write_all(&words).await.unwrap();
    within.shutdown().await.unwrap();
    plain.write_all(&words).await.unwrap();
    plain.shutdown().await.unwrap();
    for nth in 0..2 {
        let seen = upstream.ended(nth).await;
        assert_eq!((seen.sha256, seen.ended), (sha256(&words), Some(true)));
    }
}

#[tokio::test]
async fn streams_work_the_same_on_epoll() {
    let world = World::builder().settings(streaming()).node_environment("COUNTERSIGN_DRIVER", "epoll");
    let world = world.start().await;
    assert_eq!(world.node_ready()["driver"], "epoll");
    let upstream = TcpUpstream::plain("one", Script::Digest).await;
    let route = json!({"upstream": to(&[upstream.address()])});
    world.apply(&[("ssls/app", world.protected_site()), ("stream_routes/1", route)]).await;
    let words = pattern(4 * MIB);
    let client = world.tcp_client("app.test").identity(&world.credentials.client);
    let mut within = client.handshake().await.unwrap();
    assert_eq!(reply_to_the_end(&mut within, &words).await, digest_of(&words));
    let mut plain = TcpStream::connect(world.stream(1)).await.unwrap();
    assert_eq!(reply_to_the_end(&mut plain, &words).await, digest_of(&words));
    assert_eq!(world.tcp_client("app.test").expect_alert().await, AlertDescription::CertificateRequired);
}

/// Only `close_notify` proves a complete stream: without it, the bytes are delivered and the cut is
/// passed on.
#[tokio::test]
async fn a_missing_close_notify_is_passed_on_as_a_reset() {
    let world = World::builder().settings(streaming()).start().await;
    let certificate = world.credentials.upstreams.server(&["up.test"]);
    let upstream = TcpUpstream::tls("tls", Script::Echo, &certificate).await;
    let mut entry = to(&[upstream.address()]);
    entry["scheme"] = json!("tls");
    world.apply(&[("ssls/app", world.open_site()), ("stream_routes/1", json!({"upstream": entry}))]).await;
    let mut stream = world.tcp_client("app.test").handshake().await.unwrap();
    stream.write_all(b"all but the l").await.unwrap();
    stream.flush().await.unwrap();
    stream.get_mut().0.shutdown().await.unwrap();
    let seen = upstream.ended(0).await;
    assert_eq!((seen.bytes, seen.ended), (13, Some(false)));
    raw::until_closed(&mut stream).await;
}

#[tokio::test]
async fn a_hundred_mebibytes_pass_both_ways_at_once() {
    let (world, upstream) = world_to(Script::Echo).await;
    let (mut read, mut write) = tokio::io::split(world.tcp_client("app.test").handshake().await.unwrap());
    let words = pattern(100 * MIB);
    let expected = sha256(&words);
    let writer = tokio::spawn(async move {
        write.write_all(&words).await.unwrap();
        write.shutdown().await.unwrap();
    });
    let mut heard = Vec::with_capacity(100 * MIB);
    bounded("the echo", read.read_to_end(&mut heard)).await.unwrap();
    writer.await.unwrap();
    assert_eq!(heard.len(), 100 * MIB);
    assert_eq!(sha256(&heard), expected);
    assert_eq!(upstream.ended(0).await.sha256, expected);
    assert_eq!(
        metric(&world, "countersign_tcp_bytes_total{direction=\"to_client\"}").await,
        100 * MIB as u64
    );
    assert_eq!(metric(&world, "countersign_tcp_connections_total").await, 1);
}

#[tokio::test]
async fn a_slow_client_blocks_the_upstream_without_buffering() {
    let (world, _upstream) = world_to(Script::Pour(64 * MIB)).await;
    // The first stream pages code in, so it is not measured.
    let mut first = world.tcp_client("app.test").handshake().await.unwrap();
    assert_eq!(raw::until_closed(&mut first).await.len(), 64 * MIB);
    let moved = async || metric(&world, "countersign_tcp_bytes_total{direction=\"to_client\"}").await;
    let (before, already) = (memory_peak(world.node_id()), moved().await);
    let mut stream = world.tcp_client("app.test").handshake().await.unwrap();
    // Until the buffers of the kernel and the gateway are full.
    let stalled = bounded("the stream stalls", async {
        let (mut last, mut same) = (0, 0);
        while same < 20 {
            let now = moved().await;
            same = if now == last && now > already { same + 1 } else { 0 };
            last = now;
        }
        last - already
    });
    let stalled = stalled.await;
    assert!(stalled < 32 * MIB as u64, "{stalled} bytes were taken for a client that reads nothing");
    let grown = memory_peak(world.node_id()).saturating_sub(before);
    assert!(grown < 8 * MIB as u64, "{grown} bytes more");
    assert_eq!(sha256(&raw::until_closed(&mut stream).await), sha256(&pattern(64 * MIB)));
}

#[tokio::test]
async fn proxy_mode_stream_disables_http() {
    let world = World::builder().settings(streaming_with(json!({"proxy_mode": "stream"}))).start().await;
    let ready = world.node_ready();
    assert_eq!((&ready["http"], &ready["https"]), (&json!([]), &json!([])));
    let upstream = TcpUpstream::plain("one", Script::Greet).await;
    world.apply(&[("stream_routes/1", json!({"upstream": to(&[upstream.address()])}))]).await;
    assert_eq!(ask_plain(&world).await, hello("one"));
}

// === ends ===

#[tokio::test]
async fn refusing_nodes_are_skipped_and_others_alternate() {
    let world = World::builder().settings(streaming()).start().await;
    let (one, two) =
        (TcpUpstream::plain("1", Script::Greet).await, TcpUpstream::plain("2", Script::Greet).await);
    let dead = Reservation::any();
    let route = json!({"upstream": to(&[dead.address(), one.address(), two.address()])});
    world.apply(&[("ssls/app", world.open_site()), ("stream_routes/1", route)]).await;
    for _ in 0..12 {
        assert!(ask(&world, "app.test").await.starts_with("hello from "));
    }
    assert_eq!(one.connections() + two.connections(), 12);
    assert!(one.connections() >= 4 && two.connections() >= 4, "{} {}", one.connections(), two.connections());

    world.apply(&[("stream_routes/1", json!({"upstream": to(&[dead.address()])}))]).await;
    assert_eq!(ask(&world, "app.test").await, "");
    world.node_log().line_with(&["upstream_connect", "route=\"1\"", "sni=\"app.test\""]).await;
}

#[tokio::test]
async fn a_node_is_verified_when_configured() {
    let world = World::builder().settings(streaming_with(json!({
        "ssl": {"ssl_trusted_certificate": "upstream-ca.crt"}
    })));
    let world = world.start().await;
    let good =
        TcpUpstream::tls("good", Script::Greet, &world.credentials.upstreams.server(&["app.test"])).await;
    let bad: &Credential = &world.credentials.untrusted.server(&["app.test"]);
    let bad = TcpUpstream::tls("bad", Script::Greet, bad).await;
    world.apply(&[("ssls/app", world.open_site())]).await;
    for (upstream, verify, answer) in
        [(&good, true, hello("good")), (&bad, true, String::new()), (&bad, false, hello("bad"))]
    {
        let mut entry = to(&[upstream.address()]);
        entry["scheme"] = json!("tls");
        entry["tls"] = json!({"verify": verify});
        world.apply(&[("stream_routes/1", json!({"upstream": entry}))]).await;
        assert_eq!(ask(&world, "app.test").await, answer, "verify: {verify}");
    }
    world.node_log().line_with(&["upstream_tls", "route=\"1\""]).await;
}

#[tokio::test]
async fn a_silent_stream_ends_after_the_uptcp_timeout() {
    let world = World::builder().settings(streaming()).start().await;
    let upstream = TcpUpstream::plain("one", Script::Silent).await;
    let mut entry = to(&[upstream.address()]);
    entry["timeout"] = json!({"connect": 5, "send": 5, "read": 1});
    world.apply(&[("ssls/app", world.open_site()), ("stream_routes/1", json!({"upstream": entry}))]).await;
    let started = std::time::Instant::now();
    assert_eq!(ask(&world, "app.test").await, "");
    assert!(started.elapsed() >= Duration::from_millis(900), "{:?}", started.elapsed());
    world.node_log().line_with(&["tcp_timeout", "neither side sent anything for 1s", "app.test"]).await;
}

#[tokio::test]
async fn a_running_stream_finishes_during_a_stop() {
    let (mut world, upstream) = world_to(Script::Echo).await;
    let mut stream = world.tcp_client("app.test").handshake().await.unwrap();
    let mut heard = [0; 5];
    stream.write_all(b"first").await.unwrap();
    stream.read_exact(&mut heard).await.unwrap();
    let mut idle = world.client("app.test").handshake().await.unwrap();
    idle.write_all(b"GET / HTTP/1.1\r\nHost: app.test\r\n\r\n").await.unwrap();
    idle.read_exact(&mut [0; 12]).await.unwrap();
    let address = world.stream(0);
    let mut node = world.take_node();
    node.signal(Signal::SIGTERM);
    // The idle HTTP connection ends first: the stop has begun.
    raw::until_closed(&mut idle).await;
    stream.write_all(b"after").await.unwrap();
    stream.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"after");
    stream.shutdown().await.unwrap();
    assert_eq!(raw::until_closed(&mut stream).await, b"");
    assert_eq!(upstream.ended(0).await.ended, Some(true));
    assert!(node.ended().await.success());
    assert!(TcpStream::connect(address).await.is_err(), "the port is closed");
}

#[tokio::test]
async fn an_http_route_rejects_a_stream_upstream() {
    let (world, upstream) = world_to(Script::Greet).await;
    let http = to(&[upstream.address()]);
    let mut stream = http.clone();
    stream["scheme"] = json!("tcp");
    world
        .apply(&[
            ("upstreams/1", http),
            ("routes/1", json!({"uri": "/*", "upstream_id": 1})),
            ("upstreams/1", stream),
        ])
        .await;
    assert_eq!(world.plain("app.test").await.get("/").await.unwrap().status, StatusCode::SERVICE_UNAVAILABLE);
    world.node_log().line_with(&["upstream_scheme", "scheme tcp"]).await;
    assert_eq!(upstream.connections(), 0);
}
