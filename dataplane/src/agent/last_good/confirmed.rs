//! When a control plane last confirmed what the last-good file holds, kept beside it so that the large file is not written anew for it.
//!
//! Layout: seconds since 1970 (u64, little endian), then HMAC-SHA256 over the file's salt and these bytes, under the file's key. So
//! it counts for the very file it was written for: not for one that was put in its place, nor for one sealed with another key.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use aws_lc_rs::hmac;
use pem_files::bounded;

use super::SALT;
use super::key::Key;

const SECONDS: usize = 8;
const LENGTH: usize = SECONDS + 32;

/// The moment that the file at `path` says, if it belongs to the last-good file with this salt. Seconds since 1970.
pub(super) fn read(path: &Path, key: &Key, salt: &[u8; SALT]) -> Option<u64> {
    let mut bytes = Vec::with_capacity(LENGTH + 1);
    bounded::open_regular(path).ok()?.take(LENGTH as u64 + 1).read_to_end(&mut bytes).ok()?;
    let bytes: [u8; LENGTH] = bytes.try_into().ok()?;
    let (seconds, tag) = bytes.split_first_chunk::<SECONDS>()?;
    hmac::verify(&mac(key), &message(salt, seconds), tag).ok()?;
    Some(u64::from_le_bytes(*seconds))
}

/// Replaces the file at `path`. A crash leaves the old one or the new one; it is not synced, since losing a minute is no loss.
///
/// # Errors
/// The system's.
pub(super) fn write(path: &Path, key: &Key, salt: &[u8; SALT], at: u64) -> io::Result<()> {
    let seconds = at.to_le_bytes();
    let tag = hmac::sign(&mac(key), &message(salt, &seconds));
    let new = super::beside(path, ".new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(&[&seconds, tag.as_ref()].concat())?;
    fs::rename(&new, path)
}

fn mac(key: &Key) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, &**key)
}

fn message(salt: &[u8; SALT], seconds: &[u8; SECONDS]) -> Vec<u8> {
    [b"countersign last good confirmed".as_slice(), salt, seconds].concat()
}

#[cfg(test)]
mod tests {
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
