//! The TLS stream over a scripted transport: short reads, records split anywhere, both ends in one
//! thread, the kernel left out. What a real socket does by chance happens here for every seed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};

use dataplane::testing::io::buffered::BufferedSocket;
use dataplane::testing::runtime;
use dataplane::testing::runtime::{Driver, Reader, Writer};
use dataplane::testing::tls::client_hello::ClientHelloError;
use dataplane::testing::tls::handshake::HandshakeError;
use dataplane::testing::tls::record::traffic_secrets::RecordLayerKind;
use dataplane::testing::tls::site_config::{SiteConfigFactory, Subsystem};
use dataplane::testing::tls::stream::TlsStream;
use dataplane::testing::tls::transport::{TlsTransport, TransportError};
use dataplane::testing::tls::{client_hello, client_verifier, handshake, site_config};
use hyper::rt::{Read, ReadBuf, Write};
use model::{CacheSlot, HostName, Id, KeyPair, Ssl, TlsVersion};
use pki::ca::{Authority, AuthoritySpec, IssuedCertificate, LeafSpec};
use pki::{ClientAuth, ClientAuthInput};
use rustls::crypto::aws_lc_rs::kx_group;
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::{ClientConnection, RootCertStore};

#[cfg(feature = "engine-boring")]
#[path = "stream/old.rs"]
mod old;

// === a pipe that splits as its seed says ===

#[derive(Default)]
struct Pipe {
    bytes: VecDeque<u8>,
    closed: bool,
    waiting: Option<Waker>,
}

struct PipeReader {
    pipe: Rc<RefCell<Pipe>>,
    seed: u64,
}

struct PipeWriter(Rc<RefCell<Pipe>>);

impl Drop for PipeWriter {
    fn drop(&mut self) {
        let mut pipe = self.0.borrow_mut();
        pipe.closed = true;
        pipe.waiting.take().into_iter().for_each(Waker::wake);
    }
}

fn next(seed: &mut u64) -> u64 {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    *seed
}

impl Reader for PipeReader {
    async fn read(mut self, mut buf: Vec<u8>) -> (Self, io::Result<usize>, Vec<u8>) {
        let n = poll_fn(|cx| {
            let mut pipe = self.pipe.borrow_mut();
            if pipe.bytes.is_empty() && !pipe.closed {
                pipe.waiting = Some(cx.waker().clone());
                return Poll::Pending;
            }
            // Mostly a few bytes, sometimes all there is room for; seed 0 gives one byte at a time.
            let most = match (self.seed, next(&mut self.seed) % 4) {
                (0, _) => 1,
                (_, 0) => buf.capacity(),
                (_, _) => usize::try_from(next(&mut self.seed) % 700 + 1).unwrap(),
            };
            let n = most.min(buf.capacity()).min(pipe.bytes.len());
            buf.clear();
            buf.extend(pipe.bytes.drain(..n));
            Poll::Ready(n)
        })
        .await;
        (self, Ok(n), buf)
    }
}

/// What one write takes at the most, in bytes.
const WRITTEN_AT_ONCE: usize = 700;

impl Writer for PipeWriter {
    async fn write(self, buf: Vec<u8>) -> (Self, io::Result<usize>, Vec<u8>) {
        let taken = {
            let mut pipe = self.0.borrow_mut();
            // In parts: what was not taken is written again.
            let taken = buf.len().min(WRITTEN_AT_ONCE);
            pipe.bytes.extend(buf.get(..taken).unwrap_or_default());
            pipe.waiting.take().into_iter().for_each(Waker::wake);
            taken
        };
        (self, Ok(taken), buf)
    }
}

type TestPump = BufferedSocket<PipeReader, PipeWriter>;
type TestStream = TlsStream<PipeReader, PipeWriter>;

fn pumps(seed: u64) -> (TestPump, TestPump) {
    let (a, b) = (Rc::<RefCell<Pipe>>::default(), Rc::<RefCell<Pipe>>::default());
    let pump = |from: &Rc<RefCell<Pipe>>, to: &Rc<RefCell<Pipe>>, seed| {
        BufferedSocket::from_halves(
            PipeReader { pipe: Rc::clone(from), seed },
            PipeWriter(Rc::clone(to)),
            None,
        )
    };
    (pump(&a, &b, seed), pump(&b, &a, seed.wrapping_mul(31)))
}

