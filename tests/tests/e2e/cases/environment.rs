//! Cases A20, C19, H20, M11, M12 and P2: certificates and keys from environment variables (contract
//! 4.5, decision 15).
//!
//! The control plane resolves them: the data planes of these worlds have none of the variables.

use e2e::credentials::Credential;
use e2e::fixtures::FIXTURES;
use e2e::world::World;
use serde_json::{Value, json};

use super::stage::{Stage, no_handshake, served, ssl, with};

const GOOD: [&str; 4] = ["--cert", "mtls_client.crt", "--key", "mtls_client.key"];

async fn stage() -> Stage {
    let made = &*FIXTURES;
    let pair = |credential: &Credential| {
        json!({"cert": credential.certificate_pem, "key": credential.key_pem}).to_string()
    };
    let builder = World::builder()
        .control_environment("TEST_CERT", &made.apisix.certificate_pem)
        .control_environment("TEST_KEY", &made.apisix.key_pem)
        .control_environment("TEST2", &pair(&made.test2))
        .control_environment("ECC", &pair(&made.apisix_ecc))
        .control_environment("MTLS_CA_CERT", &made.mtls_ca)
        .control_environment("MTLS_CERT_VAR", &made.mtls_client.certificate_pem)
        .control_environment("MTLS_KEY_VAR", &made.mtls_client.key_pem);
    Stage::of(builder).await
}

#[tokio::test]
async fn case_a20_h20_a_protected_site_by_references() {
    let stage = stage().await;
    let document = json!({
        "sni": "test.com", "key": "$env://TEST_KEY", "cert": "$ENV://TEST_CERT", "client": {"ca": "$eNv://MTLS_CA_CERT"}
    });
    stage.put("ssls/1", document.clone()).await;
    served(&stage.curl("test.com", "/hello", &GOOD).await, "/hello");
    no_handshake(&stage.curl("test.com", "/hello", &[]).await);
    no_handshake(&stage.curl("test.com", "/hello", &["--cert", "test2.crt", "--key", "test2.key"]).await);
    let log = stage.world.control_log();
    log.line_with(&["INFO", "fetching data from env uri: $env://TEST_KEY"]).await;
    // The store and the API contain the reference.
    let shown = stage.world.admin().get("ssls/1").await.body["value"].clone();
    for field in ["cert", "client"] {
        assert_eq!(shown[field], document[field]);
    }
    let patched =
        stage.world.admin().call(http::Method::PATCH, "ssls/1", Some(&json!({"labels": {"a": "b"}}))).await;
    assert_eq!(patched.unwrap().body["value"]["key"], "$env://TEST_KEY");
    let store = std::fs::read(stage.world.store()).unwrap();
    let certificate = FIXTURES.apisix.certificate_pem.lines().nth(2).unwrap().as_bytes();
    assert!(!store.windows(certificate.len()).any(|window| window == certificate), "the value is not stored");
}

#[tokio::test]
async fn case_c19_an_upstream_identity_by_references() {
    let stage = stage().await;
    let world = &stage.world;
    let server = world.credentials.upstreams.server(&["up.test"]);
    let node = e2e::upstream::Upstream::strict("1983", &server, &FIXTURES.mtls_ca).await;
    let identity = json!({"type": "client", "cert": "$env://MTLS_CERT_VAR", "key": "$env://MTLS_KEY_VAR"});
    stage.put("ssls/1", identity).await;
    let upstream = json!({
        "scheme": "https", "nodes": {node.address().to_string(): 1}, "tls": {"client_cert_id": 1},
    });
    stage.put("routes/1", json!({"uri": "/hello", "upstream": upstream})).await;
    let answered = stage.plain("any.test", "/hello").await;
    served(&answered, "/hello");
    assert!(answered.body.contains("CN=client.apisix.dev"), "{answered:?}");
    world.control_log().line_with(&["fetching data from env uri: $env://MTLS_KEY_VAR"]).await;
}

