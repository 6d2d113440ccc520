//! The push listener: TCP, then mutual TLS 1.3, then tonic.
//!
//! Who gets through here is certain to hold a certificate of `countersign.push.ca`; which node it is, `stream` decides.
//! Bounded: connections, handshakes at once, time of a handshake, streams of a connection, silence.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::Stream;
use pki::{ClientAuth, ClientAuthInput};
use proto::push::push_server::{Push, PushServer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use socket2::SockRef;
use telemetry::Heartbeat;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;

use super::PublishError;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// For a refused peer to read the alert.
const LINGER: Duration = Duration::from_secs(1);
const DRAINED_MAX: usize = 64 << 10;
const HANDSHAKES_MAX: usize = 256;
/// A node that is silent for so long is sent a PING, and its connection ends when no answer comes in [`KEEPALIVE_TIMEOUT`]:
/// `?acknowledged=` does not wait for a node that is gone. Longer than a node's own timeout: a node compiles what it is sent on the
/// thread that answers.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(1);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(3);
/// Bytes that may wait in the kernel: a PING behind megabytes of a first delta would be late on a slow network.
const UNSENT_BYTES: u32 = 128 << 10;
/// A node opens one; one more lets it replace a stream that hangs.
const STREAMS_PER_CONNECTION: u32 = 2;
/// After running out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The listening socket.
pub(super) fn bind(address: SocketAddr) -> Result<TcpListener, PublishError> {
    let open = || {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener)
    };
    open().map_err(|source| PublishError::Listen {
        address,
        hint: match source.kind() {
            std::io::ErrorKind::AddrInUse => {
                "; another program has this port: stop it or choose another port"
            }
            std::io::ErrorKind::PermissionDenied => "; ports below 1024 need root",
            std::io::ErrorKind::AddrNotAvailable => "; this machine has no such address",
            _ => "",
        },
        source,
    })
}

/// Most intermediates between a node's certificate and `push.ca`.
const DEPTH: u32 = 6;

/// TLS 1.3 only, with our certificate, demanding one of `push.ca`. No resumption: a new stream is a new check. The policy is the
/// same demand as `pki` states it, for the time that a node's certificate ends.
pub(super) fn server_config(
    settings: &conf::Push,
) -> Result<(Arc<ServerConfig>, Arc<ClientAuth>), PublishError> {
    let chain = certificates("countersign.push.cert", &settings.cert)?;
    let key_text = read("countersign.push.key", &settings.key)?;
    let key_unusable = |problem: String| PublishError::Unusable {
        field: "countersign.push.key",
        path: settings.key.clone(),
        problem,
    };
    let key = pki::PrivateKey::from_pem(&key_text).map_err(|error| key_unusable(error.to_string()))?;
    if let Some(leaf) = chain.first() {
        key.matches(leaf).map_err(|error| {
            key_unusable(format!(
                "{error}; it must belong to countersign.push.cert ({})",
                settings.cert.display()
            ))
        })?;
        warn_about_dates(leaf, &settings.cert);
    }
    let mut roots = RootCertStore::empty();
    let ca_unusable = |problem: String| PublishError::Unusable {
        field: "countersign.push.ca",
        path: settings.ca.clone(),
        problem,
    };
    let anchors = certificates("countersign.push.ca", &settings.ca)?;
    for anchor in &anchors {
        roots.add(anchor.der().clone()).map_err(|error| ca_unusable(error.to_string()))?;
    }
    let policy = ClientAuthInput { anchors, depth: DEPTH, ..ClientAuthInput::default() };
    let policy = ClientAuth::new(policy).map_err(|error| ca_unusable(error.to_string()))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .build()
        .map_err(|error| ca_unusable(error.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| key_unusable(error.to_string()))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain.iter().map(|one| one.der().clone()).collect(), key.der().clone_key())
        .map_err(|error| key_unusable(error.to_string()))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    Ok((Arc::new(config), Arc::new(policy)))
}

