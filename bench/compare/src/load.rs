//! Repeats one kind of operation against a target and reports what it took, here and on the server.
//!
//! One thread, pinned, one tokio runtime: the generator must fit beside the server on a two-core machine and
//! must not move. A run is: prepare every worker (dial, or obtain the first ticket), warm up, read the
//! server's CPU, measure, wait until nothing is in flight, read the CPU again. Idle connections are another
//! kind of run: [`idle`].
//!
//! What is measured is a server at capacity, so the load must cost less than what it loads: the first connection of each lane is verified in full, the
//! others recognise what it showed (`identity::known`), and enough are under way at once that the server does not sleep between
//! them. Whether that was so is in the report: how busy the server was, and how often an operation it was put on a core.
//!
//! The invariant: every operation that was started ends as one sample or one failure, within its limit.

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
mod worker;

pub use dial::Dialler;
use pace::Pace;
pub use phase::{Amount, latencies, nanos};
use phase::{Meter, Phase};
use worker::Worker;

/// What one operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A new connection with a full handshake, one request, and the close.
    New,
    /// The same with a ticket from the connection before; a full handshake counts as a failure.
    Resumed,
    /// One HTTP/1.1 request on a connection that stays open.
    KeepAlive,
    /// One HTTP/2 request, this many at once on each connection.
    KeepAliveH2 {
        /// Requests in flight on one connection.
        streams: usize,
    },
}

impl Mode {
    /// The mode's name on the command line and in reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Resumed => "resumed",
            Self::KeepAlive => "keepalive",
            Self::KeepAliveH2 { .. } => "keepalive-h2",
        }
    }
}

/// Everything one run needs to know.
pub struct Plan {
    /// Where to.
    pub target: Target,
    /// As whom.
    pub identity: Arc<ClientIdentity>,
    /// The only TLS version offered.
    pub version: Version,
    /// The only key-exchange group offered.
    pub group: Group,
    /// What is repeated.
    pub mode: Mode,
    /// Connections at a time.
    pub connections: usize,
    /// How often each lane starts an operation, and what it has to wait for counts; `None`: one right after the other.
    pub every: Option<Duration>,
    /// How much is measured.
    pub amount: Amount,
    /// How much is done before, unmeasured.
    pub warmup: Amount,
    /// Limit of a single operation.
    pub timeout: Duration,
    /// Hard limit of the measured part: what is not done by then is given up.
    pub limit: Duration,
    /// The status every answer must have.
    pub expect_status: u16,
    /// The server's process, whose CPU (with its children's) is read.
    pub server: Option<u32>,
    /// The core the generator runs on.
    pub cpu: Option<usize>,
    /// What stands before the progress line; `None` prints none.
    pub progress: Option<String>,
}

/// Why a run has no figures.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The client's side is unusable.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The core, the server's process or the runtime.
    #[error("{what}")]
    System {
        /// What we were doing.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The very first operations failed.
    #[error("the server at {address} does not serve this client: {failure}")]
    Refused {
        /// What was dialled.
        address: std::net::SocketAddr,
        /// The first failure.
        failure: Failure,
    },
    /// Not one operation succeeded within the limit.
    #[error("no operation succeeded within {limit:?}; failures: {failures}")]
    Nothing {
        /// The hard limit.
        limit: Duration,
        /// What failed, by kind.
        failures: String,
    },
}

/// Runs the plan to its end on a thread of its own and returns the figures.
///
/// # Errors
/// When there are no figures to return: see [`LoadError`]. Single failures are part of the report.
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
        // The limit ended the warm-up: nothing can be measured on the workers it took with it.
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

/// Dials what must be open (or must have a ticket) before the first operation.
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

/// Lets all workers run through a phase. `None` when the hard limit ended it: the workers are lost then.
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
