//! The metrics of a control plane on etcd: each moves when its fact happens.

use e2e::client::bounded;
use e2e::etcd::Etcd;
use e2e::exposition::Exposition;
use e2e::ports::Reservation;
use e2e::world::World;
use serde_json::json;

async fn metrics(world: &World) -> Exposition {
    Exposition::parse(&world.control_status("/metrics").await.text())
}

async fn wait_for(world: &World, sample: &str, value: f64) {
    bounded(&format!("{sample} {value}"), async {
        while metrics(world).await.value(sample) != Some(value) {}
    })
    .await;
}

#[tokio::test]
async fn etcd_metrics_move_with_their_facts() {
    let mut etcd = Etcd::plain().await;
    let patient = json!({"deployment": {"etcd": {"health_check_timeout": 1}}});
    let world = World::builder().etcd(&etcd).settings(patient).start().await;
    let upstream = Reservation::any();
    let state = |state: &str| {
        format!("countersign_etcd_endpoint_state{{endpoint=\"{}\",state=\"{state}\"}}", etcd.url())
    };
    let (connected, failed) = (state("connected"), state("failed"));
    let before = metrics(&world).await;
    assert_eq!((before.value(&connected), before.value(&failed)), (Some(1.0), Some(0.0)));
    assert_eq!(before.value("countersign_etcd_reachable"), Some(1.0));
    let commits = "countersign_etcd_commit_duration_seconds_count";
    let requests = "countersign_etcd_request_duration_seconds_count";
    let document = json!({"uri": "/a", "upstream": {"nodes": {upstream.address().to_string(): 1}}});
    let revision = world.apply(&[("routes/a", document)]).await;
    let after = metrics(&world).await;
    assert_eq!(after.value(commits), before.value(commits).map(|count| count + 1.0));
    assert!(after.value(requests) > before.value(requests));
    assert_eq!(after.value("countersign_snapshot_revision"), Some(revision as f64));
    // Every key of the cluster counts.
    bounded("the revision of a later health check", async {
        while metrics(&world).await.value("countersign_store_revision") < Some(revision as f64) {}
    })
    .await;

    etcd.kill().await;
    wait_for(&world, "countersign_etcd_reachable", 0.0).await;
    wait_for(&world, &failed, 1.0).await;
    assert_eq!(metrics(&world).await.value(&connected), Some(0.0));
    etcd.start().await;
    wait_for(&world, "countersign_etcd_reachable", 1.0).await;
    wait_for(&world, &connected, 1.0).await;
}
