//! Repeats one kind of operation against a target and reports its cost, here and on the server.
//!
//! The generator is one pinned thread with one tokio runtime, so that it fits beside the server on
//! a two-core machine. A run prepares every lane (dials, or obtains the first ticket), warms up,
//! reads the server's CPU time, measures, waits until nothing is in flight, and reads the CPU time
//! again. [`idle`] runs idle connections instead.
//!
//! The server is measured at capacity, so the load must cost less than the server: a lane verifies
//! its server in full on the first connection and recognises the same certificates later
//! ([`crate::identity`]), and enough operations are in flight that the server does not sleep
//! between them. The report shows whether that held: the server's CPU utilisation, and its time
//! slices an operation.
//!
//! Invariant: every operation ends as one sample or one failure, within its limit.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{JoinHandle, LocalSet};
use tokio::time::Instant;

use crate::failure::{Failure, Failures};
use crate::identity::{ClientIdentity, Group, IdentityError, Version};
use crate::report::{ClientCpu, Latency, LoadReport, Negotiated, ServerCpu, Stopped};
use crate::target::Target;
use e2e::resources::{self, CpuReading};

mod dial;
pub mod http1;
pub mod idle;
mod pace;
mod phase;
mod websocket;
mod worker;

pub use dial::Dialler;
use pace::Pace;
pub use phase::{Amount, latencies, nanos};
use phase::{Meter, Phase};
use worker::Worker;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A new connection with a full handshake, one request, and the close.
    New,
    /// As `New`, with a ticket of the connection before; a full handshake counts as a failure.
    Resumed,
    /// One HTTP/1.1 request on a kept connection.
    KeepAlive,
    /// One HTTP/2 request, so many at once on each connection.
    KeepAliveH2 {
        /// Requests in flight on one connection.
        streams: usize,
    },
    /// One unary gRPC call, so many at once on each connection.
    Grpc {
        /// Calls in flight on one connection.
        streams: usize,
    },
    /// One message over a WebSocket and back.
    WebSocket,
}

impl Mode {
    /// The name on the command line and in reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Resumed => "resumed",
            Self::KeepAlive => "keepalive",
            Self::KeepAliveH2 { .. } => "keepalive-h2",
            Self::Grpc { .. } => "grpc",
            Self::WebSocket => "websocket",
        }
    }
}

pub struct Plan {
    pub target: Target,
    pub identity: Arc<ClientIdentity>,
    /// The only TLS version offered.
    pub version: Version,
    /// The only key exchange group offered.
    pub group: Group,
    pub mode: Mode,
    /// Connections at a time.
    pub connections: usize,
    /// The interval between a lane's operations, from whose start waiting counts; `None`: back to
    /// back.
    pub every: Option<Duration>,
    /// The measured part.
    pub amount: Amount,
    /// The part before it.
    pub warmup: Amount,
    /// Limit of a single operation.
    pub timeout: Duration,
    /// Hard limit of the measured part.
    pub limit: Duration,
    /// The expected status of every response.
    pub expect_status: u16,
    /// The server's process, whose CPU time (with its children's) is read.
    pub server: Option<u32>,
    /// The core of the generator.
    pub cpu: Option<usize>,
    /// The label of the progress line; `None` prints none.
    pub progress: Option<String>,
}

/// Why a run has no figures.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The client's configuration.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The core, the server's process or the runtime.
    #[error("{what}")]
    System { what: &'static str, source: io::Error },
    /// The very first operations failed.
    #[error("the server at {address} does not serve this client: {failure}")]
    Refused { address: std::net::SocketAddr, failure: Failure },
    /// Not one operation succeeded within the limit.
    #[error("no operation succeeded within {limit:?}; failures: {failures}")]
    Nothing {
        limit: Duration,
        /// Kinds of failure with their counts.
        failures: String,
    },
}

/// Runs the plan on a thread of its own.
///
/// # Errors
/// When there are no figures: see [`LoadError`]. Single failures are part of the report.
pub fn run(plan: Plan) -> Result<LoadReport, LoadError> {
    on_own_thread(plan.cpu, move || drive(plan))
}

