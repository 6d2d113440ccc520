//! The key schedule and the transcript hash of TLS 1.3's SHA-256 suites, on processors with SHA-256
//! instructions.
//!
//! rustls defines what is derived; this module computes HKDF (RFC 5869) over HMAC-SHA-256. A
//! handshake derives some thirty values from a few dozen bytes each, and aws-lc creates contexts
//! for each of them, which costs more than the hashing. `hmac` and `sha2` work on plain values, and
//! hash a secret that is expanded several times only once as a key. Without the instructions this
//! is not faster, and aws-lc's suites stay (decision 24).
//!
//! Invariant: every output equals aws-lc's; secrets are zeroized on drop.

use std::sync::LazyLock;

use hmac::{Hmac, KeyInit, Mac};
use rustls::crypto::aws_lc_rs;
use rustls::crypto::hash::{self, HashAlgorithm};
use rustls::crypto::hmac::Tag;
use rustls::crypto::tls13::{Hkdf, HkdfExpander, OkmBlock, OutputLengthError};
use rustls::{CipherSuiteCommon, SupportedCipherSuite, Tls13CipherSuite};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// The output of SHA-256. Bytes.
const HASH: usize = 32;
/// The block of SHA-256. Bytes.
const BLOCK: usize = 64;
/// The most blocks that a secret expands to (RFC 5869 section 2.3).
const EXPANDED_MAX: usize = 255;

/// A key of HMAC, as the inner and outer hash states.
type HmacKey = Hmac<Sha256>;

/// aws-lc's suites, with another hash.
static SUITES: LazyLock<Vec<Tls13CipherSuite>> = LazyLock::new(|| {
    let suites = aws_lc_rs::ALL_CIPHER_SUITES.iter().filter_map(SupportedCipherSuite::tls13);
    suites
        .filter(|suite| suite.common.hash_provider.algorithm() == HashAlgorithm::SHA256)
        .map(with_sha2)
        .collect()
});

/// Replaces aws-lc's suites by ours, if ours are faster on this processor.
pub(super) fn prefer_sha2(suites: &mut [SupportedCipherSuite]) {
    if has_sha_extensions() {
        for suite in suites {
            if let Some(ours) = SUITES.iter().find(|ours| ours.common.suite == suite.suite()) {
                *suite = SupportedCipherSuite::Tls13(ours);
            }
        }
    }
}

/// Whether `sha2` uses instructions of the processor.
fn has_sha_extensions() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("sha") && is_x86_feature_detected!("sse4.1");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("sha2");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

fn with_sha2(suite: &Tls13CipherSuite) -> Tls13CipherSuite {
    Tls13CipherSuite {
        common: CipherSuiteCommon { hash_provider: &Sha2Provider, ..suite.common },
        hkdf_provider: &Sha2Provider,
        aead_alg: suite.aead_alg,
        quic: None,
    }
}

/// SHA-256, and HKDF over it, for rustls.
struct Sha2Provider;

struct Transcript(Sha256);

impl hash::Hash for Sha2Provider {
    fn start(&self) -> Box<dyn hash::Context> {
        Box::new(Transcript(Sha256::new()))
    }

    fn hash(&self, data: &[u8]) -> hash::Output {
        hash::Output::new(&Sha256::digest(data))
    }

    fn output_len(&self) -> usize {
        HASH
    }

    fn algorithm(&self) -> HashAlgorithm {
        HashAlgorithm::SHA256
    }
}

impl hash::Context for Transcript {
    fn fork_finish(&self) -> hash::Output {
        hash::Output::new(&self.0.clone().finalize())
    }

    fn fork(&self) -> Box<dyn hash::Context> {
        Box::new(Self(self.0.clone()))
    }

    fn finish(self: Box<Self>) -> hash::Output {
        hash::Output::new(&self.0.finalize())
    }

    fn update(&mut self, data: &[u8]) {
        self.0.update(data);
    }
}

/// A secret, as the key that expands it.
struct Sha2Expander(HmacKey);

impl Hkdf for Sha2Provider {
    fn extract_from_zero_ikm(&self, salt: Option<&[u8]>) -> Box<dyn HkdfExpander> {
        self.extract_from_secret(salt, &[0; HASH])
    }

    fn extract_from_secret(&self, salt: Option<&[u8]>, secret: &[u8]) -> Box<dyn HkdfExpander> {
        let extracted = sign(hmac_key(salt.unwrap_or_default()), &[secret]);
        Box::new(Sha2Expander(hmac_key(&*extracted)))
    }

    fn expander_for_okm(&self, okm: &OkmBlock) -> Box<dyn HkdfExpander> {
        Box::new(Sha2Expander(hmac_key(okm.as_ref())))
    }

    fn hmac_sign(&self, key: &OkmBlock, message: &[u8]) -> Tag {
        Tag::new(&*sign(hmac_key(key.as_ref()), &[message]))
    }
}

impl HkdfExpander for Sha2Expander {
    fn expand_slice(&self, info: &[&[u8]], output: &mut [u8]) -> Result<(), OutputLengthError> {
        if output.len() > EXPANDED_MAX * HASH {
            return Err(OutputLengthError);
        }
        let mut previous = None;
        for (chunk, number) in output.chunks_mut(HASH).zip(1..=u8::MAX) {
            let block = self.block(previous.as_ref(), info, number);
            chunk.iter_mut().zip(block.iter()).for_each(|(out, byte)| *out = *byte);
            previous = Some(block);
        }
        Ok(())
    }

    fn expand_block(&self, info: &[&[u8]]) -> OkmBlock {
        OkmBlock::new(&*self.block(None, info, 1))
    }

    fn hash_len(&self) -> usize {
        HASH
    }
}

impl Sha2Expander {
    /// T(number) of RFC 5869 section 2.3.
    fn block(&self, previous: Option<&SecretHash>, info: &[&[u8]], number: u8) -> SecretHash {
        let mut mac = self.0.clone();
        if let Some(previous) = previous {
            mac.update(&**previous);
        }
        info.iter().for_each(|part| mac.update(part));
        sign(mac, &[&[number]])
    }
}

/// A hash that is a secret, or leads to one.
type SecretHash = Zeroizing<[u8; HASH]>;

/// HMAC pads a key with zeros, so an absent salt and a salt of zeros are the same key (RFC 5869
/// section 2.2).
fn hmac_key(key: &[u8]) -> HmacKey {
    let mut block = [0; BLOCK];
    match block.get_mut(..key.len()) {
        Some(start) => start.copy_from_slice(key),
        None => block.iter_mut().zip(Sha256::digest(key)).for_each(|(padded, byte)| *padded = byte),
    }
    HmacKey::new(&block.into())
}

fn sign(mut mac: HmacKey, message: &[&[u8]]) -> SecretHash {
    message.iter().for_each(|part| mac.update(part));
    Zeroizing::new(mac.finalize().into_bytes().into())
}

#[cfg(test)]
mod tests;
