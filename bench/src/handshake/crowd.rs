//! Many clients in turn: every handshake misses a chain cache that is smaller than the crowd.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use pki::mint::{Authority, LeafSpec};
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::crypto::aws_lc_rs;
use rustls::sign::CertifiedKey;

/// Presents another certificate at every handshake.
#[derive(Debug)]
pub struct Crowd {
    members: Vec<Arc<CertifiedKey>>,
    next: AtomicUsize,
}

impl Crowd {
    /// Minting thousands takes some seconds.
    pub fn mint(issuer: &Authority, members: usize) -> Self {
        let one = |index| {
            let minted = issuer.issue(&LeafSpec::client(format!("client {index}"))).expect("a leaf");
            let key = minted.key().expect("its key").der().clone_key();
            let key = aws_lc_rs::sign::any_supported_type(&key).expect("a signing key");
            let chain = minted.chain.iter().map(|certificate| certificate.der().clone()).collect();
            Arc::new(CertifiedKey::new(chain, key))
        };
        Self { members: (0..members).map(one).collect(), next: AtomicUsize::new(0) }
    }
}

impl ResolvesClientCert for Crowd {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        self.members.get(next % self.members.len()).cloned()
    }

    fn has_certs(&self) -> bool {
        true
    }
}
