//! Broken histories: compacted while a watcher is away, or restored to an older revision. Data
//! planes end up with exactly the content of etcd.

use e2e::etcd::Etcd;
use e2e::process::run_to_end;
use e2e::proxy::{Network, Proxy};
use e2e::world::World;
use http::{Method, StatusCode};
use serde_json::json;

use super::stage::{Stage, name, numbered};

/// A setup whose control plane reaches etcd through a proxy.
async fn behind_a_proxy() -> (Stage, Proxy) {
    let etcd = Etcd::plain().await;
    let proxy = Proxy::to(etcd.address()).await;
    let builder = World::builder().etcd(etcd.access().through(&[proxy.address()]));
    (Stage::with(etcd, builder).await, proxy)
}

/// The number in the host at the upstream for this path; `None` without a route.
async fn number(stage: &Stage, path: &str) -> Option<String> {
    let reply = stage.world.plain("app.test").await.get(path).await.unwrap_or_else(|error| panic!("{error}"));
    match reply.status {
        StatusCode::OK => Some(reply.json()["headers"]["host"].as_str().unwrap().to_owned()),
        StatusCode::NOT_FOUND => None,
        status => panic!("{path}: {status}"),
    }
}

async fn assert_numbers(stage: &Stage, expected: &[(&str, Option<u64>)]) {
    for (path, version) in expected {
        assert_eq!(number(stage, path).await, version.map(|version| format!("v{version}")), "{path}");
    }
}

/// PUTs numbered routes through the Admin API.
async fn apply(stage: &Stage, documents: &[(&str, u64)]) -> u64 {
    let mut revision = 0;
    for (id, version) in documents {
        let document = numbered(&stage.upstream, &format!("/{id}"), *version);
        revision = stage.world.admin().put(&format!("routes/{id}"), &document).await;
    }
    stage.world.wait_acknowledged(revision).await;
    revision
}

#[tokio::test]
async fn compacted_changes_are_found_by_a_full_read() {
    let (stage, proxy) = behind_a_proxy().await;
    apply(&stage, &[("kept", 1), ("changed", 1), ("removed", 1)]).await;
    let mark = stage.world.control_log().mark();
    proxy.set(Network::Cut).await;
    stage.world.control_log().line_after(mark, &["no healthy etcd endpoint available"]).await;
    let mut keys = stage.etcd.keys().await;
    let put = |id: &str, version| {
        (name(&format!("routes/{id}")), numbered(&stage.upstream, &format!("/{id}"), version))
    };
    let (key, document) = put("changed", 2);
    keys.put(&key, document.to_string()).await;
    keys.delete(&name("routes/removed")).await;
    for version in 0..20 {
        let (key, document) = put("added", version);
        keys.put(&key, document.to_string()).await;
    }
    let last = keys.documents_revision().await;
    keys.compact(last).await;
    proxy.set(Network::Forward).await;
    stage.world.wait_acknowledged(last).await;
    assert_numbers(
        &stage,
        &[("/kept", Some(1)), ("/changed", Some(2)), ("/removed", None), ("/added", Some(19))],
    )
    .await;
    // The watch runs again.
    apply(&stage, &[("added", 20)]).await;
    assert_numbers(&stage, &[("/added", Some(20))]).await;
}

#[tokio::test]
async fn a_compaction_during_a_watch_is_harmless() {
    let stage = Stage::start().await;
    let mut keys = stage.etcd.keys().await;
    for version in 1..=5 {
        let revision = apply(&stage, &[("a", version), ("b", version)]).await;
        keys.compact(revision).await;
    }
    assert_numbers(&stage, &[("/a", Some(5)), ("/b", Some(5))]).await;
    let log = stage.world.control_log().text();
    assert!(!log.contains("loading everything"), "{log}");
}

/// Our keys do not change for a while, others write and etcd compacts: a renewed watch finds a gap.
#[tokio::test]
async fn an_idle_watch_survives_a_compaction() {
    let etcd = Etcd::plain().await;
    let settings = json!({"deployment": {"etcd": {"watch_timeout": 1}}});
    let builder = World::builder().etcd(&etcd).settings(settings);
    let stage = Stage::with(etcd, builder).await;
    apply(&stage, &[("kept", 1)]).await;
    let brief = stage.world.admin().put("routes/brief?ttl=3", &numbered(&stage.upstream, "/brief", 1)).await;
    stage.world.wait_acknowledged(brief).await;
    let mut keys = stage.etcd.keys().await;
    for _ in 0..20 {
        keys.put("/elsewhere", "x").await;
    }
    let now = keys.revision().await;
    keys.compact(now).await;
    // The lease ends after three seconds of silence.
    let gone = keys.history("/apisix/routes/brief", now + 1, now + 1).await;
    stage.world.wait_acknowledged(gone[0].revision).await;
    assert_numbers(&stage, &[("/kept", Some(1)), ("/brief", None)]).await;
    apply(&stage, &[("kept", 2)]).await;
    assert_numbers(&stage, &[("/kept", Some(2))]).await;
}

