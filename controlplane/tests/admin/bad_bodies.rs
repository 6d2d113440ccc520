//! What no client should send: it is an error, changes nothing, and no secret of it is repeated.

use http::{Method, StatusCode};
use pki::ca::CrlSpec;
use serde_json::{Value, json};

use crate::world::{Body, KEY, Response, World, request};

/// A text that no response may repeat.
const SECRET: &str = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIHtT9nJ5";

async fn world() -> World {
    let mut builder = World::builder();
    builder.streams = true;
    builder.start().await
}

/// Sends a body to every kind by PUT, POST and PATCH, and to the endpoints that take one.
async fn send_everywhere(world: &World, body: &[u8]) -> Vec<(String, Response)> {
    let mut targets = Vec::new();
    for kind in model::Kind::ALL.map(model::Kind::plural) {
        targets.push((Method::PUT, format!("/{kind}/1")));
        targets.push((Method::POST, format!("/{kind}")));
        targets.push((Method::PATCH, format!("/{kind}/kept")));
    }
    for path in ["/batch", "/explain", "/schema/validate/routes", "/configs/validate"] {
        targets.push((Method::POST, path.to_owned()));
    }
    targets.push((Method::PUT, "/configs".to_owned()));
    targets.push((Method::PUT, "/denied_nodes/1".to_owned()));
    let mut responses = Vec::new();
    for (method, path) in targets {
        let mut sent = request(method.clone(), &path, Some(KEY), Body::from(body.to_vec()));
        sent.headers_mut().insert("x-digest", "1".parse().unwrap());
        responses.push((format!("{method} {path}"), world.send(Some(&world.identity), sent).await));
    }
    responses
}

