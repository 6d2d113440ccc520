//! Starts one of the two programs as a user would, and ends it gracefully or with `kill -9`.
//!
//! Owns the child, its first line on standard output (`ready {...}`) and the file its log goes to.
//! Invariant: a child never outlives its [`Process`], and every wait has a bound that says what was waited for.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, SystemTime};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// How long anything that must happen may take on a busy machine before the test calls it a failure.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Where cargo put the program `name`: beside the test executable, or one folder up.
///
/// # Panics
/// When it was not built, or is older than its sources: the message says which command builds it.
pub fn program(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("the running executable has a path");
    let beside = own.parent().expect("an executable is in a folder");
    let found = [beside, beside.parent().unwrap_or(beside)]
        .into_iter()
        .map(|folder| folder.join(name))
        .find(|candidate| candidate.is_file());
    let Some(found) = found else {
        panic!(
            "{name} is not built in {}: run `make test`, or `cargo build --workspace --bins --tests`",
            beside.display()
        );
    };
    if let Some(newer) = source_newer_than(&found) {
        panic!(
            "{} is older than {newer}: run `make test`, or `cargo build --workspace --bins --tests`",
            found.display()
        );
    }
    found
}

/// The first source file that changed after the program was built, from the dependency list cargo leaves beside it.
fn source_newer_than(program: &Path) -> Option<String> {
    let built = modified(program)?;
    let listed = fs::read_to_string(program.with_extension("d")).ok()?;
    let (_, sources) = listed.split_once(": ")?;
    sources
        .split_whitespace()
        .find(|source| modified(Path::new(source)).is_some_and(|changed| changed > built))
        .map(str::to_owned)
}

fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|meta| meta.modified()).ok()
}

/// What a program that ended by itself left behind.
#[derive(Debug)]
pub struct Ended {
    /// Its exit status.
    pub status: ExitStatus,
    /// All it wrote to standard output.
    pub stdout: String,
    /// All it wrote to standard error.
    pub stderr: String,
}

/// Runs a program to its end and keeps what it said.
///
/// # Panics
/// When it is still running after [`PATIENCE`].
pub async fn run_to_end(name: &str, arguments: &[&str], folder: &Path) -> Ended {
    let child = Command::new(program(name))
        .args(arguments)
        .current_dir(folder)
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap_or_else(|problem| panic!("cannot start {name}: {problem}"));
    let output = timeout(PATIENCE, child.wait_with_output())
        .await
        .unwrap_or_else(|_| panic!("{name} {arguments:?} was expected to end and still runs"))
        .expect("a child can be waited for");
    Ended {
        status: output.status,
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// A running control plane or data plane.
pub struct Process {
    name: &'static str,
    child: Child,
    ready: Value,
    log: PathBuf,
}

impl Process {
    /// Starts `name -c config` and waits for its ready line. The log is appended to `log`.
    ///
    /// # Panics
    /// When it ends, or says nothing, before it is ready: the message carries its log.
    pub async fn start(name: &'static str, config: &Path, log: &Path) -> Self {
        Self::try_start(name, config, log).await.unwrap_or_else(|problem| panic!("{problem}"))
    }

    /// As [`Process::start`], for a test that expects it may not come up.
    ///
    /// # Errors
    /// What was seen instead of the ready line, with the log.
    pub async fn try_start(name: &'static str, config: &Path, log: &Path) -> Result<Self, String> {
        let stderr = File::options().create(true).append(true).open(log).expect("the log can be written");
        let folder = config.parent().expect("a config file is in a folder");
        let mut child = Command::new(program(name))
            .arg("-c")
            .arg(config)
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .kill_on_drop(true)
            .spawn()
            .map_err(|problem| format!("cannot start {name}: {problem}"))?;
        let mut stdout = BufReader::new(child.stdout.take().expect("standard output is piped"));
        let mut line = String::new();
        let read = timeout(PATIENCE, stdout.read_line(&mut line)).await;
        let ready = line.strip_prefix("ready ").and_then(|json| serde_json::from_str(json).ok());
        let Some(ready) = ready else {
            let ended = child.try_wait().ok().flatten();
            return Err(format!(
                "{name} was not ready: first line {line:?} (read: {read:?}), exit {ended:?}, log:\n{}",
                fs::read_to_string(log).unwrap_or_default()
            ));
        };
        // Whatever else it prints must not fill the pipe and stop it.
        tokio::spawn(async move {
            let mut rest = Vec::new();
            let _ = stdout.read_to_end(&mut rest).await;
        });
        Ok(Self { name, child, ready, log: log.to_owned() })
    }

    /// The JSON of its ready line.
    pub fn ready(&self) -> &Value {
        &self.ready
    }

    /// Where its log goes.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Its process id.
    ///
    /// # Panics
    /// When it already ended.
    pub fn id(&self) -> u32 {
        self.child.id().unwrap_or_else(|| panic!("{} already ended", self.name))
    }

    /// Ends it as a power cut would: no handler runs, nothing is flushed.
    pub async fn kill_9(mut self) {
        self.child.kill().await.unwrap_or_else(|problem| panic!("cannot kill {}: {problem}", self.name));
    }

    /// Sends a signal and returns at once.
    pub fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.id()).expect("a process id is positive");
        kill(Pid::from_raw(id), signal)
            .unwrap_or_else(|problem| panic!("cannot signal {}: {problem}", self.name));
    }

    /// Waits until it ends by itself.
    ///
    /// # Panics
    /// When it still runs after [`PATIENCE`].
    pub async fn ended(&mut self) -> ExitStatus {
        timeout(PATIENCE, self.child.wait())
            .await
            .unwrap_or_else(|_| panic!("{} was expected to end and still runs", self.name))
            .expect("a child can be waited for")
    }

    /// Asks it to stop (SIGTERM) and waits for its end.
    pub async fn stop(mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.ended().await
    }
}
