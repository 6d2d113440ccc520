use std::net::SocketAddr;
use std::num::{NonZeroU64, NonZeroU128};

use http::{Method, StatusCode, Version};
use model::Scheme;
use model::admission::ClientVerification;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;

use super::*;
use crate::http::trace_context::TraceId;
use crate::reason::Reason;
use crate::reporting::request_trace::HeadTexts;
use crate::tls::params::NegotiatedParams;
use crate::upstream::attempts::Attempts;

const ADDR: &str = "192.0.2.7:8443";

/// A request that began a second ago and took 300 ms.
fn request(attempts: Attempts) -> FinishedRequest {
    let now = (Instant::now(), UNIX_EPOCH + Duration::from_secs(1_000));
    let addr: SocketAddr = ADDR.parse().unwrap();
    FinishedRequest {
        trace_id: TraceId(NonZeroU128::new(0xabc).unwrap()),
        span_id: SpanId(NonZeroU64::new(0x5e).unwrap()),
        parent: None,
        attempt: SpanId(NonZeroU64::new(0xa0).unwrap()),
        head: Box::new(HeadTexts {
            path: "/orders/7".to_owned(),
            query: Some("a=1&sig=secret".to_owned()),
            authority: Some("shop.test:9443".to_owned()),
            user_agent: Some("curl/8".to_owned()),
            trace_state: None,
        }),
        now,
        started: now.0 - Duration::from_secs(1),
        total: Duration::from_millis(300),
        method: Some(Method::GET),
        version: Version::HTTP_2,
        client_addr: addr,
        peer: addr,
        local: "127.0.0.1:9443".parse().unwrap(),
        tls: None,
        client: ClientVerification::NotRequested,
        route: None,
        reason: None,
        status: Some(StatusCode::OK),
        is_complete: true,
        request_body_bytes: 0,
        response_body_bytes: 5,
        upstream: Some((Scheme::Grpcs, "/v2/orders/7?sig=secret".to_owned())),
        attempts: attempts.all().to_vec(),
    }
}

fn spans(request: &FinishedRequest) -> Vec<Span> {
    let mut spans = Vec::new();
    add_spans(request, &mut spans);
    spans
}

/// An attribute in Rust's words; `None`: it is missing.
fn attribute(span: &Span, key: &str) -> Option<String> {
    let found: Vec<_> = span.attributes.iter().filter(|attribute| attribute.key == key).collect();
    assert!(found.len() < 2, "{key} is there {} times", found.len());
    let value = found.first()?.value.clone()?.value?;
    Some(match value {
        Value::StringValue(text) => text,
        Value::IntValue(number) => number.to_string(),
        Value::BoolValue(flag) => flag.to_string(),
        other => format!("{other:?}"),
    })
}

fn assert_attributes(span: &Span, expected: &[(&str, Option<&str>)]) {
    for (key, value) in expected {
        assert_eq!(attribute(span, key).as_deref(), *value, "{key}");
    }
}

#[test]
fn a_request_is_a_span_of_kind_server() {
    let spans = spans(&request(Attempts::default()));
    let [span] = &spans[..] else { panic!("{spans:?}") };
    assert_eq!((span.kind, span.name.as_str()), (SpanKind::Server as i32, "GET"));
    assert_eq!(span.trace_id, 0xabc_u128.to_be_bytes());
    assert_eq!(span.span_id, 0x5e_u64.to_be_bytes());
    assert!(span.parent_span_id.is_empty() && span.status.is_none());
    assert_eq!(span.start_time_unix_nano, 999_000_000_000);
    assert_eq!(span.end_time_unix_nano, 999_300_000_000);
    assert_eq!(span.flags, 0x101, "sampled, and the parent is not remote: there is none");
    assert_attributes(
        span,
        &[
            ("http.request.method", Some("GET")),
            ("http.request.method_original", None),
            ("http.response.status_code", Some("200")),
            ("url.scheme", Some("http")),
            ("url.path", Some("/orders/7")),
            ("url.query", Some("a=1&sig=REDACTED")),
            ("server.address", Some("shop.test")),
            ("server.port", Some("9443")),
            ("client.address", Some("192.0.2.7")),
            ("network.peer.port", Some("8443")),
            ("network.protocol.version", Some("2")),
            ("user_agent.original", Some("curl/8")),
            ("error.type", None),
            ("tls.protocol.version", None),
        ],
    );
}

#[test]
fn the_parent_of_a_continued_trace_is_remote() {
    let mut request = request(Attempts::default());
    request.parent = Some(SpanId(NonZeroU64::new(0xdad).unwrap()));
    request.head.trace_state = Some("a=1".to_owned());
    let spans = spans(&request);
    assert_eq!(spans[0].parent_span_id, 0xdad_u64.to_be_bytes());
    assert_eq!(spans[0].flags, 0x301);
    assert_eq!(spans[0].trace_state, "a=1");
}

