//! The thread that writes.
//!
//! It takes all waiting jobs, applies them in one transaction in their order, commits, notifies the
//! watches, and then answers. A conflict fails one batch only; a disk error fails the whole group,
//! because none of it is known to be durable.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use model::{Key, Kind};
use redb::{Database, ReadableTable, Table};
use telemetry::Heartbeat;
use tokio::sync::{mpsc, oneshot, watch};
use zeroize::Zeroizing;

use super::file::{self, COUNTERS, INTERNAL_ENTRIES, ITEMS, REVISION, StoreReadError};
use super::history::History;
use super::index::{Index, IndexChange};
use super::store_file::StoreFile;
use crate::store::{
    Batch, CommitResult, Condition, Event, Mutation, MutationResult, Precondition, StoreError, StoredDocument,
};

/// Writes per fsync; bounds how long the first of them waits.
const GROUP_MAX: usize = 256;

/// A request to the writer.
pub(super) enum Job {
    Write(PendingWrite),
    Swap(PendingSwap),
    /// Reopens the file if it is not usable.
    Reopen(oneshot::Sender<Result<(), StoreError>>),
}

/// A batch that waits for its result.
pub(super) struct PendingWrite {
    /// `None` takes a revision only, as an id.
    pub(super) batch: Option<Batch>,
    pub(super) reply: oneshot::Sender<Result<CommitResult, StoreError>>,
}

/// A swap of an internal entry that waits for its result. Rare, so it has its own transaction.
pub(super) struct PendingSwap {
    pub(super) name: &'static str,
    pub(super) expect: u64,
    pub(super) text: Zeroizing<String>,
    pub(super) reply: oneshot::Sender<Result<u64, StoreError>>,
}

pub(super) struct Writer {
    /// Ages while a job runs, which reveals a hanging disk.
    pub(super) heartbeat: Arc<Heartbeat>,
    pub(super) file: Arc<StoreFile>,
    pub(super) history: Arc<Mutex<History>>,
    pub(super) head: watch::Sender<u64>,
    pub(super) queue: mpsc::Receiver<Job>,
}

/// The effect of one transaction.
#[derive(Default)]
struct CommitGroup {
    /// One per batch, in order.
    results: Vec<Result<CommitResult, StoreError>>,
    events: Vec<(Event, usize)>,
    index_changes: Vec<IndexChange>,
    /// The store's revision afterwards; `None` when nothing changed.
    revision: Option<u64>,
}

impl Writer {
    /// Runs until the last sender is gone and the queue is empty.
    pub(super) fn run(mut self) {
        self.heartbeat.set_idle();
        while let Some(first) = self.queue.blocking_recv() {
            self.heartbeat.beat();
            let mut jobs = vec![first];
            while jobs.len() < GROUP_MAX
                && let Ok(job) = self.queue.try_recv()
            {
                jobs.push(job);
            }
            self.process(jobs);
            self.heartbeat.set_idle();
        }
    }

    fn process(&self, jobs: Vec<Job>) {
        let mut changes = Vec::with_capacity(jobs.len());
        for job in jobs {
            match job {
                Job::Reopen(answer) => drop(answer.send(self.reopen())),
                Job::Swap(swap) => {
                    let result = self.swap(&swap);
                    drop(swap.reply.send(result));
                }
                Job::Write(change) => changes.push(change),
            }
        }
        if changes.is_empty() {
            return;
        }
        // A caller may have gone away; its write stays.
        match self.commit(&changes) {
            Ok(results) => {
                for (change, result) in changes.into_iter().zip(results) {
                    drop(change.reply.send(result));
                }
            }
            Err(error) => {
                tracing::error!(%error, "the store could not commit");
                // Only the file can tell whether the commit reached the disk.
                if let Err(error) = self.reopen() {
                    tracing::error!(%error, "the store could not be opened again; the next request tries once more");
                }
                for change in changes {
                    drop(change.reply.send(Err(error.clone())));
                }
            }
        }
    }

