//! Why a peer is refused: a message for the operator, and a closed list of reasons for logs and
//! metrics.
//!
//! `chain` makes these, `outcome` and the Admin API's explanations read them. None of it is told to
//! the peer. Invariant: each [`VerifyError`] has exactly one [`VerifyReason`]; subjects are printed
//! escaped (RFC 2253), so a peer cannot forge a line.

use std::fmt;

use rustls_pki_types::UnixTime;
use thiserror::Error;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{CertificateRef, Purpose};
use crate::cert::{fields, to_unix};
use crate::name;

/// Why a peer's certificate is refused. Says which certificate breaks which rule.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum VerifyError {
    /// The leaf is not a certificate.
    #[error("the peer's certificate cannot be read: {cause}")]
    Malformed {
        /// What is wrong with it.
        cause: String,
    },
    /// More than [`super::SENT_CERTIFICATES_MAX`] certificates behind the leaf.
    #[error(
        "the peer sent {found} certificates behind its own; at most {} are read",
        super::INTERMEDIATES_MAX
    )]
    TooManyCertificates {
        /// How many it sent.
        found: usize,
    },
    /// No path leads from the leaf to an anchor.
    #[error(
        "nobody we trust issued `{subject}`: its issuer `{issuer}` is neither in the CA bundle nor among the intermediates the peer sent"
    )]
    UnknownIssuer {
        /// The certificate at which the path ends, RFC 2253.
        subject: String,
        /// Its issuer.
        issuer: String,
    },
    /// A signature does not match.
    #[error(
        "the signature of `{subject}` was not made with the key of `{issuer}`: another CA has the same name, or the certificate was altered"
    )]
    BadSignature {
        /// The certificate whose signature is bad.
        subject: String,
        /// The certificate whose key should verify it.
        issuer: String,
    },
    /// A key or signature algorithm that we do not accept.
    #[error(
        "`{subject}` has a key or a signature that is not accepted: use RSA of 2048 to 8192 bits, ECDSA on P-256, P-384 or P-521, or Ed25519, with SHA-2"
    )]
    WeakKey {
        /// The certificate.
        subject: String,
    },
    /// The period of validity has ended.
    #[error("`{subject}` expired: it was valid until {}", date(.not_after))]
    Expired {
        /// The certificate.
        subject: String,
        /// Its last second.
        not_after: UnixTime,
    },
    /// The period of validity has not begun.
    #[error("`{subject}` is not yet valid: it will be from {}; check the clocks", date(.not_before))]
    NotYetValid {
        /// The certificate.
        subject: String,
        /// Its first second.
        not_before: UnixTime,
    },
    /// More intermediates than the policy allows.
    #[error(
        "the chain needs more than {limit} intermediate certificates between the client's and a CA of the bundle: raise `depth` or add the intermediate to the bundle"
    )]
    DepthExceeded {
        /// The policy's depth.
        limit: u32,
    },
    /// An issuer that must not issue.
    #[error("`{subject}` must not issue certificates: {problem}")]
    IssuerNotCa {
        /// The issuing certificate.
        subject: String,
        /// Which rule it breaks.
        problem: &'static str,
    },
    /// An X.509 v1 leaf below an intermediate.
    #[error(
        "`{subject}` is an X.509 v1 certificate: those are accepted only when a CA of the bundle signed them directly"
    )]
    UnsupportedCertVersion {
        /// The certificate.
        subject: String,
    },
    /// pathLenConstraint (RFC 5280 4.2.1.9).
    #[error("`{subject}` allows at most {limit} intermediates below it (pathLenConstraint)")]
    PathLengthExceeded {
        /// The issuing certificate.
        subject: String,
        /// Its limit.
        limit: u32,
    },
    /// keyUsage or extKeyUsage does not allow it.
    #[error("`{subject}` is not for {purpose}: its keyUsage or extKeyUsage does not allow it")]
    InvalidPurpose {
        /// The certificate.
        subject: String,
        /// "TLS clients" or "TLS servers".
        purpose: &'static str,
    },
    /// Name constraints (RFC 5280 4.2.1.10).
    #[error("`{authority}` must not issue `{subject}`: {problem} (name constraints)")]
    NameConstraintViolation {
        /// The issuing certificate whose constraints refuse.
        authority: String,
        /// The certificate that has the name.
        subject: String,
        /// Which name, or what is wrong with the constraints.
        problem: String,
    },
    /// A critical extension that we do not process (RFC 5280 4.2).
    #[error("`{subject}` has the critical extension {oid}, which is not supported")]
    UnsupportedCriticalExtension {
        /// The certificate.
        subject: String,
        /// In dotted form.
        oid: String,
    },
    /// A CRL names it.
    #[error("`{subject}` (serial {serial}) is revoked")]
    Revoked {
        /// The certificate.
        subject: String,
        /// Upper-case hexadecimal.
        serial: String,
    },
    /// The policy wants a known revocation status, and there is none.
    #[error("whether `{subject}` is revoked is not known: {problem}")]
    UnknownRevocationStatus {
        /// The certificate.
        subject: String,
        /// No list, or only stale ones.
        problem: &'static str,
    },
    /// The limit on work was reached before a path was found.
    #[error("gave up after {checks} signature checks: the peer sent a maze of certificates")]
    BudgetExceeded {
        /// Signature checks that were made.
        checks: usize,
    },
    /// The server's certificate is for another name.
    #[error("`{subject}` is not a certificate for `{expected}`: its names are {found}")]
    NotValidForName {
        /// The certificate.
        subject: String,
        /// The name we expected.
        expected: String,
        /// The names it has.
        found: String,
    },
}

