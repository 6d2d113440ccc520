//! TLS handshakes through the data plane's own code, server side only, in memory, and the
//! cryptographic floor under them.
//!
//! The criterion benchmark, the instruction budget and the summary share it: [`server`] drives
//! `dataplane::connection::establish` over two buffers, [`Floor`] runs the cryptography that no
//! implementation can leave out, [`Credentials`] holds both sides' certificates. Only the server's
//! polls are measured.
#![allow(clippy::expect_used, reason = "a measurement that cannot be set up stops, like a test")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use pki::ca::{Authority, AuthoritySpec, IssuedCertificate, KeyAlgorithm, LeafSpec};
use rustls::client::ResolvesClientCert;
use rustls::crypto::aws_lc_rs;
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, SignatureScheme};
use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};

use compare::identity::{ClientIdentity, Group, Version};
use compare::peer::HOST;

mod floor;
pub mod server;

pub use floor::{Floor, Work};
pub use server::TestWorker;

/// Leaf and intermediate on both sides.
pub struct Credentials {
    server_root: Authority,
    server_issuer: Authority,
    server: IssuedCertificate,
    client_root: Authority,
    client_issuer: Authority,
    client: IssuedCertificate,
}

impl Credentials {
    /// Issues them, all keys of one kind.
    pub fn generate(algorithm: KeyAlgorithm) -> Self {
        let authority = |name: &str| AuthoritySpec::new(name).algorithm(algorithm);
        let server_root = Authority::root(&authority("Server Root")).expect("a root");
        let server_issuer =
            server_root.intermediate(&authority("Server Intermediate")).expect("an intermediate");
        let server = server_issuer.issue(&LeafSpec::server(HOST).algorithm(algorithm)).expect("a leaf");
        let client_root = Authority::root(&authority("Client Root")).expect("a root");
        let client_issuer =
            client_root.intermediate(&authority("Client Intermediate")).expect("an intermediate");
        let client = client_issuer.issue(&LeafSpec::client("client").algorithm(algorithm)).expect("a leaf");
        Self { server_root, server_issuer, server, client_root, client_issuer, client }
    }

    /// The site of every client. `ask`: it requires a client certificate.
    pub fn site_document(&self, ask: bool) -> Value {
        let mut document =
            json!({"cert": self.server.chain_pem, "key": self.server.key_pem.as_str(), "snis": [HOST]});
        if let (true, Some(fields)) = (ask, document.as_object_mut()) {
            let ca = self.client_root.certificate_pem();
            fields.insert("client".to_owned(), json!({"ca": ca, "depth": 1}));
        }
        document
    }

    /// Another certificate and key for the site, from the same authority.
    pub fn renew(&mut self) {
        self.server = self.server_issuer.issue(&LeafSpec::server(HOST)).expect("a leaf");
    }

    /// The client's certificate chain.
    pub fn client_chain(&self) -> Vec<CertificateDer<'static>> {
        self.client.chain.iter().map(|certificate| certificate.der().clone()).collect()
    }

    /// The client as the load generator uses it.
    pub fn identity(&self) -> ClientIdentity {
        let pair = (self.client.chain_pem.as_bytes(), self.client.key_pem.as_bytes());
        let identity = ClientIdentity::from_pem(self.server_root.certificate_pem().as_bytes(), Some(pair));
        identity.expect("the client's identity")
    }

    /// A client that always presents the same certificate; `resume` keeps its tickets.
    pub fn client_config(&self, version: Version, group: Group, resume: bool) -> Arc<ClientConfig> {
        let config = self.identity().client_config(version, group, &[b"http/1.1"], resume);
        config.expect("a client configuration")
    }

    /// So many clients of one authority.
    pub fn crowd(&self, members: usize) -> Crowd {
        Crowd::generate(&self.client_issuer, members)
    }
}

/// Clients that present another certificate at every handshake, so that each one misses a chain
/// cache that is smaller than the crowd.
#[derive(Debug)]
pub struct Crowd {
    members: Vec<Arc<CertifiedKey>>,
    next: AtomicUsize,
}

impl Crowd {
    /// Minting thousands takes some seconds.
    pub fn generate(issuer: &Authority, members: usize) -> Self {
        let one = |index| {
            let issued = issuer.issue(&LeafSpec::client(format!("client {index}"))).expect("a leaf");
            let key = issued.key().expect("its key").der().clone_key();
            let key = aws_lc_rs::sign::any_supported_type(&key).expect("a signing key");
            let chain = issued.chain.iter().map(|certificate| certificate.der().clone()).collect();
            Arc::new(CertifiedKey::new(chain, key))
        };
        Self { members: (0..members).map(one).collect(), next: AtomicUsize::new(0) }
    }
}

impl ResolvesClientCert for Crowd {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        self.members.get(next % self.members.len()).cloned()
    }

    fn has_certs(&self) -> bool {
        true
    }
}
