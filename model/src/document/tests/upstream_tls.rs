//! `tls` of upstreams: whose servers are accepted (contract 3.2).

use pki::ca::{Authority, AuthoritySpec, LeafSpec, Usages};
use rustls_pki_types::UnixTime;

use super::*;
use crate::resource::{UpstreamTls, VerifyPolicy};
use crate::samples::AUTHORITY;

fn root(name: &str) -> String {
    Authority::root(&AuthoritySpec::new(name)).unwrap().certificate_pem()
}

fn tls(tls: Value) -> Value {
    upstream(json!({"scheme": "https", "tls": tls}))
}

fn compiled(document: &Value) -> UpstreamTls {
    let Resource::Upstream(upstream) = checked(Kind::Upstream, document).unwrap() else {
        panic!("not an upstream")
    };
    upstream.tls.clone()
}

#[test]
fn ca_certs_may_be_bundles() {
    let (one, two, three) = (root("One"), root("Two"), root("Three"));
    let compiled = compiled(&tls(json!({"ca_certs": [format!("{one}{two}"), three, one]})));
    let anchors = compiled.anchors.unwrap();
    let subjects: Vec<_> = anchors.certificates().iter().map(pki::Certificate::subject).collect();
    assert_eq!(subjects, ["CN=One", "CN=Two", "CN=Three"]);
    assert_eq!((compiled.verify, compiled.verify_identity), (None, None));
}

#[test]
fn verify_has_three_values() {
    for (value, verify) in [(json!({}), None), (json!({"verify": true}), Some(true))] {
        assert_eq!(compiled(&tls(value)).verify, verify);
    }
    let off = compiled(&tls(json!({"verify": false})));
    let policies = [VerifyPolicy::WhereAsked, VerifyPolicy::UnlessExcepted, VerifyPolicy::Always];
    assert_eq!(policies.map(|policy| off.verifies(policy)), [false, false, true]);
    let unset = UpstreamTls::default();
    assert_eq!(policies.map(|policy| unset.verifies(policy)), [false, true, true]);
    let entries = json!([{"spiffe": "spiffe://a.test/b"}, {"dns": "*.a.test"}]);
    let identity = compiled(&tls(json!({"verify_identity": entries})));
    assert!(identity.verifies(VerifyPolicy::WhereAsked), "who names servers wants them verified");
    assert_eq!(identity.verify_identity.unwrap().source(), &entries);
}

#[test]
fn unreadable_ca_certs_name_their_place() {
    let (good, key) = (root("One"), pem(0).1);
    let unreadable = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n".to_owned();
    let padding = "x".repeat(200);
    for (texts, field, part) in [
        (json!([good, format!("{good}{unreadable}")]), "tls.ca_certs[2]", "PEM_read_bio_X509_AUX() failed"),
        (json!([padding]), "tls.ca_certs[1]", "failed to parse tls.ca_certs[1]"),
        (json!([format!("{good}{key}")]), "tls.ca_certs[1]", "holds a private key"),
        (json!([format!("$env://{padding}")]), "tls.ca_certs[1]", "not supported"),
        (json!([]), "tls.ca_certs", "expect array to have at least 1 items"),
        (json!(["short"]), "tls.ca_certs[1]", "string too short"),
    ] {
        let problem = problem_of(Kind::Upstream, &tls(json!({"ca_certs": texts})));
        assert_eq!(problem.field, field, "{problem}");
        assert!(problem.message.contains(part), "{problem}");
    }
    let inline = route(json!({"upstream": tls(json!({"ca_certs": [good, unreadable + &"#".repeat(99)]}))}));
    assert_eq!(problem_of(Kind::Route, &inline).field, "upstream.tls.ca_certs[2]");
}

#[test]
fn anchors_that_verify_no_server_are_rejected_on_write() {
    let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(1_780_000_000));
    let at = |seconds| UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
    let message_of = |document: Value, kind, field: &str| {
        let resource = checked(kind, &document).unwrap();
        check_validity_period(&resource, now).map_err(|problem| {
            assert_eq!(problem.field, field);
            problem.message
        })
    };
    let of_upstream = |anchor: String| {
        message_of(tls(json!({"ca_certs": [root("One"), anchor]})), Kind::Upstream, "tls.ca_certs")
    };
    let expired = AuthoritySpec::new("Old").between(at(1_600_000_000), at(1_700_000_000));
    let expired = Authority::root(&expired).unwrap().certificate_pem();
    assert!(of_upstream(expired.clone()).unwrap_err().contains("certificate 2 \"CN=Old\" is expired"));
    let leaf = |spec: &LeafSpec| AUTHORITY.issue(spec).unwrap().certificate_pem;
    assert_eq!(of_upstream(leaf(&LeafSpec::server("a.test"))), Ok(()), "a pinned server");
    let client = LeafSpec::client("a").usages(Usages { server: false, client: true });
    assert!(of_upstream(leaf(&client)).unwrap_err().contains("is not a CA"));
    let inline = tls(json!({"ca_certs": [expired]}));
    for (kind, document) in [
        (Kind::Route, route(json!({"upstream": inline}))),
        (Kind::Service, json!({"upstream": inline})),
        (
            Kind::StreamRoute,
            stream_route(json!({"upstream": with(inline.clone(), json!({"scheme": "tls"}))})),
        ),
    ] {
        assert!(message_of(document, kind, "upstream.tls.ca_certs").is_err());
    }
}

#[test]
fn verify_identity_contradicts_no_verification() {
    let entries = json!([{"dns": "a.test"}]);
    let both = problem_of(Kind::Upstream, &tls(json!({"verify": false, "verify_identity": entries})));
    assert_eq!(both.field, "tls.verify");
    let entry = |entry: Value| problem_of(Kind::Upstream, &tls(json!({"verify_identity": [entry]})));
    let two = entry(json!({"dns": "a.test", "uri": "a:b"}));
    assert_eq!(
        two.message,
        "invalid configuration: property \"tls.verify_identity[1]\": an entry names a server in exactly one way"
    );
    assert_eq!(entry(json!({"spki_sha256": "00"})).field, "tls.verify_identity[1].spki_sha256");
    assert_eq!(entry(json!({"subject": "CN=a"})).field, "tls.verify_identity[1].subject");
}
