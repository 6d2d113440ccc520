//! Listening sockets: one SO_REUSEPORT socket for each worker and address, so that the kernel
//! spreads connections over cores.
//!
//! Sockets are bound at start-up, so that a port in use is reported before anything runs. A worker
//! accepts while it is below its [`ConnectionLimit`]; without descriptors it backs off. On a
//! shutdown a listener accepts what is in its queue before it closes, so that no connection is
//! reset that its client takes for established, unless the worker stays full for longer than
//! `QUEUE_WAIT_MAX`: open connections must not keep the port from the next process.

use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use process::descriptors;
use process::throttle::LogThrottle;
use socket2::{Domain, Protocol, Socket as RawSocket, Type};
use tokio::sync::watch;

use super::connection_limit::{ConnectionLimit, ConnectionPermit, ListenerAction};
use crate::io::connection_info::{ConnectionInfo, ListenerOptions};
use crate::lifecycle::drain::DrainGuard;
use crate::observability::metrics::Counters;
use crate::runtime::{self, Driver, Listener, Socket};

const BACKLOG: i32 = 4096;
/// How long to wait before the next accept without descriptors; doubled each time up to the
/// maximum.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);
const ACCEPT_BACKOFF_MAX: Duration = Duration::from_secs(1);
/// How long TCP handshakes in flight may take before a closing listener empties its queue.
const HANDSHAKE_GRACE: Duration = Duration::from_millis(100);
/// How long the queue of a full worker may wait on a shutdown: less than the next process waits for
/// the port (`IN_USE_MAX`).
const QUEUE_WAIT_MAX: Duration = Duration::from_secs(1);

/// How long a port may stay in use by a process that has ended or drains, besides that process's
/// `drain_delay`.
const IN_USE_MAX: Duration = Duration::from_secs(3);
const IN_USE_RETRY: Duration = Duration::from_millis(25);

/// Limits the lines about failed accepts: a flood of connections causes them.
static LOG_LIMIT: LogThrottle = LogThrottle::new(1, Duration::from_secs(10));

/// A bound socket of one worker.
#[derive(Debug)]
pub struct BoundSocket {
    socket: TcpListener,
    /// The address, with the port that the kernel chose for port 0.
    pub addr: SocketAddr,
    listener: ListenerOptions,
}

/// An address that cannot be bound.
#[derive(Debug, thiserror::Error)]
#[error("{key}: cannot listen on {addr}: {error}{}", hint(.error))]
pub struct BindError {
    /// The setting.
    pub key: &'static str,
    pub addr: SocketAddr,
    pub error: io::Error,
    /// A stop signal ended the retries.
    pub stopped: bool,
}

/// How long to retry while an address is in use.
#[derive(Debug)]
pub struct BindRetry {
    /// How long a process that stops may keep the address.
    pub predecessor: Duration,
    /// Becomes true on a stop signal, which ends the retries.
    pub stop: watch::Receiver<bool>,
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => " (another program listens there: stop it, or choose another port)",
        io::ErrorKind::PermissionDenied => " (ports below 1024 need root or CAP_NET_BIND_SERVICE)",
        io::ErrorKind::AddrNotAvailable => " (this machine has no such address)",
        _ => "",
    }
}

/// Binds an address once for each worker.
///
/// # Errors
/// [`BindError`].
pub fn bind(
    key: &'static str,
    addr: SocketAddr,
    listener: impl Into<ListenerOptions>,
    workers: usize,
    retry: &BindRetry,
) -> Result<Vec<BoundSocket>, BindError> {
    let listener = listener.into();
    // With SO_REUSEPORT the kernel would let a second gateway of the same user share the port.
    if addr.port() != 0 {
        bind_exclusive(key, addr, retry)?;
    }
    let mut bound = Vec::with_capacity(workers);
    let mut addr = addr;
    for _ in 0..workers.max(1) {
        let failed = |error| BindError { key, addr, error, stopped: false };
        let socket = listening_socket(addr, true).map_err(failed)?;
        addr = socket.local_addr().map_err(failed)?;
        bound.push(BoundSocket { socket, addr, listener });
    }
    Ok(bound)
}

/// Binds an address where no other socket listens. The sockets of a killed process outlive it for a
/// moment, until the kernel has torn down its ring, and a process that stops keeps its sockets for
/// a while: an address in use is retried.
///
/// # Errors
/// [`BindError`].
pub fn bind_exclusive(
    key: &'static str,
    addr: SocketAddr,
    retry: &BindRetry,
) -> Result<TcpListener, BindError> {
    let started = Instant::now();
    let mut is_logged = false;
    loop {
        match listening_socket(addr, false) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && *retry.stop.borrow() => {
                return Err(BindError { key, addr, error, stopped: true });
            }
            Err(error)
                if error.kind() == io::ErrorKind::AddrInUse
                    && started.elapsed() < IN_USE_MAX.saturating_add(retry.predecessor) =>
            {
                if !std::mem::replace(&mut is_logged, true) {
                    tracing::info!("{key}: {addr} is in use: waiting for a process that stops to close it");
                }
                std::thread::sleep(IN_USE_RETRY);
            }
            result => return result.map_err(|error| BindError { key, addr, error, stopped: false }),
        }
    }
}

