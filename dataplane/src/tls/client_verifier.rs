//! The client check in the handshake: rustls asks, `pki` answers.
//!
//! One verdict for every engine, listener and moment: [`judge`] is the only caller of `pki`'s
//! verifier on this side, in the handshake and for each later look at the same connection. Its
//! cache makes a second look cheap.

use std::cell::RefCell;
use std::sync::Arc;

use model::admission::ClientVerification;
use mtls::{ClientVerifier, VerifyClient};
use pki::{ClientAuth, VerifiedCache, VerifiedClient, VerifyError, VerifyReason};
use rustls::CertificateError;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, UnixTime};

use super::site_config::Subsystem;
use super::ticket::{HandshakeState, ValidityPeriod};

/// Verified chains a worker remembers.
const CACHE_ENTRIES: usize = 16 * 1024;

thread_local! {
    static CACHE: VerifiedCache = VerifiedCache::new(CACHE_ENTRIES);
    /// The last refusal on this core. Read right after the handshake step that ended with it.
    static REJECTED: RefCell<Option<RejectedCertificate>> = const { RefCell::new(None) };
}

/// A refused client certificate, for the operator's log.
#[derive(Debug)]
pub struct RejectedCertificate {
    /// Which rule, and which certificate broke it.
    pub error: VerifyError,
    /// What was shown.
    pub leaf: CertificateDer<'static>,
}

/// Judges a client's chain under a policy.
///
/// # Errors
/// [`VerifyError`], which says which certificate breaks which rule.
pub fn verify_chain(
    policy: &ClientAuth,
    leaf: &CertificateDer<'_>,
    sent: &[CertificateDer<'_>],
    now: UnixTime,
) -> Result<Arc<VerifiedClient>, VerifyError> {
    CACHE.with(|cache| cache.verify(policy, leaf, sent, now))
}

/// Judges what a client showed, as the site would see it now.
pub fn evaluate_client(
    policy: Option<&ClientAuth>,
    chain: Option<&[CertificateDer<'_>]>,
    now: UnixTime,
) -> ClientVerification {
    let Some(policy) = policy else { return ClientVerification::NotRequested };
    let Some((leaf, sent)) = chain.and_then(<[_]>::split_first) else {
        return ClientVerification::NoCertificate;
    };
    match verify_chain(policy, leaf, sent, now) {
        Ok(verified) => ClientVerification::Verified(verified),
        Err(error) => ClientVerification::Rejected(error.reason()),
    }
}

/// Hits and misses of this core's cache.
pub fn verify_cache_stats() -> (u64, u64) {
    CACHE.with(|cache| (cache.hits(), cache.misses()))
}

/// The refusal that the handshake step just ended with, if it was one.
pub fn take_rejected_certificate() -> Option<RejectedCertificate> {
    REJECTED.take()
}

/// The error that stands for the alert nearest to the verdict (RFC 8446 section 6.2). The
/// operator's log has the verdict itself.
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

/// Judges a client's chain in the handshake, for either engine; a refusal is kept for
/// [`take_refusal`].
///
/// # Errors
/// The error whose alert the client is to get. Never where the site does not insist: there each
/// request is judged on its own.
pub fn verify_in_handshake(
    policy: &ClientAuth,
    purpose: Subsystem,
    leaf: &CertificateDer<'_>,
    sent: &[CertificateDer<'_>],
    now: UnixTime,
) -> Result<(), CertificateError> {
    match verify_chain(policy, leaf, sent, now) {
        Ok(verified) => {
            HandshakeState::client_verified(ValidityPeriod::from_verified(&verified));
            Ok(())
        }
        // With skip rules each request is judged on its own.
        Err(_) if !purpose.requires_client_cert(policy) => {
            HandshakeState::client_rejected();
            Ok(())
        }
        Err(error) => {
            let alert = alert_for(error.reason());
            REJECTED.set(Some(RejectedCertificate { error, leaf: leaf.clone().into_owned() }));
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
    purpose: Subsystem,
}

/// The verifier of a site, for rustls.
pub(crate) fn site_verifier(
    policy: &Arc<ClientAuth>,
    purpose: Subsystem,
    provider: Arc<CryptoProvider>,
) -> ClientVerifier<SiteClientRules> {
    let rules = SiteClientRules { policy: Arc::clone(policy), purpose };
    ClientVerifier::new(rules, policy, provider)
}

impl VerifyClient for SiteClientRules {
    fn is_mandatory(&self) -> bool {
        self.purpose.requires_client_cert(&self.policy)
    }

    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), CertificateError> {
        verify_in_handshake(&self.policy, self.purpose, leaf, intermediates, now)
    }
}

#[cfg(test)]
mod tests {
    use rustls::AlertDescription;

    use super::*;

    #[test]
    fn rustls_sends_the_alert_that_explanations_name() {
        for reason in VerifyReason::ALL {
            let error = alert_for(reason);
            let sent = format!("{:?}", AlertDescription::from(error));
            assert_eq!(sent.to_lowercase(), reason.alert().replace('_', ""), "{reason}");
        }
    }
}
