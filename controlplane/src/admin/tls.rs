//! TLS of the Admin API (contract 2.1): the server's certificate, and what is made of the client's.
//!
//! With a CA, every client is asked for a certificate, and the handshake succeeds whatever it sends, so that a person sees a page
//! that says what is missing instead of a closed connection. The verdict is `pki`'s and stands before the first request is read.
//! Proof that the client holds the key is not optional: a certificate without it ends the handshake.
//! Sessions are never resumed, so no verdict outlives its connection.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use conf::{AdminTls, TlsVersion};
use pki::{Certificate, ClientAuth, ClientAuthInput, PrivateKey};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme};
use zeroize::Zeroizing;

use super::peer::Client;

/// nginx's default, which APISIX does not change: one intermediate.
const DEPTH: u32 = 1;

/// Why the Admin API's TLS could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{what} {path}: {error}. Check the path in the configuration file and that this user may read the file", path = path.display())]
    File {
        /// Which setting names it.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        error: std::io::Error,
    },
    /// A file does not hold what it should.
    #[error("{what} {path}: {problem}", path = path.display())]
    Content {
        /// Which setting names it.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What was found.
        problem: String,
    },
    /// None of the configured protocol versions can be used.
    #[error("apisix.ssl.ssl_protocols: the Admin API needs TLSv1.2 or TLSv1.3")]
    Versions,
    /// The TLS library refused.
    #[error("the Admin API's TLS cannot be set up: {0}")]
    Library(#[from] rustls::Error),
}

/// Everything a handshake with the Admin API needs.
#[derive(Clone)]
pub struct Tls {
    /// For the TLS library.
    pub config: Arc<ServerConfig>,
    /// `None`: no client certificate is asked for.
    policy: Option<Arc<ClientAuth>>,
    /// The server's own certificate.
    pub certificate: Certificate,
}

impl Tls {
    /// Reads the files. A CA file that is named but missing, empty or without a certificate is an error, never "no CA".
    ///
    /// # Errors
    /// Says which file is wrong, and how.
    pub fn load(files: &AdminTls, versions: &[TlsVersion]) -> Result<Self, TlsError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let (certified, certificate) = certified(files, &provider)?;
        let policy = files.ca.as_deref().map(client_auth).transpose()?.map(Arc::new);
        let versions: Vec<_> = versions
            .iter()
            .filter_map(|version| match version {
                TlsVersion::V11 => None,
                TlsVersion::V12 => Some(&rustls::version::TLS12),
                TlsVersion::V13 => Some(&rustls::version::TLS13),
            })
            .collect();
        if versions.is_empty() {
            return Err(TlsError::Versions);
        }
        let algorithms = provider.signature_verification_algorithms;
        let builder = ServerConfig::builder_with_provider(provider).with_protocol_versions(&versions)?;
        let builder = match &policy {
            Some(policy) => builder.with_client_cert_verifier(Arc::new(AskAnyone::new(policy, algorithms))),
            None => builder.with_no_client_auth(),
        };
        let mut config = builder.with_cert_resolver(Arc::new(One(certified)));
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Self { config: Arc::new(config), policy, certificate })
    }

    /// Judges what a client sent.
    pub fn judge(&self, sent: Option<&[CertificateDer<'_>]>, now: UnixTime) -> Client {
        let Some(policy) = &self.policy else { return Client::NotAsked };
        let Some((leaf, rest)) = sent.and_then(<[_]>::split_first) else { return Client::Missing };
        match pki::verify_client(policy, leaf, rest, now) {
            Ok(verified) => {
                Client::Verified { identity: verified.identity().clone(), expires: verified.expires() }
            }
            Err(error) => Client::Refused(error.to_string()),
        }
    }

    /// Whether clients must have a certificate.
    pub fn asks(&self) -> bool {
        self.policy.is_some()
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("certificate", &self.certificate).field("asks", &self.asks()).finish()
    }
}

