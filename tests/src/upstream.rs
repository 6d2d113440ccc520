//! Scripted upstreams of the tests and the demo.
//!
//! An upstream reports each request (its head, and the client certificate's subject) as JSON, and
//! has bodies to stream, hold and check. The last segment of the path selects the behaviour: see
//! [`answer`]. A held response waits until the test opens the gate.

mod echo;
pub mod faulty;
mod fixed;
pub mod framed;
pub mod raw;
mod strict;
pub mod tcp;

use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use data_encoding::HEXLOWER;
use futures_util::{Stream, StreamExt, stream};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rustls::server::danger::ClientCertVerifier;
use rustls::{ServerConfig, SupportedProtocolVersion};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use crate::client::{Body, full};
use crate::credentials::{Authority, Credential, subject};
use crate::tls::{client_verifier, server_config};

pub use fixed::FixedUpstream;
pub use raw::HeadEcho;

/// Bytes of a generated body that are sent at a time.
const CHUNK: usize = 64 * 1024;
/// More header fields than the gateway accepts.
const HEADERS_MAX: usize = 10_000;

/// A running upstream; dropping it ends it.
pub struct Upstream {
    address: SocketAddr,
    state: Arc<UpstreamState>,
    task: JoinHandle<()>,
}

struct UpstreamState {
    name: String,
    /// Verifies client certificates at each request, in a strict upstream.
    judge: Option<Arc<dyn ClientCertVerifier>>,
    connections: AtomicU64,
    /// Those whose client showed no certificate.
    anonymous: AtomicU64,
    /// Open connections.
    open: watch::Sender<u64>,
    /// Requests whose head arrived.
    arrived: watch::Sender<u64>,
    /// Whether held responses may go on.
    gate: watch::Sender<bool>,
}

impl Upstream {
    /// Plain HTTP/1.1 and HTTP/2 (prior knowledge) on a free port.
    pub async fn plain(name: &str) -> Self {
        Self::start(name, any_port(), None, None).await
    }

    pub async fn plain_at(name: &str, address: SocketAddr) -> Self {
        Self::start(name, address, None, None).await
    }

    /// TLS without client certificates.
    pub async fn tls(name: &str, credential: &Credential) -> Self {
        let config = server_config(rustls::DEFAULT_VERSIONS, credential, None);
        Self::start(name, any_port(), Some(config), None).await
    }

