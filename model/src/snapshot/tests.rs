//! The lookups against the contract's cases and against a slow, direct implementation of its rules;
//! the law of deltas over random resources.

mod streams;

use std::cmp::Reverse;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::pattern::NamePattern;
use crate::resource::RouteMethod;
use crate::samples::{PAIRS, id, patterns, some_snapshot, some_versioned};
use crate::uri::UriPattern;

fn name(text: &str) -> HostName {
    HostName::from_sni(text).unwrap()
}

fn ssl(own: &str, names: &[&str]) -> Ssl {
    Ssl { names: patterns(names), pairs: vec![PAIRS[0].clone()], ..Ssl::new(id(own)) }
}

fn route(own: &str, uris: &[&str], hosts: &[&str]) -> Route {
    Route {
        id: id(own),
        uris: uris.iter().map(|uri| UriPattern::parse(uri).unwrap()).collect(),
        hosts: patterns(hosts),
        methods: Default::default(),
        remote_addrs: Vec::new(),
        priority: 0,
        enabled: true,
        upstream: None,
        service: None,
        timeout: None,
        vars: Default::default(),
        client_identity: None,
        proxy_rewrite: None,
        enable_websocket: None,
        plugin_config: None,
        blocked: None,
    }
}

fn snapshot(resources: Vec<Resource>) -> Snapshot {
    Snapshot::from_resources(1, resources.into_iter().map(|resource| Versioned { version: 1, resource }))
}

fn sites(ssls: Vec<Ssl>) -> Snapshot {
    snapshot(ssls.into_iter().map(|ssl| Resource::Ssl(Arc::new(ssl))).collect())
}

fn routed(routes: Vec<Route>) -> Snapshot {
    snapshot(routes.into_iter().map(|route| Resource::Route(Arc::new(route))).collect())
}

#[track_caller]
fn site<'a>(snapshot: &'a Snapshot, sni: &str) -> Option<&'a str> {
    snapshot.site(&name(sni)).map(|ssl| ssl.id.as_str())
}

#[track_caller]
fn found<'a>(snapshot: &'a Snapshot, host: &str, path: &str) -> Option<&'a str> {
    asked(snapshot, host, path, "GET", "192.0.2.1")
}

#[track_caller]
fn asked<'a>(snapshot: &'a Snapshot, host: &str, path: &str, method: &str, remote: &str) -> Option<&'a str> {
    let host = HostName::from_host(host);
    let query = RouteQuery {
        host: host.as_ref(),
        path,
        method,
        remote: remote.parse().unwrap(),
        variables: &crate::variable::NoVariables,
    };
    snapshot.find_route(&query).map(|route| route.id.as_str())
}

// === sites ===

#[test]
fn exact_beats_wildcard_beats_catch_all() {
    let all = sites(vec![ssl("1", &["*"]), ssl("2", &["*.api7.dev"]), ssl("3", &["Specific.api7.dev."])]);
    assert_eq!(site(&all, "specific.api7.dev"), Some("3"));
    assert_eq!(site(&all, "SPECIFIC.api7.dev."), Some("3"));
    assert_eq!(site(&all, "other.api7.dev"), Some("2"));
    assert_eq!(site(&all, "api7.dev"), Some("1"));
    assert_eq!(site(&all, "a.b.c"), Some("1"));
}

#[test]
fn a_wildcard_covers_one_label_and_hides_shorter_ones() {
    let all = sites(vec![ssl("1", &["*.test2.com"]), ssl("2", &["*"])]);
    assert_eq!(site(&all, "aa.test2.com"), Some("1"));
    assert_eq!(site(&all, "aa.bb.test2.com"), None);
    assert_eq!(site(&all, "test2.com"), Some("2"));
    // The shorter entry does not inherit the length of the longer one.
    let listed = sites(vec![ssl("1", &["*.test2.com", "a.very.long.name.test2.com"])]);
    assert_eq!(site(&listed, "aa.bb.test2.com"), None);
}

