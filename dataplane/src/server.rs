//! Start and stop of the process: wiring only.
//!
//! Order: signals, settings, the status port and the listeners (a port in use is the first error),
//! the push client (which loads the last good snapshot before the first connection), workers,
//! status, the ready line; then the wait for a signal, and the drain.

mod listeners;
mod reload;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use clap::{CommandFactory as _, Parser};
use conf::Settings;
use listeners::ListenerSet;
use model::Snapshot;
use process::descriptors::raise_limit;
use process::signals::{self, Signals};
use telemetry::status::{StatusListener, StatusServer};
use telemetry::{Heartbeats, Readiness, ServiceManager};
use tokio::sync::{mpsc, watch};

use crate::config::SettingsError;
use crate::io::connection_info::ListenerProtocol;
use crate::lifecycle::handles::{SnapshotHandle, TicketRingHandle};
use crate::lifecycle::{ShutdownStage, ShutdownWatch};
use crate::observability::metrics::{Counters, Metrics};
use crate::proxy::listener::{BindError, BindRetry, BoundSocket};
use crate::proxy::worker::{SharedState, WorkerCommand, WorkerConfig};
use crate::proxy::worker_thread::{self, WorkerInit};
use crate::push_client::{self, PushClientHandle, PushClientOptions, SyncStatus};
use crate::runtime::Driver;
use crate::runtime::descriptors::{self, ConnectionLimits};
use crate::tls::site_config::{self, SiteConfigFactory};
use crate::upstream::client_tls::ClientTlsConfigs;
use crate::upstream::resolver::Resolver;
use crate::{config, status};

/// Of `--version`, also whether this build was made with a profile (`scripts/release.sh`).
const VERSION: &str = match option_env!("COUNTERSIGN_PROFILED") {
    Some(_) => process::VERSION_PROFILED,
    None => process::VERSION,
};

/// The data plane of Countersign, a mutual-TLS gateway: terminates TLS, verifies clients, routes
/// and proxies.
///
/// It receives its configuration from a control plane (countersign.node.control_planes), over
/// mutual TLS, and serves the last good snapshot when none answers.
#[derive(Debug, Parser)]
#[command(
    name = "dataplane",
    version = VERSION,
    after_help = "Examples:\n  \
    dataplane -c conf/config.yaml\n  \
    RUST_LOG=debug dataplane -c conf/config.yaml\n  \
    COUNTERSIGN_DRIVER=epoll dataplane -c conf/config.yaml    (without io_uring)\n\n\
    Logs go to stderr, or to nginx_config.error_log. When everything listens, one line `ready {...}` goes to stdout.\n\
    SIGTERM, SIGINT and SIGQUIT drain: requests may finish, within worker_shutdown_timeout; a second one ends\n\
    the process at once. SIGHUP reads the settings, certificates and keys again."
)]
struct Arguments {
    /// The configuration file both planes read.
    #[arg(short, long, default_value = "conf/config.yaml", value_name = "FILE")]
    config: PathBuf,
    /// Apply the state of another store, once, although it would remove most of what is served.
    #[arg(long)]
    accept_new_store: bool,
}

/// The command line, for man pages.
pub fn command() -> clap::Command {
    Arguments::command()
}

