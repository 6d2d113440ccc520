//! A connection's walk: the only place that knows the order of its stages.
//!
//! [`serve`]: accepted -> ClientHello -> site -> handshake -> client -> HTTP session.
//! [`answer`], for each request of the session, is in `proxy/connection/request.rs`.
//! [`carry`], where a stream is passed on instead: admitted -> destination -> node -> both ways.
//! The stages hand values back and never call each other; `docs/WALKS.md` mirrors this file line by
//! line.

mod request;
pub mod request_limit;

use std::cell::OnceCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use model::StreamQuery;
pub use request::{handle_request, record_parse_error, record_send_timeout, reject_head};
use request_limit::ClientRequests;

use crate::filters::headers::ConnectionHeaders;
use crate::filters::identity::IdentityHeaderCache;
use crate::http::server::HttpProtocol;
use crate::http::{error_page, server};
use crate::io::buffered::BufferedSocket;
use crate::io::linger::{LingerLimits, lingering_close};
use crate::io::plain::PlainStream;
use crate::io::timeouts::{Phase, TimeoutHandle, TimeoutKind};
use crate::lifecycle::drain::DrainGuard;
use crate::observability::log;
use crate::proxy::listener::ListenerProtocol;
use crate::proxy::live::ClientAuthState;
use crate::proxy::worker::Worker;
use crate::reason::Reason;
use crate::runtime::{Reader, Socket, Writer};
use crate::tcp;
use crate::tcp::relay::{ByteCounters, DrainLimit, RelayIo};
use crate::tcp::{TcpFailure, TcpProxyError, relay};
use crate::tls::failure::HandshakeFailure;
use crate::tls::params::NegotiatedParams;
use crate::tls::stream::TlsStream;
use crate::tls::transport::TlsTransport;
use crate::tls::{Subsystem, client_hello, handshake};
use crate::upstream::client::UpstreamTarget;
use crate::upstream::connector::UpstreamStream;

/// Who came, and where.
#[derive(Debug, Clone, Copy)]
pub struct ConnectionInfo {
    /// The client's address.
    pub peer: SocketAddr,
    /// The listener's.
    pub local: SocketAddr,
    /// What is spoken there.
    pub protocol: ListenerProtocol,
}

/// One client connection, for every request on it.
pub struct Connection {
    worker: Rc<Worker>,
    arrival: ConnectionInfo,
    /// How long requests take, as the watchdog sees it.
    pub watched: TimeoutHandle,
    /// What TLS established; `None` on a plain listener.
    client_auth: Option<Rc<ClientAuthState>>,
    /// What TLS agreed on; `None` on a plain listener.
    facts: Option<NegotiatedParams>,
    /// The connection as headers, for every request.
    connection_headers: ConnectionHeaders,
    /// The client as headers, for the routes that forward it.
    identity_headers: IdentityHeaderCache,
    /// Who dialled us, among those with requests under way; `None`: not limited.
    peer_requests: OnceCell<Option<Rc<ClientRequests>>>,
}

/// Walks a connection from accept to end.
pub async fn serve(worker: Rc<Worker>, socket: Socket, arrival: ConnectionInfo) {
    let running = worker.drain.enter();
    worker.counters.connections_active.inc();
    let mut pump = BufferedSocket::new(socket);
    let Some(hang_up) = pump.shutdown_handle() else { return };
    let phase = if arrival.protocol.is_tls() { Phase::Handshake } else { Phase::Head };
    let watched = worker.watchdog.register(hang_up, phase);
    pump.set_timeouts(watched.clone());
    match arrival.protocol {
        ListenerProtocol::Http => serve_plain(&worker, pump, arrival, watched, &running).await,
        ListenerProtocol::Https => serve_tls(&worker, pump, arrival, watched, &running).await,
        ListenerProtocol::Stream { tls: false } => {
            watched.enter_phase(Phase::Relay);
            Box::pin(serve_tcp(&worker, PlainStream::new(pump), &arrival, None)).await;
        }
        ListenerProtocol::Stream { tls: true } => {
            serve_tcp_over_tls(&worker, pump, &arrival, &watched, &running).await
        }
    }
    worker.counters.connections_active.dec();
}

async fn serve_plain(
    worker: &Rc<Worker>,
    mut pump: BufferedSocket,
    arrival: ConnectionInfo,
    watched: TimeoutHandle,
    running: &DrainGuard,
) {
    let Ok(protocol) = server::detect_protocol(&mut pump, worker.shared.config.http2).await else {
        return record_timeout(worker, &arrival, &watched);
    };
    let connection = Connection::new(worker, arrival, watched.clone(), None);
    Box::pin(server::serve_connection(PlainStream::new(pump), protocol, Rc::new(connection), running)).await;
    record_timeout(worker, &arrival, &watched);
}

