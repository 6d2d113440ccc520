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

use crate::date::date;
use crate::file::{FileError, Named};
use crate::pair::Pair;

/// How long a connection waits for the file system before it is made with what is held.
const READ_TIMEOUT: Duration = Duration::from_secs(1);
/// Files that cannot be used are read again after this time though they did not change: a
/// certificate becomes valid, a file system comes back.
const RETRY_INTERVAL: Duration = Duration::from_secs(10);
/// Two writes within one tick of the kernel's clock leave the same times. A file this young is read
/// once more at the next look.
const TICK: Duration = Duration::from_millis(50);

/// A setting and the file it names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// The setting.
    pub setting: &'static str,
    /// The file.
    pub path: PathBuf,
}

impl File {
    /// A setting and the file it names.
    pub fn new(setting: &'static str, path: &Path) -> Self {
        Self { setting, path: path.to_path_buf() }
    }

    /// For reading.
    pub fn named(&self) -> Named<'_> {
        Named { setting: self.setting, path: &self.path }
    }
}

/// The files of one TLS endpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Files {
    /// The certificate chain and the key of its leaf.
    pub pair: Option<(File, File)>,
    /// The CAs of the other side.
    pub ca: Option<File>,
    /// A DNS name that peers demand of the certificate. A chain without it does not replace one
    /// with it.
    pub name: Option<String>,
}

