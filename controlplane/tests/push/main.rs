//! Both ends of the push in one process: the real publisher over the real embedded store, the real agent, real mutual TLS.
//!
//! A relay between them counts bytes and cuts connections. Nothing waits for time to pass: the fleet says when every node has
//! acknowledged a revision, and `eventually` looks again until a deadline that only a failure reaches.

// Helpers beside the tests may assert as the tests do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use controlplane::publish::{self, Publish, PublishInput};
use controlplane::store::{Embedded, Expect, Store, Write};
use dataplane::agent::{Agent, AgentError, AgentInput, AgentStatus, Cell, Source};
use model::{Id, Key, Kind, Name, Snapshot};
use pki::mint::{Authority, AuthoritySpec, LeafSpec};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

const PATIENCE: Duration = Duration::from_secs(20);

/// A folder with a push PKI, a store, and what runs on them.
struct World {
    folder: tempfile::TempDir,
    ca: Authority,
    store: Arc<dyn Store>,
}

struct Control {
    publish: Publish,
    stop: watch::Sender<bool>,
}

struct Node {
    agent: Agent,
    cell: Arc<Cell>,
    status: Arc<AgentStatus>,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(Embedded::open(&folder.path().join("store.redb")).unwrap());
        let world = Self { folder, ca: Authority::root(&AuthoritySpec::new("Push CA")).unwrap(), store };
        world.write("ca.crt", &world.ca.certificate_pem());
        world.credential("control", &world.ca, &LeafSpec::server("controlplane"));
        world.credential("node-1", &world.ca, &LeafSpec::client("node-1").dns("node-1"));
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    fn credential(&self, name: &str, ca: &Authority, spec: &LeafSpec) {
        let minted = ca.issue(spec).unwrap();
        self.write(&format!("{name}.crt"), &minted.chain_pem);
        self.write(&format!("{name}.key"), &minted.key_pem);
    }

    fn push_settings(&self) -> conf::Push {
        conf::Push {
            listen: ([127, 0, 0, 1], 0).into(),
            cert: self.path("control.crt"),
            key: self.path("control.key"),
            ca: self.path("ca.crt"),
            allowed_names: Vec::new(),
        }
    }

    async fn control(&self) -> Control {
        self.control_with(self.push_settings()).await
    }

    async fn control_with(&self, settings: conf::Push) -> Control {
        let (stop, shutdown) = watch::channel(false);
        let input = PublishInput {
            store: Arc::clone(&self.store),
            keyring: Arc::new(pki::Keyring::none()),
            settings,
            version: "test",
            shutdown,
        };
        Control { publish: publish::start(input).await.unwrap(), stop }
    }

    fn node_settings(&self, control: std::net::SocketAddr) -> conf::Node {
        conf::Node {
            name: "node-1".into(),
            control_planes: vec![control.to_string()],
            server_name: "controlplane".into(),
            cert: self.path("node-1.crt"),
            key: self.path("node-1.key"),
            ca: self.path("ca.crt"),
            last_good: self.path("kept/last_good.snapshot"),
        }
    }

    fn node(&self, control: std::net::SocketAddr) -> Node {
        node(self.node_settings(control)).unwrap()
    }

    async fn put(&self, kind: Kind, id: &str, document: Value) -> u64 {
        let write = Write::Put { key: key(kind, id), document, expect: Expect::Anything };
        self.store.commit(write).await.unwrap().revision
    }

    async fn delete(&self, kind: Kind, id: &str) -> u64 {
        let write = Write::Delete { key: key(kind, id), expect: Expect::Anything };
        self.store.commit(write).await.unwrap().revision
    }

    async fn put_upstreams(&self, count: usize) -> u64 {
        let mut revision = 0;
        for nth in 0..count {
            revision = self.put(Kind::Upstream, &nth.to_string(), upstream(nth)).await;
        }
        revision
    }
}

