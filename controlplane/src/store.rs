//! The store: where documents live, one revision after the other.
//!
//! Stands between `change::commit`, which is the only writer, and `publish`, which watches. A store
//! hands out revisions that only grow, answers a write only when it is durable, and tells every
//! change after a revision in order and without gaps, or says that it no longer can. Private keys
//! in documents are sealed before they come here; the store never opens them.
//!
//! `embedded` keeps everything in one file of this machine; `etcd` in a cluster, where other
//! control planes, an APISIX or a person may write, too. Any store must pass the tests in
//! `contract`.

pub(crate) mod embedded;
pub(crate) mod etcd;

#[cfg(test)]
mod conformance;

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use embedded::EmbeddedStore;
pub(crate) use embedded::{BackupStreamError, BackupSummary};
pub(crate) use etcd::EtcdStore;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use model::{Key, Kind, SalvagedDocument};
use prometheus_client::registry::Registry;
use serde_json::Value;
use telemetry::Heartbeat;
use zeroize::Zeroizing;

/// A document as the store holds it.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredDocument {
    /// Its name.
    pub key: Key,
    /// The document, private keys sealed, with its extension fields (`model::extension`).
    pub document: Value,
    /// The revision that created it.
    pub create_revision: u64,
    /// The revision that last changed it, or its extension fields.
    pub mod_revision: u64,
    /// Whether it has extension fields that are older than its last change: another program wrote
    /// it without them.
    pub stale_extensions: bool,
    /// What it was to take, where the document is a text that says why it cannot be read: another
    /// program may read it.
    pub salvaged: Option<SalvagedDocument>,
}

/// Everything the store holds, or everything of one kind, at one revision.
#[derive(Clone, Debug, PartialEq)]
pub struct DocumentList {
    /// The store's revision at that moment.
    pub revision: u64,
    /// The documents, in the order of their keys' text.
    pub items: Vec<StoredDocument>,
}

/// A part of the documents of one kind, in the order of their creation.
#[derive(Clone, Debug, PartialEq)]
pub struct Page {
    /// The documents of this part; fewer than asked for at the end of the list.
    pub items: Vec<StoredDocument>,
    /// How many documents the kind has.
    pub total: usize,
}

impl Page {
    /// `size` documents from the one at `first` (from 0).
    pub fn of(mut items: Vec<StoredDocument>, first: usize, size: usize) -> Self {
        let total = items.len();
        items.sort_by_key(|item| item.create_revision);
        Self { items: items.into_iter().skip(first).take(size).collect(), total }
    }
}

/// What the writer believes about the key it writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precondition {
    /// Write whatever is there.
    Unconditional,
    /// Write only if the key does not exist.
    Absent,
    /// Write only if the key was last changed by this revision.
    ModRevision(u64),
}

/// One change.
#[derive(Clone, Debug, PartialEq)]
pub enum Mutation {
    /// Creates or replaces a document.
    Put {
        /// Its name.
        key: Key,
        /// The whole new document, private keys sealed, with its extension fields.
        document: Value,
        /// What must be true for the write to happen.
        precondition: Precondition,
        /// Seconds after which the store removes it by itself; only where [`Store::forgets`].
        ttl: Option<NonZeroU32>,
    },
    /// Removes a document. Removing what is not there changes nothing and is not an error unless
    /// `expect` says so.
    Delete {
        /// Its name.
        key: Key,
        /// What must be true for the removal to happen.
        precondition: Precondition,
    },
}

impl Mutation {
    /// The name of the document that is written.
    pub fn key(&self) -> &Key {
        match self {
            Self::Put { key, .. } | Self::Delete { key, .. } => key,
        }
    }

    /// What must be true for the write to happen.
    pub fn precondition(&self) -> Precondition {
        match self {
            Self::Put { precondition: expect, .. } | Self::Delete { precondition: expect, .. } => *expect,
        }
    }
}

/// What a write did. By the time anyone holds one, the change survives a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommitResult {
    /// The store's revision after the write. Removing what is not there leaves it as it was.
    pub revision: u64,
    /// The revision that created the document; for a removal, the one that had created it (0 if
    /// there was none).
    pub create_revision: u64,
    /// Whether the document existed before.
    pub existed: bool,
}

/// One change as a watcher sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// The revision of the change.
    pub revision: u64,
    /// Which document changed.
    pub key: Key,
    /// The document after the change; nothing when it was removed.
    pub document: Option<StoredDocument>,
}

