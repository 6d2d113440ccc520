//! Where log lines go: standard error or a file; and the requests to change it.
//!
//! Invariant: a request is served by the writer thread between two lines, and a failed one changes
//! nothing.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::libc::{ENXIO, O_NOCTTY, O_NONBLOCK};
use nix::unistd::{AccessFlags, access};

/// A log file cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum LogFileError {
    /// The system refuses it.
    #[error("{path}: {error}{hint}", path = .path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// The reason.
        error: io::Error,
        /// What to do.
        hint: &'static str,
    },
    /// Its disk does not answer, or the old log's reader has stopped.
    #[error("{path}: the log thread did not open it in time", path = .path.display())]
    TimedOut {
        /// The file.
        path: PathBuf,
    },
}

/// An open log.
#[derive(Debug)]
pub(super) enum Output {
    Stderr(io::Stderr),
    /// A regular file: a line of any length is appended whole by one `write(2)`, also where two
    /// processes write to it.
    File(File),
    /// A pipe, a terminal or another device.
    Stream(OwnedFd),
}

impl AsFd for Output {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Stderr(stderr) => stderr.as_fd(),
            Self::File(file) => file.as_fd(),
            Self::Stream(stream) => stream.as_fd(),
        }
    }
}

impl Output {
    pub(super) fn stderr() -> Self {
        Self::Stderr(io::stderr())
    }

    /// Opens a file for appending, and makes it when it is not there.
    fn open(path: &Path) -> Result<Self, LogFileError> {
        // O_NONBLOCK: a FIFO without a reader is an error; the open would wait for one otherwise.
        let opened = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o640)
            .custom_flags(O_NONBLOCK | O_NOCTTY)
            .open(path)
            .and_then(|file| Ok((file.metadata()?.file_type(), file)));
        match opened {
            Ok((kind, _)) if kind.is_socket() || kind.is_block_device() => {
                let error = io::ErrorKind::InvalidInput.into();
                Err(LogFileError::Open { path: path.to_owned(), error, hint: " (it is no file)" })
            }
            Ok((kind, file)) if kind.is_file() => Ok(Self::File(file)),
            Ok((_, file)) => Ok(Self::Stream(file.into())),
            Err(error) => Err(unusable(path, error)),
        }
    }

    /// Whether a line is written by one call, whatever its length.
    pub(super) fn is_file(&self) -> bool {
        matches!(self, Self::File(_))
    }
}

/// Checks that a file can be opened, or made in its folder; makes none.
pub(super) fn check(path: &Path) -> Result<(), LogFileError> {
    let checked = match path.symlink_metadata() {
        // The reader of a pipe would see that it is opened.
        Ok(metadata) if !metadata.is_file() => access(path, AccessFlags::W_OK),
        Ok(_) => {
            return OpenOptions::new()
                .append(true)
                .open(path)
                .map(drop)
                .map_err(|error| unusable(path, error));
        }
        Err(_) => {
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
            access(folder.unwrap_or(Path::new(".")), AccessFlags::W_OK | AccessFlags::X_OK)
        }
    };
    checked.map_err(|error| unusable(path, error.into()))
}

fn unusable(path: &Path, error: io::Error) -> LogFileError {
    LogFileError::Open { path: path.to_owned(), hint: hint(&error), error }
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => " (make its folder first)",
        io::ErrorKind::PermissionDenied => " (this program's user must be allowed to write it)",
        _ if error.raw_os_error() == Some(ENXIO) => {
            " (nothing reads this pipe or socket; for the standard error write stderr)"
        }
        _ => "",
    }
}

struct Request {
    /// `None`: standard error.
    path: Option<PathBuf>,
    /// Gets the result; `None`: the log has it.
    done: Option<SyncSender<Result<(), LogFileError>>>,
}

/// The changes that the writer thread has not made yet.
#[derive(Default)]
pub(super) struct OutputRequests {
    is_pending: AtomicBool,
    requests: Mutex<Vec<Request>>,
    /// The file that lines go to.
    file: Mutex<Option<PathBuf>>,
}

impl OutputRequests {
    pub(super) fn request(&self, path: Option<PathBuf>) -> Receiver<Result<(), LogFileError>> {
        let (done, changed) = sync_channel(1);
        self.push(Request { path, done: Some(done) });
        changed
    }

    /// A request whose result is logged.
    pub(super) fn request_unattended(&self, path: PathBuf) {
        self.push(Request { path: Some(path), done: None });
    }

    fn push(&self, request: Request) {
        lock(&self.requests).push(request);
        self.is_pending.store(true, Ordering::Release);
    }

    /// Serves the requests: the output that takes the place of the current one, if any.
    pub(super) fn serve(&self) -> Option<Output> {
        if !self.is_pending.swap(false, Ordering::AcqRel) {
            return None;
        }
        let requests = std::mem::take(&mut *lock(&self.requests));
        let mut output = None;
        for Request { path, done } in requests {
            let opened = path.as_deref().map_or_else(|| Ok(Output::stderr()), Output::open);
            let result = opened.map(|opened| {
                *lock(&self.file) = path;
                output = Some(opened);
            });
            match (done, result) {
                // The caller may have stopped waiting.
                (Some(done), result) => drop(done.try_send(result)),
                (None, Ok(())) => tracing::info!("the log file was opened again"),
                (None, Err(error)) => {
                    tracing::error!(%error, "the log file cannot be opened again; the log goes on in the old one");
                }
            }
        }
        output
    }

    pub(super) fn file(&self) -> Option<PathBuf> {
        lock(&self.file).clone()
    }
}

/// What the locks guard is whole after any panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
