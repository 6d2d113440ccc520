//! `denied_nodes`: JSON, statuses and roles.

use http::Method;
use serde_json::{Value, json};

use crate::audit::Log;
use crate::world::{KEY, Response, VIEWER, World, request};

async fn ask(world: &World, method: Method, path: &str, key: &str, body: Value) -> Response {
    world.send(Some(&world.identity), request(method, path, Some(key), body.into())).await
}

#[tokio::test]
async fn the_deny_list_is_edited_over_http() {
    let world = World::start().await;
    let spki = "ab".repeat(32);
    let put = |id: &'static str, body: Value| ask(&world, Method::PUT, id, KEY, body);
    let created = put("/denied_nodes/edge-7", json!({"serial": "0a:1b", "desc": "stolen"})).await;
    let shown = json!({"id": "edge-7", "serial": "A1B", "desc": "stolen"});
    assert_eq!((created.status.as_u16(), created.json()), (201, shown.clone()));
    assert_eq!(put("/denied_nodes/edge-7", json!({"serial": "0A1B", "desc": "stolen"})).await.status, 200);
    put("/denied_nodes/edge-8", json!({"spki_sha256": spki})).await.ok();

    let list = world.get("/denied_nodes").await.json();
    let second = json!({"id": "edge-8", "spki_sha256": spki.to_uppercase()});
    assert_eq!(list, json!({"total": 2, "list": [shown.clone(), second]}));
    assert_eq!(world.get("/denied_nodes/edge-7").await.json(), shown);

    let delete = || ask(&world, Method::DELETE, "/denied_nodes/edge-7", KEY, Value::Null);
    assert_eq!(delete().await.json(), json!({"deleted": "1", "id": "edge-7"}));
    assert_eq!(delete().await.status, 404);
    assert_eq!(world.get("/denied_nodes/edge-7").await.status, 404);
}

#[tokio::test]
async fn entries_that_cannot_match_are_rejected() {
    let world = World::start().await;
    for (id, body, part) in [
        ("x", json!({}), "serial or spki_sha256 must be given"),
        ("x", json!({"serial": "no"}), "hexadecimal"),
        ("x", json!({"spki_sha256": "12"}), "64 hexadecimal digits"),
        ("x", json!({"serial": "1", "name": "edge-7"}), "unknown field `name`"),
        ("x", json!([1]), "invalid"),
        ("a%20b", json!({"serial": "1"}), "invalid configuration"),
    ] {
        let response = ask(&world, Method::PUT, &format!("/denied_nodes/{id}"), KEY, body).await;
        assert_eq!(response.status, 400, "{id}: {}", response.text);
        assert!(response.text.contains(part), "{}", response.text);
    }
    assert_eq!(ask(&world, Method::PUT, "/denied_nodes", KEY, json!({"serial": "1"})).await.status, 400);
    assert_eq!(ask(&world, Method::POST, "/denied_nodes", KEY, json!({"serial": "1"})).await.status, 404);
    assert_eq!(world.get("/denied_nodes").await.json(), json!({"total": 0, "list": []}));
}

#[tokio::test]
async fn a_viewer_reads_the_deny_list_only() {
    let world = World::start().await;
    let body = json!({"serial": "1"});
    assert_eq!(ask(&world, Method::PUT, "/denied_nodes/x", VIEWER, body).await.status, 401);
    assert_eq!(ask(&world, Method::DELETE, "/denied_nodes/x", VIEWER, Value::Null).await.status, 401);
    assert_eq!(ask(&world, Method::GET, "/denied_nodes", VIEWER, Value::Null).await.status, 200);
}

const BODY: &str = "MC4CAQAwBQYDK2VwBCIEIJ1hsZ3vVpguoRK9JLsLMREScVpezJpGXA7rAMcrn9gx";

#[tokio::test]
async fn a_private_key_in_an_entry_is_rejected_and_redacted() {
    let world = World::start().await;
    let key = format!("-----BEGIN PRIVATE KEY-----\n{BODY}\n-----END PRIVATE KEY-----\n");
    for (path, body, status) in [
        ("/denied_nodes/x".to_owned(), json!({"serial": "1", "desc": key}), 400),
        ("/denied_nodes/x".to_owned(), json!({"serial": key}), 400),
        ("/denied_nodes/x".to_owned(), json!({"spki_sha256": BODY}), 400),
        ("/denied_nodes/x".to_owned(), json!({"serial": "1", BODY: "x"}), 400),
        (format!("/{BODY}"), json!({}), 404),
        (format!("/schema/{BODY}"), Value::Null, 404),
    ] {
        let response = ask(&world, Method::PUT, &path, KEY, body).await;
        assert_eq!(response.status, status, "{path}: {}", response.text);
        assert!(!response.text.contains(&BODY[..16]), "{}", response.text);
    }
    for path in [format!("/{BODY}"), format!("/schema/{BODY}")] {
        let response = world.get(&path).await;
        assert!(!response.text.contains(&BODY[..16]), "{}", response.text);
    }
    assert_eq!(world.get("/denied_nodes").await.json(), json!({"total": 0, "list": []}));
}

#[tokio::test]
async fn a_sub_path_of_an_entry_is_not_found() {
    let log = Log::default();
    let _guard = log.capture();
    let world = World::start().await;
    let entry = json!({"serial": "1"});
    ask(&world, Method::PUT, "/denied_nodes/x", KEY, entry.clone()).await.ok();
    for method in [Method::GET, Method::PUT, Method::DELETE] {
        let response = ask(&world, method.clone(), "/denied_nodes/x/desc", KEY, json!({"serial": "2"})).await;
        assert_eq!(response.status, 404, "{method}: {}", response.text);
    }
    assert_eq!(world.get("/denied_nodes/x").await.json(), json!({"id": "x", "serial": "1"}));

    let gone = || log.text().matches("no longer denies the certificate").count();
    ask(&world, Method::PUT, "/denied_nodes/x", KEY, json!({"serial": "1", "desc": "stolen"})).await.ok();
    assert_eq!(gone(), 0, "{}", log.text());
    ask(&world, Method::PUT, "/denied_nodes/x", KEY, json!({"serial": "2"})).await.ok();
    assert_eq!(gone(), 1, "{}", log.text());
    ask(&world, Method::DELETE, "/denied_nodes/x", KEY, Value::Null).await.ok();
    assert_eq!(gone(), 2, "{}", log.text());
}
