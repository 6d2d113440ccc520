//! Why a peer is refused: a message for the operator, and a closed list of reasons for logs and metrics.
//!
//! `chain` makes these, `outcome` and the Admin API's explanations read them. None of it is told to the peer.
//! Invariant: each [`VerifyError`] has exactly one [`VerifyReason`]; subjects are printed escaped (RFC 2253), so a peer cannot forge a line.

use std::fmt;

use rustls_pki_types::UnixTime;
use thiserror::Error;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Purpose, View};
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
        super::SENT_CERTIFICATES_MAX
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
    TooDeep {
        /// The policy's depth.
        limit: u32,
    },
    /// An issuer that must not issue.
    #[error("`{subject}` must not issue certificates: {problem}")]
    NotAuthority {
        /// The issuing certificate.
        subject: String,
        /// Which rule it breaks.
        problem: &'static str,
    },
    /// An X.509 v1 leaf below an intermediate.
    #[error(
        "`{subject}` is an X.509 v1 certificate: those are accepted only when a CA of the bundle signed them directly"
    )]
    OldVersion {
        /// The certificate.
        subject: String,
    },
    /// pathLenConstraint (RFC 5280 4.2.1.9).
    #[error("`{subject}` allows at most {limit} intermediates below it (pathLenConstraint)")]
    PathLength {
        /// The issuing certificate.
        subject: String,
        /// Its limit.
        limit: u32,
    },
    /// keyUsage or extKeyUsage does not allow it.
    #[error("`{subject}` is not for {purpose}: its keyUsage or extKeyUsage does not allow it")]
    WrongUsage {
        /// The certificate.
        subject: String,
        /// "TLS clients" or "TLS servers".
        purpose: &'static str,
    },
    /// Name constraints (RFC 5280 4.2.1.10).
    #[error("`{authority}` must not issue `{subject}`: {problem} (name constraints)")]
    NameConstraint {
        /// The issuing certificate whose constraints refuse.
        authority: String,
        /// The certificate that has the name.
        subject: String,
        /// Which name, or what is wrong with the constraints.
        problem: String,
    },
    /// A critical extension that we do not process (RFC 5280 4.2).
    #[error("`{subject}` has the critical extension {oid}, which is not supported")]
    CriticalExtension {
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
    StatusUnknown {
        /// The certificate.
        subject: String,
        /// No list, or only stale ones.
        problem: &'static str,
    },
    /// The limit on work was reached before a path was found.
    #[error("gave up after {checks} signature checks: the peer sent a maze of certificates")]
    TooMuchWork {
        /// Signature checks that were made.
        checks: usize,
    },
    /// The server's certificate is for another name.
    #[error("`{subject}` is not a certificate for `{expected}`: its names are {found}")]
    WrongName {
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
    Depth,
    /// An issuer that is no CA.
    NotAuthority,
    /// An X.509 v1 leaf below an intermediate.
    OldVersion,
    /// pathLenConstraint.
    PathLength,
    /// keyUsage or extKeyUsage.
    WrongUsage,
    /// Name constraints.
    NameConstraint,
    /// Unknown critical extension.
    CriticalExtension,
    /// Revoked.
    Revoked,
    /// Revocation status unknown or stale.
    StatusUnknown,
    /// The limit on work was reached.
    TooMuchWork,
    /// The server's certificate is for another name.
    WrongName,
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
        Self::Depth,
        Self::NotAuthority,
        Self::OldVersion,
        Self::PathLength,
        Self::WrongUsage,
        Self::NameConstraint,
        Self::CriticalExtension,
        Self::Revoked,
        Self::StatusUnknown,
        Self::TooMuchWork,
        Self::WrongName,
    ];

    /// Its place in [`VerifyReason::ALL`]; counters are kept in that order.
    pub fn index(self) -> usize {
        self as usize
    }

    /// The TLS alert nearest to it, by its name in RFC 8446 section 6: what the client learns, whichever engine sends it.
    pub fn alert(self) -> &'static str {
        match self {
            Self::Malformed | Self::OldVersion | Self::CriticalExtension => "bad_certificate",
            Self::Expired | Self::NotYetValid => "certificate_expired",
            Self::Revoked => "certificate_revoked",
            Self::BadSignature => "decrypt_error",
            Self::WrongUsage => "unsupported_certificate",
            Self::StatusUnknown
            | Self::UnknownIssuer
            | Self::WeakKey
            | Self::Depth
            | Self::NotAuthority
            | Self::PathLength
            | Self::NameConstraint
            | Self::TooMuchWork
            | Self::WrongName => "unknown_ca",
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
            Self::Depth => "depth",
            Self::NotAuthority => "not_a_ca",
            Self::OldVersion => "old_version",
            Self::PathLength => "path_length",
            Self::WrongUsage => "wrong_usage",
            Self::NameConstraint => "name_constraint",
            Self::CriticalExtension => "critical_extension",
            Self::Revoked => "revoked",
            Self::StatusUnknown => "status_unknown",
            Self::TooMuchWork => "too_much_work",
            Self::WrongName => "wrong_name",
        }
    }
}

