//! Outcomes for stored documents: documents as APISIX writes them for ordinary objects are served
//! without findings, unsupported ones are served with findings or blocked, and a blocked resource
//! takes at least the traffic of the real one.

use std::net::IpAddr;
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::admission::{self, ClientVerification};
use crate::host_name::HostName;
use crate::reason::Reason;
use crate::request_target::{PathOptions, RequestTarget};
use crate::resource::{Route, Ssl};
use crate::samples::{AUTHORITY, id};
use crate::variable::NoVariables;
use crate::{Delta, RouteQuery, Snapshot, StreamQuery, Versioned, destination};

const SEALED: &str = "qeddd145sfvddff3";

fn ssl() -> Value {
    let issued = AUTHORITY.issue(&pki::ca::LeafSpec::server("a.com")).unwrap();
    json!({"id": "1", "cert": issued.certificate_pem, "key": *issued.key_pem, "sni": "a.com"})
}

fn upstream() -> Value {
    json!({"type": "roundrobin", "nodes": {"127.0.0.1:1980": 1}})
}

fn route() -> Value {
    json!({"id": "1", "uri": "/a/*", "host": "a.com", "upstream": upstream()})
}

fn with(mut document: Value, more: Value) -> Value {
    for (name, value) in more.as_object().unwrap() {
        document[name] = value.clone();
    }
    document
}

fn keyring(entry: &str) -> Keyring {
    Keyring::new(vec![entry.to_owned()]).unwrap()
}

fn adopted(kind: Kind, document: &Value) -> CompileOutcome {
    compile_stored(kind, &id("1"), document, &keyring(SEALED))
}

fn settled(kind: Kind, document: &Value, before: Option<&Resource>) -> (Option<Resource>, Vec<String>) {
    let (resource, found) = adopted(kind, document).resolve(before);
    if let Some(resource) = &resource {
        let arrived = crate::wire::resource_from_wire(proto::push::Resource::from(resource));
        assert!(arrived.unwrap() == *resource, "{document}");
    }
    let findings = found
        .iter()
        .map(|finding| format!("{} {}: {}", finding.severity.as_str(), finding.field, finding.message));
    (resource, findings.collect())
}

/// Asserts that the document is served, with findings about these fields that are no errors.
#[track_caller]
fn served(kind: Kind, document: &Value, fields: &[&str]) -> Resource {
    let (resource, findings) = settled(kind, document, None);
    let resource = resource.unwrap_or_else(|| panic!("nothing is served: {findings:?}"));
    assert!(resource.blocked().is_none(), "{findings:?}");
    let expected = fields.iter().map(|field| {
        let severity = if field.split('.').nth(1).is_some_and(crate::plugin::is_observer) {
            "notice"
        } else {
            "warning"
        };
        format!("{severity} {field}: ")
    });
    let fits = findings.len() == fields.len()
        && findings.iter().zip(expected).all(|(finding, start)| finding.starts_with(&start));
    assert!(fits, "{findings:?}");
    resource
}

/// Asserts that the document is blocked whatever its predecessor, with findings about these fields.
#[track_caller]
fn blocked(kind: Kind, document: &Value, fields: &[&str]) -> Resource {
    let before = adopted(kind, &good(kind)).resolve(None).0.unwrap();
    assert!(before.blocked().is_none());
    let (resource, findings) = settled(kind, document, Some(&before));
    let resource = resource.unwrap_or_else(|| panic!("it was kept as it was before: {findings:?}"));
    assert!(resource.blocked().is_some(), "{findings:?}");
    assert!(settled(kind, document, None).0 == Some(resource.clone()));
    let expected: Vec<_> = fields.iter().map(|field| format!("error {field}: ")).collect();
    let fits = findings.len() == fields.len()
        && findings.iter().zip(&expected).all(|(findings, start)| findings.starts_with(start));
    assert!(fits, "{findings:?}");
    resource
}

/// Asserts that the document is invalid: its predecessor stays, or else it is blocked.
#[track_caller]
fn kept(kind: Kind, document: &Value, field: &str) {
    let before = adopted(kind, &good(kind)).resolve(None).0.unwrap();
    let (resource, findings) = settled(kind, document, Some(&before));
    assert!(resource.is_none() && findings.len() == 1, "{findings:?}");
    assert!(
        findings[0].starts_with(&format!("error {field}: ")) && findings[0].contains("keep its predecessor"),
        "{findings:?}"
    );
    let (resource, findings) = settled(kind, document, None);
    assert!(resource.is_some_and(|resource| resource.blocked().is_some()), "{findings:?}");
}

