//! `controlplane backup` and `controlplane restore`: copy the embedded store to a file and back.
//!
//! A backup is a store file: all documents at one revision, the store's identity, ticket secrets
//! and deny-list; private keys stay sealed. It comes from the running control plane
//! (`store::backup_socket`), or from the file of a stopped one.
//!
//! Invariants: a written backup is complete, durable and was read back; a replaced store is kept; a
//! restore never admits a node that the deny-list of the replaced store denies.

use std::fs;
use std::io::{self, BufReader, BufWriter};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use conf::{ConfigProvider, Settings};

use crate::publish::DeniedNodes;
use crate::publish::deny_list::{DenyList, DenyListError};
use crate::store::backup_socket;
use crate::store::{BackupStreamError, BackupSummary, EmbeddedStore, Store, StoreError};

const BACKUP_EXAMPLES: &str = "Examples:
  controlplane backup --to backups/store-2026-11-29.redb     beside a running control plane, or a stopped one
  controlplane restore --from backups/store-2026-11-29.redb  the control plane must be stopped

The file holds private keys as the store does: sealed by the keyring (countersign.keyring_file,
apisix.data_encryption.keyring), which is not in it. Keep that, too.
With etcd as the store use `etcdctl snapshot save`.";

/// Copy the embedded store to a file, also while the control plane runs.
#[derive(Debug, Args)]
#[command(after_help = BACKUP_EXAMPLES)]
pub(crate) struct BackupArgs {
    /// The file to make (mode 0600)
    #[arg(long, value_name = "PATH")]
    to: PathBuf,
    /// Replace an existing backup
    #[arg(long)]
    overwrite: bool,
}

/// Restore a backup as the embedded store. The control plane must be stopped.
#[derive(Debug, Args)]
#[command(after_help = BACKUP_EXAMPLES)]
pub(crate) struct RestoreArgs {
    /// A file that `controlplane backup` made
    #[arg(long, value_name = "PATH")]
    from: PathBuf,
}