/// The closed list of reasons: log fields and metric labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum VerifyReason {
    /// The leaf is not a certificate, or too many certificates were sent.
    Malformed,
    /// No path to an anchor.
    UnknownIssuer,
    /// A signature does not match.
    BadSignature,
    /// A key or algorithm that we do not accept.
    WeakKey,
    /// A certificate of the path has expired.
    Expired,
    /// A certificate of the path is not yet valid.
    NotYetValid,
    /// More intermediates than `depth`.
    DepthExceeded,
    /// An issuer that is no CA.
    IssuerNotCa,
    /// An X.509 v1 leaf below an intermediate.
    UnsupportedCertVersion,
    /// pathLenConstraint.
    PathLengthExceeded,
    /// keyUsage or extKeyUsage.
    InvalidPurpose,
    /// Name constraints.
    NameConstraintViolation,
    /// Unknown critical extension.
    UnsupportedCriticalExtension,
    /// Revoked.
    Revoked,
    /// Revocation status unknown or stale.
    UnknownRevocationStatus,
    /// The limit on work was reached.
    BudgetExceeded,
    /// The server's certificate is for another name.
    NotValidForName,
}

impl VerifyReason {
    /// Every reason, for registering metrics.
    pub const ALL: [Self; 17] = [
        Self::Malformed,
        Self::UnknownIssuer,
        Self::BadSignature,
        Self::WeakKey,
        Self::Expired,
        Self::NotYetValid,
        Self::DepthExceeded,
        Self::IssuerNotCa,
        Self::UnsupportedCertVersion,
        Self::PathLengthExceeded,
        Self::InvalidPurpose,
        Self::NameConstraintViolation,
        Self::UnsupportedCriticalExtension,
        Self::Revoked,
        Self::UnknownRevocationStatus,
        Self::BudgetExceeded,
        Self::NotValidForName,
    ];

    /// Its place in [`VerifyReason::ALL`]; counters are kept in that order.
    pub fn index(self) -> usize {
        self as usize
    }

