//! The same client under another policy: does the path that was accepted before still do?
//!
//! When a policy moves, every live connection of its site is judged again, and most of them are
//! fine: a new revocation list names a few serial numbers. What a signature, a usage or a name
//! constraint says about a path does not depend on the policy, so only what does is looked at: the
//! anchor, the depth, the lists and the clock. That costs a microsecond or two where the search
//! costs a hundred. Invariant: yes means that `verify_client` would say yes too; otherwise the
//! answer is "ask it".

use rustls_pki_types::UnixTime;

use super::{CertificateRef, VerifiedClient, find_pinned, path, seconds};
use crate::cert::Certificate;
use crate::policy::ClientAuth;

/// Judges a client that was accepted before under a policy that may be another one, along the path
/// known to be good.
///
/// `None` does not refuse the client: it says that this path no longer does, or that there never
/// was one (a pinned leaf), and that [`verify_client`](super::verify_client) has to be asked.
pub fn reverify(policy: &ClientAuth, before: &VerifiedClient, now: UnixTime) -> Option<VerifiedClient> {
    let path = before.path.as_deref()?;
    let leaf = CertificateRef::of(before.identity.certificate());
    let subject = before.anchor.subject_der();
    let anchor = policy
        .anchors()
        .with_subject(subject, crate::name::folded_hash(subject))
        .find(|anchor| **anchor == before.anchor)?;
    // A pinned leaf is judged by rules of its own.
    if counted_depth(path) > policy.depth() || find_pinned(policy.anchors(), leaf).is_some() {
        return None;
    }
    let now = seconds(now);
    let whole =
        std::iter::once(leaf).chain(path.iter().map(CertificateRef::of)).chain([CertificateRef::of(anchor)]);
    let (from, to) = path::validity_period(whole.clone());
    if !(from..=to).contains(&now) {
        return None;
    }
    let until = match policy.checked_crls() {
        Some(lists) => path::check_revocation(lists, policy.crl_prefer(), whole, now).ok()?,
        None => i64::MAX,
    };
    Some(VerifiedClient { anchor: anchor.clone(), from, to: to.min(until), ..before.clone() })
}

/// As the search counts: self-issued intermediates do not.
fn counted_depth(path: &[Certificate]) -> u32 {
    let counts = |certificate: &Certificate| !certificate.fields().is_self_issued(certificate.der());
    path.iter().map(|certificate| u32::from(counts(certificate))).sum()
}
