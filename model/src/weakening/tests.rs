use pki::Keyring;
use pki::ca::{Authority, AuthoritySpec, CrlSpec, LeafSpec};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::id::Kind;
use crate::samples::{AUTHORITY, id, some_versioned};

fn checked(kind: Kind, document: &Value) -> Resource {
    crate::compile(kind, &id("1"), document, &Keyring::empty())
        .unwrap_or_else(|problem| panic!("{document}: {problem}"))
}

fn fields(kind: Kind, old: &Value, new: &Value) -> Vec<String> {
    let found = weakenings(&checked(kind, old), &checked(kind, new));
    found.into_iter().map(|weakening| weakening.field).collect()
}

/// Asserts that the change weakens this field only, and that the reverse weakens nothing.
#[track_caller]
fn weaker(kind: Kind, strong: Value, weak: Value, field: &str) {
    assert_eq!(fields(kind, &strong, &weak), [field], "{kind}: {strong} -> {weak}");
    assert_eq!(fields(kind, &weak, &strong), [""; 0], "{kind}: {weak} -> {strong}");
}

/// Asserts that neither direction weakens anything.
#[track_caller]
fn equal(kind: Kind, one: Value, other: Value) {
    assert_eq!(fields(kind, &one, &other), [""; 0], "{kind}: {one} -> {other}");
    assert_eq!(fields(kind, &other, &one), [""; 0], "{kind}: {other} -> {one}");
}

fn with(mut document: Value, more: Value) -> Value {
    for (name, value) in more.as_object().unwrap() {
        document[name] = value.clone();
    }
    document
}

struct Site {
    base: Value,
    one: Authority,
    two: Authority,
}

impl Site {
    fn new() -> Site {
        let issued = AUTHORITY.issue(&LeafSpec::server("a.test").dns("b.test")).unwrap();
        let base =
            json!({"cert": issued.certificate_pem, "key": *issued.key_pem, "snis": ["a.test", "b.test"]});
        let root = |name: &str| Authority::root(&AuthoritySpec::new(name)).unwrap();
        Site { base, one: root("One"), two: root("Two") }
    }

    fn with(&self, more: Value) -> Value {
        with(with(self.base.clone(), json!({"client": {"ca": self.one.certificate_pem()}})), more)
    }

    fn client(&self, more: Value) -> Value {
        self.with(json!({"client": with(json!({"ca": self.one.certificate_pem()}), more)}))
    }
}

#[test]
fn weakenings_of_a_site() {
    let site = Site::new();
    let plain = site.client(json!({}));
    let both = format!("{}{}", site.one.certificate_pem(), site.two.certificate_pem());
    let weaker = |strong: Value, weak: Value, field: &str| weaker(Kind::Ssl, strong, weak, field);
    weaker(plain.clone(), site.base.clone(), "client");
    weaker(plain.clone(), site.client(json!({"ca": both})), "client.ca");
    weaker(plain.clone(), site.client(json!({"depth": 2})), "client.depth");
    weaker(site.client(json!({"depth": 0})), plain.clone(), "client.depth");
    weaker(
        plain.clone(),
        site.client(json!({"skip_mtls_uri_regex": ["^/a$"]})),
        "client.skip_mtls_uri_regex",
    );
    let skips = |patterns: Value| site.client(json!({"skip_mtls_uri_regex": patterns}));
    weaker(skips(json!(["^/a$"])), skips(json!(["^/a$", "^/b$"])), "client.skip_mtls_uri_regex");
    weaker(plain.clone(), site.with(json!({"status": 0})), "status");
    weaker(plain.clone(), site.with(json!({"snis": ["a.test"]})), "snis");
    equal(Kind::Ssl, plain.clone(), site.with(json!({"snis": ["b.test", "a.test"]})));
    assert_eq!(
        fields(Kind::Ssl, &plain, &site.with(json!({"snis": ["*.test"]}))),
        [""; 0],
        "it still answers to both"
    );
    assert_eq!(fields(Kind::Ssl, &plain, &site.with(json!({"type": "client"}))), ["type"]);
    // Replacing the bundle trusts a new CA in both directions.
    let replaced = site.client(json!({"ca": site.two.certificate_pem()}));
    assert_eq!(fields(Kind::Ssl, &plain, &replaced), ["client.ca"]);
    assert_eq!(fields(Kind::Ssl, &replaced, &plain), ["client.ca"]);
    // A site without a client policy protects nothing.
    equal(Kind::Ssl, site.base.clone(), with(site.base.clone(), json!({"snis": ["a.test"], "status": 0})));
    let versions = |versions: Value| site.with(json!({"ssl_protocols": versions}));
    weaker(versions(json!(["TLSv1.3"])), versions(json!(["TLSv1.2", "TLSv1.3"])), "ssl_protocols");
    weaker(versions(json!(["TLSv1.3"])), plain.clone(), "ssl_protocols");
    equal(Kind::Ssl, versions(json!(["TLSv1.2"])), plain);
}