#[tokio::test]
async fn a_restored_cluster_is_followed_by_all_nodes() {
    set_back(false).await;
}

#[tokio::test]
async fn a_restored_cluster_with_another_identity_is_followed() {
    set_back(true).await;
}

async fn set_back(as_another: bool) {
    let mut stage = Stage::start().await;
    apply(&stage, &[("kept", 1), ("changed", 1), ("removed", 1)]).await;
    let save = stage.etcd.save().await;
    apply(&stage, &[("changed", 2), ("added", 2)]).await;
    let revision = stage.world.admin().delete("routes/removed").await;
    stage.world.wait_acknowledged(revision).await;
    for round in 0..20 {
        apply(&stage, &[("busy", round)]).await;
    }
    let (control, node) = (stage.world.control_log().mark(), stage.world.node_log().mark());
    if as_another {
        stage.etcd.restore_as_another(&save).await;
    } else {
        stage.etcd.restore(&save).await;
    }
    stage.world.control_log().line_after(control, &["reconnected to etcd"]).await;
    let new = stage.world.admin().put("routes/new", &numbered(&stage.upstream, "/new", 3)).await;
    assert!(new < revision, "revisions went back: {new} after {revision}");
    // The revision is older than the node's: only its own acknowledgement proves that it has
    // arrived.
    stage.world.wait_persisted_after(node, new..revision).await;
    let expected = [
        ("/kept", Some(1)),
        ("/changed", Some(1)),
        ("/removed", Some(1)),
        ("/added", None),
        ("/busy", None),
        ("/new", Some(3)),
    ];
    assert_numbers(&stage, &expected).await;

    // A node that starts with the former snapshot follows, too.
    stage.world.kill_control().await;
    stage.world.kill_node().await;
    stage.world.start_control().await;
    stage.world.start_node().await;
    stage.world.wait_acknowledged(new).await;
    assert_numbers(&stage, &expected).await;
}