impl fmt::Display for VerifyReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl VerifyError {
    /// The subject of the certificate that breaks the rule, RFC 2253; `None` where it is about the whole chain.
    pub fn subject(&self) -> Option<&str> {
        match self {
            Self::Malformed { .. }
            | Self::TooManyCertificates { .. }
            | Self::TooDeep { .. }
            | Self::TooMuchWork { .. } => None,
            Self::UnknownIssuer { subject, .. }
            | Self::BadSignature { subject, .. }
            | Self::WeakKey { subject }
            | Self::Expired { subject, .. }
            | Self::NotYetValid { subject, .. }
            | Self::NotAuthority { subject, .. }
            | Self::OldVersion { subject }
            | Self::PathLength { subject, .. }
            | Self::WrongUsage { subject, .. }
            | Self::NameConstraint { subject, .. }
            | Self::CriticalExtension { subject, .. }
            | Self::Revoked { subject, .. }
            | Self::StatusUnknown { subject, .. }
            | Self::WrongName { subject, .. } => Some(subject),
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
            Self::TooDeep { .. } => VerifyReason::Depth,
            Self::NotAuthority { .. } => VerifyReason::NotAuthority,
            Self::OldVersion { .. } => VerifyReason::OldVersion,
            Self::PathLength { .. } => VerifyReason::PathLength,
            Self::WrongUsage { .. } => VerifyReason::WrongUsage,
            Self::NameConstraint { .. } => VerifyReason::NameConstraint,
            Self::CriticalExtension { .. } => VerifyReason::CriticalExtension,
            Self::Revoked { .. } => VerifyReason::Revoked,
            Self::StatusUnknown { .. } => VerifyReason::StatusUnknown,
            Self::TooMuchWork { .. } => VerifyReason::TooMuchWork,
            Self::WrongName { .. } => VerifyReason::WrongName,
        }
    }
}

/// RFC 3339, in UTC.
fn date(time: &UnixTime) -> String {
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    let date = OffsetDateTime::from_unix_timestamp(seconds).ok().and_then(|date| date.format(&Rfc3339).ok());
    date.unwrap_or_else(|| format!("{seconds} seconds after 1970"))
}

/// A broken rule, noted while the search goes on: no text is made until it is known to be the answer.
#[derive(Clone, Copy)]
pub(super) struct Failure<'a> {
    /// The certificate that breaks the rule.
    pub(super) certificate: View<'a>,
    pub(super) rule: Rule<'a>,
}

/// In rising order of what they tell: the last is what the operator hears about when several paths fail.
#[derive(Clone, Copy)]
pub(super) enum Rule<'a> {
    BadSignature { issuer: View<'a> },
    TooDeep { limit: u32 },
    WeakKey,
    NotAuthority { problem: &'static str },
    OldVersion,
    CriticalExtension,
    WrongUsage { purpose: Purpose },
    PathLength { limit: u32 },
    NotYetValid,
    Expired,
    NameConstraint { authority: View<'a>, problem: super::constraints::Problem<'a> },
    StatusUnknown { problem: &'static str },
    Revoked,
}

impl Rule<'_> {
    fn rank(&self) -> u8 {
        match self {
            Self::BadSignature { .. } => 0,
            Self::TooDeep { .. } => 1,
            Self::WeakKey => 2,
            Self::NotAuthority { .. } => 3,
            Self::OldVersion => 4,
            Self::CriticalExtension => 5,
            Self::WrongUsage { .. } => 6,
            Self::PathLength { .. } => 7,
            Self::NotYetValid => 8,
            Self::Expired => 9,
            Self::NameConstraint { .. } => 10,
            Self::StatusUnknown { .. } => 11,
            Self::Revoked => 12,
        }
    }
}

impl Failure<'_> {
    /// Whether this tells more than `other`. The first of equals stays.
    pub(super) fn tells_more_than(&self, other: &Self) -> bool {
        self.rule.rank() > other.rule.rank()
    }

    pub(super) fn into_error(self) -> VerifyError {
        let view = self.certificate;
        let subject = subject(view);
        match self.rule {
            Rule::BadSignature { issuer } => {
                VerifyError::BadSignature { subject, issuer: self::subject(issuer) }
            }
            Rule::TooDeep { limit } => VerifyError::TooDeep { limit },
            Rule::WeakKey => VerifyError::WeakKey { subject },
            Rule::NotAuthority { problem } => VerifyError::NotAuthority { subject, problem },
            Rule::OldVersion => VerifyError::OldVersion { subject },
            Rule::CriticalExtension => {
                let mut oid = String::new();
                let found = view.fields.unknown_critical.map(|span| span.of(view.der)).unwrap_or_default();
                name::write_oid(&mut oid, found);
                VerifyError::CriticalExtension { subject, oid }
            }
            Rule::WrongUsage { purpose } => {
                VerifyError::WrongUsage { subject, purpose: purpose_name(purpose) }
            }
            Rule::PathLength { limit } => VerifyError::PathLength { subject, limit },
            Rule::NotYetValid => {
                VerifyError::NotYetValid { subject, not_before: to_unix(view.fields.not_before) }
            }
            Rule::Expired => VerifyError::Expired { subject, not_after: to_unix(view.fields.not_after) },
            Rule::NameConstraint { authority, problem } => VerifyError::NameConstraint {
                authority: self::subject(authority),
                subject,
                problem: problem.to_string(),
            },
            Rule::StatusUnknown { problem } => VerifyError::StatusUnknown { subject, problem },
            Rule::Revoked => revoked(view),
        }
    }
}

pub(super) fn revoked(view: View<'_>) -> VerifyError {
    let serial = fields::serial_hex(view.fields.serial.of(view.der));
    VerifyError::Revoked { subject: subject(view), serial }
}

pub(super) fn purpose_name(purpose: Purpose) -> &'static str {
    match purpose {
        Purpose::Client => "TLS clients",
        Purpose::Server => "TLS servers",
    }
}

pub(super) fn subject(view: View<'_>) -> String {
    name::to_rfc2253(view.subject())
}
