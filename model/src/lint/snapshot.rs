//! Findings about how resources fit together: references, claims on names, hosts without a site.

use std::cell::LazyCell;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use rustls_pki_types::UnixTime;

use super::upstream::{check_server_name, check_verification};
use super::{Finding, Findings, LintSettings, Severity, lint_resource};
use crate::destination;
use crate::host_name::HostName;
use crate::id::{Id, Kind};
use crate::passthrough::{self, SiteNames};
use crate::pattern::{HostPattern, SniPattern};
use crate::raw_path;
use crate::resource::{Resource, Route, Ssl, StreamRoute, references};
use crate::snapshot::Snapshot;

/// All findings about a snapshot and its resources, in order.
pub fn lint_snapshot(snapshot: &Snapshot, now: UnixTime, settings: LintSettings) -> Vec<Finding> {
    let mut found = BTreeSet::new();
    let claims = claims(snapshot);
    let guarded: Vec<_> = sites(snapshot).filter(|ssl| ssl.client.is_some()).collect();
    let site_names =
        LazyCell::new(|| sites(snapshot).map(|ssl| SiteNames::from_ssl(ssl)).collect::<Vec<_>>());
    for versioned in snapshot.resources() {
        let resource = &versioned.resource;
        found.extend(lint_resource(resource, now));
        let mut notes = Findings::for_resource(resource.key());
        for reference in references(resource) {
            let named = snapshot.get(&reference.key).map(|versioned| &versioned.resource);
            if let Err(problem) = reference.check(named) {
                let fix = if named.is_none() { "create it, or name another" } else { "name another" };
                notes.add(Severity::Error, &reference.field, problem.message, fix);
            }
        }
        check_verification(resource, settings, &mut notes);
        match resource {
            Resource::Ssl(ssl) => check_name_claims(ssl, &claims, &mut notes),
            Resource::Route(route) if route.enabled && route.blocked.is_none() => {
                check_route(route, snapshot, &mut notes);
                check_server_name(route, snapshot, settings, &mut notes);
                if settings.plain_http {
                    check_plain_http(route, snapshot, &guarded, &mut notes);
                }
            }
            Resource::StreamRoute(route) if route.tls_passthrough && route.blocked.is_none() => {
                check_passthrough(route, &site_names, snapshot, &mut notes);
            }
            Resource::Route(_)
            | Resource::StreamRoute(_)
            | Resource::Service(_)
            | Resource::Upstream(_)
            | Resource::PluginConfig(_) => {}
            Resource::GlobalRule(rule) => check_global_rule(&rule.id, snapshot, &mut notes),
        }
        found.extend(notes.findings);
    }
    found.into_iter().collect()
}

/// The enabled ssls of type server.
fn sites(snapshot: &Snapshot) -> impl Iterator<Item = &Arc<Ssl>> {
    let enabled = |ssl: &&Arc<Ssl>| ssl.enabled && !ssl.client_side;
    snapshot.resources_of(Kind::Ssl).keys().filter_map(|id| snapshot.ssl(id)).filter(enabled)
}

fn check_passthrough(route: &StreamRoute, sites: &[SiteNames], snapshot: &Snapshot, notes: &mut Findings) {
    if let Ok(upstream) =
        destination::resolve_upstream(snapshot, route.upstream.as_ref(), route.service.as_ref())
        && let Some(what) = route.puts_tls_into_tls(upstream.scheme)
    {
        let what = format!("{what}: data planes deny these connections");
        notes.add(Severity::Error, "tls_passthrough", what, StreamRoute::TLS_INTO_TLS_HINT);
    }
    let Some((ssl, sni)) = passthrough::bypassed_site(route, sites) else { return };
    let (taken, denied) = match sni {
        Some(sni) => (format!("\"{sni}\""), "with its SNI"),
        None => ("every name".to_owned(), "with its SNI, and those without one"),
    };
    let what = format!(
        "passes on the TLS of {taken}, and ssl {ssl} demands client certificates for such a name, or is blocked: data \
         planes deny connections {denied}"
    );
    notes.add(
        Severity::Error,
        "tls_passthrough",
        what,
        "leave its names out of snis, or remove one of the two",
    );
}

/// The ssl that owns each configured name: the lowest id, as in the index of sites.
fn claims(snapshot: &Snapshot) -> HashMap<&SniPattern, &Id> {
    let mut claims = HashMap::new();
    for ssl in sites(snapshot) {
        for name in &ssl.names {
            claims.entry(name).or_insert(&ssl.id);
        }
    }
    claims
}

