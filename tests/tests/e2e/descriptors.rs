//! File descriptors and connection limits: unauthenticated clients take no room from known ones,
//! and connections wait for a full worker.

use e2e::client::{Http, HttpConnection, bounded};
use e2e::documents::route;
use e2e::process::Log;
use e2e::raw;
use e2e::shell::Shell;
use e2e::upstream::Upstream;
use e2e::world::World;
use http::StatusCode;
use serde_json::{Value, json};
use tokio::net::TcpStream;

/// Starts a program with a low limit of descriptors.
const LOW: &str = "ulimit -n 256; exec \"$@\"";
const DRIVERS: [&str; 2] = ["io_uring", "epoll"];

async fn world(upstream: &Upstream, driver: &str, settings: Value, script: &str) -> World {
    let builder = World::builder().settings(settings).script(script);
    let builder = builder.node_environment("COUNTERSIGN_DRIVER", driver);
    builder.protected(upstream.address()).start().await
}

/// Polls a metric of the node until it has this value.
async fn metric_is(world: &World, name: &str, wanted: u64) {
    let reached = async { while world.metric(name).await != wanted {} };
    bounded(&format!("{name} is {wanted}"), reached).await;
}

fn lines_after(log: &Log, mark: usize) -> usize {
    log.text()[mark..].lines().count()
}

#[tokio::test]
async fn unknown_clients_do_not_exhaust_descriptors() {
    for driver in DRIVERS {
        let upstream = Upstream::plain("plain").await;
        let patient = json!({"countersign": {"limits": {"handshake_timeout": 600}}});
        let world = world(&upstream, driver, patient, LOW).await;
        world.node_log().line_with(&["limit on open descriptors is 256", "LimitNOFILE="]).await;
        let mut known = Vec::new();
        for _ in 0..8 {
            known.push(world.verified_client("app.test").http(Http::One).connect().await.unwrap());
        }
        let mark = world.node_log().mark();
        let mut clients = Vec::new();
        for _ in 0..400 {
            clients.push(TcpStream::connect(world.https()).await.unwrap());
        }
        metric_is(&world, "countersign_workers_full ", 2).await;
        assert_eq!(world.status("/status/ready").await.status, StatusCode::OK);
        // Each of these needs an upstream connection of its own.
        let held = known
            .into_iter()
            .map(|mut session| tokio::spawn(async move { session.get("/hold").await.unwrap().status }));
        let held: Vec<_> = held.collect();
        upstream.arrived(8).await;
        upstream.open_gate();
        for held in held {
            assert_eq!(held.await.unwrap(), StatusCode::OK);
        }
        let other = route("other.test", "/*", &[upstream.address()]);
        let revision = world.apply(&[("routes/other", other)]).await;
        world.wait_persisted(revision).await;
        let lines = lines_after(world.node_log(), mark);
        assert!(lines < 20, "{lines} lines: {}", &world.node_log().text()[mark..]);
        drop(clients);
        metric_is(&world, "countersign_workers_full ", 0).await;
        assert_eq!(world.verified_client("app.test").get("/").await.unwrap().status, StatusCode::OK);
    }
}

#[tokio::test]
async fn a_full_worker_lets_connections_wait() {
    for driver in DRIVERS {
        let upstream = Upstream::plain("plain").await;
        let two = json!({"countersign": {"workers": 1, "limits": {"connections_per_worker": 2}}});
        let world = world(&upstream, driver, two, "exec \"$@\"").await;
        let mut first = world.verified_client("app.test").connect().await.unwrap();
        assert_eq!(first.get("/").await.unwrap().status, StatusCode::OK);
        let second = TcpStream::connect(world.http()).await.unwrap();
        metric_is(&world, "countersign_workers_full ", 1).await;
        world.node_log().line_with(&["a worker is full", "connections=2"]).await;
        let (http, client) = (world.http(), world.verified_client("app.test"));
        let waiting = [
            tokio::spawn(async move { client.get("/").await.unwrap().status }),
            tokio::spawn(async move {
                let mut session = HttpConnection::plain(http, "app.test").await.unwrap();
                session.get("/").await.unwrap().status
            }),
        ];
        // The worker serves its connections and accepts no other.
        assert_eq!(first.get("/").await.unwrap().status, StatusCode::OK);
        assert!(waiting.iter().all(|waiting| !waiting.is_finished()));
        assert_eq!(world.metric("countersign_client_connections_active ").await, 2);
        drop(second);
        for waiting in waiting {
            assert_eq!(bounded("a waiting connection is served", waiting).await.unwrap(), StatusCode::OK);
        }
        assert_eq!(first.get("/").await.unwrap().status, StatusCode::OK);
    }
}

