//! The socket beside the store file from which `controlplane backup` reads the backup stream of a
//! running control plane.
//!
//! Only the process that has the store open can read it, because it holds the file's lock. The
//! socket accepts the same user and root: by its mode, and by the peer credentials from the kernel.
//! It serves one backup at a time.

use std::fs;
use std::io::{self, BufWriter};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use process::unix_path::ShortPath;
use tokio::net::UnixListener;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use crate::store::{BackupStreamError, EmbeddedStore};

/// A stalled reader must not pin the pages of an old revision.
const SEND_TIMEOUT: Duration = Duration::from_secs(60);
/// For a control plane that hangs or is stopped.
pub(crate) const RECEIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// How often the socket is checked: a cleanup of the directory may remove it.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// The socket of the store at `path`.
pub(crate) fn socket_path(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".sock");
    path.with_file_name(name)
}

/// A listener that removes its socket when dropped.
struct BackupListener {
    listener: UnixListener,
    socket: PathBuf,
    /// Device and inode of the socket.
    file: (u64, u64),
    /// The user id of this process.
    user: u32,
}

impl BackupListener {
    /// Whether the path still names this socket.
    fn is_bound(&self) -> bool {
        file_id(&self.socket).is_ok_and(|file| file == self.file)
    }

    /// Binds again if the socket's path is gone.
    fn rebind_if_missing(&mut self, store: &Path) {
        if self.is_bound() {
            return;
        }
        match bind(store) {
            Ok(bound) => {
                tracing::warn!(socket = %self.socket.display(), "the socket for backups was gone; it is bound again");
                *self = bound;
            }
            Err(error) => tracing::debug!(%error, "the socket for backups is gone and cannot be bound again"),
        }
    }
}

impl Drop for BackupListener {
    fn drop(&mut self) {
        // Another file may have the path by now.
        if self.is_bound() {
            let _gone = fs::remove_file(&self.socket);
        }
    }
}

