//! Compiles `vars` and reports errors in the words of lua-resty-expr where it has any.
//!
//! Expressions that lua-resty-expr silently turns into tests that never (or, negated, always) hold
//! are errors with a hint.

use std::cmp::Ordering;

use ipnet::IpNet;
use regex::RegexBuilder;
use serde_json::Value;

use super::{Comparison, Expression, Logic, Operand, Vars};
use crate::network;
use crate::problem::Problem;
use crate::variable::Variable;

/// Bounds the comparisons of a predicate, and with it the cost of a candidate route.
const TESTS_MAX: usize = 512;
/// The deepest nesting.
const DEPTH_MAX: usize = 32;
/// The largest compiled form of a pattern, in bytes.
const PATTERN_BYTES_MAX: usize = 1 << 20;

impl Vars {
    /// Compiles the `vars` of a document.
    ///
    /// # Errors
    ///
    /// `failed to validate the 'vars' expression: ...`, with the position as the field.
    pub fn compile(source: &Value) -> Result<Vars, Problem> {
        let root = match source.as_array().map(Vec::as_slice) {
            None => return Err(wrapped(problem("rule should be wrapped inside brackets"))),
            Some([]) => None,
            Some(rules) => {
                let mut left = TESTS_MAX;
                check_first(rules).and_then(|()| node(rules, &mut left, 0)).map(Some).map_err(wrapped)?
            }
        };
        Ok(Vars { source: source.clone(), root })
    }
}

fn wrapped(problem: Problem) -> Problem {
    let message = format!("failed to validate the 'vars' expression: {}", problem.message);
    Problem { message, ..problem.within("vars") }
}

fn problem(text: impl Into<String>) -> Problem {
    Problem::new("", text)
}

fn check_first(rules: &[Value]) -> Result<(), Problem> {
    match rules.first() {
        Some(Value::Array(_)) => Ok(()),
        Some(Value::String(word)) if logic(word).is_some() => Ok(()),
        _ => Err(problem("rule should be wrapped inside brackets")
            .with_hint("like [[\"arg_x\",\"==\",\"1\"]]: an array of expressions")),
    }
}

fn logic(word: &str) -> Option<Logic> {
    Some(match word.to_ascii_uppercase().as_str() {
        "AND" => Logic { any: false, negated: false },
        "OR" => Logic { any: true, negated: false },
        "!AND" => Logic { any: false, negated: true },
        "!OR" => Logic { any: true, negated: true },
        _ => return None,
    })
}

fn node(rules: &[Value], left: &mut usize, depth: usize) -> Result<Expression, Problem> {
    if depth > DEPTH_MAX {
        return Err(problem(format!("nested more than {DEPTH_MAX} deep")));
    }
    match rules {
        [] => Err(problem("rule too short")),
        [Value::Array(_), ..] => {
            let and = Logic { any: false, negated: false };
            Ok(Expression::Logic(and, nodes(rules, 1, left, depth)?))
        }
        [Value::String(word), rest @ ..] if logic(word).is_some() => {
            match (logic(word), rest) {
                (Some(logic), [_, _, ..]) => Ok(Expression::Logic(logic, nodes(rest, 2, left, depth)?)),
                _ => Err(problem("rule too short")
                    .with_hint(format!("after \"{word}\" come two expressions or more"))),
            }
        }
        _ => {
            *left =
                left.checked_sub(1).ok_or_else(|| problem(format!("more than {TESTS_MAX} expressions")))?;
            expression(rules)
        }
    }
}

/// `first` is the 1-based position of the first rule.
fn nodes(rules: &[Value], first: usize, left: &mut usize, depth: usize) -> Result<Vec<Expression>, Problem> {
    (first..)
        .zip(rules)
        .map(|(index, rule)| {
            let inner = rule.as_array().ok_or_else(|| problem("invalid expression"));
            let compiled = inner.and_then(|rule| node(rule, left, depth + 1));
            compiled.map_err(|problem| problem.within(&format!("[{index}]")))
        })
        .collect()
}

fn expression(rule: &[Value]) -> Result<Expression, Problem> {
    let (name, negated, operator, value) = match rule {
        [name, not, operator, value] if not == "!" => (name, true, operator, value),
        [_, _, _, _] => {
            return Err(problem("bad 'not' expression").with_hint("like [\"arg_x\",\"!\",\"in\",[\"1\"]]"));
        }
        [name, operator, value] => (name, false, operator, value),
        // lua-resty-expr accepts [variable, value] for compatibility.
        [name, value] if !value.as_str().is_some_and(is_operator) => (name, false, &Value::Null, value),
        _ => return Err(problem("invalid expression").with_hint("expected [variable, operator, value]")),
    };
    let variable = variable(name)?;
    let test = match operator {
        Value::Null if rule.len() == 2 => Comparison::Equal(operand(value)?),
        Value::String(operator) => test(&operator.to_ascii_lowercase(), operator, value)?,
        _ => return Err(problem("invalid expression").with_hint("the operator is a text like \"==\"")),
    };
    match (&test, variable.is_list()) {
        (Comparison::Has(_), false) => Err(problem("the operator 'has' needs a variable that is a list").with_hint(
            "ssl_client_san_uri, ssl_client_san_dns and ssl_client_san_email are; every other holds one text",
        )),
        (Comparison::Has(_), true) | (_, false) => Ok(Expression::Test { variable, negated, test }),
        (_, true) => Err(problem("a variable that is a list can only be asked with 'has'")),
    }
}

