//! Listening sockets: one SO_REUSEPORT socket for each worker and address, so that the kernel
//! spreads connections over cores.
//!
//! Sockets are bound at start-up, so that a port in use is reported before anything runs. A worker
//! accepts while it is below its [`ConnectionLimit`]; without descriptors it backs off. A listener
//! that closes ([`AcceptorEnd::Close`]) accepts what is in its queue first, so that no connection
//! is reset that its client takes for established, unless the worker stays full for longer than
//! `QUEUE_WAIT_MAX`: open connections must not keep the port from the next process. One that is
//! released leaves its queue to the other processes that have the socket; a socket of the service
//! manager is always released.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::ops::ControlFlow;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use process::descriptors;
use process::throttle::LogThrottle;
use socket2::{Domain, Protocol, Socket as RawSocket, Type};
use tokio::sync::watch;

use super::connection_limit::{ConnectionLimit, ConnectionPermit};
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

/// A bound socket that a worker listens on. Clones are the same socket.
#[derive(Debug, Clone)]
pub struct BoundSocket {
    pub socket: Arc<TcpListener>,
    /// The address, with the port that the kernel chose for port 0.
    pub addr: SocketAddr,
    pub options: ListenerOptions,
    /// The service manager has it, too: what is in its queue is for the next process.
    pub activated: bool,
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
    let options = listener.into();
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
        bound.push(BoundSocket { socket: Arc::new(socket), addr, options, activated: false });
    }
    Ok(bound)
}

/// Checks that an address can be bound, and binds nothing.
///
/// # Errors
/// [`BindError`].
pub fn check_free(key: &'static str, addr: SocketAddr) -> Result<(), BindError> {
    try_bind(key, addr).map(drop)
}

/// Binds an address where no other socket listens, without waiting for one that closes.
///
/// # Errors
/// [`BindError`].
pub fn try_bind(key: &'static str, addr: SocketAddr) -> Result<TcpListener, BindError> {
    listening_socket(addr, false).map_err(|error| BindError { key, addr, error, stopped: false })
}

/// Binds a further socket of an address, beside those that listen there already.
///
/// # Errors
/// [`BindError`].
pub fn bind_another(
    key: &'static str,
    addr: SocketAddr,
    options: ListenerOptions,
) -> Result<BoundSocket, BindError> {
    let socket = listening_socket(addr, true);
    let socket = socket.map_err(|error| BindError { key, addr, error, stopped: false })?;
    Ok(BoundSocket { socket: Arc::new(socket), addr, options, activated: false })
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

/// How an acceptor ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AcceptorEnd {
    /// Accepts what is in the queue, and closes the socket for every process that has it; but one
    /// of the service manager is released.
    Close,
    /// Leaves the socket and its queue to another worker or process.
    Release,
}

/// Ends one acceptor.
#[derive(Debug, Default)]
pub(super) struct AcceptorControl {
    end: Cell<Option<AcceptorEnd>>,
    waker: RefCell<Option<Waker>>,
}

impl AcceptorControl {
    /// The first end counts.
    pub(super) fn end(&self, end: AcceptorEnd) {
        if self.end.get().is_none() {
            self.end.set(Some(end));
        }
        self.waker.take().into_iter().for_each(Waker::wake);
    }

    fn poll_end(&self, cx: &Context<'_>) -> Poll<AcceptorEnd> {
        if let Some(end) = self.end.get() {
            return Poll::Ready(end);
        }
        self.waker.replace(Some(cx.waker().clone()));
        Poll::Pending
    }
}

/// One listener of a worker, which passes each connection to `serve`.
pub(super) struct Acceptor<F> {
    listener: Listener,
    local: SocketAddr,
    options: ListenerOptions,
    activated: bool,
    control: Rc<AcceptorControl>,
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
        control: Rc<AcceptorControl>,
        limit: Rc<ConnectionLimit>,
        counters: Arc<Counters>,
        serve: F,
    ) -> io::Result<Self> {
        let BoundSocket { socket, addr: local, options, activated } = bound;
        let listener = Listener::new(socket, driver)?;
        Ok(Self { listener, local, options, activated, control, limit, counters, serve })
    }

    /// Accepts connections until its control ends it. `_guard`: the drain waits until the queue is
    /// empty, too.
    pub(super) async fn run(self, _guard: DrainGuard) {
        let mut backoff = ACCEPT_BACKOFF;
        let end = loop {
            let acceptable = match self.wait_acceptable().await {
                ControlFlow::Continue(acceptable) => acceptable,
                ControlFlow::Break(end) => break end,
            };
            match acceptable.and_then(|()| self.listener.accept()) {
                Ok((socket, peer)) => {
                    backoff = ACCEPT_BACKOFF;
                    self.spawn_connection(socket, peer);
                }
                // Another worker or process that has the socket was first.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if is_connection_error(&error) => {}
                Err(error) => {
                    self.record_accept_error(&error);
                    runtime::sleep(backoff).await;
                    backoff = (backoff * 2).min(ACCEPT_BACKOFF_MAX);
                }
            }
        };
        if end == AcceptorEnd::Release || self.activated {
            return;
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

    /// Waits until the worker is below its limit and a connection is in the queue, or until the
    /// acceptor ends.
    async fn wait_acceptable(&self) -> ControlFlow<AcceptorEnd, io::Result<()>> {
        let mut readable = pin!(self.listener.readable());
        poll_fn(|cx| {
            if let Poll::Ready(end) = self.control.poll_end(cx) {
                return Poll::Ready(ControlFlow::Break(end));
            }
            if self.limit.poll_below_limit(cx).is_pending() {
                return Poll::Pending;
            }
            readable.as_mut().poll(cx).map(ControlFlow::Continue)
        })
        .await
    }

    /// Accepts the connections in the queue. The first accept does not wait for the limit, so that
    /// a full worker with an empty queue closes at once.
    async fn accept_queued(&self) {
        loop {
            match self.listener.accept() {
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