    /// Runs one transaction; reopens the file first if it is closed.
    fn transact<T>(
        &self,
        work: impl FnOnce(&Database) -> Result<T, StoreReadError>,
    ) -> Result<T, StoreError> {
        if self.file.with_database(|_| ()).is_none() {
            self.reopen()?;
        }
        self.file
            .with_database(work)
            .ok_or_else(|| StoreError::Unavailable { what: "the file is not open".to_owned() })?
            .map_err(|error| error.into_store_error(&self.file.path))
    }

    fn swap(&self, swap: &PendingSwap) -> Result<u64, StoreError> {
        let swapped = self.transact(|database| swap_entry(database, swap));
        if let Err(error) = &swapped {
            tracing::error!(%error, "the store could not commit");
            if let Err(error) = self.reopen() {
                tracing::error!(%error, "the store could not be opened again; the next request tries once more");
            }
        }
        swapped?.ok_or(StoreError::Conflict { key: None })
    }

    fn commit(&self, changes: &[PendingWrite]) -> Result<Vec<Result<CommitResult, StoreError>>, StoreError> {
        let started = Instant::now();
        let group = self.transact(|database| apply_writes(database, &self.file.index, changes))?;
        self.file.metrics.commit_seconds.observe(started.elapsed().as_secs_f64());
        if let Some(revision) = group.revision {
            self.file.index().apply(group.index_changes, revision);
            let mut history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
            for (event, size) in group.events {
                history.push(event, size);
            }
            history.advance(revision);
            drop(history);
            self.head.send_replace(revision);
        }
        Ok(group.results)
    }

    /// Reopens the file. Resets the history when the file's revision differs from memory, so that
    /// watches end with `Compacted`.
    fn reopen(&self) -> Result<(), StoreError> {
        let mut database = self.file.database.write().unwrap_or_else(PoisonError::into_inner);
        // Released first: this process holds the lock of the file.
        drop(database.take());
        let database_file = (self.file.opener)(&self.file.path)?;
        let meta = file::read_meta(&database_file, &self.file.path)?;
        *self.file.index() =
            Index::read(&database_file).map_err(|error| error.into_store_error(&self.file.path))?;
        *database = Some(database_file);
        drop(database);
        if meta.revision != *self.head.borrow() {
            self.history.lock().unwrap_or_else(PoisonError::into_inner).reset(meta.revision);
            self.head.send_replace(meta.revision);
        }
        Ok(())
    }
}

/// The new version of the entry; `None` when the expected version does not match.
fn swap_entry(database: &Database, swap: &PendingSwap) -> Result<Option<u64>, StoreReadError> {
    let transaction = database.begin_write()?;
    let swapped = {
        let mut table = transaction.open_table(INTERNAL_ENTRIES)?;
        let current = table.get(swap.name)?.map_or(0, |row| row.value().0);
        if current == swap.expect {
            table.insert(swap.name, (current + 1, swap.text.as_str()))?;
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
fn apply_writes(
    database: &Database,
    index: &Mutex<Index>,
    writes: &[PendingWrite],
) -> Result<CommitGroup, StoreReadError> {
    let transaction = database.begin_write()?;
    let mut group = CommitGroup::default();
    {
        let mut counters = transaction.open_table(COUNTERS)?;
        let before = counters.get(REVISION)?.map_or(0, |row| row.value());
        let mut open = OpenGroup { items: transaction.open_table(ITEMS)?, index, revision: before, group };
        for write in writes {
            let result = match &write.batch {
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
            Condition::Absent(key) => self.revisions(key)?.is_none(),
            Condition::Unchanged { key, since } => {
                self.revisions(key)?.is_some_and(|revisions| revisions.modified <= *since)
            }
            Condition::KindUnchanged { kind, since } => self.last_put(*kind) <= *since,
        })
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
        self.group.index_changes.push(IndexChange {
            key: key.clone(),
            create_revision: created,
            revision: next,
            exists: document.is_some(),
        });
        self.group.events.push((Event { revision: next, key: key.clone(), document }, size));
        Ok(MutationResult { create_revision: created, existed: current.is_some() })
    }
}

fn holds(precondition: Precondition, current: Option<Revisions>) -> bool {
    match precondition {
        Precondition::Unconditional => true,
        Precondition::Absent => current.is_none(),
        Precondition::ModRevision(revision) => current.is_some_and(|current| current.modified == revision),
    }
}
