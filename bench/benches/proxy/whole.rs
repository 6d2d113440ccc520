//! A whole request, from the client's socket to the upstream's and back, through a worker of this
//! process.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bench::gateway;
use bytes::Bytes;
use compare::identity::{Group, Version};
use compare::load::{Dialler, http1};
use compare::target::Target;
use criterion::{Criterion, Throughput};
use e2e::upstream::FixedUpstream;
use futures_util::future::join_all;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use model::{Kind, TlsVersion};
use pki::TrustAnchors;
use serde_json::json;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio_rustls::client::TlsStream;

use super::{Credentials, HOST, PATH, UPSTREAM, worker::Running};

/// Requests in flight: as many connections, or streams of one.
const AT_ONCE: usize = 16;
/// The worker's core, and that of everything else.
const CORES: (usize, usize) = (0, 1);

/// A path without a route, and two with a plain and an mTLS upstream.
const CASES: [(&str, &str, u16); 3] =
    [("no-route", "/nowhere", 404), ("plain-upstream", PATH, 200), ("mtls-upstream", "/strict", 200)];

/// One final line a case.
pub(crate) fn whole(criterion: &mut Criterion, credentials: &Credentials) -> Vec<String> {
    if std::thread::available_parallelism().map_or(1, usize::from) < 2 {
        return vec!["proxy/whole: NOT MEASURED: one core is the worker's, and there is no other".to_owned()];
    }
    let upstream = FixedUpstream::start(CORES.1, None);
    let mtls_upstream = FixedUpstream::start(CORES.1, Some(credentials.upstream_tls()));
    let documents = [
        (Kind::Ssl, "site", credentials.ssl()),
        (Kind::Route, "plain", plain(upstream.address())),
        (Kind::Route, "strict", strict(credentials, mtls_upstream.address())),
    ];
    let anchors = TrustAnchors::new(vec![credentials.root.certificate().clone()]).expect("an anchor");
    let versions = [TlsVersion::V12, TlsVersion::V13];
    let shared = gateway::shared(gateway::snapshot(documents), &versions, Some(Arc::new(anchors)));
    let running = Running::start(shared, CORES.0);
    e2e::resources::pin_current_thread(CORES.1).expect("a core");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let mut lines = Vec::new();
    for (protocol, connect) in [("h1", Client::h1 as fn(&Runtime, Dialler) -> Client), ("h2", Client::h2)] {
        let mut group = criterion.benchmark_group(format!("proxy/whole/{protocol}"));
        group.throughput(Throughput::Elements(1));
        for (name, path, status) in CASES {
            let dialler = dialler(credentials, &running, protocol);
            let mut client = None;
            let mut samples = Vec::new();
            group.bench_function(name, |bencher| {
                bencher.iter_custom(|rounds| {
                    let client = client.get_or_insert_with(|| connect(&runtime, dialler.clone()));
                    let before = running.cpu();
                    runtime.block_on(client.ask(rounds, path, status));
                    let used = running.cpu() - before;
                    samples.push((used, rounds));
                    used
                });
            });
            lines.extend(line(&format!("proxy {protocol} {name}"), &samples));
        }
    }
    lines
}

/// The mean of all batches but the warm-up's: a sum is not skewed by a thread that still runs.
fn line(name: &str, samples: &[(Duration, u64)]) -> Option<String> {
    let measured = samples.get(samples.len() / 2..).filter(|samples| !samples.is_empty())?;
    let used: Duration = measured.iter().map(|(used, _)| *used).sum();
    let requests: u64 = measured.iter().map(|(_, rounds)| *rounds).sum();
    let each = used.as_secs_f64() * 1e6 / requests as f64;
    Some(format!("{name:<28} {each:>6.1} us of the worker's CPU a request"))
}

fn plain(upstream: SocketAddr) -> serde_json::Value {
    let nodes = json!({upstream.to_string(): 1});
    json!({"uri": "/api/*", "host": HOST, "upstream": {"type": "roundrobin", "nodes": nodes}})
}

fn strict(credentials: &Credentials, upstream: SocketAddr) -> serde_json::Value {
    json!({"uri": "/strict", "host": HOST, "upstream": {
        "type": "roundrobin", "scheme": "https", "nodes": {upstream.to_string(): 1},
        "pass_host": "rewrite", "upstream_host": UPSTREAM,
        "tls": {
            "client_cert": credentials.gateway.chain_pem,
            "client_key": credentials.gateway.key_pem.as_str(),
            "verify": true,
        },
    }})
}

fn dialler(credentials: &Credentials, running: &Running, protocol: &str) -> Dialler {
    let url = format!("https://{}/", running.address);
    let target = Target::parse(&url, Some(HOST), false).expect("a target");
    let alpn: &[u8] = if protocol == "h2" { b"h2" } else { b"http/1.1" };
    let config = credentials.loader().client_config(Version::V13, Group::X25519, &[alpn], false);
    Dialler::new(target, config.expect("a client configuration"))
}

/// Kept connections.
enum Client {
    H1(Vec<(TlsStream<TcpStream>, Vec<u8>)>),
    H2(SendRequest<Empty<Bytes>>),
}

impl Client {
    fn h1(runtime: &Runtime, dialler: Dialler) -> Self {
        let dial = || async { (dialler.dial().await.expect("a connection"), Vec::new()) };
        Self::H1(runtime.block_on(join_all((0..AT_ONCE).map(|_| dial()))))
    }

    fn h2(runtime: &Runtime, dialler: Dialler) -> Self {
        Self::H2(runtime.block_on(async {
            let stream = TokioIo::new(dialler.dial().await.expect("a connection"));
            let made = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await;
            let (sender, connection) = made.expect("an HTTP/2 connection");
            tokio::spawn(connection);
            sender
        }))
    }

    /// So many requests, [`AT_ONCE`] at a time.
    async fn ask(&mut self, rounds: u64, path: &str, status: u16) {
        let share = |lane: usize| {
            let lanes = AT_ONCE as u64;
            rounds / lanes + u64::from((lane as u64) < rounds % lanes)
        };
        match self {
            Self::H1(connections) => {
                let request = http1::get(HOST, path);
                let lanes = connections.iter_mut().enumerate().map(|(lane, (stream, buffer))| {
                    let request = &request;
                    async move {
                        for _ in 0..share(lane) {
                            let answer = http1::exchange(stream, request, buffer).await.expect("an answer");
                            assert_eq!(answer.status, status);
                        }
                    }
                });
                join_all(lanes).await;
            }
            Self::H2(sender) => {
                let uri: http::Uri = format!("https://{HOST}{path}").parse().expect("a URI");
                let lanes = (0..AT_ONCE).map(|lane| {
                    let (mut sender, uri) = (sender.clone(), uri.clone());
                    async move {
                        for _ in 0..share(lane) {
                            sender.ready().await.expect("an open connection");
                            let mut request = http::Request::new(Empty::new());
                            *request.uri_mut() = uri.clone();
                            let answer = sender.send_request(request).await.expect("an answer");
                            assert_eq!(answer.status().as_u16(), status);
                            answer.into_body().collect().await.expect("a body");
                        }
                    }
                });
                join_all(lanes).await;
            }
        }
    }
}
