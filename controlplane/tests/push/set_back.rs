//! A store that was set back to an older backup: its nodes follow, whether they stay connected,
//! reconnect or come from another control plane.

use std::sync::Arc;

use controlplane::testing::store::{EmbeddedStore, Mutation, Precondition, Store};
use model::Kind;

use super::observed_store::ObservedStore;
use super::world::{World, key, port, upstream, upstream_port};

/// A world with two upstreams, and a backup of its store.
async fn backed_up() -> (World, Arc<dyn Store>) {
    let mut world = World::new();
    world.put_upstreams(2).await;
    let (file, backup) = (world.path("store.redb"), world.path("backup.redb"));
    // The file is copied while it is closed.
    world.store = Arc::new(EmbeddedStore::open(&world.path("elsewhere.redb")).unwrap());
    std::fs::copy(&file, &backup).unwrap();
    world.store = Arc::new(EmbeddedStore::open(&file).unwrap());
    let backup: Arc<dyn Store> = Arc::new(EmbeddedStore::open(&backup).unwrap());
    assert_eq!(backup.identity(), world.store.identity());
    (world, backup)
}

async fn put(store: &Arc<dyn Store>, id: &str, nth: usize) -> u64 {
    let write = Mutation::Put {
        key: key(Kind::Upstream, id),
        document: upstream(nth),
        precondition: Precondition::Unconditional,
        ttl: None,
    };
    store.commit(write.into()).await.unwrap().revision
}

#[tokio::test]
async fn connected_nodes_follow_a_rollback_with_reused_revisions() {
    let (world, backup) = backed_up().await;
    let seen = ObservedStore::new(&world.store);
    let control = world.control_over(seen.clone()).await;
    let node = world.node(control.address());
    world.put(Kind::Upstream, "0", upstream(10)).await;
    let newest = world.put(Kind::Upstream, "9", upstream(9)).await;
    control.wait_acknowledged(newest).await;
    assert_eq!(newest, 4);

    seen.set_back(&backup);
    control.wait_for_revision(2).await;
    node.eventually("the older state", || (node.snapshot().revision() == 2).then_some(())).await;
    assert_eq!(port(&node.snapshot(), "0"), Some(upstream_port(0)));
    assert_eq!(node.snapshot().len(Kind::Upstream), 2);
    // Revisions 3 and 4 are used again for other documents.
    put(&backup, "1", 11).await;
    assert_eq!(put(&backup, "0", 12).await, newest);
    control.wait_acknowledged(newest).await;
    let now = node.snapshot();
    assert_eq!((port(&now, "0"), port(&now, "1")), (Some(upstream_port(12)), Some(upstream_port(11))));
    assert_eq!((now.len(Kind::Upstream), node.status.rejected_changes()), (2, 0));
    node.stop().await;
    control.stop().await;
}

#[tokio::test]
async fn a_reconnecting_node_follows_a_rollback_by_delta() {
    let (world, backup) = backed_up().await;
    let control = world.control().await;
    let node = world.node(control.address());
    world.put(Kind::Upstream, "0", upstream(10)).await;
    let newest = world.put(Kind::Upstream, "9", upstream(9)).await;
    control.wait_acknowledged(newest).await;
    node.stop().await;
    control.stop().await;

    // Another control plane over the restored store, which reuses a revision; the node holds a
    // newer one.
    let seen = ObservedStore::new(&backup);
    let reused = put(&backup, "1", 11).await;
    assert!(reused < newest);
    let control = world.control_over(seen.clone()).await;
    let node = world.node(control.address());
    assert_eq!(node.snapshot().revision(), newest);
    control.wait_acknowledged(reused).await;
    let now = node.snapshot();
    assert_eq!((now.revision(), now.len(Kind::Upstream)), (reused, 2));
    assert_eq!((port(&now, "0"), port(&now, "1")), (Some(upstream_port(0)), Some(upstream_port(11))));
    node.stop().await;
    control.stop().await;
}

#[tokio::test]
async fn a_node_with_a_reused_revision_gets_its_new_content() {
    let (world, backup) = backed_up().await;
    let control = world.control().await;
    let node = world.node(control.address());
    let newest = world.put(Kind::Upstream, "0", upstream(10)).await;
    control.wait_acknowledged(newest).await;
    node.stop().await;
    control.stop().await;
    assert_eq!(put(&backup, "0", 12).await, newest);
    let control = world.control_over(ObservedStore::new(&backup)).await;
    let node = world.node(control.address());
    assert_eq!(port(&node.snapshot(), "0"), Some(upstream_port(10)));
    control.wait_acknowledged(newest).await;
    assert_eq!(port(&node.snapshot(), "0"), Some(upstream_port(12)));
    node.stop().await;
    control.stop().await;
}
