//! Start and stop of the process: wiring only.
//!
//! Order: signals, settings, the status port and the listeners (so that a port in use is told
//! first), agent (so that the last good snapshot is there before the first connection), workers,
//! status, the ready line; then the wait for a signal, and the stop.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use conf::Settings;
use model::Snapshot;
use process::descriptors::raise_limit;
use process::signals::{self, Signals};
use telemetry::status::StatusServer;
use telemetry::{Heartbeats, Readiness};
use tokio::sync::watch;

use crate::io::connection_info::ListenerProtocol;
use crate::lifecycle::shutdown::{ShutdownStage, ShutdownWatch};
use crate::observability::metrics::{Counters, Metrics};
use crate::proxy::listener;
use crate::proxy::listener::{BindError, BindRetry, BoundSocket};
use crate::proxy::worker::{SharedState, WorkerConfig};
use crate::proxy::worker_thread::{self, WorkerInit};
use crate::push_client::handles::SnapshotHandle;
use crate::push_client::{PushClientOptions, SyncStatus, TicketRingHandle};
use crate::runtime::descriptors::ConnectionLimits;
use crate::runtime::{Driver, descriptors};
use crate::tls::site_config;
use crate::tls::site_config::SiteConfigFactory;
use crate::upstream::client_tls::ClientTlsConfigs;
use crate::upstream::resolver::Resolver;
use crate::{config, push_client, status};

/// What `--version` says, also whether this build was made with a profile (`scripts/release.sh`).
const VERSION: &str = match option_env!("COUNTERSIGN_PROFILED") {
    Some(_) => process::VERSION_PROFILED,
    None => process::VERSION,
};

/// The data plane of Countersign, a mutual-TLS gateway: terminates TLS, verifies clients, routes
/// and proxies.
///
/// It is told what to serve by a control plane (countersign.node.control_planes), over mutual TLS,
/// and serves the last it was told when none answers.
#[derive(Debug, Parser)]
#[command(
    name = "dataplane",
    version = VERSION,
    after_help = "Examples:\n  \
    dataplane -c conf/config.yaml\n  \
    RUST_LOG=debug dataplane -c conf/config.yaml\n  \
    COUNTERSIGN_DRIVER=epoll dataplane -c conf/config.yaml    (without io_uring)\n\n\
    Logs go to stderr. When everything listens, one line `ready {...}` goes to stdout.\n\
    SIGTERM, SIGINT and SIGQUIT stop gracefully: what runs may finish, within worker_shutdown_timeout; a second one ends\n\
    the process at once. SIGHUP reads certificates and keys again."
)]
struct Arguments {
    /// The configuration file both planes read.
    #[arg(short, long, default_value = "conf/config.yaml", value_name = "FILE")]
    config: PathBuf,
    /// Take the state of another store over, once, although it would take most of what is served
    /// away.
    #[arg(long)]
    accept_new_store: bool,
}

