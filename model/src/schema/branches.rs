//! Problems of a value that fits none, or too many, of several schemas.
//!
//! The messages are those of APISIX, which name no member. The hint says which member to add or to
//! leave out, or why the branch that was probably meant rejects the value. It quotes names of the
//! schema only, and otherwise what that branch says.

use serde_json::Value;

use super::Schema;
use crate::problem::Problem;

const MATCHES_NONE: &str = "value should match only one schema, but matches none";

/// The problem of a value that fits no branch of an `anyOf`.
pub(super) fn fits_none_of_any(branches: &[Schema], value: &Value) -> Problem {
    let listed = required_lists(branches);
    let expected = if listed.is_empty() { listed } else { format!(": {listed}") };
    fits_none(format!("object matches none of the required{expected}"), branches, value)
}

/// The problem of a value that fits no branch of a `oneOf`.
pub(super) fn fits_none_of_one(branches: &[Schema], value: &Value) -> Problem {
    fits_none(MATCHES_NONE.to_owned(), branches, value)
}

/// The problem of a value that fits two branches of a `oneOf`, counted from 1.
pub(super) fn fits_both(a: (usize, &Schema), b: (usize, &Schema)) -> Problem {
    let message = format!("value should match only one schema, but matches both schemas {} and {}", a.0, b.0);
    let problem = Problem::new("", message);
    match (a.1.required.as_slice(), b.1.required.as_slice()) {
        ([], _) | (_, []) => problem,
        (a, b) => problem.with_hint(format!("leave out {} or {}", join(a, " and "), join(b, " and "))),
    }
}

/// The problem of a value that fits the schema of a `not`.
pub(super) fn fits_forbidden(forbidden: &Schema, value: &Value) -> Problem {
    let problem = Problem::new("", "value wasn't supposed to match schema");
    let fitting = forbidden.any_of.iter().find(|branch| branch.validate(value).is_ok()).unwrap_or(forbidden);
    match fitting.required.as_slice() {
        [] => problem,
        names => problem.with_hint(format!("leave out {}", join(names, " or "))),
    }
}

/// The problem with this message, and what the branch says of the value as its hint.
pub(super) fn with_reason(message: &str, branch: &Schema, value: &Value) -> Problem {
    let Err(inner) = branch.validate(value) else { return Problem::new("", message) };
    let hint = match &inner.hint {
        Some(hint) if inner.message == MATCHES_NONE => hint.clone(),
        _ => inner.to_string(),
    };
    Problem { message: message.to_owned(), hint: Some(hint), ..inner }
}

fn fits_none(message: String, branches: &[Schema], value: &Value) -> Problem {
    let has_all = |branch: &&Schema| {
        let missing = missing(branch, value);
        missing.is_some_and(|missing| missing.is_empty())
    };
    let meant = branches.iter().find(|branch| branch.means(value));
    if let Some(meant) = meant.or_else(|| branches.iter().find(has_all)) {
        return with_reason(&message, meant, value);
    }
    if let Some((field, hint)) = missing_members(branches, value) {
        return Problem::new(field, message).with_hint(hint);
    }
    let listed = required_lists(branches);
    let types: Vec<_> = branches.iter().filter_map(|branch| Some(branch.kind?.name())).collect();
    let expected = if listed.is_empty() { types.join(" or ") } else { listed };
    let problem = Problem::new("", message);
    if expected.is_empty() || problem.message.ends_with(&expected) {
        return problem;
    }
    problem.with_hint(format!("expected {expected}"))
}

/// The required members of a branch that an object lacks; `None` where none is required.
fn missing<'a>(branch: &'a Schema, value: &Value) -> Option<Vec<&'a str>> {
    let members = value.as_object().filter(|_| !branch.required.is_empty())?;
    let names = branch.required.iter().map(String::as_str);
    Some(names.filter(|name| !members.contains_key(*name)).collect())
}

/// What an object lacks that has a part of what some branches require: the first member, and a hint
/// with those of the branches that lack least.
fn missing_members(branches: &[Schema], value: &Value) -> Option<(String, String)> {
    let partial = branches.iter().filter_map(|branch| {
        let missing = missing(branch, value)?;
        (missing.len() < branch.required.len()).then_some((branch, missing))
    });
    let partial: Vec<_> = partial.collect();
    let least = partial.iter().map(|(_, missing)| missing.len()).min()?;
    let closest: Vec<_> = partial.iter().filter(|(_, missing)| missing.len() == least).collect();
    let (branch, first) = closest.first()?;
    let present: Vec<_> = branch.required.iter().filter(|name| !first.contains(&name.as_str())).collect();
    let added: Vec<_> = closest.iter().map(|(_, missing)| join(missing, " and ")).collect();
    let hint = format!("add {} beside {}", added.join(" or "), join(&present, " and "));
    Some(((*first.first()?).to_owned(), hint))
}

/// What the branches require, like `["a"] or ["b","c"]`.
fn required_lists(branches: &[Schema]) -> String {
    let requiring = branches.iter().filter(|branch| !branch.required.is_empty());
    let listed: Vec<_> = requiring.map(|branch| Value::from(branch.required.clone()).to_string()).collect();
    listed.join(" or ")
}

/// Names in quotes.
fn join(names: &[impl AsRef<str>], word: &str) -> String {
    names.iter().map(|name| format!("\"{}\"", name.as_ref())).collect::<Vec<_>>().join(word)
}
