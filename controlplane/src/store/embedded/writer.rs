//! The thread that writes.
//!
//! It takes all waiting jobs, applies them in one transaction in their order, commits, notifies the
//! watches, and then answers. It removes documents at the end of their time to live, by the same
//! transactions. A conflict fails one batch only; a disk error fails the whole group,
//! because none of it is known to be durable.

use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::Instant;

use model::Key;
use redb::Database;
use telemetry::Heartbeat;
use tokio::sync::{mpsc, oneshot, watch};
use zeroize::Zeroizing;

use super::expiry::Expiries;
use super::file::{self, StoreReadError};
use super::history::History;
use super::index::Index;
use super::store_file::StoreFile;
use super::transaction::{apply_batches, swap_entry};
use crate::store::{Batch, CommitResult, Mutation, Precondition, StoreError};

/// Writes per fsync; bounds how long the first of them waits.
const GROUP_MAX: usize = 256;

/// A request to the writer.
pub(super) enum Job {
    Write(PendingWrite),
    Swap(PendingSwap),
    /// Reopens the file if it is not usable.
    Reopen(oneshot::Sender<Result<(), StoreError>>),
    /// Releases the file to another process, after the jobs before it.
    Close(oneshot::Sender<Result<(), StoreError>>),
    /// Opens the file again after `Close`.
    Open(oneshot::Sender<Result<(), StoreError>>),
}

impl Job {
    /// Whether it must not share a transaction with later jobs.
    fn is_last_of_group(&self) -> bool {
        matches!(self, Self::Close(_) | Self::Open(_))
    }
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
    pub(super) expiries: Expiries,
    /// The file is another process's: it is neither opened nor written.
    pub(super) closed: bool,
}

impl Writer {
    /// Runs until the last sender is gone and the queue is empty.
    pub(super) fn run(mut self) {
        self.heartbeat.set_idle();
        loop {
            // Also while jobs come in faster than they are done.
            if self.next_expiry().is_some_and(|next| next <= Instant::now()) {
                self.heartbeat.beat();
                self.remove_expired_or_postpone();
                self.heartbeat.set_idle();
            }
            let first = match self.next_expiry() {
                None => self.queue.blocking_recv(),
                Some(next) => match recv_until(&mut self.queue, next) {
                    Poll::Ready(first) => first,
                    Poll::Pending => continue,
                },
            };
            let Some(first) = first else { return };
            self.heartbeat.beat();
            let mut jobs = vec![first];
            while jobs.len() < GROUP_MAX
                && !jobs.last().is_some_and(Job::is_last_of_group)
                && let Ok(job) = self.queue.try_recv()
            {
                jobs.push(job);
            }
            self.process(jobs);
            self.heartbeat.set_idle();
        }
    }

    /// When the next document is removed here.
    fn next_expiry(&self) -> Option<Instant> {
        self.expiries.next().filter(|_| !self.closed)
    }