#[test]
fn the_longest_wildcard_wins() {
    let all = sites(vec![ssl("1", &["*.com"]), ssl("2", &["*.b.com"]), ssl("3", &["*.a.b.com"])]);
    assert_eq!(site(&all, "x.a.b.com"), Some("3"));
    assert_eq!(site(&all, "x.b.com"), Some("2"));
    assert_eq!(site(&all, "b.com"), Some("1"));
    assert_eq!(site(&all, "y.x.b.com"), None);
}

#[test]
fn a_wildcard_without_dot_covers_part_of_a_label() {
    let all = sites(vec![ssl("1", &["*x.com"]), ssl("2", &["*.com"])]);
    assert_eq!(site(&all, "foox.com"), Some("1"));
    assert_eq!(site(&all, "x.com"), Some("1"));
    assert_eq!(site(&all, "y.com"), Some("2"));
    assert_eq!(site(&all, "a.x.com"), None);
    let gone = all.apply(&Delta { from: 1, to: 2, upserts: vec![], removals: vec![key(Kind::Ssl, "1")] });
    assert_eq!(site(&gone, "foox.com"), Some("2"));
}

#[test]
fn disabled_and_client_ssls_match_no_name() {
    let off = Ssl { enabled: false, ..ssl("1", &["a.com"]) };
    let identity = Ssl { client_side: true, ..ssl("2", &["b.com"]) };
    let all = sites(vec![off, identity]);
    assert_eq!(site(&all, "a.com"), None);
    assert_eq!(site(&all, "b.com"), None);
    assert!(all.ssl(&id("1")).is_some() && all.ssl(&id("2")).is_some());
}

#[test]
fn the_lowest_key_wins_a_name_whatever_the_order() {
    for order in [["1", "10", "2"], ["2", "10", "1"], ["10", "2", "1"]] {
        let all = sites(order.iter().map(|own| ssl(own, &["a.com"])).collect());
        assert_eq!(site(&all, "a.com"), Some("1"));
        let without =
            all.apply(&Delta { from: 1, to: 2, upserts: vec![], removals: vec![key(Kind::Ssl, "1")] });
        assert_eq!(site(&without, "a.com"), Some("10"));
        assert_eq!(site(&all, "a.com"), Some("1"), "the old snapshot did not change");
    }
}

// === routes ===

#[test]
fn exact_path_then_longest_prefix_whatever_the_priority() {
    let all = routed(vec![
        Route { priority: 100, ..route("1", &["/*"], &[]) },
        route("2", &["/foo/*"], &[]),
        route("3", &["/foo/bar"], &[]),
        route("4", &["/foo*"], &[]),
    ]);
    assert_eq!(found(&all, "x", "/foo/bar"), Some("3"));
    assert_eq!(found(&all, "x", "/foo/barz"), Some("2"));
    assert_eq!(found(&all, "x", "/foobar"), Some("4"));
    assert_eq!(found(&all, "x", "/fo"), Some("1"));
    assert_eq!(found(&all, "", "/fo"), Some("1"));
}

#[test]
fn within_a_path_priority_then_longer_pattern_then_key() {
    let all = routed(vec![
        route("1", &["/a/*"], &[]),
        Route { priority: 1, ..route("2", &["/a/*"], &[]) },
        route("0", &["/b"], &[]),
        route("9", &["/b"], &[]),
        route("5", &["/c/*"], &[]),
        route("6", &["/c/*/end"], &[]),
    ]);
    assert_eq!(found(&all, "x", "/a/1"), Some("2"));
    assert_eq!(found(&all, "x", "/b"), Some("0"));
    assert_eq!(found(&all, "x", "/c/1/end"), Some("6"));
    assert_eq!(found(&all, "x", "/c/1/other"), Some("5"));
}

