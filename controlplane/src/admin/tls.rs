//! TLS of the Admin API (contract 2.1): the server's certificate, and what is made of the client's.
//!
//! With a CA, every client is asked for a certificate, and the handshake succeeds whatever it sends, so that a person sees a page
//! that says what is missing instead of a closed connection. The verdict is `pki`'s and stands before the first request is read.
//! Proof that the client holds the key is not optional: a certificate without it ends the handshake.
//! Sessions are never resumed, so no verdict outlives its connection.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use conf::{AdminTls, Ciphers, TlsVersion};
use pki::{Certificate, ClientAuth, ClientAuthInput};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme};

use super::peer::Client;
use crate::pem_files::{FileError, Named, Pair};
use crate::proof;

/// nginx's default, which APISIX does not change: one intermediate.
const DEPTH: u32 = 1;

/// Why the Admin API's TLS could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or does not hold what it should.
    #[error("{0}")]
    File(#[from] FileError),
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
    /// Reads the files. `ciphers`: the suites that may be used; `None`: all there are. A CA file that is named but missing, empty or without a certificate is an error, never "no CA".
    ///
    /// # Errors
    /// Says which file is wrong, and how.
    pub fn load(
        files: &AdminTls,
        versions: &[TlsVersion],
        ciphers: Option<&Ciphers>,
    ) -> Result<Self, TlsError> {
        let mut provider = rustls::crypto::aws_lc_rs::default_provider();
        if let Some(ciphers) = ciphers {
            ciphers.restrict(&mut provider.cipher_suites, |suite| suite.suite().into());
        }
        let provider = Arc::new(provider);
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
        config.ignore_client_order = true;
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

fn certified(
    files: &AdminTls,
    provider: &CryptoProvider,
) -> Result<(Arc<CertifiedKey>, Certificate), TlsError> {
    let pair = Pair::read(
        Named { setting: "admin_ssl_cert", path: &files.cert },
        Named { setting: "admin_ssl_cert_key", path: &files.key },
    )?;
    Ok((pair.certified(provider)?, pair.leaf))
}

fn client_auth(path: &Path) -> Result<ClientAuth, TlsError> {
    let file = Named { setting: "admin_ssl_ca_cert", path };
    let input = ClientAuthInput { anchors: file.certificates()?, depth: DEPTH, ..ClientAuthInput::default() };
    Ok(ClientAuth::new(input).map_err(|error| file.wrong(error))?)
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
        proof::verify_tls12(&self.algorithms, message, cert, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        proof::verify_tls13(&self.algorithms, message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
