//! How much a stranger can make us compute before we know who it is: counted in signatures, for a
//! count is the same on every machine.

use super::*;
use crate::signature::VERIFICATIONS;

/// The verdict on a chain, and how many signatures it took.
fn counted(policy: &ClientAuth, chain: &[Certificate]) -> (Result<VerifiedClient, VerifyError>, usize) {
    let before = VERIFICATIONS.get();
    let verdict = judge(policy, chain);
    (verdict, VERIFICATIONS.get() - before)
}

/// A hundred CAs of one name, all signed by each other's name, whose issuer is an anchor's name
/// too: nothing can be left out by names, so the budget must end it.
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
    let error = judge(&policy, &chain).unwrap_err();
    assert!(matches!(error, VerifyError::BudgetExceeded { checks: 1..=100 }), "{error}");
}

/// Ten CAs that all certified each other, one of them also by the name of an anchor: all signatures
/// are good, and the paths through them are the permutations of ten.
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
    let error = judge(&policy, &chain).unwrap_err();
    assert!(matches!(error, VerifyError::BudgetExceeded { checks: 1..=100 }), "{error}");
    // with the way out known, the same certificates are a good chain
    let knows = self::policy(&[imposter.certificate()], 255);
    judge(&knows, &chain).unwrap();
}

/// What the bundle's own CAs issued, however deep, costs a check a certificate.
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

/// A stranger's own CAs, all of whose signatures are good: the one that would have to be our
/// anchor's is checked first.
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

/// A forged leaf and a hundred genuine intermediates that all have its issuer's name.
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

/// After some changes of keys without key identifiers, the right issuer need not be the first that
/// is tried.
#[test]
fn a_few_issuers_of_one_name_are_all_tried() {
    let real = root();
    let spec = AuthoritySpec::new("CA");
    let generations: Vec<Authority> = (0..4).map(|_| real.intermediate(&spec).unwrap()).collect();
    for issuer in &generations {
        // version 1 has no identifiers: every generation is as likely as the other
        let client = issuer.issue(&LeafSpec::client("a")).unwrap();
        let mut chain = vec![client.certificate];
        chain.extend(generations.iter().map(|generation| generation.certificate().clone()));
        judge(&policy(&[real.certificate()], 1), &chain).unwrap();
        let old = issuer.issue(&LeafSpec::client("a").v1()).unwrap();
        let bundle: Vec<&Certificate> = generations.iter().map(Authority::certificate).collect();
        judge(&policy(&bundle, 0), &[old.certificate]).unwrap();
    }
}

/// An operator who lists twenty CAs of one name pays for trying them, and their clients get in.
#[test]
fn all_anchors_of_one_name_are_tried() {
    let roots: Vec<Authority> =
        (0..20).map(|_| Authority::root_v1(&AuthoritySpec::new("ROOTCA")).unwrap()).collect();
    let bundle: Vec<&Certificate> = roots.iter().map(Authority::certificate).collect();
    for issuer in &roots {
        let client = issuer.issue(&LeafSpec::client("CLIENT").v1()).unwrap();
        judge(&policy(&bundle, 1), &client.chain).unwrap();
    }
}

/// Keys of the stranger's own choice, dear ones too, are never computed with.
#[test]
fn untrusted_keys_verify_no_signature() {
    let (real, imposter) = (root(), root());
    let dear = AuthoritySpec::new("CA").algorithm(KeyAlgorithm::P521);
    let client = imposter.intermediate(&dear).unwrap().issue(&LeafSpec::client("a")).unwrap();
    let (verdict, computed) = counted(&policy(&[real.certificate()], 5), &client.chain);
    assert_eq!((reason(verdict), computed), (VerifyReason::BadSignature, 1), "the anchor's key only");
}
