//! A JSON Schema evaluator for exactly the keywords that the `*.schema.json` files use.
//!
//! The `jsonschema` crate does not fit: the messages of APISIX's validator, the order in which it
//! evaluates keywords, its reference values (`$env://`, `$secret://`) that skip all string rules,
//! and its empty array that passes for an object are part of the contract. Translating the errors
//! of another validator would break silently when it changes its order. The tests compare both:
//! they must agree on which documents are valid.
//!
//! Schemas are compiled once; an unknown keyword is a compile error.

mod branches;
mod compile;
mod files;

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use compile::SchemaError;
pub(crate) use files::{SchemaFile, validate_client_identity, validate_server_identity};
pub use files::{json_schema, validate};
use regex::Regex;
use serde_json::{Map, Value};

use crate::problem::{Problem, ProblemKind};

/// The prefix of references to the environment.
const ENV_PREFIX: &str = "$env://";

/// A compiled schema.
#[derive(Debug, Default)]
pub(crate) struct Schema {
    kind: Option<Type>,
    properties: Vec<(String, Schema)>,
    pattern_properties: Vec<(Regex, Schema)>,
    required: Vec<String>,
    dependencies: Vec<(String, Schema)>,
    closed: bool,
    items: Option<Box<Schema>>,
    items_min: Option<usize>,
    items_max: Option<usize>,
    items_unique: bool,
    length_min: Option<usize>,
    length_max: Option<usize>,
    pattern: Option<Regex>,
    format: Option<Format>,
    minimum: Option<f64>,
    maximum: Option<f64>,
    above: Option<f64>,
    choices: Option<Vec<Value>>,
    all_of: Vec<Schema>,
    any_of: Vec<Schema>,
    one_of: Vec<Schema>,
    condition: Option<Box<Condition>>,
    not: Option<Box<Schema>>,
}

#[derive(Debug)]
struct Condition {
    when: Schema,
    then: Option<Schema>,
    otherwise: Option<Schema>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Type {
    Object,
    Array,
    String,
    Integer,
    Number,
    Boolean,
}

#[derive(Debug, Clone, Copy)]
enum Format {
    Ipv4,
    Ipv6,
}

/// Whether a string refers to a value kept elsewhere, to which the validator applies no rules
/// (contract 3).
pub(crate) fn is_reference(text: &str) -> bool {
    text.starts_with("$secret://") || env_ref_path(text).is_some()
}

/// The text after `$env://`, matched case-insensitively.
pub(crate) fn env_ref_path(text: &str) -> Option<&str> {
    let (start, path) = text.split_at_checked(ENV_PREFIX.len())?;
    start.eq_ignore_ascii_case(ENV_PREFIX).then_some(path)
}

impl Format {
    fn parse(name: &str) -> Option<Format> {
        match name {
            "ipv4" => Some(Format::Ipv4),
            "ipv6" => Some(Format::Ipv6),
            _ => None,
        }
    }

    fn fits(self, text: &str) -> bool {
        match self {
            Format::Ipv4 => text.parse::<Ipv4Addr>().is_ok(),
            Format::Ipv6 => text.parse::<Ipv6Addr>().is_ok(),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Format::Ipv4 => "ipv4",
            Format::Ipv6 => "ipv6",
        }
    }
}

impl Type {
    fn parse(name: &str) -> Option<Type> {
        match name {
            "object" => Some(Type::Object),
            "array" => Some(Type::Array),
            "string" => Some(Type::String),
            "integer" => Some(Type::Integer),
            "number" => Some(Type::Number),
            "boolean" => Some(Type::Boolean),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Type::Object => "object",
            Type::Array => "array",
            Type::String => "string",
            Type::Integer => "integer",
            Type::Number => "number",
            Type::Boolean => "boolean",
        }
    }

    fn fits(self, value: &Value) -> bool {
        match self {
            // Lua cannot distinguish {} from [], so clients send either.
            Type::Object => value.is_object() || value.as_array().is_some_and(Vec::is_empty),
            Type::Array => value.is_array(),
            Type::String => value.is_string(),
            Type::Integer => value.as_f64().is_some_and(|number| number.fract() == 0.0),
            Type::Number => value.is_number(),
            Type::Boolean => value.is_boolean(),
        }
    }
}

/// Lua's name of the type, for messages: the contract names types as Lua does.
pub fn lua_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "userdata",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) | Value::Object(_) => "table",
    }
}

