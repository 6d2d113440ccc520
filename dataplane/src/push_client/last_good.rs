//! The file of the last good snapshot, which a data plane serves after a restart without a control
//! plane.
//!
//! Layout: magic, format version (u16, little endian), salt, nonce; then AES-256-GCM over
//! length-delimited protobuf: one `LastGood` (store, revision, ticket secrets), then the snapshot
//! as the chunks of a delta from nothing. The key is HKDF-SHA256 over a random key in a file of its
//! own (`key`), in format version 1 over the node's push key; each write has a new salt, so no key
//! is used twice. The tag, which covers the header, is the checksum. Beside the file lie two
//! sidecars (`sidecar`): the time of the last confirmation and the held stores; and the generation
//! before. Invariant: a file is read whole or not at all.

mod key;

pub(crate) use key::path_of as key_path;
mod sidecar;

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hkdf;
use bytes::Buf;
use model::wire::{DeltaAssembler, chunks, tickets_from_wire, tickets_to_wire};
use model::{Delta, Snapshot, TicketRing};
use process::bounded_read;
use prost::Message;
use proto::push::{Chunk, LastGood};
use zeroize::Zeroizing;

const MAGIC: &[u8; 8] = b"CSLGOOD\0";
const FORMAT_VERSION: u16 = 2;
/// Encrypted with a key derived from the node's push key. Still read, never written.
const FORMAT_VERSION_1: u16 = 1;
const SALT_BYTES: usize = 32;
pub(super) const HEADER_BYTES: usize = MAGIC.len() + 2 + SALT_BYTES + NONCE_LEN;
const HKDF_INFO: &[u8] = b"countersign last good snapshot v2";
const HKDF_INFO_VERSION_1: &[u8] = b"countersign last good snapshot v1";
const CHUNK_BYTES: usize = 1 << 20;
/// Larger than any snapshot a data plane can serve.
const FILE_BYTES_MAX: u64 = 4 << 30;

/// The content of the file.
#[derive(Debug)]
pub(super) struct SavedState {
    /// The store that the revision belongs to.
    pub store: String,
    pub snapshot: Arc<Snapshot>,
    pub tickets: Option<Arc<TicketRing>>,
    /// When a control plane last confirmed this state. Seconds since 1970.
    pub confirmed_at: u64,
}

/// The newest state to write; `None` until this process has one.
pub(super) type PendingSave = Option<Arc<SavedState>>;

#[derive(Debug)]
pub(super) struct LoadedState {
    pub state: SavedState,
    /// The file has format version 1 and must be written anew.
    pub old_format: bool,
}

/// The path of the file, and its keys. No `Debug`.
pub(super) struct LastGoodFile {
    path: PathBuf,
    /// The node's push key, for files of format version 1.
    node_key: Zeroizing<Vec<u8>>,
    /// Read or created when it is first needed.
    key: Option<key::FileKey>,
    /// Of the file on disk, once this process has read or written it.
    salt: Option<[u8; SALT_BYTES]>,
}

/// Why the file is not used. The data plane then starts with nothing and receives everything.
#[derive(Debug, thiserror::Error)]
pub(super) enum LastGoodError {
    #[error("countersign.node.last_good: cannot read {path}: {source}; starting with nothing", path = path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("countersign.node.last_good: {path} is not a last good snapshot ({found}); starting with nothing", path = path.display())]
    WrongFormat { path: PathBuf, found: &'static str },
    #[error(
        "countersign.node.last_good: {path} has format version {found}, this program reads {FORMAT_VERSION}; starting with nothing",
        path = path.display()
    )]
    UnsupportedVersion { path: PathBuf, found: u16 },
    #[error(
        "countersign.node.last_good: {path} is damaged, or was sealed with another key than {key}; starting with nothing",
        path = path.display()
    )]
    Decrypt { path: PathBuf, key: String },
    #[error(
        "countersign.node.last_good: {path} cannot be opened without its key, and there is none in {key}: put that file back from a \
         backup of the same time and restart, or have a control plane send everything; starting with nothing",
        path = path.display(), key = key.display()
    )]
    MissingKey { path: PathBuf, key: PathBuf },
    #[error("countersign.node.last_good: cannot read the key {path}: {source}", path = path.display())]
    ReadKey { path: PathBuf, source: io::Error },
    #[error("countersign.node.last_good: cannot make the key {path}: {source}", path = path.display())]
    CreateKey { path: PathBuf, source: io::Error },
    #[error("countersign.node.last_good: {path} holds what cannot be served ({problem}); starting with nothing", path = path.display())]
    InvalidContent { path: PathBuf, problem: String },
    #[error("the last good snapshot cannot be encrypted")]
    Encrypt,
}

