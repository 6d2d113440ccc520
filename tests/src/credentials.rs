//! The certificates of one test world, freshly minted: nothing of it is ever stored in the repository.
//!
//! Four authorities that trust nobody else's: the gateway's servers, its clients, the upstreams' clients and the push,
//! plus a stranger whom nobody trusts.

use std::time::{Duration, SystemTime};

use pki::Certificate;
use pki::mint::{AuthoritySpec, CrlSpec, LeafSpec, Minted};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};

const DAY: Duration = Duration::from_secs(86_400);

/// A certificate authority that tests issue from.
pub struct Authority {
    inner: pki::mint::Authority,
    certificate_pem: String,
}

/// A certificate (with the chain a peer must send) and its key, as PEM.
#[derive(Clone)]
pub struct Credential {
    /// Leaf first, then intermediates.
    pub certificate_pem: String,
    /// PKCS#8.
    pub key_pem: String,
}

impl Authority {
    /// A self-signed root.
    pub fn root(name: &str) -> Self {
        Self::of(pki::mint::Authority::root(&AuthoritySpec::new(name)).expect("a root can be minted"))
    }

    /// An authority below this one; what it issues carries its certificate in the chain.
    pub fn intermediate(&self, name: &str) -> Self {
        Self::of(self.inner.intermediate(&AuthoritySpec::new(name)).expect("an intermediate can be minted"))
    }

    fn of(inner: pki::mint::Authority) -> Self {
        let certificate_pem = inner.certificate_pem();
        Self { inner, certificate_pem }
    }

    /// The authority's own certificate.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// A server's certificate for these DNS names (the first is the common name) and 127.0.0.1.
    pub fn server(&self, names: &[&str]) -> Credential {
        self.issue(&server_spec(names))
    }

    /// A server's certificate that ended yesterday.
    pub fn expired_server(&self, names: &[&str]) -> Credential {
        self.issue(&expired(server_spec(names)))
    }

    /// A client's certificate with this common name, and DNS name.
    pub fn client(&self, name: &str) -> Credential {
        self.issue(&LeafSpec::client(name).dns(name))
    }

    /// A client's certificate that ended yesterday.
    pub fn expired_client(&self, name: &str) -> Credential {
        self.issue(&expired(LeafSpec::client(name)))
    }

    /// A current revocation list, as PEM, with these certificates in it.
    pub fn crl(&self, revoked: &[&Credential]) -> String {
        let leaf = |credential: &&Credential| {
            Certificate::from_der(&credential.chain()[0]).expect("a minted certificate is readable")
        };
        let spec = revoked.iter().map(leaf).fold(CrlSpec::new(), |spec, leaf| spec.revoke(&leaf));
        self.inner.crl_pem(&spec).expect("a list can be minted")
    }

    /// Whatever else a test needs.
    pub fn issue(&self, spec: &LeafSpec) -> Credential {
        (&self.inner.issue(spec).expect("a leaf can be minted")).into()
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

impl From<&Minted> for Credential {
    fn from(minted: &Minted) -> Self {
        Self { certificate_pem: minted.chain_pem.clone(), key_pem: minted.key_pem.to_string() }
    }
}

impl Credential {
    /// The certificates, for a rustls configuration.
    pub fn chain(&self) -> Vec<CertificateDer<'static>> {
        certificates(&self.certificate_pem)
    }

    /// The key, for a rustls configuration.
    pub fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes()).expect("a minted key is readable")
    }
}

/// Every certificate in a PEM text.
pub fn certificates(pem: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .expect("a minted certificate is readable")
}

/// The subject of a certificate, for a scripted peer to report.
pub fn subject(certificate: &CertificateDer<'_>) -> String {
    Certificate::from_der(certificate)
        .expect("a handshake leaves a readable certificate")
        .subject()
        .to_owned()
}

/// All the certificates of one world.
pub struct Credentials {
    /// Signs what the gateway and the Admin API show to their clients.
    pub servers: Authority,
    /// Signs the gateway's clients and the Admin API's.
    pub clients: Authority,
    /// Signs what upstreams show, and what they ask of the gateway.
    pub upstreams: Authority,
    /// Signs both ends of the push.
    pub push: Authority,
    /// Nobody trusts it.
    pub strangers: Authority,
    /// The Admin API's certificate, for `admin.test` and 127.0.0.1.
    pub admin_server: Credential,
    /// An administrator's certificate.
    pub admin_client: Credential,
    /// The control plane's push certificate.
    pub push_server: Credential,
    /// The certificate of the site `app.test` and everything below `*.test`.
    pub site: Credential,
    /// A good client of the gateway.
    pub client: Credential,
}

impl Credentials {
    /// Mints a whole set.
    pub fn mint() -> Self {
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
            strangers: Authority::root("Stranger CA"),
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
