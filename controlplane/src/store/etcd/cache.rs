//! A cache of the last known documents, for read requests while the cluster is unreachable.
//!
//! Each load and each watch event updates it. No write and no push depends on it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use imbl::OrdMap;
use model::{Key, Kind};

use crate::store::{DocumentList, Event, StoredDocument};

/// The documents by key, at one revision.
#[derive(Default)]
pub(super) struct DocumentCache(Mutex<CacheState>);

#[derive(Default)]
struct CacheState {
    documents: Option<CachedRevision>,
    /// The number of received events.
    events: u64,
}

#[derive(Clone)]
struct CachedRevision {
    revision: u64,
    items: OrdMap<Key, StoredDocument>,
}

impl DocumentCache {
    /// Read before a load, and passed to [`Self::replace`].
    pub(super) fn event_count(&self) -> u64 {
        self.lock().events
    }

    /// Replaces all documents after a load. Accepts an older revision, because a cluster may be
    /// restored from a backup, unless an event of a newer revision arrived during the load.
    pub(super) fn replace(&self, loaded: &DocumentList, events_before: u64) {
        let mut state = self.lock();
        let is_outdated = state.events != events_before
            && state.documents.as_ref().is_some_and(|documents| documents.revision > loaded.revision);
        if !is_outdated {
            let items = loaded.items.iter().map(|item| (item.key.clone(), item.clone())).collect();
            state.documents = Some(CachedRevision { revision: loaded.revision, items });
        }
    }

    /// The newest known revision; 0 before the first load.
    pub(super) fn revision(&self) -> u64 {
        self.lock().documents.as_ref().map_or(0, |documents| documents.revision)
    }

    /// Applies a change; ignores one that is older than the cache.
    pub(super) fn apply(&self, event: &Event) {
        let mut state = self.lock();
        state.events += 1;
        let Some(documents) =
            state.documents.as_mut().filter(|documents| documents.revision <= event.revision)
        else {
            return;
        };
        documents.revision = event.revision;
        match &event.document {
            Some(stored) => drop(documents.items.insert(event.key.clone(), stored.clone())),
            None => drop(documents.items.remove(&event.key)),
        }
    }

    /// The documents of one kind, or all; `None` before the first load.
    pub(super) fn documents(&self, kind: Option<Kind>) -> Option<DocumentList> {
        let documents = self.lock().documents.clone()?;
        let selected = documents.items.values().filter(|item| kind.is_none_or(|kind| item.key.kind == kind));
        Some(DocumentList { revision: documents.revision, items: selected.cloned().collect() })
    }

    fn lock(&self) -> MutexGuard<'_, CacheState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use model::Id;
    use serde_json::{Value, json};

    use super::*;

    fn stored(id: &str, modified: u64, document: Value) -> StoredDocument {
        StoredDocument {
            key: Key::new(Kind::Ssl, Id::parse(id).unwrap()),
            document,
            create_revision: modified,
            mod_revision: modified,
            stale_extensions: false,
            salvaged: None,
        }
    }

    fn event(revision: u64, id: &str, now: Option<StoredDocument>) -> Event {
        Event { revision, key: Key::new(Kind::Ssl, Id::parse(id).unwrap()), document: now }
    }

    #[test]
    fn loads_and_events_update_the_cache() {
        let memory = DocumentCache::default();
        assert!(memory.documents(None).is_none(), "nothing was read");
        let one = stored("1", 3, json!({"v": 1}));
        memory.replace(&DocumentList { revision: 5, items: vec![one.clone()] }, memory.event_count());
        let two = stored("2", 6, json!({"v": 2}));
        memory.apply(&event(6, "2", Some(two.clone())));
        memory.apply(&event(4, "1", None));
        let documents = memory.documents(Some(Kind::Ssl)).unwrap();
        assert_eq!(
            (documents.revision, documents.items),
            (6, vec![one, two]),
            "what is older changes nothing"
        );
        assert!(memory.documents(Some(Kind::Route)).unwrap().items.is_empty());
        memory.apply(&event(7, "1", None));
        assert_eq!(memory.documents(None).unwrap().items.len(), 1);
    }

    #[test]
    fn an_outdated_load_is_ignored_and_a_restored_cluster_accepted() {
        let memory = DocumentCache::default();
        memory.replace(&DocumentList { revision: 5, items: Vec::new() }, memory.event_count());
        let events_before = memory.event_count();
        memory.apply(&event(6, "1", Some(stored("1", 6, json!({})))));
        memory.replace(&DocumentList { revision: 5, items: Vec::new() }, events_before);
        assert_eq!(memory.documents(None).unwrap().revision, 6);
        memory.replace(&DocumentList { revision: 2, items: Vec::new() }, memory.event_count());
        assert_eq!(memory.documents(None).unwrap().revision, 2);
    }
}
