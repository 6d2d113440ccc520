//! The ticket keys of a site: their names as long as the ring stays, the keys on demand.
//!
//! A key that is ready for use takes 600 bytes, and a site has one for each secret of the ring; of
//! a million sites few are busy at a time. So a site keeps the names, which identify tickets, and
//! each worker a cache of the keys that it used last ([`AEAD_CACHE`]).
//!
//! Invariant: the site's names, which follow the newest ring, decide which keys are valid. A worker
//! looks its keys up by such a name (names of two sites differ as their keys do), and drops all of
//! them when it meets another ring.

use std::cell::RefCell;
use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM_SIV, LessSafeKey, UnboundKey};
use aws_lc_rs::hkdf;
use model::{TicketRing, TicketSecret};

/// The name of a key, which its tickets begin with.
pub(super) type KeyName = [u8; 16];

const SALT: &[u8] = b"countersign session ticket v1";
/// The size of a worker's cache. A miss costs two microseconds.
const AEAD_CACHE_MAX: u16 = 256;

thread_local! {
    static AEAD_CACHE: RefCell<AeadCache> = RefCell::default();
}

/// The keys of a site under one ring.
pub(super) struct TicketKeys {
    pub(super) ring: Arc<TicketRing>,
    /// One for each secret of the ring, in its order.
    names: Box<[KeyName]>,
}

pub(super) struct TicketKey<'a> {
    pub(super) name: KeyName,
    secret: &'a TicketSecret,
    ring: &'a Arc<TicketRing>,
}

impl TicketKeys {
    /// The keys of the site with this binding.
    pub(super) fn new(ring: &Arc<TicketRing>, binding: &[u8]) -> Self {
        // Never `None`: HKDF expands to such lengths (RFC 5869 section 2.3). Without names there
        // would be no tickets.
        let names = ring.secrets.iter().map(|secret| derive_name(secret, binding)).collect::<Option<_>>();
        Self { ring: Arc::clone(ring), names: names.unwrap_or_default() }
    }

    pub(super) fn len(&self) -> usize {
        self.names.len()
    }

    /// The newest key that is valid at `now`; if the clock is behind all of them, the oldest.
    pub(super) fn sealing_key(&self, now: u64) -> Option<TicketKey<'_>> {
        self.iter().rev().find(|key| key.secret.active_from() <= now).or_else(|| self.iter().next())
    }

    pub(super) fn by_name(&self, name: &KeyName) -> Option<TicketKey<'_>> {
        self.iter().find(|key| key.name == *name)
    }

    fn iter(&self) -> impl DoubleEndedIterator<Item = TicketKey<'_>> {
        let secrets = self.names.iter().zip(&self.ring.secrets);
        secrets.map(|(name, secret)| TicketKey { name: *name, secret, ring: &self.ring })
    }
}

impl TicketKey<'_> {
    /// Encrypts or decrypts with the key. `binding`: that of the site.
    pub(super) fn with_aead<T>(
        &self,
        binding: &[u8],
        f: impl FnOnce(&LessSafeKey) -> Option<T>,
    ) -> Option<T> {
        AEAD_CACHE.with_borrow_mut(|cache| f(cache.get(self, binding)?))
    }
}

/// The keys that a worker used last.
#[derive(Default)]
struct AeadCache {
    /// The ring of all of them.
    ring: Option<Arc<TicketRing>>,
    /// Each in the slot of its name.
    slots: Vec<Option<(KeyName, LessSafeKey)>>,
}

impl AeadCache {
    fn get(&mut self, key: &TicketKey<'_>, binding: &[u8]) -> Option<&LessSafeKey> {
        if self.ring.as_ref().is_none_or(|ring| !Arc::ptr_eq(ring, key.ring)) {
            self.slots.clear();
            self.slots.resize_with(usize::from(AEAD_CACHE_MAX), || None);
            self.ring = Some(Arc::clone(key.ring));
        }
        let [first, second, ..] = key.name;
        let index = u16::from_be_bytes([first, second]) % AEAD_CACHE_MAX;
        let slot = self.slots.get_mut(usize::from(index))?;
        if slot.as_ref().is_none_or(|(name, _)| *name != key.name) {
            *slot = Some((key.name, derive_aead(key.secret, binding)?));
        }
        slot.as_ref().map(|(_, aead)| aead)
    }
}

fn derive_aead(secret: &TicketSecret, binding: &[u8]) -> Option<LessSafeKey> {
    let key: UnboundKey = extract(secret).expand(&[b"key ", binding], &AES_256_GCM_SIV).ok()?.into();
    Some(LessSafeKey::new(key))
}

fn derive_name(secret: &TicketSecret, binding: &[u8]) -> Option<KeyName> {
    let mut name = KeyName::default();
    extract(secret).expand(&[b"name", binding], NameLength).ok()?.fill(&mut name).ok()?;
    Some(name)
}

fn extract(secret: &TicketSecret) -> hkdf::Prk {
    hkdf::Salt::new(hkdf::HKDF_SHA256, SALT).extract(secret.expose())
}

struct NameLength;

impl hkdf::KeyType for NameLength {
    fn len(&self) -> usize {
        size_of::<KeyName>()
    }
}
