//! Messages of the Admin API (contract 4.1, 3.2, 3.3; numbers are those of the reference cases),
//! and the gateway's own limits.

use pki::ca::{Authority, AuthoritySpec, KeyAlgorithm, LeafSpec};
use rustls_pki_types::UnixTime;

use super::*;
use crate::pattern::NamePattern;
use crate::resource::{PassHost, Scheme, TlsVersion, UpstreamIdentity, UpstreamRef, references};
use crate::samples::AUTHORITY;

const BAD_CERT: &str = "failed to parse cert: PEM_read_bio_X509_AUX() failed";
const BAD_KEY: &str = "failed to parse key: PEM_read_bio_PrivateKey() failed";

/// A time in 2026, when default test certificates are valid.
fn now() -> UnixTime {
    UnixTime::since_unix_epoch(std::time::Duration::from_secs(1_780_000_000))
}

fn ca() -> String {
    AUTHORITY.certificate_pem()
}

fn client(changes: Value) -> Value {
    json!({"client": with(json!({"ca": ca()}), changes)})
}

#[test]
fn a_valid_ssl_keeps_every_field() {
    let document = ssl(json!({
        "sni": null, "snis": ["Test.com.", "*.test.com", "test.com"], "status": 0,
        "client": {"ca": ca() + &ca(), "depth": 2, "skip_mtls_uri_regex": ["^/hello[0-9]+"]},
        "ssl_protocols": ["TLSv1.3", "TLSv1.2"], "labels": {"env": "x"}, "desc": "$env://not/a/reference/here"
    }));
    let Resource::Ssl(resource) = checked(Kind::Ssl, &document).unwrap() else { panic!("not an ssl") };
    let names: Vec<_> = resource.names.iter().map(NamePattern::to_string).collect();
    assert_eq!(names, ["test.com", "*.test.com"]);
    assert!(!resource.enabled && !resource.client_side);
    assert_eq!(resource.versions, Some(vec![TlsVersion::V12, TlsVersion::V13]));
    let policy = resource.client.as_ref().unwrap();
    assert_eq!((policy.depth(), policy.anchors().certificates().len()), (2, 1));
    assert!(policy.skips_path("/hello1") && !policy.skips_path("/hello"));
    assert_eq!(resource.pairs[0].chain, PAIRS[0].chain);
    assert!(references(&Resource::Ssl(resource)).is_empty());
}

#[test]
fn ssl_schema_messages() {
    let then = "invalid configuration: then clause did not match";
    assert_eq!(
        refused_ssl(json!({"client": {}})),
        "invalid configuration: property \"client\" validation failed: property \"ca\" is required"
    ); // A4
    assert_eq!(refused_ssl(json!({"cert": null, "key": null})), then); // H6
    assert_eq!(refused_ssl(json!({"cert": null, "key": null, "certs": [pem(0).0], "keys": []})), then); // H12
    assert_eq!(refused_ssl(json!({"sni": null})), then); // H17
    assert_eq!(refused_ssl(json!({"snis": ["a.com"]})), then);
    assert_eq!(
        refused_ssl(json!({"type": "client", "key": null})),
        "invalid configuration: else clause did not match"
    );
    assert_eq!(
        refused_ssl(json!({"labels": {"env": ["x"]}})),
        "invalid configuration: property \"labels\" validation failed: failed to validate env (matching \".*\"): wrong type: expected string, got table"
    ); // H14
    assert_eq!(
        refused_ssl(json!({"certs": ["https://APISIX_TEST_SSL_CERTS"]})),
        "invalid configuration: property \"certs\" validation failed: failed to validate item 1: string too short, expected at least 128, got 29"
    ); // H21
    assert_eq!(
        refused_ssl(json!({"sni": null, "snis": []})),
        "invalid configuration: property \"snis\" validation failed: expect array to have at least 1 items"
    ); // I10
    assert_eq!(
        refused_ssl(json!({"ssl_protocols": ["TLSv1.0", "TLSv1.2"]})),
        "invalid configuration: property \"ssl_protocols\" validation failed: failed to validate item 1: matches none of the enum values"
    ); // J2
    let problem = problem_of(Kind::Ssl, &ssl(json!({"sni": null})));
    assert_eq!(problem.field, "sni");
    assert_eq!(problem.hint.unwrap(), "add \"sni\" or \"snis\" beside \"key\" and \"cert\"");
}

