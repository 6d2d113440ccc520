//! Compiles the route document (contract 3.3).

use ipnet::IpNet;
use pki::Keyring;
use serde_json::Value;

use super::fields::{enabled, flag, id as id_of, signed, string, strings, timeouts};
use super::plugins::http_plugins;
use super::service::{client_identity, forbid_unsupported, hosts};
use super::upstream;
use crate::expression::Vars;
use crate::id::Id;
use crate::network;
use crate::problem::{Problem, ProblemKind};
use crate::resource::{Route, RouteMethod, UpstreamRef};
use crate::uri::UriPattern;

/// Rules of the schema for which APISIX has special messages (contract 3.3).
pub(super) fn check_before_schema(document: &Value) -> Result<(), Problem> {
    for (one, many) in [("host", "hosts"), ("remote_addr", "remote_addrs")] {
        if document.get(one).is_some() && document.get(many).is_some() {
            return Err(Problem::new(one, format!("only one of {one} or {many} is allowed")));
        }
    }
    Ok(())
}

pub(super) fn compile(id: &Id, document: &Value, keyring: &Keyring) -> Result<Route, Problem> {
    let route = Route {
        id: id.clone(),
        uris: uris(document)?,
        hosts: hosts(document, "host")?,
        methods: strings(document, "methods").into_iter().filter_map(RouteMethod::parse).collect(),
        remote_addrs: remote_addrs(document)?,
        priority: signed(document, "priority")?.unwrap_or_default(),
        enabled: enabled(document),
        upstream: upstream::upstream_ref(document, keyring)?,
        service: id_of(document, "service_id")?,
        plugin_config: id_of(document, "plugin_config_id")?,
        timeout: timeouts(document)?,
        vars: document.get("vars").map(vars).transpose()?.unwrap_or_default(),
        client_identity: client_identity(document)?,
        proxy_rewrite: http_plugins(document)?,
        enable_websocket: flag(document, "enable_websocket"),
        blocked: None,
    };
    let unserved = ["filter_func", "script", "script_id"];
    forbid_unsupported(document, &unserved)?;
    require_http_scheme(route.upstream.as_ref())?;
    Ok(route)
}

/// APISIX has more variables, operators and patterns.
fn vars(expression: &Value) -> Result<Vars, Problem> {
    Vars::compile(expression).map_err(|problem| problem.with_kind(ProblemKind::Unsupported))
}

/// An upstream for TCP takes no HTTP requests.
fn require_http_scheme(target: Option<&UpstreamRef>) -> Result<(), Problem> {
    match target {
        Some(UpstreamRef::Inline(upstream)) if !upstream.scheme.is_http() => {
            let scheme = upstream.scheme.as_str();
            let message = format!("invalid configuration: scheme {scheme} takes no HTTP requests");
            Err(Problem::new("upstream.scheme", message)
                .with_hint("expected http, https, grpc or grpcs; tcp and tls are for stream_routes")
                .with_kind(ProblemKind::Unsupported))
        }
        _ => Ok(()),
    }
}

fn uris(document: &Value) -> Result<Vec<UriPattern>, Problem> {
    let written = match string(document, "uri") {
        Some(uri) => vec![("uri".to_owned(), uri)],
        None => {
            (1..).zip(strings(document, "uris")).map(|(index, uri)| (format!("uris[{index}]"), uri)).collect()
        }
    };
    let mut uris = Vec::new();
    for (field, text) in written {
        let uri = UriPattern::parse(text).map_err(|problem| {
            let message = format!("invalid configuration: property \"{field}\": {}", problem.message);
            // APISIX reads such a text as a regular expression.
            Problem { field, message, ..problem }.with_kind(ProblemKind::Unsupported)
        })?;
        if !uris.contains(&uri) {
            uris.push(uri);
        }
    }
    Ok(uris)
}

fn remote_addrs(document: &Value) -> Result<Vec<IpNet>, Problem> {
    let written = match string(document, "remote_addr") {
        Some(address) => vec![("remote_addr".to_owned(), address)],
        None => {
            let numbered = (1..).zip(strings(document, "remote_addrs"));
            numbered.map(|(index, address)| (format!("remote_addrs[{index}]"), address)).collect()
        }
    };
    written
        .into_iter()
        .map(|(field, text)| {
            network::parse(text).map_err(|error| {
                let message = format!("invalid configuration: property \"{field}\": {text} is {error}");
                Problem::new(field, message)
                    .with_hint("like 192.0.2.1, 192.0.2.0/24, 2001:db8::1 or 2001:db8::/32")
            })
        })
        .collect()
}
