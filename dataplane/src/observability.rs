//! Metrics for Prometheus, and one log line for each connection or request that is rejected, denied
//! or fails.

pub(crate) mod log;
mod log_limiter;
pub mod metrics;
pub(crate) mod traces;
pub(crate) mod upgrades;

use std::error::Error;

use crate::reason::Reason;

/// An error that ends a connection or a request under one [`Reason`]: the key of its log line, its
/// counter and its HTTP status.
pub(crate) trait HasReason: Error {
    /// The reason.
    fn reason(&self) -> Reason;
}

/// Joins the messages of the chain, without those that an earlier message contains.
pub(crate) fn error_chain(error: &dyn Error) -> String {
    let mut texts: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let text = error.to_string();
        if !texts.iter().any(|earlier| earlier.contains(&text)) {
            texts.push(text);
        }
        next = error.source();
    }
    texts.join(": ")
}

/// Why a session ticket is rejected and the handshake is a full one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TicketRejection {
    /// Its key name is unknown: another site or policy, a secret that has left the ring, or
    /// garbage.
    UnknownKey,
    /// It is too old, or its client's certificate is no longer valid.
    Expired,
    /// It names one of our keys and does not decrypt: truncated or modified.
    Malformed,
}

impl TicketRejection {
    /// All variants, in the order of [`Self::index`].
    pub const ALL: [Self; 3] = [Self::UnknownKey, Self::Expired, Self::Malformed];

    /// The position in [`Self::ALL`].
    pub fn index(self) -> usize {
        self as usize
    }

    /// The value of the metric's label `reason`.
    pub fn label(self) -> &'static str {
        match self {
            Self::UnknownKey => "unknown_key",
            Self::Expired => "expired",
            Self::Malformed => "malformed",
        }
    }
}
