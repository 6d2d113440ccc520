//! The embedded store: one redb file on this machine, opened by one process.
//!
//! One thread writes. It commits all waiting jobs in one transaction and answers them after its
//! fsync, so that concurrent writers share the cost. Reads run on blocking threads from the last
//! commit. After an I/O error the file is reopened before anything else is read or written, because
//! redb's memory may differ from the disk.
//!
//! Invariant: an acknowledged write is in the file, and was sent to the watches before.

mod backup_stream;
mod expiry;
mod file;
mod history;
mod index;
mod store_file;
mod transaction;
mod writer;

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, RwLock};
use std::thread::JoinHandle;
use std::time::Instant;
use std::{fs, io};

pub(crate) use backup_stream::{BackupStreamError, BackupSummary};
use expiry::Expiries;
use file::{ITEMS, Opener};
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, stream};
use history::{History, HistoryLimits};
use index::Index;
use model::{Key, Kind};
use prometheus_client::registry::Registry;
use redb::{Database, ReadableDatabase};
use store_file::{Metrics, StoreFile};
use telemetry::{Heartbeat, Readiness};
use tokio::sync::{mpsc, oneshot, watch};
use writer::{Job, PendingSwap, PendingWrite};
use zeroize::Zeroizing;

use super::metrics::StoreGauge;
use super::{
    Batch, CommitResult, DocumentList, EventStream, InternalEntry, InternalKey, Page, Store, StoreError,
    StoredDocument, WatchError,
};

/// Jobs in the queue before callers wait.
const QUEUE_MAX: usize = 1024;

/// A store in one file. Dropping it completes the accepted writes and releases the file.
pub struct EmbeddedStore {
    identity: String,
    file: Arc<StoreFile>,
    history: Arc<Mutex<History>>,
    head: watch::Receiver<u64>,
    /// `None` only during `drop`.
    jobs: Option<mpsc::Sender<Job>>,
    heartbeat: Arc<Heartbeat>,
    writer: Option<JoinHandle<()>>,
}