#[test]
fn tls_has_the_names_of_iana() {
    let params = NegotiatedParams {
        protocol: "TLSv1.2",
        cipher: "ECDHE-RSA-AES128-GCM-SHA256",
        curve: Some("prime256v1"),
        alpn: Some("h2"),
        resumed: true,
    };
    let mut request = request(Attempts::default());
    request.tls = Some((model::HostName::from_sni("shop.test").unwrap(), params));
    assert_attributes(
        &spans(&request)[0],
        &[
            ("url.scheme", Some("https")),
            ("tls.protocol.name", Some("tls")),
            ("tls.protocol.version", Some("1.2")),
            ("tls.cipher", Some("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256")),
            ("tls.curve", Some("secp256r1")),
            ("tls.next_protocol", Some("h2")),
            ("tls.resumed", Some("true")),
            ("tls.client.subject", None),
        ],
    );
}

#[test]
fn each_attempt_is_a_span_of_kind_client() {
    let mut attempts = Attempts::default();
    attempts.begin();
    attempts.set_addr(ADDR.parse().unwrap());
    attempts.failed(Some(StatusCode::GATEWAY_TIMEOUT));
    attempts.begin();
    attempts.set_addr("[2001:db8::1]:80".parse().unwrap());
    attempts.connected(true);
    attempts.responded(StatusCode::NOT_FOUND);
    let request = FinishedRequest { status: Some(StatusCode::NOT_FOUND), ..request(attempts) };
    let spans = spans(&request);
    let [server, failed, answered] = &spans[..] else { panic!("{spans:?}") };
    assert!(server.status.is_none(), "4xx is no error of the server");
    for (span, id) in [(failed, 0xa0_u64), (answered, 0xa1)] {
        assert_eq!(span.kind, SpanKind::Client as i32);
        assert_eq!(span.span_id, id.to_be_bytes());
        assert_eq!(span.parent_span_id, server.span_id);
        assert_eq!(span.status.as_ref().map(|status| status.code), Some(SpanStatus::Error as i32));
    }
    assert_eq!(answered.end_time_unix_nano, server.end_time_unix_nano);
    assert_attributes(
        failed,
        &[
            ("url.full", Some("https://192.0.2.7:8443/v2/orders/7?sig=REDACTED")),
            ("server.address", Some("192.0.2.7")),
            ("http.request.resend_count", None),
            ("http.response.status_code", None),
            ("error.type", Some("timeout")),
            ("countersign.upstream.connection_reused", None),
        ],
    );
    assert_attributes(
        answered,
        &[
            ("url.full", Some("https://[2001:db8::1]:80/v2/orders/7?sig=REDACTED")),
            ("server.address", Some("2001:db8::1")),
            ("server.port", Some("80")),
            ("http.request.resend_count", Some("1")),
            ("http.response.status_code", Some("404")),
            ("error.type", Some("404")),
            ("countersign.upstream.connection_reused", Some("true")),
        ],
    );
}

#[test]
fn errors_are_those_of_the_server() {
    let outcome = |status: Option<u16>, reason, is_complete| {
        let mut request = request(Attempts::default());
        request.status = status.map(|status| StatusCode::from_u16(status).unwrap());
        (request.reason, request.is_complete) = (reason, is_complete);
        let span = spans(&request).remove(0);
        (span.status.is_some(), attribute(&span, "error.type"))
    };
    let text = |text: &str| Some(text.to_owned());
    assert_eq!(outcome(Some(404), None, true), (false, None));
    assert_eq!(outcome(Some(403), Some(Reason::NotAllowed), true), (false, text("not_allowed")));
    assert_eq!(outcome(Some(502), Some(Reason::UpstreamConnect), true), (true, text("upstream_connect")));
    assert_eq!(outcome(Some(503), None, true), (true, text("503")));
    assert_eq!(outcome(Some(200), None, false), (true, text("client_disconnected")));
    assert_eq!(outcome(None, None, false), (true, text("client_disconnected")));
}

#[test]
fn unknown_methods_are_named_other() {
    let mut request = request(Attempts::default());
    request.method = Some(Method::from_bytes(b"BREW").unwrap());
    let span = spans(&request).remove(0);
    assert_eq!(span.name, "HTTP");
    let expected = [("http.request.method", Some("_OTHER")), ("http.request.method_original", Some("BREW"))];
    assert_attributes(&span, &expected);
}

#[test]
fn an_operators_attributes_replace_our_own() {
    let settings = TracingSettings {
        service_name: "gate".to_owned(),
        resource: vec![("service.version".to_owned(), "mine".to_owned()), ("a.b".to_owned(), "c".to_owned())],
        ..TracingSettings::default()
    };
    let span = Span { attributes: resource(&settings, "n1").attributes, ..Span::default() };
    let expected = [
        ("service.name", Some("gate")),
        ("service.version", Some("mine")),
        ("service.instance.id", Some("n1")),
        ("a.b", Some("c")),
    ];
    assert_attributes(&span, &expected);
}
