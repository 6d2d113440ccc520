//! Writes that lose nothing: entity tags and preconditions, documents that are read and written
//! back, dry runs, waiting for the data planes, and protected client authentication.

use http::Method;
use pki::ca::CrlSpec;
use pki::ca::{Authority, AuthoritySpec};
use serde_json::{Value, json};

use crate::world::{KEY, Response, World};

fn upstream() -> Value {
    json!({"nodes": {"127.0.0.1:1980": 1}, "type": "roundrobin"})
}

fn etag(response: &Response) -> String {
    response.header("etag").unwrap_or_else(|| panic!("{response:?}")).to_owned()
}

#[tokio::test]
async fn a_write_and_the_next_get_have_one_etag() {
    let world = World::start().await;
    let created = world.put("/upstreams/1", upstream()).await.ok();
    assert_eq!(etag(&created), format!("\"{}\"", created.revision()));
    let read = world.get("/upstreams/1").await.ok();
    assert_eq!(etag(&read), etag(&created));
    assert_eq!(etag(&read), format!("\"{}\"", read.json()["modifiedIndex"]));
    let patched = world.patch("/upstreams/1", json!({"desc": "x"})).await.ok();
    assert_ne!(etag(&patched), etag(&read));
    assert_eq!(etag(&world.get("/upstreams/1").await), etag(&patched));
    assert_eq!(world.delete("/upstreams/1").await.ok().header("etag"), None);
}

#[tokio::test]
async fn a_get_with_the_present_etag_has_no_body() {
    let world = World::start().await;
    world.put("/upstreams/1", upstream()).await.ok();
    for path in ["/upstreams/1", "/upstreams", "/schema/route", "/dataplanes"] {
        let first = world.get(path).await.ok();
        let known = etag(&first);
        let again = world.call_with(("if-none-match", &known), Method::GET, path, "").await;
        assert_eq!((again.status.as_u16(), again.text.as_str(), etag(&again)), (304, "", known.clone()));
        world.patch("/upstreams/1", json!({"desc": path})).await.ok();
        let changed = world.call_with(("if-none-match", &known), Method::GET, path, "").await;
        assert_eq!(changed.status, if path.starts_with("/upstreams") { 200 } else { 304 }, "{path}");
    }
}

#[tokio::test]
async fn a_write_on_an_older_state_is_412() {
    let world = World::start().await;
    let old = etag(&world.put("/upstreams/1", upstream()).await.ok());
    let new = etag(&world.patch("/upstreams/1", json!({"desc": "new"})).await.ok());
    let before = world.get("/upstreams/1").await.text;
    let whole = upstream().to_string();
    for (method, path, body) in [
        (Method::PUT, "/upstreams/1", whole.as_str()),
        (Method::PATCH, "/upstreams/1", "{\"desc\": \"lost\"}"),
        (Method::PATCH, "/upstreams/1/desc", "\"lost\""),
        (Method::DELETE, "/upstreams/1", ""),
        (Method::PUT, "/upstreams/2", whole.as_str()),
        (Method::POST, "/upstreams", whole.as_str()),
    ] {
        let refused = world.call_with(("if-match", &old), method.clone(), path, body).await;
        assert_eq!(refused.status, 412, "{method} {path}");
        assert!(refused.json()["hint"].as_str().unwrap().contains("If-Match"), "{refused:?}");
    }
    let exists = world.call_with(("if-none-match", "*"), Method::PUT, "/upstreams/1", whole.as_str()).await;
    assert_eq!(exists.status, 412);
    let absent = world.call_with(("if-match", "*"), Method::PUT, "/upstreams/2", whole.as_str()).await;
    assert_eq!(absent.status, 412);
    for (name, value) in [("if-match", "12"), ("if-none-match", "\"12\""), ("if-match", "\"12")] {
        let malformed = world.call_with((name, value), Method::PUT, "/upstreams/1", whole.as_str()).await;
        assert_eq!(malformed.status, 400, "{name}: {value}");
    }
    assert_eq!(world.get("/upstreams/1").await.text, before, "nothing has changed");
    let created = world.call_with(("if-none-match", "*"), Method::PUT, "/upstreams/2", whole.as_str()).await;
    assert_eq!(created.status, 201);
    let either = format!("{old}, {new}");
    let desc = "{\"desc\": \"next\"}";
    let next = world.call_with(("if-match", &either), Method::PATCH, "/upstreams/1", desc).await.ok();
    world.call_with(("if-match", &etag(&next)), Method::DELETE, "/upstreams/1", "").await.ok();
}

