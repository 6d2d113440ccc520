//! Which requests leave the protection of an entry, when a whole state replaces another.
//!
//! An entry is one line of a lookup: a name of an ssl, a host and path of a route, the SNI of a
//! stream route. The first entry that matches decides, in an order that is total among the entries
//! that match one request. Invariant: a request that a protecting entry decides before the change
//! is decided after it by an entry that protects as much, or a loss is reported. An entry in front
//! counts although another one may hide it, so that the verdict does not depend on entries that
//! another writer removes at the same time.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Bound;

use crate::id::Id;

/// A line of a lookup.
pub(super) trait IndexEntry {
    /// The resource that makes the entry.
    fn id(&self) -> &Id;
    /// Two texts, as of a host and a path: of two entries that overlap, each text of one starts
    /// with that of the other, or the reverse.
    fn stems(&self) -> [Cow<'_, [u8]>; 2];
    /// The order of the search, for entries that match a common request.
    fn search_order(&self, other: &Self) -> Ordering;
    /// Whether some request may match both.
    fn overlaps(&self, other: &Self) -> bool;
    /// Whether this entry certainly matches each request that `other` matches; then they overlap.
    fn covers(&self, other: &Self) -> bool;
    /// Whether clients may be denied here.
    fn protects(&self) -> bool;
    /// Whether this entry may allow a client that `protected` denies. The settings of one resource
    /// before and after are compared elsewhere, so they do not count here.
    fn weakens(&self, protected: &Self) -> bool;
}

/// Requests that lose their protection.
pub(super) struct EntryLoss<'a, C> {
    pub(super) protected: &'a C,
    /// The entry that decides instead; `None`: perhaps none.
    pub(super) taker: Option<&'a C>,
}

/// Most losses of one comparison, which ends there: one is enough for the verdict, and every pair
/// of many thousands of entries may be one.
pub(super) const LOSSES_MAX: usize = 1000;

/// The comparison of two states of a lookup.
pub(super) struct EntryComparison<'a, C> {
    /// At most one for each pair of resources.
    pub(super) losses: Vec<EntryLoss<'a, C>>,
    /// Each changed resource that protected, with the resources that protect in its place: others,
    /// or itself. All only if the comparison is complete.
    pub(super) keepers: BTreeSet<(&'a Id, &'a Id)>,
    /// It did not end at [`LOSSES_MAX`].
    pub(super) is_complete: bool,
}

/// Compares two states. `touched`: the resources that change, or whose settings from other
/// resources do; all other entries are the same in both states. `written`: those that change
/// themselves.
///
/// Only entries that may overlap are compared, so the time grows with the pairs of those.
pub(super) fn compare<'a, C: IndexEntry>(
    before: &'a [C],
    after: &'a [C],
    touched: &HashSet<&Id>,
    written: &HashSet<&Id>,
) -> EntryComparison<'a, C> {
    let every = EntryGroup::new(after.iter());
    let fresh = EntryGroup::new(after.iter().filter(|entry| touched.contains(entry.id())));
    let mut earlier = EarlierEntries::new(before, written);
    let mut losses = BTreeMap::new();
    let mut keepers = BTreeSet::new();
    for protected in before.iter().filter(|entry| entry.protects()) {
        if losses.len() >= LOSSES_MAX {
            break;
        }
        let is_touched = touched.contains(protected.id());
        let near = if is_touched { &every } else { &fresh }.near(protected);
        let keeper = if is_touched { first_keeper(protected, &near) } else { Some(protected) };
        let Some(keeper) = keeper else {
            losses.entry((protected.id(), None)).or_insert(EntryLoss { protected, taker: None });
            continue;
        };
        if is_touched {
            keepers.insert((protected.id(), keeper.id()));
        }
        for taker in near {
            if losses.len() >= LOSSES_MAX {
                break;
            }
            if taker.search_order(keeper) == Ordering::Less
                && taker.overlaps(protected)
                && taker.weakens(protected)
                && !earlier.decided(taker, protected)
            {
                let pair = (protected.id(), Some(taker.id()));
                losses.entry(pair).or_insert(EntryLoss { protected, taker: Some(taker) });
            }
        }
    }
    let is_complete = losses.len() < LOSSES_MAX;
    EntryComparison { losses: losses.into_values().collect(), keepers, is_complete }
}

