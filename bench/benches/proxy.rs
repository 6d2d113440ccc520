//! The cost of one proxied request in the data plane's own code.
//!
//! First the stages in memory, in the order of `dataplane::connection`; then the whole: a worker of
//! this process serves real clients over loopback and proxies to a real upstream, and the figure is
//! the CPU time of the worker's thread, user and system, over its requests. `no-route` is a request
//! without an upstream. The client and the upstream run on the other core.
#![allow(clippy::expect_used, reason = "a benchmark that cannot be set up stops, like a test")]
#![allow(clippy::print_stdout, reason = "a benchmark prints its result")]

use std::time::Duration;

use compare::identity::ClientIdentity;
use criterion::Criterion;
use e2e::credentials::Credential;
use e2e::tls::{client_verifier, server_config};
use pki::ca::{Authority, AuthoritySpec, IssuedCertificate, LeafSpec};
use rustls::ServerConfig;
use serde_json::{Value, json};

#[path = "proxy/stages.rs"]
mod stages;
#[path = "proxy/whole.rs"]
mod whole;
#[path = "shared/worker.rs"]
mod worker;

/// The data plane's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The site's name, and the upstream's.
const HOST: &str = "bench.test";
const UPSTREAM: &str = "upstream.test";
/// The requested path.
const PATH: &str = "/api/v1/things/42?page=2&size=50";

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(3))
        .sample_size(50)
        .configure_from_args();
    let credentials = Credentials::generate();
    stages::stages(&mut criterion, &credentials);
    let lines = whole::whole(&mut criterion, &credentials);
    criterion.final_summary();
    lines.iter().for_each(|line| println!("{line}"));
}

/// Leaf and intermediate of the site, its client, the upstream and the gateway.
struct Credentials {
    root: Authority,
    site: IssuedCertificate,
    client: IssuedCertificate,
    upstream: IssuedCertificate,
    gateway: IssuedCertificate,
}

impl Credentials {
    fn generate() -> Self {
        let root = Authority::root(&AuthoritySpec::new("Bench Root")).expect("a root");
        let issuer = root.intermediate(&AuthoritySpec::new("Bench Intermediate")).expect("an intermediate");
        let issue = |spec: &LeafSpec| issuer.issue(spec).expect("a leaf");
        Self {
            site: issue(&LeafSpec::server(HOST)),
            client: issue(&LeafSpec::client("client").uri("spiffe://bench.test/client")),
            upstream: issue(&LeafSpec::server(UPSTREAM)),
            gateway: issue(&LeafSpec::client("gateway")),
            root,
        }
    }

    /// The site, which requires client certificates.
    fn ssl(&self) -> Value {
        json!({
            "cert": self.site.chain_pem,
            "key": self.site.key_pem.as_str(),
            "snis": [HOST],
            "client": {"ca": self.root.certificate_pem(), "depth": 1},
        })
    }

    /// The TLS side of an upstream that requires the gateway's certificate.
    fn upstream_tls(&self) -> ServerConfig {
        let verifier = client_verifier(&self.root.certificate_pem());
        server_config(rustls::DEFAULT_VERSIONS, &Credential::from(&self.upstream), Some(verifier))
    }

    /// The client of the load.
    fn loader(&self) -> ClientIdentity {
        let pair = (self.client.chain_pem.as_bytes(), self.client.key_pem.as_bytes());
        let identity = ClientIdentity::from_pem(self.root.certificate_pem().as_bytes(), Some(pair));
        identity.expect("the client's identity")
    }
}
