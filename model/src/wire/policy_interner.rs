//! Deduplicates the client policies of received resources: most sites of a fleet trust the same few
//! authorities.
//!
//! Policies are equal if their digests are, as for tickets and the verification cache. Invariant:
//! the interner keeps no policy alive.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use pki::ClientAuth;

use crate::resource::Resource;

/// The known policies.
#[derive(Debug, Default)]
pub(super) struct PolicyInterner {
    /// Keyed by the first bytes of the digest. Of two policies with the same prefix, only the later
    /// is shared; equality compares the whole digest.
    seen: HashMap<[u8; 8], Weak<ClientAuth>>,
    /// The number of entries at which dropped policies are removed.
    enough: usize,
}

impl PolicyInterner {
    /// Replaces the policy of an unshared resource by an equal known one.
    pub(super) fn intern(&mut self, resource: &mut Resource) {
        let Resource::Ssl(ssl) = resource else { return };
        let Some(policy) = Arc::get_mut(ssl).and_then(|ssl| ssl.client.as_mut()) else { return };
        let [a, b, c, d, e, f, g, h, ..] = *policy.digest();
        let short = [a, b, c, d, e, f, g, h];
        match self.seen.get(&short).and_then(Weak::upgrade) {
            Some(earlier) if earlier == *policy => *policy = earlier,
            _ => {
                if self.seen.len() >= self.enough {
                    self.seen.retain(|_, policy| policy.strong_count() > 0);
                    self.enough = (self.seen.len() * 2).max(1024);
                }
                self.seen.insert(short, Arc::downgrade(policy));
            }
        }
    }
}
