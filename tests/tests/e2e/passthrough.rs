//! TLS that is passed on by the SNI in its ClientHello: what is passed on and what is terminated,
//! which names may not be passed on, and ClientHellos in every shape.

use std::net::SocketAddr;
use std::sync::Arc;

use e2e::client::{ClientError, HttpClient, Tls, bounded};
use e2e::credentials::{Authority, certificates};
use e2e::documents::protected;
use e2e::peers::Peer;
use e2e::raw::{self, Split};
use e2e::upstream::tcp::{Script, TcpUpstream};
use e2e::world::World;
use http::Method;
use rustls::AlertDescription;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::stream::{hello, reply, to};

/// Stream listeners: one that passes TLS on, one where the route decides, one that terminates it.
const PASS: usize = 0;
const BY_ROUTE: usize = 1;
const TERMINATE: usize = 2;

async fn start() -> World {
    let settings = json!({"apisix": {
        "proxy_mode": "http&stream",
        "stream_proxy": {"tcp": [
            {"addr": "127.0.0.1:0", "tls_passthrough": true},
            {"addr": "127.0.0.1:0", "tls": true, "tls_passthrough": true},
            {"addr": "127.0.0.1:0", "tls": true},
        ]},
    }, "countersign": {"limits": {"handshake_timeout": 2}}});
    World::builder().settings(settings).start().await
}

/// An upstream that terminates TLS for any name itself, with a certificate of the upstreams' CA.
async fn upstream(world: &World, name: &str) -> TcpUpstream {
    let names = ["pass.test", "other.test", "app.test", "*.wild.test"];
    TcpUpstream::tls(name, Script::Greet, &world.credentials.upstreams.server(&names)).await
}

fn passing(snis: Value, upstream: &TcpUpstream) -> Value {
    json!({"snis": snis, "tls_passthrough": true, "upstream": to(&[upstream.address()])})
}

/// A client of a listener that trusts this authority alone.
fn client(world: &World, listener: usize, sni: &str, authority: &Authority) -> HttpClient {
    HttpClient::new(world.stream(listener), sni, certificates(authority.certificate_pem()))
}

/// The answer to a client that verifies its server as an upstream: nothing between them holds a
/// key.
async fn ask_through(world: &World, listener: usize, sni: &str) -> Result<String, ClientError> {
    let mut stream = client(world, listener, sni, &world.credentials.upstreams).handshake().await?;
    Ok(reply(&mut stream).await)
}

/// The bytes that a client gets whose connection is denied: none, not even an alert.
async fn denied(world: &World, listener: usize, sni: &str) {
    hears_nothing(world, listener, &client(world, listener, sni, &world.credentials.upstreams)).await;
}

/// [`denied`], for a client that sends no SNI.
async fn denied_without_sni(world: &World, listener: usize) {
    let client = client(world, listener, "app.test", &world.credentials.upstreams).no_sni();
    hears_nothing(world, listener, &client).await;
}

async fn hears_nothing(world: &World, listener: usize, client: &HttpClient) {
    let bytes = raw::client_hello(client.config(), client.server_name());
    let mut stream = raw::send(world.stream(listener), &bytes).await;
    assert_eq!(raw::until_closed(&mut stream).await, b"", "{:?}", client.server_name());
}

async fn errors(world: &World, reason: &str) -> u64 {
    world.metric(&format!("countersign_errors_total{{reason=\"{reason}\"}}")).await
}

