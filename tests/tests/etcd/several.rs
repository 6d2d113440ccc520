//! Several control planes on one etcd: concurrent writers lose nothing, and data planes move
//! between them without going back.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use e2e::admin::Admin;
use e2e::client::{HttpConnection, bounded};
use e2e::etcd::Etcd;
use e2e::upstream::Upstream;
use e2e::world::World;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::stage::{entry, numbered, route};

async fn two() -> (Etcd, World, Arc<Upstream>) {
    let etcd = Etcd::plain().await;
    let builder = World::builder().etcd(&etcd).control_planes(2);
    let world = builder.node_environment("RUST_LOG", "info,dataplane::push_client=debug").start().await;
    (etcd, world, Arc::new(Upstream::plain("one").await))
}

/// Adds labels of its own to an object that others change, too, and retries after conflicts. Gives
/// the number of conflicts.
async fn label(admin: Admin, writer: usize, count: usize) -> usize {
    let mut session = admin.connect().await.unwrap();
    let mut lost = 0;
    for n in 0..count {
        let body = json!({"labels": {format!("w{writer}-{n}"): "1"}});
        loop {
            let answer = session.call(Method::PATCH, "routes/shared", Some(&body)).await.unwrap();
            if answer.status == StatusCode::OK {
                break;
            }
            // The response says that nothing was written, and to retry.
            assert!(answer.reply.text().contains("value changed before overwritten"), "{answer:?}");
            lost += 1;
        }
    }
    lost
}

#[tokio::test]
async fn concurrent_writers_lose_no_update() {
    let (etcd, world, upstream) = two().await;
    world.apply(&[("routes/shared", route(&upstream, "/shared"))]).await;
    let writers = (0..4).map(|writer| tokio::spawn(label(world.admin_of(writer % 2), writer, 25)));
    let mut lost = 0;
    for writer in writers.collect::<Vec<_>>() {
        lost += writer.await.unwrap();
    }
    let stored = entry(&mut etcd.keys().await, "routes/shared").await;
    let labels: BTreeSet<&str> = stored["labels"].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(labels.len(), 100, "of 100 acknowledged changes ({lost} were tried again)");
    for index in 0..2 {
        assert_eq!(
            world.admin_of(index).get("routes/shared").await.body["value"]["labels"],
            stored["labels"]
        );
    }
}

#[tokio::test]
async fn a_write_is_visible_at_every_control_plane() {
    let (_etcd, world, upstream) = two().await;
    // The node is connected to one of them; writes at both reach it.
    let on = connected_to(&world).await;
    for (index, path) in [(0, "a"), (1, "b")] {
        let revision = world
            .admin_of(index)
            .put(&format!("routes/{path}"), &route(&upstream, &format!("/{path}")))
            .await;
        world.wait_acknowledged_at(on, revision).await;
        let reply = world.plain("app.test").await.get(&format!("/{path}")).await.unwrap();
        assert_eq!(reply.status, StatusCode::OK);
        assert_eq!(world.admin_of(1 - index).get(&format!("routes/{path}")).await.status, StatusCode::OK);
    }
    // An id that was taken at one is not taken again at the other.
    let mut ids = BTreeSet::new();
    for round in 0..10 {
        for index in 0..2 {
            let body = route(&upstream, &format!("/{round}-{index}"));
            let answer = world.admin_of(index).call(Method::POST, "routes", Some(&body)).await.unwrap();
            assert_eq!(answer.status, StatusCode::CREATED);
            assert!(ids.insert(answer.body["key"].to_string()), "{:?}", answer.body);
        }
    }
}

/// The control plane of the first node, by the node's status.
async fn connected_to(world: &World) -> usize {
    let addresses = [0, 1].map(|index| world.push_address_of(index).to_string());
    let newest = |log: &str| {
        let line = log.lines().rfind(|line| line.contains(" connected control_plane="))?;
        addresses.iter().position(|address| line.contains(address))
    };
    world.node_log().find("a line about a connection", newest).await
}

/// The node's log line about its first delta from this control plane after `mark`.
async fn first_taken(world: &World, mark: usize, index: usize) -> String {
    let connected = format!(" connected control_plane=\"{}\"", world.push_address_of(index));
    let first = |log: &str| {
        let (_, later) = log.get(mark..)?.split_once(&connected)?;
        later.lines().find(|line| line.contains("serving a new snapshot")).map(str::to_owned)
    };
    world.node_log().find("a delta from the other control plane", first).await
}

