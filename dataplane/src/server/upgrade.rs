//! An upgrade: this process starts its successor, which takes over the listeners, and drains.
//!
//! Invariant: until the successor serves, every failure leaves this process as it was. The
//! last-good file has one writer at any time.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::ExitStatus;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use process::control_socket::{self, ControlRequest, ControlSocket};
use process::handover::{self, HandoverError, OfferedSocket, Program, ServingSuccessor, Wait};
use process::signals::Signals;
use serde::{Deserialize, Serialize};
use telemetry::ServiceManager;

use super::RunningServer;
use super::events::{DrainEnd, Events, Reply, socket_path};
use super::listeners::BoundListener;
use crate::lifecycle::ShutdownStage;
use crate::proxy::worker::WorkerCommand;

/// How long the successor may take to read its settings, to prepare itself, and to start its
/// workers. It waits for a control plane for `CONTROL_PLANE_MAX` at most.
pub(super) const STEP_MAX: Duration = Duration::from_secs(30);
/// How long workers may take to leave their sockets: some turns of their loops.
const RELEASE_MAX: Duration = Duration::from_secs(5);
/// How long a process may take to report its id.
const PID_MAX: Duration = Duration::from_secs(2);
const RELEASE_INTERVAL: Duration = Duration::from_millis(5);

/// What a successor reports when it is prepared.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ReadyDetail {
    /// Of the snapshot that it will serve.
    pub(super) revision: u64,
    /// The addresses that it serves.
    pub(super) addresses: Vec<SocketAddr>,
}

/// Why an upgrade failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum UpgradeError {
    /// The successor would serve an older snapshot, or none.
    #[error(
        "countersign.node.last_good: {0}; the new process would begin with an older snapshot. Make room on the disk, or make the \
         folder writable"
    )]
    LastGood(String),
    #[error("the sockets cannot be passed on: {0}")]
    Sockets(std::io::Error),
    #[error(transparent)]
    Handover(#[from] HandoverError),
    #[error("the new process does not report its addresses: {0}")]
    Detail(serde_json::Error),
    /// The successor would serve an older snapshot than this process does, or none.
    #[error(
        "the new process would serve revision {found} and not {needed}, which this one serves: its countersign.node.last_good has \
         an older snapshot, or none, and it reaches no control plane"
    )]
    OlderSnapshot { found: u64, needed: u64 },
}

/// The successor has ended while this process drained.
#[derive(Debug, thiserror::Error)]
#[error(
    "the new process {pid} ended with {status} after the upgrade, so that no process accepts connections: its last log lines say \
     why; start the program again"
)]
pub(super) struct SuccessorEnded {
    pid: u32,
    status: ExitStatus,
}

/// A successor that serves.
pub(super) struct Succession {
    pub(super) successor: ServingSuccessor,
    detail: ReadyDetail,
}

impl RunningServer {
    /// Starts the successor and lets it serve. After an error this process serves as before.
    pub(super) fn upgrade(&self, program: &Program, signals: &Signals) -> Result<Succession, UpgradeError> {
        self.hand_over(program, signals).inspect_err(|_| self.upgrades.failed.inc())
    }

    fn hand_over(&self, program: &Program, signals: &Signals) -> Result<Succession, UpgradeError> {
        let stopping = || signals.is_stopping();
        let wait = Wait::new(STEP_MAX, &stopping);
        let flushed = self.shared.snapshot.load().revision();
        self.push_client.flush().map_err(UpgradeError::LastGood)?;
        let sockets = self.offer().map_err(UpgradeError::Sockets)?;
        let starting = handover::start(program, &sockets, &self.upgrades.generations)?;
        drop(sockets);
        let pid = starting.pid();
        tracing::info!(pid, program = %program.path().display(), "upgrade: the new process starts");
        let (ready, detail) = starting.wait_started(wait)?.wait_ready(wait)?;
        let detail: ReadyDetail = serde_json::from_value(detail).map_err(UpgradeError::Detail)?;
        // A store that was set back meanwhile has taken this process back, too.
        let needed = flushed.min(self.shared.snapshot.load().revision());
        if detail.revision < needed {
            // `ready` ends the successor.
            return Err(UpgradeError::OlderSnapshot { found: detail.revision, needed });
        }
        let paused = self.push_client.pause_saving().map_err(UpgradeError::LastGood);
        let serving = paused.and_then(|()| Ok(ready.go(wait)?));
        if serving.is_err() {
            self.push_client.resume_saving();
        }
        serving.map(|successor| Succession { successor, detail })
    }

