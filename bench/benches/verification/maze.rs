//! The cost of adversarial chains from unauthenticated clients.
//!
//! Each is the worst known of its kind; none may take much longer than a millisecond.

use std::hint::black_box;

use criterion::{Criterion, Throughput};
use pki::ca::{Authority, AuthoritySpec, KeyAlgorithm, LeafSpec};
use pki::{Certificate, CertificateDer, verify_client};

use super::{Chain, NOW};

/// Certificates in a maze: a Certificate message has room for few more, and `pki` reads 128.
const SIZE: usize = 100;

/// The chain as sent, leaf first.
type Sent = Vec<CertificateDer<'static>>;

pub(crate) fn mazes(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("verify/maze");
    group.throughput(Throughput::Elements(1));
    for (name, algorithm) in
        [("p256", KeyAlgorithm::P256), ("p384", KeyAlgorithm::P384), ("rsa2048", KeyAlgorithm::Rsa2048)]
    {
        let chain = Chain::generate(2, algorithm);
        let policy = chain.policy_of_depth(255);
        let mazes = [
            ("namesakes-of-its-issuer", namesakes(&chain)),
            ("self-made-line-below-a-forged-link", line(&chain)),
            ("self-made-mesh-below-forged-links", mesh(&chain, 10)),
            ("self-made-mesh-below-one-forged-link", mesh(&chain, 1)),
            ("namesakes-of-the-anchor", cycle()),
        ];
        for (maze, sent) in &mazes {
            let (leaf, sent) = sent.split_first().expect("a leaf");
            verify_client(&policy, leaf, sent, NOW).expect_err("ours refuses it");
            group.bench_function(format!("{name}/{maze}"), |bencher| {
                bencher.iter(|| verify_client(&policy, black_box(leaf), sent, NOW).is_err());
            });
        }
    }
}

fn der(certificate: &Certificate) -> CertificateDer<'static> {
    CertificateDer::from(certificate.der().to_vec())
}

fn leaf_of(authority: &Authority) -> CertificateDer<'static> {
    der(&authority.issue(&LeafSpec::client("unrelated")).expect("a leaf").certificate)
}

/// A forged leaf among genuine intermediates that all have its issuer's name, each with a key of
/// its own.
fn namesakes(chain: &Chain) -> Sent {
    let spec = AuthoritySpec::new("Bench Intermediate 1");
    let mut forged = chain.leaf.to_vec();
    if let Some(last) = forged.last_mut() {
        *last ^= 1;
    }
    let one = |_| der(chain.root.intermediate(&spec).expect("a namesake").certificate());
    std::iter::once(CertificateDer::from(forged)).chain((0..SIZE).map(one)).collect()
}

/// A line of private CAs with good signatures, below a root that has the anchor's name only.
fn line(chain: &Chain) -> Sent {
    let name = chain.root.certificate().subject().trim_start_matches("CN=");
    let mut authority = Authority::root(&AuthoritySpec::new(name)).expect("an imposter");
    let mut sent = Vec::new();
    for level in 0..SIZE {
        authority = authority.intermediate(&AuthoritySpec::new(format!("Level {level}"))).expect("a CA");
        sent.push(der(authority.certificate()));
    }
    sent.push(leaf_of(&authority));
    sent.reverse();
    sent
}

/// Ten CAs that cross-certified each other; so many are certified by the anchor's name, too.
fn mesh(chain: &Chain, exits: usize) -> Sent {
    let name = chain.root.certificate().subject().trim_start_matches("CN=");
    let imposter = Authority::root(&AuthoritySpec::new(name)).expect("an imposter");
    let specs: Vec<_> = (0..10).map(|number| AuthoritySpec::new(format!("Mesh {number}"))).collect();
    let authorities: Vec<_> = specs.iter().map(|spec| imposter.intermediate(spec).expect("a CA")).collect();
    let mut sent: Vec<_> = authorities.first().map(leaf_of).into_iter().collect();
    for (authority, spec) in authorities.iter().zip(&specs) {
        let signers = authorities.iter().filter(|signer| !std::ptr::eq(*signer, authority));
        sent.extend(signers.map(|signer| der(&signer.cross_sign(authority, spec).expect("a cross"))));
    }
    sent.extend(authorities.iter().rev().take(exits).map(|authority| der(authority.certificate())));
    sent
}

/// CAs that all have the anchor's name and certified each other in a circle.
fn cycle() -> Sent {
    let spec = AuthoritySpec::new("Bench Root");
    let authorities: Vec<_> = (0..SIZE).map(|_| Authority::root(&spec).expect("an imposter")).collect();
    let mut sent: Vec<_> = authorities.first().map(leaf_of).into_iter().collect();
    for (authority, signer) in authorities.iter().zip(authorities.iter().cycle().skip(1)) {
        sent.push(der(&signer.cross_sign(authority, &spec).expect("a cross")));
    }
    sent
}
