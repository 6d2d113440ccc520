//! What the writes of one commit weaken together: the resources that can matter, before and after.
//!
//! `model::weakenings_of_change` compares two states. This module builds them from the store: only
//! the ssls that share a name with a changed one are compiled, and for routes the routes and what
//! they refer to. Invariant: all that the verdict depends on is a condition of the commit, and a
//! new document counts under each id that it may get.

use std::collections::{BTreeMap, BTreeSet};

use model::{
    Delta, Id, Key, Kind, Problem, Resource, Snapshot, SniPattern, Versioned, Weakening, references,
};
use pki::Keyring;
use serde_json::Value;

use super::ChangeError;
use super::overlay::StoreOverlay;
use crate::compile::compile_stored;
use crate::store::StoredDocument;

/// A write of the commit.
pub(super) struct ComparedWrite<'a> {
    pub(super) key: &'a Key,
    pub(super) before: Option<&'a StoredDocument>,
    /// `None`: a removal.
    pub(super) after: Option<&'a Resource>,
    /// The commit gives it an id; that of `key` is a placeholder.
    pub(super) gets_id: bool,
    /// The store removes it later.
    pub(super) expires: bool,
}

/// What the writes of a commit weaken.
#[derive(Default)]
pub(super) struct ComparedWrites {
    /// Each with the index of the write that causes it.
    pub(super) weakenings: BTreeSet<(usize, String)>,
    /// Other documents that protect what the written ones did before.
    pub(super) relied_on: BTreeSet<Key>,
}

/// Compares the state before the writes with the one after them.
///
/// # Errors
/// When the store cannot be read.
pub(super) async fn compare(
    writes: &[ComparedWrite<'_>],
    overlay: &mut StoreOverlay<'_>,
    keyring: &Keyring,
) -> Result<ComparedWrites, ChangeError> {
    let stored = writes.iter().filter_map(|write| compile_stored(write.before?, keyring, None).0);
    let mut before: Vec<Versioned> = stored.collect();
    let after: Vec<Resource> = writes.iter().filter_map(|write| write.after.cloned()).collect();
    let names = site_names(before.iter().map(|stored| &stored.resource).chain(&after));
    for kind in surroundings(writes) {
        let unchanged = overlay.require_kind(kind).await?.into_iter();
        let relevant = unchanged.filter(|stored| kind != Kind::Ssl || shares_name(stored, &names));
        before.extend(relevant.filter_map(|stored| compile_stored(stored, keyring, None).0));
    }
    for key in upstreams(writes, &before, &after) {
        let stored = overlay.require_stored(&key).await?;
        before.extend(stored.and_then(|stored| compile_stored(&stored, keyring, None).0));
    }
    let before = Snapshot::from_resources(0, before);
    let mut compared = ComparedWrites::default();
    let (any_new, any_expires) =
        (writes.iter().any(|write| write.gets_id), writes.iter().any(|write| write.expires));
    for (is_first, have_expired) in [(true, false), (false, false), (true, true), (false, true)] {
        if (is_first || any_new) && (!have_expired || any_expires) {
            let (delta, indexes) = delta(writes, &before, is_first, have_expired)?;
            let change = model::weakenings_of_change(&before, &delta);
            let indexed =
                |(key, weakening): (Key, Weakening)| Some((*indexes.get(&key)?, weakening.to_string()));
            compared.weakenings.extend(change.found.into_iter().filter_map(indexed));
            compared.relied_on.extend(change.relied_on);
        }
    }
    Ok(compared)
}

/// The kinds of which every document can matter.
fn surroundings(writes: &[ComparedWrite<'_>]) -> BTreeSet<Kind> {
    let of = |write: &ComparedWrite<'_>| -> &[Kind] {
        match write.key.kind {
            Kind::Ssl => &[Kind::Ssl],
            Kind::Route | Kind::PluginConfig => &[Kind::Service, Kind::PluginConfig, Kind::Route],
            Kind::Service => &[Kind::Service, Kind::PluginConfig, Kind::Route, Kind::StreamRoute],
            Kind::StreamRoute => &[Kind::Service, Kind::StreamRoute],
            Kind::GlobalRule => &[Kind::GlobalRule],
            Kind::Upstream if write.after.is_none() => &[Kind::Service, Kind::Route, Kind::StreamRoute],
            Kind::Upstream => &[],
        }
    };
    writes.iter().flat_map(of).copied().collect()
}

/// The names of all ssls of `type: server` among the resources.
fn site_names<'a>(resources: impl Iterator<Item = &'a Resource>) -> Vec<SniPattern> {
    let names = resources.map(|resource| match resource {
        Resource::Ssl(ssl) => ssl.names.clone(),
        _ => Vec::new(),
    });
    names.flatten().collect()
}

/// Whether a stored ssl may match one of the names. One that cannot be read may.
fn shares_name(stored: &StoredDocument, names: &[SniPattern]) -> bool {
    let texts = ["sni", "snis"].into_iter().filter_map(|member| stored.document.get(member));
    let mut texts = texts.flat_map(|member| match member {
        Value::Array(items) => items.as_slice(),
        other => std::slice::from_ref(other),
    });
    stored.salvaged.is_some()
        || texts.any(|text| match text.as_str().map(SniPattern::parse) {
            Some(Ok(pattern)) => names.iter().any(|name| name.overlaps(&pattern)),
            Some(Err(_)) | None => true,
        })
}

/// The stored upstreams to which the resources lead before or after the change.
fn upstreams(writes: &[ComparedWrite<'_>], before: &[Versioned], after: &[Resource]) -> BTreeSet<Key> {
    let written: BTreeSet<&Key> = writes.iter().map(|write| write.key).collect();
    let changed =
        before.iter().map(|stored| &stored.resource).filter(|stored| written.contains(&stored.key()));
    let direct: Vec<Key> = changed.chain(after).flat_map(references).map(|reference| reference.key).collect();
    // Of a service both states count.
    let all = || before.iter().map(|stored| &stored.resource).chain(after);
    let services =
        all().filter(|resource| resource.kind() == Kind::Service && direct.contains(&resource.key()));
    let of_services = services.flat_map(references).map(|reference| reference.key);
    let keys = of_services.chain(direct.iter().cloned());
    keys.filter(|key| key.kind == Kind::Upstream && !written.contains(key)).collect()
}

/// The change, and the index of the write of each of its keys. Documents without an id are in front
/// of all others (`is_first`) or behind them: the ids that they get are in between. `have_expired`:
/// the documents with a time to live are gone.
fn delta(
    writes: &[ComparedWrite<'_>],
    before: &Snapshot,
    is_first: bool,
    have_expired: bool,
) -> Result<(Delta, BTreeMap<Key, usize>), Problem> {
    let mut delta = Delta { from: before.revision(), to: before.revision(), ..Delta::default() };
    let mut indexes = BTreeMap::new();
    for (index, write) in writes.iter().enumerate() {
        let key = match write.gets_id {
            true => Key::new(write.key.kind, placeholder(index, is_first)?),
            false => write.key.clone(),
        };
        match write.after {
            Some(after) if !(have_expired && write.expires) => {
                delta.upserts.push(Versioned { version: 0, resource: after.with_id(key.id.clone()) });
            }
            _ => delta.removals.push(key.clone()),
        }
        indexes.insert(key, index);
    }
    Ok((delta, indexes))
}

/// An id in front of all others, or behind them, in the order of the indexes.
fn placeholder(index: usize, is_first: bool) -> Result<Id, Problem> {
    let filler = if is_first { "-" } else { "z" };
    Id::parse(&format!("{}{index:08}", filler.repeat(56)))
}
