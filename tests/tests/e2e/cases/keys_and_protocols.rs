//! Cases M1, M3 and M4, H11 and L11, and Q: kinds of keys, invalid PEM texts, and TLS versions
//! (`radixtree-sni2.t`, `ssl-protocols.t`).
//!
//! The tests read the negotiated parameters from `openssl s_client`.

use pki::Keyring;
use serde_json::json;

use super::stage::{Stage, served, ssl, with};

#[tokio::test]
async fn case_h11_m01_the_client_chooses_between_rsa_and_ecdsa() {
    let stage = Stage::start().await;
    let made = &*FIXTURES;
    let ecc = json!({"certs": [made.apisix_ecc.certificate_pem], "keys": [made.apisix_ecc.key_pem]});
    stage.put("ssls/1", with(ssl(&made.apisix, "test.com"), ecc)).await;
    let tls12 = |suite: &'static str| vec!["-servername", "test.com", "-tls1_2", "-cipher", suite];
    let tls13 = |schemes: &'static str| vec!["-servername", "test.com", "-tls1_3", "-sigalgs", schemes];
    for (arguments, signature) in [
        (tls12("ECDHE-ECDSA-AES256-GCM-SHA384"), "ECDSA"),
        (tls12("ECDHE-RSA-AES256-GCM-SHA384"), "RSA-PSS"),
        (tls13("ECDSA+SHA256"), "ECDSA"),
        (tls13("RSA-PSS+SHA256"), "RSA-PSS"),
    ] {
        let (shook, text) = stage.shakes(&arguments).await;
        assert!(
            shook && text.contains(&format!("Peer signature type: {signature}\n")),
            "{arguments:?}: {text}"
        );
    }
    // As in the original: limited to a suite of TLS 1.2 that this engine lacks, but free to use TLS
    // 1.3.
    let cbc = ["-servername", "test.com", "-cipher", "ECDHE-RSA-AES256-SHA384"];
    assert!(stage.shakes(&cbc).await.0);
    let (shook, text) = stage.shakes(&[&cbc[..], &["-tls1_2"]].concat()).await;
    assert!(!shook && text.contains("alert handshake failure"), "{text}");
    let words = ["handshake rejected", "reason=\"no_common_parameters\"", "test.com"];
    stage.world.node_log().lines_with(&words, 1).await;
    // So does a client that sends another protocol.
    let (shook, text) = stage.shakes(&["-servername", "test.com", "-alpn", "gopher"]).await;
    assert!(!shook && text.contains("alert no application protocol"), "{text}");
    stage.world.node_log().lines_with(&words, 2).await;
}

#[tokio::test]
async fn case_l11_m03_m04_invalid_keys_and_certificates() {
    let stage = Stage::start().await;
    let made = &*FIXTURES;
    // AES-128-CBC with key and initialization vector 1234567890123456, like the originals.
    let foreign = Keyring::new(vec!["1234567890123456".to_owned()]).unwrap();
    let sealed = |key: &str| json!(foreign.seal(key));
    let good = ssl(&made.apisix, "test.com");
    stage.put("ssls/1", good.clone()).await;
    let undecryptable = "failed to decrypt previous encrypted key";
    let document = with(good.clone(), json!({"key": sealed(&made.apisix.key_pem)}));
    assert_eq!(stage.refused("ssls/1", document).await, undecryptable);
    let document = with(
        good.clone(),
        json!({"certs": [made.apisix_ecc.certificate_pem], "keys": [sealed(&made.apisix_ecc.key_pem)]}),
    );
    let of_pair = format!("failed to handle cert-key pair[1]: {undecryptable}");
    assert_eq!(stage.refused("ssls/1", document).await, of_pair);
    let text = "failed to parse cert: PEM_read_bio_X509_AUX() failed";
    assert_eq!(stage.refused("ssls/1", with(good, json!({"cert": INCORRECT}))).await, text);
    // The stored site is served as before.
    served(&stage.curl("test.com", "/hello", &[]).await, "/hello");
}

/// The negotiated version, or the alert that ended the handshake.
async fn version(stage: &Stage, name: &str, option: &str) -> String {
    let (shook, text) = stage.shakes(&["-servername", name, option]).await;
    if shook {
        let used = text.lines().find_map(|line| line.strip_prefix("New, ")).unwrap_or_default();
        return used.split(',').next().unwrap_or_default().to_owned();
    }
    assert!(text.contains("alert protocol version"), "{name} {option}: {text}");
    "refused".to_owned()
}

#[tokio::test]
async fn case_q01_q03_versions_of_a_site() {
    let stage = Stage::start().await;
    let made = &*FIXTURES;
    stage.put("ssls/1", ssl(&made.apisix, "test.com")).await;
    for (option, used) in [("-tls1_3", "TLSv1.3"), ("-tls1_2", "TLSv1.2")] {
        assert_eq!(version(&stage, "test.com", option).await, used);
    }
    let both = json!({"ssl_protocols": ["TLSv1.2", "TLSv1.3"]});
    stage.put("ssls/1", with(ssl(&made.apisix, "test.com"), both)).await;
    stage.put("ssls/2", with(ssl(&made.test2, "test2.com"), json!({"ssl_protocols": ["TLSv1.3"]}))).await;
    for (name, option, used) in [
        ("test.com", "-tls1_3", "TLSv1.3"),
        ("test.com", "-tls1_2", "TLSv1.2"),
        ("test2.com", "-tls1_3", "TLSv1.3"),
        ("test2.com", "-tls1_2", "refused"),
    ] {
        assert_eq!(version(&stage, name, option).await, used, "{name} {option}");
    }
    stage
        .world
        .node_log()
        .line_with(&["handshake rejected", "reason=\"no_common_version\"", "test2.com"])
        .await;
    // The reverse: the newest version is disabled.
    stage.put("ssls/2", with(ssl(&made.test2, "test2.com"), json!({"ssl_protocols": ["TLSv1.2"]}))).await;
    assert_eq!(version(&stage, "test2.com", "-tls1_2").await, "TLSv1.2");
    assert_eq!(version(&stage, "test2.com", "-tls1_3").await, "refused");
    served(&stage.curl("test2.com", "/hello", &["--tls-max", "1.2"]).await, "/hello");
}
use e2e::fixtures::{FIXTURES, INCORRECT};