#[tokio::test]
async fn tls_is_passed_on_by_its_name() {
    let world = start().await;
    let (one, two) = (upstream(&world, "one").await, upstream(&world, "two").await);
    let authority = &world.credentials.clients;
    let server = world.credentials.upstreams.server(&["strict.test"]);
    let strict = TcpUpstream::demanding("strict", Script::Greet, &server, authority).await;
    let wild = passing(json!(["*.wild.test", "x.pass.test"]), &two);
    world
        .apply(&[
            ("stream_routes/1", passing(json!(["PASS.test", "other.test."]), &one)),
            ("stream_routes/2", wild),
            ("stream_routes/3", passing(json!(["strict.test"]), &strict)),
            // The same name: the first route takes it.
            ("stream_routes/4", passing(json!(["pass.test"]), &two)),
        ])
        .await;
    for listener in [PASS, BY_ROUTE] {
        for (sni, upstream) in
            [("pass.test", "one"), ("other.test", "one"), ("a.wild.test", "two"), ("x.pass.test", "two")]
        {
            let answer = ask_through(&world, listener, sni).await;
            // The names of the certificate are not the matter here.
            if sni != "x.pass.test" {
                assert_eq!(answer.unwrap(), hello(upstream), "{sni}");
            }
        }
        for tls in [Tls::V12, Tls::V13] {
            let client = client(&world, listener, "strict.test", &world.credentials.upstreams).tls(tls);
            let mut stream = client.clone().identity(&world.credentials.client).handshake().await.unwrap();
            assert_eq!(reply(&mut stream).await, hello("strict"));
            // The upstream's own alert, which no certificate gets.
            client.expect_alert().await;
        }
    }
    let seen = strict.saw(0, |_| true).await;
    assert_eq!(
        (seen.sni.as_deref(), seen.client_subject),
        (Some("strict.test"), Some("CN=good-client".into()))
    );
    // No route, and no site either.
    denied(&world, PASS, "nobody.test").await;
    assert_eq!(errors(&world, "no_stream_route").await, 1);
    let unnamed = client(&world, BY_ROUTE, "nobody.test", &world.credentials.upstreams);
    assert_eq!(unnamed.expect_alert().await, AlertDescription::UnrecognisedName);
    assert_eq!(world.metric("countersign_tls_handshakes_total{resumed=\"false\"}").await, 0);
}

/// On a listener with both, the route decides, and what is terminated is authenticated.
#[tokio::test]
async fn a_route_decides_what_is_terminated() {
    let world = start().await;
    let (passed, plain) =
        (upstream(&world, "passed").await, TcpUpstream::plain("plain", Script::Greet).await);
    world
        .apply(&[
            ("ssls/app", world.protected_site()),
            ("stream_routes/1", passing(json!(["pass.test"]), &passed)),
            ("stream_routes/2", json!({"sni": "app.test", "upstream": to(&[plain.address()])})),
        ])
        .await;
    assert_eq!(ask_through(&world, BY_ROUTE, "pass.test").await.unwrap(), hello("passed"));
    for listener in [BY_ROUTE, TERMINATE] {
        let site = client(&world, listener, "app.test", &world.credentials.servers);
        let mut stream = site.clone().identity(&world.credentials.client).handshake().await.unwrap();
        assert_eq!(reply(&mut stream).await, hello("plain"));
        site.tls(Tls::V13).expect_alert().await;
    }
    assert_eq!(errors(&world, "no_certificate").await, 2);
    // A listener that terminates does so whatever the route says, as in APISIX.
    let terminated = client(&world, TERMINATE, "pass.test", &world.credentials.upstreams);
    assert_eq!(terminated.expect_alert().await, AlertDescription::UnrecognisedName);
    // Without a name the route without names decides; without such a route there is no site.
    let nameless = || client(&world, BY_ROUTE, "app.test", &world.credentials.upstreams).no_sni();
    assert_eq!(nameless().expect_alert().await, AlertDescription::UnrecognisedName);
    assert_eq!(errors(&world, "no_sni").await, 1);
    let plain_route = json!({"upstream": to(&[plain.address()])});
    world.apply(&[("stream_routes/3", plain_route)]).await;
    assert_eq!(nameless().expect_alert().await, AlertDescription::UnrecognisedName);
    world.apply(&[("ssls/app", world.open_site())]).await;
    world.apply(&[("stream_routes/3", passing(json!(["*"]), &passed))]).await;
    for listener in [BY_ROUTE, PASS] {
        let client = client(&world, listener, "app.test", &world.credentials.upstreams).no_sni();
        assert_eq!(reply(&mut client.handshake().await.unwrap()).await, hello("passed"));
    }
    // A route that terminates is passed on where the listener knows nothing else.
    let mut stream = client(&world, PASS, "app.test", &world.credentials.upstreams);
    stream = stream.no_sni();
    assert_eq!(reply(&mut stream.handshake().await.unwrap()).await, hello("passed"));
}

// === sites that demand certificates ===

