//! Snapshots with many names, made from one checked resource of each kind.
#![allow(clippy::expect_used, reason = "a measurement that cannot be set up stops, like a test")]

use std::sync::Arc;

use compare::comparison::many::spread_out;
use model::{Delta, HostName, Id, Kind, Resource, Route, Snapshot, Ssl, Versioned};
use pki::ca::{Authority, AuthoritySpec, KeyAlgorithm, LeafSpec};
use serde_json::json;

/// One checked resource of each kind, to be cloned under other names.
pub struct Samples {
    ssl: Arc<Ssl>,
    route: Arc<Route>,
}

impl Samples {
    pub fn new(algorithm: KeyAlgorithm) -> Self {
        let authority = Authority::root(&AuthoritySpec::new("Bench Root")).expect("a root");
        let issued = authority.issue(&LeafSpec::server("bench.test").algorithm(algorithm)).expect("a leaf");
        let id = Id::parse("sample").expect("an id");
        let keyring = pki::Keyring::empty();
        let ssl = json!({"cert": issued.chain_pem, "key": issued.key_pem.as_str(), "snis": ["bench.test"]});
        let Ok(Resource::Ssl(ssl)) = model::compile(Kind::Ssl, &id, &ssl, &keyring) else {
            unreachable!("the sample ssl is good")
        };
        let upstream = json!({"type": "roundrobin", "nodes": {"127.0.0.1:1980": 1}});
        let route = json!({"uris": ["/", "/api/*"], "host": "bench.test", "upstream": upstream});
        let Ok(Resource::Route(route)) = model::compile(Kind::Route, &id, &route, &keyring) else {
            unreachable!("the sample route is good")
        };
        Self { ssl, route }
    }

    pub fn ssl(&self) -> &Ssl {
        &self.ssl
    }

    /// The `index`-th ssl and route. Every second one has a wildcard.
    pub fn resources(&self, index: u32, revision: u64) -> [Versioned; 2] {
        let id = Id::parse(&index.to_string()).expect("an id");
        let name = configured(index);
        let mut ssl = Ssl::clone(&self.ssl);
        ssl.id = id.clone();
        ssl.names = vec![model::SniPattern::parse(&name).expect("a name")];
        let mut route = Route::clone(&self.route);
        route.id = id;
        route.hosts = vec![model::HostPattern::parse(&name).expect("a name")];
        [Resource::Ssl(Arc::new(ssl)), Resource::Route(Arc::new(route))]
            .map(|resource| Versioned { version: revision, resource })
    }

    /// So many of both.
    pub fn snapshot(&self, size: u32) -> Snapshot {
        Snapshot::from_resources(1, (0..size).flat_map(|index| self.resources(index, 1)))
    }

    /// A delta to the next revision that rewrites so many ssls, spread over the table.
    pub fn delta(&self, from: u64, size: u32, count: u32) -> Delta {
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

/// The name of the `index`-th entry.
pub fn configured(index: u32) -> String {
    if index.is_multiple_of(2) {
        format!("host-{index}.bench.test")
    } else {
        format!("*.tenant-{index}.bench.test")
    }
}

/// A name that the `index`-th entry matches.
pub fn asked(index: u32) -> HostName {
    HostName::from_sni(&configured(index).replace('*', "www")).expect("a name")
}
