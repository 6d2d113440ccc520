//! Listening: one SO_REUSEPORT socket a worker and address, so that the kernel spreads connections
//! over cores.
//!
//! Binds at boot (so that a port in use is told before anything runs), accepts on the worker while
//! it has room (`admission`). Out of descriptors it pauses instead of spinning. On a stop it
//! accepts what is in its queue before it closes, so that no connection that a client holds for
//! established is reset, unless the worker is full for longer than `QUEUE_MAX`: clients who keep
//! their places must not keep a successor from the port.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::time::{Duration, Instant};

use process::descriptors;
use process::throttle::LogThrottle;
use socket2::{Domain, Protocol, Socket as RawSocket, Type};
use tokio::sync::watch;

use crate::proxy::admission::ListenerAction;
use crate::proxy::connection;
use crate::proxy::connection::ConnectionInfo;
use crate::proxy::worker::Worker;
use crate::runtime;
use crate::runtime::{Driver, Listener, Socket};

const BACKLOG: i32 = 4096;
/// How long to wait for a descriptor when the process or system is out of them; doubled each time
/// up to the longest.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);
const ACCEPT_BACKOFF_MAX: Duration = Duration::from_secs(1);
/// Before the queue is emptied on a stop: for handshakes that have begun.
const HANDSHAKE_GRACE: Duration = Duration::from_millis(100);
/// How long the queue of a full worker may wait for places on a stop: less than a successor waits
/// (`IN_USE_MAX`).
const QUEUE_WAIT_MAX: Duration = Duration::from_secs(1);

/// How long a port may stay in use after its process has gone or while it drains, beside that
/// process's `drain_delay`; and how often to try.
const IN_USE_MAX: Duration = Duration::from_secs(3);
const IN_USE_RETRY: Duration = Duration::from_millis(25);

/// Lines about accepts that fail: a flood of connections causes them.
static LOG_LIMIT: LogThrottle = LogThrottle::new(1, Duration::from_secs(10));

/// What is spoken on a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListenerProtocol {
    /// HTTP in clear.
    Http,
    /// TLS, then HTTP.
    Https,
    /// Whatever the upstream speaks.
    Stream {
        /// Within TLS, which ends here.
        tls: bool,
    },
}

impl ListenerProtocol {
    /// Whether a connection begins with a TLS handshake.
    pub fn is_tls(self) -> bool {
        matches!(self, Self::Https | Self::Stream { tls: true })
    }
}

/// A bound socket of one worker.
#[derive(Debug)]
pub struct BoundSocket {
    socket: TcpListener,
    /// Where it listens; the port is the real one.
    pub addr: SocketAddr,
    speaks: ListenerProtocol,
}

/// An address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("{key}: cannot listen on {addr}: {error}{}", hint(.error))]
pub struct BindError {
    /// The setting.
    pub key: &'static str,
    /// The address.
    pub addr: SocketAddr,
    /// As the kernel said.
    pub error: io::Error,
    /// A stop signal came while the address was waited for.
    pub stopped: bool,
}

/// How long to wait for an address that is in use.
#[derive(Debug)]
pub struct BindRetry {
    /// How long a process that stops may keep it.
    pub predecessor: Duration,
    /// A stop signal, which turns it true, ends the wait.
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

/// Binds one address once for each worker.
///
/// # Errors
/// [`BindError`] with what to do.
pub fn bind(
    key: &'static str,
    addr: SocketAddr,
    speaks: ListenerProtocol,
    workers: usize,
    patience: &BindRetry,
) -> Result<Vec<BoundSocket>, BindError> {
    // With SO_REUSEPORT the kernel would let a second gateway of the same user share the port
    // unnoticed.
    if addr.port() != 0 {
        bind_exclusive(key, addr, patience)?;
    }
    let mut bound = Vec::with_capacity(workers);
    let mut addr = addr;
    for _ in 0..workers.max(1) {
        let socket =
            listening_socket(addr, true).map_err(|error| BindError { key, addr, error, stopped: false })?;
        addr = socket.local_addr().map_err(|error| BindError { key, addr, error, stopped: false })?;
        bound.push(BoundSocket { socket, addr, speaks });
    }
    Ok(bound)
}

/// Listens where no other socket does. A killed gateway's sockets live a little longer than its
/// process, until the kernel has wound up its ring, and one that stops keeps its own for a while: a
/// port in use is tried again for so long.
///
/// # Errors
/// [`BindError`] with what to do.
pub fn bind_exclusive(
    key: &'static str,
    addr: SocketAddr,
    patience: &BindRetry,
) -> Result<TcpListener, BindError> {
    let started = Instant::now();
    let mut told = false;
    loop {
        match listening_socket(addr, false) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && *patience.stop.borrow() => {
                return Err(BindError { key, addr, error, stopped: true });
            }
            Err(error)
                if error.kind() == io::ErrorKind::AddrInUse
                    && started.elapsed() < IN_USE_MAX.saturating_add(patience.predecessor) =>
            {
                if !std::mem::replace(&mut told, true) {
                    tracing::info!("{key}: {addr} is in use: waiting for a process that stops to close it");
                }
                std::thread::sleep(IN_USE_RETRY);
            }
            other => return other.map_err(|error| BindError { key, addr, error, stopped: false }),
        }
    }
}

