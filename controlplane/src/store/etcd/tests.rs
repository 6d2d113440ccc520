//! The conformance tests against real etcd servers, and tests of clusters that stop answering
//! during a write, through a proxy that delays or cuts the network.

use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use e2e::credentials::Credential;
use e2e::etcd::{Authorities, Etcd as Server, Keys};
use e2e::proxy::{Network, Proxy};
use futures_util::StreamExt;
use model::Id;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use super::*;
use crate::store::conformance::batches::batch;
use crate::store::conformance::random_commits::{ExpectedStore, commit_plans};
use crate::store::conformance::{self, conflict, delete, flatten, key, put, put_for};
use crate::store::{Condition, Event, Mutation, MutationResult, Precondition, WatchError};

/// For operations that a healthy cluster completes in milliseconds.
const TEST_TIMEOUT: Duration = Duration::from_secs(60);
/// An error that waits for nothing; generous for a busy machine.
const IMMEDIATELY: Duration = Duration::from_secs(1);

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

pub(crate) async fn open(hosts: &[String]) -> EtcdStore {
    EtcdStore::open(&settings(hosts, "/apisix")).await.unwrap()
}

fn through(proxy: &Proxy) -> String {
    format!("http://{}", proxy.address())
}

/// A store with two ways to one server. Only the first is open at the start; the second opens
/// afterwards.
async fn open_with_second_path(server: &Server) -> (EtcdStore, Proxy, Proxy) {
    let (used, other) = (Proxy::to(server.address()).await, Proxy::to(server.address()).await);
    other.set(Network::Cut).await;
    let store = open(&[through(&used), through(&other)]).await;
    other.set(Network::Forward).await;
    (store, used, other)
}

fn ssl_key(id: &str) -> Key {
    key(Kind::Ssl, id)
}

async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(TEST_TIMEOUT, work).await.unwrap_or_else(|_| panic!("{what} took too long"))
}

/// Waits until the store knows that no endpoint answers.
async fn wait_unreachable(store: &EtcdStore) {
    within("noticing", async {
        while !matches!(store.get(&ssl_key("x")).await, Err(StoreError::Unavailable { .. })) {}
    })
    .await;
}

