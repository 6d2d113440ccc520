//! Compiles the service document (contract 3.4), and the parts that routes share with it.

use std::sync::Arc;

use pki::Keyring;
use serde_json::Value;

use super::fields::{flag, is_set, names};
use super::{unsupported, upstream};
use crate::client_identity::ClientIdentity;
use crate::id::Id;
use crate::pattern::HostPattern;
use crate::problem::{Problem, ProblemKind};
use crate::proxy_rewrite::ProxyRewrite;
use crate::resource::Service;

/// The only supported plugin.
pub(crate) const PROXY_REWRITE: &str = "proxy-rewrite";

pub(super) fn compile(id: &Id, document: &Value, keyring: &Keyring) -> Result<Service, Problem> {
    let service = Service {
        id: id.clone(),
        hosts: hosts(document, "")?,
        upstream: upstream::upstream_ref(document, keyring)?,
        client_identity: client_identity(document)?,
        proxy_rewrite: proxy_rewrite(document)?,
        blocked: None,
    };
    forbid_unsupported(document, &["script"])?;
    forbid_websocket(document)?;
    Ok(service)
}

/// Host patterns from `one` (of a route) or from `hosts`.
pub(super) fn hosts(document: &Value, one: &str) -> Result<Vec<HostPattern>, Problem> {
    let hosts = names(document, one, "hosts")?;
    for host in &hosts {
        let text = host.to_string();
        if text.contains(':') && !text.starts_with('[') {
            let message =
                format!("invalid configuration: host \"{text}\" has a port, which is never compared");
            return Err(Problem::new("hosts", message)
                .with_hint("write the name alone: it fits any port")
                .with_kind(ProblemKind::Unsupported));
        }
    }
    Ok(hosts)
}

/// Upgrades are not forwarded; `false` is the default.
pub(super) fn forbid_websocket(document: &Value) -> Result<(), Problem> {
    if flag(document, "enable_websocket") == Some(true) {
        return Err(unsupported(
            "enable_websocket",
            "remove it, or set it to false: upgrades are not forwarded",
        ));
    }
    Ok(())
}

/// Rejects fields that select or change requests and that the gateway does not support.
pub(super) fn forbid_unsupported(document: &Value, fields: &[&str]) -> Result<(), Problem> {
    match fields.iter().find(|field| is_set(document, field)) {
        Some(field) => {
            Err(unsupported(field, "remove it: without it, requests could pass that it would deny"))
        }
        None => Ok(()),
    }
}

/// Compiles the plugins before the schema is applied, so that their problems have APISIX's words.
pub(super) fn check_plugins_before_schema(document: &Value) -> Result<(), Problem> {
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
        "remove it: without it, requests could pass that it would deny; proxy-rewrite is the only supported plugin",
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
