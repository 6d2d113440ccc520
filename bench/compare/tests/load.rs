//! The load generator against a TLS server of rustls in this process: its counts are what the
//! server saw.
//!
//! Every plan counts operations instead of seconds, so no test depends on the machine's speed.
#![allow(clippy::unwrap_used, reason = "a test's helpers may assert, like the tests themselves")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use compare::failure::FailureKind;
use compare::identity::{ClientIdentity, Group, Version};
use compare::load::idle::{self, IdlePlan};
use compare::load::{self, Amount, LoadError, Mode, Plan};
use compare::report::Stopped;
use compare::target::Target;
use e2e::upstream::FixedUpstream;
use pki::ca::{Authority, AuthoritySpec, LeafSpec};
use rustls::server::WebPkiClientVerifier;
use rustls::{HandshakeKind, RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

#[derive(Default)]
struct Seen {
    full: AtomicU64,
    resumed: AtomicU64,
    requests: AtomicU64,
}

/// A server that requires a client certificate, on a thread that lives as long as the process.
struct Server {
    address: SocketAddr,
    seen: Arc<Seen>,
    roots: Authority,
    clients: Authority,
    /// What listens at `address` instead of the server of this file.
    _echo: Option<FixedUpstream>,
}

impl Server {
    /// `tickets`: whether sessions can be resumed. `per_connection`: requests after which it
    /// closes.
    fn start(tickets: bool, per_connection: u64) -> Self {
        let roots = Authority::root(&AuthoritySpec::new("servers")).unwrap();
        let clients = Authority::root(&AuthoritySpec::new("clients")).unwrap();
        let config = server_config(&roots, &clients, tickets);
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::<Seen>::default();
        let counted = seen.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener).unwrap();
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    tokio::spawn(serve(
                        TlsAcceptor::from(config.clone()),
                        stream,
                        counted.clone(),
                        per_connection,
                    ));
                }
            });
        });
        Self { address, seen, roots, clients, _echo: None }
    }

    /// Echoes calls and frames.
    fn echo() -> Self {
        let mut server = Self::start(true, u64::MAX);
        let config = server_config(&server.roots, &server.clients, true);
        let echo = FixedUpstream::echo(0, (*config).clone());
        server.address = echo.address();
        server._echo = Some(echo);
        server
    }

    fn identity(&self, issuer: &Authority) -> Arc<ClientIdentity> {
        let client = issuer.issue(&LeafSpec::client("loader")).unwrap();
        let pair = (client.chain_pem.as_bytes(), client.key_pem.as_bytes());
        Arc::new(ClientIdentity::from_pem(self.roots.certificate_pem().as_bytes(), Some(pair)).unwrap())
    }

    fn target(&self) -> Target {
        Target::parse(&format!("https://{}/", self.address), Some("bench.test"), false).unwrap()
    }

    fn plan(&self, mode: Mode, amount: Amount) -> Plan {
        Plan {
            target: self.target(),
            identity: self.identity(&self.clients),
            version: Version::V13,
            group: Group::X25519,
            mode,
            connections: 3,
            every: None,
            amount,
            warmup: Amount::Count(5),
            timeout: Duration::from_secs(20),
            limit: Duration::from_secs(60),
            expect_status: 200,
            server: Some(std::process::id()),
            cpu: None,
            progress: None,
        }
    }

    fn saw(&self) -> (u64, u64, u64) {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (read(&self.seen.full), read(&self.seen.resumed), read(&self.seen.requests))
    }
}

fn server_config(roots: &Authority, clients: &Authority, tickets: bool) -> Arc<ServerConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut anchors = RootCertStore::empty();
    anchors.add(clients.certificate().der().clone()).unwrap();
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(anchors), provider.clone());
    let issued = roots.issue(&LeafSpec::server("bench.test")).unwrap();
    let chain = issued.chain.iter().map(|certificate| certificate.der().clone()).collect();
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(chain, issued.key().unwrap().der().clone_key())
        .unwrap();
    if !tickets {
        config.send_tls13_tickets = 0;
    }
    Arc::new(config)
}

async fn serve(acceptor: TlsAcceptor, stream: TcpStream, seen: Arc<Seen>, mut left: u64) {
    let Ok(mut stream) = acceptor.accept(stream).await else { return };
    let resumed = stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed);
    let counter = if resumed { &seen.resumed } else { &seen.full };
    counter.fetch_add(1, Ordering::Relaxed);
    let mut buffer = Vec::new();
    while left > 0 {
        match stream.read_buf(&mut buffer).await {
            Ok(read) if read > 0 => {}
            _ => return,
        }
        if buffer.ends_with(b"\r\n\r\n") {
            buffer.clear();
            left -= 1;
            seen.requests.fetch_add(1, Ordering::Relaxed);
            if stream.write_all(ANSWER).await.is_err() || stream.flush().await.is_err() {
                return;
            }
        }
    }
    let _ = stream.shutdown().await;
}

#[test]
fn new_connections_make_full_handshakes() {
    let server = Server::start(true, u64::MAX);
    let report = load::run(server.plan(Mode::New, Amount::Count(40))).unwrap();
    assert_eq!((report.operations, report.failures.total(), report.stopped), (40, 0, Stopped::Count));
    // Three lanes make one unmeasured operation each, and five operations warm up.
    assert_eq!(server.saw(), (48, 0, 48), "no handshake was resumed");
    let latency = report.latency_us.unwrap();
    assert!(0.0 < latency.min && latency.min <= latency.p50);
    assert!(latency.p50 <= latency.p99 && latency.p99 <= latency.max);
    assert!(report.handshake_us.unwrap().p50 <= latency.max);
    assert!(report.server.unwrap().cpu_ns_per_operation > 0);
    assert_eq!(report.negotiated.unwrap().suite, "TLS13_AES_128_GCM_SHA256");
}

