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

fn holds(id: &str, upsert: &Upsert) -> ResourceVersion {
    let key = model::wire::key_to_wire(&key(Kind::Route, id));
    ResourceVersion { key: Some(key), version: upsert.version }
}

/// It would pass over the field of the route and forward without the plugins.
#[tokio::test]
async fn a_node_without_plugin_configs_gets_their_routes_blocked() {
    let world = World::new();
    let route = json!({"uri": "/a", "upstream": upstream(1), "plugin_config_id": "p"});
    world.put(Kind::PluginConfig, "p", json!({"plugins": {"proxy-rewrite": {"uri": "/x"}}})).await;
    world.put(Kind::PluginConfig, "q", json!({"plugins": {}})).await;
    world.put(Kind::Route, "1", route).await;
    let revision = world.put(Kind::Route, "2", json!({"uri": "/b", "upstream": upstream(1)})).await;
    let control = world.control().await;
    let mut node = ScriptedNode::connect(&world, &control).await;
    node.send_hello_with("", 0, Vec::new()).await;
    let store = node.welcome().await.store;
    let first = node.chunk().await;
    let received = kinds(&first.upserts);
    let [resource::Kind::Blocked(named), resource::Kind::Route(_)] = &received[..] else {
        panic!("{received:?}")
    };
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
    let (name, instance, plugin_configs) = ("node-1".into(), "new".into(), true);
    let hello = Hello { node: name, instance, store, revision, plugin_configs, ..Hello::default() };
    node.send(from_node::Message::Hello(hello)).await;
    let resources = vec![holds("1", &first.upserts[0]), holds("2", &first.upserts[1])];
    node.send(from_node::Message::InitialVersions(InitialVersions { resources, last: true })).await;
    node.welcome().await;
    let received = kinds(&node.chunk().await.upserts);
    let [resource::Kind::PluginConfig(config), resource::Kind::Route(named)] = &received[..] else {
        panic!("{received:?}")
    };
    assert!(named.plugin_config_id == "p" && config.proxy_rewrite.contains("/x"), "{received:?}");
    control.stop().await;
}