/// The first entry that takes over all requests of an entry and protects as much.
fn first_keeper<'a, C: IndexEntry>(protected: &C, near: &[&'a C]) -> Option<&'a C> {
    let covering = near.iter().copied().filter(|entry| entry.covers(protected));
    let keepers = covering.filter(|entry| !entry.weakens(protected));
    keepers.min_by(|one, other| one.search_order(other))
}

/// Which entries before the change decided about the requests that an entry takes after it. Those
/// of resources that are not written do not count: another writer may remove them at the same time.
struct EarlierEntries<'a, C> {
    written: EntryGroup<'a, C>,
    own: HashMap<&'a Id, Vec<&'a C>>,
    /// The first entry that covers a taker, by the taker's address.
    first: HashMap<*const C, Option<&'a C>>,
}

impl<'a, C: IndexEntry> EarlierEntries<'a, C> {
    fn new(before: &'a [C], written: &HashSet<&Id>) -> Self {
        let written = EntryGroup::new(before.iter().filter(|entry| written.contains(entry.id())));
        let mut own: HashMap<&Id, Vec<&C>> = HashMap::new();
        for entry in before {
            own.entry(entry.id()).or_default().push(entry);
        }
        Self { written, own, first: HashMap::new() }
    }

    /// Whether an entry in front of `protected` already decided all requests that `taker` matches.
    fn decided(&mut self, taker: &'a C, protected: &C) -> bool {
        let first = *self.first.entry(std::ptr::from_ref(taker)).or_insert_with(|| {
            let own = self.own.get(taker.id()).into_iter().flatten().copied();
            let related = self.written.near(taker).into_iter().chain(own);
            related.filter(|entry| entry.covers(taker)).min_by(|one, other| one.search_order(other))
        });
        first.is_some_and(|entry| entry.search_order(protected) == Ordering::Less)
    }
}

/// Entries by their stems.
struct EntryGroup<'a, C>([StemTable<'a, C>; 2]);

/// Entries by one of their stems.
struct StemTable<'a, C> {
    entries: BTreeMap<Cow<'a, [u8]>, Vec<&'a C>>,
    /// Those of the stems.
    lengths: BTreeSet<usize>,
}

impl<'a, C: IndexEntry> EntryGroup<'a, C> {
    fn new(entries: impl Iterator<Item = &'a C>) -> Self {
        let table = || StemTable { entries: BTreeMap::new(), lengths: BTreeSet::new() };
        let mut tables = [table(), table()];
        for entry in entries {
            for (table, stem) in tables.iter_mut().zip(entry.stems()) {
                table.lengths.insert(stem.len());
                table.entries.entry(stem).or_default().push(entry);
            }
        }
        Self(tables)
    }

    /// All entries that may overlap `entry`, and more: those of the stem that fewer others share.
    fn near(&self, entry: &C) -> Vec<&'a C> {
        let [one, other] = entry.stems();
        let [by_one, by_other] = &self.0;
        let [one, other] = [by_one.related(&one), by_other.related(&other)];
        let count = |found: &[&[&C]]| found.iter().map(|entries| entries.len()).sum::<usize>();
        let fewer = if count(&one) <= count(&other) { one } else { other };
        fewer.into_iter().flatten().copied().collect()
    }
}

impl<'a, C> StemTable<'a, C> {
    /// The entries whose stem starts with `stem`, and those with whose stem it starts.
    fn related(&self, stem: &[u8]) -> Vec<&[&'a C]> {
        let shorter = self.lengths.range(..stem.len());
        let shorter = shorter.filter_map(|end| self.entries.get(stem.get(..*end)?));
        let longer = self.entries.range::<[u8], _>((Bound::Included(stem), Bound::Unbounded));
        let longer = longer.take_while(|(key, _)| key.starts_with(stem)).map(|(_, entries)| entries);
        shorter.chain(longer).map(Vec::as_slice).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// An entry that counts how often it is compared.
    struct Counted<'a> {
        id: Id,
        stems: [String; 2],
        comparisons: &'a Cell<usize>,
    }

    impl Counted<'_> {
        fn counted(&self, answer: bool) -> bool {
            self.comparisons.set(self.comparisons.get() + 1);
            answer
        }