impl Control {
    async fn reached(&self, revision: u64) {
        let waited = self.publish.fleet.wait_acknowledged(revision, PATIENCE).await;
        waited.unwrap_or_else(|view| panic!("revision {revision} was not acknowledged: {view:?}"));
    }

    fn address(&self) -> std::net::SocketAddr {
        self.publish.push_addr
    }

    async fn stop(self) {
        self.stop.send_replace(true);
        self.publish.done.await.unwrap();
    }
}

fn node(settings: conf::Node) -> Result<Node, AgentError> {
    let cell = Arc::new(Cell::new(Arc::new(Snapshot::empty())));
    let status = Arc::new(AgentStatus::default());
    let input =
        AgentInput { settings, version: "test", cell: Arc::clone(&cell), status: Arc::clone(&status) };
    Ok(Node { agent: dataplane::agent::start(input)?, cell, status })
}

impl Node {
    fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.cell.load())
    }

    /// On a thread of its own: stopping waits, and a test's runtime must go on meanwhile.
    async fn stop(self) {
        tokio::task::spawn_blocking(move || self.agent.stop()).await.unwrap();
    }
}

fn key(kind: Kind, id: &str) -> Key {
    Key::new(kind, Id::parse(id).unwrap())
}

fn upstream(nth: usize) -> Value {
    json!({"type": "roundrobin", "nodes": {format!("10.0.0.1:{}", 1 + nth % 60000): 1}, "upstream_host": "a-rather-long-name.example", "pass_host": "rewrite"})
}

fn ssl(ca: &Authority, name: &str) -> Value {
    let minted = ca.issue(&LeafSpec::server(name)).unwrap();
    json!({"cert": minted.chain_pem, "key": minted.key_pem.as_str(), "snis": [name]})
}

async fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let looking = async {
        loop {
            if let Some(found) = look() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, looking).await.unwrap_or_else(|_| panic!("{what} did not happen"))
}

async fn problem_of(node: &Node, part: &str) -> String {
    eventually(&format!("a problem with {part:?}"), || {
        node.status.last_problem().filter(|problem| problem.contains(part)).map(|problem| problem.to_string())
    })
    .await
}

/// Passes bytes on, counts those towards the node, and can cut every connection.
struct Relay {
    address: std::net::SocketAddr,
    to_node: Arc<AtomicU64>,
    cut: watch::Sender<u64>,
}

impl Relay {
    async fn to(target: std::net::SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (to_node, (cut, cutting)) = (Arc::new(AtomicU64::new(0)), watch::channel(0));
        let counter = Arc::clone(&to_node);
        tokio::spawn(async move {
            while let Ok((from_node, _)) = listener.accept().await {
                let (counter, mut cutting) = (Arc::clone(&counter), cutting.clone());
                cutting.mark_unchanged();
                tokio::spawn(async move {
                    let Ok(to_control) = TcpStream::connect(target).await else { return };
                    tokio::select! {
                        () = pass(from_node, to_control, counter) => {}
                        _ = cutting.changed() => {}
                    }
                });
            }
        });
        Self { address, to_node, cut }
    }

    fn cut(&self) {
        self.cut.send_modify(|count| *count += 1);
    }
}

async fn pass(mut node: TcpStream, mut control: TcpStream, counter: Arc<AtomicU64>) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (mut from_node, mut to_node) = node.split();
    let (mut from_control, mut to_control) = control.split();
    let counted = async {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(read) = from_control.read(&mut buffer).await {
            if read == 0 || to_node.write_all(&buffer[..read]).await.is_err() {
                return;
            }
            counter.fetch_add(read as u64, Ordering::Relaxed);
        }
    };
    tokio::select! {
        () = counted => {}
        _ = tokio::io::copy(&mut from_node, &mut to_control) => {}
    }
}

