//! The client's address behind proxies, and claims in request headers: raw requests from several
//! local addresses, and an upstream that reports the headers it received.

use std::net::SocketAddr;

use e2e::client::{Http, bounded, full};
use e2e::ports::Reservation;
use e2e::process::run_to_end;
use e2e::raw;
use e2e::upstream::Upstream;
use e2e::world::World;
use http::Method;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};

/// A client that no trust setting lists.
const UNTRUSTED: &str = "127.0.0.1";
/// A proxy in `real_ip_from`.
const PROXY: &str = "127.0.0.2";
/// A proxy in `trusted_addresses`.
const TRUSTED: &str = "127.0.0.3";

async fn connect(world: &World, from: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(format!("{from}:0").parse().unwrap()).unwrap();
    bounded("the gateway accepts", socket.connect(world.http())).await.unwrap()
}

/// Sends the lines of a request head unchanged and reads the whole response.
async fn ask(world: &World, from: &str, path: &str, lines: &str) -> String {
    let mut stream = connect(world, from).await;
    let head = format!("GET {path} HTTP/1.1\r\nHost: app.test:8080\r\nConnection: close\r\n{lines}\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    String::from_utf8(raw::until_closed(&mut stream).await).unwrap()
}

fn body(answer: &str) -> Value {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer}"));
    assert!(head.starts_with("HTTP/1.1 200"), "{answer}");
    serde_json::from_str(body).unwrap_or_else(|_| panic!("{answer}"))
}

/// The headers that the upstream received.
async fn seen(world: &World, from: &str, lines: &str) -> Value {
    body(&ask(world, from, "/", lines).await)["headers"].take()
}

async fn world_with(settings: Value) -> (World, Upstream) {
    let world = World::builder().settings(settings).start().await;
    let upstream = Upstream::plain("echo").await;
    world
        .apply(&[(
            "routes/all",
            json!({"uri": "/*", "upstream": {"nodes": {upstream.address().to_string(): 1}}}),
        )])
        .await;
    (world, upstream)
}

fn real_ip(header: &str, recursive: &str) -> Value {
    json!({"nginx_config": {"http": {
        "real_ip_header": header, "real_ip_from": [format!("{PROXY}/32"), "unix:"], "real_ip_recursive": recursive,
    }}})
}

#[tokio::test]
async fn routes_variables_headers_and_logs_use_the_real_ip() {
    let (world, upstream) = world_with(real_ip("X-Forwarded-For", "on")).await;
    let to = |more: Value| {
        let mut document = json!({"upstream": {"nodes": {upstream.address().to_string(): 1}}});
        document.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        document
    };
    let template = "$remote_addr|$remote_port|$realip_remote_addr";
    world
        .apply(&[
            ("routes/net", to(json!({"uri": "/net", "remote_addrs": ["192.0.2.0/24"]}))),
            (
                "routes/vars",
                to(json!({"uri": "/vars", "vars": [["remote_addr", "ipmatch", ["192.0.2.0/24"]]]})),
            ),
            (
                "routes/forwarded",
                to(json!({
                    "uri": "/forwarded", "plugins": {"proxy-rewrite": {"headers": {"set": {"X-Address": template}}}},
                })),
            ),
            ("routes/all", to(json!({"uri": "/elsewhere"}))),
        ])
        .await;
    let client = "X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-For: 192.0.2.7, 127.0.0.2\r\n";
    let elsewhere = "X-Forwarded-For: 192.0.2.7, 198.51.100.1\r\n";
    for path in ["/net", "/vars"] {
        for (from, lines, found) in [
            (PROXY, client, true),
            (PROXY, elsewhere, false),
            (PROXY, "X-Forwarded-For: unknown\r\n", false),
            (PROXY, "X-Real-IP: 192.0.2.7\r\n", false),
            (PROXY, "X_Forwarded_For: 192.0.2.7\r\n", false),
            (PROXY, "", false),
            (UNTRUSTED, client, false),
        ] {
            let answer = ask(&world, from, path, lines).await;
            let status = if found { "HTTP/1.1 200" } else { "HTTP/1.1 404" };
            assert!(answer.starts_with(status), "{path} {from} {lines}: {answer}");
        }
    }
    let headers = body(&ask(&world, PROXY, "/forwarded", client).await)["headers"].take();
    assert_eq!(headers["x-address"], format!("192.0.2.7||{PROXY}"));
    assert_eq!(headers["x-real-ip"], "192.0.2.7");
    assert_eq!(headers["x-forwarded-for"], "6.6.6.6, 192.0.2.7, 127.0.0.2, 192.0.2.7");
    let headers =
        body(&ask(&world, PROXY, "/forwarded", "X-Forwarded-For: [2001:db8::7]:443\r\n").await)["headers"]
            .take();
    assert_eq!(headers["x-address"], format!("2001:db8::7|443|{PROXY}"));
    let headers = body(&ask(&world, UNTRUSTED, "/forwarded", client).await)["headers"].take();
    assert_eq!(headers["x-real-ip"], UNTRUSTED);

    ask(&world, PROXY, "/nowhere", "X-Forwarded-For: 203.0.113.5\r\n").await;
    world.node_log().line_with(&["no_route", "203.0.113.5 via 127.0.0.2:"]).await;
}

