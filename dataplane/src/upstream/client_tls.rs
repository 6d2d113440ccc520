//! The client side of TLS towards upstreams: the client certificate, and whether and how servers
//! are verified. Contract section 6.1.
//!
//! A configuration is made once for an identity and cached on the resource that holds it (the
//! upstream, or the ssl of type client that the upstream names). A change of that resource makes a
//! new one with a new generation, so the pool never reuses a connection of the old identity.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use model::{CacheSlot, KeyPair, Snapshot, Upstream, UpstreamIdentity};
use mtls::{ServerTrust, ServerVerifier};
use pki::{TrustAnchors, VerifyError};
use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::sign::CertifiedKey;

use super::balancer::Balancer;
use crate::tls::record::RecordLayerKind;
use crate::tls::site_config;

/// Derived from an upstream once and cached on it.
pub struct PreparedUpstream {
    pub balancer: Balancer,
    /// Of an upstream with an inline client certificate.
    inline_identity: OnceLock<Result<Arc<ClientTlsConfig>, ClientTlsError>>,
}

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

/// One identity and trust.
pub struct ClientTlsConfig {
    base: ClientConfig,
    /// Unique in this process, for the pool.
    pub generation: u64,
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
}

/// The two configurations of one ssl.
#[derive(Default)]
struct SslConfigs {
    unverified: OnceLock<Result<Arc<ClientTlsConfig>, ClientTlsError>>,
    verified: OnceLock<Result<Arc<ClientTlsConfig>, ClientTlsError>>,
}

/// There is no configuration for this upstream.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ClientTlsError {
    /// `tls.client_cert_id` names no ssl. The text is APISIX's, typo included.
    #[error("failed to get ssl cert: ssl id [{0}] not exits")]
    NoSsl(model::Id),
    #[error("failed to get ssl cert: ssl type should be 'client' (ssl id [{0}])")]
    NotClient(model::Id),
    #[error("the client certificate of the upstream (ssl id [{0}]) is blocked: {1}")]
    Blocked(model::Id, String),
    /// rustls cannot use the certificate or its key.
    #[error("the client certificate of the upstream cannot be used: {0}")]
    Unusable(String),
}

pub struct ClientTlsConfigs {
    provider: Arc<CryptoProvider>,
    anchors: Option<Arc<TrustAnchors>>,
    /// Without a client certificate: the first does not verify servers, the second does.
    anonymous: [Arc<ClientTlsConfig>; 2],
    verify_always: bool,
    records: RecordLayerKind,
}

impl ClientTlsConfigs {
    /// `anchors`: of `apisix.ssl.ssl_trusted_certificate`. `verify_always`: `proxy_ssl_verify on`.
    /// `records`: the record layer of long-lived connections.
    ///
    /// # Errors
    /// When rustls rejects the protocol versions.
    pub fn new(
        provider: Arc<CryptoProvider>,
        anchors: Option<Arc<TrustAnchors>>,
        verify_always: bool,
        records: RecordLayerKind,
    ) -> Result<Self, ClientTlsError> {
        let make = |verify| build(&provider, anchors.as_ref(), None, verify, records);
        let anonymous = [make(false)?, make(true)?];
        Ok(Self { provider, anchors, anonymous, verify_always, records })
    }

    fn build(&self, identity: &KeyPair, verify: bool) -> Result<Arc<ClientTlsConfig>, ClientTlsError> {
        build(&self.provider, self.anchors.as_ref(), Some(identity), verify, self.records)
    }

    pub fn prepared(&self, upstream: &Upstream) -> Arc<PreparedUpstream> {
        get_or_init_cached(&upstream.cache, || PreparedUpstream {
            balancer: Balancer::new(upstream),
            inline_identity: OnceLock::new(),
        })
    }

    /// The configuration for an upstream within TLS.
    ///
    /// # Errors
    /// [`ClientTlsError`].
    pub fn client_config(
        &self,
        upstream: &Upstream,
        prepared: &PreparedUpstream,
        snapshot: &Snapshot,
    ) -> Result<Arc<ClientTlsConfig>, ClientTlsError> {
        let verify = upstream.tls.verifies(self.verify_always);
        match &upstream.tls.identity {
            None => {
                let [unverified, verified] = &self.anonymous;
                Ok(Arc::clone(if verify { verified } else { unverified }))
            }
            Some(UpstreamIdentity::Inline(pair)) => {
                prepared.inline_identity.get_or_init(|| self.build(pair, verify)).clone()
            }
            Some(UpstreamIdentity::Ssl(id)) => {
                let ssl = snapshot.ssl(id).ok_or_else(|| ClientTlsError::NoSsl(id.clone()))?;
                if !ssl.client_side {
                    return Err(ClientTlsError::NotClient(id.clone()));
                }
                if let Some(blocked) = &ssl.blocked {
                    return Err(ClientTlsError::Blocked(id.clone(), blocked.reason().to_owned()));
                }
                let pair = ssl.pairs.first().ok_or_else(|| ClientTlsError::NoSsl(id.clone()))?;
                let configs: Arc<SslConfigs> = get_or_init_cached(&ssl.cache, SslConfigs::default);
                let config = if verify { &configs.verified } else { &configs.unverified };
                config.get_or_init(|| self.build(pair, verify)).clone()
            }
        }
    }
}

fn get_or_init_cached<T: Send + Sync + 'static>(slot: &CacheSlot, make: impl FnOnce() -> T) -> Arc<T> {
    match slot.get_or_try_init(|| Ok::<_, std::convert::Infallible>(Arc::new(make()))) {
        Ok(value) => value,
    }
}

static GENERATION: AtomicU64 = AtomicU64::new(1);

fn build(
    provider: &Arc<CryptoProvider>,
    anchors: Option<&Arc<TrustAnchors>>,
    identity: Option<&KeyPair>,
    verify: bool,
    records: RecordLayerKind,
) -> Result<Arc<ClientTlsConfig>, ClientTlsError> {
    let unusable = |error: rustls::Error| ClientTlsError::Unusable(error.to_string());
    let trust = match (verify, anchors) {
        // APISIX's default (contract 6.1).
        (false, _) => ServerTrust::Unverified,
        (true, Some(anchors)) => ServerTrust::Anchors { anchors: Arc::clone(anchors), depth: None },
        (true, None) => ServerTrust::NoAnchors(
            "upstreams are to be verified, but apisix.ssl.ssl_trusted_certificate names no CA bundle",
        ),
    };
    let to_rustls_error = |error: VerifyError| rustls::Error::General(error.to_string());
    let verifier = Arc::new(ServerVerifier::new(trust, Arc::clone(provider), to_rustls_error));
    let builder = ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(pair) => {
            let key: Arc<CertifiedKey> = site_config::certified_key(provider, pair)
                .map_err(|error| ClientTlsError::Unusable(error.to_string()))?;
            builder.with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(key)))
        }
    };
    config.key_log = records.key_log();
    config.enable_secret_extraction = records.extracts_secrets();
    let generation = GENERATION.fetch_add(1, Ordering::Relaxed);
    let (http1, http2, http2_or_http1, without_alpn) = Default::default();
    Ok(Arc::new(ClientTlsConfig { base: config, generation, http1, http2, http2_or_http1, without_alpn }))
}
