//! One copy of each policy that arrives: most sites of a fleet let in the clients of the same few
//! authorities.
//!
//! What is the same policy is what tickets and the verified cache take for the same, its digest.
//! Invariant: nothing is kept alive here.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use pki::ClientAuth;

use crate::resource::Resource;

/// Those seen so far.
#[derive(Debug, Default)]
pub(super) struct PolicyInterner {
    /// By the first bytes of their digests. Of two policies that agree in these, which nobody makes
    /// by chance, only the later is shared: what is the same is asked of the whole digest.
    seen: HashMap<[u8; 8], Weak<ClientAuth>>,
    /// When there are so many, those that nobody holds any more are forgotten.
    enough: usize,
}

impl PolicyInterner {
    /// Has a resource that nobody else holds yet share its policy with earlier ones.
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
