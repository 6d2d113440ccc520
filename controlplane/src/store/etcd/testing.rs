//! A real etcd for the unit tests: one process in a folder of its own, on a port of its own choosing, in clear or within TLS.
//!
//! Ready when its log says so; ends with the test. The tests of the whole program have their own, in the crate `e2e`.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use pki::UnixTime;
use pki::mint::{Authority, AuthoritySpec, LeafSpec};
use tempfile::TempDir;

/// Far more than a start takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running etcd.
pub(crate) struct Etcd {
    child: Child,
    pub(crate) port: u16,
    https: bool,
    _dir: TempDir,
}

/// Certificates for one test, in files.
pub(crate) struct Pki {
    dir: TempDir,
    pub(crate) ca: Authority,
}

impl Pki {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let ca = Authority::root(&AuthoritySpec::new("Etcd CA")).expect("a CA");
        fs::write(dir.path().join("ca.crt"), ca.certificate_pem()).expect("written");
        Self { dir, ca }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn ca_file(&self) -> PathBuf {
        self.path("ca.crt")
    }

    /// Writes `name.crt` and `name.key`.
    pub(crate) fn issue(&self, name: &str, spec: &LeafSpec) -> (PathBuf, PathBuf) {
        let minted = self.ca.issue(spec).expect("minted");
        let (cert, key) = (self.path(&format!("{name}.crt")), self.path(&format!("{name}.key")));
        fs::write(&cert, &minted.chain_pem).expect("written");
        fs::write(&key, minted.key_pem.as_bytes()).expect("written");
        (cert, key)
    }

    /// A server's certificate for 127.0.0.1, localhost and etcd.test.
    pub(crate) fn server(&self) -> (PathBuf, PathBuf) {
        let local = std::net::Ipv4Addr::LOCALHOST.into();
        self.issue("server", &LeafSpec::server("etcd.test").dns("localhost").ip(local))
    }

    pub(crate) fn client(&self) -> (PathBuf, PathBuf) {
        self.issue("client", &LeafSpec::client("controlplane"))
    }

    /// A client's certificate that ended a day ago.
    pub(crate) fn expired_client(&self) -> (PathBuf, PathBuf) {
        self.issue("expired", &LeafSpec::client("controlplane").between(days_ago(30), days_ago(1)))
    }
}

pub(crate) fn days_ago(days: u64) -> UnixTime {
    let seconds = UnixTime::now().as_secs() - days * 24 * 3600;
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}

impl Etcd {
    pub(crate) fn plain() -> Self {
        Self::start(false, &[])
    }

    pub(crate) fn tls(pki: &Pki) -> Self {
        let (cert, key) = pki.server();
        Self::with_pair(&cert, &key)
    }

    pub(crate) fn with_pair(cert: &Path, key: &Path) -> Self {
        Self::start(true, &["--cert-file", text(cert), "--key-file", text(key)])
    }

    pub(crate) fn mtls(pki: &Pki) -> Self {
        let (cert, key) = pki.server();
        let ca = pki.ca_file();
        let trust = ["--client-cert-auth", "--trusted-ca-file", text(&ca)];
        Self::start(true, &[&["--cert-file", text(&cert), "--key-file", text(&key)][..], &trust].concat())
    }

    fn start(https: bool, more: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let scheme = if https { "https" } else { "http" };
        let (clients, peers) = (format!("{scheme}://127.0.0.1:0"), "http://127.0.0.1:0");
        let mut child = Command::new("etcd")
            .args([
                "--data-dir",
                text(&dir.path().join("data")),
                "--logger",
                "zap",
                "--log-outputs",
                "stderr",
            ])
            .args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients])
            .args(["--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers])
            .args(["--initial-cluster", &format!("default={peers}")])
            .args(more)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect(
                "these tests need a real etcd: install Debian's etcd-server, or put `etcd` into the PATH",
            );
        let port = serving_port(&mut child);
        Self { child, port, https, _dir: dir }
    }

    pub(crate) fn url(&self) -> String {
        format!("{}://127.0.0.1:{}", if self.https { "https" } else { "http" }, self.port)
    }

    /// Ends it, as `kill -9` does.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("gone");
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The port that the log names; goes on reading, so that etcd never waits for us.
fn serving_port(child: &mut Child) -> u16 {
    let log = child.stderr.take().expect("piped");
    let (said, heard) = mpsc::channel();
    std::thread::spawn(move || {
        let mut lines = Vec::new();
        for line in BufReader::new(log).lines().map_while(Result::ok) {
            if line.contains("serving client traffic") {
                let port = line
                    .rsplit_once("127.0.0.1:")
                    .and_then(|(_, rest)| rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok());
                let _ = said.send(port.ok_or(line));
            } else if lines.len() < 100 {
                lines.push(line);
            }
        }
        let _ = said.send(Err(lines.join("\n")));
    });
    heard.recv_timeout(PATIENCE).expect("etcd starts in time").expect("etcd serves; its log says otherwise")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}
