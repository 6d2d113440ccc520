//! Compiles a schema file. A keyword that the evaluator does not implement is an error, so that no
//! rule of a file is ignored.

use regex::Regex;
use serde_json::Value;

use super::{Condition, Format, Schema, Type};

/// A mistake in a schema file of this crate.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SchemaError {
    #[error("a schema is an object")]
    NotAnObject,
    #[error("keyword {0:?} is unknown")]
    UnknownKeyword(String),
    #[error("keyword {0:?} has a value of the wrong kind")]
    Keyword(String),
    #[error("pattern: {0}")]
    Pattern(#[from] regex::Error),
}

impl Schema {
    /// Compiles a schema without `$ref`s.
    pub(crate) fn compile(schema: &Value) -> Result<Schema, SchemaError> {
        let keywords = schema.as_object().ok_or(SchemaError::NotAnObject)?;
        let mut compiled = Schema::default();
        let mut condition = (None, None, None);
        for (keyword, value) in keywords {
            let wrong = || SchemaError::Keyword(keyword.clone());
            match keyword.as_str() {
                "$schema" | "title" | "description" | "default" => {}
                "if" => condition.0 = Some(Schema::compile(value)?),
                "then" => condition.1 = Some(Schema::compile(value)?),
                "else" => condition.2 = Some(Schema::compile(value)?),
                "type" => compiled.kind = Some(value.as_str().and_then(Type::parse).ok_or_else(wrong)?),
                "properties" => compiled.properties = named(value).ok_or_else(wrong)??,
                "dependencies" => compiled.dependencies = named(value).ok_or_else(wrong)??,
                "patternProperties" => {
                    for (pattern, schema) in named(value).ok_or_else(wrong)?? {
                        compiled.pattern_properties.push((Regex::new(&pattern)?, schema));
                    }
                }
                "required" => compiled.required = texts(value).ok_or_else(wrong)?,
                "additionalProperties" => compiled.closed = !value.as_bool().ok_or_else(wrong)?,
                "items" => compiled.items = Some(Box::new(Schema::compile(value)?)),
                "minItems" => compiled.items_min = Some(size(value).ok_or_else(wrong)?),
                "maxItems" => compiled.items_max = Some(size(value).ok_or_else(wrong)?),
                "uniqueItems" => compiled.items_unique = value.as_bool().ok_or_else(wrong)?,
                "minLength" => compiled.length_min = Some(size(value).ok_or_else(wrong)?),
                "maxLength" => compiled.length_max = Some(size(value).ok_or_else(wrong)?),
                "pattern" => compiled.pattern = Some(Regex::new(value.as_str().ok_or_else(wrong)?)?),
                "format" => compiled.format = Some(value.as_str().and_then(Format::parse).ok_or_else(wrong)?),
                "minimum" => compiled.minimum = Some(value.as_f64().ok_or_else(wrong)?),
                "maximum" => compiled.maximum = Some(value.as_f64().ok_or_else(wrong)?),
                "exclusiveMinimum" => compiled.above = Some(value.as_f64().ok_or_else(wrong)?),
                "enum" => compiled.choices = Some(value.as_array().ok_or_else(wrong)?.clone()),
                "allOf" => compiled.all_of = several(value).ok_or_else(wrong)??,
                "anyOf" => compiled.any_of = several(value).ok_or_else(wrong)??,
                "oneOf" => compiled.one_of = several(value).ok_or_else(wrong)??,
                "not" => compiled.not = Some(Box::new(Schema::compile(value)?)),
                _ => return Err(SchemaError::UnknownKeyword(keyword.clone())),
            }
        }
        if let (Some(when), then, otherwise) = condition {
            compiled.condition = Some(Box::new(Condition { when, then, otherwise }));
        }
        Ok(compiled)
    }

    /// A schema that accepts nothing, for a broken file.
    pub(crate) fn never() -> Schema {
        Schema { choices: Some(Vec::new()), ..Schema::default() }
    }
}

type Compiled<T> = Option<Result<T, SchemaError>>;

fn named(value: &Value) -> Compiled<Vec<(String, Schema)>> {
    let entries = value.as_object()?;
    Some(entries.iter().map(|(name, schema)| Ok((name.clone(), Schema::compile(schema)?))).collect())
}

fn several(value: &Value) -> Compiled<Vec<Schema>> {
    Some(value.as_array()?.iter().map(Schema::compile).collect())
}

fn texts(value: &Value) -> Option<Vec<String>> {
    value.as_array()?.iter().map(|text| text.as_str().map(str::to_owned)).collect()
}

fn size(value: &Value) -> Option<usize> {
    value.as_u64().and_then(|size| usize::try_from(size).ok())
}
