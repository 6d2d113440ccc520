//! The configuration of a site for BoringSSL: versions, ciphers, certificates, client policy.
//!
//! The site's ssl object caches it, as it caches rustls' (`tls/site_config`). Invariants: a
//! connection has one of the site's versions; every handshake is a full one with an ephemeral key
//! exchange, and BoringSSL does not renegotiate on the server side.

use std::sync::Arc;

use boring::error::ErrorStack;
use boring::nid::Nid;
use boring::pkey::{Id, PKey, Private};
use boring::ssl::{
    AlpnError, ClientHello, ExtensionType, SelectCertError, SslAlert, SslContext, SslContextBuilder,
    SslMethod, SslOptions, SslRef, SslSessionCacheMode, SslSignatureAlgorithm, SslVerifyError, SslVerifyMode,
    SslVersion,
};
use boring::stack::Stack;
use boring::x509::{X509, X509Name};
use conf::Ciphers;
use model::{KeyPair, Ssl, TlsVersion};
use pki::ClientAuth;
use rustls::AlertDescription;
use rustls::pki_types::UnixTime;

use super::{BoringError, peer_chain, version_of};
use crate::tls::{Subsystem, client_verifier};

/// The suites up to TLS 1.2, in the order of preference: AEADs first. TLS 1.1 has only the CBC
/// suites.
const CIPHERS: &str = "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:\
    ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384:\
    ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305:\
    ECDHE-ECDSA-AES128-SHA:ECDHE-RSA-AES128-SHA:ECDHE-ECDSA-AES256-SHA:ECDHE-RSA-AES256-SHA";
/// The numbers of [`CIPHERS`] for ECDSA and Ed25519 certificates, of these the suites of TLS 1.1,
/// and the same for RSA certificates.
const WITH_ECDSA: [u16; 5] = [0xc02b, 0xc02c, 0xcca9, 0xc009, 0xc00a];
const WITH_ECDSA_CBC: [u16; 2] = [0xc009, 0xc00a];
const WITH_RSA: [u16; 5] = [0xc02f, 0xc030, 0xcca8, 0xc013, 0xc014];
const WITH_RSA_CBC: [u16; 2] = [0xc013, 0xc014];
const GROUPS: &str = "X25519MLKEM768:X25519:P-256:P-384";
/// The signature algorithms of clients from TLS 1.2 on, without SHA-1 as in rustls. TLS 1.1 has
/// only one.
const CLIENT_SIGNATURES: [SslSignatureAlgorithm; 10] = [
    SslSignatureAlgorithm::ECDSA_SECP256R1_SHA256,
    SslSignatureAlgorithm::RSA_PSS_RSAE_SHA256,
    SslSignatureAlgorithm::RSA_PKCS1_SHA256,
    SslSignatureAlgorithm::ECDSA_SECP384R1_SHA384,
    SslSignatureAlgorithm::RSA_PSS_RSAE_SHA384,
    SslSignatureAlgorithm::RSA_PKCS1_SHA384,
    SslSignatureAlgorithm::ECDSA_SECP521R1_SHA512,
    SslSignatureAlgorithm::RSA_PSS_RSAE_SHA512,
    SslSignatureAlgorithm::RSA_PKCS1_SHA512,
    SslSignatureAlgorithm::ED25519,
];

/// The configuration of one site.
pub struct BoringSiteConfig {
    context: SslContext,
}

