//! The clients of listeners for operators.
//!
//! Invariant: a listener on a loopback address serves every client of this machine; any other
//! serves clients of the allow-list, through mutual TLS where it is configured, and no client where
//! there is neither.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ipnet::IpNet;
use tokio::sync::watch;
use tokio_rustls::rustls::ServerConfig;

/// The TLS configuration of a handshake.
pub type TlsFuture = Pin<Box<dyn Future<Output = io::Result<Arc<ServerConfig>>> + Send>>;

/// Gives the TLS configuration of each handshake, which must require client certificates.
pub type TlsSource = Arc<dyn Fn() -> TlsFuture + Send + Sync>;

/// Who may connect to a listener whose address is not a loopback one.
#[derive(Clone, Default)]
pub struct StatusAccess {
    /// The networks of clients; `None`: all.
    pub allow: Option<Vec<IpNet>>,
    /// Mutual TLS; `None`: plain HTTP.
    pub tls: Option<TlsSource>,
}

impl fmt::Debug for StatusAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StatusAccess").field("allow", &self.allow).field("tls", &self.tls.is_some()).finish()
    }
}

/// The rules of all listeners of a process, which a reload replaces. New connections meet the
/// newest.
#[derive(Debug, Clone)]
pub struct StatusAccessHandle(Arc<watch::Sender<StatusAccess>>);

impl StatusAccessHandle {
    /// Begins with these rules.
    pub fn new(access: StatusAccess) -> Self {
        Self(Arc::new(watch::Sender::new(access)))
    }

    /// Replaces the rules.
    pub fn replace(&self, access: StatusAccess) {
        self.0.send_replace(access);
    }

    /// How a connection is served.
    pub(super) fn decide(&self, local: SocketAddr, peer: SocketAddr) -> Admission {
        if local.ip().to_canonical().is_loopback() {
            return Admission::Plain;
        }
        let access = self.0.borrow();
        match (&access.allow, &access.tls) {
            (Some(allow), _) if !contains(allow, peer.ip().to_canonical()) => Admission::Denied,
            (_, Some(tls)) => Admission::Tls(Arc::clone(tls)),
            (Some(_), None) => Admission::Plain,
            (None, None) => Admission::Denied,
        }
    }
}

fn contains(networks: &[IpNet], address: IpAddr) -> bool {
    networks.iter().any(|network| network.contains(&address))
}

/// How a connection is served.
pub(super) enum Admission {
    Plain,
    Tls(TlsSource),
    Denied,
}

/// Why a connection or request was not served.
#[derive(Debug, Clone, Copy)]
pub enum StatusRejection {
    /// The address of the client is not in the allow-list.
    Address,
    /// The TLS handshake failed: no certificate, or one of another CA.
    Handshake,
    /// The request may come from a web page: its `Host` or `Origin` is of another site.
    CrossSite,
}

/// The counts, by [`StatusRejection`].
static REJECTIONS: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];

impl StatusRejection {
    pub(super) const ALL: [Self; 3] = [Self::Address, Self::Handshake, Self::CrossSite];

    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Address => "address",
            Self::Handshake => "handshake",
            Self::CrossSite => "cross_site",
        }
    }

    /// Counts one.
    pub fn record(self) {
        if let Some(count) = REJECTIONS.get(self as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn count(self) -> u64 {
        REJECTIONS.get(self as usize).map_or(0, |count| count.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decided(access: &StatusAccess, local: &str, peer: &str) -> &'static str {
        let handle = StatusAccessHandle::new(access.clone());
        match handle.decide(local.parse().unwrap(), peer.parse().unwrap()) {
            Admission::Plain => "plain",
            Admission::Tls(_) => "tls",
            Admission::Denied => "denied",
        }
    }

    #[test]
    fn only_loopback_addresses_are_open_without_rules() {
        let none = StatusAccess::default();
        assert_eq!(decided(&none, "127.0.0.1:1", "127.0.0.1:2"), "plain");
        assert_eq!(decided(&none, "[::1]:1", "[::1]:2"), "plain");
        assert_eq!(decided(&none, "0.0.0.0:1", "127.0.0.1:2"), "denied");
        assert_eq!(decided(&none, "10.0.0.1:1", "10.0.0.2:2"), "denied");
    }

    #[test]
    fn an_allow_list_and_tls_hold_both() {
        let allow = Some(vec!["10.0.0.0/8".parse().unwrap()]);
        let tls: TlsSource = Arc::new(|| Box::pin(async { Err(io::Error::other("not asked")) }));
        let listed = StatusAccess { allow: allow.clone(), tls: None };
        assert_eq!(decided(&listed, "0.0.0.0:1", "10.1.2.3:2"), "plain");
        assert_eq!(decided(&listed, "[::]:1", "[::ffff:10.1.2.3]:2"), "plain");
        assert_eq!(decided(&listed, "0.0.0.0:1", "192.0.2.1:2"), "denied");
        // The rules are about other addresses than loopback ones.
        assert_eq!(decided(&listed, "127.0.0.1:1", "127.0.0.1:2"), "plain");
        let both = StatusAccess { allow, tls: Some(Arc::clone(&tls)) };
        assert_eq!(decided(&both, "0.0.0.0:1", "10.1.2.3:2"), "tls");
        assert_eq!(decided(&both, "0.0.0.0:1", "192.0.2.1:2"), "denied");
        let mutual = StatusAccess { allow: None, tls: Some(tls) };
        assert_eq!(decided(&mutual, "0.0.0.0:1", "192.0.2.1:2"), "tls");
        let empty = StatusAccess { allow: Some(Vec::new()), tls: None };
        assert_eq!(decided(&empty, "0.0.0.0:1", "127.0.0.1:2"), "denied");
    }
}