#[test]
fn weakenings_of_revocation() {
    let site = Site::new();
    let both = format!("{}{}", site.one.certificate_pem(), site.two.certificate_pem());
    let at = |seconds: u64| pki::UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
    let list = |authority: &Authority, serial: u8, from: u64| {
        let spec = CrlSpec::default().revoke_serial(vec![serial]).between(at(from), at(2_400_000_000));
        authority.crl_pem(&spec).unwrap()
    };
    let early = 1_750_000_000;
    let (one, two) = (list(&site.one, 1, early), list(&site.two, 1, early));
    let (other, newer) = (list(&site.one, 2, early), list(&site.one, 2, early + 1));
    let client = |more: Value| site.client(with(json!({"ca": both}), more));
    let weaker = |strong: Value, weak: Value, field: &str| weaker(Kind::Ssl, strong, weak, field);
    weaker(client(json!({"crl": [one]})), client(json!({})), "client.crl");
    weaker(client(json!({"crl": [one, other]})), client(json!({"crl": [one]})), "client.crl");
    // A newer list replaces an older one, whatever it revokes, but not the reverse.
    weaker(client(json!({"crl": [newer]})), client(json!({"crl": [one]})), "client.crl");
    assert_eq!(
        fields(Kind::Ssl, &client(json!({"crl": [one]})), &client(json!({"crl": [other]}))),
        ["client.crl"]
    );
    let prefer = |lists: Value| client(json!({"crl": lists, "crl_policy": "prefer"}));
    weaker(client(json!({"crl": [one]})), prefer(json!([one])), "client.crl_policy");
    weaker(prefer(json!([one, two])), prefer(json!([one])), "client.crl");
    // "require" rejects clients without a list.
    equal(Kind::Ssl, client(json!({"crl": [one, two]})), client(json!({"crl": [one]})));
    equal(Kind::Ssl, client(json!({"crl": [format!("{one}{two}")]})), client(json!({"crl": [two, one]})));
}