    /// TLS of these versions, without client certificates.
    pub async fn tls_of(
        name: &str,
        credential: &Credential,
        versions: &[&'static SupportedProtocolVersion],
    ) -> Self {
        Self::start(name, any_port(), Some(server_config(versions, credential, None)), None).await
    }

    /// TLS that rejects clients without a certificate of `clients`.
    pub async fn demanding(name: &str, credential: &Credential, clients: &Authority) -> Self {
        Self::demanding_at(name, any_port(), credential, clients.certificate_pem()).await
    }

    pub async fn demanding_at(
        name: &str,
        address: SocketAddr,
        credential: &Credential,
        authority_pem: &str,
    ) -> Self {
        let verifier = client_verifier(authority_pem);
        let config = server_config(rustls::DEFAULT_VERSIONS, credential, Some(verifier));
        Self::start(name, address, Some(config), None).await
    }

    /// As nginx with `ssl_verify_client on`: every handshake succeeds, and requests of a client
    /// without a certificate of this authority (PEM) get a 400.
    pub async fn strict(name: &str, credential: &Credential, authority_pem: &str) -> Self {
        let judge = client_verifier(authority_pem);
        let lenient = Arc::new(strict::Lenient(Arc::clone(&judge)));
        let config = server_config(rustls::DEFAULT_VERSIONS, credential, Some(lenient));
        Self::start(name, any_port(), Some(config), Some(judge)).await
    }

    async fn start(
        name: &str,
        address: SocketAddr,
        mut tls: Option<ServerConfig>,
        judge: Option<Arc<dyn ClientCertVerifier>>,
    ) -> Self {
        if let Some(config) = &mut tls {
            config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        }
        let listener = TcpListener::bind(address)
            .await
            .unwrap_or_else(|problem| panic!("upstream {name} cannot listen at {address}: {problem}"));
        let address = listener.local_addr().expect("a listener has an address");
        let state = Arc::new(UpstreamState {
            name: name.to_owned(),
            judge,
            connections: AtomicU64::new(0),
            anonymous: AtomicU64::new(0),
            open: watch::Sender::new(0),
            arrived: watch::Sender::new(0),
            gate: watch::Sender::new(false),
        });
        let acceptor = tls.map(|config| TlsAcceptor::from(Arc::new(config)));
        let task = tokio::spawn(accept(listener, acceptor, Arc::clone(&state)));
        Self { address, state, task }
    }

    /// Ends it and frees its port.
    pub async fn stop(mut self) {
        self.task.abort();
        // The task ends with a cancellation error.
        let _ = (&mut self.task).await;
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Completed handshakes so far.
    pub fn connections(&self) -> u64 {
        self.state.connections.load(Ordering::SeqCst)
    }

    /// Completed handshakes so far in which the client showed no certificate.
    pub fn anonymous(&self) -> u64 {
        self.state.anonymous.load(Ordering::SeqCst)
    }

    pub async fn open_at_most(&self, count: u64) {
        let mut open = self.state.open.subscribe();
        crate::client::bounded("connections to the upstream end", open.wait_for(|now| *now <= count))
            .await
            .expect("the upstream runs");
    }

    /// Connections that are open now.
    pub fn open(&self) -> u64 {
        *self.state.open.borrow()
    }

    /// Requests that arrived so far.
    pub fn requests(&self) -> u64 {
        *self.state.arrived.borrow()
    }

    /// Waits until at least `count` requests arrived.
    pub async fn arrived(&self, count: u64) {
        let mut arrived = self.state.arrived.subscribe();
        crate::client::bounded("a request at the upstream", arrived.wait_for(|seen| *seen >= count))
            .await
            .expect("the upstream runs");
    }

    /// Lets held responses go on, now and later.
    pub fn open_gate(&self) {
        self.state.gate.send_replace(true);
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn any_port() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

async fn accept(listener: TcpListener, acceptor: Option<TlsAcceptor>, state: Arc<UpstreamState>) {
    // Dropping the set with this task ends every connection.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok((tcp, _)) = listener.accept().await else { continue };
        let _ = tcp.set_nodelay(true);
        let state = Arc::clone(&state);
        let acceptor = acceptor.clone();
        connections.spawn(async move {
            let Some(acceptor) = acceptor else { return serve(tcp, ConnectionInfo::default(), state).await };
            let Ok(tls) = acceptor.accept(tcp).await else { return };
            let (_, session) = tls.get_ref();
            let accepted = |judge| strict::accepts(judge, session.peer_certificates());
            let seen = ConnectionInfo {
                refused: !state.judge.as_ref().is_none_or(accepted),
                subject: session.peer_certificates().and_then(|chain| chain.first()).map(subject),
                sni: session.server_name().map(str::to_owned),
                ..ConnectionInfo::default()
            };
            serve(tls, seen, state).await;
        });
    }
}

/// What is known of one connection.
#[derive(Clone, Default)]
struct ConnectionInfo {
    connection: u64,
    /// A strict upstream rejects its certificate.
    refused: bool,
    subject: Option<String>,
    sni: Option<String>,
}

async fn serve<S>(io: S, mut seen: ConnectionInfo, state: Arc<UpstreamState>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    seen.connection = state.connections.fetch_add(1, Ordering::SeqCst) + 1;
    state.anonymous.fetch_add(u64::from(seen.subject.is_none()), Ordering::SeqCst);
    let open = state.open.clone();
    let service = service_fn(move |request| {
        let (state, seen) = (Arc::clone(&state), seen.clone());
        async move { Ok::<_, std::convert::Infallible>(answer(&state, &seen, request).await) }
    });
    let mut server = auto::Builder::new(TokioExecutor::new());
    server.http1().max_headers(HEADERS_MAX);
    open.send_modify(|open| *open += 1);
    let _ = server.serve_connection(TokioIo::new(io), service).await;
    open.send_modify(|open| *open -= 1);
}

/// The last segment of the path selects the behaviour: `echo` streams the request's body back;
/// `sink` reads it and reports its length and SHA-256; `sized?bytes=N` streams the first N bytes of
/// [`pattern`]; `hold` responds when the gate opens; `halves` sends half of its body at once and
/// the rest when the gate opens; `cut` ends the connection there instead; `status?code=N` has that
/// status; `fields?fields=N&bytes=M` has N fields of M bytes. Any other is 200 with a report of the
/// request.
async fn answer(
    state: &Arc<UpstreamState>,
    seen: &ConnectionInfo,
    request: Request<Incoming>,
) -> Response<Body> {
    state.arrived.send_modify(|count| *count += 1);
    if seen.refused {
        let mut response = Response::new(full("the node refuses this certificate\n"));
        *response.status_mut() = StatusCode::BAD_REQUEST;
        return response;
    }
    let behaviour = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
    match behaviour.as_str() {
        "echo" => Response::new(request.into_body().map_err(Into::into).boxed()),
        "sink" => Response::new(full(sink(request.into_body()).await.to_string())),
        "sized" => Response::new(pattern_body(argument(&request, "bytes"))),
        "hold" => {
            opened(state).await;
            Response::new(full(report(state, seen, &request).to_string()))
        }
        "fields" => {
            let value = "y".repeat(argument(&request, "bytes"));
            let fields = (0..argument(&request, "fields")).map(|number| format!("x-{number}"));
            let response = fields.fold(Response::builder(), |response, name| response.header(name, &value));
            response.body(full("")).expect("a valid response")
        }
        "halves" => Response::new(halves(Arc::clone(state))),
        "cut" => Response::new(cut(Arc::clone(state))),
        "status" => {
            let code = u16::try_from(argument(&request, "code")).unwrap_or_default();
            let mut response = Response::new(full(report(state, seen, &request).to_string()));
            *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::BAD_REQUEST);
            response
        }
        _ => {
            let mut report = report(state, seen, &request);
            // Reads the body first, so that the connection can be reused.
            report["trailers"] = sink(request.into_body()).await["trailers"].take();
            Response::builder()
                .header("content-type", "application/json")
                .body(full(format!("{report}\n")))
                .expect("a valid response")
        }
    }
}

async fn opened(state: &UpstreamState) {
    // The state holds the sender: an error is impossible.
    let _ = state.gate.subscribe().wait_for(|open| *open).await;
}

fn argument(request: &Request<Incoming>, name: &str) -> usize {
    let query = request.uri().query().unwrap_or_default();
    query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .find(|(key, _)| *key == name)
        .and_then(|(_, value)| value.parse().ok())
        .unwrap_or_default()
}

fn report(state: &UpstreamState, seen: &ConnectionInfo, request: &Request<Incoming>) -> Value {
    json!({
        "upstream": state.name,
        "client_subject": seen.subject,
        "uri": request.uri().to_string(),
        "method": request.method().as_str(),
        "sni": seen.sni,
        "connection": seen.connection,
        "headers": header_map(request.headers()),
    })
}

/// Header names with their values, joined by `, `.
fn header_map(headers: &HeaderMap) -> Value {
    let mut map = serde_json::Map::new();
    for name in headers.keys() {
        let values: Vec<_> =
            headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes())).collect();
        map.insert(name.to_string(), values.join(", ").into());
    }
    map.into()
}

