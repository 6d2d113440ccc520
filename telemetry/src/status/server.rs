//! The thread that serves the listeners for operators: a small HTTP/1.1 server.
//!
//! Invariant: no client keeps others out for long: each listener has a bound on connections, and
//! each connection a time limit.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use std::{fmt, io, thread};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::join_all;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio_rustls::TlsAcceptor;

use super::access::{Admission, StatusAccessHandle, StatusRejection, TlsSource};
use super::{PageRequest, Pages};

/// Pause before the next accept when the process has no descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Most concurrent connections of a listener; others wait to be accepted.
pub(crate) const CONNECTIONS_MAX: usize = 16;
/// Most concurrent connections of a listener that only read a 403; further ones are closed.
const DENIED_MAX: usize = 4;
/// Time limit for reading the request of a denied client.
const DENIED_TIMEOUT: Duration = Duration::from_secs(1);
/// Bytes that are read of it.
const DENIED_BYTES_MAX: u64 = 16 << 10;
/// Time limit for a TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Time limit for the head of a request, and between two requests: a silent client loses its
/// connection.
const HEADER_READ_TIMEOUT: Duration = Duration::from_secs(10);
/// From accept until the graceful shutdown of the connection, and from then until its abort: a
/// client that does not read, or sends requests without end, loses its connection, too.
pub(super) const CONNECTION_END: (Duration, Duration) = (Duration::from_secs(15), Duration::from_secs(5));
/// First byte of a TLS handshake record (RFC 8446 section 5.1).
const HANDSHAKE_RECORD: u8 = 0x16;

const FORBIDDEN: &str = "this address may not connect: see countersign.status.allow\n";
const PLAIN_TO_TLS: &str = "this port takes HTTPS with a client certificate: see countersign.status.tls\n";

/// Binds the address. Connections wait until [`serve`].
///
/// # Errors
/// Those of `bind(2)`.
pub fn bind(address: SocketAddr) -> io::Result<StatusListener> {
    StatusListener::from_std(std::net::TcpListener::bind(address)?)
}

/// A bound listener for operators.
#[derive(Debug)]
pub struct StatusListener {
    socket: std::net::TcpListener,
    address: SocketAddr,
}

impl StatusListener {
    /// Takes over a listening socket.
    ///
    /// # Errors
    /// Those of `fcntl(2)` and `getsockname(2)`.
    pub fn from_std(socket: std::net::TcpListener) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let address = socket.local_addr()?;
        Ok(Self { socket, address })
    }

    /// The address, with the port that the kernel picked.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Another descriptor of the socket, for a successor of this process.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn try_clone(&self) -> io::Result<std::net::TcpListener> {
        self.socket.try_clone()
    }
}

/// A listener and what it serves.
pub struct StatusEndpoint {
    /// The listener.
    pub listener: StatusListener,
    /// Its pages.
    pub pages: Arc<dyn Pages>,
}

impl fmt::Debug for StatusEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StatusEndpoint").field("listener", &self.listener).finish_non_exhaustive()
    }
}

/// Starts the thread that serves these listeners.
///
/// # Errors
/// When the system provides no thread or no descriptors.
pub fn serve(endpoints: Vec<StatusEndpoint>, access: &StatusAccessHandle) -> io::Result<StatusServer> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (close, closing) = watch::channel(());
    let (all_closed, closed) = oneshot::channel();
    let entered = runtime.enter();
    let mut running = Vec::with_capacity(endpoints.len());
    for StatusEndpoint { listener, pages } in endpoints {
        let socket = tokio::net::TcpListener::from_std(listener.socket)?;
        let server = ConnectionServer { pages, access: access.clone(), local: listener.address };
        running.push(accept_connections(socket, Arc::new(server), closing.clone()));
    }
    drop(entered);
    let run = move || {
        runtime.block_on(async {
            join_all(running).await;
            let _server_dropped = all_closed.send(()).is_err();
            // Accepted connections go on.
            std::future::pending::<()>().await;
        });
    };
    thread::Builder::new().name("status".to_owned()).spawn(run)?;
    Ok(StatusServer { close, closed })
}

/// The serving listeners, until they are closed or dropped.
#[must_use]
#[derive(Debug)]
pub struct StatusServer {
    /// Dropping it closes the listeners.
    close: watch::Sender<()>,
    /// Confirms that all are closed.
    closed: oneshot::Receiver<()>,
}

impl StatusServer {
    /// Closes the listeners: another process can bind their addresses when this returns, unless a
    /// successor has the sockets. Accepted connections are served until the process ends. Blocks.
    pub fn close(self) {
        drop(self.close);
        // An error means that the thread has ended, and the listeners with it.
        let _closed = self.closed.blocking_recv().is_ok();
    }
}

