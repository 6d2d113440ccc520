//! SIGTERM: requests in progress finish, no connection is accepted, and the program exits within
//! the deadline in any case.

use std::time::{Duration, Instant};

use e2e::client::{Http, bounded};
use e2e::raw;
use e2e::upstream::Upstream;
use e2e::world::World;
use http::StatusCode;
use nix::sys::signal::Signal;
use serde_json::json;
use tokio::io::AsyncWriteExt;

async fn world_with(upstream: &Upstream, deadline: &str) -> World {
    let settings = json!({"nginx_config": {"worker_shutdown_timeout": deadline}});
    World::builder().settings(settings).protected(upstream.address()).start().await
}

#[tokio::test]
async fn a_request_in_progress_is_finished() {
    for http in [Http::One, Http::Two] {
        let upstream = Upstream::plain("plain").await;
        let mut world = world_with(&upstream, "60s").await;
        let mut idle =
            world.client("app.test").identity(&world.credentials.client).handshake().await.unwrap();
        idle.write_all(b"GET / HTTP/1.1\r\nHost: app.test\r\n\r\n").await.unwrap();
        upstream.arrived(1).await;
        let mut session = world.verified_client("app.test").http(http).connect().await.unwrap();
        let held = tokio::spawn(async move { session.get("/hold").await });
        upstream.arrived(2).await;

        let mut node = world.take_node();
        node.signal(Signal::SIGTERM);
        // The idle connection ends first, which shows that the stop has begun while the held
        // request runs.
        raw::until_closed(&mut idle).await;
        assert!(!held.is_finished());
        upstream.open_gate();
        let reply = held.await.unwrap().unwrap_or_else(|error| panic!("{http:?}: {error}"));
        assert_eq!(reply.status, StatusCode::OK);
        let status = node.ended().await;
        assert!(status.success(), "{status}");
        assert!(world.verified_client("app.test").connect().await.is_err(), "the port is closed");
    }
}

#[tokio::test]
async fn a_request_that_never_ends_is_cut_at_the_deadline() {
    let upstream = Upstream::plain("plain").await;
    let mut world = world_with(&upstream, "1s").await;
    let mut session = world.verified_client("app.test").connect().await.unwrap();
    let held = tokio::spawn(async move { session.get("/hold").await });
    upstream.arrived(1).await;
    let started = Instant::now();
    let status = world.stop_node().await;
    assert!(status.success(), "{status}");
    assert!(started.elapsed() >= Duration::from_millis(900), "{:?}", started.elapsed());
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    let cut = bounded("the held request ends", held).await.unwrap();
    assert!(!cut.is_ok_and(|reply| reply.status == StatusCode::OK));
}

#[tokio::test]
async fn both_programs_stop_cleanly_and_come_back() {
    let upstream = Upstream::plain("plain").await;
    let mut world = world_with(&upstream, "60s").await;
    assert!(world.stop_node().await.success());
    assert!(world.stop_control().await.success());
    world.start_control().await;
    world.start_node().await;
    let revision = world.admin().get("dataplanes").await.body["revision"].as_u64().unwrap();
    world.wait_acknowledged(revision).await;
    assert_eq!(world.verified_client("app.test").get("/").await.unwrap().status, StatusCode::OK);
}

#[tokio::test]
async fn an_interrupt_stops_like_sigterm() {
    let mut world = World::start().await;
    let mut node = world.take_node();
    node.signal(Signal::SIGINT);
    assert!(node.ended().await.success());
}