/// What the control planes keep for themselves beside the documents. No resource: it has no
/// revision, is in no list, and no watcher is told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InternalKey {
    /// The ring of secrets that session tickets are sealed with.
    TicketSecrets,
    /// The deny-list of data planes (`publish::denied`).
    DeniedNodes,
    /// Until when data planes take this store's state over, whatever it takes away
    /// (`publish::accepted`).
    AcceptedStore,
    /// A random name that is made once, where the store has none of its own.
    Identity,
    /// Digests of generated admin keys, where several control planes share the store
    /// (`admin::shared_key`).
    AdminKeys,
}

impl InternalKey {
    /// Its name in the store.
    pub fn name(self) -> &'static str {
        match self {
            Self::TicketSecrets => "ticket_secrets",
            Self::DeniedNodes => "denied_nodes",
            Self::AcceptedStore => "accepted_store",
            Self::Identity => "identity",
            Self::AdminKeys => "admin_keys",
        }
    }
}

/// A private entry. No `Debug`: without a keyring the text is in clear.
pub struct InternalEntry {
    /// Changes with every write of this entry; grows.
    pub version: u64,
    /// What was written, sealed by the writer.
    pub text: Zeroizing<String>,
}

/// Why a store could not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The document is not what the writer believed it to be; nothing was written.
    #[error("value changed before overwritten")]
    Conflict,
    /// Another process has the store open.
    #[error(
        "the store file {path} is in use by another process: stop the other control plane, or give this one its own \
         `countersign.store.path`; `controlplane backup` copies a store that is in use"
    )]
    Locked {
        /// The store's file.
        path: PathBuf,
    },
    /// The file is not a store, or parts of it were changed or lost.
    #[error(
        "the store file {path} is damaged ({what}). Nothing was changed. Put a backup in its place, or move the file away to \
         start with an empty store (the data planes then lose their configuration)"
    )]
    Corrupted {
        /// The store's file.
        path: PathBuf,
        /// What was found.
        what: String,
    },
    /// The file was written by a program that lays it out differently.
    #[error(
        "the store file {path} has format version {found}, and this program reads version {supported}. Nothing was changed. \
         Run the version of countersign that wrote it"
    )]
    UnsupportedFormat {
        /// The store's file.
        path: PathBuf,
        /// The version in the file.
        found: u64,
        /// The version this program reads and writes.
        supported: u64,
    },
    /// The operating system does not let us use the file or its folder.
    #[error(
        "no permission for {path} ({what}): the file and its folder must be readable and writable for this user"
    )]
    Permission {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        what: String,
    },
    /// There is no room for the change. What was acknowledged before is safe.
    #[error(
        "no space left on the disk of the store file {path}: the change was not made; free some space and try again"
    )]
    DiskFull {
        /// The store's file.
        path: PathBuf,
    },
    /// The store cannot answer now. In a cluster, a write that meets this was not made and will not
    /// be.
    #[error("the store is not available: {what}")]
    Unavailable {
        /// What happened.
        what: String,
    },
    /// The store answered that it will not make this change.
    #[error("the store refused the change: {what}")]
    Rejected {
        /// Its words, and what to do.
        what: String,
    },
    /// A write was on its way when the store stopped answering: it may have been made, or still be
    /// made.
    #[error(
        "it is not known whether the change was made: the store stopped answering while it was on its way ({what}). Read the \
         object again before you repeat it"
    )]
    OutcomeUnknown {
        /// What happened.
        what: String,
    },
}

/// Why a watch ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WatchError {
    /// The changes after the asked revision are no longer known: load everything, then watch from
    /// the loaded revision.
    #[error("the changes before revision {oldest} are no longer kept: load everything again")]
    Compacted {
        /// The oldest revision from which a watch can still start.
        oldest: u64,
    },
    /// The store cannot tell about changes now.
    #[error("the store is not available: {what}")]
    Unavailable {
        /// What happened.
        what: String,
    },
}

/// What a watcher reads: every change in order, or one error and then the end. What is one item is
/// whole: all changes of one revision, or of several, for a cluster may make many at once. The
/// stream ends without an error when the store is closed.
pub type EventStream = BoxStream<'static, Result<Vec<Event>, WatchError>>;

/// The name under which extension fields of documents that are gone are counted among the
/// strangers.
pub(crate) const ORPHANED_EXTENSIONS: &str = "countersign/extensions";

/// Something in the store that is no document of ours, for lint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownKeys {
    /// Its directory, or its whole name where that is not valid.
    pub name: String,
    /// How many objects there are.
    pub count: usize,
}

/// What a store that cannot be reached is remembered to hold.
#[derive(Clone, Debug)]
pub struct CachedDocuments {
    /// How long ago the store was last heard of.
    pub age: Duration,
    /// The documents as they were then.
    pub documents: DocumentList,
}

/// What each control plane says of itself in a store that several share: one entry for each
/// process, which the store removes
/// [`Self::time_to_live`] after it last heard of that process. No resource and no private entry:
/// nothing is compared before a write.
pub trait ReportEntries: Send + Sync {
    /// How long an entry outlives the last [`write`](Self::write).
    fn ttl(&self) -> Duration;