fn read(what: &'static str, path: &Path) -> Result<Zeroizing<String>, TlsError> {
    fs::read_to_string(path).map(Zeroizing::new).map_err(|error| TlsError::File {
        what,
        path: path.to_path_buf(),
        error,
    })
}

fn certified(
    files: &AdminTls,
    provider: &CryptoProvider,
) -> Result<(Arc<CertifiedKey>, Certificate), TlsError> {
    const CERT: &str = "admin_ssl_cert";
    const KEY: &str = "admin_ssl_cert_key";
    let content =
        |what, path: &Path, problem: String| TlsError::Content { what, path: path.to_path_buf(), problem };
    let chain = pki::certificates_from_pem(&read(CERT, &files.cert)?)
        .map_err(|error| content(CERT, &files.cert, error.to_string()))?;
    let key = PrivateKey::from_pem(&read(KEY, &files.key)?)
        .map_err(|error| content(KEY, &files.key, error.to_string()))?;
    let leaf =
        chain.first().cloned().ok_or_else(|| content(CERT, &files.cert, "no certificate".to_owned()))?;
    key.matches(&leaf).map_err(|error| {
        content(KEY, &files.key, format!("{error}. It must be the key of {}", files.cert.display()))
    })?;
    let signer = provider.key_provider.load_private_key(key.der().clone_key())?;
    let chain = chain.iter().map(|certificate| certificate.der().clone()).collect();
    // Not the constructor that checks the pair: it refuses v1 certificates, and `matches` has checked already.
    Ok((Arc::new(CertifiedKey::new(chain, signer)), leaf))
}

fn client_auth(path: &Path) -> Result<ClientAuth, TlsError> {
    const CA: &str = "admin_ssl_ca_cert";
    let content = |problem: String| TlsError::Content { what: CA, path: path.to_path_buf(), problem };
    let anchors = pki::certificates_from_pem(&read(CA, path)?).map_err(|error| content(error.to_string()))?;
    let input = ClientAuthInput { anchors, depth: DEPTH, ..ClientAuthInput::default() };
    ClientAuth::new(input).map_err(|error| content(error.to_string()))
}

/// The one certificate of this listener, whatever name is asked for.
#[derive(Debug)]
struct One(Arc<CertifiedKey>);

impl ResolvesServerCert for One {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

/// Asks for a certificate and leaves the verdict for later; checks only that the client holds its key.
#[derive(Debug)]
struct AskAnyone {
    subjects: Vec<DistinguishedName>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl AskAnyone {
    fn new(policy: &ClientAuth, algorithms: WebPkiSupportedAlgorithms) -> Self {
        let subjects = policy.subjects().iter().map(|name| DistinguishedName::from(name.to_der())).collect();
        Self { subjects, algorithms }
    }
}

impl ClientCertVerifier for AskAnyone {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.subjects
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        // Not the library's function: it reads the certificate as webpki does, which refuses v1.
        let spki = subject_public_key_info(cert)?;
        let key = webpki::RawPublicKeyEntity::try_from(&spki).map_err(|_| bad_encoding())?;
        let found = self.algorithms.mapping.iter().find(|(scheme, _)| *scheme == signed.scheme);
        let candidates = found.map(|(_, algorithms)| *algorithms).unwrap_or_default();
        let proven = candidates
            .iter()
            .any(|algorithm| key.verify_signature(*algorithm, message, signed.signature()).is_ok());
        if proven {
            Ok(HandshakeSignatureValid::assertion())
        } else {
            Err(CertificateError::BadSignature.into())
        }
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let spki = subject_public_key_info(cert)?;
        verify_tls13_signature_with_raw_key(message, &spki, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// The client's public key as its certificate carries it.
fn subject_public_key_info<'a>(
    cert: &'a CertificateDer<'_>,
) -> Result<SubjectPublicKeyInfoDer<'a>, rustls::Error> {
    pki::public_key_of(cert).map(SubjectPublicKeyInfoDer::from).map_err(|_| bad_encoding())
}

fn bad_encoding() -> rustls::Error {
    CertificateError::BadEncoding.into()
}
