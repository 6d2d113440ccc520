//! Several control planes over one store: a node that moves from one to another gets what it lacks
//! and nothing twice, and is never led back to an older state by one that lags.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use model::Kind;
use proto::push::{Chunk, HeldResource};
use tonic::Code;

use super::node;
use super::scripted::ScriptedNode;
use super::seen::Seen;
use super::world::{Control, PATIENCE, Relay, World, eventually, key, port, upstream, upstream_port};

/// What a node holds that has taken this.
fn held(chunk: &Chunk) -> Vec<HeldResource> {
    let held = chunk.upserts.iter().map(|upsert| {
        let id = &upsert.resource.as_ref().unwrap().id;
        let key = model::wire::key_to_wire(&key(Kind::Upstream, id));
        HeldResource { key: Some(key), version: upsert.version }
    });
    held.collect()
}

/// A new node takes everything from there.
async fn served_by(world: &World, control: &Control) -> (u64, Vec<HeldResource>) {
    let mut node = ScriptedNode::connect(world, control).await;
    node.introduce().await;
    let chunk = node.chunk().await;
    assert!(chunk.last);
    node.acknowledge(chunk.to).await;
    control.reached(chunk.to).await;
    (chunk.to, held(&chunk))
}

/// It goes there with what it holds, and is told what it lacks.
async fn moves(
    world: &World,
    control: &Control,
    (revision, held): &(u64, Vec<HeldResource>),
) -> (ScriptedNode, Chunk) {
    let mut node = ScriptedNode::connect(world, control).await;
    node.introduce_with(world.store.identity(), *revision, held.clone()).await;
    let welcome = node.welcome().await;
    let chunk = node.chunk().await;
    assert_eq!(welcome.revision, chunk.to);
    (node, chunk)
}

fn changes(chunk: &Chunk) -> (u64, u64, usize, usize) {
    (chunk.from, chunk.to, chunk.upserts.len(), chunk.removals.len())
}

#[tokio::test]
async fn between_equal_control_planes_nothing_is_sent_again() {
    let world = World::new();
    let three = world.put_upstreams(3).await;
    let early = world.control().await;
    // A revision without a change: one control plane heard of it with its load, the other one of
    // nothing.
    let four = world.store.reserve_id().await.unwrap();
    let late = world.control().await;
    assert_eq!((early.publish.latest.borrow().revision(), three), (three, four - 1));

    let held = served_by(&world, &early).await;
    let (_, chunk) = moves(&world, &late, &held).await;
    assert_eq!(changes(&chunk), (three, four, 0, 0));
    let held = served_by(&world, &late).await;
    let (node, chunk) = moves(&world, &early, &held).await;
    assert_eq!(
        changes(&chunk),
        (four, four, 0, 0),
        "it reads the store anew, and stands where the other one does"
    );
    // And goes on from there.
    node.acknowledge(four).await;
    early.reached(four).await;
    early.stop().await;
    late.stop().await;
}

#[tokio::test]
async fn one_that_lags_catches_up_before_it_answers_and_does_not_look_back() {
    let world = World::new();
    world.put_upstreams(2).await;
    let slow_store = Seen::new(&world.store);
    let (fast, slow) = (world.control().await, world.control_over(slow_store.clone()).await);
    slow_store.tells(false);
    world.put(Kind::Upstream, "0", upstream(10)).await;
    let newest = world.put(Kind::Upstream, "0", upstream(20)).await;
    fast.knows(newest).await;
    assert!(slow.publish.latest.borrow().revision() < newest);

    let (mut node, chunk) = moves(&world, &slow, &served_by(&world, &fast).await).await;
    assert_eq!(changes(&chunk), (newest, newest, 0, 0));
    node.acknowledge(newest).await;
    slow.reached(newest).await;
    // Whatever another one claims: the store is read, and who has its state is sent nothing.
    let mut boaster = ScriptedNode::connect(&world, &slow).await;
    boaster.introduce_with(world.store.identity(), u64::MAX, Vec::new()).await;
    boaster.welcome().await;
    assert_eq!(changes(&boaster.chunk().await), (0, newest, 2, 0));
    // What was kept back is older than what was read: it must not be told now.
    slow_store.tells(true);
    let next = world.put(Kind::Upstream, "1", upstream(30)).await;
    let chunk = node.chunk().await;
    assert_eq!(changes(&chunk), (newest, next, 1, 0));
    assert_eq!(port(&slow.publish.latest.borrow(), "0"), Some(upstream_port(20)));
    fast.stop().await;
    slow.stop().await;
}

