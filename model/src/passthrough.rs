//! TLS passthrough and mutual TLS: a stream route that passes TLS on undecrypted must not take the
//! names of a site with a client policy, which nothing would enforce then.
//!
//! The control plane rejects such a route by the patterns of both, lint finds those that were
//! written in the other order, and a data plane denies each connection by its very name. Without a
//! name it may be for any site, so that one with a client policy is enough for all three.

use serde_json::Value;

use crate::document::fields::{names, string};
use crate::host_name::HostName;
use crate::id::Id;
use crate::pattern::{NamePattern, SniPattern};
use crate::resource::{Ssl, StreamRoute};
use crate::snapshot::Snapshot;

/// Whether the TLS of a connection with this SNI may be passed on: its site has no client policy
/// and is not blocked; without SNI, no site has one or is.
pub fn is_allowed(snapshot: &Snapshot, sni: Option<&HostName>) -> bool {
    match sni {
        Some(sni) => snapshot.site(sni).is_none_or(|ssl| !ssl.may_demand_clients()),
        None => !snapshot.has_protected_site(),
    }
}

/// An enabled site as far as this rule goes.
#[derive(Debug, Clone)]
pub struct SiteNames {
    id: Id,
    names: Vec<SniPattern>,
    /// Or it is blocked, as far as it is known.
    has_client: bool,
}

impl SiteNames {
    /// Of the document of an ssl; `None`: it is no enabled site. Its certificates are not read.
    pub fn from_document(id: &Id, document: &Value) -> Option<Self> {
        let given = |field: &str| document.get(field).filter(|value| !value.is_null());
        if string(document, "type") == Some("client") || given("status").and_then(Value::as_u64) == Some(0) {
            return None;
        }
        let names = names(document, "sni", "snis").ok()?;
        Some(Self { id: id.clone(), names, has_client: given("client").is_some() })
    }

    pub(crate) fn from_ssl(ssl: &Ssl) -> Self {
        Self { id: ssl.id.clone(), names: ssl.names.clone(), has_client: ssl.may_demand_clients() }
    }
}

/// The site with a client policy whose names the route takes and passes on, with the route's name
/// (`None`: it takes every name). `sites`: all, in the order of their ids.
pub fn bypassed_site<'a>(
    route: &'a StreamRoute,
    sites: &'a [SiteNames],
) -> Option<(&'a Id, Option<&'a SniPattern>)> {
    if !route.tls_passthrough {
        return None;
    }
    let protected = || sites.iter().filter(|site| site.has_client);
    if route.snis.is_empty() {
        return protected().next().map(|site| (&site.id, None));
    }
    route.snis.iter().find_map(|sni| {
        // The site of an exact name has it, if there is one, whatever wildcards others have.
        let owner =
            sites.iter().find(|site| matches!(sni, NamePattern::Exact(_)) && site.names.contains(sni));
        let site = match owner {
            Some(owner) => Some(owner).filter(|owner| owner.has_client),
            None => protected().find(|site| site.names.iter().any(|name| shares_name(sni, name))),
        };
        site.map(|site| (&site.id, Some(sni)))
    })
}

