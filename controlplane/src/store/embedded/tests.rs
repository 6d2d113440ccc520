//! The conformance tests, and the guarantees of the file: durable, private, locked, checked, safe
//! on a full disk.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::{fs, io};

use futures_util::future::join_all;
use proptest::prelude::*;
use redb::backends::FileBackend;
use redb::{ReadableTable, StorageBackend};
use serde_json::json;

use super::expiry::EXPIRIES;
use super::file::{COUNTERS, FORMAT_VERSION};
use super::*;
use crate::store::conformance::random_commits::{ExpectedStore, commit_plans};
use crate::store::conformance::{self, delete, flatten, key, put, put_for};
use crate::store::{Event, Precondition};

fn temp_dir() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

#[tokio::test]
async fn conforms_to_the_store_tests() {
    let temp_dir = temp_dir();
    let count = AtomicU64::new(0);
    conformance::run_all(async || {
        let path = temp_dir.path().join(format!("{}.redb", count.fetch_add(1, Ordering::Relaxed)));
        Arc::new(EmbeddedStore::open(&path).unwrap()) as Arc<dyn Store>
    })
    .await;
}

#[tokio::test]
async fn file_has_mode_0600_and_directory_is_created() {
    let temp_dir = temp_dir();
    let path = temp_dir.path().join("a/b/store.redb");
    let identity = EmbeddedStore::open(&path).unwrap().identity().to_owned();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(
        fs::read_dir(path.parent().unwrap()).unwrap().count(),
        1,
        "nothing else is left in the folder"
    );
    // A file with a wider mode is narrowed; the identity stays.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(EmbeddedStore::open(&path).unwrap().identity(), identity);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn a_locked_file_cannot_be_opened_again() {
    let temp_dir = temp_dir();
    let path = temp_dir.path().join("store.redb");
    let first = EmbeddedStore::open(&path).unwrap();
    assert!(matches!(EmbeddedStore::open(&path), Err(StoreError::Locked { .. })));
    drop(first);
    EmbeddedStore::open(&path).unwrap();
}

#[tokio::test]
async fn a_closed_store_leaves_its_file_to_another() {
    let temp_dir = temp_dir();
    let path = temp_dir.path().join("store.redb");
    let store = Arc::new(EmbeddedStore::open(&path).unwrap());
    let mut watch = store.watch(store.revision());
    let write = |store: &Arc<EmbeddedStore>, id: &str| {
        let (store, key) = (Arc::clone(store), key(Kind::Route, id));
        async move { store.commit(put(&key, json!({"id": 1}), Precondition::Unconditional)).await }
    };
    // An open store stays as it is, also while a backup is read.
    store.reopen().await.unwrap();
    // What was accepted before the close is written.
    let accepted: Vec<_> = (0..20).map(|n| tokio::spawn(write(&store, &n.to_string()))).collect();
    tokio::task::yield_now().await;
    store.close().await.unwrap();
    let results = join_all(accepted).await;
    let written = results.into_iter().filter(|result| result.as_ref().unwrap().is_ok()).count();
    assert!(written > 0);
    let closed = |error: StoreError| matches!(error, StoreError::Closed { .. });
    assert!(store.load().await.is_err_and(closed) && store.reserve_id().await.is_err_and(closed));
    assert!(write(&store, "late").await.is_err_and(closed));
    assert!(store.internal_entry(InternalKey::TicketSecrets).await.is_err_and(closed));

    let successor = Arc::new(EmbeddedStore::open(&path).unwrap());
    assert_eq!(successor.load().await.unwrap().items.len(), written);
    write(&successor, "other").await.unwrap();
    // The lock is the other's: the store stays closed, and a later attempt opens it.
    assert!(matches!(store.reopen().await, Err(StoreError::Locked { .. })));
    successor.close().await.unwrap();
    store.reopen().await.unwrap();
    write(&store, "again").await.unwrap();
    assert_eq!(store.load().await.unwrap().items.len(), written + 2);
    // The watch saw our own writes, and then that another process has written.
    let ended = loop {
        match watch.next().await {
            Some(Ok(_)) => {}
            end => break end,
        }
    };
    assert!(matches!(ended, Some(Err(WatchError::Compacted { .. }))), "{ended:?}");
}

