//! A site's prepared TLS configuration: certificates, client policy, versions.
//!
//! Made from the site's ssl object at its first handshake and hung on it, so that it lives exactly
//! as long as the object is unchanged, over any number of snapshots. Shared by all cores. A site
//! has one for each [`Purpose`]: what lets a client through the handshake for one must never do so
//! for the other, so they share nothing that a session could be resumed by.
//!
//! There may be a million of them, so what is equal for all is held once ([`Sites`]), and
//! certificates once with the ssl object.
//!
//! Sessions are resumed from tickets only (`ticket`), which are bound to the site and its policy;
//! rustls keeps none itself.

use std::sync::{Arc, OnceLock};

use conf::Ciphers;
use model::resource::{KeyPair, Ssl, TlsVersion};
use pki::ClientAuth;
use rustls::compress::CompressionCache;
use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, StoresServerSessions};
use rustls::sign::{CertifiedKey, SigningKey};
use rustls::{KeyLog, ServerConfig, SignatureAlgorithm, SupportedCipherSuite, SupportedProtocolVersion};

#[cfg(feature = "engine-boring")]
use super::boring::site::BoringSite;
use super::client_verifier::SiteVerifier;
use super::key_schedule;
use super::record::traffic_secrets::RecordLayerKind;
use super::ticket::{SiteTicketer, TicketBinding};
use crate::lifecycle::handles::TicketRingHandle;

/// What a handshake leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subsystem {
    /// Requests. A site with skip rules lets everybody in and judges each of them.
    Http,
    /// A stream, where there is nothing later to judge: a site that has a client policy insists.
    Stream,
}

impl Subsystem {
    /// Whether a handshake under this policy may end with a verified client only.
    pub fn requires_client_cert(self, policy: &ClientAuth) -> bool {
        policy.requires_client_cert() || self == Self::Stream
    }
}

/// What hangs on a site's ssl object.
#[derive(Default)]
struct CachedConfigs {
    http: OnceLock<Result<SiteConfig, Box<SiteError>>>,
    stream: OnceLock<Result<SiteConfig, Box<SiteError>>>,
}

/// The site cannot be served.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SiteError {
    /// rustls refuses the private key.
    #[error("its private key cannot be used: {0}")]
    Key(String),
    /// All of the site's versions need another engine.
    #[error(
        "none of its ssl_protocols can be served by this engine (TLSv1.1 needs the feature engine-boring)"
    )]
    Versions,
    /// rustls refuses the configuration.
    #[error("its configuration cannot be used: {0}")]
    Config(String),
}

/// A site's configuration, and with it the engine that serves the site.
#[derive(Clone)]
pub enum SiteConfig {
    /// rustls, with this.
    Rustls(Arc<ServerConfig>),
    /// BoringSSL, with this: the site asks for TLSv1.1.
    #[cfg(feature = "engine-boring")]
    Boring(Arc<BoringSite>),
}

/// Makes site configurations; one for the process.
pub struct SiteConfigFactory {
    provider: Arc<CryptoProvider>,
    versions: Vec<TlsVersion>,
    /// `None`: all that the engines have.
    ciphers: Option<Ciphers>,
    alpn: Vec<Vec<u8>>,
    /// What tickets are sealed with; `None`: no session is resumed.
    secrets: Option<Arc<TicketRingHandle>>,
    records: RecordLayerKind,
    disabled: DisabledFeatures,
}

/// What rustls is to keep, write and remember: nothing. It tells its secrets to the connection they
/// belong to, or to nothing.
struct DisabledFeatures {
    sessions: Arc<dyn StoresServerSessions>,
    key_log: Arc<dyn KeyLog>,
    compressed: Arc<CompressionCache>,
}

impl DisabledFeatures {
    fn new(records: RecordLayerKind) -> Self {
        let (sessions, key_log) = (Arc::new(NoServerSessionStorage {}), records.key_log());
        Self { sessions, key_log, compressed: Arc::new(CompressionCache::Disabled) }
    }
}

