//! A client connection from accept to close, and the order of its stages.
//!
//! HTTP: PROXY protocol header where the listener reads one ([`proxy_header`]), ClientHello, site,
//! handshake, client verification, requests ([`request`]). TCP: the same up to the verification, or
//! a ClientHello that is passed on, then route, upstream and relay ([`tcp_connection`]). The stages
//! return values and do not call each other; `docs/WALKS.md` follows this file.

pub(super) mod active_request;
mod peer_trust;
mod proxy_header;
mod request;
mod tcp_connection;
pub(super) mod tunnel;

use std::cell::OnceCell;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use hyper::rt::{Read, Write};
use model::HostName;

use self::tcp_connection::{PassedHello, TcpClient};
use super::client_auth::ClientAuthState;
use super::connection_limit::ConnectionPermit;
use super::registry::RegistryGuard;
use super::request_limit::ClientRequests;
use super::worker::Worker;
use crate::filters::headers::ConnectionHeaders;
use crate::filters::identity::IdentityHeaderCache;
use crate::http::server::{HttpProtocol, detect_protocol};
use crate::http::{self, error_page};
use crate::io::buffered::BufferedSocket;
use crate::io::chunk_read::ChunkRead;
use crate::io::connection_info::{ConnectionInfo, ListenerProtocol, TcpMode};
use crate::io::linger::{LingerLimits, lingering_close};
use crate::io::plain::PlainStream;
use crate::io::timeouts::{Phase, TimeoutHandle, TimeoutKind};
use crate::lifecycle::drain::DrainGuard;
use crate::observability::HasReason;
use crate::observability::log::{self, ClientDenial};
use crate::reason::Reason;
use crate::reporting::record::{ConnectionFacts, HandshakeRecord, TlsFacts};
use crate::reporting::routes::SiteEntry;
use crate::runtime::{Reader, Socket, Writer};
use crate::tls::failure::HandshakeFailure;
use crate::tls::params::NegotiatedParams;
use crate::tls::stream::TlsStream;
use crate::tls::transport::TlsTransport;
use crate::tls::{Subsystem, client_hello, handshake};

/// One client connection, for all requests on it.
struct Connection {
    worker: Rc<Worker>,
    /// Shared with its requests.
    facts: Rc<ConnectionFacts>,
    /// `None` without TLS.
    client_auth: Option<Rc<ClientAuthState>>,
    /// The connection's part of the forwarded headers.
    headers: ConnectionHeaders,
    identity_headers: IdentityHeaderCache,
    /// The requests of the peer; `None`: not limited.
    peer_requests: OnceCell<Option<Rc<ClientRequests>>>,
}

/// Serves a connection from accept to close, and keeps `_permit` as long.
pub(super) async fn serve(
    worker: Rc<Worker>,
    socket: Socket,
    mut info: Rc<ConnectionInfo>,
    _permit: ConnectionPermit,
) {
    let accepted = Instant::now();
    let drain = worker.drain.enter();
    let _active = worker.counters.connections_active.track();
    let mut socket = BufferedSocket::new(socket);
    let Some(shutdown) = socket.shutdown_handle() else { return };
    let protocol = info.listener.protocol;
    let phase = if protocol == ListenerProtocol::Http { Phase::Head } else { Phase::Handshake };
    let timeouts = worker.timeouts.register(shutdown, phase);
    socket.set_timeouts(timeouts.clone());
    if info.listener.proxy_protocol {
        let named = Box::pin(proxy_header::read(&worker, &mut socket, &info, &timeouts)).await;
        let Some(client) = named else { return };
        Rc::make_mut(&mut info).peer = client;
    }
    let facts = Rc::new(ConnectionFacts::new(*info, accepted, worker.reporter.next_connection()));
    drop(info);
    match protocol {
        ListenerProtocol::Http => serve_plain(&worker, socket, facts, timeouts, &drain).await,
        ListenerProtocol::Https | ListenerProtocol::Tcp(TcpMode::Terminate) => {
            serve_tls(&worker, socket, facts, timeouts, &drain).await;
        }
        ListenerProtocol::Tcp(TcpMode::Plain) => {
            timeouts.enter_phase(Phase::Relay);
            let stream = PlainStream::new(socket);
            Box::pin(tcp_connection::serve(&worker, stream, &facts, TcpClient::Plain)).await;
        }
        ListenerProtocol::Tcp(TcpMode::Passthrough | TcpMode::ByRoute) => {
            Box::pin(serve_by_sni(&worker, socket, facts, timeouts, &drain)).await;
        }
    }
}

async fn serve_plain(
    worker: &Rc<Worker>,
    mut socket: BufferedSocket,
    facts: Rc<ConnectionFacts>,
    timeouts: TimeoutHandle,
    drain: &DrainGuard,
) {
    if let Ok(protocol) = detect_protocol(&mut socket, worker.http.settings.get().http2).await {
        let connection = Connection::new(worker, Rc::clone(&facts), None);
        serve_http(worker, PlainStream::new(socket), protocol, connection, &timeouts, drain).await;
    }
    record_timeout(worker, &facts.info, &timeouts);
}

