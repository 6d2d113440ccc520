//! The connections of a worker to upstream nodes: kept for the next request, and bounded for each
//! node ([`node`]) and altogether ([`permits`]).
//!
//! Invariant 7: a connection belongs to one identity. The key has all that decides who the peers
//! are to each other: the node's address, the protocol, the server name, and the generation of the
//! TLS configuration, which is new for every client certificate, trust and verification setting.
//! One pool a worker; cores share nothing.

pub(crate) mod idle;
pub(crate) mod key;
pub(crate) mod node;
pub(crate) mod permits;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::RandomState;
use hyper::client::conn::http1::SendRequest;
use model::KeepalivePool;

use self::idle::Http1Connection;
use self::key::{ConnectionKey, UpstreamProtocol};
use self::node::{Available, NodeConnections, NodePool, StreamSlot};
use super::client_tls::ClientTlsConfig;
use super::request_body::RequestBody;
use crate::io::flag::Flag;
use crate::runtime;

/// Most nodes that [`Pool::node_states`] gives.
const STATES_MAX: usize = 1_000;

/// How often idle connections past their time are closed, and those of identities that are no
/// longer used, which may stay open for a second.
const SWEEP_INTERVAL: Duration = Duration::from_millis(500);

#[derive(Default)]
pub(crate) struct Pool {
    // By address and maximum: upstreams with another maximum have connections of their own. Looked
    // up for every request, so the hash is cheap.
    nodes: RefCell<HashMap<(SocketAddr, u32), Rc<NodePool>, RandomState>>,
    in_use: Rc<Cell<usize>>,
    queued: Rc<Cell<usize>>,
}

/// Counts one connection of the pool as in use, until it is dropped.
struct InUseGuard(Rc<Cell<usize>>);

impl InUseGuard {
    fn new(in_use: &Rc<Cell<usize>>) -> Self {
        in_use.set(in_use.get() + 1);
        Self(Rc::clone(in_use))
    }
}

impl Drop for InUseGuard {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

/// Raises the flag that ends a connection's task. Without it hyper, whose response has ended or was
/// dropped, goes on forwarding the body of the request for as long as the client makes it last.
struct AbortOnDrop(Option<Rc<Flag>>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        if let Some(abort) = &self.0 {
            abort.raise();
        }
    }
}

/// A connection in use. [`PooledConnection::release`] returns it to the pool; a dropped one is
/// closed at once, whatever it still had to send.
pub(crate) struct PooledConnection {
    pub(super) sender: SendRequest<RequestBody>,
    abort: AbortOnDrop,
    node: Rc<NodePool>,
    _in_use: InUseGuard,
    key: ConnectionKey,
    keepalive: KeepalivePool,
    requests: u32,
    config: Option<Arc<ClientTlsConfig>>,
    /// Another request may be sent on it afterwards.
    pub(super) reusable: bool,
    /// It has served a request, so the node may have closed it in the meantime.
    pub reused: bool,
}

/// What one exchange has of a connection.
pub(crate) enum PoolLease {
    Http1(PooledConnection),
    Http2(StreamSlot),
}

impl Pool {
    /// An empty pool; its sweeper runs as long as the worker.
    pub(crate) fn start() -> Rc<Self> {
        let pool = Rc::new(Self::default());
        let weak = Rc::downgrade(&pool);
        runtime::spawn(async move {
            loop {
                runtime::sleep(SWEEP_INTERVAL).await;
                let Some(pool) = weak.upgrade() else { return };
                pool.sweep();
            }
        });
        pool
    }

    /// The connections to an address, of which `max` may be open.
    pub(crate) fn node(&self, addr: SocketAddr, max: u32) -> Rc<NodePool> {
        let mut nodes = self.nodes.borrow_mut();
        let node = nodes
            .entry((addr, max))
            .or_insert_with(|| Rc::new(NodePool::new(addr, max, Rc::clone(&self.queued))));
        Rc::clone(node)
    }

