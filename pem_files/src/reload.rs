//! Certificate, key and CA files that are read again when they change.
//!
//! The files are looked at when a connection is made, every ten seconds and on SIGHUP
//! ([`OwnCertificates`](crate::OwnCertificates)); they are read when their identity (device, inode,
//! size, mtime, ctime; of the target of a symlink) is another one. The pair and the CA bundle are
//! judged apart: a CA that was taken out is no longer trusted though the new pair cannot be used,
//! and the other way round. Invariant: files that cannot be used never replace those that can:
//! neither an unreadable or half-written pair, nor one that is not valid now while the held one is,
//! nor one without the name that peers look for, nor a CA bundle without a valid certificate.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use std::{fmt, fs};

use pki::{Certificate, UnixTime};
use tokio::sync::watch;

use crate::date::format_utc;
use crate::file::{ConfiguredFileRef, FileError};
use crate::pair::CertKeyPair;

/// How long a connection waits for the file system before it is made with what is held.
const READ_TIMEOUT: Duration = Duration::from_secs(1);
/// Files that cannot be used are read again after this time though they did not change: a
/// certificate becomes valid, a file system comes back.
const RETRY_INTERVAL: Duration = Duration::from_secs(10);
/// Two writes within one tick of the kernel's clock leave the same times. A file this young is read
/// once more at the next look.
const TIMESTAMP_GRANULARITY: Duration = Duration::from_millis(50);

/// A setting and the file it names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfiguredFile {
    /// The setting.
    pub setting: &'static str,
    /// The file.
    pub path: PathBuf,
}

impl ConfiguredFile {
    /// A setting and the file it names.
    pub fn new(setting: &'static str, path: &Path) -> Self {
        Self { setting, path: path.to_path_buf() }
    }

    /// For reading.
    pub fn by_ref(&self) -> ConfiguredFileRef<'_> {
        ConfiguredFileRef { setting: self.setting, path: &self.path }
    }
}

/// The files of one TLS endpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CredentialFiles {
    /// The certificate chain and the key of its leaf.
    pub pair: Option<(ConfiguredFile, ConfiguredFile)>,
    /// The CAs of the other side.
    pub ca: Option<ConfiguredFile>,
    /// A DNS name that peers demand of the certificate. A chain without it does not replace one
    /// with it.
    pub required_dns_name: Option<String>,
}

impl CredentialFiles {
    /// The setting and file to name in an error about the certificate as a whole.
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

    /// Both as the files have them, where none is held.
    fn read(&self) -> Result<Credentials, FileError> {
        Ok(Credentials { pair: self.read_cert_key_pair()?, ca: self.read_ca()? })
    }

