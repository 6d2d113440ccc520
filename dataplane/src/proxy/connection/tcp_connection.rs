//! A TCP connection: what becomes of its TLS, its route and upstream, and the relay.
//!
//! Invariant: on a listener that reads the SNI, what is passed on undecrypted has the name of no
//! site with a client policy, under the very snapshot that selects its route.

use std::cell::Cell;

use model::admission::ClientVerification;
use model::{HostName, StreamQuery};

use crate::io::buffered::BufferedSocket;
use crate::io::connection_info::{ConnectionInfo, ListenerProtocol, TcpMode};
use crate::io::linger::{LingerLimits, lingering_close};
use crate::io::proxy_protocol;
use crate::observability::log;
use crate::proxy::client_auth::ClientAuthState;
use crate::proxy::worker::Worker;
use crate::reason::Reason;
use crate::reporting::record::{ConnectionFacts, TcpRecord};
use crate::tcp::relay::{self, ByteCounters, DrainLimit, RelayIo};
use crate::tcp::{self, TcpProxyError};
use crate::tls::failure::HandshakeFailure;
use crate::tls::sni_reader;
use crate::upstream::client::UpstreamTarget;

/// The ClientHello of a connection whose TLS may be passed on.
pub(super) struct PassedHello {
    pub(super) sni: Option<HostName>,
    /// The stream route does not pass it on.
    pub(super) terminate: bool,
}

/// Reads the SNI of a connection, which stays as it came, and decides what becomes of its TLS.
pub(super) async fn read_sni(
    worker: &Worker,
    socket: &mut BufferedSocket,
    info: &ConnectionInfo,
) -> Result<PassedHello, HandshakeFailure> {
    let sni = sni_reader::read(socket).await.map_err(|error| HandshakeFailure::from_sni(&error))?;
    let sni = sni.or_else(|| worker.config().fallback_sni.clone());
    let query = StreamQuery { sni: sni.as_ref(), remote: info.peer.ip(), server: info.local };
    let terminate = info.listener.protocol == ListenerProtocol::Tcp(TcpMode::ByRoute)
        && !worker.snapshot().find_stream_route(&query).is_some_and(|route| route.tls_passthrough);
    Ok(PassedHello { sni, terminate })
}

/// The client of a TCP connection.
#[derive(Clone, Copy)]
pub(super) enum TcpClient<'a> {
    /// On a listener that knows no TLS.
    Plain,
    /// Its TLS is terminated.
    Terminated(&'a ClientAuthState),
    /// Its TLS is passed on, with this SNI.
    Passed(Option<&'a HostName>),
}

impl<'a> TcpClient<'a> {
    pub(super) fn sni(self) -> Option<&'a HostName> {
        match self {
            Self::Plain => None,
            Self::Terminated(client_auth) => Some(&client_auth.sni),
            Self::Passed(sni) => sni,
        }
    }

    fn verification(self) -> ClientVerification {
        match self {
            Self::Terminated(client_auth) => client_auth.verification().clone(),
            Self::Plain | Self::Passed(_) => ClientVerification::NotRequested,
        }
    }
}

/// Serves a TCP connection: relays it to its upstream, or closes it.
pub(super) async fn serve(
    worker: &Worker,
    mut stream: impl RelayIo,
    facts: &ConnectionFacts,
    client: TcpClient<'_>,
) {
    let mut record = TcpRecord::new(client.sni(), client.verification());
    let result = proxy_tcp(worker, &mut stream, &facts.info, client, &mut record).await;
    record.total = facts.accepted.elapsed();
    let mut is_relay_broken = false;
    match &result {
        Ok(()) => record.is_complete = true,
        Err(error) => {
            record.reason = error.reason();
            if let Some(reason) = record.reason {
                worker.counters.record_error(reason);
            }
            let info = &facts.info;
            log::tcp_failed(info, info.local, client.sni(), record.route.as_ref(), record.reason, error);
            is_relay_broken = matches!(error, TcpProxyError::Relay(_));
        }
    }
    worker.reporter.tcp_ended(&record, facts);
    // Else without a shutdown, so that the client sees a truncated connection.
    if !is_relay_broken {
        lingering_close(&mut stream, LingerLimits::CONNECTION).await;
    }
}

/// Relays a TCP connection to its upstream: client check, route, upstream, relay.
async fn proxy_tcp(
    worker: &Worker,
    stream: &mut impl RelayIo,
    info: &ConnectionInfo,
    client: TcpClient<'_>,
    record: &mut TcpRecord,
) -> Result<(), TcpProxyError> {
    let denied = TcpProxyError::Denied;
    let snapshot = worker.snapshot();
    match client {
        TcpClient::Plain => {}
        TcpClient::Terminated(client_auth) => client_auth.check_tcp_client().map_err(denied)?,
        TcpClient::Passed(sni) => tcp::check_passthrough(&snapshot, sni).map_err(denied)?,
    }
    let query = StreamQuery { sni: client.sni(), remote: info.peer.ip(), server: info.local };
    let route = tcp::find_route(&snapshot, &query).map_err(denied)?;
    record.route = Some(route.id.clone());
    // The route may have changed since it decided about the connection's TLS.
    if info.listener.protocol == ListenerProtocol::Tcp(TcpMode::ByRoute)
        && route.tls_passthrough != matches!(client, TcpClient::Passed(_))
    {
        return Err(denied(Reason::PassthroughDenied));
    }
    let destination = tcp::find_destination(&snapshot, route, &query).map_err(denied)?;
    let (upstream, timeouts) = (destination.upstream, destination.timeouts);
    // The upstream's scheme may have changed since the route was written.
    if matches!(client, TcpClient::Passed(_)) && upstream.scheme.is_encrypted() {
        return Err(denied(Reason::PassthroughDenied));
    }
    let authority = Some(destination.authority);
    let target =
        UpstreamTarget { snapshot: &snapshot, upstream, timeouts, authority, interim: None, deadline: None };
    let header = info.listener.proxy_protocol_to_upstream;
    let header = header.map(|version| proxy_protocol::write(version, info.peer, info.local));
    let connecting = worker.upstreams.connect(&target, header.as_deref(), &mut record.attempts);
    let mut upstream = Box::pin(connecting).await?;
    let counters = &worker.counters;
    counters.tcp_connections.inc();
    // The relay may run for days; it does not need the snapshot.
    drop(snapshot);
    let bytes = ByteCounters {
        to_upstream: &counters.tcp_bytes_to_upstream,
        to_client: &counters.tcp_bytes_to_client,
        relayed: Cell::default(),
    };
    let limit = DrainLimit { drain: &worker.drain, idle: worker.config().drain_idle_timeout };
    let relayed = relay::relay(stream, &mut upstream, &timeouts, &bytes, &limit).await;
    record.relayed = bytes.relayed.get();
    Ok(relayed?)
}
