//! etcd that is missing, goes away, comes back, or falls silent: the messages for operators, the
//! responses of the Admin API and the gateway, and the content of etcd afterwards.
//!
//! Invariant: acknowledged writes exist, and writes reported as not made never appear.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use e2e::etcd::{Access, Authorities, Cluster, Etcd};
use e2e::ports::Reservation;
use e2e::proxy::{Network, Proxy};
use e2e::upstream::Upstream;
use e2e::world::World;
use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::stage::{Stage, assert_reported, attempt, name, refused_start, route, status};

/// The meaning of "at once" on a busy machine: far below any timeout.
const AT_ONCE: Duration = Duration::from_secs(2);

/// The header of a response from memory.
const STALE: &str = "x-countersign-stale";

#[tokio::test]
async fn a_missing_etcd_is_reported_by_endpoint_and_step() {
    let reserved = Reservation::any();
    let url = format!("http://{}", reserved.address());
    let ended = refused_start(Access { hosts: vec![url.clone()], ..Access::default() }, json!({})).await;
    assert_reported(&ended, &[&url, "TCP", "all etcd nodes are unavailable"]);
    let ended = refused_start(
        Access { hosts: vec!["http://no-such-host.invalid:2379".to_owned()], ..Access::default() },
        json!({}),
    );
    assert_reported(
        &ended.await,
        &["http://no-such-host.invalid:2379", "DNS", "all etcd nodes are unavailable"],
    );
}

#[tokio::test]
async fn a_start_needs_half_of_the_endpoints() {
    let etcd = Etcd::plain().await;
    let reserved = Reservation::any();
    let dead = format!("http://{}", reserved.address());
    let hosts = vec![dead.clone(), etcd.url(), dead.clone()];
    let ended = refused_start(Access { hosts, ..Access::default() }, json!({})).await;
    assert_reported(&ended, &[&dead, "the etcd cluster needs at least 50% and above healthy nodes"]);
}

#[tokio::test]
async fn endpoints_of_two_clusters_are_an_error() {
    let (one, two) = (Etcd::plain().await, Etcd::plain().await);
    let ended =
        refused_start(Access { hosts: vec![one.url(), two.url()], ..Access::default() }, json!({})).await;
    assert_reported(&ended, &[&one.url(), &two.url(), "cluster"]);
}

#[tokio::test]
async fn a_start_retries_etcd_as_configured() {
    let mut etcd = Etcd::plain().await;
    etcd.kill().await;
    let patient = json!({"deployment": {"etcd": {"startup_retry": 60}}});
    let mut world = World::builder().etcd(&etcd).settings(patient).without_control().start().await;
    let log = world.control_log().clone();
    tokio::join!(world.start_control(), async {
        log.line_with(&["Warning! Request etcd endpoint", &etcd.url(), "retry time="]).await;
        etcd.start().await;
    });
    let upstream = Upstream::plain("one").await;
    world.apply(&[("routes/a", route(&upstream, "/a"))]).await;
    assert_eq!(status(&world, "app.test", "/a").await, StatusCode::OK);
}

