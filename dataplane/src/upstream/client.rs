//! The upstream client of a worker: which nodes are tried, in which order and for how long, and a
//! connection to the first that accepts one. Contract section 8.
//!
//! `exchange` adds requests to it, over the pool; TCP proxying uses the connection as it is.

use std::cell::Cell;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::StatusCode;
use model::{KeepalivePool, Node, Snapshot, Timeouts, Upstream};

use super::attempts::Attempts;
use super::balancer::Balancer;
use super::client_tls::{Alpn, ClientTlsConfigs, ClientTlsError};
use super::connector::{self, ConnectContext, ConnectDeadline, ConnectError, TlsParams, UpstreamStream};
use super::host_header;
use super::pool::Pool;
use super::resolver::ResolverCache;
use crate::http::head::HeadLimits;
use crate::http::interim::InterimResponses;
use crate::io::coarse_timer::CoarseTimers;
use crate::observability::HasReason;
use crate::reason::Reason;

/// Of one name, since each may cost a connect timeout.
const ADDRESSES_MAX: usize = 4;

pub(crate) struct UpstreamClient {
    pub pool: Rc<Pool>,
    pub connect_context: ConnectContext,
    pub settings: Cell<ClientSettings>,
    /// For the timeouts of responses.
    pub timers: Rc<CoarseTimers>,
    pub resolver: ResolverCache,
    /// One for the process.
    pub tls_configs: Arc<ClientTlsConfigs>,
}

/// The settings of a worker's upstream client. A connection keeps those that it started with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ClientSettings {
    /// The most open connections to one node for requests, where the upstream has no maximum.
    pub connections_per_node: u32,
    /// For upstreams without `keepalive_pool`.
    pub keepalive: KeepalivePool,
    /// How large the head of a response may be.
    pub head: HeadLimits,
    /// Whether header names keep their case.
    pub preserve_header_case: bool,
}

/// Where a request or TCP connection goes.
pub(crate) struct UpstreamTarget<'a> {
    /// Has the resources that the upstream refers to.
    pub snapshot: &'a Snapshot,
    pub upstream: &'a Upstream,
    /// The route's, else the upstream's, else the defaults.
    pub timeouts: Timeouts,
    /// The client's name for the server, for `pass_host: pass`: the authority of a request, the SNI
    /// of a TCP connection.
    pub authority: Option<&'a str>,
    /// Where interim responses go. `None`: nowhere.
    pub interim: Option<&'a InterimResponses>,
    /// The end of a gRPC call.
    pub deadline: Option<Instant>,
}

/// No connection to the upstream.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// The upstream's client certificate is not available.
    #[error(transparent)]
    Identity(#[from] ClientTlsError),
    /// A request for an upstream of TCP connections.
    #[error("no HTTP request can be sent to an upstream of scheme {0}")]
    Scheme(&'static str),
    /// A handshake for an upstream of another protocol.
    #[error("no WebSocket can be opened to an upstream of scheme {0}, only of http or https")]
    WebSocketScheme(&'static str),
    #[error("no valid upstream node")]
    NoNode,
    /// Only requests have a default port.
    #[error("the node {0:?} has no port, which streams need")]
    NoPort(String),
    #[error("the node's name {0:?} does not resolve")]
    Resolve(String),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// `retry_timeout` passed, after so many retries.
    #[error("proxy retry timeout, retry count: {0}")]
    RetryTimeout(usize),
}

impl HasReason for UpstreamError {
    fn reason(&self) -> Reason {
        match self {
            Self::Identity(_) => Reason::UpstreamIdentity,
            Self::Scheme(_) | Self::WebSocketScheme(_) => Reason::UpstreamScheme,
            Self::NoNode | Self::NoPort(_) => Reason::NoNode,
            Self::Resolve(_) => Reason::UpstreamName,
            Self::Connect(error) => error.reason(),
            Self::RetryTimeout(_) => Reason::RetryTimeout,
        }
    }
}

impl UpstreamError {
    /// The status of a failed attempt in `$upstream_status`: 504 where the node was too slow, else
    /// 502. `None`: no node was dialled.
    pub(super) fn attempt_status(&self) -> Option<StatusCode> {
        if matches!(self, Self::Connect(_)) { self.reason().status() } else { None }
    }
}

/// The nodes to try, one after the other, as often and as long as the upstream allows.
pub struct NodeAttempts<'a> {
    upstream: &'a Upstream,
    order: Vec<usize>,
    count: usize,
    max: usize,
    /// The time of the first attempt, and `retry_timeout`, where there is one.
    limit: Option<(Instant, Duration)>,
}

impl<'a> NodeAttempts<'a> {
    pub fn new(upstream: &'a Upstream, balancer: &Balancer) -> Self {
        let nodes = upstream.nodes.len();
        let max = upstream.retries.map_or(nodes, |retries| usize::try_from(retries).unwrap_or(64) + 1);
        let order = if max > 1 && nodes > 1 {
            balancer.node_order()
        } else {
            balancer.first_node().into_iter().collect()
        };
        // No node is tried twice where there is another (`t/node/upstream-retries.t`).
        let max = if order.len() > 1 { max.min(order.len()) } else { max };
        let limit = upstream.retry_timeout.map(|limit| (Instant::now(), limit));
        Self { upstream, order, count: 0, max, limit }
    }

    /// `None`: there is no node, or the allowed attempts are used up.
    ///
    /// # Errors
    /// [`UpstreamError::RetryTimeout`] when `retry_timeout` has passed.
    pub fn next_node(&mut self) -> Result<Option<&'a Node>, UpstreamError> {
        if self.count >= self.max || self.order.is_empty() {
            return Ok(None);
        }
        if self.count > 0
            && let Some((started, limit)) = self.limit
            && started.elapsed() >= limit
        {
            return Err(UpstreamError::RetryTimeout(self.count - 1));
        }
        let index = self.order.get(self.count % self.order.len());
        self.count += 1;
        Ok(index.and_then(|index| self.upstream.nodes.get(*index)))
    }
}

