//! Checks of a complete path: its validity period and the revocation status of its certificates.
//!
//! `path_builder` uses them for new paths, `reverification` for a path that was valid before. A
//! path runs from the leaf to its anchor.

use super::error::{Failure, FailureCause};
use super::types::{CertificateRef, Purpose};
use crate::der::{self, Reader};
use crate::revocation::{CrlSet, RevocationQuery, RevocationStatus};

/// Checks that apply to every certificate of a path.
pub(super) fn check_certificate(certificate: CertificateRef<'_>, now: i64) -> Result<(), Failure<'_>> {
    let fields = certificate.fields;
    let cause = if fields.unknown_critical.is_some() {
        FailureCause::UnsupportedCriticalExtension
    } else if now < fields.not_before {
        FailureCause::NotYetValid
    } else if now > fields.not_after {
        FailureCause::Expired
    } else {
        return Ok(());
    };
    Err(Failure { certificate, cause })
}

/// An extKeyUsage, when present, must name the purpose: in the leaf and in every issuer, as in
/// OpenSSL and webpki.
pub(super) fn eku_allows(certificate: CertificateRef<'_>, purpose: Purpose) -> bool {
    /// id-kp, 1.3.6.1.5.5.7.3
    const ID_KP: [u8; 7] = [0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03];
    let Some(list) = certificate.fields.extended_key_usage else { return true };
    let last = match purpose {
        Purpose::Server => 1,
        Purpose::Client => 2,
    };
    let mut purposes = Reader::new(list.slice(certificate.der));
    std::iter::from_fn(|| purposes.expect(der::OID).ok())
        .any(|oid| oid.content.split_last().is_some_and(|(end, start)| *end == last && start == ID_KP))
}

/// Checks the revocation status of every certificate except the anchor, which is the last of
/// `path`. Returns the end of the result's validity.
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

/// The period in which every certificate of the path is valid.
pub(super) fn validity_period<'v>(path: impl Iterator<Item = CertificateRef<'v>>) -> (i64, i64) {
    path.fold((i64::MIN, i64::MAX), |(from, to), view| {
        (from.max(view.fields.not_before), to.min(view.fields.not_after))
    })
}

/// The query for the status of one certificate of a path.
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
