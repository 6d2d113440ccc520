use pki::ca::{Authority, AuthoritySpec, IssuedCertificate, LeafSpec};
use rustls::crypto::aws_lc_rs;

use super::*;

/// Which part of an identity is compared.
#[derive(Debug, Clone, Copy)]
enum By {
    Dns(&'static str),
    Spiffe(&'static str),
    Spki([u8; 32]),
}

impl AcceptServer for By {
    fn accepts(&self, server: &Identity) -> bool {
        match self {
            Self::Dns(name) => server.san_dns().iter().any(|found| found == name),
            Self::Spiffe(id) => server.spiffe_id() == Some(id),
            Self::Spki(digest) => server.certificate().spki_sha256() == digest,
        }
    }

    fn expected(&self) -> &'static str {
        "one that is meant"
    }
}

/// An authority with one CA below it, and the server of that CA.
struct Servers {
    root: Authority,
    server: IssuedCertificate,
}

impl Servers {
    fn new() -> Self {
        let root = Authority::root(&AuthoritySpec::new("Root")).unwrap();
        let ca = root.intermediate(&AuthoritySpec::new("CA")).unwrap();
        let server = ca.issue(&LeafSpec::server("a.test").uri("spiffe://a.test/b")).unwrap();
        Self { root, server }
    }

    fn trust(&self, depth: Option<u32>, names: ServerNames) -> ServerTrust {
        let anchors = TrustAnchors::new(vec![self.root.certificate().clone()]).unwrap();
        ServerTrust::Anchors { anchors: Arc::new(anchors), depth, names }
    }

    /// The reason of the rejection for a handshake with this name.
    fn verify(&self, trust: ServerTrust, name: &'static str) -> Result<(), String> {
        self.verify_at(trust, name, UnixTime::now())
    }

    fn verify_at(&self, trust: ServerTrust, name: &'static str, now: UnixTime) -> Result<(), String> {
        let to_rustls_error = |error: VerifyError| Error::General(error.reason().as_str().to_owned());
        let verifier = ServerVerifier::new(trust, Arc::new(aws_lc_rs::default_provider()), to_rustls_error);
        let sent: Vec<_> = self.server.chain.iter().map(|certificate| certificate.der().clone()).collect();
        let name = ServerName::try_from(name).unwrap();
        match verifier.verify_server_cert(&sent[0], &sent[1..], &name, &[], now) {
            Ok(_) => Ok(()),
            Err(Error::General(reason)) => Err(reason),
            Err(other) => panic!("{other}"),
        }
    }
}

fn accepted(by: By) -> ServerNames {
    ServerNames::Accepted(Arc::new(by))
}

fn rejected(reason: &str) -> Result<(), String> {
    Err(reason.to_owned())
}

#[test]
fn a_server_is_verified_for_the_name_of_the_handshake() {
    let servers = Servers::new();
    let trust = |depth| servers.trust(depth, ServerNames::InHandshake);
    assert_eq!(servers.verify(trust(None), "a.test"), Ok(()));
    assert_eq!(servers.verify(trust(Some(1)), "a.test"), Ok(()));
    assert_eq!(servers.verify(trust(None), "b.test"), rejected("not_valid_for_name"));
    assert_eq!(servers.verify(trust(Some(0)), "a.test"), rejected("depth_exceeded"));
}

/// Their names take the place of that in the handshake, and never that of the chain.
#[test]
fn a_server_is_accepted_by_its_identity() {
    let servers = Servers::new();
    let key = *servers.server.certificate.spki_sha256();
    let (other, others) = ("b.test", Servers::new());
    for by in [By::Dns("a.test"), By::Spiffe("spiffe://a.test/b"), By::Spki(key)] {
        let trust = |depth| servers.trust(depth, accepted(by));
        assert_eq!(servers.verify(trust(None), other), Ok(()), "{by:?}");
        assert_eq!(servers.verify(trust(Some(0)), other), rejected("depth_exceeded"), "{by:?}");
        let unknown = others.trust(None, accepted(by));
        assert!(
            ["unknown_issuer", "bad_signature"].map(rejected).contains(&servers.verify(unknown, "a.test"))
        );
        let expired = UnixTime::since_unix_epoch(std::time::Duration::from_secs(2_600_000_000));
        assert_eq!(servers.verify_at(trust(None), other, expired), rejected("expired"), "{by:?}");
    }
    for by in [By::Dns("b.test"), By::Spiffe("spiffe://a.test/c"), By::Spki([0; 32])] {
        // Although the name of the handshake fits.
        let trust = servers.trust(None, accepted(by));
        assert_eq!(servers.verify(trust, "a.test"), rejected("not_valid_for_name"), "{by:?}");
    }
}

#[test]
fn without_anchors_no_server_is_verified() {
    let servers = Servers::new();
    assert_eq!(servers.verify(ServerTrust::NoAnchors("none"), "a.test"), rejected("none"));
    assert_eq!(servers.verify(ServerTrust::Unverified, "b.test"), Ok(()));
}