impl Files {
    /// The setting and file to name in an error about the certificate as a whole.
    pub fn certificate(&self) -> Option<Named<'_>> {
        self.pair.as_ref().map(|(cert, _)| cert.named())
    }

    fn paths(&self) -> impl Iterator<Item = &Path> {
        let pair = self.pair.iter().flat_map(|(cert, key)| [cert, key]);
        pair.chain(&self.ca).map(|file| file.path.as_path())
    }

    fn read_pair(&self) -> Result<Option<Arc<Pair>>, FileError> {
        let pair = self.pair.as_ref().map(|(cert, key)| Pair::read(cert.named(), key.named()).map(Arc::new));
        pair.transpose()
    }

    fn read_ca(&self) -> Result<Vec<Certificate>, FileError> {
        self.ca.as_ref().map_or_else(|| Ok(Vec::new()), |file| file.named().certificates())
    }

    /// Both as the files have them, where none is held.
    fn read(&self) -> Result<Contents, FileError> {
        Ok(Contents { pair: self.read_pair()?, ca: self.read_ca()? })
    }

    /// The pair, if it may take the place of the held one.
    fn newer_pair(&self, held: &Contents, now: UnixTime) -> Result<Option<Arc<Pair>>, FileError> {
        let new = self.read_pair()?;
        let leaf = new.as_ref().map(|pair| &pair.leaf);
        if let (Some((cert, _)), Some(new), Some(held)) = (&self.pair, leaf, held.leaf()) {
            if !is_valid(new, now) && is_valid(held, now) {
                let (from, until) = (date(new.not_before()), date(new.not_after()));
                return Err(cert.named().wrong(format!(
                    "the certificate {:?} is not valid now (from {from} to {until}), and the one in use is. Check \
                     this machine's clock, or issue another one",
                    new.subject()
                )));
            }
            if let Some(name) = &self.name
                && carries(held, name)
                && !carries(new, name)
            {
                return Err(cert.named().wrong(format!(
                    "the certificate {:?} does not carry the name {name:?}, which the one in use does. Issue it for \
                     that name, or change the setting and restart",
                    new.subject()
                )));
            }
        }
        Ok(new)
    }

    /// The CA bundle, if it may take the place of the held one.
    fn newer_ca(&self, held: &Contents, now: UnixTime) -> Result<Vec<Certificate>, FileError> {
        let new = self.read_ca()?;
        let usable = |ca: &[Certificate]| ca.iter().any(|one| is_valid(one, now));
        match &self.ca {
            Some(file) if !usable(&new) && usable(&held.ca) => Err(file.named().wrong(
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

fn carries(certificate: &Certificate, name: &str) -> bool {
    certificate.dns_names().iter().any(|dns| dns.eq_ignore_ascii_case(name))
}

/// What the files hold.
#[derive(Clone)]
pub struct Contents {
    /// Certificate and key, if the endpoint has any.
    pub pair: Option<Arc<Pair>>,
    /// The CAs of the other side.
    pub ca: Vec<Certificate>,
}

impl Contents {
    /// Our own certificate.
    pub fn leaf(&self) -> Option<&Certificate> {
        self.pair.as_ref().map(|pair| &pair.leaf)
    }

    /// Whether both hold the same certificate chain.
    pub fn has_pair_of(&self, other: &Self) -> bool {
        let chain = |contents: &Self| contents.pair.as_ref().map(|pair| pair.chain.clone());
        let (ours, theirs) = (chain(self).unwrap_or_default(), chain(other).unwrap_or_default());
        equal(&ours, &theirs)
    }

    fn has_ca_of(&self, other: &Self) -> bool {
        equal(&self.ca, &other.ca)
    }
}

fn equal(some: &[Certificate], others: &[Certificate]) -> bool {
    some.iter().map(Certificate::der).eq(others.iter().map(Certificate::der))
}

/// Files that were read together, and what was made of them.
pub struct Loaded<T> {
    /// What the files held.
    pub contents: Contents,
    /// The TLS configuration.
    pub tls: T,
}

type Build<T> = Box<dyn Fn(&Contents) -> Result<T, FileError> + Send + Sync>;

/// The newest usable files of one endpoint. Clones share them.
pub struct Reloader<T>(Arc<Inner<T>>);

struct Inner<T> {
    name: &'static str,
    files: Files,
    build: Build<T>,
    held: watch::Sender<Option<Arc<Loaded<T>>>>,
    /// Locked while files are read: by one thread at a time, never by an asynchronous task.
    last: Mutex<Option<Attempt>>,
    /// Read the files whether they changed or not.
    forced: AtomicBool,
    /// Why the files cannot be used; the log has it.
    problem: Mutex<Option<FileError>>,
    /// One blocking thread at a time: a file system that hangs must not take the whole pool.
    turn: Arc<tokio::sync::Mutex<()>>,
}

/// The last time the files were read.
struct Attempt {
    stamps: Vec<Stamp>,
    /// The files were old enough for their stamps to tell the next change.
    settled: bool,
    at: Instant,
    failure: Option<FileError>,
}

/// Identity of a file: another one after every way to replace its content. `None`: it cannot be
/// looked at.
type Stamp = Option<(u64, u64, u64, i64, i64, i64, i64)>;

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
        files: Files,
        build: impl Fn(&Contents) -> Result<T, FileError> + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(Inner {
            name,
            files,
            build: Box::new(build),
            held: watch::Sender::new(None),
            last: Mutex::new(None),
            forced: AtomicBool::new(false),
            problem: Mutex::new(None),
            turn: Arc::default(),
        }))
    }

    /// The files as they are now; read only if they changed. Blocks.
    ///
    /// # Errors
    /// [`FileError`] when they cannot be used.
    pub fn load(&self) -> Result<Arc<Loaded<T>>, FileError> {
        let mut last = lock(&self.0.last);
        let forced = self.0.forced.swap(false, Ordering::AcqRel);
        let (stamps, settled) = stamps(&self.0.files);
        if let Some(attempt) = &*last
            && !forced
            && attempt.settled
            && attempt.stamps == stamps
        {
            match (&attempt.failure, self.held()) {
                (None, Some(held)) => return Ok(held),
                (Some(failure), _) if attempt.at.elapsed() < RETRY_INTERVAL => return Err(failure.clone()),
                _ => {}
            }
        }
        let loaded = self.read();
        let failure = loaded.as_ref().err().cloned();
        *last = Some(Attempt { stamps, settled, at: Instant::now(), failure: failure.clone() });
        drop(last);
        self.note(failure);
        loaded
    }

    /// For a connection that is made now: the files as they are now or, while they cannot be used,
    /// what they held before. Blocks.
    ///
    /// # Errors
    /// [`FileError`] when they could never be used.
    pub fn current(&self) -> Result<Arc<Loaded<T>>, FileError> {
        self.load().or_else(|error| self.held().ok_or(error))
    }

    /// As [`current`](Self::current), on a thread that may block, and for at most a second: then
    /// with what is held.
    ///
    /// # Errors
    /// [`FileError`] when the files could never be used.
    pub async fn fresh(&self) -> Result<Arc<Loaded<T>>, FileError> {
        let look = async {
            let turn = Arc::clone(&self.0.turn).lock_owned().await;
            let this = self.clone();
            let looked = tokio::task::spawn_blocking(move || {
                let _turn = turn;
                this.current()
            });
            looked.await
        };
        match tokio::time::timeout(READ_TIMEOUT, look).await {
            Ok(Ok(current)) => current,
            // Only a runtime that ends loses the work.
            Ok(Err(_)) => self.held().ok_or_else(|| self.unanswered()),
            Err(_) => {
                let unanswered = self.unanswered();
                let held = self.held().ok_or_else(|| unanswered.clone());
                self.note(Some(unanswered));
                held
            }
        }
    }

    /// What is in use; looks at no file.
    pub fn held(&self) -> Option<Arc<Loaded<T>>> {
        self.0.held.borrow().clone()
    }

    /// Tells when other files are in use.
    pub fn changes(&self) -> watch::Receiver<Option<Arc<Loaded<T>>>> {
        self.0.held.subscribe()
    }

    /// Has the next look read the files whether they changed or not.
    pub fn force(&self) {
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
    pub fn files(&self) -> &Files {
        &self.0.files
    }

    fn read(&self) -> Result<Arc<Loaded<T>>, FileError> {
        let Some(held) = self.held() else {
            let contents = self.0.files.read()?;
            let tls = (self.0.build)(&contents)?;
            return Ok(self.hold(contents, tls));
        };
        let (files, now) = (&self.0.files, UnixTime::now());
        let mut problem = None;
        let pair = files.newer_pair(&held.contents, now).unwrap_or_else(|error| {
            problem = Some(error);
            held.contents.pair.clone()
        });
        let ca = files.newer_ca(&held.contents, now).unwrap_or_else(|error| {
            problem.get_or_insert(error);
            held.contents.ca.clone()
        });
        // Where the TLS library refuses one part, the other one counts all the same.
        let (former_pair, former_ca) = (held.contents.pair.clone(), held.contents.ca.clone());
        let newest = Contents { pair, ca };
        let ca_only = Contents { pair: former_pair, ca: newest.ca.clone() };
        let pair_only = Contents { pair: newest.pair.clone(), ca: former_ca };
        let mut used = Arc::clone(&held);
        for contents in [newest, ca_only, pair_only] {
            if contents.has_pair_of(&held.contents) && contents.has_ca_of(&held.contents) {
                continue;
            }
            match (self.0.build)(&contents) {
                Ok(tls) => {
                    used = self.hold(contents, tls);
                    self.log_replaced(&held.contents, &used.contents);
                    break;
                }
                Err(error) => {
                    problem.get_or_insert(error);
                }
            }
        }
        problem.map_or(Ok(used), Err)
    }

    fn hold(&self, contents: Contents, tls: T) -> Arc<Loaded<T>> {
        let loaded = Arc::new(Loaded { contents, tls });
        self.0.held.send_replace(Some(Arc::clone(&loaded)));
        loaded
    }

    fn log_replaced(&self, before: &Contents, now: &Contents) {
        let certificate = self.0.name;
        if let Some(leaf) = now.leaf().filter(|_| !now.has_pair_of(before)) {
            let (serial, not_after) = (leaf.serial_hex(), date(leaf.not_after()));
            let subject = leaf.subject();
            tracing::info!(certificate, subject, serial, not_after, "the renewed certificate is in use");
        }
        if !now.has_ca_of(before) {
            let subjects: Vec<_> = now.ca.iter().take(4).map(Certificate::subject).collect();
            let (count, setting) = (now.ca.len(), self.0.files.ca.as_ref().map(|file| file.setting));
            tracing::info!(certificate, setting, count, ?subjects, "the changed CA bundle is in use");
        }
    }

    /// Logs a failure once, and its end.
    fn note(&self, failure: Option<FileError>) {
        let mut known = lock(&self.0.problem);
        if *known == failure {
            return;
        }
        let certificate = self.0.name;
        // At the start, whoever loads the files first reports what is wrong with them.
        let held = self.0.held.borrow().is_some();
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

    fn unanswered(&self) -> FileError {
        let file = self.0.files.certificate().or(self.0.files.ca.as_ref().map(File::named));
        let file = file.unwrap_or(Named { setting: self.0.name, path: Path::new("") });
        file.wrong(format!("the file system did not answer within {} s", READ_TIMEOUT.as_secs()))
    }
}

/// A panic while the lock was held leaves nothing half written: each value is replaced as a whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Of every file, and whether all are old enough for the next change to show.
fn stamps(files: &Files) -> (Vec<Stamp>, bool) {
    let stamps: Vec<Stamp> = files.paths().map(stamp).collect();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let recent = now.saturating_sub(TICK);
    let settled = stamps.iter().flatten().all(|(.., seconds, nanos)| {
        let changed = Duration::new(
            u64::try_from(*seconds).unwrap_or_default(),
            u32::try_from(*nanos).unwrap_or_default(),
        );
        changed < recent
    });
    (stamps, settled)
}

fn stamp(path: &Path) -> Stamp {
    let data = fs::metadata(path).ok()?;
    let changed = (data.mtime(), data.mtime_nsec(), data.ctime(), data.ctime_nsec());
    Some((data.dev(), data.ino(), data.size(), changed.0, changed.1, changed.2, changed.3))
}

#[cfg(test)]
mod tests;
