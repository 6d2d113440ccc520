//! New connections to upstream nodes: TCP, then TLS with the upstream's own identity; for requests,
//! then HTTP/1 or HTTP/2.

use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper::client::conn::http1;
use model::KeepalivePool;
use rustls::ClientConnection;
use rustls::pki_types::ServerName;
use tokio::sync::OwnedSemaphorePermit;

use super::client_tls::{Alpn, ClientTlsConfig};
use super::http2::connection::{self as http2, Http2Connection, Http2HandshakeError};
use super::pool::idle::Http1Connection;
use super::pool::key::{DialError, UpstreamProtocol};
use super::pool::node::ConnectionSlot;
use super::pool::permits::ConnectionPermits;
use super::request_body::RequestBody;
use crate::http::head::HeadLimits;
use crate::io::buffered::BufferedSocket;
use crate::io::chunk_read::{Chunk, ChunkRead};
use crate::io::flag::Flag;
use crate::io::linger::{LingerLimits, lingering_close};
use crate::io::plain::PlainStream;
use crate::observability::HasReason;
use crate::observability::metrics::Counters;
use crate::reason::Reason;
use crate::runtime::{self, Socket};
use crate::tls::handshake::{self, HandshakeError, TlsHandshake};
use crate::tls::stream::TlsStream;

/// HTTP/2 in ALPN.
const H2: &[u8] = b"h2";

/// No connection to the node.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The worker has as many connections to upstreams as its descriptors allow, and none ended in
    /// time.
    #[error(
        "connect to {addr}: no connection to an upstream ended within {within:?}, and the limit on descriptors allows no more"
    )]
    ConnectionLimit { addr: SocketAddr, within: Duration },
    /// The node has as many connections of this worker as it may have, and none became free in
    /// time.
    #[error(
        "connect to {addr}: {max} connections are open (countersign.limits.upstream_connections_per_node, or keepalive_pool.max_connections), and none became free within {within:?}"
    )]
    NodeLimit { addr: SocketAddr, max: u32, within: Duration },
    #[error("connect to {addr}: {error}")]
    Tcp { addr: SocketAddr, error: io::Error },
    /// TCP and TLS took longer than `timeout.connect`.
    #[error("connect to {addr}: not done within {within:?}")]
    Timeout { addr: SocketAddr, within: Duration },
    #[error("TLS with {addr}: {error}")]
    Tls { addr: SocketAddr, error: HandshakeError },
    /// hyper rejected the new connection.
    #[error("HTTP with {addr}: {error}")]
    Http { addr: SocketAddr, error: hyper::Error },
    #[error("HTTP/2 with {addr}: {error}")]
    Http2 { addr: SocketAddr, error: Http2HandshakeError },
    /// By ALPN the node selected another protocol than `h2`, for an upstream that has no other.
    #[error("HTTP/2 with {addr}: the node selected {selected:?} by ALPN, not \"h2\"")]
    NotHttp2 { addr: SocketAddr, selected: String },
    /// The connection of another request, on which this one was to have a stream.
    #[error(transparent)]
    Shared(DialError),
}

impl HasReason for ConnectError {
    fn reason(&self) -> Reason {
        match self {
            Self::ConnectionLimit { .. } | Self::NodeLimit { .. } => Reason::UpstreamLimit,
            Self::Tcp { .. } => Reason::UpstreamConnect,
            Self::Timeout { .. } => Reason::UpstreamConnectTimeout,
            Self::Tls { .. } => Reason::UpstreamTls,
            Self::Http { .. } | Self::NotHttp2 { .. } => Reason::UpstreamInvalid,
            Self::Http2 { error, .. } => error.reason(),
            Self::Shared(error) => error.reason,
        }
    }
}

/// A new connection to a node, in clear or within TLS.
pub(crate) enum UpstreamStream {
    Plain(PlainStream),
    Tls(TlsStream),
}

/// For TLS: the configuration, the protocols and the server name.
pub(crate) type TlsParams<'a> = Option<(&'a ClientTlsConfig, Alpn, ServerName<'static>)>;

/// The end of `timeout.connect`: one for the wait for a connection, TCP and TLS together.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ConnectDeadline {
    started: Instant,
    within: Duration,
}

impl ConnectDeadline {
    /// `within` from now.
    pub(crate) fn start(within: Duration) -> Self {
        Self { started: Instant::now(), within }
    }

    /// The time since its start.
    pub(crate) fn elapsed(self) -> Duration {
        self.started.elapsed()
    }

