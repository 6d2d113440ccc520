//! TCP and mutual TLS 1.3 towards a control plane, with a certificate that is verified again while
//! the connection lives.
//!
//! tonic's own TLS does not show the certificate of the other end, so a stream would outlive it.
//! Invariant: no byte of HTTP/2 leaves before the control plane's certificate was verified under
//! `countersign.node.server_name`, and no session lasts more than [`REVERIFY_INTERVAL`] beyond it.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use futures_util::future::BoxFuture;
use http::Uri;
use hyper_util::rt::TokioIo;
use pki::{Anchors, VerifyError};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::codegen::Service;

use super::{AgentError, files::Material};

/// How often the certificate of the other end is verified again.
const REVERIFY_INTERVAL: Duration = Duration::from_secs(10);

/// Connects to one control plane. A clone shares the certificate of the newest connection.
#[derive(Clone)]
pub(super) struct Connector {
    /// `host:port`
    address: Arc<str>,
    server_name: ServerName<'static>,
    tls: TlsConnector,
    anchors: Arc<Anchors>,
    presented: Arc<Mutex<Presented>>,
}

/// What the control plane sent in its Certificate message, leaf first, and when the leaf ends.
#[derive(Default)]
struct Presented {
    chain: Vec<CertificateDer<'static>>,
    /// Unix seconds.
    not_after: u64,
}

impl Connector {
    /// For the control plane at `address`.
    ///
    /// # Errors
    /// [`AgentError`] when the files or the name cannot be used.
    pub fn new(address: &str, settings: &conf::Node, material: &Material) -> Result<Self, AgentError> {
        let unusable = |field, path: &std::path::Path, problem: String| AgentError::Unusable {
            field,
            path: path.to_owned(),
            problem,
        };
        let server_name = ServerName::try_from(settings.server_name.clone()).map_err(|error| {
            let problem = format!("{:?}: {error}", settings.server_name);
            AgentError::Setting { field: "countersign.node.server_name", problem }
        })?;
        let ca = |problem| unusable("countersign.node.ca", &settings.ca, problem);
        let mut roots = RootCertStore::empty();
        for anchor in &material.ca {
            roots.add(anchor.der().clone()).map_err(|error| ca(error.to_string()))?;
        }
        let anchors = Anchors::new(material.ca.clone()).map_err(|error| ca(error.to_string()))?;
        let chain = material.chain.iter().map(|one| one.der().clone()).collect();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map(|config| config.with_root_certificates(roots))
            .and_then(|config| config.with_client_auth_cert(chain, material.key.der().clone_key()))
            .map_err(|error| unusable("countersign.node.cert", &settings.cert, error.to_string()))?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        // Every connection is a new check.
        config.resumption = rustls::client::Resumption::disabled();
        Ok(Self {
            address: address.into(),
            server_name,
            tls: TlsConnector::from(Arc::new(config)),
            anchors: Arc::new(anchors),
            presented: Arc::default(),
        })
    }

    async fn connect(self) -> io::Result<TlsStream<TcpStream>> {
        let tcp = TcpStream::connect(&*self.address).await?;
        tcp.set_nodelay(true)?;
        let stream = self.tls.connect(self.server_name.clone(), tcp).await?;
        let presented = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let chain: Vec<_> = presented.iter().map(|one| one.clone().into_owned()).collect();
        let leaf = chain.first().and_then(|leaf| pki::Certificate::from_der(leaf).ok());
        let not_after = leaf.map_or(0, |leaf| leaf.not_after().as_secs());
        *self.presented() = Presented { chain, not_after };
        // By the verdict that ends the session later, so that none begins which it would end.
        self.verify().map_err(io::Error::other)?;
        Ok(stream)
    }

    /// Ends when the certificate of the newest connection is no longer good, with the reason.
    pub async fn certificate_ended(&self) -> VerifyError {
        loop {
            let left = self.presented().not_after.saturating_sub(UnixTime::now().as_secs());
            tokio::time::sleep(Duration::from_secs(left + 1).min(REVERIFY_INTERVAL)).await;
            if let Err(error) = self.verify() {
                return error;
            }
        }
    }

    fn verify(&self) -> Result<(), VerifyError> {
        let presented = self.presented();
        let none = || VerifyError::Malformed { cause: "no certificate was sent".to_owned() };
        let (leaf, sent) = presented.chain.split_first().ok_or_else(none)?;
        pki::verify_server(&self.anchors, &self.server_name, leaf, sent, UnixTime::now())
    }

    /// Written in one step: a panic while it was locked leaves nothing half done.
    fn presented(&self) -> MutexGuard<'_, Presented> {
        self.presented.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TlsStream<TcpStream>>;
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
