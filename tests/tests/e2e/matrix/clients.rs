//! The clients of the matrix and their authorities, freshly issued.

use std::collections::HashMap;
use std::time::Duration;

use e2e::client::ClientCertificate;
use pki::ca::{Authority, AuthoritySpec, CrlSpec, IssuedCertificate, KeyAlgorithm, LeafSpec, Usages};
use pki::{Certificate, CertificateDer, UnixTime};

use super::table::{ROWS, Revocation};

/// Each has its name as the common name of its certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Client {
    NoCertificate,
    Direct,
    ForAnyUse,
    ForBothUses,
    InP384,
    InP521,
    InEd25519,
    InRsa2048,
    OfSecondCa,
    Version1,
    ViaMiddle,
    ViaMiddleShuffled,
    OfListedMiddle,
    Pinned,
    PinnedOfRoot,
    SiblingOfPinned,
    WithoutMiddle,
    Untrusted,
    UntrustedWithItsRoot,
    OfNamesake,
    SelfSigned,
    TooDeep,
    Version1ViaMiddle,
    Expired,
    NotYet,
    OfExpiredMiddle,
    ForServers,
    AgainstConstraints,
    OverPathLength,
    OfLeaf,
}

const HOUR: Duration = Duration::from_secs(3600);

fn now() -> Duration {
    Duration::from_secs(UnixTime::now().as_secs())
}

fn at(since_1970: Duration) -> UnixTime {
    UnixTime::since_unix_epoch(since_1970)
}

pub(super) struct Pki {
    root: Authority,
    second: Authority,
    /// An anchor that allows no intermediate.
    narrow: Authority,
    middle: Authority,
    listed: Authority,
    untrusted: Authority,
}

impl Pki {
    pub(super) fn generate() -> Self {
        let root = |name: &str| Authority::root(&AuthoritySpec::new(name)).expect("a root");
        let (first, untrusted) = (root("Matrix Root"), root("Matrix Untrusted"));
        let below = |authority: &Authority, name: &str| {
            authority.intermediate(&AuthoritySpec::new(name)).expect("an intermediate")
        };
        let narrow = AuthoritySpec::new("Matrix Narrow").path_length(0);
        Self {
            middle: below(&first, "Matrix Middle"),
            listed: below(&untrusted, "Matrix Listed"),
            narrow: Authority::root(&narrow).expect("a root"),
            second: root("Matrix Second"),
            root: first,
            untrusted,
        }
    }

    fn anchors(&self) -> [&Authority; 4] {
        [&self.root, &self.second, &self.narrow, &self.listed]
    }

    /// `client.ca`: three roots, an intermediate, the own certificates of two clients.
    pub(super) fn bundle(&self, clients: &Clients) -> String {
        let mut bundle: String = self.anchors().iter().map(|authority| authority.certificate_pem()).collect();
        for pinned in [Client::Pinned, Client::PinnedOfRoot] {
            bundle.push_str(&clients.certificates[&pinned].to_pem());
        }
        bundle
    }

    /// `client.crl` and `client.crl_policy`.
    pub(super) fn lists(
        &self,
        clients: &Clients,
        revocation: Revocation,
    ) -> Option<(Vec<String>, &'static str)> {
        let (from, to) = match revocation {
            Revocation::RequireStale | Revocation::PreferStale => (now() - 48 * HOUR, now() - 24 * HOUR),
            _ => (now() - HOUR, now() + 24 * HOUR),
        };
        let policy = match revocation {
            Revocation::None => return None,
            Revocation::RequireFresh | Revocation::RequireStale => "require",
            Revocation::PreferStale | Revocation::Revoked => "prefer",
        };
        let mut spec = CrlSpec::new().between(at(from), at(to)).revoke_serial(vec![0x77; 16]);
        if revocation == Revocation::Revoked {
            spec = spec.revoke(self.middle.certificate());
            spec = clients.certificates.values().fold(spec, CrlSpec::revoke);
        }
        let one = |authority: &&Authority| pem(&authority.crl(&spec).expect("a list"));
        Some((self.anchors().iter().map(one).collect(), policy))
    }
}

fn pem(der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> =
        text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).expect("ASCII")).collect();
    format!("-----BEGIN X509 CRL-----\n{}\n-----END X509 CRL-----\n", lines.join("\n"))
}

/// The chain of each client.
pub(super) struct Clients {
    shown: HashMap<Client, ClientCertificate>,
    certificates: HashMap<Client, Certificate>,
}

