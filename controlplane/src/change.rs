//! The change pipeline: draft -> check -> commit.
//!
//! `admin` passes in a request; `draft` builds the whole document, `check` validates it exactly as
//! a data plane does, and `commit` is the only code that writes the configuration to the store.
//! Invariant: nothing is stored that `check` has not accepted, and no private key is stored in
//! clear unless the operator has switched the keyring off.

pub(crate) mod check;
pub(crate) mod commit;
pub(crate) mod draft;
pub(crate) mod extension_fields;
pub(crate) mod private_keys;

use std::num::NonZeroU32;

pub use commit::ChangePipeline;
use model::{Key, Problem};
use rustls_pki_types::UnixTime;
use serde_json::Value;

use crate::store::StoreError;

/// The time of a write and its time to live.
#[derive(Clone, Copy, Debug)]
pub struct WriteOptions {
    /// The `update_time` of the document.
    pub now: UnixTime,
    /// Seconds until the store removes the document.
    pub ttl: Option<NonZeroU32>,
}

/// A committed, durable change.
#[derive(Clone, Debug, PartialEq)]
pub struct CommittedChange {
    pub key: Key,
    /// The document as stored; `Null` after a removal.
    pub document: Value,
    /// The store's revision after the commit.
    pub revision: u64,
    /// Whether the document existed before.
    pub existed: bool,
    /// What the caller may not expect.
    pub notes: ChangeNotes,
}

/// Effects of a change that its caller did not name: kept fields, weakened protection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChangeNotes {
    /// Extension fields that the request does not mention and the document keeps, such as
    /// `client.crl`.
    pub kept: Vec<String>,
    /// One sentence each, starting with the field.
    pub warnings: Vec<String>,
}

/// Why nothing was written.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ChangeError {
    /// The document or the request is invalid.
    #[error("{0}")]
    Invalid(Problem),
    /// The document does not exist.
    #[error("Key not found")]
    NotFound,
    /// The store failed, is unreachable, or another writer was faster.
    #[error("{0}")]
    Store(StoreError),
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
