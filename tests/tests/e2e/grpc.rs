//! gRPC and HTTP/2 to upstreams: calls of another implementation under mutual TLS, the gateway's
//! own errors and deadlines as statuses, one connection for many streams, and slow peers.

mod resets;

use std::fs;
use std::time::{Duration, Instant};

use e2e::client::{Body, HttpConnection, bounded, full};
use e2e::credentials::Credential;
use e2e::peers::{Peer, json_lines, run_python};
use e2e::ports::Reservation;
use e2e::upstream::{FIRST_HALF, Upstream};
use e2e::world::World;
use futures_util::future::join_all;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Collected};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::net::TcpStream;

/// One worker, so that all requests share its connections.
async fn one_worker() -> World {
    let settings = json!({"countersign": {"workers": 1, "limits": {"requests_per_client": 0}}});
    World::builder().settings(settings).start().await
}

fn upstream_to(scheme: &str, address: impl ToString) -> Value {
    json!({"scheme": scheme, "nodes": {address.to_string(): 1}})
}

async fn route(world: &World, upstream: Value) {
    world.apply(&[("routes/all", json!({"uri": "/*", "upstream": upstream}))]).await;
}

/// An HTTP/2 connection to the plain listener.
async fn http2_client(world: &World) -> SendRequest<Body> {
    let tcp = TcpStream::connect(world.http()).await.unwrap();
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(tcp)).await.unwrap();
    tokio::spawn(connection);
    sender
}

fn call(path: &str, timeout: Option<&str>) -> Request<Body> {
    let request = Request::post(format!("http://app.test{path}")).header("content-type", "application/grpc");
    let request = match timeout {
        Some(timeout) => request.header("grpc-timeout", timeout),
        None => request,
    };
    request.body(full("")).unwrap()
}

async fn send(client: &mut SendRequest<Body>, request: Request<Body>) -> Response<Incoming> {
    bounded("a response", client.send_request(request)).await.unwrap()
}

async fn collect(response: Response<Incoming>) -> (HeaderMap, Collected<Bytes>) {
    let (head, body) = response.into_parts();
    assert_eq!(head.status, StatusCode::OK);
    (head.headers, bounded("a body", body.collect()).await.unwrap())
}

/// The calls of [`echo_answers`].
fn echo_calls() -> Vec<String> {
    let calls = [
        json!({"method": "Unary", "sizes": [20_000_000]}),
        json!({"method": "Unary", "messages": [""], "metadata": {"x-bytes": "20000000"}}),
        json!({"method": "Count", "messages": ["300"]}),
        json!({"method": "Collect", "sizes": vec![100_000; 50]}),
        json!({"method": "Chat", "messages": ["a", "b", "c"]}),
        json!({"method": "Unary", "messages": [""], "metadata": {"x-status": "5", "x-message": "no such thing"}}),
        json!({"method": "Count", "messages": ["1"], "metadata": {"x-status": "16"}}),
        json!({"method": "Unary", "messages": [""], "metadata": {"x-delay": "20"}, "timeout": 0.5}),
    ];
    calls.iter().map(Value::to_string).collect()
}

fn echo_answers(lines: &[Value], client: Option<&str>) {
    let codes: Vec<_> = lines.iter().map(|line| line["code"].as_str().unwrap()).collect();
    let failed = ["NOT_FOUND", "UNAUTHENTICATED", "DEADLINE_EXCEEDED"];
    assert_eq!(codes, [["OK"; 5].as_slice(), &failed].concat(), "{lines:#?}");
    for line in &lines[..5] {
        assert_eq!(line["trailing"]["x-trailing"], "yes");
        assert_eq!(line["trailing"]["x-trailing-bin"].as_str().map(str::len), Some(512));
        assert_eq!(line["initial"]["x-client"].as_str(), client);
    }
    assert_eq!((&lines[0]["messages"], &lines[1]["messages"]), (&json!([20_000_000]), &json!([20_000_000])));
    assert_eq!(lines[2]["messages"].as_array().map(Vec::len), Some(300));
    assert_eq!(lines[3]["messages"], json!(["50 5000000"]));
    assert_eq!(lines[4]["messages"], json!(["a", "b", "c"]));
    assert_eq!(lines[5]["details"], "no such thing");
}

