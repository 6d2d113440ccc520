//! TCP connections that are relayed as they are, APISIX's `stream_proxy`: the stream route with its
//! upstream (contract sections 7.3 and 7.4), and the [`relay`], which copies the bytes.

pub(crate) mod relay;

use std::time::Duration;

use model::{HostName, Snapshot, StreamQuery, StreamRoute, Timeouts, Upstream, destination, passthrough};

use self::relay::RelayError;
use crate::observability::HasReason;
use crate::reason::Reason;
use crate::upstream::client::UpstreamError;

/// A TCP connection that was denied, or that failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TcpProxyError {
    /// It has no route, or its client may not connect.
    #[error("{}", .0.label())]
    Denied(Reason),
    /// No upstream node accepts it.
    #[error(transparent)]
    Connect(#[from] UpstreamError),
    #[error(transparent)]
    Relay(#[from] RelayError),
}

impl TcpProxyError {
    /// The reason, or `None` where the client closed: that is no error.
    pub(crate) fn reason(&self) -> Option<Reason> {
        match self {
            Self::Denied(reason) => Some(*reason),
            Self::Connect(error) => Some(error.reason()),
            Self::Relay(error) => error.reason(),
        }
    }
}

/// nginx's defaults for streams, where the upstream has none of its own.
const DEFAULT_TIMEOUTS: Timeouts = Timeouts {
    connect: Duration::from_secs(60),
    send: Duration::from_secs(600),
    read: Duration::from_secs(600),
};

/// The server name towards the upstream when the client sent none (contract 6.5).
const DEFAULT_SERVER_NAME: &str = "apisix_backend";

/// The upstream of a TCP connection. Borrows from the snapshot.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TcpDestination<'a> {
    /// The route's upstream, or its service's.
    pub(crate) upstream: &'a Upstream,
    /// The upstream's, else nginx's defaults.
    pub(crate) timeouts: Timeouts,
    /// The server name towards the upstream, unless the upstream has one of its own.
    pub(crate) authority: &'a str,
}

/// Finds the stream route of a connection.
///
/// # Errors
/// `NoStreamRoute`, or `BlockedStreamRoute`.
pub(crate) fn find_route<'a>(
    snapshot: &'a Snapshot,
    query: &StreamQuery<'_>,
) -> Result<&'a StreamRoute, Reason> {
    let route = snapshot.find_stream_route(query).ok_or(Reason::NoStreamRoute)?;
    if route.blocked.is_some() { Err(Reason::BlockedStreamRoute) } else { Ok(route) }
}

/// Checks whether the TLS of a connection may be passed on: not to a name whose site has a client
/// policy, which nothing would enforce.
///
/// # Errors
/// `PassthroughDenied`.
pub(crate) fn check_passthrough(snapshot: &Snapshot, sni: Option<&HostName>) -> Result<(), Reason> {
    if passthrough::is_allowed(snapshot, sni) { Ok(()) } else { Err(Reason::PassthroughDenied) }
}

/// Finds the upstream of a route.
///
/// # Errors
/// The service or upstream is missing or blocked.
pub(crate) fn find_destination<'a>(
    snapshot: &'a Snapshot,
    route: &'a StreamRoute,
    query: &StreamQuery<'a>,
) -> Result<TcpDestination<'a>, Reason> {
    let upstream = destination::resolve_upstream(snapshot, route.upstream.as_ref(), route.service.as_ref())?;
    let timeouts = upstream.timeout.unwrap_or(DEFAULT_TIMEOUTS);
    let authority = query.sni.map_or(DEFAULT_SERVER_NAME, |sni| sni.as_str());
    Ok(TcpDestination { upstream, timeouts, authority })
}
