//! The state of one handshake that rustls' callbacks read and write: tickets, client certificate,
//! traffic secrets.
//!
//! rustls calls the ticketer, the client verifier and the key log without a context. The handshake
//! owns its state, and lends it to the thread for each step ([`HandshakeState::in_scope`]), because
//! the handshakes of a worker interleave.
//!
//! Invariants: outside of a step, no ticket is sealed or opened and no secret is kept. A resumed
//! session is never sealed for longer than the ticket it came from, and the session of a rejected
//! client is not sealed.

use std::cell::RefCell;
use std::sync::Arc;

use pki::{VerifiedClient, VerifyError};
use rustls::crypto::tls13::OkmBlock;
use rustls::pki_types::CertificateDer;
use rustls::{KeyLog, NoKeyLog};

use super::record::{RecordLayerKind, TrafficSecrets};
use crate::observability::TicketRejection;

/// rustls' labels of the secrets that are captured, from the NSS key log format.
const CLIENT_LABEL: &str = "CLIENT_TRAFFIC_SECRET_0";
const SERVER_LABEL: &str = "SERVER_TRAFFIC_SECRET_0";

thread_local! {
    static CURRENT: RefCell<Option<Box<Fields>>> = const { RefCell::new(None) };
}

/// The time in which the verdict about a client holds: seconds since 1970, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ValidityPeriod {
    pub from: u64,
    pub until: u64,
}

impl ValidityPeriod {
    /// Of a session without a verdict.
    const ALWAYS: Self = Self { from: 0, until: u64::MAX };

    pub fn from_verified(verified: &VerifiedClient) -> Self {
        Self { from: verified.valid_from().as_secs(), until: verified.valid_until().as_secs() }
    }

    pub fn contains(self, now: u64) -> bool {
        (self.from..=self.until).contains(&now)
    }
}

/// A client certificate that the verifier rejected, for the log.
#[derive(Debug)]
pub struct RejectedCertificate {
    pub error: VerifyError,
    pub leaf: CertificateDer<'static>,
}

/// What a handshake has learned about its client.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum ClientEvidence {
    #[default]
    None,
    /// A ticket was opened; its period bounds the session, if the session is resumed.
    Ticket(ValidityPeriod),
    /// The certificate was verified, so no session is resumed.
    Verified(ValidityPeriod),
    /// The certificate was rejected.
    Rejected,
}

/// The state of one handshake, owned by the handshake. It is boxed, because every step moves it to
/// the thread and back.
pub struct HandshakeState(Option<Box<Fields>>);

#[derive(Default)]
struct Fields {
    evidence: ClientEvidence,
    /// Of the ticket that was sealed last. Seconds.
    ticket_lifetime: u32,
    /// The size of a ClientHello bounds their number.
    ticket_rejections: Vec<TicketRejection>,
    rejected_certificate: Option<Box<RejectedCertificate>>,
    client_secret: Option<OkmBlock>,
    server_secret: Option<OkmBlock>,
}

impl Default for HandshakeState {
    fn default() -> Self {
        Self(Some(Box::default()))
    }
}

impl HandshakeState {
    /// Runs one step of the handshake with this state.
    pub fn in_scope<T>(&mut self, step: impl FnOnce() -> T) -> T {
        CURRENT.set(self.0.take());
        let result = step();
        self.0 = CURRENT.take();
        result
    }

    /// The tickets that the client offered in vain.
    pub fn ticket_rejections(&self) -> &[TicketRejection] {
        self.0.as_ref().map(|fields| fields.ticket_rejections.as_slice()).unwrap_or_default()
    }

    /// The client certificate for which the handshake failed.
    pub fn take_rejected_certificate(&mut self) -> Option<RejectedCertificate> {
        self.0.as_mut()?.rejected_certificate.take().map(|rejected| *rejected)
    }

