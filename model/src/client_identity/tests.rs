use data_encoding::HEXUPPER;
use pki::ca::LeafSpec;
use pki::{ClientAuth, ClientAuthInput, Identity, UnixTime, verify_client};
use serde_json::json;

use super::*;
use crate::samples::AUTHORITY;

fn identity(spec: LeafSpec) -> Identity {
    let anchors = vec![AUTHORITY.certificate().clone()];
    let policy = ClientAuth::new(ClientAuthInput { anchors, ..ClientAuthInput::default() }).unwrap();
    let leaf = AUTHORITY.issue(&spec).unwrap();
    let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(1_780_000_000));
    verify_client(&policy, leaf.chain[0].der(), &[], now).unwrap().identity().clone()
}

fn block(entry: Value) -> ClientIdentity {
    ClientIdentity::compile(&json!({"allow": [entry]})).unwrap()
}

#[track_caller]
fn fits(entry: Value, identity: &Identity) -> bool {
    block(entry).allows(Some(identity))
}

#[test]
fn spiffe_prefixes_end_at_segments() {
    let ab = identity(LeafSpec::client("x").uri("spiffe://a.example/ns/ab/sa/x"));
    for (entry, expected) in [
        ("spiffe://a.example/ns/ab/sa/x", true),
        ("spiffe://a.example/ns/ab/*", true),
        ("spiffe://a.example/ns/*", true),
        ("spiffe://a.example/*", true),
        ("spiffe://a.example/ns/a/*", false),
        ("spiffe://a.example/ns/ab", false),
        ("spiffe://a.example/ns/ab/sa/x/*", false),
        ("spiffe://a.example/ns/AB/*", false),
        ("spiffe://a/*", false),
        ("spiffe://example/*", false),
    ] {
        assert_eq!(fits(json!({"spiffe": entry}), &ab), expected, "{entry}");
    }
    let allowed = json!({"spiffe": "spiffe://a.example/*"});
    for other in [
        "spiffe://a.example.evil/ns/ab",
        "spiffe://a.example",
        "spiffe://a.example/",
        "spiffe://a.example//x",
        "spiffe://a.example/../b",
        "spiffe://A.example/x",
        "SPIFFE://a.example/x",
        "spiffe://a.example:8443/x",
        "spiffe://evil@a.example/x",
        "spiffe://a.example/x?y",
        "spiffe://a.example/%78",
        "https://a.example/x",
    ] {
        assert!(!fits(allowed.clone(), &identity(LeafSpec::client("x").uri(other))), "{other}");
    }
    // A certificate with two URIs has no SPIFFE id, but each URI may match as a URI.
    let two = identity(LeafSpec::client("x").uri("spiffe://a.example/x").uri("https://b.example"));
    assert!(!fits(allowed, &two));
    assert!(fits(json!({"uri": "https://b.example"}), &two));
    assert!(!fits(json!({"uri": "https://b.example/"}), &two));
}

#[test]
fn dns_and_email_match_but_common_name_does_not() {
    let client = identity(
        LeafSpec::client("cn.example").dns("One.Example").dns("*.wild.example").email("Ops@Example.org"),
    );
    for (entry, expected) in [
        (json!({"dns": "one.example"}), true),
        (json!({"dns": "ONE.example"}), true),
        (json!({"dns": "*.example"}), true),
        (json!({"dns": "cn.example"}), false),
        (json!({"dns": "a.wild.example"}), false),
        (json!({"dns": "*.wild.example"}), false),
        (json!({"dns": "ne.example"}), false),
        (json!({"dns": "*.one.example"}), false),
        (json!({"email": "Ops@example.ORG"}), true),
        (json!({"email": "ops@example.org"}), false),
        (json!({"email": "Ops@example.org.evil"}), false),
    ] {
        assert_eq!(fits(entry.clone(), &client), expected, "{entry}");
    }
    assert!(!fits(json!({"dns": "*.example"}), &identity(LeafSpec::client("x").dns("a.b.example"))));
    assert!(!fits(json!({"dns": "*.example"}), &identity(LeafSpec::client("x").dns("example"))));
}

