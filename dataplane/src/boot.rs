//! Start and stop of the process: wiring only.
//!
//! Order: signals, settings, listeners (so that a port in use is told first), agent (so that the last good snapshot is
//! there before the first connection), workers, status, the ready line; then the wait for a signal and the drain.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    thread::{self, JoinHandle},
};

use anyhow::Context as _;
use clap::Parser;
use conf::Settings;
use futures_channel::oneshot;
use model::Snapshot;
use process::signals::{self, Signals};
use telemetry::{Heartbeats, Readiness, status::Serving};

use crate::{
    agent::{self, AgentInput, AgentStatus, Secrets, cell::Cell},
    net::listener::{self, Bound, Speaks},
    observe::metrics::{Counters, Metrics},
    rt::Driver,
    settings, status,
    tls::site::{self, Sites},
    upstream::{resolve::Resolver, tls::Connector},
    worker::{self, Shared, Start},
};

/// Countersign's data plane: terminates TLS, verifies clients, routes and proxies.
/// The version, and whether this build was made with a profile (`scripts/release.sh`).
const VERSION: &str = match option_env!("COUNTERSIGN_PROFILED") {
    Some(_) => concat!(env!("CARGO_PKG_VERSION"), " (profile-guided)"),
    None => env!("CARGO_PKG_VERSION"),
};

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
}

/// The process.
pub fn main() -> ! {
    let arguments = Arguments::parse();
    telemetry::log::start();
    // A worker's runtime must not be dropped with operations in flight: leave without unwinding anything.
    match run(&arguments.config) {
        Ok(()) => telemetry::exit(0),
        Err(error) => {
            telemetry::log::write(&format_args!("dataplane: {error:#}"));
            telemetry::exit(1)
        }
    }
}

fn run(config: &Path) -> anyhow::Result<()> {
    // First: a signal during the start is obeyed as one that comes later.
    let signals = signals::listen().context("cannot handle signals")?;
    serve(&conf::load(config)?, &signals)
}

fn serve(settings: &Settings, signals: &Signals) -> anyhow::Result<()> {
    for warning in &settings.warnings {
        tracing::warn!("{warning}");
    }
    let workers = worker_count(settings);
    let driver = Driver::detect();
    let status = status::bind(settings)?;
    let mut listeners = Listeners::bind(settings, workers)?;

    let cell = Arc::new(Cell::new(Arc::new(Snapshot::empty())));
    let agent_status = Arc::new(AgentStatus::default());
    let heartbeats = Arc::<Heartbeats>::default();
    let secrets = settings.apisix.ssl.session_tickets.then(Arc::<Secrets>::default);
    let shared = shared(settings, &cell, secrets.as_ref())?;
    let agent = agent::start(AgentInput {
        settings: settings.countersign.node.clone(),
        version: env!("CARGO_PKG_VERSION"),
        cell: Arc::clone(&cell),
        secrets,
        status: Arc::clone(&agent_status),
        heartbeats: Arc::clone(&heartbeats),
    })?;

    let mut running = Vec::with_capacity(workers);
    for index in 0..workers {
        running.push(Running::start(index, workers, &shared, listeners.of_worker(), &driver, &heartbeats)?);
    }
    let counters = running.iter().map(|worker| Arc::clone(&worker.counters)).collect();
    let metrics = Arc::new(Metrics::new(counters, Arc::clone(&agent_status)));
    let status =
        status.map(|listener| status::serve(listener, heartbeats, agent_status, metrics)).transpose()?;

    tracing::info!(%driver, workers, "serving");
    let revision = cell.load().revision();
    ready(&listeners, status.as_ref().map(Serving::address), &driver, workers, revision);
    signals.wait_for_stop().context("cannot wait for a signal")?;
    running.into_iter().map(Running::stop).collect::<Vec<_>>().into_iter().for_each(|thread| {
        if thread.join().is_err() {
            tracing::error!("a worker did not end well");
        }
    });
    agent.stop();
    drop(status);
    tracing::info!("stopped");
    Ok(())
}

fn worker_count(settings: &Settings) -> usize {
    match settings.countersign.workers {
        0 => thread::available_parallelism().map_or(1, usize::from),
        some => some,
    }
}

fn shared(
    settings: &Settings,
    cell: &Arc<Cell>,
    secrets: Option<&Arc<Secrets>>,
) -> anyhow::Result<Arc<Shared>> {
    let rules = settings::rules(settings)?;
    let provider = Arc::new(site::provider());
    let anchors = settings::trust(settings)?;
    let records = settings::record_layer(settings);
    let connector = Connector::new(Arc::clone(&provider), anchors, settings.http.proxy_ssl_verify, records)?;
    Ok(Arc::new(Shared {
        cell: Arc::clone(cell),
        sites: Sites::new(provider, &settings::versions(settings)?, rules.http2, secrets.cloned(), records)
            .with_ciphers(settings.apisix.ssl.ciphers.clone()),
        connector: Arc::new(connector),
        resolver: Resolver::start().context("cannot start the resolver's threads")?,
        rules,
    }))
}

