//! One file: opened without blocking, bounded, and read whole.

use std::io;
use std::path::{Path, PathBuf};

use pki::Certificate;
use zeroize::Zeroizing;

use crate::bounded_read::{self, ReadError};

/// Bytes of one file. Mozilla's whole bundle has 220 KB.
const BYTES_MAX: u64 = 4 << 20;

/// Why a file cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{setting} {path}: {problem}", path = path.display())]
pub struct FileError {
    /// The setting that names the file.
    pub setting: &'static str,
    /// The file.
    pub path: PathBuf,
    /// What was found, and what to do.
    pub problem: String,
    /// There is no file of this name.
    pub missing: bool,
}

/// A setting and the file it names.
#[derive(Debug, Clone, Copy)]
pub struct ConfiguredFileRef<'a> {
    /// The setting.
    pub setting: &'static str,
    /// The file.
    pub path: &'a Path,
}

impl ConfiguredFileRef<'_> {
    /// An error about this file.
    pub fn error(&self, problem: impl ToString) -> FileError {
        let (path, problem) = (self.path.to_path_buf(), problem.to_string());
        FileError { setting: self.setting, path, problem, missing: false }
    }

    /// The whole text.
    ///
    /// # Errors
    /// [`FileError`] when it cannot be read, is no regular file, is larger than 4 MiB or is not
    /// UTF-8.
    pub fn read_text(&self) -> Result<Zeroizing<String>, FileError> {
        bounded_read::read_regular(self.path, BYTES_MAX).map_err(|error| match error {
            ReadError::Io(error) => FileError {
                missing: error.kind() == io::ErrorKind::NotFound,
                ..self.error(format!(
                    "{error}. Check the path in the configuration file and that this user may read the file"
                ))
            },
            ReadError::TooLarge(bytes) => {
                self.error(format!("it has more than {} MiB: is this a PEM file?", bytes >> 20))
            }
            ReadError::NotUtf8 => {
                self.error("it is not text. It must be in PEM format; openssl converts DER and PKCS #12")
            }
            other => self.error(format!("{other} in PEM format")),
        })
    }

    /// The certificates in it, at least one.
    ///
    /// # Errors
    /// [`FileError`] when it cannot be read or has none.
    pub fn read_certificates(&self) -> Result<Vec<Certificate>, FileError> {
        pki::certificates_from_pem(&self.read_text()?).map_err(|error| self.error(error))
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use nix::sys::stat::Mode;

    use super::*;

    fn problem(path: &Path) -> String {
        ConfiguredFileRef { setting: "a.setting", path }.read_text().expect_err("not to be used").to_string()
    }

    #[test]
    fn what_is_no_regular_file_is_refused_without_waiting() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("fifo");
        nix::unistd::mkfifo(&fifo, Mode::S_IRWXU).unwrap();
        assert!(problem(&fifo).contains("a FIFO"));
        assert!(problem(folder.path()).contains("a directory"));
        assert!(problem(Path::new("/dev/zero")).contains("a device"));
        let socket = folder.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        // A socket cannot even be opened.
        assert!(problem(&socket).contains("a.setting"));
    }

    #[test]
    fn a_huge_file_and_one_that_is_no_text_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let huge = folder.path().join("huge");
        File::create(&huge).unwrap().set_len(1 << 40).unwrap();
        assert!(problem(&huge).contains("more than 4 MiB"));
        let der = folder.path().join("der");
        std::fs::write(&der, [0x30, 0x82, 0xff]).unwrap();
        assert!(problem(&der).contains("PEM"));
    }

    #[test]
    fn a_missing_file_is_told_from_an_unusable_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("none.crt");
        let named = ConfiguredFileRef { setting: "a.setting", path: &path };
        assert!(named.read_text().unwrap_err().missing);
        std::os::unix::fs::symlink("nowhere", &path).unwrap();
        assert!(named.read_text().unwrap_err().missing);
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "").unwrap();
        let empty = named.read_certificates().unwrap_err();
        assert!(!empty.missing && empty.to_string().contains("none.crt"), "{empty}");
    }
}
