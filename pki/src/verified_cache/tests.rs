use std::time::Duration;

use super::*;
use crate::ca::{Authority, AuthoritySpec, LeafSpec};
use crate::chain::VerifyReason;
use crate::policy::ClientAuthInput;

fn at(seconds: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}

/// 2025-01-01, within the default validity of issued certificates.
const NOW: u64 = 1_735_689_600;

fn policy(root: &Authority, depth: u32) -> ClientAuth {
    let anchors = vec![root.certificate().clone()];
    ClientAuth::new(ClientAuthInput { anchors, depth, ..ClientAuthInput::default() }).unwrap()
}

#[test]
fn a_repeated_chain_is_a_cache_hit() {
    let root = Authority::root(&AuthoritySpec::new("Root")).unwrap();
    let middle = root.intermediate(&AuthoritySpec::new("Middle")).unwrap();
    let client = middle.issue(&LeafSpec::client("a")).unwrap();
    let (leaf, sent) = (client.chain[0].der(), [client.chain[1].der().clone()]);
    let policy = policy(&root, 1);
    let cache = VerifiedCache::new(10);
    let first = cache.verify(&policy, leaf, &sent, at(NOW)).unwrap();
    let second = cache.verify(&policy, leaf, &sent, at(NOW)).unwrap();
    assert!(Arc::ptr_eq(&first, &second));
    assert_eq!((cache.hits(), cache.misses(), cache.len()), (1, 1, 1));
    // Another chain is another key.
    assert!(cache.verify(&policy, leaf, &[], at(NOW)).is_err());
    assert_eq!((cache.hits(), cache.misses(), cache.len()), (1, 2, 1));
}

#[test]
fn the_policy_is_part_of_the_cache_key() {
    let root = Authority::root(&AuthoritySpec::new("Root")).unwrap();
    let middle = root.intermediate(&AuthoritySpec::new("Middle")).unwrap();
    let client = middle.issue(&LeafSpec::client("a")).unwrap();
    let (leaf, sent) = (client.chain[0].der(), [client.chain[1].der().clone()]);
    let cache = VerifiedCache::new(10);
    cache.verify(&policy(&root, 1), leaf, &sent, at(NOW)).unwrap();
    let error = cache.verify(&policy(&root, 0), leaf, &sent, at(NOW)).unwrap_err();
    assert_eq!(error.reason(), VerifyReason::DepthExceeded);
    let revoking = ClientAuth::new(ClientAuthInput {
        anchors: vec![root.certificate().clone()],
        depth: 1,
        crls: vec![middle.crl(&crate::ca::CrlSpec::new().revoke(&client.certificate)).unwrap()],
        crl_prefer: true,
        ..ClientAuthInput::default()
    });
    let error = cache.verify(&revoking.unwrap(), leaf, &sent, at(NOW)).unwrap_err();
    assert_eq!(error.reason(), VerifyReason::Revoked);
    assert_eq!(cache.hits(), 0);
}

#[test]
fn a_cached_chain_expires() {
    let root = Authority::root(&AuthoritySpec::new("Root")).unwrap();
    let client = root.issue(&LeafSpec::client("a").between(at(NOW), at(NOW + 100))).unwrap();
    let (policy, leaf) = (policy(&root, 0), client.certificate.der());
    let cache = VerifiedCache::new(10);
    let verified = cache.verify(&policy, leaf, &[], at(NOW)).unwrap();
    assert_eq!(verified.valid_until(), at(NOW + 100));
    cache.verify(&policy, leaf, &[], at(NOW + 100)).unwrap();
    assert_eq!(cache.hits(), 1);
    for later in [NOW + 101, NOW - 1] {
        assert!(cache.verify(&policy, leaf, &[], at(later)).is_err(), "expired, or the clock went back");
    }
    assert_eq!(cache.hits(), 1);
}

#[test]
fn the_cache_is_bounded_and_keeps_used_entries() {
    let root = Authority::root(&AuthoritySpec::new("Root")).unwrap();
    let policy = policy(&root, 0);
    let cache = VerifiedCache::new(8);
    let favourite = root.issue(&LeafSpec::client("favourite")).unwrap().certificate;
    for number in 0..30 {
        cache.verify(&policy, favourite.der(), &[], at(NOW)).unwrap();
        let other = root.issue(&LeafSpec::client(format!("{number}"))).unwrap().certificate;
        cache.verify(&policy, other.der(), &[], at(NOW)).unwrap();
        assert!(cache.len() <= 8);
    }
    assert_eq!((cache.hits(), cache.misses()), (29, 31));
    cache.clear();
    assert!(cache.is_empty());
}
