//! Names of upstream nodes to addresses, without ever blocking a worker.
//!
//! Addresses in literal form take no detour. Names are looked up by the system's resolver on
//! threads of their own, so that `/etc/hosts`, search domains and the container's resolver work as
//! everywhere else; answers are kept for [`KEEP`] a worker. When a look-up fails, the last good
//! answer is used.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{IpAddr, ToSocketAddrs};
use std::ops::Deref;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use futures_channel::oneshot;

/// How long an answer is used. The system's resolver tells no TTL.
const CACHE_TTL: Duration = Duration::from_secs(10);
/// Threads that wait on the system's resolver.
const THREADS: usize = 2;
/// Names a worker remembers; past that the oldest answers go.
const CACHE_ENTRIES_MAX: usize = 10_000;

type LookupResult = Option<Vec<IpAddr>>;
type Lookup = (String, oneshot::Sender<LookupResult>);

/// The threads that ask. One for the process; cheap to clone.
#[derive(Clone)]
pub struct Resolver {
    lookups: mpsc::Sender<Lookup>,
}

/// A worker's memory of answers.
pub struct ResolverCache {
    resolver: Resolver,
    cache: RefCell<HashMap<String, CachedAddresses>>,
}

/// What a node's host stands for.
#[derive(Debug, Clone)]
pub enum Addresses {
    /// It is an address.
    Literal([IpAddr; 1]),
    /// It is a name.
    Resolved(Rc<[IpAddr]>),
}

impl Deref for Addresses {
    type Target = [IpAddr];

    fn deref(&self) -> &[IpAddr] {
        match self {
            Self::Literal(one) => one,
            Self::Resolved(all) => all,
        }
    }
}

#[derive(Clone)]
struct CachedAddresses {
    addresses: Rc<[IpAddr]>,
    resolved_at: Instant,
}

impl Resolver {
    /// Starts the threads.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub fn start() -> std::io::Result<Self> {
        let (questions, inbox) = mpsc::channel::<Lookup>();
        let inbox = Arc::new(Mutex::new(inbox));
        for _ in 0..THREADS {
            let inbox = Arc::clone(&inbox);
            thread::Builder::new().name("resolver".to_owned()).spawn(move || run_lookups(&inbox))?;
        }
        Ok(Self { lookups: questions })
    }

    async fn look_up(&self, name: &str) -> LookupResult {
        let (sender, answer) = oneshot::channel();
        self.lookups.send((name.to_owned(), sender)).ok()?;
        answer.await.ok().flatten()
    }
}

fn run_lookups(inbox: &Mutex<mpsc::Receiver<Lookup>>) {
    loop {
        let question = inbox.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((name, sender)) = question else { return };
        let found = (name.as_str(), 0).to_socket_addrs().ok().map(|all| all.map(|a| a.ip()).collect());
        let _asker_gave_up = sender.send(found);
    }
}

impl ResolverCache {
    /// An empty memory that asks `resolver`.
    pub fn new(resolver: Resolver) -> Self {
        Self { resolver, cache: RefCell::new(HashMap::new()) }
    }

    /// The addresses of a node's host. Empty: the name does not resolve.
    pub async fn resolve(&self, host: &str) -> Addresses {
        let literal = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        match literal.parse() {
            Ok(ip) => Addresses::Literal([ip]),
            Err(_) => Addresses::Resolved(self.look_up(host).await),
        }
    }

    async fn look_up(&self, host: &str) -> Rc<[IpAddr]> {
        let known = self.cache.borrow().get(host).cloned();
        if let Some(known) = &known
            && known.resolved_at.elapsed() < CACHE_TTL
        {
            return Rc::clone(&known.addresses);
        }
        match self.resolver.look_up(host).await.filter(|found| !found.is_empty()) {
            Some(found) => self.insert(host, found.into()),
            None => known.map_or_else(|| Rc::from([]), |known| self.insert(host, known.addresses)),
        }
    }

    fn insert(&self, host: &str, addresses: Rc<[IpAddr]>) -> Rc<[IpAddr]> {
        let mut known = self.cache.borrow_mut();
        if known.len() >= CACHE_ENTRIES_MAX {
            known.retain(|_, answer| answer.resolved_at.elapsed() < CACHE_TTL);
        }
        known.insert(
            host.to_owned(),
            CachedAddresses { addresses: Rc::clone(&addresses), resolved_at: Instant::now() },
        );
        addresses
    }
}
