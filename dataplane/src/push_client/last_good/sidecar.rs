//! Small files beside the last-good file, each valid only with its MAC: the time of the last
//! confirmation, so that the large file is not written anew for it, and the held stores.
//!
//! Layout: the content, then HMAC-SHA256 over a context and the content, under the key of the
//! last-good file. So a sidecar of another context or under another key is invalid. The context of
//! a confirmation (seconds since 1970, u64, little endian) has the salt of the last-good file, so
//! it is valid for that very file only.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use aws_lc_rs::hmac;
use process::bounded_read;

use super::SALT_BYTES;
use super::key::FileKey;

const MAC_BYTES: usize = 32;
const BYTES_MAX: u64 = 1 << 20;

/// `None`: there is no file, or none of this context under this key.
pub(super) fn read(path: &Path, key: &FileKey, context: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    bounded_read::open_regular(path).ok()?.take(BYTES_MAX).read_to_end(&mut bytes).ok()?;
    let (content, tag) = bytes.split_last_chunk::<MAC_BYTES>()?;
    hmac::verify(&mac_key(key), &[context, content].concat(), tag).ok()?;
    Some(content.to_vec())
}

/// Replaces the file. A crash leaves the old one or the new one; it is not synced.
///
/// # Errors
/// The system's.
pub(super) fn write(path: &Path, key: &FileKey, context: &[u8], content: &[u8]) -> io::Result<()> {
    let tag = hmac::sign(&mac_key(key), &[context, content].concat());
    let new = super::sibling(path, ".new");
    super::remove_if_exists(&new)?;
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(&[content, tag.as_ref()].concat())?;
    fs::rename(&new, path)
}

fn mac_key(key: &FileKey) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, &**key)
}

/// The time in the file, if it belongs to the last-good file with this salt.
pub(super) fn read_confirmation(path: &Path, key: &FileKey, salt: &[u8; SALT_BYTES]) -> Option<u64> {
    let seconds = read(path, key, &confirmation_context(salt))?;
    Some(u64::from_le_bytes(seconds.try_into().ok()?))
}

/// Replaces the file. It is not synced, since the loss of a minute does no harm.
///
/// # Errors
/// The system's.
pub(super) fn write_confirmation(
    path: &Path,
    key: &FileKey,
    salt: &[u8; SALT_BYTES],
    at: u64,
) -> io::Result<()> {
    write(path, key, &confirmation_context(salt), &at.to_le_bytes())
}

fn confirmation_context(salt: &[u8; SALT_BYTES]) -> Vec<u8> {
    [b"countersign last good confirmed".as_slice(), salt].concat()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use zeroize::Zeroizing;

    use super::*;

    #[test]
    fn a_confirmation_is_valid_for_one_file_and_key() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("confirmed");
        let (key, salt) = (Zeroizing::new([1; 32]), [2; SALT_BYTES]);
        assert_eq!(read_confirmation(&path, &key, &salt), None);
        write_confirmation(&path, &key, &salt, 4711).unwrap();
        write_confirmation(&path, &key, &salt, 4712).unwrap();
        assert_eq!(read_confirmation(&path, &key, &salt), Some(4712));
        assert_eq!(read_confirmation(&path, &key, &[3; SALT_BYTES]), None);
        assert_eq!(read_confirmation(&path, &Zeroizing::new([9; 32]), &salt), None);
        let mut bytes = fs::read(&path).unwrap();
        for at in 0..bytes.len() {
            bytes[at] ^= 1;
            fs::write(&path, &bytes).unwrap();
            assert_eq!(read_confirmation(&path, &key, &salt), None, "byte {at}");
            bytes[at] ^= 1;
        }
        fs::write(&path, &bytes[1..]).unwrap();
        assert_eq!(read_confirmation(&path, &key, &salt), None);
    }
}
