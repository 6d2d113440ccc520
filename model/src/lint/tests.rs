use pki::Keyring;
use pki::ca::{Authority, AuthoritySpec, LeafSpec};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::id::Kind;
use crate::request_target::PathOptions;
use crate::samples::{AUTHORITY, id, some_snapshot};
use crate::snapshot::Snapshot;
use crate::snapshot::Versioned;

const DAY: u64 = 86_400;

fn at(seconds: u64) -> UnixTime {
    UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds))
}

fn now() -> UnixTime {
    UnixTime::now()
}

/// An ssl document with a new certificate for its first name.
fn ssl(names: &[&str], more: Value) -> Value {
    let spec = names[1..].iter().fold(LeafSpec::server(names[0]), |spec, name| spec.dns(*name));
    let issued = AUTHORITY.issue(&spec).unwrap();
    let mut document = json!({"cert": issued.certificate_pem, "key": *issued.key_pem, "snis": names});
    for (name, value) in more.as_object().unwrap() {
        document[name] = value.clone();
    }
    document
}

fn checked(kind: Kind, own: &str, document: &Value) -> Resource {
    crate::compile(kind, &id(own), document, &Keyring::empty()).unwrap()
}

/// The findings about these resources, one line each.
fn findings_of(resources: &[(Kind, &str, Value)], plain_http: bool) -> Vec<String> {
    let versioned = resources
        .iter()
        .map(|(kind, own, document)| Versioned { version: 1, resource: checked(*kind, own, document) });
    let settings = LintSettings { plain_http, upstream_verify: VerifyPolicy::WhereAsked };
    let found = lint_snapshot(&Snapshot::from_resources(1, versioned), now(), settings);
    let line = |finding: &Finding| {
        let key = finding.resource.as_ref().map(ToString::to_string).unwrap_or_default();
        format!("{} {key} {}: {}", finding.severity.as_str(), finding.field, finding.message)
    };
    found.iter().map(line).collect()
}

#[track_caller]
fn only(resources: &[(Kind, &str, Value)], plain_http: bool, start: &str, part: &str) {
    let findings_of = findings_of(resources, plain_http);
    assert!(
        findings_of.len() == 1 && findings_of[0].starts_with(start) && findings_of[0].contains(part),
        "{findings_of:?}"
    );
}

fn upstream() -> Value {
    json!({"type": "roundrobin", "nodes": {"127.0.0.1:1980": 1}})
}

fn client() -> Value {
    json!({"client": {"ca": AUTHORITY.certificate_pem()}})
}

#[test]
fn no_web_socket_leads_to_grpc() {
    let upstream = |scheme: &str| json!({"scheme": scheme, "nodes": {"a.test:1": 1}});
    let route = |scheme: &str, more: Value| {
        let mut route =
            json!({"uri": "/*", "hosts": ["a.com"], "service_id": "s", "upstream": upstream(scheme)});
        for (name, value) in more.as_object().unwrap() {
            route[name] = value.clone();
        }
        route
    };
    let service = |enabled: bool| (Kind::Service, "s", json!({"enable_websocket": enabled}));
    let site = (Kind::Ssl, "1", ssl(&["a.com"], json!({})));
    let lines = |service: (Kind, &'static str, Value), route: Value| {
        let found = findings_of(&[site.clone(), service, (Kind::Route, "r", route)], false);
        found.into_iter().filter(|line| line.contains("enable_websocket")).collect::<Vec<_>>()
    };
    let expected =
        "error routes/r enable_websocket: no WebSocket can be opened to an upstream of scheme grpc";
    let (on, off) = (json!({"enable_websocket": true}), json!({"enable_websocket": false}));
    assert_eq!(lines(service(true), route("grpc", json!({}))), [expected]);
    assert_eq!(lines(service(false), route("grpc", on.clone())), [expected]);
    assert!(lines(service(true), route("grpc", off)).is_empty());
    assert!(lines(service(true), route("http", on)).is_empty());
}

#[test]
fn a_sound_configuration_has_no_findings() {
    let resources = [
        (Kind::Ssl, "1", ssl(&["a.com", "*.a.com"], client())),
        (Kind::Service, "1", json!({"hosts": ["b.a.com"], "upstream": upstream()})),
        (Kind::Route, "1", json!({"uri": "/*", "service_id": "1"})),
    ];
    assert_eq!(findings_of(&resources, false), Vec::<String>::new());
}

