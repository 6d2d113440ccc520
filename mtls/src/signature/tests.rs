use pki::ca::{Authority, AuthoritySpec, KeyAlgorithm, LeafSpec};
use rustls::crypto::aws_lc_rs;
use rustls::internal::msgs::codec::{Codec, Reader};
use rustls::sign::SigningKey;

use super::*;

const SCHEMES: [(KeyAlgorithm, SignatureScheme); 5] = [
    (KeyAlgorithm::P256, SignatureScheme::ECDSA_NISTP256_SHA256),
    (KeyAlgorithm::P384, SignatureScheme::ECDSA_NISTP384_SHA384),
    (KeyAlgorithm::P521, SignatureScheme::ECDSA_NISTP521_SHA512),
    (KeyAlgorithm::Ed25519, SignatureScheme::ED25519),
    (KeyAlgorithm::Rsa2048, SignatureScheme::RSA_PSS_SHA256),
];
/// Unknown, cached, parsed; after the fourth round nothing changes.
const ROUNDS: usize = 4;

struct Client {
    leaf: CertificateDer<'static>,
    key: std::sync::Arc<dyn SigningKey>,
}

impl Client {
    fn new(algorithm: KeyAlgorithm) -> Self {
        let root = Authority::root(&AuthoritySpec::new("Root")).unwrap();
        let issued = root.issue(&LeafSpec::client("client").algorithm(algorithm)).unwrap();
        let key = aws_lc_rs::sign::any_supported_type(&issued.key().unwrap().der().clone_key()).unwrap();
        Self { leaf: issued.certificate.der().clone(), key }
    }

    fn sign(&self, scheme: SignatureScheme, message: &[u8]) -> Vec<u8> {
        self.key.choose_scheme(&[scheme]).unwrap().sign(message).unwrap()
    }

    fn known(&self, scheme: SignatureScheme, message: &[u8]) -> Option<bool> {
        key_cache::verify(&self.leaf, scheme, message, &self.sign(scheme, message))
    }
}

fn signed(scheme: SignatureScheme, signature: &[u8]) -> DigitallySignedStruct {
    let mut encoded = u16::from(scheme).to_be_bytes().to_vec();
    encoded.extend_from_slice(&u16::try_from(signature.len()).unwrap().to_be_bytes());
    encoded.extend_from_slice(signature);
    DigitallySignedStruct::read(&mut Reader::init(&encoded)).unwrap()
}

fn check(
    leaf: &CertificateDer<'_>,
    scheme: SignatureScheme,
    message: &[u8],
    signature: &[u8],
) -> Result<(), Error> {
    verify_tls13(&aws_lc_rs::default_provider(), leaf, message, &signed(scheme, signature)).map(|_valid| ())
}

#[test]
fn a_cached_key_gives_the_same_results() {
    for (algorithm, scheme) in SCHEMES {
        let (client, other) = (Client::new(algorithm), Client::new(algorithm));
        for round in 0..ROUNDS {
            let message = [b"message", &[round as u8][..]].concat();
            let good = client.sign(scheme, &message);
            let (mut changed, mut cut) = (good.clone(), good.clone());
            *changed.last_mut().unwrap() ^= 1;
            cut.pop();
            for bad in
                [changed, cut, Vec::new(), other.sign(scheme, &message), client.sign(scheme, b"another")]
            {
                assert_eq!(
                    check(&client.leaf, scheme, &message, &bad),
                    Err(bad_signature()),
                    "{scheme:?} {round}"
                );
            }
            assert_eq!(client.known(scheme, &message).is_some(), round >= 2, "{scheme:?} {round}");
            assert_eq!(check(&client.leaf, scheme, &message, &good), Ok(()), "{scheme:?} {round}");
        }
    }
}

#[test]
fn a_cached_key_applies_to_its_own_scheme() {
    let unadvertised = Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into());
    for (algorithm, scheme) in SCHEMES {
        let client = Client::new(algorithm);
        let signature = client.sign(scheme, b"message");
        for round in 0..ROUNDS {
            for (_, other) in SCHEMES.iter().filter(|(_, other)| *other != scheme) {
                assert_eq!(key_cache::verify(&client.leaf, *other, b"message", &signature), None);
                let refused = check(&client.leaf, *other, b"message", &signature);
                assert_eq!(refused, Err(bad_signature()), "{scheme:?} as {other:?} {round}");
            }
            for other in NOT_IN_TLS13 {
                assert_eq!(check(&client.leaf, other, b"message", &signature), unadvertised);
            }
            assert_eq!(check(&client.leaf, scheme, b"message", &signature), Ok(()));
        }
    }
}

#[test]
fn a_scheme_the_provider_lacks_is_rejected_despite_the_cache() {
    let client = Client::new(KeyAlgorithm::P256);
    let scheme = SignatureScheme::ECDSA_NISTP256_SHA256;
    let signature = client.sign(scheme, b"message");
    for _ in 0..ROUNDS {
        assert_eq!(check(&client.leaf, scheme, b"message", &signature), Ok(()));
    }
    let mut without = aws_lc_rs::default_provider();
    without.signature_verification_algorithms.mapping = &[];
    let refused = verify_tls13(&without, &client.leaf, b"message", &signed(scheme, &signature));
    assert_eq!(refused.map(|_| ()), Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into()));
}

#[test]
fn clients_in_one_slot_are_not_confused() {
    let scheme = SignatureScheme::ECDSA_NISTP256_SHA256;
    let (first, mut second) = (Client::new(KeyAlgorithm::P256), Client::new(KeyAlgorithm::P256));
    // Only the end determines the slot; the bytes before it are the other certificate's.
    let spki = pki::subject_public_key_info(&second.leaf).unwrap().to_vec();
    let (front, end) = (second.leaf.len() - 2, first.leaf.len() - 2);
    second.leaf = [&second.leaf[..front], &first.leaf[end..]].concat().into();
    for _ in 0..2 {
        key_cache::insert(&first.leaf, scheme, pki::subject_public_key_info(&first.leaf).unwrap());
    }
    assert_eq!((first.known(scheme, b"message"), second.known(scheme, b"message")), (Some(true), None));
    for _ in 0..2 {
        key_cache::insert(&second.leaf, scheme, &spki);
    }
    assert_eq!((first.known(scheme, b"message"), second.known(scheme, b"message")), (None, Some(true)));
}

#[test]
fn a_malformed_certificate_has_a_slot() {
    for leaf in [&[][..], &[7]] {
        assert_eq!(key_cache::verify(&leaf.into(), SignatureScheme::ED25519, b"message", b"signature"), None);
    }
}

#[test]
fn an_oversized_leaf_is_not_cached() {
    let client = Client::new(KeyAlgorithm::P256);
    let scheme = SignatureScheme::ECDSA_NISTP256_SHA256;
    let (spki, signature) = (public_key(&client.leaf).unwrap(), client.sign(scheme, b"message"));
    for (size, known) in [(key_cache::LEAF_MAX, Some(true)), (key_cache::LEAF_MAX + 1, None)] {
        // The cache does not parse it.
        let leaf = CertificateDer::from(vec![7; size]);
        (0..ROUNDS).for_each(|_| key_cache::insert(&leaf, scheme, spki));
        assert_eq!(key_cache::verify(&leaf, scheme, b"message", &signature), known, "{size} bytes");
    }
}
