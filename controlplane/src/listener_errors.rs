//! Errors at the listeners: addresses that cannot be bound, and what clients without a certificate
//! or key cause.
//!
//! Invariant: every log line that such a client can cause goes through [`ErrorReason::record`],
//! which counts each error and limits the rate of the lines.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use process::throttle::LogThrottle;
use serde_json::{Value, json};

/// An address that cannot be bound, with advice for the operator.
#[derive(Debug, thiserror::Error)]
#[error("{setting}: cannot listen on {address}: {source}{advice}", advice = self.advice())]
pub struct ListenError {
    setting: &'static str,
    address: SocketAddr,
    source: io::Error,
}

impl ListenError {
    /// For the address that `setting` names.
    pub(crate) fn new(setting: &'static str, address: SocketAddr, source: io::Error) -> Self {
        Self { setting, address, source }
    }

    /// Whether another process has the address.
    pub(crate) fn is_in_use(&self) -> bool {
        self.source.kind() == io::ErrorKind::AddrInUse
    }

    fn advice(&self) -> &'static str {
        match self.source.kind() {
            io::ErrorKind::AddrInUse => ": another program listens there; stop it, or choose another port",
            io::ErrorKind::PermissionDenied => ": ports below 1024 need root or CAP_NET_BIND_SERVICE",
            io::ErrorKind::AddrNotAvailable => ": this machine has no such address",
            _ => "",
        }
    }
}

/// Log lines of one reason in a burst.
const BURST: u32 = 50;
/// Interval in which one more line is permitted.
const INTERVAL: Duration = Duration::from_secs(1);

macro_rules! error_reasons {
    ($( $(#[doc = $doc:literal])+ $variant:ident => $label:literal; )+) => {
        /// Why a connection or request failed at a listener. Closed: it is the metric label.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum ErrorReason { $( $(#[doc = $doc])+ $variant, )+ }

        impl ErrorReason {
            /// Every reason.
            pub(crate) const ALL: &'static [Self] = &[ $( Self::$variant, )+ ];

            /// The label of `countersign_errors_total`.
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
    /// The Admin API cannot accept a connection, for example for want of descriptors or memory.
    AdminAccept => "admin_accept";
    /// A TLS handshake with the Admin API failed.
    AdminHandshake => "admin_handshake";
    /// The client's address is not in `allow_admin`.
    AdminAddress => "admin_address";
    /// The client certificate is missing or rejected.
    AdminCertificate => "admin_certificate";
    /// The admin key is missing or wrong.
    AdminKey => "admin_key";
    /// The role of the key or certificate may not do this.
    AdminRole => "admin_role";
    /// A page of another site made the request, with a client certificate and no key.
    AdminCrossSite => "admin_cross_site";
    /// The admin key is wrong, and so were too many before it from this address.
    AdminWrongKeys => "admin_wrong_keys";
    /// The push listener cannot accept a connection.
    PushAccept => "push_accept";
    /// A TLS handshake with the push failed.
    PushHandshake => "push_handshake";
    /// A data plane's certificate or name is not permitted.
    PushNode => "push_node";
}

struct ReasonState {
    count: AtomicU64,
    /// Unix seconds of the last error.
    last: AtomicU64,
    log_throttle: LogThrottle,
}

impl ReasonState {
    const fn new() -> Self {
        Self {
            count: AtomicU64::new(0),
            last: AtomicU64::new(0),
            log_throttle: LogThrottle::new(BURST, INTERVAL),
        }
    }
}

impl ErrorReason {
    /// Counts an error. `Some` when it is to be logged, with the number of unlogged errors since
    /// the last line.
    pub(crate) fn record(self) -> Option<u64> {
        let state = self.state();
        state.count.fetch_add(1, Ordering::Relaxed);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        state.last.store(now.as_secs(), Ordering::Relaxed);
        state.log_throttle.try_acquire()
    }

    /// Its entry in `/status`, unless there was no such error.
    pub(crate) fn view(self) -> Option<(String, Value)> {
        let (total, last) = (self.count(), self.state().last.load(Ordering::Relaxed));
        (total > 0).then(|| (self.label().to_owned(), json!({"total": total, "last_at": last})))
    }

    /// The number of errors since the start.
    pub(crate) fn count(self) -> u64 {
        self.state().count.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_one_reason_suppresses_no_other() {
        let logged = (0..10_000).filter(|_| ErrorReason::AdminAccept.record().is_some()).count();
        assert!(logged >= BURST as usize && logged < 1000, "{logged}");
        assert!(ErrorReason::AdminAccept.count() >= 10_000);
        assert!(ErrorReason::PushAccept.record().is_some());
    }
}
