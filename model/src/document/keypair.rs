//! A certificate chain with its private key, as documents carry them: PEM, the key plain or sealed.
//!
//! The texts are the Admin API's (contract 4.1, step 2). The opened key lives only inside this
//! function, in memory that is wiped.

use std::sync::Arc;

use pki::{CertError, KeyError, Keyring, PrivateKey, certificates_from_pem};

use crate::problem::{Problem, ProblemKind};
use crate::resource::KeyPair;

/// Reads a pair. `fields` are the names of the certificate's and the key's member.
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
    // APISIX finds this out in the first handshake; by then the site is down.
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

/// An APISIX reads some certificates that we do not, and then means what it read.
pub(super) fn problem_kind(error: &CertError) -> ProblemKind {
    match error {
        CertError::NoCertificate { .. } | CertError::Pem(_) => ProblemKind::Invalid,
        CertError::InBundle { error, .. } => problem_kind(error),
        _ => ProblemKind::Unsupported,
    }
}
