//! An upstream of HTTP/2 in clear text whose frames a test has made, broken ones included.
//!
//! Each connection runs the same steps, while its other half reads what the gateway sends.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::OwnedReadHalf;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use crate::client::bounded;
use crate::frames::{ACK, END_HEADERS, END_STREAM, HEADERS, PREFACE, SETTINGS, frame};

/// `:status: 200` of HPACK's static table.
pub const OK: &[u8] = &[0x88];
/// Bytes of a flood that are written at a time.
const FLOOD: usize = 64 * 1024;

/// Empty SETTINGS, and the acknowledgement of the gateway's.
pub fn greeting() -> Vec<u8> {
    [frame(SETTINGS, 0, 0, &[]), frame(SETTINGS, ACK, 0, &[])].concat()
}

/// A response without a body.
pub fn whole_response(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, stream, OK)
}

/// A literal field without indexing, for a header block. Name and value are shorter than 127 bytes.
pub fn field(name: &str, value: &str) -> Vec<u8> {
    let length = |text: &str| u8::try_from(text.len()).expect("a short text");
    [&[0, length(name)], name.as_bytes(), &[length(value)], value.as_bytes()].concat()
}

/// What a connection does next.
#[derive(Clone, Debug)]
pub enum FrameStep {
    /// Waits until so many requests have arrived on this connection.
    Requests(usize),
    /// Writes these bytes.
    Send(Vec<u8>),
    /// Writes these bytes again and again, until the gateway ends the connection.
    Flood(Vec<u8>),
    /// FIN.
    Close,
    /// RST.
    Reset,
}

/// A running upstream; dropping it ends it.
pub struct FramedUpstream {
    address: SocketAddr,
    requests: watch::Sender<usize>,
    /// Open connections.
    open: watch::Sender<usize>,
    task: JoinHandle<()>,
}

impl FramedUpstream {
    /// Runs these steps on each connection, which then stays open.
    pub async fn start(steps: Vec<FrameStep>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a listener has an address");
        let requests = watch::Sender::new(0);
        let open = watch::Sender::new(0);
        let (all, now_open, steps) = (requests.clone(), open.clone(), Arc::new(steps));
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((tcp, _)) = listener.accept().await {
                let (all, now_open, steps) = (all.clone(), now_open.clone(), Arc::clone(&steps));
                connections.spawn(async move {
                    now_open.send_modify(|count| *count += 1);
                    // The gateway may close first.
                    drop(run(tcp, &steps, all).await);
                    now_open.send_modify(|count| *count -= 1);
                });
            }
        });
        Self { address, requests, open, task }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Heads of requests that arrived so far.
    pub fn requests(&self) -> usize {
        *self.requests.borrow()
    }

    /// Waits until so many heads of requests have arrived.
    pub async fn arrived(&self, count: usize) {
        let mut requests = self.requests.subscribe();
        let arrived = requests.wait_for(|seen| *seen >= count);
        bounded("a request at the upstream", arrived).await.expect("the upstream runs");
    }

    /// Waits until the gateway has no connection to it.
    pub async fn no_connection(&self) {
        let mut open = self.open.subscribe();
        let ended = open.wait_for(|open| *open == 0);
        bounded("the connections to the upstream end", ended).await.expect("the upstream runs");
    }
}

impl Drop for FramedUpstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(tcp: TcpStream, steps: &[FrameStep], all: watch::Sender<usize>) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    let (reader, mut writer) = tcp.into_split();
    let (counter, mut requests) = watch::channel(0);
    let mut reader = tokio::spawn(async move { read(reader, &counter, &all).await });
    let written = async {
        for step in steps {
            match step {
                FrameStep::Requests(count) => {
                    drop(requests.wait_for(|seen| seen >= count).await.map_err(io::Error::other)?);
                }
                FrameStep::Send(bytes) => writer.write_all(bytes).await?,
                FrameStep::Flood(bytes) => {
                    let bytes = bytes.repeat((FLOOD / bytes.len()).max(1));
                    loop {
                        writer.write_all(&bytes).await?;
                    }
                }
                FrameStep::Close => writer.shutdown().await?,
                FrameStep::Reset => {
                    socket2::SockRef::from(writer.as_ref()).set_linger(Some(Duration::ZERO))?;
                    return Err(io::ErrorKind::ConnectionReset.into());
                }
            }
        }
        io::Result::Ok(())
    };
    let result = written.await;
    if result.is_ok() {
        // Until the gateway ends it, so that no RST follows.
        let _ended = (&mut reader).await;
    }
    reader.abort();
    result
}

/// Reads frames to the end, and counts the heads of requests.
async fn read(
    mut reader: OwnedReadHalf,
    own: &watch::Sender<usize>,
    all: &watch::Sender<usize>,
) -> io::Result<()> {
    reader.read_exact(&mut [0; PREFACE.len()]).await?;
    let mut header = [0; 9];
    loop {
        reader.read_exact(&mut header).await?;
        let [a, b, c, kind, ..] = header;
        reader.read_exact(&mut vec![0; u32::from_be_bytes([0, a, b, c]) as usize]).await?;
        if kind == HEADERS {
            own.send_modify(|count| *count += 1);
            all.send_modify(|count| *count += 1);
        }
    }
}
