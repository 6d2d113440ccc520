//! Why a chain is rejected: a message for the operator, and a closed list of reasons for logs and
//! metrics.
//!
//! `chain` makes these errors; the Admin API's explanations show them. The peer learns only the TLS
//! alert. Invariant: each [`VerifyError`] has exactly one [`VerifyReason`]; subjects are escaped
//! (RFC 2253), so a peer cannot forge a log line.

use std::fmt;

use rustls_pki_types::UnixTime;
use thiserror::Error;

use super::types::{CertificateRef, INTERMEDIATES_MAX, Purpose};
use crate::cert::fields;
use crate::identity::Identity;
use crate::name;
use crate::unix_time::{self, format_utc};

/// Most names of a server in an error message.
const NAMES_MAX: usize = 8;

/// Why a peer's chain is rejected: the failing certificate and the rule.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum VerifyError {
    /// The leaf is malformed.
    #[error("the peer's certificate cannot be read: {cause}")]
    Malformed {
        /// The parse error.
        cause: String,
    },
    /// More than `INTERMEDIATES_MAX` certificates behind the leaf.
    #[error("the peer sent {found} certificates behind its own; at most {} are read", INTERMEDIATES_MAX)]
    TooManyCertificates {
        /// The number of certificates.
        found: usize,
    },
    /// No path leads from the leaf to an anchor.
    #[error(
        "no trusted CA issued `{subject}`: its issuer `{issuer}` is neither in the CA bundle nor among the intermediates the peer sent"
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
    /// The key is too weak, or its signature algorithm is not supported.
    #[error(
        "`{subject}` has a key or a signature that is not accepted: use RSA of 2048 to 8192 bits, ECDSA on P-256, P-384 or P-521, or Ed25519, with SHA-2"
    )]
    WeakKey {
        /// The certificate.
        subject: String,
    },
    /// The period of validity has ended.
    #[error("`{subject}` expired: it was valid until {}", format_utc(*.not_after))]
    Expired {
        /// The certificate.
        subject: String,
        /// Its last second.
        not_after: UnixTime,
    },
    /// The period of validity has not begun.
    #[error("`{subject}` is not yet valid: it will be from {}; check the clocks", format_utc(*.not_before))]
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
    /// An issuer is not a CA, or must not sign certificates.
    #[error("`{subject}` must not issue certificates: {problem}")]
    IssuerNotCa {
        /// The issuing certificate.
        subject: String,
        /// The violated rule.
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
        /// The issuing certificate that has the constraints.
        authority: String,
        /// The certificate that violates them.
        subject: String,
        /// The violating name, or why the constraints cannot be applied.
        problem: String,
    },
    /// A critical extension that is not supported (RFC 5280 4.2).
    #[error("`{subject}` has the critical extension {oid}, which is not supported")]
    UnsupportedCriticalExtension {
        /// The certificate.
        subject: String,
        /// In dotted form.
        oid: String,
    },
    /// A CRL lists the certificate.
    #[error("`{subject}` (serial {serial}) is revoked")]
    Revoked {
        /// The certificate.
        subject: String,
        /// Upper-case hexadecimal.
        serial: String,
    },
    /// The policy requires a known revocation status, and it is unknown.
    #[error("whether `{subject}` is revoked is not known: {problem}")]
    UnknownRevocationStatus {
        /// The certificate.
        subject: String,
        /// No CRL, or only stale ones.
        problem: &'static str,
    },
    /// The budget was exhausted before a path was found.
    #[error("gave up after {checks} signature checks: the peer sent a maze of certificates")]
    BudgetExceeded {
        /// The number of signature checks.
        checks: usize,
    },
    /// The server's certificate does not carry the expected name.
    #[error("`{subject}` is not a certificate for `{expected}`: its names are {found}")]
    NotValidForName {
        /// The certificate.
        subject: String,
        /// The name we expected.
        expected: String,
        /// The names of the certificate.
        found: String,
    },
}

/// The closed list of reasons: log fields and metric labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum VerifyReason {
    /// The leaf is malformed, or the peer sent too many certificates.
    Malformed,
    /// No path to an anchor.
    UnknownIssuer,
    /// A signature does not match.
    BadSignature,
    /// A weak key or an unsupported algorithm.
    WeakKey,
    /// A certificate of the path has expired.
    Expired,
    /// A certificate of the path is not yet valid.
    NotYetValid,
    /// More intermediates than `depth`.
    DepthExceeded,
    /// An issuer that is not a CA.
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
    /// The budget for one verification was exhausted.
    BudgetExceeded,
    /// The server's certificate does not carry the expected name.
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

    /// The TLS alert for this reason, by its name in RFC 8446 section 6. Every TLS engine sends
    /// this one.
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

    /// The value in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::UnknownIssuer => "unknown_issuer",
            Self::BadSignature => "bad_signature",
            Self::WeakKey => "weak_key",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::DepthExceeded => "depth_exceeded",
            Self::IssuerNotCa => "issuer_not_ca",
            Self::UnsupportedCertVersion => "unsupported_cert_version",
            Self::PathLengthExceeded => "path_length_exceeded",
            Self::InvalidPurpose => "invalid_purpose",
            Self::NameConstraintViolation => "name_constraint_violation",
            Self::UnsupportedCriticalExtension => "unsupported_critical_extension",
            Self::Revoked => "revoked",
            Self::UnknownRevocationStatus => "unknown_revocation_status",
            Self::BudgetExceeded => "budget_exceeded",
            Self::NotValidForName => "not_valid_for_name",
        }
    }
}

impl fmt::Display for VerifyReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl VerifyError {
    /// The error of a caller of [`verify_server_chain`](super::verify_server_chain) that does not
    /// accept the server; `expected` says whom it would.
    pub fn not_accepted(server: &Identity, expected: &str) -> Self {
        let names = server.san_uris().iter().chain(server.san_dns()).take(NAMES_MAX);
        let found: Vec<_> = names.map(|name| format!("`{name}`")).collect();
        let found = if found.is_empty() { "none".to_owned() } else { found.join(", ") };
        Self::NotValidForName { subject: server.subject().to_owned(), expected: expected.to_owned(), found }
    }

    /// The subject of the failing certificate, RFC 2253; `None` where the error concerns the whole
    /// chain.
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

    /// The reason, without details.
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

/// A failed check, recorded during the search. Its text is made only when it becomes the result.
#[derive(Clone, Copy)]
pub(super) struct Failure<'a> {
    /// The failing certificate.
    pub(super) certificate: CertificateRef<'a>,
    pub(super) cause: FailureCause<'a>,
}

/// In rising order of specificity: the highest failure is reported when several paths fail.
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
    /// Whether this failure is more specific than `other`. Of equal ones the first stays.
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
            FailureCause::NotYetValid => VerifyError::NotYetValid {
                subject,
                not_before: unix_time::from_seconds(view.fields.not_before),
            },
            FailureCause::Expired => {
                VerifyError::Expired { subject, not_after: unix_time::from_seconds(view.fields.not_after) }
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
