//! What a change takes away from the protection of a resource.
//!
//! The one place that says so, for warnings and for whatever refuses such a change. It compares a resource with the one that takes its
//! place and with nothing else: what a service adds to its routes, or which route or site would answer instead, is not known here, so
//! a change that may weaken because of those counts. Invariants: nothing weakens itself, and a change that only adds protection (fewer
//! anchors, more revoked, a narrower allow-list) does not weaken.

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
    pub what: String,
}

impl fmt::Display for Weakening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.what)
    }
}

/// What weakens when `new` takes the place of `old`. Nothing where one of them is blocked (it lets no client through), or where they are
/// of different kinds.
pub fn weakens(old: &Resource, new: &Resource) -> Vec<Weakening> {
    let mut found = Found::default();
    if old.blocked().is_some() || new.blocked().is_some() {
        return found.0;
    }
    match (old, new) {
        (Resource::Ssl(old), Resource::Ssl(new)) => ssl::compare(old, new, &mut found),
        (Resource::Upstream(old), Resource::Upstream(new)) => upstream("", old, new, &mut found),
        (Resource::Service(old), Resource::Service(new)) => routing::services(old, new, &mut found),
        (Resource::Route(old), Resource::Route(new)) => routing::routes(old, new, &mut found),
        (Resource::StreamRoute(old), Resource::StreamRoute(new)) => {
            routing::stream_routes(old, new, &mut found);
        }
        _ => {}
    }
    found.0
}

/// Collects what weakens.
#[derive(Default)]
struct Found(Vec<Weakening>);

impl Found {
    /// What is quoted goes to logs and answers: a private key that was pasted into a pattern does not.
    fn add(&mut self, field: impl Into<String>, what: impl AsRef<str>) {
        self.0.push(Weakening { field: field.into(), what: redact(what.as_ref()).into_owned() });
    }

    /// Adds it if it is so.
    fn add_if(&mut self, so: bool, field: &str, what: &str) {
        if so {
            self.add(field, what);
        }
    }
}

/// Two upstreams: whether the hop is secured, and who is on its other end.
fn upstream(outer: &str, old: &Upstream, new: &Upstream, found: &mut Found) {
    if !old.scheme.is_encrypted() {
        return;
    }
    if !new.scheme.is_encrypted() {
        found.add(format!("{outer}scheme"), "requests go to the upstream in clear");
    } else if old.tls.verify && !new.tls.verify {
        found.add(format!("{outer}tls.verify"), "the upstream's certificate is not verified any more");
    }
}

/// Upstreams that are written in place. Those that are named are documents of their own.
fn inline(old: Option<&UpstreamRef>, new: Option<&UpstreamRef>, found: &mut Found) {
    if let (Some(UpstreamRef::Inline(old)), Some(UpstreamRef::Inline(new))) = (old, new) {
        upstream("upstream.", old, new, found);
    }
}

#[cfg(test)]
mod tests;
