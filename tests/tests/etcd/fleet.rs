//! The fleet as one: a response of one control plane covers the data planes of all, and stopped
//! ones are detected.

use std::time::{Duration, Instant};

use e2e::client::bounded;
use e2e::etcd::{Entry, Etcd};
use e2e::upstream::Upstream;
use e2e::world::World;
use http::StatusCode;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::stage::route;

/// The limit until a stopped control plane is left and the node is served elsewhere: three seconds,
/// on a busy machine.
const NOTICED: Duration = Duration::from_secs(9);

/// Two control planes; node-1 is served by the first, node-2 by the second.
async fn one_node_each() -> (Etcd, World, Upstream) {
    let etcd = Etcd::plain().await;
    let builder = World::builder().etcd(&etcd).control_planes(2).nodes(&["node-1", "node-2"]);
    let mut world = builder.start().await;
    world.stop_control_at(0).await;
    connected(&world, 1, &["node-1", "node-2"]).await;
    world.start_control_at(0).await;
    world.stop_node().await;
    world.start_node().await;
    connected(&world, 0, &["node-1"]).await;
    (etcd, world, Upstream::plain("one").await)
}

/// Waits until these are connected to the n-th control plane.
async fn connected(world: &World, index: usize, names: &[&str]) {
    bounded("the nodes connect", async {
        loop {
            let view = world.admin_of(index).get("dataplanes").await.body;
            let list = view["list"].as_array().unwrap();
            let there = list.iter().filter(|node| node["connected"] == true);
            let there: Vec<_> = there.map(|node| node["name"].as_str().unwrap()).collect();
            if there == names {
                return;
            }
        }
    })
    .await;
}

async fn acknowledged(world: &World, index: usize, revision: u64, timeout: &str) -> (StatusCode, Value) {
    let answer =
        world.admin_of(index).get(&format!("dataplanes?acknowledged={revision}&timeout={timeout}")).await;
    (answer.status, answer.body)
}

fn signal(process: u32, signal: Signal) {
    kill(Pid::from_raw(process.try_into().unwrap()), signal).unwrap();
}

async fn reports(etcd: &Etcd) -> Vec<Entry> {
    etcd.keys().await.with_prefix("/apisix/countersign/control_planes/").await
}

#[tokio::test]
async fn a_response_covers_the_nodes_of_all_control_planes() {
    let (etcd, mut world, upstream) = one_node_each().await;
    let put = async |world: &World, path: &str| {
        world.admin_of(1).put(&format!("routes/{path}"), &route(&upstream, &format!("/{path}"))).await
    };
    let revision = put(&world, "a").await;
    for index in 0..2 {
        let (status, view) = acknowledged(&world, index, revision, "30").await;
        assert_eq!((status, &view["behind"]), (StatusCode::OK, &json!([])), "{view}");
        let other = &view["control_planes"][0];
        assert_eq!((&other["nodes"], view["control_planes"].as_array().unwrap().len()), (&json!(1), 1));
        assert_eq!(other["push"], world.push_address_of(1 - index).to_string());
    }
    // node-1 hangs, at the control plane that is not asked.
    signal(world.node_id(), Signal::SIGSTOP);
    let revision = put(&world, "b").await;
    let (status, view) = acknowledged(&world, 1, revision, "1").await;
    assert_eq!(status, StatusCode::GATEWAY_TIMEOUT, "{view}");
    let behind = &view["behind"][0];
    assert_eq!((&behind["node"], view["behind"].as_array().unwrap().len()), (&json!("node-1"), 1), "{view}");
    assert!(
        behind["control_plane"].as_str().unwrap().contains(&world.push_address_of(0).to_string()),
        "{view}"
    );
    assert!(behind["acknowledged"].as_u64().unwrap() < revision);
    // The control plane gives up on it: it counts as disconnected, and no wait includes it.
    assert_eq!(acknowledged(&world, 1, revision, "30").await.0, StatusCode::OK);
    signal(world.node_id(), Signal::SIGCONT);
    // It finds a control plane again, either one.
    bounded("node-1 is back", async {
        let is_there = async |index: usize| {
            let view = world.admin_of(index).get("dataplanes").await.body;
            let list = view["list"].as_array().unwrap().clone();
            list.iter().any(|node| node["name"] == "node-1" && node["connected"] == true)
        };
        while !(is_there(0).await || is_there(1).await) {}
    })
    .await;
    assert_eq!(acknowledged(&world, 1, revision, "30").await.0, StatusCode::OK);

    // A stopped control plane removes its report.
    assert_eq!(reports(&etcd).await.len(), 2);
    world.stop_control_at(0).await;
    assert_eq!(reports(&etcd).await.len(), 1);
}