impl UpstreamClient {
    /// A new connection for a TCP stream, to the first node that accepts one. It begins with
    /// `preamble`, before TLS. `record` gets each attempt.
    ///
    /// # Errors
    /// [`UpstreamError`] of the last attempt.
    pub(crate) async fn connect(
        &self,
        target: &UpstreamTarget<'_>,
        preamble: Option<&[u8]>,
        record: &mut Attempts,
    ) -> Result<UpstreamStream, UpstreamError> {
        let prepared = self.tls_configs.prepared(target.upstream);
        let config = self.tls_configs.find(target.upstream, &prepared, target.snapshot)?;
        let mut attempts = NodeAttempts::new(target.upstream, &prepared.balancer);
        let mut last = UpstreamError::NoNode;
        while let Some(node) = attempts.next_node()? {
            let host = host_header::upstream_host(target.upstream, target.authority, node);
            record.begin();
            let connect = async |addr: SocketAddr| {
                record.set_addr(addr);
                let server_name = || host_header::server_name(&host, addr.ip());
                let tls = config.as_ref().map(|config| (&**config, Alpn::None, server_name()));
                let max = target.upstream.keepalive.and_then(|keepalive| keepalive.max_connections);
                self.connect_unpooled(addr, tls, target.timeouts.connect, max, preamble).await
            };
            match self.connect_node(node, node.port, connect).await {
                Ok(stream) => {
                    record.connected(false);
                    return Ok(stream);
                }
                Err(error) => last = error,
            }
            record.failed(last.attempt_status());
            tracing::debug!(node = %node.host, error = %last, "a node failed");
        }
        Err(last)
    }

    /// A connection for one client, which never enters the pool: for a TCP stream, or a WebSocket
    /// with its handshake. With `max` it takes a slot among those of its node.
    pub(super) async fn connect_unpooled(
        &self,
        addr: SocketAddr,
        tls: TlsParams<'_>,
        timeout: Duration,
        max: Option<u32>,
        preamble: Option<&[u8]>,
    ) -> Result<UpstreamStream, ConnectError> {
        let deadline = ConnectDeadline::start(timeout);
        let slot = match max {
            None => None,
            Some(max) => {
                let node = self.pool.node(addr, max);
                let limited = |within| ConnectError::NodeLimit { addr, max, within };
                Some(deadline.limit(node.slot(), limited).await?)
            }
        };
        connector::connect(addr, tls, deadline, &self.connect_context, slot, preamble).await
    }

    /// Connects to a node by `connect`, at the first of its addresses that accepts.
    ///
    /// # Errors
    /// [`UpstreamError`] of the last address.
    pub(super) async fn connect_node<T>(
        &self,
        node: &Node,
        port: Option<u16>,
        connect: impl AsyncFnMut(SocketAddr) -> Result<T, ConnectError>,
    ) -> Result<T, UpstreamError> {
        let port = port.ok_or_else(|| UpstreamError::NoPort(node.host.clone()))?;
        let addresses = self.resolver.resolve(&node.host).await;
        let connected = connect_first(&addresses, port, connect).await?;
        connected.ok_or_else(|| UpstreamError::Resolve(node.host.clone()))
    }
}

