//! Certificate revocation lists (RFC 5280 5): parsed and indexed when a policy is built, queried at
//! each verification.
//!
//! DER -> [`Crl`] -> `policy`; `chain` queries [`CrlSet::status`] for each certificate of a
//! complete path. Serial numbers are sorted once, so a list of 10,000 entries costs a handshake a
//! binary search, and a signature is checked once for each key. Invariant: the policy alone decides
//! what an unknown status means.

mod scope;

use std::sync::OnceLock;

use rustls_pki_types::{CertificateRevocationListDer, UnixTime};
use thiserror::Error;

use self::scope::{Scope, read_scope};
use crate::cert::fields::{self, Extension};
use crate::cert::{self, CertError, Certificate};
use crate::der::{self, DerError, Reader, Span};
use crate::name;
use crate::signature::{self, PublicKey, SignatureCheck};
use crate::unix_time;

/// Largest CRL, in bytes of DER: about 800,000 entries.
pub(crate) const CRL_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Most CRLs of a policy.
pub(crate) const CRLS_MAX: usize = 1024;
/// Signers whose check a CRL caches: a CA has one key, during a rollover two.
const CACHED_SIGNERS: usize = 4;

/// Why a CRL is invalid.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum CrlError {
    /// Over [`CRL_BYTES_MAX`].
    #[error("a CRL of {found} bytes is over the limit of {CRL_BYTES_MAX}")]
    TooLarge {
        /// Size of the DER in bytes.
        found: usize,
    },
    /// Not strict DER, or not the structure of RFC 5280 5.1.
    #[error("not a certificate revocation list: {part}: {cause}")]
    Malformed {
        /// The malformed field.
        part: &'static str,
        /// The DER error.
        cause: String,
    },
    /// An extension occurs twice.
    #[error("the extension {oid} occurs twice in the CRL (RFC 5280 4.2)")]
    RepeatedExtension {
        /// In dotted form.
        oid: String,
    },
    /// RFC 5280 5.1.2.5 requires nextUpdate; without it a current CRL looks like an old one.
    #[error("the CRL of `{issuer}` has no nextUpdate (RFC 5280 5.1.2.5)")]
    NoNextUpdate {
        /// Issuer of the list, RFC 2253.
        issuer: String,
    },
    /// RFC 5280 5.2.3 requires the extension, not critical.
    #[error("the CRL of `{issuer}` {problem}: CRLNumber must be present and not critical (RFC 5280 5.2.3)")]
    Number {
        /// Issuer of the list, RFC 2253.
        issuer: String,
        /// "has no CRLNumber" or "has a critical CRLNumber".
        problem: &'static str,
    },
    /// A critical extension that changes the meaning of the CRL, as in delta and partitioned CRLs.
    #[error(
        "the CRL of `{issuer}` has the critical extension {oid}, which is not supported: use complete, direct CRLs"
    )]
    CriticalExtension {
        /// Issuer of the list, RFC 2253.
        issuer: String,
        /// In dotted form.
        oid: String,
    },
    /// An issuingDistributionPoint that narrows the CRL in an unsupported way.
    #[error(
        "the CRL of `{issuer}` is {scope} (issuingDistributionPoint), which is not supported: use complete, direct CRLs"
    )]
    Scope {
        /// Issuer of the list, RFC 2253.
        issuer: String,
        /// "indirect", "limited to some reasons", ...
        scope: &'static str,
    },
    /// The text has no CRL block.
    #[error("no CRL found: expected a block `-----BEGIN X509 CRL-----`")]
    NoCrl,
    /// A block is damaged, or is neither a CRL nor a certificate.
    #[error("{0}")]
    Pem(CertError),
}

impl CrlError {
    fn malformed(part: &'static str) -> impl Fn(DerError) -> Self {
        move |error| Self::Malformed { part, cause: error.to_string() }
    }
}

/// Reads the CRL blocks (`X509 CRL`, `CRL`) of a PEM text, in order and undecoded, and the
/// certificates among them.
///
/// # Errors
/// When there is no CRL, a block is damaged, or a block is neither and may change trust.
pub fn crls_from_pem(
    text: &str,
) -> Result<(Vec<CertificateRevocationListDer<'static>>, Vec<Certificate>), CrlError> {
    let mut lists = Vec::new();
    let certificates = cert::certificates_and_blocks(text, |block| {
        let is_list = matches!(block.label, "X509 CRL" | "CRL");
        if is_list {
            lists.push(CertificateRevocationListDer::from(block.bytes.to_vec()));
        }
        is_list
    });
    let certificates = match certificates {
        Ok(certificates) => certificates,
        Err(CertError::NoCertificate { .. }) => Vec::new(),
        Err(error) => return Err(CrlError::Pem(error)),
    };
    if lists.is_empty() { Err(CrlError::NoCrl) } else { Ok((lists, certificates)) }
}

