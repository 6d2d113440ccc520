//! Several control planes over one store: a node that reconnects to another one gets what it lacks
//! and nothing twice, and never moves to the older state of one that lags.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use model::Kind;
use proto::push::{Chunk, ResourceVersion};
use tonic::Code;

use super::node;
use super::observed_store::ObservedStore;
use super::scripted::ScriptedNode;
use super::world::{ControlPlane, PATIENCE, Relay, World, eventually, key, port, upstream, upstream_port};

/// What a node holds after this chunk.
fn held(chunk: &Chunk) -> Vec<ResourceVersion> {
    let held = chunk.upserts.iter().map(|upsert| {
        let id = &upsert.resource.as_ref().unwrap().id;
        let key = model::wire::key_to_wire(&key(Kind::Upstream, id));
        ResourceVersion { key: Some(key), version: upsert.version }
    });
    held.collect()
}

/// A new node syncs from this control plane.
async fn sync_from(world: &World, control: &ControlPlane) -> (u64, Vec<ResourceVersion>) {
    let mut node = ScriptedNode::connect(world, control).await;
    node.send_hello().await;
    let chunk = node.chunk().await;
    assert!(chunk.last);
    node.acknowledge(chunk.to).await;
    control.wait_acknowledged(chunk.to).await;
    (chunk.to, held(&chunk))
}

/// The node reconnects with what it holds, and gets what it lacks.
async fn reconnect(
    world: &World,
    control: &ControlPlane,
    (revision, held): &(u64, Vec<ResourceVersion>),
) -> (ScriptedNode, Chunk) {
    let mut node = ScriptedNode::connect(world, control).await;
    node.send_hello_with(world.store.identity(), *revision, held.clone()).await;
    let welcome = node.welcome().await;
    let chunk = node.chunk().await;
    assert_eq!(welcome.revision, chunk.to);
    (node, chunk)
}

fn changes(chunk: &Chunk) -> (u64, u64, usize, usize) {
    (chunk.from, chunk.to, chunk.upserts.len(), chunk.removals.len())
}

#[tokio::test]
async fn between_equal_control_planes_nothing_is_resent() {
    let world = World::new();
    let three = world.put_upstreams(3).await;
    let early = world.control().await;
    // A revision without a change: one control plane loads it, the other one sees no event.
    let four = world.store.reserve_id().await.unwrap();
    let late = world.control().await;
    assert_eq!((early.publish.latest.borrow().revision(), three), (three, four - 1));

    let held = sync_from(&world, &early).await;
    let (_, chunk) = reconnect(&world, &late, &held).await;
    assert_eq!(changes(&chunk), (three, four, 0, 0));
    let held = sync_from(&world, &late).await;
    let (node, chunk) = reconnect(&world, &early, &held).await;
    assert_eq!(
        changes(&chunk),
        (four, four, 0, 0),
        "it reads the store anew, and stands where the other one does"
    );
    // Changes follow from there.
    node.acknowledge(four).await;
    early.wait_acknowledged(four).await;
    early.stop().await;
    late.stop().await;
}

#[tokio::test]
async fn a_lagging_control_plane_reloads_before_its_welcome() {
    let world = World::new();
    world.put_upstreams(2).await;
    let slow_store = ObservedStore::new(&world.store);
    let (fast, slow) = (world.control().await, world.control_over(slow_store.clone()).await);
    slow_store.deliver_events(false);
    world.put(Kind::Upstream, "0", upstream(10)).await;
    let newest = world.put(Kind::Upstream, "0", upstream(20)).await;
    fast.wait_for_revision(newest).await;
    assert!(slow.publish.latest.borrow().revision() < newest);

    let (mut node, chunk) = reconnect(&world, &slow, &sync_from(&world, &fast).await).await;
    assert_eq!(changes(&chunk), (newest, newest, 0, 0));
    node.acknowledge(newest).await;
    slow.wait_acknowledged(newest).await;
    // A false revision triggers a reload; a node with the store's state gets nothing.
    let mut boaster = ScriptedNode::connect(&world, &slow).await;
    boaster.send_hello_with(world.store.identity(), u64::MAX, Vec::new()).await;
    boaster.welcome().await;
    assert_eq!(changes(&boaster.chunk().await), (0, newest, 2, 0));
    // The delayed events are older than the loaded state and must be dropped.
    slow_store.deliver_events(true);
    let next = world.put(Kind::Upstream, "1", upstream(30)).await;
    let chunk = node.chunk().await;
    assert_eq!(changes(&chunk), (newest, next, 1, 0));
    assert_eq!(port(&slow.publish.latest.borrow(), "0"), Some(upstream_port(20)));
    fast.stop().await;
    slow.stop().await;
}

