//! The predecessor's side of a hand-over.
//!
//! Invariant: a successor that does not reach `serving` is killed and waited for before the error
//! is returned, so the caller may use again what it had paused.

use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::link::{Link, ReceiveError};
use super::message::{DESCRIPTORS_MAX, DrainingName, Message, SocketName};
use super::{
    DRAINING_MAX, ENVIRONMENT, Generations, HandoverError, OfferedSocket, PROTOCOL, Program, Step, Wait,
};

/// How long a failed successor may take to end by itself, and then after SIGTERM.
const END_MAX: Duration = Duration::from_secs(3);
const END_INTERVAL: Duration = Duration::from_millis(10);
/// Between two log lines about one wait.
const LOG_INTERVAL: Duration = Duration::from_secs(5);

/// A child that is killed when it is dropped before it serves.
#[derive(Debug)]
struct Candidate {
    child: Child,
    link: Link,
    serves: bool,
}

/// A successor that has the sockets, and reads its settings.
#[derive(Debug)]
pub struct StartingSuccessor(Candidate);

/// A successor whose settings are valid.
#[derive(Debug)]
pub struct StartedSuccessor(Candidate);

/// A successor that waits for the permission to accept connections.
#[derive(Debug)]
pub struct ReadySuccessor(Candidate);

/// A successor that accepts connections. Keep it until this process ends: it holds the life token
/// open.
#[derive(Debug)]
pub struct ServingSuccessor(Candidate);

/// Starts the successor and sends it the sockets.
///
/// # Errors
/// [`HandoverError`]; no successor runs then.
pub fn start(
    program: &Program,
    sockets: &[OfferedSocket],
    generations: &Generations,
) -> Result<StartingSuccessor, HandoverError> {
    if std::process::id() == 1 {
        return Err(HandoverError::ProcessOne);
    }
    let tokens: Vec<_> = generations.open_tokens().collect();
    if tokens.len() >= DRAINING_MAX {
        return Err(HandoverError::TooManyGenerations(generations.draining()));
    }
    let (link, other) = Link::pair().map_err(HandoverError::system("cannot make a pair of sockets"))?;
    let mut command = program.command();
    command.stdin(Stdio::from(other)).env(ENVIRONMENT, PROTOCOL.to_string());
    // What the service manager meant for this process alone.
    for variable in telemetry::service::ENVIRONMENT_OF_ONE_PROCESS {
        command.env_remove(variable);
    }
    let child = command.spawn().map_err(|error| spawn_error(program, error))?;
    // The command holds a descriptor of the successor's end, which would hide that it closes.
    drop(command);
    let mut candidate = Candidate { child, link, serves: false };
    let draining = tokens
        .iter()
        .map(|token| DrainingName { pid: token.process.pid, generation: token.process.generation })
        .collect();
    let offer = Message::Offer {
        pid: std::process::id(),
        generation: generations.number(),
        sockets: sockets.len(),
        draining,
    };
    let descriptors: Vec<_> = tokens.iter().map(|token| token.token.as_fd()).collect();
    let mut sent = candidate.link.send(&offer, &descriptors);
    for batch in sockets.chunks(DESCRIPTORS_MAX) {
        let names = batch.iter().map(|socket| SocketName {
            name: socket.name.clone(),
            address: socket.address.clone(),
            activated: socket.activated,
        });
        let message = Message::Sockets { sockets: names.collect() };
        let descriptors: Vec<_> = batch.iter().map(|socket| socket.socket.as_fd()).collect();
        sent = sent.and_then(|()| candidate.link.send(&message, &descriptors));
    }
    match sent {
        Ok(()) => Ok(StartingSuccessor(candidate)),
        // It may have ended, and then its own words say more.
        Err(error) => Err(match candidate.expect(Step::Started, Wait::new(Duration::ZERO, &|| false)) {
            Err(reason @ (HandoverError::Ended { .. } | HandoverError::Failed { .. })) => reason,
            _ => error,
        }),
    }
}

/// An error of `spawn` may be one of `chdir(2)` in the new process.
fn spawn_error(program: &Program, error: std::io::Error) -> HandoverError {
    match std::fs::metadata(program.folder().join(".")) {
        Err(error) => HandoverError::WorkingDirectory { folder: program.folder().to_owned(), error },
        Ok(_) => HandoverError::Spawn { program: program.path().to_owned(), error },
    }
}

impl StartingSuccessor {
    /// The process id of the successor.
    pub fn pid(&self) -> u32 {
        self.0.child.id()
    }

    /// Waits until the settings of the successor are valid and it has the sockets it needs.
    ///
    /// # Errors
    /// [`HandoverError`]; the successor has ended then.
    pub fn wait_started(mut self, wait: Wait<'_>) -> Result<StartedSuccessor, HandoverError> {
        match self.0.expect(Step::Started, wait)? {
            Message::Started => Ok(StartedSuccessor(self.0)),
            other => Err(self.0.unexpected(&other)),
        }
    }
}

