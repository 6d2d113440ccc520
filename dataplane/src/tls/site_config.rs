//! The prepared TLS configuration of a site: certificates, client policy, versions.
//!
//! [`SiteConfigFactory`] builds it at the site's first handshake and caches it in the ssl object,
//! so that it lives as long as the object is unchanged, over any number of snapshots. All workers
//! share it. A site has a configuration for each [`Subsystem`]: a handshake that one subsystem
//! accepts may not be accepted by the other, so they share nothing that could resume a session.
//!
//! There may be a million sites, so the factory holds once what is equal for all, and the ssl
//! object holds the certificates. Sessions resume from tickets only (`ticket`), which are bound to
//! the site and its policy; rustls stores no session.

use std::sync::{Arc, OnceLock};

use conf::Ciphers;
use model::{KeyPair, Ssl, TlsVersion};
use rustls::compress::CompressionCache;
use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, StoresServerSessions};
use rustls::sign::{CertifiedKey, SigningKey};
use rustls::{KeyLog, ServerConfig, SignatureAlgorithm, SupportedCipherSuite, SupportedProtocolVersion};

#[cfg(feature = "engine-boring")]
use super::boring::site_config::BoringSiteConfig;
use super::client_verifier::site_verifier;
use super::record::RecordLayerKind;
use super::ticket::{SiteTicketer, TicketBinding};
use super::{Subsystem, key_schedule};
use crate::lifecycle::handles::TicketRingHandle;

/// The configurations that a site's ssl object caches.
#[derive(Default)]
struct CachedConfigs {
    http: OnceLock<Result<SiteConfig, Box<SiteError>>>,
    stream: OnceLock<Result<SiteConfig, Box<SiteError>>>,
}

/// The site cannot be served.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SiteError {
    #[error("its private key cannot be used: {0}")]
    Key(String),
    #[error(
        "none of its ssl_protocols can be served by this engine (TLSv1.1 needs the feature engine-boring)"
    )]
    Versions,
    #[error("its configuration cannot be used: {0}")]
    Config(String),
}

/// The configuration of a site, which selects rustls or BoringSSL.
#[derive(Clone)]
pub enum SiteConfig {
    Rustls(Arc<ServerConfig>),
    /// For sites with TLSv1.1.
    #[cfg(feature = "engine-boring")]
    Boring(Arc<BoringSiteConfig>),
}

/// Builds the site configurations of the process.
pub struct SiteConfigFactory {
    provider: Arc<CryptoProvider>,
    versions: Vec<TlsVersion>,
    /// `None`: all suites of rustls and BoringSSL.
    ciphers: Option<Ciphers>,
    alpn: Vec<Vec<u8>>,
    /// `None`: no session is resumed.
    ticket_ring: Option<Arc<TicketRingHandle>>,
    record_layer: RecordLayerKind,
    shared: SharedParts,
}

/// The parts of a configuration that all sites share: rustls stores no session, compresses no
/// certificate, and logs secrets to the handshake at most.
struct SharedParts {
    sessions: Arc<dyn StoresServerSessions>,
    key_log: Arc<dyn KeyLog>,
    compression: Arc<CompressionCache>,
}

impl SharedParts {
    fn new(record_layer: RecordLayerKind) -> Self {
        let (sessions, key_log) = (Arc::new(NoServerSessionStorage {}), record_layer.key_log());
        Self { sessions, key_log, compression: Arc::new(CompressionCache::Disabled) }
    }
}

impl SiteConfigFactory {
    /// `versions`: of sites without their own. `http2`: whether ALPN offers it. `ticket_ring`:
    /// seals tickets; without it no session is resumed. `record_layer`: of TLS 1.3 connections.
    pub fn new(
        provider: Arc<CryptoProvider>,
        versions: &[TlsVersion],
        http2: bool,
        ticket_ring: Option<Arc<TicketRingHandle>>,
        record_layer: RecordLayerKind,
    ) -> Self {
        let mut alpn = vec![b"http/1.1".to_vec(), b"http/1.0".to_vec()];
        if http2 {
            alpn.insert(0, b"h2".to_vec());
        }
        let (versions, shared) = (versions.to_vec(), SharedParts::new(record_layer));
        Self { provider, versions, ciphers: None, alpn, ticket_ring, record_layer, shared }
    }

