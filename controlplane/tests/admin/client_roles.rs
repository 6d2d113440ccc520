//! Who may do what: certificates with and without a role, with and without a key, and the limit on
//! wrong keys.

use std::time::Duration;

use conf::{AdminRole, ClientRole};
use http::Method;
use pki::UnixTime;
use pki::ca::LeafSpec;
use serde_json::{Value, json};

use crate::audit::Log;
use crate::world::{Builder, KEY, VIEWER, World, request};

fn role(attribute: &str, value: &str, role: AdminRole) -> ClientRole {
    let client = model::ClientIdentity::with_attribute(attribute, value).unwrap();
    ClientRole { name: format!("{attribute}={value}"), client, role }
}

pub(crate) fn world_with_roles() -> Builder {
    Builder {
        client_roles: vec![
            role("uri", "spiffe://test/ops", AdminRole::Admin),
            role("dns", "*.ci.test", AdminRole::Viewer),
        ],
        ..World::builder()
    }
}

#[tokio::test]
async fn a_role_comes_from_the_key_or_the_certificate() {
    let world = world_with_roles().start().await;
    let client = |spec: LeafSpec| world.clients.issue(&spec).unwrap();
    let ops = client(LeafSpec::client("a").uri("spiffe://test/ops"));
    let viewer = client(LeafSpec::client("b").dns("One.CI.test"));
    let other = client(LeafSpec::client("c").uri("spiffe://test/ops/x").dns("ci.test"));
    let untrusted = world.servers.issue(&LeafSpec::client("a").uri("spiffe://test/ops")).unwrap();
    let wrong = Some("wrong-key");
    // For each certificate: the key, and the statuses of a GET and a PUT.
    for (certificate, key, get, put) in [
        (Some(&ops), None, 200, 201),
        (Some(&ops), Some(VIEWER), 200, 200),
        (Some(&ops), Some(KEY), 200, 200),
        (Some(&ops), wrong, 401, 401),
        (Some(&ops), Some(""), 401, 401),
        (Some(&viewer), None, 200, 401),
        (Some(&viewer), Some(VIEWER), 200, 401),
        (Some(&viewer), Some(KEY), 200, 200),
        (Some(&viewer), wrong, 401, 401),
        (Some(&other), None, 401, 401),
        (Some(&other), Some(VIEWER), 200, 401),
        (Some(&other), Some(KEY), 200, 200),
        (Some(&other), wrong, 401, 401),
        // A certificate of another CA, or none, is rejected before any key is compared.
        (Some(&untrusted), None, 400, 400),
        (Some(&untrusted), Some(KEY), 400, 400),
        (None, None, 400, 400),
        (None, Some(KEY), 400, 400),
    ] {
        let body = json!({"nodes": {"127.0.0.1:1980": 1}});
        let sent = world.send(certificate, request(Method::GET, "/upstreams", key, "".into())).await;
        assert_eq!(sent.status.as_u16(), get, "GET {certificate:?} {key:?} {sent:?}");
        let sent = world.send(certificate, request(Method::PUT, "/upstreams/1", key, body.into())).await;
        assert_eq!(sent.status.as_u16(), put, "PUT {certificate:?} {key:?} {sent:?}");
    }
    let denied = world.send(Some(&viewer), request(Method::DELETE, "/upstreams/1", None, "".into())).await;
    assert_eq!(denied.json()["description"], "invalid method for role viewer");
    let head = world.send(Some(&viewer), request(Method::HEAD, "/upstreams/1", None, "".into())).await;
    assert_eq!((head.status.as_u16(), head.text.as_str()), (200, ""));
}

#[tokio::test]
async fn an_expired_certificate_has_no_role() {
    let world = world_with_roles().start().await;
    let at = |days: u64| UnixTime::since_unix_epoch(Duration::from_secs(86_400 * days));
    let spec = LeafSpec::client("a").uri("spiffe://test/ops").between(at(1), at(2));
    let expired = world.clients.issue(&spec).unwrap();
    let sent = world.send(Some(&expired), request(Method::GET, "/upstreams", None, "".into())).await;
    assert_eq!(sent.status.as_u16(), 400, "{sent:?}");
}

#[tokio::test]
async fn without_mutual_tls_only_keys_count() {
    let world = Builder { ca: false, ..world_with_roles() }.start().await;
    let ops = world.clients.issue(&LeafSpec::client("a").uri("spiffe://test/ops")).unwrap();
    for (key, status) in [(None, 401), (Some(KEY), 200)] {
        let sent = world.send(Some(&ops), request(Method::GET, "/upstreams", key, "".into())).await;
        assert_eq!(sent.status.as_u16(), status, "an unverified certificate gives no role: {sent:?}");
    }
}

#[tokio::test]
async fn the_audit_line_names_the_identity_and_its_role() {
    let log = Log::default();
    let _guard = log.capture();
    let world = world_with_roles().start().await;
    let ops = world.clients.issue(&LeafSpec::client("a").uri("spiffe://test/ops")).unwrap();
    let body = json!({"nodes": {"127.0.0.1:1980": 1}});
    world.send(Some(&ops), request(Method::PUT, "/upstreams/1", None, body.into())).await.ok();
    let text = log.text();
    let line = text.lines().find(|line| line.contains("admin write")).unwrap_or_else(|| panic!("{text}"));
    for part in ["key=\"-\"", "certificate=\"CN=a\"", "client_role=\"uri=spiffe://test/ops\"", "upstreams/1"]
    {
        assert!(line.contains(part), "{part}: {line}");
    }
}

#[tokio::test]
async fn too_many_wrong_keys_get_429_and_a_correct_one_passes() {
    let world = Builder { wrong_keys_per_minute: 3, ..World::builder() }.start().await;
    let ask = |key: Option<&'static str>| {
        world.send(Some(&world.identity), request(Method::GET, "/routes", key, "".into()))
    };
    for nth in 0..3 {
        assert_eq!(ask(Some("guess")).await.status, 401, "{nth}");
    }
    for _ in 0..2 {
        let limited = ask(Some("guess")).await;
        let expected: Value = json!({
            "error_msg": "failed to check token",
            "description": "wrong apikey, and too many of them from this address",
        });
        assert_eq!((limited.status.as_u16(), limited.json()), (429, expected));
        let seconds: u64 = limited.header("retry-after").unwrap().parse().unwrap();
        assert!((1..=60).contains(&seconds), "{limited:?}");
        assert_eq!(limited.header("connection"), Some("close"));
        ask(Some(KEY)).await.ok();
        ask(Some(VIEWER)).await.ok();
        assert_eq!(ask(None).await.status, 401, "a missing key is no guess");
    }
}
