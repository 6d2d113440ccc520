//! Why an operation failed: a closed list, counted by kind.
//!
//! Every kind keeps the text of its first occurrence.

use std::collections::BTreeMap;

use serde::Serialize;

/// Kinds of failure, in the order in which an operation meets them.
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
    /// The response ended early or could not be read.
    Receive,
    /// The response is not valid HTTP.
    Malformed,
    /// Another status than the expected one.
    Status,
    /// The operation exceeded its limit.
    Timeout,
    /// The server closed an idle connection.
    Dropped,
}

#[derive(Debug, thiserror::Error)]
#[error("{kind:?}: {text}")]
pub struct Failure {
    pub kind: FailureKind,
    /// The error of the operating system, rustls or the server.
    pub text: String,
}

impl Failure {
    pub fn new(kind: FailureKind, text: impl std::fmt::Display) -> Self {
        Self { kind, text: text.to_string() }
    }
}

/// Failures by kind.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(transparent)]
pub struct Failures(BTreeMap<FailureKind, Counted>);

/// The count of a kind, and the text of its first occurrence.
#[derive(Clone, Debug, Serialize)]
pub struct Counted {
    pub count: u64,
    pub first: String,
}

impl Failures {
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

    pub fn total(&self) -> u64 {
        self.0.values().map(|counted| counted.count).sum()
    }

    /// In the order in which an operation meets them.
    pub fn iter(&self) -> impl Iterator<Item = (FailureKind, &Counted)> {
        self.0.iter().map(|(kind, counted)| (*kind, counted))
    }
}
