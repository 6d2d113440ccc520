use std::borrow::Cow;
use std::collections::HashMap;

use proptest::prelude::*;
use serde_json::json;

use super::*;

/// Query arguments, and URIs of the client certificate.
#[derive(Debug, Default)]
struct Known(HashMap<String, String>, Vec<String>);

impl Variables for Known {
    fn value(&self, variable: &Variable) -> Option<Cow<'_, str>> {
        match variable {
            Variable::Arg(name) => self.0.get(&**name).map(|value| value.as_str().into()),
            Variable::RemoteAddr => Some("10.1.2.3".into()),
            _ => None,
        }
    }

    fn values(&self, variable: &Variable) -> &[String] {
        if *variable == Variable::ClientUris { &self.1 } else { &[] }
    }
}

fn known(arguments: &[(&str, &str)]) -> Known {
    Known(
        arguments.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        vec!["spiffe://a/b".into()],
    )
}

#[track_caller]
fn holds(expression: Value, arguments: &[(&str, &str)]) -> bool {
    Vars::compile(&expression).unwrap().matches(&known(arguments))
}

#[track_caller]
fn refused(expression: Value) -> (String, String) {
    let problem = Vars::compile(&expression).unwrap_err();
    let text = problem.message.strip_prefix("failed to validate the 'vars' expression: ").unwrap().to_owned();
    (text, problem.field)
}

#[test]
fn every_operator() {
    let x = |value: &'static str| [("x", value)];
    for (expression, value, expected) in [
        (json!(["arg_x", "==", "a"]), "a", true),
        (json!(["arg_x", "==", "a"]), "A", false),
        (json!(["arg_x", "a"]), "a", true),
        (json!(["arg_x", "==", 10]), "10.0", true),
        (json!(["arg_x", "==", 10]), "0xA", true),
        (json!(["arg_x", "==", 10]), "ten", false),
        (json!(["arg_x", "==", "10"]), "10.0", false),
        (json!(["arg_x", "~=", 10]), "ten", true),
        (json!(["arg_x", "~=", "a"]), "a", false),
        (json!(["arg_x", ">", 10]), "11", true),
        (json!(["arg_x", ">", "10"]), "10", false),
        (json!(["arg_x", ">=", 10]), "10", true),
        (json!(["arg_x", "<", 10]), "-0x10", true),
        (json!(["arg_x", "<=", 10]), "nan", false),
        (json!(["arg_x", "<", 10]), "-inf", false),
        (json!(["arg_x", "!", "<", 10]), "nan", true),
        (json!(["arg_x", "~~", "^[a-z]+$"]), "abc", true),
        (json!(["arg_x", "~~", "b"]), "abc", true),
        (json!(["arg_x", "~~", "B"]), "abc", false),
        (json!(["arg_x", "~*", "B"]), "abc", true),
        (json!(["arg_x", "IN", ["a", "b"]]), "b", true),
        (json!(["arg_x", "in", [1, 2]]), "2", true),
        (json!(["arg_x", "!", "in", ["a", "b"]]), "b", false),
        (json!(["arg_x", "ipmatch", ["10.0.0.0/8", "::1"]]), "::ffff:10.9.9.9", true),
        (json!(["arg_x", "ipmatch", ["::ffff:10.0.0.0/104"]]), "10.9.9.9", true),
        (json!(["arg_x", "ipmatch", "::ffff:10.0.0.1"]), "10.0.0.1", true),
        (json!(["arg_x", "ipmatch", "10.0.0.1"]), "10.0.0.2", false),
        (json!(["arg_x", "ipmatch", "10.0.0.1"]), "x", false),
    ] {
        assert_eq!(holds(json!([expression]), &x(value)), expected, "{expression} {value}");
    }
    assert!(holds(json!([["remote_addr", "ipmatch", ["10.0.0.0/8"]]]), &[]));
    assert!(holds(json!([["ssl_client_san_uri", "has", "spiffe://a/b"]]), &[]));
    assert!(!holds(json!([["ssl_client_san_uri", "has", "spiffe://a"]]), &[]));
    assert!(holds(json!([["ssl_client_san_dns", "!", "has", "a"]]), &[]));
}

#[test]
fn an_absent_variable_equals_null_only() {
    assert!(holds(json!([["arg_x", "==", null]]), &[]));
    assert!(!holds(json!([["arg_x", "==", null]]), &[("x", "")]));
    assert!(holds(json!([["arg_x", "~=", null]]), &[("x", "")]));
    assert!(holds(json!([["arg_x", "~=", "a"]]), &[]));
    for expression in [
        json!(["arg_x", "==", ""]),
        json!(["arg_x", ">", -1]),
        json!(["arg_x", "~~", ".*"]),
        json!(["arg_x", "in", ["", "a"]]),
        json!(["arg_x", "ipmatch", "0.0.0.0/0"]),
    ] {
        assert!(!holds(json!([expression]), &[]), "{expression}");
    }
}

