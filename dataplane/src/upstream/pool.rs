//! Idle connections to upstream nodes, kept for the next request, and the limit on open ones.
//!
//! Invariant 7: a connection belongs to one identity. The key has all that decides who the peers
//! are to each other: the address, the server name, and the generation of the TLS configuration,
//! which is new for every client certificate, trust and verification setting. One pool a worker;
//! cores share nothing.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;
use hyper::client::conn::http1::SendRequest;
use model::KeepalivePool;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::request_body::RequestBody;
use crate::io::flag::Flag;
use crate::runtime;

/// How often idle connections past their time are closed.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct PoolKey {
    pub addr: SocketAddr,
    /// The server name and the generation of the configuration. `None`: no TLS.
    pub tls: Option<(Rc<str>, u64)>,
}

#[derive(Default)]
pub(crate) struct Pool {
    // Looked up for every request, so the hash is cheap; and seeded at random, since a client may
    // choose the name in a key.
    idle: RefCell<HashMap<PoolKey, Vec<IdleConnection>, RandomState>>,
    in_use: Cell<usize>,
}

/// Counts one connection of the pool as in use, until it is dropped.
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

/// A new HTTP/1 connection.
pub(crate) struct HttpConnection {
    pub sender: SendRequest<RequestBody>,
    /// Ends the task of the connection.
    pub abort: Rc<Flag>,
}

struct IdleConnection {
    sender: SendRequest<RequestBody>,
    abort: Rc<Flag>,
    since: Instant,
    timeout: Duration,
    requests: u32,
}

/// A connection in use. [`PooledConnection::release`] returns it to the pool; a dropped one is
/// closed at once, whatever it still had to send.
pub(crate) struct PooledConnection {
    pub(super) sender: SendRequest<RequestBody>,
    abort: AbortOnDrop,
    pool: InUseGuard,
    key: PoolKey,
    keepalive: KeepalivePool,
    requests: u32,
    /// Another request may be sent on it afterwards.
    pub(super) reusable: bool,
    /// It was idle in the pool, so the node may have closed it in the meantime.
    pub reused: bool,
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

    /// Takes an open idle connection for this key.
    pub(crate) fn checkout(
        self: &Rc<Self>,
        key: &PoolKey,
        keepalive: KeepalivePool,
    ) -> Option<PooledConnection> {
        let mut idle = self.idle.borrow_mut();
        let list = idle.get_mut(key)?;
        // The youngest first: the node is least likely to have closed it.
        while let Some(candidate) = list.pop() {
            if candidate.sender.is_ready() && candidate.since.elapsed() < candidate.timeout {
                return Some(PooledConnection {
                    sender: candidate.sender,
                    abort: AbortOnDrop(Some(candidate.abort)),
                    pool: InUseGuard::new(self),
                    key: key.clone(),
                    keepalive,
                    requests: candidate.requests,
                    reusable: true,
                    reused: true,
                });
            }
        }
        None
    }

    /// Counts a new connection as in use.
    pub(crate) fn checkout_new(
        self: &Rc<Self>,
        key: PoolKey,
        keepalive: KeepalivePool,
        connection: HttpConnection,
    ) -> PooledConnection {
        let HttpConnection { sender, abort } = connection;
        PooledConnection {
            sender,
            abort: AbortOnDrop(Some(abort)),
            pool: InUseGuard::new(self),
            key,
            keepalive,
            requests: 0,
            reusable: true,
            reused: false,
        }
    }

    pub(crate) fn idle_count(&self) -> usize {
        self.idle.borrow().values().map(Vec::len).sum()
    }

    pub(crate) fn in_use(&self) -> usize {
        self.in_use.get()
    }

    /// Closes every idle connection, at the end of a drain.
    pub(crate) fn clear(&self) {
        self.idle.borrow_mut().clear();
    }

    /// Closes the connection that has been idle for longest, if there is one.
    pub(crate) fn evict_oldest(&self) {
        let mut idle = self.idle.borrow_mut();
        // The first of each list: connections are taken and returned at its end.
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
            list.retain(|idle| !idle.sender.is_closed() && idle.since.elapsed() < idle.timeout);
            !list.is_empty()
        });
    }
}

impl PooledConnection {
    /// The address of the node.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.key.addr
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// Returns the connection to the pool, within the limits of `keepalive_pool`.
    pub(crate) fn release(mut self) {
        // From here on hyper ends the connection, in order.
        let Some(abort) = self.abort.0.take() else { return };
        let requests = self.requests.saturating_add(1);
        let kept = self.reusable && requests < self.keepalive.requests && self.keepalive.size > 0;
        if !kept || self.is_closed() {
            return;
        }
        let mut idle = self.pool.0.idle.borrow_mut();
        let list = idle.entry(self.key).or_default();
        if list.len() >= usize::try_from(self.keepalive.size).unwrap_or(usize::MAX) {
            return;
        }
        let (since, timeout) = (Instant::now(), self.keepalive.idle_timeout);
        list.push(IdleConnection { sender: self.sender, abort, since, timeout, requests });
    }
}

/// The limit on a worker's open connections to upstreams, so that requests, however many, leave the
/// descriptors that clients, the push client and the status listener need.
///
/// A connection holds its permit until its descriptor is closed. Without a free permit the oldest
/// idle connection is closed, and the next permit goes to the request that has waited longest.
pub(crate) struct ConnectionPermits {
    semaphore: Arc<Semaphore>,
    pool: Rc<Pool>,
}

impl ConnectionPermits {
    /// At least one permit. `pool` has the idle connections that may be closed.
    pub(crate) fn new(max: usize, pool: Rc<Pool>) -> Self {
        Self { semaphore: Arc::new(Semaphore::new(max.clamp(1, Semaphore::MAX_PERMITS))), pool }
    }

    /// Waits for a free permit.
    pub(crate) async fn acquire(&self) -> Option<OwnedSemaphorePermit> {
        if let Ok(permit) = Arc::clone(&self.semaphore).try_acquire_owned() {
            return Some(permit);
        }
        self.pool.evict_oldest();
        // The semaphore is never closed, so there is no error.
        Arc::clone(&self.semaphore).acquire_owned().await.ok()
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Waker};

    use super::*;

    #[test]
    fn a_connection_beyond_the_limit_waits() {
        let permits = ConnectionPermits::new(1, Rc::default());
        let mut cx = Context::from_waker(Waker::noop());
        let first = pin!(permits.acquire()).as_mut().poll(&mut cx);
        assert!(first.is_ready());
        let mut second = pin!(permits.acquire());
        assert!(second.as_mut().poll(&mut cx).is_pending());
        drop(first);
        assert!(second.as_mut().poll(&mut cx).is_ready());
    }
}
