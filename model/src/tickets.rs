//! The ring of secrets that session ticket keys are derived from. The control plane generates it
//! and sends it to every data plane.
//!
//! A data plane seals with the newest active secret and opens with any, so nodes agree even if a
//! secret arrives before its time. Each site derives ticket keys of its own (`dataplane`,
//! `tls/ticket`). Invariant: secrets are wiped on drop, never compared and never printed.

use zeroize::Zeroizing;

/// The length of a secret.
pub const SECRET_BYTES: usize = 32;
/// Bounds the secrets of a ring, and with it the keys that a handshake may try.
pub(crate) const SECRETS_MAX: usize = 64;
/// The longest lifetime of a ticket, in seconds (RFC 8446 section 4.6.1).
pub const LIFETIME_MAX: u32 = 7 * 24 * 60 * 60;

/// A secret of the ring.
#[derive(Clone)]
pub struct TicketSecret {
    active_from: u64,
    bytes: Zeroizing<[u8; SECRET_BYTES]>,
}

impl TicketSecret {
    /// Creates a secret that is active from a time (seconds since 1970). The bytes must be random.
    pub fn new(active_from: u64, bytes: Zeroizing<[u8; SECRET_BYTES]>) -> Self {
        Self { active_from, bytes }
    }

    /// When the secret becomes active, in seconds since 1970.
    pub fn active_from(&self) -> u64 {
        self.active_from
    }

    /// The secret bytes, for key derivation.
    pub fn expose(&self) -> &[u8; SECRET_BYTES] {
        &self.bytes
    }
}

/// The secrets that may open a ticket. An empty ring disables resumption.
#[derive(Clone, Default)]
pub struct TicketRing {
    /// The lifetime of a ticket, in seconds.
    pub lifetime: u32,
    /// Oldest first.
    pub secrets: Vec<TicketSecret>,
}

/// Shows the number of secrets only.
impl std::fmt::Debug for TicketRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TicketRing({} secrets, not shown, {} s)", self.secrets.len(), self.lifetime)
    }
}
