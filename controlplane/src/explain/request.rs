//! Where a request ends: the normalized target, admission, the route, and whether the route permits
//! this client.

use std::sync::Arc;

use http::uri::Authority;
use model::admission::{self, ClientVerification};
use model::{
    Blocked, HostName, Id, Key, Kind, NoVariables, Node, ProxyRewrite, Reason, RequestTarget, Resource,
    Route, Snapshot, Ssl, UpstreamIdentity, UpstreamRef, UpstreamTls, destination, raw_path,
};
use serde_json::{Value, json};

use super::client::ClientEvaluation;
use super::query::RequestSpec;
use super::{BLOCKED, FailureExplanation, Outcome, put, site};
use crate::current_snapshot::ListenerSettings;

/// Maximum of routes in `near_misses`.
const NEAR_MISSES_MAX: usize = 5;

/// The connection of a request.
pub(super) struct ExplainedConnection<'a> {
    pub sni: &'a HostName,
    pub ssl: &'a Ssl,
    pub client: &'a ClientEvaluation,
}

/// Explains a request: the intermediate results, and how it ends.
pub(super) fn explain_request(
    request: &RequestSpec,
    connection: &ExplainedConnection<'_>,
    snapshot: &Snapshot,
    listeners: &ListenerSettings,
) -> (Value, Outcome) {
    let authority = request.uri.authority().map(Authority::as_str);
    // Without a host the request is for the SNI, as in browsers.
    let host = request.host.as_deref().or_else(|| authority.is_none().then(|| connection.sni.as_str()));
    let mut json = json!({"method": request.method, "remote_addr": request.remote.to_string()});
    let target = match RequestTarget::new(authority, host, request.uri.path(), listeners.paths) {
        Ok(target) => target,
        Err(error) => {
            return (json, Outcome::Failed(FailureExplanation::new(Reason::BadRequest, error.to_string())));
        }
    };
    put(&mut json, "host", target.host.as_ref().map(HostName::as_str));
    put(&mut json, "path", target.path.as_str());
    put(&mut json, "forwarded_path", target.forwarded_path());
    if let Some(host) = &target.host {
        let host_site = snapshot.site(host);
        put(&mut json, "site", site::match_json(snapshot, host));
        put(
            &mut json,
            "same_policy",
            host == connection.sni
                || host_site
                    .is_none_or(|host_site| admission::may_reuse_connection(Some(connection.ssl), host_site)),
        );
    }
    put(
        &mut json,
        "skip_pattern",
        connection.ssl.client.as_deref().and_then(|policy| policy.skip_pattern_for(&target.path)),
    );
    let site = admission::ConnectionAuth {
        sni: connection.sni,
        ssl: Some(connection.ssl),
        client: &connection.client.client,
    };
    let client = match admission::admit(&site, snapshot, &target) {
        Ok(client) => client,
        Err(reason) => {
            return (json, Outcome::Failed(explain_denied(reason, connection, snapshot, &target)));
        }
    };
    // A question has no headers and no query, so of `vars` only their presence is reported
    // ([`mismatch`]).
    let outcome = match destination::find(snapshot, &target, &request.method, request.remote, &NoVariables) {
        Ok(destination) => {
            put(&mut json, "route", destination.route.id.as_str());
            match explain_identity(&destination, client) {
                Some(failure) => Outcome::Failed(failure),
                None => explain_raw_path(request, connection, &destination, client, &target, snapshot)
                    .map_or_else(|| explain_upstream(&destination, snapshot, listeners), Outcome::Failed),
            }
        }
        Err(reason) => {
            if reason == Reason::NoRoute {
                put(&mut json, "near_misses", near_misses(snapshot, request, &target));
            }
            Outcome::Failed(explain_no_destination(reason, request, snapshot, &target))
        }
    };
    (json, outcome)
}

/// The request is denied by the site's policy.
fn explain_denied(
    reason: Reason,
    connection: &ExplainedConnection<'_>,
    snapshot: &Snapshot,
    target: &RequestTarget,
) -> FailureExplanation {
    let ExplainedConnection { sni, ssl, client } = connection;
    if reason == Reason::Misdirected {
        let host = target.host.as_ref().map(HostName::as_str).unwrap_or_default();
        let other = target.host.as_ref().and_then(|host| snapshot.site(host)).map(|other| other.id.as_str());
        let message = format!(
            "the Host {host} belongs to ssl {}, which requires client certificates; this connection was made to {sni}, ssl {}",
            other.unwrap_or_default(),
            ssl.id
        );
        return FailureExplanation::new(reason, message).with_fix(format!("connect with the SNI {host}"));
    }
    if reason == Reason::BlockedSite {
        let site = target.host.as_ref().and_then(|host| snapshot.site(host)).map_or(*ssl, Arc::as_ref);
        let message = site.blocked.as_ref().map(|blocked| site::blocked_message(site, blocked));
        return FailureExplanation::new(reason, message.unwrap_or_default()).with_fix(BLOCKED);
    }
    let mut failure = client.failure(reason, ssl);
    let path = &target.path;
    failure.message = match &client.client {
        ClientVerification::Rejected(_) => {
            format!("no skip pattern matches the path {path}, and {}", failure.message)
        }
        _ => format!("no skip pattern matches the path {path}: {}", failure.message),
    };
    failure
}

