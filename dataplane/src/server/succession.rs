//! The start of a process that takes over from a predecessor.

use std::time::Duration;

use anyhow::Context as _;
use process::control_socket::ControlSocket;
use process::handover::{FailureReporter, Generations, OfferedSuccession, Wait};
use process::signals::Signals;

use super::events::Events;
use super::listeners::{InheritedSockets, ListenerPlan};
use super::upgrade::{ReadyDetail, STEP_MAX};
use super::{PreparedServer, RunningServer};
use crate::proxy::listener::bind_another;
use crate::proxy::worker::WorkerCommand;
use crate::push_client;

/// How long to wait for a control plane to confirm the snapshot: the predecessor serves the same
/// one, so a longer wait makes nothing newer.
const CONTROL_PLANE_MAX: Duration = Duration::from_secs(5);
/// How long the predecessor may take to leave its listeners: it gives up after some seconds itself.
const RELEASED_MAX: Duration = Duration::from_secs(60);

/// Where this process comes from.
pub(super) struct Origin {
    /// The sockets that no listener has taken yet.
    pub(super) inherited: InheritedSockets,
    pub(super) generations: Generations,
    /// `None`: it was started by hand or by a service manager.
    pub(super) offer: Option<OfferedSuccession>,
}

impl Origin {
    /// # Errors
    /// A socket of the predecessor, or of the service manager, is not what its name claims.
    pub(super) fn new(mut offer: Option<OfferedSuccession>) -> anyhow::Result<Self> {
        let inherited = match offer.as_mut().map(|offer| std::mem::take(&mut offer.sockets)) {
            Some(sockets) => InheritedSockets::new(sockets)?,
            None => InheritedSockets::activated()?,
        };
        Ok(Self {
            inherited,
            generations: offer.as_ref().map_or_else(Generations::first, |offer| offer.generations.clone()),
            offer,
        })
    }
}

/// Takes over from the predecessor: prepared, permitted, serving, released.
///
/// # Errors
/// The predecessor serves on.
pub(super) fn take_over(
    offer: OfferedSuccession,
    prepared: PreparedServer,
    events: &Events,
    signals: &Signals,
) -> anyhow::Result<(RunningServer, Option<ControlSocket>)> {
    let stopping = || signals.is_stopping();
    let predecessor = offer.predecessor;
    let preparing = offer.started()?;
    push_client::wait_until_current(&prepared.sync_status, CONTROL_PLANE_MAX, signals.stop())?;
    let revision = prepared.shared.snapshot.load().revision();
    let detail = ReadyDetail { revision, addresses: prepared.listeners.addresses(|_| true) };
    let detail = serde_json::to_value(detail).context("cannot report to the predecessor")?;
    let permitted = preparing.ready(detail, Wait::new(STEP_MAX, &stopping))?;
    prepared.push_client.resume_saving();
    let mut running = prepared.start()?;
    // Before the predecessor leaves: a command always finds a process. If this one fails, the
    // predecessor takes the name back.
    let control = events.serve_control_socket(running.last_good(), Some(predecessor));
    let serving = permitted.serving()?;
    if let Err(error) = serving.wait_released(Wait::new(RELEASED_MAX, &stopping)) {
        tracing::warn!(%error, "the predecessor may still accept connections");
    }
    running.bind_missing_sockets();
    Ok((running, control))
}

impl RunningServer {
    /// Binds sockets for the workers that share one with another worker. Not earlier: a socket of a
    /// successor that fails would lose what is in its queue.
    fn bind_missing_sockets(&mut self) {
        let workers = &self.workers;
        for listener in &mut self.listeners.0 {
            let ListenerPlan { key, options, .. } = listener.plan;
            for worker in workers.iter().skip(listener.sockets.len()) {
                let bound = match bind_another(key, listener.addr(), options) {
                    Ok(bound) => bound,
                    Err(error) => {
                        tracing::warn!(%error, "workers share sockets: some may get more connections than others");
                        break;
                    }
                };
                worker.command(WorkerCommand::Release(bound.addr));
                worker.command(WorkerCommand::Listen(bound.clone()));
                listener.sockets.push(bound);
            }
        }
    }
}

/// Reports to the predecessor why this process ends.
pub(super) fn report(reporter: Option<&FailureReporter>, error: &anyhow::Error) {
    if let Some(reporter) = reporter {
        reporter.report(&format!("{error:#}"));
    }
}