fn listening_socket(addr: SocketAddr, share: bool) -> io::Result<TcpListener> {
    let socket = RawSocket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if share {
        socket.set_reuse_port(true)?;
    }
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // Inherited by every connection: no call for each of them. tcp(7)
    socket.set_tcp_nodelay(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Accepts on a worker from now on, until its admission closes.
///
/// # Errors
/// When the driver cannot take the socket.
pub fn start(worker: &Rc<Worker>, bound: BoundSocket, driver: &Driver) -> io::Result<()> {
    let BoundSocket { socket, addr, speaks } = bound;
    let listener = Listener::from_std(socket, driver)?;
    runtime::spawn(accept_loop(Rc::clone(worker), listener, addr, speaks));
    Ok(())
}

async fn accept_loop(worker: Rc<Worker>, listener: Listener, local: SocketAddr, speaks: ListenerProtocol) {
    // The stop waits for this, too: what is accepted last is served.
    let _running = worker.drain.enter();
    let mut pause = ACCEPT_BACKOFF;
    while worker.connection_limit.next_action().await == ListenerAction::Accept {
        match listener.accept(worker.connection_limit.accept_interrupt()).await {
            Ok((socket, peer)) => {
                pause = ACCEPT_BACKOFF;
                spawn_connection(&worker, socket, peer, local, speaks);
            }
            Err(error) if is_connection_error(&error) || runtime::is_cancelled(&error) => {}
            Err(error) => {
                record_accept_error(&worker, local, &error);
                runtime::sleep(pause).await;
                pause = (pause * 2).min(ACCEPT_BACKOFF_MAX);
            }
        }
    }
    drop_new_connections(&listener).await;
    if runtime::timeout(QUEUE_WAIT_MAX, accept_queued(&worker, &listener, local, speaks)).await.is_err() {
        tracing::warn!(%local, "connections that waited for a place while the worker was full are reset: the listener closes");
    }
    listener.close();
}

/// Accepts what is in the queue. One connection needs no place: the empty queue of a full worker is
/// found out at once.
async fn accept_queued(
    worker: &Rc<Worker>,
    listener: &Listener,
    local: SocketAddr,
    speaks: ListenerProtocol,
) {
    loop {
        match listener.accept_queued() {
            Ok((socket, peer)) => spawn_connection(worker, socket, peer, local, speaks),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(error) if is_connection_error(&error) => {}
            Err(error) => {
                record_accept_error(worker, local, &error);
                runtime::sleep(ACCEPT_BACKOFF).await;
            }
        }
        worker.connection_limit.wait_below_limit().await;
    }
}

fn record_accept_error(worker: &Worker, local: SocketAddr, error: &io::Error) {
    worker.counters.accept_errors.inc();
    if let Some(earlier) = LOG_LIMIT.try_acquire() {
        tracing::warn!(%local, %error, earlier, "cannot accept; trying again{}", advice(error));
    }
}

fn spawn_connection(
    worker: &Rc<Worker>,
    socket: Socket,
    peer: SocketAddr,
    local: SocketAddr,
    speaks: ListenerProtocol,
) {
    let admitted = worker.connection_limit.acquire();
    // The listener may stand for every address of the machine; stream routes ask which one it was.
    let reached = match speaks {
        ListenerProtocol::Stream { .. } => socket.local_addr(),
        ListenerProtocol::Http | ListenerProtocol::Https => Ok(local),
    };
    // An error: the peer is gone already.
    let Ok(local) = reached else { return };
    let serving =
        connection::serve(Rc::clone(worker), socket, ConnectionInfo { peer, local, protocol: speaks });
    runtime::spawn(async move {
        let _admitted = admitted;
        serving.await;
    });
}

/// No new connection gets into the queue once this has ended.
async fn drop_new_connections(listener: &Listener) {
    match listener.drop_new_connections() {
        Ok(()) => runtime::sleep(HANDSHAKE_GRACE).await,
        // What comes between the last accept and the close is reset then, as without the filter.
        Err(error) => tracing::debug!(%error, "new connections are not held off before the listener closes"),
    }
}

/// Errors that only concern the connection that would have been accepted. accept(2)
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

    #[test]
    fn every_connection_sends_small_writes_at_once() {
        let any = "127.0.0.1:0".parse().unwrap();
        let patience = BindRetry { predecessor: Duration::ZERO, stop: watch::channel(false).1 };
        let bound = bind("test", any, ListenerProtocol::Http, 1, &patience).unwrap().pop().unwrap();
        let _client = std::net::TcpStream::connect(bound.addr).unwrap();
        assert!(bound.socket.accept().unwrap().0.nodelay().unwrap());
    }

    #[test]
    fn a_stop_ends_the_wait_for_a_port() {
        let occupied = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = occupied.local_addr().unwrap();
        let (stopping, stop) = watch::channel(false);
        let patience = BindRetry { predecessor: Duration::from_secs(3600), stop };
        let waiting = std::thread::spawn(move || bind("test", addr, ListenerProtocol::Http, 1, &patience));
        stopping.send_replace(true);
        assert!(waiting.join().unwrap().unwrap_err().stopped);
    }
}
