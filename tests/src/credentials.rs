//! The certificates of one test world, issued for each test.
//!
//! Four independent authorities sign for the gateway's servers, its clients, the upstreams and the
//! push; a fifth is trusted by none.

use std::time::{Duration, SystemTime};

use pki::Certificate;
use pki::ca::{AuthoritySpec, CrlSpec, IssuedCertificate, LeafSpec};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};

const DAY: Duration = Duration::from_secs(86_400);

pub struct Authority {
    inner: pki::ca::Authority,
    certificate_pem: String,
}

/// A certificate with its chain, and its key, as PEM.
#[derive(Clone)]
pub struct Credential {
    /// Leaf first, then intermediates.
    pub certificate_pem: String,
    /// PKCS#8.
    pub key_pem: String,
}

impl Authority {
    pub fn root(name: &str) -> Self {
        Self::of(pki::ca::Authority::root(&AuthoritySpec::new(name)).expect("a root can be issued"))
    }

    /// An intermediate; what it issues carries its certificate in the chain.
    pub fn intermediate(&self, name: &str) -> Self {
        Self::of(self.inner.intermediate(&AuthoritySpec::new(name)).expect("an intermediate can be issued"))
    }

    fn of(inner: pki::ca::Authority) -> Self {
        let certificate_pem = inner.certificate_pem();
        Self { inner, certificate_pem }
    }

    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// A server's certificate for these DNS names (the first is the common name) and 127.0.0.1.
    pub fn server(&self, names: &[&str]) -> Credential {
        self.issue(&server_spec(names))
    }

    /// A server's certificate that expired yesterday.
    pub fn expired_server(&self, names: &[&str]) -> Credential {
        self.issue(&expired(server_spec(names)))
    }

    /// A client's certificate with this common name and DNS name.
    pub fn client(&self, name: &str) -> Credential {
        self.issue(&LeafSpec::client(name).dns(name))
    }

    /// A client's certificate that expired yesterday.
    pub fn expired_client(&self, name: &str) -> Credential {
        self.issue(&expired(LeafSpec::client(name)))
    }

    /// A current revocation list, as PEM, of these certificates.
    pub fn crl(&self, revoked: &[&Credential]) -> String {
        let leaf = |credential: &&Credential| {
            Certificate::from_der(&credential.chain()[0]).expect("an issued certificate is readable")
        };
        let spec = revoked.iter().map(leaf).fold(CrlSpec::new(), |spec, leaf| spec.revoke(&leaf));
        self.inner.crl_pem(&spec).expect("a list can be issued")
    }

    pub fn issue(&self, spec: &LeafSpec) -> Credential {
        (&self.inner.issue(spec).expect("a leaf can be issued")).into()
    }
}

fn server_spec(names: &[&str]) -> LeafSpec {
    let first = LeafSpec::server(names[0]).ip(std::net::Ipv4Addr::LOCALHOST.into());
    names[1..].iter().fold(first, |spec, name| spec.dns(*name))
}

fn expired(spec: LeafSpec) -> LeafSpec {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("the clock is past 1970");
    spec.valid(UnixTime::since_unix_epoch(now - 10 * DAY), 9)
}

impl From<&IssuedCertificate> for Credential {
    fn from(issued: &IssuedCertificate) -> Self {
        Self { certificate_pem: issued.chain_pem.clone(), key_pem: issued.key_pem.to_string() }
    }
}

impl Credential {
    pub fn chain(&self) -> Vec<CertificateDer<'static>> {
        certificates(&self.certificate_pem)
    }

    pub fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes()).expect("an issued key is readable")
    }
}

pub fn certificates(pem: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .expect("an issued certificate is readable")
}

/// The subject of a certificate, as scripted upstreams report it.
pub fn subject(certificate: &CertificateDer<'_>) -> String {
    Certificate::from_der(certificate)
        .expect("a handshake leaves a readable certificate")
        .subject()
        .to_owned()
}

pub struct Credentials {
    /// Signs for the gateway's sites and the Admin API.
    pub servers: Authority,
    /// Signs for clients of the gateway and of the Admin API.
    pub clients: Authority,
    /// Signs for upstreams, and for the gateway as their client.
    pub upstreams: Authority,
    /// Signs for both ends of the push.
    pub push: Authority,
    /// Trusted by none.
    pub untrusted: Authority,
    /// The Admin API's certificate, for `admin.test` and 127.0.0.1.
    pub admin_server: Credential,
    pub admin_client: Credential,
    pub push_server: Credential,
    /// Of the site `app.test` and everything below `*.test`.
    pub site: Credential,
    /// A client that the gateway accepts.
    pub client: Credential,
}

impl Credentials {
    pub fn generate() -> Self {
        let servers = Authority::root("Test Server CA");
        let clients = Authority::root("Test Client CA");
        let push = Authority::root("Test Push CA");
        Self {
            admin_server: servers.server(&["admin.test"]),
            admin_client: clients.client("administrator"),
            push_server: push.server(&["controlplane"]),
            site: servers.server(&["app.test", "*.test"]),
            client: clients.client("good-client"),
            upstreams: Authority::root("Test Upstream CA"),
            untrusted: Authority::root("Untrusted CA"),
            servers,
            clients,
            push,
        }
    }

    /// A data plane's push certificate.
    pub fn node(&self, name: &str) -> Credential {
        self.push.client(name)
    }
}
