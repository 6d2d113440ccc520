//! Graceful shutdown behind a load balancer: the node is not ready at once, accepts connections for
//! a while, and loses none at the end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use e2e::client::{Http, HttpConnection, bounded};
use e2e::documents::{route, weighted};
use e2e::frames::{FrameConnection, get};
use e2e::process::{Launch, Log};
use e2e::raw;
use e2e::upstream::Upstream;
use e2e::upstream::tcp::{Script, TcpUpstream};
use e2e::world::World;
use http::StatusCode;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// RFC 9113 section 7.
const REFUSED_STREAM: u32 = 7;
const DRIVERS: [&str; 2] = ["io_uring", "epoll"];

async fn world_with(upstream: &Upstream, driver: &str, settings: Value) -> World {
    let builder = World::builder().settings(settings).node_environment("COUNTERSIGN_DRIVER", driver);
    let world = builder.start().await;
    let revision = world.serve(world.protected_site(), upstream).await;
    // A successor serves its last-good file until the control plane sends more.
    world.wait_persisted(revision).await;
    world
}

fn delay(seconds: u32) -> Value {
    json!({"countersign": {"drain_delay": seconds}})
}

#[tokio::test]
async fn a_draining_node_is_not_ready_and_serves() {
    let upstream = Upstream::plain("plain").await;
    let mut world = world_with(&upstream, "io_uring", delay(3600)).await;
    let mut kept = world.verified_client("app.test").http(Http::One).connect().await.unwrap();
    let mut kept_h2 = world.verified_client("app.test").http(Http::Two).connect().await.unwrap();
    assert_eq!(kept.get("/").await.unwrap().status, StatusCode::OK);
    let nodes = |world: &World| {
        let admin = world.admin();
        async move { admin.get("dataplanes").await.body }
    };
    assert_eq!(nodes(&world).await["list"][0]["draining"], false);
    let mut node = world.take_node();
    node.signal(Signal::SIGTERM);
    world.node_log().line_with(&["accepting connections until drain_delay has passed"]).await;
    let ready = world.status("/status/ready").await;
    assert_eq!(ready.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(ready.text().contains("draining"), "{}", ready.text());
    assert_eq!(world.status("/status").await.status, StatusCode::OK);
    let last = kept.get("/").await.unwrap();
    assert_eq!((last.status, &last.headers["connection"]), (StatusCode::OK, &"close".parse().unwrap()));
    kept.ended().await;
    for _ in 0..3 {
        let reply = kept_h2.get("/").await.unwrap();
        assert_eq!((reply.status, reply.headers.get("connection")), (StatusCode::OK, None));
        for http in [Http::One, Http::Two] {
            assert_eq!(
                world.verified_client("app.test").http(http).get("/").await.unwrap().status,
                StatusCode::OK
            );
        }
    }
    let draining = async { while nodes(&world).await["list"][0]["draining"] != true {} };
    bounded("the control plane shows that the node drains", draining).await;
    assert_eq!(nodes(&world).await["list"][0]["connected"], true);
    let other = route("other.test", "/*", &[upstream.address()]);
    world.apply(&[("routes/other", other)]).await;
    node.signal(Signal::SIGTERM);
    assert_eq!(node.ended().await.code(), Some(130));
}

/// Connects and requests in a loop until the port is closed. Every accepted connection must be
/// answered.
async fn hammer(address: SocketAddr, served: Arc<AtomicUsize>) {
    while let Ok(mut stream) = TcpStream::connect(address).await {
        let request = b"GET / HTTP/1.1\r\nHost: app.test\r\nConnection: close\r\n\r\n";
        stream.write_all(request).await.expect("a connection that was accepted takes a request");
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer).await;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{read:?}: {answer:?}");
        served.fetch_add(1, Ordering::Relaxed);
    }
}