fn file_id(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

/// Serves backups until it is stopped.
pub(crate) struct BackupServer {
    task: Option<JoinHandle<()>>,
    /// Held by a backup that is being sent.
    turn: Arc<Semaphore>,
}

impl BackupServer {
    /// Accepts no further backup and waits for the present one. Whether it ended in time; what is
    /// being sent goes on otherwise.
    pub(crate) async fn stop(self, max: Duration) -> bool {
        if let Some(task) = self.task {
            // The listener is dropped, and its socket removed.
            task.abort();
            let _cancelled = task.await;
        }
        tokio::time::timeout(max, self.turn.acquire()).await.is_ok()
    }
}

/// Serves backups while the store is in use. If the socket cannot be bound, logs a warning.
pub(crate) fn serve(store: &Arc<EmbeddedStore>, path: &Path) -> BackupServer {
    let turn = Arc::new(Semaphore::new(1));
    let task = match bind(path) {
        Ok(listener) => {
            let serving = accept_loop(
                listener,
                Arc::downgrade(store),
                path.to_owned(),
                CHECK_INTERVAL,
                Arc::clone(&turn),
            );
            Some(tokio::spawn(serving))
        }
        Err(error) => {
            tracing::warn!(
            %error,
            socket = %socket_path(path).display(),
            "no backup can be made while the control plane runs: the socket cannot be made"
            );
            None
        }
    };
    BackupServer { task, turn }
}

fn bind(path: &Path) -> io::Result<BackupListener> {
    let socket = socket_path(path);
    let short_path = ShortPath::of(&socket)?;
    match fs::symlink_metadata(short_path.path()) {
        // This process holds the lock of the store, so an existing socket belongs to a dead
        // process.
        Ok(metadata) if metadata.file_type().is_socket() => fs::remove_file(short_path.path())?,
        Ok(_) => {
            return Err(io::Error::other("there is a file of its name, which is no socket: move it away"));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let listener = UnixListener::bind(short_path.path())?;
    fs::set_permissions(short_path.path(), fs::Permissions::from_mode(0o600))?;
    let user = fs::metadata("/proc/self")?.uid();
    let file = file_id(short_path.path())?;
    Ok(BackupListener { listener, socket, file, user })
}

async fn accept_loop(
    mut listener: BackupListener,
    store: Weak<EmbeddedStore>,
    path: PathBuf,
    check_interval: Duration,
    one_at_a_time: Arc<Semaphore>,
) {
    loop {
        let stream = match tokio::time::timeout(check_interval, listener.listener.accept()).await {
            // Checked only when idle: a connection proves that the path exists.
            Err(_) => {
                // Held during the check: once the store is closed, the path may belong to another
                // process.
                let Some(_store) = store.upgrade() else { return };
                listener.rebind_if_missing(&path);
                continue;
            }
            Ok(Ok((stream, _))) => stream,
            Ok(Err(error)) => {
                tracing::warn!(%error, "the socket for backups cannot accept a connection");
                tokio::time::sleep(ACCEPT_BACKOFF).await;
                continue;
            }
        };
        let peer = stream.peer_cred().map(|peer| peer.uid());
        if !peer.as_ref().is_ok_and(|user| *user == listener.user || *user == 0) {
            tracing::warn!(user = ?peer.ok(), "denied a backup to another user");
            continue;
        }
        let (Ok(stream), Some(store)) = (stream.into_std(), store.upgrade()) else { continue };
        let one_at_a_time = Arc::clone(&one_at_a_time);
        tokio::spawn(async move {
            // The semaphore is never closed.
            let permit = one_at_a_time.acquire_owned().await;
            let result = tokio::task::spawn_blocking(move || send(&store, stream)).await;
            drop(permit);
            if let Ok(Err(error)) = result {
                tracing::warn!(%error, "a backup was sent incompletely");
            }
        });
    }
}

fn send(store: &EmbeddedStore, stream: UnixStream) -> Result<(), BackupStreamError> {
    let configured =
        stream.set_nonblocking(false).and_then(|()| stream.set_write_timeout(Some(SEND_TIMEOUT)));
    configured.map_err(BackupStreamError::Connection)?;
    let summary = store.write_backup(&mut BufWriter::new(stream))?;
    tracing::info!(revision = summary.revision, documents = summary.documents, "sent a backup of the store");
    Ok(())
}

/// Connects to the control plane that has the store open; `None` if none listens.
///
/// # Errors
/// When a control plane may listen and is unreachable.
pub(crate) fn connect(path: &Path) -> io::Result<Option<UnixStream>> {
    let connection =
        ShortPath::of(&socket_path(path)).and_then(|short_path| UnixStream::connect(short_path.path()));
    match connection {
        Ok(stream) => {
            stream.set_read_timeout(Some(RECEIVE_TIMEOUT))?;
            Ok(Some(stream))
        }
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_removed_socket_is_bound_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store.redb");
        let store = Arc::new(EmbeddedStore::open(&path).unwrap());
        let (listener, weak) = (bind(&path).unwrap(), Arc::downgrade(&store));
        tokio::spawn(accept_loop(
            listener,
            weak,
            path.clone(),
            Duration::from_millis(1),
            Arc::new(Semaphore::new(1)),
        ));
        fs::remove_file(socket_path(&path)).unwrap();
        while connect(&path).unwrap().is_none() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_file_with_the_path_of_the_socket_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store.redb");
        let mut listener = bind(&path).unwrap();
        fs::remove_file(socket_path(&path)).unwrap();
        fs::write(socket_path(&path), "precious").unwrap();
        listener.rebind_if_missing(&path);
        drop(listener);
        assert!(bind(&path).err().unwrap().to_string().contains("no socket"));
        assert_eq!(fs::read(socket_path(&path)).unwrap(), b"precious");
    }
}
