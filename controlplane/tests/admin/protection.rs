//! `protect_client_auth`: a write or a batch that leaves client authentication weaker than before
//! is a 409, also where another object than the written one is weaker by it.

use futures_util::future::join_all;
use http::Method;
use model::Kind;
use pki::ca::{Authority, AuthoritySpec, CrlSpec};
use serde_json::{Value, json};

use crate::adopted::stored;
use crate::world::{Builder, Response, World};

async fn protected() -> World {
    Builder { protect_client_auth: true, streams: true, ..World::builder() }.start().await
}

fn with(mut document: Value, more: Value) -> Value {
    for (name, value) in more.as_object().unwrap() {
        document[name] = value.clone();
    }
    document
}

fn open(uri: &str, more: Value) -> Value {
    with(json!({"uri": uri, "upstream": {"nodes": {"127.0.0.1:1980": 1}}}), more)
}

fn listed(uri: &str, more: Value) -> Value {
    with(open(uri, json!({"client_identity": {"allow": [{"dns": "a.b"}]}})), more)
}

fn operation(method: &str, path: &str, body: Value) -> Value {
    with(
        json!({"method": method, "path": format!("/apisix/admin{path}")}),
        match body {
            Value::Null => json!({}),
            body => json!({"body": body}),
        },
    )
}

/// Asserts a 409 that changes nothing, with and without `dry_run`, and that `weaken` allows it.
async fn weakens(world: &World, method: Method, path: &str, body: Value) {
    let before = everything(world).await;
    for argument in ["", "dry_run=true"] {
        let separator = if path.contains('?') { "&" } else { "?" };
        let refused = world.call(method.clone(), &format!("{path}{separator}{argument}"), body.clone()).await;
        assert_eq!(refused.status, 409, "{method} {path} {body}: {refused:?}");
        assert!(!refused.json()["weakenings"].as_array().unwrap().is_empty(), "{refused:?}");
        // The ids that stand for those of new objects in the comparison are nobody's.
        assert!(
            !["-", "z"].map(|text| text.repeat(50)).iter().any(|id| refused.text.contains(id)),
            "{refused:?}"
        );
    }
    assert_eq!(everything(world).await, before, "{method} {path}");
    let separator = if path.contains('?') { "&" } else { "?" };
    let path = format!("{path}{separator}weaken=true&dry_run=true");
    let allowed = world.call(method, &path, body).await.ok();
    if !path.starts_with("/batch") {
        assert!(allowed.header("x-countersign-warning").is_some(), "{allowed:?}");
    }
}

async fn everything(world: &World) -> Vec<String> {
    let mut texts = Vec::new();
    for kind in ["ssls", "routes", "services", "upstreams", "stream_routes", "global_rules"] {
        texts.push(world.get(&format!("/{kind}")).await.ok().text);
    }
    texts
}

struct Sites {
    pair: pki::ca::IssuedCertificate,
    clients: Authority,
}

impl Sites {
    fn new(world: &World) -> Sites {
        let clients = Authority::root(&AuthoritySpec::new("clients")).unwrap();
        Sites { pair: world.pair("a.test"), clients }
    }

    fn open(&self, names: Value) -> Value {
        json!({"cert": self.pair.certificate_pem, "key": &*self.pair.key_pem, "snis": names})
    }

    fn guarded(&self, names: Value, more: Value) -> Value {
        let client = with(json!({"ca": self.clients.certificate_pem()}), more);
        with(self.open(names), json!({"client": client}))
    }
}

