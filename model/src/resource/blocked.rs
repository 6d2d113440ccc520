//! Blocked resources, which replace stored documents that the gateway does not support.
//!
//! A blocked resource keeps the matchers of the document, and the traffic that it matches is
//! denied: without it, a broader route or site could take that traffic without the document's
//! protection. Everything but the matchers is empty, so code that follows a resource checks
//! [`Resource::blocked`] first.

use std::fmt;
use std::sync::Arc;

use super::Resource;

/// Why a resource is blocked, in a sentence for logs and the explain API. Cheap to clone.
#[derive(Clone, PartialEq, Eq)]
pub struct Blocked(Arc<str>);

impl Blocked {
    /// Bounds the sentence, which may quote the store.
    const BYTES_MAX: usize = 512;

    /// Shortens the text to one line.
    pub fn new(why: &str) -> Blocked {
        let end = (0..=Self::BYTES_MAX.min(why.len())).rev().find(|at| why.is_char_boundary(*at));
        let line = why.get(..end.unwrap_or_default()).unwrap_or_default().replace(char::is_control, " ");
        Blocked(line.into())
    }

    /// The sentence.
    pub fn reason(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Blocked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl Resource {
    /// Why the resource is blocked, if it is.
    pub fn blocked(&self) -> Option<&Blocked> {
        match self {
            Resource::Ssl(ssl) => ssl.blocked.as_ref(),
            Resource::Upstream(upstream) => upstream.blocked.as_ref(),
            Resource::Service(service) => service.blocked.as_ref(),
            Resource::PluginConfig(config) => config.blocked.as_ref(),
            Resource::Route(route) => route.blocked.as_ref(),
            Resource::StreamRoute(route) => route.blocked.as_ref(),
            Resource::GlobalRule(rule) => rule.blocked.as_ref(),
        }
    }
}
