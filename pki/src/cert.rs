//! One X.509 certificate, read once: what every other part of the house holds in its hands.
//!
//! PEM or DER -> [`Certificate`] -> `chain`, `policy`, `identity`. Cheap to clone; equality and
//! hashing are by the DER bytes. Reading checks the form (strict DER, RFC 5280 structure, no
//! repeated extension, the limits below) but judges nothing: validity, usages and names are
//! `chain`'s business. Invariant: `fields` were read from exactly `der`.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};
use fields::Fields;
use general_name::GeneralName;
use rustls_pki_types::{CertificateDer, UnixTime};
use thiserror::Error;

use crate::der::DerError;
use crate::name;
use crate::pem::{self, Block, PemError};
use crate::signature::{self, PublicKey, SignatureCheck};

mod auxiliary;
pub(crate) mod fields;
pub(crate) mod general_name;

/// Largest certificate we read, in bytes of DER. Beyond it lies nothing that a TLS handshake
/// carries.
pub const CERTIFICATE_BYTES_MAX: usize = 256 * 1024;
/// Most certificates we read from one PEM text: a bundle of all public roots has about 150.
pub const BUNDLE_CERTIFICATES_MAX: usize = 4096;

/// Why bytes are not a certificate of ours.
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
        /// The field of the certificate that cannot be read.
        part: &'static str,
        /// What is wrong with its bytes.
        cause: String,
    },
    /// RFC 5280 4.2 allows each extension once.
    #[error("the extension {oid} occurs twice (RFC 5280 4.2)")]
    RepeatedExtension {
        /// The extension, in dotted form.
        oid: String,
    },
    /// More extensions than any certificate has use for.
    #[error("more than {} extensions", fields::EXTENSIONS_MAX)]
    TooManyExtensions,
    /// The text has no certificate block.
    #[error("no certificate found{}: expected a block `-----BEGIN CERTIFICATE-----`", instead(.found.as_deref()))]
    NoCertificate {
        /// The label of another block that is there.
        found: Option<String>,
    },
    /// Over [`BUNDLE_CERTIFICATES_MAX`].
    #[error("more than {BUNDLE_CERTIFICATES_MAX} certificates in one text")]
    TooMany,
    /// A PEM block is damaged.
    #[error("damaged PEM: {0}")]
    Pem(String),
    /// A block that OpenSSL skips, because no BEGIN line leads to it.
    #[error("damaged PEM: {0}")]
    NoBegin(String),
    /// A block that is not a certificate and may change what is trusted.
    #[error(
        "the block `{label}` stands among the certificates, and what it says would not be applied: remove it{}",
        place_of(label)
    )]
    UnexpectedBlock {
        /// Its label.
        label: String,
    },
    /// OpenSSL's auxiliary data behind the certificate limits or widens what it is trusted for, or
    /// cannot be read.
    #[error(
        "`{subject}` carries OpenSSL's trust settings ({settings}), which are not applied: remove them with \
         `openssl x509 -in FILE -clrtrust -clrreject -out FILE`"
    )]
    TrustSettings {
        /// Subject of the certificate, RFC 2253.
        subject: String,
        /// Which there are.
        settings: &'static str,
    },
    /// One certificate of several cannot be read.
    #[error("certificate {position} of the text{}: {error}", after(.before.as_deref()))]
    InBundle {
        /// Counts from 1.
        position: usize,
        /// Subject of the certificate before it.
        before: Option<String>,
        /// What is wrong with it.
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

/// A certificate: its DER and what was read from it. Clones share one allocation.
#[derive(Clone)]
pub struct Certificate(Arc<CertificateInner>);

/// With an Arc's counters 192 bytes, which is one of the allocator's sizes: there may be millions.
struct CertificateInner {
    der: CertificateDer<'static>,
    fields: Fields,
    lazy: OnceLock<Box<LazyFields>>,
}

/// Made when first asked for: a handshake needs them only if somebody logs or forwards them, and of
/// a server's own certificates nobody does, of which there may be millions.
#[derive(Default)]
struct LazyFields {
    subject: OnceLock<Box<str>>,
    issuer: OnceLock<Box<str>>,
    fingerprint: OnceLock<[u8; 32]>,
    spki: OnceLock<[u8; 32]>,
}

impl Certificate {
    /// Reads one certificate. Copies the bytes once.
    ///
    /// # Errors
    /// When the bytes are not one certificate in strict DER within the limits, or bytes follow it.
    pub fn from_der(der: &[u8]) -> Result<Self, CertError> {
        let fields = Fields::read(der)?;
        Ok(Self::from_parts(der, fields))
    }

    /// For callers that have read `der` already.
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

    /// Subject in the old form of OpenSSL, `/O=Acme/CN=client`: for show only, since a `/` within a
    /// value is not escaped.
    pub fn subject_legacy(&self) -> String {
        name::to_legacy(self.0.fields.subject.slice(&self.0.der))
    }

    /// Issuer in the old form.
    pub fn issuer_legacy(&self) -> String {
        name::to_legacy(self.0.fields.issuer.slice(&self.0.der))
    }

    /// Equal for certificates whose subjects are the same name (RFC 5280 7.1); unequal ones may
    /// share it.
    pub fn subject_hash(&self) -> u64 {
        name::folded_hash(self.subject_der())
    }

    /// Serial number: the content of the INTEGER, which DER keeps as short as it can be.
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
        to_unix(self.0.fields.not_before)
    }

    /// Last second of validity, inclusive; dates before 1970 read as 1970.
    pub fn not_after(&self) -> UnixTime {
        to_unix(self.0.fields.not_after)
    }

    /// SHA-256 over the DER.
    pub fn fingerprint_sha256(&self) -> &[u8; 32] {
        self.lazy().fingerprint.get_or_init(|| sha256(&self.0.der))
    }

    /// SHA-1 over the DER: what nginx calls the fingerprint. A name for people, not a proof.
    pub fn fingerprint_sha1(&self) -> [u8; 20] {
        let mut out = [0; 20];
        out.copy_from_slice(digest(&SHA1_FOR_LEGACY_USE_ONLY, &self.0.der).as_ref()); // both are 20 bytes
        out
    }

    /// SHA-256 over the SubjectPublicKeyInfo: stays the same when the certificate is renewed with
    /// its key.
    pub fn spki_sha256(&self) -> &[u8; 32] {
        self.lazy().spki.get_or_init(|| sha256(self.0.fields.spki.slice(&self.0.der)))
    }

    /// X.509 version 1: no extensions, so neither usages nor names can be judged.
    pub fn is_v1(&self) -> bool {
        self.0.fields.version == 1
    }

    /// Says of itself that it is a CA: basicConstraints CA:TRUE, or a self-issued v1 certificate
    /// (which cannot say so).
    pub fn is_ca(&self) -> bool {
        match self.0.fields.basic_constraints {
            Some(constraints) => constraints.ca,
            None => self.is_v1() && self.is_self_issued(),
        }
    }

    /// Whether `issuer` may issue certificates, has this one's issuer's name, and signed it.
    /// Nothing else of a path is judged.
    pub fn is_issued_by(&self, issuer: &Self) -> bool {
        let (fields, der) = (&self.0.fields, &self.0.der);
        let may_issue = issuer.is_ca() && issuer.0.fields.key_usage.is_none_or(|usage| usage.key_cert_sign());
        let algorithm = fields.signature_algorithm.slice(der);
        may_issue
            && name::names_match(fields.issuer.slice(der), issuer.subject_der())
            && signature::verify(issuer.key(), algorithm, fields.tbs.slice(der), fields.signature.slice(der))
                == SignatureCheck::Valid
    }

    /// Subject and issuer are the same name.
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

pub(crate) fn to_unix(seconds: i64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}

pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest(&SHA256, bytes).as_ref()); // both are 32 bytes
    out
}

/// The SubjectPublicKeyInfo of a certificate, without making a [`Certificate`] of it: for checking
/// that a peer holds the key of what it shows. Says nothing about whether the certificate is any
/// good.
///
/// # Errors
/// As [`Certificate::from_der`].
pub fn subject_public_key_info(der: &[u8]) -> Result<&[u8], CertError> {
    Ok(Fields::read(der)?.spki.slice(der))
}

/// Reads every certificate of a PEM text, in order. Text around the blocks is ignored, and so are
/// blocks that say nothing about trust (private keys, parameters, certificate requests). Labels as
/// OpenSSL reads them: `CERTIFICATE`, `X509 CERTIFICATE`, `TRUSTED CERTIFICATE` (without trust
/// settings).
///
/// # Errors
/// When there is no certificate, too many, one of them cannot be read, or the text says something
/// about trust that is not applied: a block of another kind, or OpenSSL's trust settings. Nothing
/// is skipped.
pub fn certificates_from_pem(text: &str) -> Result<Vec<Certificate>, CertError> {
    certificates_and_blocks(text, |_| false)
}

/// As [`certificates_from_pem`], but `takes` may take blocks of other labels for itself.
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
