//! A scripted TCP proxy: the network between two programs, as a test wants it to be at a moment.
//!
//! It forwards, holds everything back, holds only the answers back, or cuts. What is held is not lost: it goes on its way when the
//! proxy forwards again, as after a partition of the network that TCP outlived. Invariant: its port stays its own while it is cut,
//! and refuses.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use crate::ports::Reservation;

/// What the network does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// Everything passes.
    Forward,
    /// Connections are accepted and nothing passes, neither way.
    Hold,
    /// What the client sends arrives, and it hears nothing.
    HoldAnswers,
    /// Every connection is reset, and new ones are refused.
    Cut,
}

/// A running proxy; it ends with this value.
pub struct Proxy {
    address: SocketAddr,
    network: Arc<watch::Sender<Network>>,
    /// What the task has taken notice of.
    done: watch::Receiver<Network>,
    connections: Arc<AtomicU64>,
    trap: Trap,
    task: JoinHandle<()>,
}

/// Words of a client, and what the network is like from then on.
type Trap = Arc<Mutex<Option<(Vec<u8>, Network)>>>;

impl Proxy {
    /// To this address, forwarding.
    pub async fn to(target: SocketAddr) -> Self {
        let port = Reservation::any();
        let address = port.address();
        let network = Arc::new(watch::Sender::new(Network::Forward));
        let (done, taken) = watch::channel(Network::Cut);
        let (connections, trap) = (Arc::new(AtomicU64::new(0)), Trap::default());
        let script = Script {
            port,
            target,
            watched: network.subscribe(),
            spring: Spring { network: Arc::clone(&network), trap: Arc::clone(&trap) },
            done,
            connections: Arc::clone(&connections),
        };
        let proxy =
            Self { address, network, done: taken, connections, trap, task: tokio::spawn(script.run()) };
        proxy.set(Network::Forward).await;
        proxy
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes the network, and waits until it is so.
    pub async fn set(&self, network: Network) {
        self.network.send_replace(network);
        let mut done = self.done.clone();
        let taken = done.wait_for(|done| *done == network);
        crate::client::bounded("the proxy changes", taken).await.expect("the proxy runs");
    }

    /// From the moment on at which a client sends these words, the network is like this.
    pub fn trap(&self, words: &str, then: Network) {
        *self.trap.lock().expect("nobody panics with it") = Some((words.as_bytes().to_vec(), then));
    }

    /// Waits until the network is like this, by itself.
    pub async fn wait_for_trap(&self, network: Network) {
        let mut done = self.done.clone();
        let taken = done.wait_for(|done| *done == network);
        crate::client::bounded("the trap closes", taken).await.expect("the proxy runs");
    }

    /// How many connections it accepted so far.
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Script {
    port: Reservation,
    target: SocketAddr,
    watched: watch::Receiver<Network>,
    spring: Spring,
    done: watch::Sender<Network>,
    connections: Arc<AtomicU64>,
}

/// Closes the trap when its words come by.
#[derive(Clone)]
struct Spring {
    network: Arc<watch::Sender<Network>>,
    trap: Trap,
}

impl Spring {
    fn look(&self, bytes: &[u8]) {
        let mut trap = self.trap.lock().expect("nobody panics with it");
        let found = trap.take_if(|(words, _)| bytes.windows(words.len()).any(|window| window == words));
        if let Some((_, network)) = found {
            self.network.send_replace(network);
        }
    }
}

impl Script {
    async fn run(mut self) {
        let address = self.port.address();
        loop {
            let listener = TcpListener::bind(address).await.expect("the port is ours");
            self.serve(&listener).await;
            // The listener and every connection are gone by now.
            drop(listener);
            self.done.send_replace(Network::Cut);
            if self.watched.wait_for(|network| *network != Network::Cut).await.is_err() {
                return;
            }
        }
    }

    /// Until it is cut.
    async fn serve(&mut self, listener: &TcpListener) {
        let mut connections = JoinSet::new();
        let mut present = *self.watched.borrow_and_update();
        while present != Network::Cut {
            self.done.send_replace(present);
            tokio::select! {
                changed = self.watched.changed() => match changed {
                    Ok(()) => present = *self.watched.borrow_and_update(),
                    Err(_) => break,
                },
                accepted = listener.accept() => {
                    let Ok((client, _)) = accepted else { continue };
                    self.connections.fetch_add(1, Ordering::SeqCst);
                    connections.spawn(connection(client, self.target, self.watched.clone(), self.spring.clone()));
                }
            }
        }
        // Each is dropped, which resets it.
        connections.shutdown().await;
    }
}

async fn connection(
    mut client: TcpStream,
    target: SocketAddr,
    mut network: watch::Receiver<Network>,
    spring: Spring,
) {
    reset_when_dropped(&client);
    let passing = |network: &Network| matches!(network, Network::Forward | Network::HoldAnswers);
    if network.wait_for(passing).await.is_err() {
        return;
    }
    let Ok(mut server) = TcpStream::connect(target).await else { return };
    reset_when_dropped(&server);
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    let open = [Network::Forward, Network::HoldAnswers];
    let requests = pass(from_client, to_server, network.clone(), &open, Some(spring));
    let answers = pass(from_server, to_client, network, &[Network::Forward], None);
    tokio::join!(requests, answers);
}

/// One way, while the network is one of these.
async fn pass(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    mut network: watch::Receiver<Network>,
    open: &[Network],
    spring: Option<Spring>,
) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        if let Some(spring) = &spring {
            spring.look(&buffer[..read]);
        }
        // What was read already waits here.
        if network.wait_for(|network| open.contains(network)).await.is_err()
            || to.write_all(&buffer[..read]).await.is_err()
        {
            return;
        }
    }
    let _ = to.shutdown().await;
}

fn reset_when_dropped(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    // A linger of nothing sends RST instead of FIN.
    let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
}
