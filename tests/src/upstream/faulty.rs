//! An upstream with one fault: it ends, resets or stalls each connection at a point of the
//! exchange, or sends bytes that no protocol has there.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustls::SupportedProtocolVersion;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use crate::credentials::Credential;
use crate::tls::server_config;

/// How far an exchange goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultPoint {
    /// The connection is accepted.
    Accepted,
    /// Its first bytes arrived: the ClientHello, or the request in clear text.
    FirstBytes,
    /// The TLS handshake is over. In clear text the same as [`FaultPoint::Accepted`].
    Handshake,
    /// The request's head arrived.
    Head,
    /// Half of the response's head was sent.
    HalfHead,
    /// Half of the response's body was sent.
    HalfBody,
}

/// What happens there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// FIN, within TLS without close_notify.
    Close,
    /// RST.
    Reset,
    /// Nothing, for as long as the other side waits.
    Stall,
    /// These bytes, below TLS, and then nothing.
    Speak(&'static str),
}

/// A running upstream; dropping it ends it.
pub struct FaultyUpstream {
    address: SocketAddr,
    heads: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl FaultyUpstream {
    /// In clear text.
    pub async fn plain(point: FaultPoint, fault: Fault) -> Self {
        Self::start(None, point, fault).await
    }

    /// Within TLS of these versions.
    pub async fn tls(
        credential: &Credential,
        versions: &[&'static SupportedProtocolVersion],
        point: FaultPoint,
        fault: Fault,
    ) -> Self {
        let acceptor = TlsAcceptor::from(Arc::new(server_config(versions, credential, None)));
        Self::start(Some(acceptor), point, fault).await
    }

    async fn start(acceptor: Option<TlsAcceptor>, point: FaultPoint, fault: Fault) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a listener has an address");
        let heads = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&heads);
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((tcp, _)) = listener.accept().await {
                let script = FaultScript { point, fault, heads: Arc::clone(&counter) };
                let acceptor = acceptor.clone();
                // The gateway may close first.
                connections.spawn(async move { drop(script.run(tcp, acceptor).await) });
            }
        });
        Self { address, heads, task }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Heads of requests that arrived so far.
    pub fn heads(&self) -> u64 {
        self.heads.load(Ordering::SeqCst)
    }
}

impl Drop for FaultyUpstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct FaultScript {
    point: FaultPoint,
    fault: Fault,
    heads: Arc<AtomicU64>,
}

impl FaultScript {
    async fn run(self, mut tcp: TcpStream, acceptor: Option<TlsAcceptor>) -> io::Result<()> {
        match self.point {
            FaultPoint::Accepted => return fail(tcp, self.fault).await,
            FaultPoint::FirstBytes => {
                // However many they are.
                let _ = tcp.read(&mut [0; 16 * 1024]).await?;
                return fail(tcp, self.fault).await;
            }
            _ => {}
        }
        match acceptor {
            None => self.exchange(&mut tcp).await?,
            Some(acceptor) => {
                let mut tls = acceptor.accept(tcp).await?;
                self.exchange(&mut tls).await?;
                tcp = tls.into_inner().0;
            }
        }
        fail(tcp, self.fault).await
    }

    /// Goes on to the point of the fault.
    async fn exchange(&self, stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> io::Result<()> {
        if self.point == FaultPoint::Handshake {
            return Ok(());
        }
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await?);
        }
        self.heads.fetch_add(1, Ordering::SeqCst);
        let answer: &[u8] = match self.point {
            FaultPoint::HalfHead => b"HTTP/1.1 200 OK\r\nContent-Le",
            FaultPoint::HalfBody => b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello",
            _ => b"",
        };
        stream.write_all(answer).await?;
        stream.flush().await
    }
}

async fn fail(mut tcp: TcpStream, fault: Fault) -> io::Result<()> {
    match fault {
        Fault::Reset => return socket2::SockRef::from(&tcp).set_linger(Some(Duration::ZERO)),
        Fault::Close => tcp.shutdown().await?,
        Fault::Speak(bytes) => tcp.write_all(bytes.as_bytes()).await?,
        Fault::Stall => {}
    }
    // Until the other side ends it, so that no RST follows.
    while tcp.read(&mut [0; 16 * 1024]).await? > 0 {}
    Ok(())
}
