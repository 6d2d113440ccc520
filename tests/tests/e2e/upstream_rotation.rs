//! Client certificates towards upstreams that are replaced, or taken away, under load: each
//! connection belongs to one identity, and none is made without its certificate.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use e2e::client::{HttpConnection, bounded, full};
use e2e::upstream::tcp::{Script, TcpUpstream};
use e2e::upstream::{FIRST_HALF, SECOND_HALF, Upstream};
use e2e::world::World;
use futures_util::future::join_all;
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const NAMES: [&str; 2] = ["blue", "green"];

/// Two identities under one server name, and one of them under another, by the path.
const ROUTES: [(&str, &str, &str); 3] =
    [("blue", "blue", "up.test"), ("azure", "blue", "two.test"), ("green", "green", "up.test")];

/// Schemes of HTTP/1, of HTTP/2 by ALPN, and of gRPC.
const PROTOCOLS: [(&str, bool); 3] = [("https", false), ("https", true), ("grpcs", false)];

/// An upstream whose client certificate is the ssl of this name.
fn upstream((scheme, http2): (&str, bool), node: &Upstream, name: &str) -> Value {
    // A PUT that does not mention `http2` keeps it.
    json!({
        "scheme": scheme, "http2": http2, "nodes": {node.address().to_string(): 1},
        "tls": {"client_cert_id": name},
    })
}

/// An ssl of type client. Its subject is `CN=NAME-NUMBER`.
fn identity(world: &World, name: &str, number: u64) -> Value {
    let issued = world.credentials.upstreams.client(&format!("{name}-{number}"));
    json!({"type": "client", "cert": issued.certificate_pem, "key": issued.key_pem})
}

async fn rotate(world: &World, name: &str, number: u64) {
    world.apply(&[(&format!("ssls/{name}"), identity(world, name, number))]).await;
}

/// [`ROUTES`] to one node.
async fn routes(world: &World, protocol: (&str, bool), node: &Upstream, keepalive: &Value) {
    for name in NAMES {
        rotate(world, name, 1).await;
    }
    for (path, name, host) in ROUTES {
        let mut upstream = upstream(protocol, node, name);
        upstream["keepalive_pool"] = keepalive.clone();
        upstream["pass_host"] = json!("rewrite");
        upstream["upstream_host"] = json!(host);
        let route = json!({"uri": format!("/{path}/*"), "upstream": upstream});
        world.apply(&[(&format!("routes/{path}"), route)]).await;
    }
}

/// A node that rejects clients without a certificate.
async fn demanding(world: &World) -> Upstream {
    let authority = &world.credentials.upstreams;
    Upstream::demanding("strict", &authority.server(&["up.test"]), authority).await
}

/// The number in the subject of a client of this name.
#[track_caller]
fn number(report: &Value, name: &str) -> u64 {
    let subject = report["client_subject"].as_str();
    let number = subject.and_then(|subject| subject.strip_prefix(&format!("CN={name}-"))?.parse().ok());
    number.unwrap_or_else(|| panic!("{name}: {report}"))
}

/// By the number of a connection: its client's subject and its server's name, and its requests.
type Connections = Mutex<HashMap<u64, ([String; 2], u64)>>;

