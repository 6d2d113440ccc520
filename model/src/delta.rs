//! What changed between two snapshots. The law: `a.apply(&a.diff(&b)) == b`.
//!
//! [`Snapshot::diff`] is for two snapshots at hand, where shared structure makes it as cheap as the
//! difference; [`Snapshot::diff_held`] for a node that only says which versions it holds.

use std::collections::HashMap;

use imbl::ordmap::DiffItem;

use crate::id::{Key, Kind};
use crate::resource::Resource;
use crate::snapshot::Snapshot;

/// A resource, and which version of it.
#[derive(Debug, Clone)]
pub struct Versioned {
    /// Of what the resource was made of: equal numbers mean equal resources, in whichever store and
    /// on whichever control plane. Nothing but equality may be read from it; it is no number of
    /// the store's.
    pub version: u64,
    /// What was written.
    pub resource: Resource,
}

impl PartialEq for Versioned {
    fn eq(&self, other: &Versioned) -> bool {
        self.version == other.version
            && (self.resource.ptr_eq(&other.resource) || self.resource == other.resource)
    }
}

/// The way from one revision to another, applied as a whole or not at all.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Delta {
    /// The revision it starts from; 0: from nothing.
    pub from: u64,
    /// The revision it leads to.
    pub to: u64,
    /// New and changed resources, in the order of keys: what is referred to comes first.
    pub upserts: Vec<Versioned>,
    /// Keys whose resources are gone, in order; none of them among the upserts.
    pub removals: Vec<Key>,
}

impl Delta {
    /// Whether it changes no resource (it may still change the revision).
    pub fn is_empty(&self) -> bool {
        self.upserts.is_empty() && self.removals.is_empty()
    }
}

impl Snapshot {
    /// The way from this snapshot to a newer one.
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

    /// The way to this snapshot for somebody who holds those versions at revision `from`, of
    /// whichever store.
    pub fn diff_from_versions(&self, held: &HashMap<Key, u64>, from: u64) -> Delta {
        let missing = self.resources().filter(|now| held.get(&now.resource.key()) != Some(&now.version));
        let mut removals: Vec<Key> = held.keys().filter(|key| self.version(key).is_none()).cloned().collect();
        removals.sort();
        Delta { from, to: self.revision(), upserts: missing.cloned().collect(), removals }
    }
}
