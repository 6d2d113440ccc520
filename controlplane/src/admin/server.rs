//! The listener of the Admin API: accept, handshake, HTTP/1.1, graceful shutdown.
//!
//! Everything that a client can delay is bounded: connections, the handshake, a request's head and
//! body, and the time in which it must read its response. On shutdown the server accepts the queued
//! connections before it closes the listener, and a connection accepted last gets its first
//! response. Invariant: no request reaches the handler before the client certificate is verified,
//! against the client CA in use when the request arrives: a kept connection is verified again after
//! the CA file has changed.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use mtls::LoadedCredentials;
use rustls::pki_types::CertificateDer;
use rustls_pki_types::UnixTime;
use telemetry::{Heartbeat, Heartbeats, Readiness};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, TryAcquireError, watch};
use tokio::task::JoinSet;
use tokio_io_timeout::TimeoutStream;
use tokio_rustls::TlsAcceptor;

use super::access::{AdminClient, ClientCertStatus};
use super::handler::AdminApi;
use super::tls::{ReloadingTls, ServerTls};
use crate::listener_errors::ErrorReason;

/// First byte of a TLS handshake record (RFC 8446 5.1).
const HANDSHAKE_RECORD: u8 = 0x16;
/// Backoff of accept when the process has no file descriptors left; doubled each time up to the
/// maximum.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);
const ACCEPT_BACKOFF_MAX: Duration = Duration::from_secs(1);
/// From the stop to the first request of a connection that has had none.
const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
/// Bytes read from a plain-HTTP client before its connection closes, so that it reads the response.
const DISCARDED_MAX: u64 = 64 << 10;

/// Limits on what clients use.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at a time; more wait in the accept queue.
    pub connections_max: usize,
    /// From accept to the end of the handshake.
    pub handshake_timeout: Duration,
    /// For a request's head, between two requests, and from the handshake to the first authorized
    /// request.
    pub header_timeout: Duration,
    /// Bytes of a request's head, at least 8192.
    pub header_bytes_max: usize,
    /// Between two writes of a response.
    pub send_timeout: Duration,
    /// For open requests during shutdown.
    pub shutdown_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 1024,
            handshake_timeout: Duration::from_secs(10),
            header_timeout: Duration::from_secs(60),
            header_bytes_max: 64 << 10,
            send_timeout: Duration::from_secs(10),
            shutdown_timeout: Duration::from_secs(10),
        }
    }
}

pub struct AdminServer {
    listener: TcpListener,
    heartbeat: Arc<Heartbeat>,
    state: Arc<ServerState>,
}

struct ServerState {
    api: Arc<AdminApi>,
    tls: Option<ReloadingTls>,
    limits: Limits,
    /// Permits, among all connections, for clients whose address is always denied: they only read a
    /// 403.
    denied_slots: Arc<Semaphore>,
}

impl AdminServer {
    /// Binds the address. Without `tls` the server speaks plain HTTP.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub async fn bind(
        address: SocketAddr,
        tls: Option<ReloadingTls>,
        admin: AdminApi,
        limits: Limits,
        heartbeats: &Heartbeats,
    ) -> std::io::Result<Self> {
        Ok(Self::new(TcpListener::bind(address).await?, tls, admin, limits, heartbeats))
    }

    /// Serves a bound listener. Without `tls` the server speaks plain HTTP.
    pub fn new(
        listener: TcpListener,
        tls: Option<ReloadingTls>,
        admin: AdminApi,
        limits: Limits,
        heartbeats: &Heartbeats,
    ) -> Self {
        let heartbeat = heartbeats.add("admin", Readiness::Required);
        let denied_slots = Arc::new(Semaphore::new((limits.connections_max / 4).max(1)));
        let state = ServerState { api: Arc::new(admin), tls, limits, denied_slots };
        Self { listener, heartbeat, state: Arc::new(state) }
    }

    /// The bound address.
    ///
    /// # Errors
    /// When the operating system fails to report it.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop` turns true, then lets open requests finish within the limit.
    pub async fn run(self, mut stop: watch::Receiver<bool>) {
        let Self { listener, heartbeat, state } = self;
        let permits = Arc::new(Semaphore::new(state.limits.connections_max));
        let mut connections = JoinSet::new();
        let mut backoff = ACCEPT_BACKOFF;
        let serve = |connections: &mut JoinSet<()>, stream, address, permit, stop| {
            let state = Arc::clone(&state);
            let Ok(denied_slot) = state.reserve_denied_slot(address) else { return };
            connections.spawn(async move {
                state.connection(stream, address, stop).await;
                drop((permit, denied_slot));
            });
        };
        loop {
            while connections.try_join_next().is_some() {}
            let accepted = tokio::select! {
                () = wait_for_stop(&mut stop) => break,
                never = heartbeat.beat_forever() => match never {},
                accepted = accept(&listener, &permits) => accepted,
            };
            match accepted {
                Ok((stream, address, permit)) => {
                    backoff = ACCEPT_BACKOFF;
                    serve(&mut connections, stream, address, permit, stop.clone());
                }
                Err(error) => {
                    if let Some(suppressed) = ErrorReason::AdminAccept.record() {
                        tracing::warn!(%error, suppressed, "the Admin API cannot accept a connection");
                    }
                    tokio::time::sleep(backoff).await;
                    backoff = (backoff * 2).min(ACCEPT_BACKOFF_MAX);
                }
            }
        }
        heartbeat.set_idle();
        // Clients see queued connections as established; closing the listener would reset them.
        if let Ok(queue) = listener.into_std() {
            while let Ok(permit) = Arc::clone(&permits).try_acquire_owned()
                && let Ok((stream, address)) = queue.accept()
            {
                let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
                if let Ok(stream) = stream {
                    serve(&mut connections, stream, address, permit, stop.clone());
                }
            }
        }
        let open = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(state.limits.shutdown_timeout, open).await.is_err() {
            tracing::warn!(
                connections = connections.len(),
                "stopped before the last Admin API requests ended"
            );
        }
    }
}