/// Runs the calls through the gateway over mutual TLS.
async fn echo(world: &World) -> Vec<Value> {
    let address = world.https().to_string();
    let calls = echo_calls();
    let options = ["--certificate", "client", "--authority", "server-ca", "--host", "app.test"];
    let mut arguments = vec![address.as_str()];
    arguments.extend(options);
    arguments.extend(calls.iter().map(String::as_str));
    json_lines(&run_python(world.folder(), "grpc_client.py", &arguments).await.unwrap())
}

fn write(world: &World, name: &str, credential: &Credential) {
    let path = |extension| world.folder().join(format!("{name}.{extension}"));
    fs::write(path("crt"), &credential.certificate_pem).unwrap();
    fs::write(path("key"), &credential.key_pem).unwrap();
}

#[tokio::test]
async fn calls_pass_with_mutual_tls_on_both_sides() {
    let world = one_worker().await;
    let authority = &world.credentials.upstreams;
    write(&world, "echo", &authority.server(&["echo.test"]));
    let options = ["--certificate", "echo", "--authority", "upstream-ca"];
    let Some(server) = Peer::python(world.folder(), "grpc_echo.py", &options).await else { return };
    let issued = authority.client("gateway.test");
    let mut upstream = upstream_to("grpcs", server.address());
    upstream["tls"] = json!({"client_cert": issued.certificate_pem, "client_key": issued.key_pem});
    world.apply(&[("ssls/app", world.protected_site())]).await;
    route(&world, upstream).await;
    echo_answers(&echo(&world).await, Some("gateway.test"));
    world
        .apply(&[("routes/all", json!({"uri": "/*", "upstream": upstream_to("grpcs", server.address())}))])
        .await;
    let without = echo(&world).await;
    assert!(without.iter().all(|line| line["code"] == "UNAVAILABLE"), "{without:#?}");
}

#[tokio::test]
async fn calls_pass_to_an_upstream_in_clear() {
    let world = one_worker().await;
    let Some(server) = Peer::python(world.folder(), "grpc_echo.py", &[]).await else { return };
    world.apply(&[("ssls/app", world.protected_site())]).await;
    route(&world, upstream_to("grpc", server.address())).await;
    echo_answers(&echo(&world).await, None);
}

#[tokio::test]
async fn errors_of_the_gateway_are_statuses() {
    let world = one_worker().await;
    let gone = Reservation::any();
    let web = Upstream::plain("web").await;
    let to = |upstream: Value, uri: &str| json!({"uri": uri, "upstream": upstream});
    let allowed = json!({"client_identity": {"allow": [{"dns": "a.test"}]}});
    let mut denied = to(upstream_to("grpc", web.address()), "/denied");
    denied["client_identity"] = allowed["client_identity"].clone();
    world
        .apply(&[
            ("routes/gone", to(upstream_to("grpc", gone.address()), "/gone")),
            ("routes/denied", denied),
            ("routes/web", to(upstream_to("http", web.address()), "/status")),
        ])
        .await;
    let mut client = http2_client(&world).await;
    for (path, timeout, status, message) in [
        ("/gone", None, "14", "502 Bad Gateway"),
        ("/nowhere", None, "12", "404 Not Found"),
        ("/denied", None, "7", "403 Forbidden"),
        ("/gone", Some("1s"), "13", "400 Bad Request"),
    ] {
        let (headers, body) = collect(send(&mut client, call(path, timeout)).await).await;
        assert_eq!(headers["grpc-status"], status, "{path}");
        assert_eq!(headers["grpc-message"], message, "{path}");
        assert_eq!(headers["content-type"], "application/grpc");
        assert!(!headers.contains_key("content-length") && body.trailers().is_none());
        assert!(body.to_bytes().is_empty());
    }
    // What an upstream answers is its own; a request that is no call gets a page.
    let response = send(&mut client, call("/status?code=503", None)).await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    let request = Request::post("http://app.test/gone").body(full("")).unwrap();
    assert_eq!(send(&mut client, request).await.status(), StatusCode::BAD_GATEWAY);
    let metrics = world.status("/metrics").await.text();
    for count in ["code_class=\"4xx\"} 3", "code_class=\"5xx\"} 3"] {
        assert!(metrics.contains(&format!("http_responses_total{{{count}")), "{count}\n{metrics}");
    }
}

