//! Certificate, key and CA files that are reloaded when they change.
//!
//! The files are checked when a connection is made, every ten seconds and on SIGHUP
//! ([`CertificateMonitor`](crate::CertificateMonitor)); they are read when their identity (device,
//! inode, size, mtime, ctime; of the target of a symlink) has changed. The certificate with its key
//! and the CA bundle are replaced independently: a removed CA is no longer trusted though the new
//! certificate is unusable, and the other way round. Invariant: usable files are never replaced by
//! unusable ones: neither by an unreadable or half-written pair, nor by a certificate that is not
//! valid now while the one in use is, nor by one without the name that peers require, nor by a CA
//! bundle without a valid certificate.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use std::{fmt, fs};

use pki::{Certificate, UnixTime, format_utc};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::sync::watch;

use crate::credentials::{CertKeyPair, ConfiguredFile, ConfiguredFileRef, FileError};

/// How long a connection waits for the file system before it uses the credentials in use.
const READ_TIMEOUT: Duration = Duration::from_secs(1);
/// Unusable files are read again after this time even when they did not change: a certificate
/// becomes valid, a file system recovers.
const RETRY_INTERVAL: Duration = Duration::from_secs(10);
/// Two writes within one tick of the kernel's clock have the same timestamps. A file this young is
/// read again at the next check.
const TIMESTAMP_GRANULARITY: Duration = Duration::from_millis(50);

/// The certificate files of one TLS endpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CredentialFiles {
    /// The certificate chain and the key of its leaf.
    pub pair: Option<(ConfiguredFile, ConfiguredFile)>,
    /// The CAs of the peer.
    pub ca: Option<ConfiguredFile>,
    /// A DNS name that peers require of the certificate. A certificate without it does not replace
    /// one with it.
    pub required_dns_name: Option<String>,
}

impl CredentialFiles {
    /// The certificate's file, for errors about the certificate as a whole.
    pub fn certificate(&self) -> Option<ConfiguredFileRef<'_>> {
        self.pair.as_ref().map(|(cert, _)| cert.by_ref())
    }

    fn paths(&self) -> impl Iterator<Item = &Path> {
        let pair = self.pair.iter().flat_map(|(cert, key)| [cert, key]);
        pair.chain(&self.ca).map(|file| file.path.as_path())
    }

    fn read_cert_key_pair(&self) -> Result<Option<Arc<CertKeyPair>>, FileError> {
        let pair = self
            .pair
            .as_ref()
            .map(|(cert, key)| CertKeyPair::read(cert.by_ref(), key.by_ref()).map(Arc::new));
        pair.transpose()
    }

    fn read_ca(&self) -> Result<Vec<Certificate>, FileError> {
        self.ca.as_ref().map_or_else(|| Ok(Vec::new()), |file| file.by_ref().read_certificates())
    }

    /// Reads all files unconditionally, when no credentials are in use.
    fn read(&self) -> Result<Credentials, FileError> {
        Ok(Credentials { pair: self.read_cert_key_pair()?, ca: self.read_ca()? })
    }

    /// Reads the certificate and key; an error when they must not replace those in use.
    fn replacement_pair(
        &self,
        current: &Credentials,
        now: UnixTime,
    ) -> Result<Option<Arc<CertKeyPair>>, FileError> {
        let new = self.read_cert_key_pair()?;
        let leaf = new.as_ref().map(|pair| &pair.leaf);
        if let (Some((cert, _)), Some(new), Some(current)) = (&self.pair, leaf, current.leaf()) {
            if !is_valid(new, now) && is_valid(current, now) {
                let (from, until) = (format_utc(new.not_before()), format_utc(new.not_after()));
                return Err(cert.by_ref().error(format!(
                    "the certificate {:?} is not valid now (from {from} to {until}), and the one in use is. Check \
                     this machine's clock, or issue another one",
                    new.subject()
                )));
            }
            if let Some(name) = &self.required_dns_name
                && has_dns_name(current, name)
                && !has_dns_name(new, name)
            {
                return Err(cert.by_ref().error(format!(
                    "the certificate {:?} does not carry the name {name:?}, which the one in use does. Issue it for \
                     that name, or change the setting and restart",
                    new.subject()
                )));
            }
        }
        Ok(new)
    }

    /// Reads the CA bundle; an error when it must not replace the one in use.
    fn replacement_ca(&self, current: &Credentials, now: UnixTime) -> Result<Vec<Certificate>, FileError> {
        let new = self.read_ca()?;
        let usable = |ca: &[Certificate]| ca.iter().any(|one| is_valid(one, now));
        match &self.ca {
            Some(file) if !usable(&new) && usable(&current.ca) => Err(file.by_ref().error(
                "none of its certificates is valid now, and one of those in use is. Check this machine's clock, or \
                 put the CA's present certificate there",
            )),
            _ => Ok(new),
        }
    }
}

