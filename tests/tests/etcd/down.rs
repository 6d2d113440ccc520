//! etcd that is not there, goes away, comes back, or says nothing: what operators read, what clients of the Admin API and of the
//! gateway get, and what is in etcd afterwards.
//!
//! Invariant of all of it: what was acknowledged is there, and what was answered as "nothing was written" never appears.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use e2e::etcd::{Access, Authorities, Cluster, Etcd};
use e2e::ports::Reservation;
use e2e::proxy::{Network, Proxy};
use e2e::upstream::Upstream;
use e2e::world::World;
use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::stage::{Stage, assert_said, attempt, name, refused_start, route, status};

/// What "at once" means on a machine that runs other tests beside: far below any time-out.
const AT_ONCE: Duration = Duration::from_secs(2);

/// The header on an answer from memory.
const STALE: &str = "x-countersign-stale";

#[tokio::test]
async fn an_etcd_that_is_not_there_is_told_by_endpoint_and_step() {
    let nobody = Reservation::any();
    let url = format!("http://{}", nobody.address());
    let ended = refused_start(Access { hosts: vec![url.clone()], ..Access::default() }, json!({})).await;
    assert_said(&ended, &[&url, "TCP", "all etcd nodes are unavailable"]);
    let ended = refused_start(
        Access { hosts: vec!["http://no-such-host.invalid:2379".to_owned()], ..Access::default() },
        json!({}),
    );
    assert_said(&ended.await, &["http://no-such-host.invalid:2379", "DNS", "all etcd nodes are unavailable"]);
}

#[tokio::test]
async fn one_of_several_endpoints_is_enough_only_if_half_of_them_answer() {
    let etcd = Etcd::plain().await;
    let nobody = Reservation::any();
    let dead = format!("http://{}", nobody.address());
    let hosts = vec![dead.clone(), etcd.url(), dead.clone()];
    let ended = refused_start(Access { hosts, ..Access::default() }, json!({})).await;
    assert_said(&ended, &[&dead, "the etcd cluster needs at least 50% and above healthy nodes"]);
}

#[tokio::test]
async fn endpoints_of_two_clusters_are_not_taken_for_one() {
    let (one, two) = (Etcd::plain().await, Etcd::plain().await);
    let ended =
        refused_start(Access { hosts: vec![one.url(), two.url()], ..Access::default() }, json!({})).await;
    assert_said(&ended, &[&one.url(), &two.url(), "cluster"]);
}

