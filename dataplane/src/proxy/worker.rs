//! One worker: a thread with its own runtime, listeners, pools and counters. Nothing here is shared
//! between cores but what `Shared` holds, which is read-only or lock-free.

use std::cell::{Cell as Local, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use model::{HostName, PathOptions, RealIp, Snapshot};
use telemetry::{Heartbeat, heartbeat};

use crate::http::head;
use crate::io::timeouts::{ClientTimeouts, ConnectionTimeouts};
use crate::lifecycle::drain::Drain;
use crate::lifecycle::handles::SnapshotHandle;
use crate::lifecycle::stage::{ShutdownStage, ShutdownWatch};
use crate::observability::log;
use crate::observability::metrics::Counters;
use crate::proxy::admission::ConnectionLimit;
use crate::proxy::connection::request_limit::RequestLimiter;
use crate::proxy::listener::BoundSocket;
use crate::proxy::live::ConnectionRegistry;
use crate::proxy::{listener, live};
use crate::runtime;
use crate::runtime::Driver;
use crate::runtime::descriptors::ConnectionLimits;
use crate::tls::client_verifier;
use crate::tls::site_config::SiteConfigFactory;
use crate::upstream::client::UpstreamClient;
use crate::upstream::client_tls::ClientTlsConfigs;
use crate::upstream::pool::{ConnectionPermits, Pool};
use crate::upstream::resolver::{Resolver, ResolverCache};

/// A core's own handle on a snapshot: its count is local, so that cloning it for every request does
/// not make all cores write the snapshot's shared one.
pub type LocalSnapshot = Rc<Arc<Snapshot>>;

/// What all workers share.
pub struct SharedState {
    /// Where the agent puts snapshots.
    pub snapshot: Arc<SnapshotHandle>,
    /// Prepared TLS configurations.
    pub sites: SiteConfigFactory,
    /// Client sides towards upstreams.
    pub connector: Arc<ClientTlsConfigs>,
    /// For node names.
    pub resolver: Resolver,
    /// The limits and switches of the settings file.
    pub config: WorkerConfig,
}

/// The settings a connection is served by.
#[derive(Debug, Clone)]
pub struct WorkerConfig {
    /// Time-outs of the client's side.
    pub client_timeouts: ClientTimeouts,
    /// The longest pause between two pieces of a request's body.
    pub body_timeout: Duration,
    /// The largest request body; 0: no limit. Bytes.
    pub body_max: u64,
    /// How large the head of a request or an answer may be.
    pub head_limits: head::HeadLimits,
    /// Whether header names keep their case between HTTP/1 and HTTP/1.
    pub preserve_header_case: bool,
    /// How long a kept HTTP/1 connection is quiet before its session is taken apart. 0: at once.
    pub idle_release_timeout: Duration,
    /// Connections a worker may have open: to clients, and to upstreams.
    pub connection_limits: ConnectionLimits,
    /// Requests that one client may have under way on a worker; 0: no limit.
    pub requests_per_client: usize,
    /// Whether HTTP/2 is served.
    pub http2: bool,
    /// Stands in for an absent SNI.
    pub fallback_sni: Option<HostName>,
    /// Whether `Server` tells the version.
    pub server_tokens: bool,
    /// How paths are read.
    pub path_options: PathOptions,
    /// Whose forwarded headers are believed; `None`: the key is not set (contract 10.3).
    pub trusted_addresses: Option<Vec<IpNet>>,
    /// Whose headers name the client (`nginx_config.http.real_ip_*`); `None`: nobody's.
    pub real_ip: Option<RealIp>,
    /// Whether every proxied answer has `X-APISIX-Upstream-Status`.
    pub show_upstream_status: bool,
    /// Limits of idle upstream connections, for upstreams without `keepalive_pool`.
    pub upstream_keepalive: model::KeepalivePool,
    /// How long a graceful stop may take, from when the listeners close.
    pub shutdown_timeout: Duration,
    /// How long a stream may be silent during a stop.
    pub drain_idle_timeout: Duration,
}

/// One worker.
pub struct Worker {
    /// Shared with the others.
    pub shared: Arc<SharedState>,
    /// What reaches upstreams.
    pub upstreams: UpstreamClient,
    /// The graceful stop.
    pub drain: Rc<Drain>,
    /// Whether [`Stage::Leaving`] has begun.
    pub lame_duck: Local<bool>,
    /// Places for clients.
    pub connection_limit: Rc<ConnectionLimit>,
    /// What each client has under way; `None`: no limit.
    pub request_limiter: Option<Rc<RequestLimiter>>,
    /// Slow clients.
    pub watchdog: Rc<ConnectionTimeouts>,
    /// Established TLS connections.
    pub registry: Rc<ConnectionRegistry>,
    /// What is counted.
    pub counters: Arc<Counters>,
    current: RefCell<(u64, LocalSnapshot)>,
}

impl Worker {
    /// A worker of this thread, within its runtime.
    pub fn new(shared: Arc<SharedState>, counters: Arc<Counters>) -> Rc<Self> {
        let watchdog = ConnectionTimeouts::start(&shared.config.client_timeouts);
        let share = shared.config.connection_limits;
        let pool = Pool::start();
        let upstreams = UpstreamClient {
            pool: Rc::clone(&pool),
            permits: ConnectionPermits::new(share.upstreams, pool),
            timers: Rc::clone(watchdog.timers()),
            resolver: ResolverCache::new(shared.resolver.clone()),
            tls_configs: Arc::clone(&shared.connector),
            keepalive: shared.config.upstream_keepalive,
            head: shared.config.head_limits,
            preserve_header_case: shared.config.preserve_header_case,
        };
        let generation = shared.snapshot.generation();
        let snapshot = Rc::new(Arc::clone(&shared.snapshot.load()));
        Rc::new(Self {
            upstreams,
            drain: Rc::default(),
            lame_duck: Local::new(false),
            connection_limit: ConnectionLimit::new(share.clients, Arc::clone(&counters)),
            request_limiter: RequestLimiter::new(shared.config.requests_per_client),
            watchdog,
            registry: Rc::default(),
            counters,
            current: RefCell::new((generation, snapshot)),
            shared,
        })
    }

    /// The newest snapshot. Costs one read of a shared number while nothing changes; the clone is
    /// the core's own.
    pub fn snapshot(&self) -> LocalSnapshot {
        let generation = self.shared.snapshot.generation();
        let mut current = self.current.borrow_mut();
        if current.0 != generation {
            *current = (generation, Rc::new(Arc::clone(&self.shared.snapshot.load())));
        }
        Rc::clone(&current.1)
    }

    /// Beats, keeps the gauges of `/metrics` up to date and lets go of old snapshots on an idle
    /// core.
    async fn run_housekeeping(self: Rc<Self>, heartbeat: Arc<Heartbeat>) {
        loop {
            heartbeat.beat();
            runtime::sleep(heartbeat::BEAT_INTERVAL).await;
            log::log_suppressed();
            let _newest = self.snapshot();
            let (hits, misses) = client_verifier::verify_cache_stats();
            self.counters.verify_cache_hits.set(hits);
            self.counters.verify_cache_misses.set(misses);
            self.counters.upstream_idle.set(self.upstreams.pool.idle_count() as u64);
            self.counters.upstream_active.set(self.upstreams.pool.in_use() as u64);
        }
    }
}

/// What boot hands to a worker's thread.
pub struct WorkerInit {
    /// Shared with the other workers.
    pub shared: Arc<SharedState>,
    /// This worker's counters.
    pub counters: Arc<Counters>,
    /// Where this worker shows that it runs.
    pub heartbeat: Arc<Heartbeat>,
    /// This worker's bound sockets.
    pub listeners: Vec<BoundSocket>,
    /// How to run.
    pub driver: Driver,
    /// The CPU to stay on.
    pub cpu: Option<usize>,
    /// How far the stop has come.
    pub stages: ShutdownWatch,
}

/// Runs a worker on this thread until it is told to stop and has drained.
///
/// # Errors
/// When the runtime or a listener cannot be set up.
pub fn run(start: WorkerInit) -> std::io::Result<()> {
    let WorkerInit { shared, counters, heartbeat, listeners, driver, cpu, mut stages } = start;
    if let Some(cpu) = cpu
        && let Err(error) = runtime::pin_to_cpu(cpu)
    {
        tracing::debug!(cpu, %error, "this worker may run on any CPU");
    }
    runtime::block_on(&driver, || async {
        let worker = Worker::new(shared, counters);
        for bound in listeners {
            listener::start(&worker, bound, &driver)?;
        }
        runtime::spawn(Rc::clone(&worker).run_housekeeping(Arc::clone(&heartbeat)));
        runtime::spawn(live::run_revalidation(Rc::clone(&worker)));
        stages.wait_for(ShutdownStage::LameDuck).await;
        worker.lame_duck.set(true);
        stages.wait_for(ShutdownStage::Draining).await;
        worker.connection_limit.close();
        worker.watchdog.start_drain();
        worker.drain.begin();
        if runtime::timeout(worker.shared.config.shutdown_timeout, worker.drain.wait_idle()).await.is_err() {
            tracing::warn!(
                connections = worker.drain.active(),
                "connections still open at the end of worker_shutdown_timeout are cut"
            );
        }
        worker.upstreams.pool.clear();
        log::log_suppressed();
        heartbeat.set_idle();
        Ok(())
    })?
}
