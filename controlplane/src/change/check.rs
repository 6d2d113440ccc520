//! The check: a document is compiled as every data plane compiles it, then its references are
//! looked up.
//!
//! `compile` also builds what the data planes get, so no data plane rejects a document that passes
//! here. References to other resources (contract 2.6, 2.7) are looked up in the `overlay`, which
//! makes the commit depend on them: no document refers to one that another writer has removed.

use model::lint::Finding;
use model::passthrough::{self, SiteNames};
use model::{
    Id, Key, Kind, Problem, Reference, Referrers, Resource, Scheme, Snapshot, StreamRoute, UpstreamRef,
    Versioned,
};
use pki::Keyring;
use rustls_pki_types::UnixTime;
use serde_json::{Map, Value};

use super::ChangeError;
use super::fairness::Pauses;
use super::overlay::{Dependence, StoreOverlay, named_id};
use crate::compile::{compile, compile_stored};

/// Checks and compiles a document by itself; returns likely misconfigurations beside it.
///
/// # Errors
/// The first problem of the document.
pub(crate) fn check_document(
    kind: Kind,
    id: &Id,
    document: &Value,
    keyring: &Keyring,
    now: UnixTime,
) -> Result<(Resource, Vec<Finding>), Problem> {
    let resource = compile(kind, id, document, keyring)?;
    model::check_validity_period(&resource, now)?;
    let findings = model::lint::lint_resource(&resource, now);
    Ok((resource, findings))
}

/// Checks of the documents of one plan against the others. What many documents of a plan need of a
/// whole kind is read once.
pub(super) struct ReferenceChecks<'a, 's> {
    overlay: &'a mut StoreOverlay<'s>,
    keyring: &'a Keyring,
    /// All that the plan writes.
    pending: &'a [Resource],
    /// The sites, for stream routes that pass TLS on.
    sites: Option<Vec<SiteNames>>,
    /// All but stream routes, for routes that forward raw paths.
    state: Option<Snapshot>,
}

impl<'a, 's> ReferenceChecks<'a, 's> {
    pub(super) fn new(
        overlay: &'a mut StoreOverlay<'s>,
        keyring: &'a Keyring,
        pending: &'a [Resource],
    ) -> Self {
        Self { overlay, keyring, pending, sites: None, state: None }
    }

    /// Checks a compiled document.
    ///
    /// # Errors
    /// The first reference that does not hold, or a store error.
    pub(super) async fn check(&mut self, resource: &Resource) -> Result<(), ChangeError> {
        for reference in model::references(resource) {
            check_reference(&reference, self.overlay).await?;
        }
        if let Resource::StreamRoute(route) = resource
            && route.tls_passthrough
        {
            self.check_passthrough(route).await?;
        }
        self.check_raw_paths(resource).await
    }

    /// Rejects the removal of a document that others refer to. An ssl can always be removed
    /// (contract 2.3); gives a warning where upstreams need its client certificate. `before`: the
    /// removed document.
    ///
    /// # Errors
    /// Names the first document that refers to it.
    pub(super) async fn check_removal(
        &mut self,
        key: &Key,
        before: Option<&Value>,
    ) -> Result<Option<String>, ChangeError> {
        let Some(Referrers { kinds, field, target }) = model::referrers(key.kind) else {
            return self.warn_of_removal(key, before).await;
        };
        for user in kinds {
            if let Some(found) = self.overlay.require_unused(*user, field, &key.id).await? {
                let (user, id) = (user.singular(), found.id);
                let message = format!("can not delete {target}, {user} [{id}] is still using it now");
                return Err(Problem::new("", message).into());
            }
        }
        Ok(None)
    }