    /// Limits the time of `future` by what is left; `error` gets the whole time.
    pub(crate) async fn limit<F: Future>(
        self,
        future: F,
        error: impl FnOnce(Duration) -> ConnectError,
    ) -> Result<F::Output, ConnectError> {
        let left = self.within.saturating_sub(self.started.elapsed());
        runtime::timeout(left, future).await.map_err(|runtime::TimedOut| error(self.within))
    }
}

/// What the new connections of a worker share.
pub(crate) struct ConnectContext {
    pub permits: ConnectionPermits,
    /// Count handshakes.
    pub counters: Arc<Counters>,
}

/// What a connection holds until its descriptor is closed.
struct Places {
    _permit: Option<OwnedSemaphorePermit>,
    slot: Option<ConnectionSlot>,
}

/// A new connection, which holds a permit and `slot` until it ends. `preamble` is sent first,
/// before TLS.
///
/// # Errors
/// [`ConnectError`]; another node may be tried.
pub(crate) async fn connect(
    addr: SocketAddr,
    tls: TlsParams<'_>,
    deadline: ConnectDeadline,
    context: &ConnectContext,
    slot: Option<ConnectionSlot>,
    preamble: Option<&[u8]>,
) -> Result<UpstreamStream, ConnectError> {
    Ok(connect_with_alpn(addr, tls, deadline, context, slot, preamble).await?.0)
}

/// The protocol that a node selected by ALPN.
type SelectedProtocol = Option<Vec<u8>>;

async fn connect_with_alpn(
    addr: SocketAddr,
    tls: TlsParams<'_>,
    deadline: ConnectDeadline,
    context: &ConnectContext,
    slot: Option<ConnectionSlot>,
    preamble: Option<&[u8]>,
) -> Result<(UpstreamStream, SelectedProtocol), ConnectError> {
    let permit = deadline
        .limit(context.permits.acquire(), |within| ConnectError::ConnectionLimit { addr, within })
        .await?;
    let places = Places { _permit: permit, slot };
    let (is_encrypted, started) = (tls.is_some(), Instant::now());
    let connecting = connect_tcp_and_tls(addr, tls, &context.counters, places, preamble);
    let connected = deadline.limit(connecting, |within| ConnectError::Timeout { addr, within }).await?;
    if connected.is_ok() {
        context.counters.record_upstream_connect(is_encrypted, started.elapsed());
    }
    connected
}

/// How requests are sent on a new connection.
pub(crate) struct HttpOptions {
    pub protocol: UpstreamProtocol,
    pub http1: http1::Builder,
    /// The limits on the head of a response, for HTTP/2.
    pub head: HeadLimits,
    /// The limits on an HTTP/2 connection.
    pub keepalive: KeepalivePool,
    /// Of its TLS.
    pub config: Option<Arc<ClientTlsConfig>>,
}

/// A new connection for requests.
pub(crate) enum NewConnection {
    Http1(Http1Connection),
    Http2(Rc<Http2Connection>),
}

/// Like [`connect`], with HTTP on top.
///
/// # Errors
/// [`ConnectError`]; another node may be tried.
pub(crate) async fn connect_http(
    addr: SocketAddr,
    tls: TlsParams<'_>,
    deadline: ConnectDeadline,
    context: &ConnectContext,
    slot: Option<ConnectionSlot>,
    options: &HttpOptions,
) -> Result<NewConnection, ConnectError> {
    let is_encrypted = tls.is_some();
    let (mut stream, selected) = connect_with_alpn(addr, tls, deadline, context, slot, None).await?;
    // A node may respond without reading the whole body, and close: the response counts.
    stream.socket().ignore_write_errors(true);
    let is_http2 = match (options.protocol, selected) {
        (UpstreamProtocol::Http1 | UpstreamProtocol::Unpooled, _) => false,
        (UpstreamProtocol::Negotiated, selected) => selected.as_deref() == Some(H2),
        // A server without ALPN may have HTTP/2 alone, too.
        (UpstreamProtocol::Http2, None) => true,
        (UpstreamProtocol::Http2, Some(selected)) if selected == H2 || !is_encrypted => true,
        (UpstreamProtocol::Http2, Some(selected)) => {
            let selected = String::from_utf8_lossy(&selected).into_owned();
            return Err(ConnectError::NotHttp2 { addr, selected });
        }
    };
    // One type for each variant: an idle connection without TLS must not take the memory of one
    // with.
    if is_http2 {
        let timed_out = |within| ConnectError::Timeout { addr, within };
        let (head, keepalive, config) = (options.head, options.keepalive, options.config.clone());
        let connection = match stream {
            UpstreamStream::Plain(stream) => {
                deadline.limit(http2::handshake(stream, head, keepalive, config), timed_out).await?
            }
            UpstreamStream::Tls(stream) => {
                deadline.limit(http2::handshake(stream, head, keepalive, config), timed_out).await?
            }
        };
        return connection.map(NewConnection::Http2).map_err(|error| ConnectError::Http2 { addr, error });
    }
    let connection = match stream {
        UpstreamStream::Plain(stream) => http_handshake(addr, stream, options).await?,
        UpstreamStream::Tls(stream) => http_handshake(addr, stream, options).await?,
    };
    Ok(NewConnection::Http1(connection))
}

