//! The conformance tests against real etcd servers, and tests of clusters that stop answering
//! during a write, through a proxy that delays or cuts the network.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use e2e::etcd::{Etcd as Server, Keys};
use e2e::proxy::{Network, Proxy};
use futures_util::StreamExt;
use model::Id;
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use super::*;
use crate::store::conformance::{self, flatten, key, put};
use crate::store::{Event, Precondition, WatchError};

/// For operations that a healthy cluster completes in milliseconds.
const PATIENCE: Duration = Duration::from_secs(60);
/// An error that waits for nothing; generous for a busy machine.
const AT_ONCE: Duration = Duration::from_secs(1);

fn settings(hosts: &[String], prefix: &str) -> conf::Settings {
    let mut settings = conf::Settings::default();
    settings.deployment.provider = conf::ConfigProvider::Etcd;
    settings.deployment.etcd = conf::EtcdSettings {
        hosts: hosts.to_vec(),
        prefix: prefix.to_owned(),
        timeout: Duration::from_secs(10),
        watch_timeout: Duration::from_secs(50),
        startup_retry: 2,
        resync_delay: Duration::from_secs(1),
        health_check_timeout: Duration::from_secs(1),
        ..conf::EtcdSettings::default()
    };
    settings
}

pub(super) async fn opened(hosts: &[String]) -> EtcdStore {
    EtcdStore::open(&settings(hosts, "/apisix")).await.unwrap()
}

fn through(proxy: &Proxy) -> String {
    format!("http://{}", proxy.address())
}

/// A store with two ways to one server. Only the first is open at the start; the second opens
/// afterwards.
async fn opened_with_another_way(server: &Server) -> (EtcdStore, Proxy, Proxy) {
    let (used, other) = (Proxy::to(server.address()).await, Proxy::to(server.address()).await);
    other.set(Network::Cut).await;
    let store = opened(&[through(&used), through(&other)]).await;
    other.set(Network::Forward).await;
    (store, used, other)
}

fn ssl(id: &str) -> Key {
    key(Kind::Ssl, id)
}

async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.unwrap_or_else(|_| panic!("{what} took too long"))
}

/// Waits until the store knows that no endpoint answers.
async fn known_to_be_down(store: &EtcdStore) {
    within("noticing", async {
        while !matches!(store.get(&ssl("x")).await, Err(StoreError::Unavailable { .. })) {}
    })
    .await;
}

async fn back(store: &EtcdStore) {
    within("coming back", store.cluster.connections.wait_connected()).await.expect("the link lives");
}

#[tokio::test(flavor = "multi_thread")]
async fn conforms_to_the_store_tests() {
    let server = Server::plain().await;
    let hosts = [server.url()];
    let count = AtomicU64::new(0);
    conformance::run_all(async || {
        let prefix = format!("/laws-{}/", count.fetch_add(1, Ordering::Relaxed));
        Arc::new(EtcdStore::open(&settings(&hosts, &prefix)).await.unwrap()) as Arc<dyn Store>
    })
    .await;
}

/// Reads the log as it is written, and the state of the connection at that moment.
#[derive(Clone)]
struct Onlooker {
    cluster: Arc<OnceLock<Arc<Cluster>>>,
    seen: UnboundedSender<(String, bool)>,
}

