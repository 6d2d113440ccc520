//! The client's certificate and key, its trust anchors, and the ClientHello it offers.
//!
//! The parameters that decide the server's cost are pinned to one value for every peer: protocol
//! version, key exchange group, AES_128_GCM_SHA256 first.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, SupportedKxGroup, aws_lc_rs};
use rustls::{CipherSuite, ClientConfig, RootCertStore, SupportedProtocolVersion};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

mod key_share;
mod pinned;

use key_share::FixedKeyShare;
use pinned::PinnedVerifier;

/// Why a client configuration could not be made.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A PEM file that is missing or holds nothing usable.
    #[error("{what} {}: {problem}", path.display())]
    File {
        /// `--cert`, `--key` or `--cacert`.
        what: &'static str,
        path: PathBuf,
        problem: String,
    },
    /// Certificate and key do not match, or rustls rejects them.
    #[error("the client's certificate and key cannot be used: {0}")]
    Rejected(#[from] rustls::Error),
    /// The anchors cannot be used.
    #[error("the certificates of --cacert cannot be used: {0}")]
    Anchors(#[from] rustls::client::VerifierBuilderError),
}

/// TLS protocol version to offer (only this one is offered).
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Version {
    /// TLS 1.2.
    #[value(name = "1.2")]
    V12,
    /// TLS 1.3.
    #[value(name = "1.3")]
    V13,
}

/// Key-exchange group to offer (only this one is offered).
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "lower")]
pub enum Group {
    /// X25519.
    X25519,
    /// NIST P-256.
    Secp256r1,
    /// X25519 with ML-KEM-768, the post-quantum hybrid.
    X25519MlKem768,
}

/// A client's certificate chain, its key, and its trust anchors.
pub struct ClientIdentity {
    anchors: RootCertStore,
    pair: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
}

impl ClientIdentity {
    /// Reads PEM files. Without `pair` the client has no certificate.
    ///
    /// # Errors
    /// Names the file that is missing or holds nothing usable.
    pub fn from_files(ca: &Path, pair: Option<(&Path, &Path)>) -> Result<Self, IdentityError> {
        let read = |what, path: &Path| {
            std::fs::read(path).map_err(|error| IdentityError::File {
                what,
                path: path.to_owned(),
                problem: error.to_string(),
            })
        };
        let ca_pem = read("--cacert", ca)?;
        let pair_pem = match pair {
            Some((cert, key)) => Some((read("--cert", cert)?, read("--key", key)?)),
            None => None,
        };
        Self::from_pem(&ca_pem, pair_pem.as_ref().map(|(cert, key)| (cert.as_slice(), key.as_slice())))
            .map_err(|error| error.with_paths(ca, pair))
    }

    /// The same from PEM text.
    ///
    /// # Errors
    /// Names the text that holds nothing usable.
    pub fn from_pem(ca: &[u8], pair: Option<(&[u8], &[u8])>) -> Result<Self, IdentityError> {
        let mut anchors = RootCertStore::empty();
        for anchor in certificates("--cacert", ca)? {
            anchors.add(anchor)?;
        }
        let pair = match pair {
            Some((cert, key)) => {
                let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| unusable("--key", error))?;
                Some((certificates("--cert", cert)?, key))
            }
            None => None,
        };
        Ok(Self { anchors, pair })
    }

    /// A client configuration. `resume` keeps the tickets of one connection for the next one made
    /// with this configuration; without it no connection is resumed.
    ///
    /// # Errors
    /// When rustls rejects the certificate and key.
    pub fn client_config(
        &self,
        version: Version,
        group: Group,
        alpn: &[&[u8]],
        resume: bool,
    ) -> Result<Arc<ClientConfig>, IdentityError> {
        Ok(Arc::new(self.verifying_each(version, provider(group), alpn, resume)?))
    }

    /// A configuration for load on one server, whose client saves cryptography that the server
    /// cannot observe: it verifies the first connection in full and recognises the same
    /// certificates later ([`PinnedVerifier`]), and reuses one X25519 key share
    /// ([`FixedKeyShare`]).
    ///
    /// # Errors
    /// As [`Self::client_config`], and without any anchor.
    pub fn load_config(
        &self,
        version: Version,
        group: Group,
        alpn: &[&[u8]],
        resume: bool,
    ) -> Result<Arc<ClientConfig>, IdentityError> {
        let mut provider = provider(group);
        if group == Group::X25519 {
            provider.kx_groups = vec![&FixedKeyShare];
        }
        let mut config = self.verifying_each(version, provider, alpn, resume)?;
        let anchors = Arc::new(self.anchors.clone());
        let full = WebPkiServerVerifier::builder_with_provider(anchors, config.crypto_provider().clone());
        config.dangerous().set_certificate_verifier(Arc::new(PinnedVerifier::new(full.build()?)));
        Ok(Arc::new(config))
    }

    fn verifying_each(
        &self,
        version: Version,
        provider: CryptoProvider,
        alpn: &[&[u8]],
        resume: bool,
    ) -> Result<ClientConfig, IdentityError> {
        let versions: &[&SupportedProtocolVersion] = match version {
            Version::V12 => &[&rustls::version::TLS12],
            Version::V13 => &[&rustls::version::TLS13],
        };
        let builder = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(versions)?
            .with_root_certificates(self.anchors.clone());
        let mut config = match &self.pair {
            Some((chain, key)) => builder.with_client_auth_cert(chain.clone(), key.clone_key())?,
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        config.resumption = if resume { Resumption::in_memory_sessions(8) } else { Resumption::disabled() };
        Ok(config)
    }
}

impl IdentityError {
    /// PEM text does not know its file; the caller does.
    fn with_paths(self, ca: &Path, pair: Option<(&Path, &Path)>) -> Self {
        let Self::File { what, path, problem } = self else { return self };
        let named = match (what, pair) {
            ("--cacert", _) => ca,
            ("--cert", Some((cert, _))) => cert,
            ("--key", Some((_, key))) => key,
            _ => &path,
        };
        Self::File { what, path: named.to_owned(), problem }
    }
}

/// aws-lc-rs with one group, and the suite that hardware accelerates best first.
fn provider(group: Group) -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    let group: &'static dyn SupportedKxGroup = match group {
        Group::X25519 => aws_lc_rs::kx_group::X25519,
        Group::Secp256r1 => aws_lc_rs::kx_group::SECP256R1,
        Group::X25519MlKem768 => aws_lc_rs::kx_group::X25519MLKEM768,
    };
    provider.kx_groups = vec![group];
    provider.cipher_suites.sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
    provider
}

fn certificates(what: &'static str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let found: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| unusable(what, error))?;
    if found.is_empty() {
        return Err(unusable(what, "holds no certificate"));
    }
    Ok(found)
}

fn unusable(what: &'static str, problem: impl std::fmt::Display) -> IdentityError {
    IdentityError::File { what, path: PathBuf::from("(given as text)"), problem: problem.to_string() }
}
