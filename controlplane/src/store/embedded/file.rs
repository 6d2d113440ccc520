//! The store file: how it is created, opened, checked and read, and its errors in words.
//!
//! A new store is written under a temporary name and then linked into place. A crash leaves no
//! half-written store, and of two processes that start together one wins. An existing file is never
//! replaced.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use model::{Id, Key, Kind, json};
use process::bounded_read;
use redb::{Builder, Database, ReadTransaction, ReadableDatabase, TableDefinition, TableError};
use zeroize::Zeroizing;

use crate::store::{InternalEntry, StoreError, StoredDocument};

/// The version of the tables in the file. A file of another version is rejected.
pub(super) const FORMAT_VERSION: u64 = 1;

/// key text -> (create revision, mod revision, document as JSON text)
pub(super) const ITEMS: TableDefinition<'_, &str, (u64, u64, &[u8])> = TableDefinition::new("items");
pub(super) const COUNTERS: TableDefinition<'_, &str, u64> = TableDefinition::new("counters");
pub(super) const TEXTS: TableDefinition<'_, &str, &str> = TableDefinition::new("texts");

/// Names of internal entries -> (version, text). Created with the first entry.
pub(super) const INTERNAL_ENTRIES: TableDefinition<'_, &str, (u64, &str)> = TableDefinition::new("private");

/// The first bytes of every redb file.
const MAGIC: &[u8; 9] = b"redb\x1A\x0A\xA9\x0D\x0A";
/// A temporary file in use is locked, except just after it was created.
const STALE_TEMP_AGE: Duration = Duration::from_secs(60);

/// The counter that holds the store's revision.
pub(super) const REVISION: &str = "revision";
pub(super) const FORMAT: &str = "format";
pub(super) const IDENTITY: &str = "identity";

/// redb's page cache; documents are small.
const CACHE_BYTES: usize = 64 << 20;

/// Opens the file. Tests replace it with a failing disk.
pub(super) type Opener = Box<dyn Fn(&Path) -> Result<Database, StoreError> + Send + Sync>;

/// The identity and the revision in the file.
pub(super) struct Meta {
    pub(super) identity: String,
    pub(super) revision: u64,
}

/// A failed read, before it becomes a [`StoreError`].
pub(super) enum StoreReadError {
    Redb(redb::Error),
    Row(String),
}

impl<E: Into<redb::Error>> From<E> for StoreReadError {
    fn from(error: E) -> Self {
        Self::Redb(error.into())
    }
}

impl StoreReadError {
    /// redb demands a reopen after an I/O error; corruption stays.
    pub(super) fn needs_reopen(&self) -> bool {
        matches!(self, Self::Redb(redb::Error::Io(_) | redb::Error::PreviousIo | redb::Error::DatabaseClosed))
    }

    pub(super) fn into_store_error(self, path: &Path) -> StoreError {
        match self {
            Self::Redb(error) => store_error(error, path),
            Self::Row(what) => StoreError::Corrupted { path: path.to_path_buf(), what },
        }
    }
}

/// Creates the directory and, if the file does not exist, a new store in it.
pub(super) fn create_if_missing(path: &Path) -> Result<(), StoreError> {
    let directory = parent_dir(path);
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(|error| store_io_error(error, directory))?;
    match inspect(path)? {
        PathStatus::Missing => create(path, directory),
        PathStatus::File { mode } => {
            if mode & 0o077 != 0 {
                tracing::warn!(path = %path.display(), "the store file was open to other users; its mode is 0600 now");
                fs::set_permissions(path, fs::Permissions::from_mode(0o600))
                    .map_err(|error| store_io_error(error, path))?;
            }
            Ok(())
        }
    }
}

/// Opens an existing file and verifies every page of it.
pub(super) fn open(path: &Path) -> Result<Database, StoreError> {
    builder().open(path).map_err(|error| store_error(error.into(), path))
}

pub(super) fn builder() -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true);
    builder
}

/// As `open` and `read_meta`, for a file that may not exist.
pub(super) fn open_if_exists(path: &Path) -> Result<Option<(Database, String)>, StoreError> {
    match inspect(path)? {
        PathStatus::Missing => Ok(None),
        PathStatus::File { .. } => {
            let database = open(path)?;
            let identity = read_meta(&database, path)?.identity;
            Ok(Some((database, identity)))
        }
    }
}

enum PathStatus {
    Missing,
    File { mode: u32 },
}

fn inspect(path: &Path) -> Result<PathStatus, StoreError> {
    let corrupted = |what: &str| StoreError::Corrupted { path: path.to_path_buf(), what: what.to_owned() };
    match fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(PathStatus::Missing),
        Err(error) => Err(store_io_error(error, path)),
        Ok(metadata) if !metadata.is_file() => Err(corrupted("it is not a file")),
        // redb would create a new store in an empty file, and every data plane would drop its
        // configuration.
        Ok(metadata) if metadata.len() == 0 => Err(corrupted("it is empty")),
        Ok(metadata) => Ok(PathStatus::File { mode: metadata.permissions().mode() }),
    }
}

