//! Resolves the names of upstream nodes without ever blocking a worker.
//!
//! Literal addresses need no look-up. Names are looked up by the system's resolver on threads of
//! their own, so that `/etc/hosts`, search domains and the container's resolver work as everywhere
//! else; each worker caches results for [`CACHE_TTL`]. When a look-up fails, the last good result
//! is used.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{IpAddr, ToSocketAddrs};
use std::ops::Deref;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use futures_channel::oneshot;

/// The system's resolver gives no TTL.
const CACHE_TTL: Duration = Duration::from_secs(10);
/// Each waits for the system's resolver, which blocks.
const THREADS: usize = 2;
/// In a worker's cache; beyond it, expired entries are removed.
const CACHE_ENTRIES_MAX: usize = 10_000;

type LookupResult = Option<Vec<IpAddr>>;
type Lookup = (String, oneshot::Sender<LookupResult>);

/// The resolver threads. One for the process; cheap to clone.
#[derive(Clone)]
pub struct Resolver {
    lookups: mpsc::Sender<Lookup>,
}

/// A worker's cache.
pub(crate) struct ResolverCache {
    resolver: Resolver,
    cache: RefCell<HashMap<String, CachedAddresses>>,
}

/// The addresses of a node's host.
#[derive(Debug, Clone)]
pub(crate) enum Addresses {
    Literal([IpAddr; 1]),
    Resolved(Rc<[IpAddr]>),
}

impl Deref for Addresses {
    type Target = [IpAddr];

    fn deref(&self) -> &[IpAddr] {
        match self {
            Self::Literal(address) => address,
            Self::Resolved(addresses) => addresses,
        }
    }
}

#[derive(Clone)]
struct CachedAddresses {
    addresses: Rc<[IpAddr]>,
    resolved_at: Instant,
}

impl Resolver {
    /// # Errors
    /// When the system gives no thread.
    pub fn start() -> std::io::Result<Self> {
        let (lookups, queue) = mpsc::channel::<Lookup>();
        let queue = Arc::new(Mutex::new(queue));
        for _ in 0..THREADS {
            let queue = Arc::clone(&queue);
            thread::Builder::new().name("resolver".to_owned()).spawn(move || run_lookups(&queue))?;
        }
        Ok(Self { lookups })
    }

    async fn look_up(&self, name: &str) -> LookupResult {
        let (sender, result) = oneshot::channel();
        self.lookups.send((name.to_owned(), sender)).ok()?;
        result.await.ok().flatten()
    }
}

fn run_lookups(queue: &Mutex<mpsc::Receiver<Lookup>>) {
    loop {
        let lookup = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((name, sender)) = lookup else { return };
        let result = (name.as_str(), 0).to_socket_addrs().ok().map(|all| all.map(|a| a.ip()).collect());
        let _receiver_is_gone = sender.send(result);
    }
}

impl ResolverCache {
    pub(crate) fn new(resolver: Resolver) -> Self {
        Self { resolver, cache: RefCell::new(HashMap::new()) }
    }

    /// Gives the addresses of a node's host. Empty: the name does not resolve.
    pub(crate) async fn resolve(&self, host: &str) -> Addresses {
        let literal = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        match literal.parse() {
            Ok(ip) => Addresses::Literal([ip]),
            Err(_) => Addresses::Resolved(self.resolve_name(host).await),
        }
    }

    async fn resolve_name(&self, host: &str) -> Rc<[IpAddr]> {
        let cached = self.cache.borrow().get(host).cloned();
        if let Some(cached) = &cached
            && cached.resolved_at.elapsed() < CACHE_TTL
        {
            return Rc::clone(&cached.addresses);
        }
        match self.resolver.look_up(host).await.filter(|addresses| !addresses.is_empty()) {
            Some(addresses) => self.insert(host, addresses.into()),
            None => cached.map_or_else(|| Rc::from([]), |cached| self.insert(host, cached.addresses)),
        }
    }

    fn insert(&self, host: &str, addresses: Rc<[IpAddr]>) -> Rc<[IpAddr]> {
        let mut cache = self.cache.borrow_mut();
        if cache.len() >= CACHE_ENTRIES_MAX {
            cache.retain(|_, cached| cached.resolved_at.elapsed() < CACHE_TTL);
        }
        let resolved_at = Instant::now();
        cache.insert(host.to_owned(), CachedAddresses { addresses: Rc::clone(&addresses), resolved_at });
        addresses
    }
}