    fn offer(&self) -> std::io::Result<Vec<OfferedSocket>> {
        let mut sockets = self.listeners.offer()?;
        sockets.extend(self.ports.offer()?);
        Ok(sockets)
    }

    /// Leaves the listeners to the successor and drains, until a stop signal or the last connection
    /// ends.
    pub(super) fn drain_after_handover(
        mut self,
        succession: Succession,
        mut events: Events,
        control: Option<ControlSocket>,
        reply: Reply,
        service: &ServiceManager,
    ) -> Result<(), SuccessorEnded> {
        let Succession { mut successor, detail } = succession;
        tracing::info!(
            pid = successor.pid(),
            revision = detail.revision,
            "upgrade: the new process accepts connections; this one serves its open connections to their end"
        );
        service.main_pid(successor.pid());
        service.flush();
        self.ports.close();
        self.close_unused(&detail.addresses);
        self.stage.send_replace(ShutdownStage::HandedOver);
        wait_closed(&sockets_of(std::mem::take(&mut self.listeners).0));
        if let Err(error) = successor.released() {
            tracing::error!(%error, "upgrade: the new process has ended");
        }
        let (own, pid) = (std::process::id(), successor.pid());
        reply.send(Ok(format!(
            "the data plane is process {pid} now; process {own} serves its open connections to their end"
        )));
        if events.take_reload() {
            tracing::info!(pid, "SIGHUP came during the upgrade: it is passed on to the new process");
            successor.signal_reload();
        }
        events.refuse_requests();
        drop(control);
        let socket = socket_path(self.last_good());
        let ended = || successor.try_wait().ok().flatten().filter(|status| !status.success());
        let mut failed = None;
        match events.wait_for_drain(&mut self.drained, ended) {
            DrainEnd::Drained => {}
            DrainEnd::Stopped => drop(self.stage.send_replace(ShutdownStage::Draining)),
            // A later generation answers there.
            DrainEnd::SuccessorFailed(status) if !is_served(&socket) => {
                tracing::error!(pid, %status, "the new process has ended: no process accepts connections");
                self.stage.send_replace(ShutdownStage::Draining);
                failed = Some(SuccessorEnded { pid, status });
            }
            DrainEnd::SuccessorFailed(_) => drop(events.wait_for_drain(&mut self.drained, || None)),
        }
        self.finish();
        // Its end of the pair tells later generations that this process runs.
        drop(successor);
        failed.map_or(Ok(()), Err)
    }

    /// Closes the listeners that the successor does not have, after what is in their queues.
    fn close_unused(&mut self, used: &[SocketAddr]) {
        let unused = self.listeners.0.extract_if(.., |listener| !used.contains(&listener.addr()));
        let unused: Vec<_> = unused.collect();
        for listener in &unused {
            tracing::info!(addr = %listener.addr(), "the new settings do not have this address: it closes");
            for worker in &self.workers {
                worker.command(WorkerCommand::Close(listener.addr()));
            }
        }
        wait_closed(&sockets_of(unused));
    }
}

/// Whether a process answers on the control socket.
fn is_served(socket: &Path) -> bool {
    control_socket::request(socket, &ControlRequest::Pid, PID_MAX).is_ok()
}

/// Drops the listeners of the main thread.
fn sockets_of(listeners: Vec<BoundListener>) -> Vec<Weak<TcpListener>> {
    let sockets = listeners.iter().flat_map(|listener| &listener.sockets);
    sockets.map(|bound| Arc::downgrade(&bound.socket)).collect()
}

/// Waits until the workers have left their sockets.
fn wait_closed(sockets: &[Weak<TcpListener>]) {
    let deadline = Instant::now() + RELEASE_MAX;
    while sockets.iter().any(|socket| socket.strong_count() > 0) {
        if Instant::now() >= deadline {
            tracing::warn!("a worker has not left its listeners in time");
            return;
        }
        thread::sleep(RELEASE_INTERVAL);
    }
}