#[tokio::test]
async fn each_request_of_a_connection_has_its_own_real_ip() {
    let (world, _upstream) = world_with(real_ip("X-Real-IP", "off")).await;
    let mut stream = connect(&world, PROXY).await;
    let head = |line: &str| format!("GET / HTTP/1.1\r\nHost: a\r\n{line}\r\n");
    let last = "Connection: close\r\nX-Real-IP: 192.0.2.2\r\n";
    let all = [head("X-Real-IP: 192.0.2.1\r\n"), head(""), head(last)].concat();
    stream.write_all(all.as_bytes()).await.unwrap();
    let answers = String::from_utf8(raw::until_closed(&mut stream).await).unwrap();
    let found: Vec<&str> = answers
        .match_indices("\"x-real-ip\":\"")
        .map(|(at, name)| answers[at + name.len()..].split('"').next().unwrap())
        .collect();
    assert_eq!(found, ["192.0.2.1", PROXY, "192.0.2.2"], "{answers}");
}

#[tokio::test]
async fn the_real_ip_is_used_over_tls_and_h2() {
    let mut settings = real_ip("CF-Connecting-IP", "off");
    settings["nginx_config"]["http"]["real_ip_from"] = json!(["127.0.0.0/8"]);
    let (world, upstream) = world_with(settings).await;
    world.serve(world.open_site(), &upstream).await;
    for http in [Http::One, Http::Two] {
        let mut session = world.client("app.test").http(http).connect().await.unwrap();
        let mut request = session.request(Method::GET, "/", full(""));
        request.headers_mut().insert("cf-connecting-ip", "192.0.2.7".parse().unwrap());
        let headers = session.fetch(request).await.unwrap().json()["headers"].take();
        assert_eq!(
            (&headers["x-real-ip"], &headers["x-forwarded-for"]),
            (&json!("192.0.2.7"), &json!("192.0.2.7"))
        );
        assert_eq!(headers["cf-connecting-ip"], "192.0.2.7", "a proxy of real_ip_from may name an address");
    }
}

#[tokio::test]
async fn by_default_no_peer_sets_the_real_ip() {
    let (world, _upstream) = world_with(json!({})).await;
    let headers = seen(&world, UNTRUSTED, "X-Real-IP: 192.0.2.7\r\nX-Forwarded-For: 192.0.2.8\r\n").await;
    assert_eq!(headers["x-real-ip"], UNTRUSTED);
    assert_eq!(headers["x-forwarded-for"], format!("192.0.2.8, {UNTRUSTED}"));
}

#[tokio::test]
async fn invalid_real_ip_settings_fail_the_start() {
    let (world, _upstream) = world_with(json!({})).await;
    for (http, message) in [
        (json!({"real_ip_header": "proxy protocol"}), "expected the name of a header"),
        (json!({"real_ip_from": ["lb.example"]}), "names are not looked up"),
        (json!({"real_ip_recursive": "maybe"}), "expected on or off"),
    ] {
        let path = world.write("real-ip.yaml", &json!({"nginx_config": {"http": http}}).to_string());
        for program in ["controlplane", "dataplane"] {
            let check = if program == "controlplane" { &["check", "-c"][..] } else { &["-c"] };
            let arguments = [check, &[path.to_str().unwrap()]].concat();
            let ended = run_to_end(program, &arguments, world.folder()).await;
            let text = format!("{}{}", ended.stdout, ended.stderr);
            assert!(!ended.status.success() && text.contains(message), "{program} {http}: {text}");
        }
    }
}

