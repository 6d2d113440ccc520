//! The messages of the hand-over.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The most bytes of one message.
pub(super) const BYTES_MAX: usize = 64 * 1024;
/// The most descriptors of one message; the kernel's limit is 253.
pub(super) const DESCRIPTORS_MAX: usize = 64;
/// The most bytes of a reason.
const REASON_MAX: usize = 4096;

/// One packet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "snake_case")]
pub(super) enum Message {
    /// Carries the life token of each process of `draining`.
    Offer {
        pid: u32,
        generation: u64,
        sockets: usize,
        draining: Vec<DrainingName>,
    },
    /// Carries one socket for each name.
    Sockets {
        sockets: Vec<SocketName>,
    },
    Started,
    Ready {
        detail: Value,
    },
    Go,
    Serving,
    Released,
    Failed {
        reason: String,
    },
}

/// A socket of a message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct SocketName {
    pub(super) name: String,
    pub(super) address: String,
    /// Absent from programs that did not know it.
    #[serde(default)]
    pub(super) activated: bool,
}

/// A life token of a message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct DrainingName {
    pub(super) pid: u32,
    pub(super) generation: u64,
}

impl Message {
    /// A failure, with at most [`REASON_MAX`] bytes of its reason.
    pub(super) fn failed(reason: &str) -> Self {
        Self::Failed { reason: reason[..reason.floor_char_boundary(REASON_MAX)].to_owned() }
    }

    /// Its tag, for errors.
    pub(super) const fn name(&self) -> &'static str {
        match self {
            Self::Offer { .. } => "offer",
            Self::Sockets { .. } => "sockets",
            Self::Started => "started",
            Self::Ready { .. } => "ready",
            Self::Go => "go",
            Self::Serving => "serving",
            Self::Released => "released",
            Self::Failed { .. } => "failed",
        }
    }
}
