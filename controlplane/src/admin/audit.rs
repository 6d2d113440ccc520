//! The audit line: one for every write that was asked for by somebody with a key.
//!
//! Who, from where, what, and how it ended. Never a body, a key, a query or an error's text: those may quote what was sent. The path is
//! redacted.

use std::borrow::Cow;

use http::{Method, StatusCode};
use model::redact;

use super::access::Caller;
use super::client::AdminClient;

/// A write, finished.
pub struct Entry<'a> {
    /// Who asked.
    pub caller: &'a Caller,
    /// From where, and with which certificate.
    pub peer: &'a AdminClient,
    /// How.
    pub method: &'a Method,
    /// What: `ssls/1`, `ssls/1/snis`, `routes`.
    pub what: &'a str,
    /// How it ended.
    pub status: StatusCode,
    /// The revision of the commit, if there was one.
    pub revision: Option<u64>,
}

/// Writes the line.
pub fn write(entry: &Entry<'_>) {
    tracing::info!(
        target: "audit",
        key = entry.caller.name,
        certificate = entry.peer.certificate.subject(),
        from = %entry.peer.address,
        method = %entry.method,
        what = shown(entry.what).as_ref(),
        status = entry.status.as_u16(),
        revision = entry.revision,
        "admin write"
    );
}

/// A path may have a line break in it, which the log escapes; a private key is left out.
fn shown(what: &str) -> Cow<'_, str> {
    match redact(&what.replace(char::is_control, " ")) {
        Cow::Borrowed(_) => Cow::Borrowed(what),
        Cow::Owned(redacted) => Cow::Owned(redacted),
    }
}