    /// The traffic secrets, if rustls has logged both.
    pub(super) fn take_traffic_secrets(&mut self) -> Option<TrafficSecrets> {
        let fields = self.0.as_mut()?;
        let (client, server) = (fields.client_secret.take()?, fields.server_secret.take()?);
        Some(TrafficSecrets { client, server })
    }

    fn with_current<T: Default>(f: impl FnOnce(&mut Fields) -> T) -> T {
        CURRENT.with_borrow_mut(|current| current.as_deref_mut().map(f).unwrap_or_default())
    }

    /// The verifier accepted the client's certificate.
    pub(super) fn client_verified(period: ValidityPeriod) {
        Self::with_current(|current| current.evidence = ClientEvidence::Verified(period));
    }

    /// The verifier rejected the client's certificate, and the site continues the handshake.
    pub(super) fn client_rejected() {
        Self::with_current(|current| current.evidence = ClientEvidence::Rejected);
    }

    /// The verifier rejected the client's certificate, and the handshake fails.
    pub(super) fn certificate_rejected(rejected: RejectedCertificate) {
        Self::with_current(|current| current.rejected_certificate = Some(Box::new(rejected)));
    }

    /// A ticket was opened. Returns false outside of a handshake.
    ///
    /// rustls tries one ticket after the other and resumes with the last one, or not at all. In the
    /// latter case the period bounds a new session, at worst too tightly.
    pub(super) fn ticket_accepted(period: ValidityPeriod) -> bool {
        Self::with_current(|current| {
            current.evidence = ClientEvidence::Ticket(period);
            true
        })
    }

    pub(super) fn ticket_rejected(rejection: TicketRejection) {
        Self::with_current(|current| current.ticket_rejections.push(rejection));
    }

    /// The period of a new ticket, at most `lifetime` seconds long; `None` if the session must not
    /// be resumed.
    pub(super) fn ticket_validity(
        requires_client_cert: bool,
        now: u64,
        lifetime: u32,
    ) -> Option<ValidityPeriod> {
        Self::with_current(|current| {
            let period = match current.evidence {
                ClientEvidence::None if requires_client_cert => return None,
                ClientEvidence::None => ValidityPeriod::ALWAYS,
                ClientEvidence::Ticket(period) | ClientEvidence::Verified(period) => period,
                ClientEvidence::Rejected => return None,
            };
            let until = period.until.min(now.saturating_add(lifetime.into()));
            current.ticket_lifetime = u32::try_from(until.saturating_sub(now)).unwrap_or(lifetime);
            // A lifetime of 0 means "discard" in TLS 1.3, and "unspecified" in TLS 1.2.
            (current.ticket_lifetime > 0).then_some(ValidityPeriod { until, ..period })
        })
    }

    /// The lifetime of the ticket that was sealed last, for the client. Seconds.
    pub(super) fn ticket_lifetime() -> u32 {
        Self::with_current(|current| current.ticket_lifetime)
    }
}

impl RecordLayerKind {
    /// The key log of a configuration: it gives the traffic secrets to their handshake, or drops
    /// them.
    pub fn key_log(self) -> Arc<dyn KeyLog> {
        match self {
            Self::Own => Arc::new(SecretCapture),
            Self::Rustls => Arc::new(NoKeyLog {}),
        }
    }
}

/// Captures the traffic secrets of the current handshake.
///
/// rustls exposes the traffic keys of a connection, but not the secrets that a KeyUpdate needs
/// (RFC 8446 section 7.2). Its key log has them; they are never written anywhere.
#[derive(Debug)]
pub(super) struct SecretCapture;

impl KeyLog for SecretCapture {
    fn log(&self, label: &str, _client_random: &[u8], secret: &[u8]) {
        HandshakeState::with_current(|current| match label {
            CLIENT_LABEL => current.client_secret = Some(OkmBlock::new(secret)),
            SERVER_LABEL => current.server_secret = Some(OkmBlock::new(secret)),
            _ => {}
        });
    }