/// Serves a connection that begins with a TLS handshake. What follows it is boxed, like the
/// handshake itself: the memory of one is released before the other, and an idle connection is
/// small.
async fn serve_tls(
    worker: &Rc<Worker>,
    mut socket: BufferedSocket,
    facts: Rc<ConnectionFacts>,
    timeouts: TimeoutHandle,
    drain: &DrainGuard,
) {
    let is_http = facts.info.listener.protocol.is_http();
    let subsystem = if is_http { Subsystem::Http } else { Subsystem::Stream };
    let accepted = match Box::pin(accept_tls(worker, &mut socket, facts.info.peer, subsystem)).await {
        Ok(accepted) => accepted,
        Err(failure) => {
            return Box::pin(reject_handshake(worker, socket, &facts, &timeouts, failure)).await;
        }
    };
    let AcceptedTls { transport, params, client_auth, site } = accepted;
    let client_auth = Rc::new(client_auth);
    let tls = facts.tls.get_or_init(|| TlsFacts {
        sni: client_auth.sni.clone(),
        params,
        handshake: facts.accepted.elapsed(),
        site,
    });
    worker.reporter.handshake_completed(tls);
    let Some(_registered) = register(worker, &client_auth, &timeouts, drain) else { return };
    if !is_http {
        timeouts.enter_phase(Phase::Relay);
        let stream = TlsStream::new(transport, socket);
        let client = TcpClient::Terminated(&client_auth);
        return Box::pin(tcp_connection::serve(worker, stream, &facts, client)).await;
    }
    timeouts.enter_phase(Phase::Head);
    socket.shrink_buffers();
    let protocol = HttpProtocol::from_alpn(params.alpn);
    let stream = TlsStream::new(transport, socket);
    let connection = Connection::new(worker, Rc::clone(&facts), Some(client_auth));
    serve_http(worker, stream, protocol, connection, &timeouts, drain).await;
    record_timeout(worker, &facts.info, &timeouts);
}

/// Serves a connection whose TLS is passed on or terminated, by the SNI in its ClientHello.
async fn serve_by_sni(
    worker: &Rc<Worker>,
    mut socket: BufferedSocket,
    facts: Rc<ConnectionFacts>,
    timeouts: TimeoutHandle,
    drain: &DrainGuard,
) {
    match tcp_connection::read_sni(worker, &mut socket, &facts.info).await {
        Ok(PassedHello { terminate: true, .. }) => serve_tls(worker, socket, facts, timeouts, drain).await,
        Ok(PassedHello { sni, terminate: false }) => {
            timeouts.enter_phase(Phase::Relay);
            let client = TcpClient::Passed(sni.as_ref());
            tcp_connection::serve(worker, PlainStream::new(socket), &facts, client).await;
        }
        Err(failure) => reject_handshake(worker, socket, &facts, &timeouts, failure).await,
    }
}

/// Serves the HTTP requests of a connection until it closes.
fn serve_http(
    worker: &Rc<Worker>,
    stream: impl Read + Write + ChunkRead + Unpin + 'static,
    protocol: HttpProtocol,
    connection: Connection,
    timeouts: &TimeoutHandle,
    drain: &DrainGuard,
) -> Pin<Box<impl Future<Output = ()>>> {
    let (timeouts, handler) = (timeouts.clone(), Rc::new(connection));
    Box::pin(http::serve_connection(stream, protocol, &worker.http, timeouts, handler, drain))
}

/// Registers a connection, or records why it must close already.
fn register(
    worker: &Worker,
    client_auth: &Rc<ClientAuthState>,
    timeouts: &TimeoutHandle,
    drain: &DrainGuard,
) -> Option<RegistryGuard> {
    let registered = worker.registry.register(client_auth, timeouts.clone(), drain, &worker.snapshot());
    registered.map_err(|reason| client_auth.record_termination(&worker.counters, reason)).ok()
}

/// Records a connection that was closed because its client was too slow. An idle connection may be
/// closed without a record.
fn record_timeout(worker: &Worker, info: &ConnectionInfo, timeouts: &TimeoutHandle) {
    let reason = match timeouts.expired() {
        Some(TimeoutKind::Head) => Reason::HeadTimeout,
        Some(TimeoutKind::Send) => Reason::SendTimeout,
        Some(TimeoutKind::Handshake | TimeoutKind::Idle) | None => return,
    };
    worker.counters.record_error(reason);
    log::client_timed_out(info, reason);
}

