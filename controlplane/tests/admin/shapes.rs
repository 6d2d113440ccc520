//! Statuses and JSON of every kind (contract 2.3, 2.4).

use futures_util::StreamExt;
use futures_util::future::join_all;
use http::Method;
use serde_json::{Value, json};

use crate::world::World;

fn upstream(weight: u64) -> Value {
    json!({"nodes": {"127.0.0.1:1980": weight}})
}

#[tokio::test]
async fn put_creates_then_replaces() {
    let world = World::start().await;
    let created = world.put("/upstreams/1", upstream(1)).await;
    assert_eq!((created.status.as_u16(), created.header("x-api-version")), (201, Some("v3")));
    assert!(created.text.ends_with("}\n"));
    let replaced = world.put("/upstreams/1", json!({"nodes": {"127.0.0.1:1980": 2}, "name": "n"})).await;
    assert_eq!(replaced.status, 200);
    assert!(replaced.revision() > created.revision());
    let value = |response: &crate::world::Response| response.json()["value"].clone();
    assert_eq!(value(&created)["create_time"], value(&replaced)["create_time"]);
    assert_eq!(value(&replaced)["name"], "n");
    // Replaced, not merged.
    let third = world.put("/upstreams/1", upstream(3)).await;
    assert_eq!(value(&third).get("name"), None);
    let read = world.get("/upstreams/1").await.json();
    assert_eq!(read["createdIndex"], created.revision());
    assert_eq!(read["modifiedIndex"], third.revision());
    assert_eq!(read["value"], value(&third));
}

#[tokio::test]
async fn a_missing_id_reveals_no_other_document() {
    let world = World::start().await;
    world.put("/upstreams/10", upstream(1)).await.ok();
    world.get("/upstreams/1").await.key_not_found();
    world.delete("/upstreams/1").await.key_not_found();
    world.get("/upstreams/*").await.key_not_found();
    world.delete("/upstreams/%2e%2e%2f").await.key_not_found();
    assert!(world.get("/upstreams/1").await.header("x-countersign-revision").is_none());
}

#[tokio::test]
async fn a_ttl_removes_the_document() {
    let world = World::start().await;
    world
        .put("/upstreams/1?ttl=x", upstream(1))
        .await
        .assert_error("invalid argument ttl: should be a number");
    for ttl in ["0", "0.9", "-1", "4294967296", "1e300", "nan"] {
        assert_eq!(world.put(&format!("/upstreams/1?ttl={ttl}"), upstream(1)).await.status, 400, "{ttl}");
    }
    world.get("/upstreams/1").await.key_not_found();
    let created = world.put("/upstreams/1?ttl=1", upstream(1)).await.ok();
    world.put("/upstreams/2?ttl=1000", upstream(1)).await.ok();
    let kept = world.put("/upstreams/2", upstream(2)).await.ok();
    assert!(created.revision() < kept.revision());
    let mut changes = world.store.watch(created.revision());
    let removed = loop {
        let events = changes.next().await.unwrap().unwrap();
        if let Some(removed) = events.into_iter().find(|event| event.document.is_none()) {
            break removed;
        }
    };
    assert_eq!(removed.key.to_string(), "upstreams/1");
    world.get("/upstreams/1").await.key_not_found();
    assert_eq!(world.get("/upstreams/2").await.ok().json()["value"]["nodes"]["127.0.0.1:1980"], 2);
}