#[tokio::test]
async fn writers_with_if_match_lose_no_update() {
    const WRITERS: usize = 32;
    const EACH: usize = 1;
    let world = World::start().await;
    world.put("/upstreams/1", json!({"nodes": {}, "desc": "0"})).await.ok();
    let count = async || {
        for _ in 0..EACH {
            loop {
                let read = world.get("/upstreams/1").await.ok();
                let number: u32 = read.json()["value"]["desc"].as_str().unwrap().parse().unwrap();
                let next = json!({"nodes": {}, "desc": (number + 1).to_string()}).to_string();
                let written =
                    world.call_with(("if-match", &etag(&read)), Method::PUT, "/upstreams/1", next).await;
                match written.status.as_u16() {
                    200 => break,
                    412 => {}
                    _ => panic!("{written:?}"),
                }
            }
        }
    };
    futures_util::future::join_all((0..WRITERS).map(|_| count())).await;
    let last = world.get("/upstreams/1").await.json();
    assert_eq!(last["value"]["desc"], (WRITERS * EACH).to_string());
}

#[tokio::test]
async fn what_was_read_can_be_written_back() {
    let world = World::builder();
    let world = crate::world::Builder { streams: true, ..world }.start().await;
    let clients = Authority::root(&AuthoritySpec::new("clients")).unwrap();
    let (one, two) = (world.pair("a.test"), world.pair("a.test"));
    let crl = clients.crl_pem(&CrlSpec::default()).unwrap();
    let tls = json!({"client_cert": one.certificate_pem, "client_key": &*one.key_pem});
    let secured = json!({"nodes": {"127.0.0.1:1983": 1}, "scheme": "https", "tls": tls});
    let identity = json!({"allow": [{"dns": "a.b"}]});
    let documents = [
        (
            "/ssls/1",
            json!({"cert": one.certificate_pem, "key": &*one.key_pem, "certs": [two.certificate_pem], "keys": [&*two.key_pem],
                "sni": "a.test", "client": {"ca": clients.certificate_pem(), "depth": 2, "crl": [crl]}}),
        ),
        ("/ssls/2", json!({"type": "client", "cert": one.certificate_pem, "key": &*one.key_pem})),
        ("/upstreams/1", secured.clone()),
        ("/services/1", json!({"upstream": secured, "client_identity": identity, "hosts": ["a.test"]})),
        (
            "/routes/1",
            json!({"uri": "/", "service_id": "1", "client_identity": identity, "labels": {"a": "b"}}),
        ),
        ("/stream_routes/1", json!({"sni": "a.test", "upstream": upstream()})),
    ];
    for (path, document) in documents {
        let created = world.put(path, document).await.ok().json()["value"].clone();
        let read = world.get(path).await.ok().json()["value"].clone();
        let back = world.put(path, read.clone()).await.ok();
        assert_eq!(back.headers.get("x-countersign-warning"), None, "{path}");
        let mut stored = back.json()["value"].clone();
        stored["update_time"] = created["update_time"].clone();
        assert_eq!(stored, created, "{path}");
        let again = world.get(path).await.ok().json()["value"].clone();
        assert_eq!(again["create_time"], read["create_time"]);
        // Times that are not the stored ones are refused as ever.
        let mut other = read;
        other["create_time"] = json!(1);
        world.put(path, other).await.assert_error("the property is forbidden:  create_time");
    }
    // Another certificate needs its key.
    let mut other = world.get("/ssls/1").await.json()["value"].clone();
    other["cert"] = json!(two.certificate_pem);
    world.put("/ssls/1", other).await.assert_error("invalid configuration: then clause did not match");
}

#[tokio::test]
async fn a_dry_run_checks_and_stores_nothing() {
    let world = World::start().await;
    world.put("/upstreams/1", upstream()).await.ok();
    let before = world.get("/upstreams/1").await.text;
    let pair = world.pair("a.test");
    let ssl = json!({"cert": pair.certificate_pem, "key": &*pair.key_pem, "sni": "a.test"});
    let change = world.patch("/upstreams/1?dry_run=true", json!({"desc": "x", "nodes": null})).await;
    assert_eq!(change.status, 400, "all checks run");
    let change = world.patch("/upstreams/1?dry_run=true", json!({"desc": "x"})).await.ok().json();
    assert_eq!(
        (change["dry_run"].as_bool(), change["key"].as_str()),
        (Some(true), Some("/apisix/upstreams/1"))
    );
    let difference = change["difference"].as_array().unwrap();
    assert!(difference.contains(&json!({"op": "add", "path": "/desc", "value": "x"})), "{difference:?}");
    for (method, path, body) in [
        (Method::PUT, "/ssls/1?dry_run=true", ssl.clone()),
        (Method::POST, "/ssls?dry_run=true", ssl),
        (Method::DELETE, "/upstreams/1?dry_run=true", json!({})),
    ] {
        let shown = world.call(method.clone(), path, body).await;
        assert_eq!((shown.status.as_u16(), shown.headers.get("etag")), (200, None), "{shown:?}");
        assert!(!shown.text.contains("PRIVATE KEY"), "{shown:?}");
        assert_eq!(shown.headers.get("x-countersign-revision"), None, "{method}");
    }
    for misspelt in
        ["dry_run=1", "dry_run=True", "dry_run", "weaken=yes", "wait=soon", "wait=61", "wait=-1", "ttl=x"]
    {
        let refused = world.patch(&format!("/upstreams/1?{misspelt}"), json!({"desc": "lost"})).await;
        assert_eq!(refused.status, 400, "{misspelt}");
        assert!(refused.json()["error_msg"].as_str().unwrap().starts_with("invalid argument"), "{refused:?}");
    }
    assert_eq!(world.get("/upstreams/1").await.text, before);
    assert_eq!(world.get("/ssls").await.json(), json!({"list": [], "total": 0}));
}

