//! The thread that writes.
//!
//! It takes all waiting jobs, applies them in one transaction in their order, commits, notifies the
//! watches, and then answers. A conflict fails one write only; a disk error fails the whole group,
//! because none of it is known to be durable.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use redb::{Database, ReadableTable, Table};
use telemetry::Heartbeat;
use tokio::sync::{mpsc, oneshot, watch};
use zeroize::Zeroizing;

use super::file::{self, COUNTERS, INTERNAL_ENTRIES, ITEMS, REVISION, StoreReadError};
use super::history::History;
use super::index::{self, Index};
use super::store_file::StoreFile;
use crate::store::{CommitResult, Event, Mutation, Precondition, StoreError, StoredDocument};

/// Writes per fsync; bounds how long the first of them waits.
const GROUP_MAX: usize = 256;

/// A request to the writer.
pub(super) enum Job {
    Write(PendingWrite),
    Swap(PendingSwap),
    /// Reopens the file if it is not usable.
    Reopen(oneshot::Sender<Result<(), StoreError>>),
}

/// A mutation that waits for its result.
pub(super) struct PendingWrite {
    /// `None` takes a revision only, as an id.
    pub(super) mutation: Option<Mutation>,
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
    /// One per write, in order.
    results: Vec<Result<CommitResult, StoreError>>,
    events: Vec<(Event, usize)>,
    index_changes: Vec<index::IndexChange>,
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
        swapped?.ok_or(StoreError::Conflict)
    }

    fn commit(&self, changes: &[PendingWrite]) -> Result<Vec<Result<CommitResult, StoreError>>, StoreError> {
        let started = Instant::now();
        let group = self.transact(|database| apply_writes(database, changes))?;
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

/// Applies the writes in one transaction and commits it durably.
fn apply_writes(database: &Database, changes: &[PendingWrite]) -> Result<CommitGroup, StoreReadError> {
    let mut group = CommitGroup::default();
    let transaction = database.begin_write()?;
    {
        let mut items = transaction.open_table(ITEMS)?;
        let mut counters = transaction.open_table(COUNTERS)?;
        let before = counters.get(REVISION)?.map_or(0, |row| row.value());
        let mut revision = before;
        for change in changes {
            let result = match &change.mutation {
                None => {
                    revision += 1;
                    Ok(CommitResult { revision, create_revision: revision, existed: false })
                }
                Some(write) => apply_mutation(&mut items, write, &mut revision, &mut group)?,
            };
            group.results.push(result);
        }
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

/// One mutation inside the transaction. The outer error aborts the transaction; the inner one is
/// the result of this mutation.
fn apply_mutation(
    items: &mut Table<'_, &'static str, (u64, u64, &'static [u8])>,
    write: &Mutation,
    revision: &mut u64,
    group: &mut CommitGroup,
) -> Result<Result<CommitResult, StoreError>, StoreReadError> {
    let name = write.key().to_string();
    let current = items.get(name.as_str())?.map(|row| {
        let (created, modified, _) = row.value();
        (created, modified)
    });
    let holds = match write.precondition() {
        Precondition::Unconditional => true,
        Precondition::Absent => current.is_none(),
        Precondition::ModRevision(expected) => current.is_some_and(|(_, modified)| modified == expected),
    };
    if !holds {
        return Ok(Err(StoreError::Conflict));
    }
    let existed = current.is_some();
    match write {
        Mutation::Put { key, document, .. } => {
            *revision += 1;
            let modified = *revision;
            let created = current.map_or(modified, |(created, _)| created);
            let text = serde_json::to_vec(document)
                .map_err(|error| StoreReadError::Row(format!("{name} cannot be written as JSON: {error}")))?;
            items.insert(name.as_str(), (created, modified, text.as_slice()))?;
            let (key, document) = (key.clone(), document.clone());
            let now = StoredDocument {
                key: key.clone(),
                document,
                create_revision: created,
                mod_revision: modified,
                stale_extensions: false,
                salvaged: None,
            };
            group.index_changes.push(index::IndexChange {
                key: key.clone(),
                create_revision: created,
                exists: true,
            });
            group.events.push((Event { revision: modified, key, document: Some(now) }, text.len()));
            Ok(Ok(CommitResult { revision: modified, create_revision: created, existed }))
        }
        Mutation::Delete { key, .. } => {
            if let Some((created, _)) = current {
                *revision += 1;
                items.remove(name.as_str())?;
                group.index_changes.push(index::IndexChange {
                    key: key.clone(),
                    create_revision: created,
                    exists: false,
                });
                group
                    .events
                    .push((Event { revision: *revision, key: key.clone(), document: None }, name.len()));
            }
            Ok(Ok(CommitResult {
                revision: *revision,
                create_revision: current.map_or(0, |(created, _)| created),
                existed,
            }))
        }
    }
}