#[tokio::test]
async fn without_etcd_reads_are_stale_and_writes_fail_at_once() {
    let mut stage = Stage::start().await;
    stage.world.apply(&[("ssls/app", stage.world.protected_site()), ("routes/a", stage.route("/a"))]).await;
    assert!(!stage.world.admin().get("routes/a").await.reply.headers.contains_key(STALE));
    let mark = stage.world.control_log().mark();
    stage.etcd.kill().await;
    // Also the first write, which may be the one that detects it.
    let began = Instant::now();
    let (refused, text) = attempt(&stage.world, Method::PUT, "routes/b", Some(&stage.route("/b"))).await;
    assert_eq!(refused, StatusCode::SERVICE_UNAVAILABLE, "{text}");
    assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
    stage.world.control_log().line_after(mark, &["no healthy etcd endpoint available"]).await;

    let began = Instant::now();
    for path in ["routes/a", "routes", "ssls"] {
        let answer = stage.world.admin().get(path).await;
        assert_eq!(answer.status, StatusCode::OK, "{path}: {answer:?}");
        assert!(answer.reply.headers[STALE].to_str().unwrap().parse::<u64>().is_ok(), "{path}: {answer:?}");
        assert!(!answer.reply.text().contains("PRIVATE"), "{path}");
    }
    assert_eq!(stage.world.admin().get("routes/a").await.body["value"]["uri"], "/a");
    assert_eq!(stage.world.admin().get("routes/none").await.status, StatusCode::NOT_FOUND);
    for (method, path, body) in [
        (Method::PUT, "routes/b", Some(stage.route("/b"))),
        (Method::PUT, "routes/a", Some(stage.route("/changed"))),
        (Method::POST, "routes", Some(stage.route("/c"))),
        (Method::PATCH, "routes/a", Some(json!({"uri": "/changed"}))),
        (Method::DELETE, "routes/a", None),
    ] {
        let (status, text) = attempt(&stage.world, method.clone(), path, body.as_ref()).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{method} {path}: {text}");
        assert!(text.contains(&stage.etcd.url()), "{method} {path} names the endpoint: {text}");
        assert!(!text.contains("not known"), "{method} {path}: nothing was sent: {text}");
    }
    assert!(began.elapsed() < AT_ONCE * 2, "{:?} for 11 calls", began.elapsed());
    assert_eq!(stage.world.verified_client("app.test").get("/a").await.unwrap().status, StatusCode::OK);
    stage.world.client("app.test").expect_alert().await;

    // It recovers by itself, without any rejected write.
    let mark = stage.world.control_log().mark();
    stage.etcd.start().await;
    stage.world.control_log().line_after(mark, &["reconnected to etcd"]).await;
    stage.world.apply(&[("routes/d", stage.route("/d"))]).await;
    let answer = stage.world.admin().get("routes").await;
    assert!(!answer.reply.headers.contains_key(STALE), "{answer:?}");
    assert_eq!(answer.body["total"], 2, "{:?}", answer.body);
    assert_eq!(stage.status("/d").await, StatusCode::OK);
    assert_eq!(stage.status("/changed").await, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn both_planes_restart_without_etcd() {
    let mut stage = Stage::start().await;
    let revision = stage.world.apply(&[("routes/a", stage.route("/a"))]).await;
    stage.world.wait_persisted(revision).await;
    stage.etcd.kill().await;
    stage.world.kill_control().await;
    stage.world.kill_node().await;
    stage.world.start_node().await;
    assert_eq!(stage.status("/a").await, StatusCode::OK, "from the last good snapshot");
    stage.etcd.start().await;
    stage.world.start_control().await;
    stage.world.apply(&[("routes/b", stage.route("/b"))]).await;
    assert_eq!(stage.status("/b").await, StatusCode::OK);
}

/// A control plane on three members, over mutual TLS; it uses the leader.
async fn on_three() -> (Cluster, World, Upstream) {
    let cluster = Cluster::of_three(Etcd::builder().mutual(&Authorities::generate())).await;
    let mut access = cluster.access();
    access.hosts.rotate_left(cluster.leader(0).await);
    let world = World::builder().etcd(access).start().await;
    (cluster, world, Upstream::plain("one").await)
}

/// Writes until one write is acknowledged; every failure must be a 503.
async fn put_until_made(world: &World, path: &str, document: &Value) -> u64 {
    e2e::client::bounded("a write that is made", async {
        loop {
            let answer = world.admin().call(Method::PUT, path, Some(document)).await.expect("an answer");
            match answer.status {
                status if status.is_success() => return answer.revision.expect("a revision"),
                StatusCode::SERVICE_UNAVAILABLE => {}
                status => panic!("{status} {}", answer.reply.text()),
            }
        }
    })
    .await
}

#[tokio::test]
async fn one_of_three_members_may_die() {
    let (mut cluster, world, upstream) = on_three().await;
    world.apply(&[("routes/all", route(&upstream, "/all"))]).await;
    let leader = cluster.leader(0).await;
    let (second, third) = ((leader + 1) % 3, (leader + 2) % 3);
    cluster.member(leader).kill().await;
    let revision = put_until_made(&world, "routes/two-left", &route(&upstream, "/two-left")).await;
    world.wait_acknowledged(revision).await;
    assert_eq!(status(&world, "app.test", "/two-left").await, StatusCode::OK);

    let mark = world.control_log().mark();
    cluster.member(second).kill().await;
    world.control_log().line_after(mark, &["no healthy etcd endpoint available"]).await;
    let (refused, text) = attempt(&world, Method::PUT, "routes/none", Some(&route(&upstream, "/none"))).await;
    assert_eq!(refused, StatusCode::SERVICE_UNAVAILABLE);
    assert!(!text.contains("not known"), "{text}");
    assert!(world.admin().get("routes/two-left").await.reply.headers.contains_key(STALE));
    assert_eq!(status(&world, "app.test", "/two-left").await, StatusCode::OK);

    let mark = world.control_log().mark();
    cluster.member(second).spawn();
    cluster.member(second).serving().await;
    world.control_log().line_after(mark, &["reconnected to etcd"]).await;
    let revision = put_until_made(&world, "routes/back", &route(&upstream, "/back")).await;
    world.wait_acknowledged(revision).await;
    cluster.member(leader).start().await;
    let mut keys = cluster.keys(third).await;
    let held: BTreeSet<_> =
        keys.with_prefix("/apisix/routes/").await.into_iter().map(|entry| entry.key).collect();
    let expected = ["", "all", "back", "two-left"].map(|id| name(&format!("routes/{id}")));
    assert_eq!(held, BTreeSet::from(expected), "what was refused was never written");
}

/// It runs and serves stale reads; but it is isolated.
#[tokio::test]
async fn a_member_without_a_majority_is_left() {
    let (mut cluster, world, upstream) = on_three().await;
    world.apply(&[("routes/before", route(&upstream, "/before"))]).await;
    let leader = cluster.leader(0).await;
    let others = [(leader + 1) % 3, (leader + 2) % 3];
    let mark = world.control_log().mark();
    for other in others {
        cluster.member(other).pause();
    }
    world.control_log().line_after(mark, &["no healthy etcd endpoint available"]).await;
    let began = Instant::now();
    let (refused, text) = attempt(&world, Method::PUT, "routes/none", Some(&route(&upstream, "/none"))).await;
    assert_eq!(refused, StatusCode::SERVICE_UNAVAILABLE);
    assert!(!text.contains("not known"), "{text}");
    assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
    assert!(world.admin().get("routes/before").await.reply.headers.contains_key(STALE));
    for other in others {
        cluster.member(other).resume();
    }
    let revision = put_until_made(&world, "routes/after", &route(&upstream, "/after")).await;
    world.wait_acknowledged(revision).await;
    assert_eq!(status(&world, "app.test", "/after").await, StatusCode::OK);
    assert_eq!(cluster.keys(leader).await.get(&name("routes/none")).await, None);
}

/// The outcomes of one writer's writes.
#[derive(Default)]
struct Outcomes {
    acknowledged: Vec<String>,
    refused: Vec<String>,
    unknown: Vec<String>,
}

impl Outcomes {
    fn add(&mut self, id: &str, status: StatusCode, text: &str) {
        let list = match status {
            status if status.is_success() => &mut self.acknowledged,
            StatusCode::SERVICE_UNAVAILABLE if text.contains("not known") => &mut self.unknown,
            StatusCode::SERVICE_UNAVAILABLE => &mut self.refused,
            status => panic!("{id}: {status} {text}"),
        };
        list.push(id.to_owned());
    }
}

/// Each id once, by four writers at a time.
async fn write_each(world: &World, upstream: &Upstream, ids: std::ops::Range<usize>) -> Outcomes {
    let document = route(upstream, "/paused");
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..4 {
        let (admin, document, ids) = (world.admin(), document.clone(), ids.clone());
        writers.spawn(async move {
            let mut outcomes = Outcomes::default();
            for id in ids.filter(|id| id % 4 == writer).map(|id| format!("w{id}")) {
                let answer = admin
                    .call(Method::PUT, &format!("routes/{id}"), Some(&document))
                    .await
                    .expect("an answer");
                outcomes.add(&id, answer.status, &answer.reply.text());
            }
            outcomes
        });
    }
    let mut all = Outcomes::default();
    for mut one in writers.join_all().await {
        all.acknowledged.append(&mut one.acknowledged);
        all.refused.append(&mut one.refused);
        all.unknown.append(&mut one.unknown);
    }
    all
}

#[tokio::test]
async fn a_paused_leader_neither_loses_nor_delays_writes() {
    let (mut cluster, world, upstream) = on_three().await;
    let mut total = Outcomes::default();
    for round in 0..2 {
        let leader = cluster.leader(round).await;
        let first = round * 100;
        let writes = write_each(&world, &upstream, first..first + 40);
        // Requests that the leader had received are in its memory and its sockets.
        let (before, ()) = tokio::join!(writes, async {
            cluster.member(leader).pause();
        });
        let during = write_each(&world, &upstream, first + 40..first + 60).await;
        cluster.member(leader).resume();
        for mut some in [before, during] {
            total.acknowledged.append(&mut some.acknowledged);
            total.refused.append(&mut some.refused);
            total.unknown.append(&mut some.unknown);
        }
        // The former leader has caught up when it knows a write made after its return.
        let last = put_until_made(&world, &format!("routes/last-{round}"), &route(&upstream, "/last")).await;
        world.wait_acknowledged(last).await;
        let mut keys = cluster.keys(leader).await;
        while !matches!(keys.try_get(&name(&format!("routes/last-{round}"))).await, Ok(Some(_))) {}
    }
    assert!(total.acknowledged.len() >= 60, "the cluster went on without it: {}", total.acknowledged.len());
    let held: BTreeSet<_> = cluster
        .keys(0)
        .await
        .with_prefix("/apisix/routes/w")
        .await
        .into_iter()
        .map(|entry| entry.key)
        .collect();
    for id in &total.acknowledged {
        assert!(held.contains(&name(&format!("routes/{id}"))), "{id} was acknowledged and is lost");
    }
    for id in &total.refused {
        assert!(
            !held.contains(&name(&format!("routes/{id}"))),
            "{id} was refused and was written all the same"
        );
    }
}

/// Through this proxy alone.
fn proxied(proxy: &Proxy) -> Access {
    Access { hosts: vec![format!("http://{}", proxy.address())], ..Access::default() }
}

/// The connection breaks after etcd has made the write, before its response arrives.
#[tokio::test]
async fn a_write_without_a_response_is_reported_correctly() {
    for mended in [true, false] {
        let etcd = Etcd::plain().await;
        let proxy = Proxy::to(etcd.address()).await;
        let stage = Stage::with(etcd, World::builder().etcd(proxied(&proxy))).await;
        stage.world.apply(&[("routes/a", stage.route("/a"))]).await;
        let mut keys = stage.etcd.keys().await;
        let next = keys.revision().await + 1;
        proxy.trap("\"/b\"", Network::HoldAnswers);
        let document = stage.route("/b");
        let ((status, text), ()) =
            tokio::join!(attempt(&stage.world, Method::PUT, "routes/b", Some(&document)), async {
                proxy.wait_for_trap(Network::HoldAnswers).await;
                let history = keys.history("/apisix/routes/b", next, next).await;
                assert!(history[0].value.is_some(), "it was made");
                proxy.set(Network::Cut).await;
                if mended {
                    proxy.set(Network::Forward).await;
                }
            });
        if mended {
            // The control plane reads the key, and finds the write.
            assert_eq!(status, StatusCode::CREATED, "{text}");
            let changes = keys.history("/apisix/routes/b", next, next).await;
            assert_eq!(changes.len(), 1, "it was made once");
        } else {
            assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{text}");
            assert!(text.contains("not known"), "{text}");
        }
    }
}

/// An endpoint that falls silent without closing its connections: a machine without power, a
/// firewall.
#[tokio::test]
async fn a_silent_endpoint_leads_to_failover() {
    let etcd = Etcd::plain().await;
    let proxy = Proxy::to(etcd.address()).await;
    let access =
        Access { hosts: vec![format!("http://{}", proxy.address()), etcd.url()], ..Access::default() };
    let stage = Stage::with(etcd, World::builder().etcd(access)).await;
    stage.world.apply(&[("routes/a", stage.route("/a"))]).await;
    assert!(proxy.connections() > 0, "it is the first");
    proxy.set(Network::Hold).await;
    // Without writes only the watch can notice.
    stage.etcd_put("routes/b", &stage.route("/b")).await;
    assert_eq!(stage.status("/b").await, StatusCode::OK);
    let revision = put_until_made(&stage.world, "routes/c", &stage.route("/c")).await;
    stage.world.wait_acknowledged(revision).await;
    assert_eq!(stage.status("/c").await, StatusCode::OK);
}

#[tokio::test]
async fn a_full_etcd_is_reported_with_advice() {
    let etcd = Etcd::builder().argument("--quota-backend-bytes=2000000").start().await;
    let stage = Stage::of(etcd).await;
    stage.world.apply(&[("routes/a", stage.route("/a"))]).await;
    let mut big = stage.route("/big");
    big["desc"] = json!("d".repeat(200));
    big["vars"] = json!([["arg_x", "==", "x".repeat(400_000)]]);
    let text = e2e::client::bounded("etcd is full", async {
        loop {
            let (status, text) = attempt(&stage.world, Method::PUT, "routes/big", Some(&big)).await;
            if !status.is_success() {
                assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{text}");
                return text;
            }
        }
    });
    let text = text.await;
    assert!(text.contains("database space exceeded") && text.contains("--quota-backend-bytes"), "{text}");
    assert_eq!(stage.status("/a").await, StatusCode::OK);
    assert_eq!(stage.world.admin().get("routes/a").await.status, StatusCode::OK);
    let mut keys = stage.etcd.keys().await;
    let now = keys.revision().await;
    keys.compact(now).await;
    stage.etcd.ctl(&["defrag"]).await;
    stage.etcd.ctl(&["alarm", "disarm"]).await;
    let revision = put_until_made(&stage.world, "routes/b", &stage.route("/b")).await;
    stage.world.wait_acknowledged(revision).await;
    assert_eq!(stage.status("/b").await, StatusCode::OK);
}

#[tokio::test]
async fn a_write_with_a_lost_response_is_reported_correctly() {
    let etcd = Etcd::plain().await;
    let proxy = Proxy::to(etcd.address()).await;
    let builder =
        World::builder().etcd(proxied(&proxy)).settings(json!({"deployment": {"etcd": {"timeout": 1}}}));
    let stage = Stage::with(etcd, builder).await;
    stage.world.apply(&[("routes/a", stage.route("/a"))]).await;

    // The write arrives without a response: it must not be reported as not made.
    proxy.trap("\"/b\"", Network::HoldAnswers);
    let (refused, text) = attempt(&stage.world, Method::PUT, "routes/b", Some(&stage.route("/b"))).await;
    assert_eq!(refused, StatusCode::SERVICE_UNAVAILABLE, "{text}");
    assert!(text.contains("not known"), "{text}");
    assert!(stage.etcd.keys().await.get(&name("routes/b")).await.is_some(), "it was made");
    let mark = stage.world.control_log().mark();
    proxy.set(Network::Forward).await;
    stage.world.control_log().line_after(mark, &["reconnected to etcd"]).await;
    let revision = put_until_made(&stage.world, "routes/c", &stage.route("/c")).await;
    stage.world.wait_acknowledged(revision).await;
    assert_eq!(stage.status("/b").await, StatusCode::OK, "the data plane has what etcd has");

    // The write arrives when the network heals: by then it must not take effect.
    proxy.trap("\"/d\"", Network::Hold);
    let (refused, text) = attempt(&stage.world, Method::PUT, "routes/d", Some(&stage.route("/d"))).await;
    assert_eq!(refused, StatusCode::SERVICE_UNAVAILABLE, "{text}");
    let mark = stage.world.control_log().mark();
    proxy.set(Network::Forward).await;
    stage.world.control_log().line_after(mark, &["reconnected to etcd"]).await;
    let revision = put_until_made(&stage.world, "routes/e", &stage.route("/e")).await;
    stage.world.wait_acknowledged(revision).await;
    assert!(text.contains("not known"), "{text}");
    let made = stage.etcd.keys().await.get(&name("routes/d")).await.is_some();
    let shown = stage.status("/d").await == StatusCode::OK;
    assert_eq!(shown, made, "the data plane has what etcd has");
}
