//! Which requests leave the protection of an entry, when a whole state replaces another.
//!
//! An entry is one line of a lookup: a name of an ssl, a host and path of a route, the SNI of a
//! stream route. The first entry that matches decides, in an order that is total among the entries
//! that match one request. Invariant: a request that a protecting entry decides before the change
//! is decided after it by an entry that protects as much, or a loss is reported. An entry in front
//! counts although another one may hide it, so that the verdict does not depend on entries that
//! another writer removes at the same time.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, HashSet};

use crate::id::Id;

/// A line of a lookup.
pub(super) trait IndexEntry {
    /// The resource that makes the entry.
    fn id(&self) -> &Id;
    /// The order of the search, for entries that match a common request.
    fn search_order(&self, other: &Self) -> Ordering;
    /// Whether some request may match both.
    fn overlaps(&self, other: &Self) -> bool;
    /// Whether this entry certainly matches each request that `other` matches.
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

/// The comparison of two states of a lookup.
pub(super) struct EntryComparison<'a, C> {
    /// At most one for each pair of resources.
    pub(super) losses: Vec<EntryLoss<'a, C>>,
    /// Each changed resource that protected, with the resources that protect in its place: others,
    /// or itself.
    pub(super) keepers: BTreeSet<(&'a Id, &'a Id)>,
}

/// Compares two states. `touched`: the resources that change, or whose settings from other
/// resources do; all other entries are the same in both states.
pub(super) fn compare<'a, C: IndexEntry>(
    before: &'a [C],
    after: &'a [C],
    touched: &HashSet<&Id>,
) -> EntryComparison<'a, C> {
    let fresh: Vec<&C> = after.iter().filter(|entry| touched.contains(entry.id())).collect();
    let every: Vec<&C> = after.iter().collect();
    let mut losses = BTreeMap::new();
    let mut keepers = BTreeSet::new();
    for protected in before.iter().filter(|entry| entry.protects()) {
        let is_touched = touched.contains(protected.id());
        let keeper = if is_touched { first_keeper(protected, after) } else { Some(protected) };
        let Some(keeper) = keeper else {
            losses.entry((protected.id(), None)).or_insert(EntryLoss { protected, taker: None });
            continue;
        };
        if is_touched {
            keepers.insert((protected.id(), keeper.id()));
        }
        for &taker in if is_touched { &every } else { &fresh } {
            if taker.search_order(keeper) == Ordering::Less
                && taker.overlaps(protected)
                && taker.weakens(protected)
                && !was_decided_earlier(taker, protected, before, touched)
            {
                let pair = (protected.id(), Some(taker.id()));
                losses.entry(pair).or_insert(EntryLoss { protected, taker: Some(taker) });
            }
        }
    }
    EntryComparison { losses: losses.into_values().collect(), keepers }
}

/// The first entry that takes over all requests of an entry and protects as much.
fn first_keeper<'a, C: IndexEntry>(protected: &C, after: &'a [C]) -> Option<&'a C> {
    let keepers = after.iter().filter(|entry| entry.covers(protected) && !entry.weakens(protected));
    keepers.min_by(|one, other| one.search_order(other))
}

/// Whether an entry in front of `protected` already decided all requests that `taker` matches.
fn was_decided_earlier<C: IndexEntry>(
    taker: &C,
    protected: &C,
    before: &[C],
    touched: &HashSet<&Id>,
) -> bool {
    let related = before.iter().filter(|entry| entry.id() == taker.id() || touched.contains(entry.id()));
    related.into_iter().any(|entry| entry.search_order(protected) == Ordering::Less && entry.covers(taker))
}
