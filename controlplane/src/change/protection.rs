//! What the writes of one commit weaken together: the resources that can matter, before and after.
//!
//! `model::weakenings_of_change` compares two states. This module builds them from the store, and
//! compiles only the ssls and routes that share names, or hosts and paths, with a changed one.
//! Invariant: all that the verdict depends on is a condition of the commit, and a new document
//! counts under each id that it may get.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::sync::Arc;

use model::{
    Delta, HostPattern, Id, Key, Kind, Problem, Resource, Route, Snapshot, SniPattern, UriPattern, Versioned,
    Weakening, references,
};
use pki::Keyring;
use serde_json::Value;
use tokio::sync::OwnedMutexGuard;

use super::ChangeError;
use super::fairness::Pauses;
use super::overlay::StoreOverlay;
use crate::compile::compile_stored;
use crate::store::{StoreError, StoredDocument};

/// Most different times to live in one commit: each is a state of its own to compare.
const TTLS_MAX: usize = 8;

/// A write of the commit.
pub(super) struct ComparedWrite<'a> {
    pub(super) key: &'a Key,
    pub(super) before: Option<&'a StoredDocument>,
    /// `None`: a removal.
    pub(super) after: Option<&'a Resource>,
    /// The commit gives it an id; that of `key` is a placeholder.
    pub(super) gets_id: bool,
    /// Seconds until the store removes it.
    pub(super) ttl: Option<NonZeroU32>,
}

/// What the writes of a commit weaken.
#[derive(Default)]
pub(super) struct ComparedWrites {
    /// Each with the index of the write that causes it.
    pub(super) weakenings: BTreeSet<(usize, String)>,
    /// Other documents that protect what the written ones did before.
    pub(super) relied_on: BTreeSet<Key>,
}