    /// Writes the entry of this process, or replaces it, and keeps it for another time to live.
    /// `nodes` is kept for an hour: what other processes know of this one when its entry has ended
    /// and was not withdrawn.
    ///
    /// # Errors
    /// When the store cannot be written.
    fn write(&self, text: String, nodes: String) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Removes the entry of this process.
    ///
    /// # Errors
    /// When the store cannot be written; the entry then ends with its time to live.
    fn withdraw(&self) -> BoxFuture<'_, Result<(), StoreError>>;

    /// The entries of the other processes.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn others(&self) -> BoxFuture<'_, Result<Vec<ReportEntry>, StoreError>>;
}

/// What [`ReportEntries::write`] wrote in another process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReportEntry {
    /// One process's life.
    pub process: String,
    /// `None`: it has ended, and was not withdrawn. The process has died, or no longer reaches the
    /// store.
    pub text: Option<String>,
    /// `None`: there is none, as of a process of an earlier version.
    pub nodes: Option<String>,
}

/// A place that keeps documents. Object-safe; every call may be made from any task.
pub trait Store: Send + Sync + 'static {
    /// A random name made together with the store: revisions mean something only within it.
    fn identity(&self) -> &str;

    /// Everything, at one revision.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn load(&self) -> BoxFuture<'_, Result<DocumentList, StoreError>>;

    /// Everything of one kind, at one revision.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn list(&self, kind: Kind) -> BoxFuture<'_, Result<DocumentList, StoreError>>;

    /// `size` documents of one kind from the one at `first` (from 0), in the order of their
    /// creation; only these are read.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn page(&self, kind: Kind, first: usize, size: usize) -> BoxFuture<'_, Result<Page, StoreError>>;

    /// One document.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<StoredDocument>, StoreError>>;

    /// Makes one change. When this answers `Ok`, the change survives a crash of the process and of
    /// the machine.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when the document is not what `expect` says. After any other error
    /// the caller must read again before it can tell whether the change was made.
    fn commit(&self, write: Mutation) -> BoxFuture<'_, Result<CommitResult, StoreError>>;

    /// Takes a revision that nothing else will ever have, to be used as an id (contract 2.3, POST).
    ///
    /// # Errors
    /// When the store cannot be written.
    fn reserve_id(&self) -> BoxFuture<'_, Result<u64, StoreError>>;

    /// A private entry; nothing before its first write.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn internal_entry(&self, what: InternalKey) -> BoxFuture<'_, Result<Option<InternalEntry>, StoreError>>;

    /// Replaces a private entry that has the version `expect` (0: that does not exist), and gives
    /// its new version. Durable as a commit is. Several control planes may try at once: one
    /// wins.
    ///
    /// # Errors
    /// As [`Self::commit`].
    fn swap_internal_entry(
        &self,
        what: InternalKey,
        expect: u64,
        text: Zeroizing<String>,
    ) -> BoxFuture<'_, Result<u64, StoreError>>;

    /// The reports of the control planes; `None` where this process is the only one that can open
    /// the store.
    fn reports(&self) -> Option<&dyn ReportEntries> {
        None
    }

    /// Every change after the revision `after`, in order, without gaps.
    fn watch(&self, after: u64) -> EventStream;

    /// The longest pause before a store that could not be read is read again.
    fn resync_delay(&self) -> Duration {
        Duration::from_secs(5)
    }

    /// Ends when a store that cannot be reached now can be reached again; never for one that can.
    fn wait_available(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::pending())
    }

    /// What the names of documents start with when they are shown.
    fn prefix(&self) -> &str {
        "/apisix"
    }

    /// Whether a document can be given a time to live.
    fn supports_ttl(&self) -> bool {
        false
    }

    /// What is stored beside documents of kinds that we know: nothing in a store that only we
    /// write.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn unknown_keys(&self) -> BoxFuture<'_, Result<Vec<UnknownKeys>, StoreError>> {
        Box::pin(std::future::ready(Ok(Vec::new())))
    }

    /// Puts what it measures of itself into `/metrics`.
    fn register_metrics(&self, _registry: &mut Registry) {}

    /// The heartbeat of the thread that writes, or of the task that keeps the connection.
    fn heartbeat(&self) -> Option<Arc<Heartbeat>> {
        None
    }

    /// What was last known of it, while it cannot be reached: of one kind, or everything. For
    /// people who ask; nothing that is written may rest on it. `None` where the store is at
    /// hand, or nothing was ever read.
    fn cached(&self, _kind: Option<Kind>) -> Option<CachedDocuments> {
        None
    }
}