#[tokio::test]
async fn no_connection_is_lost_when_listeners_close() {
    for driver in DRIVERS {
        let upstream = Upstream::plain("plain").await;
        let mut world = world_with(&upstream, driver, json!({})).await;
        let served = Arc::new(AtomicUsize::new(0));
        let hammers: Vec<_> =
            (0..16).map(|_| tokio::spawn(hammer(world.http(), Arc::clone(&served)))).collect();
        upstream.arrived(200).await;
        let mut node = world.take_node();
        node.signal(Signal::SIGTERM);
        for one in hammers {
            bounded("a client is refused", one).await.unwrap_or_else(|lost| panic!("{driver}: {lost}"));
        }
        assert!(served.load(Ordering::Relaxed) >= 200);
        assert!(node.ended().await.success());
    }
}

#[tokio::test]
async fn the_last_accepted_connection_gets_a_response() {
    let upstream = Upstream::plain("plain").await;
    let mut world = world_with(&upstream, "io_uring", json!({})).await;
    let mut unused = world.verified_client("app.test").http(Http::One).connect().await.unwrap();
    let mut plain = TcpStream::connect(world.http()).await.unwrap();
    let mut half = world.verified_client("app.test").handshake().await.unwrap();
    half.write_all(b"GET / HTTP/1.1\r\nHost: app").await.unwrap();
    let mut node = world.take_node();
    node.signal(Signal::SIGTERM);
    world.node_log().line_with(&["the listeners close"]).await;
    half.write_all(b".test\r\n\r\n").await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\nHost: app.test\r\n\r\n").await.unwrap();
    for answer in [raw::until_closed(&mut half).await, raw::until_closed(&mut plain).await] {
        let answer = String::from_utf8(answer).unwrap().to_lowercase();
        assert!(answer.starts_with("http/1.1 200 ok") && answer.contains("connection: close"), "{answer}");
    }
    assert_eq!(unused.get("/").await.unwrap().status, StatusCode::OK);
    assert!(node.ended().await.success());
}

#[tokio::test]
async fn an_idle_connection_does_not_delay_the_stop() {
    let upstream = Upstream::plain("plain").await;
    let slow = json!({
        "nginx_config": {"http": {"client_header_timeout": "3600s"}, "worker_shutdown_timeout": "3600s"},
    });
    let mut world = world_with(&upstream, "io_uring", slow).await;
    let mut silent =
        [TcpStream::connect(world.http()).await.unwrap(), TcpStream::connect(world.https()).await.unwrap()];
    silent[0].write_all(b"GET / HT").await.unwrap();
    assert!(world.stop_node().await.success());
}