async fn wait_reconnected(store: &EtcdStore) {
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

#[tokio::test(flavor = "multi_thread")]
async fn random_commits_have_the_expected_effect() {
    let server = Server::plain().await;
    let mut runner = TestRunner::deterministic();
    for case in 0..12 {
        let plans = commit_plans(20).new_tree(&mut runner).unwrap().current();
        let store = EtcdStore::open(&settings(&[server.url()], &format!("/random-{case}"))).await.unwrap();
        let mut expected = ExpectedStore::starting_at(store.load().await.unwrap().revision);
        for plan in &plans {
            expected.commit(&store, plan).await;
            expected.compare(&store).await;
        }
    }
}

/// Reads the log as it is written, and the state of the connection at that moment.
#[derive(Clone)]
struct LogObserver {
    cluster: Arc<OnceLock<Arc<Cluster>>>,
    lines: UnboundedSender<(String, bool)>,
}

impl std::io::Write for LogObserver {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        if let Some(cluster) = self.cluster.get() {
            let reached = cluster.connections.unreachable_for().is_none();
            drop(self.lines.send((String::from_utf8_lossy(line).into_owned(), reached)));
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
    let (sender, mut lines) = unbounded_channel();
    let observer = LogObserver { cluster: Arc::default(), lines: sender };
    let cluster = Arc::clone(&observer.cluster);
    let subscriber =
        tracing_subscriber::fmt().with_ansi(false).with_writer(move || observer.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let server = Server::plain().await;
    let proxy = Proxy::to(server.address()).await;
    let store = open(&[through(&proxy)]).await;
    assert!(cluster.set(Arc::clone(&store.cluster)).is_ok());
    let mut logged = async |what: &str| {
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
    assert!(!logged("does not respond any more").await);
    assert!(!logged("no healthy etcd endpoint available").await);
    proxy.set(Network::Forward).await;
    assert!(logged("reconnected to etcd").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_of_other_programs_are_read_and_watched() {
    let server = Server::plain().await;
    let mut keys = server.keys().await;
    keys.put("/apisix/ssls/", "init_dir").await;
    keys.put("/apisix/ssls/1", r#"{"z":1,"a":[1.0]}"#).await;
    keys.put("/apisix/consumers/jack", "{}").await;
    keys.put("/other/ssls/2", "{}").await;
    let store = open(&[server.url()]).await;
    let loaded = store.load().await.unwrap();
    let shown: Vec<_> =
        loaded.items.iter().map(|item| (item.key.to_string(), item.document.to_string())).collect();
    assert_eq!(shown, [("ssls/1".to_owned(), r#"{"z":1,"a":[1.0]}"#.to_owned())]);
    assert_eq!(store.unknown_keys().await.unwrap(), [UnknownKeys { name: "consumers".to_owned(), count: 1 }]);

    let mut watch = flatten(store.watch(loaded.revision));
    keys.put("/apisix/consumers/jack", "[]").await;
    keys.put("/apisix/routes/7", "not JSON").await;
    let revision = keys.delete("/apisix/ssls/1").await;
    let event: Vec<Event> = within("the events", watch.by_ref().take(2).map(Result::unwrap).collect()).await;
    assert!(event[0].document.as_ref().unwrap().document.is_string(), "{event:?}");
    assert_eq!(event[1], Event { revision, key: ssl_key("1"), document: None });
    assert_eq!(keys.get("/apisix/routes/7").await.unwrap().value, b"not JSON", "it is left as it is");
}

/// An APISIX data plane, which never writes, waits for the directories.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_creates_the_directories_of_an_apisix() {
    let server = Server::plain().await;
    let mut keys = server.keys().await;
    keys.put("/apisix/ssls/", "as it was").await;
    let store = open(&[server.url()]).await;
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
    let named = || async { open(&[server.url()]).await.initialize().await.unwrap() };
    let store = named().await;
    assert_eq!(store.identity(), named().await.identity(), "made once");
    store.load().await.unwrap();
    let name = "/apisix/countersign/identity";
    let store_id = keys.get(name).await.unwrap().value;
    keys.delete(name).await;
    store.load().await.unwrap();
    assert_eq!(keys.get(name).await.unwrap().value, store_id, "it went on, and is named again");
    keys.put(name, "not a name").await;
    store.load().await.unwrap();
    assert_eq!(keys.get(name).await.unwrap().value, store_id);
    keys.put(name, "0123abcd").await;
    let event = store.load().await.unwrap_err().to_string();
    assert!(event.contains("is not the store of the start") && event.contains("0123abcd"), "{event}");
    assert!(named().await.identity().ends_with("~0123abcd"));
}

#[tokio::test(flavor = "multi_thread")]
async fn all_pages_have_one_revision() {
    let server = Server::plain().await;
    let mut keys = server.keys().await;
    for n in 0..1_100 {
        keys.put(&format!("/apisix/upstreams/{n:05}"), "{}").await;
    }
    let store = open(&[server.url()]).await;
    let loaded = store.load().await.unwrap();
    assert_eq!(loaded.items.len(), 1_100, "more than two pages");
    assert!(loaded.items.is_sorted_by_key(|item| item.key.to_string()));
    assert_eq!(loaded.revision, keys.revision().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn compaction_and_a_restored_cluster_end_a_watch() {
    let mut server = Server::plain().await;
    let store = open(&[server.url()]).await;
    let committed = store.commit(put(&ssl_key("1"), json!({}), Precondition::Unconditional)).await.unwrap();
    let save = server.save().await;
    let later = store.commit(put(&ssl_key("2"), json!({}), Precondition::Unconditional)).await.unwrap();
    let mut keys = server.keys().await;
    keys.compact(later.revision).await;
    let event = within("the watch", store.watch(committed.revision - 1).next()).await;
    assert!(
        matches!(event, Some(Err(WatchError::Compacted { oldest })) if oldest == later.revision),
        "{event:?}"
    );

    let mut watch = store.watch(later.revision);
    store.commit(put(&ssl_key("3"), json!({}), Precondition::Unconditional)).await.unwrap();
    assert!(matches!(within("the watch", watch.next()).await, Some(Ok(_))), "it is open");
    server.restore(&save).await;
    let event = within("the loss", watch.next()).await;
    assert!(matches!(event, Some(Err(WatchError::Unavailable { .. }))), "{event:?}");
    wait_reconnected(&store).await;
    let event = within("the watch", store.watch(later.revision).next()).await;
    assert!(matches!(event, Some(Err(WatchError::Compacted { .. }))), "{event:?}");
    assert_eq!(store.load().await.unwrap().items.len(), 1, "it is as it was");
}

/// The write arrived, and its response is lost; the other way answers.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_with_a_lost_response_is_found_committed() {
    let server = Server::plain().await;
    let (store, proxy, _other) = open_with_second_path(&server).await;
    let before = store.load().await.unwrap().revision;
    proxy.set(Network::HoldAnswers).await;
    let committed =
        within("settling", store.commit(put(&ssl_key("1"), json!({"v": 1}), Precondition::Absent)))
            .await
            .unwrap();
    assert_eq!(committed.first(), MutationResult { existed: false, create_revision: committed.revision });
    let found = store.get(&ssl_key("1")).await.unwrap().unwrap();
    assert_eq!(
        (found.create_revision, found.mod_revision),
        (committed.revision, committed.revision),
        "made once"
    );
    let mut keys = server.keys().await;
    assert_eq!(versions(&mut keys, before, "/apisix/ssls/1").await, [json!({"v": 1})]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_with_a_lost_response_is_found_committed() {
    let server = Server::plain().await;
    let (store, proxy, _other) = open_with_second_path(&server).await;
    let first = store.commit(put(&ssl_key("old"), json!({}), Precondition::Absent)).await.unwrap().revision;
    let writes = batch([
        delete(&ssl_key("old"), Precondition::Unconditional),
        put(&ssl_key("new"), json!({"v": 1}), Precondition::Absent),
        delete(&ssl_key("none"), Precondition::Absent),
    ]);
    proxy.set(Network::HoldAnswers).await;
    let committed = within("settling", store.commit(writes)).await.unwrap();
    let removed = MutationResult { create_revision: first, existed: true };
    let created = MutationResult { create_revision: committed.revision, existed: false };
    assert_eq!(committed.mutations, [removed, created, MutationResult::default()]);
    let items = store.load().await.unwrap().items;
    assert_eq!(items.iter().map(|item| item.mod_revision).collect::<Vec<_>>(), [committed.revision]);
}

/// The write is delayed, and arrives after it was repeated on the other way.
#[tokio::test(flavor = "multi_thread")]
async fn a_delayed_write_is_repeated_and_fails_on_arrival() {
    let server = Server::plain().await;
    let (store, proxy, _other) = open_with_second_path(&server).await;
    let before = store.load().await.unwrap().revision;
    proxy.set(Network::Hold).await;
    within("settling", store.commit(put(&ssl_key("1"), json!({"v": 1}), Precondition::Absent)))
        .await
        .unwrap();
    store.commit(delete(&ssl_key("1"), Precondition::Unconditional)).await.unwrap();
    // Without the fence it would be applied now: its precondition, an absent document, holds.
    proxy.set(Network::Forward).await;
    let direct = open(&[through(&proxy)]).await;
    for n in 0..50 {
        direct.commit(put(&ssl_key("other"), json!({"n": n}), Precondition::Unconditional)).await.unwrap();
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
    let store = open(&[through(&proxy)]).await;
    store.commit(put(&ssl_key("1"), json!({"v": 1}), Precondition::Absent)).await.unwrap();
    store.load().await.unwrap();
    assert!(store.cached(None).is_none(), "it is at hand");
    proxy.set(Network::Hold).await;
    let unknown =
        within("giving up", store.commit(put(&ssl_key("2"), json!({"v": 2}), Precondition::Absent))).await;
    assert!(matches!(unknown, Err(StoreError::OutcomeUnknown { .. })), "{unknown:?}");
    wait_unreachable(&store).await;
    let started = Instant::now();
    let error = store.commit(put(&ssl_key("3"), json!({"v": 3}), Precondition::Absent)).await;
    assert!(matches!(error, Err(StoreError::Unavailable { .. })), "{error:?}");
    assert!(started.elapsed() < IMMEDIATELY, "{:?}", started.elapsed());
    let cached = store.cached(Some(Kind::Ssl)).unwrap();
    assert_eq!(cached.documents.items.len(), 1);
    assert!(store.cached(Some(Kind::Route)).unwrap().documents.items.is_empty());

    proxy.set(Network::Forward).await;
    wait_reconnected(&store).await;
    assert!(store.cached(None).is_none());
    assert_eq!(store.get(&ssl_key("3")).await.unwrap(), None, "what was refused is not made");
    store.commit(put(&ssl_key("3"), json!({"v": 3}), Precondition::Absent)).await.unwrap();
}

/// Two control planes: the fence moves for one, and the next write of the other one notices and
/// succeeds.
#[tokio::test(flavor = "multi_thread")]
async fn a_moved_fence_fails_no_write() {
    let server = Server::plain().await;
    let hosts = [server.url()];
    let (one, other) = (open(&hosts).await, open(&hosts).await);
    one.commit(put(&ssl_key("1"), json!({"v": 1}), Precondition::Absent)).await.unwrap();
    other.commit(put(&ssl_key("2"), json!({"v": 1}), Precondition::Absent)).await.unwrap();
    server.keys().await.put("/apisix/countersign/fence", "moved").await;
    for store in [&one, &other] {
        let now = store.get(&ssl_key("1")).await.unwrap().unwrap().mod_revision;
        store.commit(put(&ssl_key("1"), json!({"v": 2}), Precondition::ModRevision(now))).await.unwrap();
        let stale = store.commit(put(&ssl_key("1"), json!({"v": 3}), Precondition::ModRevision(now))).await;
        assert_eq!(stale, Err(conflict(&ssl_key("1"))));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_etcd_rejects_is_rejected() {
    let server = Server::plain().await;
    let store = open(&[server.url()]).await;
    let long = json!({"text": "x".repeat(2 << 20)});
    let error = store.commit(put(&ssl_key("1"), long, Precondition::Absent)).await.unwrap_err();
    assert!(
        matches!(&error, StoreError::Rejected { what } if what.contains("--max-request-bytes")),
        "{error}"
    );
    assert_eq!(store.get(&ssl_key("1")).await.unwrap(), None);
}

/// More compares and writes than one transaction takes.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_of_128_documents_is_one_commit() {
    let server = Server::plain().await;
    let store = open(&[server.url()]).await;
    let keys: Vec<Key> =
        (0..128).map(|n| key([Kind::Route, Kind::Ssl, Kind::Upstream][n % 3], &n.to_string())).collect();
    let document = |n: usize| {
        if n.is_multiple_of(2) { json!({"n": n, "client_identity": {"allow": []}}) } else { json!({"n": n}) }
    };
    let puts = |n, expect| batch(keys.iter().map(|key| put(key, document(n), expect)));
    let created = store.commit(puts(1, Precondition::Absent)).await.unwrap();
    let result = MutationResult { create_revision: created.revision, existed: false };
    assert_eq!(created.mutations, vec![result; 128]);
    assert_eq!(store.commit(puts(2, Precondition::Absent)).await, Err(conflict(&keys[0])));
    let seen = Precondition::ModRevision(created.revision);
    let replaced = store.commit(puts(2, seen)).await.unwrap();
    let result = MutationResult { create_revision: created.revision, existed: true };
    assert_eq!(replaced.mutations, vec![result; 128]);
    let loaded = store.load().await.unwrap();
    let extended = json!({"n": 2, "client_identity": {"allow": []}});
    assert!(
        loaded.items.iter().all(|item| item.document == extended && item.mod_revision == replaced.revision)
    );
    // A document that is changed, removed or gets a lease fails the batch, or is replaced.
    let seen = Precondition::ModRevision(replaced.revision);
    assert_eq!(
        store.commit(puts(3, Precondition::ModRevision(created.revision))).await,
        Err(conflict(&keys[0]))
    );
    let changed = store.commit(put_for(&keys[77], 1000)).await.unwrap().revision;
    assert_eq!(store.commit(puts(3, seen)).await, Err(conflict(&keys[77])));
    let with_changed = |n| {
        let expect = |at| if at == 77 { Precondition::ModRevision(changed) } else { seen };
        batch(keys.iter().enumerate().map(|(at, key)| put(key, document(n), expect(at))))
    };
    store.commit(delete(&keys[127], Precondition::Unconditional)).await.unwrap();
    assert_eq!(store.commit(with_changed(3)).await, Err(conflict(&keys[127])));
    assert!(
        store.list(Kind::Ssl).await.unwrap().items.iter().all(|item| item.document["n"] != 3),
        "all or nothing"
    );
    let third = store.commit(puts(3, Precondition::Unconditional)).await.unwrap();
    assert_eq!(third.mutations[77], result);
    assert_eq!(third.mutations[127], MutationResult { create_revision: third.revision, existed: false });
    let name = format!("/apisix/{}", keys[77]);
    assert_eq!(server.keys().await.get(&name).await.unwrap().lease, 0, "no lease removes it later");
    assert_eq!(store.load().await.unwrap().items.len(), 128);
    let removals = keys.iter().map(|key| delete(key, Precondition::ModRevision(third.revision)));
    let removed = store.commit(batch(removals)).await.unwrap();
    assert!(removed.mutations.iter().all(|removed| removed.existed));
    assert_eq!(store.load().await.unwrap().items, []);
    assert!(store.unknown_keys().await.unwrap().is_empty(), "no extension entry is left");
}

/// The documents change between the read and the transaction: it is not applied.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_batch_fails_when_a_document_changes() {
    let server = Server::plain().await;
    let store = open(&[server.url()]).await;
    let keys: Vec<Key> = (0..128).map(|n| key(Kind::Route, &n.to_string())).collect();
    let puts = |n: u64| batch(keys.iter().map(|key| put(key, json!({"n": n}), Precondition::Unconditional)));
    store.commit(puts(0)).await.unwrap();
    let rival = async |n: u64| {
        for round in 0..24 {
            let key = &keys[(usize::try_from(n).unwrap() * 31 + round) % 128];
            let write = if round % 2 == 0 {
                put(key, json!({"rival": n}), Precondition::Unconditional)
            } else {
                delete(key, Precondition::Unconditional)
            };
            store.commit(write).await.unwrap();
        }
    };
    let (committed, (), ()) = tokio::join!(async { store.commit(puts(1)).await }, rival(1), rival(2));
    // It lost against each rival write, or all its documents have its revision at once.
    if let Ok(committed) = committed {
        let mut keys = server.keys().await;
        let mut changes = keys.history("/apisix/routes/", committed.revision, committed.revision).await;
        changes.retain(|change| change.revision == committed.revision);
        assert_eq!(changes.len(), 128);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_exceeds_a_transaction_is_rejected() {
    let server = Server::plain().await;
    let store = open(&[server.url()]).await;
    let key = |n: u64| key(Kind::Ssl, &n.to_string());
    let conditions = (0..5_000).map(|n| Condition::Absent(key(n))).collect();
    let write = Batch { conditions, ..put(&key(0), json!({}), Precondition::Absent) };
    let error = store.commit(write).await.unwrap_err();
    assert!(
        matches!(&error, StoreError::TooManyOperations { .. })
            && error.to_string().contains("write fewer documents"),
        "{error}"
    );
    assert_eq!(store.get(&key(0)).await.unwrap(), None);
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
struct SharedCluster {
    _server: Server,
    store: EtcdStore,
    keys: Keys,
}

const ROUTE: &str = "/apisix/routes/1";
const EXTENSION_ENTRY: &str = "/apisix/countersign/extensions/routes/1";

impl SharedCluster {
    async fn start() -> Self {
        let server = Server::plain().await;
        let store = open(&[server.url()]).await;
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
        self.store.commit(put(&Self::key(), document, expect)).await.map(|committed| committed.revision)
    }

    async fn stored(&self) -> super::StoredDocument {
        self.store.get(&Self::key()).await.unwrap().unwrap()
    }

    /// The first event of a watch from this revision.
    async fn first_event_after(&self, revision: u64) -> Event {
        let mut events = flatten(self.store.watch(revision));
        within("an event", events.next()).await.unwrap().unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_programs_write_keeps_extension_fields() {
    let mut fixture = SharedCluster::start().await;
    let committed = fixture.write(SharedCluster::guarded("x"), Precondition::Absent).await.unwrap();
    let value = fixture.keys.get(ROUTE).await.unwrap().json();
    assert_eq!(value, json!({"uri": "/a", "host": "x"}), "an APISIX knows every member");
    assert_eq!(fixture.keys.get(EXTENSION_ENTRY).await.unwrap().modified, committed, "in one revision");
    // An APISIX reads, changes and writes back the fields it knows.
    let other_revision = fixture.keys.put(ROUTE, json!({"uri": "/a", "host": "y"}).to_string()).await;
    let stored = fixture.stored().await;
    assert_eq!(
        (&stored.document, stored.mod_revision, stored.stale_extensions),
        (&SharedCluster::guarded("y"), other_revision, true)
    );
    assert_eq!(fixture.first_event_after(committed).await.document, Some(stored.clone()));
    assert_eq!(fixture.store.load().await.unwrap().items, std::slice::from_ref(&stored));
    assert_eq!(fixture.store.list(Kind::Route).await.unwrap().items, [stored]);
    // The next write of the control plane writes both keys again, and a write without extension
    // fields deletes their entry.
    let own_revision =
        fixture.write(SharedCluster::guarded("z"), Precondition::ModRevision(other_revision)).await.unwrap();
    assert!(!fixture.stored().await.stale_extensions);
    assert_eq!(fixture.keys.get(EXTENSION_ENTRY).await.unwrap().modified, own_revision);
    fixture.write(json!({"uri": "/a"}), Precondition::ModRevision(own_revision)).await.unwrap();
    assert!(fixture.keys.get(EXTENSION_ENTRY).await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recreated_document_has_no_extension_fields() {
    let mut fixture = SharedCluster::start().await;
    fixture.write(SharedCluster::guarded("x"), Precondition::Absent).await.unwrap();
    let deleted = fixture.keys.delete(ROUTE).await;
    assert_eq!(fixture.store.get(&SharedCluster::key()).await.unwrap(), None);
    let left = vec![UnknownKeys { name: super::super::ORPHANED_EXTENSIONS.to_owned(), count: 1 }];
    assert_eq!(fixture.store.unknown_keys().await.unwrap(), left);
    let recreated = fixture.keys.put(ROUTE, json!({"uri": "/b"}).to_string()).await;
    let stored = fixture.stored().await;
    assert_eq!(
        (&stored.document, stored.mod_revision, stored.stale_extensions),
        (&json!({"uri": "/b"}), recreated, false)
    );
    assert_eq!(fixture.first_event_after(deleted).await.document, Some(stored));
    assert_eq!(fixture.store.unknown_keys().await.unwrap(), left);
    // The next write deletes the orphaned entry.
    fixture.write(json!({"uri": "/c"}), Precondition::ModRevision(recreated)).await.unwrap();
    assert!(fixture.keys.get(EXTENSION_ENTRY).await.is_none());
    assert_eq!(fixture.store.unknown_keys().await.unwrap(), []);
}

/// The lease of a document removes the document only; its watch removes the extension entry.
#[tokio::test(flavor = "multi_thread")]
async fn extension_fields_go_with_an_expired_document() {
    let mut fixture = SharedCluster::start().await;
    let (key, document) = (SharedCluster::key(), SharedCluster::guarded("x"));
    let ttl = std::num::NonZeroU32::new(1);
    let precondition = Precondition::Absent;
    let write = Mutation::Put { key: key.clone(), document: document.clone(), precondition, ttl };
    let committed = fixture.store.commit(write.into()).await.unwrap().revision;
    let mut watch = flatten(fixture.store.watch(committed));
    let expired = within("an event", watch.next()).await.unwrap().unwrap();
    assert_eq!((&expired.key, &expired.document), (&key, &None));
    let next = expired.revision + 1;
    let removed = within("the removal", fixture.keys.history("/apisix/", next, next)).await.remove(0);
    assert_eq!((removed.key.as_str(), removed.value), (EXTENSION_ENTRY, None));
    assert_eq!(fixture.store.unknown_keys().await.unwrap(), []);
    // The watch goes on, without an event of the entry.
    let again = fixture.write(document.clone(), Precondition::Absent).await.unwrap();
    let event = within("an event", watch.next()).await.unwrap().unwrap();
    assert_eq!((event.revision, event.document.map(|now| now.document)), (again, Some(document)));
}

/// A late removal takes nothing from a document that is there again, nor another entry.
#[tokio::test(flavor = "multi_thread")]
async fn a_late_removal_unprotects_no_document() {
    let mut fixture = SharedCluster::start().await;
    let key = SharedCluster::key();
    let first = fixture.write(SharedCluster::guarded("x"), Precondition::Absent).await.unwrap();
    let remove = async |revision| fixture.store.cluster.remove_extensions(&[(key.clone(), revision)]).await;
    remove(first).await.unwrap();
    assert_eq!(fixture.stored().await.document, SharedCluster::guarded("x"), "it is there");
    fixture.store.commit(delete(&key, Precondition::ModRevision(first))).await.unwrap();
    fixture.write(SharedCluster::guarded("y"), Precondition::Absent).await.unwrap();
    remove(first).await.unwrap();
    assert_eq!(fixture.stored().await.document, SharedCluster::guarded("y"), "it is there again");
    fixture.keys.delete(ROUTE).await;
    remove(first).await.unwrap();
    let entry = fixture.keys.get(EXTENSION_ENTRY).await.unwrap();
    fixture.store.cluster.remove_extensions(&[(key.clone(), entry.modified)]).await.unwrap();
    assert!(fixture.keys.get(EXTENSION_ENTRY).await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn extension_entries_are_watched_and_compared() {
    let mut fixture = SharedCluster::start().await;
    let committed = fixture.write(SharedCluster::guarded("x"), Precondition::Absent).await.unwrap();
    let mut watch = flatten(fixture.store.watch(committed));
    let other = json!({"client_identity": {"allow": [{"dns": "c.d"}]}});
    let edited = fixture.keys.put(EXTENSION_ENTRY, other.to_string()).await;
    let stored = fixture.stored().await;
    assert_eq!(
        (&stored.document["client_identity"], stored.mod_revision),
        (&other["client_identity"], edited)
    );
    let event = within("an event", watch.next()).await.unwrap().unwrap();
    assert_eq!((event.revision, event.document), (edited, Some(stored)));
    // A writer that has not seen the new entry gets a conflict.
    assert_eq!(
        fixture.write(json!({}), Precondition::ModRevision(committed)).await,
        Err(conflict(&SharedCluster::key()))
    );
    let own_revision =
        fixture.write(SharedCluster::guarded("y"), Precondition::ModRevision(edited)).await.unwrap();
    assert_eq!(within("an event", watch.next()).await.unwrap().unwrap().revision, own_revision);
    // Deleting the entry is an event, too. An unreadable entry never means "no extension fields".
    let removed = fixture.keys.delete(EXTENSION_ENTRY).await;
    let event = within("an event", watch.next()).await.unwrap().unwrap();
    assert_eq!(event.revision, removed);
    assert_eq!(event.document.unwrap().document.get("client_identity"), None);
    let broken = fixture.keys.put(EXTENSION_ENTRY, "{").await;
    let event = within("an event", watch.next()).await.unwrap().unwrap();
    assert_eq!(event.revision, broken);
    assert!(event.document.unwrap().document["client_identity"].is_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn inline_extension_fields_are_read_and_split() {
    let mut fixture = SharedCluster::start().await;
    let before = fixture.keys.put(ROUTE, SharedCluster::guarded("x").to_string()).await;
    let stored = fixture.stored().await;
    assert_eq!((&stored.document, stored.stale_extensions), (&SharedCluster::guarded("x"), false));
    fixture.write(SharedCluster::guarded("y"), Precondition::ModRevision(before)).await.unwrap();
    assert_eq!(fixture.keys.get(ROUTE).await.unwrap().json().get("client_identity"), None);
    assert_eq!(fixture.stored().await.document, SharedCluster::guarded("y"));
    // A program that knows the field wrote it into the document itself: the newer value wins.
    let mut inline = SharedCluster::guarded("y");
    inline["client_identity"] = json!({"allow": [{"dns": "c.d"}]});
    fixture.keys.put(ROUTE, inline.to_string()).await;
    assert_eq!(fixture.stored().await.document, inline);
}

/// A watch from an older revision yields the extension fields of that time.
#[tokio::test(flavor = "multi_thread")]
async fn a_watch_starts_with_its_revisions_extension_fields() {
    let mut fixture = SharedCluster::start().await;
    let committed = fixture.write(SharedCluster::guarded("x"), Precondition::Absent).await.unwrap();
    fixture.keys.put(ROUTE, json!({"uri": "/a", "host": "y"}).to_string()).await;
    let open = fixture.write(json!({"uri": "/a", "host": "z"}), Precondition::Unconditional).await.unwrap();
    let mut watch = flatten(fixture.store.watch(committed));
    let first = within("an event", watch.next()).await.unwrap().unwrap();
    assert_eq!(first.document.unwrap().document, SharedCluster::guarded("y"));
    let second = within("an event", watch.next()).await.unwrap().unwrap();
    assert_eq!(
        (second.revision, second.document.unwrap().document),
        (open, json!({"uri": "/a", "host": "z"}))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_expires_with_its_process() {
    let server = Server::plain().await;
    let (one, other) = (open(&[server.url()]).await, open(&[server.url()]).await);
    let (own_revision, other_revision) = (one.reports().unwrap(), other.reports().unwrap());
    assert!(own_revision.ttl() >= Duration::from_secs(20), "as long as it may serve nodes");
    assert!(own_revision.others().await.unwrap().is_empty());
    let before = one.load().await.unwrap().items;
    let mut watch = one.watch(one.load().await.unwrap().revision);
    for text in ["first", "second"] {
        other_revision.write(text.to_owned(), "names".to_owned()).await.unwrap();
        let read: Vec<_> =
            own_revision.others().await.unwrap().into_iter().filter_map(|entry| entry.text).collect();
        assert_eq!((read, other_revision.others().await.unwrap().len()), (vec![text.to_owned()], 0));
    }
    assert_eq!(one.load().await.unwrap().items, before, "it is no document");
    assert!(watch.next().now_or_never().is_none(), "no watch tells of it");
    assert!(one.unknown_keys().await.unwrap().is_empty());
    let entries = async || server.keys().await.with_prefix("/apisix/countersign/control_planes/").await;
    let entry = entries().await.pop().unwrap();
    assert_ne!(entry.lease, 0, "a process that dies takes it along");
    // The lease is lost, as after a long partition: the next write gets a new one.
    server.ctl(&["lease", "revoke", &format!("{:x}", entry.lease)]).await;
    assert!(entries().await.is_empty());
    let silent = own_revision.others().await.unwrap().pop().unwrap();
    assert_eq!((silent.text, silent.nodes.as_deref()), (None, Some("names")), "it went without a word");
    other_revision.write("third".to_owned(), "names".to_owned()).await.unwrap();
    assert_ne!(entries().await.pop().unwrap().lease, entry.lease);
    other_revision.withdraw().await.unwrap();
    assert!(entries().await.is_empty() && own_revision.others().await.unwrap().is_empty());
}

/// Fresh CAs, and a directory with the CA certificate of the servers.
pub(super) struct TestPki {
    directory: TempDir,
    pub(super) authorities: Authorities,
}

impl TestPki {
    pub(super) fn new() -> Self {
        let (directory, authorities) = (tempfile::tempdir().expect("a directory"), Authorities::generate());
        let pki = Self { directory, authorities };
        pki.write("ca.crt", pki.authorities.servers.certificate_pem());
        pki
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(super) fn write(&self, name: &str, text: &str) -> PathBuf {
        fs::write(self.path(name), text).expect("a file can be written");
        self.path(name)
    }

    /// The CA certificate of the servers.
    pub(super) fn ca_file(&self) -> PathBuf {
        self.path("ca.crt")
    }

    /// Writes `name.crt` and `name.key`.
    pub(super) fn pair(&self, name: &str, credential: &Credential) -> (PathBuf, PathBuf) {
        let cert = self.write(&format!("{name}.crt"), &credential.certificate_pem);
        (cert, self.write(&format!("{name}.key"), &credential.key_pem))
    }

    /// A client certificate that an etcd with these CAs accepts.
    pub(super) fn client(&self) -> (PathBuf, PathBuf) {
        self.pair("client", &self.authorities.clients.client("controlplane"))
    }

    /// A client certificate that expired yesterday.
    pub(super) fn expired_client(&self) -> (PathBuf, PathBuf) {
        self.pair("expired", &self.authorities.clients.expired_client("controlplane"))
    }
}
