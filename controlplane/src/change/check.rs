//! The check: a document is compiled as every data plane compiles it, then its references are
//! looked up.
//!
//! `compile` also builds what the data planes get, so no data plane rejects a document that passes
//! here. References to other resources are looked up in the store at this moment (contract 2.6,
//! 2.7); they catch mistakes and are no constraint that the store enforces.

use model::{Id, Key, Kind, Problem, Reference, Resource, Scheme, Snapshot, Versioned};
use pki::Keyring;
use rustls_pki_types::UnixTime;
use serde_json::Value;

use super::ChangeError;
use crate::compile::{compile, compile_stored};
use crate::store::Store;

/// Checks and compiles a whole document; logs likely misconfigurations.
///
/// # Errors
/// The first problem of the document, or a store error.
pub(crate) async fn check_document(
    kind: Kind,
    id: &Id,
    document: &Value,
    keyring: &Keyring,
    store: &dyn Store,
    now: UnixTime,
) -> Result<Resource, ChangeError> {
    let resource = compile(kind, id, document, keyring)?;
    model::check_validity_period(&resource, now)?;
    for finding in model::lint::lint_resource(&resource, now) {
        tracing::warn!(kind = kind.singular(), id = id.as_str(), "{finding}");
    }
    for reference in model::references(&resource) {
        check_reference(&reference, store).await?;
    }
    check_raw_paths(&resource, keyring, store).await?;
    Ok(resource)
}

/// Rejects a route or service that forwards raw paths where a client could bypass a rule. A rule
/// that is written later is accepted; data planes then deny such requests.
async fn check_raw_paths(
    resource: &Resource,
    keyring: &Keyring,
    store: &dyn Store,
) -> Result<(), ChangeError> {
    if !forwards_raw_paths(resource, store).await? {
        return Ok(());
    }
    let mut resources = Vec::new();
    for kind in [Kind::Ssl, Kind::Upstream, Kind::Service, Kind::Route] {
        let loaded = store.list(kind).await?;
        resources.extend(loaded.items.iter().filter_map(|stored| compile_stored(stored, keyring, None).0));
    }
    resources.push(Versioned { version: 0, resource: resource.clone() });
    Ok(model::raw_path::check_resource(&Snapshot::from_resources(0, resources), resource)?)
}

/// Decides by the document itself, or by the service of a route without a `proxy-rewrite` of its
/// own.
async fn forwards_raw_paths(resource: &Resource, store: &dyn Store) -> Result<bool, ChangeError> {
    let (own, service) = match resource {
        Resource::Route(route) => (&route.proxy_rewrite, route.service.as_ref()),
        Resource::Service(service) => (&service.proxy_rewrite, None),
        _ => return Ok(false),
    };
    match (own, service) {
        (Some(own), _) => Ok(own.uses_raw_path()),
        (None, None) => Ok(false),
        (None, Some(service)) => {
            let found = store.get(&Key::new(Kind::Service, service.clone())).await?;
            let enabled = |document: &Value| {
                document.pointer("/plugins/proxy-rewrite/use_real_request_uri_unsafe")
                    == Some(&Value::Bool(true))
            };
            Ok(found.is_some_and(|found| enabled(&found.document)))
        }
    }
}

async fn check_reference(reference: &Reference, store: &dyn Store) -> Result<(), ChangeError> {
    let Key { kind, id } = &reference.key;
    let noun = kind.noun();
    let lookup = format!("failed to fetch {noun} info by {noun} id [{id}]");
    let invalid = |detail: &str| {
        Err(ChangeError::Invalid(Problem::new(reference.field.clone(), format!("{lookup}, {detail}"))))
    };
    match store.get(&reference.key).await? {
        None => invalid("response code: 404"),
        Some(found) if *kind == Kind::Ssl && !is_client(&found.document) => invalid("wrong ssl type"),
        Some(found) if reference.requires_http && !scheme_of(&found.document).is_http() => {
            let scheme = scheme_of(&found.document).as_str();
            invalid(&format!("scheme {scheme} takes no HTTP requests"))
        }
        Some(_) => Ok(()),
    }
}

fn is_client(ssl: &Value) -> bool {
    ssl.get("type").and_then(Value::as_str) == Some("client")
}

/// The upstream is stored, so its scheme was checked.
fn scheme_of(upstream: &Value) -> Scheme {
    upstream.get("scheme").and_then(Value::as_str).and_then(Scheme::parse).unwrap_or(Scheme::Http)
}

/// Rejects the removal of a document that others refer to. An ssl can always be removed (contract
/// 2.3).
///
/// # Errors
/// Names the first document that refers to it.
pub(crate) async fn check_removal(key: &Key, store: &dyn Store) -> Result<(), ChangeError> {
    let (field, users, what): (_, &[Kind], _) = match key.kind {
        Kind::Upstream => ("upstream_id", &[Kind::Route, Kind::Service, Kind::StreamRoute], "this upstream"),
        Kind::Service => ("service_id", &[Kind::Route, Kind::StreamRoute], "this service directly"),
        Kind::Ssl | Kind::Route | Kind::StreamRoute | Kind::GlobalRule => return Ok(()),
    };
    for user in users {
        let loaded = store.list(*user).await?;
        let found = loaded.items.iter().find(|item| refers_to(&item.document, field, key.id.as_str()));
        if let Some(found) = found {
            let message = format!(
                "can not delete {what}, {} [{}] is still using it now",
                user.singular(),
                found.key.id
            );
            return Err(Problem::new("", message).into());
        }
    }
    Ok(())
}

/// Ids may be written as numbers.
fn refers_to(document: &Value, field: &str, id: &str) -> bool {
    match document.get(field) {
        Some(Value::String(text)) => text == id,
        Some(Value::Number(number)) => number.to_string() == id,
        _ => false,
    }
}