impl Clients {
    pub(super) fn generate(pki: &Pki) -> Self {
        let mut clients = Self { shown: HashMap::new(), certificates: HashMap::new() };
        for row in ROWS {
            if row.client == Client::SelfSigned {
                let spec = AuthoritySpec::new("SelfSigned");
                let own = Authority::root_v1(&spec).expect("a self-signed certificate");
                let key = pki::PrivateKey::from_pem(&own.key_pem()).expect("its key");
                clients.add(row.client, vec![own.certificate().clone()], &key);
            } else if let Some((issued, chain)) = generate(pki, row.client) {
                clients.add(row.client, chain, &issued.key().expect("its key"));
            }
        }
        clients
    }

    fn add(&mut self, client: Client, chain: Vec<Certificate>, key: &pki::PrivateKey) {
        self.certificates.insert(client, chain[0].clone());
        let chain: Vec<CertificateDer<'static>> = chain.iter().map(|one| one.der().clone()).collect();
        self.shown.insert(client, ClientCertificate::new(chain, &key.der().clone_key()));
    }

    pub(super) fn shown(&self, client: Client) -> Option<&ClientCertificate> {
        self.shown.get(&client)
    }
}

fn generate(pki: &Pki, client: Client) -> Option<(IssuedCertificate, Vec<Certificate>)> {
    let spec = LeafSpec::client(format!("{client:?}"));
    let below =
        |authority: &Authority, spec: AuthoritySpec| authority.intermediate(&spec).expect("an intermediate");
    let other_root = |name: &str| Authority::root(&AuthoritySpec::new(name)).expect("a root");
    let made;
    let (authority, spec) = match client {
        Client::NoCertificate | Client::SelfSigned => return None,
        Client::Direct | Client::PinnedOfRoot => (&pki.root, spec),
        Client::ForAnyUse => (&pki.root, spec.usages(Usages::ANY)),
        Client::ForBothUses => (&pki.root, spec.usages(Usages::BOTH)),
        Client::ForServers => (&pki.root, spec.usages(Usages::SERVER)),
        Client::InP384 => (&pki.root, spec.algorithm(KeyAlgorithm::P384)),
        Client::InP521 => (&pki.root, spec.algorithm(KeyAlgorithm::P521)),
        Client::InEd25519 => (&pki.root, spec.algorithm(KeyAlgorithm::Ed25519)),
        Client::InRsa2048 => (&pki.root, spec.algorithm(KeyAlgorithm::Rsa2048)),
        Client::OfSecondCa => (&pki.second, spec),
        Client::Version1 => (&pki.root, spec.v1()),
        Client::Version1ViaMiddle => (&pki.middle, spec.v1()),
        Client::ViaMiddle | Client::ViaMiddleShuffled | Client::WithoutMiddle => (&pki.middle, spec),
        Client::OfListedMiddle => (&pki.listed, spec),
        Client::Pinned | Client::SiblingOfPinned | Client::Untrusted | Client::UntrustedWithItsRoot => {
            (&pki.untrusted, spec)
        }
        Client::OfNamesake => {
            made = other_root("Matrix Root");
            (&made, spec)
        }
        Client::TooDeep => {
            made = below(&pki.middle, AuthoritySpec::new("Matrix Bottom"));
            (&made, spec)
        }
        Client::Expired => (&pki.root, spec.between(at(now() - 48 * HOUR), at(now() - HOUR))),
        Client::NotYet => (&pki.root, spec.between(at(now() + HOUR), at(now() + 48 * HOUR))),
        Client::OfExpiredMiddle => {
            let over = AuthoritySpec::new("Matrix Over").between(at(now() - 48 * HOUR), at(now() - HOUR));
            made = below(&pki.root, over);
            (&made, spec)
        }
        Client::AgainstConstraints => {
            let limited = AuthoritySpec::new("Matrix Limited").permit_dns("allowed.test");
            made = below(&pki.root, limited);
            (&made, spec.dns("elsewhere.test"))
        }
        Client::OverPathLength => {
            made = below(&pki.narrow, AuthoritySpec::new("Matrix Below"));
            (&made, spec)
        }
        Client::OfLeaf => {
            let leaf = pki.root.issue(&LeafSpec::client("Matrix Leaf")).expect("a leaf");
            made = Authority::from_certificate_unchecked(leaf.certificate, &leaf.key_pem)
                .expect("an authority that is none");
            (&made, spec)
        }
    };
    let issued = authority.issue(&spec).expect("a leaf");
    let mut chain = issued.chain.clone();
    match client {
        Client::UntrustedWithItsRoot => chain.push(pki.untrusted.certificate().clone()),
        Client::OfListedMiddle | Client::WithoutMiddle => chain.truncate(1),
        Client::ViaMiddleShuffled => {
            chain.insert(1, pki.untrusted.certificate().clone());
            chain.insert(2, pki.listed.certificate().clone());
        }
        Client::OfLeaf => chain.push(authority.certificate().clone()),
        _ => {}
    }
    Some((issued, chain))
}