/// Rejected where the site is there first.
#[tokio::test]
async fn a_route_cannot_bypass_a_site_with_client() {
    let world = start().await;
    let upstream = upstream(&world, "one").await;
    let authority = &world.credentials.clients;
    let wild = protected(
        e2e::documents::site(&world.credentials.servers.server(&["*.wild.test"]), "*.wild.test"),
        authority,
    );
    world.apply(&[("ssls/app", world.protected_site()), ("ssls/wild", wild)]).await;
    let mut connection = world.admin().connect().await.unwrap();
    let mut put =
        async |route: &Value| connection.call(Method::PUT, "stream_routes/1", Some(route)).await.unwrap();
    for (snis, ssl) in [
        (json!(["app.test"]), "app"),
        (json!(["pass.test", "APP.test."]), "app"),
        (json!(["*.test"]), "app"),
        (json!(["a.wild.test"]), "wild"),
        (json!(["*.wild.test"]), "wild"),
        (json!(["*"]), "app"),
    ] {
        let answer = put(&passing(snis.clone(), &upstream)).await;
        assert_eq!(answer.status, 400, "{snis}: {}", answer.body);
        let message = answer.body["error_msg"].as_str().unwrap();
        assert!(
            message.contains("TLS cannot be passed on") && message.contains(&format!("ssl {ssl},")),
            "{message}"
        );
    }
    // None of these is a name of the sites.
    for snis in [json!(["pass.test"]), json!(["a.b.wild.test"]), json!(["wild.test", "*.app.test"])] {
        let answer = put(&passing(snis.clone(), &upstream)).await;
        assert!(answer.status.is_success(), "{snis}: {}", answer.body);
    }
    let terminated = json!({"sni": "app.test", "upstream": to(&[upstream.address()])});
    assert!(put(&terminated).await.status.is_success());
    let mut within_tls = passing(json!(["pass.test"]), &upstream);
    within_tls["upstream"]["scheme"] = json!("tls");
    assert_eq!(put(&within_tls).await.status, 400);
    let mut both = passing(json!(["pass.test"]), &upstream);
    both["sni"] = json!("pass.test");
    assert_eq!(put(&both).await.status, 400);
    // A listener that only passes on does so without asking the route: the site still counts.
    world.apply(&[("stream_routes/1", terminated)]).await;
    denied(&world, PASS, "app.test").await;
    world.node_log().line_with(&["passthrough_denied", "sni=\"app.test\""]).await;
    assert_eq!((errors(&world, "passthrough_denied").await, upstream.connections()), (1, 0));
}

/// It may be for any site: refused where the site is there first, denied where it comes later.
#[tokio::test]
async fn without_sni_any_site_with_client_counts() {
    let world = start().await;
    let upstream = upstream(&world, "one").await;
    let nameless = passing(json!(["*"]), &upstream);
    world.apply(&[("ssls/app", world.open_site()), ("stream_routes/1", nameless.clone())]).await;
    let asked = async |listener| {
        let client = client(&world, listener, "app.test", &world.credentials.upstreams).no_sni();
        reply(&mut client.handshake().await.unwrap()).await
    };
    for listener in [PASS, BY_ROUTE] {
        assert_eq!(asked(listener).await, hello("one"));
    }
    world.apply(&[("ssls/app", world.protected_site())]).await;
    for listener in [PASS, BY_ROUTE] {
        denied_without_sni(&world, listener).await;
        // Another name is none of that site.
        assert_eq!(ask_through(&world, listener, "pass.test").await.unwrap(), hello("one"));
    }
    assert_eq!(errors(&world, "passthrough_denied").await, 2);
    let lint = world.admin().get("lint").await.body["list"].to_string();
    assert!(lint.contains("data planes deny connections with its SNI, and those without one"), "{lint}");
    let mut connection = world.admin().connect().await.unwrap();
    let answer = connection.call(Method::PUT, "stream_routes/2", Some(&nameless)).await.unwrap();
    assert_eq!(answer.status, 400, "{}", answer.body);
    world.apply(&[("ssls/app", world.open_site())]).await;
    assert_eq!(asked(PASS).await, hello("one"));
}

