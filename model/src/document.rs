//! Documents, the JSON of the Admin API, validated and compiled to resources.
//!
//! [`validate`] applies the JSON Schema alone. [`compile`] applies the schema, then the Admin API's
//! checks in their order, then this gateway's limits: a feature that it would have to ignore (a
//! plugin, a predicate, a reference to a secret) is rejected by name, because a route that loses a
//! predicate is an unprotected route. [`resolve_references`] resolves references to the environment
//! first. [`Reference::check`](crate::resource::Reference::check) checks what depends on other
//! resources, [`check_validity_period`] what depends on the time.

mod client;
mod environment;
pub(crate) mod fields;
mod plugins;
mod route;
mod service;
mod ssl;
mod stream_route;
mod upstream;
mod upstream_tls;

use std::sync::Arc;

pub(crate) use client::compile as compile_client_policy;
pub use client::{check_validity_period, drop_unsigned_crls};
pub use environment::{ResolvedDocument, resolve_references};
use pki::Keyring;
use serde_json::Value;
pub(crate) use ssl::require_supported_version;

use crate::id::{Id, Kind};
use crate::problem::{Problem, ProblemKind};
use crate::resource::{GlobalRule, PluginConfig, Resource};
use crate::schema::validate;

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
    validate(kind, document).map_err(invalid_configuration)?;
    fields::forbid_secret_references(document)?;
    Ok(match kind {
        Kind::Ssl => Resource::Ssl(Arc::new(ssl::compile(id, document, keyring)?)),
        Kind::Upstream => Resource::Upstream(Arc::new(upstream::compile(Some(id), document, keyring)?)),
        Kind::Service => Resource::Service(Arc::new(service::compile(id, document, keyring)?)),
        Kind::PluginConfig => Resource::PluginConfig(Arc::new(PluginConfig {
            id: id.clone(),
            proxy_rewrite: plugins::http_plugins(document)?,
            blocked: None,
        })),
        Kind::Route => Resource::Route(Arc::new(route::compile(id, document, keyring)?)),
        Kind::StreamRoute => Resource::StreamRoute(Arc::new(stream_route::compile(id, document, keyring)?)),
        Kind::GlobalRule => {
            let proxy_rewrite = plugins::global_plugins(document)?;
            Resource::GlobalRule(Arc::new(GlobalRule { id: id.clone(), proxy_rewrite, blocked: None }))
        }
    })
}

/// Prefixes a problem with the Admin API's words.
pub fn invalid_configuration(problem: Problem) -> Problem {
    Problem { message: format!("invalid configuration: {}", problem.message), ..problem }
}

/// The problem of a field that the gateway does not support.
fn unsupported(field: &str, hint: &str) -> Problem {
    Problem::new(field, format!("invalid configuration: \"{field}\" is not supported by this gateway"))
        .with_hint(hint)
        .with_kind(ProblemKind::Unsupported)
}

#[cfg(test)]
mod tests;
