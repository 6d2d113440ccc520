//! Reads a whole text file, bounded in time and size.
//!
//! Invariant: opening never waits for the writer of a FIFO, and at most the given number of bytes
//! is read.

use std::fs::{File, FileType, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use zeroize::Zeroizing;

/// How long to wait for the next bytes of a pipe.
const PIPE_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The system call failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The file is a FIFO, a device or a directory.
    #[error("it is {0}. It must be a regular file")]
    NotRegular(&'static str),
    /// The file is larger than this limit.
    #[error("it has more than {0} bytes")]
    TooLarge(u64),
    /// A pipe or terminal delivered no bytes for this time.
    #[error("nothing came from it for {} s: does a program write into this pipe?", .0.as_secs())]
    TimedOut(Duration),
    /// The content is not UTF-8.
    #[error("stream did not contain valid UTF-8")]
    NotUtf8,
}

impl From<ReadError> for io::Error {
    fn from(error: ReadError) -> Self {
        let kind = match &error {
            ReadError::Io(_) => None,
            ReadError::NotRegular(_) => Some(io::ErrorKind::InvalidInput),
            ReadError::TooLarge(_) => Some(io::ErrorKind::FileTooLarge),
            ReadError::TimedOut(_) => Some(io::ErrorKind::TimedOut),
            ReadError::NotUtf8 => Some(io::ErrorKind::InvalidData),
        };
        match (error, kind) {
            (ReadError::Io(error), _) => error,
            (error, kind) => Self::new(kind.unwrap_or(io::ErrorKind::Other), error.to_string()),
        }
    }
}

/// Opens a regular file for reading; other kinds of file are an error, without waiting.
///
/// # Errors
/// [`ReadError`].
pub fn open_regular(path: &Path) -> Result<File, ReadError> {
    let file = open(path)?;
    let kind = file.metadata()?.file_type();
    if kind.is_file() { Ok(file) } else { Err(ReadError::NotRegular(kind_name(kind))) }
}

/// Reads a regular file of at most `bytes_max` bytes.
///
/// # Errors
/// [`ReadError`].
pub fn read_regular(path: &Path, bytes_max: u64) -> Result<Zeroizing<String>, ReadError> {
    read_to_string(open_regular(path)?, bytes_max, PIPE_TIMEOUT)
}

/// Like [`read_regular`], but also reads a pipe (`<(command)`, `/dev/stdin`) whose writer does not
/// pause for ten seconds.
///
/// # Errors
/// [`ReadError`].
pub fn read_any(path: &Path, bytes_max: u64) -> Result<Zeroizing<String>, ReadError> {
    read_any_within(path, bytes_max, PIPE_TIMEOUT)
}

fn read_any_within(path: &Path, bytes_max: u64, timeout: Duration) -> Result<Zeroizing<String>, ReadError> {
    read_to_string(open(path)?, bytes_max, timeout)
}

fn read_to_string(mut file: File, bytes_max: u64, timeout: Duration) -> Result<Zeroizing<String>, ReadError> {
    let metadata = file.metadata()?;
    if metadata.len() > bytes_max {
        return Err(ReadError::TooLarge(bytes_max));
    }
    // Allocated once: a growing vector would leave copies of a key in memory.
    let room = if metadata.is_file() { metadata.len() } else { bytes_max };
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(room).unwrap_or_default() + 1));
    let may_wait = !metadata.is_file() && !metadata.is_dir();
    loop {
        if may_wait {
            wait_readable(&file, timeout)?;
        }
        let left = (bytes_max + 1).saturating_sub(bytes.len() as u64);
        match file.by_ref().take(left).read_to_end(&mut bytes) {
            Ok(_) if bytes.len() as u64 > bytes_max => return Err(ReadError::TooLarge(bytes_max)),
            Ok(_) => break,
            Err(error) if may_wait && error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
    }
    match String::from_utf8(std::mem::take(&mut *bytes)) {
        Ok(text) => Ok(Zeroizing::new(text)),
        Err(error) => {
            drop(Zeroizing::new(error.into_bytes()));
            Err(ReadError::NotUtf8)
        }
    }
}

/// Waits until the file has bytes or its writer has closed it.
fn wait_readable(file: &File, timeout: Duration) -> Result<(), ReadError> {
    let mut files = [PollFd::new(file.as_fd(), PollFlags::POLLIN)];
    let limit = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
    loop {
        match poll(&mut files, limit) {
            Ok(0) => return Err(ReadError::TimedOut(timeout)),
            Ok(_) => return Ok(()),
            Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(ReadError::Io(error.into())),
        }
    }
}

/// Does not wait for the writer of a FIFO or for a terminal.
fn open(path: &Path) -> io::Result<File> {
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)
}

fn kind_name(file: FileType) -> &'static str {
    match file {
        _ if file.is_dir() => "a directory",
        _ if file.is_fifo() => "a FIFO",
        _ if file.is_socket() => "a socket",
        _ => "a device",
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsRawFd;
    use std::path::PathBuf;

    use nix::sys::stat::Mode;

    use super::*;

    fn fifo(folder: &Path) -> PathBuf {
        let path = folder.join("fifo");
        nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap();
        path
    }

    #[test]
    fn an_endless_file_hits_the_size_limit() {
        let path = Path::new("/dev/zero");
        assert!(matches!(read_any(path, 1 << 20), Err(ReadError::TooLarge(bytes)) if bytes == 1 << 20));
        assert!(matches!(read_regular(path, 1 << 20), Err(ReadError::NotRegular("a device"))));
        assert_eq!(read_any(Path::new("/dev/null"), 10).unwrap().as_str(), "");
        assert!(read_any(Path::new("/"), 10).is_err());
    }

    #[test]
    fn a_fifo_without_a_writer_times_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = fifo(folder.path());
        assert!(matches!(read_regular(&path, 10), Err(ReadError::NotRegular("a FIFO"))));
        let silent = read_any_within(&path, 10, Duration::from_millis(1));
        assert!(matches!(silent, Err(ReadError::TimedOut(_))), "{silent:?}");
    }

    #[test]
    fn a_pipe_is_read_up_to_the_size_limit() {
        for (size, fits) in [(0, true), (100_000, true), (200_000, false)] {
            let (reader, mut writer) = io::pipe().unwrap();
            let writing = std::thread::spawn(move || {
                // In two writes, as a command would; the reader may be gone.
                let _written = [size / 2, size - size / 2].map(|part| writer.write_all(&vec![b'a'; part]));
            });
            let path = PathBuf::from(format!("/proc/self/fd/{}", reader.as_raw_fd()));
            let read = read_any(&path, 150_000);
            drop(reader);
            writing.join().unwrap();
            assert_eq!(read.ok().map(|text| text.len()), fits.then_some(size));
        }
    }
}
