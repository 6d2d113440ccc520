//! The stream route of a TCP connection, and its upstream. Contract sections 7.3 and 7.4.

use std::time::Duration;

use model::resource::{StreamRoute, Timeouts, Upstream};
use model::{Snapshot, StreamQuery, destination};

use crate::reason::Reason;

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
