//! The cost of finding a site and a route, and of applying a change, at 1 to 1,000,000 names; of a
//! site's first use; and the memory of an ssl object.
//!
//! Every handshake and request looks up once, so lookups must not grow with the configuration; a
//! change must cost its own size. Half of the names are exact, half are wildcards. Lookups are of a
//! few popular names (`found`), of more than the core's caches hold (`scattered`), of each name
//! once, far from the one before (`uniform`), and of a missing name. Among many names a lookup
//! waits for memory: `memory/read` is one dependent read from as much memory as the names' table
//! has. The allocator is the data plane's.
#![allow(clippy::expect_used, reason = "a benchmark that cannot be set up stops, like a test")]
#![allow(clippy::print_stdout, reason = "a benchmark prints its result")]

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use bench::gateway;
use bench::memory;
use bench::names::{Samples, asked};
use compare::comparison::many::spread_out;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput};
use dataplane::testing::tls::Subsystem;
use model::{HostName, Kind, RouteQuery, Snapshot, Ssl, TlsVersion};
use pki::ca::KeyAlgorithm;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const SIZES: [u32; 4] = [1, 1_000, 100_000, 1_000_000];
/// Names looked up in turn: few popular ones, more than the core's caches hold, and all.
const ASKED: [(&str, u32); 3] = [("found", 512), ("scattered", 1 << 16), ("uniform", 1_000_000)];
/// Cache lines of the names' table for each name, rounded.
const LINES_A_NAME: u32 = 2;

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .sample_size(50)
        .configure_from_args();
    // First, while nothing else allocates or frees memory; not with a filter.
    let filtered = std::env::args().skip(1).any(|argument| !argument.starts_with('-'));
    let memory = if filtered { Vec::new() } else { memory::lines() };
    first_use(&mut criterion);
    let samples = Samples::new(KeyAlgorithm::P256);
    for size in SIZES {
        println!("making a snapshot of {size} sites and routes");
        let snapshot = samples.snapshot(size);
        assert_eq!((snapshot.len(Kind::Ssl), snapshot.len(Kind::Route)), (size as usize, size as usize));
        reads(&mut criterion, size);
        sites(&mut criterion, &snapshot, size);
        routes(&mut criterion, &snapshot, size);
        changes(&mut criterion, &samples, &snapshot, size);
    }
    criterion.final_summary();
    memory.iter().for_each(|line| println!("{line}"));
}

/// The first handshake of a site builds its configuration; `handshake` has a whole one.
fn first_use(criterion: &mut Criterion) {
    let shared = gateway::shared(Snapshot::empty(), &[TlsVersion::V12, TlsVersion::V13], None);
    let mut group = criterion.benchmark_group("site/first-use");
    for (name, algorithm) in [("p256", KeyAlgorithm::P256), ("rsa2048", KeyAlgorithm::Rsa2048)] {
        let samples = Samples::new(algorithm);
        group.bench_function(name, |bencher| {
            // A clone of an object has not been used.
            bencher.iter_batched_ref(
                || Ssl::clone(samples.ssl()),
                |ssl| shared.sites.config(ssl, Subsystem::Http).is_ok(),
                BatchSize::SmallInput,
            );
        });
    }
}

/// The names of each kind of lookup; all kinds but `found` need that many names.
fn names(size: u32) -> impl Iterator<Item = (&'static str, Vec<HostName>)> {
    let usual = ASKED.into_iter().filter(move |&(which, count)| which == "found" || count <= size);
    usual.map(move |(which, count)| (which, (0..count).map(|round| asked(spread_out(round, size))).collect()))
}

/// A walk through all cache lines of so much memory in random order: each holds the index of the
/// next.
fn reads(criterion: &mut Criterion, size: u32) {
    let lines = size * LINES_A_NAME;
    // A permutation of one cycle (Sattolo), by a simple generator.
    let mut next: Vec<u32> = (0..lines).collect();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for last in (1..lines).rev() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        next.swap(last as usize, ((state >> 33) % u64::from(last)) as usize);
    }
    let line = |next: u32| {
        let mut line = [0; 16];
        line[0] = next;
        line
    };
    let memory: Vec<[u32; 16]> = next.into_iter().map(line).collect();
    let mut group = criterion.benchmark_group("memory");
    let mut at = 0;
    group.bench_function(BenchmarkId::new("read", size), |bencher| {
        bencher.iter(|| {
            at = memory.get(at as usize).map_or(0, |[next, ..]| *next);
            at
        });
    });
}

fn sites(criterion: &mut Criterion, snapshot: &Snapshot, size: u32) {
    let mut group = criterion.benchmark_group("site");
    group.throughput(Throughput::Elements(1));
    for (which, names) in names(size) {
        assert!(names.iter().all(|name| snapshot.site(name).is_some()));
        let mut next = names.iter().cycle();
        group.bench_function(BenchmarkId::new(which, size), |bencher| {
            bencher.iter(|| next.next().and_then(|name| snapshot.site(black_box(name))).is_some());
        });
    }
    let unknown = HostName::from_sni("www.somewhere-else.test").expect("a name");
    assert!(snapshot.site(&unknown).is_none());
    group.bench_function(BenchmarkId::new("unknown", size), |bencher| {
        bencher.iter(|| snapshot.site(black_box(&unknown)).is_none());
    });
}

fn query(name: &HostName) -> RouteQuery<'_> {
    RouteQuery {
        host: Some(name),
        path: "/api/v1/things/42",
        method: "GET",
        remote: IpAddr::V4(Ipv4Addr::LOCALHOST),
        variables: &model::NoVariables,
    }
}

fn routes(criterion: &mut Criterion, snapshot: &Snapshot, size: u32) {
    let mut group = criterion.benchmark_group("route");
    group.throughput(Throughput::Elements(1));
    for (which, names) in names(size) {
        assert!(names.iter().all(|name| snapshot.find_route(&query(name)).is_some()));
        let mut next = names.iter().cycle();
        group.bench_function(BenchmarkId::new(which, size), |bencher| {
            let mut ask = || next.next().and_then(|name| snapshot.find_route(black_box(&query(name))));
            bencher.iter(|| ask().is_some());
        });
    }
    let unknown = HostName::from_sni("www.somewhere-else.test").expect("a name");
    assert!(snapshot.find_route(&query(&unknown)).is_none());
    group.bench_function(BenchmarkId::new("unknown", size), |bencher| {
        bencher.iter(|| snapshot.find_route(black_box(&query(&unknown))).is_none());
    });
}

fn changes(criterion: &mut Criterion, samples: &Samples, snapshot: &Snapshot, size: u32) {
    let mut group = criterion.benchmark_group("apply");
    for count in [1, 1_000] {
        if count > size {
            continue;
        }
        let delta = samples.delta(1, size, count);
        group.throughput(Throughput::Elements(delta.upserts.len() as u64));
        // Only the last holder pays for dropping the former snapshot: not timed.
        group.bench_function(BenchmarkId::new(format!("{count}-changes"), size), |bencher| {
            let few = BatchSize::NumIterations(16);
            bencher.iter_batched(|| (), |()| snapshot.apply(black_box(&delta)), few);
        });
    }
}