/// Sends requests one after another; each has its route's identity, and the newest that the gateway
/// had when the request was sent, or a newer one.
async fn load(
    mut session: HttpConnection,
    (path, name, host): (&'static str, &'static str, &'static str),
    requests: usize,
    newest: Arc<AtomicU64>,
    seen: Arc<Connections>,
) {
    for _ in 0..requests {
        let least = newest.load(Ordering::SeqCst);
        let report = session.get(&format!("/{path}/report")).await.unwrap().json();
        assert!(number(&report, name) >= least, "{least}: {report}");
        assert_eq!(report["sni"], host);
        let peers = [&report["client_subject"], &report["sni"]].map(|name| name.as_str().unwrap().to_owned());
        let mut seen = seen.lock().unwrap();
        let connection = seen.entry(report["connection"].as_u64().unwrap());
        let (first, served) = connection.or_insert_with(|| (peers.clone(), 0));
        assert_eq!(*first, peers, "two identities share a connection: {report}");
        *served += 1;
    }
}

#[tokio::test]
async fn case_x01_x03_x06_identities_under_load_and_rotation() {
    const CLIENTS: usize = 4;
    const REQUESTS: usize = 280;
    let world = World::start().await;
    for protocol in PROTOCOLS {
        let node = demanding(&world).await;
        let keepalive = json!({"size": 4, "idle_timeout": 60, "requests": 16});
        routes(&world, protocol, &node, &keepalive).await;
        let seen = Arc::<Connections>::default();
        let newest = [1, 1].map(|first| Arc::new(AtomicU64::new(first)));
        let mut clients = Vec::new();
        for route in ROUTES {
            let newest = &newest[usize::from(route.1 != NAMES[0])];
            for _ in 0..CLIENTS {
                let session = world.plain("app.test").await;
                let (newest, seen) = (Arc::clone(newest), Arc::clone(&seen));
                clients.push(tokio::spawn(load(session, route, REQUESTS, newest, seen)));
            }
        }
        let rotations = async {
            for number in 2.. {
                for (name, newest) in NAMES.iter().zip(&newest) {
                    rotate(&world, name, number).await;
                    newest.store(number, Ordering::SeqCst);
                    // In between connections are used again.
                    node.arrived(node.requests() + 30).await;
                }
            }
        };
        tokio::select! {
            ended = join_all(clients) => ended.into_iter().for_each(|client| client.unwrap()),
            () = rotations => unreachable!("they go on"),
        }
        let last = newest[1].load(Ordering::SeqCst);
        assert!(last > 10, "{protocol:?}: {last} rotations");
        assert_eq!(node.requests(), (ROUTES.len() * CLIENTS * REQUESTS) as u64);
        let seen = std::mem::take(&mut *seen.lock().unwrap());
        let most = seen.values().map(|(_, served)| *served).max();
        assert!(most.is_some_and(|most| (2..=16).contains(&most)), "{protocol:?}: {most:?}");
        // The idle connections of an identity that is replaced are closed.
        bounded("connections are idle", async { while node.open() == 0 {} }).await;
        for name in NAMES {
            rotate(&world, name, last + 2).await;
        }
        let replaced = Instant::now();
        node.open_at_most(0).await;
        assert!(replaced.elapsed() < Duration::from_secs(1), "{protocol:?}: {:?}", replaced.elapsed());
    }
}

#[tokio::test]
async fn a_running_request_finishes_under_its_identity() {
    let world = World::builder().settings(json!({"countersign": {"workers": 1}})).start().await;
    for protocol in PROTOCOLS {
        let node = demanding(&world).await;
        routes(&world, protocol, &node, &json!({"size": 8})).await;
        let mut held = world.plain("app.test").await;
        let held = tokio::spawn(async move { held.get("/blue/hold").await.unwrap() });
        let mut halved = world.plain("app.test").await;
        let request = halved.request(Method::GET, "/blue/halves", full(""));
        let mut halves = halved.send(request).await.unwrap().into_body();
        let first = bounded("the first half", halves.frame()).await.unwrap().unwrap();
        assert_eq!(first.into_data().unwrap(), FIRST_HALF);
        node.arrived(2).await;
        rotate(&world, "blue", 2).await;
        let report = world.plain("app.test").await.get("/blue/report").await.unwrap().json();
        assert_eq!(number(&report, "blue"), 2, "{protocol:?}");
        // The old identity has the connections of the two only, until they end.
        let old = if protocol == ("https", false) { 2 } else { 1 };
        node.open_at_most(old + 1).await;
        node.open_gate();
        let held = bounded("the held response", held).await.unwrap();
        assert_eq!((held.status, number(&held.json(), "blue")), (StatusCode::OK, 1), "{protocol:?}");
        assert_eq!(halves.collect().await.unwrap().to_bytes(), SECOND_HALF);
        node.open_at_most(1).await;
    }
}

/// Those that wait for the only connection get one of their own identity, old or new.
#[tokio::test]
async fn requests_in_the_queue_outlast_a_rotation() {
    const QUEUED: &str = "countersign_upstream_requests_queued";
    let world = World::builder().settings(json!({"countersign": {"workers": 1}})).start().await;
    for protocol in PROTOCOLS {
        let node = demanding(&world).await;
        routes(&world, protocol, &node, &json!({"max_connections": 1})).await;
        let address = world.http();
        let send = |path: &'static str| {
            tokio::spawn(async move {
                let mut session = HttpConnection::plain(address, "app.test").await.unwrap();
                session.get(path).await.unwrap()
            })
        };
        let queued = async |wanted: u64| {
            bounded("requests wait", async { while world.metric(QUEUED).await != wanted {} }).await;
        };
        let first = send("/blue/hold");
        node.arrived(1).await;
        let other = send("/green/report");
        queued(1).await;
        let second = send("/blue/hold");
        let waiting = if protocol == ("https", false) {
            queued(2).await;
            2
        } else {
            // It has a stream beside the first.
            node.arrived(2).await;
            1
        };
        rotate(&world, "blue", 2).await;
        rotate(&world, "green", 2).await;
        let third = send("/blue/report");
        queued(waiting + 1).await;
        node.open_gate();
        for (sent, name, expected) in
            [(first, "blue", 1), (other, "green", 1), (second, "blue", 1), (third, "blue", 2)]
        {
            let reply = bounded("a response", sent).await.unwrap();
            assert_eq!(reply.status, StatusCode::OK, "{protocol:?}: {}", reply.text());
            assert_eq!(number(&reply.json(), name), expected, "{protocol:?}");
        }
        assert!(node.open() <= 1, "{protocol:?}");
    }
}