/// The route or its service does not permit this client.
fn explain_identity(
    destination: &destination::Destination<'_>,
    client: &ClientVerification,
) -> Option<FailureExplanation> {
    let identity = client.identity();
    if destination.client_identity.is_none_or(|block| block.allows(identity)) {
        return None;
    }
    let client = identity.map_or("there is no client verified for this Host's site".to_owned(), |identity| {
        format!("none of its entries matches {}", identity.subject())
    });
    let message = format!(
        "route {} permits only the clients of its client_identity.allow, and {client}",
        destination.route.id
    );
    Some(
        FailureExplanation::new(Reason::NotAllowed, message)
            .with_fix("add an entry that matches the client's certificate"),
    )
}

/// The route forwards raw paths, and this path bypasses a rule.
fn explain_raw_path(
    request: &RequestSpec,
    connection: &ExplainedConnection<'_>,
    destination: &destination::Destination<'_>,
    client: &ClientVerification,
    target: &RequestTarget,
    snapshot: &Snapshot,
) -> Option<FailureExplanation> {
    if !destination.proxy_rewrite.is_some_and(ProxyRewrite::uses_raw_path)
        || request.uri.path() == target.forwarded_path()
    {
        return None;
    }
    let policy = connection.ssl.client.as_deref();
    let conflict = raw_path::check_request(snapshot, destination, policy, client).err()?;
    let message = format!(
        "route {} forwards the path as the client wrote it, which could bypass {conflict}",
        destination.route.id
    );
    Some(
        FailureExplanation::new(Reason::BadRequest, message)
            .with_fix("request the forwarded_path, or use a host and nodes of its own"),
    )
}

/// The upstream of a route, or why it is unusable. Nothing that needs the network (DNS,
/// connections) is checked.
fn explain_upstream(
    destination: &destination::Destination<'_>,
    snapshot: &Snapshot,
    listeners: &ListenerSettings,
) -> Outcome {
    let destination::Destination { route, upstream, .. } = destination;
    if !upstream.scheme.is_http() {
        let scheme = upstream.scheme.as_str();
        let message = format!("the upstream of route {} is for streams: its scheme is {scheme}", route.id);
        return Outcome::Failed(
            FailureExplanation::new(Reason::UpstreamScheme, message)
                .with_fix("set its scheme to http or https"),
        );
    }
    if upstream.scheme.is_encrypted()
        && let Some(UpstreamIdentity::Ssl(id)) = &upstream.tls.identity
        && snapshot.ssl(id).is_none_or(|ssl| !ssl.client_side)
    {
        let message = format!(
            "the upstream of route {} names tls.client_cert_id {id}, and there is no such ssl of type client",
            route.id
        );
        return Outcome::Failed(
            FailureExplanation::new(Reason::UpstreamIdentity, message)
                .with_fix("put an ssl object of type client there"),
        );
    }
    let usable = |node: &&Node| upstream.nodes.len() == 1 || node.weight > 0;
    let nodes: Vec<_> = upstream.nodes.iter().filter(usable).map(node_address).collect();
    if nodes.is_empty() {
        let message = format!("the upstream of route {} has no node with a weight", route.id);
        return Outcome::Failed(
            FailureExplanation::new(Reason::NoNode, message).with_fix("add a node to the upstream"),
        );
    }
    Outcome::Forwarded(json!({
        "route": route.id.as_str(),
        "service": route.service.as_ref().map(model::Id::as_str),
        "plugin_config": route.plugin_config.as_ref().map(model::Id::as_str),
        "upstream": upstream.id.as_ref().map(model::Id::as_str),
        "scheme": upstream.scheme.as_str(),
        "verification": upstream.scheme.is_encrypted().then(|| verification(&upstream.tls, listeners)),
        "websocket": destination.enable_websocket,
        "nodes": nodes,
    }))
}

/// How the servers are verified, in words.
fn verification(tls: &UpstreamTls, listeners: &ListenerSettings) -> String {
    if !tls.verifies(listeners.upstream_verify) {
        return "none: any server is accepted".to_owned();
    }
    let anchors = if tls.anchors.is_some() { "tls.ca_certs" } else { "apisix.ssl.ssl_trusted_certificate" };
    let names =
        if tls.verify_identity.is_some() { "one of tls.verify_identity" } else { "the server name sent" };
    format!("by {anchors}, for {names}")
}

fn node_address(node: &Node) -> String {
    node.port.map_or_else(|| node.host.clone(), |port| format!("{}:{port}", node.host))
}