/// Identity claims of every kind, in the spellings of raw clients.
const FORGED: &str = "X-ARR-ClientCert: forged\r\nX-Forwarded-Cert: forged\r\nX-Forwarded-SSL-Client-Cert: forged\r\n\
    X-Forwarded-SSL-Client-S-DN: forged\r\nCf-Client-Cert-Der-Base64: forged\r\nCf-Client-Cert-Sha256: forged\r\n\
    Remote-User: forged\r\nREMOTE_USER: forged\r\nX-Remote-User: forged\r\nX.Remote.User: forged\r\nX-Forwarded-User: forged\r\n\
    X-SSL-Client-Verify: forged\r\nX_SSL_Client_S_DN: forged\r\nSSL_CLIENT_S_DN: forged\r\nX-Amzn-Mtls-Clientcert: forged\r\n\
    X-Client-Cert-Present: forged\r\nX-Consumer-Username: forged\r\n$WSCC: forged\r\n$WSRU: forged\r\n";
/// Address and scheme headers, which a trusted proxy may send.
const ADDRESSES: &str = "True-Client-IP: forged\r\nCF_Connecting_IP: forged\r\nX-Client-IP: forged\r\n\
    X-Original-Forwarded-For: forged\r\nX-Azure.ClientIP: forged\r\n";
/// Headers that the gateway sets, in other spellings.
const SPELT: &str = "X_Forwarded_For: forged\r\nX-Forwarded_For: forged\r\nX-Real_IP: forged\r\nX.Real.IP: forged\r\n\
    X_Forwarded_Proto: forged\r\nX-Forwarded_Host: forged\r\nX~Forwarded~Port: forged\r\nContent_Length: forged\r\n\
    Transfer_Encoding: forged\r\n";

#[tokio::test]
async fn client_claims_reach_no_upstream() {
    let (world, upstream) = world_with(json!({"apisix": {"trusted_addresses": [TRUSTED]}})).await;
    for lines in [FORGED, ADDRESSES, SPELT] {
        let headers = seen(&world, UNTRUSTED, lines).await;
        assert!(!headers.to_string().contains("forged"), "{headers:#}");
    }
    // A trusted proxy may send addresses but no identities, in one spelling only.
    for lines in [FORGED, SPELT] {
        let headers = seen(&world, TRUSTED, lines).await;
        assert!(!headers.to_string().contains("forged"), "{headers:#}");
    }
    let headers = seen(&world, TRUSTED, ADDRESSES).await;
    assert_eq!(headers.to_string().matches("forged").count(), 5, "{headers:#}");

    // The client cannot supply headers that the route sets, nor hide them by `Connection`.
    let set = json!({"headers": {"set": {"Remote-User": "ours"}, "add": {"X-Seen-By": "$http_x_real_ip"}}});
    let nodes = json!({upstream.address().to_string(): 1});
    let document = json!({"uri": "/set", "upstream": {"nodes": nodes}, "plugins": {"proxy-rewrite": set}});
    world.apply(&[("routes/set", document)]).await;
    let listed = "Connection: close, Remote-User, X-Real-IP, X_Real_IP\r\n";
    let headers =
        body(&ask(&world, UNTRUSTED, "/set", &format!("{FORGED}{SPELT}{listed}")).await)["headers"].take();
    assert_eq!((&headers["remote-user"], &headers["x-seen-by"]), (&json!("ours"), &json!(UNTRUSTED)));
    assert!(!headers.to_string().contains("forged"), "{headers:#}");
}

#[tokio::test]
async fn ordinary_headers_reach_the_upstream() {
    let (world, _upstream) = world_with(json!({})).await;
    let lines = "Authorization: Basic YTpi\r\nX-User-Id: 7\r\nX-Auth-Token: t\r\nX_Odd.Name: o\r\nX-Client-Version: 1\r\n\
                 X-Access-Token: a\r\n";
    let headers = seen(&world, UNTRUSTED, lines).await;
    for (name, value) in [
        ("authorization", "Basic YTpi"),
        ("x-user-id", "7"),
        ("x-auth-token", "t"),
        ("x_odd.name", "o"),
        ("x-client-version", "1"),
        ("x-access-token", "a"),
    ] {
        assert_eq!(headers[name], value, "{headers:#}");
    }
}