fn good(kind: Kind) -> Value {
    match kind {
        Kind::Ssl => ssl(),
        Kind::Upstream => upstream(),
        Kind::Service => json!({"upstream": upstream()}),
        Kind::Route => route(),
        Kind::StreamRoute => json!({"upstream": upstream()}),
        Kind::PluginConfig | Kind::GlobalRule => json!({"plugins": {}}),
    }
}

#[test]
fn ordinary_documents_of_apisix_are_served_without_findings() {
    let times = json!({"create_time": 1_700_000_000, "update_time": 1_700_000_001, "labels": {"env": "x"}, "desc": ""});
    let more = json!({"type": "server", "status": 1, "validity_start": 1, "validity_end": 2, "ssl_protocols": ["TLSv1.2", "TLSv1.3"],
        "ocsp_stapling": {"enabled": false}, "client": {"ca": AUTHORITY.certificate_pem(), "depth": 1}});
    served(Kind::Ssl, &with(with(ssl(), times.clone()), more), &[]);
    let full = json!({"hash_on": "vars", "pass_host": "pass", "scheme": "http", "name": "u", "retries": 1, "retry_timeout": 0,
        "timeout": {"connect": 6, "send": 6, "read": 6}, "keepalive_pool": {"size": 320, "idle_timeout": 60, "requests": 1000},
        "nodes": [{"host": "127.0.0.1", "port": 1980, "weight": 1, "priority": 0, "metadata": {}}], "tls": {"verify": false}});
    let full = with(with(upstream(), times.clone()), full);
    served(Kind::Upstream, &full, &[]);
    let service =
        json!({"name": "s", "plugins": {}, "hosts": ["a.com"], "enable_websocket": false, "upstream": full});
    served(Kind::Service, &with(service, times.clone()), &[]);
    let rewrite = json!({"uri": "/x", "use_real_request_uri_unsafe": false, "_meta": {"disable": false, "priority": 3}});
    let more = json!({"status": 1, "priority": 0, "methods": ["GET"], "vars": [], "plugins": {"proxy-rewrite": rewrite}, "upstream": full});
    served(Kind::Route, &with(with(route(), times.clone()), more), &[]);
    served(
        Kind::StreamRoute,
        &with(json!({"plugins": {}, "server_port": 9100, "upstream": full}), times.clone()),
        &[],
    );
    served(Kind::GlobalRule, &with(json!({"plugins": {}}), json!({"create_time": 1, "update_time": 1})), &[]);
}

#[test]
fn both_entries_of_the_default_keyring_decrypt_keys() {
    let both = Keyring::new(vec![SEALED.to_owned(), "edd1c9f0985e76a2".to_owned()]).unwrap();
    for entry in [SEALED, "edd1c9f0985e76a2"] {
        let mut document = ssl();
        let key = document["key"].as_str().unwrap().to_owned();
        document["key"] = keyring(entry).seal(&key).into();
        let (resource, found) = compile_stored(Kind::Ssl, &id("1"), &document, &both).resolve(None);
        assert!(resource.unwrap().blocked().is_none() && found.is_empty(), "{found:?}");
        // Without that entry the names stay claimed.
        let (resource, found) =
            compile_stored(Kind::Ssl, &id("1"), &document, &keyring("0123456789abcdef")).resolve(None);
        assert!(resource.unwrap().blocked().is_some());
        assert!(found[0].message.contains("failed to decrypt previous encrypted key"), "{found:?}");
    }
}

#[test]
fn harmless_unsupported_fields_are_ignored_with_a_finding() {
    let checks = json!({"checks": {"active": {"http_path": "/"}}});
    served(Kind::Upstream, &with(upstream(), checks.clone()), &["checks"]);
    served(Kind::Upstream, &with(upstream(), json!({"type": "chash", "hash_on": "header"})), &["type"]);
    served(Kind::Upstream, &with(upstream(), json!({"type": "chash", "key": "remote_addr"})), &["type"]);
    let fields = ["plugins.prometheus", "plugins.http-logger", "upstream.checks"];
    let plugins = json!({"prometheus": {}, "http-logger": {"uri": "http://127.0.0.1"}});
    let more = json!({"plugins": plugins, "upstream": with(upstream(), checks)});
    served(Kind::Route, &with(route(), more), &fields);
    let off = json!({"plugins": {"jwt-auth": {"_meta": {"disable": true}}}});
    served(Kind::Route, &with(route(), off.clone()), &["plugins.jwt-auth"]);
    served(Kind::Service, &off, &["plugins.jwt-auth"]);
    served(
        Kind::GlobalRule,
        &json!({"plugins": {"prometheus": {"prefer_name": true}}}),
        &["plugins.prometheus"],
    );
    let config =
        json!({"plugins": {"prometheus": {}, "proxy-rewrite": {"uri": "/x"}}, "name": "", "desc": "x"});
    let Resource::PluginConfig(config) = served(Kind::PluginConfig, &config, &["plugins.prometheus"]) else {
        panic!("not a plugin config")
    };
    assert!(config.proxy_rewrite.is_some());
    let invalid = json!({"plugins": {"http-logger": {"uri": 1}, "gzip": {}, "request-id": {}}});
    served(
        Kind::Route,
        &with(route(), invalid),
        &["plugins.http-logger", "plugins.gzip", "plugins.request-id"],
    );
    served(Kind::Ssl, &with(ssl(), json!({"ocsp_stapling": {"enabled": true}})), &["ocsp_stapling"]);
}