#[tokio::test]
async fn a_descriptor_limit_that_is_too_low_fails_the_start() {
    let mut world = World::start().await;
    world.stop_node().await;
    let tiny = ["bash", "-c", "ulimit -n 64; exec \"$@\"", "bash"];
    let config = world.write_config("node-1");
    let launch = e2e::process::Launch::new("dataplane", &config).through(&tiny);
    let problem = launch.try_start(&Log::default()).await.err().unwrap();
    assert!(problem.contains("the limit on open descriptors is 64"), "{problem}");
    assert!(problem.contains("ulimit -n"), "{problem}");
}

#[tokio::test]
async fn unknown_clients_do_not_affect_the_push() {
    let upstream = Upstream::plain("plain").await;
    let world = world(&upstream, "io_uring", json!({}), LOW).await;
    world.control_log().line_with(&["limit on open descriptors is 256", "LimitNOFILE="]).await;
    let mark = world.control_log().mark();
    let mut clients = Vec::new();
    for _ in 0..200 {
        clients.push(TcpStream::connect(world.admin_address()).await.unwrap());
        clients.push(TcpStream::connect(world.push_address()).await.unwrap());
    }
    assert_eq!(world.control_status("/status/ready").await.status, StatusCode::OK);
    assert_eq!(world.metric("countersign_control_plane_connected ").await, 1);
    drop(clients);
    let route = route("other.test", "/*", &[upstream.address()]);
    world.apply(&[("routes/other", route)]).await;
    let lines = lines_after(world.control_log(), mark);
    assert!(lines < 70, "{lines} lines: {}", &world.control_log().text()[mark..]);
}

#[tokio::test]
async fn garbage_on_the_push_port_is_counted_and_rarely_logged() {
    let world = World::start().await;
    let mark = world.control_log().mark();
    let flood = (0..500).map(|_| {
        let push = world.push_address();
        tokio::spawn(async move {
            let mut stream = raw::send(push, b"GET / HTTP/1.1\r\n\r\n").await;
            raw::until_closed(&mut stream).await;
        })
    });
    for one in flood.collect::<Vec<_>>() {
        one.await.unwrap();
    }
    let text = world.control_status("/metrics").await.text();
    let name = "countersign_errors_total{reason=\"push_handshake\"} ";
    let counted = text.lines().find_map(|line| line.strip_prefix(name)?.parse::<u64>().ok());
    assert_eq!(counted, Some(500), "{text}");
    let lines = lines_after(world.control_log(), mark);
    assert!((50..200).contains(&lines), "{lines} lines");
}

#[tokio::test]
async fn failed_accepts_are_logged_once_and_counted() {
    for driver in DRIVERS {
        let upstream = Upstream::plain("plain").await;
        let world = world(&upstream, driver, json!({}), "exec \"$@\"").await;
        let mut known = world.verified_client("app.test").http(Http::One).connect().await.unwrap();
        assert_eq!(known.get("/").await.unwrap().status, StatusCode::OK);
        let mark = world.node_log().mark();
        let limit = async |count: usize| {
            let command = format!("prlimit --pid {} --nofile={count}:20000", world.node_id());
            let output = Shell::new(world.folder()).run(&command).await;
            assert_eq!(output.exit, 0, "{output:?}");
        };
        // Less than are open already.
        limit(3).await;
        let mut waiting = Vec::new();
        for _ in 0..50 {
            waiting.push(TcpStream::connect(world.https()).await.unwrap());
        }
        world.node_log().line_after(mark, &["cannot accept; trying again", "no descriptor"]).await;
        assert_eq!(known.get("/").await.unwrap().status, StatusCode::OK);
        limit(20_000).await;
        assert_eq!(world.verified_client("app.test").get("/").await.unwrap().status, StatusCode::OK);
        assert!(world.metric("countersign_accept_errors_total ").await >= 1);
        let lines = lines_after(world.node_log(), mark);
        assert!(lines < 20, "{lines} lines: {}", &world.node_log().text()[mark..]);
    }
}