#[tokio::test]
async fn a_write_waits_for_the_data_planes() {
    let world = World::start().await;
    // The one data plane serves revision 7.
    let served = world.put("/upstreams/1?wait=0.1", upstream()).await;
    assert_eq!((served.status.as_u16(), served.json().get("behind")), (201, None));
    while world.patch("/upstreams/1", json!({"desc": "x"})).await.ok().revision() < 7 {}
    let late = world.patch("/upstreams/1?wait=0", json!({"desc": "y"})).await;
    assert_eq!(late.status, 202);
    assert!(late.json()["behind"].is_array(), "{late:?}");
    assert_eq!(late.json()["value"]["desc"], "y", "it is stored all the same");
    assert_eq!(etag(&late), etag(&world.get("/upstreams/1").await));
}

#[tokio::test]
async fn protected_client_authentication_is_weakened_on_purpose_only() {
    let builder = crate::world::Builder { protect_client_auth: true, ..World::builder() };
    let world = builder.start().await;
    let clients = Authority::root(&AuthoritySpec::new("clients")).unwrap();
    let pair = world.pair("a.test");
    let ssl = |client: Value| json!({"cert": pair.certificate_pem, "key": &*pair.key_pem, "sni": "a.test", "client": client});
    let client = json!({"ca": clients.certificate_pem(), "depth": 1});
    world.put("/ssls/1", ssl(client.clone())).await.ok();
    let identity = json!({"allow": [{"dns": "a.b"}]});
    world
        .put("/routes/1", json!({"uri": "/", "upstream": upstream(), "client_identity": identity}))
        .await
        .ok();
    let before = (world.get("/ssls/1").await.text, world.get("/routes/1").await.text);
    let without = json!({"operations": [{"method": "DELETE", "path": "/apisix/admin/ssls/1"}]});
    for (method, path, body) in [
        (
            Method::PUT,
            "/ssls/1",
            ssl(json!({"ca": clients.certificate_pem(), "depth": 1, "skip_mtls_uri_regex": ["/.*"]})),
        ),
        (Method::PATCH, "/ssls/1", json!({"client": null})),
        (Method::PATCH, "/ssls/1", json!({"status": 0})),
        (Method::PATCH, "/ssls/1/client", json!({"ca": clients.certificate_pem(), "depth": 9})),
        (Method::DELETE, "/ssls/1", json!({})),
        (Method::DELETE, "/ssls/1?force=true", json!({})),
        (Method::PATCH, "/routes/1", json!({"client_identity": null})),
        (Method::DELETE, "/ssls/1?dry_run=true", json!({})),
        (Method::POST, "/batch", without),
    ] {
        let refused = world.call(method.clone(), path, body.clone()).await;
        assert_eq!(refused.status, 409, "{method} {path}: {refused:?}");
        assert!(!refused.json()["weakenings"].as_array().unwrap().is_empty(), "{refused:?}");
        assert!(refused.json()["hint"].as_str().unwrap().contains("weaken=true"), "{refused:?}");
    }
    assert_eq!((world.get("/ssls/1").await.text, world.get("/routes/1").await.text), before);
    world.patch("/ssls/1", json!({"client": {"depth": 0}})).await.ok();
    world.patch("/routes/1?weaken=true", json!({"client_identity": null})).await.ok();
    world.delete("/ssls/1?weaken=true").await.ok();
}