impl EmbeddedStore {
    /// Opens the store at `path`; creates the file (mode 0600) and its directory if it does not
    /// exist. Removes documents whose time to live has ended. Blocks: reads the whole file to check
    /// it.
    ///
    /// # Errors
    /// The message says what is wrong with the file and what to do. An existing file is never
    /// replaced.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Self::open_with(path, Box::new(file::open), HistoryLimits::default())
    }

    /// Reads and checks a file without keeping it open: its identity, and all documents whose time
    /// to live has not ended. `None`: the file does not exist, and is not created.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub(crate) fn load_file(path: &Path) -> Result<Option<(String, DocumentList)>, StoreError> {
        let Some((database, identity)) = file::open_if_exists(path)? else { return Ok(None) };
        let read = || -> Result<DocumentList, file::StoreReadError> {
            let mut loaded = load(&database, None)?;
            let expired = Expiries::read(&database)?.due(Instant::now(), usize::MAX);
            let expired: HashSet<Key> = expired.into_iter().map(|(key, _)| key).collect();
            loaded.items.retain(|item| !expired.contains(&item.key));
            Ok(loaded)
        };
        let loaded = read().map_err(|error| error.into_store_error(path))?;
        Ok(Some((identity, loaded)))
    }

    fn open_with(path: &Path, opener: Opener, kept: HistoryLimits) -> Result<Self, StoreError> {
        file::create_if_missing(path)?;
        let database = opener(path)?;
        let meta = file::read_meta(&database, path)?;
        let read_error = |error: file::StoreReadError| error.into_store_error(path);
        let index = Mutex::new(Index::read(&database).map_err(read_error)?);
        let expiries = Expiries::read(&database).map_err(read_error)?;
        let (head_sender, head) = watch::channel(meta.revision);
        let history = Arc::new(Mutex::new(History::new(meta.revision, kept)));
        let database = RwLock::new(Some(database));
        let (path, metrics) = (path.to_path_buf(), Metrics::default());
        let file = Arc::new(StoreFile { path, opener, database, index, metrics });
        let (jobs, queue) = mpsc::channel(QUEUE_MAX);
        let heartbeat = Heartbeat::new("store", Readiness::Required);
        let mut writer = writer::Writer {
            heartbeat: Arc::clone(&heartbeat),
            file: Arc::clone(&file),
            history: Arc::clone(&history),
            head: head_sender,
            queue,
            expiries,
            closed: false,
        };
        // Before anything is served.
        writer.remove_expired()?;
        let writer = std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || writer.run())
            .map_err(|error| StoreError::Unavailable { what: format!("no thread for the store: {error}") })?;
        Ok(Self {
            identity: meta.identity,
            file,
            history,
            head,
            jobs: Some(jobs),
            heartbeat,
            writer: Some(writer),
        })
    }

    /// Writes all records of the store at one revision, for [`Self::create_from_backup`]. Blocks;
    /// others read and write meanwhile.
    ///
    /// # Errors
    /// [`BackupStreamError`].
    pub(crate) fn write_backup(&self, out: &mut dyn io::Write) -> Result<BackupSummary, BackupStreamError> {
        let written =
            self.file.with_database(|database| backup_stream::write(database, &self.file.path, out));
        written.unwrap_or_else(|| {
            Err(StoreError::Unavailable { what: "the file is not open".to_owned() }.into())
        })
    }

    /// Creates a store file at `path` from a backup stream: complete, durable and verified under a
    /// temporary name first. `replace` allows an existing file. Blocks.
    ///
    /// # Errors
    /// [`BackupStreamError`]; nothing was changed then.
    pub(crate) fn create_from_backup(
        rows: &mut dyn io::BufRead,
        path: &Path,
        replace: bool,
    ) -> Result<BackupSummary, BackupStreamError> {
        file::remove_stale_temp_files(path);
        let temp_path = file::temp_path(path);
        let created = backup_stream::create(rows, &temp_path).and_then(|summary| {
            let installed =
                if replace { fs::rename(&temp_path, path) } else { fs::hard_link(&temp_path, path) };
            installed.map_err(|error| file::store_io_error(error, path))?;
            file::sync_dir(file::parent_dir(path))?;
            Ok(summary)
        });
        // Absent after the rename, or if it was never created.
        let _gone = fs::remove_file(&temp_path);
        created
    }

    /// Checks that `path` is a regular file that starts with redb's magic bytes.
    ///
    /// # Errors
    /// When it is not a store file.
    pub(crate) fn check_header(path: &Path) -> Result<(), StoreError> {
        file::open_checked(path).map(drop)
    }

    /// Removes the temporary files of a killed backup or restore of `path`.
    pub(crate) fn remove_stale_temp_files(path: &Path) {
        file::remove_stale_temp_files(path);
    }

    /// Copies the store file `from` to `copy`, durably, and opens the copy. `from` is not changed.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub(crate) fn open_copy(from: &Path, copy: &Path) -> Result<Self, StoreError> {
        file::copy(from, copy)?;
        Self::open(copy)
    }

    /// A temporary name in the directory of `path`.
    pub(crate) fn temp_path(path: &Path) -> PathBuf {
        file::temp_path(path)
    }

    /// The directory of a file; `.` for a bare name.
    pub(crate) fn parent_dir(path: &Path) -> &Path {
        file::parent_dir(path)
    }

    /// Makes renames in the directory of `path` durable.
    ///
    /// # Errors
    /// When the directory cannot be synced.
    pub(crate) fn sync_parent_dir(path: &Path) -> Result<(), StoreError> {
        file::sync_dir(file::parent_dir(path))
    }

    /// Completes the accepted writes and releases the file, so that another process can open it.
    /// Until [`Self::reopen`] every read and write fails with [`StoreError::Closed`]; watches stay.
    /// A backup that is being written delays it.
    ///
    /// # Errors
    /// When the store's thread has ended.
    pub async fn close(&self) -> Result<(), StoreError> {
        self.submit(Job::Close).await
    }

    /// Opens the file again after [`Self::close`]. Watches continue, or end with
    /// [`WatchError::Compacted`] when another process has written.
    ///
    /// # Errors
    /// As [`Self::open`]; the next read or write tries once more.
    pub async fn reopen(&self) -> Result<(), StoreError> {
        self.submit(Job::Open).await
    }

    /// The revision of the last commit.
    pub(crate) fn revision(&self) -> u64 {
        *self.head.borrow()
    }

    async fn submit<T>(
        &self,
        job: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Job,
    ) -> Result<T, StoreError> {
        let closed = || StoreError::Unavailable { what: "the store is being closed".to_owned() };
        let (reply, response) = oneshot::channel();
        let jobs = self.jobs.as_ref().ok_or_else(closed)?;
        jobs.send(job(reply)).await.map_err(|_| closed())?;
        response.await.map_err(|_| closed())?
    }

    async fn load_documents(&self, kind: Option<Kind>) -> Result<DocumentList, StoreError> {
        let loaded = self.read_or_reopen(move |database| load(database, kind)).await?;
        self.file.metrics.documents_read.inc_by(loaded.items.len() as u64);
        Ok(loaded)
    }

    /// Runs `read` on a blocking thread. If the file must be reopened first, reopens it and retries
    /// once.
    async fn read_or_reopen<T: Send + 'static>(
        &self,
        read: impl Fn(&Database) -> Result<T, file::StoreReadError> + Send + Sync + 'static,
    ) -> Result<T, StoreError> {
        let read = Arc::new(read);
        for attempt in 0..2 {
            let (file, read) = (Arc::clone(&self.file), Arc::clone(&read));
            let result = tokio::task::spawn_blocking(move || file.with_database(|database| read(database)))
                .await
                .map_err(|error| StoreError::Unavailable { what: format!("reading failed: {error}") })?;
            match result {
                Some(Ok(value)) => return Ok(value),
                Some(Err(error)) if attempt == 1 || !error.needs_reopen() => {
                    return Err(error.into_store_error(&self.file.path));
                }
                Some(Err(_)) | None => self.submit(Job::Reopen).await?,
            }
        }
        Err(StoreError::Unavailable { what: "the file could not be opened again".to_owned() })
    }
}

