//! An HTTP client for the Admin API: hyper over rustls with the project's own verifier.
//!
//! One connection at a time; one that was closed while it was idle is opened again. Invariants: the
//! server's certificate is verified before anything is sent; a write is never sent twice.

use std::error::Error as StdError;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, HeaderMap, HeaderValue, IF_MATCH};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use mtls::{CertKeyPair, FileError, ServerNames, ServerTrust, ServerVerifier};
use pki::{TrustAnchors, VerifyError};
use rustls::client::Resumption;
use rustls::{CertificateError, ClientConfig, OtherError};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use zeroize::Zeroizing;

use super::target::{ApiTarget, PresentedKey};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// For a response, beside the time that a request asks the server to wait.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes of a response: a list of 100,000 sites has a third of it.
const RESPONSE_BYTES_MAX: usize = 2 << 30;

/// A request below `/apisix/admin`.
#[derive(Debug, Clone)]
pub(super) struct ApiRequest {
    pub method: Method,
    /// Behind `/apisix/admin/`, encoded, with its query.
    pub path: String,
    pub body: Option<Vec<u8>>,
    /// The header `If-Match`.
    pub if_match: Option<String>,
    /// The `?wait=` in `path`.
    pub wait: Duration,
}

impl ApiRequest {
    pub(super) fn get(path: impl Into<String>) -> Self {
        Self::new(Method::GET, path, None)
    }

    pub(super) fn new(method: Method, path: impl Into<String>, body: Option<Vec<u8>>) -> Self {
        Self { method, path: path.into(), body, if_match: None, wait: Duration::ZERO }
    }
}

/// A response.
#[derive(Debug)]
pub(super) struct ApiReply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// Why there is no response.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    #[error("{0}")]
    File(#[from] FileError),
    #[error("the client's TLS cannot be configured: {0}")]
    TlsConfig(rustls::Error),
    #[error("the admin key from {0} has characters that no HTTP header can hold")]
    KeyText(String),
    #[error("cannot connect to {address}: {error}. {}", connect_hint(.error))]
    Connect { address: String, error: io::Error },
    #[error("{address} does not respond within {} s. Is it the Admin API, and is it overloaded?", .after.as_secs())]
    Timeout { address: String, after: Duration },
    #[error(
        "{address}: the server's certificate is not trusted: {problem}. Trusted is what {ca} holds; name the CA of the Admin API's \
         certificate with --ca FILE or COUNTERSIGN_ADMIN_CA"
    )]
    Untrusted { address: String, problem: Box<VerifyError>, ca: String },
    #[error(
        "{address}: the server's certificate has another name: {problem}. If it is the right server, give a name of its certificate with \
         --server-name NAME or COUNTERSIGN_ADMIN_SERVER_NAME"
    )]
    WrongName { address: String, problem: Box<VerifyError> },
    #[error(
        "{address}: the server ended the TLS connection with the alert {alert:?}: it may not accept this client certificate; name another \
         with --cert FILE and --cert-key FILE"
    )]
    Alert { address: String, alert: rustls::AlertDescription },
    #[error("{address} does not speak TLS: write http:// in the URL if that is meant, else check the port")]
    NotTls { address: String },
    #[error("{address}: the TLS handshake failed: {error}")]
    Handshake { address: String, error: io::Error },
    #[error("{address}: the connection broke: {error}")]
    Broken { address: String, error: hyper::Error },
    #[error(
        "{address}: the connection broke after the change was sent: {error}. It is not known whether it was made: read the resource before you \
         repeat it"
    )]
    UnknownResult { address: String, error: hyper::Error },
    #[error("{address}: the response cannot be read: {problem}")]
    Body { address: String, problem: String },
}

impl ClientError {
    /// Whether another attempt may succeed without a change of flags.
    pub(super) fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Connect { .. }
                | Self::Timeout { .. }
                | Self::Handshake { .. }
                | Self::Broken { .. }
                | Self::UnknownResult { .. }
                | Self::Body { .. }
        )
    }
}

