//! The installation of one test: certificates, a temporary folder, control planes and their data
//! planes.
//!
//! Everything listens on ports that the kernel chose, so any number of worlds run side by side; a
//! restart takes the same ports again. When a test fails, the logs are printed with it.
//!
//! `builder` describes a world, `plane` is one program of it, `lifecycle` starts and ends programs,
//! `files` writes their files. A function without an index means the first control plane or node.
//!
//! Invariant: a world waits for events only: ready lines, and acknowledged revisions.

mod builder;
mod files;
mod lifecycle;
mod plane;

use std::net::SocketAddr;
use std::ops::RangeBounds;
use std::path::{Path, PathBuf};

use http::StatusCode;
use serde_json::Value;
use tempfile::TempDir;

use crate::admin::Admin;
use crate::client::{HttpClient, HttpConnection, Reply};
use crate::credentials::{Credentials, certificates};
use crate::documents::{protected, route, site};
use crate::process::{Log, Process};
use crate::settings::merge;
use crate::upstream::Upstream;

pub use builder::WorldBuilder;
use plane::Plane;

/// A running installation.
pub struct World {
    folder: TempDir,
    pub credentials: Credentials,
    settings: Value,
    controls: Vec<Plane>,
    nodes: Vec<Plane>,
    control_environment: Vec<(String, String)>,
    node_environment: Vec<(String, String)>,
    script: Option<String>,
    placement: Placement,
}

/// The programs of a world and their cores.
#[derive(Clone, Default)]
struct Placement {
    /// The folder of the programs, when it is not cargo's.
    programs: Option<PathBuf>,
    control_cpu: Option<usize>,
    node_cpu: Option<usize>,
}

/// A metric in the text of `/metrics`.
fn number(text: &str, name: &str) -> u64 {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    value.unwrap_or_else(|| panic!("no {name} in {text}"))
}

impl World {
    /// A control plane and one data plane, `node-1`, with two workers.
    pub async fn start() -> Self {
        Self::builder().start().await
    }

    /// Serves every path of `app.test` by an upstream, without client certificates.
    pub async fn open(settings: Value) -> (Self, Upstream) {
        let upstream = Upstream::plain("plain").await;
        (Self::builder().settings(settings).open(upstream.address()).start().await, upstream)
    }

    /// As [`World::open`], requiring client certificates.
    pub async fn protected(settings: Value) -> (Self, Upstream) {
        let upstream = Upstream::plain("plain").await;
        (Self::builder().settings(settings).protected(upstream.address()).start().await, upstream)
    }

    /// Serves every path of `app.test` by this upstream; gives the revision.
    pub async fn serve(&self, site: Value, upstream: &Upstream) -> u64 {
        let every_path = route("app.test", "/*", &[upstream.address()]);
        self.apply(&[("ssls/app", site), ("routes/app", every_path)]).await
    }

