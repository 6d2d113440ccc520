//! Why an operation did not count: a closed list, so that a run can say "12 x timeout" and not "12 errors".
//!
//! Every kind keeps the text of its first occurrence; a run whose failures cannot be explained is worthless.

use std::collections::BTreeMap;

use serde::Serialize;

/// The kinds of failure, in the order in which an operation meets them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// TCP could not be opened.
    Connect,
    /// The TLS handshake ended in an alert or an error.
    Handshake,
    /// A connection that had to be resumed made a full handshake.
    NotResumed,
    /// The request could not be written.
    Send,
    /// The answer broke off or could not be read.
    Receive,
    /// The answer is not HTTP as we know it.
    Malformed,
    /// Another status than the expected one.
    Status,
    /// The whole operation took longer than its limit.
    Timeout,
    /// An idle connection that the server closed.
    Dropped,
}

/// One failed operation.
#[derive(Debug, thiserror::Error)]
#[error("{kind:?}: {text}")]
pub struct Failure {
    /// What failed.
    pub kind: FailureKind,
    /// What the operating system, the TLS engine or the server said.
    pub text: String,
}

impl Failure {
    /// A failure with the text of what caused it.
    pub fn new(kind: FailureKind, text: impl std::fmt::Display) -> Self {
        Self { kind, text: text.to_string() }
    }
}

/// Failures by kind.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(transparent)]
pub struct Failures(BTreeMap<FailureKind, Counted>);

/// How often a kind of failure occurred, and the text of the first one.
#[derive(Clone, Debug, Serialize)]
pub struct Counted {
    /// Occurrences.
    pub count: u64,
    /// What the first one said.
    pub first: String,
}

impl Failures {
    /// Counts one.
    pub fn add(&mut self, failure: Failure) {
        self.0.entry(failure.kind).or_insert(Counted { count: 0, first: failure.text }).count += 1;
    }

    /// Adds the failures of another phase.
    pub fn merge(&mut self, other: &Failures) {
        for (kind, counted) in &other.0 {
            let entry = self.0.entry(*kind).or_insert(Counted { count: 0, first: counted.first.clone() });
            entry.count += counted.count;
        }
    }

    /// All kinds together.
    pub fn total(&self) -> u64 {
        self.0.values().map(|counted| counted.count).sum()
    }

    /// Kinds with their counts, in the order in which an operation meets them.
    pub fn iter(&self) -> impl Iterator<Item = (FailureKind, &Counted)> {
        self.0.iter().map(|(kind, counted)| (*kind, counted))
    }
}
