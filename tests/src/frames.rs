//! HTTP/2 frames that no client library sends: floods, and requests that make the server reset them
//! (RFC 9113).
//!
//! A handful of frame types, and requests with uncompressed header blocks.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

use crate::client::{Http, HttpClient, bounded};
use crate::process::EVENT_TIMEOUT;

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

/// Flag of SETTINGS and PING.
pub const ACK: u8 = 1;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// Bytes of a frame's header.
const HEADER: usize = 9;
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Silence of the server before [`FrameConnection::drip`] sends more.
const SILENCE: Duration = Duration::from_millis(100);

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a frame's length");
    let mut bytes = length.to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// The header block of a request: method and scheme from the static table, the rest as literals
/// without indexing.
pub fn request_block(method: &str, host: &str, path: &str) -> Vec<u8> {
    let mut block = vec![if method == "POST" { 0x83 } else { 0x82 }, 0x87];
    for (name, value) in [(0x01, host), (0x04, path)] {
        block.extend([name, u8::try_from(value.len()).expect("a short value")]);
        block.extend(value.bytes());
    }
    block
}

/// SETTINGS with this initial window for each stream.
pub fn window_settings(window: u32) -> Vec<u8> {
    let payload = [&4_u16.to_be_bytes()[..], &window.to_be_bytes()].concat();
    frame(SETTINGS, 0, 0, &payload)
}

/// Opens the window of a stream, or of the connection (0).
pub fn window_update(stream: u32, bytes: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &bytes.to_be_bytes())
}

/// A GET with a complete head.
pub fn get(stream: u32, host: &str, path: &str) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, stream, &request_block("GET", host, path))
}

/// A POST whose body follows.
pub fn post(stream: u32, host: &str, path: &str) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &request_block("POST", host, path))
}

/// The frames of the server so far.
#[derive(Clone, Debug, Default)]
pub struct ReceivedFrames {
    /// The error code of its GOAWAY: 0 is none, 11 `ENHANCE_YOUR_CALM`.
    pub goaway: Option<u32>,
    pub resets: usize,
    /// HEADERS frames: responses.
    pub answers: usize,
    /// Their header blocks.
    pub blocks: Vec<Vec<u8>>,
    /// The streams that it reset, and the error codes.
    pub reset: Vec<(u32, u32)>,
    /// The streams that it ended.
    pub whole: Vec<u32>,
    /// Bytes of bodies.
    pub data: usize,
    /// The payloads of its PINGs.
    pub pings: Vec<Vec<u8>>,
    /// The server has ended the connection.
    pub over: bool,
}

/// A connection with hand-made frames; a task reads the server's.
pub struct FrameConnection {
    writer: WriteHalf<TlsStream<TcpStream>>,
    reader: JoinHandle<()>,
    heard: watch::Receiver<ReceivedFrames>,
}

impl FrameConnection {
    /// Connects, and sends the preface and empty SETTINGS.
    pub async fn connect(client: &HttpClient) -> Self {
        Self::begin(client, &[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await
    }

    /// Connects, and sends the preface and SETTINGS with this window for each stream.
    pub async fn with_window(client: &HttpClient, window: u32) -> Self {
        Self::begin(client, &[PREFACE, &window_settings(window)].concat()).await
    }

    /// Connects, and sends these bytes.
    pub async fn begin(client: &HttpClient, hello: &[u8]) -> Self {
        let client = client.clone().http(Http::Two);
        let stream = client.handshake_with(Arc::new(client.config())).await;
        let (reader, mut writer) = tokio::io::split(stream.unwrap_or_else(|error| panic!("{error}")));
        writer.write_all(hello).await.expect("a new connection takes the preface");
        writer.flush().await.expect("a new connection takes the preface");
        let (sender, heard) = watch::channel(ReceivedFrames::default());
        Self { writer, reader: tokio::spawn(listen(reader, sender)), heard }
    }

    /// Waits until the received frames are `like` this.
    pub async fn until(&mut self, what: &str, like: impl FnMut(&ReceivedFrames) -> bool) -> ReceivedFrames {
        bounded(what, self.heard.wait_for(like)).await.unwrap_or_else(|_| panic!("{what}")).clone()
    }

    /// Sends `bytes` whenever the server was silent for a while, until the received frames are
    /// `like` this.
    pub async fn drip(
        &mut self,
        what: &str,
        mut bytes: impl FnMut(u32) -> Vec<u8>,
        like: impl Fn(&ReceivedFrames) -> bool,
    ) -> ReceivedFrames {
        let started = Instant::now();
        for round in 0.. {
            assert!(started.elapsed() < EVENT_TIMEOUT, "{what}");
            if let Ok(heard) = timeout(SILENCE, self.heard.wait_for(&like)).await {
                return heard.unwrap_or_else(|_| panic!("{what}")).clone();
            }
            // Fails once the server has closed, which the received frames show.
            let _ = self.send(&bytes(round)).await;
        }
        unreachable!("rounds are bounded by time")
    }

    /// Sends these bytes. False once the server has ended the connection.
    pub async fn send(&mut self, bytes: &[u8]) -> bool {
        let sent = bounded("the server reads or hangs up", async {
            self.writer.write_all(bytes).await?;
            self.writer.flush().await
        });
        sent.await.is_ok()
    }

    /// Waits until the server ends the connection, and answers its PINGs meanwhile.
    pub async fn ended(mut self) -> ReceivedFrames {
        let mut answered = 0;
        loop {
            let news = |heard: &ReceivedFrames| heard.over || heard.pings.len() > answered;
            let heard = self.until("the server ends the connection", news).await;
            if heard.over {
                self.reader.await.expect("the reader runs");
                return heard;
            }
            for ping in &heard.pings[answered..] {
                // The server may have closed already.
                let _ = self.send(&frame(PING, ACK, 0, ping)).await;
            }
            answered = heard.pings.len();
        }
    }
}

async fn listen(mut reader: ReadHalf<TlsStream<TcpStream>>, sender: watch::Sender<ReceivedFrames>) {
    let mut header = [0; HEADER];
    while reader.read_exact(&mut header).await.is_ok() {
        let [a, b, c, kind, flags, stream @ ..] = header;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        if reader.read_exact(&mut payload).await.is_err() {
            break;
        }
        sender.send_modify(|heard| heard.take(kind, flags, u32::from_be_bytes(stream), payload));
    }
    sender.send_modify(|heard| heard.over = true);
}

impl ReceivedFrames {
    fn take(&mut self, kind: u8, flags: u8, stream: u32, payload: Vec<u8>) {
        let number = |at: usize| {
            payload.get(at..at + 4).map(|bytes| u32::from_be_bytes(bytes.try_into().expect("4 bytes")))
        };
        match kind {
            GOAWAY => self.goaway = number(4),
            PING if flags & ACK == 0 => self.pings.push(payload),
            RST_STREAM => {
                self.resets += 1;
                self.reset.push((stream, number(0).unwrap_or_default()));
            }
            DATA => self.data += payload.len(),
            HEADERS => {
                self.answers += 1;
                self.blocks.push(payload);
            }
            _ => {}
        }
        if matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0 {
            self.whole.push(stream);
        }
    }
}
