//! Reaching an upstream: which nodes are tried, in which order and for how long, and a connection
//! to the first that takes one. Contract section 8.
//!
//! Stands between routing and what is then said: the HTTP exchange (which has its pool in between)
//! or a stream.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use model::Snapshot;
use model::resource::{KeepalivePool, Node, Timeouts, Upstream};
use rustls::ClientConfig;

use super::balancer::Balancer;
use super::client_tls::{ClientTlsConfigs, ClientTlsError};
use super::connector::{self, ConnectError, UpstreamStream};
use super::host_header;
use super::places::ConnectionPermits;
use super::pool::Pool;
use super::resolver::ResolverCache;
use crate::http::head::HeadLimits;
use crate::io::coarse_timer::CoarseTimers;
use crate::observability::reason::HasReason;
use crate::reason::Reason;

/// Of one name; each may cost a connect time-out.
pub const ADDRESSES_MAX: usize = 4;

/// What a worker needs to reach upstreams.
pub struct UpstreamClient {
    /// Idle connections.
    pub pool: Rc<Pool>,
    /// How many connections may be open.
    pub permits: ConnectionPermits,
    /// For time-outs while an answer is waited for.
    pub timers: Rc<CoarseTimers>,
    /// Node names.
    pub resolver: ResolverCache,
    /// Client sides of TLS; one for the process.
    pub tls_configs: Arc<ClientTlsConfigs>,
    /// Limits of idle connections where the upstream sets none.
    pub keepalive: KeepalivePool,
    /// How large the head of an answer may be.
    pub head: HeadLimits,
    /// Whether header names keep their case.
    pub preserve_header_case: bool,
}

/// What routing decided.
pub struct UpstreamTarget<'a> {
    /// Where the upstream's references are looked up.
    pub snapshot: &'a Snapshot,
    /// The upstream.
    pub upstream: &'a Upstream,
    /// The route's, else the upstream's, else the defaults.
    pub timeouts: Timeouts,
    /// What the client asked for, for `pass_host: pass`: a request's authority, a stream's SNI.
    pub authority: Option<&'a str>,
}

/// No node to talk to.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// The upstream's own certificate cannot be had.
    #[error(transparent)]
    Identity(#[from] ClientTlsError),
    /// A request for an upstream that is for streams.
    #[error("no HTTP request can be sent to an upstream of scheme {0}")]
    Scheme(&'static str),
    /// No node can be used.
    #[error("no valid upstream node")]
    NoNode,
    /// A stream to a node that says no port.
    #[error("the node {0:?} has no port, which streams need")]
    NoPort(String),
    /// The node's name does not resolve.
    #[error("the node's name {0:?} does not resolve")]
    Resolve(String),
    /// No connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// `retry_timeout` passed.
    #[error("proxy retry timeout, retry count: {0}")]
    RetryTimeout(usize),
}

impl HasReason for UpstreamError {
    fn reason(&self) -> Reason {
        match self {
            Self::Identity(_) => Reason::UpstreamIdentity,
            Self::Scheme(_) => Reason::UpstreamScheme,
            Self::NoNode | Self::NoPort(_) => Reason::NoNode,
            Self::Resolve(_) => Reason::UpstreamName,
            Self::Connect(error) => error.reason(),
            Self::RetryTimeout(_) => Reason::RetryTimeout,
        }
    }
}

/// The nodes to try, one after the other, as often and as long as the upstream allows.
pub struct NodeAttempts<'a> {
    upstream: &'a Upstream,
    order: Vec<usize>,
    count: usize,
    max: usize,
    /// When the first was, and `retry_timeout`, where there is one.
    limit: Option<(Instant, Duration)>,
}

impl<'a> NodeAttempts<'a> {
    /// From now on.
    pub fn new(upstream: &'a Upstream, balance: &Balancer) -> Self {
        let nodes = upstream.nodes.len();
        let max = upstream.retries.map_or(nodes, |retries| usize::try_from(retries).unwrap_or(64) + 1);
        let order = if max > 1 && nodes > 1 {
            balance.node_order()
        } else {
            balance.first_node().into_iter().collect()
        };
        let limit = upstream.retry_timeout.map(|limit| (Instant::now(), limit));
        Self { upstream, order, count: 0, max, limit }
    }