/// Compares the state before the writes with the one after them. `turn` is held until the work is
/// done, also where the caller no longer waits for it.
///
/// # Errors
/// When the store cannot be read.
pub(super) async fn compare(
    writes: &[ComparedWrite<'_>],
    overlay: &mut StoreOverlay<'_>,
    keyring: &Keyring,
    turn: &mut Option<OwnedMutexGuard<()>>,
) -> Result<ComparedWrites, ChangeError> {
    let mut pauses = Pauses::new();
    let stored = writes.iter().filter_map(|write| compile_compared(write.before?, keyring));
    let mut before: Vec<Versioned> = stored.collect();
    let after: Vec<Resource> = writes.iter().filter_map(|write| write.after.cloned()).collect();
    let matchers = Matchers::of(before.iter().map(|stored| &stored.resource).chain(&after));
    let kinds = surroundings(writes);
    // A service or plugin config matters if a route refers to it.
    for kind in
        [Kind::Ssl, Kind::Route, Kind::StreamRoute, Kind::Service, Kind::PluginConfig, Kind::GlobalRule]
    {
        if !kinds.contains(&kind) {
            continue;
        }
        let used = referenced(before.iter().map(|stored| &stored.resource).chain(&after));
        let is_relevant = |stored: &StoredDocument| match kind {
            Kind::Service | Kind::PluginConfig => used.contains(&stored.key),
            _ => matchers.may_meet(stored),
        };
        let mut compiled = Vec::new();
        for stored in overlay.require_kind(kind).await? {
            compiled.extend(is_relevant(stored).then(|| compile_compared(stored, keyring)).flatten());
            pauses.let_others_run().await;
        }
        before.append(&mut compiled);
    }
    for key in upstreams(writes, &before, &after) {
        let stored = overlay.require_stored(&key).await?;
        before.extend(stored.and_then(|stored| compile_compared(&stored, keyring)));
    }
    // What expires first leaves what expires later for a time.
    let ttls: BTreeSet<_> = writes.iter().filter_map(|write| write.ttl).collect();
    if ttls.len() > TTLS_MAX {
        let message = format!("{} different times to live in one commit, at most {TTLS_MAX}", ttls.len());
        return Err(Problem::new("ttl", message).with_hint("write fewer documents at once").into());
    }
    let mut changes = Vec::new();
    let any_new = writes.iter().any(|write| write.gets_id);
    for is_first in [true, false].into_iter().filter(|is_first| *is_first || any_new) {
        for elapsed in std::iter::once(None).chain(ttls.iter().copied().map(Some)) {
            changes.push(delta(writes, is_first, elapsed)?);
        }
    }
    // The pairs of many entries that overlap take long.
    let guard = turn.take();
    let work = tokio::task::spawn_blocking(move || (compare_states(before, changes), guard));
    let (compared, guard) =
        work.await.map_err(|error| StoreError::Unavailable { what: error.to_string() })?;
    *turn = guard;
    Ok(compared)
}

/// Compares the stored resources with what each of the deltas makes of them.
fn compare_states(before: Vec<Versioned>, changes: Vec<(Delta, BTreeMap<Key, usize>)>) -> ComparedWrites {
    let before = Snapshot::from_resources(0, before);
    let mut compared = ComparedWrites::default();
    for (delta, indexes) in changes {
        let change = model::weakenings_of_change(&before, &delta);
        let indexed = |(key, weakening): (Key, Weakening)| {
            Some((*indexes.get(&key)?, without_placeholders(weakening.to_string())))
        };
        compared.weakenings.extend(change.found.into_iter().filter_map(indexed));
        compared.relied_on.extend(change.relied_on);
    }
    compared
}

/// A stored document as it is served. Of a blocked one the policy counts, too.
fn compile_compared(stored: &StoredDocument, keyring: &Keyring) -> Option<Versioned> {
    let Versioned { version, resource } = compile_stored(stored, keyring, None).0?;
    Some(Versioned { version, resource: model::with_readable_policy(resource, &stored.document) })
}

/// The kinds whose documents can matter.
fn surroundings(writes: &[ComparedWrite<'_>]) -> BTreeSet<Kind> {
    let of = |write: &ComparedWrite<'_>| -> &[Kind] {
        match write.key.kind {
            Kind::Ssl => &[Kind::Ssl],
            Kind::Route | Kind::PluginConfig => &[Kind::Service, Kind::PluginConfig, Kind::Route],
            Kind::Service => &[Kind::Service, Kind::PluginConfig, Kind::Route, Kind::StreamRoute],
            Kind::StreamRoute => &[Kind::Service, Kind::StreamRoute],
            Kind::GlobalRule => &[Kind::GlobalRule],
            Kind::Upstream if write.after.is_none() || write.ttl.is_some() => {
                &[Kind::Service, Kind::Route, Kind::StreamRoute]
            }
            Kind::Upstream => &[],
        }
    };
    writes.iter().flat_map(of).copied().collect()
}

/// Written routes with which each stored one is compared.
const ROUTES_MAX: usize = 16;

/// What the written resources match before and after, to compile no document that meets none.
struct Matchers {
    names: Vec<SniPattern>,
    routes: Vec<Arc<Route>>,
    /// A route may change by what it refers to, or so many are written that to compare each stored
    /// one with all of them takes longer than to compile it.
    every_route: bool,
}

impl Matchers {
    fn of<'a>(resources: impl Iterator<Item = &'a Resource>) -> Self {
        let mut matchers = Self { names: Vec::new(), routes: Vec::new(), every_route: false };
        for resource in resources {
            match resource {
                Resource::Ssl(ssl) => matchers.names.extend(ssl.names.iter().cloned()),
                Resource::Route(route) => matchers.routes.push(Arc::clone(route)),
                Resource::Service(_) | Resource::PluginConfig(_) | Resource::Upstream(_) => {
                    matchers.every_route = true;
                }
                Resource::StreamRoute(_) | Resource::GlobalRule(_) => {}
            }
        }
        matchers.every_route |= matchers.routes.len() > ROUTES_MAX;
        matchers
    }

    /// Whether a document may match what a written one matches. One that cannot be read may.
    fn may_meet(&self, stored: &StoredDocument) -> bool {
        if stored.salvaged.is_some() {
            return true;
        }
        match stored.key.kind {
            Kind::Ssl => {
                let names = one_or_many(&stored.document, "sni", "snis");
                meets(&names, SniPattern::parse, |its| self.names.iter().any(|name| name.overlaps(its)))
            }
            Kind::Route => self.every_route || self.routes.iter().any(|route| meets_route(stored, route)),
            _ => true,
        }
    }
}