    pub fn builder() -> WorldBuilder {
        WorldBuilder::new()
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The embedded store's file.
    pub fn store(&self) -> PathBuf {
        self.folder().join("store.redb")
    }

    /// A node's last-good file.
    pub fn last_good(&self, node: &str) -> PathBuf {
        self.folder().join(format!("{node}.snapshot"))
    }

    pub fn control_log(&self) -> &Log {
        self.control_log_of(0)
    }

    pub fn control_log_of(&self, index: usize) -> &Log {
        &self.controls[index].log
    }

    pub fn control_process(&self, index: usize) -> &Process {
        self.controls[index].process()
    }

    pub fn node_log(&self) -> &Log {
        self.node_log_of(0)
    }

    pub fn node_log_of(&self, index: usize) -> &Log {
        &self.nodes[index].log
    }

    pub fn admin(&self) -> Admin {
        self.admin_of(0)
    }

    pub fn admin_of(&self, index: usize) -> Admin {
        Admin::new(self.controls[index].address("admin", 0), &self.credentials)
    }

    pub fn admin_address(&self) -> SocketAddr {
        self.controls[0].address("admin", 0)
    }

    pub fn push_address(&self) -> SocketAddr {
        self.push_address_of(0)
    }

    pub fn push_address_of(&self, index: usize) -> SocketAddr {
        self.controls[index].address("push", 0)
    }

    pub fn https(&self) -> SocketAddr {
        self.node_address(0, "https")
    }

    pub fn http(&self) -> SocketAddr {
        self.node_address(0, "http")
    }

    /// The n-th listener of `stream_proxy.tcp` of the first node.
    pub fn stream(&self, index: usize) -> SocketAddr {
        self.nodes[0].address("stream", index)
    }

    /// The address of a listener: `http`, `https` or `status`.
    pub fn node_address(&self, index: usize, listener: &str) -> SocketAddr {
        self.nodes[index].address(listener, 0)
    }

    /// The ready line of the first node's last start.
    pub fn node_ready(&self) -> &Value {
        self.nodes[0].process().ready()
    }

    /// A GET to the first node's status listener.
    pub async fn status(&self, path: &str) -> Reply {
        let status = self.node_address(0, "status");
        let mut session =
            HttpConnection::plain(status, "status").await.unwrap_or_else(|error| panic!("{error}"));
        session.get(path).await.unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    /// The first control plane's status listener.
    pub fn control_status_address(&self) -> SocketAddr {
        self.controls[0].address("status", 0)
    }

    /// A GET to the first control plane's status listener.
    pub async fn control_status(&self, path: &str) -> Reply {
        let status = self.control_status_address();
        let mut session =
            HttpConnection::plain(status, "status").await.unwrap_or_else(|error| panic!("{error}"));
        session.get(path).await.unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    pub fn node_id(&self) -> u32 {
        self.nodes[0].process().id()
    }

    pub fn control_id(&self) -> u32 {
        self.controls[0].process().id()
    }

    /// A metric of the first node, by its name and labels.
    pub async fn metric(&self, name: &str) -> u64 {
        number(&self.status("/metrics").await.text(), name)
    }

    /// A metric of the first control plane.
    pub async fn control_metric(&self, name: &str) -> u64 {
        number(&self.control_status("/metrics").await.text(), name)
    }

    /// A client of the first node's HTTPS listener that trusts the world's server authority and has
    /// no certificate.
    pub fn client(&self, host: &str) -> HttpClient {
        HttpClient::new(self.https(), host, certificates(self.credentials.servers.certificate_pem()))
    }

    /// A client of the first node's first stream listener.
    pub fn tcp_client(&self, sni: &str) -> HttpClient {
        HttpClient::new(self.stream(0), sni, certificates(self.credentials.servers.certificate_pem()))
    }

    /// The same with the world's client certificate.
    pub fn verified_client(&self, host: &str) -> HttpClient {
        self.client(host).identity(&self.credentials.client)
    }

    /// A plain connection to the first node's HTTP port.
    pub async fn plain(&self, host: &str) -> HttpConnection {
        HttpConnection::plain(self.http(), host).await.unwrap_or_else(|error| panic!("{error}"))
    }

    /// PUTs each document and waits until every node serves them; gives the last revision.
    pub async fn apply(&self, documents: &[(&str, Value)]) -> u64 {
        let admin = self.admin();
        let mut revision = 0;
        for (path, document) in documents {
            revision = admin.put(path, document).await;
        }
        self.wait_acknowledged(revision).await;
        revision
    }

    /// Waits until every connected node, at least one, acknowledged `revision`.
    pub async fn wait_acknowledged(&self, revision: u64) {
        self.wait_acknowledged_at(0, revision).await;
    }

    /// The same for the nodes of the n-th control plane.
    pub async fn wait_acknowledged_at(&self, index: usize, revision: u64) {
        let path = format!("dataplanes?acknowledged={revision}&timeout=55");
        let answer = self.admin_of(index).get(&path).await;
        assert_eq!(answer.status, StatusCode::OK, "no node acknowledged {revision}: {}", answer.reply.text());
    }

    /// The same, and until the first node has it in its last-good file.
    pub async fn wait_persisted(&self, revision: u64) {
        self.wait_acknowledged(revision).await;
        self.wait_persisted_after(0, revision..).await;
    }

    /// Waits until the first node logs, after `mark`, that it has saved one of these revisions. Not
    /// the exact one: changes that come together are saved once, and a full read has the revision
    /// of the store, which keys that are no resources raise, too.
    pub async fn wait_persisted_after(&self, mark: usize, revisions: impl RangeBounds<u64>) {
        let saved = |line: &str| {
            let (_, rest) = line.split_once("the last good snapshot is on disk")?;
            let revision = rest.trim_start().strip_prefix("revision=")?;
            revision.split_whitespace().next()?.parse::<u64>().ok()
        };
        let found = |text: &str| {
            let mut lines = text.get(mark..).unwrap_or_default().lines();
            lines.any(|line| saved(line).is_some_and(|revision| revisions.contains(&revision))).then_some(())
        };
        let (start, end) = (revisions.start_bound(), revisions.end_bound());
        self.node_log().find(&format!("a saved revision in {start:?}, {end:?}"), found).await;
    }

    /// The site `app.test` without client certificates.
    pub fn open_site(&self) -> Value {
        site(&self.credentials.site, "app.test")
    }

    /// The same, requiring a certificate of the world's client authority.
    pub fn protected_site(&self) -> Value {
        protected(self.open_site(), &self.credentials.clients)
    }

    /// Changes the settings for the next start.
    pub fn change_settings(&mut self, more: Value) {
        merge(&mut self.settings, more);
    }

    /// Changes the control plane's environment for its next start; `None` removes a variable.
    pub fn change_control_environment(&mut self, name: &str, value: Option<&str>) {
        self.control_environment.retain(|(known, _)| known != name);
        let set = value.map(|value| (name.to_owned(), value.to_owned()));
        self.control_environment.extend(set);
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.controls.iter().chain(&self.nodes).for_each(Plane::print_log);
        }
    }
}
