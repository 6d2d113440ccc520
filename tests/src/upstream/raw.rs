//! An upstream that is a bare socket: it records requests as bytes and sends the bytes that a test wrote.
//!
//! It knows just enough of HTTP/1 to find the end of a request. What it sends is not checked: answers that break the
//! protocol are what it is for.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::SupportedProtocolVersion;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::client::bounded;
use crate::credentials::Credential;
use crate::tls::server_config;

/// A request as it came over the wire.
#[derive(Clone, Debug)]
pub struct RawRequest {
    /// The connection it came on; the first is 1.
    pub connection: usize,
    /// The request line and the header fields, up to the empty line.
    pub head: String,
    /// All that followed, its chunked coding included.
    pub body: String,
}

impl RawRequest {
    /// The values of a header field, in order; the name is compared without case.
    pub fn values(&self, name: &str) -> Vec<&str> {
        let fields = self.head.lines().skip(1).filter_map(|line| line.split_once(':'));
        fields.filter(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).collect()
    }

    /// The method.
    pub fn method(&self) -> &str {
        self.head.split(' ').next().unwrap_or_default()
    }

    /// The request target.
    pub fn target(&self) -> &str {
        self.head.split(' ').nth(1).unwrap_or_default()
    }

    /// The HTTP version of the request line.
    pub fn version(&self) -> &str {
        self.head.lines().next().and_then(|line| line.rsplit(' ').next()).unwrap_or_default()
    }
}

/// What becomes of the connection after an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// It stays open for the next request.
    Keep,
    /// The socket ends with FIN; within TLS without close_notify.
    Fin,
    /// close_notify, then FIN. In clear text the same as [`Then::Fin`].
    CloseNotify,
    /// The socket ends with RST.
    Reset,
}

/// What a test has the upstream do with a request.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Every byte that is sent.
    pub bytes: Vec<u8>,
    /// Sent as soon as the head has come; the body is not read.
    pub early: bool,
    /// What becomes of the connection.
    pub then: Then,
}

impl Answer {
    /// These bytes, after the whole request; the connection stays open.
    pub fn keep(bytes: impl Into<Vec<u8>>) -> Self {
        Self { bytes: bytes.into(), early: false, then: Then::Keep }
    }

    /// Ends the connection this way afterwards.
    pub fn then(mut self, then: Then) -> Self {
        self.then = then;
        self
    }

    /// Sent without reading the request's body.
    pub fn early(mut self) -> Self {
        self.early = true;
        self
    }
}

/// Decides on an answer when the head of a request has come; its body is still empty then.
type Script = dyn Fn(&RawRequest) -> Answer + Send + Sync;

/// A running upstream; it ends with this value.
pub struct RawUpstream {
    address: SocketAddr,
    requests: UnboundedReceiver<RawRequest>,
    task: JoinHandle<()>,
}

impl RawUpstream {
    /// In clear text, on a free port.
    pub async fn plain(script: impl Fn(&RawRequest) -> Answer + Send + Sync + 'static) -> Self {
        Self::start(None, Arc::new(script)).await
    }

