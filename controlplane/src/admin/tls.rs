//! TLS of the Admin API (contract 2.1): the server's certificate, and what is made of the client's.
//!
//! With a CA, every client is asked for a certificate, and the handshake succeeds whatever it
//! sends, so that a person sees a page that says what is missing instead of a closed connection.
//! The verdict is `pki`'s and stands before the first request is read. Proof that the client holds
//! the key is not optional: a certificate without it ends the handshake. Sessions are never
//! resumed, so no verdict outlives its connection. The files are read again when they change
//! ([`mtls::reload`]): a new connection is made with them as they are, and a kept one is
//! judged by the CA as it is.

use std::sync::Arc;

use conf::{AdminTlsSettings, Ciphers, TlsVersion};
use mtls::{
    ClientVerifier, ConfiguredFile, CredentialFiles, Credentials, FileError, LoadedCredentials, Reloader,
    VerifyClient,
};
use pki::{ClientAuth, ClientAuthInput};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::sign::SingleCertAndKey;
use rustls::{CertificateError, ServerConfig, SupportedProtocolVersion};

use super::client::ClientCertStatus;

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

/// What a handshake needs, as the files were when it began.
pub struct ServerTls {
    /// For the TLS library.
    pub config: Arc<ServerConfig>,
    /// `None`: no client certificate is asked for.
    policy: Option<Arc<ClientAuth>>,
}

/// The TLS of the Admin API.
#[derive(Clone, Debug)]
pub struct ReloadingTls {
    /// The files, and what is made of them.
    pub files: Reloader<ServerTls>,
}

impl ReloadingTls {
    /// Reads the files. `ciphers`: the suites that may be used; `None`: all there are. A CA file
    /// that is named but missing, empty or without a certificate is an error, never "no CA".
    ///
    /// # Errors
    /// Says which file is wrong, and how.
    pub fn load(
        files: &AdminTlsSettings,
        versions: &[TlsVersion],
        ciphers: Option<&Ciphers>,
    ) -> Result<Self, TlsError> {
        let mut provider = rustls::crypto::aws_lc_rs::default_provider();
        if let Some(ciphers) = ciphers {
            ciphers.restrict(&mut provider.cipher_suites, |suite| suite.suite().into());
        }
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
        let provider = Arc::new(provider);
        ServerConfig::builder_with_provider(Arc::clone(&provider)).with_protocol_versions(&versions)?;
        let named = CredentialFiles {
            pair: Some((
                ConfiguredFile::new("admin_ssl_cert", &files.cert),
                ConfiguredFile::new("admin_ssl_cert_key", &files.key),
            )),
            ca: files.ca.as_deref().map(|path| ConfiguredFile::new("admin_ssl_ca_cert", path)),
            required_dns_name: None,
        };
        let (cert, ca) = (ConfiguredFile::new("admin_ssl_cert", &files.cert), named.ca.clone());
        let files = Reloader::new("admin", named, move |contents| {
            let policy = ca.as_ref().map(|file| client_auth(file, contents)).transpose()?.map(Arc::new);
            let config = server_config(&provider, &versions, contents, policy.as_deref());
            Ok(ServerTls { config: Arc::new(config.map_err(|error| cert.by_ref().error(error))?), policy })
        });
        files.load()?;
        Ok(Self { files })
    }

    /// With the files as they are now, for a new connection.
    ///
    /// # Errors
    /// When the files could never be used.
    pub async fn current(&self) -> Result<Arc<LoadedCredentials<ServerTls>>, FileError> {
        self.files.refresh().await
    }
}

impl ServerTls {
    /// Judges what a client sent.
    pub fn verify_client(&self, sent: &[CertificateDer<'_>], now: UnixTime) -> ClientCertStatus {
        let Some(policy) = &self.policy else { return ClientCertStatus::NotRequested };
        let Some((leaf, rest)) = sent.split_first() else { return ClientCertStatus::Missing };
        match pki::verify_client(policy, leaf, rest, now) {
            Ok(verified) => ClientCertStatus::Verified {
                identity: verified.identity().clone(),
                expires: verified.valid_until(),
            },
            Err(error) => ClientCertStatus::Rejected(error.to_string()),
        }
    }
}

fn server_config(
    provider: &Arc<CryptoProvider>,
    versions: &[&'static SupportedProtocolVersion],
    contents: &Credentials,
    policy: Option<&ClientAuth>,
) -> Result<ServerConfig, rustls::Error> {
    let none = || rustls::Error::General("no certificate".to_owned());
    let certified = contents.pair.as_ref().ok_or_else(none)?.to_certified_key(provider)?;
    let builder =
        ServerConfig::builder_with_provider(Arc::clone(provider)).with_protocol_versions(versions)?;
    let builder = match policy {
        Some(policy) => {
            let verifier = ClientVerifier::new(OptionalClientCert, policy, Arc::clone(provider));
            builder.with_client_cert_verifier(Arc::new(verifier))
        }
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    config.ignore_client_order = true;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn client_auth(file: &ConfiguredFile, contents: &Credentials) -> Result<ClientAuth, FileError> {
    let anchors = contents.ca.clone();
    let input = ClientAuthInput { anchors, depth: DEPTH, ..ClientAuthInput::default() };
    ClientAuth::new(input).map_err(|error| file.by_ref().error(error))
}

/// Requests a certificate and accepts any: [`ServerTls::verify_client`] verifies it after the
/// handshake, so that a browser gets a page with the reason.
#[derive(Debug)]
struct OptionalClientCert;

impl VerifyClient for OptionalClientCert {
    fn is_mandatory(&self) -> bool {
        false
    }

    fn verify(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<(), CertificateError> {
        Ok(())
    }
}
