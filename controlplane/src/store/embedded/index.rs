//! The index of documents by kind, in the order of their creation.
//!
//! It finds a page of a list without reading the kind. It lives in memory: built when the file is
//! opened, which reads all of it anyway, and updated by the writer before a commit is acknowledged.

use std::collections::BTreeMap;

use imbl::OrdSet;
use model::{Id, Key, Kind};
use redb::{Database, ReadableDatabase};

use super::file::{self, ITEMS, StoreReadError};

/// The documents of one kind by create revision and id. Clones share structure.
pub(super) type ByCreation = OrdSet<(u64, Id)>;

#[derive(Default)]
pub(super) struct Index {
    revision: u64,
    kinds: BTreeMap<Kind, ByCreation>,
    /// The newest revision that created or changed a document of the kind, which may be removed
    /// since.
    last_puts: BTreeMap<Kind, u64>,
}

/// The effect of one mutation on the index.
pub(super) struct IndexChange {
    pub(super) key: Key,
    pub(super) create_revision: u64,
    /// The revision of the mutation.
    pub(super) revision: u64,
    /// The document exists after the mutation.
    pub(super) exists: bool,
}

impl Index {
    /// Builds the index from the file.
    pub(super) fn read(database: &Database) -> Result<Self, StoreReadError> {
        let transaction = database.begin_read()?;
        let revision = file::revision(&transaction)?;
        let mut index = Self { revision, ..Self::default() };
        for row in transaction.open_table(ITEMS)?.range::<&str>(..)? {
            let (name, row) = row?;
            let key = file::parse_key(name.value())?;
            let (create_revision, revision, _) = row.value();
            index.apply_one(IndexChange { key, create_revision, revision, exists: true });
        }
        Ok(index)
    }

    /// Applies a commit that moved the store to `revision`.
    pub(super) fn apply(&mut self, changes: Vec<IndexChange>, revision: u64) {
        changes.into_iter().for_each(|change| self.apply_one(change));
        self.revision = revision;
    }

    fn apply_one(&mut self, change: IndexChange) {
        let IndexChange { key, create_revision: created, revision, exists: stays } = change;
        let kind = self.kinds.entry(key.kind).or_default();
        if stays {
            let last = self.last_puts.entry(key.kind).or_default();
            *last = revision.max(*last);
            kind.insert((created, key.id));
        } else {
            kind.remove(&(created, key.id));
        }
    }

    /// The newest revision that created or changed a document of the kind; 0 if none did.
    pub(super) fn last_put(&self, kind: Kind) -> u64 {
        self.last_puts.get(&kind).copied().unwrap_or_default()
    }

    /// The documents of one kind, and the revision of the index.
    pub(super) fn documents_of(&self, kind: Kind) -> (u64, ByCreation) {
        (self.revision, self.kinds.get(&kind).cloned().unwrap_or_default())
    }
}
