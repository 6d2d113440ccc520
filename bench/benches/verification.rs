//! The cost of verifying a client: `pki::verify_client`, beside the same chain through webpki
//! alone, and the check of each request.
//!
//! webpki is the yardstick because it does the least; the difference is the cost of our rules
//! (depth, v1, pinned leaves, any order, bounded work). The length of a chain is the number of
//! certificates sent: 1 is a leaf signed by the anchor, 4 has three intermediates. A rejection must
//! not cost more than an acceptance, since any client can cause it: both alternate, and the ratios
//! come last.
#![allow(clippy::expect_used, reason = "a benchmark that cannot be set up stops, like a test")]
#![allow(clippy::print_stdout, reason = "a benchmark prints its result")]

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, Throughput};
use pki::ca::{Authority, AuthoritySpec, CrlSpec, IssuedCertificate, KeyAlgorithm, LeafSpec};
use pki::{CertificateDer, ClientAuth, ClientAuthInput, UnixTime, VerifiedCache, verify_client};

/// Within the validity of every issued certificate: 2026-01-01.
const NOW: UnixTime = UnixTime::since_unix_epoch(Duration::from_secs(1_767_225_600));
const NOW_PLUS_A_WEEK: Duration = Duration::from_secs(1_767_225_600 + 7 * 86_400);
/// Chains that the cache of a core holds.
const CACHE: usize = 4096;

#[path = "verification/admission.rs"]
mod admission;
#[path = "shared/beside.rs"]
mod beside;
#[path = "verification/limbo.rs"]
mod limbo;
#[path = "verification/maze.rs"]
mod maze;

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .sample_size(50)
        .configure_from_args();
    accepted(&mut criterion);
    cache(&mut criterion);
    let mut lines = refused(&mut criterion);
    maze::mazes(&mut criterion);
    lines.extend(limbo::limbo(&mut criterion));
    revocation(&mut criterion);
    admission::admission(&mut criterion);
    criterion.final_summary();
    lines.iter().for_each(|line| println!("{line}"));
}

/// One rejection beside an acceptance.
fn line(name: &str, measured: &beside::Measured) -> String {
    let beside::Measured { work, yardstick } = measured;
    let line = format!("{name:<66} {work:>8.1} us");
    yardstick.map_or_else(
        || line.clone(),
        |accepted| format!("{line}  accepted {accepted:>6.1} us  ratio {:.2}", work / accepted),
    )
}

/// A client's chain, and its anchor.
struct Chain {
    root: Authority,
    issuer: Option<Authority>,
    leaf: CertificateDer<'static>,
    sent: Vec<CertificateDer<'static>>,
}

impl Chain {
    fn generate(length: usize, algorithm: KeyAlgorithm) -> Self {
        let root = Authority::root(&AuthoritySpec::new("Bench Root").algorithm(algorithm)).expect("a root");
        let mut issuer: Option<Authority> = None;
        for level in 1..length {
            let spec = AuthoritySpec::new(format!("Bench Intermediate {level}")).algorithm(algorithm);
            issuer = Some(issuer.as_ref().unwrap_or(&root).intermediate(&spec).expect("an intermediate"));
        }
        let spec = LeafSpec::client("bench client").uri("spiffe://bench.test/client").algorithm(algorithm);
        let issued = issuer.as_ref().unwrap_or(&root).issue(&spec).expect("a leaf");
        let (leaf, sent) = split(&issued);
        Self { root, issuer, leaf, sent }
    }

    fn policy(&self, crls: Vec<pki::CertificateRevocationListDer<'static>>) -> ClientAuth {
        let depth = u32::try_from(self.sent.len()).expect("a short chain");
        self.policy_with(ClientAuthInput { depth, crls, crl_prefer: true, ..ClientAuthInput::default() })
    }

    fn policy_of_depth(&self, depth: u32) -> ClientAuth {
        self.policy_with(ClientAuthInput { depth, ..ClientAuthInput::default() })
    }

    fn policy_with(&self, input: ClientAuthInput) -> ClientAuth {
        let anchors = vec![self.root.certificate().clone()];
        ClientAuth::new(ClientAuthInput { anchors, ..input }).expect("a policy")
    }
}