// === the two sides ===

struct World {
    authority: Authority,
    site: Ssl,
    sites: SiteConfigFactory,
}

impl World {
    fn new(versions: &[TlsVersion]) -> Self {
        let authority = Authority::root(&AuthoritySpec::new("test CA")).unwrap();
        let server = authority.issue(&LeafSpec::server("a.example")).unwrap();
        let policy = ClientAuth::new(ClientAuthInput {
            anchors: vec![authority.certificate().clone()],
            depth: 1,
            skip_uri_patterns: vec![],
            crls: vec![],
            crl_prefer: false,
        })
        .unwrap();
        let site = Ssl {
            id: Id::parse("1").unwrap(),
            client_side: false,
            names: vec![],
            pairs: vec![KeyPair { chain: server.chain.clone(), key: Arc::new(server.key().unwrap()) }],
            client: Some(Arc::new(policy)),
            versions: None,
            enabled: true,
            cache: CacheSlot::new(),
            blocked: None,
        };
        let sites = SiteConfigFactory::new(
            Arc::new(site_config::crypto_provider()),
            versions,
            true,
            None,
            RecordLayerKind::Own,
        );
        Self { authority, site, sites }
    }

    fn client(&self, identity: Option<&IssuedCertificate>) -> TlsTransport {
        self.client_of(identity, site_config::crypto_provider().kx_groups)
    }

    /// A client with these groups: few make a short ClientHello.
    fn client_of(
        &self,
        identity: Option<&IssuedCertificate>,
        kx_groups: Vec<&'static dyn SupportedKxGroup>,
    ) -> TlsTransport {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.certificate().der().clone()).unwrap();
        let provider = CryptoProvider { kx_groups, ..site_config::crypto_provider() };
        let builder = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match identity {
            None => builder.with_no_client_auth(),
            Some(minted) => {
                let chain = minted.chain.iter().map(|c| c.der().clone()).collect();
                builder.with_client_auth_cert(chain, minted.key().unwrap().der().clone_key()).unwrap()
            }
        };
        ClientConnection::new(Arc::new(config), "a.example".try_into().unwrap()).unwrap().into()
    }

    async fn accept(&self, mut pump: TestPump) -> Result<TestStream, HandshakeError> {
        let hello = client_hello::read(&mut pump).await.unwrap();
        assert_eq!(hello.server_name(None), HostName::from_sni("a.example"));
        let config = self.sites.config(&self.site, Subsystem::Http).unwrap();
        let mut tls = hello.start_handshake(config, pump.write_buf())?;
        match handshake::drive(&mut tls, &mut pump).await {
            Ok(()) => Ok(TlsStream::new(tls, pump)),
            Err(error) => {
                poll_fn(|cx| pump.poll_flush(cx)).await.unwrap();
                Err(error)
            }
        }
    }

    async fn connect(
        &self,
        mut pump: TestPump,
        identity: Option<&IssuedCertificate>,
    ) -> Result<TestStream, HandshakeError> {
        let mut tls = self.client(identity);
        handshake::drive(&mut tls, &mut pump).await?;
        let mut stream = TlsStream::new(tls, pump);
        // The last flight goes out with the first flush; without a request to send that is now.
        poll_fn(|cx| Pin::new(&mut stream).poll_flush(cx)).await?;
        Ok(stream)
    }
}

async fn send(stream: &mut TestStream, data: &[u8]) -> io::Result<()> {
    let mut rest = data;
    while !rest.is_empty() {
        let n = poll_fn(|cx| Pin::new(&mut *stream).poll_write(cx, rest)).await?;
        rest = &rest[n..];
    }
    poll_fn(|cx| Pin::new(&mut *stream).poll_flush(cx)).await
}

async fn receive(stream: &mut TestStream, mut len: usize) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    while len > 0 {
        let mut room = [0; 5000];
        let mut buf = ReadBuf::new(&mut room);
        poll_fn(|cx| Pin::new(&mut *stream).poll_read(cx, buf.unfilled())).await?;
        if buf.filled().is_empty() {
            break;
        }
        all.extend_from_slice(buf.filled());
        len = len.saturating_sub(buf.filled().len());
    }
    Ok(all)
}