async fn connect_tcp_and_tls(
    addr: SocketAddr,
    tls: TlsParams<'_>,
    counters: &Counters,
    places: Places,
    preamble: Option<&[u8]>,
) -> Result<(UpstreamStream, SelectedProtocol), ConnectError> {
    let socket = Socket::connect(addr).await.map_err(|error| ConnectError::Tcp { addr, error })?;
    let mut socket = BufferedSocket::new(socket);
    socket.set_guard(places);
    if let Some(preamble) = preamble {
        socket.write_buf().extend_from_slice(preamble);
        // At once: a node may be the first to speak, once it knows the client.
        poll_fn(|cx| socket.poll_flush(cx)).await.map_err(|error| ConnectError::Tcp { addr, error })?;
    }
    match tls {
        None => Ok((UpstreamStream::Plain(PlainStream::new(socket)), None)),
        Some((config, alpn, name)) => {
            let failed = |error: HandshakeError| ConnectError::Tls { addr, error };
            let variant = Arc::clone(config.for_protocol(alpn));
            let connection = ClientConnection::new(variant, name).map_err(|error| failed(error.into()))?;
            let mut tls = TlsHandshake::from(connection);
            // A node that rejects this side sends an alert, and may close before it has read all.
            socket.ignore_write_errors(true);
            match handshake::drive(&mut tls, &mut socket).await {
                Ok(()) => {
                    socket.ignore_write_errors(false);
                    counters.record_upstream_handshake(config.verifies, tls.is_resumed());
                    let selected = tls.alpn().map(<[u8]>::to_vec);
                    let stream = TlsStream::new(tls.into_transport(), socket);
                    Ok((UpstreamStream::Tls(stream), selected))
                }
                Err(error) => {
                    runtime::spawn(async move {
                        let mut socket = PlainStream::new(socket);
                        lingering_close(&mut socket, LingerLimits::CONNECTION).await;
                    });
                    Err(failed(error))
                }
            }
        }
    }
}

async fn http_handshake<I>(
    addr: SocketAddr,
    io: I,
    options: &HttpOptions,
) -> Result<Http1Connection, ConnectError>
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + 'static,
{
    let (sender, connection) =
        options.http1.handshake(io).await.map_err(|error| ConnectError::Http { addr, error })?;
    let abort = Rc::<Flag>::default();
    spawn_connection(connection, Rc::clone(&abort));
    Ok(Http1Connection { sender, abort, requests: 0, config: options.config.clone() })
}

/// Drives a connection in a task of its own until its end, or until `abort` is raised.
pub(super) fn spawn_connection<I>(connection: http1::Connection<I, RequestBody>, abort: Rc<Flag>)
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + 'static,
{
    runtime::spawn(async move {
        let mut connection = pin!(connection);
        poll_fn(|cx| match abort.poll(cx) {
            Poll::Ready(()) => Poll::Ready(()),
            // The exchange on the connection gets its errors; between exchanges an end is none.
            Poll::Pending => connection.as_mut().poll(cx).map(drop),
        })
        .await;
    });
}

impl UpstreamStream {
    pub(super) fn socket(&mut self) -> &mut BufferedSocket {
        match self {
            Self::Plain(stream) => stream.socket(),
            Self::Tls(stream) => stream.socket(),
        }
    }

    /// Returns its slot, where it has one: the connection is not counted any more.
    pub(super) fn release_slot(&mut self) {
        let places = self.socket().guard_mut::<Places>();
        drop(places.and_then(|places| places.slot.take()));
    }
}

impl ChunkRead for UpstreamStream {
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Chunk<'_>>> {
        match self {
            Self::Plain(stream) => stream.poll_chunk(cx),
            Self::Tls(stream) => stream.poll_chunk(cx),
        }
    }

    fn consume(&mut self, n: usize) {
        match self {
            Self::Plain(stream) => stream.consume(n),
            Self::Tls(stream) => stream.consume(n),
        }
    }

    fn shrink_buffers(&mut self) {
        match self {
            Self::Plain(stream) => stream.shrink_buffers(),
            Self::Tls(stream) => stream.shrink_buffers(),
        }
    }
}

impl hyper::rt::Write for UpstreamStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, data),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, data),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
