//! A site's configuration for BoringSSL: versions, ciphers, certificates, client policy.
//!
//! Made and kept as rustls' is (see `tls/site`). Versions are exactly the site's, every handshake
//! is a full one, and BoringSSL never renegotiates on the server side. Key exchange is ephemeral
//! throughout: TLS 1.1 is old, not careless.

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
use model::TlsVersion;
use model::resource::{KeyPair, Ssl};
use pki::ClientAuth;
use rustls::AlertDescription;
use rustls::pki_types::UnixTime;

use super::{BoringError, peer_chain, version_of};
use crate::tls::site::Purpose;
use crate::tls::verify;

/// Up to TLS 1.2, in our order: ephemeral keys, encrypted-and-authenticated first; the CBC suites
/// are all that TLS 1.1 has.
const CIPHERS: &str = "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:\
    ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384:\
    ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305:\
    ECDHE-ECDSA-AES128-SHA:ECDHE-RSA-AES128-SHA:ECDHE-ECDSA-AES256-SHA:ECDHE-RSA-AES256-SHA";
/// The suites of [`CIPHERS`] by number: with an ECDSA (or Ed25519) certificate, of them those of
/// TLS 1.1, and the same with RSA.
const WITH_ECDSA: [u16; 5] = [0xc02b, 0xc02c, 0xcca9, 0xc009, 0xc00a];
const WITH_ECDSA_CBC: [u16; 2] = [0xc009, 0xc00a];
const WITH_RSA: [u16; 5] = [0xc02f, 0xc030, 0xcca8, 0xc013, 0xc014];
const WITH_RSA_CBC: [u16; 2] = [0xc013, 0xc014];
const GROUPS: &str = "X25519MLKEM768:X25519:P-256:P-384";
/// What clients may sign with from TLS 1.2 on: as with rustls, nothing with SHA-1. TLS 1.1 has but
/// one way.
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

/// A site, ready to shake hands.
pub struct BoringSite {
    context: SslContext,
}

impl BoringSite {
    /// `versions`: what it serves, in ascending order. `ciphers`: what of [`CIPHERS`], in which
    /// order; `None`: all. `alpn`: what it speaks, the preferred first; empty: none is chosen.
    ///
    /// # Errors
    /// BoringSSL refuses a certificate or a key.
    pub fn new(
        ssl: &Ssl,
        versions: Vec<TlsVersion>,
        ciphers: Option<&Ciphers>,
        alpn: Vec<Vec<u8>>,
        purpose: Purpose,
    ) -> Result<Self, BoringError> {
        let mut context = SslContext::builder(SslMethod::tls())?;
        context.set_min_proto_version(versions.first().copied().map(number))?;
        context.set_max_proto_version(versions.last().copied().map(number))?;
        context.set_strict_cipher_list(&ciphers.map_or_else(|| CIPHERS.to_owned(), Ciphers::names))?;
        context.set_curves_list(GROUPS)?;
        context.set_options(SslOptions::CIPHER_SERVER_PREFERENCE | SslOptions::NO_TICKET);
        context.set_session_cache_mode(SslSessionCacheMode::OFF);
        if !alpn.is_empty() {
            context.set_alpn_select_callback(move |tls, offered| choose_protocol(&alpn, tls, offered));
        }
        set_client_policy(&mut context, ssl.client.as_ref(), purpose)?;
        let pairs = Pairs::new(&ssl.pairs)?;
        let ciphers = ciphers.cloned();
        context.set_select_certificate_callback(move |mut hello| {
            let mut offer = Offer::of(&hello, &versions);
            if let Some(ciphers) = &ciphers {
                ciphers.restrict(&mut offer.ciphers, |number| *number);
            }
            pin_version(&mut hello, &versions, offer.version)
                .and_then(|()| pairs.install(hello.ssl_mut(), &offer))
                .map_err(|_no_memory| SelectCertError::ERROR)
        });
        Ok(Self { context: context.build() })
    }

    pub(super) fn context(&self) -> &SslContext {
        &self.context
    }
}

fn number(version: TlsVersion) -> SslVersion {
    match version {
        TlsVersion::V11 => SslVersion::TLS1_1,
        TlsVersion::V12 => SslVersion::TLS1_2,
        TlsVersion::V13 => SslVersion::TLS1_3,
    }
}

/// BoringSSL knows ranges. A list with a hole (TLSv1.1 and TLSv1.3) is served by pinning what was
/// found in common. Only then: a pinned TLS 1.1 does not carry the mark by which a client notices
/// that TLS 1.3 was kept from it.
fn pin_version(
    hello: &mut ClientHello<'_>,
    versions: &[TlsVersion],
    agreed: Option<TlsVersion>,
) -> Result<(), ErrorStack> {
    if versions != [TlsVersion::V11, TlsVersion::V13] {
        return Ok(());
    }
    // Nothing in common: pinned to the newest, the handshake ends with the alert protocol_version.
    let version = number(agreed.unwrap_or(TlsVersion::V13));
    hello.ssl_mut().set_min_proto_version(Some(version))?;
    hello.ssl_mut().set_max_proto_version(Some(version))
}