async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> std::io::Result<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let permit = Arc::clone(permits).acquire_owned().await.map_err(std::io::Error::other)?;
    let (stream, address) = listener.accept().await?;
    Ok((stream, address, permit))
}

/// Returns when the server must stop, also when the sender is gone.
async fn wait_for_stop(stop: &mut watch::Receiver<bool>) {
    drop(stop.wait_for(|stop| *stop).await);
}

impl ServerState {
    /// A permit for an address that `allow_admin` denies; an error when none is left.
    fn reserve_denied_slot(
        &self,
        address: SocketAddr,
    ) -> Result<Option<OwnedSemaphorePermit>, TryAcquireError> {
        if !self.api.access.always_denies(address.ip()) {
            return Ok(None);
        }
        let slot = Arc::clone(&self.denied_slots).try_acquire_owned();
        if slot.is_err()
            && let Some(suppressed) = ErrorReason::AdminAddress.record()
        {
            tracing::warn!(peer = %address, suppressed, "denied by allow_admin, without a response: too many at a time");
        }
        slot.map(Some)
    }

    async fn connection(&self, stream: TcpStream, address: SocketAddr, stop: watch::Receiver<bool>) {
        // Responses are small and written whole; Nagle's algorithm only delays them.
        let _ = stream.set_nodelay(true);
        let Some(tls) = &self.tls else {
            let client = ConnectionClient::plain(address);
            return self.serve(bound_writes(stream, self.limits.send_timeout), client, stop).await;
        };
        let mut stop_early = stop.clone();
        let first_request = async {
            wait_for_stop(&mut stop_early).await;
            tokio::time::sleep(FIRST_REQUEST_TIMEOUT).await;
        };
        let handshake = tokio::select! {
            () = first_request => return,
            handshake = tokio::time::timeout(self.limits.handshake_timeout, handshake(tls, stream)) => handshake,
        };
        match handshake {
            Err(_) => {
                ErrorReason::AdminHandshake.record();
                tracing::debug!(peer = %address, "the handshake timed out");
            }
            Ok(Err(error)) => {
                ErrorReason::AdminHandshake.record();
                tracing::debug!(peer = %address, %error, "the handshake failed");
            }
            Ok(Ok((stream, handshake))) => {
                let stream = bound_writes(stream, self.limits.send_timeout);
                self.serve(stream, ConnectionClient::tls(address, tls, handshake), stop).await;
            }
        }
    }

    async fn serve<S>(&self, stream: S, client: ConnectionClient<'_>, mut stop: watch::Receiver<bool>)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        // A graceful shutdown before the first request makes hyper close at once.
        let received = Notify::new();
        let authenticated = Notify::new();
        let service = service_fn(|request| async {
            received.notify_one();
            let client = client.revalidated().await;
            Ok::<_, std::convert::Infallible>(self.api.handle(&client, request, &authenticated).await)
        });
        let shutdown = async {
            wait_for_stop(&mut stop).await;
            drop(tokio::time::timeout(FIRST_REQUEST_TIMEOUT, received.notified()).await);
        };
        let verified = client.at_handshake();
        // Clients that no request can authorize get the shorter time-out.
        let header_timeout = match verified.certificate {
            ClientCertStatus::NotRequested | ClientCertStatus::Verified { .. }
                if !self.api.access.always_denies(verified.address.ip()) =>
            {
                self.limits.header_timeout
            }
            _ => self.limits.header_timeout.min(self.limits.handshake_timeout),
        };
        // hyper's header time-out restarts with each response; this one does not.
        let never_authenticated = async {
            if tokio::time::timeout(header_timeout, authenticated.notified()).await.is_ok() {
                std::future::pending::<()>().await;
            }
        };
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(header_timeout)
            .max_buf_size(self.limits.header_bytes_max)
            .serve_connection(TokioIo::new(stream), service);
        tokio::pin!(connection);
        let result = tokio::select! {
            result = &mut connection => result,
            () = never_authenticated => {
                return tracing::debug!(peer = %verified.address, "no request was authenticated in time");
            }
            () = shutdown => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = result {
            tracing::debug!(peer = %verified.address, %error, "the connection ended early");
        }
    }
}

/// Ends the connection when a write makes no progress for the limit. hyper's timers bound reads
/// alone.
fn bound_writes<S: AsyncRead + AsyncWrite>(stream: S, limit: Duration) -> Pin<Box<TimeoutStream<S>>> {
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(limit));
    Box::pin(stream)
}