/// An older APISIX on the same etcd adds its default to each upstream with `tls` that it writes.
#[test]
fn a_default_of_apisix_beside_verify_identity_blocks_nothing() {
    let tls = json!({"verify": false, "verify_identity": [{"dns": "a.com"}]});
    let verified = with(upstream(), json!({"scheme": "https", "tls": tls}));
    let resource = served(Kind::Upstream, &verified, &["tls.verify"]);
    let tls = &resource.own_upstream().unwrap().tls;
    assert!(tls.verify.is_none() && tls.verifies(crate::VerifyPolicy::WhereAsked));
    let route = with(route(), json!({"upstream": verified}));
    served(Kind::Route, &route, &["upstream.tls.verify"]);
    // Where it stands alone it counts.
    let resource = served(Kind::Upstream, &with(verified, json!({"tls": {"verify": false}})), &[]);
    assert_eq!(resource.own_upstream().unwrap().tls.verify, Some(false));
}

#[test]
fn unsupported_protection_and_routing_fields_block() {
    let two = json!({"plugins": {"ip-restriction": {"whitelist": ["10.0.0.0/8"]}, "jwt-auth": {}, "prometheus": {}}});
    let (_, findings) = settled(Kind::Route, &with(route(), two), None);
    let findings: Vec<_> = findings.iter().map(|findings| findings.split(':').next().unwrap()).collect();
    assert_eq!(
        findings,
        ["error plugins.ip-restriction", "error plugins.jwt-auth", "notice plugins.prometheus"]
    );
    for (more, fields) in [
        (
            json!({"plugins": {"no-such-plugin": {"_meta": {"disable": false}}}}),
            &["plugins.no-such-plugin"][..],
        ),
        (json!({"plugins": {"jwt-auth": {"_meta": {"disable": "true"}}}}), &["plugins.jwt-auth"]),
        (json!({"plugins": {"proxy-rewrite": {"scheme": "https"}}}), &["plugins.proxy-rewrite.scheme"]),
        (
            json!({"plugins": {"proxy-rewrite": {"uri": "/x", "_meta": {"filter": [["arg_a", "==", "1"]]}}}}),
            &["plugins.proxy-rewrite._meta.filter"],
        ),
        (
            json!({"filter_func": "function() return true end", "script_id": "1"}),
            &["filter_func", "script_id"],
        ),
        (json!({"script": "local _M = {} return _M"}), &["script"]),
        (json!({"vars": [["graphql_name", "==", "x"]]}), &["vars[1]"]),
        (json!({"vars": [["arg_a", "~~", "(?=x)"]]}), &["vars[1]"]),
        // A mistake in another field does not hide it.
        (
            json!({"timeout": {"connect": 1}, "filter_func": "function() return true end"}),
            &["timeout.send", "filter_func"],
        ),
        (json!({"host": "a.com:8080"}), &["hosts"]),
        (json!({"uri": "/a*b/c"}), &["uri"]),
        (json!({"new_member_of_a_newer_apisix": true}), &["new_member_of_a_newer_apisix"]),
        (json!({"upstream": with(upstream(), json!({"scheme": "kafka"}))}), &["upstream.scheme"]),
        (json!({"upstream": with(upstream(), json!({"scheme": "tcp"}))}), &["upstream.scheme"]),
        (json!({"upstream": {"service_name": "x", "discovery_type": "dns"}}), &["upstream.service_name"]),
    ] {
        blocked(Kind::Route, &with(route(), more), fields);
    }
}

