//! The stages of one request that need no socket, one by one and as a sequence.

use std::hint::black_box;

use bench::gateway;
use criterion::{BatchSize, Criterion};
use dataplane::testing::filters::headers::{ConnectionHeaders, ForwardedContext, PeerTrust};
use dataplane::testing::filters::{headers, identity, path, variables};
use dataplane::testing::http::request;
use dataplane::testing::io::connection_info::{ConnectionInfo, ListenerProtocol};
use dataplane::testing::tls::client_verifier;
use dataplane::testing::tls::params::NegotiatedParams;
use dataplane::testing::upstream::{Balancer, NodeAttempts, RequestBody, upstream_host, upstream_request};
use http::request::Parts;
use model::admission::{ClientVerification, ConnectionAuth, admit};
use model::{HostName, Kind, PathOptions, RequestTarget, Snapshot, destination};
use pki::UnixTime;
use serde_json::{Value, json};

use super::{Credentials, HOST, PATH, UPSTREAM};

/// Routes beside the matching one.
const ROUTES: usize = 1000;

/// The input of every stage.
struct Walk {
    snapshot: Snapshot,
    sni: HostName,
    client: ClientVerification,
    info: ConnectionInfo,
    connection: ConnectionHeaders,
    params: NegotiatedParams,
}

pub(crate) fn stages(criterion: &mut Criterion, credentials: &Credentials) {
    let walk = Walk::new(credentials);
    let mut group = criterion.benchmark_group("proxy/stage");
    let (parts, target) = (asked(), walk.target(&asked()));
    let upstream = walk.destination(&parts, &target).upstream;
    let balance = Balancer::new(upstream);
    let batch = BatchSize::SmallInput;
    group.bench_function("1-target", |bencher| bencher.iter(|| walk.target(black_box(&parts))));
    group.bench_function("2-admitted", |bencher| bencher.iter(|| walk.admitted(black_box(&target))));
    group.bench_function("3-headers", |bencher| {
        bencher.iter_batched_ref(asked, |parts| walk.headers(parts, &target), batch);
    });
    group.bench_function("4-destination", |bencher| {
        bencher.iter(|| std::ptr::from_ref(walk.destination(black_box(&parts), &target).upstream));
    });
    group.bench_function("5-outgoing", |bencher| {
        bencher.iter_batched(asked, |parts| outgoing(parts, &target), batch);
    });
    group.bench_function("6-node", |bencher| {
        bencher.iter(|| {
            let node =
                NodeAttempts::new(upstream, black_box(&balance)).next_node().ok().flatten().expect("a node");
            upstream_host(upstream, target.authority.as_deref(), node)
        });
    });
    group.bench_function("all", |bencher| {
        let all = |mut parts: Parts| {
            let target = walk.target(&parts);
            let _client = walk.admitted(&target);
            walk.headers(&mut parts, &target);
            let upstream = walk.destination(&parts, &target).upstream;
            let request = outgoing(parts, &target);
            let node = NodeAttempts::new(upstream, &balance).next_node().ok().flatten().expect("a node");
            black_box(upstream_host(upstream, target.authority.as_deref(), node));
            request
        };
        bencher.iter_batched(asked, all, batch);
    });
}

/// The request to the upstream.
fn outgoing(mut parts: Parts, target: &RequestTarget) -> http::Request<RequestBody> {
    let own = std::mem::take(&mut parts.uri).into_parts().path_and_query;
    let path = path::forwarded_path(target, own).expect("a path");
    upstream_request(parts, path, RequestBody::empty())
}

impl Walk {
    fn new(credentials: &Credentials) -> Self {
        let names: Vec<String> = (0..ROUTES).map(|number| format!("route-{number}")).collect();
        let ssl = (Kind::Ssl, "site", credentials.ssl());
        let asked_for = (Kind::Route, "asked-for", route(HOST));
        let others = names.iter().map(|name| (Kind::Route, name.as_str(), route(&format!("{name}.test"))));
        let snapshot = gateway::snapshot([ssl, asked_for].into_iter().chain(others));
        let sni = HostName::from_sni(HOST).expect("a name");
        let policy = snapshot.site(&sni).and_then(|ssl| ssl.client.clone());
        let chain: Vec<_> = credentials.client.chain.iter().map(|one| one.der().clone()).collect();
        let client = client_verifier::evaluate_client(policy.as_deref(), Some(&chain), UnixTime::now());
        let info = ConnectionInfo::new(
            "192.0.2.7:1234".parse().expect("an address"),
            "10.0.0.1:9443".parse().expect("an address"),
            ListenerProtocol::Https,
        );
        let params =
            NegotiatedParams { protocol: "TLSv1.3", cipher: "", curve: None, alpn: None, resumed: false };
        let connection = ConnectionHeaders::new(info.peer, info.local.port(), true);
        Self { snapshot, sni, client, info, connection, params }
    }

    fn target(&self, parts: &Parts) -> RequestTarget {
        request::parse_target(parts.version, &parts.uri, &parts.headers, PathOptions::default())
            .expect("a target")
    }

    fn admitted(&self, target: &RequestTarget) -> ClientVerification {
        let ssl = self.snapshot.site(&self.sni).map(AsRef::as_ref);
        let site = ConnectionAuth { sni: &self.sni, ssl, client: &self.client };
        admit(&site, &self.snapshot, target).cloned().expect("an admitted client")
    }

    fn headers(&self, parts: &mut Parts, target: &RequestTarget) {
        let from = ForwardedContext {
            connection: &self.connection,
            real_ip_header: None,
            real_ip: None,
            has_trusted_addresses: false,
            trust: PeerTrust::default(),
            authority: target.authority.as_deref(),
        };
        headers::prepare_request(&mut parts.headers, &from);
    }

    fn destination(&self, parts: &Parts, target: &RequestTarget) -> destination::Destination<'_> {
        let tls = Some((&self.sni, &self.params));
        let seen = variables::RequestContext { parts, target, info: &self.info, tls, client: &self.client };
        let method = parts.method.as_str();
        let found = destination::find(&self.snapshot, target, method, self.info.peer.ip(), &seen);
        let found = found.expect("a route");
        identity::check_allow_list(found.client_identity, &self.client)
            .expect("a client the route lets through");
        found
    }
}

/// Two nodes, so that one has to be picked.
fn route(host: &str) -> Value {
    json!({"uri": "/api/*", "host": host, "upstream": {
        "type": "roundrobin", "nodes": {"127.0.0.1:1980": 2, "127.0.0.1:1981": 1},
        "pass_host": "rewrite", "upstream_host": UPSTREAM,
    }})
}

/// As a browser sends it.
fn asked() -> Parts {
    let request = http::Request::builder().uri(PATH).header("host", HOST).header("user-agent", "bench/1");
    let request =
        request.header("accept", "*/*").header("accept-encoding", "gzip").header("x-request-id", "42");
    let request = request.header("cookie", "session=abc; theme=dark").header("connection", "keep-alive");
    request.body(()).expect("a request").into_parts().0
}
