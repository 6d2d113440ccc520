//! The rules of the listeners for operators, from the settings of either plane.
//!
//! Invariant: where certificates are required, a handshake without a verified one fails: no request
//! of such a client is read.

use std::io;
use std::sync::Arc;

use ipnet::IpNet;
use pki::{ClientAuth, ClientAuthInput, UnixTime};
use rustls::pki_types::CertificateDer;
use rustls::server::NoServerSessionStorage;
use rustls::sign::SingleCertAndKey;
use rustls::{CertificateError, ServerConfig};
use telemetry::status::{StatusAccess, TlsFuture};

use crate::credentials::{ConfiguredFile, FileError};
use crate::reload::{CredentialFiles, Credentials, Reloader};
use crate::verifier::{ClientVerifier, VerifyClient};

/// nginx's default, which the Admin API has, too: one intermediate.
const DEPTH: u32 = 1;

/// The files of a listener's mutual TLS.
#[derive(Debug, Clone)]
pub struct MutualTlsFiles {
    /// The server's certificate chain.
    pub cert: ConfiguredFile,
    /// Its private key.
    pub key: ConfiguredFile,
    /// The CAs of the clients' certificates.
    pub ca: ConfiguredFile,
}

/// The rules, and the certificate files that they need.
#[derive(Debug)]
pub struct StatusAccessRules {
    /// For the listeners.
    pub access: StatusAccess,
    /// For the [`CertificateMonitor`](crate::CertificateMonitor).
    pub files: Option<Reloader<Arc<ServerConfig>>>,
}

impl StatusAccessRules {
    /// Reads the files. `allow`: the networks of clients; `None`: all.
    ///
    /// # Errors
    /// Names the file and the problem.
    pub fn load(allow: Option<Vec<IpNet>>, tls: Option<MutualTlsFiles>) -> Result<Self, FileError> {
        let files = tls.map(mutual_tls).transpose()?;
        let tls = files.clone().map(|files| {
            let source: telemetry::status::TlsSource = Arc::new(move || current(files.clone()));
            source
        });
        Ok(Self { access: StatusAccess { allow, tls }, files })
    }
}

/// The configuration from the current files.
fn current(files: Reloader<Arc<ServerConfig>>) -> TlsFuture {
    Box::pin(
        async move { files.refresh().await.map(|loaded| Arc::clone(&loaded.tls)).map_err(io::Error::other) },
    )
}

fn mutual_tls(files: MutualTlsFiles) -> Result<Reloader<Arc<ServerConfig>>, FileError> {
    let MutualTlsFiles { cert, key, ca } = files;
    let named =
        CredentialFiles { pair: Some((cert.clone(), key)), ca: Some(ca.clone()), required_dns_name: None };
    let reloader = Reloader::new("status", named, move |contents| {
        let input = ClientAuthInput { anchors: contents.ca.clone(), depth: DEPTH, ..Default::default() };
        let policy = ClientAuth::new(input).map_err(|error| ca.by_ref().error(error))?;
        let config = server_config(contents, policy);
        config.map(Arc::new).map_err(|error| cert.by_ref().error(error))
    });
    reloader.load()?;
    Ok(reloader)
}

fn server_config(contents: &Credentials, policy: ClientAuth) -> Result<ServerConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let none = || rustls::Error::General("no certificate".to_owned());
    let certified = contents.pair.as_ref().ok_or_else(none)?.to_certified_key(&provider)?;
    let policy = Arc::new(policy);
    let verifier = ClientVerifier::new(RequiredClient(Arc::clone(&policy)), &policy, Arc::clone(&provider));
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS12, &rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // A session outlives no verification.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// Requires a certificate that the policy accepts.
#[derive(Debug)]
struct RequiredClient(Arc<ClientAuth>);

impl VerifyClient for RequiredClient {
    fn is_mandatory(&self) -> bool {
        true
    }

    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), CertificateError> {
        match pki::verify_client(&self.0, leaf, intermediates, now) {
            Ok(_) => Ok(()),
            Err(error) => {
                tracing::debug!(%error, "a client of a status listener is rejected");
                Err(CertificateError::ApplicationVerificationFailure)
            }
        }
    }
}
