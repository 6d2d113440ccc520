//! The connection to a collector: TCP, and TLS where the endpoint is `https://`.
//!
//! Invariant: with TLS, nothing is sent before the collector's certificate was verified for the
//! host of the endpoint, under the CAs that the files have now.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::Uri;
use hyper_util::rt::TokioIo;
use mtls::{
    ConfiguredFile, Credentials, FileError, LoadedCredentials, ServerNames, ServerTrust, ServerVerifier,
};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use pki::{TrustAnchors, VerifyError};
use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use rustls::sign::SingleCertAndKey;
use rustls::{CertificateError, ClientConfig, OtherError};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::codegen::Service;
use tonic::transport::{Channel, Endpoint};

use super::{ExportSettings, ExportTls};

/// TCP and TLS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// A connection on which nothing comes back ends, so that the next export makes a new one.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// The TLS configuration towards a collector.
pub(crate) struct CollectorTls(Arc<ClientConfig>);

impl fmt::Debug for CollectorTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CollectorTls").finish_non_exhaustive()
    }
}

impl CollectorTls {
    pub(super) fn new(ca: &ConfiguredFile, contents: &Credentials) -> Result<Self, FileError> {
        let ca = ca.by_ref();
        let anchors = TrustAnchors::new(contents.ca.clone()).map_err(|error| ca.error(error))?;
        let trust =
            ServerTrust::Anchors { anchors: Arc::new(anchors), depth: None, names: ServerNames::InHandshake };
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let to_rustls_error =
            |error: VerifyError| CertificateError::Other(OtherError(Arc::new(error))).into();
        let verifier = ServerVerifier::new(trust, Arc::clone(&provider), to_rustls_error);
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| ca.error(error))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match &contents.pair {
            None => builder.with_no_client_auth(),
            Some(pair) => {
                let certified = pair.to_certified_key(&provider).map_err(|error| ca.error(error))?;
                builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certified)))
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        // A resumed session would skip the check of the certificate.
        config.resumption = Resumption::disabled();
        Ok(Self(Arc::new(config)))
    }
}

/// The client of one collector.
pub(super) struct CollectorClient {
    pub(super) settings: Arc<ExportSettings>,
    pub(super) service: TraceServiceClient<Channel>,
    /// What its connections use. `None`: no TLS.
    credentials: Option<Arc<LoadedCredentials<CollectorTls>>>,
}

impl CollectorClient {
    /// Connects with the first export.
    ///
    /// # Errors
    /// When the files of TLS, or the address, cannot be used.
    pub(super) async fn new(settings: &Arc<ExportSettings>) -> Result<Self, String> {
        let credentials = match &settings.tls {
            None => None,
            Some(tls) => Some(tls.files.refresh().await.map_err(|error| error.to_string())?),
        };
        let scheme = if credentials.is_some() { "https" } else { "http" };
        let origin =
            format!("{scheme}://{}", settings.address).parse().map_err(|error| format!("{error}"))?;
        // `http`: for `https` tonic would start TLS itself, which is the connector's task.
        let endpoint = Endpoint::from_shared(format!("http://{}", settings.address))
            .map_err(|error| crate::observability::error_chain(&error))?
            .origin(origin)
            .user_agent(concat!("OTel-OTLP-Exporter-countersign/", env!("CARGO_PKG_VERSION")))
            .map_err(|error| crate::observability::error_chain(&error))?
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT);
        let connector =
            CollectorConnector { settings: Arc::clone(settings), credentials: credentials.clone() };
        let service = TraceServiceClient::new(endpoint.connect_with_connector_lazy(connector));
        Ok(Self { settings: Arc::clone(settings), service, credentials })
    }

    /// Whether its connections use these settings, and what the files have now.
    pub(super) async fn is_current(&self, settings: &Arc<ExportSettings>) -> bool {
        if !Arc::ptr_eq(&self.settings, settings) {
            return false;
        }
        let (Some(tls), Some(used)) = (&settings.tls, &self.credentials) else { return true };
        // Files that cannot be used leave those in use.
        tls.files.refresh().await.map_or(true, |newest| Arc::ptr_eq(&newest, used))
    }
}

#[derive(Clone)]
struct CollectorConnector {
    settings: Arc<ExportSettings>,
    credentials: Option<Arc<LoadedCredentials<CollectorTls>>>,
}

/// TCP or TLS.
trait CollectorIo: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> CollectorIo for T {}

impl CollectorConnector {
    async fn connect(self) -> io::Result<Box<dyn CollectorIo>> {
        let tcp = TcpStream::connect(&*self.settings.address).await?;
        tcp.set_nodelay(true)?;
        let (Some(ExportTls { server_name, .. }), Some(credentials)) =
            (&self.settings.tls, &self.credentials)
        else {
            return Ok(Box::new(tcp));
        };
        let tls = TlsConnector::from(Arc::clone(&credentials.tls.0));
        let name: ServerName<'static> = server_name.clone();
        Ok(Box::new(tls.connect(name, tcp).await?))
    }
}

impl Service<Uri> for CollectorConnector {
    type Response = TokioIo<Box<dyn CollectorIo>>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move { connector.connect().await.map(TokioIo::new) })
    }
}
