//! APISIX's own cases for streams, by their numbers: E (client certificates), F (mutual TLS to the
//! upstream) and G (TLS, and routing by name). G4 and G5 are about secret references, which do not
//! exist here.
//!
//! Where APISIX resumes a session (E4, G6), this gateway makes a full handshake.

use std::process::Stdio;

use e2e::client::bounded;
use e2e::credentials::Credential;
use e2e::documents::{protected, site};
use e2e::upstream::Upstream;
use e2e::upstream::tcp::{Script, TcpUpstream};
use e2e::world::World;
use http::StatusCode;
use rustls::{AlertDescription, HandshakeKind};
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::stream::{ask, ask_plain, hello, rejected, streaming, streaming_with, to};

/// A site for each of these names, with one certificate for all.
fn sites(world: &World, names: &[&str]) -> Vec<Value> {
    let certificate = world.credentials.servers.server(names);
    names.iter().map(|name| site(&certificate, name)).collect()
}

/// Runs `openssl s_client` against the first stream listener.
async fn s_client(world: &World, arguments: &[&str]) -> String {
    let mut child = Command::new("openssl")
        .args(["s_client", "-quiet", "-connect", &world.stream(0).to_string()])
        .args(arguments)
        .current_dir(world.folder())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("openssl is installed");
    let mut stdin = child.stdin.take().expect("it was piped");
    // It may have been rejected before it reads this.
    let _ = stdin.write_all(b"mmm\n").await;
    let output = bounded("openssl ends", child.wait_with_output()).await.expect("a child can be waited for");
    drop(stdin);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

// === E: client certificates ===

/// The gateway's HTTP side is the client of its stream side, as in the case: gives its status, and
/// the record of the upstream behind the stream.
async fn looped(identity: impl Fn(&World) -> Option<Credential>) -> (StatusCode, u64, World) {
    let world = World::builder().settings(streaming()).start().await;
    let upstream = Upstream::plain("behind").await;
    let mut entry = to(&[world.stream(0)]);
    entry["scheme"] = json!("https");
    if let Some(client) = identity(&world) {
        entry["tls"] = json!({"client_cert": client.certificate_pem, "client_key": client.key_pem});
    }
    let localhost = sites(&world, &["localhost"]).remove(0);
    world
        .apply(&[
            ("ssls/1", protected(localhost, &world.credentials.clients)),
            ("stream_routes/1", json!({"upstream": to(&[upstream.address()])})),
            ("routes/1", json!({"uri": "/mtls", "upstream": entry})),
        ])
        .await;
    let status = world.plain("localhost").await.get("/mtls").await.unwrap().status;
    (status, upstream.connections(), world)
}

#[tokio::test]
async fn case_e01_a_client_with_its_certificate_reaches_the_upstream() {
    let (status, connections, _) = looped(|world| Some(world.credentials.client.clone())).await;
    assert_eq!((status, connections), (StatusCode::OK, 1));
}

#[tokio::test]
async fn case_e02_a_client_without_a_certificate_reaches_nothing() {
    let (status, connections, world) = looped(|_| None).await;
    assert_eq!((status, connections), (StatusCode::BAD_GATEWAY, 0));
    world.node_log().line_with(&["handshake rejected", "no_certificate", "sni=\"localhost\""]).await;
}

#[tokio::test]
async fn case_e03_an_untrusted_client_reaches_nothing() {
    let untrusted = |world: &World| Some(world.credentials.untrusted.client("untrusted"));
    let (status, connections, world) = looped(untrusted).await;
    assert_eq!((status, connections), (StatusCode::BAD_GATEWAY, 0));
    world.node_log().line_with(&["handshake rejected", "bad_certificate", "unknown_issuer"]).await;
}

#[tokio::test]
async fn case_e04_a_session_of_one_name_opens_no_other() {
    let world = World::builder().settings(streaming()).start().await;
    let upstream = TcpUpstream::plain("one", Script::Greet).await;
    let both = sites(&world, &["localhost", "test.com"]);
    world
        .apply(&[
            ("ssls/1", protected(both[0].clone(), &world.credentials.clients)),
            ("ssls/2", protected(both[1].clone(), &world.credentials.untrusted)),
            ("stream_routes/1", json!({"upstream": to(&[upstream.address()])})),
        ])
        .await;
    for version in ["-tls1_2", "-tls1_3"] {
        let session = format!("session{version}");
        let identity = ["-cert", "client.crt", "-key", "client.key", "-sess_out", &session];
        let heard = s_client(&world, &[&["-servername", "localhost", version][..], &identity].concat()).await;
        assert_eq!(heard, hello("one"), "{version}");
        let before = upstream.connections();
        let mut arguments = vec!["-servername", "test.com", version];
        if world.folder().join(&session).exists() {
            arguments.extend(["-sess_in", &session]);
        }
        assert_eq!(s_client(&world, &arguments).await, "", "{version}");
        assert_eq!(upstream.connections(), before, "{version}");
    }
    world.node_log().lines_with(&["handshake rejected", "no_certificate", "sni=\"test.com\""], 2).await;
}

// === F: mutual TLS to the upstream ===

/// The response to a plain client from an upstream that requires a certificate, with these
/// documents.
async fn demanded(documents: impl Fn(&World, Value) -> Vec<(&'static str, Value)>) -> (String, World) {
    let world = World::builder().settings(streaming()).start().await;
    let certificate = world.credentials.upstreams.server(&["up.test"]);
    let clients = &world.credentials.upstreams;
    let upstream = TcpUpstream::demanding("mtls upstream", Script::Greet, &certificate, clients).await;
    let mut entry = to(&[upstream.address()]);
    entry["scheme"] = json!("tls");
    world.apply(&documents(&world, entry)).await;
    let answer = ask_plain(&world).await;
    if !answer.is_empty() {
        assert_eq!(upstream.ended(0).await.client_subject.as_deref(), Some("CN=gateway"));
    }
    (answer, world)
}

fn with(mut upstream: Value, tls: Value) -> Value {
    upstream["tls"] = tls;
    upstream
}

fn inline(world: &World) -> Value {
    let gateway = world.credentials.upstreams.client("gateway");
    json!({"client_cert": gateway.certificate_pem, "client_key": gateway.key_pem})
}

#[tokio::test]
async fn case_f01_the_upstream_is_shown_its_client_certificate() {
    let (answer, world) = demanded(|world, upstream| {
        vec![
            ("upstreams/1", with(upstream, inline(world))),
            ("stream_routes/1", json!({"remote_addr": "127.0.0.1", "upstream_id": "1"})),
        ]
    })
    .await;
    assert_eq!(answer, hello("mtls upstream"));
    assert!(!world.node_log().text().contains("ERROR"), "{}", world.node_log().text());
}

#[tokio::test]
async fn case_f02_without_a_certificate_the_upstream_says_nothing() {
    let (answer, world) = demanded(|_, upstream| {
        vec![("upstreams/1", upstream), ("stream_routes/1", json!({"upstream_id": "1"}))]
    })
    .await;
    assert_eq!(answer, "");
    world
        .node_log()
        .line_with(&["TCP connection denied or failed", "upstream_tls", "certificate_required"])
        .await;
}

#[tokio::test]
async fn case_f03_the_certificate_may_be_an_ssl_of_type_client() {
    let (answer, _) = demanded(|world, upstream| {
        let gateway = world.credentials.upstreams.client("gateway");
        let ssl = json!({"type": "client", "cert": gateway.certificate_pem, "key": gateway.key_pem});
        vec![
            ("ssls/1", ssl),
            ("upstreams/1", with(upstream, json!({"client_cert_id": "1"}))),
            ("stream_routes/1", json!({"upstream_id": "1"})),
        ]
    })
    .await;
    assert_eq!(answer, hello("mtls upstream"));
}

#[tokio::test]
async fn case_f04_an_inline_certificate_has_its_key_sealed() {
    let (answer, world) = demanded(|world, upstream| {
        vec![("stream_routes/1", json!({"upstream": with(upstream, inline(world))}))]
    })
    .await;
    assert_eq!(answer, hello("mtls upstream"));
    let kept = world.admin().get("stream_routes/1").await.body;
    let key = kept["value"]["upstream"]["tls"]["client_key"].as_str().unwrap();
    assert!(!key.starts_with("---"), "{key}");
    let on_disk = std::fs::read(world.store()).unwrap();
    assert!(!String::from_utf8_lossy(&on_disk).contains("PRIVATE KEY"), "no key in clear in the store");
}

/// `upstream-tls.t` T2 and T4.
#[tokio::test]
async fn case_f_related_the_sni_is_the_clients_or_a_fixed_one() {
    let world = World::builder().settings(streaming()).start().await;
    let certificate = world.credentials.upstreams.server(&["up.test"]);
    let upstream = TcpUpstream::tls("tls", Script::Greet, &certificate).await;
    let mut entry = to(&[upstream.address()]);
    entry["scheme"] = json!("tls");
    world
        .apply(&[
            ("ssls/1", sites(&world, &["test.com"]).remove(0)),
            ("stream_routes/1", json!({"upstream": entry})),
        ])
        .await;
    assert_eq!(ask_plain(&world).await, hello("tls"));
    assert_eq!(ask(&world, "test.com").await, hello("tls"));
    let (plain, tls) = (upstream.ended(0).await, upstream.ended(1).await);
    assert_eq!((plain.sni.as_deref(), tls.sni.as_deref()), (Some("apisix_backend"), Some("test.com")));
    assert_eq!((plain.alpn, tls.alpn), (None, None), "a stream offers no protocol");
}

// === G: TLS, and routing by name ===

#[tokio::test]
async fn case_g01_to_g03_known_and_unknown_names() {
    let world = World::builder().settings(streaming()).start().await;
    let upstream = TcpUpstream::plain("one", Script::Greet).await;
    world
        .apply(&[
            ("ssls/1", sites(&world, &["test.com"]).remove(0)),
            ("stream_routes/1", json!({"upstream": to(&[upstream.address()])})),
        ])
        .await;
    assert_eq!(ask(&world, "test.com").await, hello("one"));
    assert_eq!(world.tcp_client("xx.com").expect_alert().await, AlertDescription::UnrecognisedName);
    world.node_log().line_with(&["no_site", "failed to match any SSL certificate by SNI", "xx.com"]).await;
    let nameless = world.tcp_client("test.com").no_sni();
    assert_eq!(nameless.expect_alert().await, AlertDescription::UnrecognisedName);
    world.node_log().line_with(&["no_sni", "failed to find SNI"]).await;
    assert_eq!(upstream.connections(), 1);
}

/// Three upstreams, named by numbers.
async fn numbered() -> [TcpUpstream; 4] {
    let start = |name| TcpUpstream::plain(name, Script::Greet);
    [start("1").await, start("2").await, start("3").await, start("4").await]
}

fn route(upstream: &TcpUpstream, more: Value) -> Value {
    let mut route = more;
    route["upstream"] = to(&[upstream.address()]);
    route
}

#[tokio::test]
async fn case_g06_to_g10_routes_by_name_then_address() {
    let world = World::builder().settings(streaming_with(json!({"ssl": {"fallback_sni": "a.test.com"}})));
    let world = world.start().await;
    let [one, two, three, four] = numbered().await;
    world
        .apply(&[
            ("ssls/1", sites(&world, &["*.test.com"]).remove(0)),
            ("stream_routes/1", route(&one, json!({"sni": "a.test.com"}))),
            ("stream_routes/2", route(&two, json!({"sni": "*.test.com"}))),
            ("stream_routes/3", route(&three, json!({}))),
        ])
        .await;
    // G6, and again where APISIX resumes the session.
    let client = world.tcp_client("a.test.com");
    let config = Arc::new(client.config());
    for _ in 0..2 {
        let mut stream = client.handshake_with(Arc::clone(&config)).await.unwrap();
        assert_eq!(crate::stream::reply(&mut stream).await, hello("1"));
        assert_eq!(stream.get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
    }
    assert_eq!(ask(&world, "b.test.com").await, hello("2"));
    assert_eq!(ask_plain(&world).await, hello("3"));
    // G7
    world
        .apply(&[
            ("stream_routes/1", route(&one, json!({"sni": "a.test.com", "remote_addr": "127.0.0.2"}))),
            ("stream_routes/4", route(&four, json!({"sni": "a.test.com", "remote_addr": "127.0.0.1"}))),
        ])
        .await;
    assert_eq!(ask(&world, "a.test.com").await, hello("4"));
    // G8
    let elsewhere = route(&four, json!({"sni": "a.test.com", "remote_addr": "127.0.0.3"}));
    world.apply(&[("stream_routes/4", elsewhere)]).await;
    assert_eq!(ask(&world, "a.test.com").await, hello("2"));
    // G9
    let mut nameless = world.tcp_client("a.test.com").no_sni().handshake().await.unwrap();
    assert_eq!(crate::stream::reply(&mut nameless).await, hello("2"));
    // G10
    let revision = world.admin().delete("stream_routes/2").await;
    world.wait_acknowledged(revision).await;
    assert_eq!(ask(&world, "b.test.com").await, hello("3"));
}

#[tokio::test]
async fn case_g11_a_catch_all_site_and_a_route_for_one_name() {
    let world = World::builder().settings(streaming()).start().await;
    let [one, ..] = numbered().await;
    let mut all = sites(&world, &["unknown-domain.com"]).remove(0);
    all["snis"] = json!(["*"]);
    let named = route(&one, json!({"sni": "unknown-domain.com"}));
    world.apply(&[("ssls/100", all), ("stream_routes/1", named)]).await;
    assert_eq!(ask(&world, "unknown-domain.com").await, hello("1"));
}

#[tokio::test]
async fn case_g12_the_exact_name_goes_before_a_wildcard() {
    let world = World::builder().settings(streaming()).start().await;
    let [one, two, ..] = numbered().await;
    let both = sites(&world, &["specific.api7.dev", "*.api7.dev"]);
    world
        .apply(&[
            ("ssls/1", both[0].clone()),
            ("ssls/2", both[1].clone()),
            ("stream_routes/1", route(&one, json!({"sni": "*.api7.dev"}))),
            ("stream_routes/2", route(&two, json!({"sni": "specific.api7.dev"}))),
        ])
        .await;
    assert_eq!(ask(&world, "specific.api7.dev").await, hello("2"));
    assert_eq!(ask(&world, "other.api7.dev").await, hello("1"));
}

#[tokio::test]
async fn case_g13_a_part_of_the_name_goes_before_the_catch_all() {
    let world = World::builder().settings(streaming()).start().await;
    let [one, two, ..] = numbered().await;
    let mut both = sites(&world, &["specific.api7.dev", "any.api7.dev"]);
    both[1]["snis"] = json!(["*"]);
    world
        .apply(&[
            ("ssls/1", both[0].clone()),
            ("ssls/2", both[1].clone()),
            ("stream_routes/1", route(&one, json!({"sni": "*"}))),
            ("stream_routes/2", route(&two, json!({"sni": "*.api7.dev"}))),
        ])
        .await;
    assert_eq!(ask(&world, "specific.api7.dev").await, hello("2"));
}

#[tokio::test]
async fn case_g14_openssl_hears_the_upstream() {
    let world = World::builder().settings(streaming()).start().await;
    let upstream = TcpUpstream::plain("UPSTREAM", Script::Greet).await;
    world
        .apply(&[
            ("ssls/1", sites(&world, &["test.com"]).remove(0)),
            ("stream_routes/1", json!({"upstream": to(&[upstream.address()])})),
        ])
        .await;
    assert_eq!(s_client(&world, &["-servername", "test.com"]).await, hello("UPSTREAM"));
    assert_eq!(s_client(&world, &["-servername", "test.com", "-alpn", "mqtt"]).await, hello("UPSTREAM"));
    rejected(&world, "other.com").await;
}
