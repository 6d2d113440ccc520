//! The push listener: TCP, then mutual TLS 1.3, then tonic.
//!
//! Every accepted peer holds a certificate of `countersign.push.ca`; `session` checks which node it
//! is. The certificate files are read again when they change ([`mtls::Reloader`]), and a new
//! connection uses the current ones. Bounded: connections, concurrent handshakes, the time of a
//! handshake, streams of a connection, silence.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use mtls::{ConfiguredFile, CredentialFiles, Credentials, FileError, Reloader, WebPkiCredentials};
use pki::{ClientAuth, ClientAuthInput};
use proto::push::push_server::{Push, PushServer};
use rustls::ServerConfig;
use rustls::server::WebPkiClientVerifier;
use socket2::SockRef;
use telemetry::Heartbeat;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;

use super::permit_stream::PermitStream;
use crate::listener_errors::{ErrorReason, ListenError};

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// While all permits for handshakes are taken: a handshake takes two round trips, and silent peers
/// must not lock out data planes.
const HANDSHAKE_TIMEOUT_FULL: Duration = Duration::from_secs(1);
/// Time for a rejected peer to read the alert.
const LINGER_TIMEOUT: Duration = Duration::from_secs(1);
const LINGER_BYTES_MAX: usize = 64 << 10;
const HANDSHAKES_MAX: usize = 256;
/// A node that is silent for so long is sent a PING, and its connection ends without an answer in
/// [`KEEPALIVE_TIMEOUT`]: `?acknowledged=` must not wait for a dead node. Longer than a node's own
/// time-out: a node compiles snapshots on the thread that answers.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(1);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(3);
/// Bytes queued in the kernel: on a slow network a PING behind megabytes of a first delta is late.
const UNSENT_BYTES: u32 = 128 << 10;
/// A node opens one stream; a second lets it replace a hanging one.
const STREAMS_PER_CONNECTION: u32 = 2;
/// After an accept that fails for want of descriptors.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// The setting of the listener's address.
pub(crate) const PUSH_KEY: &str = "countersign.push.listen";

/// Binds the listening socket.
pub(crate) fn bind(address: SocketAddr) -> Result<std::net::TcpListener, ListenError> {
    let open = || {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    open().map_err(|error| ListenError::new(PUSH_KEY, address, error))
}

/// A bound listener in the runtime, with its address; binds `address` where there is none.
pub(super) fn open(
    bound: Option<std::net::TcpListener>,
    address: SocketAddr,
) -> Result<(TcpListener, SocketAddr), ListenError> {
    let listener = bound.map_or_else(|| bind(address), Ok)?;
    let open = || {
        let bound_to = listener.local_addr()?;
        Ok((TcpListener::from_std(listener)?, bound_to))
    };
    open().map_err(|error| ListenError::new(PUSH_KEY, address, error))
}

/// Intermediates between a node's certificate and `push.ca`.
const DEPTH_MAX: u32 = 6;

/// The TLS configuration built from the push listener's files.
pub struct PushTls {
    config: Arc<ServerConfig>,
    /// The policy of `config` in `pki`'s terms: gives the expiry of a node's path.
    pub(super) policy: Arc<ClientAuth>,
}

/// Loads the certificate files of the push. `server_name`: the name that data planes require of the
/// certificate.
///
/// An expired certificate is served, because refusing to start would also stop the Admin API; nodes
/// reject it.
pub(super) fn load_files(
    settings: &conf::PushSettings,
    server_name: String,
) -> Result<Reloader<PushTls>, FileError> {
    let (cert, key) = (
        ConfiguredFile::new("countersign.push.cert", &settings.cert),
        ConfiguredFile::new("countersign.push.key", &settings.key),
    );
    let ca = ConfiguredFile::new("countersign.push.ca", &settings.ca);
    let files = CredentialFiles {
        pair: Some((cert.clone(), key)),
        ca: Some(ca.clone()),
        required_dns_name: Some(server_name),
    };
    let files = Reloader::new("push", files, move |contents| build_tls(&cert, &ca, contents));
    files.load()?;
    Ok(files)
}

/// TLS 1.3 only, with a required client certificate of `push.ca`. No resumption: a new connection
/// is verified anew.
fn build_tls(
    cert: &ConfiguredFile,
    ca: &ConfiguredFile,
    contents: &Credentials,
) -> Result<PushTls, FileError> {
    let (cert, ca) = (cert.by_ref(), ca.by_ref());
    let WebPkiCredentials { roots, chain, key } = contents.to_webpki(cert, ca)?;
    let policy =
        ClientAuthInput { anchors: contents.ca.clone(), depth: DEPTH_MAX, ..ClientAuthInput::default() };
    let policy = ClientAuth::new(policy).map_err(|error| ca.error(error))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider))
        .build()
        .map_err(|error| ca.error(error))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map(|config| config.with_client_cert_verifier(verifier))
        .and_then(|config| config.with_single_cert(chain, key))
        .map_err(|error| cert.error(error))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    Ok(PushTls { config: Arc::new(config), policy: Arc::new(policy) })
}

