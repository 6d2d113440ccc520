//! Messages for invalid `client` members: field, value found, value expected.

use pki::ca::{Authority, AuthoritySpec, CrlSpec, LeafSpec};
use rustls_pki_types::UnixTime;

use super::*;
use crate::samples::AUTHORITY;

fn root(name: &str) -> Authority {
    Authority::root(&AuthoritySpec::new(name)).unwrap()
}

fn with_client(client: Value) -> Value {
    ssl(json!({"client": client}))
}

fn list(authority: &Authority) -> String {
    authority.crl_pem(&CrlSpec::default()).unwrap()
}

/// The problem of a `client`: its field and its full text.
#[track_caller]
fn problem_text(client: Value) -> (String, String) {
    let compiled = compile(Kind::Ssl, &id("1"), &with_client(client), &Keyring::empty());
    let problem = match compiled.and_then(|resource| check_validity_period(&resource, UnixTime::now())) {
        Err(problem) => problem,
        Ok(()) => panic!("it was accepted"),
    };
    (problem.field.clone(), problem.to_string())
}

#[track_caller]
fn tells(client: Value, field: &str, parts: &[&str]) {
    let (found, text) = problem_text(client);
    assert_eq!(found, field, "{text}");
    for part in parts {
        assert!(text.contains(part), "no {part:?} in: {text}");
    }
}

#[test]
fn bundle_errors_name_the_certificate() {
    let (one, two) = (root("One").certificate_pem(), root("Two").certificate_pem());
    let third = |text: &str| json!({"ca": format!("{one}{two}{text}")});
    let block = |body: &str| format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n");
    let place = "certificate 3 of the text (the one after `CN=Two`)";
    tells(third(&block("MAA=")), "client.ca", &[place, "not an X.509 certificate"]);
    tells(third(&block("?")), "client.ca", &[place, "is not base64"]);
    tells(
        third("-----BEGIN CERTIFICATE-----\nMAA="),
        "client.ca",
        &[place, "no `-----END CERTIFICATE-----` line"],
    );
    tells(json!({"ca": "x".repeat(200)}), "client.ca", &["no certificate found", "expected a block"]);
    tells(
        json!({"ca": list(&root("One"))}),
        "client.ca",
        &["the block `X509 CRL` is among the certificates"],
    );
}

#[test]
fn a_private_key_in_the_bundle_is_invalid() {
    let authority = root("One");
    let key = authority.key_pem().to_string();
    let both = format!("{}{key}", authority.certificate_pem());
    for (client, field) in [
        (json!({"ca": key}), "client.ca"),
        (json!({"ca": both}), "client.ca"),
        (
            json!({"ca": authority.certificate_pem(), "crl": [format!("{}{key}", list(&authority))]}),
            "client.crl[1]",
        ),
    ] {
        let (found, text) = problem_text(client);
        assert_eq!(found, field);
        assert!(text.contains("holds a private key") && text.contains("expected"), "{text}");
        assert!(!text.contains(key.lines().nth(1).unwrap()), "a key is never quoted");
    }
}

#[test]
fn unusable_anchors_are_invalid() {
    let at = |days: u64| {
        UnixTime::since_unix_epoch(std::time::Duration::from_secs(
            UnixTime::now().as_secs() - 30 * 86_400 + days * 86_400,
        ))
    };
    let own = AUTHORITY.certificate_pem();
    let with = |pem: String| json!({"ca": format!("{own}{pem}")});
    let ended = Authority::root(&AuthoritySpec::new("Ended").valid(at(0), 10)).unwrap();
    tells(
        with(ended.certificate_pem()),
        "client.ca",
        &["certificate 2 \"CN=Ended\" is expired", "successor"],
    );
    let early = Authority::root(&AuthoritySpec::new("Early").valid(at(40), 10)).unwrap();
    tells(with(early.certificate_pem()), "client.ca", &["certificate 2 \"CN=Early\" is not valid yet"]);
    let server = AUTHORITY.issue(&LeafSpec::server("a.com")).unwrap();
    tells(
        with(server.certificate_pem),
        "client.ca",
        &["certificate 2 \"CN=a.com\" is not a CA", "not for TLS clients", "takes the CA certificates"],
    );
    let pinned = AUTHORITY.issue(&LeafSpec::client("alice")).unwrap();
    let document = with_client(with(pinned.certificate_pem));
    let resource = checked(Kind::Ssl, &document).unwrap();
    assert_eq!(
        check_validity_period(&resource, UnixTime::now()),
        Ok(()),
        "a client's own certificate is pinned"
    );
}

#[test]
fn pattern_errors_have_their_position() {
    let with =
        |pattern: &str| json!({"ca": AUTHORITY.certificate_pem(), "skip_mtls_uri_regex": ["^/a", pattern]});
    let field = "client.skip_mtls_uri_regex[2]";
    for pattern in ["/(?!admin)", "(?<=x)y", "(a)\\1"] {
        tells(with(pattern), field, &[pattern, "patterns that need back-tracking are not supported"]);
    }
    tells(with("("), field, &["`(`", "unclosed group"]);
    tells(with("(a{1000}){1000}"), field, &["smaller repetition counts"]);
}

