//! What connections to the cluster are secured with: our certificate and its key, the CAs, and the name we expect.
//!
//! The files are read when a connection is made, if they changed since. Invariant: what is used together was read together and fits together
//! (key and certificate); when the files stop doing so, the last good ones stay in use, and the log says so once.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use pki::{Anchors, Certificate};
use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::ServerName;
use rustls::sign::CertifiedKey;

use super::endpoint::Endpoint;
use super::error::{DialError, Problem};
use super::verifier::{Servers, Trust};
use crate::date::date;
use crate::pem_files::{FileError, Named, Pair};

const CERT: &str = "deployment.etcd.tls.cert";
const KEY: &str = "deployment.etcd.tls.key";
const CA: &str = "apisix.ssl.ssl_trusted_certificate";

/// Said of `verify: false`.
pub(crate) const OPEN: &str = "deployment.etcd.tls.verify is false: whoever answers at an endpoint is taken for etcd, and gets the password and \
     every document; set it to true and name the CA in apisix.ssl.ssl_trusted_certificate";

/// Issuers that are quoted when a server refuses our certificate.
const QUOTED: usize = 4;
const QUOTED_BYTES_MAX: usize = 512;

/// What connections to the cluster are secured with. Clones share what was read.
#[derive(Clone)]
pub struct Security(Arc<Inner>);

struct Inner {
    tls: conf::EtcdTls,
    ca: Option<PathBuf>,
    /// The URL that errors about the files are told with.
    about: String,
    good: Mutex<Option<Good>>,
    /// What the files were when they were last read, usable or not.
    tried: Mutex<Option<Vec<Stamp>>>,
    told: Mutex<Option<String>>,
    warned_of_open: AtomicBool,
}

/// The last files that could be used, and what told them from others.
#[derive(Clone)]
struct Good {
    loaded: Loaded,
    stamps: Vec<Stamp>,
}

/// A file's identity: changes with every way of replacing its content.
type Stamp = Option<(u64, u64, u64, i64, i64, i64, i64)>;

/// Files that were read and fit together.
#[derive(Clone)]
pub struct Loaded {
    pub(super) config: Arc<ClientConfig>,
    pub(super) identity: Option<Arc<CertifiedKey>>,
    /// Our certificate, if we have one.
    pub certificate: Option<Shown>,
    /// What servers are verified with.
    pub trusted: Trusted,
}

/// What servers are verified with, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trusted {
    /// `verify: false`.
    Anybody,
    /// A bundle.
    Bundle {
        /// The file.
        path: PathBuf,
        /// Its certificates.
        count: usize,
        /// The first one's subject.
        first: String,
    },
}

/// What we show to servers that ask, for people.
#[derive(Debug, Clone, Default)]
pub struct Shown(Option<Arc<ShownCertificate>>, Arc<[String]>);

#[derive(Debug)]
struct ShownCertificate {
    leaf: Certificate,
    path: PathBuf,
}

impl Security {
    /// Of `deployment.etcd.tls` and `apisix.ssl.ssl_trusted_certificate`. Reads nothing yet.
    pub fn of(settings: &conf::Settings) -> Self {
        let etcd = &settings.deployment.etcd;
        Self(Arc::new(Inner {
            tls: etcd.tls.clone(),
            ca: settings.apisix.ssl.trusted_certificate.clone(),
            about: etcd.hosts.first().cloned().unwrap_or_default(),
            good: Mutex::default(),
            tried: Mutex::default(),
            told: Mutex::default(),
            warned_of_open: AtomicBool::new(false),
        }))
    }

    /// Reads and checks the files.
    ///
    /// # Errors
    /// Says which file is wrong, and what to do.
    pub fn load(&self) -> Result<Loaded, DialError> {
        self.newest().map_err(|problem| DialError::new(&self.0.about, problem))
    }

    /// Whether the files are others than when they were last tried, so that it is time to try them. Looks at their dates only; files that
    /// nobody has needed yet (no endpoint is `https://`) are not changed.
    pub fn changed(&self) -> bool {
        let tried = self.0.tried.lock().unwrap_or_else(PoisonError::into_inner).clone();
        tried.is_some_and(|tried| tried != self.stamps())
    }

    /// For a connection that is made now: the files, or, while they cannot be used, what they held before.
    pub(super) fn current(&self) -> Result<Loaded, Problem> {
        let loaded = self.newest().or_else(|problem| {
            let Some(good) = self.good() else { return Err(problem) };
            let text = problem.to_string();
            let mut told = self.0.told.lock().unwrap_or_else(PoisonError::into_inner);
            if told.as_ref() != Some(&text) {
                tracing::warn!(
                    "{text}; connections to etcd are made with what the files held before, until they can be used"
                );
                *told = Some(text);
            }
            Ok(good.loaded)
        })?;
        if loaded.trusted == Trusted::Anybody && !self.0.warned_of_open.swap(true, Ordering::Relaxed) {
            tracing::warn!("{OPEN}");
        }
        Ok(loaded)
    }

    /// The files; read if they changed.
    fn newest(&self) -> Result<Loaded, Problem> {
        let stamps = self.stamps();
        *self.0.tried.lock().unwrap_or_else(PoisonError::into_inner) = Some(stamps.clone());
        if let Some(good) = self.good().filter(|good| good.stamps == stamps) {
            return Ok(good.loaded);
        }
        let loaded = self.read()?;
        *self.0.told.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let good = Good { loaded: loaded.clone(), stamps };
        *self.0.good.lock().unwrap_or_else(PoisonError::into_inner) = Some(good);
        Ok(loaded)
    }

