//! The verification of client certificates: `pki` verifies, for rustls and BoringSSL alike.
//!
//! [`verify_chain`] is the only caller of `pki`'s verifier for a chain that a client presents: in
//! the handshake, right after it for the connection's state, and when a policy changes (a verified
//! client is tried with `pki::reverify` first). A worker's cache makes the second verification of a
//! chain cheap.

use std::sync::Arc;

use model::admission::ClientVerification;
use mtls::{ClientVerifier, VerifyClient};
use pki::{ClientAuth, VerifiedCache, VerifiedClient, VerifyError, VerifyReason};
use rustls::CertificateError;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, UnixTime};

use super::Subsystem;
use super::handshake_state::{HandshakeState, RejectedCertificate, ValidityPeriod};

/// Verified chains that a worker caches.
const CACHE_ENTRIES: usize = 16 * 1024;

thread_local! {
    static CACHE: VerifiedCache = VerifiedCache::new(CACHE_ENTRIES);
}

/// Verifies a client's chain under a policy.
///
/// # Errors
/// [`VerifyError`], which names the certificate and the failure.
pub fn verify_chain(
    policy: &ClientAuth,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    now: UnixTime,
) -> Result<Arc<VerifiedClient>, VerifyError> {
    CACHE.with(|cache| cache.verify(policy, leaf, intermediates, now))
}

/// Verifies the chain that a client presented, if the site has a policy.
pub fn evaluate_client(
    policy: Option<&ClientAuth>,
    chain: Option<&[CertificateDer<'_>]>,
    now: UnixTime,
) -> ClientVerification {
    let Some(policy) = policy else { return ClientVerification::NotRequested };
    let Some((leaf, intermediates)) = chain.and_then(<[_]>::split_first) else {
        return ClientVerification::NoCertificate;
    };
    match verify_chain(policy, leaf, intermediates, now) {
        Ok(verified) => ClientVerification::Verified(verified),
        Err(error) => ClientVerification::Rejected(error.reason()),
    }
}

/// The hits and misses of the worker's cache.
pub fn verify_cache_stats() -> (u64, u64) {
    CACHE.with(|cache| (cache.hits(), cache.misses()))
}

/// The error whose alert is nearest to the verdict (RFC 8446 section 6.2). The log has the verdict.
fn alert_for(reason: VerifyReason) -> CertificateError {
    match reason {
        VerifyReason::Malformed | VerifyReason::UnsupportedCertVersion => CertificateError::BadEncoding,
        VerifyReason::Expired => CertificateError::Expired,
        VerifyReason::NotYetValid => CertificateError::NotValidYet,
        VerifyReason::Revoked => CertificateError::Revoked,
        VerifyReason::UnknownRevocationStatus => CertificateError::UnknownRevocationStatus,
        VerifyReason::BadSignature => CertificateError::BadSignature,
        VerifyReason::InvalidPurpose => CertificateError::InvalidPurpose,
        VerifyReason::UnsupportedCriticalExtension => CertificateError::UnhandledCriticalExtension,
        VerifyReason::UnknownIssuer
        | VerifyReason::WeakKey
        | VerifyReason::DepthExceeded
        | VerifyReason::IssuerNotCa
        | VerifyReason::PathLengthExceeded
        | VerifyReason::NameConstraintViolation
        | VerifyReason::BudgetExceeded
        | VerifyReason::NotValidForName => CertificateError::UnknownIssuer,
    }
}

/// Verifies a client's chain in its handshake. [`HandshakeState`] keeps the result.
///
/// # Errors
/// The error whose alert the client gets. Never if the site does not require a client certificate:
/// then each request is authorized.
pub fn verify_in_handshake(
    policy: &ClientAuth,
    subsystem: Subsystem,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    now: UnixTime,
) -> Result<(), CertificateError> {
    match verify_chain(policy, leaf, intermediates, now) {
        Ok(verified) => {
            HandshakeState::client_verified(ValidityPeriod::from_verified(&verified));
            Ok(())
        }
        Err(_) if !subsystem.requires_client_cert(policy) => {
            HandshakeState::client_rejected();
            Ok(())
        }
        Err(error) => {
            let alert = alert_for(error.reason());
            let leaf = leaf.clone().into_owned();
            HandshakeState::certificate_rejected(RejectedCertificate { error, leaf });
            Err(alert)
        }
    }
}

/// The rules of one site about client certificates.
///
/// A site with skip patterns checks each request instead; TCP connections have no requests, so they
/// always require a certificate.
#[derive(Debug)]
pub(crate) struct SiteClientRules {
    policy: Arc<ClientAuth>,
    subsystem: Subsystem,
}

/// The verifier of a site, for rustls.
pub(crate) fn site_verifier(
    policy: &Arc<ClientAuth>,
    subsystem: Subsystem,
    provider: Arc<CryptoProvider>,
) -> ClientVerifier<SiteClientRules> {
    let rules = SiteClientRules { policy: Arc::clone(policy), subsystem };
    ClientVerifier::new(rules, policy, provider)
}

impl VerifyClient for SiteClientRules {
    fn is_mandatory(&self) -> bool {
        self.subsystem.requires_client_cert(&self.policy)
    }

    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), CertificateError> {
        verify_in_handshake(&self.policy, self.subsystem, leaf, intermediates, now)
    }
}

#[cfg(test)]
mod tests {
    use rustls::AlertDescription;

    use super::*;

    #[test]
    fn the_alert_is_that_of_the_verify_reason() {
        for reason in VerifyReason::ALL {
            let error = alert_for(reason);
            let sent = format!("{:?}", AlertDescription::from(error));
            assert_eq!(sent.to_lowercase(), reason.alert().replace('_', ""), "{reason}");
        }
    }
}
