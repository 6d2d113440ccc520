//! Names of upstream nodes to addresses, without ever blocking a worker.
//!
//! Addresses in literal form take no detour. Names are looked up by the system's resolver on threads of their
//! own, so that `/etc/hosts`, search domains and the container's resolver work as everywhere else; answers are
//! kept for [`KEEP`] a worker. When a look-up fails, the last good answer is used.

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
const KEEP: Duration = Duration::from_secs(10);
/// Threads that wait on the system's resolver.
const THREADS: usize = 2;
/// Names a worker remembers; past that the oldest answers go.
const NAMES_MAX: usize = 10_000;

type Answer = Option<Vec<IpAddr>>;
type Question = (String, oneshot::Sender<Answer>);

/// The threads that ask. One for the process; cheap to clone.
#[derive(Clone)]
pub struct Resolver {
    questions: mpsc::Sender<Question>,
}

/// A worker's memory of answers.
pub struct Names {
    resolver: Resolver,
    known: RefCell<HashMap<String, Known>>,
}

/// What a node's host stands for.
#[derive(Debug, Clone)]
pub enum Addresses {
    /// It is an address.
    Literal([IpAddr; 1]),
    /// It is a name.
    Found(Rc<[IpAddr]>),
}

impl Deref for Addresses {
    type Target = [IpAddr];

    fn deref(&self) -> &[IpAddr] {
        match self {
            Self::Literal(one) => one,
            Self::Found(all) => all,
        }
    }
}

#[derive(Clone)]
struct Known {
    addresses: Rc<[IpAddr]>,
    asked: Instant,
}

impl Resolver {
    /// Starts the threads.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub fn start() -> std::io::Result<Self> {
        let (questions, inbox) = mpsc::channel::<Question>();
        let inbox = Arc::new(Mutex::new(inbox));
        for _ in 0..THREADS {
            let inbox = Arc::clone(&inbox);
            thread::Builder::new().name("resolver".to_owned()).spawn(move || answer_all(&inbox))?;
        }
        Ok(Self { questions })
    }

    async fn ask(&self, name: &str) -> Answer {
        let (sender, answer) = oneshot::channel();
        self.questions.send((name.to_owned(), sender)).ok()?;
        answer.await.ok().flatten()
    }
}

fn answer_all(inbox: &Mutex<mpsc::Receiver<Question>>) {
    loop {
        let question = inbox.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((name, sender)) = question else { return };
        let found = (name.as_str(), 0).to_socket_addrs().ok().map(|all| all.map(|a| a.ip()).collect());
        let _asker_gave_up = sender.send(found);
    }
}

impl Names {
    /// An empty memory that asks `resolver`.
    pub fn new(resolver: Resolver) -> Self {
        Self { resolver, known: RefCell::new(HashMap::new()) }
    }

    /// The addresses of a node's host. Empty: the name does not resolve.
    pub async fn addresses(&self, host: &str) -> Addresses {
        let literal = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        match literal.parse() {
            Ok(ip) => Addresses::Literal([ip]),
            Err(_) => Addresses::Found(self.look_up(host).await),
        }
    }

    async fn look_up(&self, host: &str) -> Rc<[IpAddr]> {
        let known = self.known.borrow().get(host).cloned();
        if let Some(known) = &known
            && known.asked.elapsed() < KEEP
        {
            return Rc::clone(&known.addresses);
        }
        match self.resolver.ask(host).await.filter(|found| !found.is_empty()) {
            Some(found) => self.remember(host, found.into()),
            None => known.map_or_else(|| Rc::from([]), |known| self.remember(host, known.addresses)),
        }
    }

    fn remember(&self, host: &str, addresses: Rc<[IpAddr]>) -> Rc<[IpAddr]> {
        let mut known = self.known.borrow_mut();
        if known.len() >= NAMES_MAX {
            known.retain(|_, answer| answer.asked.elapsed() < KEEP);
        }
        known.insert(host.to_owned(), Known { addresses: Rc::clone(&addresses), asked: Instant::now() });
        addresses
    }
}
