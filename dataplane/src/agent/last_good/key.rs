//! The key that seals the last-good file: 32 random bytes in a file of their own beside it, so that the node's certificate and key can
//! be replaced and what was saved is still read.
//!
//! Invariant: the file appears under its name whole, synced and with mode 0600, before anything is sealed with it. A key that
//! can be used is never replaced.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use pem_files::bounded;
use zeroize::Zeroizing;

/// Bytes of the key, and of its file.
const LENGTH: usize = 32;

/// The key. Wiped on drop; no `Debug`.
pub(super) type Key = Zeroizing<[u8; LENGTH]>;

/// The key's file, for the last-good file at `path`.
pub(super) fn path_of(path: &Path) -> PathBuf {
    super::beside(path, ".key")
}

/// Reads the key; `None`: there is no file, or one that holds no key, which is logged.
///
/// # Errors
/// When the file is there and cannot be read.
pub(super) fn read(path: &Path) -> io::Result<Option<Key>> {
    let mut file = match bounded::open_regular(path).map_err(io::Error::from) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let found = file.metadata()?;
    if found.permissions().mode() & 0o077 != 0 {
        let closed = file.set_permissions(fs::Permissions::from_mode(0o600));
        let done = if closed.is_ok() { "its mode is 0600 now" } else { "and its mode cannot be changed" };
        tracing::warn!(
            path = %path.display(),
            "countersign.node.last_good: the key of the last good snapshot was open to other users; {done}"
        );
    }
    let mut key = Zeroizing::new([0; LENGTH]);
    if !found.is_file() || found.len() != LENGTH as u64 {
        tracing::warn!(
            path = %path.display(),
            bytes = found.len(),
            "countersign.node.last_good: the file is not the key of a last good snapshot (32 bytes); a new one takes its place"
        );
        return Ok(None);
    }
    file.read_exact(&mut *key)?;
    Ok(Some(key))
}

/// Reads the key, or makes one where there is none.
///
/// # Errors
/// When it can be neither read nor made.
pub(super) fn read_or_make(path: &Path) -> io::Result<Key> {
    if let Some(key) = read(path)? {
        return Ok(key);
    }
    let mut key = Zeroizing::new([0; LENGTH]);
    aws_lc_rs::rand::fill(&mut *key).map_err(io::Error::other)?;
    let folder = super::folder_of(path);
    let new = super::beside(path, &format!(".new-{:016x}", rand::random::<u64>()));
    let written = write(&new, &key).and_then(|()| fs::rename(&new, path));
    if let Err(error) = written {
        // What is left of it holds no key that anything is sealed with.
        let _ = fs::remove_file(&new);
        return Err(error);
    }
    // The name is durable only once the folder is.
    fs::File::open(folder)?.sync_all()?;
    Ok(key)
}

fn write(path: &Path, key: &Key) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(&**key)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_key_is_made_once_and_read_from_then_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = path_of(&folder.path().join("last_good"));
        assert!(read(&path).unwrap().is_none());
        let made = read_or_make(&path).unwrap();
        assert!(*made != [0; LENGTH] && *read_or_make(&path).unwrap() == *made);
        assert_eq!(mode(&path), 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left");
        let other = read_or_make(&path_of(&folder.path().join("another"))).unwrap();
        assert!(*other != *made);
    }

    #[test]
    fn a_key_that_others_may_read_is_closed_to_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let made = read_or_make(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(*read(&path).unwrap().unwrap() == *made);
        assert_eq!(mode(&path), 0o600);
    }

    #[test]
    fn what_is_no_key_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        for wrong in [&b""[..], b"short", &[7; 33]] {
            fs::write(&path, wrong).unwrap();
            assert!(read(&path).unwrap().is_none());
            let made = read_or_make(&path).unwrap();
            assert!(*read(&path).unwrap().unwrap() == *made);
        }
    }
}