/// One CRL, parsed and indexed.
pub struct Crl {
    der: Box<[u8]>,
    tbs: Span,
    signature_algorithm: Span,
    signature: Span,
    issuer: Span,
    this_update: i64,
    next_update: i64,
    scope: Scope,
    /// The serial numbers' contents, sorted by their bytes.
    revoked: Vec<Span>,
    /// SHA-256 over a signer's algorithm and key, and whether its signature is valid. Filled
    /// without locks, never cleared.
    signers: [OnceLock<([u8; 32], bool)>; CACHED_SIGNERS],
}

impl Crl {
    /// Parses a CRL and sorts its serial numbers.
    ///
    /// # Errors
    /// When it is not a complete, direct v2 CRL with CRLNumber and nextUpdate in strict DER. The
    /// signature is not checked.
    pub fn from_der(der: &[u8]) -> Result<Self, CrlError> {
        if der.len() > CRL_BYTES_MAX {
            return Err(CrlError::TooLarge { found: der.len() });
        }
        let outside = CrlError::malformed("outer structure");
        let mut file = Reader::new(der);
        let mut list = file.nested(der::SEQUENCE).map_err(&outside)?;
        file.finish().map_err(&outside)?;
        let tbs = list.expect(der::SEQUENCE).map_err(&outside)?;
        let algorithm = list.expect(der::SEQUENCE).map_err(CrlError::malformed("signatureAlgorithm"))?;
        let signature = list.expect(der::BIT_STRING).map_err(CrlError::malformed("signature"))?;
        der::whole_bytes(signature.content).map_err(CrlError::malformed("signature"))?;
        list.finish().map_err(&outside)?;

        let body = TbsCertList::read(der, Reader::within(der, tbs.inner), algorithm.content)?;
        Ok(Self {
            tbs: tbs.outer,
            signature_algorithm: algorithm.inner,
            signature: signature.inner.skip_first(),
            issuer: body.issuer,
            this_update: body.this_update,
            next_update: body.next_update,
            scope: body.scope,
            revoked: body.revoked,
            signers: Default::default(),
            der: der.into(),
        })
    }

    /// Issuer as RFC 2253 text.
    pub fn issuer(&self) -> String {
        name::to_rfc2253(self.issuer_der())
    }

    /// Start of its validity, inclusive.
    pub fn this_update(&self) -> UnixTime {
        unix_time::from_seconds(self.this_update)
    }

    /// End of its validity; the CRL is stale after it.
    pub fn next_update(&self) -> UnixTime {
        unix_time::from_seconds(self.next_update)
    }

    /// Number of revoked certificates.
    pub fn entries(&self) -> usize {
        self.revoked.len()
    }

    /// The bytes.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// As one PEM block.
    pub fn to_pem(&self) -> String {
        crate::pem::encode("X509 CRL", &self.der).to_string()
    }

    /// Whether `issuer` signed this CRL and was allowed to: its name is the CRL's issuer, and its
    /// keyUsage, if any, has cRLSign (RFC 5280 6.3.3 f).
    pub fn is_signed_by(&self, issuer: &Certificate) -> bool {
        let fields = issuer.fields();
        fields.key_usage.is_none_or(|usage| usage.crl_sign())
            && name::names_match(self.issuer_der(), issuer.subject_der())
            && self.is_signature_valid(issuer.key())
    }

    /// Whether this CRL is about the CA certificates of its issuer (`true`), or about the others.
    pub fn covers(&self, are_cas: bool) -> bool {
        self.scope.covers(are_cas)
    }