/// Each uri is one byte longer than the one before, up to the longest: deeper than a recursive drop
/// could go.
#[test]
fn deeply_nested_prefixes_do_not_recurse() {
    let uris: Vec<String> = (1..4096).map(|length| format!("/{}*", "a".repeat(length - 1))).collect();
    let uris: Vec<&str> = uris.iter().map(String::as_str).collect();
    let get: crate::resource::MethodSet = [RouteMethod::Get].into_iter().collect();
    let nested = Route { methods: get, ..route("1", &uris, &[]) };
    let all = routed(vec![nested, route("2", &["/aa*"], &[])]);
    let path = format!("/{}", "a".repeat(8000));
    assert_eq!(asked(&all, "x", &path, "GET", "192.0.2.1"), Some("1"));
    assert_eq!(asked(&all, "x", &path, "POST", "192.0.2.1"), Some("2"));
    let removals = vec![key(Kind::Route, "1"), key(Kind::Route, "2")];
    let none = all.apply(&Delta { from: 1, to: 2, upserts: vec![], removals });
    assert_eq!(found(&none, "x", &path), None);
}

#[test]
fn a_candidate_that_does_not_match_is_skipped() {
    let get: crate::resource::MethodSet = [RouteMethod::Get].into_iter().collect();
    let all = routed(vec![
        Route { methods: get, priority: 2, ..route("1", &["/a"], &[]) },
        Route {
            remote_addrs: vec!["192.0.2.0/24".parse().unwrap()],
            priority: 1,
            ..route("2", &["/a"], &[])
        },
        Route {
            vars: crate::Vars::compile(&serde_json::json!([["arg_x", "~=", null]])).unwrap(),
            ..route("4", &["/a"], &[])
        },
        route("3", &["/*"], &[]),
    ]);
    assert_eq!(asked(&all, "x", "/a", "GET", "198.51.100.1"), Some("1"));
    assert_eq!(asked(&all, "x", "/a", "HEAD", "192.0.2.7"), Some("2"));
    assert_eq!(asked(&all, "x", "/a", "HEAD", "::ffff:192.0.2.7"), Some("2"));
    assert_eq!(asked(&all, "x", "/a", "HEAD", "198.51.100.1"), Some("3"));
}

#[test]
fn hosts_exact_then_wildcards_at_any_depth_then_hostless() {
    let all = routed(vec![
        route("1", &["/only"], &["www.a.com"]),
        route("2", &["/only", "/wild"], &["*.a.com"]),
        route("3", &["/*"], &["*.com"]),
        route("4", &["/any"], &["*"]),
        route("5", &["/any", "/none"], &[]),
    ]);
    assert_eq!(found(&all, "WWW.a.com.:8443", "/only"), Some("1"));
    assert_eq!(found(&all, "www.a.com", "/wild"), Some("2"));
    assert_eq!(found(&all, "x.y.a.com", "/only"), Some("2"));
    assert_eq!(found(&all, "www.a.com", "/zzz"), Some("3"));
    assert_eq!(found(&all, "b.org", "/any"), Some("4"));
    assert_eq!(found(&all, "b.org", "/none"), Some("5"));
    assert_eq!(found(&all, "", "/any"), Some("5"));
    assert_eq!(found(&all, "b.org", "/zzz"), None);
}

