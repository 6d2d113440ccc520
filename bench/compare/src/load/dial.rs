//! One connection: TCP, then TLS with the client's certificate.
//!
//! The negotiated parameters go into the report, which shows whether two servers did the same work.

use std::sync::Arc;

use rustls::{ClientConfig, HandshakeKind};
use tokio::io::ReadBuf;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::failure::{Failure, FailureKind};
use crate::report::Negotiated;
use crate::target::Target;

#[derive(Clone)]
pub struct Dialler {
    target: Target,
    connector: TlsConnector,
}

impl Dialler {
    /// Connections of one dialler share the configuration's tickets, if it keeps any.
    pub fn new(target: Target, config: Arc<ClientConfig>) -> Self {
        Self { target, connector: TlsConnector::from(config) }
    }

    /// Opens a connection and completes its handshake; the caller bounds the time.
    ///
    /// # Errors
    /// [`FailureKind::Connect`] or [`FailureKind::Handshake`].
    pub async fn dial(&self) -> Result<TlsStream<TcpStream>, Failure> {
        let connect = |error| Failure::new(FailureKind::Connect, error);
        let tcp = TcpStream::connect(self.target.address).await.map_err(connect)?;
        tcp.set_nodelay(true).map_err(connect)?;
        let name = self.target.server_name.clone();
        self.connector.connect(name, tcp).await.map_err(|error| Failure::new(FailureKind::Handshake, error))
    }
}

/// Whether the session was resumed.
pub(super) fn resumed(stream: &TlsStream<TcpStream>) -> bool {
    stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed)
}

/// Whether an idle connection is readable: its end, or the `close_notify` before it.
pub(super) fn closing(stream: &TcpStream) -> bool {
    let mut byte = [std::mem::MaybeUninit::uninit()];
    let mut peeked = ReadBuf::uninit(&mut byte);
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    stream.poll_peek(&mut context, &mut peeked).is_ready()
}

/// The negotiated parameters; `None` before the end of the handshake.
pub(super) fn negotiated(stream: &TlsStream<TcpStream>) -> Option<Negotiated> {
    let connection = stream.get_ref().1;
    Some(Negotiated {
        version: format!("{:?}", connection.protocol_version()?),
        suite: format!("{:?}", connection.negotiated_cipher_suite()?.suite()),
        group: connection.negotiated_key_exchange_group().map(|group| format!("{:?}", group.name())),
        alpn: connection.alpn_protocol().map(|name| String::from_utf8_lossy(name).into_owned()),
        server_chain: connection.peer_certificates().map_or(0, <[_]>::len),
    })
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[tokio::test]
    async fn an_idle_connection_with_bytes_to_read_is_closing() {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let pair = async || {
            let (ours, theirs) =
                tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
            (ours.unwrap(), theirs.unwrap().0)
        };
        let (ours, theirs) = pair().await;
        assert!(!closing(&ours));
        drop(theirs);
        ours.readable().await.unwrap();
        assert!(closing(&ours), "its end");

        let (ours, mut theirs) = pair().await;
        theirs.write_all(b"close_notify").await.unwrap();
        ours.readable().await.unwrap();
        assert!(closing(&ours), "what comes before the end");
    }
}