fn is_valid(certificate: &Certificate, now: UnixTime) -> bool {
    certificate.not_before() <= now && now <= certificate.not_after()
}

fn has_dns_name(certificate: &Certificate, name: &str) -> bool {
    certificate.dns_names().iter().any(|dns| dns.eq_ignore_ascii_case(name))
}

/// The content of the files of one endpoint.
#[derive(Clone)]
pub struct Credentials {
    /// The certificate chain and its key, if the endpoint has any.
    pub pair: Option<Arc<CertKeyPair>>,
    /// The CAs of the peer.
    pub ca: Vec<Certificate>,
}

impl Credentials {
    /// The own certificate.
    pub fn leaf(&self) -> Option<&Certificate> {
        self.pair.as_ref().map(|pair| &pair.leaf)
    }

    /// Whether both have the same certificate chain.
    pub fn has_same_chain_as(&self, other: &Self) -> bool {
        let chain = |credentials: &Self| credentials.pair.as_ref().map(|pair| pair.chain.clone());
        let (ours, theirs) = (chain(self).unwrap_or_default(), chain(other).unwrap_or_default());
        same_certificates(&ours, &theirs)
    }

    /// The form that rustls' own verifiers and configurations take. `cert` and `ca`: the files that
    /// these credentials were read from, for errors.
    ///
    /// # Errors
    /// [`FileError`] when there is no certificate, or when webpki cannot read a CA.
    pub fn to_webpki(
        &self,
        cert: ConfiguredFileRef<'_>,
        ca: ConfiguredFileRef<'_>,
    ) -> Result<WebPkiCredentials, FileError> {
        let pair = self.pair.as_ref().ok_or_else(|| cert.error("no certificate"))?;
        let mut roots = RootCertStore::empty();
        for anchor in &self.ca {
            roots.add(anchor.der().clone()).map_err(|error| ca.error(error))?;
        }
        let chain = pair.chain.iter().map(|certificate| certificate.der().clone()).collect();
        Ok(WebPkiCredentials { roots: Arc::new(roots), chain, key: pair.key.der().clone_key() })
    }

    fn has_same_ca_as(&self, other: &Self) -> bool {
        same_certificates(&self.ca, &other.ca)
    }
}

/// Credentials in the form that rustls' own verifiers and configurations take.
pub struct WebPkiCredentials {
    /// The CAs of the peer.
    pub roots: Arc<RootCertStore>,
    /// The own certificate chain.
    pub chain: Vec<CertificateDer<'static>>,
    /// The key of the chain's leaf.
    pub key: PrivateKeyDer<'static>,
}

fn same_certificates(some: &[Certificate], others: &[Certificate]) -> bool {
    some.iter().map(Certificate::der).eq(others.iter().map(Certificate::der))
}

/// Credentials that were read together, and the TLS configuration built from them.
pub struct LoadedCredentials<T> {
    /// The credentials.
    pub credentials: Credentials,
    /// The TLS configuration.
    pub tls: T,
}

type Build<T> = Box<dyn Fn(&Credentials) -> Result<T, FileError> + Send + Sync>;

/// The newest usable credentials of one endpoint. Clones share them.
pub struct Reloader<T>(Arc<Shared<T>>);

struct Shared<T> {
    name: &'static str,
    files: CredentialFiles,
    build: Build<T>,
    in_use: watch::Sender<Option<Arc<LoadedCredentials<T>>>>,
    /// Locked while files are read: by one thread at a time, never by an asynchronous task.
    last_read: Mutex<Option<LastRead>>,
    /// The next check reads the files even when they did not change.
    forced: AtomicBool,
    /// Why the files are unusable, as logged.
    problem: Mutex<Option<FileError>>,
    /// One blocking thread at a time: a hanging file system must not use up the thread pool.
    read_permit: Arc<tokio::sync::Mutex<()>>,
}

/// The last read of the files.
struct LastRead {
    identities: Vec<FileIdentity>,
    /// The files were old enough for their identity to reveal the next change.
    stable: bool,
    at: Instant,
    failure: Option<FileError>,
}

/// Identity of a file: changes with every way to replace its content. `None`: no metadata.
type FileIdentity = Option<(u64, u64, u64, i64, i64, i64, i64)>;

