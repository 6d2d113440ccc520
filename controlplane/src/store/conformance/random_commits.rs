//! Random commits, on a store and on a map that has the expected state.
//!
//! After each commit the store has the documents, revisions and result of the map, or the conflict
//! that the map has.

use std::collections::BTreeMap;

use model::{Key, Kind};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::key;
use crate::store::{
    Batch, Condition, Mutation, MutationResult, Precondition, Store, StoreError, StoredDocument,
};

/// One random commit. Numbers select documents.
#[derive(Clone, Debug)]
pub(in crate::store) struct CommitPlan {
    writes: Vec<(usize, Expectation, Option<u16>)>,
    conditions: Vec<(usize, Expectation)>,
}

/// What a writer believes of a document.
#[derive(Clone, Copy, Debug)]
enum Expectation {
    Any,
    Absent,
    /// Its present revision; that it is absent where it is.
    Current,
    Stale,
}

const DOCUMENTS: [(Kind, &str); 6] = [
    (Kind::Route, "a"),
    (Kind::Route, "b"),
    (Kind::Upstream, "a"),
    (Kind::Upstream, "b"),
    (Kind::Ssl, "a"),
    (Kind::Service, "a"),
];

/// Histories of up to `commits` commits.
pub(in crate::store) fn commit_plans(commits: usize) -> impl Strategy<Value = Vec<CommitPlan>> {
    let expectation = prop_oneof![
        3 => Just(Expectation::Any),
        1 => Just(Expectation::Absent),
        4 => Just(Expectation::Current),
        1 => Just(Expectation::Stale),
    ];
    let document = 0..DOCUMENTS.len();
    let value = prop_oneof![1 => Just(None), 3 => any::<u16>().prop_map(Some)];
    let write = (document.clone(), expectation.clone(), value);
    let writes = prop::collection::vec(write, 0..5);
    let conditions = prop::collection::vec((document, expectation), 0..3);
    let plan = (writes, conditions).prop_map(|(writes, conditions)| CommitPlan { writes, conditions });
    prop::collection::vec(plan, 1..commits)
}

/// The expected state of a store.
#[derive(Default)]
pub(in crate::store) struct ExpectedStore {
    documents: BTreeMap<Key, StoredDocument>,
    revision: u64,
}

impl ExpectedStore {
    /// An empty store at a revision.
    pub(in crate::store) fn starting_at(revision: u64) -> Self {
        Self { revision, documents: BTreeMap::new() }
    }

    /// Makes the commit on both, and compares the results.
    pub(in crate::store) async fn commit(&mut self, store: &dyn Store, plan: &CommitPlan) {
        let batch = self.batch(plan);
        let committed = store.commit(batch.clone()).await;
        if let Err(key) = self.check(&batch) {
            assert_eq!(committed, Err(StoreError::Conflict { key }), "{batch:?}");
            return;
        }
        let committed = committed.unwrap_or_else(|error| panic!("{error}: {batch:?}"));
        let results: Vec<_> =
            batch.mutations.iter().map(|mutation| self.apply(mutation, committed.revision)).collect();
        assert_eq!(committed.mutations, results, "{batch:?}");
        let is_change = |(mutation, result): (&Mutation, &MutationResult)| {
            result.existed || matches!(mutation, Mutation::Put { .. })
        };
        if batch.mutations.iter().zip(&results).any(is_change) {
            assert!(committed.revision > self.revision, "{batch:?}");
        } else {
            assert_eq!(committed.revision, self.revision, "{batch:?}");
        }
        self.revision = committed.revision;
    }

    pub(in crate::store) async fn compare(&self, store: &dyn Store) {
        let mut expected: Vec<_> = self.documents.values().cloned().collect();
        expected.sort_by_key(|item| item.key.to_string());
        let loaded = store.load().await.unwrap();
        assert_eq!((loaded.items, loaded.revision), (expected, self.revision));
    }

    fn batch(&self, plan: &CommitPlan) -> Batch {
        let mut mutations = BTreeMap::new();
        for (document, expectation, value) in &plan.writes {
            let key = key_of(*document);
            let precondition = self.precondition(&key, *expectation);
            let mutation = match value {
                Some(value) => {
                    Mutation::Put { key: key.clone(), document: document_of(*value), precondition, ttl: None }
                }
                None => Mutation::Delete { key: key.clone(), precondition },
            };
            mutations.insert(key, mutation);
        }
        let conditions = plan.conditions.iter();
        let conditions =
            conditions.map(|(document, expectation)| self.condition(key_of(*document), *expectation));
        Batch { mutations: mutations.into_values().collect(), conditions: conditions.collect() }
    }

