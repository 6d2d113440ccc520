//! `kill -9` of either program at any moment: no acknowledged write is lost, and no partly applied
//! state is served.
//!
//! A writer creates numbered pairs, an upstream and then a route that refers to it. In every state,
//! a served route has its upstream (never 502 or 503), and a data plane that serves pair N serves
//! every pair below N.

use std::sync::Arc;

use e2e::admin::Admin;
use e2e::batches::{BatchWriters, assert_whole};
use e2e::client::HttpConnection;
use e2e::upstream::Upstream;
use e2e::world::World;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// The number of pairs that are acknowledged before each kill, uneven on purpose.
const KILLS_AFTER: [u64; 4] = [1, 3, 8, 14];

/// Writes pairs until the Admin API stops answering or the writer is stopped.
struct Writer {
    acknowledged: watch::Receiver<u64>,
    end: watch::Sender<bool>,
    task: JoinHandle<u64>,
}

impl Writer {
    /// Starts with pair `first`, all to `target`.
    fn start(admin: Admin, first: u64, target: &Upstream) -> Self {
        let (progress, acknowledged) = watch::channel(first - 1);
        let (end, ended) = watch::channel(false);
        let node = target.address().to_string();
        let task = tokio::spawn(async move {
            let mut revision = 0;
            for pair in first.. {
                if *ended.borrow() {
                    break;
                }
                match write_pair(&admin, pair, &node).await {
                    Some(written) => {
                        assert!(written > revision, "revision {written} after {revision}");
                        revision = written;
                        progress.send_replace(pair);
                    }
                    None => break,
                }
            }
            revision
        });
        Self { acknowledged, end, task }
    }

    async fn reached(&mut self, pair: u64) {
        let reached = self.acknowledged.wait_for(|done| *done >= pair);
        e2e::client::bounded("the writer's progress", reached).await.expect("the writer runs");
    }

    /// After the end: the last acknowledged pair and its revision.
    async fn finished(self) -> (u64, u64) {
        self.end.send_replace(true);
        let revision = self.task.await.expect("the writer does not panic");
        (*self.acknowledged.borrow(), revision)
    }
}

/// The revision of the pair's route; `None` if the control plane did not answer.
async fn write_pair(admin: &Admin, pair: u64, node: &str) -> Option<u64> {
    let upstream = json!({"nodes": {node: 1}});
    let route = json!({"uri": format!("/{pair}"), "upstream_id": format!("u{pair}")});
    let mut revision = None;
    for (path, document) in [(format!("upstreams/u{pair}"), upstream), (format!("routes/r{pair}"), route)] {
        let answer = admin.call(Method::PUT, &path, Some(&document)).await.ok()?;
        assert!(answer.status.is_success(), "PUT {path}: {} {}", answer.status, answer.reply.text());
        revision = answer.revision;
    }
    revision
}

async fn assert_all_stored(world: &World, last: u64) {
    for (plural, prefix) in [("upstreams", "u"), ("routes", "r")] {
        let answer = world.admin().get(plural).await;
        assert_eq!(answer.status, StatusCode::OK);
        let ids: Vec<&Value> =
            answer.body["list"].as_array().unwrap().iter().map(|item| &item["value"]["id"]).collect();
        for pair in 1..=last {
            assert!(
                ids.contains(&&json!(format!("{prefix}{pair}"))),
                "{plural} lost {prefix}{pair} of {last}"
            );
        }
    }
}

/// The highest pair served; panics if no write could have left that state.
async fn highest_served(session: &mut HttpConnection, at_most: u64) -> u64 {
    let mut highest = 0;
    for pair in (1..=at_most).rev() {
        let reply = session.get(&format!("/{pair}")).await.unwrap_or_else(|error| panic!("{error}"));
        match reply.status {
            StatusCode::OK => highest = highest.max(pair),
            StatusCode::NOT_FOUND => assert!(pair > highest, "{pair} is not served, but {highest} is"),
            status => panic!("pair {pair}: {status} {}", reply.text()),
        }
    }
    highest
}

