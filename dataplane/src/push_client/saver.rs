//! Keeps the newest snapshot on disk without delaying changes. A small one is written at once after
//! a change; the longer a write takes, the longer the pause after it, so that a burst of changes
//! does not write a large one for each.
//!
//! The saver has a thread of its own at idle priority (`threads`) and writes through io_uring, or
//! on a blocking thread without it. Invariant: the file is replaced by rename after its bytes are
//! on disk, so a crash leaves the old one or the new one.

use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, SystemTime};
use std::{fs, io};

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::last_good::{
    LastGoodFile, PendingSave, SavedState, create_folder_of, folder_of, remove_if_exists,
};
use super::sync_status::SyncStatus;

/// The pause after a write, in durations of that write: writing takes a tenth of the time at most.
const PAUSE_FACTOR: u32 = 9;
/// The longest pause: how much older a restart without a control plane may be.
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// Bytes of one write: some 0.1 ms of copying, during which the kernel may let no other thread onto
/// the core, whatever the priority of this one.
const WRITE_CHUNK: usize = 64 * 1024;
/// After a failed write, when nothing changes meanwhile.
const RETRY_INTERVAL: Duration = Duration::from_secs(10);
/// How often the time of the newest confirmation is written.
const CONFIRMATION_INTERVAL: Duration = Duration::from_secs(60);
/// An older previous generation is replaced by any change.
const PREVIOUS_MAX_AGE: Duration = Duration::from_secs(24 * 3600);

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum DiskIo {
    Uring,
    Blocking,
}

pub(super) struct Saver {
    file: LastGoodFile,
    pending_save: watch::Receiver<PendingSave>,
    held_stores: watch::Receiver<Vec<String>>,
    held_stores_on_disk: Vec<String>,
    status: Arc<SyncStatus>,
    /// The content of the file.
    on_disk: PendingSave,
    last_logged_error: Option<String>,
    commands: mpsc::UnboundedReceiver<SaverCommand>,
    /// Another process writes the file.
    paused: bool,
    /// When the newest state is written; `None`: it is on disk.
    write_at: Option<Instant>,
    /// The earliest time of the next write.
    pause_ends: Instant,
}

/// What the process tells its saver. The file has one writer at a time: in a hand-over first the
/// predecessor, then the successor.
#[derive(Debug)]
pub(super) enum SaverCommand {
    /// Write the newest state now, and report the result.
    Flush(SyncSender<Result<(), String>>),
    /// Write nothing any more, also not at the end, and report that.
    Pause(SyncSender<()>),
    /// Write again.
    Resume,
}

impl Saver {
    /// `on_disk` is the content of the file, and `held_stores` begins with those on disk. `paused`:
    /// it writes nothing before [`SaverCommand::Resume`].
    pub(crate) fn new(
        file: LastGoodFile,
        pending_save: watch::Receiver<PendingSave>,
        held_stores: watch::Receiver<Vec<String>>,
        status: Arc<SyncStatus>,
        on_disk: PendingSave,
        (commands, paused): (mpsc::UnboundedReceiver<SaverCommand>, bool),
    ) -> Self {
        let held_stores_on_disk = held_stores.borrow().clone();
        if let Some(state) = &on_disk {
            status.set_last_good(state.snapshot.revision(), None);
        }
        Self {
            file,
            pending_save,
            held_stores,
            held_stores_on_disk,
            status,
            on_disk,
            last_logged_error: None,
            commands,
            paused,
            write_at: None,
            pause_ends: Instant::now(),
        }
    }

    /// Ends when the sender is gone and the newest snapshot was written (or could not be).
    pub(crate) async fn run(mut self, disk: DiskIo) {
        loop {
            let write_at = self.write_at.filter(|_| !self.paused);
            tokio::select! {
                changed = self.pending_save.changed() => match changed {
                    Ok(()) => self.write_at = Some(self.write_at.unwrap_or(self.pause_ends)),
                    // The process is about to stop.
                    Err(_) => return self.finish(disk).await,
                },
                Ok(()) = self.held_stores.changed() => self.write_held_stores(),
                Some(command) = self.commands.recv() => self.obey(command, disk).await,
                () = tokio::time::sleep_until(write_at.unwrap_or_else(Instant::now)), if write_at.is_some() => {
                    self.write_newest(disk).await;
                }
                () = tokio::time::sleep(CONFIRMATION_INTERVAL), if self.write_at.is_none() && !self.paused => {
                    self.write_confirmation();
                }
            }
        }
    }

