//! Remembers which chains were accepted, so that a returning client costs a hash instead of
//! signature checks.
//!
//! One cache a core stands before `chain::verify_client`; nothing is shared, nothing is locked. The
//! key is a SHA-256 over the policy's digest and every certificate the client sent, so a change of
//! the policy or of a byte of the chain is another key. Only acceptance is remembered: a refusal is
//! cheap to repeat and must not fill the cache with what strangers send. Invariant: an answer is
//! given only in the period in which verifying again would give the same.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use aws_lc_rs::digest::{Context, SHA256};
use rustls_pki_types::{CertificateDer, UnixTime};

use crate::chain::{self, VerifiedClient, VerifyError};
use crate::policy::ClientAuth;

type CacheKey = [u8; 32];

/// A bounded memory of accepted chains. Not `Sync`: each core has its own.
pub struct VerifiedCache {
    generations: RefCell<Generations>,
    hits: Cell<u64>,
    misses: Cell<u64>,
}

impl VerifiedCache {
    /// Holds at least `capacity / 2` and at most `capacity` chains (but room for two), the recently
    /// used ones. A chain takes about 2 KiB.
    pub fn new(capacity: usize) -> Self {
        let half = (capacity / 2).max(1);
        Self {
            generations: RefCell::new(Generations { capacity: half, ..Generations::default() }),
            hits: Cell::new(0),
            misses: Cell::new(0),
        }
    }

    /// As [`chain::verify_client`], from memory when the same question was answered before.
    ///
    /// # Errors
    /// As [`chain::verify_client`]; refusals are never remembered.
    pub fn verify(
        &self,
        policy: &ClientAuth,
        leaf: &CertificateDer<'_>,
        sent: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<Arc<VerifiedClient>, VerifyError> {
        let key = cache_key(policy, leaf, sent);
        if let Some(known) = self.generations.borrow_mut().get(&key)
            && known.is_valid_at(now)
        {
            self.hits.set(self.hits.get() + 1);
            return Ok(known);
        }
        self.misses.set(self.misses.get() + 1);
        let verified = Arc::new(chain::verify_client(policy, leaf, sent, now)?);
        self.generations.borrow_mut().insert(key, Arc::clone(&verified));
        Ok(verified)
    }

    /// Verifications answered from memory.
    pub fn hits(&self) -> u64 {
        self.hits.get()
    }

    /// Verifications that were computed, refusals included.
    pub fn misses(&self) -> u64 {
        self.misses.get()
    }

    /// Chains held.
    pub fn len(&self) -> usize {
        let generations = self.generations.borrow();
        generations.young.len() + generations.old.len()
    }

    /// Nothing is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets everything; the counters go on.
    pub fn clear(&self) {
        let mut generations = self.generations.borrow_mut();
        generations.young.clear();
        generations.old.clear();
    }
}

impl std::fmt::Debug for VerifiedCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "VerifiedCache({} held, {} hits, {} misses)", self.len(), self.hits(), self.misses())
    }
}

fn cache_key(policy: &ClientAuth, leaf: &CertificateDer<'_>, sent: &[CertificateDer<'_>]) -> CacheKey {
    let mut context = Context::new(&SHA256);
    context.update(policy.digest());
    for certificate in std::iter::once(leaf).chain(sent) {
        // the length keeps two certificates apart from one that is both
        context.update(&(certificate.len() as u64).to_be_bytes());
        context.update(certificate);
    }
    let mut key = [0; 32];
    key.copy_from_slice(context.finish().as_ref()); // both are 32 bytes
    key
}

type Map = HashMap<CacheKey, Arc<VerifiedClient>, BuildHasherDefault<DigestHasher>>;

/// Two halves: what is used moves to the young one; when that is full the old one is dropped whole.
/// Approximates "least recently used" with one map operation a lookup and no list.
#[derive(Default)]
struct Generations {
    capacity: usize,
    young: Map,
    old: Map,
}

impl Generations {
    fn get(&mut self, key: &CacheKey) -> Option<Arc<VerifiedClient>> {
        if let Some(found) = self.young.get(key) {
            return Some(Arc::clone(found));
        }
        let found = self.old.remove(key)?;
        self.insert(*key, Arc::clone(&found));
        Some(found)
    }

    fn insert(&mut self, key: CacheKey, verified: Arc<VerifiedClient>) {
        if self.young.len() >= self.capacity && !self.young.contains_key(&key) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, verified);
    }
}

/// The key is a SHA-256 already: its first bytes are as good as any hash of it.
#[derive(Default)]
struct DigestHasher(u64);

impl Hasher for DigestHasher {
    fn write(&mut self, bytes: &[u8]) {
        if let Some((first, _)) = bytes.split_first_chunk::<8>() {
            self.0 ^= u64::from_ne_bytes(*first);
        }
    }

    fn write_usize(&mut self, _length: usize) {} // every key has the same

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests;
