//! When a control plane last confirmed what the last-good file holds, kept beside it so that the
//! large file is not written anew for it.
//!
//! Layout: seconds since 1970 (u64, little endian), then HMAC-SHA256 over the file's salt and these
//! bytes, under the file's key. So it counts for the very file it was written for: not for one that
//! was put in its place, nor for one sealed with another key.

use std::io;
use std::path::Path;

use super::key::FileKey;
use super::{SALT, sidecar};

/// The moment that the file at `path` says, if it belongs to the last-good file with this salt.
/// Seconds since 1970.
pub(super) fn read(path: &Path, key: &FileKey, salt: &[u8; SALT]) -> Option<u64> {
    let seconds = sidecar::read(path, key, &context(salt))?;
    Some(u64::from_le_bytes(seconds.try_into().ok()?))
}

/// Replaces the file at `path`. It is not synced, since losing a minute is no loss.
///
/// # Errors
/// The system's.
pub(super) fn write(path: &Path, key: &FileKey, salt: &[u8; SALT], at: u64) -> io::Result<()> {
    sidecar::write(path, key, &context(salt), &at.to_le_bytes())
}

fn context(salt: &[u8; SALT]) -> Vec<u8> {
    [b"countersign last good confirmed".as_slice(), salt].concat()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use zeroize::Zeroizing;

    use super::*;

    #[test]
    fn it_counts_for_the_very_file_and_key() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("confirmed");
        let (key, salt) = (Zeroizing::new([1; 32]), [2; SALT]);
        assert_eq!(read(&path, &key, &salt), None);
        write(&path, &key, &salt, 4711).unwrap();
        write(&path, &key, &salt, 4712).unwrap();
        assert_eq!(read(&path, &key, &salt), Some(4712));
        assert_eq!(read(&path, &key, &[3; SALT]), None);
        assert_eq!(read(&path, &Zeroizing::new([9; 32]), &salt), None);
        let mut bytes = fs::read(&path).unwrap();
        for at in 0..bytes.len() {
            bytes[at] ^= 1;
            fs::write(&path, &bytes).unwrap();
            assert_eq!(read(&path, &key, &salt), None, "byte {at}");
            bytes[at] ^= 1;
        }
        fs::write(&path, &bytes[1..]).unwrap();
        assert_eq!(read(&path, &key, &salt), None);
    }
}
