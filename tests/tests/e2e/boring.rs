//! Sites with TLSv1.1, served by programs with the feature `engine-boring`: the same behaviour for
//! older clients.
//!
//! `make test-boring` builds the programs into a folder of their own and sets COUNTERSIGN_PROGRAMS;
//! without it these tests report that they were skipped. OpenSSL is the old client, because rustls
//! supports TLS 1.2 and later.

use std::io::Write as _;
use std::process::Stdio;

use e2e::client::{Http, HttpClient, Tls, full};
use e2e::credentials::Credential;
use e2e::documents::{protected, site};
use e2e::process::EVENT_TIMEOUT;
use e2e::raw;
use e2e::upstream::tcp::{Script, TcpUpstream};
use e2e::upstream::{Upstream, pattern, sha256};
use e2e::world::{World, WorldBuilder};
use http::{Method, StatusCode};
use rustls::{AlertDescription, ProtocolVersion};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use crate::stream::{hello, reply, streaming, to};

const ALL: [&str; 3] = ["TLSv1.1", "TLSv1.2", "TLSv1.3"];

/// `None`, with a message, if the programs lack the engine.
async fn world(test: &str, builder: WorldBuilder) -> Option<World> {
    if std::env::var_os("COUNTERSIGN_PROGRAMS").is_some() {
        return Some(builder.start().await);
    }
    let output =
        format!("skipped: boring::{test}: the programs are without BoringSSL; `make test-boring` has them\n");
    std::io::stderr().write_all(output.as_bytes()).expect("standard error is open");
    None
}

/// The document with these TLS versions.
fn speaking(mut site: Value, versions: &[&str]) -> Value {
    site["ssl_protocols"] = json!(versions);
    site
}

/// The output of `openssl s_client`, and whether the handshake succeeded.
struct OpensslOutput {
    text: String,
    shaken: bool,
}