/// As rustls does: our order, and the alert no_application_protocol when there is nothing in
/// common.
fn choose_protocol<'a>(ours: &[Vec<u8>], tls: &SslRef, offered: &'a [u8]) -> Result<&'a [u8], AlpnError> {
    // HTTP/2 demands TLS 1.2 (RFC 9113 section 9.2).
    let http2 = version_of(tls) != Some(TlsVersion::V11);
    ours.iter()
        .filter(|protocol| http2 || protocol.as_slice() != b"h2")
        .find_map(|protocol| entries(offered).find(|entry| entry == protocol))
        .ok_or(AlpnError::ALERT_FATAL)
}

/// The entries of a list whose entries have their length, one byte, in front.
fn entries(mut list: &[u8]) -> impl Iterator<Item = &[u8]> {
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
    purpose: Purpose,
) -> Result<(), ErrorStack> {
    let Some(policy) = policy else { return Ok(()) };
    let mut mode = SslVerifyMode::PEER;
    if purpose.insists(policy) {
        mode |= SslVerifyMode::FAIL_IF_NO_PEER_CERT;
    }
    let mut names = Stack::new()?;
    for subject in policy.subjects() {
        names.push(X509Name::from_der(&subject.to_der())?)?;
    }
    context.set_client_ca_list(names);
    context.set_verify_algorithm_prefs(&CLIENT_SIGNATURES)?;
    let policy = Arc::clone(policy);
    context.set_custom_verify_callback(mode, move |tls| verify_client(&policy, purpose, tls));
    Ok(())
}

fn verify_client(policy: &ClientAuth, purpose: Purpose, tls: &SslRef) -> Result<(), SslVerifyError> {
    let chain = peer_chain(tls);
    let Some((leaf, sent)) = chain.split_first() else {
        return Err(SslVerifyError::Invalid(SslAlert::INTERNAL_ERROR));
    };
    verify::in_handshake(policy, purpose, leaf, sent, UnixTime::now())
        .map_err(|error| SslVerifyError::Invalid(alert_of(AlertDescription::from(error))))
}

/// The same alert that rustls sends.
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

/// What of a ClientHello decides about the certificate.
struct Offer {
    /// The newest version that client and site have in common.
    version: Option<TlsVersion>,
    ciphers: Vec<u16>,
    /// `None`: it does not say.
    schemes: Option<Vec<u16>>,
}

impl Offer {
    fn of(hello: &ClientHello<'_>, served: &[TlsVersion]) -> Self {
        let list = |extension, skip| {
            let data: Option<&[u8]> = hello.get_extension(extension);
            data.map(|data| numbers(data.get(skip..).unwrap_or_default()))
        };
        // Each list has its length in front: one byte, or two.
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
            version: served.iter().rev().copied().find(|version| offers(*version)),
            ciphers: numbers(hello.ciphers()),
            schemes: list(ExtensionType::SIGNATURE_ALGORITHMS, 2),
        }
    }
}

fn numbers(bytes: &[u8]) -> Vec<u16> {
    let pairs = bytes.chunks_exact(2).filter_map(|pair| pair.try_into().ok());
    pairs.map(u16::from_be_bytes).collect()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// With the scheme of TLS 1.3 that goes with the curve.
    Ecdsa(u16),
    Ed25519,
    Rsa,
}

impl Kind {
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

    /// Whether a client with this offer can use a certificate of this kind.
    fn suits(self, offer: &Offer) -> bool {
        let signs = |wanted: &[u16]| match &offer.schemes {
            Some(schemes) => schemes.iter().any(|scheme| wanted.contains(scheme)),
            // Before TLS 1.2 nobody says; in TLS 1.2 it means SHA-1, which BoringSSL decides about.
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

struct Pair {
    kind: Kind,
    leaf: X509,
    issuers: Vec<X509>,
    key: PKey<Private>,
}

impl Pair {
    fn new(pair: &KeyPair) -> Result<Self, ErrorStack> {
        let mut chain = pair.chain.iter().map(|certificate| X509::from_der(certificate.der()));
        let leaf = chain.next().unwrap_or_else(|| X509::from_der(&[]))?;
        let key = PKey::private_key_from_der(pair.key.der().secret_der())?;
        Ok(Self { kind: Kind::of(&key)?, leaf, issuers: chain.collect::<Result<_, _>>()?, key })
    }
}

/// A site's certificates, of which each client gets the first it can use: cheap signatures first.
struct Pairs(Vec<Pair>);

impl Pairs {
    fn new(pairs: &[KeyPair]) -> Result<Self, ErrorStack> {
        // Two of one kind: the later wins, as with rustls here and with OpenSSL; the sort is stable, so
        // look from the end.
        let mut pairs: Vec<Pair> = pairs.iter().rev().map(Pair::new).collect::<Result<_, _>>()?;
        pairs.sort_by_key(|pair| pair.kind == Kind::Rsa);
        Ok(Self(pairs))
    }

    /// Where none suits the first is taken: BoringSSL then finds out, and says why there is no
    /// handshake.
    fn install(&self, tls: &mut SslRef, offer: &Offer) -> Result<(), ErrorStack> {
        let Some(pair) = self.0.iter().find(|pair| pair.kind.suits(offer)).or_else(|| self.0.first()) else {
            return Ok(());
        };
        tls.set_certificate(&pair.leaf)?;
        tls.set_private_key(&pair.key)?;
        pair.issuers.iter().try_for_each(|issuer| tls.add_chain_cert(issuer))
    }
}