#[test]
fn ssl_pem_messages_in_order() {
    let junk = "test.com".repeat(128);
    let truncated = pem(0).0.split_at(200).0.to_owned();
    assert_eq!(refused_ssl(json!({"cert": truncated, "key": junk})), BAD_CERT); // I6, M4
    let (cert, key) = pem(1);
    let truncated = key.split_at(100).0.to_owned();
    assert_eq!(refused_ssl(json!({"key": truncated})), BAD_KEY); // I7
    let pair = |text: &str| format!("failed to handle cert-key pair[1]: {text}");
    assert_eq!(refused_ssl(json!({"certs": [junk], "keys": [key]})), pair(BAD_CERT)); // I8
    assert_eq!(refused_ssl(json!({"certs": [cert], "keys": [truncated]})), pair(BAD_KEY)); // I9
    assert_eq!(refused_ssl(json!({"certs": [junk]})), "mismatched number of certs and keys");
    let bad_ca = "failed to validate client_cert: failed to parse cert: PEM_read_bio_X509_AUX() failed";
    assert_eq!(refused_ssl(json!({"client": {"ca": junk}})), bad_ca); // A3
    assert_eq!(refused_ssl(json!({"client": {"ca": junk}, "certs": [junk], "keys": [key]})), pair(BAD_CERT));
    // An ssl of type client stops after its first pair (contract 4.1, step 3).
    let identity = ssl(json!({"type": "client", "sni": null, "certs": [junk], "client": {"ca": junk}}));
    let Resource::Ssl(resource) = checked(Kind::Ssl, &identity).unwrap() else { panic!("not an ssl") };
    assert!(
        resource.client_side
            && resource.client.is_none()
            && resource.names.is_empty()
            && resource.pairs.len() == 1
    );
}

#[test]
fn keys_decrypt_with_the_keyring_only() {
    let ring = |key: &str| Keyring::new(vec![key.to_owned()]).unwrap();
    let (ours, foreign) = (ring("qeddd145sfvddff3"), ring("1234567890123456"));
    let (cert, key) = pem(1);
    let with_keys =
        |first: String, second: String| ssl(json!({"key": first, "certs": [cert], "keys": [second]}));
    let own = pem(0).1;
    let sealed = with_keys(ours.seal(&own), ours.seal(&key));
    assert!(compile(Kind::Ssl, &id("1"), &sealed, &ours).is_ok());
    let message_of = |document: &Value| compile(Kind::Ssl, &id("1"), document, &ours).unwrap_err().message;
    assert_eq!(
        message_of(&with_keys(foreign.seal(&own), key.clone())),
        "failed to decrypt previous encrypted key"
    ); // L11
    assert_eq!(
        message_of(&with_keys(own.clone(), foreign.seal(&key))),
        "failed to handle cert-key pair[1]: failed to decrypt previous encrypted key"
    ); // M3
    assert_eq!(message_of(&with_keys("!".repeat(100), key)), "failed to decrypt previous encrypted key");
}

#[test]
fn a_key_of_another_certificate_is_invalid() {
    let (cert, key) = pem(1);
    let problem = problem_of(Kind::Ssl, &ssl(json!({"key": key})));
    assert_eq!(problem.field, "key");
    assert!(problem.message.starts_with("key does not belong to cert"), "{problem}");
    let problem = problem_of(Kind::Ssl, &ssl(json!({"certs": [cert], "keys": [pem(0).1]})));
    assert_eq!(problem.field, "keys[1]");
    assert!(
        problem.message.starts_with("failed to handle cert-key pair[1]: keys[1] does not belong"),
        "{problem}"
    );
    let tls = json!({"tls": {"client_cert": cert, "client_key": pem(0).1}});
    assert_eq!(problem_of(Kind::Upstream, &upstream(tls)).field, "tls.client_key");
}