async fn serve_tls(
    worker: &Rc<Worker>,
    mut pump: BufferedSocket,
    arrival: ConnectionInfo,
    watched: TimeoutHandle,
    running: &DrainGuard,
) {
    // Boxed, here and below: what a handshake needs is given back before the session, and an idle
    // session is small.
    match Box::pin(accept_tls(worker, &mut pump, arrival.peer, Subsystem::Http)).await {
        Ok(AcceptedTls { transport, params, client_auth }) => {
            worker.counters.record_handshake(params.resumed);
            let established = Rc::new(client_auth);
            let snapshot = worker.snapshot();
            let _entered = match worker.registry.register(&established, watched.clone(), running, &snapshot) {
                Ok(entered) => entered,
                Err(reason) => return established.record_termination(&worker.counters, reason),
            };
            drop(snapshot);
            watched.enter_phase(Phase::Head);
            let protocol = HttpProtocol::from_alpn(params.alpn.map(str::as_bytes));
            pump.shrink_buffers();
            let secured = Some((established, params));
            let connection = Connection::new(worker, arrival, watched.clone(), secured);
            Box::pin(server::serve_connection(
                TlsStream::new(transport, pump),
                protocol,
                Rc::new(connection),
                running,
            ))
            .await;
            record_timeout(worker, &arrival, &watched);
        }
        Err(refused) => {
            if refused.reason() == Reason::PlainHttp {
                pump.write_buf().extend_from_slice(&error_page::raw_error_response(
                    Reason::PlainHttp,
                    &error_page::SERVER,
                ));
            }
            reject_handshake(worker, pump, &arrival, &watched, refused).await;
        }
    }
}

/// Records a session that ended because its client was too slow. A pause between two requests may
/// end like that.
fn record_timeout(worker: &Worker, arrival: &ConnectionInfo, watched: &TimeoutHandle) {
    let reason = match watched.expired() {
        Some(TimeoutKind::Head) => Reason::HeadTimeout,
        Some(TimeoutKind::Send) => Reason::SendTimeout,
        Some(TimeoutKind::Handshake | TimeoutKind::Idle) | None => return,
    };
    worker.counters.record_error(reason);
    log::client_timed_out(arrival.peer, reason);
}

async fn serve_tcp_over_tls(
    worker: &Worker,
    mut pump: BufferedSocket,
    arrival: &ConnectionInfo,
    watched: &TimeoutHandle,
    running: &DrainGuard,
) {
    match Box::pin(accept_tls(worker, &mut pump, arrival.peer, Subsystem::Stream)).await {
        Ok(AcceptedTls { transport, client_auth, .. }) => {
            worker.counters.handshakes.inc();
            let established = Rc::new(client_auth);
            let snapshot = worker.snapshot();
            let _entered = match worker.registry.register(&established, watched.clone(), running, &snapshot) {
                Ok(entered) => entered,
                Err(reason) => return established.record_termination(&worker.counters, reason),
            };
            drop(snapshot);
            watched.enter_phase(Phase::Relay);
            let client = TlsStream::new(transport, pump);
            Box::pin(serve_tcp(worker, client, arrival, Some(&established))).await;
        }
        Err(refused) => reject_handshake(worker, pump, arrival, watched, refused).await,
    }
}

async fn serve_tcp(
    worker: &Worker,
    mut client: impl RelayIo,
    arrival: &ConnectionInfo,
    established: Option<&ClientAuthState>,
) {
    if let Err(failed) = proxy_tcp(worker, &mut client, arrival, established).await {
        if let Some(reason) = failed.error.reason() {
            worker.counters.record_error(reason);
        }
        log::tcp_failed(arrival, established.map(|established| &established.sni), &failed);
        // A stream that broke off must not look like one that ended.
        if matches!(failed.error, TcpProxyError::Relay(_)) {
            return;
        }
    }
    relay::farewell(&mut client).await;
}

/// The end of a connection whose handshake failed: counted, told to the operator, and an alert to
/// the peer.
async fn reject_handshake(
    worker: &Worker,
    pump: BufferedSocket,
    arrival: &ConnectionInfo,
    watched: &TimeoutHandle,
    refused: HandshakeFailure,
) {
    let refused = if watched.is_expired() { refused.timed_out() } else { refused };
    worker.counters.record_error(refused.reason());
    if let Some(rule) = refused.verify_reason() {
        worker.counters.record_certificate_rejection(rule);
    }
    log::handshake_rejected(arrival, &refused);
    let mut socket = PlainStream::new(pump);
    Box::pin(lingering_close(&mut socket, LingerLimits::CONNECTION)).await;
}

/// An accepted TLS connection.
pub struct AcceptedTls {
    pub transport: TlsTransport,
    pub params: NegotiatedParams,
    pub client_auth: ClientAuthState,
}

