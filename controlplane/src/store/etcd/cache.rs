//! A cache of the last known documents: for read requests while the cluster is unreachable, and for
//! the first plan of a write, which its commit checks.
//!
//! Each load and each watch event updates it. No push depends on it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use model::Kind;

use crate::store::{DocumentList, Event, RecentDocuments};

/// The documents by key, at one revision.
#[derive(Default)]
pub(super) struct DocumentCache(Mutex<CacheState>);

#[derive(Default)]
struct CacheState {
    documents: Option<RecentDocuments>,
    /// The epoch of the connection over which all documents were loaded.
    epoch: Option<u64>,
    /// The number of events and loads that were received.
    changes: u64,
}

/// The state before a load, for [`DocumentCache::replace`].
pub(super) struct LoadStart {
    epoch: Option<u64>,
    changes: u64,
    /// The newest known revision; 0 before the first load.
    pub(super) revision: u64,
}

impl DocumentCache {
    /// Before a load over the connection of this epoch.
    pub(super) fn start_load(&self, epoch: Option<u64>) -> LoadStart {
        let state = self.lock();
        let revision = state.documents.as_ref().map_or(0, RecentDocuments::revision);
        LoadStart { epoch, changes: state.changes, revision }
    }

    /// Replaces all documents after a load. Accepts an older revision, because a cluster may be
    /// restored from a backup, unless an event or another load brought a newer one meanwhile.
    pub(super) fn replace(&self, loaded: &DocumentList, start: &LoadStart) {
        let mut state = self.lock();
        let is_outdated = state.changes != start.changes
            && state.documents.as_ref().is_some_and(|documents| documents.revision() > loaded.revision);
        if !is_outdated {
            state.documents = Some(loaded.into());
            state.epoch = start.epoch;
            state.changes += 1;
        }
    }

    /// Applies whole revisions; ignores changes that are older than the cache.
    pub(super) fn apply(&self, events: &[Event]) {
        let mut state = self.lock();
        state.changes += 1;
        if let Some(documents) = &mut state.documents {
            events.iter().for_each(|event| documents.apply(event));
        }
    }

    /// No watch follows the store until the next load: a reconnect may have led to another cluster.
    pub(super) fn watch_failed(&self) {
        self.lock().epoch = None;
    }

    /// All documents, if they were loaded in this epoch: the same revision may have other documents
    /// in another one.
    pub(super) fn of_epoch(&self, epoch: u64) -> Option<RecentDocuments> {
        let state = self.lock();
        state.documents.clone().filter(|_| state.epoch == Some(epoch))
    }

    /// The documents of one kind, or all; `None` before the first load.
    pub(super) fn documents(&self, kind: Option<Kind>) -> Option<DocumentList> {
        let documents = self.lock().documents.clone();
        documents.map(|documents| documents.list(kind))
    }

    fn lock(&self) -> MutexGuard<'_, CacheState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use model::{Id, Key};
    use serde_json::{Value, json};

    use super::*;
    use crate::store::StoredDocument;

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
        memory.replace(&DocumentList { revision: 5, items: vec![one.clone()] }, &memory.start_load(Some(1)));
        let two = stored("2", 6, json!({"v": 2}));
        memory.apply(&[event(6, "2", Some(two.clone()))]);
        memory.apply(&[event(4, "1", None)]);
        let documents = memory.documents(Some(Kind::Ssl)).unwrap();
        assert_eq!(
            (documents.revision, documents.items),
            (6, vec![one, two]),
            "what is older changes nothing"
        );
        assert!(memory.documents(Some(Kind::Route)).unwrap().items.is_empty());
        memory.apply(&[event(7, "1", None)]);
        assert_eq!(memory.documents(None).unwrap().items.len(), 1);
    }

    #[test]
    fn an_outdated_load_is_ignored_and_a_restored_cluster_accepted() {
        let memory = DocumentCache::default();
        memory.replace(&DocumentList { revision: 5, items: Vec::new() }, &memory.start_load(Some(1)));
        let start = memory.start_load(Some(1));
        memory.apply(&[event(6, "1", Some(stored("1", 6, json!({}))))]);
        memory.replace(&DocumentList { revision: 5, items: Vec::new() }, &start);
        assert_eq!(memory.documents(None).unwrap().revision, 6);
        memory.replace(&DocumentList { revision: 2, items: Vec::new() }, &memory.start_load(Some(1)));
        assert_eq!(memory.documents(None).unwrap().revision, 2);
    }

    /// A watch goes on after the newest load: nothing would bring the difference again.
    #[test]
    fn a_slow_load_does_not_undo_a_newer_one() {
        let memory = DocumentCache::default();
        memory.replace(&DocumentList { revision: 5, items: Vec::new() }, &memory.start_load(Some(1)));
        let slow = memory.start_load(Some(1));
        let newer = vec![stored("1", 6, json!({}))];
        memory.replace(&DocumentList { revision: 6, items: newer }, &memory.start_load(Some(1)));
        memory.replace(&DocumentList { revision: 5, items: Vec::new() }, &slow);
        assert_eq!(memory.of_epoch(1).unwrap().list(None).items.len(), 1);
    }

    #[test]
    fn documents_of_another_epoch_are_not_recent() {
        let memory = DocumentCache::default();
        memory.replace(&DocumentList { revision: 5, items: Vec::new() }, &memory.start_load(Some(1)));
        assert_eq!(memory.of_epoch(1).unwrap().revision(), 5);
        assert!(memory.of_epoch(2).is_none(), "the cluster may be another one");
        // The connection was lost before the load began.
        memory.replace(&DocumentList { revision: 5, items: Vec::new() }, &memory.start_load(None));
        assert!(memory.of_epoch(1).is_none());
        memory.replace(&DocumentList { revision: 5, items: Vec::new() }, &memory.start_load(Some(2)));
        memory.watch_failed();
        assert!(memory.of_epoch(2).is_none(), "nothing follows the store");
    }
}