#[test]
fn logic_words_nest() {
    let both = [("a", "1"), ("b", "2")];
    let (a, b, c) = (json!(["arg_a", "==", "1"]), json!(["arg_b", "==", "2"]), json!(["arg_c", "==", "3"]));
    assert!(holds(json!([a, b]), &both));
    assert!(!holds(json!([a, b, c]), &both));
    assert!(holds(json!(["OR", c, b]), &both));
    assert!(holds(json!(["!and", a, c]), &both));
    assert!(!holds(json!(["!OR", a, c]), &both));
    assert!(holds(json!(["AND", a, ["!OR", c, ["arg_b", "!", "==", "2"]]]), &both));
    assert!(holds(json!([["OR", a, c], ["OR", c, b]]), &both));
    assert!(holds(json!([]), &[]) && Vars::compile(&json!([])).unwrap().is_empty());
}

#[test]
fn error_messages() {
    for (expression, text, field) in [
        (json!(["arg_x", "==", "1"]), "rule should be wrapped inside brackets", "vars"),
        (json!({}), "rule should be wrapped inside brackets", "vars"),
        (json!([[]]), "rule too short", "vars[1]"),
        (json!(["OR", ["arg_x", "==", "1"]]), "rule too short", "vars"),
        (json!([["arg_x", "=", "1"]]), "invalid operator '='", "vars[1]"),
        (json!([["arg_x", "!!", "in", ["1"]]]), "bad 'not' expression", "vars[1]"),
        (json!([["arg_x"]]), "invalid expression", "vars[1]"),
        (json!([["arg_x", "=="]]), "invalid expression", "vars[1]"),
        (json!([["arg_x", "==", "1"], "x"]), "invalid expression", "vars[2]"),
        (json!([["arg_x", "ipmatch", "10.0.0.0/99"]]), "invalid ip address", "vars[1]"),
        (
            json!(["AND", ["arg_x", "1"], ["OR", ["arg_x", "1"], ["nope", "1"]]]),
            "unknown variable 'nope'",
            "vars[3][3]",
        ),
        (json!([["arg_x", "==", true]]), "true equals no variable", "vars[1]"),
        (json!([["arg_x", ">", "ten"]]), "the operator '>' needs a number, got \"ten\"", "vars[1]"),
        (json!([["arg_x", "in", "1"]]), "the operator 'in' needs an array of values, got \"1\"", "vars[1]"),
        (json!([["arg_x", "has", "1"]]), "the operator 'has' needs a variable that is a list", "vars[1]"),
        (
            json!([["ssl_client_san_uri", "==", "1"]]),
            "a variable that is a list can only be asked with 'has'",
            "vars[1]",
        ),
    ] {
        assert_eq!(refused(expression), (text.to_owned(), field.to_owned()));
    }
    for pattern in ["(?=a)", "(a)\\1", "(?<!x)y", "a{1000}{1000}", "("] {
        let (text, _) = refused(json!([["uri", "~~", pattern]]));
        assert!(text.starts_with("the pattern"), "{text}");
    }
    let many = Value::Array(vec![json!(["arg_x", "1"]); TESTS_OVER]);
    assert_eq!(refused(many).0, "more than 512 expressions");
    let deep = (0..40).fold(json!(["arg_x", "1"]), |inner, _| json!([inner]));
    assert_eq!(refused(deep).0, "nested more than 32 deep");
}

const TESTS_OVER: usize = 513;

/// Leaf expressions over two arguments, with an independent definition.
fn some_expression() -> impl Strategy<Value = (Value, fn(&str, &str) -> bool)> {
    prop_oneof![
        Just((json!(["arg_a", "==", "1"]), (|a, _| a == "1") as fn(&str, &str) -> bool)),
        Just((json!(["arg_b", "~=", "1"]), (|_, b| b != "1") as fn(&str, &str) -> bool)),
        Just((
            json!(["arg_a", "!", "in", ["1", "2"]]),
            (|a, _| !["1", "2"].contains(&a)) as fn(&str, &str) -> bool
        )),
        Just((json!(["arg_b", "~~", "^[12]$"]), (|_, b| b == "1" || b == "2") as fn(&str, &str) -> bool)),
    ]
}

proptest! {
    #[test]
    fn logic_words_have_their_boolean_meaning(
        leaves in prop::collection::vec(some_expression(), 2..5), a in "[123]", b in "[123]", word in 0..4_usize,
    ) {
        let mut rule = vec![json!(["AND", "OR", "!AND", "!OR"][word])];
        rule.extend(leaves.iter().map(|(leaf, _)| leaf.clone()));
        let mut truths = leaves.iter().map(|(_, means)| means(&a, &b));
        let expected = match word { 0 => truths.all(|t| t), 1 => truths.any(|t| t), 2 => !truths.all(|t| t), _ => !truths.any(|t| t) };
        prop_assert_eq!(holds(Value::Array(rule), &[("a", &a), ("b", &b)]), expected);
    }

    /// No JSON value causes a panic.
    #[test]
    fn any_json_compiles_without_panic(depth in 0..6_usize, words in prop::collection::vec("[a-z_!=~<>]{0,6}", 0..5)) {
        let mut value = json!(words);
        for _ in 0..depth { value = json!([value, words.clone()]); }
        let _ = Vars::compile(&value).map(|vars| vars.matches(&known(&[("x", "1")])));
    }
}
