//! One connection: handshake, HTTP/1.1, graceful shutdown.
//!
//! Invariant: no request reaches the handler before the client certificate is verified, against the
//! client CA in use when the request arrives: a kept connection is verified again after the CA file
//! or the listener's settings have changed.

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
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, TryAcquireError, watch};
use tokio_io_timeout::TimeoutStream;
use tokio_rustls::TlsAcceptor;

use super::{Limits, ListenerPhase, wait_for_end};
use crate::admin::access::{AdminClient, ClientCertStatus};
use crate::admin::addresses::AllowedAddresses;
use crate::admin::handler::AdminApi;
use crate::admin::reply;
use crate::admin::tls::{ReloadingTls, ServerTls};
use crate::listener_errors::ErrorReason;

/// First byte of a TLS handshake record (RFC 8446 5.1).
const HANDSHAKE_RECORD: u8 = 0x16;
/// From the stop to the first request of a connection that has had none.
const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
/// Bytes read from a plain-HTTP client before its connection closes, so that it reads the response.
const DISCARDED_MAX: u64 = 64 << 10;

/// The settings by which a listener serves connections and judges their requests.
pub(super) struct ConnectionServer {
    pub(super) api: Arc<AdminApi>,
    /// `None`: plain HTTP.
    pub(super) tls: Option<ReloadingTls>,
    pub(super) allowed: Arc<AllowedAddresses>,
    pub(super) limits: Limits,
    /// Permits, among the listener's connections, for clients whose address is always denied: they
    /// only read a 403.
    pub(super) denied_slots: Arc<Semaphore>,
}