    fn precondition(&self, key: &Key, expectation: Expectation) -> Precondition {
        match (expectation, self.documents.get(key)) {
            (Expectation::Any, _) => Precondition::Unconditional,
            (Expectation::Absent, _) | (Expectation::Current, None) => Precondition::Absent,
            (Expectation::Current, Some(stored)) => Precondition::ModRevision(stored.mod_revision),
            (Expectation::Stale, stored) => {
                Precondition::ModRevision(stored.map_or(1, |stored| stored.mod_revision - 1))
            }
        }
    }

    fn condition(&self, key: Key, expectation: Expectation) -> Condition {
        match (expectation, self.documents.get(&key)) {
            (Expectation::Any, None) => Condition::Exists(key),
            (Expectation::Any, Some(_)) => Condition::NeverExpires(key),
            (Expectation::Absent, _) => Condition::Absent(key),
            (Expectation::Current, Some(stored)) => Condition::Unchanged { since: stored.mod_revision, key },
            (Expectation::Current, None) => Condition::KindUnchanged { kind: key.kind, since: self.revision },
            (Expectation::Stale, Some(stored)) if stored.mod_revision % 2 == 0 => {
                Condition::KindUnchanged { kind: key.kind, since: stored.mod_revision - 1 }
            }
            (Expectation::Stale, stored) => {
                let since = stored.map_or(self.revision, |stored| stored.mod_revision - 1);
                Condition::Unchanged { key, since }
            }
        }
    }

    /// The error has the key of the conflict.
    fn check(&self, batch: &Batch) -> Result<(), Option<Key>> {
        for mutation in &batch.mutations {
            let key = mutation.key();
            let holds = match (mutation.precondition(), self.documents.get(key)) {
                (Precondition::Unconditional, _) | (Precondition::Absent, None) => true,
                (Precondition::ModRevision(revision), Some(stored)) => stored.mod_revision == revision,
                (Precondition::Absent, Some(_)) | (Precondition::ModRevision(_), None) => false,
            };
            if !holds {
                return Err(Some(key.clone()));
            }
        }
        // Documents of a kind come last, since etcd cannot tell which of them changed.
        let (kinds, keys): (Vec<_>, Vec<_>) =
            batch.conditions.iter().partition(|condition| condition.key().is_none());
        for condition in keys.into_iter().chain(kinds) {
            let stored = condition.key().and_then(|key| self.documents.get(key));
            let holds = match condition {
                // No document of these batches has a time to live.
                Condition::Exists(_) | Condition::NeverExpires(_) => stored.is_some(),
                Condition::Absent(_) => stored.is_none(),
                Condition::Unchanged { since, .. } => {
                    stored.is_some_and(|stored| stored.mod_revision <= *since)
                }
                Condition::KindUnchanged { kind, since } => {
                    let newer = |item: &StoredDocument| item.key.kind == *kind && item.mod_revision > *since;
                    !self.documents.values().any(newer)
                }
            };
            if !holds {
                return Err(condition.key().cloned());
            }
        }
        Ok(())
    }

    fn apply(&mut self, mutation: &Mutation, revision: u64) -> MutationResult {
        let before = self.documents.remove(mutation.key());
        let existed = before.is_some();
        let created = before.map(|stored| stored.create_revision);
        let Mutation::Put { key, document, .. } = mutation else {
            return MutationResult { create_revision: created.unwrap_or_default(), existed };
        };
        let create_revision = created.unwrap_or(revision);
        let stored = StoredDocument {
            key: key.clone(),
            document: document.clone(),
            create_revision,
            mod_revision: revision,
            stale_extensions: false,
            salvaged: None,
        };
        self.documents.insert(key.clone(), stored);
        MutationResult { create_revision, existed }
    }
}

fn key_of(document: usize) -> Key {
    let (kind, id) = DOCUMENTS[document];
    key(kind, id)
}

/// Half of the documents have extension fields.
fn document_of(value: u16) -> Value {
    if value.is_multiple_of(2) {
        json!({"v": value})
    } else {
        json!({"v": value, "client_identity": {"allow": [{"dns": "a.b"}]}})
    }
}
