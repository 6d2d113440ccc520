use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn object(value: Value) -> Map<String, Value> {
    let Value::Object(members) = value else { panic!("not an object: {value}") };
    members
}

fn words(text: &str) -> Vec<&str> {
    text.split(' ').collect()
}

/// The members of APISIX's schemas (`schema_def.lua`, 3.21) and of this gateway's: the table must
/// list exactly the difference.
#[test]
fn the_table_names_every_field_that_apisix_lacks() {
    let meta = ["id", "name", "desc", "labels", "create_time", "update_time"];
    let (ssl, client) = (
        words("type cert key sni snis certs keys client status ssl_protocols"),
        words("ca depth skip_mtls_uri_regex"),
    );
    let route = words(
        "uri uris host hosts remote_addr remote_addrs methods priority vars filter_func timeout plugins plugin_config_id upstream upstream_id service_id script script_id enable_websocket status",
    );
    let service = words("plugins upstream upstream_id script enable_websocket hosts");
    let upstream = words(
        "nodes type hash_on key scheme retries retry_timeout timeout pass_host upstream_host keepalive_pool checks service_name discovery_type discovery_args tls warm_up_conf",
    );
    let upstream_tls = words("client_cert_id client_cert client_key verify ca_certs");
    let stream_route = words(
        "remote_addr server_addr server_port sni snis tls_passthrough upstream upstream_id service_id plugins protocol",
    );
    let pool = words("size idle_timeout requests");
    let (of_tls, of_pool) = ("/upstream/properties/tls", "/upstream/properties/keepalive_pool");
    for (kind, parent, known) in [
        (Kind::Ssl, "", ssl),
        (Kind::Ssl, "/client", client),
        (Kind::Route, "", route),
        (Kind::Route, "/upstream", upstream.clone()),
        (Kind::Route, of_tls, upstream_tls.clone()),
        (Kind::Route, of_pool, pool.clone()),
        (Kind::Service, of_tls, upstream_tls.clone()),
        (Kind::Service, of_pool, pool.clone()),
        (Kind::StreamRoute, "/upstream", upstream.clone()),
        (Kind::StreamRoute, of_tls, upstream_tls.clone()),
        (Kind::StreamRoute, of_pool, pool.clone()),
        (Kind::Upstream, "/keepalive_pool", pool),
        (Kind::Service, "", service),
        (Kind::Upstream, "", upstream.clone()),
        (Kind::Service, "/upstream", upstream),
        (Kind::Upstream, "/tls", upstream_tls),
        (Kind::StreamRoute, "", stream_route),
    ] {
        let pointer = if parent.is_empty() {
            "/properties".to_owned()
        } else {
            format!("/properties{parent}/properties")
        };
        let ours = crate::json_schema(kind).pointer(&pointer).and_then(Value::as_object).unwrap();
        let lacks: BTreeSet<String> = ours
            .keys()
            .filter(|name| !known.contains(&name.as_str()) && !meta.contains(&name.as_str()))
            .map(String::clone)
            .collect();
        let outer = parent.replace("/properties", "");
        let listed = extensions(kind).iter().filter(|extension| {
            let (parents, _) = extension.split_path();
            parents.iter().map(|name| format!("/{name}")).collect::<String>() == outer
        });
        let listed: BTreeSet<String> = listed.map(|extension| extension.name().to_owned()).collect();
        assert_eq!(
            lacks, listed,
            "{kind} {parent}: a member of our schema that APISIX's lacks belongs into the table of `extension`"
        );
    }
}

