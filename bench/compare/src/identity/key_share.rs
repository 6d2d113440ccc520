//! An X25519 key share that all connections of the load reuse.
//!
//! Making a share costs the client more than reading it costs the server, whose own share and
//! shared secret are new for each connection anyway. RFC 8446 allows a client to reuse one, and a
//! load generator has no secret to protect.

use std::sync::OnceLock;

use aws_lc_rs::agreement::{self, PrivateKey, PublicKey, UnparsedPublicKey};
use rustls::crypto::{ActiveKeyExchange, GetRandomFailed, SharedSecret, SupportedKxGroup};
use rustls::{Error, NamedGroup, PeerMisbehaved};

/// X25519 with a fixed client share.
#[derive(Debug)]
pub(super) struct FixedKeyShare;

struct Share {
    private: PrivateKey,
    public: PublicKey,
}

static SHARE: OnceLock<Share> = OnceLock::new();

impl SupportedKxGroup for FixedKeyShare {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, Error> {
        let share = match SHARE.get() {
            Some(share) => share,
            None => {
                let private = PrivateKey::generate(&agreement::X25519).map_err(|_| GetRandomFailed)?;
                let public = private.compute_public_key().map_err(|_| GetRandomFailed)?;
                SHARE.get_or_init(|| Share { private, public })
            }
        };
        Ok(Box::new(Active(share)))
    }

    fn name(&self) -> NamedGroup {
        NamedGroup::X25519
    }
}

struct Active(&'static Share);

impl ActiveKeyExchange for Active {
    fn complete(self: Box<Self>, theirs: &[u8]) -> Result<SharedSecret, Error> {
        let theirs = UnparsedPublicKey::new(&agreement::X25519, theirs);
        let refused = Error::from(PeerMisbehaved::InvalidKeyShare);
        agreement::agree(&self.0.private, theirs, refused, |secret| Ok(SharedSecret::from(secret)))
    }

    fn pub_key(&self) -> &[u8] {
        self.0.public.as_ref()
    }

    fn group(&self) -> NamedGroup {
        NamedGroup::X25519
    }
}

#[cfg(test)]
mod tests {
    use rustls::crypto::aws_lc_rs::kx_group;

    use super::*;

    #[test]
    fn the_client_share_is_reused_and_secrets_match() {
        let mut shares = Vec::new();
        for _ in 0..2 {
            let client = FixedKeyShare.start().unwrap();
            shares.push(client.pub_key().to_vec());
            let server = kx_group::X25519.start_and_complete(client.pub_key()).unwrap();
            let secret = client.complete(&server.pub_key).unwrap();
            assert_eq!(secret.secret_bytes(), server.secret.secret_bytes());
            shares.push(server.pub_key);
        }
        assert_eq!(shares[0], shares[2]);
        assert_ne!(shares[1], shares[3]);
    }

    #[test]
    fn a_key_share_of_the_wrong_length_is_an_error() {
        for length in [0, 31, 33] {
            assert!(FixedKeyShare.start().unwrap().complete(&vec![9; length]).is_err());
        }
    }
}