    fn will_log(&self, label: &str) -> bool {
        (label == CLIENT_LABEL || label == SERVER_LABEL) && CURRENT.with_borrow(Option::is_some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000;

    /// The validity period of a ticket that this handshake would seal.
    fn period_of(state: &mut HandshakeState, requires_client_cert: bool) -> Option<ValidityPeriod> {
        state.in_scope(|| HandshakeState::ticket_validity(requires_client_cert, NOW, 600))
    }

    #[test]
    fn the_clients_verdict_bounds_the_period_of_a_ticket() {
        let long = ValidityPeriod { from: 7, until: NOW + 9000 };
        let short = ValidityPeriod { from: 7, until: NOW + 50 };
        // Without a certificate.
        let mut anonymous = HandshakeState::default();
        let always = ValidityPeriod { from: 0, until: NOW + 600 };
        assert_eq!(period_of(&mut anonymous, false), Some(always));
        assert_eq!(period_of(&mut anonymous, true), None, "the handshake fails anyway");
        // With a verified certificate.
        for (period, until) in [(long, NOW + 600), (short, NOW + 50)] {
            let mut verified = HandshakeState::default();
            verified.in_scope(|| HandshakeState::client_verified(period));
            for requires_client_cert in [true, false] {
                let expected = ValidityPeriod { from: 7, until };
                assert_eq!(period_of(&mut verified, requires_client_cert), Some(expected));
                let lifetime = verified.in_scope(HandshakeState::ticket_lifetime);
                assert_eq!(u64::from(lifetime), until - NOW);
            }
        }
        // With a certificate that expires within a second.
        let mut expiring = HandshakeState::default();
        let period = ValidityPeriod { from: 7, until: NOW };
        expiring.in_scope(|| HandshakeState::client_verified(period));
        assert_eq!(period_of(&mut expiring, true), None);
        // Resumed: the new ticket ends with the old one, so that a chain of tickets ends, too.
        let mut resumed = HandshakeState::default();
        assert!(resumed.in_scope(|| HandshakeState::ticket_accepted(short)));
        assert_eq!(period_of(&mut resumed, true), Some(short));
        // A ticket was opened, but the handshake was a full one.
        resumed.in_scope(|| HandshakeState::client_verified(long));
        assert_eq!(period_of(&mut resumed, true), Some(ValidityPeriod { from: 7, until: NOW + 600 }));
        // With a rejected certificate.
        resumed.in_scope(HandshakeState::client_rejected);
        assert_eq!(period_of(&mut resumed, false), None);
    }

    #[test]
    fn interleaved_handshakes_keep_their_states_apart() {
        let (mut first, mut second) = (HandshakeState::default(), HandshakeState::default());
        let period = ValidityPeriod { from: 1, until: NOW + 5 };
        first.in_scope(|| HandshakeState::client_verified(period));
        second.in_scope(|| HandshakeState::ticket_rejected(TicketRejection::Expired));
        assert_eq!(period_of(&mut second, true), None);
        assert_eq!(period_of(&mut first, true), Some(period));
        assert_eq!(first.ticket_rejections(), []);
        assert_eq!(second.ticket_rejections(), [TicketRejection::Expired]);
    }

    #[test]
    fn traffic_secrets_are_captured_only_within_a_handshake() {
        let log = || {
            [CLIENT_LABEL, SERVER_LABEL, "CLIENT_RANDOM"].map(|label| {
                let logs = SecretCapture.will_log(label);
                SecretCapture.log(label, &[], &[7; 32]);
                logs
            })
        };
        assert_eq!(log(), [false, false, false]);
        let mut state = HandshakeState::default();
        assert!(state.take_traffic_secrets().is_none());
        assert_eq!(state.in_scope(log), [true, true, false]);
        assert!(state.take_traffic_secrets().is_some());
        assert!(state.take_traffic_secrets().is_none(), "taken once");
    }
}