#[test]
fn fields_that_block_a_route_block_other_kinds() {
    for scheme in ["udp", "kafka"] {
        blocked(Kind::Upstream, &with(upstream(), json!({"scheme": scheme})), &["scheme"]);
    }
    blocked(Kind::Service, &json!({"plugins": {"key-auth": {}}}), &["plugins.key-auth"]);
    blocked(
        Kind::PluginConfig,
        &json!({"plugins": {"key-auth": {}, "proxy-rewrite": {"uri": "/x"}}}),
        &["plugins.key-auth"],
    );
    blocked(Kind::StreamRoute, &json!({"plugins": {"limit-conn": {}}}), &["plugins.limit-conn"]);
    blocked(Kind::StreamRoute, &json!({"plugins": {"proxy-rewrite": {}}}), &["plugins.proxy-rewrite"]);
    let off = json!({"plugins": {"proxy-rewrite": {"_meta": {"disable": true}}, "syslog": {}}});
    served(Kind::StreamRoute, &off, &["plugins.proxy-rewrite", "plugins.syslog"]);
    blocked(Kind::StreamRoute, &json!({"protocol": {"name": "redis"}}), &["protocol"]);
    blocked(
        Kind::GlobalRule,
        &json!({"plugins": {"cors": {}, "ip-restriction": {}}}),
        &["plugins.cors", "plugins.ip-restriction"],
    );
    blocked(
        Kind::GlobalRule,
        &json!({"plugins": {"proxy-rewrite": {"use_real_request_uri_unsafe": true}}}),
        &["plugins.proxy-rewrite.use_real_request_uri_unsafe"],
    );
    served(Kind::GlobalRule, &json!({"plugins": {"proxy-rewrite": {"uri": "/x"}}}), &[]);
    let client = json!({"ca": AUTHORITY.certificate_pem()});
    blocked(Kind::Ssl, &with(ssl(), json!({"key": "$secret://vault/1/a/b"})), &["key"]);
    blocked(
        Kind::Ssl,
        &with(ssl(), json!({"client": with(client.clone(), json!({"new": 1}))})),
        &["client.new"],
    );
    blocked(Kind::Ssl, &with(ssl(), json!({"key": ssl()["key"]})), &["key"]);
    let unread = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
    let unread = json!({"client": {"ca": AUTHORITY.certificate_pem() + unread}});
    blocked(Kind::Ssl, &with(ssl(), unread), &["client.ca"]);
    let pattern = json!({"client": with(client, json!({"skip_mtls_uri_regex": ["(?=x)"]}))});
    blocked(Kind::Ssl, &with(ssl(), pattern), &["client.skip_mtls_uri_regex[1]"]);
}

/// Cases C16 and C17: APISIX fails each request, whatever the route was before.
#[test]
fn case_c16_c17_an_invalid_upstream_cert_blocks_its_route() {
    let pair = AUTHORITY.issue(&pki::ca::LeafSpec::client("c")).unwrap();
    let tls = |cert: &str, key: &str| {
        let tls = json!({"tls": {"client_cert": cert, "client_key": key}, "scheme": "https"});
        with(route(), json!({"upstream": with(upstream(), tls)}))
    };
    for (document, field, text) in [
        (tls(&"x".repeat(200), &pair.key_pem), "tls.client_cert", "PEM_read_bio_X509_AUX() failed"),
        (
            tls(&pair.certificate_pem, &"!".repeat(100)),
            "tls.client_key",
            "failed to decrypt previous encrypted key",
        ),
    ] {
        let resource = blocked(Kind::Route, &document, &[&format!("upstream.{field}")]);
        assert!(resource.blocked().unwrap().reason().contains(text), "{resource:?}");
        let snapshot = snapshot([resource]);
        assert_eq!(found(&snapshot, "a.com", "/a/b"), Err(Reason::BlockedRoute));
    }
}

#[test]
fn an_invalid_document_keeps_its_predecessor() {
    kept(Kind::Route, &with(route(), json!({"timeout": {"connect": 1}})), "timeout.send");
    kept(Kind::Route, &with(route(), json!({"methods": ["BREW"]})), "methods[1]");
    kept(Kind::Upstream, &json!("{"), "");
    kept(Kind::Upstream, &json!({"nodes": "none"}), "nodes");
    kept(Kind::Service, &json!(null), "");
    kept(Kind::GlobalRule, &json!(["x"]), "");
    kept(Kind::GlobalRule, &json!({"id": "1"}), "plugins");
    // The store describes what it could not read.
    let (_, findings) = settled(Kind::Route, &json!("<9 bytes that are not JSON>"), None);
    assert!(findings[0].contains("it should be an object: <9 bytes that are not JSON>"), "{findings:?}");
    kept(Kind::Ssl, &with(ssl(), json!({"key": "!".repeat(100)})), "key");
    kept(Kind::Ssl, &with(ssl(), json!({"cert": "x".repeat(200)})), "cert");
    kept(Kind::Ssl, &with(ssl(), json!({"client": {"depth": 1}})), "client.ca");
}