pub(super) fn parent_dir(path: &Path) -> &Path {
    path.parent().filter(|directory| !directory.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A temporary name in the directory of `path`.
pub(super) fn temp_path(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".new-{:016x}", rand::random::<u64>()));
    parent_dir(path).join(name)
}

fn create(path: &Path, directory: &Path) -> Result<(), StoreError> {
    let temp_path = temp_path(path);
    let created = initialize(&temp_path).and_then(|()| match fs::hard_link(&temp_path, path) {
        // Another process created the store first; that one is used.
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        linked => linked.map_err(|error| store_io_error(error, path)),
    });
    let removed = fs::remove_file(&temp_path);
    created?;
    removed.map_err(|error| store_io_error(error, &temp_path))?;
    sync_dir(directory)
}

/// Opens a store file for reading: a regular file with redb's magic bytes. Does not block on a FIFO
/// or a device.
pub(super) fn open_checked(path: &Path) -> Result<File, StoreError> {
    let corrupted = |what: String| StoreError::Corrupted { path: path.to_path_buf(), what };
    let mut file = bounded_read::open_regular(path).map_err(|error| match error {
        bounded_read::ReadError::Io(error) => store_io_error(error, path),
        other => corrupted(other.to_string()),
    })?;
    let mut start = [0; MAGIC.len()];
    match file.read_exact(&mut start).and_then(|()| file.rewind()) {
        Ok(()) if start == *MAGIC => Ok(file),
        Err(error) if error.kind() != ErrorKind::UnexpectedEof => Err(store_io_error(error, path)),
        _ => Err(corrupted("it does not begin as a store of redb does".to_owned())),
    }
}

/// Removes the temporary files ([`temp_path`]) of killed processes. A temporary file in use is
/// locked, or younger than a minute.
pub(super) fn remove_stale_temp_files(path: &Path) {
    let (Some(name), Ok(entries)) = (path.file_name(), fs::read_dir(parent_dir(path))) else { return };
    let prefix = format!("{}.new-", name.to_string_lossy());
    for entry in entries.flatten() {
        let name = entry.file_name();
        let suffix = name.to_str().and_then(|name| name.strip_prefix(&prefix));
        let is_ours = suffix.is_some_and(|hex| hex.len() == 16 && hex.bytes().all(|b| b.is_ascii_hexdigit()));
        let is_stale = |file: &File| {
            let age = file.metadata().and_then(|metadata| metadata.modified()).map(|at| at.elapsed());
            age.is_ok_and(|age| age.is_ok_and(|age| age > STALE_TEMP_AGE))
        };
        if is_ours
            && let Ok(file) = bounded_read::open_regular(&entry.path())
            && is_stale(&file)
            && file.try_lock().is_ok()
        {
            let removed = fs::remove_file(entry.path());
            tracing::info!(path = %entry.path().display(), error = ?removed.err(), "removed a file that was left half made");
        }
    }
}

/// Copies a closed store file, durably; the copy has mode 0600 from its first byte.
pub(super) fn copy(from: &Path, copy: &Path) -> Result<(), StoreError> {
    let mut source = open_checked(from)?;
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(parent_dir(copy))
        .map_err(|error| store_io_error(error, parent_dir(copy)))?;
    create_owner_only(copy)?;
    let copied = OpenOptions::new().write(true).open(copy).and_then(|mut file| {
        file.lock()?;
        io::copy(&mut source, &mut file)?;
        file.sync_all()
    });
    copied.map_err(|error| store_io_error(error, copy))
}

/// A rename is durable only after its directory was synced.
pub(super) fn sync_dir(directory: &Path) -> Result<(), StoreError> {
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(|error| store_io_error(error, directory))
}

/// Creates an empty file of mode 0600.
pub(super) fn create_owner_only(path: &Path) -> Result<(), StoreError> {
    let created = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    created.map(drop).map_err(|error| store_io_error(error, path))
}

fn initialize(temp_path: &Path) -> Result<(), StoreError> {
    create_owner_only(temp_path)?;
    let identity = format!("{:032x}", rand::random::<u128>());
    let write = || -> Result<(), redb::Error> {
        let database = Builder::new().create(temp_path)?;
        let transaction = database.begin_write()?;
        {
            transaction.open_table(ITEMS)?;
            let mut counters = transaction.open_table(COUNTERS)?;
            counters.insert(FORMAT, FORMAT_VERSION)?;
            counters.insert(REVISION, 0)?;
            transaction.open_table(TEXTS)?.insert(IDENTITY, identity.as_str())?;
        }
        transaction.commit()?;
        database.close()?;
        Ok(())
    };
    write().map_err(|error| store_error(error, temp_path))
}

