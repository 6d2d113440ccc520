//! The TLS side of connections to etcd: the client certificate with its key, the CAs, and the
//! expected name.
//!
//! The files are reloaded when they change ([`mtls::reload`]); they are not read while no
//! endpoint is `https://`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use mtls::{
    ConfiguredFile, ConfiguredFileRef, CredentialFiles, Credentials, FileError, Reloader, ServerTrust,
    ServerVerifier,
};
use pki::{Certificate, TrustAnchors, VerifyError, format_utc};
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::ServerName;
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, ClientConfig, OtherError};

use super::endpoint::Endpoint;
use super::error::{DialError, DialFailure};

/// Most intermediates between etcd's certificate and a CA (contract 1.2).
const DEPTH: u32 = 5;

const CERT: &str = "deployment.etcd.tls.cert";
const KEY: &str = "deployment.etcd.tls.key";
const CA: &str = "apisix.ssl.ssl_trusted_certificate";

/// The warning about `verify: false`.
pub(crate) const VERIFY_OFF: &str = "deployment.etcd.tls.verify is false: any server that answers at an endpoint is accepted as etcd, and gets the password and \
     every document; set it to true and name the CA in apisix.ssl.ssl_trusted_certificate";

/// The number of quoted issuers when a server rejects the client certificate.
const ISSUERS_MAX: usize = 4;
const ISSUER_BYTES_MAX: usize = 512;

/// The TLS settings of connections to etcd. Clones share the loaded files.
#[derive(Clone)]
pub(crate) struct ClientTls(Arc<ClientTlsInner>);

struct ClientTlsInner {
    tls: conf::EtcdTlsSettings,
    /// The URL in errors about the files.
    about: String,
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

/// The trust anchors in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TrustSummary {
    /// `verify: false`.
    Unverified,
    Bundle {
        path: PathBuf,
        count: usize,
        /// The subject of the first certificate.
        first: String,
    },
}

/// The client certificate in words, with the issuers that the server requested.
#[derive(Debug, Clone, Default)]
pub(crate) struct PresentedCert(Option<Arc<CertFile>>, Arc<[String]>);

#[derive(Debug)]
struct CertFile {
    leaf: Certificate,
    path: PathBuf,
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
        let (verify, named) = (tls.verify, files.clone());
        Self(Arc::new(ClientTlsInner {
            tls,
            about: etcd.hosts.first().cloned().unwrap_or_default(),
            files: Reloader::new("etcd", files, move |contents| load_tls(verify, &named, contents)),
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
        loaded.map(|loaded| loaded.tls.clone()).map_err(|error| DialError::new(&self.0.about, error.into()))
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
    let library = |error: rustls::Error| cert.error(error);
    let pair = contents.pair.as_ref();
    let identity = pair.map(|pair| pair.to_certified_key(&provider)).transpose().map_err(library)?;
    let certificate = pair.map(|pair| PresentedCert::of(pair.leaf.clone(), cert.path));
    let config = client_config(&provider, trust).map_err(library)?;
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

/// For a connection on which nothing is said: to see who is there.
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
    let trust = ServerTrust::Anchors { anchors: Arc::new(anchors), depth: Some(DEPTH) };
    Ok((trust, TrustSummary::Bundle { path: file.path.clone(), count, first }))
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Security").field("tls", &self.0.tls).field("files", self.0.files.files()).finish()
    }
}

impl fmt::Display for TrustSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unverified => f.write_str("anybody (deployment.etcd.tls.verify is false)"),
            Self::Bundle { path, count: 1, first } => write!(f, "`{first}` of {} ({CA})", path.display()),
            Self::Bundle { path, count, first } => {
                write!(f, "`{first}` and {} more of {} ({CA})", count - 1, path.display())
            }
        }
    }
}

impl PresentedCert {
    fn of(leaf: Certificate, path: &Path) -> Self {
        Self(Some(Arc::new(CertFile { leaf, path: path.to_path_buf() })), Arc::default())
    }

    /// With the issuers of the server's CertificateRequest.
    pub(super) fn with_requested_issuers(&self, hints: &[&[u8]]) -> Self {
        // Bounded: the server is not verified yet.
        let short = hints.iter().filter(|hint| hint.len() <= ISSUER_BYTES_MAX);
        let told = short.filter_map(|hint| pki::DistinguishedName::from_der(hint));
        Self(self.0.clone(), told.take(ISSUERS_MAX).map(|name| name.to_text()).collect())
    }

    pub(crate) fn is_some(&self) -> bool {
        self.0.is_some()
    }

    pub(crate) fn certificate(&self) -> Option<&Certificate> {
        self.0.as_ref().map(|shown| &shown.leaf)
    }
}

impl fmt::Display for PresentedCert {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(certificate, issuers) = self;
        match certificate {
            Some(shown) => {
                let CertFile { leaf, path } = &**shown;
                let now = rustls_pki_types::UnixTime::now();
                let state = if leaf.not_after() < now {
                    ": EXPIRED"
                } else if leaf.not_before() > now {
                    ": NOT YET VALID"
                } else {
                    ""
                };
                write!(
                    f,
                    "Shown was `{}`, issued by `{}`, of {} ({CERT}), valid from {} to {}{state}. It must be issued by a CA \
                     of etcd's --trusted-ca-file, be for TLS clients and be valid by etcd's clock",
                    leaf.subject(),
                    leaf.issuer(),
                    path.display(),
                    format_utc(leaf.not_before()),
                    format_utc(leaf.not_after()),
                )?;
            }
            None => {
                write!(
                    f,
                    "Set {CERT} and {KEY}: a certificate of a CA of etcd's --trusted-ca-file, for TLS clients"
                )?;
            }
        }
        if !issuers.is_empty() {
            write!(f, ". It accepts certificates issued by `{}`", issuers.join("`, `"))?;
        }
        Ok(())
    }
}