#[tokio::test]
async fn nobody_is_led_back_while_the_store_cannot_be_asked() {
    let world = World::new();
    world.put_upstreams(2).await;
    let slow_store = Seen::new(&world.store);
    let (fast, slow) = (world.control().await, world.control_over(slow_store.clone()).await);
    slow_store.tells(false);
    // As when a certificate is revoked.
    let newest = world.delete(Kind::Upstream, "0").await;
    fast.knows(newest).await;
    let held = served_by(&world, &fast).await;
    slow_store.is_down(true);

    let mut scripted = ScriptedNode::connect(&world, &slow).await;
    scripted.introduce_with(world.store.identity(), held.0, held.1.clone()).await;
    let status = scripted.ended().await;
    assert_eq!(status.code(), Code::Aborted);
    assert!(status.message().contains("the test says so"), "{status}");
    assert_eq!(slow.publish.fleet.view().total, 0, "it is not served by this one");

    // The real one: goes on with what it has, and is served as soon as the store can be asked.
    let mut settings = world.node_settings(fast.address());
    settings.control_planes.push(slow.address().to_string());
    let node = node(settings).unwrap();
    node.eventually("the newest state", || (node.snapshot().revision() == newest).then_some(())).await;
    let applied = node.status.applied_changes();
    fast.stop().await;
    node.told("is behind this node").await;
    assert_eq!((node.snapshot().revision(), node.status.applied_changes()), (newest, applied));
    slow_store.is_down(false);
    slow.reached(newest).await;
    assert_eq!((node.snapshot().revision(), node.status.applied_changes()), (newest, applied + 1));
    assert!(node.snapshot().get(&key(Kind::Upstream, "0")).is_none());
    node.stop().await;
    slow.stop().await;
}

#[tokio::test]
async fn a_node_that_holds_less_is_served_at_once_even_then() {
    let world = World::new();
    world.put_upstreams(2).await;
    let store = Seen::new(&world.store);
    let control = world.control_over(store.clone()).await;
    let held = served_by(&world, &control).await;
    let newest = world.put_upstreams(3).await;
    control.knows(newest).await;
    store.is_down(true);
    let (_, chunk) = moves(&world, &control, &held).await;
    assert_eq!(changes(&chunk), (held.0, newest, 3, 0));
    control.stop().await;
}

