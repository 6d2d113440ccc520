//! The listeners of the Admin API.
//!
//! `listener` accepts, with the listener's own share of the connections, so that clients of one
//! listener cannot take those of another; `connection` has the handshake and HTTP/1.1. Everything
//! that a client can delay is bounded: connections, the handshake, a request's head and body, and
//! the time in which it must read its response. The settings may change while it runs
//! ([`AdminServer::update`]). Invariant: the settings at its arrival decide about a request,
//! however old its connection is.

mod connection;
mod handover;
mod listener;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use connection::ConnectionServer;
use listener::Listener;
use telemetry::{Heartbeat, Heartbeats, Readiness};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use super::addresses::AllowedAddresses;
use super::handler::AdminApi;
use super::tls::ReloadingTls;

/// Limits on what clients use.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections of all listeners at a time; more wait in the accept queue. Each listener has an
    /// equal share.
    pub connections_max: usize,
    /// From accept to the end of the handshake.
    pub handshake_timeout: Duration,
    /// For a request's head, between two requests, and from the handshake to the first authorized
    /// request.
    pub header_timeout: Duration,
    /// Bytes of a request's head, at least 8192.
    pub header_bytes_max: usize,
    /// Between two writes of a response.
    pub send_timeout: Duration,
    /// For open requests during shutdown.
    pub shutdown_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 1024,
            handshake_timeout: Duration::from_secs(10),
            header_timeout: Duration::from_secs(60),
            header_bytes_max: 64 << 10,
            send_timeout: Duration::from_secs(10),
            shutdown_timeout: Duration::from_secs(10),
        }
    }
}

/// A bound listener with its TLS and its addresses.
pub struct BoundListener {
    pub listener: TcpListener,
    /// `None`: plain HTTP.
    pub tls: Option<ReloadingTls>,
    pub allowed: AllowedAddresses,
}

/// A listener after a change of the settings.
pub(crate) struct ListenerUpdate {
    pub socket: ListenerSocket,
    /// `None`: plain HTTP.
    pub tls: Option<ReloadingTls>,
    pub allowed: AllowedAddresses,
}

/// Where a listener's socket comes from.
pub(crate) enum ListenerSocket {
    /// It is that of the running listener with this index.
    Running(usize),
    Bound(TcpListener),
}

/// What a listener does. The order is that of its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ListenerPhase {
    /// It accepts connections, which stay open for further requests.
    Serving,
    /// It accepts connections, and each ends with its next response.
    Retiring,
    /// Another process or listener accepts from its queue; open requests finish.
    HandedOver,
    /// It has accepted what its queue held, and is closed; open requests finish.
    Closed,
}

impl ListenerPhase {
    fn accepts(self) -> bool {
        self < Self::HandedOver
    }

    /// Whether a response ends its connection.
    fn ends_connections(self) -> bool {
        self > Self::Serving
    }
}

/// The running listeners.
pub struct AdminServer {
    listeners: Vec<RunningListener>,
    heartbeats: Arc<Heartbeats>,
    /// Every listener, also those that end.
    tasks: JoinSet<()>,
}

struct RunningListener {
    /// 1 is `admin`, 2 is `admin-2`.
    number: usize,
    address: SocketAddr,
    /// Keeps the socket open for a successor, and for [`AdminServer::resume`].
    socket: std::net::TcpListener,
    heartbeat: Arc<Heartbeat>,
    settings: watch::Sender<Arc<ConnectionServer>>,
    phase: watch::Sender<ListenerPhase>,
    connections: ConnectionPermits,
}

/// The connections that a listener may have open.
#[derive(Clone)]
struct ConnectionPermits {
    all: usize,
    free: Arc<Semaphore>,
}

impl ConnectionPermits {
    fn new(all: usize) -> Self {
        Self { all, free: Arc::new(Semaphore::new(all)) }
    }

    /// Whether a connection is open. A listener that accepts holds a permit for the next one.
    fn has_connections(&self) -> bool {
        self.free.available_permits().saturating_add(1) < self.all
    }
}

impl AdminServer {
    /// Serves these listeners from now on. Their heartbeats are `admin`, `admin-2` and so on.
    ///
    /// # Errors
    /// When the operating system has no descriptor left.
    pub fn start(
        listeners: Vec<BoundListener>,
        admin: &Arc<AdminApi>,
        limits: Limits,
        heartbeats: &Arc<Heartbeats>,
    ) -> io::Result<Self> {
        let mut server =
            Self { listeners: Vec::new(), heartbeats: Arc::clone(heartbeats), tasks: JoinSet::new() };
        let updates = listeners.into_iter().map(|BoundListener { listener, tls, allowed }| ListenerUpdate {
            socket: ListenerSocket::Bound(listener),
            tls,
            allowed,
        });
        server.update(updates.collect(), admin, limits)?;
        Ok(server)
    }

