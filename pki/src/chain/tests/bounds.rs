//! Bounds on the work that an unauthenticated peer can cause, counted in signatures, which is the
//! same on every machine.

use super::*;
use crate::signature::VERIFICATIONS;

/// Verifies a chain and counts the computed signatures.
fn counted(policy: &ClientAuth, chain: &[Certificate]) -> (Result<VerifiedClient, VerifyError>, usize) {
    let before = VERIFICATIONS.get();
    let verdict = verify_chain(policy, chain);
    (verdict, VERIFICATIONS.get() - before)
}

/// A hundred CAs of one name, each signed by another one, and an anchor with that name: names
/// exclude nothing, so the budget must end the search.
#[test]
fn forged_cross_certificates_exhaust_the_budget() {
    let real = root();
    let imposters: Vec<Authority> = (0..100).map(|_| root()).collect();
    let victim = imposters[0].issue(&LeafSpec::client("a")).unwrap();
    let mut chain = vec![victim.certificate];
    for (number, authority) in imposters.iter().enumerate() {
        let signer = &imposters[(number + 1) % 100];
        chain.push(signer.cross_sign(authority, &AuthoritySpec::new("Root")).unwrap());
    }
    let policy = policy(&[real.certificate()], 255);
    let error = verify_chain(&policy, &chain).unwrap_err();
    assert!(matches!(error, VerifyError::BudgetExceeded { checks: 1..=100 }), "{error}");
}

/// Ten CAs that all certified each other, one of them also under the name of an anchor: all
/// signatures are valid, and the paths are the permutations of ten.
#[test]
fn valid_cross_certificates_exhaust_the_budget() {
    let (real, imposter) = (root(), root());
    let specs: Vec<AuthoritySpec> =
        (0..10).map(|number| AuthoritySpec::new(format!("CA {number}"))).collect();
    let authorities: Vec<Authority> = specs.iter().map(|spec| imposter.intermediate(spec).unwrap()).collect();
    let mut chain = vec![authorities[0].issue(&LeafSpec::client("a")).unwrap().certificate];
    for (of, authority) in authorities.iter().enumerate() {
        for signer in &authorities[..of] {
            chain.push(signer.cross_sign(authority, &specs[of]).unwrap());
            let back =
                specs.iter().zip(&authorities).find(|(_, other)| std::ptr::eq(*other, signer)).unwrap();
            chain.push(authority.cross_sign(back.1, back.0).unwrap());
        }
    }
    chain.push(authorities[9].certificate().clone());
    let policy = policy(&[real.certificate()], 255);
    let error = verify_chain(&policy, &chain).unwrap_err();
    assert!(matches!(error, VerifyError::BudgetExceeded { checks: 1..=100 }), "{error}");
    // With the right anchor the same certificates are a valid chain.
    let policy = self::policy(&[imposter.certificate()], 255);
    verify_chain(&policy, &chain).unwrap();
}

/// A chain of the anchors' own CAs costs one check per certificate at any depth.
#[test]
fn a_valid_chain_may_have_the_full_depth() {
    let mut authority = root();
    let anchor = authority.certificate().clone();
    for level in 0..100 {
        authority = authority.intermediate(&AuthoritySpec::new(format!("CA {level}"))).unwrap();
    }
    let client = authority.issue(&LeafSpec::client("a")).unwrap();
    let mut chain = client.chain.clone();
    for _ in 0..2 {
        let (verdict, computed) = counted(&policy(&[&anchor], 100), &chain);
        verdict.unwrap();
        assert_eq!(computed, 101);
        chain[1..].reverse();
    }
    let (verdict, computed) = counted(&policy(&[&anchor], 99), &client.chain);
    assert_eq!((reason(verdict), computed), (VerifyReason::DepthExceeded, 0), "the cheap rules come first");
}

/// A peer's own CAs with valid signatures: the link to the anchor is checked first and fails.
#[test]
fn a_forged_chain_fails_at_its_first_link() {
    let (real, mut authority) = (root(), root());
    for level in 0..100 {
        authority = authority.intermediate(&AuthoritySpec::new(format!("CA {level}"))).unwrap();
    }
    let client = authority.issue(&LeafSpec::client("a")).unwrap();
    let (verdict, computed) = counted(&policy(&[real.certificate()], 255), &client.chain);
    assert_eq!((reason(verdict), computed), (VerifyReason::BadSignature, 1));
}

/// A forged leaf and a hundred genuine intermediates with the name of its issuer.
#[test]
fn a_forged_leaf_with_many_candidate_issuers_is_cheap() {
    let real = root();
    let spec = AuthoritySpec::new("CA");
    let forged = root().intermediate(&spec).unwrap().issue(&LeafSpec::client("a")).unwrap().certificate;
    let mut chain = vec![forged];
    chain.extend((0..100).map(|_| real.intermediate(&spec).unwrap().certificate().clone()));
    let (verdict, computed) = counted(&policy(&[real.certificate()], 1), &chain);
    assert_eq!(reason(verdict), VerifyReason::BudgetExceeded);
    assert!(computed <= 8, "{computed} signatures");
}

/// After key rollovers without key identifiers, the right issuer need not be tried first.
#[test]
fn a_few_issuers_of_one_name_are_all_tried() {
    let real = root();
    let spec = AuthoritySpec::new("CA");
    let generations: Vec<Authority> = (0..4).map(|_| real.intermediate(&spec).unwrap()).collect();
    for issuer in &generations {
        // Version 1 has no identifiers: every generation is equally likely.
        let client = issuer.issue(&LeafSpec::client("a")).unwrap();
        let mut chain = vec![client.certificate];
        chain.extend(generations.iter().map(|generation| generation.certificate().clone()));
        verify_chain(&policy(&[real.certificate()], 1), &chain).unwrap();
        let old = issuer.issue(&LeafSpec::client("a").v1()).unwrap();
        let bundle: Vec<&Certificate> = generations.iter().map(Authority::certificate).collect();
        verify_chain(&policy(&bundle, 0), &[old.certificate]).unwrap();
    }
}

/// With twenty anchors of one name, each of them is tried.
#[test]
fn all_anchors_of_one_name_are_tried() {
    let roots: Vec<Authority> =
        (0..20).map(|_| Authority::root_v1(&AuthoritySpec::new("ROOTCA")).unwrap()).collect();
    let bundle: Vec<&Certificate> = roots.iter().map(Authority::certificate).collect();
    for issuer in &roots {
        let client = issuer.issue(&LeafSpec::client("CLIENT").v1()).unwrap();
        verify_chain(&policy(&bundle, 1), &client.chain).unwrap();
    }
}

/// A peer's own keys, expensive ones too, are never used for a verification.
#[test]
fn untrusted_keys_verify_no_signature() {
    let (real, imposter) = (root(), root());
    let expensive = AuthoritySpec::new("CA").algorithm(KeyAlgorithm::P521);
    let client = imposter.intermediate(&expensive).unwrap().issue(&LeafSpec::client("a")).unwrap();
    let (verdict, computed) = counted(&policy(&[real.certificate()], 5), &client.chain);
    assert_eq!((reason(verdict), computed), (VerifyReason::BadSignature, 1), "the anchor's key only");
}
