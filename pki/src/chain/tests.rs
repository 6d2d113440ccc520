use std::sync::LazyLock;
use std::time::Duration;

use proptest::prelude::*;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::types::INTERMEDIATES_MAX;
use super::*;
use crate::ca::{Authority, AuthoritySpec, CrlSpec, KeyAlgorithm, LeafSpec, Usages};
use crate::cert::Certificate;
use crate::policy::{ClientAuth, ClientAuthInput, TrustAnchors};

mod bounds;

/// 2025-01-01, within the default validity of issued certificates.
const NOW: u64 = 1_735_689_600;

fn at(seconds: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}

fn root() -> Authority {
    Authority::root(&AuthoritySpec::new("Root")).unwrap()
}

fn policy(anchors: &[&Certificate], depth: u32) -> ClientAuth {
    let anchors = anchors.iter().map(|anchor| (*anchor).clone()).collect();
    ClientAuth::new(ClientAuthInput { anchors, depth, ..ClientAuthInput::default() }).unwrap()
}

/// Verifies a chain, leaf first.
fn verify_chain(policy: &ClientAuth, chain: &[Certificate]) -> Result<VerifiedClient, VerifyError> {
    verify_chain_at(policy, chain, NOW)
}

fn verify_chain_at(
    policy: &ClientAuth,
    chain: &[Certificate],
    now: u64,
) -> Result<VerifiedClient, VerifyError> {
    let sent: Vec<_> = chain[1..].iter().map(|certificate| certificate.der().clone()).collect();
    verify_client(policy, chain[0].der(), &sent, at(now))
}

fn reason(verdict: Result<VerifiedClient, VerifyError>) -> VerifyReason {
    verdict.unwrap_err().reason()
}

/// Root -> CA 1 -> ... -> CA n, each in its own name.
fn line(length: usize) -> Vec<Authority> {
    let mut authorities = vec![root()];
    for number in 1..=length {
        let spec = AuthoritySpec::new(format!("CA {number}"));
        authorities.push(authorities.last().unwrap().intermediate(&spec).unwrap());
    }
    authorities
}

