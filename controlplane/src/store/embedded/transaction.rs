//! One transaction of the writer: batches in their order, each as a whole or not at all.
//!
//! Preconditions and conditions are checked against the documents as the batches before have left
//! them, and before the first mutation of their own batch, so a conflict has nothing to undo.

use std::sync::{Mutex, PoisonError};

use model::{Key, Kind};
use redb::{Database, ReadableTable, Table};

use super::expiry::{Deadline, EXPIRIES, ExpiryTable};
use super::file::{COUNTERS, INTERNAL_ENTRIES, ITEMS, REVISION, StoreReadError};
use super::index::{Index, IndexChange};
use crate::store::{
    Batch, CommitResult, Condition, Event, Mutation, MutationResult, Precondition, StoreError, StoredDocument,
};

/// The effect of one transaction.
#[derive(Default)]
pub(super) struct CommitGroup {
    /// One per batch, in order.
    pub(super) results: Vec<Result<CommitResult, StoreError>>,
    pub(super) events: Vec<(Event, usize)>,
    pub(super) index_changes: Vec<IndexChange>,
    pub(super) deadlines: Vec<(Key, Option<Deadline>)>,
    /// The store's revision afterwards; `None` when nothing changed.
    pub(super) revision: Option<u64>,
}

/// The new version of the entry; `None` when the expected version does not match.
pub(super) fn swap_entry(
    database: &Database,
    name: &str,
    expect: u64,
    text: &str,
) -> Result<Option<u64>, StoreReadError> {
    let transaction = database.begin_write()?;
    let swapped = {
        let mut table = transaction.open_table(INTERNAL_ENTRIES)?;
        let current = table.get(name)?.map_or(0, |row| row.value().0);
        if current == expect {
            table.insert(name, (current + 1, text))?;
            Some(current + 1)
        } else {
            None
        }
    };
    match swapped {
        Some(_) => transaction.commit()?,
        None => transaction.abort()?,
    }
    Ok(swapped)
}

/// Applies the batches in one transaction and commits it durably.
pub(super) fn apply_batches(
    database: &Database,
    index: &Mutex<Index>,
    batches: &[Option<Batch>],
    has_expiries: bool,
) -> Result<CommitGroup, StoreReadError> {
    let transaction = database.begin_write()?;
    let mut group = CommitGroup::default();
    {
        let mut counters = transaction.open_table(COUNTERS)?;
        let before = counters.get(REVISION)?.map_or(0, |row| row.value());
        let items = transaction.open_table(ITEMS)?;
        let needs_expiries = has_expiries || batches.iter().flatten().any(has_ttl);
        let expiries = needs_expiries.then(|| transaction.open_table(EXPIRIES)).transpose()?;
        let mut open = OpenGroup { items, expiries, index, revision: before, group };
        for batch in batches {
            let result = match batch {
                None => Ok(open.take_revision()),
                Some(batch) => open.apply_batch(batch)?,
            };
            open.group.results.push(result);
        }
        let revision = open.revision;
        group = open.group;
        if revision != before {
            counters.insert(REVISION, revision)?;
            group.revision = Some(revision);
        }
    }
    if group.revision.is_some() {
        transaction.commit()?;
    } else {
        transaction.abort()?;
    }
    Ok(group)
}

/// The revisions of a stored document.
#[derive(Clone, Copy)]
struct Revisions {
    created: u64,
    modified: u64,
}

/// A transaction in progress.
struct OpenGroup<'a> {
    items: ItemTable<'a>,
    /// `None` while no document has a time to live.
    expiries: Option<ExpiryTable<'a>>,
    /// As of the commit before.
    index: &'a Mutex<Index>,
    revision: u64,
    group: CommitGroup,
}

type ItemTable<'a> = Table<'a, &'static str, (u64, u64, &'static [u8])>;

