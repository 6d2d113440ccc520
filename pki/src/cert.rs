//! One X.509 certificate, parsed once.
//!
//! PEM or DER -> [`Certificate`] -> `chain`, `policy`, `identity`. A [`Certificate`] is cheap to
//! clone; equality and hashing are by its DER. Parsing checks the form (strict DER, RFC 5280
//! structure, no repeated extension, the limits below); `chain` checks validity, usages and names.
//! Invariant: `fields` were parsed from exactly `der`.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, OnceLock};

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};
use fields::Fields;
use general_name::GeneralName;
use rustls_pki_types::{CertificateDer, UnixTime};
use thiserror::Error;

use crate::der::DerError;
use crate::name::{self, DistinguishedName};
use crate::pem::{self, Block, PemError};
use crate::signature::{self, PublicKey, SignatureCheck};
use crate::unix_time;

mod auxiliary;
pub(crate) mod fields;
pub(crate) mod general_name;

/// Largest certificate that is parsed, in bytes of DER. No TLS handshake carries a larger one.
pub(crate) const CERTIFICATE_BYTES_MAX: usize = 256 * 1024;
/// Most certificates of one PEM text. A bundle of all public roots has about 150.
pub(crate) const BUNDLE_CERTIFICATES_MAX: usize = 4096;

/// Why bytes or a PEM text cannot be read as certificates.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum CertError {
    /// Over [`CERTIFICATE_BYTES_MAX`].
    #[error("a certificate of {found} bytes is over the limit of {CERTIFICATE_BYTES_MAX}")]
    TooLarge {
        /// Size of the DER in bytes.
        found: usize,
    },
    /// Not strict DER, or not the structure of RFC 5280 4.1.
    #[error("not an X.509 certificate: {part}: {cause}")]
    Malformed {
        /// The malformed field.
        part: &'static str,
        /// The DER error.
        cause: String,
    },
    /// RFC 5280 4.2 allows each extension once.
    #[error("the extension {oid} occurs twice (RFC 5280 4.2)")]
    RepeatedExtension {
        /// The extension, in dotted form.
        oid: String,
    },
    /// More than `EXTENSIONS_MAX` extensions.
    #[error("more than {} extensions", fields::EXTENSIONS_MAX)]
    TooManyExtensions,
    /// The text has no certificate block.
    #[error("no certificate found{}: expected a block `-----BEGIN CERTIFICATE-----`", instead(.found.as_deref()))]
    NoCertificate {
        /// The label of the first other block of the text.
        found: Option<String>,
    },
    /// Over [`BUNDLE_CERTIFICATES_MAX`].
    #[error("more than {BUNDLE_CERTIFICATES_MAX} certificates in one text")]
    TooMany,
    /// A PEM block is damaged.
    #[error("damaged PEM: {0}")]
    Pem(String),
    /// An END line without its BEGIN line: OpenSSL skips such a block silently.
    #[error("damaged PEM: {0}")]
    NoBegin(String),
    /// A block that is no certificate and may restrict trust.
    #[error(
        "the block `{label}` is among the certificates, and its content would not be applied: remove it{}",
        place_of(label)
    )]
    UnexpectedBlock {
        /// Its label.
        label: String,
    },
    /// OpenSSL's auxiliary data behind the certificate restricts its trust, or is malformed.
    #[error(
        "`{subject}` carries OpenSSL's trust settings ({settings}), which are not applied: remove them with \
         `openssl x509 -in FILE -clrtrust -clrreject -out FILE`"
    )]
    TrustSettings {
        /// Subject of the certificate, RFC 2253.
        subject: String,
        /// The kinds of settings.
        settings: &'static str,
    },
    /// One of several certificates is malformed.
    #[error("certificate {position} of the text{}: {error}", after(.before.as_deref()))]
    InBundle {
        /// Counts from 1.
        position: usize,
        /// Subject of the certificate before it.
        before: Option<String>,
        /// The error of this certificate.
        error: Box<CertError>,
    },
}

