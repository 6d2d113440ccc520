//! The data plane's side of a handshake over two buffers, and a client that answers between its polls.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use dataplane::agent::Secrets;
use dataplane::net::pump::Pump;
use dataplane::rt::{Reader, Writer};
use dataplane::tls::ticket::Resumption;
use dataplane::tls::verify;
use dataplane::tls::{engine::Engine, handshake as drive, hello, site};
use model::admission::Client;
use model::{Id, Kind, Resource, Snapshot, TicketRing, TicketSecret, TlsVersion, Versioned};
use rustls::{ClientConfig, ClientConnection};
use rustls_pki_types::{ServerName, UnixTime};
use serde_json::json;
use zeroize::Zeroizing;

use super::{Credentials, HOST};

/// What a worker has at hand: the snapshot and the prepared configurations.
pub struct Desk {
    snapshot: Arc<Snapshot>,
    sites: site::Sites,
}

impl Desk {
    /// One site of these versions, which choose the engine; `ask`: it demands a client certificate.
    pub fn new(credentials: &Credentials, ask: bool, versions: &[TlsVersion]) -> Rc<Self> {
        let mut document = json!({
            "cert": credentials.server.chain_pem,
            "key": credentials.server.key_pem.as_str(),
            "snis": [HOST],
        });
        if let (true, Some(fields)) = (ask, document.as_object_mut()) {
            let ca = credentials.client_root.certificate_pem();
            fields.insert("client".to_owned(), json!({"ca": ca, "depth": 1}));
        }
        let id = Id::parse("bench").expect("an id");
        let resource =
            model::check(Kind::Ssl, &id, &document, &pki::Keyring::none()).expect("a good document");
        assert!(matches!(&resource, Resource::Ssl(_)));
        let snapshot = Snapshot::from_resources(1, [Versioned { revision: 1, resource }]);
        let provider = Arc::new(site::provider());
        let secrets = Arc::new(Secrets::default());
        // As many as a ring has when it has been turning for a while.
        let secret = |nth: u8| TicketSecret::new(u64::from(nth), Zeroizing::new([nth; 32]));
        secrets.store(Arc::new(TicketRing { lifetime: 3600, secrets: (1..=5).map(secret).collect() }));
        let sites = site::Sites::new(provider, versions, true, Some(secrets));
        Rc::new(Self { snapshot: Arc::new(snapshot), sites })
    }
}

/// Both directions of a connection.
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
    async fn write_all(self, buf: Vec<u8>) -> (Self, io::Result<()>, Vec<u8>) {
        self.0.borrow_mut().to_client.extend_from_slice(&buf);
        (self, Ok(()), buf)
    }
}

/// What a handshake ends with.
struct Established {
    tls: Engine,
    pump: Pump<Half, Half>,
    client: Client,
}

/// The walk of `dataplane::connection::establish`, stage by stage.
async fn establish(desk: Rc<Desk>, half: Half) -> Established {
    let mut pump = Pump::from_halves(half.clone(), half, None);
    let hello = hello::read(&mut pump).await.expect("a ClientHello");
    let name = hello.server_name(None).expect("a name");
    let ssl = Arc::clone(desk.snapshot.site(&name).expect("the site"));
    let config = desk.sites.config(&ssl, site::Purpose::Http).expect("its configuration");
    let mut resumption = Resumption::default();
    let mut tls =
        resumption.during(|| hello.begin(config, pump.staged())).expect("the ClientHello suits the site");
    drive::drive_with(&mut tls, &mut pump, &mut resumption).await.expect("a handshake");
    let client = verify::client_of(ssl.client.as_deref(), Some(&tls.peer_chain()), UnixTime::now());
    Established { tls, pump, client }
}

/// One handshake; gives the time the server's polls took.
pub fn handshake(desk: &Rc<Desk>, config: &Arc<ClientConfig>) -> Duration {
    let (took, established) = run(desk, config);
    assert!(!matches!(established.client, Client::Refused(_) | Client::Absent), "the client is accepted");
    took
}

/// Whether a second handshake with the same client is resumed.
pub fn resumes(desk: &Rc<Desk>, config: &Arc<ClientConfig>) -> bool {
    let _first = run(desk, config);
    let (_, second) = run(desk, config);
    second.tls.is_resumed()
}

fn run(desk: &Rc<Desk>, config: &Arc<ClientConfig>) -> (Duration, Established) {
    let half = Half::default();
    let name = ServerName::try_from(HOST).expect("a name");
    let mut client = ClientConnection::new(Arc::clone(config), name).expect("a client");
    exchange(&mut client, &half);
    let mut server = Box::pin(establish(Rc::clone(desk), half.clone()));
    let mut context = Context::from_waker(Waker::noop());
    let mut took = Duration::ZERO;
    let mut established = loop {
        let started = Instant::now();
        let polled = server.as_mut().poll(&mut context);
        took += started.elapsed();
        match polled {
            Poll::Ready(established) => break established,
            Poll::Pending => exchange(&mut client, &half),
        }
    };
    // Tickets wait for the first flush; the client must see them for its next handshake.
    let flushed = poll_fn(|cx| established.pump.poll_drain(cx));
    let flushed = std::pin::pin!(flushed).poll(&mut context);
    assert!(matches!(flushed, Poll::Ready(Ok(()))), "a write to memory does not wait");
    exchange(&mut client, &half);
    assert!(!client.is_handshaking(), "both sides are done");
    (took, established)
}

/// The client reads what is there and answers.
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