#[tokio::test]
async fn another_ssl_takes_no_protected_name() {
    let world = protected().await;
    let sites = Sites::new(&world);
    world.put("/ssls/m", sites.guarded(json!(["a.test", "*.a.test"]), json!({}))).await.ok();
    world.put("/ssls/a", with(sites.open(json!(["a.test"])), json!({"status": 0}))).await.ok();
    world.put("/ssls/b", sites.open(json!(["b.test"]))).await.ok();
    for (method, path, body) in [
        (Method::PUT, "/ssls/c", sites.open(json!(["a.test"]))),
        (Method::PUT, "/ssls/z", sites.open(json!(["x.a.test"]))),
        (Method::PUT, "/ssls/c", sites.guarded(json!(["a.test"]), json!({"depth": 9}))),
        (Method::POST, "/ssls", sites.open(json!(["a.test"]))),
        (Method::PATCH, "/ssls/a", json!({"status": 1})),
        (Method::PATCH, "/ssls/a/status", json!(1)),
        (Method::PATCH, "/ssls/b/snis", json!(["b.test", "x.a.test"])),
        (Method::DELETE, "/ssls/m", json!({})),
    ] {
        weakens(&world, method, path, body).await;
    }
    world.put("/ssls/z", sites.open(json!(["a.test"]))).await.ok();
    world.put("/ssls/c", sites.guarded(json!(["a.test"]), json!({}))).await.ok();
    world.put("/ssls/d", sites.open(json!(["c.test", "*.test"]))).await.ok();
    world.post("/ssls", sites.guarded(json!(["x.a.test"]), json!({"depth": 0}))).await.ok();
}

#[tokio::test]
async fn another_route_takes_no_protected_request() {
    let world = protected().await;
    world.put("/routes/m", listed("/a/*", json!({"host": "a.test"}))).await.ok();
    world.put("/routes/z", open("/*", json!({}))).await.ok();
    for (method, path, body) in [
        (Method::PUT, "/routes/n", open("/a/b", json!({"host": "a.test"}))),
        (Method::POST, "/routes", open("/a/*", json!({"host": "a.test"}))),
        (Method::POST, "/routes", open("/a/*", json!({"host": "a.test", "priority": 1}))),
        (Method::PATCH, "/routes/z", json!({"host": "a.test", "uri": "/a/b"})),
        (Method::PATCH, "/routes/m/status", json!(0)),
        (Method::PATCH, "/routes/m", json!({"host": "b.test"})),
        (Method::DELETE, "/routes/m", json!({})),
    ] {
        weakens(&world, method, path, body).await;
    }
    world.put("/routes/n", open("/a/*", json!({"host": "b.test", "priority": 9}))).await.ok();
    world.put("/routes/o", open("/a/*", json!({"host": "a.test", "priority": -1}))).await.ok();
    world.put("/routes/p", listed("/a/b", json!({"host": "a.test"}))).await.ok();
    world.post("/routes", open("/b", json!({"host": "a.test"}))).await.ok();
    world.patch("/routes/m", json!({"desc": "x"})).await.ok();
    world.delete("/routes/p").await.ok();
}

#[tokio::test]
async fn the_list_of_a_service_is_protected() {
    let world = protected().await;
    let service = |more: Value| {
        let allow = json!({"client_identity": {"allow": [{"dns": "a.b"}]}, "hosts": ["a.test", "b.test"]});
        with(with(allow, json!({"upstream": {"nodes": {"127.0.0.1:1980": 1}}})), more)
    };
    world.put("/services/s", service(json!({}))).await.ok();
    world.put("/services/same", service(json!({}))).await.ok();
    world.put("/services/none", json!({"upstream": {"nodes": {"127.0.0.1:1980": 1}}})).await.ok();
    world.put("/routes/1", json!({"uri": "/a", "service_id": "s"})).await.ok();
    for (method, path, body) in [
        (Method::DELETE, "/routes/1", json!({})),
        (Method::PATCH, "/routes/1", json!({"status": 0})),
        (Method::PATCH, "/routes/1", json!({"uri": "/b"})),
        (Method::PATCH, "/routes/1", json!({"methods": ["GET"]})),
        (Method::PATCH, "/routes/1", json!({"service_id": "none"})),
        (Method::PUT, "/routes/1", open("/a", json!({}))),
        (Method::PATCH, "/services/s", json!({"client_identity": null})),
        (Method::PATCH, "/services/s/hosts", json!(["a.test"])),
        (Method::DELETE, "/services/s?force=true", json!({})),
        (Method::PUT, "/routes/0", open("/a", json!({"host": "a.test"}))),
    ] {
        weakens(&world, method, path, body).await;
    }
    world.patch("/services/s", json!({"hosts": ["a.test", "b.test", "c.test"]})).await.ok();
    world.patch("/services/same", json!({"hosts": ["a.test", "b.test", "c.test"]})).await.ok();
    world.patch("/routes/1", json!({"service_id": "same"})).await.ok();
    world.delete("/services/s").await.ok();
}