impl std::io::Write for Onlooker {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        if let Some(cluster) = self.cluster.get() {
            let reached = cluster.connections.unreachable_for().is_none();
            drop(self.seen.send((String::from_utf8_lossy(line).into_owned(), reached)));
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A reader of the log may write to the store at once.
#[tokio::test]
async fn the_connection_state_changes_before_its_log_line() {
    let (seen, mut lines) = unbounded_channel();
    let onlooker = Onlooker { cluster: Arc::default(), seen };
    let cluster = Arc::clone(&onlooker.cluster);
    let subscriber =
        tracing_subscriber::fmt().with_ansi(false).with_writer(move || onlooker.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let server = Server::plain().await;
    let proxy = Proxy::to(server.address()).await;
    let store = opened(&[through(&proxy)]).await;
    assert!(cluster.set(Arc::clone(&store.cluster)).is_ok());
    let mut said = async |what: &str| {
        let reading = async {
            loop {
                match lines.recv().await.expect("the log goes on") {
                    (line, reached) if line.contains(what) => break reached,
                    _ => {}
                }
            }
        };
        within(what, reading).await
    };
    proxy.set(Network::Cut).await;
    assert!(!said("does not answer any more").await);
    assert!(!said("no healthy etcd endpoint available").await);
    proxy.set(Network::Forward).await;
    assert!(said("reconnected to etcd").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_of_other_programs_are_read_and_watched() {
    let server = Server::plain().await;
    let mut keys = server.keys().await;
    keys.put("/apisix/ssls/", "init_dir").await;
    keys.put("/apisix/ssls/1", r#"{"z":1,"a":[1.0]}"#).await;
    keys.put("/apisix/consumers/jack", "{}").await;
    keys.put("/other/ssls/2", "{}").await;
    let store = opened(&[server.url()]).await;
    let loaded = store.load().await.unwrap();
    let shown: Vec<_> =
        loaded.items.iter().map(|item| (item.key.to_string(), item.document.to_string())).collect();
    assert_eq!(shown, [("ssls/1".to_owned(), r#"{"z":1,"a":[1.0]}"#.to_owned())]);
    assert_eq!(store.unknown_keys().await.unwrap(), [UnknownKeys { name: "consumers".to_owned(), count: 1 }]);

    let mut watch = flatten(store.watch(loaded.revision));
    keys.put("/apisix/consumers/jack", "[]").await;
    keys.put("/apisix/routes/7", "not JSON").await;
    let revision = keys.delete("/apisix/ssls/1").await;
    let told: Vec<Event> = within("the events", watch.by_ref().take(2).map(Result::unwrap).collect()).await;
    assert!(told[0].document.as_ref().unwrap().document.is_string(), "{told:?}");
    assert_eq!(told[1], Event { revision, key: ssl("1"), document: None });
    assert_eq!(keys.get("/apisix/routes/7").await.unwrap().value, b"not JSON", "it is left as it is");
}

/// An APISIX data plane, which never writes, waits for the directories.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_creates_the_directories_of_an_apisix() {
    let server = Server::plain().await;
    let mut keys = server.keys().await;
    keys.put("/apisix/ssls/", "as it was").await;
    let store = opened(&[server.url()]).await;
    assert!(keys.get("/apisix/routes/").await.is_none(), "to open it writes nothing");
    let store = store.initialize().await.unwrap();
    for directory in ["routes", "upstreams", "services", "stream_routes", "plugins", "global_rules"] {
        assert_eq!(
            keys.get(&format!("/apisix/{directory}/")).await.unwrap().value,
            b"init_dir",
            "{directory}"
        );
    }
    assert_eq!(keys.get("/apisix/ssls/").await.unwrap().value, b"as it was");
    let before = keys.revision().await;
    store.initialize().await.unwrap();
    assert_eq!(keys.revision().await, before, "a second start writes nothing");
}

/// A cluster that lost its data keeps its cluster id if its members are configured as before.
#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_lost_its_data_has_another_identity() {
    let server = Server::plain().await;
    let mut keys = server.keys().await;
    let named = || async { opened(&[server.url()]).await.initialize().await.unwrap() };
    let store = named().await;
    assert_eq!(store.identity(), named().await.identity(), "made once");
    store.load().await.unwrap();
    let name = "/apisix/countersign/identity";
    let own = keys.get(name).await.unwrap().value;
    keys.delete(name).await;
    store.load().await.unwrap();
    assert_eq!(keys.get(name).await.unwrap().value, own, "it went on, and is named again");
    keys.put(name, "not a name").await;
    store.load().await.unwrap();
    assert_eq!(keys.get(name).await.unwrap().value, own);
    keys.put(name, "0123abcd").await;
    let told = store.load().await.unwrap_err().to_string();
    assert!(told.contains("is not the store of the start") && told.contains("0123abcd"), "{told}");
    assert!(named().await.identity().ends_with("~0123abcd"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_with_a_ttl_expires() {
    let server = Server::plain().await;
    let store = opened(&[server.url()]).await;
    assert!(store.supports_ttl());
    let ttl = std::num::NonZeroU32::new(1);
    let write =
        Mutation::Put { key: ssl("1"), document: json!({"v": 1}), precondition: Precondition::Absent, ttl };
    let made = store.commit(write).await.unwrap();
    let mut watch = flatten(store.watch(made.revision));
    let gone = within("the lease ends", watch.next()).await.unwrap().unwrap();
    assert_eq!((gone.key, gone.document), (ssl("1"), None));
}

#[tokio::test(flavor = "multi_thread")]
async fn all_pages_have_one_revision() {
    let server = Server::plain().await;
    let mut keys = server.keys().await;
    for n in 0..1_100 {
        keys.put(&format!("/apisix/upstreams/{n:05}"), "{}").await;
    }
    let store = opened(&[server.url()]).await;
    let loaded = store.load().await.unwrap();
    assert_eq!(loaded.items.len(), 1_100, "more than two pages");
    assert!(loaded.items.is_sorted_by_key(|item| item.key.to_string()));
    assert_eq!(loaded.revision, keys.revision().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn compaction_and_a_restored_cluster_end_a_watch() {
    let mut server = Server::plain().await;
    let store = opened(&[server.url()]).await;
    let made = store.commit(put(&ssl("1"), json!({}), Precondition::Unconditional)).await.unwrap();
    let save = server.save().await;
    let later = store.commit(put(&ssl("2"), json!({}), Precondition::Unconditional)).await.unwrap();
    let mut keys = server.keys().await;
    keys.compact(later.revision).await;
    let told = within("the watch", store.watch(made.revision - 1).next()).await;
    assert!(
        matches!(told, Some(Err(WatchError::Compacted { oldest })) if oldest == later.revision),
        "{told:?}"
    );

    let mut watch = store.watch(later.revision);
    store.commit(put(&ssl("3"), json!({}), Precondition::Unconditional)).await.unwrap();
    assert!(matches!(within("the watch", watch.next()).await, Some(Ok(_))), "it is open");
    server.restore(&save).await;
    let told = within("the loss", watch.next()).await;
    assert!(matches!(told, Some(Err(WatchError::Unavailable { .. }))), "{told:?}");
    back(&store).await;
    let told = within("the watch", store.watch(later.revision).next()).await;
    assert!(matches!(told, Some(Err(WatchError::Compacted { .. }))), "{told:?}");
    assert_eq!(store.load().await.unwrap().items.len(), 1, "it is as it was");
}

/// The write arrived, and its response is lost; the other way answers.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_with_a_lost_response_is_found_committed() {
    let server = Server::plain().await;
    let (store, proxy, _other) = opened_with_another_way(&server).await;
    let before = store.load().await.unwrap().revision;
    proxy.set(Network::HoldAnswers).await;
    let made = within("settling", store.commit(put(&ssl("1"), json!({"v": 1}), Precondition::Absent)))
        .await
        .unwrap();
    assert!(!made.existed && made.create_revision == made.revision);
    let found = store.get(&ssl("1")).await.unwrap().unwrap();
    assert_eq!((found.create_revision, found.mod_revision), (made.revision, made.revision), "made once");
    let mut keys = server.keys().await;
    assert_eq!(versions(&mut keys, before, "/apisix/ssls/1").await, [json!({"v": 1})]);
}

/// The write is delayed, and arrives after it was repeated on the other way.
#[tokio::test(flavor = "multi_thread")]
async fn a_delayed_write_is_repeated_and_fails_on_arrival() {
    let server = Server::plain().await;
    let (store, proxy, _other) = opened_with_another_way(&server).await;
    let before = store.load().await.unwrap().revision;
    proxy.set(Network::Hold).await;
    within("settling", store.commit(put(&ssl("1"), json!({"v": 1}), Precondition::Absent))).await.unwrap();
    store
        .commit(Mutation::Delete { key: ssl("1"), precondition: Precondition::Unconditional })
        .await
        .unwrap();
    // Without the fence it would be applied now: its precondition, an absent document, holds.
    proxy.set(Network::Forward).await;
    let direct = opened(&[through(&proxy)]).await;
    for n in 0..50 {
        direct.commit(put(&ssl("other"), json!({"n": n}), Precondition::Unconditional)).await.unwrap();
    }
    let mut keys = server.keys().await;
    assert_eq!(versions(&mut keys, before, "/apisix/ssls/1").await, [json!({"v": 1}), Value::Null]);
}

/// The only endpoint stops answering: a write in flight has an unknown outcome, later writes fail
/// at once, and the cache answers reads.
#[tokio::test(flavor = "multi_thread")]
async fn without_an_endpoint_writes_fail_and_the_cache_answers() {
    let server = Server::plain().await;
    let proxy = Proxy::to(server.address()).await;
    let store = opened(&[through(&proxy)]).await;
    store.commit(put(&ssl("1"), json!({"v": 1}), Precondition::Absent)).await.unwrap();
    store.load().await.unwrap();
    assert!(store.cached(None).is_none(), "it is at hand");
    proxy.set(Network::Hold).await;
    let unknown =
        within("giving up", store.commit(put(&ssl("2"), json!({"v": 2}), Precondition::Absent))).await;
    assert!(matches!(unknown, Err(StoreError::OutcomeUnknown { .. })), "{unknown:?}");
    known_to_be_down(&store).await;
    let began = Instant::now();
    let refused = store.commit(put(&ssl("3"), json!({"v": 3}), Precondition::Absent)).await;
    assert!(matches!(refused, Err(StoreError::Unavailable { .. })), "{refused:?}");
    assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
    let remembered = store.cached(Some(Kind::Ssl)).unwrap();
    assert_eq!(remembered.documents.items.len(), 1);
    assert!(store.cached(Some(Kind::Route)).unwrap().documents.items.is_empty());

    proxy.set(Network::Forward).await;
    back(&store).await;
    assert!(store.cached(None).is_none());
    assert_eq!(store.get(&ssl("3")).await.unwrap(), None, "what was refused is not made");
    store.commit(put(&ssl("3"), json!({"v": 3}), Precondition::Absent)).await.unwrap();
}

/// Two control planes: the fence moves for one, and the next write of the other one notices and
/// succeeds.
#[tokio::test(flavor = "multi_thread")]
async fn a_moved_fence_fails_no_write() {
    let server = Server::plain().await;
    let hosts = [server.url()];
    let (one, other) = (opened(&hosts).await, opened(&hosts).await);
    one.commit(put(&ssl("1"), json!({"v": 1}), Precondition::Absent)).await.unwrap();
    other.commit(put(&ssl("2"), json!({"v": 1}), Precondition::Absent)).await.unwrap();
    server.keys().await.put("/apisix/countersign/fence", "moved").await;
    for store in [&one, &other] {
        let now = store.get(&ssl("1")).await.unwrap().unwrap().mod_revision;
        store.commit(put(&ssl("1"), json!({"v": 2}), Precondition::ModRevision(now))).await.unwrap();
        let stale = store.commit(put(&ssl("1"), json!({"v": 3}), Precondition::ModRevision(now))).await;
        assert_eq!(stale, Err(StoreError::Conflict));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_etcd_rejects_is_rejected() {
    let server = Server::plain().await;
    let store = opened(&[server.url()]).await;
    let long = json!({"text": "x".repeat(2 << 20)});
    let refused = store.commit(put(&ssl("1"), long, Precondition::Absent)).await.unwrap_err();
    assert!(
        matches!(&refused, StoreError::Rejected { what } if what.contains("--max-request-bytes")),
        "{refused}"
    );
    assert_eq!(store.get(&ssl("1")).await.unwrap(), None);
}

/// All versions of a key after a revision; `Null` for a deletion.
async fn versions(keys: &mut Keys, after: u64, name: &str) -> Vec<Value> {
    let now = keys.revision().await;
    let changes = keys.history("/apisix/", after + 1, now).await;
    let value =
        |value: Option<Vec<u8>>| value.map_or(Value::Null, |text| serde_json::from_slice(&text).unwrap());
    changes.into_iter().filter(|change| change.key == name).map(|change| value(change.value)).collect()
}

#[test]
fn revisions_of_etcd_are_valid_ids() {
    // An APISIX pads a revision to 20 digits.
    assert!(Id::parse(&format!("{:020}", i64::MAX)).is_ok());
}

/// A control plane and another program on one etcd, and a route with an allow-list.
struct Shared {
    _server: Server,
    store: EtcdStore,
    keys: Keys,
}

const ROUTE: &str = "/apisix/routes/1";
const BESIDE: &str = "/apisix/countersign/extensions/routes/1";

impl Shared {
    async fn start() -> Self {
        let server = Server::plain().await;
        let store = opened(&[server.url()]).await;
        let keys = server.keys().await;
        Self { _server: server, store, keys }
    }

    fn key() -> Key {
        key(Kind::Route, "1")
    }

    fn guarded(host: &str) -> Value {
        json!({"uri": "/a", "host": host, "client_identity": {"allow": [{"dns": "a.b"}]}})
    }

    async fn write(&self, document: Value, expect: Precondition) -> Result<u64, StoreError> {
        self.store.commit(put(&Self::key(), document, expect)).await.map(|made| made.revision)
    }

    async fn held(&self) -> super::StoredDocument {
        self.store.get(&Self::key()).await.unwrap().unwrap()
    }

    /// The first event of a watch from this revision.
    async fn told_after(&self, revision: u64) -> Event {
        let mut events = flatten(self.store.watch(revision));
        within("an event", events.next()).await.unwrap().unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_programs_write_keeps_extension_fields() {
    let mut shared = Shared::start().await;
    let made = shared.write(Shared::guarded("x"), Precondition::Absent).await.unwrap();
    let seen = shared.keys.get(ROUTE).await.unwrap().json();
    assert_eq!(seen, json!({"uri": "/a", "host": "x"}), "an APISIX knows every member");
    assert_eq!(shared.keys.get(BESIDE).await.unwrap().modified, made, "in one revision");
    // An APISIX reads, changes and writes back the fields it knows.
    let theirs = shared.keys.put(ROUTE, json!({"uri": "/a", "host": "y"}).to_string()).await;
    let held = shared.held().await;
    assert_eq!(
        (&held.document, held.mod_revision, held.stale_extensions),
        (&Shared::guarded("y"), theirs, true)
    );
    assert_eq!(shared.told_after(made).await.document, Some(held.clone()));
    assert_eq!(shared.store.load().await.unwrap().items, std::slice::from_ref(&held));
    assert_eq!(shared.store.list(Kind::Route).await.unwrap().items, [held]);
    // The next write of the control plane writes both keys again, and a write without extension
    // fields deletes their entry.
    let ours = shared.write(Shared::guarded("z"), Precondition::ModRevision(theirs)).await.unwrap();
    assert!(!shared.held().await.stale_extensions);
    assert_eq!(shared.keys.get(BESIDE).await.unwrap().modified, ours);
    shared.write(json!({"uri": "/a"}), Precondition::ModRevision(ours)).await.unwrap();
    assert!(shared.keys.get(BESIDE).await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recreated_document_has_no_extension_fields() {
    let mut shared = Shared::start().await;
    shared.write(Shared::guarded("x"), Precondition::Absent).await.unwrap();
    let gone = shared.keys.delete(ROUTE).await;
    assert_eq!(shared.store.get(&Shared::key()).await.unwrap(), None);
    let left = vec![UnknownKeys { name: super::super::ORPHANED_EXTENSIONS.to_owned(), count: 1 }];
    assert_eq!(shared.store.unknown_keys().await.unwrap(), left);
    let anew = shared.keys.put(ROUTE, json!({"uri": "/b"}).to_string()).await;
    let held = shared.held().await;
    assert_eq!(
        (&held.document, held.mod_revision, held.stale_extensions),
        (&json!({"uri": "/b"}), anew, false)
    );
    assert_eq!(shared.told_after(gone).await.document, Some(held));
    assert_eq!(shared.store.unknown_keys().await.unwrap(), left);
    // The next write deletes the orphaned entry.
    shared.write(json!({"uri": "/c"}), Precondition::ModRevision(anew)).await.unwrap();
    assert!(shared.keys.get(BESIDE).await.is_none());
    assert_eq!(shared.store.unknown_keys().await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn extension_entries_are_watched_and_compared() {
    let mut shared = Shared::start().await;
    let made = shared.write(Shared::guarded("x"), Precondition::Absent).await.unwrap();
    let mut watch = flatten(shared.store.watch(made));
    let other = json!({"client_identity": {"allow": [{"dns": "c.d"}]}});
    let edited = shared.keys.put(BESIDE, other.to_string()).await;
    let held = shared.held().await;
    assert_eq!((&held.document["client_identity"], held.mod_revision), (&other["client_identity"], edited));
    let told = within("an event", watch.next()).await.unwrap().unwrap();
    assert_eq!((told.revision, told.document), (edited, Some(held)));
    // A writer that has not seen the new entry gets a conflict.
    assert_eq!(shared.write(json!({}), Precondition::ModRevision(made)).await, Err(StoreError::Conflict));
    let ours = shared.write(Shared::guarded("y"), Precondition::ModRevision(edited)).await.unwrap();
    assert_eq!(within("an event", watch.next()).await.unwrap().unwrap().revision, ours);
    // Deleting the entry is an event, too. An unreadable entry never means "no extension fields".
    let removed = shared.keys.delete(BESIDE).await;
    let told = within("an event", watch.next()).await.unwrap().unwrap();
    assert_eq!(told.revision, removed);
    assert_eq!(told.document.unwrap().document.get("client_identity"), None);
    let broken = shared.keys.put(BESIDE, "{").await;
    let told = within("an event", watch.next()).await.unwrap().unwrap();
    assert_eq!(told.revision, broken);
    assert!(told.document.unwrap().document["client_identity"].is_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn inline_extension_fields_are_read_and_split() {
    let mut shared = Shared::start().await;
    let before = shared.keys.put(ROUTE, Shared::guarded("x").to_string()).await;
    let held = shared.held().await;
    assert_eq!((&held.document, held.stale_extensions), (&Shared::guarded("x"), false));
    shared.write(Shared::guarded("y"), Precondition::ModRevision(before)).await.unwrap();
    assert_eq!(shared.keys.get(ROUTE).await.unwrap().json().get("client_identity"), None);
    assert_eq!(shared.held().await.document, Shared::guarded("y"));
    // A program that knows the field wrote it into the document itself: the newer value wins.
    let mut inline = Shared::guarded("y");
    inline["client_identity"] = json!({"allow": [{"dns": "c.d"}]});
    shared.keys.put(ROUTE, inline.to_string()).await;
    assert_eq!(shared.held().await.document, inline);
}

/// A watch from an older revision yields the extension fields of that time.
#[tokio::test(flavor = "multi_thread")]
async fn a_watch_starts_with_its_revisions_extension_fields() {
    let mut shared = Shared::start().await;
    let made = shared.write(Shared::guarded("x"), Precondition::Absent).await.unwrap();
    shared.keys.put(ROUTE, json!({"uri": "/a", "host": "y"}).to_string()).await;
    let opened = shared.write(json!({"uri": "/a", "host": "z"}), Precondition::Unconditional).await.unwrap();
    let mut watch = flatten(shared.store.watch(made));
    let first = within("an event", watch.next()).await.unwrap().unwrap();
    assert_eq!(first.document.unwrap().document, Shared::guarded("y"));
    let second = within("an event", watch.next()).await.unwrap().unwrap();
    assert_eq!(
        (second.revision, second.document.unwrap().document),
        (opened, json!({"uri": "/a", "host": "z"}))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_expires_with_its_process() {
    let server = Server::plain().await;
    let (one, other) = (opened(&[server.url()]).await, opened(&[server.url()]).await);
    let (ours, theirs) = (one.reports().unwrap(), other.reports().unwrap());
    assert!(ours.ttl() >= Duration::from_secs(20), "as long as it may serve nodes");
    assert!(ours.others().await.unwrap().is_empty());
    let before = one.load().await.unwrap().items;
    let mut watch = one.watch(one.load().await.unwrap().revision);
    for text in ["first", "second"] {
        theirs.write(text.to_owned(), "names".to_owned()).await.unwrap();
        let read: Vec<_> = ours.others().await.unwrap().into_iter().filter_map(|entry| entry.text).collect();
        assert_eq!((read, theirs.others().await.unwrap().len()), (vec![text.to_owned()], 0));
    }
    assert_eq!(one.load().await.unwrap().items, before, "it is no document");
    assert!(watch.next().now_or_never().is_none(), "no watch tells of it");
    assert!(one.unknown_keys().await.unwrap().is_empty());
    let entries = async || server.keys().await.below("/apisix/countersign/control_planes/").await;
    let entry = entries().await.pop().unwrap();
    assert_ne!(entry.lease, 0, "a process that dies takes it along");
    // The lease is lost, as after a long partition: the next write gets a new one.
    server.ctl(&["lease", "revoke", &format!("{:x}", entry.lease)]).await;
    assert!(entries().await.is_empty());
    let silent = ours.others().await.unwrap().pop().unwrap();
    assert_eq!((silent.text, silent.nodes.as_deref()), (None, Some("names")), "it went without a word");
    theirs.write("third".to_owned(), "names".to_owned()).await.unwrap();
    assert_ne!(entries().await.pop().unwrap().lease, entry.lease);
    theirs.withdraw().await.unwrap();
    assert!(entries().await.is_empty() && ours.others().await.unwrap().is_empty());
}
