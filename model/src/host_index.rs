//! Configured names -> whatever belongs to them: the shape shared by the index of sites and that of routes.
//!
//! Exact names and wildcard suffixes are two persistent hash maps (a copy shares all but the path of a
//! change), so a lookup costs one probe for an exact name and one for each label above it. What a wildcard
//! may cover is decided by the caller, who is told what stood in its place.

use imbl::{HashMap, OrdMap};

use crate::name::Name;
use crate::pattern::NamePattern;

/// What hangs at one name. Empty ones are dropped from the index.
pub(crate) trait Bucket: Clone + Default {
    fn is_empty(&self) -> bool;
}

#[derive(Clone)]
pub(crate) struct HostIndex<B> {
    exact: HashMap<Name, B>,
    suffixes: HashMap<Name, B>,
    /// Lengths of the suffixes that do not start with a dot (`*x.com`), and how many have each. Almost
    /// always empty; only when not are suffixes searched inside labels.
    loose: OrdMap<usize, usize>,
    any: B,
}

impl<B: Bucket> HostIndex<B> {
    pub(crate) fn new() -> HostIndex<B> {
        HostIndex { exact: HashMap::new(), suffixes: HashMap::new(), loose: OrdMap::new(), any: B::default() }
    }

    /// What belongs to exactly this name.
    pub(crate) fn exact(&self, name: &Name) -> Option<&B> {
        self.exact.get(name.as_bytes())
    }

    /// What belongs to wildcards that end this name, longest suffix first, each with the part of the name
    /// that stands for its `*`.
    pub(crate) fn suffixes<'i, 'n>(
        &'i self,
        name: &'n Name,
    ) -> impl Iterator<Item = (&'n [u8], &'i B)> + use<'i, 'n, B> {
        let bytes = name.as_bytes();
        let places = if self.suffixes.is_empty() { 0 } else { bytes.len() };
        (0..places).filter_map(move |at| {
            let (star, suffix) = bytes.split_at(at);
            let possible = suffix.first() == Some(&b'.') || self.loose.contains_key(&suffix.len());
            let bucket = if possible { self.suffixes.get(suffix) } else { None };
            bucket.map(|bucket| (star, bucket))
        })
    }

    /// What belongs to `*`; may be empty.
    pub(crate) fn any(&self) -> &B {
        &self.any
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.suffixes.is_empty() && self.loose.is_empty() && self.any.is_empty()
    }

    /// Changes what belongs to a pattern.
    pub(crate) fn change(&mut self, pattern: &NamePattern, change: impl FnOnce(&mut B)) {
        match pattern {
            NamePattern::Any => change(&mut self.any),
            NamePattern::Exact(name) => {
                change_in(&mut self.exact, name, change);
            }
            NamePattern::Suffix(suffix) => {
                let (before, after) = change_in(&mut self.suffixes, suffix, change);
                let length = suffix.as_bytes().len();
                if !suffix.as_bytes().starts_with(b".") && before != after {
                    let count = self.loose.get(&length).copied().unwrap_or_default();
                    match if after { count + 1 } else { count.saturating_sub(1) } {
                        0 => self.loose.remove(&length),
                        count => self.loose.insert(length, count),
                    };
                }
            }
        }
    }
}

/// Tells whether the map had the name before, and has it after.
fn change_in<B: Bucket>(
    map: &mut HashMap<Name, B>,
    name: &Name,
    change: impl FnOnce(&mut B),
) -> (bool, bool) {
    if let Some(bucket) = map.get_mut(name.as_bytes()) {
        change(bucket);
        let empty = bucket.is_empty();
        if empty {
            map.remove(name.as_bytes());
        }
        return (true, !empty);
    }
    let mut bucket = B::default();
    change(&mut bucket);
    let empty = bucket.is_empty();
    if !empty {
        map.insert(name.clone(), bucket);
    }
    (false, !empty)
}