/// ClientHello -> site -> handshake -> client. Generic over the halves, since benchmarks drive it in
/// memory.
///
/// # Errors
/// [`HandshakeFailure`]; the alert is in the write buffer.
pub async fn accept_tls<R: Reader, W: Writer>(
    worker: &Worker,
    socket: &mut BufferedSocket<R, W>,
    peer: SocketAddr,
    subsystem: Subsystem,
) -> Result<AcceptedTls, HandshakeFailure> {
    let config = &worker.shared.config;
    let hello = client_hello::read(socket).await.map_err(HandshakeFailure::from_client_hello)?;
    let Some(sni) = hello.server_name(config.fallback_sni.as_ref()) else {
        return Err(HandshakeFailure::no_site(socket, None, Reason::NoSni));
    };
    let snapshot = worker.snapshot();
    let Some(ssl) = snapshot.site(&sni).map(Arc::clone) else {
        return Err(HandshakeFailure::no_site(socket, Some(sni), Reason::NoSite));
    };
    if let Some(blocked) = &ssl.blocked {
        let failure = HandshakeFailure::no_site(socket, Some(sni), Reason::BlockedSite);
        return Err(failure.with_detail(format!("ssl {} is blocked: {}", ssl.id, blocked.reason())));
    }
    let site_generation = snapshot.site_generation();
    drop(snapshot);
    let site_config = match worker.shared.sites.config(&ssl, subsystem) {
        Ok(site_config) => site_config,
        Err(error) => {
            let failure = HandshakeFailure::no_site(socket, Some(sni), Reason::BadSite);
            return Err(failure.with_detail(format!("the site of ssl {} cannot be served: {error}", ssl.id)));
        }
    };
    let mut handshake = hello
        .start_handshake(site_config, socket.write_buf())
        .map_err(|error| HandshakeFailure::from_error(sni.clone(), error))?;
    let result = handshake::drive(&mut handshake, socket).await;
    worker.counters.record_rejected_tickets(handshake.ticket_rejections());
    if let Err(error) = result {
        return Err(HandshakeFailure::from_handshake(sni, &mut handshake, error));
    }
    let chain = handshake.peer_chain();
    let client_auth = ClientAuthState::new(sni, peer, chain, &ssl, site_generation, subsystem);
    // Defence in depth: the verifier and the ticketer accept only such a client.
    if !client_auth.satisfies(&ssl) {
        handshake.send_close_notify();
        handshake.write_tls(socket.write_buf());
        return Err(HandshakeFailure::client_not_verified(client_auth.sni));
    }
    let params = NegotiatedParams::of(&handshake);
    Ok(AcceptedTls { transport: handshake.into_transport(), params, client_auth })
}

/// Admitted -> destination -> node -> both ways.
async fn proxy_tcp(
    worker: &Worker,
    client: &mut impl RelayIo,
    arrival: &ConnectionInfo,
    established: Option<&ClientAuthState>,
) -> Result<(), TcpFailure> {
    let refused = |reason| TcpFailure { route: None, error: TcpProxyError::Denied(reason) };
    let snapshot = worker.snapshot();
    if let Some(established) = established {
        established.check_tcp_client().map_err(refused)?;
    }
    let sni = established.map(|established| &established.sni);
    let query = StreamQuery { sni, remote: arrival.peer.ip(), server: arrival.local };
    let route = tcp::route::find_route(&snapshot, &query).map_err(refused)?;
    let failed = |error| TcpFailure { route: Some(route.id.clone()), error };
    let destination = tcp::route::find_destination(&snapshot, route, &query)
        .map_err(|reason| failed(TcpProxyError::Denied(reason)))?;
    let tcp::route::TcpDestination { upstream, timeouts, authority, .. } = destination;
    let plan = UpstreamTarget { snapshot: &snapshot, upstream, timeouts, authority: Some(authority) };
    let dialled = Box::pin(worker.upstreams.connect(&plan)).await.map_err(|error| failed(error.into()))?;
    let counters = &worker.counters;
    counters.tcp_connections.inc();
    let route = route.id.clone();
    // From here on the stream lives as long as its two sides; the snapshot need not.
    drop(snapshot);
    let moved = ByteCounters {
        to_upstream: &counters.tcp_bytes_to_upstream,
        to_client: &counters.tcp_bytes_to_client,
    };
    let stop = DrainLimit { drain: &worker.drain, idle: worker.shared.config.drain_idle_timeout };
    let carried = match dialled {
        UpstreamStream::Plain(mut node) => relay::relay(client, &mut node, &timeouts, &moved, &stop).await,
        UpstreamStream::Tls(mut node) => relay::relay(client, &mut node, &timeouts, &moved, &stop).await,
    };
    carried.map_err(|error| TcpFailure { route: Some(route), error: error.into() })
}

impl Connection {
    /// `secured`: what TLS established and agreed on.
    fn new(
        worker: &Rc<Worker>,
        arrival: ConnectionInfo,
        watched: TimeoutHandle,
        secured: Option<(Rc<ClientAuthState>, NegotiatedParams)>,
    ) -> Self {
        let (established, facts) = secured.unzip();
        let via = ConnectionHeaders::new(arrival.peer, arrival.local.port(), established.is_some());
        let (forms, client) = (IdentityHeaderCache::default(), OnceCell::new());
        Self {
            worker: Rc::clone(worker),
            arrival,
            watched,
            client_auth: established,
            facts,
            connection_headers: via,
            identity_headers: forms,
            peer_requests: client,
        }
    }

    /// The worker this connection lives on.
    pub fn worker(&self) -> &Worker {
        &self.worker
    }
}
