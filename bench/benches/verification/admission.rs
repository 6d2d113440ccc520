//! The cost of checking one request: `model::admission::admit`, for a site of each mode and for
//! skip rules of usual and unusual size.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, Throughput};
use dataplane::testing::tls::client_verifier;
use model::admission::{ClientVerification, ConnectionAuth, admit};
use model::{
    Delta, HostName, Id, PathOptions, RequestTarget, Resource, Snapshot, SniPattern, Ssl, Versioned,
};
use pki::ca::KeyAlgorithm;
use pki::{ClientAuth, ClientAuthInput};

use super::{Chain, NOW};

/// Skip rules as sites have them: a handful of anchored prefixes and exact paths.
const USUAL: [&str; 4] =
    ["^/healthz$", "^/\\.well-known/", "^/api/v1/public/", "^/static/.*\\.(css|js|png)$"];

pub(crate) fn admission(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("admit");
    group.throughput(Throughput::Elements(1));
    let chain = Chain::generate(2, KeyAlgorithm::P256);
    let usual: Vec<String> = USUAL.iter().map(|&pattern| pattern.to_owned()).collect();
    let many: Vec<String> = (0..64).map(|number| format!("^/service-{number}/public/")).collect();
    let cases: [(&str, Option<Vec<String>>, bool, &str); 6] = [
        ("no-client-authentication", None, false, "/api/v1/orders/17"),
        ("requires", Some(Vec::new()), true, "/api/v1/orders/17"),
        ("skip-rules/verified", Some(usual.clone()), true, "/api/v1/orders/17"),
        ("skip-rules/exempt", Some(usual.clone()), false, "/static/app/main.css"),
        ("skip-rules/protected", Some(usual), false, "/api/v1/orders/17"),
        ("64-skip-rules/protected", Some(many), false, "/service-63/private/17"),
    ];
    for (name, skip, verified, path) in cases {
        let policy = skip.map(|skip| Arc::new(policy(&chain, skip)));
        let client = match &policy {
            Some(policy) if verified => {
                let shown: Vec<_> = std::iter::once(&chain.leaf).chain(&chain.sent).cloned().collect();
                client_verifier::evaluate_client(Some(policy), Some(&shown), NOW)
            }
            Some(_) => ClientVerification::NoCertificate,
            None => ClientVerification::NotRequested,
        };
        let snapshot = snapshot(policy);
        let sni = HostName::from_sni("app.example").expect("a name");
        let ssl = snapshot.site(&sni).map(Arc::as_ref);
        let site = ConnectionAuth { sni: &sni, ssl, client: &client };
        let target = RequestTarget::new(None, Some("app.example:443"), path, PathOptions::default())
            .expect("a target");
        group.bench_function(name, |bencher| {
            bencher.iter(|| admit(black_box(&site), &snapshot, black_box(&target)).is_ok());
        });
    }
}

fn policy(chain: &Chain, skip_uri_patterns: Vec<String>) -> ClientAuth {
    let anchors = vec![chain.root.certificate().clone()];
    let input = ClientAuthInput { anchors, depth: 1, skip_uri_patterns, ..ClientAuthInput::default() };
    ClientAuth::new(input).expect("a policy")
}

/// A thousand sites, one of which is looked up.
fn snapshot(client: Option<Arc<ClientAuth>>) -> Snapshot {
    let site = |number: usize, name: &str, client: Option<Arc<ClientAuth>>| {
        let ssl = Ssl {
            names: vec![SniPattern::parse(name).expect("a name")],
            client,
            ..Ssl::new(Id::parse(&format!("site-{number}")).expect("an id"))
        };
        Versioned { version: 1, resource: Resource::Ssl(Arc::new(ssl)) }
    };
    let mut upserts: Vec<_> =
        (1..1000).map(|number| site(number, &format!("site-{number}.example"), None)).collect();
    upserts.push(site(0, "app.example", client));
    Snapshot::empty().apply(&Delta { from: 0, to: 1, upserts, removals: Vec::new() })
}
