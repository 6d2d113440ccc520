//! Another project's server: started on one core, its log in a file, terminated with its value.
//!
//! Invariant: every wait has a bound, and a dropped server is gone with all its children.

use std::fs::{self, OpenOptions};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use e2e::process::Process;
use nix::sys::signal::Signal;
use tokio::runtime::Handle;

use super::{Kind, PeerError};

/// The limit of a start, on a busy machine.
const START_TIMEOUT: Duration = Duration::from_secs(120);
/// From SIGTERM to SIGKILL.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
const POLL_INTERVAL: Duration = Duration::from_millis(2);

pub struct Server {
    process: Process,
    command: String,
    log: PathBuf,
    started: Instant,
}

impl Server {
    /// Starts a command on one core; its standard error is appended to `log`.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn spawn(
        kind: Kind,
        mut command: Command,
        cpu: usize,
        log: &Path,
        runtime: &Handle,
    ) -> Result<Self, PeerError> {
        let stderr = OpenOptions::new().create(true).append(true).open(log);
        let stderr = stderr.map_err(PeerError::system(format!("opening the log {}", log.display())))?;
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        let line = words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
        let _context = runtime.enter();
        let started = Instant::now();
        let process = Process::foreign(kind.name(), command.into(), Some(cpu))
            .map_err(PeerError::system(format!("starting {line}")))?;
        Ok(Self { process, command: line, log: log.to_owned(), started })
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Its command line.
    pub fn command(&self) -> &str {
        &self.command
    }

    pub fn started(&self) -> Instant {
        self.started
    }

    /// Waits until a connection to `address` is accepted.
    ///
    /// # Errors
    /// When the process ends first, or takes too long.
    pub fn wait_listening(&mut self, address: SocketAddr) -> Result<(), PeerError> {
        while TcpStream::connect(address).is_err() {
            if let Some(status) = self.process.try_wait() {
                return Err(self.not_ready(format!("it ended with {status}")));
            }
            if self.started.elapsed() > START_TIMEOUT {
                return Err(self.not_ready(format!("nothing listens after {START_TIMEOUT:?}")));
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        Ok(())
    }

    /// Terminates it and waits for its end.
    pub fn stop(&mut self) {
        if self.process.try_wait().is_some() {
            return;
        }
        self.process.signal(Signal::SIGTERM);
        let until = Instant::now() + STOP_TIMEOUT;
        while self.process.try_wait().is_none() {
            if Instant::now() > until {
                self.process.start_kill();
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    fn not_ready(&self, problem: String) -> PeerError {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines.iter().rev().take(15).rev().copied().collect::<Vec<_>>().join("\n");
        PeerError::NotReady { command: self.command.clone(), problem, log: self.log.clone(), tail }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The first line that a program prints for its version, on standard output or error.
pub fn version_line(program: &Path, argument: &str) -> Option<String> {
    let output = Command::new(program).arg(argument).stdin(Stdio::null()).output().ok()?;
    let text = [output.stdout, output.stderr].concat();
    let line = String::from_utf8_lossy(&text).lines().next()?.trim().to_owned();
    (!line.is_empty()).then_some(line)
}
