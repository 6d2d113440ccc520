//! The key that seals the last-good file: 32 random bytes in a file of their own beside it, so that
//! the node's certificate and key can be replaced and what was saved is still read.
//!
//! Invariant: the file appears under its name whole, synced and with mode 0600, before anything is
//! sealed with it. What is in the place of a key is set aside, never overwritten: older generations
//! may be sealed with it.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use process::bounded_read;
use zeroize::Zeroizing;

/// Bytes of the key, and of its file.
const LENGTH: usize = 32;

/// The key. Wiped on drop; no `Debug`.
pub(super) type FileKey = Zeroizing<[u8; LENGTH]>;

/// The key's file, for the last-good file at `path`.
pub(super) fn path_of(path: &Path) -> PathBuf {
    super::sibling(path, ".key")
}

/// Reads the key; `None`: there is no file, or one that holds no key, which is logged.
///
/// # Errors
/// When the file is there and cannot be read.
pub(super) fn read(path: &Path) -> io::Result<Option<FileKey>> {
    let wrong = |what: &dyn std::fmt::Display| {
        tracing::warn!(
            path = %path.display(),
            "countersign.node.last_good: the file is not the key of a last good snapshot ({what} instead of {LENGTH} bytes)"
        );
        Ok(None)
    };
    let mut file = match bounded_read::open_regular(path).map_err(io::Error::from) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => return wrong(&error),
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
    if found.len() != LENGTH as u64 {
        return wrong(&format_args!("{} bytes", found.len()));
    }
    file.read_exact(&mut *key)?;
    Ok(Some(key))
}

/// Puts this key, with which this process seals, back under its name where it is no longer there.
///
/// # Errors
/// When what is there cannot be read or set aside, or the key cannot be written.
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

/// Renames what is in the place of a key: `PATH.aside-...`.
fn set_aside(path: &Path) -> io::Result<()> {
    let aside = super::sibling(path, &format!(".aside-{:016x}", rand::random::<u64>()));
    match fs::rename(path, &aside) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(()) => {
            tracing::warn!(
                path = %path.display(), aside = %aside.display(),
                "countersign.node.last_good: what was in the place of the key of the last good snapshot is kept under another name"
            );
            Ok(())
        }
    }
}

/// Reads the key, or makes one where there is none.
///
/// # Errors
/// When it can be neither read nor made.
pub(super) fn read_or_create(path: &Path) -> io::Result<FileKey> {
    if let Some(key) = read(path)? {
        return Ok(key);
    }
    let mut key = Zeroizing::new([0; LENGTH]);
    aws_lc_rs::rand::fill(&mut *key).map_err(io::Error::other)?;
    set_aside(path)?;
    install(path, &key)?;
    Ok(key)
}

fn install(path: &Path, key: &FileKey) -> io::Result<()> {
    let folder = super::folder_of(path);
    let new = super::sibling(path, &format!(".new-{:016x}", rand::random::<u64>()));
    let written = write(&new, key).and_then(|()| fs::rename(&new, path));
    if let Err(error) = written {
        // What is left of it holds no key that anything is sealed with.
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
    fn a_key_is_made_once_and_read_from_then_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = path_of(&folder.path().join("last_good"));
        assert!(read(&path).unwrap().is_none());
        let made = read_or_create(&path).unwrap();
        assert!(*made != [0; LENGTH] && *read_or_create(&path).unwrap() == *made);
        assert_eq!(mode(&path), 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left");
        let other = read_or_create(&path_of(&folder.path().join("another"))).unwrap();
        assert!(*other != *made);
    }

    #[test]
    fn a_key_that_others_may_read_is_closed_to_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let made = read_or_create(&path).unwrap();
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
            let made = read_or_create(&path).unwrap();
            assert!(*read(&path).unwrap().unwrap() == *made);
            assert!(aside(folder.path()).contains(&wrong.to_vec()), "it is kept");
        }
    }

    /// What was set aside.
    fn aside(folder: &Path) -> Vec<Vec<u8>> {
        let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let aside = paths.filter(|path| path.display().to_string().contains(".aside-"));
        aside.map(|path| fs::read(path).unwrap()).collect()
    }

    #[test]
    fn a_key_that_is_lost_or_damaged_is_put_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let made = read_or_create(&path).unwrap();
        fs::remove_file(&path).unwrap();
        restore(&path, &made).unwrap();
        assert!(*read(&path).unwrap().unwrap() == *made && mode(&path) == 0o600);
        for wrong in [&b"short"[..], &[7; 32]] {
            fs::write(&path, wrong).unwrap();
            restore(&path, &made).unwrap();
            assert!(*read(&path).unwrap().unwrap() == *made);
            assert!(aside(folder.path()).contains(&wrong.to_vec()));
        }
        let kept = fs::read_dir(folder.path()).unwrap().count();
        restore(&path, &made).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), kept);
    }

    #[test]
    fn a_fifo_in_the_place_of_a_key_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(read(&path).unwrap().is_none());
        let made = read_or_create(&path).unwrap();
        assert!(*read(&path).unwrap().unwrap() == *made);
    }
}