impl<T> Clone for Reloader<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> fmt::Debug for Reloader<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reloader").field("name", &self.0.name).field("files", &self.0.files).finish()
    }
}

impl<T: Send + Sync + 'static> Reloader<T> {
    /// Reads nothing yet. `name`: `admin`, `push`, `node` or `etcd`, for metrics and the log.
    /// `build` makes the TLS configuration, or reports the unusable file.
    pub fn new(
        name: &'static str,
        files: CredentialFiles,
        build: impl Fn(&Credentials) -> Result<T, FileError> + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(Shared {
            name,
            files,
            build: Box::new(build),
            in_use: watch::Sender::new(None),
            last_read: Mutex::new(None),
            forced: AtomicBool::new(false),
            problem: Mutex::new(None),
            read_permit: Arc::default(),
        }))
    }

    /// Loads the current files; reads them only if they changed. Blocks.
    ///
    /// # Errors
    /// [`FileError`] when they are unusable.
    pub fn load(&self) -> Result<Arc<LoadedCredentials<T>>, FileError> {
        let mut last = lock(&self.0.last_read);
        let forced = self.0.forced.swap(false, Ordering::AcqRel);
        let (stamps, settled) = file_identities(&self.0.files);
        if let Some(attempt) = &*last
            && !forced
            && attempt.stable
            && attempt.identities == stamps
        {
            match (&attempt.failure, self.in_use()) {
                (None, Some(current)) => return Ok(current),
                (Some(failure), _) if attempt.at.elapsed() < RETRY_INTERVAL => return Err(failure.clone()),
                _ => {}
            }
        }
        let loaded = self.read();
        let failure = loaded.as_ref().err().cloned();
        *last = Some(LastRead {
            identities: stamps,
            stable: settled,
            at: Instant::now(),
            failure: failure.clone(),
        });
        drop(last);
        self.log_transition(failure);
        loaded
    }

    /// The credentials for a new connection: the current files, or, while they are unusable, the
    /// credentials in use. Blocks.
    ///
    /// # Errors
    /// [`FileError`] when the files were never usable.
    pub fn refresh_blocking(&self) -> Result<Arc<LoadedCredentials<T>>, FileError> {
        self.load().or_else(|error| self.in_use().ok_or(error))
    }

    /// Like [`refresh_blocking`](Self::refresh_blocking), on a blocking thread and within a second;
    /// after that, returns the credentials in use.
    ///
    /// # Errors
    /// [`FileError`] when the files were never usable.
    pub async fn refresh(&self) -> Result<Arc<LoadedCredentials<T>>, FileError> {
        let check = async {
            let permit = Arc::clone(&self.0.read_permit).lock_owned().await;
            let this = self.clone();
            let task = tokio::task::spawn_blocking(move || {
                let _permit = permit;
                this.refresh_blocking()
            });
            task.await
        };
        match tokio::time::timeout(READ_TIMEOUT, check).await {
            Ok(Ok(current)) => current,
            // The task is lost only when the runtime shuts down.
            Ok(Err(_)) => self.in_use().ok_or_else(|| self.timeout_error()),
            Err(_) => {
                let unanswered = self.timeout_error();
                let current = self.in_use().ok_or_else(|| unanswered.clone());
                self.log_transition(Some(unanswered));
                current
            }
        }
    }

    /// The credentials in use. Reads no file.
    pub fn in_use(&self) -> Option<Arc<LoadedCredentials<T>>> {
        self.0.in_use.borrow().clone()
    }

    /// Notifies when the credentials in use change.
    pub fn subscribe(&self) -> watch::Receiver<Option<Arc<LoadedCredentials<T>>>> {
        self.0.in_use.subscribe()
    }

    /// Makes the next check read the files even when they did not change.
    pub fn force_next_read(&self) {
        self.0.forced.store(true, Ordering::Release);
    }

    /// Why the current files are unusable.
    pub fn problem(&self) -> Option<FileError> {
        lock(&self.0.problem).clone()
    }

    /// `admin`, `push`, `node` or `etcd`.
    pub fn name(&self) -> &'static str {
        self.0.name
    }

    /// The files.
    pub fn files(&self) -> &CredentialFiles {
        &self.0.files
    }

    fn read(&self) -> Result<Arc<LoadedCredentials<T>>, FileError> {
        let Some(current) = self.in_use() else {
            let credentials = self.0.files.read()?;
            let tls = (self.0.build)(&credentials)?;
            return Ok(self.replace(credentials, tls));
        };
        let (files, now) = (&self.0.files, UnixTime::now());
        let mut problem = None;
        let pair = files.replacement_pair(&current.credentials, now).unwrap_or_else(|error| {
            problem = Some(error);
            current.credentials.pair.clone()
        });
        let ca = files.replacement_ca(&current.credentials, now).unwrap_or_else(|error| {
            problem.get_or_insert(error);
            current.credentials.ca.clone()
        });
        // When the TLS library rejects one part, the other one is still replaced.
        let (old_pair, old_ca) = (current.credentials.pair.clone(), current.credentials.ca.clone());
        let new = Credentials { pair, ca };
        let ca_only = Credentials { pair: old_pair, ca: new.ca.clone() };
        let pair_only = Credentials { pair: new.pair.clone(), ca: old_ca };
        let mut used = Arc::clone(&current);
        for credentials in [new, ca_only, pair_only] {
            if credentials.has_same_chain_as(&current.credentials)
                && credentials.has_same_ca_as(&current.credentials)
            {
                continue;
            }
            match (self.0.build)(&credentials) {
                Ok(tls) => {
                    used = self.replace(credentials, tls);
                    self.log_replaced(&current.credentials, &used.credentials);
                    break;
                }
                Err(error) => {
                    problem.get_or_insert(error);
                }
            }
        }
        problem.map_or(Ok(used), Err)
    }

    fn replace(&self, credentials: Credentials, tls: T) -> Arc<LoadedCredentials<T>> {
        let loaded = Arc::new(LoadedCredentials { credentials, tls });
        self.0.in_use.send_replace(Some(Arc::clone(&loaded)));
        loaded
    }

    fn log_replaced(&self, before: &Credentials, now: &Credentials) {
        let certificate = self.0.name;
        if let Some(leaf) = now.leaf().filter(|_| !now.has_same_chain_as(before)) {
            let (serial, not_after) = (leaf.serial_hex(), format_utc(leaf.not_after()));
            let subject = leaf.subject();
            tracing::info!(certificate, subject, serial, not_after, "the renewed certificate is in use");
        }
        if !now.has_same_ca_as(before) {
            let subjects: Vec<_> = now.ca.iter().take(4).map(Certificate::subject).collect();
            let (count, setting) = (now.ca.len(), self.0.files.ca.as_ref().map(|file| file.setting));
            tracing::info!(certificate, setting, count, ?subjects, "the changed CA bundle is in use");
        }
    }

    /// Logs a failure once, and the recovery.
    fn log_transition(&self, failure: Option<FileError>) {
        let mut known = lock(&self.0.problem);
        if *known == failure {
            return;
        }
        let certificate = self.0.name;
        // At startup the caller reports the error.
        let is_loaded = self.0.in_use.borrow().is_some();
        match &failure {
            Some(problem) if is_loaded => tracing::warn!(
                certificate,
                "{problem}; what the files held before stays in use until they can be used"
            ),
            None if is_loaded => tracing::info!(certificate, "the certificate files can be used again"),
            _ => {}
        }
        *known = failure;
    }

    fn timeout_error(&self) -> FileError {
        let file = self.0.files.certificate().or(self.0.files.ca.as_ref().map(ConfiguredFile::by_ref));
        let file = file.unwrap_or(ConfiguredFileRef { setting: self.0.name, path: Path::new("") });
        file.error(format!("the file system did not respond within {} s", READ_TIMEOUT.as_secs()))
    }
}

/// Each value is replaced as a whole, so a panic under the lock leaves it consistent.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The identities of all files, and whether all are old enough to reveal the next change.
fn file_identities(files: &CredentialFiles) -> (Vec<FileIdentity>, bool) {
    let stamps: Vec<FileIdentity> = files.paths().map(file_identity).collect();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let recent = now.saturating_sub(TIMESTAMP_GRANULARITY);
    let settled = stamps.iter().flatten().all(|(.., seconds, nanos)| {
        let changed = Duration::new(
            u64::try_from(*seconds).unwrap_or_default(),
            u32::try_from(*nanos).unwrap_or_default(),
        );
        changed < recent
    });
    (stamps, settled)
}

fn file_identity(path: &Path) -> FileIdentity {
    let data = fs::metadata(path).ok()?;
    let changed = (data.mtime(), data.mtime_nsec(), data.ctime(), data.ctime_nsec());
    Some((data.dev(), data.ino(), data.size(), changed.0, changed.1, changed.2, changed.3))
}

#[cfg(test)]
mod tests;
