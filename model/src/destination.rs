//! Selects the route of a request, and its service, upstream and timeouts. Contract sections 7.1
//! and 7.3.
//!
//! The data plane forwards by [`find`] and the explain API reports it.

use std::net::IpAddr;
use std::time::Duration;

use crate::client_identity::ClientIdentity;
use crate::id::Id;
use crate::proxy_rewrite::ProxyRewrite;
use crate::reason::Reason;
use crate::request_target::RequestTarget;
use crate::resource::{Route, Timeouts, Upstream, UpstreamRef};
use crate::route_index::RouteQuery;
use crate::snapshot::Snapshot;
use crate::variable::Variables;

/// nginx's defaults, used when neither the route nor the upstream sets timeouts.
const DEFAULT_TIMEOUTS: Timeouts = Timeouts {
    connect: Duration::from_secs(60),
    send: Duration::from_secs(60),
    read: Duration::from_secs(60),
};

/// The route of a request with its effective settings, borrowed from the snapshot.
#[derive(Debug, Clone, Copy)]
pub struct Destination<'a> {
    /// The matching route.
    pub route: &'a Route,
    /// The upstream of the route, or else of its service.
    pub upstream: &'a Upstream,
    /// The timeouts of the route, or else of the upstream, or else 60 seconds each.
    pub timeouts: Timeouts,
    /// The block of the route, or else of its service.
    pub client_identity: Option<&'a ClientIdentity>,
    /// The block of the route, or else of its service.
    pub proxy_rewrite: Option<&'a ProxyRewrite>,
}

/// Finds the destination of a request.
///
/// # Errors
///
/// `NoRoute`, or the reason why the matching route leads nowhere.
pub fn find<'a>(
    snapshot: &'a Snapshot,
    target: &RequestTarget,
    method: &str,
    remote: IpAddr,
    variables: &dyn Variables,
) -> Result<Destination<'a>, Reason> {
    if snapshot.blocking_global_rule().is_some() {
        return Err(Reason::BlockedGlobalRule);
    }
    let query = RouteQuery { host: target.host.as_ref(), path: &target.path, method, remote, variables };
    let route: &Route = snapshot.find_route(&query).ok_or(Reason::NoRoute)?;
    if route.blocked.is_some() {
        return Err(Reason::BlockedRoute);
    }
    let upstream = resolve_upstream(snapshot, route.upstream.as_ref(), route.service.as_ref())?;
    let timeouts = route.timeout.or(upstream.timeout).unwrap_or(DEFAULT_TIMEOUTS);
    let service = route.service.as_ref().and_then(|id| snapshot.service(id));
    let of_service = service.and_then(|service| service.client_identity.as_deref());
    let client_identity = route.client_identity.as_deref().or(of_service);
    let of_service = service.and_then(|service| service.proxy_rewrite.as_deref());
    let proxy_rewrite = route.proxy_rewrite.as_deref().or(of_service);
    Ok(Destination { route, upstream, timeouts, client_identity, proxy_rewrite })
}

/// Resolves the upstream of a route or stream route: its own, or else its service's.
///
/// # Errors
///
/// A resource is missing or blocked.
pub fn resolve_upstream<'a>(
    snapshot: &'a Snapshot,
    own: Option<&'a UpstreamRef>,
    service: Option<&Id>,
) -> Result<&'a Upstream, Reason> {
    let service = match service {
        Some(id) => Some(snapshot.service(id).ok_or(Reason::NoService)?),
        None => None,
    };
    // A blocked service also blocks routes with an upstream of their own, because its plugins would
    // be skipped.
    if service.is_some_and(|service| service.blocked.is_some()) {
        return Err(Reason::BlockedService);
    }
    let reference =
        own.or_else(|| service.and_then(|service| service.upstream.as_ref())).ok_or(Reason::NoUpstream)?;
    let upstream: &Upstream = match reference {
        UpstreamRef::Inline(upstream) => upstream,
        UpstreamRef::Id(id) => snapshot.upstream(id).ok_or(Reason::UpstreamMissing)?,
    };
    if upstream.blocked.is_some() { Err(Reason::BlockedUpstream) } else { Ok(upstream) }
}
