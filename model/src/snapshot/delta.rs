//! The difference between two snapshots. Law: `a.apply(&a.diff(&b)) == b`.

use std::collections::HashMap;

use imbl::ordmap::DiffItem;

use super::Snapshot;
use crate::id::{Key, Kind};
use crate::resource::Resource;

/// A resource with its version.
#[derive(Debug, Clone)]
pub struct Versioned {
    /// A digest of the document that the resource was compiled from. Equal versions mean equal
    /// resources, across stores and control planes; versions have no order and are no revisions.
    pub version: u64,
    /// The compiled resource.
    pub resource: Resource,
}

impl PartialEq for Versioned {
    fn eq(&self, other: &Versioned) -> bool {
        self.version == other.version
            && (self.resource.ptr_eq(&other.resource) || self.resource == other.resource)
    }
}

/// A change from one revision to another, applied completely or not at all.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Delta {
    /// The revision that the delta applies to; 0 is the empty snapshot.
    pub from: u64,
    /// The revision that the delta leads to.
    pub to: u64,
    /// New and changed resources in the order of keys, so that referenced resources come first.
    pub upserts: Vec<Versioned>,
    /// Keys of deleted resources in order; no upsert has one of them.
    pub removals: Vec<Key>,
}

impl Delta {
    /// Whether the delta changes no resource (it may still change the revision).
    pub fn is_empty(&self) -> bool {
        self.upserts.is_empty() && self.removals.is_empty()
    }
}

impl Snapshot {
    /// The delta from this snapshot to a newer one. Shared structure makes it as cheap as the
    /// difference.
    pub fn diff(&self, newer: &Snapshot) -> Delta {
        let mut delta = Delta { from: self.revision(), to: newer.revision(), ..Delta::default() };
        for kind in Kind::ALL {
            for change in self.resources_of(kind).diff(newer.resources_of(kind)) {
                match change {
                    DiffItem::Add(_, now) | DiffItem::Update { new: (_, now), .. } => {
                        delta.upserts.push(now.clone());
                    }
                    DiffItem::Remove(id, _) => delta.removals.push(Key::new(kind, id.clone())),
                }
            }
        }
        delta
    }

    /// The delta to this snapshot for a node that reports only the versions of its resources, at
    /// revision `from` of any store.
    pub fn diff_from_versions(&self, versions: &HashMap<Key, u64>, from: u64) -> Delta {
        let missing = self.resources().filter(|now| versions.get(&now.resource.key()) != Some(&now.version));
        let mut removals: Vec<Key> =
            versions.keys().filter(|key| self.version(key).is_none()).cloned().collect();
        removals.sort();
        Delta { from, to: self.revision(), upserts: missing.cloned().collect(), removals }
    }
}