#[test]
fn unreadable_matchers_are_dropped_with_a_finding() {
    let nothing = [
        (Kind::Route, json!("not an object")),
        (Kind::Route, json!({"uri": 1, "plugins": {"jwt-auth": {}}})),
        (Kind::Route, json!({"uri": "/", "host": "a..b", "plugins": {"jwt-auth": {}}})),
        (Kind::StreamRoute, json!("x")),
        (Kind::StreamRoute, json!({"sni": "a..b"})),
        (Kind::Ssl, json!(7)),
        (Kind::Ssl, json!({"sni": 7, "cert": "x"})),
    ];
    for (kind, document) in nothing {
        let (resource, findings) = settled(kind, &document, None);
        assert!(resource.is_none(), "{document}");
        assert!(findings[0].contains("the data planes have none"), "{findings:?}");
        // A blocked predecessor stays blocked.
        let before = crate::samples::block(adopted(kind, &good(kind)).resolve(None).0.unwrap());
        let (resource, findings) = settled(kind, &document, Some(&before));
        assert!(resource.is_none() && findings[0].contains("stays blocked"), "{findings:?}");
    }
}

#[test]
fn a_newer_document_changes_the_blocked_matchers() {
    let before = blocked(Kind::Route, &with(route(), json!({"script_id": "1"})), &["script_id"]);
    let (now, _) = settled(Kind::Route, &with(route(), json!({"uri": "/b", "timeout": 1})), Some(&before));
    assert!(matches!(now, Some(Resource::Route(route)) if route.uris[0].as_str() == "/b"));
}

#[test]
fn messages_are_bounded_single_lines_without_keys() {
    let long = "x\ny".repeat(100_000);
    let document = with(
        route(),
        json!({"plugins": {long.clone(): {}}, "upstream": with(upstream(), json!({"scheme": long}))}),
    );
    let (resource, found) = adopted(Kind::Route, &document).resolve(None);
    let why = resource.unwrap().blocked().unwrap().reason().to_owned();
    assert!(why.len() <= 600 && !why.contains('\n'), "{}", why.len());
    assert!(found.iter().all(|finding| finding.message.len() < 2000), "{}", found[0].message.len());
    let key = ssl()["key"].as_str().unwrap().to_owned();
    let document = with(ssl(), json!({"key": key, "new": 1}));
    assert!(!format!("{:?}", adopted(Kind::Ssl, &document)).contains(key.lines().nth(1).unwrap()));
}

fn snapshot(resources: impl IntoIterator<Item = Resource>) -> Snapshot {
    let upserts = resources.into_iter().map(|resource| Versioned { version: 1, resource }).collect();
    Snapshot::empty().apply(&Delta { from: 0, to: 1, upserts, removals: vec![] })
}

fn local() -> IpAddr {
    "127.0.0.1".parse().unwrap()
}

fn found(snapshot: &Snapshot, host: &str, path: &str) -> Result<String, Reason> {
    let target = RequestTarget::new(None, Some(host), path, PathOptions::default()).unwrap();
    destination::find(snapshot, &target, "GET", local(), &NoVariables).map(|found| found.route.id.to_string())
}

fn other_route() -> Resource {
    compile(Kind::Route, &id("other"), &json!({"uri": "/*", "upstream": upstream()}), &Keyring::empty())
        .unwrap()
}

