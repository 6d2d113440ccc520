//! One commit: its mutations, and the conditions under which they are made.
//!
//! Invariant: a commit is all or nothing, has one revision, and makes no mutation unless each
//! precondition and condition holds for the documents as they are before it.

use std::collections::HashSet;
use std::num::NonZeroU32;

use model::{Key, Kind};
use serde_json::Value;

use super::StoreError;

/// The mutations of one commit. Each is of another document.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    pub mutations: Vec<Mutation>,
    pub conditions: Vec<Condition>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Mutation {
    Put {
        key: Key,
        /// The whole new document with its extension fields. Private keys are sealed.
        document: Value,
        precondition: Precondition,
        /// Seconds until the store removes the document. `None`: it stays, although an earlier
        /// mutation had a time to live.
        ttl: Option<NonZeroU32>,
    },
    /// Removes a document. Removing an absent document changes nothing, and is an error only if the
    /// precondition requires the document.
    Delete { key: Key, precondition: Precondition },
}

/// The condition under which a mutation is committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precondition {
    Unconditional,
    Absent,
    /// The document was last changed by this revision.
    ModRevision(u64),
}

/// What a commit requires of documents, which it need not write: what a check has read still holds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Condition {
    Exists(Key),
    /// The document exists and has no time to live.
    NeverExpires(Key),
    Absent(Key),
    /// The document exists, and no later revision changed it.
    Unchanged {
        key: Key,
        since: u64,
    },
    /// No later revision created or changed a document of this kind. A removal does not count,
    /// although one of a document that was created or changed since may.
    KindUnchanged {
        kind: Kind,
        since: u64,
    },
}

/// The result of a commit. The changes are durable when a caller receives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitResult {
    /// The store's revision after the commit; unchanged when it only removed absent documents.
    pub revision: u64,
    /// One per mutation, in order.
    pub mutations: Vec<MutationResult>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MutationResult {
    /// For a removal, the revision that had created the document; 0 if there was none.
    pub create_revision: u64,
    pub existed: bool,
}

impl Mutation {
    pub fn key(&self) -> &Key {
        match self {
            Self::Put { key, .. } | Self::Delete { key, .. } => key,
        }
    }

    pub fn precondition(&self) -> Precondition {
        match self {
            Self::Put { precondition, .. } | Self::Delete { precondition, .. } => *precondition,
        }
    }
}

impl From<Mutation> for Batch {
    fn from(mutation: Mutation) -> Self {
        Self { mutations: vec![mutation], conditions: Vec::new() }
    }
}

impl Batch {
    /// # Errors
    /// When two mutations have the same key: nothing says which of them is meant.
    pub(super) fn check_keys(&self) -> Result<(), StoreError> {
        let mut keys = HashSet::with_capacity(self.mutations.len());
        let twice = self.mutations.iter().map(Mutation::key).find(|key| !keys.insert(*key));
        twice.map_or(Ok(()), |key| {
            Err(StoreError::Rejected { what: format!("one commit writes {key} twice") })
        })
    }
}

impl Condition {
    /// `None`: all documents of a kind.
    pub(super) fn key(&self) -> Option<&Key> {
        match self {
            Self::Exists(key) | Self::NeverExpires(key) | Self::Absent(key) | Self::Unchanged { key, .. } => {
                Some(key)
            }
            Self::KindUnchanged { .. } => None,
        }
    }
}

impl CommitResult {
    /// The result of the first mutation: all of them, for a batch of one.
    pub fn first(&self) -> MutationResult {
        self.mutations.first().copied().unwrap_or_default()
    }
}