#[test]
fn routes_follow_the_hosts_of_their_service() {
    let service = |hosts: &[&str]| {
        let hosts = patterns(hosts);
        Resource::Service(Arc::new(Service {
            id: id("s"),
            hosts,
            upstream: None,
            client_identity: None,
            proxy_rewrite: None,
            enable_websocket: false,
            blocked: None,
        }))
    };
    let put = |resource| Delta {
        from: 1,
        to: 2,
        upserts: vec![Versioned { version: 2, resource }],
        removals: vec![],
    };
    // The route is older than its service.
    let alone = routed(vec![Route { service: Some(id("s")), ..route("1", &["/"], &[]) }]);
    assert_eq!(found(&alone, "b.com", "/"), Some("1"));
    let with = alone.apply(&put(service(&["a.com"])));
    assert_eq!(found(&with, "b.com", "/"), None);
    assert_eq!(found(&with, "a.com", "/"), Some("1"));
    let moved = with.apply(&put(service(&["b.com"])));
    assert_eq!(found(&moved, "a.com", "/"), None);
    assert_eq!(found(&moved, "b.com", "/"), Some("1"));
    let gone =
        moved.apply(&Delta { from: 2, to: 3, upserts: vec![], removals: vec![key(Kind::Service, "s")] });
    assert_eq!(found(&gone, "z.com", "/"), Some("1"));
    let own = Route { service: Some(id("s")), ..route("1", &["/"], &["own.com"]) };
    let with_own = with.apply(&put(Resource::Route(Arc::new(own))));
    assert_eq!(found(&with_own, "a.com", "/"), None);
    assert_eq!(found(&with_own, "own.com", "/"), Some("1"));
}

fn key(kind: Kind, own: &str) -> Key {
    Key::new(kind, id(own))
}

// === the laws ===

const NAMES: [&str; 9] =
    ["a.com", "b.a.com", "c.b.a.com", "d.c.b.a.com", "xa.com", "x.com", "zb.a.com", "com", "y.xa.com"];
const PATHS: [&str; 12] =
    ["/", "/a", "/ab", "/abc", "/abcd", "/a/", "/a/b", "/a/b/c", "/a/b/c/d", "/a/x/c", "/b", "/a/x/y/c"];

/// Implements contract 4.2 directly, over all resources.
fn slow_site(snapshot: &Snapshot, asked: &HostName) -> Option<Id> {
    let mut best: Option<(Reverse<usize>, Id, bool)> = None;
    for held in snapshot.resources() {
        let Resource::Ssl(ssl) = &held.resource else { continue };
        if ssl.client_side || !ssl.enabled {
            continue;
        }
        for pattern in ssl.names.iter().filter(|pattern| pattern.matches(asked)) {
            let text = pattern.to_string();
            let (length, good) = match pattern {
                NamePattern::Exact(_) => (1000, true),
                NamePattern::Suffix(suffix) => {
                    let star = &asked.as_str()[..asked.as_str().len() - suffix.as_str().len()];
                    (text.len(), !star.contains('.'))
                }
                NamePattern::Any => (0, true),
            };
            let candidate = (Reverse(length), ssl.id.clone(), good);
            if best.as_ref().is_none_or(|best| candidate < *best) {
                best = Some(candidate);
            }
        }
    }
    best.filter(|(_, _, good)| *good).map(|(_, id, _)| id)
}

/// Implements contract 7.1 directly, over all resources.
fn slow_route(snapshot: &Snapshot, query: &RouteQuery<'_>) -> Option<Id> {
    let mut fitting = Vec::new();
    for held in snapshot.resources() {
        let Resource::Route(route) = &held.resource else { continue };
        let service = route.service.as_ref().and_then(|id| snapshot.service(id));
        let mut hosts = route.hosts.clone();
        if let (true, Some(service)) = (hosts.is_empty(), service) {
            hosts = service.hosts.clone();
        }
        let hosts: Vec<Option<NamePattern>> =
            if hosts.is_empty() { vec![None] } else { hosts.into_iter().map(Some).collect() };
        for (host, uri) in hosts.iter().flat_map(|host| route.uris.iter().map(move |uri| (host, uri))) {
            let host_rank = match (host, query.host) {
                (None, _) => 2000,
                (Some(_), None) => continue,
                (Some(pattern), Some(asked)) if pattern.matches(asked) => match pattern {
                    NamePattern::Exact(_) => 0,
                    NamePattern::Suffix(suffix) => 1000 - suffix.as_str().len(),
                    NamePattern::Any => 1999,
                },
                _ => continue,
            };
            let takes = route.enabled
                && uri.matches(query.path)
                && route.methods.allows(query.method)
                && (route.remote_addrs.is_empty()
                    || route.remote_addrs.iter().any(|net| net.contains(&query.remote)));
            if takes {
                let path_rank = (!uri.is_exact(), Reverse(uri.prefix().len()));
                let within = (Reverse(route.priority), Reverse(uri.as_str().len()), route.id.clone());
                fitting.push((host_rank, path_rank, within));
            }
        }
    }
    fitting.into_iter().min().map(|(_, _, (_, _, id))| id)
}

