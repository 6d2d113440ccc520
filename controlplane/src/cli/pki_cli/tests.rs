//! The commands as on the command line, in a temporary directory.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use clap::{CommandFactory, FromArgMatches, Parser};
use rustls_pki_types::UnixTime;

use super::*;

#[derive(Parser)]
struct PkiCommandLine {
    #[command(flatten)]
    pki: PkiArgs,
}

fn now() -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(1_800_000_000))
}

fn pki(arguments: &[&str]) -> Result<String, String> {
    pki_for(Path::new("conf/config.yaml"), arguments)
}

fn pki_for(config: &Path, arguments: &[&str]) -> Result<String, String> {
    let words = std::iter::once("pki").chain(arguments.iter().copied());
    let matches = PkiCommandLine::command().try_get_matches_from(words).map_err(|error| error.to_string())?;
    let command_line = PkiCommandLine::from_arg_matches(&matches).unwrap();
    let mut out = Vec::new();
    let result = run(config, &command_line.pki, now(), &mut out);
    let output = String::from_utf8(out).unwrap();
    result.map(|()| output.clone()).map_err(|error| format!("{output}{error}"))
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn init_makes_the_files_of_the_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("pki");
    pki(&["init", "--dir", text(&dir), "--admin-name", "gate.test"]).unwrap();

    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("../conf/config.yaml");
    let lookup = |name: &str| (name == "COUNTERSIGN_PKI").then(|| text(&dir).to_owned());
    let settings =
        conf::load_text(&config, &std::fs::read_to_string(&config).unwrap(), folder.path(), &lookup).unwrap();
    let admin = settings.deployment.admin.listeners[0].tls.clone().unwrap();
    let (push, node) = (settings.countersign.push, settings.countersign.node);
    for path in [&admin.cert, admin.ca.as_ref().unwrap(), &push.cert, &push.ca, &node.cert, &node.ca] {
        assert!(!pki::certificates_from_pem(&std::fs::read_to_string(path).unwrap()).unwrap().is_empty());
    }
    for (cert, key) in [(&admin.cert, &admin.key), (&push.cert, &push.key), (&node.cert, &node.key)] {
        let certificates = pki::certificates_from_pem(&std::fs::read_to_string(cert).unwrap()).unwrap();
        let key_text = std::fs::read_to_string(key).unwrap();
        pki::PrivateKey::from_pem(&key_text).unwrap().matches(&certificates[0]).unwrap();
        assert_eq!(std::fs::metadata(key).unwrap().permissions().mode() & 0o777, 0o600);
    }
    let output = pki(&["show", text(&admin.cert), text(&admin.key)]).unwrap();
    for part in ["gate.test", "127.0.0.1", "::1", "localhost", "TLS server", "364 days left", "belongs to"] {
        assert!(output.contains(part), "{part} is not in {output}");
    }
    let output = pki(&["show", text(&node.cert)]).unwrap();
    assert!(output.contains("names        dataplane") && output.contains("TLS client"), "{output}");
}

