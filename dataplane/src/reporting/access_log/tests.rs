use std::net::SocketAddr;
use std::time::Instant;

use conf::{LogEscape, LogSubsystem};
use http::{HeaderValue, Request, StatusCode};
use model::PathOptions;
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::io::connection_info::ListenerProtocol;
use crate::reason::Reason;

const APISIX: &str = "$remote_addr - $remote_user [$time_local] $http_host \"$request\" $status $body_bytes_sent \
                      $request_time \"$http_referer\" \"$http_user_agent\" $upstream_addr $upstream_status \
                      $upstream_response_time \"$upstream_scheme://$upstream_host$upstream_uri\"";

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn connection(protocol: ListenerProtocol) -> ConnectionFacts {
    let info = ConnectionInfo::new(addr("192.0.2.7:1234"), addr("10.0.0.1:9080"), protocol);
    ConnectionFacts::new(info, Instant::now(), 7)
}

fn format(text: Option<(&str, LogEscape)>) -> Rc<LineFormat> {
    let parse = |(text, escape)| LogFormat::parse(text, escape, LogSubsystem::Http).unwrap();
    Rc::new(LineFormat::new(text.map(parse).as_ref()))
}

/// Keeps what a format needs of a request's head.
fn begin(format: &Rc<LineFormat>, facts: &ConnectionFacts, request: &Request<()>) -> RequestRecord {
    let mut record = RequestRecord::new(facts, request);
    let (parts, ()) = request.clone().into_parts();
    let target =
        crate::http::request::parse_target(parts.version, &parts.uri, &parts.headers, PathOptions::default());
    let logs = AccessLogs::new(&AccessLogConfigs::default());
    *logs.http.format.borrow_mut() = Some(Rc::clone(format));
    logs.request_begun(&mut record, facts, &parts, target.as_ref().ok());
    record
}

/// The line of what has ended.
fn line(
    format: &LineFormat,
    facts: &ConnectionFacts,
    captured: Option<&CapturedHead>,
    ended: Ended<'_>,
) -> String {
    let (clock, process) = (Clock::default(), ProcessFacts { pid: 4711, hostname: "gate".to_owned() });
    let facts = LineFacts { ended, connection: facts, time: clock.now(), process: &process };
    let mut line = Vec::new();
    match format {
        LineFormat::Json => json::write_line(&mut line, captured, &facts),
        LineFormat::Template(template) => template.write_line(&mut line, captured, &facts),
    }
    String::from_utf8(line).unwrap()
}

/// The line of a request of a plain connection that got this status.
fn request_line(text: Option<(&str, LogEscape)>, request: &Request<()>, status: Option<u16>) -> String {
    let (format, facts) = (format(text), connection(ListenerProtocol::Http));
    let mut record = begin(&format, &facts, request);
    record.status = status.and_then(|status| StatusCode::from_u16(status).ok());
    let head = std::mem::take(&mut record.head);
    line(&format, &facts, Some(&head), Ended::Request(&record, 0xab))
}

fn get(uri: &str) -> Request<()> {
    Request::builder().uri(uri).header("host", "App.test:80").header("user-agent", "curl/8").body(()).unwrap()
}

#[test]
fn the_format_of_apisix_gives_the_line_of_nginx() {
    let mut request = get("/a%20b?x=1");
    let basic = HeaderValue::from_static("Basic YWxpY2U6c2VjcmV0");
    request.headers_mut().insert("authorization", basic);
    let line = request_line(Some((APISIX, LogEscape::Default)), &request, Some(404));
    let (before, after) = line.split_once('[').unwrap();
    assert_eq!(before, "192.0.2.7 - alice ");
    let after = after.split_once(']').unwrap().1;
    assert_eq!(
        after,
        " App.test:80 \"GET /a%20b?x=1 HTTP/1.1\" 404 0 0.000 \"-\" \"curl/8\" - - - \"-://--\""
    );
}

#[test]
fn each_variable_has_its_value() {
    let request = get("/a/%2e/b?x=1&y=%41");
    for (name, expected) in [
        ("remote_addr", "192.0.2.7"),
        ("remote_port", "1234"),
        ("server_port", "9080"),
        ("uri", "/a/b"),
        ("request_uri", "/a/%2e/b?x=1&y=%41"),
        ("args", "x=1&y=%41"),
        ("arg_y", "A"),
        ("is_args", "?"),
        ("host", "app.test"),
        ("http_host", "App.test:80"),
        ("scheme", "http"),
        ("https", ""),
        ("request_method", "GET"),
        ("server_protocol", "HTTP/1.1"),
        ("status", "200"),
        ("pid", "4711"),
        ("hostname", "gate"),
        ("connection", "7"),
        ("connection_requests", "1"),
        ("pipe", "."),
        ("request_id", "000000000000000000000000000000ab"),
        ("body_bytes_sent", "0"),
        ("request_time", "0.000"),
        ("request_completion", ""),
        ("countersign_tries", "0"),
        ("countersign_version", env!("CARGO_PKG_VERSION")),
        ("ssl_protocol", "-"),
        ("ssl_client_s_dn", "-"),
        ("upstream_addr", "-"),
        ("upstream_cache_status", "-"),
        ("consumer_name", "-"),
        ("route_id", "-"),
        ("trace_id", "-"),
        ("http_x_none", "-"),
        ("sent_http_x_none", "-"),
        ("cookie_none", "-"),
    ] {
        let text = format!("${{{name}}}");
        assert_eq!(request_line(Some((&text, LogEscape::Default)), &request, Some(200)), expected, "{name}");
    }
    let gone = request_line(Some(("$status", LogEscape::Default)), &request, None);
    assert_eq!(gone, "499");
    assert_eq!(request_line(Some(("<$http_x_none>", LogEscape::Json)), &request, None), "<>");
}