#[tokio::test]
async fn a_rolling_restart_behind_a_balancer_fails_no_request() {
    let upstream = Upstream::plain("plain").await;
    let builder = World::builder().settings(delay(5)).nodes(&["node-1", "node-2"]);
    let mut world = builder.start().await;
    let route = route("app.test", "/*", &[upstream.address()]);
    world.apply(&[("routes/app", route)]).await;
    let nodes = [0, 1].map(|index| (world.node_address(index, "status"), world.node_address(index, "http")));
    let over = Arc::new(AtomicBool::new(false));
    let asked = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
    let balancer = tokio::spawn({
        let (over, asked) = (Arc::clone(&over), Arc::clone(&asked));
        async move {
            while !over.load(Ordering::Relaxed) {
                for ((status, http), asked) in nodes.into_iter().zip(asked.iter()) {
                    if is_ready(status).await {
                        let mut session = HttpConnection::plain(http, "app.test").await.unwrap();
                        assert_eq!(session.get("/").await.unwrap().status, StatusCode::OK);
                        asked.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        }
    });
    let both = async {
        while asked.iter().any(|asked| asked.load(Ordering::Relaxed) < 20) {
            tokio::task::yield_now().await
        }
    };
    bounded("both nodes are asked", both).await;
    assert!(world.stop_node().await.success());
    world.start_node().await;
    let before = asked[0].load(Ordering::Relaxed);
    let again = async {
        while asked[0].load(Ordering::Relaxed) < before + 20 {
            tokio::task::yield_now().await
        }
    };
    bounded("the restarted node is asked", again).await;
    over.store(true, Ordering::Relaxed);
    balancer.await.unwrap();
}

/// A readiness probe like a load balancer's.
async fn is_ready(status: SocketAddr) -> bool {
    let Ok(mut session) = HttpConnection::plain(status, "status").await else { return false };
    session.get("/status/ready").await.is_ok_and(|reply| reply.status == StatusCode::OK)
}

#[tokio::test]
async fn a_successor_starts_while_its_predecessor_drains() {
    let upstream = Upstream::plain("plain").await;
    let mut world = world_with(&upstream, "io_uring", delay(1)).await;
    let mut session = world.verified_client("app.test").connect().await.unwrap();
    let held = tokio::spawn(async move { session.get("/hold").await });
    upstream.arrived(1).await;
    let mut old = world.take_node();
    old.signal(Signal::SIGTERM);
    world.node_log().line_with(&["SIGTERM: stopping gracefully"]).await;
    // Waits for all three ports, of which the status port is the first.
    world.start_node().await;
    assert_eq!(world.status("/status/ready").await.status, StatusCode::OK);
    assert_eq!(world.verified_client("app.test").get("/").await.unwrap().status, StatusCode::OK);
    assert!(!held.is_finished());
    upstream.open_gate();
    assert_eq!(held.await.unwrap().unwrap().status, StatusCode::OK);
    assert!(old.ended().await.success());
}

#[tokio::test]
async fn a_successor_of_a_full_worker_starts() {
    for driver in DRIVERS {
        let upstream = Upstream::plain("plain").await;
        let two = json!({
            "countersign": {"workers": 1, "limits": {"connections_per_worker": 2}},
            "nginx_config": {"worker_shutdown_timeout": "3600s"},
        });
        let mut world = world_with(&upstream, driver, two).await;
        let mut held = Vec::new();
        for _ in 0..2 {
            let mut session = world.verified_client("app.test").connect().await.unwrap();
            held.push(tokio::spawn(async move { session.get("/hold").await.unwrap().status }));
        }
        upstream.arrived(2).await;
        // One listener has queued connections, the other none.
        let mut waiting = Vec::new();
        for _ in 0..4 {
            waiting.push(TcpStream::connect(world.https()).await.unwrap());
        }
        let mut old = world.take_node();
        old.signal(Signal::SIGTERM);
        world.node_log().line_with(&["the listeners close"]).await;
        world.start_node().await;
        assert_eq!(world.status("/status/ready").await.status, StatusCode::OK);
        assert_eq!(world.verified_client("app.test").get("/").await.unwrap().status, StatusCode::OK);
        assert!(held.iter().all(|held| !held.is_finished()));
        upstream.open_gate();
        for held in held {
            assert_eq!(held.await.unwrap(), StatusCode::OK);
        }
        drop(waiting);
        assert!(old.ended().await.success());
    }
}

#[tokio::test]
async fn an_http_2_client_without_ping_replies_is_closed() {
    let upstream = Upstream::plain("plain").await;
    let patient = json!({
        "nginx_config": {"http": {"keepalive_timeout": "3600s"}, "worker_shutdown_timeout": "3600s"},
    });
    let mut world = world_with(&upstream, "io_uring", patient).await;
    let client = world.verified_client("app.test");
    let (mut silent, mut asking) =
        (FrameConnection::connect(&client).await, FrameConnection::connect(&client).await);
    for wire in [&mut silent, &mut asking] {
        assert!(wire.send(&get(1, "app.test", "/")).await);
        wire.until("the first answer", |heard| heard.whole == [1]).await;
    }
    let mut node = world.take_node();
    node.signal(Signal::SIGTERM);
    // Sends a request whenever the connection is quiet: those of the first seconds are answered,
    // the others are not.
    let asking = asking.drip("the end", |n| get(3 + 2 * n, "app.test", "/"), |heard| heard.over);
    let (_, asked) = tokio::join!(silent.until("the end of the silent one", |heard| heard.over), asking);
    assert!(asked.reset.iter().any(|&(_, code)| code == REFUSED_STREAM), "{:?}", asked.reset);
    assert!(node.ended().await.success());
}

#[tokio::test]
async fn a_status_port_in_use_fails_the_start_first() {
    let mut world = World::start().await;
    world.stop_node().await;
    let occupied = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let status =
        json!({"apisix": {"status": {"ip": "127.0.0.1", "port": occupied.local_addr().unwrap().port()}}});
    let mut settings: Value =
        serde_json::from_str(&std::fs::read_to_string(world.write_config("node-1")).unwrap()).unwrap();
    e2e::settings::merge(&mut settings, status);
    let config = world.write("occupied.yaml", &settings.to_string());
    let log = Log::default();
    let problem = Launch::new("dataplane", &config).try_start(&log).await.err().unwrap();
    assert!(problem.contains("apisix.status: cannot listen on"), "{problem}");
}

#[tokio::test]
async fn a_busy_stream_delays_the_stop_and_an_idle_one_does_not() {
    let settings = json!({
        "apisix": {"proxy_mode": "http&stream", "stream_proxy": {"tcp": ["127.0.0.1:0"]}},
        "countersign": {"drain_idle_timeout": 1},
        "nginx_config": {"worker_shutdown_timeout": "3600s"},
    });
    let mut world = World::builder().settings(settings).start().await;
    let upstream = TcpUpstream::plain("one", Script::Echo).await;
    let route = json!({"upstream": {"nodes": weighted(&[upstream.address()])}});
    world.apply(&[("stream_routes/1", route)]).await;
    let mut idle = TcpStream::connect(world.stream(0)).await.unwrap();
    let mut busy = TcpStream::connect(world.stream(0)).await.unwrap();
    for stream in [&mut idle, &mut busy] {
        echo(stream).await;
    }
    let mut node = world.take_node();
    node.signal(Signal::SIGTERM);
    world.node_log().line_with(&["the listeners close"]).await;
    let mut ended = tokio::spawn(async move { raw::until_closed(&mut idle).await });
    let both = async {
        loop {
            tokio::select! {
                rest = &mut ended => return rest.unwrap(),
                () = echo(&mut busy) => {}
            }
        }
    };
    assert_eq!(bounded("the idle stream is ended", both).await, b"");
    world.node_log().line_with(&["tcp_timeout", "the process stops"]).await;
    echo(&mut busy).await;
    drop(busy);
    assert!(node.ended().await.success());
}

async fn echo(stream: &mut TcpStream) {
    stream.write_all(b"ping").await.unwrap();
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"ping");
}

#[tokio::test]
async fn a_draining_control_plane_is_not_ready_and_serves() {
    let settings = delay(3600);
    let mut world = World::builder().settings(settings).start().await;
    assert_eq!(world.control_status("/status/ready").await.status, StatusCode::OK);
    let mut control = world.take_control();
    control.signal(Signal::SIGTERM);
    world.control_log().line_with(&["accepting connections until drain_delay has passed"]).await;
    let ready = world.control_status("/status/ready").await;
    assert_eq!(ready.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(ready.text().contains("draining"), "{}", ready.text());
    world.apply(&[("ssls/app", world.protected_site())]).await;
    control.signal(Signal::SIGINT);
    assert_eq!(control.ended().await.code(), Some(130));
}

#[tokio::test]
async fn the_last_accepted_admin_connection_gets_a_response() {
    let mut world = World::start().await;
    let mut unused = TcpStream::connect(world.admin_address()).await.unwrap();
    let mut control = world.take_control();
    control.signal(Signal::SIGTERM);
    world.control_log().line_with(&["SIGTERM: stopping gracefully"]).await;
    // The error page for plain HTTP on the TLS port counts as a response.
    unused.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let answer = String::from_utf8(raw::until_closed(&mut unused).await).unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer:?}");
    assert!(control.ended().await.success());
}
