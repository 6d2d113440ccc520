//! A TLS configuration towards upstreams, made from what identifies it: the client certificate and
//! the trust in servers.
//!
//! Invariant: two configurations with one key accept the same servers and show the same
//! certificate, so their connections and sessions are interchangeable.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use aws_lc_rs::digest::{Context, SHA256};
use model::{KeyPair, ServerIdentity, UpstreamTls, VerifyPolicy};
use mtls::{AcceptServer, ServerNames, ServerTrust, ServerVerifier};
use pki::{TrustAnchors, VerifyError};
use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::sign::CertifiedKey;

use crate::tls::record::RecordLayerKind;
use crate::tls::site_config;

/// The application protocols that a connection offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alpn {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
    /// HTTP/2, or else HTTP/1.1.
    Http2OrHttp1,
    /// No ALPN: a TCP stream, whose protocol is not known.
    None,
}

impl Alpn {
    fn protocols(self) -> Vec<Vec<u8>> {
        let protocols: &[&[u8]] = match self {
            Self::Http1 => &[b"http/1.1"],
            Self::Http2 => &[b"h2"],
            Self::Http2OrHttp1 => &[b"h2", b"http/1.1"],
            Self::None => &[],
        };
        protocols.iter().map(|protocol| protocol.to_vec()).collect()
    }
}

/// One client certificate, or none, and one trust in servers.
pub struct ClientTlsConfig {
    base: ClientConfig,
    /// Unique in this process, for the pool.
    pub generation: u64,
    /// Whether servers are verified.
    pub verifies: bool,
    pub(super) retired: AtomicBool,
    http1: OnceLock<Arc<ClientConfig>>,
    http2: OnceLock<Arc<ClientConfig>>,
    http2_or_http1: OnceLock<Arc<ClientConfig>>,
    without_alpn: OnceLock<Arc<ClientConfig>>,
}

impl ClientTlsConfig {
    /// The configuration for these protocols. Sessions are resumed for the same protocols only,
    /// since a server may bind a session to its protocol.
    pub fn for_protocol(&self, alpn: Alpn) -> &Arc<ClientConfig> {
        let variant = match alpn {
            Alpn::Http1 => &self.http1,
            Alpn::Http2 => &self.http2,
            Alpn::Http2OrHttp1 => &self.http2_or_http1,
            Alpn::None => &self.without_alpn,
        };
        variant.get_or_init(|| {
            let mut config = self.base.clone();
            config.alpn_protocols = alpn.protocols();
            config.resumption = Resumption::default();
            Arc::new(config)
        })
    }

    /// Whether no resource of the current snapshot uses it any more: its idle connections are
    /// closed, and no further ones are kept.
    pub fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Relaxed)
    }
}

/// The trust in the servers of upstreams that say nothing.
#[derive(Debug, Default)]
pub struct TrustDefaults {
    /// `apisix.ssl.ssl_trusted_certificate`, for upstreams without `tls.ca_certs`.
    pub anchors: Option<Arc<TrustAnchors>>,
    /// Whose servers are verified.
    pub verify: VerifyPolicy,
    /// `proxy_ssl_verify_depth`: most intermediates; `None` for the default of `pki`.
    pub depth: Option<u32>,
}

/// What identifies a configuration: a SHA-256 over the client certificate and the trust.
pub(super) type TlsKey = [u8; 32];

pub(super) struct ConfigFactory {
    provider: Arc<CryptoProvider>,
    defaults: TrustDefaults,
    /// A digest over the default anchors, which may be hundreds.
    default_anchors: [u8; 32],
    records: RecordLayerKind,
}

static GENERATION: AtomicU64 = AtomicU64::new(1);

impl ConfigFactory {
    pub(super) fn new(
        provider: Arc<CryptoProvider>,
        defaults: TrustDefaults,
        records: RecordLayerKind,
    ) -> Self {
        let default_anchors = defaults.anchors.as_deref().map(TrustAnchors::digest).unwrap_or_default();
        Self { provider, defaults, default_anchors, records }
    }

