//! A scripted TCP proxy: the network between two programs.
//!
//! It forwards, holds everything back, holds only the responses back, or cuts. Held bytes go on
//! when the proxy forwards again, as after a partition that TCP survives.
//!
//! Invariant: its port stays reserved while it is cut, and refuses connections.

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

/// The state of the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    Forward,
    /// Connections are accepted, and no byte passes.
    Hold,
    /// Bytes pass to the server only.
    HoldAnswers,
    /// Every connection is reset, and new ones are refused.
    Cut,
}

/// A running proxy; dropping it ends it.
pub struct Proxy {
    address: SocketAddr,
    network: Arc<watch::Sender<Network>>,
    /// The state that the task has applied.
    done: watch::Receiver<Network>,
    connections: Arc<AtomicU64>,
    trap: Trap,
    task: JoinHandle<()>,
}

/// Bytes of a client, and the state that follows them.
type Trap = Arc<Mutex<Option<(Vec<u8>, Network)>>>;

impl Proxy {
    /// Forwards to this address.
    pub async fn to(target: SocketAddr) -> Self {
        let port = Reservation::any();
        let address = port.address();
        let network = Arc::new(watch::Sender::new(Network::Forward));
        let (done, taken) = watch::channel(Network::Cut);
        let (connections, trap) = (Arc::new(AtomicU64::new(0)), Trap::default());
        let script = ProxyTask {
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

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes the state, and waits until it applies.
    pub async fn set(&self, network: Network) {
        self.network.send_replace(network);
        let mut done = self.done.clone();
        let taken = done.wait_for(|done| *done == network);
        crate::client::bounded("the proxy changes", taken).await.expect("the proxy runs");
    }

    /// Changes the state when a client sends these bytes.
    pub fn trap(&self, words: &str, then: Network) {
        *self.trap.lock().expect("no holder panics") = Some((words.as_bytes().to_vec(), then));
    }

    /// Waits until the state has changed to this.
    pub async fn wait_for_trap(&self, network: Network) {
        let mut done = self.done.clone();
        let taken = done.wait_for(|done| *done == network);
        crate::client::bounded("the trap closes", taken).await.expect("the proxy runs");
    }

    /// Accepted connections so far.
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct ProxyTask {
    port: Reservation,
    target: SocketAddr,
    watched: watch::Receiver<Network>,
    spring: Spring,
    done: watch::Sender<Network>,
    connections: Arc<AtomicU64>,
}

/// Changes the state when its bytes pass.
#[derive(Clone)]
struct Spring {
    network: Arc<watch::Sender<Network>>,
    trap: Trap,
}

impl Spring {
    fn look(&self, bytes: &[u8]) {
        let mut trap = self.trap.lock().expect("no holder panics");
        let found = trap.take_if(|(words, _)| bytes.windows(words.len()).any(|window| window == words));
        if let Some((_, network)) = found {
            self.network.send_replace(network);
        }
    }
}

impl ProxyTask {
    async fn run(mut self) {
        let address = self.port.address();
        loop {
            let listener = TcpListener::bind(address).await.expect("the port is ours");
            self.serve(&listener).await;
            // The listener and every connection are dropped by now.
            drop(listener);
            self.done.send_replace(Network::Cut);
            if self.watched.wait_for(|network| *network != Network::Cut).await.is_err() {
                return;
            }
        }
    }

    /// Runs until the network is cut.
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
        // Dropping a connection resets it.
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

/// Copies one way, while the network is in one of these states.
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
        // Bytes that were read wait here.
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
    // A linger of zero sends RST instead of FIN.
    let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
}
