//! One test's whole installation: certificates, a temporary folder, a control plane and its data planes.
//!
//! Everything listens where the kernel says (port 0), so any number of worlds run side by side; a restart takes the
//! same ports again. Invariant: nothing waits for time to pass, only for events: the ready line, and the Admin API's word
//! that every node acknowledged a revision. When a test fails the logs are printed with it.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use http::StatusCode;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::admin::Admin;
use crate::caller::{Caller, Reply, Session};
use crate::credentials::{Credential, Credentials, certificates};
use crate::documents::{protected, site};
use crate::ports::Reservation;
use crate::process::{Launch, Log, Process};
use crate::settings::{default_settings, merge};

/// What a world is made of, before it runs.
pub struct WorldBuilder {
    settings: Value,
    nodes: Vec<String>,
    control: bool,
    control_environment: Vec<(String, String)>,
    node_environment: Vec<(String, String)>,
}

impl WorldBuilder {
    /// Merges `more` over the settings of both planes: objects merge, everything else replaces.
    pub fn settings(mut self, more: Value) -> Self {
        merge(&mut self.settings, more);
        self
    }

    /// Starts these data planes instead of the one named `node-1`.
    pub fn nodes(mut self, names: &[&str]) -> Self {
        self.nodes = names.iter().map(|name| (*name).to_owned()).collect();
        self
    }