    /// Within TLS of these versions, on a free port.
    pub async fn tls(
        credential: &Credential,
        versions: &[&'static SupportedProtocolVersion],
        script: impl Fn(&RawRequest) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let config = server_config(versions, credential, None);
        Self::start(Some(TlsAcceptor::from(Arc::new(config))), Arc::new(script)).await
    }

    async fn start(acceptor: Option<TlsAcceptor>, script: Arc<Script>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a listener has an address");
        let (seen, requests) = unbounded_channel();
        let task = tokio::spawn(accept(listener, acceptor, script, seen));
        Self { address, requests, task }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The next request whose head has come, with its body unless it was answered early.
    ///
    /// # Panics
    /// When none comes.
    pub async fn request(&mut self) -> RawRequest {
        bounded("a request at the upstream", self.requests.recv()).await.expect("the upstream runs")
    }

    /// The requests that have come and were not looked at yet.
    pub fn waiting(&mut self) -> Vec<RawRequest> {
        std::iter::from_fn(|| self.requests.try_recv().ok()).collect()
    }
}

impl Drop for RawUpstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(
    listener: TcpListener,
    acceptor: Option<TlsAcceptor>,
    script: Arc<Script>,
    seen: UnboundedSender<RawRequest>,
) {
    let mut connections = JoinSet::new();
    for connection in 1.. {
        let Ok((tcp, _)) = listener.accept().await else { continue };
        let _ = tcp.set_nodelay(true);
        let (acceptor, script, seen) = (acceptor.clone(), Arc::clone(&script), seen.clone());
        connections.spawn(async move {
            let wire = match acceptor {
                None => Wire::Plain(tcp),
                Some(acceptor) => match acceptor.accept(tcp).await {
                    Ok(tls) => Wire::Tls(Box::new(tls)),
                    Err(_) => return,
                },
            };
            // A gateway that hangs up is no failure of the upstream; the test sees what it did.
            let _ = serve(wire, connection, &*script, &seen).await;
        });
    }
}

async fn serve(
    mut wire: Wire,
    connection: usize,
    script: &Script,
    seen: &UnboundedSender<RawRequest>,
) -> io::Result<()> {
    let mut read = Vec::new();
    loop {
        let head = loop {
            if let Some(end) = find(&read, b"\r\n\r\n") {
                let rest = read.split_off(end + 4);
                break String::from_utf8_lossy(&std::mem::replace(&mut read, rest)).into_owned();
            }
            wire.read(&mut read).await?;
        };
        let mut request = RawRequest { connection, head, body: String::new() };
        let answer = script(&request);
        if !answer.early {
            let body = body(&mut wire, &mut read, &request).await?;
            request.body = String::from_utf8_lossy(&body).into_owned();
        }
        let _ = seen.send(request);
        wire.write(&answer.bytes).await?;
        match answer.then {
            // What follows is the rest of that request, not another one.
            Then::Keep if answer.early => loop {
                wire.read(&mut read).await?;
            },
            Then::Keep => {}
            then => return wire.end(then).await,
        }
    }
}

/// Reads what the request's framing fields announce.
async fn body(wire: &mut Wire, read: &mut Vec<u8>, request: &RawRequest) -> io::Result<Vec<u8>> {
    const LAST_CHUNK: &[u8] = b"0\r\n\r\n";
    let end = if !request.values("transfer-encoding").is_empty() {
        loop {
            // The bodies that tests send do not look like it.
            if let Some(at) = find(read, LAST_CHUNK) {
                break at + LAST_CHUNK.len();
            }
            wire.read(read).await?;
        }
    } else {
        let length = request.values("content-length").first().and_then(|value| value.parse().ok());
        let length = length.unwrap_or_default();
        while read.len() < length {
            wire.read(read).await?;
        }
        length
    };
    let rest = read.split_off(end);
    Ok(std::mem::replace(read, rest))
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

enum Wire {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Wire {
    async fn read(&mut self, into: &mut Vec<u8>) -> io::Result<()> {
        let read = match self {
            Self::Plain(tcp) => tcp.read_buf(into).await?,
            Self::Tls(tls) => tls.read_buf(into).await?,
        };
        if read == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }

    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Plain(tcp) => tcp.write_all(bytes).await,
            Self::Tls(tls) => {
                tls.write_all(bytes).await?;
                tls.flush().await
            }
        }
    }

    async fn end(self, how: Then) -> io::Result<()> {
        let mut tcp = match self {
            Self::Plain(tcp) => tcp,
            Self::Tls(mut tls) if how == Then::CloseNotify => return tls.shutdown().await,
            Self::Tls(tls) => tls.into_inner().0,
        };
        if how == Then::Reset {
            return socket2::SockRef::from(&tcp).set_linger(Some(Duration::ZERO));
        }
        tcp.shutdown().await?;
        // What the gateway still sends is read, so that the FIN is not followed by a RST.
        while tcp.read(&mut [0; 4096]).await? > 0 {}
        Ok(())
    }
}
