//! What the agent knows of itself, for `/status`, `/metrics` and the log. Written by the agent, read by anybody; reading takes no lock.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use arc_swap::ArcSwapOption;
use tokio::sync::watch;

/// Where the snapshot in the cell came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Source {
    /// There is none.
    None = 0,
    /// The file of the process before.
    LastGood = 1,
    /// A control plane, in this process's life.
    ControlPlane = 2,
}

impl Source {
    /// `none`, `last_good`, `control_plane`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::LastGood => "last_good",
            Self::ControlPlane => "control_plane",
        }
    }
}

/// The agent's state, as of now.
#[derive(Default)]
pub struct AgentStatus {
    connected: AtomicBool,
    revision: AtomicU64,
    source: AtomicU8,
    applied: AtomicU64,
    refused: AtomicU64,
    rings: AtomicU64,
    problem: ArcSwapOption<String>,
    control_plane: ArcSwapOption<String>,
    changes: watch::Sender<u64>,
}

impl AgentStatus {
    /// Whether a control plane has welcomed us and its stream is open.
    pub fn connected(&self) -> bool {
        self.connected.load(Ordering::Acquire)
    }

    /// The revision in the cell; 0: none.
    pub fn revision(&self) -> u64 {
        self.revision.load(Ordering::Acquire)
    }

    /// Where it came from.
    pub fn source(&self) -> Source {
        match self.source.load(Ordering::Acquire) {
            1 => Source::LastGood,
            2 => Source::ControlPlane,
            _ => Source::None,
        }
    }

    /// Whether there is a snapshot to serve, possibly an empty one of a control plane that has nothing yet.
    pub fn ready(&self) -> bool {
        self.source() != Source::None
    }

    /// Changes taken over since the start.
    pub fn applied(&self) -> u64 {
        self.applied.load(Ordering::Relaxed)
    }

    /// Changes refused since the start.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Rings of ticket secrets taken over since the start.
    pub fn rings(&self) -> u64 {
        self.rings.load(Ordering::Acquire)
    }

    /// What last went wrong, while it is not mended.
    pub fn last_problem(&self) -> Option<Arc<String>> {
        self.problem.load_full()
    }

    /// The control plane (`host:port`) of the open stream, or of the last one.
    pub fn control_plane(&self) -> Option<Arc<String>> {
        self.control_plane.load_full()
    }

    /// Says that something of the above changed. For waiting without polling; not for the hot path.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
    }

    pub(super) fn welcomed(&self, control_plane: &str) {
        self.control_plane.store(Some(Arc::new(control_plane.to_owned())));
        self.problem.store(None);
        self.connected.store(true, Ordering::Release);
        self.changed();
    }

    pub(super) fn disconnected(&self) {
        self.connected.store(false, Ordering::Release);
        self.changed();
    }

    pub(super) fn serves(&self, revision: u64, source: Source) {
        self.revision.store(revision, Ordering::Release);
        self.source.store(source as u8, Ordering::Release);
        if source == Source::ControlPlane {
            self.applied.fetch_add(1, Ordering::Relaxed);
        }
        self.changed();
    }

    pub(super) fn took_ring(&self) {
        self.rings.fetch_add(1, Ordering::AcqRel);
        self.changed();
    }

    pub(super) fn nacked(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        self.changed();
    }

    pub(super) fn problem(&self, problem: Option<String>) {
        self.problem.store(problem.map(Arc::new));
        self.changed();
    }
}
