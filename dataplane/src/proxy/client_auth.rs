//! The authentication of a TLS connection's client: what the handshake established, and whether it
//! is still valid.
//!
//! The handshake makes a [`ClientAuthState`]. Each request checks it against the current policy
//! ([`ClientAuthState::update_verdict`]), and the [registry](super::registry) revalidates it when
//! sites change and when a certificate expires.

use std::borrow::Cow;
use std::cell::{Cell, Ref, RefCell};
use std::net::SocketAddr;
use std::sync::Arc;

use model::admission::ClientVerification;
use model::{HostName, Snapshot, Ssl};
use pki::{Certificate, ClientAuth, PolicyDigest, VerifiedClient};
use rustls::pki_types::{CertificateDer, UnixTime};

use crate::observability::log::{self, ClientDenial};
use crate::observability::metrics::Counters;
use crate::reason::Reason;
use crate::tls::Subsystem;
use crate::tls::client_verifier;

/// The client of one TLS connection, as the handshake authenticated it.
pub struct ClientAuthState {
    /// The server name in the ClientHello, which selects the site.
    pub(super) sni: HostName,
    peer: SocketAddr,
    /// Whether requests or a TCP connection follow the handshake.
    subsystem: Subsystem,
    verdict: RefCell<ClientVerdict>,
    /// [`Snapshot::site_generation`] of the last revalidation.
    site_generation: Cell<u64>,
}

/// How a connection closes that is no longer valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CloseMode {
    /// At once, with the requests in flight.
    Immediate(Reason),
    /// After the requests in flight: its site is gone, and had no client policy.
    Graceful,
}

/// The verification of a client under the policy with one digest.
struct ClientVerdict {
    policy_digest: Option<PolicyDigest>,
    /// A policy of the site has requested a client certificate, in the handshake or since.
    certificate_requested: bool,
    verification: ClientVerification,
    /// The chain that the client presented. `None` where `verification` has exactly its
    /// certificates: all connections of one client share those.
    presented_chain: Option<Vec<CertificateDer<'static>>>,
    /// The client was verified, and is rejected now.
    lost_verification: bool,
}

impl ClientVerdict {
    fn new(
        policy: Option<&ClientAuth>,
        verification: ClientVerification,
        chain: Cow<'_, [CertificateDer<'static>]>,
    ) -> Self {
        let is_whole = matches!(
            &verification, ClientVerification::Verified(verified) if is_whole_chain(verified, &chain)
        );
        Self {
            policy_digest: policy.map(|policy| *policy.digest()),
            certificate_requested: policy.is_some(),
            verification,
            presented_chain: (!is_whole).then(|| chain.into_owned()),
            lost_verification: false,
        }
    }

    /// The chain that the client presented, its own certificate first.
    fn presented_chain(&self) -> Cow<'_, [CertificateDer<'static>]> {
        match (&self.presented_chain, &self.verification) {
            (Some(chain), _) => Cow::Borrowed(chain),
            (None, ClientVerification::Verified(verified)) => {
                Cow::Owned(verified_certificates(verified).map(|cert| cert.der().clone()).collect())
            }
            (None, _) => Cow::Borrowed(&[]),
        }
    }
}

/// The certificates of a verified chain, the client's own first.
fn verified_certificates(verified: &VerifiedClient) -> impl Iterator<Item = &Certificate> {
    std::iter::once(verified.identity().certificate()).chain(verified.path())
}