/// Checks the format version, then reads identity and revision.
pub(super) fn read_meta(database: &Database, path: &Path) -> Result<Meta, StoreError> {
    let corrupted = |what: &str| StoreError::Corrupted { path: path.to_path_buf(), what: what.to_owned() };
    let read = || -> Result<_, StoreReadError> {
        let transaction = database.begin_read()?;
        let counters = transaction.open_table(COUNTERS)?;
        let format = counters.get(FORMAT)?.map(|row| row.value());
        // The version decides the layout of the other tables.
        if format != Some(FORMAT_VERSION) {
            return Ok((format, None, None));
        }
        let revision = counters.get(REVISION)?.map(|row| row.value());
        let identity = transaction.open_table(TEXTS)?.get(IDENTITY)?.map(|row| row.value().to_owned());
        transaction.open_table(ITEMS)?;
        Ok((format, revision, identity))
    };
    match read().map_err(|error| error.into_store_error(path))? {
        (Some(FORMAT_VERSION), Some(revision), Some(identity)) => Ok(Meta { identity, revision }),
        (Some(FORMAT_VERSION), ..) => Err(corrupted("it does not say its revision or identity")),
        (Some(found), ..) => {
            Err(StoreError::UnsupportedFormat { path: path.to_path_buf(), found, supported: FORMAT_VERSION })
        }
        (None, ..) => Err(corrupted("it does not say its format version")),
    }
}

pub(super) fn revision(transaction: &ReadTransaction) -> Result<u64, StoreReadError> {
    Ok(transaction.open_table(COUNTERS)?.get(REVISION)?.map_or(0, |row| row.value()))
}

pub(super) fn internal_entry(
    database: &Database,
    name: &str,
) -> Result<Option<InternalEntry>, StoreReadError> {
    let table = match database.begin_read()?.open_table(INTERNAL_ENTRIES) {
        Err(TableError::TableDoesNotExist(_)) => return Ok(None),
        table => table?,
    };
    let entry = table.get(name)?.map(|row| {
        let (version, text) = row.value();
        InternalEntry { version, text: Zeroizing::new(text.to_owned()) }
    });
    Ok(entry)
}

pub(super) fn decode_row(
    name: &str,
    (created, modified, text): (u64, u64, &[u8]),
) -> Result<StoredDocument, StoreReadError> {
    let key = parse_key(name)?;
    let document = json::parse(text)
        .map_err(|error| StoreReadError::Row(format!("the document of {name} is not JSON: {error}")))?;
    Ok(StoredDocument {
        key,
        document,
        create_revision: created,
        mod_revision: modified,
        stale_extensions: false,
        salvaged: None,
    })
}

pub(super) fn parse_key(name: &str) -> Result<Key, StoreReadError> {
    let parsed = name
        .split_once('/')
        .and_then(|(plural, id)| Some(Key { kind: Kind::from_plural(plural)?, id: Id::parse(id).ok()? }));
    parsed.ok_or_else(|| StoreReadError::Row(format!("`{name}` is not the name of a resource")))
}

/// Maps redb's error to the store's.
pub(super) fn store_error(error: redb::Error, path: &Path) -> StoreError {
    let corrupted = |what: String| StoreError::Corrupted { path: path.to_path_buf(), what };
    match error {
        redb::Error::Io(error) => store_io_error(error, path),
        redb::Error::DatabaseAlreadyOpen | redb::Error::LockProtocolMismatch => {
            StoreError::Locked { path: path.to_path_buf() }
        }
        redb::Error::Corrupted(what) => corrupted(what),
        redb::Error::UpgradeRequired(version) => {
            corrupted(format!("its redb file format {version} is too old"))
        }
        error @ (redb::Error::TableDoesNotExist(_)
        | redb::Error::TableTypeMismatch { .. }
        | redb::Error::TypeDefinitionChanged { .. }
        | redb::Error::TableIsMultimap(_)) => corrupted(format!("it is not a countersign store: {error}")),
        error => StoreError::Unavailable { what: error.to_string() },
    }
}

pub(super) fn store_io_error(error: io::Error, path: &Path) -> StoreError {
    let path = path.to_path_buf();
    match error.kind() {
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            StoreError::Permission { path, what: error.to_string() }
        }
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
            StoreError::DiskFull { path }
        }
        ErrorKind::InvalidData | ErrorKind::UnexpectedEof => {
            StoreError::Corrupted { path, what: error.to_string() }
        }
        _ => StoreError::Unavailable { what: format!("{}: {error}", path.display()) },
    }
}
