//! The client of the push: receives snapshots from a control plane and keeps the last good one over
//! a restart.
//!
//! It has two threads with runtimes of their own and shares only the handles of `lifecycle` and
//! `sync_status` with the workers, so the hot path never waits for it. In walk order: `files`
//! (certificate, key, CA) -> `last_good` (the state of the process before) -> `threads` (io_uring
//! or epoll) -> `sync_loop` (`endpoint_rotation` selects the control plane, `connector` connects)
//! -> `session` -> `applier` (chunks -> delta -> snapshot) -> `saver` (last good, to disk).
//! `expiry` takes a snapshot that is too old out of service. Invariant: whatever fails here, the
//! workers go on with the snapshot they have.

mod applier;
mod connector;
mod diagnostics;
mod endpoint_rotation;
mod expiry;
mod files;
mod last_good;
mod saver;
mod session;
mod sync_loop;
mod sync_status;
mod threads;

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use last_good::{LastGoodFile, LoadedState};
pub(crate) use last_good::{create_folder_of, key_path};
use mtls::{CertificateMonitor, FileError};
use saver::SaverCommand;
pub(crate) use sync_status::SyncMetrics;
pub use sync_status::{SnapshotSource, SyncStatus};
use telemetry::{Heartbeats, Readiness};
use tokio::sync::{mpsc, watch};

use crate::lifecycle::ShutdownWatch;
use crate::lifecycle::handles::{SnapshotHandle, TicketRingHandle};
use crate::trace_export::TraceExporter;
use crate::upstream::client_tls::ClientTlsConfigs;

pub struct PushClientOptions {
    /// `countersign.node`
    pub settings: conf::NodeSettings,
    /// `--accept-new-store`: the next state of another store is applied, whatever it removes.
    pub accept_new_store: bool,
    /// The version of the program, which the control plane lists.
    pub version: &'static str,
    pub snapshot: Arc<SnapshotHandle>,
    /// What the workers derived from upstreams of the snapshot.
    pub upstream_tls: Arc<ClientTlsConfigs>,
    /// `None`: sessions are not resumed, and no ticket secrets are requested.
    pub ticket_ring: Option<Arc<TicketRingHandle>>,
    pub status: Arc<SyncStatus>,
    /// The control plane is informed when the process drains.
    pub shutdown: ShutdownWatch,
    pub heartbeats: Arc<Heartbeats>,
    /// Counts SIGHUPs: each has the certificate files read again.
    pub reload: watch::Receiver<u64>,
    /// A predecessor writes the last-good file until [`PushClientHandle::resume_saving`].
    pub saving_paused: bool,
    /// Runs on the push client's thread.
    pub traces: Option<TraceExporter>,
}

/// The running push client. Dropping the handle stops it without waiting; [`stop`](Self::stop)
/// waits until the newest snapshot is on disk.
pub struct PushClientHandle {
    /// The node's certificate and the CAs of control planes, and the files of TLS towards the
    /// collector of traces, for `/status`, `/metrics` and the log.
    pub certificates: CertificateMonitor,
    /// Without those of the collector.
    own_certificates: CertificateMonitor,
    saver: mpsc::UnboundedSender<SaverCommand>,
    stop: watch::Sender<bool>,
    threads: Vec<JoinHandle<()>>,
}