/// Made with `openssl ca -gencrl`: the whole list and one of CA certificates (onlyCA), a month
/// later, revoke serial 7; the third one, two months later, revokes none.
const CA: &str = "-----BEGIN CERTIFICATE-----
MIIBYTCCAQigAwIBAgIUVVs4LzEDBCgR3dIb8ewNEIlB430wCgYIKoZIzj0EAwIw
DjEMMAoGA1UEAwwDT25lMCAXDTI2MTEzMDEzNDQzNloYDzIwNTEwNzIyMTM0NDM2
WjAOMQwwCgYDVQQDDANPbmUwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAAQSRsLh
a8XkyPVa45c4VUZk4DnU126ZB8r5HY6hT7yXHW84fupA3LnXv8NjraspZu0J2/ne
+WxekKaCJluxGKuxo0IwQDAPBgNVHRMBAf8EBTADAQH/MA4GA1UdDwEB/wQEAwIB
BjAdBgNVHQ4EFgQU/OPzXqTpMFyg2CWvLVMryu2/tp0wCgYIKoZIzj0EAwIDRwAw
RAIgfsqpu4h/r/YerWM2U8jXgX9ABffYVJluCcgRkXzaUMECIHZT4sZ7fzpQUr4w
nPUtzadLW1096YYSMC9bsRI3CRWR
-----END CERTIFICATE-----
";
const WHOLE: &str = "-----BEGIN X509 CRL-----
MIHcMIGEAgEBMAoGCCqGSM49BAMCMA4xDDAKBgNVBAMMA09uZRcNMjUwMTAxMDAw
MDAwWhcNNDkwMTAxMDAwMDAwWjAUMBICAQcXDTI1MDEwMTAwMDAwMFqgLzAtMB8G
A1UdIwQYMBaAFPzj816k6TBcoNglry1TK8rtv7adMAoGA1UdFAQDAgEBMAoGCCqG
SM49BAMCA0cAMEQCIHIy07U6ZlMcu5FNUhwWnlcsFopgnTFo7A07KOD/+ex/AiAI
XjZ1dq9sGOXLsNx+a3z2aDJ3mvVT9NuDDHRVcxy+Ig==
-----END X509 CRL-----
";
const OF_CAS: &str = "-----BEGIN X509 CRL-----
MIHuMIGVAgEBMAoGCCqGSM49BAMCMA4xDDAKBgNVBAMMA09uZRcNMjUwMjAxMDAw
MDAwWhcNNDkwMTAxMDAwMDAwWjAUMBICAQcXDTI1MDEwMTAwMDAwMFqgQDA+MB8G
A1UdIwQYMBaAFPzj816k6TBcoNglry1TK8rtv7adMA8GA1UdHAEB/wQFMAOCAf8w
CgYDVR0UBAMCAQIwCgYIKoZIzj0EAwIDSAAwRQIgf7iNOjwdBuXpOC6cEDPBVljM
1gaoHFrs27FnfkXvc3wCIQDzrv++agxmRMymDTHXaJebGwV3mOHjqXW+lIX9i8ol
CQ==
-----END X509 CRL-----
";
const LATER: &str = "-----BEGIN X509 CRL-----
MIHHMG4CAQEwCgYIKoZIzj0EAwIwDjEMMAoGA1UEAwwDT25lFw0yNTAzMDEwMDAw
MDBaFw00OTAxMDEwMDAwMDBaoC8wLTAfBgNVHSMEGDAWgBT84/NepOkwXKDYJa8t
UyvK7b+2nTAKBgNVHRQEAwIBAzAKBggqhkjOPQQDAgNJADBGAiEA85YyroCnYITg
158qMXWLhp2+EMqb2oSaqyK22636LCQCIQC7ql/yZyqX2rOtmiHizenegMJ73BW9
ouhsum0covEfcw==
-----END X509 CRL-----
";