    /// The same with other defaults.
    pub(super) fn with_defaults(&self, defaults: TrustDefaults) -> Self {
        Self::new(Arc::clone(&self.provider), defaults, self.records)
    }

    pub(super) fn verifies(&self, tls: &UpstreamTls) -> bool {
        tls.verifies(self.defaults.verify)
    }

    /// The key of the configuration that [`ConfigFactory::build`] makes. The leaf stands for its
    /// private key: a pair whose key does not belong to it is no resource.
    pub(super) fn key(&self, tls: &UpstreamTls, identity: Option<&KeyPair>) -> TlsKey {
        let mut context = Context::new(&SHA256);
        let chain = identity.map(|pair| pair.chain.as_slice()).unwrap_or_default();
        context.update(&chain.len().to_be_bytes());
        for certificate in chain {
            context.update(certificate.fingerprint_sha256());
        }
        if self.verifies(tls) {
            context.update(b"verified");
            match tls.anchors.as_deref() {
                Some(anchors) => context.update(&anchors.digest()),
                None => context.update(&self.default_anchors),
            }
            context.update(&self.defaults.depth.map_or([0xff; 5], |depth| {
                let [a, b, c, d] = depth.to_be_bytes();
                [0, a, b, c, d]
            }));
            if let Some(servers) = &tls.verify_identity {
                context.update(servers.source().to_string().as_bytes());
            }
        }
        let mut key = TlsKey::default();
        key.copy_from_slice(context.finish().as_ref());
        key
    }

    /// # Errors
    /// A text: rustls cannot use the certificate or its key.
    pub(super) fn build(
        &self,
        tls: &UpstreamTls,
        identity: Option<&KeyPair>,
    ) -> Result<ClientTlsConfig, String> {
        let to_rustls_error = |error: VerifyError| rustls::Error::General(error.to_string());
        let verifier = ServerVerifier::new(self.trust(tls), Arc::clone(&self.provider), to_rustls_error);
        let builder = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut base = match identity {
            None => builder.with_no_client_auth(),
            Some(pair) => {
                let key: Arc<CertifiedKey> =
                    site_config::certified_key(&self.provider, pair).map_err(|error| error.to_string())?;
                builder.with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(key)))
            }
        };
        base.key_log = self.records.key_log();
        base.enable_secret_extraction = self.records.extracts_secrets();
        let (http1, http2, http2_or_http1, without_alpn) = Default::default();
        Ok(ClientTlsConfig {
            base,
            generation: GENERATION.fetch_add(1, Ordering::Relaxed),
            verifies: self.verifies(tls),
            retired: AtomicBool::new(false),
            http1,
            http2,
            http2_or_http1,
            without_alpn,
        })
    }

    fn trust(&self, tls: &UpstreamTls) -> ServerTrust {
        if !self.verifies(tls) {
            // APISIX's default (contract 6.1).
            return ServerTrust::Unverified;
        }
        let names = match &tls.verify_identity {
            Some(servers) => ServerNames::Accepted(Arc::new(AcceptedServers(Arc::clone(servers)))),
            None => ServerNames::InHandshake,
        };
        match tls.anchors.as_ref().or(self.defaults.anchors.as_ref()) {
            Some(anchors) => {
                ServerTrust::Anchors { anchors: Arc::clone(anchors), depth: self.defaults.depth, names }
            }
            None => ServerTrust::NoAnchors(
                "upstreams are to be verified, and neither tls.ca_certs nor apisix.ssl.ssl_trusted_certificate names a CA bundle",
            ),
        }
    }
}

/// `tls.verify_identity`.
#[derive(Debug)]
struct AcceptedServers(Arc<ServerIdentity>);

impl AcceptServer for AcceptedServers {
    fn accepts(&self, server: &pki::Identity) -> bool {
        self.0.accepts(server)
    }

    fn expected(&self) -> &'static str {
        "one of tls.verify_identity"
    }
}