#[tokio::test]
async fn first_sync_then_each_change_then_a_removal() {
    let world = World::new();
    let sites = Authority::root(&AuthoritySpec::new("Sites")).unwrap();
    world.put(Kind::Ssl, "1", ssl(&sites, "one.test")).await;
    let revision = world.put(Kind::Upstream, "u", upstream(1)).await;
    let control = world.control().await;
    let node = world.node(control.address());
    control.reached(revision).await;
    assert_eq!(node.status.source(), Source::ControlPlane);
    assert!(node.snapshot().site(&Name::from_sni("one.test").unwrap()).is_some());
    assert_eq!(node.snapshot().revision(), revision);

    let revision = world.put(Kind::Ssl, "2", ssl(&sites, "two.test")).await;
    control.reached(revision).await;
    assert!(node.snapshot().site(&Name::from_sni("two.test").unwrap()).is_some());
    let revision = world.delete(Kind::Ssl, "1").await;
    control.reached(revision).await;
    assert!(node.snapshot().site(&Name::from_sni("one.test").unwrap()).is_none());

    let view = control.publish.fleet.view();
    let row = &view.list[0];
    assert_eq!((row.name.as_str(), row.connected, row.acknowledged, row.lag), ("node-1", true, revision, 0));
    node.stop().await;
    eventually("the node's leaving", || (!control.publish.fleet.view().list[0].connected).then_some(()))
        .await;
    control.stop().await;
}

#[tokio::test]
async fn an_empty_store_makes_a_node_ready() {
    let world = World::new();
    let control = world.control().await;
    let node = world.node(control.address());
    control.reached(0).await;
    assert!(node.status.ready() && node.snapshot().is_empty());
    node.stop().await;
    control.stop().await;
}

#[tokio::test]
async fn a_reconnect_sends_only_the_difference() {
    let world = World::new();
    let revision = world.put_upstreams(1500).await;
    let control = world.control().await;
    let relay = Relay::to(control.address()).await;
    let node = world.node(relay.address);
    control.reached(revision).await;
    let first = relay.to_node.load(Ordering::Relaxed);
    assert!(first > 60_000, "{first} bytes");

    relay.cut();
    let revision = world.put(Kind::Upstream, "7", upstream(70)).await;
    control.reached(revision).await;
    let again = relay.to_node.load(Ordering::Relaxed) - first;
    assert!(again < 10_000, "{again} bytes for one change after {first} for all");
    assert_eq!(node.snapshot().len(Kind::Upstream), 1500);

    // The same over a restart of the node: the last good file says what is held, and whose revisions these are.
    let before = relay.to_node.load(Ordering::Relaxed);
    node.stop().await;
    let node = world.node(relay.address);
    assert_eq!((node.status.source(), node.snapshot().revision()), (Source::LastGood, revision));
    let revision = world.put(Kind::Upstream, "8", upstream(80)).await;
    eventually("the new revision", || (node.snapshot().revision() == revision).then_some(())).await;
    let again = relay.to_node.load(Ordering::Relaxed) - before;
    assert!(again < 10_000, "{again} bytes after a restart");
    node.stop().await;
    control.stop().await;
}

#[tokio::test]
async fn a_node_serves_its_last_good_snapshot_without_a_control_plane() {
    let world = World::new();
    let sites = Authority::root(&AuthoritySpec::new("Sites")).unwrap();
    let revision = world.put(Kind::Ssl, "1", ssl(&sites, "one.test")).await;
    let control = world.control().await;
    let address = control.address();
    let node = world.node(address);
    control.reached(revision).await;
    node.stop().await;
    control.stop().await;

    let file = world.path("kept/last_good.snapshot");
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let node = world.node(address);
    assert!(node.snapshot().site(&Name::from_sni("one.test").unwrap()).is_some());
    assert!(node.status.ready());
    problem_of(&node, "nothing listens there").await;
    node.stop().await;
}

