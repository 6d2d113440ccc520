//! Compiles the plugins of a document: those that are honoured, those that only observe, and,
//! refused by name, all others.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::unsupported;
use crate::plugin::{PROXY_REWRITE, PluginEffect, is_disabled, plugin, unknown_plugin};
use crate::problem::{Problem, ProblemKind};
use crate::proxy_rewrite::ProxyRewrite;
use crate::raw_path;
use crate::redact::truncated;

/// Bounds a quoted configuration, in bytes.
const QUOTE_MAX: usize = 200;

/// Compiles the plugins of an HTTP document; returns the one that is honoured.
pub(super) fn http_plugins(document: &Value) -> Result<Option<Arc<ProxyRewrite>>, Problem> {
    let mut rewrite = None;
    for (name, configuration) in configured(document) {
        check(name, configuration)?;
        if name == PROXY_REWRITE {
            let compiled = ProxyRewrite::compile(configuration);
            // APISIX's plugin supports more.
            let compiled = compiled.map_err(|problem| problem.with_kind(ProblemKind::Unsupported))?;
            rewrite = Some(Arc::new(compiled));
        }
    }
    Ok(rewrite)
}

/// Compiles the plugins of a global rule. Raw paths are refused there: whether a rule could be
/// bypassed is a question about one route.
pub(super) fn global_plugins(document: &Value) -> Result<Option<Arc<ProxyRewrite>>, Problem> {
    let rewrite = http_plugins(document)?;
    match rewrite {
        Some(rewrite) if rewrite.uses_raw_path() => {
            Err(unsupported(raw_path::FIELD, "in a global rule, leave it out: set it in routes"))
        }
        rewrite => Ok(rewrite),
    }
}

/// Checks the plugins of a stream route, which may only observe.
pub(super) fn stream_plugins(document: &Value) -> Result<(), Problem> {
    for (name, configuration) in configured(document) {
        match plugin(name).filter(|plugin| plugin.stream) {
            None => return Err(unknown_plugin(name)),
            Some(_) => check(name, configuration)?,
        }
    }
    Ok(())
}

fn configured(document: &Value) -> impl Iterator<Item = (&String, &Value)> {
    document.get("plugins").and_then(Value::as_object).into_iter().flat_map(Map::iter)
}

/// Rejects a plugin that is not in the table, and one that only observes with an invalid
/// configuration.
fn check(name: &str, configuration: &Value) -> Result<(), Problem> {
    let Some(plugin) = plugin(name) else { return Err(unknown_plugin(name)) };
    if !configuration.is_object() && !configuration.as_array().is_some_and(Vec::is_empty) {
        let quoted = configuration.to_string();
        let message = format!("invalid plugin conf {} for plugin [{name}]", truncated(&quoted, QUOTE_MAX));
        return Err(Problem::new(format!("plugins.{name}"), message));
    }
    match plugin.effect {
        PluginEffect::ObservesOnly if !is_disabled(configuration) => plugin.validate(configuration),
        PluginEffect::ObservesOnly | PluginEffect::Honoured => Ok(()),
    }
}