#[test]
fn subject_serial_and_key() {
    let client = identity(LeafSpec::client("Alice").organization("Acme"));
    let serial = client.serial_hex();
    let key = HEXUPPER.encode(client.certificate().spki_sha256());
    let colons = serial
        .as_bytes()
        .chunks(2)
        .map(|pair| std::str::from_utf8(pair).unwrap())
        .collect::<Vec<_>>()
        .join(":");
    for (entry, expected) in [
        (json!({"subject": client.subject()}), true),
        (json!({"subject": "cn=alice, o=ACME"}), true),
        (json!({"subject": "O=Acme,CN=Alice"}), false),
        (json!({"subject": "CN=Alice"}), false),
        (json!({"subject": "CN=Alice,O=Acme,C=US"}), false),
        (json!({"subject": "CN=Alice\\,O=Acme"}), false),
        (json!({"serial": serial}), true),
        (json!({"serial": colons.to_lowercase()}), true),
        (json!({"serial": format!("000{serial}")}), true),
        (json!({"serial": format!("{serial}00")}), false),
        (json!({"serial": serial, "issuer": client.issuer()}), true),
        (json!({"serial": serial, "issuer": "CN=Another CA"}), false),
        (json!({"spki_sha256": key}), true),
        (json!({"spki_sha256": key.replace(&key[..2], if &key[..2] == "00" { "01" } else { "00" })}), false),
    ] {
        assert_eq!(fits(entry.clone(), &client), expected, "{entry}");
    }
}

#[test]
fn one_matching_entry_allows_and_no_identity_is_denied() {
    let client = identity(LeafSpec::client("a").dns("a.example"));
    let list =
        ClientIdentity::compile(&json!({"allow": [{"dns": "b.example"}, {"dns": "a.example"}]})).unwrap();
    assert!(list.allows(Some(&client)));
    assert!(!list.allows(None));
    assert!(ClientIdentity::compile(&json!({"forward": ["xfcc"]})).unwrap().allows(None), "without a list");
}

#[test]
fn entries_that_match_no_client_are_invalid() {
    for (source, field) in [
        (json!({"allow": [{}]}), "client_identity.allow[1]"),
        (json!({"allow": []}), "client_identity.allow"),
        (json!({"allow": [{"dns": "a", "uri": "b"}]}), "client_identity.allow[1]"),
        (json!({"allow": [{"dns": "a"}, {"dns": "a.*"}]}), "client_identity.allow[2].dns"),
        (json!({"allow": [{"dns": "a."}]}), "client_identity.allow[1].dns"),
        (json!({"allow": [{"dns": "*"}]}), "client_identity.allow[1].dns"),
        (json!({"allow": [{"spiffe": "spiffe://a"}]}), "client_identity.allow[1].spiffe"),
        (json!({"allow": [{"spiffe": "spiffe://A/x"}]}), "client_identity.allow[1].spiffe"),
        (json!({"allow": [{"spiffe": "spiffe://a/*/b"}]}), "client_identity.allow[1].spiffe"),
        (json!({"allow": [{"spiffe": "a/b"}]}), "client_identity.allow[1].spiffe"),
        (json!({"allow": [{"email": "a"}]}), "client_identity.allow[1].email"),
        (json!({"allow": [{"subject": "/CN=a"}]}), "client_identity.allow[1].subject"),
        (json!({"allow": [{"serial": "xyz"}]}), "client_identity.allow[1].serial"),
        (json!({"allow": [{"serial": ""}]}), "client_identity.allow[1].serial"),
        (json!({"allow": [{"serial": "1", "issuer": "x"}]}), "client_identity.allow[1].issuer"),
        (json!({"allow": [{"dns": "a", "issuer": "CN=x"}]}), "client_identity.allow[1].issuer"),
        (json!({"allow": [{"spki_sha256": "00"}]}), "client_identity.allow[1].spki_sha256"),
        (json!({"allow": [{"uri": "é"}]}), "client_identity.allow[1].uri"),
        (json!({"allow": [{"dsn": "a"}]}), "client_identity.allow[1].dsn"),
        (json!({"forward": ["client_cert_chain"]}), "client_identity.forward"),
        (json!({"forward": ["xfcc_cert"]}), "client_identity.forward"),
        (json!({"forward": ["x"]}), "client_identity.forward[1]"),
        (json!({"alow": []}), "client_identity.alow"),
        (json!("x"), "client_identity"),
    ] {
        let problem = ClientIdentity::compile(&source).expect_err(&source.to_string());
        assert_eq!(problem.field, field, "{problem}");
        assert!(problem.message.contains(field), "{problem}");
    }
}