    /// Whether one key has signed both, as far as the signatures were checked: a policy does so for
    /// the certificates that may sign its lists.
    pub fn shares_signer(&self, other: &Crl) -> bool {
        let known = |list: &'_ Crl| {
            let checked = list.signers.iter().filter_map(OnceLock::get);
            checked.filter(|(_, good)| *good).map(|(key, _)| *key).collect::<Vec<_>>()
        };
        let its = known(other);
        known(self).iter().any(|key| its.contains(key))
    }

    /// Whether this CRL lists the certificate. Does not check the signature of the CRL.
    pub fn revokes(&self, certificate: &Certificate) -> bool {
        let fields = certificate.fields();
        name::names_match(self.issuer_der(), fields.issuer.slice(certificate.der()))
            && self.contains_serial(fields.serial.slice(certificate.der()))
    }

    pub(crate) fn issuer_der(&self) -> &[u8] {
        self.issuer.slice(&self.der)
    }

    /// The revoked serial numbers, each as the content of its INTEGER, in ascending order of their
    /// bytes.
    pub fn revoked(&self) -> impl Iterator<Item = &[u8]> {
        self.revoked.iter().map(|entry| entry.slice(&self.der))
    }

    /// Whether it lists this serial number (the content of an INTEGER).
    pub fn contains_serial(&self, serial: &[u8]) -> bool {
        self.revoked.binary_search_by(|entry| entry.slice(&self.der).cmp(serial)).is_ok()
    }

    fn is_current(&self, now: i64) -> bool {
        (self.this_update..=self.next_update).contains(&now)
    }

    /// Checks the signature against a key, once for each key.
    fn is_signature_valid(&self, signer: PublicKey<'_>) -> bool {
        let mut identifier = Vec::with_capacity(signer.algorithm.len() + signer.key.len());
        identifier.extend_from_slice(signer.algorithm);
        identifier.extend_from_slice(signer.key);
        let identifier = cert::sha256(&identifier);
        let known = self.signers.iter().find_map(|slot| slot.get().filter(|(known, _)| *known == identifier));
        if let Some((_, good)) = known {
            return *good;
        }
        let algorithm = self.signature_algorithm.slice(&self.der);
        let checked =
            signature::verify(signer, algorithm, self.tbs.slice(&self.der), self.signature.slice(&self.der));
        let good = checked == SignatureCheck::Valid;
        // Another thread may take the slot first; a duplicate in the next slot is harmless.
        for slot in &self.signers {
            if slot.set((identifier, good)).is_ok() {
                break;
            }
        }
        good
    }
}

impl std::fmt::Debug for Crl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Crl({}, {} entries)", self.issuer(), self.entries())
    }
}

/// TBSCertList: the signed part of a CRL.
struct TbsCertList {
    issuer: Span,
    this_update: i64,
    next_update: i64,
    scope: Scope,
    revoked: Vec<Span>,
}

impl TbsCertList {
    fn read(der: &[u8], mut tbs: Reader<'_>, outer_algorithm: &[u8]) -> Result<Self, CrlError> {
        let version =
            tbs.expect(der::INTEGER).map_err(CrlError::malformed("version (only v2 is supported)"))?;
        if version.content != [1] {
            return Err(CrlError::malformed("version (only v2 is supported)")(DerError::Value));
        }
        let algorithm = tbs.expect(der::SEQUENCE).map_err(CrlError::malformed("signature algorithm"))?;
        if algorithm.content != outer_algorithm {
            return Err(CrlError::malformed("the two signature algorithms differ")(DerError::Value));
        }
        let issuer = tbs.expect(der::SEQUENCE).map_err(CrlError::malformed("issuer"))?;
        name::check(issuer.content).map_err(CrlError::malformed("issuer"))?;
        let issuer_text = || name::to_rfc2253(issuer.content);
        let this_update = read_time(&mut tbs).map_err(CrlError::malformed("thisUpdate"))?;
        let next_update = match tbs.peek() {
            Some(der::UTC_TIME | der::GENERALIZED_TIME) => {
                read_time(&mut tbs).map_err(CrlError::malformed("nextUpdate"))?
            }
            _ => return Err(CrlError::NoNextUpdate { issuer: issuer_text() }),
        };
        let mut revoked = Vec::new();
        if let Some(entries) =
            tbs.optional(der::SEQUENCE).map_err(CrlError::malformed("revokedCertificates"))?
        {
            read_entries(Reader::within(der, entries.inner), &mut revoked, &issuer_text)?;
        }
        let extensions = CrlError::malformed("crlExtensions");
        let wrapped = tbs.optional(der::context_constructed(0)).map_err(&extensions)?;
        tbs.finish().map_err(&extensions)?;
        let missing = || CrlError::Number { issuer: issuer_text(), problem: "has no CRLNumber" };
        let wrapped = wrapped.ok_or_else(missing)?;
        let list =
            fields::single_value(Reader::within(der, wrapped.inner), der::SEQUENCE).map_err(&extensions)?;
        let (numbered, scope) = read_extensions(der, Reader::within(der, list.inner), &issuer_text)?;
        if !numbered {
            return Err(missing());
        }
        revoked.sort_unstable_by(|a, b| a.slice(der).cmp(b.slice(der)));
        Ok(Self { issuer: issuer.inner, this_update, next_update, scope, revoked })
    }
}

fn read_time(tbs: &mut Reader<'_>) -> Result<i64, DerError> {
    der::time(&tbs.next()?)
}