#[test]
fn a_blocked_route_shadows_broader_ones() {
    let auth = json!({"plugins": {"jwt-auth": {}}});
    let by = |kind, document: Value| adopted(kind, &document).resolve(None).0.unwrap();
    let route_of = |more: Value| by(Kind::Route, with(route(), more));
    let blocked = snapshot([other_route(), route_of(auth.clone())]);
    assert_eq!(found(&blocked, "a.com", "/a/b"), Err(Reason::BlockedRoute));
    assert_eq!(found(&blocked, "a.com", "/b").as_deref(), Ok("other"));
    let off = snapshot([other_route(), route_of(with(auth.clone(), json!({"status": 0})))]);
    assert_eq!(found(&off, "a.com", "/a/b").as_deref(), Ok("other"), "it is switched off");

    // The service of a route with its own upstream counts, too.
    let service = by(Kind::Service, with(json!({"hosts": ["s.com"]}), auth.clone()));
    let own = json!({"uri": "/*", "service_id": "1", "upstream": upstream()});
    let of_service = snapshot([other_route(), service, by(Kind::Route, own)]);
    assert_eq!(found(&of_service, "s.com", "/"), Err(Reason::BlockedService));
    assert_eq!(found(&of_service, "a.com", "/").as_deref(), Ok("other"));

    let upstream_id = json!({"uri": "/u", "upstream_id": "1"});
    let grpc = by(Kind::Upstream, with(upstream(), json!({"scheme": "kafka"})));
    let of_upstream = snapshot([other_route(), grpc, by(Kind::Route, upstream_id.clone())]);
    assert_eq!(found(&of_upstream, "a.com", "/u"), Err(Reason::BlockedUpstream));
    let absent = snapshot([other_route(), by(Kind::Route, upstream_id)]);
    assert_eq!(found(&absent, "a.com", "/u"), Err(Reason::UpstreamMissing));

    let rule = |more| by(Kind::GlobalRule, json!({"plugins": more}));
    let all = snapshot([other_route(), rule(json!({"ip-restriction": {}}))]);
    assert_eq!(found(&all, "a.com", "/"), Err(Reason::BlockedGlobalRule));
    assert_eq!(all.blocking_global_rule().map(Id::as_str), Some("1"));
    let harmless = all.apply(&Delta {
        upserts: vec![Versioned { version: 2, resource: rule(json!({"prometheus": {}})) }],
        ..Delta::default()
    });
    assert_eq!(found(&harmless, "a.com", "/").as_deref(), Ok("other"));
    let gone = all.apply(&Delta { removals: vec![Key::new(Kind::GlobalRule, id("1"))], ..Delta::default() });
    assert_eq!(found(&gone, "a.com", "/").as_deref(), Ok("other"));
}

#[test]
fn a_blocked_site_is_not_served_by_wildcard_or_other_handshake() {
    let exact = with(ssl(), json!({"client": {"ca": AUTHORITY.certificate_pem()}, "key": "!".repeat(100)}));
    let exact = adopted(Kind::Ssl, &exact).resolve(None).0.unwrap();
    let Resource::Ssl(wild) =
        compile(Kind::Ssl, &id("2"), &with(ssl(), json!({"sni": "*.com"})), &Keyring::empty()).unwrap()
    else {
        panic!()
    };
    let sites = snapshot([exact, Resource::Ssl(Arc::clone(&wild))]);
    let name = |text: &str| HostName::from_host(text).unwrap();
    assert!(sites.site(&name("a.com")).unwrap().blocked.is_some());
    assert!(sites.site(&name("b.com")).unwrap().blocked.is_none());
    let ask = |sni: &str, ssl: &Ssl, host: &str| {
        let (sni, client) = (name(sni), ClientVerification::NotRequested);
        let target = RequestTarget::new(None, Some(host), "/", PathOptions::default()).unwrap();
        admission::admit(
            &admission::ConnectionAuth { sni: &sni, ssl: Some(ssl), client: &client },
            &sites,
            &target,
        )
        .map(drop)
    };
    assert_eq!(ask("b.com", &wild, "b.com"), Ok(()));
    assert_eq!(ask("b.com", &wild, "a.com"), Err(Reason::BlockedSite));
    // The connection is older than the block.
    assert_eq!(ask("a.com", sites.site(&name("a.com")).unwrap(), "a.com"), Err(Reason::BlockedSite));
}

#[test]
fn a_blocked_stream_route_keeps_its_matchers() {
    let by = |own: &str, document: Value| {
        compile_stored(Kind::StreamRoute, &id(own), &document, &Keyring::empty()).resolve(None).0.unwrap()
    };
    let blocked = by(
        "1",
        json!({"sni": "a.com", "remote_addr": "no address", "protocol": {"name": "redis"}, "upstream": upstream()}),
    );
    let streams = snapshot([blocked, by("2", json!({"upstream": upstream()}))]);
    let sni = HostName::from_sni("a.com").unwrap();
    let query = |sni| StreamQuery { sni, remote: local(), server: "127.0.0.1:9100".parse().unwrap() };
    let taken = |sni| streams.find_stream_route(&query(sni)).map(|route| route.id.to_string());
    assert_eq!(taken(Some(&sni)).as_deref(), Some("1"));
    assert_eq!(taken(None).as_deref(), Some("2"));
}

