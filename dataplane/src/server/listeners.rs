//! The listeners of the process: which addresses the settings name, their sockets, and which
//! worker listens on which socket.
//!
//! A socket is used by its workers and kept here, so that it can be given to other workers, to
//! other options and to other processes. Invariant: every socket has a worker, and every worker
//! listens on every address.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use conf::Settings;
use process::handover::{HandoverError, InheritedListener, OfferedSocket};
use process::socket_activation::{self, ActivationError, UnknownSocket};

use crate::io::connection_info::{ListenerOptions, ListenerProtocol, TcpMode};
use crate::proxy::listener::{self, BindError, BindRetry, BoundSocket};
use crate::proxy::worker::WorkerCommand;

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

/// The settings that name the usual listeners.
const LISTENER_SETTINGS: &str = "apisix.node_listen, apisix.ssl.listen or apisix.stream_proxy.tcp";

/// Listening sockets from another process, until they are taken.
#[derive(Debug, Default)]
pub(super) struct InheritedSockets(Vec<InheritedListener>);

impl InheritedSockets {
    /// Checks the sockets of a predecessor.
    ///
    /// # Errors
    /// [`HandoverError::WrongSocket`].
    pub(super) fn new(sockets: Vec<OfferedSocket>) -> Result<Self, HandoverError> {
        sockets.into_iter().map(OfferedSocket::into_tcp_listener).collect::<Result<_, _>>().map(Self)
    }

    /// The sockets that the service manager has bound.
    ///
    /// # Errors
    /// One of them cannot be a listener.
    pub(super) fn activated() -> Result<Self, ActivationError> {
        socket_activation::take_sockets().map(Self)
    }

    /// # Errors
    /// A socket is left that no listener has taken: its unit promises a port that nothing serves.
    pub(super) fn ensure_empty(&self) -> Result<(), UnknownSocket> {
        match self.0.first() {
            None => Ok(()),
            Some(left) => {
                Err(UnknownSocket { name: left.name.clone(), addr: left.addr, settings: LISTENER_SETTINGS })
            }
        }
    }

    /// Takes the sockets of an address. For port 0: those of the first address of the same setting
    /// that are left.
    pub(super) fn take(&mut self, key: &str, configured: SocketAddr) -> Vec<InheritedListener> {
        let chosen = |left: &InheritedListener| {
            (left.name == key && left.addr.ip() == configured.ip()).then_some(left.addr)
        };
        let addr = match configured.port() {
            0 => self.0.iter().find_map(chosen).unwrap_or(configured),
            _ => configured,
        };
        self.0.extract_if(.., |left| left.addr == addr).collect()
    }

    /// The same for an address with one socket.
    pub(super) fn take_one(&mut self, key: &str, configured: SocketAddr) -> Option<TcpListener> {
        self.take(key, configured).into_iter().next().map(|inherited| inherited.socket)
    }
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

    /// Binds an address where a listener of this process closes, or one that has it among others.
    ///
    /// # Errors
    /// [`BindError`].
    fn bind_beside(plan: ListenerPlan, workers: usize) -> Result<Self, BindError> {
        let bind = |_| listener::bind_another(plan.key, plan.configured, plan.options);
        Ok(Self { plan, sockets: (0..workers.max(1)).map(bind).collect::<Result<_, _>>()? })
    }

    /// Takes over the inherited sockets of an address; `None` if there are none.
    fn inherit(plan: ListenerPlan, inherited: &mut InheritedSockets) -> Option<Self> {
        let sockets = inherited.take(plan.key, plan.configured);
        let bound = |InheritedListener { addr, socket, activated, .. }| BoundSocket {
            socket: Arc::new(socket),
            addr,
            options: plan.options,
            activated,
        };
        (!sockets.is_empty()).then(|| Self { plan, sockets: sockets.into_iter().map(bound).collect() })
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
    /// Takes over the inherited sockets, and binds the addresses that have none.
    ///
    /// # Errors
    /// [`BindError`].
    pub(super) fn bind(
        plans: &[ListenerPlan],
        workers: usize,
        retry: &BindRetry,
        inherited: &mut InheritedSockets,
    ) -> Result<Self, BindError> {
        let bound = plans.iter().map(|plan| match BoundListener::inherit(*plan, inherited) {
            Some(listener) => Ok(Some(listener)),
            None => BoundListener::bind(*plan, workers, retry),
        });
        Ok(Self(bound.filter_map(Result::transpose).collect::<Result<_, _>>()?))
    }

    /// The sockets of worker `index` of `workers`.
    pub(super) fn sockets_of_worker(&self, index: usize, workers: usize) -> Vec<BoundSocket> {
        self.0.iter().flat_map(|listener| listener.sockets_of_worker(index, workers)).collect()
    }

    /// The sockets, for a successor.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub(super) fn offer(&self) -> io::Result<Vec<OfferedSocket>> {
        let named = self.0.iter().flat_map(|listener| {
            listener.sockets.iter().map(|bound| {
                let offered = OfferedSocket::new(listener.plan.key, bound.addr, &bound.socket)?;
                Ok(OfferedSocket { activated: bound.activated, ..offered })
            })
        });
        named.collect()
    }

