//! Findings about the dates of certificates.

use pki::Certificate;
use rustls_pki_types::UnixTime;

use super::{Findings, Severity};
use crate::resource::KeyPair;

const DAY: u64 = 24 * 3600;
/// Certificates are reported this many seconds before they expire.
const CERTIFICATE_SOON: u64 = 14 * DAY;

pub(super) fn check_key_pair(field: &str, pair: &KeyPair, now: UnixTime, notes: &mut Findings) {
    for certificate in &pair.chain {
        check_dates(field, "certificate", certificate, now, "put the renewed certificate there", notes);
    }
}

pub(super) fn check_dates(
    field: &str,
    role: &str,
    certificate: &Certificate,
    now: UnixTime,
    hint: &str,
    notes: &mut Findings,
) {
    let (now, end) = (now.as_secs(), certificate.not_after().as_secs());
    let subject = certificate.subject();
    if now < certificate.not_before().as_secs() {
        let what = format!("{role} \"{subject}\" is not valid yet");
        notes.add(Severity::Error, field, what, "check the clocks, or wait");
    } else if now > end {
        notes.add(Severity::Error, field, format!("{role} \"{subject}\" is expired"), hint);
    } else if end - now < CERTIFICATE_SOON {
        let what = format!("{role} \"{subject}\" expires in {} days", (end - now) / DAY);
        notes.add(Severity::Warning, field, what, hint);
    }
}
