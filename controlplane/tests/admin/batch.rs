//! Batches: several writes in one commit, or none of them.

use std::time::Duration;

use http::Method;
use serde_json::{Value, json};

use crate::world::{Response, World};

fn upstream() -> Value {
    json!({"nodes": {"127.0.0.1:1980": 1}, "type": "roundrobin"})
}

fn operation(method: &str, path: &str, body: Value) -> Value {
    json!({"method": method, "path": format!("/apisix/admin{path}"), "body": body})
}

async fn batch(world: &World, operations: Value) -> Response {
    world.post("/batch", json!({"operations": operations})).await
}

#[tokio::test]
async fn a_batch_is_one_commit() {
    let world = World::start().await;
    world.put("/upstreams/old", upstream()).await.ok();
    world.put("/routes/old", json!({"uri": "/old", "upstream_id": "old"})).await.ok();
    // Each refers to what another operation writes, whatever comes first.
    let operations = json!([
        operation("PUT", "/routes/1", json!({"uri": "/", "service_id": "1"})),
        operation("PUT", "/services/1", json!({"upstream_id": "1"})),
        operation("PUT", "/upstreams/1", upstream()),
        operation("DELETE", "/upstreams/old", json!(null)),
        operation("PATCH", "/routes/old/upstream_id", json!("1")),
        operation("POST", "/upstreams", upstream()),
    ]);
    let made = batch(&world, operations).await.ok();
    let (revision, body) = (made.revision(), made.json());
    assert_eq!((made.status.as_u16(), body["revision"].as_u64()), (200, Some(revision)));
    let statuses: Vec<_> =
        body["results"].as_array().unwrap().iter().map(|result| result["status"].as_u64().unwrap()).collect();
    assert_eq!(statuses, [201, 201, 201, 200, 200, 201]);
    assert_eq!(body["results"][3]["deleted"], "1");
    let created = body["results"][5]["key"].as_str().unwrap().to_owned();
    for path in ["/routes/1", "/services/1", "/upstreams/1", "/routes/old"] {
        assert_eq!(world.get(path).await.ok().json()["modifiedIndex"], revision, "{path}");
    }
    let created = created.strip_prefix("/apisix").unwrap();
    assert_eq!(world.get(created).await.ok().json()["createdIndex"], revision);
    assert_eq!(world.get("/upstreams/old").await.status, 404);
}