/// Tries the addresses in turn, since nothing may listen at some of a name's addresses (`localhost`
/// is often `::1` first). `None`: there is no address.
async fn connect_first<T>(
    addresses: &[IpAddr],
    port: u16,
    mut connect: impl AsyncFnMut(SocketAddr) -> Result<T, ConnectError>,
) -> Result<Option<T>, ConnectError> {
    let mut last = None;
    for &ip in addresses.iter().take(ADDRESSES_MAX) {
        match connect(SocketAddr::new(ip, port)).await {
            Ok(connection) => return Ok(Some(connection)),
            Err(error) => last = Some(error),
        }
    }
    last.map_or(Ok(None), Err)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::io;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use model::CacheSlot;
    use model::{PassHost, Scheme, UpstreamTls};

    use super::*;

    fn upstream(nodes: usize, retries: Option<u32>) -> Upstream {
        let node = |port| Node { host: "127.0.0.1".into(), port: Some(port), weight: 1, priority: 0 };
        Upstream {
            id: None,
            scheme: Scheme::Tcp,
            nodes: (1..).take(nodes).map(node).collect(),
            retries,
            retry_timeout: None,
            timeout: None,
            pass_host: PassHost::Pass,
            upstream_host: None,
            keepalive: None,
            tls: UpstreamTls::default(),
            http2: false,
            cache: CacheSlot::new(),
            blocked: None,
        }
    }

    /// The ports of the nodes that are tried.
    fn attempted_ports(upstream: &Upstream) -> Vec<u16> {
        let mut attempts = NodeAttempts::new(upstream, &Balancer::new(upstream));
        std::iter::from_fn(|| attempts.next_node().unwrap()).map(|node| node.port.unwrap()).collect()
    }

    #[test]
    fn each_node_is_tried_once_where_there_are_several() {
        assert_eq!(attempted_ports(&upstream(3, None)), [1, 2, 3]);
        assert_eq!(attempted_ports(&upstream(3, Some(0))), [1]);
        assert_eq!(attempted_ports(&upstream(3, Some(1))), [1, 2]);
        assert_eq!(attempted_ports(&upstream(2, Some(4))), [1, 2]);
        assert_eq!(attempted_ports(&upstream(1, Some(2))), [1, 1, 1]);
        assert!(attempted_ports(&upstream(0, None)).is_empty());
        assert!(attempted_ports(&upstream(0, Some(5))).is_empty());
    }

    #[test]
    fn retry_timeout_does_not_limit_the_first_attempt() {
        let upstream = Upstream { retry_timeout: Some(Duration::ZERO), ..upstream(3, None) };
        let mut attempts = NodeAttempts::new(&upstream, &Balancer::new(&upstream));
        assert!(attempts.next_node().unwrap().is_some());
        assert!(matches!(attempts.next_node(), Err(UpstreamError::RetryTimeout(0))));
    }

    /// Connects where only `accepting` accepts. Gives the result and the addresses that were tried.
    fn connect(
        addresses: &[IpAddr],
        accepting: Option<IpAddr>,
    ) -> (Result<Option<SocketAddr>, ConnectError>, Vec<IpAddr>) {
        let tried = RefCell::new(Vec::new());
        let connect = async |addr: SocketAddr| {
            tried.borrow_mut().push(addr.ip());
            let error = io::ErrorKind::ConnectionRefused.into();
            if accepting == Some(addr.ip()) { Ok(addr) } else { Err(ConnectError::Tcp { addr, error }) }
        };
        let connected =
            pin!(connect_first(addresses, 443, connect)).poll(&mut Context::from_waker(Waker::noop()));
        let Poll::Ready(connected) = connected else { panic!("nothing to wait for") };
        (connected, tried.into_inner())
    }

    #[test]
    fn the_first_address_that_accepts_is_taken() {
        let addresses: Vec<IpAddr> = (1..=9).map(|last| IpAddr::from([192, 0, 2, last])).collect();
        let (connected, tried) = connect(&addresses, Some(addresses[2]));
        assert_eq!(connected.unwrap(), Some(SocketAddr::new(addresses[2], 443)));
        assert_eq!(tried, addresses[..3]);
        let (connected, tried) = connect(&addresses, None);
        assert!(matches!(connected, Err(ConnectError::Tcp { addr, .. }) if addr.ip() == addresses[3]));
        assert_eq!(tried, addresses[..ADDRESSES_MAX]);
        assert!(matches!(connect(&[], None), (Ok(None), tried) if tried.is_empty()));
    }
}
