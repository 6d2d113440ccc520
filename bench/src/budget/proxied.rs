//! A proxied request on an open connection, served by a whole worker of the data plane in this
//! process.
//!
//! The worker's thread runs everything from accept to the pooled upstream connection. The sockets
//! are real; the driver is epoll, because valgrind does not implement all of io_uring. The client
//! and the upstream run on threads that are not counted.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use dataplane::testing::io::connection_info::ListenerProtocol;
use dataplane::testing::lifecycle::{ShutdownStage, ShutdownWatch};
use dataplane::testing::observability::metrics::Counters;
use dataplane::testing::proxy::listener::BindRetry;
use dataplane::testing::proxy::worker::WorkerConfig;
use dataplane::testing::proxy::worker_thread::WorkerInit;
use dataplane::testing::proxy::{listener, worker_thread};
use dataplane::testing::reporting::trace::TraceSettings;
use dataplane::testing::runtime::Driver;
use model::{Kind, TlsVersion};
use telemetry::log::AccessTarget;
use telemetry::{Heartbeat, Readiness};
use tokio::sync::{mpsc, watch};

use crate::{counted, gateway};
use compare::identity::{Group, Version};
use compare::load::{self, Amount, Mode, Plan};
use compare::peer::countersign::{route_document, site_document};
use compare::peer::credentials::Credentials;
use compare::peer::{HOST, PROXIED};
use compare::target::Target;
use e2e::upstream::FixedUpstream;

/// Under callgrind everything takes fifty times as long.
const PATIENCE: Duration = Duration::from_secs(300);
/// Requests before the counted ones; both runs have them.
const FOREGOING: u64 = 20;

/// What is reported of each request, beside its metrics.
#[derive(Default)]
pub(super) struct Reports {
    pub(super) tracing: Option<TraceSettings>,
    /// Lines of JSON, which the log thread writes to the null device.
    pub(super) access_log: bool,
}

/// So many requests back to back on one connection of HTTP/1.1 ([`Mode::KeepAlive`]) or HTTP/2.
///
/// # Errors
/// When something does not start, or a request fails.
pub(super) fn run(requests: u64, mode: Mode, reports: Reports) -> anyhow::Result<()> {
    let credentials = Credentials::generate();
    let upstream = FixedUpstream::start(0, None);
    let snapshot = gateway::snapshot([
        (Kind::Ssl, "bench", site_document(&credentials, HOST)),
        (Kind::Route, "bench", route_document(upstream.address())),
    ]);
    let patience = BindRetry { predecessor: Duration::ZERO, stop: watch::channel(false).1 };
    let bound = listener::bind("bench", ([127, 0, 0, 1], 0).into(), ListenerProtocol::Https, 1, &patience)?;
    let address = bound.first().context("one socket")?.addr;
    let (stage, shutdown) = ShutdownWatch::new();
    let shared = gateway::shared(snapshot, &[TlsVersion::V12, TlsVersion::V13], None);
    let mut config = WorkerConfig::clone(&shared.config.load());
    config.tracing = reports.tracing;
    if reports.access_log {
        let target = AccessTarget::File("/dev/null".into());
        config.access_logs.http.sink = Some(telemetry::log::open_access("access", &target)?);
    }
    shared.config.store(Arc::new(config));
    let start = WorkerInit {
        shared,
        counters: Arc::new(Counters::default()),
        heartbeat: Heartbeat::new("worker-0", Readiness::Required),
        listeners: bound,
        commands: mpsc::unbounded_channel().1,
        listening: mpsc::unbounded_channel().0,
        driver: Driver::Epoll { reason: "instructions are counted".to_owned() },
        cpu: None,
        shutdown,
    };
    let worker = std::thread::Builder::new()
        .name("worker-0".to_owned())
        .spawn(move || {
            let (mut start, mut ended) = (Some(start), None);
            counted::counted_by_callgrind(&mut || ended = start.take().map(worker_thread::run));
            ended
        })
        .context("starting a worker")?;
    let plan = Plan {
        target: Target::parse(&format!("https://{address}{PROXIED}"), Some(HOST), false)?,
        identity: credentials.loader()?,
        version: Version::V13,
        group: Group::X25519,
        mode,
        connections: 1,
        every: None,
        amount: Amount::Count(requests),
        warmup: Amount::Count(FOREGOING),
        timeout: PATIENCE,
        limit: PATIENCE,
        expect_status: 200,
        server: None,
        cpu: None,
        progress: None,
    };
    let report = load::run(plan)?;
    anyhow::ensure!(
        report.operations == requests && report.failures.total() == 0,
        "{} of {requests} requests were answered",
        report.operations
    );
    stage.send_replace(ShutdownStage::Draining);
    let ended = worker.join().map_err(|_| anyhow::anyhow!("the worker did not end well"))?;
    ended.context("the worker ran")??;
    Ok(())
}