fn variable(name: &Value) -> Result<Variable, Problem> {
    let name =
        name.as_str().ok_or_else(|| problem("invalid expression").with_hint("a variable is a text"))?;
    Variable::parse(name).ok_or_else(|| unknown_variable(name))
}

/// The problem of an unknown variable.
pub(crate) fn unknown_variable(name: &str) -> Problem {
    let hint = match Variable::closest(name) {
        Some(meant) => format!("did you mean \"{meant}\"?"),
        None => "a variable that is never known would leave its test without meaning".to_owned(),
    };
    problem(format!("unknown variable '{name}'")).with_hint(hint)
}

fn is_operator(text: &str) -> bool {
    const OPERATORS: [&str; 12] = ["==", "~=", ">", ">=", "<", "<=", "~~", "~*", "in", "has", "ipmatch", "!"];
    OPERATORS.contains(&text.to_ascii_lowercase().as_str())
}

fn test(operator: &str, written: &str, value: &Value) -> Result<Comparison, Problem> {
    use Ordering::{Equal, Greater, Less};
    Ok(match operator {
        "==" => Comparison::Equal(operand(value)?),
        "~=" => Comparison::NotEqual(operand(value)?),
        ">" => Comparison::Ordered(&[Greater], bound(written, value)?),
        ">=" => Comparison::Ordered(&[Greater, Equal], bound(written, value)?),
        "<" => Comparison::Ordered(&[Less], bound(written, value)?),
        "<=" => Comparison::Ordered(&[Less, Equal], bound(written, value)?),
        "~~" => Comparison::Matches(pattern(value, false)?),
        "~*" => Comparison::Matches(pattern(value, true)?),
        "in" => Comparison::In(list(written, value)?.iter().map(operand).collect::<Result<_, _>>()?),
        "has" => match value {
            Value::String(element) => Comparison::Has(element.as_str().into()),
            _ => return Err(problem("the operator 'has' compares with a text")),
        },
        "ipmatch" => Comparison::Within(networks(value)?),
        _ => return Err(problem(format!("invalid operator '{written}'"))),
    })
}

fn operand(value: &Value) -> Result<Operand, Problem> {
    Ok(match value {
        Value::Null => Operand::Absent,
        Value::String(text) => Operand::Text(text.as_str().into()),
        Value::Number(number) => Operand::Number(number.as_f64().unwrap_or(f64::NAN)),
        Value::Bool(_) | Value::Array(_) | Value::Object(_) => {
            return Err(problem(format!("{value} equals no variable"))
                .with_hint("compare with a text, a number, or null for an absent one"));
        }
    })
}

fn bound(operator: &str, value: &Value) -> Result<f64, Problem> {
    let number = match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => super::number(text),
        _ => None,
    };
    number.ok_or_else(|| problem(format!("the operator '{operator}' needs a number, got {value}")))
}

fn pattern(value: &Value, any_case: bool) -> Result<regex::Regex, Problem> {
    let text = value.as_str().ok_or_else(|| problem(format!("a pattern is a text, got {value}")))?;
    RegexBuilder::new(text)
        .case_insensitive(any_case)
        .size_limit(PATTERN_BYTES_MAX)
        .dfa_size_limit(PATTERN_BYTES_MAX)
        .build()
        .map_err(|error| {
            // regex draws its errors over several lines; the last one has the cause.
            let why = error.to_string();
            let why = why.lines().last().unwrap_or_default().trim_start_matches("error: ");
            problem(format!("the pattern \"{text}\" cannot be used: {why}")).with_hint(
                "patterns run in linear time: look-around and back-references, which need back-tracking, are not supported",
            )
        })
}

fn list<'a>(operator: &str, value: &'a Value) -> Result<&'a [Value], Problem> {
    match value.as_array().map(Vec::as_slice) {
        Some([]) | None => {
            Err(problem(format!("the operator '{operator}' needs an array of values, got {value}")))
        }
        Some(items) => Ok(items),
    }
}

fn networks(value: &Value) -> Result<Vec<IpNet>, Problem> {
    let items = if value.is_string() { std::slice::from_ref(value) } else { list("ipmatch", value)? };
    items
        .iter()
        .map(|item| {
            let text = item.as_str().unwrap_or_default();
            network::parse(text)
                .map_err(|error| problem("invalid ip address").with_hint(format!("{item} is {error}")))
        })
        .collect()
}
