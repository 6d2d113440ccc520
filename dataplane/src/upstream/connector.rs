//! New connections to upstream nodes: TCP, then TLS with the upstream's own identity; for requests,
//! then HTTP/1.

use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::client::conn::http1;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};
use tokio::sync::OwnedSemaphorePermit;

use super::pool::{ConnectionPermits, HttpConnection};
use crate::io::buffered::BufferedSocket;
use crate::io::chunk_read::{Chunk, ChunkRead};
use crate::io::flag::Flag;
use crate::io::linger::{LingerLimits, lingering_close};
use crate::io::plain::PlainStream;
use crate::observability::HasReason;
use crate::reason::Reason;
use crate::runtime::{self, Socket};
use crate::tls::handshake::{self, HandshakeError, TlsHandshake};
use crate::tls::stream::TlsStream;

/// No connection to the node.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The worker has as many connections to upstreams as its descriptors allow, and none ended in
    /// time.
    #[error(
        "connect to {addr}: no connection to an upstream ended within {within:?}, and the limit on descriptors allows no more"
    )]
    ConnectionLimit { addr: SocketAddr, within: Duration },
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
}

impl HasReason for ConnectError {
    fn reason(&self) -> Reason {
        match self {
            Self::ConnectionLimit { .. } => Reason::UpstreamLimit,
            Self::Tcp { .. } => Reason::UpstreamConnect,
            Self::Timeout { .. } => Reason::UpstreamConnectTimeout,
            Self::Tls { .. } => Reason::UpstreamTls,
            Self::Http { .. } => Reason::UpstreamInvalid,
        }
    }
}

/// A new connection to a node, in clear or within TLS.
pub(crate) enum UpstreamStream {
    Plain(PlainStream),
    Tls(TlsStream),
}

/// For TLS: the configuration and the server name.
type TlsParams<'a> = Option<(&'a Arc<ClientConfig>, ServerName<'static>)>;

/// Connects within `within`, for TCP and TLS together. The wait for a permit may take as long.
///
/// # Errors
/// [`ConnectError`]; another node may be tried.
pub(crate) async fn connect(
    addr: SocketAddr,
    tls: TlsParams<'_>,
    within: Duration,
    permits: &ConnectionPermits,
) -> Result<UpstreamStream, ConnectError> {
    let Ok(Some(permit)) = runtime::timeout(within, permits.acquire()).await else {
        return Err(ConnectError::ConnectionLimit { addr, within });
    };
    match runtime::timeout(within, connect_tcp_and_tls(addr, tls, permit)).await {
        Ok(result) => result,
        Err(runtime::TimedOut) => Err(ConnectError::Timeout { addr, within }),
    }
}

/// Like [`connect`], with HTTP/1 on top.
///
/// # Errors
/// [`ConnectError`]; another node may be tried.
pub(crate) async fn connect_http(
    addr: SocketAddr,
    tls: TlsParams<'_>,
    within: Duration,
    permits: &ConnectionPermits,
    builder: &http1::Builder,
) -> Result<HttpConnection, ConnectError> {
    let mut stream = connect(addr, tls, within, permits).await?;
    // A node may respond without reading the whole body, and close: the response counts.
    stream.socket().ignore_write_errors(true);
    // One type for each variant: an idle connection without TLS must not take the memory of one
    // with.
    match stream {
        UpstreamStream::Plain(stream) => http_handshake(addr, stream, builder).await,
        UpstreamStream::Tls(stream) => http_handshake(addr, stream, builder).await,
    }
}

async fn connect_tcp_and_tls(
    addr: SocketAddr,
    tls: TlsParams<'_>,
    permit: OwnedSemaphorePermit,
) -> Result<UpstreamStream, ConnectError> {
    let socket = Socket::connect(addr).await.map_err(|error| ConnectError::Tcp { addr, error })?;
    let mut socket = BufferedSocket::new(socket);
    socket.set_permit(permit);
    match tls {
        None => Ok(UpstreamStream::Plain(PlainStream::new(socket))),
        Some((config, name)) => {
            let failed = |error: HandshakeError| ConnectError::Tls { addr, error };
            let connection =
                ClientConnection::new(Arc::clone(config), name).map_err(|error| failed(error.into()))?;
            let mut tls = TlsHandshake::from(connection);
            // A node that rejects this side sends an alert, and may close before it has read all.
            socket.ignore_write_errors(true);
            match handshake::drive(&mut tls, &mut socket).await {
                Ok(()) => {
                    socket.ignore_write_errors(false);
                    Ok(UpstreamStream::Tls(TlsStream::new(tls.into_transport(), socket)))
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
    builder: &http1::Builder,
) -> Result<HttpConnection, ConnectError>
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + 'static,
{
    let (sender, connection) =
        builder.handshake(io).await.map_err(|error| ConnectError::Http { addr, error })?;
    let abort = Rc::<Flag>::default();
    let aborted = Rc::clone(&abort);
    runtime::spawn(async move {
        let mut connection = pin!(connection);
        poll_fn(|cx| match aborted.poll(cx) {
            Poll::Ready(()) => Poll::Ready(()),
            // The exchange on the connection gets its errors; between exchanges an end is none.
            Poll::Pending => connection.as_mut().poll(cx).map(drop),
        })
        .await;
    });
    Ok(HttpConnection { sender, abort })
}

impl UpstreamStream {
    fn socket(&mut self) -> &mut BufferedSocket {
        match self {
            Self::Plain(stream) => stream.socket(),
            Self::Tls(stream) => stream.socket(),
        }
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