fn some_route_document() -> impl Strategy<Value = Value> {
    let uris = proptest::sample::select(vec!["/", "/*", "/a", "/a*", "/a/*", "/a/b", "/a/*/c", "/a/*/*/c"]);
    let hosts = proptest::sample::subsequence(vec!["a.com", "*.a.com", "b.a.com", "*"], 0..=2);
    let methods = proptest::sample::subsequence(vec!["GET", "POST"], 0..=1);
    let more = (-1..2_i32, prop::bool::weighted(0.2), prop::bool::weighted(0.2), prop::bool::weighted(0.9));
    (uris, hosts, methods, more).prop_map(|(uri, hosts, methods, (priority, local, vars, enabled))| {
        let mut document = json!({"uri": uri, "methods": methods, "priority": priority, "status": i32::from(enabled),
            "upstream": upstream()});
        if !hosts.is_empty() {
            document["hosts"] = json!(hosts);
        }
        if local {
            document["remote_addr"] = json!("127.0.0.0/8");
        }
        if vars {
            document["vars"] = json!([["arg_a", "!", "==", "1"]]);
        }
        document
    })
}

fn some_obstacle() -> impl Strategy<Value = Value> {
    proptest::sample::select(vec![
        json!({"plugins": {"jwt-auth": {}}}),
        json!({"filter_func": "function() return true end"}),
        json!({"vars": [["graphql_name", "==", "x"]]}),
        json!({"methods": ["BREW", "GET", "POST"]}),
        json!({"remote_addr": null, "remote_addrs": ["nowhere", "127.0.0.0/8"]}),
        json!({"timeout": "soon"}),
        json!({"upstream": 7}),
    ])
}

proptest! {
    /// A blocked route takes the requests of the real one, among any other routes.
    #[test]
    fn a_blocked_route_matches_at_least_the_real_routes_requests(
        routes in prop::collection::vec(some_route_document(), 1..6), obstacle in some_obstacle(), rivals in any::<bool>(),
        host in proptest::sample::select(vec!["a.com", "b.a.com", "c.b.a.com", "x.org"]),
        path in proptest::sample::select(vec!["/", "/a", "/a/b", "/a/x/c", "/ab", "/a/x/y/c"]),
        method in proptest::sample::select(vec!["GET", "POST", "PUT"]),
    ) {
        let compiled = |at: usize, document: &Value| compile(Kind::Route, &id(&at.to_string()), document, &Keyring::empty()).unwrap();
        let place = |member: &str| routes[0].get(member).map(|value| (member.to_owned(), value.clone()));
        let place: Value = ["uri", "hosts"].into_iter().filter_map(place).collect::<serde_json::Map<_, _>>().into();
        // Priority and order decide among routes with the same path.
        let routes: Vec<Value> =
            routes.iter().map(|route| if rivals { with(route.clone(), place.clone()) } else { route.clone() }).collect();
        let real: Vec<Resource> = routes.iter().enumerate().map(|(at, document)| compiled(at, document)).collect();
        let mut with_blocked = real.clone();
        let (blocked, _) = compile_stored(Kind::Route, &id("0"), &with(routes[0].clone(), obstacle), &Keyring::empty()).resolve(None);
        let blocked = blocked.unwrap();
        prop_assert!(blocked.blocked().is_some());
        with_blocked[0] = blocked;
        let host = HostName::from_host(host);
        let query = RouteQuery { host: host.as_ref(), path, method, remote: local(), variables: &NoVariables };
        let taken = |resources: Vec<Resource>| snapshot(resources).find_route(&query).map(|route: &Arc<Route>| route.id.clone());
        if taken(real).is_some_and(|id| id.as_str() == "0") {
            let taken = taken(with_blocked).unwrap();
            prop_assert_eq!(taken.as_str(), "0");
        }
    }

    /// Any stored document compiles without a panic, and a served or blocked resource decodes on a
    /// data plane.
    #[test]
    fn any_stored_document_compiles_without_panic(
        kind in proptest::sample::select(Kind::ALL.to_vec()),
        members in prop::collection::hash_map(some_member(), some_value(), 0..6),
    ) {
        let document = Value::Object(members.into_iter().collect());
        let (resource, findings) = settled(kind, &document, None);
        prop_assert!(resource.is_some() || !findings.is_empty());
    }
}