impl LastGoodFile {
    pub(crate) fn new(path: PathBuf, node_key: &pki::PrivateKey) -> Self {
        let node_key = Zeroizing::new(node_key.der().secret_der().to_vec());
        Self { path, node_key, key: None, salt: None }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// `None`: there is no file.
    pub(crate) fn read(&mut self) -> Result<Option<LoadedState>, LastGoodError> {
        let path = self.path.clone();
        let unreadable = |source| LastGoodError::Unreadable { path: path.clone(), source };
        let file = match bounded_read::open_regular(&self.path).map_err(io::Error::from) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(unreadable)?,
        };
        let metadata = file.metadata().map_err(unreadable)?;
        if metadata.len() > FILE_BYTES_MAX {
            return Err(LastGoodError::WrongFormat { path: self.path.clone(), found: "it is too large" });
        }
        let mut bytes = Vec::new();
        file.take(FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(unreadable)?;
        let mut loaded = self.open(bytes)?;
        let confirmed_at = &mut loaded.state.confirmed_at;
        if let (Some(key), Some(salt)) = (&self.key, &self.salt) {
            let later = sidecar::read_confirmation(&sibling(&self.path, CONFIRMATION), key, salt);
            *confirmed_at = (*confirmed_at).max(later.unwrap_or_default());
        }
        if *confirmed_at == 0 {
            // Files of older programs have no time. The state was confirmed when it was written, or
            // later.
            *confirmed_at = metadata.modified().map_or(0, unix_seconds);
        }
        Ok(Some(loaded))
    }

    fn open(&mut self, mut bytes: Vec<u8>) -> Result<LoadedState, LastGoodError> {
        let path = self.path.clone();
        let wrong = |found| LastGoodError::WrongFormat { path: path.clone(), found };
        if !bytes.starts_with(MAGIC) {
            return Err(wrong(if bytes.is_empty() { "it is empty" } else { "it starts differently" }));
        }
        let mut sealed = if bytes.len() >= HEADER_BYTES { bytes.split_off(HEADER_BYTES) } else { Vec::new() };
        let mut header = bytes.get(MAGIC.len()..).unwrap_or_default();
        let version = header.try_get_u16_le().map_err(|_| wrong("it is cut short"))?;
        if !matches!(version, FORMAT_VERSION | FORMAT_VERSION_1) {
            return Err(LastGoodError::UnsupportedVersion { path, found: version });
        }
        let Some((salt, nonce)) =
            header.split_first_chunk::<SALT_BYTES>().filter(|(_, nonce)| nonce.len() == NONCE_LEN)
        else {
            return Err(wrong("it is cut short"));
        };
        let old_format = version == FORMAT_VERSION_1;
        let (secret, info, key_name) = if old_format {
            (self.node_key.as_slice(), HKDF_INFO_VERSION_1, "the one in countersign.node.key".to_owned())
        } else {
            let key_path = key::path_of(&self.path);
            self.key = key::read(&key_path)
                .map_err(|source| LastGoodError::ReadKey { path: key_path.clone(), source })?;
            let key = self
                .key
                .as_ref()
                .ok_or(LastGoodError::MissingKey { path: path.clone(), key: key_path.clone() })?;
            (key.as_slice(), HKDF_INFO, format!("the one in {}", key_path.display()))
        };
        let undecipherable = || LastGoodError::Decrypt { path: path.clone(), key: key_name.clone() };
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| undecipherable())?;
        let sealing_key = sealing_key(secret, salt, info).ok_or_else(undecipherable)?;
        let plaintext_length = sealing_key
            .open_in_place(nonce, Aad::from(&bytes), &mut sealed)
            .map_err(|_| undecipherable())?
            .len();
        let salt = *salt;
        sealed.truncate(plaintext_length);
        let plaintext = Zeroizing::new(sealed);
        let state = decode(&plaintext)
            .map_err(|problem| LastGoodError::InvalidContent { path: path.clone(), problem })?;
        self.salt = Some(salt);
        Ok(LoadedState { state, old_format })
    }

