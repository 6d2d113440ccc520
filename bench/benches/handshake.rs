//! TLS handshakes through the data plane's own code, server side only, in memory; beside each its
//! cryptographic floor.
//!
//! Each runs `dataplane::connection::establish` on a worker: ClientHello, site by SNI from a
//! snapshot, the site's prepared configuration, the handshake, `pki`'s verdict, tickets. The
//! transport is two buffers; only the server's polls are timed. The floor is the cryptography that
//! no implementation can leave out (key exchange, signature, verifications), with aws-lc-rs
//! directly; its batches alternate with those of the handshakes. At the end, one line a case has
//! both times and their ratio, and for a resumed session the ratio to the full handshake of its
//! family.
#![allow(clippy::expect_used, reason = "a benchmark that cannot be set up stops, like a test")]
#![allow(clippy::print_stdout, reason = "a benchmark prints its result")]

use std::cell::{LazyCell, OnceCell};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bench::handshake::{Credentials, Crowd, Floor, TestWorker, Work, server};
use compare::identity::{Group, Version};
use criterion::{BenchmarkGroup, Criterion, Throughput, measurement::WallTime};
use dataplane::testing::runtime::{self, Driver};
use model::TlsVersion;
use pki::ca::KeyAlgorithm;
use rustls::ClientConfig;

#[path = "shared/beside.rs"]
mod beside;
/// The data plane's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A worker caches 16,384 chains; in a round of more clients each chain is the one evicted last.
const CLIENTS: usize = 20_000;

/// The server's work for the client.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Request a certificate whose chain is cached.
    MutualWarm,
    /// As [`Kind::MutualWarm`], as the first handshake of its site, which builds the configuration.
    MutualFirst,
    /// Request a certificate, and verify a chain that was never seen.
    MutualCold,
    /// Request no certificate.
    OneSided,
    /// Accept a ticket of a verified client, and issue another one.
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

/// A family's full handshake comes before its resumed one, which is compared with it.
#[rustfmt::skip]
const CASES: [Case; 22] = [
    case("tls13-p256/mutual-warm", Version::V13, Kind::MutualWarm, KeyAlgorithm::P256, Group::X25519),
    case("tls13-p256/mutual-first", Version::V13, Kind::MutualFirst, KeyAlgorithm::P256, Group::X25519),
    case("tls13-p256/mutual-cold", Version::V13, Kind::MutualCold, KeyAlgorithm::P256, Group::X25519),
    case("tls13-p256/one-sided", Version::V13, Kind::OneSided, KeyAlgorithm::P256, Group::X25519),
    case("tls13-p256/resumed", Version::V13, Kind::Resumed, KeyAlgorithm::P256, Group::X25519),
    case("tls13-p256-secp256r1/mutual-warm", Version::V13, Kind::MutualWarm, KeyAlgorithm::P256, Group::Secp256r1),
    case("tls13-p256-secp256r1/resumed", Version::V13, Kind::Resumed, KeyAlgorithm::P256, Group::Secp256r1),
    case("tls13-p256-mlkem768/mutual-warm", Version::V13, Kind::MutualWarm, KeyAlgorithm::P256, Group::X25519MlKem768),
    case("tls13-p256-mlkem768/one-sided", Version::V13, Kind::OneSided, KeyAlgorithm::P256, Group::X25519MlKem768),
    case("tls13-p256-mlkem768/resumed", Version::V13, Kind::Resumed, KeyAlgorithm::P256, Group::X25519MlKem768),
    case("tls13-rsa2048/mutual-warm", Version::V13, Kind::MutualWarm, KeyAlgorithm::Rsa2048, Group::X25519),
    case("tls13-rsa2048/mutual-first", Version::V13, Kind::MutualFirst, KeyAlgorithm::Rsa2048, Group::X25519),
    case("tls13-rsa2048/one-sided", Version::V13, Kind::OneSided, KeyAlgorithm::Rsa2048, Group::X25519),
    case("tls13-rsa2048/resumed", Version::V13, Kind::Resumed, KeyAlgorithm::Rsa2048, Group::X25519),
    case("tls12-p256/mutual-warm", Version::V12, Kind::MutualWarm, KeyAlgorithm::P256, Group::X25519),
    case("tls12-p256/mutual-cold", Version::V12, Kind::MutualCold, KeyAlgorithm::P256, Group::X25519),
    case("tls12-p256/one-sided", Version::V12, Kind::OneSided, KeyAlgorithm::P256, Group::X25519),
    case("tls12-p256/resumed", Version::V12, Kind::Resumed, KeyAlgorithm::P256, Group::X25519),
    case("tls12-p256-secp256r1/mutual-warm", Version::V12, Kind::MutualWarm, KeyAlgorithm::P256, Group::Secp256r1),
    case("tls12-rsa2048/mutual-warm", Version::V12, Kind::MutualWarm, KeyAlgorithm::Rsa2048, Group::X25519),
    case("tls12-rsa2048/one-sided", Version::V12, Kind::OneSided, KeyAlgorithm::Rsa2048, Group::X25519),
    case("tls12-rsa2048/resumed", Version::V12, Kind::Resumed, KeyAlgorithm::Rsa2048, Group::X25519),
];

