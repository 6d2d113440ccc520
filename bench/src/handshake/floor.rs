//! The least a server's handshake can cost, with aws-lc-rs: one key exchange, one signature, and
//! the verifications.

use std::hint::black_box;

use aws_lc_rs::agreement::{self, EphemeralPrivateKey, UnparsedPublicKey as PeerShare};
use aws_lc_rs::kem::{DecapsulationKey, EncapsulationKey, ML_KEM_768};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{self, EcdsaKeyPair, KeyPair as _, RsaKeyPair, UnparsedPublicKey};
use pki::ca::KeyAlgorithm;

use compare::identity::Group;

/// A CertificateVerify signs 64 spaces, a context string and a SHA-256 (RFC 8446 section 4.4.3).
const SIGNED: [u8; 130] = [0x20; 130];

enum Signer {
    Ecdsa(EcdsaKeyPair),
    Rsa(RsaKeyPair),
}

/// The operations of a handshake beside its key exchange.
pub struct Work {
    /// Whether the server signs.
    pub signature: bool,
    /// Signatures of the client's chain and handshake that the server verifies.
    pub verifications: usize,
}

/// Prepared keys and key shares.
pub struct Floor {
    random: SystemRandom,
    signer: Signer,
    /// A signature by the client, verified with `public`.
    signature: Vec<u8>,
    public: Vec<u8>,
    group: &'static agreement::Algorithm,
    share: Vec<u8>,
    /// The ML-KEM half of the hybrid group.
    kem: Option<EncapsulationKey>,
}

impl Floor {
    /// For one kind of certificate and one group.
    pub fn new(algorithm: KeyAlgorithm, group: Group) -> Self {
        let random = SystemRandom::new();
        let signer = match algorithm {
            KeyAlgorithm::Rsa2048 => Signer::Rsa(RsaKeyPair::generate(KeySize::Rsa2048).expect("a key")),
            _ => Signer::Ecdsa(
                EcdsaKeyPair::generate(&signature::ECDSA_P256_SHA256_ASN1_SIGNING).expect("a key"),
            ),
        };
        let public = match &signer {
            Signer::Ecdsa(key) => key.public_key().as_ref().to_vec(),
            Signer::Rsa(key) => key.public_key().as_ref().to_vec(),
        };
        let agreed = match group {
            Group::Secp256r1 => &agreement::ECDH_P256,
            Group::X25519 | Group::X25519MlKem768 => &agreement::X25519,
        };
        let share = EphemeralPrivateKey::generate(agreed, &random).expect("a share");
        let share = share.compute_public_key().expect("a share").as_ref().to_vec();
        let kem = (group == Group::X25519MlKem768).then(|| {
            let key = DecapsulationKey::generate(&ML_KEM_768).expect("a KEM key");
            key.encapsulation_key().expect("its public half")
        });
        let mut floor = Self { random, signer, signature: Vec::new(), public, group: agreed, share, kem };
        floor.signature = floor.sign();
        floor
    }

    pub fn work(&self, work: &Work) {
        let own = EphemeralPrivateKey::generate(self.group, &self.random).expect("a share");
        black_box(own.compute_public_key().expect("a share"));
        let peer = PeerShare::new(self.group, &self.share);
        let agreed = agreement::agree_ephemeral(own, peer, (), |secret| Ok(secret.len()));
        black_box(agreed.expect("a secret"));
        if let Some(kem) = &self.kem {
            black_box(kem.encapsulate().expect("a secret"));
        }
        if work.signature {
            black_box(self.sign());
        }
        for _ in 0..work.verifications {
            self.verify();
        }
    }

    fn sign(&self) -> Vec<u8> {
        match &self.signer {
            Signer::Ecdsa(key) => key.sign(&self.random, &SIGNED).expect("a signature").as_ref().to_vec(),
            Signer::Rsa(key) => {
                let mut made = vec![0; key.public_modulus_len()];
                key.sign(&signature::RSA_PSS_SHA256, &self.random, &SIGNED, &mut made).expect("a signature");
                made
            }
        }
    }

    fn verify(&self) {
        let algorithm: &dyn signature::VerificationAlgorithm = match &self.signer {
            Signer::Ecdsa(_) => &signature::ECDSA_P256_SHA256_ASN1,
            Signer::Rsa(_) => &signature::RSA_PSS_2048_8192_SHA256,
        };
        let key = UnparsedPublicKey::new(algorithm, &self.public);
        key.verify(black_box(&SIGNED), &self.signature).expect("a good signature");
    }
}
