//! Whose servers an upstream accepts, on requests and TCP streams, and what servers that reject the
//! gateway lead to.

use e2e::client::{HttpConnection, full};
use e2e::credentials::{Authority, Credential};
use e2e::upstream::Upstream;
use e2e::upstream::tcp::{Script, TcpUpstream};
use e2e::world::World;
use http::{Method, StatusCode};
use pki::ca::LeafSpec;
use rustls::SupportedProtocolVersion;
use rustls::version::{TLS12, TLS13};
use serde_json::{Value, json};

fn to(address: std::net::SocketAddr, scheme: &str, tls: Value) -> Value {
    json!({
        "scheme": scheme, "nodes": {address.to_string(): 1}, "pass_host": "rewrite", "upstream_host": "up.test",
        "tls": tls,
    })
}

async fn get(session: &mut HttpConnection, path: &str) -> StatusCode {
    session.get(path).await.unwrap_or_else(|error| panic!("{path}: {error}")).status
}

/// Server certificates, and whether a client that trusts `authority` accepts each for `up.test`.
fn servers(authority: &Authority, other: &Authority) -> Vec<(&'static str, Credential, bool)> {
    let below = authority.intermediate("intermediate");
    let mut without_intermediate = below.server(&["up.test"]);
    let end = "-----END CERTIFICATE-----\n";
    let leaf = without_intermediate.certificate_pem.find(end).unwrap() + end.len();
    without_intermediate.certificate_pem.truncate(leaf);
    let no_name = LeafSpec::server("other.test").uri("spiffe://up.test/server");
    vec![
        ("good", authority.server(&["up.test"]), true),
        ("wildcard-of-a-whole-domain", authority.server(&["*.test"]), false),
        ("intermediate", below.server(&["up.test"]), true),
        ("without-intermediate", without_intermediate, false),
        ("wrong-name", authority.issue(&no_name), false),
        ("expired", authority.expired_server(&["up.test"]), false),
        ("unknown", other.server(&["up.test"]), false),
        ("client", authority.client("up.test"), false),
    ]
}

const VERSIONS: [(&str, &[&SupportedProtocolVersion]); 2] = [("12", &[&TLS12]), ("13", &[&TLS13])];

#[tokio::test]
async fn ca_certs_verify_the_servers_of_requests() {
    let world = World::builder().settings(json!({"countersign": {"workers": 1}})).start().await;
    let (trusted, other) = (Authority::root("trusted"), Authority::root("other"));
    let authorities = json!([other.certificate_pem(), trusted.certificate_pem()]);
    let only = json!([trusted.certificate_pem()]);
    let (mut running, mut routes, mut expected) = (Vec::new(), Vec::new(), Vec::new());
    for (kind, credential, accepted) in servers(&trusted, &other) {
        for (version, versions) in VERSIONS {
            let server = Upstream::tls_of(kind, &credential, versions).await;
            let tls = |more: Value| {
                let mut tls = json!({"ca_certs": only, "verify": true});
                more.as_object().unwrap().iter().for_each(|(name, value)| tls[name] = value.clone());
                to(server.address(), "https", tls)
            };
            let mut route = |case: &str, upstream: Value, ok: bool| {
                let path = format!("/{kind}-{version}-{case}");
                routes.push((format!("routes{path}"), json!({"uri": path, "upstream": upstream})));
                expected.push((path, if ok { 200 } else { 502 }));
            };
            route("one", tls(json!({})), accepted);
            route("two", tls(json!({"ca_certs": authorities})), accepted || kind == "unknown");
            route("off", tls(json!({"verify": false})), true);
            route("unset", to(server.address(), "https", json!({"ca_certs": only})), true);
            let named = json!([{"spiffe": "spiffe://up.test/*"}, {"dns": "up.test"}]);
            let is_named = ["good", "intermediate", "wrong-name"].contains(&kind);
            route("named", tls(json!({"verify_identity": named})), is_named);
            running.push(server);
        }
    }
    let documents: Vec<_> = routes.iter().map(|(path, route)| (path.as_str(), route.clone())).collect();
    for part in documents.chunks(32) {
        world.apply(part).await;
    }
    let mut session = world.plain("app.test").await;
    for (path, status) in &expected {
        assert_eq!(get(&mut session, path).await.as_u16(), *status, "{path}");
    }
    let failures = expected.iter().filter(|(_, status)| *status == 502).count() as u64;
    assert_eq!(world.metric("countersign_errors_total{reason=\"upstream_tls\"}").await, failures);
    for words in [
        ["upstream_tls", "is not a certificate for `up.test`"],
        ["upstream_tls", "one of tls.verify_identity"],
        ["upstream_tls", "expired"],
    ] {
        world.node_log().line_with(&words).await;
    }
}