impl ConnectionServer {
    /// A permit for an address that `allow_admin` denies; an error when none is left.
    pub(super) fn reserve_denied_slot(
        &self,
        address: SocketAddr,
    ) -> Result<Option<OwnedSemaphorePermit>, TryAcquireError> {
        if !self.allowed.always_denies(address.ip()) {
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

    pub(super) async fn connection(
        &self,
        stream: TcpStream,
        address: SocketAddr,
        current: CurrentServer,
        phase: watch::Receiver<ListenerPhase>,
    ) {
        // Responses are small and written whole; Nagle's algorithm only delays them.
        let _ = stream.set_nodelay(true);
        let Some(tls) = &self.tls else {
            let client = ConnectionClient::plain(address, &self.allowed, current);
            return self.serve(bound_writes(stream, self.limits.send_timeout), client, phase).await;
        };
        let mut ends_early = phase.clone();
        let first_request = async {
            wait_for_end(&mut ends_early).await;
            tokio::time::sleep(FIRST_REQUEST_TIMEOUT).await;
        };
        let handshake = tokio::select! {
            () = first_request => return,
            handshake = tokio::time::timeout(self.limits.handshake_timeout, handshake(tls, stream)) => handshake,
        };
        match handshake {
            Err(_) => {
                if let Some(suppressed) = ErrorReason::AdminHandshake.record() {
                    tracing::warn!(peer = %address, suppressed, "a TLS handshake with the Admin API timed out");
                }
            }
            Ok(Err(error)) => {
                if let Some(suppressed) = ErrorReason::AdminHandshake.record() {
                    tracing::warn!(peer = %address, %error, suppressed, "a TLS handshake with the Admin API failed");
                }
            }
            Ok(Ok(None)) => tracing::debug!(peer = %address, "the client closed the connection at once"),
            Ok(Ok(Some((stream, handshake)))) => {
                let stream = bound_writes(stream, self.limits.send_timeout);
                let client = ConnectionClient::tls(address, &self.allowed, handshake, current);
                self.serve(stream, client, phase).await;
            }
        }
    }

    async fn serve<S>(&self, stream: S, client: ConnectionClient, mut phase: watch::Receiver<ListenerPhase>)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        // A graceful shutdown before the first request makes hyper close at once.
        let received = Notify::new();
        let authenticated = Notify::new();
        let following = phase.clone();
        let service = service_fn(|request| async {
            received.notify_one();
            let (server, client) = client.revalidated().await;
            let reply = server.api.handle(&client, request, &authenticated).await;
            let is_last = following.borrow().ends_connections();
            Ok::<_, std::convert::Infallible>(if is_last { reply::with_close(reply) } else { reply })
        });
        let shutdown = async {
            wait_for_end(&mut phase).await;
            drop(tokio::time::timeout(FIRST_REQUEST_TIMEOUT, received.notified()).await);
        };
        let verified = client.at_handshake();
        // Clients that no request can authorize get the shorter time-out.
        let header_timeout = match verified.certificate {
            ClientCertStatus::NotRequested | ClientCertStatus::Verified { .. }
                if !self.allowed.always_denies(verified.address.ip()) =>
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

type CurrentServer = watch::Receiver<Arc<ConnectionServer>>;

/// The client of one connection. Its certificate is verified after the handshake, and again at the
/// first request after the files or the settings have changed.
struct ConnectionClient {
    current: CurrentServer,
    /// The presented chain; empty over plain HTTP.
    chain: Vec<CertificateDer<'static>>,
    verdict: Mutex<LastVerification>,
}

/// The files that the client was verified with, and the result.
type LastVerification = (Option<Arc<LoadedCredentials<ServerTls>>>, Arc<AdminClient>);

impl ConnectionClient {
    fn plain(address: SocketAddr, allowed: &Arc<AllowedAddresses>, current: CurrentServer) -> Self {
        let (allowed, certificate) = (Arc::clone(allowed), ClientCertStatus::NotRequested);
        let client = Arc::new(AdminClient { address, allowed, certificate });
        Self { current, chain: Vec::new(), verdict: Mutex::new((None, client)) }
    }

    fn tls(
        address: SocketAddr,
        allowed: &Arc<AllowedAddresses>,
        handshake: CompletedHandshake,
        current: CurrentServer,
    ) -> Self {
        let CompletedHandshake { files, presented_chain: chain } = handshake;
        let certificate = files.tls.verify_client(&chain, UnixTime::now());
        let client = AdminClient { address, allowed: Arc::clone(allowed), certificate };
        let verdict = Mutex::new((Some(files), Arc::new(client)));
        Self { current, chain, verdict }
    }

    fn at_handshake(&self) -> Arc<AdminClient> {
        Arc::clone(&self.verdict.lock().unwrap_or_else(PoisonError::into_inner).1)
    }

    /// The settings in force, and the client by them.
    async fn revalidated(&self) -> (Arc<ConnectionServer>, Arc<AdminClient>) {
        let server = Arc::clone(&self.current.borrow());
        let files = match &server.tls {
            // Files were valid when the settings came into force, so there are some.
            Some(tls) => tls.current().await.ok(),
            None => None,
        };
        let mut verdict = self.verdict.lock().unwrap_or_else(PoisonError::into_inner);
        let (former, client) = &*verdict;
        let same_files = match (former, &files) {
            (Some(former), Some(files)) => Arc::ptr_eq(former, files),
            _ => files.is_none(),
        };
        if !same_files || !Arc::ptr_eq(&client.allowed, &server.allowed) {
            let certificate = match &files {
                Some(files) => files.tls.verify_client(&self.chain, UnixTime::now()),
                None => client.certificate.clone(),
            };
            let client =
                AdminClient { address: client.address, allowed: Arc::clone(&server.allowed), certificate };
            *verdict = (files.or_else(|| former.clone()), Arc::new(client));
        }
        let client = Arc::clone(&verdict.1);
        drop(verdict);
        (server, client)
    }
}

/// The input of the client's verification.
struct CompletedHandshake {
    /// The certificate files of the handshake.
    files: Arc<LoadedCredentials<ServerTls>>,
    /// The client's chain, leaf first.
    presented_chain: Vec<CertificateDer<'static>>,
}

/// A connection after its handshake.
type TlsConnection = (tokio_rustls::server::TlsStream<TcpStream>, CompletedHandshake);

/// The TLS handshake with the current certificate files; `None` for a client that closes without
/// sending anything, as health checks of load balancers do. A client that speaks plain HTTP gets a
/// plain-HTTP error page, as from nginx.
async fn handshake(tls: &ReloadingTls, mut stream: TcpStream) -> std::io::Result<Option<TlsConnection>> {
    let mut first = [0];
    if stream.peek(&mut first).await? == 0 {
        return Ok(None);
    }
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
    Ok(Some((stream, CompletedHandshake { files, presented_chain })))
}

async fn send_plain_http_error(stream: &mut TcpStream) -> std::io::Result<()> {
    let page = reply::plain_http_response();
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
