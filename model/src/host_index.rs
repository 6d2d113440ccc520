//! Configured names -> whatever belongs to them: the shape shared by the index of sites and those
//! of routes.
//!
//! Exact names and wildcard suffixes are two persistent tables (a copy shares all but the path of a
//! change), so a lookup costs one probe for the exact name and one for each place above it where a
//! wildcard could begin; where none has so many labels, nothing is probed. What a wildcard may
//! cover is decided by the caller, who is told what stood in its place.

use imbl::OrdMap;

use crate::dots;
use crate::host_name::HostName;
pub(crate) use crate::name_table::Bucket;
use crate::name_table::NameTable;
use crate::pattern::NamePattern;

#[derive(Clone)]
pub(crate) struct HostIndex<B> {
    exact: NameTable<B>,
    suffixes: NameTable<B>,
    /// How many dots the suffixes have that start with one (`*.x.com`: 2).
    dotted: Lengths,
    /// How long the others are (`*x.com`: 5). Almost always empty; only when not are suffixes
    /// searched inside labels.
    dotless: Lengths,
    any: B,
}

impl<B: Bucket> HostIndex<B> {
    pub(crate) fn new() -> HostIndex<B> {
        let (exact, suffixes) = (NameTable::new(), NameTable::new());
        let (dotted, loose, any) = Default::default();
        HostIndex { exact, suffixes, dotted, dotless: loose, any }
    }

    /// What belongs to exactly this name.
    #[inline]
    pub(crate) fn exact(&self, name: &HostName) -> Option<&B> {
        self.exact.get_filtered(name.as_bytes())
    }

    /// What belongs to wildcards that end this name, longest suffix first, each with the part of
    /// the name that stands for its `*`.
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

    /// The ends of a name that could be a suffix of ours.
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

    /// What belongs to `*`; may be empty.
    pub(crate) fn any(&self) -> &B {
        &self.any
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        let lengths = self.dotted.is_empty() && self.dotless.is_empty();
        self.exact.is_empty() && self.suffixes.is_empty() && lengths && self.any.is_empty()
    }

    /// Changes what belongs to a pattern.
    pub(crate) fn update(&mut self, pattern: &NamePattern, change: impl FnOnce(&mut B)) {
        match pattern {
            NamePattern::Any => change(&mut self.any),
            NamePattern::Exact(name) => {
                self.exact.change(name, change);
            }
            NamePattern::Suffix(suffix) => {
                let (before, after) = self.suffixes.change(suffix, change);
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

/// Which lengths occur, and how often each.
#[derive(Clone, Default)]
struct Lengths {
    counts: OrdMap<usize, usize>,
    /// A bit for each of the `counts`; lengths that differ by 64 share one, and with it a probe
    /// that finds nothing.
    bits: u64,
}

impl Lengths {
    fn is_empty(&self) -> bool {
        self.bits == 0
    }

    fn contains(&self, length: usize) -> bool {
        self.bits & bit(length) != 0
    }

    /// One more of that length, or one less.
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
