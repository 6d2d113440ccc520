use std::process::Command;

use super::*;
use crate::ca::{Authority, AuthoritySpec, KeyAlgorithm, LeafSpec};

/// Runs the openssl command line. A missing openssl fails the test instead of skipping it.
fn openssl(args: &[&str]) -> String {
    let output = Command::new("openssl")
        .args(args)
        .output()
        .expect("the openssl command line is needed for this test");
    assert!(output.status.success(), "openssl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn openssl_keys_are_parsed() {
    let rsa = openssl(&["genrsa", "-traditional", "2048"]);
    assert_eq!(PrivateKey::from_pem(&rsa).unwrap().format(), KeyFormat::Pkcs1);
    let pkcs8 = openssl(&["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"]);
    assert_eq!(PrivateKey::from_pem(&pkcs8).unwrap().format(), KeyFormat::Pkcs8);
    for curve in ["prime256v1", "secp384r1", "secp521r1"] {
        let sec1 = openssl(&["ecparam", "-genkey", "-name", curve]);
        assert!(sec1.contains("EC PARAMETERS"), "the block that must be passed over");
        assert_eq!(PrivateKey::from_pem(&sec1).unwrap().format(), KeyFormat::Sec1, "{curve}");
    }
    let ed25519 = openssl(&["genpkey", "-algorithm", "ED25519"]);
    assert_eq!(PrivateKey::from_pem(&format!("some text\n{ed25519}")).unwrap().format(), KeyFormat::Pkcs8);
}

#[test]
fn unsupported_keys_are_rejected() {
    let refused = |pem: &str| PrivateKey::from_pem(pem).unwrap_err();
    assert_eq!(refused(&openssl(&["genpkey", "-algorithm", "X25519"])), KeyError::Unsupported);
    let weak = openssl(&["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024"]);
    assert!(matches!(refused(&weak), KeyError::Unsupported | KeyError::Malformed { .. }));
    let encrypted = openssl(&["genpkey", "-algorithm", "ED25519", "-aes-128-cbc", "-pass", "pass:x"]);
    assert_eq!(refused(&encrypted), KeyError::Encrypted);
    let legacy = openssl(&["genrsa", "-traditional", "-aes128", "-passout", "pass:xxxx", "2048"]);
    assert_eq!(refused(&legacy), KeyError::Encrypted);
    assert_eq!(refused("nothing"), KeyError::NoKey);
    assert_eq!(
        refused("-----BEGIN PRIVATE KEY-----\nAAEC\n-----END PRIVATE KEY-----"),
        KeyError::Malformed { format: KeyFormat::Pkcs8 }
    );
}

#[test]
fn debug_shows_no_private_key() {
    let root = Authority::root(&AuthoritySpec::new("Root")).unwrap();
    let leaf = root.issue(&LeafSpec::client("a").algorithm(KeyAlgorithm::P384)).unwrap();
    let key = leaf.key().unwrap();
    assert_eq!(format!("{key:?}"), "PrivateKey(Pkcs8, not shown)");
    assert_eq!(PrivateKey::from_pem(&key.to_pem()).unwrap(), key);
    assert_ne!(root.issue(&LeafSpec::client("b")).unwrap().key().unwrap(), key);
}
