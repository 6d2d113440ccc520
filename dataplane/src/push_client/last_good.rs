//! The last good snapshot as bytes: what a data plane serves after a restart when no control plane
//! answers.
//!
//! Layout: magic, format version (u16, little endian), salt, nonce; then AES-256-GCM over
//! length-delimited protobuf: one `LastGood` (whose store, which revision, the ticket secrets),
//! then the snapshot as the chunks of a delta from nothing. The key is HKDF-SHA256 over a random
//! key in a file of its own (`key`), in format version 1 over the node's push key; a new salt a
//! write, so no key is used twice. The tag, which covers the header, is the checksum. Beside it:
//! when it was last `confirmed`, which stores were held, and the generation before. Invariant: a
//! file is taken whole or not at all.

mod confirmed;
mod key;
mod sidecar;

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
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

use super::saver::SavedState;

const MAGIC: &[u8; 8] = b"CSLGOOD\0";
const VERSION: u16 = 2;
/// Sealed with a key from the node's push key; read, and written no more.
const VERSION_NODE_KEY: u16 = 1;
const SALT: usize = 32;
pub(super) const HEADER: usize = MAGIC.len() + 2 + SALT + NONCE_LEN;
const INFO: &[u8] = b"countersign last good snapshot v2";
const INFO_NODE_KEY: &[u8] = b"countersign last good snapshot v1";
const CHUNK_BYTES: usize = 1 << 20;
/// Larger than any snapshot we can serve; a file beyond it is not ours.
const FILE_BYTES_MAX: u64 = 4 << 30;

/// Where the file is and what opens it. No `Debug`: it holds keys.
pub(super) struct LastGoodFile {
    path: PathBuf,
    /// The node's push key, for files of format version 1.
    node_key: Zeroizing<Vec<u8>>,
    /// Read or made when it is first needed.
    key: Option<key::FileKey>,
    /// Of the file on disk, where this process read or wrote it.
    salt: Option<[u8; SALT]>,
}

/// What the file held.
#[derive(Debug)]
pub(super) struct LoadedState {
    /// Whose revisions these are.
    pub store: String,
    pub snapshot: Snapshot,
    pub tickets: Option<TicketRing>,
    /// When a control plane last confirmed this state. Seconds since 1970.
    pub confirmed: u64,
    /// It is sealed with the node's push key, and to be written anew.
    pub old_format: bool,
}