#[test]
fn expiring_certificates_and_anchors() {
    let issue = |from: u64, to: u64| {
        let issued = AUTHORITY.issue(&LeafSpec::server("a.com").between(at(from), at(to))).unwrap();
        json!({"cert": issued.certificate_pem, "key": *issued.key_pem, "sni": "a.com"})
    };
    let today = now().as_secs();
    only(&[(Kind::Ssl, "1", issue(today - 9 * DAY, today - DAY))], false, "error ssls/1 cert", "is expired");
    let soon = issue(today - DAY, today + 3 * DAY + 60);
    only(&[(Kind::Ssl, "1", soon)], false, "warning ssls/1 cert", "expires in 3 days");
    only(
        &[(Kind::Ssl, "1", issue(today + DAY, today + 90 * DAY))],
        false,
        "error ssls/1 cert",
        "not valid yet",
    );

    let ended = Authority::root(&AuthoritySpec::new("Old CA").valid(at(today - 20 * DAY), 10)).unwrap();
    let bundle = AUTHORITY.certificate_pem() + &ended.certificate_pem();
    let document = ssl(&["a.com"], json!({"client": {"ca": bundle}}));
    only(&[(Kind::Ssl, "1", document)], false, "error ssls/1 client.ca[2]", "\"CN=Old CA\" is expired");
}

#[test]
fn stale_crls() {
    let today = now().as_secs();
    let with = |to: u64, policy: &str| {
        let spec = pki::ca::CrlSpec::new().between(at(today - 9 * DAY), at(to));
        let crl = AUTHORITY.crl_pem(&spec).unwrap();
        ssl(
            &["a.com"],
            json!({"client": {"ca": AUTHORITY.certificate_pem(), "crl": [crl], "crl_policy": policy}}),
        )
    };
    let field = "ssls/1 client.crl[1]";
    let ended = |policy| [(Kind::Ssl, "1", with(today - 60, policy))];
    only(&ended("require"), false, &format!("error {field}"), "its clients are rejected");
    only(&ended("prefer"), false, &format!("warning {field}"), "newer ones are not known");
    only(
        &[(Kind::Ssl, "1", with(today + 7200 + 60, "require"))],
        false,
        &format!("warning {field}"),
        "in 2 hours",
    );
    assert_eq!(
        findings_of(&[(Kind::Ssl, "1", with(today + 9 * DAY, "require"))], false),
        Vec::<String>::new()
    );
}

#[test]
fn skip_patterns_that_exempt_too_much() {
    let with = |patterns: Value| {
        let client = json!({"ca": AUTHORITY.certificate_pem(), "skip_mtls_uri_regex": patterns});
        [(Kind::Ssl, "1", ssl(&["a.com"], json!({"client": client})))]
    };
    let field = "warning ssls/1 client.skip_mtls_uri_regex";
    only(&with(json!(["^/fine", "/hello"])), false, &format!("{field}[2]"), "\"/hello\" is not anchored");
    only(&with(json!(["^/"])), false, field, "\"^/\" exempts every path");
}

#[test]
fn names_without_certificate_or_claimed_twice() {
    let mut document = ssl(&["a.com"], json!({}));
    document["snis"] = json!(["a.com", "*.a.com", "*"]);
    only(&[(Kind::Ssl, "1", document)], false, "warning ssls/1 cert", "is not for *.a.com");
    let twice = [(Kind::Ssl, "2", ssl(&["a.com"], json!({}))), (Kind::Ssl, "10", ssl(&["A.com"], json!({})))];
    only(&twice, false, "warning ssls/2 snis", "\"a.com\" is claimed by ssl 10 too");
    let off = [
        (Kind::Ssl, "2", ssl(&["a.com"], json!({}))),
        (Kind::Ssl, "10", ssl(&["a.com"], json!({"status": 0}))),
    ];
    assert_eq!(findings_of(&off, false), Vec::<String>::new(), "a disabled one claims nothing");
}

