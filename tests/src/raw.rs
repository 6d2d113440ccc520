//! Raw bytes that no well-behaved client sends: garbage, halves, and a ClientHello in pieces.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;

use crate::client::bounded;

/// The ClientHello record of this client.
pub fn client_hello(config: ClientConfig, name: ServerName<'static>) -> Vec<u8> {
    let mut connection = ClientConnection::new(Arc::new(config), name).expect("a valid configuration");
    let mut bytes = Vec::new();
    connection.write_tls(&mut bytes).expect("a vector takes every byte");
    bytes
}

pub async fn send(address: SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.expect("the gateway accepts connections");
    stream.set_nodelay(true).expect("TCP_NODELAY can be set");
    // The gateway may close before it has read everything; its response tells more than this error.
    let _ = stream.write_all(bytes).await;
    stream
}

/// Reads until the peer ends the connection, gracefully or by a reset.
pub async fn until_closed(stream: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
    let mut all = Vec::new();
    let mut buffer = [0; 4096];
    bounded("the peer ends the connection", async {
        loop {
            match stream.read(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(read) => all.extend_from_slice(&buffer[..read]),
            }
        }
    })
    .await;
    all
}

/// A connection whose first bytes leave in pieces: `first` bytes in one segment, then `step` at a
/// time up to `until`.
pub struct Split<S> {
    inner: S,
    sent: usize,
    first: usize,
    step: usize,
    until: usize,
    pause: bool,
}

impl<S> Split<S> {
    /// Two segments, cut after `first` bytes.
    pub fn after(inner: S, first: usize) -> Self {
        Self { inner, sent: 0, first, step: usize::MAX, until: first, pause: false }
    }

    /// The first `until` bytes one by one.
    pub fn each_byte(inner: S, until: usize) -> Self {
        Self { inner, sent: 0, first: 1, step: 1, until, pause: false }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Split<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if std::mem::take(&mut this.pause) {
            // Lets the other side run between two pieces, probably.
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let limit = match this.sent {
            sent if sent < this.first => this.first - sent,
            sent if sent < this.until => this.step,
            _ => bytes.len(),
        };
        let written = std::task::ready!(
            Pin::new(&mut this.inner).poll_write(context, &bytes[..limit.min(bytes.len())])
        )?;
        this.sent += written;
        this.pause = this.sent <= this.until;
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Split<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}
