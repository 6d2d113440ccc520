use std::os::unix::fs::PermissionsExt;

use model::{Id, Key, Kind};
use serde_json::{Value, json};

use super::*;
use crate::publish::deny_list::DeniedNode;
use crate::store::{InternalKey, Mutation, Precondition};

struct BackupFixture {
    folder: tempfile::TempDir,
}

impl BackupFixture {
    fn new() -> Self {
        let fixture = Self { folder: tempfile::tempdir().unwrap() };
        let settings = json!({"countersign": {"store": {"path": "store.redb"}}});
        fs::write(fixture.path("c.yaml"), settings.to_string()).unwrap();
        fixture
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn store(&self) -> Arc<EmbeddedStore> {
        Arc::new(EmbeddedStore::open(&self.path("store.redb")).unwrap())
    }

    /// The printed summary.
    fn backup(&self, to: &str, overwrite: bool) -> Result<String, String> {
        let mut out = Vec::new();
        let args = BackupArgs { to: self.path(to), overwrite };
        backup(&self.path("c.yaml"), &args, &mut out).map_err(|error| error.to_string())?;
        Ok(String::from_utf8(out).unwrap())
    }

    async fn restore(&self, from: &str) -> Result<String, String> {
        let mut out = Vec::new();
        let args = RestoreArgs { from: self.path(from) };
        restore(&self.path("c.yaml"), &args, &mut out).await.map_err(|error| error.to_string())?;
        Ok(String::from_utf8(out).unwrap())
    }

    fn names(&self) -> Vec<String> {
        let names = fs::read_dir(self.folder.path()).unwrap();
        let mut names: Vec<_> =
            names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

async fn put(store: &EmbeddedStore, id: &str, document: Value) -> u64 {
    let key = Key::new(Kind::Route, Id::parse(id).unwrap());
    let write = Mutation::Put { key, document, precondition: Precondition::Unconditional, ttl: None };
    store.commit(write.into()).await.unwrap().revision
}

/// On a thread of its own, like another process.
async fn backup_beside(fixture: &Arc<BackupFixture>, to: &'static str) -> Result<String, String> {
    let fixture = Arc::clone(fixture);
    tokio::task::spawn_blocking(move || fixture.backup(to, false)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_of_a_store_in_use_has_one_revision() {
    let fixture = Arc::new(BackupFixture::new());
    let store = fixture.store();
    backup_socket::serve(&store, &fixture.path("store.redb"));
    store.swap_internal_entry(InternalKey::TicketSecrets, 0, "sealed".to_owned().into()).await.unwrap();
    // Each revision adds one document, so a consistent backup at revision n has n documents.
    let writing = tokio::spawn({
        let store = Arc::clone(&store);
        async move {
            for n in 1..=600 {
                assert_eq!(put(&store, &format!("{n:04}"), json!({"pad": "x".repeat(2000)})).await, n);
            }
        }
    });
    for name in ["one.redb", "two.redb", "three.redb"] {
        let output = backup_beside(&fixture, name).await.unwrap();
        assert!(output.contains("the running control plane") && output.contains("verified"), "{output}");
        assert_eq!(fs::metadata(fixture.path(name)).unwrap().permissions().mode() & 0o777, 0o600);
        let copy = EmbeddedStore::open(&fixture.path(name)).unwrap();
        let loaded = copy.load().await.unwrap();
        assert_eq!((loaded.items.len() as u64, copy.identity()), (loaded.revision, store.identity()));
        assert!(loaded.items.iter().all(|item| item.mod_revision <= loaded.revision));
        assert_eq!(
            copy.internal_entry(InternalKey::TicketSecrets).await.unwrap().unwrap().text.as_str(),
            "sealed"
        );
    }
    writing.await.unwrap();
    // An idle reader blocks no other one, and is dropped with its connection.
    drop(backup_socket::connect(&fixture.path("store.redb")).unwrap());
    assert!(backup_beside(&fixture, "four.redb").await.is_ok());
    assert!(backup_beside(&fixture, "four.redb").await.unwrap_err().contains("exists"));
    assert!(backup_beside(&fixture, "store.redb").await.unwrap_err().contains("is the store itself"));
    let socket = fs::metadata(fixture.path("store.redb.sock")).unwrap();
    assert_eq!(socket.permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn a_stopped_control_planes_file_is_read() {
    let fixture = BackupFixture::new();
    assert!(fixture.backup("b.redb", false).unwrap_err().contains("there is no store"));
    put(&fixture.store(), "1", json!({"v": 1})).await;
    // The leftover socket of a killed process.
    drop(std::os::unix::net::UnixListener::bind(fixture.path("store.redb.sock")).unwrap());
    let output = fixture.backup("b.redb", false).unwrap();
    assert!(output.contains("1 documents at revision 1"), "{output}");
    put(&fixture.store(), "2", json!({"v": 2})).await;
    assert!(fixture.backup("b.redb", true).unwrap().contains("2 documents at revision 2"));
    let _held = fixture.store();
    assert!(fixture.backup("c.redb", false).unwrap_err().contains("in use by another process"));
    assert_eq!(
        fixture.names(),
        ["b.redb", "c.yaml", "store.redb", "store.redb.sock"],
        "nothing half made is left"
    );
}

#[tokio::test]
async fn a_restore_keeps_the_replaced_store() {
    let fixture = BackupFixture::new();
    let store = fixture.store();
    let identity = store.identity().to_owned();
    put(&store, "1", json!({"v": 1})).await;
    drop(store);
    fixture.backup("b.redb", false).unwrap();
    let store = fixture.store();
    put(&store, "1", json!({"v": 2})).await;
    put(&store, "2", json!({})).await;
    let denied = DeniedNodes::load(store.clone()).await.unwrap();
    denied.put("stolen", DeniedNode { serial: Some("0a".into()), ..DeniedNode::default() }).await.unwrap();
    drop(denied);
    let error = fixture.restore("b.redb").await.unwrap_err();
    assert!(error.contains("in use by another process"), "{error}");
    drop(store);
    let output = fixture.restore("b.redb").await.unwrap();
    assert!(output.contains("1 documents at revision 1") && output.contains("1 entries"), "{output}");
    let store = fixture.store();
    let loaded = store.load().await.unwrap();
    assert_eq!((loaded.revision, loaded.items.len(), store.identity()), (1, 1, identity.as_str()));
    assert_eq!(loaded.items[0].document, json!({"v": 1}));
    let denied = DeniedNodes::load(store.clone()).await.unwrap();
    assert!(denied.list().borrow().get("stolen").is_some(), "who was denied since stays out");
    let names = fixture.names();
    let kept = names.iter().find(|name| name.starts_with("store.redb.replaced-")).unwrap();
    assert_eq!(EmbeddedStore::open(&fixture.path(kept)).unwrap().revision(), 3);
    assert_eq!(names.len(), 4, "nothing half made is left: {names:?}");
}

#[tokio::test]
async fn a_corrupted_store_is_replaced_by_a_valid_backup_only() {
    let fixture = BackupFixture::new();
    put(&fixture.store(), "1", json!({"v": 1})).await;
    fixture.backup("b.redb", false).unwrap();
    let whole = fs::read(fixture.path("b.redb")).unwrap();
    let store = fs::read(fixture.path("store.redb")).unwrap();
    for (name, bytes) in
        [("cut.redb", &whole[..whole.len() / 2]), ("text.redb", b"hello"), ("empty.redb", b"")]
    {
        fs::write(fixture.path(name), bytes).unwrap();
        assert!(fixture.restore(name).await.is_err(), "{name}");
        assert_eq!(fixture.store().load().await.unwrap().items.len(), 1, "{name}");
    }
    assert!(fixture.restore("none.redb").await.unwrap_err().contains("there is no file"));
    assert!(fixture.restore("store.redb").await.unwrap_err().contains("is the store itself"));
    fs::write(fixture.path("store.redb"), &store[..store.len() / 2]).unwrap();
    let output = fixture.restore("b.redb").await.unwrap();
    assert!(output.contains("cannot be carried over") && output.contains("is kept"), "{output}");
    assert_eq!(fixture.store().load().await.unwrap().items.len(), 1);
    fs::remove_file(fixture.path("store.redb")).unwrap();
    fixture.restore("b.redb").await.unwrap();
    assert_eq!(fixture.store().load().await.unwrap().items.len(), 1, "in an empty place");
}

#[test]
fn an_etcd_cluster_is_not_backed_up() {
    let fixture = BackupFixture::new();
    let etcd = json!({"deployment": {"role_traditional": {"config_provider": "etcd"},
        "etcd": {"host": ["http://127.0.0.1:1"]}}});
    fs::write(fixture.path("c.yaml"), etcd.to_string()).unwrap();
    assert!(fixture.backup("b.redb", false).unwrap_err().contains("etcdctl snapshot save"));
}

#[tokio::test(flavor = "multi_thread")]
async fn overwrite_replaces_backups_only() {
    let fixture = Arc::new(BackupFixture::new());
    let store = fixture.store();
    backup_socket::serve(&store, &fixture.path("store.redb"));
    put(&store, "1", json!({"v": 1})).await;
    nix::unistd::mkfifo(&fixture.path("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let listener = std::os::unix::net::UnixListener::bind(fixture.path("other.sock")).unwrap();
    fs::create_dir(fixture.path("folder")).unwrap();
    for name in ["last_good.snapshot", "empty"] {
        fs::write(fixture.path(name), if name == "empty" { "" } else { "precious" }).unwrap();
    }
    for (link, target) in
        [("link", "last_good.snapshot"), ("dangling", "nowhere"), ("to_store", "store.redb")]
    {
        std::os::unix::fs::symlink(target, fixture.path(link)).unwrap();
    }
    let before = fixture.names();
    for name in before.iter().filter(|name| *name != "c.yaml") {
        let (fixture, to) = (Arc::clone(&fixture), name.clone());
        let output =
            tokio::task::spawn_blocking(move || fixture.backup(&to, true)).await.unwrap().unwrap_err();
        assert!(output.contains("not replaced") || output.contains("is the s"), "{name}: {output}");
    }
    assert_eq!(fixture.names(), before, "nothing is changed and nothing half made is left");
    assert_eq!(fs::read(fixture.path("last_good.snapshot")).unwrap(), b"precious");
    assert!(backup_socket::connect(&fixture.path("store.redb")).unwrap().is_some());
    drop(listener);
    assert!(backup_beside(&fixture, "b.redb").await.is_ok());
    let again = tokio::task::spawn_blocking({
        let fixture = Arc::clone(&fixture);
        move || fixture.backup("b.redb", true)
    });
    assert!(again.await.unwrap().is_ok(), "a backup is replaced");
    // The path of the socket is reserved even when no control plane runs.
    drop(store);
    let (fixture, to) = (Arc::clone(&fixture), "store.redb.sock");
    let output = tokio::task::spawn_blocking(move || fixture.backup(to, false)).await.unwrap().unwrap_err();
    assert!(output.contains("is the socket"), "{output}");
}

#[test]
fn a_hanging_control_plane_times_out() {
    let fixture = BackupFixture::new();
    // The backlog accepts the connection, as for a stopped process, and nothing answers.
    let _stopped = std::os::unix::net::UnixListener::bind(fixture.path("store.redb.sock")).unwrap();
    let store = fixture.path("store.redb");
    let stream = backup_socket::connect(&store).unwrap().unwrap();
    assert_eq!(stream.read_timeout().unwrap(), Some(backup_socket::RECEIVE_TIMEOUT));
    stream.set_read_timeout(Some(std::time::Duration::from_millis(1))).unwrap();
    let args = BackupArgs { to: fixture.path("b.redb"), overwrite: false };
    let output = map_timeout(receive(stream, &args).unwrap_err(), &store).to_string();
    assert!(output.contains("store.redb.sock sent nothing for 10 s"), "{output}");
    assert_eq!(fixture.names(), ["c.yaml", "store.redb.sock"], "nothing half made is left");
}

#[tokio::test]
async fn restore_rejects_devices_and_fifos() {
    let fixture = BackupFixture::new();
    put(&fixture.store(), "1", json!({"v": 1})).await;
    nix::unistd::mkfifo(&fixture.path("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    std::os::unix::fs::symlink("/dev/zero", fixture.path("zero")).unwrap();
    fs::File::create(fixture.path("huge")).unwrap().set_len(1 << 40).unwrap();
    for (name, words) in [("fifo", "a FIFO"), ("zero", "a device"), ("huge", "does not begin")] {
        let output = fixture.restore(name).await.unwrap_err();
        assert!(output.contains("--from") && output.contains(words), "{output}");
    }
    assert_eq!(fixture.names(), ["c.yaml", "fifo", "huge", "store.redb", "zero"]);
}

#[tokio::test]
async fn stale_temp_files_are_removed() {
    let fixture = BackupFixture::new();
    put(&fixture.store(), "1", json!({"v": 1})).await;
    let long_ago = SystemTime::now() - std::time::Duration::from_secs(3600);
    let old = |name: &str| {
        let file = fs::File::create(fixture.path(name)).unwrap();
        file.set_modified(long_ago).unwrap();
        file
    };
    old("b.redb.new-0123456789abcdef");
    let made_now = old("b.redb.new-1123456789abcdef");
    made_now.lock().unwrap();
    old("b.redb.new-mine");
    fixture.backup("b.redb", false).unwrap();
    let names = fixture.names();
    assert_eq!(names, ["b.redb", "b.redb.new-1123456789abcdef", "b.redb.new-mine", "c.yaml", "store.redb"]);
}
