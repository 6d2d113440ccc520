//! The store of documents, with a revision that grows by each commit.
//!
//! `change::commit` is the only writer; `publish` watches. A write is answered once it is durable.
//! A watch yields every change after a revision, in order and without gaps, or ends with
//! [`WatchError::Compacted`]. Private keys in documents are sealed before they reach the store, and
//! the store never opens them.
//!
//! `embedded` keeps everything in one file of this machine. `etcd` uses a cluster, to which other
//! control planes, an APISIX or a person may write, too. Each store passes the tests in
//! `conformance`.

pub(crate) mod backup_socket;
mod batch;
pub(crate) mod embedded;
pub(crate) mod etcd;
mod metrics;
mod recent;

#[cfg(test)]
mod conformance;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use batch::{Batch, CommitResult, Condition, Mutation, MutationResult, Precondition};
pub use embedded::EmbeddedStore;
pub(crate) use embedded::{BackupStreamError, BackupSummary};
pub(crate) use etcd::EtcdStore;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use model::{Key, Kind, SalvagedDocument};
use prometheus_client::registry::Registry;
pub use recent::RecentDocuments;
use serde_json::Value;
use telemetry::Heartbeat;
use zeroize::Zeroizing;

/// A document with its etcd-style revisions.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredDocument {
    pub key: Key,
    /// The document with its extension fields (`model::extension`). Private keys are sealed.
    pub document: Value,
    pub create_revision: u64,
    /// The revision of the last change to the document or to its extension fields.
    pub mod_revision: u64,
    /// The extension fields are older than the document: a program that does not know them wrote
    /// it.
    pub stale_extensions: bool,
    /// The matchers of a document that is not JSON, so that it can be blocked. Another program may
    /// be able to read it.
    pub salvaged: Option<SalvagedDocument>,
}

/// All documents of the store, or of one kind, at one revision.
#[derive(Clone, Debug, PartialEq)]
pub struct DocumentList {
    pub revision: u64,
    /// Ordered by the text of their keys.
    pub items: Vec<StoredDocument>,
}

/// One page of the documents of a kind, in the order of their creation.
#[derive(Clone, Debug, PartialEq)]
pub struct Page {
    /// Fewer than requested at the end of the list.
    pub items: Vec<StoredDocument>,
    /// The number of documents of the kind.
    pub total: usize,
}

impl Page {
    /// The page of `size` documents that starts at index `first`.
    pub fn of(mut items: Vec<StoredDocument>, first: usize, size: usize) -> Self {
        let total = items.len();
        items.sort_by_key(|item| item.create_revision);
        Self { items: items.into_iter().skip(first).take(size).collect(), total }
    }
}

/// One change, as a watch yields it.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    pub revision: u64,
    pub key: Key,
    /// `None`: the document was removed.
    pub document: Option<StoredDocument>,
}

/// The names of the control planes' internal entries. An internal entry is not a resource: it is in
/// no list, and no watch yields it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InternalKey {
    /// The ring of session ticket secrets.
    TicketSecrets,
    /// The deny-list of data planes (`publish::deny_list`).
    DeniedNodes,
    /// The deadline until which data planes accept this store's state, whatever it removes
    /// (`publish::store_acceptance`).
    AcceptedStore,
    /// A random name, written once, for a store that has no identity of its own.
    Identity,
    /// Digests of generated admin keys, where several control planes share the store
    /// (`admin::shared_key`).
    AdminKeys,
    /// The digest that a client gave to the whole configuration (`admin::handler::put_configs`).
    ConfigsDigest,
}

impl InternalKey {
    pub fn name(self) -> &'static str {
        match self {
            Self::TicketSecrets => "ticket_secrets",
            Self::DeniedNodes => "denied_nodes",
            Self::AcceptedStore => "accepted_store",
            Self::Identity => "identity",
            Self::AdminKeys => "admin_keys",
            Self::ConfigsDigest => "configs_digest",
        }
    }
}