    /// Sets an environment variable of the control plane.
    pub fn control_environment(mut self, name: &str, value: &str) -> Self {
        self.control_environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sets an environment variable of the data planes.
    pub fn node_environment(mut self, name: &str, value: &str) -> Self {
        self.node_environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Does not start the control plane: its ports are kept, and refuse.
    pub fn without_control(mut self) -> Self {
        self.control = false;
        self
    }

    /// Mints, writes and starts everything, and waits until it is ready.
    pub async fn start(self) -> World {
        let folder =
            tempfile::Builder::new().prefix("countersign-test-").tempdir().expect("a temporary folder");
        let credentials = Credentials::mint();
        let mut world = World {
            folder,
            credentials,
            settings: self.settings,
            control: Plane::new("control"),
            nodes: Vec::new(),
            control_environment: self.control_environment,
            node_environment: self.node_environment,
        };
        world.write_credentials();
        if self.control {
            world.start_control().await;
        } else {
            world.control.reserve(&CONTROL_LISTENERS);
        }
        for name in self.nodes {
            world.add_node(&name).await;
        }
        world
    }
}

/// One program's place in a world, running or not.
struct Plane {
    name: String,
    process: Option<Process>,
    /// The addresses it had when it was first ready: a restart takes them again.
    addresses: Option<Value>,
    /// Held while it is down, so that nobody else gets its ports.
    held: Vec<Reservation>,
    log: Log,
}

impl Plane {
    fn new(name: &str) -> Self {
        Self { name: name.to_owned(), process: None, addresses: None, held: Vec::new(), log: Log::default() }
    }

    /// The n-th address of one kind of listener.
    fn address(&self, listener: &str, index: usize) -> SocketAddr {
        let addresses = self.addresses.as_ref().unwrap_or_else(|| panic!("{} never ran", self.name));
        let value = &addresses[listener];
        let text = value.as_str().or_else(|| value[index].as_str());
        text.and_then(|text| text.parse().ok()).unwrap_or_else(|| {
            panic!("no {listener} address in the ready line of {}: {addresses}", self.name)
        })
    }

    fn known_port(&self, listener: &str) -> u16 {
        if self.addresses.is_some() { self.address(listener, 0).port() } else { 0 }
    }

    fn running(&mut self) -> Process {
        self.process.take().unwrap_or_else(|| panic!("{} is not running", self.name))
    }

    /// After its end: nobody else may take its ports until it is back.
    fn hold(&mut self, listeners: &[&str]) {
        self.held = listeners.iter().map(|listener| Reservation::of(self.address(listener, 0))).collect();
    }

    /// Before its first start: ports that nobody listens at yet.
    fn reserve(&mut self, listeners: &[&str]) {
        self.held = listeners.iter().map(|_| Reservation::any()).collect();
        let addresses = listeners
            .iter()
            .zip(&self.held)
            .map(|(listener, held)| ((*listener).to_owned(), held.address().to_string().into()));
        self.addresses = Some(Value::Object(addresses.collect()));
    }

    fn started(&mut self, process: Process) {
        self.addresses.get_or_insert_with(|| process.ready().clone());
        self.process = Some(process);
        self.held.clear();
    }
}

const CONTROL_LISTENERS: [&str; 2] = ["admin", "push"];
const NODE_LISTENERS: [&str; 3] = ["http", "https", "status"];

/// A running installation.
pub struct World {
    folder: TempDir,
    /// The certificates everything uses.
    pub credentials: Credentials,
    settings: Value,
    control: Plane,
    nodes: Vec<Plane>,
    control_environment: Vec<(String, String)>,
    node_environment: Vec<(String, String)>,
}

impl World {
    /// A control plane and one data plane, `node-1`, with two workers.
    pub async fn start() -> Self {
        Self::builder().start().await
    }

    /// A world to be shaped first.
    pub fn builder() -> WorldBuilder {
        WorldBuilder {
            settings: default_settings(),
            nodes: vec!["node-1".to_owned()],
            control: true,
            control_environment: Vec::new(),
            node_environment: Vec::new(),
        }
    }

    /// Where everything of this world is.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The embedded store's file.
    pub fn store(&self) -> PathBuf {
        self.folder().join("store.redb")
    }

    /// A node's last good snapshot.
    pub fn last_good(&self, node: &str) -> PathBuf {
        self.folder().join(format!("{node}.snapshot"))
    }

    /// What the control plane logged.
    pub fn control_log(&self) -> &Log {
        &self.control.log
    }

    /// What the first node logged.
    pub fn node_log(&self) -> &Log {
        &self.nodes[0].log
    }

    /// The administrator.
    pub fn admin(&self) -> Admin {
        Admin::new(self.control.address("admin", 0), &self.credentials)
    }

    /// Where the Admin API listens.
    pub fn admin_address(&self) -> SocketAddr {
        self.control.address("admin", 0)
    }

    /// Where the push listens.
    pub fn push_address(&self) -> SocketAddr {
        self.control.address("push", 0)
    }

    /// Where the first node serves HTTPS.
    pub fn https(&self) -> SocketAddr {
        self.node_address(0, "https")
    }

    /// Where the first node serves HTTP.
    pub fn http(&self) -> SocketAddr {
        self.node_address(0, "http")
    }

    /// Where the first node takes streams: the n-th address of `stream_proxy.tcp`.
    pub fn stream(&self, index: usize) -> SocketAddr {
        self.nodes[0].address("stream", index)
    }

    /// Where the n-th node listens for `http`, `https` or `status`.
    pub fn node_address(&self, index: usize, listener: &str) -> SocketAddr {
        self.nodes[index].address(listener, 0)
    }

    /// The ready line of the first node's present life.
    pub fn node_ready(&self) -> &Value {
        self.nodes[0].process.as_ref().expect("the node runs").ready()
    }

    /// A GET to the first node's status listener.
    pub async fn status(&self, path: &str) -> Reply {
        let status = self.node_address(0, "status");
        let mut session =
            Session::plain(status, "status").await.unwrap_or_else(|refused| panic!("{refused}"));
        session.get(path).await.unwrap_or_else(|refused| panic!("{path}: {refused}"))
    }

    /// The process id of the first node.
    pub fn node_id(&self) -> u32 {
        self.nodes[0].process.as_ref().expect("the node runs").id()
    }

    /// A number of the first node's `/metrics`, by its name and labels.
    pub async fn metric(&self, name: &str) -> u64 {
        let text = self.status("/metrics").await.text();
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        value.unwrap_or_else(|| panic!("no {name} in {text}"))
    }

    /// A client of the first node's HTTPS that trusts the world's server authority; no certificate yet.
    pub fn caller(&self, host: &str) -> Caller {
        Caller::new(self.https(), host, certificates(self.credentials.servers.certificate_pem()))
    }

    /// A client of the first node's first stream listener.
    pub fn stream_caller(&self, sni: &str) -> Caller {
        Caller::new(self.stream(0), sni, certificates(self.credentials.servers.certificate_pem()))
    }

    /// The same with the good client's certificate.
    pub fn good_caller(&self, host: &str) -> Caller {
        self.caller(host).identity(&self.credentials.client)
    }

    /// A plain connection to the first node's HTTP port.
    pub async fn plain(&self, host: &str) -> Session {
        Session::plain(self.http(), host).await.unwrap_or_else(|refused| panic!("{refused}"))
    }

    /// PUTs each document and waits until every node serves them; gives the last revision.
    pub async fn apply(&self, documents: &[(&str, Value)]) -> u64 {
        let admin = self.admin();
        let mut revision = 0;
        for (path, document) in documents {
            revision = admin.put(path, document).await;
        }
        self.settled(revision).await;
        revision
    }

    /// Waits until every connected node (at least one) acknowledged `revision`.
    pub async fn settled(&self, revision: u64) {
        let path = format!("dataplanes?acknowledged={revision}&timeout=30");
        let answer = self.admin().get(&path).await;
        assert_eq!(answer.status, StatusCode::OK, "no node acknowledged {revision}: {}", answer.reply.text());
    }

    /// Waits until every connected node serves `revision`, and the first one has it on disk, too.
    pub async fn saved(&self, revision: u64) {
        self.settled(revision).await;
        self.node_log()
            .line_with(&["the last good snapshot is on disk", &format!("revision={revision}")])
            .await;
    }

    /// A site `app.test` that serves the world's site certificate and asks for nothing.
    pub fn open_site(&self) -> Value {
        site(&self.credentials.site, "app.test")
    }

    /// The same, demanding a certificate of the world's client authority.
    pub fn protected_site(&self) -> Value {
        protected(self.open_site(), &self.credentials.clients)
    }

    /// Writes the current settings and starts (or restarts, at the same ports) the control plane.
    pub async fn start_control(&mut self) {
        let config = self.write_config("control");
        let launch = Launch::new("controlplane", &config).environment(&self.control_environment);
        let process = launch.start(&self.control.log).await;
        self.control.started(process);
    }

    /// The first node, again, at the same ports.
    pub async fn start_node(&mut self) {
        self.start_node_at(0).await;
    }

    /// Adds a data plane with its own certificate and last-good file.
    pub async fn add_node(&mut self, name: &str) {
        let credential = self.credentials.node(name);
        self.add_node_with(name, &credential).await;
    }

    /// Adds a data plane that shows this certificate to the control plane.
    pub async fn add_node_with(&mut self, name: &str, credential: &Credential) {
        self.write_credential(name, credential);
        self.nodes.push(Plane::new(name));
        self.start_node_at(self.nodes.len() - 1).await;
    }

    async fn start_node_at(&mut self, index: usize) {
        let name = self.nodes[index].name.clone();
        let config = self.write_config(&name);
        let launch = Launch::new("dataplane", &config).environment(&self.node_environment);
        let process = launch.start(&self.nodes[index].log).await;
        self.nodes[index].started(process);
    }

    /// `kill -9` of the control plane.
    pub async fn kill_control(&mut self) {
        self.control.running().kill_9().await;
        self.control.hold(&CONTROL_LISTENERS);
    }

    /// `kill -9` of the first node.
    pub async fn kill_node(&mut self) {
        self.nodes[0].running().kill_9().await;
        self.nodes[0].hold(&NODE_LISTENERS);
    }

    /// SIGTERM to the control plane, and its end.
    pub async fn stop_control(&mut self) -> std::process::ExitStatus {
        let status = self.control.running().stop().await;
        self.control.hold(&CONTROL_LISTENERS);
        status
    }

    /// The first node's process, to be signalled and waited for by the test itself.
    pub fn take_node(&mut self) -> Process {
        self.nodes[0].running()
    }

    /// SIGTERM to the first node, and its end.
    pub async fn stop_node(&mut self) -> std::process::ExitStatus {
        let status = self.nodes[0].running().stop().await;
        self.nodes[0].hold(&NODE_LISTENERS);
        status
    }

    /// Changes the settings for the next start.
    pub fn change_settings(&mut self, more: Value) {
        merge(&mut self.settings, more);
    }

    /// Changes the control plane's environment for its next start; `None` takes a variable away.
    pub fn change_control_environment(&mut self, name: &str, value: Option<&str>) {
        self.control_environment.retain(|(known, _)| known != name);
        let set = value.map(|value| (name.to_owned(), value.to_owned()));
        self.control_environment.extend(set);
    }

    /// Writes one program's file and gives its path.
    pub fn write_config(&self, name: &str) -> PathBuf {
        let mut settings = self.settings.clone();
        let node = self.nodes.iter().find(|node| node.name == name);
        let (http, https, status) = node.map_or((0, 0, 0), |node| {
            (node.known_port("http"), node.known_port("https"), node.known_port("status"))
        });
        let push = format!("127.0.0.1:{}", self.control.known_port("push"));
        // The control plane reads this too, before it knows its own port: then it names one that is never served.
        let dialled = if push.ends_with(":0") { "127.0.0.1:1".to_owned() } else { push.clone() };
        merge(
            &mut settings,
            json!({
                "apisix": {
                    "node_listen": [{"ip": "127.0.0.1", "port": http}],
                    "ssl": {"listen": [{"ip": "127.0.0.1", "port": https}]},
                    "status": {"ip": "127.0.0.1", "port": status},
                },
                "deployment": {"admin": {
                    "admin_listen": {"ip": "127.0.0.1", "port": self.control.known_port("admin")},
                }},
                "countersign": {
                    "push": {"listen": push},
                    "node": {
                        "name": name,
                        "control_planes": [dialled],
                        "cert": format!("{name}.crt"),
                        "key": format!("{name}.key"),
                        "last_good": format!("{name}.snapshot"),
                    },
                },
            }),
        );
        let path = self.folder().join(format!("{name}.yaml"));
        // JSON is YAML: the text needs no printer of its own.
        fs::write(&path, format!("{settings:#}\n")).expect("the settings can be written");
        path
    }

    fn write_credentials(&self) {
        let credentials = &self.credentials;
        self.write_credential("admin", &credentials.admin_server);
        self.write_credential("push-server", &credentials.push_server);
        self.write_credential("client", &credentials.client);
        self.write_credential("administrator", &credentials.admin_client);
        self.write("server-ca.crt", credentials.servers.certificate_pem());
        self.write("client-ca.crt", credentials.clients.certificate_pem());
        self.write("push-ca.crt", credentials.push.certificate_pem());
        self.write("upstream-ca.crt", credentials.upstreams.certificate_pem());
    }

    /// Writes `name.crt` and `name.key` into the world's folder.
    pub fn write_credential(&self, name: &str, credential: &Credential) {
        self.write(&format!("{name}.crt"), &credential.certificate_pem);
        let key = self.write(&format!("{name}.key"), &credential.key_pem);
        fs::set_permissions(key, fs::Permissions::from_mode(0o600)).expect("a mode can be set");
    }

    /// Writes a file into the world's folder.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder().join(name);
        fs::write(&path, text).expect("a file can be written");
        path
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        for plane in std::iter::once(&self.control).chain(&self.nodes) {
            let (name, log) = (&plane.name, plane.log.text());
            let lines: Vec<&str> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(60)..].join("\n");
            eprintln!("---- the log of {name} (its last lines)\n{tail}");
        }
    }
}