#[tokio::test]
async fn a_corrupted_file_is_reported_and_not_replaced() {
    let temp_dir = temp_dir();
    let path = temp_dir.path().join("store.redb");
    let store = EmbeddedStore::open(&path).unwrap();
    for n in 0..50 {
        store
            .commit(put(
                &key(Kind::Ssl, &n.to_string()),
                json!({"n": n, "pad": "x".repeat(500)}),
                Precondition::Unconditional,
            ))
            .await
            .unwrap();
    }
    drop(store);
    let good = fs::read(&path).unwrap();
    let mut flipped = good.clone();
    let marker = good.windows(100).rposition(|window| window == [b'x'; 100]).unwrap();
    flipped[marker] ^= 1;
    for bad in
        [b"".to_vec(), b"hello, this is not a store".repeat(400), good[..good.len() / 2].to_vec(), flipped]
    {
        fs::write(&path, &bad).unwrap();
        let error = EmbeddedStore::open(&path).err().expect("damage must be refused");
        assert!(matches!(error, StoreError::Corrupted { .. }), "{error:?}");
        assert!(error.to_string().contains(&path.display().to_string()));
        assert!(EmbeddedStore::load_file(&path).is_err());
    }
    fs::write(&path, &good).unwrap();
    EmbeddedStore::load_file(&path).unwrap();
    assert_eq!(EmbeddedStore::open(&path).unwrap().load().await.unwrap().items.len(), 50);
}