fn run<F: Future>(test: impl FnOnce() -> F) -> F::Output {
    runtime::block_on(&Driver::detect(), test).unwrap()
}

fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut seed = seed | 1;
    (0..len).map(|_| next(&mut seed).to_le_bytes()[0]).collect()
}

/// Lists of versions that rustls serves, and, where it is built in, that BoringSSL serves: a rustls
/// client finds the same.
const EVERY_ENGINE: &[&[TlsVersion]] = &[
    &[TlsVersion::V12],
    &[TlsVersion::V13],
    #[cfg(feature = "engine-boring")]
    &[TlsVersion::V11, TlsVersion::V12],
    #[cfg(feature = "engine-boring")]
    &[TlsVersion::V11, TlsVersion::V12, TlsVersion::V13],
];

// === the rules ===

#[test]
fn bytes_arrive_as_sent_however_the_transport_splits_them() {
    for versions in EVERY_ENGINE {
        let world = World::new(versions);
        let client = world.authority.issue(&LeafSpec::client("client")).unwrap();
        for seed in [0, 1, 7, 1234, 98765] {
            let len = if seed == 0 { 3_000 } else { 300_000 };
            let (up, down) = (pattern(len, seed), pattern(len + 17, seed + 1));
            run(|| async {
                let (near, far) = pumps(seed);
                let (server, client) =
                    futures_util::join!(world.accept(near), world.connect(far, Some(&client)));
                let (mut server, mut client) = (server.unwrap(), client.unwrap());
                let (sent, got) = futures_util::join!(send(&mut client, &up), receive(&mut server, up.len()));
                sent.unwrap();
                assert!(got.unwrap() == up, "seed {seed} {versions:?} up");
                let (sent, got) =
                    futures_util::join!(send(&mut server, &down), receive(&mut client, down.len()));
                sent.unwrap();
                assert!(got.unwrap() == down, "seed {seed} {versions:?} down");
            });
        }
    }
}

/// A record of the ClientHello as records of these lengths, and the rest of the bytes as they are.
fn rerecorded(hello: &[u8], lengths: impl IntoIterator<Item = usize>) -> Vec<u8> {
    let (header, mut payload) = hello.split_at(5);
    let mut out = Vec::new();
    for length in lengths.into_iter().chain([usize::MAX]) {
        let (record, rest) = payload.split_at(length.min(payload.len()));
        if !record.is_empty() {
            out.extend_from_slice(&header[..3]);
            out.extend_from_slice(&u16::try_from(record.len()).unwrap().to_be_bytes());
            out.extend_from_slice(record);
        }
        payload = rest;
    }
    out
}

/// Over records, over the transport's pieces, and over both at once: one ClientHello, one verdict.
#[test]
fn a_client_hello_split_at_every_byte_over_records_is_understood() {
    for versions in EVERY_ENGINE {
        let world = World::new(versions);
        let client = world.authority.issue(&LeafSpec::client("client")).unwrap();
        // The second is the curve of the site's certificate, which in TLS 1.2 a client has to name too (RFC
        // 8422 section 5.1).
        let groups = || vec![kx_group::X25519, kx_group::SECP256R1];
        let shake_hands = |lengths: Vec<usize>, seed| {
            run(|| async {
                let (near, mut far) = pumps(seed);
                let mut tls = world.client_of(Some(&client), groups());
                let mut hello = Vec::new();
                tls.write_tls(&mut hello).unwrap();
                far.write_buf().extend_from_slice(&rerecorded(&hello, lengths.iter().copied()));
                let client = async {
                    handshake::drive(&mut tls, &mut far).await?;
                    let mut stream = TlsStream::new(tls, far);
                    send(&mut stream, b"hello").await?;
                    Ok::<_, HandshakeError>(stream)
                };
                let server = async {
                    let mut stream = world.accept(near).await?;
                    receive(&mut stream, 5).await.map_err(HandshakeError::from)
                };
                let (got, client) = futures_util::join!(server, client);
                assert_eq!(got.unwrap(), b"hello", "{versions:?} {lengths:?} {seed}");
                client.unwrap();
            });
        };
        let mut hello = Vec::new();
        world.client_of(Some(&client), groups()).write_tls(&mut hello).unwrap();
        let payload = hello.len() - 5;
        for at in 1..payload {
            shake_hands(vec![at], 1 + at as u64);
        }
        shake_hands(vec![1; payload], 0); // every byte a record, and every byte a piece
        shake_hands(vec![1; payload], 7);
        shake_hands(vec![2, 1, 3], 0); // within the message's own header
    }
}