#[tokio::test]
async fn a_node_moves_stays_and_loads_nothing_twice() {
    let world = World::new();
    let revision = world.put_upstreams(1500).await;
    let (first, second) = (world.control().await, world.control().await);
    let relay = Relay::to(second.address()).await;
    let mut settings = world.node_settings(first.address());
    settings.control_planes.push(relay.address.to_string());
    let moving = node(settings).unwrap();
    first.reached(revision).await;
    first.stop().await;
    second.reached(revision).await;
    let bytes = relay.to_node.load(Ordering::Relaxed);
    assert!(bytes < 10_000, "{bytes} bytes for a node that had everything");
    assert_eq!(*moving.status.control_plane().unwrap(), relay.address.to_string());

    // It stays there when another one is back.
    let again = world.control().await;
    let newest = world.put(Kind::Upstream, "7", upstream(70)).await;
    second.reached(newest).await;
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
async fn a_whole_fleet_moves_at_once() {
    let world = World::new();
    world.put_upstreams(20).await;
    let slow_store = Seen::new(&world.store);
    let (fast, slow) = (world.control().await, world.control_over(slow_store.clone()).await);
    slow_store.tells(false);
    let newest = world.put(Kind::Upstream, "0", upstream(99)).await;
    fast.knows(newest).await;
    let held = Arc::new(served_by(&world, &fast).await);
    let moving = (0..24).map(|_| async {
        let (_, chunk) = moves(&world, &slow, &held).await;
        assert_eq!(changes(&chunk), (newest, newest, 0, 0));
    });
    futures_util::future::join_all(moving).await;
    fast.stop().await;
    slow.stop().await;
}

#[tokio::test]
async fn a_control_plane_that_cannot_read_the_store_lets_its_nodes_go_and_keeps_those_that_come_back() {
    let world = World::new();
    world.put_upstreams(2).await;
    let lonely_store = Seen::new(&world.store);
    let (healthy, lonely) = (world.control().await, world.control_over(lonely_store.clone()).await);
    let mut settings = world.node_settings(lonely.address());
    settings.control_planes.push(healthy.address().to_string());
    let node = node(settings).unwrap();
    lonely.reached(world.put(Kind::Upstream, "0", upstream(7)).await).await;

    lonely_store.is_cut_off();
    node.told("try another control plane").await;
    // As when a certificate is revoked: the one that it had been served by does not hear of it.
    let newest = world.delete(Kind::Upstream, "0").await;
    healthy.reached(newest).await;
    assert!(node.snapshot().get(&key(Kind::Upstream, "0")).is_none());

    // Nobody else is left: what it knows is better than nothing, and it is not sent away again.
    let mut scripted = ScriptedNode::connect(&world, &lonely).await;
    scripted.introduce().await;
    let chunk = scripted.chunk().await;
    scripted.acknowledge(chunk.to).await;
    lonely.reached(chunk.to).await;
    lonely_store.is_down(false);
    let chunk = scripted.chunk().await;
    assert_eq!((chunk.to, chunk.removals.len()), (newest, 1), "it is told when the store is back");
    node.stop().await;
    healthy.stop().await;
    lonely.stop().await;
}

#[tokio::test]
async fn a_cut_off_control_plane_confirms_nothing() {
    let world = World::new();
    let newest = world.put_upstreams(2).await;
    let store = Seen::new(&world.store);
    let control = world.control_over(store.clone()).await;
    let mut settings = world.node_settings(control.address());
    settings.last_good_max_age = Duration::from_secs(2);
    let node = node(settings).unwrap();
    let is = async |what: &str, look: &dyn Fn() -> bool| node.eventually(what, || look().then_some(())).await;
    is("it is current", &|| node.status.is_current()).await;
    assert!(control.publish.unread_since.borrow().is_none());

    store.is_cut_off();
    is("the open stream tells that it is cut off", &|| !node.status.is_current()).await;
    node.told("try another control plane").await;
    is("it comes back", &|| node.status.is_connected()).await;
    is("it expires there", &|| node.status.is_expired() && node.status.is_connected()).await;
    assert!(!node.status.is_current() && !node.status.is_ready());
    assert_eq!(node.snapshot().revision(), 0, "nothing is served");
    assert!(node.status.age().unwrap() >= Duration::from_secs(2));
    assert!(control.publish.unread_since.borrow().is_some());

    store.is_down(false);
    is("it is current again", &|| node.status.is_current() && node.status.is_ready()).await;
    assert_eq!((node.snapshot().revision(), node.status.age()), (newest, Some(Duration::ZERO)));
    node.stop().await;
    control.stop().await;
}

#[tokio::test]
async fn an_answer_without_patience_reads_the_reports_once() {
    let world = World::new();
    let control = world.control_over(Seen::shared(&world.store)).await;
    let node = world.node(control.address());
    let newest = world.put_upstreams(1).await;
    control.reached(newest).await;
    let reports = &control.publish.reports;
    assert!(reports.wait_acknowledged(newest, Duration::ZERO).await.is_ok());
    assert!(reports.wait_acknowledged(newest + 1, Duration::ZERO).await.is_err());
    node.stop().await;
    control.stop().await;
}

/// Each acknowledgement changes what there is to tell the others; they are told five times a
/// second, and of the last state.
#[tokio::test(flavor = "multi_thread")]
async fn reports_are_written_five_times_a_second_at_most() {
    let world = World::new();
    let seen = Seen::shared(&world.store);
    let control = world.control_over(seen.clone()).await;
    let _node = world.node(control.address());
    let begun = Instant::now();
    let mut revision = 0;
    while begun.elapsed() < Duration::from_millis(1500) {
        revision = world.put_upstreams(1).await;
        control.reached(revision).await;
    }
    let newest = format!("\"acknowledged\":{revision}");
    let told = async {
        while !seen.reports_written().last().is_some_and(|(_, text)| text.contains(&newest)) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, told).await.expect("the last state is told");
    let written = seen.reports_written();
    assert!(written.len() > 4, "{written:?}");
    for pair in written.windows(6) {
        let took = pair[5].0.duration_since(pair[0].0);
        assert!(took >= Duration::from_secs(1), "six reports within {took:?}");
    }
}
