//! A cache of parsed client keys: parsing a key costs a tenth of a verification.
//!
//! `signature` adds a key with the scheme in which it verified a signature; each signature is still
//! computed. Bounded: a fixed number of slots, each with the last client that hashed to it, and no
//! leaf above [`LEAF_MAX`], because unknown clients get here too where a site requires no
//! certificate.

use std::cell::RefCell;

use aws_lc_rs::signature::{self as algorithms, ParsedPublicKey, VerificationAlgorithm};
use rustls::SignatureScheme;
use rustls::pki_types::CertificateDer;

/// Cached keys per thread; one takes about 1 KiB.
const SLOTS: usize = 1024;
/// The largest cached leaf, in bytes; usual ones have 500 to 2000. A message may hold 64 KiB.
pub(super) const LEAF_MAX: usize = 4 * 1024;

thread_local! {
    static CACHE: RefCell<Vec<Option<CachedKey>>> = const { RefCell::new(Vec::new()) };
}

struct CachedKey {
    leaf: CertificateDer<'static>,
    scheme: SignatureScheme,
    /// Parsed on the client's second connection, because most clients connect once.
    key: Option<ParsedPublicKey>,
}

/// Whether the signature is valid; `None` when the key is not cached for this scheme.
pub(super) fn verify(
    leaf: &CertificateDer<'_>,
    scheme: SignatureScheme,
    message: &[u8],
    signature: &[u8],
) -> Option<bool> {
    CACHE.with_borrow(|slots| {
        let client = slots.get(slot_index(leaf))?.as_ref()?;
        let key = client.key.as_ref().filter(|_| client.matches(leaf, scheme))?;
        Some(key.verify_sig(message, signature).is_ok())
    })
}

/// Adds the client whose signature in this scheme was valid; `spki` has its key.
pub(super) fn insert(leaf: &CertificateDer<'_>, scheme: SignatureScheme, spki: &[u8]) {
    let (Some(algorithm), ..=LEAF_MAX) = (algorithm(scheme), leaf.len()) else { return };
    CACHE.with_borrow_mut(|slots| {
        if slots.is_empty() {
            slots.resize_with(SLOTS, || None);
        }
        match slots.get_mut(slot_index(leaf)) {
            Some(Some(client)) if client.matches(leaf, scheme) => {
                client.key = ParsedPublicKey::new(algorithm, spki).ok();
            }
            Some(slot) => *slot = Some(CachedKey { leaf: leaf.clone().into_owned(), scheme, key: None }),
            None => {}
        }
    });
}

impl CachedKey {
    fn matches(&self, leaf: &CertificateDer<'_>, scheme: SignatureScheme) -> bool {
        self.scheme == scheme && self.leaf.as_ref() == leaf.as_ref()
    }
}

/// Hashes by the last bytes, which belong to the issuer's signature.
fn slot_index(leaf: &[u8]) -> usize {
    leaf.last_chunk().map_or(0, |last| usize::from(u16::from_be_bytes(*last)) % SLOTS)
}

/// The algorithm of a TLS 1.3 scheme (RFC 8446 section 4.2.3).
fn algorithm(scheme: SignatureScheme) -> Option<&'static dyn VerificationAlgorithm> {
    Some(match scheme {
        SignatureScheme::ECDSA_NISTP256_SHA256 => &algorithms::ECDSA_P256_SHA256_ASN1,
        SignatureScheme::ECDSA_NISTP384_SHA384 => &algorithms::ECDSA_P384_SHA384_ASN1,
        SignatureScheme::ECDSA_NISTP521_SHA512 => &algorithms::ECDSA_P521_SHA512_ASN1,
        SignatureScheme::RSA_PSS_SHA256 => &algorithms::RSA_PSS_2048_8192_SHA256,
        SignatureScheme::RSA_PSS_SHA384 => &algorithms::RSA_PSS_2048_8192_SHA384,
        SignatureScheme::RSA_PSS_SHA512 => &algorithms::RSA_PSS_2048_8192_SHA512,
        SignatureScheme::ED25519 => &algorithms::ED25519,
        _ => return None,
    })
}
