//! Compiles the stream route document (contract 3.5).

use ipnet::IpNet;
use pki::Keyring;
use serde_json::Value;

use super::fields::{flag, id as id_of, names, string, unsigned};
use super::plugins::stream_plugins;
use super::{unsupported, upstream};
use crate::id::Id;
use crate::network::{self, NetworkError};
use crate::pattern::SniPattern;
use crate::problem::Problem;
use crate::resource::{StreamRoute, UpstreamRef};

/// APISIX checks the inline upstream only when it is used; here it is checked at once, so that no
/// data plane rejects an accepted stream route.
pub(super) fn compile(id: &Id, document: &Value, keyring: &Keyring) -> Result<StreamRoute, Problem> {
    let route = StreamRoute {
        id: id.clone(),
        snis: snis(document)?,
        tls_passthrough: flag(document, "tls_passthrough") == Some(true),
        remote_addr: address(document, "remote_addr")?,
        server_addr: address(document, "server_addr")?,
        server_port: unsigned(document, "server_port")?.and_then(|port| u16::try_from(port).ok()),
        upstream: upstream::upstream_ref(document, keyring)?,
        service: id_of(document, "service_id")?,
        blocked: None,
    };
    require_node_ports(route.upstream.as_ref())?;
    forbid_tls_within_tls(&route)?;
    stream_plugins(document)?;
    if document.get("protocol").is_some() {
        return Err(unsupported("protocol", "remove it: streams are passed on as they are"));
    }
    Ok(route)
}

/// A bare `*` in `snis` is no restriction, unlike that of `sni`, which takes TLS connections only.
fn snis(document: &Value) -> Result<Vec<SniPattern>, Problem> {
    let names = names(document, "sni", "snis")?;
    let is_any = document.get("snis").is_some() && names.contains(&SniPattern::Any);
    Ok(if is_any { Vec::new() } else { names })
}

/// An upstream of its own; those that it names are checked by who knows them.
fn forbid_tls_within_tls(route: &StreamRoute) -> Result<(), Problem> {
    let Some(UpstreamRef::Inline(upstream)) = &route.upstream else { return Ok(()) };
    match route.puts_tls_into_tls(upstream.scheme) {
        Some(why) => Err(Problem::new("upstream.scheme", why).with_hint(StreamRoute::TLS_INTO_TLS_HINT)),
        None => Ok(()),
    }
}

fn address(document: &Value, field: &str) -> Result<Option<IpNet>, Problem> {
    let Some(text) = string(document, field) else { return Ok(None) };
    network::parse(text).map(Some).map_err(|error| {
        let hint = match error {
            NetworkError::Syntax => "like 192.0.2.1, 192.0.2.0/24, 2001:db8::1 or 2001:db8::/32".to_owned(),
            NetworkError::MappedPrefix => format!("{text} is {error}"),
        };
        Problem::new(field, format!("invalid {field}: {text}")).with_hint(hint)
    })
}

/// TCP has no default port. An upstream with a TCP scheme checks this itself; a stream route also
/// uses upstreams with HTTP schemes.
fn require_node_ports(target: Option<&UpstreamRef>) -> Result<(), Problem> {
    let Some(UpstreamRef::Inline(upstream)) = target else { return Ok(()) };
    upstream::require_node_ports(upstream).map_err(|problem| problem.within("upstream"))
}
