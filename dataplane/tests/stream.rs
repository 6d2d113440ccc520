//! The TLS stream over a scripted transport: short reads, records split anywhere, both sides in one
//! thread without a kernel. Every seed fragments the bytes differently, as real sockets do by
//! chance.

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
use dataplane::testing::runtime::{self, Driver, Reader, Writer};
use dataplane::testing::tls::Subsystem;
use dataplane::testing::tls::client_hello::{self, ClientHelloError};
use dataplane::testing::tls::handshake::{self, HandshakeError, TlsHandshake};
use dataplane::testing::tls::handshake_state::RejectedCertificate;
use dataplane::testing::tls::record::RecordLayerKind;
use dataplane::testing::tls::site_config::{self, SiteConfigFactory};
use dataplane::testing::tls::stream::TlsStream;
use dataplane::testing::tls::transport::TlsTransport;
use hyper::rt::{Read, ReadBuf, Write};
use model::{HostName, Id, KeyPair, Ssl, TlsVersion};
use pki::ca::{Authority, AuthoritySpec, IssuedCertificate, LeafSpec};
use pki::{ClientAuth, ClientAuthInput};
use rustls::crypto::aws_lc_rs::kx_group;
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::{ClientConnection, RootCertStore};

#[cfg(feature = "engine-boring")]
#[path = "stream/tls11.rs"]
mod tls11;

// === a pipe that fragments by its seed ===

#[derive(Default)]
struct Pipe {
    bytes: VecDeque<u8>,
    closed: bool,
    waker: Option<Waker>,
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
        pipe.waker.take().into_iter().for_each(Waker::wake);
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
                pipe.waker = Some(cx.waker().clone());
                return Poll::Pending;
            }
            // Mostly a few bytes, sometimes a full buffer; one byte at a time with seed 0.
            let max = match (self.seed, next(&mut self.seed) % 4) {
                (0, _) => 1,
                (_, 0) => buf.capacity(),
                (_, _) => usize::try_from(next(&mut self.seed) % 700 + 1).unwrap(),
            };
            let n = max.min(buf.capacity()).min(pipe.bytes.len());
            buf.clear();
            buf.extend(pipe.bytes.drain(..n));
            Poll::Ready(n)
        })
        .await;
        (self, Ok(n), buf)
    }
}

/// The most that one write takes. Bytes.
const WRITE_MAX: usize = 700;

impl Writer for PipeWriter {
    async fn write(self, buf: Vec<u8>) -> (Self, io::Result<usize>, Vec<u8>) {
        let n = {
            let mut pipe = self.0.borrow_mut();
            let n = buf.len().min(WRITE_MAX);
            pipe.bytes.extend(buf.get(..n).unwrap_or_default());
            pipe.waker.take().into_iter().for_each(Waker::wake);
            n
        };
        (self, Ok(n), buf)
    }
}

type TestSocket = BufferedSocket<PipeReader, PipeWriter>;
type TestStream = TlsStream<PipeReader, PipeWriter>;

fn sockets(seed: u64) -> (TestSocket, TestSocket) {
    let (a, b) = (Rc::<RefCell<Pipe>>::default(), Rc::<RefCell<Pipe>>::default());
    let socket = |from: &Rc<RefCell<Pipe>>, to: &Rc<RefCell<Pipe>>, seed| {
        let reader = PipeReader { pipe: Rc::clone(from), seed };
        BufferedSocket::from_halves(reader, PipeWriter(Rc::clone(to)), None)
    };
    (socket(&a, &b, seed), socket(&b, &a, seed.wrapping_mul(31)))
}

// === the two sides ===