#[tokio::test]
async fn lists_are_paged_and_filtered() {
    let world = World::start().await;
    for n in 0..12 {
        let document =
            json!({"nodes": {"127.0.0.1:1980": 1}, "name": format!("up-{n}"), "labels": {"even": "yes"}});
        let document = if n % 2 == 0 { document } else { upstream(1) };
        world.put(&format!("/upstreams/{n}"), document).await.ok();
    }
    let list = async |query: &'static str| {
        let body = world.get(&format!("/upstreams?{query}")).await.ok().json();
        let ids: Vec<_> = body["list"]
            .as_array()
            .unwrap()
            .iter()
            .map(|item| item["value"]["id"].as_str().unwrap().to_owned())
            .collect();
        (ids, body["total"].as_u64().unwrap())
    };
    assert_eq!(list("").await.1, 12);
    assert_eq!(list("page=2&page_size=10").await, (vec!["10".to_owned(), "11".to_owned()], 12));
    assert_eq!(list("name=up-1").await, (vec!["10".to_owned()], 1));
    assert_eq!(list("label=even&page=1&page_size=10").await.1, 6);
    let refused = world.get("/upstreams?page=1&page_size=1").await;
    assert_eq!(
        (refused.status.as_u16(), refused.text.as_str()),
        (400, "page_size must be between 10 and 500")
    );
}

#[tokio::test]
async fn concurrent_puts_all_succeed_and_patches_never_mix() {
    let world = World::start().await;
    let puts = join_all((1..9).map(|weight| world.put("/upstreams/1", upstream(weight)))).await;
    let mut revisions: Vec<_> = puts.into_iter().map(|response| response.ok().revision()).collect();
    revisions.sort_unstable();
    revisions.dedup();
    assert_eq!(revisions.len(), 8);
    let patches =
        join_all((0..8).map(|n| world.patch("/upstreams/1/labels", json!({"n": n.to_string()})))).await;
    let created = patches.iter().filter(|response| response.status == 200).count();
    for response in patches.iter().filter(|response| response.status != 200) {
        let expected = json!({"error_msg": "value changed before overwritten"});
        assert_eq!((response.status.as_u16(), response.json()), (503, expected));
    }
    assert!(created >= 1);
    let last = patches
        .iter()
        .filter(|response| response.status == 200)
        .max_by_key(|response| response.revision())
        .unwrap();
    assert_eq!(world.get("/upstreams/1").await.json()["value"]["labels"], last.json()["value"]["labels"]);
}

#[tokio::test]
async fn acknowledged_writes_are_in_the_store() {
    let world = World::start().await;
    let mut expected = Vec::new();
    for n in 0..5 {
        let created = world.post("/upstreams", upstream(n)).await.ok().json();
        expected.push(created["value"].clone());
    }
    let copy = world.folder.path().join("copy.redb");
    std::fs::copy(world.folder.path().join("store.redb"), &copy).unwrap();
    let store = controlplane::testing::store::EmbeddedStore::open(&copy).unwrap();
    let items = controlplane::testing::store::Store::load(&store).await.unwrap().items;
    assert_eq!(items.into_iter().map(|item| item.document).collect::<Vec<_>>(), expected);
}

#[tokio::test]
async fn every_kind_supports_every_method() {
    let world = World::start().await;
    let pair = world.pair("test.com");
    let ssl = json!({"cert": pair.certificate_pem, "key": &*pair.key_pem, "sni": "test.com"});
    for (plural, document) in [
        ("ssls", ssl),
        ("upstreams", upstream(1)),
        ("services", json!({"upstream": upstream(1)})),
        ("routes", json!({"uri": "/", "upstream": upstream(1)})),
    ] {
        let one = format!("/{plural}/1");
        assert_eq!(world.put(&one, document.clone()).await.status, 201, "{plural}");
        assert_eq!(world.patch(&one, json!({"labels": {"a": "b"}})).await.status, 200);
        assert_eq!(
            world.patch(&format!("{one}/labels"), json!({"c": "d"})).await.json()["value"]["labels"],
            json!({"c": "d"})
        );
        assert_eq!(world.post(&format!("/{plural}"), document).await.status, 201);
        assert_eq!(world.get(&format!("/{plural}")).await.json()["total"], 2);
        assert_eq!(world.get(&one).await.status, 200);
        assert_eq!(world.delete(&one).await.status, 200);
        let none = world.call(Method::HEAD, &one, "").await;
        assert_eq!(none.status, 404);
    }
}
