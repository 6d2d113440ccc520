//! Private keys: the only module that parses them.
//!
//! PEM (decrypted by `keyring`) -> [`PrivateKey`] -> the TLS engine, once. The bytes are wiped on
//! drop and never printed, serialised or put into an error. Invariant: the crypto library accepted
//! every `PrivateKey`, so it can sign.

use std::fmt;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, ECDSA_P521_SHA512_ASN1_SIGNING,
    EcdsaKeyPair, EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair as _, RsaKeyPair,
};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs1KeyDer, PrivatePkcs8KeyDer, PrivateSec1KeyDer};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::cert::{Certificate, sha256};
use crate::der::{self, DerError, Reader};
use crate::pem;

/// The structure of a key's DER.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KeyFormat {
    /// `PRIVATE KEY` (RFC 5958).
    Pkcs8,
    /// `RSA PRIVATE KEY` (RFC 8017).
    Pkcs1,
    /// `EC PRIVATE KEY` (RFC 5915).
    Sec1,
}

/// Why a text is not a usable private key. Never quotes the text.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeyError {
    /// No PEM block of a private key.
    #[error(
        "no private key found: expected a block `-----BEGIN PRIVATE KEY-----`, `RSA PRIVATE KEY` or `EC PRIVATE KEY`"
    )]
    NoKey,
    /// The key is protected by a passphrase.
    #[error(
        "the private key is encrypted with a passphrase: decrypt it first, for example with `openssl pkey -in key.pem -out plain.pem`"
    )]
    Encrypted,
    /// A PEM block is damaged.
    #[error("damaged PEM: {0}")]
    Pem(String),
    /// The DER does not match its label, or its numbers make no key.
    #[error("the private key cannot be read: it is not a sound {format:?} key")]
    Malformed {
        /// The expected structure.
        format: KeyFormat,
    },
    /// An unsupported kind of key.
    #[error(
        "unsupported kind of private key: use RSA of at least 2048 bits, ECDSA on P-256, P-384 or P-521, or Ed25519"
    )]
    Unsupported,
    /// The certificate carries another public key.
    #[error("the private key does not belong to the certificate `{subject}`: its public key is another")]
    Mismatch {
        /// Subject of the certificate, RFC 2253.
        subject: String,
    },
}

/// A private key in clear. Wiped on drop. Equality takes the same time for any two keys of one
/// length.
pub struct PrivateKey {
    format: KeyFormat,
    der: Zeroizing<Box<[u8]>>,
    public_key_digest: PublicKeyDigest,
}

/// The first half of SHA-256 over the public key, as SubjectPublicKeyInfo's BIT STRING holds it. 16
/// bytes are collision-free in practice, and a process may hold a million of them.
type PublicKeyDigest = [u8; 16];

impl PrivateKey {
    /// Reads the first private key of a PEM text and skips other blocks (`EC PARAMETERS`,
    /// certificates).
    ///
    /// # Errors
    /// When there is no key, or it is encrypted, damaged or unsupported.
    pub fn from_pem(text: &str) -> Result<Self, KeyError> {
        for block in pem::blocks(text) {
            let block = block.map_err(|error| KeyError::Pem(error.to_string()))?;
            let format = match block.label {
                "PRIVATE KEY" => KeyFormat::Pkcs8,
                "RSA PRIVATE KEY" => KeyFormat::Pkcs1,
                "EC PRIVATE KEY" => KeyFormat::Sec1,
                "ENCRYPTED PRIVATE KEY" => return Err(KeyError::Encrypted),
                _ => continue,
            };
            if block.encrypted {
                return Err(KeyError::Encrypted);
            }
            return Self::from_der(format, &block.bytes);
        }
        Err(KeyError::NoKey)
    }

    /// Parses a key from DER. Copies the bytes once.
    ///
    /// # Errors
    /// When the bytes are not a valid key of that format, or the kind of key is unsupported.
    pub fn from_der(format: KeyFormat, der: &[u8]) -> Result<Self, KeyError> {
        let public = public_key_digest(format, der)?;
        Ok(Self { format, der: Zeroizing::new(der.into()), public_key_digest: public })
    }

    /// The structure of [`Self::der`].
    pub fn format(&self) -> KeyFormat {
        self.format
    }