#[test]
fn uris_and_patterns_that_match_no_path() {
    let plain = PathOptions::default();
    let slash = PathOptions { match_uri_encoded_slash: true, ..plain };
    let servlet = PathOptions { normalize_uri_like_servlet: true, ..plain };
    let tail = PathOptions { delete_uri_tail_slash: true, ..plain };
    let findings_of = |document: &Value, kind, options| -> Vec<String> {
        let held = Versioned { version: 1, resource: checked(kind, "1", document) };
        lint_paths(&Snapshot::from_resources(1, [held]), options)
            .into_iter()
            .map(|finding| finding.message)
            .collect()
    };
    let of_uri =
        |uri: &str, options| findings_of(&json!({"uri": uri, "upstream": upstream()}), Kind::Route, options);
    for (uri, options, part) in [
        ("/a%2Fb", plain, "%2F is read as /"),
        ("/a%2fb", slash, "matched as %2F"),
        ("/a%20b/*", plain, "matched decoded"),
        ("/a%2Fb%41", slash, "matched decoded"),
        ("/a/../b", plain, "without dot segments"),
        ("/a//b*", plain, "without dot segments"),
        ("/a;x", servlet, "without parameters"),
        ("/a/", tail, "cut off"),
    ] {
        let found = of_uri(uri, options);
        assert!(found.len() == 1 && found[0].contains(part), "{uri}: {found:?}");
    }
    for (uri, options) in
        [("/a%2Fb", slash), ("/a b/é", plain), ("/100%", plain), ("/a;x", plain), ("/a/*", tail), ("/", tail)]
    {
        assert_eq!(of_uri(uri, options), Vec::<String>::new(), "{uri}");
    }
    let client = json!({"ca": AUTHORITY.certificate_pem(), "skip_mtls_uri_regex": ["^/a%2[fF]b", "^/c%2Fd"]});
    let site = ssl(&["a.com"], json!({"client": client}));
    assert_eq!(findings_of(&site, Kind::Ssl, plain).len(), 1);
    assert!(findings_of(&site, Kind::Ssl, slash).is_empty());
    let rewrite = json!({"proxy-rewrite": {"regex_uri": ["^/a%2f(.*)", "/$1"]}});
    let route = json!({"uri": "/*", "plugins": rewrite, "upstream": upstream()});
    assert_eq!(findings_of(&route, Kind::Route, plain).len(), 1);
}

#[test]
fn passthrough_beside_a_site_with_client() {
    let route = |more: Value| {
        let mut document = json!({"tls_passthrough": true, "upstream": {"nodes": {"10.0.0.1:443": 1}}});
        document.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        document
    };
    let site = |more: Value| (Kind::Ssl, "1", ssl(&["a.com", "*.b.com"], more));
    let findings = |site: (Kind, &str, Value), more: Value| -> Vec<String> {
        let found = findings_of(&[site, (Kind::StreamRoute, "r", route(more))], false);
        found.into_iter().filter(|line| line.contains("tls_passthrough")).collect()
    };
    for (snis, expected) in [(json!(["x.org", "x.b.com"]), "\"x.b.com\""), (json!(["*"]), "every name")] {
        let found = findings(site(client()), json!({"snis": snis}));
        let [line] = &found[..] else { panic!("{found:?}") };
        assert!(line.starts_with("error stream_routes/r tls_passthrough: passes on the TLS of "), "{line}");
        assert!(line.contains(expected) && line.contains("ssl 1 "), "{line}");
    }
    let apart = json!({"snis": ["x.org", "x.y.b.com"]});
    assert_eq!(findings(site(client()), apart), [""; 0]);
    assert_eq!(findings(site(json!({})), json!({"sni": "a.com"})), [""; 0]);
    let terminated = json!({"sni": "a.com", "tls_passthrough": false});
    assert_eq!(findings(site(client()), terminated), [""; 0]);
}

#[test]
fn raw_paths_beside_a_rule() {
    let plugins = json!({"proxy-rewrite": {"use_real_request_uri_unsafe": true}});
    let raw = json!({"uri": "/a/*", "host": "a.com", "plugins": plugins, "upstream": upstream()});
    let listed = json!({"client_identity": {"allow": [{"dns": "b.com"}]}});
    let sibling = json!({"uri": "/b/*", "host": "a.com", "client_identity": listed["client_identity"], "upstream": upstream()});
    let site = (Kind::Ssl, "1", ssl(&["a.com"], json!({})));
    assert_eq!(findings_of(&[site.clone(), (Kind::Route, "1", raw.clone())], false), Vec::<String>::new());
    let together = [site, (Kind::Route, "1", raw), (Kind::Route, "2", sibling)];
    only(
        &together,
        false,
        "error routes/1 plugins.proxy-rewrite.use_real",
        "the client_identity.allow of route 2",
    );
}

