//! The store as pending changes will leave it, and what was read of it.
//!
//! A check of one document looks at others: the upstream that a route refers to, the routes that
//! refer to an upstream. It must see the changes of its own batch, and what it saw in the store
//! must still hold at the commit. Invariant: every read on which a check depends is a condition of
//! the commit, so that another writer who changes it in between makes the commit fail.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use model::{Key, Kind};
use serde_json::Value;

use crate::store::{Condition, DocumentList, RecentDocuments, Store, StoreError, StoredDocument};

/// Where a plan reads documents.
pub(crate) enum DocumentSource<'a> {
    Store(&'a dyn Store),
    /// No call to the store. What is missing or outdated here fails the commit.
    Recent(RecentDocuments),
}

impl DocumentSource<'_> {
    pub(crate) fn is_recent(&self) -> bool {
        matches!(self, Self::Recent(_))
    }

    /// # Errors
    /// When the store cannot be read.
    pub(crate) async fn get(&self, key: &Key) -> Result<Option<StoredDocument>, StoreError> {
        match self {
            Self::Store(store) => store.get(key).await,
            Self::Recent(documents) => Ok(documents.get(key).cloned()),
        }
    }

    /// # Errors
    /// When the store cannot be read.
    async fn list(&self, kind: Kind) -> Result<DocumentList, StoreError> {
        match self {
            Self::Store(store) => store.list(kind).await,
            Self::Recent(documents) => Ok(documents.list(Some(kind))),
        }
    }
}

/// The store with pending changes on top.
pub(crate) struct StoreOverlay<'a> {
    source: &'a DocumentSource<'a>,
    /// Documents that will be written; `None`: removed.
    pending: HashMap<Key, Option<Value>>,
    /// Whole kinds, once they were read.
    lists: HashMap<Kind, DocumentList>,
    conditions: Vec<Condition>,
}

/// What a check depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dependence {
    Existence,
    Content,
}

impl<'a> StoreOverlay<'a> {
    pub(crate) fn new(source: &'a DocumentSource<'a>, pending: HashMap<Key, Option<Value>>) -> Self {
        Self { source, pending, lists: HashMap::new(), conditions: Vec::new() }
    }

    /// A document that a pending one refers to; the commit requires what the check depends on.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub(crate) async fn require(
        &mut self,
        key: &Key,
        dependence: Dependence,
    ) -> Result<Option<Value>, StoreError> {
        if let Some(pending) = self.pending.get(key) {
            return Ok(pending.clone());
        }
        let found = self.source.get(key).await?;
        if let Some(found) = &found {
            self.depend_on(match dependence {
                Dependence::Existence => Condition::Exists(key.clone()),
                Dependence::Content => Condition::Unchanged { key: key.clone(), since: found.mod_revision },
            });
        }
        Ok(found.map(|found| found.document))
    }

    /// A stored document that no pending change replaces; the commit requires that it is unchanged,
    /// or still absent.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub(crate) async fn require_stored(&mut self, key: &Key) -> Result<Option<StoredDocument>, StoreError> {
        let found = self.source.get(key).await?;
        self.depend_on(match &found {
            Some(found) => Condition::Unchanged { key: key.clone(), since: found.mod_revision },
            None => Condition::Absent(key.clone()),
        });
        Ok(found)
    }

    /// The commit requires that the document exists and stays.
    pub(crate) fn require_lasting(&mut self, key: Key) {
        self.depend_on(Condition::NeverExpires(key));
    }

    /// The stored documents of a kind that no pending change replaces; the commit requires that no
    /// other writer has added or changed one meanwhile.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub(crate) async fn require_kind(&mut self, kind: Kind) -> Result<Vec<&StoredDocument>, StoreError> {
        let since = self.list(kind).await?.revision;
        self.depend_on(Condition::KindUnchanged { kind, since });
        self.unchanged(kind).await
    }

    fn depend_on(&mut self, condition: Condition) {
        if !self.conditions.contains(&condition) {
            self.conditions.push(condition);
        }
    }

    /// A document as it will be. The commit does not depend on it.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub(crate) async fn get(&self, key: &Key) -> Result<Option<Value>, StoreError> {
        match self.pending.get(key) {
            Some(pending) => Ok(pending.clone()),
            None => Ok(self.source.get(key).await?.map(|found| found.document)),
        }
    }

    /// The first document of a kind that `found` selects; the commit requires that no other writer
    /// has added or changed one meanwhile.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub(crate) async fn require_none(
        &mut self,
        kind: Kind,
        found: impl Fn(&Key, &Value) -> bool,
    ) -> Result<Option<Key>, StoreError> {
        let revision = self.list(kind).await?.revision;
        let unchanged = self.unchanged(kind).await?.into_iter().map(|item| (&item.key, &item.document));
        let selected =
            unchanged.into_iter().find(|(key, document)| found(key, document)).map(|(key, _)| key.clone());
        let pending = self.pending.iter().filter(|(key, _)| key.kind == kind);
        let mut pending = pending.filter_map(|(key, document)| Some((key, document.as_ref()?)));
        let selected = selected
            .or_else(|| pending.find(|(key, document)| found(key, document)).map(|(key, _)| key.clone()));
        if selected.is_none() {
            self.depend_on(Condition::KindUnchanged { kind, since: revision });
        }
        Ok(selected)
    }

    /// All documents of a kind as they will be, in the order of their keys; the commit requires
    /// that no other writer has added, changed or removed one meanwhile.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub(crate) async fn require_all(&mut self, kind: Kind) -> Result<Vec<(&Key, &Value)>, StoreError> {
        let since = self.list(kind).await?.revision;
        let condition = Condition::KindUnchanged { kind, since };
        if !self.conditions.contains(&condition) {
            self.conditions.push(condition);
        }
        let stored = self.lists.get(&kind).into_iter().flat_map(|list| &list.items);
        let stored = stored.filter(|item| !self.pending.contains_key(&item.key));
        let pending = self.pending.iter().filter(|(key, _)| key.kind == kind);
        let mut all: Vec<_> = stored
            .map(|item| (&item.key, &item.document))
            .chain(pending.filter_map(|(key, document)| Some((key, document.as_ref()?))))
            .collect();
        all.sort_by_key(|(key, _)| &key.id);
        Ok(all)
    }

    /// The stored documents of a kind that no pending change replaces.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub(crate) async fn unchanged(&mut self, kind: Kind) -> Result<Vec<&StoredDocument>, StoreError> {
        self.list(kind).await?;
        let stored = self.lists.get(&kind).into_iter().flat_map(|list| &list.items);
        Ok(stored.filter(|item| !self.pending.contains_key(&item.key)).collect())
    }

    async fn list(&mut self, kind: Kind) -> Result<&DocumentList, StoreError> {
        match self.lists.entry(kind) {
            Entry::Occupied(read) => Ok(read.into_mut()),
            Entry::Vacant(slot) => Ok(slot.insert(self.source.list(kind).await?)),
        }
    }

    /// What the commit must require of documents that it does not write.
    pub(crate) fn into_conditions(self) -> Vec<Condition> {
        self.conditions
    }
}
