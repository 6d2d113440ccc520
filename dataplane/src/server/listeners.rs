//! The listeners of the process: which addresses the settings name, their sockets, and which
//! worker listens on which socket.
//!
//! A socket is used by its workers and kept here, so that it can be given to other workers, to
//! other options and to other processes. Invariant: every socket has a worker, and every worker
//! listens on every address.

use std::io;
use std::net::SocketAddr;

use conf::Settings;

use crate::io::connection_info::{ListenerOptions, ListenerProtocol, TcpMode};
use crate::proxy::listener::{self, BindError, BindRetry, BoundSocket};

/// An address that the settings name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ListenerPlan {
    /// The setting.
    pub key: &'static str,
    /// As configured: the port may be 0.
    pub configured: SocketAddr,
    pub options: ListenerOptions,
}

/// The addresses that the settings name, in their order.
pub(super) fn plan(settings: &Settings) -> Vec<ListenerPlan> {
    let apisix = &settings.apisix;
    let mut all = Vec::new();
    let mut add = |key, addresses: &[SocketAddr], options: ListenerOptions| {
        all.extend(addresses.iter().map(|&configured| ListenerPlan { key, configured, options }));
    };
    if apisix.proxy_mode.http() {
        let (http, https) = (ListenerProtocol::Http.into(), ListenerProtocol::Https.into());
        let proxied = |options| ListenerOptions { proxy_protocol: true, ..options };
        add("apisix.node_listen", &apisix.node_listen, http);
        if apisix.ssl.enable {
            add("apisix.ssl.listen", &apisix.ssl.listen, https);
        }
        let listen = &apisix.proxy_protocol;
        add("apisix.proxy_protocol.listen_http_port", &listen.http, proxied(http));
        add("apisix.proxy_protocol.listen_https_port", &listen.https, proxied(https));
    }
    for stream in apisix.streams.iter().filter(|_| apisix.proxy_mode.streams()) {
        let options = ListenerOptions {
            protocol: ListenerProtocol::Tcp(match (stream.tls, stream.tls_passthrough) {
                (false, false) => TcpMode::Plain,
                (true, false) => TcpMode::Terminate,
                (false, true) => TcpMode::Passthrough,
                (true, true) => TcpMode::ByRoute,
            }),
            proxy_protocol: stream.proxy_protocol,
            proxy_protocol_to_upstream: stream.proxy_protocol_to_upstream,
        };
        add("apisix.stream_proxy.tcp", &[stream.addr], options);
    }
    all
}

/// An address with its sockets.
#[derive(Debug)]
pub(super) struct BoundListener {
    pub plan: ListenerPlan,
    /// At least one. With several, a worker's own socket is that of its number.
    pub sockets: Vec<BoundSocket>,
}

impl BoundListener {
    /// Binds an address. `None`: it is an IPv6 address that the default of `enable_ipv6` adds, and
    /// this machine has no IPv6.
    ///
    /// # Errors
    /// [`BindError`].
    pub(super) fn bind(
        plan: ListenerPlan,
        workers: usize,
        retry: &BindRetry,
    ) -> Result<Option<Self>, BindError> {
        let ListenerPlan { key, configured, options } = plan;
        match listener::bind(key, configured, options, workers, retry) {
            Ok(sockets) => Ok(Some(Self { plan, sockets })),
            Err(error) if is_optional(configured, options.protocol) && is_ipv6_unavailable(&error.error) => {
                tracing::warn!("{error}; going on without IPv6");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// The address, with the port that the kernel chose for port 0.
    pub(super) fn addr(&self) -> SocketAddr {
        self.sockets.first().map_or(self.plan.configured, |socket| socket.addr)
    }

    /// The sockets of worker `index` of `workers`: with fewer workers than sockets several, with
    /// more one that it shares with another worker.
    pub(super) fn sockets_of_worker(&self, index: usize, workers: usize) -> Vec<BoundSocket> {
        let own = self.sockets.iter().skip(index).step_by(workers.max(1));
        let shared = index.checked_rem(self.sockets.len()).filter(|_| index >= self.sockets.len());
        own.chain(shared.and_then(|index| self.sockets.get(index))).cloned().collect()
    }
}

/// All listeners of the process.
#[derive(Debug, Default)]
pub(super) struct ListenerSet(pub(super) Vec<BoundListener>);

impl ListenerSet {
    /// Binds the addresses.
    ///
    /// # Errors
    /// [`BindError`].
    pub(super) fn bind(plans: &[ListenerPlan], workers: usize, retry: &BindRetry) -> Result<Self, BindError> {
        let bound = plans.iter().map(|plan| BoundListener::bind(*plan, workers, retry));
        Ok(Self(bound.filter_map(Result::transpose).collect::<Result<_, _>>()?))
    }

    /// The sockets of worker `index` of `workers`.
    pub(super) fn sockets_of_worker(&self, index: usize, workers: usize) -> Vec<BoundSocket> {
        self.0.iter().flat_map(|listener| listener.sockets_of_worker(index, workers)).collect()
    }

    /// The addresses of the listeners whose protocol `is_shown`.
    pub(super) fn addresses(&self, is_shown: impl Fn(ListenerProtocol) -> bool) -> Vec<SocketAddr> {
        let shown = self.0.iter().filter(|listener| is_shown(listener.plan.options.protocol));
        shown.map(BoundListener::addr).collect()
    }
}

/// `[::]` may be configured only by the default of enable_ipv6, except for `stream_proxy.tcp`.
fn is_optional(addr: SocketAddr, protocol: ListenerProtocol) -> bool {
    addr.is_ipv6() && addr.ip().is_unspecified() && protocol.is_http()
}

fn is_ipv6_unavailable(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(nix::libc::EAFNOSUPPORT)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;
    use std::time::Duration;

    use proptest::prelude::*;
    use tokio::sync::watch;

    use super::*;

    fn bound(sockets: usize) -> BoundListener {
        let configured = "127.0.0.1:0".parse().unwrap();
        let retry = BindRetry { predecessor: Duration::ZERO, stop: watch::channel(false).1 };
        let plan = ListenerPlan { key: "test", configured, options: ListenerProtocol::Http.into() };
        BoundListener::bind(plan, sockets, &retry).unwrap().unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn every_socket_has_a_worker_and_every_worker_a_socket(sockets in 1_usize..9, workers in 1_usize..9) {
            let bound = bound(sockets);
            let of_workers: Vec<_> = (0..workers).map(|index| bound.sockets_of_worker(index, workers)).collect();
            prop_assert!(of_workers.iter().all(|sockets| !sockets.is_empty()));
            let fd = |bound: &BoundSocket| bound.socket.as_raw_fd();
            let mut used: Vec<_> = of_workers.iter().flatten().map(fd).collect();
            prop_assert_eq!(used.len(), sockets.max(workers), "none is listened on more often than needed");
            used.sort_unstable();
            used.dedup();
            prop_assert_eq!(used.len(), sockets);
        }
    }
}