    /// The pair, if it may take the place of the held one.
    fn replacement_pair(
        &self,
        held: &Credentials,
        now: UnixTime,
    ) -> Result<Option<Arc<CertKeyPair>>, FileError> {
        let new = self.read_cert_key_pair()?;
        let leaf = new.as_ref().map(|pair| &pair.leaf);
        if let (Some((cert, _)), Some(new), Some(held)) = (&self.pair, leaf, held.leaf()) {
            if !is_valid(new, now) && is_valid(held, now) {
                let (from, until) = (format_utc(new.not_before()), format_utc(new.not_after()));
                return Err(cert.by_ref().error(format!(
                    "the certificate {:?} is not valid now (from {from} to {until}), and the one in use is. Check \
                     this machine's clock, or issue another one",
                    new.subject()
                )));
            }
            if let Some(name) = &self.required_dns_name
                && has_dns_name(held, name)
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

    /// The CA bundle, if it may take the place of the held one.
    fn replacement_ca(&self, held: &Credentials, now: UnixTime) -> Result<Vec<Certificate>, FileError> {
        let new = self.read_ca()?;
        let usable = |ca: &[Certificate]| ca.iter().any(|one| is_valid(one, now));
        match &self.ca {
            Some(file) if !usable(&new) && usable(&held.ca) => Err(file.by_ref().error(
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

/// What the files hold.
#[derive(Clone)]
pub struct Credentials {
    /// Certificate and key, if the endpoint has any.
    pub pair: Option<Arc<CertKeyPair>>,
    /// The CAs of the other side.
    pub ca: Vec<Certificate>,
}

impl Credentials {
    /// Our own certificate.
    pub fn leaf(&self) -> Option<&Certificate> {
        self.pair.as_ref().map(|pair| &pair.leaf)
    }

    /// Whether both hold the same certificate chain.
    pub fn has_same_chain_as(&self, other: &Self) -> bool {
        let chain = |contents: &Self| contents.pair.as_ref().map(|pair| pair.chain.clone());
        let (ours, theirs) = (chain(self).unwrap_or_default(), chain(other).unwrap_or_default());
        same_certificates(&ours, &theirs)
    }

    fn has_same_ca_as(&self, other: &Self) -> bool {
        same_certificates(&self.ca, &other.ca)
    }
}

fn same_certificates(some: &[Certificate], others: &[Certificate]) -> bool {
    some.iter().map(Certificate::der).eq(others.iter().map(Certificate::der))
}

/// Files that were read together, and what was made of them.
pub struct LoadedCredentials<T> {
    /// What the files held.
    pub credentials: Credentials,
    /// The TLS configuration.
    pub tls: T,
}

type Build<T> = Box<dyn Fn(&Credentials) -> Result<T, FileError> + Send + Sync>;

/// The newest usable files of one endpoint. Clones share them.
pub struct Reloader<T>(Arc<Shared<T>>);

struct Shared<T> {
    name: &'static str,
    files: CredentialFiles,
    build: Build<T>,
    in_use: watch::Sender<Option<Arc<LoadedCredentials<T>>>>,
    /// Locked while files are read: by one thread at a time, never by an asynchronous task.
    last_read: Mutex<Option<LastRead>>,
    /// Read the files whether they changed or not.
    forced: AtomicBool,
    /// Why the files cannot be used; the log has it.
    problem: Mutex<Option<FileError>>,
    /// One blocking thread at a time: a file system that hangs must not take the whole pool.
    read_permit: Arc<tokio::sync::Mutex<()>>,
}

/// The last time the files were read.
struct LastRead {
    identities: Vec<FileIdentity>,
    /// The files were old enough for their stamps to tell the next change.
    stable: bool,
    at: Instant,
    failure: Option<FileError>,
}

/// Identity of a file: another one after every way to replace its content. `None`: it cannot be
/// looked at.
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
    /// `build` makes the TLS configuration, or says which file it cannot use.
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

    /// The files as they are now; read only if they changed. Blocks.
    ///
    /// # Errors
    /// [`FileError`] when they cannot be used.
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
                (None, Some(held)) => return Ok(held),
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

    /// For a connection that is made now: the files as they are now or, while they cannot be used,
    /// what they held before. Blocks.
    ///
    /// # Errors
    /// [`FileError`] when they could never be used.
    pub fn refresh_blocking(&self) -> Result<Arc<LoadedCredentials<T>>, FileError> {
        self.load().or_else(|error| self.in_use().ok_or(error))
    }

    /// As [`current`](Self::current), on a thread that may block, and for at most a second: then
    /// with what is held.
    ///
    /// # Errors
    /// [`FileError`] when the files could never be used.
    pub async fn refresh(&self) -> Result<Arc<LoadedCredentials<T>>, FileError> {
        let look = async {
            let turn = Arc::clone(&self.0.read_permit).lock_owned().await;
            let this = self.clone();
            let looked = tokio::task::spawn_blocking(move || {
                let _turn = turn;
                this.refresh_blocking()
            });
            looked.await
        };
        match tokio::time::timeout(READ_TIMEOUT, look).await {
            Ok(Ok(current)) => current,
            // Only a runtime that ends loses the work.
            Ok(Err(_)) => self.in_use().ok_or_else(|| self.timeout_error()),
            Err(_) => {
                let unanswered = self.timeout_error();
                let held = self.in_use().ok_or_else(|| unanswered.clone());
                self.log_transition(Some(unanswered));
                held
            }
        }
    }

    /// What is in use; looks at no file.
    pub fn in_use(&self) -> Option<Arc<LoadedCredentials<T>>> {
        self.0.in_use.borrow().clone()
    }

    /// Tells when other files are in use.
    pub fn subscribe(&self) -> watch::Receiver<Option<Arc<LoadedCredentials<T>>>> {
        self.0.in_use.subscribe()
    }

    /// Has the next look read the files whether they changed or not.
    pub fn force_next_read(&self) {
        self.0.forced.store(true, Ordering::Release);
    }

    /// Why the files as they are cannot be used.
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
        let Some(held) = self.in_use() else {
            let contents = self.0.files.read()?;
            let tls = (self.0.build)(&contents)?;
            return Ok(self.replace(contents, tls));
        };
        let (files, now) = (&self.0.files, UnixTime::now());
        let mut problem = None;
        let pair = files.replacement_pair(&held.credentials, now).unwrap_or_else(|error| {
            problem = Some(error);
            held.credentials.pair.clone()
        });
        let ca = files.replacement_ca(&held.credentials, now).unwrap_or_else(|error| {
            problem.get_or_insert(error);
            held.credentials.ca.clone()
        });
        // Where the TLS library refuses one part, the other one counts all the same.
        let (former_pair, former_ca) = (held.credentials.pair.clone(), held.credentials.ca.clone());
        let newest = Credentials { pair, ca };
        let ca_only = Credentials { pair: former_pair, ca: newest.ca.clone() };
        let pair_only = Credentials { pair: newest.pair.clone(), ca: former_ca };
        let mut used = Arc::clone(&held);
        for contents in [newest, ca_only, pair_only] {
            if contents.has_same_chain_as(&held.credentials) && contents.has_same_ca_as(&held.credentials) {
                continue;
            }
            match (self.0.build)(&contents) {
                Ok(tls) => {
                    used = self.replace(contents, tls);
                    self.log_replaced(&held.credentials, &used.credentials);
                    break;
                }
                Err(error) => {
                    problem.get_or_insert(error);
                }
            }
        }
        problem.map_or(Ok(used), Err)
    }

    fn replace(&self, contents: Credentials, tls: T) -> Arc<LoadedCredentials<T>> {
        let loaded = Arc::new(LoadedCredentials { credentials: contents, tls });
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

    /// Logs a failure once, and its end.
    fn log_transition(&self, failure: Option<FileError>) {
        let mut known = lock(&self.0.problem);
        if *known == failure {
            return;
        }
        let certificate = self.0.name;
        // At the start, whoever loads the files first reports what is wrong with them.
        let held = self.0.in_use.borrow().is_some();
        match &failure {
            Some(problem) if held => tracing::warn!(
                certificate,
                "{problem}; what the files held before stays in use until they can be used"
            ),
            None if held => tracing::info!(certificate, "the certificate files can be used again"),
            _ => {}
        }
        *known = failure;
    }

    fn timeout_error(&self) -> FileError {
        let file = self.0.files.certificate().or(self.0.files.ca.as_ref().map(ConfiguredFile::by_ref));
        let file = file.unwrap_or(ConfiguredFileRef { setting: self.0.name, path: Path::new("") });
        file.error(format!("the file system did not answer within {} s", READ_TIMEOUT.as_secs()))
    }
}

/// A panic while the lock was held leaves nothing half written: each value is replaced as a whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Of every file, and whether all are old enough for the next change to show.
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