/// The client of one connection. Its certificate is verified after the handshake, and again at the
/// first request after the files have changed.
struct ConnectionClient<'a> {
    /// `None`: plain HTTP.
    tls: Option<(&'a ReloadingTls, Vec<CertificateDer<'static>>)>,
    verdict: Mutex<LastVerification>,
}

/// The files that the client was verified with, and the result.
type LastVerification = (Option<Arc<LoadedCredentials<ServerTls>>>, Arc<AdminClient>);

impl<'a> ConnectionClient<'a> {
    fn plain(address: SocketAddr) -> Self {
        let client = Arc::new(AdminClient { address, certificate: ClientCertStatus::NotRequested });
        Self { tls: None, verdict: Mutex::new((None, client)) }
    }

    fn tls(address: SocketAddr, tls: &'a ReloadingTls, handshake: CompletedHandshake) -> Self {
        let client = handshake.files.tls.verify_client(&handshake.presented_chain, UnixTime::now());
        let verdict = (Some(handshake.files), Arc::new(AdminClient { address, certificate: client }));
        Self { tls: Some((tls, handshake.presented_chain)), verdict: Mutex::new(verdict) }
    }

    fn at_handshake(&self) -> Arc<AdminClient> {
        Arc::clone(&self.verdict.lock().unwrap_or_else(PoisonError::into_inner).1)
    }

    async fn revalidated(&self) -> Arc<AdminClient> {
        let Some((tls, chain)) = &self.tls else { return self.at_handshake() };
        // The handshake used valid files, so there are some.
        let Ok(files) = tls.current().await else { return self.at_handshake() };
        let mut verdict = self.verdict.lock().unwrap_or_else(PoisonError::into_inner);
        if !verdict.0.as_ref().is_some_and(|former| Arc::ptr_eq(former, &files)) {
            let client = files.tls.verify_client(chain, UnixTime::now());
            *verdict =
                (Some(files), Arc::new(AdminClient { address: verdict.1.address, certificate: client }));
        }
        Arc::clone(&verdict.1)
    }
}

/// The input of the client's verification.
struct CompletedHandshake {
    /// The certificate files of the handshake.
    files: Arc<LoadedCredentials<ServerTls>>,
    /// The client's chain, leaf first.
    presented_chain: Vec<CertificateDer<'static>>,
}

/// The TLS handshake with the current certificate files. A client that speaks plain HTTP gets a
/// plain-HTTP error page, as from nginx.
async fn handshake(
    tls: &ReloadingTls,
    mut stream: TcpStream,
) -> std::io::Result<(tokio_rustls::server::TlsStream<TcpStream>, CompletedHandshake)> {
    let mut first = [0];
    stream.peek(&mut first).await?;
    if first.first().is_some_and(u8::is_ascii_uppercase) {
        send_plain_http_error(&mut stream).await?;
        return Err(std::io::Error::other("plain HTTP on the TLS port"));
    }
    if first.first() != Some(&HANDSHAKE_RECORD) {
        return Err(std::io::Error::other("neither TLS nor HTTP"));
    }
    let files = tls.current().await.map_err(std::io::Error::other)?;
    let stream = TlsAcceptor::from(Arc::clone(&files.tls.config)).accept(stream).await?;
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let presented_chain = chain.iter().map(|certificate| certificate.clone().into_owned()).collect();
    Ok((stream, CompletedHandshake { files, presented_chain }))
}

async fn send_plain_http_error(stream: &mut TcpStream) -> std::io::Result<()> {
    let page = super::reply::plain_http_response();
    stream.write_all(page.as_bytes()).await?;
    stream.shutdown().await?;
    // Closing with unread bytes would reset the connection before the client has read the page.
    let mut buffer = [0; 4096];
    let mut discarded = 0;
    while discarded < DISCARDED_MAX {
        match stream.read(&mut buffer).await? {
            0 => break,
            read => discarded += read as u64,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_write_that_makes_no_progress_times_out() {
        let (near, _far) = tokio::io::duplex(1);
        let mut stream = bound_writes(near, Duration::from_millis(1));
        stream.write_all(b"1").await.unwrap();
        let error = stream.write_all(b"2").await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
    }
}