/// Every bound socket, not yet handed to its worker.
struct Listeners {
    http: Vec<SocketAddr>,
    https: Vec<SocketAddr>,
    /// As configured: within TLS or not.
    stream: Vec<SocketAddr>,
    /// One list an address, one socket a worker.
    sockets: Vec<Vec<Bound>>,
}

impl Listeners {
    fn bind(settings: &Settings, workers: usize) -> anyhow::Result<Self> {
        let apisix = &settings.apisix;
        let mut all = Self { http: Vec::new(), https: Vec::new(), stream: Vec::new(), sockets: Vec::new() };
        if apisix.proxy_mode.http() {
            for &addr in &apisix.node_listen {
                all.add("apisix.node_listen", addr, Speaks::Http, workers)?;
            }
            for &addr in apisix.ssl.listen.iter().filter(|_| apisix.ssl.enable) {
                all.add("apisix.ssl.listen", addr, Speaks::Https, workers)?;
            }
        }
        if apisix.proxy_mode.streams() {
            for &conf::StreamListener { addr, tls } in &apisix.streams {
                all.add("apisix.stream_proxy.tcp", addr, Speaks::Stream { tls }, workers)?;
            }
        }
        Ok(all)
    }

    fn add(
        &mut self,
        key: &'static str,
        addr: SocketAddr,
        speaks: Speaks,
        workers: usize,
    ) -> anyhow::Result<()> {
        let bound = match listener::bind(key, addr, speaks, workers) {
            Ok(bound) => bound,
            // A machine without IPv6 does without it.
            Err(error) if implied(addr, speaks) && no_ipv6(&error.error) => {
                tracing::warn!("{error}; going on without IPv6");
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        let at = bound.first().map_or(addr, |bound| bound.addr);
        match speaks {
            Speaks::Http => self.http.push(at),
            Speaks::Https => self.https.push(at),
            Speaks::Stream { .. } => self.stream.push(at),
        }
        self.sockets.push(bound);
        Ok(())
    }

    /// One socket of each address.
    fn of_worker(&mut self) -> Vec<Bound> {
        self.sockets.iter_mut().filter_map(Vec::pop).collect()
    }
}

/// `[::]` may be there only because enable_ipv6 is on by default; a stream's listener is there because somebody wrote it.
fn implied(addr: SocketAddr, speaks: Speaks) -> bool {
    addr.is_ipv6() && addr.ip().is_unspecified() && matches!(speaks, Speaks::Http | Speaks::Https)
}

fn no_ipv6(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::AddrNotAvailable
        || error.raw_os_error() == Some(nix::libc::EAFNOSUPPORT)
}

/// A worker's thread.
struct Running {
    thread: JoinHandle<()>,
    stop: oneshot::Sender<()>,
    counters: Arc<Counters>,
}

impl Running {
    fn start(
        index: usize,
        workers: usize,
        shared: &Arc<Shared>,
        listeners: Vec<Bound>,
        driver: &Driver,
        heartbeats: &Heartbeats,
    ) -> anyhow::Result<Self> {
        let (stop, stopped) = oneshot::channel();
        let counters = Arc::new(Counters::default());
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let start = Start {
            shared: Arc::clone(shared),
            counters: Arc::clone(&counters),
            heartbeat: heartbeats.add(format!("worker-{index}"), Readiness::Required),
            listeners,
            driver: driver.clone(),
            // Fewer workers than cores: the kernel places them better than we could.
            cpu: (workers == cores && workers > 1).then_some(index),
            stop: stopped,
        };
        let thread = thread::Builder::new()
            .name(format!("worker-{index}"))
            .spawn(move || {
                if let Err(error) = worker::run(start) {
                    tracing::error!(%error, "a worker cannot run; stopping the process");
                    telemetry::exit(1);
                }
            })
            .context("cannot start a worker's thread")?;
        Ok(Self { thread, stop, counters })
    }

    fn stop(self) -> JoinHandle<()> {
        let _worker_gone = self.stop.send(());
        self.thread
    }
}

fn ready(listeners: &Listeners, status: Option<SocketAddr>, driver: &Driver, workers: usize, revision: u64) {
    let line = serde_json::json!({
        "http": listeners.http, "https": listeners.https, "stream": listeners.stream, "status": status,
        "driver": driver.name(), "workers": workers, "revision": revision,
    });
    telemetry::print::ready(&line);
}
