//! What it costs to find a site and a route, and to apply a change, at 1, 1,000 and 100,000 names.
//!
//! Every handshake and every request looks up once, so lookups must not grow with the configuration; a change must
//! cost its own size and nothing of the rest. Half of the names are exact, half are wildcards; asked is for names that
//! are there and for one that is not.
#![allow(clippy::expect_used, reason = "a benchmark that cannot be set up stops, like a test")]

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput};
use model::{Delta, Id, Kind, Name, Resource, Route, RouteQuery, Snapshot, Ssl, Versioned};
use pki::mint::{Authority, AuthoritySpec, LeafSpec};
use serde_json::json;

const SIZES: [u32; 3] = [1, 1_000, 100_000];
/// Different names asked for in turn, so that not one lookup stays in the core's caches.
const ASKED: u32 = 512;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let samples = Samples::new();
    for size in SIZES {
        let snapshot = samples.snapshot(size);
        assert_eq!((snapshot.len(Kind::Ssl), snapshot.len(Kind::Route)), (size as usize, size as usize));
        sites(&mut criterion, &snapshot, size);
        routes(&mut criterion, &snapshot, size);
        changes(&mut criterion, &samples, &snapshot, size);
    }
    criterion.final_summary();
}

/// One checked resource of each kind, to be cloned under other names.
struct Samples {
    ssl: Arc<Ssl>,
    route: Arc<Route>,
}

impl Samples {
    fn new() -> Self {
        let authority = Authority::root(&AuthoritySpec::new("Bench Root")).expect("a root");
        let minted = authority.issue(&LeafSpec::server("bench.test")).expect("a leaf");
        let id = Id::parse("sample").expect("an id");
        let keyring = pki::Keyring::none();
        let ssl = json!({"cert": minted.chain_pem, "key": minted.key_pem.as_str(), "snis": ["bench.test"]});
        let Ok(Resource::Ssl(ssl)) = model::check(Kind::Ssl, &id, &ssl, &keyring) else {
            unreachable!("the sample ssl is good")
        };
        let upstream = json!({"type": "roundrobin", "nodes": {"127.0.0.1:1980": 1}});
        let route = json!({"uris": ["/", "/api/*"], "host": "bench.test", "upstream": upstream});
        let Ok(Resource::Route(route)) = model::check(Kind::Route, &id, &route, &keyring) else {
            unreachable!("the sample route is good")
        };
        Self { ssl, route }
    }

    /// The `index`-th ssl and route. Every second one is for a wildcard.
    fn resources(&self, index: u32, revision: u64) -> [Versioned; 2] {
        let id = Id::parse(&index.to_string()).expect("an id");
        let name = configured(index);
        let mut ssl = Ssl::clone(&self.ssl);
        ssl.id = id.clone();
        ssl.names = vec![model::SniPattern::parse(&name).expect("a name")];
        let mut route = Route::clone(&self.route);
        route.id = id;
        route.hosts = vec![model::HostPattern::parse(&name).expect("a name")];
        [Resource::Ssl(Arc::new(ssl)), Resource::Route(Arc::new(route))]
            .map(|resource| Versioned { revision, resource })
    }

    fn snapshot(&self, size: u32) -> Snapshot {
        Snapshot::from_resources(1, (0..size).flat_map(|index| self.resources(index, 1)))
    }

    /// The way to the next revision, with so many ssls rewritten somewhere in the middle.
    fn delta(&self, from: u64, size: u32, count: u32) -> Delta {
        let one = |round: u32| {
            let index = spread_out(round, size);
            let [ssl, _] = self.resources(index, from + 1);
            ssl
        };
        let mut upserts: Vec<_> = (0..count).map(one).collect();
        upserts.sort_by_key(|upsert| upsert.resource.key());
        upserts.dedup_by_key(|upsert| upsert.resource.key());
        Delta { from, to: from + 1, upserts, removals: Vec::new() }
    }
}

fn configured(index: u32) -> String {
    if index.is_multiple_of(2) {
        format!("host-{index}.bench.test")
    } else {
        format!("*.tenant-{index}.bench.test")
    }
}

/// A name that the `index`-th entry answers to.
fn asked(index: u32) -> Name {
    Name::from_sni(&configured(index).replace('*', "www")).expect("a name")
}

fn spread_out(round: u32, size: u32) -> u32 {
    (u64::from(round).wrapping_mul(2_654_435_761) % u64::from(size)) as u32
}

fn sites(criterion: &mut Criterion, snapshot: &Snapshot, size: u32) {
    let mut group = criterion.benchmark_group("site");
    group.throughput(Throughput::Elements(1));
    let names: Vec<Name> = (0..ASKED).map(|round| asked(spread_out(round, size))).collect();
    assert!(names.iter().all(|name| snapshot.site(name).is_some()));
    let mut next = names.iter().cycle();
    group.bench_function(BenchmarkId::new("found", size), |bencher| {
        bencher.iter(|| next.next().and_then(|name| snapshot.site(black_box(name))).is_some());
    });
    let stranger = Name::from_sni("www.somewhere-else.test").expect("a name");
    assert!(snapshot.site(&stranger).is_none());
    group.bench_function(BenchmarkId::new("unknown", size), |bencher| {
        bencher.iter(|| snapshot.site(black_box(&stranger)).is_none());
    });
}

fn routes(criterion: &mut Criterion, snapshot: &Snapshot, size: u32) {
    let mut group = criterion.benchmark_group("route");
    group.throughput(Throughput::Elements(1));
    let names: Vec<Name> = (0..ASKED).map(|round| asked(spread_out(round, size))).collect();
    let query = |name| RouteQuery {
        host: Some(name),
        path: "/api/v1/things/42",
        method: "GET",
        remote: IpAddr::V4(Ipv4Addr::LOCALHOST),
        variables: &model::NoVariables,
    };
    assert!(names.iter().all(|name| snapshot.find_route(&query(name)).is_some()));
    let mut next = names.iter().cycle();
    group.bench_function(BenchmarkId::new("found", size), |bencher| {
        bencher.iter(|| next.next().and_then(|name| snapshot.find_route(black_box(&query(name)))).is_some());
    });
    let stranger = Name::from_sni("www.somewhere-else.test").expect("a name");
    assert!(snapshot.find_route(&query(&stranger)).is_none());
    group.bench_function(BenchmarkId::new("unknown", size), |bencher| {
        bencher.iter(|| snapshot.find_route(black_box(&query(&stranger))).is_none());
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
        // Dropping the former snapshot is part of a swap, and only the last holder pays for it: not timed.
        group.bench_function(BenchmarkId::new(format!("{count}-changes"), size), |bencher| {
            bencher.iter_batched(|| (), |()| snapshot.apply(black_box(&delta)), BatchSize::SmallInput);
        });
    }
}