/// Whether a name of the route may be one of the site, whose wildcards cover one label only
/// (contract 4.2).
fn shares_name(route: &SniPattern, site: &SniPattern) -> bool {
    let (NamePattern::Exact(name) | NamePattern::Suffix(name), NamePattern::Suffix(suffix)) = (route, site)
    else {
        return route.overlaps(site);
    };
    match name.as_bytes().strip_suffix(suffix.as_bytes()) {
        Some(covered) => !covered.contains(&b'.'),
        None => route.overlaps(site),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::document::fields;
    use crate::id::{Key, Kind};
    use crate::resource::{Blocked, Resource};
    use crate::snapshot::{Delta, Versioned};

    fn route(snis: &[&str]) -> StreamRoute {
        let document = json!({"snis": snis});
        StreamRoute {
            id: Id::parse("1").unwrap(),
            snis: fields::names(&document, "sni", "snis").unwrap(),
            tls_passthrough: true,
            remote_addr: None,
            server_addr: None,
            server_port: None,
            upstream: None,
            service: None,
            blocked: None,
        }
    }

    /// Sites `0`, `1`, ... of these documents.
    fn sites(documents: &[Value]) -> Vec<SiteNames> {
        let id = |nth: usize| Id::parse(&nth.to_string()).unwrap();
        let documents = documents.iter().enumerate();
        documents.filter_map(|(nth, document)| SiteNames::from_document(&id(nth), document)).collect()
    }

    fn protected(names: &[&str]) -> Value {
        json!({"snis": names, "client": {"ca": "..."}})
    }

    #[test]
    fn a_route_must_share_no_name_with_a_protected_site() {
        for (snis, names, expected) in [
            (&["a.com"][..], &["a.com"][..], true),
            (&["b.com", "A.com."], &["x.org", "a.com"], true),
            (&["*.a.com"], &["x.a.com"], true),
            (&["*.a.com"], &["x.y.a.com"], true),
            (&["x.a.com"], &["*.a.com"], true),
            (&["*.a.com"], &["*.a.com"], true),
            (&["*.com"], &["*.a.com"], true),
            (&["*x.a.com"], &["*.a.com"], true),
            (&[], &["a.com"], true),
            (&["a.com"], &["*"], true),
            (&["*"], &["a.com"], true),
            (&["a.com"], &["b.com", "*.a.com"], false),
            (&["*.a.com"], &["a.com"], false),
            // Of one label only are the names of a site's wildcard.
            (&["x.b.a.com"], &["*.a.com"], false),
            (&["*.b.a.com"], &["*.a.com"], false),
        ] {
            let found = bypassed_site(&route(snis), &sites(&[protected(names)])).is_some();
            assert_eq!(found, expected, "{snis:?} {names:?}");
        }
        let terminating = StreamRoute { tls_passthrough: false, ..route(&["a.com"]) };
        assert!(bypassed_site(&terminating, &sites(&[protected(&["a.com"])])).is_none());
    }

    #[test]
    fn other_ssls_are_no_protected_sites() {
        for (change, is_site) in [
            (json!({"client": null}), true),
            (json!({"status": 0}), false),
            (json!({"type": "client"}), false),
            (json!({"snis": ["a..com"]}), false),
        ] {
            let mut document = protected(&["a.com"]);
            document.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
            let sites = sites(&[document]);
            assert_eq!(sites.len(), usize::from(is_site), "{change}");
            assert!(bypassed_site(&route(&["a.com"]), &sites).is_none(), "{change}");
        }
        let sni = json!({"sni": "a.com", "client": {}, "status": 1, "type": "server"});
        assert!(bypassed_site(&route(&["a.com"]), &sites(&[sni])).is_some());
    }

    /// What is passed on without SNI is denied where a route without names is refused.
    #[test]
    fn without_sni_one_protected_site_is_enough() {
        let site = |own: &str, name: &str| Ssl {
            names: vec![SniPattern::parse(name).unwrap()],
            ..Ssl::new(Id::parse(own).unwrap())
        };
        let protected =
            || Ssl { blocked: Some(Blocked::new("it may ask for anything")), ..site("2", "b.com") };
        let upsert = |ssl: Ssl| Versioned { version: 1, resource: Resource::Ssl(Arc::new(ssl)) };
        let delta = |upserts: Vec<Ssl>, removals: Vec<Key>| Delta {
            upserts: upserts.into_iter().map(upsert).collect(),
            removals,
            ..Delta::default()
        };
        let open = Snapshot::empty().apply(&delta(vec![site("1", "a.com")], vec![]));
        let (a, b) = (HostName::from_sni("a.com").unwrap(), HostName::from_sni("b.com").unwrap());
        assert!(is_allowed(&open, None) && is_allowed(&open, Some(&a)) && is_allowed(&open, Some(&b)));
        let closed = open.apply(&delta(vec![protected()], vec![]));
        assert!(
            !is_allowed(&closed, None) && is_allowed(&closed, Some(&a)) && !is_allowed(&closed, Some(&b))
        );
        // Replaced by itself it counts once.
        let closed = closed.apply(&delta(vec![protected()], vec![]));
        let id = Id::parse("2").unwrap();
        for change in [
            delta(vec![site("2", "b.com")], vec![]),
            delta(vec![], vec![Key::new(Kind::Ssl, id)]),
            delta(vec![Ssl { enabled: false, ..protected() }], vec![]),
            delta(vec![Ssl { client_side: true, ..protected() }], vec![]),
        ] {
            let next = closed.apply(&change);
            assert!(is_allowed(&next, None), "{change:?}");
            let sites: Vec<_> = [&closed, &next]
                .map(|snapshot| {
                    let ssls = snapshot.resources_of(Kind::Ssl).keys().filter_map(|id| snapshot.ssl(id));
                    let sites = ssls.filter(|ssl| ssl.enabled && !ssl.client_side);
                    sites.map(|ssl| SiteNames::from_ssl(ssl)).collect::<Vec<_>>()
                })
                .into();
            let bypassed = sites.iter().map(|sites| bypassed_site(&route(&[]), sites).is_some());
            assert_eq!(bypassed.collect::<Vec<_>>(), [true, false]);
            assert!(!is_allowed(&next.apply(&delta(vec![protected()], vec![])), None));
        }
    }

    /// As [`Snapshot::site`] finds it: the exact name before wildcards, the lowest id first.
    #[test]
    fn an_exact_name_belongs_to_its_own_site() {
        let (wildcard, open) = (protected(&["*.a.com"]), json!({"sni": "x.a.com"}));
        assert!(bypassed_site(&route(&["x.a.com"]), &sites(&[wildcard.clone(), open.clone()])).is_none());
        let two = sites(&[wildcard.clone(), open.clone()]);
        let both = route(&["x.a.com", "y.a.com"]);
        let (id, sni) = bypassed_site(&both, &two).unwrap();
        assert_eq!((id.as_str(), sni.map(ToString::to_string).as_deref()), ("0", Some("y.a.com")));
        assert!(bypassed_site(&route(&["*.a.com"]), &two).is_some());
        let same = [open, protected(&["x.a.com"])];
        assert!(bypassed_site(&route(&["x.a.com"]), &sites(&same)).is_none());
    }
}
