//! Start and stop of the process: wiring only.
//!
//! Order: signals, settings, the status port and the listeners (a port in use is the first error),
//! the push client (which loads the last good snapshot before the first connection), workers,
//! status, the ready line; then the wait for a signal, and the drain. A successor waits for its
//! predecessor's permission before its workers start (`succession`).

mod commands;
mod events;
mod listeners;
mod reload;
mod shared;
mod succession;
mod upgrade;
mod worker_handle;

use std::path::{Path, PathBuf};
use std::str::FromStr as _;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use clap::{CommandFactory as _, Parser};
use commands::Command;
use conf::{AskError, ProcessUser, Settings};
use events::{Event, Events};
use listeners::{InheritedSockets, ListenerSet};
use model::Snapshot;
use mtls::{CertificateMonitor, StatusAccessRules};
use process::descriptors::raise_limit;
use process::handover::{self, Generations, OfferedSuccession, Program};
use process::signals::{self, Signals};
use process::user::check_replaceable;
use shared::{connection_limits, shared_state, worker_count};
use succession::Origin;
use telemetry::log::LogFormat;
use telemetry::status::StatusAccessHandle;
use telemetry::{Heartbeats, ServiceManager};
use tokio::sync::{mpsc, watch};
use worker_handle::{WorkerStart, WorkerThread};

use crate::io::connection_info::ListenerProtocol;
use crate::lifecycle::handles::{SnapshotHandle, TicketRingHandle};
use crate::lifecycle::{ShutdownStage, ShutdownWatch};
use crate::observability::metrics::Metrics;
use crate::observability::traces::TraceCounters;
use crate::observability::upgrades::Upgrades;
use crate::proxy::listener::{BindError, BindRetry};
use crate::proxy::worker::SharedState;
use crate::push_client::{self, PushClientHandle, PushClientOptions, SyncStatus};
use crate::reporting::trace::queue::TraceQueues;
use crate::runtime::Driver;
use crate::status::ports::{self, BoundPorts, OperatorPort, OperatorPorts};
use crate::status::{self, StatusContent, WorkerQuestions};
use crate::trace_export::{ExportSettings, TraceExporter};

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
    COUNTERSIGN_DRIVER=epoll dataplane -c conf/config.yaml    (without io_uring)\n  \
    dataplane reload -c conf/config.yaml    (the running one reads its settings again)\n  \
    dataplane upgrade -c conf/config.yaml    (the program on disk takes over from the running one)\n\n\
    Logs go to stderr, or to nginx_config.error_log. When everything listens, one line `ready {...}` goes to stdout.\n\
    SIGTERM, SIGINT and SIGQUIT drain: requests may finish, within worker_shutdown_timeout; a second one ends\n\
    the process at once. SIGHUP reads the settings, certificates and keys again. SIGUSR2 is `dataplane upgrade`."
)]
struct Arguments {
    /// The configuration file both planes read.
    #[arg(short, long, global = true, default_value = "conf/config.yaml", value_name = "FILE")]
    config: PathBuf,
    /// Apply the state of another store, once, although it would remove most of what is served.
    #[arg(long)]
    accept_new_store: bool,
    /// The form of the log's lines: text, or json for one JSON object a line.
    #[arg(long, global = true, default_value = "text", value_name = "FORMAT", value_parser = LogFormat::from_str)]
    log_format: LogFormat,
    /// Without a command: serve.
    #[command(subcommand)]
    command: Option<Command>,
}

/// The command line, for man pages.
pub fn command() -> clap::Command {
    Arguments::command()
}