    /// The TLS alert nearest to it, by its name in RFC 8446 section 6: what the client learns,
    /// whichever engine sends it.
    pub fn alert(self) -> &'static str {
        match self {
            Self::Malformed | Self::UnsupportedCertVersion | Self::UnsupportedCriticalExtension => {
                "bad_certificate"
            }
            Self::Expired | Self::NotYetValid => "certificate_expired",
            Self::Revoked => "certificate_revoked",
            Self::BadSignature => "decrypt_error",
            Self::InvalidPurpose => "unsupported_certificate",
            Self::UnknownRevocationStatus
            | Self::UnknownIssuer
            | Self::WeakKey
            | Self::DepthExceeded
            | Self::IssuerNotCa
            | Self::PathLengthExceeded
            | Self::NameConstraintViolation
            | Self::BudgetExceeded
            | Self::NotValidForName => "unknown_ca",
        }
    }

    /// The word in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::UnknownIssuer => "unknown_issuer",
            Self::BadSignature => "bad_signature",
            Self::WeakKey => "weak_key",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::DepthExceeded => "depth",
            Self::IssuerNotCa => "not_a_ca",
            Self::UnsupportedCertVersion => "old_version",
            Self::PathLengthExceeded => "path_length",
            Self::InvalidPurpose => "wrong_usage",
            Self::NameConstraintViolation => "name_constraint",
            Self::UnsupportedCriticalExtension => "critical_extension",
            Self::Revoked => "revoked",
            Self::UnknownRevocationStatus => "status_unknown",
            Self::BudgetExceeded => "too_much_work",
            Self::NotValidForName => "wrong_name",
        }
    }
}

impl fmt::Display for VerifyReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl VerifyError {
    /// The subject of the certificate that breaks the rule, RFC 2253; `None` where it is about the
    /// whole chain.
    pub fn subject(&self) -> Option<&str> {
        match self {
            Self::Malformed { .. }
            | Self::TooManyCertificates { .. }
            | Self::DepthExceeded { .. }
            | Self::BudgetExceeded { .. } => None,
            Self::UnknownIssuer { subject, .. }
            | Self::BadSignature { subject, .. }
            | Self::WeakKey { subject }
            | Self::Expired { subject, .. }
            | Self::NotYetValid { subject, .. }
            | Self::IssuerNotCa { subject, .. }
            | Self::UnsupportedCertVersion { subject }
            | Self::PathLengthExceeded { subject, .. }
            | Self::InvalidPurpose { subject, .. }
            | Self::NameConstraintViolation { subject, .. }
            | Self::UnsupportedCriticalExtension { subject, .. }
            | Self::Revoked { subject, .. }
            | Self::UnknownRevocationStatus { subject, .. }
            | Self::NotValidForName { subject, .. } => Some(subject),
        }
    }

    /// The reason, without the particulars.
    pub fn reason(&self) -> VerifyReason {
        match self {
            Self::Malformed { .. } | Self::TooManyCertificates { .. } => VerifyReason::Malformed,
            Self::UnknownIssuer { .. } => VerifyReason::UnknownIssuer,
            Self::BadSignature { .. } => VerifyReason::BadSignature,
            Self::WeakKey { .. } => VerifyReason::WeakKey,
            Self::Expired { .. } => VerifyReason::Expired,
            Self::NotYetValid { .. } => VerifyReason::NotYetValid,
            Self::DepthExceeded { .. } => VerifyReason::DepthExceeded,
            Self::IssuerNotCa { .. } => VerifyReason::IssuerNotCa,
            Self::UnsupportedCertVersion { .. } => VerifyReason::UnsupportedCertVersion,
            Self::PathLengthExceeded { .. } => VerifyReason::PathLengthExceeded,
            Self::InvalidPurpose { .. } => VerifyReason::InvalidPurpose,
            Self::NameConstraintViolation { .. } => VerifyReason::NameConstraintViolation,
            Self::UnsupportedCriticalExtension { .. } => VerifyReason::UnsupportedCriticalExtension,
            Self::Revoked { .. } => VerifyReason::Revoked,
            Self::UnknownRevocationStatus { .. } => VerifyReason::UnknownRevocationStatus,
            Self::BudgetExceeded { .. } => VerifyReason::BudgetExceeded,
            Self::NotValidForName { .. } => VerifyReason::NotValidForName,
        }
    }
}

/// RFC 3339, in UTC.
fn date(time: &UnixTime) -> String {
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    let date = OffsetDateTime::from_unix_timestamp(seconds).ok().and_then(|date| date.format(&Rfc3339).ok());
    date.unwrap_or_else(|| format!("{seconds} seconds after 1970"))
}

/// A broken rule, noted while the search goes on: no text is made until it is known to be the
/// answer.
#[derive(Clone, Copy)]
pub(super) struct Failure<'a> {
    /// The certificate that breaks the rule.
    pub(super) certificate: CertificateRef<'a>,
    pub(super) cause: FailureCause<'a>,
}

