//! Findings about served resources that are probably misconfigured.
//!
//! `resource` checks one resource (the Admin API logs its findings with every write), `snapshot` a
//! whole snapshot, `paths` route patterns against the path options. A finding never blocks
//! anything; unsupported documents are a [`crate::Problem`]. Findings have a total order, so equal
//! states give equal lists.

mod certificate;
mod paths;
mod resource;
mod snapshot;
mod upstream;

use std::fmt;

pub use paths::lint_paths;
use rustls_pki_types::UnixTime;
pub use snapshot::lint_snapshot;

use crate::id::Key;
use crate::redact::redact;
use crate::resource::{Resource, VerifyPolicy};

/// The severity of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// A resource does not work or does not protect now.
    Error,
    /// A resource will break, or matches more or less than it seems to.
    Warning,
    /// Information only.
    Notice,
}

impl Severity {
    /// The name in responses.
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Notice => "notice",
        }
    }
}

/// A likely misconfiguration.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// The severity.
    pub severity: Severity,
    /// The resource; `None` is the settings file.
    pub resource: Option<Key>,
    /// The path of the member.
    pub field: String,
    /// The problem.
    pub message: String,
    /// What to do.
    pub hint: String,
}

/// Formats the finding for a log line.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} ({})", self.field, self.message, self.hint)
    }
}

/// What the settings of data planes decide.
#[derive(Debug, Clone, Copy, Default)]
pub struct LintSettings {
    /// They also listen for plain HTTP, which mutual TLS does not protect.
    pub plain_http: bool,
    /// The servers of upstreams without `tls.verify` are verified.
    pub upstream_verify: VerifyPolicy,
}

/// Findings about one resource alone.
pub fn lint_resource(resource: &Resource, now: UnixTime) -> Vec<Finding> {
    let mut notes = Findings::for_resource(resource.key());
    resource::check(resource, now, &mut notes);
    notes.findings
}

/// Collects findings about one resource.
pub(crate) struct Findings {
    key: Option<Key>,
    pub(crate) findings: Vec<Finding>,
}

impl Findings {
    pub(crate) fn for_resource(key: Key) -> Findings {
        Findings { key: Some(key), findings: Vec::new() }
    }

    pub(crate) fn add(&mut self, severity: Severity, field: impl Into<String>, what: String, hint: &str) {
        let (resource, field) = (self.key.clone(), redact(&field.into()).into_owned());
        let what = redact(&what).into_owned();
        self.findings.push(Finding { severity, resource, field, message: what, hint: hint.to_owned() });
    }
}

#[cfg(test)]
mod tests;
