//! A small file beside the last-good file, which counts only with its MAC.
//!
//! Layout: the content, then HMAC-SHA256 over a context and the content, under the last-good file's
//! key. So a note of one context, or under another key, is none.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use aws_lc_rs::hmac;
use process::bounded_read;

use super::key::FileKey;

/// Of the MAC.
const TAG: usize = 32;
const BYTES_MAX: u64 = 1 << 20;

/// What the note at `path` says; `None`: there is none of this context under this key.
pub(super) fn read(path: &Path, key: &FileKey, context: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    bounded_read::open_regular(path).ok()?.take(BYTES_MAX).read_to_end(&mut bytes).ok()?;
    let (content, tag) = bytes.split_last_chunk::<TAG>()?;
    hmac::verify(&mac(key), &[context, content].concat(), tag).ok()?;
    Some(content.to_vec())
}

/// Replaces the note at `path`. A crash leaves the old one or the new one; it is not synced.
///
/// # Errors
/// The system's.
pub(super) fn write(path: &Path, key: &FileKey, context: &[u8], content: &[u8]) -> io::Result<()> {
    let tag = hmac::sign(&mac(key), &[context, content].concat());
    let new = super::sibling(path, ".new");
    remove(&new)?;
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(&[content, tag.as_ref()].concat())?;
    fs::rename(&new, path)
}

/// Removes the note at `path`, where there is one.
///
/// # Errors
/// The system's.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn mac(key: &FileKey) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, &**key)
}