async fn sink(mut body: Incoming) -> Value {
    let mut digest = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    let mut bytes = 0_usize;
    let mut trailers = None;
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return json!({"bytes": bytes, "broken": true}) };
        if let Some(data) = frame.data_ref() {
            digest.update(data);
            bytes += data.len();
        }
        if let Some(fields) = frame.trailers_ref() {
            trailers = Some(header_map(fields));
        }
    }
    let mut report = json!({"bytes": bytes, "sha256": HEXLOWER.encode(digest.finish().as_ref())});
    if let Some(trailers) = trailers {
        report["trailers"] = trailers;
    }
    report
}

/// SHA-256 in lower-case hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    HEXLOWER.encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref())
}

/// `length` bytes that do not repeat at a power of two, so that a lost, doubled or moved block
/// shows.
pub fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(pattern_byte).collect()
}

fn pattern_byte(index: usize) -> u8 {
    u8::try_from((index % 251) ^ ((index / 251) % 253)).unwrap_or_default()
}

type Piece = Result<Frame<Bytes>, Box<dyn Error + Send + Sync>>;

fn streamed(pieces: impl Stream<Item = Piece> + Send + Sync + 'static) -> Body {
    BodyExt::boxed(StreamBody::new(pieces))
}

/// The first `length` bytes of [`pattern`], generated while they are sent.
pub fn pattern_body(length: usize) -> Body {
    let starts = (0..length).step_by(CHUNK);
    streamed(stream::iter(starts).map(move |start| {
        let end = length.min(start + CHUNK);
        Ok(Frame::data((start..end).map(pattern_byte).collect::<Vec<u8>>().into()))
    }))
}

/// Sent by `halves` before the gate opens.
pub const FIRST_HALF: &str = "the first half, ";
/// Sent by `halves` afterwards.
pub const SECOND_HALF: &str = "the second half";

fn halves(state: Arc<UpstreamState>) -> Body {
    let first = stream::iter([Ok(Frame::data(Bytes::from_static(FIRST_HALF.as_bytes())))]);
    let second = stream::once(async move {
        opened(&state).await;
        Ok(Frame::data(Bytes::from_static(SECOND_HALF.as_bytes())))
    });
    streamed(first.chain(SyncStream::new(second)))
}

fn cut(state: Arc<UpstreamState>) -> Body {
    let first = stream::iter([Ok(Frame::data(Bytes::from_static(FIRST_HALF.as_bytes())))]);
    let end = stream::once(async move {
        opened(&state).await;
        Err("the script says to break off here".into())
    });
    streamed(first.chain(SyncStream::new(end)))
}

/// A stream that is polled through `&mut` only, and so may be shared.
struct SyncStream<S>(std::sync::Mutex<std::pin::Pin<Box<S>>>);

impl<S> SyncStream<S> {
    fn new(stream: S) -> Self {
        Self(std::sync::Mutex::new(Box::pin(stream)))
    }
}

impl<S: Stream> Stream for SyncStream<S> {
    type Item = S::Item;

    fn poll_next(
        self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<S::Item>> {
        let mut inner = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        inner.as_mut().poll_next(context)
    }
}
