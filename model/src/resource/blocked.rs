//! Blocked resources: another program stored what this gateway cannot honour, and nobody may get
//! through because of that.
//!
//! A blocked resource keeps its place: a route takes the requests that the real one would take, a
//! site answers for its names. Left out, it would leave them to a broader route or site without its
//! protection. What gets there is refused. Only the matchers of a blocked resource mean anything;
//! everything else in it is empty, and whoever follows one asks [`Resource::blocked`] first.

use std::fmt;
use std::sync::Arc;

use super::Resource;
use crate::id::Id;

/// Why something is blocked, in one sentence for logs and explanations. Cheap to clone.
#[derive(Clone, PartialEq, Eq)]
pub struct Blocked(Arc<str>);

impl Blocked {
    /// A sentence is one line, and this long at most, whatever was found in the store.
    const BYTES_MAX: usize = 512;

    /// For this reason.
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

/// What an APISIX does with every request. One that is not blocked does nothing.
#[derive(Debug, Clone, PartialEq)]
pub struct GlobalRule {
    /// Its id.
    pub id: Id,
    /// Why no request is served because of it, if that is so.
    pub blocked: Option<Blocked>,
}

impl Resource {
    /// Why it is blocked, if it is.
    pub fn blocked(&self) -> Option<&Blocked> {
        match self {
            Resource::Ssl(ssl) => ssl.blocked.as_ref(),
            Resource::Upstream(upstream) => upstream.blocked.as_ref(),
            Resource::Service(service) => service.blocked.as_ref(),
            Resource::Route(route) => route.blocked.as_ref(),
            Resource::StreamRoute(route) => route.blocked.as_ref(),
            Resource::GlobalRule(rule) => rule.blocked.as_ref(),
        }
    }
}