#[tokio::test]
async fn an_upstream_that_is_reached_in_clear_takes_no_place() {
    let world = protected().await;
    let node = json!({"127.0.0.1:1980": 1});
    let verified = json!({"nodes": node, "scheme": "https", "tls": {"verify": true}});
    world.put("/upstreams/v", verified.clone()).await.ok();
    world.put("/upstreams/w", verified.clone()).await.ok();
    world.put("/upstreams/u", json!({"nodes": node, "scheme": "https"})).await.ok();
    world.put("/upstreams/c", json!({"nodes": node})).await.ok();
    world.put("/services/s", json!({"upstream_id": "v"})).await.ok();
    world.put("/services/none", json!({})).await.ok();
    for (kind, document) in [
        ("routes", json!({"uri": "/a"})),
        ("services", json!({})),
        ("stream_routes", json!({"server_port": 9100})),
    ] {
        let path = format!("/{kind}/1");
        let to = |target: Value| with(document.clone(), target);
        world.put(&path, to(json!({"upstream_id": "v"}))).await.ok();
        for weak in ["u", "c"] {
            weakens(&world, Method::PUT, &path, to(json!({"upstream_id": weak}))).await;
        }
        weakens(&world, Method::PUT, &path, to(json!({"upstream": {"nodes": node}}))).await;
        // Neither in two writes.
        let nowhere = if kind == "services" { json!({}) } else { json!({"service_id": "none"}) };
        weakens(&world, Method::PUT, &path, to(nowhere)).await;
        world.put(&path, to(json!({"upstream": verified}))).await.ok();
        world.put(&path, to(json!({"upstream_id": "w"}))).await.ok();
        if kind != "services" {
            world.put(&path, to(json!({"service_id": "s"}))).await.ok();
        }
    }
    weakens(&world, Method::PATCH, "/services/s", json!({"upstream_id": "c"})).await;
    weakens(&world, Method::DELETE, "/upstreams/v?force=true", json!({})).await;
}

#[tokio::test]
async fn a_batch_is_compared_as_a_whole() {
    let world = protected().await;
    let sites = Sites::new(&world);
    let guarded = listed("/a", json!({"host": "a.test"}));
    world.put("/routes/1", guarded.clone()).await.ok();
    world.put("/routes/9", open("/a", json!({}))).await.ok();
    world.put("/ssls/1", sites.guarded(json!(["a.test"]), json!({}))).await.ok();
    let batch = |operations: Vec<Value>| json!({"operations": operations});
    let gone = || operation("DELETE", "/routes/1", Value::Null);
    let ssl_gone = || operation("DELETE", "/ssls/1", Value::Null);
    for operations in [
        vec![gone(), operation("PUT", "/routes/2", open("/a", json!({"host": "a.test"})))],
        vec![gone(), operation("POST", "/routes", listed("/a/b", json!({"host": "a.test"})))],
        vec![ssl_gone(), operation("PUT", "/ssls/2", sites.open(json!(["a.test"])))],
        vec![
            operation("PUT", "/routes/2", listed("/a", json!({"host": "a.test", "priority": 9}))),
            operation("PATCH", "/routes/1", json!({"client_identity": null})),
        ],
    ] {
        weakens(&world, Method::POST, "/batch", batch(operations)).await;
    }
    let moved = batch(vec![
        gone(),
        operation("POST", "/routes", guarded),
        operation("PUT", "/ssls/2", sites.guarded(json!(["a.test"]), json!({}))),
        ssl_gone(),
    ]);
    world.post("/batch", moved).await.ok();
    let listed = world.get("/routes").await.json();
    assert_eq!(listed["total"], 2, "{listed}");
    // The weakenings of all operations are named.
    let id = listed["list"].as_array().unwrap().iter().map(|item| item["value"]["id"].as_str().unwrap());
    let id = id.into_iter().find(|id| *id != "9").unwrap();
    let both = batch(vec![
        operation("DELETE", "/ssls/2", Value::Null),
        operation("DELETE", &format!("/routes/{id}"), Value::Null),
    ]);
    let refused = world.post("/batch", both).await;
    let text = refused.json()["weakenings"].to_string();
    assert!(text.contains("ssls/2: snis") && text.contains(&format!("routes/{id}: uris")), "{text}");
}