/// A route without hosts may have those of its service.
fn meets_route(stored: &StoredDocument, route: &Route) -> bool {
    let hosts = one_or_many(&stored.document, "host", "hosts");
    let meets_host =
        |host: &HostPattern| route.hosts.is_empty() || route.hosts.iter().any(|own| own.overlaps(host));
    let uris = one_or_many(&stored.document, "uri", "uris");
    meets(&uris, UriPattern::parse, |uri| route.uris.iter().any(|own| own.overlaps(uri)))
        && (hosts.is_empty() || meets(&hosts, HostPattern::parse, meets_host))
}

fn one_or_many<'a>(document: &'a Value, one: &str, many: &str) -> Vec<&'a Value> {
    let several =
        document.get(many).map(|many| many.as_array().map_or(std::slice::from_ref(many), Vec::as_slice));
    document.get(one).into_iter().chain(several.into_iter().flatten()).collect()
}

/// Whether a pattern of a document meets the written ones. A text that is no pattern may.
fn meets<P>(texts: &[&Value], parse: impl Fn(&str) -> Result<P, Problem>, does: impl Fn(&P) -> bool) -> bool {
    // A blocked resource matches a name without the port that its document has.
    let is_pattern = |text: &&str| !text.contains(':');
    texts.iter().any(|text| match text.as_str().filter(is_pattern).map(&parse) {
        Some(Ok(pattern)) => does(&pattern),
        Some(Err(_)) | None => true,
    })
}

fn referenced<'a>(resources: impl Iterator<Item = &'a Resource>) -> BTreeSet<Key> {
    resources.flat_map(references).map(|reference| reference.key).collect()
}

