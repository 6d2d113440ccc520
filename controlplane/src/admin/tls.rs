//! TLS of the Admin API (contract 2.1): the server's certificate, and the verification of the
//! client's.
//!
//! With a CA, the server requests a certificate from every client and completes the handshake
//! whatever the client sends, so that a browser shows a page with the reason instead of a
//! connection error. `pki` verifies the chain before the first request is read. Proof of possession
//! of the key is not optional: without it the handshake fails. Sessions are never resumed, so no
//! verification result outlives its connection. The files are read again when they change
//! ([`mtls::Reloader`]): a new connection uses the current ones, and a kept connection is
//! verified against the current CA.

use std::sync::Arc;

use conf::{AdminListener, AdminTlsSettings, Ciphers, Settings, TlsVersion};
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

use super::access::ClientCertStatus;

/// The names of the listeners' files in metrics and the log, by their order in the settings.
const NAMES: [&str; 16] = [
    "admin", "admin-2", "admin-3", "admin-4", "admin-5", "admin-6", "admin-7", "admin-8", "admin-9",
    "admin-10", "admin-11", "admin-12", "admin-13", "admin-14", "admin-15", "admin-16",
];

/// nginx's default, which APISIX does not change: one intermediate.
const DEPTH: u32 = 1;

/// Why the TLS of the Admin API cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file is unreadable or has unexpected content.
    #[error("{0}")]
    File(#[from] FileError),
    #[error("deployment.admin.admin_api_version: only v3 is supported: remove the key, or write v3")]
    ApiVersion,
    /// None of the configured protocol versions is supported.
    #[error("apisix.ssl.ssl_protocols: the Admin API needs TLSv1.2 or TLSv1.3")]
    Versions,
    /// rustls returned an error.
    #[error("the Admin API's TLS cannot be set up: {0}")]
    Library(#[from] rustls::Error),
}

/// The TLS configuration of a handshake, from the files as they were when it began.
pub struct ServerTls {
    pub config: Arc<ServerConfig>,
    /// `None`: the server requests no client certificate.
    policy: Option<Arc<ClientAuth>>,
}

/// TLS whose certificate files are read again when they change.
#[derive(Clone, Debug)]
pub struct ReloadingTls {
    /// The files and the configuration built from them.
    pub files: Reloader<ServerTls>,
}

/// The TLS of the configured listeners, which share the files that they have in common.
#[derive(Debug, Default)]
pub(crate) struct ListenerTls(Vec<(AdminTlsSettings, ReloadingTls)>);

impl ListenerTls {
    /// The configured TLS; none when the Admin API is disabled or plain HTTP.
    ///
    /// # Errors
    /// When the settings or the files are invalid.
    pub(crate) fn from_settings(settings: &Settings) -> Result<Self, TlsError> {
        let admin = &settings.deployment.admin;
        if !admin.enabled {
            return Ok(Self::default());
        }
        if !admin.v3 {
            return Err(TlsError::ApiVersion);
        }
        let ssl = &settings.apisix.ssl;
        let load = |(files, name): (&AdminTlsSettings, &'static str)| {
            let tls = ReloadingTls::load_named(name, files, &ssl.protocols, ssl.ciphers.as_ref())?;
            Ok((files.clone(), tls))
        };
        admin.tls_settings().into_iter().zip(NAMES).map(load).collect::<Result<_, _>>().map(Self)
    }

    /// The TLS of each combination of files.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &ReloadingTls> {
        self.0.iter().map(|(_, tls)| tls)
    }

    /// The TLS of a listener; `None`: plain HTTP.
    pub(crate) fn of_listener(&self, listener: &AdminListener) -> Option<ReloadingTls> {
        let files = listener.tls.as_ref()?;
        self.0.iter().find(|(known, _)| known == files).map(|(_, tls)| tls.clone())
    }
}

impl ReloadingTls {
    /// Reads the files. `ciphers`: the permitted suites; `None`: all. A CA file that is configured
    /// but missing, empty or without a certificate is an error, never "no CA".
    ///
    /// # Errors
    /// Names the file and the problem.
    pub fn load(
        files: &AdminTlsSettings,
        versions: &[TlsVersion],
        ciphers: Option<&Ciphers>,
    ) -> Result<Self, TlsError> {
        Self::load_named("admin", files, versions, ciphers)
    }

    fn load_named(
        name: &'static str,
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
                ConfiguredFile::new(conf::ADMIN_CERT, &files.cert),
                ConfiguredFile::new(conf::ADMIN_CERT_KEY, &files.key),
            )),
            ca: files.ca.as_deref().map(|path| ConfiguredFile::new(conf::ADMIN_CA, path)),
            required_dns_name: None,
        };
        let (cert, ca) = (ConfiguredFile::new(conf::ADMIN_CERT, &files.cert), named.ca.clone());
        let files = Reloader::new(name, named, move |contents| {
            let policy = ca.as_ref().map(|file| client_auth(file, contents)).transpose()?.map(Arc::new);
            let config = server_config(&provider, &versions, contents, policy.as_deref());
            Ok(ServerTls { config: Arc::new(config.map_err(|error| cert.by_ref().error(error))?), policy })
        });
        files.load()?;
        Ok(Self { files })
    }

    /// The configuration from the current files, for a new connection.
    ///
    /// # Errors
    /// When the files have never been valid.
    pub async fn current(&self) -> Result<Arc<LoadedCredentials<ServerTls>>, FileError> {
        self.files.refresh().await
    }
}

impl ServerTls {
    /// Verifies a client's chain.
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