#[test]
fn encoded_slashes_beside_a_broader_route() {
    let on = PathOptions { match_uri_encoded_slash: true, ..PathOptions::default() };
    let findings_of = |documents: &[(Kind, &str, Value)], options| -> Vec<String> {
        let held = documents
            .iter()
            .map(|(kind, own, document)| Versioned { version: 1, resource: checked(*kind, own, document) });
        let found = lint_paths(&Snapshot::from_resources(1, held), options).into_iter();
        found.map(|finding| format!("{} {}", finding.field, finding.message)).collect()
    };
    let route = |host: &str, uri: &str, more: Value| {
        let mut document = json!({"host": host, "uri": uri, "upstream": upstream()});
        document.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        document
    };
    let allow = || json!({"client_identity": {"allow": [{"dns": "a.com"}]}});
    for (guard, field) in [
        (allow(), "client_identity.allow"),
        (json!({"vars": [["http_x", "==", "y"]]}), "vars"),
        (json!({"remote_addrs": ["10.0.0.0/8"]}), "remote_addrs"),
        (json!({"methods": ["GET"]}), "methods"),
    ] {
        for (guarded, wide, stands) in [
            (("a.com", "/admin/*"), ("a.com", "/*"), true),
            (("a.com", "/admin/*"), ("*.com", "/*"), true),
            (("*.com", "/admin/*"), ("a.com", "/*"), true),
            (("a.com", "/admin/x"), ("a.com", "/admin*"), true),
            (("a.com", "/admin/*"), ("b.com", "/*"), false),
            (("a.com", "/admin"), ("a.com", "/*"), false),
            (("a.com", "/admin/*"), ("a.com", "/admin/x"), false),
            (("a.com", "/admin/*"), ("a.com", "/other/*"), false),
        ] {
            let documents = [
                (Kind::Route, "1", route(guarded.0, guarded.1, guard.clone())),
                (Kind::Route, "2", route(wide.0, wide.1, json!({}))),
            ];
            let found = findings_of(&documents, on);
            let fits = |line: &String| line.starts_with(field) && line.contains("route 2");
            assert!(found.len() == usize::from(stands) && found.iter().all(fits), "{documents:?}: {found:?}");
            assert!(findings_of(&documents, PathOptions::default()).is_empty(), "{documents:?}");
        }
    }
    let client = json!({"ca": AUTHORITY.certificate_pem(), "skip_mtls_uri_regex": ["^/free/[^/]*$"]});
    let site = |host| (Kind::Ssl, "1", ssl(&[host], json!({"client": client})));
    let wide = || (Kind::Route, "2", route("a.com", "/*", json!({})));
    let found = findings_of(&[site("a.com"), wide()], on);
    assert!(found.len() == 1 && found[0].starts_with("client.skip_mtls_uri_regex"), "{found:?}");
    assert!(findings_of(&[site("a.com"), wide()], PathOptions::default()).is_empty());
    assert!(findings_of(&[site("b.com"), wide()], on).is_empty());
}

#[test]
fn dangling_routes() {
    let route = |more: Value| [(Kind::Route, "1", more)];
    let missing = json!({"uri": "/", "upstream_id": "7"});
    only(&route(missing), false, "error routes/1 upstream_id", "upstream id [7]");
    only(
        &route(json!({"uri": "/", "service_id": "7"})),
        false,
        "error routes/1 service_id",
        "service id [7]",
    );
    only(
        &route(json!({"uri": "hello", "upstream": upstream()})),
        false,
        "error routes/1 uri",
        "start with /",
    );
    let empty = [(Kind::Service, "1", json!({})), (Kind::Route, "1", json!({"uri": "/", "service_id": "1"}))];
    only(&empty, false, "error routes/1 upstream", "get a 503");
    let idle = json!({"uri": "/", "upstream": {"type": "roundrobin", "nodes": {}}});
    only(&route(idle), false, "error routes/1 upstream.nodes", "no node has a weight");
    let plain = json!({"nodes": {"a.com": 1}, "tls": {"verify": true}});
    only(&[(Kind::Upstream, "1", plain)], false, "error upstreams/1 tls", "nothing is encrypted");
}

