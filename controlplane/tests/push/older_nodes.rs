//! Data planes of older releases, which do not know every resource.

use model::Kind;
use proto::push::{Hello, InitialVersions, Resource, ResourceVersion, Upsert, blocked, from_node, resource};
use serde_json::json;

use crate::scripted::ScriptedNode;
use crate::world::{World, key, upstream};

fn kinds(upserts: &[Upsert]) -> Vec<resource::Kind> {
    let kind = |upsert: &Upsert| upsert.resource.clone().and_then(|Resource { kind, .. }| kind).unwrap();
    upserts.iter().map(kind).collect()
}

fn holds(kind: Kind, id: &str, upsert: &Upsert) -> ResourceVersion {
    let key = model::wire::key_to_wire(&key(kind, id));
    ResourceVersion { key: Some(key), version: upsert.version }
}

/// It would pass over the new fields and forward without the plugins.
#[tokio::test]
async fn an_older_node_gets_blocked_what_it_does_not_know() {
    let world = World::new();
    let route = json!({"uri": "/a", "upstream": upstream(1), "plugin_config_id": "p"});
    world.put(Kind::PluginConfig, "p", json!({"plugins": {"proxy-rewrite": {"uri": "/x"}}})).await;
    world.put(Kind::PluginConfig, "q", json!({"plugins": {}})).await;
    world.put(Kind::Route, "1", route).await;
    world.put(Kind::Route, "2", json!({"uri": "/b", "upstream": upstream(1)})).await;
    world.put(Kind::GlobalRule, "observes", json!({"plugins": {"prometheus": {}}})).await;
    let rule = json!({"plugins": {"proxy-rewrite": {"headers": {"X-A": "1"}}}});
    let revision = world.put(Kind::GlobalRule, "rewrites", rule).await;
    let control = world.control().await;
    let mut node = ScriptedNode::connect(&world, &control).await;
    node.send_hello_with("", 0, Vec::new()).await;
    let store = node.welcome().await.store;
    let first = node.chunk().await;
    let received = kinds(&first.upserts);
    let [
        resource::Kind::Blocked(named),
        resource::Kind::Route(_),
        resource::Kind::GlobalRule(_),
        resource::Kind::Blocked(rule),
    ] = &received[..]
    else {
        panic!("{received:?}")
    };
    assert!(rule.why.contains("proxy-rewrite in a global rule"), "{rule:?}");
    assert!(named.why.contains("plugin config p"), "{named:?}");
    let Some(blocked::What::Route(matchers)) = &named.what else { panic!("{named:?}") };
    assert!(matchers.uris == ["/a"] && matchers.upstream.is_none() && matchers.plugin_config_id.is_empty());
    node.acknowledge(revision).await;
    control.wait_acknowledged(revision).await;
    // It cannot remove what it does not know.
    let revision = world.delete(Kind::PluginConfig, "q").await;
    let chunk = node.chunk().await;
    assert!(chunk.upserts.is_empty() && chunk.removals.is_empty() && chunk.to == revision, "{chunk:?}");
    drop(node);

    // The same node after its upgrade.
    let mut node = ScriptedNode::connect(&world, &control).await;
    let (name, instance, plugins) = ("node-1".into(), "new".into(), true);
    let hello = Hello { node: name, instance, store, revision, plugins, ..Hello::default() };
    node.send(from_node::Message::Hello(hello)).await;
    let held = [
        (Kind::Route, "1"),
        (Kind::Route, "2"),
        (Kind::GlobalRule, "observes"),
        (Kind::GlobalRule, "rewrites"),
    ];
    let resources =
        held.iter().zip(&first.upserts).map(|((kind, id), upsert)| holds(*kind, id, upsert)).collect();
    node.send(from_node::Message::InitialVersions(InitialVersions { resources, last: true })).await;
    node.welcome().await;
    let received = kinds(&node.chunk().await.upserts);
    let [
        resource::Kind::PluginConfig(config),
        resource::Kind::Route(named),
        resource::Kind::GlobalRule(rule),
    ] = &received[..]
    else {
        panic!("{received:?}")
    };
    assert!(rule.proxy_rewrite.contains("X-A"), "{rule:?}");
    assert!(named.plugin_config_id == "p" && config.proxy_rewrite.contains("/x"), "{received:?}");
    control.stop().await;
}

/// To it a route with several names has none, so that a broader one would take its connections.
#[tokio::test]
async fn an_older_node_gives_a_name_of_several_to_no_other_route() {
    let world = World::new();
    let names = |more: serde_json::Value| {
        let mut route = json!({"upstream": {"scheme": "tcp", "nodes": {"127.0.0.1:1": 1}}});
        route.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        route
    };
    world.put(Kind::StreamRoute, "broad", names(json!({"sni": "*.x.test"}))).await;
    world.put(Kind::StreamRoute, "other", names(json!({"sni": "*.y.test"}))).await;
    let several = names(json!({"snis": ["db1.x.test", "db2.x.test"]}));
    let revision = world.put(Kind::StreamRoute, "several", several).await;
    let control = world.control().await;
    let mut node = ScriptedNode::connect(&world, &control).await;
    node.send_hello_with("", 0, Vec::new()).await;
    node.welcome().await;
    let first = kinds(&node.chunk().await.upserts);
    let [resource::Kind::Blocked(broad), resource::Kind::StreamRoute(_), resource::Kind::Blocked(several)] =
        &first[..]
    else {
        panic!("{first:?}")
    };
    assert!(broad.why.contains("the place of a stream route with several snis"), "{broad:?}");
    let Some(blocked::What::StreamRoute(sent)) = &several.what else { panic!("{several:?}") };
    assert!(sent.sni.is_empty() && sent.snis.is_empty(), "{sent:?}");
    node.acknowledge(revision).await;
    control.wait_acknowledged(revision).await;
    // Without it the broader one is served again.
    world.delete(Kind::StreamRoute, "several").await;
    let chunk = node.chunk().await;
    let sent = kinds(&chunk.upserts);
    assert!(
        matches!(&sent[..], [resource::Kind::StreamRoute(_), resource::Kind::StreamRoute(_)]),
        "{sent:?}"
    );
    assert_eq!(chunk.removals.len(), 1);
    control.stop().await;
}
