//! The certificates, keys and CA bundles that settings name, and their errors.
//!
//! Both planes and all their TLS endpoints (Admin API, push, node, etcd) read their own
//! certificates here. Invariant: an error names the setting and the file; a named file that is
//! missing or empty is an error, never "none".

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pki::{Certificate, PrivateKey};
use process::bounded_read::{self, ReadError};
use rustls::crypto::CryptoProvider;
use rustls::sign::{CertifiedKey, SigningKey};
use zeroize::Zeroizing;

/// Most bytes of one file. Mozilla's whole bundle has 220 KB.
const BYTES_MAX: u64 = 4 << 20;

/// Why a file cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{setting} {path}: {problem}", path = path.display())]
pub struct FileError {
    /// The setting that names the file.
    pub setting: &'static str,
    /// The file.
    pub path: PathBuf,
    /// What was found, and what to do.
    pub problem: String,
    /// Whether the file does not exist.
    pub missing: bool,
}

/// A setting and the file it names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfiguredFile {
    /// The setting.
    pub setting: &'static str,
    /// The file.
    pub path: PathBuf,
}

impl ConfiguredFile {
    /// The file at `path`, named by `setting`.
    pub fn new(setting: &'static str, path: &Path) -> Self {
        Self { setting, path: path.to_path_buf() }
    }

    /// The borrowed form.
    pub fn by_ref(&self) -> ConfiguredFileRef<'_> {
        ConfiguredFileRef { setting: self.setting, path: &self.path }
    }
}

/// A borrowed [`ConfiguredFile`].
#[derive(Debug, Clone, Copy)]
pub struct ConfiguredFileRef<'a> {
    /// The setting.
    pub setting: &'static str,
    /// The file.
    pub path: &'a Path,
}

impl ConfiguredFileRef<'_> {
    /// An error about this file.
    pub fn error(&self, problem: impl ToString) -> FileError {
        let (path, problem) = (self.path.to_path_buf(), problem.to_string());
        FileError { setting: self.setting, path, problem, missing: false }
    }

    /// Reads the whole text.
    ///
    /// # Errors
    /// [`FileError`] when the file cannot be read, is not regular, is larger than 4 MiB or is not
    /// UTF-8.
    pub fn read_text(&self) -> Result<Zeroizing<String>, FileError> {
        bounded_read::read_regular(self.path, BYTES_MAX).map_err(|error| match error {
            ReadError::Io(error) => FileError {
                missing: error.kind() == io::ErrorKind::NotFound,
                ..self.error(format!(
                    "{error}. Check the path in the configuration file and that this user may read the file"
                ))
            },
            ReadError::TooLarge(bytes) => {
                self.error(format!("it has more than {} MiB: is this a PEM file?", bytes >> 20))
            }
            ReadError::NotUtf8 => {
                self.error("it is not text. It must be in PEM format; openssl converts DER and PKCS #12")
            }
            other => self.error(format!("{other} in PEM format")),
        })
    }

    /// Reads the certificates; there is at least one.
    ///
    /// # Errors
    /// [`FileError`] when the file cannot be read or has no certificate.
    pub fn read_certificates(&self) -> Result<Vec<Certificate>, FileError> {
        pki::certificates_from_pem(&self.read_text()?).map_err(|error| self.error(error))
    }
}

/// A certificate chain and the private key of its leaf.
pub struct CertKeyPair {
    /// The first certificate of `chain`.
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
    /// [`FileError`] when a file cannot be read or the key does not match the certificate.
    pub fn read(cert: ConfiguredFileRef<'_>, key: ConfiguredFileRef<'_>) -> Result<Self, FileError> {
        let chain = cert.read_certificates()?;
        let leaf = chain.first().cloned().ok_or_else(|| cert.error("no certificate"))?;
        let private = PrivateKey::from_pem(&key.read_text()?).map_err(|error| key.error(error))?;
        private
            .matches(&leaf)
            .map_err(|error| key.error(format!("{error}. It must be the key of {}", cert.path.display())))?;
        Ok(Self { leaf, chain, key: private })
    }

    /// The form that rustls uses.
    ///
    /// # Errors
    /// When the crypto library does not support the key's algorithm.
    pub fn to_certified_key(&self, provider: &CryptoProvider) -> Result<Arc<CertifiedKey>, rustls::Error> {
        Ok(Arc::new(certified_key(&self.chain, signing_key(provider, &self.key)?)))
    }
}

/// Loads a private key into the crypto library.
///
/// # Errors
/// When the library does not support the key's algorithm.
pub fn signing_key(
    provider: &CryptoProvider,
    key: &PrivateKey,
) -> Result<Arc<dyn SigningKey>, rustls::Error> {
    provider.key_provider.load_private_key(key.der().clone_key())
}

/// Copies a chain, whose leaf must match `key`, into the form that rustls uses.
///
/// [`CertifiedKey::from_der`] would check the match with webpki, which rejects v1 certificates; a
/// [`PrivateKey`] is matched when it is read.
pub fn certified_key(chain: &[Certificate], key: Arc<dyn SigningKey>) -> CertifiedKey {
    CertifiedKey::new(chain.iter().map(|certificate| certificate.der().clone()).collect(), key)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use nix::sys::stat::Mode;

    use super::*;

    fn problem(path: &Path) -> String {
        ConfiguredFileRef { setting: "a.setting", path }.read_text().expect_err("not to be used").to_string()
    }

    #[test]
    fn special_files_are_rejected_without_waiting() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("fifo");
        nix::unistd::mkfifo(&fifo, Mode::S_IRWXU).unwrap();
        assert!(problem(&fifo).contains("a FIFO"));
        assert!(problem(folder.path()).contains("a directory"));
        assert!(problem(Path::new("/dev/zero")).contains("a device"));
        let socket = folder.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        // A socket cannot even be opened.
        assert!(problem(&socket).contains("a.setting"));
    }

    #[test]
    fn oversized_and_binary_files_are_rejected() {
        let folder = tempfile::tempdir().unwrap();
        let huge = folder.path().join("huge");
        File::create(&huge).unwrap().set_len(1 << 40).unwrap();
        assert!(problem(&huge).contains("more than 4 MiB"));
        let der = folder.path().join("der");
        std::fs::write(&der, [0x30, 0x82, 0xff]).unwrap();
        assert!(problem(&der).contains("PEM"));
    }

    #[test]
    fn a_missing_file_differs_from_an_unusable_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("none.crt");
        let file = ConfiguredFileRef { setting: "a.setting", path: &path };
        assert!(file.read_text().unwrap_err().missing);
        std::os::unix::fs::symlink("nowhere", &path).unwrap();
        assert!(file.read_text().unwrap_err().missing);
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "").unwrap();
        let empty = file.read_certificates().unwrap_err();
        assert!(!empty.missing && empty.to_string().contains("none.crt"), "{empty}");
    }
}
