//! One direction of a TLS 1.3 connection: its traffic secret, the record key made from it, and the
//! number of the next record (RFC 8446 sections 5.3, 7.2 and 7.3).
//!
//! Invariants: a record key always belongs to the secret beside it. A secret is replaced by the
//! next one when that is derived, and a number only grows, so no two records are sealed with one
//! key and one number.

use aws_lc_rs::aead::{self, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use rustls::crypto::tls13::{HkdfExpander, OkmBlock};
use rustls::{ConnectionTrafficSecrets, Tls13CipherSuite};
use zeroize::Zeroizing;

use super::RecordError;
use super::framing::HEADER;

/// What every suite of TLS 1.3 adds to a record. Bytes.
pub(super) const TAG: usize = 16;
/// The longest key of a suite. Bytes.
const KEY_MAX: usize = 32;
/// KeyUpdates that rustls may have processed in one direction before a connection is taken over.
pub(in crate::tls) const KEY_UPDATES_MAX: u8 = 32;

/// One direction's secret and key.
pub(super) struct TrafficKeys {
    suite: &'static Tls13CipherSuite,
    secret: OkmBlock,
    /// `None`: the key could not be renewed, and nothing passes any more.
    key: Option<RecordKey>,
}

/// A key, and the number of the next record under it.
pub(super) struct RecordKey {
    key: LessSafeKey,
    iv: [u8; NONCE_LEN],
    sequence: u64,
}

impl TrafficKeys {
    /// Goes on with the key that rustls has used for `sequence` records: that of `first`, or, after
    /// KeyUpdates, of a secret that follows from it.
    ///
    /// # Errors
    /// [`RecordError::Keys`]: the key belongs to none of the first secrets.
    pub(super) fn after(
        suite: &'static Tls13CipherSuite,
        first: OkmBlock,
        (sequence, keys): (u64, &ConnectionTrafficSecrets),
    ) -> Result<Self, RecordError> {
        let (algorithm, theirs, iv) = key_material(keys)?;
        let mut secret = first;
        for _ in 0..=KEY_UPDATES_MAX {
            let expander = suite.hkdf_provider.expander_for_okm(&secret);
            let mut key = Zeroizing::new([0; KEY_MAX]);
            let key = expand_key(algorithm, expander.as_ref(), &mut key)?;
            if verify_slices_are_equal(key, theirs).is_ok() {
                let key = Some(RecordKey::new(algorithm, key, iv, sequence)?);
                return Ok(Self { suite, secret, key });
            }
            secret = next_secret(&secret, expander.as_ref())?;
        }
        Err(RecordError::Keys)
    }

    /// Replaces secret and key by those that follow.
    ///
    /// # Errors
    /// [`RecordError::Keys`]: there is no key any more.
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

    /// As the peer would seal the next record that is read here.
    #[cfg(test)]
    pub(super) fn seal_as_peer(&mut self, header: [u8; HEADER], body: &mut [u8]) -> [u8; TAG] {
        let key = self.key.as_mut().unwrap();
        let sequence = key.sequence;
        let tag = key.seal(header, body).unwrap();
        key.sequence = sequence;
        tag
    }

    /// The number of the next record.
    pub(super) fn sequence(&self) -> u64 {
        self.key.as_ref().map_or(u64::MAX, |key| key.sequence)
    }

    /// Decrypts the body of a record where it lies; gives how long it is then.
    pub(super) fn open(&mut self, header: [u8; HEADER], body: &mut [u8]) -> Result<usize, RecordError> {
        self.key.as_mut().ok_or(RecordError::Keys)?.open(header, body)
    }

    /// Encrypts the body of a record where it lies; gives what follows it.
    pub(super) fn seal(&mut self, header: [u8; HEADER], body: &mut [u8]) -> Result<[u8; TAG], RecordError> {
        self.key.as_mut().ok_or(RecordError::Keys)?.seal(header, body)
    }
}

impl RecordKey {
    /// The key that rustls has used for `sequence` records, whatever secret it is made from.
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
        let nonce = self.nonce()?;
        let opened = self.key.open_in_place(nonce, Aad::from(header), body);
        Ok(opened.map_err(|_| RecordError::Decrypt)?.len())
    }

    /// See [`Direction::seal`].
    pub(super) fn seal(&mut self, header: [u8; HEADER], body: &mut [u8]) -> Result<[u8; TAG], RecordError> {
        let nonce = self.nonce()?;
        let sealed = self.key.seal_in_place_separate_tag(nonce, Aad::from(header), body);
        let tag = sealed.map_err(|_| RecordError::Keys)?;
        tag.as_ref().try_into().map_err(|_| RecordError::Keys)
    }

    /// The next nonce, once.
    fn nonce(&mut self) -> Result<Nonce, RecordError> {
        let mut nonce = self.iv;
        for (byte, number) in nonce.iter_mut().rev().zip(self.sequence.to_le_bytes()) {
            *byte ^= number;
        }
        self.sequence = self.sequence.checked_add(1).ok_or(RecordError::Keys)?;
        Ok(Nonce::assume_unique_for_key(nonce))
    }
}

/// Algorithm, key and IV as rustls gives them.
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

/// The secret after this one, of which `expander` is made.
fn next_secret(secret: &OkmBlock, expander: &dyn HkdfExpander) -> Result<OkmBlock, RecordError> {
    let mut next = Zeroizing::new([0; OkmBlock::MAX_LEN]);
    let next = next.get_mut(..secret.as_ref().len()).ok_or(RecordError::Keys)?;
    expand_label(expander, b"traffic upd", next)?;
    Ok(OkmBlock::new(next))
}

/// The record key of the secret that `expander` is made of.
fn expand_key<'a>(
    algorithm: &aead::Algorithm,
    expander: &dyn HkdfExpander,
    key: &'a mut [u8; KEY_MAX],
) -> Result<&'a [u8], RecordError> {
    let key = key.get_mut(..algorithm.key_len()).ok_or(RecordError::Keys)?;
    expand_label(expander, b"key", key)?;
    Ok(key)
}

/// HKDF-Expand-Label without context (RFC 8446 section 7.1).
fn expand_label(expander: &dyn HkdfExpander, label: &[u8], out: &mut [u8]) -> Result<(), RecordError> {
    const PREFIX: &[u8] = b"tls13 ";
    let length = u16::try_from(out.len()).map_err(|_| RecordError::Keys)?.to_be_bytes();
    let named = u8::try_from(PREFIX.len() + label.len()).map_err(|_| RecordError::Keys)?;
    expander.expand_slice(&[&length, &[named], PREFIX, label, &[0]], out).map_err(|_| RecordError::Keys)
}
