//! References between resources, and the Admin API's checks of them (contract 2.7).
//!
//! `document::compile` sees one document only, so the Admin API checks references against the
//! store, and a data plane handles missing resources per request (contract 6.1, 7.3).

use crate::id::{Id, Key, Kind};
use crate::problem::Problem;
use crate::resource::{Resource, UpstreamIdentity, UpstreamRef};

/// A reference from one resource to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// The field: `upstream_id`, `upstream.tls.client_cert_id`.
    pub field: String,
    /// The referenced resource.
    pub key: Key,
    /// The referenced upstream must take HTTP requests.
    pub requires_http: bool,
}

impl Reference {
    /// Checks the resource that was found under [`Reference::key`], if any.
    ///
    /// # Errors
    ///
    /// The resource is missing, an ssl that is not of `type: client`, or an upstream for TCP only.
    pub fn check(&self, found: Option<&Resource>) -> Result<(), Problem> {
        let noun = self.key.kind.noun();
        let problem = |why: &str| {
            let id = &self.key.id;
            Problem::new(&self.field, format!("failed to fetch {noun} info by {noun} id [{id}], {why}"))
        };
        match found {
            None => Err(problem("response code: 404")),
            Some(Resource::Ssl(ssl)) if !ssl.client_side => Err(problem("wrong ssl type")),
            Some(Resource::Upstream(upstream)) if self.requires_http && !upstream.scheme.is_http() => {
                Err(problem(&format!("scheme {} takes no HTTP requests", upstream.scheme.as_str())))
            }
            Some(_) => Ok(()),
        }
    }
}

/// The documents that may refer to those of one kind, for the Admin API's check of a removal
/// (contract 2.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Referrers {
    /// The kinds that may refer to it, in the order of the check.
    pub kinds: &'static [Kind],
    /// The member of their documents with its id, as a text or a number.
    pub field: &'static str,
    /// How APISIX's messages call what is to be removed: `this upstream`.
    pub target: &'static str,
}

/// What may refer to documents of this kind by a member of their own. `None`: they can always be
/// removed, an ssl also while an upstream uses it as a client certificate (contract 2.3).
pub fn referrers(kind: Kind) -> Option<Referrers> {
    let (field, target, kinds): (_, _, &[Kind]) = match kind {
        Kind::Upstream => ("upstream_id", "this upstream", &[Kind::Route, Kind::Service, Kind::StreamRoute]),
        Kind::Service => ("service_id", "this service directly", &[Kind::Route, Kind::StreamRoute]),
        Kind::PluginConfig => ("plugin_config_id", "this plugin config", &[Kind::Route]),
        Kind::Ssl | Kind::Route | Kind::StreamRoute | Kind::GlobalRule => return None,
    };
    Some(Referrers { kinds, field, target })
}

/// The references of a resource, in the order of the Admin API's checks.
pub fn references(resource: &Resource) -> Vec<Reference> {
    let mut found = Vec::new();
    match resource {
        Resource::Ssl(_) | Resource::PluginConfig(_) | Resource::GlobalRule(_) => {}
        Resource::Upstream(upstream) => identity("", upstream, &mut found),
        Resource::Service(service) => upstream_ref(service.upstream.as_ref(), &mut found),
        Resource::Route(route) => {
            upstream_ref(route.upstream.as_ref(), &mut found);
            found
                .iter_mut()
                .for_each(|reference| reference.requires_http = reference.key.kind == Kind::Upstream);
            found.extend(route.service.as_ref().map(|id| named("service_id", Kind::Service, id)));
            let config = route.plugin_config.as_ref();
            found.extend(config.map(|id| named("plugin_config_id", Kind::PluginConfig, id)));
        }
        Resource::StreamRoute(route) => {
            upstream_ref(route.upstream.as_ref(), &mut found);
            found.extend(route.service.as_ref().map(|id| named("service_id", Kind::Service, id)));
        }
    }
    found
}

fn upstream_ref(upstream: Option<&UpstreamRef>, found: &mut Vec<Reference>) {
    match upstream {
        Some(UpstreamRef::Id(id)) => found.push(named("upstream_id", Kind::Upstream, id)),
        Some(UpstreamRef::Inline(upstream)) => identity("upstream.", upstream, found),
        None => {}
    }
}

fn identity(outer: &str, upstream: &super::Upstream, found: &mut Vec<Reference>) {
    if let Some(UpstreamIdentity::Ssl(id)) = &upstream.tls.identity {
        found.push(named(&format!("{outer}tls.client_cert_id"), Kind::Ssl, id));
    }
}

fn named(field: &str, kind: Kind, id: &Id) -> Reference {
    Reference { field: field.to_owned(), key: Key::new(kind, id.clone()), requires_http: false }
}