/// Accepts the connections of one listener until it is closed.
async fn accept_connections(
    listener: tokio::net::TcpListener,
    server: Arc<ConnectionServer>,
    mut closing: watch::Receiver<()>,
) {
    let slots = Slots::default();
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &slots) => accepted,
            // The sender sends nothing: it is gone.
            _ = closing.changed() => break,
        };
        match accepted {
            Ok((socket, peer, slot)) => drop(tokio::spawn(Arc::clone(&server).admit(socket, peer, slot))),
            // Most likely out of descriptors. Not counted: the status page could not show the
            // counter.
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
    // Connections in the backlog belong to this process, not to a successor.
    while let Some(Ok((socket, peer, slot))) = accept(&listener, &slots).now_or_never() {
        tokio::spawn(Arc::clone(&server).admit(socket, peer, slot));
    }
}

/// The connections that a listener may have.
struct Slots {
    served: Arc<Semaphore>,
    denied: Arc<Semaphore>,
}

impl Default for Slots {
    fn default() -> Self {
        let slots = |count| Arc::new(Semaphore::new(count));
        Self { served: slots(CONNECTIONS_MAX), denied: slots(DENIED_MAX) }
    }
}

/// A connection's slot, and those of denied clients, which give theirs back.
struct Slot {
    served: OwnedSemaphorePermit,
    denied: Arc<Semaphore>,
}

/// Accepts the next connection, once a slot is free.
async fn accept(
    listener: &tokio::net::TcpListener,
    slots: &Slots,
) -> io::Result<(TcpStream, SocketAddr, Slot)> {
    let served = Arc::clone(&slots.served).acquire_owned().await.map_err(io::Error::other)?;
    let (socket, peer) = listener.accept().await?;
    Ok((socket, peer, Slot { served, denied: Arc::clone(&slots.denied) }))
}

/// What the connections of one listener need.
struct ConnectionServer {
    pages: Arc<dyn Pages>,
    access: StatusAccessHandle,
    local: SocketAddr,
}

impl ConnectionServer {
    async fn admit(self: Arc<Self>, socket: TcpStream, peer: SocketAddr, slot: Slot) {
        let Slot { served, denied } = slot;
        match self.access.decide(self.local, peer) {
            Admission::Plain => serve_connection(Arc::clone(&self.pages), socket, false, served).await,
            Admission::Tls(source) => {
                let pages = Arc::clone(&self.pages);
                match tokio::time::timeout(HANDSHAKE_TIMEOUT, accept_tls(&source, socket)).await {
                    Ok(Some(stream)) => serve_connection(pages, stream, true, served).await,
                    _ => StatusRejection::Handshake.record(),
                }
            }
            Admission::Denied => {
                // A denied client keeps no other one waiting.
                drop(served);
                StatusRejection::Address.record();
                if let Ok(_slot) = denied.try_acquire_owned() {
                    let answer = refuse(socket, "403 Forbidden", FORBIDDEN);
                    let _client_stalls = tokio::time::timeout(DENIED_TIMEOUT, answer).await;
                }
            }
        }
    }
}

/// The handshake; `None`: it failed, or the client does not speak TLS.
async fn accept_tls(
    source: &TlsSource,
    socket: TcpStream,
) -> Option<tokio_rustls::server::TlsStream<TcpStream>> {
    let mut first = [0];
    socket.peek(&mut first).await.ok()?;
    if first != [HANDSHAKE_RECORD] {
        refuse(socket, "400 Bad Request", PLAIN_TO_TLS).await;
        return None;
    }
    let config = source().await.ok()?;
    TlsAcceptor::from(config).accept(socket).await.ok()
}

/// Responds with this status and closes the connection. The request is read first: closing with
/// unread bytes would reset the connection, and the client might not see the response.
async fn refuse(mut socket: TcpStream, status: &str, body: &str) {
    let mut head = Vec::new();
    let mut request = (&mut socket).take(DENIED_BYTES_MAX);
    while !head.windows(4).any(|bytes| bytes == b"\r\n\r\n") {
        if !matches!(request.read_buf(&mut head).await, Ok(read) if read > 0) {
            break;
        }
    }
    let response = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    // The client may be gone.
    if socket.write_all(response.as_bytes()).await.is_ok() {
        let _client_gone = socket.shutdown().await.is_err();
    }
}

/// Serves the requests of one connection.
pub(super) async fn serve_connection<S>(
    pages: Arc<dyn Pages>,
    socket: S,
    is_tls: bool,
    slot: OwnedSemaphorePermit,
) where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let _slot = slot;
    let service = service_fn(move |request: Request<Incoming>| {
        let (head, _) = request.into_parts();
        let reply = pages.reply(PageRequest { head, is_tls });
        async move { Ok::<Response<Full<Bytes>>, Infallible>(reply.await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_READ_TIMEOUT)
        .serve_connection(TokioIo::new(socket), service);
    tokio::pin!(connection);
    let (last_response, cut) = CONNECTION_END;
    if tokio::time::timeout(last_response, &mut connection).await.is_err() {
        connection.as_mut().graceful_shutdown();
        let _client_stalls = tokio::time::timeout(cut, connection).await;
    }
}
