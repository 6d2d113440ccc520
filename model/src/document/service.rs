//! Compiles the service document (contract 3.4), and the parts that routes share with it.

use std::sync::Arc;

use pki::Keyring;
use serde_json::Value;

use super::fields::{flag, is_set, names};
use super::plugins::http_plugins;
use super::{unsupported, upstream};
use crate::client_identity::ClientIdentity;
use crate::id::Id;
use crate::pattern::HostPattern;
use crate::problem::{Problem, ProblemKind};
use crate::resource::Service;

pub(super) fn compile(id: &Id, document: &Value, keyring: &Keyring) -> Result<Service, Problem> {
    let service = Service {
        id: id.clone(),
        hosts: hosts(document, "")?,
        upstream: upstream::upstream_ref(document, keyring)?,
        client_identity: client_identity(document)?,
        proxy_rewrite: http_plugins(document)?,
        enable_websocket: flag(document, "enable_websocket") == Some(true),
        blocked: None,
    };
    forbid_unsupported(document, &["script"])?;
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

/// Rejects fields that select or change requests and that the gateway does not support.
pub(super) fn forbid_unsupported(document: &Value, fields: &[&str]) -> Result<(), Problem> {
    match fields.iter().find(|field| is_set(document, field)) {
        Some(field) => {
            Err(unsupported(field, "remove it: without it, requests could pass that it would deny"))
        }
        None => Ok(()),
    }
}

pub(super) fn client_identity(document: &Value) -> Result<Option<Arc<ClientIdentity>>, Problem> {
    document.get("client_identity").map(|block| ClientIdentity::compile(block).map(Arc::new)).transpose()
}
