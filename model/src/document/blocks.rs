//! Blocks that routes and services share and that have schemas of their own: `client_identity` and
//! the plugin `proxy-rewrite`.
//!
//! The schemas of routes and services include them (so that `GET schema/route` shows them), but
//! they are validated separately: APISIX words the plugin's problems differently, and a data plane
//! validates the blocks alone.

use std::sync::{Arc, LazyLock};

use serde_json::Value;

use super::schema::Schema;
use super::{inline_refs, unsupported};
use crate::client_identity::ClientIdentity;
use crate::problem::{Problem, ProblemKind};
use crate::proxy_rewrite::ProxyRewrite;

/// A block with a schema of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SchemaBlock {
    ClientIdentity,
    ProxyRewrite,
}

/// The only supported plugin.
pub(crate) const PROXY_REWRITE: &str = "proxy-rewrite";

impl SchemaBlock {
    pub(super) const ALL: [SchemaBlock; 2] = [SchemaBlock::ClientIdentity, SchemaBlock::ProxyRewrite];

    pub(super) fn file_name(self) -> &'static str {
        match self {
            SchemaBlock::ClientIdentity => "client_identity.schema.json",
            SchemaBlock::ProxyRewrite => "proxy_rewrite.schema.json",
        }
    }

    pub(super) fn file(self) -> &'static str {
        match self {
            SchemaBlock::ClientIdentity => include_str!("client_identity.schema.json"),
            SchemaBlock::ProxyRewrite => include_str!("proxy_rewrite.schema.json"),
        }
    }
}

static SCHEMAS: LazyLock<[Schema; 2]> = LazyLock::new(|| {
    SchemaBlock::ALL.map(|block| {
        let text = serde_json::from_str(block.file()).ok().and_then(|text| inline_refs(&text).ok());
        // Tests prove that the schema files compile; a broken one would accept nothing.
        text.and_then(|text| Schema::compile(&text).ok()).unwrap_or_else(Schema::never)
    })
});

/// Validates a block by its schema; fields are relative to the block.
pub(crate) fn validate_block(block: SchemaBlock, value: &Value) -> Result<(), Problem> {
    let [identity, rewrite] = &*SCHEMAS;
    match block {
        SchemaBlock::ClientIdentity => identity.judge(value),
        SchemaBlock::ProxyRewrite => rewrite.judge(value),
    }
}

/// Compiles the plugins before the schema is applied, so that their problems have APISIX's words.
pub(super) fn check_before_schema(document: &Value) -> Result<(), Problem> {
    proxy_rewrite(document).map(|_| ())
}

pub(super) fn client_identity(document: &Value) -> Result<Option<Arc<ClientIdentity>>, Problem> {
    document.get("client_identity").map(|block| ClientIdentity::compile(block).map(Arc::new)).transpose()
}

/// Rejects all plugins.
pub(super) fn forbid_plugins(document: &Value) -> Result<(), Problem> {
    let plugins = document.get("plugins").and_then(Value::as_object);
    plugins.and_then(|plugins| plugins.keys().next()).map_or(Ok(()), |name| Err(unsupported_plugin(name)))
}

/// The problem of an unsupported plugin.
pub(crate) fn unsupported_plugin(name: &str) -> Problem {
    unsupported(
        &format!("plugins.{name}"),
        "remove it: served without it, requests would get through that it was to stop; proxy-rewrite is the one plugin there is",
    )
}

/// Compiles `proxy-rewrite` and rejects other plugins by name: without them, requests could pass
/// that the plugin denies or changes.
pub(super) fn proxy_rewrite(document: &Value) -> Result<Option<Arc<ProxyRewrite>>, Problem> {
    let Some(plugins) = document.get("plugins").and_then(Value::as_object) else { return Ok(None) };
    if let Some(other) = plugins.keys().find(|name| *name != PROXY_REWRITE) {
        return Err(unsupported_plugin(other));
    }
    let compiled = plugins.get(PROXY_REWRITE).map(|block| ProxyRewrite::compile(block).map(Arc::new));
    // APISIX's plugin supports more.
    compiled.transpose().map_err(|problem| problem.with_kind(ProblemKind::Unsupported))
}