fn connect_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => {
            "Nothing listens there: does the control plane run, and is this its address (--url URL, COUNTERSIGN_ADMIN_URL, or \
             deployment.admin.admin_listen in the configuration of -c FILE)?"
        }
        _ => "Check the host and the port (--url URL or COUNTERSIGN_ADMIN_URL), and the network between",
    }
}

/// The client.
pub(super) struct ApiClient {
    target: ApiTarget,
    tls: Option<TlsConnector>,
    key: Option<HeaderValue>,
    connection: Option<SendRequest<Full<Bytes>>>,
}

impl ApiClient {
    /// Reads the files of the target. Connects at the first request.
    ///
    /// # Errors
    /// When a file cannot be used.
    pub(super) fn new(target: ApiTarget) -> Result<Self, ClientError> {
        let tls = target.https.then(|| tls_connector(&target)).transpose()?;
        let key = target.key.as_ref().map(key_header).transpose()?;
        Ok(Self { target, tls, key, connection: None })
    }

    pub(super) fn target(&self) -> &ApiTarget {
        &self.target
    }

    /// Sends a request and reads the whole response, whatever its status.
    ///
    /// # Errors
    /// [`ClientError`]; the message names the flag that changes it.
    pub(super) async fn send(&mut self, request: &ApiRequest) -> Result<ApiReply, ClientError> {
        let reused = self.connection.as_ref().is_some_and(|connection| !connection.is_closed());
        match self.send_once(request).await {
            // The server may close an idle connection while a request is on its way.
            Err(ClientError::Broken { .. }) if reused && request.method == Method::GET => {
                self.connection = None;
                self.send_once(request).await
            }
            result => result,
        }
    }

    async fn send_once(&mut self, request: &ApiRequest) -> Result<ApiReply, ClientError> {
        let after = RESPONSE_TIMEOUT + request.wait;
        match timeout(after, self.exchange(request)).await {
            Ok(result) => result,
            Err(_) => {
                self.connection = None;
                Err(ClientError::Timeout { address: self.address(), after })
            }
        }
    }

    async fn exchange(&mut self, request: &ApiRequest) -> Result<ApiReply, ClientError> {
        let mut idle = self.connection.take();
        if let Some(connection) = &mut idle
            && connection.ready().await.is_err()
        {
            idle = None;
        }
        let mut connection = match idle {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        let sent = connection.send_request(self.http_request(request)).await;
        let response = sent.map_err(|error| self.classify(error, request))?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, RESPONSE_BYTES_MAX).collect().await;
        let unreadable = |problem: Box<dyn StdError + Send + Sync>| ClientError::Body {
            address: self.address(),
            problem: problem.to_string(),
        };
        let body = body.map_err(unreadable)?.to_bytes();
        self.connection = Some(connection);
        Ok(ApiReply { status: head.status, headers: head.headers, body })
    }

