//! Cases L, N and O, and M5 to M8: the certificate for each name (`t/router/radixtree-sni*.t`,
//! `multi-ssl-certs.t`).
//!
//! A name without a site is `reason="no_site"` in the log, with the name and APISIX's words where
//! it has any.

use e2e::fixtures::FIXTURES;
use e2e::world::World;
use serde_json::{Value, json};

use super::stage::{Stage, no_handshake, served, ssl, with};

/// `{cert, key, snis}`.
fn ssls(credential: &e2e::credentials::Credential, names: &[&str]) -> Value {
    json!({"cert": credential.certificate_pem, "key": credential.key_pem, "snis": names})
}

/// Asserts that the handshake succeeds with a certificate of this common name.
async fn shown(stage: &Stage, name: &str, subject: &str) {
    let (shook, text) = stage.shakes(&["-servername", name]).await;
    assert!(shook && text.contains(&format!("subject=CN = {subject}\n")), "{name}: {text}");
}

/// Asserts that the handshake is rejected before a certificate is sent, and that the log has the
/// reason.
async fn not_served(stage: &Stage, name: &str) {
    let (shook, text) = stage.shakes(&["-servername", name]).await;
    assert!(!shook && text.contains("no peer certificate available"), "{name}: {text}");
    let words = ["reason=\"no_site\"", "failed to match any SSL certificate by SNI"];
    stage.world.node_log().line_with(&[&words[..], &[&format!("sni=\"{name}\"")]].concat()).await;
}

#[tokio::test]
async fn case_l01_l06_exact_and_wildcard_names() {
    let stage = Stage::start().await;
    let made = &*FIXTURES;
    stage.put("ssls/1", ssl(&made.apisix, "www.test.com")).await;
    // L1: the certificate is for the name, and its issuer (itself) is trusted.
    let port = stage.world.https().port();
    let resolve = format!("www.test.com:{port}:127.0.0.1");
    let url = format!("https://www.test.com:{port}/hello");
    let arguments = ["--http1.0", "--cacert", "apisix.crt", "--resolve", &resolve, &url];
    let answered = e2e::tools::curl(stage.world.folder(), &arguments).await;
    served(&answered, "/hello");
    // L2
    not_served(&stage, "no-cert.com").await;
    // L3, L4
    stage.put("ssls/1", ssl(&made.apisix, "*.test.com")).await;
    shown(&stage, "www.test.com", "test.com").await;
    not_served(&stage, "test.com").await;
    stage.put("ssls/1", ssl(&made.apisix, "test.com")).await;
    shown(&stage, "test.com", "test.com").await;
    // L5: the client receives the second, self-signed certificate.
    stage.put("ssls/2", ssl(&made.test2, "*.test2.com")).await;
    let (shook, text) = stage.shakes(&["-servername", "www.test2.com", "-CAfile", "apisix.crt"]).await;
    assert!(shook && text.contains("Verify return code: 18 (self-signed certificate)"), "{text}");
    shown(&stage, "www.test2.com", "test2.com").await;
    // L6: one label.
    not_served(&stage, "aa.bb.test2.com").await;
}

#[tokio::test]
async fn case_l07_l10_disabled_sites_and_lists_of_names() {
    let stage = Stage::start().await;
    let made = &*FIXTURES;
    stage.put("ssls/1", ssl(&made.test2, "*.test2.com")).await;
    shown(&stage, "www.test2.com", "test2.com").await;
    stage.patch("ssls/1", json!({"status": 0})).await;
    not_served(&stage, "www.test2.com").await;
    stage.patch("ssls/1", json!({"status": 1})).await;
    shown(&stage, "www.test2.com", "test2.com").await;
    stage.put("ssls/1", ssls(&made.test2, &["test2.com", "*.test2.com"])).await;
    shown(&stage, "test2.com", "test2.com").await;
    not_served(&stage, "aa.bb.test2.com").await;
    // DELETE takes effect as fast as the status.
    stage.delete("ssls/1").await;
    not_served(&stage, "test2.com").await;
}

#[tokio::test]
async fn case_m05_m08_no_name_and_names_in_any_case() {
    let settings = json!({"apisix": {"ssl": {"fallback_sni": "a.test2.com"}}});
    let made = &*FIXTURES;
    // M5: without a fallback there is no site.
    let stage = Stage::start().await;
    stage.put("ssls/1", ssl(&made.test2, "*.test2.com")).await;
    let (shook, output) = stage.shakes(&["-noservername"]).await;
    assert!(!shook, "{output}");
    let text = "failed to find SNI: please check if the client requests via IP or uses an outdated protocol";
    stage.world.node_log().line_with(&[text, "reason=\"no_sni\""]).await;
    // M7, M8
    stage.put("ssls/1", ssl(&made.test2, "*.TesT2.com")).await;
    shown(&stage, "a.test2.com", "test2.com").await;
    stage.put("ssls/1", ssls(&made.test2, &["TesT2.com", "a.com"])).await;
    shown(&stage, "TEST2.com", "test2.com").await;
    not_served(&stage, "a.test2.com").await;

    // M6
    let stage = Stage::of(World::builder().settings(settings)).await;
    stage.put("ssls/1", ssl(&made.test2, "*.test2.com")).await;
    let (shook, output) = stage.shakes(&["-noservername"]).await;
    assert!(shook && output.contains("subject=CN = test2.com\n"), "{output}");
    // An existing name is not replaced by the fallback.
    not_served(&stage, "elsewhere.com").await;
}