/// What is passed on is within TLS already, whoever names the upstream.
#[tokio::test]
async fn tls_is_not_passed_on_within_tls() {
    let world = start().await;
    let upstream = upstream(&world, "one").await;
    let with_scheme = |scheme: &str| {
        let mut target = to(&[upstream.address()]);
        target["scheme"] = json!(scheme);
        target
    };
    let route = |more: Value| {
        let mut route = json!({"snis": ["pass.test", "other.test"], "tls_passthrough": true});
        route.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        route
    };
    world
        .apply(&[
            ("upstreams/clear", with_scheme("tcp")),
            ("upstreams/tls", with_scheme("tls")),
            ("services/named", json!({"upstream_id": "tls"})),
            ("services/inline", json!({"upstream": with_scheme("https")})),
            ("stream_routes/1", route(json!({"upstream_id": "clear"}))),
        ])
        .await;
    let mut connection = world.admin().connect().await.unwrap();
    for (more, field) in [
        (json!({"upstream": with_scheme("tls")}), "upstream.scheme"),
        (json!({"upstream_id": "tls"}), "upstream_id"),
        (json!({"service_id": "named"}), "service_id"),
        (json!({"service_id": "inline"}), "service_id"),
    ] {
        let answer = connection.call(Method::PUT, "stream_routes/2", Some(&route(more))).await.unwrap();
        assert_eq!((answer.status.as_u16(), &answer.body["field"]), (400, &json!(field)), "{}", answer.body);
        let message = answer.body["error_msg"].as_str().unwrap();
        assert!(message.contains("would put it into another TLS"), "{message}");
    }
    assert_eq!(ask_through(&world, PASS, "pass.test").await.unwrap(), hello("one"));
    // The upstream changes later.
    world.apply(&[("upstreams/clear", with_scheme("tls"))]).await;
    for listener in [PASS, BY_ROUTE] {
        denied(&world, listener, "pass.test").await;
    }
    assert_eq!(errors(&world, "passthrough_denied").await, 2);
    let lint = world.admin().get("lint").await.body["list"].to_string();
    assert!(lint.contains("another TLS: data planes deny these connections"), "{lint}");
    assert_eq!(upstream.connections(), 1);
}

/// Denied where the site comes later: nobody is kept from protecting one.
#[tokio::test]
async fn a_site_with_client_ends_the_passing_on() {
    let world = start().await;
    let upstream = upstream(&world, "one").await;
    world
        .apply(&[
            ("ssls/app", world.open_site()),
            ("stream_routes/1", passing(json!(["app.test", "pass.test"]), &upstream)),
        ])
        .await;
    for listener in [PASS, BY_ROUTE] {
        assert_eq!(ask_through(&world, listener, "app.test").await.unwrap(), hello("one"));
    }
    assert_eq!(
        world.admin().get("lint").await.body["list"].to_string().matches("tls_passthrough").count(),
        0
    );
    world.apply(&[("ssls/app", world.protected_site())]).await;
    for listener in [PASS, BY_ROUTE] {
        denied(&world, listener, "app.test").await;
        assert_eq!(ask_through(&world, listener, "pass.test").await.unwrap(), hello("one"));
    }
    assert_eq!((errors(&world, "passthrough_denied").await, upstream.connections()), (2, 4));
    let lint = world.admin().get("lint").await.body;
    let finding = lint["list"].as_array().unwrap().iter().find(|found| found["field"] == "tls_passthrough");
    assert_eq!(finding.unwrap()["severity"], "error", "{lint}");
    world.apply(&[("ssls/app", world.open_site())]).await;
    assert_eq!(ask_through(&world, BY_ROUTE, "app.test").await.unwrap(), hello("one"));
}

// === ClientHellos ===

#[tokio::test]
async fn a_client_hello_may_come_in_pieces() {
    let world = start().await;
    let upstream = upstream(&world, "one").await;
    world.apply(&[("stream_routes/1", passing(json!(["pass.test"]), &upstream))]).await;
    for listener in [PASS, BY_ROUTE] {
        let client = client(&world, listener, "pass.test", &world.credentials.upstreams);
        let tcp = TcpStream::connect(world.stream(listener)).await.unwrap();
        tcp.set_nodelay(true).unwrap();
        let connector = TlsConnector::from(Arc::new(client.config()));
        let split = Split::each_byte(tcp, 1_000);
        let mut stream = bounded("handshake", connector.connect(client.server_name(), split)).await.unwrap();
        assert_eq!(reply(&mut stream).await, hello("one"));
    }
    // A site behind the reader: the bytes are as they came.
    world.apply(&[("ssls/app", world.open_site())]).await;
    let plain = TcpUpstream::plain("plain", Script::Greet).await;
    world.apply(&[("stream_routes/2", json!({"sni": "app.test", "upstream": to(&[plain.address()])}))]).await;
    let client = client(&world, BY_ROUTE, "app.test", &world.credentials.servers);
    let tcp = TcpStream::connect(world.stream(BY_ROUTE)).await.unwrap();
    tcp.set_nodelay(true).unwrap();
    let connector = TlsConnector::from(Arc::new(client.config()));
    let split = Split::each_byte(tcp, 1_000);
    let mut stream = bounded("handshake", connector.connect(client.server_name(), split)).await.unwrap();
    assert_eq!(reply(&mut stream).await, hello("plain"));
}

