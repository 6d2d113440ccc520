//! One direction of a TLS 1.3 connection: its key, and how many records it has seen (RFC 8446 sections 5.3, 7.2 and 7.3).
//!
//! Invariant: no two records are sealed with one key and one number.

use aws_lc_rs::aead::{self, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use rustls::{ConnectionTrafficSecrets, Tls13CipherSuite, crypto::tls13::OkmBlock};
use zeroize::Zeroizing;

use super::{RecordError, framing::HEADER};

/// What every suite of TLS 1.3 adds to a record. Bytes.
pub(super) const TAG: usize = 16;
/// The longest key of a suite. Bytes.
const KEY_MAX: usize = 32;

/// One direction's keys.
pub(super) struct Direction {
    secret: OkmBlock,
    key: LessSafeKey,
    iv: [u8; NONCE_LEN],
    /// Of the next record.
    pub(super) sequence: u64,
}

impl Direction {
    /// Goes on with keys that rustls has used for `sequence` records.
    pub(super) fn after(
        secret: OkmBlock,
        (sequence, keys): (u64, &ConnectionTrafficSecrets),
    ) -> Result<Self, RecordError> {
        let (algorithm, key, iv) = match keys {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&aead::AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&aead::AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (&aead::CHACHA20_POLY1305, key, iv),
            _ => return Err(RecordError::Keys),
        };
        let iv = iv.as_ref().try_into().map_err(|_| RecordError::Keys)?;
        Ok(Self { secret, key: bound(algorithm, key.as_ref())?, iv, sequence })
    }

    /// The keys that follow these.
    pub(super) fn renew(&mut self, suite: &Tls13CipherSuite) -> Result<(), RecordError> {
        let hkdf = suite.hkdf_provider;
        let expand = |secret: &OkmBlock, label: &[u8], out: &mut [u8]| {
            expand_label(hkdf.expander_for_okm(secret).as_ref(), label, out)
        };
        let mut secret = Zeroizing::new([0; OkmBlock::MAX_LEN]);
        let secret = secret.get_mut(..self.secret.as_ref().len()).ok_or(RecordError::Keys)?;
        expand(&self.secret, b"traffic upd", secret)?;
        let secret = OkmBlock::new(secret);
        let algorithm = self.key.algorithm();
        let mut key = Zeroizing::new([0; KEY_MAX]);
        let key = key.get_mut(..algorithm.key_len()).ok_or(RecordError::Keys)?;
        expand(&secret, b"key", key)?;
        expand(&secret, b"iv", &mut self.iv)?;
        self.key = bound(algorithm, key)?;
        self.secret = secret;
        self.sequence = 0;
        Ok(())
    }

    /// Decrypts the body of a record where it lies; gives how long it is then.
    pub(super) fn open(&mut self, header: [u8; HEADER], body: &mut [u8]) -> Result<usize, RecordError> {
        let opened = self.key.open_in_place(self.nonce(), Aad::from(header), body);
        let length = opened.map_err(|_| RecordError::Corrupt)?.len();
        self.sequence += 1;
        Ok(length)
    }

    /// Encrypts the body of a record where it lies; gives what follows it.
    pub(super) fn seal(&mut self, header: [u8; HEADER], body: &mut [u8]) -> Result<[u8; TAG], RecordError> {
        let sealed = self.key.seal_in_place_separate_tag(self.nonce(), Aad::from(header), body);
        let tag = sealed.map_err(|_| RecordError::Keys)?;
        self.sequence += 1;
        tag.as_ref().try_into().map_err(|_| RecordError::Keys)
    }

    fn nonce(&self) -> Nonce {
        let mut nonce = self.iv;
        for (byte, number) in nonce.iter_mut().rev().zip(self.sequence.to_le_bytes()) {
            *byte ^= number;
        }
        Nonce::assume_unique_for_key(nonce)
    }
}

fn bound(algorithm: &'static aead::Algorithm, key: &[u8]) -> Result<LessSafeKey, RecordError> {
    Ok(LessSafeKey::new(UnboundKey::new(algorithm, key).map_err(|_| RecordError::Keys)?))
}

/// HKDF-Expand-Label without context (RFC 8446 section 7.1).
fn expand_label(
    expander: &dyn rustls::crypto::tls13::HkdfExpander,
    label: &[u8],
    out: &mut [u8],
) -> Result<(), RecordError> {
    const PREFIX: &[u8] = b"tls13 ";
    let length = u16::try_from(out.len()).map_err(|_| RecordError::Keys)?.to_be_bytes();
    let named = u8::try_from(PREFIX.len() + label.len()).map_err(|_| RecordError::Keys)?;
    expander.expand_slice(&[&length, &[named], PREFIX, label, &[0]], out).map_err(|_| RecordError::Keys)
}