/// Why the file is not used. The data plane then starts with nothing and fetches everything.
#[derive(Debug, thiserror::Error)]
pub(super) enum LastGoodError {
    #[error("countersign.node.last_good: cannot read {path}: {source}; starting with nothing", path = path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("countersign.node.last_good: {path} is not a last good snapshot ({found}); starting with nothing", path = path.display())]
    WrongFormat { path: PathBuf, found: &'static str },
    #[error(
        "countersign.node.last_good: {path} has format version {found}, this program reads {VERSION}; starting with nothing",
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
    pub(super) fn new(path: PathBuf, node_key: &pki::PrivateKey) -> Self {
        let node_key = Zeroizing::new(node_key.der().secret_der().to_vec());
        Self { path, node_key, key: None, salt: None }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// `None`: there is no file.
    pub(super) fn read(&mut self) -> Result<Option<LoadedState>, LastGoodError> {
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
        let mut saved = self.open(bytes)?;
        if let (Some(key), Some(salt)) = (&self.key, &self.salt) {
            let later = confirmed::read(&sibling(&self.path, CONFIRMED), key, salt);
            saved.confirmed = saved.confirmed.max(later.unwrap_or_default());
        }
        if saved.confirmed == 0 {
            // Of before this was kept: then it was last confirmed when it was written, or later.
            saved.confirmed = metadata.modified().map_or(0, unix_seconds);
        }
        Ok(Some(saved))
    }

    fn open(&mut self, mut bytes: Vec<u8>) -> Result<LoadedState, LastGoodError> {
        let path = self.path.clone();
        let foreign = |found| LastGoodError::WrongFormat { path: path.clone(), found };
        if !bytes.starts_with(MAGIC) {
            return Err(foreign(if bytes.is_empty() { "it is empty" } else { "it starts differently" }));
        }
        let mut sealed = if bytes.len() >= HEADER { bytes.split_off(HEADER) } else { Vec::new() };
        let mut header = bytes.get(MAGIC.len()..).unwrap_or_default();
        let version = header.try_get_u16_le().map_err(|_| foreign("it is cut short"))?;
        if !matches!(version, VERSION | VERSION_NODE_KEY) {
            return Err(LastGoodError::UnsupportedVersion { path, found: version });
        }
        let Some((salt, nonce)) =
            header.split_first_chunk::<SALT>().filter(|(_, nonce)| nonce.len() == NONCE_LEN)
        else {
            return Err(foreign("it is cut short"));
        };
        let old_format = version == VERSION_NODE_KEY;
        let (secret, info, name) = if old_format {
            (self.node_key.as_slice(), INFO_NODE_KEY, "the one in countersign.node.key".to_owned())
        } else {
            let key_path = key::path_of(&self.path);
            self.key = key::read(&key_path)
                .map_err(|source| LastGoodError::ReadKey { path: key_path.clone(), source })?;
            let key = self
                .key
                .as_ref()
                .ok_or(LastGoodError::MissingKey { path: path.clone(), key: key_path.clone() })?;
            (key.as_slice(), INFO, format!("the one in {}", key_path.display()))
        };
        let unopened = || LastGoodError::Decrypt { path: path.clone(), key: name.clone() };
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| unopened())?;
        let sealing = sealing_key(secret, salt, info).ok_or_else(unopened)?;
        let plain =
            sealing.open_in_place(nonce, Aad::from(&bytes), &mut sealed).map_err(|_| unopened())?.len();
        let salt = *salt;
        sealed.truncate(plain);
        let plain = Zeroizing::new(sealed);
        let saved = decode(&plain)
            .map_err(|problem| LastGoodError::InvalidContent { path: path.clone(), problem })?;
        self.salt = Some(salt);
        Ok(LoadedState { old_format, ..saved })
    }

    /// The bytes to write; makes the key where there is none, and puts it back where its file was
    /// lost. Takes milliseconds a megabyte: not for a thread that has other things to do.
    pub(super) fn seal(&mut self, item: &SavedState) -> Result<Vec<u8>, LastGoodError> {
        let path = key::path_of(&self.path);
        let made = make_folder(&path).and_then(|()| match &self.key {
            Some(key) => key::restore(&path, key).map(|()| key.clone()),
            None => key::read_or_create(&path),
        });
        let secret =
            self.key.insert(made.map_err(|source| LastGoodError::CreateKey { path, source })?).clone();
        let mut header = Vec::with_capacity(HEADER);
        header.extend_from_slice(MAGIC);
        header.extend_from_slice(&VERSION.to_le_bytes());
        let mut random = [0; SALT + NONCE_LEN];
        aws_lc_rs::rand::fill(&mut random).map_err(|_| LastGoodError::Encrypt)?;
        header.extend_from_slice(&random);

        let (salt, nonce) = random.split_at(SALT);
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| LastGoodError::Encrypt)?;
        let key = sealing_key(&*secret, salt, INFO).ok_or(LastGoodError::Encrypt)?;
        // Sealed in place: the clear text never lies in a second buffer.
        let mut body = encode(item);
        key.seal_in_place_append_tag(nonce, Aad::from(&header), &mut *body)
            .map_err(|_| LastGoodError::Encrypt)?;
        header.extend_from_slice(&body);
        Ok(header)
    }

    /// These bytes, which [`Self::seal`] made, are on disk now.
    pub(super) fn record_written(&mut self, header: [u8; HEADER]) {
        self.salt = header.get(MAGIC.len() + 2..).and_then(<[u8]>::first_chunk).copied();
    }

    /// The stores whose state was held, as noted with the key of this file.
    pub(super) fn read_held_stores(&self) -> Vec<String> {
        let noted =
            self.key.as_ref().and_then(|key| sidecar::read(&sibling(&self.path, HELD), key, HELD_CONTEXT));
        noted.and_then(|noted| serde_json::from_slice(&noted).ok()).unwrap_or_default()
    }

