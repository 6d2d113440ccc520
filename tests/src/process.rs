//! Starts a program as a user would, and ends it gracefully or with `kill -9`.
//!
//! Owns the child, its ready line (`ready {...}` on standard output) and its log, which tests can
//! wait on.
//!
//! Invariant: a child never outlives its [`Process`], and every wait has a bound and a message.

mod successor;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, ChildStderr, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::resources::pinned;

pub use successor::Successor;

/// The bound of every wait for an event, on a busy machine.
pub const EVENT_TIMEOUT: Duration = Duration::from_secs(60);

/// The path of a program: beside the test executable or one folder up, or in the folder that
/// COUNTERSIGN_PROGRAMS names (programs with other features). Panics, with the command that builds
/// it, when it is missing or older than its sources.
pub fn program(name: &str) -> PathBuf {
    if let Some(folder) = std::env::var_os("COUNTERSIGN_PROGRAMS") {
        return built(Path::new(&folder).join(name), "make test-boring");
    }
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
    built(found, "make test`, or `cargo build --workspace --bins --tests")
}

/// The program, unless a source is newer.
fn built(program: PathBuf, command: &str) -> PathBuf {
    assert!(program.is_file(), "{} is not there: run `{command}`", program.display());
    if let Some(newer) = source_newer_than(&program) {
        panic!("{} is older than {newer}: run `{command}`", program.display());
    }
    program
}

/// The first source that is newer than the program, by the dependency list that cargo writes beside
/// it.
fn source_newer_than(program: &Path) -> Option<String> {
    let built = modified(program)?;
    let listed = fs::read_to_string(program.with_extension("d")).ok()?;
    let (_, sources) = listed.split_once(": ")?;
    sources
        .split_whitespace()
        // Files of git are listed for the version only.
        .filter(|source| !source.contains("/.git/"))
        .find(|source| modified(Path::new(source)).is_some_and(|changed| changed > built))
        .map(str::to_owned)
}

fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|meta| meta.modified()).ok()
}

/// The result of a program that ended.
#[derive(Debug)]
pub struct ExitOutput {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

/// Runs a program to its end.
pub async fn run_to_end(name: &str, arguments: &[&str], folder: &Path) -> ExitOutput {
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
    let output = timeout(EVENT_TIMEOUT, child.wait_with_output())
        .await
        .unwrap_or_else(|_| panic!("{name} {arguments:?} was expected to end and still runs"))
        .expect("a child can be waited for");
    ExitOutput {
        status: output.status,
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// The log of a program over all its starts. Cheap to clone.
#[derive(Clone)]
pub struct Log {
    text: Arc<watch::Sender<String>>,
    file: Option<PathBuf>,
}

impl Default for Log {
    fn default() -> Self {
        Self { text: Arc::new(watch::Sender::new(String::new())), file: None }
    }
}

impl Log {
    /// Also appends it to a file.
    pub fn file(path: PathBuf) -> Self {
        Self { file: Some(path), ..Self::default() }
    }

    pub fn text(&self) -> String {
        self.text.borrow().clone()
    }

    /// Waits for a line with every one of `words`, and gives it.
    pub async fn line_with(&self, words: &[&str]) -> String {
        let matching = |text: &str| {
            text.lines().find(|line| words.iter().all(|word| line.contains(word))).map(str::to_owned)
        };
        self.find(&format!("a line with {words:?}"), matching).await
    }

    /// Waits until `find` gives something for the whole log, and gives that.
    pub async fn find<T>(&self, what: &str, find: impl Fn(&str) -> Option<T>) -> T {
        let mut changes = self.text.subscribe();
        let seen = timeout(EVENT_TIMEOUT, changes.wait_for(|text| find(text).is_some())).await;
        match seen {
            Ok(Ok(text)) => find(&text).expect("it was just found"),
            _ => panic!("{what} is not in the log:\n{}", self.text()),
        }
    }

    /// Waits for `count` lines with every one of `words`.
    pub async fn lines_with(&self, words: &[&str], count: usize) {
        self.lines_after(0, words, count).await;
    }

    /// As [`Log::lines_with`], after `mark`.
    pub async fn lines_after(&self, mark: usize, words: &[&str], count: usize) {
        let enough = |text: &str| {
            let later = text.get(mark..).unwrap_or_default();
            let found = later.lines().filter(|line| words.iter().all(|word| line.contains(word)));
            (found.count() >= count).then_some(())
        };
        self.find(&format!("{count} lines with {words:?}"), enough).await;
    }

    /// Prints its last lines beside the message of a failed test.
    pub fn print(&self, name: &str) {
        const LINES: usize = 60;
        let text = self.text();
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(LINES)..].join("\n");
        eprintln!("---- the log of {name} (its last lines)\n{tail}");
    }

    /// The present end of the log.
    pub fn mark(&self) -> usize {
        self.text.borrow().len()
    }

    /// As [`Log::line_with`], after `mark`.
    pub async fn line_after(&self, mark: usize, words: &[&str]) -> String {
        let matching = |text: &str| {
            let later = text.get(mark..).unwrap_or_default();
            later.lines().find(|line| words.iter().all(|word| line.contains(word))).map(str::to_owned)
        };
        self.find(&format!("a later line with {words:?}"), matching).await
    }

    /// Reads until the child closes its end.
    pub fn follow(&self, mut stderr: ChildStderr) -> JoinHandle<()> {
        let log = self.clone();
        let mut file = self.file.as_ref().map(|path| {
            let options = fs::OpenOptions::new().create(true).append(true).to_owned();
            options.open(path).unwrap_or_else(|problem| panic!("cannot write {}: {problem}", path.display()))
        });
        tokio::spawn(async move {
            let mut buffer = [0; 8192];
            while let Ok(read @ 1..) = stderr.read(&mut buffer).await {
                log.text.send_modify(|text| text.push_str(&String::from_utf8_lossy(&buffer[..read])));
                // A full disk must not stop the program.
                let _ = file.iter_mut().try_for_each(|file| file.write_all(&buffer[..read]));
            }
        })
    }
}

/// A running program.
pub struct Process {
    name: &'static str,
    child: Child,
    ready: Value,
    /// The ready lines of it and its successors, which write to the same pipe.
    ready_lines: watch::Receiver<Vec<Value>>,
}

/// How to start one of the two programs.
pub struct Launch<'a> {
    name: &'static str,
    programs: Option<&'a Path>,
    cpu: Option<usize>,
    config: &'a Path,
    launcher: &'a [&'a str],
    arguments: &'a [&'a str],
    environment: &'a [(String, String)],
}