/// Names of authorities are not unique, and a list need not be about all certificates.
#[test]
fn a_list_replaces_one_of_the_same_key_and_scope() {
    let site = Site::new();
    let with_lists =
        |policy: &str, lists: Value| site.client(json!({"ca": CA, "crl": lists, "crl_policy": policy}));
    let lost = |policy: &str, lists: Value, later: Value| {
        fields(Kind::Ssl, &with_lists(policy, lists), &with_lists(policy, later))
    };
    for policy in ["prefer", "require"] {
        assert_eq!(lost(policy, json!([WHOLE]), json!([LATER])), [""; 0], "{policy}");
        assert_eq!(lost(policy, json!([OF_CAS]), json!([LATER])), [""; 0], "{policy}");
        assert_eq!(lost(policy, json!([WHOLE]), json!([WHOLE, OF_CAS])), [""; 0], "{policy}");
        assert_eq!(lost(policy, json!([LATER]), json!([WHOLE])), [""; 0], "{policy}");
    }
    assert_eq!(lost("prefer", json!([WHOLE]), json!([OF_CAS])), ["client.crl"]);
    assert_eq!(lost("require", json!([WHOLE]), json!([OF_CAS])), [""; 0], "the status is unknown");

    let rekeyed = Authority::root(&AuthoritySpec::new("One")).unwrap();
    let both = format!("{}{}", site.one.certificate_pem(), rekeyed.certificate_pem());
    let at = |seconds: u64| pki::UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
    let list = |authority: &Authority, from: u64, serial: u8| {
        let spec = CrlSpec::default().revoke_serial(vec![serial]).between(at(from), at(2_400_000_000));
        authority.crl_pem(&spec).unwrap()
    };
    let (old, new) = (list(&site.one, 1_750_000_000, 1), list(&rekeyed, 1_760_000_000, 2));
    let prefer = |lists: Value| site.client(json!({"ca": both, "crl": lists, "crl_policy": "prefer"}));
    assert_eq!(fields(Kind::Ssl, &prefer(json!([old, new])), &prefer(json!([new]))), ["client.crl"]);
    let renewed = list(&site.one, 1_760_000_000, 1);
    equal(Kind::Ssl, prefer(json!([old, new])), prefer(json!([new, old])));
    assert_eq!(fields(Kind::Ssl, &prefer(json!([old, new])), &prefer(json!([new, renewed]))), [""; 0]);

    // An intermediate signs, whose certificate is beside its list.
    let [issuing, other] = [(); 2].map(|()| site.one.intermediate(&AuthoritySpec::new("Issuing")).unwrap());
    let beside = |authority: &Authority, from: u64, serial: u8| {
        format!("{}{}", list(authority, from, serial), authority.certificate_pem())
    };
    let first = prefer(json!([beside(&issuing, 1_750_000_000, 1)]));
    let rotated = prefer(json!([beside(&issuing, 1_760_000_000, 2)]));
    assert_eq!(fields(Kind::Ssl, &first, &rotated), [""; 0]);
    let swapped = prefer(json!([beside(&other, 1_760_000_000, 2)]));
    assert_eq!(fields(Kind::Ssl, &first, &swapped), ["client.crl"]);
}

fn route(more: Value) -> Value {
    let allow = json!({"allow": [{"dns": "a.example"}, {"spiffe": "spiffe://x.example/ns/*"}]});
    let upstream = json!({"nodes": {"127.0.0.1:1": 1}});
    with(json!({"uri": "/a/*", "client_identity": allow, "upstream": upstream}), more)
}

fn allow(entries: Value) -> Value {
    json!({"client_identity": {"allow": entries}})
}

#[test]
fn weakenings_of_an_allow_list() {
    for kind in [Kind::Route, Kind::Service] {
        let base = || match kind {
            Kind::Route => route(json!({})),
            _ => json!({"client_identity": route(json!({}))["client_identity"]}),
        };
        let listed = |entries: Value| with(base(), allow(entries));
        let open = with(base(), json!({"client_identity": {"forward": ["xfcc"]}}));
        let mut without = base();
        without.as_object_mut().unwrap().remove("client_identity");
        weaker(kind, base(), open, "client_identity.allow");
        weaker(kind, base(), without, "client_identity.allow");
        let raw = json!({"plugins": {"proxy-rewrite": {"use_real_request_uri_unsafe": true}}});
        weaker(kind, base(), with(base(), raw), "plugins.proxy-rewrite.use_real_request_uri_unsafe");
        let (a, b) = (json!({"dns": "a.example"}), json!({"dns": "b.example"}));
        weaker(kind, listed(json!([a])), listed(json!([b, a])), "client_identity.allow[1]");
        for (narrow, wide) in [
            (json!({"dns": "a.example"}), json!({"dns": "*.example"})),
            (json!({"spiffe": "spiffe://x/ns/a"}), json!({"spiffe": "spiffe://x/ns/*"})),
            (json!({"spiffe": "spiffe://x/ns/a/*"}), json!({"spiffe": "spiffe://x/*"})),
            (json!({"spiffe": "spiffe://x/ns/a"}), json!({"uri": "spiffe://x/ns/a"})),
            (json!({"serial": "0A", "issuer": "CN=One"}), json!({"serial": "0A"})),
        ] {
            weaker(kind, listed(json!([narrow])), listed(json!([wide])), "client_identity.allow[1]");
        }
        for (one, other) in [
            (json!({"email": "a@x.example"}), json!({"email": "a@X.example"})),
            (json!({"subject": "CN=a"}), json!({"subject": "CN=a"})),
            (json!({"spki_sha256": "ab".repeat(32)}), json!({"spki_sha256": "AB".repeat(32)})),
            (json!({"serial": "0A", "issuer": "CN=One"}), json!({"serial": "a", "issuer": "CN=One"})),
        ] {
            equal(kind, listed(json!([one])), listed(json!([other])));
        }
        for (one, other) in [
            (json!({"spiffe": "spiffe://x/ns/ab"}), json!({"spiffe": "spiffe://x/ns/a/*"})),
            (json!({"serial": "0A", "issuer": "CN=One"}), json!({"serial": "0A", "issuer": "CN=Two"})),
            (json!({"email": "a@x.example"}), json!({"uri": "a@x.example"})),
            (json!({"subject": "CN=a"}), json!({"subject": "CN=b"})),
            (json!({"spki_sha256": "ab".repeat(32)}), json!({"spki_sha256": "cd".repeat(32)})),
        ] {
            let (one, other) = (listed(json!([one])), listed(json!([other])));
            assert_eq!(fields(kind, &one, &other), ["client_identity.allow[1]"]);
            assert_eq!(fields(kind, &other, &one), ["client_identity.allow[1]"]);
        }
    }
}