#[tokio::test]
async fn a_trusted_peer_sends_its_headers_and_we_the_rest() {
    let (world, _upstream) = world_with(json!({"apisix": {"trusted_addresses": [TRUSTED]}})).await;
    let port = world.http().port().to_string();
    let theirs =
        [("X-Forwarded-Proto", "theirs"), ("X-Forwarded-Host", "theirs"), ("X-Forwarded-Port", "theirs")];
    let ours =
        [("x-forwarded-proto", "http"), ("x-forwarded-host", "app.test:8080"), ("x-forwarded-port", "8080")];
    for (name, value) in theirs {
        let headers = seen(&world, TRUSTED, &format!("{name}: {value}\r\n")).await;
        for (own, value) in ours {
            let wanted = if own == name.to_lowercase() { "theirs" } else { value };
            assert_eq!(headers[own], wanted, "{name}: {headers:#}");
        }
    }
    let headers = seen(
        &world,
        TRUSTED,
        "X-Forwarded-For: 192.0.2.7\r\nForwarded: for=192.0.2.7\r\nX-Forwarded-Host:\r\n",
    )
    .await;
    assert_eq!(headers["x-forwarded-for"], format!("192.0.2.7, {TRUSTED}"));
    assert_eq!(
        (&headers["forwarded"], &headers["x-forwarded-host"]),
        (&json!("for=192.0.2.7"), &json!("app.test:8080"))
    );
    let headers = seen(
        &world,
        UNTRUSTED,
        "X-Forwarded-For: 192.0.2.7\r\nX-Forwarded-Proto: forged\r\nForwarded: for=1\r\n",
    )
    .await;
    assert_eq!(
        (&headers["x-forwarded-for"], &headers["x-forwarded-proto"]),
        (&json!(UNTRUSTED), &json!("http"))
    );
    assert!(headers["forwarded"].is_null());

    // A Host without a port gets that of the listener.
    let mut stream = connect(&world, TRUSTED).await;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: app.test\r\nConnection: close\r\n\r\n").await.unwrap();
    let answer = String::from_utf8(raw::until_closed(&mut stream).await).unwrap();
    assert_eq!(body(&answer)["headers"]["x-forwarded-port"], port);
}

#[tokio::test]
async fn trust_depends_on_the_peer_not_on_the_real_ip() {
    let mut settings = real_ip("X-Forwarded-For", "off");
    settings["apisix"] = json!({"trusted_addresses": ["192.0.2.7"]});
    let (world, _upstream) = world_with(settings).await;
    let headers = seen(&world, PROXY, "X-Forwarded-For: 192.0.2.7\r\nX-Forwarded-Proto: forged\r\n").await;
    assert_eq!((&headers["x-real-ip"], &headers["x-forwarded-proto"]), (&json!("192.0.2.7"), &json!("http")));
    assert_eq!(headers["x-forwarded-for"], "192.0.2.7");
}

/// The status of a response, and its `X-APISIX-Upstream-Status`.
async fn upstream_status(world: &World, path: &str) -> (u16, Option<String>) {
    let reply = world.plain("app.test").await.get(path).await.unwrap();
    let shown = reply.headers.get("x-apisix-upstream-status").map(|value| value.to_str().unwrap().to_owned());
    (reply.status.as_u16(), shown)
}

#[tokio::test]
async fn the_statuses_of_all_attempts_are_reported() {
    for always in [false, true] {
        let (world, upstream) =
            world_with(json!({"apisix": {"show_upstream_status_in_response_header": always}})).await;
        let (gone, other) = (Reservation::any(), Reservation::any());
        let (gone, other) = (gone.address(), other.address());
        let in_turn = |nodes: [SocketAddr; 2]| {
            let node = |(at, node): (usize, SocketAddr)| json!({"host": node.ip().to_string(), "port": node.port(), "weight": 1, "priority": 1 - at});
            Value::from_iter(nodes.into_iter().enumerate().map(node))
        };
        let to = |uri: &str, nodes: Value| json!({"uri": uri, "upstream": {"nodes": nodes}});
        let mut slow = to("/slow/*", json!({upstream.address().to_string(): 1}));
        slow["upstream"]["timeout"] = json!({"connect": 30, "send": 30, "read": 0.3});
        world
            .apply(&[
                ("routes/gone", to("/gone", json!({gone.to_string(): 1}))),
                ("routes/both", to("/both", json!({gone.to_string(): 1, other.to_string(): 1}))),
                ("routes/then", to("/then/*", in_turn([gone, upstream.address()]))),
                ("routes/none", to("/none", json!([]))),
                ("routes/slow", slow),
            ])
            .await;
        let shown = |text: &str| Some(text.to_owned());
        let when = |text: &str| always.then(|| text.to_owned());
        for (path, status, wanted) in [
            ("/", 200, when("200")),
            ("/status?code=404", 404, when("404")),
            ("/status?code=503", 503, shown("503")),
            ("/gone", 502, shown("502")),
            ("/both", 502, shown("502, 502")),
            ("/then/status?code=200", 200, when("502, 200")),
            ("/then/status?code=500", 500, shown("502, 500")),
            ("/slow/hold", 504, shown("504")),
            ("/none", 503, None),
        ] {
            assert_eq!(upstream_status(&world, path).await, (status, wanted), "{path} always: {always}");
        }
    }
}