    /// The next node; `None` when there is none or it was tried often enough.
    ///
    /// # Errors
    /// [`ReachError::Retries`] when `retry_timeout` has passed.
    pub fn next_node(&mut self) -> Result<Option<&'a Node>, UpstreamError> {
        if self.count >= self.max || self.order.is_empty() {
            return Ok(None);
        }
        if self.count > 0
            && let Some((started, limit)) = self.limit
            && started.elapsed() >= limit
        {
            return Err(UpstreamError::RetryTimeout(self.count));
        }
        let index = self.order.get(self.count % self.order.len());
        self.count += 1;
        Ok(index.and_then(|index| self.upstream.nodes.get(*index)))
    }
}

impl UpstreamClient {
    /// A fresh connection for a stream, to the first node that takes one.
    ///
    /// # Errors
    /// [`ReachError`] of the last try.
    pub async fn connect(&self, plan: &UpstreamTarget<'_>) -> Result<UpstreamStream, UpstreamError> {
        let prepared = self.tls_configs.prepared(plan.upstream);
        let config = if plan.upstream.scheme.is_encrypted() {
            Some(self.tls_configs.client_config(plan.upstream, &prepared, plan.snapshot)?.without_alpn())
        } else {
            None
        };
        let mut tries = NodeAttempts::new(plan.upstream, &prepared.balancer);
        let mut last = UpstreamError::NoNode;
        while let Some(node) = tries.next_node()? {
            match self.connect_node(plan, config.as_ref(), node).await {
                Ok(dialled) => return Ok(dialled),
                Err(error) => last = error,
            }
            tracing::debug!(node = %node.host, error = %last, "a node failed");
        }
        Err(last)
    }

    async fn connect_node(
        &self,
        plan: &UpstreamTarget<'_>,
        config: Option<&Arc<ClientConfig>>,
        node: &Node,
    ) -> Result<UpstreamStream, UpstreamError> {
        let port = node.port.ok_or_else(|| UpstreamError::NoPort(node.host.clone()))?;
        let host = host_header::upstream_host(plan.upstream, plan.authority, node);
        let mut failed = UpstreamError::Resolve(node.host.clone());
        for &ip in self.resolver.resolve(&node.host).await.iter().take(ADDRESSES_MAX) {
            let tls = config.map(|config| (config, host_header::server_name(&host, ip)));
            match connector::connect(SocketAddr::new(ip, port), tls, plan.timeouts.connect, &self.permits)
                .await
            {
                Ok(dialled) => return Ok(dialled),
                Err(error) => failed = error.into(),
            }
        }
        Err(failed)
    }
}

#[cfg(test)]
mod tests {
    use model::CacheSlot;
    use model::resource::{PassHost, Scheme, UpstreamTls};

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
            tls: UpstreamTls { identity: None, verify: false },
            prepared: CacheSlot::new(),
            blocked: None,
        }
    }

    /// The ports of the nodes that are tried.
    fn tried(upstream: &Upstream) -> Vec<u16> {
        let mut tries = NodeAttempts::new(upstream, &Balancer::new(upstream));
        std::iter::from_fn(|| tries.next_node().unwrap()).map(|node| node.port.unwrap()).collect()
    }

    #[test]
    fn each_node_is_tried_once_unless_retries_says_otherwise() {
        assert_eq!(tried(&upstream(3, None)), [1, 2, 3]);
        assert_eq!(tried(&upstream(3, Some(0))), [1]);
        assert_eq!(tried(&upstream(2, Some(4))), [1, 2, 1, 2, 1]);
        assert_eq!(tried(&upstream(1, Some(2))), [1, 1, 1]);
        assert!(tried(&upstream(0, None)).is_empty());
        assert!(tried(&upstream(0, Some(5))).is_empty());
    }

    #[test]
    fn the_first_try_is_free_and_later_ones_have_their_time() {
        let upstream = Upstream { retry_timeout: Some(Duration::ZERO), ..upstream(3, None) };
        let mut tries = NodeAttempts::new(&upstream, &Balancer::new(&upstream));
        assert!(tries.next_node().unwrap().is_some());
        assert!(matches!(tries.next_node(), Err(UpstreamError::RetryTimeout(1))));
    }
}
