//! Cases A and B: client certificates on routes (APISIX's `t/node/client-mtls.t` and
//! `client-mtls-openresty.t`).
//!
//! For a Host of another site, APISIX answers 400 and the gateway 421: decision 7.

use serde_json::{Value, json};

use super::stage::{Stage, no_handshake, page, served, ssl, ssl_for, with};

const GOOD: [&str; 4] = ["--cert", "mtls_client.crt", "--key", "mtls_client.key"];
const WRONG: [&str; 4] = ["--cert", "test2.crt", "--key", "test2.key"];

fn host(name: &'static str) -> [&'static str; 2] {
    ["-H", name]
}

/// The gateway as its own upstream, for the site `localhost`, with this client certificate or none.
fn loop_route(stage: &Stage, uri: &str, tls: Option<Value>) -> Value {
    let mut upstream = json!({
        "scheme": "https", "nodes": {stage.world.https().to_string(): 1},
        "pass_host": "rewrite", "upstream_host": "localhost",
    });
    if let Some(tls) = tls {
        upstream["tls"] = tls;
    }
    json!({"uri": uri, "host": "outside.test", "upstream": upstream})
}

#[tokio::test]
async fn case_a05_a07_the_gateway_as_its_own_client() {
    let stage = Stage::start().await;
    let made = &*FIXTURES;
    let tls = |identity: &e2e::credentials::Credential| {
        Some(json!({"client_cert": identity.certificate_pem, "client_key": identity.key_pem}))
    };
    stage.put("ssls/1", ssl_for(&made.mtls_client, "localhost", &made.mtls_ca)).await;
    stage.put("routes/1", loop_route(&stage, "/mtls", tls(&made.mtls_client))).await;
    stage.put("routes/2", loop_route(&stage, "/mtls2", None)).await;
    stage.put("routes/3", loop_route(&stage, "/mtls3", tls(&made.apisix))).await;
    served(&stage.plain("outside.test", "/mtls").await, "/mtls");

    page(&stage.plain("outside.test", "/mtls2").await, 502);
    let log = stage.world.node_log();
    log.line_with(&["handshake rejected", "reason=\"no_certificate\"", "localhost"]).await;
    page(&stage.plain("outside.test", "/mtls3").await, 502);
    log.line_with(&["handshake rejected", "verify_reason=\"unknown_issuer\"", "CN=test.com"]).await;
    assert_eq!(stage.upstream.requests(), 1);
}

#[tokio::test]
async fn case_a08_a10_b1_b6_sni_and_host() {
    let stage = Stage::start().await;
    let made = &*FIXTURES;
    // A8: the site requests no certificate, and the Host has no site.
    stage.put("ssls/1", ssl(&made.mtls_client, "localhost")).await;
    served(&stage.curl("localhost", "/hello", &[&GOOD[..], &host("Host: x.com")].concat()).await, "/hello");

    // A9, B5: the handshake of an open site does not authorize requests to one with a client
    // policy.
    stage.put("ssls/1", ssl_for(&made.mtls_client, "test.com", &made.mtls_ca)).await;
    stage.put("ssls/2", ssl(&made.mtls_client, "localhost")).await;
    let seen = stage.upstream.requests();
    page(&stage.curl("localhost", "/hello", &host("Host: test.com")).await, 421);
    let message = "client certificate verified with another SNI than the host's";
    stage.world.node_log().line_with(&[message, "sni=\"localhost\"", "host=\"test.com\""]).await;

    // A10, B6: nor does that of a site with another authority.
    stage.put("ssls/1", ssl_for(&made.mtls_client, "localhost", &made.mtls_ca)).await;
    stage.put("ssls/2", ssl_for(&made.mtls_client, "test.com", &made.apisix.certificate_pem)).await;
    page(&stage.curl("localhost", "/hello", &[&GOOD[..], &host("Host: test.com")].concat()).await, 421);
    assert_eq!(stage.upstream.requests(), seen);

    // B1 to B4: with the right certificate, without one, with a wrong one, and for a Host without a
    // site.
    stage.delete("ssls/2").await;
    served(&stage.curl("localhost", "/hello", &GOOD).await, "/hello");
    no_handshake(&stage.curl("localhost", "/hello", &[]).await);
    no_handshake(&stage.curl("localhost", "/hello", &WRONG).await);
    served(
        &stage.curl("localhost", "/hello", &[&GOOD[..], &host("Host: test.com")].concat()).await,
        "/hello",
    );
}

