//! The traffic secret of one direction, its record key, and the sequence number (RFC 8446 sections
//! 5.3, 7.2 and 7.3).
//!
//! Invariants: the record key always belongs to the secret beside it. A key update replaces both,
//! and a sequence number only grows, so no two records share a key and a number.

use aws_lc_rs::aead::{self, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use rustls::crypto::tls13::{HkdfExpander, OkmBlock};
use rustls::{ConnectionTrafficSecrets, Tls13CipherSuite};
use zeroize::Zeroizing;

use super::RecordError;
use super::framing::HEADER;

/// The tag that every suite of TLS 1.3 adds to a record. Bytes.
pub(super) const TAG: usize = 16;
/// The longest key of a suite. Bytes.
const KEY_MAX: usize = 32;
/// KeyUpdates per direction that rustls may have processed before a connection detaches.
pub(in crate::tls) const KEY_UPDATES_MAX: u8 = 32;

/// The secret and the key of one direction.
pub(super) struct TrafficKeys {
    suite: &'static Tls13CipherSuite,
    secret: OkmBlock,
    /// `None`: a key update failed, and the direction is unusable.
    key: Option<RecordKey>,
}

/// A record key, and the sequence number of the next record.
pub(super) struct RecordKey {
    key: LessSafeKey,
    iv: [u8; NONCE_LEN],
    sequence: u64,
}

impl TrafficKeys {
    /// Continues with the key that rustls has used for `sequence` records: the key of `first`, or
    /// after KeyUpdates of a secret that follows from it.
    ///
    /// # Errors
    /// [`RecordError::Keys`]: the key follows from no such secret.
    pub(super) fn from_rustls(
        suite: &'static Tls13CipherSuite,
        first: OkmBlock,
        (sequence, keys): (u64, &ConnectionTrafficSecrets),
    ) -> Result<Self, RecordError> {
        let (algorithm, rustls_key, iv) = key_material(keys)?;
        let mut secret = first;
        for _ in 0..=KEY_UPDATES_MAX {
            let expander = suite.hkdf_provider.expander_for_okm(&secret);
            let mut key = Zeroizing::new([0; KEY_MAX]);
            let key = expand_key(algorithm, expander.as_ref(), &mut key)?;
            if verify_slices_are_equal(key, rustls_key).is_ok() {
                let key = Some(RecordKey::new(algorithm, key, iv, sequence)?);
                return Ok(Self { suite, secret, key });
            }
            secret = next_secret(&secret, expander.as_ref())?;
        }
        Err(RecordError::Keys)
    }

    /// Replaces the secret by the next one, and the key by the key of that.
    ///
    /// # Errors
    /// [`RecordError::Keys`]: the direction is unusable.
    pub(super) fn update(&mut self) -> Result<(), RecordError> {
        let hkdf = self.suite.hkdf_provider;
        let algorithm = self.key.take().ok_or(RecordError::Keys)?.key.algorithm();
        self.secret = next_secret(&self.secret, hkdf.expander_for_okm(&self.secret).as_ref())?;
        let expander = hkdf.expander_for_okm(&self.secret);
        let (mut key, mut iv) = (Zeroizing::new([0; KEY_MAX]), [0; NONCE_LEN]);
        let key = expand_key(algorithm, expander.as_ref(), &mut key)?;
        expand_label(expander.as_ref(), b"iv", &mut iv)?;
        self.key = Some(RecordKey::new(algorithm, key, iv, 0)?);
        Ok(())
    }

    /// Encrypts a record as the peer would, for this read direction.
    #[cfg(test)]
    pub(super) fn seal_as_peer(&mut self, header: [u8; HEADER], body: &mut [u8]) -> [u8; TAG] {
        let key = self.key.as_mut().unwrap();
        let sequence = key.sequence;
        let tag = key.seal(header, body).unwrap();
        key.sequence = sequence;
        tag
    }

    /// The sequence number of the next record.
    pub(super) fn sequence(&self) -> u64 {
        self.key.as_ref().map_or(u64::MAX, |key| key.sequence)
    }

    /// Decrypts the body of a record in place; returns the length of its plaintext.
    pub(super) fn open(&mut self, header: [u8; HEADER], body: &mut [u8]) -> Result<usize, RecordError> {
        self.key.as_mut().ok_or(RecordError::Keys)?.open(header, body)
    }

    /// Encrypts the body of a record in place; returns its tag.
    pub(super) fn seal(&mut self, header: [u8; HEADER], body: &mut [u8]) -> Result<[u8; TAG], RecordError> {
        self.key.as_mut().ok_or(RecordError::Keys)?.seal(header, body)
    }
}

impl RecordKey {
    /// The key that rustls has used for `sequence` records.
    pub(super) fn from_rustls(
        (sequence, keys): (u64, &ConnectionTrafficSecrets),
    ) -> Result<Self, RecordError> {
        let (algorithm, key, iv) = key_material(keys)?;
        Self::new(algorithm, key, iv, sequence)
    }

    fn new(
        algorithm: &'static aead::Algorithm,
        key: &[u8],
        iv: [u8; NONCE_LEN],
        sequence: u64,
    ) -> Result<Self, RecordError> {
        let key = UnboundKey::new(algorithm, key).map_err(|_| RecordError::Keys)?;
        Ok(Self { key: LessSafeKey::new(key), iv, sequence })
    }

    fn open(&mut self, header: [u8; HEADER], body: &mut [u8]) -> Result<usize, RecordError> {
        let nonce = self.next_nonce()?;
        let plaintext = self.key.open_in_place(nonce, Aad::from(header), body);
        Ok(plaintext.map_err(|_| RecordError::Decrypt)?.len())
    }

    /// See [`TrafficKeys::seal`].
    pub(super) fn seal(&mut self, header: [u8; HEADER], body: &mut [u8]) -> Result<[u8; TAG], RecordError> {
        let nonce = self.next_nonce()?;
        let tag = self.key.seal_in_place_separate_tag(nonce, Aad::from(header), body);
        let tag = tag.map_err(|_| RecordError::Keys)?;
        tag.as_ref().try_into().map_err(|_| RecordError::Keys)
    }

    /// The nonce of the next record; each call moves on to another record.
    fn next_nonce(&mut self) -> Result<Nonce, RecordError> {
        let mut nonce = self.iv;
        for (byte, number) in nonce.iter_mut().rev().zip(self.sequence.to_le_bytes()) {
            *byte ^= number;
        }
        self.sequence = self.sequence.checked_add(1).ok_or(RecordError::Keys)?;
        Ok(Nonce::assume_unique_for_key(nonce))
    }
}

/// The algorithm, the key and the IV that rustls exposes.
fn key_material(
    keys: &ConnectionTrafficSecrets,
) -> Result<(&'static aead::Algorithm, &[u8], [u8; NONCE_LEN]), RecordError> {
    let (algorithm, key, iv) = match keys {
        ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&aead::AES_128_GCM, key, iv),
        ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&aead::AES_256_GCM, key, iv),
        ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (&aead::CHACHA20_POLY1305, key, iv),
        _ => return Err(RecordError::Keys),
    };
    Ok((algorithm, key.as_ref(), iv.as_ref().try_into().map_err(|_| RecordError::Keys)?))
}