    async fn finish(mut self, disk: DiskIo) {
        if self.paused {
            return;
        }
        if self.write_at.is_some() {
            self.write_newest(disk).await;
        }
        if self.write_at.is_none() {
            self.write_confirmation();
        }
        self.write_held_stores();
    }

    async fn obey(&mut self, command: SaverCommand, disk: DiskIo) {
        match command {
            SaverCommand::Flush(flushed) => {
                if self.write_at.is_some() || self.pending_save.has_changed().unwrap_or(false) {
                    self.write_newest(disk).await;
                }
                let result = match &self.last_logged_error {
                    Some(error) => Err(format!("cannot write {}: {error}", self.file.path().display())),
                    None => Ok(()),
                };
                if result.is_ok() {
                    self.write_confirmation();
                }
                let _waits = flushed.send(result).is_ok();
            }
            SaverCommand::Pause(paused) => {
                self.paused = true;
                let _waits = paused.send(()).is_ok();
            }
            SaverCommand::Resume => {
                self.paused = false;
                // Another process may have written the file meanwhile.
                if self.pending_save.borrow().is_some() {
                    self.write_at = Some(Instant::now());
                }
                self.write_held_stores();
            }
        }
    }

    /// Writes the newest state. After a failure it is tried again.
    async fn write_newest(&mut self, disk: DiskIo) {
        let newest = self.pending_save.borrow_and_update().clone();
        let started = Instant::now();
        let written = match newest {
            Some(state) => self.save(state, disk).await,
            None => true,
        };
        self.write_held_stores();
        let now = Instant::now();
        self.pause_ends = now + (started.elapsed() * PAUSE_FACTOR).min(PAUSE_MAX);
        self.write_at = (!written).then_some(now + RETRY_INTERVAL);
    }

    /// Before the first save the file may have no key; the held stores are written after it then.
    fn write_held_stores(&mut self) {
        if self.paused {
            return;
        }
        let held = self.held_stores.borrow_and_update().clone();
        if held == self.held_stores_on_disk {
            return;
        }
        match self.file.write_held_stores(&held) {
            Ok(true) => self.held_stores_on_disk = held,
            Ok(false) => {}
            Err(error) => tracing::warn!(
                "countersign.node.last_good: cannot write the list of held stores beside {}: {error}",
                self.file.path().display()
            ),
        }
    }

    /// Called only while the newest snapshot is on disk.
    fn write_confirmation(&self) {
        let written = self.status.confirmed_at().map(|at| self.file.write_confirmation(at));
        if let Some(Err(error)) = written {
            // A restart takes the file for older than it is; the next save logs that the disk
            // cannot be written.
            tracing::debug!(%error, "the time of the last good snapshot cannot be written");
        }
    }

