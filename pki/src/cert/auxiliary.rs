//! A `TRUSTED CERTIFICATE` block: a certificate and behind it OpenSSL's `X509_CERT_AUX`
//! (crypto/x509/x_x509a.c).
//!
//! Invariant: a certificate comes out only when the auxiliary data says nothing about trust,
//! because we would not apply it.

use super::{CertError, Certificate, fields};
use crate::der::{self, DerError, Reader};

/// Reads the certificate.
///
/// # Errors
/// As [`Certificate::from_der`], and [`CertError::TrustSettings`] when there are any or the data
/// cannot be read.
pub(super) fn certificate(bytes: &[u8]) -> Result<Certificate, CertError> {
    let der = fields::first_value(bytes);
    let certificate = Certificate::from_der(der)?;
    let settings = trust_settings(bytes.get(der.len()..).unwrap_or_default());
    match settings.unwrap_or(Some("in a form that cannot be read")) {
        None => Ok(certificate),
        Some(settings) => {
            Err(CertError::TrustSettings { subject: certificate.subject().to_owned(), settings })
        }
    }
}

/// Which settings there are. An alias and a key identifier are names, and say nothing about trust.
fn trust_settings(auxiliary: &[u8]) -> Result<Option<&'static str>, DerError> {
    let mut whole = Reader::new(auxiliary);
    if whole.is_empty() {
        return Ok(None);
    }
    let mut fields = whole.nested(der::SEQUENCE)?;
    whole.finish()?;
    let trusts = fields.optional(der::SEQUENCE)?.is_some();
    let rejects = fields.optional(der::context_constructed(0))?.is_some();
    fields.optional(der::UTF8_STRING)?;
    fields.optional(der::OCTET_STRING)?;
    let others = fields.optional(der::context_constructed(1))?.is_some();
    fields.finish()?;
    Ok(match (trusts, rejects) {
        (true, true) => Some("uses it is trusted for and uses it is rejected for"),
        (true, false) => Some("uses it is trusted for"),
        (false, true) => Some("uses it is rejected for"),
        (false, false) => others.then_some("further algorithm identifiers"),
    })
}
