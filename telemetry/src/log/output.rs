//! An open target of a log: how bytes are written to a file, a pipe, a socket or a syslog server.
//!
//! Invariant: a write to anything but a regular file never waits; and a line that fits into one
//! write of a pipe is never torn, whatever else writes to it.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc::{
    ENXIO, O_ACCMODE, O_NOCTTY, O_NONBLOCK, O_RDONLY, S_IFCHR, S_IFIFO, S_IFMT, S_IFREG, S_IFSOCK,
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, send};
use nix::sys::stat::fstat;
use nix::unistd::{AccessFlags, access};

use super::syslog::SyslogOutput;

/// Bytes that a pipe takes whole, and without waiting when it polls as writable (pipe(7),
/// PIPE_BUF).
const PIECE_BYTES_MAX: usize = 4096;

/// A target of a log cannot be opened.
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
    /// Its disk does not answer.
    #[error("{target}: the log thread did not open it in time")]
    TimedOut {
        /// The target.
        target: String,
    },
    /// The name of a syslog server has no address, or the process has no descriptor left.
    #[error("{target}: {error}")]
    Syslog {
        /// The server.
        target: String,
        /// The reason.
        error: io::Error,
    },
    /// The system gives no thread or no descriptor.
    #[error("the log thread cannot be started: {0}")]
    Thread(io::Error),
}

/// An open target.
#[derive(Debug)]
pub(super) enum Output {
    /// A regular file: a batch of any length is appended whole by one `write(2)`, also where two
    /// processes write to it.
    File(Descriptor),
    /// A pipe, a terminal or another device. `nonblocking`: no other process shares its flags.
    Stream { descriptor: Descriptor, nonblocking: bool },
    /// A stream socket, such as that of systemd's journal.
    Socket(Descriptor),
    /// A syslog server.
    Syslog(SyslogOutput),
    /// Nowhere.
    Null,
}

#[derive(Debug)]
pub(super) enum Descriptor {
    Stdout(io::Stdout),
    Stderr(io::Stderr),
    Owned(OwnedFd),
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Stdout(stdout) => stdout.as_fd(),
            Self::Stderr(stderr) => stderr.as_fd(),
            Self::Owned(owned) => owned.as_fd(),
        }
    }
}

impl Output {
    pub(super) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::File(descriptor) | Self::Socket(descriptor) | Self::Stream { descriptor, .. } => {
                Some(descriptor.as_fd())
            }
            Self::Syslog(syslog) => Some(syslog.as_fd()),
            Self::Null => None,
        }
    }

    /// The standard output or standard error of the process.
    pub(super) fn standard(descriptor: Descriptor) -> Self {
        let kind = fstat(descriptor.as_fd()).map(|stat| stat.st_mode & S_IFMT);
        match kind {
            Ok(S_IFREG) => Self::File(descriptor),
            Ok(S_IFSOCK) => Self::Socket(descriptor),
            // A descriptor of our own may be non-blocking without an effect on the programs that
            // share the pipe. It may be refused: the pipe may be another user's.
            Ok(S_IFIFO | S_IFCHR) if is_open_for_writing(&descriptor) => {
                let own = format!("/proc/self/fd/{}", descriptor.as_fd().as_raw_fd());
                let opened = OpenOptions::new().write(true).custom_flags(O_NONBLOCK | O_NOCTTY).open(own);
                match opened {
                    Ok(own) => Self::Stream { descriptor: Descriptor::Owned(own.into()), nonblocking: true },
                    Err(_) => Self::Stream { descriptor, nonblocking: false },
                }
            }
            _ => Self::Stream { descriptor, nonblocking: false },
        }
    }

    /// Opens a file for appending, and makes it when it is not there.
    pub(super) fn open(path: &Path) -> Result<Self, LogFileError> {
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
            Ok((kind, file)) => {
                let descriptor = Descriptor::Owned(file.into());
                Ok(match kind.is_file() {
                    true => Self::File(descriptor),
                    false => Self::Stream { descriptor, nonblocking: true },
                })
            }
            Err(error) => Err(unusable(path, error)),
        }
    }

    /// Device and inode: two sinks of one file, pipe or terminal write through one output.
    pub(super) fn identity(&self) -> Option<(u64, u64)> {
        match self {
            Self::File(descriptor) | Self::Socket(descriptor) | Self::Stream { descriptor, .. } => {
                fstat(descriptor).ok().map(|stat| (stat.st_dev, stat.st_ino))
            }
            Self::Syslog(_) | Self::Null => None,
        }
    }

    /// Writes the first bytes of one or more lines, and returns how many; 0: the target takes none
    /// at the moment. Lines that fit into [`PIECE_BYTES_MAX`] are not cut.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<usize, Errno> {
        loop {
            let written = match self {
                Self::File(descriptor) => write_some(descriptor, bytes),
                Self::Stream { descriptor, nonblocking } => match *nonblocking || is_writable(descriptor) {
                    true => write_some(descriptor, first_piece(bytes)),
                    false => Err(Errno::EAGAIN),
                },
                Self::Socket(descriptor) => {
                    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
                    send(descriptor.as_fd().as_raw_fd(), first_piece(bytes), flags)
                }
                Self::Syslog(syslog) => {
                    let line = first_line(bytes);
                    let text = line.strip_suffix(b"\n").unwrap_or(line);
                    syslog.send(text).map(|sent| if sent { line.len() } else { 0 })
                }
                Self::Null => Ok(bytes.len()),
            };
            match written {
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(0),
                written => return written,
            }
        }
    }

    /// Whether a failed write concerns the first line alone.
    pub(super) fn fails_by_line(&self) -> bool {
        matches!(self, Self::Syslog(_))
    }
}

fn is_open_for_writing(descriptor: &Descriptor) -> bool {
    fcntl(descriptor.as_fd(), FcntlArg::F_GETFL).is_ok_and(|flags| flags & O_ACCMODE != O_RDONLY)
}

/// As `write(2)`; 0 bytes, which no file of ours takes, are an error.
fn write_some(descriptor: &Descriptor, bytes: &[u8]) -> Result<usize, Errno> {
    match nix::unistd::write(descriptor, bytes) {
        Ok(0) => Err(Errno::EIO),
        written => written,
    }
}

/// Whether a write of [`PIECE_BYTES_MAX`] does not wait. An error or a closed pipe counts, too: the
/// write returns it.
fn is_writable(descriptor: &Descriptor) -> bool {
    let mut polled = [PollFd::new(descriptor.as_fd(), PollFlags::POLLOUT)];
    !matches!(poll(&mut polled, PollTimeout::ZERO), Ok(0))
}

/// As many whole lines as a pipe takes at once; otherwise a part of the first line.
fn first_piece(bytes: &[u8]) -> &[u8] {
    let Some(most) = bytes.get(..PIECE_BYTES_MAX) else { return bytes };
    memchr::memrchr(b'\n', most).and_then(|end| most.get(..=end)).unwrap_or(most)
}

/// The first line, with its line break.
pub(super) fn first_line(bytes: &[u8]) -> &[u8] {
    memchr::memchr(b'\n', bytes).and_then(|end| bytes.get(..=end)).unwrap_or(bytes)
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
