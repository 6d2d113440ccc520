use std::os::unix::fs::PermissionsExt;

use model::{Id, Key, Kind};
use serde_json::{Value, json};

use super::*;
use crate::publish::deny_list::DeniedNode;
use crate::store::{InternalKey, Mutation, Precondition};

struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { folder: tempfile::tempdir().unwrap() };
        let settings = json!({"countersign": {"store": {"path": "store.redb"}}});
        fs::write(place.path("c.yaml"), settings.to_string()).unwrap();
        place
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
    store.commit(write).await.unwrap().revision
}

/// On a thread of its own, like another process.
async fn backup_beside(place: &Arc<Place>, to: &'static str) -> Result<String, String> {
    let place = Arc::clone(place);
    tokio::task::spawn_blocking(move || place.backup(to, false)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_of_a_store_in_use_has_one_revision() {
    let place = Arc::new(Place::new());
    let store = place.store();
    socket::serve(&store, &place.path("store.redb"));
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
        let told = backup_beside(&place, name).await.unwrap();
        assert!(told.contains("the running control plane") && told.contains("verified"), "{told}");
        assert_eq!(fs::metadata(place.path(name)).unwrap().permissions().mode() & 0o777, 0o600);
        let copy = EmbeddedStore::open(&place.path(name)).unwrap();
        let loaded = copy.load().await.unwrap();
        assert_eq!((loaded.items.len() as u64, copy.identity()), (loaded.revision, store.identity()));
        assert!(loaded.items.iter().all(|item| item.mod_revision <= loaded.revision));
        assert_eq!(
            copy.internal_entry(InternalKey::TicketSecrets).await.unwrap().unwrap().text.as_str(),
            "sealed"
        );
    }
    writing.await.unwrap();
    // An idle reader blocks nobody, and is dropped with its connection.
    drop(socket::connect(&place.path("store.redb")).unwrap());
    assert!(backup_beside(&place, "four.redb").await.is_ok());
    assert!(backup_beside(&place, "four.redb").await.unwrap_err().contains("exists"));
    assert!(backup_beside(&place, "store.redb").await.unwrap_err().contains("is the store itself"));
    let socket = fs::metadata(place.path("store.redb.sock")).unwrap();
    assert_eq!(socket.permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn a_stopped_control_planes_file_is_read() {
    let place = Place::new();
    assert!(place.backup("b.redb", false).unwrap_err().contains("there is no store"));
    put(&place.store(), "1", json!({"v": 1})).await;
    // The leftover socket of a killed process.
    drop(std::os::unix::net::UnixListener::bind(place.path("store.redb.sock")).unwrap());
    let told = place.backup("b.redb", false).unwrap();
    assert!(told.contains("1 documents at revision 1"), "{told}");
    put(&place.store(), "2", json!({"v": 2})).await;
    assert!(place.backup("b.redb", true).unwrap().contains("2 documents at revision 2"));
    let _held = place.store();
    assert!(place.backup("c.redb", false).unwrap_err().contains("in use by another process"));
    assert_eq!(
        place.names(),
        ["b.redb", "c.yaml", "store.redb", "store.redb.sock"],
        "nothing half made is left"
    );
}

#[tokio::test]
async fn a_restore_keeps_the_replaced_store() {
    let place = Place::new();
    let store = place.store();
    let identity = store.identity().to_owned();
    put(&store, "1", json!({"v": 1})).await;
    drop(store);
    place.backup("b.redb", false).unwrap();
    let store = place.store();
    put(&store, "1", json!({"v": 2})).await;
    put(&store, "2", json!({})).await;
    let denied = DeniedNodes::load(store.clone()).await.unwrap();
    denied.put("stolen", DeniedNode { serial: Some("0a".into()), ..DeniedNode::default() }).await.unwrap();
    drop(denied);
    let running = place.restore("b.redb").await.unwrap_err();
    assert!(running.contains("in use by another process"), "{running}");
    drop(store);
    let told = place.restore("b.redb").await.unwrap();
    assert!(told.contains("1 documents at revision 1") && told.contains("1 entries"), "{told}");
    let store = place.store();
    let loaded = store.load().await.unwrap();
    assert_eq!((loaded.revision, loaded.items.len(), store.identity()), (1, 1, identity.as_str()));
    assert_eq!(loaded.items[0].document, json!({"v": 1}));
    let denied = DeniedNodes::load(store.clone()).await.unwrap();
    assert!(denied.list().borrow().get("stolen").is_some(), "who was denied since stays out");
    let names = place.names();
    let kept = names.iter().find(|name| name.starts_with("store.redb.replaced-")).unwrap();
    assert_eq!(EmbeddedStore::open(&place.path(kept)).unwrap().revision(), 3);
    assert_eq!(names.len(), 4, "nothing half made is left: {names:?}");
}

#[tokio::test]
async fn a_corrupted_store_is_replaced_by_a_valid_backup_only() {
    let place = Place::new();
    put(&place.store(), "1", json!({"v": 1})).await;
    place.backup("b.redb", false).unwrap();
    let whole = fs::read(place.path("b.redb")).unwrap();
    let store = fs::read(place.path("store.redb")).unwrap();
    for (name, bytes) in
        [("cut.redb", &whole[..whole.len() / 2]), ("text.redb", b"hello"), ("empty.redb", b"")]
    {
        fs::write(place.path(name), bytes).unwrap();
        assert!(place.restore(name).await.is_err(), "{name}");
        assert_eq!(place.store().load().await.unwrap().items.len(), 1, "{name}");
    }
    assert!(place.restore("none.redb").await.unwrap_err().contains("there is no file"));
    assert!(place.restore("store.redb").await.unwrap_err().contains("is the store itself"));
    fs::write(place.path("store.redb"), &store[..store.len() / 2]).unwrap();
    let told = place.restore("b.redb").await.unwrap();
    assert!(told.contains("cannot be carried over") && told.contains("is kept"), "{told}");
    assert_eq!(place.store().load().await.unwrap().items.len(), 1);
    fs::remove_file(place.path("store.redb")).unwrap();
    place.restore("b.redb").await.unwrap();
    assert_eq!(place.store().load().await.unwrap().items.len(), 1, "in an empty place");
}

#[test]
fn an_etcd_cluster_is_not_backed_up() {
    let place = Place::new();
    let etcd = json!({"deployment": {"role_traditional": {"config_provider": "etcd"},
        "etcd": {"host": ["http://127.0.0.1:1"]}}});
    fs::write(place.path("c.yaml"), etcd.to_string()).unwrap();
    assert!(place.backup("b.redb", false).unwrap_err().contains("etcdctl snapshot save"));
}

#[tokio::test(flavor = "multi_thread")]
async fn overwrite_replaces_backups_only() {
    let place = Arc::new(Place::new());
    let store = place.store();
    socket::serve(&store, &place.path("store.redb"));
    put(&store, "1", json!({"v": 1})).await;
    nix::unistd::mkfifo(&place.path("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let listening = std::os::unix::net::UnixListener::bind(place.path("other.sock")).unwrap();
    fs::create_dir(place.path("folder")).unwrap();
    for name in ["last_good.snapshot", "empty"] {
        fs::write(place.path(name), if name == "empty" { "" } else { "precious" }).unwrap();
    }
    for (link, target) in
        [("link", "last_good.snapshot"), ("dangling", "nowhere"), ("to_store", "store.redb")]
    {
        std::os::unix::fs::symlink(target, place.path(link)).unwrap();
    }
    let before = place.names();
    for name in before.iter().filter(|name| *name != "c.yaml") {
        let (place, to) = (Arc::clone(&place), name.clone());
        let told = tokio::task::spawn_blocking(move || place.backup(&to, true)).await.unwrap().unwrap_err();
        assert!(told.contains("not replaced") || told.contains("is the s"), "{name}: {told}");
    }
    assert_eq!(place.names(), before, "nothing is changed and nothing half made is left");
    assert_eq!(fs::read(place.path("last_good.snapshot")).unwrap(), b"precious");
    assert!(socket::connect(&place.path("store.redb")).unwrap().is_some());
    drop(listening);
    assert!(backup_beside(&place, "b.redb").await.is_ok());
    let again = tokio::task::spawn_blocking({
        let place = Arc::clone(&place);
        move || place.backup("b.redb", true)
    });
    assert!(again.await.unwrap().is_ok(), "a backup is replaced");
    // The path of the socket is reserved even when no control plane runs.
    drop(store);
    let (place, to) = (Arc::clone(&place), "store.redb.sock");
    let told = tokio::task::spawn_blocking(move || place.backup(to, false)).await.unwrap().unwrap_err();
    assert!(told.contains("is the socket"), "{told}");
}

#[test]
fn a_hanging_control_plane_times_out() {
    let place = Place::new();
    // The backlog accepts the connection, as for a stopped process, and nothing answers.
    let _stopped = std::os::unix::net::UnixListener::bind(place.path("store.redb.sock")).unwrap();
    let store = place.path("store.redb");
    let stream = socket::connect(&store).unwrap().unwrap();
    assert_eq!(stream.read_timeout().unwrap(), Some(socket::RECEIVE_TIMEOUT));
    stream.set_read_timeout(Some(std::time::Duration::from_millis(1))).unwrap();
    let args = BackupArgs { to: place.path("b.redb"), overwrite: false };
    let told = map_timeout(receive(stream, &args).unwrap_err(), &store).to_string();
    assert!(told.contains("store.redb.sock sent nothing for 10 s"), "{told}");
    assert_eq!(place.names(), ["c.yaml", "store.redb.sock"], "nothing half made is left");
}

#[tokio::test]
async fn restore_rejects_devices_and_fifos() {
    let place = Place::new();
    put(&place.store(), "1", json!({"v": 1})).await;
    nix::unistd::mkfifo(&place.path("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    std::os::unix::fs::symlink("/dev/zero", place.path("zero")).unwrap();
    fs::File::create(place.path("huge")).unwrap().set_len(1 << 40).unwrap();
    for (name, part) in [("fifo", "a FIFO"), ("zero", "a device"), ("huge", "does not begin")] {
        let told = place.restore(name).await.unwrap_err();
        assert!(told.contains("--from") && told.contains(part), "{told}");
    }
    assert_eq!(place.names(), ["c.yaml", "fifo", "huge", "store.redb", "zero"]);
}

#[tokio::test]
async fn stale_temp_files_are_removed() {
    let place = Place::new();
    put(&place.store(), "1", json!({"v": 1})).await;
    let long_ago = SystemTime::now() - std::time::Duration::from_secs(3600);
    let old = |name: &str| {
        let file = fs::File::create(place.path(name)).unwrap();
        file.set_modified(long_ago).unwrap();
        file
    };
    old("b.redb.new-0123456789abcdef");
    let made_now = old("b.redb.new-1123456789abcdef");
    made_now.lock().unwrap();
    old("b.redb.new-mine");
    place.backup("b.redb", false).unwrap();
    let names = place.names();
    assert_eq!(names, ["b.redb", "b.redb.new-1123456789abcdef", "b.redb.new-mine", "c.yaml", "store.redb"]);
}
