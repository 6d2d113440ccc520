//! How a running control plane gives its embedded store to `controlplane backup`: a socket beside the store file, on which whoever
//! connects is sent all rows.
//!
//! The store file is locked by the process that has it open, so only that process can read it. The socket can be used by the same user
//! and by root: its mode says so, and the kernel's word about the other end. One backup at a time.

use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::sync::Semaphore;

use crate::store::Embedded;

/// For the other end to take some bytes: a backup that is not read must not hold the pages of an old revision for ever.
const SEND_TIMEOUT: Duration = Duration::from_secs(60);
/// After an accept that failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The socket of the store at `path`.
pub(super) fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".sock");
    path.with_file_name(name)
}

/// A name of the socket that is short enough for one (108 bytes), however long its path is: by way of its open folder.
struct Short {
    _folder: File,
    path: PathBuf,
}

impl Short {
    fn of(socket: &Path) -> io::Result<Self> {
        let folder = socket.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = File::open(folder.unwrap_or(Path::new(".")))?;
        let path = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string());
        let path = path.join(socket.file_name().unwrap_or_default());
        Ok(Self { _folder: folder, path })
    }
}

/// Removes the socket with the task that listens on it.
struct Listening {
    listener: UnixListener,
    socket: PathBuf,
    /// The user that the process runs as.
    user: u32,
}

impl Drop for Listening {
    fn drop(&mut self) {
        // It may have been removed by somebody else.
        let _gone = fs::remove_file(&self.socket);
    }
}

/// Gives backups for as long as the store is used. Where that cannot be, the control plane runs without: the log says so.
pub fn serve(store: &Arc<Embedded>, path: &Path) {
    match listen(path) {
        Ok(listening) => drop(tokio::spawn(give(listening, Arc::downgrade(store)))),
        Err(error) => tracing::warn!(
            %error,
            socket = %beside(path).display(),
            "no backup can be made while the control plane runs: the socket cannot be made"
        ),
    }
}

fn listen(path: &Path) -> io::Result<Listening> {
    let socket = beside(path);
    let short = Short::of(&socket)?;
    // The file is locked by us, so a socket that is there is of a process that has died.
    match fs::remove_file(&short.path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&short.path)?;
    fs::set_permissions(&short.path, fs::Permissions::from_mode(0o600))?;
    let user = fs::metadata("/proc/self")?.uid();
    Ok(Listening { listener, socket, user })
}

async fn give(listening: Listening, store: Weak<Embedded>) {
    let one = Arc::new(Semaphore::new(1));
    loop {
        let stream = match listening.listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "the socket for backups cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let peer = stream.peer_cred().map(|peer| peer.uid());
        if !peer.as_ref().is_ok_and(|user| *user == listening.user || *user == 0) {
            tracing::warn!(user = ?peer.ok(), "refused a backup to another user");
            continue;
        }
        let (Ok(stream), Some(store)) = (stream.into_std(), store.upgrade()) else { continue };
        let one = Arc::clone(&one);
        tokio::spawn(async move {
            // Never closed.
            let place = one.acquire_owned().await;
            let sent = tokio::task::spawn_blocking(move || send(&store, stream)).await;
            drop(place);
            if let Ok(Err(error)) = sent {
                tracing::warn!(%error, "a backup was not sent to its end");
            }
        });
    }
}

fn send(store: &Embedded, stream: UnixStream) -> Result<(), crate::store::RowsError> {
    let ready = stream.set_nonblocking(false).and_then(|()| stream.set_write_timeout(Some(SEND_TIMEOUT)));
    ready.map_err(crate::store::RowsError::Connection)?;
    let summary = store.write_rows(&mut BufWriter::new(stream))?;
    tracing::info!(revision = summary.revision, documents = summary.documents, "gave a backup of the store");
    Ok(())
}

/// Connects to the control plane that has the store open; `None` when none listens.
///
/// # Errors
/// When one may listen and cannot be reached.
pub(super) fn connect(path: &Path) -> io::Result<Option<UnixStream>> {
    let connected = Short::of(&beside(path)).and_then(|short| UnixStream::connect(&short.path));
    match connected {
        Ok(stream) => {
            stream.set_read_timeout(Some(SEND_TIMEOUT))?;
            Ok(Some(stream))
        }
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}