#[tokio::test]
async fn ca_certs_verify_the_servers_of_streams() {
    let settings = json!({"apisix": {
        "proxy_mode": "http&stream", "stream_proxy": {"tcp": [{"addr": "127.0.0.1:0", "tls": false}]},
    }});
    let world = World::builder().settings(settings).start().await;
    let (trusted, other) = (Authority::root("trusted"), Authority::root("other"));
    for (kind, credential, accepted) in servers(&trusted, &other) {
        let server = TcpUpstream::tls(kind, Script::Greet, &credential).await;
        let named = json!([{"uri": "spiffe://up.test/server"}]);
        for (tls, accepted) in [
            // A PUT that does not mention the list keeps it.
            (
                json!({"ca_certs": [trusted.certificate_pem()], "verify": true, "verify_identity": null}),
                accepted,
            ),
            (
                json!({"ca_certs": [trusted.certificate_pem()], "verify_identity": named}),
                kind == "wrong-name",
            ),
        ] {
            let route = json!({"upstream": to(server.address(), "tls", tls)});
            world.apply(&[("stream_routes/1", route)]).await;
            let mut socket = tokio::net::TcpStream::connect(world.stream(0)).await.unwrap();
            tokio::io::AsyncWriteExt::write_all(&mut socket, b"hello").await.unwrap();
            let mut heard = [0; 5];
            let read = tokio::io::AsyncReadExt::read_exact(&mut socket, &mut heard).await;
            assert_eq!(read.is_ok(), accepted, "{kind}: {heard:?}");
        }
    }
}

#[tokio::test]
async fn the_settings_may_verify_upstreams_that_say_nothing() {
    let ssl = json!({"ssl_trusted_certificate": "upstream-ca.crt", "upstream_verify_default": true});
    let world = World::builder().settings(json!({"apisix": {"ssl": ssl}})).start().await;
    let trusted = Upstream::tls("trusted", &world.credentials.upstreams.server(&["up.test"])).await;
    let untrusted = Upstream::tls("untrusted", &world.credentials.untrusted.server(&["up.test"])).await;
    let route = |path: &str, upstream: Value| json!({"uri": path, "upstream": upstream});
    let own = json!({"ca_certs": [world.credentials.untrusted.certificate_pem()]});
    let plain = |address| {
        let mut upstream = to(address, "https", json!({}));
        upstream.as_object_mut().unwrap().remove("tls");
        upstream
    };
    world
        .apply(&[
            ("routes/a", route("/trusted", plain(trusted.address()))),
            ("routes/b", route("/untrusted", plain(untrusted.address()))),
            ("routes/c", route("/off", to(untrusted.address(), "https", json!({"verify": false})))),
            ("routes/d", route("/own", to(untrusted.address(), "https", own))),
        ])
        .await;
    let mut session = world.plain("app.test").await;
    for (path, status) in [("/trusted", 200), ("/untrusted", 502), ("/off", 200), ("/own", 200)] {
        assert_eq!(get(&mut session, path).await.as_u16(), status, "{path}");
    }
    let report = world.admin().get("lint").await.reply.json();
    let excepted = report["list"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|finding| finding["resource"] == "routes/c" && finding["field"] == "upstream.tls.verify");
    assert_eq!(excepted.map(|finding| finding["severity"].clone()).collect::<Vec<_>>(), ["warning"]);
}

