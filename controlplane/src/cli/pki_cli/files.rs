//! Writes certificate and key files: all or none, atomically, keys with mode 0600.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use process::bounded_read;

use super::PkiCliError;

/// The limit of a file that is read; Mozilla's bundle has 220 KB.
const BYTES_MAX: u64 = 4 << 20;

/// Files that are written together.
#[derive(Default)]
pub(super) struct FileBatch<'a> {
    files: Vec<(PathBuf, &'a str, u32)>,
}

impl<'a> FileBatch<'a> {
    /// `PREFIX.crt` readable by all and `PREFIX.key` by the owner.
    pub(super) fn pair(&mut self, prefix: &Path, certificate: &'a str, key: &'a str) {
        self.files.push((with_suffix(prefix, "crt"), certificate, 0o644));
        self.files.push((with_suffix(prefix, "key"), key, 0o600));
    }

    /// Adds a file of mode 0600, unless it exists: it is never replaced. Returns whether it is new.
    pub(super) fn secret_if_missing(&mut self, path: &Path, text: &'a str) -> bool {
        let is_new = path.symlink_metadata().is_err();
        if is_new {
            self.files.push((path.to_owned(), text, 0o600));
        }
        is_new
    }

    /// Writes all files, or none if one exists and `force` is not given.
    pub(super) fn write(&self, force: bool) -> Result<(), PkiCliError> {
        if !force {
            let existing =
                self.files.iter().map(|(path, ..)| path).filter(|path| path.symlink_metadata().is_ok());
            let existing: Vec<String> = existing.map(|path| path.display().to_string()).collect();
            if !existing.is_empty() {
                return Err(PkiCliError::Exists { files: existing.join(", ") });
            }
        }
        for (path, text, mode) in &self.files {
            let unwritable = |path: &Path| {
                let path = path.to_owned();
                move |source| PkiCliError::Unwritable { path, source }
            };
            if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
                fs::create_dir_all(folder).map_err(unwritable(folder))?;
            }
            write_atomically(path, text, *mode).map_err(unwritable(path))?;
        }
        Ok(())
    }

    pub(super) fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|(path, ..)| path.as_path())
    }
}

/// A reader sees the old file or the new one, and never a key with a wider mode.
fn write_atomically(path: &Path, text: &str, mode: u32) -> std::io::Result<()> {
    let temporary = with_suffix(path, "tmp");
    // Left by a killed run. `create_new` below does not follow a symbolic link.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, path)
}

/// `a/b` and `crt` -> `a/b.crt`; dots in the name are kept.
pub(super) fn with_suffix(prefix: &Path, ending: &str) -> PathBuf {
    let mut name = OsString::from(prefix);
    name.push(".");
    name.push(ending);
    PathBuf::from(name)
}

pub(super) fn read(path: &Path) -> Result<zeroize::Zeroizing<String>, PkiCliError> {
    let text = bounded_read::read_any(path, BYTES_MAX);
    text.map_err(|error| PkiCliError::Unreadable { path: path.to_owned(), source: error.into() })
}
