//! Does the peer hold the key of the certificate it shows? The handshake's signature, checked with
//! nothing but the public key.
//!
//! Not the TLS library's own functions: they read the certificate as webpki does, which refuses
//! X.509 v1 and is stricter than the question asks. Which certificates are acceptable is `pki`'s to
//! say. RFC 8446 section 4.4.3, RFC 5246 section 4.7.

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, SubjectPublicKeyInfoDer};
use rustls::{CertificateError, DigitallySignedStruct, Error};

/// Checks a TLS 1.2 signature.
///
/// # Errors
/// `BadSignature`, or `BadEncoding` for what is no certificate.
pub(crate) fn verify_tls12(
    algorithms: &WebPkiSupportedAlgorithms,
    message: &[u8],
    cert: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    let spki = subject_public_key_info(cert)?;
    let key = webpki::RawPublicKeyEntity::try_from(&spki).map_err(|_| bad_encoding())?;
    let found = algorithms.mapping.iter().find(|(scheme, _)| *scheme == signed.scheme);
    let candidates = found.map(|(_, algorithms)| *algorithms).unwrap_or_default();
    let proven = candidates
        .iter()
        .any(|algorithm| key.verify_signature(*algorithm, message, signed.signature()).is_ok());
    if proven { Ok(HandshakeSignatureValid::assertion()) } else { Err(CertificateError::BadSignature.into()) }
}

/// Checks a TLS 1.3 signature.
///
/// # Errors
/// As [`verify_tls12`].
pub(crate) fn verify_tls13(
    algorithms: &WebPkiSupportedAlgorithms,
    message: &[u8],
    cert: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    verify_tls13_signature_with_raw_key(message, &subject_public_key_info(cert)?, signed, algorithms)
}

/// The peer's public key as its certificate carries it.
fn subject_public_key_info<'a>(cert: &'a CertificateDer<'_>) -> Result<SubjectPublicKeyInfoDer<'a>, Error> {
    pki::subject_public_key_info(cert).map(SubjectPublicKeyInfoDer::from).map_err(|_| bad_encoding())
}

fn bad_encoding() -> Error {
    CertificateError::BadEncoding.into()
}
