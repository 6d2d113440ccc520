//! Traces: W3C Trace Context in and out, and spans at a collector of OTLP over gRPC.

mod collectors;
mod parents;

use e2e::client::{Http, Reply, bounded, full};
use e2e::collector::Collector;
use e2e::ports::Reservation;
use e2e::scripted::ScriptedGateway;
use e2e::upstream::Upstream;
use e2e::world::World;
use http::{Method, StatusCode};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

/// Settings that record every trace, with further ones.
fn tracing(collector: &Collector, more: Value) -> Value {
    let mut tracing = json!({"endpoint": collector.endpoint(), "sampling_ratio": 1});
    e2e::settings::merge(&mut tracing, more);
    json!({"countersign": {"tracing": tracing}})
}

/// What the upstream got as this header.
fn at_upstream(reply: &Reply, header: &str) -> String {
    reply.json()["headers"][header].as_str().unwrap_or_default().to_owned()
}

/// Waits until a metric has this value or more.
async fn until(world: &World, metric: &str, value: u64) {
    let reached = async { while world.metric(metric).await < value {} };
    bounded(&format!("{metric} at {value}"), reached).await;
}

#[tokio::test]
async fn a_request_has_a_span_and_its_attempt_another() {
    let collector = Collector::plain().await;
    let more = json!({"service_name": "edge", "resource": {"deployment.environment.name": "test"}});
    let (world, upstream) = World::protected(tracing(&collector, more)).await;
    let mut client = world.verified_client("app.test").http(Http::Two).connect().await.unwrap();
    let mut request = client.request(Method::GET, "/orders/7?a=1&sig=secret", full(""));
    request.headers_mut().insert("user-agent", "test/1".parse().unwrap());
    let reply = client.fetch(request).await.unwrap();
    assert_eq!(reply.status, StatusCode::OK);

    let (server, attempts) = collector.request("/orders/7", 1).await;
    let [attempt] = &attempts[..] else { panic!("{attempts:?}") };
    let header = at_upstream(&reply, "traceparent");
    assert_eq!(header, format!("00-{}-{}-01", server.trace_id(), attempt.id()));
    assert_eq!((server.span.kind, attempt.span.kind), (SpanKind::Server as i32, SpanKind::Client as i32));
    assert_eq!((server.parent(), attempt.parent()), (String::new(), server.id()));
    assert_eq!(attempt.trace_id(), server.trace_id());
    assert_eq!((server.span.name.as_str(), attempt.span.name.as_str()), ("GET /*", "GET"));
    assert!(!server.is_error() && !attempt.is_error());
    let of = |span: &opentelemetry_proto::tonic::trace::v1::Span| {
        (span.start_time_unix_nano, span.end_time_unix_nano)
    };
    let ((start, end), (attempt_start, attempt_end)) = (of(&server.span), of(&attempt.span));
    assert!(start <= attempt_start && attempt_start < attempt_end && attempt_end <= end);

    let address = upstream.address();
    for (key, value) in [
        ("http.request.method", "GET"),
        ("http.response.status_code", "200"),
        ("http.route", "/*"),
        ("countersign.route.id", "app"),
        ("url.scheme", "https"),
        ("url.query", "a=1&sig=REDACTED"),
        ("server.address", "app.test"),
        ("client.address", "127.0.0.1"),
        ("network.protocol.version", "2"),
        ("user_agent.original", "test/1"),
        ("tls.protocol.name", "tls"),
        ("tls.protocol.version", "1.3"),
        ("tls.next_protocol", "h2"),
        ("tls.established", "true"),
        ("tls.resumed", "false"),
        ("tls.client.subject", "CN=good-client"),
        ("tls.client.issuer", "CN=Test Client CA"),
        ("error.type", ""),
    ] {
        assert_eq!(server.attribute(key), value, "{key}");
    }
    assert!(server.attribute("tls.cipher").starts_with("TLS_"), "{:?}", server.attribute("tls.cipher"));
    assert_eq!(server.attribute("tls.client.hash.sha256").len(), 64);
    let not_after = server.attribute("tls.client.not_after");
    assert!(not_after.len() == 20 && not_after.contains('T') && not_after.ends_with('Z'), "{not_after}");
    assert_eq!(attempt.attribute("url.full"), format!("http://{address}/orders/7?a=1&sig=REDACTED"));
    assert_eq!(attempt.attribute("server.port"), address.port().to_string());
    assert_eq!(attempt.attribute("http.response.status_code"), "200");
    assert_eq!(attempt.attribute("http.request.resend_count"), "");
    assert_eq!(server.resource("service.name"), "edge");
    assert_eq!(server.resource("service.instance.id"), "node-1");
    assert_eq!(server.resource("deployment.environment.name"), "test");
    until(&world, "countersign_trace_spans_exported_total", 2).await;
}

