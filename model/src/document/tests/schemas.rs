//! Messages of schemas (contract section 3), and agreement with another validator about valid
//! documents.

use std::sync::LazyLock;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::schema::{Schema, json_schema};

#[test]
fn every_schema_file_compiles() {
    for kind in Kind::ALL {
        let schema = json_schema(kind);
        assert!(schema.is_object() && jsonschema::draft7::meta::is_valid(schema), "{kind}");
        assert!(!schema.to_string().contains("$ref"), "{kind}");
    }
}

#[test]
fn an_unknown_schema_keyword_is_an_error() {
    assert!(Schema::compile(&json!({"type": "object", "minProperties": 1})).is_err());
    assert!(Schema::compile(&json!({"pattern": "("})).is_err());
    assert!(Schema::compile(&json!(true)).is_err());
    assert!(Schema::never().validate(&json!({})).is_err());
}

#[test]
fn hints_say_what_is_expected() {
    for (schema, value, hint) in [
        (json!({"enum": ["http", "https"]}), json!("HTTPS"), "expected \"http\", \"https\""),
        (json!({"type": "array"}), json!("pem"), "write a list: [...]"),
        (json!({"type": "array"}), json!({"dns": "a"}), "write a list: [...]"),
        (json!({"type": "object"}), Value::Null, "leave the member out"),
    ] {
        let problem = Schema::compile(&schema).unwrap().validate(&value).unwrap_err();
        assert_eq!(problem.hint.as_deref(), Some(hint), "{schema} {value}");
    }
}

#[track_caller]
fn assert_text(schema: Value, value: Value, text: &str) {
    let problem = Schema::compile(&schema).unwrap().validate(&value).unwrap_err();
    assert_eq!(problem.message, text, "{schema} {value}");
}

#[test]
fn messages_of_single_values() {
    let cases = [
        (json!({"type": "string"}), json!({}), "wrong type: expected string, got table"),
        (json!({"type": "integer"}), json!(1.5), "wrong type: expected integer, got number"),
        (json!({"type": "boolean"}), json!("x"), "wrong type: expected boolean, got string"),
        (
            json!({"type": "string", "minLength": 4}),
            json!("abc"),
            "string too short, expected at least 4, got 3",
        ),
        (
            json!({"type": "string", "maxLength": 2}),
            json!("äöü"),
            "string too long, expected at most 2, got 3",
        ),
        (json!({"pattern": "^a$"}), json!("b"), "failed to match pattern \"^a$\" with \"b\""),
        (json!({"minimum": 1}), json!(0), "expected 0 to be at least 1"),
        (json!({"maximum": 1}), json!(2), "expected 2 to be at most 1"),
        (json!({"exclusiveMinimum": 0}), json!(0), "expected 0 to be greater than 0"),
        (json!({"enum": [1, 0]}), json!(2), "matches none of the enum values"),
        (json!({"minItems": 1}), json!([]), "expect array to have at least 1 items"),
        (json!({"maxItems": 1}), json!([1, 2]), "expect array to have at most 1 items"),
        (
            json!({"items": {"type": "string"}}),
            json!(["a", 1]),
            "failed to validate item 2: wrong type: expected string, got number",
        ),
        (
            json!({"uniqueItems": true}),
            json!(["a", "b", "a"]),
            "expected unique items but items 1 and 3 are equal",
        ),
        (
            json!({"properties": {}, "additionalProperties": false}),
            json!({"x": 1}),
            "additional properties forbidden, found x",
        ),
    ];
    for (schema, value, text) in cases {
        assert_text(schema, value, text);
    }
}

#[test]
fn messages_of_combinators() {
    let cases = [
        (
            json!({"oneOf": [{"minimum": 1}, {"minimum": 2}]}),
            json!(0),
            "value should match only one schema, but matches none",
        ),
        (
            json!({"oneOf": [{"minimum": 1}, {"minimum": 2}]}),
            json!(2),
            "value should match only one schema, but matches both schemas 1 and 2",
        ),
        (
            json!({"anyOf": [{"required": ["a"]}, {"required": ["b", "c"]}]}),
            json!({}),
            "object matches none of the required: [\"a\"] or [\"b\",\"c\"]",
        ),
        (json!({"anyOf": [{"type": "string"}]}), json!(1), "object matches none of the required"),
        (
            json!({"allOf": [{}, {"required": ["a"]}]}),
            json!({}),
            "allOf 2 failed: property \"a\" is required",
        ),
        (json!({"not": {"type": "string"}}), json!("x"), "value wasn't supposed to match schema"),
        (
            json!({"if": {"minimum": 1}, "then": {"minimum": 3}, "else": {"minimum": 0}}),
            json!(2),
            "then clause did not match",
        ),
        (
            json!({"if": {"minimum": 1}, "then": {"minimum": 3}, "else": {"minimum": 0}}),
            json!(-1),
            "else clause did not match",
        ),
        (
            json!({"properties": {"a": {}}, "dependencies": {"a": {"required": ["b"]}}}),
            json!({"a": 1}),
            "failed to validate dependent schema for \"a\": property \"b\" is required",
        ),
        (
            json!({"patternProperties": {".*": {"type": "string"}}}),
            json!({"env": []}),
            "failed to validate env (matching \".*\"): wrong type: expected string, got table",
        ),
        (
            json!({"properties": {"a": {"properties": {"b": {"type": "string"}}}}}),
            json!({"a": {"b": null}}),
            "property \"a\" validation failed: property \"b\" validation failed: wrong type: expected string, got userdata",
        ),
    ];
    for (schema, value, text) in cases {
        assert_text(schema, value, text);
    }
}

