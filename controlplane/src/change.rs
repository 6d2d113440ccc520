//! The change pipeline: draft -> check -> commit.
//!
//! `admin` hands in what a request says; `draft` makes the whole document it means, `check` judges
//! it exactly as a data plane would, and `commit` is the one door through which anything reaches
//! the store. Invariant: nothing is stored that `check` has not seen, and no private key is stored
//! in clear unless the operator has switched the keyring off.

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

/// When a change is made, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct WriteOptions {
    /// The time that is stamped on the document.
    pub now: UnixTime,
    /// Seconds until the store removes it by itself.
    pub ttl: Option<NonZeroU32>,
}

/// A change that was made; it survives a crash.
#[derive(Clone, Debug, PartialEq)]
pub struct CommittedChange {
    /// What was changed.
    pub key: Key,
    /// The document as it is stored now; `Null` after a removal.
    pub document: Value,
    /// The store's revision after it.
    pub revision: u64,
    /// Whether the document existed before.
    pub existed: bool,
    /// What the caller may not expect.
    pub notes: ChangeNotes,
}

/// What a change did that its caller did not ask for by name, or that takes protection away.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChangeNotes {
    /// Extension fields that the request does not mention and the document keeps, as `client.crl`.
    pub kept: Vec<String>,
    /// One sentence each, starting with the field.
    pub warnings: Vec<String>,
}

/// Why a change was not made. Nothing was written.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ChangeError {
    /// The document or the request is not acceptable.
    #[error("{0}")]
    Invalid(Problem),
    /// There is no document of that name.
    #[error("Key not found")]
    NotFound,
    /// The store refused, cannot be reached, or somebody else was faster.
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