    /// The name a server must have, and whether `tls.sni` gives it.
    pub(super) fn expected(&self, endpoint: &Endpoint) -> Result<(ServerName<'static>, bool), Problem> {
        let sni = self.0.tls.sni.as_deref().filter(|sni| !sni.is_empty());
        let text = sni.unwrap_or(endpoint.host());
        let name = ServerName::try_from(text.to_owned()).map_err(|_| {
            Problem::Library(format!("sni: {text:?} is neither a host name nor an IP address"))
        })?;
        Ok((name, sni.is_some()))
    }

    fn good(&self) -> Option<Good> {
        self.0.good.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn stamps(&self) -> Vec<Stamp> {
        let Inner { tls, ca, .. } = &*self.0;
        let ca = ca.as_ref().filter(|_| tls.verify);
        let files = [tls.cert.as_ref(), tls.key.as_ref(), ca];
        files.into_iter().flatten().map(|path| stamp(path)).collect()
    }

    fn read(&self) -> Result<Loaded, Problem> {
        let Inner { tls, ca, .. } = &*self.0;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let (trust, trusted) =
            if tls.verify { bundle(ca.as_deref())? } else { (Trust::Anyone, Trusted::Anybody) };
        let pair = match (&tls.cert, &tls.key) {
            (Some(cert), Some(key)) => {
                let pair =
                    Pair::read(Named { setting: CERT, path: cert }, Named { setting: KEY, path: key })?;
                Some((pair, cert))
            }
            _ => None,
        };
        let library = |error: rustls::Error| Problem::Library(error.to_string());
        let identity =
            pair.as_ref().map(|(pair, _)| pair.certified(&provider)).transpose().map_err(library)?;
        let certificate = pair.map(|(pair, path)| Shown::of(pair.leaf, path));
        let config = client_config(&provider, trust).map_err(library)?;
        Ok(Loaded { config: Arc::new(config), identity, certificate, trusted })
    }
}

/// Without a client certificate and a protocol: each connection gets its own, the former to learn whether it was asked for.
fn client_config(provider: &Arc<CryptoProvider>, trust: Trust) -> Result<ClientConfig, rustls::Error> {
    let mut config = ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Servers::new(trust, provider)))
        .with_no_client_auth();
    // A resumed session would outlive the verdict on the certificates it began with.
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// For a connection on which nothing is said: to see who is there.
pub(crate) fn trusting_anyone() -> Result<ClientConfig, rustls::Error> {
    client_config(&Arc::new(rustls::crypto::aws_lc_rs::default_provider()), Trust::Anyone)
}

fn bundle(path: Option<&Path>) -> Result<(Trust, Trusted), Problem> {
    let path = path.ok_or_else(|| {
        let problem = "this machine has no CA bundle to verify etcd with: name the PEM file of the CA that issued its \
                       certificate";
        Problem::File(FileError { setting: CA, path: "system".into(), problem: problem.to_owned() })
    })?;
    let file = Named { setting: CA, path };
    let anchors = Anchors::new(file.certificates()?).map_err(|error| file.wrong(error))?;
    let first = anchors.certificates().first().map(|first| first.subject().to_owned()).unwrap_or_default();
    let count = anchors.certificates().len();
    Ok((Trust::Anchors(anchors), Trusted::Bundle { path: path.to_path_buf(), count, first }))
}

fn stamp(path: &Path) -> Stamp {
    let data = fs::metadata(path).ok()?;
    let changed = (data.mtime(), data.mtime_nsec(), data.ctime(), data.ctime_nsec());
    Some((data.dev(), data.ino(), data.size(), changed.0, changed.1, changed.2, changed.3))
}

impl fmt::Debug for Security {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Security").field("tls", &self.0.tls).field("ca", &self.0.ca).finish()
    }
}

impl fmt::Display for Trusted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anybody => f.write_str("anybody (deployment.etcd.tls.verify is false)"),
            Self::Bundle { path, count: 1, first } => write!(f, "`{first}` of {} ({CA})", path.display()),
            Self::Bundle { path, count, first } => {
                write!(f, "`{first}` and {} more of {} ({CA})", count - 1, path.display())
            }
        }
    }
}

impl Shown {
    fn of(leaf: Certificate, path: &Path) -> Self {
        Self(Some(Arc::new(ShownCertificate { leaf, path: path.to_path_buf() })), Arc::default())
    }

    /// With the issuers the server named when it asked.
    pub(super) fn asked_with(&self, hints: &[&[u8]]) -> Self {
        // What a stranger sends is quoted in measure.
        let short = hints.iter().filter(|hint| hint.len() <= QUOTED_BYTES_MAX);
        let told = short.filter_map(|hint| pki::DistinguishedName::from_der(hint));
        Self(self.0.clone(), told.take(QUOTED).map(|name| name.to_text()).collect())
    }

    /// Whether there is one.
    pub fn is_some(&self) -> bool {
        self.0.is_some()
    }

    /// The certificate.
    pub fn certificate(&self) -> Option<&Certificate> {
        self.0.as_ref().map(|shown| &shown.leaf)
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(certificate, issuers) = self;
        match certificate {
            Some(shown) => {
                let ShownCertificate { leaf, path } = &**shown;
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
                    date(leaf.not_before()),
                    date(leaf.not_after()),
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
