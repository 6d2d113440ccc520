//! `GET /apisix/admin/lint`: everything that is served but probably not as intended.
//!
//! What can be said about resources is `model::lint`'s; here come what only the control plane knows: documents that the store holds and that
//! cannot be served, and the settings file. Sorted by severity, then resource; equal states give equal answers.

use std::sync::Arc;

use model::Snapshot;
use model::lint::{Finding, Severity};
use pki::Keyring;
use rustls_pki_types::UnixTime;
use serde_json::{Value, json};

use crate::compile::{compile_stored, version};
use crate::served::Served;
use crate::store::{Store, StoreError, Stored};

/// The answer.
///
/// # Errors
/// When the store cannot be read.
pub async fn all(
    store: &dyn Store,
    served: &Served,
    keyring: &Arc<Keyring>,
    now: UnixTime,
) -> Result<Value, StoreError> {
    let snapshot = served.snapshot().await;
    let stored = store.load().await?;
    let (keyring, plain) =
        (Arc::clone(keyring), served.listeners.plain.iter().any(|listener| !listener.ip().is_loopback()));
    let at = Arc::clone(&snapshot);
    // Ten thousand resources take a moment, so it is done beside the runtime.
    let work = tokio::task::spawn_blocking(move || {
        let mut found = model::lint::together(&at, now, plain);
        found.extend(stored.items.iter().filter_map(|item| unusable(item, &at, &keyring)));
        found
    });
    let mut found = work.await.map_err(|error| StoreError::Unavailable { what: error.to_string() })?;
    if served.listeners.keyring_is_public {
        found.push(Finding {
            severity: Severity::Warning,
            resource: None,
            field: "apisix.data_encryption.keyring".to_owned(),
            what:
                "private keys are stored in clear, or sealed with APISIX's default key, which everybody knows"
                    .to_owned(),
            hint: "put a key of your own first (16 or 32 random bytes), and keep the old ones behind it"
                .to_owned(),
        });
    }
    found.sort();
    found.dedup();
    let list: Vec<_> = found.iter().map(shown).collect();
    Ok(json!({"list": list, "total": list.len(), "revision": snapshot.revision()}))
}

/// A document that another program may have written: its value before, or nothing, is served in its place.
fn unusable(item: &Stored, snapshot: &Snapshot, keyring: &Keyring) -> Option<Finding> {
    let served = snapshot.version(&item.key);
    if served.is_some() && served == version(item) {
        return None;
    }
    let problem = compile_stored(item, keyring).err()?;
    let instead = match served {
        Some(_) => "the data planes keep what it was before",
        None => "the data planes have none",
    };
    Some(Finding {
        severity: Severity::Error,
        resource: Some(item.key.clone()),
        field: problem.field,
        what: format!(
            "the stored {} cannot be served: {}; {instead}",
            item.key.kind.singular(),
            problem.message
        ),
        hint: problem.hint.unwrap_or_else(|| "write it again through the Admin API".to_owned()),
    })
}

fn shown(finding: &Finding) -> Value {
    json!({
        "severity": finding.severity.as_str(),
        "resource": finding.resource.as_ref().map_or_else(|| "settings".to_owned(), ToString::to_string),
        "field": finding.field,
        "what": finding.what,
        "hint": finding.hint,
    })
}
