//! The schema files of this crate: one for each kind of document, and one for each block that
//! routes and services share.
//!
//! The schemas of routes and services include the blocks' (so that `GET schema/route` shows them),
//! but [`validate_block`] validates them separately: APISIX words the plugin's problems
//! differently, and a data plane receives blocks alone.

use std::sync::LazyLock;

use serde_json::Value;

use super::{Schema, SchemaError};
use crate::id::Kind;
use crate::problem::Problem;

/// The JSON Schema of a kind with all `$ref`s inlined.
pub fn json_schema(kind: Kind) -> &'static Value {
    &kind_schema(kind).text
}

/// Validates a document by the schema of its kind. Messages are those of contract section 3,
/// without the `invalid configuration: ` that [`compile`](crate::document::compile) puts in front.
///
/// # Errors
///
/// The first problem.
pub fn validate(kind: Kind, document: &Value) -> Result<(), Problem> {
    kind_schema(kind).schema.validate(document)
}

/// A block with a schema of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SchemaBlock {
    ClientIdentity,
    ProxyRewrite,
}

impl SchemaBlock {
    const ALL: [SchemaBlock; 2] = [SchemaBlock::ClientIdentity, SchemaBlock::ProxyRewrite];

    fn file_name(self) -> &'static str {
        match self {
            SchemaBlock::ClientIdentity => "client_identity.schema.json",
            SchemaBlock::ProxyRewrite => "proxy_rewrite.schema.json",
        }
    }

    fn text(self) -> &'static str {
        match self {
            SchemaBlock::ClientIdentity => include_str!("client_identity.schema.json"),
            SchemaBlock::ProxyRewrite => include_str!("proxy_rewrite.schema.json"),
        }
    }
}

static BLOCK_SCHEMAS: LazyLock<[Schema; 2]> = LazyLock::new(|| {
    SchemaBlock::ALL.map(|block| {
        let text = serde_json::from_str(block.text()).ok().and_then(|text| inline_refs(&text).ok());
        // Tests prove that the schema files compile; a broken one would accept nothing.
        text.and_then(|text| Schema::compile(&text).ok()).unwrap_or_else(Schema::never)
    })
});

/// Validates a block by its schema; fields are relative to the block.
pub(crate) fn validate_block(block: SchemaBlock, value: &Value) -> Result<(), Problem> {
    let [identity, rewrite] = &*BLOCK_SCHEMAS;
    match block {
        SchemaBlock::ClientIdentity => identity.validate(value),
        SchemaBlock::ProxyRewrite => rewrite.validate(value),
    }
}

struct KindSchema {
    text: Value,
    schema: Schema,
}

static KIND_SCHEMAS: LazyLock<[KindSchema; 6]> = LazyLock::new(|| {
    Kind::ALL.map(|kind| {
        // Tests prove that the schema files compile; a broken one would accept nothing.
        load(kind).unwrap_or_else(|_| KindSchema { text: Value::Bool(false), schema: Schema::never() })
    })
});

fn kind_schema(kind: Kind) -> &'static KindSchema {
    let [ssl, upstream, service, route, stream_route, global_rule] = &*KIND_SCHEMAS;
    match kind {
        Kind::Ssl => ssl,
        Kind::Upstream => upstream,
        Kind::Service => service,
        Kind::Route => route,
        Kind::StreamRoute => stream_route,
        Kind::GlobalRule => global_rule,
    }
}

#[derive(Debug, thiserror::Error)]
enum LoadError {
    #[error("a schema file is not JSON: {0}")]
    Json(#[from] serde_json::Error),
    #[error(transparent)]
    Schema(#[from] SchemaError),
    #[error("{0:?} refers to nothing")]
    Reference(String),
}

fn load(kind: Kind) -> Result<KindSchema, LoadError> {
    let text = inline_refs(&serde_json::from_str(schema_text(kind))?)?;
    let schema = Schema::compile(&text)?;
    Ok(KindSchema { text, schema })
}

fn schema_text(kind: Kind) -> &'static str {
    match kind {
        Kind::Ssl => include_str!("ssl.schema.json"),
        Kind::Upstream => include_str!("upstream.schema.json"),
        Kind::Service => include_str!("service.schema.json"),
        Kind::Route => include_str!("route.schema.json"),
        Kind::StreamRoute => include_str!("stream_route.schema.json"),
        Kind::GlobalRule => include_str!("global_rule.schema.json"),
    }
}

/// Replaces each `$ref` by its schema. Files refer to each other by file name, and `#/x` names a
/// member of `common.schema.json`.
fn inline_refs(schema: &Value) -> Result<Value, LoadError> {
    match schema {
        Value::Object(members) => {
            if let Some(Value::String(reference)) = members.get("$ref") {
                return inline_refs(&resolve_ref(reference)?);
            }
            let resolved = members.iter().map(|(name, inner)| Ok((name.clone(), inline_refs(inner)?)));
            Ok(Value::Object(resolved.collect::<Result<_, LoadError>>()?))
        }
        Value::Array(items) => Ok(Value::Array(items.iter().map(inline_refs).collect::<Result<_, _>>()?)),
        plain => Ok(plain.clone()),
    }
}

fn resolve_ref(reference: &str) -> Result<Value, LoadError> {
    if reference == "upstream.schema.json" {
        let mut upstream: Value = serde_json::from_str(schema_text(Kind::Upstream))?;
        if let Some(members) = upstream.as_object_mut() {
            members.remove("$schema");
        }
        return Ok(upstream);
    }
    if let Some(block) = SchemaBlock::ALL.into_iter().find(|block| block.file_name() == reference) {
        return Ok(serde_json::from_str(block.text())?);
    }
    let common: Value = serde_json::from_str(include_str!("common.schema.json"))?;
    reference
        .strip_prefix("common.schema.json#")
        .and_then(|pointer| common.pointer(pointer))
        .cloned()
        .ok_or_else(|| LoadError::Reference(reference.to_owned()))
}