#[test]
fn resumed_connections_reuse_the_session() {
    let server = Server::start(true, u64::MAX);
    let report = load::run(server.plan(Mode::Resumed, Amount::Count(40))).unwrap();
    assert_eq!((report.operations, report.failures.total()), (40, 0));
    assert_eq!(server.saw(), (3, 45, 48), "only the first handshake of each lane was a full one");
}

#[test]
fn calls_and_frames_come_back() {
    let server = Server::echo();
    for mode in [Mode::Grpc { streams: 2 }, Mode::WebSocket] {
        let report = load::run(server.plan(mode, Amount::Count(40))).unwrap();
        assert_eq!((report.operations, report.failures.total()), (40, 0), "{mode:?}");
        let alpn = report.negotiated.unwrap().alpn.unwrap();
        assert_eq!(alpn, if mode == Mode::WebSocket { "http/1.1" } else { "h2" });
    }
}

#[test]
fn a_server_without_calls_and_sockets_has_no_figures() {
    let server = Server::start(true, u64::MAX);
    for mode in [Mode::Grpc { streams: 1 }, Mode::WebSocket] {
        let error = load::run(server.plan(mode, Amount::Count(40))).unwrap_err();
        assert!(matches!(error, LoadError::Refused { .. }), "{error}");
    }
}

#[test]
fn a_server_without_tickets_has_no_resumption_figure() {
    let server = Server::start(false, u64::MAX);
    let error = load::run(server.plan(Mode::Resumed, Amount::Count(1000))).unwrap_err();
    assert!(
        matches!(&error, LoadError::Nothing { failures, .. } if failures.contains("NotResumed")),
        "{error}"
    );
}

#[test]
fn kept_connections_serve_all_requests() {
    let server = Server::start(true, u64::MAX);
    let report = load::run(server.plan(Mode::KeepAlive, Amount::Count(40))).unwrap();
    assert_eq!((report.operations, report.failures.total()), (40, 0));
    assert_eq!(server.saw(), (3, 0, 48));
}

#[test]
fn closed_connections_are_counted_as_failures() {
    let server = Server::start(true, 4);
    let report = load::run(server.plan(Mode::KeepAlive, Amount::Count(60))).unwrap();
    let kinds: Vec<_> = report.failures.iter().map(|(kind, _)| kind).collect();
    assert!(report.failures.total() > 0, "every fifth request finds a closed connection");
    assert!(kinds.iter().all(|kind| matches!(kind, FailureKind::Receive | FailureKind::Send)), "{kinds:?}");
    assert_eq!(report.operations + report.failures.total(), 60);
}

#[test]
fn a_rejected_client_has_no_figures() {
    let server = Server::start(true, u64::MAX);
    let untrusted = Authority::root(&AuthoritySpec::new("untrusted")).unwrap();
    let mut plan = server.plan(Mode::New, Amount::Count(10));
    plan.identity = server.identity(&untrusted);
    assert!(matches!(load::run(plan), Err(LoadError::Refused { .. })));
    assert_eq!(server.saw(), (0, 0, 0));
}

#[test]
fn a_server_of_another_authority_is_rejected_at_once() {
    let (server, untrusted) = (Server::start(true, u64::MAX), Server::start(true, u64::MAX));
    for mode in [Mode::New, Mode::Resumed, Mode::KeepAlive] {
        let mut plan = server.plan(mode, Amount::Count(10));
        plan.target = untrusted.target();
        let error = load::run(plan).unwrap_err();
        let kind = |failure: &compare::failure::Failure| failure.kind == FailureKind::Handshake;
        assert!(matches!(&error, LoadError::Refused { failure, .. } if kind(failure)), "{error}");
    }
    assert_eq!(untrusted.saw(), (0, 0, 0));
}

#[test]
fn paced_operations_keep_their_interval() {
    let server = Server::start(true, u64::MAX);
    let mut plan = server.plan(Mode::KeepAlive, Amount::Count(12));
    plan.every = Some(Duration::from_millis(30));
    let report = load::run(plan).unwrap();
    assert_eq!((report.operations, report.failures.total()), (12, 0));
    assert_eq!(server.saw(), (3, 0, 20), "on the three connections");
    // The fourth operation of each of three lanes is due 90 ms after its first.
    assert!(report.elapsed_s >= 0.09, "{}", report.elapsed_s);
}

#[test]
fn an_unexpected_status_is_a_failure() {
    let server = Server::start(true, u64::MAX);
    let mut plan = server.plan(Mode::New, Amount::Count(10));
    plan.expect_status = 404;
    let error = load::run(plan).unwrap_err();
    assert!(
        matches!(&error, LoadError::Refused { failure, .. } if failure.kind == FailureKind::Status),
        "{error}"
    );
}

#[test]
fn idle_connections_are_open_at_the_same_time() {
    let server = Server::start(true, u64::MAX);
    let plan = IdlePlan {
        target: server.target(),
        identity: server.identity(&server.clients),
        version: Version::V13,
        group: Group::X25519,
        connections: 50,
        request: Some(200),
        hold: Duration::ZERO,
        timeout: Duration::from_secs(20),
        limit: Duration::from_secs(60),
        server: std::process::id(),
        cpu: None,
    };
    let report = idle::run(plan).unwrap();
    assert_eq!((report.opened, report.connections, report.failures.total()), (50, 50, 0));
    assert!(report.resident_after > 0);
}