#[test]
fn a_valid_client_is_identified() {
    let root = root();
    let spec =
        LeafSpec::client("a").organization("Acme").uri("spiffe://td/a").dns("a.example").email("a@example");
    let client = root.issue(&spec.ip("10.0.0.1".parse().unwrap())).unwrap();
    let verified = verify_chain(&policy(&[root.certificate()], 0), &client.chain).unwrap();
    let identity = verified.identity();
    assert_eq!(identity.subject(), "CN=a,O=Acme");
    assert_eq!(identity.issuer(), "CN=Root");
    assert_eq!(identity.certificate(), &client.certificate);
    assert_eq!(identity.spiffe_id(), Some("spiffe://td/a"));
    assert_eq!(identity.san_dns(), ["a.example"]);
    assert_eq!(identity.san_emails(), ["a@example"]);
    assert_eq!(identity.san_ips(), ["10.0.0.1".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(verified.anchor(), root.certificate());
}

#[test]
fn a_second_uri_disqualifies_a_spiffe_id() {
    let root = root();
    let policy = policy(&[root.certificate()], 0);
    let spiffe = |spec: LeafSpec| {
        let client = root.issue(&spec).unwrap();
        let verified = verify_chain(&policy, &client.chain).unwrap();
        verified.identity().spiffe_id().map(str::to_owned)
    };
    let good = || LeafSpec::client("a").uri("spiffe://td/a");
    assert_eq!(spiffe(good()).as_deref(), Some("spiffe://td/a"));
    assert_eq!(spiffe(good().uri("https://a.example")), None);
    assert_eq!(spiffe(good().uri("spiffe://td/\u{1}")), None, "a malformed URI counts, too");
}

#[test]
fn every_algorithm_is_supported() {
    for algorithm in [
        KeyAlgorithm::P256,
        KeyAlgorithm::P384,
        KeyAlgorithm::P521,
        KeyAlgorithm::Ed25519,
        KeyAlgorithm::Rsa2048,
    ] {
        let root = Authority::root(&AuthoritySpec::new("Root").algorithm(algorithm)).unwrap();
        let client = root.issue(&LeafSpec::client("a").algorithm(algorithm)).unwrap();
        verify_chain(&policy(&[root.certificate()], 0), &client.chain).unwrap();
    }
}

#[test]
fn depth_counts_intermediates() {
    for length in 0..=9 {
        let authorities = line(length);
        let client = authorities[length].issue(&LeafSpec::client("a")).unwrap();
        let depth = u32::try_from(length).unwrap();
        verify_chain(&policy(&[authorities[0].certificate()], depth), &client.chain).unwrap();
        if let Some(less) = depth.checked_sub(1) {
            let verdict = verify_chain(&policy(&[authorities[0].certificate()], less), &client.chain);
            assert_eq!(reason(verdict), VerifyReason::DepthExceeded);
        }
        // A listed intermediate is an anchor: no intermediate is between it and the leaf.
        verify_chain(&policy(&[authorities[length].certificate()], 0), &client.chain).unwrap();
        verify_chain(&policy(&[authorities[length].certificate()], 0), &client.chain[..1]).unwrap();
    }
}

#[test]
fn intermediates_may_come_in_any_order() {
    let authorities = line(3);
    let client = authorities[3].issue(&LeafSpec::client("a")).unwrap();
    let unrelated = root().intermediate(&AuthoritySpec::new("CA 2")).unwrap();
    let policy = policy(&[authorities[0].certificate()], 3);
    let mut chain = client.chain.clone();
    chain[1..].reverse();
    chain.insert(1, unrelated.certificate().clone());
    chain.insert(3, authorities[0].certificate().clone());
    chain.push(client.certificate.clone());
    verify_chain(&policy, &chain).unwrap();
    let mut sent: Vec<_> = chain[1..].iter().map(|certificate| certificate.der().clone()).collect();
    sent.insert(0, CertificateDer::from(vec![0x30, 0x01])); // malformed, so ignored
    verify_client(&policy, chain[0].der(), &sent, at(NOW)).unwrap();
    chain.remove(2);
    assert_eq!(reason(verify_chain(&policy, &chain[..2])), VerifyReason::UnknownIssuer);
}

#[test]
fn an_unknown_issuer_is_named() {
    let authorities = line(2);
    let client = authorities[2].issue(&LeafSpec::client("a")).unwrap();
    let policy = policy(&[root().intermediate(&AuthoritySpec::new("Other")).unwrap().certificate()], 9);
    let error = verify_chain(&policy, &client.chain).unwrap_err();
    let expected = VerifyError::UnknownIssuer { subject: "CN=CA 1".to_owned(), issuer: "CN=Root".to_owned() };
    assert_eq!(error, expected);
}

#[test]
fn an_anchor_with_the_same_name_is_not_enough() {
    let (real, imposter) = (root(), root());
    let client = imposter.issue(&LeafSpec::client("a")).unwrap();
    let both = policy(&[real.certificate(), imposter.certificate()], 0);
    verify_chain(&both, &client.chain).unwrap();
    assert_eq!(
        reason(verify_chain(&policy(&[real.certificate()], 0), &client.chain)),
        VerifyReason::BadSignature
    );
    // Sending the imposter's own root changes nothing.
    let chain = [client.certificate, imposter.certificate().clone()];
    assert_eq!(reason(verify_chain(&policy(&[real.certificate()], 5), &chain)), VerifyReason::BadSignature);
}

#[test]
fn every_certificate_of_the_path_must_be_valid_now() {
    let (start, end) = (NOW - 1000, NOW + 1000);
    let window = |spec: AuthoritySpec, from, to| spec.between(at(from), at(to));
    let root = Authority::root(&window(AuthoritySpec::new("Root"), start, end)).unwrap();
    let middle = root.intermediate(&window(AuthoritySpec::new("CA"), start + 100, end - 100)).unwrap();
    let client = middle.issue(&LeafSpec::client("a").between(at(start + 200), at(end - 200))).unwrap();
    let wide = middle.issue(&LeafSpec::client("a")).unwrap();
    let policy = policy(&[root.certificate()], 1);
    let verified = verify_chain(&policy, &client.chain).unwrap();
    assert_eq!(verified.valid_until(), at(end - 200));
    assert!(verified.is_valid_at(at(start + 200)) && verified.is_valid_at(at(end - 200)));
    assert!(!verified.is_valid_at(at(start + 199)) && !verified.is_valid_at(at(end - 199)));
    assert_eq!(verify_chain(&policy, &wide.chain).unwrap().valid_until(), at(end - 100));
    for (now, expected) in [
        (start - 1, VerifyReason::NotYetValid),
        (start + 99, VerifyReason::NotYetValid),
        (end - 99, VerifyReason::Expired),
        (end + 1, VerifyReason::Expired),
    ] {
        assert_eq!(reason(verify_chain_at(&policy, &wide.chain, now)), expected);
        assert_eq!(reason(verify_chain_at(&policy, &client.chain, now)), expected);
    }
}

#[test]
fn dates_in_errors_are_in_utc() {
    let root = root();
    let policy = policy(&[root.certificate()], 0);
    let client = root.issue(&LeafSpec::client("a").between(at(NOW), at(NOW + 59))).unwrap();
    let message = |now| verify_chain_at(&policy, &client.chain, now).unwrap_err().to_string();
    assert_eq!(message(NOW + 60), "`CN=a` expired: it was valid until 2025-01-01 00:00:59 UTC");
    assert!(message(NOW - 1).contains("it will be from 2025-01-01 00:00:00 UTC"));
}

#[test]
fn a_leaf_needs_client_auth() {
    let root = root();
    let policy = policy(&[root.certificate()], 0);
    for (usages, good) in
        [(Usages::CLIENT, true), (Usages::BOTH, true), (Usages::ANY, true), (Usages::SERVER, false)]
    {
        let leaf = root.issue(&LeafSpec::client("a").usages(usages)).unwrap();
        let verdict = verify_chain(&policy, &leaf.chain);
        assert_eq!(verdict.is_ok(), good, "{usages:?}: {verdict:?}");
        if !good {
            assert_eq!(reason(verdict), VerifyReason::InvalidPurpose);
        }
    }
}

#[test]
fn version_1_is_accepted_for_anchors_and_their_leaves() {
    let authorities = line(1);
    let (root, middle) = (&authorities[0], &authorities[1]);
    let old = root.issue(&LeafSpec::client("old").v1()).unwrap();
    verify_chain(&policy(&[root.certificate()], 0), &old.chain).unwrap();
    let below = middle.issue(&LeafSpec::client("old").v1()).unwrap();
    assert_eq!(
        reason(verify_chain(&policy(&[root.certificate()], 1), &below.chain)),
        VerifyReason::UnsupportedCertVersion
    );
    verify_chain(&policy(&[middle.certificate()], 0), &below.chain).unwrap();

    // APISIX's tutorial uses version 1 for everything.
    let tutorial = Authority::root_v1(&AuthoritySpec::new("ROOTCA")).unwrap();
    assert!(tutorial.certificate().is_v1() && tutorial.certificate().is_ca());
    let client = tutorial.issue(&LeafSpec::client("CLIENT").v1()).unwrap();
    verify_chain(&policy(&[tutorial.certificate()], 1), &client.chain).unwrap();
    // As an intermediate it is not accepted.
    let crossed = root.cross_sign(&tutorial, &AuthoritySpec::new("ROOTCA")).unwrap();
    let newer = tutorial.issue(&LeafSpec::client("newer")).unwrap().certificate;
    verify_chain(&policy(&[root.certificate()], 1), &[newer.clone(), crossed]).unwrap();
    let other = Authority::root(&AuthoritySpec::new("ROOTCA")).unwrap();
    let chain = [newer, tutorial.certificate().clone()];
    assert_eq!(reason(verify_chain(&policy(&[other.certificate()], 1), &chain)), VerifyReason::IssuerNotCa);
}

#[test]
fn a_leaf_cannot_issue() {
    let root = root();
    let leaf = root.issue(&LeafSpec::client("leaf")).unwrap();
    let forged = Authority::from_certificate_unchecked(leaf.certificate.clone(), &leaf.key_pem).unwrap();
    let victim = forged.issue(&LeafSpec::client("victim")).unwrap();
    let chain = [victim.certificate.clone(), leaf.certificate.clone()];
    assert_eq!(reason(verify_chain(&policy(&[root.certificate()], 9), &chain)), VerifyReason::IssuerNotCa);
    assert_eq!(
        reason(verify_chain(&policy(&[&leaf.certificate], 9), &chain)),
        VerifyReason::IssuerNotCa,
        "pinned, not a CA"
    );
    // The same with a v1 leaf, which has no basicConstraints.
    let old = root.issue(&LeafSpec::client("old").v1()).unwrap();
    let forged = Authority::from_certificate_unchecked(old.certificate.clone(), &old.key_pem).unwrap();
    let victim = forged.issue(&LeafSpec::client("victim")).unwrap();
    let chain = [victim.certificate, old.certificate];
    assert_eq!(reason(verify_chain(&policy(&[root.certificate()], 9), &chain)), VerifyReason::IssuerNotCa);
}

#[test]
fn every_ca_of_the_bundle_is_an_anchor() {
    let roots: Vec<Authority> = (0..5)
        .map(|number| Authority::root(&AuthoritySpec::new(format!("Root {number}"))).unwrap())
        .collect();
    let bundle: Vec<&Certificate> = roots.iter().map(Authority::certificate).collect();
    let policy = policy(&bundle, 1);
    for root in &roots {
        let direct = root.issue(&LeafSpec::client("a")).unwrap();
        assert_eq!(verify_chain(&policy, &direct.chain).unwrap().anchor(), root.certificate());
        let middle = root.intermediate(&AuthoritySpec::new("CA")).unwrap();
        let client = middle.issue(&LeafSpec::client("a")).unwrap();
        assert_eq!(verify_chain(&policy, &client.chain).unwrap().anchor(), root.certificate());
    }
}

#[test]
fn every_issuer_needs_key_cert_sign() {
    let root = root();
    let spec = AuthoritySpec::new("CA").without_cert_sign();
    let middle = root.intermediate(&spec).unwrap();
    let client = middle.issue(&LeafSpec::client("a")).unwrap();
    assert_eq!(
        reason(verify_chain(&policy(&[root.certificate()], 1), &client.chain)),
        VerifyReason::IssuerNotCa
    );
    // Listing it as an anchor does not lift the restriction.
    assert_eq!(
        reason(verify_chain(&policy(&[middle.certificate()], 0), &client.chain)),
        VerifyReason::IssuerNotCa
    );
}

/// A new root's key, certified by the old root under their common name: a CA's key rollover.
#[test]
fn self_issued_certificates_do_not_count() {
    let (old, new) = (root(), root());
    let rollover = old.cross_sign(&new, &AuthoritySpec::new("Root")).unwrap();
    let middle = new.intermediate(&AuthoritySpec::new("CA")).unwrap();
    let direct = [new.issue(&LeafSpec::client("a")).unwrap().certificate, rollover.clone()];
    verify_chain(&policy(&[old.certificate()], 0), &direct).unwrap();
    let below = middle.issue(&LeafSpec::client("a")).unwrap().certificate;
    let below = [below, rollover, middle.certificate().clone()];
    verify_chain(&policy(&[old.certificate()], 1), &below).unwrap();
    assert_eq!(reason(verify_chain(&policy(&[old.certificate()], 0), &below)), VerifyReason::DepthExceeded);
}

#[test]
fn path_length_is_enforced() {
    let root = Authority::root(&AuthoritySpec::new("Root").path_length(1)).unwrap();
    let one = root.intermediate(&AuthoritySpec::new("One")).unwrap();
    let two = one.intermediate(&AuthoritySpec::new("Two")).unwrap();
    let policy = policy(&[root.certificate()], 9);
    verify_chain(&policy, &one.issue(&LeafSpec::client("a")).unwrap().chain).unwrap();
    let verdict = verify_chain(&policy, &two.issue(&LeafSpec::client("a")).unwrap().chain);
    let expected = VerifyError::PathLengthExceeded { subject: "CN=Root".to_owned(), limit: 1 };
    assert_eq!(verdict.unwrap_err(), expected);
}

#[test]
fn name_constraints_are_enforced() {
    let root = root();
    let narrow = root.intermediate(&AuthoritySpec::new("Narrow").permit_dns("example.com")).unwrap();
    let policy = policy(&[root.certificate()], 1);
    verify_chain(&policy, &narrow.issue(&LeafSpec::client("a").dns("a.example.com")).unwrap().chain).unwrap();
    verify_chain(&policy, &narrow.issue(&LeafSpec::client("a")).unwrap().chain).unwrap();
    for bad in ["a.example.org", "badexample.com", "example.com.", "*.com", ".example.com", ""] {
        let verdict = verify_chain(&policy, &narrow.issue(&LeafSpec::client("a").dns(bad)).unwrap().chain);
        assert_eq!(reason(verdict), VerifyReason::NameConstraintViolation, "{bad}");
    }
}

#[test]
fn a_pinned_leaf_is_accepted() {
    let (known, other) = (root(), Authority::root(&AuthoritySpec::new("Other")).unwrap());
    let pinned = known.issue(&LeafSpec::client("a")).unwrap().certificate;
    let policy = policy(&[&pinned, other.certificate()], 0);
    let verified = verify_chain(&policy, std::slice::from_ref(&pinned)).unwrap();
    assert_eq!(verified.anchor(), &pinned);
    assert_eq!(verified.valid_until(), pinned.not_after());
    // Other certificates of the same issuer are unknown.
    let sibling = known.issue(&LeafSpec::client("a")).unwrap().certificate;
    assert_eq!(reason(verify_chain(&policy, &[sibling])), VerifyReason::UnknownIssuer);
    // A self-signed CA certificate as the leaf has no keyUsage for a handshake signature (as in
    // OpenSSL).
    let verdict = verify_chain(&policy, std::slice::from_ref(other.certificate()));
    assert_eq!(reason(verdict), VerifyReason::InvalidPurpose);
    // The validity period still applies.
    assert_eq!(reason(verify_chain_at(&policy, std::slice::from_ref(&pinned), 0)), VerifyReason::NotYetValid);
}

/// Description, CRLs, time, and the reason of the rejection with `require` and with `prefer`.
type RevocationCase = (
    &'static str,
    Vec<rustls_pki_types::CertificateRevocationListDer<'static>>,
    u64,
    Option<VerifyReason>,
    Option<VerifyReason>,
);

#[test]
fn revocation_is_checked_along_the_path() {
    let authorities = line(1);
    let (root, middle) = (&authorities[0], &authorities[1]);
    let client = middle.issue(&LeafSpec::client("a")).unwrap();
    let with = |crls: Vec<_>, crl_prefer| {
        let anchors = vec![root.certificate().clone()];
        let input = ClientAuthInput { anchors, depth: 1, crls, crl_prefer, ..ClientAuthInput::default() };
        ClientAuth::new(input).unwrap()
    };
    let (start, end) = (NOW - 100, NOW + 100);
    let spec = || CrlSpec::new().between(at(start), at(end));
    let clean_root = root.crl(&spec()).unwrap();
    let clean_middle = middle.crl(&spec()).unwrap();
    let revoked_leaf = middle.crl(&spec().revoke(&client.certificate)).unwrap();
    let revoked_middle = root.crl(&spec().revoke(middle.certificate())).unwrap();
    let unrelated = Authority::root(&AuthoritySpec::new("Other")).unwrap().crl(&spec()).unwrap();
    let forged = line(1)[1].crl(&spec().revoke(&client.certificate)).unwrap();

    let both = with(vec![clean_root.clone(), clean_middle.clone()], false);
    assert_eq!(
        verify_chain(&both, &client.chain).unwrap().valid_until(),
        at(end),
        "no longer than the lists are current"
    );
    let lax = with(vec![clean_root.clone(), clean_middle.clone()], true);
    assert_eq!(verify_chain(&lax, &client.chain).unwrap().valid_until(), client.certificate.not_after());

    let (revoked, unknown) = (Some(VerifyReason::Revoked), Some(VerifyReason::UnknownRevocationStatus));
    let cases: [RevocationCase; 8] = [
        ("leaf revoked", vec![clean_root.clone(), revoked_leaf.clone()], NOW, revoked, revoked),
        ("CA revoked", vec![revoked_middle, clean_middle.clone()], NOW, revoked, revoked),
        ("no list for the leaf", vec![clean_root.clone()], NOW, unknown, None),
        ("no list for the CA", vec![clean_middle.clone()], NOW, unknown, None),
        ("an unrelated CRL", vec![unrelated], NOW, unknown, None),
        ("a forged list", vec![clean_root.clone(), forged], NOW, unknown, None),
        ("stale", vec![clean_root.clone(), clean_middle], end + 1, unknown, None),
        ("stale, but revoked", vec![clean_root, revoked_leaf], end + 1, revoked, revoked),
    ];
    for (what, crls, now, require, prefer) in cases {
        for (crl_prefer, expected) in [(false, require), (true, prefer)] {
            let policy = with(crls.clone(), crl_prefer);
            for round in ["first", "again"] {
                let verdict = verify_chain_at(&policy, &client.chain, now).err().map(|error| error.reason());
                assert_eq!(verdict, expected, "{what}, prefer: {crl_prefer}, {round}");
            }
        }
    }
}

/// RFC 5280 6.3.3 f: an issuer whose keyUsage lacks cRLSign cannot sign CRLs.
#[test]
fn a_crl_needs_an_issuer_with_crl_sign() {
    let root = root();
    // The same name and key, without cRLSign.
    let mute = root.cross_sign(&root, &AuthoritySpec::new("Root").without_crl_sign()).unwrap();
    let client = root.issue(&LeafSpec::client("a")).unwrap();
    let crls = vec![root.crl(&CrlSpec::new().revoke(&client.certificate)).unwrap()];
    for (anchor, crl_prefer, expected) in [
        (&mute, true, None),
        (&mute, false, Some(VerifyReason::UnknownRevocationStatus)),
        (root.certificate(), true, Some(VerifyReason::Revoked)),
    ] {
        let anchors = vec![anchor.clone()];
        let input = ClientAuthInput { anchors, crls: crls.clone(), crl_prefer, ..ClientAuthInput::default() };
        let verdict = verify_chain(&ClientAuth::new(input).unwrap(), &client.chain);
        assert_eq!(verdict.err().map(|error| error.reason()), expected);
    }
}

#[test]
fn a_pinned_leaf_can_be_revoked_by_its_issuer() {
    let root = root();
    let client = root.issue(&LeafSpec::client("a")).unwrap();
    let policy = ClientAuth::new(ClientAuthInput {
        anchors: vec![client.certificate.clone(), root.certificate().clone()],
        crls: vec![root.crl(&CrlSpec::new().revoke(&client.certificate)).unwrap()],
        ..ClientAuthInput::default()
    });
    assert_eq!(reason(verify_chain(&policy.unwrap(), &client.chain)), VerifyReason::Revoked);
}

#[test]
fn reverify_checks_anchor_depth_crls_and_clock() {
    let authorities = line(2);
    let [root, one, two] = &authorities[..] else { panic!("three authorities") };
    let client = two.issue(&LeafSpec::client("a")).unwrap();
    let chain = [client.certificate.clone(), two.certificate().clone(), one.certificate().clone()];
    let before = verify_chain(&policy(&[root.certificate()], 2), &chain).unwrap();
    let again = |policy: &ClientAuth, now| reverify(policy, &before, at(now));

    let same = again(&policy(&[root.certificate()], 2), NOW).unwrap();
    assert_eq!((same.identity(), same.anchor()), (before.identity(), before.anchor()));
    assert_eq!(same.valid_until(), before.valid_until());
    let unrelated = Authority::root(&AuthoritySpec::new("Unrelated")).unwrap();
    assert!(again(&policy(&[unrelated.certificate(), root.certificate()], 7), NOW).is_some());
    assert!(again(&policy(&[root.certificate()], 1), NOW).is_none(), "depth");
    assert!(again(&policy(&[unrelated.certificate()], 2), NOW).is_none(), "anchor");
    let namesake = Authority::root(&AuthoritySpec::new("Root")).unwrap();
    assert!(again(&policy(&[namesake.certificate()], 2), NOW).is_none(), "an anchor that has only the name");
    assert!(again(&policy(&[root.certificate()], 2), 2_600_000_000).is_none(), "expired meanwhile");
    assert!(again(&policy(&[root.certificate()], 2), 0).is_none(), "not yet valid");
    assert!(again(&policy(&[root.certificate(), &client.certificate], 2), NOW).is_none(), "pinned now");

    let listed = |authority: &Authority, spec: CrlSpec| authority.crl(&spec).unwrap();
    let lists = |crls: Vec<_>, crl_prefer| {
        let anchors = vec![root.certificate().clone()];
        ClientAuth::new(ClientAuthInput { anchors, depth: 2, crls, crl_prefer, ..Default::default() })
            .unwrap()
    };
    let full = |of_two: CrlSpec| {
        vec![listed(root, CrlSpec::new()), listed(one, CrlSpec::new()), listed(two, of_two)]
    };
    assert!(again(&lists(full(CrlSpec::new()), false), NOW).is_some());
    assert!(again(&lists(full(CrlSpec::new().revoke(&client.certificate)), true), NOW).is_none());
    assert!(again(&lists(vec![listed(two, CrlSpec::new())], false), NOW).is_none(), "status unknown above");
    assert!(again(&lists(vec![listed(two, CrlSpec::new())], true), NOW).is_some());
    let short = CrlSpec::new().between(at(NOW - 10), at(NOW + 10));
    assert_eq!(again(&lists(full(short.clone()), false), NOW).unwrap().valid_until(), at(NOW + 10));
    assert!(again(&lists(full(short), false), NOW + 11).is_none(), "stale");
}

#[test]
fn a_server_certificate_must_match_the_name() {
    let authorities = line(1);
    let anchors = TrustAnchors::new(vec![authorities[0].certificate().clone()]).unwrap();
    let spec = LeafSpec::server("*.example.com").ip("10.0.0.1".parse().unwrap());
    let server = authorities[1].issue(&spec).unwrap();
    let sent = [server.chain[1].der().clone()];
    let verify = |name: &'static str| {
        verify_server(
            &anchors,
            &ServerName::try_from(name).unwrap(),
            server.certificate.der(),
            &sent,
            at(NOW),
        )
    };
    verify("a.example.com").unwrap();
    verify("10.0.0.1").unwrap();
    for other in ["example.com", "a.b.example.com", "10.0.0.2", "::1"] {
        assert_eq!(verify(other).unwrap_err().reason(), VerifyReason::NotValidForName, "{other}");
    }
    let client = authorities[1].issue(&LeafSpec::client("a").dns("a.example.com")).unwrap();
    let name = ServerName::try_from("a.example.com").unwrap();
    let verdict = verify_server(&anchors, &name, client.certificate.der(), &sent, at(NOW));
    assert_eq!(verdict.unwrap_err().reason(), VerifyReason::InvalidPurpose);
    let common_name_only =
        authorities[1].issue(&LeafSpec::client("a.example.com").usages(Usages::SERVER)).unwrap();
    let verdict = verify_server(&anchors, &name, common_name_only.certificate.der(), &sent, at(NOW));
    assert_eq!(verdict.unwrap_err().reason(), VerifyReason::NotValidForName);
}

/// Who decides by the identity gets that of the leaf, and only of a chain that is trusted.
#[test]
fn a_server_chain_is_verified_for_any_name() {
    let authorities = line(2);
    let [root, one, two] = &authorities[..] else { panic!("three authorities") };
    let anchors = |certificate: &Certificate| TrustAnchors::new(vec![certificate.clone()]).unwrap();
    let verify = |anchors: &TrustAnchors, depth, chain: &[Certificate], now| {
        let sent: Vec<_> = chain[1..].iter().map(|certificate| certificate.der().clone()).collect();
        verify_server_chain(anchors, depth, chain[0].der(), &sent, at(now))
    };
    let spec = LeafSpec::server("a.test").uri("spiffe://a.test/b");
    let server = two.issue(&spec).unwrap();
    let chain = [server.certificate.clone(), two.certificate().clone(), one.certificate().clone()];
    let trusted = anchors(root.certificate());
    let identity = verify(&trusted, 2, &chain, NOW).unwrap();
    assert_eq!(
        (identity.san_dns(), identity.spiffe_id()),
        (&["a.test".to_owned()][..], Some("spiffe://a.test/b"))
    );
    assert_eq!(identity.certificate().spki_sha256(), server.certificate.spki_sha256());
    let other = two.issue(&spec).unwrap().certificate;
    assert_ne!(identity.certificate().spki_sha256(), other.spki_sha256(), "each has a key of its own");

    let reason = |verdict: Result<_, VerifyError>| verdict.map(drop).unwrap_err().reason();
    let namesake = anchors(super::tests::root().certificate());
    for (wrong, found) in [
        (verify(&trusted, 1, &chain, NOW), VerifyReason::DepthExceeded),
        (verify(&trusted, 2, &chain[..2], NOW), VerifyReason::UnknownIssuer),
        (verify(&anchors(&other), 2, &chain, NOW), VerifyReason::UnknownIssuer),
        (verify(&namesake, 2, &chain, NOW), VerifyReason::BadSignature),
        (verify(&trusted, 2, &chain, 2_600_000_000), VerifyReason::Expired),
        (verify(&trusted, 2, &chain, 0), VerifyReason::NotYetValid),
    ] {
        assert_eq!(reason(wrong), found);
    }
    let brief = spec.clone().between(at(NOW - 20), at(NOW - 10));
    let brief = two.issue(&brief).unwrap();
    let ended = [brief.certificate, chain[1].clone(), chain[2].clone()];
    assert_eq!(reason(verify(&trusted, 2, &ended, NOW)), VerifyReason::Expired);
    let client = two.issue(&LeafSpec::client("a").dns("a.test")).unwrap();
    let client = [client.certificate, chain[1].clone(), chain[2].clone()];
    assert_eq!(reason(verify(&trusted, 2, &client, NOW)), VerifyReason::InvalidPurpose);
    // A server's own certificate as anchor: no path, but its dates count.
    let pinned = anchors(&server.certificate);
    assert_eq!(verify(&pinned, 0, &chain[..1], NOW).unwrap(), identity);
    assert_eq!(reason(verify(&pinned, 0, &chain[..1], 0)), VerifyReason::NotYetValid);
}

#[test]
fn too_many_certificates_are_rejected() {
    let root = root();
    let client = root.intermediate(&AuthoritySpec::new("CA")).unwrap().issue(&LeafSpec::client("a")).unwrap();
    let mut chain = client.chain.clone();
    chain.resize(INTERMEDIATES_MAX + 2, client.chain[1].clone());
    let error = verify_chain(&policy(&[root.certificate()], 9), &chain).unwrap_err();
    assert_eq!(error, VerifyError::TooManyCertificates { found: INTERMEDIATES_MAX + 1 });
    chain.pop();
    verify_chain(&policy(&[root.certificate()], 9), &chain).unwrap();
}

#[test]
fn every_reason_has_its_own_label() {
    let mut words: Vec<&str> = VerifyReason::ALL.iter().map(|reason| reason.as_str()).collect();
    words.sort_unstable();
    words.dedup();
    assert_eq!(words.len(), VerifyReason::ALL.len());
}

/// Five CAs that all certified each other: `crossed[of][by]`.
struct Mesh {
    authorities: Vec<Authority>,
    crossed: Vec<Vec<Certificate>>,
    leaf: Certificate,
}

const MESH: usize = 5;

static MESHED: LazyLock<Mesh> = LazyLock::new(|| {
    let specs: Vec<AuthoritySpec> =
        (0..MESH).map(|number| AuthoritySpec::new(format!("CA {number}"))).collect();
    let authorities: Vec<Authority> = specs.iter().map(|spec| Authority::root(spec).unwrap()).collect();
    let certified = |of: usize| {
        authorities.iter().map(|by| by.cross_sign(&authorities[of], &specs[of]).unwrap()).collect()
    };
    let crossed = (0..MESH).map(certified).collect();
    let leaf = authorities[0].issue(&LeafSpec::client("a")).unwrap().certificate;
    Mesh { authorities, crossed, leaf }
});

/// Fewest intermediates from CA 0 to an anchor, by breadth-first search over the
/// cross-certificates.
fn fewest_intermediates(edges: &[(usize, usize)], anchors: &[bool]) -> Option<u32> {
    let mut reached = vec![0];
    for distance in 0..MESH {
        if reached.iter().any(|authority: &usize| anchors[*authority]) {
            return u32::try_from(distance).ok();
        }
        let further =
            edges.iter().filter(|(of, _)| reached.contains(of)).map(|(_, by)| *by).collect::<Vec<_>>();
        reached.extend(further);
    }
    None
}

/// A client, and a chain of one intermediate.
static CHAIN: LazyLock<(ClientAuth, Vec<Certificate>)> = LazyLock::new(|| {
    let authorities = line(1);
    let spec = LeafSpec::client("a").dns("a.example").uri("spiffe://td/a");
    (policy(&[authorities[0].certificate()], 3), authorities[1].issue(&spec).unwrap().chain)
});

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// The path builder finds a path exactly when one exists, for any intermediates in any order.
    #[test]
    fn a_path_is_found_exactly_when_one_exists(
        edges in proptest::sample::subsequence((0..MESH * MESH).collect::<Vec<_>>(), 0..12).prop_shuffle(),
        anchors in proptest::collection::vec(proptest::bool::weighted(0.3), MESH),
        depth in 0u32..5,
    ) {
        let mesh = &*MESHED;
        let edges: Vec<(usize, usize)> = edges.iter().map(|edge| (edge / MESH, edge % MESH)).filter(|(of, by)| of != by).collect();
        let trusted = mesh.authorities.iter().zip(&anchors).filter(|(_, trusted)| **trusted);
        let mut trusted: Vec<&Certificate> = trusted.map(|(authority, _)| authority.certificate()).collect();
        let unrelated = MESHED.authorities[0].intermediate(&AuthoritySpec::new("unrelated")).unwrap();
        trusted.push(unrelated.certificate());
        let mut chain = vec![mesh.leaf.clone()];
        chain.extend(edges.iter().map(|(of, by)| mesh.crossed[*of][*by].clone()));
        let fewest = fewest_intermediates(&edges, &anchors);
        let verdict = verify_chain(&policy(&trusted, depth), &chain);
        prop_assert_eq!(verdict.is_ok(), fewest.is_some_and(|fewest| fewest <= depth), "fewest: {:?}", fewest);
        if let Err(error) = verdict {
            let expected = if fewest.is_some() { VerifyReason::DepthExceeded } else { VerifyReason::UnknownIssuer };
            prop_assert_eq!(error.reason(), expected);
        }
    }

    /// Under any other policy, a known path that is reverified also passes the full verification.
    #[test]
    fn reverify_never_accepts_more_than_verify(
        edges in proptest::sample::subsequence((0..MESH * MESH).collect::<Vec<_>>(), 0..12).prop_shuffle(),
        anchors in proptest::collection::vec(proptest::bool::weighted(0.4), 2 * MESH),
        depth in 0u32..4,
        revoked in proptest::option::of(0..MESH),
    ) {
        let mesh = &*MESHED;
        let edges = edges.iter().map(|edge| (edge / MESH, edge % MESH)).filter(|(of, by)| of != by);
        let mut chain = vec![mesh.leaf.clone()];
        chain.extend(edges.map(|(of, by)| mesh.crossed[of][by].clone()));
        let trusted = |which: &[bool]| -> Vec<Certificate> {
            let all = mesh.authorities.iter().zip(which);
            all.filter(|(_, trusted)| **trusted).map(|(authority, _)| authority.certificate().clone()).collect()
        };
        let (first, second) = anchors.split_at(MESH);
        let (Ok(before), false) = (
            ClientAuth::new(ClientAuthInput { anchors: trusted(first), depth: 9, ..Default::default() })
                .map_err(|error| error.to_string())
                .and_then(|policy| verify_chain(&policy, &chain).map_err(|error| error.to_string())),
            trusted(second).is_empty(),
        ) else {
            return Ok(());
        };
        let crls = revoked.into_iter().map(|by| {
            let spec = chain[1..].iter().fold(CrlSpec::new(), CrlSpec::revoke);
            mesh.authorities[by].crl(&spec).unwrap()
        });
        let policy = ClientAuth::new(ClientAuthInput {
            anchors: trusted(second), depth, crls: crls.collect(), crl_prefer: true, ..Default::default()
        }).unwrap();
        if let Some(again) = reverify(&policy, &before, at(NOW)) {
            let anew = verify_chain(&policy, &chain).unwrap();
            prop_assert_eq!(again.identity(), anew.identity());
        }
    }

    /// Any changed byte of a valid chain leads to a rejection, never to a panic.
    #[test]
    fn an_altered_chain_is_rejected(which in 0usize..2, place in any::<prop::sample::Index>(), bit in 0u32..8) {
        let (policy, good) = &*CHAIN;
        let mut ders: Vec<Vec<u8>> = good.iter().map(|certificate| certificate.der().to_vec()).collect();
        let place = place.index(ders[which].len());
        ders[which][place] ^= 1 << bit;
        let ders: Vec<CertificateDer<'static>> = ders.into_iter().map(CertificateDer::from).collect();
        prop_assert!(verify_client(policy, &ders[0], &ders[1..], at(NOW)).is_err());
        verify_chain(policy, good).unwrap();
    }
}

#[test]
fn the_verified_path_omits_unused_certificates() {
    let root = Authority::root(&AuthoritySpec::new("Root")).unwrap();
    let upper = root.intermediate(&AuthoritySpec::new("Upper")).unwrap();
    let lower = upper.intermediate(&AuthoritySpec::new("Lower")).unwrap();
    let unrelated = Authority::root(&AuthoritySpec::new("Unrelated")).unwrap();
    let client = lower.issue(&LeafSpec::client("a")).unwrap();
    let policy = ClientAuth::new(ClientAuthInput {
        anchors: vec![root.certificate().clone()],
        depth: 2,
        ..ClientAuthInput::default()
    })
    .unwrap();
    let sent =
        [unrelated.certificate(), upper.certificate(), lower.certificate()].map(|one| one.der().clone());
    let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(1_735_689_600));
    let verified = verify_client(&policy, client.chain[0].der(), &sent, now).unwrap();
    assert_eq!(verified.path(), [lower.certificate().clone(), upper.certificate().clone()]);
}