/// A request keeps the identity that it began with, also at the next node.
#[tokio::test]
async fn a_retry_after_a_rotation_has_a_certificate() {
    let world = World::builder().settings(json!({"countersign": {"workers": 1}})).start().await;
    for protocol in PROTOCOLS {
        let nodes = [demanding(&world).await, demanding(&world).await];
        rotate(&world, "blue", 1).await;
        let mut upstream = upstream(protocol, &nodes[0], "blue");
        upstream["nodes"][nodes[1].address().to_string()] = json!(1);
        world.apply(&[("routes/blue", json!({"uri": "/blue/*", "upstream": upstream}))]).await;
        let mut session = world.plain("app.test").await;
        let held = tokio::spawn(async move { session.get("/blue/hold").await.unwrap() });
        let both = nodes.iter().map(|node| Box::pin(node.arrived(1)));
        futures_util::future::select_all(both).await;
        rotate(&world, "blue", 2).await;
        let (first, second): (Vec<_>, Vec<_>) = nodes.into_iter().partition(|node| node.requests() == 1);
        second[0].open_gate();
        for node in first {
            node.stop().await;
        }
        let held = bounded("the response of the other node", held).await.unwrap();
        assert_eq!((held.status, number(&held.json(), "blue")), (StatusCode::OK, 1), "{protocol:?}");
        // And its connection is not kept.
        second[0].open_at_most(0).await;
    }
}