    /// Removes the documents whose time to live has ended.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(super) fn remove_expired(&mut self) -> Result<(), StoreError> {
        loop {
            let due = self.expiries.due(Instant::now(), GROUP_MAX);
            if due.is_empty() {
                return Ok(());
            }
            let removal = |(key, revision): &(Key, u64)| {
                let (key, precondition) = (key.clone(), Precondition::ModRevision(*revision));
                Some(Batch::from(Mutation::Delete { key, precondition }))
            };
            let batches: Vec<_> = due.iter().map(removal).collect();
            let results = self.commit(&batches)?;
            for ((key, _), result) in due.into_iter().zip(results) {
                match result {
                    Ok(removed) => {
                        tracing::info!(resource = %key, revision = removed.revision, "a document was removed at the end of its time to live");
                    }
                    Err(error) => {
                        tracing::warn!(resource = %key, %error, "a document outlives its time to live")
                    }
                }
                self.expiries.set(key, None);
            }
        }
    }

    fn remove_expired_or_postpone(&mut self) {
        if let Err(error) = self.remove_expired() {
            tracing::error!(%error, "documents whose time to live has ended could not be removed");
            if let Err(error) = self.reopen() {
                tracing::error!(%error, "the store could not be opened again; the next request tries once more");
            }
            self.expiries.postpone(Instant::now());
        }
    }

    fn process(&mut self, jobs: Vec<Job>) {
        let mut batches = Vec::with_capacity(jobs.len());
        let mut replies = Vec::with_capacity(jobs.len());
        let mut last = None;
        for job in jobs {
            match job {
                Job::Reopen(answer) => drop(answer.send(self.reopen())),
                Job::Close(_) | Job::Open(_) => last = Some(job),
                Job::Swap(swap) => {
                    let result = self.swap(&swap);
                    drop(swap.reply.send(result));
                }
                Job::Write(PendingWrite { batch, reply }) => {
                    batches.push(batch);
                    replies.push(reply);
                }
            }
        }
        if !batches.is_empty() {
            self.commit_and_reply(&batches, replies);
        }
        match last {
            Some(Job::Close(answer)) => {
                self.close();
                drop(answer.send(Ok(())));
            }
            Some(Job::Open(answer)) => {
                self.closed = false;
                // An open file stays: a reader may hold it for long.
                let is_open = self.file.with_database(|_| ()).is_some();
                drop(answer.send(if is_open { Ok(()) } else { self.reopen() }));
            }
            _ => {}
        }
    }

    fn commit_and_reply(
        &mut self,
        batches: &[Option<Batch>],
        replies: Vec<oneshot::Sender<Result<CommitResult, StoreError>>>,
    ) {
        // A caller may have gone away; its write stays.
        match self.commit(batches) {
            Ok(results) => {
                for (reply, result) in replies.into_iter().zip(results) {
                    drop(reply.send(result));
                }
            }
            Err(error @ StoreError::Closed { .. }) => {
                for reply in replies {
                    drop(reply.send(Err(error.clone())));
                }
            }
            Err(error) => {
                tracing::error!(%error, "the store could not commit");
                // Only the file can tell whether the commit reached the disk.
                if let Err(error) = self.reopen() {
                    tracing::error!(%error, "the store could not be opened again; the next request tries once more");
                }
                for reply in replies {
                    drop(reply.send(Err(error.clone())));
                }
            }
        }
    }

    /// Runs one transaction; reopens the file first if it is closed.
    fn transact<T>(
        &mut self,
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

    fn swap(&mut self, swap: &PendingSwap) -> Result<u64, StoreError> {
        let swapped = self.transact(|database| swap_entry(database, swap.name, swap.expect, &swap.text));
        if let Err(error) = &swapped
            && !self.closed
        {
            tracing::error!(%error, "the store could not commit");
            if let Err(error) = self.reopen() {
                tracing::error!(%error, "the store could not be opened again; the next request tries once more");
            }
        }
        swapped?.ok_or(StoreError::Conflict { key: None })
    }

    fn commit(
        &mut self,
        batches: &[Option<Batch>],
    ) -> Result<Vec<Result<CommitResult, StoreError>>, StoreError> {
        let started = Instant::now();
        let (file, has_expiries) = (Arc::clone(&self.file), !self.expiries.is_empty());
        let group = self.transact(|database| apply_batches(database, &file.index, batches, has_expiries))?;
        self.file.metrics.commit_seconds.observe(started.elapsed().as_secs_f64());
        if let Some(revision) = group.revision {
            self.file.index().apply(group.index_changes, revision);
            let mut history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
            for (event, size) in group.events {
                history.push(event, size);
            }
            history.advance(revision);
            drop(history);
            for (key, deadline) in group.deadlines {
                self.expiries.set(key, deadline);
            }
            self.head.send_replace(revision);
        }
        Ok(group.results)
    }

    /// Closes the file, which releases its lock; waits for the readers. Watches stay: they yield
    /// what follows after the next open.
    fn close(&mut self) {
        self.closed = true;
        drop(self.file.database.write().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// Reopens the file, unless it was released. Resets the history when the file's revision
    /// differs from memory, so that watches end with `Compacted`.
    fn reopen(&mut self) -> Result<(), StoreError> {
        if self.closed {
            return Err(StoreError::Closed { path: self.file.path.clone() });
        }
        let mut database = self.file.database.write().unwrap_or_else(PoisonError::into_inner);
        // Released first: this process holds the lock of the file.
        drop(database.take());
        let database_file = (self.file.opener)(&self.file.path)?;
        let meta = file::read_meta(&database_file, &self.file.path)?;
        *self.file.index() =
            Index::read(&database_file).map_err(|error| error.into_store_error(&self.file.path))?;
        self.expiries =
            Expiries::read(&database_file).map_err(|error| error.into_store_error(&self.file.path))?;
        *database = Some(database_file);
        drop(database);
        if meta.revision != *self.head.borrow() {
            self.history.lock().unwrap_or_else(PoisonError::into_inner).reset(meta.revision);
            self.head.send_replace(meta.revision);
        }
        Ok(())
    }
}

/// Blocks for the next job (`None`: the queue is closed), until a deadline.
fn recv_until(queue: &mut mpsc::Receiver<Job>, deadline: Instant) -> Poll<Option<Job>> {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    loop {
        if let Poll::Ready(job) = queue.poll_recv(&mut context) {
            return Poll::Ready(job);
        }
        let Some(left) = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
        else {
            return Poll::Pending;
        };
        std::thread::park_timeout(left);
    }
}
