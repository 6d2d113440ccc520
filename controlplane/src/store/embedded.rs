//! The embedded store: one redb file on this machine, owned by one process.
//!
//! One thread writes. It takes whatever writes wait, applies them in one transaction, and answers
//! them after the one fsync that made them durable, so that concurrent writers share its cost.
//! Reads run on blocking threads from the last commit. After an input/output error the file is
//! opened afresh before anything else is read or written: what memory says is not to be trusted
//! then.
//!
//! Invariant: an answered write is in the file, and was told to the watchers before it was
//! answered.

mod backup_stream;
mod file;
mod history;
mod index;
mod metrics;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::{fs, io};

pub(crate) use backup_stream::{BackupStreamError, BackupSummary};
use file::{COUNTERS, ITEMS, Opener};
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, stream};
use history::History;
use index::Index;
use metrics::Metrics;
use model::{Key, Kind};
use prometheus_client::registry::Registry;
use redb::{Database, ReadTransaction, ReadableDatabase};
use telemetry::{Heartbeat, Readiness};
use tokio::sync::{mpsc, oneshot, watch};
use writer::{Job, PendingSwap, PendingWrite};
use zeroize::Zeroizing;

use super::{
    CommitResult, DocumentList, EventStream, InternalEntry, InternalKey, Mutation, Page, Store, StoreError,
    StoredDocument, WatchError,
};

/// The layout of tables in the file. A file of another version is refused, never guessed at.
pub(crate) const FORMAT_VERSION: u64 = 1;

/// Writes that may wait before callers are held back.
const QUEUE_MAX: usize = 1024;

/// Looks at the index and the file until both are of one revision; a commit in between makes them
/// differ for a moment.
const PAGE_ATTEMPTS: usize = 4;

/// How much of the recent past watchers can still read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HistoryLimits {
    /// Changes.
    pub events: usize,
    /// Bytes of documents in them.
    pub bytes: usize,
}

impl Default for HistoryLimits {
    fn default() -> Self {
        Self { events: 4096, bytes: 64 << 20 }
    }
}

/// A store in one file. Dropping it finishes the writes that were accepted and releases the file.
pub struct EmbeddedStore {
    identity: String,
    file: Arc<StoreFile>,
    history: Arc<Mutex<History>>,
    head: watch::Receiver<u64>,
    /// Taken only by `drop`.
    jobs: Option<mpsc::Sender<Job>>,
    heartbeat: Arc<Heartbeat>,
    writer: Option<JoinHandle<()>>,
}

/// What the writer and the readers share.
struct StoreFile {
    path: PathBuf,
    opener: Opener,
    /// Empty after a failure, until the writer has opened the file again.
    database: RwLock<Option<Database>>,
    index: Mutex<Index>,
    metrics: Metrics,
}

