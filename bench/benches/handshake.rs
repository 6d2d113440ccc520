//! TLS handshakes through the data plane's own code, server side only, in memory; beside each its crypto floor.
//!
//! The walk of `dataplane::connection`: ClientHello, site by SNI from a snapshot, the site's prepared configuration, the
//! handshake over a pump, `pki`'s verdict. The transport is two buffers; only the server's polls are timed, the client
//! and the clean-up are not. The floor is what no implementation can leave out: the key exchange, the signature, and the
//! verifications, done with aws-lc-rs directly. At the end one line a case: both times and their ratio; for a resumed session the
//! ratio to the full handshake of the same version.
#![allow(clippy::expect_used, reason = "a benchmark that cannot be set up stops, like a test")]

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bench::identity::{ClientIdentity, Group, Version};
use criterion::{BenchmarkGroup, Criterion, Throughput, measurement::WallTime};
use model::TlsVersion;
use pki::mint::{Authority, AuthoritySpec, KeyAlgorithm, LeafSpec, Minted};
use rustls::ClientConfig;

#[path = "handshake/crowd.rs"]
mod crowd;
#[path = "handshake/floor.rs"]
mod floor;
#[path = "handshake/server.rs"]
mod server;

use floor::Floor;
use server::Desk;

/// The name every client asks for.
const HOST: &str = "bench.test";

/// What the server has to do about the client.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Ask for a certificate, and know its chain already.
    MutualWarm,
    /// Ask for a certificate, and verify a chain never seen.
    MutualCold,
    /// Ask for none.
    OneSided,
    /// Take a ticket of a client that showed its certificate once, and give it another.
    Resumed,
}

struct Case {
    name: &'static str,
    version: Version,
    kind: Kind,
    algorithm: KeyAlgorithm,
    group: Group,
}

const fn case(
    name: &'static str,
    version: Version,
    kind: Kind,
    algorithm: KeyAlgorithm,
    group: Group,
) -> Case {
    Case { name, version, kind, algorithm, group }
}

#[rustfmt::skip]
const CASES: [Case; 12] = [
    case("tls13-p256/mutual-warm", Version::V13, Kind::MutualWarm, KeyAlgorithm::P256, Group::X25519),
    case("tls13-p256/mutual-cold", Version::V13, Kind::MutualCold, KeyAlgorithm::P256, Group::X25519),
    case("tls13-p256/one-sided", Version::V13, Kind::OneSided, KeyAlgorithm::P256, Group::X25519),
    case("tls13-p256/resumed", Version::V13, Kind::Resumed, KeyAlgorithm::P256, Group::X25519),
    case("tls13-p256-secp256r1/mutual-warm", Version::V13, Kind::MutualWarm, KeyAlgorithm::P256, Group::Secp256r1),
    case("tls13-p256-mlkem768/mutual-warm", Version::V13, Kind::MutualWarm, KeyAlgorithm::P256, Group::X25519MlKem768),
    case("tls13-rsa2048/mutual-warm", Version::V13, Kind::MutualWarm, KeyAlgorithm::Rsa2048, Group::X25519),
    case("tls13-rsa2048/one-sided", Version::V13, Kind::OneSided, KeyAlgorithm::Rsa2048, Group::X25519),
    case("tls12-p256/mutual-warm", Version::V12, Kind::MutualWarm, KeyAlgorithm::P256, Group::X25519),
    case("tls12-p256/one-sided", Version::V12, Kind::OneSided, KeyAlgorithm::P256, Group::X25519),
    case("tls12-p256/resumed", Version::V12, Kind::Resumed, KeyAlgorithm::P256, Group::X25519),
    case("tls12-rsa2048/mutual-warm", Version::V12, Kind::MutualWarm, KeyAlgorithm::Rsa2048, Group::X25519),
];

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let mut lines = Vec::new();
    let mut full = HashMap::new();
    for case in &CASES {
        let mut group = criterion.benchmark_group(format!("handshake/{}", case.name));
        group.throughput(Throughput::Elements(1));
        let Some((mut line, server)) = measure(&mut group, case, &[TlsVersion::V12, TlsVersion::V13]) else {
            continue;
        };
        let family = case.name.split('/').next();
        match case.kind {
            Kind::MutualWarm => drop(full.insert(family, server)),
            Kind::Resumed => {
                if let Some(full) = full.get(&family) {
                    line.push_str(&format!("  full {full:>9.1} us  ratio {:.2}", server / full));
                }
            }
            Kind::MutualCold | Kind::OneSided => {}
        }
        lines.push(line);
    }
    // What a site that asks for TLSv1.1 costs those of its clients that are newer.
    #[cfg(feature = "engine-boring")]
    for case in CASES.iter().filter(|case| matches!(case.kind, Kind::MutualWarm | Kind::OneSided)) {
        let mut group = criterion.benchmark_group(format!("handshake-boringssl/{}", case.name));
        group.throughput(Throughput::Elements(1));
        let measured = measure(&mut group, case, &[TlsVersion::V11, TlsVersion::V12, TlsVersion::V13]);
        lines.extend(measured.map(|(line, _)| format!("{line}  (BoringSSL)")));
    }
    criterion.final_summary();
    lines.iter().for_each(|line| println!("{line}"));
}