    /// The addresses of the listeners whose protocol `is_shown`.
    pub(super) fn addresses(&self, is_shown: impl Fn(ListenerProtocol) -> bool) -> Vec<SocketAddr> {
        let shown = self.0.iter().filter(|listener| is_shown(listener.plan.options.protocol));
        shown.map(BoundListener::addr).collect()
    }
}

/// What a reload makes of the listeners: one entry for each address of the settings, in their
/// order.
#[derive(Debug)]
pub(super) struct ListenerChange(Vec<ChangedListener>);

#[derive(Debug)]
enum ChangedListener {
    /// The listener with this index goes on, perhaps with other options.
    Kept(usize, ListenerPlan),
    New(BoundListener),
}

impl ListenerSet {
    /// Binds the addresses that appear. Nothing else changes before [`ListenerSet::apply_change`].
    ///
    /// # Errors
    /// [`BindError`].
    pub(super) fn prepare_change(
        &self,
        plans: &[ListenerPlan],
        workers: usize,
        retry: &BindRetry,
    ) -> Result<ListenerChange, BindError> {
        let mut left: Vec<(usize, &BoundListener)> = self.0.iter().enumerate().collect();
        let mut take = |is_it: &dyn Fn(&BoundListener) -> bool| {
            let at = left.iter().position(|(_, bound)| is_it(bound))?;
            Some(left.remove(at).0)
        };
        // Unchanged ones first: several listeners may have port 0.
        let mut kept: Vec<_> = plans.iter().map(|plan| take(&|bound| bound.plan == *plan)).collect();
        for (plan, kept) in plans.iter().zip(&mut kept).filter(|(_, kept)| kept.is_none()) {
            let address = plan.configured;
            // The port that the kernel chose may be written down now.
            *kept = take(&|bound| {
                bound.addr() == address || (bound.plan.configured == address && address.port() != 0)
            });
        }
        let mut change = Vec::with_capacity(plans.len());
        for (plan, kept) in plans.iter().zip(kept) {
            match kept {
                Some(index) => change.push(ChangedListener::Kept(index, *plan)),
                None => {
                    let bound = if left.iter().any(|(_, bound)| overlap(bound.addr(), plan.configured)) {
                        BoundListener::bind_beside(*plan, workers).map(Some)
                    } else {
                        BoundListener::bind(*plan, workers, retry)
                    };
                    change.extend(bound?.map(ChangedListener::New));
                }
            }
        }
        Ok(ListenerChange(change))
    }

    /// Takes over a change: the commands for each worker.
    pub(super) fn apply_change(&mut self, change: ListenerChange, workers: usize) -> Vec<Vec<WorkerCommand>> {
        let mut commands: Vec<Vec<WorkerCommand>> = (0..workers).map(|_| Vec::new()).collect();
        let mut before: Vec<Option<BoundListener>> =
            std::mem::take(&mut self.0).into_iter().map(Some).collect();
        for changed in change.0 {
            let (bound, released) = match changed {
                ChangedListener::New(bound) => (bound, None),
                ChangedListener::Kept(index, plan) => {
                    let Some(mut bound) = before.get_mut(index).and_then(Option::take) else { continue };
                    let is_same = bound.plan.options == plan.options;
                    bound.plan = plan;
                    if is_same {
                        self.0.push(bound);
                        continue;
                    }
                    bound.sockets.iter_mut().for_each(|socket| socket.options = plan.options);
                    let addr = bound.addr();
                    (bound, Some(addr))
                }
            };
            for (index, commands) in commands.iter_mut().enumerate() {
                commands.extend(released.map(WorkerCommand::Release));
                commands
                    .extend(bound.sockets_of_worker(index, workers).into_iter().map(WorkerCommand::Listen));
            }
            self.0.push(bound);
        }
        for gone in before.iter().flatten() {
            commands.iter_mut().for_each(|commands| commands.push(WorkerCommand::Close(gone.addr())));
        }
        commands
    }
}