fn main() {
    // A worker needs its runtime, but nothing waits for it here: the transport is memory.
    runtime::block_on(&Driver::detect(), || async { benches() }).expect("a runtime");
}

fn benches() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(4))
        .sample_size(50)
        .configure_from_args();
    let (p256, rsa) = (Sides::lazy(KeyAlgorithm::P256), Sides::lazy(KeyAlgorithm::Rsa2048));
    let sides = |case: &Case| if case.algorithm == KeyAlgorithm::P256 { &p256 } else { &rsa };
    let mut lines = Vec::new();
    let mut full = HashMap::new();
    for case in &CASES {
        let versions = [TlsVersion::V12, TlsVersion::V13];
        let Some((mut line, server)) = measure(&mut criterion, "handshake", case, sides(case), &versions)
        else {
            continue;
        };
        let family = case.name.split('/').next();
        match case.kind {
            Kind::MutualWarm => drop(full.insert(family, server)),
            Kind::Resumed => {
                if let Some(full) = full.get(&family) {
                    line.push_str(&format!("  full {full:>7.1} us  ratio {:.2}", server / full));
                }
            }
            Kind::MutualFirst | Kind::MutualCold | Kind::OneSided => {}
        }
        lines.push(line);
    }
    // The cost of a site with TLSv1.1 for its newer clients.
    #[cfg(feature = "engine-boring")]
    for case in CASES.iter().filter(|case| matches!(case.kind, Kind::MutualWarm | Kind::OneSided)) {
        let versions = [TlsVersion::V11, TlsVersion::V12, TlsVersion::V13];
        let measured = measure(&mut criterion, "handshake-boringssl", case, sides(case), &versions);
        lines.extend(measured.map(|(line, _)| format!("{line}  (BoringSSL)")));
    }
    criterion.final_summary();
    lines.iter().for_each(|line| println!("{line}"));
}

/// Benches the case in alternation with its floor; gives the final line, and its microseconds, when
/// the case was measured.
fn measure(
    criterion: &mut Criterion,
    group: &str,
    case: &Case,
    sides: &LazyCell<Sides, impl FnOnce() -> Sides>,
    versions: &[TlsVersion],
) -> Option<(String, f64)> {
    let mut group: BenchmarkGroup<'_, WallTime> = criterion.benchmark_group(group);
    group.throughput(Throughput::Elements(1));
    // Built when measured; a filter may leave it out.
    let sides = LazyCell::new(|| {
        let worker = TestWorker::new(&sides.credentials, case.kind != Kind::OneSided, versions);
        let config = sides.client_config(case);
        assert!(case.kind != Kind::Resumed || server::resumes(&worker, &config), "{} resumes", case.name);
        (worker, config)
    });
    let work = case.floor();
    let floor = LazyCell::new(|| Floor::new(case.algorithm, case.group));
    let least = work.map(|work| {
        move || {
            let floor = LazyCell::force(&floor);
            beside::timed(|| floor.work(&work))
        }
    });
    let yardstick = least.as_ref().map(|least| least as &dyn Fn() -> Duration);
    let handshake = || {
        let (worker, config) = &*sides;
        if case.kind == Kind::MutualFirst {
            worker.renew();
        }
        server::handshake(worker, config)
    };
    let measured = beside::bench(&mut group, case.name, yardstick, &handshake)?;
    let server = measured.work;
    let line = format!("{:<36} {server:>8.1} us  {:>7.0} handshakes/s", case.name, 1e6 / server);
    let line = match measured.yardstick {
        Some(floor) => format!("{line}  floor {floor:>8.1} us  ratio {:.2}", server / floor),
        None => line,
    };
    Some((line, server))
}

impl Case {
    /// The operations that the case cannot leave out. A TLS 1.2 session resumes without any.
    fn floor(&self) -> Option<Work> {
        match (self.kind, self.version) {
            (Kind::MutualWarm | Kind::MutualFirst, _) => Some(Work { signature: true, verifications: 1 }),
            (Kind::MutualCold, _) => Some(Work { signature: true, verifications: 3 }),
            (Kind::OneSided, _) => Some(Work { signature: true, verifications: 0 }),
            (Kind::Resumed, Version::V13) => Some(Work { signature: false, verifications: 0 }),
            (Kind::Resumed, Version::V12) => None,
        }
    }
}

/// Shared by all cases of one kind of certificate.
struct Sides {
    credentials: Credentials,
    crowd: OnceCell<Arc<Crowd>>,
}

impl Sides {
    fn lazy(algorithm: KeyAlgorithm) -> LazyCell<Self, impl FnOnce() -> Self> {
        LazyCell::new(move || Self { credentials: Credentials::generate(algorithm), crowd: OnceCell::new() })
    }

    fn client_config(&self, case: &Case) -> Arc<ClientConfig> {
        let resume = case.kind == Kind::Resumed;
        let config = self.credentials.client_config(case.version, case.group, resume);
        if case.kind != Kind::MutualCold {
            return config;
        }
        let crowd = self.crowd.get_or_init(|| {
            println!("issuing the clients of the cold cases");
            Arc::new(self.credentials.crowd(CLIENTS))
        });
        let mut config = ClientConfig::clone(&config);
        config.client_auth_cert_resolver = Arc::clone(crowd) as _;
        Arc::new(config)
    }
}