#[tokio::test]
async fn case_m11_m12_p02_members_and_mixtures() {
    let stage = stage().await;
    let made = &*FIXTURES;
    // M11 uses members of a JSON object; M12 a certificate by reference and a key as text.
    stage
        .put("ssls/2", json!({"sni": "test2.com", "cert": "$env://TEST2/cert", "key": "$env://TEST2/key"}))
        .await;
    served(&stage.curl("test2.com", "/hello", &[]).await, "/hello");
    stage
        .put("ssls/2", json!({"sni": "TesT2.com", "cert": "$env://TEST2/cert", "key": made.test2.key_pem}))
        .await;
    served(&stage.curl("test2.com", "/hello", &[]).await, "/hello");
    // P2
    let document = json!({
        "snis": ["test.com"], "cert": "$env://TEST_CERT", "key": "$env://TEST_KEY",
        "certs": ["$env://ECC/cert"], "keys": ["$env://ECC/key"],
    });
    stage.put("ssls/1", document).await;
    served(&stage.curl("test.com", "/hello", &[]).await, "/hello");
    for uri in ["$env://TEST_CERT", "$env://TEST_KEY", "$env://ECC/cert", "$env://ECC/key"] {
        stage.world.control_log().line_with(&[&format!("fetching data from env uri: {uri}")]).await;
    }
    let (shook, output) = stage.shakes(&["-servername", "test.com", "-sigalgs", "ECDSA+SHA256"]).await;
    assert!(shook && output.contains("Peer signature type: ECDSA"), "{output}");
}

#[tokio::test]
async fn difference_unresolved_references_are_rejected_on_write() {
    let stage = stage().await;
    let good = ssl(&FIXTURES.apisix, "test.com");
    stage.put("ssls/1", good.clone()).await;
    let refused = async |change: Value, words: &[&str]| {
        let text = stage.refused("ssls/1", with(good.clone(), change)).await;
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
    };
    refused(json!({"key": "$env://GONE"}), &["field: key", "environment variable GONE is not set"]).await;
    refused(json!({"client": {"ca": "$env://TEST2/ca"}}), &["client.ca", "TEST2 has no text under ca"]).await;
    // Only the fields of the contract take references, and only to the environment: secret managers
    // are unsupported.
    refused(json!({"sni": "$env://NAME"}), &["\"sni\" is not supported"]).await;
    refused(json!({"key": "$secret://vault/test/ssl/test.com.key"}), &["\"key\" is not supported"]).await;
    let vault = json!({"uri": "http://127.0.0.1:8200", "prefix": "kv/apisix", "token": "root"});
    let answer =
        stage.world.admin().call(http::Method::PUT, "secrets/vault/test", Some(&vault)).await.unwrap();
    assert_eq!(
        (answer.status.as_u16(), &answer.body["error_msg"]),
        (400, &json!("this gateway has no secrets"))
    );
    // A value is checked like text in the document.
    refused(json!({"key": "$env://TEST2/key"}), &["key does not belong to cert"]).await;
    served(&stage.curl("test.com", "/hello", &[]).await, "/hello");
}

/// A data plane has the value at the time of the push. After a restart of the control plane it gets
/// the new value, although no document changed.
#[tokio::test]
async fn a_changed_variable_is_pushed_after_a_restart() {
    let mut stage = stage().await;
    let made = &*FIXTURES;
    stage.put("ssls/1", json!({"sni": "test.com", "cert": "$env://ECC/cert", "key": "$env://ECC/key"})).await;
    let subject = async |stage: &Stage| {
        let (shook, text) = stage.shakes(&["-servername", "test.com"]).await;
        let signature = text.lines().find_map(|line| line.strip_prefix("Peer signature type: "));
        shook.then(|| signature.unwrap_or_default().to_owned())
    };
    assert_eq!(subject(&stage).await.as_deref(), Some("ECDSA"));
    let rsa = json!({"cert": made.apisix.certificate_pem, "key": made.apisix.key_pem}).to_string();
    stage.world.change_control_environment("ECC", Some(&rsa));
    stage.restart_control().await;
    assert_eq!(subject(&stage).await.as_deref(), Some("RSA-PSS"));
    // Without the variable there is no site, and the log names the missing variable.
    stage.world.change_control_environment("ECC", None);
    stage.restart_control().await;
    assert_eq!(subject(&stage).await, None);
    let words = ["ERROR", "a stored document is not usable", "ssls/1", "variable ECC is not set"];
    stage.world.control_log().line_with(&words).await;
}
