//! The cost of a client's identity for a request: the allow-list, the forwarded forms, `vars` and
//! `proxy-rewrite`.
//!
//! The allow-list has one entry of each kind and 1,000 more of one kind: its length must not show.
//! The forms are those of every request but a connection's first.
#![allow(clippy::expect_used, reason = "a benchmark that cannot be set up stops, like a test")]

use std::hint::black_box;
use std::time::Duration;

use criterion::{BatchSize, Criterion};
use dataplane::testing::filters::headers::{ConnectionHeaders, ForwardedContext, PeerTrust};
use dataplane::testing::filters::identity::IdentityHeaderCache;
use dataplane::testing::filters::{headers, identity, rewrite, variables};
use dataplane::testing::http::request;
use dataplane::testing::io::connection_info::{ConnectionInfo, ListenerProtocol};
use dataplane::testing::tls::client_verifier;
use dataplane::testing::tls::params::NegotiatedParams;
use http::HeaderMap;
use http::request::Parts;
use model::admission::ClientVerification;
use model::{ClientIdentity, HostName, PathOptions, ProxyRewrite, Vars};
use pki::ca::{Authority, AuthoritySpec, LeafSpec};
use pki::{ClientAuth, ClientAuthInput, UnixTime};
use serde_json::{Value, json};

/// Within the validity of every issued certificate: 2026-01-01.
const NOW: UnixTime = UnixTime::since_unix_epoch(Duration::from_secs(1_767_225_600));

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let root = Authority::root(&AuthoritySpec::new("Bench Root")).expect("a root");
    let spec =
        LeafSpec::client("bench client").organization("Bench").uri("spiffe://bench.test/ns/a/sa/client");
    let leaf = root.issue(&spec.dns("client.bench.test")).expect("a leaf");
    let anchors = vec![root.certificate().clone()];
    let policy =
        ClientAuth::new(ClientAuthInput { anchors, ..ClientAuthInput::default() }).expect("a policy");
    let sent: Vec<_> = leaf.chain.iter().map(|certificate| certificate.der().clone()).collect();
    let client = client_verifier::evaluate_client(Some(&policy), Some(&sent), NOW);
    assert!(client.identity().is_some());
    allow_list(&mut criterion, &client);
    forms(&mut criterion, &client);
    routing(&mut criterion, &client);
    criterion.final_summary();
}

fn allow(entries: Vec<Value>) -> ClientIdentity {
    ClientIdentity::compile(&json!({"allow": entries})).expect("an allow-list")
}

fn allow_list(criterion: &mut Criterion, client: &ClientVerification) {
    let mut group = criterion.benchmark_group("allow_list");
    let others = |kind: &str| -> Vec<Value> {
        (0..1000)
            .map(|number| match kind {
                "spiffe" => json!({"spiffe": format!("spiffe://bench.test/ns/{number}/*")}),
                "dns" => json!({"dns": format!("{number}.bench.test")}),
                "subject" => json!({"subject": format!("CN=client {number},O=Bench")}),
                _ => json!({"serial": format!("{:06X}", number + 1)}),
            })
            .collect()
    };
    let hits = [
        ("spiffe", json!({"spiffe": "spiffe://bench.test/ns/a/*"})),
        ("dns", json!({"dns": "*.bench.test"})),
        ("subject", json!({"subject": "CN=bench client,O=Bench"})),
    ];
    for (kind, hit) in hits {
        let mut entries = others(kind);
        entries.push(hit);
        let block = allow(entries);
        assert!(identity::check_allow_list(Some(&block), client).is_ok());
        group.bench_function(format!("hit/{kind}"), |bencher| {
            bencher.iter(|| identity::check_allow_list(Some(black_box(&block)), black_box(client)).is_ok());
        });
    }
    let miss = allow(["spiffe", "dns", "subject", "serial"].into_iter().flat_map(others).collect());
    assert!(identity::check_allow_list(Some(&miss), client).is_err());
    group.bench_function("miss/every kind", |bencher| {
        bencher.iter(|| identity::check_allow_list(Some(black_box(&miss)), black_box(client)).is_ok());
    });
}

