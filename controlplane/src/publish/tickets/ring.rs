//! When a ring rotates, and its stored form. No clock and no IO.
//!
//! One secret seals at a time; the next one is in the ring before it does, and an old one stays as
//! long as a ticket of it may live. The stored text is PEM around the ring's protobuf, encrypted
//! with the keyring like private keys.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use model::tickets::SECRET_BYTES;
use model::wire::{tickets_from_wire, tickets_to_wire};
use model::{TicketRing, TicketSecret};
use pki::Keyring;
use prost::Message;
use zeroize::Zeroizing;

const BEGIN: &str = "-----BEGIN COUNTERSIGN TICKET SECRETS-----\n";
const END: &str = "\n-----END COUNTERSIGN TICKET SECRETS-----\n";
/// Clock skew plus the time of a push, in seconds.
const SLACK: u64 = 60;

/// The times of a ring, in seconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct RotationSchedule {
    lifetime: u32,
    rotation: u64,
    /// The least time from the push of a secret until it seals.
    lead_time: u64,
}

impl RotationSchedule {
    /// For tickets with this lifetime.
    pub(super) fn new(lifetime: Duration) -> Self {
        let lifetime =
            u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX).clamp(2, model::tickets::LIFETIME_MAX);
        let turn = u64::from(lifetime / 2);
        Self { lifetime, rotation: turn, lead_time: SLACK.min(turn) }
    }

    pub(super) fn check_interval(self) -> Duration {
        Duration::from_secs(self.rotation) / 4
    }

    /// The ring with the configured lifetime.
    pub(super) fn with_lifetime(self, ring: TicketRing) -> TicketRing {
        TicketRing { lifetime: self.lifetime, ..ring }
    }

    /// The ring that is due now, when it differs from `ring`: with a secret that seals, the next
    /// one, and without those that no ticket can need.
    pub(super) fn rotated(self, ring: &TicketRing, now: u64) -> Option<TicketRing> {
        // A secret further in the future than any rotation leads comes from a wrong clock.
        let credible = |secret: &&TicketSecret| secret.active_from() <= now.saturating_add(2 * self.rotation);
        let mut secrets: Vec<TicketSecret> = ring.secrets.iter().filter(credible).cloned().collect();
        let ends: Vec<u64> = secrets.iter().skip(1).map(TicketSecret::active_from).collect();
        // A secret stops sealing when the next one begins; the last one never does.
        let is_expired = |end: &u64| end.saturating_add(u64::from(self.lifetime) + self.lead_time) < now;
        let expired = ends.iter().take_while(|end| is_expired(end)).count();
        secrets.drain(..expired);
        if secrets.is_empty() {
            secrets.push(new_secret(now)?);
        }
        let last = secrets.last().map_or(now, TicketSecret::active_from);
        if last <= now {
            secrets.push(new_secret(
                last.saturating_add(self.rotation).max(now.saturating_add(self.lead_time)),
            )?);
        }
        let rotated = TicketRing { lifetime: self.lifetime, secrets };
        (!same_secrets(&rotated, ring)).then_some(rotated)
    }
}

/// `None` only when the system has no random bytes.
fn new_secret(from: u64) -> Option<TicketSecret> {
    let mut bytes = Zeroizing::new([0; SECRET_BYTES]);
    aws_lc_rs::rand::fill(&mut *bytes).ok()?;
    Some(TicketSecret::new(from, bytes))
}

/// Whether two rings hold the same secrets. For rings of our own making: not constant-time.
pub(super) fn same_secrets(one: &TicketRing, other: &TicketRing) -> bool {
    let equal = |(one, other): (&TicketSecret, &TicketSecret)| {
        one.active_from() == other.active_from() && one.expose() == other.expose()
    };
    one.secrets.len() == other.secrets.len() && one.secrets.iter().zip(&other.secrets).all(equal)
}

/// The stored text.
pub(super) fn seal_ring(ring: &TicketRing, keyring: &Keyring) -> Zeroizing<String> {
    let wire = tickets_to_wire(ring);
    let mut bytes = Zeroizing::new(Vec::with_capacity(wire.encoded_len()));
    // Encoding fails only for want of room, and a `Vec` grows.
    let _ = wire.encode(&mut *bytes);
    // Preallocated, so that the text is never moved, which would leave a copy behind.
    let mut text = Zeroizing::new(String::with_capacity(BEGIN.len() + bytes.len() * 4 / 3 + 4 + END.len()));
    text.push_str(BEGIN);
    STANDARD.encode_string(&*bytes, &mut text);
    text.push_str(END);
    Zeroizing::new(keyring.seal(&text))
}

/// The ring of a stored text.
pub(super) fn open_ring(stored: &str, keyring: &Keyring) -> Result<TicketRing, String> {
    let text = keyring.open(stored).map_err(|error| error.to_string())?;
    let base64 = text.strip_prefix(BEGIN).and_then(|text| text.strip_suffix(END));
    let base64 = base64.ok_or("it is not a ring of secrets")?;
    let bytes = Zeroizing::new(STANDARD.decode(base64).map_err(|_| "its base64 is damaged")?);
    let wire = proto::push::TicketRing::decode(bytes.as_slice()).map_err(|error| error.to_string())?;
    tickets_from_wire(&wire).map_err(|problem| problem.to_string())
}