impl<'a> Launch<'a> {
    /// `name -c config`, in the folder of the config file.
    pub fn new(name: &'static str, config: &'a Path) -> Self {
        Self { name, programs: None, cpu: None, config, launcher: &[], arguments: &[], environment: &[] }
    }

    /// Takes the program from this folder instead of cargo's.
    pub fn programs(mut self, folder: Option<&'a Path>) -> Self {
        self.programs = folder;
        self
    }

    /// Pins it to one core.
    pub fn cpu(mut self, cpu: Option<usize>) -> Self {
        self.cpu = cpu;
        self
    }

    /// Runs it through a launcher (`unshare ...`) that executes it.
    pub fn through(mut self, launcher: &'a [&'a str]) -> Self {
        self.launcher = launcher;
        self
    }

    /// Appends arguments to `-c config`.
    pub fn arguments(mut self, arguments: &'a [&'a str]) -> Self {
        self.arguments = arguments;
        self
    }

    pub fn environment(mut self, environment: &'a [(String, String)]) -> Self {
        self.environment = environment;
        self
    }

    /// Starts it and waits for its ready line.
    pub async fn start(self, log: &Log) -> Process {
        self.try_start(log).await.unwrap_or_else(|problem| panic!("{problem}"))
    }

    /// As [`Launch::start`].
    ///
    /// # Errors
    /// The output instead of a ready line, and the log.
    pub async fn try_start(self, log: &Log) -> Result<Process, String> {
        let name = self.name;
        successor::adopt_orphans();
        let mut child = spawn(&mut self.command(), self.cpu)
            .map_err(|problem| format!("cannot start {name}: {problem}"))?;
        let logging = log.follow(child.stderr.take().expect("standard error is piped"));
        let mut stdout = BufReader::new(child.stdout.take().expect("standard output is piped"));
        let mut line = String::new();
        let read = timeout(EVENT_TIMEOUT, stdout.read_line(&mut line)).await;
        let Some(ready) = parse_ready_line(&line) else {
            let _ = child.start_kill();
            let ended = timeout(EVENT_TIMEOUT, child.wait()).await;
            let _ = timeout(EVENT_TIMEOUT, logging).await;
            return Err(format!(
                "{name} was not ready: {line:?} (read: {read:?}), ended: {ended:?}, log:\n{}",
                log.text()
            ));
        };
        let (lines, ready_lines) = watch::channel(vec![ready.clone()]);
        // Later output must not fill the pipe and block the program.
        tokio::spawn(async move {
            let mut read = stdout.lines();
            while let Ok(Some(line)) = read.next_line().await {
                lines.send_modify(|lines| lines.extend(parse_ready_line(&line)));
            }
        });
        Ok(Process { name, child, ready, ready_lines })
    }

    fn command(&self) -> Command {
        let program = self.programs.map_or_else(|| program(self.name), |folder| folder.join(self.name));
        let mut command = match self.launcher {
            [] => Command::new(&program),
            [first, rest @ ..] => {
                let mut command = Command::new(first);
                command.args(rest).arg(&program);
                command
            }
        };
        command
            .arg("-c")
            .arg(self.config)
            .args(self.arguments)
            .current_dir(self.config.parent().expect("a config file is in a folder"))
            // Tests wait for the `debug` line of the saver about the last-good file.
            .env("RUST_LOG", "info,dataplane::push_client::saver=debug")
            .env("NO_COLOR", "1")
            .envs(self.environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }
}