#[test]
fn unsupported_ssl_fields_are_rejected() {
    assert_eq!(problem_of(Kind::Ssl, &ssl(json!({"ssl_protocols": []}))).field, "ssl_protocols");
    let (cert, key) = pem(1);
    for (changes, field) in [
        (json!({"cert": "$secret://vault/test/ssl/x"}), "cert"),
        (json!({"key": "$ENV://KEY"}), "key"),
        (json!({"certs": [cert], "keys": ["$env://KEY"]}), "keys[1]"),
        (json!({"certs": [cert, "$env://CERT"], "keys": [key, key]}), "certs[2]"),
        (json!({"client": {"ca": "$env://CA"}}), "client.ca"),
        (json!({"sni": "$env://NAME"}), "sni"),
        (json!({"type": "$env://TYPE"}), "type"),
    ] {
        let problem = problem_of(Kind::Ssl, &ssl(changes));
        assert_eq!(problem.field, field);
        assert!(problem.message.contains("not supported"), "{problem}");
    }
    assert_eq!(problem_of(Kind::Ssl, &ssl(json!({"sni": "a..com"}))).field, "sni");
}

#[test]
fn skip_patterns_that_need_backtracking_are_invalid() {
    let problem = problem_of(Kind::Ssl, &ssl(client(json!({"skip_mtls_uri_regex": ["^/a", "(a)\\1"]}))));
    assert_eq!(problem.field, "client.skip_mtls_uri_regex[2]");
}

#[test]
fn crls_need_a_known_issuer() {
    let crl = |authority: &Authority| {
        let der = authority.crl(&pki::ca::CrlSpec::default()).unwrap();
        format!("-----BEGIN X509 CRL-----\n{}-----END X509 CRL-----\n", base64_lines(&der))
    };
    let own = crl(&AUTHORITY);
    let good = ssl(client(json!({"crl": [own], "crl_policy": "prefer"})));
    let Resource::Ssl(resource) = checked(Kind::Ssl, &good).unwrap() else { panic!("not an ssl") };
    let policy = resource.client.as_ref().unwrap();
    assert!(policy.crl_prefer() && policy.crls().len() == 1);
    let other = Authority::root(&AuthoritySpec::new("Other")).unwrap();
    let problem = problem_of(Kind::Ssl, &ssl(client(json!({"crl": [own, crl(&other)]}))));
    assert_eq!(problem.field, "client.crl[2]");
    assert!(problem.message.contains("Other"), "{problem}");
    assert_eq!(problem_of(Kind::Ssl, &ssl(client(json!({"crl": ["junk"]})))).field, "client.crl[1]");
    let message = refused_ssl(client(json!({"crl_policy": "prefer"})));
    assert!(
        message.ends_with(
            "failed to validate dependent schema for \"crl_policy\": property \"crl\" is required"
        )
    );
}

#[test]
fn unusable_anchors_are_rejected_on_write() {
    let message_of = |anchor: String| {
        let resource = checked(Kind::Ssl, &ssl(json!({"client": {"ca": anchor}}))).unwrap();
        check_validity_period(&resource, now()).map_err(|problem| {
            assert_eq!(problem.field, "client.ca");
            problem.message
        })
    };
    let at = |seconds| UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
    let authority = |spec: AuthoritySpec| Authority::root(&spec).unwrap().certificate_pem();
    assert_eq!(message_of(ca()), Ok(()));
    let expired = authority(AuthoritySpec::new("Old").between(at(1_600_000_000), at(1_700_000_000)));
    assert!(message_of(ca() + &expired).unwrap_err().contains("Old\" is expired"));
    let early = authority(AuthoritySpec::new("Young").between(at(1_790_000_000), at(1_800_000_000)));
    assert!(message_of(early).unwrap_err().contains("not valid yet"));
    // A client's own certificate is pinned; a server's certificate is a mistake.
    let leaf = |spec: &LeafSpec| AUTHORITY.issue(spec).unwrap().certificate_pem;
    assert_eq!(message_of(leaf(&LeafSpec::client("me"))), Ok(()));
    let server = LeafSpec::server("a.com").usages(pki::ca::Usages { server: true, client: false });
    assert!(message_of(leaf(&server)).unwrap_err().contains("is not a CA"));
}

