//! One worker: a thread with its own runtime, listeners, pools and counters.
//!
//! Cores share nothing but [`SharedState`], which is read-only or lock-free.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use arc_swap::ArcSwap;
use ipnet::IpNet;
use model::{HostName, KeepalivePool, PathOptions, RealIp, Snapshot};
use tokio::sync::oneshot;

use super::connection_counts::ConnectionCounts;
use super::connection_limit::ConnectionLimit;
use super::listener::{AcceptorControl, AcceptorEnd, BoundSocket};
use super::registry::ConnectionRegistry;
use super::request_limit::RequestLimiter;
use crate::http::head::HeadLimits;
use crate::http::server::{HttpServer, HttpSettings};
use crate::io::timeouts::{ClientTimeouts, ConnectionTimeouts};
use crate::lifecycle::drain::Drain;
use crate::lifecycle::handles::SnapshotHandle;
use crate::observability::metrics::Counters;
use crate::observability::metrics::series::SeriesTable;
use crate::reporting::Reporter;
use crate::reporting::access_log::AccessLogConfigs;
use crate::reporting::trace::queue::TraceQueues;
use crate::reporting::trace::{TraceSettings, Tracer};
use crate::runtime::descriptors::ConnectionLimits;
use crate::tls::site_config::SiteConfigFactory;
use crate::upstream::client::{ClientSettings, UpstreamClient};
use crate::upstream::client_tls::ClientTlsConfigs;
use crate::upstream::connector::ConnectContext;
use crate::upstream::pool::Pool;
use crate::upstream::pool::node::NodeConnections;
use crate::upstream::pool::permits::ConnectionPermits;
use crate::upstream::resolver::{Resolver, ResolverCache};

/// A core's own reference to a snapshot: cloning it for each request writes no counter that cores
/// share.
pub(crate) type LocalSnapshot = Rc<Arc<Snapshot>>;

/// The state that all workers share.
pub struct SharedState {
    /// The current snapshot, from the push client.
    pub snapshot: Arc<SnapshotHandle>,
    /// The TLS configurations of sites.
    pub sites: SiteConfigFactory,
    /// The TLS configurations towards upstreams.
    pub upstream_tls: Arc<ClientTlsConfigs>,
    /// Resolves the names of upstream nodes.
    pub resolver: Resolver,
    /// The metrics of single routes and sites.
    pub series: Arc<SeriesTable>,
    /// Recorded requests, on their way to the exporter of traces.
    pub trace_queues: TraceQueues,
    /// The current settings. A worker takes them at its start and with
    /// [`WorkerCommand::Configure`].
    pub config: ArcSwap<WorkerConfig>,
}

/// What the process tells a worker while it runs. A worker takes commands in their order.
#[derive(Debug)]
pub enum WorkerCommand {
    /// Use the settings of [`SharedState::config`] from now on.
    Configure,
    /// Accept connections on this socket, too.
    Listen(BoundSocket),
    /// Accept what is in the queue of this address's socket, and close it.
    Close(SocketAddr),
    /// Accept no more on this address's socket, and leave its queue as it is.
    Release(SocketAddr),
    /// Send a message: the commands before this one have been carried out.
    Report(SyncSender<()>),
    /// Send the counts of the open TLS connections.
    Connections(oneshot::Sender<ConnectionCounts>),
    /// Send the state of the pool of each node.
    Pools(oneshot::Sender<Vec<NodeConnections>>),
}

/// The settings of a worker.
#[derive(Debug, Clone)]
pub struct WorkerConfig {
    pub client_timeouts: ClientTimeouts,
    /// The longest pause within a request's body.
    pub body_timeout: Duration,
    /// The largest request body, in bytes; 0: no limit.
    pub body_max: u64,
    /// The limits on the head of a request or response.
    pub head_limits: HeadLimits,
    /// Whether header names keep their case between HTTP/1 and HTTP/1.
    pub preserve_header_case: bool,
    /// How long an HTTP/1 connection is idle before hyper's buffers are released. 0: at once.
    pub idle_release_timeout: Duration,
    /// The most connections of a worker, to clients and to upstreams.
    pub connection_limits: ConnectionLimits,
    /// Requests that one client may have in flight on a worker; 0: no limit.
    pub requests_per_client: usize,
    pub http2: bool,
    /// The server name of a client that sends none.
    pub fallback_sni: Option<HostName>,
    /// Whether the `Server` header has the version.
    pub server_tokens: bool,
    /// How paths are normalized.
    pub path_options: PathOptions,
    /// `apisix.trusted_addresses`: whose forwarded headers are kept; `None`: the key is not set
    /// (contract 10.3).
    pub trusted_addresses: Option<Vec<IpNet>>,
    /// `nginx_config.http.real_ip_*`: whose headers name the client.
    pub real_ip: Option<RealIp>,
    /// `nginx_config.stream.real_ip_from`: whose PROXY protocol headers name the client of a TCP
    /// connection.
    pub stream_real_ip_from: Vec<IpNet>,
    /// Whether every proxied response has `X-APISIX-Upstream-Status`.
    pub show_upstream_status: bool,
    /// The limits of idle upstream connections, for upstreams without `keepalive_pool`.
    pub upstream_keepalive: KeepalivePool,
    /// The most open connections to one node of an upstream, for requests; `u32::MAX`: no limit.
    pub upstream_connections_per_node: u32,
    /// The longest drain of a shutdown, from when the listeners close.
    pub shutdown_timeout: Duration,
    /// How long a TCP connection may be idle while the worker drains.
    pub drain_idle_timeout: Duration,
    /// `None`: requests are not traced.
    pub tracing: Option<TraceSettings>,
    /// The access logs.
    pub access_logs: AccessLogConfigs,
}

