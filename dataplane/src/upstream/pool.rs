//! Idle connections to upstream nodes, kept for the next request.
//!
//! Invariant 7: a connection belongs to one identity. The key holds all that decides who the peers
//! are to each other: the address, the name asked for, and the generation of the TLS configuration,
//! which is new for every client certificate, trust and verification setting. One pool a worker;
//! nothing is shared between cores.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;
use hyper::client::conn::http1::SendRequest;
use model::resource::KeepalivePool;

use super::request_body::RequestBody;
use crate::io::flag::Flag;
use crate::runtime;

/// How often idle connections past their time are closed.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);

/// What a connection can be used for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PoolKey {
    /// The node's address.
    pub addr: SocketAddr,
    /// TLS: the name asked for and the configuration's generation. `None`: clear text.
    pub tls: Option<(Rc<str>, u64)>,
}

/// A worker's idle connections.
#[derive(Default)]
pub struct Pool {
    // Every request asks: a hash that is cheap, and seeded at random, since a client may choose the name in
    // a key.
    idle: RefCell<HashMap<PoolKey, Vec<IdleConnection>, RandomState>>,
    in_use: Cell<usize>,
}

/// A pool with one more lease, until it is dropped.
struct InUseGuard(Rc<Pool>);

impl InUseGuard {
    fn new(pool: &Rc<Pool>) -> Self {
        pool.in_use.set(pool.in_use.get() + 1);
        Self(Rc::clone(pool))
    }
}

impl Drop for InUseGuard {
    fn drop(&mut self) {
        self.0.in_use.set(self.0.in_use.get().saturating_sub(1));
    }
}

/// Raises the flag that ends a connection's task. Without it hyper, whose answer has ended or was
/// dropped, goes on forwarding the body of the request for as long as the client makes it last.
struct AbortOnDrop(Option<Rc<Flag>>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        if let Some(abort) = &self.0 {
            abort.raise();
        }
    }
}

/// A connection that was just made.
pub struct HttpConnection {
    /// Sends requests on it.
    pub sender: SendRequest<RequestBody>,
    /// Ends its task.
    pub abort: Rc<Flag>,
}

struct IdleConnection {
    sender: SendRequest<RequestBody>,
    abort: Rc<Flag>,
    since: Instant,
    keep: Duration,
    served: u32,
}

/// A connection in use. Given back with [`Lease::give_back`]; dropped, it is closed at once,
/// whatever it still had to send.
pub struct PooledConnection {
    pub(super) sender: SendRequest<RequestBody>,
    abort: AbortOnDrop,
    pool: InUseGuard,
    key: PoolKey,
    keepalive: KeepalivePool,
    served: u32,
    /// Another request may be sent on it afterwards.
    pub(super) reusable: bool,
    /// It came from the pool: the node may have closed it in the meantime.
    pub reused: bool,
}

impl Pool {
    /// An empty pool; its sweeper runs as long as the worker.
    pub fn start() -> Rc<Self> {
        let pool = Rc::new(Self::default());
        let swept = Rc::downgrade(&pool);
        runtime::spawn(async move {
            loop {
                runtime::sleep(SWEEP_INTERVAL).await;
                let Some(pool) = swept.upgrade() else { return };
                pool.sweep();
            }
        });
        pool
    }

    /// A living idle connection for this key.
    pub fn checkout(self: &Rc<Self>, key: &PoolKey, keepalive: KeepalivePool) -> Option<PooledConnection> {
        let mut idle = self.idle.borrow_mut();
        let list = idle.get_mut(key)?;
        // The youngest first: the node is least likely to have given it up.
        while let Some(candidate) = list.pop() {
            if candidate.sender.is_ready() && candidate.since.elapsed() < candidate.keep {
                return Some(PooledConnection {
                    sender: candidate.sender,
                    abort: AbortOnDrop(Some(candidate.abort)),
                    pool: InUseGuard::new(self),
                    key: key.clone(),
                    keepalive,
                    served: candidate.served,
                    reusable: true,
                    reused: true,
                });
            }
        }
        None
    }

    /// A lease on a connection just made.
    pub fn checkout_new(
        self: &Rc<Self>,
        key: PoolKey,
        keepalive: KeepalivePool,
        made: HttpConnection,
    ) -> PooledConnection {
        let HttpConnection { sender, abort } = made;
        PooledConnection {
            sender,
            abort: AbortOnDrop(Some(abort)),
            pool: InUseGuard::new(self),
            key,
            keepalive,
            served: 0,
            reusable: true,
            reused: false,
        }
    }

    /// How many connections are idle.
    pub fn idle_count(&self) -> usize {
        self.idle.borrow().values().map(Vec::len).sum()
    }

    /// How many serve a request.
    pub fn in_use(&self) -> usize {
        self.in_use.get()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.idle_count() == 0
    }

    /// Closes everything idle (at the end of a drain).
    pub fn clear(&self) {
        self.idle.borrow_mut().clear();
    }

    /// Closes the connection that has been idle for longest, if there is one.
    pub fn evict_oldest(&self) {
        let mut idle = self.idle.borrow_mut();
        // The first of each list: connections are taken and given back at its end.
        let oldest = idle
            .iter()
            .filter_map(|(key, list)| Some((list.first()?.since, key.clone())))
            .min_by_key(|(since, _)| *since);
        if let Some((_, key)) = oldest
            && let Some(list) = idle.get_mut(&key)
        {
            drop(list.remove(0));
            if list.is_empty() {
                idle.remove(&key);
            }
        }
    }

    fn sweep(&self) {
        self.idle.borrow_mut().retain(|_, list| {
            list.retain(|idle| !idle.sender.is_closed() && idle.since.elapsed() < idle.keep);
            !list.is_empty()
        });
    }
}

impl PooledConnection {
    /// The node's address.
    pub fn addr(&self) -> SocketAddr {
        self.key.addr
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// The exchange is over: keep the connection for the next one, within `keepalive_pool`'s
    /// limits.
    pub fn release(mut self) {
        // From here on hyper ends the connection, in order.
        let Some(abort) = self.abort.0.take() else { return };
        let served = self.served.saturating_add(1);
        let kept = self.reusable && served < self.keepalive.requests && self.keepalive.size > 0;
        if !kept || self.is_closed() {
            return;
        }
        let mut idle = self.pool.0.idle.borrow_mut();
        let list = idle.entry(self.key).or_default();
        if list.len() >= usize::try_from(self.keepalive.size).unwrap_or(usize::MAX) {
            return;
        }
        let (since, keep) = (Instant::now(), self.keepalive.idle_timeout);
        list.push(IdleConnection { sender: self.sender, abort, since, keep, served });
    }
}