    /// Gives the bytes to write. Creates the key where there is none, and restores its file where
    /// that was lost. Takes milliseconds a megabyte: only for a thread with nothing else to do.
    pub(crate) fn seal(&mut self, state: &SavedState) -> Result<Vec<u8>, LastGoodError> {
        let path = key::path_of(&self.path);
        let key = create_folder_of(&path).and_then(|()| match &self.key {
            Some(key) => key::restore(&path, key).map(|()| key.clone()),
            None => key::read_or_create(&path),
        });
        let secret =
            self.key.insert(key.map_err(|source| LastGoodError::CreateKey { path, source })?).clone();
        let mut header = Vec::with_capacity(HEADER_BYTES);
        header.extend_from_slice(MAGIC);
        header.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        let mut random = [0; SALT_BYTES + NONCE_LEN];
        aws_lc_rs::rand::fill(&mut random).map_err(|_| LastGoodError::Encrypt)?;
        header.extend_from_slice(&random);

        let (salt, nonce) = random.split_at(SALT_BYTES);
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| LastGoodError::Encrypt)?;
        let sealing_key = sealing_key(&*secret, salt, HKDF_INFO).ok_or(LastGoodError::Encrypt)?;
        // Sealed in place: the clear text never lies in a second buffer.
        let mut body = encode(state);
        sealing_key
            .seal_in_place_append_tag(nonce, Aad::from(&header), &mut *body)
            .map_err(|_| LastGoodError::Encrypt)?;
        header.extend_from_slice(&body);
        Ok(header)
    }

    /// Records that bytes of [`Self::seal`] with this header are on disk now.
    pub(crate) fn record_written(&mut self, header: [u8; HEADER_BYTES]) {
        self.salt = header.get(MAGIC.len() + 2..).and_then(<[u8]>::first_chunk).copied();
    }

    /// The stores whose state was held, if the list has a MAC under the key of this file.
    pub(crate) fn read_held_stores(&self) -> Vec<String> {
        let list = self
            .key
            .as_ref()
            .and_then(|key| sidecar::read(&sibling(&self.path, HELD_STORES), key, HELD_STORES_CONTEXT));
        list.and_then(|list| serde_json::from_slice(&list).ok()).unwrap_or_default()
    }

    /// `false`: there is no key yet for the MAC.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn write_held_stores(&self, stores: &[String]) -> io::Result<bool> {
        let path = sibling(&self.path, HELD_STORES);
        if stores.is_empty() {
            return remove_if_exists(&path).map(|()| true);
        }
        let Some(key) = &self.key else { return Ok(false) };
        sidecar::write(&path, key, HELD_STORES_CONTEXT, &serde_json::to_vec(stores)?).map(|()| true)
    }

    /// Writes that a control plane confirmed the state on disk at this moment. Restores the key's
    /// file where that was lost.
    ///
    /// # Errors
    /// The system's; none when this process neither read nor wrote a file.
    pub(crate) fn write_confirmation(&self, at: SystemTime) -> io::Result<()> {
        let (Some(key), Some(salt)) = (&self.key, &self.salt) else { return Ok(()) };
        key::restore(&key::path_of(&self.path), key)?;
        sidecar::write_confirmation(&sibling(&self.path, CONFIRMATION), key, salt, unix_seconds(at))
    }

    /// The path of the generation before.
    pub(crate) fn previous(&self) -> PathBuf {
        sibling(&self.path, PREVIOUS)
    }

    /// Replaces the generation before by the file on disk, which keeps its own name, too. Nothing
    /// happens without a file.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn keep_as_previous(&self) -> io::Result<()> {
        let previous = self.previous();
        let new = sibling(&previous, ".new");
        remove_if_exists(&new)?;
        match fs::hard_link(&self.path, &new) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            // A file system without hard links.
            Err(_) => drop(fs::copy(&self.path, &new)?),
            Ok(()) => {}
        }
        // Its age counts from now, not from when it was written.
        bounded_read::open_regular(&new).map_err(io::Error::from)?.set_modified(SystemTime::now())?;
        fs::rename(&new, &previous)
    }
}

