//! An upstream on a bare socket: it records requests as bytes and sends bytes that a test wrote.
//!
//! It knows enough of HTTP/1 to find the end of a request. Its responses may break the protocol.

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

/// A request as received.
#[derive(Clone, Debug)]
pub struct RawRequest {
    /// The number of its connection; the first is 1.
    pub connection: usize,
    /// The request line and the header fields, up to the empty line.
    pub head: String,
    /// The rest, with its chunked coding.
    pub body: String,
}

impl RawRequest {
    /// The values of a header field in order; names compare without case.
    pub fn values(&self, name: &str) -> Vec<&str> {
        let fields = self.head.lines().skip(1).filter_map(|line| line.split_once(':'));
        fields.filter(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).collect()
    }

    pub fn method(&self) -> &str {
        self.head.split(' ').next().unwrap_or_default()
    }

    pub fn target(&self) -> &str {
        self.head.split(' ').nth(1).unwrap_or_default()
    }

    pub fn version(&self) -> &str {
        self.head.lines().next().and_then(|line| line.rsplit(' ').next()).unwrap_or_default()
    }
}

/// What happens to the connection after a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterResponse {
    /// It stays open for the next request.
    Keep,
    /// FIN; within TLS without close_notify.
    Fin,
    /// close_notify, then FIN. In clear text the same as [`AfterResponse::Fin`].
    CloseNotify,
    /// RST.
    Reset,
}

/// The response to a request.
#[derive(Clone, Debug)]
pub struct RawResponse {
    pub bytes: Vec<u8>,
    /// Sent after the head, without reading the body.
    pub early: bool,
    pub then: AfterResponse,
}

impl RawResponse {
    /// Sent after the whole request; the connection stays open.
    pub fn keep(bytes: impl Into<Vec<u8>>) -> Self {
        Self { bytes: bytes.into(), early: false, then: AfterResponse::Keep }
    }

    /// Ends the connection this way afterwards.
    pub fn then(mut self, then: AfterResponse) -> Self {
        self.then = then;
        self
    }

    /// Sent without reading the request's body.
    pub fn early(mut self) -> Self {
        self.early = true;
        self
    }
}

/// Chooses a response when the head of a request has arrived; its body is still empty then.
type Respond = dyn Fn(&RawRequest) -> RawResponse + Send + Sync;

/// A running upstream; dropping it ends it.
pub struct RawUpstream {
    address: SocketAddr,
    requests: UnboundedReceiver<RawRequest>,
    task: JoinHandle<()>,
}

impl RawUpstream {
    /// In clear text.
    pub async fn plain(script: impl Fn(&RawRequest) -> RawResponse + Send + Sync + 'static) -> Self {
        Self::start(None, Arc::new(script)).await
    }

    /// Over TLS of these versions.
    pub async fn tls(
        credential: &Credential,
        versions: &[&'static SupportedProtocolVersion],
        script: impl Fn(&RawRequest) -> RawResponse + Send + Sync + 'static,
    ) -> Self {
        let config = server_config(versions, credential, None);
        Self::start(Some(TlsAcceptor::from(Arc::new(config))), Arc::new(script)).await
    }

    async fn start(acceptor: Option<TlsAcceptor>, script: Arc<Respond>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a listener has an address");
        let (seen, requests) = unbounded_channel();
        let task = tokio::spawn(accept(listener, acceptor, script, seen));
        Self { address, requests, task }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The next request, with its body unless the response was early.
    pub async fn request(&mut self) -> RawRequest {
        bounded("a request at the upstream", self.requests.recv()).await.expect("the upstream runs")
    }

    /// The requests that arrived and were not taken yet.
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
    script: Arc<Respond>,
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
            // The gateway may close the connection; the test sees what it did.
            let _ = serve(wire, connection, &*script, &seen).await;
        });
    }
}

async fn serve(
    mut wire: Wire,
    connection: usize,
    script: &Respond,
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
            // The rest belongs to that request.
            AfterResponse::Keep if answer.early => loop {
                wire.read(&mut read).await?;
            },
            AfterResponse::Keep => {}
            then => return wire.end(then).await,
        }
    }
}

/// Reads the body by the request's framing fields.
async fn body(wire: &mut Wire, read: &mut Vec<u8>, request: &RawRequest) -> io::Result<Vec<u8>> {
    const LAST_CHUNK: &[u8] = b"0\r\n\r\n";
    let end = if !request.values("transfer-encoding").is_empty() {
        loop {
            // No test's body contains it.
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

    async fn end(self, how: AfterResponse) -> io::Result<()> {
        let mut tcp = match self {
            Self::Plain(tcp) => tcp,
            Self::Tls(mut tls) if how == AfterResponse::CloseNotify => return tls.shutdown().await,
            Self::Tls(tls) => tls.into_inner().0,
        };
        if how == AfterResponse::Reset {
            return socket2::SockRef::from(&tcp).set_linger(Some(Duration::ZERO));
        }
        tcp.shutdown().await?;
        // Reads the rest, so that no RST follows the FIN.
        while tcp.read(&mut [0; 4096]).await? > 0 {}
        Ok(())
    }
}

/// An upstream that responds to requests without bodies with their head, byte for byte.
pub struct HeadEcho {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl HeadEcho {
    pub async fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let address = listener.local_addr().expect("a listener has an address");
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(echo_heads(stream));
            }
        });
        Self { address, task }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for HeadEcho {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn echo_heads(mut stream: TcpStream) {
    let mut got = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        while let Some(end) = got.windows(4).position(|four| four == b"\r\n\r\n") {
            let head: Vec<u8> = got.drain(..end + 4).collect();
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", head.len());
            if stream.write_all(&[answer.as_bytes(), &head].concat()).await.is_err() {
                return;
            }
        }
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(read) => got.extend_from_slice(&buffer[..read]),
        }
    }
}