/// The stored upstreams to which the resources lead before or after the change.
fn upstreams(writes: &[ComparedWrite<'_>], before: &[Versioned], after: &[Resource]) -> BTreeSet<Key> {
    let written: BTreeSet<&Key> = writes.iter().map(|write| write.key).collect();
    let changed =
        before.iter().map(|stored| &stored.resource).filter(|stored| written.contains(&stored.key()));
    let direct = referenced(changed.chain(after));
    // Of a service both states count.
    let all = || before.iter().map(|stored| &stored.resource).chain(after);
    let services =
        all().filter(|resource| resource.kind() == Kind::Service && direct.contains(&resource.key()));
    let of_services = referenced(services);
    let keys = of_services.union(&direct).cloned();
    keys.filter(|key| key.kind == Kind::Upstream && !written.contains(key)).collect()
}

/// The change, and the index of the write of each of its keys. Documents without an id are in front
/// of all others (`is_first`) or behind them: the ids that they get are in between. `elapsed`: the
/// documents with this time to live, or a shorter one, are gone.
fn delta(
    writes: &[ComparedWrite<'_>],
    is_first: bool,
    elapsed: Option<NonZeroU32>,
) -> Result<(Delta, BTreeMap<Key, usize>), Problem> {
    let mut delta = Delta::default();
    let mut indexes = BTreeMap::new();
    for (index, write) in writes.iter().enumerate() {
        let key = match write.gets_id {
            true => Key::new(write.key.kind, placeholder(index, is_first)?),
            false => write.key.clone(),
        };
        match write.after {
            Some(after) if write.ttl.is_none_or(|ttl| Some(ttl) > elapsed) => {
                delta.upserts.push(Versioned { version: 0, resource: after.with_id(key.id.clone()) });
            }
            _ => delta.removals.push(key.clone()),
        }
        indexes.insert(key, index);
    }
    Ok((delta, indexes))
}

const FILLERS: [char; 2] = ['-', 'z'];
const FILLED: usize = 56;
const DIGITS: usize = 8;

/// An id in front of all others, or behind them, in the order of the indexes.
fn placeholder(index: usize, is_first: bool) -> Result<Id, Problem> {
    let [first, last] = FILLERS.map(|filler| filler.to_string().repeat(FILLED));
    Id::parse(&format!("{}{index:0DIGITS$}", if is_first { first } else { last }))
}

/// The text with a word in place of each placeholder: the commit gives other ids.
fn without_placeholders(mut text: String) -> String {
    for filler in FILLERS {
        let filler = filler.to_string().repeat(FILLED);
        while let Some(at) = text.find(&filler) {
            let end = at + FILLED + DIGITS;
            let digits = text.get(at + FILLED..end);
            if !digits.is_some_and(|digits| digits.bytes().all(|digit| digit.is_ascii_digit())) {
                break;
            }
            text.replace_range(at..end, "(new)");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn compiled(kind: Kind, document: &Value) -> Resource {
        model::compile(kind, &Id::parse("1").unwrap(), document, &Keyring::empty()).unwrap()
    }

    fn stored(kind: Kind, document: Value) -> StoredDocument {
        StoredDocument {
            key: Key::new(kind, Id::parse("2").unwrap()),
            document,
            create_revision: 1,
            mod_revision: 1,
            stale_extensions: false,
            salvaged: None,
        }
    }

    #[test]
    fn only_documents_that_meet_a_written_one_are_compiled() {
        let node = json!({"nodes": {"127.0.0.1:1": 1}});
        let route = compiled(Kind::Route, &json!({"uri": "/a/*", "host": "a.test", "upstream": node}));
        let matchers = Matchers::of([route].iter());
        let meets = |document: Value| matchers.may_meet(&stored(Kind::Route, document));
        for relevant in [
            json!({"uri": "/a/b", "host": "a.test"}),
            json!({"uris": ["/c", "/*"], "hosts": ["b.test", "*.test"]}),
            json!({"uri": "/a/*", "service_id": "1"}),
            // What cannot be read may be wider than it looks.
            json!({"uri": "/a*b/c", "host": "a.test"}),
            json!({"uri": "/a/b", "host": "a.test:8080"}),
            json!({"uri": "/a/b", "hosts": []}),
            json!({"uri": "/a/b", "hosts": null}),
        ] {
            assert!(meets(relevant.clone()), "{relevant}");
        }
        for other in [json!({"uri": "/a/b", "host": "b.test"}), json!({"uri": "/b/*", "host": "a.test"})] {
            assert!(!meets(other.clone()), "{other}");
        }
        let service = compiled(Kind::Service, &json!({}));
        assert!(Matchers::of([service].iter()).may_meet(&stored(Kind::Route, json!({"uri": "/x"}))));
    }

    #[test]
    fn placeholders_enclose_the_ids_of_the_store() {
        let ids = [(3, true), (4, true), (3, false), (4, false)]
            .map(|(index, is_first)| placeholder(index, is_first));
        let [one, two, three, four] = ids.map(Result::unwrap);
        let assigned = Id::parse(&format!("{:020}", 7)).unwrap();
        assert!(one < two && two < assigned && assigned < three && three < four);
        let text = format!("may go to route {one}, which allows others, or to {four}");
        assert_eq!(without_placeholders(text), "may go to route (new), which allows others, or to (new)");
        let own = format!("route {}", "z".repeat(64));
        assert_eq!(without_placeholders(own.clone()), own);
    }
}
