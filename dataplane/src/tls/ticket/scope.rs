//! What one handshake knows of resuming, handed to the callbacks of rustls, which are told nothing
//! about the client.
//!
//! Handshakes of one core take turns, so the state belongs to the handshake, whose driver lends it
//! to the thread for each step ([`Resumption::during`]). Invariant: outside of a step no ticket is
//! sealed or opened; a session that was resumed is never sealed for longer than the ticket it came
//! from, and one whose client was refused is not sealed at all.

use std::cell::RefCell;

use pki::VerifiedClient;

use crate::observability::reason::TicketRejection;

thread_local! {
    static CURRENT: RefCell<Option<HandshakeState>> = const { RefCell::new(None) };
}

/// When a verdict about a client holds: both ends included, in seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ValidityPeriod {
    /// First second.
    pub from: u64,
    /// Last second.
    pub until: u64,
}

impl ValidityPeriod {
    /// There is no verdict that could end.
    const ALWAYS: Self = Self { from: 0, until: u64::MAX };

    /// That of a verified client.
    pub fn from_verified(verified: &VerifiedClient) -> Self {
        Self { from: verified.valid_from().as_secs(), until: verified.valid_until().as_secs() }
    }

    /// Whether it holds at that second.
    pub fn contains(self, now: u64) -> bool {
        (self.from..=self.until).contains(&now)
    }
}

/// What is known about the client of a handshake.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum ClientEvidence {
    /// It has shown nothing so far.
    #[default]
    None,
    /// It has shown a ticket that opened: if the session is resumed, this is what bounds it.
    Ticket(ValidityPeriod),
    /// It has shown a certificate that was accepted: no session is resumed.
    Verified(ValidityPeriod),
    /// It has shown one that was not.
    Rejected,
}

/// One handshake's state. Belongs to the driver of the handshake.
#[derive(Debug, Default)]
pub struct HandshakeState {
    evidence: ClientEvidence,
    /// Of the ticket that was sealed last, in seconds.
    ticket_lifetime: u32,
    /// Tickets that were offered in vain; a ClientHello of bounded length holds so many.
    ticket_rejections: Vec<TicketRejection>,
}

impl HandshakeState {
    /// Runs one step of the handshake this belongs to.
    pub fn in_scope<T>(&mut self, step: impl FnOnce() -> T) -> T {
        CURRENT.set(Some(std::mem::take(self)));
        let done = step();
        *self = CURRENT.take().unwrap_or_default();
        done
    }

    /// Why tickets were refused, one by one.
    pub fn ticket_rejections(&self) -> &[TicketRejection] {
        &self.ticket_rejections
    }

    fn with<T: Default>(f: impl FnOnce(&mut Self) -> T) -> T {
        CURRENT.with_borrow_mut(|current| current.as_mut().map(f).unwrap_or_default())
    }

    /// The verifier accepted the client's certificate.
    pub fn client_verified(window: ValidityPeriod) {
        Self::with(|current| current.evidence = ClientEvidence::Verified(window));
    }

    /// The verifier refused it, and the site lets the handshake go on.
    pub fn client_rejected() {
        Self::with(|current| current.evidence = ClientEvidence::Rejected);
    }

    /// A ticket opened. rustls asks one after the other and resumes with the last one it got, or
    /// not at all: then what this bounds is a new session, too tightly at worst. Whether there
    /// is a handshake to remember it.
    pub(super) fn ticket_accepted(window: ValidityPeriod) -> bool {
        Self::with(|current| {
            current.evidence = ClientEvidence::Ticket(window);
            true
        })
    }

    pub(super) fn ticket_rejected(refusal: TicketRejection) {
        Self::with(|current| current.ticket_rejections.push(refusal));
    }

    /// The window to seal now, at most `lifetime` seconds long; `None` when this session is not to
    /// be resumed.
    pub(super) fn ticket_validity(insists: bool, now: u64, lifetime: u32) -> Option<ValidityPeriod> {
        Self::with(|current| {
            let window = match current.evidence {
                ClientEvidence::None if insists => return None,
                ClientEvidence::None => ValidityPeriod::ALWAYS,
                ClientEvidence::Ticket(window) | ClientEvidence::Verified(window) => window,
                ClientEvidence::Rejected => return None,
            };
            let window =
                ValidityPeriod { until: window.until.min(now.saturating_add(lifetime.into())), ..window };
            current.ticket_lifetime = u32::try_from(window.until.saturating_sub(now)).unwrap_or(lifetime);
            // Zero would say "drop it" in TLS 1.3 and "keep it as long as you like" in TLS 1.2.
            (current.ticket_lifetime > 0).then_some(window)
        })
    }

    /// The lifetime to tell the client of the ticket that was just sealed.
    pub(super) fn ticket_lifetime() -> u32 {
        Self::with(|current| current.ticket_lifetime)
    }
}
