//! Paths of unix sockets, which the kernel limits to 107 bytes.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// A path of a socket through its open directory, which is short however long the path is.
#[derive(Debug)]
pub struct ShortPath {
    _directory: File,
    path: PathBuf,
}

impl ShortPath {
    /// Opens the directory of `socket`.
    ///
    /// # Errors
    /// When the directory cannot be opened.
    pub fn of(socket: &Path) -> io::Result<Self> {
        let directory = socket.parent().filter(|directory| !directory.as_os_str().is_empty());
        let directory = File::open(directory.unwrap_or(Path::new(".")))?;
        let path = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string());
        let path = path.join(socket.file_name().unwrap_or_default());
        Ok(Self { _directory: directory, path })
    }

    /// The short path, valid in this process and as long as `self`.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    #[test]
    fn a_path_over_the_limit_is_bound_and_found() {
        let directory = tempfile::tempdir().unwrap();
        let deep = directory.path().join("d".repeat(120));
        std::fs::create_dir(&deep).unwrap();
        let socket = deep.join("socket");
        assert!(UnixListener::bind(&socket).is_err());
        let _listener = UnixListener::bind(ShortPath::of(&socket).unwrap().path()).unwrap();
        UnixStream::connect(ShortPath::of(&socket).unwrap().path()).unwrap();
    }
}