/// The node accepts every handshake, so that one without a certificate would show.
#[tokio::test]
async fn no_connection_is_made_without_the_certificate() {
    const ROUNDS: u64 = 4;
    let world = World::start().await;
    let (server, authority) =
        (world.credentials.upstreams.server(&["up.test"]), &world.credentials.upstreams);
    let mut denied = 0;
    for protocol in PROTOCOLS {
        let node = Upstream::strict("lenient", &server, authority.certificate_pem()).await;
        routes(&world, protocol, &node, &json!({"size": 4})).await;
        let stop = Arc::new(AtomicU64::new(0));
        let mut clients = Vec::new();
        for _ in 0..4 {
            let (mut session, stop) = (world.plain("app.test").await, Arc::clone(&stop));
            clients.push(tokio::spawn(async move {
                let mut denied = 0;
                while stop.load(Ordering::SeqCst) == 0 {
                    let reply = session.get("/blue/report").await.unwrap();
                    match reply.status {
                        StatusCode::OK => assert!(number(&reply.json(), "blue") > 0),
                        status => {
                            assert_eq!(status, StatusCode::BAD_GATEWAY, "{}", reply.text());
                            denied += 1;
                        }
                    }
                }
                denied
            }));
        }
        let mut session = world.plain("app.test").await;
        for number in 2..2 + ROUNDS {
            // One of the wrong type, none, and one that is right.
            let mut wrong = identity(&world, "blue", number);
            wrong["type"] = json!("server");
            wrong["snis"] = json!(["blue.test"]);
            world.apply(&[("ssls/blue", wrong)]).await;
            assert_eq!(session.get("/blue/x").await.unwrap().status, StatusCode::BAD_GATEWAY);
            let revision = world.admin().delete("ssls/blue").await;
            world.wait_acknowledged(revision).await;
            assert_eq!(session.get("/blue/x").await.unwrap().status, StatusCode::BAD_GATEWAY);
            rotate(&world, "blue", number).await;
            let report = session.get("/blue/report").await.unwrap().json();
            assert_eq!(self::number(&report, "blue"), number, "{protocol:?}");
        }
        stop.store(1, Ordering::SeqCst);
        for client in join_all(clients).await {
            denied += client.unwrap();
        }
        denied += 2 * ROUNDS;
        assert_eq!(node.anonymous(), 0, "{protocol:?}");
    }
    let counted = world.metric("countersign_errors_total{reason=\"upstream_identity\"}").await;
    assert_eq!(counted, denied);
    for words in ["ssl type should be 'client'", "ssl id [blue] not exits"] {
        world.node_log().line_with(&["upstream_identity", words]).await;
    }
}

#[tokio::test]
async fn a_stream_goes_on_under_the_old_identity() {
    let settings = json!({"apisix": {
        "proxy_mode": "http&stream", "stream_proxy": {"tcp": [{"addr": "127.0.0.1:0", "tls": false}]},
    }});
    let world = World::builder().settings(settings).start().await;
    let authority = &world.credentials.upstreams;
    let node = TcpUpstream::demanding("echo", Script::Echo, &authority.server(&["up.test"]), authority).await;
    rotate(&world, "blue", 1).await;
    let upstream = json!({
        "scheme": "tls", "nodes": {node.address().to_string(): 1}, "tls": {"client_cert_id": "blue"},
    });
    world.apply(&[("stream_routes/1", json!({"upstream": upstream}))]).await;
    let mut first = TcpStream::connect(world.stream(0)).await.unwrap();
    let mut second = TcpStream::connect(world.stream(0)).await.unwrap();
    echoes(&mut first).await;
    rotate(&world, "blue", 2).await;
    for (nth, stream) in [&mut first, &mut second].into_iter().enumerate() {
        echoes(stream).await;
        node.saw(nth, |seen| seen.client_subject.is_some()).await;
    }
    let mut third = TcpStream::connect(world.stream(0)).await.unwrap();
    echoes(&mut third).await;
    let subjects = async |nth| node.saw(nth, |_| true).await.client_subject;
    assert_eq!(subjects(0).await.as_deref(), Some("CN=blue-1"));
    assert_eq!(subjects(2).await.as_deref(), Some("CN=blue-2"));
    let revision = world.admin().delete("ssls/blue").await;
    world.wait_acknowledged(revision).await;
    let accepted = node.connections();
    let mut fourth = TcpStream::connect(world.stream(0)).await.unwrap();
    let mut heard = Vec::new();
    let _reset = bounded("the stream is closed", fourth.read_to_end(&mut heard)).await;
    assert!(heard.is_empty(), "{heard:?}");
    world.node_log().line_with(&["upstream_identity", "ssl id [blue] not exits"]).await;
    assert_eq!(node.connections(), accepted);
    echoes(&mut first).await;
    echoes(&mut third).await;
}

async fn echoes(stream: &mut TcpStream) {
    stream.write_all(b"hello").await.unwrap();
    let mut heard = [0; 5];
    bounded("the echo", stream.read_exact(&mut heard)).await.unwrap();
    assert_eq!(&heard, b"hello");
}