fn split(issued: &IssuedCertificate) -> (CertificateDer<'static>, Vec<CertificateDer<'static>>) {
    let mut all = issued.chain.iter().map(|certificate| CertificateDer::from(certificate.der().to_vec()));
    (all.next().expect("a leaf"), all.collect())
}

/// webpki alone: path building and signatures.
fn webpki_verify(
    anchors: &[rustls_pki_types::TrustAnchor<'_>],
    leaf: &CertificateDer<'_>,
    sent: &[CertificateDer<'_>],
) -> bool {
    let Ok(end) = webpki::EndEntityCert::try_from(leaf) else { return false };
    let usage = webpki::KeyUsage::client_auth();
    end.verify_for_usage(webpki::ALL_VERIFICATION_ALGS, anchors, sent, NOW, usage, None, None).is_ok()
}

fn accepted(criterion: &mut Criterion) {
    for (name, algorithm) in [
        ("p256", KeyAlgorithm::P256),
        ("p384", KeyAlgorithm::P384),
        ("ed25519", KeyAlgorithm::Ed25519),
        ("rsa2048", KeyAlgorithm::Rsa2048),
    ] {
        let mut group = criterion.benchmark_group(format!("verify/{name}"));
        group.throughput(Throughput::Elements(1));
        for length in 1..=4 {
            let chain = Chain::generate(length, algorithm);
            let policy = chain.policy(Vec::new());
            verify_client(&policy, &chain.leaf, &chain.sent, NOW).expect("ours accepts it");
            group.bench_function(format!("chain-{length}/pki"), |bencher| {
                bencher.iter(|| verify_client(&policy, black_box(&chain.leaf), &chain.sent, NOW).is_ok());
            });
            let root = CertificateDer::from(chain.root.certificate().der().to_vec());
            let anchors = [webpki::anchor_from_trusted_cert(&root).expect("an anchor")];
            assert!(webpki_verify(&anchors, &chain.leaf, &chain.sent), "webpki accepts it");
            group.bench_function(format!("chain-{length}/webpki"), |bencher| {
                bencher.iter(|| webpki_verify(&anchors, black_box(&chain.leaf), &chain.sent));
            });
        }
    }
}

/// A miss is the cost of a full verification with the cache, beside webpki's time for the same
/// chain.
fn cache(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("verify/cache");
    group.throughput(Throughput::Elements(1));
    for (name, algorithm) in [("p256", KeyAlgorithm::P256), ("rsa2048", KeyAlgorithm::Rsa2048)] {
        let chain = Chain::generate(2, algorithm);
        let policy = chain.policy(Vec::new());
        let cache = VerifiedCache::new(CACHE);
        cache.verify(&policy, &chain.leaf, &chain.sent, NOW).expect("ours accepts it");
        group.bench_function(format!("{name}/hit"), |bencher| {
            bencher.iter(|| cache.verify(&policy, black_box(&chain.leaf), &chain.sent, NOW).is_ok());
        });
        group.bench_function(format!("{name}/miss"), |bencher| {
            bencher.iter(|| {
                cache.clear();
                cache.verify(&policy, black_box(&chain.leaf), &chain.sent, NOW).is_ok()
            });
        });
        let root = CertificateDer::from(chain.root.certificate().der().to_vec());
        let anchors = [webpki::anchor_from_trusted_cert(&root).expect("an anchor")];
        group.bench_function(format!("{name}/webpki"), |bencher| {
            bencher.iter(|| webpki_verify(&anchors, black_box(&chain.leaf), &chain.sent));
        });
    }
}

/// One final line a rejection.
fn refused(criterion: &mut Criterion) -> Vec<String> {
    let mut lines = Vec::new();
    for (name, algorithm) in
        [("p256", KeyAlgorithm::P256), ("p384", KeyAlgorithm::P384), ("rsa2048", KeyAlgorithm::Rsa2048)]
    {
        let mut group = criterion.benchmark_group(format!("verify/refused/{name}"));
        group.throughput(Throughput::Elements(1));
        let chain = Chain::generate(2, algorithm);
        // The policy has a list, which the revoked client needs; the acceptance pays for it, too.
        let issuer = chain.issuer.as_ref().expect("an intermediate");
        let revoked = issuer.issue(&LeafSpec::client("revoked client").algorithm(algorithm)).expect("a leaf");
        let next = UnixTime::since_unix_epoch(NOW_PLUS_A_WEEK);
        let list = CrlSpec::new().between(NOW, next).revoke(&revoked.certificate);
        let policy = chain.policy(vec![issuer.crl(&list).expect("a list")]);
        let accepted = || {
            let verdict = || verify_client(&policy, black_box(&chain.leaf), &chain.sent, NOW);
            beside::timed(|| verdict().expect("ours accepts it"))
        };
        for (rejection, leaf, sent) in rejections(&chain, &revoked, algorithm) {
            verify_client(&policy, &leaf, &sent, NOW).expect_err("ours refuses it");
            let judge = || beside::timed(|| verify_client(&policy, black_box(&leaf), &sent, NOW).is_err());
            let measured = beside::bench(&mut group, rejection, Some(&accepted), &judge);
            lines.extend(measured.map(|measured| line(&format!("refused {name}/{rejection}"), &measured)));
        }
    }
    lines
}

/// The fault, and the chain that has it.
type Rejection = (&'static str, CertificateDer<'static>, Vec<CertificateDer<'static>>);

/// One chain for each rule that a chain of ordinary length can break.
fn rejections(chain: &Chain, revoked: &IssuedCertificate, algorithm: KeyAlgorithm) -> Vec<Rejection> {
    let issuer = chain.issuer.as_ref().expect("an intermediate");
    let untrusted = Chain::generate(2, algorithm);
    let deeper =
        issuer.intermediate(&AuthoritySpec::new("Bench Too Deep").algorithm(algorithm)).expect("a CA");
    let forged = |certificate: &CertificateDer<'_>| {
        let mut forged = certificate.to_vec();
        if let Some(last) = forged.last_mut() {
            *last ^= 1;
        }
        CertificateDer::from(forged)
    };
    let past = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
    let client = |name: &str| LeafSpec::client(name).algorithm(algorithm);
    let issue = |authority: &Authority, spec: &LeafSpec| split(&authority.issue(spec).expect("a leaf"));
    let (expired, _) = issue(issuer, &client("expired").between(past(1_704_067_200), past(1_704_153_600)));
    let (server, _) = issue(issuer, &LeafSpec::server("server.test").algorithm(algorithm));
    let (too_deep, below) = issue(&deeper, &client("too deep"));
    let (revoked, _) = split(revoked);
    let forged_above = chain.sent.iter().map(forged).collect();
    vec![
        ("unknown-issuer", untrusted.leaf.clone(), untrusted.sent.clone()),
        ("missing-intermediate", chain.leaf.clone(), Vec::new()),
        ("forged-leaf", forged(&chain.leaf), chain.sent.clone()),
        ("forged-intermediate", chain.leaf.clone(), forged_above),
        ("expired", expired, chain.sent.clone()),
        ("a-servers-certificate", server, chain.sent.clone()),
        ("too-deep", too_deep, below),
        ("revoked", revoked, chain.sent.clone()),
    ]
}

fn revocation(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("verify/crl");
    group.throughput(Throughput::Elements(1));
    let chain = Chain::generate(2, KeyAlgorithm::P256);
    for entries in [0u32, 10, 10_000] {
        let lists = if entries == 0 { Vec::new() } else { vec![revoked(&chain, entries)] };
        let policy = chain.policy(lists);
        verify_client(&policy, &chain.leaf, &chain.sent, NOW).expect("ours accepts it");
        group.bench_function(format!("{entries}-entries"), |bencher| {
            bencher.iter(|| verify_client(&policy, black_box(&chain.leaf), &chain.sent, NOW).is_ok());
        });
    }
}

/// A list of the leaf's issuer with so many other serial numbers.
fn revoked(chain: &Chain, entries: u32) -> pki::CertificateRevocationListDer<'static> {
    let next = UnixTime::since_unix_epoch(NOW_PLUS_A_WEEK);
    let spec = (1..=entries).fold(CrlSpec::new().between(NOW, next), |spec, serial| {
        spec.revoke_serial(serial.to_be_bytes().to_vec())
    });
    chain.issuer.as_ref().expect("an intermediate").crl(&spec).expect("a list")
}