#[test]
fn secret_references_and_empty_arrays_pass_like_in_lua() {
    let schema = Schema::compile(&json!({"type": "string", "minLength": 99, "enum": ["x"]})).unwrap();
    for text in ["$secret://vault/1/a", "$env://X", "$ENV://x"] {
        assert!(schema.validate(&json!(text)).is_ok(), "{text}");
    }
    assert!(schema.validate(&json!("$SECRET://x")).is_err());
    assert!(schema.validate(&json!("x$env://X")).is_err());
    let object = Schema::compile(&json!({"type": "object", "required": ["a"]})).unwrap();
    assert_eq!(object.validate(&json!([])).unwrap_err().message, "property \"a\" is required");
    assert!(object.validate(&json!([1])).is_err());
}

#[test]
fn problems_name_the_field_and_suggest_a_name() {
    let problem =
        validate(Kind::Ssl, &ssl(json!({"client": {"ca": "x".repeat(128), "deptth": 2}}))).unwrap_err();
    assert_eq!(problem.field, "client.deptth");
    assert_eq!(
        problem.message,
        "property \"client\" validation failed: additional properties forbidden, found deptth"
    );
    assert_eq!(problem.hint.as_deref(), Some("did you mean \"depth\"?"));
    let problem = validate(Kind::Ssl, &ssl(json!({"snis": ["a.com", "*b*"], "sni": null}))).unwrap_err();
    assert_eq!(problem.field, "snis[2]");
    let problem =
        validate(Kind::Upstream, &upstream(json!({"nodes": [{"host": "a.com", "wieght": 1}]}))).unwrap_err();
    assert_eq!(problem.message, "property \"nodes\" validation failed: object matches none of the required");
    assert!(problem.hint.unwrap().contains("did you mean \"weight\"?"));
    assert_eq!(problem.field, "nodes[1].weight");
    let problem = validate(Kind::Route, &route(json!({"timeout": {"connect": 1, "send": 1}}))).unwrap_err();
    assert_eq!(problem.field, "timeout.read");
}

/// Messages of combinators name no member; field and hint do.
#[track_caller]
fn assert_hint(kind: Kind, document: Value, message: &str, field: &str, hint: &str) {
    let problem = validate(kind, &document).unwrap_err();
    let found = (problem.message.as_str(), problem.field.as_str(), problem.hint.as_deref());
    assert_eq!(found, (message, field, Some(hint)), "{document}");
}

const MATCHES_NONE: &str = "value should match only one schema, but matches none";