impl BoringSiteConfig {
    /// `versions`: in ascending order. `ciphers`: the suites of [`CIPHERS`] to use, in their order;
    /// `None`: all. `alpn`: the protocols, the preferred first; empty: none is selected.
    ///
    /// # Errors
    /// BoringSSL does not accept a certificate or a key.
    pub fn new(
        ssl: &Ssl,
        versions: Vec<TlsVersion>,
        ciphers: Option<&Ciphers>,
        alpn: Vec<Vec<u8>>,
        subsystem: Subsystem,
    ) -> Result<Self, BoringError> {
        let mut context = SslContext::builder(SslMethod::tls())?;
        context.set_min_proto_version(versions.first().copied().map(ssl_version))?;
        context.set_max_proto_version(versions.last().copied().map(ssl_version))?;
        context.set_strict_cipher_list(&ciphers.map_or_else(|| CIPHERS.to_owned(), Ciphers::names))?;
        context.set_curves_list(GROUPS)?;
        context.set_options(SslOptions::CIPHER_SERVER_PREFERENCE | SslOptions::NO_TICKET);
        context.set_session_cache_mode(SslSessionCacheMode::OFF);
        if !alpn.is_empty() {
            context.set_alpn_select_callback(move |tls, offered| select_protocol(&alpn, tls, offered));
        }
        set_client_policy(&mut context, ssl.client.as_ref(), subsystem)?;
        let selector = BoringCertSelector::new(&ssl.pairs)?;
        let ciphers = ciphers.cloned();
        context.set_select_certificate_callback(move |mut hello| {
            let mut offer = ClientOffer::new(&hello, &versions);
            if let Some(ciphers) = &ciphers {
                ciphers.restrict(&mut offer.ciphers, |suite| *suite);
            }
            pin_version(&mut hello, &versions, offer.version)
                .and_then(|()| selector.install(hello.ssl_mut(), &offer))
                .map_err(|_no_memory| SelectCertError::ERROR)
        });
        Ok(Self { context: context.build() })
    }

    pub(super) fn context(&self) -> &SslContext {
        &self.context
    }
}

fn ssl_version(version: TlsVersion) -> SslVersion {
    match version {
        TlsVersion::V11 => SslVersion::TLS1_1,
        TlsVersion::V12 => SslVersion::TLS1_2,
        TlsVersion::V13 => SslVersion::TLS1_3,
    }
}

/// Pins the negotiated version if the site has TLSv1.1 and TLSv1.3 only: BoringSSL configures a
/// range of versions. A range needs no pin, and a pinned TLS 1.1 lacks the downgrade protection of
/// TLS 1.3 (RFC 8446 section 4.1.3).
fn pin_version(
    hello: &mut ClientHello<'_>,
    versions: &[TlsVersion],
    negotiated: Option<TlsVersion>,
) -> Result<(), ErrorStack> {
    if versions != [TlsVersion::V11, TlsVersion::V13] {
        return Ok(());
    }
    // Without a common version, TLS 1.3 makes BoringSSL send the alert protocol_version.
    let version = ssl_version(negotiated.unwrap_or(TlsVersion::V13));
    hello.ssl_mut().set_min_proto_version(Some(version))?;
    hello.ssl_mut().set_max_proto_version(Some(version))
}

/// As rustls: in our order; without a common protocol the alert no_application_protocol.
fn select_protocol<'a>(ours: &[Vec<u8>], tls: &SslRef, offered: &'a [u8]) -> Result<&'a [u8], AlpnError> {
    // HTTP/2 requires TLS 1.2 (RFC 9113 section 9.2).
    let http2 = version_of(tls) != Some(TlsVersion::V11);
    ours.iter()
        .filter(|protocol| http2 || protocol.as_slice() != b"h2")
        .find_map(|protocol| alpn_entries(offered).find(|entry| entry == protocol))
        .ok_or(AlpnError::ALERT_FATAL)
}

/// The entries of an ALPN list, each behind a byte with its length.
fn alpn_entries(mut list: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (length, rest) = list.split_first()?;
        let (entry, rest) = rest.split_at_checked(usize::from(*length))?;
        list = rest;
        Some(entry)
    })
}

// === clients ===