    async fn save(&mut self, state: Arc<SavedState>, disk: DiskIo) -> bool {
        let revision = state.snapshot.revision();
        let written = match self.file.seal(&state) {
            Ok(bytes) => {
                self.keep_previous(&state);
                let header = bytes.first_chunk().copied();
                let written = write(disk, self.file.path(), bytes).await;
                if let (Ok(()), Some(header)) = (&written, header) {
                    self.file.record_written(header);
                    self.on_disk = Some(state);
                }
                written.map_err(|error| error.to_string())
            }
            Err(error) => Err(error.to_string()),
        };
        match written {
            Ok(()) => {
                tracing::debug!(revision, "the last good snapshot is on disk");
                self.status.set_last_good(revision, Some(SystemTime::now()));
                if self.last_logged_error.take().is_some() {
                    tracing::info!("countersign.node.last_good: can be written again");
                }
                true
            }
            Err(error) => {
                self.status.count_save_failure();
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

    /// Keeps the generation on disk beside the one that replaces it, where the change may be a
    /// mistake: it comes from another store, or removes most. Else one generation a day is kept.
    fn keep_previous(&self, next: &SavedState) {
        let Some(now) = &self.on_disk else { return };
        let suspect = now.store != next.store || now.snapshot.losses(&next.snapshot).any_majority();
        if !suspect && !self.is_previous_old() {
            return;
        }
        if let Err(error) = self.file.keep_as_previous() {
            tracing::warn!(
                "countersign.node.last_good: cannot keep the generation before as {}: {error}",
                self.file.previous().display()
            );
        }
    }

    /// Whether the previous generation is older than a day, or missing. A clock that was set back
    /// makes it older than it is.
    fn is_previous_old(&self) -> bool {
        let modified = fs::metadata(self.file.previous()).and_then(|metadata| metadata.modified());
        let age = modified.ok().and_then(|at| SystemTime::now().duration_since(at).ok());
        age.is_none_or(|age| age >= PREVIOUS_MAX_AGE)
    }
}

async fn write(disk: DiskIo, path: &Path, bytes: Vec<u8>) -> io::Result<()> {
    let folder = folder_of(path);
    create_folder_of(path)?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    let temporary = folder.join(name);
    // Of a killed process. `create_new` after it does not follow a link that takes its name.
    remove_if_exists(&temporary)?;
    let written = match disk {
        DiskIo::Uring => write_with_uring(&temporary, path, folder, bytes).await,
        DiskIo::Blocking => {
            write_with_thread(temporary.clone(), path.to_owned(), folder.to_owned(), bytes).await
        }
    };
    if written.is_err() {
        // A full disk needs the space back; the error of the write itself is the one to report.
        let _ = remove_if_exists(&temporary);
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
        let (written, chunk) = file.write_all_at(bytes.slice(at..end), at as u64).await;
        written?;
        (bytes, at) = (chunk.into_inner(), end);
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
        bytes.chunks(WRITE_CHUNK).try_for_each(|chunk| io::Write::write_all(&mut file, chunk))?;
        file.sync_all()?;
        fs::rename(&temporary, &path)?;
        fs::File::open(&folder)?.sync_all()
    };
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use model::Snapshot;

    use super::*;

    fn key_pem() -> zeroize::Zeroizing<String> {
        use pki::ca::{Authority, AuthoritySpec};
        Authority::root(&AuthoritySpec::new("x")).unwrap().key_pem()
    }

    fn file(folder: &tempfile::TempDir) -> LastGoodFile {
        let key = pki::PrivateKey::from_pem(&key_pem()).unwrap();
        LastGoodFile::new(folder.path().join("new/last_good"), &key)
    }

    fn empty_state(revision: u64) -> PendingSave {
        let snapshot = Arc::new(Snapshot::from_resources(revision, []));
        Some(Arc::new(SavedState { store: "s".into(), snapshot, tickets: None, confirmed_at: 0 }))
    }

    fn saver(folder: &tempfile::TempDir, pending_save: watch::Receiver<PendingSave>) -> Saver {
        let commands = (mpsc::unbounded_channel().1, false);
        Saver::new(file(folder), pending_save, watch::channel(Vec::new()).1, Arc::default(), None, commands)
    }

    /// Sends ten changes at once and ends: the last one must be on disk.
    async fn newest_wins(disk: DiskIo) {
        let folder = tempfile::tempdir().unwrap();
        let (sender, receiver) = watch::channel(None);
        let saver = saver(&folder, receiver);
        let changes = async {
            for revision in 1..=10 {
                sender.send_replace(empty_state(revision));
                tokio::task::yield_now().await;
            }
            drop(sender);
        };
        tokio::join!(saver.run(disk), changes);
        let mut file = file(&folder);
        assert_eq!(file.read().unwrap().unwrap().state.snapshot.revision(), 10);
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
    fn the_newest_is_on_disk_at_the_end_with_threads() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(newest_wins(DiskIo::Blocking));
    }

    #[test]
    fn the_newest_is_on_disk_at_the_end_with_io_uring() {
        match tokio_uring::Runtime::new(&tokio_uring::builder()) {
            Ok(runtime) => runtime.block_on(newest_wins(DiskIo::Uring)),
            Err(error) => eprintln!("skipped: io_uring is not available here: {error}"),
        }
    }

    /// Writes more than one chunk, and a part of one.
    async fn large_is_whole(disk: DiskIo) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("large");
        let bytes: Vec<u8> = (0..3 * WRITE_CHUNK + 17).map(|at| (at % 251) as u8).collect();
        write(disk, &path, bytes.clone()).await.unwrap();
        assert!(fs::read(&path).unwrap() == bytes);
    }

    #[test]
    fn a_file_written_in_chunks_is_whole() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(large_is_whole(DiskIo::Blocking));
        match tokio_uring::Runtime::new(&tokio_uring::builder()) {
            Ok(runtime) => runtime.block_on(large_is_whole(DiskIo::Uring)),
            Err(error) => eprintln!("skipped: io_uring is not available here: {error}"),
        }
    }

    #[tokio::test]
    async fn held_stores_survive_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let (pending_save, receiver) = watch::channel(None);
        let (held, held_stores) = watch::channel(Vec::new());
        let saver = Saver::new(
            file(&folder),
            receiver,
            held_stores,
            Arc::default(),
            None,
            (mpsc::unbounded_channel().1, false),
        );
        pending_save.send_replace(empty_state(1));
        held.send_replace(vec!["other".to_owned(), "a\nthird".to_owned()]);
        drop(pending_save);
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
    async fn a_paused_saver_writes_nothing_until_it_resumes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/last_good");
        let (pending_save, receiver) = watch::channel(None);
        let (commands, receives) = mpsc::unbounded_channel();
        let held_stores = watch::channel(Vec::new()).1;
        let saver = Saver::new(file(&folder), receiver, held_stores, Arc::default(), None, (receives, true));
        let revision = || file(&folder).read().unwrap().unwrap().state.snapshot.revision();
        let steps = async {
            pending_save.send_replace(empty_state(1));
            let pause = || {
                let (done, is_done) = std::sync::mpsc::sync_channel(1);
                commands.send(SaverCommand::Pause(done)).unwrap();
                is_done
            };
            received(pause()).await;
            assert!(!path.exists());
            commands.send(SaverCommand::Resume).unwrap();
            while !path.exists() {
                tokio::task::yield_now().await;
            }
            let (flushed, is_flushed) = std::sync::mpsc::sync_channel(1);
            pending_save.send_replace(empty_state(2));
            commands.send(SaverCommand::Flush(flushed)).unwrap();
            assert_eq!(received(is_flushed).await, Ok(()));
            assert_eq!(revision(), 2);
            received(pause()).await;
            pending_save.send_replace(empty_state(3));
            drop(pending_save);
        };
        tokio::join!(saver.run(DiskIo::Blocking), steps);
        assert_eq!(revision(), 2, "another process writes the file");
    }

