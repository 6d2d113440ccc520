//! Encryption of private keys at rest, compatible with APISIX (`apisix.data_encryption.keyring`).
//!
//! Stored text -> [`Keyring::open`] -> PEM -> `key`; PEM from the Admin API -> [`Keyring::seal`] ->
//! the store. An entry of 16 bytes is an AES-128-CBC key, an entry of 32 bytes an AES-256-CBC key;
//! the IV is the first 16 bytes of the entry; padding is PKCS#7; the encoding is standard base64.
//! There is no MAC, so a wrong key passes the padding check once in about 256 times: decrypted text
//! must also start with `---`, as all encrypted text does. Invariant: decrypted text is wiped on
//! drop and never in an error.

use std::fmt;

use aes::{Aes128, Aes256};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cbc::cipher::block_padding::Pkcs7;
use cbc::cipher::{BlockModeDecrypt, BlockModeEncrypt, KeyIvInit};
use thiserror::Error;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// Only text with this prefix is encrypted: PEM, possibly after `---`-style markers.
const PEM_PREFIX: &str = "---";

/// Why a keyring or a stored text is invalid. The messages of the latter are those of APISIX.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum KeyringError {
    /// An entry is neither an AES-128 nor an AES-256 key.
    #[error("keyring entry {position} has {found} bytes: an entry must have 16 (AES-128) or 32 (AES-256)")]
    Length {
        /// Counts from 1.
        position: usize,
        /// Length in bytes.
        found: usize,
    },
    /// The stored text is neither PEM nor base64.
    #[error("base64 decode ssl key failed")]
    Base64,
    /// No key of the keyring decrypts it.
    #[error("decrypt ssl key failed")]
    Decrypt,
}

#[derive(Zeroize, ZeroizeOnDrop, PartialEq, Eq)]
enum AesKey {
    Aes128([u8; 16]),
    Aes256([u8; 32]),
}

/// The keys for private keys at rest: the first one encrypts, all decrypt. Wiped on drop. Two are
/// equal when their keys and their order are.
#[derive(PartialEq, Eq)]
pub struct Keyring {
    keys: Vec<AesKey>,
}

impl Keyring {
    /// Makes a keyring. The raw bytes of an entry are the key. An empty list gives
    /// [`Keyring::empty`].
    ///
    /// # Errors
    /// When an entry has neither 16 nor 32 bytes.
    pub fn new(entries: Vec<String>) -> Result<Self, KeyringError> {
        let mut keys = Vec::with_capacity(entries.len());
        for (index, text) in entries.into_iter().map(Zeroizing::new).enumerate() {
            let bytes = text.as_bytes();
            let entry = match bytes.len() {
                16 => bytes.try_into().map(AesKey::Aes128),
                32 => bytes.try_into().map(AesKey::Aes256),
                found => return Err(KeyringError::Length { position: index + 1, found }),
            };
            keys.push(entry.map_err(|_| KeyringError::Length { position: index + 1, found: bytes.len() })?);
        }
        Ok(Self { keys })
    }

    /// A keyring without keys: texts are stored in clear.
    pub fn empty() -> Self {
        Self { keys: Vec::new() }
    }

    /// Encrypts a text with the first key. Text that does not start with `---` (encrypted text, a
    /// reference) stays unchanged.
    pub fn seal(&self, text: &str) -> String {
        match self.keys.first() {
            Some(entry) if text.starts_with(PEM_PREFIX) => STANDARD.encode(entry.encrypt(text.as_bytes())),
            _ => text.to_owned(),
        }
    }

    /// Decrypts a stored text, with the first key that yields text starting with `---`. Text that
    /// already starts so, and any text of an empty keyring, is returned unchanged.
    ///
    /// # Errors
    /// [`KeyringError::Base64`] when it is not base64, [`KeyringError::Decrypt`] when no key
    /// decrypts it.
    pub fn open(&self, stored: &str) -> Result<Zeroizing<String>, KeyringError> {
        if stored.starts_with(PEM_PREFIX) || self.keys.is_empty() {
            return Ok(Zeroizing::new(stored.to_owned()));
        }
        let sealed = STANDARD.decode(stored).map_err(|_| KeyringError::Base64)?;
        self.keys.iter().find_map(|entry| entry.decrypt(&sealed)).ok_or(KeyringError::Decrypt)
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keyring({} entries, not shown)", self.keys.len())
    }
}

impl AesKey {
    fn encrypt(&self, text: &[u8]) -> Vec<u8> {
        match self {
            Self::Aes128(key) => {
                cbc::Encryptor::<Aes128>::new(key.into(), key.into()).encrypt_padded_vec::<Pkcs7>(text)
            }
            Self::Aes256(key) => {
                cbc::Encryptor::<Aes256>::new(key.into(), &initialisation_vector(key).into())
                    .encrypt_padded_vec::<Pkcs7>(text)
            }
        }
    }

    fn decrypt(&self, sealed: &[u8]) -> Option<Zeroizing<String>> {
        let mut buffer = Zeroizing::new(sealed.to_vec());
        let length = match self {
            Self::Aes128(key) => cbc::Decryptor::<Aes128>::new(key.into(), key.into())
                .decrypt_padded::<Pkcs7>(&mut buffer)
                .ok()?
                .len(),
            Self::Aes256(key) => {
                cbc::Decryptor::<Aes256>::new(key.into(), &initialisation_vector(key).into())
                    .decrypt_padded::<Pkcs7>(&mut buffer)
                    .ok()?
                    .len()
            }
        };
        let text = std::str::from_utf8(buffer.get(..length)?).ok()?;
        text.starts_with(PEM_PREFIX).then(|| Zeroizing::new(text.to_owned()))
    }
}

/// As APISIX: the first block of the key's own bytes.
fn initialisation_vector(key: &[u8; 32]) -> [u8; 16] {
    let mut iv = [0; 16];
    for (to, from) in iv.iter_mut().zip(key) {
        *to = *from;
    }
    iv
}

#[cfg(test)]
mod tests;
