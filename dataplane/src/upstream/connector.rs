//! A new connection to an upstream node: TCP, then TLS with the upstream's own identity; for
//! requests, then HTTP.

use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use hyper::client::conn::http1;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};
use tokio::sync::OwnedSemaphorePermit;

use super::places::ConnectionPermits;
use super::pool::HttpConnection;
use crate::io::buffered::BufferedSocket;
use crate::io::flag::Flag;
use crate::io::plain::PlainStream;
use crate::observability::reason::HasReason;
use crate::reason::Reason;
use crate::runtime;
use crate::runtime::Socket;
use crate::tls::handshake;
use crate::tls::handshake::HandshakeError;
use crate::tls::stream::TlsStream;
use crate::tls::transport::{TlsTransport, TransportError};

/// No connection to the node.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The worker has as many connections to upstreams as its descriptors allow, and none ended in
    /// time.
    #[error(
        "connect to {addr}: no connection to an upstream ended within {within:?}, and the limit on descriptors allows no more"
    )]
    ConnectionLimit {
        /// The node.
        addr: SocketAddr,
        /// `timeout.connect`.
        within: Duration,
    },
    /// TCP failed.
    #[error("connect to {addr}: {error}")]
    Tcp {
        /// The node.
        addr: SocketAddr,
        /// As the kernel said.
        error: io::Error,
    },
    /// TCP and TLS were not done in time.
    #[error("connect to {addr}: not done within {within:?}")]
    Timeout {
        /// The node.
        addr: SocketAddr,
        /// `timeout.connect`.
        within: Duration,
    },
    /// TLS failed.
    #[error("TLS with {addr}: {error}")]
    Tls {
        /// The node.
        addr: SocketAddr,
        /// What went wrong, ours or theirs.
        error: HandshakeError,
    },
    /// hyper refused the fresh connection.
    #[error("HTTP with {addr}: {error}")]
    Http {
        /// The node.
        addr: SocketAddr,
        /// As hyper said.
        error: hyper::Error,
    },
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

/// A connection to a node, with nothing said on it yet.
pub enum UpstreamStream {
    /// In clear.
    Plain(PlainStream),
    /// Within TLS.
    Tls(TlsStream),
}

/// For TLS: what we show and demand, and the name to ask for.
type TlsParams<'a> = Option<(&'a Arc<ClientConfig>, ServerName<'static>)>;

/// Connects, within `within` for TCP and TLS together. As long may it wait for one of `places`.
///
/// # Errors
/// [`DialError`]; another node may be tried.
pub(crate) async fn connect(
    addr: SocketAddr,
    tls: TlsParams<'_>,
    within: Duration,
    places: &ConnectionPermits,
) -> Result<UpstreamStream, ConnectError> {
    let Ok(Some(permit)) = runtime::timeout(within, places.acquire()).await else {
        return Err(ConnectError::ConnectionLimit { addr, within });
    };
    match runtime::timeout(within, connect_tcp_and_tls(addr, tls, permit)).await {
        Ok(result) => result,
        Err(runtime::TimedOut) => Err(ConnectError::Timeout { addr, within }),
    }
}

/// The same, for requests.
///
/// # Errors
/// [`DialError`]; another node may be tried.
pub(crate) async fn connect_http(
    addr: SocketAddr,
    tls: TlsParams<'_>,
    within: Duration,
    places: &ConnectionPermits,
    builder: &http1::Builder,
) -> Result<HttpConnection, ConnectError> {
    // A node may answer a request whose body it will not read, and close: the answer counts.
    match connect(addr, tls, within, places).await? {
        UpstreamStream::Plain(mut stream) => {
            stream.socket().ignore_write_errors(true);
            http_handshake(addr, stream, builder).await
        }
        UpstreamStream::Tls(mut stream) => {
            stream.socket().ignore_write_errors(true);
            http_handshake(addr, stream, builder).await
        }
    }
}

async fn connect_tcp_and_tls(
    addr: SocketAddr,
    tls: TlsParams<'_>,
    permit: OwnedSemaphorePermit,
) -> Result<UpstreamStream, ConnectError> {
    let socket = Socket::connect(addr).await.map_err(|error| ConnectError::Tcp { addr, error })?;
    let mut pump = BufferedSocket::new(socket);
    pump.set_permit(permit);
    match tls {
        None => Ok(UpstreamStream::Plain(PlainStream::new(pump))),
        Some((config, name)) => {
            let failed = |error: HandshakeError| ConnectError::Tls { addr, error };
            let connection = ClientConnection::new(Arc::clone(config), name)
                .map_err(|error| failed(TransportError::from(error).into()))?;
            let mut connection = TlsTransport::from(connection);
            // A node that refuses us says why, and may close before it has read all that we say meanwhile.
            pump.ignore_write_errors(true);
            match handshake::drive(&mut connection, &mut pump).await {
                Ok(()) => {
                    pump.ignore_write_errors(false);
                    Ok(UpstreamStream::Tls(TlsStream::new(connection, pump)))
                }
                Err(error) => {
                    runtime::spawn(handshake::lingering_close(pump));
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
            // The exchange that uses the connection sees its errors; between exchanges an end is no
            // error.
            Poll::Pending => connection.as_mut().poll(cx).map(drop),
        })
        .await;
    });
    Ok(HttpConnection { sender, abort })
}
