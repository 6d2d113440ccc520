//! The first flight of a client, through the data plane's own ClientHello reader, site and
//! handshake.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};

use dataplane::testing::io::buffered::BufferedSocket;
use dataplane::testing::runtime::{Reader, Writer};
use dataplane::testing::tls::client_hello::{self, ClientHelloError};
use dataplane::testing::tls::record::RecordLayerKind;
use dataplane::testing::tls::site_config::{self, SiteConfigFactory};
use dataplane::testing::tls::{Subsystem, handshake};
use model::{HostName, Id, KeyPair, SniPattern, Ssl, TlsVersion};
use pki::ca::{Authority, AuthoritySpec, LeafSpec};
use pki::{ClientAuth, ClientAuthInput};

/// Longer flights are truncated: the bytes behind a ClientHello belong to the handshake.
const FLIGHT: usize = 1 << 17;

struct ClientHelloWorld {
    sites: SiteConfigFactory,
    site: Ssl,
}

static WORLD: LazyLock<ClientHelloWorld> = LazyLock::new(|| {
    let authority = Authority::root(&AuthoritySpec::new("Fuzz CA")).expect("a root");
    let server = authority.issue(&LeafSpec::server("a.example")).expect("a leaf");
    let input = ClientAuthInput { anchors: vec![authority.certificate().clone()], ..Default::default() };
    let versions = [TlsVersion::V12, TlsVersion::V13];
    let site = Ssl {
        names: vec![SniPattern::parse("*").expect("a name")],
        pairs: vec![KeyPair { key: Arc::new(server.key().expect("its key")), chain: server.chain }],
        client: Some(Arc::new(ClientAuth::new(input).expect("a policy"))),
        versions: Some(versions.to_vec()),
        ..Ssl::new(Id::parse("fuzz").expect("an id"))
    };
    ClientHelloWorld {
        sites: SiteConfigFactory::new(
            Arc::new(site_config::crypto_provider()),
            &versions,
            true,
            None,
            RecordLayerKind::Own,
        ),
        site,
    }
});

/// Returns the remaining bytes in pieces of at most `most` bytes, then the end.
struct Pieces {
    rest: VecDeque<u8>,
    most: usize,
}

impl Reader for Pieces {
    async fn read(mut self, mut buf: Vec<u8>) -> (Self, io::Result<usize>, Vec<u8>) {
        let n = self.most.min(buf.capacity()).min(self.rest.len());
        buf.clear();
        buf.extend(self.rest.drain(..n));
        (self, Ok(n), buf)
    }
}

/// Records the sent bytes.
struct Kept(Rc<RefCell<Vec<u8>>>);

impl Writer for Kept {
    async fn write(self, buf: Vec<u8>) -> (Self, io::Result<usize>, Vec<u8>) {
        self.0.borrow_mut().extend_from_slice(&buf);
        let written = buf.len();
        (self, Ok(written), buf)
    }
}

/// The outcome of a flight, which must not depend on the pieces in which it arrives. The kind of
/// error may differ: a record that is both malformed and unfinished is malformed when it arrives
/// together with the one before it, and unfinished when it arrives alone.
#[derive(Debug, PartialEq, Eq)]
enum FlightOutcome {
    NotTls,
    PlainHttp,
    /// TLS, perhaps, but no ClientHello.
    Rejected,
    /// A ClientHello with this name; its handshake fails, because no client key exists.
    Hello(Option<HostName>),
}

/// The first byte is the piece size of the second run.
pub fn check(data: &[u8]) {
    let Some((&most, flight)) = data.split_first() else { return };
    let flight = &flight[..flight.len().min(FLIGHT)];
    let whole = outcome(flight, usize::MAX);
    assert_eq!(outcome(flight, usize::from(most).max(1)), whole, "in pieces of {most}");
}

fn outcome(flight: &[u8], most: usize) -> FlightOutcome {
    let sent = Rc::<RefCell<Vec<u8>>>::default();
    let reader = Pieces { rest: flight.iter().copied().collect(), most };
    let socket = BufferedSocket::from_halves(reader, Kept(Rc::clone(&sent)), None);
    let outcome = finish(walk(socket));
    let answered = sent.borrow();
    // The response consists of records: of the handshake, or an alert.
    assert!(answered.is_empty() || matches!(answered[0], 20..=22), "{answered:?}");
    outcome
}

/// The reader and the writer are always ready, so a pending future would never complete.
fn finish<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let mut context = Context::from_waker(futures_util::task::noop_waker_ref());
    for _ in 0..1_000_000 {
        if let Poll::Ready(done) = future.as_mut().poll(&mut context) {
            return done;
        }
    }
    panic!("the walk does not end");
}

async fn walk(mut socket: BufferedSocket<Pieces, Kept>) -> FlightOutcome {
    let hello = match client_hello::read(&mut socket).await {
        Ok(hello) => hello,
        Err(error) => {
            let _ = poll_fn(|cx| socket.poll_flush(cx)).await;
            return match error {
                ClientHelloError::PlainHttp => FlightOutcome::PlainHttp,
                ClientHelloError::NotTls => FlightOutcome::NotTls,
                ClientHelloError::UnexpectedEof | ClientHelloError::Io(_) | ClientHelloError::Tls(_) => {
                    FlightOutcome::Rejected
                }
            };
        }
    };
    let sni = hello.server_name(None);
    if let Some(name) = &sni {
        assert_eq!(HostName::from_sni(name.as_str()).as_ref(), Some(name), "a name is its own normal form");
    }
    let config = WORLD.sites.config(&WORLD.site, Subsystem::Http).expect("the site can be served");
    if let Ok(mut tls) = hello.start_handshake(config, socket.write_buf()) {
        assert!(handshake::drive(&mut tls, &mut socket).await.is_err(), "the client's key is unknown");
    }
    let _ = poll_fn(|cx| socket.poll_flush(cx)).await;
    FlightOutcome::Hello(sni)
}