#[tokio::test]
async fn no_node_moves_back_while_the_store_is_unreadable() {
    let world = World::new();
    world.put_upstreams(2).await;
    let slow_store = ObservedStore::new(&world.store);
    let (fast, slow) = (world.control().await, world.control_over(slow_store.clone()).await);
    slow_store.deliver_events(false);
    // As after a revocation.
    let newest = world.delete(Kind::Upstream, "0").await;
    fast.wait_for_revision(newest).await;
    let held = sync_from(&world, &fast).await;
    slow_store.set_down(true);

    let mut scripted = ScriptedNode::connect(&world, &slow).await;
    scripted.send_hello_with(world.store.identity(), held.0, held.1.clone()).await;
    let status = scripted.ended().await;
    assert_eq!(status.code(), Code::Aborted);
    assert!(status.message().contains("the test says so"), "{status}");
    assert_eq!(slow.publish.fleet.view().total, 0, "it is not served by this one");

    // A real node keeps what it has, and is served as soon as the store is readable.
    let mut settings = world.node_settings(fast.address());
    settings.control_planes.push(slow.address().to_string());
    let node = node(settings).unwrap();
    // The snapshot is published before the change is counted.
    let applied = || Some(node.status.applied_changes()).filter(|applied| *applied > 0);
    let applied = node.eventually("the first change", applied).await;
    assert_eq!(node.snapshot().revision(), newest);
    fast.stop().await;
    node.wait_for_problem("is behind this node").await;
    assert_eq!((node.snapshot().revision(), node.status.applied_changes()), (newest, applied));
    slow_store.set_down(false);
    slow.wait_acknowledged(newest).await;
    assert_eq!((node.snapshot().revision(), node.status.applied_changes()), (newest, applied + 1));
    assert!(node.snapshot().get(&key(Kind::Upstream, "0")).is_none());
    node.stop().await;
    slow.stop().await;
}

#[tokio::test]
async fn an_older_node_is_served_while_the_store_is_unreadable() {
    let world = World::new();
    world.put_upstreams(2).await;
    let store = ObservedStore::new(&world.store);
    let control = world.control_over(store.clone()).await;
    let held = sync_from(&world, &control).await;
    let newest = world.put_upstreams(3).await;
    control.wait_for_revision(newest).await;
    store.set_down(true);
    let (_, chunk) = reconnect(&world, &control, &held).await;
    assert_eq!(changes(&chunk), (held.0, newest, 3, 0));
    control.stop().await;
}

#[tokio::test]
async fn a_node_fails_over_and_loads_nothing_twice() {
    let world = World::new();
    let revision = world.put_upstreams(1500).await;
    let (first, second) = (world.control().await, world.control().await);
    let relay = Relay::to(second.address()).await;
    let mut settings = world.node_settings(first.address());
    settings.control_planes.push(relay.address.to_string());
    let moving = node(settings).unwrap();
    first.wait_acknowledged(revision).await;
    first.stop().await;
    second.wait_acknowledged(revision).await;
    let bytes = relay.to_node.load(Ordering::Relaxed);
    assert!(bytes < 10_000, "{bytes} bytes for a node that had everything");
    assert_eq!(*moving.status.control_plane().unwrap(), relay.address.to_string());

    // It stays when another control plane starts.
    let again = world.control().await;
    let newest = world.put(Kind::Upstream, "7", upstream(70)).await;
    second.wait_acknowledged(newest).await;
    assert_eq!((again.publish.fleet.view().total, moving.snapshot().revision()), (0, newest));
    moving.stop().await;
    let fleet = &second.publish.fleet;
    let gone = || fleet.view().list.pop().filter(|node| !node.connected);
    let gone = eventually("the node's leaving", fleet.changes(), gone).await;
    assert_eq!(gone.lag, None, "no longer ours: not behind, but gone");
    again.stop().await;
    second.stop().await;
}

#[tokio::test]
async fn a_whole_fleet_fails_over_at_once() {
    let world = World::new();
    world.put_upstreams(20).await;
    let slow_store = ObservedStore::new(&world.store);
    let (fast, slow) = (world.control().await, world.control_over(slow_store.clone()).await);
    slow_store.deliver_events(false);
    let newest = world.put(Kind::Upstream, "0", upstream(99)).await;
    fast.wait_for_revision(newest).await;
    let held = Arc::new(sync_from(&world, &fast).await);
    let moving = (0..24).map(|_| async {
        let (_, chunk) = reconnect(&world, &slow, &held).await;
        assert_eq!(changes(&chunk), (newest, newest, 0, 0));
    });
    futures_util::future::join_all(moving).await;
    fast.stop().await;
    slow.stop().await;
}

