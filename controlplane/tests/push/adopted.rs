//! A stored document that cannot be honoured reaches the data planes as blocked, and is unblocked
//! when it can.

use std::sync::Arc;

use model::{Blocked, HostName, Kind, Snapshot};
use pki::Keyring;
use pki::ca::{Authority, AuthoritySpec};
use serde_json::{Value, json};

use crate::world::{World, key, ssl, upstream};

fn why(snapshot: &Snapshot, kind: Kind, id: &str) -> Option<String> {
    let held = snapshot.get(&key(kind, id)).expect("it is there");
    held.resource.blocked().map(Blocked::reason).map(str::to_owned)
}

fn with(mut document: Value, member: &str, value: Value) -> Value {
    document[member] = value;
    document
}

#[tokio::test]
async fn an_unsupported_document_is_blocked_until_replaced() {
    let world = World::new();
    let sites = Authority::root(&AuthoritySpec::new("Sites")).unwrap();
    let auth = json!({"jwt-auth": {}});
    let documents = [
        (Kind::Ssl, ssl(&sites, "one.test"), "client", json!({"ca": sites.certificate_pem(), "new": 1})),
        (Kind::Upstream, upstream(1), "scheme", json!("kafka")),
        (Kind::Service, json!({}), "plugins", auth.clone()),
        (Kind::Route, json!({"uri": "/", "upstream": upstream(1)}), "plugins", auth.clone()),
        (Kind::StreamRoute, json!({"upstream": upstream(1)}), "protocol", json!({"name": "redis"})),
        (Kind::GlobalRule, json!({"plugins": {}}), "plugins", auth),
    ];
    for (kind, good, member, value) in &documents {
        world.put(*kind, "1", with(good.clone(), member, value.clone())).await;
    }
    let control = world.control().await;
    let node = world.node(control.address());
    control.wait_acknowledged(6).await;
    for (kind, _, member, _) in &documents {
        assert!(why(&node.snapshot(), *kind, "1").is_some_and(|why| !why.is_empty()), "{kind}");
        assert!(control.publish.findings.all().iter().any(|found| found.field.starts_with(member)), "{kind}");
    }
    assert!(node.snapshot().blocking_global_rule().is_some());
    for (kind, good, ..) in &documents {
        let mended = world.put(*kind, "1", good.clone()).await;
        control.wait_acknowledged(mended).await;
        assert_eq!(why(&node.snapshot(), *kind, "1"), None, "{kind}");
    }
    assert!(node.snapshot().blocking_global_rule().is_none() && control.publish.findings.all().is_empty());
    // Back again: the former document is outdated.
    for (kind, good, member, value) in &documents {
        let broken = world.put(*kind, "1", with(good.clone(), member, value.clone())).await;
        control.wait_acknowledged(broken).await;
        assert!(why(&node.snapshot(), *kind, "1").is_some(), "{kind}");
    }
    for (kind, ..) in &documents {
        let gone = world.delete(*kind, "1").await;
        control.wait_acknowledged(gone).await;
    }
    assert!(node.snapshot().is_empty() && control.publish.findings.all().is_empty());
    node.stop().await;
    control.stop().await;
}

/// The document and its revision are unchanged, but its compiled form must reach nodes that have
/// the former one.
#[tokio::test]
async fn a_key_that_no_longer_decrypts_blocks_its_site() {
    let mut world = World::new();
    let sites = Authority::root(&AuthoritySpec::new("Sites")).unwrap();
    let ring = |entry: &str| Arc::new(Keyring::new(vec![entry.to_owned()]).unwrap());
    let (own, other) = (ring("0123456789abcdef"), ring("fedcba9876543210"));
    let mut document = ssl(&sites, "one.test");
    document["key"] = own.seal(document["key"].as_str().unwrap()).into();
    world.put(Kind::Ssl, "1", document).await;
    // A control plane whose keyring decrypts nothing does not start.
    let mut readable = ssl(&sites, "two.test");
    readable["key"] = other.seal(readable["key"].as_str().unwrap()).into();
    let revision = world.put(Kind::Ssl, "2", readable).await;
    let name = HostName::from_sni("one.test").unwrap();
    let blocked = |snapshot: &Snapshot| snapshot.site(&name).expect("its name stays taken").blocked.is_some();
    let mut node = None;
    for (keyring, expected) in [(&own, false), (&other, true), (&own, false)] {
        world.keyring = Arc::clone(keyring);
        let control = world.control().await;
        if let Some(before) = node.replace(world.node(control.address())) {
            before.stop().await;
        }
        let node = node.as_ref().unwrap();
        control.wait_acknowledged(revision).await;
        assert_eq!(blocked(&node.snapshot()), expected);
        control.stop().await;
    }
    node.unwrap().stop().await;
}

/// A removal in the same batch leaves no former value to keep.
#[tokio::test]
async fn an_invalid_document_keeps_only_a_former_resource() {
    let world = World::new();
    world.put(Kind::Upstream, "u", upstream(1)).await;
    let control = world.control().await;
    let node = world.node(control.address());
    control.wait_acknowledged(1).await;
    world.delete(Kind::Upstream, "u").await;
    let broken = world.put(Kind::Upstream, "u", json!({"nodes": "nonsense"})).await;
    control.wait_acknowledged(broken).await;
    assert!(why(&node.snapshot(), Kind::Upstream, "u").is_some());
    let unreadable = world.put(Kind::Route, "r", json!("not an object")).await;
    control.wait_acknowledged(unreadable).await;
    assert_eq!(node.snapshot().len(Kind::Route), 0);
    assert_eq!(control.publish.findings.all().len(), 2);
    node.stop().await;
    control.stop().await;
}
