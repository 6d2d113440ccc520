//! Spans of a finished request, as OpenTelemetry's semantic conventions have them: one of kind
//! SERVER for the request, and one of kind CLIENT for each attempt at the upstream.
//!
//! Attributes: HTTP spans (stable), TLS, network and URL of the registry; what it has no name for
//! begins with `countersign.`.

mod server;
mod upstream;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use conf::TracingSettings;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode as SpanStatus;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, SpanFlags, Status};

use crate::http::trace_context::SpanId;
use crate::reporting::trace::finished::FinishedRequest;

/// Of the semantic conventions that the attributes follow.
const SCHEMA_URL: &str = "https://opentelemetry.io/schemas/1.37.0";
/// The flag `sampled` of `traceparent`.
const SAMPLED: u32 = 1;
/// Methods that the conventions know; another one is `_OTHER`.
const KNOWN_METHODS: &[&str] =
    &["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY"];
/// Parameters of a query whose values are secrets by the conventions, and those of AWS.
const SECRET_PARAMETERS: &[&str] = &[
    "AWSAccessKeyId",
    "Signature",
    "sig",
    "X-Goog-Signature",
    "X-Amz-Signature",
    "X-Amz-Credential",
    "X-Amz-Security-Token",
];
const REDACTED: &str = "REDACTED";

/// Adds the spans of a request.
pub(super) fn add_spans(request: &FinishedRequest, spans: &mut Vec<Span>) {
    spans.push(server::span(request));
    spans.extend((0..request.attempts.len()).filter_map(|nth| upstream::span(request, nth)));
}

/// What the spans of this process have in common.
pub(super) fn resource(settings: &TracingSettings, node: &str) -> Resource {
    let mut attributes = Attributes::default();
    attributes.text("service.name", &settings.service_name);
    let own = [
        ("service.version", env!("CARGO_PKG_VERSION")),
        ("service.instance.id", node),
        ("telemetry.sdk.name", "countersign"),
        ("telemetry.sdk.language", "rust"),
        ("telemetry.sdk.version", env!("CARGO_PKG_VERSION")),
    ];
    for (name, value) in own {
        if !settings.resource.iter().any(|(given, _)| given == name) {
            attributes.text(name, value);
        }
    }
    for (name, value) in &settings.resource {
        attributes.text(name, value);
    }
    Resource { attributes: attributes.0, ..Resource::default() }
}

pub(super) fn resource_spans(resource: &Resource, spans: Vec<Span>) -> ResourceSpans {
    let scope = InstrumentationScope {
        name: "countersign".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..InstrumentationScope::default()
    };
    let scope_spans = vec![ScopeSpans { scope: Some(scope), spans, schema_url: SCHEMA_URL.to_owned() }];
    ResourceSpans { resource: Some(resource.clone()), scope_spans, schema_url: SCHEMA_URL.to_owned() }
}

/// A list of attributes.
#[derive(Default)]
struct Attributes(Vec<KeyValue>);

impl Attributes {
    fn add(&mut self, key: &str, value: Value) {
        let value = Some(AnyValue { value: Some(value) });
        self.0.push(KeyValue { key: key.to_owned(), value, ..KeyValue::default() });
    }

    fn text(&mut self, key: &str, value: impl Into<String>) {
        self.add(key, Value::StringValue(value.into()));
    }

    fn optional_text(&mut self, key: &str, value: Option<impl Into<String>>) {
        if let Some(value) = value {
            self.text(key, value);
        }
    }

    fn number(&mut self, key: &str, value: impl TryInto<i64>) {
        self.add(key, Value::IntValue(value.try_into().unwrap_or(i64::MAX)));
    }

    fn flag(&mut self, key: &str, value: bool) {
        self.add(key, Value::BoolValue(value));
    }

    fn seconds(&mut self, key: &str, value: Duration) {
        self.add(key, Value::DoubleValue(value.as_secs_f64()));
    }
}

/// A span of the request's trace, without what its kind adds.
fn base(request: &FinishedRequest, id: SpanId, parent: Option<SpanId>) -> Span {
    let bytes = |id: SpanId| id.0.get().to_be_bytes().to_vec();
    Span {
        trace_id: request.trace_id.0.get().to_be_bytes().to_vec(),
        span_id: bytes(id),
        parent_span_id: parent.map(bytes).unwrap_or_default(),
        trace_state: request.head.trace_state.clone().unwrap_or_default(),
        flags: SAMPLED | SpanFlags::ContextHasIsRemoteMask as u32,
        ..Span::default()
    }
}

fn failed_status() -> Option<Status> {
    // The type of the error says what there is to say.
    Some(Status { code: SpanStatus::Error as i32, message: String::new() })
}

/// A time of the monotonic clock in nanoseconds of the system's.
fn unix_nanos(request: &FinishedRequest, at: Instant) -> u64 {
    let (instant, system) = request.now;
    let system = system.checked_sub(instant.saturating_duration_since(at)).unwrap_or(SystemTime::UNIX_EPOCH);
    let since = system.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// `http.request.method`, and the name that a span has of it.
fn add_method(attributes: &mut Attributes, method: Option<&http::Method>) -> &'static str {
    let known = method.and_then(|method| KNOWN_METHODS.iter().find(|known| **known == method.as_str()));
    if known.is_none() {
        attributes.optional_text("http.request.method_original", method.map(http::Method::as_str));
    }
    attributes.text("http.request.method", *known.unwrap_or(&"_OTHER"));
    known.copied().unwrap_or("HTTP")
}

/// A query without the values of parameters that are secrets.
fn redacted(query: &str) -> String {
    let parts = query.split('&').map(|part| match part.split_once('=') {
        Some((name, _)) if SECRET_PARAMETERS.contains(&name) => format!("{name}={REDACTED}"),
        _ => part.to_owned(),
    });
    parts.collect::<Vec<_>>().join("&")
}

#[cfg(test)]
mod tests;
