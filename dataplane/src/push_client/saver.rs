//! Keeps the last good snapshot on disk: always the newest, never in the way of a change. A small
//! one follows a change at once; the longer a write takes, the longer the pause after it, so that a
//! large one is not written for each change of a burst.
//!
//! It has a thread of its own that stands back behind everybody else (`host`), and writing goes
//! through io_uring (or a blocking thread where that is not to be had). Invariant: the file is
//! replaced by rename after its bytes are on disk, so a crash leaves the old one or the new one.

use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use std::{fs, io};

use model::{Snapshot, TicketRing};
use tokio::sync::watch;
use tokio::time::Instant;

use super::last_good::{LastGoodFile, folder_of, make_folder};
use super::sync_status::SyncStatus;

/// The pause after a write, in its own durations: writing takes a tenth of the time at most.
const PAUSE_FACTOR: u32 = 9;
/// And at most this: what a restart without a control plane may be behind.
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// What is written at a time: some 0.1 ms of copying, during which the kernel, whatever the
/// thread's priority, may let nobody else onto the core. Bytes.
const WRITE_CHUNK: usize = 64 * 1024;
/// After a write that failed, when nothing changes meanwhile.
const RETRY_INTERVAL: Duration = Duration::from_secs(10);

/// Between two notes that a control plane confirmed what is on disk.
const CONFIRMATION_INTERVAL: Duration = Duration::from_secs(60);
/// The generation before is replaced by any change once it is so old.
const PREVIOUS_MAX_AGE: Duration = Duration::from_secs(24 * 3600);

/// A snapshot to keep, whose revisions it has, and the ticket secrets beside it.
pub(super) struct SavedState {
    pub store: String,
    pub snapshot: Arc<Snapshot>,
    pub tickets: Option<Arc<TicketRing>>,
    /// When a control plane last confirmed it. Seconds since 1970.
    pub confirmed: u64,
}

/// The newest snapshot; `None` until the first one of this process's life.
pub(super) type PendingSave = Option<Arc<SavedState>>;

/// How bytes get to disk.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum DiskIo {
    Uring,
    Blocking,
}

pub(super) struct Saver {
    file: LastGoodFile,
    newest: watch::Receiver<PendingSave>,
    /// Stores whose state was held.
    held_stores: watch::Receiver<Vec<String>>,
    /// Those that are noted on disk.
    held_stores_on_disk: Vec<String>,
    status: Arc<SyncStatus>,
    /// What the file holds.
    on_disk: PendingSave,
    /// The failure that the log knows of.
    last_logged_error: Option<String>,
}

impl Saver {
    /// `on_disk`: what was read from the file. `held_stores` begins with what is noted beside it.
    pub(super) fn new(
        file: LastGoodFile,
        newest: watch::Receiver<PendingSave>,
        held_stores: watch::Receiver<Vec<String>>,
        status: Arc<SyncStatus>,
        on_disk: PendingSave,
    ) -> Self {
        let noted = held_stores.borrow().clone();
        Self {
            file,
            newest,
            held_stores,
            held_stores_on_disk: noted,
            status,
            on_disk,
            last_logged_error: None,
        }
    }

    /// Ends when the sender is gone and the newest snapshot was written (or could not be).
    pub(super) async fn run(mut self, disk: DiskIo) {
        let mut next_write = Instant::now();
        let mut failed = false;
        loop {
            let changed = tokio::select! {
                changed = self.newest.changed() => changed.is_ok(),
                Ok(()) = self.held_stores.changed() => {
                    self.write_held_stores();
                    continue;
                }
                () = tokio::time::sleep(RETRY_INTERVAL), if failed => true,
                () = tokio::time::sleep(CONFIRMATION_INTERVAL), if !failed => {
                    self.write_confirmation();
                    continue;
                }
            };
            if !changed {
                if !failed {
                    self.write_confirmation();
                }
                self.write_held_stores();
                return;
            }
            self.pause_until(next_write).await;
            let Some(item) = self.newest.borrow_and_update().clone() else { continue };
            let begun = Instant::now();
            failed = !self.save(item, disk).await;
            self.write_held_stores();
            next_write = Instant::now() + (begun.elapsed() * PAUSE_FACTOR).min(PAUSE_MAX);
        }
    }

