//! The main thread's handle on a worker's thread.

use std::sync::Arc;
use std::thread::{self, JoinHandle};

use anyhow::Context as _;
use telemetry::{Heartbeats, Readiness};
use tokio::sync::mpsc;

use crate::lifecycle::ShutdownWatch;
use crate::observability::metrics::Counters;
use crate::proxy::listener::BoundSocket;
use crate::proxy::worker::{SharedState, WorkerCommand};
use crate::proxy::worker_thread::{self, WorkerInit};
use crate::runtime::Driver;

pub(super) struct WorkerThread {
    thread: JoinHandle<()>,
    pub(super) counters: Arc<Counters>,
    commands: mpsc::UnboundedSender<WorkerCommand>,
}

/// The input of [`WorkerThread::start`].
pub(super) struct WorkerStart<'a> {
    /// The number of this worker, and of all.
    pub(super) position: (usize, usize),
    pub(super) shared: &'a Arc<SharedState>,
    pub(super) listeners: Vec<BoundSocket>,
    pub(super) driver: &'a Driver,
    pub(super) heartbeats: &'a Heartbeats,
    /// As in [`WorkerInit`].
    pub(super) listening: mpsc::UnboundedSender<()>,
    pub(super) shutdown: ShutdownWatch,
}

impl WorkerThread {
    /// # Errors
    /// When the system gives no thread.
    pub(super) fn start(start: WorkerStart<'_>) -> anyhow::Result<Self> {
        let WorkerStart { position: (index, workers), shared, listeners, driver, heartbeats, .. } = start;
        let counters = Arc::new(Counters::of_worker(index));
        let (commands, received) = mpsc::unbounded_channel();
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let init = WorkerInit {
            shared: Arc::clone(shared),
            counters: Arc::clone(&counters),
            heartbeat: heartbeats.add(format!("worker-{index}"), Readiness::Required),
            listeners,
            commands: received,
            listening: start.listening,
            driver: driver.clone(),
            // With fewer workers than cores the kernel places them better.
            cpu: (workers == cores && workers > 1).then_some(index),
            shutdown: start.shutdown,
        };
        let thread = thread::Builder::new()
            .name(format!("worker-{index}"))
            .spawn(move || {
                if let Err(error) = worker_thread::run(init) {
                    tracing::error!(%error, "a worker cannot run; stopping the process");
                    telemetry::exit(1);
                }
            })
            .context("cannot start a worker's thread")?;
        Ok(Self { thread, counters, commands })
    }

    /// Where commands go.
    pub(super) fn commands(&self) -> mpsc::UnboundedSender<WorkerCommand> {
        self.commands.clone()
    }

    /// Sends a command. A worker that drains may not take it.
    pub(super) fn command(&self, command: WorkerCommand) {
        let _worker_runs = self.commands.send(command).is_ok();
    }

    /// Waits until it has drained.
    pub(super) fn join(self) {
        if self.thread.join().is_err() {
            tracing::error!("a worker panicked");
        }
    }
}
