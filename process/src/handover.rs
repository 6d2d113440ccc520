//! The hand-over: a running program starts its successor, passes its listening sockets to it, and
//! stops accepting when the successor accepts.
//!
//! Both talk over a pair of connected sockets (`SOCK_SEQPACKET`): the successor's end is its
//! standard input, announced by [`ENVIRONMENT`]. One packet is one message in JSON; descriptors
//! travel beside it (`SCM_RIGHTS`).
//!
//! | message | from | says |
//! |---|---|---|
//! | `offer` | predecessor | who it is, how many sockets follow; carries the life tokens |
//! | `sockets` | predecessor | names and addresses; carries the sockets |
//! | `started` | successor | the settings are valid, and it has the sockets it needs |
//! | `ready` | successor | everything is prepared, and it does not accept yet |
//! | `go` | predecessor | it has paused what has one writer |
//! | `serving` | successor | it accepts on all sockets |
//! | `released` | predecessor | it has closed its listeners, and drains |
//! | `failed` | successor | why it gives up, at any time before `serving` |
//!
//! Each step is a type of its own ([`start`] and [`take_over`] give the first ones), so no step can
//! be left out. Invariant: until `serving` arrived, every failure ends the successor and leaves the
//! predecessor as it was; after it nothing goes back. Calls block: use a plain thread.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

mod generations;
mod link;
mod message;
mod predecessor;
mod program;
mod socket;
mod successor;

pub use generations::{DrainingProcess, Generations};
pub use predecessor::{ReadySuccessor, ServingSuccessor, StartedSuccessor, StartingSuccessor, start};
pub use program::Program;
pub use socket::{InheritedListener, OfferedSocket};
pub use successor::{
    FailureReporter, OfferedSuccession, PermittedSuccession, PreparingSuccession, ServingSuccession,
    take_over,
};

/// The environment variable of a successor; its value is the version of the protocol.
pub const ENVIRONMENT: &str = "COUNTERSIGN_HANDOVER";
/// The version of the protocol that this program uses.
pub const PROTOCOL: u32 = 1;
/// The most predecessors that may drain while a further upgrade begins.
pub const DRAINING_MAX: usize = 4;

/// The bound of one wait for a message.
#[derive(Clone, Copy)]
pub struct Wait<'a> {
    /// How long to wait.
    pub limit: Duration,
    /// Checked ten times a second: true ends the wait, since this process is to stop.
    pub cancelled: &'a dyn Fn() -> bool,
}

impl<'a> Wait<'a> {
    /// A wait of at most `limit`, which ends early once `cancelled` returns true.
    pub fn new(limit: Duration, cancelled: &'a dyn Fn() -> bool) -> Self {
        Self { limit, cancelled }
    }
}

/// The steps that the other process may fail to reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The predecessor has sent its sockets.
    Offered,
    /// The successor's settings are valid.
    Started,
    /// The successor is prepared.
    Ready,
    /// The predecessor has paused what has one writer.
    Paused,
    /// The successor accepts connections.
    Serving,
    /// The predecessor has closed its listeners.
    Released,
}

impl Step {
    /// Completes "before it ...".
    const fn as_str(self) -> &'static str {
        match self {
            Self::Offered => "had offered its sockets",
            Self::Started => "had started",
            Self::Ready => "was ready",
            Self::Paused => "had paused its writers",
            Self::Serving => "served",
            Self::Released => "had released its listeners",
        }
    }

    /// What is awaited, after the name of the process.
    const fn pending(self) -> &'static str {
        match self {
            Self::Offered => "has not offered its sockets yet",
            Self::Started => "has not started yet",
            Self::Ready => "is not ready yet",
            Self::Paused => "has not paused its writers yet",
            Self::Serving => "does not serve yet",
            Self::Released => "has not released its listeners yet",
        }
    }
}