/// The process.
pub fn main() -> ! {
    let arguments = Arguments::parse();
    telemetry::log::init();
    // A worker's runtime must not be dropped with operations in flight: leave without unwinding
    // anything.
    match run(&arguments) {
        Ok(()) => telemetry::exit(0),
        // A stop signal ends the wait for a port, which is the end that was asked for.
        Err(error) if error.downcast_ref::<BindError>().is_some_and(|error| error.stopped) => {
            tracing::info!("stopped");
            telemetry::exit(0)
        }
        Err(error) => {
            telemetry::log::write_unfiltered(&format_args!("dataplane: {error:#}"));
            telemetry::exit(1)
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    process::core_dumps::disable().context("cannot forbid core files")?;
    // First: a signal during the start is obeyed as one that comes later.
    let signals = signals::install_handlers().context("cannot handle signals")?;
    serve(&conf::load(&arguments.config)?, arguments.accept_new_store, &signals)
}

fn serve(settings: &Settings, accept_new_store: bool, signals: &Signals) -> anyhow::Result<()> {
    for warning in &settings.warnings {
        tracing::warn!("{warning}");
    }
    settings.check_data_plane_files()?;
    let workers = worker_count(settings);
    let driver = Driver::detect();
    let limit = raise_limit().context("cannot read the limit on open descriptors")?;
    let patience = BindRetry { predecessor: settings.countersign.drain_delay, stop: signals.stop() };
    let status = status::bind(settings, &patience)?;
    let mut listeners = BoundListeners::bind(settings, workers, &patience)?;
    let share = connection_limits(settings, limit, workers, listeners.sockets.len())?;
    let (stage, stages) = ShutdownWatch::new();

    let cell = Arc::new(SnapshotHandle::new(Arc::new(Snapshot::empty())));
    let agent_status = Arc::new(SyncStatus::default());
    let heartbeats = Arc::<Heartbeats>::default();
    let secrets = settings.apisix.ssl.session_tickets.then(Arc::<TicketRingHandle>::default);
    let shared = shared_state(settings, share, &cell, secrets.as_ref())?;
    let agent = push_client::start(PushClientOptions {
        settings: settings.countersign.node.clone(),
        accept_new_store,
        version: env!("CARGO_PKG_VERSION"),
        cell: Arc::clone(&cell),
        secrets,
        status: Arc::clone(&agent_status),
        stages: stages.clone(),
        heartbeats: Arc::clone(&heartbeats),
        reload: signals.reload(),
    })?;
    // Connections queue in the kernel meanwhile.
    push_client::wait_until_current(
        &agent_status,
        settings.countersign.node.wait_for_control_plane,
        signals.stop(),
    )?;

    let mut running = Vec::with_capacity(workers);
    for index in 0..workers {
        running.push(WorkerThread::start(
            (index, workers),
            &shared,
            listeners.take_worker_sockets(),
            &driver,
            &heartbeats,
            stages.clone(),
        )?);
    }
    let counters = running.iter().map(|worker| Arc::clone(&worker.counters)).collect();
    let metrics = Arc::new(Metrics::new(counters));
    let certificates = &agent.certificates;
    let status = status
        .map(|listener| status::serve(listener, heartbeats, agent_status, metrics, certificates, stages))
        .transpose()?;

    tracing::info!(%driver, workers, "serving");
    let revision = cell.load().revision();
    print_ready_line(&listeners, status.as_ref().map(StatusServer::address), &driver, workers, revision);
    signals.wait_for_stop().context("cannot wait for a signal")?;
    drain(&stage, settings.countersign.drain_delay, status);
    for worker in running {
        if worker.thread.join().is_err() {
            tracing::error!("a worker did not end well");
        }
    }
    agent.stop();
    tracing::info!("stopped");
    Ok(())
}

/// The stop: `/status/ready` says so at once, listeners close after the delay, and what runs may
/// finish.
fn drain(stage: &watch::Sender<ShutdownStage>, delay: Duration, status: Option<StatusServer>) {
    stage.send_replace(ShutdownStage::LameDuck);
    if !delay.is_zero() {
        tracing::info!(seconds = delay.as_secs_f64(), "accepting connections until drain_delay has passed");
        thread::sleep(delay);
    }
    // Of the ports the first one that a successor binds.
    if let Some(status) = status {
        status.close();
    }
    stage.send_replace(ShutdownStage::Draining);
    tracing::info!("the listeners close; what runs may finish");
}

/// What each worker may have open.
fn connection_limits(
    settings: &Settings,
    limit: usize,
    workers: usize,
    listeners: usize,
) -> anyhow::Result<ConnectionLimits> {
    let wanted = settings.countersign.limits.connections_per_worker;
    let (share, warning) = descriptors::connection_limits(limit, workers, listeners, wanted)?;
    if let Some(warning) = warning {
        tracing::warn!("{warning}");
    }
    Ok(share)
}

fn worker_count(settings: &Settings) -> usize {
    match settings.countersign.workers {
        0 => thread::available_parallelism().map_or(1, usize::from),
        some => some,
    }
}

fn shared_state(
    settings: &Settings,
    share: ConnectionLimits,
    cell: &Arc<SnapshotHandle>,
    secrets: Option<&Arc<TicketRingHandle>>,
) -> anyhow::Result<Arc<SharedState>> {
    let wanted = settings.countersign.limits.requests_per_client;
    let requests_per_client = share.requests_per_client(wanted);
    if requests_per_client < wanted {
        tracing::warn!(
            "each worker has places for {} connections to upstreams: one client may have {requests_per_client} requests under way on \
             it, not the {wanted} of countersign.limits.requests_per_client. Raise the limit on open descriptors (ulimit -Hn, \
             LimitNOFILE), or lower that key",
            share.upstreams
        );
    }
    let rules =
        WorkerConfig { connection_limits: share, requests_per_client, ..config::worker_config(settings)? };
    let provider = Arc::new(site_config::crypto_provider());
    let anchors = config::upstream_anchors(settings)?;
    let records = config::record_layer(settings);
    let connector =
        ClientTlsConfigs::new(Arc::clone(&provider), anchors, settings.http.proxy_ssl_verify, records)?;
    Ok(Arc::new(SharedState {
        snapshot: Arc::clone(cell),
        sites: SiteConfigFactory::new(
            provider,
            &config::tls_versions(settings)?,
            rules.http2,
            secrets.cloned(),
            records,
        )
        .with_ciphers(settings.apisix.ssl.ciphers.clone()),
        connector: Arc::new(connector),
        resolver: Resolver::start().context("cannot start the resolver's threads")?,
        config: rules,
    }))
}

/// Every bound socket, not yet handed to its worker.
struct BoundListeners {
    http: Vec<SocketAddr>,
    https: Vec<SocketAddr>,
    /// As configured: within TLS or not.
    stream: Vec<SocketAddr>,
    /// One list an address, one socket a worker.
    sockets: Vec<Vec<BoundSocket>>,
}

impl BoundListeners {
    fn bind(settings: &Settings, workers: usize, patience: &BindRetry) -> anyhow::Result<Self> {
        let apisix = &settings.apisix;
        let mut all = Self { http: Vec::new(), https: Vec::new(), stream: Vec::new(), sockets: Vec::new() };
        if apisix.proxy_mode.http() {
            for &addr in &apisix.node_listen {
                all.add("apisix.node_listen", addr, ListenerProtocol::Http, workers, patience)?;
            }
            for &addr in apisix.ssl.listen.iter().filter(|_| apisix.ssl.enable) {
                all.add("apisix.ssl.listen", addr, ListenerProtocol::Https, workers, patience)?;
            }
        }
        if apisix.proxy_mode.streams() {
            for &conf::StreamListener { addr, tls } in &apisix.streams {
                all.add("apisix.stream_proxy.tcp", addr, ListenerProtocol::Tcp { tls }, workers, patience)?;
            }
        }
        Ok(all)
    }

    fn add(
        &mut self,
        key: &'static str,
        addr: SocketAddr,
        speaks: ListenerProtocol,
        workers: usize,
        patience: &BindRetry,
    ) -> anyhow::Result<()> {
        let bound = match listener::bind(key, addr, speaks, workers, patience) {
            Ok(bound) => bound,
            // A machine without IPv6 does without it.
            Err(error) if is_optional(addr, speaks) && is_ipv6_unavailable(&error.error) => {
                tracing::warn!("{error}; going on without IPv6");
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        let at = bound.first().map_or(addr, |bound| bound.addr);
        match speaks {
            ListenerProtocol::Http => self.http.push(at),
            ListenerProtocol::Https => self.https.push(at),
            ListenerProtocol::Tcp { .. } => self.stream.push(at),
        }
        self.sockets.push(bound);
        Ok(())
    }

    /// One socket of each address.
    fn take_worker_sockets(&mut self) -> Vec<BoundSocket> {
        self.sockets.iter_mut().filter_map(Vec::pop).collect()
    }
}

/// `[::]` may be there only because enable_ipv6 is on by default; a stream's listener is there
/// because somebody wrote it.
fn is_optional(addr: SocketAddr, speaks: ListenerProtocol) -> bool {
    addr.is_ipv6()
        && addr.ip().is_unspecified()
        && matches!(speaks, ListenerProtocol::Http | ListenerProtocol::Https)
}

fn is_ipv6_unavailable(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::AddrNotAvailable
        || error.raw_os_error() == Some(nix::libc::EAFNOSUPPORT)
}

/// A worker's thread.
struct WorkerThread {
    thread: JoinHandle<()>,
    counters: Arc<Counters>,
}

impl WorkerThread {
    fn start(
        (index, workers): (usize, usize),
        shared: &Arc<SharedState>,
        listeners: Vec<BoundSocket>,
        driver: &Driver,
        heartbeats: &Heartbeats,
        stages: ShutdownWatch,
    ) -> anyhow::Result<Self> {
        let counters = Arc::new(Counters::default());
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let start = WorkerInit {
            shared: Arc::clone(shared),
            counters: Arc::clone(&counters),
            heartbeat: heartbeats.add(format!("worker-{index}"), Readiness::Required),
            listeners,
            driver: driver.clone(),
            // Fewer workers than cores: the kernel places them better than we could.
            cpu: (workers == cores && workers > 1).then_some(index),
            shutdown: stages,
        };
        let thread = thread::Builder::new()
            .name(format!("worker-{index}"))
            .spawn(move || {
                if let Err(error) = worker_thread::run(start) {
                    tracing::error!(%error, "a worker cannot run; stopping the process");
                    telemetry::exit(1);
                }
            })
            .context("cannot start a worker's thread")?;
        Ok(Self { thread, counters })
    }
}

fn print_ready_line(
    listeners: &BoundListeners,
    status: Option<SocketAddr>,
    driver: &Driver,
    workers: usize,
    revision: u64,
) {
    let line = serde_json::json!({
        "http": listeners.http, "https": listeners.https, "stream": listeners.stream, "status": status,
        "driver": driver.name(), "workers": workers, "revision": revision,
    });
    telemetry::stdout::write_ready_line(&line);
}