impl EmbeddedStore {
    /// Opens the store at `path`; makes the file (mode 0600) and its folder when there is none.
    /// Blocks: reads the whole file to check it.
    ///
    /// # Errors
    /// Says what is wrong with the file and what to do; a file that is there is never replaced.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Self::open_with(path, Box::new(file::open), HistoryLimits::default())
    }

    /// Reads and checks the file without keeping it: its identity, and everything in it. `None`:
    /// there is no file, and none is made.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub(crate) fn load_file(path: &Path) -> Result<Option<(String, DocumentList)>, StoreError> {
        let Some((database, identity)) = file::open_if_exists(path)? else { return Ok(None) };
        let loaded = load(&database, None).map_err(|error| error.into_store_error(path))?;
        Ok(Some((identity, loaded)))
    }

    fn open_with(path: &Path, opener: Opener, kept: HistoryLimits) -> Result<Self, StoreError> {
        file::create_if_missing(path)?;
        let database = opener(path)?;
        let meta = file::read_meta(&database, path)?;
        let index = Mutex::new(Index::read(&database).map_err(|error| error.into_store_error(path))?);
        let (head_sender, head) = watch::channel(meta.revision);
        let recent = Arc::new(Mutex::new(History::new(meta.revision, kept)));
        let database = RwLock::new(Some(database));
        let (path, measures) = (path.to_path_buf(), Metrics::default());
        let shared = Arc::new(StoreFile { path, opener, database, index, metrics: measures });
        let (jobs, queue) = mpsc::channel(QUEUE_MAX);
        let heartbeat = Heartbeat::new("store", Readiness::Required);
        let writer = writer::Writer {
            heartbeat: Arc::clone(&heartbeat),
            file: Arc::clone(&shared),
            history: Arc::clone(&recent),
            head: head_sender,
            queue,
        };
        let writer = std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || writer.run())
            .map_err(|error| StoreError::Unavailable { what: format!("no thread for the store: {error}") })?;
        Ok(Self {
            identity: meta.identity,
            file: shared,
            history: recent,
            head,
            jobs: Some(jobs),
            heartbeat,
            writer: Some(writer),
        })
    }

    /// Writes the whole store at one revision, in rows, for [`Self::make_of_rows`]. Blocks; others
    /// read and write meanwhile.
    ///
    /// # Errors
    /// [`RowsError`].
    pub(crate) fn write_backup(&self, out: &mut dyn io::Write) -> Result<BackupSummary, BackupStreamError> {
        let sent = self.file.with_database(|database| backup_stream::write(database, &self.file.path, out));
        sent.unwrap_or_else(
            || Err(StoreError::Unavailable { what: "the file is not open".to_owned() }.into()),
        )
    }

    /// Makes a store of rows at `path`: completely, durably and verified under another name first.
    /// `replace`: in the place of a file that is there. Blocks.
    ///
    /// # Errors
    /// [`RowsError`]; nothing was changed then.
    pub(crate) fn create_from_backup(
        rows: &mut dyn io::BufRead,
        path: &Path,
        replace: bool,
    ) -> Result<BackupSummary, BackupStreamError> {
        file::remove_stale_temp_files(path);
        let new = file::temp_path(path);
        let made = backup_stream::create(rows, &new).and_then(|summary| {
            let placed = if replace { fs::rename(&new, path) } else { fs::hard_link(&new, path) };
            placed.map_err(|error| file::store_io_error(error, path))?;
            file::sync_dir(file::parent_dir(path))?;
            Ok(summary)
        });
        // There is none where it was renamed, or could not be made.
        let _gone = fs::remove_file(&new);
        made
    }

    /// Whether `path` is a regular file that begins as a store or a backup does; only its first
    /// bytes are read.
    ///
    /// # Errors
    /// Why it is none.
    pub(crate) fn check_header(path: &Path) -> Result<(), StoreError> {
        file::open_checked(path).map(drop)
    }

    /// Removes what a backup or a restore that was killed left beside `path`.
    pub(crate) fn remove_stale_temp_files(path: &Path) {
        file::remove_stale_temp_files(path);
    }

    /// Opens a copy of the store file `from`, made at `copy`: nothing of `from` is changed. The
    /// copy is durable.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub(crate) fn open_copy(from: &Path, copy: &Path) -> Result<Self, StoreError> {
        file::copy(from, copy)?;
        Self::open(copy)
    }

    /// A name beside `path` under which what is to take its place can be made.
    pub(crate) fn temp_path(path: &Path) -> PathBuf {
        file::temp_path(path)
    }

    /// The folder of a file; `.` where its path names none.
    pub(crate) fn parent_dir(path: &Path) -> &Path {
        file::parent_dir(path)
    }

    /// Makes the names in the folder of `path` durable.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn sync_parent_dir(path: &Path) -> Result<(), StoreError> {
        file::sync_dir(file::parent_dir(path))
    }

    /// The store's revision: that of the last change.
    pub(crate) fn revision(&self) -> u64 {
        *self.head.borrow()
    }

    async fn submit<T>(
        &self,
        job: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Job,
    ) -> Result<T, StoreError> {
        let gone = || StoreError::Unavailable { what: "the store is being closed".to_owned() };
        let (answer, answered) = oneshot::channel();
        let jobs = self.jobs.as_ref().ok_or_else(gone)?;
        jobs.send(job(answer)).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }

    async fn load_documents(&self, kind: Option<Kind>) -> Result<DocumentList, StoreError> {
        let loaded = self.read_or_reopen(move |database| load(database, kind)).await?;
        self.file.metrics.documents_read.inc_by(loaded.items.len() as u64);
        Ok(loaded)
    }

    /// Runs `read` on a blocking thread; when the file has to be opened again first, does that and
    /// tries once more.
    async fn read_or_reopen<T: Send + 'static>(
        &self,
        read: impl Fn(&Database) -> Result<T, file::ReadError> + Send + Sync + 'static,
    ) -> Result<T, StoreError> {
        let read = Arc::new(read);
        for attempt in 0..2 {
            let (shared, read) = (Arc::clone(&self.file), Arc::clone(&read));
            let result = tokio::task::spawn_blocking(move || shared.with_database(|database| read(database)))
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

impl StoreFile {
    /// `None` when the database is not open.
    fn with_database<T>(&self, f: impl FnOnce(&Database) -> T) -> Option<T> {
        let database = self.database.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        database.as_ref().map(f)
    }

    /// Moved on in one step: a panic while it was locked leaves nothing half done.
    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A part of a kind. A document that is removed between the look at the index and the read is
    /// left out.
    fn page(
        &self,
        database: &Database,
        kind: Kind,
        first: usize,
        size: usize,
    ) -> Result<Page, file::ReadError> {
        let (mut indexed, mut documents) = self.index().documents_of(kind);
        let mut transaction = database.begin_read()?;
        for _ in 1..PAGE_ATTEMPTS {
            if revision(&transaction)? == indexed {
                break;
            }
            (indexed, documents) = self.index().documents_of(kind);
            transaction = database.begin_read()?;
        }
        let table = transaction.open_table(ITEMS)?;
        let mut items = Vec::new();
        for (_, id) in documents.iter().skip(first).take(size) {
            let name = Key::new(kind, id.clone()).to_string();
            if let Some(row) = table.get(name.as_str())? {
                items.push(file::decode_row(&name, row.value())?);
            }
        }
        self.metrics.documents_read.inc_by(items.len() as u64);
        Ok(Page { items, total: documents.len() })
    }
}

fn revision(transaction: &ReadTransaction) -> Result<u64, file::ReadError> {
    Ok(transaction.open_table(COUNTERS)?.get(file::REVISION)?.map_or(0, |row| row.value()))
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
        let shared = Arc::clone(&self.file);
        self.read_or_reopen(move |database| shared.page(database, kind, first, size)).boxed()
    }

    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<StoredDocument>, StoreError>> {
        let name = key.to_string();
        self.read_or_reopen(move |database| {
            let items = database.begin_read()?.open_table(ITEMS)?;
            items.get(name.as_str())?.map(|row| file::decode_row(&name, row.value())).transpose()
        })
        .boxed()
    }

    fn commit(&self, write: Mutation) -> BoxFuture<'_, Result<CommitResult, StoreError>> {
        self.submit(|answer| Job::Write(PendingWrite { mutation: Some(write), reply: answer })).boxed()
    }

    fn reserve_id(&self) -> BoxFuture<'_, Result<u64, StoreError>> {
        self.submit(|answer| Job::Write(PendingWrite { mutation: None, reply: answer }))
            .map(|taken| taken.map(|taken| taken.revision))
            .boxed()
    }

    fn internal_entry(&self, what: InternalKey) -> BoxFuture<'_, Result<Option<InternalEntry>, StoreError>> {
        self.read_or_reopen(move |database| file::internal_entry(database, what.name())).boxed()
    }

    fn swap_internal_entry(
        &self,
        what: InternalKey,
        expect: u64,
        text: Zeroizing<String>,
    ) -> BoxFuture<'_, Result<u64, StoreError>> {
        self.submit(move |answer| Job::Swap(PendingSwap { name: what.name(), expect, text, reply: answer }))
            .boxed()
    }

    fn heartbeat(&self) -> Option<Arc<Heartbeat>> {
        Some(Arc::clone(&self.heartbeat))
    }

    fn register_metrics(&self, registry: &mut Registry) {
        self.file.metrics.register(registry);
    }

    fn watch(&self, after: u64) -> EventStream {
        let state = (Arc::clone(&self.history), self.head.clone(), after);
        let batches = stream::try_unfold(state, |(recent, mut head, after)| async move {
            loop {
                // Marked as seen before the look, so that a change between the look and the wait wakes us.
                head.borrow_and_update();
                let batch =
                    recent.lock().unwrap_or_else(std::sync::PoisonError::into_inner).events_after(after)?;
                if let Some(last) = batch.last() {
                    let last = last.revision;
                    let events = batch.into_iter().map(|event| (*event).clone()).collect();
                    return Ok::<_, WatchError>(Some((events, (recent, head, last))));
                }
                if head.changed().await.is_err() {
                    return Ok(None);
                }
            }
        });
        batches.boxed()
    }
}

fn load(database: &Database, kind: Option<Kind>) -> Result<DocumentList, file::ReadError> {
    let transaction = database.begin_read()?;
    let revision = revision(&transaction)?;
    let table = transaction.open_table(ITEMS)?;
    // '0' is the character after '/', so this range holds exactly the names that start with "plural/".
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
        // A reader may still hold `shared`; the file is released now, not when it is done.
        drop(self.file.database.write().unwrap_or_else(std::sync::PoisonError::into_inner).take());
    }
}

#[cfg(test)]
mod tests;
