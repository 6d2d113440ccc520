//! Verifies a known path again under another policy, without its signatures.
//!
//! When a policy changes, every open connection of its site is verified again, and most of them
//! still pass: a new CRL names a few serial numbers. Signatures, usages and name constraints of a
//! path do not depend on the policy, so only the anchor, the depth, the CRLs and the clock are
//! checked. That takes a microsecond or two, where building a path takes a hundred. Invariant:
//! `Some` means that `verify_client` would succeed too; `None` decides nothing.

use rustls_pki_types::UnixTime;

use super::path;
use super::types::{CertificateRef, VerifiedClient};
use super::verifier::find_pinned;
use crate::cert::Certificate;
use crate::policy::ClientAuth;
use crate::{name, unix_time};

/// Verifies a client again under another policy, along its known path.
///
/// `None` does not reject the client: the known path fails under this policy, or there is none (a
/// pinned leaf), and [`verify_client`](super::verify_client) has to decide.
pub fn reverify(policy: &ClientAuth, before: &VerifiedClient, now: UnixTime) -> Option<VerifiedClient> {
    let path = before.path.as_deref()?;
    let leaf = CertificateRef::of(before.identity.certificate());
    let subject = before.anchor.subject_der();
    let anchor = policy
        .anchors()
        .with_subject(subject, name::folded_hash(subject))
        .find(|anchor| **anchor == before.anchor)?;
    // Pinned leaves have rules of their own.
    if counted_depth(path) > policy.depth() || find_pinned(policy.anchors(), leaf).is_some() {
        return None;
    }
    let now = unix_time::to_seconds(now);
    let certificates =
        std::iter::once(leaf).chain(path.iter().map(CertificateRef::of)).chain([CertificateRef::of(anchor)]);
    let (from, to) = path::validity_period(certificates.clone());
    if !(from..=to).contains(&now) {
        return None;
    }
    let until = match policy.checked_crls() {
        Some(crls) => path::check_revocation(crls, policy.crl_prefer(), certificates, now).ok()?,
        None => i64::MAX,
    };
    Some(VerifiedClient { anchor: anchor.clone(), from, to: to.min(until), ..before.clone() })
}

/// Self-issued intermediates do not count, as in the path builder.
fn counted_depth(path: &[Certificate]) -> u32 {
    let counts = |certificate: &Certificate| !certificate.fields().is_self_issued(certificate.der());
    path.iter().map(|certificate| u32::from(counts(certificate))).sum()
}