/// No route matches, or a resource behind the route is missing or blocked.
fn explain_no_destination(
    reason: Reason,
    request: &RequestSpec,
    snapshot: &Snapshot,
    target: &RequestTarget,
) -> FailureExplanation {
    if let (Reason::BlockedGlobalRule, Some(id)) = (reason, snapshot.blocking_global_rule()) {
        return explain_blocked(reason, snapshot, Kind::GlobalRule, id);
    }
    let query = model::RouteQuery {
        host: target.host.as_ref(),
        path: &target.path,
        method: &request.method,
        remote: request.remote,
        variables: &NoVariables,
    };
    let Some(route) = snapshot.find_route(&query) else {
        let host = target.host.as_ref().map(HostName::as_str).unwrap_or("(none)");
        let message = format!(
            "no enabled route takes host {host}, path {}, method {}, address {}",
            target.path, request.method, request.remote
        );
        return FailureExplanation::new(reason, message)
            .with_fix("add or change a route; `near_misses` has those whose uri matches");
    };
    let id = &route.id;
    match reason {
        Reason::BlockedRoute => explain_blocked(reason, snapshot, Kind::Route, id),
        Reason::BlockedService => {
            let service = route.service.as_ref().unwrap_or(id);
            explain_blocked(reason, snapshot, Kind::Service, service)
        }
        Reason::BlockedUpstream => match upstream_ref(route, snapshot) {
            Some(UpstreamRef::Id(upstream)) => explain_blocked(reason, snapshot, Kind::Upstream, upstream),
            _ => explain_blocked(reason, snapshot, Kind::Route, id),
        },
        Reason::BlockedPluginConfig => {
            let config = route.plugin_config.as_ref().unwrap_or(id);
            explain_blocked(reason, snapshot, Kind::PluginConfig, config)
        }
        Reason::NoPluginConfig => {
            explain_missing(reason, id, Kind::PluginConfig, route.plugin_config.as_ref())
        }
        Reason::NoService => explain_missing(reason, id, Kind::Service, route.service.as_ref()),
        Reason::UpstreamMissing => {
            let upstream = match upstream_ref(route, snapshot) {
                Some(UpstreamRef::Id(upstream)) => upstream.as_str(),
                _ => "",
            };
            FailureExplanation::new(
                reason,
                format!("route {id} leads to upstream {upstream}, which does not exist"),
            )
            .with_fix(format!("create upstream {upstream}"))
        }
        _ => FailureExplanation::new(reason, format!("neither route {id} nor its service names an upstream"))
            .with_fix("give the route an upstream, upstream_id or service_id"),
    }
}

/// The route refers to a resource that does not exist.
fn explain_missing(reason: Reason, route: &Id, kind: Kind, id: Option<&Id>) -> FailureExplanation {
    let named = format!("{} {}", kind.noun(), id.map(Id::as_str).unwrap_or_default());
    let message = format!("route {route} names {named}, which does not exist");
    FailureExplanation::new(reason, message).with_fix(format!("create {named}"))
}

/// The route's own upstream, else its service's.
fn upstream_ref<'a>(route: &'a Route, snapshot: &'a Snapshot) -> Option<&'a UpstreamRef> {
    let service = route.service.as_ref().and_then(|service| snapshot.service(service));
    route.upstream.as_ref().or_else(|| service.and_then(|service| service.upstream.as_ref()))
}

/// The request reaches a blocked resource.
fn explain_blocked(reason: Reason, snapshot: &Snapshot, kind: Kind, id: &Id) -> FailureExplanation {
    let versioned = snapshot.get(&Key::new(kind, id.clone()));
    let message = versioned.and_then(|versioned| versioned.resource.blocked()).map_or("", Blocked::reason);
    let noun = kind.noun();
    let message =
        format!("{noun} {id} is blocked: another program stored what cannot be honoured: {message}");
    FailureExplanation::new(reason, message).with_fix(BLOCKED)
}

/// Routes whose uri matches, and why they do not take the request.
fn near_misses(snapshot: &Snapshot, request: &RequestSpec, target: &RequestTarget) -> Value {
    let routes = snapshot.resources().filter_map(|versioned| match &versioned.resource {
        Resource::Route(route) if route.uris.iter().any(|uri| uri.matches(&target.path)) => Some(route),
        _ => None,
    });
    let near = routes.take(NEAR_MISSES_MAX).map(
        |route| json!({"route": route.id.as_str(), "mismatch": mismatch(route, snapshot, request, target)}),
    );
    near.collect()
}

fn mismatch(
    route: &Arc<Route>,
    snapshot: &Snapshot,
    request: &RequestSpec,
    target: &RequestTarget,
) -> &'static str {
    let service = route.service.as_ref().and_then(|service| snapshot.service(service));
    let hosts = match service {
        Some(service) if route.hosts.is_empty() => &service.hosts,
        _ => &route.hosts,
    };
    let matches = |name: &HostName| hosts.iter().any(|host| host.matches(name));
    if !route.enabled {
        "it is switched off (status: 0)"
    } else if !hosts.is_empty() && !target.host.as_ref().is_some_and(matches) {
        "it is for other hosts"
    } else if !route.methods.allows(&request.method) {
        "it does not take this method"
    } else if !route.vars.matches(&NoVariables) {
        "it has vars, which an explanation without headers and query cannot evaluate"
    } else {
        "it does not take this address (remote_addrs)"
    }
}