/// The push client cannot start.
#[derive(Debug, thiserror::Error)]
pub enum PushClientError {
    #[error("{0}; `controlplane pki init` or `pki issue node` makes this file")]
    MissingFile(FileError),
    #[error("{0}")]
    InvalidFile(FileError),
    /// `countersign.node.server_name` or an address of `control_planes` is invalid.
    #[error("{field}: {problem}")]
    Setting { field: &'static str, problem: String },
    #[error("cannot start a thread of the push client: {0}")]
    Thread(std::io::Error),
}

impl From<FileError> for PushClientError {
    fn from(error: FileError) -> Self {
        if error.missing { Self::MissingFile(error) } else { Self::InvalidFile(error) }
    }
}

/// Publishes the last good snapshot, then starts the threads that keep it up to date. Returns
/// before a control plane is reached, since a data plane serves the snapshot it has.
///
/// # Errors
/// [`PushClientError`] when the settings or files cannot work. A last-good file that cannot be used
/// is only a warning.
pub fn start(options: PushClientOptions) -> Result<PushClientHandle, PushClientError> {
    let PushClientOptions { settings, snapshot, status, reload, .. } = options;
    let tls_files = files::load(&settings)?;
    let (mut certificates, mut own_certificates) =
        (CertificateMonitor::default(), CertificateMonitor::default());
    own_certificates.add(&tls_files.files);
    certificates.add_all(&own_certificates);
    let endpoints = sync_loop::prepare_endpoints(&settings, &tls_files)?;

    let mut file = LastGoodFile::new(settings.last_good.clone(), &tls_files.key);
    let loaded = load_last_good(&mut file, &settings, &status);
    let (held_stores, held_stores_to_save) = watch::channel(file.read_held_stores());
    status.set_waiting(!settings.wait_for_control_plane.is_zero());
    let (stop, stopping) = watch::channel(false);
    let (pending_save, to_save) = watch::channel(None);
    let (saver_sender, saver_commands) = mpsc::unbounded_channel();
    let max_age = settings.last_good_max_age;
    let expiry = expiry::Expiry { snapshot: Arc::clone(&snapshot), status: Arc::clone(&status), max_age };
    let mut node = applier::NodeState {
        snapshot_handle: snapshot,
        snapshot: Arc::default(),
        upstream_tls: options.upstream_tls,
        ring_handle: options.ticket_ring,
        status: Arc::clone(&status),
        store: None,
        tickets: None,
        pending_save,
        held_stores,
        accept_new_store: options.accept_new_store,
        max_age,
    };
    let mut on_disk = None;
    if let Some((LoadedState { state, old_format }, served)) = loaded {
        let state = Arc::new(state);
        node.restore(&state, served);
        if old_format {
            node.pending_save.send_replace(Some(Arc::clone(&state)));
        }
        on_disk = Some(state);
    }
    let saver = saver::Saver::new(
        file,
        to_save,
        held_stores_to_save,
        status,
        on_disk,
        (saver_commands, options.saving_paused),
    );
    let sync_loop = sync_loop::SyncLoop {
        endpoints,
        diagnostics: diagnostics::Diagnostics::new(&settings),
        node_info: session::NodeInfo::new(
            &settings,
            options.version,
            node.ring_handle.is_some(),
            options.shutdown,
        ),
        applier: applier::Applier::new(node),
        certificates: certificates.clone(),
        reload,
    };
    let background = threads::SyncThread { sync_loop, expiry, traces: options.traces, stop: stopping };
    let threads = start_threads(background, saver, &options.heartbeats)?;
    Ok(PushClientHandle { certificates, own_certificates, saver: saver_sender, stop, threads })
}

fn start_threads(
    sync: threads::SyncThread,
    saver: saver::Saver,
    heartbeats: &Heartbeats,
) -> Result<Vec<JoinHandle<()>>, PushClientError> {
    let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
        std::thread::Builder::new().name(name.into()).spawn(work).map_err(PushClientError::Thread)
    };
    // Without them a data plane serves the snapshot it has, so it stays ready.
    let [sync_heartbeat, saver_heartbeat] =
        ["push-client", "saver"].map(|name| heartbeats.add(name, Readiness::Ignored));
    Ok(vec![
        spawn("push-client", Box::new(move || sync.run(sync_heartbeat)))?,
        spawn("saver", Box::new(move || threads::run_saver(saver, saver_heartbeat)))?,
    ])
}

