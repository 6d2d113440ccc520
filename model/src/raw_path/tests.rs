use std::sync::Arc;

use pki::Keyring;
use pki::ca::LeafSpec;
use serde_json::{Value, json};

use super::*;
use crate::destination;
use crate::id::Kind;
use crate::request_target::{PathOptions, RequestTarget};
use crate::samples::{AUTHORITY, id};
use crate::snapshot::{Delta, Versioned};
use crate::variable::NoVariables;

fn with(mut document: Value, more: Value) -> Value {
    document.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    document
}

/// A route with a node of its own.
fn route(host: &str, uri: &str, more: Value) -> Value {
    let nodes = json!({format!("192.0.2.{}:80", uri.len()): 1});
    with(json!({"host": host, "uri": uri, "upstream": {"type": "roundrobin", "nodes": nodes}}), more)
}

fn raw(host: &str) -> Value {
    let plugins = json!({"proxy-rewrite": {"use_real_request_uri_unsafe": true}});
    route(host, "/open/*", json!({"plugins": plugins}))
}

fn listed() -> Value {
    json!({"client_identity": {"allow": [{"dns": "client.test"}]}})
}

fn listed_sibling() -> Conflict {
    Conflict::OtherRoute(id("2"), "client_identity.allow")
}

fn ssl(name: &str, skip: Option<&str>) -> Value {
    let issued = AUTHORITY.issue(&LeafSpec::server(name)).unwrap();
    let mut client = json!({"ca": AUTHORITY.certificate_pem()});
    if let Some(skip) = skip {
        client["skip_mtls_uri_regex"] = json!([skip]);
    }
    json!({"cert": issued.certificate_pem, "key": *issued.key_pem, "sni": name, "client": client})
}

fn held(documents: &[(Kind, &str, Value)]) -> Vec<Versioned> {
    let check = |(kind, own, document): &(Kind, &str, Value)| {
        crate::compile(*kind, &id(own), document, &Keyring::empty()).unwrap()
    };
    documents.iter().map(|document| Versioned { version: 1, resource: check(document) }).collect()
}

fn snapshot(documents: &[(Kind, &str, Value)]) -> Snapshot {
    Snapshot::from_resources(1, held(documents))
}

/// Checks an anonymous request for the raw route on a.test, over a connection to the site of that
/// ssl.
fn check(snapshot: &Snapshot) -> Result<(), Conflict> {
    let target = RequestTarget::new(None, Some("a.test"), "/open/x", PathOptions::default()).unwrap();
    let remote = "192.0.2.1".parse().unwrap();
    let found = destination::find(snapshot, &target, "GET", remote, &NoVariables).unwrap();
    assert_eq!(found.route.id, id("raw"));
    let site = snapshot.site(target.host.as_ref().unwrap());
    let policy = site.and_then(|ssl| ssl.client.as_deref());
    check_request(snapshot, &found, policy, &ClientVerification::NotRequested)
}

#[test]
fn a_raw_path_is_allowed_without_rules_on_paths() {
    for (more, stands) in [
        (vec![], None),
        (vec![(Kind::Ssl, "1", ssl("a.test", None))], None),
        (vec![(Kind::Ssl, "1", ssl("a.test", Some("^/open")))], Some(Conflict::SkipRules(None))),
        (vec![(Kind::Ssl, "1", ssl("b.test", Some("^/open")))], None),
        (vec![(Kind::Route, "2", route("a.test", "/secret/*", json!({})))], None),
        (vec![(Kind::Route, "2", route("a.test", "/secret/*", listed()))], Some(listed_sibling())),
        (vec![(Kind::Route, "2", route("*.test", "/secret/*", listed()))], Some(listed_sibling())),
        (vec![(Kind::Route, "2", route("b.test", "/secret/*", listed()))], None),
        // The same node under another host.
        (vec![(Kind::Route, "2", route("b.test", "/hidden", listed()))], Some(listed_sibling())),
        (vec![(Kind::Route, "2", route("a.test", "/secret/*", with(listed(), json!({"status": 0}))))], None),
        (
            vec![
                (Kind::Service, "s", listed()),
                (Kind::Route, "2", route("a.test", "/secret/*", json!({"service_id": "s"}))),
            ],
            Some(listed_sibling()),
        ),
    ] {
        let mut documents = vec![(Kind::Route, "raw", raw("a.test"))];
        documents.extend(more);
        let snapshot = snapshot(&documents);
        assert_eq!(check(&snapshot).err(), stands, "{documents:?}");
        let found: Vec<_> = conflicts(&snapshot, snapshot.route(&id("raw")).unwrap()).collect();
        assert_eq!(found.is_empty(), stands.is_none(), "{found:?}");
        let resource = &snapshot.get(&crate::id::Key::new(Kind::Route, id("raw"))).unwrap().resource;
        assert_eq!(check_resource(&snapshot, resource).is_err(), stands.is_some());
    }
}