#[tokio::test]
async fn a_stale_control_plane_disconnects_its_nodes_once() {
    let world = World::new();
    world.put_upstreams(2).await;
    let lonely_store = ObservedStore::new(&world.store);
    let (healthy, lonely) = (world.control().await, world.control_over(lonely_store.clone()).await);
    let mut settings = world.node_settings(lonely.address());
    settings.control_planes.push(healthy.address().to_string());
    let node = node(settings).unwrap();
    lonely.wait_acknowledged(world.put(Kind::Upstream, "0", upstream(7)).await).await;

    lonely_store.cut_off();
    node.wait_for_problem("try another control plane").await;
    // As after a revocation: its former control plane does not see the change.
    let newest = world.delete(Kind::Upstream, "0").await;
    healthy.wait_acknowledged(newest).await;
    assert!(node.snapshot().get(&key(Kind::Upstream, "0")).is_none());

    // No other control plane is left: its state is better than none, and the node stays.
    let mut scripted = ScriptedNode::connect(&world, &lonely).await;
    scripted.send_hello().await;
    let chunk = scripted.chunk().await;
    scripted.acknowledge(chunk.to).await;
    lonely.wait_acknowledged(chunk.to).await;
    lonely_store.set_down(false);
    let chunk = scripted.chunk().await;
    assert_eq!((chunk.to, chunk.removals.len()), (newest, 1), "it gets the removal when the store is back");
    node.stop().await;
    healthy.stop().await;
    lonely.stop().await;
}

#[tokio::test]
async fn a_stale_control_plane_confirms_nothing() {
    let world = World::new();
    let newest = world.put_upstreams(2).await;
    let store = ObservedStore::new(&world.store);
    let control = world.control_over(store.clone()).await;
    let mut settings = world.node_settings(control.address());
    settings.last_good_max_age = Duration::from_secs(2);
    let node = node(settings).unwrap();
    let is = async |what: &str, look: &dyn Fn() -> bool| node.eventually(what, || look().then_some(())).await;
    is("it is current", &|| node.status.is_current()).await;
    assert!(control.publish.unreadable_since.borrow().is_none());

    store.cut_off();
    is("the open stream tells that it is cut off", &|| !node.status.is_current()).await;
    node.wait_for_problem("try another control plane").await;
    is("it comes back", &|| node.status.is_connected()).await;
    is("it expires there", &|| node.status.is_expired() && node.status.is_connected()).await;
    assert!(!node.status.is_current() && !node.status.is_ready());
    assert_eq!(node.snapshot().revision(), 0, "nothing is served");
    assert!(node.status.age().unwrap() >= Duration::from_secs(2));
    assert!(control.publish.unreadable_since.borrow().is_some());

    store.set_down(false);
    is("it is current again", &|| node.status.is_current() && node.status.is_ready()).await;
    assert_eq!((node.snapshot().revision(), node.status.age()), (newest, Some(Duration::ZERO)));
    node.stop().await;
    control.stop().await;
}

#[tokio::test]
async fn a_wait_of_zero_reads_the_reports_once() {
    let world = World::new();
    let control = world.control_over(ObservedStore::shared(&world.store)).await;
    let node = world.node(control.address());
    let newest = world.put_upstreams(1).await;
    control.wait_acknowledged(newest).await;
    let reports = &control.publish.reports;
    assert!(reports.wait_acknowledged(newest, Duration::ZERO).await.is_ok());
    assert!(reports.wait_acknowledged(newest + 1, Duration::ZERO).await.is_err());
    node.stop().await;
    control.stop().await;
}

/// Each acknowledgement changes the report; it is written at most five times a second, and at last
/// with the final state.
#[tokio::test(flavor = "multi_thread")]
async fn reports_are_written_five_times_a_second_at_most() {
    let world = World::new();
    let seen = ObservedStore::shared(&world.store);
    let control = world.control_over(seen.clone()).await;
    let _node = world.node(control.address());
    let begun = Instant::now();
    let mut revision = 0;
    while begun.elapsed() < Duration::from_millis(1500) {
        revision = world.put_upstreams(1).await;
        control.wait_acknowledged(revision).await;
    }
    let newest = format!("\"acknowledged\":{revision}");
    let reported = async {
        while !seen.reports_written().last().is_some_and(|(_, text)| text.contains(&newest)) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, reported).await.expect("the last state is reported");
    let written = seen.reports_written();
    assert!(written.len() > 4, "{written:?}");
    for pair in written.windows(6) {
        let took = pair[5].0.duration_since(pair[0].0);
        assert!(took >= Duration::from_secs(1), "six reports within {took:?}");
    }
}
