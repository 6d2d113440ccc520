//! Documents, the JSON of the Admin API, validated and compiled to resources.
//!
//! [`validate`] applies the JSON Schema alone. [`compile`] applies the schema, then the Admin API's
//! checks in their order, then this gateway's limits: a feature that it would have to ignore (a
//! plugin, a predicate, a reference to a secret) is rejected by name, because a route that loses a
//! predicate is an unprotected route. [`resolve_references`] resolves references to the environment
//! first. `resource::references` checks what depends on other resources, [`check_validity_period`]
//! what depends on the time.

mod blocks;
mod client;
mod environment;
pub(crate) mod fields;
mod keypair;
mod route;
mod schema;
mod service;
mod ssl;
mod stream_route;
mod upstream;
mod validity_period;

use std::sync::{Arc, LazyLock};

pub(crate) use blocks::{PROXY_REWRITE, SchemaBlock, unsupported_plugin, validate_block};
pub use client::drop_unsigned_crls;
pub use environment::{ResolvedDocument, resolve_references};
use pki::Keyring;
use schema::{Schema, SchemaError};
use serde_json::Value;
pub(crate) use ssl::require_supported_version;
pub use validity_period::check_validity_period;

use crate::id::{Id, Kind};
use crate::problem::{Problem, ProblemKind};
use crate::resource::{GlobalRule, Resource};

/// The JSON Schema of a kind with all `$ref`s inlined.
pub fn schema(kind: Kind) -> &'static Value {
    &kind_schema(kind).text
}

/// Validates a document by the schema of its kind. Messages are those of contract section 3,
/// without the `invalid configuration: ` that [`compile`] puts in front.
///
/// # Errors
///
/// The first problem.
pub fn validate(kind: Kind, document: &Value) -> Result<(), Problem> {
    kind_schema(kind).schema.judge(document)
}

/// Compiles a document to a resource. Private keys may be PEM or encrypted with the keyring; `id`
/// comes from the URL or the store.
///
/// # Errors
///
/// The first problem, in the order of contract 4.1.
pub fn compile(kind: Kind, id: &Id, document: &Value, keyring: &Keyring) -> Result<Resource, Problem> {
    if kind == Kind::Route {
        route::check_before_schema(document)?;
    }
    if matches!(kind, Kind::Route | Kind::Service) {
        blocks::check_before_schema(document)?;
    }
    validate(kind, document).map_err(invalid_configuration)?;
    fields::forbid_secret_references(document)?;
    Ok(match kind {
        Kind::Ssl => Resource::Ssl(Arc::new(ssl::compile(id, document, keyring)?)),
        Kind::Upstream => Resource::Upstream(Arc::new(upstream::compile(Some(id), document, keyring)?)),
        Kind::Service => Resource::Service(Arc::new(service::compile(id, document, keyring)?)),
        Kind::Route => Resource::Route(Arc::new(route::compile(id, document, keyring)?)),
        Kind::StreamRoute => Resource::StreamRoute(Arc::new(stream_route::compile(id, document, keyring)?)),
        Kind::GlobalRule => {
            blocks::forbid_plugins(document)?;
            Resource::GlobalRule(Arc::new(GlobalRule { id: id.clone(), blocked: None }))
        }
    })
}

/// Prefixes a problem with the Admin API's words.
fn invalid_configuration(problem: Problem) -> Problem {
    Problem { message: format!("invalid configuration: {}", problem.message), ..problem }
}

/// The problem of a field that the gateway does not support.
fn unsupported(field: &str, hint: &str) -> Problem {
    Problem::new(field, format!("invalid configuration: \"{field}\" is not supported by this gateway"))
        .with_hint(hint)
        .with_kind(ProblemKind::Unsupported)
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
        Kind::Ssl => include_str!("document/ssl.schema.json"),
        Kind::Upstream => include_str!("document/upstream.schema.json"),
        Kind::Service => include_str!("document/service.schema.json"),
        Kind::Route => include_str!("document/route.schema.json"),
        Kind::StreamRoute => include_str!("document/stream_route.schema.json"),
        Kind::GlobalRule => include_str!("document/global_rule.schema.json"),
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
        return Ok(serde_json::from_str(block.file())?);
    }
    let common: Value = serde_json::from_str(include_str!("document/common.schema.json"))?;
    reference
        .strip_prefix("common.schema.json#")
        .and_then(|pointer| common.pointer(pointer))
        .cloned()
        .ok_or_else(|| LoadError::Reference(reference.to_owned()))
}

#[cfg(test)]
mod tests;