#[test]
fn weakenings_of_a_route() {
    let weaker =
        |strong: Value, weak: Value, field: &str| weaker(Kind::Route, route(strong), route(weak), field);
    // Clients that may connect.
    weaker(
        json!({"remote_addrs": ["10.0.0.0/8"], "client_identity": {}}),
        json!({"client_identity": {}}),
        "remote_addrs",
    );
    let open = |more: Value| with(json!({"client_identity": {}}), more);
    weaker(
        open(json!({"remote_addr": "10.1.0.0/16"})),
        open(json!({"remote_addr": "10.0.0.0/8"})),
        "remote_addrs",
    );
    let verified = json!(["ssl_client_verify", "==", "SUCCESS"]);
    weaker(open(json!({"vars": [verified]})), open(json!({})), "vars");
    weaker(
        open(json!({"vars": [verified, ["arg_a", "==", "1"]]})),
        open(json!({"vars": [verified]})),
        "vars",
    );
    // Requests that the allow-list covers.
    weaker(json!({}), json!({"uri": "/a/b/*"}), "uris");
    weaker(json!({}), json!({"host": "a.test"}), "hosts");
    weaker(json!({"host": "*.test"}), json!({"host": "a.test"}), "hosts");
    weaker(json!({}), json!({"methods": ["GET"]}), "methods");
    weaker(json!({"priority": 2}), json!({"priority": 1}), "priority");
    weaker(json!({}), json!({"status": 0}), "status");
    // Fewer requests match, or more addresses: each direction weakens.
    let (near, all) = (route(json!({"remote_addr": "10.0.0.1"})), route(json!({})));
    assert_eq!(fields(Kind::Route, &near, &all), ["remote_addrs"]);
    assert_eq!(fields(Kind::Route, &all, &near), ["remote_addrs"]);
    // Without an allow-list, its matchers protect nothing.
    equal(
        Kind::Route,
        route(open(json!({}))),
        route(open(json!({"uri": "/b", "methods": ["GET"], "priority": -1}))),
    );
    equal(
        Kind::Route,
        route(json!({})),
        route(json!({"desc": "x", "labels": {"a": "b"}, "timeout": {"connect": 1, "send": 1, "read": 1}})),
    );
}

#[test]
fn weakenings_by_a_routes_service() {
    let of_service = |more: Value| with(json!({"uri": "/a", "service_id": "s"}), more);
    let opens = of_service(json!({"client_identity": {"forward": ["xfcc"]}}));
    weaker(Kind::Route, of_service(json!({})), opens, "client_identity");
    let other = of_service(json!({"service_id": "t"}));
    assert_eq!(fields(Kind::Route, &of_service(json!({})), &other), ["service_id"]);
    equal(
        Kind::Route,
        of_service(allow(json!([{"dns": "a.b"}]))),
        with(of_service(allow(json!([{"dns": "a.b"}]))), json!({"service_id": "t"})),
    );
    let service = |hosts: Value| with(json!({"hosts": hosts}), allow(json!([{"dns": "a.b"}])));
    weaker(Kind::Service, service(json!(["a.test", "b.test"])), service(json!(["a.test"])), "hosts");
}