    async fn warn_of_removal(
        &mut self,
        key: &Key,
        before: Option<&Value>,
    ) -> Result<Option<String>, ChangeError> {
        if key.kind != Kind::Ssl || before.is_none_or(|ssl| ssl.get("type") != Some(&"client".into())) {
            return Ok(None);
        }
        let names_it = |upstream: &Value| {
            let named = upstream.get("tls").and_then(|tls| named_id(tls, "client_cert_id"));
            named.is_some_and(|id| id == key.id)
        };
        for kind in [Kind::Upstream, Kind::Route, Kind::Service, Kind::StreamRoute] {
            let user = self.overlay.find(kind, |document| match kind {
                Kind::Upstream => names_it(document),
                _ => document.get("upstream").is_some_and(names_it),
            });
            if let Some(user) = user.await? {
                let what = "names it in tls.client_cert_id, and gets no connection without it";
                return Ok(Some(format!("{user} {what}")));
            }
        }
        Ok(None)
    }

    /// Rejects a global rule with a plugin that another global rule has: which of them would apply
    /// is not defined. `document` is that of the rule.
    ///
    /// # Errors
    /// Names the first such plugin.
    pub(super) async fn check_global_rule(
        &mut self,
        key: &Key,
        document: &Map<String, Value>,
    ) -> Result<(), ChangeError> {
        let plugins = document.get("plugins").and_then(Value::as_object);
        for name in plugins.into_iter().flat_map(Map::keys).filter(|_| key.kind == Kind::GlobalRule) {
            let has_it = |other: &Key, document: &Value| {
                other != key && document.get("plugins").is_some_and(|plugins| plugins.get(name).is_some())
            };
            if let Some(other) = self.overlay.require_none(Kind::GlobalRule, has_it).await? {
                let message = format!("plugin '{name}' already exists in global rule with id '{}'", other.id);
                return Err(Problem::new(format!("plugins.{name}"), message).into());
            }
        }
        Ok(())
    }

    /// Rejects a stream route that passes on TLS of a site with a client policy, which would bypass
    /// it, or that passes TLS on to an upstream within another TLS. Such a site or upstream that is
    /// written later is accepted; data planes then deny these connections.
    async fn check_passthrough(&mut self, route: &StreamRoute) -> Result<(), ChangeError> {
        if let Some((field, scheme)) = named_scheme(route, self.overlay).await?
            && let Some(why) = route.puts_tls_into_tls(scheme)
        {
            return Err(Problem::new(field, why).with_hint(StreamRoute::TLS_INTO_TLS_HINT).into());
        }
        let sites = match self.sites.take() {
            Some(sites) => sites,
            None => {
                let ssls = self.overlay.require_all(Kind::Ssl).await?.into_iter();
                ssls.filter_map(|(key, ssl)| SiteNames::from_document(&key.id, ssl)).collect()
            }
        };
        let sites = self.sites.insert(sites);
        let Some((ssl, sni)) = passthrough::bypassed_site(route, sites) else { return Ok(()) };
        let (taken, hint) = match sni {
            Some(sni) => (format!("\"{sni}\" belongs to"), "leave the name out, or let TLS be terminated"),
            None => ("every name includes those of".to_owned(), "name the names to pass on in snis"),
        };
        let message = format!(
            "TLS cannot be passed on: {taken} ssl {ssl}, which demands client certificates, and nothing would verify them"
        );
        Err(Problem::new("tls_passthrough", message).with_hint(hint).into())
    }

    /// Rejects a route, plugin config or service that forwards raw paths where a client could
    /// bypass a rule. A rule that is written later is accepted; data planes then deny such
    /// requests.
    async fn check_raw_paths(&mut self, resource: &Resource) -> Result<(), ChangeError> {
        if !forwards_raw_paths(resource, self.overlay).await? {
            return Ok(());
        }
        let state = match self.state.take() {
            Some(state) => state,
            None => self.compile_state().await?,
        };
        Ok(model::raw_path::check_resource(self.state.insert(state), resource)?)
    }

    async fn compile_state(&mut self) -> Result<Snapshot, ChangeError> {
        let mut resources = Vec::new();
        let mut pauses = Pauses::new();
        for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::StreamRoute) {
            for stored in self.overlay.unchanged(kind).await? {
                resources.extend(compile_stored(stored, self.keyring, None).0);
                pauses.let_others_run().await;
            }
        }
        let pending = self.pending.iter().cloned();
        resources.extend(pending.map(|resource| Versioned { version: 0, resource }));
        Ok(Snapshot::from_resources(0, resources))
    }
}