/// Whether a socket of one address would take connections of the other.
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    one.port() == other.port() && one.is_ipv4() == other.is_ipv4()
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
    use std::net::Ipv4Addr;
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

    fn plan(addr: &str, protocol: ListenerProtocol) -> ListenerPlan {
        ListenerPlan { key: "test", configured: addr.parse().unwrap(), options: protocol.into() }
    }

    /// The commands for the first of two workers, shortened, and the addresses afterwards.
    fn changed(set: &mut ListenerSet, plans: &[ListenerPlan]) -> (Vec<String>, Vec<SocketAddr>) {
        let retry = BindRetry { predecessor: Duration::ZERO, stop: watch::channel(true).1 };
        let change = set.prepare_change(plans, 2, &retry).unwrap();
        let commands = set.apply_change(change, 2);
        let shown = |command: &WorkerCommand| match command {
            WorkerCommand::Listen(bound) => format!("listen {} {:?}", bound.addr, bound.options.protocol),
            other => format!("{other:?}"),
        };
        assert_eq!(commands.len(), 2);
        (commands[0].iter().map(shown).collect(), set.addresses(|_| true))
    }

    #[test]
    fn workers_get_commands_for_changed_listeners() {
        let (http, https) = (ListenerProtocol::Http, ListenerProtocol::Https);
        let retry = BindRetry { predecessor: Duration::ZERO, stop: watch::channel(false).1 };
        let plans = [plan("127.0.0.1:0", http), plan("127.0.0.1:0", https)];
        let mut set = ListenerSet::bind(&plans, 2, &retry, &mut InheritedSockets::default()).unwrap();
        let [first, second] = set.addresses(|_| true)[..] else { panic!() };
        assert_eq!(changed(&mut set, &plans), (vec![], vec![first, second]));
        // The first one vanishes; the order of the rest means nothing.
        let (commands, addresses) = changed(&mut set, &plans[1..]);
        assert_eq!((commands, addresses), (vec![format!("Close({first})")], vec![second]));
        // The chosen port is written down, with other options.
        let written = plan(&second.to_string(), http);
        let (commands, addresses) = changed(&mut set, &[written]);
        assert_eq!(addresses, [second]);
        assert_eq!(commands, [format!("Release({second})"), format!("listen {second} Http")]);
        assert_eq!(changed(&mut set, &[written]).0, Vec::<String>::new());
        // A wider address with its port takes its place.
        let wide = plan(&format!("0.0.0.0:{}", second.port()), http);
        let (commands, addresses) = changed(&mut set, &[wide, plans[1]]);
        assert_eq!((commands.len(), commands[2].clone()), (3, format!("Close({second})")));
        assert_eq!(addresses[0], wide.configured);
    }

    #[test]
    fn a_change_that_cannot_be_bound_changes_nothing() {
        let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = plan(&other.local_addr().unwrap().to_string(), ListenerProtocol::Http);
        let own = plan("127.0.0.1:0", ListenerProtocol::Http);
        let retry = BindRetry { predecessor: Duration::ZERO, stop: watch::channel(true).1 };
        let mut set = ListenerSet::bind(&[own], 2, &retry, &mut InheritedSockets::default()).unwrap();
        let error = set.prepare_change(&[taken], 2, &retry).unwrap_err();
        assert!(error.to_string().contains("cannot listen on 127.0.0.1"), "{error}");
        assert_eq!(changed(&mut set, &[own]).0, Vec::<String>::new());
    }

    fn localhost(port: u16) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, port).into()
    }

    #[test]
    fn inherited_sockets_are_taken_by_address() {
        let offered: Vec<_> = [(1, "http"), (2, "https"), (3, "https")]
            .into_iter()
            .flat_map(|(sockets, key)| {
                let bound = bound(sockets);
                bound
                    .sockets
                    .into_iter()
                    .map(move |socket| OfferedSocket::new(key, socket.addr, &socket.socket))
            })
            .collect::<Result<_, _>>()
            .unwrap();
        let mut inherited = InheritedSockets::new(offered).unwrap();
        assert!(inherited.take("http", localhost(1)).is_empty());
        let three = inherited.0.last().unwrap().addr;
        assert_eq!(inherited.take("other", three).len(), 3, "whatever it served before");
        assert_eq!(inherited.take("https", localhost(0)).len(), 2);
        assert!(inherited.take("https", localhost(0)).is_empty());
        assert_eq!(inherited.take("http", localhost(0)).len(), 1);
        assert!(inherited.0.is_empty());
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
