//! The TLS side of connections to etcd: the client certificate with its key, the CAs, and the
//! expected name.
//!
//! The files are reloaded when they change ([`mtls::Reloader`]); they are not read while no
//! endpoint is `https://`.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use mtls::{
    ConfiguredFile, ConfiguredFileRef, CredentialFiles, Credentials, FileError, Reloader, ServerNames,
    ServerTrust, ServerVerifier,
};
use pki::{TrustAnchors, VerifyError};
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::ServerName;
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, ClientConfig, OtherError};

use super::credentials::{CA, CERT, KEY, PresentedCert, TrustSummary};
use super::endpoint::Endpoint;
use super::error::{DialError, DialFailure};

/// Most intermediates between etcd's certificate and a CA (contract 1.2).
const DEPTH: u32 = 5;

/// The warning about `verify: false`.
pub(crate) const VERIFY_OFF: &str = "deployment.etcd.tls.verify is false: any server that responds at an endpoint is accepted as etcd, and gets the password and \
     every document; set it to true and name the CA in apisix.ssl.ssl_trusted_certificate";

/// The TLS settings of connections to etcd. Clones share the loaded files.
#[derive(Clone)]
pub(crate) struct ClientTls(Arc<ClientTlsInner>);

struct ClientTlsInner {
    tls: conf::EtcdTlsSettings,
    /// The URL in errors about the files.
    first_url: String,
    files: Reloader<LoadedTls>,
    warned_unverified: AtomicBool,
}

/// Files that were read and match each other.
#[derive(Clone)]
pub(crate) struct LoadedTls {
    pub(super) config: Arc<ClientConfig>,
    pub(super) identity: Option<Arc<CertifiedKey>>,
    pub certificate: Option<PresentedCert>,
    pub trusted: TrustSummary,
}

impl ClientTls {
    /// From `deployment.etcd.tls` and `apisix.ssl.ssl_trusted_certificate`. Reads no file yet.
    pub(crate) fn of(settings: &conf::Settings) -> Self {
        let etcd = &settings.deployment.etcd;
        let tls = etcd.tls.clone();
        let pair = tls.cert.as_ref().zip(tls.key.as_ref());
        let ca = settings.apisix.ssl.trusted_certificate.as_ref().filter(|_| tls.verify);
        let files = CredentialFiles {
            pair: pair.map(|(cert, key)| (ConfiguredFile::new(CERT, cert), ConfiguredFile::new(KEY, key))),
            ca: ca.map(|path| ConfiguredFile::new(CA, path)),
            required_dns_name: None,
        };
        let (verify, configured) = (tls.verify, files.clone());
        Self(Arc::new(ClientTlsInner {
            tls,
            first_url: etcd.hosts.first().cloned().unwrap_or_default(),
            files: Reloader::new("etcd", files, move |contents| load_tls(verify, &configured, contents)),
            warned_unverified: AtomicBool::new(false),
        }))
    }

    pub(crate) fn files(&self) -> &Reloader<LoadedTls> {
        &self.0.files
    }

    /// Reads and checks the files.
    ///
    /// # Errors
    /// Names the file and says what to do.
    pub(crate) fn load(&self) -> Result<LoadedTls, DialError> {
        let loaded = self.0.files.load();
        loaded
            .map(|loaded| loaded.tls.clone())
            .map_err(|error| DialError::new(&self.0.first_url, error.into()))
    }

    /// The current files for a new connection; while they are invalid, the last valid contents.
    pub(super) async fn current(&self) -> Result<LoadedTls, DialFailure> {
        let loaded = self.0.files.refresh().await?.tls.clone();
        if loaded.trusted == TrustSummary::Unverified
            && !self.0.warned_unverified.swap(true, Ordering::Relaxed)
        {
            tracing::warn!("{VERIFY_OFF}");
        }
        Ok(loaded)
    }

    /// The expected server name, and whether `tls.sni` gives it.
    pub(super) fn server_name(
        &self,
        endpoint: &Endpoint,
    ) -> Result<(ServerName<'static>, bool), DialFailure> {
        let sni = self.0.tls.sni.as_deref().filter(|sni| !sni.is_empty());
        let text = sni.unwrap_or(endpoint.host());
        let name = ServerName::try_from(text.to_owned()).map_err(|_| {
            DialFailure::TlsConfig(format!("sni: {text:?} is neither a host name nor an IP address"))
        })?;
        Ok((name, sni.is_some()))
    }
}

fn load_tls(verify: bool, files: &CredentialFiles, contents: &Credentials) -> Result<LoadedTls, FileError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let (trust, trusted) = if verify {
        load_anchors(files.ca.as_ref(), contents)?
    } else {
        (ServerTrust::Unverified, TrustSummary::Unverified)
    };
    let cert = files.certificate().unwrap_or(ConfiguredFileRef { setting: CERT, path: Path::new("") });
    let cert_error = |error: rustls::Error| cert.error(error);
    let pair = contents.pair.as_ref();
    let identity = pair.map(|pair| pair.to_certified_key(&provider)).transpose().map_err(cert_error)?;
    let certificate = pair.map(|pair| PresentedCert::of(pair.leaf.clone(), cert.path));
    let config = client_config(&provider, trust).map_err(cert_error)?;
    Ok(LoadedTls { config: Arc::new(config), identity, certificate, trusted })
}

/// Without client certificate and ALPN, which each connection adds: the certificate resolver
/// records the request of the server.
fn client_config(provider: &Arc<CryptoProvider>, trust: ServerTrust) -> Result<ClientConfig, rustls::Error> {
    let mut config = ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(ServerVerifier::new(
            trust,
            Arc::clone(provider),
            to_rustls_error,
        )))
        .with_no_client_auth();
    // A resumed session would outlive the verdict on its certificates.
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// Keeps the type of the error, from which `error` tells a wrong name from an unknown issuer.
fn to_rustls_error(error: VerifyError) -> rustls::Error {
    CertificateError::Other(OtherError(Arc::new(error))).into()
}

/// A configuration that verifies nothing, for connections that carry no data and only look at the
/// server's certificate.
pub(crate) fn unverified_config() -> Result<ClientConfig, rustls::Error> {
    client_config(&Arc::new(rustls::crypto::aws_lc_rs::default_provider()), ServerTrust::Unverified)
}

fn load_anchors(
    file: Option<&ConfiguredFile>,
    contents: &Credentials,
) -> Result<(ServerTrust, TrustSummary), FileError> {
    let file = file.ok_or_else(|| {
        let problem = "this machine has no CA bundle to verify etcd with: name the PEM file of the CA that issued its \
                       certificate";
        ConfiguredFileRef { setting: CA, path: Path::new("system") }.error(problem)
    })?;
    let anchors = TrustAnchors::new(contents.ca.clone()).map_err(|error| file.by_ref().error(error))?;
    let first = anchors.certificates().first().map(|first| first.subject().to_owned()).unwrap_or_default();
    let count = anchors.certificates().len();
    let names = ServerNames::InHandshake;
    let trust = ServerTrust::Anchors { anchors: Arc::new(anchors), depth: Some(DEPTH), names };
    Ok((trust, TrustSummary::Bundle { path: file.path.clone(), count, first }))
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTls").field("tls", &self.0.tls).field("files", self.0.files.files()).finish()
    }
}