/// A session of another site is not resumed, whether or not the gateway resumes sessions.
#[tokio::test]
async fn case_a11_a12_a_session_is_not_resumed_on_another_site() {
    let stage = Stage::start().await;
    let made = &*FIXTURES;
    stage.put("ssls/1", ssl_for(&made.mtls_client, "localhost", &made.mtls_ca)).await;
    stage.put("ssls/2", ssl_for(&made.mtls_client, "test.com", &made.apisix.certificate_pem)).await;
    let request = |host: &str| format!("GET /hello HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    for version in ["-tls1_2", "-tls1_3"] {
        let first = ["-servername", "localhost", version, "-sess_out", "session"];
        let output = stage
            .s_client(&[&first[..], &["-cert", GOOD[1], "-key", GOOD[3]]].concat(), &request("localhost"))
            .await;
        assert!(output.contains("HTTP/1.1 200"), "{version}: {output}");
        let seen = stage.upstream.requests();
        let second = ["-servername", "test.com", version, "-sess_in", "session"];
        let output = stage.s_client(&second, &request("test.com")).await;
        assert!(!output.contains("HTTP/1.1 200") && output.contains("alert"), "{version}: {output}");
        assert_eq!(stage.upstream.requests(), seen, "{version}");
    }
}

#[tokio::test]
async fn case_a13_a18_skipped_paths() {
    let stage = Stage::start().await;
    let made = &*FIXTURES;
    let skip = json!({"client": {"ca": made.mtls_ca, "depth": 2, "skip_mtls_uri_regex": ["/hello[0-9]+"]}});
    stage.put("ssls/1", with(ssl(&made.mtls_client, "localhost"), skip)).await;
    stage.put("ssls/2", ssl_for(&made.mtls_client, "test.com", &made.apisix.certificate_pem)).await;
    served(&stage.curl("localhost", "/hello1", &[]).await, "/hello1");
    served(&stage.curl("localhost", "/hello1", &WRONG).await, "/hello1");

    let seen = stage.upstream.requests();
    let log = stage.world.node_log();
    page(&stage.curl("localhost", "/hello", &[]).await, 400);
    log.line_with(&["client certificate was not present", "reason=\"no_certificate\""]).await;
    page(&stage.curl("localhost", "/hello", &WRONG).await, 400);
    log.line_with(&["client certificate verification is not passed: FAILED"]).await;
    no_handshake(&stage.curl("test.com", "/hello", &[]).await);
    log.line_with(&["handshake rejected", "reason=\"no_certificate\"", "test.com"]).await;
    assert_eq!(stage.upstream.requests(), seen);
    served(&stage.curl("localhost", "/hello", &GOOD).await, "/hello");
}

/// Client certificates that only OpenSSL accepts (contract 13): X.509 v1 of an authority and its
/// client, and a self-signed client certificate with CA:TRUE.
#[tokio::test]
async fn unusual_certificates_verify_like_with_openssl() {
    let stage = Stage::start().await;
    let made = &*FIXTURES;
    let (v1, own) = (
        ["--cert", "tutorial.crt", "--key", "tutorial.key"],
        ["--cert", "apisix.crt", "--key", "apisix.key"],
    );
    stage.put("ssls/1", ssl_for(&made.mtls_server, "localhost", &made.mtls_ca)).await;
    stage.put("ssls/2", ssl_for(&made.mtls_server, "test.com", &made.apisix.certificate_pem)).await;
    for version in ["1.2", "1.3"] {
        let to = async |name: &str, identity: &[&str]| {
            stage.curl(name, "/hello", &[identity, &["--tls-max", version]].concat()).await
        };
        served(&to("localhost", &v1).await, "/hello");
        served(&to("test.com", &own).await, "/hello");
        no_handshake(&to("localhost", &own).await);
        no_handshake(&to("test.com", &v1).await);
        no_handshake(&to("test.com", &WRONG).await);
    }
}

/// The rule of cases A10 and A12 applies within one wildcard site, too, unless SNI and Host have
/// the same policy; APISIX compares the names.
#[tokio::test]
async fn difference_names_of_one_site_share_connections() {
    let stage = Stage::start().await;
    let made = &*FIXTURES;
    stage.put("ssls/1", ssl_for(&made.apisix, "*.test.com", &made.mtls_ca)).await;
    let other = stage.curl("a.test.com", "/hello", &[&GOOD[..], &host("Host: b.test.com")].concat()).await;
    served(&other, "/hello");
    // A different site is not the one of the handshake, even with the same authority.
    stage.put("ssls/2", ssl_for(&made.apisix, "b.test.com", &made.mtls_ca)).await;
    for spelt in ["Host: b.test.com", "Host: B.Test.com.", "Host: b.test.com:9443"] {
        page(&stage.curl("a.test.com", "/hello", &[&GOOD[..], &host(spelt)].concat()).await, 421);
    }
}
use e2e::fixtures::FIXTURES;