/// Accepts while the listener's flag is true. Serves until shutdown and until every stream has
/// ended.
pub(super) async fn serve<S: Push>(
    (listener, may_accept): (TcpListener, watch::Receiver<bool>),
    files: Reloader<PushTls>,
    connections_max: usize,
    service: PushServer<S>,
    heartbeat: Arc<Heartbeat>,
    mut shutdown: watch::Receiver<bool>,
) -> Result<(), tonic::transport::Error> {
    let listener = (listener, may_accept);
    let incoming = incoming_connections(listener, files, connections_max, heartbeat, shutdown.clone());
    tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
        .http2_max_header_list_size(16 * 1024)
        .add_service(service)
        .serve_with_incoming_shutdown(incoming, async move {
            // A closed channel means that the owner is gone: stop as well.
            let _ = shutdown.wait_for(|stop| *stop).await;
        })
        .await
}

type Incoming = Result<PermitStream<TlsStream<TcpStream>>, std::io::Error>;

/// Accepts connections and handshakes concurrently, so that a slow or silent peer delays no other.
fn incoming_connections(
    (listener, mut may_accept): (TcpListener, watch::Receiver<bool>),
    files: Reloader<PushTls>,
    connections_max: usize,
    heartbeat: Arc<Heartbeat>,
    mut shutdown: watch::Receiver<bool>,
) -> impl Stream<Item = Incoming> {
    let (ready, incoming) = mpsc::channel(16);
    // Unfinished handshakes take at most half of the connections.
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX.min(connections_max / 2).max(1)));
    let connections = Arc::new(Semaphore::new(connections_max));
    tokio::spawn(async move {
        loop {
            let is_allowed = *may_accept.borrow_and_update();
            let accepted = tokio::select! {
                accepted = accept(&listener, &handshakes, &connections), if is_allowed => accepted,
                Ok(()) = may_accept.changed() => continue,
                never = heartbeat.beat_forever() => match never {},
                _ = shutdown.wait_for(|stop| *stop) => return heartbeat.set_idle(),
            };
            let (handshake, connection, tcp, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    if let Some(suppressed) = ErrorReason::PushAccept.record() {
                        tracing::warn!(%error, suppressed, "the push listener cannot accept a connection");
                    }
                    tokio::time::sleep(ACCEPT_BACKOFF).await;
                    continue;
                }
            };
            let (files, ready, handshakes) = (files.clone(), ready.clone(), Arc::clone(&handshakes));
            tokio::spawn(async move {
                let _handshake = handshake;
                if let Some(stream) = accept_tls(files, tcp, peer, &handshakes).await {
                    // Closed only after the server has stopped; the connection is dropped then.
                    let _ = ready.send(Ok(PermitStream::new(stream, connection))).await;
                }
            });
        }
    });
    ReceiverStream::new(incoming)
}

/// The next connection, once there are permits for it and its handshake.
async fn accept(
    listener: &TcpListener,
    handshakes: &Arc<Semaphore>,
    connections: &Arc<Semaphore>,
) -> std::io::Result<(OwnedSemaphorePermit, OwnedSemaphorePermit, TcpStream, SocketAddr)> {
    let connection = Arc::clone(connections).acquire_owned().await.map_err(std::io::Error::other)?;
    let handshake = Arc::clone(handshakes).acquire_owned().await.map_err(std::io::Error::other)?;
    let (tcp, peer) = listener.accept().await?;
    Ok((handshake, connection, tcp, peer))
}