#[tokio::test]
async fn a_whole_configuration_counts_by_what_it_leaves() {
    let world = protected().await;
    world.put("/routes/1", listed("/a", json!({}))).await.ok();
    let renamed = |route: Value| json!({"routes": [with(route, json!({"id": "2"}))]});
    let put = async |digest: &str, body: Value| -> Response {
        world.call_with(("x-digest", digest), Method::PUT, "/configs", body.to_string()).await
    };
    let refused = put("one", renamed(open("/a", json!({})))).await;
    assert_eq!(refused.status, 409, "{refused:?}");
    let moved = put("two", renamed(listed("/a", json!({})))).await;
    assert!(moved.status.is_success(), "{moved:?}");
    assert_eq!(world.get("/routes/1").await.status, 404);
}

#[tokio::test]
async fn a_client_policy_shrinks_in_no_member() {
    let world = protected().await;
    let sites = Sites::new(&world);
    let crl = sites.clients.crl_pem(&CrlSpec::default().revoke_serial(vec![1])).unwrap();
    let client = json!({"depth": 1, "crl": [crl], "skip_mtls_uri_regex": ["^/a$"]});
    world.put("/ssls/1", sites.guarded(json!(["a.test"]), client)).await.ok();
    let other = Authority::root(&AuthoritySpec::new("other")).unwrap();
    for (path, body) in [
        ("/ssls/1/client/depth", json!(2)),
        ("/ssls/1/client/crl", Value::Null),
        ("/ssls/1/client/crl_policy", json!("prefer")),
        ("/ssls/1/client/skip_mtls_uri_regex", json!(["^/a$", "^/b$"])),
        ("/ssls/1/client/ca", json!(other.certificate_pem())),
        ("/ssls/1/snis", json!(["b.test"])),
    ] {
        let refused = world.patch(path, body).await;
        assert_eq!(refused.status, 409, "{path}: {refused:?}");
    }
    world.patch("/ssls/1/client/skip_mtls_uri_regex", json!(["^/a$"])).await.ok();
}

/// A blocked route, which another program wrote, denies what it matches.
#[tokio::test]
async fn a_blocked_object_keeps_its_place() {
    let world = protected().await;
    let blocked = open("/a", json!({"plugins": {"ip-restriction": {"whitelist": ["10.0.0.1"]}}}));
    let stream = json!({"server_port": 9100, "plugins": {"ip-restriction": {"whitelist": ["10.0.0.1"]}},
        "upstream": {"nodes": {"127.0.0.1:1980": 1}}});
    stored(&world, Kind::Route, "5", blocked).await;
    stored(&world, Kind::StreamRoute, "5", stream).await;
    let open_stream = |port: u16| json!({"server_port": port, "upstream": {"nodes": {"127.0.0.1:1980": 1}}});
    for (method, path, body) in [
        (Method::PUT, "/routes/4", open("/a", json!({}))),
        (Method::DELETE, "/routes/5", json!({})),
        (Method::PUT, "/routes/5", open("/a", json!({}))),
        (Method::PUT, "/stream_routes/4", open_stream(9100)),
        (Method::DELETE, "/stream_routes/5", json!({})),
        (Method::PUT, "/stream_routes/5", open_stream(9100)),
    ] {
        weakens(&world, method, path, body).await;
    }
    world.put("/routes/6", open("/a", json!({}))).await.ok();
    world.put("/stream_routes/4", open_stream(9101)).await.ok();
}