#[tokio::test]
async fn case_n01_n03_a_trailing_dot_changes_nothing() {
    let stage = Stage::start().await;
    let made = &*FIXTURES;
    let admin = stage.world.admin();
    let put = admin.call(http::Method::PUT, "ssls/1", Some(&ssl(&made.apisix, "*.test.com"))).await.unwrap();
    assert_eq!(put.status, 201);
    stage.world.wait_acknowledged(put.revision.unwrap()).await;
    shown(&stage, "a.test.com.", "test.com").await;
    stage.put("ssls/2", ssls(&made.test2, &["test2.com", "a.com"])).await;
    shown(&stage, "test2.com.", "test2.com").await;
    // N3: the store keeps the name as written; it matches with and without the dot.
    stage.put("ssls/1", ssl(&made.apisix, "www.test.com.")).await;
    assert_eq!(admin.get("ssls/1").await.body["value"]["sni"], "www.test.com.");
    served(&stage.curl("www.test.com", "/hello", &[]).await, "/hello");
    shown(&stage, "www.test.com.", "test.com").await;
}

/// N4, extended to all code that handles keys: no log line of any level contains a key.
#[tokio::test]
async fn case_n04_keys_are_never_logged() {
    let builder =
        World::builder().node_environment("RUST_LOG", "trace").control_environment("RUST_LOG", "trace");
    let stage = Stage::of(builder).await;
    let made = &*FIXTURES;
    let document = with(
        ssl(&made.apisix, "test.com"),
        json!({"certs": [made.apisix_ecc.certificate_pem], "keys": [made.apisix_ecc.key_pem]}),
    );
    stage.put("ssls/1", document).await;
    served(&stage.curl("test.com", "/hello", &[]).await, "/hello");
    let tls =
        json!({"client_cert": made.mtls_client.certificate_pem, "client_key": made.mtls_client.key_pem});
    stage.put("upstreams/1", json!({"scheme": "https", "nodes": {"127.0.0.1:1": 1}, "tls": tls})).await;
    let refused = with(ssl(&made.apisix, "test.com"), json!({"key": made.test2.key_pem}));
    stage.refused("ssls/1", refused).await;
    let logs = stage.world.node_log().text() + &stage.world.control_log().text();
    assert!(logs.contains("DEBUG"), "it does log everything");
    for credential in [&made.apisix, &made.apisix_ecc, &made.mtls_client, &made.test2] {
        for line in credential.key_pem.lines().filter(|line| !line.starts_with('-') && line.len() > 20) {
            assert!(!logs.contains(line), "a line of a private key is in a log");
        }
    }
}

#[tokio::test]
async fn case_o01_o02_every_name_has_its_own_certificate() {
    let stage = Stage::start().await;
    let made = &*FIXTURES;
    stage.put("ssls/1", ssl(&made.apisix, "www.test.com")).await;
    stage.put("ssls/2", ssl(&made.test2, "*.test2.com")).await;
    stage.put("ssls/3", ssl(&made.admin_ssl, "apisix.dev")).await;
    for (name, subject) in
        [("www.test.com", "test.com"), ("www.test2.com", "test2.com"), ("apisix.dev", "apisix.dev")]
    {
        shown(&stage, name, subject).await;
    }
    for id in ["ssls/1", "ssls/2", "ssls/3"] {
        stage.delete(id).await;
    }
    not_served(&stage, "apisix.dev").await;
}

#[tokio::test]
async fn difference_catch_all_and_the_entry_that_matched() {
    let stage = Stage::start().await;
    let made = &*FIXTURES;
    // A list with `*` is equivalent to `sni: "*"`.
    stage.put("ssls/1", ssls(&made.apisix, &["*"])).await;
    shown(&stage, "any.thing.at.all", "test.com").await;
    // `*x.com` needs no dot, but covers only a part of one label.
    stage.put("ssls/2", ssl(&made.test2, "*x.com")).await;
    shown(&stage, "foox.com", "test2.com").await;
    shown(&stage, "x.com", "test2.com").await;
    not_served(&stage, "a.x.com").await;
    // A longer entry of the same list does not allow two labels.
    let names = ["*.test2.com", "a-much-longer-name.example.org"];
    stage.put("ssls/3", ssls(&made.test2, &names)).await;
    not_served(&stage, "aa.bb.test2.com").await;
    // The entry that matches the name decides, not the catch-all behind it, which serves other
    // names.
    shown(&stage, "elsewhere.org", "test.com").await;
}

#[tokio::test]
async fn difference_the_lowest_id_has_a_name_that_two_claim() {
    let stage = Stage::start().await;
    let made = &*FIXTURES;
    // The order of creation does not matter.
    stage.put("ssls/b", ssl(&made.test2, "shared.com")).await;
    stage.put("ssls/a", ssl(&made.apisix, "shared.com")).await;
    shown(&stage, "shared.com", "test.com").await;
    stage.patch("ssls/a", json!({"status": 0})).await;
    shown(&stage, "shared.com", "test2.com").await;
    stage.delete("ssls/b").await;
    not_served(&stage, "shared.com").await;
    no_handshake(&stage.curl("shared.com", "/hello", &[]).await);
}