#[test]
fn weakenings_of_an_upstream() {
    let upstream = |more: Value| with(json!({"nodes": {"127.0.0.1:443": 1}}), more);
    let verified = || upstream(json!({"scheme": "https", "tls": {"verify": true}}));
    let unverified = || upstream(json!({"scheme": "https"}));
    let clear = || upstream(json!({"scheme": "http"}));
    weaker(Kind::Upstream, verified(), unverified(), "tls.verify");
    weaker(Kind::Upstream, unverified(), clear(), "scheme");
    weaker(Kind::Upstream, verified(), clear(), "scheme");
    equal(Kind::Upstream, clear(), clear());
    weaker(
        Kind::Service,
        json!({"upstream": verified()}),
        json!({"upstream": unverified()}),
        "upstream.tls.verify",
    );
    let inline = |upstream: Value| json!({"uri": "/a", "upstream": upstream});
    weaker(Kind::Route, inline(verified()), inline(unverified()), "upstream.tls.verify");
    let stream = |more: Value| with(json!({"upstream": upstream(json!({"scheme": "tls"}))}), more);
    weaker(
        Kind::StreamRoute,
        stream(json!({})),
        stream(json!({"upstream": upstream(json!({"scheme": "tcp"}))})),
        "upstream.scheme",
    );
    weaker(Kind::StreamRoute, stream(json!({"remote_addr": "10.0.0.1"})), stream(json!({})), "remote_addr");
    weaker(Kind::StreamRoute, stream(json!({"sni": "a.test"})), stream(json!({})), "sni");
    weaker(Kind::StreamRoute, stream(json!({"sni": "a.test"})), stream(json!({"sni": "*.test"})), "sni");
}

proptest! {
    #[test]
    fn nothing_weakens_itself(versioned in some_versioned()) {
        prop_assert_eq!(weakenings(&versioned.resource, &versioned.resource.clone()), vec![]);
    }

    /// A blocked resource denies everything; served again, it weakens unless it has a policy of its
    /// own.
    #[test]
    fn a_blocked_resource_weakens_only_when_it_is_served(versioned in some_versioned()) {
        let blocked = crate::samples::block(versioned.resource.clone());
        prop_assert_eq!(weakenings(&versioned.resource, &blocked), vec![]);
        let opens = weakenings(&blocked, &versioned.resource);
        prop_assert!(opens.iter().all(|found| ["client", "client_identity", "plugins"].contains(&&*found.field)));
    }
}

/// Compiles a stored document; an unknown plugin or member blocks.
fn blocked(kind: Kind, document: &Value) -> Resource {
    let adopted = crate::compile_stored(kind, &id("1"), document, &Keyring::empty());
    let resource = adopted.resolve(None).0.unwrap();
    assert!(resource.blocked().is_some(), "{document}");
    resource
}

fn named(found: Vec<Weakening>) -> Vec<String> {
    found.into_iter().map(|weakening| weakening.field).collect()
}

#[test]
fn a_policy_that_shrinks_while_disabled_weakens() {
    let site = Site::new();
    let off = |document: Value| with(document, json!({"status": 0}));
    let (guarded, open) = (site.client(json!({})), site.base.clone());
    for (strong, weak) in [(off(guarded.clone()), open.clone()), (off(guarded.clone()), off(open.clone()))] {
        weaker(Kind::Ssl, strong, weak, "client");
    }
    assert_eq!(fields(Kind::Ssl, &guarded, &off(open.clone())), ["status", "client"]);
    weaker(
        Kind::Ssl,
        off(site.client(json!({"depth": 1}))),
        off(site.client(json!({"depth": 3}))),
        "client.depth",
    );
    let versions = json!({"ssl_protocols": ["TLSv1.3"]});
    weaker(Kind::Ssl, off(with(open.clone(), versions)), open, "ssl_protocols");
    // A disabled resource denies nothing by its matchers, and enabling it unchanged weakens
    // nothing.
    equal(Kind::Ssl, off(guarded.clone()), off(site.with(json!({"snis": ["a.test"]}))));
    assert_eq!(fields(Kind::Ssl, &off(guarded.clone()), &guarded), [""; 0]);

    let (mut open, guarded) = (route(json!({})), route(json!({})));
    open.as_object_mut().unwrap().remove("client_identity");
    weaker(Kind::Route, off(guarded.clone()), open.clone(), "client_identity.allow");
    weaker(Kind::Route, off(guarded.clone()), off(open.clone()), "client_identity.allow");
    equal(Kind::Route, off(guarded.clone()), off(route(json!({"uri": "/b"}))));
    assert_eq!(fields(Kind::Route, &off(guarded.clone()), &guarded), [""; 0]);
    let near = with(open.clone(), json!({"remote_addrs": ["10.0.0.1"], "status": 0}));
    weaker(Kind::Route, near, open, "remote_addrs");
}

