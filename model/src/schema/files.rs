//! The schema files of this crate: one for each kind of document, one for `client_identity`, one
//! for `tls.verify_identity` of upstreams, and one for each plugin.
//!
//! The schemas of documents include those of their blocks (so that `GET schema/route` shows them),
//! and [`validate_client_identity`] validates a block alone, because a data plane receives blocks
//! alone. As in APISIX, they say nothing about plugins: those have their
//! own schemas and messages.

use std::sync::LazyLock;

use serde_json::{Map, Value, json};

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

/// Validates a `client_identity` block; fields are relative to the block.
pub(crate) fn validate_client_identity(block: &Value) -> Result<(), Problem> {
    static SCHEMA: LazyLock<SchemaFile> = LazyLock::new(|| SchemaFile::load(CLIENT_IDENTITY));
    SCHEMA.schema.validate(block)
}

/// Validates the `tls.verify_identity` of an upstream; fields are relative to it.
pub(crate) fn validate_server_identity(entries: &Value) -> Result<(), Problem> {
    static SCHEMA: LazyLock<SchemaFile> = LazyLock::new(|| SchemaFile::load(SERVER_IDENTITY));
    SCHEMA.schema.validate(entries)
}

const CLIENT_IDENTITY: &str = include_str!("client_identity.schema.json");
const SERVER_IDENTITY: &str = include_str!("server_identity.schema.json");

/// A schema file with all `$ref`s inlined.
#[derive(Debug)]
pub(crate) struct SchemaFile {
    pub(crate) text: Value,
    pub(crate) schema: Schema,
}

impl SchemaFile {
    /// Tests prove that the schema files compile; a broken one would accept nothing.
    fn load(text: &str) -> SchemaFile {
        let compiled = serde_json::from_str(text).map_err(LoadError::from);
        compiled.and_then(|schema| SchemaFile::compile(&schema)).unwrap_or_else(|_| SchemaFile::broken())
    }

    /// The schema of a plugin, with the settings that APISIX adds to every plugin.
    pub(crate) fn load_plugin(text: &str) -> SchemaFile {
        let Ok(Value::Object(mut schema)) = serde_json::from_str(text) else { return SchemaFile::broken() };
        let properties = schema.entry("properties").or_insert_with(|| Value::Object(Map::new()));
        if let Some(properties) = properties.as_object_mut() {
            let meta = json!({"$ref": "common.schema.json#/plugin_meta"});
            properties.insert("_meta".to_owned(), meta);
        }
        SchemaFile::compile(&Value::Object(schema)).unwrap_or_else(|_| SchemaFile::broken())
    }

    fn compile(schema: &Value) -> Result<SchemaFile, LoadError> {
        let text = inline_refs(schema)?;
        let schema = Schema::compile(&text)?;
        Ok(SchemaFile { text, schema })
    }

    fn broken() -> SchemaFile {
        SchemaFile { text: Value::Bool(false), schema: Schema::never() }
    }
}

static KIND_SCHEMAS: LazyLock<[SchemaFile; 7]> =
    LazyLock::new(|| Kind::ALL.map(|kind| SchemaFile::load(schema_text(kind))));

fn kind_schema(kind: Kind) -> &'static SchemaFile {
    let [ssl, upstream, service, plugin_config, route, stream_route, global_rule] = &*KIND_SCHEMAS;
    match kind {
        Kind::Ssl => ssl,
        Kind::Upstream => upstream,
        Kind::Service => service,
        Kind::PluginConfig => plugin_config,
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

fn schema_text(kind: Kind) -> &'static str {
    match kind {
        Kind::Ssl => include_str!("ssl.schema.json"),
        Kind::Upstream => include_str!("upstream.schema.json"),
        Kind::Service => include_str!("service.schema.json"),
        Kind::PluginConfig => include_str!("plugin_config.schema.json"),
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
    match reference {
        "client_identity.schema.json" => return Ok(serde_json::from_str(CLIENT_IDENTITY)?),
        "server_identity.schema.json" => return Ok(serde_json::from_str(SERVER_IDENTITY)?),
        _ => {}
    }
    let common: Value = serde_json::from_str(include_str!("common.schema.json"))?;
    reference
        .strip_prefix("common.schema.json#")
        .and_then(|pointer| common.pointer(pointer))
        .cloned()
        .ok_or_else(|| LoadError::Reference(reference.to_owned()))
}