/// Records a failed handshake, sends the alert (or the error page to a client of plain HTTP) and
/// closes the connection.
async fn reject_handshake(
    worker: &Worker,
    mut socket: BufferedSocket,
    facts: &ConnectionFacts,
    timeouts: &TimeoutHandle,
    failure: HandshakeFailure,
) {
    let failure = if timeouts.is_expired() { failure.timed_out() } else { failure };
    let (reason, verify_reason) = (failure.reason(), failure.verify_reason());
    worker.counters.record_error(reason);
    if let Some(verify_reason) = verify_reason {
        worker.counters.record_certificate_rejection(verify_reason);
    }
    let leaf = failure.rejected_certificate.as_ref().map(|rejected| &rejected.leaf);
    let denial = ClientDenial { reason, sni: failure.sni.as_ref(), host: None, verify_reason, leaf };
    log::handshake_rejected(facts.info, &denial, &failure.detail);
    let snapshot = worker.snapshot();
    let site = failure.sni.as_ref().and_then(|sni| snapshot.site(sni));
    let site = site.map(|ssl| worker.reporter.routes.site(ssl));
    drop(snapshot);
    let (sni, detail) = (failure.sni.as_ref(), &*failure.detail);
    let record = HandshakeRecord { reason, sni, site, verify_reason, leaf, detail };
    worker.reporter.handshake_refused(&record, facts);
    if reason == Reason::PlainHttp && facts.info.listener.protocol.is_http() {
        let page = error_page::raw_error_response(reason, &error_page::SERVER);
        socket.write_buf().extend_from_slice(&page);
    }
    let mut stream = PlainStream::new(socket);
    Box::pin(lingering_close(&mut stream, LingerLimits::CONNECTION)).await;
}

/// A TLS connection after its handshake.
pub struct AcceptedTls {
    pub transport: TlsTransport,
    pub params: NegotiatedParams,
    pub client_auth: ClientAuthState,
    pub(crate) site: Rc<SiteEntry>,
}

/// Accepts a TLS connection: ClientHello, site, handshake, client verification. Generic over the
/// socket's halves, so that benchmarks run it in memory.
///
/// # Errors
/// [`HandshakeFailure`]; the alert is in the socket's write buffer.
pub async fn accept_tls<R: Reader, W: Writer>(
    worker: &Worker,
    socket: &mut BufferedSocket<R, W>,
    peer: SocketAddr,
    subsystem: Subsystem,
) -> Result<AcceptedTls, HandshakeFailure> {
    let config = worker.config();
    let hello = client_hello::read(socket).await.map_err(HandshakeFailure::from_client_hello)?;
    let Some(sni) = hello.server_name(config.fallback_sni.as_ref()) else {
        return Err(HandshakeFailure::unrecognized_name(socket, None, Reason::NoSni));
    };
    let snapshot = worker.snapshot();
    let Some(ssl) = snapshot.site(&sni).map(Arc::clone) else {
        return Err(HandshakeFailure::unrecognized_name(socket, Some(sni), Reason::NoSite));
    };
    if let Some(blocked) = &ssl.blocked {
        let failure = HandshakeFailure::unrecognized_name(socket, Some(sni), Reason::BlockedSite);
        return Err(failure.with_detail(format!("ssl {} is blocked: {}", ssl.id, blocked.reason())));
    }
    let site_generation = snapshot.site_generation();
    drop(snapshot);
    let site_config = match worker.shared.sites.config(&ssl, subsystem) {
        Ok(site_config) => site_config,
        Err(error) => {
            let failure = HandshakeFailure::unrecognized_name(socket, Some(sni), Reason::BadSite);
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
    let client_auth = ClientAuthState::evaluate(sni, peer, chain, &ssl, site_generation, subsystem);
    // Defence in depth: the verifier and the ticketer accept only such a client.
    if !client_auth.satisfies(&ssl) {
        handshake.send_close_notify();
        handshake.write_tls(socket.write_buf());
        return Err(HandshakeFailure::client_not_verified(client_auth.sni));
    }
    let params = NegotiatedParams::of(&handshake);
    let site = worker.reporter.routes.site(&ssl);
    Ok(AcceptedTls { transport: handshake.into_transport(), params, client_auth, site })
}

impl Connection {
    fn new(
        worker: &Rc<Worker>,
        facts: Rc<ConnectionFacts>,
        client_auth: Option<Rc<ClientAuthState>>,
    ) -> Self {
        let info = &facts.info;
        let headers = ConnectionHeaders::new(info.peer, info.local.port(), client_auth.is_some());
        Self {
            worker: Rc::clone(worker),
            facts,
            client_auth,
            headers,
            identity_headers: IdentityHeaderCache::default(),
            peer_requests: OnceCell::new(),
        }
    }

    /// The server name in the ClientHello.
    fn sni(&self) -> Option<&HostName> {
        self.client_auth.as_ref().map(|client_auth| &client_auth.sni)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every idle connection has this task. A future that is awaited in place counts as a whole,
    /// even when it is one of several, so the large and the rare ones are boxed.
    #[test]
    fn the_task_of_a_connection_is_small() {
        fn size<F: Future>(
            _: impl Fn(Rc<Worker>, Socket, Rc<ConnectionInfo>, ConnectionPermit) -> F,
        ) -> usize {
            size_of::<F>()
        }
        assert!(size(serve) <= 1_700, "{} bytes", size(serve));
    }
}