#[test]
fn serving_a_blocked_resource_weakens() {
    let site = Site::new();
    let unknown = json!({"client": {"ca": "$secret://vault/1/ca"}});
    let old = blocked(Kind::Ssl, &with(site.base.clone(), unknown));
    let opens = |new: &Value| named(weakenings(&old, &checked(Kind::Ssl, new)));
    assert_eq!(opens(&site.base), ["client"]);
    assert_eq!(opens(&with(site.base.clone(), json!({"status": 0}))), ["status", "client"]);
    assert_eq!(opens(&site.client(json!({}))), [""; 0]);
    assert_eq!(opens(&site.with(json!({"snis": ["a.test"]}))), ["snis"], "another site may answer");
    assert_eq!(named(removal_weakenings(&old)), ["snis"]);
    // A blocked site keeps its names; if it is deleted, another may have them.
    let before = checked(Kind::Ssl, &site.client(json!({})));
    assert_eq!(weakenings(&before, &old), vec![]);

    let plugin = json!({"plugins": {"ip-restriction": {"whitelist": ["10.0.0.1"]}}});
    let mut open = route(json!({}));
    open.as_object_mut().unwrap().remove("client_identity");
    for (kind, open) in [
        (Kind::Route, open),
        (Kind::Route, json!({"uri": "/a/*", "service_id": "s"})),
        (Kind::Service, json!({"hosts": ["a.test"]})),
    ] {
        let old = blocked(kind, &with(open.clone(), plugin.clone()));
        assert_eq!(named(weakenings(&old, &checked(kind, &open))), ["client_identity"], "{open}");
        let guarded = with(open.clone(), allow(json!([{"dns": "a.b"}])));
        assert_eq!(weakenings(&old, &checked(kind, &guarded)), vec![], "{open}");
        assert_eq!(weakenings(&checked(kind, &guarded), &old), vec![], "{open}");
        assert_eq!(removal_weakenings(&old).len(), 1, "{open}");
    }
    let rule = blocked(Kind::GlobalRule, &plugin);
    assert_eq!(named(removal_weakenings(&rule)), ["plugins"]);
    let config = blocked(Kind::PluginConfig, &plugin);
    assert_eq!(removal_weakenings(&config), vec![], "its routes are denied all the same");
    for (kind, old) in [(Kind::GlobalRule, rule), (Kind::PluginConfig, config)] {
        let open = checked(kind, &json!({"plugins": {"prometheus": {}}}));
        assert_eq!(named(weakenings(&old, &open)), ["plugins"]);
        assert_eq!(weakenings(&open, &old), vec![]);
    }
}

#[test]
fn weakenings_of_a_plugin_config() {
    let raw = json!({"plugins": {"proxy-rewrite": {"use_real_request_uri_unsafe": true}}});
    let field = "plugins.proxy-rewrite.use_real_request_uri_unsafe";
    weaker(Kind::PluginConfig, json!({"plugins": {}}), raw, field);
    let uri = json!({"plugins": {"proxy-rewrite": {"uri": "/x"}}});
    equal(Kind::PluginConfig, json!({"plugins": {}}), uri);
    // The previous one may be blocked.
    let route = |id: u8| json!({"uri": "/a", "plugin_config_id": id, "service_id": "s"});
    let without = json!({"uri": "/a", "service_id": "s"});
    weaker(Kind::Route, route(1), without, "plugin_config_id");
    assert_eq!(fields(Kind::Route, &route(1), &route(2)), ["plugin_config_id"]);
}

