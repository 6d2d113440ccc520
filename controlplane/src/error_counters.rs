//! What peers without a right to be here are refused: counted exactly, and logged as much as the
//! disk stands.
//!
//! Every log line that somebody can cause who holds no certificate and no key goes through
//! [`Refused::counted`].

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use process::throttle::LogThrottle;

/// Lines of one kind that are written at once.
const BURST: u32 = 50;
/// One more each time this passes.
const INTERVAL: Duration = Duration::from_secs(1);

macro_rules! error_reasons {
    ($( $(#[doc = $doc:literal])+ $variant:ident => $label:literal; )+) => {
        /// What is refused, or fails at a listener. Closed: the metric label.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum ErrorReason { $( $(#[doc = $doc])+ $variant, )+ }

        impl ErrorReason {
            /// All of them.
            pub(crate) const ALL: &'static [Self] = &[ $( Self::$variant, )+ ];

            /// The label of `countersign_refused_total`.
            pub(crate) fn label(self) -> &'static str {
                match self { $( Self::$variant => $label, )+ }
            }

            fn state(self) -> &'static ReasonState {
                match self { $( Self::$variant => { static STATE: ReasonState = ReasonState::new(); &STATE } )+ }
            }
        }
    };
}

error_reasons! {
    /// The Admin API's listener could not accept a connection: no descriptor or memory is left, for
    /// example.
    AdminAccept => "admin_accept";
    /// A TLS handshake with the Admin API failed.
    AdminHandshake => "admin_handshake";
    /// The address is not in `allow_admin`.
    AdminAddress => "admin_address";
    /// No client certificate, or one that is not good.
    AdminCertificate => "admin_certificate";
    /// No admin key, a wrong one, or a role that may not do this.
    AdminKey => "admin_key";
    /// The push listener could not accept a connection.
    PushAccept => "push_accept";
    /// A TLS handshake with the push failed.
    PushHandshake => "push_handshake";
    /// A data plane whose certificate or name does not let it in.
    PushNode => "push_node";
}

struct ReasonState {
    count: AtomicU64,
    log_throttle: LogThrottle,
}

impl ReasonState {
    const fn new() -> Self {
        Self { count: AtomicU64::new(0), log_throttle: LogThrottle::new(BURST, INTERVAL) }
    }
}

impl ErrorReason {
    /// Counts one. `Some` when it is to be logged, with the number of those that were not since the
    /// last line.
    pub(crate) fn record(self) -> Option<u64> {
        let state = self.state();
        state.count.fetch_add(1, Ordering::Relaxed);
        state.log_throttle.try_acquire()
    }

    /// How many there were since the start.
    pub(crate) fn count(self) -> u64 {
        self.state().count.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_one_kind_is_counted_and_hides_no_other() {
        let logged = (0..10_000).filter(|_| ErrorReason::AdminAccept.record().is_some()).count();
        assert!(logged >= BURST as usize && logged < 1000, "{logged}");
        assert!(ErrorReason::AdminAccept.count() >= 10_000);
        assert!(ErrorReason::PushAccept.record().is_some());
    }
}
