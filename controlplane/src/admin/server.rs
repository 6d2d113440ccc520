//! The listener of the Admin API: accept, handshake, HTTP/1.1, and an orderly end.
//!
//! Everything a peer can make wait is bounded: connections, the handshake, a request's head and body, and the time a peer may take to
//! read its answer. Invariant: no request reaches the handler before the verdict on the client certificate is known.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls_pki_types::UnixTime;
use telemetry::{Heartbeat, Heartbeats, Readiness};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::handler::Admin;
use super::peer::{Client, Peer};
use super::tls::Tls;
use patient::Patient;

mod patient;

/// First byte of a TLS handshake record (RFC 8446 5.1).
const HANDSHAKE_RECORD: u8 = 0x16;
/// How long accepting rests when the process has no file descriptors left.
const ACCEPT_BACK_OFF: Duration = Duration::from_millis(100);
/// Bytes read from a plain-text peer before its connection is closed, so that it sees the answer.
const DISCARDED_MAX: u64 = 64 << 10;

/// What peers may use up.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at a time; more wait to be accepted.
    pub connections: usize,
    /// From accept to the end of the handshake.
    pub handshake: Duration,
    /// For a request's head, and between two requests.
    pub head: Duration,
    /// Bytes of a request's head, at least 8192.
    pub head_bytes: usize,
    /// Between two pieces of an answer that the peer takes.
    pub send: Duration,
    /// For what runs when the server is asked to stop.
    pub stop: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1024,
            handshake: Duration::from_secs(10),
            head: Duration::from_secs(60),
            head_bytes: 64 << 10,
            send: Duration::from_secs(10),
            stop: Duration::from_secs(10),
        }
    }
}

/// A listener that serves the Admin API.
pub struct Server {
    listener: TcpListener,
    heartbeat: Arc<Heartbeat>,
    shared: Arc<Shared>,
}

struct Shared {
    admin: Arc<Admin>,
    tls: Option<Tls>,
    limits: Limits,
}

impl Server {
    /// Binds the address. Without `tls` it speaks plain HTTP.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub async fn bind(
        address: SocketAddr,
        tls: Option<Tls>,
        admin: Admin,
        limits: Limits,
        heartbeats: &Heartbeats,
    ) -> std::io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let heartbeat = heartbeats.add("admin", Readiness::Required);
        Ok(Self { listener, heartbeat, shared: Arc::new(Shared { admin: Arc::new(admin), tls, limits }) })
    }

    /// The address it listens on.
    ///
    /// # Errors
    /// When the operating system does not say.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop` turns true, then lets what runs finish within its limit.
    pub async fn run(self, mut stop: watch::Receiver<bool>) {
        let Self { listener, heartbeat, shared } = self;
        let permits = Arc::new(Semaphore::new(shared.limits.connections));
        let mut running = JoinSet::new();
        loop {
            while running.try_join_next().is_some() {}
            let accepted = tokio::select! {
                () = asked_to_stop(&mut stop) => break,
                never = heartbeat.beating() => match never {},
                accepted = accept(&listener, &permits) => accepted,
            };
            match accepted {
                Ok((stream, address, permit)) => {
                    let (shared, stop) = (Arc::clone(&shared), stop.clone());
                    running.spawn(async move {
                        shared.connection(stream, address, stop).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "the Admin API cannot accept a connection");
                    tokio::time::sleep(ACCEPT_BACK_OFF).await;
                }
            }
        }
        heartbeat.idle();
        drop(listener);
        let rest = async { while running.join_next().await.is_some() {} };
        if tokio::time::timeout(shared.limits.stop, rest).await.is_err() {
            tracing::warn!(connections = running.len(), "stopped before the last Admin API requests ended");
        }
    }
}

async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> std::io::Result<(TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit)> {
    let permit = Arc::clone(permits).acquire_owned().await.map_err(std::io::Error::other)?;
    let (stream, address) = listener.accept().await?;
    Ok((stream, address, permit))
}

/// Returns when the server is to stop; also when nobody is left who could say so.
async fn asked_to_stop(stop: &mut watch::Receiver<bool>) {
    drop(stop.wait_for(|stop| *stop).await);
}

impl Shared {
    async fn connection(&self, stream: TcpStream, address: SocketAddr, stop: watch::Receiver<bool>) {
        // Answers are small and whole; waiting to fill a segment only delays them.
        let _ = stream.set_nodelay(true);
        let Some(tls) = &self.tls else {
            let peer = Peer { address, client: Client::NotAsked };
            return self.serve(Patient::new(stream, self.limits.send), peer, stop).await;
        };
        let mut stop_early = stop.clone();
        let handshake = tokio::select! {
            () = asked_to_stop(&mut stop_early) => return,
            handshake = tokio::time::timeout(self.limits.handshake, handshake(tls, stream)) => handshake,
        };
        match handshake {
            Err(_) => tracing::debug!(from = %address, "the handshake took too long"),
            Ok(Err(error)) => tracing::debug!(from = %address, %error, "no handshake"),
            Ok(Ok((stream, client))) => {
                let stream = Patient::new(stream, self.limits.send);
                self.serve(stream, Peer { address, client }, stop).await;
            }
        }
    }

    async fn serve<S>(&self, stream: S, peer: Peer, mut stop: watch::Receiver<bool>)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let peer = Arc::new(peer);
        let service = service_fn(|request| async {
            Ok::<_, std::convert::Infallible>(self.admin.answer(&peer, request).await)
        });
        // Who may not ask anyway is not waited for as long.
        let head = match peer.client {
            Client::NotAsked | Client::Verified { .. } => self.limits.head,
            Client::Missing | Client::Refused(_) => self.limits.head.min(self.limits.handshake),
        };
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(head)
            .max_buf_size(self.limits.head_bytes)
            .serve_connection(TokioIo::new(stream), service);
        tokio::pin!(connection);
        let ended = tokio::select! {
            ended = &mut connection => ended,
            () = asked_to_stop(&mut stop) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(from = %peer.address, %error, "the connection ended early");
        }
    }
}

/// The handshake and the verdict. A peer that speaks plain HTTP is told so, in plain HTTP, as nginx does.
async fn handshake(
    tls: &Tls,
    mut stream: TcpStream,
) -> std::io::Result<(tokio_rustls::server::TlsStream<TcpStream>, Client)> {
    let mut first = [0];
    stream.peek(&mut first).await?;
    if first.first().is_some_and(u8::is_ascii_uppercase) {
        tell_plain_text(&mut stream).await?;
        return Err(std::io::Error::other("plain HTTP on the TLS port"));
    }
    if first.first() != Some(&HANDSHAKE_RECORD) {
        return Err(std::io::Error::other("neither TLS nor HTTP"));
    }
    let stream = TlsAcceptor::from(Arc::clone(&tls.config)).accept(stream).await?;
    let client = tls.judge(stream.get_ref().1.peer_certificates(), UnixTime::now());
    Ok((stream, client))
}

async fn tell_plain_text(stream: &mut TcpStream) -> std::io::Result<()> {
    let page = super::reply::plain_text_page();
    stream.write_all(page.as_bytes()).await?;
    stream.shutdown().await?;
    // Closing with unread bytes would reset the connection before the peer has read the page.
    let mut rest = [0; 4096];
    let mut discarded = 0;
    while discarded < DISCARDED_MAX {
        match stream.read(&mut rest).await? {
            0 => break,
            read => discarded += read as u64,
        }
    }
    Ok(())
}