/// The secret after `secret`, which `expander` expands.
fn next_secret(secret: &OkmBlock, expander: &dyn HkdfExpander) -> Result<OkmBlock, RecordError> {
    let mut next = Zeroizing::new([0; OkmBlock::MAX_LEN]);
    let next = next.get_mut(..secret.as_ref().len()).ok_or(RecordError::Keys)?;
    expand_label(expander, b"traffic upd", next)?;
    Ok(OkmBlock::new(next))
}

/// The record key of the secret that `expander` expands.
fn expand_key<'a>(
    algorithm: &aead::Algorithm,
    expander: &dyn HkdfExpander,
    key: &'a mut [u8; KEY_MAX],
) -> Result<&'a [u8], RecordError> {
    let key = key.get_mut(..algorithm.key_len()).ok_or(RecordError::Keys)?;
    expand_label(expander, b"key", key)?;
    Ok(key)
}

/// HKDF-Expand-Label without a context (RFC 8446 section 7.1).
fn expand_label(expander: &dyn HkdfExpander, label: &[u8], out: &mut [u8]) -> Result<(), RecordError> {
    const PREFIX: &[u8] = b"tls13 ";
    let len = u16::try_from(out.len()).map_err(|_| RecordError::Keys)?.to_be_bytes();
    let label_len = u8::try_from(PREFIX.len() + label.len()).map_err(|_| RecordError::Keys)?;
    expander.expand_slice(&[&len, &[label_len], PREFIX, label, &[0]], out).map_err(|_| RecordError::Keys)
}