#[test]
fn a_client_without_a_certificate_is_refused_and_hears_an_alert() {
    for versions in EVERY_ENGINE {
        let world = World::new(versions);
        run(|| async {
            let (near, far) = pumps(5);
            let (server, client) = futures_util::join!(world.accept(near), world.connect(far, None));
            match server {
                Err(HandshakeError::Tls(TransportError::Rustls(error))) => {
                    assert_eq!(error, rustls::Error::NoCertificatesPresented);
                }
                #[cfg(feature = "engine-boring")]
                Err(HandshakeError::Tls(TransportError::Boring(error))) => {
                    assert!(error.is("PEER_DID_NOT_RETURN_A_CERTIFICATE"), "{error}");
                }
                other => panic!("{:?}", other.map(drop)),
            }
            // TLS 1.3 clients learn it with their first read.
            let error = match client {
                Err(HandshakeError::Tls(error)) => error.to_string(),
                Err(other) => panic!("{other}"),
                Ok(mut stream) => receive(&mut stream, 1).await.unwrap_err().to_string(),
            };
            assert!(error.contains("CertificateRequired") || error.contains("HandshakeFailure"), "{error}");
        });
    }
}

#[test]
fn a_stranger_is_refused_and_the_verdict_is_kept_for_the_log() {
    let stranger = Authority::root(&AuthoritySpec::new("other CA")).unwrap();
    let stranger = stranger.issue(&LeafSpec::client("client")).unwrap();
    for versions in EVERY_ENGINE {
        let world = World::new(versions);
        run(|| async {
            let (near, far) = pumps(9);
            let (server, client) =
                futures_util::join!(world.accept(near), world.connect(far, Some(&stranger)));
            assert!(server.is_err());
            let refusal =
                client_verifier::take_rejected_certificate().expect("the verifier left its verdict");
            assert_eq!(refusal.error.reason().as_str(), "unknown_issuer");
            assert_eq!(&refusal.leaf, stranger.certificate.der());
            assert!(client_verifier::take_rejected_certificate().is_none(), "told once");
            let alert = match client {
                Err(error) => error.to_string(),
                Ok(mut stream) => receive(&mut stream, 1).await.unwrap_err().to_string(),
            };
            assert!(alert.contains("UnknownCA"), "{versions:?}: {alert}");
        });
    }
}

#[test]
fn what_is_not_tls_is_told_apart() {
    run(|| async {
        for (bytes, plain) in [(&b"GET / HTTP/1.1\r\n\r\n"[..], true), (b"\x00\x01garbage", false)] {
            let (mut near, mut far) = pumps(3);
            far.write_buf().extend_from_slice(bytes);
            poll_fn(|cx| far.poll_flush(cx)).await.unwrap();
            match client_hello::read(&mut near).await {
                Err(ClientHelloError::PlainHttp) => assert!(plain),
                Err(ClientHelloError::NotTls) => assert!(!plain),
                other => panic!("{:?}", other.map(drop)),
            }
        }
        let (mut near, far) = pumps(3);
        drop(far);
        assert!(matches!(client_hello::read(&mut near).await, Err(ClientHelloError::UnexpectedEof)));
    });
}

#[test]
fn a_cut_connection_ends_the_handshake() {
    let world = World::new(&[TlsVersion::V13]);
    run(|| async {
        let (near, mut far) = pumps(11);
        let mut hello = Vec::new();
        world.client(None).write_tls(&mut hello).unwrap();
        far.write_buf().extend_from_slice(&hello);
        poll_fn(|cx| far.poll_flush(cx)).await.unwrap();
        drop(far);
        assert!(matches!(world.accept(near).await, Err(HandshakeError::UnexpectedEof)));
    });
}
