//! The thread of a worker, from its start until it has drained.

use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use futures_util::future::{Either, select};
use telemetry::{Heartbeat, heartbeat};
use tokio::sync::mpsc;

use super::listener::{Acceptor, AcceptorControl, AcceptorEnd, BoundSocket};
use super::worker::{SharedState, Worker, WorkerCommand};
use super::{connection, registry};
use crate::lifecycle::drain::DrainMode;
use crate::lifecycle::{ShutdownStage, ShutdownWatch};
use crate::observability::log;
use crate::observability::metrics::Counters;
use crate::runtime::{self, Driver};
use crate::tls::client_verifier;

/// The input of a worker's thread.
pub struct WorkerInit {
    /// Shared with the other workers.
    pub shared: Arc<SharedState>,
    pub counters: Arc<Counters>,
    pub heartbeat: Arc<Heartbeat>,
    /// This worker's sockets at its start.
    pub listeners: Vec<BoundSocket>,
    pub commands: mpsc::UnboundedReceiver<WorkerCommand>,
    pub driver: Driver,
    /// Receives a message when the worker listens on all its sockets, and is dropped when it has
    /// drained.
    pub listening: mpsc::UnboundedSender<()>,
    /// The CPU to run on.
    pub cpu: Option<usize>,
    pub shutdown: ShutdownWatch,
}

/// Runs a worker on this thread until it is stopped and has drained.
///
/// # Errors
/// The runtime or a listener cannot be set up.
pub fn run(init: WorkerInit) -> std::io::Result<()> {
    let WorkerInit { shared, counters, heartbeat, listeners, commands, driver, listening, cpu, shutdown } =
        init;
    if let Some(cpu) = cpu
        && let Err(error) = runtime::pin_to_cpu(cpu)
    {
        tracing::debug!(cpu, %error, "this worker may run on any CPU");
    }
    runtime::block_on(&driver, || async {
        let worker = Worker::new(shared, counters);
        for bound in listeners {
            listen(&worker, bound, &driver)?;
        }
        runtime::spawn(run_commands(Rc::clone(&worker), driver.clone(), commands));
        let logging = Rc::clone(&worker);
        runtime::spawn(async move { logging.reporter.access_logs.run_flushes().await });
        runtime::spawn(run_housekeeping(Rc::clone(&worker), Arc::clone(&heartbeat)));
        let (snapshots, draining) = (Rc::clone(&worker), Rc::clone(&worker));
        runtime::spawn(registry::run_revalidation(
            Rc::clone(&worker.registry),
            move || snapshots.snapshot(),
            Arc::clone(&worker.counters),
            move || draining.config().shutdown_timeout,
        ));
        // Received by the process, which waits for it.
        let _process_stops = listening.send(()).is_ok();
        serve_until_drained(&worker, shutdown).await;
        worker.reporter.access_logs.close();
        worker.upstreams.pool.clear();
        log::log_suppressed();
        heartbeat.set_idle();
        Ok(())
    })?
}

/// Waits for a hand-over or a stop, and until the open connections have ended.
async fn serve_until_drained(worker: &Worker, mut shutdown: ShutdownWatch) {
    shutdown.wait_for(ShutdownStage::HandedOver).await;
    worker.http.lame_duck.set(true);
    let mut drained = false;
    if shutdown.stage() == ShutdownStage::HandedOver {
        worker.end_acceptors(AcceptorEnd::Release);
        worker.drain.begin(DrainMode::HandedOver);
        let (idle, stop) = (pin!(worker.drain.wait_idle()), pin!(shutdown.wait_for(ShutdownStage::Draining)));
        let ended = runtime::timeout(worker.config().shutdown_timeout, select(idle, stop)).await;
        drained = !matches!(ended, Ok(Either::Right(_)));
    }
    if !drained {
        shutdown.wait_for(ShutdownStage::Draining).await;
        worker.end_acceptors(AcceptorEnd::Close);
        worker.timeouts.start_drain();
        worker.drain.begin(DrainMode::Stop);
        let timeout = worker.config().shutdown_timeout;
        // Those that are left are counted below.
        let _drained = runtime::timeout(timeout, worker.drain.wait_idle()).await.is_ok();
    }
    if worker.drain.active() > 0 {
        tracing::warn!(
            connections = worker.drain.active(),
            "connections still open at the end of worker_shutdown_timeout are cut"
        );
    }
}

/// Accepts connections on a socket until the worker drains.
fn listen(worker: &Rc<Worker>, bound: BoundSocket, driver: &Driver) -> std::io::Result<()> {
    let (limit, counters) = (Rc::clone(&worker.connection_limit), Arc::clone(&worker.counters));
    let control = Rc::<AcceptorControl>::default();
    let (serving, addr) = (Rc::clone(worker), bound.addr);
    let serve = move |socket, info, permit| connection::serve(Rc::clone(&serving), socket, info, permit);
    let acceptor = Acceptor::new(bound, driver, Rc::clone(&control), limit, counters, serve)?;
    worker.acceptors.borrow_mut().push((addr, control));
    runtime::spawn(acceptor.run(worker.drain.enter()));
    Ok(())
}

/// Carries out the commands of the process, as long as it sends them.
async fn run_commands(
    worker: Rc<Worker>,
    driver: Driver,
    mut commands: mpsc::UnboundedReceiver<WorkerCommand>,
) {
    while let Some(command) = commands.recv().await {
        match command {
            WorkerCommand::Configure => worker.configure(),
            WorkerCommand::Listen(bound) => {
                let addr = bound.addr;
                if let Err(error) = listen(&worker, bound, &driver) {
                    tracing::error!(%addr, %error, "a worker cannot listen on a socket");
                }
            }
            WorkerCommand::Close(addr) => worker.end_acceptor(addr, AcceptorEnd::Close),
            // The channel has room for one of each worker; the process may have stopped waiting.
            WorkerCommand::Report(done) => drop(done.try_send(())),
            WorkerCommand::Release(addr) => worker.end_acceptor(addr, AcceptorEnd::Release),
            WorkerCommand::Connections(answer) => {
                let (registry, snapshot) = (Rc::clone(&worker.registry), Arc::clone(&worker.snapshot()));
                runtime::spawn(async move {
                    let counts = registry::count_connections(registry, snapshot).await;
                    let _asker_gone = answer.send(counts).is_err();
                });
            }
            WorkerCommand::Pools(answer) => {
                let _asker_gone = answer.send(worker.upstreams.pool.node_states()).is_err();
            }
        }
    }
}

/// Once a heartbeat: updates the gauges of `/metrics`, and releases an old snapshot on an idle
/// core.
async fn run_housekeeping(worker: Rc<Worker>, heartbeat: Arc<Heartbeat>) {
    let counters = Arc::clone(&worker.counters);
    loop {
        heartbeat.beat();
        runtime::sleep(heartbeat::BEAT_INTERVAL).await;
        log::log_suppressed();
        worker.reporter.routes.retain_current(&worker.snapshot());
        let (hits, misses) = client_verifier::verify_cache_stats();
        if let Some(time) = runtime::thread_cpu_time() {
            counters.cpu_nanos.set(time.as_nanos().try_into().unwrap_or(u64::MAX));
        }
        counters.verify_cache_hits.set(hits);
        counters.verify_cache_misses.set(misses);
        counters.upstream_idle.set(worker.upstreams.pool.idle_count() as u64);
        counters.upstream_active.set(worker.upstreams.pool.in_use() as u64);
        counters.upstream_queued.set(worker.upstreams.pool.queued() as u64);
    }
}
