//! Which route takes a request, and where it goes from there. Contract sections 7.1 and 7.3.
//!
//! The data plane forwards by [`find`], and the control plane explains by it.

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

/// nginx's: what holds where neither the route nor the upstream says anything.
const DEFAULT_TIMEOUTS: Timeouts = Timeouts {
    connect: Duration::from_secs(60),
    send: Duration::from_secs(60),
    read: Duration::from_secs(60),
};

/// Where a request goes. Borrows from the snapshot it was decided by.
#[derive(Debug, Clone, Copy)]
pub struct Destination<'a> {
    /// The route that matched.
    pub route: &'a Route,
    /// Its upstream, or its service's.
    pub upstream: &'a Upstream,
    /// The route's, else the upstream's, else 60 seconds each.
    pub timeouts: Timeouts,
    /// The route's, else its service's.
    pub client_identity: Option<&'a ClientIdentity>,
    /// The route's, else its service's.
    pub proxy_rewrite: Option<&'a ProxyRewrite>,
}

/// Finds the destination.
///
/// # Errors
/// `NoRoute`, what is missing behind the route, or what is blocked.
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

/// The upstream of a route of either sort: its own, else its service's.
///
/// # Errors
/// What is missing or blocked.
pub fn resolve_upstream<'a>(
    snapshot: &'a Snapshot,
    own: Option<&'a UpstreamRef>,
    service: Option<&Id>,
) -> Result<&'a Upstream, Reason> {
    let service = match service {
        Some(id) => Some(snapshot.service(id).ok_or(Reason::NoService)?),
        None => None,
    };
    // Also where the route has an upstream of its own: what its service was to do is not done.
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