/// Whether a verified chain has all certificates of a presented one.
fn is_whole_chain(verified: &VerifiedClient, presented: &[CertificateDer<'static>]) -> bool {
    verified_certificates(verified).map(Certificate::der).eq(presented)
}

impl ClientAuthState {
    /// Verifies the chain that the client presented in a handshake with site `ssl`, which is that
    /// of `site_generation`.
    pub(super) fn evaluate(
        sni: HostName,
        peer: SocketAddr,
        chain: Cow<'_, [CertificateDer<'static>]>,
        ssl: &Ssl,
        site_generation: u64,
        subsystem: Subsystem,
    ) -> Self {
        let policy = ssl.client.as_deref();
        let verification = client_verifier::evaluate_client(policy, Some(&chain), UnixTime::now());
        let verdict = RefCell::new(ClientVerdict::new(policy, verification, chain));
        Self { sni, peer, subsystem, verdict, site_generation: Cell::new(site_generation) }
    }

    /// Verifies the client again if the site's policy has changed since the last time.
    pub(super) fn update_verdict(&self, ssl: &Ssl) {
        let policy = ssl.client.as_deref();
        if self.verdict.borrow().policy_digest.as_ref() != policy.map(ClientAuth::digest) {
            self.reverify(policy, UnixTime::now());
        }
    }

    /// The client's own certificate.
    pub(super) fn leaf(&self) -> Option<CertificateDer<'static>> {
        self.verdict.borrow().presented_chain().first().cloned()
    }

    /// The result of the last verification.
    pub fn verification(&self) -> Ref<'_, ClientVerification> {
        Ref::map(self.verdict.borrow(), |verdict| &verdict.verification)
    }

    /// Whether a handshake with this site may succeed for this client.
    pub(super) fn satisfies(&self, ssl: &Ssl) -> bool {
        let requires =
            ssl.client.as_deref().is_some_and(|policy| self.subsystem.requires_client_cert(policy));
        !requires || matches!(*self.verification(), ClientVerification::Verified(_))
    }

    /// Checks the client of a TCP connection: where a certificate was requested, it must be
    /// verified. The handshake requires that already; this check does not depend on what a
    /// handshake may skip.
    ///
    /// # Errors
    /// The reason for the denial.
    pub(super) fn check_tcp_client(&self) -> Result<(), Reason> {
        match *self.verification() {
            ClientVerification::Verified(_) | ClientVerification::NotRequested => Ok(()),
            ClientVerification::NoCertificate => Err(Reason::NoCertificate),
            ClientVerification::Rejected(_) => Err(Reason::BadCertificate),
        }
    }

    /// Counts and logs that this connection is closed for `reason`.
    pub(super) fn record_termination(&self, counters: &Counters, reason: Reason) {
        counters.record_error(reason);
        let verify_reason = self.verification().rejection_for(reason);
        if let Some(verify_reason) = verify_reason {
            counters.record_certificate_rejection(verify_reason);
        }
        let leaf = self.leaf();
        let denial =
            ClientDenial { reason, sni: Some(&self.sni), host: None, verify_reason, leaf: leaf.as_ref() };
        log::connection_terminated(self.peer, &denial);
    }

    /// Whether requests follow the handshake.
    pub(super) fn is_http(&self) -> bool {
        self.subsystem == Subsystem::Http
    }

    /// Whether the last revalidation was by these sites.
    pub(super) fn is_current(&self, snapshot: &Snapshot) -> bool {
        self.site_generation.get() == snapshot.site_generation()
    }

    /// Revalidates the connection with these sites. Returns how it closes, if it is no longer
    /// valid.
    pub(super) fn revalidate(&self, snapshot: &Snapshot) -> Option<CloseMode> {
        self.site_generation.set(snapshot.site_generation());
        let Some(ssl) = snapshot.site(&self.sni) else {
            let requested = self.verdict.borrow().certificate_requested;
            return Some(if requested { CloseMode::Immediate(Reason::NoSite) } else { CloseMode::Graceful });
        };
        if ssl.blocked.is_some() {
            return Some(CloseMode::Immediate(Reason::BlockedSite));
        }
        self.update_verdict(ssl);
        self.check_policy(ssl)
    }

    /// Revalidates a connection whose client's certificates are no longer valid at `now`.
    pub(super) fn revalidate_expiry(&self, snapshot: &Snapshot, now: UnixTime) -> Option<CloseMode> {
        let is_expired = matches!(
            &self.verdict.borrow().verification,
            ClientVerification::Verified(verified) if !verified.is_valid_at(now)
        );
        if !is_expired {
            return None;
        }
        let ssl = snapshot.site(&self.sni)?;
        self.reverify(ssl.client.as_deref(), now);
        self.check_policy(ssl)
    }

    /// Closes the connection if the policy requires a certificate, or if the client was verified
    /// and is rejected now: it must connect again. Otherwise each request is checked on its own.
    fn check_policy(&self, ssl: &Ssl) -> Option<CloseMode> {
        let policy = ssl.client.as_deref()?;
        let verdict = self.verdict.borrow();
        match verdict.verification {
            ClientVerification::Verified(_) => None,
            _ if self.subsystem.requires_client_cert(policy) || verdict.lost_verification => {
                Some(CloseMode::Immediate(Reason::PolicyChanged))
            }
            _ => None,
        }
    }

    fn reverify(&self, policy: Option<&ClientAuth>, now: UnixTime) {
        let mut verdict = self.verdict.borrow_mut();
        let reverified = match (policy, &verdict.verification) {
            (Some(policy), ClientVerification::Verified(verified)) => pki::reverify(policy, verified, now),
            _ => None,
        };
        let chain = verdict.presented_chain();
        let verification = match reverified {
            Some(verified) => ClientVerification::Verified(Arc::new(verified)),
            None => client_verifier::evaluate_client(policy, Some(&chain), now),
        };
        let chain = Cow::Owned(chain.into_owned());
        let was_verified =
            verdict.lost_verification || matches!(verdict.verification, ClientVerification::Verified(_));
        let lost_verification = was_verified && matches!(verification, ClientVerification::Rejected(_));
        let certificate_requested = verdict.certificate_requested || policy.is_some();
        *verdict = ClientVerdict {
            lost_verification,
            certificate_requested,
            ..ClientVerdict::new(policy, verification, chain)
        };
    }
}

#[cfg(test)]
mod tests;