impl Schema {
    /// Validates a value and returns the first problem, in the order of contract section 3.
    pub(crate) fn validate(&self, value: &Value) -> Result<(), Problem> {
        if let Some(kind) = self.kind {
            if !kind.fits(value) {
                let (expected, got) = (kind.name(), lua_type(value));
                let problem = Problem::new("", format!("wrong type: expected {expected}, got {got}"));
                return Err(match (kind, value) {
                    (_, Value::Null) => problem.with_hint("leave the member out"),
                    (Type::Array, Value::String(_) | Value::Object(_)) => {
                        problem.with_hint("write a list: [...]")
                    }
                    _ => problem,
                });
            }
            if kind == Type::String && value.as_str().is_some_and(is_reference) {
                return Ok(());
            }
        }
        match value {
            Value::Object(members) => self.judge_object(members, value)?,
            Value::Array(items) if self.kind == Some(Type::Object) && items.is_empty() => {
                self.judge_object(&Map::new(), value)?;
            }
            Value::Array(items) => self.validate_array(items)?,
            Value::String(text) => self.validate_string(text)?,
            Value::Number(number) => self.validate_number(number)?,
            Value::Bool(_) | Value::Null => {}
        }
        if self
            .choices
            .as_ref()
            .is_some_and(|choices| !choices.iter().any(|choice| json_equal(choice, value)))
        {
            let choices = self.choices.iter().flatten().map(ToString::to_string);
            let hint = format!("expected {}", choices.collect::<Vec<_>>().join(", "));
            return Err(Problem::new("", "matches none of the enum values").with_hint(hint));
        }
        self.validate_combinators(value)
    }

    /// `whole` is the object itself, which dependent schemas validate.
    fn judge_object(&self, members: &Map<String, Value>, whole: &Value) -> Result<(), Problem> {
        for (name, schema) in &self.properties {
            if let Some(value) = members.get(name) {
                schema.validate(value).map_err(|inner| {
                    let message = format!("property \"{name}\" validation failed: {}", inner.message);
                    Problem { message, ..inner }.within(name)
                })?;
            } else if self.required.contains(name) {
                return self.missing(name, members);
            }
            if members.contains_key(name) {
                self.validate_dependencies(name, whole)?;
            }
        }
        for (name, value) in members {
            let mut known = self.properties.iter().any(|(property, _)| property == name);
            for (pattern, schema) in &self.pattern_properties {
                if pattern.is_match(name) {
                    known = true;
                    schema.validate(value).map_err(|inner| {
                        let text = &inner.message;
                        let message = format!("failed to validate {name} (matching \"{pattern}\"): {text}");
                        Problem { message, ..inner }.within(name)
                    })?;
                }
            }
            if !known && self.closed {
                let problem = Problem::new(name, format!("additional properties forbidden, found {name}"))
                    .with_kind(ProblemKind::Unsupported);
                return Err(match self.closest(name) {
                    Some(meant) => problem.with_hint(format!("did you mean \"{meant}\"?")),
                    None => problem,
                });
            }
        }
        match self.required.iter().find(|name| !members.contains_key(*name)) {
            Some(name) => self.missing(name, members),
            None => Ok(()),
        }
    }

    fn validate_dependencies(&self, name: &str, whole: &Value) -> Result<(), Problem> {
        let Some((_, schema)) = self.dependencies.iter().find(|(trigger, _)| trigger == name) else {
            return Ok(());
        };
        schema.validate(whole).map_err(|inner| {
            let message = format!("failed to validate dependent schema for \"{name}\": {}", inner.message);
            Problem { message, ..inner }
        })
    }

    /// Whether the branch expects values of this type, so that its message is helpful.
    fn means(&self, value: &Value) -> bool {
        self.kind.is_some_and(|kind| kind.fits(value))
    }

    fn missing(&self, name: &str, members: &Map<String, Value>) -> Result<(), Problem> {
        let problem = Problem::new(name, format!("property \"{name}\" is required"));
        let unknown =
            members.keys().filter(|member| !self.properties.iter().any(|(known, _)| known == *member));
        Err(match unknown.into_iter().find(|member| is_similar(name, member)) {
            Some(member) => problem.with_hint(format!("there is \"{member}\": did you mean \"{name}\"?")),
            None => problem,
        })
    }

    /// The known property with the most similar name.
    fn closest(&self, name: &str) -> Option<&str> {
        let known = self.properties.iter().map(|(known, _)| known.as_str());
        known
            .filter(|known| is_similar(known, name))
            .min_by_key(|known| strsim::damerau_levenshtein(known, name))
    }