/// The scheme of the upstream that a stream route names, or its service, and the field that names
/// it; `None` for an upstream of its own.
async fn named_scheme(
    route: &StreamRoute,
    overlay: &mut StoreOverlay<'_>,
) -> Result<Option<(&'static str, Scheme)>, ChangeError> {
    let (field, upstream) = match (&route.upstream, &route.service) {
        (Some(UpstreamRef::Inline(_)), _) | (None, None) => return Ok(None),
        (Some(UpstreamRef::Id(id)), _) => ("upstream_id", Some(id.clone())),
        (None, Some(service)) => {
            let key = Key::new(Kind::Service, service.clone());
            let Some(service) = overlay.require(&key, Dependence::Content).await? else { return Ok(None) };
            if let Some(own) = service.get("upstream").filter(|own| own.is_object()) {
                return Ok(Some(("service_id", scheme_of(own))));
            }
            ("service_id", named_id(&service, "upstream_id"))
        }
    };
    let Some(id) = upstream else { return Ok(None) };
    let found = overlay.require(&Key::new(Kind::Upstream, id), Dependence::Content).await?;
    Ok(found.map(|upstream| (field, scheme_of(&upstream))))
}

/// Decides by the document itself, or by the plugin config or service of a route without a
/// `proxy-rewrite` of its own.
async fn forwards_raw_paths(resource: &Resource, overlay: &StoreOverlay<'_>) -> Result<bool, ChangeError> {
    let (own, others) = match resource {
        Resource::Route(route) => (&route.proxy_rewrite, [&route.plugin_config, &route.service]),
        Resource::Service(service) => (&service.proxy_rewrite, [&None, &None]),
        Resource::PluginConfig(config) => (&config.proxy_rewrite, [&None, &None]),
        _ => return Ok(false),
    };
    if let Some(own) = own {
        return Ok(own.uses_raw_path());
    }
    for (kind, id) in [Kind::PluginConfig, Kind::Service].into_iter().zip(others) {
        let Some(id) = id else { continue };
        let found = overlay.get(&Key::new(kind, id.clone())).await?;
        let field = "/plugins/proxy-rewrite/use_real_request_uri_unsafe";
        if found.as_ref().is_some_and(|found| found.pointer(field) == Some(&Value::Bool(true))) {
            return Ok(true);
        }
    }
    Ok(false)
}

async fn check_reference(reference: &Reference, overlay: &mut StoreOverlay<'_>) -> Result<(), ChangeError> {
    let Key { kind, id } = &reference.key;
    let noun = kind.noun();
    let lookup = format!("failed to fetch {noun} info by {noun} id [{id}]");
    let invalid = |detail: &str| {
        Err(ChangeError::Invalid(Problem::new(reference.field.clone(), format!("{lookup}, {detail}"))))
    };
    let dependence = if *kind == Kind::Ssl || reference.requires_http {
        Dependence::Content
    } else {
        Dependence::Existence
    };
    match overlay.require(&reference.key, dependence).await? {
        None => invalid("response code: 404"),
        Some(found) if *kind == Kind::Ssl && !is_client(&found) => invalid("wrong ssl type"),
        Some(found) if reference.requires_http && !scheme_of(&found).is_http() => {
            invalid(&format!("scheme {} takes no HTTP requests", scheme_of(&found).as_str()))
        }
        Some(_) => Ok(()),
    }
}

fn is_client(ssl: &Value) -> bool {
    ssl.get("type").and_then(Value::as_str) == Some("client")
}

/// The upstream is stored or was compiled, so its scheme was checked.
fn scheme_of(upstream: &Value) -> Scheme {
    upstream.get("scheme").and_then(Value::as_str).and_then(Scheme::parse).unwrap_or(Scheme::Http)
}