impl CertError {
    pub(crate) fn malformed(part: &'static str) -> impl Fn(DerError) -> Self {
        move |error| Self::Malformed { part, cause: error.to_string() }
    }
}

fn instead(found: Option<&str>) -> String {
    found.map(|label| format!(", only a block `{label}`")).unwrap_or_default()
}

fn place_of(label: &str) -> &'static str {
    match label {
        "X509 CRL" | "CRL" => " (the revocation lists of a site belong in client.crl)",
        "PKCS7" | "CMS" => " (`openssl pkcs7 -print_certs` writes the certificates in it)",
        _ => "",
    }
}

fn after(before: Option<&str>) -> String {
    before.map(|subject| format!(" (the one after `{subject}`)")).unwrap_or_default()
}

impl From<PemError> for CertError {
    fn from(error: PemError) -> Self {
        match error {
            PemError::NoBegin { .. } => Self::NoBegin(error.to_string()),
            other => Self::Pem(other.to_string()),
        }
    }
}

/// A certificate: its DER and the parsed fields. Clones share one allocation.
#[derive(Clone)]
pub struct Certificate(Arc<CertificateInner>);

/// 192 bytes with the counters of an `Arc`, a size class of the allocator: a process may hold
/// millions.
struct CertificateInner {
    der: CertificateDer<'static>,
    fields: Fields,
    lazy: OnceLock<Box<LazyFields>>,
}

/// Computed on first use. A handshake needs these only for logs and forwarded headers, and a
/// server's own certificates, of which there may be millions, never do.
#[derive(Default)]
struct LazyFields {
    subject: OnceLock<Box<str>>,
    issuer: OnceLock<Box<str>>,
    fingerprint: OnceLock<[u8; 32]>,
    spki: OnceLock<[u8; 32]>,
}

impl Certificate {
    /// Parses one certificate. Copies the bytes once.
    ///
    /// # Errors
    /// When the bytes are not exactly one certificate in strict DER within the limits.
    pub fn from_der(der: &[u8]) -> Result<Self, CertError> {
        let fields = Fields::read(der)?;
        Ok(Self::from_parts(der, fields))
    }

    /// `fields` must have been parsed from `der`.
    pub(crate) fn from_parts(der: &[u8], fields: Fields) -> Self {
        Self(Arc::new(CertificateInner {
            der: CertificateDer::from(der.to_vec()),
            fields,
            lazy: OnceLock::new(),
        }))
    }