    /// The key for a TLS engine, borrowed: the engine makes its own copy.
    pub fn der(&self) -> PrivateKeyDer<'_> {
        let bytes = &**self.der;
        match self.format {
            KeyFormat::Pkcs8 => PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(bytes)),
            KeyFormat::Pkcs1 => PrivateKeyDer::Pkcs1(PrivatePkcs1KeyDer::from(bytes)),
            KeyFormat::Sec1 => PrivateKeyDer::Sec1(PrivateSec1KeyDer::from(bytes)),
        }
    }

    /// The key as PEM.
    pub fn to_pem(&self) -> Zeroizing<String> {
        let label = match self.format {
            KeyFormat::Pkcs8 => "PRIVATE KEY",
            KeyFormat::Pkcs1 => "RSA PRIVATE KEY",
            KeyFormat::Sec1 => "EC PRIVATE KEY",
        };
        pem::encode(label, &self.der)
    }

    /// Checks that the certificate carries the public key of this key.
    ///
    /// # Errors
    /// [`KeyError::Mismatch`] otherwise.
    pub fn matches(&self, certificate: &Certificate) -> Result<(), KeyError> {
        if digest(certificate.key().key) == self.public_key_digest {
            Ok(())
        } else {
            Err(KeyError::Mismatch { subject: certificate.subject().to_owned() })
        }
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey({:?}, not shown)", self.format)
    }
}

impl PartialEq for PrivateKey {
    fn eq(&self, other: &Self) -> bool {
        self.format == other.format && verify_slices_are_equal(&self.der, &other.der).is_ok()
    }
}

impl Eq for PrivateKey {}

const EC_PUBLIC_KEY: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
const RSA_ENCRYPTION: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
const ED25519: &[u8] = &[0x2b, 0x65, 0x70];

static CURVES: [&EcdsaSigningAlgorithm; 3] =
    [&ECDSA_P256_SHA256_ASN1_SIGNING, &ECDSA_P384_SHA384_ASN1_SIGNING, &ECDSA_P521_SHA512_ASN1_SIGNING];

/// Has the crypto library parse the key and digests its public key.
fn public_key_digest(format: KeyFormat, der: &[u8]) -> Result<PublicKeyDigest, KeyError> {
    let malformed = KeyError::Malformed { format };
    match format {
        KeyFormat::Pkcs1 => rsa_public_key_digest(RsaKeyPair::from_der(der).ok(), malformed),
        KeyFormat::Sec1 => ec_public_key_digest(der, malformed),
        KeyFormat::Pkcs8 => match pkcs8_algorithm(der).map_err(|_| malformed.clone())? {
            RSA_ENCRYPTION => rsa_public_key_digest(RsaKeyPair::from_pkcs8(der).ok(), malformed),
            EC_PUBLIC_KEY => ec_public_key_digest(der, malformed),
            ED25519 => Ed25519KeyPair::from_pkcs8_maybe_unchecked(der)
                .map(|pair| digest(pair.public_key().as_ref()))
                .map_err(|_| malformed),
            _ => Err(KeyError::Unsupported),
        },
    }
}

fn rsa_public_key_digest(pair: Option<RsaKeyPair>, malformed: KeyError) -> Result<PublicKeyDigest, KeyError> {
    let pair = pair.ok_or(malformed)?;
    if pair.public_modulus_len() < 256 {
        return Err(KeyError::Unsupported); // under 2048 bits
    }
    Ok(digest(pair.public_key().as_ref()))
}

fn ec_public_key_digest(der: &[u8], malformed: KeyError) -> Result<PublicKeyDigest, KeyError> {
    CURVES
        .iter()
        .find_map(|curve| EcdsaKeyPair::from_private_key_der(curve, der).ok())
        .map(|pair| digest(pair.public_key().as_ref()))
        .ok_or(malformed)
}

fn digest(public: &[u8]) -> PublicKeyDigest {
    let mut out = PublicKeyDigest::default();
    out.iter_mut().zip(sha256(public)).for_each(|(out, byte)| *out = byte);
    out
}

/// The OID in a PrivateKeyInfo's AlgorithmIdentifier.
fn pkcs8_algorithm(der: &[u8]) -> Result<&[u8], DerError> {
    let mut info = Reader::new(der).nested(der::SEQUENCE)?;
    info.expect(der::INTEGER)?;
    let mut algorithm = info.nested(der::SEQUENCE)?;
    Ok(algorithm.expect(der::OID)?.content)
}

#[cfg(test)]
mod tests;
