//! The control API (contract 10.2): APISIX's questions about what this node serves, and our own.
//!
//! `documents` renders resources, `served` certificates and tickets, `live` connections and pools.
//! Invariant: it changes nothing, shows no private key and no secret, and answers no request that a
//! web page may have caused.

mod documents;
mod live;
mod paging;
mod served;

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use http::{HeaderMap, Method, StatusCode, Uri, header, uri};
use model::Kind;
use paging::PageQuery;
use serde_json::{Value, json};
use telemetry::status::{PageFuture, PageReply, PageRequest, Pages, StatusRejection, reply};

use super::workers::WorkerQuestions;
use crate::lifecycle::handles::{SnapshotHandle, TicketRingHandle};

/// The content of the control API's answers.
pub(super) struct ControlApi {
    pub(super) snapshot: Arc<SnapshotHandle>,
    /// `None`: sessions are not resumed.
    pub(super) ticket_ring: Option<Arc<TicketRingHandle>>,
    pub(super) workers: WorkerQuestions,
}

impl fmt::Debug for ControlApi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControlApi").finish_non_exhaustive()
    }
}

impl Pages for ControlApi {
    fn reply(&self, request: PageRequest) -> PageFuture {
        let PageRequest { head, is_tls } = request;
        if let Some(why) = cross_site(&head.headers, &head.uri, is_tls) {
            StatusRejection::CrossSite.record();
            return ready(error(StatusCode::FORBIDDEN, why));
        }
        let path = head.uri.path().to_owned();
        let segments: Vec<&str> = path.split('/').skip(1).collect();
        let Some(methods) = methods(&segments) else { return ready(not_found()) };
        if !methods.contains(&head.method) {
            let allowed: Vec<&str> = methods.iter().map(Method::as_str).collect();
            let mut answer = error(StatusCode::METHOD_NOT_ALLOWED, "this path has another method");
            if let Ok(allowed) = allowed.join(", ").parse() {
                answer.headers_mut().insert(header::ALLOW, allowed);
            }
            return ready(answer);
        }
        let page = match PageQuery::parse(head.uri.query()) {
            Ok(page) => page,
            Err(problem) => return ready(error(StatusCode::BAD_REQUEST, &problem)),
        };
        match segments[..] {
            ["v1", "connections"] => Box::pin(live::connections(self.workers.clone(), page)),
            ["v1", "pools"] => Box::pin(live::pools(self.workers.clone(), page)),
            _ => ready(self.answer(&segments, &page)),
        }
    }
}

const GET: &[Method] = &[Method::GET, Method::HEAD];

/// The methods of a path; `None`: there is no such path.
fn methods(segments: &[&str]) -> Option<&'static [Method]> {
    match segments {
        ["v1", "gc"] => Some(&[Method::POST]),
        ["v1", "plugins", "reload"] => Some(&[Method::PUT]),
        ["v1", "schema" | "plugin_metadatas" | "certificates" | "connections" | "pools" | "tickets"] => {
            Some(GET)
        }
        ["v1", "plugin_metadata", _] => Some(GET),
        ["v1", "healthcheck"] | ["v1", "healthcheck", _] | ["v1", "healthcheck", _, _] => Some(GET),
        ["v1", kind] if listed(kind).is_some() => Some(GET),
        ["v1", kind, _] if single(kind).is_some() => Some(GET),
        _ => None,
    }
}

/// The kinds that APISIX lists, and stream routes.
const KINDS: [Kind; 4] = [Kind::Route, Kind::Service, Kind::Upstream, Kind::StreamRoute];

fn listed(text: &str) -> Option<Kind> {
    KINDS.into_iter().find(|kind| kind.plural() == text)
}

fn single(text: &str) -> Option<Kind> {
    KINDS.into_iter().find(|kind| kind.singular() == text)
}

