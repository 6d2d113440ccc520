//! `GET /apisix/admin/lint`: everything that is served but probably not as intended.
//!
//! What can be said about resources is `model::lint`'s; here come what only the control plane knows: documents that the store holds and that
//! cannot be served as they are (`publish::Findings`), and the settings file. Sorted by severity, then resource; equal states give equal answers.

use std::sync::Arc;

use model::lint::{Finding, Severity};
use rustls_pki_types::UnixTime;
use serde_json::{Value, json};

use crate::served::Served;
use crate::store::StoreError;

/// The answer.
///
/// # Errors
/// When the work is lost with the runtime.
pub async fn all(served: &Served, now: UnixTime) -> Result<Value, StoreError> {
    let snapshot = served.snapshot().await;
    let plain = served.listeners.plain.iter().any(|listener| !listener.ip().is_loopback());
    let at = Arc::clone(&snapshot);
    // Ten thousand resources take a moment, so it is done beside the runtime.
    let work = tokio::task::spawn_blocking(move || model::lint::together(&at, now, plain));
    let mut found = work.await.map_err(|error| StoreError::Unavailable { what: error.to_string() })?;
    found.extend(served.findings.all());
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

fn shown(finding: &Finding) -> Value {
    json!({
        "severity": finding.severity.as_str(),
        "resource": finding.resource.as_ref().map_or_else(|| "settings".to_owned(), ToString::to_string),
        "field": finding.field,
        "what": finding.what,
        "hint": finding.hint,
    })
}