/// A failed backup or restore. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BackupError {
    #[error("{0}")]
    Configuration(#[from] conf::ConfError),
    #[error(
        "the store is an etcd cluster (deployment.role_traditional.config_provider): use `etcdctl snapshot save` and `restore`, or \
         `controlplane copy --from etcd --to yaml:PATH`"
    )]
    Etcd,
    #[error("there is no store {path} (countersign.store.path): is this the right configuration?", path = .0.display())]
    NoStore(PathBuf),
    #[error("--from: there is no file {path}", path = .0.display())]
    NoBackup(PathBuf),
    #[error("--to: {path} exists; --overwrite replaces it", path = .0.display())]
    Exists(PathBuf),
    #[error(
        "--to: {path} is not replaced: {problem}. --overwrite replaces nothing but backups; give another name, or remove it yourself",
        path = .path.display()
    )]
    NotReplaced { path: PathBuf, problem: String },
    /// The control plane binds a socket at this path.
    #[error("--to: {path} is the socket of the control plane beside its store: give another name", path = .0.display())]
    SocketPath(PathBuf),
    #[error("--from: {path}: {problem}; it must be a file that `controlplane backup` made", path = .path.display())]
    NotBackup { path: PathBuf, problem: String },
    /// The running control plane does not respond.
    #[error(
        "the running control plane at {socket} sent nothing for {seconds} s: it hangs or is stopped, or it gives another backup now. \
         Nothing was changed",
        socket = .socket.display()
    )]
    Timeout { socket: PathBuf, seconds: u64 },
    /// The backup and the store are one file.
    #[error("{path} is the store itself", path = .0.display())]
    SameFile(PathBuf),
    #[error("cannot ask the running control plane at {socket}: {error}; run this as its user or as root", socket = socket.display())]
    Socket { socket: PathBuf, error: io::Error },
    #[error("{0}")]
    Store(#[from] StoreError),
    /// The backup stream is incomplete or cannot be written.
    #[error("{0}; nothing was changed")]
    Rows(#[from] BackupStreamError),
    #[error("the deny-list of data planes cannot be carried over: {0}")]
    Denied(#[from] DenyListError),
    #[error("{path}: {error}", path = path.display())]
    File { path: PathBuf, error: io::Error },
    #[error("cannot write the report: {0}")]
    Report(#[from] io::Error),
}

/// Makes a backup and prints a summary to `out`.
///
/// # Errors
/// [`BackupError`].
pub(crate) fn backup(config: &Path, args: &BackupArgs, out: &mut dyn io::Write) -> Result<(), BackupError> {
    let settings = conf::load(config)?;
    let path = store_path(&settings)?;
    let to = &args.to;
    check_distinct(to, path)?;
    check_target(to, path, args.overwrite)?;
    let file_error = |error| BackupError::Socket { socket: backup_socket::socket_path(path), error };
    let (summary, from) = match backup_socket::connect(path).map_err(file_error)? {
        Some(control_plane) => (
            receive(control_plane, args).map_err(|error| map_timeout(error, path))?,
            "the running control plane",
        ),
        None if !path.exists() => return Err(BackupError::NoStore(path.to_owned())),
        None => (backup_closed_store(path, args)?, "the file, which no control plane had open"),
    };
    let BackupSummary { identity, revision, documents, digest } = summary;
    writeln!(out, "from {}: {from}", path.display())?;
    writeln!(out, "to {}: {documents} documents at revision {revision} of store {identity}", to.display())?;
    writeln!(out, "verified: read back, SHA-256 of its content {digest}")?;
    Ok(())
}

/// Checks the target. An existing device, symbolic link or foreign file is never replaced, only a
/// backup.
fn check_target(to: &Path, store: &Path, overwrite: bool) -> Result<(), BackupError> {
    let socket = backup_socket::socket_path(store);
    let directory = |path: &Path| EmbeddedStore::parent_dir(path).canonicalize().ok();
    if to.file_name() == socket.file_name() && directory(to) == directory(&socket) {
        return Err(BackupError::SocketPath(to.to_owned()));
    }
    let not_replaced = |problem: String| Err(BackupError::NotReplaced { path: to.to_owned(), problem });
    match to.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(BackupError::File { path: to.to_owned(), error }),
        Ok(_) if !overwrite => Err(BackupError::Exists(to.to_owned())),
        Ok(metadata) if metadata.is_symlink() => not_replaced("it is a symbolic link".to_owned()),
        Ok(_) => EmbeddedStore::check_header(to).or_else(|error| not_replaced(short_cause(error))),
    }
}

/// The cause without advice that applies to the configured store only.
fn short_cause(error: StoreError) -> String {
    match error {
        StoreError::Corrupted { what, .. } => what,
        other => other.to_string(),
    }
}

/// Tells a control plane that hangs from a broken connection.
fn map_timeout(error: BackupError, store: &Path) -> BackupError {
    match error {
        BackupError::Rows(BackupStreamError::Connection(error))
            if error.kind() == io::ErrorKind::WouldBlock =>
        {
            let seconds = backup_socket::RECEIVE_TIMEOUT.as_secs();
            BackupError::Timeout { socket: backup_socket::socket_path(store), seconds }
        }
        other => other,
    }
}

fn receive(from: UnixStream, args: &BackupArgs) -> Result<BackupSummary, BackupError> {
    Ok(EmbeddedStore::create_from_backup(&mut BufReader::new(from), &args.to, args.overwrite)?)
}

/// The store of a stopped control plane, by the same stream.
fn backup_closed_store(path: &Path, args: &BackupArgs) -> Result<BackupSummary, BackupError> {
    let store = EmbeddedStore::open(path)?;
    let (sender, receiver) = UnixStream::pair()?;
    std::thread::scope(|scope| {
        let sender_thread = scope.spawn(|| store.write_backup(&mut BufWriter::new(sender)).map(drop));
        let received = receive(receiver, args);
        match sender_thread.join() {
            // The store's error is closer to the cause than the truncated stream.
            Ok(Err(BackupStreamError::Store(error))) => Err(error.into()),
            _ => received,
        }
    })
}

/// Restores a backup and prints a summary to `out`.
///
/// # Errors
/// [`BackupError`].
pub(crate) async fn restore(
    config: &Path,
    args: &RestoreArgs,
    out: &mut dyn io::Write,
) -> Result<(), BackupError> {
    let settings = conf::load(config)?;
    let path = store_path(&settings)?;
    let from = &args.from;
    if !from.exists() {
        return Err(BackupError::NoBackup(from.clone()));
    }
    check_distinct(from, path)?;
    EmbeddedStore::check_header(from)
        .map_err(|error| BackupError::NotBackup { path: from.clone(), problem: short_cause(error) })?;
    EmbeddedStore::remove_stale_temp_files(path);
    // Held open during the restore, so that no control plane starts meanwhile.
    let old_store = match path.exists().then(|| EmbeddedStore::open(path)) {
        None => None,
        Some(Ok(store)) => Some(Arc::new(store)),
        Some(Err(error @ (StoreError::Corrupted { .. } | StoreError::UnsupportedFormat { .. }))) => {
            writeln!(out, "warning: {error}")?;
            writeln!(
                out,
                "warning: its deny-list of data planes cannot be carried over: deny those again that must stay out"
            )?;
            None
        }
        Some(Err(error)) => return Err(error.into()),
    };
    let temp_path = EmbeddedStore::temp_path(path);
    let prepared = prepare(from, &temp_path, old_store.clone()).await;
    let installed = match prepared {
        Ok((summary, denied)) => install(&temp_path, path).map(|kept_path| (summary, denied, kept_path)),
        Err(error) => Err(error),
    };
    // Absent after the rename.
    let _gone = fs::remove_file(&temp_path);
    let (summary, denied, kept_path) = installed?;
    let BackupSummary { identity, revision, documents, .. } = summary;
    writeln!(out, "{}: {documents} documents at revision {revision} of store {identity}", path.display())?;
    if let Some(kept_path) = kept_path {
        let old_revision =
            old_store.map_or_else(String::new, |store| format!(" (revision {})", store.revision()));
        writeln!(out, "the store before is kept in {}{old_revision}", kept_path.display())?;
    }
    if denied > 0 {
        writeln!(out, "deny-list of data planes: {denied} entries of the store before were carried over")?;
    }
    writeln!(out, "start the control plane: the data planes follow it back to this revision")?;
    Ok(())
}

/// Prepares a verified copy of the backup beside the store, with the deny-list entries of both.
async fn prepare(
    from: &Path,
    temp_path: &Path,
    old_store: Option<Arc<EmbeddedStore>>,
) -> Result<(BackupSummary, usize), BackupError> {
    let source = EmbeddedStore::open_copy(from, temp_path)?;
    let summary = source.write_backup(&mut io::sink())?;
    let source: Arc<dyn Store> = Arc::new(source);
    let mut added = 0;
    if let Some(old_store) = old_store {
        let denied: DenyList = DeniedNodes::load(old_store).await?.list().borrow().as_ref().clone();
        added = DeniedNodes::load(source).await?.merge(&denied).await?;
    }
    Ok((summary, added))
}

/// Installs the new file as the store. Returns where the old store is kept.
fn install(temp_path: &Path, path: &Path) -> Result<Option<PathBuf>, BackupError> {
    let file_error = |path: &Path| {
        let path = path.to_owned();
        move |error| BackupError::File { path, error }
    };
    let mut kept_path = None;
    if path.exists() {
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".replaced-{seconds}"));
        let aside = path.with_file_name(name);
        // The link comes first, so that the store's path always names one of both.
        fs::hard_link(path, &aside).map_err(file_error(&aside))?;
        kept_path = Some(aside);
    }
    fs::rename(temp_path, path).map_err(file_error(path))?;
    EmbeddedStore::sync_parent_dir(path)?;
    Ok(kept_path)
}

fn store_path(settings: &Settings) -> Result<&Path, BackupError> {
    match settings.deployment.provider {
        ConfigProvider::Etcd => Err(BackupError::Etcd),
        ConfigProvider::Embedded => Ok(&settings.countersign.store.path),
    }
}

fn check_distinct(file: &Path, store: &Path) -> Result<(), BackupError> {
    let real = |path: &Path| path.canonicalize().ok();
    match (real(file), real(store)) {
        (Some(file), Some(store)) if file == store => Err(BackupError::SameFile(file)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
