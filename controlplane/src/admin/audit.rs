//! The audit log: one line for every write by an authenticated caller.
//!
//! A line has the caller (the name of its key, its certificate, the entry of `client_roles` that
//! matched), its address, the resource and the status. It never has a body, a key, a query or an
//! error text, which may quote what the client sent. The path is redacted.

use std::borrow::Cow;

use http::{Method, StatusCode};
use model::redact;

use super::access::{AdminClient, Caller};

/// A completed write.
pub(super) struct AuditEntry<'a> {
    pub caller: &'a Caller,
    pub client: &'a AdminClient,
    pub method: &'a Method,
    /// `ssls/1`, `ssls/1/snis`, `routes`.
    pub resource: &'a str,
    pub status: StatusCode,
    /// The revision of the commit, if the write made one.
    pub revision: Option<u64>,
    /// The write was only checked.
    pub dry_run: bool,
}

impl<'a> AuditEntry<'a> {
    /// The entry of a write that has reached no commit.
    pub(super) fn without_commit(
        caller: &'a Caller,
        client: &'a AdminClient,
        method: &'a Method,
        resource: &'a str,
        status: StatusCode,
    ) -> Self {
        Self { caller, client, method, resource, status, revision: None, dry_run: false }
    }
}

pub(super) fn write(entry: &AuditEntry<'_>) {
    tracing::info!(
        target: "audit",
        key = entry.caller.name,
        certificate = entry.client.certificate.name(),
        client_role = entry.caller.client_role,
        peer = %entry.client.address,
        method = %entry.method,
        resource = redact_path(entry.resource).as_ref(),
        status = entry.status.as_u16(),
        revision = entry.revision,
        dry_run = entry.dry_run.then_some(true),
        "admin write"
    );
}

/// Control characters are left for the log to escape; a private key is redacted.
fn redact_path(path: &str) -> Cow<'_, str> {
    match redact(&path.replace(char::is_control, " ")) {
        Cow::Borrowed(_) => Cow::Borrowed(path),
        Cow::Owned(redacted) => Cow::Owned(redacted),
    }
}
