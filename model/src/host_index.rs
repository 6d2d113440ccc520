//! A map from name patterns, the common part of the indexes of sites, routes and stream routes.
//!
//! Exact names and wildcard suffixes are two persistent tables, of which a copy shares everything
//! but the path of a change. A lookup probes the exact name and each suffix that starts at a dot,
//! except suffix lengths that no pattern has. The caller decides how much a wildcard may cover.

use std::cmp::Reverse;

use imbl::OrdMap;

use crate::dots;
use crate::host_name::HostName;
pub(crate) use crate::name_table::Bucket;
use crate::name_table::NameTable;
use crate::pattern::NamePattern;

/// The place of a pattern in a search: the exact name comes first, then suffixes, longest first,
/// then `*`. Among patterns that match one name the order is total.
pub(crate) fn search_rank(pattern: &NamePattern) -> (u8, Reverse<usize>) {
    match pattern {
        NamePattern::Exact(_) => (0, Reverse(0)),
        NamePattern::Suffix(suffix) => (1, Reverse(suffix.as_bytes().len())),
        NamePattern::Any => (2, Reverse(0)),
    }
}

#[derive(Clone)]
pub(crate) struct HostIndex<B> {
    exact: NameTable<B>,
    suffixes: NameTable<B>,
    /// Number of dots of the suffixes that start with a dot (`*.x.com`: 2).
    dotted: Lengths,
    /// Length of the other suffixes (`*x.com`: 5). This set is nearly always empty, and otherwise
    /// lookups also probe suffixes that start inside labels.
    dotless: Lengths,
    any: B,
}

impl<B: Bucket> HostIndex<B> {
    pub(crate) fn new() -> HostIndex<B> {
        let (exact, suffixes) = (NameTable::new(), NameTable::new());
        let (dotted, loose, any) = Default::default();
        HostIndex { exact, suffixes, dotted, dotless: loose, any }
    }

    /// The value of the exact name.
    #[inline]
    pub(crate) fn exact(&self, name: &HostName) -> Option<&B> {
        self.exact.get_filtered(name.as_bytes())
    }

    /// The values of wildcards that match the name, longest suffix first, each with the part of the
    /// name that the `*` covers.
    #[inline]
    pub(crate) fn suffixes<'i, 'n>(
        &'i self,
        name: &'n HostName,
    ) -> impl Iterator<Item = (&'n [u8], &'i B)> + use<'i, 'n, B> {
        let bytes = name.as_bytes();
        self.candidate_suffixes(name).filter_map(move |ending| {
            let star = bytes.get(..bytes.len() - ending.len())?;
            Some((star, self.suffixes.get(ending)?))
        })
    }

    /// The suffixes of a name that a pattern may have.
    #[inline]
    fn candidate_suffixes<'i, 'n>(
        &'i self,
        name: &'n HostName,
    ) -> impl Iterator<Item = &'n [u8]> + use<'i, 'n, B> {
        let without = self.suffixes.is_empty();
        let (mut rest, mut dots) = if without { (&[][..], 0) } else { (name.as_bytes(), name.dot_count()) };
        std::iter::from_fn(move || {
            loop {
                let next = if self.dotless.is_empty() { dots::first(rest)? } else { 0 };
                let ending = rest.get(next..)?;
                let (first, after) = ending.split_first()?;
                rest = after;
                let possible = if *first == b'.' {
                    dots -= 1;
                    self.dotted.contains(dots + 1)
                } else {
                    self.dotless.contains(ending.len())
                };
                if possible {
                    return Some(ending);
                }
            }
        })
    }

    /// The value of the pattern `*`; may be empty.
    pub(crate) fn any(&self) -> &B {
        &self.any
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        let lengths = self.dotted.is_empty() && self.dotless.is_empty();
        self.exact.is_empty() && self.suffixes.is_empty() && lengths && self.any.is_empty()
    }

    /// Updates the value of a pattern.
    pub(crate) fn update(&mut self, pattern: &NamePattern, change: impl FnOnce(&mut B)) {
        match pattern {
            NamePattern::Any => change(&mut self.any),
            NamePattern::Exact(name) => {
                self.exact.update(name, change);
            }
            NamePattern::Suffix(suffix) => {
                let (before, after) = self.suffixes.update(suffix, change);
                if before == after {
                    return;
                }
                let bytes = suffix.as_bytes();
                if bytes.starts_with(b".") {
                    let dots = bytes.iter().filter(|byte| **byte == b'.').count();
                    self.dotted.count(dots, after);
                } else {
                    self.dotless.count(bytes.len(), after);
                }
            }
        }
    }
}

/// A multiset of lengths.
#[derive(Clone, Default)]
struct Lengths {
    counts: OrdMap<usize, usize>,
    /// One bit for each length modulo 64; a collision costs one probe.
    bits: u64,
}

impl Lengths {
    fn is_empty(&self) -> bool {
        self.bits == 0
    }

    fn contains(&self, length: usize) -> bool {
        self.bits & bit(length) != 0
    }

    /// Adds or removes one occurrence.
    fn count(&mut self, length: usize, more: bool) {
        let length = length % u64::BITS as usize;
        let count = self.counts.get(&length).copied().unwrap_or_default();
        match if more { count + 1 } else { count.saturating_sub(1) } {
            0 => {
                self.counts.remove(&length);
                self.bits &= !bit(length);
            }
            count => {
                self.counts.insert(length, count);
                self.bits |= bit(length);
            }
        }
    }
}

fn bit(length: usize) -> u64 {
    1 << (length % u64::BITS as usize)
}
