//! The keys of a site's tickets: named for as long as the ring stays, made when one is needed.
//!
//! A key that is ready for use takes 600 bytes, and a site has one for each secret of the ring; of
//! a million sites few are busy at a time. So a site keeps the names, by which tickets are told,
//! and each core the keys that it used last ([`READY`]). Invariant: which keys are good is read
//! from the site's names, which follow the newest ring. A core's keys are looked up by such a name
//! (names of two sites differ as their keys do), and all of them are dropped when it meets another
//! ring.

use std::cell::RefCell;
use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM_SIV, LessSafeKey, UnboundKey};
use aws_lc_rs::hkdf;
use model::{TicketRing, TicketSecret};

/// The name of a derived key, which a ticket begins with.
pub(super) type KeyName = [u8; 16];

const SALT: &[u8] = b"countersign session ticket v1";
/// Keys that a core keeps ready at most. A site whose key is not among them pays two microseconds.
const AEAD_CACHE_MAX: u16 = 256;

thread_local! {
    static AEAD_CACHE: RefCell<AeadCache> = RefCell::default();
}

/// The keys of a site under one ring.
pub(super) struct TicketKeys {
    pub(super) ring: Arc<TicketRing>,
    /// In the ring's order, one for each of its secrets.
    names: Box<[KeyName]>,
}

/// One of them.
pub(super) struct TicketKey<'a> {
    pub(super) name: KeyName,
    secret: &'a TicketSecret,
    ring: &'a Arc<TicketRing>,
}

impl TicketKeys {
    /// Those of the site with this binding.
    pub(super) fn new(ring: &Arc<TicketRing>, binding: &[u8]) -> Self {
        // `None` never in practice: the names are short enough for HKDF (RFC 5869 section 2.3). Without
        // them: no tickets.
        let names = ring.secrets.iter().map(|secret| derive_name(secret, binding)).collect::<Option<_>>();
        Self { ring: Arc::clone(ring), names: names.unwrap_or_default() }
    }

    pub(super) fn len(&self) -> usize {
        self.names.len()
    }

    /// The newest that has begun; on a node whose clock is behind all of them, the oldest.
    pub(super) fn sealing_key(&self, now: u64) -> Option<TicketKey<'_>> {
        self.all().rev().find(|key| key.secret.active_from() <= now).or_else(|| self.all().next())
    }

    pub(super) fn by_name(&self, name: &KeyName) -> Option<TicketKey<'_>> {
        self.all().find(|key| key.name == *name)
    }

    fn all(&self) -> impl DoubleEndedIterator<Item = TicketKey<'_>> {
        let each = self.names.iter().zip(&self.ring.secrets);
        each.map(|(name, secret)| TicketKey { name: *name, secret, ring: &self.ring })
    }
}

impl TicketKey<'_> {
    /// Has it do something. `binding` is the one its site's keys were named with.
    pub(super) fn with_aead<T>(
        &self,
        binding: &[u8],
        act: impl FnOnce(&LessSafeKey) -> Option<T>,
    ) -> Option<T> {
        AEAD_CACHE.with_borrow_mut(|ready| act(ready.key(self, binding)?))
    }
}

/// What a core has ready.
#[derive(Default)]
struct AeadCache {
    /// Whose keys these are.
    ring: Option<Arc<TicketRing>>,
    /// Each in the only place its name lets it have.
    keys: Vec<Option<(KeyName, LessSafeKey)>>,
}

impl AeadCache {
    fn key(&mut self, key: &TicketKey<'_>, binding: &[u8]) -> Option<&LessSafeKey> {
        if self.ring.as_ref().is_none_or(|ring| !Arc::ptr_eq(ring, key.ring)) {
            self.keys.clear();
            self.keys.resize_with(usize::from(AEAD_CACHE_MAX), || None);
            self.ring = Some(Arc::clone(key.ring));
        }
        let [first, second, ..] = key.name;
        let place = self.keys.get_mut(usize::from(u16::from_be_bytes([first, second]) % AEAD_CACHE_MAX))?;
        if place.as_ref().is_none_or(|(name, _)| *name != key.name) {
            *place = Some((key.name, derive_aead(key.secret, binding)?));
        }
        place.as_ref().map(|(_, ready)| ready)
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