fn some_member() -> impl Strategy<Value = String> {
    let names = [
        "uri",
        "uris",
        "host",
        "hosts",
        "sni",
        "snis",
        "plugins",
        "upstream",
        "cert",
        "key",
        "type",
        "nodes",
        "vars",
        "priority",
        "methods",
        "remote_addr",
        "service_id",
        "status",
        "server_port",
        "checks",
        "scheme",
        "tls",
        "enable_websocket",
        "",
    ];
    proptest::sample::select(names.to_vec()).prop_map(str::to_owned)
}

fn some_value() -> impl Strategy<Value = Value> {
    proptest::sample::select(vec![
        json!(null),
        json!(true),
        json!(0),
        json!(-1),
        json!(1e300),
        json!("/a*b"),
        json!("a.com"),
        json!("a.com:80"),
        json!("[::1]:80"),
        json!(["/", "a.com", 7]),
        json!([]),
        json!({}),
        json!("*"),
        json!("client"),
        json!({"jwt-auth": {}}),
        json!({"gzip": 1}),
        json!({"proxy-rewrite": []}),
        json!({"nodes": {"a:1": 1}, "type": "chash"}),
        json!({"nodes": [], "checks": {"active": {}}}),
    ])
}

#[test]
fn every_form_of_nodes_that_apisix_stores_is_served() {
    for (nodes, host, port) in [
        (json!([{"host": "127.0.0.1:1980", "weight": 1}]), "127.0.0.1", Some(1980)),
        (json!([{"host": "[::1]:80", "weight": 1, "port": 81, "priority": 0}]), "[::1]", Some(80)),
        (json!([{"host": "::1", "weight": 1, "port": 81}]), "[::1]", Some(81)),
        (json!({"[::1]:80": 1}), "[::1]", Some(80)),
    ] {
        for document in [
            with(upstream(), json!({"nodes": nodes, "discovery_args": {}})),
            with(upstream(), json!({"nodes": nodes, "checks": {"active": {}}})),
        ] {
            let Some(Resource::Upstream(served)) = settled(Kind::Upstream, &document, None).0 else {
                panic!("{document}")
            };
            assert!(served.blocked.is_none(), "{document}: {:?}", served.blocked);
            assert_eq!((served.nodes[0].host.as_str(), served.nodes[0].port), (host, port), "{document}");
        }
        let inline = with(route(), json!({"upstream": with(upstream(), json!({"nodes": nodes}))}));
        let (resource, findings) = settled(Kind::Route, &inline, None);
        assert!(resource.unwrap().blocked().is_none() && findings.is_empty(), "{findings:?}");
    }
    // APISIX accepts such a document and answers 503.
    for host in ["foo.com:", "foo.com:0", "foo.com:65536", "*"] {
        blocked(
            Kind::Upstream,
            &with(upstream(), json!({"nodes": [{"host": host, "weight": 1}]})),
            &["nodes[1]"],
        );
    }
}

/// A text that APISIX obeys and the strict parser rejects is blocked, whatever its predecessor.
#[test]
fn text_that_only_apisix_parses_is_blocked() {
    let key = crate::Key::new(Kind::Route, id("1"));
    let unread = |text: &[u8], before: Option<&Resource>| {
        let salvaged = SalvagedDocument::read(text).unwrap();
        super::compile_salvaged(&key, "<7 bytes that are not JSON>", &salvaged).resolve(before)
    };
    let before = served(Kind::Route, &route(), &[]);
    let deep = format!("{{\"uri\": \"/a/*\", \"vars\": {}{}}}", "[".repeat(200), "]".repeat(200));
    for text in [
        &b"{\"uri\": \"/a/*\", \"desc\": \"caf\xe9\"}"[..],
        br#"{"uri": "/b", "plugins": {"key-auth": {}}, "uri": "/a/*"}"#,
        br#"{"uri": "/a/*", "desc": "\ud800"}"#,
        deep.as_bytes(),
    ] {
        assert!(crate::json::parse(text).is_err());
        for before in [None, Some(&before)] {
            let (resource, found) = unread(text, before);
            let Some(Resource::Route(route)) = resource else { panic!("{found:?}") };
            assert!(route.blocked.is_some() && route.uris[0].to_string() == "/a/*", "{route:?}");
            assert!(
                found[0].message.contains("not JSON") && found[0].severity == Severity::Error,
                "{found:?}"
            );
        }
    }
    // No gateway obeys a truncated text: the predecessor stays, or else it is blocked.
    let cut = br#"{"uri": "/a/*", "plugins": {"key-auth"#;
    assert!(unread(cut, None).0.unwrap().blocked().is_some());
    assert_eq!(unread(cut, Some(&before)).0, None);
    assert_eq!(unread(b"{", None).0, None, "it cannot be findings what it was to take");
}