    /// Restricts the cipher suites up to TLS 1.2 to these, in their order.
    #[must_use]
    pub fn with_ciphers(mut self, ciphers: Option<Ciphers>) -> Self {
        if let Some(ciphers) = &ciphers {
            let mut provider = CryptoProvider::clone(&self.provider);
            ciphers.restrict(&mut provider.cipher_suites, |suite| suite.suite().into());
            self.provider = Arc::new(provider);
        }
        self.ciphers = ciphers;
        self
    }

    /// The configuration of a site, built at its first handshake.
    ///
    /// # Errors
    /// [`SiteError`]; `model` checks the same when it accepts a resource, so this is a defect.
    pub fn config(&self, ssl: &Ssl, subsystem: Subsystem) -> Result<SiteConfig, SiteError> {
        let cached: Arc<CachedConfigs> = ssl.cache.get_or_try_init(|| Ok::<_, SiteError>(Arc::default()))?;
        let slot = match subsystem {
            Subsystem::Http => &cached.http,
            Subsystem::Stream => &cached.stream,
        };
        slot.get_or_init(|| self.build(ssl, subsystem).map_err(Box::new)).clone().map_err(|error| *error)
    }

    /// The versions of a site, in ascending order.
    fn versions<'a>(&'a self, ssl: &'a Ssl) -> &'a [TlsVersion] {
        ssl.versions.as_ref().unwrap_or(&self.versions)
    }

    /// A TCP connection has no ALPN: the upstream decides what it speaks.
    fn alpn(&self, subsystem: Subsystem) -> &[Vec<u8>] {
        match subsystem {
            Subsystem::Http => &self.alpn,
            Subsystem::Stream => &[],
        }
    }

    fn build(&self, ssl: &Ssl, subsystem: Subsystem) -> Result<SiteConfig, SiteError> {
        #[cfg(feature = "engine-boring")]
        if self.versions(ssl).contains(&TlsVersion::V11) {
            let (versions, alpn) = (self.versions(ssl).to_vec(), self.alpn(subsystem).to_vec());
            let config = BoringSiteConfig::new(ssl, versions, self.ciphers.as_ref(), alpn, subsystem);
            let config = config.map_err(|error| SiteError::Config(error.to_string()))?;
            return Ok(SiteConfig::Boring(Arc::new(config)));
        }
        Ok(SiteConfig::Rustls(Arc::new(self.build_rustls(ssl, subsystem)?)))
    }

    fn build_rustls(&self, ssl: &Ssl, subsystem: Subsystem) -> Result<ServerConfig, SiteError> {
        let versions = rustls_versions(self.versions(ssl));
        if versions.is_empty() {
            return Err(SiteError::Versions);
        }
        let builder = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&versions)
            .map_err(|error| SiteError::Config(error.to_string()))?;
        let builder = match &ssl.client {
            None => builder.with_no_client_auth(),
            Some(policy) => {
                let verifier = site_verifier(policy, subsystem, Arc::clone(&self.provider));
                builder.with_client_cert_verifier(Arc::new(verifier))
            }
        };
        let resolver = SiteCertResolver::new(&self.provider, &versions, ssl)?;
        let mut config = builder.with_cert_resolver(Arc::new(resolver));
        config.alpn_protocols = self.alpn(subsystem).to_vec();
        config.ignore_client_order = true;
        config.session_storage = Arc::clone(&self.shared.sessions);
        config.key_log = Arc::clone(&self.shared.key_log);
        config.enable_secret_extraction = self.record_layer.extracts_secrets();
        config.cert_compression_cache = Arc::clone(&self.shared.compression);
        config.send_tls13_tickets = 0;
        // Nothing is authorized after the handshake of a TCP connection, so it is never resumed.
        if let (Some(ring), Subsystem::Http) = (&self.ticket_ring, subsystem) {
            let binding = TicketBinding::new(&ssl.id, ssl.client.as_deref(), &versions);
            config.ticketer = Arc::new(SiteTicketer::new(binding, Arc::clone(ring)));
            // A client that opens many connections at once gets a ticket on each of them.
            config.send_tls13_tickets = 1;
        }
        Ok(config)
    }
}

fn rustls_versions(versions: &[TlsVersion]) -> Vec<&'static SupportedProtocolVersion> {
    versions
        .iter()
        .filter_map(|version| match version {
            TlsVersion::V11 => None,
            TlsVersion::V12 => Some(&rustls::version::TLS12),
            TlsVersion::V13 => Some(&rustls::version::TLS13),
        })
        .collect()
}

