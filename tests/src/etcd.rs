//! Real etcd servers on free ports, alone or as a cluster of three.
//!
//! [`Etcd`] is one member: its ports stay reserved while it exists, its data is in memory where
//! there is room. Tests connect by a plain port of their own ([`Etcd::keys`], [`Etcd::ctl`]),
//! whatever TLS or password its clients need.
//!
//! Invariant: a start waits until etcd serves, and no server outlives its value.

mod access;
mod builder;
mod cluster;
mod keys;

use std::path::{Path, PathBuf};
use std::process::Stdio;

use nix::sys::signal::Signal;
use tempfile::TempDir;
use tokio::process::Command;
use tokio::task::JoinHandle;

use crate::client::bounded;
use crate::credentials::Credential;
use crate::ports::Reservation;
use crate::process::{Log, Process};

pub use access::Access;
pub use builder::{Authorities, EtcdBuilder};
pub use cluster::Cluster;
pub use keys::{Change, Entry, Keys};

/// The password of etcd's user `root`, where there is one.
pub const PASSWORD: &str = "open-sesame";

/// One etcd server, running or not.
pub struct Etcd {
    name: String,
    folder: TempDir,
    client: Reservation,
    peer: Reservation,
    /// For the test itself.
    test_port: Reservation,
    /// `name=URL,...` of all members.
    members: String,
    tls: bool,
    /// The password of `root`, once authentication is enabled.
    password: Option<String>,
    arguments: Vec<String>,
    /// Makes the cluster's id, with the members' URLs.
    token: String,
    access: Access,
    process: Option<Process>,
    log: Log,
    /// The start of its present run in the log, and the task that collects the log.
    life: Option<(usize, JoinHandle<()>)>,
    saves: u32,
}

impl Etcd {
    pub async fn plain() -> Self {
        Self::builder().start().await
    }

    /// A certificate for `etcd.test`, `localhost` and 127.0.0.1; no client certificates.
    pub async fn tls(authorities: &Authorities) -> Self {
        Self::builder().tls(authorities).start().await
    }

    /// The same, requiring a certificate of `authorities.clients`.
    pub async fn mutual(authorities: &Authorities) -> Self {
        Self::builder().mutual(authorities).start().await
    }

    /// No TLS; user `root` with [`PASSWORD`].
    pub async fn with_password() -> Self {
        let mut etcd = Self::plain().await;
        etcd.enable_auth(PASSWORD).await;
        etcd
    }

    pub fn builder() -> EtcdBuilder {
        EtcdBuilder::default()
    }

    /// The settings and files of a control plane for it.
    pub fn access(&self) -> Access {
        self.access.clone()
    }

    /// The URL for its clients.
    pub fn url(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://{}", self.client.address())
    }

    pub fn address(&self) -> std::net::SocketAddr {
        self.client.address()
    }

    fn test_url(&self) -> String {
        format!("http://{}", self.test_port.address())
    }

    pub fn log(&self) -> &Log {
        &self.log
    }

    /// A client of its keys.
    pub async fn keys(&self) -> Keys {
        Keys::connect(&self.test_url(), self.password.as_deref()).await
    }

    /// Starts it, with the ports and data of before, and waits until it serves.
    pub async fn start(&mut self) {
        self.spawn();
        self.serving().await;
    }

    /// Starts it without waiting: a member without a majority does not serve.
    pub fn spawn(&mut self) {
        assert!(self.process.is_none(), "{} runs already", self.name);
        let mut process = Process::foreign("etcd", self.command(), None)
            .unwrap_or_else(|problem| panic!("cannot start etcd ({problem}): `make setup` installs it"));
        let mark = self.log.mark();
        self.life = Some((mark, self.log.follow(process.stderr().expect("standard error is piped"))));
        self.process = Some(process);
    }

    /// Waits until it serves at both ports.
    pub async fn serving(&mut self) {
        let begin = self.life.as_ref().map_or(0, |(mark, _)| *mark);
        let process = self.process.as_mut().unwrap_or_else(|| panic!("{} does not run", self.name));
        tokio::select! {
            () = self.log.lines_after(begin, &["serving client traffic"], 2) => {}
            status = process.wait() => panic!("etcd {} ended ({status}):\n{}", self.name, self.log.text()),
        }
    }

