//! What a change takes away from the protection of a resource.
//!
//! The one place that says so, for warnings and for whatever refuses such a change. It compares a
//! resource with the one that takes its place and with nothing else: what a service adds to its
//! routes, or which route or site would answer instead, is not known here, so a change that may
//! weaken because of those counts. Invariants: nothing weakens itself, and a change that only adds
//! protection (fewer anchors, more revoked, a narrower allow-list) does not weaken.

mod routing;
mod ssl;

use std::fmt;

use crate::redact::redact;
use crate::resource::{Resource, Upstream, UpstreamRef};

/// One thing that protects less than before.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Weakening {
    /// The member of the document, as a path.
    pub field: String,
    /// What it means.
    pub message: String,
}

impl fmt::Display for Weakening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

/// What weakens when `new` takes the place of `old`. Nothing where they are of different kinds.
///
/// A disabled resource is compared as an enabled one, because the next change may enable it. A
/// blocked `new` refuses what it takes, so only what it takes is compared. Of a blocked `old` only
/// that is known: it is opened when `new` has no policy of its own.
pub fn weakenings(old: &Resource, new: &Resource) -> Vec<Weakening> {
    let mut found = Weakenings::default();
    match (old, new) {
        (Resource::Ssl(old), Resource::Ssl(new)) => ssl::compare(old, new, &mut found),
        (Resource::Upstream(old), Resource::Upstream(new)) => upstream("", old, new, &mut found),
        (Resource::Service(old), Resource::Service(new)) => routing::services(old, new, &mut found),
        (Resource::Route(old), Resource::Route(new)) => routing::routes(old, new, &mut found),
        (Resource::StreamRoute(old), Resource::StreamRoute(new)) => {
            routing::stream_routes(old, new, &mut found);
        }
        (Resource::GlobalRule(old), Resource::GlobalRule(new)) => {
            found.add_if(old.blocked.is_some() && new.blocked.is_none(), "plugins", RULE_GONE);
        }
        _ => {}
    }
    found.0
}

/// What weakens when `old` is removed: as when it is disabled.
pub fn removal_weakenings(old: &Resource) -> Vec<Weakening> {
    let mut found = Weakenings::default();
    match old {
        Resource::Ssl(old) => ssl::removal(old, &mut found),
        Resource::Service(old) => routing::service_removal(old, &mut found),
        Resource::Route(old) => routing::route_removal(old, &mut found),
        Resource::StreamRoute(old) => routing::stream_route_removal(old, &mut found),
        Resource::GlobalRule(old) => found.add_if(old.blocked.is_some(), "plugins", RULE_GONE),
        Resource::Upstream(_) => {}
    }
    found.0
}

/// Whether the clients of a site with the policy `old` can be left to one with `new`.
pub(crate) fn policy_can_replace(old: &pki::ClientAuth, new: &pki::ClientAuth) -> bool {
    ssl::can_replace(old, new)
}

/// Whether every address of `inner` is one of `outer`; an empty list has them all.
pub(crate) fn addresses_within(inner: &[ipnet::IpNet], outer: &[ipnet::IpNet]) -> bool {
    routing::within(inner, outer)
}

const RULE_GONE: &str = "requests are served that were refused, because the rule could not be honoured";

/// Collects what weakens.
#[derive(Default)]
struct Weakenings(Vec<Weakening>);

impl Weakenings {
    /// What is quoted goes to logs and answers: a private key that was pasted into a pattern does
    /// not.
    fn add(&mut self, field: impl Into<String>, what: impl AsRef<str>) {
        self.0.push(Weakening { field: field.into(), message: redact(what.as_ref()).into_owned() });
    }

    /// Adds it if it is so.
    fn add_if(&mut self, so: bool, field: &str, what: &str) {
        if so {
            self.add(field, what);
        }
    }
}

/// Two upstreams: whether the hop is secured, and who is on its other end.
fn upstream(outer: &str, old: &Upstream, new: &Upstream, found: &mut Weakenings) {
    if !old.scheme.is_encrypted() || new.blocked.is_some() {
        return;
    }
    if !new.scheme.is_encrypted() {
        found.add(format!("{outer}scheme"), "requests go to the upstream in clear");
    } else if old.tls.verify && !new.tls.verify {
        found.add(format!("{outer}tls.verify"), "the upstream's certificate is not verified any more");
    }
}

/// Upstreams that are written in place. Those that are named, or a service's, are documents of
/// their own: one that takes the place of a secured hop may be less.
fn inline(old: Option<&UpstreamRef>, new: Option<&UpstreamRef>, found: &mut Weakenings) {
    let Some(UpstreamRef::Inline(old)) = old else { return };
    match new {
        Some(UpstreamRef::Inline(new)) => upstream("upstream.", old, new, found),
        _ => found.add_if(
            old.scheme.is_encrypted(),
            "upstream",
            "another upstream takes its place, which may be reached in clear or without verification",
        ),
    }
}

#[cfg(test)]
mod tests;
