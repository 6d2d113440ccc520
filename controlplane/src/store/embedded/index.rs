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
}

/// The effect of one mutation on the index.
pub(super) struct IndexChange {
    pub(super) key: Key,
    pub(super) create_revision: u64,
    /// The document exists after the mutation.
    pub(super) exists: bool,
}

impl Index {
    /// Builds the index from the file.
    pub(super) fn read(database: &Database) -> Result<Self, StoreReadError> {
        let transaction = database.begin_read()?;
        let revision = file::revision(&transaction)?;
        let mut index = Self { revision, kinds: BTreeMap::new() };
        for row in transaction.open_table(ITEMS)?.range::<&str>(..)? {
            let (name, row) = row?;
            let key = file::parse_key(name.value())?;
            index.apply_one(IndexChange { key, create_revision: row.value().0, exists: true });
        }
        Ok(index)
    }

    /// Applies a commit that moved the store to `revision`.
    pub(super) fn apply(&mut self, changes: Vec<IndexChange>, revision: u64) {
        changes.into_iter().for_each(|change| self.apply_one(change));
        self.revision = revision;
    }

    fn apply_one(&mut self, change: IndexChange) {
        let IndexChange { key, create_revision: created, exists: stays } = change;
        let kind = self.kinds.entry(key.kind).or_default();
        if stays {
            kind.insert((created, key.id));
        } else {
            kind.remove(&(created, key.id));
        }
    }

    /// The documents of one kind, and the revision of the index.
    pub(super) fn documents_of(&self, kind: Kind) -> (u64, ByCreation) {
        (self.revision, self.kinds.get(&kind).cloned().unwrap_or_default())
    }
}
