//! Idle connections to upstream nodes, kept for the next request.
//!
//! Invariant 7: a connection belongs to one identity. The key holds all that decides who the peers are to each
//! other: the address, the name asked for, and the generation of the TLS configuration, which is new for every
//! client certificate, trust and verification setting. One pool a worker; nothing is shared between cores.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use foldhash::fast::RandomState;
use hyper::client::conn::http1::SendRequest;
use model::resource::Keepalive;

use super::request_body::RequestBody;
use crate::rt;

/// How often idle connections past their time are closed.
const SWEEP: Duration = Duration::from_secs(5);

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
    // Every request asks: a hash that is cheap, and seeded at random, since a client may choose the name in a key.
    idle: RefCell<HashMap<PoolKey, Vec<Idle>, RandomState>>,
    leased: Cell<usize>,
}

/// A pool with one more lease, until it is dropped.
struct Lender(Rc<Pool>);

impl Lender {
    fn new(pool: &Rc<Pool>) -> Self {
        pool.leased.set(pool.leased.get() + 1);
        Self(Rc::clone(pool))
    }
}

impl Drop for Lender {
    fn drop(&mut self) {
        self.0.leased.set(self.0.leased.get().saturating_sub(1));
    }
}

struct Idle {
    sender: SendRequest<RequestBody>,
    since: Instant,
    keep: Duration,
    served: u32,
}

/// A connection in use. Given back with [`Lease::give_back`]; dropped, it is closed.
pub struct Lease {
    pub(super) sender: SendRequest<RequestBody>,
    pool: Lender,
    key: PoolKey,
    keepalive: Keepalive,
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
        rt::spawn(async move {
            loop {
                rt::sleep(SWEEP).await;
                let Some(pool) = swept.upgrade() else { return };
                pool.sweep();
            }
        });
        pool
    }

    /// A living idle connection for this key.
    pub fn take(self: &Rc<Self>, key: &PoolKey, keepalive: Keepalive) -> Option<Lease> {
        let mut idle = self.idle.borrow_mut();
        let list = idle.get_mut(key)?;
        // The youngest first: the node is least likely to have given it up.
        while let Some(candidate) = list.pop() {
            if candidate.sender.is_ready() && candidate.since.elapsed() < candidate.keep {
                return Some(Lease {
                    sender: candidate.sender,
                    pool: Lender::new(self),
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
    pub fn adopt(
        self: &Rc<Self>,
        key: PoolKey,
        keepalive: Keepalive,
        sender: SendRequest<RequestBody>,
    ) -> Lease {
        Lease { sender, pool: Lender::new(self), key, keepalive, served: 0, reusable: true, reused: false }
    }

    /// How many connections are idle.
    pub fn len(&self) -> usize {
        self.idle.borrow().values().map(Vec::len).sum()
    }

    /// How many serve a request.
    pub fn leased(&self) -> usize {
        self.leased.get()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Closes everything idle (at the end of a drain).
    pub fn clear(&self) {
        self.idle.borrow_mut().clear();
    }

    fn sweep(&self) {
        self.idle.borrow_mut().retain(|_, list| {
            list.retain(|idle| !idle.sender.is_closed() && idle.since.elapsed() < idle.keep);
            !list.is_empty()
        });
    }
}

impl Lease {
    /// The node's address.
    pub fn addr(&self) -> SocketAddr {
        self.key.addr
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// The exchange is over: keep the connection for the next one, within `keepalive_pool`'s limits.
    pub fn give_back(self) {
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
        list.push(Idle { sender: self.sender, since: Instant::now(), keep: self.keepalive.idle, served });
    }
}