fn read_entries(
    mut entries: Reader<'_>,
    revoked: &mut Vec<Span>,
    issuer: &dyn Fn() -> String,
) -> Result<(), CrlError> {
    let malformed = CrlError::malformed("revokedCertificates");
    while !entries.is_empty() {
        let mut entry = entries.nested(der::SEQUENCE).map_err(&malformed)?;
        let serial = entry.expect(der::INTEGER).map_err(&malformed)?;
        read_time(&mut entry).map_err(&malformed)?;
        if !entry.is_empty() {
            let mut extensions = entry.nested(der::SEQUENCE).map_err(&malformed)?;
            while !extensions.is_empty() {
                let extension = Extension::read(&mut extensions).map_err(&malformed)?;
                // reasonCode, invalidityDate: a certificate on hold counts as revoked.
                if extension.critical && !matches!(extension.oid.content, [0x55, 0x1d, 21 | 24]) {
                    return Err(critical(extension.oid.content, issuer));
                }
            }
        }
        entry.finish().map_err(&malformed)?;
        revoked.push(serial.inner);
    }
    Ok(())
}

/// Returns whether there is a CRLNumber, and the scope.
fn read_extensions(
    der: &[u8],
    mut list: Reader<'_>,
    issuer: &dyn Fn() -> String,
) -> Result<(bool, Scope), CrlError> {
    let malformed = CrlError::malformed("crlExtensions");
    let (mut numbered, mut scope) = (false, Scope::All);
    let mut seen = Vec::new();
    while !list.is_empty() {
        let extension = Extension::read(&mut list).map_err(&malformed)?;
        seen.push(extension.oid.inner);
        if seen.len() > fields::EXTENSIONS_MAX {
            return Err(malformed(DerError::Trailing));
        }
        match extension.oid.content {
            [0x55, 0x1d, 20] => {
                if extension.critical {
                    return Err(CrlError::Number { issuer: issuer(), problem: "has a critical CRLNumber" });
                }
                let number = fields::single_value(Reader::new(extension.value.content), der::INTEGER);
                der::integer(number.map_err(CrlError::malformed("CRLNumber"))?.content)
                    .map_err(CrlError::malformed("CRLNumber"))?;
                numbered = true;
            }
            [0x55, 0x1d, 28] => scope = read_scope(extension.value.content, issuer)?,
            [0x55, 0x1d, 35] => {} // authorityKeyIdentifier: the signature decides
            other if extension.critical => return Err(critical(other, issuer)),
            _ => {}
        }
    }
    match fields::reject_repeated(der, &seen) {
        Err(CertError::RepeatedExtension { oid }) => Err(CrlError::RepeatedExtension { oid }),
        _ => Ok((numbered, scope)),
    }
}

fn critical(oid: &[u8], issuer: &dyn Fn() -> String) -> CrlError {
    let mut text = String::new();
    name::write_oid(&mut text, oid);
    CrlError::CriticalExtension { issuer: issuer(), oid: text }
}

/// The revocation status of one certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RevocationStatus {
    /// A current CRL of its issuer covers it and does not list it. Valid until that CRL is stale:
    /// seconds since 1970.
    Good { until: i64 },
    /// A CRL of its issuer lists it. A stale CRL still revokes.
    Revoked,
    /// Its issuer has CRLs, but none is current.
    Stale,
    /// No CRL of its issuer covers it.
    Unknown,
}

/// One certificate of a path and the issuer that signed it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RevocationQuery<'a> {
    /// Content of the INTEGER.
    pub(crate) serial: &'a [u8],
    pub(crate) is_ca: bool,
    /// The issuer's name and key, from the path.
    pub(crate) issuer: &'a [u8],
    pub(crate) signer: PublicKey<'a>,
    /// The issuer has no keyUsage, or one with cRLSign.
    pub(crate) issuer_may_sign_crls: bool,
}

/// The CRLs of one policy.
#[derive(Debug, Default)]
pub(crate) struct CrlSet(pub(crate) Vec<Crl>);

impl CrlSet {
    /// Queries all CRLs of the certificate's issuer. The newest does not override the others: a
    /// certificate is revoked when any of them lists it.
    pub(crate) fn status(&self, question: &RevocationQuery<'_>, now: i64) -> RevocationStatus {
        let mut status = RevocationStatus::Unknown;
        for crl in &self.0 {
            if !crl.covers(question.is_ca)
                || !question.issuer_may_sign_crls
                || !name::names_match(crl.issuer_der(), question.issuer)
                || !crl.is_signature_valid(question.signer)
            {
                continue;
            }
            if crl.contains_serial(question.serial) {
                return RevocationStatus::Revoked;
            }
            status = match status {
                RevocationStatus::Good { until } if crl.is_current(now) => {
                    RevocationStatus::Good { until: until.max(crl.next_update) }
                }
                _ if crl.is_current(now) => RevocationStatus::Good { until: crl.next_update },
                RevocationStatus::Unknown => RevocationStatus::Stale,
                other => other,
            };
        }
        status
    }
}

#[cfg(test)]
mod tests;