    async fn received<T>(receiver: std::sync::mpsc::Receiver<T>) -> T {
        loop {
            match receiver.try_recv() {
                Ok(result) => return result,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    }

    #[tokio::test]
    async fn a_failed_write_is_logged_and_does_not_end_the_saver() {
        let folder = tempfile::tempdir().unwrap();
        // A file with the name of the folder.
        fs::write(folder.path().join("new"), "a file").unwrap();
        let (sender, receiver) = watch::channel(None);
        let mut saver = saver(&folder, receiver);
        let state = empty_state(1).unwrap();
        assert!(!saver.save(Arc::clone(&state), DiskIo::Blocking).await);
        assert!(saver.last_logged_error.is_some());
        assert_eq!(saver.status.save_failures(), 1);
        fs::remove_file(folder.path().join("new")).unwrap();
        assert!(saver.save(state, DiskIo::Blocking).await);
        assert!(saver.last_logged_error.is_none());
        drop(sender);
    }

    fn state(store: &str, revision: u64, routes: u16) -> Arc<SavedState> {
        let routes = (0..routes).map(|number| {
            let document = serde_json::json!({
                "uri": format!("/{number}"), "upstream": {"type": "roundrobin", "nodes": {"10.0.0.1:80": 1}},
            });
            let id = model::Id::parse(&number.to_string()).unwrap();
            let resource =
                model::compile(model::Kind::Route, &id, &document, &pki::Keyring::empty()).unwrap();
            model::Versioned { version: 1, resource }
        });
        let snapshot = Arc::new(Snapshot::from_resources(revision, routes));
        Arc::new(SavedState { store: store.into(), snapshot, tickets: None, confirmed_at: 0 })
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
            let mut copy = LastGoodFile::new(copy, &pki::PrivateKey::from_pem(&key_pem()).unwrap());
            copy.read().unwrap().map(|loaded| loaded.state.snapshot.revision())
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
        for (state, expected) in steps {
            let revision = state.snapshot.revision();
            assert!(saver.save(state, DiskIo::Blocking).await);
            assert_eq!(previous(&saver), expected, "after revision {revision}");
        }
        let long_ago = SystemTime::now() - PREVIOUS_MAX_AGE * 2;
        fs::File::open(saver.file.previous()).unwrap().set_modified(long_ago).unwrap();
        assert!(saver.save(state("t", 3, 5), DiskIo::Blocking).await);
        assert_eq!(previous(&saver), Some(2), "one a day");
    }
}