impl SiteConfigFactory {
    /// `versions`: those of sites that name none themselves. `http2`: whether ALPN offers it.
    /// `secrets`: where those of tickets stand; without, no session is resumed. `records`: who
    /// reads and writes those of connections that stay.
    pub fn new(
        provider: Arc<CryptoProvider>,
        versions: &[TlsVersion],
        http2: bool,
        secrets: Option<Arc<TicketRingHandle>>,
        records: RecordLayerKind,
    ) -> Self {
        let mut alpn = vec![b"http/1.1".to_vec(), b"http/1.0".to_vec()];
        if http2 {
            alpn.insert(0, b"h2".to_vec());
        }
        let nothing = DisabledFeatures::new(records);
        Self {
            provider,
            versions: versions.to_vec(),
            ciphers: None,
            alpn,
            secrets,
            records,
            disabled: nothing,
        }
    }

    /// The same, with these cipher suites only (up to TLS 1.2), in their order.
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

    /// The configuration of a site, made now if this is its first handshake.
    ///
    /// # Errors
    /// [`SiteError`]; `model` checks the same when a resource is accepted, so this is a defect when
    /// it happens.
    pub fn config(&self, ssl: &Ssl, purpose: Subsystem) -> Result<SiteConfig, SiteError> {
        let prepared: Arc<CachedConfigs> =
            ssl.prepared.get_or_try_init(|| Ok::<_, SiteError>(Arc::default()))?;
        let slot = match purpose {
            Subsystem::Http => &prepared.http,
            Subsystem::Stream => &prepared.stream,
        };
        slot.get_or_init(|| self.build(ssl, purpose).map_err(Box::new)).clone().map_err(|error| *error)
    }

    /// The versions of a site, in ascending order.
    fn versions<'a>(&'a self, ssl: &'a Ssl) -> &'a [TlsVersion] {
        ssl.versions.as_ref().unwrap_or(&self.versions)
    }

    /// A stream's protocol is the upstream's business: whatever a client offers, none is chosen.
    fn alpn(&self, purpose: Subsystem) -> &[Vec<u8>] {
        match purpose {
            Subsystem::Http => &self.alpn,
            Subsystem::Stream => &[],
        }
    }

    fn build(&self, ssl: &Ssl, purpose: Subsystem) -> Result<SiteConfig, SiteError> {
        #[cfg(feature = "engine-boring")]
        if self.versions(ssl).contains(&TlsVersion::V11) {
            let (versions, alpn) = (self.versions(ssl).to_vec(), self.alpn(purpose).to_vec());
            let site = BoringSite::new(ssl, versions, self.ciphers.as_ref(), alpn, purpose);
            let site = site.map_err(|error| SiteError::Config(error.to_string()))?;
            return Ok(SiteConfig::Boring(Arc::new(site)));
        }
        Ok(SiteConfig::Rustls(Arc::new(self.build_rustls(ssl, purpose)?)))
    }

