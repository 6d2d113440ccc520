//! Certificates like those of APISIX's tests: the same names, versions, usages, key types and PEM
//! forms, freshly issued.
//!
//! Issued once for all cases, because RSA keys take their time. `openssl` converts keys into forms
//! that `pki::ca` does not write (PKCS#1, SEC1 with a parameters block).

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::time::Duration;

use pki::ca::{Authority, AuthoritySpec, KeyAlgorithm, LeafSpec, Usages, self_signed};
use rustls::pki_types::UnixTime;

use crate::credentials::Credential;

pub static FIXTURES: LazyLock<Fixtures> = LazyLock::new(Fixtures::generate);

/// Named like the originals.
pub struct Fixtures {
    /// The authority of every mutual TLS case: X.509 v1, so without basicConstraints.
    pub mtls_ca: String,
    /// v3 without basicConstraints' CA and without extended key usage, for `admin.apisix.dev`.
    pub mtls_server: Credential,
    /// The same for `client.apisix.dev`, with a PKCS#1 key: for clients and servers.
    pub mtls_client: Credential,
    /// A client of that authority, X.509 v1: as in APISIX's tutorial.
    pub tutorial_client: Credential,
    /// `test.com` and `*.test.com`, self-signed, CA:TRUE, RSA.
    pub apisix: Credential,
    /// `test.com`, P-256, expired in 2021; its key follows an `EC PARAMETERS` block.
    pub apisix_ecc: Credential,
    /// As `apisix`, for `test2.com`.
    pub test2: Credential,
    /// As `apisix`, for `apisix.dev`.
    pub admin_ssl: Credential,
}

/// Invalid PEM, long enough for the schema.
pub const INCORRECT: &str = "-----BEGIN CERTIFICATE-----\nnot base64 at all, and it goes on for a while: 0123456789 0123456789 \
                             0123456789 0123456789\n-----END CERTIFICATE-----\n";

impl Fixtures {
    fn generate() -> Self {
        let rsa = KeyAlgorithm::Rsa2048;
        let authority = AuthoritySpec::new("ca.apisix.dev").algorithm(rsa);
        let authority = Authority::root_v1(&authority).expect("a v1 root can be issued");
        let leaf = |name: &str| {
            let spec = LeafSpec::client(name).dns("admin.apisix.dev").usages(Usages::ANY).algorithm(rsa);
            Credential::from(&authority.issue(&spec).expect("a leaf can be issued"))
        };
        let site = |name: &str| {
            let spec = LeafSpec::client(name).dns(name).dns(format!("*.{name}")).usages(Usages::ANY);
            Credential::from(&self_signed(&spec.algorithm(rsa)).expect("a site can be issued"))
        };
        let mut mtls_client = leaf("client.apisix.dev");
        mtls_client.key_pem = converted(&["rsa", "-traditional"], &mtls_client.key_pem);
        let tutorial = LeafSpec::client("CLIENT").algorithm(rsa).v1();
        Self {
            tutorial_client: Credential::from(&authority.issue(&tutorial).expect("a v1 leaf can be issued")),
            mtls_ca: authority.certificate_pem(),
            mtls_server: leaf("admin.apisix.dev"),
            mtls_client,
            apisix: site("test.com"),
            apisix_ecc: expired_ecc(),
            test2: site("test2.com"),
            admin_ssl: site("apisix.dev"),
        }
    }
}

fn expired_ecc() -> Credential {
    let year = |year: u64| UnixTime::since_unix_epoch(Duration::from_secs((year - 1970) * 31_556_952));
    let spec = LeafSpec::client("test.com").dns("test.com").usages(Usages::ANY);
    let mut made =
        Credential::from(&self_signed(&spec.between(year(2020), year(2021))).expect("it can be issued"));
    // The object identifier of P-256, as `openssl ecparam` writes it before a key.
    let parameters = "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n";
    made.key_pem = format!("{parameters}{}", converted(&["ec"], &made.key_pem));
    made
}

/// Converts a key with `openssl`.
fn converted(arguments: &[&str], key: &str) -> String {
    let mut child = Command::new("openssl")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|problem| panic!("cannot run openssl ({problem}): `make setup` installs it"));
    child.stdin.take().expect("a pipe").write_all(key.as_bytes()).expect("openssl reads the key");
    let output = child.wait_with_output().expect("openssl ends");
    assert!(output.status.success(), "openssl {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).expect("PEM is text")
}

#[test]
fn fixtures_have_the_forms_of_the_originals() {
    let made = &*FIXTURES;
    let parsed = |pem: &str| pki::certificates_from_pem(pem).expect("a certificate").remove(0);
    assert!(parsed(&made.mtls_ca).is_self_issued() && parsed(&made.mtls_ca).is_v1());
    assert!(parsed(&made.tutorial_client.certificate_pem).is_v1());
    assert!(made.mtls_client.key_pem.starts_with("-----BEGIN RSA PRIVATE KEY-----"));
    assert!(parsed(&made.apisix.certificate_pem).is_ca());
    assert_eq!(parsed(&made.apisix.certificate_pem).dns_names(), ["test.com", "*.test.com"]);
    let ecc = &made.apisix_ecc;
    assert!(ecc.key_pem.starts_with("-----BEGIN EC PARAMETERS-----"));
    assert!(ecc.key_pem.contains("-----BEGIN EC PRIVATE KEY-----"));
    assert!(parsed(&ecc.certificate_pem).not_after().as_secs() < 1_640_000_000);
}