/// Benches the case and its floor; gives the line for the end, and the microseconds in it, when it was measured.
fn measure(
    group: &mut BenchmarkGroup<'_, WallTime>,
    case: &Case,
    versions: &[TlsVersion],
) -> Option<(String, f64)> {
    let credentials = Credentials::mint(case.algorithm);
    let desk = Desk::new(&credentials, case.kind != Kind::OneSided, versions);
    let config = credentials.client_config(case);
    assert!(case.kind != Kind::Resumed || server::resumes(&desk, &config), "{} resumes", case.name);
    let floor = (case.kind != Kind::Resumed).then(|| Floor::new(case.algorithm, case.group));
    let verifications = match case.kind {
        Kind::MutualWarm => 1,
        Kind::MutualCold => 3,
        Kind::OneSided | Kind::Resumed => 0,
    };
    let (times, floor_times) = (RefCell::new(Vec::new()), RefCell::new(Vec::new()));
    let work = |floor: &Floor| {
        let started = Instant::now();
        floor.work(verifications);
        started.elapsed()
    };
    group.bench_function("server", |bencher| {
        bencher.iter_custom(|rounds| {
            // The floor is taken batch by batch beside it: a machine that is slow for a while is slow for both.
            if let Some(floor) = &floor {
                timed(&floor_times, rounds, || work(floor));
            }
            timed(&times, rounds, || server::handshake(&desk, &config))
        });
    });
    if let Some(floor) = &floor {
        group.bench_function("floor", |bencher| {
            bencher.iter_custom(|rounds| (0..rounds).map(|_| work(floor)).sum());
        });
    }
    let server = median(&times)?;
    let line = format!("{:<36} {server:>8.1} us  {:>7.0} handshakes/s", case.name, 1e6 / server);
    let line = match median(&floor_times) {
        Some(floor) => format!("{line}  floor {floor:>8.1} us  ratio {:.2}", server / floor),
        None => line,
    };
    Some((line, server))
}

/// Sums what `one` says it took, and keeps the mean of the batch.
fn timed(times: &RefCell<Vec<f64>>, rounds: u64, one: impl Fn() -> Duration) -> Duration {
    let total: Duration = (0..rounds).map(|_| one()).sum();
    times.borrow_mut().push(total.as_secs_f64() * 1e6 / rounds as f64);
    total
}

/// The middle of all batches: the warm-up's are few and do not move it.
fn median(times: &RefCell<Vec<f64>>) -> Option<f64> {
    let mut times = times.take();
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied()
}

/// Leaf and intermediate on both sides.
struct Credentials {
    server_root: Authority,
    server: Minted,
    client_root: Authority,
    client_issuer: Authority,
    client: Minted,
}

impl Credentials {
    fn mint(algorithm: KeyAlgorithm) -> Self {
        let authority = |name: &str| AuthoritySpec::new(name).algorithm(algorithm);
        let server_root = Authority::root(&authority("Server Root")).expect("a root");
        let issuer = server_root.intermediate(&authority("Server Intermediate")).expect("an intermediate");
        let server = issuer.issue(&LeafSpec::server(HOST).algorithm(algorithm)).expect("a leaf");
        let client_root = Authority::root(&authority("Client Root")).expect("a root");
        let client_issuer =
            client_root.intermediate(&authority("Client Intermediate")).expect("an intermediate");
        let client = client_issuer.issue(&LeafSpec::client("client").algorithm(algorithm)).expect("a leaf");
        Self { server_root, server, client_root, client_issuer, client }
    }

    fn client_config(&self, case: &Case) -> Arc<ClientConfig> {
        let pair = (self.client.chain_pem.as_bytes(), self.client.key_pem.as_bytes());
        let identity = ClientIdentity::from_pem(self.server_root.certificate_pem().as_bytes(), Some(pair));
        let identity = identity.expect("the client's identity");
        let resume = case.kind == Kind::Resumed;
        let config = identity.client_config(case.version, case.group, &[b"http/1.1"], resume);
        let config = config.expect("a client configuration");
        if case.kind != Kind::MutualCold {
            return config;
        }
        let mut config = ClientConfig::clone(&config);
        config.client_auth_cert_resolver = Arc::new(crowd::Crowd::mint(&self.client_issuer));
        Arc::new(config)
    }
}
