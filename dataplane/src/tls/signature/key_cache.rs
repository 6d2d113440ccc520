//! The keys of clients that come back, ready for use: reading one costs a tenth of the check it is
//! needed for.
//!
//! Only what `signature` has read and used before comes here, with the scheme it was used in;
//! whether a signature is good is computed each time. Bounded: a fixed number of slots, each held
//! by the last client that fell into it, and no leaf larger than [`LEAF_MAX`]: where a site lets
//! everybody shake hands, strangers come here too.

use std::cell::RefCell;

use aws_lc_rs::signature::{self as algorithms, ParsedPublicKey, VerificationAlgorithm};
use rustls::SignatureScheme;
use rustls::pki_types::CertificateDer;

/// Clients a worker knows; one takes about 1 KiB.
const SLOTS: usize = 1024;
/// The largest leaf that is remembered, in bytes; usual ones have 500 to 2000. A message may hold
/// 64 KiB of it.
pub(super) const LEAF_MAX: usize = 4 * 1024;

thread_local! {
    static CACHE: RefCell<Vec<Option<CachedKey>>> = const { RefCell::new(Vec::new()) };
}

struct CachedKey {
    leaf: CertificateDer<'static>,
    scheme: SignatureScheme,
    /// Read when it comes for the second time: most of a crowd come once.
    key: Option<ParsedPublicKey>,
}

/// Whether the signature is good; `None` where the key is not known for that scheme.
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

/// Remembers a client whose signature in this scheme was good, and whose key is in `spki`.
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

/// By the last bytes, which are its issuer's signature.
fn slot_index(leaf: &[u8]) -> usize {
    leaf.last_chunk().map_or(0, |last| usize::from(u16::from_be_bytes(*last)) % SLOTS)
}

/// The one algorithm that TLS 1.3 means by a scheme (RFC 8446 section 4.2.3).
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
