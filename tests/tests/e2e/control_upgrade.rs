//! A control plane over an embedded store is upgraded, restarted and reloaded while a data plane
//! serves.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use e2e::client::HttpConnection;
use e2e::documents::route;
use e2e::upstream::Upstream;
use e2e::world::World;
use http::{Method, StatusCode};
use serde_json::json;

async fn request_on(mut session: HttpConnection, end: Arc<AtomicBool>) -> usize {
    let mut answered = 0;
    while !end.load(Ordering::SeqCst) {
        let reply = session.get("/").await.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(reply.status, StatusCode::OK);
        answered += 1;
    }
    answered
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_notice_a_reconnect_only() {
    let (mut world, upstream) = (World::start().await, Upstream::plain("one").await);
    world.serve(world.open_site(), &upstream).await;
    let end = Arc::new(AtomicBool::new(false));
    let session = world.client("app.test").connect().await.unwrap();
    let asking = tokio::spawn(request_on(session, Arc::clone(&end)));
    let mut successors = Vec::new();
    for round in 0..3 {
        let mark = world.node_log().mark();
        successors.push(world.upgrade_control_at(0).await);
        // The write goes to the new process, and reaches the node over its new stream.
        let path = format!("/round-{round}");
        let revision =
            world.admin().put("routes/more", &route("app.test", &path, &[upstream.address()])).await;
        world.wait_acknowledged(revision).await;
        let reply = world.client("app.test").get(&path).await.unwrap();
        assert_eq!(reply.status, StatusCode::OK, "{path}");
        let lines = world.node_log().text();
        let after = lines.get(mark..).unwrap();
        assert!(!after.contains("removed=1") && !after.contains(" ERROR "), "{after}");
        let view = world.admin().get("dataplanes").await.body;
        assert_eq!(view["total"], 1, "{view}");
    }
    // The last one is stopped and started again as before; the node serves meanwhile.
    let last = successors.pop().unwrap();
    last.signal(rustix::process::Signal::TERM);
    last.ended().await;
    world.start_control().await;
    let revision =
        world.admin().put("routes/more", &route("app.test", "/again", &[upstream.address()])).await;
    world.wait_acknowledged(revision).await;
    end.store(true, Ordering::SeqCst);
    assert!(asking.await.unwrap() > 50);
}

#[tokio::test]
async fn a_revoked_role_ends_on_open_connections() {
    let roles = json!([{"match": {"subject": "CN=administrator"}, "role": "admin"}]);
    let settings = |roles| json!({"deployment": {"admin": {"client_roles": roles}}});
    let mut world = World::builder().settings(settings(roles.clone())).start().await;
    let without_key = world.admin().key(None);
    let mut kept = without_key.connect().await.unwrap();
    let body = json!({"nodes": {}});
    let put = (Method::PUT, "upstreams/1");
    let first = kept.call(put.0.clone(), put.1, Some(&body)).await.unwrap();
    assert_eq!(first.status, StatusCode::CREATED, "{first:?}");
    world.change_settings(settings(json!([])));
    let reloaded = world.reload_control_at(0).await;
    assert!(reloaded.status.success(), "{reloaded:?}");
    assert!(reloaded.stdout.contains("deployment.admin.client_roles"), "{reloaded:?}");
    let denied = kept.call(put.0.clone(), put.1, Some(&body)).await.unwrap();
    assert_eq!(denied.status, StatusCode::UNAUTHORIZED, "{denied:?}");
    world.change_settings(settings(roles));
    assert!(world.reload_control_at(0).await.status.success());
    assert_eq!(kept.call(put.0, put.1, Some(&body)).await.unwrap().status, StatusCode::OK);

    // A node whose name is no longer allowed loses its stream.
    let (mark, names) = (world.node_log().mark(), json!(["another-node"]));
    world.change_settings(json!({"countersign": {"push": {"allowed_names": names}}}));
    assert!(world.reload_control_at(0).await.status.success());
    world.node_log().line_after(mark, &["allowed_names"]).await;
}
