//! Set-up for the push tests and bench: a folder with a push PKI and a store, the real publisher,
//! real push clients, and a relay that counts bytes and cuts connections.
//!
//! No test waits for time: the fleet and the client's status report changes.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use controlplane::testing::publish::{self, PublishConfig, Publisher};
use controlplane::testing::store::{EmbeddedStore, Mutation, Precondition, Store};
use dataplane::testing::lifecycle::handles::{SnapshotHandle, TicketRingHandle};
use dataplane::testing::lifecycle::{ShutdownStage, ShutdownWatch};
use dataplane::testing::push_client::{PushClientError, PushClientHandle, PushClientOptions, SyncStatus};
use dataplane::testing::tls::record::RecordLayerKind;
use dataplane::testing::tls::site_config;
use dataplane::testing::upstream::{ClientTlsConfigs, TrustDefaults};
use model::{Id, Key, Kind, Snapshot};
use pki::ca::{Authority, AuthoritySpec, LeafSpec};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A folder with a push PKI, a store, and what runs on them.
pub(crate) struct World {
    pub folder: tempfile::TempDir,
    pub ca: Authority,
    pub store: Arc<dyn Store>,
    pub keyring: Arc<pki::Keyring>,
    /// For the control planes that it starts.
    pub ticket_lifetime: Option<Duration>,
}

pub(crate) struct ControlPlane {
    pub publish: Publisher,
    pub stop: watch::Sender<bool>,
}

pub(crate) struct Node {
    pub push_client: PushClientHandle,
    pub snapshot_handle: Arc<SnapshotHandle>,
    pub secrets: Arc<TicketRingHandle>,
    pub status: Arc<SyncStatus>,
    /// The stage of its shutdown.
    pub stage: watch::Sender<ShutdownStage>,
    reload: watch::Sender<u64>,
}

impl World {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(EmbeddedStore::open(&folder.path().join("store.redb")).unwrap());
        let ca = Authority::root(&AuthoritySpec::new("Push CA")).unwrap();
        let keyring = Arc::new(pki::Keyring::empty());
        let world = Self { folder, ca, store, keyring, ticket_lifetime: None };
        world.write("ca.crt", &world.ca.certificate_pem());
        world.credential("control", &world.ca, &LeafSpec::server("controlplane"));
        world.credential("node-1", &world.ca, &LeafSpec::client("node-1").dns("node-1"));
        world
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    pub(crate) fn credential(&self, name: &str, ca: &Authority, spec: &LeafSpec) {
        let issued = ca.issue(spec).unwrap();
        self.write(&format!("{name}.crt"), &issued.chain_pem);
        self.write(&format!("{name}.key"), &issued.key_pem);
    }

    pub(crate) fn push_settings(&self) -> conf::PushSettings {
        conf::PushSettings {
            listen: ([127, 0, 0, 1], 0).into(),
            cert: self.path("control.crt"),
            key: self.path("control.key"),
            ca: self.path("ca.crt"),
            allowed_names: Vec::new(),
        }
    }

    pub(crate) async fn control(&self) -> ControlPlane {
        self.control_with(self.push_settings()).await
    }

    pub(crate) async fn control_with(&self, settings: conf::PushSettings) -> ControlPlane {
        self.start(Arc::clone(&self.store), settings).await
    }

    /// One more control plane over this view of the store.
    pub(crate) async fn control_over(&self, store: Arc<dyn Store>) -> ControlPlane {
        self.start(store, self.push_settings()).await
    }

    async fn start(&self, store: Arc<dyn Store>, settings: conf::PushSettings) -> ControlPlane {
        let (stop, shutdown) = watch::channel(false);
        let input = PublishConfig {
            store,
            keyring: Arc::clone(&self.keyring),
            keyring_setting: "countersign.keyring_file",
            accept_unreadable_keys: false,
            settings,
            listener: None,
            generations: process::handover::Generations::first(),
            server_name: "controlplane".into(),
            ticket_lifetime: self.ticket_lifetime,
            version: "test",
            connections_max: 1000,
            heartbeats: Arc::default(),
            shutdown,
        };
        ControlPlane { publish: publish::start(input).await.unwrap(), stop }
    }

    /// A second node beside `node-1`, with its own certificate.
    pub(crate) fn second(&self, control: std::net::SocketAddr) -> Node {
        self.credential("node-2", &self.ca, &LeafSpec::client("node-2").dns("node-2"));
        let mut settings = self.node_settings(control);
        settings.name = "node-2".into();
        settings.cert = self.path("node-2.crt");
        settings.key = self.path("node-2.key");
        settings.last_good = self.path("node-2/last_good");
        node(settings).unwrap()
    }

    pub(crate) fn node_settings(&self, control: std::net::SocketAddr) -> conf::NodeSettings {
        conf::NodeSettings {
            name: "node-1".into(),
            control_planes: vec![control.to_string()],
            server_name: "controlplane".into(),
            cert: self.path("node-1.crt"),
            key: self.path("node-1.key"),
            ca: self.path("ca.crt"),
            last_good_max_age: Duration::ZERO,
            wait_for_control_plane: Duration::ZERO,
            last_good: self.path("kept/last_good.snapshot"),
        }
    }

    pub(crate) fn node(&self, control: std::net::SocketAddr) -> Node {
        node(self.node_settings(control)).unwrap()
    }

    pub(crate) async fn put(&self, kind: Kind, id: &str, document: Value) -> u64 {
        let write = Mutation::Put {
            key: key(kind, id),
            document,
            precondition: Precondition::Unconditional,
            ttl: None,
        };
        self.store.commit(write.into()).await.unwrap().revision
    }

