//! The difference of two snapshots. Law: `a.apply(&a.diff(&b)) == b`.

use std::collections::HashMap;

use imbl::ordmap::DiffItem;

use super::Snapshot;
use crate::delta::Delta;
use crate::id::{Key, Kind};

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
    pub fn diff_from_versions(&self, held: &HashMap<Key, u64>, from: u64) -> Delta {
        let missing = self.resources().filter(|now| held.get(&now.resource.key()) != Some(&now.version));
        let mut removals: Vec<Key> = held.keys().filter(|key| self.version(key).is_none()).cloned().collect();
        removals.sort();
        Delta { from, to: self.revision(), upserts: missing.cloned().collect(), removals }
    }
}