#[test]
fn a_blocked_route_is_a_conflict() {
    let raw_route = held(&[(Kind::Route, "raw", raw("a.test"))]);
    let sibling = held(&[(Kind::Route, "2", route("a.test", "/secret/*", json!({})))]).remove(0);
    let resource = crate::samples::block(sibling.resource);
    let all = raw_route.into_iter().chain([Versioned { version: 1, resource }]);
    assert_eq!(check(&Snapshot::from_resources(1, all)), Err(Conflict::OtherRoute(id("2"), "block")));
}

#[test]
fn a_changed_service_changes_the_conflicts_of_its_routes() {
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
        assert_eq!(check(&now).is_ok(), free);
    }
}

#[test]
fn a_service_can_enable_raw_paths_for_its_routes() {
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
    let problem = check_resource(&snapshot, &service).unwrap_err();
    assert!(problem.field == FIELD && problem.message.contains("route 2"), "{problem:?}");
}

/// The conflict of the first route with the second.
fn beside(raw: Value, sibling: Value) -> Option<Conflict> {
    let snapshot = snapshot(&[(Kind::Route, "raw", raw), (Kind::Route, "2", sibling)]);
    conflicts(&snapshot, snapshot.route(&id("raw")).unwrap()).next()
}

#[test]
fn a_narrower_route_is_a_conflict() {
    let vars = |variable: &str| json!({"vars": [[variable, "==", "CN=boss"]]});
    for (more, member) in [
        (vars("ssl_client_s_dn"), Some("vars")),
        (vars("http_x_role"), Some("vars")),
        (json!({"vars": [["OR", ["arg_key", "==", "k"], ["uri", "~~", "^/secret/[0-9]+$"]]]}), Some("vars")),
        (json!({"remote_addrs": ["10.0.0.0/8"]}), Some("remote_addrs")),
        (json!({"methods": ["GET"]}), Some("methods")),
        (json!({"methods": ["GET"], "priority": -7}), Some("methods")),
        (json!({"vars": [], "priority": 9}), None),
        (with(vars("host"), json!({"status": 0})), None),
    ] {
        let stands = member.map(|member| Conflict::OtherRoute(id("2"), member));
        let sibling = |host| route(host, "/secret/*", more.clone());
        assert_eq!(beside(raw("a.test"), sibling("a.test")), stands, "{more}");
        assert_eq!(beside(raw("*.test"), sibling("a.test")), stands, "{more}");
        assert_eq!(beside(raw("a.test"), sibling("b.test")), None, "{more}");
        let same_node = with(sibling("b.test"), json!({"upstream": raw("a.test")["upstream"]}));
        assert_eq!(beside(raw("a.test"), same_node), stands, "{more}");
    }
    let methods = |methods: &[&str]| json!({"methods": methods});
    let some = with(raw("a.test"), methods(&["GET"]));
    assert_eq!(beside(some.clone(), route("a.test", "/secret/*", methods(&["POST", "GET"]))), None);
    assert!(beside(some, route("a.test", "/secret/*", methods(&["POST"]))).is_some());
}

#[test]
fn requests_are_checked_against_restricted_routes() {
    for more in [
        json!({"vars": [["ssl_client_s_dn", "==", "CN=boss"]]}),
        json!({"remote_addrs": ["10.0.0.0/8"]}),
        json!({"methods": ["PURGE"]}),
    ] {
        let documents =
            [(Kind::Route, "raw", raw("a.test")), (Kind::Route, "2", route("a.test", "/boss/*", more))];
        let snapshot = snapshot(&documents);
        assert!(matches!(check(&snapshot), Err(Conflict::OtherRoute(..))), "{documents:?}");
        assert_eq!(check(&snapshot), check(&snapshot), "the second result is cached");
    }
}

