//! The documents as the watch of a store last saw them.
//!
//! Invariant: these are all documents of one revision, which may not be the newest. A plan that is
//! made on them is checked by its commit.

use imbl::OrdMap;
use model::{Key, Kind};

use super::{DocumentList, Event, StoredDocument};

/// All documents of one revision. A clone costs nothing.
#[derive(Clone, Debug, Default)]
pub struct RecentDocuments {
    revision: u64,
    items: OrdMap<Key, StoredDocument>,
}

impl RecentDocuments {
    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    pub(crate) fn get(&self, key: &Key) -> Option<&StoredDocument> {
        self.items.get(key)
    }

    /// The documents of one kind, or all.
    pub(crate) fn list(&self, kind: Option<Kind>) -> DocumentList {
        let selected = self.items.values().filter(|item| kind.is_none_or(|kind| item.key.kind == kind));
        DocumentList { revision: self.revision, items: selected.cloned().collect() }
    }

    /// Applies a change; ignores one of an older revision.
    pub(super) fn apply(&mut self, event: &Event) {
        if self.revision > event.revision {
            return;
        }
        self.revision = event.revision;
        match &event.document {
            Some(stored) => drop(self.items.insert(event.key.clone(), stored.clone())),
            None => drop(self.items.remove(&event.key)),
        }
    }
}

impl From<&DocumentList> for RecentDocuments {
    fn from(list: &DocumentList) -> Self {
        let items = list.items.iter().map(|item| (item.key.clone(), item.clone())).collect();
        Self { revision: list.revision, items }
    }
}