/// A document of `desc` with this text as its value.
fn with_value(value: &str) -> Vec<u8> {
    format!(r#"{{"uri": "/", "upstream": {{"nodes": {{}}}}, "priority": {value}, "key": {}}}"#, json!(SECRET))
        .into()
}

#[tokio::test]
async fn malformed_bodies_change_nothing() {
    let world = world().await;
    world.put("/upstreams/kept", json!({"nodes": {"127.0.0.1:1980": 1}})).await.ok();
    world.put("/routes/kept", json!({"uri": "/", "upstream_id": "kept"})).await.ok();
    let before = world.store.load().await.unwrap().items;
    let nested = |depth: usize| [vec![b'['; depth], vec![b']'; depth]].concat();
    let key = json!(SECRET);
    let bodies: Vec<(&str, Vec<u8>)> = vec![
        ("unfinished", format!(r#"{{"key": {key}"#).into()),
        ("deep", nested(10_000)),
        ("deep in a member", [br#"{"uri":"#.to_vec(), nested(5000), b"}".to_vec()].concat()),
        ("a member twice", format!(r#"{{"key": {key}, "uri": "/a", "uri": "/b"}}"#).into()),
        ("invalid UTF-8", [b"{\"uri\": \"/".to_vec(), vec![0xff, 0xfe], b"\"}".to_vec()].concat()),
        ("NUL in a text", b"{\"uri\": \"/\0\"}".to_vec()),
        ("NUL as a character", br#"{"uri": "/\u0000", "nodes": {"a\u0000b": 1}}"#.to_vec()),
        ("a lone surrogate", br#"{"uri": "/\ud800"}"#.to_vec()),
        ("2^53 + 1", with_value("9007199254740993")),
        ("a huge number", with_value("1e999")),
        ("a number with 400 digits", with_value(&"9".repeat(400))),
        ("a huge id", format!(r#"{{"id": "{}", "uri": "/"}}"#, "a".repeat(100_000)).into()),
        ("not JSON", SECRET.as_bytes().to_vec()),
        ("a number", b"1".to_vec()),
        ("a list", b"[1]".to_vec()),
        ("two texts", b"{} {}".to_vec()),
        ("a byte order mark", b"\xef\xbb\xbf{}".to_vec()),
    ];
    for (what, body) in bodies {
        for (row, response) in send_everywhere(&world, &body).await {
            let shown = format!("{what}: {row}: {response:?}");
            assert!(response.status.is_client_error(), "{shown}");
            assert!(!shown.contains("MC4CAQAwBQ"), "{shown}");
            assert!(
                response.json()["error_msg"].is_string() || response.json()["message"].is_string(),
                "{shown}"
            );
        }
    }
    assert_eq!(world.store.load().await.unwrap().items, before);
}

#[tokio::test]
async fn oversize_bodies_are_an_error_everywhere() {
    let world = world().await;
    let body = json!({"desc": "x".repeat(1_572_864)}).to_string();
    for (row, response) in send_everywhere(&world, body.as_bytes()).await {
        let not_allowed = response.status == StatusCode::METHOD_NOT_ALLOWED;
        let message = response.json()["error_msg"].as_str().unwrap_or_default().to_owned();
        assert!(
            not_allowed || message.contains("is greater than the maximum size 1572864"),
            "{row}: {message}"
        );
    }
}

#[tokio::test]
async fn odd_ids_and_paths_name_nothing() {
    let world = world().await;
    let long = "a".repeat(20_000);
    for id in ["%00", "%ff", "a%2fb", "..", "%2e%2e", "*", "%0d%0aX-Evil:%201", &long, "a%20b", "\u{7f}"] {
        let path = format!("/routes/{}", id.replace('\u{7f}', "%7f"));
        for method in [Method::GET, Method::DELETE, Method::PATCH, Method::PUT] {
            let body: Body = if method == Method::GET { "".into() } else { json!({"uri": "/"}).into() };
            let sent = request(method.clone(), &path, Some(KEY), body);
            let response = world.send(Some(&world.identity), sent).await;
            let shown = format!("{method} {}", id.get(..20).unwrap_or(id));
            assert!(response.status.is_client_error(), "{shown}: {response:?}");
            assert!(!response.headers.contains_key("x-evil"), "{shown}");
        }
    }
    assert!(world.store.load().await.unwrap().items.is_empty());
}

/// A GET sent back as PUT changes nothing but the revision.
#[tokio::test]
async fn every_resource_that_was_read_can_be_written_back() {
    let world = world().await;
    let pair = world.pair("a.test");
    let ca = world.clients.certificate_pem();
    let tls = json!({"client_cert": pair.certificate_pem, "client_key": &*pair.key_pem});
    let upstream = json!({"nodes": {"127.0.0.1:1980": 1}, "scheme": "https", "tls": tls});
    let crl = world.clients.crl_pem(&CrlSpec::new()).unwrap();
    let client =
        json!({"ca": ca, "depth": 2, "skip_mtls_uri_regex": ["/open"], "crl": [crl], "crl_policy": "prefer"});
    let documents = [
        (
            "ssls",
            json!({"cert": pair.certificate_pem, "key": &*pair.key_pem, "snis": ["a.test"], "client": client}),
        ),
        ("upstreams", upstream.clone()),
        ("services", json!({"upstream": upstream, "hosts": ["a.test"], "plugins": {"prometheus": {}}})),
        ("plugin_configs", json!({"plugins": {"proxy-rewrite": {"uri": "/x"}}, "desc": "shared"})),
        (
            "routes",
            json!({
                "uri": "/a", "upstream_id": "1", "service_id": "1", "plugin_config_id": "1",
                "client_identity": {"allow": [{"dns": "client.test"}]},
            }),
        ),
        (
            "stream_routes",
            json!({"sni": "a.test", "upstream": {"nodes": {"127.0.0.1:1": 1}, "scheme": "tcp"}}),
        ),
        ("global_rules", json!({"plugins": {"prometheus": {}}})),
    ];
    assert_eq!(documents.len(), model::Kind::ALL.len());
    for (kind, document) in documents {
        let path = format!("/{kind}/1");
        world.put(&path, document).await.ok();
        let read = world.get(&path).await.ok().json()["value"].clone();
        let stored = world.store.load().await.unwrap();
        let written = world.put(&path, read.clone()).await;
        assert_eq!(written.status, 200, "{kind}: {written:?}");
        let again = world.get(&path).await.json()["value"].clone();
        assert_eq!(without_update_time(again), without_update_time(read), "{kind}");
        let after = world.store.load().await.unwrap();
        for (before, after) in stored.items.into_iter().zip(after.items) {
            let (key, before, after) = (before.key, before.document, after.document);
            assert_eq!(without_update_time(after), without_update_time(before), "{key}");
        }
    }
}

fn without_update_time(mut document: Value) -> Value {
    document.as_object_mut().unwrap().shift_remove("update_time");
    document
}

/// A sub-path makes an object for each segment: a text has more of them than a stack has frames.
#[tokio::test]
async fn a_deep_sub_path_is_rejected() {
    let world = World::start().await;
    let upstream = json!({"nodes": {"127.0.0.1:1980": 1}});
    world.put("/upstreams/1", upstream).await.ok();
    let before = world.store.load().await.unwrap();
    for levels in [200, 15_000] {
        let deep = world.patch(&format!("/upstreams/1/labels{}", "/a".repeat(levels)), json!(1)).await;
        assert_eq!(deep.status, 400, "{levels}: {deep:?}");
    }
    let path = format!("/apisix/admin/upstreams/1/labels{}", "/a".repeat(500_000));
    let operation = json!({"method": "PATCH", "path": path, "body": 1});
    let deep = world.post("/batch", json!({"operations": [operation]})).await;
    assert_eq!(deep.status, 400, "{}", &deep.text[..100]);
    assert_eq!(world.store.load().await.unwrap(), before);
}
