//! The data plane's end of the push: fetches what to serve and keeps it over a restart.
//!
//! Own thread, own runtime, nothing shared with the workers but `cell` and `status`: the hot path
//! never waits for it. In walk order: `files` (certificate, key, CA) -> `last_good` (what was
//! served before the restart) -> `host` (io_uring or plain tokio) -> `link` (which control plane
//! and when: `turns`; over `connector`) -> `stream` (one session) -> `intake` (chunks -> delta ->
//! snapshot) -> `cell`, and `secrets` for tickets -> `saver` (last good, to disk). `expiry` takes
//! what is too old out of service. Invariant: whatever goes wrong here, the workers go on with what
//! they have.

mod applier;
mod connector;
mod diagnostics;
mod endpoint_rotation;
mod expiry;
mod files;
pub(crate) mod handles;
mod last_good;
mod saver;
mod secrets;
mod session;
mod sync_loop;
mod sync_status;
mod threads;

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub use handles::SnapshotHandle;
use pem_files::{CertificateMonitor, FileError};
pub use secrets::TicketRingHandle;
pub use sync_status::{SnapshotSource, SyncStatus};
use telemetry::{Heartbeats, Readiness};
use tokio::sync::watch;

use crate::lifecycle::shutdown::ShutdownWatch;

/// What `start` needs.
pub struct PushClientOptions {
    /// `countersign.node`
    pub settings: conf::NodeSettings,
    /// `--accept-new-store`: the next state of another store is taken over, whatever it takes away.
    pub accept_new_store: bool,
    /// The program's version, told to the control plane.
    pub version: &'static str,
    /// Where snapshots go.
    pub cell: Arc<SnapshotHandle>,
    /// Where ticket secrets go; `None`: sessions are not resumed, and none are asked for.
    pub secrets: Option<Arc<TicketRingHandle>>,
    /// What `/status` and `/metrics` read.
    pub status: Arc<SyncStatus>,
    /// Whether the process stops, for the control plane.
    pub stages: ShutdownWatch,
    /// Where both threads show that they run.
    pub heartbeats: Arc<Heartbeats>,
    /// Has the certificate files read again whenever it changes.
    pub reload: watch::Receiver<u64>,
}

