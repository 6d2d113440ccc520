//! The client certificate and the trust anchors of a connection, in the words of its errors.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pki::{Certificate, format_utc};

pub(super) const CERT: &str = "deployment.etcd.tls.cert";
pub(super) const KEY: &str = "deployment.etcd.tls.key";
pub(super) const CA: &str = "apisix.ssl.ssl_trusted_certificate";

/// The number of quoted issuers when a server rejects the client certificate.
const ISSUERS_MAX: usize = 4;
const ISSUER_BYTES_MAX: usize = 512;

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

impl fmt::Display for TrustSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unverified => f.write_str("any server (deployment.etcd.tls.verify is false)"),
            Self::Bundle { path, count: 1, first } => write!(f, "`{first}` of {} ({CA})", path.display()),
            Self::Bundle { path, count, first } => {
                write!(f, "`{first}` and {} more of {} ({CA})", count - 1, path.display())
            }
        }
    }
}

impl PresentedCert {
    pub(super) fn of(leaf: Certificate, path: &Path) -> Self {
        Self(Some(Arc::new(CertFile { leaf, path: path.to_path_buf() })), Arc::default())
    }

    /// With the issuers of the server's CertificateRequest.
    pub(super) fn with_requested_issuers(&self, hints: &[&[u8]]) -> Self {
        // Bounded: the server is not verified yet.
        let short = hints.iter().filter(|hint| hint.len() <= ISSUER_BYTES_MAX);
        let names = short.filter_map(|hint| pki::DistinguishedName::from_der(hint));
        Self(self.0.clone(), names.take(ISSUERS_MAX).map(|name| name.to_text()).collect())
    }

    pub(crate) fn is_some(&self) -> bool {
        self.0.is_some()
    }

    pub(crate) fn certificate(&self) -> Option<&Certificate> {
        self.0.as_ref().map(|cert| &cert.leaf)
    }
}

impl fmt::Display for PresentedCert {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(certificate, issuers) = self;
        match certificate {
            Some(cert) => {
                let CertFile { leaf, path } = &**cert;
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
                    "Sent was `{}`, issued by `{}`, of {} ({CERT}), valid from {} to {}{state}. It must be issued by a CA \
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