    fn command(&self) -> Command {
        let (client, peer, test_port) =
            (self.url(), format!("http://{}", self.peer.address()), self.test_url());
        let mut command = Command::new("etcd");
        command
            .args(["--name", &self.name, "--data-dir"])
            .arg(self.data())
            .args([
                "--listen-client-urls",
                &format!("{client},{test_port}"),
                "--advertise-client-urls",
                &client,
            ])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &self.members, "--initial-cluster-token", &self.token])
            .args(["--heartbeat-interval", "50", "--election-timeout", "500"])
            .args(["--logger", "zap", "--log-outputs", "stderr"])
            .args(&self.arguments)
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        command
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn process(&self) -> &Process {
        self.process.as_ref().unwrap_or_else(|| panic!("{} does not run", self.name))
    }

    /// `kill -9`; its ports stay reserved.
    pub async fn kill(&mut self) {
        let process = self.process.take().unwrap_or_else(|| panic!("{} does not run", self.name));
        process.kill_9().await;
        // Collects the log of this run before the next one.
        if let Some((_, logging)) = self.life.take() {
            bounded("the end of etcd's log", logging).await.expect("the log is collected");
        }
    }

    /// SIGSTOP: it holds its connections and sends nothing.
    pub fn pause(&self) {
        self.process().signal(Signal::SIGSTOP);
    }

    pub fn resume(&self) {
        self.process().signal(Signal::SIGCONT);
    }

    /// Replaces its certificate, from the next handshake on.
    pub fn replace_certificate(&self, credential: &Credential) {
        builder::write_credential(self.folder.path(), credential);
    }

    /// Replaces the authority of its clients, from the next start on.
    pub fn replace_clients(&self, authority_pem: &str) {
        builder::write_clients(self.folder.path(), authority_pem);
    }

    /// Adds user `root` with this password, and requires it from now on.
    pub async fn enable_auth(&mut self, password: &str) {
        self.ctl(&["user", "add", &format!("root:{password}")]).await;
        self.ctl(&["user", "grant-role", "root", "root"]).await;
        self.ctl(&["auth", "enable"]).await;
        self.password = Some(password.to_owned());
        self.access.user = Some(("root".to_owned(), password.to_owned()));
    }

    /// The output of `etcdctl` with these arguments.
    pub async fn ctl(&self, arguments: &[&str]) -> String {
        let user = self.password.as_ref().map(|password| format!("--user=root:{password}"));
        let mut all = vec![format!("--endpoints={}", self.test_url())];
        all.extend(user);
        all.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        ctl(self.folder.path(), &all).await
    }

    /// Kills it, removes its data, and starts it again: an empty cluster with the same id.
    pub async fn lose_data(&mut self) {
        self.kill().await;
        std::fs::remove_dir_all(self.data()).expect("the data can be removed");
        self.start().await;
    }

    /// `etcdctl snapshot save`.
    pub async fn save(&mut self) -> PathBuf {
        self.saves += 1;
        let path = self.folder.path().join(format!("save-{}", self.saves));
        self.ctl(&["snapshot", "save", path.to_str().expect("the path is text")]).await;
        path
    }

    /// The same under another cluster id, as etcd's manual recommends for a restored cluster.
    pub async fn restore_as_another(&mut self, save: &Path) {
        self.token.push_str("-again");
        self.restore(save).await;
    }

    /// Kills it and starts it again with the data of this snapshot: the same cluster, at an older
    /// revision.
    pub async fn restore(&mut self, save: &Path) {
        self.kill().await;
        std::fs::remove_dir_all(self.data()).expect("the data can be removed");
        let peer = format!("http://{}", self.peer.address());
        let words = [
            "snapshot",
            "restore",
            save.to_str().expect("the path is text"),
            "--data-dir=data",
            &format!("--name={}", self.name),
            &format!("--initial-cluster={}", self.members),
            &format!("--initial-cluster-token={}", self.token),
            &format!("--initial-advertise-peer-urls={peer}"),
        ];
        ctl(self.folder.path(), &words.map(str::to_owned)).await;
        self.start().await;
    }
}

async fn ctl(folder: &Path, arguments: &[String]) -> String {
    let command = Command::new("etcdctl")
        .args(arguments)
        .env("ETCDCTL_API", "3")
        .current_dir(folder)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = bounded("etcdctl", command)
        .await
        .unwrap_or_else(|problem| panic!("cannot run etcdctl ({problem}): `make setup` installs it"));
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "etcdctl {arguments:?}: {out}{err}");
    out.into_owned()
}

impl Drop for Etcd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.log.print(&format!("etcd {}", self.name));
        }
    }
}