fn forms(criterion: &mut Criterion, client: &ClientVerification) {
    let mut group = criterion.benchmark_group("forms");
    for form in ["client_cert", "xfcc", "x_ssl_client"] {
        let block = ClientIdentity::compile(&json!({"forward": [form]})).expect("a block");
        let forms = IdentityHeaderCache::default();
        group.bench_function(form, |bencher| {
            let empty = || HeaderMap::with_capacity(16);
            bencher.iter_batched_ref(
                empty,
                |headers| forms.set_headers(headers, &block, client, None),
                BatchSize::SmallInput,
            );
        });
    }
    let mut sent = ordinary().headers;
    let connection = ConnectionHeaders::new(([192, 0, 2, 7], 1234).into(), 9443, true);
    // Bounded: X-Forwarded-For is replaced and does not grow from one iteration to the next.
    let trust = PeerTrust::default();
    let from = ForwardedContext {
        connection: &connection,
        real_ip: None,
        has_trusted_addresses: true,
        trust,
        real_ip_header: None,
        authority: None,
    };
    group.bench_function("headers to the upstream, nothing claimed", |bencher| {
        bencher.iter(|| headers::prepare_request(black_box(&mut sent), &from));
    });
}

fn ordinary() -> Parts {
    let builder =
        http::Request::builder().uri("/api/v1/things/42?page=2&size=50").header("host", "bench.test");
    let builder =
        builder.header("user-agent", "bench/1").header("accept", "*/*").header("x-request-id", "42");
    let builder = builder.header("cookie", "session=abc; theme=dark").header("accept-encoding", "gzip");
    builder.body(()).expect("a request").into_parts().0
}

fn routing(criterion: &mut Criterion, client: &ClientVerification) {
    let mut group = criterion.benchmark_group("variables");
    let mut parts = ordinary();
    let target = request::parse_target(parts.version, &parts.uri, &parts.headers, PathOptions::default())
        .expect("a target");
    let info = ConnectionInfo::new(
        "192.0.2.7:1234".parse().expect("an address"),
        "10.0.0.1:9443".parse().expect("an address"),
        ListenerProtocol::Https,
    );
    let sni = HostName::from_sni("bench.test").expect("a name");
    let params =
        NegotiatedParams { protocol: "TLSv1.3", cipher: "", curve: None, alpn: None, resumed: false };
    let seen = variables::RequestContext {
        parts: &parts,
        target: &target,
        info: &info,
        tls: Some((&sni, &params)),
        client,
    };
    for (name, vars) in [
        ("vars/none", json!([])),
        ("vars/subject", json!([["ssl_client_s_dn", "==", "CN=bench client,O=Bench"]])),
        ("vars/pattern", json!([["ssl_client_s_dn", "~~", "O=Bench$"]])),
        ("vars/header and argument", json!([["http_x_request_id", "==", "42"], ["arg_size", "<", 100]])),
    ] {
        let vars = Vars::compile(&vars).expect("a predicate");
        assert!(vars.matches(&seen));
        group.bench_function(name, |bencher| bencher.iter(|| black_box(&vars).matches(black_box(&seen))));
    }
    let tutorial = json!({"headers": {
        "X-Ssl-Client-Fingerprint": "$ssl_client_fingerprint", "X-Ssl-Client-Serial": "$ssl_client_serial",
        "X-Ssl-Client-S-DN": "$ssl_client_s_dn"
    }});
    let block = ProxyRewrite::compile(&tutorial).expect("a configuration");
    group.bench_function("proxy-rewrite/the tutorial's three headers", |bencher| {
        bencher.iter(|| rewrite::evaluate(black_box(&block), black_box(&seen)).is_ok());
    });
    let worked_out = rewrite::evaluate(&block, &seen).expect("values");
    worked_out.apply(&mut parts);
    assert!(parts.headers.get("x-ssl-client-s-dn").is_some_and(|name| name == "CN=bench client,O=Bench"));
}
