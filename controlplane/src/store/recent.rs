//! The documents as the watch of a store last saw them.
//!
//! Invariant: these are all documents of one revision, which may not be the newest. A plan that is
//! made on them is checked by its commit.

use std::collections::BTreeMap;
use std::sync::Arc;

use imbl::OrdMap;
use model::{Key, Kind};

use super::{DocumentList, Event, StoredDocument};

/// All documents of one revision. A clone costs nothing.
#[derive(Clone, Debug, Default)]
pub struct RecentDocuments {
    revision: u64,
    items: BTreeMap<Kind, OrdMap<Key, Arc<StoredDocument>>>,
}

impl RecentDocuments {
    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    pub(crate) fn get(&self, key: &Key) -> Option<&StoredDocument> {
        self.items.get(&key.kind)?.get(key).map(|item| &**item)
    }

    /// The documents of one kind, in the order of their keys.
    pub(crate) fn of_kind(&self, kind: Kind) -> impl Iterator<Item = &Arc<StoredDocument>> {
        self.items.get(&kind).into_iter().flat_map(OrdMap::values)
    }

    /// The documents of one kind, or all.
    pub(crate) fn list(&self, kind: Option<Kind>) -> DocumentList {
        let kinds = Kind::ALL.into_iter().filter(|own| kind.is_none_or(|kind| kind == *own));
        let items = kinds.flat_map(|kind| self.of_kind(kind)).map(|item| (**item).clone());
        DocumentList { revision: self.revision, items: items.collect() }
    }

    /// Applies a change; ignores one of an older revision.
    pub(super) fn apply(&mut self, event: &Event) {
        if self.revision > event.revision {
            return;
        }
        self.revision = event.revision;
        match &event.document {
            Some(stored) => self.insert(stored),
            None => {
                if let Some(items) = self.items.get_mut(&event.key.kind) {
                    items.remove(&event.key);
                }
            }
        }
    }

    fn insert(&mut self, stored: &StoredDocument) {
        let items = self.items.entry(stored.key.kind).or_default();
        items.insert(stored.key.clone(), Arc::new(stored.clone()));
    }
}

impl From<&DocumentList> for RecentDocuments {
    fn from(list: &DocumentList) -> Self {
        let mut documents = Self { revision: list.revision, items: BTreeMap::new() };
        list.items.iter().for_each(|item| documents.insert(item));
        documents
    }
}