#[tokio::test]
async fn a_failed_operation_leaves_everything_as_it_was() {
    let world = World::start().await;
    world.put("/upstreams/1", upstream()).await.ok();
    world.put("/routes/1", json!({"uri": "/", "upstream_id": "1"})).await.ok();
    let state = async || {
        let mut state = String::new();
        for kind in ["ssls", "upstreams", "services", "routes"] {
            state.push_str(&world.get(&format!("/{kind}")).await.text);
        }
        state
    };
    let before = state().await;
    let first = operation("PUT", "/upstreams/2", upstream());
    for (second, status, message) in [
        (operation("PUT", "/routes/2", json!({"uri": 1})), 400, "operation 1: invalid configuration: "),
        (
            operation("PUT", "/routes/2", json!({"uri": "/", "upstream_id": "3"})),
            400,
            "operation 1: failed to fetch upstream",
        ),
        (
            operation("DELETE", "/upstreams/1", json!(null)),
            400,
            "operation 1: can not delete this upstream, route [1]",
        ),
        (operation("DELETE", "/upstreams/3", json!(null)), 404, "operation 1: Key not found"),
        (operation("PUT", "/upstreams/2", upstream()), 400, "operation 1: upstreams/2 is written twice"),
        (operation("PUT", "/upstreams", upstream()), 400, "operation 1: missing upstream id"),
        (
            operation("POST", "/upstreams/4", upstream()),
            400,
            "operation 1: wrong upstream id, do not need it",
        ),
        (operation("GET", "/upstreams/1", json!(null)), 400, "operation 1: no write of a document"),
        (operation("PUT", "/consumers/a", json!({})), 400, "operation 1: no write of a document"),
        (operation("POST", "/batch", json!({})), 400, "operation 1: no write of a document"),
        (operation("BREW", "/upstreams/1", json!({})), 400, "operation 1: no operation"),
        (operation("PUT", "/../upstreams/1", json!({})), 400, "operation 1: no operation"),
        (json!({"method": "PUT", "path": "/elsewhere"}), 400, "operation 1: invalid path"),
        (json!({"method": "PUT", "path": "/".repeat(5000)}), 400, "operation 1: invalid path: 5000 bytes"),
        (json!({"method": "P".repeat(5000), "path": "/"}), 400, "operation 1: invalid method: 5000"),
        (
            json!({"method": "DELETE", "path": "/apisix/admin/routes/1", "if_match": "\"1\""}),
            412,
            "operation 1: the precondition",
        ),
        (
            json!({"method": "DELETE", "path": "/apisix/admin/routes/1", "if_match": "1"}),
            400,
            "operation 1: invalid If-Match",
        ),
        (
            json!({"method": "PUT", "path": "/apisix/admin/routes/2?ttl=x", "body": {}}),
            400,
            "operation 1: invalid argument ttl",
        ),
    ] {
        let refused = batch(&world, json!([first, second])).await;
        let text = refused.json()["error_msg"].as_str().unwrap().to_owned();
        assert!(refused.status == status && text.starts_with(message), "{message}: {refused:?}");
        assert_eq!(refused.json()["operation"], 1);
    }
    assert_eq!(state().await, before);
}

#[tokio::test]
async fn a_malformed_batch_is_rejected() {
    let world = World::start().await;
    let many: Vec<_> = (0..129).map(|n| operation("PUT", &format!("/upstreams/{n}"), upstream())).collect();
    for (body, message) in [
        (json!({"operations": many}), "invalid batch: 129 operations"),
        (json!({"operations": []}), "invalid batch: 0 operations"),
        (json!({}), "invalid batch: missing field `operations`"),
        (
            json!({"operations": [{"method": "PUT", "path": "/x", "boody": 1}]}),
            "invalid batch: unknown field `boody`",
        ),
        (json!([]), "invalid batch: should be an object with operations"),
    ] {
        let refused = world.post("/batch", body).await;
        let text = refused.json()["error_msg"].as_str().unwrap().to_owned();
        assert!(refused.status == 400 && text.starts_with(message), "{message}: {refused:?}");
    }
    assert_eq!(world.call(Method::POST, "/batch", "").await.status, 400);
    assert_eq!(world.get("/upstreams").await.json()["total"], 0);
}

#[tokio::test]
async fn a_dry_run_of_a_batch_stores_nothing() {
    let world = World::start().await;
    let operations = json!([
        operation("PUT", "/upstreams/1", upstream()),
        operation("POST", "/routes", json!({"uri": "/", "upstream_id": "1"})),
    ]);
    let body = json!({"operations": operations});
    let shown = world.post("/batch?dry_run=true", body).await.ok().json();
    assert_eq!((shown["dry_run"].as_bool(), shown.get("revision")), (Some(true), None));
    assert_eq!(shown["results"][0]["key"], "/apisix/upstreams/1");
    assert_eq!(shown["results"][1]["key"], json!(null), "a POST takes its id when it is made");
    assert!(shown["results"][0]["difference"].is_array(), "{shown}");
    for kind in ["upstreams", "routes"] {
        assert_eq!(world.get(&format!("/{kind}")).await.json()["total"], 0);
    }
}

