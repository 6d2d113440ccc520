//! The data plane's side of a handshake over two buffers, and a client that runs between its polls.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use dataplane::testing::io::buffered::BufferedSocket;
use dataplane::testing::proxy::connection::accept_tls;
use dataplane::testing::proxy::worker::Worker;
use dataplane::testing::runtime::{Reader, Writer};
use dataplane::testing::tls::Subsystem;
use model::{Kind, Resource, Snapshot, Ssl, TlsVersion, Versioned};
use rustls::{ClientConfig, ClientConnection};
use rustls_pki_types::ServerName;

use super::Credentials;
use crate::{
    counted::{self, Runner},
    gateway,
};
use compare::peer::HOST;

/// The client's address.
const PEER: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 40_000));

/// A worker with one site.
pub struct TestWorker {
    inner: Rc<Worker>,
}

impl TestWorker {
    /// One site of these TLS versions, which choose the engine; `ask`: it requires a client
    /// certificate. To be called within the worker's runtime.
    pub fn new(credentials: &Credentials, ask: bool, versions: &[TlsVersion]) -> Self {
        let snapshot = gateway::snapshot([(Kind::Ssl, "bench", credentials.site_document(ask))]);
        let shared = gateway::shared(snapshot, versions, None);
        Self { inner: Worker::new(shared, Arc::default()) }
    }

    /// Replaces the site by an equal one that has not had a handshake yet.
    pub fn renew(&self) {
        let handle = &self.inner.shared.snapshot;
        let newest = handle.load();
        let renewed = newest.resources().map(|held| match &held.resource {
            Resource::Ssl(ssl) => {
                Versioned { version: held.version, resource: Resource::Ssl(Arc::new(Ssl::clone(ssl))) }
            }
            _ => held.clone(),
        });
        self.swap(Snapshot::from_resources(newest.revision() + 1, renewed));
    }

    /// Replaces the snapshot, as the push client does after a change.
    pub fn swap(&self, snapshot: Snapshot) {
        self.inner.shared.snapshot.store(Arc::new(snapshot));
    }
}

#[derive(Default)]
struct Wire {
    to_server: Vec<u8>,
    to_client: Vec<u8>,
}

#[derive(Clone, Default)]
struct Half(Rc<RefCell<Wire>>);

impl Reader for Half {
    fn read(self, mut buf: Vec<u8>) -> impl Future<Output = (Self, io::Result<usize>, Vec<u8>)> + 'static {
        poll_fn(move |_| {
            let mut wire = self.0.borrow_mut();
            let n = wire.to_server.len().min(buf.capacity());
            if n == 0 {
                return Poll::Pending;
            }
            buf.extend(wire.to_server.drain(..n));
            drop(wire);
            Poll::Ready((self.clone(), Ok(n), std::mem::take(&mut buf)))
        })
    }
}

impl Writer for Half {
    async fn write(self, buf: Vec<u8>) -> (Self, io::Result<usize>, Vec<u8>) {
        self.0.borrow_mut().to_client.extend_from_slice(&buf);
        (self, Ok(buf.len()), buf)
    }
}

/// One handshake; gives the time of the server's polls.
pub fn handshake(worker: &TestWorker, config: &Arc<ClientConfig>) -> Duration {
    run(worker, config, counted::uncounted).0
}

/// One handshake whose server polls callgrind counts.
pub fn counted_handshake(worker: &TestWorker, config: &Arc<ClientConfig>) {
    run(worker, config, counted::counted_by_callgrind);
}

/// Whether a second handshake with the same client is resumed.
pub fn resumes(worker: &TestWorker, config: &Arc<ClientConfig>) -> bool {
    let _first = run(worker, config, counted::uncounted);
    run(worker, config, counted::uncounted).1
}

/// Passes the server's polls to `runner`; gives their time, and whether the session was resumed.
fn run(worker: &TestWorker, config: &Arc<ClientConfig>, runner: Runner) -> (Duration, bool) {
    let half = Half::default();
    let name = ServerName::try_from(HOST).expect("a name");
    let mut client = ClientConnection::new(Arc::clone(config), name).expect("a client");
    exchange(&mut client, &half);
    let mut socket = BufferedSocket::from_halves(half.clone(), half.clone(), None);
    let mut server = Box::pin(accept_tls(&worker.inner, &mut socket, PEER, Subsystem::Http));
    let mut context = Context::from_waker(Waker::noop());
    let mut took = Duration::ZERO;
    let accepted = loop {
        let started = Instant::now();
        let mut polled = Poll::Pending;
        runner(&mut || polled = server.as_mut().poll(&mut context));
        took += started.elapsed();
        match polled {
            Poll::Ready(accepted) => break accepted.expect("the client is accepted"),
            Poll::Pending => exchange(&mut client, &half),
        }
    };
    drop(server);
    // Tickets wait for the first flush; the client must receive them for its next handshake.
    let flushed = poll_fn(|cx| socket.poll_flush(cx));
    let flushed = std::pin::pin!(flushed).poll(&mut context);
    assert!(matches!(flushed, Poll::Ready(Ok(()))), "a write to memory does not wait");
    exchange(&mut client, &half);
    assert!(!client.is_handshaking(), "both sides are done");
    (took, accepted.params.resumed)
}

/// Passes the server's bytes to the client, and the client's to the server.
fn exchange(client: &mut ClientConnection, half: &Half) {
    let mut wire = half.0.borrow_mut();
    let received = std::mem::take(&mut wire.to_client);
    let mut rest = received.as_slice();
    while !rest.is_empty() {
        client.read_tls(&mut rest).expect("room in the client");
        client.process_new_packets().expect("the client accepts the server");
    }
    while client.wants_write() {
        client.write_tls(&mut wire.to_server).expect("a write to memory");
    }
}
