//! What is judged of a finished path as a whole: its period and, certificate by certificate, what
//! the revocation lists say.
//!
//! For `search`, which finishes paths, and for `again`, which judges one that was good before. A
//! path runs from the leaf to its anchor.

use super::CertificateRef;
use super::error::{Failure, FailureCause};
use crate::revocation::{CrlSet, RevocationQuery, RevocationStatus};

/// Asks about every certificate of a finished path, which ends in its anchor, except the anchor.
/// Until when the answers hold.
pub(super) fn check_revocation<'v>(
    crls: &CrlSet,
    prefer: bool,
    path: impl Iterator<Item = CertificateRef<'v>> + Clone,
    now: i64,
) -> Result<i64, Failure<'v>> {
    let mut until = i64::MAX;
    for (certificate, issuer) in path.clone().zip(path.skip(1)) {
        let problem = match crls.status(&revocation_query(certificate, issuer), now) {
            RevocationStatus::Revoked => return Err(Failure { certificate, cause: FailureCause::Revoked }),
            _ if prefer => continue,
            RevocationStatus::Good { until: list } => {
                until = until.min(list);
                continue;
            }
            RevocationStatus::Stale => {
                "the CRL of its issuer is stale (past its nextUpdate) or not yet current"
            }
            RevocationStatus::Unknown => "there is no CRL that its issuer signed",
        };
        return Err(Failure { certificate, cause: FailureCause::UnknownRevocationStatus { problem } });
    }
    Ok(until)
}

/// The period in which every certificate of a finished path is valid.
pub(super) fn validity_period<'v>(path: impl Iterator<Item = CertificateRef<'v>>) -> (i64, i64) {
    path.fold((i64::MIN, i64::MAX), |(from, to), view| {
        (from.max(view.fields.not_before), to.min(view.fields.not_after))
    })
}

/// The question to the revocation lists about one certificate of a path.
pub(super) fn revocation_query<'q>(
    certificate: CertificateRef<'q>,
    issuer: CertificateRef<'q>,
) -> RevocationQuery<'q> {
    RevocationQuery {
        serial: certificate.fields.serial.slice(certificate.der),
        is_ca: certificate.fields.basic_constraints.is_some_and(|constraints| constraints.ca),
        issuer: certificate.issuer(),
        signer: issuer.key(),
        issuer_may_sign_crls: issuer.fields.key_usage.is_none_or(|usage| usage.crl_sign()),
    }
}