/// Runs the program to the end of the process.
pub fn main() -> ! {
    let arguments = Arguments::parse();
    telemetry::log::init(arguments.log_format);
    // A worker's runtime must not be dropped with operations in flight, so nothing is unwound.
    let result = match arguments.command {
        Some(command) => command.run(&arguments.config),
        None => run(&arguments),
    };
    match result {
        Ok(()) => telemetry::exit(0),
        // A stop signal during the wait for a port is no failure.
        Err(error) if error.downcast_ref::<BindError>().is_some_and(|error| error.stopped) => {
            tracing::info!("stopped");
            telemetry::exit(0)
        }
        Err(error) => {
            telemetry::log::write_fatal(&format_args!("dataplane: {error:#}"));
            telemetry::exit(error.downcast_ref::<AskError>().map_or(1, AskError::exit_code))
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    // First: an upgrade may have replaced the file later.
    let program = Program::current().context("cannot find the file of this program")?;
    process::core_dumps::disable().context("cannot forbid core files")?;
    // First, so that a signal during the start has the same effect as a later one.
    let signals = signals::install_handlers().context("cannot handle signals")?;
    let offer = handover::take_over(&|| signals.is_stopping())?;
    let reporter = offer.as_ref().map(OfferedSuccession::failure_reporter);
    let served = Origin::new(offer).and_then(|origin| run_with(arguments, origin, &program, &signals));
    served.inspect_err(|error| succession::report(reporter.as_ref(), error))
}

fn run_with(
    arguments: &Arguments,
    origin: Origin,
    program: &Program,
    signals: &Signals,
) -> anyhow::Result<()> {
    let service = ServiceManager::from_env();
    let settings = conf::load(&arguments.config)?;
    leave_root(&settings)?;
    telemetry::log::configure(settings.log.file.as_deref(), settings.log.level)
        .context("nginx_config.error_log")?;
    for warning in &settings.warnings {
        tracing::warn!("{warning}");
    }
    if origin.offer.is_none() {
        service.status("starting");
    }
    let served = serve(settings, arguments.accept_new_store, origin, program, signals, &service);
    service.flush();
    served
}

/// Before anything but the settings is opened, so that it is opened as what it must be opened as
/// later, and nothing of the user's is written by root.
fn leave_root(settings: &Settings) -> anyhow::Result<()> {
    let user = settings.user.as_ref().map(ProcessUser::names);
    match process::user::leave_root(user, &settings.path).context("nginx_config.user")? {
        true => check_last_good(settings),
        false => Ok(()),
    }
}

/// Checks that this process may read and replace the last-good file and its key.
fn check_last_good(settings: &Settings) -> anyhow::Result<()> {
    let last_good = &settings.countersign.node.last_good;
    for file in [last_good, &push_client::key_path(last_good)] {
        check_replaceable(file).map_err(|(path, error)| {
            anyhow::anyhow!(
                "countersign.node.last_good: {}: {error}: the user of the data plane (nginx_config.user, where root starts it) must \
                 be able to read the file, and to write its folder",
                path.display()
            )
        })?;
    }
    Ok(())
}

fn serve(
    settings: Settings,
    accept_new_store: bool,
    origin: Origin,
    program: &Program,
    signals: &Signals,
    service: &ServiceManager,
) -> anyhow::Result<()> {
    let mut events = Events::new(signals).context("cannot wait for signals")?;
    let Origin { inherited, generations, offer } = origin;
    // `--accept-new-store` applies once: a successor has the arguments of the first process.
    let start = Start {
        accept_new_store: accept_new_store && offer.is_none(),
        saving_paused: offer.is_some(),
        inherited,
        generations,
    };
    let prepared = PreparedServer::new(settings, start, signals)?;
    let (mut running, control) = match offer {
        Some(offer) => succession::take_over(offer, prepared, &events, signals)?,
        None => {
            // Connections queue in the kernel meanwhile.
            prepared.wait_until_current(signals)?;
            let running = prepared.start()?;
            let control = events.serve_control_socket(running.last_good(), None);
            (running, control)
        }
    };
    running.announce(service);
    loop {
        match events.next() {
            Event::Stop => {
                service.stopping();
                running.stop();
                return Ok(());
            }
            Event::Upgrade(reply) => {
                events.upgrade_begins();
                match running.upgrade(program, signals) {
                    Ok(succession) => {
                        running.drain_after_handover(succession, events, control, reply, service)?;
                        return Ok(());
                    }
                    Err(error) => {
                        tracing::error!("upgrade: this process serves on as before: {error}");
                        reply.send(Err(format!("{error}; the data plane serves as before, in this process")));
                        events.upgrade_failed();
                    }
                }
            }
            Event::Reload(reply) => reply.send(running.reload(signals, service)),
        }
    }
}

/// How this process starts.
struct Start {
    accept_new_store: bool,
    /// A predecessor writes the last-good file.
    saving_paused: bool,
    inherited: InheritedSockets,
    generations: Generations,
}

/// All that a data plane needs before its workers run: whatever can fail has been done.
struct PreparedServer {
    settings: Settings,
    workers: usize,
    driver: Driver,
    listeners: ListenerSet,
    ports: BoundPorts,
    access: StatusAccessRules,
    stage: watch::Sender<ShutdownStage>,
    shutdown: ShutdownWatch,
    shared: Arc<SharedState>,
    heartbeats: Arc<Heartbeats>,
    sync_status: Arc<SyncStatus>,
    upgrades: Arc<Upgrades>,
    push_client: PushClientHandle,
    ticket_ring: Option<Arc<TicketRingHandle>>,
    read_files: watch::Sender<u64>,
    traces: watch::Sender<Option<Arc<ExportSettings>>>,
    trace_counters: Arc<TraceCounters>,
}

impl PreparedServer {
    fn new(settings: Settings, start: Start, signals: &Signals) -> anyhow::Result<Self> {
        let Start { accept_new_store, saving_paused, mut inherited, generations } = start;
        settings.check_data_plane_files()?;
        let workers = worker_count(&settings);
        let limit = raise_limit().context("cannot read the limit on open descriptors")?;
        let retry = BindRetry { predecessor: settings.countersign.drain_delay, stop: signals.stop() };
        let access = ports::access_rules(&settings)?;
        let mut ports = BoundPorts::default();
        ports.bind_named(&settings, &retry, &mut |key, addr| inherited.take_one(key, addr))?;
        let listeners = ListenerSet::bind(&listeners::plan(&settings), workers, &retry, &mut inherited)?;
        ports.bind_defaults(&settings, &mut |key, addr| inherited.take_one(key, addr));
        // A predecessor's socket may be one that the settings name no more.
        if generations.number() == 1 {
            inherited.ensure_empty()?;
        }
        let limits = connection_limits(&settings, limit, workers, listeners.0.len())?;
        let (stage, shutdown) = ShutdownWatch::new();
        let read_files = watch::Sender::new(0);

        let snapshot = Arc::new(SnapshotHandle::new(Arc::new(Snapshot::empty())));
        let sync_status = Arc::new(SyncStatus::default());
        let heartbeats = Arc::<Heartbeats>::default();
        let ticket_ring = settings.apisix.ssl.session_tickets.then(Arc::<TicketRingHandle>::default);
        let (trace_queues, recorded) = TraceQueues::new(workers, settings.countersign.tracing.queue_size);
        let trace_counters = TraceCounters::new(trace_queues.dropped());
        let traces = watch::Sender::new(ExportSettings::load(&settings)?);
        let exporter = TraceExporter::new(traces.subscribe(), recorded, Arc::clone(&trace_counters));
        let shared = shared_state(&settings, limits, &snapshot, (ticket_ring.as_ref(), trace_queues))?;
        let push_client = push_client::start(PushClientOptions {
            settings: settings.countersign.node.clone(),
            accept_new_store,
            version: env!("CARGO_PKG_VERSION"),
            snapshot,
            upstream_tls: Arc::clone(&shared.upstream_tls),
            ticket_ring: ticket_ring.clone(),
            status: Arc::clone(&sync_status),
            shutdown: shutdown.clone(),
            heartbeats: Arc::clone(&heartbeats),
            reload: read_files.subscribe(),
            saving_paused,
            traces: Some(exporter),
        })?;
        push_client.set_other_files(&other_files(traces.borrow().as_deref(), &access));
        let driver = Driver::detect();
        Ok(Self {
            settings,
            workers,
            driver,
            listeners,
            ports,
            access,
            stage,
            shutdown,
            shared,
            heartbeats,
            sync_status,
            upgrades: Upgrades::new(generations),
            push_client,
            ticket_ring,
            read_files,
            traces,
            trace_counters,
        })
    }

    /// Waits for a control plane as long as the settings have it.
    fn wait_until_current(&self, signals: &Signals) -> std::io::Result<()> {
        let timeout = self.settings.countersign.node.wait_for_control_plane;
        push_client::wait_until_current(&self.sync_status, timeout, signals.stop())
    }

    /// Starts the workers and the status listener. Returns when every worker listens.
    fn start(self) -> anyhow::Result<RunningServer> {
        let Self { settings, workers, driver, listeners, ports, stage, shutdown, .. } = self;
        let (listening, mut drained) = mpsc::unbounded_channel();
        let start = |index| {
            let init = WorkerStart {
                position: (index, workers),
                shared: &self.shared,
                listeners: listeners.sockets_of_worker(index, workers),
                driver: &driver,
                heartbeats: &self.heartbeats,
                listening: listening.clone(),
                shutdown: shutdown.clone(),
            };
            WorkerThread::start(init)
        };
        let threads = (0..workers).map(start).collect::<anyhow::Result<Vec<_>>>()?;
        drop(listening);
        for _ in 0..workers {
            // A worker that cannot listen ends the process.
            drained.blocking_recv();
        }
        let counters = threads.iter().map(|worker| Arc::clone(&worker.counters)).collect();
        let metrics = Arc::new(Metrics::new(
            counters,
            Arc::clone(&self.shared.series),
            Arc::clone(&self.shared.snapshot),
        ));
        let content = StatusContent {
            heartbeats: Arc::clone(&self.heartbeats),
            sync: Arc::clone(&self.sync_status),
            metrics: Arc::clone(&metrics),
            driver: driver.name(),
            certificates: &self.push_client.certificates,
            upgrades: &self.upgrades,
            traces: &self.trace_counters,
            shutdown,
            snapshot: Arc::clone(&self.shared.snapshot),
            ticket_ring: self.ticket_ring,
            workers: WorkerQuestions::new(threads.iter().map(WorkerThread::commands)),
        };
        let access = StatusAccessHandle::new(self.access.access.clone());
        let ports = ports.serve(&settings, access, &content)?;
        Ok(RunningServer {
            settings,
            driver,
            listeners,
            workers: threads,
            drained,
            stage,
            shared: self.shared,
            heartbeats: self.heartbeats,
            sync_status: self.sync_status,
            metrics,
            ports,
            upgrades: self.upgrades,
            push_client: self.push_client,
            access: self.access,
            read_files: self.read_files,
            traces: self.traces,
        })
    }
}

/// A data plane that serves.
struct RunningServer {
    settings: Settings,
    driver: Driver,
    /// The sockets that workers listen on.
    listeners: ListenerSet,
    workers: Vec<WorkerThread>,
    /// Has no sender when all workers have drained.
    drained: mpsc::UnboundedReceiver<()>,
    stage: watch::Sender<ShutdownStage>,
    shared: Arc<SharedState>,
    heartbeats: Arc<Heartbeats>,
    sync_status: Arc<SyncStatus>,
    metrics: Arc<Metrics>,
    /// The listeners for operators.
    ports: OperatorPorts,
    upgrades: Arc<Upgrades>,
    push_client: PushClientHandle,
    /// Who may reach them.
    access: StatusAccessRules,
    /// Lets the push client read the files that the settings name again.
    read_files: watch::Sender<u64>,
    /// Where the push client's thread sends spans.
    traces: watch::Sender<Option<Arc<ExportSettings>>>,
}

impl RunningServer {
    fn last_good(&self) -> &Path {
        &self.settings.countersign.node.last_good
    }

    /// Notifies the service manager, and prints the ready line.
    fn announce(&self, service: &ServiceManager) {
        service.watch(Arc::clone(&self.heartbeats), status::service_state(&self.sync_status, &self.metrics));
        let workers = self.workers.len();
        tracing::info!(driver = %self.driver, workers, "serving");
        let line = serde_json::json!({
            "http": self.listeners.addresses(|protocol| protocol == ListenerProtocol::Http),
            "https": self.listeners.addresses(|protocol| protocol == ListenerProtocol::Https),
            "stream": self.listeners.addresses(|protocol| !protocol.is_http()),
            "status": self.ports.address(OperatorPort::Status),
            "control": self.ports.address(OperatorPort::Control),
            "prometheus": self.ports.address(OperatorPort::Prometheus),
            "driver": self.driver.name(), "workers": workers, "pid": std::process::id(),
            "revision": self.shared.snapshot.load().revision(),
        });
        telemetry::stdout::write_ready_line(&line);
    }

    /// Stops gracefully.
    fn stop(mut self) {
        drain(&self.stage, self.settings.countersign.drain_delay, &mut self.ports);
        self.finish();
    }

    /// Waits for the workers, which drain, and ends the push client.
    fn finish(self) {
        drop((self.listeners, self.ports));
        self.workers.into_iter().for_each(WorkerThread::join);
        self.push_client.stop();
        tracing::info!("stopped");
    }
}

/// The files of TLS beside those of the push client.
fn other_files(traces: Option<&ExportSettings>, access: &StatusAccessRules) -> CertificateMonitor {
    let mut files = CertificateMonitor::default();
    traces.and_then(ExportSettings::files).into_iter().for_each(|collector| files.add(collector));
    access.files.iter().for_each(|status| files.add(status));
    files
}

/// Starts the drain: `/status/ready` fails at once, the listeners close after `delay`, and open
/// connections may finish.
fn drain(stage: &watch::Sender<ShutdownStage>, delay: Duration, ports: &mut OperatorPorts) {
    stage.send_replace(ShutdownStage::LameDuck);
    if !delay.is_zero() {
        tracing::info!(seconds = delay.as_secs_f64(), "accepting connections until drain_delay has passed");
        thread::sleep(delay);
    }
    // A successor binds them first.
    ports.close();
    stage.send_replace(ShutdownStage::Draining);
    tracing::info!("the listeners close; open connections may finish");
}
