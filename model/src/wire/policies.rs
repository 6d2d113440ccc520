//! One copy of each policy that arrives: most sites of a fleet let in the clients of the same few authorities.
//!
//! What is the same policy is what tickets and the verified cache take for the same, its digest. Invariant: nothing is kept alive here.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use pki::{ClientAuth, PolicyDigest};

use crate::resource::Resource;

/// Those seen so far.
#[derive(Debug, Default)]
pub(super) struct Policies {
    seen: HashMap<PolicyDigest, Weak<ClientAuth>>,
    /// When there are so many, those that nobody holds any more are forgotten.
    enough: usize,
}

impl Policies {
    /// Has a resource that nobody else holds yet share its policy with earlier ones.
    pub(super) fn share(&mut self, resource: &mut Resource) {
        let Resource::Ssl(ssl) = resource else { return };
        let Some(policy) = Arc::get_mut(ssl).and_then(|ssl| ssl.client.as_mut()) else { return };
        match self.seen.get(policy.digest()).and_then(Weak::upgrade) {
            Some(earlier) => *policy = earlier,
            None => {
                if self.seen.len() >= self.enough {
                    self.seen.retain(|_, policy| policy.strong_count() > 0);
                    self.enough = (self.seen.len() * 2).max(1024);
                }
                self.seen.insert(*policy.digest(), Arc::downgrade(policy));
            }
        }
    }
}