#[tokio::test]
async fn a_killed_control_plane_loses_no_acknowledged_write() {
    let mut world = World::start().await;
    let upstream = Upstream::plain("plain").await;
    let (mut last, mut revision) = (0, 0);
    for more in KILLS_AFTER {
        let mut writer = Writer::start(world.admin(), last + 1, &upstream);
        writer.reached(last + more).await;
        world.kill_control().await;
        let (written, at) = writer.finished().await;
        assert!(written >= last + more && at > revision);
        (last, revision) = (written, at);
        world.start_control().await;
        assert_all_stored(&world, last).await;
        let stored = world.admin().get("dataplanes").await.body["revision"].as_u64().unwrap();
        assert!(stored >= revision, "the store went back from {revision} to {stored}");
    }
    world.wait_acknowledged(revision).await;
    let mut session = world.plain("app.test").await;
    assert!(highest_served(&mut session, last).await == last);
}

#[tokio::test]
async fn the_gateway_serves_without_its_control_plane() {
    let mut world = World::start().await;
    let upstream = Upstream::plain("plain").await;
    let mut writer = Writer::start(world.admin(), 1, &upstream);
    writer.reached(3).await;
    let mut session = world.plain("app.test").await;
    world.kill_control().await;
    let (last, revision) = writer.finished().await;
    let before = highest_served(&mut session, last + 1).await;
    assert!(before <= last + 1);
    world.start_control().await;
    world.wait_acknowledged(revision).await;
    assert!(
        highest_served(&mut session, last + 1).await >= last,
        "on the connection that was open all along"
    );
}

#[tokio::test]
async fn a_killed_data_plane_restarts_with_a_complete_state() {
    let mut world = World::start().await;
    let upstream = Upstream::plain("plain").await;
    let mut writer = Writer::start(world.admin(), 1, &upstream);
    let mut goal = 0;
    for more in KILLS_AFTER {
        goal += more;
        writer.reached(goal).await;
        world.kill_node().await;
        world.start_node().await;
        let mut session = world.plain("app.test").await;
        let so_far = *writer.acknowledged.borrow();
        highest_served(&mut session, so_far + 2).await;
    }
    let (last, revision) = writer.finished().await;
    world.wait_acknowledged(revision).await;
    let mut session = world.plain("app.test").await;
    assert_eq!(highest_served(&mut session, last).await, last);
}

#[tokio::test]
async fn a_snapshot_is_never_served_partly() {
    let world = Arc::new(World::start().await);
    let upstream = Upstream::plain("plain").await;
    let mut writer = Writer::start(world.admin(), 1, &upstream);
    let mut session = world.plain("app.test").await;
    let mut highest = 0;
    while highest < 20 {
        let so_far = *writer.acknowledged.borrow_and_update();
        let served = highest_served(&mut session, so_far + 2).await;
        assert!(served >= highest, "the gateway went back from {highest} to {served}");
        highest = served;
    }
    writer.finished().await;
}

#[tokio::test]
async fn both_planes_killed_lose_no_acknowledged_write() {
    let mut world = World::start().await;
    let upstream = Upstream::plain("plain").await;
    let mut writer = Writer::start(world.admin(), 1, &upstream);
    writer.reached(6).await;
    world.kill_control().await;
    world.kill_node().await;
    let (last, revision) = writer.finished().await;
    // The node first, because it cannot ask a control plane then.
    world.start_node().await;
    let mut session = world.plain("app.test").await;
    highest_served(&mut session, last + 1).await;
    world.start_control().await;
    world.wait_acknowledged(revision).await;
    assert_all_stored(&world, last).await;
    assert!(highest_served(&mut session, last).await == last);
}

/// The control plane is killed in a burst of batches.
#[tokio::test]
async fn a_killed_control_plane_stores_no_part_of_a_batch() {
    let mut world = World::start().await;
    let mut stored = Vec::new();
    for more in KILLS_AFTER {
        let mut writers = BatchWriters::start(&world.admin(), &stored);
        writers.progress(more).await;
        world.kill_control().await;
        let acknowledged = writers.finished().await;
        world.start_control().await;
        stored = assert_whole(&world.admin(), &acknowledged).await;
    }
}