#[tokio::test]
async fn a_damaged_last_good_file_is_a_warning_and_is_mended() {
    let world = World::new();
    let revision = world.put_upstreams(3).await;
    let control = world.control().await;
    let node = world.node(control.address());
    control.reached(revision).await;
    node.stop().await;
    let file = world.path("kept/last_good.snapshot");
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, bytes).unwrap();

    let node = world.node("127.0.0.1:1".parse().unwrap());
    assert!(node.snapshot().is_empty() && !node.status.ready());
    node.stop().await;
    let node = world.node(control.address());
    eventually("the first sync", || (node.snapshot().len(Kind::Upstream) == 3).then_some(())).await;
    node.stop().await;
    let node = world.node("127.0.0.1:1".parse().unwrap());
    assert_eq!(node.snapshot().len(Kind::Upstream), 3);
    node.stop().await;
    control.stop().await;
}

#[tokio::test]
async fn another_store_replaces_everything() {
    let (one, mut other) = (World::new(), World::new());
    other.put(Kind::Upstream, "x", upstream(1)).await;
    one.put_upstreams(5).await;
    let revision = one.put(Kind::Upstream, "x", upstream(2)).await;
    let control = one.control().await;
    let node = one.node(control.address());
    control.reached(revision).await;
    node.stop().await;
    control.stop().await;

    other.ca = Authority::from_pem(&one.ca.certificate_pem(), &one.ca.key_pem()).unwrap();
    for name in ["ca.crt", "control.crt", "control.key"] {
        std::fs::copy(one.path(name), other.path(name)).unwrap();
    }
    let control = other.control().await;
    let node = one.node(control.address());
    control.reached(1).await;
    let snapshot = node.snapshot();
    assert_eq!((snapshot.len(Kind::Upstream), snapshot.version(&key(Kind::Upstream, "x"))), (1, Some(1)));
    node.stop().await;
    control.stop().await;
}

#[tokio::test]
async fn wrong_certificates_are_refused_and_told() {
    let world = World::new();
    let control = world.control().await;
    let foreign = Authority::root(&AuthoritySpec::new("Foreign CA")).unwrap();
    world.write("foreign.crt", &foreign.certificate_pem());
    world.credential("foreign-node", &foreign, &LeafSpec::client("node-1").dns("node-1"));
    world.credential("expired", &world.ca, &LeafSpec::client("node-1").dns("node-1").between(at(1), at(2)));

    let mut settings = world.node_settings(control.address());
    settings.ca = world.path("foreign.crt");
    let distrusting = node(settings).unwrap();
    problem_of(&distrusting, "is not from the CA in").await;
    distrusting.stop().await;

    let mut settings = world.node_settings(control.address());
    settings.server_name = "elsewhere.example".into();
    let misled = node(settings).unwrap();
    problem_of(&misled, "does not carry the name \"elsewhere.example\"").await;
    misled.stop().await;

    for credential in ["foreign-node", "expired"] {
        let mut settings = world.node_settings(control.address());
        settings.cert = world.path(&format!("{credential}.crt"));
        settings.key = world.path(&format!("{credential}.key"));
        let refused = node(settings).unwrap();
        problem_of(&refused, "it refuses our certificate").await;
        assert!(!refused.status.connected());
        refused.stop().await;
    }
    assert_eq!(control.publish.fleet.view().total, 0, "none of them got in");
    control.stop().await;
}

fn at(seconds: u64) -> rustls_pki_types::UnixTime {
    rustls_pki_types::UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}

#[tokio::test]
async fn a_node_cannot_take_another_name() {
    let world = World::new();
    let control = world.control().await;
    let mut settings = world.node_settings(control.address());
    settings.name = "node-2".into();
    let liar = node(settings).unwrap();
    problem_of(&liar, "calls itself \"node-2\"").await;
    liar.stop().await;
    control.stop().await;

    let mut settings = world.push_settings();
    settings.allowed_names = vec!["fleet.example".into()];
    let control = world.control_with(settings).await;
    let outsider = world.node(control.address());
    problem_of(&outsider, "allowed_names").await;
    outsider.stop().await;
    world.credential("node-1", &world.ca, &LeafSpec::client("node-1").dns("node-1").dns("fleet.example"));
    let member = world.node(control.address());
    control.reached(0).await;
    member.stop().await;
    control.stop().await;
}

