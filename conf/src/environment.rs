//! Substitutes `${{NAME}}` and `${{NAME:=default}}` in values and keys (contract 1.1), before the
//! merge.
//!
//! A substituted value that reads as a number or as true/false becomes one. A variable that is
//! neither set nor has a default is a problem; the other values are still substituted.

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::{Captures, Regex};

use crate::error::ConfProblem;
use crate::tree::{YamlNode, YamlScalar, YamlValue};

/// The source of variables: the process's environment, or a table in tests.
pub(crate) type Lookup<'a> = dyn Fn(&str) -> Option<String> + 'a;

// A test compiles the constant pattern; `None` would disable substitution.
static VARIABLE: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"\$\{\{\s*(\w+)\s*(?::=(.*?))?\s*\}\}").ok());

/// Substitutes in the keys and values of the whole tree.
pub(crate) fn substitute(root: &mut YamlNode, lookup: &Lookup<'_>, problems: &mut Vec<ConfProblem>) {
    walk(root, String::new(), lookup, problems);
}

fn walk(node: &mut YamlNode, path: String, lookup: &Lookup<'_>, problems: &mut Vec<ConfProblem>) {
    let line = node.line;
    match &mut node.value {
        YamlValue::Scalar(scalar) => {
            if let Some(text) = substitute_variables(&scalar.text, line, &path, lookup, problems) {
                *scalar = YamlScalar::substituted(text);
            }
        }
        YamlValue::List(items) => {
            for item in items {
                walk(item, format!("{path}[]"), lookup, problems);
            }
        }
        YamlValue::Map(entries) => {
            for (key, child) in entries {
                if let Some(text) = substitute_variables(&key.text, key.line, &path, lookup, problems) {
                    key.text = text;
                }
                let below = if path.is_empty() { key.text.clone() } else { format!("{path}.{}", key.text) };
                walk(child, below, lookup, problems);
            }
        }
    }
}

/// Substitutes in unparsed text, as APISIX does in `apisix.yaml` (contract 1.1): quotes around a
/// variable decide its type.
pub(crate) fn substitute_text(text: &str, lookup: &Lookup<'_>, problems: &mut Vec<ConfProblem>) -> String {
    let lines = text.split_inclusive('\n').zip(1..);
    let resolved = lines.map(|(line, nth)| match substitute_variables(line, nth, "", lookup, problems) {
        Some(resolved) => Cow::Owned(resolved),
        None => Cow::Borrowed(line),
    });
    resolved.collect()
}

/// The text with every variable unset.
pub(crate) fn without_variables(text: &str) -> String {
    substitute_variables(text, 0, "", &|_| None, &mut Vec::new()).unwrap_or_else(|| text.to_owned())
}

/// Returns `None` when the text has no variable.
fn substitute_variables(
    text: &str,
    line: usize,
    path: &str,
    lookup: &Lookup<'_>,
    problems: &mut Vec<ConfProblem>,
) -> Option<String> {
    let pattern = VARIABLE.as_ref()?;
    let replaced = pattern.replace_all(text, |found: &Captures<'_>| {
        let name = found.get(1).map_or("", |name| name.as_str());
        let default = found.get(2).map(|default| default.as_str().trim().to_owned());
        lookup(name).or(default).unwrap_or_else(|| {
            problems.push(ConfProblem {
                line: Some(line),
                field: path.to_owned(),
                message: format!(
                    "can't find environment variable {name}; set it, or give a default: ${{{{{name}:=value}}}}"
                ),
            });
            String::new()
        })
    });
    match replaced {
        Cow::Borrowed(_) => None,
        Cow::Owned(text) => Some(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::parse;

    fn substituted(text: &str) -> (YamlNode, Vec<ConfProblem>) {
        let mut root = parse(text).unwrap().unwrap();
        let mut problems = Vec::new();
        let lookup = |name: &str| match name {
            "PORT" => Some("9180".to_owned()),
            "FLAG" => Some("true".to_owned()),
            "KEY" => Some("name".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        };
        substitute(&mut root, &lookup, &mut problems);
        (root, problems)
    }

    #[test]
    fn substituted_values_take_their_type() {
        let (root, problems) = substituted(
            "a: ${{PORT}}\nb: '${{ FLAG }}'\nc: x-${{PORT}}-y\nd: ${{NO:=7 }}\ne: ${{NO:=http://h:1}}\nf: plain",
        );
        assert!(problems.is_empty(), "{problems:?}");
        assert_eq!(root.get_path("a").unwrap().describe(), "the number 9180");
        assert_eq!(root.get_path("b").unwrap().describe(), "true");
        assert_eq!(root.get_path("c").unwrap().describe(), "the text \"x-9180-y\"");
        assert_eq!(root.get_path("d").unwrap().describe(), "the number 7");
        assert_eq!(
            substituted("a: ${{EMPTY}}\nb: ${{NO:=}}").0.get_path("a").unwrap().describe(),
            "the text \"\""
        );
        assert_eq!(root.get_path("e").unwrap().describe(), "the text \"http://h:1\"");
    }

    #[test]
    fn keys_are_substituted_too() {
        assert_eq!(substituted("${{KEY}}: 1").0.get_path("name").unwrap().describe(), "the number 1");
    }

    #[test]
    fn a_missing_variable_is_reported_with_its_line() {
        let (_, problems) = substituted("a: 1\nb:\n  c: ${{NOT_SET}}");
        assert_eq!(problems.len(), 1);
        assert_eq!((problems[0].line, problems[0].field.as_str()), (Some(3), "b.c"));
        assert!(problems[0].message.contains("can't find environment variable NOT_SET"));
    }
}