        fn shares(&self, other: &Self) -> bool {
            let meets = |(one, other): (&String, &String)| one.starts_with(other) || other.starts_with(one);
            self.stems.iter().zip(&other.stems).all(meets)
        }
    }

    impl IndexEntry for Counted<'_> {
        fn id(&self) -> &Id {
            &self.id
        }

        fn stems(&self) -> [Cow<'_, [u8]>; 2] {
            self.stems.each_ref().map(|stem| stem.as_bytes().into())
        }

        fn search_order(&self, other: &Self) -> Ordering {
            self.id.cmp(&other.id)
        }

        fn overlaps(&self, other: &Self) -> bool {
            self.counted(self.shares(other))
        }

        fn covers(&self, other: &Self) -> bool {
            self.counted(self.shares(other))
        }

        fn protects(&self) -> bool {
            true
        }

        fn weakens(&self, protected: &Self) -> bool {
            self.counted(self.id != protected.id)
        }
    }

    /// The comparisons when all of `count` entries with these stems change, and whether any loses.
    fn comparisons(count: usize, stems: impl Fn(usize) -> [String; 2]) -> (usize, bool) {
        let total = Cell::new(0);
        let entries = (0..count).map(|number| Counted {
            id: Id::parse(&format!("{number:06}")).unwrap(),
            stems: stems(number),
            comparisons: &total,
        });
        let entries: Vec<_> = entries.collect();
        let touched: HashSet<&Id> = entries.iter().map(|entry| &entry.id).collect();
        let loses = !compare(&entries, &entries, &touched, &touched).losses.is_empty();
        (total.get(), loses)
    }

    #[test]
    fn entries_apart_are_not_compared_with_each_other() {
        for stems in [
            |number: usize| [format!("{number:06}"), "/".to_owned()],
            |number: usize| [String::new(), format!("/{number:06}")],
            |number: usize| [format!("{:03}", number % 40), format!("/{:03}", number / 40)],
        ] {
            let (total, loses) = comparisons(1600, stems);
            assert!(total < 1600 * 200 && !loses, "{total} {loses}");
        }
    }

    #[test]
    fn entries_of_one_place_are_compared_in_pairs() {
        let (total, loses) = comparisons(200, |_| [String::new(), "/".to_owned()]);
        assert!(total <= 5 * 200 * 200 && !loses, "{total} {loses}");
    }

    #[test]
    fn a_comparison_ends_at_the_most_losses() {
        let total = Cell::new(0);
        let entries = |range: std::ops::Range<usize>| -> Vec<Counted<'_>> {
            let entry = |number: usize| Counted {
                id: Id::parse(&format!("{number:06}")).unwrap(),
                stems: [String::new(), "/".to_owned()],
                comparisons: &total,
            };
            range.map(entry).collect()
        };
        for (count, complete) in [(30, true), (2000, false)] {
            let (before, after) = (entries(10_000..10_000 + count), entries(0..30));
            let after: Vec<_> = after.into_iter().chain(entries(10_000..10_000 + count)).collect();
            let fresh: HashSet<&Id> = after.iter().take(30).map(|entry| &entry.id).collect();
            let compared = compare(&before, &after, &fresh, &fresh);
            let losses = if complete { count * 30 } else { LOSSES_MAX };
            assert_eq!((compared.losses.len(), compared.is_complete), (losses, complete));
        }
        assert!(total.get() < 20 * LOSSES_MAX, "{}", total.get());
    }

    #[test]
    fn stems_relate_in_both_directions() {
        let total = Cell::new(0);
        let entry = |own: &str, one: &str, other: &str| Counted {
            id: Id::parse(own).unwrap(),
            stems: [one.to_owned(), other.to_owned()],
            comparisons: &total,
        };
        let entries =
            [entry("1", "ab", "/"), entry("2", "a", "/x"), entry("3", "abc", ""), entry("4", "b", "/")];
        let group = EntryGroup::new(entries.iter());
        let near = |one: &str, other: &str| {
            let mut ids: Vec<_> =
                group.near(&entry("5", one, other)).iter().map(|near| near.id.to_string()).collect();
            ids.sort_unstable();
            ids
        };
        assert_eq!(near("ab", "/x/y"), ["1", "2", "3"]);
        assert_eq!(near("b", "/"), ["4"]);
        assert_eq!(near("", "/x"), ["1", "2", "3", "4"]);
        assert_eq!(near("c", "/"), [""; 0]);
    }
}