fn set_client_policy(
    context: &mut SslContextBuilder,
    policy: Option<&Arc<ClientAuth>>,
    subsystem: Subsystem,
) -> Result<(), ErrorStack> {
    let Some(policy) = policy else { return Ok(()) };
    let mut mode = SslVerifyMode::PEER;
    if subsystem.requires_client_cert(policy) {
        mode |= SslVerifyMode::FAIL_IF_NO_PEER_CERT;
    }
    let mut names = Stack::new()?;
    for subject in policy.root_hint_subjects() {
        names.push(X509Name::from_der(&subject.to_der())?)?;
    }
    context.set_client_ca_list(names);
    context.set_verify_algorithm_prefs(&CLIENT_SIGNATURES)?;
    let policy = Arc::clone(policy);
    context.set_custom_verify_callback(mode, move |tls| verify_client(&policy, subsystem, tls));
    Ok(())
}

fn verify_client(policy: &ClientAuth, subsystem: Subsystem, tls: &SslRef) -> Result<(), SslVerifyError> {
    let chain = peer_chain(tls);
    let Some((leaf, intermediates)) = chain.split_first() else {
        return Err(SslVerifyError::Invalid(SslAlert::INTERNAL_ERROR));
    };
    client_verifier::verify_in_handshake(policy, subsystem, leaf, intermediates, UnixTime::now())
        .map_err(|error| SslVerifyError::Invalid(alert_of(AlertDescription::from(error))))
}

/// The alert that rustls sends.
fn alert_of(description: AlertDescription) -> SslAlert {
    match description {
        AlertDescription::CertificateExpired => SslAlert::CERTIFICATE_EXPIRED,
        AlertDescription::CertificateRevoked => SslAlert::CERTIFICATE_REVOKED,
        AlertDescription::UnknownCA => SslAlert::UNKNOWN_CA,
        AlertDescription::DecryptError => SslAlert::DECRYPT_ERROR,
        AlertDescription::UnsupportedCertificate => SslAlert::UNSUPPORTED_CERTIFICATE,
        _ => SslAlert::BAD_CERTIFICATE,
    }
}

// === certificates ===

/// The parts of a ClientHello that select the certificate.
struct ClientOffer {
    /// The newest common version.
    version: Option<TlsVersion>,
    ciphers: Vec<u16>,
    /// `None`: the client sends no signature_algorithms.
    schemes: Option<Vec<u16>>,
}

impl ClientOffer {
    fn new(hello: &ClientHello<'_>, site_versions: &[TlsVersion]) -> Self {
        let list = |extension, skip| {
            let data: Option<&[u8]> = hello.get_extension(extension);
            data.map(|data| u16_list(data.get(skip..).unwrap_or_default()))
        };
        // Each list follows its length, of one or two bytes.
        let versions: Option<Vec<u16>> = list(ExtensionType::SUPPORTED_VERSIONS, 1);
        let newest = hello.client_version();
        let offers = |version: TlsVersion| match (&versions, version) {
            (Some(versions), TlsVersion::V11) => versions.contains(&0x0302),
            (Some(versions), TlsVersion::V12) => versions.contains(&0x0303),
            (Some(versions), TlsVersion::V13) => versions.contains(&0x0304),
            (None, TlsVersion::V11) => newest == SslVersion::TLS1_1 || newest == SslVersion::TLS1_2,
            (None, TlsVersion::V12) => newest == SslVersion::TLS1_2,
            (None, TlsVersion::V13) => false,
        };
        Self {
            version: site_versions.iter().rev().copied().find(|version| offers(*version)),
            ciphers: u16_list(hello.ciphers()),
            schemes: list(ExtensionType::SIGNATURE_ALGORITHMS, 2),
        }
    }
}

