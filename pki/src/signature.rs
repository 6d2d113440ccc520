//! The supported signature algorithms, and verification of one signature.
//!
//! `chain` and `revocation` verify every signature here, so the list of algorithms exists once: RSA
//! of 2048 to 8192 bits (PKCS#1 v1.5 and PSS), ECDSA on P-256, P-384 and P-521, Ed25519; SHA-2
//! only. aws-lc does the arithmetic, through webpki's table of algorithms. Invariant: an algorithm
//! that is not in the table verifies nothing.

use rustls_pki_types::{SignatureVerificationAlgorithm, alg_id};
use webpki::aws_lc_rs as algorithms;

use crate::der::{self, Reader};

static SUPPORTED_ALGORITHMS: &[&dyn SignatureVerificationAlgorithm] = &[
    algorithms::ECDSA_P256_SHA256,
    algorithms::RSA_PKCS1_2048_8192_SHA256,
    algorithms::ECDSA_P384_SHA384,
    algorithms::ED25519,
    algorithms::RSA_PKCS1_2048_8192_SHA384,
    algorithms::RSA_PKCS1_2048_8192_SHA512,
    algorithms::RSA_PSS_2048_8192_SHA256_LEGACY_KEY,
    algorithms::RSA_PSS_2048_8192_SHA384_LEGACY_KEY,
    algorithms::RSA_PSS_2048_8192_SHA512_LEGACY_KEY,
    algorithms::ECDSA_P256_SHA384,
    algorithms::ECDSA_P256_SHA512,
    algorithms::ECDSA_P384_SHA256,
    algorithms::ECDSA_P384_SHA512,
    algorithms::ECDSA_P521_SHA256,
    algorithms::ECDSA_P521_SHA384,
    algorithms::ECDSA_P521_SHA512,
    algorithms::RSA_PKCS1_2048_8192_SHA256_ABSENT_PARAMS,
    algorithms::RSA_PKCS1_2048_8192_SHA384_ABSENT_PARAMS,
    algorithms::RSA_PKCS1_2048_8192_SHA512_ABSENT_PARAMS,
];

/// Smallest accepted RSA modulus, in bits.
const RSA_BITS_MIN: usize = 2048;
/// Largest accepted RSA modulus, in bits: beyond it one verification takes milliseconds.
const RSA_BITS_MAX: usize = 8192;

/// A public key, as in SubjectPublicKeyInfo.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PublicKey<'a> {
    /// Content of the AlgorithmIdentifier.
    pub(crate) algorithm: &'a [u8],
    /// Content of the BIT STRING.
    pub(crate) key: &'a [u8],
}

/// The result of a signature verification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SignatureCheck {
    Valid,
    Invalid,
    /// No supported algorithm fits the signature's identifier and the key's; nothing was computed.
    Unsupported,
}

#[cfg(test)]
thread_local! {
    /// Signatures computed on this thread, for the tests of the budgets.
    pub(crate) static VERIFICATIONS: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// Verifies a signature over `message`; `algorithm` is the content of its AlgorithmIdentifier.
pub(crate) fn verify(
    signer: PublicKey<'_>,
    algorithm: &[u8],
    message: &[u8],
    signature: &[u8],
) -> SignatureCheck {
    match find_algorithm(signer, algorithm) {
        None => SignatureCheck::Unsupported,
        Some(found) => {
            #[cfg(test)]
            VERIFICATIONS.set(VERIFICATIONS.get() + 1);
            match found.verify_signature(signer.key, message, signature) {
                Ok(()) => SignatureCheck::Valid,
                Err(_) => SignatureCheck::Invalid,
            }
        }
    }
}

/// Whether this key can make a signature with this identifier.
pub(crate) fn is_supported(signer: PublicKey<'_>, algorithm: &[u8]) -> bool {
    find_algorithm(signer, algorithm).is_some()
}

fn find_algorithm(
    signer: PublicKey<'_>,
    algorithm: &[u8],
) -> Option<&'static dyn SignatureVerificationAlgorithm> {
    let fits = |candidate: &&&dyn SignatureVerificationAlgorithm| {
        candidate.signature_alg_id().as_ref() == algorithm
            && candidate.public_key_alg_id().as_ref() == signer.algorithm
    };
    SUPPORTED_ALGORITHMS.iter().find(fits).copied()
}

/// Cost of one verification with this key, in units of a P-256 verification (about 45 us).
pub(crate) fn verification_cost(key: PublicKey<'_>) -> u32 {
    let algorithm = key.algorithm;
    if algorithm == alg_id::RSA_ENCRYPTION.as_ref() {
        // Quadratic in the size: 1 for 2048 bits, 16 for 8192; the DER is a little longer than the
        // modulus.
        let units = key.key.len() / 256;
        u32::try_from((units * units).clamp(1, 64)).unwrap_or(64)
    } else if algorithm == alg_id::ECDSA_P384.as_ref() {
        5
    } else if algorithm == alg_id::ECDSA_P521.as_ref() {
        10
    } else {
        1
    }
}

/// Whether a key is of an accepted kind and size, in a leaf as in an issuer.
pub(crate) fn is_strong_key(key: PublicKey<'_>) -> bool {
    let elliptic = [alg_id::ECDSA_P256, alg_id::ECDSA_P384, alg_id::ECDSA_P521, alg_id::ED25519];
    if elliptic.iter().any(|id| id.as_ref() == key.algorithm) {
        return true;
    }
    key.algorithm == alg_id::RSA_ENCRYPTION.as_ref()
        && modulus_bits(key.key).is_some_and(|bits| (RSA_BITS_MIN..=RSA_BITS_MAX).contains(&bits))
}

/// Size of the modulus of an RSAPublicKey (RFC 8017 A.1.1).
fn modulus_bits(key: &[u8]) -> Option<usize> {
    let mut parts = Reader::new(key).nested(der::SEQUENCE).ok()?;
    let modulus = der::integer(parts.expect(der::INTEGER).ok()?.content).ok()?;
    let modulus = match modulus {
        [0, magnitude @ ..] => magnitude,
        [first, ..] if first & 0x80 != 0 => return None, // negative
        magnitude => magnitude,
    };
    let first = modulus.first()?;
    Some(modulus.len() * 8 - first.leading_zeros() as usize)
}
