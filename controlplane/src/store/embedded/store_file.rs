//! The open file with its index and metrics, shared by the writer and the readers.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};

use model::{Key, Kind};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use redb::{Database, ReadableDatabase};

use super::file::{self, ITEMS, Opener, StoreReadError};
use super::index::Index;
use crate::store::Page;

/// Attempts to read the index and the file at one revision; they differ for a moment during a
/// commit.
const PAGE_ATTEMPTS: usize = 4;

pub(super) struct StoreFile {
    pub(super) path: PathBuf,
    pub(super) opener: Opener,
    /// `None` after a failure, until the writer has reopened the file.
    pub(super) database: RwLock<Option<Database>>,
    pub(super) index: Mutex<Index>,
    pub(super) metrics: Metrics,
}

impl StoreFile {
    /// `None` while the database is not open.
    pub(super) fn with_database<T>(&self, f: impl FnOnce(&Database) -> T) -> Option<T> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        database.as_ref().map(f)
    }

    /// The index moves in one step, so a poisoned lock still guards a consistent index.
    pub(super) fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One page of a kind. A document that is removed between the lookup in the index and the read
    /// is skipped.
    pub(super) fn page(
        &self,
        database: &Database,
        kind: Kind,
        first: usize,
        size: usize,
    ) -> Result<Page, StoreReadError> {
        let (mut index_revision, mut documents) = self.index().documents_of(kind);
        let mut transaction = database.begin_read()?;
        for _ in 1..PAGE_ATTEMPTS {
            if file::revision(&transaction)? == index_revision {
                break;
            }
            (index_revision, documents) = self.index().documents_of(kind);
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

/// Clones share their counters.
#[derive(Clone)]
pub(super) struct Metrics {
    /// One transaction with its fsync.
    pub(super) commit_seconds: Histogram,
    pub(super) documents_read: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        // From a millisecond to half a minute.
        Self {
            commit_seconds: Histogram::new(exponential_buckets(0.001, 2.0, 16)),
            documents_read: Counter::default(),
        }
    }
}

impl Metrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        let help = "Seconds that a transaction of the embedded store takes until it is on disk";
        registry.register("store_commit_seconds", help, self.commit_seconds.clone());
        let help = "Documents that were read from the embedded store and parsed";
        registry.register("store_documents_read", help, self.documents_read.clone());
    }
}