/// An internal entry. It has no `Debug`: without a keyring the text is in clear.
pub struct InternalEntry {
    /// Grows with every write of this entry.
    pub version: u64,
    /// Sealed by the writer.
    pub text: Zeroizing<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// A precondition or condition does not hold; nothing was written.
    #[error("value changed before overwritten")]
    Conflict {
        /// The first document for which one does not hold. `None`: documents of a kind were
        /// changed, or an internal entry was.
        key: Option<Key>,
    },
    #[error(
        "the store file {path} is in use by another process: stop the other control plane, or give this one its own \
         `countersign.store.path`; `controlplane backup` copies a store that is in use"
    )]
    Locked { path: PathBuf },
    /// This process has released the file to another one.
    #[error(
        "the store file {path} was handed over to another process of this control plane: send the request again, on a new \
         connection"
    )]
    Closed { path: PathBuf },
    /// The file is not a store, or parts of it were changed or lost.
    #[error(
        "the store file {path} is damaged ({what}). Nothing was changed. Put a backup in its place, or move the file away to \
         start with an empty store (the data planes then lose their configuration)"
    )]
    Corrupted { path: PathBuf, what: String },
    /// The file has the format of another version of this program.
    #[error(
        "the store file {path} has format version {found}, and this program reads version {supported}. Nothing was changed. \
         Run the version of countersign that wrote it"
    )]
    UnsupportedFormat { path: PathBuf, found: u64, supported: u64 },
    #[error(
        "no permission for {path} ({what}): the file and its folder must be readable and writable for this user"
    )]
    Permission { path: PathBuf, what: String },
    /// The disk is full. Acknowledged changes are safe.
    #[error(
        "no space left on the disk of the store file {path}: the change was not made; free some space and try again"
    )]
    DiskFull { path: PathBuf },
    /// The store does not respond. In a cluster, the mutation was not committed and never will be.
    #[error("the store is not available: {what}")]
    Unavailable { what: String },
    /// The commit has more parts than the store takes at once.
    #[error(
        "the store rejected the change: {what}: write fewer documents at once, or raise etcd's --max-txn-ops"
    )]
    TooManyOperations { what: String },
    /// The store rejected the change.
    #[error("the store rejected the change: {what}")]
    Rejected { what: String },
    /// The store stopped responding during a commit, which may have happened or may still happen.
    #[error(
        "it is not known whether the change was made: the store stopped responding while it was on its way ({what}). Read the \
         object again before you repeat it"
    )]
    OutcomeUnknown { what: String },
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WatchError {
    /// The changes after the requested revision are gone: load everything, then watch from there.
    #[error("the changes before revision {oldest} are no longer kept: load everything again")]
    Compacted {
        /// The oldest revision from which a watch can still start.
        oldest: u64,
    },
    #[error("the store is not available: {what}")]
    Unavailable { what: String },
}

/// All changes in order, or one error and then the end. One item holds all changes of one revision,
/// or of several (etcd sends many at once). The stream ends without an error when the store is
/// closed.
pub type EventStream = BoxStream<'static, Result<Vec<Event>, WatchError>>;

/// The name in [`Store::unknown_keys`] for extension fields whose document is gone.
pub(crate) const ORPHANED_EXTENSIONS: &str = "countersign/extensions";

/// Keys in the store that are not documents, counted for lint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownKeys {
    /// The directory, or the whole key where that is invalid.
    pub name: String,
    pub count: usize,
}

/// The last known documents of a store that is unreachable.
#[derive(Clone, Debug)]
pub struct CachedDocuments {
    /// The time since the store last answered.
    pub age: Duration,
    pub documents: DocumentList,
}

/// The reports of the control planes that share a store: one entry per process. The store removes
/// an entry [`Self::ttl`] after its last [`write`](Self::write). Entries are neither resources nor
/// internal entries, and are written without a precondition.
pub trait ReportEntries: Send + Sync {
    /// The lifetime of an entry after its last [`write`](Self::write).
    fn ttl(&self) -> Duration;

    /// Writes or replaces the entry of this process and renews its lifetime. `nodes` is kept for an
    /// hour, so that other processes still know the nodes of a process that ended without
    /// [`withdraw`](Self::withdraw).
    ///
    /// # Errors
    /// When the store cannot be written.
    fn write(&self, text: String, nodes: String) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Removes the entry of this process.
    ///
    /// # Errors
    /// When the store cannot be written; the entry then expires.
    fn withdraw(&self) -> BoxFuture<'_, Result<(), StoreError>>;

