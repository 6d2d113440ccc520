//! A client of the gateway: HTTP/1.1 or HTTP/2 over TLS, with the name, certificate and versions
//! that a test chooses.
//!
//! A failure is a value ([`ClientError`]) with the TLS alert, so that tests can tell a rejected
//! handshake from an HTTP response.
//!
//! Invariant: a request is sent after the handshake ended on this side, and [`EVENT_TIMEOUT`]
//! bounds every wait.

use std::error::Error;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, Version};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    AlertDescription, ClientConfig, HandshakeKind, ProtocolVersion, RootCertStore, SupportedProtocolVersion,
};
use serde_json::Value;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::credentials::Credential;
use crate::process::EVENT_TIMEOUT;

/// More header fields than the gateway accepts in a response.
const HEADERS_MAX: usize = 10_000;
const HEADER_LIST_MAX: u32 = 1 << 20;

/// The body of a request.
pub type Body = BoxBody<Bytes, Box<dyn Error + Send + Sync>>;

/// A body in memory.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Http {
    One,
    Two,
}

impl Http {
    fn alpn(self) -> Vec<u8> {
        match self {
            Self::One => b"http/1.1".to_vec(),
            Self::Two => b"h2".to_vec(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tls {
    V12,
    V13,
}

impl Tls {
    fn version(self) -> &'static SupportedProtocolVersion {
        match self {
            Self::V12 => &rustls::version::TLS12,
            Self::V13 => &rustls::version::TLS13,
        }
    }
}

/// Why there is no response.
#[derive(Debug)]
pub struct ClientError {
    pub during: &'static str,
    /// The alert that the peer sent.
    pub alert: Option<AlertDescription>,
    /// All errors of the chain, for the message of a failed test.
    pub detail: String,
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "refused during {}: {} (alert: {:?})", self.during, self.detail, self.alert)
    }
}

impl ClientError {
    fn new(during: &'static str, problem: &(dyn Error + 'static)) -> Self {
        let mut detail = String::new();
        let mut alert = None;
        let mut next = Some(problem);
        while let Some(problem) = next {
            detail.push_str(&format!("{problem}; "));
            alert = alert.or_else(|| alert_in(problem));
            next = problem.source();
        }
        Self { during, alert, detail }
    }
}

/// The alert behind this error.
pub fn alert_in(problem: &(dyn Error + 'static)) -> Option<AlertDescription> {
    if let Some(rustls::Error::AlertReceived(alert)) = problem.downcast_ref() {
        return Some(*alert);
    }
    let inner = problem.downcast_ref::<std::io::Error>()?.get_ref()?;
    match inner.downcast_ref() {
        Some(rustls::Error::AlertReceived(alert)) => Some(*alert),
        _ => None,
    }
}

/// A response with its whole body.
#[derive(Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub version: Version,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Reply {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|problem| panic!("{problem}: {} {:?}", self.status, self.text()))
    }
}

/// A client's certificate chain and key, valid or not.
#[derive(Clone)]
pub struct ClientCertificate(Arc<CertifiedKey>);

impl ClientCertificate {
    /// A chain, leaf first, and the leaf's key.
    pub fn new(chain: Vec<CertificateDer<'static>>, key: &PrivateKeyDer<'static>) -> Self {
        let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(key).expect("a key that signs");
        Self(Arc::new(CertifiedKey::new(chain, key)))
    }
}

impl From<&Credential> for ClientCertificate {
    fn from(credential: &Credential) -> Self {
        Self::new(credential.chain(), &credential.key())
    }
}

/// A client of one site of the gateway.
#[derive(Clone)]
pub struct HttpClient {
    address: SocketAddr,
    host: String,
    sni: Option<String>,
    roots: Vec<CertificateDer<'static>>,
    identity: Option<ClientCertificate>,
    http: Http,
    tls: Option<Tls>,
}

impl HttpClient {
    /// Connects to `address` for `host` and trusts `roots`; HTTP/1.1, either TLS version, no
    /// certificate.
    pub fn new(address: SocketAddr, host: &str, roots: Vec<CertificateDer<'static>>) -> Self {
        Self {
            address,
            host: host.to_owned(),
            sni: Some(host.to_owned()),
            roots,
            identity: None,
            http: Http::One,
            tls: None,
        }
    }

    pub fn identity(self, identity: &Credential) -> Self {
        self.certificate(&ClientCertificate::from(identity))
    }