    fn http_request(&self, request: &ApiRequest) -> Request<Full<Bytes>> {
        let body = Full::new(Bytes::from(request.body.clone().unwrap_or_default()));
        let mut http = Request::new(body);
        *http.method_mut() = request.method.clone();
        // The path is built from encoded segments.
        *http.uri_mut() = format!("/apisix/admin/{}", request.path).parse().unwrap_or_default();
        let headers = http.headers_mut();
        let to_header = |text: &str| HeaderValue::from_str(text).ok();
        headers.extend(to_header(&self.authority()).map(|host| (HOST, host)));
        headers.extend(self.key.clone().map(|key| (http::HeaderName::from_static("x-api-key"), key)));
        headers.extend(request.if_match.as_deref().and_then(to_header).map(|tag| (IF_MATCH, tag)));
        if request.body.is_some() {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        http
    }

    fn authority(&self) -> String {
        let ApiTarget { host, port, .. } = &self.target;
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }

    /// `https://127.0.0.1:9180`, for messages.
    pub(super) fn address(&self) -> String {
        format!("{}://{}", if self.target.https { "https" } else { "http" }, self.authority())
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, ClientError> {
        let dial = TcpStream::connect((self.target.host.as_str(), self.target.port));
        let timed_out = |_| ClientError::Timeout { address: self.address(), after: CONNECT_TIMEOUT };
        let tcp = timeout(CONNECT_TIMEOUT, dial).await.map_err(timed_out)?;
        let failed = |error| ClientError::Connect { address: self.address(), error };
        let tcp = tcp.and_then(|tcp| tcp.set_nodelay(true).map(|()| tcp)).map_err(failed)?;
        let Some(tls) = &self.tls else { return self.handshake(tcp).await };
        let handshake = tls.connect(self.target.server_name.clone(), tcp);
        let stream = timeout(CONNECT_TIMEOUT, handshake).await.map_err(timed_out)?;
        self.handshake(stream.map_err(|error| self.classify_tls(error))?).await
    }

    async fn handshake<S>(&self, stream: S) -> Result<SendRequest<Full<Bytes>>, ClientError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let broken = |error| ClientError::Broken { address: self.address(), error };
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        // Its errors reach the caller by `sender`.
        tokio::spawn(async move { connection.await.ok() });
        Ok(sender)
    }

    /// With TLS 1.3 a server rejects a client certificate after the client's handshake is complete.
    fn classify(&self, error: hyper::Error, request: &ApiRequest) -> ClientError {
        let address = self.address();
        if let Some(alert) = find_rustls_error(&error).and_then(alert) {
            return ClientError::Alert { address, alert };
        }
        if request.method == Method::GET || error.is_canceled() {
            ClientError::Broken { address, error }
        } else {
            ClientError::UnknownResult { address, error }
        }
    }

    fn classify_tls(&self, error: io::Error) -> ClientError {
        let address = self.address();
        let ca = self.target.ca.as_ref().map_or_else(String::new, |ca| ca.path.display().to_string());
        match error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>()) {
            Some(rustls::Error::AlertReceived(alert)) => ClientError::Alert { address, alert: *alert },
            Some(rustls::Error::InvalidMessage(_)) => ClientError::NotTls { address },
            Some(rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(other)))) => {
                match other.downcast_ref::<VerifyError>().cloned() {
                    Some(problem @ VerifyError::NotValidForName { .. }) => {
                        ClientError::WrongName { address, problem: problem.into() }
                    }
                    Some(problem) => ClientError::Untrusted { address, problem: problem.into(), ca },
                    None => ClientError::Handshake { address, error },
                }
            }
            _ => ClientError::Handshake { address, error },
        }
    }
}

fn alert(error: &rustls::Error) -> Option<rustls::AlertDescription> {
    match error {
        rustls::Error::AlertReceived(alert) => Some(*alert),
        _ => None,
    }
}

fn find_rustls_error(error: &hyper::Error) -> Option<&rustls::Error> {
    let mut source = error.source();
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return error.get_ref()?.downcast_ref();
        }
        source = error.source();
    }
    None
}

fn key_header(key: &PresentedKey) -> Result<HeaderValue, ClientError> {
    let PresentedKey { value, source } = key;
    let text: &Zeroizing<String> = value;
    let mut header = HeaderValue::from_str(text).map_err(|_| ClientError::KeyText(source.clone()))?;
    header.set_sensitive(true);
    Ok(header)
}

fn tls_connector(target: &ApiTarget) -> Result<TlsConnector, ClientError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let trust = match &target.ca {
        Some(ca) => {
            let anchors = TrustAnchors::new(ca.by_ref().read_certificates()?);
            let anchors = Arc::new(anchors.map_err(|error| ca.by_ref().error(error))?);
            ServerTrust::Anchors { anchors, depth: None, names: ServerNames::InHandshake }
        }
        None => ServerTrust::NoAnchors("no CA is known for the Admin API"),
    };
    let to_rustls_error = |error: VerifyError| CertificateError::Other(OtherError(Arc::new(error))).into();
    let verifier = ServerVerifier::new(trust, Arc::clone(&provider), to_rustls_error);
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(ClientError::TlsConfig)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match &target.pair {
        None => builder.with_no_client_auth(),
        Some((cert, key)) => {
            let pair = CertKeyPair::read(cert.by_ref(), key.by_ref())?;
            let certified = pair.to_certified_key(&provider).map_err(ClientError::TlsConfig)?;
            builder.with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(certified)))
        }
    };
    // A command opens one connection.
    config.resumption = Resumption::disabled();
    Ok(TlsConnector::from(Arc::new(config)))
}