/// Runs the program to the end of the process.
pub fn main() -> ! {
    let arguments = Arguments::parse();
    telemetry::log::init();
    // A worker's runtime must not be dropped with operations in flight, so nothing is unwound.
    match run(&arguments) {
        Ok(()) => telemetry::exit(0),
        // A stop signal during the wait for a port is no failure.
        Err(error) if error.downcast_ref::<BindError>().is_some_and(|error| error.stopped) => {
            tracing::info!("stopped");
            telemetry::exit(0)
        }
        Err(error) => {
            telemetry::log::write_fatal(&format_args!("dataplane: {error:#}"));
            telemetry::exit(1)
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    process::core_dumps::disable().context("cannot forbid core files")?;
    // First, so that a signal during the start has the same effect as a later one.
    let signals = signals::install_handlers().context("cannot handle signals")?;
    let service = ServiceManager::from_env();
    let settings = conf::load(&arguments.config)?;
    telemetry::log::configure(settings.log.file.as_deref(), settings.log.level)
        .context("nginx_config.error_log")?;
    for warning in &settings.warnings {
        tracing::warn!("{warning}");
    }
    service.status("starting");
    let served = serve(settings, arguments.accept_new_store, &signals, &service);
    service.flush();
    served
}

fn serve(
    settings: Settings,
    accept_new_store: bool,
    signals: &Signals,
    service: &ServiceManager,
) -> anyhow::Result<()> {
    let mut reloads = signals.reload();
    let prepared = PreparedServer::new(settings, accept_new_store, signals)?;
    // Connections queue in the kernel meanwhile.
    prepared.wait_until_current(signals)?;
    let mut running = prepared.start(service)?;
    while signals.wait_for_stop_or_reload(&mut reloads)? {
        let _logged = running.reload(signals, service);
    }
    service.stopping();
    running.stop();
    Ok(())
}

/// All that a data plane needs before its workers run: whatever can fail has been done.
struct PreparedServer {
    settings: Settings,
    workers: usize,
    driver: Driver,
    listeners: ListenerSet,
    status: Option<StatusListener>,
    stage: watch::Sender<ShutdownStage>,
    shutdown: ShutdownWatch,
    shared: Arc<SharedState>,
    heartbeats: Arc<Heartbeats>,
    sync_status: Arc<SyncStatus>,
    push_client: PushClientHandle,
    read_files: watch::Sender<u64>,
}

impl PreparedServer {
    fn new(settings: Settings, accept_new_store: bool, signals: &Signals) -> anyhow::Result<Self> {
        settings.check_data_plane_files()?;
        let workers = worker_count(&settings);
        let limit = raise_limit().context("cannot read the limit on open descriptors")?;
        let retry = BindRetry { predecessor: settings.countersign.drain_delay, stop: signals.stop() };
        let status = status::bind(&settings, &retry)?;
        let listeners = ListenerSet::bind(&listeners::plan(&settings), workers, &retry)?;
        let limits = connection_limits(&settings, limit, workers, listeners.0.len())?;
        let (stage, shutdown) = ShutdownWatch::new();
        let read_files = watch::Sender::new(0);

        let snapshot = Arc::new(SnapshotHandle::new(Arc::new(Snapshot::empty())));
        let sync_status = Arc::new(SyncStatus::default());
        let heartbeats = Arc::<Heartbeats>::default();
        let ticket_ring = settings.apisix.ssl.session_tickets.then(Arc::<TicketRingHandle>::default);
        let shared = shared_state(&settings, limits, &snapshot, ticket_ring.as_ref())?;
        let push_client = push_client::start(PushClientOptions {
            settings: settings.countersign.node.clone(),
            accept_new_store,
            version: env!("CARGO_PKG_VERSION"),
            snapshot,
            upstream_tls: Arc::clone(&shared.upstream_tls),
            ticket_ring,
            status: Arc::clone(&sync_status),
            shutdown: shutdown.clone(),
            heartbeats: Arc::clone(&heartbeats),
            reload: read_files.subscribe(),
            saving_paused: false,
        })?;
        let driver = Driver::detect();
        Ok(Self {
            settings,
            workers,
            driver,
            listeners,
            status,
            stage,
            shutdown,
            shared,
            heartbeats,
            sync_status,
            push_client,
            read_files,
        })
    }

    /// Waits for a control plane as long as the settings have it.
    fn wait_until_current(&self, signals: &Signals) -> std::io::Result<()> {
        let timeout = self.settings.countersign.node.wait_for_control_plane;
        push_client::wait_until_current(&self.sync_status, timeout, signals.stop())
    }

    /// Starts the workers and the status listener, and prints the ready line.
    fn start(self, service: &ServiceManager) -> anyhow::Result<RunningServer> {
        let Self {
            settings,
            workers,
            driver,
            listeners,
            status,
            stage,
            shutdown,
            shared,
            heartbeats,
            sync_status,
            push_client,
            read_files,
        } = self;
        let start = |index| {
            let sockets = listeners.sockets_of_worker(index, workers);
            WorkerThread::start((index, workers), &shared, sockets, &driver, &heartbeats, shutdown.clone())
        };
        let threads = (0..workers).map(start).collect::<anyhow::Result<Vec<_>>>()?;
        let counters = threads.iter().map(|worker| Arc::clone(&worker.counters)).collect();
        let metrics = Arc::new(Metrics::new(counters));
        let certificates = &push_client.certificates;
        service.watch(Arc::clone(&heartbeats), status::service_state(&sync_status, &metrics));
        let status = status
            .map(|listener| status::serve(listener, heartbeats, sync_status, metrics, certificates, shutdown))
            .transpose()?;
        tracing::info!(%driver, workers, "serving");
        let revision = shared.snapshot.load().revision();
        let status_address = status.as_ref().map(StatusServer::address);
        print_ready_line(&listeners, status_address, &driver, workers, revision);
        Ok(RunningServer {
            settings,
            shared,
            listeners,
            workers: threads,
            stage,
            status,
            push_client,
            read_files,
        })
    }
}

/// A data plane that serves.
struct RunningServer {
    settings: Settings,
    shared: Arc<SharedState>,
    /// The sockets that workers listen on.
    listeners: ListenerSet,
    workers: Vec<WorkerThread>,
    stage: watch::Sender<ShutdownStage>,
    status: Option<StatusServer>,
    push_client: PushClientHandle,
    /// Lets the push client read the files that the settings name again.
    read_files: watch::Sender<u64>,
}

impl RunningServer {
    /// Stops gracefully.
    fn stop(self) {
        let Self { settings, listeners, workers, stage, status, push_client, .. } = self;
        drain(&stage, settings.countersign.drain_delay, status);
        drop(listeners);
        workers.into_iter().for_each(WorkerThread::join);
        push_client.stop();
        tracing::info!("stopped");
    }
}

/// Starts the drain: `/status/ready` fails at once, the listeners close after `delay`, and open
/// connections may finish.
fn drain(stage: &watch::Sender<ShutdownStage>, delay: Duration, status: Option<StatusServer>) {
    stage.send_replace(ShutdownStage::LameDuck);
    if !delay.is_zero() {
        tracing::info!(seconds = delay.as_secs_f64(), "accepting connections until drain_delay has passed");
        thread::sleep(delay);
    }
    // A successor binds the status port first.
    if let Some(status) = status {
        status.close();
    }
    stage.send_replace(ShutdownStage::Draining);
    tracing::info!("the listeners close; open connections may finish");
}

fn connection_limits(
    settings: &Settings,
    limit: usize,
    workers: usize,
    listeners: usize,
) -> anyhow::Result<ConnectionLimits> {
    let configured = settings.countersign.limits.connections_per_worker;
    let (limits, warning) = descriptors::connection_limits(limit, workers, listeners, configured)?;
    if let Some(warning) = warning {
        tracing::warn!("{warning}");
    }
    Ok(limits)
}

fn worker_count(settings: &Settings) -> usize {
    match settings.countersign.workers {
        0 => thread::available_parallelism().map_or(1, usize::from),
        workers => workers,
    }
}

/// The settings of the workers within the limit on descriptors.
fn worker_config(settings: &Settings, limits: ConnectionLimits) -> Result<WorkerConfig, SettingsError> {
    let configured = settings.countersign.limits.requests_per_client;
    let requests_per_client = limits.requests_per_client(configured);
    if requests_per_client < configured {
        tracing::warn!(
            "each worker may have {} connections to upstreams: one client may have {requests_per_client} concurrent requests on \
             it, not the {configured} of countersign.limits.requests_per_client. Raise the limit on open descriptors (ulimit -Hn, \
             LimitNOFILE), or lower that key",
            limits.upstreams
        );
    }
    Ok(WorkerConfig { connection_limits: limits, requests_per_client, ..config::worker_config(settings)? })
}

fn shared_state(
    settings: &Settings,
    limits: ConnectionLimits,
    snapshot: &Arc<SnapshotHandle>,
    ticket_ring: Option<&Arc<TicketRingHandle>>,
) -> anyhow::Result<Arc<SharedState>> {
    let config = worker_config(settings, limits)?;
    let provider = Arc::new(site_config::crypto_provider());
    let records = config::record_layer(settings);
    let trust = config::upstream_trust(settings)?;
    let upstream_tls = ClientTlsConfigs::new(Arc::clone(&provider), trust, records);
    let versions = config::tls_versions(settings)?;
    Ok(Arc::new(SharedState {
        snapshot: Arc::clone(snapshot),
        sites: SiteConfigFactory::new(provider, &versions, config.http2, ticket_ring.cloned(), records)
            .with_ciphers(settings.apisix.ssl.ciphers.clone()),
        upstream_tls: Arc::new(upstream_tls),
        resolver: Resolver::start().context("cannot start the resolver's threads")?,
        config: ArcSwap::from_pointee(config),
    }))
}

struct WorkerThread {
    thread: JoinHandle<()>,
    counters: Arc<Counters>,
    commands: mpsc::UnboundedSender<WorkerCommand>,
}

impl WorkerThread {
    fn start(
        (index, workers): (usize, usize),
        shared: &Arc<SharedState>,
        listeners: Vec<BoundSocket>,
        driver: &Driver,
        heartbeats: &Heartbeats,
        shutdown: ShutdownWatch,
    ) -> anyhow::Result<Self> {
        let counters = Arc::new(Counters::default());
        let (commands, received) = mpsc::unbounded_channel();
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let init = WorkerInit {
            shared: Arc::clone(shared),
            counters: Arc::clone(&counters),
            heartbeat: heartbeats.add(format!("worker-{index}"), Readiness::Required),
            listeners,
            commands: received,
            driver: driver.clone(),
            // With fewer workers than cores the kernel places them better.
            cpu: (workers == cores && workers > 1).then_some(index),
            shutdown,
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

    /// A worker that has ended needs no command.
    fn command(&self, command: WorkerCommand) {
        let _is_running = self.commands.send(command).is_ok();
    }

    /// Waits until it has drained.
    fn join(self) {
        if self.thread.join().is_err() {
            tracing::error!("a worker panicked");
        }
    }
}

fn print_ready_line(
    listeners: &ListenerSet,
    status: Option<SocketAddr>,
    driver: &Driver,
    workers: usize,
    revision: u64,
) {
    let line = serde_json::json!({
        "http": listeners.addresses(|protocol| protocol == ListenerProtocol::Http),
        "https": listeners.addresses(|protocol| protocol == ListenerProtocol::Https),
        "stream": listeners.addresses(|protocol| !protocol.is_http()),
        "status": status,
        "driver": driver.name(), "workers": workers, "revision": revision,
    });
    telemetry::stdout::write_ready_line(&line);
}