fn parse_ready_line(line: &str) -> Option<Value> {
    line.strip_prefix("ready ").and_then(|json| serde_json::from_str(json).ok())
}

/// Starts a command, pinned to a core if one is given: the child inherits the affinity that this
/// thread has meanwhile.
fn spawn(command: &mut Command, cpu: Option<usize>) -> io::Result<Child> {
    match cpu {
        Some(cpu) => pinned(cpu, || command.spawn())?,
        None => command.spawn(),
    }
}

impl Process {
    /// Another project's program, which prints no ready line.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn foreign(name: &'static str, mut command: Command, cpu: Option<usize>) -> io::Result<Self> {
        let child = spawn(command.kill_on_drop(true), cpu)?;
        Ok(Self { name, child, ready: Value::Null, ready_lines: watch::channel(Vec::new()).1 })
    }

    /// Its standard error, when that is piped and was not taken before.
    pub fn stderr(&mut self) -> Option<ChildStderr> {
        self.child.stderr.take()
    }

    /// Its exit status once it has ended.
    pub fn try_wait(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Sends SIGKILL without waiting.
    pub fn start_kill(&mut self) {
        let _ = self.child.start_kill();
    }

    /// The JSON of its ready line.
    pub fn ready(&self) -> &Value {
        &self.ready
    }

    /// The ready lines so far, of it and its successors.
    pub fn ready_lines(&self) -> Vec<Value> {
        self.ready_lines.borrow().clone()
    }

    /// Waits for the ready line of its n-th successor.
    pub async fn successor(&self, nth: usize) -> Successor {
        let mut lines = self.ready_lines.clone();
        let seen = timeout(EVENT_TIMEOUT, lines.wait_for(|lines| lines.len() > nth)).await;
        let Ok(Ok(lines)) = seen else { panic!("{} has no successor {nth}: {seen:?}", self.name) };
        Successor::new(lines[nth].clone())
    }

    pub fn id(&self) -> u32 {
        self.child.id().unwrap_or_else(|| panic!("{} already ended", self.name))
    }

    /// `kill -9`: no handler runs, and nothing is flushed.
    pub async fn kill_9(mut self) {
        self.child.kill().await.unwrap_or_else(|problem| panic!("cannot kill {}: {problem}", self.name));
    }

    /// Sends a signal without waiting.
    pub fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.id()).expect("a process id is positive");
        kill(Pid::from_raw(id), signal)
            .unwrap_or_else(|problem| panic!("cannot signal {}: {problem}", self.name));
    }

    /// Waits for its end.
    pub async fn ended(&mut self) -> ExitStatus {
        timeout(EVENT_TIMEOUT, self.child.wait())
            .await
            .unwrap_or_else(|_| panic!("{} was expected to end and still runs", self.name))
            .expect("a child can be waited for")
    }

    /// Sends SIGTERM and waits for the end.
    pub async fn stop(mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.ended().await
    }

    /// Waits for its end without a bound.
    pub async fn wait(&mut self) -> ExitStatus {
        self.child.wait().await.expect("a child can be waited for")
    }

    /// As [`Process::stop`], for a process that may have ended already.
    pub async fn stop_if_running(mut self) {
        if self.child.id().is_some() {
            self.signal(Signal::SIGTERM);
        }
        self.ended().await;
    }
}