/// It is blocked for a member that is not known here, and what takes its place denies as much.
#[tokio::test]
async fn the_policy_of_a_blocked_object_counts() {
    let world = protected().await;
    let sites = Sites::new(&world);
    let plugin = json!({"plugins": {"ip-restriction": {"whitelist": ["10.0.0.1"]}}});
    let unknown = json!({"member": {"not": "known"}});
    stored(&world, Kind::Route, "5", with(listed("/a", json!({})), plugin.clone())).await;
    stored(&world, Kind::Service, "5", with(listed("", json!({})), plugin)).await;
    stored(&world, Kind::Ssl, "5", with(sites.guarded(json!(["a.test"]), json!({})), unknown)).await;
    world.put("/routes/6", json!({"uri": "/b", "service_id": "5"})).await.ok();
    let node = json!({"upstream": {"nodes": {"127.0.0.1:1980": 1}}});
    let service = |name: &str| with(node.clone(), json!({"client_identity": {"allow": [{"dns": name}]}}));
    let other = Authority::root(&AuthoritySpec::new("other")).unwrap();
    for (path, body) in [
        ("/routes/5", listed("/a", json!({"client_identity": {"allow": [{"dns": "c.d"}]}}))),
        ("/services/5", service("c.d")),
        ("/ssls/5", sites.guarded(json!(["a.test"]), json!({"ca": other.certificate_pem()}))),
        ("/ssls/5", sites.guarded(json!(["a.test"]), json!({"depth": 5}))),
    ] {
        weakens(&world, Method::PUT, path, body).await;
    }
    world.put("/routes/5", listed("/a", json!({}))).await.ok();
    world.put("/services/5", service("a.b")).await.ok();
    world.put("/ssls/5", sites.guarded(json!(["a.test"]), json!({}))).await.ok();
}

#[tokio::test]
async fn an_object_that_expires_replaces_none_that_stays() {
    let world = protected().await;
    world.put("/routes/1", listed("/a", json!({}))).await.ok();
    world.put("/routes/2?ttl=1000", listed("/a", json!({}))).await.ok();
    for path in ["/routes/1", "/routes/1?dry_run=true"] {
        let refused = world.delete(path).await;
        assert_eq!(refused.status, 409, "{refused:?}");
        assert!(refused.json()["weakenings"].to_string().contains("routes/2 expires"), "{refused:?}");
    }
    world.put("/routes/2", listed("/a", json!({}))).await.ok();
    world.delete("/routes/1").await.ok();
    let moved = json!({"operations": [
        operation("DELETE", "/routes/2", Value::Null),
        operation("PUT", "/routes/3?ttl=1000", listed("/a", json!({}))),
    ]});
    weakens(&world, Method::POST, "/batch", moved).await;
}

