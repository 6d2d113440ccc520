//! The backup stream: all records of a store, one JSON text per line.
//!
//! All records come from one read transaction, so from one revision; private keys stay sealed. The
//! last record holds the number of records, which reveals a truncated stream.

use std::io::{self, BufRead, Write};
use std::path::Path;

use aws_lc_rs::digest::{Context, SHA256};
use data_encoding::HEXLOWER;
use redb::{Builder, Database, ReadableDatabase, TableError};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::expiry::{self, EXPIRIES};
use super::file::{
    self, COUNTERS, FORMAT, FORMAT_VERSION, IDENTITY, INTERNAL_ENTRIES, ITEMS, REVISION, StoreReadError,
    TEXTS,
};
use crate::store::StoreError;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum BackupRecord {
    /// The first record.
    Store {
        identity: String,
        revision: u64,
    },
    Document {
        name: String,
        created: u64,
        modified: u64,
        text: String,
        /// The end of its time to live in unix milliseconds, and the time to live in seconds.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        expiry: Option<(u64, u32)>,
    },
    Private {
        name: String,
        version: u64,
        text: Zeroizing<String>,
    },
    /// The last record.
    End {
        rows: u64,
    },
    /// The store could not be read to its end.
    Failed {
        problem: String,
    },
}

/// The summary of a backup stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BackupSummary {
    pub identity: String,
    /// The revision of all records.
    pub revision: u64,
    pub documents: u64,
    /// SHA-256 over all records, hexadecimal.
    pub digest: String,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum BackupStreamError {
    /// The store that is read or written.
    #[error("{0}")]
    Store(#[from] StoreError),
    #[error("the connection to the control plane broke: {0}")]
    Connection(io::Error),
    #[error("what came is not a whole store: {0}")]
    Incomplete(String),
}

/// Counts and digests the records of a stream.
struct StreamDigest {
    context: Context,
    rows: u64,
    documents: u64,
    store: Option<(String, u64)>,
}

impl StreamDigest {
    fn new() -> Self {
        Self { context: Context::new(&SHA256), rows: 0, documents: 0, store: None }
    }

    fn update(&mut self, row: &BackupRecord, line: &[u8]) {
        self.context.update(line);
        self.rows += 1;
        match row {
            BackupRecord::Store { identity, revision } => self.store = Some((identity.clone(), *revision)),
            BackupRecord::Document { .. } => self.documents += 1,
            BackupRecord::Private { .. } | BackupRecord::End { .. } | BackupRecord::Failed { .. } => {}
        }
    }

    fn finish(self) -> Result<BackupSummary, BackupStreamError> {
        let (identity, revision) = self
            .store
            .ok_or_else(|| BackupStreamError::Incomplete("it does not say its revision".to_owned()))?;
        let digest = HEXLOWER.encode(self.context.finish().as_ref());
        Ok(BackupSummary { identity, revision, documents: self.documents, digest })
    }
}

/// Writes all records. On an error of the store the last record is [`BackupRecord::Failed`], so
/// that the reader knows.
///
/// # Errors
/// [`BackupStreamError`].
pub(super) fn write(
    database: &Database,
    path: &Path,
    out: &mut dyn Write,
) -> Result<BackupSummary, BackupStreamError> {
    let mut digest = StreamDigest::new();
    let mut connection_error = None;
    let result = for_each_record(database, &mut |row| {
        let mut line =
            Zeroizing::new(serde_json::to_vec(&row).map_err(|error| StoreReadError::Row(error.to_string()))?);
        line.push(b'\n');
        digest.update(&row, &line);
        out.write_all(&line).map_err(|error| {
            let what = error.to_string();
            connection_error = Some(error);
            StoreReadError::Row(what)
        })
    });
    if let Some(error) = connection_error {
        return Err(BackupStreamError::Connection(error));
    }
    let last_record = match &result {
        Ok(()) => BackupRecord::End { rows: digest.rows },
        Err(_) => BackupRecord::Failed { problem: "it cannot read its store; its log says more".to_owned() },
    };
    let mut line = serde_json::to_vec(&last_record).unwrap_or_default();
    line.push(b'\n');
    out.write_all(&line).and_then(|()| out.flush()).map_err(BackupStreamError::Connection)?;
    result.map_err(|error| error.into_store_error(path))?;
    digest.finish()
}

/// Calls `each` with every record of one read transaction.
fn for_each_record(
    database: &Database,
    visit: &mut dyn FnMut(BackupRecord) -> Result<(), StoreReadError>,
) -> Result<(), StoreReadError> {
    let transaction = database.begin_read()?;
    let revision = file::revision(&transaction)?;
    let identity = transaction.open_table(TEXTS)?.get(IDENTITY)?.map(|row| row.value().to_owned());
    visit(BackupRecord::Store { identity: identity.unwrap_or_default(), revision })?;
    let expiries = expiry::open_table(&transaction)?;
    for row in transaction.open_table(ITEMS)?.range::<&str>(..)? {
        let (name, row) = row?;
        // Detects now a document that the copy could not serve.
        file::decode_row(name.value(), row.value())?;
        let (created, modified, text) = row.value();
        let text = String::from_utf8_lossy(text).into_owned();
        let expiry = match &expiries {
            Some(expiries) => expiries.get(name.value())?.map(|expiry| expiry.value()),
            None => None,
        };
        let expiry = expiry.and_then(|(end, ttl, revision)| (revision == modified).then_some((end, ttl)));
        visit(BackupRecord::Document { name: name.value().to_owned(), created, modified, text, expiry })?;
    }
    let private = match transaction.open_table(INTERNAL_ENTRIES) {
        Err(TableError::TableDoesNotExist(_)) => return Ok(()),
        table => table?,
    };
    for row in private.range::<&str>(..)? {
        let (name, row) = row?;
        let (version, text) = row.value();
        visit(BackupRecord::Private {
            name: name.value().to_owned(),
            version,
            text: Zeroizing::new(text.to_owned()),
        })?;
    }
    Ok(())
}

/// Creates a store from a stream in a new file (mode 0600), durably, reads it back and compares.
/// The caller removes an incomplete file.
///
/// # Errors
/// [`BackupStreamError`].
pub(super) fn create(input: &mut dyn BufRead, path: &Path) -> Result<BackupSummary, BackupStreamError> {
    file::create_owner_only(path)?;
    let store_error = |error: StoreReadError| BackupStreamError::Store(error.into_store_error(path));
    let database = Builder::new().create(path).map_err(|error| store_error(error.into()))?;
    let summary = insert_records(&database, input, &store_error)?;
    database.close().map_err(|error| store_error(StoreReadError::Redb(redb::Error::from(error))))?;
    let read_back = file::open(path).map_err(BackupStreamError::Store)?;
    let read_back_summary = write(&read_back, path, &mut io::sink())?;
    if read_back_summary != summary {
        return Err(BackupStreamError::Incomplete(format!(
            "{} does not read as it was written",
            path.display()
        )));
    }
    Ok(summary)
}

fn insert_records(
    database: &Database,
    input: &mut dyn BufRead,
    store_error: &dyn Fn(StoreReadError) -> BackupStreamError,
) -> Result<BackupSummary, BackupStreamError> {
    let transaction = database.begin_write().map_err(|error| store_error(error.into()))?;
    let mut digest = StreamDigest::new();
    loop {
        let mut line = Zeroizing::new(Vec::new());
        input.read_until(b'\n', &mut line).map_err(BackupStreamError::Connection)?;
        if line.last() != Some(&b'\n') {
            return Err(BackupStreamError::Incomplete(format!("it ended after {} rows", digest.rows)));
        }
        let row: BackupRecord = serde_json::from_slice(&line)
            .map_err(|error| BackupStreamError::Incomplete(format!("row {}: {error}", digest.rows + 1)))?;
        match &row {
            BackupRecord::End { rows } if *rows == digest.rows => break,
            BackupRecord::End { rows } => {
                return Err(BackupStreamError::Incomplete(format!("{} of {rows} rows came", digest.rows)));
            }
            BackupRecord::Failed { problem } => return Err(BackupStreamError::Incomplete(problem.clone())),
            row => insert(&transaction, row).map_err(store_error)?,
        }
        digest.update(&row, &line);
    }
    transaction.commit().map_err(|error| store_error(error.into()))?;
    digest.finish()
}

fn insert(transaction: &redb::WriteTransaction, row: &BackupRecord) -> Result<(), StoreReadError> {
    match row {
        BackupRecord::Store { identity, revision } => {
            transaction.open_table(ITEMS)?;
            let mut counters = transaction.open_table(COUNTERS)?;
            counters.insert(FORMAT, FORMAT_VERSION)?;
            counters.insert(REVISION, revision)?;
            transaction.open_table(TEXTS)?.insert(IDENTITY, identity.as_str())?;
        }
        BackupRecord::Document { name, created, modified, text, expiry } => {
            let value = (*created, *modified, text.as_bytes());
            transaction.open_table(ITEMS)?.insert(name.as_str(), value)?;
            if let Some((end, ttl)) = expiry {
                transaction.open_table(EXPIRIES)?.insert(name.as_str(), (*end, *ttl, *modified))?;
            }
        }
        BackupRecord::Private { name, version, text } => {
            transaction.open_table(INTERNAL_ENTRIES)?.insert(name.as_str(), (*version, text.as_str()))?;
        }
        BackupRecord::End { .. } | BackupRecord::Failed { .. } => {}
    }
    Ok(())
}