    fn build_rustls(&self, ssl: &Ssl, purpose: Subsystem) -> Result<ServerConfig, SiteError> {
        let versions = rustls_versions(self.versions(ssl));
        if versions.is_empty() {
            return Err(SiteError::Versions);
        }
        let builder = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&versions)
            .map_err(|error| SiteError::Config(error.to_string()))?;
        let builder = match &ssl.client {
            None => builder.with_no_client_auth(),
            Some(policy) => builder.with_client_cert_verifier(Arc::new(SiteVerifier::new(
                Arc::clone(policy),
                purpose,
                Arc::clone(&self.provider),
            ))),
        };
        let mut config =
            builder.with_cert_resolver(Arc::new(SiteCertResolver::new(&self.provider, &versions, ssl)?));
        config.alpn_protocols = self.alpn(purpose).to_vec();
        config.ignore_client_order = true;
        config.session_storage = Arc::clone(&self.disabled.sessions);
        config.key_log = Arc::clone(&self.disabled.key_log);
        config.enable_secret_extraction = self.records.extracts_secrets();
        config.cert_compression_cache = Arc::clone(&self.disabled.compressed);
        config.send_tls13_tickets = 0;
        // A stream has no requests to judge, so its client shakes hands in full each time.
        if let (Some(secrets), Subsystem::Http) = (&self.secrets, purpose) {
            let binding = TicketBinding::new(&ssl.id, ssl.client.as_deref(), &versions);
            config.ticketer = Arc::new(SiteTicketer::new(binding, Arc::clone(secrets)));
            // One: a client that opens many connections at once shakes hands with each, and gets one for
            // each.
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

/// A chain and its key for rustls.
///
/// # Errors
/// [`SiteError::Key`].
pub fn certified_key(provider: &CryptoProvider, pair: &KeyPair) -> Result<Arc<CertifiedKey>, SiteError> {
    Ok(CertEntry::new(provider, pair)?.to_certified_key())
}

/// A chain that is the ssl object's own, and its key as the crypto library holds it.
#[derive(Debug)]
struct CertEntry {
    chain: Box<[pki::Certificate]>,
    key: Arc<dyn SigningKey>,
}

impl CertEntry {
    fn new(provider: &CryptoProvider, pair: &KeyPair) -> Result<Self, SiteError> {
        let key = provider.key_provider.load_private_key(pair.key.der().clone_key());
        let key = key.map_err(|error| SiteError::Key(error.to_string()))?;
        Ok(Self { chain: pair.chain.as_slice().into(), key })
    }

    /// As rustls wants it: with bytes of its own.
    fn to_certified_key(&self) -> Arc<CertifiedKey> {
        let chain = self.chain.iter().map(|cert| cert.der().clone()).collect();
        Arc::new(CertifiedKey::new(chain, Arc::clone(&self.key)))
    }
}

/// A site's certificates, of which each client gets the first it can use: cheap signatures first.
///
/// What a client gets is copied for its handshake: a fifth of a microsecond and gone with it, where
/// a copy kept for each site would be as large as everything else about the site.
#[derive(Debug)]
struct SiteCertResolver {
    entries: Box<[CertEntry]>,
    /// Says which cipher suites the site may use.
    provider: Arc<CryptoProvider>,
    tls13: bool,
}

impl SiteCertResolver {
    fn new(
        provider: &Arc<CryptoProvider>,
        versions: &[&'static SupportedProtocolVersion],
        ssl: &Ssl,
    ) -> Result<Self, SiteError> {
        let mut shown: Box<[CertEntry]> =
            ssl.pairs.iter().map(|pair| CertEntry::new(provider, pair)).collect::<Result<_, _>>()?;
        // Two of one kind: the later wins, as with OpenSSL; the sort is stable, so look from the end.
        shown.reverse();
        shown.sort_by_key(|shown| shown.key.algorithm() == SignatureAlgorithm::RSA);
        let tls13 = versions.contains(&&rustls::version::TLS13);
        Ok(Self { entries: shown, provider: Arc::clone(provider), tls13 })
    }

    /// Whether the client offers a cipher suite of the site that goes with this kind of key: any of
    /// TLS 1.3's does, those of TLS 1.2 name the kind.
    fn has_compatible_suite(&self, hello: &ClientHello<'_>, algorithm: SignatureAlgorithm) -> bool {
        let kind = if algorithm == SignatureAlgorithm::RSA { "TLS_ECDHE_RSA_" } else { "TLS_ECDHE_ECDSA_" };
        let fits = |suite: &SupportedCipherSuite| match suite.tls13() {
            Some(_) => self.tls13,
            None => suite.suite().as_str().is_some_and(|name| name.starts_with(kind)),
        };
        let ours = self.provider.cipher_suites.iter().filter(|suite| fits(suite));
        ours.map(SupportedCipherSuite::suite).any(|suite| hello.cipher_suites().contains(&suite))
    }
}

impl ResolvesServerCert for SiteCertResolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let schemes = hello.signature_schemes();
        let shown = || self.entries.iter().filter(|shown| shown.key.choose_scheme(schemes).is_some());
        shown()
            .find(|shown| self.has_compatible_suite(&hello, shown.key.algorithm()))
            .or_else(|| shown().next())
            // Nothing suits: with any of them rustls says which parameter is missing; with none it would say
            // "access denied".
            .or_else(|| self.entries.first())
            .map(CertEntry::to_certified_key)
    }
}

/// The crypto provider of the whole data plane: aws-lc-rs, cheapest suites first.
///
/// AES-128-GCM with SHA-256 leads: the key schedule of a handshake then hashes with SHA-256, which
/// has instructions of its own on today's processors.
pub fn crypto_provider() -> CryptoProvider {
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.cipher_suites.sort_by_key(|suite| {
        let name = suite.suite().as_str().unwrap_or_default();
        !name.contains("AES_128_GCM_SHA256")
    });
    key_schedule::prefer_sha2(&mut provider.cipher_suites);
    provider
}
