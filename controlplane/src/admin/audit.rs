//! The audit line: one for every write that was asked for by somebody with a key.
//!
//! Who, from where, what, and how it ended. Never a body, a key, a query or an error's text: those
//! may quote what was sent. The path is redacted.

use std::borrow::Cow;

use http::{Method, StatusCode};
use model::redact;

use super::access::Caller;
use super::client::AdminClient;

/// A write, finished.
pub(super) struct AuditEntry<'a> {
    /// Who asked.
    pub caller: &'a Caller,
    /// From where, and with which certificate.
    pub client: &'a AdminClient,
    /// How.
    pub method: &'a Method,
    /// What: `ssls/1`, `ssls/1/snis`, `routes`.
    pub resource: &'a str,
    /// How it ended.
    pub status: StatusCode,
    /// The revision of the commit, if there was one.
    pub revision: Option<u64>,
}

/// Writes the line.
pub(super) fn write(entry: &AuditEntry<'_>) {
    tracing::info!(
        target: "audit",
        key = entry.caller.name,
        certificate = entry.client.certificate.subject(),
        from = %entry.client.address,
        method = %entry.method,
        what = redact_path(entry.resource).as_ref(),
        status = entry.status.as_u16(),
        revision = entry.revision,
        "admin write"
    );
}

/// A path may have a line break in it, which the log escapes; a private key is left out.
fn redact_path(what: &str) -> Cow<'_, str> {
    match redact(&what.replace(char::is_control, " ")) {
        Cow::Borrowed(_) => Cow::Borrowed(what),
        Cow::Owned(redacted) => Cow::Owned(redacted),
    }
}