    /// Takes an open connection for this key, or a stream on one. `fresh`: no HTTP/1 connection
    /// that has served a request.
    pub(crate) fn checkout(
        &self,
        node: &Rc<NodePool>,
        key: &ConnectionKey,
        keepalive: KeepalivePool,
        fresh: bool,
    ) -> Option<PoolLease> {
        let available = node.take(key, fresh)?;
        Some(self.check_out(node, key.clone(), keepalive, available))
    }

    /// Counts a connection of `node` as in use.
    pub(crate) fn check_out(
        &self,
        node: &Rc<NodePool>,
        key: ConnectionKey,
        keepalive: KeepalivePool,
        available: Available,
    ) -> PoolLease {
        let Http1Connection { sender, abort, requests, config } = match available {
            Available::Connection(connection) => connection,
            Available::Stream(stream) => return PoolLease::Http2(stream),
        };
        PoolLease::Http1(PooledConnection {
            sender,
            abort: AbortOnDrop(Some(abort)),
            node: Rc::clone(node),
            _in_use: InUseGuard::new(&self.in_use),
            key,
            keepalive,
            requests,
            config,
            reusable: true,
            reused: requests > 0,
        })
    }

    /// Counts a connection as in use that was opened for one request, and is not kept.
    pub(crate) fn unpooled(
        &self,
        addr: SocketAddr,
        sender: SendRequest<RequestBody>,
        abort: Rc<Flag>,
    ) -> PooledConnection {
        PooledConnection {
            sender,
            abort: AbortOnDrop(Some(abort)),
            // Of no use to others: the connections of the address are not counted with it.
            node: Rc::new(NodePool::new(addr, 0, Rc::default())),
            _in_use: InUseGuard::new(&self.in_use),
            key: ConnectionKey { protocol: UpstreamProtocol::Http1, tls: None },
            keepalive: KeepalivePool { size: 0, requests: 1, ..KeepalivePool::default() },
            requests: 0,
            config: None,
            reusable: false,
            reused: false,
        }
    }

    pub(crate) fn idle_count(&self) -> usize {
        self.nodes.borrow().values().map(|node| node.idle_count()).sum()
    }

    /// Connections that serve requests.
    pub(crate) fn in_use(&self) -> usize {
        self.in_use.get() + self.nodes.borrow().values().map(|node| node.busy_http2()).sum::<usize>()
    }

    /// The nodes with the most connections.
    pub(crate) fn node_states(&self) -> Vec<NodeConnections> {
        let mut states: Vec<_> = self.nodes.borrow().values().map(|node| node.state()).collect();
        states.sort_unstable_by_key(|state| std::cmp::Reverse(state.open));
        states.truncate(STATES_MAX);
        states
    }

    /// Requests that wait for a connection, because their node has as many as it may have.
    pub(crate) fn queued(&self) -> usize {
        self.queued.get()
    }

    /// Closes every idle connection, at the end of a drain.
    pub(crate) fn clear(&self) {
        self.nodes.borrow().values().for_each(|node| node.clear());
    }

    /// Closes the connection that has been idle for longest, if there is one.
    pub(crate) fn evict_oldest(&self) {
        let nodes = self.nodes.borrow();
        let oldest = nodes.values().filter_map(|node| Some((node.oldest_idle()?, node)));
        if let Some((_, node)) = oldest.min_by_key(|(since, _)| *since) {
            drop(node.remove_oldest());
        }
    }

    fn sweep(&self) {
        self.nodes.borrow_mut().retain(|_, node| {
            node.sweep();
            // A second count of one address would begin while the first goes on.
            !node.is_unused() || Rc::strong_count(node) > 1
        });
    }
}

impl PooledConnection {
    /// The address of the node.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.node.addr
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// Returns the connection to the pool, within the limits of `keepalive_pool`.
    pub(crate) fn release(mut self) {
        // From here on hyper ends the connection, in order.
        let Some(abort) = self.abort.0.take() else { return };
        let requests = self.requests.saturating_add(1);
        if self.reusable && requests < self.keepalive.requests && !self.is_closed() {
            let connection = Http1Connection { sender: self.sender, abort, requests, config: self.config };
            if !connection.is_retired() {
                self.node.release(self.key, connection, self.keepalive);
            }
        }
    }
}
