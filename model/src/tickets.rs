//! The ring of secrets that session tickets are sealed with: made by the control plane, the same on
//! every data plane.
//!
//! A data plane seals with the newest secret that has begun and opens with any, so that a secret
//! which arrived ahead of its time makes no two nodes disagree. No key of a ticket is here: each
//! site derives its own (`dataplane`, `tls/ticket`). Invariant: a secret is wiped on drop, is
//! compared by nobody and shown to nobody.

use zeroize::Zeroizing;

/// Bytes of a secret.
pub const SECRET_BYTES: usize = 32;
/// Most secrets of a ring: bounds what one handshake may have to look through.
pub const SECRETS_MAX: usize = 64;
/// The longest a ticket may live, in seconds (RFC 8446 section 4.6.1).
pub const LIFETIME_MAX: u32 = 7 * 24 * 60 * 60;

/// One secret.
#[derive(Clone)]
pub struct TicketSecret {
    from: u64,
    bytes: Zeroizing<[u8; SECRET_BYTES]>,
}

impl TicketSecret {
    /// A secret that seals from then on (seconds since 1970). The bytes must be random.
    pub fn new(from: u64, bytes: Zeroizing<[u8; SECRET_BYTES]>) -> Self {
        Self { from, bytes }
    }

    /// When it begins to seal, in seconds since 1970.
    pub fn active_from(&self) -> u64 {
        self.from
    }

    /// What keys are derived from.
    pub fn expose(&self) -> &[u8; SECRET_BYTES] {
        &self.bytes
    }
}

/// All secrets that may still open a ticket. Empty: no session is resumed.
#[derive(Clone, Default)]
pub struct TicketRing {
    /// How long a ticket may live, in seconds.
    pub lifetime: u32,
    /// Oldest first.
    pub secrets: Vec<TicketSecret>,
}

/// Shows how many there are, and none of them.
impl std::fmt::Debug for TicketRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TicketRing({} secrets, not shown, {} s)", self.secrets.len(), self.lifetime)
    }
}