/// The outer error of these methods aborts the transaction; the inner one is the result of a batch.
impl OpenGroup<'_> {
    /// A revision without a change, to be used as an id.
    fn take_revision(&mut self) -> CommitResult {
        self.revision += 1;
        CommitResult { revision: self.revision, mutations: Vec::new() }
    }

    fn apply_batch(&mut self, batch: &Batch) -> Result<Result<CommitResult, StoreError>, StoreReadError> {
        let mut current = Vec::with_capacity(batch.mutations.len());
        for mutation in &batch.mutations {
            let revisions = self.revisions(mutation.key())?;
            if !holds(mutation.precondition(), revisions) {
                return Ok(Err(StoreError::Conflict { key: Some(mutation.key().clone()) }));
            }
            current.push(revisions);
        }
        let (kinds, documents): (Vec<_>, Vec<_>) =
            batch.conditions.iter().partition(|condition| condition.key().is_none());
        // Like etcd, which can tell which document failed a condition, but not which of a kind.
        for condition in documents.into_iter().chain(kinds) {
            if !self.condition_holds(condition)? {
                return Ok(Err(StoreError::Conflict { key: condition.key().cloned() }));
            }
        }
        let next = self.revision + 1;
        let mut mutations = Vec::with_capacity(batch.mutations.len());
        for (mutation, current) in batch.mutations.iter().zip(current) {
            mutations.push(self.apply_mutation(mutation, current, next)?);
        }
        Ok(Ok(CommitResult { revision: self.revision, mutations }))
    }

    fn condition_holds(&self, condition: &Condition) -> Result<bool, StoreReadError> {
        Ok(match condition {
            Condition::Exists(key) => self.revisions(key)?.is_some(),
            Condition::NeverExpires(key) => match self.revisions(key)? {
                Some(revisions) => !self.expires(key, revisions)?,
                None => false,
            },
            Condition::Absent(key) => self.revisions(key)?.is_none(),
            Condition::Unchanged { key, since } => {
                self.revisions(key)?.is_some_and(|revisions| revisions.modified <= *since)
            }
            Condition::KindUnchanged { kind, since } => self.last_put(*kind) <= *since,
        })
    }

    /// Whether this revision of a document has a time to live.
    fn expires(&self, key: &Key, revisions: Revisions) -> Result<bool, StoreReadError> {
        let Some(expiries) = &self.expiries else { return Ok(false) };
        let expiry = expiries.get(key.to_string().as_str())?;
        Ok(expiry.is_some_and(|expiry| expiry.value().2 == revisions.modified))
    }

    /// The newest revision that created or changed a document of the kind, in this transaction or
    /// before.
    fn last_put(&self, kind: Kind) -> u64 {
        let here =
            self.group.index_changes.iter().rev().find(|change| change.exists && change.key.kind == kind);
        here.map_or_else(
            || self.index.lock().unwrap_or_else(PoisonError::into_inner).last_put(kind),
            |change| change.revision,
        )
    }

    fn revisions(&self, key: &Key) -> Result<Option<Revisions>, StoreReadError> {
        Ok(self.items.get(key.to_string().as_str())?.map(|row| {
            let (created, modified, _) = row.value();
            Revisions { created, modified }
        }))
    }

    /// Makes a mutation whose precondition holds, at the revision `next`.
    fn apply_mutation(
        &mut self,
        mutation: &Mutation,
        current: Option<Revisions>,
        next: u64,
    ) -> Result<MutationResult, StoreReadError> {
        let key = mutation.key();
        let name = key.to_string();
        let created = match (mutation, current) {
            (Mutation::Put { .. }, None) => next,
            (_, Some(current)) => current.created,
            (Mutation::Delete { .. }, None) => return Ok(MutationResult::default()),
        };
        self.revision = next;
        let (document, size) = match mutation {
            Mutation::Put { document, .. } => {
                let text = serde_json::to_vec(document).map_err(|error| {
                    StoreReadError::Row(format!("{name} cannot be written as JSON: {error}"))
                })?;
                self.items.insert(name.as_str(), (created, next, text.as_slice()))?;
                let stored = StoredDocument {
                    key: key.clone(),
                    document: document.clone(),
                    create_revision: created,
                    mod_revision: next,
                    stale_extensions: false,
                    salvaged: None,
                };
                (Some(stored), text.len())
            }
            Mutation::Delete { .. } => {
                self.items.remove(name.as_str())?;
                (None, name.len())
            }
        };
        self.set_expiry(key, mutation, next)?;
        self.group.index_changes.push(IndexChange {
            key: key.clone(),
            create_revision: created,
            revision: next,
            exists: document.is_some(),
        });
        self.group.events.push((Event { revision: next, key: key.clone(), document }, size));
        Ok(MutationResult { create_revision: created, existed: current.is_some() })
    }

    /// Replaces the end of the document's time to live, or clears it.
    fn set_expiry(&mut self, key: &Key, mutation: &Mutation, revision: u64) -> Result<(), StoreReadError> {
        let Some(expiries) = &mut self.expiries else { return Ok(()) };
        let name = key.to_string();
        let deadline = match mutation {
            Mutation::Put { ttl: Some(ttl), .. } => {
                let (deadline, stored) = Deadline::after(*ttl, revision);
                expiries.insert(name.as_str(), stored)?;
                Some(deadline)
            }
            Mutation::Put { ttl: None, .. } | Mutation::Delete { .. } => {
                expiries.remove(name.as_str())?;
                None
            }
        };
        self.group.deadlines.push((key.clone(), deadline));
        Ok(())
    }
}

fn has_ttl(batch: &Batch) -> bool {
    batch.mutations.iter().any(|mutation| matches!(mutation, Mutation::Put { ttl: Some(_), .. }))
}

fn holds(precondition: Precondition, current: Option<Revisions>) -> bool {
    match precondition {
        Precondition::Unconditional => true,
        Precondition::Absent => current.is_none(),
        Precondition::ModRevision(revision) => current.is_some_and(|current| current.modified == revision),
    }
}