/// What a large change writes in several batches is checked at once.
#[tokio::test]
async fn a_dry_run_may_be_larger_than_a_commit() {
    let world = World::start().await;
    let route = |n: usize| {
        operation(
            "PUT",
            &format!("/routes/{n}"),
            json!({"uri": "/", "upstream_id": "u", "desc": "x".repeat(250)}),
        )
    };
    let mut operations: Vec<_> = (0..6000).map(route).collect();
    operations.push(operation("PUT", "/upstreams/u", upstream()));
    let body = json!({"operations": operations});
    assert!(body.to_string().len() > 1_572_864);
    let checked = world.post("/batch?dry_run=true", body.clone()).await.ok().json();
    assert_eq!(checked["results"].as_array().unwrap().len(), 6001);
    assert_eq!(world.get("/routes").await.json()["total"], 0);
    let refused = world.post("/batch", body).await;
    assert!(refused.status == 400 && refused.text.contains("the maximum size 1572864"), "{refused:?}");
    let refused = batch(&world, json!(operations[5872..])).await;
    refused.assert_error("invalid batch: 129 operations, should be 1 to 128");
    operations.resize(10_001, operations[0].clone());
    let refused = world.post("/batch?dry_run=true", json!({"operations": operations})).await;
    refused.assert_error("invalid batch: 10001 operations, should be 1 to 10000");
}

/// A reference is part of the commit: whoever is first, no route is left without its upstream.
#[tokio::test]
async fn no_route_refers_to_an_upstream_that_is_being_removed() {
    let world = World::start().await;
    for round in 0..40 {
        let (upstreams, routes) = (format!("/upstreams/{round}"), format!("/routes/{round}"));
        world.put(&upstreams, upstream()).await.ok();
        let route = json!({"uri": "/", "upstream_id": round.to_string()});
        let (removed, written) = tokio::join!(world.delete(&upstreams), world.put(&routes, route));
        match (removed.status.as_u16(), written.status.as_u16()) {
            (200, 400) => assert_eq!(world.get(&routes).await.status, 404),
            (400, 201) => assert_eq!(world.get(&upstreams).await.status, 200),
            other => panic!("{other:?}: {removed:?} {written:?}"),
        }
    }
}

#[tokio::test]
async fn batches_of_many_writers_are_whole() {
    const WRITERS: usize = 8;
    let world = World::start().await;
    let write = async |writer: usize| {
        for round in 0..6 {
            let desc = format!("{writer}-{round}");
            let document = json!({"nodes": {}, "desc": desc});
            let operations: Vec<_> =
                (0..4).map(|n| operation("PUT", &format!("/upstreams/{n}"), document.clone())).collect();
            batch(&world, json!(operations)).await.ok();
        }
    };
    let writers = futures_util::future::join_all((0..WRITERS).map(write));
    tokio::time::timeout(Duration::from_secs(60), writers).await.unwrap();
    let list = world.get("/upstreams").await.json()["list"].as_array().unwrap().clone();
    let descs: std::collections::BTreeSet<_> =
        list.iter().map(|item| item["value"]["desc"].to_string()).collect();
    let revisions: std::collections::BTreeSet<_> =
        list.iter().map(|item| item["modifiedIndex"].to_string()).collect();
    assert_eq!((list.len(), descs.len(), revisions.len()), (4, 1, 1), "{descs:?}");
}

/// An argument that an operation does not take must not be thought to hold for it.
#[tokio::test]
async fn an_operation_takes_no_dry_run_of_its_own() {
    let world = World::start().await;
    for argument in ["dry_run=true", "dryrun=true", "weaken=true", "wait=1"] {
        let path = format!("/upstreams/1?ttl=60&{argument}");
        let refused = batch(&world, json!([operation("PUT", &path, upstream())])).await;
        let name = argument.split('=').next().unwrap();
        let expected = format!("operation 0: invalid argument {name}: an operation takes force and ttl");
        refused.assert_error(&expected);
    }
    assert_eq!(world.get("/upstreams/1").await.status, 404);
    batch(&world, json!([operation("PUT", "/upstreams/1?ttl=60", upstream())])).await.ok();
}