fn check_lookups(snapshot: &Snapshot) -> Result<(), TestCaseError> {
    for text in NAMES {
        let asked = name(text);
        let expected = slow_site(snapshot, &asked);
        prop_assert_eq!(snapshot.site(&asked).map(|ssl| ssl.id.clone()), expected, "{}", text);
    }
    let hosts = NAMES.iter().map(|text| Some(name(text))).chain([None]);
    for host in hosts {
        streams::check_streams(snapshot, host.as_ref())?;
        for path in PATHS {
            for (method, remote) in [("GET", "192.0.2.1"), ("POST", "127.0.0.1")] {
                let remote: IpAddr = remote.parse().unwrap();
                let query = RouteQuery {
                    host: host.as_ref(),
                    path,
                    method,
                    remote,
                    variables: &crate::variable::NoVariables,
                };
                let found = snapshot.find_route(&query).map(|route| route.id.clone());
                prop_assert_eq!(found, slow_route(snapshot, &query), "{:?}", query);
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn lookups_follow_the_contract(snapshot in some_snapshot()) {
        check_lookups(&snapshot)?;
    }

    #[test]
    fn applying_a_diff_gives_the_newer_snapshot(a in some_snapshot(), b in some_snapshot()) {
        let delta = a.diff(&b);
        let applied = a.apply(&delta);
        prop_assert!(applied == b);
        check_lookups(&applied)?;
        // The way back starts from shared structure.
        prop_assert!(applied.apply(&b.diff(&a)) == a);
        prop_assert!(b.diff(&b).is_empty());
    }

    #[test]
    fn a_diff_from_versions_sends_missing_resources(a in some_snapshot(), b in some_snapshot()) {
        // Within one store, a version of a key has one content.
        let content = |mut held: Versioned, other: &Snapshot| {
            if let Some(same) = other.get(&held.resource.key()).filter(|same| same.version == held.version) {
                held.resource = same.resource.clone();
            }
            held
        };
        let a = Snapshot::from_resources(a.revision(), a.resources().cloned().map(|held| content(held, &b)));
        let held: HashMap<Key, u64> = a.versions().collect();
        let delta = b.diff_from_versions(&held, a.revision());
        prop_assert!(a.apply(&delta) == b);
        prop_assert_eq!(delta, a.diff(&b));
        prop_assert!(Snapshot::empty().apply(&b.diff_from_versions(&HashMap::new(), 0)) == b);
    }

    #[test]
    fn removed_resources_leave_empty_indexes(changes in vec((any::<bool>(), some_versioned()), 0..60)) {
        let mut now = Snapshot::empty();
        for (revision, (put, versioned)) in (1..).zip(changes) {
            let mut delta = Delta { from: now.revision(), to: revision, ..Delta::default() };
            match put {
                true => delta.upserts.push(versioned),
                false => delta.removals.push(versioned.resource.key()),
            }
            now = now.apply(&delta);
        }
        check_lookups(&now)?;
        let removals = now.versions().map(|(key, _)| key).collect();
        let nothing = now.apply(&Delta { from: now.revision(), to: 99, upserts: vec![], removals });
        prop_assert!(nothing.is_empty());
        prop_assert!(nothing.sni_index.is_empty() && nothing.route_index.is_empty() && nothing.routes_by_service.is_empty());
        prop_assert!(nothing.stream_index.is_empty());
        check_lookups(&nothing)?;
    }
}
