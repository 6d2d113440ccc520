//! A WebSocket of the load: its handshake, and one message that comes back as it was sent.
//!
//! Message and answer are prepared bytes, so that the load stays cheap beside the server.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::dial::Dialler;
use crate::failure::{Failure, FailureKind};
use crate::target::Target;

/// The key and its answer are those of RFC 6455 section 1.3.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &[u8] = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
/// Bytes of a message.
const MESSAGE: u8 = 125;
/// A binary message, whole.
const BINARY: u8 = 0x82;
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
/// A longer head is a failure.
const HEAD_MAX: usize = 16 << 10;

/// An open socket.
pub(super) struct Socket {
    pub(super) stream: Box<TlsStream<TcpStream>>,
    buffer: Vec<u8>,
}

impl Socket {
    /// Dials and upgrades.
    pub(super) async fn open(dialler: &Dialler, target: &Target) -> Result<Self, Failure> {
        let stream = Box::new(dialler.dial().await?);
        let mut socket = Self { stream, buffer: Vec::with_capacity(4096) };
        let request = format!(
            "GET {} HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\r\n",
            target.path, target.host
        );
        socket.send(request.as_bytes()).await?;
        while !socket.buffer.ends_with(b"\r\n\r\n") {
            socket.fill().await?;
            if socket.buffer.len() > HEAD_MAX {
                return Err(Failure::new(FailureKind::Malformed, "a head above 16 KiB"));
            }
        }
        let head = &socket.buffer;
        let status = String::from_utf8_lossy(head.get(9..12).unwrap_or_default()).into_owned();
        if status != "101" {
            return Err(Failure::new(FailureKind::Status, format!("{status} instead of 101")));
        }
        if !head.windows(ACCEPT.len()).any(|window| window == ACCEPT) {
            return Err(Failure::new(FailureKind::Malformed, "no Sec-WebSocket-Accept of the key"));
        }
        socket.buffer.clear();
        Ok(socket)
    }

    /// Sends a message and reads it back.
    pub(super) async fn echo(&mut self) -> Result<(), Failure> {
        let (sent, expected) = frames();
        self.send(&sent).await?;
        self.buffer.clear();
        while self.buffer.len() < expected.len() {
            self.fill().await?;
        }
        if self.buffer == expected {
            return Ok(());
        }
        Err(Failure::new(FailureKind::Malformed, "another message came back"))
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let sent = async {
            self.stream.write_all(bytes).await?;
            self.stream.flush().await
        };
        sent.await.map_err(|error| Failure::new(FailureKind::Send, error))
    }

    async fn fill(&mut self) -> Result<(), Failure> {
        match self.stream.read_buf(&mut self.buffer).await {
            Ok(0) => Err(Failure::new(FailureKind::Receive, "the socket ended")),
            Ok(_) => Ok(()),
            Err(error) => Err(Failure::new(FailureKind::Receive, error)),
        }
    }
}

/// The message, masked as a client must, and as the server sends it back.
fn frames() -> (Vec<u8>, Vec<u8>) {
    let mut sent = vec![BINARY, 0x80 | MESSAGE];
    sent.extend(MASK);
    sent.extend((0..MESSAGE).zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    let mut expected = vec![BINARY, MESSAGE];
    expected.extend(0..MESSAGE);
    (sent, expected)
}
