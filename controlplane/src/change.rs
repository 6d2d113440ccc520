//! The change pipeline: draft -> check -> commit.
//!
//! `admin` passes in requests; `draft` and `planned` build the whole documents, `overlay` is the
//! store as they will leave it, `check` validates them exactly as a data plane does, and `commit`
//! is the only code that writes the configuration to the store: all requests of a batch in one
//! commit, or none.
//! Invariant: nothing is stored that `check` has not accepted, and no private key is stored in
//! clear unless the operator has switched the keyring off.

pub(crate) mod check;
pub(crate) mod commit;
pub(crate) mod draft;
pub(crate) mod extension_fields;
pub(crate) mod fairness;
pub(crate) mod overlay;
mod planned;
pub(crate) mod private_keys;
pub(crate) mod protection;

use std::num::NonZeroU32;

pub use commit::ChangePipeline;
use model::{Key, Kind, Problem};
use rustls_pki_types::UnixTime;
use serde_json::Value;

use crate::store::StoreError;

/// A requested write of one document.
#[derive(Clone, Debug)]
pub struct ChangeRequest {
    pub kind: Kind,
    /// The id in the URL.
    pub id: Option<String>,
    pub action: Action,
    pub precondition: RequestPrecondition,
    /// Seconds until the store removes the document.
    pub ttl: Option<NonZeroU32>,
}

/// What a request does to its document (contract 2.3).
#[derive(Clone, Debug)]
pub enum Action {
    /// Creates or replaces the document.
    Put { body: Option<Value> },
    /// Creates a document under a new, unique id.
    Post { body: Option<Value> },
    /// Changes a part of the document: merges the body, or sets it at `sub_path`.
    Patch { sub_path: Option<String>, body: Option<Value> },
    /// Removes the document; `force` skips the search for documents that refer to it.
    Delete { force: bool },
}

/// The state of the document that a request requires (`If-Match`, `If-None-Match`; RFC 9110, 13.1).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum RequestPrecondition {
    #[default]
    Unconditional,
    /// The document exists.
    Exists,
    /// The document does not exist.
    Absent,
    /// The document was last changed by one of these revisions.
    ModRevisions(Vec<u64>),
}

impl RequestPrecondition {
    /// Whether it holds for a document of this revision; `None`: there is none.
    fn holds(&self, mod_revision: Option<u64>) -> bool {
        match self {
            Self::Unconditional => true,
            Self::Exists => mod_revision.is_some(),
            Self::Absent => mod_revision.is_none(),
            Self::ModRevisions(revisions) => mod_revision.is_some_and(|found| revisions.contains(&found)),
        }
    }
}

/// How requests are carried out.
#[derive(Clone, Copy, Debug)]
pub struct WriteOptions {
    /// The `update_time` of the documents.
    pub now: UnixTime,
    /// Checks everything and stores nothing.
    pub dry_run: bool,
    /// The caller accepts that the change weakens client authentication.
    pub allow_weakening: bool,
}

impl WriteOptions {
    /// A write at that time.
    pub fn at(now: UnixTime) -> Self {
        Self { now, dry_run: false, allow_weakening: false }
    }
}

/// Changes that are committed and durable, or that a dry run has accepted.
#[derive(Clone, Debug, PartialEq)]
pub struct AcceptedChanges {
    /// The store's revision after the commit; `None` after a dry run.
    pub revision: Option<u64>,
    /// In the order of the requests.
    pub changes: Vec<AcceptedChange>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct AcceptedChange {
    /// `None`: a dry run of a POST, which takes no id.
    pub key: Option<Key>,
    pub kind: Kind,
    /// The stored document that it replaces or removes.
    pub before: Option<Value>,
    /// The document as stored; `Null` after a removal.
    pub document: Value,
    /// What the caller may not expect.
    pub notes: ChangeNotes,
}

/// Effects of a change that its caller did not name: kept fields, weakened protection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChangeNotes {
    /// Fields that the request does not mention and the document keeps, such as `client.crl`.
    pub kept: Vec<String>,
    /// One sentence each, starting with the field.
    pub warnings: Vec<String>,
    /// Likely misconfigurations, as `lint` words them.
    pub findings: Vec<String>,
}

/// Why a request is not carried out.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ChangeError {
    /// The document or the request is invalid.
    #[error("{0}")]
    Invalid(Problem),
    /// The document does not exist.
    #[error("Key not found")]
    NotFound,
    /// The document is not in the state that the request requires.
    #[error("the precondition does not hold: {0}")]
    PreconditionFailed(&'static str),
    /// The change weakens client authentication, which `protect_client_auth` denies.
    #[error("this change weakens client authentication: {}", .0.join("; "))]
    Weakens(Vec<String>),
    /// The store failed, is unreachable, or another writer was faster.
    #[error("{0}")]
    Store(StoreError),
}

/// Why nothing was written.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{error}")]
pub struct RejectedChanges {
    /// The index of the request that fails; `None`: the commit of all of them failed.
    pub operation: Option<usize>,
    pub error: ChangeError,
}

impl RejectedChanges {
    /// Another writer was faster.
    pub fn is_conflict(&self) -> bool {
        matches!(self.error, ChangeError::Store(StoreError::Conflict { .. }))
    }
}

impl From<Problem> for ChangeError {
    fn from(problem: Problem) -> Self {
        Self::Invalid(problem)
    }
}

impl From<StoreError> for ChangeError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

#[cfg(test)]
mod tests;
