//! Which requests leave the protection of a claim, when a whole state replaces another.
//!
//! A claim is one line of a lookup: a name of an ssl, a host and path of a route, the SNI of a
//! stream route. The first claim that matches decides, in an order that is total among the claims
//! that match one request. Invariant: a request that a protecting claim decides before the change
//! is decided after it by a claim that protects as much, or a loss is reported. A claim in front
//! counts although another one may hide it, so that the verdict does not depend on claims that
//! another writer removes at the same time.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, HashSet};

use crate::id::Id;

/// A line of a lookup.
pub(super) trait Claim {
    /// The resource that makes the claim.
    fn id(&self) -> &Id;
    /// The order of the search, for claims that match a common request.
    fn search_order(&self, other: &Self) -> Ordering;
    /// Whether some request may match both.
    fn overlaps(&self, other: &Self) -> bool;
    /// Whether this claim certainly matches each request that `other` matches.
    fn covers(&self, other: &Self) -> bool;
    /// Whether clients may be denied here.
    fn protects(&self) -> bool;
    /// Whether this claim may allow a client that `protected` denies. The settings of one resource
    /// before and after are compared elsewhere, so they do not count here.
    fn weakens(&self, protected: &Self) -> bool;
}

/// Requests that lose their protection.
pub(super) struct ClaimLoss<'a, C> {
    pub(super) protected: &'a C,
    /// The claim that decides instead; `None`: perhaps none.
    pub(super) taker: Option<&'a C>,
}

/// The comparison of two states of a lookup.
pub(super) struct ClaimComparison<'a, C> {
    /// At most one for each pair of resources.
    pub(super) losses: Vec<ClaimLoss<'a, C>>,
    /// Resources whose claims protect what other resources did.
    pub(super) keepers: BTreeSet<&'a Id>,
}

/// Compares two states. `touched`: the resources that change, or whose settings from other
/// resources do; all other claims are the same in both states.
pub(super) fn compare<'a, C: Claim>(
    before: &'a [C],
    after: &'a [C],
    touched: &HashSet<&Id>,
) -> ClaimComparison<'a, C> {
    let fresh: Vec<&C> = after.iter().filter(|claim| touched.contains(claim.id())).collect();
    let every: Vec<&C> = after.iter().collect();
    let mut losses = BTreeMap::new();
    let mut keepers = BTreeSet::new();
    for protected in before.iter().filter(|claim| claim.protects()) {
        let is_touched = touched.contains(protected.id());
        let keeper = if is_touched { first_keeper(protected, after) } else { Some(protected) };
        let Some(keeper) = keeper else {
            losses.entry((protected.id(), None)).or_insert(ClaimLoss { protected, taker: None });
            continue;
        };
        if keeper.id() != protected.id() {
            keepers.insert(keeper.id());
        }
        for &taker in if is_touched { &every } else { &fresh } {
            if taker.search_order(keeper) == Ordering::Less
                && taker.overlaps(protected)
                && taker.weakens(protected)
                && !was_decided_earlier(taker, protected, before, touched)
            {
                let pair = (protected.id(), Some(taker.id()));
                losses.entry(pair).or_insert(ClaimLoss { protected, taker: Some(taker) });
            }
        }
    }
    ClaimComparison { losses: losses.into_values().collect(), keepers }
}

/// The first claim that takes over all requests of a claim and protects as much.
fn first_keeper<'a, C: Claim>(protected: &C, after: &'a [C]) -> Option<&'a C> {
    let keepers = after.iter().filter(|claim| claim.covers(protected) && !claim.weakens(protected));
    keepers.min_by(|one, other| one.search_order(other))
}

/// Whether a claim in front of `protected` already decided all requests that `taker` matches.
fn was_decided_earlier<C: Claim>(taker: &C, protected: &C, before: &[C], touched: &HashSet<&Id>) -> bool {
    let related = before.iter().filter(|claim| claim.id() == taker.id() || touched.contains(claim.id()));
    related.into_iter().any(|claim| claim.search_order(protected) == Ordering::Less && claim.covers(taker))
}