/// In TLS 1.3 the node's alert comes when the gateway's handshake is complete.
#[tokio::test]
async fn an_alert_after_the_handshake_is_upstream_tls() {
    let world = World::builder().settings(json!({"countersign": {"workers": 1}})).start().await;
    let authority = &world.credentials.upstreams;
    let strict = Upstream::demanding("strict", &authority.server(&["up.test"]), authority).await;
    let stranger = world.credentials.untrusted.client("stranger");
    let bad = json!({"client_cert": stranger.certificate_pem, "client_key": stranger.key_pem});
    let route = |path: &str, tls: Value| json!({"uri": path, "upstream": to(strict.address(), "https", tls)});
    world.apply(&[("routes/none", route("/none", json!({}))), ("routes/bad", route("/bad", bad))]).await;
    let mut session = world.plain("app.test").await;
    for (path, alert) in [("/none", "certificate_required"), ("/bad", "unknown_ca")] {
        assert_eq!(get(&mut session, path).await, StatusCode::BAD_GATEWAY, "{path}");
        world.node_log().line_with(&["upstream_tls", alert]).await;
        let request = session.request(Method::POST, path, full("once"));
        assert_eq!(session.fetch(request).await.unwrap().status, StatusCode::BAD_GATEWAY);
    }
    assert_eq!(world.metric("countersign_errors_total{reason=\"upstream_tls\"}").await, 4);
    assert_eq!(world.metric("countersign_errors_total{reason=\"upstream_closed\"}").await, 0);
    assert_eq!(strict.requests(), 0);
}

/// As above, for a TCP stream.
#[tokio::test]
async fn an_alert_on_a_stream_is_upstream_tls() {
    let settings = json!({"apisix": {
        "proxy_mode": "http&stream", "stream_proxy": {"tcp": [{"addr": "127.0.0.1:0", "tls": false}]},
    }});
    let world = World::builder().settings(settings).start().await;
    let authority = &world.credentials.upstreams;
    let strict = Upstream::demanding("strict", &authority.server(&["up.test"]), authority).await;
    let route = json!({"upstream": to(strict.address(), "tls", json!({}))});
    world.apply(&[("stream_routes/1", route)]).await;
    let mut socket = tokio::net::TcpStream::connect(world.stream(0)).await.unwrap();
    let mut heard = Vec::new();
    let _reset = tokio::io::AsyncReadExt::read_to_end(&mut socket, &mut heard).await;
    assert!(heard.is_empty(), "{heard:?}");
    world.node_log().line_with(&["upstream_tls", "certificate_required", "route=\"1\""]).await;
}

#[tokio::test]
async fn unusable_trust_is_a_400() {
    let world = World::start().await;
    let expired = pki::ca::AuthoritySpec::new("Old").between(
        pki::UnixTime::since_unix_epoch(std::time::Duration::from_secs(1_600_000_000)),
        pki::UnixTime::since_unix_epoch(std::time::Duration::from_secs(1_700_000_000)),
    );
    let expired = pki::ca::Authority::root(&expired).unwrap().certificate_pem();
    let good = Authority::root("good").certificate_pem().to_owned();
    let unreadable = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n".to_owned();
    let padding = "#".repeat(200);
    for (tls, text) in [
        (json!({"ca_certs": [good, unreadable + &padding]}), "failed to parse tls.ca_certs[2]"),
        (json!({"ca_certs": [expired]}), "is expired"),
        (json!({"ca_certs": good}), "wrong type: expected array, got string"),
        (json!({"verify": false, "verify_identity": [{"dns": "a.test"}]}), "tls.verify is false"),
        (json!({"verify_identity": [{"email": "a@b.test"}]}), "email"),
    ] {
        let document = json!({"scheme": "https", "nodes": {"127.0.0.1:1": 1}, "tls": tls});
        let answer = world.admin().call(Method::PUT, "upstreams/1", Some(&document)).await.unwrap();
        let reply = answer.reply;
        assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{tls}: {}", reply.text());
        assert!(reply.text().contains(text), "{text}: {}", reply.text());
    }
}