#[test]
fn hosts_without_a_site_or_client_policy() {
    let route = |host: Value| json!({"uri": "/*", "hosts": host, "upstream": upstream()});
    let open = (Kind::Ssl, "1", ssl(&["a.com"], json!({})));
    let shut = (Kind::Ssl, "1", ssl(&["a.com", "*.a.com"], client()));
    let with = |site: &(Kind, &'static str, Value), host| [site.clone(), (Kind::Route, "1", route(host))];
    only(
        &with(&open, json!(["b.com"])),
        true,
        "notice routes/1 hosts",
        "no ssl object covers the host b.com",
    );
    only(&with(&open, json!(["*.b.com"])), true, "notice routes/1 hosts", "covers the host *.b.com");
    assert_eq!(findings_of(&with(&open, json!(["a.com"])), true), Vec::<String>::new());
    for host in ["a.com", "x.a.com", "*.a.com"] {
        let found = with(&shut, json!([host]));
        only(&found, true, "warning routes/1 hosts", &format!("the host {host} is also served on the plain"));
        assert_eq!(
            findings_of(&found, false),
            Vec::<String>::new(),
            "without such a listener there is nothing to say"
        );
    }
    let everything = [shut, (Kind::Route, "1", json!({"uri": "/*", "upstream": upstream()}))];
    only(&everything, true, "warning routes/1 hosts", "takes every host");
}

proptest! {
    #[test]
    fn the_order_of_findings_depends_on_resources_only(snapshot in some_snapshot()) {
        let again = Snapshot::from_resources(9, snapshot.resources().cloned().collect::<Vec<_>>().into_iter().rev());
        let all = LintSettings { plain_http: true, upstream_verify: VerifyPolicy::UnlessExcepted };
        let found = lint_snapshot(&snapshot, now(), all);
        prop_assert!(found.is_sorted());
        prop_assert_eq!(found, lint_snapshot(&again, now(), all));
    }
}

#[test]
fn unverified_servers() {
    let now = now();
    let found = |by_default: bool, tls: Value| {
        let document = json!({"scheme": "https", "nodes": {"a.test:1": 1}, "tls": tls});
        let versioned = Versioned { version: 1, resource: checked(Kind::Upstream, "1", &document) };
        let upstream_verify = VerifyPolicy::of_settings(false, by_default);
        let settings = LintSettings { plain_http: false, upstream_verify };
        let found = lint_snapshot(&Snapshot::from_resources(1, [versioned]), now, settings);
        found.into_iter().map(|finding| (finding.severity, finding.field)).collect::<Vec<_>>()
    };
    let verify = |severity: Severity| (severity, "tls.verify".to_owned());
    let ca = AUTHORITY.certificate_pem();
    let no_effect = (Severity::Warning, "tls.ca_certs".to_owned());
    assert_eq!(found(false, json!({})), [verify(Severity::Notice)]);
    assert_eq!(found(true, json!({})), []);
    assert_eq!(found(false, json!({"verify": false})), [verify(Severity::Notice)]);
    assert_eq!(found(true, json!({"verify": false})), [verify(Severity::Warning)]);
    assert_eq!(found(false, json!({"verify": true, "ca_certs": [ca]})), []);
    assert_eq!(found(false, json!({"ca_certs": [ca]})), [no_effect, verify(Severity::Notice)]);
    assert_eq!(found(true, json!({"ca_certs": [ca]})), []);
    assert_eq!(found(false, json!({"verify_identity": [{"dns": "a.test"}]})), []);
    let clear = json!({"nodes": {"a.test:1": 1}, "tls": {"ca_certs": [ca]}});
    only(&[(Kind::Upstream, "1", clear)], false, "error upstreams/1 tls:", "nothing is encrypted");
}

#[test]
fn server_names_that_clients_choose() {
    let route = |more: Value, upstream: Value| {
        let tls = json!({"verify": true});
        let mut inner = json!({"scheme": "https", "nodes": {"a.test:1": 1}, "tls": tls});
        let mut document = json!({"uri": "/a"});
        for (into, from) in [(&mut inner, upstream), (&mut document, more)] {
            for (name, value) in from.as_object().unwrap() {
                into[name] = value.clone();
            }
        }
        document["upstream"] = inner;
        let fields = findings_of(&[(Kind::Route, "1", document)], false);
        fields.iter().filter(|line| line.contains("upstream.pass_host")).count()
    };
    for wide in [json!({}), json!({"host": "*.a.test"}), json!({"host": "*"})] {
        assert_eq!(route(wide, json!({})), 1);
    }
    assert_eq!(route(json!({"host": "a.test"}), json!({})), 0);
    let rewrite = json!({"plugins": {"proxy-rewrite": {"host": "b.test"}}});
    assert_eq!(route(rewrite, json!({})), 0);
    for fixed in [
        json!({"pass_host": "node"}),
        json!({"tls": {"verify_identity": [{"dns": "b.test"}]}}),
        json!({"tls": {}}),
        json!({"scheme": "http", "tls": {}}),
    ] {
        assert_eq!(route(json!({}), fixed), 0);
    }
}