/// Why a hand-over failed.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// The end of process 1 ends its container, and the successor with it.
    #[error(
        "this is process 1 of its container, whose end would end the successor, too: start a new container and \
         stop this one, or start the program through an init (docker run --init does not help: it ends with its first child)"
    )]
    ProcessOne,
    /// Too many predecessors still drain.
    #[error(
        "{} earlier generations still drain (processes {}): upgrade again when one of them has ended; \
         nginx_config.worker_shutdown_timeout bounds how long that takes", .0.len(), pids(.0)
    )]
    TooManyGenerations(Vec<DrainingProcess>),
    /// The program cannot be executed.
    #[error("cannot start {program}: {error}", program = .program.display())]
    Spawn {
        /// The file.
        program: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The successor has the working directory of its predecessor.
    #[error(
        "the working directory of this process, {folder}, cannot be entered any more: {error}: make it accessible, or stop the \
         program and start it in another folder", folder = .folder.display()
    )]
    WorkingDirectory {
        /// The folder.
        folder: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The successor ended without an explanation.
    #[error("the new process {pid} ended before it {}, with {status}: its last log lines say why", .step.as_str())]
    Ended {
        /// The successor.
        pid: u32,
        /// What it did not reach.
        step: Step,
        /// How it ended.
        status: ExitStatus,
    },
    /// The successor reported a failure.
    #[error("the new process {pid} failed before it {}{}: {reason}", .step.as_str(), with(.status))]
    Failed {
        /// The successor.
        pid: u32,
        /// What it did not reach.
        step: Step,
        /// Its reason.
        reason: String,
        /// How it ended, if it ended by itself.
        status: Option<ExitStatus>,
    },
    /// The successor was too slow, and was killed.
    #[error("the new process {pid} was killed: {} s passed before it {}", .limit.as_secs(), .step.as_str())]
    Late {
        /// The successor.
        pid: u32,
        /// What it did not reach.
        step: Step,
        /// The limit that passed.
        limit: Duration,
    },
    /// The predecessor was too slow.
    #[error("{} s passed before the predecessor {}", .limit.as_secs(), .step.as_str())]
    PredecessorLate {
        /// What it did not reach.
        step: Step,
        /// The limit that passed.
        limit: Duration,
    },
    /// The predecessor ended, so that there is nothing to take over.
    #[error("the predecessor ended before it {}", .0.as_str())]
    PredecessorGone(Step),
    /// This process is to stop.
    #[error("it was cancelled, since this process is to stop")]
    Cancelled,
    /// The environment variable is set, but standard input is something else.
    #[error(
        "the environment variable {ENVIRONMENT} is set, but standard input is {found}, not the socket of a predecessor: only a \
         predecessor sets this variable; unset it to start a first process"
    )]
    NotAPredecessor {
        /// What standard input is.
        found: String,
    },
    /// The predecessor uses another protocol.
    #[error(
        "the predecessor hands over by version {0} of the protocol, this program by version {PROTOCOL}: stop the old program and \
         start this one"
    )]
    OtherProtocol(String),
    /// A received socket is not what its name claims.
    #[error("the socket offered as {name} {address} is {found}")]
    WrongSocket {
        /// The name in the offer.
        name: String,
        /// The address in the offer.
        address: String,
        /// What it is.
        found: String,
    },
    /// The other process sent something that is not in the protocol.
    #[error("the other process does not follow the protocol of the hand-over: {0}")]
    Protocol(String),
    /// A system call failed.
    #[error("{action}: {error}")]
    System {
        /// What was attempted.
        action: &'static str,
        /// Why it failed.
        error: io::Error,
    },
}

impl HandoverError {
    /// For `map_err`.
    fn system<E: Into<io::Error>>(action: &'static str) -> impl Fn(E) -> Self {
        move |error| Self::System { action, error: error.into() }
    }
}

fn pids(processes: &[DrainingProcess]) -> String {
    processes.iter().map(|process| process.pid.to_string()).collect::<Vec<_>>().join(", ")
}

fn with(status: &Option<ExitStatus>) -> String {
    status.map(|status| format!(", with {status}")).unwrap_or_default()
}

#[cfg(test)]
mod tests;
