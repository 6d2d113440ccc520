//! A `TRUSTED CERTIFICATE` block: a certificate followed by OpenSSL's `X509_CERT_AUX`
//! (crypto/x509/x_x509a.c).
//!
//! Invariant: a certificate is returned only when its auxiliary data does not restrict trust,
//! because trust settings are not applied.

use super::{CertError, Certificate, fields};
use crate::der::{self, DerError, Reader};

/// Parses the certificate.
///
/// # Errors
/// Those of [`Certificate::from_der`], and [`CertError::TrustSettings`] when the auxiliary data
/// restricts trust or is malformed.
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

/// The kinds of trust settings. An alias and a key identifier are not among them.
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