/// A running agent. Dropping it stops it without waiting; `stop` waits until the newest snapshot is
/// on disk.
pub struct PushClientHandle {
    /// The node's certificate and the CAs of control planes, for those who show when they end.
    pub certificates: CertificateMonitor,
    stop: watch::Sender<bool>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

/// Why the agent cannot start.
#[derive(Debug, thiserror::Error)]
pub enum PushClientError {
    /// A PEM file is not there.
    #[error("{0}; `controlplane pki init` or `pki issue node` makes this file")]
    MissingFile(FileError),
    /// A PEM file does not hold what it should, or cannot be read.
    #[error("{0}")]
    InvalidFile(FileError),
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

impl From<FileError> for PushClientError {
    fn from(error: FileError) -> Self {
        if error.missing { Self::MissingFile(error) } else { Self::InvalidFile(error) }
    }
}

/// Puts the last good snapshot into the cell, then starts the thread that keeps it new. Returns
/// before the control plane is reached: a data plane serves what it has.
///
/// # Errors
/// `AgentError` when the settings or files cannot work. A last-good file that cannot be used is
/// only a warning.
pub fn start(input: PushClientOptions) -> Result<PushClientHandle, PushClientError> {
    let PushClientOptions {
        settings,
        accept_new_store,
        version,
        cell,
        secrets,
        status,
        heartbeats,
        stages,
        reload,
    } = input;
    let material = files::load(&settings)?;
    let mut certificates = CertificateMonitor::default();
    certificates.add(&material.files);
    let endpoints = sync_loop::prepare_endpoints(&settings, &material)?;

    let mut file = last_good::LastGoodFile::new(settings.last_good.clone(), &material.key);
    let read = load_last_good(&mut file, &settings, &status);
    let (held_stores, to_note) = watch::channel(file.read_held_stores());
    status.set_waiting(!settings.wait_for_control_plane.is_zero());
    let (stop, stopping) = watch::channel(false);
    let (newest, to_save) = watch::channel(None);
    let (mut snapshot, mut store, mut tickets, mut on_disk) = (Arc::default(), None, None, None);
    if let Some((read, served)) = read {
        if served {
            cell.store(Arc::clone(&read.saved.snapshot));
        }
        if let (Some(secrets), Some(ring)) = (&secrets, &read.saved.tickets) {
            secrets.store(Arc::clone(ring));
            tickets = Some(Arc::clone(ring));
        }
        (snapshot, store) = (Arc::clone(&read.saved.snapshot), Some(read.saved.store.clone()));
        on_disk = Some(Arc::new(read.saved));
        if read.old_format {
            newest.send_replace(on_disk.clone());
        }
    }
    let expiry = expiry::Expiry {
        cell: Arc::clone(&cell),
        status: Arc::clone(&status),
        max_age: settings.last_good_max_age,
    };
    let saver = saver::Saver::new(file, to_save, to_note, Arc::clone(&status), on_disk);
    let max_age = settings.last_good_max_age;
    let held = applier::NodeState {
        cell,
        snapshot,
        secrets,
        status,
        store,
        tickets,
        newest,
        held_stores,
        accept_new_store,
        max_age,
    };
    let link = sync_loop::SyncLoop {
        endpoints,
        diagnostics: diagnostics::Diagnostics::new(&settings),
        node_info: session::NodeInfo::new(&settings, version, held.secrets.is_some(), stages),
        applier: applier::Applier::new(held),
        certificates: certificates.clone(),
        reload,
    };
    let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
        std::thread::Builder::new().name(name.into()).spawn(work).map_err(PushClientError::Thread)
    };
    // Without them a data plane serves what it has: it stays ready.
    let [linked, saved] = ["agent", "saver"].map(|name| heartbeats.add(name, Readiness::Ignored));
    let threads = vec![
        spawn("agent", Box::new(move || threads::run_sync(link, expiry, stopping, linked)))?,
        spawn("saver", Box::new(move || threads::run_saver(saver, saved)))?,
    ];
    Ok(PushClientHandle { certificates, stop, threads })
}

/// Blocks until a control plane has confirmed what is held, for at most `patience`, or until `stop`
/// turns true. Until this returns, the data plane is not ready.
///
/// # Errors
/// When the system gives no timer.
pub(crate) fn wait_until_current(
    status: &SyncStatus,
    patience: Duration,
    mut stop: watch::Receiver<bool>,
) -> std::io::Result<()> {
    if !patience.is_zero() {
        let mut changes = status.changes();
        let current = async {
            // The sender lives in `status`.
            while !status.is_current() && changes.changed().await.is_ok() {}
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        let seconds = patience.as_secs_f64();
        runtime.block_on(async {
            tokio::select! {
                () = current => tracing::info!("a control plane confirmed what is served"),
                _ = stop.wait_for(|stop| *stop) => {}
                () = tokio::time::sleep(patience) => tracing::warn!(
                    "no control plane confirmed within countersign.node.wait_for_control_plane ({seconds} s) what is served; \
                     accepting connections with what was served before the start"
                ),
            }
        });
    }
    status.set_waiting(false);
    Ok(())
}

/// What was read from the disk.
struct Read {
    saved: saver::SavedState,
    /// To be written anew at once.
    old_format: bool,
}

/// The last good snapshot, and whether it may be served; `None` where there is none that can be
/// used.
fn load_last_good(
    file: &mut last_good::LastGoodFile,
    settings: &conf::NodeSettings,
    status: &SyncStatus,
) -> Option<(Read, bool)> {
    let path = settings.last_good.display();
    let saved = match file.read() {
        Ok(Some(saved)) => saved,
        Ok(None) => {
            tracing::info!(%path, "no last good snapshot; waiting for the control plane");
            return None;
        }
        Err(error) => {
            tracing::warn!("{error}");
            status.set_problem(Some(error.to_string()));
            return None;
        }
    };
    let last_good::LoadedState { store, snapshot, tickets, confirmed, old_format } = saved;
    let at = UNIX_EPOCH + Duration::from_secs(confirmed);
    let age = elapsed_since(at, SystemTime::now());
    let max_age = settings.last_good_max_age;
    // Of an unknown age: no clock says that it is young enough.
    let served = age.map_or(max_age.is_zero(), |age| !expiry::Expiry::is_expired(max_age, age));
    status.set_confirmation(at, age.unwrap_or(if served { Duration::ZERO } else { Duration::MAX }));
    let revision = snapshot.revision();
    status.set_snapshot(revision, SnapshotSource::LastGood);
    if served {
        let age_seconds = age.map(|age| age.as_secs());
        tracing::info!(revision, age_seconds, %path, "serving the last good snapshot");
    } else {
        status.set_expired();
        let age = age.map_or("of the future: is this machine's clock right?".to_owned(), |age| {
            format!("{} s ago", age.as_secs())
        });
        tracing::error!(
            revision, %path,
            "the last good snapshot is not served: a control plane last confirmed it {age}, and \
             countersign.node.last_good_max_age is {} s; waiting for a control plane",
            max_age.as_secs_f64()
        );
    }
    let saved =
        saver::SavedState { store, snapshot: Arc::new(snapshot), tickets: tickets.map(Arc::new), confirmed };
    Some((Read { saved, old_format }, served))
}

/// How far clocks may be apart, or set back by a time server.
const CLOCK_SKEW_MAX: Duration = Duration::from_secs(300);

/// How long ago that was; `None`: in the future, so that it is not known.
fn elapsed_since(at: SystemTime, now: SystemTime) -> Option<Duration> {
    match now.duration_since(at) {
        Ok(age) => Some(age),
        Err(ahead) if ahead.duration() <= CLOCK_SKEW_MAX => Some(Duration::ZERO),
        Err(_) => None,
    }
}

impl PushClientHandle {
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

impl Drop for PushClientHandle {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}
