//! Handshake signatures: does the peer hold the key of the certificate it shows?
//!
//! rustls' own helper parses the certificate with webpki, which refuses X.509 v1 and is stricter than the
//! question asks; here only the public key is taken from the certificate. Which certificates are acceptable is
//! `pki`'s to say. RFC 8446 section 4.4.3, RFC 5246 section 4.7.

use rustls::{
    CertificateError, DigitallySignedStruct, Error, PeerMisbehaved, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, SubjectPublicKeyInfoDer},
};

const NOT_IN_TLS13: [SignatureScheme; 5] = [
    SignatureScheme::RSA_PKCS1_SHA1,
    SignatureScheme::ECDSA_SHA1_Legacy,
    SignatureScheme::RSA_PKCS1_SHA256,
    SignatureScheme::RSA_PKCS1_SHA384,
    SignatureScheme::RSA_PKCS1_SHA512,
];

/// Checks a TLS 1.2 signature: the scheme names the hash, the key decides the rest.
///
/// # Errors
/// `BadSignature`, or `SignedHandshakeWithUnadvertisedSigScheme`.
pub fn verify_tls12(
    provider: &CryptoProvider,
    cert: &CertificateDer<'_>,
    message: &[u8],
    dss: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    verify(provider, cert, message, dss, false)
}

/// Checks a TLS 1.3 signature: the scheme fixes everything.
///
/// # Errors
/// As [`verify_tls12`].
pub fn verify_tls13(
    provider: &CryptoProvider,
    cert: &CertificateDer<'_>,
    message: &[u8],
    dss: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    verify(provider, cert, message, dss, true)
}

fn verify(
    provider: &CryptoProvider,
    cert: &CertificateDer<'_>,
    message: &[u8],
    dss: &DigitallySignedStruct,
    tls13: bool,
) -> Result<HandshakeSignatureValid, Error> {
    let spki =
        pki::public_key_of(cert).map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))?;
    let spki = SubjectPublicKeyInfoDer::from(spki);
    let key = webpki::RawPublicKeyEntity::try_from(&spki)
        .map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))?;
    // RFC 8446 section 4.2.3: these are for certificates only.
    if tls13 && NOT_IN_TLS13.contains(&dss.scheme) {
        return Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into());
    }
    let algorithms = provider
        .signature_verification_algorithms
        .mapping
        .iter()
        .find(|(scheme, _)| *scheme == dss.scheme)
        .map(|(_, algorithms)| *algorithms)
        .ok_or(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme)?;
    // TLS 1.3 ties the scheme to one curve; TLS 1.2 leaves the curve to the key.
    let algorithms = if tls13 { algorithms.get(..1).unwrap_or_default() } else { algorithms };
    for algorithm in algorithms {
        match key.verify_signature(*algorithm, message, dss.signature()) {
            Ok(()) => return Ok(HandshakeSignatureValid::assertion()),
            Err(webpki::Error::UnsupportedSignatureAlgorithmForPublicKeyContext(_)) => {}
            Err(_) => break,
        }
    }
    Err(Error::InvalidCertificate(CertificateError::BadSignature))
}