#[tokio::test]
async fn a_denied_request_has_a_span_with_its_reason() {
    let collector = Collector::plain().await;
    let (world, _upstream) = World::protected(tracing(&collector, json!({}))).await;
    // No certificate: the handshake of this site fails, and its request never begins.
    world.client("app.test").expect_alert().await;
    let reply = world.verified_client("app.test").sni("app.test").get("/status?code=503").await.unwrap();
    assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE);
    let (server, attempts) = collector.request("/status", 1).await;
    assert!(server.is_error() && attempts[0].is_error());
    assert_eq!(
        (server.attribute("error.type"), attempts[0].attribute("error.type")),
        ("503".into(), "503".into())
    );
    let reply = world.plain("nowhere.test").await.get("/lost").await.unwrap();
    assert_eq!(reply.status, StatusCode::NOT_FOUND);
    let (server, attempts) = collector.request("/lost", 0).await;
    assert!(!server.is_error() && attempts.is_empty());
    assert_eq!(server.attribute("error.type"), "no_route");
    assert_eq!(server.attribute("http.route"), "");
    assert_eq!(server.span.name, "GET");
    assert_eq!(collector.received().len(), 3, "a handshake has no span");
}

#[tokio::test]
async fn each_attempt_has_a_span_that_its_node_gets() {
    let collector = Collector::plain().await;
    let (gone, good) = (Reservation::any(), Upstream::plain("good").await);
    let world = World::builder().settings(tracing(&collector, json!({}))).start().await;
    let node = |address: std::net::SocketAddr, priority: i32| json!({"host": "127.0.0.1", "port": address.port(), "weight": 1, "priority": priority});
    let nodes = json!([node(gone.address(), 1), node(good.address(), 0)]);
    let route = json!({"uri": "/*", "upstream": {"nodes": nodes, "type": "roundrobin"}});
    world.apply(&[("routes/all", route)]).await;
    let reply = world.plain("app.test").await.get("/retried").await.unwrap();
    let (server, attempts) = collector.request("/retried", 2).await;
    let [failed, answered] = &attempts[..] else { panic!("{attempts:?}") };
    assert!(!server.is_error() && failed.is_error() && !answered.is_error());
    assert_eq!(failed.attribute("server.port"), gone.address().port().to_string());
    assert_eq!(failed.attribute("http.response.status_code"), "");
    assert_eq!(answered.attribute("server.port"), good.address().port().to_string());
    assert_eq!(answered.attribute("http.request.resend_count"), "1");
    assert_ne!(failed.id(), answered.id());
    let header = at_upstream(&reply, "traceparent");
    assert_eq!(header, format!("00-{}-{}-01", server.trace_id(), answered.id()));
}

#[tokio::test]
async fn calls_of_grpc_are_traced() {
    let collector = Collector::plain().await;
    let (world, upstream) = World::open(tracing(&collector, json!({}))).await;
    let target = json!({"scheme": "grpc", "nodes": {upstream.address().to_string(): 1}});
    let route = json!({"uri": "/*", "host": "app.test", "upstream": target});
    world.apply(&[("routes/app", route)]).await;
    let mut client = world.client("app.test").http(Http::Two).connect().await.unwrap();
    let mut request = client.request(Method::POST, "/shop.Orders/Get", full("abc"));
    request.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    let reply = client.fetch(request).await.unwrap();
    let (server, attempts) = collector.request("/shop.Orders/Get", 1).await;
    let header = at_upstream(&reply, "traceparent");
    assert_eq!(header, format!("00-{}-{}-01", server.trace_id(), attempts[0].id()));
    assert_eq!(server.span.name, "POST /*");
    assert_eq!(server.attribute("http.request.body.size"), "3");
    let full_url = format!("http://{}/shop.Orders/Get", upstream.address());
    assert_eq!(attempts[0].attribute("url.full"), full_url);
}

