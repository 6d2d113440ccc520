use proptest::prelude::*;

use super::*;
use crate::ca::{Authority, AuthoritySpec, CrlSpec};

fn root(name: &str) -> Authority {
    Authority::root(&AuthoritySpec::new(name)).unwrap()
}

fn with_patterns(patterns: &[&str]) -> Result<ClientAuth, PolicyError> {
    ClientAuth::new(ClientAuthInput {
        anchors: vec![root("Root").certificate().clone()],
        skip_uri_patterns: patterns.iter().map(|pattern| (*pattern).to_owned()).collect(),
        ..ClientAuthInput::default()
    })
}

#[test]
fn without_skip_patterns_a_certificate_is_required() {
    let policy = with_patterns(&[]).unwrap();
    assert!(policy.requires_client_cert() && !policy.skips_path("/") && !policy.skips_path(""));
}

#[test]
fn skip_patterns_are_unanchored_and_case_sensitive() {
    let policy = with_patterns(&["/open", "^/exact$"]).unwrap();
    assert!(!policy.requires_client_cert());
    for (path, skipped) in [
        ("/open", true),
        ("/a/open/b", true),
        ("/OPEN", false),
        ("/exact", true),
        ("/exact/", false),
        ("/exact\n", false),
        ("/", false),
    ] {
        assert_eq!(policy.skips_path(path), skipped, "{path:?}");
    }
}

#[test]
fn back_tracking_patterns_are_rejected() {
    for pattern in [r"(a)\1", "(?=x)", "(?!x)", "(", "(?>a)"] {
        let error = with_patterns(&["/fine", pattern]).unwrap_err();
        assert!(
            matches!(&error, PolicyError::Pattern { position: 2, pattern: named, .. } if named == pattern),
            "{error}"
        );
    }
    let huge = with_patterns(&["(a{1000}){1000}"]).unwrap_err();
    assert!(huge.to_string().contains("smaller repetition counts"), "{huge}");
    let many = vec!["a"; SKIP_PATTERNS_MAX + 1];
    assert_eq!(
        with_patterns(&many).unwrap_err(),
        PolicyError::TooManyPatterns { found: SKIP_PATTERNS_MAX + 1 }
    );
}

#[test]
fn an_empty_ca_bundle_is_rejected() {
    assert_eq!(ClientAuth::new(ClientAuthInput::default()).unwrap_err(), PolicyError::NoAnchor);
}

#[test]
fn duplicate_anchors_and_subjects_are_dropped() {
    let (a, b) = (root("Same"), root("Same"));
    let anchors = vec![a.certificate().clone(), b.certificate().clone(), a.certificate().clone()];
    let policy = ClientAuth::new(ClientAuthInput { anchors, ..ClientAuthInput::default() }).unwrap();
    assert_eq!(policy.anchors().certificates(), [a.certificate().clone(), b.certificate().clone()]);
    assert_eq!(format!("{:?}", policy.root_hint_subjects()), "[CN=Same]");
    let der = policy.root_hint_subjects()[0].to_der();
    assert_eq!(
        &der[der.len() - policy.root_hint_subjects()[0].content().len()..],
        policy.root_hint_subjects()[0].content()
    );
}

#[test]
fn an_invalid_crl_is_named_by_position() {
    let root = root("Root");
    let good = root.crl(&CrlSpec::new()).unwrap();
    let error = ClientAuth::new(ClientAuthInput {
        anchors: vec![root.certificate().clone()],
        crls: vec![good, vec![0x30, 0x00].into()],
        ..ClientAuthInput::default()
    });
    assert!(matches!(error, Err(PolicyError::Crl { position: 2, .. })));
}

/// Each field changes the digest; order and repetition of anchors and CRLs do not.
#[test]
fn the_policy_digest_covers_every_field() {
    let (a, b) = (root("A"), root("B"));
    let (crl_a, crl_b) = (a.crl(&CrlSpec::new()).unwrap(), b.crl(&CrlSpec::new()).unwrap());
    let base = ClientAuthInput {
        anchors: vec![a.certificate().clone(), b.certificate().clone()],
        depth: 1,
        skip_uri_patterns: vec!["/a".to_owned(), "/b".to_owned()],
        crls: vec![crl_a.clone(), crl_b.clone()],
        crl_prefer: false,
    };
    let digest = |change: &dyn Fn(&mut ClientAuthInput)| {
        let mut input = base.clone();
        change(&mut input);
        *ClientAuth::new(input).unwrap().digest()
    };
    let same = digest(&|_| {});
    assert_eq!(digest(&|input| input.anchors.reverse()), same);
    assert_eq!(digest(&|input| input.anchors.push(a.certificate().clone())), same);
    assert_eq!(digest(&|input| input.crls.reverse()), same);
    let other_number = a.crl(&CrlSpec::new().number(2)).unwrap();
    let changed = [
        digest(&|input| input.anchors.truncate(1)),
        digest(&|input| input.depth = 2),
        digest(&|input| input.skip_uri_patterns.clear()),
        digest(&|input| input.skip_uri_patterns = vec!["/a/b".to_owned()]),
        digest(&|input| input.skip_uri_patterns = vec!["/".to_owned(), "a/b".to_owned()]),
        digest(&|input| input.crls.clear()),
        digest(&|input| input.crls = vec![crl_a.clone()]),
        digest(&|input| input.crls = vec![other_number.clone(), crl_b.clone()]),
        digest(&|input| input.crl_prefer = true),
    ];
    let mut all = changed.to_vec();
    all.push(same);
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), changed.len() + 1, "every change has its own digest");
}

proptest! {
    #[test]
    fn any_pattern_and_path_terminate(pattern in "(?s).{0,30}", path in "(?s).{0,50}") {
        if let Ok(policy) = with_patterns(&[&pattern]) {
            let _ = policy.skips_path(&path);
        }
    }
}

#[test]
fn client_auth_is_small() {
    // 128 bytes with the counters of an `Arc`, a size class of the allocator.
    assert!(size_of::<ClientAuth>() <= 112, "{}", size_of::<ClientAuth>());
}
