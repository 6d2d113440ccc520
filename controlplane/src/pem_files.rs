//! PEM files that the configuration names: read whole, judged for form, the key for fitting its certificate.
//!
//! Admin API, etcd, `check` and `doctor` read theirs here. Invariant: every complaint names the setting and the file and says what to do, and a
//! file that is named is never taken for "none".

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pki::{Certificate, PrivateKey};
use rustls::crypto::CryptoProvider;
use rustls::sign::CertifiedKey;
use zeroize::Zeroizing;

/// Why a file cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{setting} {path}: {problem}", path = path.display())]
pub struct FileError {
    /// Which setting names it.
    pub setting: &'static str,
    /// The file.
    pub path: PathBuf,
    /// What was found, and what to do.
    pub problem: String,
}

/// A setting and the file it names.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Named<'a> {
    pub setting: &'static str,
    pub path: &'a Path,
}

impl Named<'_> {
    pub(crate) fn wrong(&self, problem: impl ToString) -> FileError {
        FileError { setting: self.setting, path: self.path.to_path_buf(), problem: problem.to_string() }
    }

    pub(crate) fn text(&self) -> Result<Zeroizing<String>, FileError> {
        fs::read_to_string(self.path).map(Zeroizing::new).map_err(|error| {
            self.wrong(format!(
                "{error}. Check the path in the configuration file and that this user may read the file"
            ))
        })
    }

    /// At least one.
    pub(crate) fn certificates(&self) -> Result<Vec<Certificate>, FileError> {
        pki::certificates_from_pem(&self.text()?).map_err(|error| self.wrong(error))
    }
}

/// A certificate with what was sent behind it, and its private key.
pub(crate) struct Pair {
    /// Of `chain`, the first.
    pub leaf: Certificate,
    pub chain: Vec<Certificate>,
    pub key: PrivateKey,
}

impl Pair {
    pub(crate) fn read(cert: Named<'_>, key: Named<'_>) -> Result<Self, FileError> {
        let chain = cert.certificates()?;
        let leaf = chain.first().cloned().ok_or_else(|| cert.wrong("no certificate"))?;
        let private = PrivateKey::from_pem(&key.text()?).map_err(|error| key.wrong(error))?;
        private
            .matches(&leaf)
            .map_err(|error| key.wrong(format!("{error}. It must be the key of {}", cert.path.display())))?;
        Ok(Self { leaf, chain, key: private })
    }

    /// For the TLS library.
    pub(crate) fn certified(&self, provider: &CryptoProvider) -> Result<Arc<CertifiedKey>, rustls::Error> {
        let signer = provider.key_provider.load_private_key(self.key.der().clone_key())?;
        let chain = self.chain.iter().map(|certificate| certificate.der().clone()).collect();
        // Not the constructor that checks the pair: it refuses v1 certificates, and `matches` has checked already.
        Ok(Arc::new(CertifiedKey::new(chain, signer)))
    }
}
