//! The PROXY protocol on listeners and towards upstreams: whose header counts, what becomes of a
//! connection without one, and HAProxy and nginx as peers on both sides.

use std::net::SocketAddr;
use std::sync::Arc;

use e2e::client::{HttpClient, bounded};
use e2e::peers::Peer;
use e2e::raw::{self, Split};
use e2e::upstream::tcp::{Script, TcpUpstream};
use e2e::world::World;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::stream::{hello, reply, to};

const CLIENT: &str = "198.51.100.7";

/// A header of version 1 from [`CLIENT`].
fn v1() -> Vec<u8> {
    format!("PROXY TCP4 {CLIENT} 192.0.2.1 56324 443\r\n").into_bytes()
}

/// A header of version 2 from [`CLIENT`], with a TLV behind the addresses.
fn v2() -> Vec<u8> {
    let addresses = [198, 51, 100, 7, 192, 0, 2, 1, 0xdc, 4, 1, 0xbb];
    [b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x11".as_slice(), &addresses, &[4, 0, 2, 0, 0]].concat()
}

/// Two stream listeners, without TLS and with it, that both read a header.
fn reading(trusted: &[&str]) -> Value {
    json!({
        "apisix": {
            "proxy_mode": "http&stream",
            "proxy_protocol": {"enable_tcp_pp": true},
            "stream_proxy": {"tcp": ["127.0.0.1:0", {"addr": "127.0.0.1:0", "tls": true}]},
        },
        "nginx_config": {"stream": {"real_ip_from": trusted}},
    })
}

/// A world whose routes tell [`CLIENT`] (`named`) from everybody else (`direct`).
async fn world_with(settings: Value) -> (World, [TcpUpstream; 2]) {
    let world = World::builder().settings(settings).start().await;
    let upstreams =
        [TcpUpstream::plain("named", Script::Greet).await, TcpUpstream::plain("direct", Script::Greet).await];
    let [named, direct] = [0, 1].map(|nth: usize| to(&[upstreams[nth].address()]));
    world
        .apply(&[
            ("ssls/app", world.open_site()),
            ("stream_routes/1", json!({"remote_addr": CLIENT, "upstream": named})),
            ("stream_routes/2", json!({"upstream": direct})),
        ])
        .await;
    (world, upstreams)
}

/// The answer to a client of the plain listener that begins with `header`.
async fn ask(world: &World, header: &[u8]) -> String {
    reply(&mut raw::send(world.stream(0), header).await).await
}

async fn handshake(client: &HttpClient, tcp: TcpStream) -> TlsStream<TcpStream> {
    let connector = TlsConnector::from(Arc::new(client.config()));
    bounded("handshake", connector.connect(client.server_name(), tcp)).await.unwrap()
}

/// The answer to a client of the TLS listener that begins with `header`.
async fn ask_tls(world: &World, header: &[u8]) -> String {
    let tcp = raw::send(world.stream(1), header).await;
    reply(&mut handshake(&world.tcp_client("app.test"), tcp).await).await
}

async fn headers(world: &World, trusted: bool) -> u64 {
    world.metric(&format!("countersign_proxy_protocol_headers_total{{trusted=\"{trusted}\"}}")).await
}

async fn refused(world: &World) -> u64 {
    world.metric("countersign_errors_total{reason=\"bad_proxy_protocol\"}").await
}

#[tokio::test]
async fn a_trusted_header_names_the_client_of_a_stream() {
    let (world, _upstreams) = world_with(reading(&["127.0.0.0/8"])).await;
    for header in [v1(), v2()] {
        assert_eq!(ask(&world, &header).await, hello("named"));
        assert_eq!(ask_tls(&world, &header).await, hello("named"));
    }
    // These name nobody: the peer is the client.
    for header in [
        &b"PROXY UNKNOWN\r\n"[..],
        b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0",
        b"PROXY TCP4 203.0.113.9 192.0.2.1 1 443\r\n",
    ] {
        assert_eq!(ask(&world, header).await, hello("direct"));
        assert_eq!(ask_tls(&world, header).await, hello("direct"));
    }
    assert_eq!((headers(&world, true).await, headers(&world, false).await), (10, 0));
    // Byte by byte, with the client's own bytes right behind.
    for header in [v1(), v2()] {
        let bytes = [header.as_slice(), b"mmm"].concat();
        let tcp = TcpStream::connect(world.stream(0)).await.unwrap();
        tcp.set_nodelay(true).unwrap();
        let mut stream = Split::each_byte(tcp, bytes.len());
        stream.write_all(&bytes).await.unwrap();
        assert_eq!(String::from_utf8(raw::until_closed(&mut stream).await).unwrap(), hello("named"));
    }
}

/// nginx reads the header of an untrusted peer, too: its bytes would be the client's otherwise.
#[tokio::test]
async fn an_untrusted_header_is_read_and_ignored() {
    for trusted in [&[][..], &["203.0.113.0/24"]] {
        let (world, _upstreams) = world_with(reading(trusted)).await;
        for header in [v1(), v2()] {
            assert_eq!(ask(&world, &header).await, hello("direct"));
            assert_eq!(ask_tls(&world, &header).await, hello("direct"));
        }
        assert_eq!((headers(&world, true).await, headers(&world, false).await), (0, 4));
    }
}

#[tokio::test]
async fn a_connection_without_a_header_is_closed() {
    let (world, upstreams) = world_with(reading(&["127.0.0.1"])).await;
    let hello =
        raw::client_hello(world.tcp_client("app.test").config(), world.tcp_client("app.test").server_name());
    let bad: [&[u8]; 6] = [
        &hello,
        b"mmm",
        b"PROXY TCP4 1.2.3.4\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff",
        b"PROXY UNKNOWN",
        &[b'P'; 200],
    ];
    for bytes in bad {
        for listener in [0, 1] {
            let mut stream = raw::send(world.stream(listener), bytes).await;
            // The end of a header that is incomplete.
            let _ = stream.shutdown().await;
            assert_eq!(raw::until_closed(&mut stream).await, b"", "{bytes:?}");
        }
    }
    assert_eq!(refused(&world).await, 12);
    let words = ["connection rejected", "bad_proxy_protocol", "peer=127.0.0.1:"];
    world.node_log().lines_with(&words, 12).await;
    // A health check of the proxy in front is no error.
    for listener in [0, 1] {
        let mut stream = raw::send(world.stream(listener), b"").await;
        stream.shutdown().await.unwrap();
        assert_eq!(raw::until_closed(&mut stream).await, b"");
    }
    assert_eq!(refused(&world).await, 12);
    assert_eq!(upstreams.iter().map(TcpUpstream::connections).sum::<usize>(), 0);
}

#[tokio::test]
async fn a_header_that_does_not_end_is_timed_out() {
    let mut settings = reading(&["127.0.0.1"]);
    settings["countersign"] = json!({"limits": {"handshake_timeout": 1}});
    let (world, _upstreams) = world_with(settings).await;
    for bytes in [&b""[..], b"PROXY TCP4 "] {
        let mut stream = raw::send(world.stream(0), bytes).await;
        assert_eq!(raw::until_closed(&mut stream).await, b"");
    }
    world.node_log().lines_with(&["connection rejected", "handshake_timeout"], 2).await;
}

/// The upstream gets the client's header first, whoever speaks first, and before TLS.
#[tokio::test]
async fn an_upstream_gets_the_clients_header() {
    let settings = json!({
        "apisix": {
            "proxy_mode": "http&stream",
            "proxy_protocol": {"enable_tcp_pp_to_upstream": "v2"},
            "stream_proxy": {"tcp": [
                {"addr": "127.0.0.1:0", "proxy_protocol": true, "proxy_protocol_to_upstream": true},
                {"addr": "127.0.0.1:0", "proxy_protocol_to_upstream": false},
                "127.0.0.1:0",
            ]},
        },
        "nginx_config": {"stream": {"real_ip_from": ["127.0.0.1"]}},
    });
    let world = World::builder().settings(settings).start().await;
    let echo = TcpUpstream::plain("echo", Script::Echo).await;
    world.apply(&[("stream_routes/1", json!({"upstream": to(&[echo.address()])}))]).await;
    let received = async |listener: usize, sent: &[u8]| {
        let mut stream = raw::send(world.stream(listener), sent).await;
        let client = stream.local_addr().unwrap();
        stream.shutdown().await.unwrap();
        (raw::until_closed(&mut stream).await, client)
    };
    let local = world.stream(0);
    let line = format!("PROXY TCP4 {CLIENT} 127.0.0.1 56324 {}\r\n", local.port());
    assert_eq!(received(0, &v1()).await.0, line.as_bytes());
    assert_eq!(received(0, &[v2(), b"more".to_vec()].concat()).await.0, format!("{line}more").as_bytes());
    // The proxy's own connection.
    let (bytes, proxy) = received(0, b"PROXY UNKNOWN\r\n").await;
    let line = format!("PROXY TCP4 127.0.0.1 127.0.0.1 {} {}\r\n", proxy.port(), local.port());
    assert_eq!(bytes, line.as_bytes());
    assert_eq!(received(1, b"only this").await.0, b"only this");
    let (bytes, client) = received(2, b"").await;
    let ports = [client.port().to_be_bytes(), world.stream(2).port().to_be_bytes()].concat();
    let expected =
        [b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".as_slice(), &[127, 0, 0, 1, 127, 0, 0, 1], &ports].concat();
    assert_eq!(bytes, expected);
}

// === HTTP ===

/// The listener of `listen_http_port` and that of `listen_https_port`, which are bound to every
/// address.
fn http_ports(world: &World) -> [SocketAddr; 2] {
    ["http", "https"].map(|name| {
        let listed = world.node_ready()[name].as_array().unwrap().last().unwrap();
        let listed: SocketAddr = listed.as_str().unwrap().parse().unwrap();
        SocketAddr::from(([127, 0, 0, 1], listed.port()))
    })
}

fn on_http(header: &str, trusted: &str) -> Value {
    json!({
        "apisix": {"proxy_protocol": {"listen_http_port": 0, "listen_https_port": 0}},
        "nginx_config": {"http": {"real_ip_header": header, "real_ip_from": [trusted]}},
    })
}

/// The headers that the upstream received from a client of both ports.
async fn forwarded(world: &World, header: &[u8], more: &str) -> [Value; 2] {
    let request = format!("GET / HTTP/1.1\r\nHost: app.test\r\nConnection: close\r\n{more}\r\n");
    let [http, https] = http_ports(world);
    let mut plain = raw::send(http, header).await;
    plain.write_all(request.as_bytes()).await.unwrap();
    let mut tls = handshake(&world.client("app.test"), raw::send(https, header).await).await;
    tls.write_all(request.as_bytes()).await.unwrap();
    [raw::until_closed(&mut plain).await, raw::until_closed(&mut tls).await].map(|answer| {
        let answer = String::from_utf8(answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer}"));
        assert!(head.starts_with("HTTP/1.1 200"), "{answer}");
        serde_json::from_str::<Value>(body).unwrap()["headers"].take()
    })
}

#[tokio::test]
async fn a_trusted_header_names_the_client_of_requests() {
    let (world, _upstream) = World::open(on_http("proxy_protocol", "127.0.0.1")).await;
    // Who passes on bytes does not vouch for the header fields in them.
    let spoofed = "X-Real-IP: 6.6.6.6\r\nTrue-Client-IP: 6.6.6.6\r\n";
    for header in [v1(), v2()] {
        for seen in forwarded(&world, &header, spoofed).await {
            assert_eq!((&seen["x-real-ip"], &seen["x-forwarded-for"]), (&json!(CLIENT), &json!(CLIENT)));
            assert_eq!(seen["true-client-ip"], Value::Null);
        }
    }
    for seen in forwarded(&world, b"PROXY UNKNOWN\r\n", spoofed).await {
        assert_eq!(seen["x-real-ip"], "127.0.0.1");
    }
    // The other ports read no header.
    let answer = world.client("app.test").get("/").await.unwrap().json();
    assert_eq!(answer["headers"]["x-real-ip"], "127.0.0.1");
    let mut stream = raw::send(world.http(), &v1()).await;
    let answer = String::from_utf8(raw::until_closed(&mut stream).await).unwrap();
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    // HTTP/2 with prior knowledge behind a header.
    let [http, _] = http_ports(&world);
    let mut stream =
        raw::send(http, &[v2(), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec()].concat())
            .await;
    let mut frame = [0; 9];
    bounded("the settings of the gateway", stream.read_exact(&mut frame)).await.unwrap();
    assert_eq!(frame[3], 4, "a SETTINGS frame");
    // No answer to what is no header, not even an error page.
    for port in http_ports(&world) {
        let mut stream = raw::send(port, b"GET / HTTP/1.1\r\nHost: app.test\r\n\r\n").await;
        assert_eq!(raw::until_closed(&mut stream).await, b"");
    }
    assert_eq!(refused(&world).await, 2);
}

/// With another `real_ip_header`, and from an untrusted peer, the address in it does not count.
#[tokio::test]
async fn an_untrusted_header_names_no_client_of_requests() {
    for (header, trusted, expected) in
        [("X-Real-IP", "127.0.0.1", "203.0.113.9"), ("proxy_protocol", "203.0.113.0/24", "127.0.0.1")]
    {
        let (world, _upstream) = World::open(on_http(header, trusted)).await;
        for seen in forwarded(&world, &v1(), "X-Real-IP: 203.0.113.9\r\n").await {
            assert_eq!(seen["x-real-ip"], expected, "{header} {trusted}");
        }
    }
}

/// A proxy of TCP connections in `trusted_addresses` does not vouch for what its clients write.
#[tokio::test]
async fn a_named_client_has_its_own_trust() {
    let world_of = async |trusted: &str| {
        let mut settings = on_http("proxy_protocol", "127.0.0.1");
        settings["apisix"]["trusted_addresses"] = json!([trusted]);
        World::open(settings).await
    };
    let forged = "X-Forwarded-Host: forged.test\r\n";
    for (trusted, passes) in [("127.0.0.1", false), (CLIENT, true)] {
        let (world, _upstream) = world_of(trusted).await;
        for seen in forwarded(&world, &v2(), forged).await {
            assert_eq!(seen["x-forwarded-host"] == "forged.test", passes, "{trusted}: {seen}");
        }
    }
    // Who names no client speaks for itself.
    let (world, _upstream) = world_of("127.0.0.1").await;
    for seen in forwarded(&world, b"PROXY UNKNOWN\r\n", forged).await {
        assert_eq!(seen["x-forwarded-host"], "forged.test");
    }
}

// === peers ===

/// How HAProxy names the client to the gateway; every other one goes to the second listener.
const FRONTS: [&str; 4] = ["send-proxy", "send-proxy-v2", "send-proxy-v2-ssl-cn", "send-proxy"];

/// HAProxy in front (both versions, with its TLVs about TLS), the gateway, HAProxy behind.
#[tokio::test]
async fn haproxy_before_and_behind_sees_the_client() {
    let settings = json!({
        "apisix": {
            "proxy_mode": "http&stream",
            "proxy_protocol": {"enable_tcp_pp": true},
            "stream_proxy": {"tcp": [
                {"addr": "127.0.0.1:0", "proxy_protocol_to_upstream": "v1"},
                {"addr": "127.0.0.1:0", "proxy_protocol_to_upstream": "v2"},
            ]},
        },
        "nginx_config": {"stream": {"real_ip_from": ["127.0.0.1"]}},
    });
    let world = World::builder().settings(settings).start().await;
    let server = world.credentials.upstreams.server(&["apisix_backend"]);
    let pem = world.write("behind.pem", &format!("{}{}", server.certificate_pem, server.key_pem));
    let gateways = [0, 1].map(|nth| world.stream(nth));
    let config = |at: &[SocketAddr]| {
        let mut config = format!(
            "defaults\n  timeout connect 5s\n  timeout client 5s\n  timeout server 5s\n\
             frontend behind\n  mode http\n  bind {} accept-proxy\n  bind {} accept-proxy ssl crt {}\n  \
             http-request return status 200 content-type text/plain lf-string \"%[src]:%[src_port] to %[dst_port]\"\n",
            at[0],
            at[1],
            pem.display()
        );
        for (nth, send) in FRONTS.iter().enumerate() {
            let (front, gateway) = (at[nth + 2], gateways[nth % 2]);
            config.push_str(&format!(
                "listen front{nth}\n  mode tcp\n  bind {front}\n  server gateway {gateway} {send}\n"
            ));
        }
        config
    };
    let Some(haproxy) = Peer::haproxy(world.folder(), 2 + FRONTS.len(), config).await else { return };
    for (scheme, node) in [("tcp", 0), ("tls", 1)] {
        let node = haproxy.address_of(node).to_string();
        let upstream = json!({"scheme": scheme, "type": "roundrobin", "nodes": {node: 1}});
        world.apply(&[("stream_routes/1", json!({"upstream": upstream}))]).await;
        for (nth, send) in FRONTS.iter().enumerate() {
            let tcp = TcpStream::connect(haproxy.address_of(nth + 2)).await.unwrap();
            let client = tcp.local_addr().unwrap();
            let port = gateways[nth % 2].port();
            assert_eq!(get(tcp).await, format!("{client} to {port}"), "{scheme} {send}");
        }
    }
}

/// nginx behind, as an HTTP server whose listener reads the header.
#[tokio::test]
async fn nginx_behind_sees_the_client() {
    let mut settings = reading(&["127.0.0.1"]);
    settings["apisix"]["proxy_protocol"]["enable_tcp_pp_to_upstream"] = json!(true);
    let world = World::builder().settings(settings).start().await;
    let server = |at: &[SocketAddr]| {
        let answer = "return 200 '$proxy_protocol_addr:$proxy_protocol_port';";
        format!("server {{ listen {} proxy_protocol; location / {{ {answer} }} }}", at[0])
    };
    let Some(nginx) = Peer::nginx(world.folder(), 1, server).await else { return };
    world.apply(&[("stream_routes/1", json!({"upstream": to(&[nginx.address()])}))]).await;
    for header in [v1(), v2()] {
        assert_eq!(get(raw::send(world.stream(0), &header).await).await, format!("{CLIENT}:56324"));
    }
}

/// The body of the response to a GET on this connection.
async fn get(mut stream: TcpStream) -> String {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let answer = String::from_utf8(raw::until_closed(&mut stream).await).unwrap();
    let (_, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer}"));
    body.to_owned()
}
