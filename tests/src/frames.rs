//! HTTP/2 frames by hand, for what no client library sends: floods, and requests that make the server reset them (RFC 9113).
//!
//! Only what the suites need: a handful of frame types, and requests whose header block is never compressed.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_rustls::client::TlsStream;

use crate::caller::{Caller, Http, bounded};

/// A piece of a body.
pub const DATA: u8 = 0;
/// Opens a stream.
pub const HEADERS: u8 = 1;
/// Gives a stream up.
pub const RST_STREAM: u8 = 3;
/// Begins a connection.
pub const SETTINGS: u8 = 4;
/// Asks whether the other side is there.
pub const PING: u8 = 6;
/// Ends a connection.
pub const GOAWAY: u8 = 7;
/// Lets the other side send more.
pub const WINDOW_UPDATE: u8 = 8;
/// More of a header block.
pub const CONTINUATION: u8 = 9;

/// Flag of SETTINGS and PING: the answer to one.
pub const ACK: u8 = 1;
/// Flag: nothing follows on this stream.
pub const END_STREAM: u8 = 1;
/// Flag: the header block is complete.
pub const END_HEADERS: u8 = 4;

/// Bytes of a frame's header.
const HEADER: usize = 9;

/// One frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a frame's length");
    let mut bytes = length.to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// The header block of a request: method and scheme from the static table, the rest as literals that are not remembered.
pub fn request_block(method: &str, host: &str, path: &str) -> Vec<u8> {
    let mut block = vec![if method == "POST" { 0x83 } else { 0x82 }, 0x87];
    for (name, value) in [(0x01, host), (0x04, path)] {
        block.extend([name, u8::try_from(value.len()).expect("a short value")]);
        block.extend(value.bytes());
    }
    block
}

/// What the server sent until it ended the connection.
#[derive(Debug, Default)]
pub struct Heard {
    /// The error code of its GOAWAY: 0 is none, 11 `ENHANCE_YOUR_CALM`.
    pub goaway: Option<u32>,
    /// RST_STREAM frames.
    pub resets: usize,
    /// HEADERS frames: answers.
    pub answers: usize,
    /// Their header blocks.
    pub blocks: Vec<Vec<u8>>,
}

/// A connection on which frames are written by hand, and read by a task of its own.
pub struct Wire {
    writer: WriteHalf<TlsStream<TcpStream>>,
    reader: JoinHandle<Heard>,
    pings: mpsc::UnboundedReceiver<Vec<u8>>,
}

impl Wire {
    /// Connects, with the preface and empty SETTINGS already said.
    ///
    /// # Panics
    /// When the handshake is refused.
    pub async fn connect(caller: &Caller) -> Self {
        let caller = caller.clone().http(Http::Two);
        let stream = caller.handshake_with(Arc::new(caller.config())).await;
        let (reader, mut writer) = tokio::io::split(stream.unwrap_or_else(|refused| panic!("{refused}")));
        let mut hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        hello.extend(frame(SETTINGS, 0, 0, &[]));
        writer.write_all(&hello).await.expect("a new connection takes the preface");
        let (ping, pings) = mpsc::unbounded_channel();
        Self { writer, reader: tokio::spawn(listen(reader, ping)), pings }
    }

    /// Sends these bytes. False once the server has ended the connection.
    pub async fn send(&mut self, bytes: &[u8]) -> bool {
        let sent = bounded("the server reads or hangs up", async {
            self.writer.write_all(bytes).await?;
            self.writer.flush().await
        });
        sent.await.is_ok()
    }

    /// Waits until the server has ended the connection by itself, and answers its PINGs meanwhile.
    ///
    /// # Panics
    /// When it does not.
    pub async fn ended(mut self) -> Heard {
        while let Some(ping) = bounded("the server ends the connection", self.pings.recv()).await {
            // It may have gone already.
            let _ = self.send(&frame(PING, ACK, 0, &ping)).await;
        }
        bounded("the server ends the connection", self.reader).await.expect("the reader runs")
    }
}

async fn listen(mut reader: ReadHalf<TlsStream<TcpStream>>, pings: mpsc::UnboundedSender<Vec<u8>>) -> Heard {
    let mut heard = Heard::default();
    let mut header = [0; HEADER];
    while reader.read_exact(&mut header).await.is_ok() {
        let [a, b, c, kind, flags, ..] = header;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        if reader.read_exact(&mut payload).await.is_err() {
            break;
        }
        match kind {
            GOAWAY => {
                heard.goaway =
                    payload.get(4..8).map(|code| u32::from_be_bytes(code.try_into().expect("4 bytes")))
            }
            PING if flags & ACK == 0 => drop(pings.send(payload)),
            RST_STREAM => heard.resets += 1,
            HEADERS => {
                heard.answers += 1;
                heard.blocks.push(payload);
            }
            _ => {}
        }
    }
    heard
}