#[test]
fn every_key_type_is_accepted() {
    for algorithm in [KeyAlgorithm::P256, KeyAlgorithm::P384, KeyAlgorithm::Ed25519] {
        let issued = AUTHORITY.issue(&LeafSpec::server("a.com").algorithm(algorithm)).unwrap();
        let document = ssl(json!({"cert": issued.chain_pem, "key": *issued.key_pem}));
        assert!(checked(Kind::Ssl, &document).is_ok());
    }
}

// === upstreams ===

#[test]
fn a_valid_upstream_keeps_every_field() {
    let (cert, key) = pem(0);
    let document = upstream(json!({
        "nodes": {"a.com": 1, "b.com:81": 0, "[::1]:82": 2}, "scheme": "https", "retries": 2, "retry_timeout": 0,
        "timeout": {"connect": 0.0001, "send": 6, "read": 6.5}, "pass_host": "rewrite", "upstream_host": "up.com",
        "keepalive_pool": {"size": 7}, "type": "roundrobin", "tls": {"client_cert": cert, "client_key": key, "verify": true}
    }));
    let Resource::Upstream(resource) = checked(Kind::Upstream, &document).unwrap() else {
        panic!("not an upstream")
    };
    let nodes: Vec<_> =
        resource.nodes.iter().map(|node| (node.host.as_str(), node.port, node.weight)).collect();
    assert_eq!(nodes, [("a.com", None, 1), ("b.com", Some(81), 0), ("[::1]", Some(82), 2)]);
    assert_eq!(
        (resource.scheme, resource.pass_host, resource.retries),
        (Scheme::Https, PassHost::Rewrite, Some(2))
    );
    assert_eq!(resource.retry_timeout, None);
    let timeout = resource.timeout.unwrap();
    let milliseconds = [timeout.connect, timeout.send, timeout.read].map(|time| time.as_millis());
    assert_eq!(milliseconds, [1, 6000, 6500], "a little is never none");
    assert_eq!(resource.keepalive.unwrap().size, 7);
    assert_eq!(resource.keepalive.unwrap().requests, 1000);
    assert!(
        resource.tls.verify == Some(true)
            && matches!(&resource.tls.identity, Some(UpstreamIdentity::Inline(pair)) if *pair == PAIRS[0])
    );
}

#[test]
fn upstream_messages() {
    let (cert, key) = pem(0);
    let both = json!({"tls": {"client_cert_id": 1, "client_cert": cert, "client_key": key}});
    assert_eq!(
        refused_upstream(both),
        "invalid configuration: property \"tls\" validation failed: failed to validate dependent schema for \"client_cert_id\": value wasn't supposed to match schema"
    ); // W1
    let inline = json!({"upstream": upstream(json!({"tls": {"client_cert": cert}}))});
    assert_eq!(
        refused_route(inline),
        "invalid configuration: property \"upstream\" validation failed: property \"tls\" validation failed: failed to validate dependent schema for \"client_cert\": property \"client_key\" is required"
    ); // C2
    let ring = Keyring::new(vec!["qeddd145sfvddff3".to_owned()]).unwrap();
    let sealed = upstream(json!({"tls": {"client_cert": cert, "client_key": "AAA".repeat(128)}}));
    let problem = compile(Kind::Route, &id("1"), &route(json!({"upstream": sealed})), &ring).unwrap_err();
    assert_eq!(problem.message, "failed to decrypt previous encrypted key"); // C3
    assert_eq!(problem.field, "upstream.tls.client_key");
    assert_eq!(refused_upstream(json!({"type": "chash"})), "missing key"); // W6
    let ipv6 = "invalid configuration: IPv6 address must be enclosed with '[' and ']'";
    assert_eq!(refused_upstream(json!({"nodes": [{"host": "::1", "port": 80, "weight": 1}]})), ipv6); // W7
    assert_eq!(refused_upstream(json!({"nodes": {"::1": 1}})), ipv6);
    assert_eq!(refused_upstream(json!({"nodes": {"a.com:65536": 1}})), "invalid port 65536");
    assert_eq!(refused_upstream(json!({"nodes": {"a.com:0": 1}})), "invalid port 0");
    assert_eq!(
        refused_upstream(json!({"pass_host": "rewrite"})),
        "`upstream_host` can't be empty when `pass_host` is `rewrite`"
    );
    assert_eq!(
        refused_upstream(json!({"nodes": null})),
        "invalid configuration: value should match only one schema, but matches none"
    );
    assert!(
        refused_upstream(json!({"timeout": {"connect": 0, "send": 1, "read": 1}}))
            .ends_with("expected 0 to be greater than 0")
    );
}

