//! Programs of others that tests talk to: nginx, HAProxy, Envoy, and scripts for Python and Node
//! with their gRPC, WebSocket and HTTP/2.
//!
//! `scripts/setup.sh test` installs them. Where one is absent, its start gives `None` and prints a
//! line with `skipped:`, which a run of all tests collects.
//!
//! Invariant: each listens on ports that the kernel chose, serves before its start returns, and is
//! gone when it is dropped.

mod programs;
mod servers;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::process::Command;

use crate::client::bounded;
use crate::process::{ExitOutput, Log, Process};

/// A running program of others.
pub struct Peer {
    process: Process,
    log: Log,
    addresses: Vec<SocketAddr>,
    ready: Value,
}

impl Peer {
    /// Debian's nginx with this `http` block, given its addresses. One process with the rights of
    /// the test.
    pub async fn nginx(
        folder: &Path,
        listeners: usize,
        http: impl FnOnce(&[SocketAddr]) -> String,
    ) -> Option<Self> {
        servers::nginx(&programs::on_path("nginx")?, folder, listeners, http).await.into()
    }

    /// HAProxy with this configuration, given its addresses.
    pub async fn haproxy(
        folder: &Path,
        listeners: usize,
        text: impl FnOnce(&[SocketAddr]) -> String,
    ) -> Option<Self> {
        servers::haproxy(&programs::on_path("haproxy")?, folder, listeners, text).await.into()
    }

    /// Envoy with these `static_resources`, given its addresses. One worker.
    pub async fn envoy(
        folder: &Path,
        listeners: usize,
        resources: impl FnOnce(&[SocketAddr]) -> Value,
    ) -> Option<Self> {
        servers::envoy(&programs::envoy()?, folder, listeners, resources).await.into()
    }

    /// A server of `tests/python`, which prints `ready {"address": ...}` to standard error.
    pub async fn python(folder: &Path, script: &str, arguments: &[&str]) -> Option<Self> {
        let command = script_command(&programs::python()?, "python", script, arguments, folder);
        Self::script("python", command).await.into()
    }

    /// A server of `tests/node`, as [`Peer::python`].
    pub async fn node(folder: &Path, script: &str, arguments: &[&str]) -> Option<Self> {
        let command = script_command(&programs::node()?, "node", script, arguments, folder);
        Self::script("node", command).await.into()
    }

    async fn script(name: &'static str, command: Command) -> Self {
        let mut peer = Self::start(name, command, Vec::new(), &["ready {"]).await;
        let line = peer.log.line_with(&["ready {"]).await;
        let json = line.split_once("ready ").map_or("", |(_, json)| json);
        peer.ready = serde_json::from_str(json).unwrap_or_else(|error| panic!("{line}: {error}"));
        let address = peer.ready["address"].as_str().and_then(|address| address.parse().ok());
        peer.addresses = vec![address.unwrap_or_else(|| panic!("no address in {line}"))];
        peer
    }

    /// Starts a program and waits for a line of its log with these words, then for its listeners.
    async fn start(
        name: &'static str,
        mut command: Command,
        addresses: Vec<SocketAddr>,
        words: &[&str],
    ) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut process = Process::foreign(name, command, None)
            .unwrap_or_else(|problem| panic!("cannot start {name}: {problem}"));
        let log = Log::default();
        log.follow(process.stderr().expect("standard error is piped"));
        tokio::select! {
            _ = log.line_with(words) => {}
            status = process.wait() => panic!("{name} ended with {status}:\n{}", log.text()),
        }
        for address in &addresses {
            bounded(name, accepts(*address)).await;
        }
        Self { process, log, addresses, ready: Value::Null }
    }

    /// The address of its first listener.
    pub fn address(&self) -> SocketAddr {
        self.address_of(0)
    }

    pub fn address_of(&self, listener: usize) -> SocketAddr {
        self.addresses[listener]
    }

    /// Its standard error.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// The JSON of a script's ready line.
    pub fn ready(&self) -> &Value {
        &self.ready
    }

    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Sends SIGTERM and waits for the end.
    pub async fn stop(self) {
        self.process.stop_if_running().await;
    }

    /// Prints the last lines of its log, beside the message of a failed test.
    pub fn print_log(&self, name: &str) {
        self.log.print(name);
    }
}

/// A program of this machine; `None` with a line that says so where it is absent.
pub fn installed(name: &str) -> Option<PathBuf> {
    programs::on_path(name)
}

/// Runs a script of `tests/python` to its end.
pub async fn run_python(folder: &Path, script: &str, arguments: &[&str]) -> Option<ExitOutput> {
    run(script_command(&programs::python()?, "python", script, arguments, folder)).await.into()
}

/// Runs a script of `tests/node` to its end.
pub async fn run_node(folder: &Path, script: &str, arguments: &[&str]) -> Option<ExitOutput> {
    run(script_command(&programs::node()?, "node", script, arguments, folder)).await.into()
}

/// The standard output of a script that succeeded, one JSON value a line.
pub fn json_lines(output: &ExitOutput) -> Vec<Value> {
    assert!(output.status.success(), "{}{}", output.stdout, output.stderr);
    let parsed = |line: &str| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"));
    output.stdout.lines().map(parsed).collect()
}

fn script_command(
    program: &Path,
    language: &str,
    script: &str,
    arguments: &[&str],
    folder: &Path,
) -> Command {
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), language, script].iter().collect();
    let mut command = Command::new(program);
    command.arg(path).args(arguments).current_dir(folder);
    command.env("NODE_PATH", programs::node_modules()).env("PYTHONUNBUFFERED", "1");
    // A file of compiled Python would land beside the script.
    command.env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

async fn run(mut command: Command) -> ExitOutput {
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = bounded("a script ends", command.output()).await;
    let output = output.unwrap_or_else(|problem| panic!("cannot run {command:?}: {problem}"));
    ExitOutput {
        status: output.status,
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Until a listener that the program has just announced takes a connection.
async fn accepts(address: SocketAddr) {
    while TcpStream::connect(address).await.is_err() {
        tokio::task::yield_now().await;
    }
}
