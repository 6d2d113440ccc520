//! Finds the ways in which a change weakens the protection of a resource: for warnings, and for
//! options that deny such changes.
//!
//! Only the resource and its replacement are compared. Settings that a service supplies, and other
//! routes or sites that may match instead, are not known here, so a change that may weaken because
//! of those counts. Invariants: a resource does not weaken itself, and a change that only adds
//! protection (fewer anchors, more revocations, a narrower allow-list) does not weaken.

mod change;
mod entries;
mod route_entries;
mod routing;
mod site_entries;
mod ssl;
mod stream_entries;

use std::fmt;

pub use change::{ChangeWeakenings, weakenings_of_change};
use pki::{Certificate, TrustAnchors};

use crate::redact::redact;
use crate::resource::{PassHost, Resource, Upstream, UpstreamRef, UpstreamTls, VerifyPolicy};

/// A way in which a change protects less.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Weakening {
    /// The path of the member.
    pub field: String,
    /// The consequence.
    pub message: String,
}

impl Weakening {
    /// Messages go to logs and responses, so a private key in a pattern is redacted.
    fn new(field: impl Into<String>, what: impl AsRef<str>) -> Weakening {
        Weakening { field: field.into(), message: redact(what.as_ref()).into_owned() }
    }
}

impl fmt::Display for Weakening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

/// The weakenings when `new` replaces `old`; none for different kinds.
///
/// A disabled resource is compared as if it were enabled, because the next change may enable it. A
/// blocked `new` denies what it matches, so only its matchers are compared. A blocked `old` has
/// only matchers: it is weakened if `new` has no policy of its own.
pub fn weakenings(old: &Resource, new: &Resource) -> Vec<Weakening> {
    let mut found = Weakenings::default();
    match (old, new) {
        (Resource::Ssl(old), Resource::Ssl(new)) => ssl::compare(old, new, &mut found),
        (Resource::Upstream(old), Resource::Upstream(new)) => upstream("", old, new, &mut found),
        (Resource::Service(old), Resource::Service(new)) => routing::services(old, new, &mut found),
        (Resource::PluginConfig(old), Resource::PluginConfig(new)) => {
            routing::plugin_configs(old, new, &mut found);
        }
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

/// The weakenings when `old` is deleted, as if it were disabled.
pub fn removal_weakenings(old: &Resource) -> Vec<Weakening> {
    let mut found = Weakenings::default();
    match old {
        Resource::Ssl(old) => ssl::removal(old, &mut found),
        Resource::Service(old) => routing::service_removal(old, &mut found),
        Resource::Route(old) => routing::route_removal(old, &mut found),
        Resource::StreamRoute(old) => routing::stream_route_removal(old, &mut found),
        Resource::GlobalRule(old) => found.add_if(old.blocked.is_some(), "plugins", RULE_GONE),
        // Requests that need it get a 503.
        Resource::Upstream(_) | Resource::PluginConfig(_) => {}
    }
    found.0
}

/// Whether a site with the policy `new` verifies the clients of one with `old`.
pub(crate) fn policy_can_replace(old: &pki::ClientAuth, new: &pki::ClientAuth) -> bool {
    ssl::can_replace(old, new)
}

/// Whether `outer` contains every address of `inner`; an empty list contains all.
pub(crate) fn addresses_within(inner: &[ipnet::IpNet], outer: &[ipnet::IpNet]) -> bool {
    routing::within(inner, outer)
}

const RULE_GONE: &str = "requests are served that were denied, because a plugin was unsupported";

/// Collects weakenings.
#[derive(Default)]
struct Weakenings(Vec<Weakening>);

impl Weakenings {
    fn add(&mut self, field: impl Into<String>, what: impl AsRef<str>) {
        self.0.push(Weakening::new(field, what));
    }

    /// Adds a weakening on a condition.
    fn add_if(&mut self, so: bool, field: &str, what: &str) {
        if so {
            self.add(field, what);
        }
    }
}

/// Compares the encryption and the server verification of two upstreams.
fn upstream(outer: &str, old: &Upstream, new: &Upstream, found: &mut Weakenings) {
    if !old.scheme.is_encrypted() || new.blocked.is_some() {
        return;
    }
    if !new.scheme.is_encrypted() {
        found.add(format!("{outer}scheme"), "requests go to the upstream in clear");
        return;
    }
    // Without `verify`, the settings file may demand it.
    let rank = |tls: &UpstreamTls| {
        if tls.verifies(VerifyPolicy::WhereAsked) { 2 } else { i32::from(tls.verify.is_none()) }
    };
    if rank(&new.tls) < rank(&old.tls) {
        found.add(format!("{outer}tls.verify"), "the upstream's certificate may not be verified any more");
    }
    let gone = |old: &TrustAnchors, new: Option<&TrustAnchors>| {
        let known = |anchor: &Certificate| old.certificates().contains(anchor);
        new.is_none_or(|new| !new.certificates().iter().all(known))
    };
    if old.tls.anchors.as_deref().is_some_and(|before| gone(before, new.tls.anchors.as_deref())) {
        found.add(format!("{outer}tls.ca_certs"), "servers of other authorities are accepted");
    }
    // Where `verify_identity` goes as well, that is its own weakening below.
    let client_names = new.pass_host == PassHost::Pass && new.tls.verify_identity.is_none();
    let came = client_names && old.pass_host != PassHost::Pass;
    if came && old.tls.verifies(VerifyPolicy::UnlessExcepted) {
        let what = "the client's Host chooses the name that the upstream's certificate must have where it is verified";
        found.add(format!("{outer}pass_host"), what);
    }
    if let Some(before) = &old.tls.verify_identity
        && new.tls.verify_identity.as_ref().is_none_or(|now| !before.covers(now))
    {
        found.add(format!("{outer}tls.verify_identity"), "other servers are accepted");
    }
}

/// Compares inline upstreams. A referenced upstream, or a service's, is a document of its own,
/// which may secure the connection less than the inline one.
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