impl StartedSuccessor {
    /// Waits until the successor is prepared, and gives what it reports about itself.
    ///
    /// # Errors
    /// [`HandoverError`]; the successor has ended then.
    pub fn wait_ready(mut self, wait: Wait<'_>) -> Result<(ReadySuccessor, Value), HandoverError> {
        match self.0.expect(Step::Ready, wait)? {
            Message::Ready { detail } => Ok((ReadySuccessor(self.0), detail)),
            other => Err(self.0.unexpected(&other)),
        }
    }
}

impl ReadySuccessor {
    /// Lets the successor accept connections and waits until it does. Before the call, pause
    /// everything that has one writer; resume it when the call fails.
    ///
    /// # Errors
    /// [`HandoverError`]; the successor has ended then.
    pub fn go(mut self, wait: Wait<'_>) -> Result<ServingSuccessor, HandoverError> {
        if let Err(error) = self.0.link.send(&Message::Go, &[]) {
            return Err(match self.0.expect(Step::Serving, Wait::new(Duration::ZERO, &|| false)) {
                Err(reason @ (HandoverError::Ended { .. } | HandoverError::Failed { .. })) => reason,
                _ => error,
            });
        }
        match self.0.expect(Step::Serving, wait)? {
            Message::Serving => {
                self.0.serves = true;
                Ok(ServingSuccessor(self.0))
            }
            other => Err(self.0.unexpected(&other)),
        }
    }
}

impl ServingSuccessor {
    /// The process id of the successor.
    pub fn pid(&self) -> u32 {
        self.0.child.id()
    }

    /// Reports that this process has closed its listeners. A failure changes nothing: the successor
    /// serves, or it has ended.
    ///
    /// # Errors
    /// As `sendmsg(2)`.
    pub fn released(&self) -> Result<(), HandoverError> {
        self.0.link.send(&Message::Released, &[])
    }

    /// Sends SIGHUP to the successor.
    pub fn signal_reload(&self) {
        if let Ok(pid) = i32::try_from(self.pid()) {
            let _ended_meanwhile = kill(Pid::from_raw(pid), Signal::SIGHUP);
        }
    }

    /// How the successor ended, if it did.
    ///
    /// # Errors
    /// As `wait(2)`.
    pub fn try_wait(&mut self) -> std::io::Result<Option<ExitStatus>> {
        self.0.child.try_wait()
    }
}

impl Candidate {
    /// The next message, unless it is a failure.
    fn expect(&mut self, step: Step, wait: Wait<'_>) -> Result<Message, HandoverError> {
        let pid = self.child.id();
        let error = match self.receive(step, wait) {
            Ok((Message::Failed { reason }, _)) => {
                HandoverError::Failed { pid, step, reason, status: self.end(END_MAX) }
            }
            Ok((message, descriptors)) if descriptors.is_empty() => return Ok(message),
            Ok((message, _)) => {
                HandoverError::Protocol(format!("the message {} carries descriptors", message.name()))
            }
            Err(ReceiveError::Closed) => match self.end(END_MAX) {
                Some(status) => HandoverError::Ended { pid, step, status },
                None => HandoverError::Protocol("the new process closed its standard input".to_owned()),
            },
            Err(ReceiveError::Late) => HandoverError::Late { pid, step, limit: wait.limit },
            Err(ReceiveError::Cancelled) => HandoverError::Cancelled,
            Err(ReceiveError::Invalid(found)) => HandoverError::Protocol(found),
            Err(ReceiveError::Io(error)) => {
                HandoverError::System { action: "cannot read from the new process", error }
            }
        };
        self.kill();
        Err(error)
    }

    /// The next message. The log says what a long wait waits for.
    fn receive(&self, step: Step, wait: Wait<'_>) -> Result<(Message, Vec<OwnedFd>), ReceiveError> {
        let begun = Instant::now();
        loop {
            let left = wait.limit.saturating_sub(begun.elapsed());
            let received = self.link.receive(Wait::new(left.min(LOG_INTERVAL), wait.cancelled));
            if left <= LOG_INTERVAL || !matches!(received, Err(ReceiveError::Late)) {
                return received;
            }
            tracing::info!(
                "upgrade: waiting for process {} for {} s: it {}; it is ended after {} s",
                self.child.id(),
                begun.elapsed().as_secs(),
                step.pending(),
                wait.limit.as_secs()
            );
        }
    }

    fn unexpected(&mut self, message: &Message) -> HandoverError {
        self.kill();
        HandoverError::Protocol(format!("the message {} comes too early or too late", message.name()))
    }

    /// Waits for its end, and gives its status unless it still runs.
    fn end(&mut self, limit: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return Some(status),
                Ok(None) if Instant::now() < deadline => thread::sleep(END_INTERVAL),
                Ok(None) | Err(_) => return None,
            }
        }
    }

    /// SIGTERM lets it remove its files; SIGKILL ends what hangs or is stopped.
    fn kill(&mut self) {
        // An id of a child that was not waited for belongs to no other process.
        if self.end(Duration::ZERO).is_some() {
            return;
        }
        if let Ok(pid) = i32::try_from(self.child.id()) {
            let _ended_meanwhile = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        if self.end(END_MAX).is_none() {
            let _ended_meanwhile = self.child.kill();
            let _reaped = self.child.wait();
        }
    }
}

impl Drop for Candidate {
    fn drop(&mut self) {
        if !self.serves {
            self.kill();
        }
    }
}