#[test]
fn a_removal_weakens_like_status_0() {
    let site = Site::new();
    let gone = |kind, document: &Value| named(removal_weakenings(&checked(kind, document)));
    let guarded = site.client(json!({}));
    assert_eq!(gone(Kind::Ssl, &guarded), ["snis"]);
    assert_eq!(gone(Kind::Route, &route(json!({}))), ["uris"]);
    assert_eq!(gone(Kind::Service, &allow(json!([{"dns": "a.b"}]))), ["client_identity"]);
    let off = json!({"status": 0});
    let mut open = route(json!({}));
    open.as_object_mut().unwrap().remove("client_identity");
    for (kind, document) in [
        (Kind::Ssl, site.base.clone()),
        (Kind::Ssl, with(guarded, off.clone())),
        (Kind::Route, open),
        (Kind::Route, route(off)),
        (Kind::Service, json!({"hosts": ["a.test"]})),
        (Kind::StreamRoute, json!({"sni": "a.test", "upstream": {"nodes": {"127.0.0.1:1": 1}}})),
        (Kind::Upstream, json!({"scheme": "https", "nodes": {"127.0.0.1:1": 1}})),
    ] {
        assert_eq!(gone(kind, &document), [""; 0], "{document}");
    }
}

#[test]
fn replacing_a_secured_inline_upstream_may_weaken() {
    let nodes = json!({"127.0.0.1:1": 1});
    let inline = |scheme: &str| json!({"uri": "/a", "upstream": {"scheme": scheme, "nodes": nodes}});
    let other = json!({"uri": "/a", "upstream_id": "1"});
    weaker(Kind::Route, inline("https"), other.clone(), "upstream");
    assert_eq!(fields(Kind::Route, &inline("https"), &json!({"uri": "/a", "service_id": "1"})), ["upstream"]);
    equal(Kind::Route, inline("http"), other);
}

#[test]
fn weakenings_of_whose_servers_are_accepted() {
    let root = |name: &str| Authority::root(&AuthoritySpec::new(name)).unwrap().certificate_pem();
    let (one, two) = (root("One"), root("Two"));
    let tls = |tls: Value| json!({"scheme": "https", "nodes": {"a.test:1": 1}, "tls": tls});
    let pinned = |more: &[&str]| tls(json!({"verify": true, "ca_certs": more}));
    let verified = tls(json!({"verify": true}));
    weaker(Kind::Upstream, pinned(&[&one]), pinned(&[&one, &two]), "tls.ca_certs");
    weaker(Kind::Upstream, pinned(&[&one]), verified.clone(), "tls.ca_certs");
    equal(Kind::Upstream, pinned(&[&one, &two]), pinned(&[&format!("{two}{one}")]));
    // The settings may verify an upstream that says nothing.
    let (unset, off) = (tls(json!({})), tls(json!({"verify": false})));
    weaker(Kind::Upstream, verified.clone(), unset.clone(), "tls.verify");
    weaker(Kind::Upstream, verified, off.clone(), "tls.verify");
    weaker(Kind::Upstream, unset, off, "tls.verify");
    let named = |entries: Value| tls(json!({"verify": true, "verify_identity": entries}));
    let (narrow, wide) = (json!([{"dns": "a.test"}]), json!([{"dns": "*.test"}]));
    weaker(Kind::Upstream, named(narrow.clone()), named(wide.clone()), "tls.verify_identity");
    weaker(Kind::Upstream, named(narrow.clone()), tls(json!({"verify": true})), "tls.verify_identity");
    let passing = |host: &str| json!({"scheme": "https", "pass_host": host, "nodes": {"a.test:1": 1}, "tls": {"verify": true}});
    weaker(Kind::Upstream, passing("node"), passing("pass"), "pass_host");
    let route = |upstream: Value| json!({"uri": "/", "upstream": upstream});
    weaker(Kind::Route, route(named(narrow)), route(named(wide)), "upstream.tls.verify_identity");
}
