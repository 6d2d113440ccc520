//! The span of a request, of kind SERVER.

use http::Version;
use model::{Route, UriPattern};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::{Span, SpanFlags};
use pki::{Certificate, UnixTime};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Attributes, add_method, base, failed_status, redacted, unix_nanos};
use crate::reporting::trace::finished::FinishedRequest;

pub(super) fn span(request: &FinishedRequest) -> Span {
    let mut span = base(request, request.span_id, request.parent);
    if request.parent.is_some() {
        span.flags |= SpanFlags::ContextIsRemoteMask as u32;
    }
    span.kind = SpanKind::Server as i32;
    span.start_time_unix_nano = unix_nanos(request, request.started);
    span.end_time_unix_nano = unix_nanos(request, request.started + request.total);
    let mut attributes = Attributes::default();
    let method = add_method(&mut attributes, request.method.as_ref());
    span.name = method.to_owned();
    add_url(&mut attributes, request);
    add_network(&mut attributes, request);
    if let Some(route) = request.route.as_deref() {
        attributes.text("countersign.route.id", route.id.to_string());
        if let Some(pattern) = matched(route, &request.head.path) {
            let pattern = pattern.to_string();
            span.name = format!("{method} {pattern}");
            attributes.text("http.route", pattern);
        }
    }
    add_tls(&mut attributes, request);
    let status = request.status;
    if let Some(status) = status {
        attributes.number("http.response.status_code", status.as_u16());
    }
    attributes.number("http.request.body.size", request.request_body_bytes);
    attributes.number("http.response.body.size", request.response_body_bytes);
    let is_failed = !request.is_complete || status.is_none_or(|status| status.is_server_error());
    let error = match (request.reason, status) {
        (Some(reason), _) => Some(reason.label().to_owned()),
        (None, Some(status)) if status.is_server_error() => Some(status.as_str().to_owned()),
        (None, _) if is_failed => Some("client_disconnected".to_owned()),
        (None, _) => None,
    };
    attributes.optional_text("error.type", error);
    if is_failed {
        span.status = failed_status();
    }
    span.attributes = attributes.0;
    span
}

/// The longest pattern of the route that matches the path. Routes match the normalized path, which
/// may be another one.
fn matched<'a>(route: &'a Route, path: &str) -> Option<&'a UriPattern> {
    let matching = route.uris.iter().filter(|pattern| pattern.matches(path));
    matching.max_by_key(|pattern| pattern.to_string().len()).or(match route.uris.as_slice() {
        [one] => Some(one),
        _ => None,
    })
}

fn add_url(attributes: &mut Attributes, request: &FinishedRequest) {
    let head = &request.head;
    attributes.text("url.scheme", if request.tls.is_some() { "https" } else { "http" });
    attributes.text("url.path", head.path.as_str());
    attributes.optional_text("url.query", head.query.as_deref().map(redacted));
    let default_port = if request.tls.is_some() { 443 } else { 80 };
    let authority = head.authority.as_deref().map(|authority| host_and_port(authority, default_port));
    let (host, port) = authority.unwrap_or_else(|| (request.local.ip().to_string(), request.local.port()));
    attributes.text("server.address", host);
    attributes.number("server.port", port);
    attributes.optional_text("user_agent.original", head.user_agent.as_deref());
}

/// The host of an authority, without brackets, and its port.
fn host_and_port(authority: &str, default_port: u16) -> (String, u16) {
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port.parse().unwrap_or(default_port)),
        _ => (authority, default_port),
    };
    (host.trim_start_matches('[').trim_end_matches(']').to_owned(), port)
}

fn add_network(attributes: &mut Attributes, request: &FinishedRequest) {
    attributes.text("client.address", request.client_addr.ip().to_canonical().to_string());
    attributes.text("network.peer.address", request.peer.ip().to_canonical().to_string());
    attributes.number("network.peer.port", request.peer.port());
    attributes.text("network.protocol.name", "http");
    let version = match request.version {
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        _ => "1.1",
    };
    attributes.text("network.protocol.version", version);
}

fn add_tls(attributes: &mut Attributes, request: &FinishedRequest) {
    let Some((_, params)) = &request.tls else { return };
    attributes.text("tls.protocol.name", "tls");
    attributes.text("tls.protocol.version", params.protocol.trim_start_matches("TLSv"));
    attributes.text("tls.cipher", params.iana_cipher());
    attributes.optional_text("tls.curve", params.iana_curve());
    attributes.optional_text("tls.next_protocol", params.alpn);
    attributes.flag("tls.established", true);
    attributes.flag("tls.resumed", params.resumed);
    if let Some(identity) = request.client.identity() {
        add_certificate(attributes, identity.certificate());
    }
}

fn add_certificate(attributes: &mut Attributes, certificate: &Certificate) {
    attributes.text("tls.client.subject", certificate.subject());
    attributes.text("tls.client.issuer", certificate.issuer());
    attributes.optional_text("tls.client.not_before", rfc_3339(certificate.not_before()));
    attributes.optional_text("tls.client.not_after", rfc_3339(certificate.not_after()));
    let fingerprint = data_encoding::HEXUPPER.encode(certificate.fingerprint_sha256());
    attributes.text("tls.client.hash.sha256", fingerprint);
}

/// `None`: beyond the calendar.
fn rfc_3339(time: UnixTime) -> Option<String> {
    let seconds = i64::try_from(time.as_secs()).ok()?;
    OffsetDateTime::from_unix_timestamp(seconds).ok()?.format(&Rfc3339).ok()
}
