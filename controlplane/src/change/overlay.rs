//! The store as pending changes will leave it, and what was read of it.
//!
//! A check of one document looks at others: the upstream that a route refers to, the routes that
//! refer to an upstream. It must see the changes of its own batch, and what it saw in the store
//! must still hold at the commit. Invariant: every read on which a check depends is a condition of
//! the commit, so that another writer who changes it in between makes the commit fail.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use model::{Id, Key, Kind};
use serde_json::Value;

use crate::store::{Condition, RecentDocuments, Store, StoreError, StoredDocument};

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
    async fn list(&self, kind: Kind) -> Result<KindDocuments, StoreError> {
        Ok(match self {
            Self::Store(store) => {
                let list = store.list(kind).await?;
                KindDocuments {
                    revision: list.revision,
                    items: list.items.into_iter().map(Arc::new).collect(),
                }
            }
            Self::Recent(documents) => {
                let items = documents.of_kind(kind).cloned().collect();
                KindDocuments { revision: documents.revision(), items }
            }
        })
    }
}

/// All stored documents of a kind, at one revision.
struct KindDocuments {
    revision: u64,
    items: Vec<Arc<StoredDocument>>,
}

/// The store with pending changes on top.
pub(crate) struct StoreOverlay<'a> {
    source: &'a DocumentSource<'a>,
    /// Documents that will be written; `None`: removed.
    pending: HashMap<Key, Option<Value>>,
    /// Whole kinds, once they were read.
    lists: HashMap<Kind, KindDocuments>,
    /// The first document of a kind that names each id in a field.
    users: HashMap<(Kind, &'static str), HashMap<Id, Key>>,
    conditions: Vec<Condition>,
    /// Those of `conditions`.
    required: HashSet<Condition>,
}

/// What a check depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dependence {
    Existence,
    Content,
}

impl<'a> StoreOverlay<'a> {
    pub(crate) fn new(source: &'a DocumentSource<'a>, pending: HashMap<Key, Option<Value>>) -> Self {
        let (lists, users, conditions, required) = Default::default();
        Self { source, pending, lists, users, conditions, required }
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
        self.require_unchanged(kind).await?;
        self.unchanged(kind).await
    }

    async fn require_unchanged(&mut self, kind: Kind) -> Result<(), StoreError> {
        let since = self.list(kind).await?.revision;
        self.depend_on(Condition::KindUnchanged { kind, since });
        Ok(())
    }

    fn depend_on(&mut self, condition: Condition) {
        if self.required.insert(condition.clone()) {
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
        self.list(kind).await?;
        let selected = self.documents(kind).find(|(key, document)| found(key, document));
        match selected.map(|(key, _)| key.clone()) {
            None => self.require_unchanged(kind).await.map(|()| None),
            selected => Ok(selected),
        }
    }

    /// The first document of a kind that names the id in `field`; the commit requires that no other
    /// writer has added or changed one meanwhile. All ids are read at once.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub(crate) async fn require_unused(
        &mut self,
        kind: Kind,
        field: &'static str,
        id: &Id,
    ) -> Result<Option<Key>, StoreError> {
        self.list(kind).await?;
        if !self.users.contains_key(&(kind, field)) {
            let mut users = HashMap::new();
            for (key, document) in self.documents(kind) {
                if let Some(id) = named_id(document, field) {
                    users.entry(id).or_insert_with(|| key.clone());
                }
            }
            self.users.insert((kind, field), users);
        }
        match self.users.get(&(kind, field)).and_then(|users| users.get(id)).cloned() {
            None => self.require_unchanged(kind).await.map(|()| None),
            user => Ok(user),
        }
    }

    /// All documents of a kind as they will be, in the order of their keys; the commit requires
    /// that no other writer has added, changed or removed one meanwhile.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub(crate) async fn require_all(&mut self, kind: Kind) -> Result<Vec<(&Key, &Value)>, StoreError> {
        self.require_unchanged(kind).await?;
        let mut all: Vec<_> = self.documents(kind).collect();
        all.sort_by_key(|(key, _)| &key.id);
        Ok(all)
    }

    /// The first document of a kind, as it will be, that `fits`. The commit depends on nothing.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub(crate) async fn find(
        &mut self,
        kind: Kind,
        fits: impl Fn(&Value) -> bool,
    ) -> Result<Option<Key>, StoreError> {
        self.list(kind).await?;
        let fitting = self.documents(kind).filter(|(_, document)| fits(document)).map(|(key, _)| key);
        Ok(fitting.min_by_key(|key| &key.id).cloned())
    }

    /// The documents of a kind that was read, as they will be: unchanged ones first.
    fn documents(&self, kind: Kind) -> impl Iterator<Item = (&Key, &Value)> {
        let unchanged = self.stored(kind).map(|item| (&item.key, &item.document));
        let pending = self.pending.iter().filter(move |(key, _)| key.kind == kind);
        unchanged.chain(pending.filter_map(|(key, document)| Some((key, document.as_ref()?))))
    }

    fn stored(&self, kind: Kind) -> impl Iterator<Item = &StoredDocument> {
        let items = self.lists.get(&kind).into_iter().flat_map(|list| &list.items);
        items.map(|item| &**item).filter(|item| !self.pending.contains_key(&item.key))
    }

    /// The stored documents of a kind that no pending change replaces.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub(crate) async fn unchanged(&mut self, kind: Kind) -> Result<Vec<&StoredDocument>, StoreError> {
        self.list(kind).await?;
        Ok(self.stored(kind).collect())
    }

    async fn list(&mut self, kind: Kind) -> Result<&KindDocuments, StoreError> {
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

/// The id that a field names, which may be written as a number.
pub(super) fn named_id(document: &Value, field: &str) -> Option<Id> {
    match document.get(field)? {
        Value::String(text) => Id::parse(text).ok(),
        Value::Number(number) => Id::parse(&number.to_string()).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::store::DocumentList;

    fn route(id: &str) -> Key {
        Key::new(Kind::Route, Id::parse(id).unwrap())
    }

    /// Of one plan all ids are looked up in one index, which knows what the plan writes.
    #[tokio::test]
    async fn the_first_user_of_an_id_is_found() {
        let stored = |id: &str, document: Value| StoredDocument {
            key: route(id),
            document,
            create_revision: 1,
            mod_revision: 1,
            stale_extensions: false,
            salvaged: None,
        };
        let items = vec![
            stored("1", json!({"upstream_id": "7"})),
            stored("2", json!({"upstream_id": 8})),
            stored("3", json!({"upstream_id": 7})),
            stored("5", json!("not an object")),
        ];
        let source = DocumentSource::Recent((&DocumentList { revision: 4, items }).into());
        let pending = [(route("1"), None), (route("4"), Some(json!({"upstream_id": "9"})))];
        let mut overlay = StoreOverlay::new(&source, pending.into());
        for (id, user) in [("7", Some("3")), ("8", Some("2")), ("9", Some("4")), ("1", None), ("2", None)] {
            let id = Id::parse(id).unwrap();
            let found = overlay.require_unused(Kind::Route, "upstream_id", &id).await.unwrap();
            assert_eq!(found, user.map(route), "{id:?}");
        }
        // Two ids without a user are one condition.
        let unchanged = Condition::KindUnchanged { kind: Kind::Route, since: 4 };
        assert_eq!(overlay.into_conditions(), [unchanged]);
    }
}