#[tokio::test]
async fn a_deadline_ends_a_call() {
    let world = one_worker().await;
    let slow = Upstream::plain("slow").await;
    route(&world, upstream_to("grpc", slow.address())).await;
    let mut client = http2_client(&world).await;
    let started = Instant::now();
    let (headers, _) = collect(send(&mut client, call("/hold", Some("300m"))).await).await;
    assert_eq!(headers["grpc-status"], "4");
    assert_eq!(headers["grpc-message"], "504 Gateway Timeout");
    assert!((Duration::from_millis(290)..Duration::from_secs(10)).contains(&started.elapsed()));
    world.node_log().line_with(&["deadline_exceeded", "grpc-timeout"]).await;
    // A response that has begun ends with trailers.
    let (headers, body) = collect(send(&mut client, call("/halves", Some("300m"))).await).await;
    assert!(!headers.contains_key("grpc-status"));
    assert_eq!(body.trailers().unwrap()["grpc-status"], "4");
    assert_eq!(body.to_bytes(), FIRST_HALF);
    slow.open_gate();
    let (_, body) = collect(send(&mut client, call("/halves", Some("1M"))).await).await;
    assert!(body.trailers().is_none());
    assert_eq!(slow.connections(), 1, "streams are reset, not connections");
}

#[tokio::test]
async fn a_burst_shares_one_connection() {
    let world = one_worker().await;
    let authority = &world.credentials.upstreams;
    let clear = Upstream::plain("clear").await;
    let tls = Upstream::tls("tls", &authority.server(&["up.test"])).await;
    let mut https = upstream_to("https", tls.address());
    https["http2"] = json!(true);
    world
        .apply(&[
            ("routes/clear", json!({"uri": "/clear/*", "upstream": upstream_to("grpc", clear.address())})),
            ("routes/tls", json!({"uri": "/tls/*", "upstream": https})),
        ])
        .await;
    for (prefix, upstream) in [("clear", &clear), ("tls", &tls)] {
        let client = http2_client(&world).await;
        let requests: Vec<_> = (0..80)
            .map(|_| {
                let mut client = client.clone();
                let request = Request::get(format!("http://app.test/{prefix}/hold"));
                let request = request.body(full("")).unwrap();
                tokio::spawn(async move { send(&mut client, request).await.status() })
            })
            .collect();
        upstream.arrived(80).await;
        assert_eq!((upstream.connections(), upstream.open()), (1, 1), "{prefix}");
        upstream.open_gate();
        for status in join_all(requests).await {
            assert_eq!(status.unwrap(), StatusCode::OK);
        }
        // 100 streams at a time, whatever the node allows.
        let mut session: HttpConnection = world.plain("app.test").await;
        let request = session.request(Method::GET, &format!("/{prefix}/report"), full(""));
        let report = session.fetch(request).await.unwrap().json();
        let scheme = if prefix == "tls" { "https" } else { "http" };
        assert_eq!(report["uri"], format!("{scheme}://app.test/{prefix}/report"), "HTTP/2, in absolute form");
        assert!(
            report["headers"].get("host").is_none()
                && report["headers"].get("te").is_some() != (prefix == "tls")
        );
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_stops_no_other() {
    // More than the windows on the way.
    const LARGE: usize = 4_000_000;
    let world = one_worker().await;
    let upstream = Upstream::plain("sized").await;
    route(&world, upstream_to("grpc", upstream.address())).await;
    let get = || Request::get(format!("http://app.test/sized?bytes={LARGE}")).body(full("")).unwrap();
    // Its window stays closed.
    let mut stalled = Vec::new();
    for _ in 0..20 {
        let mut client = http2_client(&world).await;
        stalled.push((send(&mut client, get()).await, client));
    }
    let mut client = http2_client(&world).await;
    let (_, body) = collect(send(&mut client, get()).await).await;
    assert_eq!(body.to_bytes().len(), LARGE);
    assert_eq!(upstream.connections(), 1);
    for (response, _client) in stalled {
        let (_, body) = collect(response).await;
        assert_eq!(body.to_bytes().len(), LARGE);
    }
}
