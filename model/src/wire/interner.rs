//! Shares equal parts of received resources: most sites of a fleet trust the same few authorities,
//! and so do most upstreams.
//!
//! Invariant: the interner keeps no part alive.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use pki::{ClientAuth, TrustAnchors};

use crate::resource::{Resource, Upstream, UpstreamRef};

/// The parts of earlier resources.
#[derive(Debug, Default)]
pub(super) struct SharedParts {
    policies: Interner<ClientAuth>,
    anchors: Interner<TrustAnchors>,
}

impl SharedParts {
    /// Replaces the parts of an unshared resource by equal known ones.
    pub(super) fn intern(&mut self, resource: &mut Resource) {
        if let Resource::Ssl(ssl) = resource
            && let Some(policy) = Arc::get_mut(ssl).and_then(|ssl| ssl.client.as_mut())
        {
            let digest = *policy.digest();
            self.policies.intern(policy, digest);
        }
        if let Some(anchors) = unshared_upstream(resource).and_then(|upstream| upstream.tls.anchors.as_mut())
        {
            let digest = anchors.digest();
            self.anchors.intern(anchors, digest);
        }
    }
}

/// The upstream of [`Resource::own_upstream`].
fn unshared_upstream(resource: &mut Resource) -> Option<&mut Upstream> {
    let target = match resource {
        Resource::Upstream(upstream) => return Arc::get_mut(upstream),
        Resource::Service(service) => Arc::get_mut(service)?.upstream.as_mut()?,
        Resource::Route(route) => Arc::get_mut(route)?.upstream.as_mut()?,
        Resource::StreamRoute(route) => Arc::get_mut(route)?.upstream.as_mut()?,
        Resource::Ssl(_) | Resource::PluginConfig(_) | Resource::GlobalRule(_) => return None,
    };
    match target {
        UpstreamRef::Inline(upstream) => Arc::get_mut(upstream),
        UpstreamRef::Id(_) => None,
    }
}

/// Values by the first bytes of their digest. Of two with the same prefix, only the later is
/// shared.
#[derive(Debug)]
struct Interner<T> {
    seen: HashMap<[u8; 8], Weak<T>>,
    /// The number of entries at which dropped values are removed.
    enough: usize,
}

impl<T> Default for Interner<T> {
    fn default() -> Self {
        Self { seen: HashMap::new(), enough: 0 }
    }
}

impl<T: PartialEq> Interner<T> {
    /// Replaces the value by an equal known one.
    fn intern(&mut self, value: &mut Arc<T>, digest: [u8; 32]) {
        let [a, b, c, d, e, f, g, h, ..] = digest;
        let short = [a, b, c, d, e, f, g, h];
        match self.seen.get(&short).and_then(Weak::upgrade) {
            Some(earlier) if earlier == *value => *value = earlier,
            _ => {
                if self.seen.len() >= self.enough {
                    self.seen.retain(|_, value| value.strong_count() > 0);
                    self.enough = (self.seen.len() * 2).max(1024);
                }
                self.seen.insert(short, Arc::downgrade(value));
            }
        }
    }
}
