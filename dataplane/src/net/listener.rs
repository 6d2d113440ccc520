//! Listening: one SO_REUSEPORT socket a worker and address, so that the kernel spreads connections over cores.
//!
//! Binds at boot (so that a port in use is told before anything runs), accepts on the worker. A worker at its
//! connection limit closes what comes; out of descriptors it pauses instead of spinning.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    rc::Rc,
    time::{Duration, Instant},
};

use socket2::{Domain, Protocol, Socket as RawSocket, Type};

use crate::{
    connection::{self, Arrival},
    outcome::Reason,
    rt::{self, Driver, HangUp, Listener},
    worker::Worker,
};

const BACKLOG: i32 = 4096;
/// How long to wait for somebody to close something when the process or system is out of descriptors.
const PAUSE: Duration = Duration::from_millis(50);

/// How long a port may stay in use after its process has gone, and how often to ask.
const IN_USE_MAX: Duration = Duration::from_secs(3);
const IN_USE_PAUSE: Duration = Duration::from_millis(25);

/// What is spoken on a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaks {
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

impl Speaks {
    /// Whether a connection begins with a TLS handshake.
    pub fn begins_with_tls(self) -> bool {
        matches!(self, Self::Https | Self::Stream { tls: true })
    }
}

/// A bound socket of one worker.
#[derive(Debug)]
pub struct Bound {
    socket: TcpListener,
    /// Where it listens; the port is the real one.
    pub addr: SocketAddr,
    speaks: Speaks,
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
    speaks: Speaks,
    workers: usize,
) -> Result<Vec<Bound>, BindError> {
    // With SO_REUSEPORT the kernel would let a second gateway of the same user share the port unnoticed.
    if addr.port() != 0 {
        free(addr).map_err(|error| BindError { key, addr, error })?;
    }
    let mut bound = Vec::with_capacity(workers);
    let mut addr = addr;
    for _ in 0..workers.max(1) {
        let socket = open(addr, true).map_err(|error| BindError { key, addr, error })?;
        addr = socket.local_addr().map_err(|error| BindError { key, addr, error })?;
        bound.push(Bound { socket, addr, speaks });
    }
    Ok(bound)
}

/// Whether nobody listens there. A killed gateway's sockets live a little longer than its process, until the kernel
/// has wound up its ring, so a port in use is asked for again for a while.
fn free(addr: SocketAddr) -> io::Result<()> {
    let asked = Instant::now();
    loop {
        match open(addr, false) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && asked.elapsed() < IN_USE_MAX => {
                std::thread::sleep(IN_USE_PAUSE);
            }
            other => return other.map(drop),
        }
    }
}

fn open(addr: SocketAddr, share: bool) -> io::Result<TcpListener> {
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

/// Accepts on a worker from now on; the handle ends it.
///
/// # Errors
/// When the driver cannot take the socket.
pub fn start(worker: &Rc<Worker>, bound: Bound, driver: &Driver) -> io::Result<HangUp> {
    let Bound { socket, addr, speaks } = bound;
    let listener = Listener::from_std(socket, driver)?;
    let stop = listener.stop_handle();
    rt::spawn(accept_all(Rc::clone(worker), listener, addr, speaks));
    Ok(stop)
}

async fn accept_all(worker: Rc<Worker>, listener: Listener, local: SocketAddr, speaks: Speaks) {
    loop {
        let (socket, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(_) if worker.drain.has_begun() => {
                // The descriptor's number is known to the stop handle: it must not be reused before the end.
                std::mem::forget(listener);
                return;
            }
            Err(error) => {
                if !matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) {
                    tracing::warn!(%local, %error, "cannot accept; trying again");
                    rt::sleep(PAUSE).await;
                }
                continue;
            }
        };
        worker.counters.accepted.add();
        if worker.drain.running() >= worker.shared.rules.connections_max {
            worker.counters.ended(Reason::TooManyConnections);
            continue;
        }
        // The listener may stand for every address of the machine; stream routes ask which one it was.
        let reached = match speaks {
            Speaks::Stream { .. } => socket.local_addr(),
            Speaks::Http | Speaks::Https => Ok(local),
        };
        // An error: the peer is gone already.
        let Ok(local) = reached else { continue };
        rt::spawn(connection::serve(Rc::clone(&worker), socket, Arrival { peer, local, speaks }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_connection_sends_small_writes_at_once() {
        let any = "127.0.0.1:0".parse().unwrap();
        let bound = bind("test", any, Speaks::Http, 1).unwrap().pop().unwrap();
        let _client = std::net::TcpStream::connect(bound.addr).unwrap();
        assert!(bound.socket.accept().unwrap().0.nodelay().unwrap());
    }
}