#[test]
fn nodes_are_compared_by_address() {
    let made = |base: Value, (host, port, scheme): (&str, Value, &str)| {
        let mut node = json!({"host": host, "weight": 1});
        if !port.is_null() {
            node["port"] = port;
        }
        with(base, json!({"upstream": {"type": "roundrobin", "nodes": [node], "scheme": scheme}}))
    };
    let port = |port: u16| json!(port);
    for (one, other, shared) in [
        (("127.0.0.1", port(8080), "http"), ("localhost", port(8080), "http"), true),
        (("127.0.0.1", port(8080), "http"), ("LocalHost", port(8080), "http"), true),
        (("app.test", port(8080), "http"), ("APP.test", port(8080), "http"), true),
        (("app.test", port(8080), "http"), ("alias.test", port(8080), "http"), true),
        (("192.0.2.1", port(80), "http"), ("192.0.2.1", json!(null), "http"), true),
        (("192.0.2.1", port(443), "http"), ("192.0.2.1", json!(null), "https"), true),
        (("[::1]", port(80), "http"), ("[0:0:0:0:0:0:0:1]", port(80), "http"), true),
        (("[::ffff:192.0.2.1]", port(80), "http"), ("192.0.2.1", port(80), "http"), true),
        (("127.0.0.1", port(80), "http"), ("0.0.0.0", port(80), "http"), true),
        (("127.0.0.1", port(80), "http"), ("[::1]", port(80), "http"), true),
        (("192.0.2.1", port(80), "http"), ("192.0.2.2", port(80), "http"), false),
        (("192.0.2.1", port(80), "http"), ("192.0.2.1", port(81), "http"), false),
        (("app.test", port(80), "http"), ("app.test", port(81), "http"), false),
    ] {
        let sibling = || route("b.test", "/secret/*", listed());
        let shown = format!("{one:?} {other:?}");
        let found = beside(made(raw("a.test"), one.clone()), made(sibling(), other.clone()));
        assert_eq!(found.is_some(), shared, "{shown}");
        let found = beside(made(raw("a.test"), other), made(sibling(), one));
        assert_eq!(found.is_some(), shared, "{shown}, the other way round");
    }
}

#[test]
fn a_route_to_another_upstream_is_a_conflict() {
    let wide = || with(raw("a.test"), json!({"uri": "/*"}));
    let same = || json!({"upstream": wide()["upstream"]});
    let member = |raw, sibling| match beside(raw, sibling) {
        Some(Conflict::OtherRoute(_, member)) => Some(member),
        _ => None,
    };
    let inside = |more| route("a.test", "/admin/*", more);
    assert_eq!(member(wide(), inside(json!({}))), Some("upstream"), "another node");
    assert_eq!(member(wide(), inside(same())), None);
    let rewritten = json!({"plugins": {"proxy-rewrite": {"uri": "/none"}}});
    assert_eq!(member(wide(), with(inside(same()), rewritten)), Some("proxy-rewrite"));
    assert_eq!(member(wide(), with(inside(json!({})), json!({"host": "b.test"}))), None, "another host");
    assert_eq!(member(raw("a.test"), inside(json!({}))), None, "beside it, not a part of it");
    assert_eq!(member(raw("a.test"), route("a.test", "/*", json!({}))), None, "it is the part");
}

#[test]
fn own_vars_on_the_path_are_a_conflict() {
    for (vars, stands) in [
        (json!([["uri", "~~", "^/open/[a-z]+$"]]), true),
        (json!([["OR", ["request_uri", "~=", "/open/x"], ["arg_a", "==", "b"]]]), true),
        (json!([["http_x", "==", "y"]]), false),
    ] {
        let found = beside(with(raw("a.test"), json!({"vars": vars})), route("b.test", "/b", json!({})));
        assert_eq!(found.is_some_and(|found| found == Conflict::OwnVars), stands, "{vars}");
    }
}