    /// The bound addresses, in the order of the listeners.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.listeners.iter().map(|listener| listener.address).collect()
    }

    /// Replaces the listeners and all their settings. A running one that `updates` does not have
    /// closes: requests in progress finish, and so do those in its queue.
    ///
    /// # Errors
    /// When the operating system has no descriptor left; nothing has changed then.
    pub(crate) fn update(
        &mut self,
        updates: Vec<ListenerUpdate>,
        api: &Arc<AdminApi>,
        limits: Limits,
    ) -> io::Result<()> {
        let connections_max = (limits.connections_max / updates.len().max(1)).max(1);
        let limits = Limits { connections_max, ..limits };
        // Whatever can fail comes first.
        let mut prepared = Vec::with_capacity(updates.len());
        for ListenerUpdate { socket, tls, allowed } in updates {
            let (running, socket) = match socket {
                ListenerSocket::Bound(socket) => (None, socket.into_std()?),
                ListenerSocket::Running(index) => {
                    let running =
                        self.listeners.get(index).ok_or_else(|| io::Error::other("no such listener"))?;
                    (Some(index), running.socket.try_clone()?)
                }
            };
            prepared.push((running, StdListener::new(socket)?, tls, Arc::new(allowed)));
        }
        let mut before: Vec<_> = std::mem::take(&mut self.listeners).into_iter().map(Some).collect();
        for (index, listener) in before.iter_mut().enumerate() {
            let is_kept = prepared.iter().any(|(running, ..)| *running == Some(index));
            if let Some(vanished) = listener.take_if(|_| !is_kept) {
                tracing::info!(address = %vanished.address, "a listener of the Admin API closes");
                self.end(vanished, ListenerPhase::Closed);
            }
        }
        for (running, socket, tls, allowed) in prepared {
            let running = running.and_then(|index| before.get_mut(index)?.take());
            let denied_slots = match &running {
                Some(running) => Arc::clone(&running.settings.borrow().denied_slots),
                None => Arc::new(Semaphore::new((connections_max / 4).max(1))),
            };
            let settings =
                Arc::new(ConnectionServer { api: Arc::clone(api), tls, allowed, limits, denied_slots });
            match running {
                Some(running) if running.settings.borrow().tls.is_some() == settings.tls.is_some() => {
                    running.settings.send_replace(settings);
                    self.listeners.push(running);
                }
                other => {
                    // A plain-HTTP connection must not outlive the change to HTTPS.
                    let number = other.as_ref().map(|running| running.number);
                    if let Some(replaced) = other {
                        self.end(replaced, ListenerPhase::HandedOver);
                    }
                    let is_free = |number: &usize| {
                        let mut remaining = before.iter().flatten().chain(&self.listeners);
                        !remaining.any(|listener| listener.number == *number)
                    };
                    let number = number.unwrap_or_else(|| (1..).find(is_free).unwrap_or_default());
                    self.spawn(number, socket, settings);
                }
            }
        }
        Ok(())
    }

    fn spawn(&mut self, number: usize, socket: StdListener, settings: Arc<ConnectionServer>) {
        let name = if number == 1 { "admin".to_owned() } else { format!("admin-{number}") };
        let heartbeat = self.heartbeats.add(name, Readiness::Required);
        let connections_max = settings.limits.connections_max;
        let (settings, current) = watch::channel(settings);
        let (phase, following) = watch::channel(ListenerPhase::Serving);
        let StdListener { address, socket, accepting } = socket;
        let connections = ConnectionPermits::new(connections_max);
        let listener = Listener {
            socket: accepting,
            heartbeat: Arc::clone(&heartbeat),
            current,
            phase: following,
            permits: Arc::clone(&connections.free),
        };
        self.tasks.spawn(listener.run());
        let running = RunningListener { number, address, socket, heartbeat, settings, phase, connections };
        self.listeners.push(running);
    }

    fn end(&self, listener: RunningListener, phase: ListenerPhase) {
        let RunningListener { socket, heartbeat, phase: sender, .. } = listener;
        self.heartbeats.remove(&heartbeat);
        // The last duplicate closes the socket.
        drop(socket);
        sender.send_replace(phase);
    }

    /// Accepts what the queues hold, closes the listeners and lets open requests finish within the
    /// limit.
    pub async fn close(mut self) {
        for listener in std::mem::take(&mut self.listeners) {
            self.end(listener, ListenerPhase::Closed);
        }
        self.wait_for_tasks().await;
    }

    async fn wait_for_tasks(&mut self) {
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "a listener of the Admin API did not end in order");
            }
        }
    }
}

/// A listening socket and its duplicate in the runtime.
struct StdListener {
    address: SocketAddr,
    socket: std::net::TcpListener,
    accepting: TcpListener,
}

impl StdListener {
    fn new(socket: std::net::TcpListener) -> io::Result<Self> {
        let accepting = TcpListener::from_std(socket.try_clone()?)?;
        Ok(Self { address: socket.local_addr()?, socket, accepting })
    }
}

/// Returns when the listener accepts no more, also when its owner is gone.
async fn wait_for_end(phase: &mut watch::Receiver<ListenerPhase>) {
    drop(phase.wait_for(|phase| !phase.accepts()).await);
}
