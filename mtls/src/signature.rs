//! Verification of handshake signatures: whether a peer holds the private key of its certificate.
//!
//! rustls' own helper parses the certificate with webpki, which rejects X.509 v1 and checks more
//! than this needs; here only the public key is taken from the certificate, which `pki` verifies.
//! RFC 8446 section 4.4.3, RFC 5246 section 4.7. Invariant: every signature is computed;
//! `key_cache` holds only parsed keys that verified a signature before.

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, SignatureVerificationAlgorithm, SubjectPublicKeyInfoDer};
use rustls::{CertificateError, DigitallySignedStruct, Error, PeerMisbehaved, SignatureScheme};

mod key_cache;

const NOT_IN_TLS13: [SignatureScheme; 5] = [
    SignatureScheme::RSA_PKCS1_SHA1,
    SignatureScheme::ECDSA_SHA1_Legacy,
    SignatureScheme::RSA_PKCS1_SHA256,
    SignatureScheme::RSA_PKCS1_SHA384,
    SignatureScheme::RSA_PKCS1_SHA512,
];

/// Verifies a TLS 1.2 signature: the scheme determines the hash, the key the rest.
///
/// # Errors
/// `BadSignature`, or `SignedHandshakeWithUnadvertisedSigScheme`.
pub(crate) fn verify_tls12(
    provider: &CryptoProvider,
    cert: &CertificateDer<'_>,
    message: &[u8],
    dss: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    verify(public_key(cert)?, algorithms(provider, dss.scheme), message, dss)
}

/// Verifies a TLS 1.3 signature: the scheme determines hash, padding and curve.
///
/// # Errors
/// Those of [`verify_tls12`].
pub(crate) fn verify_tls13(
    provider: &CryptoProvider,
    cert: &CertificateDer<'_>,
    message: &[u8],
    dss: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    let algorithms = algorithms_tls13(provider, dss.scheme);
    if algorithms.is_ok()
        && let Some(good) = key_cache::verify(cert, dss.scheme, message, dss.signature())
    {
        return if good { Ok(HandshakeSignatureValid::assertion()) } else { Err(bad_signature()) };
    }
    let spki = public_key(cert)?;
    let valid = verify(spki, algorithms, message, dss)?;
    key_cache::insert(cert, dss.scheme, spki);
    Ok(valid)
}

type Algorithms = &'static [&'static dyn SignatureVerificationAlgorithm];

fn algorithms(provider: &CryptoProvider, scheme: SignatureScheme) -> Result<Algorithms, Error> {
    let mapping = provider.signature_verification_algorithms.mapping;
    let found = mapping.iter().find(|(offered, _)| *offered == scheme).map(|(_, algorithms)| *algorithms);
    found.ok_or(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into())
}

/// A scheme of TLS 1.3 implies one curve; in TLS 1.2 the key determines it.
fn algorithms_tls13(provider: &CryptoProvider, scheme: SignatureScheme) -> Result<Algorithms, Error> {
    // RFC 8446 section 4.2.3: these schemes are for certificates only.
    if NOT_IN_TLS13.contains(&scheme) {
        return Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into());
    }
    algorithms(provider, scheme).map(|algorithms| algorithms.get(..1).unwrap_or_default())
}

fn public_key<'a>(cert: &'a CertificateDer<'_>) -> Result<&'a [u8], Error> {
    pki::subject_public_key_info(cert).map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))
}

fn verify(
    spki: &[u8],
    algorithms: Result<Algorithms, Error>,
    message: &[u8],
    dss: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    let spki = SubjectPublicKeyInfoDer::from(spki);
    let key = webpki::RawPublicKeyEntity::try_from(&spki)
        .map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))?;
    for algorithm in algorithms? {
        match key.verify_signature(*algorithm, message, dss.signature()) {
            Ok(()) => return Ok(HandshakeSignatureValid::assertion()),
            Err(webpki::Error::UnsupportedSignatureAlgorithmForPublicKeyContext(_)) => {}
            Err(_) => break,
        }
    }
    Err(bad_signature())
}

fn bad_signature() -> Error {
    Error::InvalidCertificate(CertificateError::BadSignature)
}

#[cfg(test)]
mod tests;