#[test]
fn attempts_are_a_list() {
    let text = "$upstream_addr|$upstream_status|$upstream_connect_time|$upstream_header_time|\
                $upstream_response_length|$balancer_ip|$balancer_port|$countersign_tries";
    let (format, facts) = (format(Some((text, LogEscape::Default))), connection(ListenerProtocol::Http));
    let mut record = begin(&format, &facts, &get("/"));
    record.attempts.begin();
    record.attempts.set_addr(addr("10.0.0.2:80"));
    record.attempts.failed(Some(StatusCode::BAD_GATEWAY));
    record.attempts.begin();
    record.attempts.set_addr(addr("10.0.0.3:81"));
    record.attempts.connected(true);
    record.attempts.responded(StatusCode::OK);
    record.response_body_bytes = 5;
    let head = std::mem::take(&mut record.head);
    let written = line(&format, &facts, Some(&head), Ended::Request(&record, 0));
    assert_eq!(written, "10.0.0.2:80, 10.0.0.3:81|502, 200|-, 0.000|-, 0.000|0, 5|10.0.0.3|81|2");
    let json: Value =
        serde_json::from_str(&line(&LineFormat::Json, &facts, None, Ended::Request(&record, 0))).unwrap();
    assert_eq!(json["upstream"]["node"], "10.0.0.3:81");
    assert_eq!(json["upstream"]["failed"][0]["status"], 502);
}

#[test]
fn a_head_that_is_no_request_has_its_connection() {
    let facts = connection(ListenerProtocol::Http);
    let mut record = RequestRecord::malformed(&facts);
    (record.reason, record.status) = (Some(Reason::BadRequest), Reason::BadRequest.status());
    let text = Some(("$remote_addr \"$request\" $status $countersign_reason", LogEscape::Default));
    let written = line(&format(text), &facts, None, Ended::Request(&record, 0));
    assert_eq!(written, "192.0.2.7 \"-\" 400 bad_request");
    let json: Value =
        serde_json::from_str(&line(&LineFormat::Json, &facts, None, Ended::Request(&record, 0))).unwrap();
    assert_eq!((&json["kind"], &json["status"]), (&"rejected_request".into(), &400.into()));
}

#[test]
fn a_refused_handshake_has_no_request() {
    let facts = connection(ListenerProtocol::Https);
    let record = HandshakeRecord {
        reason: Reason::NoCertificate,
        sni: None,
        site: None,
        verify_reason: None,
        leaf: None,
        detail: "a \"quoted\"\nline",
    };
    let text = Some(("$remote_addr \"$request\" $status $countersign_detail", LogEscape::Default));
    let written = line(&format(text), &facts, None, Ended::Handshake(&record));
    assert_eq!(written, r#"192.0.2.7 "-" 000 a \x22quoted\x22\x0Aline"#);
    let json: Value =
        serde_json::from_str(&line(&LineFormat::Json, &facts, None, Ended::Handshake(&record))).unwrap();
    assert_eq!((&json["kind"], &json["detail"]), (&"handshake".into(), &"a \"quoted\"\nline".into()));
}

#[test]
fn lines_are_bounded() {
    let text = "$http_user_agent".repeat(250);
    let mut request = get("/");
    request.headers_mut().insert("user-agent", HeaderValue::from_bytes(&[b'\xff'; 9000]).unwrap());
    let written = request_line(Some((&text, LogEscape::Default)), &request, Some(200));
    assert!(written.len() < 48 << 10 && written.ends_with("---"), "{}", written.len());
    let written = request_line(None, &request, Some(200));
    let json: Value = serde_json::from_str(&written).unwrap();
    assert!(json["request"]["user_agent"].as_str().unwrap().ends_with("..."));
}

proptest! {
    /// Whatever bytes are in a request, its line is one line, and JSON that has them.
    #[test]
    fn any_request_is_one_line(
        bytes in vec(any::<u8>().prop_filter("a header's", |byte| *byte == 9 || *byte > 31 && *byte != 127), 0..40),
        path in "[!-~&&[^#?\"<>\\\\^`{|}]]{0,20}",
    ) {
        let Ok(mut request) = Request::builder().uri(format!("/{path}?{path}")).body(()) else { return Ok(()) };
        let value = HeaderValue::from_bytes(&bytes).unwrap();
        request.headers_mut().insert("user-agent", value.clone());
        request.headers_mut().insert("host", value.clone());
        request.headers_mut().insert("cookie", value);
        let json: Value = serde_json::from_str(&request_line(None, &request, Some(200))).unwrap();
        prop_assert_eq!(json["request"]["user_agent"].as_str(), Some(&*String::from_utf8_lossy(&bytes)));
        let text = "$http_user_agent|$http_host|$cookie_a|$request|$uri|$arg_a";
        for escape in [LogEscape::Default, LogEscape::Json, LogEscape::None] {
            let line = request_line(Some((text, escape)), &request, Some(200));
            prop_assert!(!line.chars().any(|c| c.is_control() || c == '\u{2028}' || c == '\u{2029}'), "{}", line);
        }
        let object = request_line(Some(("{\"a\": \"$http_user_agent\", \"s\": $status}", LogEscape::Json)), &request, Some(200));
        prop_assert!(serde_json::from_str::<Value>(&object).is_ok(), "{}", object);
    }
}