/// Blocks until a control plane has confirmed the snapshot, for at most `timeout`, or until `stop`
/// turns true. Until this returns, the data plane is not ready.
///
/// # Errors
/// When the system gives no timer.
pub(crate) fn wait_until_current(
    status: &SyncStatus,
    timeout: Duration,
    mut stop: watch::Receiver<bool>,
) -> std::io::Result<()> {
    if !timeout.is_zero() {
        let mut changes = status.changes();
        let current = async {
            // The sender lives in `status`.
            while !status.is_current() && changes.changed().await.is_ok() {}
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        let seconds = timeout.as_secs_f64();
        runtime.block_on(async {
            tokio::select! {
                () = current => tracing::info!("a control plane confirmed the snapshot"),
                _ = stop.wait_for(|stop| *stop) => {}
                () = tokio::time::sleep(timeout) => tracing::warn!(
                    last_error = status.last_error().as_deref(),
                    "no control plane confirmed the snapshot within {seconds} s (countersign.node.wait_for_control_plane, a few seconds \
                     in an upgrade); accepting connections with the last good snapshot"
                ),
            }
        });
    }
    status.set_waiting(false);
    Ok(())
}

/// Reads the last good snapshot and decides whether its age allows to serve it. `None` where there
/// is no usable one.
fn load_last_good(
    file: &mut LastGoodFile,
    settings: &conf::NodeSettings,
    status: &SyncStatus,
) -> Option<(LoadedState, bool)> {
    let path = settings.last_good.display();
    let loaded = match file.read() {
        Ok(Some(loaded)) => loaded,
        Ok(None) => {
            tracing::info!(%path, "no last good snapshot; waiting for the control plane");
            return None;
        }
        Err(error) => {
            tracing::warn!("{error}");
            status.set_last_error(error.to_string());
            return None;
        }
    };
    let confirmed_at = UNIX_EPOCH + Duration::from_secs(loaded.state.confirmed_at);
    let age = elapsed_since(confirmed_at, SystemTime::now());
    let max_age = settings.last_good_max_age;
    // A snapshot of unknown age is served only where no age is too high.
    let served = age.map_or(max_age.is_zero(), |age| !expiry::is_expired(max_age, age));
    let known_age = age.unwrap_or(if served { Duration::ZERO } else { Duration::MAX });
    status.set_confirmation(confirmed_at, known_age);
    let revision = loaded.state.snapshot.revision();
    status.set_snapshot(revision, SnapshotSource::LastGood);
    if served {
        let age_seconds = age.map(|age| age.as_secs());
        tracing::info!(revision, age_seconds, %path, "serving the last good snapshot");
    } else {
        status.set_expired();
        let confirmed = age.map_or("in the future: is the clock of this machine right?".to_owned(), |age| {
            format!("{} s ago", age.as_secs())
        });
        tracing::error!(
            revision, %path,
            "the last good snapshot is not served: a control plane last confirmed it {confirmed}, and \
             countersign.node.last_good_max_age is {} s; waiting for a control plane",
            max_age.as_secs_f64()
        );
    }
    Some((loaded, served))
}

/// Clocks of two machines may differ by this much, or a time server may set one back.
const CLOCK_SKEW_MAX: Duration = Duration::from_secs(300);

/// `None`: `at` lies in the future, so the elapsed time is unknown.
fn elapsed_since(at: SystemTime, now: SystemTime) -> Option<Duration> {
    match now.duration_since(at) {
        Ok(elapsed) => Some(elapsed),
        Err(ahead) if ahead.duration() <= CLOCK_SKEW_MAX => Some(Duration::ZERO),
        Err(_) => None,
    }
}

/// How long a flush of the last-good file may take on a slow disk.
const FLUSH_MAX: Duration = Duration::from_secs(10);

impl PushClientHandle {
    /// Writes the newest snapshot to the last-good file, if it is not there.
    ///
    /// # Errors
    /// Why it cannot be written.
    pub fn flush(&self) -> Result<(), String> {
        let (flushed, is_flushed) = std::sync::mpsc::sync_channel(1);
        let _saver_runs = self.saver.send(SaverCommand::Flush(flushed)).is_ok();
        is_flushed.recv_timeout(FLUSH_MAX).unwrap_or_else(|_| {
            Err(format!("it could not be written within {} s: is the disk slow?", FLUSH_MAX.as_secs()))
        })
    }

    /// Watches these files beside its own, in place of those of an earlier call.
    pub(crate) fn set_other_files(&self, others: &CertificateMonitor) {
        let mut certificates = CertificateMonitor::default();
        certificates.add_all(&self.own_certificates);
        certificates.add_all(others);
        self.certificates.replace(&certificates);
    }

    /// Leaves the last-good file to another process. Returns when nothing is being written.
    ///
    /// # Errors
    /// When the write under way does not end in time.
    pub fn pause_saving(&self) -> Result<(), String> {
        let (paused, is_paused) = std::sync::mpsc::sync_channel(1);
        let _saver_runs = self.saver.send(SaverCommand::Pause(paused)).is_ok();
        is_paused
            .recv_timeout(FLUSH_MAX)
            .map_err(|_| format!("a write did not end within {} s: is the disk slow?", FLUSH_MAX.as_secs()))
    }

    /// Writes the last-good file again, from now on.
    pub fn resume_saving(&self) {
        let _saver_runs = self.saver.send(SaverCommand::Resume).is_ok();
    }

    /// Ends the session, writes the newest snapshot if it is not on disk, and waits for both.
    pub fn stop(mut self) {
        self.stop.send_replace(true);
        for thread in std::mem::take(&mut self.threads) {
            if thread.join().is_err() {
                tracing::error!("a thread of the push client panicked");
            }
        }
    }
}

impl Drop for PushClientHandle {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}