fn listening_socket(addr: SocketAddr, reuse_port: bool) -> io::Result<TcpListener> {
    let socket = RawSocket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if reuse_port {
        socket.set_reuse_port(true)?;
    }
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // Inherited by every connection, which saves a system call for each. tcp(7)
    socket.set_tcp_nodelay(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// One listener of a worker, which passes each connection to `serve`.
pub(super) struct Acceptor<F> {
    listener: Listener,
    local: SocketAddr,
    options: ListenerOptions,
    limit: Rc<ConnectionLimit>,
    counters: Arc<Counters>,
    serve: F,
}

impl<F, C> Acceptor<F>
where
    F: Fn(Socket, Rc<ConnectionInfo>, ConnectionPermit) -> C,
    C: Future<Output = ()> + 'static,
{
    /// # Errors
    /// The driver does not accept the socket.
    pub(super) fn new(
        bound: BoundSocket,
        driver: &Driver,
        limit: Rc<ConnectionLimit>,
        counters: Arc<Counters>,
        serve: F,
    ) -> io::Result<Self> {
        let BoundSocket { socket, addr: local, listener: options } = bound;
        let listener = Listener::from_std(socket, driver)?;
        Ok(Self { listener, local, options, limit, counters, serve })
    }

    /// Accepts connections until the limit closes. `_guard`: the drain waits until the queue is
    /// empty, too.
    pub(super) async fn run(self, _guard: DrainGuard) {
        let mut backoff = ACCEPT_BACKOFF;
        while self.limit.next_action().await == ListenerAction::Accept {
            match self.listener.accept(self.limit.accept_canceller()).await {
                Ok((socket, peer)) => {
                    backoff = ACCEPT_BACKOFF;
                    self.spawn_connection(socket, peer);
                }
                Err(error) if is_connection_error(&error) || runtime::is_cancelled(&error) => {}
                Err(error) => {
                    self.record_accept_error(&error);
                    runtime::sleep(backoff).await;
                    backoff = (backoff * 2).min(ACCEPT_BACKOFF_MAX);
                }
            }
        }
        drop_new_connections(&self.listener).await;
        if runtime::timeout(QUEUE_WAIT_MAX, self.accept_queued()).await.is_err() {
            tracing::warn!(
                local = %self.local,
                "connections that waited for a place while the worker was full are reset: the listener closes"
            );
        }
        self.listener.close();
    }

    /// Accepts the connections in the queue. The first accept does not wait for the limit, so that
    /// a full worker with an empty queue closes at once.
    async fn accept_queued(&self) {
        loop {
            match self.listener.accept_queued() {
                Ok((socket, peer)) => self.spawn_connection(socket, peer),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if is_connection_error(&error) => {}
                Err(error) => {
                    self.record_accept_error(&error);
                    runtime::sleep(ACCEPT_BACKOFF).await;
                }
            }
            self.limit.wait_below_limit().await;
        }
    }

    fn record_accept_error(&self, error: &io::Error) {
        self.counters.accept_errors.inc();
        if let Some(suppressed) = LOG_LIMIT.try_acquire() {
            tracing::warn!(local = %self.local, %error, suppressed, "cannot accept; trying again{}", advice(error));
        }
    }

    fn spawn_connection(&self, socket: Socket, peer: SocketAddr) {
        let permit = self.limit.acquire();
        // The listener may be bound to all addresses of the machine; stream routes match the one
        // that the client connected to.
        let is_http = self.options.protocol.is_http();
        let local = if is_http { Ok(self.local) } else { socket.local_addr() };
        // On an error the client has disconnected.
        let Ok(local) = local else { return };
        // Spawned as it is: a block around it would contain it twice, as argument and as awaitee.
        let info = Rc::new(ConnectionInfo::new(peer, local, self.options));
        runtime::spawn((self.serve)(socket, info, permit));
    }
}

/// Keeps new connections out of the queue.
async fn drop_new_connections(listener: &Listener) {
    match listener.drop_new_connections() {
        Ok(()) => runtime::sleep(HANDSHAKE_GRACE).await,
        // A connection between the last accept and the close is reset then, as without the filter.
        Err(error) => tracing::debug!(%error, "new connections are not held off before the listener closes"),
    }
}

/// Whether an error concerns only the connection that would have been accepted. accept(2)
fn is_connection_error(error: &io::Error) -> bool {
    use nix::errno::Errno;
    let network = [
        Errno::ENETDOWN,
        Errno::EPROTO,
        Errno::EHOSTDOWN,
        Errno::ENONET,
        Errno::EHOSTUNREACH,
        Errno::ENETUNREACH,
    ];
    matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted)
        || error.raw_os_error().is_some_and(|code| network.contains(&Errno::from_raw(code)))
}

fn advice(error: &io::Error) -> &'static str {
    if descriptors::is_resource_exhausted(error) {
        ": the process or the machine has no descriptor or memory left (ulimit -n, LimitNOFILE, fs.file-max)"
    } else {
        ""
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::connection_info::ListenerProtocol;

    #[test]
    fn accepted_connections_have_tcp_nodelay() {
        let any = "127.0.0.1:0".parse().unwrap();
        let retry = BindRetry { predecessor: Duration::ZERO, stop: watch::channel(false).1 };
        let bound = bind("test", any, ListenerProtocol::Http, 1, &retry).unwrap().pop().unwrap();
        let _client = std::net::TcpStream::connect(bound.addr).unwrap();
        assert!(bound.socket.accept().unwrap().0.nodelay().unwrap());
    }

    #[test]
    fn a_stop_signal_ends_the_retries() {
        let occupied = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = occupied.local_addr().unwrap();
        let (stopping, stop) = watch::channel(false);
        let retry = BindRetry { predecessor: Duration::from_secs(3600), stop };
        let binding = std::thread::spawn(move || bind("test", addr, ListenerProtocol::Http, 1, &retry));
        stopping.send_replace(true);
        assert!(binding.join().unwrap().unwrap_err().stopped);
    }
}
