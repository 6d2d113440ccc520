use std::sync::Arc;

use pki::Keyring;
use pki::mint::LeafSpec;
use serde_json::{Value, json};

use super::*;
use crate::delta::{Delta, Versioned};
use crate::destination;
use crate::id::Kind;
use crate::samples::{AUTHORITY, id};
use crate::target::{PathOptions, Target};
use crate::variable::NoVariables;

fn with(mut document: Value, more: Value) -> Value {
    document.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    document
}

/// A route to a node of its own.
fn route(host: &str, uri: &str, more: Value) -> Value {
    let nodes = json!({format!("{}.node.test:80", uri.len()): 1});
    with(json!({"host": host, "uri": uri, "upstream": {"type": "roundrobin", "nodes": nodes}}), more)
}

fn raw(host: &str) -> Value {
    let plugins = json!({"proxy-rewrite": {"use_real_request_uri_unsafe": true}});
    route(host, "/open/*", json!({"plugins": plugins}))
}

fn listed() -> Value {
    json!({"client_identity": {"allow": [{"dns": "somebody.test"}]}})
}

fn ssl(name: &str, skip: Option<&str>) -> Value {
    let minted = AUTHORITY.issue(&LeafSpec::server(name)).unwrap();
    let mut client = json!({"ca": AUTHORITY.certificate_pem()});
    if let Some(skip) = skip {
        client["skip_mtls_uri_regex"] = json!([skip]);
    }
    json!({"cert": minted.certificate_pem, "key": *minted.key_pem, "sni": name, "client": client})
}

fn held(documents: &[(Kind, &str, Value)]) -> Vec<Versioned> {
    let check = |(kind, own, document): &(Kind, &str, Value)| {
        crate::check(*kind, &id(own), document, &Keyring::none()).unwrap()
    };
    documents.iter().map(|document| Versioned { revision: 1, resource: check(document) }).collect()
}

fn snapshot(documents: &[(Kind, &str, Value)]) -> Snapshot {
    Snapshot::from_resources(1, held(documents))
}

/// The verdict about an anonymous request for the raw route on a.test, on a site with the policy of that ssl.
fn judged(snapshot: &Snapshot) -> Result<(), Conflict> {
    let target = Target::new(None, Some("a.test"), "/open/x", PathOptions::default()).unwrap();
    let remote = "192.0.2.1".parse().unwrap();
    let found = destination::find(snapshot, &target, "GET", remote, &NoVariables).unwrap();
    assert_eq!(found.route.id, id("raw"));
    let site = snapshot.site(target.host.as_ref().unwrap());
    let policy = site.and_then(|ssl| ssl.client.as_deref());
    judge(snapshot, &found, target.host.as_ref(), policy, &Client::NotAsked)
}

#[test]
fn a_raw_path_is_forwarded_where_no_rule_judges_paths() {
    for (more, stands) in [
        (vec![], None),
        (vec![(Kind::Ssl, "1", ssl("a.test", None))], None),
        (vec![(Kind::Ssl, "1", ssl("a.test", Some("^/open")))], Some(Conflict::SkipRules(None))),
        (vec![(Kind::Ssl, "1", ssl("b.test", Some("^/open")))], None),
        (vec![(Kind::Route, "2", route("a.test", "/secret/*", json!({})))], None),
        (vec![(Kind::Route, "2", route("a.test", "/secret/*", listed()))], Some(Conflict::Sibling(id("2")))),
        (vec![(Kind::Route, "2", route("*.test", "/secret/*", listed()))], Some(Conflict::Sibling(id("2")))),
        (vec![(Kind::Route, "2", route("b.test", "/secret/*", listed()))], None),
        // The same node behind another host.
        (vec![(Kind::Route, "2", route("b.test", "/hidden", listed()))], Some(Conflict::Sibling(id("2")))),
        (vec![(Kind::Route, "2", route("a.test", "/secret/*", with(listed(), json!({"status": 0}))))], None),
        (
            vec![
                (Kind::Service, "s", listed()),
                (Kind::Route, "2", route("a.test", "/secret/*", json!({"service_id": "s"}))),
            ],
            Some(Conflict::Sibling(id("2"))),
        ),
    ] {
        let mut documents = vec![(Kind::Route, "raw", raw("a.test"))];
        documents.extend(more);
        let snapshot = snapshot(&documents);
        assert_eq!(judged(&snapshot).err(), stands, "{documents:?}");
        let found = conflicts(&snapshot, snapshot.route(&id("raw")).unwrap());
        assert_eq!(found.is_empty(), stands.is_none(), "{found:?}");
        let resource = &snapshot.get(&crate::id::Key::new(Kind::Route, id("raw"))).unwrap().resource;
        assert_eq!(check(&snapshot, resource).is_err(), stands.is_some());
    }
}

#[test]
fn a_blocked_sibling_stands_in_the_way_too() {
    let raw_route = held(&[(Kind::Route, "raw", raw("a.test"))]);
    let sibling = held(&[(Kind::Route, "2", route("a.test", "/secret/*", json!({})))]).remove(0);
    let resource = crate::samples::block(sibling.resource);
    let all = raw_route.into_iter().chain([Versioned { revision: 1, resource }]);
    assert_eq!(judged(&Snapshot::from_resources(1, all)), Err(Conflict::Sibling(id("2"))));
}

#[test]
fn a_service_that_changes_moves_its_routes() {
    let service = |more| held(&[(Kind::Service, "s", more)]);
    let mut now = snapshot(&[
        (Kind::Route, "raw", raw("a.test")),
        (Kind::Route, "2", route("a.test", "/secret/*", json!({"service_id": "s"}))),
    ]);
    for (upserts, removals, free) in [
        (service(listed()), vec![], false),
        (service(json!({})), vec![], true),
        (service(listed()), vec![], false),
        (vec![], vec![crate::id::Key::new(Kind::Service, id("s"))], true),
    ] {
        now = now.apply(&Delta { from: now.revision(), to: now.revision() + 1, upserts, removals });
        assert_eq!(judged(&now).is_ok(), free);
    }
}

#[test]
fn a_service_asks_for_its_routes() {
    let plugins = json!({"plugins": {"proxy-rewrite": {"use_real_request_uri_unsafe": true}}});
    let snapshot = snapshot(&[
        (Kind::Service, "s", plugins.clone()),
        (Kind::Route, "1", route("a.test", "/a/*", json!({"service_id": "s"}))),
        (Kind::Route, "2", route("a.test", "/secret/*", listed())),
        (
            Kind::Route,
            "3",
            route(
                "c.test",
                "/own/*",
                json!({"service_id": "s", "plugins": {"proxy-rewrite": {"uri": "/x"}}}),
            ),
        ),
    ]);
    assert!(is_enabled(&snapshot, snapshot.route(&id("1")).unwrap()));
    assert!(!is_enabled(&snapshot, snapshot.route(&id("3")).unwrap()), "its own block takes the place");
    let service = Resource::Service(Arc::clone(snapshot.service(&id("s")).unwrap()));
    let problem = check(&snapshot, &service).unwrap_err();
    assert!(problem.field == FIELD && problem.message.contains("route 2"), "{problem:?}");
}
