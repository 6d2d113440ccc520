//! The key of the last-good file: 32 random bytes in a file of their own beside it, so that the
//! last-good file stays readable when the node's certificate and key are replaced.
//!
//! Invariant: the file appears under its name whole, synced and with mode 0600, before anything is
//! sealed with it. A file in its place is set aside, never overwritten: older generations may be
//! sealed with it.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use process::bounded_read;
use zeroize::Zeroizing;

const KEY_BYTES: usize = 32;

/// Wiped on drop; no `Debug`.
pub(super) type FileKey = Zeroizing<[u8; KEY_BYTES]>;

/// The path of the key, for the last-good file at `path`.
pub(crate) fn path_of(path: &Path) -> PathBuf {
    super::sibling(path, ".key")
}

/// `None`: there is no file, or one that is no key, which is logged.
///
/// # Errors
/// When the file exists and cannot be read.
pub(super) fn read(path: &Path) -> io::Result<Option<FileKey>> {
    let invalid = |found: &dyn std::fmt::Display| {
        tracing::warn!(
            path = %path.display(),
            "countersign.node.last_good: the file is not the key of a last good snapshot ({found} instead of {KEY_BYTES} bytes)"
        );
        Ok(None)
    };
    let mut file = match bounded_read::open_regular(path).map_err(io::Error::from) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => return invalid(&error),
        other => other?,
    };
    let metadata = file.metadata()?;
    if metadata.permissions().mode() & 0o077 != 0 {
        let changed = file.set_permissions(fs::Permissions::from_mode(0o600));
        let result = if changed.is_ok() { "its mode is 0600 now" } else { "and its mode cannot be changed" };
        tracing::warn!(
            path = %path.display(),
            "countersign.node.last_good: the key of the last good snapshot was open to other users; {result}"
        );
    }
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    if metadata.len() != KEY_BYTES as u64 {
        return invalid(&format_args!("{} bytes", metadata.len()));
    }
    file.read_exact(&mut *key)?;
    Ok(Some(key))
}

/// Writes the key that this process seals with again, where its file was lost or replaced.
///
/// # Errors
/// When the present file cannot be read or set aside, or the key cannot be written.
pub(super) fn restore(path: &Path, key: &FileKey) -> io::Result<()> {
    if read(path)?.is_some_and(|held| *held == **key) {
        return Ok(());
    }
    set_aside(path)?;
    install(path, key)?;
    tracing::warn!(
        path = %path.display(),
        "countersign.node.last_good: the key of the last good snapshot was not in its file any more; it was written there again"
    );
    Ok(())
}

/// Renames the file in the key's place to `PATH.aside-...`.
fn set_aside(path: &Path) -> io::Result<()> {
    let aside = super::sibling(path, &format!(".aside-{:016x}", rand::random::<u64>()));
    match fs::rename(path, &aside) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(()) => {
            tracing::warn!(
                path = %path.display(), aside = %aside.display(),
                "countersign.node.last_good: the file in the place of the last good snapshot's key is kept under another name"
            );
            Ok(())
        }
    }
}

/// # Errors
/// When the key can be neither read nor created.
pub(super) fn read_or_create(path: &Path) -> io::Result<FileKey> {
    if let Some(key) = read(path)? {
        return Ok(key);
    }
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    aws_lc_rs::rand::fill(&mut *key).map_err(io::Error::other)?;
    set_aside(path)?;
    install(path, &key)?;
    Ok(key)
}

fn install(path: &Path, key: &FileKey) -> io::Result<()> {
    let folder = super::folder_of(path);
    let new = super::sibling(path, &format!(".new-{:016x}", rand::random::<u64>()));
    let renamed = write(&new, key).and_then(|()| fs::rename(&new, path));
    if let Err(error) = renamed {
        // Nothing is sealed with the key in it.
        let _ = fs::remove_file(&new);
        return Err(error);
    }
    // The name is durable only once the folder is.
    fs::File::open(folder)?.sync_all()
}

fn write(path: &Path, key: &FileKey) -> io::Result<()> {
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
    fn a_key_is_created_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = path_of(&folder.path().join("last_good"));
        assert!(read(&path).unwrap().is_none());
        let key = read_or_create(&path).unwrap();
        assert!(*key != [0; KEY_BYTES] && *read_or_create(&path).unwrap() == *key);
        assert_eq!(mode(&path), 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no other file is left");
        let other = read_or_create(&path_of(&folder.path().join("another"))).unwrap();
        assert!(*other != *key);
    }

    #[test]
    fn the_mode_of_a_readable_key_is_corrected() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let key = read_or_create(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(*read(&path).unwrap().unwrap() == *key);
        assert_eq!(mode(&path), 0o600);
    }

    #[test]
    fn an_invalid_key_is_set_aside_and_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        for invalid in [&b""[..], b"short", &[7; 33]] {
            fs::write(&path, invalid).unwrap();
            assert!(read(&path).unwrap().is_none());
            let key = read_or_create(&path).unwrap();
            assert!(*read(&path).unwrap().unwrap() == *key);
            assert!(contents_set_aside(folder.path()).contains(&invalid.to_vec()));
        }
    }

    fn contents_set_aside(folder: &Path) -> Vec<Vec<u8>> {
        let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let aside = paths.filter(|path| path.display().to_string().contains(".aside-"));
        aside.map(|path| fs::read(path).unwrap()).collect()
    }

    #[test]
    fn a_lost_or_damaged_key_is_restored() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let key = read_or_create(&path).unwrap();
        fs::remove_file(&path).unwrap();
        restore(&path, &key).unwrap();
        assert!(*read(&path).unwrap().unwrap() == *key && mode(&path) == 0o600);
        for invalid in [&b"short"[..], &[7; 32]] {
            fs::write(&path, invalid).unwrap();
            restore(&path, &key).unwrap();
            assert!(*read(&path).unwrap().unwrap() == *key);
            assert!(contents_set_aside(folder.path()).contains(&invalid.to_vec()));
        }
        let files = fs::read_dir(folder.path()).unwrap().count();
        restore(&path, &key).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), files);
    }

    #[test]
    fn a_fifo_in_the_place_of_a_key_does_not_block() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(read(&path).unwrap().is_none());
        let key = read_or_create(&path).unwrap();
        assert!(*read(&path).unwrap().unwrap() == *key);
    }
}