/// Suffixes of the files beside the last-good file.
const CONFIRMATION: &str = ".confirmed";
const PREVIOUS: &str = ".previous";
const HELD_STORES: &str = ".held";
const HELD_STORES_CONTEXT: &[u8] = b"countersign last good held stores";

/// The path with a suffix to its last name.
fn sibling(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

pub(super) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Creates the folder of a file, for this user alone, unless it exists.
pub(crate) fn create_folder_of(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder_of(path))
}

/// # Errors
/// The system's.
pub(super) fn remove_if_exists(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Since 1970; 0 before.
pub(super) fn unix_seconds(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn sealing_key(secret: &[u8], salt: &[u8], info: &[u8]) -> Option<LessSafeKey> {
    let extracted = hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(secret);
    let info = [info];
    let expanded = extracted.expand(&info, &AES_256_GCM).ok()?;
    Some(LessSafeKey::new(UnboundKey::from(expanded)))
}

fn encode(SavedState { store, snapshot, tickets, confirmed_at }: &SavedState) -> Zeroizing<Vec<u8>> {
    let revision = snapshot.revision();
    let head = LastGood {
        store: store.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        revision,
        tickets: tickets.as_deref().map(tickets_to_wire),
        confirmed: *confirmed_at,
    };
    let delta = Delta {
        from: 0,
        to: revision,
        upserts: snapshot.resources().cloned().collect(),
        removals: Vec::new(),
    };
    // Measured first, so that the buffer is never moved, which would leave clear text behind; and
    // lazily both times, so that one chunk exists beside the buffer and not a second copy of all.
    let framed = |length: usize| length + prost::length_delimiter_len(length);
    let delta_length: usize = chunks(&delta, CHUNK_BYTES).map(|chunk| framed(chunk.encoded_len())).sum();
    let capacity = framed(head.encoded_len()) + delta_length + AES_256_GCM.tag_len();
    let mut body = Zeroizing::new(Vec::with_capacity(capacity));
    // Encoding fails only for lack of capacity, and a Vec grows.
    let _ = head.encode_length_delimited(&mut *body);
    for chunk in chunks(&delta, CHUNK_BYTES) {
        let _ = chunk.encode_length_delimited(&mut *body);
    }
    body
}

fn decode(plaintext: &[u8]) -> Result<SavedState, String> {
    let mut rest = plaintext;
    let head = LastGood::decode_length_delimited(&mut rest).map_err(|error| error.to_string())?;
    let mut assembler = DeltaAssembler::new(0);
    let mut delta = None;
    while rest.has_remaining() {
        if delta.is_some() {
            return Err("more follows the last chunk".into());
        }
        let chunk = Chunk::decode_length_delimited(&mut rest).map_err(|error| error.to_string())?;
        delta = assembler.push(chunk).map_err(|errors| {
            let first = errors.first().map(|error| match &error.key {
                Some(key) => format!("{key}: {}", error.problem),
                None => error.problem.to_string(),
            });
            first.unwrap_or_default()
        })?;
    }
    let delta = delta.ok_or("the last chunk is missing")?;
    if delta.to != head.revision {
        return Err("the revisions in it disagree".into());
    }
    let tickets = head.tickets.as_ref().map(tickets_from_wire).transpose();
    let tickets = tickets.map_err(|problem| problem.to_string())?.map(Arc::new);
    let snapshot = Arc::new(Snapshot::empty().apply(&delta));
    Ok(SavedState { store: head.store, snapshot, tickets, confirmed_at: head.confirmed })
}

#[cfg(test)]
mod tests;