    /// Notes them; `false`: there is no key yet to do it with.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn write_held_stores(&self, stores: &[String]) -> io::Result<bool> {
        let path = sibling(&self.path, HELD);
        if stores.is_empty() {
            return sidecar::remove(&path).map(|()| true);
        }
        let Some(key) = &self.key else { return Ok(false) };
        sidecar::write(&path, key, HELD_CONTEXT, &serde_json::to_vec(stores)?).map(|()| true)
    }

    /// Notes that a control plane confirmed at this moment what is on disk. Puts the key back where
    /// its file was lost.
    ///
    /// # Errors
    /// The system's; nothing is wrong when this process neither read nor wrote a file.
    pub(super) fn write_confirmation(&self, at: SystemTime) -> io::Result<()> {
        let (Some(key), Some(salt)) = (&self.key, &self.salt) else { return Ok(()) };
        key::restore(&key::path_of(&self.path), key)?;
        confirmed::write(&sibling(&self.path, CONFIRMED), key, salt, unix_seconds(at))
    }

    /// The file of the generation before.
    pub(super) fn previous(&self) -> PathBuf {
        sibling(&self.path, PREVIOUS)
    }

    /// Puts the file on disk in the place of the generation before, which it stays a name of until
    /// it is replaced. Nothing happens where there is none.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn keep_as_previous(&self) -> io::Result<()> {
        let previous = self.previous();
        let new = sibling(&previous, ".new");
        sidecar::remove(&new)?;
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

/// What is added to the file's name for what lies beside it.
const CONFIRMED: &str = ".confirmed";
const PREVIOUS: &str = ".previous";
const HELD: &str = ".held";
const HELD_CONTEXT: &[u8] = b"countersign last good held stores";

/// The path with something behind its last name.
fn sibling(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}

pub(super) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes the folder of a file, for this user alone, where it is not there.
pub(super) fn make_folder(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder_of(path))
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

fn encode(SavedState { store, snapshot, tickets, confirmed }: &SavedState) -> Zeroizing<Vec<u8>> {
    let revision = snapshot.revision();
    let whose = LastGood {
        store: store.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        revision,
        tickets: tickets.as_deref().map(tickets_to_wire),
        confirmed: *confirmed,
    };
    let all = Delta {
        from: 0,
        to: revision,
        upserts: snapshot.resources().cloned().collect(),
        removals: Vec::new(),
    };
    // Measured first, so that the buffer is never moved, which would leave clear text behind; and
    // lazily both times, so that one chunk exists beside the buffer and not a second copy of
    // everything.
    let framed = |length: usize| length + prost::length_delimiter_len(length);
    let pieces: usize = chunks(&all, CHUNK_BYTES).map(|chunk| framed(chunk.encoded_len())).sum();
    let room = framed(whose.encoded_len()) + pieces + AES_256_GCM.tag_len();
    let mut body = Zeroizing::new(Vec::with_capacity(room));
    // Encoding fails only for want of room, and a Vec makes room.
    let _ = whose.encode_length_delimited(&mut *body);
    for chunk in chunks(&all, CHUNK_BYTES) {
        let _ = chunk.encode_length_delimited(&mut *body);
    }
    body
}

fn decode(plain: &[u8]) -> Result<LoadedState, String> {
    let mut rest = plain;
    let whose = LastGood::decode_length_delimited(&mut rest).map_err(|error| error.to_string())?;
    let mut assembler = DeltaAssembler::new(0);
    let mut whole = None;
    while rest.has_remaining() {
        if whole.is_some() {
            return Err("more follows the last chunk".into());
        }
        let chunk = Chunk::decode_length_delimited(&mut rest).map_err(|error| error.to_string())?;
        whole = assembler.push(chunk).map_err(|refusals| {
            let told = refusals.first().map(|refusal| match &refusal.key {
                Some(key) => format!("{key}: {}", refusal.problem),
                None => refusal.problem.to_string(),
            });
            told.unwrap_or_default()
        })?;
    }
    let delta = whole.ok_or("the last chunk is missing")?;
    if delta.to != whose.revision {
        return Err("the revisions in it disagree".into());
    }
    let tickets = whose.tickets.as_ref().map(tickets_from_wire).transpose();
    let tickets = tickets.map_err(|problem| problem.to_string())?;
    let snapshot = Snapshot::empty().apply(&delta);
    Ok(LoadedState { store: whose.store, snapshot, tickets, confirmed: whose.confirmed, old_format: false })
}

#[cfg(test)]
mod tests;