/// Requests one route's number until it is stopped: it never decreases.
async fn only_forward(mut session: HttpConnection, end: Arc<AtomicBool>, seen: watch::Sender<u64>) {
    let mut newest = 0;
    while !end.load(Ordering::SeqCst) {
        let reply = session.get("/counted").await.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(reply.status, StatusCode::OK);
        let host = reply.json()["headers"]["host"].as_str().unwrap().to_owned();
        let number: u64 = host.strip_prefix('v').unwrap().parse().unwrap();
        assert!(number >= newest, "{number} is served after {newest}");
        newest = number;
        seen.send_replace(newest);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_moves_during_writes_never_goes_back() {
    let (_etcd, mut world, upstream) = two().await;
    let mut documents = vec![("routes/counted".to_owned(), numbered(&upstream, "/counted", 0))];
    documents.extend((0..200).map(|n| (format!("routes/fill-{n}"), route(&upstream, &format!("/fill-{n}")))));
    let documents: Vec<_> =
        documents.iter().map(|(path, document)| (path.as_str(), document.clone())).collect();
    let mut revision = 0;
    for (path, document) in &documents {
        revision = world.admin().put(path, document).await;
    }
    let on = connected_to(&world).await;
    world.wait_acknowledged_at(on, revision).await;

    let (end, (seen, mut newest)) = (Arc::new(AtomicBool::new(false)), watch::channel(0));
    let asking = tokio::spawn(only_forward(world.plain("app.test").await, Arc::clone(&end), seen));
    let mut number = 0;
    // Three moves; each time the node's control plane dies during writes at the other.
    for _ in 0..3 {
        let on = connected_to(&world).await;
        let other = 1 - on;
        let mark = world.node_log().mark();
        for n in 0..20 {
            number += 1;
            revision =
                world.admin_of(other).put("routes/counted", &numbered(&upstream, "/counted", number)).await;
            if n == 10 {
                world.kill_control_at(on).await;
            }
        }
        world.wait_acknowledged_at(other, revision).await;
        bounded("the newest is served", newest.wait_for(|seen| *seen == number)).await.unwrap();
        // It reported its snapshot, so only the difference was sent: at most the one changed
        // object.
        let line = first_taken(&world, mark, other).await;
        assert!(
            line.contains("removed=0") && ["changed=0", "changed=1"].iter().any(|few| line.contains(few)),
            "{line}"
        );
        world.start_control_at(on).await;
    }
    end.store(true, Ordering::SeqCst);
    asking.await.unwrap();
}

#[tokio::test]
async fn a_restarted_control_plane_resumes_current_nodes() {
    let (_etcd, mut world, upstream) = two().await;
    for n in 0..50 {
        let revision = world.admin().put(&format!("routes/{n}"), &route(&upstream, &format!("/{n}"))).await;
        if n == 49 {
            let on = connected_to(&world).await;
            world.wait_acknowledged_at(on, revision).await;
        }
    }
    // Both restart: the node resumes at either.
    let on = connected_to(&world).await;
    world.stop_control_at(0).await;
    world.stop_control_at(1).await;
    let mark = world.node_log().mark();
    world.start_control_at(1 - on).await;
    let line = first_taken(&world, mark, 1 - on).await;
    assert!(line.contains("changed=0 removed=0"), "{line}");
}

/// Creates numbered routes at one control plane, each over a new connection, until it is stopped.
/// No write may fail. Gives their number.
async fn write_routes(admin: Admin, name: &'static str, route: Value, end: Arc<AtomicBool>) -> usize {
    let mut written = 0;
    while !end.load(Ordering::SeqCst) {
        let path = format!("routes/{name}-{written}");
        let answer = admin.call(Method::PUT, &path, Some(&route)).await;
        let answer = answer.unwrap_or_else(|error| panic!("{path}: {error}"));
        assert_eq!(answer.status, StatusCode::CREATED, "{path}: {answer:?}");
        written += 1;
    }
    written
}

/// Requests a route until it is stopped; every request is answered.
async fn request_on(mut session: HttpConnection, end: Arc<AtomicBool>) {
    while !end.load(Ordering::SeqCst) {
        let reply = session.get("/served").await.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(reply.status, StatusCode::OK);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upgrades_of_control_planes_lose_no_write() {
    let (etcd, world, upstream) = two().await;
    let revision = world.apply(&[("routes/served", route(&upstream, "/served"))]).await;
    let on = connected_to(&world).await;
    world.wait_acknowledged_at(on, revision).await;
    let end = Arc::new(AtomicBool::new(false));
    let asking = tokio::spawn(request_on(world.plain("app.test").await, Arc::clone(&end)));
    let writers = [(0, "a"), (1, "b")].map(|(index, name)| {
        let route = route(&upstream, &format!("/{name}"));
        tokio::spawn(write_routes(world.admin_of(index), name, route, Arc::clone(&end)))
    });
    let mut successors = Vec::new();
    for round in 0..10 {
        successors.push(world.upgrade_control_at(round % 2).await);
    }
    end.store(true, Ordering::SeqCst);
    asking.await.unwrap();
    let mut counts = Vec::new();
    for writer in writers {
        counts.push(writer.await.unwrap());
    }
    let keys: BTreeSet<String> =
        etcd.keys().await.with_prefix("/apisix/routes/").await.into_iter().map(|entry| entry.key).collect();
    for (written, name) in counts.into_iter().zip(["a", "b"]) {
        assert!(written > 20, "{written} writes by {name}");
        assert!((0..written).all(|n| keys.contains(&format!("/apisix/routes/{name}-{n}"))), "{name}");
    }
    // The node is at one of them, once; each knows the other, and no dead one.
    let revision = world.apply(&[("routes/last", route(&upstream, "/last"))]).await;
    let on = connected_to(&world).await;
    world.wait_acknowledged_at(on, revision).await;
    for index in 0..2 {
        let alone = |view: &Value| {
            let (nodes, others) =
                (view["list"].as_array().unwrap(), view["control_planes"].as_array().unwrap());
            nodes.len() == usize::from(index == on) && others.len() == 1
        };
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        loop {
            let view = world.admin_of(index).get("dataplanes").await.body;
            if alone(&view) {
                break;
            }
            assert!(std::time::Instant::now() < deadline, "{view:#}");
        }
    }
    drop(successors);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn control_planes_restart_one_after_the_other() {
    let (_etcd, mut world, upstream) = two().await;
    let revision = world.apply(&[("routes/served", route(&upstream, "/served"))]).await;
    let on = connected_to(&world).await;
    world.wait_acknowledged_at(on, revision).await;
    let end = Arc::new(AtomicBool::new(false));
    let asking = tokio::spawn(request_on(world.plain("app.test").await, Arc::clone(&end)));
    for round in 0..4 {
        let (stopped, other) = (round % 2, 1 - round % 2);
        let writing = Arc::new(AtomicBool::new(false));
        let route_of_round = route(&upstream, "/written");
        let names = ["first", "second", "third", "fourth"];
        let writer = write_routes(world.admin_of(other), names[round], route_of_round, Arc::clone(&writing));
        let writer = tokio::spawn(writer);
        assert!(world.stop_control_at(stopped).await.success());
        world.start_control_at(stopped).await;
        writing.store(true, Ordering::SeqCst);
        assert!(writer.await.unwrap() > 0);
        let revision = world.admin_of(other).put("routes/served", &route(&upstream, "/served")).await;
        let on = connected_to(&world).await;
        world.wait_acknowledged_at(on, revision).await;
    }
    end.store(true, Ordering::SeqCst);
    asking.await.unwrap();
}

#[tokio::test]
async fn prefixes_of_one_etcd_are_separate() {
    let etcd = Etcd::plain().await;
    let at = |prefix: &str| {
        World::builder().etcd(&etcd).settings(json!({"deployment": {"etcd": {"prefix": prefix}}})).start()
    };
    let (one, two) = tokio::join!(at("/gate"), at("/gate2/"));
    let upstream = Upstream::plain("one").await;
    one.apply(&[("routes/a", route(&upstream, "/a"))]).await;
    two.apply(&[("routes/a", route(&upstream, "/b"))]).await;
    for (world, path, other) in [(&one, "/a", "/b"), (&two, "/b", "/a")] {
        assert_eq!(world.plain("app.test").await.get(path).await.unwrap().status, StatusCode::OK);
        assert_eq!(world.plain("app.test").await.get(other).await.unwrap().status, StatusCode::NOT_FOUND);
        let listed = world.admin().get("routes").await.body;
        assert_eq!((&listed["total"], &listed["list"][0]["value"]["uri"]), (&json!(1), &json!(path)));
    }
    let keys: Vec<_> = etcd.keys().await.with_prefix("/").await.into_iter().map(|entry| entry.key).collect();
    for name in ["/gate/routes/a", "/gate2/routes/a"] {
        assert!(keys.contains(&name.to_owned()), "{keys:?}");
    }
    assert!(!keys.iter().any(|key| key.contains("//")), "{keys:?}");
}

#[tokio::test]
async fn ticket_secrets_are_shared_and_outlive_a_control_plane() {
    let (etcd, mut world, _upstream) = two().await;
    let mut keys = etcd.keys().await;
    let kept =
        |entries: Vec<e2e::etcd::Entry>| entries.into_iter().find(|entry| entry.key.contains("ticket"));
    let secrets = kept(keys.with_prefix("/apisix/countersign/").await).expect("the secrets are in etcd");
    assert!(!String::from_utf8_lossy(&secrets.value).contains("secret\":"), "sealed");
    let on = connected_to(&world).await;
    world.node_log().line_with(&["applied new ticket secrets"]).await;
    let mark = world.node_log().mark();
    world.kill_control_at(on).await;
    first_taken(&world, mark, 1 - on).await;
    let after = kept(keys.with_prefix("/apisix/countersign/").await).expect("the secrets are in etcd");
    assert_eq!(after, secrets, "no other secrets exist");
}