/// In rising order of what they tell: the last is what the operator hears about when several paths
/// fail.
#[derive(Clone, Copy)]
pub(super) enum FailureCause<'a> {
    BadSignature {
        issuer: CertificateRef<'a>,
    },
    DepthExceeded {
        limit: u32,
    },
    WeakKey,
    IssuerNotCa {
        problem: &'static str,
    },
    UnsupportedCertVersion,
    UnsupportedCriticalExtension,
    InvalidPurpose {
        purpose: Purpose,
    },
    PathLengthExceeded {
        limit: u32,
    },
    NotYetValid,
    Expired,
    NameConstraintViolation {
        authority: CertificateRef<'a>,
        problem: super::name_constraints::NameConstraintError<'a>,
    },
    UnknownRevocationStatus {
        problem: &'static str,
    },
    Revoked,
}

impl FailureCause<'_> {
    fn rank(&self) -> u8 {
        match self {
            Self::BadSignature { .. } => 0,
            Self::DepthExceeded { .. } => 1,
            Self::WeakKey => 2,
            Self::IssuerNotCa { .. } => 3,
            Self::UnsupportedCertVersion => 4,
            Self::UnsupportedCriticalExtension => 5,
            Self::InvalidPurpose { .. } => 6,
            Self::PathLengthExceeded { .. } => 7,
            Self::NotYetValid => 8,
            Self::Expired => 9,
            Self::NameConstraintViolation { .. } => 10,
            Self::UnknownRevocationStatus { .. } => 11,
            Self::Revoked => 12,
        }
    }
}

impl Failure<'_> {
    /// Whether this tells more than `other`. The first of equals stays.
    pub(super) fn is_more_specific_than(&self, other: &Self) -> bool {
        self.cause.rank() > other.cause.rank()
    }

    pub(super) fn into_error(self) -> VerifyError {
        let view = self.certificate;
        let subject = subject(view);
        match self.cause {
            FailureCause::BadSignature { issuer } => {
                VerifyError::BadSignature { subject, issuer: self::subject(issuer) }
            }
            FailureCause::DepthExceeded { limit } => VerifyError::DepthExceeded { limit },
            FailureCause::WeakKey => VerifyError::WeakKey { subject },
            FailureCause::IssuerNotCa { problem } => VerifyError::IssuerNotCa { subject, problem },
            FailureCause::UnsupportedCertVersion => VerifyError::UnsupportedCertVersion { subject },
            FailureCause::UnsupportedCriticalExtension => {
                let mut oid = String::new();
                let found = view.fields.unknown_critical.map(|span| span.slice(view.der)).unwrap_or_default();
                name::write_oid(&mut oid, found);
                VerifyError::UnsupportedCriticalExtension { subject, oid }
            }
            FailureCause::InvalidPurpose { purpose } => {
                VerifyError::InvalidPurpose { subject, purpose: purpose_name(purpose) }
            }
            FailureCause::PathLengthExceeded { limit } => VerifyError::PathLengthExceeded { subject, limit },
            FailureCause::NotYetValid => {
                VerifyError::NotYetValid { subject, not_before: to_unix(view.fields.not_before) }
            }
            FailureCause::Expired => {
                VerifyError::Expired { subject, not_after: to_unix(view.fields.not_after) }
            }
            FailureCause::NameConstraintViolation { authority, problem } => {
                VerifyError::NameConstraintViolation {
                    authority: self::subject(authority),
                    subject,
                    problem: problem.to_string(),
                }
            }
            FailureCause::UnknownRevocationStatus { problem } => {
                VerifyError::UnknownRevocationStatus { subject, problem }
            }
            FailureCause::Revoked => revoked(view),
        }
    }
}

pub(super) fn revoked(view: CertificateRef<'_>) -> VerifyError {
    let serial = fields::serial_hex(view.fields.serial.slice(view.der));
    VerifyError::Revoked { subject: subject(view), serial }
}

pub(super) fn purpose_name(purpose: Purpose) -> &'static str {
    match purpose {
        Purpose::Client => "TLS clients",
        Purpose::Server => "TLS servers",
    }
}

pub(super) fn subject(view: CertificateRef<'_>) -> String {
    name::to_rfc2253(view.subject())
}