/// Follows ngx_parse_url, which parses the host that APISIX passes to nginx.
#[test]
fn a_port_in_a_nodes_host_wins_over_port() {
    let node = |changes: Value| {
        let accepted = compile(Kind::Upstream, &id("1"), &upstream(changes), &Keyring::new(vec![]).unwrap());
        let Ok(Resource::Upstream(accepted)) = accepted else { panic!("{accepted:?}") };
        (accepted.nodes[0].host.clone(), accepted.nodes[0].port)
    };
    for (host, beside, expected) in [
        ("127.0.0.1:1980", None, ("127.0.0.1", Some(1980))),
        ("127.0.0.1:1980", Some(80), ("127.0.0.1", Some(1980))),
        ("127.0.0.1", Some(80), ("127.0.0.1", Some(80))),
        ("[::1]:80", None, ("[::1]", Some(80))),
        ("[::1]:80", Some(443), ("[::1]", Some(80))),
        ("[::1]", None, ("[::1]", None)),
        ("Foo.COM:65535", None, ("Foo.COM", Some(65535))),
    ] {
        let mut item = json!({"host": host, "weight": 1});
        if let Some(port) = beside {
            item["port"] = json!(port);
        }
        assert_eq!(node(json!({"nodes": [item]})), (expected.0.to_owned(), expected.1), "{host} {beside:?}");
        if beside.is_none() {
            assert_eq!(node(json!({"nodes": {host: 1}})), (expected.0.to_owned(), expected.1), "{host}");
        }
    }
    for bad in [
        "foo.com:",
        "foo.com:0",
        "foo.com:65536",
        "foo.com:+80",
        "foo.com:8O",
        "[::1]:",
        "[::1]80",
        "[::1",
        ":80",
        "a:b:1",
        "[a.com]:1",
        "*",
    ] {
        for nodes in [json!([{"host": bad, "weight": 1}]), json!({bad: 1})] {
            assert!(
                problem_of(Kind::Upstream, &upstream(json!({"nodes": nodes}))).field.starts_with("nodes"),
                "{bad}"
            );
        }
    }
}

/// APISIX's dashboard sends them empty, beside nodes.
#[test]
fn discovery_args_without_a_type_are_ignored() {
    for arguments in [json!({}), json!({"namespace_id": "a"})] {
        let document = upstream(json!({"nodes": {"a.com:1": 1}, "discovery_args": arguments}));
        assert!(compile(Kind::Upstream, &id("1"), &document, &Keyring::new(vec![]).unwrap()).is_ok());
        let with_type =
            upstream(json!({"nodes": {"a.com:1": 1}, "discovery_args": {}, "discovery_type": "dns"}));
        assert_eq!(problem_of(Kind::Upstream, &with_type).field, "discovery_type");
    }
}

#[test]
fn unsupported_upstream_fields_are_rejected() {
    for (changes, field) in [
        (json!({"type": "chash", "key": "uri"}), "type"),
        (json!({"type": "least_conn"}), "type"),
        (json!({"scheme": "udp"}), "scheme"),
        (json!({"checks": {"active": {}}}), "checks"),
        (json!({"nodes": null, "service_name": "x", "discovery_type": "dns"}), "service_name"),
        (json!({"nodes": {"a.com:1": 1}, "discovery_type": "dns"}), "discovery_type"),
        (json!({"tls": {"client_cert": "$env://A", "client_key": "$env://B"}}), "tls.client_cert"),
    ] {
        let problem = problem_of(Kind::Upstream, &upstream(changes));
        assert_eq!(problem.field, field);
        assert!(problem.message.contains("not supported"), "{problem}");
    }
    assert_eq!(
        problem_of(Kind::Upstream, &upstream(json!({"nodes": [{"host": "*.a.com", "weight": 1}]}))).field,
        "nodes[1]"
    );
    assert_eq!(problem_of(Kind::Upstream, &upstream(json!({"retries": 1e10}))).field, "retries");
    assert_eq!(problem_of(Kind::Upstream, &upstream(json!({"tls": {"verfy": true}}))).field, "tls.verfy");
}