/// A chain and its key, for rustls.
///
/// # Errors
/// [`SiteError::Key`].
pub fn certified_key(provider: &CryptoProvider, pair: &KeyPair) -> Result<Arc<CertifiedKey>, SiteError> {
    Ok(CertEntry::new(provider, pair)?.to_certified_key())
}

/// A chain that the ssl object holds, and its key as rustls holds it.
#[derive(Debug)]
struct CertEntry {
    chain: Box<[pki::Certificate]>,
    key: Arc<dyn SigningKey>,
}

impl CertEntry {
    fn new(provider: &CryptoProvider, pair: &KeyPair) -> Result<Self, SiteError> {
        let key = mtls::signing_key(provider, &pair.key);
        let key = key.map_err(|error| SiteError::Key(error.to_string()))?;
        Ok(Self { chain: pair.chain.as_slice().into(), key })
    }

    /// Copies the chain, since rustls owns its bytes.
    fn to_certified_key(&self) -> Arc<CertifiedKey> {
        Arc::new(mtls::certified_key(&self.chain, Arc::clone(&self.key)))
    }
}

/// Selects the certificate for a client: the first that the client supports, ECDSA before RSA.
///
/// A handshake copies its chain, which takes a fifth of a microsecond. A copy kept for each site
/// would double the memory of the site.
#[derive(Debug)]
struct SiteCertResolver {
    entries: Box<[CertEntry]>,
    /// Has the cipher suites of the site.
    provider: Arc<CryptoProvider>,
    tls13: bool,
}

impl SiteCertResolver {
    fn new(
        provider: &Arc<CryptoProvider>,
        versions: &[&'static SupportedProtocolVersion],
        ssl: &Ssl,
    ) -> Result<Self, SiteError> {
        let mut entries: Box<[CertEntry]> =
            ssl.pairs.iter().map(|pair| CertEntry::new(provider, pair)).collect::<Result<_, _>>()?;
        // Of two pairs of one kind the later wins, as with OpenSSL; the sort is stable.
        entries.reverse();
        entries.sort_by_key(|entry| entry.key.algorithm() == SignatureAlgorithm::RSA);
        let tls13 = versions.contains(&&rustls::version::TLS13);
        Ok(Self { entries, provider: Arc::clone(provider), tls13 })
    }

    /// Whether the client offers a suite of the site for this kind of key. Suites of TLS 1.3 go
    /// with any key, suites of TLS 1.2 name the kind.
    fn has_compatible_suite(&self, hello: &ClientHello<'_>, algorithm: SignatureAlgorithm) -> bool {
        let prefix = if algorithm == SignatureAlgorithm::RSA { "TLS_ECDHE_RSA_" } else { "TLS_ECDHE_ECDSA_" };
        let is_compatible = |suite: &SupportedCipherSuite| match suite.tls13() {
            Some(_) => self.tls13,
            None => suite.suite().as_str().is_some_and(|name| name.starts_with(prefix)),
        };
        let compatible = self.provider.cipher_suites.iter().filter(|suite| is_compatible(suite));
        compatible.map(SupportedCipherSuite::suite).any(|suite| hello.cipher_suites().contains(&suite))
    }
}

impl ResolvesServerCert for SiteCertResolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let schemes = hello.signature_schemes();
        let usable = || self.entries.iter().filter(|entry| entry.key.choose_scheme(schemes).is_some());
        usable()
            .find(|entry| self.has_compatible_suite(&hello, entry.key.algorithm()))
            .or_else(|| usable().next())
            // With any certificate rustls reports the parameter that is missing; without one it
            // would send the alert `access_denied`.
            .or_else(|| self.entries.first())
            .map(CertEntry::to_certified_key)
    }
}

/// The crypto provider of the data plane: aws-lc-rs, with the cheapest suites first.
///
/// AES-128-GCM with SHA-256 is the first: its key schedule hashes with SHA-256, which has its own
/// instructions on current processors.
pub fn crypto_provider() -> CryptoProvider {
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.cipher_suites.sort_by_key(|suite| {
        let name = suite.suite().as_str().unwrap_or_default();
        !name.contains("AES_128_GCM_SHA256")
    });
    key_schedule::prefer_sha2(&mut provider.cipher_suites);
    provider
}
