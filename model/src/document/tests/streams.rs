//! Stream routes (contract 3.5), the TCP schemes, and who may refer to them.

use super::*;
use crate::resource::{Scheme, UpstreamRef, references};

#[test]
fn a_valid_stream_route_keeps_every_field() {
    let document = json!({
        "remote_addr": "10.1.2.3/8", "server_addr": "::ffff:127.0.0.1", "server_port": 9100, "sni": "*.A.com", "plugins": {},
        "upstream_id": 7, "service_id": "s", "name": "mysql", "desc": "x", "labels": {"a": "b"}
    });
    let Resource::StreamRoute(route) = checked(Kind::StreamRoute, &document).unwrap() else {
        panic!("not one")
    };
    assert_eq!(route.snis.iter().map(ToString::to_string).collect::<Vec<_>>(), ["*.a.com"]);
    assert_eq!(route.remote_addr.map(|net| net.to_string()).as_deref(), Some("10.0.0.0/8"));
    assert_eq!(route.server_addr.map(|net| net.to_string()).as_deref(), Some("127.0.0.1/32"));
    assert_eq!(route.server_port, Some(9100));
    assert_eq!(route.upstream, Some(UpstreamRef::Id(id("7"))));
    let named: Vec<_> =
        references(&Resource::StreamRoute(route)).into_iter().map(|named| named.key.to_string()).collect();
    assert_eq!(named, ["upstreams/7", "services/s"]);
    assert!(checked(Kind::StreamRoute, &json!({})).is_ok(), "nothing is required");
}

#[test]
fn snis_are_names_and_a_bare_star_is_no_restriction() {
    let snis = |document: Value| {
        let Resource::StreamRoute(route) = checked(Kind::StreamRoute, &stream_route(document)).unwrap()
        else {
            panic!("not one")
        };
        route.snis.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(snis(json!({"snis": ["A.com.", "*.b.com", "a.com"]})), ["a.com", "*.b.com"]);
    assert_eq!(snis(json!({"snis": ["a.com", "*"]})), [""; 0]);
    assert_eq!(snis(json!({"sni": "*"})), ["*"]);
    assert_eq!(snis(json!({})), [""; 0]);
}

#[test]
fn stream_route_messages() {
    for (changes, message) in [
        (json!({"remote_addr": "300.1.1.1/8"}), "invalid remote_addr: 300.1.1.1/8"),
        (json!({"remote_addr": "::ffff:10.0.0.0/95"}), "invalid remote_addr: ::ffff:10.0.0.0/95"),
        (json!({"server_addr": "fe80::/200"}), "invalid server_addr: fe80::/200"),
        (
            json!({"server_port": 0}),
            "invalid configuration: property \"server_port\" validation failed: expected 0 to be at least 1",
        ),
        (
            json!({"server_port": 65536}),
            "invalid configuration: property \"server_port\" validation failed: expected 65536 to be at most 65535",
        ),
        (
            json!({"sni": "a.com", "snis": ["b.com"]}),
            "invalid configuration: value wasn't supposed to match schema",
        ),
        (json!({"uri": "/"}), "invalid configuration: additional properties forbidden, found uri"),
    ] {
        assert_eq!(problem_of(Kind::StreamRoute, &stream_route(changes)).message, message);
    }
    for (changes, field) in [
        (json!({"sni": "*."}), "sni"),
        (json!({"sni": "a..com"}), "sni"),
        (json!({"plugins": {"ip-restriction": {"whitelist": ["10.0.0.0/8"]}}}), "plugins.ip-restriction"),
        (json!({"protocol": {"name": "redis"}}), "protocol"),
        (json!({"snis": ["a..com"]}), "snis[1]"),
        (
            json!({"tls_passthrough": true, "upstream": {"nodes": {"a.com:1": 1}, "scheme": "tls"}}),
            "upstream.scheme",
        ),
        (json!({"upstream": {"nodes": {"a.com": 1}}}), "upstream.nodes"),
        (json!({"upstream": {"nodes": {"a.com:1": 1}, "scheme": "udp"}}), "upstream.scheme"),
    ] {
        assert_eq!(problem_of(Kind::StreamRoute, &stream_route(changes)).field, field);
    }
}

#[test]
fn tcp_schemes_serve_no_http_route_and_need_node_ports() {
    for (text, scheme) in [("tcp", Scheme::Tcp), ("tls", Scheme::Tls)] {
        let document = upstream(json!({"scheme": text}));
        let resource = checked(Kind::Upstream, &document).unwrap();
        let Resource::Upstream(compiled) = &resource else { panic!("not an upstream") };
        assert_eq!(compiled.scheme, scheme);
        assert_eq!(Scheme::parse(text), Some(scheme));
        assert!(checked(Kind::StreamRoute, &stream_route(json!({"upstream": document}))).is_ok());
        assert!(checked(Kind::Service, &json!({"upstream": document})).is_ok(), "a service may have both");
        let problem = problem_of(Kind::Route, &route(json!({"upstream": document})));
        assert_eq!(problem.field, "upstream.scheme");
        assert!(problem.to_string().contains("stream_routes"), "{problem}");
        let portless = json!({"scheme": text, "nodes": [{"host": "a.com", "weight": 1}]});
        assert_eq!(problem_of(Kind::Upstream, &portless).field, "nodes");

        // An upstream by id is checked as a reference.
        let named = |kind, document| references(&checked(kind, &document).unwrap()).remove(0);
        let by_route = named(Kind::Route, route(json!({"upstream": null, "upstream_id": "1"})));
        let message = by_route.check(Some(&resource)).unwrap_err().message;
        let expected =
            format!("failed to fetch upstream info by upstream id [1], scheme {text} takes no HTTP requests");
        assert_eq!(message, expected);
        let by_stream = named(Kind::StreamRoute, json!({"upstream_id": "1"}));
        assert_eq!(by_stream.check(Some(&resource)), Ok(()));
    }
}

#[test]
fn unencrypted_tls_settings_and_dangling_routes_are_linted() {
    let now = pki::UnixTime::since_unix_epoch(Default::default());
    let message_of = |kind, document: Value| {
        let found = crate::lint::lint_resource(&checked(kind, &document).unwrap(), now);
        found.into_iter().map(|finding| finding.message).collect::<Vec<_>>().join("; ")
    };
    let clear = upstream(json!({"scheme": "tcp", "tls": {"verify": true}}));
    assert!(message_of(Kind::Upstream, clear).contains("the scheme is tcp: nothing is encrypted"));
    let sealed = upstream(json!({"scheme": "tls", "tls": {"verify": true}}));
    assert_eq!(message_of(Kind::Upstream, sealed), "");
    assert!(message_of(Kind::StreamRoute, json!({})).contains("connections are closed"));
}