    /// Without the file's key they are noted after the first save.
    fn write_held_stores(&mut self) {
        let held = self.held_stores.borrow_and_update().clone();
        if held == self.held_stores_on_disk {
            return;
        }
        match self.file.write_held_stores(&held) {
            Ok(true) => self.held_stores_on_disk = held,
            Ok(false) => {}
            Err(error) => tracing::warn!(
                "countersign.node.last_good: cannot note beside {} which stores are held: {error}",
                self.file.path().display()
            ),
        }
    }

    /// Called while the newest snapshot is on disk.
    fn write_confirmation(&self) {
        let confirmed = self.status.confirmed_at().map(|at| self.file.write_confirmation(at));
        if let Some(Err(error)) = confirmed {
            // A restart then takes the file for older than it is; that it cannot be written is told
            // with the next change.
            tracing::debug!(%error, "the time of the last good snapshot cannot be noted");
        }
    }

    /// Cut short when the sender goes away: the process is about to stop.
    async fn pause_until(&mut self, moment: Instant) {
        let sender_gone = async { while self.newest.changed().await.is_ok() {} };
        let _ = tokio::time::timeout_at(moment, sender_gone).await;
    }

    async fn save(&mut self, item: Arc<SavedState>, disk: DiskIo) -> bool {
        let revision = item.snapshot.revision();
        // On this thread: nobody else is served by it.
        let written = match self.file.seal(&item) {
            Ok(bytes) => {
                self.keep_previous(&item);
                let header = bytes.first_chunk().copied();
                let written = write(disk, self.file.path(), bytes).await;
                if let (Ok(()), Some(header)) = (&written, header) {
                    self.file.record_written(header);
                    self.on_disk = Some(item);
                }
                written.map_err(|error| error.to_string())
            }
            Err(error) => Err(error.to_string()),
        };
        match written {
            Ok(()) => {
                tracing::debug!(revision, "the last good snapshot is on disk");
                if self.last_logged_error.take().is_some() {
                    tracing::info!("countersign.node.last_good: can be written again");
                }
                true
            }
            Err(error) => {
                if self.last_logged_error.as_ref() != Some(&error) {
                    tracing::error!(
                        "countersign.node.last_good: cannot write {}: {error}; serving goes on, but a restart without a control \
                         plane would serve an older snapshot",
                        self.file.path().display()
                    );
                    self.last_logged_error = Some(error);
                }
                false
            }
        }
    }

    /// Keeps the generation on disk beside the one that replaces it, where that may be a mistake:
    /// it is another store's, or takes most away. Else one generation a day is kept.
    fn keep_previous(&self, next: &SavedState) {
        let Some(now) = &self.on_disk else { return };
        let suspect = now.store != next.store || now.snapshot.losses(&next.snapshot).any_majority();
        if !suspect && !self.previous_is_old() {
            return;
        }
        if let Err(error) = self.file.keep_as_previous() {
            tracing::warn!(
                "countersign.node.last_good: cannot keep the generation before as {}: {error}",
                self.file.previous().display()
            );
        }
    }

    /// Whether it is older than a day, or not there. A clock that was set back makes it older than
    /// it is.
    fn previous_is_old(&self) -> bool {
        let written = fs::metadata(self.file.previous()).and_then(|found| found.modified());
        let age = written.ok().and_then(|at| SystemTime::now().duration_since(at).ok());
        age.is_none_or(|age| age >= PREVIOUS_MAX_AGE)
    }
}

async fn write(disk: DiskIo, path: &Path, bytes: Vec<u8>) -> io::Result<()> {
    let folder = folder_of(path);
    make_folder(path)?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    let temporary = folder.join(name);
    remove(&temporary)?;
    let written = match disk {
        DiskIo::Uring => write_with_uring(&temporary, path, folder, bytes).await,
        DiskIo::Blocking => {
            write_with_thread(temporary.clone(), path.to_owned(), folder.to_owned(), bytes).await
        }
    };
    if written.is_err() {
        // A full disk is not helped by half a file; the write's own error is the one to tell.
        let _ = remove(&temporary);
    }
    written
}

