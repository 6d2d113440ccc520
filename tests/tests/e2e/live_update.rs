//! A change applies soon to connections that are already open.
//!
//! The bound of 200 ms is from the Admin API's response to the first request that sees the change;
//! the median of many changes counts, because a single measurement depends on the machine's load.

use serde_json::json;
use std::time::{Duration, Instant};

use e2e::client::{Http, HttpConnection};
use e2e::documents::{protected, route};
use e2e::upstream::Upstream;
use e2e::world::World;
use http::StatusCode;

const CHANGES: usize = 11;

async fn median_delay(world: &World, session: &mut HttpConnection, upstreams: &[Upstream; 2]) -> Duration {
    let admin = world.admin();
    let mut delays = Vec::new();
    for change in 0..CHANGES {
        let target = &upstreams[change % 2];
        let expected = if change % 2 == 0 { "even" } else { "odd" };
        admin.put("routes/app", &route("app.test", "/*", &[target.address()])).await;
        let answered = Instant::now();
        loop {
            let reply = session.get("/").await.unwrap();
            assert_eq!(reply.status, StatusCode::OK, "{}", reply.text());
            if reply.json()["upstream"] == expected {
                break;
            }
            assert!(answered.elapsed() < e2e::process::EVENT_TIMEOUT, "change {change} never came");
        }
        delays.push(answered.elapsed());
    }
    delays.sort();
    delays[CHANGES / 2]
}

#[tokio::test]
async fn a_change_applies_to_the_next_request() {
    let world = World::start().await;
    let upstreams = [Upstream::plain("even").await, Upstream::plain("odd").await];
    world
        .apply(&[
            ("ssls/app", world.protected_site()),
            ("routes/app", route("app.test", "/*", &[upstreams[1].address()])),
        ])
        .await;
    for http in [Http::One, Http::Two] {
        let mut session = world.verified_client("app.test").http(http).connect().await.unwrap();
        assert_eq!(session.get("/").await.unwrap().json()["upstream"], "odd");
        let median = median_delay(&world, &mut session, &upstreams).await;
        assert!(median < Duration::from_millis(200), "{http:?}: {median:?}");
        world.apply(&[("routes/app", route("app.test", "/*", &[upstreams[1].address()]))]).await;
    }
}

#[tokio::test]
async fn an_untrusted_client_loses_its_open_connection() {
    let (world, upstream) = World::protected(json!({})).await;
    for http in [Http::One, Http::Two] {
        world.apply(&[("ssls/app", world.protected_site())]).await;
        let mut session = world.verified_client("app.test").http(http).connect().await.unwrap();
        assert_eq!(session.get("/before").await.unwrap().status, StatusCode::OK);
        let seen = upstream.requests();
        world.apply(&[("ssls/app", protected(world.open_site(), &world.credentials.untrusted))]).await;
        let after = session.get("/after").await;
        let served = after.as_ref().is_ok_and(|reply| reply.status == StatusCode::OK);
        assert!(!served, "{http:?}: {after:?}");
        assert_eq!(upstream.requests(), seen, "{http:?}");
    }
}

#[tokio::test]
async fn an_unrelated_change_leaves_open_connections_alone() {
    let (world, _upstream) = World::protected(json!({})).await;
    let mut session = world.verified_client("app.test").connect().await.unwrap();
    assert_eq!(session.get("/").await.unwrap().status, StatusCode::OK);
    let other = e2e::documents::site(&world.credentials.servers.server(&["other.test"]), "other.test");
    world.apply(&[("ssls/other", protected(other, &world.credentials.untrusted))]).await;
    assert_eq!(session.get("/").await.unwrap().status, StatusCode::OK, "the same connection goes on");
}

#[tokio::test]
async fn removing_a_route_or_site_applies_at_once() {
    let (world, _upstream) = World::open(json!({})).await;
    let mut session = world.client("app.test").connect().await.unwrap();
    assert_eq!(session.get("/").await.unwrap().status, StatusCode::OK);
    let revision = world.admin().delete("routes/app").await;
    world.wait_acknowledged(revision).await;
    let reply = session.get("/").await.unwrap();
    assert_eq!(reply.status, StatusCode::NOT_FOUND);
    assert_eq!(reply.text(), "{\"error_msg\":\"404 Route Not Found\"}\n");
    let revision = world.admin().delete("ssls/app").await;
    world.wait_acknowledged(revision).await;
    world.client("app.test").expect_alert().await;
}