#[tokio::test]
async fn a_start_waits_for_etcd_as_often_as_it_was_told_to_ask() {
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
async fn while_etcd_is_away_the_gateway_serves_reads_are_old_and_writes_are_refused_at_once() {
    let mut stage = Stage::start().await;
    stage.world.apply(&[("ssls/app", stage.world.protected_site()), ("routes/a", stage.route("/a"))]).await;
    assert!(!stage.world.admin().get("routes/a").await.reply.headers.contains_key(STALE));
    let mark = stage.world.control_log().mark();
    stage.etcd.kill().await;
    // Also the first write, which may be the one that finds out.
    let began = Instant::now();
    let (refused, said) = attempt(&stage.world, Method::PUT, "routes/b", Some(&stage.route("/b"))).await;
    assert_eq!(refused, StatusCode::SERVICE_UNAVAILABLE, "{said}");
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
        let (status, said) = attempt(&stage.world, method.clone(), path, body.as_ref()).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{method} {path}: {said}");
        assert!(said.contains(&stage.etcd.url()), "{method} {path} names the endpoint: {said}");
        assert!(!said.contains("not known"), "{method} {path}: nothing was sent: {said}");
    }
    assert!(began.elapsed() < AT_ONCE * 2, "{:?} for 11 calls", began.elapsed());
    assert_eq!(stage.world.verified_client("app.test").get("/a").await.unwrap().status, StatusCode::OK);
    stage.world.client("app.test").expect_alert().await;

    // It comes back by itself, with nothing that was refused.
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
async fn a_data_plane_and_its_control_plane_restart_while_etcd_is_away() {
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

/// A control plane on three members, over mutual TLS; it uses the one that leads.
async fn on_three() -> (Cluster, World, Upstream) {
    let cluster = Cluster::of_three(Etcd::builder().mutual(&Authorities::mint())).await;
    let mut access = cluster.access();
    access.hosts.rotate_left(cluster.leader(0).await);
    let world = World::builder().etcd(access).start().await;
    (cluster, world, Upstream::plain("one").await)
}

/// Writes until one write is acknowledged; every refusal must be a 503.
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
async fn one_member_of_three_may_die_and_with_two_gone_nothing_is_written() {
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
    let (refused, said) = attempt(&world, Method::PUT, "routes/none", Some(&route(&upstream, "/none"))).await;
    assert_eq!(refused, StatusCode::SERVICE_UNAVAILABLE);
    assert!(!said.contains("not known"), "{said}");
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

/// It runs and answers whoever does not mind old news; but it is alone.
#[tokio::test]
async fn a_member_without_a_majority_is_not_believed() {
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
    let (refused, said) = attempt(&world, Method::PUT, "routes/none", Some(&route(&upstream, "/none"))).await;
    assert_eq!(refused, StatusCode::SERVICE_UNAVAILABLE);
    assert!(!said.contains("not known"), "{said}");
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

/// What became of the writes of one writer.
#[derive(Default)]
struct Outcomes {
    acknowledged: Vec<String>,
    refused: Vec<String>,
    unknown: Vec<String>,
}

impl Outcomes {
    fn add(&mut self, id: &str, status: StatusCode, said: &str) {
        let list = match status {
            status if status.is_success() => &mut self.acknowledged,
            StatusCode::SERVICE_UNAVAILABLE if said.contains("not known") => &mut self.unknown,
            StatusCode::SERVICE_UNAVAILABLE => &mut self.refused,
            status => panic!("{id}: {status} {said}"),
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
async fn the_leader_paused_during_writes_loses_nothing_and_brings_nothing_later() {
    let (mut cluster, world, upstream) = on_three().await;
    let mut total = Outcomes::default();
    for round in 0..2 {
        let leader = cluster.leader(round).await;
        let first = round * 100;
        let writes = write_each(&world, &upstream, first..first + 40);
        // Whatever the leader took in before it stopped is in its memory and in its sockets.
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
        // The leader of before has caught up when it knows what was written after it came back.
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

/// By way of this proxy alone.
fn proxied(proxy: &Proxy) -> Access {
    Access { hosts: vec![format!("http://{}", proxy.address())], ..Access::default() }
}

/// The connection breaks when etcd has made the write, before its answer came through.
#[tokio::test]
async fn a_write_that_is_cut_off_from_its_answer_is_told_as_it_is() {
    for mended in [true, false] {
        let etcd = Etcd::plain().await;
        let proxy = Proxy::to(etcd.address()).await;
        let stage = Stage::with(etcd, World::builder().etcd(proxied(&proxy))).await;
        stage.world.apply(&[("routes/a", stage.route("/a"))]).await;
        let mut keys = stage.etcd.keys().await;
        let next = keys.revision().await + 1;
        proxy.trap("\"/b\"", Network::HoldAnswers);
        let document = stage.route("/b");
        let ((status, said), ()) =
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
            // It asked again, and found it.
            assert_eq!(status, StatusCode::CREATED, "{said}");
            let changes = keys.history("/apisix/routes/b", next, next).await;
            assert_eq!(changes.len(), 1, "it was made once");
        } else {
            assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{said}");
            assert!(said.contains("not known"), "{said}");
        }
    }
}

/// An endpoint that says nothing any more, without an end of its connections: a machine that lost its power, a firewall.
#[tokio::test]
async fn a_silent_endpoint_is_left_for_another() {
    let etcd = Etcd::plain().await;
    let proxy = Proxy::to(etcd.address()).await;
    let access =
        Access { hosts: vec![format!("http://{}", proxy.address()), etcd.url()], ..Access::default() };
    let stage = Stage::with(etcd, World::builder().etcd(access)).await;
    stage.world.apply(&[("routes/a", stage.route("/a"))]).await;
    assert!(proxy.connections() > 0, "it is the first");
    proxy.set(Network::Hold).await;
    // Nobody writes here, so only the watch can notice.
    stage.etcd_put("routes/b", &stage.route("/b")).await;
    assert_eq!(stage.status("/b").await, StatusCode::OK);
    let revision = put_until_made(&stage.world, "routes/c", &stage.route("/c")).await;
    stage.world.wait_acknowledged(revision).await;
    assert_eq!(stage.status("/c").await, StatusCode::OK);
}

#[tokio::test]
async fn a_full_etcd_is_told_with_what_to_do_and_everything_is_served_on() {
    let etcd = Etcd::builder().argument("--quota-backend-bytes=2000000").start().await;
    let stage = Stage::of(etcd).await;
    stage.world.apply(&[("routes/a", stage.route("/a"))]).await;
    let mut big = stage.route("/big");
    big["desc"] = json!("d".repeat(200));
    big["vars"] = json!([["arg_x", "==", "x".repeat(400_000)]]);
    let said = e2e::client::bounded("etcd is full", async {
        loop {
            let (status, said) = attempt(&stage.world, Method::PUT, "routes/big", Some(&big)).await;
            if !status.is_success() {
                assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{said}");
                return said;
            }
        }
    });
    let said = said.await;
    assert!(said.contains("database space exceeded") && said.contains("--quota-backend-bytes"), "{said}");
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
async fn a_write_whose_answer_is_lost_is_told_as_it_is() {
    let etcd = Etcd::plain().await;
    let proxy = Proxy::to(etcd.address()).await;
    let builder =
        World::builder().etcd(proxied(&proxy)).settings(json!({"deployment": {"etcd": {"timeout": 1}}}));
    let stage = Stage::with(etcd, builder).await;
    stage.world.apply(&[("routes/a", stage.route("/a"))]).await;

    // It arrives, and nobody hears of it: it must not be told as refused.
    proxy.trap("\"/b\"", Network::HoldAnswers);
    let (refused, said) = attempt(&stage.world, Method::PUT, "routes/b", Some(&stage.route("/b"))).await;
    assert_eq!(refused, StatusCode::SERVICE_UNAVAILABLE, "{said}");
    assert!(said.contains("not known"), "{said}");
    assert!(stage.etcd.keys().await.get(&name("routes/b")).await.is_some(), "it was made");
    let mark = stage.world.control_log().mark();
    proxy.set(Network::Forward).await;
    stage.world.control_log().line_after(mark, &["reconnected to etcd"]).await;
    let revision = put_until_made(&stage.world, "routes/c", &stage.route("/c")).await;
    stage.world.wait_acknowledged(revision).await;
    assert_eq!(stage.status("/b").await, StatusCode::OK, "the data plane has what etcd has");

    // It is under way and arrives when the network heals: by then it must not count any more.
    proxy.trap("\"/d\"", Network::Hold);
    let (refused, said) = attempt(&stage.world, Method::PUT, "routes/d", Some(&stage.route("/d"))).await;
    assert_eq!(refused, StatusCode::SERVICE_UNAVAILABLE, "{said}");
    let mark = stage.world.control_log().mark();
    proxy.set(Network::Forward).await;
    stage.world.control_log().line_after(mark, &["reconnected to etcd"]).await;
    let revision = put_until_made(&stage.world, "routes/e", &stage.route("/e")).await;
    stage.world.wait_acknowledged(revision).await;
    assert!(said.contains("not known"), "{said}");
    let made = stage.etcd.keys().await.get(&name("routes/d")).await.is_some();
    let shown = stage.status("/d").await == StatusCode::OK;
    assert_eq!(shown, made, "the data plane has what etcd has");
}