/// Sends a request with OpenSSL in one TLS version (`-tls1_1`).
async fn old(
    world: &World,
    version: &str,
    sni: &str,
    identity: Option<&Credential>,
    request: &str,
) -> OpensslOutput {
    let mut command = tokio::process::Command::new("openssl");
    command
        .args(["s_client", "-connect", &world.https().to_string(), "-servername", sni, version])
        .args(["-cipher", "ALL:@SECLEVEL=0", "-ign_eof", "-CAfile"])
        .arg(world.folder().join("server-ca.crt"))
        .args(["-verify_return_error", "-verify", "3"]);
    if let Some(identity) = identity {
        let name = format!("old-{}", sha256(identity.certificate_pem.as_bytes()));
        world.write_credential(&name, identity);
        let certificate = world.folder().join(format!("{name}.crt"));
        // OpenSSL sends only the first certificate of the -cert file.
        command.arg("-cert").arg(&certificate).arg("-cert_chain").arg(certificate);
        command.arg("-key").arg(world.folder().join(format!("{name}.key")));
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().expect("openssl is installed");
    let mut stdin = child.stdin.take().expect("standard input is piped");
    let request = request.to_owned();
    let writing = tokio::spawn(async move {
        // A rejected client exits before it has read all of it.
        let _gone = stdin.write_all(request.as_bytes()).await;
        stdin
    });
    let output = tokio::time::timeout(EVENT_TIMEOUT, child.wait_with_output()).await;
    let output = output.expect("openssl ends").expect("openssl can be waited for");
    drop(writing.await);
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    OpensslOutput { shaken: text.contains("Verification: OK") && !text.contains("alert"), text }
}

fn get(path: &str, host: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
}

async fn everything(world: &World, sites: &[(&str, Value)]) -> Upstream {
    let upstream = Upstream::plain("plain").await;
    world.apply(sites).await;
    let all = json!({"uri": "/*", "upstream": {"nodes": {upstream.address().to_string(): 1}}});
    world.apply(&[("routes/all", all)]).await;
    upstream
}

async fn serves_old(world: &World, sni: &str) {
    let output = old(world, "-tls1_1", sni, None, &get("/hello", sni)).await;
    assert!(output.shaken && output.text.contains("HTTP/1.1 200"), "{}", output.text);
    assert!(output.text.contains("Protocol  : TLSv1.1"), "{}", output.text);
}

async fn serves(client: HttpClient, tls: Tls) {
    let reply = client.tls(tls).get("/hello").await.unwrap();
    assert_eq!(reply.status, StatusCode::OK);
}

#[tokio::test]
async fn sites_use_their_tls_versions_or_the_settings() {
    let settings = json!({"apisix": {"ssl": {"ssl_protocols": "TLSv1.1 TLSv1.2 TLSv1.3"}}});
    let Some(world) = world("each_site_speaks", World::builder().settings(settings)).await else { return };
    let names = ["any.test", "new.test", "newest.test", "oldest.test", "gap.test"];
    let certificate = world.credentials.servers.server(&names);
    let document = |name: &str| site(&certificate, name);
    let _upstream = everything(
        &world,
        &[
            ("ssls/1", document("any.test")),
            ("ssls/2", speaking(document("new.test"), &["TLSv1.2", "TLSv1.3"])),
            ("ssls/3", speaking(document("newest.test"), &["TLSv1.3"])),
            ("ssls/4", speaking(document("oldest.test"), &["TLSv1.1"])),
            ("ssls/5", speaking(document("gap.test"), &["TLSv1.1", "TLSv1.3"])),
        ],
    )
    .await;
    // Q1
    serves_old(&world, "any.test").await;
    serves(world.client("any.test"), Tls::V12).await;
    serves(world.client("any.test"), Tls::V13).await;
    // Q2
    serves(world.client("new.test"), Tls::V12).await;
    serves(world.client("new.test"), Tls::V13).await;
    let refused = old(&world, "-tls1_1", "new.test", None, "").await;
    assert!(!refused.shaken && refused.text.contains("alert"), "{}", refused.text);
    // Q3
    serves(world.client("newest.test"), Tls::V13).await;
    let alert = world.client("newest.test").tls(Tls::V12).expect_alert().await;
    assert_eq!(alert, AlertDescription::ProtocolVersion);
    // Q4
    serves_old(&world, "oldest.test").await;
    for tls in [Tls::V12, Tls::V13] {
        let alert = world.client("oldest.test").tls(tls).expect_alert().await;
        assert_eq!(alert, AlertDescription::ProtocolVersion);
    }
    world.node_log().lines_with(&["reason=\"no_common_version\"", "sni=\"oldest.test\""], 2).await;
    serves_old(&world, "gap.test").await;
    serves(world.client("gap.test"), Tls::V13).await;
    let alert = world.client("gap.test").tls(Tls::V12).expect_alert().await;
    assert_eq!(alert, AlertDescription::ProtocolVersion);
    // The handshake without a site fails for old clients, too.
    let refused = old(&world, "-tls1_1", "unknown.test", None, "").await;
    assert!(refused.text.contains("unrecognized name"), "{}", refused.text);
    world.node_log().line_with(&["reason=\"no_site\"", "sni=\"unknown.test\""]).await;
}

#[tokio::test]
async fn both_engines_verify_clients_in_every_version() {
    let Some(world) = world("clients_are_verified_alike", World::builder()).await else { return };
    let clients = &world.credentials.clients;
    let certificate = world.credentials.servers.server(&["old.test", "new.test"]);
    let document = |name: &str| protected(site(&certificate, name), clients);
    let _upstream = everything(
        &world,
        &[("ssls/1", speaking(document("old.test"), &ALL)), ("ssls/2", document("new.test"))],
    )
    .await;
    let too_deep = clients.intermediate("One").intermediate("Two").client("deep");
    let untrusted = world.credentials.untrusted.client("untrusted");
    let expired = clients.expired_client("expired");
    let refused: [(Option<&Credential>, &[&str]); 4] = [
        (None, &["reason=\"no_certificate\""]),
        (Some(&untrusted), &["reason=\"bad_certificate\"", "verify_reason=\"unknown_issuer\""]),
        (Some(&expired), &["reason=\"bad_certificate\"", "verify_reason=\"expired\""]),
        (Some(&too_deep), &["reason=\"bad_certificate\"", "verify_reason=\"depth_exceeded\""]),
    ];
    for (name, versions) in
        [("old.test", &["-tls1_1", "-tls1_2", "-tls1_3"][..]), ("new.test", &["-tls1_2", "-tls1_3"])]
    {
        for (times, version) in (1..).zip(versions) {
            let output =
                old(&world, version, name, Some(&world.credentials.client), &get("/hello", name)).await;
            assert!(output.text.contains("HTTP/1.1 200"), "{name} {version}: {}", output.text);
            for (identity, log) in refused {
                let output = old(&world, version, name, identity, &get("/hello", name)).await;
                assert!(!output.text.contains("HTTP/1.1"), "{name} {version} {log:?}: {}", output.text);
                assert!(output.text.contains("alert"), "{name} {version} {log:?}: {}", output.text);
                let sni = format!("sni=\"{name}\"");
                let words: Vec<&str> = log.iter().copied().chain([sni.as_str()]).collect();
                world.node_log().lines_with(&words, times).await;
            }
        }
    }
}

#[tokio::test]
async fn skip_rules_and_identity_headers_match_the_other_engine() {
    let Some(world) = world("skip_rules", World::builder()).await else { return };
    let authority = &world.credentials.upstreams;
    let strict = Upstream::demanding("strict", &authority.server(&["up.test"]), authority).await;
    let gateway = authority.client("gateway");
    let mut document = speaking(world.protected_site(), &ALL);
    document["client"]["skip_mtls_uri_regex"] = json!(["^/open"]);
    let upstream = json!({
        "scheme": "https", "nodes": {strict.address().to_string(): 1},
        "tls": {"client_cert": gateway.certificate_pem, "client_key": gateway.key_pem},
    });
    world.apply(&[("ssls/1", document), ("routes/1", json!({"uri": "/*", "upstream": upstream}))]).await;
    let untrusted = world.credentials.untrusted.client("untrusted");
    for identity in [None, Some(&untrusted)] {
        let output = old(&world, "-tls1_1", "app.test", identity, &get("/open", "app.test")).await;
        assert!(output.text.contains("HTTP/1.1 200"), "{}", output.text);
        assert!(output.text.contains("CN=gateway"), "{}", output.text);
        let output = old(&world, "-tls1_1", "app.test", identity, &get("/closed", "app.test")).await;
        assert!(output.text.contains("HTTP/1.1 400"), "{}", output.text);
    }
    let good = Some(&world.credentials.client);
    let output = old(&world, "-tls1_1", "app.test", good, &get("/closed", "app.test")).await;
    assert!(output.text.contains("HTTP/1.1 200"), "{}", output.text);
}

#[tokio::test]
async fn a_stream_requires_a_certificate_despite_skip_rules() {
    let builder = World::builder().settings(streaming());
    let Some(world) = world("streams", builder).await else { return };
    let upstream = TcpUpstream::plain("one", Script::Greet).await;
    let mut document = speaking(world.protected_site(), &ALL);
    document["client"]["skip_mtls_uri_regex"] = json!(["^/"]);
    let route = json!({"upstream": to(&[upstream.address()])});
    world.apply(&[("ssls/1", document), ("stream_routes/1", route)]).await;
    let untrusted = world.credentials.untrusted.client("untrusted");
    for tls in [Tls::V12, Tls::V13] {
        let client = world.tcp_client("app.test").tls(tls);
        for refused in [client.clone(), client.clone().identity(&untrusted)] {
            // TLS 1.3 rejects the client after its side of the handshake.
            if let Ok(mut stream) = refused.handshake().await {
                assert_eq!(reply(&mut stream).await, "");
            }
        }
        assert_eq!(upstream.connections(), 0, "{tls:?}");
    }
    for (served, tls) in (1..).zip([Tls::V12, Tls::V13]) {
        let client = world.tcp_client("app.test").tls(tls).identity(&world.credentials.client);
        assert_eq!(reply(&mut client.handshake().await.unwrap()).await, hello("one"), "{tls:?}");
        assert_eq!(upstream.connections(), served);
    }
}

#[tokio::test]
async fn large_bodies_arrive_both_ways_over_both_protocols() {
    let Some(world) = world("large_bodies", World::builder()).await else { return };
    let site = speaking(world.protected_site(), &ALL);
    let _upstream = everything(&world, &[("ssls/1", site)]).await;
    let body = pattern(2_000_000);
    for http in [Http::One, Http::Two] {
        for (tls, version) in [(Tls::V12, ProtocolVersion::TLSv1_2), (Tls::V13, ProtocolVersion::TLSv1_3)] {
            let mut session = world.verified_client("app.test").http(http).tls(tls).connect().await.unwrap();
            assert_eq!(session.protocol(), Some(version));
            let echo = session.request(Method::POST, "/echo", full(body.clone()));
            let reply = session.fetch(echo).await.unwrap();
            assert!(reply.body == body, "{http:?} {tls:?}: {} bytes came back", reply.body.len());
        }
    }
    // The old client: s_client forwards text unchanged.
    let text = "abcdefghijklmnopqrstuvwxyz012345".repeat(20_000);
    let request = format!(
        "POST /echo HTTP/1.1\r\nHost: app.test\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{text}",
        text.len()
    );
    let output = old(&world, "-tls1_1", "app.test", Some(&world.credentials.client), &request).await;
    let body: String = output.text.chars().filter(char::is_ascii_graphic).collect();
    assert!(body.matches("abcdefghijklmnopqrstuvwxyz012345").count() >= 19_000, "{}", output.text.len());
}

#[tokio::test]
async fn a_changed_policy_applies_at_once_without_resumption() {
    let Some(world) = world("a_changed_policy", World::builder()).await else { return };
    let _upstream = everything(&world, &[("ssls/1", speaking(world.protected_site(), &ALL))]).await;
    let good = Some(&world.credentials.client);
    let mut session = world.verified_client("app.test").connect().await.unwrap();
    assert_eq!(session.get("/").await.unwrap().status, StatusCode::OK);
    let stricter = protected(world.open_site(), &world.credentials.untrusted);
    world.apply(&[("ssls/1", speaking(stricter, &ALL))]).await;
    // The open connection answers 400 or is closed already.
    if let Ok(reply) = session.get("/").await {
        assert_eq!(reply.status, StatusCode::BAD_REQUEST);
    }
    let output = old(&world, "-tls1_1", "app.test", good, &get("/", "app.test")).await;
    assert!(output.text.contains("unknown ca"), "{}", output.text);
    // Between the engines and back.
    world.apply(&[("ssls/1", world.protected_site())]).await;
    let output = old(&world, "-tls1_1", "app.test", good, &get("/", "app.test")).await;
    assert!(!output.shaken, "{}", output.text);
    world.apply(&[("ssls/1", speaking(world.protected_site(), &ALL))]).await;
    let output = old(&world, "-tls1_1", "app.test", good, &get("/", "app.test")).await;
    assert!(output.text.contains("HTTP/1.1 200"), "{}", output.text);
    assert!(!output.text.contains("TLS session ticket:"), "{}", output.text);
}

/// A ClientHello of TLS 1.1 with this name: no signature_algorithms, two suites.
fn old_hello(name: &str) -> Vec<u8> {
    let counted = |bytes: &[u8]| [&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat();
    let entry = [&[0][..], &counted(name.as_bytes())].concat();
    let sni = [&[0, 0][..], &counted(&counted(&entry))].concat();
    let groups = [0, 10, 0, 4, 0, 2, 0, 23];
    let body = [
        &[3, 2][..],
        &[7; 32],
        &[0],
        &counted(&[0xc0, 0x09, 0xc0, 0x13]),
        &[1, 0],
        &counted(&[&sni[..], &groups].concat()),
    ]
    .concat();
    let message = [&[1, 0][..], &counted(&body)].concat();
    [&[22, 3, 1][..], &counted(&message)].concat()
}

#[tokio::test]
async fn hostile_bytes_end_only_their_connection() {
    let Some(world) = world("hostile_bytes", World::builder()).await else { return };
    let _upstream = everything(&world, &[("ssls/1", speaking(world.open_site(), &ALL))]).await;
    let hello = old_hello("app.test");
    let record = |kind: u8, body: &[u8]| {
        let length = u16::try_from(body.len()).unwrap().to_be_bytes();
        [&[kind, 3, 2][..], &length[..], body].concat()
    };
    for (what, bytes) in [
        ("the ClientHello alone", hello.clone()),
        ("half of it", hello[..hello.len() / 2].to_vec()),
        ("twice", hello.repeat(2)),
        ("zeros after it", [&hello[..], &[0; 4096]].concat()),
        ("ones after it", [&hello[..], &[0xff; 4096]].concat()),
        ("early data", [hello.clone(), record(23, &[7; 100])].concat()),
        ("a finished without keys", [hello.clone(), record(20, &[1]), record(22, &[20, 0, 0, 12])].concat()),
        ("an alert", [hello.clone(), record(21, &[2, 40])].concat()),
        ("empty records", [hello.clone(), record(22, &[]).repeat(1000)].concat()),
        (
            "a message that never ends",
            [hello.clone(), record(22, &[[16, 255, 255, 255].as_slice(), &[0; 16000]].concat()).repeat(10)]
                .concat(),
        ),
        ("another name", old_hello("unknown.test")),
        ("no name", old_hello("")),
        ("a name that is none", old_hello("a..b\u{1}")),
        ("an address", old_hello("127.0.0.1")),
    ] {
        let mut stream = raw::send(world.https(), &bytes).await;
        let _ = stream.shutdown().await;
        let answered = raw::until_closed(&mut stream).await;
        let records = answered.is_empty() || [20, 21, 22].contains(&answered[0]);
        assert!(records, "{what}: {answered:?}");
    }
    serves_old(&world, "app.test").await;
    serves(world.client("app.test"), Tls::V13).await;
}