#[test]
fn files_are_replaced_with_force_only() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("pki");
    pki(&["init", "--dir", text(&dir)]).unwrap();
    std::fs::remove_file(dir.join("admin-ca.crt")).unwrap();
    let before = std::fs::read(dir.join("node.key")).unwrap();
    let error = pki(&["init", "--dir", text(&dir)]).unwrap_err();
    assert!(error.contains("node.key") && error.contains("--force"), "{error}");
    assert!(!dir.join("admin-ca.crt").exists(), "all or nothing");
    assert_eq!(std::fs::read(dir.join("node.key")).unwrap(), before);
    pki(&["init", "--dir", text(&dir), "--force"]).unwrap();
    assert_ne!(std::fs::read(dir.join("node.key")).unwrap(), before);
    assert_eq!(std::fs::metadata(dir.join("node.key")).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn issue_never_outlives_the_ca() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    pki(&["issue", "ca", "Test Root", "--out", &at("root"), "--days", "30"]).unwrap();
    pki(&["issue", "ca", "Test Middle", "--ca", &at("root.crt"), "--out", &at("middle")]).unwrap();
    let output =
        pki(&["issue", "client", "alice", "spiffe://x/alice", "--ca", &at("middle"), "--out", &at("alice")])
            .unwrap();
    assert!(output.contains("valid for 30 days"), "{output}");
    let chain = pki::certificates_from_pem(&std::fs::read_to_string(at("alice.crt")).unwrap()).unwrap();
    assert_eq!(chain.len(), 2, "the leaf and the intermediate, not the root");
    let output = pki(&["show", &at("alice.crt"), &at("alice.key"), &at("root.crt")]).unwrap();
    assert!(output.contains("alice.crt: the chain is good"), "{output}");
    assert!(output.contains("spiffe://x/alice") && output.contains("an intermediate CA"), "{output}");
    let error = pki(&["show", &at("alice.crt"), &at("root.key")]).unwrap_err();
    assert!(error.contains("BELONGS TO NONE"), "{error}");

    pki(&["issue", "server", "www.test", "--ca", &at("middle"), "--out", &at("www")]).unwrap();
    let output = pki(&["show", &at("www.crt"), &at("root.crt")]).unwrap();
    assert!(output.contains("www.crt: the chain is good"), "{output}");
    pki(&["issue", "ca", "Other Root", "--out", &at("other")]).unwrap();
    let error = pki(&["show", &at("www.crt"), &at("other.crt")]).unwrap_err();
    assert!(error.contains("THE CHAIN IS NOT GOOD"), "{error}");
}

#[test]
fn invalid_arguments_have_messages() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    assert!(pki(&["issue", "server", "a.test", "--out", &at("a")]).unwrap_err().contains("--ca is missing"));
    assert!(pki(&["issue", "node", "n", "--ca", &at("none")]).unwrap_err().contains("none.crt"));
    std::fs::write(at("garbage"), "hello").unwrap();
    assert!(pki(&["show", &at("garbage")]).unwrap_err().contains("not a PEM file"));
    assert!(pki(&["issue", "client", "x", "--days", "0"]).is_err());
    let error = pki(&["show", "/dev/zero"]).unwrap_err();
    assert!(error.contains("/dev/zero") && error.contains("more than"), "{error}");
}

#[test]
fn init_writes_where_the_settings_point() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("gate.yaml");
    assert!(pki_for(&config, &["init"]).unwrap_err().contains("gate.yaml"), "there are no settings");
    std::fs::write(&config, "countersign: {push: {cert: tls/push-server.crt}}\n").unwrap();
    let output = pki_for(&config, &["init"]).unwrap();
    assert!(output.contains(&format!("dataplane -c {}", config.display())), "{output}");
    assert!(folder.path().join("tls/keyring").exists() && folder.path().join("tls/node.key").exists());
}

#[test]
fn init_creates_a_missing_keyring() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("pki");
    pki(&["init", "--dir", text(&dir)]).unwrap();
    let read = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap();
    let (node, keyring) = (read("node.key"), read("keyring"));
    std::fs::remove_file(dir.join("keyring")).unwrap();
    // As recommended: the CA keys are kept elsewhere.
    std::fs::remove_file(dir.join("push-ca.key")).unwrap();
    let output = pki(&["init", "--dir", text(&dir)]).unwrap();
    assert!(output.contains("was lost, put its copy there"), "{output}");
    assert!(read("keyring") != keyring && read("node.key") == node);
    assert_eq!(std::fs::metadata(dir.join("keyring")).unwrap().permissions().mode() & 0o777, 0o600);
    let keyring = read("keyring");
    assert!(pki(&["init", "--dir", text(&dir)]).unwrap_err().contains("there already"));
    assert_eq!(read("keyring"), keyring, "it is never replaced");
    // If another file is missing, too, nothing is made: the existing files would not match.
    std::fs::remove_file(dir.join("keyring")).unwrap();
    std::fs::remove_file(dir.join("node.crt")).unwrap();
    assert!(pki(&["init", "--dir", text(&dir)]).is_err());
    assert!(!dir.join("keyring").exists());
}