async fn write_with_uring(temporary: &Path, path: &Path, folder: &Path, bytes: Vec<u8>) -> io::Result<()> {
    use tokio_uring::fs::{File, OpenOptions};
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(temporary).await?;
    let synced = match write_in_chunks(&file, bytes).await {
        Ok(()) => file.sync_all().await,
        Err(error) => Err(error),
    };
    // Closed either way: tokio-uring must not find an open file when its runtime ends.
    let closed = file.close().await;
    synced.and(closed)?;
    tokio_uring::fs::rename(temporary, path).await?;
    let folder = File::open(folder).await?;
    let synced = folder.sync_all().await;
    folder.close().await.and(synced)
}

async fn write_in_chunks(file: &tokio_uring::fs::File, mut bytes: Vec<u8>) -> io::Result<()> {
    use tokio_uring::buf::BoundedBuf;
    let mut at = 0;
    while at < bytes.len() {
        let end = (at + WRITE_CHUNK).min(bytes.len());
        let (written, piece) = file.write_all_at(bytes.slice(at..end), at as u64).await;
        written?;
        (bytes, at) = (piece.into_inner(), end);
    }
    Ok(())
}

async fn write_with_thread(
    temporary: PathBuf,
    path: PathBuf,
    folder: PathBuf,
    bytes: Vec<u8>,
) -> io::Result<()> {
    let work = move || {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        bytes.chunks(WRITE_CHUNK).try_for_each(|piece| io::Write::write_all(&mut file, piece))?;
        file.sync_all()?;
        fs::rename(&temporary, &path)?;
        fs::File::open(&folder)?.sync_all()
    };
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

/// What a killed run left. `create_new` after it refuses to follow a link somebody puts there.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn a_key() -> zeroize::Zeroizing<String> {
        use pki::ca::{Authority, AuthoritySpec};
        Authority::root(&AuthoritySpec::new("x")).unwrap().key_pem()
    }

    fn file(folder: &tempfile::TempDir) -> LastGoodFile {
        let key = pki::PrivateKey::from_pem(&a_key()).unwrap();
        LastGoodFile::new(folder.path().join("new/last_good"), &key)
    }

    fn to_save(revision: u64) -> PendingSave {
        let snapshot = Arc::new(Snapshot::from_resources(revision, []));
        Some(Arc::new(SavedState { store: "s".into(), snapshot, tickets: None, confirmed: 0 }))
    }

    fn saver(folder: &tempfile::TempDir, newest: watch::Receiver<PendingSave>) -> Saver {
        Saver::new(file(folder), newest, watch::channel(Vec::new()).1, Arc::default(), None)
    }

    /// Ten changes at once, then the end: the last one is what is on disk, by either way of
    /// writing.
    async fn newest_wins(disk: DiskIo) {
        let folder = tempfile::tempdir().unwrap();
        let (sender, receiver) = watch::channel(None);
        let saver = saver(&folder, receiver);
        let changes = async {
            for revision in 1..=10 {
                sender.send_replace(to_save(revision));
                tokio::task::yield_now().await;
            }
            drop(sender);
        };
        tokio::join!(saver.run(disk), changes);
        let mut file = file(&folder);
        assert_eq!(file.read().unwrap().unwrap().snapshot.revision(), 10);
        let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(file.path()).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
        let entries = fs::read_dir(folder.path().join("new")).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert!(
            ["last_good", "last_good.key"].iter().all(|name| names.contains(&(*name).into())),
            "{names:?}"
        );
        assert!(names.len() <= 3, "no temporary file is left: {names:?}");
    }

    #[test]
    fn the_newest_is_on_disk_at_the_end_through_threads() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(newest_wins(DiskIo::Blocking));
    }

    #[test]
    fn the_newest_is_on_disk_at_the_end_through_io_uring() {
        match tokio_uring::Runtime::new(&tokio_uring::builder()) {
            Ok(runtime) => runtime.block_on(newest_wins(DiskIo::Uring)),
            Err(error) => eprintln!("skipped: io_uring is not available here: {error}"),
        }
    }

    /// More than one piece, and a part of one.
    async fn large_is_whole(disk: DiskIo) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("large");
        let bytes: Vec<u8> = (0..3 * WRITE_CHUNK + 17).map(|at| (at % 251) as u8).collect();
        write(disk, &path, bytes.clone()).await.unwrap();
        assert!(fs::read(&path).unwrap() == bytes);
    }

    #[test]
    fn what_is_written_in_pieces_is_whole() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(large_is_whole(DiskIo::Blocking));
        match tokio_uring::Runtime::new(&tokio_uring::builder()) {
            Ok(runtime) => runtime.block_on(large_is_whole(DiskIo::Uring)),
            Err(error) => eprintln!("skipped: io_uring is not available here: {error}"),
        }
    }

    #[tokio::test]
    async fn stores_that_were_held_are_noted_over_restarts() {
        let folder = tempfile::tempdir().unwrap();
        let (newest, receiver) = watch::channel(None);
        let (held, held_stores) = watch::channel(Vec::new());
        let saver = Saver::new(file(&folder), receiver, held_stores, Arc::default(), None);
        newest.send_replace(to_save(1));
        held.send_replace(vec!["other".to_owned(), "a\nthird".to_owned()]);
        drop(newest);
        saver.run(DiskIo::Blocking).await;
        let read = || {
            let mut file = file(&folder);
            file.read().unwrap().unwrap();
            file
        };
        assert_eq!(read().read_held_stores(), ["other", "a\nthird"]);
        let path = folder.path().join("new/last_good.held");
        let mut bytes = fs::read(&path).unwrap();
        bytes[2] ^= 1;
        fs::write(&path, &bytes).unwrap();
        assert!(read().read_held_stores().is_empty(), "it counts with its MAC");
        assert!(read().write_held_stores(&[]).unwrap() && !path.exists());
    }

    #[tokio::test]
    async fn what_cannot_be_written_is_told_and_does_not_end_the_saver() {
        let folder = tempfile::tempdir().unwrap();
        // A file where the folder should be.
        fs::write(folder.path().join("new"), "in the way").unwrap();
        let (sender, receiver) = watch::channel(None);
        let mut saver = saver(&folder, receiver);
        let item = to_save(1).unwrap();
        assert!(!saver.save(Arc::clone(&item), DiskIo::Blocking).await);
        assert!(saver.last_logged_error.is_some());
        fs::remove_file(folder.path().join("new")).unwrap();
        assert!(saver.save(item, DiskIo::Blocking).await);
        assert!(saver.last_logged_error.is_none());
        drop(sender);
    }

    /// A route, in this store, at that revision.
    fn state(store: &str, revision: u64, routes: u16) -> Arc<SavedState> {
        let routes = (0..routes).map(|nth| {
            let document = serde_json::json!({
                "uri": format!("/{nth}"), "upstream": {"type": "roundrobin", "nodes": {"10.0.0.1:80": 1}},
            });
            let id = model::Id::parse(&nth.to_string()).unwrap();
            let resource =
                model::compile(model::Kind::Route, &id, &document, &pki::Keyring::empty()).unwrap();
            model::Versioned { version: 1, resource }
        });
        let snapshot = Arc::new(Snapshot::from_resources(revision, routes));
        Arc::new(SavedState { store: store.into(), snapshot, tickets: None, confirmed: 0 })
    }

    #[tokio::test]
    async fn the_generation_before_a_suspect_change_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let (_sender, receiver) = watch::channel(None);
        let mut saver = saver(&folder, receiver);
        let previous = |saver: &Saver| {
            let copy = folder.path().join("new/copy");
            fs::copy(saver.file.previous(), &copy).ok()?;
            fs::copy(folder.path().join("new/last_good.key"), folder.path().join("new/copy.key")).unwrap();
            let mut copy = LastGoodFile::new(copy, &pki::PrivateKey::from_pem(&a_key()).unwrap());
            copy.read().unwrap().map(|saved| saved.snapshot.revision())
        };
        let steps = [
            (state("s", 1, 10), None),
            // There is none yet.
            (state("s", 2, 10), Some(1)),
            (state("s", 3, 9), Some(1)),
            // Most is gone.
            (state("s", 4, 2), Some(3)),
            (state("s", 5, 3), Some(3)),
            // Another store.
            (state("t", 1, 3), Some(5)),
            (state("t", 2, 4), Some(5)),
        ];
        for (item, expected) in steps {
            let revision = item.snapshot.revision();
            assert!(saver.save(item, DiskIo::Blocking).await);
            assert_eq!(previous(&saver), expected, "after revision {revision}");
        }
        let long_ago = SystemTime::now() - PREVIOUS_MAX_AGE * 2;
        fs::File::open(saver.file.previous()).unwrap().set_modified(long_ago).unwrap();
        assert!(saver.save(state("t", 3, 5), DiskIo::Blocking).await);
        assert_eq!(previous(&saver), Some(2), "one a day");
    }
}