    /// Presents this chain, whatever it is.
    pub fn certificate(mut self, shown: &ClientCertificate) -> Self {
        self.identity = Some(shown.clone());
        self
    }

    pub fn host(&self) -> &str {
        &self.host
    }

    /// Sends another name in SNI than in the Host header.
    pub fn sni(mut self, sni: &str) -> Self {
        self.sni = Some(sni.to_owned());
        self
    }

    /// Sends no SNI.
    pub fn no_sni(mut self) -> Self {
        self.sni = None;
        self
    }

    pub fn http(mut self, http: Http) -> Self {
        self.http = http;
        self
    }

    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }

    pub fn config(&self) -> ClientConfig {
        let versions: Vec<_> = match self.tls {
            Some(tls) => vec![tls.version()],
            None => vec![&rustls::version::TLS13, &rustls::version::TLS12],
        };
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&versions)
            .expect("the versions are supported")
            .with_root_certificates(self.root_store());
        let mut config = match &self.identity {
            Some(ClientCertificate(shown)) => builder
                .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(CertifiedKey::clone(shown)))),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![self.http.alpn()];
        config.enable_sni = self.sni.is_some();
        config
    }

    pub fn root_store(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(self.roots.iter().cloned());
        roots
    }

    /// The expected name of the server.
    pub fn server_name(&self) -> ServerName<'static> {
        let name = self.sni.as_ref().unwrap_or(&self.host);
        ServerName::try_from(name.clone()).expect("a valid name")
    }

    /// TCP and TLS up to the end of the handshake on this side.
    ///
    /// # Errors
    /// When the peer ends it first.
    pub async fn handshake(&self) -> Result<TlsStream<TcpStream>, ClientError> {
        self.handshake_with(self.config()).await
    }

    /// As [`HttpClient::handshake`], with a configuration that outlives the connection (to resume
    /// sessions).
    ///
    /// # Errors
    /// When the peer ends it first.
    pub async fn handshake_with(
        &self,
        config: impl Into<Arc<ClientConfig>>,
    ) -> Result<TlsStream<TcpStream>, ClientError> {
        let tcp = TcpStream::connect(self.address)
            .await
            .map_err(|problem| ClientError::new("connect", &problem))?;
        tcp.set_nodelay(true).expect("TCP_NODELAY can be set");
        let connecting = TlsConnector::from(config.into()).connect(self.server_name(), tcp);
        bounded("handshake", connecting).await.map_err(|problem| ClientError::new("handshake", &problem))
    }

    /// The alert of a rejected handshake. In TLS 1.3 a client gets it with the next read, so this
    /// reads, and sends nothing. Panics when the server accepts.
    pub async fn expect_alert(&self) -> AlertDescription {
        let refused = match self.handshake().await {
            Err(refused) => refused,
            Ok(mut stream) => match bounded("read", stream.read(&mut [0; 1])).await {
                Err(problem) => ClientError::new("the first read", &problem),
                Ok(read) => panic!("the server accepted the handshake (read {read} bytes after it)"),
            },
        };
        refused.alert.unwrap_or_else(|| panic!("no alert: {refused}"))
    }

    /// Connects for any number of requests.
    ///
    /// # Errors
    /// When the handshake is rejected.
    pub async fn connect(&self) -> Result<HttpConnection, ClientError> {
        self.connect_with(self.config()).await
    }

    /// As [`HttpClient::connect`], with a configuration that outlives the connection (to resume
    /// sessions).
    ///
    /// # Errors
    /// When the handshake is rejected.
    pub async fn connect_with(
        &self,
        config: impl Into<Arc<ClientConfig>>,
    ) -> Result<HttpConnection, ClientError> {
        let stream = self.handshake_with(config).await?;
        let protocol = stream.get_ref().1.protocol_version();
        let resumed = stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed);
        let (sender, ended) = match self.http {
            Http::One => {
                let (sender, connection) = http1::Builder::new()
                    .max_headers(HEADERS_MAX)
                    .handshake(TokioIo::new(stream))
                    .await
                    .map_err(|problem| ClientError::new("HTTP/1.1 set-up", &problem))?;
                (Sender::One(sender), ended(connection))
            }
            Http::Two => {
                assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]), "the gateway chose h2");
                let (sender, connection) = http2::Builder::new(TokioExecutor::new())
                    .max_header_list_size(HEADER_LIST_MAX)
                    .handshake(TokioIo::new(stream))
                    .await
                    .map_err(|problem| ClientError::new("HTTP/2 set-up", &problem))?;
                (Sender::Two(sender), ended(connection))
            }
        };
        Ok(HttpConnection { host: self.host.clone(), sender, protocol, resumed, ended })
    }

    /// One GET on a new connection.
    ///
    /// # Errors
    /// When there is no HTTP response.
    pub async fn get(&self, path: &str) -> Result<Reply, ClientError> {
        self.connect().await?.get(path).await
    }
}

