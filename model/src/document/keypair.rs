//! Reads a PEM certificate chain and its private key, which is plain or encrypted.
//!
//! Messages are those of the Admin API (contract 4.1, step 2). The decrypted key stays inside
//! [`read`], in memory that is wiped.

use std::sync::Arc;

use pki::{CertError, KeyError, Keyring, PrivateKey, certificates_from_pem};

use crate::problem::{Problem, ProblemKind};
use crate::resource::KeyPair;

/// Reads a chain and its key from the two members named by `fields`.
pub(super) fn read(cert: &str, key: &str, fields: [&str; 2], keyring: &Keyring) -> Result<KeyPair, Problem> {
    let [cert_field, key_field] = fields;
    let chain = certificates_from_pem(cert).map_err(|error| {
        Problem::new(cert_field, "failed to parse cert: PEM_read_bio_X509_AUX() failed")
            .with_hint(error.to_string())
            .with_kind(problem_kind(&error))
    })?;
    let opened = keyring.open(key).map_err(|error| {
        Problem::new(key_field, "failed to decrypt previous encrypted key").with_hint(format!(
            "{error}: a key is PEM text, or was encrypted with a key of data_encryption.keyring"
        ))
    })?;
    let key = PrivateKey::from_pem(&opened).map_err(|error| {
        Problem::new(key_field, "failed to parse key: PEM_read_bio_PrivateKey() failed")
            .with_hint(error.to_string())
            .with_kind(if matches!(error, KeyError::Unsupported) {
                ProblemKind::Unsupported
            } else {
                ProblemKind::Invalid
            })
    })?;
    // APISIX detects the mismatch in the first handshake, when the site is down already.
    if let Some(leaf) = chain.first() {
        key.matches(leaf).map_err(|error| {
            Problem::new(key_field, format!("{key_field} does not belong to {cert_field}: {error}"))
                .with_hint(
                    "the first certificate of the text must be the key's own, its issuers come after it",
                )
                .with_kind(ProblemKind::Unusable)
        })?;
    }
    Ok(KeyPair { chain, key: Arc::new(key) })
}

/// APISIX parses some certificates that this gateway does not, so its document is valid but
/// unsupported.
pub(super) fn problem_kind(error: &CertError) -> ProblemKind {
    match error {
        CertError::NoCertificate { .. } | CertError::Pem(_) => ProblemKind::Invalid,
        CertError::InBundle { error, .. } => problem_kind(error),
        _ => ProblemKind::Unsupported,
    }
}