#[tokio::test]
async fn another_format_and_a_foreign_file_are_reported() {
    let temp_dir = temp_dir();
    let path = temp_dir.path().join("store.redb");
    drop(EmbeddedStore::open(&path).unwrap());
    let database = Database::open(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction.open_table(COUNTERS).unwrap().insert("format", 7).unwrap();
    transaction.commit().unwrap();
    drop(database);
    let error = EmbeddedStore::open(&path).err().unwrap();
    assert!(
        matches!(error, StoreError::UnsupportedFormat { found: 7, supported: FORMAT_VERSION, .. }),
        "{error:?}"
    );

    let foreign = temp_dir.path().join("foreign.redb");
    drop(Database::create(&foreign).unwrap());
    assert!(matches!(EmbeddedStore::open(&foreign).err().unwrap(), StoreError::Corrupted { .. }));
}

#[tokio::test]
async fn a_directory_is_not_a_store() {
    let temp_dir = temp_dir();
    assert!(matches!(EmbeddedStore::open(temp_dir.path()).err().unwrap(), StoreError::Corrupted { .. }));
    let file = temp_dir.path().join("file");
    fs::write(&file, "x").unwrap();
    assert!(EmbeddedStore::open(&file.join("store.redb")).is_err(), "a file where a folder should be");
}

#[tokio::test]
async fn a_watch_before_the_history_is_compacted() {
    let temp_dir = temp_dir();
    let path = temp_dir.path().join("store.redb");
    let store =
        EmbeddedStore::open_with(&path, Box::new(file::open), HistoryLimits { events: 3, bytes: 1000 })
            .unwrap();
    for n in 0..5 {
        store.commit(put(&key(Kind::Ssl, "1"), json!({"n": n}), Precondition::Unconditional)).await.unwrap();
    }
    let revisions = |events: Vec<Result<Event, WatchError>>| -> Vec<_> {
        events.into_iter().map(|event| event.map(|event| event.revision)).collect()
    };
    assert_eq!(revisions(flatten(store.watch(2)).take(3).collect().await), [Ok(3), Ok(4), Ok(5)]);
    assert_eq!(
        revisions(flatten(store.watch(1)).collect().await),
        [Err(WatchError::Compacted { oldest: 2 })]
    );
    // One big document evicts everything older, and itself if it exceeds the limit.
    store
        .commit(put(&key(Kind::Ssl, "1"), json!("x".repeat(2000)), Precondition::Unconditional))
        .await
        .unwrap();
    assert_eq!(
        revisions(flatten(store.watch(5)).collect().await),
        [Err(WatchError::Compacted { oldest: 6 })]
    );
    // A watch ends with its store.
    let watch = store.watch(6);
    drop(store);
    assert!(watch.collect::<Vec<_>>().await.is_empty());
}

/// A disk that can be set to full.
#[derive(Debug)]
struct Disk {
    file: FileBackend,
    full: Arc<AtomicBool>,
}

impl Disk {
    fn room(&self) -> Result<(), io::Error> {
        if self.full.load(Ordering::SeqCst) { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> Result<u64, io::Error> {
        self.file.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        self.file.read(offset, out)
    }
    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        self.room()?;
        self.file.set_len(len)
    }
    fn sync_data(&self) -> Result<(), io::Error> {
        self.room()?;
        self.file.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        self.room()?;
        self.file.write(offset, data)
    }
    fn close(&self) -> Result<(), io::Error> {
        self.file.close()
    }
}

fn on_disk(full: &Arc<AtomicBool>) -> Opener {
    let full = Arc::clone(full);
    Box::new(move |path| {
        let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
        let file = FileBackend::new(file).map_err(|error| file::store_error(error.into(), path))?;
        file::builder()
            .create_with_backend(Disk { file, full: Arc::clone(&full) })
            .map_err(|error| file::store_error(error.into(), path))
    })
}

#[tokio::test]
async fn a_page_reads_only_its_documents() {
    let temp_dir = temp_dir();
    let path = temp_dir.path().join("store.redb");
    let store = EmbeddedStore::open(&path).unwrap();
    join_all((0..200).map(|n| {
        let key = key(Kind::Ssl, &n.to_string());
        store.commit(put(&key, json!({"n": n}), Precondition::Unconditional))
    }))
    .await;
    // Also after a restart, when the index is rebuilt.
    drop(store);
    let store = EmbeddedStore::open(&path).unwrap();
    let read = || store.file.metrics.documents_read.get();
    let before = read();
    for first in [0, 100, 195] {
        let page = store.page(Kind::Ssl, first, 10).await.unwrap();
        assert_eq!(page.total, 200);
    }
    assert_eq!(read() - before, 25);
    store.list(Kind::Ssl).await.unwrap();
    assert_eq!(read() - before, 225);
}

#[tokio::test]
async fn a_full_disk_loses_no_acknowledged_write() {
    let temp_dir = temp_dir();
    let path = temp_dir.path().join("store.redb");
    let full = Arc::new(AtomicBool::new(false));
    let store = EmbeddedStore::open_with(&path, on_disk(&full), HistoryLimits::default()).unwrap();
    let (a, b) = (key(Kind::Ssl, "a"), key(Kind::Ssl, "b"));
    let committed = store.commit(put(&a, json!({"v": 1}), Precondition::Unconditional)).await.unwrap();
    full.store(true, Ordering::SeqCst);
    let writes =
        join_all([&a, &b].map(|key| store.commit(put(key, json!({"v": 2}), Precondition::Unconditional))))
            .await;
    for write in writes {
        let error = write.unwrap_err();
        assert!(matches!(error, StoreError::DiskFull { .. }), "{error:?}");
    }
    full.store(false, Ordering::SeqCst);
    assert_eq!(store.get(&a).await.unwrap().unwrap().document, json!({"v": 1}));
    assert_eq!(store.get(&b).await.unwrap(), None);
    let after_recovery = store.commit(put(&b, json!({"v": 3}), Precondition::Absent)).await.unwrap();
    assert_eq!(after_recovery.revision, committed.revision + 1);
    let events: Vec<_> = flatten(store.watch(committed.revision)).take(1).collect().await;
    assert_eq!(events.first().unwrap().as_ref().unwrap().key, b);
}

/// Sets the stored expiry of a document in a closed file: the end, the time to live, and what to
/// add to the revision.
fn set_stored_expiry(path: &Path, key: &Key, end: u64, ttl: u32, newer: u64) {
    let database = Database::open(path).unwrap();
    let transaction = database.begin_write().unwrap();
    {
        let mut table = transaction.open_table(EXPIRIES).unwrap();
        let (_, _, revision) = table.get(key.to_string().as_str()).unwrap().unwrap().value();
        table.insert(key.to_string().as_str(), (end, ttl, revision + newer)).unwrap();
    }
    transaction.commit().unwrap();
}

fn ids(loaded: DocumentList) -> Vec<String> {
    loaded.items.into_iter().map(|item| item.key.id.to_string()).collect()
}

#[tokio::test]
async fn an_expiry_survives_a_restart() {
    let temp_dir = temp_dir();
    let path = temp_dir.path().join("store.redb");
    let store = EmbeddedStore::open(&path).unwrap();
    let [past, future, set_back, other] =
        ["past", "future", "set-back", "other"].map(|id| key(Kind::Route, id));
    for key in [&past, &future, &set_back, &other] {
        store.commit(put_for(key, 1000)).await.unwrap();
    }
    let revision = store.revision();
    drop(store);
    // The end has passed while the store was closed.
    set_stored_expiry(&path, &past, 1, 1000, 0);
    // The clock was set back: the end is further away than the whole time to live.
    set_stored_expiry(&path, &set_back, u64::MAX, 1, 0);
    // A program that knows no expiries wrote the document since.
    set_stored_expiry(&path, &other, 1, 1, u64::MAX / 2);
    let (_, loaded) = EmbeddedStore::load_file(&path).unwrap().unwrap();
    assert_eq!(ids(loaded), ["future", "other", "set-back"]);
    let store = EmbeddedStore::open(&path).unwrap();
    assert_eq!(store.revision(), revision + 1, "removed before anything is read");
    assert_eq!(ids(store.load().await.unwrap()), ["future", "other", "set-back"]);
    let removal = flatten(store.watch(revision + 1)).next().await.unwrap().unwrap();
    assert_eq!((removal.key, removal.document), (set_back, None));
    assert_eq!(ids(store.load().await.unwrap()), ["future", "other"]);
}

#[tokio::test]
async fn a_backup_keeps_expiries() {
    let temp_dir = temp_dir();
    let (path, restored) = (temp_dir.path().join("store.redb"), temp_dir.path().join("restored.redb"));
    let store = EmbeddedStore::open(&path).unwrap();
    let [renewed, kept, ended] = ["renewed", "kept", "ended"].map(|id| key(Kind::Ssl, id));
    for write in [
        put_for(&renewed, 5),
        put_for(&renewed, 1000),
        put_for(&kept, 1),
        put(&kept, json!({}), Precondition::Unconditional),
        put_for(&ended, 1000),
    ] {
        store.commit(write).await.unwrap();
    }
    drop(store);
    set_stored_expiry(&path, &ended, 1, 1000, 0);
    let stored = |path: &Path| {
        let database = Database::open(path).unwrap();
        let table = database.begin_read().unwrap().open_table(EXPIRIES).unwrap();
        let rows = table.range::<&str>(..).unwrap().map(Result::unwrap);
        rows.map(|(name, row)| (name.value().to_owned(), row.value())).collect::<Vec<_>>()
    };
    let before = stored(&path);
    assert_eq!(before.len(), 2);
    // A backup has no clock: it copies what has ended, too.
    let mut stream = Vec::new();
    let database = Database::open(&path).unwrap();
    let summary = backup_stream::write(&database, &path, &mut stream).unwrap();
    let created = EmbeddedStore::create_from_backup(&mut stream.as_slice(), &restored, false).unwrap();
    assert_eq!(created, summary);
    assert_eq!(stored(&restored), before);
    assert_eq!(ids(EmbeddedStore::open(&restored).unwrap().load().await.unwrap()), ["kept", "renewed"]);
    assert_eq!(stored(&restored).len(), 1);
}

#[tokio::test]
async fn a_removal_waits_for_a_disk_with_space() {
    let temp_dir = temp_dir();
    let path = temp_dir.path().join("store.redb");
    let full = Arc::new(AtomicBool::new(false));
    let store = EmbeddedStore::open_with(&path, on_disk(&full), HistoryLimits::default()).unwrap();
    let expiring = key(Kind::Ssl, "a");
    let committed = store.commit(put_for(&expiring, 1)).await.unwrap();
    let mut watch = flatten(store.watch(committed.revision));
    full.store(true, Ordering::SeqCst);
    let waiting = tokio::time::timeout(std::time::Duration::from_millis(1500), watch.next()).await;
    assert!(waiting.is_err(), "{waiting:?}");
    full.store(false, Ordering::SeqCst);
    let removal = watch.next().await.unwrap().unwrap();
    assert_eq!((removal.key, removal.document), (expiring, None));
}

/// One operation of a random history.
#[derive(Clone, Debug)]
enum HistoryStep {
    Put(u8, u16),
    Delete(u8),
    Reserve,
    OpenAgain,
}

fn history_steps() -> impl Strategy<Value = Vec<HistoryStep>> {
    let history_step = prop_oneof![
        6 => (0..6u8, any::<u16>()).prop_map(|(id, value)| HistoryStep::Put(id, value)),
        2 => (0..6u8).prop_map(HistoryStep::Delete),
        1 => Just(HistoryStep::Reserve),
        1 => Just(HistoryStep::OpenAgain),
    ];
    prop::collection::vec(history_step, 1..40)
}

/// Copies the file of an open store, as a crash would leave it.
fn crash_copy(path: &Path) -> PathBuf {
    let copy = path.with_extension("crashed");
    fs::copy(path, &copy).unwrap();
    copy
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn acknowledged_writes_survive_a_crash(history_steps in history_steps()) {
        let temp_dir = temp_dir();
        let path = temp_dir.path().join("store.redb");
        runtime().block_on(async {
            let mut store = EmbeddedStore::open(&path).unwrap();
            let mut expected = BTreeMap::new();
            let mut revision = 0;
            for history_step in history_steps {
                match history_step {
                    HistoryStep::Put(id, value) => {
                        let id = key(Kind::Route, &id.to_string());
                        let committed = store.commit(put(&id, json!({"v": value}), Precondition::Unconditional)).await.unwrap();
                        revision = committed.revision;
                        expected.insert(id.to_string(), (json!({"v": value}), committed.first().create_revision, committed.revision));
                    }
                    HistoryStep::Delete(id) => {
                        let id = key(Kind::Route, &id.to_string());
                        let deleted = store.commit(delete(&id, Precondition::Unconditional)).await.unwrap();
                        assert_eq!(deleted.first().existed, expected.remove(&id.to_string()).is_some());
                        revision = deleted.revision;
                    }
                    HistoryStep::Reserve => revision = store.reserve_id().await.unwrap(),
                    HistoryStep::OpenAgain => {
                        drop(store);
                        store = EmbeddedStore::open(&path).unwrap();
                    }
                }
                let copy = crash_copy(&path);
                let loaded = EmbeddedStore::open(&copy).unwrap().load().await.unwrap();
                fs::remove_file(copy).unwrap();
                assert_eq!(loaded.revision, revision);
                let found: BTreeMap<_, _> = loaded
                    .items
                    .into_iter()
                    .map(|item| (item.key.to_string(), (item.document, item.create_revision, item.mod_revision)))
                    .collect();
                assert_eq!(found, expected);
            }
        });
    }

    #[test]
    fn random_commits_have_the_expected_effect(plans in commit_plans(30)) {
        let temp_dir = temp_dir();
        let path = temp_dir.path().join("store.redb");
        runtime().block_on(async {
            let store = EmbeddedStore::open(&path).unwrap();
            let mut expected = ExpectedStore::default();
            for plan in plans {
                expected.commit(&store, &plan).await;
                let copy = crash_copy(&path);
                expected.compare(&EmbeddedStore::open(&copy).unwrap()).await;
                fs::remove_file(copy).unwrap();
            }
            expected.compare(&store).await;
        });
    }
}
