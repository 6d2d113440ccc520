//! The client check in the handshake: rustls asks, `pki` answers.
//!
//! One verdict for every engine, listener and moment: [`judge`] is the only caller of `pki`'s
//! verifier on this side, in the handshake and for each later look at the same connection. Its
//! cache makes a second look cheap.

use std::cell::RefCell;
use std::sync::Arc;

use model::admission::ClientVerification;
use pki::{ClientAuth, VerifiedCache, VerifiedClient, VerifyError, VerifyReason};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};

use super::signature;
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

/// One site's client check, for rustls.
#[derive(Debug)]
pub struct SiteVerifier {
    policy: Arc<ClientAuth>,
    /// What the handshake leads to: with the policy it decides whether anybody gets through without
    /// a good certificate.
    purpose: Subsystem,
    provider: Arc<CryptoProvider>,
    hints: Box<[DistinguishedName]>,
}

impl SiteVerifier {
    /// The check of a site with this policy. What has skip rules leaves it to each request; streams
    /// have none to judge.
    pub fn new(policy: Arc<ClientAuth>, purpose: Subsystem, provider: Arc<CryptoProvider>) -> Self {
        let hints =
            policy.root_hint_subjects().iter().map(|der| DistinguishedName::from(der.to_der())).collect();
        Self { policy, purpose, provider, hints }
    }
}

impl ClientCertVerifier for SiteVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.purpose.requires_client_cert(&self.policy)
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.hints
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        sent: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        verify_in_handshake(&self.policy, self.purpose, leaf, sent, now)
            .map(|()| ClientCertVerified::assertion())
            .map_err(Error::InvalidCertificate)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        signature::verify_tls12(&self.provider, cert, message, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        signature::verify_tls13(&self.provider, cert, message, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
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
