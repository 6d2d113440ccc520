//! A server process: started pinned, its log in a file, ended with the value that owns it.
//!
//! Ending is SIGTERM, then SIGKILL when it does not listen. Every wait has a bound.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::PeerError;
use crate::process::spawn_pinned;

/// How long a server may take to become ready on a busy machine.
const READY: Duration = Duration::from_secs(120);
/// How long it may take to end after SIGTERM.
const END: Duration = Duration::from_secs(10);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(2);

/// A running server process.
pub struct Server {
    program: String,
    command: String,
    child: Child,
    log: PathBuf,
    /// When it was started.
    pub started: Instant,
}

impl Server {
    /// Starts a command on one core; stderr is appended to `log`.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn spawn(mut command: Command, cpu: usize, log: &Path) -> Result<Self, PeerError> {
        let program = command.get_program().to_string_lossy().into_owned();
        let to = OpenOptions::new().create(true).append(true).open(log);
        let to: File = to.map_err(PeerError::system(format!("opening the log {}", log.display())))?;
        let arguments = command.get_args().map(|argument| argument.to_string_lossy());
        let told = std::iter::once(program.as_str().into()).chain(arguments).collect::<Vec<_>>().join(" ");
        command.stdin(Stdio::null()).stderr(to);
        let started = Instant::now();
        let child =
            spawn_pinned(&mut command, cpu).map_err(PeerError::system(format!("starting {program}")))?;
        Ok(Self { program, command: told, child, log: log.to_owned(), started })
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its command line.
    pub fn command(&self) -> &str {
        &self.command
    }

    /// Waits until somebody listens at `address`.
    ///
    /// # Errors
    /// When the process ends before, or takes too long.
    pub fn wait_listening(&mut self, address: SocketAddr) -> Result<(), PeerError> {
        loop {
            if TcpStream::connect(address).is_ok() {
                return Ok(());
            }
            self.still_running("nothing listens")?;
            std::thread::sleep(LOOK);
        }
    }

    /// Waits for the line `ready {...}` on stdout, and gives its JSON.
    ///
    /// # Errors
    /// When the process ends before, takes too long, or says something else.
    pub fn wait_ready(&mut self) -> Result<serde_json::Value, PeerError> {
        let Some(stdout) = self.child.stdout.take() else {
            return Err(self.not_ready("its standard output was not captured"));
        };
        let lines = read_lines(stdout);
        loop {
            match lines.recv_timeout(LOOK) {
                Ok(line) => {
                    let ready = line.strip_prefix("ready ").and_then(|json| serde_json::from_str(json).ok());
                    return ready.ok_or_else(|| {
                        self.not_ready(&format!("it said `{line}` instead of `ready {{...}}`"))
                    });
                }
                Err(mpsc::RecvTimeoutError::Timeout) => self.still_running("no ready line")?,
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    self.still_running("no ready line")?;
                    return Err(self.not_ready("it closed its standard output"));
                }
            }
        }
    }

    /// Ends it and waits until it is gone.
    pub fn stop(&mut self) {
        let pid = i32::try_from(self.child.id()).map(Pid::from_raw);
        let signal = |signal| {
            if let Ok(pid) = pid {
                let _ = kill(pid, signal);
            }
        };
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        signal(Signal::SIGTERM);
        let until = Instant::now() + END;
        while Instant::now() < until {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(LOOK);
        }
        signal(Signal::SIGKILL);
        let _ = self.child.wait();
    }

    fn still_running(&mut self, waiting: &str) -> Result<(), PeerError> {
        if let Ok(Some(status)) = self.child.try_wait() {
            return Err(self.not_ready(&format!("it ended with {status}")));
        }
        if self.started.elapsed() > READY {
            return Err(self.not_ready(&format!("{waiting} after {READY:?}")));
        }
        Ok(())
    }

    fn not_ready(&self, problem: &str) -> PeerError {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines.iter().rev().take(15).rev().copied().collect::<Vec<_>>().join("\n");
        PeerError::NotReady {
            program: self.program.clone(),
            problem: problem.to_owned(),
            log: self.log.clone(),
            tail,
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Reads lines on a thread, so that waiting for one can have a bound; keeps reading, so that the writer never blocks.
fn read_lines(stdout: ChildStdout) -> mpsc::Receiver<String> {
    let (to, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            // Nobody waits for more than the first line; the rest is read and dropped.
            let _ = to.send(line);
        }
    });
    lines
}

/// A port that was free a moment ago, for programs that cannot tell which one the kernel gave them.
///
/// # Errors
/// When the loopback interface has none.
pub fn free_port() -> Result<u16, PeerError> {
    let bound = TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr());
    bound.map(|address| address.port()).map_err(PeerError::system("looking for a free port"))
}

/// The first line a program prints when asked for its version, on stdout or stderr.
pub fn version_line(program: &Path, argument: &str) -> Option<String> {
    let output = Command::new(program).arg(argument).stdin(Stdio::null()).output().ok()?;
    let text = [output.stdout, output.stderr].concat();
    let line = String::from_utf8_lossy(&text).lines().next()?.trim().to_owned();
    (!line.is_empty()).then_some(line)
}
