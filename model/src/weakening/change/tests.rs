use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use pki::ca::{Authority, AuthoritySpec, LeafSpec};
use pki::{ClientAuth, ClientAuthInput, Keyring, UnixTime, VerifiedClient, VerifyReason};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use serde_json::{Value, json};

use super::*;
use crate::admission::{ClientVerification, ConnectionAuth, admit};
use crate::client_identity::ClientIdentity;
use crate::destination;
use crate::expression::Vars;
use crate::host_name::HostName;
use crate::pattern::NamePattern;
use crate::reason::Reason;
use crate::request_target::{PathOptions, RequestTarget};
use crate::resource::{PluginConfig, RouteMethod, Ssl, StreamRoute};
use crate::samples::{block, id, patterns, some_snapshot, some_versioned};
use crate::stream_index::StreamQuery;
use crate::uri::UriPattern;
use crate::variable::{Variable, Variables};

fn versioned(resource: Resource) -> Versioned {
    Versioned { version: 1, resource }
}

fn delta(upserts: Vec<Versioned>, removals: Vec<Key>) -> Delta {
    Delta { from: 0, to: 1, upserts, removals }
}

/// A document under its kind and id; `Null` removes it.
type Write = (Kind, &'static str, Value);

fn resources(writes: &[Write]) -> Vec<Versioned> {
    let compiled = |(kind, own, document): &Write| {
        crate::compile(*kind, &id(own), document, &Keyring::empty())
            .unwrap_or_else(|problem| panic!("{document}: {problem}"))
    };
    writes.iter().filter(|(_, _, document)| !document.is_null()).map(compiled).map(versioned).collect()
}

/// What the writes weaken, as `kind/id: field`.
fn weaker(stored: &[Write], writes: &[Write]) -> Vec<String> {
    let removed = writes.iter().filter(|(_, _, document)| document.is_null());
    let removals = removed.map(|(kind, own, _)| Key::new(*kind, id(own))).collect();
    let before = Snapshot::from_resources(0, resources(stored));
    let found = weakenings_of_change(&before, &delta(resources(writes), removals)).found;
    let named = |(key, weakening): (Key, Weakening)| {
        format!("{}/{}: {}", key.kind.singular(), key.id, weakening.field)
    };
    found.into_iter().map(named).collect()
}

#[track_caller]
fn unharmed(stored: &[Write], writes: &[Write]) {
    assert_eq!(weaker(stored, writes), [""; 0], "{writes:?}");
}

fn with(mut document: Value, more: Value) -> Value {
    for (name, value) in more.as_object().unwrap() {
        document[name] = value.clone();
    }
    document
}

fn open(uri: &str, more: Value) -> Value {
    with(json!({"uri": uri, "upstream": {"nodes": {"127.0.0.1:1": 1}}}), more)
}

fn listed(uri: &str, more: Value) -> Value {
    with(open(uri, json!({"client_identity": {"allow": [{"dns": "a.example"}]}})), more)
}

const ROUTE: Kind = Kind::Route;

#[test]
fn a_new_route_in_front_of_a_restricted_one_weakens() {
    let stored = [
        (ROUTE, "5", listed("/a/*", json!({"host": "a.test", "priority": 1}))),
        (ROUTE, "6", open("/*", json!({}))),
    ];
    for taking in [
        open("/a/x", json!({"host": "a.test"})),
        open("/a/x/*", json!({"host": "a.test", "priority": -1})),
        open("/a/*", json!({"host": "a.test", "priority": 2})),
        open("/a/*", json!({"hosts": ["b.test", "a.test"], "priority": 2, "methods": ["GET"]})),
        open("/a/*/b", json!({"host": "a.test", "priority": 1})),
        open("/a/x", json!({"host": "a.test", "remote_addr": "10.0.0.0/8"})),
        listed("/a/x", json!({"host": "a.test", "client_identity": {"allow": [{"dns": "*.example"}]}})),
    ] {
        assert_eq!(weaker(&stored, &[(ROUTE, "4", taking.clone())]), ["route/4: uris"], "{taking}");
        let disabled = with(taking.clone(), json!({"status": 0}));
        unharmed(&stored, &[(ROUTE, "4", disabled.clone())]);
        let off = [stored[0].clone(), (ROUTE, "4", disabled)];
        assert_eq!(weaker(&off, &[(ROUTE, "4", taking)]), ["route/4: uris"], "it is enabled");
    }
    for ordinary in [
        open("/a/x", json!({"host": "b.test"})),
        open("/a/*", json!({"host": "a.test"})),
        open("/*", json!({"host": "a.test", "priority": 9})),
        open("/*", json!({"host": "*.test", "priority": 9})),
        open("/a", json!({"host": "a.test"})),
        open("/b/*", json!({"host": "a.test", "priority": 9})),
        open("/a/*", json!({"priority": 9})),
        listed("/a/x", json!({"host": "a.test"})),
    ] {
        unharmed(&stored, &[(ROUTE, "9", ordinary)]);
    }
}

#[test]
fn a_route_with_the_lowest_key_is_in_front() {
    let stored = [(ROUTE, "5", listed("/a", json!({})))];
    assert_eq!(weaker(&stored, &[(ROUTE, "4", open("/a", json!({})))]), ["route/4: uris"]);
    unharmed(&stored, &[(ROUTE, "6", open("/a", json!({})))]);
}

#[test]
fn predicates_and_methods_separate_routes() {
    let version = |version: &str| json!([["arg_version", "==", version]]);
    let stored = [(ROUTE, "1", listed("/a", json!({"vars": version("1"), "methods": ["GET"]})))];
    let canary = |more: Value| open("/a", with(json!({"vars": version("2"), "priority": 9}), more));
    unharmed(&stored, &[(ROUTE, "2", canary(json!({})))]);
    unharmed(&stored, &[(ROUTE, "2", canary(json!({"vars": [], "methods": ["POST"]})))]);
    for vars in [json!([]), json!([["arg_version", "~=", "2"]]), json!([["arg_other", "==", "2"]])] {
        let taking = canary(json!({"vars": vars}));
        assert_eq!(weaker(&stored, &[(ROUTE, "2", taking)]), ["route/2: uris"], "{vars}");
    }
}

#[test]
fn a_restricted_route_gives_nothing_up() {
    let stored = [(ROUTE, "1", listed("/a/*", json!({"hosts": ["a.test", "b.test"]})))];
    for narrower in [
        Value::Null,
        listed("/a/*", json!({"hosts": ["a.test", "b.test"], "status": 0})),
        listed("/a/b", json!({"hosts": ["a.test", "b.test"]})),
        listed("/a/*", json!({"hosts": ["a.test"]})),
        listed("/a/*", json!({"hosts": ["a.test", "b.test"], "methods": ["GET"]})),
    ] {
        assert_eq!(weaker(&stored, &[(ROUTE, "1", narrower.clone())]), ["route/1: uris"], "{narrower}");
    }
    // A lower priority only matters where another route is in between.
    let lower = (ROUTE, "1", listed("/a/*", json!({"hosts": ["a.test", "b.test"], "priority": -1})));
    unharmed(&stored, std::slice::from_ref(&lower));
    let between = [stored[0].clone(), (ROUTE, "2", open("/a/*", json!({"host": "a.test"})))];
    assert_eq!(weaker(&between, &[lower]), ["route/1: uris"]);
    unharmed(&stored, &[(ROUTE, "1", listed("/*", json!({})))]);
}

#[test]
fn a_move_within_one_change_weakens_nothing() {
    let guarded = listed("/a/*", json!({"host": "a.test"}));
    let stored = [(ROUTE, "5", guarded.clone()), (ROUTE, "6", open("/*", json!({})))];
    let gone = (ROUTE, "5", Value::Null);
    for successor in [guarded.clone(), listed("/*", json!({"host": "a.test"}))] {
        unharmed(&stored, &[gone.clone(), (ROUTE, "7", successor)]);
    }
    // The successor is behind another route, or restricts less.
    let weakened = ["route/5: uris"];
    let general = listed("/*", json!({}));
    assert_eq!(weaker(&stored, &[gone.clone(), (ROUTE, "7", general)]), weakened);
    let wider = with(guarded, json!({"client_identity": {"allow": [{"dns": "*.example"}]}}));
    assert_eq!(weaker(&stored, &[gone, (ROUTE, "7", wider)]), weakened);
}

#[test]
fn two_writes_that_weaken_together_weaken() {
    // One removal alone leaves the list of the other route.
    let stored = [
        (ROUTE, "1", listed("/a", json!({"priority": 5}))),
        (ROUTE, "2", listed("/a", json!({"priority": 4}))),
        (ROUTE, "3", open("/a", json!({"priority": 3}))),
    ];
    let gone = |own: &'static str| (ROUTE, own, Value::Null);
    unharmed(&stored, &[gone("1")]);
    unharmed(&[stored[0].clone(), stored[1].clone()], &[gone("2")]);
    assert_eq!(weaker(&stored, &[gone("1"), gone("2")]), ["route/1: uris", "route/2: uris"]);
}

/// Route 1 is no part of the write: another writer may remove it, or it expires.
#[test]
fn a_route_that_is_not_written_hides_no_taker() {
    let list = json!({"client_identity": {"allow": [{"dns": "a.example"}]}});
    let stored = [
        (Kind::Service, "s", list.clone()),
        (ROUTE, "1", open("/a", json!({"priority": 5, "service_id": "s"}))),
        (ROUTE, "2", listed("/a", json!({"priority": 3}))),
    ];
    let taker = (ROUTE, "3", open("/a", json!({"priority": 4})));
    assert_eq!(weaker(&stored, std::slice::from_ref(&taker)), ["route/3: uris"]);
    let with_service = [(Kind::Service, "s", with(list, json!({"desc": "x"}))), taker];
    assert_eq!(weaker(&stored, &with_service), ["route/3: uris"]);
}

#[test]
fn what_protects_instead_is_relied_on() {
    let stored = ["1", "2", "3"].map(|own| (ROUTE, own, listed("/a", json!({}))));
    let before = Snapshot::from_resources(0, resources(&stored));
    let key = |own: &str| Key::new(ROUTE, id(own));
    let removed = weakenings_of_change(&before, &delta(vec![], vec![key("1")]));
    assert_eq!(removed, ChangeWeakenings { found: vec![], relied_on: [key("2")].into() });
    let replaced = delta(resources(&stored[1..2]), vec![key("1")]);
    assert_eq!(weakenings_of_change(&before, &replaced), ChangeWeakenings::default());
}

#[test]
fn what_a_route_takes_its_protection_from_is_relied_on() {
    let node = json!({"nodes": {"127.0.0.1:1": 1}});
    let list = json!({"client_identity": {"allow": [{"dns": "a.example"}]}});
    let secure = |own: &'static str| (Kind::Upstream, own, with(node.clone(), json!({"scheme": "https"})));
    let stored = [
        secure("v"),
        secure("w"),
        (Kind::Service, "s", list.clone()),
        (Kind::Service, "t", list.clone()),
        (Kind::Service, "u", with(list.clone(), json!({"upstream_id": "w"}))),
        (ROUTE, "1", listed("/a", json!({}))),
        (ROUTE, "2", open("/b", json!({"service_id": "s"}))),
        (ROUTE, "3", json!({"uri": "/c", "upstream_id": "v"})),
        (ROUTE, "4", open("/d", json!({"service_id": "s"}))),
        (ROUTE, "5", listed("/d", json!({}))),
        (ROUTE, "6", json!({"uri": "/e", "upstream_id": "v"})),
        (Kind::StreamRoute, "1", json!({"upstream_id": "v", "server_port": 9100})),
        (Kind::Service, "own", json!({"upstream_id": "v"})),
    ];
    let before = Snapshot::from_resources(0, resources(&stored));
    let relied_on = |kind: Kind, own: &'static str, document: Value| {
        let removals = if document.is_null() { vec![Key::new(kind, id(own))] } else { vec![] };
        let change = delta(resources(&[(kind, own, document.clone())]), removals);
        let ChangeWeakenings { found, relied_on } = weakenings_of_change(&before, &change);
        assert_eq!(found, vec![], "{document}");
        relied_on.into_iter().map(|key| key.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(relied_on(ROUTE, "1", open("/a", json!({"service_id": "t"}))), ["services/t"]);
    assert_eq!(relied_on(ROUTE, "2", open("/b", json!({"service_id": "t"}))), ["services/t"]);
    assert_eq!(relied_on(ROUTE, "2", open("/b", json!({"service_id": "s", "desc": "x"}))), [""; 0]);
    assert_eq!(relied_on(ROUTE, "2", listed("/b", json!({"service_id": "t"}))), [""; 0]);
    assert_eq!(relied_on(ROUTE, "5", Value::Null), ["services/s", "routes/4"], "its list is another's");
    assert_eq!(relied_on(ROUTE, "6", json!({"uri": "/e", "upstream_id": "w"})), ["upstreams/w"]);
    assert_eq!(relied_on(ROUTE, "6", json!({"uri": "/e", "service_id": "u"})), ["upstreams/w", "services/u"]);
    assert_eq!(relied_on(ROUTE, "3", json!({"uri": "/c", "upstream_id": "v", "desc": "x"})), [""; 0]);
    assert_eq!(relied_on(Kind::Service, "own", json!({"upstream_id": "w"})), ["upstreams/w"]);
    let stream = json!({"upstream_id": "w", "server_port": 9100});
    assert_eq!(relied_on(Kind::StreamRoute, "1", stream), ["upstreams/w"]);
}

#[test]
fn the_list_of_a_service_protects_its_routes() {
    let everywhere = json!({"client_identity": {"allow": [{"dns": "a.example"}]}});
    let service = |hosts: Value| with(everywhere.clone(), json!({"hosts": hosts}));
    let of_service = |more: Value| open("/a", with(json!({"service_id": "s"}), more));
    let stored = [
        (Kind::Service, "s", service(json!(["a.test", "b.test"]))),
        (Kind::Service, "t", json!({})),
        (Kind::Service, "u", service(json!(["a.test", "b.test"]))),
        (ROUTE, "1", of_service(json!({}))),
    ];
    let route = |document: Value| weaker(&stored, &[(ROUTE, "1", document)]);
    for weakened in [
        Value::Null,
        of_service(json!({"status": 0})),
        of_service(json!({"uri": "/b"})),
        of_service(json!({"host": "a.test"})),
        of_service(json!({"methods": ["GET"]})),
    ] {
        assert_eq!(route(weakened.clone()), ["route/1: uris"], "{weakened}");
    }
    assert_eq!(route(of_service(json!({"service_id": "t"}))), ["route/1: client_identity.allow"]);
    assert_eq!(
        route(of_service(json!({"client_identity": {"forward": ["xfcc"]}}))),
        ["route/1: client_identity.allow"]
    );
    unharmed(&stored, &[(ROUTE, "1", of_service(json!({"service_id": "u"})))]);
    unharmed(&stored, &[(ROUTE, "1", listed("/a", json!({"service_id": "s"})))]);
    let narrowed = (Kind::Service, "s", service(json!(["a.test"])));
    assert_eq!(weaker(&stored, &[narrowed]), ["service/s: uris"]);
    unharmed(&stored, &[(Kind::Service, "s", service(json!(["a.test", "b.test", "c.test"])))]);
    unharmed(&stored, &[(Kind::Service, "s", everywhere.clone())]);
    unharmed(&stored, &[(Kind::Service, "u", Value::Null)]);
    let removed = weaker(&stored, &[(Kind::Service, "s", Value::Null)]);
    assert_eq!(removed, ["service/s: client_identity"], "by force, its routes refer to it");
}

#[test]
fn references_to_upstreams_are_resolved() {
    let node = json!({"127.0.0.1:1": 1});
    let verified = json!({"nodes": node, "scheme": "https", "tls": {"verify": true}});
    let (unverified, clear) = (json!({"nodes": node, "scheme": "https"}), json!({"nodes": node}));
    let stored = |kind: Kind, user: Value| {
        [
            (Kind::Upstream, "v", verified.clone()),
            (Kind::Upstream, "u", unverified.clone()),
            (Kind::Upstream, "c", clear.clone()),
            (Kind::Service, "s", json!({"upstream_id": "v"})),
            (Kind::Service, "none", json!({})),
            (kind, "1", user),
        ]
    };
    let users = [(ROUTE, json!({"uri": "/a"})), (Kind::Service, json!({})), (Kind::StreamRoute, json!({}))];
    for (kind, user) in users {
        let to = |target: Value| with(user.clone(), target);
        let secured = [to(json!({"upstream_id": "v"})), to(json!({"upstream": verified}))];
        for old in &secured {
            let weaker = |new: Value| weaker(&stored(kind, old.clone()), &[(kind, "1", new)]);
            for (weak, field) in [("u", "tls.verify"), ("c", "scheme")] {
                let expected = [format!("{}/1: upstream.{field}", kind.singular())];
                assert_eq!(weaker(to(json!({"upstream_id": weak}))), expected, "{old}");
            }
            for new in &secured {
                assert_eq!(weaker(new.clone()), [""; 0], "{old} -> {new}");
            }
            // The next write could add one in clear.
            let nowhere = if kind == Kind::Service { json!({}) } else { json!({"service_id": "none"}) };
            assert_eq!(weaker(to(nowhere)), [format!("{}/1: upstream", kind.singular())], "{old}");
            if kind != Kind::Service {
                assert_eq!(weaker(to(json!({"service_id": "s"}))), [""; 0]);
            }
        }
    }
    let stored = stored(ROUTE, json!({"uri": "/a", "service_id": "s"}));
    let moved = (Kind::Service, "s", json!({"upstream_id": "c"}));
    assert_eq!(weaker(&stored, &[moved]), ["service/s: upstream.scheme"]);
    let removed = weaker(&stored, &[(Kind::Upstream, "v", Value::Null)]);
    assert_eq!(removed, ["upstream/v: scheme"], "the next one may be plain");
    unharmed(&stored, &[(Kind::Upstream, "u", Value::Null)]);
    let removed = weaker(&stored, &[(Kind::Service, "s", Value::Null)]);
    assert_eq!(removed, ["service/s: upstream"], "a route goes to its upstream");
}

fn root(name: &str) -> Authority {
    Authority::root(&AuthoritySpec::new(name)).unwrap()
}

static AUTHORITIES: LazyLock<[Authority; 2]> = LazyLock::new(|| [root("One"), root("Two")]);

fn policy(authorities: &[&Authority], skip: &[&str]) -> Arc<ClientAuth> {
    let input = ClientAuthInput {
        anchors: authorities.iter().map(|authority| authority.certificate().clone()).collect(),
        depth: 1,
        skip_uri_patterns: skip.iter().map(|&pattern| pattern.to_owned()).collect(),
        ..ClientAuthInput::default()
    };
    Arc::new(ClientAuth::new(input).unwrap())
}

static POLICIES: LazyLock<[Arc<ClientAuth>; 4]> = LazyLock::new(|| {
    let [one, two] = &*AUTHORITIES;
    [policy(&[one], &[]), policy(&[two], &[]), policy(&[one, two], &[]), policy(&[one], &["^/a$"])]
});

/// An enabled site; `client` is an index into the policies.
fn site(own: &str, names: &[&str], client: Option<usize>) -> Resource {
    let client = client.map(|index| POLICIES[index].clone());
    Resource::Ssl(Arc::new(Ssl { names: patterns(names), client, ..Ssl::new(id(own)) }))
}

fn weaker_sites(before: &[Resource], upserts: &[Resource], removals: &[&str]) -> Vec<String> {
    let all = |resources: &[Resource]| resources.iter().cloned().map(versioned).collect::<Vec<_>>();
    let removals = removals.iter().map(|own| Key::new(Kind::Ssl, id(own))).collect();
    let before = Snapshot::from_resources(0, all(before));
    let found = weakenings_of_change(&before, &delta(all(upserts), removals)).found;
    found.into_iter().map(|(key, weakening)| format!("{}: {}", key.id, weakening.field)).collect()
}

#[test]
fn a_site_that_takes_a_protected_name_weakens() {
    let stored = [
        site("5", &["a.test", "*.a.test"], Some(0)),
        site("6", &["b.test"], None),
        site("7", &["*.b.test"], Some(2)),
    ];
    let weaker = |upserts: &[Resource]| weaker_sites(&stored, upserts, &[]);
    for (names, client) in [
        (vec!["a.test"], None),
        (vec!["c.test", "a.test"], None),
        (vec!["x.a.test"], None),
        (vec!["*.a.test"], None),
        (vec!["a.test"], Some(1)),
        (vec!["a.test"], Some(2)),
        (vec!["x.a.test"], Some(3)),
    ] {
        assert_eq!(weaker(&[site("4", &names, client)]), ["4: snis"], "{names:?} {client:?}");
        // A site that exists gets the name.
        let grown = [names.as_slice(), &["d.test"]].concat();
        let off = Ssl { enabled: false, names: patterns(&names), ..Ssl::new(id("3")) };
        let stored =
            [stored.as_slice(), &[site("4", &["d.test"], client), Resource::Ssl(Arc::new(off))]].concat();
        assert_eq!(weaker_sites(&stored, &[site("4", &grown, client)], &[]), ["4: snis"], "{grown:?}");
        let enabled = weaker_sites(&stored, &[site("3", &names, None)], &[]);
        assert_eq!(enabled, ["3: snis"], "{names:?}");
    }
    for (own, names, client) in [
        ("8", vec!["a.test"], None),
        ("4", vec!["c.test", "*.c.test", "test", "b.test"], None),
        ("4", vec!["*"], None),
        ("4", vec!["*.test"], None),
        ("4", vec!["a.test", "x.a.test"], Some(0)),
        ("4", vec!["x.b.test"], Some(1)),
    ] {
        assert_eq!(weaker(&[site(own, &names, client)]), [""; 0], "{own} {names:?} {client:?}");
    }
    let blocked = block(site("4", &["a.test"], None));
    assert_eq!(weaker(std::slice::from_ref(&blocked)), [""; 0]);
    assert_eq!(weaker_sites(&[blocked], &[site("3", &["a.test"], None)], &[]), ["3: snis"]);
}

#[test]
fn a_wildcard_takes_deep_names_from_a_site_of_every_name() {
    let stored = [site("5", &["*"], Some(0))];
    // "x.y.test" has no site then, so it belongs to the site of the connection.
    assert_eq!(weaker_sites(&stored, &[site("6", &["*.test"], Some(0))], &[]), ["6: snis"]);
    assert_eq!(weaker_sites(&stored, &[site("6", &["y.test"], Some(0))], &[]), [""; 0]);
}

#[test]
fn a_name_is_kept_by_another_site() {
    let stored = [site("5", &["a.test"], Some(0)), site("6", &["*.test"], Some(0))];
    assert_eq!(weaker_sites(&stored, &[], &["5"]), [""; 0], "the wildcard requires as much");
    assert_eq!(weaker_sites(&stored, &[], &["6"]), ["6: snis"]);
    assert_eq!(weaker_sites(&stored, &[], &["5", "6"]), ["5: snis", "6: snis"]);
    assert_eq!(weaker_sites(&stored, &[site("9", &["*.test"], Some(0))], &["6"]), [""; 0], "it moves");
    assert_eq!(weaker_sites(&stored, &[site("5", &["b.test"], Some(0))], &[]), [""; 0]);
    let open = [stored.as_slice(), &[site("7", &["a.test"], None)]].concat();
    assert_eq!(weaker_sites(&open, &[], &["5"]), ["5: snis"], "the open site was behind");
    let renamed = site("8", &["a.test"], Some(0));
    assert_eq!(weaker_sites(&open, &[renamed], &["5"]), ["5: snis"], "8 is behind 7");
    let mut weaker = vec![site("5", &["a.test"], None)];
    assert_eq!(weaker_sites(&stored, &weaker, &[]), ["5: client"]);
    weaker.push(site("1", &["a.test"], Some(0)));
    assert_eq!(weaker_sites(&stored, &weaker, &[]), ["5: client"], "a later write may remove the other");
}

#[test]
fn a_blocked_global_rule_denies_as_long_as_one_is_left() {
    let rule = |own: &str| {
        let rule = GlobalRule { id: id(own), proxy_rewrite: None, blocked: None };
        versioned(Resource::GlobalRule(Arc::new(rule)))
    };
    let blocked = |own: &str| versioned(block(rule(own).resource));
    let two = Snapshot::from_resources(0, [blocked("1"), blocked("2")]);
    let removed =
        |own: &[&str]| delta(vec![], own.iter().map(|own| Key::new(Kind::GlobalRule, id(own))).collect());
    let left = weakenings_of_change(&two, &removed(&["1"]));
    let other = Key::new(Kind::GlobalRule, id("2"));
    assert_eq!(left, ChangeWeakenings { found: vec![], relied_on: [other].into() });
    assert_eq!(weakenings_of_change(&two, &removed(&["1", "2"])).found.len(), 2);
    let one = two.apply(&removed(&["1"]));
    assert_eq!(weakenings_of_change(&one, &delta(vec![rule("2")], vec![])).found.len(), 1);
}

const NAMES: [&str; 4] = ["a.test", "b.a.test", "x.b.a.test", "c.test"];
const PATTERNS: [&str; 6] = ["a.test", "b.a.test", "*.a.test", "*.test", "*a.test", "*"];
const PATHS: [&str; 3] = ["/a", "/a/b", "/c"];
const URIS: [&str; 6] = ["/a", "/a/*", "/*", "/a*", "/*/b", "/c"];
const IDS: [&str; 3] = ["1", "2", "3"];

type Verified = Result<Arc<VerifiedClient>, VerifyReason>;

/// Clients: none, two of authority One, one of authority Two with the first one's name.
static VERIFIED: LazyLock<Vec<[Verified; 3]>> = LazyLock::new(|| {
    let [one, two] = &*AUTHORITIES;
    let clients = [(one, "a.example"), (one, "b.example"), (two, "a.example")]
        .map(|(authority, name)| authority.issue(&LeafSpec::client("client").dns(name)).unwrap().certificate);
    let verify = |policy: &ClientAuth, client: &pki::Certificate| {
        let verified = pki::verify_client(policy, client.der(), &[], UnixTime::now());
        verified.map(Arc::new).map_err(|error| error.reason())
    };
    let of_policy = |policy: &Arc<ClientAuth>| clients.each_ref().map(|client| verify(policy, client));
    POLICIES.iter().map(of_policy).collect()
});

/// A request of a client: an index into the clients, or none.
#[derive(Debug, Clone, Copy)]
struct Request {
    sni: &'static str,
    host: &'static str,
    path: &'static str,
    method: &'static str,
    version: &'static str,
    remote: IpAddr,
    client: Option<usize>,
}

#[derive(Debug)]
struct VersionArgument(&'static str);

impl Variables for VersionArgument {
    fn value(&self, variable: &Variable) -> Option<Cow<'_, str>> {
        matches!(variable, Variable::Arg(_)).then(|| self.0.into())
    }

    fn values(&self, _: &Variable) -> &[String] {
        &[]
    }
}

#[derive(Debug, Clone)]
enum Verdict {
    /// By the policy of a site or a blocked global rule.
    Denied,
    /// By a blocked site of this name.
    BlockedSite(HostName),
    /// By a blocked route, or what it refers to.
    Blocked,
    /// By this allow-list.
    NotListed(Box<ClientIdentity>),
    Allowed {
        client: ClientVerification,
        is_listed: bool,
    },
    /// The site of the Host accepts the client on no connection.
    Misdirected,
    /// The SNI has no site.
    NoSite,
    NoRoute,
    /// For another reason than the client.
    Failed,
}

fn verdict(snapshot: &Snapshot, request: &Request) -> Verdict {
    let sni = HostName::from_sni(request.sni).unwrap();
    let Some(site) = snapshot.site(&sni) else { return Verdict::NoSite };
    if site.blocked.is_some() {
        return Verdict::BlockedSite(sni);
    }
    let client = match (&site.client, request.client) {
        (None, _) => ClientVerification::NotRequested,
        (Some(_), None) => ClientVerification::NoCertificate,
        (Some(policy), Some(client)) => {
            let index = POLICIES.iter().position(|known| known.digest() == policy.digest()).unwrap();
            VERIFIED[index][client]
                .clone()
                .map_or_else(ClientVerification::Rejected, ClientVerification::Verified)
        }
    };
    let target = RequestTarget::new(None, Some(request.host), request.path, PathOptions::default()).unwrap();
    let connection = ConnectionAuth { sni: &sni, ssl: Some(site), client: &client };
    let client = match admit(&connection, snapshot, &target) {
        Ok(client) => client,
        Err(Reason::BlockedSite) => return Verdict::BlockedSite(target.host.unwrap()),
        // What a connection of its own meets.
        Err(Reason::Misdirected) => {
            let own = verdict(snapshot, &Request { sni: request.host, ..*request });
            return if matches!(own, Verdict::Denied) { Verdict::Misdirected } else { Verdict::Failed };
        }
        Err(_) => return Verdict::Denied,
    };
    let variables = VersionArgument(request.version);
    let found = destination::find(snapshot, &target, request.method, request.remote, &variables);
    match found.map(|destination| destination.client_identity) {
        Ok(Some(block)) if !block.allows(client.identity()) => Verdict::NotListed(Box::new(block.clone())),
        Ok(block) => Verdict::Allowed {
            client: client.clone(),
            is_listed: block.is_some_and(ClientIdentity::has_allow_list),
        },
        Err(Reason::BlockedGlobalRule) => Verdict::Denied,
        Err(Reason::BlockedRoute | Reason::BlockedPluginConfig | Reason::BlockedService) => Verdict::Blocked,
        Err(Reason::NoRoute) => Verdict::NoRoute,
        Err(_) => Verdict::Failed,
    }
}

/// Whether a client that was denied is not any more.
fn opens(before: Verdict, after: &Verdict, state: &Snapshot) -> bool {
    let (client, is_listed) = match after {
        Verdict::Allowed { client, is_listed } => (client.identity(), *is_listed),
        Verdict::NoRoute => (None, false),
        Verdict::NoSite => return matches!(before, Verdict::Denied),
        _ => return false,
    };
    match before {
        Verdict::Denied | Verdict::Misdirected => true,
        Verdict::BlockedSite(name) => state.site(&name).is_none_or(|site| site.client.is_none()),
        Verdict::Blocked => !is_listed,
        // A site that requests certificates now shows who the client is.
        Verdict::NotListed(block) => !block.allows(client),
        _ => false,
    }
}

fn requests() -> Vec<Request> {
    let mut found = Vec::new();
    let variants = [("GET", "1", [10, 0, 0, 1]), ("POST", "1", [127, 0, 0, 1]), ("GET", "2", [10, 0, 0, 1])];
    for (sni, host) in NAMES.iter().flat_map(|sni| NAMES.iter().map(move |host| (sni, host))) {
        for (path, client) in
            PATHS.iter().flat_map(|path| [None, Some(0), Some(1), Some(2)].map(|client| (path, client)))
        {
            found.extend(variants.map(|(method, version, remote)| Request {
                sni,
                host,
                path,
                method,
                version,
                remote: remote.into(),
                client,
            }));
        }
    }
    found
}

fn some_names(least: usize, most: usize) -> impl Strategy<Value = Vec<NamePattern>> {
    subsequence(PATTERNS.to_vec(), least..=most).prop_map(|texts| patterns(&texts))
}

fn some_id() -> impl Strategy<Value = Id> {
    select(IDS.to_vec()).prop_map(id)
}

fn some_identity() -> impl Strategy<Value = Option<Arc<ClientIdentity>>> {
    option::of(select(vec![
        json!({"allow": [{"dns": "a.example"}]}),
        json!({"allow": [{"dns": "b.example"}, {"dns": "a.example"}]}),
        json!({"allow": [{"dns": "*.example"}]}),
        json!({"forward": ["xfcc"]}),
    ]))
    .prop_map(|source| source.map(|source| Arc::new(ClientIdentity::compile(&source).unwrap())))
}

prop_compose! {
    fn some_site()(
        own in some_id(), names in some_names(1, 2), client in option::of(0..4_usize),
        enabled in prop::bool::weighted(0.9),
    ) -> Resource {
        let client = client.map(|index| POLICIES[index].clone());
        Resource::Ssl(Arc::new(Ssl { names, client, enabled, ..Ssl::new(own) }))
    }
}

prop_compose! {
    fn some_route()(
        own in some_id(), hosts in some_names(0, 1), uris in subsequence(URIS.to_vec(), 1..=2),
        method in option::weighted(0.3, select(vec![RouteMethod::Get, RouteMethod::Post])),
        local in prop::bool::weighted(0.2), priority in 0..2_i32, enabled in prop::bool::weighted(0.9),
        service in option::of(some_id()), plugin_config in option::weighted(0.2, some_id()),
        client_identity in some_identity(), version in option::weighted(0.3, select(vec!["1", "2"])),
    ) -> Resource {
        let vars = version.map(|version| Vars::compile(&json!([["arg_v", "==", version]])).unwrap());
        let route = to_route(own.as_str(), &open("/", json!({})));
        Resource::Route(Arc::new(Route {
            hosts, priority, enabled, service, plugin_config, client_identity,
            uris: uris.iter().map(|uri| UriPattern::parse(uri).unwrap()).collect(),
            methods: method.into_iter().collect(), vars: vars.unwrap_or_default(),
            remote_addrs: if local { vec!["127.0.0.0/8".parse().unwrap()] } else { vec![] },
            ..(*route).clone()
        }))
    }
}

prop_compose! {
    fn some_service()(own in some_id(), hosts in some_names(0, 1), client_identity in some_identity()) -> Resource {
        let service = Service { id: own, hosts, upstream: None, client_identity, proxy_rewrite: None, enable_websocket: false, blocked: None };
        Resource::Service(Arc::new(service))
    }
}

fn some_resource() -> impl Strategy<Value = Versioned> {
    let config =
        |id| Resource::PluginConfig(Arc::new(PluginConfig { id, proxy_rewrite: None, blocked: None }));
    let rule = |id| Resource::GlobalRule(Arc::new(GlobalRule { id, proxy_rewrite: None, blocked: None }));
    let resource = prop_oneof![
        4 => some_site(),
        6 => some_route(),
        2 => some_service(),
        2 => some_id().prop_map(config),
        1 => some_id().prop_map(rule),
    ];
    (resource, prop::bool::weighted(0.1)).prop_map(|(resource, is_blocked)| {
        let is_rule = matches!(resource, Resource::GlobalRule(_));
        // A blocked rule denies everything, so there are few.
        versioned(if is_blocked && !is_rule { block(resource) } else { resource })
    })
}

fn some_change(state: Snapshot) -> impl Strategy<Value = (Snapshot, Delta)> {
    let keys: Vec<Key> = state.versions().map(|(key, _)| key).collect();
    let most = keys.len().min(3);
    (subsequence(keys, 0..=most), vec(some_resource(), 0..3)).prop_map(move |(mut removals, upserts)| {
        removals.retain(|key| upserts.iter().all(|upsert| upsert.resource.key() != *key));
        (state.clone(), delta(upserts, removals))
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    /// The functions that decide about requests are the judges.
    #[test]
    fn a_client_gets_in_only_by_a_weakening(
        (before, change) in vec(some_resource(), 0..10)
            .prop_map(|resources| Snapshot::from_resources(0, resources)).prop_flat_map(some_change)
    ) {
        let after = before.apply(&change);
        let opened = requests().into_iter().find(|request| {
            opens(verdict(&before, request), &verdict(&after, request), &after)
        });
        if let Some(request) = opened {
            prop_assert_ne!(weakenings_of_change(&before, &change).found, vec![], "{:?}\n{}", request, shown(&before));
        }
    }
}

fn to_route(own: &str, document: &Value) -> Arc<Route> {
    match crate::compile(ROUTE, &id(own), document, &Keyring::empty()).unwrap() {
        Resource::Route(route) => route,
        other => panic!("{other:?}"),
    }
}

/// What decides about requests, for a failed test.
fn shown(state: &Snapshot) -> String {
    let shown = |versioned: &Versioned| match &versioned.resource {
        Resource::Ssl(ssl) => {
            let digests = ssl.client.as_deref().map(ClientAuth::digest);
            let policy = POLICIES.iter().position(|policy| Some(policy.digest()) == digests);
            format!("ssl {} {:?} {policy:?} {:?}", ssl.id, ssl.names, ssl.blocked)
        }
        other => format!("{other:?}"),
    };
    state.resources().map(shown).collect::<Vec<_>>().join("\n")
}

proptest! {
    #[test]
    fn writing_what_is_stored_weakens_nothing(state in some_snapshot(), chosen in vec(any::<bool>(), 24)) {
        let chosen = state.resources().zip(chosen).filter(|(_, chosen)| *chosen);
        let again = delta(chosen.map(|(stored, _)| stored.clone()).collect(), vec![]);
        prop_assert_eq!(weakenings_of_change(&state, &again).found, vec![]);
    }

    /// A change of one resource alone is weaker than what replaces it, or what it hides.
    #[test]
    fn stream_routes_that_were_closed_are_reported(
        resources in vec(some_versioned().boxed(), 0..12), upsert in some_versioned().boxed(), removed in any::<prop::sample::Index>(),
        sni in option::of(select(NAMES.to_vec())), port in 9099..9102_u16, remote in select(vec![[127, 0, 0, 1], [10, 0, 0, 1]]),
    ) {
        let before = Snapshot::from_resources(0, resources);
        let keys: Vec<Key> = before.versions().map(|(key, _)| key).filter(|key| *key != upsert.resource.key()).collect();
        let removals = if keys.is_empty() { vec![] } else { vec![removed.get(&keys).clone()] };
        let change = delta(vec![upsert], removals);
        let after = before.apply(&change);
        let sni = sni.map(|sni| HostName::from_sni(sni).unwrap());
        let query = StreamQuery { sni: sni.as_ref(), remote: remote.into(), server: ([192, 0, 2, 80], port).into() };
        let is_blocked = |state: &Snapshot| {
            let route: Option<&Arc<StreamRoute>> = state.find_stream_route(&query);
            route.map(|route| stream_entries::is_blocked(state, route))
        };
        if is_blocked(&before) == Some(true) && is_blocked(&after) != Some(true) {
            prop_assert_ne!(weakenings_of_change(&before, &change).found, vec![]);
        }
    }
}

#[test]
fn an_incomplete_comparison_is_a_weakening() {
    let (empty, key) = (Snapshot::empty(), Key::new(Kind::Route, Id::parse("1").unwrap()));
    let change = Change { before: &empty, after: &empty, keys: [&key].into_iter().collect() };
    let mut all = ChangeWeakenings::default();
    change.note_end(true, &mut all);
    assert!(all.found.is_empty());
    change.note_end(false, &mut all);
    let keys: Vec<_> = all.found.iter().map(|(key, _)| key.clone()).collect();
    assert_eq!(keys, [key], "nothing was found that a changed resource causes");
}