async fn accept_tls(
    files: Reloader<PushTls>,
    tcp: TcpStream,
    peer: SocketAddr,
    handshakes: &Semaphore,
) -> Option<TlsStream<TcpStream>> {
    // Small messages in both directions must not wait for each other.
    let _ = tcp.set_nodelay(true);
    let _ = SockRef::from(&tcp).set_tcp_notsent_lowat(UNSENT_BYTES);
    // Files that were valid at the start stay in use, so there are always some.
    let acceptor = TlsAcceptor::from(Arc::clone(&files.refresh().await.ok()?.tls.config));
    let handshake = tokio::select! {
        result = acceptor.accept(tcp).into_fallible() => Some(result),
        () = handshake_timeout(handshakes) => None,
    };
    match handshake {
        Some(Ok(stream)) => Some(stream),
        Some(Err((error, tcp))) => {
            if let Some(suppressed) = ErrorReason::PushHandshake.record() {
                let hint = handshake_hint(&error);
                tracing::warn!(%peer, %error, suppressed, "rejected a push connection in the TLS handshake{hint}");
            }
            let _ = tokio::time::timeout(LINGER_TIMEOUT, linger(tcp)).await;
            None
        }
        None => {
            if let Some(suppressed) = ErrorReason::PushHandshake.record() {
                tracing::warn!(%peer, suppressed, "a push connection did not finish its TLS handshake in time");
            }
            None
        }
    }
}

/// Returns when a handshake that begins now times out: early whenever no permit is left for the
/// next one.
async fn handshake_timeout(handshakes: &Semaphore) {
    let started = Instant::now();
    let mut checks = tokio::time::interval_at(started + HANDSHAKE_TIMEOUT_FULL, HANDSHAKE_TIMEOUT_FULL);
    loop {
        let now = checks.tick().await;
        if handshakes.available_permits() == 0 || now.duration_since(started) >= HANDSHAKE_TIMEOUT {
            return;
        }
    }
}

/// Reads what the peer has sent already: closing over unread bytes resets the connection, and the
/// peer loses the alert.
async fn linger(mut tcp: TcpStream) {
    let _ = tcp.shutdown().await;
    let mut buffer = [0; 4096];
    let mut remaining = LINGER_BYTES_MAX;
    while let Ok(read @ 1..) = tcp.read(&mut buffer).await {
        remaining = remaining.saturating_sub(read);
        if remaining == 0 {
            return;
        }
    }
}

fn handshake_hint(error: &std::io::Error) -> &'static str {
    use rustls::{AlertDescription, CertificateError, Error};
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    match tls {
        Some(Error::NoCertificatesPresented) => ": the peer sent no certificate (countersign.node.cert)",
        Some(Error::InvalidCertificate(CertificateError::UnknownIssuer)) => {
            ": the peer's certificate is not from the CA in countersign.push.ca"
        }
        Some(Error::InvalidCertificate(_)) => ": the peer's certificate is not valid",
        Some(Error::AlertReceived(AlertDescription::UnknownCA)) => {
            ": the peer does not trust our certificate; its countersign.node.ca must hold the CA of countersign.push.cert"
        }
        Some(Error::AlertReceived(
            AlertDescription::BadCertificate | AlertDescription::CertificateUnknown,
        )) => {
            ": the peer rejects our certificate; does countersign.push.cert carry its countersign.node.server_name?"
        }
        Some(Error::InvalidMessage(_)) => ": the peer does not speak TLS; this port is for data planes",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_silent_handshake_times_out_early_only_when_full() {
        let begun = Instant::now();
        handshake_timeout(&Semaphore::new(0)).await;
        assert!(begun.elapsed() < HANDSHAKE_TIMEOUT / 2);
        let room = Semaphore::new(1);
        assert!(tokio::time::timeout(HANDSHAKE_TIMEOUT_FULL * 2, handshake_timeout(&room)).await.is_err());
    }
}