#[test]
fn hints_name_the_missing_member_and_its_place() {
    let (pem, then) = ("x".repeat(128), "then clause did not match");
    for (document, field, hint) in [
        (json!({"sni": "a", "cert": pem}), "key", r#"add "key" beside "sni" and "cert""#),
        (json!({"key": pem, "cert": pem}), "sni", r#"add "sni" or "snis" beside "key" and "cert""#),
        (json!({}), "", r#"expected ["sni","key","cert"] or ["snis","key","cert"]"#),
    ] {
        assert_hint(Kind::Ssl, document, then, field, hint);
    }
    let (discovery, field) = (r#"add "discovery_type" beside "service_name""#, "discovery_type");
    assert_hint(Kind::Upstream, json!({"service_name": "a"}), MATCHES_NONE, field, discovery);
    let (route, message) = (
        json!({"uri": "/", "upstream": {"service_name": "a"}}),
        format!("property \"upstream\" validation failed: {MATCHES_NONE}"),
    );
    assert_hint(Kind::Route, route, &message, "upstream.discovery_type", discovery);
    let expected = r#"expected ["nodes"] or ["service_name","discovery_type"]"#;
    assert_hint(Kind::Upstream, json!({}), MATCHES_NONE, "", expected);
    assert_hint(
        Kind::Upstream,
        json!({"nodes": [{"host": "a", "port": 1}]}),
        "property \"nodes\" validation failed: object matches none of the required",
        "nodes[1].weight",
        "failed to validate item 1: property \"weight\" is required",
    );
    let message = format!("allOf 1 failed: {MATCHES_NONE}");
    let expected = r#"expected ["uri"] or ["uris"]"#;
    assert_hint(Kind::Route, json!({"upstream": {"nodes": {}}}), &message, "", expected);
}

#[test]
fn hints_name_what_to_leave_out_and_the_types() {
    let (nodes, pem) = (json!({"127.0.0.1:1": 1}), "x".repeat(128));
    assert_hint(
        Kind::Route,
        json!({"uri": "/", "uris": ["/"], "upstream": {"nodes": nodes}}),
        "allOf 1 failed: value should match only one schema, but matches both schemas 1 and 2",
        "",
        "leave out \"uri\" or \"uris\"",
    );
    assert_hint(
        Kind::Upstream,
        json!({"nodes": nodes, "tls": {"client_cert_id": "1", "client_cert": pem, "client_key": pem}}),
        "property \"tls\" validation failed: failed to validate dependent schema for \"client_cert_id\": \
         value wasn't supposed to match schema",
        "tls",
        "leave out \"client_cert\" or \"client_key\"",
    );
    assert_hint(
        Kind::Upstream,
        json!({"id": true, "nodes": nodes}),
        "property \"id\" validation failed: object matches none of the required",
        "id",
        "expected string or integer",
    );
}

// === another validator ===

/// Values for any member; some are valid in some places.
fn some_value() -> impl Strategy<Value = Value> {
    let long = "x".repeat(128);
    let values = vec![
        json!(null),
        json!(true),
        json!(0),
        json!(1),
        json!(-1),
        json!(1.5),
        json!(70_000),
        json!(""),
        json!("a.com"),
        json!("*.a.com"),
        json!("*"),
        json!("a b"),
        json!("GET"),
        json!("http"),
        json!("server"),
        json!("client"),
        json!("rewrite"),
        json!("127.0.0.1"),
        json!("10.0.0.0/8"),
        json!("10.0.0.0/40"),
        json!("::1"),
        json!("fe80::/10"),
        json!("TLSv1.2"),
        json!(["TLSv1.2"]),
        json!(["TLSv1.2", "TLSv1.2"]),
        json!(["a.com", "b.com"]),
        json!([1]),
        json!(["GET", "PUT"]),
        json!(long),
        json!([long]),
        json!({"a": "b"}),
        json!({"a:1": 1}),
        json!({"a:1": -1}),
        json!([{"host": "a.com", "weight": 1}]),
        json!([{"host": "a.com", "port": 0, "weight": 1}]),
        json!({"connect": 1, "send": 0.5, "read": 2}),
        json!({"connect": 0, "send": 1, "read": 2}),
        json!({"ca": long}),
        json!({"ca": long, "depth": -1}),
        json!({"ca": long, "crl_policy": "require"}),
        json!({"ca": long, "crl": ["x"], "crl_policy": "prefer", "skip_mtls_uri_regex": ["a", "a"]}),
        json!({"client_cert": long}),
        json!({"client_cert": long, "client_key": long}),
        json!({"client_cert": long, "client_key": long, "client_cert_id": 1}),
        json!({"client_cert_id": "a b"}),
        json!({"nodes": {"a:1": 1}}),
        json!({"size": 0}),
        json!({"active": {}}),
        json!({"verify": true}),
        json!({"x": 1}),
    ];
    select(values)
}

fn some_document(kind: Kind) -> impl Strategy<Value = Value> {
    let members = json_schema(kind)["properties"].as_object().unwrap();
    let names: Vec<String> = members.keys().cloned().chain(["unknown".to_owned()]).collect();
    let good = match kind {
        Kind::Ssl => json!({"cert": "x".repeat(128), "key": "x".repeat(64), "sni": "a.com"}),
        Kind::Upstream => json!({"nodes": {"a:1": 1}}),
        Kind::Service => json!({}),
        Kind::Route => json!({"uri": "/", "plugins": {}}),
        Kind::StreamRoute => json!({}),
        Kind::PluginConfig | Kind::GlobalRule => json!({"plugins": {}}),
    };
    vec((select(names), some_value()), 0..3).prop_map(move |changes| {
        let mut document = good.clone();
        for (name, value) in changes {
            document.as_object_mut().unwrap().insert(name, value);
        }
        document
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 700, ..ProptestConfig::default() })]

    #[test]
    fn an_independent_validator_agrees(
        (kind, document) in select(Kind::ALL.to_vec()).prop_flat_map(|kind| (Just(kind), some_document(kind)))
    ) {
        let ours = validate(kind, &document);
        let theirs = INDEPENDENT[kind as usize].is_valid(&document);
        prop_assert_eq!(ours.is_ok(), theirs, "{} {} {:?}", kind, document, ours);
    }
}

proptest! {
    /// No document causes a panic, and each accepted one decodes on a data plane.
    #[test]
    fn any_document_compiles_without_panic(
        (kind, document) in select(Kind::ALL.to_vec()).prop_flat_map(|kind| (Just(kind), some_document(kind))),
        real in any::<bool>(),
    ) {
        let (cert, key) = pem(0);
        let document = match kind {
            Kind::Ssl if real => with(document, json!({"cert": cert, "key": key})),
            _ => document,
        };
        let _ = checked(kind, &document).map(|resource| crate::lint::lint_resource(&resource, pki::UnixTime::since_unix_epoch(Default::default())));
    }
}

static INDEPENDENT: LazyLock<[jsonschema::Validator; 7]> = LazyLock::new(|| {
    Kind::ALL.map(|kind| {
        jsonschema::draft7::options().should_validate_formats(true).build(json_schema(kind)).unwrap()
    })
});
