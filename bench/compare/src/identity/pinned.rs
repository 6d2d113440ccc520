//! Verifies a server in full once, and later recognises the same certificates.
//!
//! A client that verifies every chain and signature spends more CPU time than a fast server: the
//! load would set the pace, and the server's figure would include its sleep. The server's messages
//! and work do not depend on the client's checks.
//!
//! Invariant: a chain is accepted only when it is byte for byte the one that was verified in full,
//! under the same name. Later signatures of the same key are not verified.

use std::sync::{Arc, OnceLock};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{DigitallySignedStruct, Error, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

/// A verifier for one server.
#[derive(Debug)]
pub(super) struct PinnedVerifier {
    full: Arc<WebPkiServerVerifier>,
    chain: OnceLock<Chain>,
    /// The leaf whose handshake signature was verified.
    signed: OnceLock<CertificateDer<'static>>,
}

#[derive(Debug)]
struct Chain {
    name: ServerName<'static>,
    leaf: CertificateDer<'static>,
    intermediates: Vec<CertificateDer<'static>>,
}

impl PinnedVerifier {
    pub(super) fn new(full: Arc<WebPkiServerVerifier>) -> Self {
        Self { full, chain: OnceLock::new(), signed: OnceLock::new() }
    }

    fn signature(
        &self,
        leaf: &CertificateDer<'_>,
        verify: impl FnOnce() -> Result<HandshakeSignatureValid, Error>,
    ) -> Result<HandshakeSignatureValid, Error> {
        if self.signed.get().is_some_and(|seen| seen == leaf) {
            return Ok(HandshakeSignatureValid::assertion());
        }
        let valid = verify()?;
        // A second certificate is verified each time.
        let _ = self.signed.set(leaf.clone().into_owned());
        Ok(valid)
    }
}

impl ServerCertVerifier for PinnedVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let matches = |chain: &Chain| {
            chain.leaf == *leaf && chain.intermediates == intermediates && chain.name == *name
        };
        if self.chain.get().is_some_and(matches) {
            return Ok(ServerCertVerified::assertion());
        }
        let verified = self.full.verify_server_cert(leaf, intermediates, name, ocsp, now)?;
        let intermediates =
            intermediates.iter().map(|certificate| certificate.clone().into_owned()).collect();
        let _ =
            self.chain.set(Chain { name: name.to_owned(), leaf: leaf.clone().into_owned(), intermediates });
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(leaf, || self.full.verify_tls12_signature(message, leaf, signed))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(leaf, || self.full.verify_tls13_signature(message, leaf, signed))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.full.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use pki::ca::{Authority, AuthoritySpec, IssuedCertificate, LeafSpec};
    use rustls::crypto::aws_lc_rs;

    use super::*;

    fn verifier(root: &Authority) -> PinnedVerifier {
        let mut anchors = rustls::RootCertStore::empty();
        anchors.add(root.certificate().der().clone()).unwrap();
        let provider = Arc::new(aws_lc_rs::default_provider());
        let full = WebPkiServerVerifier::builder_with_provider(Arc::new(anchors), provider);
        PinnedVerifier::new(full.build().unwrap())
    }

    fn verify(
        verifier: &PinnedVerifier,
        shown: &IssuedCertificate,
        name: &str,
        now: UnixTime,
    ) -> Result<(), Error> {
        let chain: Vec<_> = shown.chain.iter().map(|certificate| certificate.der().clone()).collect();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        verifier.verify_server_cert(&chain[0], &chain[1..], &name, &[], now).map(drop)
    }

    #[test]
    fn only_a_verified_chain_is_recognised() {
        let root = Authority::root(&AuthoritySpec::new("root")).unwrap();
        let issuer = root.intermediate(&AuthoritySpec::new("issuer")).unwrap();
        let verifier = verifier(&root);
        let ours = issuer.issue(&LeafSpec::server("a.test")).unwrap();
        let now = UnixTime::now();
        verify(&verifier, &ours, "a.test", now).unwrap();
        // A full verification would find that it is not valid yet.
        let long_ago = UnixTime::since_unix_epoch(std::time::Duration::from_secs(1));
        verify(&verifier, &ours, "a.test", long_ago).unwrap();

        assert!(verify(&verifier, &ours, "b.test", now).is_err(), "for another name");
        let mut cut = issuer.issue(&LeafSpec::server("a.test")).unwrap();
        cut.chain.truncate(1);
        assert!(verify(&verifier, &cut, "a.test", now).is_err(), "without its intermediate");
        let untrusted = Authority::root(&AuthoritySpec::new("root")).unwrap();
        let theirs = untrusted.issue(&LeafSpec::server("a.test")).unwrap();
        assert!(verify(&verifier, &theirs, "a.test", now).is_err(), "of another authority");
        let renewed = issuer.issue(&LeafSpec::server("a.test")).unwrap();
        assert!(
            verify(&verifier, &renewed, "a.test", now).is_ok()
                && verify(&verifier, &renewed, "a.test", long_ago).is_err()
        );
    }

    #[test]
    fn a_rejected_chain_is_not_remembered() {
        let root = Authority::root(&AuthoritySpec::new("root")).unwrap();
        let verifier = verifier(&root);
        let untrusted = Authority::root(&AuthoritySpec::new("untrusted")).unwrap();
        let theirs = untrusted.issue(&LeafSpec::server("a.test")).unwrap();
        for _ in 0..2 {
            assert!(verify(&verifier, &theirs, "a.test", UnixTime::now()).is_err());
        }
        let ours = root.issue(&LeafSpec::server("a.test")).unwrap();
        verify(&verifier, &ours, "a.test", UnixTime::now()).unwrap();
    }

    #[test]
    fn only_the_first_signature_of_a_key_is_verified() {
        let root = Authority::root(&AuthoritySpec::new("root")).unwrap();
        let verifier = verifier(&root);
        let leaf = |name| root.issue(&LeafSpec::server(name)).unwrap().certificate.der().clone();
        let (one, other) = (leaf("a.test"), leaf("b.test"));
        let rejected = || Err(Error::General("asked".to_owned()));
        let accepted = || Ok(HandshakeSignatureValid::assertion());
        assert!(verifier.signature(&one, rejected).is_err());
        assert!(verifier.signature(&one, rejected).is_err(), "a rejected one is not remembered");
        verifier.signature(&one, accepted).unwrap();
        verifier.signature(&one, rejected).unwrap();
        assert!(verifier.signature(&other, rejected).is_err(), "another key");
    }
}