impl ControlApi {
    /// The answers that need no worker.
    fn answer(&self, segments: &[&str], page: &PageQuery) -> PageReply {
        let snapshot = self.snapshot.load();
        match *segments {
            ["v1", "schema"] => json_reply(&schemas()),
            ["v1", "healthcheck" | "plugin_metadatas"] => json_reply(&json!([])),
            ["v1", "healthcheck", kind] => {
                error(StatusCode::NOT_FOUND, &format!("missing src id for src type {kind}"))
            }
            ["v1", "healthcheck", kind, id] => documents::health_check(&snapshot, kind, id),
            ["v1", "plugin_metadata", name] => {
                error(StatusCode::NOT_FOUND, &format!("plugin metadata[{name}] not found"))
            }
            ["v1", "gc"] => error(StatusCode::NOT_FOUND, "there is no garbage collector"),
            ["v1", "plugins", "reload"] => {
                error(StatusCode::NOT_FOUND, "plugins are part of the program: none is loaded again")
            }
            ["v1", "certificates"] => served::certificates(&snapshot, page),
            ["v1", "tickets"] => served::tickets(self.ticket_ring.as_deref()),
            ["v1", kind] => match listed(kind) {
                Some(kind) => documents::list(&snapshot, kind, page),
                None => not_found(),
            },
            ["v1", kind, id] => match single(kind) {
                Some(kind) => documents::one(&snapshot, kind, id),
                None => not_found(),
            },
            _ => not_found(),
        }
    }
}

/// `/v1/schema`
fn schemas() -> Value {
    let main =
        Kind::ALL.into_iter().map(|kind| (kind.singular().to_owned(), model::json_schema(kind).clone()));
    json!({"main": Value::Object(main.collect()), "plugins": {}, "stream_plugins": {}})
}

/// Why a request may be a web page's: a name that the page's author made resolve to this address
/// (DNS rebinding), or another origin. Through mutual TLS the server's certificate excludes the
/// first.
fn cross_site(headers: &HeaderMap, target: &Uri, is_tls: bool) -> Option<&'static str> {
    let is_own = |site: &header::HeaderValue| matches!(site.as_bytes(), b"none" | b"same-origin");
    if headers.contains_key(header::ORIGIN) || !headers.get_all("sec-fetch-site").iter().all(is_own) {
        return Some("this request comes from a web page of another site");
    }
    let host = headers.get(header::HOST).map(|host| host.to_str().unwrap_or_default());
    let named = target.authority().map(uri::Authority::as_str).into_iter().chain(host);
    let is_address = named.into_iter().all(|authority| is_tls || is_address(authority));
    (!is_address).then_some("the Host of a request must be an address or localhost")
}

/// Whether an authority is an address or `localhost`, with or without a port.
fn is_address(authority: &str) -> bool {
    let Ok(authority) = authority.parse::<uri::Authority>() else { return false };
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok()
}

fn ready(answer: PageReply) -> PageFuture {
    Box::pin(std::future::ready(answer))
}

fn json_reply(body: &Value) -> PageReply {
    reply(StatusCode::OK, "application/json", format!("{body}\n"))
}

/// APISIX's form of an error.
fn error(status: StatusCode, message: &str) -> PageReply {
    reply(status, "application/json", format!("{}\n", json!({"error_msg": message})))
}

fn not_found() -> PageReply {
    let paths = "there is no such path: see /v1/schema, /v1/routes, /v1/services, /v1/upstreams, /v1/stream_routes, \
                 /v1/healthcheck, /v1/plugin_metadatas, /v1/certificates, /v1/connections, /v1/pools, /v1/tickets";
    error(StatusCode::NOT_FOUND, paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rejected(host: &str, more: &[(&'static str, &str)], is_tls: bool) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, host.parse().unwrap());
        for (name, value) in more {
            headers.insert(*name, value.parse().unwrap());
        }
        cross_site(&headers, &Uri::from_static("/v1/routes"), is_tls).is_some()
    }

    #[test]
    fn requests_of_web_pages_are_rejected() {
        for host in ["127.0.0.1:9090", "localhost", "LOCALHOST:1", "[::1]:9090", "10.0.0.1"] {
            assert!(!rejected(host, &[], false), "{host}");
        }
        for host in ["evil.example:9090", "127.0.0.1.evil.example", "", "localhost.evil", "a b"] {
            assert!(rejected(host, &[], false), "{host}");
        }
        assert!(!rejected("node-1.example:9090", &[], true), "its certificate has that name");
        for (name, value) in
            [("origin", "null"), ("sec-fetch-site", "cross-site"), ("sec-fetch-site", "same-site")]
        {
            assert!(rejected("127.0.0.1", &[(name, value)], false), "{name}: {value}");
            assert!(rejected("127.0.0.1", &[(name, value)], true), "{name}: {value}");
        }
        // Typed into the address bar.
        assert!(!rejected("127.0.0.1", &[("sec-fetch-site", "none")], false));
        let absolute = Uri::from_static("http://evil.example/v1/routes");
        assert!(cross_site(&HeaderMap::new(), &absolute, false).is_some());
        // HTTP/1.0
        assert!(cross_site(&HeaderMap::new(), &Uri::from_static("/"), false).is_none());
    }
}
