//! The certificates of one test world, freshly minted: nothing of it is ever stored in the repository.
//!
//! Four authorities that trust nobody else's: the gateway's servers, its clients, the upstreams' clients and the push,
//! plus a stranger whom nobody trusts.

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use time::{Duration, OffsetDateTime};

/// A certificate authority that tests issue from.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
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

/// When a minted certificate is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    /// From yesterday to next month.
    Now,
    /// Ended yesterday.
    Expired,
}

impl Authority {
    /// A self-signed root.
    pub fn root(name: &str) -> Self {
        let key = KeyPair::generate().expect("a key can be generated");
        let params = authority_params(name);
        let certificate_pem = params.self_signed(&key).expect("a root can be signed").pem();
        Self { issuer: Issuer::new(params, key), certificate_pem }
    }

    /// The authority's own certificate.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// A server's certificate for `names` (DNS names or IP addresses).
    pub fn server(&self, names: &[&str]) -> Credential {
        self.issue(names[0], names, ExtendedKeyUsagePurpose::ServerAuth, Validity::Now)
    }

    /// A client's certificate with this common name.
    pub fn client(&self, name: &str) -> Credential {
        self.issue(name, &[name], ExtendedKeyUsagePurpose::ClientAuth, Validity::Now)
    }

    /// A client's certificate that ended yesterday.
    pub fn expired_client(&self, name: &str) -> Credential {
        self.issue(name, &[name], ExtendedKeyUsagePurpose::ClientAuth, Validity::Expired)
    }

    /// A server's certificate that ended yesterday.
    pub fn expired_server(&self, names: &[&str]) -> Credential {
        self.issue(names[0], names, ExtendedKeyUsagePurpose::ServerAuth, Validity::Expired)
    }

    fn issue(
        &self,
        common_name: &str,
        names: &[&str],
        usage: ExtendedKeyUsagePurpose,
        validity: Validity,
    ) -> Credential {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("names are valid");
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.extended_key_usages = vec![usage];
        let now = OffsetDateTime::now_utc();
        (params.not_before, params.not_after) = match validity {
            Validity::Now => (now - Duration::days(1), now + Duration::days(30)),
            Validity::Expired => (now - Duration::days(10), now - Duration::days(1)),
        };
        let key = KeyPair::generate().expect("a key can be generated");
        let certificate = params.signed_by(&key, &self.issuer).expect("a leaf can be signed");
        Credential { certificate_pem: certificate.pem(), key_pem: key.serialize_pem() }
    }
}

fn authority_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).expect("no names are valid names");
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
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
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).expect("a certificate");
    parsed.subject().to_string()
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
            admin_server: servers.server(&["admin.test", "127.0.0.1"]),
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