struct World {
    authority: Authority,
    site: Ssl,
    factory: SiteConfigFactory,
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
            pairs: vec![KeyPair { chain: server.chain.clone(), key: Arc::new(server.key().unwrap()) }],
            client: Some(Arc::new(policy)),
            ..Ssl::new(Id::parse("1").unwrap())
        };
        let provider = Arc::new(site_config::crypto_provider());
        let factory = SiteConfigFactory::new(provider, versions, true, None, RecordLayerKind::Own);
        Self { authority, site, factory }
    }

    fn client(&self, identity: Option<&IssuedCertificate>) -> TlsHandshake {
        self.client_with_groups(identity, site_config::crypto_provider().kx_groups)
    }

    /// A client with these groups. Few groups make a short ClientHello.
    fn client_with_groups(
        &self,
        identity: Option<&IssuedCertificate>,
        kx_groups: Vec<&'static dyn SupportedKxGroup>,
    ) -> TlsHandshake {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.certificate().der().clone()).unwrap();
        let provider = CryptoProvider { kx_groups, ..site_config::crypto_provider() };
        let builder = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match identity {
            None => builder.with_no_client_auth(),
            Some(issued) => {
                let chain = issued.chain.iter().map(|c| c.der().clone()).collect();
                builder.with_client_auth_cert(chain, issued.key().unwrap().der().clone_key()).unwrap()
            }
        };
        ClientConnection::new(Arc::new(config), "a.example".try_into().unwrap()).unwrap().into()
    }

    async fn accept(&self, socket: TestSocket) -> Result<TestStream, HandshakeError> {
        let (result, _rejected, socket) = self.handshake(socket).await;
        result.map(|tls| TlsStream::new(tls, socket))
    }

    /// The client certificate that the handshake rejected.
    async fn accept_rejected(&self, socket: TestSocket) -> Option<RejectedCertificate> {
        let (result, rejected, _socket) = self.handshake(socket).await;
        assert!(result.is_err());
        rejected
    }

    /// Runs the server's handshake, and sends the alert if it fails.
    async fn handshake(
        &self,
        mut socket: TestSocket,
    ) -> (Result<TlsTransport, HandshakeError>, Option<RejectedCertificate>, TestSocket) {
        let hello = client_hello::read(&mut socket).await.unwrap();
        assert_eq!(hello.server_name(None), HostName::from_sni("a.example"));
        let config = self.factory.config(&self.site, Subsystem::Http).unwrap();
        let mut tls = match hello.start_handshake(config, socket.write_buf()) {
            Ok(tls) => tls,
            Err(error) => return (Err(error), None, socket),
        };
        match handshake::drive(&mut tls, &mut socket).await {
            Ok(()) => (Ok(tls.into_transport()), None, socket),
            Err(error) => {
                poll_fn(|cx| socket.poll_flush(cx)).await.unwrap();
                (Err(error), tls.take_rejected_certificate(), socket)
            }
        }
    }

    async fn connect(
        &self,
        mut socket: TestSocket,
        identity: Option<&IssuedCertificate>,
    ) -> Result<TestStream, HandshakeError> {
        let mut tls = self.client(identity);
        handshake::drive(&mut tls, &mut socket).await?;
        let mut stream = TlsStream::new(tls.into_transport(), socket);
        // Sends the last flight, which would leave with the first request.
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

/// The versions of sites of rustls, and of BoringSSL where it is built in.
const EVERY_ENGINE: &[&[TlsVersion]] = &[
    &[TlsVersion::V12],
    &[TlsVersion::V13],
    #[cfg(feature = "engine-boring")]
    &[TlsVersion::V11, TlsVersion::V12],
    #[cfg(feature = "engine-boring")]
    &[TlsVersion::V11, TlsVersion::V12, TlsVersion::V13],
];

// === the tests ===

#[test]
fn data_arrives_in_any_fragmentation() {
    for versions in EVERY_ENGINE {
        let world = World::new(versions);
        let client = world.authority.issue(&LeafSpec::client("client")).unwrap();
        for seed in [0, 1, 7, 1234, 98765] {
            let len = if seed == 0 { 3_000 } else { 300_000 };
            let (up, down) = (pattern(len, seed), pattern(len + 17, seed + 1));
            run(|| async {
                let (near, far) = sockets(seed);
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

/// The record of a ClientHello as several records, of these lengths and the rest.
fn fragmented(hello: &[u8], lengths: impl IntoIterator<Item = usize>) -> Vec<u8> {
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

/// Over records, over reads, and over both at once.
#[test]
fn a_client_hello_is_read_in_any_fragmentation() {
    for versions in EVERY_ENGINE {
        let world = World::new(versions);
        let client = world.authority.issue(&LeafSpec::client("client")).unwrap();
        // In TLS 1.2 a client must also offer the curve of the site's certificate (RFC 8422 section
        // 5.1).
        let groups = || vec![kx_group::X25519, kx_group::SECP256R1];
        let handshake_over = |lengths: Vec<usize>, seed| {
            run(|| async {
                let (near, mut far) = sockets(seed);
                let mut tls = world.client_with_groups(Some(&client), groups());
                let mut hello = Vec::new();
                tls.write_tls(&mut hello);
                far.write_buf().extend_from_slice(&fragmented(&hello, lengths.iter().copied()));
                let client = async move {
                    handshake::drive(&mut tls, &mut far).await?;
                    let mut stream = TlsStream::new(tls.into_transport(), far);
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
        world.client_with_groups(Some(&client), groups()).write_tls(&mut hello);
        let payload = hello.len() - 5;
        for at in 1..payload {
            handshake_over(vec![at], 1 + at as u64);
        }
        handshake_over(vec![1; payload], 0); // one byte a record and a read
        handshake_over(vec![1; payload], 7);
        handshake_over(vec![2, 1, 3], 0); // within the header of the message
    }
}

#[test]
fn a_client_without_a_certificate_is_rejected_with_an_alert() {
    for versions in EVERY_ENGINE {
        let world = World::new(versions);
        run(|| async {
            let (near, far) = sockets(5);
            let (server, client) = futures_util::join!(world.accept(near), world.connect(far, None));
            match server {
                Err(HandshakeError::Rustls(error)) => {
                    assert_eq!(error, rustls::Error::NoCertificatesPresented);
                }
                #[cfg(feature = "engine-boring")]
                Err(HandshakeError::Boring(error)) => {
                    assert!(error.is("PEER_DID_NOT_RETURN_A_CERTIFICATE"), "{error}");
                }
                other => panic!("{:?}", other.map(drop)),
            }
            // A TLS 1.3 client gets the alert with its first read.
            let error = match client {
                Err(HandshakeError::Rustls(error)) => error.to_string(),
                Err(other) => panic!("{other}"),
                Ok(mut stream) => receive(&mut stream, 1).await.unwrap_err().to_string(),
            };
            assert!(error.contains("CertificateRequired") || error.contains("HandshakeFailure"), "{error}");
        });
    }
}

#[test]
fn the_handshake_keeps_a_rejected_certificate_for_the_log() {
    let other = Authority::root(&AuthoritySpec::new("other CA")).unwrap();
    let other = other.issue(&LeafSpec::client("client")).unwrap();
    for versions in EVERY_ENGINE {
        let world = World::new(versions);
        run(|| async {
            let (near, far) = sockets(9);
            let (server, client) =
                futures_util::join!(world.accept_rejected(near), world.connect(far, Some(&other)));
            let rejected = server.expect("the verifier rejected the certificate");
            assert_eq!(rejected.error.reason().as_str(), "unknown_issuer");
            assert_eq!(&rejected.leaf, other.certificate.der());
            let alert = match client {
                Err(error) => error.to_string(),
                Ok(mut stream) => receive(&mut stream, 1).await.unwrap_err().to_string(),
            };
            assert!(alert.contains("UnknownCA"), "{versions:?}: {alert}");
        });
    }
}

#[test]
fn plain_http_and_other_bytes_are_distinguished() {
    run(|| async {
        for (bytes, is_http) in [(&b"GET / HTTP/1.1\r\n\r\n"[..], true), (b"\x00\x01garbage", false)] {
            let (mut near, mut far) = sockets(3);
            far.write_buf().extend_from_slice(bytes);
            poll_fn(|cx| far.poll_flush(cx)).await.unwrap();
            match client_hello::read(&mut near).await {
                Err(ClientHelloError::PlainHttp) => assert!(is_http),
                Err(ClientHelloError::NotTls) => assert!(!is_http),
                other => panic!("{:?}", other.map(drop)),
            }
        }
        let (mut near, far) = sockets(3);
        drop(far);
        assert!(matches!(client_hello::read(&mut near).await, Err(ClientHelloError::UnexpectedEof)));
    });
}

#[test]
fn a_truncated_handshake_fails() {
    let world = World::new(&[TlsVersion::V13]);
    run(|| async {
        let (near, mut far) = sockets(11);
        let mut hello = Vec::new();
        world.client(None).write_tls(&mut hello);
        far.write_buf().extend_from_slice(&hello);
        poll_fn(|cx| far.poll_flush(cx)).await.unwrap();
        drop(far);
        assert!(matches!(world.accept(near).await, Err(HandshakeError::UnexpectedEof)));
    });
}