/// The store removes a document later, and nothing is weaker in the write that takes its place.
#[tokio::test]
async fn what_expires_protects_nothing_that_stays() {
    let world = protected().await;
    let list = json!({"client_identity": {"allow": [{"dns": "a.b"}]}});
    let node = json!({"nodes": {"127.0.0.1:1980": 1}});
    let secure = with(node.clone(), json!({"scheme": "https"}));
    world.put("/services/s", with(list.clone(), json!({"upstream": node}))).await.ok();
    world.put("/services/brief?ttl=1000", with(list, json!({"upstream": node}))).await.ok();
    world.put("/upstreams/u", secure.clone()).await.ok();
    world.put("/upstreams/brief?ttl=1000", secure.clone()).await.ok();
    world.put("/routes/1", json!({"uri": "/a", "service_id": "s"})).await.ok();
    world.put("/routes/2", json!({"uri": "/b", "upstream_id": "u"})).await.ok();
    let hop = json!({"uri": "/c", "upstream": secure});
    world.put("/services/hop", json!({"upstream": secure})).await.ok();
    world.put("/routes/3", hop).await.ok();
    world.put("/routes/4", json!({"uri": "/d", "service_id": "hop"})).await.ok();
    for (path, body, keeper) in [
        ("/routes/1", json!({"uri": "/a", "service_id": "brief"}), "services/brief"),
        ("/routes/2", json!({"uri": "/b", "upstream_id": "brief"}), "upstreams/brief"),
        ("/routes/3", json!({"uri": "/c", "upstream_id": "brief"}), "upstreams/brief"),
        ("/services/hop", json!({"upstream_id": "brief"}), "upstreams/brief"),
    ] {
        for path in [path.to_owned(), format!("{path}?dry_run=true")] {
            let refused = world.put(&path, body.clone()).await;
            assert_eq!(refused.status, 409, "{path}: {refused:?}");
            let text = refused.json()["weakenings"].to_string();
            assert!(text.contains(&format!("{keeper} expires")), "{path}: {text}");
        }
    }
    // What others refer to does not begin to expire.
    for (path, body) in
        [("/upstreams/u?ttl=1000", secure.clone()), ("/services/hop?ttl=1000", json!({"upstream": secure}))]
    {
        weakens(&world, Method::PUT, path, body).await;
    }
    world.put("/upstreams/brief?ttl=2000", secure).await.ok();
}

/// What expires first leaves what expires later in its place.
#[tokio::test]
async fn each_time_to_live_is_a_state_of_its_own() {
    let world = protected().await;
    world.put("/routes/1", listed("/a", json!({"priority": 5}))).await.ok();
    let write = |ttl: u32, name: &str, document: Value| {
        operation("PUT", &format!("/routes/{name}?ttl={ttl}"), document)
    };
    let last = operation("PUT", "/routes/3", listed("/a", json!({"priority": 3})));
    let protected = || write(1, "1", listed("/a", json!({"priority": 5})));
    let behind = write(u32::MAX, "2", open("/a", json!({"priority": 4})));
    let batch = json!({"operations": [protected(), behind, last.clone()]});
    weakens(&world, Method::POST, "/batch", batch).await;
    world.post("/batch", json!({"operations": [protected(), last]})).await.ok();
    let many = (1..=9).map(|ttl| write(ttl, "9", open("/z", json!({})))).enumerate();
    let many: Vec<Value> = many
        .map(|(number, operation)| {
            let path = operation["path"].as_str().unwrap().replace("/9?", &format!("/9{number}?"));
            with(operation, json!({"path": path}))
        })
        .collect();
    let refused = world.post("/batch", json!({"operations": many})).await;
    refused.assert_error("9 different times to live in one commit, at most 8");
}

#[tokio::test]
async fn writers_at_once_do_not_undo_each_others_reasons() {
    let world = protected().await;
    // Each of two routes protects what the other one does.
    for round in 0..8 {
        for own in ["1", "2"] {
            world.put(&format!("/routes/{own}"), listed("/a", json!({}))).await.ok();
        }
        let gone = join_all(["/routes/1", "/routes/2"].map(|path| world.delete(path))).await;
        let mut statuses: Vec<u16> = gone.iter().map(|response| response.status.as_u16()).collect();
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 409], "round {round}");
    }
    // Ordinary writes at the same time all succeed.
    let put = async |number: usize| {
        world.put(&format!("/routes/{}", number + 10), open(&format!("/b/{number}"), json!({}))).await
    };
    for response in join_all((0..32).map(put)).await {
        assert_eq!(response.status, 201, "{response:?}");
    }
}
