//! Scripted upstreams of TCP proxying: plain or TLS; a [`Script`] says what each connection does.
//!
//! An upstream records each connection (SNI and certificate, the bytes, how it ended), and a test
//! waits for that.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use data_encoding::HEXLOWER;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use crate::client::bounded;
use crate::credentials::{Authority, Credential, subject};
use crate::tls::{client_verifier, server_config};
use crate::upstream::{pattern, sha256};

/// What an upstream does with a connection.
#[derive(Clone, Copy, Debug)]
pub enum Script {
    /// Waits for bytes, sends `hello from NAME`, ends its direction, and reads to the end.
    Greet,
    /// Echoes until the client ends, then ends, too.
    Echo,
    /// Reads to the end, then sends `BYTES SHA256`.
    Digest,
    /// Sends so many bytes of the pattern, ends its direction, and reads to the end.
    Pour(usize),
    /// Neither reads nor writes.
    Silent,
}

/// The record of one connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConnectionRecord {
    /// The name in TLS.
    pub sni: Option<String>,
    pub client_subject: Option<String>,
    /// The ALPN protocol, if one was negotiated.
    pub alpn: Option<Vec<u8>>,
    pub bytes: usize,
    pub sha256: String,
    /// Whether the client ended its direction; `None` while it is open.
    pub ended: Option<bool>,
}

/// A running upstream; dropping it ends it.
pub struct TcpUpstream {
    address: SocketAddr,
    state: Arc<State>,
    task: JoinHandle<()>,
}

struct State {
    name: String,
    script: Script,
    /// Accepted TCP connections.
    accepted: watch::Sender<usize>,
    /// Connections after their handshake, in order.
    seen: watch::Sender<Vec<ConnectionRecord>>,
}

trait Both: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Both for T {}

impl TcpUpstream {
    pub async fn plain(name: &str, script: Script) -> Self {
        Self::start(name, script, None).await
    }

    /// TLS without client certificates.
    pub async fn tls(name: &str, script: Script, credential: &Credential) -> Self {
        let config = server_config(rustls::DEFAULT_VERSIONS, credential, None);
        Self::start(name, script, Some(config)).await
    }

    /// TLS that rejects clients without a certificate of `clients`.
    pub async fn demanding(name: &str, script: Script, credential: &Credential, clients: &Authority) -> Self {
        let verifier = client_verifier(clients.certificate_pem());
        let config = server_config(rustls::DEFAULT_VERSIONS, credential, Some(verifier));
        Self::start(name, script, Some(config)).await
    }

    async fn start(name: &str, script: Script, tls: Option<ServerConfig>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a listener has an address");
        let state = Arc::new(State {
            name: name.to_owned(),
            script,
            accepted: watch::Sender::new(0),
            seen: watch::Sender::new(Vec::new()),
        });
        let acceptor = tls.map(|mut config| {
            config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
            TlsAcceptor::from(Arc::new(config))
        });
        let task = tokio::spawn(accept_all(listener, acceptor, Arc::clone(&state)));
        Self { address, state, task }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Accepted TCP connections so far.
    pub fn connections(&self) -> usize {
        *self.state.accepted.borrow()
    }

    /// The record of the n-th connection (from 0), once `fits` is true of it.
    pub async fn saw(&self, nth: usize, fits: impl Fn(&ConnectionRecord) -> bool) -> ConnectionRecord {
        let mut seen = self.state.seen.subscribe();
        let fitting = seen.wait_for(|seen| seen.get(nth).is_some_and(&fits));
        let seen = bounded("an upstream's connection", fitting).await.expect("the upstream lives");
        seen[nth].clone()
    }

    /// The record of the n-th connection, once that has ended.
    pub async fn ended(&self, nth: usize) -> ConnectionRecord {
        self.saw(nth, |seen| seen.ended.is_some()).await
    }
}

impl Drop for TcpUpstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept_all(listener: TcpListener, acceptor: Option<TlsAcceptor>, state: Arc<State>) {
    while let Ok((socket, _)) = listener.accept().await {
        state.accepted.send_modify(|count| *count += 1);
        tokio::spawn(serve(socket, acceptor.clone(), Arc::clone(&state)));
    }
}

async fn serve(socket: TcpStream, acceptor: Option<TlsAcceptor>, state: Arc<State>) {
    let _ = socket.set_nodelay(true);
    let mut first = ConnectionRecord::default();
    let stream: Box<dyn Both> = match acceptor {
        None => Box::new(socket),
        Some(acceptor) => {
            let Ok(stream) = acceptor.accept(socket).await else { return };
            let (_, tls) = stream.get_ref();
            first.sni = tls.server_name().map(str::to_owned);
            first.alpn = tls.alpn_protocol().map(<[u8]>::to_vec);
            first.client_subject = tls.peer_certificates().map(|chain| subject(&chain[0]));
            Box::new(stream)
        }
    };
    let mut nth = 0;
    state.seen.send_modify(|seen| {
        nth = seen.len();
        seen.push(first);
    });
    let mut connection =
        Scripted { stream, state, nth, digest: aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256) };
    let ended = connection.run().await.is_ok();
    connection.note(|seen| seen.ended = Some(ended));
}

struct Scripted {
    stream: Box<dyn Both>,
    state: Arc<State>,
    nth: usize,
    digest: aws_lc_rs::digest::Context,
}

impl Scripted {
    async fn run(&mut self) -> io::Result<()> {
        match self.state.script {
            Script::Greet => {
                let hello = format!("hello from {}\n", self.state.name);
                if !self.read().await?.is_empty() {
                    self.stream.write_all(hello.as_bytes()).await?;
                }
                self.stream.shutdown().await?;
                self.read_out().await
            }
            Script::Echo => {
                loop {
                    let read = self.read().await?;
                    if read.is_empty() {
                        break;
                    }
                    self.stream.write_all(&read).await?;
                    self.stream.flush().await?;
                }
                self.stream.shutdown().await
            }
            Script::Digest => {
                self.read_out().await?;
                let response = {
                    let seen = self.state.seen.borrow();
                    format!("{} {}\n", seen[self.nth].bytes, self.sum())
                };
                self.stream.write_all(response.as_bytes()).await?;
                self.stream.shutdown().await
            }
            Script::Pour(bytes) => {
                self.stream.write_all(&pattern(bytes)).await?;
                self.stream.shutdown().await?;
                self.read_out().await
            }
            Script::Silent => std::future::pending().await,
        }
    }

    /// The next bytes; empty at the end.
    async fn read(&mut self) -> io::Result<Vec<u8>> {
        let mut buffer = vec![0; 64 * 1024];
        let read = self.stream.read(&mut buffer).await?;
        buffer.truncate(read);
        self.digest.update(&buffer);
        let sum = self.sum();
        self.note(|seen| {
            seen.bytes += read;
            seen.sha256 = sum;
        });
        Ok(buffer)
    }

    async fn read_out(&mut self) -> io::Result<()> {
        while !self.read().await?.is_empty() {}
        Ok(())
    }

    fn sum(&self) -> String {
        HEXLOWER.encode(self.digest.clone().finish().as_ref())
    }

    fn note(&self, change: impl FnOnce(&mut ConnectionRecord)) {
        self.state.seen.send_modify(|seen| change(&mut seen[self.nth]));
    }
}

/// The response of [`Script::Digest`] to these bytes.
pub fn digest_of(bytes: &[u8]) -> String {
    format!("{} {}\n", bytes.len(), sha256(bytes))
}
