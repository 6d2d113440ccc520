//! Compiles the blocks that routes and services share: `client_identity` and the plugins, of which
//! `proxy-rewrite` is supported.

use std::sync::Arc;

use serde_json::Value;

use super::unsupported;
use crate::client_identity::ClientIdentity;
use crate::problem::{Problem, ProblemKind};
use crate::proxy_rewrite::ProxyRewrite;

/// The only supported plugin.
pub(crate) const PROXY_REWRITE: &str = "proxy-rewrite";

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