#[test]
fn crls_of_intermediates_carry_their_signer() {
    let authority = root("Root");
    let between = authority.intermediate(&AuthoritySpec::new("Between")).unwrap();
    let below = between.intermediate(&AuthoritySpec::new("Below")).unwrap();
    let with = |crls: Value| json!({"ca": authority.certificate_pem(), "depth": 2, "crl": crls});
    tells(
        with(json!([list(&authority), list(&between)])),
        "client.crl[2]",
        &["\"CN=Between\"", "behind the list in the same text"],
    );
    let beside = |list: String, signers: &[&Authority]| {
        signers.iter().fold(list, |text, signer| text + &signer.certificate_pem())
    };
    // In any order, and one list may carry the signer of another.
    let known = json!([beside(list(&below), &[&below]), beside(list(&between), &[&between])]);
    let Resource::Ssl(made) = checked(Kind::Ssl, &with_client(with(known))).unwrap() else {
        panic!("not an ssl")
    };
    let policy = made.client.as_ref().unwrap();
    assert_eq!((policy.crls().len(), policy.anchors().certificates().len()), (2, 1), "a signer is no anchor");

    let (other, namesake) = (root("Other"), root("Root"));
    let forged = namesake.intermediate(&AuthoritySpec::new("Between")).unwrap();
    for unknown in [&other, &forged] {
        let subject = unknown.certificate().subject().to_owned();
        tells(
            with(json!([list(&authority), beside(list(unknown), &[unknown])])),
            "client.crl[2]",
            &[&subject, "no certificate of client.ca issued"],
        );
    }
    let leaf = between.issue(&LeafSpec::client("alice")).unwrap().certificate_pem;
    let many = leaf.repeat(65);
    tells(with(json!([list(&authority) + &many])), "client.crl[1]", &["more than 64 certificates"]);
}

/// `client.crl` after its lists were carried over to the bundle `ca`, and the dropped entries.
fn carried_over(ca: &str, texts: &[String]) -> (Value, Vec<String>) {
    let mut client = json!({"ca": ca, "crl": texts, "crl_policy": "prefer"});
    let dropped = drop_unsigned_crls(client.as_object_mut().unwrap(), ca);
    if client.get("crl").is_none() {
        assert_eq!(client, json!({"ca": ca}), "the policy goes with the last list");
    }
    compile(Kind::Ssl, &id("1"), &with_client(client.clone()), &Keyring::empty()).unwrap();
    (client.get("crl").cloned().unwrap_or_default(), dropped)
}

#[test]
fn carried_over_crls_of_other_issuers_are_dropped() {
    let (one, two) = (root("One"), root("Two"));
    let under_one = one.intermediate(&AuthoritySpec::new("Under one")).unwrap();
    let (of_one, of_two) = (list(&one), list(&two));
    let beside = format!("{}{}", list(&under_one), under_one.certificate_pem());
    let ca = one.certificate_pem();
    let both = format!("{ca}{}", two.certificate_pem());
    let kept = |texts: &[&String]| json!(texts);
    let dropped_two = vec!["the list of \"CN=Two\"".to_owned()];
    assert_eq!(carried_over(&both, &[of_one.clone(), of_two.clone()]), (kept(&[&of_one, &of_two]), vec![]));
    assert_eq!(carried_over(&ca, &[of_one.clone(), of_two.clone()]), (kept(&[&of_one]), dropped_two.clone()));
    assert_eq!(carried_over(&ca, std::slice::from_ref(&of_two)), (Value::Null, dropped_two.clone()));
    // The signed list of a text stays, with the certificate that it needs.
    let mixed = format!("# lists\n{of_two}{beside}");
    assert_eq!(carried_over(&ca, &[mixed]), (kept(&[&beside]), dropped_two));
    let (left, dropped) = carried_over(&two.certificate_pem(), &[format!("{of_two}{beside}")]);
    assert_eq!(left, kept(&[&of_two]));
    assert_eq!(dropped, ["the list of \"CN=Under one\"", "the certificate \"CN=Under one\""]);
    // The intermediate is an anchor of the new bundle.
    let (left, dropped) = carried_over(&under_one.certificate_pem(), &[of_one, list(&under_one)]);
    assert_eq!((left.as_array().map(Vec::len), dropped.len()), (Some(1), 1));
    // Unreadable texts stay for `compile` to report.
    let mut client = json!({"ca": ca, "crl": ["x", of_two]});
    let before = client.clone();
    assert!(drop_unsigned_crls(client.as_object_mut().unwrap(), &ca).is_empty());
    assert_eq!(client, before);
}
