//! Diagnostics of a rejected chain: the failing certificate and the depth the chain needs.
//!
//! For explanations, not for the hot path. A [`VerifyError`] names a certificate by its subject;
//! here the certificate itself is found, so that an operator gets its serial number and
//! fingerprint. `required_depth` runs the verifier again.

use rustls_pki_types::{CertificateDer, UnixTime};

use super::error::VerifyError;
use super::verifier::verify_at_depth;
use crate::cert::Certificate;
use crate::policy::ClientAuth;

/// Position of a certificate in a client's chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChainPosition {
    /// The client's certificate.
    Leaf,
    /// An intermediate of the client; counts from 1.
    Intermediate(usize),
    /// A trust anchor of the policy; counts from 1.
    Anchor(usize),
}

/// The certificate that a [`VerifyError`] is about. `None` where the error concerns the whole chain
/// (its depth, its size); no certificate where the leaf is malformed.
pub fn failing_certificate(
    error: &VerifyError,
    policy: &ClientAuth,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
) -> Option<(ChainPosition, Option<Certificate>)> {
    let Some(subject) = error.subject() else {
        return matches!(error, VerifyError::Malformed { .. }).then_some((ChainPosition::Leaf, None));
    };
    let read = |der: &CertificateDer<'_>| Certificate::from_der(der).ok();
    let leaf = std::iter::once((ChainPosition::Leaf, read(leaf)));
    let intermediates =
        (1..).zip(intermediates).map(|(place, der)| (ChainPosition::Intermediate(place), read(der)));
    let anchors = (1..).zip(policy.anchors().certificates());
    let anchors = anchors.map(|(place, anchor)| (ChainPosition::Anchor(place), Some(anchor.clone())));
    leaf.chain(intermediates).chain(anchors).find(|(_, certificate)| {
        certificate
            .as_ref()
            .is_some_and(|certificate| certificate.subject() == subject && matches_error(error, certificate))
    })
}

/// Several certificates may have one subject: the details of the error tell them apart.
fn matches_error(error: &VerifyError, certificate: &Certificate) -> bool {
    match error {
        VerifyError::Expired { not_after, .. } => certificate.not_after() == *not_after,
        VerifyError::NotYetValid { not_before, .. } => certificate.not_before() == *not_before,
        VerifyError::Revoked { serial, .. } => certificate.serial_hex() == *serial,
        VerifyError::UnknownIssuer { issuer, .. } => certificate.issuer() == issuer,
        VerifyError::UnsupportedCertVersion { .. } => certificate.is_v1(),
        _ => true,
    }
}

/// For a chain rejected as too deep: the smallest depth at which the depth no longer fails, and the
/// result there.
pub fn required_depth(
    policy: &ClientAuth,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    now: UnixTime,
) -> Option<(u32, Result<(), VerifyError>)> {
    let most = u32::try_from(intermediates.len()).unwrap_or(u32::MAX);
    (policy.depth().saturating_add(1)..=most)
        .map(|depth| (depth, verify_at_depth(policy, depth, leaf, intermediates, now).map(|_| ())))
        .find(|(_, verdict)| !matches!(verdict, Err(VerifyError::DepthExceeded { .. })))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::{Authority, AuthoritySpec, LeafSpec};
    use crate::policy::ClientAuthInput;
    use crate::verify_client;

    fn policy(anchor: &Authority, depth: u32) -> ClientAuth {
        let anchors = vec![anchor.certificate().clone()];
        ClientAuth::new(ClientAuthInput { anchors, depth, ..Default::default() }).unwrap()
    }

    fn day(days: u64) -> UnixTime {
        UnixTime::since_unix_epoch(std::time::Duration::from_secs(
            UnixTime::now().as_secs() - 20 * 86_400 + days * 86_400,
        ))
    }

    #[test]
    fn the_failing_certificate_is_found_by_details() {
        let root = Authority::root(&AuthoritySpec::new("root")).unwrap();
        // Two certificates of one subject; the second one is expired.
        let good = root.intermediate(&AuthoritySpec::new("between")).unwrap();
        let ended = root.intermediate(&AuthoritySpec::new("between").valid(day(0), 5)).unwrap();
        let leaf = ended.issue(&LeafSpec::client("alice")).unwrap();
        let (leaf, intermediates) = (
            leaf.certificate.der().clone(),
            [good.certificate().der().clone(), ended.certificate().der().clone()],
        );
        let policy = policy(&root, 1);
        let error = verify_client(&policy, &leaf, &intermediates, UnixTime::now()).unwrap_err();
        let (place, certificate) = failing_certificate(&error, &policy, &leaf, &intermediates).unwrap();
        assert_eq!(
            (place, certificate.as_ref()),
            (ChainPosition::Intermediate(2), Some(ended.certificate())),
            "{error}"
        );
    }

    #[test]
    fn required_depth_runs_the_verifier() {
        let root = Authority::root(&AuthoritySpec::new("root")).unwrap();
        let (mut above, mut intermediates) =
            (root.intermediate(&AuthoritySpec::new("i1")).unwrap(), Vec::new());
        for name in ["i2", "i3"] {
            intermediates.insert(0, above.certificate().der().clone());
            above = above.intermediate(&AuthoritySpec::new(name)).unwrap();
        }
        intermediates.insert(0, above.certificate().der().clone());
        let leaf = above.issue(&LeafSpec::client("alice")).unwrap().certificate.der().clone();
        let policy = policy(&root, 1);
        let error = verify_client(&policy, &leaf, &intermediates, UnixTime::now()).unwrap_err();
        assert_eq!(error, VerifyError::DepthExceeded { limit: 1 });
        assert_eq!(failing_certificate(&error, &policy, &leaf, &intermediates), None);
        assert_eq!(required_depth(&policy, &leaf, &intermediates, UnixTime::now()), Some((3, Ok(()))));
        assert_eq!(required_depth(&policy, &leaf, &intermediates[..1], UnixTime::now()), None);
    }
}