#[tokio::test]
async fn files_that_do_not_fit_are_told_at_start() {
    let world = World::new();
    world.credential("other", &world.ca, &LeafSpec::client("other"));
    let address = "127.0.0.1:1".parse().unwrap();
    let mut settings = world.node_settings(address);
    settings.key = world.path("other.key");
    let told = node(settings).err().unwrap().to_string();
    assert!(told.contains("countersign.node.key") && told.contains("does not belong"), "{told}");

    let mut settings = world.node_settings(address);
    settings.cert = world.path("nowhere.crt");
    let told = node(settings).err().unwrap().to_string();
    assert!(told.contains("countersign.node.cert") && told.contains("nowhere.crt"), "{told}");

    let mut settings = world.push_settings();
    settings.ca = world.path("control.key");
    let (_stop, shutdown) = watch::channel(false);
    let (store, keyring) = (Arc::clone(&world.store), Arc::new(pki::Keyring::none()));
    let input = PublishInput { store, keyring, settings, version: "test", shutdown };
    let told = publish::start(input).await.err().unwrap().to_string();
    assert!(told.contains("countersign.push.ca") && told.contains("no certificate"), "{told}");
}

#[tokio::test]
async fn a_stored_document_that_does_not_check_keeps_the_value_before() {
    let world = World::new();
    world.put(Kind::Upstream, "u", upstream(1)).await;
    let control = world.control().await;
    let node = world.node(control.address());
    let broken = world.put(Kind::Upstream, "u", json!({"nodes": "nonsense"})).await;
    control.reached(broken).await;
    assert_eq!(node.snapshot().version(&key(Kind::Upstream, "u")), Some(1));
    let mended = world.put(Kind::Upstream, "u", upstream(2)).await;
    control.reached(mended).await;
    assert_eq!(node.snapshot().version(&key(Kind::Upstream, "u")), Some(mended));
    node.stop().await;
    control.stop().await;
}

mod scripted;

/// Not a test of correctness: prints how long a first sync of 10,000 ssls takes. Run it with `--release -- --ignored --nocapture`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn ten_thousand_ssls() {
    let world = World::new();
    let sites = Authority::root(&AuthoritySpec::new("Sites")).unwrap();
    let mut revision = 0;
    for nth in 0..10_000 {
        revision = world.put(Kind::Ssl, &nth.to_string(), ssl(&sites, &format!("s{nth}.test"))).await;
    }
    let started = std::time::Instant::now();
    let control = world.control().await;
    println!("control plane loaded after {:?}", started.elapsed());
    let started = std::time::Instant::now();
    let node = world.node(control.address());
    control.reached(revision).await;
    println!("10,000 ssls live {:?} after the node's start", started.elapsed());
    let changed = ssl(&sites, "s5.test");
    let started = std::time::Instant::now();
    let revision = world.put(Kind::Ssl, "5", changed).await;
    let committed = started.elapsed();
    control.reached(revision).await;
    println!(
        "one change live {:?} after it was sent, {:?} after it was committed",
        started.elapsed(),
        started.elapsed() - committed
    );
    let started = std::time::Instant::now();
    node.stop().await;
    println!("stopped, the newest snapshot on disk, after {:?}", started.elapsed());
    let size = std::fs::metadata(world.path("kept/last_good.snapshot")).unwrap().len();
    let started = std::time::Instant::now();
    let node = world.node("127.0.0.1:1".parse().unwrap());
    assert_eq!(node.snapshot().len(Kind::Ssl), 10_000);
    println!("started from the last good file ({size} bytes) in {:?}", started.elapsed());
    node.stop().await;
    control.stop().await;
}