#[tokio::test]
async fn what_is_no_client_hello_is_not_passed_on() {
    let world = start().await;
    let upstream = upstream(&world, "one").await;
    world.apply(&[("stream_routes/1", passing(json!(["*"]), &upstream))]).await;
    let client = client(&world, PASS, "pass.test", &world.credentials.upstreams);
    let hello = raw::client_hello(client.config(), client.server_name());
    // Without the SNI's first byte: two readers may disagree.
    let mut broken = hello.clone();
    let at = broken.windows(9).position(|window| window == b"pass.test").unwrap();
    broken[at - 1] = 8;
    for listener in [PASS, BY_ROUTE] {
        for bytes in [&b"mmm"[..], b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\0\x04\x02\0\0\0", &broken] {
            let mut stream = raw::send(world.stream(listener), bytes).await;
            assert_eq!(raw::until_closed(&mut stream).await, b"", "{bytes:?}");
        }
        let mut half = raw::send(world.stream(listener), &hello[..hello.len() / 2]).await;
        half.shutdown().await.unwrap();
        assert_eq!(raw::until_closed(&mut half).await, b"");
        let mut slow = raw::send(world.stream(listener), &hello[..20]).await;
        assert_eq!(raw::until_closed(&mut slow).await, b"");
    }
    for (reason, count) in
        [("bad_handshake", 6), ("plain_http", 2), ("handshake_abandoned", 2), ("handshake_timeout", 2)]
    {
        assert_eq!(errors(&world, reason).await, count, "{reason}");
    }
    assert_eq!(upstream.connections(), 0);
}

/// The PROXY protocol before and behind, around TLS that nobody opens.
#[tokio::test]
async fn a_proxy_header_goes_around_the_tls() {
    let settings = json!({
        "apisix": {"proxy_mode": "http&stream", "stream_proxy": {"tcp": [
            {"addr": "127.0.0.1:0", "tls": true, "tls_passthrough": true,
             "proxy_protocol": true, "proxy_protocol_to_upstream": "v2"},
        ]}},
        "nginx_config": {"stream": {"real_ip_from": ["127.0.0.1"]}},
    });
    let world = World::builder().settings(settings).start().await;
    let server = world.credentials.upstreams.server(&["pass.test"]);
    let pem = world.write("behind.pem", &format!("{}{}", server.certificate_pem, server.key_pem));
    let config = |at: &[SocketAddr]| {
        format!(
            "defaults\n  mode http\n  timeout connect 5s\n  timeout client 5s\n  timeout server 5s\n\
             frontend behind\n  bind {} accept-proxy ssl crt {}\n  \
             http-request return status 200 content-type text/plain lf-string \"%[src]:%[src_port] %[ssl_fc_sni]\"",
            at[0],
            pem.display()
        )
    };
    let Some(haproxy) = Peer::haproxy(world.folder(), 1, config).await else { return };
    let route = json!({"snis": ["pass.test"], "tls_passthrough": true, "upstream": to(&[haproxy.address()])});
    world.apply(&[("stream_routes/1", route)]).await;
    let client = client(&world, 0, "pass.test", &world.credentials.upstreams);
    let header = b"PROXY TCP6 2001:db8::7 2001:db8::1 4711 443\r\n";
    let tcp = raw::send(world.stream(0), header).await;
    let connector = TlsConnector::from(Arc::new(client.config()));
    let mut stream = bounded("handshake", connector.connect(client.server_name(), tcp)).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let answer = String::from_utf8(raw::until_closed(&mut stream).await).unwrap();
    assert!(answer.ends_with("\r\n\r\n2001:db8::7:4711 pass.test"), "{answer}");
}