#[tokio::test]
async fn a_restored_cluster_with_newer_revisions_is_recognised() {
    let (mut stage, proxy) = behind_a_proxy().await;
    apply(&stage, &[("kept", 1), ("changed", 1), ("removed", 1)]).await;
    let save = stage.etcd.save().await;
    let seen = apply(&stage, &[("changed", 2), ("added", 2), ("twice", 2)]).await;
    let mark = stage.world.control_log().mark();
    proxy.set(Network::Cut).await;
    stage.world.control_log().line_after(mark, &["no healthy etcd endpoint available"]).await;
    stage.etcd.restore(&save).await;
    let mut keys = stage.etcd.keys().await;
    // The same revisions for other documents: `twice` gets the modification revision it had before.
    let mut revision = keys.revision().await;
    assert!(revision < seen);
    while revision < seen - 1 {
        revision = keys
            .put(&name("routes/filler"), numbered(&stage.upstream, "/filler", revision).to_string())
            .await;
    }
    let twice = keys.put(&name("routes/twice"), numbered(&stage.upstream, "/twice", 3).to_string()).await;
    assert_eq!(twice, seen, "the same revision for another content");
    let last = keys.put(&name("routes/past"), numbered(&stage.upstream, "/past", 4).to_string()).await;
    proxy.set(Network::Forward).await;
    stage.world.wait_acknowledged(last).await;
    assert_numbers(
        &stage,
        &[
            ("/kept", Some(1)),
            ("/changed", Some(1)),
            ("/removed", Some(1)),
            ("/added", None),
            ("/twice", Some(3)),
            ("/past", Some(4)),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_node_follows_to_an_accepted_cluster() {
    let mut stage = Stage::start().await;
    // A late write would look like one of the other cluster, whose revisions may be equal.
    let before = apply(&stage, &[("a", 1), ("b", 1)]).await;
    stage.world.wait_persisted(before).await;
    let node = stage.world.node_log().mark();
    stage.etcd = Etcd::plain().await;
    stage.world.change_settings(stage.etcd.access().settings());
    stage.world.kill_control().await;
    stage.world.start_control().await;
    let revision = stage.world.admin().put("routes/c", &numbered(&stage.upstream, "/c", 1)).await;
    stage.world.node_log().line_after(node, &["the control plane has another store", "2 of 2 routes"]).await;
    assert_numbers(&stage, &[("/a", Some(1)), ("/b", Some(1)), ("/c", None)]).await;
    let accept = stage.world.admin().call(Method::POST, "dataplanes/accept_store", None).await.unwrap();
    assert_eq!(accept.status, StatusCode::OK);
    stage.world.wait_persisted_after(node, revision..).await;
    assert_numbers(&stage, &[("/a", None), ("/b", None), ("/c", Some(1))]).await;
}

/// A typo in the prefix names another store, and an empty one.
#[tokio::test]
async fn a_typo_in_the_prefix_is_held() {
    let mut stage = Stage::start().await;
    let revision = apply(&stage, &[("a", 1), ("b", 1)]).await;
    stage.world.wait_persisted(revision).await;
    let before = std::fs::read(stage.world.last_good("node-1")).unwrap();
    stage.world.stop_control().await;
    stage.world.change_settings(json!({"deployment": {"etcd": {"prefix": "/apisx"}}}));
    let report = check(&stage).await;
    assert!(report.contains("deployment.etcd.prefix: the store is empty"), "{report}");
    stage.world.start_control().await;
    stage
        .world
        .node_log()
        .line_with(&["the control plane has another store", "2 of 2 routes", "/apisx"])
        .await;
    assert_numbers(&stage, &[("/a", Some(1)), ("/b", Some(1))]).await;
    assert!(std::fs::read(stage.world.last_good("node-1")).unwrap() == before);

    stage.world.stop_control().await;
    stage.world.change_settings(json!({"deployment": {"etcd": {"prefix": "/apisix"}}}));
    let report = check(&stage).await;
    assert!(report.contains("is fine") && !report.contains("is empty"), "{report}");
    stage.world.start_control().await;
    apply(&stage, &[("b", 2)]).await;
    assert_numbers(&stage, &[("/a", Some(1)), ("/b", Some(2))]).await;
}

async fn check(stage: &Stage) -> String {
    let config = stage.world.write_config("check");
    let line = ["-c", config.to_str().unwrap(), "check"];
    run_to_end("controlplane", &line, stage.world.folder()).await.stdout
}

/// It has the same id as before, because its members are configured as before.
#[tokio::test]
async fn a_cluster_without_its_data_is_held() {
    let mut stage = Stage::start().await;
    apply(&stage, &[("a", 1), ("b", 1)]).await;
    let (control, node) = (stage.world.control_log().mark(), stage.world.node_log().mark());
    stage.etcd.lose_data().await;
    stage.world.control_log().line_after(control, &["is not the store of the start"]).await;
    assert_numbers(&stage, &[("/a", Some(1)), ("/b", Some(1))]).await;
    stage.world.kill_control().await;
    stage.world.start_control().await;
    stage.world.node_log().line_after(node, &["the control plane has another store", "2 of 2 routes"]).await;
    assert_numbers(&stage, &[("/a", Some(1)), ("/b", Some(1))]).await;
}

/// A transaction, or the removal of a whole directory, is one revision: all of its changes must be
/// applied.
#[tokio::test]
async fn all_changes_of_one_revision_are_applied() {
    let stage = Stage::start().await;
    let mut keys = stage.etcd.keys().await;
    let ids: Vec<String> = (0..100).map(|n| format!("many-{n}")).collect();
    for round in 0..5 {
        let document = |id: &String| numbered(&stage.upstream, &format!("/{id}"), round).to_string();
        let entries: Vec<_> = ids.iter().map(|id| (name(&format!("routes/{id}")), document(id))).collect();
        let revision = keys.put_all(&entries).await;
        stage.world.wait_acknowledged(revision).await;
        assert_all(&stage, &ids, Some(round)).await;
        let revision = keys.delete_prefix(&name("routes/many-")).await;
        stage.world.wait_acknowledged(revision).await;
        assert_all(&stage, &ids, None).await;
    }
}

async fn assert_all(stage: &Stage, ids: &[String], expected: Option<u64>) {
    let mut session = stage.world.plain("app.test").await;
    let mut wrong = Vec::new();
    for id in ids {
        let reply = session.get(&format!("/{id}")).await.unwrap_or_else(|error| panic!("{error}"));
        let right = match expected {
            None => reply.status == StatusCode::NOT_FOUND,
            Some(version) => {
                reply.status == StatusCode::OK && reply.json()["headers"]["host"] == format!("v{version}")
            }
        };
        if !right {
            wrong.push(id);
        }
    }
    assert!(
        wrong.is_empty(),
        "expected {expected:?}, and it is otherwise for {} of {}",
        wrong.len(),
        ids.len()
    );
}