/// One worker.
pub struct Worker {
    pub shared: Arc<SharedState>,
    pub(super) http: Rc<HttpServer>,
    pub(super) upstreams: UpstreamClient,
    pub(super) drain: Rc<Drain>,
    pub(super) connection_limit: Rc<ConnectionLimit>,
    /// The addresses it listens on.
    pub(super) acceptors: RefCell<Vec<(SocketAddr, Rc<AcceptorControl>)>>,
    /// The limit on the requests of one client.
    pub(super) request_limiter: Rc<RequestLimiter>,
    pub(super) timeouts: Rc<ConnectionTimeouts>,
    pub(super) registry: Rc<ConnectionRegistry>,
    pub(super) counters: Arc<Counters>,
    pub(super) reporter: Reporter,
    /// The settings that this core uses.
    config: RefCell<Rc<WorkerConfig>>,
    /// The snapshot that this core uses, with its generation.
    current: RefCell<(u64, LocalSnapshot)>,
}

impl Worker {
    /// A worker of this thread, within its runtime.
    pub fn new(shared: Arc<SharedState>, counters: Arc<Counters>) -> Rc<Self> {
        let config = Rc::new(WorkerConfig::clone(&shared.config.load()));
        let timeouts = ConnectionTimeouts::start(&config.client_timeouts);
        let pool = Pool::start();
        let upstreams = UpstreamClient {
            pool: Rc::clone(&pool),
            connect_context: ConnectContext {
                permits: ConnectionPermits::new(config.connection_limits.upstreams, pool),
                counters: Arc::clone(&counters),
            },
            settings: Cell::new(client_settings(&config)),
            timers: Rc::clone(timeouts.timers()),
            resolver: ResolverCache::new(shared.resolver.clone()),
            tls_configs: Arc::clone(&shared.upstream_tls),
        };
        let generation = shared.snapshot.generation();
        let snapshot = Rc::new(Arc::clone(&shared.snapshot.load()));
        let tracer = Tracer::new(config.tracing, shared.trace_queues.of_worker(counters.worker()));
        Rc::new(Self {
            http: Rc::new(http_server(&config, &timeouts)),
            upstreams,
            drain: Rc::default(),
            connection_limit: ConnectionLimit::new(config.connection_limits.clients, Arc::clone(&counters)),
            acceptors: RefCell::default(),
            request_limiter: RequestLimiter::new(config.requests_per_client),
            timeouts,
            registry: Rc::default(),
            reporter: Reporter::new(
                Arc::clone(&counters),
                Arc::clone(&shared.series),
                tracer,
                &config.access_logs,
            ),
            counters,
            config: RefCell::new(config),
            current: RefCell::new((generation, snapshot)),
            shared,
        })
    }

    /// The current snapshot. While nothing changes it costs one read of a shared number; the clone
    /// is the core's own.
    pub(super) fn snapshot(&self) -> LocalSnapshot {
        let generation = self.shared.snapshot.generation();
        let mut current = self.current.borrow_mut();
        if current.0 != generation {
            *current = (generation, Rc::new(Arc::clone(&self.shared.snapshot.load())));
        }
        Rc::clone(&current.1)
    }

    /// The current settings.
    pub(super) fn config(&self) -> Rc<WorkerConfig> {
        Rc::clone(&self.config.borrow())
    }

    /// Applies the settings of [`SharedState::config`]. Connections keep what they started with:
    /// the limits on heads, `preserve_header_case`, and the time an HTTP/2 connection may be idle.
    pub(super) fn configure(&self) {
        let config = Rc::new(WorkerConfig::clone(&self.shared.config.load()));
        self.timeouts.set_limits(&config.client_timeouts);
        self.http.settings.set(http_settings(&config));
        self.upstreams.settings.set(client_settings(&config));
        self.connection_limit.set_max(config.connection_limits.clients);
        self.upstreams.connect_context.permits.set_max(config.connection_limits.upstreams);
        self.request_limiter.set_max(config.requests_per_client);
        self.reporter.tracer.configure(config.tracing);
        self.reporter.access_logs.configure(&config.access_logs);
        self.config.replace(config);
    }

    /// Ends the acceptors of an address.
    pub(super) fn end_acceptor(&self, addr: SocketAddr, end: AcceptorEnd) {
        self.acceptors.borrow_mut().retain(|(local, acceptor)| {
            if *local == addr {
                acceptor.end(end);
            }
            *local != addr
        });
    }

    /// Ends all acceptors.
    pub(super) fn end_acceptors(&self, end: AcceptorEnd) {
        self.acceptors.take().iter().for_each(|(_, acceptor)| acceptor.end(end));
    }
}

fn http_server(config: &WorkerConfig, timeouts: &ConnectionTimeouts) -> HttpServer {
    HttpServer {
        settings: Cell::new(http_settings(config)),
        timers: Rc::clone(timeouts.timers()),
        lame_duck: false.into(),
    }
}

fn http_settings(config: &WorkerConfig) -> HttpSettings {
    HttpSettings {
        head_limits: config.head_limits,
        preserve_header_case: config.preserve_header_case,
        http2: config.http2,
        idle_release_timeout: config.idle_release_timeout,
        keepalive_timeout: config.client_timeouts.idle,
        send_timeout: config.client_timeouts.send,
    }
}

fn client_settings(config: &WorkerConfig) -> ClientSettings {
    ClientSettings {
        connections_per_node: config.upstream_connections_per_node,
        keepalive: config.upstream_keepalive,
        head: config.head_limits,
        preserve_header_case: config.preserve_header_case,
    }
}