/// Runs a future on a new thread, pinned to `cpu`, with a single-threaded runtime.
fn on_own_thread<T, F>(cpu: Option<usize>, make: impl FnOnce() -> F + Send) -> Result<T, LoadError>
where
    T: Send,
    F: Future<Output = Result<T, LoadError>>,
{
    let body = || {
        if let Some(cpu) = cpu {
            resources::pin_current_thread(cpu).map_err(system("pinning the load generator"))?;
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(system("starting the load generator's runtime"))?;
        LocalSet::new().block_on(&runtime, make())
    };
    std::thread::scope(|scope| match scope.spawn(body).join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

fn system(what: &'static str) -> impl Fn(io::Error) -> LoadError {
    move |source| LoadError::System { what, source }
}

async fn drive(plan: Plan) -> Result<LoadReport, LoadError> {
    let pids = match plan.server {
        Some(pid) => resources::family(pid).map_err(system("looking for the server's process"))?,
        None => Vec::new(),
    };
    let mut workers = prepare(&plan).await?;
    let negotiated = workers.first().and_then(Worker::negotiated);
    let warmup = Rc::new(Phase::new(plan.warmup, plan.timeout, plan.limit));
    workers = run_phase(&warmup, workers, plan.every, None).await.unwrap_or_default();
    let mut warmup = warmup.meter.take();
    if workers.is_empty() {
        // The limit ended the warm-up and its lanes: none is left to measure on.
        return Err(nothing(&plan, &mut warmup));
    }

    let reading = || CpuReading::take(&pids).map_err(system("reading the server's CPU time"));
    let own = || resources::own_thread_nanos().map_err(system("reading the load generator's CPU time"));
    let before = (own()?, reading()?);
    let started = Instant::now();
    let phase = Rc::new(Phase::new(plan.amount, plan.timeout, plan.limit));
    let left = run_phase(&phase, workers, plan.every, plan.progress.as_deref()).await;
    let elapsed = started.elapsed();
    let used = (own()?.saturating_sub(before.0), reading()?.since(&before.1));

    let mut meter = phase.meter.take();
    if meter.total.is_empty() {
        return Err(nothing(&plan, &mut meter));
    }
    let server = plan.server.map(|_| ServerCpu::new(&pids, used.1, meter.total.len(), elapsed));
    let stopped = if left.is_none() { Stopped::Limit } else { plan.amount.stopped() };
    Ok(report(&plan, meter, elapsed, stopped, negotiated, (used.0, server)))
}

fn report(
    plan: &Plan,
    meter: Meter,
    elapsed: Duration,
    stopped: Stopped,
    negotiated: Option<Negotiated>,
    (used_ns, server): (u64, Option<ServerCpu>),
) -> LoadReport {
    let operations = meter.total.len();
    LoadReport {
        mode: plan.mode.as_str(),
        address: plan.target.address.to_string(),
        host: plan.target.host.clone(),
        path: plan.target.path.clone(),
        connections: plan.connections,
        negotiated,
        operations,
        failures: meter.failures,
        elapsed_s: elapsed.as_secs_f64(),
        per_second: operations as f64 / elapsed.as_secs_f64().max(f64::EPSILON),
        stopped,
        latency_us: Latency::of(&meter.total),
        handshake_us: Latency::of(&meter.handshake),
        client: ClientCpu::new(used_ns, operations, elapsed),
        server,
    }
}

/// Dials the kept connections and obtains the tickets that the first operation needs.
async fn prepare(plan: &Plan) -> Result<Vec<Worker>, LoadError> {
    let address = plan.target.address;
    let mut workers = Vec::new();
    for _ in 0..plan.connections.max(1) {
        let made = tokio::time::timeout(plan.timeout, Worker::prepare(plan)).await;
        let made = made.unwrap_or_else(|_| Err(worker::timed_out(plan.timeout).into()));
        workers.extend(made.map_err(|error| match error {
            worker::PrepareError::Identity(error) => LoadError::Identity(error),
            worker::PrepareError::Failed(failure) => LoadError::Refused { address, failure },
        })?);
    }
    Ok(workers)
}

/// Runs all lanes through a phase. `None` when the hard limit ended it, which loses the lanes.
async fn run_phase(
    phase: &Rc<Phase>,
    workers: Vec<Worker>,
    every: Option<Duration>,
    progress: Option<&str>,
) -> Option<Vec<Worker>> {
    let ticker = progress.map(|label| tokio::task::spawn_local(phase::tick(phase.clone(), label.to_owned())));
    let lanes = workers.len();
    let start = |(lane, worker): (usize, Worker)| {
        let pace = every.map(|every| Pace::new(every, lane, lanes));
        tokio::task::spawn_local(worker.run(phase.clone(), pace))
    };
    let tasks: Vec<JoinHandle<Worker>> = workers.into_iter().enumerate().map(start).collect();
    let aborts: Vec<_> = tasks.iter().map(JoinHandle::abort_handle).collect();
    let all = async {
        let mut back = Vec::with_capacity(tasks.len());
        for task in tasks {
            back.extend(task.await.ok());
        }
        back
    };
    let back = tokio::time::timeout_at(phase.limit(), all).await.ok();
    if back.is_none() {
        aborts.iter().for_each(tokio::task::AbortHandle::abort);
    }
    if let Some(ticker) = ticker {
        ticker.abort();
        phase::end_line();
    }
    back
}

fn nothing(plan: &Plan, meter: &mut Meter) -> LoadError {
    let failures: &Failures = &meter.failures;
    let kinds: Vec<String> = failures
        .iter()
        .map(|(kind, counted)| format!("{} x {kind:?} ({})", counted.count, counted.first))
        .collect();
    let failures = if kinds.is_empty() { "none, it never answered".to_owned() } else { kinds.join(", ") };
    LoadError::Nothing { limit: plan.limit, failures }
}