/// What is ignored would be thought to hold.
#[tokio::test]
async fn a_write_rejects_arguments_that_it_does_not_take() {
    let world = World::start().await;
    for argument in ["dry_run=true", "weaken=true", "wait=1", "ttl=1", "force=true"] {
        let name = argument.split('=').next().unwrap();
        let message = format!("invalid argument {name}: this operation does not take it");
        let entry = json!({"serial": "01"});
        world.put(&format!("/denied_nodes/1?{argument}"), entry).await.assert_error(&message);
        world.post(&format!("/dataplanes/accept_store?{argument}"), json!({})).await.assert_error(&message);
    }
    for (argument, name) in [("dry_run=false&dry_run=true", "dry_run"), ("ttl=1&ttl=2", "ttl")] {
        let message = format!("invalid argument {name}: it is given more than once");
        world.put(&format!("/routes/1?{argument}"), json!({})).await.assert_error(&message);
        let path = format!("/batch?{argument}");
        world.post(&path, json!({"operations": []})).await.assert_error(&message);
    }
    for path in ["/denied_nodes/1", "/batch", "/configs"] {
        let method = if path == "/batch" { Method::POST } else { Method::PUT };
        let refused = world.call_with(("if-match", "\"1\""), method, path, "{}").await;
        refused.assert_error("invalid argument if-match: this operation does not take it");
    }
    assert_eq!(world.get("/denied_nodes").await.json()["total"], 0);
}

/// As in APISIX an unknown argument hinders no write; a misspelt dry run does not go unnoticed.
#[tokio::test]
async fn an_unknown_argument_of_a_write_is_a_warning() {
    let world = World::start().await;
    let warnings = |response: &Response| {
        let values = response.headers.get_all("x-countersign-warning").iter();
        values.map(|value| value.to_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let dry = "unknown argument dryrun has no effect (did you mean dry_run?)";
    let put = world.put("/upstreams/1?dryrun=true&ttl=1000", upstream()).await;
    assert_eq!((put.status.as_u16(), warnings(&put)), (201, vec![dry.to_owned()]));
    let batch = json!({"operations": [
        {"method": "DELETE", "path": "/apisix/admin/upstreams/1"}]});
    let batch = world.post("/batch?dryrun=true", batch).await;
    assert_eq!((batch.status.as_u16(), warnings(&batch)), (200, vec![dry.to_owned()]));
    assert_eq!(world.get("/upstreams/1").await.status, 404, "both were made");
    let configs = world.call_with(("x-digest", "1"), Method::PUT, "/configs?dryrun=true", "{}").await;
    assert_eq!(warnings(&configs), [dry]);
    let denied = world.put("/denied_nodes/1?dryrun=true", json!({"serial": "01"})).await;
    assert_eq!((denied.status.as_u16(), warnings(&denied)), (201, vec![dry.to_owned()]));
    for quiet in ["/upstreams/1?dry_run=true&wait=0&weaken=false", &format!("/upstreams/1?api_key={KEY}")] {
        assert_eq!(warnings(&world.put(quiet, upstream()).await.ok()), [""; 0], "{quiet}");
    }
    assert_eq!(warnings(&world.get("/upstreams/1?dryrun=true").await.ok()), [""; 0]);
    let secret = warnings(&world.put(&format!("/upstreams/1?{KEY}"), upstream()).await.ok());
    assert!(secret.len() == 1 && !secret[0].contains(KEY), "{secret:?}");
}

#[tokio::test]
async fn a_time_to_live_is_a_removal_of_what_is_protected() {
    let builder = crate::world::Builder { protect_client_auth: true, ..World::builder() };
    let world = builder.start().await;
    let route = json!({"uri": "/", "upstream": upstream(), "client_identity": {"allow": [{"dns": "a.b"}]}});
    world.put("/routes/1", route.clone()).await.ok();
    for path in ["/routes/1?ttl=1", "/routes/1?ttl=1&dry_run=true"] {
        assert_eq!(world.put(path, route.clone()).await.status, 409, "{path}");
    }
    world.put("/routes/2?ttl=100", route.clone()).await.ok();
    world.put("/routes/1?ttl=100&weaken=true", route).await.ok();
}

/// A browser sends the certificate along with a form of any site.
#[tokio::test]
async fn another_sites_page_needs_an_admin_key() {
    let builder = crate::world::Builder { keys: false, ..World::builder() };
    let world = builder.start().await;
    let body = json!({"nodes": {}}).to_string();
    for (header, status) in [
        (("sec-fetch-site", "cross-site"), 403),
        (("sec-fetch-site", "same-site"), 403),
        (("origin", "https://evil.test"), 403),
        (("origin", "null"), 403),
        (("origin", "https://admin.test"), 201),
        (("sec-fetch-site", "same-origin"), 200),
        (("sec-fetch-site", "none"), 200),
    ] {
        let response = world.call_with(header, Method::PUT, "/upstreams/1", body.as_str()).await;
        assert_eq!(response.status, status, "{header:?}");
    }
    let with_key = World::start().await;
    let header = ("sec-fetch-site", "cross-site");
    assert_eq!(with_key.call_with(header, Method::PUT, "/upstreams/1", body.as_str()).await.status, 201);
    let read = world.call_with(header, Method::GET, "/upstreams/1", "").await;
    assert_eq!(read.status, 200, "CORS decides who sees the answer");
}
