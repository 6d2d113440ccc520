//! The last good snapshot as bytes: what a data plane serves after a restart when no control plane answers.
//!
//! Layout: magic, format version (u16, little endian), salt, nonce; then AES-256-GCM over length-delimited protobuf: one
//! `LastGood` (whose store, which revision, the ticket secrets), then the snapshot as the chunks of a delta from nothing. The key is HKDF-SHA256
//! over the node's push key, so only who could fetch the snapshot can read it; a new salt a write, so no key is used twice. The tag,
//! which covers the header, is the checksum. Invariant: a file is taken whole or not at all.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hkdf;
use bytes::Buf;
use model::wire::{DeltaAssembler, chunks, tickets_from_wire, tickets_to_wire};
use model::{Delta, Snapshot, TicketRing};
use prost::Message;
use proto::push::{Chunk, LastGood};
use zeroize::Zeroizing;

use super::saver::ToSave;

const MAGIC: &[u8; 8] = b"CSLGOOD\0";
const VERSION: u16 = 1;
const SALT: usize = 32;
const HEADER: usize = MAGIC.len() + 2 + SALT + NONCE_LEN;
const INFO: &[u8] = b"countersign last good snapshot v1";
const CHUNK_BYTES: usize = 1 << 20;
/// Larger than any snapshot we can serve; a file beyond it is not ours.
const FILE_BYTES_MAX: u64 = 4 << 30;

/// Where the file is and what opens it. No `Debug`: it holds a key.
#[derive(Clone)]
pub(super) struct File {
    path: PathBuf,
    secret: Zeroizing<Vec<u8>>,
}

/// What the file held.
#[derive(Debug)]
pub(super) struct Saved {
    /// Whose revisions these are.
    pub store: String,
    pub snapshot: Snapshot,
    pub tickets: Option<TicketRing>,
}

/// Why the file is not used. The data plane then starts with nothing and fetches everything.
#[derive(Debug, thiserror::Error)]
pub(super) enum LastGoodError {
    #[error("countersign.node.last_good: cannot read {path}: {source}; starting with nothing", path = path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("countersign.node.last_good: {path} is not a last good snapshot ({found}); starting with nothing", path = path.display())]
    Foreign { path: PathBuf, found: &'static str },
    #[error(
        "countersign.node.last_good: {path} has format version {found}, this program reads {VERSION}; starting with nothing",
        path = path.display()
    )]
    OtherVersion { path: PathBuf, found: u16 },
    #[error(
        "countersign.node.last_good: {path} is damaged, or was written with another countersign.node.key; starting with nothing",
        path = path.display()
    )]
    Unopened { path: PathBuf },
    #[error("countersign.node.last_good: {path} holds what cannot be served ({problem}); starting with nothing", path = path.display())]
    Content { path: PathBuf, problem: String },
    #[error("the last good snapshot cannot be encrypted")]
    Seal,
}

impl File {
    pub fn new(path: PathBuf, key: &pki::PrivateKey) -> Self {
        Self { path, secret: Zeroizing::new(key.der().secret_der().to_vec()) }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `None`: there is no file.
    pub fn read(&self) -> Result<Option<Saved>, LastGoodError> {
        let unreadable = |source| LastGoodError::Unreadable { path: self.path.clone(), source };
        let file = match fs::File::open(&self.path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(unreadable)?,
        };
        if file.metadata().map_err(unreadable)?.len() > FILE_BYTES_MAX {
            return Err(LastGoodError::Foreign { path: self.path.clone(), found: "it is too large" });
        }
        let mut bytes = Vec::new();
        file.take(FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(unreadable)?;
        self.open(bytes).map(Some)
    }

    fn open(&self, mut bytes: Vec<u8>) -> Result<Saved, LastGoodError> {
        let foreign = |found| LastGoodError::Foreign { path: self.path.clone(), found };
        if !bytes.starts_with(MAGIC) {
            return Err(foreign(if bytes.is_empty() { "it is empty" } else { "it starts differently" }));
        }
        let mut sealed = if bytes.len() >= HEADER { bytes.split_off(HEADER) } else { Vec::new() };
        let mut header = bytes.get(MAGIC.len()..).unwrap_or_default();
        let version = header.try_get_u16_le().map_err(|_| foreign("it is cut short"))?;
        if version != VERSION {
            return Err(LastGoodError::OtherVersion { path: self.path.clone(), found: version });
        }
        if header.len() != SALT + NONCE_LEN {
            return Err(foreign("it is cut short"));
        }
        let (salt, nonce) = header.split_at(SALT);
        let unopened = || LastGoodError::Unopened { path: self.path.clone() };
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| unopened())?;
        let key = self.key(salt).ok_or_else(unopened)?;
        let plain = key.open_in_place(nonce, Aad::from(&bytes), &mut sealed).map_err(|_| unopened())?.len();
        sealed.truncate(plain);
        let plain = Zeroizing::new(sealed);
        decode(&plain).map_err(|problem| LastGoodError::Content { path: self.path.clone(), problem })
    }

    /// The bytes to write. Takes milliseconds a megabyte: not for a thread that has other things to do.
    pub fn seal(&self, item: &ToSave) -> Result<Vec<u8>, LastGoodError> {
        let mut header = Vec::with_capacity(HEADER);
        header.extend_from_slice(MAGIC);
        header.extend_from_slice(&VERSION.to_le_bytes());
        let mut random = [0; SALT + NONCE_LEN];
        aws_lc_rs::rand::fill(&mut random).map_err(|_| LastGoodError::Seal)?;
        header.extend_from_slice(&random);

        let (salt, nonce) = random.split_at(SALT);
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| LastGoodError::Seal)?;
        let key = self.key(salt).ok_or(LastGoodError::Seal)?;
        // Sealed in place: the clear text never lies in a second buffer.
        let mut body = encode(item);
        key.seal_in_place_append_tag(nonce, Aad::from(&header), &mut *body)
            .map_err(|_| LastGoodError::Seal)?;
        header.extend_from_slice(&body);
        Ok(header)
    }

    fn key(&self, salt: &[u8]) -> Option<LessSafeKey> {
        let extracted = hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(&self.secret);
        let expanded = extracted.expand(&[INFO], &AES_256_GCM).ok()?;
        Some(LessSafeKey::new(UnboundKey::from(expanded)))
    }
}

fn encode(ToSave { store, snapshot, tickets }: &ToSave) -> Zeroizing<Vec<u8>> {
    let revision = snapshot.revision();
    let whose = LastGood {
        store: store.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        revision,
        tickets: tickets.as_deref().map(tickets_to_wire),
    };
    let all = Delta {
        from: 0,
        to: revision,
        upserts: snapshot.resources().cloned().collect(),
        removals: Vec::new(),
    };
    // Measured first, so that the buffer is never moved, which would leave clear text behind; and lazily both times, so
    // that one chunk exists beside the buffer and not a second copy of everything.
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

fn decode(plain: &[u8]) -> Result<Saved, String> {
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
    Ok(Saved { store: whose.store, snapshot: Snapshot::empty().apply(&delta), tickets })
}

#[cfg(test)]
mod tests;
