//! A certificate chain and the private key of its leaf.

use std::sync::Arc;

use pki::{Certificate, PrivateKey};
use rustls::crypto::CryptoProvider;
use rustls::sign::CertifiedKey;

use crate::file::{ConfiguredFileRef, FileError};

/// A certificate with its intermediates, and its private key.
pub struct CertKeyPair {
    /// Of `chain`, the first.
    pub leaf: Certificate,
    /// The leaf, then its intermediates.
    pub chain: Vec<Certificate>,
    /// The key of `leaf`.
    pub key: PrivateKey,
}

impl CertKeyPair {
    /// Reads both files.
    ///
    /// # Errors
    /// [`FileError`] when a file cannot be read or the key is not the one of the certificate.
    pub fn read(cert: ConfiguredFileRef<'_>, key: ConfiguredFileRef<'_>) -> Result<Self, FileError> {
        let chain = cert.read_certificates()?;
        let leaf = chain.first().cloned().ok_or_else(|| cert.error("no certificate"))?;
        let private = PrivateKey::from_pem(&key.read_text()?).map_err(|error| key.error(error))?;
        private
            .matches(&leaf)
            .map_err(|error| key.error(format!("{error}. It must be the key of {}", cert.path.display())))?;
        Ok(Self { leaf, chain, key: private })
    }

    /// For the TLS library.
    ///
    /// # Errors
    /// When the library does not know the key's algorithm.
    pub fn to_certified_key(&self, provider: &CryptoProvider) -> Result<Arc<CertifiedKey>, rustls::Error> {
        let signer = provider.key_provider.load_private_key(self.key.der().clone_key())?;
        let chain = self.chain.iter().map(|certificate| certificate.der().clone()).collect();
        // Not the constructor that checks the pair: it refuses v1 certificates, and `matches` has
        // checked already.
        Ok(Arc::new(CertifiedKey::new(chain, signer)))
    }
}