    /// The entries of the other processes.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn others(&self) -> BoxFuture<'_, Result<Vec<ReportEntry>, StoreError>>;
}

/// The entry of another process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReportEntry {
    /// A random id per run of a process.
    pub process: String,
    /// `None`: the entry expired. The process died, or no longer reaches the store.
    pub text: Option<String>,
    /// `None`: a process of an earlier version wrote the entry.
    pub nodes: Option<String>,
}

/// A store of documents. Object-safe; every method may be called from any task.
pub trait Store: Send + Sync + 'static {
    /// A random name created together with the store. Revisions are comparable only within it.
    fn identity(&self) -> &str;

    /// All documents, at one revision.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn load(&self) -> BoxFuture<'_, Result<DocumentList, StoreError>>;

    /// All documents of one kind, at one revision.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn list(&self, kind: Kind) -> BoxFuture<'_, Result<DocumentList, StoreError>>;

    /// `size` documents of one kind from index `first`, in the order of their creation. Reads only
    /// these.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn page(&self, kind: Kind, first: usize, size: usize) -> BoxFuture<'_, Result<Page, StoreError>>;

    /// One document.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<StoredDocument>, StoreError>>;

    /// Commits all mutations of a batch in one revision, or none. After `Ok` the changes survive a
    /// crash of the process and of the machine.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when a precondition or condition does not hold;
    /// [`StoreError::Rejected`] when two mutations have one key, or the batch exceeds what the
    /// store takes at once. After any other error the caller must read the documents to learn
    /// whether the changes were committed.
    fn commit(&self, batch: Batch) -> BoxFuture<'_, Result<CommitResult, StoreError>>;

    /// Takes a unique revision, to be used as an id (contract 2.3, POST).
    ///
    /// # Errors
    /// When the store cannot be written.
    fn reserve_id(&self) -> BoxFuture<'_, Result<u64, StoreError>>;

    /// An internal entry; `None` before its first write.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn internal_entry(&self, key: InternalKey) -> BoxFuture<'_, Result<Option<InternalEntry>, StoreError>>;

    /// Compares and swaps an internal entry: replaces it if it has the version `expect` (0: absent)
    /// and returns its new version. Durable like a commit.
    ///
    /// # Errors
    /// As [`Self::commit`].
    fn swap_internal_entry(
        &self,
        key: InternalKey,
        expect: u64,
        text: Zeroizing<String>,
    ) -> BoxFuture<'_, Result<u64, StoreError>>;

    /// The documents with a time to live, and when the store removes each of them.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn expiries(&self) -> BoxFuture<'_, Result<BTreeMap<Key, Instant>, StoreError>>;

    /// The reports of the control planes; `None` for a store that only one process can open.
    fn reports(&self) -> Option<&dyn ReportEntries> {
        None
    }

    /// All changes after a revision, in order and without gaps.
    fn watch(&self, after: u64) -> EventStream;

    /// The maximum backoff between failed loads.
    fn resync_delay(&self) -> Duration {
        Duration::from_secs(5)
    }

    /// Resolves when an unreachable store is reachable again; never for a reachable one.
    fn wait_available(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::pending())
    }

    /// The prefix of the names of documents, for messages.
    fn prefix(&self) -> &str {
        "/apisix"
    }

    /// Keys that are not documents of a known kind; empty for a store that only this program
    /// writes.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn unknown_keys(&self) -> BoxFuture<'_, Result<Vec<UnknownKeys>, StoreError>> {
        Box::pin(std::future::ready(Ok(Vec::new())))
    }

    fn register_metrics(&self, _registry: &mut Registry) {}

    /// The heartbeat of the thread that writes, or of the task that owns the connection.
    fn heartbeat(&self) -> Option<Arc<Heartbeat>> {
        None
    }

    /// The documents as a watch of this store last saw them, for a plan whose commit is checked
    /// against them. `None`: a read of the store costs no call, or nothing follows the store now.
    fn recent(&self) -> Option<RecentDocuments> {
        None
    }

    /// The last known documents of an unreachable store: of one kind, or all. Answers read requests
    /// only; no write may depend on them. `None` while the store is reachable, or before the first
    /// load.
    fn cached(&self, _kind: Option<Kind>) -> Option<CachedDocuments> {
        None
    }
}