fn u16_list(bytes: &[u8]) -> Vec<u16> {
    let pairs = bytes.chunks_exact(2).filter_map(|pair| pair.try_into().ok());
    pairs.map(u16::from_be_bytes).collect()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum KeyKind {
    /// With the signature scheme that TLS 1.3 defines for the curve.
    Ecdsa(u16),
    Ed25519,
    Rsa,
}

impl KeyKind {
    fn of(key: &PKey<Private>) -> Result<Self, ErrorStack> {
        Ok(match key.id() {
            Id::ED25519 => Self::Ed25519,
            Id::EC => Self::Ecdsa(match key.ec_key()?.group().curve_name() {
                Some(Nid::SECP384R1) => 0x0503,
                Some(Nid::SECP521R1) => 0x0603,
                _ => 0x0403,
            }),
            _ => Self::Rsa,
        })
    }

    /// Whether the client supports a certificate with this kind of key.
    fn is_supported(self, offer: &ClientOffer) -> bool {
        let signs = |wanted: &[u16]| match &offer.schemes {
            Some(schemes) => schemes.iter().any(|scheme| wanted.contains(scheme)),
            // Before TLS 1.2 there is no such extension; in TLS 1.2 its absence means SHA-1, which
            // BoringSSL accepts or rejects.
            None => self != Self::Ed25519,
        };
        let has = |suites: &[u16]| offer.ciphers.iter().any(|cipher| suites.contains(cipher));
        match (offer.version, self) {
            (Some(TlsVersion::V13), Self::Ecdsa(scheme)) => signs(&[scheme]),
            (Some(TlsVersion::V13), Self::Ed25519) => signs(&[0x0807]),
            (Some(TlsVersion::V13), Self::Rsa) => signs(&[0x0804, 0x0805, 0x0806]),
            (Some(TlsVersion::V12), Self::Ecdsa(_)) => has(&WITH_ECDSA) && signs(&[0x0403, 0x0503, 0x0603]),
            (Some(TlsVersion::V12), Self::Ed25519) => has(&WITH_ECDSA) && signs(&[0x0807]),
            (Some(TlsVersion::V12), Self::Rsa) => {
                has(&WITH_RSA) && signs(&[0x0804, 0x0805, 0x0806, 0x0401, 0x0501, 0x0601])
            }
            (Some(TlsVersion::V11), Self::Ecdsa(_)) => has(&WITH_ECDSA_CBC),
            (Some(TlsVersion::V11), Self::Rsa) => has(&WITH_RSA_CBC),
            (Some(TlsVersion::V11), Self::Ed25519) | (None, _) => false,
        }
    }
}

struct BoringKeyPair {
    kind: KeyKind,
    leaf: X509,
    issuers: Vec<X509>,
    key: PKey<Private>,
}

impl BoringKeyPair {
    fn new(pair: &KeyPair) -> Result<Self, ErrorStack> {
        let mut chain = pair.chain.iter().map(|certificate| X509::from_der(certificate.der()));
        let leaf = chain.next().unwrap_or_else(|| X509::from_der(&[]))?;
        let key = PKey::private_key_from_der(pair.key.der().secret_der())?;
        Ok(Self { kind: KeyKind::of(&key)?, leaf, issuers: chain.collect::<Result<_, _>>()?, key })
    }
}

/// Selects the certificate for a client: the first that the client supports, ECDSA before RSA.
struct BoringCertSelector(Vec<BoringKeyPair>);

impl BoringCertSelector {
    fn new(pairs: &[KeyPair]) -> Result<Self, ErrorStack> {
        // Of two pairs of one kind the later wins, as with OpenSSL; the sort is stable.
        let mut pairs: Vec<BoringKeyPair> =
            pairs.iter().rev().map(BoringKeyPair::new).collect::<Result<_, _>>()?;
        pairs.sort_by_key(|pair| pair.kind == KeyKind::Rsa);
        Ok(Self(pairs))
    }

    /// If the client supports none, installs the first: BoringSSL then reports why the handshake
    /// fails.
    fn install(&self, tls: &mut SslRef, offer: &ClientOffer) -> Result<(), ErrorStack> {
        let supported = self.0.iter().find(|pair| pair.kind.is_supported(offer));
        let Some(pair) = supported.or_else(|| self.0.first()) else { return Ok(()) };
        tls.set_certificate(&pair.leaf)?;
        tls.set_private_key(&pair.key)?;
        pair.issuers.iter().try_for_each(|issuer| tls.add_chain_cert(issuer))
    }
}
