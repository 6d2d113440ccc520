//! Which stream route takes a connection, and where it goes from there. Contract sections 7.3 and
//! 7.4.

use std::time::Duration;

use model::resource::{StreamRoute, Timeouts, Upstream};
use model::{Snapshot, StreamQuery, destination};

use crate::reason::Reason;

/// nginx's for streams: what holds where the upstream says nothing.
const DEFAULT_TIMEOUTS: Timeouts = Timeouts {
    connect: Duration::from_secs(60),
    send: Duration::from_secs(600),
    read: Duration::from_secs(600),
};

/// Asked for in TLS by an upstream's side when the client's had no name (contract 6.5).
const DEFAULT_SERVER_NAME: &str = "apisix_backend";

/// Where a stream goes. Borrows from the snapshot it was decided by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TcpDestination<'a> {
    /// The route that matched.
    pub route: &'a StreamRoute,
    /// Its upstream, or its service's.
    pub upstream: &'a Upstream,
    /// The upstream's, else those of nginx.
    pub timeouts: Timeouts,
    /// The name the upstream's side of TLS asks for, unless the upstream says another.
    pub authority: &'a str,
}

/// Finds the route.
///
/// # Errors
/// `NoStreamRoute`, or that the route is blocked.
pub(crate) fn find_route<'a>(
    snapshot: &'a Snapshot,
    query: &StreamQuery<'_>,
) -> Result<&'a StreamRoute, Reason> {
    let route = snapshot.find_stream_route(query).ok_or(Reason::NoStreamRoute)?;
    if route.blocked.is_some() { Err(Reason::BlockedStreamRoute) } else { Ok(route) }
}

/// Finds where a route's connections go.
///
/// # Errors
/// What is missing or blocked behind the route.
pub(crate) fn find_destination<'a>(
    snapshot: &'a Snapshot,
    route: &'a StreamRoute,
    query: &StreamQuery<'a>,
) -> Result<TcpDestination<'a>, Reason> {
    let upstream = destination::resolve_upstream(snapshot, route.upstream.as_ref(), route.service.as_ref())?;
    let timeouts = upstream.timeout.unwrap_or(DEFAULT_TIMEOUTS);
    let authority = query.sni.map_or(DEFAULT_SERVER_NAME, |sni| sni.as_str());
    Ok(TcpDestination { route, upstream, timeouts, authority })
}