/// Serves until shutdown and until every stream has ended.
pub(super) async fn serve<S: Push>(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    service: PushServer<S>,
    heartbeat: Arc<Heartbeat>,
    mut shutdown: watch::Receiver<bool>,
) -> Result<(), tonic::transport::Error> {
    let incoming = handshakes(listener, TlsAcceptor::from(tls), heartbeat, shutdown.clone());
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

type Incoming = Result<TlsStream<TcpStream>, std::io::Error>;

/// Accepts and shakes hands beside each other, so that a slow or silent peer keeps nobody waiting.
fn handshakes(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    heartbeat: Arc<Heartbeat>,
    mut shutdown: watch::Receiver<bool>,
) -> impl Stream<Item = Incoming> {
    let (ready, incoming) = mpsc::channel(16);
    let places = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    tokio::spawn(async move {
        loop {
            let accepted = tokio::select! {
                accepted = accept(&listener, &places) => accepted,
                never = heartbeat.beating() => match never {},
                _ = shutdown.wait_for(|stop| *stop) => return heartbeat.idle(),
            };
            let (place, tcp, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "the push listener cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let (acceptor, ready) = (acceptor.clone(), ready.clone());
            tokio::spawn(async move {
                let _place = place;
                if let Some(stream) = shake_hands(acceptor, tcp, peer).await {
                    // Closed only when the server has stopped; the connection is dropped then.
                    let _ = ready.send(Ok(stream)).await;
                }
            });
        }
    });
    ReceiverStream::new(incoming)
}

/// The next connection, once there is room for its handshake.
async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> std::io::Result<(OwnedSemaphorePermit, TcpStream, SocketAddr)> {
    let place = Arc::clone(places).acquire_owned().await.map_err(std::io::Error::other)?;
    let (tcp, peer) = listener.accept().await?;
    Ok((place, tcp, peer))
}

async fn shake_hands(
    acceptor: TlsAcceptor,
    tcp: TcpStream,
    peer: SocketAddr,
) -> Option<TlsStream<TcpStream>> {
    // Small messages each way must not wait for each other.
    let _ = tcp.set_nodelay(true);
    let _ = SockRef::from(&tcp).set_tcp_notsent_lowat(UNSENT_BYTES);
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(tcp).into_fallible()).await {
        Ok(Ok(stream)) => Some(stream),
        Ok(Err((error, tcp))) => {
            tracing::warn!(%peer, %error, "refused a push connection in the TLS handshake{}", advice(&error));
            let _ = tokio::time::timeout(LINGER, drain(tcp)).await;
            None
        }
        Err(_) => {
            tracing::warn!(%peer, "a push connection did not finish its TLS handshake in time");
            None
        }
    }
}

/// Reads what the peer has sent already: closing over unread bytes makes the kernel reset the connection, and the peer would
/// lose the alert that tells it why.
async fn drain(mut tcp: TcpStream) {
    let _ = tcp.shutdown().await;
    let mut buffer = [0; 4096];
    let mut left = DRAINED_MAX;
    while let Ok(read @ 1..) = tcp.read(&mut buffer).await {
        left = left.saturating_sub(read);
        if left == 0 {
            return;
        }
    }
}

fn advice(error: &std::io::Error) -> &'static str {
    use rustls::{AlertDescription, CertificateError, Error};
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    match tls {
        Some(Error::NoCertificatesPresented) => ": the peer showed no certificate (countersign.node.cert)",
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
            ": the peer refuses our certificate; does countersign.push.cert carry its countersign.node.server_name?"
        }
        Some(Error::InvalidMessage(_)) => ": the peer does not speak TLS; this port is for data planes",
        _ => "",
    }
}

fn certificates(field: &'static str, path: &Path) -> Result<Vec<pki::Certificate>, PublishError> {
    let text = read(field, path)?;
    pki::certificates_from_pem(&text).map_err(|error| PublishError::Unusable {
        field,
        path: path.to_owned(),
        problem: error.to_string(),
    })
}

fn read(field: &'static str, path: &Path) -> Result<zeroize::Zeroizing<String>, PublishError> {
    let text = std::fs::read_to_string(path);
    text.map(zeroize::Zeroizing::new).map_err(|source| PublishError::Unreadable {
        field,
        path: path.to_owned(),
        source,
    })
}

/// An expired certificate is served, because refusing to start would take the Admin API down too; nodes refuse it.
fn warn_about_dates(leaf: &pki::Certificate, path: &Path) {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let path = path.display();
    if leaf.not_after().as_secs() < now {
        tracing::warn!(
            "countersign.push.cert: {path} has expired: every data plane will refuse it; issue a new one"
        );
    } else if leaf.not_before().as_secs() > now {
        tracing::warn!("countersign.push.cert: {path} is not valid yet: is this machine's clock right?");
    }
}