#[track_caller]
fn carries(kind: Kind, before: Value, document: Value, expected: Value, kept: &[&str], removed: &[&str]) {
    let mut document = object(document);
    let carried = carry_over(kind, Some(&before), &mut document);
    assert_eq!(Value::Object(document), expected);
    assert_eq!((carried.kept, carried.removed), (owned(kept), owned(removed)));
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn unmentioned_extension_fields_are_kept() {
    let ssl = json!({"client": {"ca": "A", "crl": ["L"], "crl_policy": "prefer"}});
    let (both, policy) = (["client.crl", "client.crl_policy"], ["client.crl_policy"]);
    let client = |client: Value| json!({"client": client});
    for (given, expected, kept, removed) in [
        (json!({"ca": "B"}), json!({"ca": "B", "crl": ["L"], "crl_policy": "prefer"}), &both[..], &[][..]),
        (json!({"ca": "B", "crl": null}), json!({"ca": "B"}), &[], &both),
        (json!({"ca": "B", "crl_policy": null}), json!({"ca": "B", "crl": ["L"]}), &both[..1], &policy),
        (
            json!({"ca": "B", "crl": ["M"]}),
            json!({"ca": "B", "crl": ["M"], "crl_policy": "prefer"}),
            &policy,
            &[],
        ),
        (
            json!({"ca": "B", "crl": null, "crl_policy": "require"}),
            json!({"ca": "B", "crl_policy": "require"}),
            &[],
            &both[..1],
        ),
    ] {
        carries(Kind::Ssl, ssl.clone(), client(given), client(expected), kept, removed);
    }
    // The object around them is missing, or is no object.
    carries(Kind::Ssl, ssl.clone(), json!({}), json!({}), &[], &both);
    carries(Kind::Ssl, ssl, json!({"client": "x"}), json!({"client": "x"}), &[], &both);
    let identity = json!({"client_identity": {"allow": [{"dns": "a"}]}, "uri": "/a"});
    for kind in [Kind::Route, Kind::Service] {
        let expected = json!({"uri": "/b", "client_identity": {"allow": [{"dns": "a"}]}});
        carries(kind, identity.clone(), json!({"uri": "/b"}), expected, &["client_identity"], &[]);
        let removes = json!({"uri": "/b", "client_identity": null});
        carries(kind, identity.clone(), removes, json!({"uri": "/b"}), &[], &["client_identity"]);
        let other = json!({"client_identity": {"forward": ["xfcc"]}});
        carries(kind, identity.clone(), other.clone(), other, &[], &[]);
    }
    // Members that APISIX knows are replaced, and a new document has no predecessor.
    carries(Kind::Upstream, json!({"client_identity": 1, "retries": 2}), json!({}), json!({}), &[], &[]);
    let mut fresh = object(json!({"client_identity": null, "uri": "/a"}));
    assert_eq!(carry_over(Kind::Route, None, &mut fresh), CarriedOver::default());
    assert_eq!(Value::Object(fresh), json!({"uri": "/a"}));
}

/// A program that does not know `http2` may choose another scheme.
#[test]
fn http2_ends_with_the_scheme_that_has_it() {
    let before = json!({"scheme": "https", "http2": true});
    let mut around = object(before.clone());
    let beside = split(Kind::Upstream, &mut around).unwrap();
    let https = json!({"scheme": "https", "retries": 1});
    let kept = json!({"scheme": "https", "retries": 1, "http2": true});
    carries(Kind::Upstream, before.clone(), https, kept, &["http2"], &[]);
    for other in [json!({"scheme": "grpcs"}), json!({})] {
        carries(Kind::Upstream, before.clone(), other.clone(), other.clone(), &[], &["http2"]);
        let (inline, expected) = (json!({"upstream": before}), json!({"upstream": other}));
        carries(Kind::Route, inline, expected.clone(), expected, &[], &["upstream.http2"]);
        let mut document = object(other.clone());
        merge(Kind::Upstream, &mut document, beside.clone(), true);
        assert_eq!(Value::Object(document), other);
    }
    // A program that knows it gets the error of the document.
    let given = json!({"scheme": "grpcs", "http2": true});
    carries(Kind::Upstream, before, given.clone(), given, &[], &[]);
}

/// What verifies servers, and what bounds connections, does so without the members around it.
#[test]
fn a_field_that_stands_alone_survives_its_object() {
    let tls = json!({"tls": {"client_cert_id": "1", "verify_identity": [{"dns": "a"}]}});
    let pool = json!({"keepalive_pool": {"size": 5, "max_connections": 7}});
    for (before, field) in [(tls, "tls.verify_identity"), (pool, "keepalive_pool.max_connections")] {
        let (outer, member) = field.split_once('.').unwrap();
        let kept = json!({outer: {member: before[outer][member]}});
        let mut around = object(before.clone());
        let beside = split(Kind::Upstream, &mut around).unwrap();
        // Another program wrote the document without the object, or drops empty ones.
        for newer in [false, true] {
            let mut document = object(json!({"nodes": {}}));
            merge(Kind::Upstream, &mut document, beside.clone(), newer);
            assert_eq!(Value::Object(document), json!({"nodes": {}, outer: kept[outer]}));
        }
        carries(Kind::Upstream, before.clone(), json!({}), kept.clone(), &[field], &[]);
        let null = json!({outer: {member: null}});
        carries(Kind::Upstream, before.clone(), null, json!({outer: {}}), &[], &[field]);
        // No object is no place, and no schema accepts it.
        for other in [Value::Null, json!("x")] {
            let given = json!({outer: other});
            carries(Kind::Upstream, before.clone(), given.clone(), given, &[], &[field]);
        }
        let inline = |upstream: &Value| json!({"upstream": upstream});
        let path = format!("upstream.{field}");
        for kind in [Kind::Route, Kind::Service, Kind::StreamRoute] {
            carries(kind, inline(&before), inline(&json!({})), inline(&kept), &[&path], &[]);
            // The route names another upstream now.
            let by_id = json!({"upstream_id": "1"});
            carries(kind, inline(&before), by_id.clone(), by_id.clone(), &[], &[&path]);
            let mut document = object(by_id.clone());
            merge(kind, &mut document, inline(&beside), true);
            assert_eq!(Value::Object(document), by_id);
        }
    }
}

#[test]
fn a_patch_removes_fields_by_null() {
    let before = json!({"client": {"ca": "A", "crl": ["L"], "crl_policy": "prefer"}});
    for (client, expected, removed) in [
        (
            json!({"ca": "A", "crl": null, "crl_policy": "prefer"}),
            json!({"ca": "A"}),
            &["client.crl", "client.crl_policy"][..],
        ),
        (
            json!({"ca": "A", "crl_policy": "prefer"}),
            json!({"ca": "A"}),
            &["client.crl", "client.crl_policy"],
        ),
        (
            json!({"ca": "A", "crl_policy": "require"}),
            json!({"ca": "A", "crl_policy": "require"}),
            &["client.crl"],
        ),
        (
            json!({"ca": "A", "crl": ["M"], "crl_policy": null}),
            json!({"ca": "A", "crl": ["M"]}),
            &["client.crl_policy"],
        ),
        (
            json!({"ca": "B", "crl": ["L"], "crl_policy": "prefer"}),
            json!({"ca": "B", "crl": ["L"], "crl_policy": "prefer"}),
            &[],
        ),
    ] {
        let mut document = object(json!({"client": client}));
        assert_eq!(apply_removals(Kind::Ssl, &before, &mut document), owned(removed));
        assert_eq!(Value::Object(document), json!({"client": expected}));
    }
}

#[test]
fn merge_restores_the_fields() {
    let merged = |kind, document: Value, extension: Value, newer| {
        let mut document = object(document);
        merge(kind, &mut document, extension, newer);
        Value::Object(document)
    };
    let list = json!({"client": {"crl": ["L"]}});
    for newer in [false, true] {
        let expected = json!({"client": {"ca": "A", "crl": ["L"]}});
        assert_eq!(merged(Kind::Ssl, json!({"client": {"ca": "A"}}), list.clone(), newer), expected);
        // Another program removed the object and its fields.
        assert_eq!(merged(Kind::Ssl, json!({"sni": "a"}), list.clone(), newer), json!({"sni": "a"}));
    }
    // The document itself has the field, from before fields were stored beside it; the newer value
    // wins.
    let inline = json!({"client": {"ca": "A", "crl": ["M"]}});
    assert_eq!(merged(Kind::Ssl, inline.clone(), list.clone(), true), inline);
    assert_eq!(merged(Kind::Ssl, inline, list, false), json!({"client": {"ca": "A", "crl": ["L"]}}));
}

/// The schema rejects the document if the entry beside it is unreadable.
#[test]
fn unreadable_extension_fields_invalidate_the_document() {
    let route = json!({"uri": "/a", "upstream_id": "1"});
    for beside in
        [json!("x"), json!([]), json!(null), json!({"allow_only": 1}), json!({"client_identity": 7})]
    {
        let mut document = object(route.clone());
        merge(Kind::Route, &mut document, beside.clone(), true);
        assert!(crate::validate(Kind::Route, &Value::Object(document)).is_err(), "{beside}");
    }
    assert!(crate::validate(Kind::Route, &route).is_ok());
    let client = json!({"client": {"ca": "A"}});
    for beside in [json!({"client": 7}), json!({"client": {"ocsp": 1}}), json!({"more": 1}), json!(0)] {
        let mut document = object(client.clone());
        merge(Kind::Ssl, &mut document, beside.clone(), true);
        assert_ne!(Value::Object(document), client, "{beside}");
    }
}

/// An entry beside a document adds protection and replaces no member.
#[test]
fn merge_replaces_no_other_member() {
    let route = json!({"uri": "/a", "upstream_id": "1", "plugins": {"key-auth": {}}});
    let ssl = json!({"cert": "C", "sni": "a", "client": {"ca": "A"}});
    for (kind, document, beside) in [
        (Kind::Route, &route, json!({"plugins": {}, "client_identity": {"forward": ["xfcc"]}})),
        (Kind::Route, &route, json!({"upstream_id": "2"})),
        (Kind::Ssl, &ssl, json!({"client": {"crl": ["L"], "ca": "mine"}})),
        (Kind::Ssl, &ssl, json!({"client": {"skip_mtls_uri_regex": [".*"]}})),
        (Kind::Ssl, &ssl, json!({"sni": "b"})),
        (Kind::Ssl, &json!({"cert": "C", "sni": "a"}), json!({"sni": "b"})),
    ] {
        for newer in [false, true] {
            let mut merged = object(document.clone());
            merge(kind, &mut merged, beside.clone(), newer);
            let text = Value::Object(merged.clone()).to_string();
            assert!(text.contains("cannot be read") && !text.contains("mine"), "{text}");
            assert!(crate::validate(kind, &Value::Object(merged.clone())).is_err(), "{text}");
            for (name, value) in document.as_object().unwrap().iter().filter(|(name, _)| *name != "client") {
                assert_eq!(merged.get(name), Some(value), "{beside}");
            }
        }
    }
}

fn some_document() -> impl Strategy<Value = Value> {
    let leaf =
        prop_oneof![Just(Value::Null), any::<u8>().prop_map(Value::from), "[a-z]{0,2}".prop_map(Value::from)];
    let name = prop::sample::select(vec![
        "client",
        "client_identity",
        "crl",
        "crl_policy",
        "ca",
        "uri",
        "upstream",
        "tls",
        "verify_identity",
        "http2",
    ]);
    leaf.prop_recursive(4, 32, 6, move |inner| {
        prop::collection::vec((name.clone(), inner), 0..5)
            .prop_map(|members| members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
            .prop_map(|mut members: Map<String, Value>| {
                // No document is stored that has one without the other.
                if members.contains_key("http2") {
                    members.insert("scheme".to_owned(), "https".into());
                }
                Value::Object(members)
            })
    })
    .prop_filter("an object", Value::is_object)
}

proptest! {
    #[test]
    fn merge_is_the_inverse_of_split(document in some_document(), newer in any::<bool>()) {
        for kind in Kind::ALL {
            let mut rest = object(document.clone());
            let taken = split(kind, &mut rest);
            prop_assert_eq!(split(kind, &mut rest.clone()), None);
            if let Some(taken) = taken {
                merge(kind, &mut rest, taken, newer);
            }
            prop_assert_eq!(&Value::Object(rest), &document);
        }
    }

    /// Writing a document without its extension fields changes nothing, also when repeated.
    #[test]
    fn carry_over_restores_dropped_fields(document in some_document()) {
        for kind in Kind::ALL {
            let mut before = object(document.clone());
            carry_over(kind, None, &mut before);
            // The schema requires lists for a policy.
            if let Some(client) = before.get_mut("client").and_then(Value::as_object_mut)
                && !client.contains_key("crl")
            {
                client.shift_remove("crl_policy");
            }
            let mut put = before.clone();
            split(kind, &mut put);
            let before = Value::Object(before);
            carry_over(kind, Some(&before), &mut put);
            prop_assert_eq!(&Value::Object(put.clone()), &before);
            prop_assert_eq!(carry_over(kind, Some(&before), &mut put), CarriedOver::default());
        }
    }
}