    pub(crate) async fn delete(&self, kind: Kind, id: &str) -> u64 {
        let write = Mutation::Delete { key: key(kind, id), precondition: Precondition::Unconditional };
        self.store.commit(write.into()).await.unwrap().revision
    }

    pub(crate) async fn put_upstreams(&self, count: usize) -> u64 {
        let mut revision = 0;
        for nth in 0..count {
            revision = self.put(Kind::Upstream, &nth.to_string(), upstream(nth)).await;
        }
        revision
    }
}

impl ControlPlane {
    pub(crate) async fn wait_acknowledged(&self, revision: u64) {
        let waited = self.publish.fleet.wait_acknowledged(revision, PATIENCE).await;
        waited.unwrap_or_else(|view| panic!("revision {revision} was not acknowledged: {view:?}"));
    }

    /// Waits until its current snapshot has this revision.
    pub(crate) async fn wait_for_revision(&self, revision: u64) {
        let mut latest = self.publish.latest.clone();
        let known = latest.wait_for(|snapshot| snapshot.revision() == revision);
        tokio::time::timeout(PATIENCE, known).await.expect("the revision was not seen").unwrap();
    }

    pub(crate) fn address(&self) -> std::net::SocketAddr {
        self.publish.push_addr
    }

    pub(crate) async fn stop(self) {
        self.stop.send_replace(true);
        self.publish.done.await.unwrap();
    }
}

pub(crate) fn node(settings: conf::NodeSettings) -> Result<Node, PushClientError> {
    let snapshot_handle = Arc::new(SnapshotHandle::new(Arc::new(Snapshot::empty())));
    let status = Arc::new(SyncStatus::default());
    let secrets = Arc::new(TicketRingHandle::default());
    let (stage, stages) = ShutdownWatch::new();
    let (reload, reloads) = watch::channel(0);
    let provider = Arc::new(site_config::crypto_provider());
    let upstream_tls = ClientTlsConfigs::new(provider, TrustDefaults::default(), RecordLayerKind::Rustls);
    let input = PushClientOptions {
        traces: None,
        upstream_tls: Arc::new(upstream_tls),
        heartbeats: Arc::default(),
        settings,
        accept_new_store: false,
        version: "test",
        snapshot: Arc::clone(&snapshot_handle),
        ticket_ring: Some(Arc::clone(&secrets)),
        status: Arc::clone(&status),
        shutdown: stages,
        reload: reloads,
        saving_paused: false,
    };
    Ok(Node {
        push_client: dataplane::testing::push_client::start(input)?,
        snapshot_handle,
        secrets,
        status,
        stage,
        reload,
    })
}

impl Node {
    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshot_handle.load())
    }

    pub(crate) async fn eventually<T>(&self, what: &str, look: impl FnMut() -> Option<T>) -> T {
        eventually(what, self.status.changes(), look).await
    }

    /// As SIGHUP.
    pub(crate) fn reload(&self) {
        self.reload.send_modify(|count| *count += 1);
    }

    /// Waits until its last problem contains `part`.
    pub(crate) async fn wait_for_problem(&self, part: &str) {
        let look = || self.status.last_error().filter(|error| error.contains(part));
        self.eventually(&format!("a problem with {part:?}"), look).await;
    }

    /// On a blocking thread: stopping waits, and the test's runtime must go on.
    pub(crate) async fn stop(self) {
        tokio::task::spawn_blocking(move || self.push_client.stop()).await.unwrap();
    }
}

pub(crate) fn key(kind: Kind, id: &str) -> Key {
    Key::new(kind, Id::parse(id).unwrap())
}

/// The port of the only node of [`upstream`].
pub(crate) fn upstream_port(nth: usize) -> u16 {
    1 + u16::try_from(nth % 60000).unwrap()
}

/// Which [`upstream`] has this id.
pub(crate) fn port(snapshot: &Snapshot, id: &str) -> Option<u16> {
    snapshot.upstream(&Id::parse(id).unwrap())?.nodes[0].port
}

pub(crate) fn upstream(nth: usize) -> Value {
    json!({"type": "roundrobin", "nodes": {format!("10.0.0.1:{}", upstream_port(nth)): 1}, "upstream_host": "a-rather-long-name.example", "pass_host": "rewrite"})
}

pub(crate) fn ssl(ca: &Authority, name: &str) -> Value {
    let issued = ca.issue(&LeafSpec::server(name)).unwrap();
    json!({"cert": issued.chain_pem, "key": issued.key_pem.as_str(), "snis": [name]})
}

/// Evaluates `look` after each change until it is `Some`.
pub(crate) async fn eventually<T>(
    what: &str,
    mut changes: watch::Receiver<u64>,
    mut look: impl FnMut() -> Option<T>,
) -> T {
    let looking = async {
        loop {
            changes.borrow_and_update();
            if let Some(found) = look() {
                return found;
            }
            changes.changed().await.unwrap();
        }
    };
    tokio::time::timeout(PATIENCE, looking).await.unwrap_or_else(|_| panic!("{what} did not happen"))
}

/// A TCP relay that counts the bytes towards the node and can cut every connection.
pub(crate) struct Relay {
    pub address: std::net::SocketAddr,
    pub to_node: Arc<AtomicU64>,
    pub cut: watch::Sender<u64>,
}

impl Relay {
    pub(crate) async fn to(target: std::net::SocketAddr) -> Self {
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

    pub(crate) fn cut(&self) {
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