#[tokio::test]
async fn a_stopped_control_plane_is_left_within_seconds() {
    let (etcd, world, upstream) = one_node_each().await;
    let process = world.control_process(0).id();
    signal(process, Signal::SIGSTOP);
    let stopped = Instant::now();
    connected(&world, 1, &["node-1", "node-2"]).await;
    let took = stopped.elapsed();
    assert!(took < NOTICED, "node-1 left it after {took:?}");
    // Its report still names node-1, which serves the newest revision elsewhere.
    let revision = world.admin_of(1).put("routes/a", &route(&upstream, "/a")).await;
    assert_eq!(reports(&etcd).await.len(), 2);
    let (status, view) = acknowledged(&world, 1, revision, "30").await;
    assert_eq!(status, StatusCode::OK, "{view}");
    assert_eq!(reports(&etcd).await.len(), 2, "it was not the lease's end that made it so");
    signal(process, Signal::SIGCONT);
}

/// The report of a killed control plane stays; the one with its address now knows better.
#[tokio::test]
async fn the_report_of_a_killed_predecessor_is_ignored() {
    let etcd = Etcd::plain().await;
    let mut world = World::builder().etcd(&etcd).start().await;
    let upstream = Upstream::plain("one").await;
    let revision = world.admin().put("routes/a", &route(&upstream, "/a")).await;
    assert_eq!(acknowledged(&world, 0, revision, "30").await.0, StatusCode::OK);
    bounded("the report says so", async {
        let acknowledged = |entry: &Entry| entry.json()["oldest"][0]["acknowledged"] == revision;
        while !reports(&etcd).await.iter().any(acknowledged) {}
    })
    .await;
    world.kill_control().await;
    world.kill_node().await;
    world.start_control().await;
    let (status, view) = acknowledged(&world, 0, revision, "1").await;
    assert_eq!(status, StatusCode::GATEWAY_TIMEOUT, "{view}");
    assert_eq!(view["behind"][0]["problem"], "no data plane is connected");
    world.start_node().await;
    assert_eq!(acknowledged(&world, 0, revision, "30").await.0, StatusCode::OK);
}

#[tokio::test]
async fn without_the_store_no_report_covers_other_nodes() {
    let (mut etcd, world, upstream) = one_node_each().await;
    let revision = world.admin_of(0).put("routes/a", &route(&upstream, "/a")).await;
    assert_eq!(acknowledged(&world, 0, revision, "30").await.0, StatusCode::OK);
    etcd.kill().await;
    // A recent reading counts for 0.1 s.
    let view = bounded("the reports cannot be read", async {
        loop {
            let (status, view) = acknowledged(&world, 0, revision, "1").await;
            if status == StatusCode::GATEWAY_TIMEOUT {
                return view;
            }
        }
    })
    .await;
    let problem = view["behind"][0]["problem"].as_str().unwrap();
    assert!(problem.contains("what the other control planes serve is not known"), "{view}");
}

#[tokio::test]
async fn one_generated_admin_key_is_valid_at_every_control_plane() {
    let etcd = Etcd::plain().await;
    let generated =
        json!({"deployment": {"admin": {"admin_key": [{"name": "admin", "key": "", "role": "admin"}]}}});
    let builder = World::builder().etcd(&etcd).control_planes(2).without_control().settings(generated);
    let mut world = builder.start().await;
    // Each has a folder of its own, as on two machines.
    for index in 0..2 {
        world.start_control_at(index).await;
    }
    let [first, second] = ["control", "control-2"].map(|name| world.folder().join(name).join("admin.key"));
    let key = std::fs::read_to_string(first).unwrap();
    assert!(!second.exists());
    for index in 0..2 {
        let opens = async |key: &str| world.admin_of(index).key(Some(key)).get("routes").await.status;
        assert_eq!(opens(key.trim()).await, StatusCode::OK);
        assert_eq!(opens("another").await, StatusCode::UNAUTHORIZED);
    }
    world.control_log_of(1).line_with(&["the admin key is the one in", "control/admin.key"]).await;
    for entry in etcd.keys().await.with_prefix("/").await {
        assert!(!String::from_utf8_lossy(&entry.value).contains(key.trim()), "{}", entry.key);
    }
}
