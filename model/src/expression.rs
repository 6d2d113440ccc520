//! `vars` of a route: a predicate over [`Variables`] in the grammar of lua-resty-expr (contract
//! 7.2).
//!
//! The control plane compiles it to check a document, each data plane compiles it again, and
//! routing evaluates it for each candidate. Patterns run in linear time. Invariant: an element that
//! would weaken the predicate (an unknown variable, a comparison that never holds, an unsupported
//! pattern) is a compile error, because a route that loses a predicate is an unprotected route.

mod compile;

use std::cmp::Ordering;
use std::fmt;
use std::net::IpAddr;

pub(crate) use compile::unknown_variable;
use ipnet::IpNet;
use regex::Regex;
use serde_json::Value;

use crate::variable::{Variable, Variables};

/// A compiled predicate. The default one always holds.
#[derive(Clone)]
pub struct Vars {
    source: Value,
    root: Option<Expression>,
}

#[derive(Clone)]
enum Expression {
    Logic(Logic, Vec<Expression>),
    Test { variable: Variable, negated: bool, test: Comparison },
}

#[derive(Clone, Copy)]
struct Logic {
    /// Whether one operand is enough.
    any: bool,
    negated: bool,
}

#[derive(Clone)]
enum Comparison {
    Equal(Operand),
    NotEqual(Operand),
    /// The accepted orderings, and the number to compare with.
    Ordered(&'static [Ordering], f64),
    Matches(Regex),
    In(Vec<Operand>),
    Has(Box<str>),
    Within(Vec<IpNet>),
}

#[derive(Clone)]
enum Operand {
    /// `null`, an absent variable.
    Absent,
    Text(Box<str>),
    Number(f64),
}

impl Vars {
    /// The predicate as in the document; an empty array if there is none.
    pub fn source(&self) -> &Value {
        &self.source
    }

    /// Whether the predicate is empty.
    pub fn is_empty(&self) -> bool {
        self.root.is_none()
    }

    /// Whether the predicate reads the path.
    pub(crate) fn uses_path(&self) -> bool {
        self.root.as_ref().is_some_and(Expression::uses_path)
    }

    /// Whether certainly no request fulfils both predicates: they require different texts of one
    /// variable.
    pub(crate) fn excludes(&self, other: &Vars) -> bool {
        let mine = self.required_texts();
        other
            .required_texts()
            .iter()
            .any(|(variable, text)| mine.iter().any(|(own, required)| own == variable && required != text))
    }

    /// The texts that variables of a matching request have.
    fn required_texts(&self) -> Vec<(&Variable, &str)> {
        match &self.root {
            Some(Expression::Logic(Logic { any: false, negated: false }, nodes)) => {
                nodes.iter().filter_map(Expression::required_text).collect()
            }
            Some(node) => node.required_text().into_iter().collect(),
            None => Vec::new(),
        }
    }

    /// Evaluates the predicate.
    pub fn matches(&self, variables: &dyn Variables) -> bool {
        self.root.as_ref().is_none_or(|root| root.holds(variables))
    }
}

impl Expression {
    fn required_text(&self) -> Option<(&Variable, &str)> {
        match self {
            Expression::Test { variable, negated: false, test: Comparison::Equal(Operand::Text(text)) } => {
                Some((variable, text))
            }
            _ => None,
        }
    }

    fn uses_path(&self) -> bool {
        match self {
            Expression::Logic(_, nodes) => nodes.iter().any(Expression::uses_path),
            Expression::Test { variable, .. } => variable.is_path(),
        }
    }

    fn holds(&self, variables: &dyn Variables) -> bool {
        match self {
            Expression::Logic(logic, nodes) => {
                let mut nodes = nodes.iter();
                let held = if logic.any {
                    nodes.any(|node| node.holds(variables))
                } else {
                    nodes.all(|node| node.holds(variables))
                };
                held != logic.negated
            }
            Expression::Test { variable, negated, test } => test.holds(variable, variables) != *negated,
        }
    }
}

impl Comparison {
    fn holds(&self, variable: &Variable, variables: &dyn Variables) -> bool {
        if let Comparison::Has(element) = self {
            return variables.values(variable).iter().any(|held| **held == **element);
        }
        let value = variables.value(variable);
        let value = value.as_deref();
        match self {
            Comparison::Equal(operand) => operand.equals(value),
            Comparison::NotEqual(operand) => !operand.equals(value),
            Comparison::Ordered(wanted, bound) => value
                .and_then(number)
                .and_then(|value| value.partial_cmp(bound))
                .is_some_and(|ordering| wanted.contains(&ordering)),
            Comparison::Matches(pattern) => value.is_some_and(|value| pattern.is_match(value)),
            Comparison::In(operands) => operands.iter().any(|operand| operand.equals(value)),
            Comparison::Within(networks) => {
                value.and_then(|value| value.parse::<IpAddr>().ok()).is_some_and(|address| {
                    networks.iter().any(|network| network.contains(&address.to_canonical()))
                })
            }
            Comparison::Has(_) => false,
        }
    }
}

impl Operand {
    fn equals(&self, value: Option<&str>) -> bool {
        match (self, value) {
            (Operand::Absent, value) => value.is_none(),
            (Operand::Text(text), Some(value)) => **text == *value,
            (Operand::Number(wanted), Some(value)) => number(value) == Some(*wanted),
            (Operand::Text(_) | Operand::Number(_), None) => false,
        }
    }
}

/// Parses a number as Lua does, decimal or hexadecimal with surrounding whitespace, but neither
/// infinity nor NaN.
fn number(text: &str) -> Option<f64> {
    let text = text.trim_matches([' ', '\t', '\n', '\r', '\u{b}', '\u{c}']);
    let (negative, magnitude) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if let Some(digits) = magnitude.strip_prefix("0x").or_else(|| magnitude.strip_prefix("0X")) {
        let all_digits = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        let whole = u64::from_str_radix(digits, 16).ok().filter(|_| all_digits)? as f64;
        return Some(if negative { -whole } else { whole });
    }
    // Rust also parses words ("inf"), and a second sign would pass for the exponent's.
    let plain = magnitude.starts_with(|first: char| first.is_ascii_digit() || first == '.')
        && magnitude.bytes().all(|byte| byte.is_ascii_digit() || b".eE+-".contains(&byte));
    let parsed: f64 = magnitude.parse().ok().filter(|_| plain)?;
    parsed.is_finite().then_some(if negative { -parsed } else { parsed })
}

impl Default for Vars {
    fn default() -> Vars {
        Vars { source: Value::Array(Vec::new()), root: None }
    }
}

impl PartialEq for Vars {
    fn eq(&self, other: &Vars) -> bool {
        self.source == other.source
    }
}

impl fmt::Debug for Vars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Vars({})", self.source)
    }
}

#[cfg(test)]
mod tests;