    fn validate_array(&self, items: &[Value]) -> Result<(), Problem> {
        if let Some(min) = self.items_min.filter(|min| items.len() < *min) {
            return fail(format!("expect array to have at least {min} items"));
        }
        if let Some(max) = self.items_max.filter(|max| items.len() > *max) {
            return fail(format!("expect array to have at most {max} items"));
        }
        if let Some(schema) = &self.items {
            for (index, item) in (1..).zip(items) {
                schema.validate(item).map_err(|inner| {
                    let message = format!("failed to validate item {index}: {}", inner.message);
                    Problem { field: element_path(index, &inner.field), message, ..inner }
                })?;
            }
        }
        if self.items_unique
            && let Some((first, second)) = first_duplicate(items)
        {
            return fail(format!("expected unique items but items {first} and {second} are equal"));
        }
        Ok(())
    }

    fn validate_string(&self, text: &str) -> Result<(), Problem> {
        if self.length_min.is_some() || self.length_max.is_some() {
            let length = text.chars().count();
            if let Some(min) = self.length_min.filter(|min| length < *min) {
                return fail(format!("string too short, expected at least {min}, got {length}"));
            }
            if let Some(max) = self.length_max.filter(|max| length > *max) {
                return fail(format!("string too long, expected at most {max}, got {length}"));
            }
        }
        if let Some(pattern) = self.pattern.as_ref().filter(|pattern| !pattern.is_match(text)) {
            return fail(format!("failed to match pattern \"{pattern}\" with \"{text}\""));
        }
        match self.format.filter(|format| !format.fits(text)) {
            Some(format) => fail(format!("expected valid {} address, got {text}", format.name())),
            None => Ok(()),
        }
    }

    fn validate_number(&self, number: &serde_json::Number) -> Result<(), Problem> {
        let value = number.as_f64().unwrap_or(f64::NAN);
        if let Some(min) = self.minimum.filter(|min| value < *min) {
            return fail(format!("expected {number} to be at least {min}"));
        }
        if let Some(above) = self.above.filter(|above| value <= *above) {
            return fail(format!("expected {number} to be greater than {above}"));
        }
        if let Some(max) = self.maximum.filter(|max| value > *max) {
            return fail(format!("expected {number} to be at most {max}"));
        }
        Ok(())
    }

    fn validate_combinators(&self, value: &Value) -> Result<(), Problem> {
        for (index, schema) in (1..).zip(&self.all_of) {
            schema.validate(value).map_err(|inner| {
                let message = format!("allOf {index} failed: {}", inner.message);
                Problem { message, ..inner }
            })?;
        }
        if !self.any_of.is_empty() && !self.any_of.iter().any(|schema| schema.validate(value).is_ok()) {
            return Err(branches::fits_none_of_any(&self.any_of, value));
        }
        if !self.one_of.is_empty() {
            let mut fitting = (1..).zip(&self.one_of).filter(|(_, schema)| schema.validate(value).is_ok());
            match (fitting.next(), fitting.next()) {
                (None, _) => return Err(branches::fits_none_of_one(&self.one_of, value)),
                (Some(a), Some(b)) => return Err(branches::fits_both(a, b)),
                (Some(_), None) => {}
            }
        }
        if let Some(condition) = &self.condition {
            let (branch, text) = if condition.when.validate(value).is_ok() {
                (&condition.then, "then clause did not match")
            } else {
                (&condition.otherwise, "else clause did not match")
            };
            if let Some(branch) = branch.as_ref().filter(|schema| schema.validate(value).is_err()) {
                return Err(branches::with_reason(text, branch, value));
            }
        }
        match &self.not {
            Some(schema) if schema.validate(value).is_ok() => Err(branches::fits_forbidden(schema, value)),
            _ => Ok(()),
        }
    }
}

fn fail(message: impl Into<String>) -> Result<(), Problem> {
    Err(Problem::new("", message))
}

/// Whether one name may be a misspelling of the other.
fn is_similar(known: &str, written: &str) -> bool {
    let most = 1 + known.len() / 4;
    // No distance is less than that of the lengths, which is most of the time enough: a branch of a
    // valid document fails, too.
    known.chars().count().abs_diff(written.chars().count()) <= most
        && strsim::damerau_levenshtein(known, written) <= most
}

/// The path of an array item, 1-based like in the messages.
fn element_path(index: usize, inner: &str) -> String {
    match inner {
        "" => format!("[{index}]"),
        _ if inner.starts_with('[') => format!("[{index}]{inner}"),
        _ => format!("[{index}].{inner}"),
    }
}

/// The 1-based positions of the first two equal items. Canonical texts are compared, so that long
/// arrays stay cheap.
fn first_duplicate(items: &[Value]) -> Option<(usize, usize)> {
    let mut seen = HashMap::new();
    (1..)
        .zip(items)
        .find_map(|(index, item)| seen.insert(item.to_string(), index).map(|first| (first, index)))
}

/// Equality of JSON Schema, where 1 equals 1.0.
fn json_equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        _ => a == b,
    }
}
