//! A cache of accepted chains, so that a returning client costs a hash instead of signature checks.
//!
//! Each worker has a cache in front of `chain::verify_client`; nothing is shared or locked. The key
//! is SHA-256 over the policy's digest and every certificate of the client, so any change of the
//! policy or the chain gives another key. Only accepted chains are cached: a rejection is cheap to
//! repeat, and must not let unknown peers fill the cache. Invariant: an entry is returned only
//! within its validity period.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use aws_lc_rs::digest::{Context, SHA256};
use rustls_pki_types::{CertificateDer, UnixTime};

use crate::chain::{self, VerifiedClient, VerifyError};
use crate::policy::ClientAuth;

type CacheKey = [u8; 32];

/// A bounded cache of accepted chains. Not `Sync`: each worker has its own.
pub struct VerifiedCache {
    generations: RefCell<Generations>,
    hits: Cell<u64>,
    misses: Cell<u64>,
}

impl VerifiedCache {
    /// Holds the `capacity / 2` most recently used chains at least, and `capacity` chains (or two,
    /// if that is more) at most. A chain takes about 2 KiB.
    pub fn new(capacity: usize) -> Self {
        let half = (capacity / 2).max(1);
        Self {
            generations: RefCell::new(Generations { capacity: half, ..Generations::default() }),
            hits: Cell::new(0),
            misses: Cell::new(0),
        }
    }

    /// Like [`chain::verify_client`], from the cache when possible.
    ///
    /// # Errors
    /// Those of [`chain::verify_client`]; rejections are not cached.
    pub fn verify(
        &self,
        policy: &ClientAuth,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<Arc<VerifiedClient>, VerifyError> {
        let key = cache_key(policy, leaf, intermediates);
        if let Some(cached) = self.generations.borrow_mut().get(&key)
            && cached.is_valid_at(now)
        {
            self.hits.set(self.hits.get() + 1);
            return Ok(cached);
        }
        self.misses.set(self.misses.get() + 1);
        let verified = Arc::new(chain::verify_client(policy, leaf, intermediates, now)?);
        self.generations.borrow_mut().insert(key, Arc::clone(&verified));
        Ok(verified)
    }

    /// Verifications answered from the cache.
    pub fn hits(&self) -> u64 {
        self.hits.get()
    }

    /// Verifications that were computed, rejections included.
    pub fn misses(&self) -> u64 {
        self.misses.get()
    }

    /// Cached chains.
    pub fn len(&self) -> usize {
        let generations = self.generations.borrow();
        generations.young.len() + generations.old.len()
    }

    /// Whether the cache is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Drops all entries; the counters stay.
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

fn cache_key(
    policy: &ClientAuth,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
) -> CacheKey {
    let mut context = Context::new(&SHA256);
    context.update(policy.digest());
    for certificate in std::iter::once(leaf).chain(intermediates) {
        // The length distinguishes two certificates from their concatenation.
        context.update(&(certificate.len() as u64).to_be_bytes());
        context.update(certificate);
    }
    let mut key = [0; 32];
    key.copy_from_slice(context.finish().as_ref()); // both are 32 bytes
    key
}

type Map = HashMap<CacheKey, Arc<VerifiedClient>, BuildHasherDefault<DigestHasher>>;

/// Two generations: a used entry moves to the young one; when that is full, the old one is dropped.
/// Approximates "least recently used" with one map operation per lookup.
#[derive(Default)]
struct Generations {
    capacity: usize,
    young: Map,
    old: Map,
}

impl Generations {
    fn get(&mut self, key: &CacheKey) -> Option<Arc<VerifiedClient>> {
        if let Some(entry) = self.young.get(key) {
            return Some(Arc::clone(entry));
        }
        let entry = self.old.remove(key)?;
        self.insert(*key, Arc::clone(&entry));
        Some(entry)
    }

    fn insert(&mut self, key: CacheKey, verified: Arc<VerifiedClient>) {
        if self.young.len() >= self.capacity && !self.young.contains_key(&key) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, verified);
    }
}

/// Takes the first bytes of a SHA-256 as its hash.
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
