//! The data plane's end of the push: fetches what to serve and keeps it over a restart.
//!
//! Own thread, own runtime, nothing shared with the workers but `cell` and `status`: the hot path never waits for it.
//! In walk order: `files` (certificate, key, CA) -> `last_good` (what was served before the restart) -> `host` (io_uring or
//! plain tokio) -> `link` (which control plane and when: `turns`; over `connector`) -> `stream` (one session) -> `intake` (chunks -> delta -> snapshot) ->
//! `cell`, and `secrets` for tickets -> `saver` (last good, to disk). Invariant: whatever goes wrong here, the workers go on with what they have.

pub mod cell;
mod connector;
mod explain;
mod files;
mod host;
mod intake;
mod last_good;
mod link;
mod saver;
mod secrets;
mod status;
mod stream;
mod turns;

use std::path::PathBuf;
use std::sync::Arc;

use telemetry::{Heartbeats, Readiness};
use tokio::sync::watch;

pub use cell::Cell;
pub use secrets::Secrets;
pub use status::{AgentStatus, Source};

/// What `start` needs.
pub struct AgentInput {
    /// `countersign.node`
    pub settings: conf::Node,
    /// The program's version, told to the control plane.
    pub version: &'static str,
    /// Where snapshots go.
    pub cell: Arc<Cell>,
    /// Where ticket secrets go; `None`: sessions are not resumed, and none are asked for.
    pub secrets: Option<Arc<Secrets>>,
    /// What `/status` and `/metrics` read.
    pub status: Arc<AgentStatus>,
    /// Where both threads show that they run.
    pub heartbeats: Arc<Heartbeats>,
}

/// A running agent. Dropping it stops it without waiting; `stop` waits until the newest snapshot is on disk.
pub struct Agent {
    stop: watch::Sender<bool>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

/// Why the agent cannot start.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// A PEM file cannot be read.
    #[error("{field}: cannot read {path}: {source}; `controlplane pki init` or `pki issue node` makes this file", path = path.display())]
    Unreadable {
        /// The key of the configuration.
        field: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A PEM file does not hold what it should.
    #[error("{field}: {path}: {problem}", path = path.display())]
    Unusable {
        /// The key of the configuration.
        field: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// `countersign.node.server_name` or an address of `control_planes` is not one.
    #[error("{field}: {problem}")]
    Setting {
        /// The key of the configuration.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The system gives no thread.
    #[error("cannot start the agent's thread: {0}")]
    Thread(std::io::Error),
}

/// Puts the last good snapshot into the cell, then starts the thread that keeps it new. Returns before the control plane is
/// reached: a data plane serves what it has.
///
/// # Errors
/// `AgentError` when the settings or files cannot work. A last-good file that cannot be used is only a warning.
pub fn start(input: AgentInput) -> Result<Agent, AgentError> {
    let AgentInput { settings, version, cell, secrets, status, heartbeats } = input;
    let material = files::load(&settings)?;
    let endpoints = link::endpoints(&settings, &material)?;

    let file = last_good::File::new(settings.last_good.clone(), &material.key);
    let (mut store, mut tickets) = (None, None);
    match file.read() {
        Ok(None) => {
            tracing::info!(path = %settings.last_good.display(), "no last good snapshot; waiting for the control plane")
        }
        Ok(Some(saved)) => {
            let revision = saved.snapshot.revision();
            tracing::info!(revision, path = %settings.last_good.display(), "serving the last good snapshot");
            status.serves(revision, Source::LastGood);
            store = Some(saved.store);
            cell.store(Arc::new(saved.snapshot));
            if let (Some(secrets), Some(ring)) = (&secrets, saved.tickets) {
                let ring = Arc::new(ring);
                secrets.store(Arc::clone(&ring));
                tickets = Some(ring);
            }
        }
        Err(error) => {
            tracing::warn!("{error}");
            status.problem(Some(error.to_string()));
        }
    }

    let (stop, stopping) = watch::channel(false);
    let (newest, to_save) = watch::channel(None);
    let link = link::Link {
        endpoints,
        explain: explain::Explain::new(&settings),
        hello: stream::Introduction::new(&settings, version, secrets.is_some()),
        intake: intake::Intake::new(intake::Held { cell, secrets, status, store, tickets, newest }),
    };
    let saver = saver::Saver::new(file, to_save);
    let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
        std::thread::Builder::new().name(name.into()).spawn(work).map_err(AgentError::Thread)
    };
    // Without them a data plane serves what it has: it stays ready.
    let [linked, saved] = ["agent", "saver"].map(|name| heartbeats.add(name, Readiness::Ignored));
    let threads = vec![
        spawn("agent", Box::new(move || host::link(link, stopping, linked)))?,
        spawn("saver", Box::new(move || host::save(saver, saved)))?,
    ];
    Ok(Agent { stop, threads })
}

impl Agent {
    /// Ends the stream, writes the newest snapshot if it is not on disk, and waits for both.
    pub fn stop(mut self) {
        self.stop.send_replace(true);
        for thread in std::mem::take(&mut self.threads) {
            if thread.join().is_err() {
                tracing::error!("a thread of the agent's had panicked");
            }
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}
