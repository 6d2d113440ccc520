//! TLS handshakes through the data plane's own code, server side only, in memory; beside each its crypto floor.
//!
//! What runs is `dataplane::connection::establish` on a worker: ClientHello, site by SNI from a snapshot, the site's
//! prepared configuration, the handshake over a pump, `pki`'s verdict, tickets. The transport is two buffers; only the
//! server's polls are timed, the client and the clean-up are not. The floor is what no implementation can leave out: the key
//! exchange, the signature, and the verifications, done with aws-lc-rs directly, batch by batch in turn with the handshakes.
//! At the end one line a case: both times and their ratio; for a resumed session also the ratio to the full handshake of its family.
#![allow(clippy::expect_used, reason = "a benchmark that cannot be set up stops, like a test")]

use std::cell::{LazyCell, OnceCell};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bench::identity::{ClientIdentity, Group, Version};
use criterion::{BenchmarkGroup, Criterion, Throughput, measurement::WallTime};
use dataplane::rt::{self, Driver};
use model::TlsVersion;
use pki::mint::{Authority, AuthoritySpec, KeyAlgorithm, LeafSpec, Minted};
use rustls::ClientConfig;

#[path = "shared/beside.rs"]
mod beside;
#[path = "handshake/crowd.rs"]
mod crowd;
#[path = "handshake/floor.rs"]
mod floor;
#[path = "shared/gateway.rs"]
mod gateway;
#[path = "handshake/server.rs"]
mod server;

use floor::{Floor, Work};
use server::Desk;

/// The data plane's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The name every client asks for.
const HOST: &str = "bench.test";

/// What the server has to do about the client.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Ask for a certificate, and know its chain already.
    MutualWarm,
    /// As [`Kind::MutualWarm`], as the first of its site, whose configuration is made for it.
    MutualFirst,
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

/// A family's full handshake stands before its resumed one, which is compared with it.
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
    // A worker lives within its runtime, though nothing here waits for it: the transport is memory.
    rt::run(&Driver::detect(), || async { benches() }).expect("a runtime");
}

fn benches() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(4))
        .sample_size(50)
        .configure_from_args();
    let (p256, rsa) = (Credentials::lazy(KeyAlgorithm::P256), Credentials::lazy(KeyAlgorithm::Rsa2048));
    let credentials = |case: &Case| if case.algorithm == KeyAlgorithm::P256 { &p256 } else { &rsa };
    let mut lines = Vec::new();
    let mut full = HashMap::new();
    for case in &CASES {
        let versions = [TlsVersion::V12, TlsVersion::V13];
        let Some((mut line, server)) =
            measure(&mut criterion, "handshake", case, credentials(case), &versions)
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
    // What a site that asks for TLSv1.1 costs those of its clients that are newer.
    #[cfg(feature = "engine-boring")]
    for case in CASES.iter().filter(|case| matches!(case.kind, Kind::MutualWarm | Kind::OneSided)) {
        let versions = [TlsVersion::V11, TlsVersion::V12, TlsVersion::V13];
        let measured = measure(&mut criterion, "handshake-boringssl", case, credentials(case), &versions);
        lines.extend(measured.map(|(line, _)| format!("{line}  (BoringSSL)")));
    }
    criterion.final_summary();
    lines.iter().for_each(|line| println!("{line}"));
}

/// Benches the case in turn with its floor; gives the line for the end, and the microseconds in it, when it was measured.
fn measure(
    criterion: &mut Criterion,
    group: &str,
    case: &Case,
    credentials: &LazyCell<Credentials, impl FnOnce() -> Credentials>,
    versions: &[TlsVersion],
) -> Option<(String, f64)> {
    let mut group: BenchmarkGroup<'_, WallTime> = criterion.benchmark_group(group);
    group.throughput(Throughput::Elements(1));
    // Made when it is measured, which a filter may leave out.
    let sides = LazyCell::new(|| {
        let desk = Desk::new(credentials, case.kind != Kind::OneSided, versions);
        let config = credentials.client_config(case);
        assert!(case.kind != Kind::Resumed || server::resumes(&desk, &config), "{} resumes", case.name);
        (desk, config)
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
        let (desk, config) = &*sides;
        if case.kind == Kind::MutualFirst {
            desk.renew();
        }
        server::handshake(desk, config)
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
    /// What cannot be left out of it. A session of TLS 1.2 is resumed without any of it.
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

/// Leaf and intermediate on both sides.
struct Credentials {
    server_root: Authority,
    server: Minted,
    client_root: Authority,
    client_issuer: Authority,
    client: Minted,
    crowd: OnceCell<Arc<crowd::Crowd>>,
}

impl Credentials {
    fn lazy(algorithm: KeyAlgorithm) -> LazyCell<Self, impl FnOnce() -> Self> {
        LazyCell::new(move || Self::mint(algorithm))
    }

    fn mint(algorithm: KeyAlgorithm) -> Self {
        let authority = |name: &str| AuthoritySpec::new(name).algorithm(algorithm);
        let server_root = Authority::root(&authority("Server Root")).expect("a root");
        let issuer = server_root.intermediate(&authority("Server Intermediate")).expect("an intermediate");
        let server = issuer.issue(&LeafSpec::server(HOST).algorithm(algorithm)).expect("a leaf");
        let client_root = Authority::root(&authority("Client Root")).expect("a root");
        let client_issuer =
            client_root.intermediate(&authority("Client Intermediate")).expect("an intermediate");
        let client = client_issuer.issue(&LeafSpec::client("client").algorithm(algorithm)).expect("a leaf");
        Self { server_root, server, client_root, client_issuer, client, crowd: OnceCell::new() }
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
        let crowd = self.crowd.get_or_init(|| {
            println!("minting the clients of the cold cases");
            Arc::new(crowd::Crowd::mint(&self.client_issuer))
        });
        config.client_auth_cert_resolver = Arc::clone(crowd) as _;
        Arc::new(config)
    }
}