impl Store for EmbeddedStore {
    fn identity(&self) -> &str {
        &self.identity
    }

    fn load(&self) -> BoxFuture<'_, Result<DocumentList, StoreError>> {
        self.load_documents(None).boxed()
    }

    fn list(&self, kind: Kind) -> BoxFuture<'_, Result<DocumentList, StoreError>> {
        self.load_documents(Some(kind)).boxed()
    }

    fn page(&self, kind: Kind, first: usize, size: usize) -> BoxFuture<'_, Result<Page, StoreError>> {
        let file = Arc::clone(&self.file);
        self.read_or_reopen(move |database| file.page(database, kind, first, size)).boxed()
    }

    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<StoredDocument>, StoreError>> {
        let name = key.to_string();
        self.read_or_reopen(move |database| {
            let items = database.begin_read()?.open_table(ITEMS)?;
            items.get(name.as_str())?.map(|row| file::decode_row(&name, row.value())).transpose()
        })
        .boxed()
    }

    fn commit(&self, batch: Batch) -> BoxFuture<'_, Result<CommitResult, StoreError>> {
        async {
            batch.check_keys()?;
            self.submit(|reply| Job::Write(PendingWrite { batch: Some(batch), reply })).await
        }
        .boxed()
    }

    fn reserve_id(&self) -> BoxFuture<'_, Result<u64, StoreError>> {
        self.submit(|reply| Job::Write(PendingWrite { batch: None, reply }))
            .map(|result| result.map(|result| result.revision))
            .boxed()
    }

    fn internal_entry(&self, key: InternalKey) -> BoxFuture<'_, Result<Option<InternalEntry>, StoreError>> {
        self.read_or_reopen(move |database| file::internal_entry(database, key.name())).boxed()
    }

    fn swap_internal_entry(
        &self,
        key: InternalKey,
        expect: u64,
        text: Zeroizing<String>,
    ) -> BoxFuture<'_, Result<u64, StoreError>> {
        self.submit(move |reply| Job::Swap(PendingSwap { name: key.name(), expect, text, reply })).boxed()
    }

    fn expiries(&self) -> BoxFuture<'_, Result<BTreeMap<Key, Instant>, StoreError>> {
        self.read_or_reopen(|database| Ok(Expiries::read(database)?.into_ends())).boxed()
    }

    fn heartbeat(&self) -> Option<Arc<Heartbeat>> {
        Some(Arc::clone(&self.heartbeat))
    }

    fn register_metrics(&self, registry: &mut Registry) {
        self.file.metrics.register(registry);
        let head = self.head.clone();
        registry.register_collector(Box::new(StoreGauge::revision(move || *head.borrow())));
    }

    fn watch(&self, after: u64) -> EventStream {
        let state = (Arc::clone(&self.history), self.head.clone(), after);
        let batches = stream::try_unfold(state, |(history, mut head, after)| async move {
            loop {
                // Marked as seen before reading, so that a change in between wakes this watch.
                head.borrow_and_update();
                let batch =
                    history.lock().unwrap_or_else(std::sync::PoisonError::into_inner).events_after(after)?;
                if let Some(last) = batch.last() {
                    let last = last.revision;
                    let events = batch.into_iter().map(|event| (*event).clone()).collect();
                    return Ok::<_, WatchError>(Some((events, (history, head, last))));
                }
                if head.changed().await.is_err() {
                    return Ok(None);
                }
            }
        });
        batches.boxed()
    }
}

fn load(database: &Database, kind: Option<Kind>) -> Result<DocumentList, file::StoreReadError> {
    let transaction = database.begin_read()?;
    let revision = file::revision(&transaction)?;
    let table = transaction.open_table(ITEMS)?;
    // '0' follows '/', so this range holds exactly the names that start with "plural/".
    let (from, to) = match kind {
        Some(kind) => (format!("{}/", kind.plural()), format!("{}0", kind.plural())),
        None => (String::new(), "\u{10ffff}".to_owned()),
    };
    let mut items = Vec::new();
    for row in table.range(from.as_str()..to.as_str())? {
        let (name, value) = row?;
        items.push(file::decode_row(name.value(), value.value())?);
    }
    Ok(DocumentList { revision, items })
}

impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the store's thread ended with a panic");
        }
        // A reader may still hold the file: release the lock now, not when the reader is done.
        drop(self.file.database.write().unwrap_or_else(std::sync::PoisonError::into_inner).take());
    }
}

#[cfg(test)]
mod tests;
