//! The span of an attempt at the upstream, of kind CLIENT.

use http::StatusCode;
use model::Scheme;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;

use super::{Attributes, add_method, base, failed_status, redacted, unix_nanos};
use crate::reporting::trace::finished::FinishedRequest;

/// The span of the attempt with this number, counted from 0.
pub(super) fn span(request: &FinishedRequest, nth: usize) -> Option<Span> {
    let attempt = request.attempts.get(nth)?;
    let mut span = base(request, request.attempt.nth(nth), Some(request.span_id));
    span.kind = SpanKind::Client as i32;
    span.start_time_unix_nano = unix_nanos(request, attempt.started);
    let end = attempt.failed.map_or(request.started + request.total, |after| attempt.started + after);
    span.end_time_unix_nano = unix_nanos(request, end);
    let mut attributes = Attributes::default();
    span.name = add_method(&mut attributes, request.method.as_ref()).to_owned();
    if let Some(addr) = attempt.addr {
        let ip = addr.ip().to_canonical();
        attributes.text("server.address", ip.to_string());
        attributes.number("server.port", addr.port());
        attributes.text("network.peer.address", ip.to_string());
        attributes.number("network.peer.port", addr.port());
        if let Some((scheme, uri)) = &request.upstream {
            let (path, query) = uri.split_once('?').map_or((uri.as_str(), None), |(p, q)| (p, Some(q)));
            let query = query.map(|query| format!("?{}", redacted(query))).unwrap_or_default();
            attributes.text("url.full", format!("{}://{addr}{path}{query}", url_scheme(*scheme)));
        }
    }
    if nth > 0 {
        attributes.number("http.request.resend_count", nth as u64);
    }
    if let Some(connect) = attempt.connect {
        attributes.flag("countersign.upstream.connection_reused", connect.is_zero());
        attributes.seconds("countersign.upstream.connect_duration", connect);
    }
    if let Some(header) = attempt.header {
        attributes.seconds("countersign.upstream.first_byte_duration", header);
    }
    let is_last = nth + 1 == request.attempts.len();
    // The status of a failed attempt is the gateway's.
    let status = attempt.status.filter(|_| attempt.header.is_some());
    if let Some(status) = status {
        attributes.number("http.response.status_code", status.as_u16());
    }
    let error = match (request.reason.filter(|_| is_last), &status) {
        (_, Some(status)) if status.as_u16() >= 400 => Some(status.as_str()),
        (Some(reason), _) => Some(reason.label()),
        (None, None) if attempt.status == Some(StatusCode::GATEWAY_TIMEOUT) => Some("timeout"),
        (None, None) => Some("_OTHER"),
        (None, Some(_)) => None,
    };
    if error.is_some() {
        span.status = failed_status();
    }
    attributes.optional_text("error.type", error);
    span.attributes = attributes.0;
    Some(span)
}

fn url_scheme(scheme: Scheme) -> &'static str {
    match scheme {
        Scheme::Https | Scheme::Grpcs | Scheme::Tls => "https",
        Scheme::Http | Scheme::Grpc | Scheme::Tcp => "http",
    }
}