/// The span of a WebSocket ends with it.
#[tokio::test]
async fn a_websocket_is_one_span_until_it_closes() {
    let collector = Collector::plain().await;
    let gateway = ScriptedGateway::with(tracing(&collector, json!({}))).await;
    gateway.world.apply(&[("ssls/app", gateway.world.open_site())]).await;
    gateway.route(json!({"enable_websocket": true})).await;
    let mut client = gateway.world.client("app.test").handshake().await.unwrap();
    let (mut upstream, head) = crate::websocket::open_with_head(&gateway, &mut client).await;
    client.write_all(b"to").await.unwrap();
    client.flush().await.unwrap();
    upstream.read_exact(&mut [0; 2]).await.unwrap();
    // Of another request, which comes after it and is recorded before.
    gateway.world.plain("nowhere.test").await.get("/other").await.unwrap();
    collector.request("/other", 0).await;
    assert_eq!(collector.received().len(), 1);
    drop(upstream);
    drop(client);
    let (server, attempts) = collector.request("/chat", 1).await;
    assert_eq!(server.attribute("http.response.status_code"), "101");
    let expected = format!("traceparent: 00-{}-{}-01\r\n", server.trace_id(), attempts[0].id());
    assert!(head.to_lowercase().contains(&expected), "{expected} is not in {head}");
}

#[tokio::test]
async fn a_client_that_goes_away_has_a_span() {
    let collector = Collector::plain().await;
    let (world, upstream) = World::open(tracing(&collector, json!({}))).await;
    let mut client = world.client("app.test").connect().await.unwrap();
    let request = client.request(Method::GET, "/hold", full(""));
    let held = tokio::spawn(async move { client.send(request).await.map(drop) });
    upstream.arrived(1).await;
    held.abort();
    let (server, _) = collector.request("/hold", 1).await;
    assert!(server.is_error());
    assert_eq!(server.attribute("error.type"), "client_disconnected");
    assert_eq!(server.attribute("http.response.status_code"), "");
}

#[tokio::test]
async fn tracing_is_switched_by_a_reload() {
    let collector = Collector::plain().await;
    let (mut world, _upstream) = World::open(json!({})).await;
    let mut client = world.client("app.test").connect().await.unwrap();
    let garbage = "not a traceparent";
    let mut request = client.request(Method::GET, "/off", full(""));
    request.headers_mut().insert("traceparent", garbage.parse().unwrap());
    request.headers_mut().insert("tracestate", "a=1".parse().unwrap());
    let reply = client.fetch(request).await.unwrap();
    assert_eq!(at_upstream(&reply, "traceparent"), garbage, "without tracing, headers pass as they come");
    assert_eq!(at_upstream(&reply, "tracestate"), "a=1");

    let line = crate::reload::reload(&mut world, tracing(&collector, json!({}))).await;
    assert!(line.contains("countersign.tracing.endpoint, countersign.tracing.sampling_ratio"), "{line}");
    let reply = client.get("/on").await.unwrap();
    let (server, _) = collector.request("/on", 1).await;
    assert!(at_upstream(&reply, "traceparent").contains(&server.trace_id()));

    let never = json!({"countersign": {"tracing": {"sampling_ratio": 0}}});
    crate::reload::reload(&mut world, never).await;
    let reply = client.get("/never").await.unwrap();
    assert!(at_upstream(&reply, "traceparent").ends_with("-00"));
    crate::reload::reload(&mut world, json!({"countersign": {"tracing": {"endpoint": null}}})).await;
    let reply = client.get("/off-again").await.unwrap();
    assert_eq!(at_upstream(&reply, "traceparent"), "");
    assert_eq!(collector.received().len(), 2);
}

#[tokio::test]
async fn a_stop_and_an_upgrade_lose_no_span() {
    let collector = Collector::plain().await;
    let (mut world, _upstream) = World::open(tracing(&collector, json!({}))).await;
    world.client("app.test").get("/before").await.unwrap();
    world.upgrade_node().await;
    world.client("app.test").get("/between").await.unwrap();
    let successor = &world.node_successors()[0];
    successor.signal(rustix::process::Signal::TERM);
    successor.ended().await;
    let mut paths: Vec<_> = collector.received().iter().map(|span| span.attribute("url.path")).collect();
    paths.retain(|path| !path.is_empty());
    paths.sort();
    assert_eq!(paths, ["/before", "/between"], "what is left is sent before a process ends");
}