// === services and routes ===

#[test]
fn a_valid_route_keeps_every_field() {
    let document = json!({
        "uris": ["/a/*", "/b"], "hosts": ["A.com", "*.b.com"], "methods": ["GET"], "remote_addrs": ["10.1.2.3/8", "::1", "::ffff:127.0.0.0/104"],
        "priority": -3, "status": 0, "upstream_id": 7, "service_id": "s", "enable_websocket": true, "plugins": {}, "vars": [],
        "upstream": upstream(json!({}))
    });
    let Resource::Route(resource) = checked(Kind::Route, &document).unwrap() else { panic!("not a route") };
    assert_eq!(resource.uris.iter().map(ToString::to_string).collect::<Vec<_>>(), ["/a/*", "/b"]);
    assert_eq!(resource.hosts.iter().map(ToString::to_string).collect::<Vec<_>>(), ["a.com", "*.b.com"]);
    assert_eq!(
        resource.remote_addrs.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["10.0.0.0/8", "::1/128", "127.0.0.0/8"]
    );
    assert!(resource.methods.allows("GET") && !resource.methods.allows("POST"));
    assert_eq!((resource.priority, resource.enabled), (-3, false));
    assert_eq!(resource.upstream, Some(UpstreamRef::Id(id("7"))), "the id goes before the inline one");
    let named: Vec<_> = references(&Resource::Route(resource))
        .into_iter()
        .map(|named| (named.field, named.key.to_string()))
        .collect();
    assert_eq!(
        named,
        [
            ("upstream_id".to_owned(), "upstreams/7".to_owned()),
            ("service_id".to_owned(), "services/s".to_owned())
        ]
    );
    assert!(checked(Kind::Service, &json!({})).is_ok());
}

#[test]
fn reference_checks_use_the_contracts_messages() {
    let document = route(json!({"upstream": upstream(json!({"tls": {"client_cert_id": 9}}))}));
    let [named] = &references(&checked(Kind::Route, &document).unwrap())[..] else {
        panic!("not one reference")
    };
    assert_eq!(named.field, "upstream.tls.client_cert_id");
    assert_eq!(
        named.check(None).unwrap_err().message,
        "failed to fetch ssl info by ssl id [9], response code: 404"
    ); // W2
    let server = checked(Kind::Ssl, &ssl(json!({}))).unwrap();
    assert_eq!(
        named.check(Some(&server)).unwrap_err().message,
        "failed to fetch ssl info by ssl id [9], wrong ssl type"
    ); // W3
    let identity = checked(Kind::Ssl, &ssl(json!({"type": "client"}))).unwrap();
    assert_eq!(named.check(Some(&identity)), Ok(()));
}

#[test]
fn route_messages() {
    assert_eq!(
        refused_route(json!({"host": "a.com", "hosts": ["b.com"]})),
        "only one of host or hosts is allowed"
    );
    assert_eq!(
        refused_route(json!({"remote_addr": "::1", "remote_addrs": ["::1"]})),
        "only one of remote_addr or remote_addrs is allowed"
    );
    assert!(refused_route(json!({"upstream": null})).starts_with(
        "invalid configuration: object matches none of the required: [\"plugins\",\"uri\"] or "
    ));
    assert_eq!(
        refused_route(json!({"uris": ["/b"]})),
        "invalid configuration: allOf 1 failed: value should match only one schema, but matches both schemas 1 and 2"
    );
    assert_eq!(problem_of(Kind::Route, &route(json!({"remote_addr": "fe80::/200"}))).field, "remote_addr");
    let both = refused_route(json!({"remote_addr": "::ffff:127.0.0.0/80"}));
    assert!(both.contains("needs a prefix of 96 bits or more"), "{both}");
}

