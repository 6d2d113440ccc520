//! The keys of a site's tickets: named for as long as the ring stays, made when one is needed.
//!
//! A key that is ready for use takes 600 bytes, and a site has one for each secret of the ring; of a million sites few are busy at a time.
//! So a site keeps the names, by which tickets are told, and each core the keys that it used last ([`READY`]).
//! Invariant: which keys are good is read from the site's names, which follow the newest ring. A core's keys are looked up by such a name
//! (names of two sites differ as their keys do), and all of them are dropped when it meets another ring.

use std::cell::RefCell;
use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM_SIV, LessSafeKey, UnboundKey};
use aws_lc_rs::hkdf;
use model::{TicketRing, TicketSecret};

/// The name of a derived key, which a ticket begins with.
pub(super) type KeyName = [u8; 16];

const SALT: &[u8] = b"countersign session ticket v1";
/// Keys that a core keeps ready at most. A site whose key is not among them pays two microseconds.
const READY_MAX: u16 = 256;

thread_local! {
    static READY: RefCell<Ready> = RefCell::default();
}

/// The keys of a site under one ring.
pub(super) struct Keys {
    pub(super) ring: Arc<TicketRing>,
    /// In the ring's order, one for each of its secrets.
    names: Box<[KeyName]>,
}

/// One of them.
pub(super) struct Key<'a> {
    pub(super) name: KeyName,
    secret: &'a TicketSecret,
    ring: &'a Arc<TicketRing>,
}

impl Keys {
    /// Those of the site with this binding.
    pub(super) fn new(ring: &Arc<TicketRing>, binding: &[u8]) -> Self {
        // `None` never in practice: the names are short enough for HKDF (RFC 5869 section 2.3). Without them: no tickets.
        let names = ring.secrets.iter().map(|secret| name_of(secret, binding)).collect::<Option<_>>();
        Self { ring: Arc::clone(ring), names: names.unwrap_or_default() }
    }

    pub(super) fn len(&self) -> usize {
        self.names.len()
    }

    /// The newest that has begun; on a node whose clock is behind all of them, the oldest.
    pub(super) fn sealing(&self, now: u64) -> Option<Key<'_>> {
        self.all().rev().find(|key| key.secret.active_from() <= now).or_else(|| self.all().next())
    }

    pub(super) fn named(&self, name: &KeyName) -> Option<Key<'_>> {
        self.all().find(|key| key.name == *name)
    }

    fn all(&self) -> impl DoubleEndedIterator<Item = Key<'_>> {
        let each = self.names.iter().zip(&self.ring.secrets);
        each.map(|(name, secret)| Key { name: *name, secret, ring: &self.ring })
    }
}

impl Key<'_> {
    /// Has it do something. `binding` is the one its site's keys were named with.
    pub(super) fn using<T>(&self, binding: &[u8], act: impl FnOnce(&LessSafeKey) -> Option<T>) -> Option<T> {
        READY.with_borrow_mut(|ready| act(ready.key(self, binding)?))
    }
}

/// What a core has ready.
#[derive(Default)]
struct Ready {
    /// Whose keys these are.
    ring: Option<Arc<TicketRing>>,
    /// Each in the only place its name lets it have.
    keys: Vec<Option<(KeyName, LessSafeKey)>>,
}

impl Ready {
    fn key(&mut self, key: &Key<'_>, binding: &[u8]) -> Option<&LessSafeKey> {
        if self.ring.as_ref().is_none_or(|ring| !Arc::ptr_eq(ring, key.ring)) {
            self.keys.clear();
            self.keys.resize_with(usize::from(READY_MAX), || None);
            self.ring = Some(Arc::clone(key.ring));
        }
        let [first, second, ..] = key.name;
        let place = self.keys.get_mut(usize::from(u16::from_be_bytes([first, second]) % READY_MAX))?;
        if place.as_ref().is_none_or(|(name, _)| *name != key.name) {
            *place = Some((key.name, derive(key.secret, binding)?));
        }
        place.as_ref().map(|(_, ready)| ready)
    }
}

fn derive(secret: &TicketSecret, binding: &[u8]) -> Option<LessSafeKey> {
    let key: UnboundKey = extracted(secret).expand(&[b"key ", binding], &AES_256_GCM_SIV).ok()?.into();
    Some(LessSafeKey::new(key))
}

fn name_of(secret: &TicketSecret, binding: &[u8]) -> Option<KeyName> {
    let mut name = KeyName::default();
    extracted(secret).expand(&[b"name", binding], NameLength).ok()?.fill(&mut name).ok()?;
    Some(name)
}

fn extracted(secret: &TicketSecret) -> hkdf::Prk {
    hkdf::Salt::new(hkdf::HKDF_SHA256, SALT).extract(secret.expose())
}

struct NameLength;

impl hkdf::KeyType for NameLength {
    fn len(&self) -> usize {
        size_of::<KeyName>()
    }
}
