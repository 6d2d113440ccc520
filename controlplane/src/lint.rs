//! `GET /apisix/admin/lint`: likely misconfigurations.
//!
//! `model::lint` finds those in resources. This file adds what only the control plane knows: stored
//! documents that cannot be served as they are (`publish::StoredFindings`), unknown keys in the
//! store, the settings file, and the expiry of our own certificates and those of data planes
//! (`certificates`). Findings are sorted by severity, then resource; equal states give equal
//! reports.

use std::sync::Arc;

use model::Kind;
use model::lint::{Finding, LintSettings, Severity};
use rustls_pki_types::UnixTime;
use serde_json::{Value, json};

use crate::current_snapshot::CurrentSnapshot;
use crate::publish::FleetStatus;
use crate::store::{ORPHANED_EXTENSIONS, Store, StoreError, UnknownKeys};

mod certificates;

/// The findings at one revision.
pub(crate) struct LintReport {
    findings: Vec<Finding>,
    revision: u64,
}

impl LintReport {
    /// The response body. Slow for ten thousand resources with findings.
    pub(crate) fn into_json(mut self) -> Value {
        self.findings.sort();
        self.findings.dedup();
        let list: Vec<_> = self.findings.iter().map(finding_json).collect();
        let total = list.len();
        json!({"list": list, "total": total, "revision": self.revision})
    }
}

/// Collects all findings.
///
/// # Errors
/// When the runtime shuts down.
pub(crate) async fn collect(
    store: &dyn Store,
    current: &CurrentSnapshot,
    fleet: &dyn FleetStatus,
    now: UnixTime,
) -> Result<LintReport, StoreError> {
    let snapshot = current.snapshot().await;
    let listeners = &current.listeners;
    let settings = LintSettings {
        plain_http: listeners.plain_http.iter().any(|listener| !listener.ip().is_loopback()),
        upstream_verify: listeners.upstream_verify,
    };
    let linted = Arc::clone(&snapshot);
    // Slow for ten thousand resources, so it runs off the runtime.
    let paths = current.listeners.paths;
    let work = tokio::task::spawn_blocking(move || {
        let mut findings = model::lint::lint_snapshot(&linted, now, settings);
        findings.extend(model::lint::lint_paths(&linted, paths));
        findings
    });
    let mut findings = work.await.map_err(|error| StoreError::Unavailable { what: error.to_string() })?;
    findings.extend(current.findings.all());
    findings.extend(certificates::own_certificates(&current.listeners.certificates));
    findings.extend(certificates::node_certificates(&fleet.view().await, now));
    findings.extend(fleet.held_nodes().iter().map(|(node, loss)| Finding {
        severity: Severity::Error,
        resource: None,
        field: format!("dataplanes/{node}"),
        message: format!("the node does not take this control plane's state over: {loss}"),
        hint: "if this store is meant, POST /apisix/admin/dataplanes/accept_store; else correct countersign.store.path or \
               deployment.etcd and restart the control plane"
            .to_owned(),
    }));
    match store.unknown_keys().await {
        Ok(keys) => findings.extend(keys.iter().map(unknown_key)),
        Err(error) => findings.push(Finding {
            severity: Severity::Error,
            resource: None,
            field: "store".to_owned(),
            message: format!("{error}; the data planes serve what they have"),
            hint: "`controlplane doctor` says which step fails".to_owned(),
        }),
    }
    if current.listeners.keyring_is_public {
        findings.push(Finding {
            severity: Severity::Warning,
            resource: None,
            field: "apisix.data_encryption.keyring".to_owned(),
            message:
                "private keys are stored in clear, or encrypted with APISIX's default key, which is public"
                    .to_owned(),
            hint: "put a key of your own first (16 or 32 random bytes), and keep the old ones behind it"
                .to_owned(),
        });
    }
    Ok(LintReport { findings, revision: snapshot.revision() })
}

/// A key of another program, or one of ours with an invalid id.
fn unknown_key(keys: &UnknownKeys) -> Finding {
    let UnknownKeys { name, count } = keys;
    if name == ORPHANED_EXTENSIONS {
        return Finding {
            severity: Severity::Notice,
            resource: None,
            field: name.clone(),
            message: format!(
                "extension fields of {count} documents that expired, or that another program removed or created again, have no effect"
            ),
            hint: "nothing to do: the next write of a document of that name replaces them".to_owned(),
        };
    }
    let (severity, message, hint) = if Kind::ALL
        .iter()
        .any(|kind| name.starts_with(&format!("{}/", kind.plural())))
    {
        let hint = "an id has 1 to 64 of letters, digits, '-', '_' and '.': write it again under one";
        (
            Severity::Error,
            format!(
                "{name:?} in the store has a name that is no id, and is not served: what it would take is blocked"
            ),
            hint,
        )
    } else {
        let hint = "nothing to do if another gateway on the same etcd uses them";
        (Severity::Notice, format!("{count} objects of {name:?} in the store have no effect here"), hint)
    };
    Finding { severity, resource: None, field: name.clone(), message, hint: hint.to_owned() }
}

fn finding_json(finding: &Finding) -> Value {
    json!({
        "severity": finding.severity.as_str(),
        "resource": finding.resource.as_ref().map_or_else(|| "settings".to_owned(), ToString::to_string),
        "field": finding.field,
        "message": finding.message,
        "hint": finding.hint,
    })
}