#[test]
fn unsupported_route_fields_are_rejected() {
    for (changes, field) in [
        (json!({"filter_func": "function(vars) return false end"}), "filter_func"),
        (json!({"script": "local _M = {} return _M"}), "script"),
        (json!({"script_id": 1}), "script_id"),
        (json!({"upstream": upstream(json!({"checks": {"active": {}}}))}), "upstream.checks"),
        (json!({"uri": "$env://URI"}), "uri"),
    ] {
        let problem = problem_of(Kind::Route, &route(changes));
        assert_eq!(problem.field, field);
        assert!(problem.message.contains("not supported"), "{problem}");
    }
    assert_eq!(problem_of(Kind::Route, &route(json!({"uri": "/a*b/c"}))).field, "uri");
    assert_eq!(problem_of(Kind::Route, &route(json!({"host": "a.com:8443"}))).field, "hosts");
}

#[test]
fn tls_1_1_needs_a_build_with_its_engine() {
    let old = ssl(json!({"ssl_protocols": ["TLSv1.2", "TLSv1.1"]}));
    if cfg!(feature = "engine-boring") {
        let Ok(Resource::Ssl(ssl)) = checked(Kind::Ssl, &old) else { panic!("is accepted") };
        assert_eq!(ssl.versions, Some(vec![TlsVersion::V11, TlsVersion::V12]));
    } else {
        let problem = problem_of(Kind::Ssl, &old);
        assert_eq!(problem.field, "ssl_protocols");
        let text = problem.to_string();
        assert!(text.contains("TLSv1.1") && text.contains("engine-boring"), "{text}");
    }
}

#[test]
fn extension_blocks_and_vars_compile() {
    let blocks = json!({
        "client_identity": {"forward": ["client_cert", "xfcc"], "allow": [{"spiffe": "spiffe://a.example/*"}]},
        "plugins": {"proxy-rewrite": {"uri": "/x", "headers": {"X-DN": "$ssl_client_s_dn"}}}
    });
    let document = with(route(blocks.clone()), json!({"vars": [["ssl_client_verify", "==", "SUCCESS"]]}));
    let Resource::Route(resource) = checked(Kind::Route, &document).unwrap() else { panic!("not a route") };
    assert!(resource.client_identity.as_ref().unwrap().forward().xfcc && !resource.vars.is_empty());
    assert_eq!(resource.proxy_rewrite.as_ref().unwrap().set().len(), 1);
    let Resource::Service(resource) = checked(Kind::Service, &blocks).unwrap() else {
        panic!("not a service")
    };
    assert!(resource.client_identity.is_some() && resource.proxy_rewrite.is_some());
    let names = crate::json_schema(Kind::Route)["properties"].to_string();
    assert!(names.contains("spki_sha256"), "{names}");
}

#[test]
fn messages_of_vars_blocks_and_the_plugin() {
    let message_of = |changes: Value| {
        let problem = problem_of(Kind::Route, &route(changes));
        (problem.field.clone(), problem.message)
    };
    assert_eq!(
        message_of(json!({"vars": [["remote_addr", "=", "10.0.0.1"]]})),
        ("vars[1]".into(), "failed to validate the 'vars' expression: invalid operator '='".into())
    );
    assert_eq!(
        message_of(json!({"vars": [["ssl_client_sdn", "==", "CN=a"]]})),
        (
            "vars[1]".into(),
            "failed to validate the 'vars' expression: unknown variable 'ssl_client_sdn'".into()
        )
    );
    assert_eq!(
        message_of(json!({"plugins": {"proxy-rewrite": {"headers": {"X": "$a"}}}})),
        (
            "plugins.proxy-rewrite.headers.X".into(),
            "failed to check the configuration of plugin proxy-rewrite err: unknown variable 'a'".into()
        )
    );
    assert_eq!(
        message_of(json!({"client_identity": {"allow": [{"dns": "a b"}]}})),
        (
            "client_identity.allow[1].dns".into(),
            "invalid configuration: property \"client_identity.allow[1].dns\": \"a b\" is not a DNS name"
                .into()
        )
    );
}
