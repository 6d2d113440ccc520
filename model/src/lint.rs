//! What is served, but probably not as intended: findings about one resource, and about how
//! resources fit together.
//!
//! `resource` looks at one alone (the Admin API logs these with every write), `together` at a whole
//! snapshot. Nothing here refuses anything: what cannot be served is a [`crate::Problem`]. The
//! order of findings is total, so equal states give equal lists.

mod paths;
mod resource;
mod snapshot;

use std::fmt;

pub use paths::lint_paths;
use rustls_pki_types::UnixTime;
pub use snapshot::lint_snapshot;

use crate::id::Key;
use crate::redact::redact;
use crate::resource::Resource;

/// How much it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Something does not work now, or does not protect.
    Error,
    /// It will break, or is wider or narrower than it looks.
    Warning,
    /// Worth knowing.
    Notice,
}

impl Severity {
    /// The word in answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Notice => "notice",
        }
    }
}

/// One thing to look at.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// How much it matters.
    pub severity: Severity,
    /// Which resource; `None`: the settings file.
    pub resource: Option<Key>,
    /// The member, as a path.
    pub field: String,
    /// What was found.
    pub message: String,
    /// What to do about it.
    pub hint: String,
}

/// The sentence of a log line.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} ({})", self.field, self.message, self.hint)
    }
}

/// What is to be said about one resource alone.
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