enum Sender {
    One(http1::SendRequest<Body>),
    Two(http2::SendRequest<Body>),
}

/// An open connection to the gateway.
pub struct HttpConnection {
    host: String,
    sender: Sender,
    protocol: Option<ProtocolVersion>,
    resumed: bool,
    /// Ends with the connection.
    ended: JoinHandle<()>,
}

/// Drives a connection; the handle ends when it does.
fn ended(connection: impl Future<Output = hyper::Result<()>> + Send + 'static) -> JoinHandle<()> {
    tokio::spawn(async move { drop(connection.await) })
}

impl HttpConnection {
    /// A connection without TLS.
    ///
    /// # Errors
    /// When it cannot connect.
    pub async fn plain(address: SocketAddr, host: &str) -> Result<Self, ClientError> {
        let tcp =
            TcpStream::connect(address).await.map_err(|problem| ClientError::new("connect", &problem))?;
        let (sender, connection) = http1::Builder::new()
            .max_headers(HEADERS_MAX)
            .handshake(TokioIo::new(tcp))
            .await
            .map_err(|problem| ClientError::new("HTTP/1.1 set-up", &problem))?;
        let ended = ended(connection);
        Ok(Self { host: host.to_owned(), sender: Sender::One(sender), protocol: None, resumed: false, ended })
    }

    pub fn resumed(&self) -> bool {
        self.resumed
    }

    /// Waits until the gateway ends the connection.
    pub async fn ended(&mut self) {
        bounded("the gateway ends the connection", &mut self.ended).await.expect("the connection's task");
    }

    pub fn protocol(&self) -> Option<ProtocolVersion> {
        self.protocol
    }

    /// A request for this host: absolute in HTTP/2, with a Host header in HTTP/1.1.
    pub fn request(&self, method: Method, path: &str, body: Body) -> Request<Body> {
        let builder = Request::builder().method(method);
        let builder = match self.sender {
            Sender::One(_) => builder.uri(path).header("host", &self.host),
            Sender::Two(_) => builder.uri(format!("https://{}{path}", self.host)),
        };
        builder.body(body).expect("a valid request")
    }

    /// Sends a request and gives the response, its body unread.
    ///
    /// # Errors
    /// When there is no HTTP response.
    pub async fn send(&mut self, request: Request<Body>) -> Result<Response<Incoming>, ClientError> {
        let sent = async {
            match &mut self.sender {
                Sender::One(sender) => {
                    sender.ready().await?;
                    sender.send_request(request).await
                }
                Sender::Two(sender) => {
                    sender.ready().await?;
                    sender.send_request(request).await
                }
            }
        };
        bounded("answer", sent).await.map_err(|problem| ClientError::new("the request", &problem))
    }

    /// Sends a request and reads the whole response.
    ///
    /// # Errors
    /// When there is no whole HTTP response.
    pub async fn fetch(&mut self, request: Request<Body>) -> Result<Reply, ClientError> {
        let (head, body) = self.send(request).await?.into_parts();
        let body = bounded("body", body.collect())
            .await
            .map_err(|problem| ClientError::new("the answer's body", &problem))?
            .to_bytes();
        Ok(Reply { status: head.status, version: head.version, headers: head.headers, body })
    }

    /// # Errors
    /// When there is no whole HTTP response.
    pub async fn get(&mut self, path: &str) -> Result<Reply, ClientError> {
        let request = self.request(Method::GET, path, full(""));
        self.fetch(request).await
    }
}

/// Waits for an event; panics after [`EVENT_TIMEOUT`].
pub async fn bounded<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(EVENT_TIMEOUT, future)
        .await
        .unwrap_or_else(|_| panic!("waited {EVENT_TIMEOUT:?} in vain for: {what}"))
}