fn check_name_claims(ssl: &Ssl, claims: &HashMap<&SniPattern, &Id>, notes: &mut Findings) {
    if !ssl.enabled || ssl.client_side {
        return;
    }
    for name in &ssl.names {
        if let Some(winner) = claims.get(name).filter(|winner| ***winner != ssl.id) {
            let what =
                format!("\"{name}\" is claimed by ssl {winner} too, which serves it: the lowest id wins");
            notes.add(Severity::Warning, "snis", what, "leave the name to one of them");
        }
    }
}

fn check_global_rule(id: &Id, snapshot: &Snapshot, notes: &mut Findings) {
    let rewriting = snapshot.rewriting_global_rules();
    if let Some(other) = rewriting.iter().find(|other| *other != id).filter(|_| rewriting.contains(id)) {
        let what = format!("global rule {other} has the plugin, too: it runs in none of them");
        notes.add(Severity::Error, "plugins.proxy-rewrite", what, "leave it in one of them");
    }
}

fn check_route(route: &Route, snapshot: &Snapshot, notes: &mut Findings) {
    if raw_path::is_enabled(snapshot, route) {
        for conflict in raw_path::conflicts(snapshot, route) {
            let what = format!("{}: such requests are denied", raw_path::describe(&conflict));
            notes.add(Severity::Error, raw_path::FIELD, what, raw_path::HINT);
        }
    }
    let service = route.service.as_ref().and_then(|id| snapshot.service(id));
    let leads_on = route.upstream.is_some() || service.is_some_and(|service| service.upstream.is_some());
    // A missing service is reported as a broken reference.
    if !leads_on && (route.service.is_none() || service.is_some()) {
        let what = "neither the route nor its service names an upstream: requests get a 503".to_owned();
        notes.add(Severity::Error, "upstream", what, "add upstream, upstream_id or service_id");
    }
    if snapshot.enable_websocket(route)
        && let Ok(upstream) =
            destination::resolve_upstream(snapshot, route.upstream.as_ref(), route.service.as_ref())
        && upstream.scheme.is_grpc()
    {
        let what =
            format!("no WebSocket can be opened to an upstream of scheme {}", upstream.scheme.as_str());
        notes.add(
            Severity::Error,
            "enable_websocket",
            what,
            "leave it out, or set the scheme to http or https",
        );
    }
    for host in snapshot.hosts(route) {
        if sample_name(host).is_some_and(|name| snapshot.site(&name).is_none()) {
            let what = format!("no ssl object covers the host {host}: it is not reachable over TLS");
            notes.add(Severity::Notice, "hosts", what, "add the name to the snis of an ssl object");
        }
    }
}

/// Reports hosts that plain HTTP serves without the client policy of their site.
fn check_plain_http(route: &Route, snapshot: &Snapshot, guarded: &[&Arc<Ssl>], notes: &mut Findings) {
    let hint = "bind apisix.node_listen to 127.0.0.1, or leave it out";
    let hosts = snapshot.hosts(route);
    if hosts.is_empty() {
        if let Some(ssl) = guarded.first() {
            let what = format!(
                "the route takes every host, also on the plain HTTP port, where the client certificates that ssl {} requires are not requested",
                ssl.id
            );
            notes.add(Severity::Warning, "hosts", what, hint);
        }
        return;
    }
    for host in hosts {
        let ssl = match host {
            HostPattern::Exact(name) => snapshot.site(name).filter(|ssl| ssl.client.is_some()),
            wide => guarded.iter().copied().find(|ssl| ssl.names.iter().any(|name| wide.overlaps(name))),
        };
        if let Some(ssl) = ssl {
            let what = format!(
                "the host {host} is also served on the plain HTTP port, where the client certificates that ssl {} requires are not requested",
                ssl.id
            );
            notes.add(Severity::Warning, "hosts", what, hint);
        }
    }
}

/// A name that matches the pattern; `None` for `*`.
fn sample_name(pattern: &HostPattern) -> Option<HostName> {
    match pattern {
        HostPattern::Exact(name) => Some(name.clone()),
        HostPattern::Suffix(suffix) => HostName::from_sni(&format!("a{suffix}")),
        HostPattern::Any => None,
    }
}