    /// The bytes.
    pub fn der(&self) -> &CertificateDer<'static> {
        &self.0.der
    }

    /// One PEM block, lines of 64 characters, with a newline at the end.
    pub fn to_pem(&self) -> String {
        pem::encode("CERTIFICATE", &self.0.der).to_string()
    }

    fn lazy(&self) -> &LazyFields {
        self.0.lazy.get_or_init(Box::default)
    }

    pub(crate) fn fields(&self) -> &Fields {
        &self.0.fields
    }

    /// Subject as RFC 2253 text, in OpenSSL's spelling: `CN=client,O=Acme`. Empty when the subject
    /// is.
    pub fn subject(&self) -> &str {
        self.lazy().subject.get_or_init(|| name::to_rfc2253(self.0.fields.subject.slice(&self.0.der)).into())
    }

    /// Issuer as RFC 2253 text.
    pub fn issuer(&self) -> &str {
        self.lazy().issuer.get_or_init(|| name::to_rfc2253(self.0.fields.issuer.slice(&self.0.der)).into())
    }

    /// Subject in OpenSSL's legacy form, `/O=Acme/CN=client`. For display only: a `/` within a
    /// value is not escaped.
    pub fn subject_legacy(&self) -> String {
        name::to_legacy(self.0.fields.subject.slice(&self.0.der))
    }

    /// Issuer in OpenSSL's legacy form.
    pub fn issuer_legacy(&self) -> String {
        name::to_legacy(self.0.fields.issuer.slice(&self.0.der))
    }

    /// Whether its subject matches `name`.
    pub fn has_subject(&self, name: &DistinguishedName) -> bool {
        name::names_match(name.content(), self.subject_der())
    }

    /// Whether its issuer matches `name`.
    pub fn has_issuer(&self, name: &DistinguishedName) -> bool {
        name::names_match(name.content(), self.0.fields.issuer.slice(&self.0.der))
    }

    /// Equal for certificates whose subjects match (RFC 5280 7.1); different subjects may collide.
    pub fn subject_hash(&self) -> u64 {
        name::folded_hash(self.subject_der())
    }

    /// Serial number: the content of the INTEGER, in DER's shortest form.
    pub fn serial(&self) -> &[u8] {
        self.0.fields.serial.slice(&self.0.der)
    }

    /// Serial number as OpenSSL prints it: upper-case hexadecimal, whole bytes, `-` before a
    /// negative one.
    pub fn serial_hex(&self) -> String {
        fields::serial_hex(self.0.fields.serial.slice(&self.0.der))
    }

    /// First second of validity, inclusive; dates before 1970 read as 1970.
    pub fn not_before(&self) -> UnixTime {
        unix_time::from_seconds(self.0.fields.not_before)
    }

    /// Last second of validity, inclusive; dates before 1970 read as 1970.
    pub fn not_after(&self) -> UnixTime {
        unix_time::from_seconds(self.0.fields.not_after)
    }

    /// SHA-256 over the DER.
    pub fn fingerprint_sha256(&self) -> &[u8; 32] {
        self.lazy().fingerprint.get_or_init(|| sha256(&self.0.der))
    }

    /// SHA-1 over the DER: nginx's `$ssl_client_fingerprint`. For display only.
    pub fn fingerprint_sha1(&self) -> [u8; 20] {
        let mut out = [0; 20];
        // Both are 20 bytes.
        out.copy_from_slice(digest(&SHA1_FOR_LEGACY_USE_ONLY, &self.0.der).as_ref());
        out
    }

    /// SHA-256 over the SubjectPublicKeyInfo. A certificate renewed with its key keeps this value.
    pub fn spki_sha256(&self) -> &[u8; 32] {
        self.lazy().spki.get_or_init(|| sha256(self.0.fields.spki.slice(&self.0.der)))
    }

    /// X.509 version 1: has no extensions, so it states neither usages nor names.
    pub fn is_v1(&self) -> bool {
        self.0.fields.version == 1
    }

    /// Whether the certificate claims to be a CA: basicConstraints CA:TRUE, or a self-issued v1
    /// certificate, which has no basicConstraints.
    pub fn is_ca(&self) -> bool {
        match self.0.fields.basic_constraints {
            Some(constraints) => constraints.ca,
            None => self.is_v1() && self.is_self_issued(),
        }
    }

    /// Whether `issuer` is a CA that has this certificate's issuer name and signed it. Checks
    /// nothing else of a path.
    pub fn is_issued_by(&self, issuer: &Self) -> bool {
        let (fields, der) = (&self.0.fields, &self.0.der);
        let may_issue = issuer.is_ca() && issuer.0.fields.key_usage.is_none_or(|usage| usage.key_cert_sign());
        let algorithm = fields.signature_algorithm.slice(der);
        may_issue
            && name::names_match(fields.issuer.slice(der), issuer.subject_der())
            && signature::verify(issuer.key(), algorithm, fields.tbs.slice(der), fields.signature.slice(der))
                == SignatureCheck::Valid
    }

    /// Whether subject and issuer are the same name.
    pub fn is_self_issued(&self) -> bool {
        self.0.fields.is_self_issued(&self.0.der)
    }

    /// The dNSName entries of the subject alternative name, as written.
    pub fn dns_names(&self) -> Vec<&str> {
        self.general_names()
            .filter_map(|name| match name {
                GeneralName::Dns(text) => std::str::from_utf8(text).ok(),
                _ => None,
            })
            .collect()
    }

    /// The URIs of the subject alternative name, as written.
    pub fn uris(&self) -> Vec<&str> {
        self.general_names()
            .filter_map(|name| match name {
                GeneralName::Uri(text) => std::str::from_utf8(text).ok(),
                _ => None,
            })
            .collect()
    }

    /// The readable entries of the subject alternative name.
    pub(crate) fn general_names(&self) -> impl Iterator<Item = GeneralName<'_>> {
        let extension = self.0.fields.subject_alt_name.map(|span| span.slice(&self.0.der));
        extension.into_iter().flat_map(general_name::parse_list).map_while(Result::ok)
    }

    /// Content of the subject's `Name`, for comparing and for CertificateRequest.
    pub(crate) fn subject_der(&self) -> &[u8] {
        self.0.fields.subject.slice(&self.0.der)
    }

    /// The public key.
    pub(crate) fn key(&self) -> PublicKey<'_> {
        self.0.fields.key(&self.0.der)
    }
}

pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest(&SHA256, bytes).as_ref()); // both are 32 bytes
    out
}

/// The SubjectPublicKeyInfo of a certificate, without making a [`Certificate`]: for checking that a
/// peer holds the private key. The certificate itself is not verified.
///
/// # Errors
/// Those of [`Certificate::from_der`].
pub fn subject_public_key_info(der: &[u8]) -> Result<&[u8], CertError> {
    Ok(Fields::read(der)?.spki.slice(der))
}

/// Reads every certificate of a PEM text, in order. Ignores text around the blocks, and blocks that
/// cannot change trust (private keys, parameters, certificate requests). Accepts OpenSSL's labels:
/// `CERTIFICATE`, `X509 CERTIFICATE`, `TRUSTED CERTIFICATE` (without trust settings).
///
/// # Errors
/// When there is no certificate, there are too many, one is malformed, or the text restricts trust
/// in a way that is not applied: a block of another kind, or OpenSSL's trust settings. No block is
/// skipped.
pub fn certificates_from_pem(text: &str) -> Result<Vec<Certificate>, CertError> {
    certificates_and_blocks(text, |_| false)
}

/// Like [`certificates_from_pem`]; `takes` may consume blocks of other labels.
pub(crate) fn certificates_and_blocks(
    text: &str,
    mut takes: impl FnMut(&Block<'_>) -> bool,
) -> Result<Vec<Certificate>, CertError> {
    let mut certificates: Vec<Certificate> = Vec::new();
    let mut other = None;
    for block in pem::blocks(text) {
        let position = certificates.len() + 1;
        let before = || certificates.last().map(|before| before.subject().to_owned());
        let damaged = |error| CertError::InBundle { position, before: before(), error: Box::new(error) };
        let block = block.map_err(|error| damaged(error.into()))?;
        let certificate = match block.label {
            "CERTIFICATE" | "X509 CERTIFICATE" => Certificate::from_der(&block.bytes),
            "TRUSTED CERTIFICATE" => auxiliary::certificate(&block.bytes),
            _ if takes(&block) => continue,
            label if block.is_irrelevant_to_trust() => {
                other = other.or_else(|| Some(pem::truncated(label)));
                continue;
            }
            label => Err(CertError::UnexpectedBlock { label: pem::truncated(label) }),
        };
        if certificates.len() == BUNDLE_CERTIFICATES_MAX {
            return Err(CertError::TooMany);
        }
        let certificate = certificate.map_err(damaged)?;
        certificates.push(certificate);
    }
    certificates.shrink_to_fit();
    if certificates.is_empty() { Err(CertError::NoCertificate { found: other }) } else { Ok(certificates) }
}

impl PartialEq for Certificate {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0.der == other.0.der
    }
}

impl Eq for Certificate {}

impl Hash for Certificate {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.der.as_ref().hash(state);
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Certificate").field(&self.subject()).finish()
    }
}

#[cfg(test)]
mod tests;
